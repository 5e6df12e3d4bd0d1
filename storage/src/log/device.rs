//! What a log needs of a disk, and the disk itself: files that glommio's ring reads and writes.
//!
//! ```text
//!   Log ──▶ Device ─┬─ Disk       device/disk.rs        the ring; direct writes, buffered reads
//!                   └─ Scripted   device/scripted.rs    bytes in memory, with faults; in tests
//! ```
//! All decisions are made before anything comes here, so that tests see every decision without a disk.

use std::{fmt, future::Future, io, time::Duration};

use bytes::Bytes;

use super::segment::SegmentNumber;

mod disk;
#[cfg(test)]
pub(super) mod scripted;

pub use disk::Disk;

/// The files of a log, opened before it serves. No function blocks; the futures may be dropped, but what was begun then
/// still happens.
pub trait Device: 'static {
    /// Writes whole blocks at a multiple of their size; where `durable`, so that they survive the machine once it is done.
    fn write(
        &self,
        segment: SegmentNumber,
        offset: u32,
        blocks: Bytes,
        durable: bool,
    ) -> impl Future<Output = Result<(), DeviceError>> + 'static;

    /// Makes what was written to a segment survive the machine.
    fn sync(&self, segment: SegmentNumber) -> impl Future<Output = Result<(), DeviceError>> + 'static;

    /// Reads `len` bytes, or fewer where the file ends.
    fn read(
        &self,
        segment: SegmentNumber,
        offset: u32,
        len: usize,
    ) -> impl Future<Output = Result<Bytes, DeviceError>> + 'static;

    /// As [`Device::read`], of what nobody is expected to want again: no memory holds it afterwards that did not before.
    fn read_once(
        &self,
        segment: SegmentNumber,
        offset: u32,
        len: usize,
    ) -> impl Future<Output = Result<Bytes, DeviceError>> + 'static {
        self.read(segment, offset, len)
    }

    /// As many of `len` bytes as can be had without waiting, from the first; none when the first cannot.
    fn read_resident(&self, segment: SegmentNumber, offset: u32, len: usize) -> Option<Bytes>;

    /// Waits until what was begun before is with the disk. A write that was only begun waits for all tasks that are ready.
    fn submitted(&self) -> impl Future<Output = ()> + 'static;

    /// Waits.
    fn pause(&self, duration: Duration) -> impl Future<Output = ()> + 'static;
}

/// A disk failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// The kernel's number.
    Os(i32),
    /// Less was written than was asked for.
    Short {
        /// Bytes written.
        written: usize,
        /// Bytes to write.
        asked: usize,
    },
    /// An error without a number of the kernel's.
    Other(io::ErrorKind),
}

impl From<io::Error> for DeviceError {
    fn from(error: io::Error) -> Self {
        error.raw_os_error().map_or(Self::Other(error.kind()), Self::Os)
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Os(number) => io::Error::from_raw_os_error(*number).fmt(f),
            Self::Short { written, asked } => write!(f, "{written} of {asked} bytes written"),
            Self::Other(kind) => kind.fmt(f),
        }
    }
}

impl std::error::Error for DeviceError {}
