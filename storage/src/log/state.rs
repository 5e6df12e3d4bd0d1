//! All that a core knows about its log, and every decision about it. No I/O: bytes, events and time come in, batches to
//! be written and places to be read go out.
//!
//! ```text
//!   locate ─▶ [read the candidates] ─▶ put, delete ─▶ pending ──begin_cycle──▶ [write, sync] ──end_cycle──▶ durable
//!
//!   a cycle  cut all pending ─▶ write all batches, durably if they must survive; sync what was written before ─▶ wake
//!            footers come a cycle after their records are durable; voids when all that was copied is
//!            another may begin meanwhile, if the writes of both make all of it durable; they end in their order
//! ```
//! **The invariant that keeps the dead dead.** For every key, of all its records on disk the one with the highest
//! sequence is either the one that the index points to, or a tombstone. So a restart, which sees only the disk, finds
//! what was there before. Whoever takes a key out of the index appends a tombstone, unless the record was the only one
//! of its key (`has_older`) and goes with its segment; a segment goes by a header that says `void`, on disk.
//!
//! Between the eviction of a record and its segment's void the invariant does not hold for its key. Voids therefore
//! follow each other in order, and a delete that finds nothing appends a tombstone all the same. Where a segment cannot
//! be emptied, or a record not be read, it *leaks*: as long as one does, everything is taken to have older records.
//!
//! Changes that the store does not have are in debts.rs instead of the index, and what is special about them is in
//! state/dirty.rs. While one waits, nothing is written that would bury it: a tombstone speaks of a hash, and so another
//! key with the same one leaks.

mod dirty;

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use milena_proto::{key::KeyRef, placement::KeyHash};

use super::{
    append::{self, Batch, Closed, Content, Tail},
    debts::{DIRTY_PERCENT_MAX, Debts, DirtyRecord},
    footer::Entries,
    index::{Index, Place},
    record::{Body, Record, Sequence, VERSION_BYTES_MAX},
    segment::{
        BLOCK_BYTES, CLASS_COUNT, SEGMENT_BYTES_MIN, Segment, SegmentHeader, SegmentNumber, State as SegmentState,
        class_of,
    },
};
use crate::{Entry, Timestamp};

/// The largest record, as a share of a segment: a larger one would leave too much of segments unused.
pub(super) const RECORD_SHARE_MAX: u32 = 8;

/// Bytes that may wait for the disk; beyond them, fills are dropped and writes wait.
pub(super) const BUFFER_BYTES_MAX: usize = 16 << 20;

/// Free segments that only tombstones may take, and the last of them only reclaiming: what is reclaimed must have
/// somewhere to go.
pub(super) const RESERVE_SEGMENTS: usize = 2;

/// Segments that should be free at any time; below that, reclaiming begins.
pub(super) const FREE_SEGMENTS: usize = RESERVE_SEGMENTS + 2;

/// Cycles in a row that may fail before the disk is given up.
const FAILURES_MAX: u32 = 8;

const _: () = {
    let record_bytes_max = SEGMENT_BYTES_MIN / RECORD_SHARE_MAX as u64;
    assert!(BLOCK_BYTES as u64 + record_bytes_max + BLOCK_BYTES as u64 <= SEGMENT_BYTES_MIN, "it fits any segment");
};

/// What a log was opened with, or has found on disk.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) log_id: u64,
    pub(super) segment_bytes: u32,
    pub(super) segments: Vec<Segment>,
    pub(super) index: Index,
    /// Changes that the store does not have, in the order of their sequences.
    pub(super) debts: Vec<DirtyRecord>,
    pub(super) next_sequence: Sequence,
    /// Above that of every header and footer on disk.
    pub(super) next_generation: u64,
    /// What would be in footers that could not be written.
    pub(super) footers_kept: HashMap<SegmentNumber, Entries>,
}

impl Found {
    /// Keys that have an entry.
    pub(super) fn entry_count(&self) -> u64 {
        let debt_count = self.debts.iter().filter(|debt| !debt.is_delete).count();
        (self.index.len() + debt_count) as u64
    }
}

/// All that a core knows about its log.
#[derive(Debug)]
pub(super) struct State {
    log_id: u64,
    segment_bytes: u32,
    pub(super) segments: Box<[Segment]>,
    pub(super) index: Index,
    pub(super) debts: Debts,
    dirty_bytes_max: u64,
    /// Records of changes that could not be written anywhere.
    stranded: HashMap<Place, Bytes>,
    tail: Tail,
    next_sequence: Sequence,
    /// Up to here all records survive.
    durable: Sequence,
    /// Up to here all records were given to the writer.
    given: Sequence,
    /// Segments with writes that no sync has covered.
    unsynced: BTreeSet<SegmentNumber>,
    /// Footers and voids, each with the sequence that must be durable before it may be written.
    later: Vec<(Sequence, Batch)>,
    /// Footers that could not be written, of segments that have records.
    pub(super) footers_kept: HashMap<SegmentNumber, Entries>,
    /// Records before this one count as copies that nobody believes.
    doubted_below: Sequence,
    failures_in_a_row: u32,
    is_offline: bool,
    /// Segments with records that neither the index nor a tombstone knows; one more if nobody knows which.
    leaks: u32,
    /// Segments with records that may never have been synced, though written: until these are copied, nothing more
    /// counts as durable.
    blocking: BTreeSet<SegmentNumber>,
    next_generation: u64,
    /// Segments by what is asked for with every change: those that may be opened, are being emptied, are surplus and full.
    free_count: usize,
    reclaiming_count: usize,
    surplus_count: usize,
    pub(super) counts: Counts,
}

