//! How a log makes room: it empties the segment that reclaim.rs chooses, a little at a time.
//!
//! ```text
//!   too few free ──▶ choose ──▶ its footer ──▶ each record: drop, evict, bury, repeat ──▶ copy the rest ──▶ void
//!                                              others run after every RECORDS_PER_TURN    in spans
//! ```
//! Records that the store does not have are all copied. Where one cannot be read, the segment stays as it is.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use futures::future;

use super::{
    Device, Log, Trouble,
    footer::{Entries, FooterEntry, Growing, Pieces, footer_bytes},
    index::Place,
    reclaim::{self, Fate},
    record::{Body, Kind, Record, Sequence},
    scan::Scan,
    segment::{SegmentHeader, SegmentNumber},
    state::FREE_SEGMENTS,
};

/// How long reclaiming waits when nothing can go.
const RECLAIM_PAUSE: Duration = Duration::from_millis(100);

/// How long reclaiming rests between two turns. A core looks at its sockets when no task is ready, and otherwise only every
/// tenth of a second: a task that is always ready would hold up every request. And it is so long that the core's thread
/// sleeps: a thread of the kernel that wants the same processor ends each durable write. With 20 µs it came to that too late,
/// and p99 of acknowledged writes was 3.0 times a plain write's; with 100 it is 1.9.
const BREATH: Duration = Duration::from_micros(100);

/// Records that reclaiming decides about, or copies, before it lets others run: some ten microseconds.
const RECORDS_PER_TURN: usize = 64;

/// Tables of the index that are searched for a segment's records before others run: some ten microseconds.
const TABLES_PER_TURN: usize = 8;

/// What it reads at once of a footer, which may have many megabytes where records are small.
pub(super) const FOOTER_PIECE_BYTES: usize = 256 << 10;

impl<D: Device> Log<D> {
    pub(super) fn needs_reclaiming(&self) -> bool {
        let state = self.state.borrow();
        let is_index_full = state.index.len() > self.index_len_max;
        let is_full = state.free_count() + state.voids_coming() < FREE_SEGMENTS || is_index_full;
        !state.is_offline() && (is_full || state.is_blocked() || state.has_surplus())
    }

    pub(super) async fn reclaim(&self) {
        while !self.is_stopping.get() || self.state.borrow().is_blocked() {
            if !self.needs_reclaiming() {
                self.is_stuck.set(false);
                self.need.heard().await;
                continue;
            }
            let victim = {
                let mut state = self.state.borrow_mut();
                let are_enough_free = state.free_count() >= FREE_SEGMENTS;
                let victim = reclaim::choose(&state.segments, self.now.get(), are_enough_free);
                victim.inspect(|&victim| state.begin_reclaiming(victim))
            };
            let is_done = match victim {
                Some(victim) => self.empty(victim).await,
                None => false,
            };
            if is_done {
                self.is_stuck.set(false);
                self.work.ring();
                continue;
            }
            if let Some(victim) = victim {
                self.state.borrow_mut().give_up_reclaiming(victim);
            }
            if victim.is_some() || !self.state.borrow().is_more_coming() {
                // Whoever waits would wait for ever if nothing else can go.
                self.is_stuck.set(true);
                self.tell_of_room();
                self.tell(self.take_durable());
            }
            let pause = self.device.pause(RECLAIM_PAUSE);
            future::select(pin!(self.need.heard()), Box::pin(pause)).await;
        }
    }

    async fn breathe(&self) {
        self.device.pause(BREATH).await;
    }

