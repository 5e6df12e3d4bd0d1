//! The changes that the store does not have yet: which, where their records are, and in whose hands.
//!
//! ```text
//!                        next_debt             debt_done: a mark           the mark is durable
//!   change ──▶ Ready ───────────────▶ Given ─────────────────▶ Marked ────────────────────────▶ gone
//!              ▲ ▲ ▲   debt_failed    │   │                     │
//!              │ │ └──────────────────┘   │ newer change        │ newer change
//!              │ └────────────────────────│─────────────────────┘
//!              └──── Behind ◀─────────────┘
//!               done or failed            Given or Marked, and the disk was given up ──▶ InStore, to the end
//! ```
//! One change for each 64-bit hash: recovery and marks know keys by their hash alone, so that of two keys with the same
//! one only one may wait. A newer change of the key takes the place of the older, which is then never uploaded; one that
//! waits keeps its turn, so that a key that changes all the time is uploaded all the same.
//!
//! The index never points to a record that is named here: whatever drops index entries cannot drop a debt.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ahash::RandomState;
use milena_proto::placement::KeyHash;

use super::{index::Place, record::Sequence};
use crate::Timestamp;

/// Changes of one log that may wait for the store, at some 150 bytes of memory each.
pub(super) const DIRTY_RECORDS_MAX: usize = 1 << 20;

/// Of a log's bytes, the share in percent that records may take which wait for the store.
pub(super) const DIRTY_PERCENT_MAX: u64 = 25;

/// Memory of a table's slot, and of the two orders that name it, where their nodes are two thirds full.
const SLOT_BYTES: usize = size_of::<(KeyHash, Owed)>() + 1;
const ORDER_BYTES: usize = (size_of::<(u64, KeyHash)>() + size_of::<(Timestamp, KeyHash)>()) * 3 / 2;

/// A change that the store does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owed {
    /// The sequence that the change was given first. It stays when the record is copied elsewhere.
    pub(super) id: Sequence,
    /// That of its record.
    pub(super) sequence: Sequence,
    pub(super) place: Place,
    pub(super) record_bytes: u32,
    pub(super) is_delete: bool,
    pub(super) stage: Stage,
    /// From when on the store lacks it, or an older one of the key that nobody had begun to upload; the epoch for what
    /// a start has found.
    since: Timestamp,
    turn: u64,
}

/// In whose hands a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits to be given out.
    Ready,
    /// It is being uploaded.
    Given,
    /// An older one of the key is being uploaded.
    Behind,
    /// The store has it; it is over when the mark with this sequence is durable.
    Marked(Sequence),
    /// The store has it, and the disk takes no mark any more. Nothing newer can come.
    InStore,
}

/// A record that a start has found, or a change has appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirtyRecord {
    pub(super) key_hash: KeyHash,
    pub(super) sequence: Sequence,
    pub(super) place: Place,
    pub(super) record_bytes: u32,
    pub(super) is_delete: bool,
}

/// All changes of a log that the store does not have.
#[derive(Debug, Default)]
pub(super) struct Debts {
    owed: HashMap<KeyHash, Owed, RandomState>,
    /// Those that are ready, by their turn.
    queue: BTreeMap<u64, KeyHash>,
    ages: BTreeSet<(Timestamp, KeyHash)>,
    /// By the sequence of the mark. One whose record was copied since has another mark, and is here twice.
    marks: BTreeMap<Sequence, KeyHash>,
    bytes: u64,
    put_count: usize,
    turns_given: u64,
}

impl Debts {
    /// What a start has found, in the order of sequences.
    pub(super) fn found(records: &[DirtyRecord]) -> Self {
        debug_assert!(records.is_sorted_by_key(|record| record.sequence));
        let mut debts = Self::default();
        for record in records {
            let before = debts.change(record, Timestamp(0));
            assert!(before.is_none(), "recovery answers one record for each hash");
        }
        debts
    }

    pub(super) fn get(&self, hash: KeyHash) -> Option<&Owed> {
        self.owed.get(&hash)
    }

    pub(super) fn contains(&self, hash: KeyHash) -> bool {
        self.owed.contains_key(&hash)
    }

    /// Whether the record at `place` is a change that the store does not have.
    pub(super) fn is_at(&self, hash: KeyHash, place: Place) -> bool {
        self.get(hash).is_some_and(|owed| owed.place == place)
    }

    pub(super) fn len(&self) -> usize {
        self.owed.len()
    }

    /// Entries among them.
    pub(super) fn put_count(&self) -> usize {
        self.put_count
    }

