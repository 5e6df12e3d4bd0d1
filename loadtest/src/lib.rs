//! Watches the whole: the load test program, and tests of clusters of real processes.

pub mod report;
pub mod result;