    /// Empties a segment, and says whether that was possible.
    async fn empty(&self, victim: SegmentNumber) -> bool {
        let (oldest_elsewhere, (carry_all, bury_all), mut carry_left) = {
            let state = self.state.borrow();
            let segment = &state.segments[usize::from(victim)];
            let carry_bytes = reclaim::carry_bytes_max(segment, state.segment_bytes());
            // Also where there is so little that it costs no more than what may be copied anyway.
            let carry_all = segment.is_suspect || segment.live_bytes() <= carry_bytes;
            let bury_all = segment.is_suspect || state.has_leaked(victim);
            (reclaim::oldest_elsewhere(&state.segments, victim), (carry_all, bury_all), carry_bytes)
        };
        // One that a write has failed in may wait for another write.
        while self.state.borrow().is_in_the_air(victim) {
            self.breathe().await;
        }
        // Not known and voided would be forgotten without a tombstone.
        let Some(entries) = self.entries_of(victim).await else { return false };
        let mut carried = Vec::new();
        for turn in entries.chunks(RECORDS_PER_TURN) {
            for entry in turn {
                let place = place_of(victim, &entry);
                let mut state = self.state.borrow_mut();
                if state.debts.is_at(entry.key_hash, place) {
                    carried.push(entry);
                    continue;
                }
                let hits = state.index.hits(entry.key_hash, place);
                let entry = &FooterEntry { has_older: entry.has_older || bury_all, ..entry };
                let is_done = match reclaim::fate(entry, hits, oldest_elsewhere, carry_all, carry_left) {
                    Fate::Drop => true,
                    Fate::Evict => state.evict(entry.key_hash, place, false),
                    Fate::Bury => state.evict(entry.key_hash, place, true),
                    Fate::Repeat => state.repeat(entry),
                    Fate::Carry => {
                        carry_left -= u64::from(entry.record_bytes);
                        carried.push(*entry);
                        true
                    }
                };
                if !is_done {
                    return false;
                }
            }
            self.work.ring();
            self.breathe().await;
        }
        if !self.carry(victim, &carried, oldest_elsewhere).await {
            return false;
        }
        // One that a damaged footer does not name.
        if self.state.borrow().segments[usize::from(victim)].dirty_bytes > 0 {
            return false;
        }
        self.forget_rest(victim).await;
        self.state.borrow_mut().release(victim);
        true
    }

    /// Copies records, neighbours with one read.
    async fn carry(&self, victim: SegmentNumber, entries: &[FooterEntry], oldest_elsewhere: Option<Sequence>) -> bool {
        let mut rest = entries;
        while !rest.is_empty() {
            let (count, len) = reclaim::span(rest);
            let (together, after) = rest.split_at(count);
            rest = after;
            let bytes = self.device.read_once(victim, together[0].offset, len).await;
            if let Err(error) = bytes {
                self.notice(victim, Trouble::Unreadable { segment: victim, error });
            }
            for (index, entry) in together.iter().enumerate() {
                if index % RECORDS_PER_TURN == RECORDS_PER_TURN - 1 {
                    self.breathe().await;
                }
                let start = (entry.offset - together[0].offset) as usize;
                let record = bytes.as_ref().ok().and_then(|bytes| Record::decode(bytes.get(start..)?).ok());
                if bytes.is_ok() && record.is_none() {
                    self.notice(victim, Trouble::Corrupt { segment: victim, offset: entry.offset });
                }
                if !self.carry_one(victim, entry, record.map(|(record, _)| record), oldest_elsewhere) {
                    return false;
                }
            }
            self.work.ring();
            self.breathe().await;
        }
        true
    }

