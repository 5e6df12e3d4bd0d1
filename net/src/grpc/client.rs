//! A gRPC client on one core: a [`Channel`] to one address, over one connection that is made when it is needed and made
//! anew when it is lost.
//!
//! ```text
//!   Channel::call ─▶ queue ─▶ ┌───────────────────────────────────────────────────────────┐
//!                             │ the channel's task     idle ─ a call ─▶ connecting ─▶ open │─▶ socket, one send a turn
//!   Call (a future) ◀─ slot ◀─│                          ▲                 │           │  │
//!                             │                          └─ resting ◀──────┴─ lost ◀───┘  │
//!                             └───────────────────────────────────────────────────────────┘
//! ```
//! An answer is put together before its caller sees it ([`Channel::call`]), or, if it is large and the caller only passes
//! it on, handed over as it comes ([`Channel::call_in_parts`]): then the peer sends no faster than the parts are taken.
//!
//! While a channel rests after a failure, calls fail at once: whoever calls knows better than a queue whether to go
//! elsewhere. A failed call says whether the peer can have acted on it ([`Done`]).

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::VecDeque,
    fmt,
    future::{Future, poll_fn},
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use glommio::net::TcpStream;
use http::{StatusCode, header::CONTENT_TYPE, uri::Authority};
use milena_proto::method::Method;

use super::{
    frame::{Assembler, FrameError, prefix},
    pieces::Pieces,
    status::{Code, Status},
    timeout,
};
use crate::{
    http2::{Connection, Event, Head, OpenError, Reason, RequestHead, Role, StreamKey, limits::Profile},
    stream::{Alarm, Read, ReadBuffer, Socket},
    tcp,
};

/// Calls that wait for a connection or for one of its streams; more fail at once.
pub const QUEUED_CALLS_MAX: usize = 4096;

/// An answer that is longer is handed over in parts, if the caller wants it so. Small beside a stream's window.
pub const WHOLE_BYTES_MAX: usize = 64 << 10;

/// How long making a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// Rest after a connection was lost or could not be made: the first, doubling up to the last.
const REST_MIN: Duration = Duration::from_millis(20);
const REST_MAX: Duration = Duration::from_secs(1);

/// With calls open and no byte from the peer for this long, it is asked for a sign of life.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// A peer that gives no sign of life for this long after it was asked counts as gone. Longer than a machine with more to
/// do than it can is seen to stand still.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A connection to one address, for the calls of one core. A clone is another handle of the same one; with the last
/// of them the connection ends.
#[derive(Clone)]
pub struct Channel {
    shared: Rc<RefCell<Shared>>,
    _handle: Rc<Handle>,
}

/// What all channels of a program have in common.
#[derive(Clone, Copy, Debug)]
pub struct ChannelLimits {
    /// The connection's limits.
    pub profile: &'static Profile,
    /// The largest message that is taken for an answer, in bytes.
    pub message_bytes_max: usize,
}

/// An address that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressError {
    /// Neither `http://host:port` nor `https://host:port`.
    Malformed(String),
    /// `https`, which this version does not speak.
    Tls(String),
}

/// A call that did not succeed.
#[derive(Debug, Clone)]
pub struct CallError {
    /// The peer's status, or ours where it gave none.
    pub status: Status,
    /// Whether the peer can have acted on the call.
    pub done: Done,
}

/// What is known about a call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// The peer answered, with this status.
    Answered,
    /// Certainly nothing was done: the call never left, or the peer says that it did not look at it.
    No,
    /// The call was sent and its answer was lost, or did not come in time.
    Unknown,
}

