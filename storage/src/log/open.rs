//! Opening a log: the directory, its lock, its superblock, its files, and what they hold. Blocks; before a core serves.
//!
//! ```text
//! DIR/LOCK              held as long as the log is open
//!     superblock        superblock.rs; replaced as a whole
//!     segment-00000     segment.rs; of full size from the start, so that the disk is full now or never
//!     segment-00001 ...
//!     index             saved.rs; only after a clean stop, and gone before the log is used again
//! ```
//! What cannot be used is discarded with a word about it, and the log begins empty: it is a cache. (Where it is more than that,
//! because the store may lack what it has, the caller asks [`unusable`] first.) Only a directory that
//! another process holds, that is another core's, that cannot be written, or that has no room for the smallest log, stops
//! the start.

use std::{
    ffi::CString,
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    ops::Range,
    os::{
        fd::AsRawFd as _,
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use milena_net::settings::Size;

use super::{
    footer::{Footer, Growing},
    recover::{Recovered, Unsealed, recover},
    saved,
    segment::{
        BLOCK_BYTES, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENTS_MAX, Segment, SegmentHeader, SegmentNumber, State,
    },
    state::{FREE_SEGMENTS, Found},
    superblock::{Superblock, SuperblockError},
};

/// Segments that a log should have at least, so that the one that goes is a small part of it.
const SEGMENTS_WANTED: u64 = 64;

/// Segments without which a log cannot work: some open, some free, some sealed.
pub const SEGMENTS_MIN: u32 = 12;

/// The smallest log in bytes.
pub const LOG_BYTES_MIN: u64 = SEGMENTS_MIN as u64 * SEGMENT_BYTES_MIN;

/// Where a log is, and how large.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// Its directory, which is made if need be.
    pub dir: PathBuf,
    /// Whose log it is.
    pub core: u16,
    /// Of how many.
    pub core_count: u16,
    /// How large it should be, at least [`LOG_BYTES_MIN`]; rounded down to whole segments.
    pub disk_bytes: u64,
    /// What sets a new log apart from all others: a random number.
    pub new_log_id: u64,
}

/// A log that was opened, to be given to its core.
#[derive(Debug)]
pub struct Opened {
    pub(super) dir: PathBuf,
    pub(super) found: Found,
    pub(super) lock: File,
    /// What happened meanwhile.
    pub opening: Opening,
}

/// What a start has found, for one line to the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// Keys that the log has.
    pub entries: u64,
    /// Changes among them, and deletes, that the store does not have.
    pub debts: u64,
    /// Records that were looked at, dead or alive; 0 after a clean stop.
    pub records: u64,
    /// Whether the index of a clean stop was used.
    pub is_from_index: bool,
    /// Why what was there before was thrown away.
    pub discarded: Option<SuperblockError>,
    /// Segments there are.
    pub segments: u32,
    /// Segments for which there was no space.
    pub segments_missing: u32,
}

