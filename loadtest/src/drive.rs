//! The client's cores: connections, streams on them, and the clock reads that everything else rests on.
//!
//! ```text
//!   one core     open ─▶ preload ─▶ Ready ─┐            ┌─▶ warm-up ─▶ measured ─▶ afterwards ─▶ what it has measured
//!   the others   open ─▶ preload ─▶ Ready ─┴─ begin at ─┘            one Report for each second
//!
//!   on a core    pacer ──gives sends that are due──▶ stream ─▶ connection ─▶ socket
//!                                                    one task for each, one call at a time
//! ```
//! In a closed loop there is no pacer: a stream sends as soon as it is answered. In an open one the pacer does not sleep while
//! the next send is near: a sleeping thread wakes tens of microseconds late, which is more than the server takes to answer.
//! It has the core look at its sockets again and again, so that an answer is seen when it comes, and looks at nothing but the
//! clock only at the very end. What it spends so counts as idle.
//!
//! ```text
//!   next send   ── more than NEAR ──▶ sleep ── NEAR ──▶ look at the sockets, again and again ── LAST ──▶ the clock ─▶ send
//! ```

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    sync::mpsc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{
    channel::oneshot,
    future::{Either, join_all, select},
    poll,
};
use milena_net::{
    cores::{Cores, CoresConfig, StartError},
    mesh,
    stream::ReadBuffer,
    task,
};
use smallvec::SmallVec;

use crate::{
    cost,
    pace::{Pace, Phases, Step},
    protocol::{Answer, Connection, Entry, Failure, Outcome, Request, Verb},
    recorder::{Call, Ended, Measured, Recorder},
    schedule::Arrivals,
    target::Target,
    workload::{Op, Operation},
};

/// A gap that is longer is slept through, but for its last part.
const NEAR: Duration = Duration::from_millis(3);

/// A sleep may last this much longer than it should.
const OVERSLEEP_MAX: Duration = Duration::from_millis(2);

/// The last part of a gap, in which the clock alone is looked at; more where a look at the sockets takes longer.
const LAST: Duration = Duration::from_micros(5);

/// A wait that is so short that the core does not sleep for it: it looks at its sockets, and finds that the time is over.
const LOOK: Duration = Duration::from_micros(1);

/// Calls of the preload that may fail before it is given up, for each stream.
const PRELOAD_FAILURES_MAX: u32 = 3;

/// What is asked on a core, and who is told how it went.
pub trait Load: 'static {
    /// The next value to be written before everything else; `None` after the last.
    fn preload(&mut self) -> Option<Operation>;

    /// What is asked next, or for a batch, what can be asked together with operations that are `like` this; `None` when
    /// there is no more of it.
    fn next(&mut self, like: Option<Op>) -> Option<Operation>;

    /// The value that `operation` writes.
    fn value(&mut self, operation: &Operation) -> Bytes;

    /// A call of `operations` has ended. A read-modify-write is told twice.
    fn answered(&mut self, verb: Verb, operations: &[Operation], result: &Result<Answer, Failure>);
}

/// What all cores do alike.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whom to ask.
    pub target: Target,
    /// The bucket of all keys.
    pub bucket: String,
    /// Cores.
    pub cores: usize,
    /// Whether each is bound to a processor.
    pub pin: bool,
    /// Whether the pacer may wait in a loop.
    pub spin: bool,
    /// Connections over all cores, at least one for each.
    pub connections: usize,
    /// Streams on each connection.
    pub streams: usize,
    /// Keys in each call.
    pub batch: usize,
    /// How long a call may take.
    pub deadline: Duration,
    /// Whether a read that finds nothing is followed by a write of that key.
    pub fill: bool,
    /// Warm-up and measured part. A run ends before them when there is nothing more to ask.
    pub phases: Phases,
}

/// What a core tells while it runs.
#[derive(Debug)]
pub enum Report {
    /// It is connected and has written its part of the keys.
    Ready {
        /// Who answers.
        protocol: &'static str,
    },
    /// So many more keys are written.
    Preloaded(u64),
    /// It cannot go on, and ends.
    Failed(String),
    /// A second is over.
    Second(Box<CoreSecond>),
}

