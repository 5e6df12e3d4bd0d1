//! What is in the air for each key: at most one fetch and one write at a time, and who waits for them.
//!
//! ```text
//!   reader ─▶ nothing in the air:       Lead, with a lease on filling memory
//!             a fetch that may be shared: Follow, and get what the leader gets
//!             a fetch from before a write: Follow the *next* fetch
//!
//!            begin_fetch                      settle
//!     idle ───────────────▶ leader asks ───────────────▶ followers have the answer; next readers? one leads them
//!                            │        ▲
//!               leader gone  └────────┘ the first follower leads, all others follow
//!
//!            begin_write                      turn dropped
//!     idle ───────────────▶ writing ───────────────────▶ the next writer's turn, or idle
//!                   revokes the lease     the fetch in the air may not be shared any more
//! ```
//! Two rules make this safe; without either of them a reader can see a value that an acknowledged write had replaced.
//!
//! - **Fill** (G): a fetch may fill memory only if no write was in the air when it began and none has begun since: what
//!   it carries may be older than what the write left in memory. Nishtala et al., "Scaling Memcache at Facebook",
//!   NSDI 2013, section 3.2.1.
//! - **Share** (F): a reader may share a fetch only if no write has completed since the fetch began: the store may have
//!   answered it before the write. It shares the next one, which begins after it came.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    fmt,
    rc::Rc,
};

use ahash::RandomState;
use futures::channel::oneshot;
use milena_proto::key::Key;

use crate::shard::{Answer, Limit};

/// Keys of one core that have something in the air.
pub const KEYS_IN_FLIGHT_MAX: usize = 16_384;

/// Readers that wait for one key.
pub const READERS_PER_KEY_MAX: usize = 16_384;

/// Writes of one key that wait for the one in the air.
pub const INFLIGHT_WRITES_PER_KEY_MAX: usize = 128;

/// What is in the air on one core.
pub(crate) struct Inflight {
    keys: RefCell<HashMap<Key, InTheAir, RandomState>>,
    fetch_number: Cell<u64>,
    rules: Rules,
}

/// The two rules, so that tests can turn one off and see that they notice.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Rule G: a write revokes the lease of a fetch.
    pub fill: bool,
    /// Rule F: a reader that comes after a write waits for the next fetch.
    pub share: bool,
}

impl Rules {
    /// Both rules hold, as always outside of those tests.
    pub const ALL: Self = Self { fill: true, share: true };
}

#[derive(Default)]
struct InTheAir {
    fetch: Option<Fetch>,
    /// Readers who may not share the fetch in the air.
    next: Vec<oneshot::Sender<News>>,
    is_writing: bool,
    writers: VecDeque<oneshot::Sender<WriteTurn>>,
}

struct Fetch {
    number: u64,
    may_fill: bool,
    may_be_shared: bool,
    followers: Vec<oneshot::Sender<News>>,
}

/// A reader's part in a fetch.
pub(crate) enum ReadTurn {
    /// Ask the store, and settle the lease with its answer.
    Lead(Lease),
    /// Wait.
    Follow(oneshot::Receiver<News>),
}

/// What a follower hears.
pub(crate) enum News {
    /// The answer of the fetch.
    Answer(Answer),
    /// There is nobody left who leads: it is the follower's turn.
    Lead(Lease),
}

/// The right to answer for all who wait for a key's fetch, and, until a write revokes it, to fill memory. Dropped
/// unsettled (its reader has gone), it passes to the next reader in line.
pub(crate) struct Lease {
    inflight: Rc<Inflight>,
    key: Key,
    number: u64,
    is_settled: bool,
}

/// The right to write a key. Dropping it gives the next writer its turn.
pub(crate) struct WriteTurn {
    inflight: Rc<Inflight>,
    key: Key,
}

impl Inflight {
    pub(crate) fn new(rules: Rules) -> Rc<Self> {
        Rc::new(Self { keys: RefCell::default(), fetch_number: Cell::new(0), rules })
    }

