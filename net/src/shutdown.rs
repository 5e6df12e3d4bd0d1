//! How the process stops: a signal becomes stages, in order, each with a bound.
//!
//! ```text
//!   SIGTERM ─┐                      ┌──▶ participant "core 0"   next() ─▶ Leave … done(Leave)
//!   SIGINT  ─┼─▶ a thread of its own┼──▶ participant "core 1"
//!   begin() ─┘   one stage at a time└──▶ …          wait() ─▶ the outcome, for main's last line and exit code
//!
//!   Settle ──▶ Leave ──▶ Refuse ──▶ Drain ──▶ Seal ──▶ Part      the next begins when all are done, or the time is up
//! ```
//! Nothing is shared but mailboxes: the thread owns the list of participants and the clock. A second signal ends the
//! process at once.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, mpsc},
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
    low_level,
};

use crate::mesh;

/// What is done when the process stops, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Bring to the store what it was promised; go on serving.
    Settle,
    /// Tell the routers; go on serving.
    Leave,
    /// Accept nothing new: close the listeners, GOAWAY on every connection.
    Refuse,
    /// Wait for what is in progress.
    Drain,
    /// Write the last block of the log, flush, save the index.
    Seal,
    /// Close the mailboxes and end.
    Part,
}

impl Stage {
    /// All of them, in their order.
    pub const ALL: [Self; 6] = [Self::Settle, Self::Leave, Self::Refuse, Self::Drain, Self::Seal, Self::Part];

    /// As it stands in log lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Settle => "settle",
            Self::Leave => "leave",
            Self::Refuse => "refuse",
            Self::Drain => "drain",
            Self::Seal => "seal",
            Self::Part => "part",
        }
    }
}

/// How long each stage may take. Their sum bounds the stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the stages")]
pub struct StageLimits {
    pub settle: Duration,
    pub leave: Duration,
    pub refuse: Duration,
    pub drain: Duration,
    pub seal: Duration,
    pub part: Duration,
}

impl Default for StageLimits {
    /// 25 s in all: less than the 30 s after which Kubernetes kills.
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(5),
            leave: Duration::from_secs(2),
            refuse: Duration::from_secs(1),
            drain: Duration::from_secs(10),
            seal: Duration::from_secs(5),
            part: Duration::from_secs(2),
        }
    }
}

impl StageLimits {
    fn of(&self, stage: Stage) -> Duration {
        match stage {
            Stage::Settle => self.settle,
            Stage::Leave => self.leave,
            Stage::Refuse => self.refuse,
            Stage::Drain => self.drain,
            Stage::Seal => self.seal,
            Stage::Part => self.part,
        }
    }
}

/// Why the process stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// This signal came.
    Signal(i32),
    /// A part of the program asked for it, in these words.
    Asked(&'static str),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(number) => f.write_str(low_level::signal_name(*number).unwrap_or("an unnamed signal")),
            Self::Asked(words) => f.write_str(words),
        }
    }
}

/// Starts the stop, and tells everybody. A clone is another name for the same one.
#[derive(Clone, Debug)]
pub struct Shutdown {
    events: mpsc::Sender<Event>,
}

/// What the thread is told.
enum Event {
    Begin(Reason),
    /// Somebody takes part from now on; with the stages sent to this mailbox.
    Join(Arc<str>, mesh::Sender<Stage>),
    /// This and all earlier stages are done. The name's address tells participants apart, not its letters.
    Done(Arc<str>, Stage),
    Gone(Arc<str>),
    /// Somebody wants to know when it begins.
    TellBegun(mesh::Sender<()>),
    /// Somebody wants to know how it ended.
    TellOutcome(mpsc::Sender<Outcome>),
}

impl Shutdown {
    /// Starts the thread that waits for a reason to stop. To be made before everything that stops.
    ///
    /// # Errors
    /// The kernel's, when there is no thread to be had.
    pub fn new(limits: StageLimits) -> io::Result<Self> {
        let (events, inbox) = mpsc::channel();
        thread::Builder::new().name("milena-shutdown".into()).spawn(move || Stop::new(limits, inbox).run())?;
        Ok(Self { events })
    }