impl Channel {
    /// A channel to `address`, `http://host:port`. Connects with its first call, on a task of its own on this core.
    ///
    /// # Errors
    /// [`AddressError`] for anything else.
    pub fn new(address: &str, limits: ChannelLimits, buffer: &ReadBuffer) -> Result<Self, AddressError> {
        let authority = match address.split_once("://") {
            Some(("http", authority)) => authority,
            Some(("https", _)) => return Err(AddressError::Tls(address.to_owned())),
            _ => return Err(AddressError::Malformed(address.to_owned())),
        };
        let (host, port) = authority
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)))
            .filter(|(host, port)| !host.is_empty() && *port > 0 && authority.parse::<Authority>().is_ok())
            .ok_or_else(|| AddressError::Malformed(address.to_owned()))?;
        let shared = Rc::new(RefCell::new(Shared {
            queue: VecDeque::new(),
            queue_due: None,
            cancelled: Vec::new(),
            passed_on: Vec::new(),
            waker: None,
            is_closing: false,
        }));
        let task = Task {
            shared: shared.clone(),
            address: address.to_owned(),
            authority: authority.to_owned(),
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            limits,
            buffer: buffer.clone(),
            phase: Phase::Idle,
            leaving: Vec::new(),
            link_count: 0,
            rest: REST_MIN,
            alarm: Alarm::default(),
        };
        glommio::spawn_local(task.run()).detach();
        let handle = Rc::new(Handle(Rc::downgrade(&shared)));
        Ok(Self { shared, _handle: handle })
    }

    /// Sends `message` to the method at `path`. Dropping the future cancels the call.
    ///
    /// The peer is told the deadline; whether it keeps it or not, the call ends then.
    pub fn call(&self, path: &'static str, message: impl Into<Pieces>, deadline: Instant) -> Call {
        Call(self.begin(path, message.into(), deadline, None))
    }

    /// As [`Channel::call`], but an answer of more than [`WHOLE_BYTES_MAX`] is there as soon as it has begun.
    pub fn call_in_parts(&self, path: &'static str, message: impl Into<Pieces>, deadline: Instant) -> CallInParts {
        CallInParts(Some(self.begin(path, message.into(), deadline, Some(Parts::default()))))
    }

    fn begin(&self, path: &'static str, message: Pieces, deadline: Instant, parts: Option<Parts>) -> Asked {
        let slot = Rc::new(RefCell::new(Slot {
            path,
            request: message,
            deadline,
            stage: Stage::Queued,
            assembler: parts.as_ref().map_or_else(Assembler::default, |_| Assembler::up_to(WHOLE_BYTES_MAX)),
            response: None,
            parts,
            waker: None,
        }));
        let mut shared = self.shared.borrow_mut();
        if shared.queue.len() >= QUEUED_CALLS_MAX {
            let status = Status::resource_exhausted("too many calls wait for the connection", 100);
            slot.borrow_mut().stage = Stage::Ended(Err(CallError { status, done: Done::No }));
        } else {
            shared.queue.push_back(slot.clone());
            shared.queue_due = Some(shared.queue_due.map_or(deadline, |due| due.min(deadline)));
            shared.wake();
        }
        drop(shared);
        Asked { slot, shared: self.shared.clone() }
    }

    /// Calls `method` with `request` and decodes the answer.
    ///
    /// # Errors
    /// What [`Channel::call`] says; an answer that cannot be decoded is INTERNAL.
    pub async fn unary<Q: prost::Message, A: prost::Message + Default>(
        &self,
        method: Method<Q, A>,
        request: &Q,
        deadline: Instant,
    ) -> Result<A, CallError> {
        let message = self.call(method.path, Bytes::from(request.encode_to_vec()), deadline).await?;
        A::decode(message).map_err(|error| CallError {
            status: Status::new(Code::Internal, format!("an answer that is not protobuf: {error}")),
            done: Done::Answered,
        })
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Channel({} calls wait)", self.shared.borrow().queue.len())
    }
}

/// A call under way: resolves to its answer.
pub struct Call(Asked);

