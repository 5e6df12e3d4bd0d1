//! What the log does for write mode `back`: it keeps changes that the store does not have, and hands them out to whoever
//! uploads them.
//!
//! ```text
//!   put_dirty, delete_dirty ──▶ durable ──▶ acknowledged
//!            │
//!            └──▶ next_debt ──▶ read_debt ──▶ [upload] ──▶ debt_done ──▶ a mark, durable ──▶ the key has no debt
//!                     ▲                           └──────▶ debt_failed ──┐
//!                     └──────────────────────────────────────────────────┘
//! ```
//! Why the mark must be durable before anybody writes to the key in the store by other means: if a crash took it, the
//! next start would upload the older value again, over the newer one. So whoever writes through asks
//! [`Log::has_debt`] first.

use std::{fmt, future::Future, rc::Rc};

use bytes::Bytes;
use milena_proto::{
    key::{Key, KeyRef},
    placement::KeyHash,
};

use super::{
    Copy, Device, DeviceError, Log, LogError, Position, SEARCHES_MAX,
    debts::Owed,
    index::Place,
    read::Unreadable,
    record::{Body, Record, Sequence, entry_in},
    state::{Located, Refused},
};
use crate::{Entry, Timestamp};

/// What the log knows of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing, or nothing that can be read: the store knows.
    Nothing,
    /// It has this value; only where it is not believed any more the store knows better.
    Copy(Copy),
    /// It has no value, and the store does not know yet: it was deleted, or the value's life has ended before its upload.
    Deleted,
    /// A change of it, or of another key with the same hash, waits for the store and cannot be read now. What the store
    /// has may be older than what was acknowledged.
    Unreadable,
}

impl Known {
    /// The copy, if that is what is known.
    #[must_use]
    pub fn into_copy(self) -> Option<Copy> {
        match self {
            Self::Copy(copy) => Some(copy),
            Self::Nothing | Self::Deleted | Self::Unreadable => None,
        }
    }
}

/// A change that the store does not have, given out to be uploaded: to be given back, to [`Log::debt_done`] or
/// [`Log::debt_failed`]. Until then no other change of its key is given out. Names the change, wherever its record goes.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a debt that is not given back is not uploaded before the next start"]
pub struct Debt {
    hash: KeyHash,
    id: Sequence,
    record_bytes: u32,
}

/// What is to be uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key has this entry; also where its life has ended.
    Put(Entry),
    /// The key has none.
    Delete,
}

/// Why a debt could not be read. It stays one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebtError {
    /// A newer change of the key has come, which is given out when this one is given back.
    Superseded,
    /// The disk could not read it.
    Device(DeviceError),
    /// It is not what was written.
    Corrupt,
}

/// What waits for the store under a key's hash.
pub(super) enum Waiting {
    Nothing,
    /// A change of the key: its id, and its record.
    Own(Sequence, Bytes),
    /// A change of another key with the same hash.
    Other,
    /// Nobody can say whose; later, if too many reads are in the air.
    Unreadable {
        is_busy: bool,
    },
}

impl Debt {
    /// The hash of its key.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        self.hash
    }

    /// Where it stands in the order of all changes, for [`Log::durable`]. Debts need not be durable to be uploaded.
    #[must_use]
    pub fn position(&self) -> Position {
        Position(self.id)
    }

    /// Bytes of its record, which is what reading it takes: key, version and value, and up to 55 more.
    #[must_use]
    pub fn record_bytes(&self) -> u32 {
        self.record_bytes
    }
}