    /// Begins on SIGTERM and SIGINT from now on. A second signal, of either kind, ends the process at once, with exit
    /// code 1. To be called once.
    ///
    /// # Errors
    /// The kernel's, when the signals cannot be caught or there is no thread to be had.
    pub fn begin_on_signals(&self) -> io::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        let shutdown = self.clone();
        let run = move || {
            let mut signals = signals.forever();
            if let Some(number) = signals.next() {
                shutdown.begin(Reason::Signal(number));
            }
            if let Some(number) = signals.next() {
                tracing::warn!("{} again; ending at once", Reason::Signal(number));
                low_level::exit(1);
            }
        };
        thread::Builder::new().name("milena-signals".into()).spawn(run)?;
        Ok(())
    }

    /// Begins now, unless it has begun. Returns at once.
    pub fn begin(&self, reason: Reason) {
        self.tell(Event::Begin(reason));
    }

    /// Resolves when the stop has begun, also if that was long ago. To be kept over a loop, not made anew in each turn.
    #[must_use]
    pub fn begun(&self) -> Begun {
        let (sender, receiver) = mesh::mailbox(1);
        self.tell(Event::TellBegun(sender));
        Begun(Some(receiver))
    }

    /// Takes part under `name` (for the log line that says who was left behind), until the participant is dropped.
    ///
    /// Who joins late is told the stage that runs.
    #[must_use]
    pub fn join_in(&self, name: impl Into<Arc<str>>) -> Participant {
        let name = name.into();
        let (sender, stages) = mesh::mailbox(Stage::ALL.len());
        self.tell(Event::Join(Arc::clone(&name), sender));
        Participant { name, stages, events: self.events.clone() }
    }

    /// Blocks until the last stage is over. For main, which then joins its threads and says how it went.
    #[must_use]
    pub fn wait(&self) -> Outcome {
        let (sender, receiver) = mpsc::channel();
        self.tell(Event::TellOutcome(sender));
        receiver.recv().expect("the thread answers, for we hold a sender")
    }

    fn tell(&self, event: Event) {
        self.events.send(event).expect("the thread runs as long as somebody can tell it something");
    }
}

/// Resolves when the stop has begun; polled again after that, it is still so.
#[derive(Debug)]
pub struct Begun(Option<mesh::Receiver<()>>);

impl Future for Begun {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(receiver) = &mut self.0 {
            std::task::ready!(receiver.poll_recv(cx));
            self.0 = None;
        }
        Poll::Ready(())
    }
}

/// One who has something to do when the process stops. Dropping it says that everything is done.
#[derive(Debug)]
pub struct Participant {
    name: Arc<str>,
    stages: mesh::Receiver<Stage>,
    events: mpsc::Sender<Event>,
}

impl Participant {
    /// Waits for the next stage; `None` after the last. A stage comes also when the one before was not done in time.
    pub async fn next(&mut self) -> Option<Stage> {
        self.stages.recv().await
    }

    /// As [`Participant::next`], for a task that waits for other things too.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Stage>> {
        self.stages.poll_recv(cx)
    }

    /// Says that our part of `stage`, and of all before it, is done.
    pub fn done(&self, stage: Stage) {
        // Nobody is there only when the stop is over.
        let _ = self.events.send(Event::Done(Arc::clone(&self.name), stage));
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        let _ = self.events.send(Event::Gone(Arc::clone(&self.name)));
    }
}

/// How the process stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why it did.
    pub reason: Reason,
    /// Who was not done with which stage when its time was up; empty after a clean stop.
    pub left_behind: Vec<(Stage, Arc<str>)>,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// 0 after a clean stop, 1 when something was left behind.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        u8::from(!self.left_behind.is_empty())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped after {:.1} s ({})", self.took.as_secs_f64(), self.reason)?;
        for (index, (stage, name)) in self.left_behind.iter().enumerate() {
            write!(f, "{} {name} in {}", if index == 0 { "; left behind:" } else { "," }, stage.name())?;
        }
        Ok(())
    }
}

/// The thread's own.
struct Stop {
    limits: StageLimits,
    inbox: mpsc::Receiver<Event>,
    members: Vec<Member>,
    tell_begun: Vec<mesh::Sender<()>>,
    tell_outcome: Vec<mpsc::Sender<Outcome>>,
    reason: Option<Reason>,
    /// The stage that runs, or the last that ran.
    stage: Option<Stage>,
}

struct Member {
    name: Arc<str>,
    stages: mesh::Sender<Stage>,
    done: Option<Stage>,
}

impl Stop {
    fn new(limits: StageLimits, inbox: mpsc::Receiver<Event>) -> Self {
        let (members, tell_begun, tell_outcome) = Default::default();
        Self { limits, inbox, members, tell_begun, tell_outcome, reason: None, stage: None }
    }

    fn run(mut self) {
        let reason = loop {
            match self.inbox.recv() {
                Ok(event) => self.take(event),
                Err(mpsc::RecvError) => return, // nobody is left who could begin
            }
            if let Some(reason) = self.reason {
                break reason;
            }
        };
        tracing::info!("{reason}; stopping");
        let begun = Instant::now();
        let left_behind = Stage::ALL.into_iter().flat_map(|stage| self.run_stage(stage)).collect();
        // Who waits for the next stage learns that there is none.
        self.members.clear();

        let outcome = Outcome { reason, left_behind, took: begun.elapsed() };
        loop {
            for sender in self.tell_outcome.drain(..) {
                let _ = sender.send(outcome.clone());
            }
            match self.inbox.recv() {
                Ok(event) => self.take(event),
                Err(mpsc::RecvError) => return,
            }
            self.members.clear();
        }
    }