    /// Bytes of their records.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// From when on the store lacks something; the epoch where a start has found it.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.ages.first().map(|(since, _)| *since)
    }

    /// Memory held, about.
    pub(super) fn held_bytes(&self) -> usize {
        self.owed.capacity() * SLOT_BYTES + self.owed.len() * ORDER_BYTES
    }

    /// Whether a record of `record_bytes` under `hash` stays within the bounds, or is no larger than what it replaces.
    pub(super) fn has_room(&self, hash: KeyHash, record_bytes: usize, bytes_max: u64) -> bool {
        let record_bytes = record_bytes as u64;
        match self.get(hash).map(|owed| u64::from(owed.record_bytes)) {
            Some(before) => record_bytes <= before || self.bytes - before + record_bytes <= bytes_max,
            None => self.len() < DIRTY_RECORDS_MAX && self.bytes + record_bytes <= bytes_max,
        }
    }

    /// Takes in a change that was appended, and answers the older one of its hash, which it replaces.
    pub(super) fn change(&mut self, record: &DirtyRecord, now: Timestamp) -> Option<Owed> {
        let &DirtyRecord { key_hash: hash, sequence, place, record_bytes, is_delete } = record;
        let before = self.remove(hash);
        let (stage, waits_since) = match before.map(|before| (before.stage, before)) {
            Some((Stage::Ready, before)) => (Stage::Ready, Some((before.since, before.turn))),
            Some((Stage::Behind, before)) => (Stage::Behind, Some((before.since, before.turn))),
            Some((Stage::Given, _)) => (Stage::Behind, None),
            Some((Stage::Marked(_) | Stage::InStore, _)) | None => (Stage::Ready, None),
        };
        let (since, turn) = waits_since.unwrap_or_else(|| (now, self.next_turn()));
        self.insert(hash, Owed { id: sequence, sequence, place, record_bytes, is_delete, stage, since, turn });
        before
    }

    /// The first of those that are ready, given out.
    pub(super) fn give(&mut self) -> Option<(KeyHash, Owed)> {
        let (_, hash) = self.queue.pop_first()?;
        let owed = self.owed.get_mut(&hash).expect("what is queued is owed");
        owed.stage = Stage::Given;
        Some((hash, *owed))
    }

    /// Something that was given out is to be given out again, or what came behind it is next. Where that is the same
    /// change its turn comes after all others.
    pub(super) fn take_back(&mut self, hash: KeyHash) {
        let Some(mut owed) = self.remove(hash) else { return };
        if owed.stage != Stage::Behind {
            owed.turn = self.next_turn();
        }
        owed.stage = Stage::Ready;
        self.insert(hash, owed);
    }

    /// The store has the change; it is over when the mark is durable.
    pub(super) fn mark(&mut self, hash: KeyHash, mark: Sequence) {
        let owed = self.owed.get_mut(&hash).expect("the caller looked");
        owed.stage = Stage::Marked(mark);
        self.marks.insert(mark, hash);
    }

    /// The store has the change, and nothing can be written any more.
    pub(super) fn note_in_store(&mut self, hash: KeyHash) {
        self.owed.get_mut(&hash).expect("the caller looked").stage = Stage::InStore;
    }

    /// The record was copied.
    pub(super) fn move_to(&mut self, hash: KeyHash, place: Place, sequence: Sequence) {
        let owed = self.owed.get_mut(&hash).expect("the caller looked");
        (owed.place, owed.sequence) = (place, sequence);
    }

    /// Takes out one change whose mark is durable, if there is any.
    pub(super) fn settle(&mut self, durable: Sequence) -> Option<(KeyHash, Owed)> {
        while let Some(entry) = self.marks.first_entry().filter(|entry| *entry.key() <= durable) {
            let (mark, hash) = entry.remove_entry();
            if self.get(hash).is_some_and(|owed| owed.stage == Stage::Marked(mark)) {
                return self.remove(hash).map(|owed| (hash, owed));
            }
        }
        None
    }

    fn next_turn(&mut self) -> u64 {
        self.turns_given += 1;
        self.turns_given
    }

    fn insert(&mut self, hash: KeyHash, owed: Owed) {
        if owed.stage == Stage::Ready {
            self.queue.insert(owed.turn, hash);
        }
        self.ages.insert((owed.since, hash));
        self.bytes += u64::from(owed.record_bytes);
        self.put_count += usize::from(!owed.is_delete);
        let before = self.owed.insert(hash, owed);
        debug_assert!(before.is_none(), "removed before");
    }

    fn remove(&mut self, hash: KeyHash) -> Option<Owed> {
        let owed = self.owed.remove(&hash)?;
        if owed.stage == Stage::Ready {
            self.queue.remove(&owed.turn);
        }
        self.ages.remove(&(owed.since, hash));
        self.bytes -= u64::from(owed.record_bytes);
        self.put_count -= usize::from(!owed.is_delete);
        Some(owed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1000);

    fn record(key_hash: KeyHash, sequence: Sequence) -> DirtyRecord {
        let place = Place::new(0, 4096 + 64 * sequence as u32, 64);
        DirtyRecord { key_hash, sequence, place, record_bytes: 64, is_delete: false }
    }

    fn debts(hashes: &[KeyHash]) -> Debts {
        let mut debts = Debts::default();
        for (&hash, sequence) in hashes.iter().zip(1..) {
            debts.change(&record(hash, sequence), NOW.plus_ms(sequence));
        }
        debts
    }

    fn give(debts: &mut Debts) -> Option<(KeyHash, Sequence)> {
        debts.give().map(|(hash, owed)| (hash, owed.sequence))
    }

    #[test]
    fn changes_are_given_out_in_their_order_and_each_once() {
        let mut debts = debts(&[7, 5, 6]);
        assert_eq!([(); 4].map(|()| give(&mut debts)), [Some((7, 1)), Some((5, 2)), Some((6, 3)), None]);
        assert_eq!((debts.len(), debts.bytes(), debts.put_count()), (3, 192, 3));
    }

    #[test]
    fn a_change_that_waits_is_replaced_by_a_newer_one_which_takes_its_turn_and_its_age() {
        let mut debts = debts(&[7, 5]);
        let before = debts.change(&record(7, 3), NOW.plus_ms(3)).unwrap();
        assert_eq!((before.sequence, debts.len()), (1, 2));
        assert_eq!(debts.oldest(), Some(NOW.plus_ms(1)));
        assert_eq!(give(&mut debts), Some((7, 3)));
    }

    #[test]
    fn a_change_that_comes_during_an_upload_waits_for_its_end() {
        let mut debts = debts(&[7, 5]);
        assert_eq!(give(&mut debts), Some((7, 1)));
        debts.change(&record(7, 3), NOW.plus_ms(3));
        debts.change(&record(7, 4), NOW.plus_ms(4));
        assert_eq!(debts.get(7).unwrap().stage, Stage::Behind);
        assert_eq!(debts.oldest(), Some(NOW.plus_ms(2)));
        assert_eq!([give(&mut debts), give(&mut debts)], [Some((5, 2)), None]);
        debts.take_back(7);
        assert_eq!(give(&mut debts), Some((7, 4)));
    }

    #[test]
    fn what_failed_comes_again_after_all_others_and_is_as_old_as_before() {
        let mut debts = debts(&[7, 5, 6]);
        assert_eq!(give(&mut debts), Some((7, 1)));
        debts.take_back(7);
        assert_eq!([(); 3].map(|()| give(&mut debts)), [Some((5, 2)), Some((6, 3)), Some((7, 1))]);
        assert_eq!(debts.oldest(), Some(NOW.plus_ms(1)));
    }

    #[test]
    fn a_change_is_over_when_its_mark_is_durable_and_not_before() {
        let mut debts = debts(&[7, 5]);
        give(&mut debts);
        debts.mark(7, 10);
        assert!(debts.settle(9).is_none() && debts.contains(7));
        let (hash, owed) = debts.settle(10).unwrap();
        assert_eq!((hash, owed.sequence, debts.contains(7), debts.len()), (7, 1, false, 1));
        assert!(debts.settle(10).is_none());
    }

    #[test]
    fn a_mark_of_a_change_that_was_replaced_or_marked_anew_ends_nothing() {
        let mut debts = debts(&[7, 5]);
        give(&mut debts);
        give(&mut debts);
        debts.mark(7, 10);
        debts.mark(5, 11);
        debts.change(&record(7, 12), NOW);
        debts.move_to(5, record(5, 13).place, 13);
        debts.mark(5, 14);
        assert!(debts.settle(13).is_none());
        assert_eq!(debts.settle(14).map(|(hash, owed)| (hash, owed.sequence, owed.id)), Some((5, 13, 2)));
        assert_eq!(give(&mut debts), Some((7, 12)));
    }

    #[test]
    fn the_bounds_hold_for_what_grows_and_not_for_what_replaces_as_much() {
        let mut debts = debts(&[7, 5]);
        assert!(debts.has_room(6, 64, 192) && !debts.has_room(6, 80, 192));
        assert!(debts.has_room(7, 64, 10) && !debts.has_room(7, 80, 10), "beyond the bound, after a smaller disk");
        for hash in 8..DIRTY_RECORDS_MAX as u64 + 6 {
            debts.change(&record(hash, hash), NOW);
        }
        assert_eq!(debts.len(), DIRTY_RECORDS_MAX);
        assert!(!debts.has_room(6, 64, u64::MAX) && debts.has_room(7, 80, u64::MAX));
        let held_bytes = debts.held_bytes() / DIRTY_RECORDS_MAX;
        assert!((100..250).contains(&held_bytes), "{held_bytes} bytes for each");
    }
}
