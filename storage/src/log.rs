//! The disk tier of one core: a log of records in segments on local disk, which survives the process and the machine.
//!
//! ```text
//!   get ──▶ index ──▶ candidates ──▶ waits for the disk? in pages already? else one read, shared ──▶ key compared  read.rs
//!   put ──▶ index ──▶ candidates ──▶ the key's own found ──▶ appended, index moved ──▶ durable(sequence)
//!
//!   run()  write: cut what has gathered ─▶ write ─▶ sync, if somebody waits ─▶ wake them ─▶ again   write.rs append.rs
//!          reclaim: too few segments free ─▶ choose one ─▶ copy what is needed ─▶ void ─▶ free  emptying.rs reclaim.rs
//!
//!   bytes        record.rs segment.rs footer.rs superblock.rs       all decisions, no I/O   state.rs reclaim.rs
//!   memory       index.rs: 8 bytes and their room for each key      the disk                device.rs device/
//!   the start    recover.rs: footers, tails, or the index of a clean stop; rehome.rs: another number of cores
//!   operators    trouble.rs: what is told of a disk that fails
//! ```
//! The full key is compared with the record, always: an index slot is a hint of where to look. That holds for writes too,
//! which read the record they replace; so two keys never share a fate, and what is dead stays dead (state.rs).
//!
//! While batches are being written, two at most, the next gathers, so that a sync is shared by all who came meanwhile; see
//! DeWitt et al., "Implementation Techniques for Main Memory Database Systems", SIGMOD 1984, section 5 (group commit).
//!
//! Measured (`log-figures` in benches; 2 CPUs, ext4, a virtual disk whose direct read of 4 KiB takes 98 to 103 µs at p50 and
//! whose write of 72 KiB with a sync 224 to 250 µs at p50 and 460 to 531 µs at p99 in the same runs):
//!
//! ```text
//! 10 million keys   11.1 bytes of index each; start 1.60 s from footers, 0.25 s from the index of a clean stop
//! get, 1 KiB        resident 2.1 µs of CPU more than memory and a copy; cold 1.19 and 1.21 times the direct read
//! put, ack=DISK     waves of 64: p50 0.44 to 0.51 ms, p99 0.73 to 1.0 ms; sustained 0.78 to 0.89 of a plain loop's bandwidth
//! reclaiming        between two turns of a neighbour p99.9 341 µs, 419 µs where nothing is reclaimed
//! amplification     1 KiB, Zipf 0.99, log full, half of it gets: 1.235 bytes written for each of key and value
//! ```
//! Nothing here spawns or reads a clock. `RefCell`s are borrowed inside synchronous functions only. Which shell runs
//! [`Log::run`] is the caller's business; it must run for as long as the log is used.
//!
//! In write mode `back` the log is more than a cache: what was put or deleted may be nowhere else. dirty.rs tells of it.

mod append;
mod debts;
mod device;
mod dirty;
mod emptying;
mod footer;
mod index;
mod inspect;
mod open;
#[cfg(feature = "parts")]
pub mod parts;
mod read;
mod reclaim;
mod record;
mod recover;
mod rehome;
mod saved;
mod scan;
mod segment;
mod signal;
mod state;
mod superblock;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod trouble;
mod write;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    rc::Rc,
};

use ahash::RandomState;
use bytes::Bytes;
use futures::{
    channel::oneshot,
    future::{self, LocalBoxFuture, WeakShared},
};
use milena_proto::key::{Key, KeyRef};

pub use device::{Device, DeviceError, Disk};
pub use dirty::{Change, Debt, DebtError, Known};
pub use inspect::{InspectError, Inspection, Owed, SegmentInspection, inspect, owed};
pub use open::{LOG_BYTES_MIN, LogSettings, OpenError, Opened, Opening, SEGMENTS_MIN, open, unusable};
pub use rehome::{Lack, RehomeError, Rehomed, log_dir, rehome};
pub use segment::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENTS_MAX};
pub use state::Counts;
pub use superblock::SuperblockError;
pub use trouble::{TROUBLES_WAITING_MAX, Trouble, Troubles};

use self::{
    dirty::Waiting,
    index::Place,
    record::Sequence,
    segment::{SegmentNumber, State as SegmentState},
    signal::Bell,
    state::{Refused, State},
    trouble::Noticed,
};
use crate::{Entry, Timestamp};

/// How often a search begins anew because records moved meanwhile.
const SEARCHES_MAX: usize = 8;

/// Callers that wait for a sync.
pub const DURABLE_WAITERS_MAX: usize = 16_384;