/// What a log has counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes of records appended by puts, fills and deletes.
    pub appended_bytes: u64,
    /// Bytes of records copied by reclaiming, and tombstones it had to write.
    pub carried_bytes: u64,
    /// Bytes written to the disk, everything included.
    pub written_bytes: u64,
    /// Batches written.
    pub writes: u64,
    /// Syncs that succeeded.
    pub syncs: u64,
    /// Writes and syncs that failed.
    pub write_errors: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Records that were not as they were written.
    pub corrupt: u64,
    /// Reads answered from what waits for the disk.
    pub reads_buffered: u64,
    /// Reads answered from pages in memory.
    pub reads_resident: u64,
    /// Reads that went to the disk.
    pub reads_ring: u64,
    /// Reads that shared another's.
    pub reads_shared: u64,
    /// Fills dropped because too much waits for the disk.
    pub fills_dropped: u64,
    /// Living records that made room for others.
    pub evictions: u64,
    /// Records found to have expired.
    pub expirations: u64,
    /// Segments reclaimed.
    pub reclaimed: u64,
}

/// Where the records of a key may be, as a search has found them, with the disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Located {
    /// All candidates there were.
    pub(super) candidates: Vec<Place>,
    /// The one that is the key's newest.
    pub(super) current: Option<Place>,
    /// Older ones of the key, which a fault left in the index.
    pub(super) outdated: Vec<Place>,
    /// Some that cannot be read and so may be the key's.
    pub(super) unreadable: Vec<Place>,
    /// The id of the key's own change that the store does not have.
    pub(super) owed: Option<Sequence>,
}

/// Why nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// What was located has changed meanwhile: locate again.
    Moved,
    /// Too much waits for the disk, or no segment is free: wait for [`State::end_cycle`] or for reclaiming.
    Full,
    /// The entry is larger than the log keeps; what was under the key is forgotten, unless the change was a dirty one.
    TooLarge,
    /// A change with this hash waits for the store; what else was under the key is forgotten.
    Owed,
    /// Too much waits for the store.
    DirtyFull,
    /// The disk was given up.
    Offline,
}

/// Who appends, and so what may be used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// A put or a fill.
    Write,
    /// A tombstone: it is small, and what it says must not get lost.
    Bury,
    /// A copy, or a tombstone, that lets a segment go.
    Reclaim,
}

/// What is to be written, and whether it must survive the machine.
#[derive(Debug)]
pub(super) struct Cycle {
    pub(super) batches: Vec<Batch>,
    /// Segments to be synced too, because of what earlier cycles wrote to them; none unless `is_synced`.
    pub(super) syncs: BTreeSet<SegmentNumber>,
    is_synced: bool,
    upto: Sequence,
}

impl Cycle {
    /// Whether the write of a batch is to make it durable, because no sync follows that would. A footer's always is: nothing
    /// else of its segment waits for a sync, which acknowledged writes would wait for then.
    pub(super) fn is_durable(&self, batch: &Batch) -> bool {
        is_footer(batch) || self.is_synced && !self.syncs.contains(&batch.segment)
    }

    /// Segments that are durable to their end when it is done.
    pub(super) fn durable_segments(&self) -> BTreeSet<SegmentNumber> {
        let written = self.batches.iter().filter(|batch| self.is_durable(batch)).map(|batch| batch.segment);
        self.syncs.iter().copied().chain(written).collect()
    }
}

fn is_footer(batch: &Batch) -> bool {
    batch.content == Content::Footer
}

/// What of a cycle failed.
#[derive(Debug, Default)]
pub(super) struct Failures {
    pub(super) writes: BTreeSet<SegmentNumber>,
    pub(super) syncs: BTreeSet<SegmentNumber>,
}

impl Located {
    /// Whether a record of the key is, or may be, in the log.
    fn is_anything(&self) -> bool {
        self.current.is_some() || !self.outdated.is_empty() || !self.unreadable.is_empty()
    }
}