impl Future for Call {
    type Output = Result<Bytes, CallError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.slot.borrow_mut().poll_end(cx)
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A call under way: resolves to its answer, or to the beginning of a large one.
#[derive(Debug)]
pub struct CallInParts(Option<Asked>);

/// What [`Channel::call_in_parts`] brings.
#[derive(Debug)]
pub enum Answer {
    /// All of it.
    Whole(Bytes),
    /// A large one, as it comes.
    Parts(Body),
}

impl Future for CallInParts {
    type Output = Result<Answer, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let asked = self.0.as_ref().expect("polled until it is ready");
        let mut slot = asked.slot.borrow_mut();
        let begun = slot.parts.as_ref().and_then(|parts| parts.message_bytes);
        let has_failed = matches!(slot.stage, Stage::Ended(Err(_))); // Before anybody has seen a part of it.
        let Some(message_bytes) = begun.filter(|_| !has_failed) else {
            return slot.poll_end(cx).map_ok(Answer::Whole);
        };
        drop(slot);
        let asked = self.0.take().expect("seen above");
        Poll::Ready(Ok(Answer::Parts(Body { asked, message_bytes, left_bytes: message_bytes })))
    }
}

/// A large message on its way. Dropping it cancels the call.
#[derive(Debug)]
pub struct Body {
    asked: Asked,
    message_bytes: usize,
    left_bytes: usize,
}

impl Body {
    /// How long the message is, in bytes.
    #[must_use]
    pub fn message_bytes(&self) -> usize {
        self.message_bytes
    }

    /// How much of it has not been taken yet, in bytes.
    #[must_use]
    pub fn left_bytes(&self) -> usize {
        self.left_bytes
    }

    /// The next part, at least one byte; `None` after the whole message, when the peer has said that all is well.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, CallError>>> {
        let mut slot = self.asked.slot.borrow_mut();
        let parts = slot.parts.as_mut().expect("a call in parts");
        let Some(part) = parts.come.pop_front() else {
            let outcome = std::task::ready!(slot.poll_end(cx));
            return Poll::Ready(outcome.err().map(Err));
        };
        self.left_bytes -= part.len();
        if let Stage::Sent(number, key) = slot.stage {
            let mut shared = self.asked.shared.borrow_mut();
            shared.passed_on.push((number, key, part.len()));
            shared.wake();
        }
        Poll::Ready(Some(Ok(part)))
    }
}

/// A call somebody waits for. Dropping it cancels the call.
struct Asked {
    slot: Rc<RefCell<Slot>>,
    shared: Rc<RefCell<Shared>>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        let stage = std::mem::replace(&mut self.slot.borrow_mut().stage, Stage::Taken);
        if let Stage::Sent(number, key) = stage {
            let mut shared = self.shared.borrow_mut();
            shared.cancelled.push((number, key));
            shared.wake();
        }
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.slot.borrow().path)
    }
}

/// What callers and the channel's task share.
struct Shared {
    queue: VecDeque<Rc<RefCell<Slot>>>,
    /// No call that waits has an earlier deadline.
    queue_due: Option<Instant>,
    /// Connections and streams whose callers have gone.
    cancelled: Vec<(u64, StreamKey)>,
    /// Connections, streams, and how many bytes of their answers have been taken.
    passed_on: Vec<(u64, StreamKey, usize)>,
    waker: Option<Waker>,
    is_closing: bool,
}

impl Shared {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn expire_queued(&mut self, now: Instant) {
        if self.queue_due.is_none_or(|due| due > now) {
            return;
        }
        self.queue_due = None;
        let Self { queue, queue_due, .. } = self;
        queue.retain(|slot| {
            let mut slot = slot.borrow_mut();
            if slot.deadline <= now {
                slot.fail(Code::DeadlineExceeded, "the deadline passed before the call was sent", Done::No);
            }
            let is_waiting = matches!(slot.stage, Stage::Queued);
            if is_waiting {
                *queue_due = Some(queue_due.map_or(slot.deadline, |due| due.min(slot.deadline)));
            }
            is_waiting
        });
    }
}

/// Ends the task with the last handle.
struct Handle(Weak<RefCell<Shared>>);

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            let mut shared = shared.borrow_mut();
            shared.is_closing = true;
            shared.wake();
        }
    }
}