/// The log of one core. Held by `Rc` on one executor; never leaves it.
pub struct Log<D> {
    device: Rc<D>,
    state: RefCell<State>,
    /// The latest time that anybody mentioned.
    now: Cell<Timestamp>,
    /// The first that anybody mentioned, as the age of what was found on disk.
    started: Cell<Option<Timestamp>>,
    /// There may be one more change to be uploaded.
    debts: Bell,
    work: Bell,
    need: Bell,
    room: RefCell<Vec<oneshot::Sender<()>>>,
    durable: RefCell<Vec<Waiter>>,
    reads: RefCell<HashMap<Place, WeakShared<Reading>, RandomState>>,
    index_len_max: usize,
    noticed: RefCell<Noticed>,
    recovered_entries: u64,
    is_stuck: Cell<bool>,
    is_stopping: Cell<bool>,
    /// Reclaiming has ended, because the log stops.
    has_reclaimed: Cell<bool>,
}

/// Who waits for a sync, and for which record.
type Waiter = (Sequence, oneshot::Sender<Result<(), LogError>>);

/// Who need not wait for a sync any longer, and how that has ended.
type Over = (oneshot::Sender<Result<(), LogError>>, Result<(), LogError>);

type Reading = LocalBoxFuture<'static, Result<Bytes, DeviceError>>;

/// What the log has under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The entry; its value is a buffer of its own.
    pub entry: Entry,
    /// Until when the copy is believed; `None` = for ever, as it always is where the store does not have it.
    pub believed_until: Option<Timestamp>,
    /// The store does not have it yet.
    pub is_dirty: bool,
}

/// Why the log did not keep something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogError {
    /// Too much waits for the disk, or no segment is free.
    Full,
    /// The entry is larger than an eighth of a segment, its version longer than 255 bytes, or its life over. Of a change
    /// that the store has, what was under its key is forgotten; of a dirty one it stays.
    NotKept,
    /// A change with the same hash waits for the store: another key's, or, of what the store has, the key's own. That one
    /// stays. Of a change that the store has, copies of the key are forgotten; of a dirty one everything stays.
    Owed,
    /// More than a quarter of the log would wait for the store, or more than 1,048,576 changes.
    DirtyFull,
    /// A change waits for the store that cannot be read now, so that nobody knows whether it is the key's.
    Unreadable,
    /// The caller withdrew it, because something newer came first.
    Withdrawn,
    /// The disk failed too often and is not used any more.
    Offline,
}

/// A place in the order of all changes: [`Log::durable`] waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(Sequence);

impl Position {
    /// After all changes.
    pub const LAST: Self = Self(Sequence::MAX);
}

/// Figures for the metrics page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Keys that the log has.
    pub entries: u64,
    /// Keys that it had when it was opened.
    pub recovered_entries: u64,
    /// Bytes of the log's segments.
    pub capacity_bytes: u64,
    /// Bytes of records, dead or alive.
    pub used_bytes: u64,
    /// Those of them that are alive, as far as counting records can tell.
    pub live_bytes: u64,
    /// Memory for the index, and for what waits for the disk.
    pub held_bytes: u64,
    /// Memory for the index alone.
    pub index_bytes: u64,
    /// Segments by state: free, open (or being sealed), sealed, being reclaimed, out of use.
    pub segments: [u32; 5],
    /// Bytes of records that the store does not have.
    pub dirty_bytes: u64,
    /// How many they may be before changes are refused.
    pub dirty_bytes_max: u64,
    /// Those records: puts and deletes.
    pub dirty_records: u64,
    /// From when on the store lacks what has waited longest; for what a start has found, the first time that anybody
    /// mentioned since.
    pub dirty_since: Option<Timestamp>,
    /// Whether the disk was given up, or parts of it.
    pub is_degraded: bool,
    /// What was counted since the start.
    pub counts: Counts,
}

impl Log<Disk> {
    /// Takes over a log that was opened, on the core that will use it, and before it serves. `index_bytes_max` bounds
    /// the memory for the index, beyond which the oldest records go; 0 = by the disk alone.
    ///
    /// # Errors
    /// The kernel's, for a file that cannot be opened on the ring.
    pub async fn new(opened: Opened, index_bytes_max: usize) -> std::io::Result<(Rc<Self>, Keeper)> {
        let Opened { dir, found, lock, .. } = opened;
        let disk = Disk::open(&dir, found.segments.len()).await?;
        let log = Log::with_found(disk, found, index_bytes_max);
        Ok((log, Keeper { dir, _lock: lock }))
    }

