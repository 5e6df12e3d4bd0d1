//! A core's view of the object store: futures in front of helper threads.
//!
//! ```text
//!   Object::get ── ticket, job ──▶ helper thread
//!        │ future waits                 │
//!        ▼                              ▼
//!   ┌ tickets ┐ ◀── completes ── Answers::run ◀── mailbox ── answer, what was asked
//!   └─────────┘                  one task per core
//! ```
//! A ticket is held until its answer is here, whether or not somebody still waits for it, so the mailbox has room for
//! every answer. The waker of a future stays on its core: the only one that helper threads call is that of the task
//! of [`Answers`].

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    future::{Future, poll_fn},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::channel::oneshot;
use milena_net::{mesh, metrics::Latency};
use milena_proto::key::Key;
use slab::Slab;

use super::{
    Abilities, Asked, Pools, Request,
    pool::{Answer, Job, Outcome, Work},
};
use crate::{Cause, Condition, Error, Found, Operation, Put, Tier, Timestamp, Version};

/// Requests of one core that may wait for the store at once; more are [`Cause::Busy`].
pub const TICKETS_MAX: usize = 4096;

/// The object store as a tier. Cheap to clone; never leaves its core.
///
/// A request begins when it is made, not when its future is first polled. A get whose future is dropped before a
/// thread took it is not begun; a put or delete is always carried out.
#[derive(Clone)]
pub struct Object {
    shared: Rc<Shared>,
}

/// The answers to one core's requests. They are delivered as long as this is polled.
pub struct Answers {
    shared: Rc<Shared>,
    mailbox: mesh::Receiver<Answer>,
}

/// What one core has asked of S3 so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counters {
    /// How many requests, by kind and status; the status is `None` where no answer came.
    pub requests: BTreeMap<(Request, Option<u16>), u64>,
    /// How long they took, by kind.
    pub took: BTreeMap<Request, Latency>,
    /// Requests that wait for the store now, in a queue or with a thread.
    pub inflight: usize,
}

struct Shared {
    pools: Arc<Pools>,
    answer_to: mesh::Sender<Answer>,
    waiting: RefCell<Waiting>,
    counters: RefCell<Counters>,
}

#[derive(Default)]
struct Waiting {
    tickets: Slab<oneshot::Sender<Outcome>>,
    /// Nobody delivers answers any more.
    is_over: bool,
}

/// A request that has been made. The `Arc` tells the helper threads that somebody waits.
struct Pending {
    outcome: oneshot::Receiver<Outcome>,
    _wanted: Arc<()>,
}

impl Object {
    /// This core's access to `pools`, and the answers, which a task of the core must poll.
    #[must_use]
    pub fn new(pools: Arc<Pools>) -> (Self, Answers) {
        let (answer_to, mailbox) = mesh::mailbox(TICKETS_MAX);
        let shared = Rc::new(Shared { pools, answer_to, waiting: RefCell::default(), counters: RefCell::default() });
        (Self { shared: Rc::clone(&shared) }, Answers { shared, mailbox })
    }

    /// Asks the store what it can do; see [`Store::probe`](super::Store::probe).
    pub fn probe(&self) -> impl Future<Output = Result<Abilities, Error>> + 'static {
        let pending = self.start(Operation::Put, Work::Probe);
        async move {
            match pending?.outcome.await {
                Ok(Outcome::Probed(answer)) => answer,
                Ok(_) => unreachable!("a probe is answered as one"),
                Err(oneshot::Canceled) => Err(Operation::Put.failed(stopping())),
            }
        }
    }

    /// What this core has asked so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = self.shared.counters.borrow().clone();
        counters.inflight = self.shared.waiting.borrow().tickets.len();
        counters
    }

    fn start(&self, operation: Operation, work: Work) -> Result<Pending, Error> {
        let mut waiting = self.shared.waiting.borrow_mut();
        if waiting.is_over {
            return Err(operation.failed(stopping()));
        }
        if waiting.tickets.len() == TICKETS_MAX {
            return Err(operation.failed(Cause::Busy));
        }
        let (answer, outcome) = oneshot::channel();
        let wanted = Arc::new(());
        let ticket = waiting.tickets.insert(answer);
        let answer_to = self.shared.answer_to.clone();
        let job = Job { work, ticket, wanted: Arc::downgrade(&wanted), answer_to };
        if !self.shared.pools.try_start(job) {
            waiting.tickets.remove(ticket);
            return Err(operation.failed(Cause::Busy));
        }
        Ok(Pending { outcome, _wanted: wanted })
    }
}

