//! How a log reads: candidates from the index, their records from wherever they are, the full key compared.
//!
//! ```text
//!   candidates ─▶ each: waits for the disk? ─▶ in a page? ─▶ a read on the ring, shared ─▶ checksum, generation, key
//!              ─▶ of the key's own the newest; what cannot be read is told apart, and its segment suspected
//!   a change that waits for the store comes first: there is one for each hash, and it is read like a candidate
//! ```

use bytes::Bytes;
use futures::future::{FutureExt as _, Shared, WeakShared};
use milena_proto::{
    key::{Key, KeyRef},
    placement::KeyHash,
};

use super::{
    Copy, Device, DeviceError, Log, LogError, Reading, Trouble,
    index::Place,
    record::{Body, Record, Sequence, entry_in},
    state::Located,
};
use crate::Timestamp;

/// Reads of the disk in the air; beyond them a Get is a miss.
const READS_MAX: usize = 1024;

/// What a search for a key has found.
#[derive(Default)]
pub(super) struct Search {
    pub(super) candidates: Vec<Place>,
    pub(super) newest: Option<(Place, Bytes)>,
    pub(super) outdated: Vec<Place>,
    pub(super) unreadable: Vec<Place>,
    /// A candidate is not in the index any more.
    pub(super) has_moved: bool,
    /// A candidate was not looked at, because too many reads are in the air.
    pub(super) is_busy: bool,
}

impl Search {
    pub(super) fn located(self) -> Located {
        let Self { candidates, newest, outdated, unreadable, .. } = self;
        Located { candidates, current: newest.map(|(place, _)| place), outdated, unreadable, owed: None }
    }
}

/// The sequence of a record, if it is a put of `key`.
fn sequence_if_of(key: KeyRef<'_>, bytes: &[u8]) -> Option<Sequence> {
    let (record, _) = Record::parse(bytes).ok()?;
    (record.kind().is_put() && record.is_of(key)).then_some(record.sequence)
}

impl<D: Device> Log<D> {
    pub(super) fn take_out(&self, key: &Key, located: &Located, bytes: &Bytes, now: Timestamp) -> Option<Copy> {
        let mut state = self.state.borrow_mut();
        let (record, _) = Record::parse(bytes).expect("it was parsed before");
        let Body::Put { believed_until_s, .. } = record.body else { unreachable!("only puts are found") };
        let Some(entry) = entry_in(bytes, &record.body) else {
            state.counts.corrupt += 1; // Its checksum holds, so it was written like this, by another version of us.
            return None;
        };
        if entry.is_expired(now) {
            state.expire(located, key.hash());
            drop(state);
            self.work.ring();
            return None;
        }
        let place = located.current.expect("it was found there");
        state.index.note_hit(key.hash(), place);
        let believed_until = state.believed_until(record.sequence, believed_until_s);
        Some(Copy { entry, believed_until, is_dirty: false })
    }

    /// Looks at all candidates, and tells the key's records from others'.
    pub(super) async fn search(&self, key: KeyRef<'_>) -> Search {
        let candidates = self.state.borrow().candidates(key.hash());
        let mut search = Search::default();
        let mut newest_sequence = 0;
        for &place in &candidates {
            match self.read(key.hash(), place).await {
                Ok(bytes) => {
                    let Some(sequence) = sequence_if_of(key, &bytes) else { continue };
                    let (older, newer) = if sequence > newest_sequence {
                        newest_sequence = sequence;
                        (search.newest.take(), Some((place, bytes)))
                    } else {
                        (Some((place, bytes)), search.newest.take())
                    };
                    search.newest = newer;
                    search.outdated.extend(older.map(|(place, _)| place));
                }
                Err(_) if !self.state.borrow().index.contains(key.hash(), place) => search.has_moved = true,
                Err(Unreadable::Busy) => search.is_busy = true,
                Err(Unreadable::Device(error)) => {
                    search.unreadable.push(place);
                    self.note_unreadable(place, Some(error));
                }
                Err(Unreadable::Corrupt) => {
                    search.unreadable.push(place);
                    self.note_unreadable(place, None);
                }
            }
        }
        search.candidates = candidates;
        search
    }

