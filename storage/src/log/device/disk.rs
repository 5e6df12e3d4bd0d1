//! Files that glommio's ring reads and writes.
//!
//! Writes are direct where the filesystem allows it: nothing that is written once and read seldom should push out of the
//! page cache what is read often, and a sync has little left to do. Reads are buffered, so that what is read twice is
//! read from memory the second time: pages that a direct write has replaced are dropped by the kernel. What is read to be
//! reclaimed is read directly too.
//!
//! **Is it in memory?** `preadv2(RWF_NOWAIT)` tells and copies in one call that never waits and never faults. Measured
//! against `mincore` and a copy out of a mapping, 512 MiB of ext4 in the page cache, random places, Linux 6.18, median of
//! three, in microseconds for each read, allocation of the copy included:
//!
//! ```text
//! bytes              1,104   4,096   16,384   65,536   1,048,576
//! preadv2             1.77    1.62     2.66     7.07        93.0
//! mincore + copy      2.16    2.27     3.15     7.73        81.2
//! ```
//! Besides, a page can go between `mincore` and the copy, and the core would wait for the disk without knowing. So the
//! mappings serve the start, and a core touches none: it takes no major fault, and no SIGBUS where a file was cut short.

use std::{future::Future, io, os::fd::AsRawFd, path::Path, rc::Rc, time::Duration};

use bytes::Bytes;
use glommio::{
    GlommioError,
    io::{BufferedFile, DmaFile, OpenOptions},
};

use super::{Device, DeviceError};
use crate::log::{
    open::segment_path,
    segment::{BLOCK_BYTES, SegmentNumber},
};

/// Longer than a timer takes to be set, so that it is not over before anybody waits.
const A_MOMENT: Duration = Duration::from_micros(1);

/// What is written at once: it is copied to where the disk can have it from, and others on the core wait for that.
const WRITE_PIECE_BYTES: usize = 1 << 20;

const _: () = assert!(WRITE_PIECE_BYTES.is_multiple_of(BLOCK_BYTES));

/// The files of a log, opened on its core.
#[derive(Debug)]
pub struct Disk {
    files: Rc<[SegmentFile]>,
}

#[derive(Debug)]
struct SegmentFile {
    writer: Writer,
    reader: BufferedFile,
}

/// Direct unless the filesystem does not have it.
#[derive(Debug)]
enum Writer {
    Direct {
        file: DmaFile,
        /// The same file, opened with `O_DSYNC`: a write and its sync are one request, where two would each wait for their
        /// turn of the core.
        durable: DmaFile,
    },
    Buffered(BufferedFile),
}

impl Writer {
    async fn open(path: &Path) -> io::Result<Self> {
        let direct = || async {
            let file = OpenOptions::new().read(true).write(true).dma_open(path).await?;
            let durable = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DSYNC).dma_open(path).await?;
            Ok::<_, GlommioError<()>>(Self::Direct { file, durable })
        };
        match direct().await {
            Ok(direct) => Ok(direct),
            Err(_) => Ok(Self::Buffered(OpenOptions::new().write(true).buffered_open(path).await?)),
        }
    }

    /// Writes blocks, and says how many bytes.
    async fn write(&self, offset: u64, blocks: &[u8], durable: bool) -> io::Result<usize> {
        match self {
            Self::Direct { file, durable: durable_file } => {
                let file = if durable { durable_file } else { file };
                forget_pages(file, offset, blocks.len());
                let mut buffer = file.alloc_dma_buffer(blocks.len());
                buffer.as_bytes_mut().copy_from_slice(blocks);
                Ok(file.write_at(buffer, offset).await?)
            }
            Self::Buffered(file) => {
                let written = file.write_at(blocks.to_vec(), offset).await?;
                if durable {
                    file.fdatasync().await?;
                }
                Ok(written)
            }
        }
    }
}

/// Lets go of pages in memory that a read has brought there and that are to be overwritten. The ring would hand a direct write
/// that meets one to a worker thread, whose submission takes a processor from somebody: two writes of five, in a log of which
/// one put in four hundred reads a record. About a microsecond where there are none.
fn forget_pages(file: &impl AsRawFd, offset: u64, len: usize) {
    let (offset, len) = (offset.cast_signed(), i64::try_from(len).expect("less than a segment"));
    // Advice: without it the write is slower, and no less right.
    // SAFETY: no pointers, and the file is open.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, len, libc::POSIX_FADV_DONTNEED) };
}

