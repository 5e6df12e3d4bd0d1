//! Milena's router: who is asked.
//!
//! ```text
//!   main ─▶ config ─▶ server ─┬─ service ─ forward ─▶ nodes      on every core; batch, peers, rate_limit, stats beside it
//!                             └─ authority ─ members             on core 0; the table, written down before it is told
//! ```
//! `members`, `peers`, `rate_limit` and the deciding half of `authority` are pure: events and `now` in, decisions out.

pub mod authority;
pub mod batch;
pub(crate) mod catch_up;
pub mod config;
pub mod forward;
pub mod members;
pub mod peers;
pub mod rate_limit;
pub mod server;
pub mod service;
pub mod stats;