    fn carry_one(
        &self,
        victim: SegmentNumber,
        entry: &FooterEntry,
        record: Option<Record<'_>>,
        oldest_elsewhere: Option<Sequence>,
    ) -> bool {
        let mut state = self.state.borrow_mut();
        let (hash, place) = (entry.key_hash, place_of(victim, entry));
        let is_older_elsewhere = oldest_elsewhere.is_some_and(|oldest| oldest < entry.sequence);
        let is_it = |record: &Record<'_>| record.sequence == entry.sequence && record.key_hash == hash;
        if state.debts.is_at(hash, place) {
            let record = record.filter(|record| is_it(record) && record.kind() == entry.kind);
            state.counts.corrupt += u64::from(record.is_none());
            return record.is_some_and(|record| state.carry_owed(hash, place, &record));
        }
        if entry.kind == Kind::DirtyDelete {
            return !is_older_elsewhere || state.repeat(entry); // The store knows by now.
        }
        if !state.index.contains(hash, place) {
            return true; // Replaced or deleted while we read.
        }
        let is_alive = |record: &Record<'_>| match record.body {
            Body::Put { expires, .. } => expires.is_none_or(|expires| expires > self.now.get()),
            Body::Tombstone { .. } | Body::DirtyDelete { .. } | Body::Mark { .. } => false,
        };
        let record = record.filter(is_it);
        if record.is_none() {
            state.counts.corrupt += 1;
        }
        match record.filter(is_alive) {
            Some(record) if state.carry(hash, place, &record) => true,
            _ => state.evict(hash, place, entry.has_older && is_older_elsewhere),
        }
    }

    /// What is in a sealed segment: from its footer, or where that is damaged from its records; `None` if it cannot be read.
    async fn entries_of(&self, number: SegmentNumber) -> Option<Entries> {
        let (record_count, segment_bytes, header) = {
            let state = self.state.borrow();
            if let Some(kept) = state.footers_kept.get(&number) {
                return Some(kept.clone());
            }
            let segment = &state.segments[usize::from(number)];
            (segment.record_count as usize, state.segment_bytes(), state.header_of(number))
        };
        if footer_bytes(record_count) < segment_bytes as usize {
            let pieces = self.read_footer(number, record_count, segment_bytes).await?;
            if let Some(entries) = pieces.finish(&header) {
                return Some(entries);
            }
        }
        self.scan(number, &header, segment_bytes).await
    }

    async fn read_footer(&self, number: SegmentNumber, record_count: usize, segment_bytes: u32) -> Option<Pieces> {
        let mut pieces = Pieces::new(record_count);
        loop {
            let left = footer_bytes(record_count) - pieces.len();
            if left == 0 {
                return Some(pieces);
            }
            let len = left.min(FOOTER_PIECE_BYTES);
            pieces.push(&self.read_whole(number, segment_bytes - left as u32, len).await?);
            self.breathe().await;
        }
    }

    /// Fewer bytes than asked for are a failure: they look like an end where there is none.
    async fn read_whole(&self, number: SegmentNumber, offset: u32, len: usize) -> Option<Bytes> {
        let read = self.device.read_once(number, offset, len).await;
        if let Err(error) = read {
            self.notice(number, Trouble::Unreadable { segment: number, error });
        }
        read.ok().filter(|bytes| bytes.len() == len)
    }

    /// Reads a segment from its start to its first invalid record.
    async fn scan(&self, number: SegmentNumber, header: &SegmentHeader, segment_bytes: u32) -> Option<Entries> {
        let mut scan = Scan::new(header.first_sequence, segment_bytes);
        while let Some((offset, len)) = scan.wanted() {
            scan.take(&self.read_whole(number, offset, len).await?);
            self.breathe().await;
        }
        Some(Growing::from_iter(&scan.entries).into_entries())
    }

    /// Takes out of the index what a damaged footer did not name.
    async fn forget_rest(&self, number: SegmentNumber) {
        let table_count = self.state.borrow().index.table_count();
        for first in (0..table_count).step_by(TABLES_PER_TURN) {
            if self.state.borrow().segments[usize::from(number)].live_count == 0 {
                return;
            }
            for table in first..table_count.min(first + TABLES_PER_TURN) {
                self.state.borrow_mut().forget_places(table, number);
            }
            self.breathe().await;
        }
    }
}

fn place_of(segment: SegmentNumber, entry: &FooterEntry) -> Place {
    Place::new(segment, entry.offset, entry.record_bytes as usize)
}
