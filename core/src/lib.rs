//! Milena's cache node, and the operator's tool.

pub mod config;
pub mod membership;
pub mod tool;
pub(crate) mod absences;
pub mod inflight;
pub mod message;
pub mod shard;
pub mod shards;
pub mod stats;
