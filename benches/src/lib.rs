//! Times the parts of Milena, and its peers.

pub mod operations;