struct Slot {
    path: &'static str,
    request: Pieces,
    deadline: Instant,
    stage: Stage,
    assembler: Assembler,
    response: Option<Bytes>,
    /// There if the caller takes a large answer in parts.
    parts: Option<Parts>,
    waker: Option<Waker>,
}

/// An answer that is not put together here.
#[derive(Default)]
struct Parts {
    /// Known once the message has begun and is a large one.
    message_bytes: Option<usize>,
    /// What has not come yet.
    due_bytes: usize,
    /// What has come and was not taken: no more than the stream's window.
    come: VecDeque<Bytes>,
}

enum Stage {
    Queued,
    /// On this connection, as this stream.
    Sent(u64, StreamKey),
    Ended(Result<Bytes, CallError>),
    /// The caller has its answer, or has gone.
    Taken,
}

impl Slot {
    /// The outcome, once.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, CallError>> {
        match std::mem::replace(&mut self.stage, Stage::Taken) {
            Stage::Ended(outcome) => Poll::Ready(outcome),
            Stage::Taken => panic!("a call is polled once more after its end"),
            stage => {
                self.stage = stage;
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Takes in a part of the answer.
    fn push(&mut self, data: &mut Bytes, message_bytes_max: usize) -> Result<(), AnswerFault> {
        while self.assembler.large_bytes().is_none() {
            match self.assembler.push(data, message_bytes_max)? {
                Some(_) if self.response.is_some() => return Err(AnswerFault::TooMany),
                Some(message) => self.response = Some(message),
                None => {
                    let Some(message_bytes) = self.assembler.large_bytes() else { return Ok(()) };
                    self.begin_parts(message_bytes)?;
                }
            }
        }
        self.push_part(std::mem::take(data))
    }

    /// From here on the message is handed over as it comes.
    fn begin_parts(&mut self, message_bytes: usize) -> Result<(), AnswerFault> {
        if self.response.is_some() {
            return Err(AnswerFault::TooMany);
        }
        let parts = self.parts.as_mut().expect("otherwise every message is put together");
        parts.message_bytes = Some(message_bytes);
        parts.due_bytes = message_bytes;
        self.wake();
        Ok(())
    }

    fn push_part(&mut self, part: Bytes) -> Result<(), AnswerFault> {
        let parts = self.parts.as_mut().expect("begun");
        parts.due_bytes = parts.due_bytes.checked_sub(part.len()).ok_or(AnswerFault::TooMany)?;
        if !part.is_empty() {
            parts.come.push_back(part);
            self.wake();
        }
        Ok(())
    }

    /// What a call has come to whose peer says that all is well: its message, or nothing after one that was handed over.
    fn outcome(&mut self) -> Result<Bytes, CallError> {
        let is_handed_over = self.parts.as_ref().is_some_and(|parts| parts.message_bytes.is_some());
        let message = match &self.parts {
            Some(parts) if is_handed_over => (parts.due_bytes == 0).then(Bytes::new),
            _ if self.assembler.is_between_messages() => self.response.take(),
            _ => None,
        };
        message.ok_or_else(|| CallError {
            status: Status::new(Code::Internal, "the answer has status OK and no whole message"),
            done: Done::Answered,
        })
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn end(&mut self, outcome: Result<Bytes, CallError>) {
        if matches!(self.stage, Stage::Taken) {
            return;
        }
        self.stage = Stage::Ended(outcome);
        self.wake();
    }

    fn fail(&mut self, code: Code, text: impl Into<Cow<'static, str>>, done: Done) {
        self.end(Err(CallError { status: Status::new(code, text), done }));
    }
}

/// An answer that is none.
enum AnswerFault {
    Frame(FrameError),
    /// More than one message.
    TooMany,
}

impl From<FrameError> for AnswerFault {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl fmt::Display for AnswerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => f.write_str("more than one message came back"),
            Self::Frame(FrameError::TooLarge { found, allowed }) => {
                write!(f, "the answer has {found} bytes; {allowed} are allowed")
            }
            Self::Frame(FrameError::Compressed | FrameError::Flag(_)) => {
                f.write_str("the answer is compressed or no gRPC message")
            }
        }
    }
}

/// The task of a channel.
struct Task {
    shared: Rc<RefCell<Shared>>,
    address: String,
    authority: String,
    host: String,
    port: u16,
    limits: ChannelLimits,
    buffer: ReadBuffer,
    phase: Phase,
    /// Connections that take no more calls; each ends with the last of those it has.
    leaving: Vec<Link>,
    /// How many connections there have been.
    link_count: u64,
    rest: Duration,
    alarm: Alarm,
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>>>>;

enum Phase {
    Idle,
    Connecting(Connecting),
    Open(Box<Link>),
    Resting { until: Instant, why: String },
}

/// A connection that is open.
struct Link {
    /// No two connections of a channel have the same.
    number: u64,
    connection: Connection<Rc<RefCell<Slot>>>,
    socket: Socket,
    /// When the peer was last heard, or when it was asked.
    heard: Instant,
    pinged: bool,
    deadline: Option<Instant>,
    /// The peer has answered a call: it is a server, and it works.
    has_answered: bool,
}

impl Task {
    async fn run(mut self) {
        poll_fn(|cx| self.poll(cx)).await;
    }

