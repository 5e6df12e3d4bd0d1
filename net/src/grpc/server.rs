//! A gRPC server on one core: connections come in, calls go to a [`Service`], answers go out.
//!
//! ```text
//!            one task for each connection
//!   socket ─▶ Conversation ─ a call is polled once, where it arrives ─┬─ answered: into the outbox, nothing allocated
//!                            calls that wait: polled when woken ◀─────┘
//!          ◀─ one gathered send at the end of the turn
//! ```
//! A client that reads slowly makes nobody else wait and makes us hold no more than its profile says: a read whose large
//! answer has no room is put aside and asked again when there is; answers from another server are passed on as they come,
//! no faster than they are read here.
//!
//! Health and reflection are answered here, on every port. Nothing is spawned for a call. When a connection ends, calls
//! that only read are dropped where they wait; calls that write run to their end on the task that was the connection's.

mod conversation;

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::{Future, poll_fn},
    net::IpAddr,
    ops::{ControlFlow, Deref},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use glommio::net::TcpStream;
use slab::Slab;
use smallvec::SmallVec;

pub use self::conversation::Conversation;
use super::{
    client::Body, frame::PREFIX_BYTES, health::Health, pieces::Pieces, reflection::Reflection, status::Status, watch,
};
use crate::{
    http2::limits::Profile,
    stream::{Alarm, Read, ReadBuffer, Socket},
};

/// What answers the calls of a core.
pub trait Service: 'static {
    /// One call under way. Polled on the connection's task; a borrow must not live across an await in it.
    type Call: Future<Output = Reply> + 'static;

    /// Whether hardly any call is answered when it is polled for the first time: then it is not tried.
    const MOSTLY_WAITS: bool = false;

    /// What is behind a path, for example `/cache_server.Cache/Get`; `None` is answered with UNIMPLEMENTED.
    fn method(&self, path: &str) -> Option<Effect>;

    /// Begins a call. Asked only for paths that [`Service::method`] knows.
    fn call(&self, request: Request) -> Self::Call;
}

/// What a call does, which decides what becomes of it when its caller goes away or its deadline passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It only reads: it is dropped where it waits, and asked once more if there is no room for its answer.
    Reads,
    /// It writes: it runs to its end, and only its answer is lost.
    Writes,
}

/// A call as it arrived.
#[derive(Debug)]
pub struct Request {
    /// For example `/cache_server.Cache/Get`.
    pub path: Path,
    /// The message. Possibly a slice of what was read from the socket: copy what is to be kept.
    pub message: Bytes,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// Who asks.
    pub peer: IpAddr,
}

/// The path of a call, as text.
#[derive(Debug, Clone)]
pub struct Path(Rc<str>);

impl From<&str> for Path {
    fn from(path: &str) -> Self {
        Self(Rc::from(path))
    }
}

impl Deref for Path {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Room for the head of a message: its prefix and the fields before a value.
const HEAD_BYTES: usize = 128;

/// A message on its way out: a head, which is small, and what follows it, which is never copied where it is large.
#[derive(Debug, Clone)]
pub struct Message {
    /// The prefix's five bytes, still zero, and then the first bytes of the message.
    head: SmallVec<[u8; HEAD_BYTES]>,
    rest: Pieces,
}

impl Message {
    /// The message that begins with what `put_head` writes and ends with `value`.
    pub fn new(put_head: impl FnOnce(&mut SmallVec<[u8; HEAD_BYTES]>), value: Bytes) -> Self {
        let mut head = SmallVec::from_slice(&[0; PREFIX_BYTES]);
        put_head(&mut head);
        Self { head, rest: value.into() }
    }

    /// An encoded protobuf message.
    #[must_use]
    pub fn encode(message: &impl prost::Message) -> Self {
        Self::from(Bytes::from(message.encode_to_vec()))
    }