    /// Whether the filesystem has direct writes. Where it has none, what is written once takes room in the page cache, and
    /// a sync takes longer; nothing else changes. O(segments).
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.device.is_direct()
    }
}

/// Holds the lock of a log, and can save its index after [`Log::run`] has ended.
#[derive(Debug)]
pub struct Keeper {
    dir: std::path::PathBuf,
    _lock: std::fs::File,
}

impl Keeper {
    /// Writes the index, so that the next start need not read the footers. Blocks; answers whether there was anything
    /// worth saving.
    ///
    /// # Errors
    /// The file cannot be written; then the next start takes longer, and nothing else.
    pub fn save<D>(self, log: &Log<D>) -> Result<bool, OpenError> {
        assert!(log.is_stopping.get(), "only a log that has stopped stays as it was saved");
        let Some(bytes) = saved::encode(&log.state.borrow()) else { return Ok(false) };
        open::replace(&self.dir, "index", &bytes)?;
        Ok(true)
    }
}

impl<D: Device> Log<D> {
    /// A log of what was found on `device`. `index_bytes_max` bounds the memory for the index, beyond which the oldest
    /// records go; 0 = by the disk alone.
    fn with_found(device: D, found: state::Found, index_bytes_max: usize) -> Rc<Self> {
        let debts = Bell::default();
        debts.ring();
        let index_len_max = if index_bytes_max == 0 { usize::MAX } else { index_bytes_max / INDEX_BYTES_PER_KEY };
        Rc::new(Self {
            device: Rc::new(device),
            recovered_entries: (found.index.len() + found.debts.len()) as u64,
            state: RefCell::new(State::new(found)),
            now: Cell::new(Timestamp(0)),
            started: Cell::new(None),
            debts,
            work: Bell::default(),
            need: Bell::default(),
            room: RefCell::default(),
            durable: RefCell::default(),
            reads: RefCell::default(),
            index_len_max,
            noticed: RefCell::default(),
            is_stuck: Cell::new(false),
            is_stopping: Cell::new(false),
            has_reclaimed: Cell::new(false),
        })
    }

    /// Returns what is known of `key`, reading the disk at most once where the record is not in memory already.
    ///
    /// A record that cannot be read, or is not what was written, counts as nothing, unless the store does not have it. A
    /// copy whose life has ended is forgotten on sight, so that a clock that jumps back does not revive it. The future may
    /// be dropped at any time.
    pub async fn get(self: Rc<Self>, key: Key, now: Timestamp) -> Known {
        self.mention(now);
        for _ in 0..SEARCHES_MAX {
            match self.waiting(key.as_ref()).await {
                Waiting::Own(_, bytes) => return self.take_out_owed(&bytes, now),
                Waiting::Unreadable { .. } => return Known::Unreadable,
                Waiting::Nothing | Waiting::Other => {}
            }
            let search = self.search(key.as_ref()).await;
            let Some((_, bytes)) = search.newest.clone() else {
                if search.has_moved {
                    continue;
                }
                return Known::Nothing;
            };
            if search.is_busy {
                return Known::Nothing; // What was not looked at may be newer.
            }
            return self.take_out(&key, &search.located(), &bytes, now).map_or(Known::Nothing, Known::Copy);
        }
        if self.has_debt(key.hash()) { Known::Unreadable } else { Known::Nothing }
    }

