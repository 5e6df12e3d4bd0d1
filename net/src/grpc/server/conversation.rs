//! One connection's calls, without its socket: bytes in, calls to the service, bytes out.
//!
//! ```text
//!   Head ─▶ Incoming ─ Data… ─▶ END_STREAM ─┬─ unary: Service::call, polled once ─┬─ ready: answered
//!            │  415, 405, UNIMPLEMENTED     │                                     └─ waits: Slot, polled when woken
//!            │                              └─ health Check
//!            └─ reflection: an answer for each message
//!
//!   reply ─┬─ small, or there is room ─▶ head, message, trailers
//!          ├─ large, and no room ─▶ aside, until there is: then called once more
//!          └─ in parts, or a watch ─▶ Flowing: the next part when the stream has sent the last one
//! ```

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::Future,
    net::IpAddr,
    ops::ControlFlow,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{Stream as _, stream::FuturesUnordered};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header::CONTENT_TYPE};
use milena_proto::method::{HEALTH_CHECK, HEALTH_WATCH, REFLECTION_PATHS};
use smallvec::SmallVec;

use super::{Effect, HEAD_BYTES, Path, Reply, Request, Service};
use crate::{
    grpc::{
        client::Body,
        frame::{Assembler, FrameError, prefix},
        health::Health,
        pieces::Pieces,
        reflection::Reflection,
        status::{Code, Status},
        timeout::{self, GRPC_TIMEOUT},
        watch,
    },
    http2::{COPIED_BYTES_MAX, Connection, Event, Head, Reason, Role, StreamKey, limits::Profile},
};

/// Futures kept for the next call that waits, so that waiting costs no allocation of its own.
const SPARE_FUTURES_MAX: usize = 64;

/// What a client that was refused for want of room should wait.
const PUSHBACK_MS: u32 = 100;

/// An answer of up to this many bytes never waits for room: the number of streams bounds them.
const SMALL_ANSWER_BYTES_MAX: usize = COPIED_BYTES_MAX;

const CONTENT_TYPE_GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// The prefix and the first bytes of a message, and what follows them.
type Part = (SmallVec<[u8; HEAD_BYTES]>, Bytes);

type Reusable<F> = Pin<Box<Option<F>>>;

/// The calls of one connection; see the head of this file.
pub struct Conversation<S: Service> {
    connection: Connection<Incoming<S::Call>>,
    service: Rc<S>,
    health: Health,
    reflection: Rc<Reflection>,
    profile: &'static Profile,
    message_bytes_max: usize,
    peer: IpAddr,
    waiting: FuturesUnordered<Waiting<S::Call>>,
    spare: Vec<Reusable<S::Call>>,
    flowing: Vec<Flowing>,
    /// Reads whose answers had no room, in the order in which they get it.
    aside: VecDeque<Aside>,
    /// Watches end once they have seen the latest value: nobody will be here to change it.
    is_stopping: bool,
    greeting_due: Instant,
    /// The last request's head and what it asks for: most heads are the same as the one before.
    last_head: Option<(Rc<Head>, Result<Meaning, Refusal>)>,
    /// No call's deadline is earlier. It may be the deadline of a call that has ended: then nothing is found to be due.
    deadline: Option<Instant>,
    /// Bytes of requests that are not complete.
    held_bytes: usize,
    /// Room for the answers of the calls that were put aside and are under way again, in bytes.
    reserved_bytes: usize,
}

/// A request that is coming in, or a call under way. What is in it is the conversation's own.
pub struct Incoming<F> {
    path: Path,
    kind: Kind,
    assembler: Assembler,
    message: Option<Bytes>,
    deadline: Option<Instant>,
    /// The call names an encoding other than `identity`.
    is_encoded: bool,
    /// Bytes counted in the conversation's `held_bytes`.
    held_bytes: usize,
    /// Bytes counted in the conversation's `reserved_bytes`.
    reserved_bytes: usize,
    slot: Option<Rc<RefCell<Slot<F>>>>,
    source: Option<Source>,
    has_head: bool,
}

/// What the head of a request asks for.
#[derive(Clone)]
struct Meaning {
    path: Path,
    kind: Kind,
    /// The call names an encoding other than `identity`.
    is_encoded: bool,
    timeout: Option<Duration>,
}

/// Why the head of a request is answered at once.
enum Refusal {
    Http(StatusCode),
    NoSuchMethod,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Call(Effect),
    HealthCheck,
    HealthWatch,
    Reflection,
}

