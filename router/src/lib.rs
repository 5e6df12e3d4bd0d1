//! Milena's router: who is asked.

pub mod authority;
pub mod members;
pub mod peers;
pub mod rate_limit;
