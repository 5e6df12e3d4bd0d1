//! What the log decides about changes that the store does not have yet: they are never dropped, wherever their records go.
//!
//! ```text
//!   put_dirty, delete_dirty ─▶ the key's copies leave the index ─▶ debts ─▶ next_debt ─▶ [upload] ─▶ mark_debt
//!   end_cycle ─▶ the mark is durable ─▶ settle_debts ─▶ an entry goes to the index, a delete is a tombstone from now on
//! ```
//! As long as a change waits, no record is written that would be newer of its hash: no entry and no tombstone of another
//! key with the same hash, nor a copy of one that reclaiming carries. So the newest record of the hash on disk is the
//! change's own, and a restart finds it.

use milena_proto::{key::KeyRef, placement::KeyHash};

use super::{
    super::{
        debts::{DirtyRecord, Owed, Stage},
        footer::FooterEntry,
        index::Place,
        record::{Body, Kind, Record, Sequence, VERSION_BYTES_MAX},
        segment::{CLASS_COUNT, class_of},
    },
    Located, Purpose, Refused, State,
};
use crate::{Entry, Timestamp};

impl State {
    /// Appends an entry that the store does not have, under the key that was located. What is not kept changes nothing.
    pub(in super::super) fn put_dirty(
        &mut self,
        located: &Located,
        key: KeyRef<'_>,
        entry: &Entry,
        believed_until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Sequence, Refused> {
        let record = Record::dirty_put(self.next_sequence, key, entry, believed_until);
        let is_too_large = entry.version.as_str().len() > VERSION_BYTES_MAX || record.bytes() > self.record_bytes_max();
        if is_too_large || entry.is_expired(now) {
            return Err(Refused::TooLarge);
        }
        self.change_dirty(located, class_of(entry.expires, now), Purpose::Write, &record, now)
    }

    /// Appends that the key which was located has no value, which the store does not know.
    pub(in super::super) fn delete_dirty(
        &mut self,
        located: &Located,
        key: KeyRef<'_>,
        now: Timestamp,
    ) -> Result<Sequence, Refused> {
        let record = Record::dirty_delete(self.next_sequence, key);
        self.change_dirty(located, CLASS_COUNT - 1, Purpose::Bury, &record, now)
    }

    fn change_dirty(
        &mut self,
        located: &Located,
        class: usize,
        purpose: Purpose,
        record: &Record<'_>,
        now: Timestamp,
    ) -> Result<Sequence, Refused> {
        let hash = record.key_hash;
        self.check(located, hash)?;
        if self.debts.get(hash).map(|owed| owed.id) != located.owed {
            return Err(Refused::Moved);
        }
        if !self.debts.has_room(hash, record.bytes(), self.dirty_bytes_max) {
            return Err(Refused::DirtyFull);
        }
        let place = self.append(class, purpose, record)?;
        self.replace(located, hash, None);
        let before = self.debts.change(&dirty_record(record, place), now);
        if let Some(before) = before {
            self.segments[usize::from(before.place.segment)].dirty_bytes -= u64::from(before.record_bytes);
        }
        self.segments[usize::from(place.segment)].dirty_bytes += record.bytes() as u64;
        self.counts.appended_bytes += record.bytes() as u64;
        Ok(record.sequence)
    }

    /// The first change that nobody is uploading.
    pub(in super::super) fn give_debt(&mut self) -> Option<(KeyHash, Owed)> {
        self.debts.give()
    }

    /// The change with this id, if no newer one has replaced it.
    pub(in super::super) fn owed(&self, hash: KeyHash, id: Sequence) -> Option<&Owed> {
        self.debts.get(hash).filter(|owed| owed.id == id)
    }

    /// The store has a change that was given out: its mark is appended. `None` where a newer change has replaced it, which
    /// is given out next.
    pub(in super::super) fn mark_debt(&mut self, hash: KeyHash, id: Sequence) -> Result<Option<Sequence>, Refused> {
        if self.owed(hash, id).is_none() {
            self.debts.take_back(hash);
            return Ok(None);
        }
        match self.append_mark(hash, Purpose::Bury) {
            Ok(mark) => {
                self.counts.appended_bytes += self.tombstone_bytes();
                Ok(Some(mark))
            }
            Err(Refused::Offline) => {
                self.debts.note_in_store(hash);
                Err(Refused::Offline)
            }
            Err(refused) => Err(refused),
        }
    }

    /// What was given out is to be given out again.
    pub(in super::super) fn take_debt_back(&mut self, hash: KeyHash) {
        self.debts.take_back(hash);
    }

    /// The mark that must be durable before the change is over; `None` if it is.
    pub(in super::super) fn mark_of(&self, hash: KeyHash, id: Sequence) -> Option<Sequence> {
        match self.owed(hash, id)?.stage {
            Stage::Marked(mark) => Some(mark),
            Stage::Ready | Stage::Given | Stage::Behind | Stage::InStore => None,
        }
    }

    /// Ends the changes whose marks are durable: their entries are copies of what the store has, like all others.
    pub(super) fn settle_debts(&mut self) {
        while let Some((hash, owed)) = self.debts.settle(self.durable) {
            self.segments[usize::from(owed.place.segment)].dirty_bytes -= u64::from(owed.record_bytes);
            if !owed.is_delete {
                self.point(hash, None, Some(owed.place));
            }
        }
    }

    /// Copies the record of a change. If the store has it by now, and its mark is not durable, the copy needs another mark.
    /// `false` if there is no room.
    pub(in super::super) fn carry_owed(&mut self, hash: KeyHash, place: Place, record: &Record<'_>) -> bool {
        debug_assert!(self.debts.is_at(hash, place));
        let Ok((copy_sequence, new, record_bytes)) = self.append_copy(record) else { return false };
        self.segments[usize::from(place.segment)].dirty_bytes -= record_bytes;
        self.segments[usize::from(new.segment)].dirty_bytes += record_bytes;
        self.counts.carried_bytes += record_bytes;
        self.debts.move_to(hash, new, copy_sequence);
        let is_marked = self.debts.get(hash).is_some_and(|owed| matches!(owed.stage, Stage::Marked(_)));
        if is_marked && self.append_mark(hash, Purpose::Reclaim).is_err() {
            // Uploaded once more, which changes nothing in the store: nobody else has written to the key meanwhile.
            self.debts.take_back(hash);
        }
        true
    }

    /// Repeats what a record says about others: a tombstone, a mark, or a delete that the store knows of, which is a
    /// tombstone. `false` if there is no room.
    pub(in super::super) fn repeat(&mut self, entry: &FooterEntry) -> bool {
        match entry.kind {
            Kind::Mark => self.carry_mark(entry.key_hash, entry.sequence),
            Kind::Tombstone | Kind::DirtyDelete => self.carry_tombstone(entry.key_hash, entry.sequence),
            Kind::Put | Kind::DirtyPut => unreachable!("an entry says nothing about others"),
        }
    }

    pub(super) fn carry_mark(&mut self, hash: KeyHash, origin: Sequence) -> bool {
        let copy = Record { sequence: self.next_sequence, key_hash: hash, body: Body::Mark { origin } };
        let is_done = self.append(CLASS_COUNT - 1, Purpose::Reclaim, &copy).is_ok();
        self.counts.carried_bytes += if is_done { copy.bytes() as u64 } else { 0 };
        is_done
    }

    /// Appends again the record of a change that could not be written. Where there is no room it stays in memory, and as
    /// nothing can be promised any more, the disk is given up.
    pub(super) fn append_owed_again(&mut self, place: Place, record: &Record<'_>, bytes: &[u8]) {
        if !self.carry_owed(record.key_hash, place, record) {
            self.stranded.insert(place, bytes::Bytes::copy_from_slice(bytes));
            self.is_offline = true;
        }
    }

    /// Appends a mark of the change under this hash: what is older of it is in the store too, or never will be.
    fn append_mark(&mut self, hash: KeyHash, purpose: Purpose) -> Result<Sequence, Refused> {
        let origin = self.debts.get(hash).expect("the caller looked").sequence + 1;
        let mark = self.next_sequence;
        let record = Record { sequence: mark, key_hash: hash, body: Body::Mark { origin } };
        self.append(CLASS_COUNT - 1, purpose, &record)?;
        self.debts.mark(hash, mark);
        Ok(mark)
    }
}

fn dirty_record(record: &Record<'_>, place: Place) -> DirtyRecord {
    DirtyRecord {
        key_hash: record.key_hash,
        sequence: record.sequence,
        place,
        record_bytes: u32::try_from(record.bytes()).expect("below a segment's bytes"),
        is_delete: record.kind() == Kind::DirtyDelete,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        Version,
        log::{
            index::Index,
            segment::{SEGMENT_BYTES_MIN, Segment, State as SegmentState},
            state::{Failures, Found},
        },
    };

    const NOW: Timestamp = Timestamp(1_000_000);

    fn state() -> State {
        State::new(Found {
            log_id: 77,
            segment_bytes: SEGMENT_BYTES_MIN as u32,
            segments: vec![Segment::FREE; 6],
            index: Index::new(0),
            debts: Vec::new(),
            next_sequence: 1,
            next_generation: 1,
            footers_kept: std::collections::HashMap::new(),
        })
    }

    fn key() -> KeyRef<'static> {
        KeyRef::parse(b"default", b"a").unwrap()
    }