    /// Prefix and head, and what follows.
    pub(crate) fn into_parts(mut self) -> (SmallVec<[u8; HEAD_BYTES]>, Pieces) {
        let message_bytes = self.head.len() - PREFIX_BYTES + self.rest.bytes();
        self.head[..PREFIX_BYTES].copy_from_slice(&super::frame::prefix(message_bytes));
        (self.head, self.rest)
    }
}

impl From<Bytes> for Message {
    /// A message that is encoded already.
    fn from(value: Bytes) -> Self {
        Self::new(|_| {}, value)
    }
}

impl From<Pieces> for Message {
    /// The same in pieces.
    fn from(pieces: Pieces) -> Self {
        Self { rest: pieces, ..Self::from(Bytes::new()) }
    }
}

/// How a call ends.
#[derive(Debug)]
pub enum Reply {
    /// With a message and status OK.
    Message(Message),
    /// With a status.
    Failed(Status),
    /// With a message that is passed on as it comes, and then its status.
    Parts(Body),
    /// With a stream of messages: the current one at once, and then each newer one.
    Watch(watch::Receiver),
}

/// The limits of a server that are not the connection's.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Connections of one core; more are closed as they come.
    pub connections_max: usize,
    /// The largest legal request message in bytes.
    pub message_bytes_max: usize,
}

/// How long a client may take to answer the first step of a drain.
const DRAIN_ANSWER_MAX: Duration = Duration::from_millis(500);

/// The server of one core. All its connections share it; none of them is on another core.
pub struct Server<S: Service> {
    service: Rc<S>,
    health: Health,
    reflection: Rc<Reflection>,
    profile: &'static Profile,
    limits: ServerLimits,
    buffer: ReadBuffer,
    connections: RefCell<Slab<Waker>>,
    is_refusing: Cell<bool>,
    is_ending: Cell<bool>,
    idle_waker: RefCell<Option<Waker>>,
}

impl<S: Service> Server<S> {
    /// A server that has no connection yet.
    #[must_use]
    pub fn new(
        service: Rc<S>,
        health: Health,
        reflection: Rc<Reflection>,
        profile: &'static Profile,
        limits: ServerLimits,
    ) -> Rc<Self> {
        Rc::new(Self {
            service,
            health,
            reflection,
            profile,
            limits,
            buffer: ReadBuffer::default(),
            connections: RefCell::new(Slab::new()),
            is_refusing: Cell::new(false),
            is_ending: Cell::new(false),
            idle_waker: RefCell::new(None),
        })
    }

    /// Serves one connection until it ends and its writes have ended too. Spawn it: this is the connection's task.
    pub async fn serve(self: Rc<Self>, stream: TcpStream, peer: IpAddr) {
        if self.connections.borrow().len() >= self.limits.connections_max {
            tracing::warn!("connection from {peer} closed: this core has {} already", self.limits.connections_max);
            return;
        }
        let socket = match Socket::new(stream, self.buffer.clone()) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!("connection from {peer} closed: {error}");
                return;
            }
        };
        let ticket = self.connections.borrow_mut().insert(Waker::noop().clone());
        let mut shell = Shell {
            conversation: Conversation::new(
                self.service.clone(),
                self.health.clone(),
                self.reflection.clone(),
                self.profile,
                self.limits.message_bytes_max,
                peer,
                Instant::now(),
            ),
            socket,
            alarm: Alarm::default(),
            drain_until: None,
            ticket,
        };
        let end = poll_fn(|cx| shell.poll_turn(&self, cx)).await;
        let Shell { mut conversation, socket, .. } = shell;
        conversation.drop_reads();
        // First the peer, which need not wait for what only we still wait for.
        match end {
            End::AllSaid => socket.farewell().await,
            End::Cut => drop(socket),
        }
        poll_fn(|cx| conversation.poll_writes(cx)).await;
        self.connections.borrow_mut().remove(ticket);
        if let Some(waker) = self.idle_waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Connections that are open, or still have writes under way.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Tells every connection, and each that still comes, to open no more streams.
    pub fn refuse(&self) {
        self.is_refusing.set(true);
        self.wake_all();
    }

    /// Ends every connection now. Writes still run to their end.
    pub fn end(&self) {
        self.is_ending.set(true);
        self.wake_all();
    }

    /// Waits until no connection is left.
    pub async fn drained(&self) {
        poll_fn(|cx| {
            if self.connections.borrow().is_empty() {
                return Poll::Ready(());
            }
            *self.idle_waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn wake_all(&self) {
        for (_, waker) in self.connections.borrow().iter() {
            waker.wake_by_ref();
        }
    }
}

impl<S: Service> fmt::Debug for Server<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({} connections)", self.connection_count())
    }
}

