//! The disk tier of one core: a log of records in segments on local disk, which survives the process and the machine.
//!
//! ```text
//!   get ──▶ index ──▶ candidates ──▶ waits for the disk? in pages already? else one read, shared ──▶ key compared ──▶ hit
//!   put ──▶ index ──▶ candidates ──▶ the key's own found ──▶ appended, index moved ──▶ durable(sequence)
//!
//!   run()  write: cut what has gathered ─▶ write ─▶ sync, if somebody waits ─▶ wake them ─▶ again        append.rs
//!          reclaim: too few segments free ─▶ choose one ─▶ copy what is needed ─▶ void ─▶ free         reclaim.rs
//!
//!   bytes        record.rs segment.rs footer.rs superblock.rs       all decisions, no I/O   state.rs reclaim.rs
//!   memory       index.rs: 8 bytes and their room for each key      the disk                device.rs device/
//!   the start    recover.rs: footers, tails, or the index of a clean stop
//! ```
//! The full key is compared with the record, always: an index slot is a hint of where to look. That holds for writes too,
//! which read the record they replace; so two keys never share a fate, and what is dead stays dead (state.rs).
//!
//! While one batch is being written the next gathers, so that a sync is shared by all who came meanwhile; see DeWitt et
//! al., "Implementation Techniques for Main Memory Database Systems", SIGMOD 1984, section 5 (group commit).
//!
//! Nothing here spawns or reads a clock. `RefCell`s are borrowed inside synchronous functions only. Which shell runs
//! [`Log::run`] is the caller's business; it must run for as long as the log is used.

mod append;
mod device;
mod footer;
mod index;
mod open;
mod reclaim;
mod record;
mod recover;
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

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    pin::pin,
    rc::Rc,
    time::Duration,
};

use ahash::RandomState;
use bytes::Bytes;
use futures::{
    FutureExt as _,
    channel::oneshot,
    future::{self, Either, LocalBoxFuture, Shared, WeakShared},
};
use milena_proto::key::{Key, KeyRef};

pub use device::{Device, DeviceError, Disk};
pub use open::{Discarded, LOG_BYTES_MIN, LogSettings, OpenError, Opened, Opening, SEGMENTS_MIN, open};
pub use segment::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENTS_MAX};
pub use state::Counts;
pub use superblock::SuperblockError;

use self::{
    footer::{Footer, FooterEntry, footer_bytes},
    index::Place,
    reclaim::Fate,
    record::{Body, Record, Sequence, entry_in},
    scan::Scan,
    segment::{SegmentHeader, SegmentNumber, State as SegmentState},
    signal::{Bell, yield_now},
    state::{Cycle, FREE_SEGMENTS, Failures, Located, Refused, State},
};
use crate::{Entry, Timestamp};

/// A batch is written at once when it has this many bytes, whoever waits.
const BATCH_BYTES: usize = 256 << 10;

/// How long a record waits for company that nobody needs on disk now; a process that is killed loses no more.
const GATHER: Duration = Duration::from_millis(50);

/// How long reclaiming waits when nothing can go.
const RECLAIM_PAUSE: Duration = Duration::from_millis(100);

/// Records that reclaiming decides about before it lets others run: some ten microseconds.
const RECORDS_PER_TURN: usize = 256;

/// How often a search begins anew because records moved meanwhile.
const SEARCHES_MAX: usize = 8;

/// Reads of the disk in the air; beyond them a Get is a miss.
const READS_MAX: usize = 1024;

/// Callers that wait for a sync.
pub const DURABLE_WAITERS_MAX: usize = 16_384;

/// The log of one core. Held by `Rc` on one executor; never leaves it.
pub struct Log<D> {
    device: Rc<D>,
    state: RefCell<State>,
    /// The latest time that anybody mentioned.
    now: Cell<Timestamp>,
    work: Bell,
    need: Bell,
    room: RefCell<Vec<oneshot::Sender<()>>>,
    durable: RefCell<Vec<Waiter>>,
    reads: RefCell<HashMap<Place, WeakShared<Reading>, RandomState>>,
    index_len_max: usize,
    is_stuck: Cell<bool>,
    is_stopping: Cell<bool>,
    /// Reclaiming has ended, because the log stops.
    has_reclaimed: Cell<bool>,
}

/// Who waits for a sync, and for which record.
type Waiter = (Sequence, oneshot::Sender<Result<(), LogError>>);

