//! Looking at a stopped node's log: every segment, every record, what is alive and what is damaged; or only what it owes the
//! store. Changes nothing.
//!
//! ```text
//!   lock ─▶ superblock ─▶ each segment: header, footer ─▶ index and debts, as a start would build them
//!                                                    └─▶ each record of it: decoded, checksum and all
//! ```

use std::{
    fs,
    fs::File,
    path::{Path, PathBuf},
};

use memmap2::Mmap;

use super::{
    footer::Footer,
    index::Place,
    open::{OpenError, failed, segment_path, superblock_in, take_lock},
    record::{Kind, Record, Sequence},
    recover::recover,
    rehome::{RehomeError, logs_in_use},
    saved,
    scan::scan,
    segment::{SegmentHeader, SegmentNumber},
    state::Found,
    superblock::{Superblock, SuperblockError},
};

/// What is in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Whose log it is.
    pub core: u16,
    /// Of how many.
    pub core_count: u16,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Keys that a start would find.
    pub entries: u64,
    /// Its segments, in the order of their numbers.
    pub segments: Vec<SegmentInspection>,
}

/// What is in a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentInspection {
    /// Its number.
    pub number: u16,
    /// Whether it holds records; the other figures are 0 where it does not.
    pub is_used: bool,
    /// Whether it has a footer.
    pub is_sealed: bool,
    /// All records, whatever their kind.
    pub records: u32,
    /// Tombstones among them.
    pub tombstones: u32,
    /// Bytes of records that are the newest of their key, and tell its value or wait for the store.
    pub live_bytes: u64,
    /// Changes that the store does not have: puts and deletes.
    pub dirty_records: u32,
    /// Their bytes, a part of the living.
    pub dirty_bytes: u64,
    /// Bytes of all others.
    pub dead_bytes: u64,
    /// Records that are not as they were written.
    pub damaged: u32,
}

/// Why a log cannot be looked at.
#[derive(Debug)]
pub enum InspectError {
    /// Its files cannot be opened, or a process uses it.
    Open(OpenError),
    /// It has no superblock that this version can read.
    Superblock(SuperblockError),
}

/// Looks at the log in `dir`, and at every record in it. Blocks for as long as it takes to read all of it.
///
/// # Errors
/// [`InspectError`]; damage within segments is none, it is what one looks for.
pub fn inspect(dir: &Path) -> Result<Inspection, InspectError> {
    // First, so that a directory that is no log does not get a lock file.
    let path = dir.join("superblock");
    let bytes = fs::read(&path).map_err(failed(&path, "read")).map_err(InspectError::Open)?;
    let superblock = Superblock::decode(&bytes).map_err(InspectError::Superblock)?;
    let _lock = take_lock(dir).map_err(InspectError::Open)?;
    let maps = maps(dir, superblock.segment_count).map_err(InspectError::Open)?;
    let bytes: Vec<&[u8]> = maps.iter().map(|map| &map[..]).collect();

    let segment_bytes = u32::try_from(superblock.segment_bytes).expect("at most SEGMENT_BYTES_MAX");
    let found = recover(superblock.log_id, segment_bytes, &bytes).found;
    let look = |(number, bytes): (SegmentNumber, &&[u8])| {
        inspect_segment(number, bytes, superblock.log_id, segment_bytes, &found)
    };
    Ok(Inspection {
        core: superblock.core,
        core_count: superblock.core_count,
        segment_bytes: superblock.segment_bytes,
        entries: found.entry_count(),
        segments: (0..).zip(&bytes).map(look).collect(),
    })
}

/// What the logs of a node owe its store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owed {
    /// Changes that the store does not have.
    pub debts: u64,
    /// Logs of which nobody can tell, and why.
    pub unknown: Vec<(PathBuf, SuperblockError)>,
}