/// A second of a core.
#[derive(Debug)]
pub struct CoreSecond {
    /// Its number, from 0; what comes after the measured part has the last.
    pub index: usize,
    /// The core's number.
    pub core: usize,
    /// What ended in it.
    pub ended: Ended,
    /// The core's processor time, without waiting in a loop.
    pub busy: Duration,
    /// There was nothing more to ask: when the last answer came, as a time since the beginning. No report follows.
    pub exhausted: Option<Duration>,
}

/// What a core has measured.
#[derive(Debug)]
pub struct CoreOutcome<L> {
    /// Times and counts.
    pub measured: Measured,
    /// Sends that were not made.
    pub unsent: u64,
    /// Its source of operations, with what that has learned.
    pub load: L,
}

/// Ends of the seconds, as times since the beginning: warm-up and measured part each in whole seconds and a rest.
#[must_use]
pub fn second_ends(phases: &Phases) -> Vec<Duration> {
    let mut ends = Vec::new();
    let mut from = Duration::ZERO;
    for to in [phases.measured_from, phases.measured_to] {
        while from < to {
            // A rest of less than a microsecond is a rounding error.
            let next = from + Duration::from_secs(1);
            from = if next + Duration::from_micros(1) < to { next } else { to };
            ends.push(from);
        }
    }
    ends
}

/// The cores, and the mailboxes through which they are told when to begin.
#[derive(Debug)]
pub struct Driver<L: Send + 'static> {
    cores: Cores<Option<CoreOutcome<L>>>,
    begin: Vec<mesh::Sender<Instant>>,
    reports: mpsc::Receiver<Report>,
}

impl<L: Load + Send> Driver<L> {
    /// Starts the cores. `make(core)` gives each its operations and, for an open loop, its schedule.
    ///
    /// # Errors
    /// The cores do not start.
    pub fn start(plan: &Plan, mut make: impl FnMut(usize) -> (L, Option<Arrivals>)) -> Result<Self, StartError> {
        assert!(plan.connections >= plan.cores, "each core has a connection");
        let (report, reports) = mpsc::channel();
        let mut begin = Vec::new();
        let config = CoresConfig { pin: plan.pin, ..CoresConfig::new(plan.cores) };
        let cores = Cores::start(config, |index| {
            let (load, arrivals) = make(index);
            let (sender, receiver) = mesh::mailbox(1);
            begin.push(sender);
            let (plan, report) = (plan.clone(), report.clone());
            move || run(plan, index, load, arrivals, receiver, report)
        })?;
        Ok(Self { cores, begin, reports })
    }

    /// The next report, if there is one within `patience`.
    ///
    /// # Errors
    /// There was none, or there will be none any more.
    pub fn report(&self, patience: Duration) -> Result<Report, mpsc::RecvTimeoutError> {
        self.reports.recv_timeout(patience)
    }

    /// Tells all cores to begin at `at`, once all of them are ready.
    pub fn begin(&self, at: Instant) {
        for sender in &self.begin {
            // A core that has ended has reported it.
            let _ = sender.try_send(at);
        }
    }

    /// Waits for all cores to end; what they have measured, if they began.
    #[must_use]
    pub fn join(self) -> Vec<Option<CoreOutcome<L>>> {
        drop(self.begin);
        self.cores.join()
    }
}

/// One core, for as long as it runs.
struct Core<L> {
    plan: Plan,
    load: RefCell<L>,
    begin: Instant,
    recorder: RefCell<Recorder>,
    pace: Option<RefCell<Pace>>,
    /// Processor time spent waiting in a loop.
    spun: Cell<Duration>,
    /// Processor time that a look at the sockets takes when nothing comes of it.
    look_cost: Duration,
    /// Calls begun and ended.
    events: Cell<u64>,
    /// Streams that still ask.
    asking: Cell<usize>,
    /// Told when there is nothing more to ask.
    exhausted: RefCell<Option<oneshot::Sender<()>>>,
}

