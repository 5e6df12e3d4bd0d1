//! Milena's router: who is asked.

pub mod members;
pub mod peers;
pub mod rate_limit;
