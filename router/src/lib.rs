//! Milena's router: who is asked.

pub mod authority;
pub mod config;
pub mod forward;
pub mod members;
pub mod peers;
pub mod rate_limit;
pub mod service;
pub mod stats;