    /// Returns who was not done in time.
    fn run_stage(&mut self, stage: Stage) -> Vec<(Stage, Arc<str>)> {
        self.stage = Some(stage);
        self.members.iter().for_each(|member| member.tell(stage));

        let limit = self.limits.of(stage);
        let deadline = Instant::now() + limit;
        while self.members.iter().any(|member| !member.is_done(stage)) {
            match self.inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => self.take(event),
                Err(_) => break,
            }
        }

        let late = self.members.iter().filter(|member| !member.is_done(stage));
        let late: Vec<_> = late.map(|member| (stage, Arc::clone(&member.name))).collect();
        if !late.is_empty() {
            let names: Vec<&str> = late.iter().map(|(_, name)| &**name).collect();
            tracing::warn!(
                "{} took more than {} s, going on; left behind: {}",
                stage.name(),
                limit.as_secs_f64(),
                names.join(", ")
            );
        }
        late
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Begin(reason) if self.reason.is_none() => {
                self.reason = Some(reason);
                self.tell_begun.drain(..).for_each(ring);
            }
            Event::Begin(_) => {}
            Event::Join(name, stages) => {
                let member = Member { name, stages, done: None };
                if let Some(stage) = self.stage {
                    member.tell(stage);
                }
                self.members.push(member);
            }
            Event::Done(name, stage) => {
                if let Some(member) = self.members.iter_mut().find(|member| Arc::ptr_eq(&member.name, &name)) {
                    member.done = member.done.max(Some(stage));
                }
            }
            Event::Gone(name) => self.members.retain(|member| !Arc::ptr_eq(&member.name, &name)),
            Event::TellBegun(sender) if self.reason.is_some() => ring(sender),
            Event::TellBegun(sender) => {
                self.tell_begun.retain(|sender| !sender.is_gone());
                self.tell_begun.push(sender);
            }
            Event::TellOutcome(sender) => self.tell_outcome.push(sender),
        }
    }
}

impl Member {
    fn tell(&self, stage: Stage) {
        match self.stages.try_send(stage) {
            Ok(()) | Err(mesh::Refused::Gone(_)) => {} // its Gone is under way
            Err(mesh::Refused::Full(stage)) => unreachable!("{} comes once, and there is room for all", stage.name()),
        }
    }