    /// Keys that have something in the air.
    pub(crate) fn keys_count(&self) -> usize {
        self.keys.borrow().len()
    }

    /// What is in the air may be older than what others have written: it fills nothing and is shared with nobody who comes
    /// from here on. O(keys in the air).
    pub(crate) fn revoke_all(&self) {
        for fetch in self.keys.borrow_mut().values_mut().filter_map(|air| air.fetch.as_mut()) {
            fetch.may_fill = false;
            fetch.may_be_shared = false;
        }
    }

    /// A reader's turn. O(1).
    ///
    /// # Errors
    /// [`KEYS_IN_FLIGHT_MAX`] or [`READERS_PER_KEY_MAX`] is reached.
    pub(crate) fn begin_fetch(self: &Rc<Self>, key: &Key) -> Result<ReadTurn, Limit> {
        let mut keys = self.keys.borrow_mut();
        let air = entry(&mut keys, key)?;
        let Some(fetch) = &mut air.fetch else {
            return Ok(ReadTurn::Lead(self.start(key, air, Vec::new())));
        };
        let queue = if fetch.may_be_shared { &mut fetch.followers } else { &mut air.next };
        if queue.len() >= READERS_PER_KEY_MAX {
            queue.retain(|reader| !reader.is_canceled());
        }
        if queue.len() >= READERS_PER_KEY_MAX {
            return Err(Limit::ReadersOfKey);
        }
        let (sender, receiver) = oneshot::channel();
        queue.push(sender);
        Ok(ReadTurn::Follow(receiver))
    }

    /// Waits for the key's turn to be written. A future that is dropped leaves the queue.
    ///
    /// The place in the queue is taken now, not when the future is first polled.
    ///
    /// # Errors
    /// [`KEYS_IN_FLIGHT_MAX`] or [`INFLIGHT_WRITES_PER_KEY_MAX`] is reached.
    pub(crate) fn begin_write(self: &Rc<Self>, key: &Key) -> Result<impl Future<Output = WriteTurn> + use<>, Limit> {
        let (sender, receiver) = oneshot::channel();
        let first = {
            let mut keys = self.keys.borrow_mut();
            let air = entry(&mut keys, key)?;
            if air.is_writing {
                if air.writers.len() >= INFLIGHT_WRITES_PER_KEY_MAX {
                    air.writers.retain(|writer| !writer.is_canceled());
                }
                if air.writers.len() >= INFLIGHT_WRITES_PER_KEY_MAX {
                    return Err(Limit::WritesOfKey);
                }
                air.writers.push_back(sender);
                None
            } else {
                air.is_writing = true;
                if let Some(fetch) = &mut air.fetch {
                    fetch.may_fill &= !self.rules.fill;
                }
                Some(WriteTurn { inflight: Rc::clone(self), key: key.clone() })
            }
        };
        Ok(async move {
            match first {
                Some(turn) => turn,
                None => receiver.await.expect("a writer in the queue gets its turn"),
            }
        })
    }

    /// Makes `followers` follow a new fetch, whose lease this is.
    fn start(self: &Rc<Self>, key: &Key, air: &mut InTheAir, followers: Vec<oneshot::Sender<News>>) -> Lease {
        debug_assert!(air.fetch.is_none(), "one fetch at a time");
        let number = self.fetch_number.replace(self.fetch_number.get() + 1);
        let may_fill = !air.is_writing || !self.rules.fill;
        air.fetch = Some(Fetch { number, may_fill, may_be_shared: true, followers });
        Lease { inflight: Rc::clone(self), key: key.clone(), number, is_settled: false }
    }