/// Why a log could not be opened.
#[derive(Debug)]
pub enum OpenError {
    /// Another process has it open.
    Locked(PathBuf),
    /// It belongs to another core, or to a node with another number of them, and [`rehome`](super::rehome) was not asked.
    OtherCores {
        /// The directory.
        dir: PathBuf,
        /// The core.
        core: u16,
        /// Of how many.
        core_count: u16,
    },
    /// Fewer bytes than [`LOG_BYTES_MIN`] were asked for.
    TooSmall {
        /// The directory.
        dir: PathBuf,
        /// Segments there would be.
        segments: u32,
        /// Their size.
        segment_bytes: u64,
    },
    /// The filesystem has no room for the smallest log with segments of this size; nothing was left there.
    NoSpace {
        /// The directory.
        dir: PathBuf,
        /// What the filesystem would give.
        free_bytes: u64,
        /// What must be free.
        needed_bytes: u64,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A file cannot be made, read or written.
    Io {
        /// Which.
        path: PathBuf,
        /// What was attempted.
        operation: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// The size of the segments of a new log: the largest of which there are enough.
pub(super) fn segment_bytes_for(disk_bytes: u64) -> u64 {
    let wanted = (disk_bytes / SEGMENTS_WANTED).max(1);
    let power = 1 << wanted.ilog2();
    u64::clamp(power, SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)
}

/// How many of them there should be.
pub(super) fn segment_count_for(disk_bytes: u64, segment_bytes: u64) -> u32 {
    u32::try_from(disk_bytes / segment_bytes).unwrap_or(u32::MAX).min(SEGMENTS_MAX)
}

pub(super) fn segment_path(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("segment-{number:05}"))
}

/// Opens the log of one core, or makes one. Blocks for as long as it takes to read the footers of all segments.
///
/// # Errors
/// [`OpenError`]; a damaged log is none, it begins empty.
pub fn open(settings: &LogSettings) -> Result<Opened, OpenError> {
    let dir = &settings.dir;
    allow_many_files();
    fs::create_dir_all(dir).map_err(failed(dir, "make"))?;
    let lock = take_lock(dir)?;
    let (before, discarded) = read_superblock(settings)?;
    let segment_bytes = before.map_or_else(|| segment_bytes_for(settings.disk_bytes), |before| before.segment_bytes);
    let wanted_count = segment_count_for(settings.disk_bytes, segment_bytes);
    let count_before = before.map_or(0, |before| before.segment_count);
    if before.is_none() {
        // Nothing of another log may be met again, should its superblock come back.
        remove_index(dir)?;
    }
    if wanted_count < SEGMENTS_MIN {
        return Err(OpenError::TooSmall { dir: dir.clone(), segments: wanted_count, segment_bytes });
    }
    let (mut files, out_of_space) = allocate(dir, 0, count_before.max(wanted_count), segment_bytes)?;
    if let Some(source) = out_of_space {
        // What a clean stop leaves, and a superblock that is replaced, need room besides the segments.
        if files.len() > count_before as usize {
            files.pop();
            remove_segments(dir, files.len()..files.len() + 1)?;
        }
        if files.len() < SEGMENTS_MIN as usize {
            let made = count_before as usize..files.len();
            drop(files); // Only then is their room free.
            remove_segments(dir, made)?;
            let free_bytes = free_bytes(dir).map_err(failed(dir, "look at"))?;
            let needed_bytes = u64::from(SEGMENTS_MIN + 1 - count_before) * segment_bytes;
            return Err(OpenError::NoSpace { dir: dir.clone(), free_bytes, needed_bytes, source });
        }
    }
    let segment_count = u32::try_from(files.len()).expect("at most SEGMENTS_MAX");
    let mut superblock = Superblock {
        log_id: before.map_or(settings.new_log_id, |before| before.log_id),
        segment_bytes,
        segment_count,
        core: settings.core,
        core_count: settings.core_count,
    };

    let mut opening =
        Opening { discarded, segments_missing: wanted_count.saturating_sub(segment_count), ..Opening::default() };
    let saved = saved::load(&dir.join("index"), superblock.log_id, segment_bytes as u32, files.len());
    // From here on the log may change, and then what was saved would lie.
    remove_index(dir)?;
    opening.is_from_index = saved.is_some();
    let mut found = match saved {
        Some(found) => found,
        None => read_all(&superblock, &files, dir, &mut opening)?,
    };
    make_usable(dir, &mut found, &mut files, wanted_count as usize)?;
    superblock.segment_count = u32::try_from(files.len()).expect("at most SEGMENTS_MAX");
    if before != Some(superblock) {
        replace(dir, "superblock", &superblock.encode())?;
    }
    opening.segments = superblock.segment_count;
    opening.entries = found.entry_count();
    opening.debts = found.debts.len() as u64;
    Ok(Opened { dir: dir.clone(), found, lock, opening })
}

/// Fits what was found to the wanted size, and adds the segments that are needed for a while.
fn make_usable(dir: &Path, found: &mut Found, files: &mut Vec<File>, wanted_count: usize) -> Result<(), OpenError> {
    let first = u32::try_from(files.len()).expect("at most SEGMENTS_MAX");
    let missing_count = u32::try_from(fit(found, wanted_count)).expect("at most FREE_SEGMENTS");
    if missing_count > 0 {
        let count = (first + missing_count).min(SEGMENTS_MAX);
        let (more, _) = allocate(dir, first, count, u64::from(found.segment_bytes))?;
        found.segments.extend(more.iter().map(|_| Segment::FREE));
        files.extend(more);
    }
    Ok(())
}

/// Marks what is beyond the wanted size as surplus, but for as many free segments as reclaiming needs to begin with.
/// Answers how many of those are missing.
///
/// Each crash leaves segments behind that are not full, and a log that becomes smaller may have none free at all. Then
/// the log is larger than it should be for a while: what is beyond is emptied first.
pub(super) fn fit(found: &mut Found, wanted_count: usize) -> usize {
    let is_free = |segment: &Segment| segment.state == State::Free;
    let mut free_count = found.segments.iter().take(wanted_count).filter(|segment| is_free(segment)).count();
    for segment in found.segments.iter_mut().skip(wanted_count) {
        segment.is_surplus = !is_free(segment) || free_count >= FREE_SEGMENTS;
        free_count += usize::from(!segment.is_surplus);
    }
    FREE_SEGMENTS.saturating_sub(free_count)
}

/// Each segment is open twice, and the limit that a shell sets is 1,024: it is raised to what this process may have.
pub(super) fn allow_many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: points to one limit.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: points to one limit. Where it is refused, opening the files will say so.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}

pub(super) fn failed<'a>(path: &'a Path, operation: &'static str) -> impl FnOnce(io::Error) -> OpenError + 'a {
    move |source| OpenError::Io { path: path.to_owned(), operation, source }
}

pub(super) fn take_lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("LOCK");
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed(&path, "open"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(&path, "lock")(source)),
    }
}

