//! What one core does for its keys: memory first, then the store; one fetch and one write of a key at a time.
//!
//! ```text
//!   get ── memory: hit ──────────────────────────────────────────────────▶ answer; no await, no copy, no lock
//!     └── absent a moment ago ───────────────────────────────────────────▶ a miss
//!     └── inflight ─┬ follow ── the leader's answer ─────────────────────▶ answer
//!                   └ lead ── log: a copy that is believed ── fill memory ▶ answer, to all followers too
//!                        └── store ── fill memory and log, if the lease holds ▶ the same
//!
//!   put ── inflight: the key's turn ── store ── log ── memory ──▶ answer   a write that has begun runs to its end
//! ```
//! Nothing in here spawns, reads a clock or blocks. What changes is in `RefCell`s that are borrowed inside synchronous
//! functions only; what an await may have changed is checked again after it, which is what leases are for.

mod alone;
pub mod back;
mod through;

use std::{
    cell::{Cell, RefCell, RefMut},
    fmt,
    future::{Future, ready},
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;
use futures::future::Either;
use milena_net::fault::Fault;
use milena_proto::{
    cache_server::Ack,
    key::{Key, KeyRef},
    placement,
};
use milena_storage::{
    Cause, Condition, Entry, Error, Found, Operation, Tier, Timestamp, Version,
    log::{self, Disk, Known, Log, Position},
    memory::{Figures, Lookup, Memory},
};

use self::back::Uploads;
use crate::{
    absences::Absences,
    inflight::{Inflight, Lease, News, ReadTurn, Rules},
    ownership::View,
    stats::Stats,
};

/// How long an absent key is remembered unless a setting says otherwise, in milliseconds.
pub const ABSENT_MS_DEFAULT: u64 = 1_000;

/// Tables that one walk compares; with more, every copy is doubted.
const TABLES_MAX: usize = 8;

/// Slots of memory that one [`Shard::walk_gained`] looks at: some hundred microseconds.
const WALK_SLOTS_MAX: u32 = 2_000;

/// Expired entries that one [`Shard::sweep`] drops at most: some hundred microseconds.
const SWEEP_ENTRIES_MAX: usize = 1_000;

/// What a shard is made with.
#[derive(Clone, Copy, Debug)]
pub struct ShardSettings {
    /// This core's number, and how many the node has.
    pub core: usize,
    /// How many cores the node has.
    pub core_count: usize,
    /// Memory for entries in bytes, everything included; at least [`milena_storage::memory::BUDGET_BYTES_MIN`].
    pub memory_bytes: usize,
    /// Entries in memory; 0 = by bytes only.
    pub entries_max: usize,
    /// How long a cached copy is believed before the store is asked again, in milliseconds; `None` = for ever.
    pub believed_ms: Option<u64>,
    /// How long an absent key is remembered, in milliseconds; 0 = not.
    pub absent_ms: u64,
    /// Sets the versions this process gives, where the store gives none, apart from those of every other.
    pub incarnation: u64,
    /// When a write counts as done that does not say. Without a store or a log it is [`WriteMode::Through`].
    pub write_mode: WriteMode,
}

/// When a write counts as done that does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteMode {
    /// When the store has it; without a store, when memory has it.
    #[default]
    Through,
    /// When the log has synced it; the store gets it later.
    Back,
}

/// One core's keys. Held by `Rc` on one executor; never leaves it.
///
/// `T` is the store below memory and log; without one (`STORE=none`), they are all there is.
pub struct Shard<T> {
    settings: ShardSettings,
    store: Option<T>,
    /// Below memory, above the store.
    log: Option<Rc<Log<Disk>>>,
    memory: RefCell<Memory>,
    absences: RefCell<Absences>,
    inflight: Rc<Inflight>,
    uploads: RefCell<Uploads>,
    /// The node stops: nothing more is to wait for the store.
    is_settling: Cell<bool>,
    stats: RefCell<Stats>,
    versions_given: Cell<u64>,
    /// Counts the times that this node's keys may have been another's.
    tenure: Cell<u64>,
    tables: RefCell<Tables>,
}

/// Which way a write goes.
enum Way<'a, T> {
    Through(&'a T),
    Back((&'a T, &'a Rc<Log<Disk>>)),
    Alone,
}

