//! The disk tier of one core: a log of records in segments on local disk.

#![allow(dead_code, reason = "the log that uses these parts comes next")]

mod footer;
mod index;
mod record;
mod segment;
mod superblock;
#[cfg(test)]
mod testing;

pub use segment::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENTS_MAX};
pub use superblock::SuperblockError;