/// Looks at all logs in `node_dir`, for a start that uses none of them. Blocks for as long as it takes to read the footers of
/// their segments; after a clean stop only their indexes.
///
/// # Errors
/// A file cannot be opened, or a process uses a log.
pub fn owed(node_dir: &Path) -> Result<Owed, RehomeError> {
    let mut owed = Owed::default();
    for dir in logs_in_use(node_dir)? {
        match superblock_in(&dir).map_err(RehomeError::Open)? {
            Some(Ok(superblock)) => owed.debts += debts_of(&dir, &superblock).map_err(RehomeError::Open)?,
            Some(Err(why)) => owed.unknown.push((dir, why)),
            None => {} // A start was cut off before there was a log.
        }
    }
    Ok(owed)
}

fn debts_of(dir: &Path, superblock: &Superblock) -> Result<u64, OpenError> {
    let _lock = take_lock(dir)?;
    let segment_bytes = u32::try_from(superblock.segment_bytes).expect("at most SEGMENT_BYTES_MAX");
    // A stop saves an index only where there is no debt.
    let index = dir.join("index");
    if saved::load(&index, superblock.log_id, segment_bytes, superblock.segment_count as usize).is_some() {
        return Ok(0);
    }
    let maps = maps(dir, superblock.segment_count)?;
    let bytes: Vec<&[u8]> = maps.iter().map(|map| &map[..]).collect();
    Ok(recover(superblock.log_id, segment_bytes, &bytes).found.debts.len() as u64)
}

/// The files of the first segments, mapped. The caller holds the lock.
pub(super) fn maps(dir: &Path, segment_count: u32) -> Result<Vec<Mmap>, OpenError> {
    let map = |number: u32| {
        let path = segment_path(dir, number as usize);
        let file = File::open(&path).map_err(failed(&path, "open"))?;
        // SAFETY: the lock is the caller's, so nobody writes to the file while it is mapped.
        unsafe { Mmap::map(&file) }.map_err(failed(&path, "map"))
    };
    (0..segment_count).map(map).collect()
}

fn inspect_segment(
    number: SegmentNumber,
    bytes: &[u8],
    log_id: u64,
    segment_bytes: u32,
    found: &Found,
) -> SegmentInspection {
    let mut answer = SegmentInspection { number, ..SegmentInspection::default() };
    let header = SegmentHeader::decode(bytes).filter(|header| header.log_id == log_id && header.segment == number);
    let Some(header) = header.filter(|header| !header.is_void) else { return answer };
    answer.is_used = true;
    let footer = Footer::decode(bytes, &header);
    answer.is_sealed = footer.is_some();
    let entries = footer.map_or_else(|| scan(bytes, &header, segment_bytes).entries, |footer| footer.iter().collect());
    for entry in entries {
        let place = Place::new(number, entry.offset, entry.record_bytes as usize);
        let is_dirty = entry.kind.is_dirty() && is_debt(found, entry.sequence);
        let is_alive = is_dirty || entry.kind.is_put() && found.index.contains(entry.key_hash, place);
        answer.dirty_records += u32::from(is_dirty);
        answer.dirty_bytes += if is_dirty { u64::from(entry.record_bytes) } else { 0 };
        let bytes_of = if is_alive { &mut answer.live_bytes } else { &mut answer.dead_bytes };
        *bytes_of += u64::from(entry.record_bytes);
        answer.records += 1;
        answer.tombstones += u32::from(entry.kind == Kind::Tombstone);
        let record = bytes.get(entry.offset as usize..).map(Record::decode);
        let is_whole = matches!(record, Some(Ok((record, _))) if record.key_hash == entry.key_hash);
        answer.damaged += u32::from(!is_whole);
    }
    answer
}

/// Whether the record with this sequence is a change that the store does not have. O(log debts).
fn is_debt(found: &Found, sequence: Sequence) -> bool {
    found.debts.binary_search_by_key(&sequence, |debt| debt.sequence).is_ok()
}

impl std::fmt::Display for InspectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open(error) => error.fmt(f),
            Self::Superblock(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for InspectError {}