    /// Lets the first of `readers` who is still there lead the others, if there is one.
    fn start_next(self: &Rc<Self>, key: &Key, readers: Vec<oneshot::Sender<News>>) {
        let mut readers = readers.into_iter();
        let leader = readers.find(|reader| !reader.is_canceled());
        let Some(leader) = leader else { return self.drop_if_idle(key) };
        let lease = {
            let mut keys = self.keys.borrow_mut();
            let air = keys.get_mut(key).expect("whoever settles or leaves is still in it");
            self.start(key, air, readers.collect())
        };
        // Not while the table is borrowed: a lease that nobody takes passes itself on.
        let _ = leader.send(News::Lead(lease));
    }

    fn drop_if_idle(&self, key: &Key) {
        let mut keys = self.keys.borrow_mut();
        if keys.get(key).is_some_and(InTheAir::is_idle) {
            keys.remove(key);
        }
    }

    fn end_fetch(&self, lease: &Lease) -> (Fetch, Vec<oneshot::Sender<News>>) {
        let mut keys = self.keys.borrow_mut();
        let air = keys.get_mut(&lease.key).expect("a lease keeps its key in the table");
        let fetch = air.fetch.take().expect("a lease keeps its fetch");
        assert_eq!(fetch.number, lease.number, "one lease for each fetch");
        (fetch, std::mem::take(&mut air.next))
    }
}

fn entry<'a>(keys: &'a mut HashMap<Key, InTheAir, RandomState>, key: &Key) -> Result<&'a mut InTheAir, Limit> {
    if keys.len() >= KEYS_IN_FLIGHT_MAX && !keys.contains_key(key) {
        return Err(Limit::KeysInFlight);
    }
    Ok(keys.entry(key.clone()).or_default())
}

impl InTheAir {
    fn is_idle(&self) -> bool {
        self.fetch.is_none() && self.next.is_empty() && !self.is_writing && self.writers.is_empty()
    }
}

impl Lease {
    /// Whether what the fetch found may be kept: no write was in the air when it began, and none has begun since.
    pub(crate) fn may_fill(&self) -> bool {
        let keys = self.inflight.keys.borrow();
        let fetch = keys.get(&self.key).and_then(|air| air.fetch.as_ref()).expect("a lease keeps its fetch");
        fetch.may_fill
    }

    /// Whether a write of the key is in the air.
    pub(crate) fn is_being_written(&self) -> bool {
        self.inflight.keys.borrow().get(&self.key).is_some_and(|air| air.is_writing)
    }

    /// Gives `answer` to all followers; those who came too late for it begin the next fetch. O(followers).
    pub(crate) fn settle(mut self, answer: &Answer) {
        self.is_settled = true;
        let (fetch, next) = self.inflight.end_fetch(&self);
        for follower in fetch.followers {
            // A follower who has gone needs no answer.
            let _ = follower.send(News::Answer(answer.clone()));
        }
        self.inflight.start_next(&self.key, next);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.is_settled {
            // The next fetch begins after all of them came, so all may share it.
            let (fetch, next) = self.inflight.end_fetch(self);
            let readers = fetch.followers.into_iter().chain(next).collect();
            self.inflight.start_next(&self.key, readers);
        }
    }
}

impl Drop for WriteTurn {
    fn drop(&mut self) {
        let next = {
            let mut keys = self.inflight.keys.borrow_mut();
            let air = keys.get_mut(&self.key).expect("a turn keeps its key in the table");
            if let Some(fetch) = &mut air.fetch {
                fetch.may_be_shared &= !self.inflight.rules.share;
            }
            let next = std::iter::from_fn(|| air.writers.pop_front()).find(|writer| !writer.is_canceled());
            air.is_writing = next.is_some();
            next
        };
        match next {
            // Not while the table is borrowed: a turn that nobody takes passes itself on.
            Some(writer) => {
                let _ = writer.send(Self { inflight: Rc::clone(&self.inflight), key: self.key.clone() });
            }
            None => self.inflight.drop_if_idle(&self.key),
        }
    }
}

impl fmt::Debug for Inflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inflight({} keys)", self.keys_count())
    }
}
