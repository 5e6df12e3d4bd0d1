//! Milena's cache node, and the operator's tool.

pub mod config;
pub mod membership;
pub mod tool;