    /// Ready when nobody has a handle any more and all is said.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        self.shared.borrow_mut().waker = Some(cx.waker().clone());
        if self.shared.borrow().is_closing {
            return Poll::Ready(());
        }
        self.shared.borrow_mut().expire_queued(now);
        self.tell();
        let leaving_due = self.turn_leaving(now, cx);
        let phase_due = self.turn_phase(now, cx);
        let queue_due = self.shared.borrow().queue_due;
        self.alarm.set([leaving_due, phase_due, queue_due].into_iter().flatten().min(), now, cx);
        Poll::Pending
    }

    /// Goes from phase to phase until one has to wait; answers until when.
    fn turn_phase(&mut self, now: Instant, cx: &mut Context<'_>) -> Option<Instant> {
        loop {
            match &mut self.phase {
                Phase::Idle => {
                    if self.shared.borrow().queue.is_empty() {
                        return None;
                    }
                    self.phase = Phase::Connecting(connect(self.host.clone(), self.port));
                }
                Phase::Resting { until, why } => {
                    if *until > now {
                        let text = format!("{}: {why}", self.address);
                        fail_all(self.shared.borrow_mut().queue.drain(..), &text, Done::No);
                        return None; // The next call comes to see whether it is over.
                    }
                    self.phase = Phase::Idle;
                }
                Phase::Connecting(connecting) => match connecting.as_mut().poll(cx) {
                    Poll::Pending => return None,
                    Poll::Ready(Ok(stream)) => match Socket::new(stream, self.buffer.clone()) {
                        Ok(socket) => {
                            self.link_count += 1;
                            let link = Link::new(self.link_count, self.limits.profile, socket, now);
                            self.phase = Phase::Open(Box::new(link));
                        }
                        Err(error) => self.rest(now, error.to_string()),
                    },
                    Poll::Ready(Err(error)) => self.rest(now, error.to_string()),
                },
                Phase::Open(link) => match link.turn(Some((&self.shared, &self.authority)), &self.limits, now, cx) {
                    Ok(due) if link.connection.takes_streams() => {
                        if link.has_answered {
                            self.rest = REST_MIN;
                        }
                        return due;
                    }
                    Ok(_) => {
                        self.part(now, "the peer takes no more calls".to_owned());
                        cx.waker().wake_by_ref(); // It has its own turns from now on.
                    }
                    Err(Lost(why)) => {
                        link.fail_open_calls(&format!("{}: {why}", self.address));
                        self.part(now, why);
                    }
                },
            }
        }
    }