/// The router's tables: the one that this node follows, and those before it from which memory may still hold copies that
/// are believed though the key was another node's.
#[derive(Debug, Default)]
struct Tables {
    current: Option<Arc<View>>,
    /// Oldest first, one epoch after the other; empty once every copy has been looked at.
    before: Vec<Arc<View>>,
    /// Memory's slots from which copies were looked at.
    walked: u32,
}

impl Tables {
    /// Whether keys with this hash are ours, and were not all the time.
    fn is_gained(&self, hash: placement::KeyHash) -> bool {
        let Some(current) = &self.current else { return false };
        !self.before.is_empty() && current.owns(hash) && !self.before.iter().all(|view| view.owns(hash))
    }
}

/// What a Get found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The entry; its value is shared with memory.
    pub entry: Entry,
    /// Who had to be asked.
    pub source: Source,
}

/// Which tier answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// This core's memory.
    Memory,
    /// This core's log on disk.
    Log,
    /// The store, also where it only said that memory's copy is still the current one.
    Store,
}

/// The answer to a Get: `None` is a miss.
pub type Answer = Result<Option<Hit>, Refusal>;

/// What became of a Put: the value's version.
pub type Written = Result<Version, Refusal>;

/// What became of a Delete.
pub type Removed = Result<(), Refusal>;

/// What to write, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The value. Memory copies it, so it may be a part of a larger buffer.
    pub value: Bytes,
    /// When its life ends; `None` = never.
    pub expires: Option<Timestamp>,
    /// What must hold for it to be written.
    pub condition: Condition,
    /// What must have happened before it counts as done.
    pub ack: Ack,
}

/// What must hold for a key to be removed, and what must have happened before it counts as done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// What must hold for it to be removed.
    pub condition: Condition,
    /// What must have happened before it counts as done.
    pub ack: Ack,
}

/// Why there is no answer. [`Refusal::Store`] is a failure of the world or a condition that does not hold; the others
/// promise that nothing was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The store failed, or a condition does not hold.
    Store(Error),
    /// No room now.
    Limit(Limit),
    /// The node cannot give, or its write mode does not allow, this level of acknowledgement.
    AckNotGiven {
        /// The level asked for.
        ack: Ack,
        /// Whether there is a store.
        has_store: bool,
        /// Whether there is a log.
        has_log: bool,
    },
    /// There is no store, and neither memory nor the log takes a value this large.
    ValueTooLarge {
        /// Its size.
        bytes: usize,
        /// The largest that is taken.
        bytes_max: usize,
    },
    /// The log's disk has failed: nothing was done, or nobody knows what a restart would find.
    DiskFailed {
        /// Whether a restart may find the change.
        is_unknown: bool,
    },
    /// The core that owns the key has stopped.
    Stopped,
    /// Our own mistake, and what became of a write is not known.
    Fault(Fault),
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// [`KEYS_IN_FLIGHT_MAX`](crate::inflight::KEYS_IN_FLIGHT_MAX).
    KeysInFlight,
    /// [`READERS_PER_KEY_MAX`](crate::inflight::READERS_PER_KEY_MAX).
    ReadersOfKey,
    /// [`INFLIGHT_WRITES_PER_KEY_MAX`](crate::inflight::INFLIGHT_WRITES_PER_KEY_MAX).
    WritesOfKey,
    /// [`MESH_TICKETS_MAX`](crate::message::MESH_TICKETS_MAX).
    Tickets,
    /// [`MESH_REQUESTS_MAX`](crate::message::MESH_REQUESTS_MAX).
    Requests,
    /// The memory budget, all of which is in readers' hands.
    Memory,
    /// What may wait for the disk.
    Log,
    /// What may wait to be uploaded to the store.
    Uploads,
}

impl Hit {
    /// What is left of the value's life in milliseconds, at least 1; 0 = for ever.
    #[must_use]
    pub fn ttl_ms(&self, now: Timestamp) -> u64 {
        self.entry.expires.map_or(0, |expires| expires.0.saturating_sub(now.0).max(1))
    }
}

