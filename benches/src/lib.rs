//! Times the parts of Milena, and its peers; makes the pages of `docs/benchmarks`.

pub mod operations;
pub mod pages;
