//! Writes that are acknowledged when the log has them, and uploaded to the store later.
//!
//! ```text
//!   put ── slow down? ── the key's turn ── condition ── log: dirty ── memory ──▶ ack=MEMORY: answer
//!                                                         │  └─ synced ────────▶ ack=DISK, the default: answer
//!                                                         ▼
//!                                       uploader.rs:    debt ── store ── mark, synced ──▶ ack=S3: answer
//!
//!   what the log cannot take    after the key's debt, if it has one ──▶ through.rs
//! ```
//! As long as the log owes the store a change of a key, the log is the truth for it: it is answered from there however
//! old it is, and nobody but the uploader writes to that key in the store.
//!
//! Half of what may wait is taken at full speed. From there on a write waits until an upload has ended or the uploader's
//! clock ticks, so that callers feel that the store is behind before they are refused.

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    rc::Rc,
};

use ahash::RandomState;
use futures::channel::oneshot;
use milena_net::fault::Fault;
use milena_proto::{cache_server::Ack, key::Key, placement::KeyHash};
use milena_storage::{
    Cause, Condition, Entry, Error, Found, Operation, Put, Tier, Timestamp, Version,
    log::{Change, Debt, DebtError, Disk, Known, Log, LogError, Position},
    memory::Lookup,
};

use super::{Limit, Refusal, Shard, Write, check_condition, is_believed};

/// Of what may wait for the store, the share in percent above which writes are slowed down.
const SLOW_ABOVE_PERCENT: u64 = 50;

/// Writes that may be held back at once; more are refused.
pub const SLOWED_MAX: usize = 4_096;

/// Writes that may wait for their upload at once; more are refused.
pub const UPLOAD_WAITERS_MAX: usize = 16_384;

/// Who waits for the store to catch up.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    /// By hash of the key: callers that want their change, or all before it, to be in the store.
    waiting: HashMap<KeyHash, Vec<Waiter>, RandomState>,
    waiting_count: usize,
    /// Writes that are held back, oldest first.
    slowed: VecDeque<oneshot::Sender<()>>,
    /// Who waits for all of it, when the node stops.
    until_all: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Waiter {
    upto: Position,
    tell: oneshot::Sender<Result<(), Error>>,
}

/// What became of an upload.
#[derive(Debug)]
pub enum Uploaded {
    /// The store has it.
    Done,
    /// A newer change has taken its place.
    Superseded,
    /// The store does not have it, or nobody knows; it will be given out again.
    Failed(Error),
}