impl Disk {
    /// Opens the files of the segments in `dir`. Before the core serves: opening is not for the ring alone.
    ///
    /// # Errors
    /// The kernel's, for the first file that cannot be opened.
    pub(in crate::log) async fn open(dir: &Path, segment_count: usize) -> io::Result<Self> {
        let mut files = Vec::with_capacity(segment_count);
        for number in 0..segment_count {
            let path = segment_path(dir, number);
            let reader = OpenOptions::new().read(true).buffered_open(&path).await?;
            // Neighbours of a record are not wanted more than others; advice that is not taken does no harm.
            // SAFETY: no pointers, and the file is open.
            unsafe { libc::posix_fadvise(reader.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
            files.push(SegmentFile { writer: Writer::open(&path).await?, reader });
        }
        Ok(Self { files: files.into() })
    }

    /// Whether writes go to the disk without a stay in the page cache. glommio answers for a filesystem that has no direct
    /// writes with an error (ramfs), or takes the flag away in silence (tmpfs).
    pub(in crate::log) fn is_direct(&self) -> bool {
        let is_direct = |file: &SegmentFile| {
            let Writer::Direct { file, .. } = &file.writer else { return false };
            // SAFETY: no pointers, and the file is open.
            let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
            flags & libc::O_DIRECT != 0
        };
        self.files.iter().all(is_direct)
    }
}

async fn read_buffered(file: &BufferedFile, offset: u32, len: usize) -> Result<Bytes, DeviceError> {
    let read = file.read_at(u64::from(offset), len).await.map_err(io::Error::from)?;
    Ok(Bytes::copy_from_slice(&read))
}

impl Device for Disk {
    fn write(
        &self,
        segment: SegmentNumber,
        offset: u32,
        blocks: Bytes,
        durable: bool,
    ) -> impl Future<Output = Result<(), DeviceError>> + 'static {
        let files = Rc::clone(&self.files);
        async move {
            let writer = &files[usize::from(segment)].writer;
            for (number, piece) in blocks.chunks(WRITE_PIECE_BYTES).enumerate() {
                let offset = u64::from(offset) + (number * WRITE_PIECE_BYTES) as u64;
                let written = writer.write(offset, piece, durable).await?;
                if written != piece.len() {
                    let written = number * WRITE_PIECE_BYTES + written;
                    return Err(DeviceError::Short { written, asked: blocks.len() });
                }
            }
            Ok(())
        }
    }

    fn sync(&self, segment: SegmentNumber) -> impl Future<Output = Result<(), DeviceError>> + 'static {
        let files = Rc::clone(&self.files);
        async move {
            let synced = match &files[usize::from(segment)].writer {
                Writer::Direct { file, .. } => file.fdatasync().await,
                Writer::Buffered(file) => file.fdatasync().await,
            };
            synced.map_err(|error| io::Error::from(error).into())
        }
    }

    fn read(
        &self,
        segment: SegmentNumber,
        offset: u32,
        len: usize,
    ) -> impl Future<Output = Result<Bytes, DeviceError>> + 'static {
        let files = Rc::clone(&self.files);
        async move { read_buffered(&files[usize::from(segment)].reader, offset, len).await }
    }

    fn read_once(
        &self,
        segment: SegmentNumber,
        offset: u32,
        len: usize,
    ) -> impl Future<Output = Result<Bytes, DeviceError>> + 'static {
        let files = Rc::clone(&self.files);
        async move {
            let SegmentFile { writer, reader } = &files[usize::from(segment)];
            let Writer::Direct { file, .. } = writer else { return read_buffered(reader, offset, len).await };
            let start = offset as usize % BLOCK_BYTES;
            let blocks_bytes = (start + len).next_multiple_of(BLOCK_BYTES);
            let blocks = file.read_at_aligned(u64::from(offset) - start as u64, blocks_bytes).await;
            let blocks = blocks.map_err(io::Error::from)?;
            // Fewer where the file ends.
            let wanted = start.min(blocks.len())..(start + len).min(blocks.len());
            Ok(Bytes::copy_from_slice(&blocks[wanted]))
        }
    }

    fn read_resident(&self, segment: SegmentNumber, offset: u32, len: usize) -> Option<Bytes> {
        let mut buffer: Vec<u8> = Vec::with_capacity(len);
        let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: len };
        let file = self.files[usize::from(segment)].reader.as_raw_fd();
        // SAFETY: the vector points to `len` bytes that are ours, and the file is open.
        let read = unsafe { libc::preadv2(file, &raw const vector, 1, i64::from(offset), libc::RWF_NOWAIT) };
        let read_bytes = usize::try_from(read).ok().filter(|&read_bytes| read_bytes > 0)?;
        // SAFETY: the kernel has written that many.
        unsafe { buffer.set_len(read_bytes) };
        Some(Bytes::from(buffer))
    }

    fn submitted(&self) -> impl Future<Output = ()> + 'static {
        // Before the reactor looks whether a timer is over, it gives the kernel what was begun.
        milena_net::task::sleep(A_MOMENT)
    }

    fn pause(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        milena_net::task::sleep(duration)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _, os::unix::fs::FileExt as _};

    use super::*;

    /// Which pages of a file are in memory, by a mapping that nobody touches.
    fn resident_pages(file: &File) -> Vec<bool> {
        // SAFETY: the file is nobody else's.
        let mapping = unsafe { memmap2::Mmap::map(file) }.unwrap();
        let mut pages = vec![0_u8; mapping.len() / BLOCK_BYTES];
        let start = mapping.as_ptr().cast_mut().cast();
        // SAFETY: there is room for as many pages as the mapping has.
        assert_eq!(unsafe { libc::mincore(start, mapping.len(), pages.as_mut_ptr()) }, 0);
        pages.into_iter().map(|page| page & 1 != 0).collect()
    }

    /// In a file where the test itself was built: the usual place may be in memory, where pages are all there is of a file.
    #[test]
    fn pages_that_are_to_be_overwritten_are_let_go_of_and_their_neighbours_stay() {
        let beside = std::env::current_exe().unwrap();
        let mut file = tempfile::tempfile_in(beside.parent().unwrap()).unwrap();
        file.write_all(&[7; 8 * BLOCK_BYTES]).unwrap();
        file.sync_all().unwrap();
        forget_pages(&file, 0, 8 * BLOCK_BYTES);
        assert_eq!(resident_pages(&file), [false; 8]);
        // As a log reads records: without such advice the pages would come, and go, together.
        // SAFETY: no pointers, and the file is open.
        assert_eq!(unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) }, 0);
        for page in 0..8 {
            file.read_exact_at(&mut [0; 100], page * BLOCK_BYTES as u64).unwrap();
        }
        assert_eq!(resident_pages(&file), [true; 8]);
        forget_pages(&file, 2 * BLOCK_BYTES as u64, 4 * BLOCK_BYTES);
        assert_eq!(resident_pages(&file), [true, true, false, false, false, false, true, true]);
    }
}