type Reading = LocalBoxFuture<'static, Result<Bytes, DeviceError>>;

/// What the log has under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The entry; its value is a buffer of its own.
    pub entry: Entry,
    /// Until when the copy is believed; `None` = for ever.
    pub believed_until: Option<Timestamp>,
}

/// Why the log did not keep something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogError {
    /// Too much waits for the disk, or no segment is free.
    Full,
    /// The entry is larger than an eighth of a segment, its version longer than 255 bytes, or its life over; what was
    /// under its key is forgotten.
    NotKept,
    /// The caller withdrew it, because something newer came first.
    Withdrawn,
    /// The disk failed too often and is not used any more.
    Offline,
}

/// A place in the order of all changes: [`Log::durable`] waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(Sequence);

/// Figures for the metrics page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Keys that the log has.
    pub entries: u64,
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
    /// Whether the disk was given up, or parts of it.
    pub is_degraded: bool,
    /// What was counted since the start.
    pub counts: Counts,
}

enum Unreadable {
    /// Too many reads are in the air.
    Busy,
    /// The device failed.
    Device,
    /// Not what was written.
    Corrupt,
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
        let index_len_max = if index_bytes_max == 0 { usize::MAX } else { index_bytes_max / INDEX_BYTES_PER_KEY };
        Rc::new(Self {
            device: Rc::new(device),
            state: RefCell::new(State::new(found)),
            now: Cell::new(Timestamp(0)),
            work: Bell::default(),
            need: Bell::default(),
            room: RefCell::default(),
            durable: RefCell::default(),
            reads: RefCell::default(),
            index_len_max,
            is_stuck: Cell::new(false),
            is_stopping: Cell::new(false),
            has_reclaimed: Cell::new(false),
        })
    }

    /// Returns the live copy under `key`, reading the disk at most once where the record is not in memory already.
    ///
    /// A record that cannot be read, or is not what was written, counts as a miss. A copy whose life has ended is
    /// forgotten on sight, so that a clock that jumps back does not revive it. The future may be dropped at any time.
    pub async fn get(self: Rc<Self>, key: Key, now: Timestamp) -> Option<Copy> {
        self.mention(now);
        for _ in 0..SEARCHES_MAX {
            let search = self.search(key.as_ref()).await;
            let Some((_, bytes)) = search.newest.clone() else {
                if search.has_moved {
                    continue;
                }
                return None;
            };
            if search.is_busy {
                return None; // What was not looked at may be newer.
            }
            return self.take_out(&key, &search.located(), &bytes, now);
        }
        None
    }

    /// Appends `entry` under `key`, replacing what was there. Waits while the buffers are full.
    ///
    /// `believed_until` says how long the copy may be answered with; it is kept in whole seconds. A future that is
    /// dropped has written nothing.
    ///
    /// # Errors
    /// [`LogError`]; after [`LogError::NotKept`] nothing is under the key, after the others what was there before may be.
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
    /// [`LogError::Full`] or [`LogError::Offline`]; what was there may then still be.
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
    /// index cannot tell from it is forgotten too, one in some ten thousand times.
    pub fn forget(&self, key: KeyRef<'_>) {
        self.state.borrow_mut().forget(key.hash());
        self.work.ring();
    }

    /// Waits until everything up to `position` survives a crash of the machine. All who wait share one sync.
    ///
    /// # Errors
    /// [`LogError::Offline`], after which it is not known whether it survives, or [`LogError::Full`] where [`DURABLE_WAITERS_MAX`] wait.
    pub async fn durable(self: Rc<Self>, position: Position) -> Result<(), LogError> {
        let answer = {
            let state = self.state.borrow();
            if state.durable() >= position.0 {
                return Ok(());
            }
            if state.is_offline() {
                return Err(LogError::Offline);
            }
            let mut waiters = self.durable.borrow_mut();
            if waiters.len() >= DURABLE_WAITERS_MAX {
                return Err(LogError::Full);
            }
            let (tell, answer) = oneshot::channel();
            waiters.push((position.0, tell));
            answer
        };
        self.work.ring();
        answer.await.unwrap_or(Err(LogError::Offline))
    }

    /// Believes no copy any more that is in the log now, until it is put again. O(1).
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
            live_bytes += segment.live_bytes();
        }
        Figures {
            entries: state.index.len() as u64,
            capacity_bytes: u64::from(state.segment_bytes()) * state.segments.len() as u64,
            used_bytes,
            live_bytes,
            held_bytes: state.held_bytes() as u64,
            index_bytes: state.index.held_bytes() as u64,
            segments,
            is_degraded: state.is_offline() || segments[4] > 0,
            counts: state.counts,
        }
    }

    fn mention(&self, now: Timestamp) {
        self.now.set(self.now.get().max(now));
    }

    // ---- Finding.

    fn take_out(&self, key: &Key, located: &Located, bytes: &Bytes, now: Timestamp) -> Option<Copy> {
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
        Some(Copy { entry, believed_until })
    }

    /// Looks at all candidates, and tells the key's records from others'.
    async fn search(&self, key: KeyRef<'_>) -> Search {
        let candidates = self.state.borrow().candidates(key.hash());
        let mut search = Search::default();
        let mut newest_sequence = 0;
        for &place in &candidates {
            match self.read(key, place).await {
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
                Err(why) => {
                    search.unreadable.push(place);
                    let mut state = self.state.borrow_mut();
                    state.suspect(place);
                    let is_corrupt = matches!(why, Unreadable::Corrupt);
                    state.counts.corrupt += u64::from(is_corrupt);
                    state.counts.read_errors += u64::from(!is_corrupt);
                }
            }
        }
        search.candidates = candidates;
        search
    }

    async fn locate(&self, key: KeyRef<'_>) -> Result<Located, LogError> {
        let search = self.search(key).await;
        if search.is_busy { Err(LogError::Full) } else { Ok(search.located()) }
    }

    /// The record at `place`, checked: from what waits for the disk, from pages in memory, or by one read.
    async fn read(&self, key: KeyRef<'_>, place: Place) -> Result<Bytes, Unreadable> {
        if let Some(record) = self.buffered(place) {
            return Ok(record);
        }
        if let Some(record) = self.resident(place) {
            return Ok(record);
        }
        let reading = self.begin_read(place).ok_or(Unreadable::Busy)?;
        let answer = reading.await;
        self.reads.borrow_mut().remove(&place);
        let bytes = answer.map_err(|_| Unreadable::Device)?;
        self.state.borrow_mut().counts.reads_ring += 1;
        let checked = self.checked(place, &bytes);
        // Reclaimed and written anew while we read: what came may be anything.
        if self.state.borrow().index.contains(key.hash(), place) { checked } else { Err(Unreadable::Corrupt) }
    }

    fn buffered(&self, place: Place) -> Option<Bytes> {
        let mut state = self.state.borrow_mut();
        let record = state.buffered(place)?;
        state.counts.reads_buffered += 1;
        Some(record)
    }

    fn resident(&self, place: Place) -> Option<Bytes> {
        let len = self.read_len(place);
        let bytes = self.device.read_resident(place.segment, place.offset, len)?;
        let record = self.checked(place, &bytes).ok()?;
        self.state.borrow_mut().counts.reads_resident += 1;
        Some(record)
    }

    fn read_len(&self, place: Place) -> usize {
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
    fn checked(&self, place: Place, bytes: &Bytes) -> Result<Bytes, Unreadable> {
        let (record, record_bytes) = Record::decode(bytes).map_err(|_| Unreadable::Corrupt)?;
        if !self.state.borrow().is_of_generation(place, record.sequence) {
            return Err(Unreadable::Corrupt);
        }
        Ok(bytes.slice(..record_bytes))
    }

    // ---- Changing.

    /// The answer to a change, or `None` after a wait: try again.
    async fn settle(&self, done: Result<Sequence, Refused>) -> Option<Result<Position, LogError>> {
        self.work.ring();
        match done {
            Ok(sequence) => {
                self.ring_if_needed();
                Some(Ok(Position(sequence)))
            }
            Err(Refused::TooLarge) => Some(Err(LogError::NotKept)),
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

    // ---- Writing.

    async fn write(&self) {
        loop {
            self.work_gathers().await;
            // A segment that is being emptied is emptied first.
            let is_stopping = self.is_stopping.get() && self.has_reclaimed.get();
            if is_stopping {
                self.state.borrow_mut().close_all();
            }
            let must_sync = is_stopping || self.is_waited_for();
            if self.state.borrow().has_work(must_sync) {
                let cycle = self.state.borrow_mut().begin_cycle(must_sync);
                let failures = self.perform(&cycle).await;
                self.state.borrow_mut().end_cycle(&cycle, &failures);
                self.tell_of_room();
                self.ring_if_needed();
            }
            self.tell_of_durability();
            if is_stopping && !self.state.borrow().has_work(true) {
                return;
            }
        }
    }

    fn is_waited_for(&self) -> bool {
        !self.durable.borrow().is_empty()
    }

    /// Waits for something to write, and then for company, unless somebody waits for it.
    async fn work_gathers(&self) {
        let mut gathering = None;
        loop {
            let is_urgent = self.state.borrow().has_urgent_work(self.is_waited_for(), BATCH_BYTES);
            if is_urgent || self.has_reclaimed.get() {
                return;
            }
            if gathering.is_none() && self.state.borrow().has_work(false) {
                gathering = Some(Box::pin(self.device.pause(GATHER)));
            }
            match &mut gathering {
                None => self.work.heard().await,
                Some(gathered) => match future::select(pin!(self.work.heard()), gathered).await {
                    Either::Left(_) => {}
                    Either::Right(_) => return,
                },
            }
        }
    }

    async fn perform(&self, cycle: &Cycle) -> Failures {
        let mut failures = Failures::default();
        let writes = cycle.batches.iter().map(|batch| {
            let write = self.device.write(batch.segment, batch.offset, batch.bytes.clone());
            async move { (batch.segment, write.await) }
        });
        for (segment, written) in future::join_all(writes).await {
            if written.is_err() {
                failures.writes.insert(segment);
            }
        }
        let to_sync = cycle.syncs.iter().filter(|segment| !failures.writes.contains(segment));
        let syncs = to_sync.map(|&segment| {
            let sync = self.device.sync(segment);
            async move { (segment, sync.await) }
        });
        for (segment, synced) in future::join_all(syncs).await {
            if synced.is_err() {
                failures.syncs.insert(segment);
            }
        }
        failures
    }

    fn tell_of_durability(&self) {
        let (durable, is_offline) = {
            let state = self.state.borrow();
            (state.durable(), state.is_offline())
        };
        let is_over = |(sequence, tell): &mut Waiter| is_offline || *sequence <= durable || tell.is_canceled();
        let over: Vec<_> = self.durable.borrow_mut().extract_if(.., is_over).collect();
        for (sequence, tell) in over {
            let answer = if sequence <= durable { Ok(()) } else { Err(LogError::Offline) };
            // Who has gone needs no answer.
            let _ = tell.send(answer);
        }
    }

    // ---- Reclaiming.

    fn needs_reclaiming(&self) -> bool {
        let state = self.state.borrow();
        let is_index_full = state.index.len() > self.index_len_max;
        let is_full = state.free_count() + state.voids_coming() < FREE_SEGMENTS || is_index_full;
        !state.is_offline() && (is_full || state.is_blocked() || state.has_surplus())
    }

    async fn reclaim(&self) {
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
                // Whoever waits would wait for ever if nothing else can go.
                self.is_stuck.set(true);
                self.tell_of_room();
                self.tell_of_durability();
            }
            let pause = self.device.pause(RECLAIM_PAUSE);
            future::select(pin!(self.need.heard()), Box::pin(pause)).await;
        }
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
        // Not known and voided would be forgotten without a tombstone.
        let Some(entries) = self.entries_of(victim).await else { return false };
        let mut carried = Vec::new();
        for turn in entries.chunks(RECORDS_PER_TURN) {
            for entry in turn {
                let place = place_of(victim, entry);
                let mut state = self.state.borrow_mut();
                let hits = state.index.hits(entry.key_hash, place);
                let entry = &FooterEntry { has_older: entry.has_older || bury_all, ..*entry };
                let is_done = match reclaim::fate(entry, hits, oldest_elsewhere, carry_all, carry_left) {
                    Fate::Drop => true,
                    Fate::Evict => state.evict(entry.key_hash, place, false),
                    Fate::Bury => state.evict(entry.key_hash, place, true),
                    Fate::Repeat => state.carry_tombstone(entry.key_hash, entry.sequence),
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
            yield_now().await;
        }
        if !self.carry(victim, &carried, oldest_elsewhere).await {
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
            let bytes = self.device.read(victim, together[0].offset, len).await;
            for entry in together {
                let start = (entry.offset - together[0].offset) as usize;
                let record = bytes.as_ref().ok().and_then(|bytes| Record::decode(bytes.get(start..)?).ok());
                if !self.carry_one(victim, entry, record.map(|(record, _)| record), oldest_elsewhere) {
                    return false;
                }
            }
            self.work.ring();
            yield_now().await;
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
        if !state.index.contains(hash, place) {
            return true; // Replaced or deleted while we read.
        }
        let is_it = |record: &Record<'_>| record.sequence == entry.sequence && record.key_hash == hash;
        let is_alive = |record: &Record<'_>| match record.body {
            Body::Put { expires, .. } => expires.is_none_or(|expires| expires > self.now.get()),
            Body::Tombstone { .. } => false,
        };
        let record = record.filter(is_it);
        if record.is_none() {
            state.counts.corrupt += 1;
        }
        match record.filter(is_alive) {
            Some(record) if state.carry(hash, place, &record) => true,
            _ => {
                let must_bury = entry.has_older && oldest_elsewhere.is_some_and(|oldest| oldest < entry.sequence);
                state.evict(hash, place, must_bury)
            }
        }
    }

    /// What is in a sealed segment: from its footer, or where that is damaged from its records; `None` if it cannot be read.
    async fn entries_of(&self, number: SegmentNumber) -> Option<Vec<FooterEntry>> {
        let (record_count, segment_bytes, header) = {
            let state = self.state.borrow();
            if let Some(kept) = state.footers_kept.get(&number) {
                return Some(kept.clone());
            }
            let segment = &state.segments[usize::from(number)];
            (segment.record_count as usize, state.segment_bytes(), state.header_of(number))
        };
        let len = footer_bytes(record_count);
        if len < segment_bytes as usize {
            let bytes = self.read_whole(number, segment_bytes - len as u32, len).await?;
            if let Some(footer) = Footer::decode(&bytes, &header) {
                return Some(footer.iter().collect());
            }
        }
        self.scan(number, &header, segment_bytes).await
    }

    /// Fewer bytes than asked for are a failure: they look like an end where there is none.
    async fn read_whole(&self, number: SegmentNumber, offset: u32, len: usize) -> Option<Bytes> {
        self.device.read(number, offset, len).await.ok().filter(|bytes| bytes.len() == len)
    }

    /// Reads a segment from its start to its first invalid record.
    async fn scan(
        &self,
        number: SegmentNumber,
        header: &SegmentHeader,
        segment_bytes: u32,
    ) -> Option<Vec<FooterEntry>> {
        let mut scan = Scan::new(header.first_sequence, segment_bytes);
        while let Some((offset, len)) = scan.wanted() {
            scan.take(&self.read_whole(number, offset, len).await?);
            yield_now().await;
        }
        Some(scan.entries)
    }

    /// Takes out of the index what a damaged footer did not name.
    async fn forget_rest(&self, number: SegmentNumber) {
        let table_count = self.state.borrow().index.table_count();
        for table in 0..table_count {
            if self.state.borrow().segments[usize::from(number)].live_count == 0 {
                return;
            }
            self.state.borrow_mut().forget_places(table, number);
            yield_now().await;
        }
    }
}

/// What is planned for a key in the index, in bytes, everything included.
const INDEX_BYTES_PER_KEY: usize = 12;

/// What a search for a key has found.
#[derive(Default)]
struct Search {
    candidates: Vec<Place>,
    newest: Option<(Place, Bytes)>,
    outdated: Vec<Place>,
    unreadable: Vec<Place>,
    /// A candidate is not in the index any more.
    has_moved: bool,
    /// A candidate was not looked at, because too many reads are in the air.
    is_busy: bool,
}

impl Search {
    fn located(self) -> Located {
        let Self { candidates, newest, outdated, unreadable, .. } = self;
        Located { candidates, current: newest.map(|(place, _)| place), outdated, unreadable }
    }
}

/// The sequence of a record, if it is a put of `key`.
fn sequence_if_of(key: KeyRef<'_>, bytes: &[u8]) -> Option<Sequence> {
    let (record, _) = Record::parse(bytes).ok()?;
    match record.body {
        Body::Put { bucket, name, .. } if name == key.name() && bucket == key.bucket().as_bytes() => {
            Some(record.sequence)
        }
        Body::Put { .. } | Body::Tombstone { .. } => None,
    }
}

fn place_of(segment: SegmentNumber, entry: &FooterEntry) -> Place {
    Place::new(segment, entry.offset, entry.record_bytes as usize)
}

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
            Self::Withdrawn => "something newer came first",
            Self::Offline => "the disk is not used any more",
        })
    }
}

impl std::error::Error for LogError {}
