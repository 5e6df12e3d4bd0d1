//! Helper threads: they wait for the store so that cores do not.
//!
//! ```text
//!   any core ──try──▶ reads       ▒▒▒▒▒   one bounded queue each,   ──▶ 64 threads
//!   any core ──try──▶ writes      ▒▒      so that writes in trouble ──▶ 32 threads
//!   any core ──try──▶ background          never hold up reads       ──▶  1 thread
//! ```
//! The background has the probe alone to do, once for each start, until there is a write mode that uploads behind the
//! callers' backs.
//!
//! A thread is a request in flight: 64 of them at 50 ms each are 1,280 reads a second, so their number is a setting.
//! Threads end when the last [`Pools`] is dropped and their queue is empty; what is in it is still done.

use std::{
    fmt, io,
    sync::{Arc, Weak},
    thread,
};

use crossbeam::channel;
use milena_net::mesh;
use milena_proto::key::Key;

use super::{Abilities, Asked, Asker, Store};
use crate::{Condition, Error, Found, Put, Timestamp, Version};

/// Stack of a helper thread: enough for TLS.
const STACK_BYTES: usize = 512 << 10;

/// How many helper threads, and how many jobs may wait for each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSizes {
    /// Threads that read, at least 1.
    pub read_threads: u32,
    /// Threads that write, at least 1.
    pub write_threads: u32,
    /// Threads for what no caller waits for, at least 1: the probe at the start, and nothing else yet.
    pub background_threads: u32,
    /// Jobs that may wait in each queue, at least 1.
    pub queue: usize,
}

impl Default for PoolSizes {
    fn default() -> Self {
        Self { read_threads: 64, write_threads: 32, background_threads: 1, queue: 1024 }
    }
}

/// The helper threads of a process, shared by its cores.
pub struct Pools {
    reads: channel::Sender<Job>,
    writes: channel::Sender<Job>,
    background: channel::Sender<Job>,
}

/// What is to be done, for whom.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) ticket: usize,
    /// Dead when nobody waits any more: a read is then not begun.
    pub(super) wanted: Weak<()>,
    pub(super) answer_to: mesh::Sender<Answer>,
}

pub(super) enum Work {
    Get { key: Key, known: Option<Version>, now: Timestamp },
    Put { key: Key, put: Put },
    Delete { key: Key, condition: Condition },
    Probe,
}

/// What came of the job with this ticket.
pub(super) struct Answer {
    pub(super) ticket: usize,
    pub(super) outcome: Outcome,
    pub(super) asked: Vec<Asked>,
}

pub(super) enum Outcome {
    Found(Result<Found, Error>),
    Written(Result<Version, Error>),
    Removed(Result<(), Error>),
    Probed(Result<Abilities, Error>),
    /// Nobody waited for it any more.
    NotBegun,
}

impl Pools {
    /// Starts the threads for `store`.
    ///
    /// # Errors
    /// When the system refuses a thread.
    ///
    /// # Panics
    /// When a size is 0.
    pub fn start(store: &Arc<dyn Store>, sizes: PoolSizes) -> io::Result<Arc<Self>> {
        let pool = |name: &str, threads| start_pool(name, store, threads, sizes.queue);
        Ok(Arc::new(Self {
            reads: pool("store-read", sizes.read_threads)?,
            writes: pool("store-write", sizes.write_threads)?,
            background: pool("store-back", sizes.background_threads)?,
        }))
    }

    /// Queues a job; `false` when its queue is full.
    pub(super) fn try_start(&self, job: Job) -> bool {
        let queue = match job.work {
            Work::Get { .. } => &self.reads,
            Work::Put { .. } | Work::Delete { .. } => &self.writes,
            Work::Probe => &self.background,
        };
        queue.try_send(job).is_ok()
    }
}

impl fmt::Debug for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pools")
            .field("reads_waiting", &self.reads.len())
            .field("writes_waiting", &self.writes.len())
            .field("background_waiting", &self.background.len())
            .finish()
    }
}

fn start_pool(name: &str, store: &Arc<dyn Store>, threads: u32, queue: usize) -> io::Result<channel::Sender<Job>> {
    assert!(threads > 0 && queue > 0, "a pool without threads or room never answers");
    let (sender, receiver) = channel::bounded(queue);
    for index in 0..threads {
        let (store, jobs) = (Arc::clone(store), channel::Receiver::clone(&receiver));
        let thread = thread::Builder::new().name(format!("{name}-{index}")).stack_size(STACK_BYTES);
        thread.spawn(move || work(&*store, &jobs, &mut Asker::new(threads)))?;
    }
    Ok(sender)
}

fn work(store: &dyn Store, jobs: &channel::Receiver<Job>, asker: &mut Asker) {
    for Job { work, ticket, wanted, answer_to } in jobs {
        let outcome = match work {
            Work::Get { .. } if wanted.strong_count() == 0 => Outcome::NotBegun,
            Work::Get { key, known, now } => Outcome::Found(store.get(&key, known.as_ref(), now, asker)),
            Work::Put { key, put } => Outcome::Written(store.put(&key, &put, asker)),
            Work::Delete { key, condition } => Outcome::Removed(store.delete(&key, &condition, asker)),
            Work::Probe => Outcome::Probed(store.probe(asker)),
        };
        let answer = Answer { ticket, outcome, asked: asker.take_asked() };
        match answer_to.try_send(answer) {
            // The core has stopped: nobody is left to be told.
            Ok(()) | Err(mesh::Refused::Gone(_)) => {}
            Err(mesh::Refused::Full(_)) => panic!("a mailbox holds an answer for every ticket of its core"),
        }
    }
}