impl<T: Tier + 'static> Shard<T> {
    pub(super) async fn put_back(
        &self,
        (store, log): (&T, &Rc<Log<Disk>>),
        key: &Key,
        write: Write,
        now: Timestamp,
    ) -> Result<Version, Refusal> {
        self.slow_down(log).await?;
        let turn = self.inflight.begin_write(key).map_err(Refusal::Limit)?.await;
        self.absences.borrow_mut().forget(key);
        self.check_back(store, key, &write.condition, Operation::Put, now).await?;

        let believed_until = self.believed_until(now);
        let entry = Entry { value: write.value.clone(), version: self.own_version(), expires: write.expires };
        let logged = match self.is_settling.get() {
            false => taken(Rc::clone(log).put_dirty(key.clone(), entry.clone(), believed_until, now).await)?,
            true => None,
        };
        let Some(position) = logged else {
            return self.put_in_turn(store, key, Write { condition: Condition::Always, ..write }, turn, now).await;
        };
        self.memory.borrow_mut().insert(key.as_ref(), &entry, believed_until, now);
        drop(turn);
        self.until_acknowledged(log, key, position, write.ack).await?;
        Ok(entry.version)
    }

    pub(super) async fn delete_back(
        &self,
        (store, log): (&T, &Rc<Log<Disk>>),
        key: &Key,
        condition: Condition,
        ack: Ack,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        self.slow_down(log).await?;
        let turn = self.inflight.begin_write(key).map_err(Refusal::Limit)?.await;
        self.absences.borrow_mut().forget(key);
        self.check_back(store, key, &condition, Operation::Delete, now).await?;
        let logged = match self.is_settling.get() {
            false => taken(Rc::clone(log).delete_dirty(key.clone(), now).await)?,
            true => None,
        };
        let Some(position) = logged else {
            return self.delete_in_turn(store, key, Condition::Always, turn, now).await;
        };
        self.memory.borrow_mut().remove(key.as_ref());
        self.absences.borrow_mut().remember(key, now);
        drop(turn);
        self.until_acknowledged(log, key, position, ack).await
    }

    /// Whether a condition holds: against the log while it owes the store a change of the key, else against the store.
    async fn check_back(
        &self,
        store: &T,
        key: &Key,
        condition: &Condition,
        operation: Operation,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        if *condition == Condition::Always {
            return Ok(());
        }
        let known = match self.look_up(key.as_ref(), now) {
            Lookup::Hit(entry) => return check_condition(Some(&entry.version), condition, operation),
            Lookup::Stale(entry) => Some(entry.version),
            Lookup::Miss => None,
        };
        let known = match self.look_in_log(key, known.is_some(), now).await {
            Known::Copy(copy) if is_believed(&copy, now) => {
                return check_condition(Some(&copy.entry.version), condition, operation);
            }
            Known::Deleted => return check_condition(None, condition, operation),
            Known::Unreadable => return Err(unreadable(operation)),
            Known::Copy(copy) => Some(copy.entry.version),
            Known::Nothing => known,
        };
        let found = match store.get(key, known.as_ref(), now).await.map_err(Refusal::Store)? {
            Found::Entry(entry) => Some(entry.version),
            Found::Unchanged => known,
            Found::Absent => None,
        };
        check_condition(found.as_ref(), condition, operation)
    }

    /// Holds a write back while much waits for the store. Nothing has been done yet when it is dropped here.
    async fn slow_down(&self, log: &Log<Disk>) -> Result<(), Refusal> {
        let (bytes, bytes_max) = log.dirty_bytes();
        if bytes * 100 < bytes_max * SLOW_ABOVE_PERCENT {
            return Ok(());
        }
        let (tell, told) = oneshot::channel();
        {
            let slowed = &mut self.uploads.borrow_mut().slowed;
            if slowed.len() >= SLOWED_MAX {
                slowed.retain(|write| !write.is_canceled());
            }
            if slowed.len() >= SLOWED_MAX {
                return Err(Refusal::Limit(Limit::Uploads));
            }
            slowed.push_back(tell);
        }
        self.stats.borrow_mut().writes_slowed += 1;
        log.wake_uploader(); // It looks at its clock from now on.
        // Whoever could tell is gone: the core stops, and the write is refused further on.
        let _ = told.await;
        Ok(())
    }

    /// Lets `count` of the writes go on that are held back.
    pub(crate) fn release_slowed(&self, count: usize) {
        let released: Vec<_> = {
            let slowed = &mut self.uploads.borrow_mut().slowed;
            let count = count.min(slowed.len());
            slowed.drain(..count).collect()
        };
        for write in released {
            // Who has gone is held back no more.
            let _ = write.send(());
        }
    }

    /// Whether writes are held back.
    pub(crate) fn has_slowed(&self) -> bool {
        !self.uploads.borrow().slowed.is_empty()
    }

    async fn until_acknowledged(
        &self,
        log: &Rc<Log<Disk>>,
        key: &Key,
        position: Position,
        ack: Ack,
    ) -> Result<(), Refusal> {
        match ack {
            Ack::Memory => Ok(()),
            Ack::Default | Ack::Disk => self.durable(log, position).await,
            Ack::S3 => self.until_uploaded(log, key, position).await.map_err(|error| {
                let text = format!("{error}; this node has the write and will try again");
                Refusal::Store(Error { cause: Cause::OutcomeUnknown(text.into()), ..error })
            }),
        }
    }

    /// Waits until the log owes the store no change of the key, so that the next may go there without it.
    pub(super) async fn until_settled(&self, key: &Key) -> Result<(), Refusal> {
        let Some(log) = &self.log else { return Ok(()) };
        while log.has_debt(key.hash()) {
            if log.is_offline() {
                return Err(Refusal::DiskFailed { is_unknown: false }); // It could not be told any more.
            }
            self.until_uploaded(log, key, Position::LAST).await.map_err(|error| {
                let text = format!("nothing was written, as an earlier write of the key cannot be uploaded: {error}");
                Refusal::Store(Error { cause: Cause::Unavailable(text.into()), ..error })
            })?;
        }
        Ok(())
    }

    /// Waits until the store has the key's changes up to `upto`, or has failed to take one of them.
    async fn until_uploaded(&self, log: &Log<Disk>, key: &Key, upto: Position) -> Result<(), Error> {
        let answer = {
            let mut uploads = self.uploads.borrow_mut();
            if !log.has_debt(key.hash()) {
                return Ok(());
            }
            if uploads.waiting_count >= UPLOAD_WAITERS_MAX {
                return Err(Error { operation: Operation::Put, cause: Cause::Busy });
            }
            let (tell, answer) = oneshot::channel();
            uploads.waiting.entry(key.hash()).or_default().push(Waiter { upto, tell });
            uploads.waiting_count += 1;
            answer
        };
        let stopped = || Error { operation: Operation::Put, cause: Cause::Unavailable("the node is stopping".into()) };
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// From now on every write goes to the store before it is acknowledged, so that what waits for it becomes less; returns
    /// when nothing does. For one caller, which may drop the future.
    pub async fn settle(&self) {
        self.is_settling.set(true);
        self.release_slowed(usize::MAX);
        let done = {
            let mut uploads = self.uploads.borrow_mut();
            if self.owes_nothing() {
                return;
            }
            let (tell, done) = oneshot::channel();
            uploads.until_all = Some(tell);
            done
        };
        // Nobody left who could tell is the end too.
        let _ = done.await;
    }

    fn owes_nothing(&self) -> bool {
        self.log.as_ref().is_none_or(|log| log.dirty_bytes().0 == 0)
    }

    /// The oldest change that the log owes the store and nobody is uploading; for [`Shard::upload`].
    pub(crate) fn next_debt(&self) -> Option<Debt> {
        self.log.as_ref().filter(|_| self.store.is_some())?.next_debt()
    }

    /// Waits until there may be one more.
    pub(crate) async fn more_debts(&self) {
        match &self.log {
            Some(log) => log.more_debts().await,
            None => pending().await,
        }
    }

    /// Uploads one change. Must run to its end.
    pub async fn upload(self: Rc<Self>, debt: Debt, now: Timestamp) -> Uploaded {
        let (Some(store), Some(log)) = (&self.store, &self.log) else { unreachable!("a debt has a log and a store") };
        let (hash, position) = (debt.hash(), debt.position());
        let done = match Rc::clone(log).read_debt(&debt).await {
            // Were the store to have what a crash takes from the disk, an older change that the disk still has would be
            // uploaded over it.
            Ok(_) if Rc::clone(log).durable(position).await.is_err() => Err(not_durable()),
            Ok((key, change)) => upload(store, &key, change, now).await,
            Err(DebtError::Superseded) => {
                log.debt_failed(debt);
                return Uploaded::Superseded;
            }
            Err(DebtError::Device(_) | DebtError::Corrupt) => Err(unreadable_debt()),
        };
        match &done {
            Ok(()) => {
                self.stats.borrow_mut().uploads_done += 1;
                // Without its mark the store has it all the same, and the next start will upload it again.
                let _ = Rc::clone(log).debt_done(debt).await;
            }
            Err(_) => {
                self.stats.borrow_mut().uploads_failed += 1;
                log.debt_failed(debt);
            }
        }
        self.tell_of_upload(hash, position, &done);
        if self.owes_nothing()
            && let Some(tell) = self.uploads.borrow_mut().until_all.take()
        {
            // Whose time is up waits no more.
            let _ = tell.send(());
        }
        match done {
            Ok(()) => {
                self.release_slowed(1);
                Uploaded::Done
            }
            Err(error) => Uploaded::Failed(error),
        }
    }

    fn tell_of_upload(&self, hash: KeyHash, upto: Position, done: &Result<(), Error>) {
        let told: Vec<Waiter> = {
            let uploads = &mut *self.uploads.borrow_mut();
            let Some(waiting) = uploads.waiting.get_mut(&hash) else { return };
            // Those who wait for all changes hear of each, and look whether it was the last.
            let told = waiting.extract_if(.., |waiter| waiter.upto <= upto || waiter.upto == Position::LAST).collect();
            if waiting.is_empty() {
                uploads.waiting.remove(&hash);
            }
            told
        };
        self.uploads.borrow_mut().waiting_count -= told.len();
        for waiter in told {
            // Who has gone does not want to know.
            let _ = waiter.tell.send(done.clone());
        }
    }
}