async fn run<L: Load>(
    plan: Plan,
    index: usize,
    load: L,
    arrivals: Option<Arrivals>,
    mut begin: mesh::Receiver<Instant>,
    report: mpsc::Sender<Report>,
) -> Option<CoreOutcome<L>> {
    // Who listens no more has seen another core fail.
    let tell = |what| drop(report.send(what));
    let connections = match open(&plan, index).await {
        Ok(connections) => connections,
        Err(failure) => {
            tell(Report::Failed(format!("{}: {failure}", plan.target)));
            return None;
        }
    };
    let load = match preload(&plan, load, &connections, &report).await {
        Ok(load) => load,
        Err(failure) => {
            tell(Report::Failed(format!("{}: cannot write the keys: {failure}", plan.target)));
            return None;
        }
    };
    let look_cost = cost_of_a_look().await;
    tell(Report::Ready { protocol: connections[0].protocol() });
    let begin = begin.recv().await?;
    task::sleep_until(begin).await;

    let window = begin + plan.phases.measured_from..begin + plan.phases.measured_to;
    let stream_count = connections.len() * plan.streams;
    let phases = plan.phases;
    let (tell_exhausted, exhausted) = oneshot::channel();
    let core = Rc::new(Core {
        pace: arrivals.map(|arrivals| RefCell::new(Pace::new(arrivals, phases, stream_count))),
        load: RefCell::new(load),
        recorder: RefCell::new(Recorder::new(window)),
        spun: Cell::new(Duration::ZERO),
        look_cost,
        events: Cell::new(0),
        asking: Cell::new(stream_count),
        exhausted: RefCell::new(Some(tell_exhausted)),
        plan,
        begin,
    });
    let mut tasks = Vec::with_capacity(stream_count + 2);
    // Stream by stream over the connections: those that begin first are on different ones.
    for stream in 0..stream_count {
        let connection = Rc::clone(&connections[stream % connections.len()]);
        tasks.push(spawn(Rc::clone(&core).stream(stream, connection)));
    }
    if core.pace.is_some() {
        tasks.push(spawn(Rc::clone(&core).pacer()));
    }
    tasks.push(spawn(Rc::clone(&core).tell_seconds(index, exhausted, report)));
    await_all(tasks).await;

    let Ok(core) = Rc::try_unwrap(core) else { unreachable!("all its tasks have ended") };
    let unsent = core.pace.map_or(0, |pace| pace.into_inner().unsent_count());
    Some(CoreOutcome { measured: core.recorder.into_inner().measured, unsent, load: core.load.into_inner() })
}

/// Runs a task, which is to be waited for with [`await_all`].
fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> oneshot::Receiver<T> {
    let (sender, receiver) = oneshot::channel();
    task::spawn(async move {
        let _ = sender.send(future.await);
    });
    receiver
}

/// Waits for tasks to end; what they returned, in their order.
async fn await_all<T>(tasks: Vec<oneshot::Receiver<T>>) -> Vec<T> {
    join_all(tasks).await.into_iter().map(|task| task.expect("a task runs to its end")).collect()
}

/// This core's share of the connections.
async fn open(plan: &Plan, index: usize) -> Result<Vec<Rc<Connection>>, Failure> {
    let buffer = ReadBuffer::default();
    let count = plan.connections / plan.cores + usize::from(index < plan.connections % plan.cores);
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let deadline = Instant::now() + plan.deadline;
        let connection = Connection::open(&plan.target, &plan.bucket, &buffer, deadline).await?;
        connections.push(Rc::new(connection));
    }
    Ok(connections)
}

/// Writes this core's share of the keys over all its streams.
async fn preload<L: Load>(
    plan: &Plan,
    load: L,
    connections: &[Rc<Connection>],
    report: &mpsc::Sender<Report>,
) -> Result<L, Failure> {
    let load = Rc::new(RefCell::new(load));
    let tasks = (0..connections.len() * plan.streams).map(|stream| {
        let connection = Rc::clone(&connections[stream % connections.len()]);
        spawn(preload_stream(plan.clone(), Rc::clone(&load), connection, report.clone()))
    });
    let failure = await_all(tasks.collect()).await.into_iter().find_map(Result::err);
    let Ok(load) = Rc::try_unwrap(load) else { unreachable!("all its tasks have ended") };
    failure.map_or(Ok(load.into_inner()), Err)
}