    /// Appends `entry` under `key`, replacing what was there. Waits while the buffers are full.
    ///
    /// `believed_until` says how long the copy may be answered with; it is kept in whole seconds. A future that is
    /// dropped has written nothing.
    ///
    /// # Errors
    /// [`LogError`]; after [`LogError::NotKept`] nothing is under the key, after [`LogError::Owed`] nothing but a change
    /// that the store does not have, after the others what was there before may be.
    pub async fn put(
        self: Rc<Self>,
        key: Key,
        entry: Entry,
        believed_until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Position, LogError> {
        self.mention(now);
        loop {
            let located = self.locate(key.as_ref()).await?;
            let done = self.state.borrow_mut().put(&located, key.as_ref(), &entry, believed_until, now);
            if let Some(answer) = self.settle(done).await {
                return answer;
            }
        }
    }

    /// As [`Log::put`] for a copy that was fetched: where there is no room it is dropped, and `may_fill` is asked at the
    /// last moment whether it is still worth keeping.
    ///
    /// # Errors
    /// As [`Log::put`], and [`LogError::Withdrawn`].
    pub async fn fill(
        self: Rc<Self>,
        key: Key,
        entry: Entry,
        believed_until: Option<Timestamp>,
        now: Timestamp,
        may_fill: impl Fn() -> bool,
    ) -> Result<Position, LogError> {
        self.mention(now);
        for _ in 0..SEARCHES_MAX {
            let located = self.locate(key.as_ref()).await?;
            if !may_fill() {
                return Err(LogError::Withdrawn);
            }
            let done = self.state.borrow_mut().put(&located, key.as_ref(), &entry, believed_until, now);
            match done {
                Err(Refused::Moved) => {}
                Err(Refused::Full) => break,
                done => return self.settle(done).await.expect("neither moved nor full"),
            }
        }
        self.state.borrow_mut().counts.fills_dropped += 1;
        self.need.ring();
        Err(LogError::Full)
    }

    /// Forgets `key`. Deleting what is not there writes nothing.
    ///
    /// # Errors
    /// [`LogError::Full`] or [`LogError::Offline`]; what was there may then still be. [`LogError::Owed`], after which nothing
    /// is there but a change that the store does not have.
    pub async fn delete(self: Rc<Self>, key: Key, now: Timestamp) -> Result<Position, LogError> {
        self.mention(now);
        loop {
            let located = self.locate(key.as_ref()).await?;
            let done = self.state.borrow_mut().delete(&located, key.hash());
            if let Some(answer) = self.settle(done).await {
                return answer;
            }
        }
    }

    /// Forgets `key` if `may_forget` still says so at the last moment; where there is no room for the tombstone, as
    /// [`Log::forget`].
    pub async fn delete_if(self: Rc<Self>, key: Key, now: Timestamp, may_forget: impl Fn() -> bool) {
        self.mention(now);
        for _ in 0..SEARCHES_MAX {
            let Ok(located) = self.locate(key.as_ref()).await else { break };
            if !may_forget() {
                return;
            }
            let done = self.state.borrow_mut().delete(&located, key.hash());
            match done {
                Err(Refused::Moved) => {}
                Ok(_) => return self.work.ring(),
                Err(_) => break,
            }
        }
        if may_forget() {
            self.forget(key.as_ref());
        }
    }

    /// Forgets `key` at once, without a look at the disk: for a write whose outcome is not known. Another key that the
    /// index cannot tell from it is forgotten too, one in some ten thousand times. A change that the store does not have
    /// stays.
    pub fn forget(&self, key: KeyRef<'_>) {
        self.state.borrow_mut().forget(key.hash());
        self.work.ring();
    }

    /// Waits until everything up to `position` survives a crash of the machine. All who wait share one sync.
    ///
    /// # Errors
    /// [`LogError::Offline`], after which it is not known whether it survives, or [`LogError::Full`] where [`DURABLE_WAITERS_MAX`] wait.
    pub async fn durable(self: Rc<Self>, position: Position) -> Result<(), LogError> {
        if self.state.borrow().durable() < position.0 && self.durable.borrow().len() >= DURABLE_WAITERS_MAX {
            return Err(LogError::Full);
        }
        self.until_durable(position.0).await
    }

    /// The same for the uploader, who may always wait: there are no more of it than debts.
    async fn until_durable(&self, sequence: Sequence) -> Result<(), LogError> {
        let answer = {
            let state = self.state.borrow();
            if state.durable() >= sequence {
                return Ok(());
            }
            if state.is_offline() {
                return Err(LogError::Offline);
            }
            let (tell, answer) = oneshot::channel();
            self.durable.borrow_mut().push((sequence, tell));
            answer
        };
        self.work.ring();
        answer.await.unwrap_or(Err(LogError::Offline))
    }

    /// The largest value that is kept, whatever its key and its version, in bytes.
    #[must_use]
    pub fn value_bytes_max(&self) -> usize {
        self.state.borrow().record_bytes_max() - record::OVERHEAD_BYTES_MAX
    }

    /// Believes no copy any more that is in the log now, until it is put again; but for those that the store does not
    /// have. O(1).
    pub fn doubt_all(&self) {
        self.state.borrow_mut().doubt_all();
    }

    /// Asks [`Log::run`] to write all there is, seal the open segments and end.
    pub fn stop(&self) {
        self.is_stopping.set(true);
        self.work.ring();
        self.need.ring();
    }

    /// Writes and reclaims until [`Log::stop`]; then everything is on disk and synced.
    pub async fn run(self: Rc<Self>) {
        let reclaiming = async {
            self.reclaim().await;
            self.has_reclaimed.set(true);
            self.work.ring();
        };
        future::join(self.write(), reclaiming).await;
    }

    /// Bytes of records that the store does not have, and how many they may be. O(1).
    #[must_use]
    pub fn dirty_bytes(&self) -> (u64, u64) {
        let state = self.state.borrow();
        (state.debts.bytes(), state.dirty_bytes_max())
    }

    /// Whether the disk was given up: nothing is written any more.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.state.borrow().is_offline()
    }