impl State {
    pub(super) fn new(found: Found) -> Self {
        let Found { log_id, segment_bytes, mut segments, index, debts, next_sequence, next_generation, footers_kept } =
            found;
        assert!(next_sequence >= 1);
        for record in &debts {
            segments[usize::from(record.place.segment)].dirty_bytes += u64::from(record.record_bytes);
        }
        let kept_count = segments.iter().filter(|segment| !segment.is_surplus).count() as u64;
        let is_usable = |segment: &&Segment| segment.state == SegmentState::Free && !segment.is_surplus;
        let is_surplus = |segment: &&Segment| segment.state == SegmentState::Sealed && segment.is_surplus;
        let leaks = segments.iter().filter(|segment| segment.has_leaked).count();
        Self {
            free_count: segments.iter().filter(is_usable).count(),
            reclaiming_count: 0,
            surplus_count: segments.iter().filter(is_surplus).count(),
            log_id,
            segment_bytes,
            segments: segments.into(),
            index,
            debts: Debts::found(&debts),
            dirty_bytes_max: kept_count * u64::from(segment_bytes) * DIRTY_PERCENT_MAX / 100,
            stranded: HashMap::new(),
            tail: Tail::new(segment_bytes),
            next_sequence,
            durable: next_sequence - 1,
            given: next_sequence - 1,
            unsynced: BTreeSet::new(),
            later: Vec::new(),
            footers_kept,
            doubted_below: 0,
            failures_in_a_row: 0,
            is_offline: false,
            leaks: u32::try_from(leaks).expect("at most SEGMENTS_MAX"),
            blocking: BTreeSet::new(),
            next_generation,
            counts: Counts::default(),
        }
    }

    // ---- Looking up.

    /// Where the records of a key with this hash may be. None when the disk was given up.
    pub(super) fn candidates(&self, hash: KeyHash) -> Vec<Place> {
        let mut found = Vec::new();
        if !self.is_offline {
            self.index.candidates(hash, &mut found);
        }
        found
    }

    /// The record at `place`, if it waits for the disk.
    pub(super) fn buffered(&self, place: Place) -> Option<Bytes> {
        self.tail.find(place).or_else(|| self.stranded.get(&place).cloned())
    }

    /// Whether `place` is that of the newest record of a key with this hash.
    pub(super) fn is_current(&self, hash: KeyHash, place: Place) -> bool {
        self.index.contains(hash, place) || self.debts.is_at(hash, place)
    }

    /// Whether a record may be what its segment holds at present: not one that an earlier generation has left.
    pub(super) fn is_of_generation(&self, place: Place, sequence: Sequence) -> bool {
        sequence >= self.segments[usize::from(place.segment)].first_sequence
    }

    /// Until when the copy in a record is believed; the epoch where it is doubted.
    pub(super) fn believed_until(&self, sequence: Sequence, believed_until_s: Option<u32>) -> Option<Timestamp> {
        if sequence < self.doubted_below {
            return Some(Timestamp(0));
        }
        believed_until_s.map(|seconds| Timestamp(u64::from(seconds) * 1000))
    }

    /// Believes no copy any more that is in the log now.
    pub(super) fn doubt_all(&mut self) {
        self.doubted_below = self.next_sequence;
    }

    // ---- Changing.