/// Tells the store of one change.
async fn upload<T: Tier>(store: &T, key: &Key, change: Change, now: Timestamp) -> Result<(), Error> {
    match change {
        // The store may have an older value, whose life has not ended.
        Change::Put(entry) if entry.is_expired(now) => store.delete(key, Condition::Always).await,
        Change::Put(Entry { value, expires, .. }) => {
            store.put(key, Put { value, expires, condition: Condition::Always }).await.map(drop)
        }
        Change::Delete => store.delete(key, Condition::Always).await,
    }
}

/// Where the log has put a change; `None` where it cannot take it and the store must, at once.
fn taken(logged: Result<Position, LogError>) -> Result<Option<Position>, Refusal> {
    match logged {
        Ok(position) => Ok(Some(position)),
        Err(LogError::NotKept | LogError::Owed | LogError::Offline) => Ok(None),
        Err(LogError::DirtyFull) => Err(Refusal::Limit(Limit::Uploads)),
        Err(LogError::Full) => Err(Refusal::Limit(Limit::Log)),
        Err(LogError::Unreadable) => Err(unreadable(Operation::Put)),
        Err(LogError::Withdrawn) => Err(Refusal::Fault(Fault::new("the log has withdrawn a write"))),
    }
}

/// The log has a change of the key that nobody can read now, and the store has less.
pub(super) fn unreadable(operation: Operation) -> Refusal {
    let text = "this node's disk cannot read a write that the store does not have yet";
    Refusal::Store(Error { operation, cause: Cause::Unavailable(text.into()) })
}

fn not_durable() -> Error {
    let text = "this node's disk failed before it had synced a write, which the store must not have before";
    Error { operation: Operation::Put, cause: Cause::Unavailable(text.into()) }
}

fn unreadable_debt() -> Error {
    let text = "this node's disk cannot read a write that the store does not have; its key is UNAVAILABLE until it can";
    Error { operation: Operation::Put, cause: Cause::Corrupt(text.into()) }
}