    /// Figures for the metrics page. O(segments).
    #[must_use]
    pub fn figures(&self) -> Figures {
        let state = self.state.borrow();
        let mut segments = [0; 5];
        let (mut used_bytes, mut live_bytes) = (0, 0);
        for segment in &state.segments {
            segments[match segment.state {
                SegmentState::Free => 0,
                SegmentState::Open | SegmentState::Sealing => 1,
                SegmentState::Sealed => 2,
                SegmentState::Reclaiming => 3,
                SegmentState::Bad => 4,
            }] += 1;
            used_bytes += segment.used_bytes;
            live_bytes += segment.live_bytes() + segment.dirty_bytes;
        }
        Figures {
            entries: (state.index.len() + state.debts.put_count()) as u64,
            recovered_entries: self.recovered_entries,
            capacity_bytes: u64::from(state.segment_bytes()) * state.segments.len() as u64,
            used_bytes,
            live_bytes,
            held_bytes: state.held_bytes() as u64,
            index_bytes: state.index.held_bytes() as u64,
            segments,
            dirty_bytes: state.debts.bytes(),
            dirty_bytes_max: state.dirty_bytes_max(),
            dirty_records: state.debts.len() as u64,
            dirty_since: state.debts.oldest().and_then(|since| self.started.get().map(|started| since.max(started))),
            is_degraded: state.is_offline() || segments[4] > 0,
            counts: state.counts,
        }
    }

    /// What has gone wrong with the disk since this was last asked; each trouble of a segment once. For lines to the
    /// operator, every second or so.
    #[must_use]
    pub fn take_troubles(&self) -> Troubles {
        if self.state.borrow().is_offline() {
            self.noticed.borrow_mut().note(Trouble::Offline, 0);
        }
        self.noticed.borrow_mut().take()
    }

    fn notice(&self, segment: SegmentNumber, trouble: Trouble) {
        let generation = self.state.borrow().segments[usize::from(segment)].generation;
        self.noticed.borrow_mut().note(trouble, generation);
    }

    fn mention(&self, now: Timestamp) {
        self.now.set(self.now.get().max(now));
        if self.started.get().is_none() {
            self.started.set(Some(now));
        }
    }

    /// The answer to a change, or `None` after a wait: try again.
    async fn settle(&self, done: Result<Sequence, Refused>) -> Option<Result<Position, LogError>> {
        self.work.ring();
        match done {
            Ok(sequence) => {
                self.ring_if_needed();
                Some(Ok(Position(sequence)))
            }
            Err(Refused::TooLarge) => Some(Err(LogError::NotKept)),
            Err(Refused::Owed) => Some(Err(LogError::Owed)),
            Err(Refused::DirtyFull) => Some(Err(LogError::DirtyFull)),
            Err(Refused::Offline) => Some(Err(LogError::Offline)),
            Err(Refused::Moved) => None,
            Err(Refused::Full) if self.is_stuck.get() || self.is_stopping.get() => Some(Err(LogError::Full)),
            Err(Refused::Full) => {
                let (tell, room) = oneshot::channel();
                self.room.borrow_mut().push(tell);
                self.need.ring();
                let _ = room.await;
                None
            }
        }
    }

    fn ring_if_needed(&self) {
        if self.needs_reclaiming() {
            self.need.ring();
        }
    }

    fn tell_of_room(&self) {
        let waiting = std::mem::take(&mut *self.room.borrow_mut());
        for tell in waiting {
            // Who has gone needs no room.
            let _ = tell.send(());
        }
    }
}

/// What is planned for a key in the index, in bytes, everything included.
const INDEX_BYTES_PER_KEY: usize = 12;

impl<D> fmt::Debug for Log<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Log({:?})", self.state.borrow().index)
    }
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "too much waits for the disk",
            Self::NotKept => "the entry is more than the log keeps",
            Self::Owed => "a change with the same hash waits for the store",
            Self::DirtyFull => "too much waits for the store",
            Self::Unreadable => "a change that waits for the store cannot be read",
            Self::Withdrawn => "something newer came first",
            Self::Offline => "the disk is not used any more",
        })
    }
}

impl std::error::Error for LogError {}