    pub(super) async fn locate(&self, key: KeyRef<'_>) -> Result<Located, LogError> {
        let search = self.search(key).await;
        if search.is_busy { Err(LogError::Full) } else { Ok(search.located()) }
    }

    /// Counts and tells of a record that could not be read, because of `error`, or is not what was written; its segment is
    /// emptied soon.
    pub(super) fn note_unreadable(&self, place: Place, error: Option<DeviceError>) {
        let Place { segment, offset, .. } = place;
        self.notice(
            segment,
            match error {
                Some(error) => Trouble::Unreadable { segment, error },
                None => Trouble::Corrupt { segment, offset },
            },
        );
        let mut state = self.state.borrow_mut();
        state.suspect(place);
        match error {
            Some(_) => state.counts.read_errors += 1,
            None => state.counts.corrupt += 1,
        }
    }

    /// The record at `place`, checked: from what waits for the disk, from pages in memory, or by one read.
    pub(super) async fn read(&self, hash: KeyHash, place: Place) -> Result<Bytes, Unreadable> {
        if let Some(record) = self.buffered(place) {
            return Ok(record);
        }
        if let Some(record) = self.resident(place) {
            return Ok(record);
        }
        let reading = self.begin_read(place).ok_or(Unreadable::Busy)?;
        let answer = reading.await;
        self.reads.borrow_mut().remove(&place);
        let bytes = answer.map_err(Unreadable::Device)?;
        self.state.borrow_mut().counts.reads_ring += 1;
        let checked = self.checked(place, &bytes);
        // Reclaimed and written anew while we read: what came may be anything.
        if self.state.borrow().is_current(hash, place) { checked } else { Err(Unreadable::Corrupt) }
    }

    pub(super) fn buffered(&self, place: Place) -> Option<Bytes> {
        let mut state = self.state.borrow_mut();
        let record = state.buffered(place)?;
        state.counts.reads_buffered += 1;
        Some(record)
    }

    pub(super) fn resident(&self, place: Place) -> Option<Bytes> {
        let len = self.read_len(place);
        let bytes = self.device.read_resident(place.segment, place.offset, len)?;
        let record = self.checked(place, &bytes).ok()?;
        self.state.borrow_mut().counts.reads_resident += 1;
        Some(record)
    }

    pub(super) fn read_len(&self, place: Place) -> usize {
        let left = self.state.borrow().segment_bytes() - place.offset;
        place.record_bytes_max().min(left as usize)
    }

    /// One read of a place, shared by all who want it at the same time; `None` where there are too many reads.
    fn begin_read(&self, place: Place) -> Option<Shared<Reading>> {
        let mut reads = self.reads.borrow_mut();
        if let Some(shared) = reads.get(&place).and_then(WeakShared::upgrade) {
            self.state.borrow_mut().counts.reads_shared += 1;
            return Some(shared);
        }
        if reads.len() >= READS_MAX {
            // Those whose readers have all gone.
            reads.retain(|_, reading| reading.upgrade().is_some());
        }
        if reads.len() >= READS_MAX {
            return None;
        }
        let read = self.device.read(place.segment, place.offset, self.read_len(place));
        let shared = read.boxed_local().shared();
        reads.insert(place, shared.downgrade().expect("it has not ended"));
        Some(shared)
    }

    /// The record at the start of `bytes`, if it is one and of its segment's present generation.
    pub(super) fn checked(&self, place: Place, bytes: &Bytes) -> Result<Bytes, Unreadable> {
        let (record, record_bytes) = Record::decode(bytes).map_err(|_| Unreadable::Corrupt)?;
        if !self.state.borrow().is_of_generation(place, record.sequence) {
            return Err(Unreadable::Corrupt);
        }
        Ok(bytes.slice(..record_bytes))
    }
}

pub(super) enum Unreadable {
    /// Too many reads are in the air.
    Busy,
    /// The device failed.
    Device(DeviceError),
    /// Not what was written.
    Corrupt,
}