    fn owe(state: &mut State) -> Owed {
        let version = Version::new(Bytes::from("v")).unwrap();
        let entry = Entry { value: Bytes::from("one"), version, expires: None };
        state.put_dirty(&Located::default(), key(), &entry, None, NOW).unwrap();
        *state.debts.get(key().hash()).unwrap()
    }

    /// From now on nothing can be appended but where a segment is open.
    fn use_up(state: &mut State) {
        let free = state.segments.iter_mut().filter(|segment| segment.state == SegmentState::Free);
        free.for_each(|segment| segment.state = SegmentState::Bad);
        state.free_count = 0;
    }

    #[test]
    fn a_failed_write_without_room_elsewhere_leaves_the_change_in_memory() {
        let mut state = state();
        let owed = owe(&mut state);
        let cycle = state.begin_cycle(true);
        use_up(&mut state);
        let writes = cycle.batches.iter().map(|batch| batch.segment).collect();
        state.end_cycle(&cycle, &Failures { writes, ..Failures::default() });
        assert!(state.is_offline() && state.debts.is_at(key().hash(), owed.place));
        let bytes = state.buffered(owed.place).unwrap();
        assert!(Record::decode(&bytes).is_ok_and(|(record, _)| record.is_of(key())));
        assert!(state.held_bytes() > bytes.len());
    }