impl Tier for Object {
    fn get(
        &self,
        key: &Key,
        known: Option<&Version>,
        now: Timestamp,
    ) -> impl Future<Output = Result<Found, Error>> + 'static {
        let work = Work::Get { key: key.clone(), known: known.cloned(), now };
        let pending = self.start(Operation::Get, work);
        async move {
            let mut pending = pending?;
            match (&mut pending.outcome).await {
                Ok(Outcome::Found(answer)) => answer,
                Ok(_) => unreachable!("a get that is waited for is answered as one"),
                Err(oneshot::Canceled) => Err(Operation::Get.failed(stopping())),
            }
        }
    }

    fn put(&self, key: &Key, put: Put) -> impl Future<Output = Result<Version, Error>> + 'static {
        let pending = self.start(Operation::Put, Work::Put { key: key.clone(), put });
        async move {
            match pending?.outcome.await {
                Ok(Outcome::Written(answer)) => answer,
                Ok(_) => unreachable!("a put is answered as one"),
                Err(oneshot::Canceled) => Err(Operation::Put.failed(unheard())),
            }
        }
    }

    fn delete(&self, key: &Key, condition: Condition) -> impl Future<Output = Result<(), Error>> + 'static {
        let pending = self.start(Operation::Delete, Work::Delete { key: key.clone(), condition });
        async move {
            match pending?.outcome.await {
                Ok(Outcome::Removed(answer)) => answer,
                Ok(_) => unreachable!("a delete is answered as one"),
                Err(oneshot::Canceled) => Err(Operation::Delete.failed(unheard())),
            }
        }
    }
}

impl Answers {
    /// Delivers answers for as long as it is polled; a core spawns this once. Dropping it fails what still waits.
    pub async fn run(mut self) {
        poll_fn(|cx| self.poll_deliver(cx)).await;
    }

    /// Delivers what has arrived. Ready only when no answer can come any more.
    pub fn poll_deliver(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(answer) = ready!(self.mailbox.poll_recv(cx)) {
            self.deliver(answer);
        }
        Poll::Ready(())
    }

    fn deliver(&self, answer: Answer) {
        let mut counters = self.shared.counters.borrow_mut();
        answer.asked.iter().for_each(|asked| counters.count(asked));
        drop(counters);
        // Bound first: completing wakes its waiter, which some executors poll at once.
        let waiter = self.shared.waiting.borrow_mut().tickets.remove(answer.ticket);
        // When nobody waits any more, the answer is dropped.
        let _ = waiter.send(answer.outcome);
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting.borrow_mut();
        waiting.is_over = true;
        let left: Vec<_> = waiting.tickets.drain().collect();
        drop(waiting);
        drop(left);
    }
}

impl Counters {
    fn count(&mut self, asked: &Asked) {
        *self.requests.entry((asked.request, asked.status)).or_default() += 1;
        self.took.entry(asked.request).or_default().record(asked.took);
    }

    /// What the requests of a kind have cost so far, in dollars at list prices.
    #[must_use]
    pub fn cost_dollars(&self, request: Request) -> f64 {
        let count: u64 = self.requests.iter().filter(|((kind, _), _)| *kind == request).map(|(_, count)| count).sum();
        (count * request.nanodollars()) as f64 / 1e9
    }

    /// Adds another core's.
    pub fn add(&mut self, other: &Self) {
        for (kind, count) in &other.requests {
            *self.requests.entry(*kind).or_default() += count;
        }
        for (kind, took) in &other.took {
            self.took.entry(*kind).or_default().merge(took);
        }
        self.inflight += other.inflight;
    }
}

fn stopping() -> Cause {
    Cause::Unavailable(Arc::from("store: this core is stopping"))
}