/// Where an answer comes from that is not there as a whole.
enum Source {
    Body(Body),
    Watch(watch::Receiver),
}

/// A stream whose answer has a [`Source`].
struct Flowing {
    key: StreamKey,
    /// What is still to come, in bytes, as far as that is known.
    left_bytes: usize,
    /// Nobody has asked for the next part, because the stream still has something to send.
    is_held_up: bool,
}

/// A read that is called again when there is room for its answer.
struct Aside {
    key: StreamKey,
    answer_bytes: usize,
}

/// A call that waits. Its stream and the set of waiting calls both hold it; whoever ends it empties it.
struct Slot<F> {
    key: StreamKey,
    effect: Effect,
    future: Option<Reusable<F>>,
    waker: Option<Waker>,
}

struct Waiting<F>(Rc<RefCell<Slot<F>>>);

impl<F: Future<Output = Reply>> Future for Waiting<F> {
    /// The stream, and its reply unless it was dropped.
    type Output = Option<(StreamKey, Reply, Reusable<F>)>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.0.borrow_mut();
        let Some(future) = &mut slot.future else { return Poll::Ready(None) };
        let call = future.as_mut().as_pin_mut().expect("filled until it is ready");
        match call.poll(cx) {
            Poll::Ready(reply) => {
                let mut future = slot.future.take().expect("just polled");
                future.set(None);
                Poll::Ready(Some((slot.key, reply, future)))
            }
            Poll::Pending => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<F> Slot<F> {
    /// Drops the call, and lets the set of waiting calls find out.
    fn drop_call(&mut self) {
        self.future = None;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl<S: Service> Conversation<S> {
    /// A conversation with `peer` that begins at `now`.
    #[must_use]
    pub fn new(
        service: Rc<S>,
        health: Health,
        reflection: Rc<Reflection>,
        profile: &'static Profile,
        message_bytes_max: usize,
        peer: IpAddr,
        now: Instant,
    ) -> Self {
        Self {
            connection: Connection::new(Role::Server, profile),
            service,
            health,
            reflection,
            profile,
            message_bytes_max,
            peer,
            waiting: FuturesUnordered::new(),
            spare: Vec::new(),
            flowing: Vec::new(),
            aside: VecDeque::new(),
            is_stopping: false,
            greeting_due: now + profile.handshake,
            last_head: None,
            deadline: None,
            held_bytes: 0,
            reserved_bytes: 0,
        }
    }

    /// The connection underneath: its outbox, its end.
    pub fn connection(&mut self) -> &mut Connection<Incoming<S::Call>> {
        &mut self.connection
    }

    pub(super) fn profile(&self) -> &'static Profile {
        self.profile
    }

    /// Takes in bytes from the socket, and begins the calls they complete.
    pub fn receive(&mut self, bytes: &[u8], now: Instant) {
        self.connection.receive(bytes);
        while let Some(event) = self.connection.next_event(now) {
            match event {
                Event::Head { key, head, is_end } => self.on_head(key, &head, is_end, now),
                Event::Data { key, bytes, is_end } => self.on_data(key, bytes, is_end, now),
                Event::Trailers { key, .. } => self.on_end(key, now),
                Event::Reset { .. } => {
                    if let Some(mut gone) = self.connection.take_reset() {
                        self.held_bytes -= gone.held_bytes;
                        self.reserved_bytes -= gone.reserved_bytes;
                        gone.abandon();
                    }
                }
                Event::GoAway { .. } => unreachable!("a server is not told"),
            }
        }
    }

    /// Opens no more streams, and ends those that would never end by themselves.
    pub fn begin_drain(&mut self) {
        self.is_stopping = true;
        self.connection.begin_drain();
        for key in self.connection.keys() {
            // Every question was answered when it came; whether there will be another, nobody knows.
            if self.call(key).is_some_and(|call| call.kind == Kind::Reflection && call.assembler.is_between_messages())
            {
                self.end_stream(key);
            }
        }
    }

    /// Calls again what was put aside, if there is room; polls the calls that were woken, and what flows.
    pub fn poll_calls(&mut self, cx: &mut Context<'_>) {
        self.call_aside(); // First, because a call that is new is polled here for the first time.

        while !self.waiting.is_empty() {
            match Pin::new(&mut self.waiting).poll_next(cx) {
                Poll::Ready(Some(Some((key, reply, future)))) => {
                    if self.spare.len() < SPARE_FUTURES_MAX {
                        self.spare.push(future);
                    }
                    self.reply(key, reply);
                }
                Poll::Ready(Some(None)) => {}
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        self.poll_flowing(cx);
    }

    /// The next moment at which [`Conversation::on_time`] has something to do.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let greeting = (!self.connection.is_greeted()).then_some(self.greeting_due);
        [greeting, self.deadline].into_iter().flatten().min()
    }

    /// Ends what is late at `now`. Breaks when the connection itself is.
    pub fn on_time(&mut self, now: Instant) -> ControlFlow<()> {
        if !self.connection.is_greeted() && self.greeting_due <= now {
            return ControlFlow::Break(());
        }
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return ControlFlow::Continue(());
        }
        self.deadline = None;
        for key in self.connection.keys() {
            let Some(call) = self.call(key) else { continue };
            match call.deadline {
                Some(deadline) if deadline <= now => {
                    call.abandon();
                    self.fail(key, &Status::new(Code::DeadlineExceeded, "the deadline has passed"));
                }
                Some(deadline) => self.note_deadline(deadline),
                None => {}
            }
        }
        ControlFlow::Continue(())
    }

    /// Drops every call that only reads: nobody waits for them any more.
    pub fn drop_reads(&mut self) {
        for key in self.connection.keys() {
            if let Some(call) = self.call(key) {
                call.abandon();
            }
        }
    }

    /// Ready when no call is under way. For a connection that has ended.
    pub fn poll_writes(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.waiting.is_empty() {
            if Pin::new(&mut self.waiting).poll_next(cx).is_pending() {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    // ---- requests ----

    fn on_head(&mut self, key: StreamKey, head: &Rc<Head>, is_end: bool, now: Instant) {
        let meaning = match &self.last_head {
            Some((last, meaning)) if Rc::ptr_eq(last, head) => meaning,
            _ => &self.last_head.insert((Rc::clone(head), self.meaning(head))).1,
        };
        let Meaning { path, kind, is_encoded, timeout } = match meaning {
            Ok(meaning) => meaning.clone(),
            Err(Refusal::Http(status)) => return self.connection.send_head(key, *status, HeaderMap::new(), true),
            Err(Refusal::NoSuchMethod) => {
                return self.fail(key, &Status::new(Code::Unimplemented, "there is no such method here"));
            }
        };
        let deadline = timeout.and_then(|timeout| now.checked_add(timeout));
        self.connection.attach(
            key,
            Incoming {
                path,
                kind,
                assembler: Assembler::default(),
                message: None,
                deadline,
                is_encoded,
                held_bytes: 0,
                reserved_bytes: 0,
                slot: None,
                source: None,
                has_head: false,
            },
        );
        if let Some(deadline) = deadline {
            self.note_deadline(deadline);
        }
        if is_end {
            self.on_end(key, now);
        }
    }

    /// What a head asks for.
    fn meaning(&self, head: &Head) -> Result<Meaning, Refusal> {
        if head.pseudo.method != Some(Method::POST) {
            return Err(Refusal::Http(StatusCode::METHOD_NOT_ALLOWED));
        }
        if !head.fields.get(CONTENT_TYPE).is_some_and(is_grpc) {
            return Err(Refusal::Http(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let path = Path::from(&**head.pseudo.path.as_ref().expect("the connection has checked it"));
        let kind = match &*path {
            path if path == HEALTH_CHECK.path => Kind::HealthCheck,
            path if path == HEALTH_WATCH.path => Kind::HealthWatch,
            path if REFLECTION_PATHS.contains(&path) => Kind::Reflection,
            path => Kind::Call(self.service.method(path).ok_or(Refusal::NoSuchMethod)?),
        };
        let is_encoded = head.fields.get("grpc-encoding").is_some_and(|encoding| encoding != "identity");
        let timeout = head.fields.get(GRPC_TIMEOUT).and_then(timeout::parse);
        Ok(Meaning { path, kind, is_encoded, timeout })
    }

    fn on_data(&mut self, key: StreamKey, mut data: Bytes, is_end: bool, now: Instant) {
        let message_bytes_max = self.message_bytes_max;
        loop {
            let Some(call) = self.call(key) else { return };
            match call.assembler.push(&mut data, message_bytes_max) {
                Ok(Some(message)) if call.kind == Kind::Reflection => self.answer_reflection(key, &message),
                Ok(Some(_)) if call.message.is_some() => return self.fail(key, &cardinality()),
                // While the request goes on, a slice would keep the whole read alive for a few bytes.
                Ok(Some(message)) if !is_end => call.message = Some(Bytes::copy_from_slice(&message)),
                Ok(Some(message)) => call.message = Some(message),
                Ok(None) => break,
                Err(error) => {
                    let status = frame_status(&error, call.is_encoded);
                    return self.fail(key, &status);
                }
            }
        }
        if self.is_over_budget(key) {
            let text = "this connection holds too many bytes of unfinished requests";
            return self.fail(key, &Status::resource_exhausted(text, PUSHBACK_MS));
        }
        if is_end {
            self.on_end(key, now);
        }
    }

    /// Counts what the stream holds now; answers whether the connection holds too much.
    fn is_over_budget(&mut self, key: StreamKey) -> bool {
        let Some(call) = self.call(key) else { return false };
        let holds = call.assembler.held_bytes() + call.message.as_ref().map_or(0, Bytes::len);
        let held_before = std::mem::replace(&mut call.held_bytes, holds);
        self.held_bytes = self.held_bytes - held_before + holds;
        self.held_bytes > self.profile.held_bytes_max
    }

    fn release_held(&mut self, key: StreamKey) {
        let held_bytes = self.call(key).map_or(0, |call| std::mem::take(&mut call.held_bytes));
        self.held_bytes -= held_bytes;
    }

    fn on_end(&mut self, key: StreamKey, now: Instant) {
        self.release_held(key);
        let Some(call) = self.call(key) else { return };
        if !call.assembler.is_between_messages() {
            return self.fail(key, &Status::new(Code::Internal, "the request ends within a message"));
        }
        if call.kind == Kind::Reflection {
            return self.end_stream(key);
        }
        // A call that only reads keeps its message: it may be called once more.
        let message = if call.kind == Kind::Call(Effect::Reads) { call.message.clone() } else { call.message.take() };
        let Some(message) = message else { return self.fail(key, &cardinality()) };
        if call.deadline.is_some_and(|deadline| deadline <= now) {
            return self.fail(key, &Status::new(Code::DeadlineExceeded, "the deadline had passed on arrival"));
        }
        match call.kind {
            Kind::Call(effect) => self.start(key, effect, message),
            Kind::HealthCheck => {
                let reply =
                    self.health.check(&message).map_or_else(Reply::Failed, |answer| Reply::Message(answer.into()));
                self.reply(key, reply);
            }
            Kind::HealthWatch => {
                let reply = self.health.watch(&message).map_or_else(Reply::Failed, Reply::Watch);
                self.reply(key, reply);
            }
            Kind::Reflection => unreachable!("answered message by message"),
        }
    }

    fn start(&mut self, key: StreamKey, effect: Effect, message: Bytes) {
        let peer = self.peer;
        let Some(call) = self.call(key) else { return };
        let request = Request { path: call.path.clone(), message, deadline: call.deadline, peer };
        let mut future = self.spare.pop().unwrap_or_else(|| Box::pin(None));
        future.set(Some(self.service.call(request)));
        if !S::MOSTLY_WAITS {
            // Most calls are hits and end here. One that does not is polled again at once, with a waker of its own.
            let mut cx = Context::from_waker(Waker::noop());
            if let Poll::Ready(reply) = future.as_mut().as_pin_mut().expect("just filled").poll(&mut cx) {
                future.set(None);
                self.spare.push(future);
                return self.reply(key, reply);
            }
        }
        let slot = Rc::new(RefCell::new(Slot { key, effect, future: Some(future), waker: None }));
        if let Some(call) = self.call(key) {
            call.slot = Some(slot.clone());
        }
        self.waiting.push(Waiting(slot));
    }

    /// Calls again what was put aside, as far as there is room.
    fn call_aside(&mut self) {
        while self.has_room_aside() {
            let Some(Aside { key, answer_bytes }) = self.aside.pop_front() else { return };
            let Some(call) = self.call(key) else { continue }; // Its caller has gone, or its time is up.
            let Kind::Call(effect) = call.kind else { continue };
            let Some(message) = call.message.clone() else { continue };
            call.reserved_bytes = answer_bytes;
            self.reserved_bytes += answer_bytes;
            self.start(key, effect, message);
        }
    }

    /// Whether there is room for the answer that has waited longest, or nobody waits for it any more.
    fn has_room_aside(&self) -> bool {
        self.aside.front().is_some_and(|first| !self.connection.is_open(first.key) || self.has_room(first.answer_bytes))
    }

    /// Whether an answer may be held until it is read. One alone always may.
    fn has_room(&self, answer_bytes: usize) -> bool {
        if answer_bytes <= SMALL_ANSWER_BYTES_MAX {
            return true;
        }
        let flowing_bytes: usize = self.flowing.iter().map(|flowing| flowing.left_bytes).sum();
        let owed_bytes = self.connection.backlog_bytes() + flowing_bytes + self.reserved_bytes;
        owed_bytes == 0 || owed_bytes + answer_bytes <= self.profile.held_bytes_max
    }

    fn release_reserved(&mut self, key: StreamKey) {
        let reserved_bytes = self.call(key).map_or(0, |call| std::mem::take(&mut call.reserved_bytes));
        self.reserved_bytes -= reserved_bytes;
    }

    // ---- answers ----

    fn reply(&mut self, key: StreamKey, reply: Reply) {
        self.release_reserved(key);
        let Some(call) = self.call(key) else { return }; // Its caller has gone.
        let kind = call.kind;
        match reply {
            Reply::Message(message) => {
                let (head, rest) = message.into_parts();
                let answer_bytes = rest.bytes();
                // A write has happened, whatever we hold: its answer, which is small, is given.
                if kind == Kind::Call(Effect::Reads) && !self.has_room(answer_bytes) {
                    return self.put_aside(key, answer_bytes);
                }
                let Pieces { first, rest } = rest;
                if rest.is_empty() {
                    return self.connection.send_ok(key, &head, first);
                }
                self.connection.send_ok_head(key);
                self.connection.send_part(key, &head, first, false);
                for piece in rest {
                    self.connection.send_part(key, &[], piece, false);
                }
                self.connection.end_ok(key);
            }
            Reply::Failed(status) => self.fail(key, &status),
            Reply::Parts(body) => {
                let message_bytes = body.message_bytes();
                if !self.has_room(message_bytes) {
                    return self.put_aside(key, message_bytes);
                }
                self.connection.send_ok_head(key);
                self.connection.send_part(key, &prefix(message_bytes), Bytes::new(), false);
                self.flow(key, Source::Body(body));
            }
            Reply::Watch(receiver) => {
                self.connection.send_ok_head(key);
                self.flow(key, Source::Watch(receiver));
            }
        }
    }

    fn put_aside(&mut self, key: StreamKey, answer_bytes: usize) {
        let Some(call) = self.call(key) else { return };
        call.slot = None;
        if self.aside.len() > self.profile.streams_max as usize {
            self.aside.retain(|aside| self.connection.is_open(aside.key)); // The others have gone meanwhile.
        }
        self.aside.push_back(Aside { key, answer_bytes });
    }

    fn flow(&mut self, key: StreamKey, source: Source) {
        let Some(call) = self.call(key) else { return };
        call.has_head = true;
        call.slot = None;
        let left_bytes = source.left_bytes();
        call.source = Some(source);
        self.flowing.push(Flowing { key, left_bytes, is_held_up: false });
    }

    fn fail(&mut self, key: StreamKey, status: &Status) {
        let mut trailers = status.to_trailers();
        self.release_held(key);
        self.release_reserved(key);
        if let Some(call) = self.call(key) {
            call.source = None;
            if call.has_head {
                return self.connection.end_with(key, trailers);
            }
        }
        trailers.insert(CONTENT_TYPE, CONTENT_TYPE_GRPC); // Trailers-Only: one block, head and end at once.
        self.connection.send_head(key, StatusCode::OK, trailers, true);
    }

    fn answer_reflection(&mut self, key: StreamKey, question: &[u8]) {
        let answer = self.reflection.answer(question);
        self.send_head_once(key);
        self.connection.send_part(key, &prefix(answer.len()), answer, false);
        if self.connection.backlog_bytes() > self.profile.held_bytes_max {
            self.release_held(key);
            self.connection.reset(key, Reason::ENHANCE_YOUR_CALM); // It asks and does not read.
        }
    }

    fn end_stream(&mut self, key: StreamKey) {
        self.send_head_once(key);
        self.connection.end_ok(key);
    }

    fn send_head_once(&mut self, key: StreamKey) {
        let Some(call) = self.call(key) else { return };
        if !std::mem::replace(&mut call.has_head, true) {
            self.connection.send_ok_head(key);
        }
    }

    fn poll_flowing(&mut self, cx: &mut Context<'_>) {
        let mut index = 0;
        while let Some(&Flowing { key, .. }) = self.flowing.get(index) {
            if self.poll_flow(index, key, cx).is_ready() {
                self.flowing.swap_remove(index);
            } else {
                self.flowing[index].is_held_up = self.connection.has_backlog(key);
                index += 1;
            }
        }
    }

    /// Whether [`Conversation::poll_calls`] would get further than the last time, now that something has been sent.
    #[must_use]
    pub fn can_resume(&self) -> bool {
        let is_free = |flowing: &Flowing| flowing.is_held_up && !self.connection.has_backlog(flowing.key);
        self.flowing.iter().any(is_free) || self.has_room_aside()
    }

    /// Ready when nothing more will come.
    fn poll_flow(&mut self, index: usize, key: StreamKey, cx: &mut Context<'_>) -> Poll<()> {
        let is_stopping = self.is_stopping;
        loop {
            // What is not read yet is not overtaken: the newest value goes out when there is room for it.
            if self.connection.has_backlog(key) {
                return Poll::Pending;
            }
            let Some(source) = self.call(key).and_then(|call| call.source.as_mut()) else { return Poll::Ready(()) };
            match source.poll_next(cx) {
                Poll::Ready(Some(Ok((head, part)))) => {
                    self.flowing[index].left_bytes = source.left_bytes();
                    self.connection.send_part(key, &head, part, false);
                }
                Poll::Ready(Some(Err(status))) => {
                    self.fail(key, &status);
                    return Poll::Ready(());
                }
                Poll::Ready(None) => {
                    self.connection.end_ok(key);
                    return Poll::Ready(());
                }
                Poll::Pending if is_stopping && matches!(source, Source::Watch(_)) => {
                    self.fail(key, &Status::new(Code::Unavailable, "the server is stopping"));
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The call of a stream on which something can still be said.
    fn call(&mut self, key: StreamKey) -> Option<&mut Incoming<S::Call>> {
        if self.connection.is_open(key) { self.connection.attachment(key) } else { None }
    }

    fn note_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(self.deadline.map_or(deadline, |earliest| earliest.min(deadline)));
    }
}

impl Source {
    /// What goes out next: a few bytes before it, and the part itself.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Part, Status>>> {
        Poll::Ready(match self {
            Self::Body(body) => ready!(body.poll_next(cx)).map(|part| match part {
                Ok(part) => Ok((SmallVec::new(), part)),
                Err(error) => Err(error.status),
            }),
            Self::Watch(receiver) => {
                ready!(receiver.poll_changed(cx)).map(|value| Ok((SmallVec::from_slice(&prefix(value.len())), value)))
            }
        })
    }

    fn left_bytes(&self) -> usize {
        match self {
            Self::Body(body) => body.left_bytes(),
            Self::Watch(_) => 0,
        }
    }
}

impl<F> Incoming<F> {
    /// Nobody waits for the answer any more: a call that only reads is dropped.
    fn abandon(&mut self) {
        self.source = None;
        if let Some(slot) = self.slot.take() {
            let mut slot = slot.borrow_mut();
            if slot.effect == Effect::Reads {
                slot.drop_call();
            }
        }
    }
}

impl<F> std::fmt::Debug for Incoming<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path)
    }
}

impl<S: Service> std::fmt::Debug for Conversation<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Conversation({}, {:?}, {} calls wait)", self.peer, self.connection, self.waiting.len())
    }
}

/// `application/grpc`, alone or with `+proto` or parameters (PROTOCOL-HTTP2.md, "Requests").
fn is_grpc(content_type: &HeaderValue) -> bool {
    let Some(rest) = content_type.as_bytes().strip_prefix(b"application/grpc") else { return false };
    rest.is_empty() || rest.starts_with(b";") || rest == b"+proto" || rest.starts_with(b"+proto;")
}

/// grpc/grpc, doc/statuscodes.md: "cardinality violation".
fn cardinality() -> Status {
    Status::new(Code::Unimplemented, "this method takes exactly one request message")
}

fn frame_status(error: &FrameError, is_encoded: bool) -> Status {
    match error {
        FrameError::TooLarge { found, allowed } => Status::new(
            Code::ResourceExhausted,
            format!("the request message has {found} bytes; {allowed} are allowed"),
        ),
        FrameError::Compressed if is_encoded => {
            let accept = (http::HeaderName::from_static("grpc-accept-encoding"), HeaderValue::from_static("identity"));
            Status::new(Code::Unimplemented, "compressed messages are not supported").with_trailer(accept.0, accept.1)
        }
        FrameError::Compressed => Status::new(Code::Internal, "a compressed message without a grpc-encoding"),
        FrameError::Flag(flag) => {
            Status::new(Code::Internal, format!("a message begins with {flag}; 0 and 1 are allowed"))
        }
    }
}
