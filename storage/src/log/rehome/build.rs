//! New logs from old ones: what is alive is appended anew, by the same code that appends at any other time.
//!
//! ```text
//!   old logs ─ mapped ─▶ index, debts ─┬─ 1 debts, all of them ───────────────────────────────┐   by its hash, to the
//!                                      └─ 2 copies of what the store has, the newest as far ──┴─▶ log of the core that
//!                                           as there is room, written from the oldest on          owns it
//!
//!   turns    old log 0   newest segment ─▶ turn 0    next ─▶ 2  ...         of all old logs in step: their sequences
//!            old log 1   newest segment ─▶ turn 1    next ─▶ 3  ...         cannot be compared
//! ```
//! A new log has no more files than it needs, and leaves out those that should be free: opening it makes the rest, when
//! the old ones are gone.

use std::{
    collections::HashMap,
    fs,
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use milena_proto::placement;

use super::{Lack, RehomeError, Rehomed, sync_dir};
use crate::{
    Timestamp,
    log::{
        footer::{ENTRY_BYTES, Footer, FooterEntry},
        index::{Index, Place},
        inspect::maps,
        open::{
            LogSettings, OpenError, SEGMENTS_MIN, allocate, allow_many_files, failed, replace, segment_bytes_for,
            segment_count_for, segment_path, take_lock,
        },
        record::{Body, Record},
        recover::recover,
        scan::scan,
        segment::{BLOCK_BYTES, Segment, SegmentHeader, SegmentNumber, State as SegmentState},
        state::{FREE_SEGMENTS, Failures, Found, RECORD_SHARE_MAX, State},
        superblock::Superblock,
    },
};

/// What gathers for a new log before it is written.
const BATCH_BYTES: usize = 1 << 20;

/// Of a segment, the share that padding of batches takes at most: each class has a block of it in [`BATCH_BYTES`].
const PADDING_SHARE: u64 = 32;

/// An old log, to be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Old {
    pub(super) dir: PathBuf,
    pub(super) superblock: Superblock,
}

/// Fills new logs in `dir` with what is alive in the old ones, using at most `space_bytes` of the filesystem. When it
/// returns, all of it survives the machine.
pub(super) fn build(
    dir: &Path,
    old: &[Old],
    logs: &[LogSettings],
    space_bytes: u64,
    now: Timestamp,
) -> Result<Rehomed, RehomeError> {
    allow_many_files();
    let sources = old.iter().map(Source::open).collect::<Result<Vec<_>, _>>().map_err(RehomeError::Open)?;
    let record_bytes_max = sources.iter().map(Source::record_bytes_max).max().unwrap_or(0);
    let targets = logs.iter().map(|settings| Target::make(dir, settings, record_bytes_max));
    let rehomed = Rehomed {
        old_count: old[0].superblock.core_count,
        new_count: u16::try_from(logs.len()).expect("at most CORES_MAX"),
        ..Rehomed::default()
    };
    let targets = targets.collect::<Result<_, _>>().map_err(RehomeError::Open)?;
    let mut building = Building { targets, space_bytes, record_bytes_max, now, rehomed };
    building.take_debts(&sources)?;
    building.take_copies(&sources).map_err(RehomeError::Open)?;
    building.targets.iter_mut().try_for_each(Target::finish).map_err(RehomeError::Open)?;
    sync_dir(dir).map_err(RehomeError::Open)?;
    Ok(building.rehomed)
}

struct Building {
    targets: Vec<Target>,
    /// What the new logs may still take of the filesystem.
    space_bytes: u64,
    /// The largest record that is alive.
    record_bytes_max: u64,
    now: Timestamp,
    rehomed: Rehomed,
}