fn unheard() -> Cause {
    Cause::OutcomeUnknown(Arc::from("store: this core is stopping and did not wait for the answer"))
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object").field("waiting", &self.shared.waiting.borrow().tickets.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").field("mailbox", &self.mailbox).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::{Pin, pin},
        sync::{Condvar, Mutex},
        task::{Wake, Waker},
        thread,
        time::Duration,
    };

    use bytes::Bytes;
    use futures::future::LocalBoxFuture;
    use milena_proto::key::KeyRef;

    use super::*;
    use crate::{
        Entry,
        object::{Asker, PoolSizes, Store},
    };

    /// A store that keeps whoever asks for a key in `held` until it is released, and writes down what it was asked.
    #[derive(Debug, Default)]
    struct Scripted {
        state: Mutex<Script>,
        changed: Condvar,
    }

    #[derive(Debug, Default)]
    struct Script {
        held: Vec<&'static str>,
        begun: Vec<String>,
    }

    impl Scripted {
        fn begin(&self, operation: &str, key: &Key) {
            let name = String::from_utf8(key.name().to_vec()).unwrap();
            let mut state = self.state.lock().unwrap();
            state.begun.push(format!("{operation} {name}"));
            self.changed.notify_all();
            while state.held.contains(&&*name) {
                state = self.changed.wait(state).unwrap();
            }
        }

        fn hold(&self, name: &'static str) {
            self.state.lock().unwrap().held.push(name);
        }

        fn release(&self) {
            self.state.lock().unwrap().held.clear();
            self.changed.notify_all();
        }

        fn await_begun(&self, what: &str) {
            let mut state = self.state.lock().unwrap();
            while !state.begun.iter().any(|begun| begun == what) {
                state = self.changed.wait(state).unwrap();
            }
        }

        fn begun(&self) -> Vec<String> {
            self.state.lock().unwrap().begun.clone()
        }
    }

    impl Store for Scripted {
        fn get(&self, key: &Key, _: Option<&Version>, _: Timestamp, asker: &mut Asker) -> Result<Found, Error> {
            self.begin("get", key);
            asker.note(Asked { request: Request::Get, status: Some(404), took: Duration::from_millis(1) });
            Ok(Found::Absent)
        }

        fn put(&self, key: &Key, _: &Put, asker: &mut Asker) -> Result<Version, Error> {
            self.begin("put", key);
            asker.note(Asked { request: Request::Put, status: Some(200), took: Duration::from_millis(2) });
            Ok(version())
        }

        fn delete(&self, key: &Key, _: &Condition, _: &mut Asker) -> Result<(), Error> {
            self.begin("delete", key);
            Ok(())
        }

        fn get_document(&self, _: &str, _: &mut Asker) -> Result<Option<Entry>, Error> {
            unreachable!("a core has no documents")
        }

        fn put_document(&self, _: &str, _: &Put, _: &mut Asker) -> Result<Version, Error> {
            unreachable!("a core has no documents")
        }

        fn probe(&self, _: &mut Asker) -> Result<Abilities, Error> {
            Ok(Abilities { conditional_puts: true, conditional_deletes: false })
        }
    }

    /// A core: one task of answers, polled together with whatever the test waits for.
    struct Core {
        object: Object,
        answers: Answers,
        store: Arc<Scripted>,
    }

    struct Unpark(thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// One reader, one writer, and room for two jobs that wait.
    fn core() -> Core {
        let store = Arc::new(Scripted::default());
        let sizes = PoolSizes { read_threads: 1, write_threads: 1, background_threads: 1, queue: 2 };
        let shared: Arc<dyn Store> = Arc::<Scripted>::clone(&store);
        let (object, answers) = Object::new(Pools::start(&shared, sizes).unwrap());
        Core { object, answers, store }
    }

    impl Core {
        fn finish<F: Future>(&mut self, future: F) -> F::Output {
            let waker = Waker::from(Arc::new(Unpark(thread::current())));
            let cx = &mut Context::from_waker(&waker);
            let mut future: Pin<&mut F> = pin!(future);
            loop {
                let _ = self.answers.poll_deliver(cx);
                match future.as_mut().poll(cx) {
                    Poll::Ready(output) => return output,
                    Poll::Pending => thread::park(),
                }
            }
        }

        fn get(&self, name: &str) -> LocalBoxFuture<'static, Result<Found, Error>> {
            Box::pin(self.object.get(&key(name), None, Timestamp(0)))
        }

        fn put(&self, name: &str) -> LocalBoxFuture<'static, Result<Version, Error>> {
            Box::pin(self.object.put(&key(name), Put::new("", Condition::Always)))
        }
    }

    fn key(name: &str) -> Key {
        KeyRef::parse(b"b", name.as_bytes()).unwrap().to_key()
    }

    fn version() -> Version {
        Version::new(Bytes::from("v")).unwrap()
    }

    fn busy<T>(operation: Operation) -> Result<T, Error> {
        Err(operation.failed(Cause::Busy))
    }

    #[test]
    fn every_request_gets_its_own_answer() {
        let mut core = core();
        let (get, put) = (core.get("a"), core.put("b"));
        let (delete, probe) = (core.object.delete(&key("c"), Condition::Always), core.object.probe());
        assert_eq!(core.object.counters().inflight, 4);
        assert_eq!(core.finish(put), Ok(version()));
        assert_eq!(core.finish(get), Ok(Found::Absent));
        assert_eq!(core.finish(delete), Ok(()));
        assert_eq!(core.finish(probe), Ok(Abilities { conditional_puts: true, conditional_deletes: false }));
        assert_eq!(core.object.counters().inflight, 0);
    }

    #[test]
    fn a_full_queue_is_busy_at_once() {
        let mut core = core();
        core.store.hold("held");
        let held = core.get("held");
        core.store.await_begun("get held");
        let waiting = [core.get("a"), core.get("b")];
        assert_eq!(core.finish(core.get("c")), busy(Operation::Get));
        core.store.release();
        assert_eq!(core.finish(held), Ok(Found::Absent));
        for one in waiting {
            assert_eq!(core.finish(one), Ok(Found::Absent));
        }
        let again = core.get("c");
        assert_eq!(core.finish(again), Ok(Found::Absent));
    }

    #[test]
    fn writes_in_trouble_hold_up_no_read() {
        let mut core = core();
        core.store.hold("held");
        let held = core.put("held");
        let _waiting = [core.put("a"), core.put("b")];
        let get = core.get("c");
        assert_eq!(core.finish(get), Ok(Found::Absent));
        core.store.release();
        assert_eq!(core.finish(held), Ok(version()));
    }

    #[test]
    fn a_get_that_nobody_waits_for_is_not_begun_and_a_put_is() {
        let mut core = core();
        core.store.hold("held");
        let held = (core.get("held"), core.put("held"));
        core.store.await_begun("get held");
        core.store.await_begun("put held");
        drop((core.get("unwanted"), core.put("unwanted")));
        core.store.release();
        assert_eq!(core.finish(held.0), Ok(Found::Absent));
        assert_eq!(core.finish(held.1), Ok(version()));
        let last = (core.get("last"), core.put("last"));
        core.finish(last.0).unwrap();
        core.finish(last.1).unwrap();

        let begun = core.store.begun();
        assert!(!begun.contains(&"get unwanted".into()), "{begun:?}");
        assert!(begun.contains(&"put unwanted".into()), "{begun:?}");
        let counters = core.object.counters();
        assert_eq!(counters.requests[&(Request::Put, Some(200))], 3, "the answer to nobody is counted");
        assert_eq!(counters.inflight, 0);
        assert_eq!(counters.took[&Request::Put].count(), 3);
        assert!((counters.cost_dollars(Request::Put) - 15e-6).abs() < 1e-12);
    }

    #[test]
    fn a_core_that_stops_fails_what_still_waits() {
        let mut core = core();
        core.store.hold("held");
        let (get, put) = (core.get("held"), core.put("held"));
        let Core { object, answers, store } = core;
        drop(answers);
        core = Core { answers: Object::new(Arc::clone(&object.shared.pools)).1, object, store };
        assert!(matches!(core.finish(get).unwrap_err().cause, Cause::Unavailable(_)));
        assert!(matches!(core.finish(put).unwrap_err().cause, Cause::OutcomeUnknown(_)));
        let late = core.put("late");
        assert!(matches!(core.finish(late).unwrap_err().cause, Cause::Unavailable(_)), "it was not begun");
        core.store.release();
    }
}