async fn preload_stream<L: Load>(
    plan: Plan,
    load: Rc<RefCell<L>>,
    connection: Rc<Connection>,
    report: mpsc::Sender<Report>,
) -> Result<(), Failure> {
    loop {
        let operations = {
            let mut load = load.borrow_mut();
            (0..plan.batch).map_while(|_| load.preload()).collect::<Operations>()
        };
        if operations.is_empty() {
            return Ok(());
        }
        let mut failure_count = 0;
        loop {
            let request = request(Verb::Put, &operations, &mut *load.borrow_mut());
            let result = connection.call(&request, Instant::now() + plan.deadline).await;
            load.borrow_mut().answered(Verb::Put, &operations, &result);
            match failure_of(result) {
                None => break,
                Some(failure) if failure_count == PRELOAD_FAILURES_MAX => return Err(failure),
                Some(_) => failure_count += 1,
            }
            task::sleep(Duration::from_millis(100)).await;
        }
        let _ = report.send(Report::Preloaded(operations.len() as u64));
    }
}

/// The failure of a call, or of the first of its entries that failed.
fn failure_of(result: Result<Answer, Failure>) -> Option<Failure> {
    match result {
        Err(failure) => Some(failure),
        Ok(outcomes) => outcomes.into_iter().find_map(|outcome| match outcome {
            Outcome::Failed(status) => {
                Some(Failure { status, text: "for a key of a batch".to_owned(), is_undone: false })
            }
            _ => None,
        }),
    }
}

type Operations = SmallVec<[Operation; 1]>;

fn request(verb: Verb, operations: &[Operation], load: &mut impl Load) -> Request {
    let entries = operations.iter().map(|operation| Entry {
        name: operation.name.clone(),
        value: if verb == Verb::Put { load.value(operation) } else { Bytes::new() },
        ttl_ms: operation.ttl_ms,
    });
    Request { verb, entries: entries.collect() }
}

impl<L: Load> Core<L> {
    /// Calls after calls until all is over.
    async fn stream(self: Rc<Self>, index: usize, connection: Rc<Connection>) {
        while let Some((intended, possible)) = self.turn(index).await {
            let Some(operations) = self.draw() else { break };
            let timing = Timing { intended, possible };
            match operations[0].op {
                Op::Get => self.read(&operations, timing, &connection).await,
                Op::Put => drop(self.call(Op::Put, &operations, timing, &connection).await),
                Op::Delete => drop(self.call(Op::Delete, &operations, timing, &connection).await),
                Op::Rmw => self.read_modify_write(&operations, timing, &connection).await,
            }
        }
        self.asking.set(self.asking.get() - 1);
        let is_early = self.asking.get() == 0 && self.begin.elapsed() < self.plan.phases.measured_to;
        if is_early && self.load.borrow_mut().next(None).is_none() {
            let exhausted = self.exhausted.borrow_mut().take().expect("there is one last stream");
            let _ = exhausted.send(()); // Who listens no more has told the last second.
        }
    }

    /// When the next call of a stream is meant to be sent, if it is, and when it could be.
    async fn turn(&self, stream: usize) -> Option<(Option<Instant>, Instant)> {
        let Some(pace) = &self.pace else {
            let now = Instant::now();
            return (now < self.begin + self.plan.phases.end).then_some((None, now));
        };
        let turn = poll_fn(|cx| {
            let since_begin = Instant::now().saturating_duration_since(self.begin);
            pace.borrow_mut().poll_turn(stream, since_begin, cx)
        });
        turn.await.map(|turn| (Some(self.begin + turn.due), self.begin + turn.possible))
    }

    /// The operations of one call, all alike.
    fn draw(&self) -> Option<Operations> {
        let mut load = self.load.borrow_mut();
        let first = load.next(None)?;
        let like = Some(first.op);
        let mut operations = Operations::from_buf([first]);
        while operations.len() < self.plan.batch {
            let Some(next) = load.next(like) else { break };
            operations.push(next);
        }
        Some(operations)
    }