    fn is_done(&self, stage: Stage) -> bool {
        self.done >= Some(stage)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is the end of this sender")]
fn ring(sender: mesh::Sender<()>) {
    let _ = sender.try_send(()); // who is gone needs not know
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        os::unix::process::ExitStatusExt,
        process::{Child, Command, Stdio},
        task::{Wake, Waker},
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(600);
    const PATIENT: StageLimits =
        StageLimits { settle: LONG, leave: LONG, refuse: LONG, drain: LONG, seal: LONG, part: LONG };

    struct Unpark(thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn block_on<F: Future>(future: F) -> F::Output {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut future = std::pin::pin!(future);
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(output) => return output,
                Poll::Pending => thread::park(),
            }
        }
    }

    fn next(participant: &mut Participant) -> Option<Stage> {
        block_on(participant.next())
    }

    const ASKED: Reason = Reason::Asked("the test asked for it");

    #[test]
    fn a_stage_begins_when_everybody_is_done_with_the_one_before() {
        let shutdown = Shutdown::new(PATIENT).unwrap();
        let mut first = shutdown.join_in("first");
        let mut second = shutdown.join_in("second");
        shutdown.begin(ASKED);
        for stage in Stage::ALL {
            assert_eq!(next(&mut first), Some(stage));
            assert_eq!(next(&mut second), Some(stage));
            first.done(stage);
            // Not before the second is done: what comes next is only known to come after.
            assert_eq!(first.stages.try_recv(), None);
            second.done(stage);
        }
        assert_eq!((next(&mut first), next(&mut second)), (None, None));
        let outcome = shutdown.wait();
        assert_eq!((outcome.reason, outcome.exit_code()), (ASKED, 0));
        assert!(outcome.to_string().ends_with(" s (the test asked for it)"), "{outcome}");
        assert_eq!(shutdown.wait(), outcome); // as often as one likes
    }

    #[test]
    fn a_stage_that_runs_out_of_time_says_who_was_left_behind_and_the_next_begins() {
        let shutdown = Shutdown::new(StageLimits { drain: Duration::ZERO, ..PATIENT }).unwrap();
        let mut stuck = shutdown.join_in("core 1");
        let quick = shutdown.join_in("core 2");
        quick.done(Stage::Part); // it never has anything to do
        shutdown.begin(ASKED);
        for stage in Stage::ALL {
            assert_eq!(next(&mut stuck), Some(stage));
            if stage != Stage::Drain {
                stuck.done(stage);
            }
        }
        let outcome = shutdown.wait();
        assert_eq!(outcome.left_behind, [(Stage::Drain, "core 1".into())]);
        assert_eq!(outcome.exit_code(), 1);
        assert!(outcome.to_string().ends_with("; left behind: core 1 in drain"), "{outcome}");
    }

    #[test]
    fn who_is_gone_is_not_waited_for() {
        let shutdown = Shutdown::new(PATIENT).unwrap();
        let mut leaving = shutdown.join_in("same name");
        let staying = shutdown.join_in("same name");
        drop(shutdown.join_in("never there"));
        shutdown.begin(ASKED);
        assert_eq!(next(&mut leaving), Some(Stage::Settle));
        drop(leaving);
        staying.done(Stage::Part);
        assert_eq!(shutdown.wait().left_behind, []);
    }

    #[test]
    fn nobody_to_wait_for_is_over_at_once_and_who_comes_after_is_told_so() {
        let shutdown = Shutdown::new(PATIENT).unwrap();
        shutdown.begin(ASKED);
        assert_eq!(shutdown.wait().exit_code(), 0);
        let mut late = shutdown.join_in("late");
        assert_eq!(next(&mut late), Some(Stage::Part));
        assert_eq!(next(&mut late), None);
    }

    #[test]
    fn who_joins_while_a_stage_runs_takes_part_in_it() {
        let shutdown = Shutdown::new(PATIENT).unwrap();
        let mut first = shutdown.join_in("first");
        shutdown.begin(ASKED);
        assert_eq!(next(&mut first), Some(Stage::Settle));
        let mut late = shutdown.join_in("late");
        first.done(Stage::Settle);
        assert_eq!(next(&mut late), Some(Stage::Settle));
        late.done(Stage::Settle);
        assert_eq!(next(&mut first), Some(Stage::Leave));
        assert_eq!(next(&mut late), Some(Stage::Leave));
    }

    #[test]
    fn begun_resolves_for_those_who_wait_and_for_those_who_come_later_and_stays_so() {
        let shutdown = Shutdown::new(PATIENT).unwrap();
        let mut early = shutdown.begun();
        assert!(Pin::new(&mut early).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        shutdown.begin(ASKED);
        shutdown.begin(Reason::Asked("again")); // changes nothing
        block_on(&mut early);
        block_on(&mut early);
        block_on(shutdown.begun());
        assert_eq!(shutdown.wait().reason, ASKED);
    }

    const IN_CHILD: &str = "MILENA_TEST_CHILD";

    /// Runs the test that is named in a process of its own, which prints lines beginning with `@`.
    fn child(test: &str) -> (Child, impl Iterator<Item = String>) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--quiet"]).env(IN_CHILD, "1").stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        (child, lines.filter_map(|line| Some(line.split_once('@')?.1.to_owned())))
    }

    fn send(child: &Child, signal: i32) {
        // SAFETY: a process that we started and have not waited for.
        assert_eq!(unsafe { libc::kill(child.id().cast_signed(), signal) }, 0);
    }

    #[test]
    fn a_signal_begins_the_stop_and_the_process_ends_cleanly() {
        if std::env::var_os(IN_CHILD).is_some() {
            let shutdown = Shutdown::new(PATIENT).unwrap();
            shutdown.begin_on_signals().unwrap();
            println!("@ready");
            let outcome = shutdown.wait();
            println!("@{}", outcome.reason);
            std::process::exit(outcome.exit_code().into());
        }
        let (mut child, mut lines) = child("shutdown::tests::a_signal_begins_the_stop_and_the_process_ends_cleanly");
        assert_eq!(lines.next().as_deref(), Some("ready"));
        send(&child, libc::SIGTERM);
        assert_eq!(lines.next().as_deref(), Some("SIGTERM"));
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }

    #[test]
    fn a_second_signal_ends_the_process_at_once() {
        if std::env::var_os(IN_CHILD).is_some() {
            let shutdown = Shutdown::new(PATIENT).unwrap();
            shutdown.begin_on_signals().unwrap();
            let mut stuck = shutdown.join_in("stuck");
            println!("@ready");
            next(&mut stuck);
            println!("@stuck");
            let _ = shutdown.wait(); // for ten minutes
        }
        let (mut child, mut lines) = child("shutdown::tests::a_second_signal_ends_the_process_at_once");
        assert_eq!(lines.next().as_deref(), Some("ready"));
        send(&child, libc::SIGINT);
        assert_eq!(lines.next().as_deref(), Some("stuck"));
        send(&child, libc::SIGTERM);
        let status = child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(1), None));
    }
}