impl<T: Tier + 'static> Shard<T> {
    /// A shard with nothing in memory, above `store`.
    #[must_use]
    pub fn new(settings: ShardSettings, store: Option<T>) -> Rc<Self> {
        Self::with_rules(settings, store, None, Rules::ALL)
    }

    /// The same with a log below memory. Above a store, no copy in the log is believed before the store has confirmed it:
    /// while this node was away others may have written its keys, and a crash may have lost the newest. Without one, the
    /// log is all there is to believe.
    #[must_use]
    pub fn with_log(settings: ShardSettings, store: Option<T>, log: Rc<Log<Disk>>) -> Rc<Self> {
        if store.is_some() {
            log.doubt_all();
        }
        Self::with_rules(settings, store, Some(log), Rules::ALL)
    }

    /// The same without some of the rules that keep readers from stale values, for tests that must notice.
    #[cfg(feature = "rule-switches")]
    #[must_use]
    pub fn without_rules(settings: ShardSettings, store: Option<T>, rules: Rules) -> Rc<Self> {
        Self::with_rules(settings, store, None, rules)
    }

    fn with_rules(settings: ShardSettings, store: Option<T>, log: Option<Rc<Log<Disk>>>, rules: Rules) -> Rc<Self> {
        assert!(settings.core < settings.core_count);
        Rc::new(Self {
            settings,
            store,
            log,
            memory: RefCell::new(Memory::new(settings.memory_bytes, settings.entries_max)),
            absences: RefCell::new(Absences::new(settings.absent_ms)),
            inflight: Inflight::new(rules),
            uploads: RefCell::default(),
            is_settling: Cell::new(false),
            stats: RefCell::default(),
            versions_given: Cell::new(0),
            tenure: Cell::new(0),
            tables: RefCell::default(),
        })
    }

    /// Returns the live entry under `key`, asking the store only when memory has none that is still believed.
    ///
    /// A hit in memory is found before this returns, and its future is ready at once. Otherwise the future may be
    /// dropped at any time: a fetch that others wait for passes to one of them.
    ///
    /// # Errors
    /// The store cannot be asked, or a [`Limit`] is reached.
    pub fn get(self: &Rc<Self>, key: KeyRef<'_>, now: Timestamp) -> impl Future<Output = Answer> + use<T> {
        match self.look_up(key, now) {
            Lookup::Hit(entry) => Either::Left(ready(self.count(Ok(Some(Hit { entry, source: Source::Memory }))))),
            Lookup::Stale(entry) => Either::Right(Rc::clone(self).get_below(key.to_key(), Some(entry), now)),
            Lookup::Miss => Either::Right(Rc::clone(self).get_below(key.to_key(), None, now)),
        }
    }

    /// Writes a value, once those that came before it for this key are done, and answers its version.
    ///
    /// The order, and what a crash leaves behind: first the store has it (a crash before: nothing, or a write whose
    /// outcome the caller does not know; a crash after: a value that was never acknowledged, as the caller must expect),
    /// then the log (a crash before, or before it is on disk: an older copy, which nobody believes after a restart), then
    /// memory, which does not survive anyway, then the answer. A write that failed, or whose outcome is unknown, makes
    /// memory and log forget the key. A future that is dropped while it waits for its turn has written nothing; dropped
    /// later, the outcome is unknown: let it run to its end.
    ///
    /// # Errors
    /// The store's own, [`Limit`]s, an `ack` that is not to be had, and without a store values too large for memory.
    pub fn put(self: &Rc<Self>, key: Key, write: Write, now: Timestamp) -> impl Future<Output = Written> + use<T> {
        let shard = Rc::clone(self);
        async move {
            shard.check_owner(key.hash());
            shard.check_ack(write.ack)?;
            match shard.way() {
                Way::Through(store) => shard.put_through(store, &key, write, now).await,
                Way::Back(parts) => shard.put_back(parts, &key, write, now).await,
                Way::Alone => shard.put_alone(&key, write, now).await,
            }
        }
    }

    /// Removes a key, once the writes that came before it are done. Removing what is not there is no error.
    ///
    /// The order is that of [`Shard::put`].
    ///
    /// # Errors
    /// As [`Shard::put`].
    pub fn delete(
        self: &Rc<Self>,
        key: Key,
        removal: Removal,
        now: Timestamp,
    ) -> impl Future<Output = Removed> + use<T> {
        let shard = Rc::clone(self);
        async move {
            let Removal { condition, ack } = removal;
            shard.check_owner(key.hash());
            shard.check_ack(ack)?;
            match shard.way() {
                Way::Through(store) => shard.delete_through(store, &key, condition, now).await,
                Way::Back(parts) => shard.delete_back(parts, &key, condition, ack, now).await,
                Way::Alone => shard.delete_alone(&key, condition, ack, now).await,
            }
        }
    }

    /// This node was not a member for a while, so others may have written its keys: every copy is unverified, and the
    /// store is asked whether it is still the current one before it is answered. What was asked of the store before now
    /// fills nothing. Some nanoseconds for each entry, at once; a rare event.
    ///
    /// Without a store there is nobody to ask, and memory goes on as it is.
    pub fn end_tenure(&self) {
        if self.store.is_none() {
            return;
        }
        self.doubt_what_is_under_way();
        self.memory.borrow_mut().doubt_all();
        self.tables.borrow_mut().before.clear();
    }

    /// This node goes by another table of its router: copies of keys that have come to it are unverified, since their
    /// owners until now may have written them. Says whether memory must be walked for them ([`Shard::walk_gained`]); until
    /// that is done, each is doubted when it is asked for.
    ///
    /// Between two tables that do not follow each other any key may have been away and back: then all are unverified.
    pub fn follow(&self, view: Arc<View>) -> bool {
        if self.store.is_none() {
            return false;
        }
        self.doubt_what_is_under_way();
        let mut tables = self.tables.borrow_mut();
        let tables = &mut *tables;
        let is_next = |before: &Arc<View>| before.epoch() + 1 == view.epoch() && tables.before.len() < TABLES_MAX;
        match tables.current.take().filter(is_next) {
            Some(before) => tables.before.push(before),
            None => {
                tables.before.clear();
                self.memory.borrow_mut().doubt_all();
            }
        }
        tables.current = Some(view);
        tables.walked = 0;
        !tables.before.is_empty()
    }

    /// Doubts copies of keys that have come to this node, a bounded number of them, and says whether there may be more.
    pub fn walk_gained(&self) -> bool {
        let mut tables = self.tables.borrow_mut();
        if tables.before.is_empty() {
            return false;
        }
        let mut memory = self.memory.borrow_mut();
        match memory.doubt_some(tables.walked, WALK_SLOTS_MAX, |hash| tables.is_gained(hash)) {
            Some(next) => tables.walked = next,
            None => tables.before.clear(),
        }
        !tables.before.is_empty()
    }

    /// What was asked of the store before now fills nothing, and what is being written leaves nothing in memory.
    fn doubt_what_is_under_way(&self) {
        self.tenure.set(self.tenure.get() + 1);
        if let Some(log) = &self.log {
            log.doubt_all(); // All of it: to look for the keys that have moved would be to read the disk.
        }
        self.absences.borrow_mut().forget_all();
        self.inflight.revoke_all();
    }

    /// Drops entries whose life is over, a bounded number of them, and says whether there may be more. Once a second.
    pub fn sweep(&self, now: Timestamp) -> bool {
        self.memory.borrow_mut().sweep(now, SWEEP_ENTRIES_MAX)
    }

    /// This core's counters. Not to be held across an await.
    pub fn stats(&self) -> RefMut<'_, Stats> {
        self.stats.borrow_mut()
    }

    /// A copy of the counters, memory's figures included, for the metrics page.
    #[must_use]
    pub fn report(&self) -> Stats {
        Stats {
            memory: self.memory_figures(),
            log: self.log.as_ref().map(|log| log.figures()),
            keys_in_flight: self.keys_in_flight() as u64,
            ..self.stats.borrow().clone()
        }
    }

    /// Memory's figures.
    #[must_use]
    pub fn memory_figures(&self) -> Figures {
        self.memory.borrow().figures()
    }

    /// Keys for which the store is being asked. 0 = nothing is left to wait for.
    #[must_use]
    pub fn keys_in_flight(&self) -> usize {
        self.inflight.keys_count()
    }

    /// A hit in memory, counted; `None` where the store would have to be asked.
    pub(crate) fn get_from_memory(&self, key: KeyRef<'_>, now: Timestamp) -> Option<Answer> {
        match self.look_up(key, now) {
            Lookup::Hit(entry) => Some(self.count(Ok(Some(Hit { entry, source: Source::Memory })))),
            Lookup::Stale(_) | Lookup::Miss => None,
        }
    }

    fn look_up(&self, key: KeyRef<'_>, now: Timestamp) -> Lookup {
        self.check_owner(key.hash());
        let mut memory = self.memory.borrow_mut();
        if self.tables.borrow().is_gained(key.hash()) {
            memory.doubt(key);
        }
        memory.get(key, now)
    }

    /// Counts what became of a Get, once for each.
    fn count(&self, answer: Answer) -> Answer {
        let mut stats = self.stats.borrow_mut();
        match &answer {
            Ok(Some(Hit { source: Source::Memory, .. })) => stats.hits_memory += 1,
            Ok(Some(Hit { source: Source::Log, .. })) => stats.hits_log += 1,
            Ok(Some(Hit { source: Source::Store, .. })) => stats.hits_store += 1,
            Ok(None) => stats.misses += 1,
            Err(_) => {}
        }
        answer
    }

    async fn get_below(self: Rc<Self>, key: Key, known: Option<Entry>, now: Timestamp) -> Answer {
        if self.store.is_none() && self.log.is_none() {
            return self.count(Ok(None));
        }
        if self.absences.borrow_mut().contains(&key, now) {
            return self.count(Ok(None));
        }
        let turn = self.inflight.begin_fetch(&key).map_err(Refusal::Limit)?;
        let answer = match turn {
            ReadTurn::Lead(lease) => self.lead(&key, known, lease, now).await,
            ReadTurn::Follow(news) => {
                self.stats.borrow_mut().coalesced += 1;
                match news.await {
                    Ok(News::Answer(answer)) => answer,
                    Ok(News::Lead(lease)) => self.lead_late(&key, lease, now).await,
                    Err(_) => Err(Refusal::Fault(Fault::new("who waited for another's fetch was forgotten"))),
                }
            }
        };
        // The leader's `now` may be earlier than ours.
        let answer = answer.map(|hit| hit.filter(|hit| !hit.entry.is_expired(now)));
        self.count(answer)
    }

    /// Leads a fetch that we waited for first: by now, memory may have the answer.
    async fn lead_late(&self, key: &Key, lease: Lease, now: Timestamp) -> Answer {
        let known = match self.look_up(key.as_ref(), now) {
            Lookup::Hit(entry) => {
                let answer = Ok(Some(Hit { entry, source: Source::Memory }));
                lease.settle(&answer);
                return answer;
            }
            Lookup::Stale(entry) => Some(entry),
            Lookup::Miss => None,
        };
        self.lead(key, known, lease, now).await
    }

    async fn lead(&self, key: &Key, known: Option<Entry>, lease: Lease, now: Timestamp) -> Answer {
        let in_log = self.look_in_log(key, known.is_some(), now).await;
        let (known, is_in_memory) = match in_log {
            Known::Copy(copy) if is_believed(&copy, now) => {
                let answer = self.take_in_copy(key, copy, &lease, now);
                lease.settle(&answer);
                return answer;
            }
            Known::Copy(copy) => (Some(copy.entry), false),
            Known::Nothing => (known, true),
            Known::Deleted => {
                let answer = self.take_in(key, Ok(Found::Absent), known, &lease, now);
                lease.settle(&answer);
                return answer;
            }
            Known::Unreadable => {
                let answer = Err(back::unreadable(Operation::Get));
                lease.settle(&answer);
                return answer;
            }
        };
        let Some(store) = &self.store else {
            lease.settle(&Ok(None));
            return Ok(None);
        };
        let found = store.get(key, known.as_ref().map(|entry| &entry.version), now).await;
        let confirmed = known.clone().filter(|_| !is_in_memory);
        let answer = self.take_in(key, found.clone(), known, &lease, now);
        self.log_what_was_found(key, found, confirmed, &lease, now).await;
        lease.settle(&answer);
        answer
    }

    /// What the log knows of a key. It is not asked where memory has a copy that is not believed any more, which is as new
    /// as the log's, unless the log has what the store does not.
    async fn look_in_log(&self, key: &Key, is_in_memory: bool, now: Timestamp) -> Known {
        match &self.log {
            Some(log) if !is_in_memory || log.has_debt(key.hash()) => Rc::clone(log).get(key.clone(), now).await,
            Some(_) | None => Known::Nothing,
        }
    }

    /// Fills memory with what the log has. Where the lease is gone, the rule of [`Shard::take_in`].
    fn take_in_copy(&self, key: &Key, copy: log::Copy, lease: &Lease, now: Timestamp) -> Answer {
        let mut memory = self.memory.borrow_mut();
        if lease.may_fill() {
            // What the store does not have yet is believed for ever, but will be there before memory forgets it.
            let believed_until = if copy.is_dirty { self.believed_until(now) } else { copy.believed_until };
            memory.insert(key.as_ref(), &copy.entry, believed_until, now);
        } else {
            match memory.get(key.as_ref(), now) {
                Lookup::Hit(entry) => return Ok(Some(Hit { entry, source: Source::Memory })),
                Lookup::Stale(_) => memory.remove(key.as_ref()),
                Lookup::Miss => {}
            }
        }
        Ok(Some(Hit { entry: copy.entry, source: Source::Log }))
    }

    /// Brings the log up to date with what the store answered, as long as the lease holds. A copy of the log's own that
    /// the store has `confirmed` is written again: a record cannot be changed, and as it is nobody would believe it.
    async fn log_what_was_found(
        &self,
        key: &Key,
        found: Result<Found, Error>,
        confirmed: Option<Entry>,
        lease: &Lease,
        now: Timestamp,
    ) {
        let Some(log) = &self.log else { return };
        let may_fill = || lease.may_fill();
        let is_news = matches!(found, Ok(Found::Entry(_) | Found::Absent));
        let found = match found {
            Ok(Found::Unchanged) => confirmed.map_or(Ok(Found::Unchanged), |entry| Ok(Found::Entry(entry))),
            found => found,
        };
        match found {
            _ if !lease.may_fill() => {}
            Ok(Found::Entry(entry)) => {
                let fill = Rc::clone(log).fill(key.clone(), entry, self.believed_until(now), now, may_fill);
                if fill.await.is_err() && lease.may_fill() {
                    log.forget(key.as_ref()); // What is there is older than what was found.
                }
            }
            Ok(Found::Absent) => Rc::clone(log).delete_if(key.clone(), now, may_fill).await,
            Ok(Found::Unchanged) | Err(_) => {}
        }
        // As memory forgets a copy seen to be old (`take_in`): until the write in the air comes to the log, a copy there is
        // older than this answer, and a clock that jumps back would have it believed.
        if is_news && lease.is_being_written() {
            log.forget(key.as_ref());
        }
    }

    /// Brings memory up to date with what the store answered, and answers.
    ///
    /// Without the right to fill, what the store said may be older than memory, or newer: from a write that is still in
    /// the air. Answering with the newer, while those who come next find the older in memory, would let a value come and
    /// go. So if memory has an entry by now, that is the answer, and a copy it no longer believes is forgotten.
    fn take_in(
        &self,
        key: &Key,
        found: Result<Found, Error>,
        known: Option<Entry>,
        lease: &Lease,
        now: Timestamp,
    ) -> Answer {
        if lease.may_fill() {
            self.fill(key, &found, known.as_ref(), now);
        } else {
            let mut memory = self.memory.borrow_mut();
            match memory.get(key.as_ref(), now) {
                Lookup::Hit(entry) => return Ok(Some(Hit { entry, source: Source::Memory })),
                Lookup::Stale(_) => memory.remove(key.as_ref()),
                Lookup::Miss => {}
            }
        }
        match (found.map_err(Refusal::Store)?, known) {
            (Found::Entry(entry), _) | (Found::Unchanged, Some(entry)) if !entry.is_expired(now) => {
                Ok(Some(Hit { entry, source: Source::Store }))
            }
            (Found::Unchanged, None) => {
                let text = "it says that a version is unchanged which nobody named".into();
                Err(Refusal::Store(Error { operation: Operation::Get, cause: Cause::Corrupt(text) }))
            }
            (Found::Entry(_) | Found::Unchanged | Found::Absent, _) => Ok(None),
        }
    }

    fn fill(&self, key: &Key, found: &Result<Found, Error>, known: Option<&Entry>, now: Timestamp) {
        let mut memory = self.memory.borrow_mut();
        match (found, known) {
            (Ok(Found::Entry(entry)), _) => {
                memory.insert(key.as_ref(), entry, self.believed_until(now), now);
            }
            (Ok(Found::Unchanged), Some(known)) => {
                match memory.get(key.as_ref(), now) {
                    // The log had it.
                    Lookup::Miss => drop(memory.insert(key.as_ref(), known, self.believed_until(now), now)),
                    Lookup::Hit(_) | Lookup::Stale(_) => {
                        memory.restamp(key.as_ref(), &known.version, self.believed_until(now));
                    }
                }
                self.stats.borrow_mut().revalidated += 1;
            }
            (Ok(Found::Absent), _) => {
                memory.remove(key.as_ref());
                self.absences.borrow_mut().remember(key, now);
            }
            (Ok(Found::Unchanged), None) | (Err(_), _) => {}
        }
    }

    /// A version for a value that no store has: it must differ from all others, also those from before a restart.
    fn own_version(&self) -> Version {
        let number = self.versions_given.replace(self.versions_given.get() + 1);
        let text = format!("{:x}-{:x}-{number:x}", self.settings.incarnation, self.settings.core);
        Version::new(Bytes::from(text)).expect("short and printable")
    }

    /// Write mode `through`: a level above the store's answer is not to be had, one below it needs write mode `back`.
    fn check_ack(&self, ack: Ack) -> Result<(), Refusal> {
        let is_given = match self.way() {
            Way::Back(_) => true,
            Way::Through(_) => matches!(ack, Ack::Default | Ack::S3),
            Way::Alone => matches!(ack, Ack::Default | Ack::Memory) || ack == Ack::Disk && self.log.is_some(),
        };
        let (has_store, has_log) = (self.store.is_some(), self.log.is_some());
        if is_given { Ok(()) } else { Err(Refusal::AckNotGiven { ack, has_store, has_log }) }
    }

    /// The level that a write with this `ack` gets when it is done.
    pub(crate) fn given(&self, ack: Ack) -> Ack {
        match (ack, self.way()) {
            (Ack::Default, Way::Through(_)) => Ack::S3,
            (Ack::Default, Way::Back(_)) => Ack::Disk,
            (Ack::Default, Way::Alone) => Ack::Memory,
            (ack, _) => ack,
        }
    }

    fn way(&self) -> Way<'_, T> {
        match (&self.store, &self.log, self.settings.write_mode) {
            (Some(store), Some(log), WriteMode::Back) => Way::Back((store, log)),
            (Some(store), ..) => Way::Through(store),
            (None, ..) => Way::Alone,
        }
    }

    /// Waits until a change survives a crash of the machine.
    async fn durable(&self, log: &Rc<Log<Disk>>, position: Position) -> Result<(), Refusal> {
        Rc::clone(log).durable(position).await.map_err(|_| Refusal::DiskFailed { is_unknown: true })
    }

    fn check_owner(&self, hash: placement::KeyHash) {
        // Whoever calls has just computed it to come here; once more would cost a tenth of a hit.
        debug_assert_eq!(
            placement::core(hash, self.settings.core_count),
            self.settings.core,
            "delivered to the wrong core"
        );
    }

    fn believed_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.settings.believed_ms.map(|believed_ms| now.plus_ms(believed_ms))
    }
}

/// Whether a copy may be answered without asking the store.
fn is_believed(copy: &log::Copy, now: Timestamp) -> bool {
    copy.believed_until.is_none_or(|until| now < until)
}

/// Whether `condition` holds where `found` is the current version.
fn check_condition(found: Option<&Version>, condition: &Condition, operation: Operation) -> Result<(), Refusal> {
    let cause = match (condition, found) {
        (Condition::IfVersion(version), found) if found != Some(version) => Cause::VersionMismatch,
        (Condition::IfAbsent, Some(_)) => Cause::AlreadyExists,
        (Condition::Always | Condition::IfVersion(_) | Condition::IfAbsent, _) => return Ok(()),
    };
    Err(Refusal::Store(Error { operation, cause }))
}

impl<T> fmt::Debug for Shard<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shard({:?}, {:?}, {:?})", self.settings, self.memory.borrow(), self.inflight)
    }
}
