//! How a core of Milena remembers: memory, then (later) a log on disk, then the object store, which is the truth.
//!
//! ```text
//!   Shard (package core) ──▶ memory    a hash table with an LRU list; never waits, cannot fail
//!                        ──▶ object    S3 or a directory, asked by helper threads; implements Tier
//! ```

pub mod entry;
pub mod error;
pub mod log;
pub mod memory;
pub mod object;
pub mod tier;

pub use entry::{Entry, Timestamp, Version};
pub use error::{Cause, Error, Operation};
pub use tier::{Condition, Found, Put, Tier};