impl Building {
    /// Takes over what the store does not have, in its order, and all of it.
    fn take_debts(&mut self, sources: &[Source]) -> Result<(), RehomeError> {
        let Rehomed { old_count, new_count, .. } = self.rehomed;
        for source in sources {
            for debt in &source.found.debts {
                let record = source.record(debt.place);
                let is_it = |record: &Record<'_>| {
                    let kind = record.kind();
                    (record.key_hash, record.sequence) == (debt.key_hash, debt.sequence) && kind.is_dirty()
                };
                let Some(record) = record.filter(is_it) else {
                    return Err(RehomeError::Damaged { dir: source.dir.clone(), old_count, new_count });
                };
                if !self.append(&record).map_err(RehomeError::Open)? {
                    let debts = || sources.iter().flat_map(|source| &source.found.debts);
                    return Err(RehomeError::NoRoom {
                        old_count,
                        new_count,
                        debts: debts().count() as u64,
                        bytes: debts().map(|debt| u64::from(debt.record_bytes)).sum(),
                        lack: self.target_of(record.key_hash).lack(&record),
                    });
                }
                self.rehomed.debts += 1;
            }
        }
        Ok(())
    }

    /// Takes over what the store has. The oldest is written first, although it is what stays behind where there is too
    /// little room: so it is also what makes room later.
    fn take_copies(&mut self, sources: &[Source]) -> Result<(), OpenError> {
        let turns = turns(sources);
        let ends = self.ends(sources, &turns);
        for (turn, &(source, number)) in turns.iter().enumerate().rev() {
            for entry in sources[source].copies(number) {
                if turn >= ends[placement::core(entry.key_hash, self.targets.len())] {
                    self.rehomed.dropped += 1;
                    continue;
                }
                let record = sources[source].record(place_of(number, &entry)).and_then(copied);
                match record.filter(|(record, _)| record.key_hash == entry.key_hash) {
                    None => self.rehomed.damaged += 1,
                    Some((_, expires)) if expires.is_some_and(|expires| expires <= self.now) => {}
                    Some((record, _)) => self.rehomed.dropped += u64::from(!self.append(&record)?),
                }
            }
        }
        Ok(())
    }

    /// For each new log, the first turn for which it has no room any more.
    fn ends(&mut self, sources: &[Source], turns: &[(usize, SegmentNumber)]) -> Vec<usize> {
        let core_count = self.targets.len();
        let share_in = |&(source, number): &(usize, SegmentNumber)| {
            let mut bytes = vec![0; core_count];
            for entry in sources[source].copies(number) {
                bytes[placement::core(entry.key_hash, core_count)] +=
                    u64::from(entry.record_bytes) + ENTRY_BYTES as u64;
            }
            bytes
        };
        let shares: Vec<Vec<u64>> = turns.iter().map(share_in).collect();
        let (space_bytes, record_bytes_max) = (self.space_bytes / core_count as u64, self.record_bytes_max);
        let end = |(core, target): (usize, &mut Target)| {
            let mut left_bytes = target.limit(space_bytes, record_bytes_max);
            let has_no_room = |share: &Vec<u64>| {
                let left = left_bytes.checked_sub(share[core]);
                left_bytes = left.unwrap_or(0);
                left.is_none()
            };
            shares.iter().position(has_no_room).unwrap_or(shares.len())
        };
        self.targets.iter_mut().enumerate().map(end).collect()
    }

    fn target_of(&mut self, key_hash: u64) -> &mut Target {
        let core = placement::core(key_hash, self.targets.len());
        &mut self.targets[core]
    }

    /// Appends a record where it belongs now. `false` if there is no room.
    fn append(&mut self, record: &Record<'_>) -> Result<bool, OpenError> {
        let core = placement::core(record.key_hash, self.targets.len());
        let is_taken = self.targets[core].append(record, self.now, &mut self.space_bytes)?;
        if is_taken {
            self.rehomed.records += 1;
            self.rehomed.bytes += record.bytes() as u64;
        }
        Ok(is_taken)
    }
}

/// All segments of all logs: the newest of each, then the second of each, and so on.
fn turns(sources: &[Source]) -> Vec<(usize, SegmentNumber)> {
    let mut turns = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let by_age = source.newest_first();
        turns.extend(by_age.into_iter().enumerate().map(|(age, number)| (age, index, number)));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, index, number)| (index, number)).collect()
}

/// A record of what the store has, as the first of its key, and when its life ends.
fn copied(mut record: Record<'_>) -> Option<(Record<'_>, Option<Timestamp>)> {
    let Body::Put { expires, has_older, is_dirty, .. } = &mut record.body else { return None };
    // The mark that says so stays behind.
    (*has_older, *is_dirty) = (false, false);
    let expires = *expires;
    Some((record, expires))
}