impl<D: Device> Log<D> {
    /// Appends `entry` under `key` as something that the store does not have, replacing what was there. Waits while the
    /// buffers are full. Until [`Log::debt_done`] it is neither evicted nor forgotten, and answered whatever
    /// `believed_until` says, which is for the time afterwards; it is kept in whole seconds.
    ///
    /// A newer change of the key takes the place of one that waits, which is never uploaded then. A future that is
    /// dropped has written nothing. Reads the disk where the index, or the debts, have something under the key's hash.
    ///
    /// # Errors
    /// After all of them everything is as it was: [`LogError::NotKept`], [`LogError::DirtyFull`], [`LogError::Owed`] where
    /// a change of another key with the same hash waits (see [`Log::has_debt`]), [`LogError::Unreadable`],
    /// [`LogError::Full`] and [`LogError::Offline`].
    pub async fn put_dirty(
        self: Rc<Self>,
        key: Key,
        entry: Entry,
        believed_until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Position, LogError> {
        self.mention(now);
        loop {
            let located = self.locate_to_owe(key.as_ref()).await?;
            let done = self.state.borrow_mut().put_dirty(&located, key.as_ref(), &entry, believed_until, now);
            if let Some(answer) = self.settle_dirty(done).await {
                return answer;
            }
        }
    }

    /// Appends that `key` has no value, which the store does not know; also where the log has nothing of the key, as the
    /// store may have it. Otherwise as [`Log::put_dirty`].
    ///
    /// # Errors
    /// As [`Log::put_dirty`], but for [`LogError::NotKept`].
    pub async fn delete_dirty(self: Rc<Self>, key: Key, now: Timestamp) -> Result<Position, LogError> {
        self.mention(now);
        loop {
            let located = self.locate_to_owe(key.as_ref()).await?;
            let done = self.state.borrow_mut().delete_dirty(&located, key.as_ref(), now);
            if let Some(answer) = self.settle_dirty(done).await {
                return answer;
            }
        }
    }

    /// Whether a change of a key with this hash waits for the store, or is there and its mark is not durable yet. Until
    /// then nobody may write to the key in the store but the uploader. Where the disk was given up marks cannot be written,
    /// so what was a debt then stays one until the next start. O(1).
    #[must_use]
    pub fn has_debt(&self, hash: KeyHash) -> bool {
        self.state.borrow().debts.contains(hash)
    }

    /// Gives out the oldest change that nobody is uploading. One upload of a key at a time: a change that comes meanwhile
    /// is given out afterwards. A change that replaced one which waited has its turn. O(log debts).
    pub fn next_debt(&self) -> Option<Debt> {
        let (hash, owed) = self.state.borrow_mut().give_debt()?;
        Some(Debt { hash, id: owed.id, record_bytes: owed.record_bytes })
    }

    /// Waits until [`Log::next_debt`] may have one more, or had since this was last heard. For one who waits at a time;
    /// the future may be dropped.
    pub fn more_debts(&self) -> impl Future<Output = ()> {
        self.debts.heard()
    }

    /// Wakes who waits for more debts, as if there were one.
    pub fn wake_uploader(&self) {
        self.debts.ring();
    }

    /// Reads a debt, from memory or with one read of the disk; also where the disk is not written any more. The entry's
    /// value and version are parts of one buffer. The future may be dropped.
    ///
    /// # Errors
    /// [`DebtError`]; the debt is still to be given back.
    pub async fn read_debt(self: Rc<Self>, debt: &Debt) -> Result<(Key, Change), DebtError> {
        loop {
            let owed = self.state.borrow().owed(debt.hash, debt.id).copied().ok_or(DebtError::Superseded)?;
            let read = self.read_owed(owed.place).await;
            // Reclaiming has moved it while we read, which it does not do often.
            let is_there = self.state.borrow().owed(debt.hash, debt.id).is_some_and(|now| now.place == owed.place);
            if !is_there {
                continue;
            }
            let change = read.and_then(|bytes| change_in(&bytes, debt.hash, &owed).ok_or(DebtError::Corrupt));
            match change {
                Err(DebtError::Device(error)) => self.note_unreadable(owed.place, Some(error)),
                Err(DebtError::Corrupt) => self.note_unreadable(owed.place, None),
                Err(DebtError::Superseded) | Ok(_) => {}
            }
            return change;
        }
    }

    /// The store has what was given out. Appends a mark that says so, and waits until it is durable, sharing the sync with
    /// others; only then the key has no debt. Where a newer change has replaced it there is nothing to mark, and that one
    /// is given out. Must run to its end.
    ///
    /// # Errors
    /// [`LogError::Full`]: the mark has no room, or the log stops; the debt will be given out again.
    /// [`LogError::Offline`]: there will be no mark. The debt is not given out again before the next start, but it stays one.
    pub async fn debt_done(self: Rc<Self>, debt: Debt) -> Result<(), LogError> {
        loop {
            let marked = self.state.borrow_mut().mark_debt(debt.hash, debt.id);
            let done = match marked {
                Ok(None) => {
                    self.debts.ring();
                    return Ok(());
                }
                Ok(Some(mark)) => Ok(mark),
                Err(refused) => Err(refused),
            };
            match self.settle(done).await {
                Some(Ok(_)) => break,
                Some(Err(error)) => {
                    if error != LogError::Offline {
                        self.debt_failed(debt);
                    }
                    return Err(error);
                }
                None => {}
            }
        }
        loop {
            let mark = self.state.borrow().mark_of(debt.hash, debt.id);
            let Some(mark) = mark else { break };
            self.until_durable(mark).await?;
        }
        // Its record was copied, and the mark of the copy had no room.
        if self.state.borrow().owed(debt.hash, debt.id).is_some() { Err(LogError::Full) } else { Ok(()) }
    }

    /// What was given out is not in the store: it is given out again, after all others; or what has replaced it is.
    #[expect(clippy::needless_pass_by_value, reason = "who has given it back must not have it any more")]
    pub fn debt_failed(&self, debt: Debt) {
        self.state.borrow_mut().take_debt_back(debt.hash);
        self.debts.ring();
    }

    /// What waits for the store under the key's hash, and whether it is the key's own.
    pub(super) async fn waiting(&self, key: KeyRef<'_>) -> Waiting {
        for _ in 0..SEARCHES_MAX {
            let Some(owed) = self.state.borrow().debts.get(key.hash()).copied() else { return Waiting::Nothing };
            let read = self.read(key.hash(), owed.place).await;
            let is_there = self.state.borrow().owed(key.hash(), owed.id).is_some_and(|now| now.place == owed.place);
            match read {
                _ if !is_there => {}
                Ok(bytes) => match record_in(&bytes, key.hash(), &owed) {
                    Some(record) if record.is_of(key) => return Waiting::Own(owed.id, bytes),
                    Some(_) => return Waiting::Other,
                    None => return self.unreadable(owed.place, None),
                },
                Err(Unreadable::Busy) => return Waiting::Unreadable { is_busy: true },
                Err(Unreadable::Device(error)) => return self.unreadable(owed.place, Some(error)),
                Err(Unreadable::Corrupt) => return self.unreadable(owed.place, None),
            }
        }
        Waiting::Unreadable { is_busy: true }
    }

    fn unreadable(&self, place: Place, error: Option<DeviceError>) -> Waiting {
        self.note_unreadable(place, error);
        Waiting::Unreadable { is_busy: false }
    }

    /// What a change that waits says of its key.
    pub(super) fn take_out_owed(&self, bytes: &Bytes, now: Timestamp) -> Known {
        let (record, _) = Record::parse(bytes).expect("it was parsed before");
        if matches!(record.body, Body::DirtyDelete { .. }) {
            return Known::Deleted;
        }
        match entry_in(bytes, &record.body) {
            Some(entry) if entry.is_expired(now) => Known::Deleted,
            Some(entry) => Known::Copy(Copy { entry, believed_until: None, is_dirty: true }),
            None => {
                self.state.borrow_mut().counts.corrupt += 1;
                Known::Unreadable
            }
        }
    }

    /// As [`Log::locate`] for a dirty change, which may replace another of its key alone.
    async fn locate_to_owe(&self, key: KeyRef<'_>) -> Result<Located, LogError> {
        if self.state.borrow().is_offline() {
            return Err(LogError::Offline);
        }
        let owed = match self.waiting(key).await {
            Waiting::Nothing => None,
            Waiting::Own(id, _) => Some(id),
            Waiting::Other => return Err(LogError::Owed),
            Waiting::Unreadable { is_busy: true } => return Err(LogError::Full),
            Waiting::Unreadable { is_busy: false } => return Err(LogError::Unreadable),
        };
        Ok(Located { owed, ..self.locate(key).await? })
    }

    async fn settle_dirty(&self, done: Result<Sequence, Refused>) -> Option<Result<Position, LogError>> {
        let is_done = done.is_ok();
        let answer = self.settle(done).await;
        if is_done {
            self.debts.ring();
        }
        answer
    }

    /// The bytes of a record that waits for the store. Not counted among the reads of Gets: uploads have a bound of their own.
    async fn read_owed(&self, place: Place) -> Result<Bytes, DebtError> {
        if let Some(record) = self.buffered(place).or_else(|| self.resident(place)) {
            return Ok(record);
        }
        let read = self.device.read(place.segment, place.offset, self.read_len(place)).await;
        self.state.borrow_mut().counts.reads_ring += 1;
        self.checked(place, &read.map_err(DebtError::Device)?).map_err(|_| DebtError::Corrupt)
    }
}

/// The record of a change, if that is what the bytes are.
fn record_in<'a>(bytes: &'a Bytes, hash: KeyHash, owed: &Owed) -> Option<Record<'a>> {
    let (record, _) = Record::parse(bytes).ok()?;
    let is_it = (record.key_hash, record.sequence) == (hash, owed.sequence) && record.kind().is_dirty();
    is_it.then_some(record)
}

fn change_in(bytes: &Bytes, hash: KeyHash, owed: &Owed) -> Option<(Key, Change)> {
    let record = record_in(bytes, hash, owed)?;
    let (bucket, name, change) = match record.body {
        Body::Put { bucket, name, .. } => (bucket, name, Change::Put(entry_in(bytes, &record.body)?)),
        Body::DirtyDelete { bucket, name } => (bucket, name, Change::Delete),
        Body::Tombstone { .. } | Body::Mark { .. } => return None,
    };
    Some((KeyRef::parse(bucket, name).ok()?.to_key(), change))
}

impl fmt::Display for DebtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superseded => f.write_str("a newer change of the key has come"),
            Self::Device(error) => error.fmt(f),
            Self::Corrupt => f.write_str("the record is not what was written"),
        }
    }
}

impl std::error::Error for DebtError {}