    /// Has done with the connection that is open, except for the calls that are open on it.
    ///
    /// One that has answered calls is replaced as soon as there is another call. One that has not is as bad as none.
    fn part(&mut self, now: Instant, why: String) {
        let Phase::Open(link) = std::mem::replace(&mut self.phase, Phase::Idle) else { return };
        if !link.has_answered {
            self.rest(now, why);
        }
        if link.connection.stream_count() > 0 {
            self.leaving.push(*link);
        }
    }

    /// Gives those connections a turn that take no more calls; answers when the next thing is due.
    fn turn_leaving(&mut self, now: Instant, cx: &mut Context<'_>) -> Option<Instant> {
        let Self { leaving, limits, address, .. } = self;
        let mut earliest: Option<Instant> = None;
        leaving.retain_mut(|link| match link.turn(None, limits, now, cx) {
            Ok(due) => {
                earliest = [earliest, due].into_iter().flatten().min();
                true
            }
            Err(Lost(why)) => {
                link.fail_open_calls(&format!("{address}: {why}"));
                false
            }
        });
        earliest
    }

    /// Tells the peer of the calls whose callers have gone, and of what was taken of the answers that come in parts.
    fn tell(&mut self) {
        let (cancelled, passed_on) = {
            let mut shared = self.shared.borrow_mut();
            (std::mem::take(&mut shared.cancelled), std::mem::take(&mut shared.passed_on))
        };
        for (number, key, bytes) in passed_on {
            if let Some(link) = self.link(number) {
                link.connection.pass_on(key, bytes);
            }
        }
        for (number, key) in cancelled {
            if let Some(link) = self.link(number) {
                link.connection.reset(key, Reason::CANCEL);
            }
        }
    }

    fn link(&mut self, number: u64) -> Option<&mut Link> {
        let open = if let Phase::Open(link) = &mut self.phase { Some(&mut **link) } else { None };
        self.leaving.iter_mut().chain(open).find(|link| link.number == number)
    }