    /// Appends an entry under the key that was located, and points the index to it.
    pub(super) fn put(
        &mut self,
        located: &Located,
        key: KeyRef<'_>,
        entry: &Entry,
        believed_until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Sequence, Refused> {
        self.check(located, key.hash())?;
        let has_older = located.is_anything() || self.leaks > 0;
        let record = Record::put(self.next_sequence, key, entry, believed_until, has_older);
        let is_too_large = entry.version.as_str().len() > VERSION_BYTES_MAX || record.bytes() > self.record_bytes_max();
        if is_too_large || entry.is_expired(now) {
            self.delete(located, key.hash())?;
            return Err(Refused::TooLarge);
        }
        self.yield_to_debt(located, key.hash())?;
        let class = class_of(entry.expires, now);
        let place = self.append(class, Purpose::Write, &record)?;
        self.replace(located, key.hash(), Some(place));
        self.counts.appended_bytes += record.bytes() as u64;
        Ok(record.sequence)
    }

    /// Forgets the key that was located: a tombstone is appended if there is anything to forget. Answers the sequence
    /// from which on it is gone.
    pub(super) fn delete(&mut self, located: &Located, hash: KeyHash) -> Result<Sequence, Refused> {
        self.check(located, hash)?;
        self.yield_to_debt(located, hash)?;
        let may_be_on_disk = self.leaks > 0 || self.is_reclaiming();
        if !located.is_anything() && !may_be_on_disk {
            return Ok(self.next_sequence - 1);
        }
        let sequence = self.bury(hash, Purpose::Bury)?;
        self.replace(located, hash, None);
        self.counts.appended_bytes += self.tombstone_bytes();
        Ok(sequence)
    }

    /// Points the index to `new` instead of all that was located.
    fn replace(&mut self, located: &Located, hash: KeyHash, new: Option<Place>) {
        self.point(hash, located.current, new);
        for &place in located.outdated.iter().chain(&located.unreadable) {
            self.point(hash, Some(place), None);
        }
        located.unreadable.iter().for_each(|place| self.leak(place.segment));
    }

    /// Where a change with this hash waits for the store, nothing may be newer than it on disk: the copies of the key that
    /// was located are forgotten without a tombstone, if it is another, and that is all.
    fn yield_to_debt(&mut self, located: &Located, hash: KeyHash) -> Result<(), Refused> {
        if !self.debts.contains(hash) {
            return Ok(());
        }
        self.replace(located, hash, None);
        located.current.iter().chain(&located.outdated).for_each(|place| self.leak(place.segment));
        Err(Refused::Owed)
    }

    /// Forgets whatever may be the key with this hash, at once and without a look at the disk: others with the same tag
    /// go with it. A change that the store does not have stays.
    pub(super) fn forget(&mut self, hash: KeyHash) {
        let candidates = self.candidates(hash);
        if candidates.is_empty() && self.leaks == 0 && !self.is_reclaiming() {
            return;
        }
        // Without a tombstone what is on disk may come back with a restart, which leaks know about.
        if !self.debts.contains(hash) {
            let _ = self.bury(hash, Purpose::Bury);
        }
        for place in candidates {
            self.point(hash, Some(place), None);
            self.leak(place.segment);
        }
    }

    /// Forgets a key whose life has ended, if nothing has happened to it since it was located. Where there is no room for
    /// the tombstone it stays, to be found again.
    pub(super) fn expire(&mut self, located: &Located, hash: KeyHash) {
        if self.delete(located, hash).is_ok() {
            self.counts.expirations += 1;
        }
    }

    /// A record could not be read, or is not what was written: its segment is to be emptied soon.
    pub(super) fn suspect(&mut self, place: Place) {
        self.segments[usize::from(place.segment)].is_suspect = true;
    }

    fn check(&self, located: &Located, hash: KeyHash) -> Result<(), Refused> {
        if self.is_offline {
            return Err(Refused::Offline);
        }
        if self.candidates(hash) == located.candidates { Ok(()) } else { Err(Refused::Moved) }
    }

    fn bury(&mut self, hash: KeyHash, purpose: Purpose) -> Result<Sequence, Refused> {
        assert!(!self.debts.contains(hash), "a tombstone would bury what the store does not have");
        let sequence = self.next_sequence;
        let record = Record { sequence, key_hash: hash, body: Body::Tombstone { origin: sequence } };
        self.append(CLASS_COUNT - 1, purpose, &record)?;
        Ok(sequence)
    }

    fn tombstone_bytes(&self) -> u64 {
        Record { sequence: 0, key_hash: 0, body: Body::Tombstone { origin: 0 } }.bytes() as u64
    }

    /// Makes the index point from `old` to `new`, and keeps count of the living.
    fn point(&mut self, hash: KeyHash, old: Option<Place>, new: Option<Place>) {
        let is_done = match (old, new) {
            (Some(old), Some(new)) => self.index.replace(hash, old, new),
            (Some(old), None) => self.index.remove(hash, old),
            (None, Some(new)) => {
                self.index.insert(hash, new);
                true
            }
            (None, None) => true,
        };
        assert!(is_done, "the caller looked, and nothing has happened since");
        if let Some(old) = old {
            self.segments[usize::from(old.segment)].live_count -= 1;
        }
        if let Some(new) = new {
            self.segments[usize::from(new.segment)].live_count += 1;
        }
    }

    /// Appends a record with the next sequence.
    fn append(&mut self, class: usize, purpose: Purpose, record: &Record<'_>) -> Result<Place, Refused> {
        assert_eq!(record.sequence, self.next_sequence);
        if self.is_offline {
            return Err(Refused::Offline);
        }
        let is_full = purpose == Purpose::Write && self.tail.buffered_bytes() >= BUFFER_BYTES_MAX;
        // Also where the open segment has room: it may be the last one, opened for reclaiming.
        if is_full || self.free_count() < self.reserved_count(purpose) {
            return Err(Refused::Full);
        }
        let mut class = class;
        if !self.tail.has_room(class, record.bytes()) && !self.open_next(class, purpose) {
            // Anywhere rather than nowhere; only the segment's expiry suffers.
            let with_room = |&class: &usize| self.tail.has_room(class, record.bytes());
            class = (0..CLASS_COUNT).find(with_room).ok_or(Refused::Full)?;
        }
        let place = self.tail.append(class, record);
        let expires = match record.body {
            Body::Put { expires, .. } => expires,
            Body::Tombstone { .. } | Body::DirtyDelete { .. } | Body::Mark { .. } => None,
        };
        let segment = &mut self.segments[usize::from(place.segment)];
        segment.note_record(record.bytes() as u64, expires);
        segment.tombstone_count += u32::from(!record.kind().is_put());
        self.next_sequence += 1;
        Ok(place)
    }

    /// Closes the open segment of `class` and begins another. `false` if none is free for this purpose.
    fn open_next(&mut self, class: usize, purpose: Purpose) -> bool {
        if self.free_count() <= self.reserved_count(purpose) {
            return false;
        }
        self.close(class);
        let is_usable = |segment: &Segment| segment.state == SegmentState::Free && !segment.is_surplus;
        let number = self.segments.iter().position(is_usable).expect("one is free");
        self.free_count -= 1;
        let generation = self.take_generation();
        let first_sequence = self.next_sequence;
        self.segments[number] = Segment { state: SegmentState::Open, generation, first_sequence, ..Segment::FREE };
        self.tail.begin(self.header(number as SegmentNumber, false, class as u8));
        true
    }

    /// Free segments that are not for this purpose.
    fn reserved_count(&self, purpose: Purpose) -> usize {
        match purpose {
            Purpose::Write => RESERVE_SEGMENTS,
            Purpose::Bury => RESERVE_SEGMENTS - 1,
            Purpose::Reclaim => 0,
        }
    }

    fn take_generation(&mut self) -> u64 {
        self.next_generation += 1;
        self.next_generation - 1
    }

    /// Closes the open segment of `class`, if there is one: its footer follows when its records are durable.
    fn close(&mut self, class: usize) {
        let Some(closed) = self.tail.close(class) else { return };
        let segment = &mut self.segments[usize::from(closed.header.segment)];
        segment.state = SegmentState::Sealing;
        if segment.write_failed {
            self.keep_footer(closed);
        } else {
            let footer = closed.into_footer(self.segment_bytes, segment.expires_max);
            self.later.push((self.next_sequence - 1, footer));
        }
    }

    /// A segment that will have no footer on disk: what would be in it is remembered.
    fn keep_footer(&mut self, closed: Closed) {
        self.segments[usize::from(closed.header.segment)].state = SegmentState::Sealed;
        self.footers_kept.insert(closed.header.segment, closed.into_entries());
    }

    fn header(&self, segment: SegmentNumber, is_void: bool, class: u8) -> SegmentHeader {
        let Segment { generation, first_sequence, .. } = self.segments[usize::from(segment)];
        SegmentHeader { log_id: self.log_id, segment, generation, first_sequence, is_void, class }
    }

    // ---- Writing.

    /// Whether a cycle would bring anything nearer to the disk, somebody waiting for a sync or nobody.
    pub(super) fn has_work(&self, is_waited_for: bool) -> bool {
        !self.is_offline && (self.tail.buffered_bytes() > 0 || self.has_urgent_work(is_waited_for, usize::MAX))
    }

    /// Whether a cycle should begin at once: somebody waits, there are `batch_bytes` to write, or a footer or a void.
    pub(super) fn has_urgent_work(&self, is_waited_for: bool, batch_bytes: usize) -> bool {
        let buffered_bytes = self.tail.buffered_bytes();
        let may_go = self.later.iter().any(|(needed, _)| *needed <= self.durable);
        let is_sync_wanted = is_waited_for || !self.later.is_empty();
        // While a segment blocks, a sync makes nothing durable; what was copied from it must be written, though.
        let is_sync_useful = self.blocking.is_empty() && self.durable < self.last_sequence();
        let is_urgent =
            buffered_bytes >= batch_bytes || may_go || is_sync_wanted && (is_sync_useful || buffered_bytes > 0);
        !self.is_offline && is_urgent
    }

    /// Whether another cycle may begin before those that have begun are over, and brings nearer to the disk what comes after
    /// them. All of them must be durable by their writes alone, since a sync covers what was written before it began; and
    /// trouble is dealt with in its order.
    pub(super) fn may_overlap(&self) -> bool {
        !self.is_offline
            && self.given < self.last_sequence()
            && self.unsynced.is_empty()
            && self.blocking.is_empty()
            && self.failures_in_a_row == 0
    }

    /// Whether a batch of a segment is on its way to the disk.
    pub(super) fn is_in_the_air(&self, number: SegmentNumber) -> bool {
        self.tail.flying().any(|batch| batch.segment == number)
    }

    /// Gives everything that may be written to the writer.
    pub(super) fn begin_cycle(&mut self, must_sync: bool) -> Cycle {
        let durable = self.durable;
        let mut has_void = self.tail.flying().any(|batch| batch.content == Content::Void);
        // One void at a time, in their order: what was let go without a tombstone, because nothing older of it was left,
        // must not outlast by a crash what had gone before it.
        let may_go = |(needed, batch): &mut (Sequence, Batch)| {
            let is_void = batch.content == Content::Void;
            let may_go = *needed <= durable && !(is_void && has_void);
            has_void |= is_void;
            may_go
        };
        for (_, batch) in self.later.extract_if(.., may_go) {
            self.tail.queue(batch);
        }
        let batches = self.tail.give();
        self.given = self.last_sequence();
        let is_synced = must_sync || has_void || !self.later.is_empty();
        let syncs = if is_synced {
            self.unsynced.clone()
        } else {
            self.unsynced.extend(batches.iter().filter(|batch| !is_footer(batch)).map(|batch| batch.segment));
            BTreeSet::new()
        };
        Cycle { batches, syncs, is_synced, upto: self.given }
    }

    /// Takes in what became of the cycle that began first of those that are not over.
    ///
    /// A segment of which a write or a sync has failed is never written again: what this cycle had for it goes
    /// elsewhere at once, and what was on disk is copied from there. A sync is not tried again on the same blocks: the kernel
    /// may have marked them clean (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020).
    pub(super) fn end_cycle(&mut self, cycle: &Cycle, failures: &Failures) {
        let batches = self.tail.take_back();
        let failed: BTreeSet<SegmentNumber> = failures.writes.union(&failures.syncs).copied().collect();
        self.counts.write_errors += failed.len() as u64;
        self.counts.syncs += cycle.durable_segments().difference(&failed).count() as u64;
        for batch in batches.iter().filter(|batch| !failures.writes.contains(&batch.segment)) {
            self.counts.writes += 1;
            self.counts.written_bytes += batch.bytes.len() as u64;
        }

        let mut withdrawn = Vec::new();
        for &segment in &failed {
            withdrawn.extend(self.retire(segment));
        }
        for batch in &batches {
            match (batch.content, failed.contains(&batch.segment)) {
                (Content::Records, false) => {}
                (Content::Records, true) => self.append_again(batch),
                (Content::Footer, false) => self.segments[usize::from(batch.segment)].state = SegmentState::Sealed,
                // A scan finds the records without it.
                (Content::Footer, true) => self.restore_footer(batch),
                (Content::Void, false) => self.free(batch.segment),
                // Unlike a sync, a header may be written again; until one is there, the segment is not empty.
                (Content::Void, true) => self.later.insert(0, (0, batch.clone())),
            }
        }
        for batch in withdrawn {
            match batch.content {
                Content::Records => self.append_again(&batch),
                Content::Footer => self.restore_footer(&batch),
                Content::Void => self.later.insert(0, (0, batch)),
            }
        }
        for segment in &cycle.syncs {
            self.unsynced.remove(segment);
        }
        self.failures_in_a_row = if failed.is_empty() { 0 } else { self.failures_in_a_row + 1 };
        if self.failures_in_a_row >= FAILURES_MAX {
            self.is_offline = true;
        }
        // Where a segment blocks, what was synced now is durable, and what was written before in that segment is not.
        if failed.is_empty() && self.blocking.is_empty() && self.unsynced.is_empty() {
            self.durable = cycle.upto;
            self.settle_debts();
        }
    }

    /// Writes nothing more to a segment. What was cut for it and not written yet comes back.
    fn retire(&mut self, number: SegmentNumber) -> Vec<Batch> {
        let segment = &mut self.segments[usize::from(number)];
        segment.is_suspect = true;
        segment.write_failed = true;
        if segment.state != SegmentState::Reclaiming {
            self.blocking.insert(number);
        }
        if let Some(class) = self.tail.class_of(number) {
            self.close(class);
        }
        // Closed before, and its footer waits for the sync that has just failed.
        let waits = |(_, batch): &mut (Sequence, Batch)| batch.segment == number && batch.content == Content::Footer;
        let footers: Vec<_> = self.later.extract_if(.., waits).collect();
        for (_, footer) in footers {
            self.restore_footer(&footer);
        }
        self.tail.withdraw(number)
    }

    /// A footer that is not on disk: what it says is remembered.
    fn restore_footer(&mut self, footer: &Batch) {
        self.footers_kept.insert(footer.segment, Entries::of_footer(&footer.bytes));
        self.segments[usize::from(footer.segment)].state = SegmentState::Sealed;
    }

    /// Appends what is still needed of a batch that could not be written.
    fn append_again(&mut self, batch: &Batch) {
        for (offset, record) in append::records(batch) {
            let place = Place::new(batch.segment, offset, record.bytes());
            let hash = record.key_hash;
            match record.body {
                Body::Put { .. } | Body::DirtyDelete { .. } if self.debts.is_at(hash, place) => {
                    let start = (offset - batch.offset) as usize;
                    self.append_owed_again(place, &record, &batch.bytes[start..start + record.bytes()]);
                }
                Body::Put { .. } if !self.index.contains(hash, place) => {}
                Body::Put { .. } => {
                    if !self.carry(hash, place, &record) {
                        self.leaks += u32::from(self.bury(hash, Purpose::Reclaim).is_err());
                        self.point(hash, Some(place), None);
                    }
                }
                // Replaced by what is newer, or durable: then it is in a segment that is emptied.
                Body::DirtyDelete { .. } => {}
                Body::Tombstone { origin } => {
                    self.leaks += u32::from(!self.carry_tombstone(hash, origin));
                }
                // Without its mark an old value could be uploaded once more, over a newer one.
                Body::Mark { origin } => self.is_offline |= !self.carry_mark(hash, origin),
            }
        }
    }

    /// Makes a segment whose void is on disk usable again.
    fn free(&mut self, number: SegmentNumber) {
        let Segment { generation, write_failed, is_surplus, has_leaked, .. } = self.segments[usize::from(number)];
        self.leaks -= u32::from(has_leaked);
        let state = if write_failed { SegmentState::Bad } else { SegmentState::Free };
        self.segments[usize::from(number)] = Segment { state, generation, is_surplus, write_failed, ..Segment::FREE };
        self.reclaiming_count -= 1;
        self.free_count += usize::from(state == SegmentState::Free && !is_surplus);
        self.counts.reclaimed += 1;
    }

    // ---- Reclaiming; what to do is decided in reclaim.rs.

    /// Copies a record that its key's slot points to. `false` if there is no room. The copy would be the newest of its
    /// hash, so where another key's change waits the record is let go instead.
    pub(super) fn carry(&mut self, hash: KeyHash, place: Place, record: &Record<'_>) -> bool {
        debug_assert!(self.index.contains(hash, place));
        if self.debts.contains(hash) {
            return self.evict(hash, place, false);
        }
        let mut record = *record;
        if let Body::Put { is_dirty, .. } = &mut record.body {
            *is_dirty = false; // The store has it by now.
        }
        let Ok((_, new, copy_bytes)) = self.append_copy(&record) else { return false };
        self.point(hash, Some(place), Some(new));
        self.counts.carried_bytes += copy_bytes;
        true
    }

    /// Appends a copy of a record: its sequence, where it is, and its bytes.
    fn append_copy(&mut self, record: &Record<'_>) -> Result<(Sequence, Place, u64), Refused> {
        let mut copy = Record { sequence: self.next_sequence, ..*record };
        let mut class = CLASS_COUNT - 1;
        if let Body::Put { believed_until_s, expires, .. } = &mut copy.body {
            if record.sequence < self.doubted_below {
                *believed_until_s = Some(0);
            }
            // Of the time that is left nothing is known here; a segment of the longest class expires last.
            class = if expires.is_some() { CLASS_COUNT - 2 } else { CLASS_COUNT - 1 };
        }
        let place = self.append(class, Purpose::Reclaim, &copy)?;
        Ok((copy.sequence, place, copy.bytes() as u64))
    }

    /// Repeats a tombstone. `false` if there is no room.
    fn carry_tombstone(&mut self, hash: KeyHash, origin: Sequence) -> bool {
        let copy = Record { sequence: self.next_sequence, key_hash: hash, body: Body::Tombstone { origin } };
        let is_done = self.append(CLASS_COUNT - 1, Purpose::Reclaim, &copy).is_ok();
        self.counts.carried_bytes += if is_done { copy.bytes() as u64 } else { 0 };
        is_done
    }

    /// Takes a record out of the index that goes with its segment; `must_bury` where older records of its key may stay
    /// behind. `false` if there is no room for the tombstone.
    pub(super) fn evict(&mut self, hash: KeyHash, place: Place, must_bury: bool) -> bool {
        // A change that waits is newer than all of its hash, and takes its own time to go.
        if must_bury && !self.debts.contains(hash) {
            if self.bury(hash, Purpose::Reclaim).is_err() {
                return false;
            }
            self.counts.carried_bytes += self.tombstone_bytes();
        }
        self.point(hash, Some(place), None);
        self.counts.evictions += 1;
        true
    }

    /// Appends a record of another log, where nothing here is of its hash. Only the disk knows of it, until a start has
    /// found it there.
    pub(super) fn take_over(&mut self, record: &Record<'_>, now: Timestamp) -> Result<(), Refused> {
        let copy = Record { sequence: self.next_sequence, ..*record };
        if copy.bytes() > self.record_bytes_max() {
            return Err(Refused::TooLarge);
        }
        let class = match copy.body {
            Body::Put { expires, is_dirty: false, .. } => class_of(expires, now),
            // It stays until it is uploaded.
            Body::Put { .. } | Body::Tombstone { .. } | Body::DirtyDelete { .. } | Body::Mark { .. } => CLASS_COUNT - 1,
        };
        self.append(class, Purpose::Reclaim, &copy).map(drop)
    }

    /// Makes a surplus segment that is free one of those that may be opened.
    pub(super) fn admit_segment(&mut self, number: usize) {
        let segment = &mut self.segments[number];
        assert!(segment.state == SegmentState::Free && segment.is_surplus, "{segment:?}");
        segment.is_surplus = false;
        self.free_count += 1;
    }

    /// Begins to empty a segment.
    pub(super) fn begin_reclaiming(&mut self, number: SegmentNumber) {
        let segment = &mut self.segments[usize::from(number)];
        segment.state = SegmentState::Reclaiming;
        self.reclaiming_count += 1;
        self.surplus_count -= usize::from(segment.is_surplus);
    }

    /// Gives up emptying a segment. Records that were evicted from it stay on disk, with nothing that says so; until it
    /// is empty after all, no other segment may let go of a record without a tombstone.
    pub(super) fn give_up_reclaiming(&mut self, number: SegmentNumber) {
        let segment = &mut self.segments[usize::from(number)];
        segment.state = SegmentState::Sealed;
        segment.is_stubborn = true;
        self.reclaiming_count -= 1;
        self.surplus_count += usize::from(segment.is_surplus);
        self.leak(number);
        // Nobody can be told any more that anything is durable.
        self.is_offline |= self.blocking.contains(&number);
    }

    /// Whether a segment must be emptied before anything is durable again.
    pub(super) fn is_blocked(&self) -> bool {
        !self.is_offline && !self.blocking.is_empty()
    }

    fn leak(&mut self, number: SegmentNumber) {
        let has_leaked = &mut self.segments[usize::from(number)].has_leaked;
        self.leaks += u32::from(!std::mem::replace(has_leaked, true));
    }

    pub(super) fn is_reclaiming(&self) -> bool {
        self.reclaiming_count > 0
    }

    /// Whether a record may be on disk, outside `number`, that neither the index nor a tombstone knows.
    pub(super) fn has_leaked(&self, number: SegmentNumber) -> bool {
        self.leaks > u32::from(self.segments[usize::from(number)].has_leaked)
    }

    /// Whether the index says all that a restart needs to know. It says nothing of changes that the store does not have;
    /// the footers do.
    pub(super) fn is_index_whole(&self) -> bool {
        let is_settled = |segment: &Segment| {
            matches!(segment.state, SegmentState::Free | SegmentState::Sealed) && !segment.has_leaked
        };
        self.leaks == 0
            && !self.is_offline
            && self.debts.len() == 0
            && self.segments.iter().all(is_settled)
            && self.footers_kept.is_empty()
    }

    /// Takes all places in a segment that are left in one table out of the index: its footer did not name them.
    pub(super) fn forget_places(&mut self, table: usize, number: SegmentNumber) {
        let count = self.index.remove_segment(table, number);
        self.segments[usize::from(number)].live_count -= u32::try_from(count).expect("no more than records");
    }

    /// Nothing of the segment is needed any more: its void is written when all that was appended so far is durable,
    /// and then it is free.
    pub(super) fn release(&mut self, number: SegmentNumber) {
        let generation = self.take_generation();
        let segment = &mut self.segments[usize::from(number)];
        assert!(segment.state == SegmentState::Reclaiming && segment.live_count == 0, "{segment:?}");
        assert_eq!(segment.dirty_bytes, 0, "what the store does not have is never dropped");
        segment.generation = generation;
        self.blocking.remove(&number);
        self.footers_kept.remove(&number);
        let bytes = self.header(number, true, 0).encode_block().freeze();
        let void = Batch { segment: number, offset: 0, bytes, content: Content::Void };
        self.later.push((self.next_sequence - 1, void));
    }

    /// Segments that may be opened.
    pub(super) fn free_count(&self) -> usize {
        self.free_count
    }

    /// Whether there is a segment to be emptied because the log should be smaller.
    pub(super) fn has_surplus(&self) -> bool {
        self.surplus_count > 0
    }

    /// Whether voids are on their way, so that segments will be free without doing more.
    pub(super) fn voids_coming(&self) -> usize {
        self.later.iter().filter(|(_, batch)| batch.content == Content::Void).count()
    }

    /// Whether there will be a segment to be emptied, or a free one, without anybody's doing more.
    pub(super) fn is_more_coming(&self) -> bool {
        self.voids_coming() > 0 || self.segments.iter().any(|segment| segment.state == SegmentState::Sealing)
    }

    // ---- Stopping, and figures.

    /// Closes all open segments, for a clean stop.
    pub(super) fn close_all(&mut self) {
        (0..CLASS_COUNT).for_each(|class| self.close(class));
    }

    pub(super) fn durable(&self) -> Sequence {
        self.durable
    }

    /// Up to here all records are on their way to the disk, or there.
    pub(super) fn given(&self) -> Sequence {
        self.given
    }

    pub(super) fn last_sequence(&self) -> Sequence {
        self.next_sequence - 1
    }

    pub(super) fn is_offline(&self) -> bool {
        self.is_offline
    }

    /// The header of a segment as it is on disk.
    pub(super) fn header_of(&self, number: SegmentNumber) -> SegmentHeader {
        self.header(number, false, 0)
    }

    pub(super) fn log_id(&self) -> u64 {
        self.log_id
    }

    pub(super) fn next_generation(&self) -> u64 {
        self.next_generation
    }

    pub(super) fn segment_bytes(&self) -> u32 {
        self.segment_bytes
    }

    /// The longest record that is kept.
    pub(super) fn record_bytes_max(&self) -> usize {
        (self.segment_bytes / RECORD_SHARE_MAX) as usize
    }

    /// Bytes of records that may wait for the store.
    pub(super) fn dirty_bytes_max(&self) -> u64 {
        self.dirty_bytes_max
    }

    /// Memory held: the index, what waits for the disk and for the store, footers to come.
    pub(super) fn held_bytes(&self) -> usize {
        let stranded_bytes: usize = self.stranded.values().map(Bytes::len).sum();
        let tail_bytes = self.tail.buffered_bytes() + self.tail.footers_bytes() + stranded_bytes;
        self.index.held_bytes() + self.debts.held_bytes() + tail_bytes
    }
}