/// Why the log in `dir` would begin empty, although there is one.
///
/// # Errors
/// Its superblock cannot be read.
pub fn unusable(dir: &Path) -> Result<Option<SuperblockError>, OpenError> {
    Ok(superblock_in(dir)?.and_then(Result::err))
}

/// The superblock in `dir`, if there is one.
pub(super) fn superblock_in(dir: &Path) -> Result<Option<Result<Superblock, SuperblockError>>, OpenError> {
    let path = dir.join("superblock");
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(Superblock::decode(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(&path, "read")(error)),
    }
}

/// The superblock, if there is one that can be used.
fn read_superblock(settings: &LogSettings) -> Result<(Option<Superblock>, Option<SuperblockError>), OpenError> {
    match superblock_in(&settings.dir)? {
        None => Ok((None, None)),
        Some(Err(why)) => Ok((None, Some(why))),
        Some(Ok(Superblock { core, core_count, .. })) if (core, core_count) != (settings.core, settings.core_count) => {
            Err(OpenError::OtherCores { dir: settings.dir.clone(), core, core_count })
        }
        Some(Ok(superblock)) => Ok((Some(superblock), None)),
    }
}

/// Opens the segments' files from `first` on, each of full size; fewer, and why, where the disk is full.
pub(super) fn allocate(
    dir: &Path,
    first: u32,
    count: u32,
    segment_bytes: u64,
) -> Result<(Vec<File>, Option<io::Error>), OpenError> {
    let mut files = Vec::new();
    for number in first as usize..count as usize {
        let path = segment_path(dir, number);
        let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let file = open.map_err(failed(&path, "open"))?;
        let len = file.metadata().map_err(failed(&path, "look at"))?.len();
        if len != segment_bytes {
            match grow(&file, len, segment_bytes) {
                Ok(()) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG)) => {
                    // What was begun of it is of no use.
                    fs::remove_file(&path).map_err(failed(&path, "remove"))?;
                    return Ok((files, Some(error)));
                }
                Err(error) => return Err(failed(&path, "allocate")(error)),
            }
        }
        files.push(file);
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir, "sync"))?;
    Ok((files, None))
}

fn remove_segments(dir: &Path, numbers: Range<usize>) -> Result<(), OpenError> {
    for number in numbers {
        let path = segment_path(dir, number);
        fs::remove_file(&path).map_err(failed(&path, "remove"))?;
    }
    Ok(())
}

/// What the filesystem of `dir` still gives to us.
fn free_bytes(dir: &Path) -> io::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: all zeros is an answer.
    let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a path that ends with zero, and points to one answer.
    match unsafe { libc::statvfs(path.as_ptr(), &raw mut answer) } {
        0 => Ok(answer.f_bavail * answer.f_frsize),
        _ => Err(io::Error::last_os_error()),
    }
}

fn grow(file: &File, len: u64, segment_bytes: u64) -> io::Result<()> {
    if len > segment_bytes {
        file.set_len(segment_bytes)?;
    }
    let bytes = i64::try_from(segment_bytes).expect("at most SEGMENT_BYTES_MAX");
    // SAFETY: no pointers, and the file is open.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes) } {
        0 => file.sync_all(),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

/// Writes a small file so that it is there as a whole, or as it was before.
pub(super) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), OpenError> {
    let (path, temporary) = (dir.join(name), dir.join(format!("{name}.new")));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(failed(&path, "write"))
}

fn remove_index(dir: &Path) -> Result<(), OpenError> {
    let path = dir.join("index");
    match fs::remove_file(&path) {
        Ok(()) => File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir, "sync")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(&path, "remove")(error)),
    }
}