fn place_of(number: SegmentNumber, entry: &FooterEntry) -> Place {
    Place::new(number, entry.offset, entry.record_bytes as usize)
}

/// An old log, mapped, and what is alive in it.
struct Source {
    dir: PathBuf,
    maps: Vec<Mmap>,
    found: Found,
    _lock: File,
}

impl Source {
    fn open(old: &Old) -> Result<Self, OpenError> {
        let Old { dir, superblock: Superblock { log_id, segment_bytes, segment_count, .. } } = old;
        let lock = take_lock(dir)?;
        let maps = maps(dir, *segment_count)?;
        let bytes: Vec<&[u8]> = maps.iter().map(|map| &map[..]).collect();
        let segment_bytes = u32::try_from(*segment_bytes).expect("at most SEGMENT_BYTES_MAX");
        let found = recover(*log_id, segment_bytes, &bytes).found;
        Ok(Self { dir: dir.clone(), maps, found, _lock: lock })
    }

    fn newest_first(&self) -> Vec<SegmentNumber> {
        let in_use = (0..).zip(&self.found.segments).filter(|(_, segment)| segment.state == SegmentState::Sealed);
        let mut numbers: Vec<(u64, SegmentNumber)> =
            in_use.map(|(number, segment)| (segment.first_sequence, number)).collect();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        numbers.into_iter().map(|(_, number)| number).collect()
    }

    fn record_bytes_max(&self) -> u64 {
        let copies = self.newest_first().into_iter().flat_map(|number| self.copies(number));
        let debts = self.found.debts.iter().map(|debt| debt.record_bytes);
        debts.chain(copies.map(|entry| entry.record_bytes)).max().unwrap_or(0).into()
    }

    /// The records of a segment that the index points to.
    fn copies(&self, number: SegmentNumber) -> Vec<FooterEntry> {
        let bytes = &self.maps[usize::from(number)][..];
        let header = SegmentHeader::decode(bytes).expect("recovery has seen it");
        let mut entries: Vec<FooterEntry> = match Footer::decode(bytes, &header) {
            Some(footer) => footer.iter().collect(),
            None => scan(bytes, &header, self.found.segment_bytes).entries,
        };
        let is_alive = |entry: &FooterEntry| self.found.index.contains(entry.key_hash, place_of(number, entry));
        entries.retain(|entry| entry.kind.is_put() && is_alive(entry));
        entries
    }

    /// The record at `place`, if it is as it was written.
    fn record(&self, place: Place) -> Option<Record<'_>> {
        let bytes = self.maps[usize::from(place.segment)].get(place.offset as usize..)?;
        let (record, _) = Record::decode(bytes).ok()?;
        (record.sequence >= self.found.segments[usize::from(place.segment)].first_sequence).then_some(record)
    }
}

/// A new log, being filled.
struct Target {
    dir: PathBuf,
    superblock: Superblock,
    /// Its segments so far.
    files: Vec<File>,
    /// How many they may become.
    segments_max: usize,
    state: State,
    gathered_bytes: usize,
}

impl Target {
    /// With segments that take records of `record_bytes_max`, unless there would be too few of them.
    fn make(parent: &Path, settings: &LogSettings, record_bytes_max: u64) -> Result<Self, OpenError> {
        let needed_bytes = (record_bytes_max * u64::from(RECORD_SHARE_MAX)).next_power_of_two();
        let largest_bytes = 1 << (settings.disk_bytes / u64::from(SEGMENTS_MIN)).max(1).ilog2();
        let segment_bytes = segment_bytes_for(settings.disk_bytes).max(needed_bytes.min(largest_bytes));
        let segments = segment_count_for(settings.disk_bytes, segment_bytes);
        if segments < SEGMENTS_MIN {
            return Err(OpenError::TooSmall { dir: settings.dir.clone(), segments, segment_bytes });
        }
        let dir = super::log_dir(parent, usize::from(settings.core));
        fs::create_dir_all(&dir).map_err(failed(&dir, "make"))?;
        let segments_max = segments as usize - FREE_SEGMENTS;
        let found = Found {
            log_id: settings.new_log_id,
            segment_bytes: u32::try_from(segment_bytes).expect("at most SEGMENT_BYTES_MAX"),
            // Each is of use from when its file is there.
            segments: vec![Segment { is_surplus: true, ..Segment::FREE }; segments_max],
            index: Index::new(0),
            debts: Vec::new(),
            next_sequence: 1,
            next_generation: 1,
            footers_kept: HashMap::new(),
        };
        let superblock = Superblock {
            log_id: settings.new_log_id,
            segment_bytes,
            segment_count: 1,
            core: settings.core,
            core_count: settings.core_count,
        };
        let state = State::new(found);
        Ok(Self { dir, superblock, files: Vec::new(), segments_max, state, gathered_bytes: 0 })
    }

