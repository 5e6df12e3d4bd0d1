//! Which entries end when, so that those that have ended are found without looking at the others.
//!
//! ```text
//!   bucket = expires_ms / BUCKET_MS        17 ─▶ [slot, slot, slot]      a bucket is due when its last millisecond
//!                                          18 ─▶ [slot]                  has passed; slots are noted, never unnoted
//!                                          40 ─▶ [slot, slot]
//! ```
//! A note may be out of date: its slot may be free by then, or hold another entry. Whoever takes a note checks it. When
//! more notes are out of date than are not, all are checked and the useless ones dropped: O(1) for each note on average.

use std::collections::BTreeMap;

use crate::Timestamp;

/// How finely the end of an entry is remembered; an entry is a miss from its very millisecond on, wherever it stands.
const BUCKET_MS: u64 = 4096;

/// This many notes may be out of date without anybody caring.
const OUTDATED_MIN: usize = 1024;

/// What a bucket costs: its node in the tree, its vector, the allocator's rounding.
const BUCKET_OVERHEAD_BYTES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Lives {
    buckets: BTreeMap<u64, Vec<u32>>,
    noted_count: usize,
    /// Entries that have an end.
    living_count: usize,
}

/// The bucket of an end.
pub(super) fn bucket(expires: Timestamp) -> u64 {
    expires.0 / BUCKET_MS
}

impl Lives {
    /// Memory taken.
    pub(super) fn held_bytes(&self) -> usize {
        // Vectors grow by doubling: a quarter of them is unused on average.
        self.noted_count * size_of::<u32>() * 3 / 2 + self.buckets.len() * BUCKET_OVERHEAD_BYTES
    }

    /// Notes that the entry in `slot` ends at `expires`.
    pub(super) fn note(&mut self, slot: u32, expires: Timestamp) {
        self.buckets.entry(bucket(expires)).or_default().push(slot);
        self.noted_count += 1;
        self.living_count += 1;
    }

    /// An entry that had an end is gone; its note stays.
    pub(super) fn forget(&mut self) {
        self.living_count -= 1;
    }

    pub(super) fn is_mostly_outdated(&self) -> bool {
        self.noted_count > 2 * self.living_count + OUTDATED_MIN
    }

    /// Drops the notes of which `is_true` says that they are not: the slot does not hold an entry of that bucket.
    pub(super) fn check(&mut self, mut is_true: impl FnMut(u32, u64) -> bool) {
        self.buckets.retain(|&bucket, slots| {
            slots.retain(|&slot| is_true(slot, bucket));
            slots.sort_unstable();
            slots.dedup(); // A slot that was used twice for the same bucket.
            slots.shrink_to_fit();
            !slots.is_empty()
        });
        self.noted_count = self.buckets.values().map(Vec::len).sum();
    }

    /// Takes a note of a bucket that is due at `now`.
    pub(super) fn pop_due(&mut self, now: Timestamp) -> Option<u32> {
        let mut first = self.buckets.first_entry()?;
        if *first.key() >= bucket(now) {
            return None;
        }
        let slot = first.get_mut().pop().expect("no bucket is empty");
        if first.get().is_empty() {
            first.remove();
        }
        self.noted_count -= 1;
        Some(slot)
    }
}