/// Recovers the index from the segments, and seals those that a crash has left open.
fn read_all(superblock: &Superblock, files: &[File], dir: &Path, opening: &mut Opening) -> Result<Found, OpenError> {
    files.iter().for_each(|file| expect_reads(file, superblock.segment_bytes));
    let mut maps = Vec::with_capacity(files.len());
    for (number, file) in files.iter().enumerate() {
        // SAFETY: the lock is ours, and nobody writes to the file before the mapping goes at the end of this function.
        // Of what somebody might do without the lock, only cutting the file short would hurt, by ending the process.
        let map = unsafe { Mmap::map(file) }.map_err(failed(&segment_path(dir, number), "map"))?;
        maps.push(map);
    }
    let bytes: Vec<&[u8]> = maps.iter().map(|map| &map[..]).collect();
    let segment_bytes = u32::try_from(superblock.segment_bytes).expect("at most SEGMENT_BYTES_MAX");
    let Recovered { mut found, unsealed, record_count } = recover(superblock.log_id, segment_bytes, &bytes);
    drop(bytes);
    drop(maps);
    opening.records = record_count;
    for unsealed in unsealed {
        let number = unsealed.header.segment;
        let file = &files[usize::from(number)];
        // What is answered from now on must not be gone after the next crash.
        file.sync_data().map_err(failed(&segment_path(dir, usize::from(number)), "sync"))?;
        if seal(file, &unsealed, &found, segment_bytes).is_err() {
            found.footers_kept.insert(number, Growing::from_iter(&unsealed.entries).into_entries());
        }
    }
    Ok(found)
}

/// Has the kernel read, in large pieces, what recovery will look at, and nothing around it: left alone it reads two
/// megabytes around each header. Only there for speed, so that what fails here fails later or not at all.
fn expect_reads(file: &File, segment_bytes: u64) {
    let mut block = [0; BLOCK_BYTES];
    advise(file, 0, 0, libc::POSIX_FADV_RANDOM);
    let header = file.read_exact_at(&mut block, 0).ok().and_then(|()| SegmentHeader::decode(&block));
    let Some(header) = header.filter(|header| !header.is_void) else { return };
    let trailer = file.read_exact_at(&mut block, segment_bytes - BLOCK_BYTES as u64);
    let is_sealed = trailer.is_ok() && Footer::generation_in(&block) == Some(header.generation);
    let footer_bytes = Footer::bytes_in(&block).filter(|_| is_sealed).map_or(segment_bytes, |bytes| bytes as u64);
    advise(file, segment_bytes.saturating_sub(footer_bytes), footer_bytes, libc::POSIX_FADV_WILLNEED);
}

fn advise(file: &File, offset: u64, len: u64, advice: libc::c_int) {
    let [offset, len] = [offset, len].map(|bytes| i64::try_from(bytes).expect("at most SEGMENT_BYTES_MAX"));
    // SAFETY: no pointers, and the file is open.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, len, advice) };
}

fn seal(file: &File, unsealed: &Unsealed, found: &Found, segment_bytes: u32) -> io::Result<()> {
    let number: SegmentNumber = unsealed.header.segment;
    let expires_max = found.segments[usize::from(number)].expires_max;
    let footer = Growing::from_iter(&unsealed.entries);
    let bytes = footer.finish(&unsealed.header, unsealed.last_sequence, expires_max);
    debug_assert!(bytes.len() + BLOCK_BYTES <= segment_bytes as usize);
    file.write_all_at(&bytes, u64::from(segment_bytes) - bytes.len() as u64)?;
    file.sync_data()
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked(dir) => write!(
                f,
                "cannot open {}: another process holds LOCK; hint: is a second milena-cache running on this directory?",
                dir.display()
            ),
            Self::TooSmall { dir, segments, segment_bytes } => write!(
                f,
                "cannot open {}: {segments} segments of {segment_bytes} bytes, and at least {SEGMENTS_MIN} are needed",
                dir.display()
            ),
            Self::NoSpace { dir, free_bytes, needed_bytes, source } => write!(
                f,
                "cannot open {}: {} free, and the log needs at least {}: {source}; hint: lower DISK, or make room",
                dir.display(),
                Size(*free_bytes),
                Size(*needed_bytes)
            ),
            Self::OtherCores { dir, core, core_count } => {
                write!(f, "cannot open {}: it belongs to core {core} of {core_count}", dir.display())
            }
            Self::Io { path, operation, source } => write!(f, "cannot {operation} {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for OpenError {}
