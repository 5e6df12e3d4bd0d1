//! Watches the whole: the load test program, and tests of clusters of real processes.

pub mod arguments;
pub mod cost;
pub mod drive;
pub mod keys;
pub mod pace;
pub mod program;
pub mod progress;
pub mod protocol;
pub mod random;
pub mod recorder;
pub mod result;
pub mod run;
pub mod schedule;
pub mod show;
pub mod slo;
pub mod synthetic;
pub mod system_calls;
pub mod target;
pub mod times;
pub mod validity;
pub mod verify;
pub mod workload;
pub mod zipf;