    async fn read(&self, operations: &[Operation], timing: Timing, connection: &Connection) {
        let (read, missing) = self.call(Op::Get, operations, timing, connection).await;
        if !missing.is_empty() {
            let write = Timing { intended: timing.intended.map(|_| read.done), possible: read.done };
            self.call(Op::Put, &missing, write, connection).await;
        }
    }

    async fn read_modify_write(&self, operations: &[Operation], timing: Timing, connection: &Connection) {
        let (read, _) = self.call(Op::Get, operations, timing, connection).await;
        let write = Timing { intended: timing.intended.map(|_| read.done), possible: read.done };
        let (write, _) = self.call(Op::Put, operations, write, connection).await;
        self.recorder.borrow_mut().record_rmw(&read, &write);
    }

    /// One call; and which of its keys are to be written because they were not found.
    async fn call(
        &self,
        op: Op,
        operations: &[Operation],
        timing: Timing,
        connection: &Connection,
    ) -> (Call, Operations) {
        let verb = match op {
            Op::Get => Verb::Get,
            Op::Put => Verb::Put,
            Op::Delete => Verb::Delete,
            Op::Rmw => unreachable!("it is two calls"),
        };
        let request = request(verb, operations, &mut *self.load.borrow_mut());
        let value_bytes_out = request.entries.iter().map(|entry| entry.value.len() as u64).sum();
        let Timing { intended, possible } = timing;
        let sent = Instant::now();
        self.events.set(self.events.get() + 1);
        let result = connection.call(&request, sent + self.plan.deadline).await;
        let done = Instant::now();
        self.events.set(self.events.get() + 1);
        let keys = operations.len() as u64;
        let call = Call { op, intended, possible, sent, done, keys, value_bytes_out };
        self.recorder.borrow_mut().record(&call, &result);
        self.load.borrow_mut().answered(verb, operations, &result);
        let missing = match &result {
            Ok(outcomes) if self.plan.fill && verb == Verb::Get => {
                let missing = operations.iter().zip(outcomes).filter(|(_, outcome)| **outcome == Outcome::Miss);
                missing.map(|(operation, _)| operation.clone()).collect()
            }
            _ => Operations::new(),
        };
        (call, missing)
    }

    /// Gives the streams what is due until all is over.
    async fn pacer(self: Rc<Self>) {
        let pace = self.pace.as_ref().expect("only an open loop has a pacer");
        let mut has_looked = false;
        loop {
            let now = Instant::now();
            let step = pace.borrow_mut().step(now.saturating_duration_since(self.begin));
            match step {
                Step::Over => return,
                Step::Full => poll_fn(|cx| pace.borrow_mut().poll_free(cx)).await,
                Step::Given => {
                    has_looked = false;
                    yield_now().await;
                }
                Step::Until(due) => {
                    let left = (self.begin + due).saturating_duration_since(now);
                    if left > NEAR {
                        task::sleep(left - OVERSLEEP_MAX).await;
                    } else if !self.plan.spin {
                        task::sleep(left).await;
                    } else if left > LAST.max(self.look_cost) || !has_looked {
                        self.look(has_looked).await;
                        has_looked = true;
                    } else {
                        self.look_at_clock(self.begin + due);
                    }
                }
            }
        }
    }

    /// Has the core look at its sockets, because nothing is due. All that this takes counts as idle if nothing comes of it;
    /// otherwise, and when what was given before `is_settled` is sent in it, as much as a look takes of which nothing comes.
    async fn look(&self, is_settled: bool) {
        let before = (cost::thread_cpu(), self.events.get());
        look_at_sockets().await;
        let took = cost::thread_cpu() - before.0;
        let is_idle = is_settled && self.events.get() == before.1;
        self.spun.set(self.spun.get() + if is_idle { took } else { took.min(self.look_cost) });
    }

    /// Looks at nothing but the clock.
    fn look_at_clock(&self, until: Instant) {
        let before = cost::thread_cpu();
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        self.spun.set(self.spun.get() + (cost::thread_cpu() - before));
    }

