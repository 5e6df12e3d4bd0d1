//! Keys that the store was just found not to have: for a moment, nobody asks it again.

use std::collections::{HashMap, VecDeque};

use ahash::RandomState;
use milena_proto::key::Key;
use milena_storage::Timestamp;

/// Absent keys that are remembered; the ones remembered longest go first. At 1 KiB a key, 8 MiB at most.
pub(crate) const ABSENCES_MAX: usize = 8_192;

/// The keys known to be absent, each until its moment.
#[derive(Debug)]
pub(crate) struct Absences {
    keys: HashMap<Key, Moment, RandomState>,
    /// In the order in which they were remembered, some forgotten since.
    order: VecDeque<(Key, Moment)>,
    remembered_ms: u64,
}

/// When an absence was noticed.
type Moment = Timestamp;

impl Absences {
    /// Remembers each absence for `remembered_ms`; 0 = not at all.
    pub(crate) fn new(remembered_ms: u64) -> Self {
        Self { keys: HashMap::default(), order: VecDeque::new(), remembered_ms }
    }

    /// Whether `key` was found absent a moment ago. A clock that has jumped, in either direction, ends the moment.
    pub(crate) fn contains(&mut self, key: &Key, now: Timestamp) -> bool {
        let Some(&since) = self.keys.get(key) else { return false };
        let is_fresh = since <= now && now < since.plus_ms(self.remembered_ms);
        if !is_fresh {
            self.keys.remove(key);
        }
        is_fresh
    }

    /// Remembers that there was nothing under `key` at `now`.
    pub(crate) fn remember(&mut self, key: &Key, now: Timestamp) {
        if self.remembered_ms == 0 {
            return;
        }
        if self.order.len() >= ABSENCES_MAX {
            let (oldest, since) = self.order.pop_front().expect("it is full");
            if self.keys.get(&oldest) == Some(&since) {
                self.keys.remove(&oldest);
            }
        }
        self.keys.insert(key.clone(), now);
        self.order.push_back((key.clone(), now));
    }

    /// Forgets all of them: somebody else may have written.
    pub(crate) fn forget_all(&mut self) {
        self.keys.clear();
        self.order.clear();
    }

    /// Forgets `key`: somebody writes it.
    pub(crate) fn forget(&mut self, key: &Key) {
        self.keys.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use milena_proto::key::KeyRef;

    use super::*;

    fn key(number: usize) -> Key {
        KeyRef::parse(b"default", number.to_string().as_bytes()).unwrap().to_key()
    }

    #[test]
    fn an_absence_ends_after_its_moment_and_when_the_clock_jumps_back() {
        let mut absences = Absences::new(1000);
        for (later, is_known) in [(5_000, true), (5_999, true), (6_000, false), (5_999, false)] {
            if later == 5_000 {
                absences.remember(&key(1), Timestamp(5_000));
            }
            assert_eq!(absences.contains(&key(1), Timestamp(later)), is_known, "at {later}");
        }
        absences.remember(&key(1), Timestamp(5_000));
        assert!(!absences.contains(&key(1), Timestamp(4_999)));
    }

    #[test]
    fn the_absences_remembered_longest_make_room() {
        let mut absences = Absences::new(1000);
        let now = Timestamp(0);
        for number in 0..=ABSENCES_MAX {
            absences.remember(&key(number), now);
        }
        assert!(!absences.contains(&key(0), now));
        assert!(absences.contains(&key(1), now) && absences.contains(&key(ABSENCES_MAX), now));
        assert!(absences.order.len() <= ABSENCES_MAX && absences.keys.len() <= ABSENCES_MAX);
    }

    #[test]
    fn nothing_is_remembered_for_no_time() {
        let mut absences = Absences::new(0);
        absences.remember(&key(1), Timestamp(0));
        assert!(!absences.contains(&key(1), Timestamp(0)));
        assert!(absences.keys.is_empty());
    }
}
