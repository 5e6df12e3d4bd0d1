//! Milena's cache node, and the operator's tool.

pub(crate) mod absences;
pub mod batch;
pub mod complaints;
pub mod config;
pub mod inflight;
pub mod membership;
pub mod message;
pub mod node;
pub mod ownership;
pub mod report;
pub mod service;
pub mod shard;
pub mod shards;
pub mod stats;
pub mod tool;
pub mod uploader;