    /// Uses no more than `space_bytes` from now on, and answers how many bytes of records and their footers there is
    /// room for at least, if the largest has `record_bytes_max`.
    fn limit(&mut self, space_bytes: u64, record_bytes_max: u64) -> u64 {
        let segment_bytes = self.superblock.segment_bytes;
        let more = usize::try_from(space_bytes / segment_bytes).unwrap_or(usize::MAX);
        self.segments_max = self.segments_max.min(self.files.len().saturating_add(more));
        // The header, and what is left of the last blocks of records and of the footer.
        let blocks_bytes = 3 * BLOCK_BYTES as u64;
        let lost_bytes = blocks_bytes + record_bytes_max + segment_bytes / PADDING_SHARE;
        let segments_left = self.segments_max - self.files.len() + self.state.free_count();
        segments_left as u64 * segment_bytes.saturating_sub(lost_bytes)
    }

    /// Appends a record. `false` if there is no room.
    fn append(&mut self, record: &Record<'_>, now: Timestamp, space_bytes: &mut u64) -> Result<bool, OpenError> {
        if self.state.free_count() == 0 {
            self.add_segment(space_bytes)?;
        }
        if self.state.take_over(record, now).is_err() {
            return Ok(false);
        }
        self.gathered_bytes += record.bytes();
        if self.gathered_bytes >= BATCH_BYTES {
            self.write(false)?;
        }
        Ok(true)
    }

    fn add_segment(&mut self, space_bytes: &mut u64) -> Result<(), OpenError> {
        let (number, segment_bytes) = (self.files.len(), self.superblock.segment_bytes);
        if number >= self.segments_max || *space_bytes < segment_bytes {
            return Ok(());
        }
        let first = u32::try_from(number).expect("at most SEGMENTS_MAX");
        let (files, no_space) = allocate(&self.dir, first, first + 1, segment_bytes)?;
        *space_bytes = if no_space.is_some() { 0 } else { *space_bytes - segment_bytes };
        files.iter().for_each(|_| self.state.admit_segment(number));
        self.files.extend(files);
        Ok(())
    }

    /// Writes what has gathered, and footers of segments that are full.
    fn write(&mut self, must_sync: bool) -> Result<(), OpenError> {
        let cycle = self.state.begin_cycle(must_sync);
        let dir = &self.dir;
        for batch in &cycle.batches {
            let number = usize::from(batch.segment);
            let written = self.files[number].write_all_at(&batch.bytes, u64::from(batch.offset));
            written.map_err(|source| failed(&segment_path(dir, number), "write")(source))?;
        }
        for number in cycle.durable_segments() {
            let number = usize::from(number);
            let synced = self.files[number].sync_data();
            synced.map_err(|source| failed(&segment_path(dir, number), "sync")(source))?;
        }
        self.state.end_cycle(&cycle, &Failures::default());
        self.gathered_bytes = 0;
        Ok(())
    }

    /// Seals the log, which begins to exist with its superblock.
    fn finish(&mut self) -> Result<(), OpenError> {
        self.state.close_all();
        while self.state.has_work(true) {
            self.write(true)?;
        }
        // A log without a segment is none, and where there was no space for the first, opening the log makes it.
        self.superblock.segment_count = u32::try_from(self.files.len().max(1)).expect("at most SEGMENTS_MAX");
        replace(&self.dir, "superblock", &self.superblock.encode())
    }

    /// Why it has no room for a record.
    fn lack(&self, record: &Record<'_>) -> Lack {
        let is_small = record.bytes() > self.state.record_bytes_max() || self.files.len() >= self.segments_max;
        if is_small { Lack::Disk } else { Lack::Space }
    }
}