/// How a connection ends.
enum End {
    /// By agreement, or with a GOAWAY that tells why.
    AllSaid,
    /// The peer is gone or may go.
    Cut,
}

/// A conversation with its socket and its clock.
struct Shell<S: Service> {
    conversation: Conversation<S>,
    socket: Socket,
    alarm: Alarm,
    drain_until: Option<Instant>,
    ticket: usize,
}

impl<S: Service> Shell<S> {
    /// One turn: read, answer, send. Ready when the connection is at its end.
    fn poll_turn(&mut self, server: &Server<S>, cx: &mut Context<'_>) -> Poll<End> {
        let now = Instant::now();
        self.note_waker(server, cx.waker());
        if server.is_ending.get() {
            return Poll::Ready(End::Cut);
        }
        if server.is_refusing.get() && self.drain_until.is_none() {
            self.conversation.begin_drain();
            self.drain_until = Some(now + DRAIN_ANSWER_MAX);
        }
        let Self { conversation, socket, .. } = self;
        let is_reading = conversation.connection().wants_bytes();
        let read = if is_reading {
            socket.read(cx, |bytes| {
                conversation.receive(bytes, now);
                conversation.connection().wants_bytes()
            })
        } else {
            Ok(Read::Drained) // Comes back when the outbox is sent.
        };
        let Ok(read) = read else { return Poll::Ready(End::Cut) };
        conversation.poll_calls(cx);
        if self.on_time(now).is_break() {
            return Poll::Ready(End::Cut);
        }
        let connection = self.conversation.connection();
        if self.socket.send(connection, now, cx).is_err() {
            return Poll::Ready(End::Cut);
        }
        if connection.is_over() && connection.outbox().is_empty() {
            return Poll::Ready(End::AllSaid);
        }
        connection.rest();
        // What was left unread for a full outbox is read now that the outbox is empty.
        let is_more_to_read = (read == Read::More || !is_reading) && connection.wants_bytes();
        if is_more_to_read || self.conversation.can_resume() {
            cx.waker().wake_by_ref(); // After the others of this core.
        }
        let due = self.due(now);
        self.alarm.set(due, now, cx);
        Poll::Pending
    }

    fn note_waker(&self, server: &Server<S>, waker: &Waker) {
        let mut connections = server.connections.borrow_mut();
        let known = &mut connections[self.ticket];
        if !known.will_wake(waker) {
            known.clone_from(waker);
        }
    }

    /// What is due at `now`. Breaks when the connection has to end.
    fn on_time(&mut self, now: Instant) -> ControlFlow<()> {
        if self.drain_until.is_some_and(|until| until <= now) {
            self.conversation.connection().finish_drain();
        }
        if self.stalls_at().is_some_and(|at| at <= now) {
            return ControlFlow::Break(());
        }
        self.conversation.on_time(now)
    }

    fn due(&self, now: Instant) -> Option<Instant> {
        let drain = self.drain_until.filter(|until| *until > now);
        [self.conversation.due(), drain, self.stalls_at()].into_iter().flatten().min()
    }

    fn stalls_at(&self) -> Option<Instant> {
        self.socket.stalls_at(self.conversation.profile().write_stall)
    }
}