    #[test]
    fn a_mark_without_room_leaves_the_change_given_out() {
        let mut state = state();
        owe(&mut state);
        let (hash, owed) = state.give_debt().unwrap();
        use_up(&mut state);
        assert_eq!(state.mark_debt(hash, owed.id), Err(Refused::Full));
        assert_eq!((state.debts.get(hash).unwrap().stage, state.give_debt()), (Stage::Given, None));
    }

    #[test]
    fn a_copy_whose_mark_has_no_room_is_uploaded_once_more() {
        let mut state = state();
        let owed = owe(&mut state);
        let (hash, _) = state.give_debt().unwrap();
        state.mark_debt(hash, owed.id).unwrap();
        let bytes = state.buffered(owed.place).unwrap();
        let (record, record_bytes) = Record::decode(&bytes).unwrap();
        use_up(&mut state);
        // What leaves room for the copy, and not for its mark.
        let class = CLASS_COUNT - 1;
        let fits = |len: &usize| state.tail.has_room(class, *len + record_bytes);
        let filler_bytes = (0..SEGMENT_BYTES_MIN as usize).step_by(16).rev().find(fits).unwrap();
        let value = vec![0; filler_bytes];
        let fill = |len| {
            let mut filler = Record { sequence: state.next_sequence, ..record };
            if let Body::Put { value: filled, .. } = &mut filler.body {
                *filled = &value[..len];
            }
            filler
        };
        let len = (0..filler_bytes).rev().find(|&len| fill(len).bytes() == filler_bytes).unwrap();
        let filler = fill(len);
        state.append(class, Purpose::Reclaim, &filler).unwrap();
        assert!(state.carry_owed(hash, owed.place, &record));
        assert_eq!((state.mark_of(hash, owed.id), state.give_debt().map(|(hash, _)| hash)), (None, Some(hash)));
        assert!(state.debts.settle(Sequence::MAX).is_none());
    }

    #[test]
    #[should_panic(expected = "would bury")]
    fn a_tombstone_over_a_change_that_waits_is_a_bug_of_ours() {
        let mut state = state();
        owe(&mut state);
        let _ = state.bury(key().hash(), Purpose::Bury);
    }
}