    /// A report for each second, at its end; the last when there is nothing more to ask.
    async fn tell_seconds(
        self: Rc<Self>,
        core: usize,
        mut exhausted: oneshot::Receiver<()>,
        report: mpsc::Sender<Report>,
    ) {
        let busy = || cost::thread_cpu().saturating_sub(self.spun.get());
        let mut before = busy();
        let Phases { measured_to, end, .. } = self.plan.phases;
        let afterwards = (end > measured_to).then_some(end);
        for (index, end) in second_ends(&self.plan.phases).into_iter().chain(afterwards).enumerate() {
            let is_over = pin!(task::sleep_until(self.begin + end));
            let is_exhausted = matches!(select(is_over, &mut exhausted).await, Either::Right((Ok(()), _)));
            let exhausted = is_exhausted.then(|| self.begin.elapsed());
            let now = busy();
            let ended = self.recorder.borrow_mut().take_second();
            let second = CoreSecond { index, core, ended, busy: now.saturating_sub(before), exhausted };
            before = now;
            // Who listens no more has seen another core fail.
            let _ = report.send(Report::Second(Box::new(second)));
            if exhausted.is_some() {
                return;
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Timing {
    intended: Option<Instant>,
    possible: Instant,
}

/// Has the core look at its sockets and timers once, and run what they wake.
///
/// While some task is ready the runtime looks at them once a millisecond and no sooner, so that a task which waits in a loop must
/// not be: an answer would be seen up to that much late, and the server be called slow for it.
async fn look_at_sockets() {
    let mut time = LOOK;
    loop {
        let mut look = pin!(task::sleep(time));
        if poll!(&mut look).is_pending() {
            return look.await;
        }
        time *= 2; // It was over before anybody could wait for it.
    }
}

/// The mean of a few, while nothing is in the air.
async fn cost_of_a_look() -> Duration {
    const LOOKS: u32 = 64;
    let before = cost::thread_cpu();
    for _ in 0..LOOKS {
        look_at_sockets().await;
    }
    (cost::thread_cpu() - before) / LOOKS
}

/// Lets the other tasks of this core have a turn.
async fn yield_now() {
    let mut has_yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use milena_net::tcp::{ListenOptions, listen};

    use super::*;

    fn ends(warmup_s: f64, duration_s: f64) -> Vec<f64> {
        let [from, to] = [warmup_s, warmup_s + duration_s].map(Duration::from_secs_f64);
        let phases = Phases { measured_from: from, measured_to: to, end: to };
        second_ends(&phases).iter().map(Duration::as_secs_f64).collect()
    }

    #[test]
    fn whoever_waits_in_a_loop_hears_of_a_socket_at_once_and_not_when_the_runtime_happens_to_look() {
        const LOOKS_MAX: u32 = 20; // With a task that is always ready it takes thousands of turns.
        let core = || async {
            let mut listener = listen("127.0.0.1:0".parse().unwrap(), ListenOptions::default()).unwrap();
            let address = listener.local_addr();
            let mut accepted = spawn(async move { drop(listener.accept().await.unwrap()) });
            for _ in 0..LOOKS_MAX {
                look_at_sockets().await; // Until it waits in the ring.
            }
            assert!(accepted.try_recv().unwrap().is_none(), "nobody came yet");
            let _client = TcpStream::connect(address).unwrap();
            let mut look_count = 0;
            while accepted.try_recv().unwrap().is_none() {
                look_count += 1;
                assert!(look_count <= LOOKS_MAX);
                look_at_sockets().await;
            }
        };
        let cores = Cores::start(CoresConfig { pin: false, ..CoresConfig::new(1) }, |_| core);
        let _: Vec<()> = cores.unwrap().join();
    }

    #[test]
    fn warm_up_and_measured_part_are_each_cut_into_whole_seconds_and_a_rest() {
        assert_eq!(ends(1.5, 2.25), [1.0, 1.5, 2.5, 3.5, 3.75]);
        assert_eq!(ends(0.0, 2.0), [1.0, 2.0]);
        assert_eq!(ends(0.0, 0.3), [0.3]);
    }
}