    fn rest(&mut self, now: Instant, why: String) {
        self.phase = Phase::Resting { until: now + self.rest, why };
        self.rest = (self.rest * 2).min(REST_MAX);
    }
}

fn fail_all(slots: impl Iterator<Item = Rc<RefCell<Slot>>>, text: &str, done: Done) {
    for slot in slots {
        slot.borrow_mut().fail(Code::Unavailable, text.to_owned(), done);
    }
}

/// Resolves the host, on a helper thread unless it is a number, and connects to the first address that answers.
fn connect(host: String, port: u16) -> Connecting {
    Box::pin(async move {
        let addresses = match host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => {
                let resolve = move || (host.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
                glommio::executor().spawn_blocking(resolve).await?
            }
        };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in addresses {
            match tcp::connect(address, CONNECT_MAX).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    })
}

/// Why a connection is of no use any more.
struct Lost(String);

impl Link {
    fn new(number: u64, profile: &'static Profile, socket: Socket, now: Instant) -> Self {
        let connection = Connection::new(Role::Client, profile);
        Self { number, connection, socket, heard: now, pinged: false, deadline: None, has_answered: false }
    }

    /// One turn: read, open, send. Opens the calls that wait in `queue`, if there is one, in the name of its
    /// authority. Answers when the next thing is due.
    fn turn(
        &mut self,
        queue: Option<(&RefCell<Shared>, &str)>,
        limits: &ChannelLimits,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Result<Option<Instant>, Lost> {
        let Self { connection, socket, heard, pinged, has_answered, .. } = self;
        let is_reading = connection.wants_bytes();
        let mut read = Read::Drained;
        if is_reading {
            let lost = |_| Lost("the connection was closed by the peer".to_owned());
            read = socket
                .read(cx, |bytes| {
                    (*heard, *pinged) = (now, false);
                    connection.receive(bytes);
                    *has_answered |= take_events(connection, limits, now);
                    connection.wants_bytes()
                })
                .map_err(lost)?;
        }
        if let Some((shared, authority)) = queue {
            self.open_queued(shared, authority, now);
        }
        self.on_time(limits, now)?;
        let lost = |_| Lost("the connection was lost".to_owned());
        self.socket.send(&mut self.connection, now, cx).map_err(lost)?;
        if self.connection.is_over() {
            let why = self.connection.fault().map(|reason| reason.description().to_owned());
            return Err(Lost(why.unwrap_or_else(|| "the peer said goodbye".to_owned())));
        }
        self.connection.rest();
        if (read == Read::More || !is_reading) && self.connection.wants_bytes() {
            cx.waker().wake_by_ref();
        }
        Ok(self.due(limits))
    }

    fn open_queued(&mut self, shared: &RefCell<Shared>, authority: &str, now: Instant) {
        while self.connection.has_room() {
            let Some(slot) = shared.borrow_mut().queue.pop_front() else { return };
            let (path, request, deadline) = {
                let mut slot = slot.borrow_mut();
                if !matches!(slot.stage, Stage::Queued) {
                    continue; // Its caller has gone.
                }
                (slot.path, std::mem::take(&mut slot.request), slot.deadline)
            };
            let timeout = timeout::format(deadline.saturating_duration_since(now));
            let head = RequestHead { path, authority, timeout: &timeout };
            match self.connection.open(&head, slot.clone()) {
                Ok(key) => {
                    slot.borrow_mut().stage = Stage::Sent(self.number, key);
                    if slot.borrow().parts.is_some() {
                        self.connection.hold_window(key);
                    }
                    let request_bytes = request.bytes();
                    let Pieces { first, rest } = request;
                    self.connection.send_part(key, &prefix(request_bytes), first, rest.is_empty());
                    let mut rest = rest.into_iter();
                    while let Some(piece) = rest.next() {
                        self.connection.send_part(key, &[], piece, rest.len() == 0);
                    }
                    self.deadline = Some(self.deadline.map_or(deadline, |earliest| earliest.min(deadline)));
                }
                Err(OpenError::Full | OpenError::Closing) => unreachable!("there was room"),
            }
        }
    }

    fn on_time(&mut self, limits: &ChannelLimits, now: Instant) -> Result<(), Lost> {
        if self.socket.stalls_at(limits.profile.write_stall).is_some_and(|at| at <= now) {
            return Err(Lost("the peer reads nothing".to_owned()));
        }
        if self.connection.stream_count() > 0 && now >= self.silent_until() {
            if self.pinged {
                return Err(Lost("the peer gives no sign of life".to_owned()));
            }
            // From here on the silence is measured anew: calls may have begun long after the last answer.
            (self.heard, self.pinged) = (now, true);
            self.connection.send_ping();
        }
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return Ok(());
        }
        self.deadline = None;
        for key in self.connection.keys() {
            let Some(slot) = self.connection.attachment(key).cloned() else { continue };
            let deadline = slot.borrow().deadline;
            if deadline <= now {
                self.connection.reset(key, Reason::CANCEL);
                slot.borrow_mut().fail(Code::DeadlineExceeded, "no answer before the deadline", Done::Unknown);
            } else {
                self.deadline = Some(self.deadline.map_or(deadline, |earliest| earliest.min(deadline)));
            }
        }
        Ok(())
    }

    /// How long the peer may say nothing.
    fn silent_until(&self) -> Instant {
        self.heard + if self.pinged { ANSWER_MAX } else { SILENCE_MAX }
    }

    fn due(&self, limits: &ChannelLimits) -> Option<Instant> {
        let silence = (self.connection.stream_count() > 0).then(|| self.silent_until());
        [self.deadline, silence, self.socket.stalls_at(limits.profile.write_stall)].into_iter().flatten().min()
    }

    fn fail_open_calls(&mut self, text: &str) {
        for key in self.connection.keys() {
            if let Some(slot) = self.connection.close(key) {
                slot.borrow_mut().fail(Code::Unavailable, text.to_owned(), Done::Unknown);
            }
        }
    }
}

/// Answers whether a call was answered, with whatever status.
fn take_events(connection: &mut Connection<Rc<RefCell<Slot>>>, limits: &ChannelLimits, now: Instant) -> bool {
    let mut has_answer = false;
    while let Some(event) = connection.next_event(now) {
        match event {
            Event::Head { key, head, is_end } => {
                has_answer = true;
                let status = head.pseudo.status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                if is_end || status != StatusCode::OK {
                    finish(connection, key, status, &head);
                } else if !head.is_grpc {
                    refuse(connection, key, &head);
                }
            }
            Event::Data { key, bytes, is_end } => on_data(connection, limits, key, bytes, is_end),
            Event::Trailers { key, head } => finish(connection, key, StatusCode::OK, &head),
            Event::Reset { reason, .. } => {
                if let Some(slot) = connection.take_reset() {
                    on_reset(&slot, reason);
                }
            }
            Event::GoAway { .. } => {} // The streams it refuses come as resets; the connection ends with the others.
        }
    }
    has_answer
}

fn on_data(
    connection: &mut Connection<Rc<RefCell<Slot>>>,
    limits: &ChannelLimits,
    key: StreamKey,
    mut data: Bytes,
    is_end: bool,
) {
    let Some(slot) = connection.attachment(key).cloned() else { return };
    let mut slot = slot.borrow_mut();
    let fault = match slot.push(&mut data, limits.message_bytes_max) {
        Ok(()) if is_end => "the answer has no status".to_owned(),
        Ok(()) => return,
        Err(fault) => fault.to_string(),
    };
    slot.fail(Code::Internal, fault, Done::Unknown);
    connection.reset(key, Reason::CANCEL);
}

/// Somebody answers who does not speak gRPC: a web server, or a proxy with a page about what is wrong. What it says is not
/// looked into (PROTOCOL-HTTP2.md, "Responses").
fn refuse(connection: &mut Connection<Rc<RefCell<Slot>>>, key: StreamKey, head: &Head) {
    let Some(slot) = connection.reset(key, Reason::CANCEL) else { return };
    let found =
        head.fields.get(CONTENT_TYPE).map_or(Cow::Borrowed("none"), |found| String::from_utf8_lossy(found.as_bytes()));
    slot.borrow_mut().fail(Code::Unknown, format!("the answer is not gRPC: content-type {found}"), Done::Unknown);
}

/// The response is complete, or will not be.
fn finish(connection: &mut Connection<Rc<RefCell<Slot>>>, key: StreamKey, status: StatusCode, head: &Head) {
    let Some(slot) = connection.close(key) else { return };
    let mut slot = slot.borrow_mut();
    if status != StatusCode::OK {
        return slot.fail(Code::from_http(status), format!("HTTP status {status}"), Done::Unknown);
    }
    // Only for speed: nearly every answer ends so, and the head is known.
    let status = if head.is_status_ok { Ok(()) } else { Status::from_trailers(&head.fields) };
    let outcome = match status {
        Ok(()) => slot.outcome(),
        Err(status) => Err(CallError { status, done: Done::Answered }),
    };
    slot.end(outcome);
}

/// PROTOCOL-HTTP2.md, "Errors".
fn on_reset(slot: &Rc<RefCell<Slot>>, reason: Reason) {
    let (code, done) = match reason {
        Reason::REFUSED_STREAM => (Code::Unavailable, Done::No),
        Reason::CANCEL => (Code::Cancelled, Done::Unknown),
        Reason::ENHANCE_YOUR_CALM => (Code::ResourceExhausted, Done::Unknown),
        Reason::INADEQUATE_SECURITY => (Code::PermissionDenied, Done::Unknown),
        _ => (Code::Internal, Done::Unknown),
    };
    slot.borrow_mut().fail(code, format!("the peer reset the stream: {}", reason.description()), done);
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(found) => write!(f, "{found}: http://host:port is expected"),
            Self::Tls(found) => write!(f, "{found}: https is not supported yet; use http://host:port"),
        }
    }
}

impl std::error::Error for AddressError {}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.status.fmt(f)
    }
}

impl std::error::Error for CallError {}
