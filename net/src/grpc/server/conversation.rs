//! One connection's calls, without its socket: bytes in, calls to the service, bytes out.
//!
//! ```text
//!   Head ─▶ Incoming ─ Data… ─▶ END_STREAM ─┬─ unary: Service::call, polled once ─┬─ ready: answered
//!            │  415, 405, UNIMPLEMENTED     │                                     └─ waits: Slot, polled when woken
//!            │                              └─ health Check
//!            └─ reflection: an answer for each message      health Watch, topology: Watching
//! ```

use std::{
    cell::RefCell,
    future::Future,
    net::IpAddr,
    ops::ControlFlow,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use futures::{Stream as _, stream::FuturesUnordered};
use h2::frame::Pseudo;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header::CONTENT_TYPE};
use milena_proto::method::{HEALTH_CHECK, HEALTH_WATCH, REFLECTION_PATHS};

use super::{Effect, Message, Path, Reply, Request, Service};
use crate::{
    grpc::{
        frame::{Assembler, FrameError},
        health::Health,
        reflection::Reflection,
        status::{Code, Status},
        timeout::{self, GRPC_TIMEOUT},
        watch,
    },
    http2::{Connection, Event, Reason, Role, StreamKey, limits::Profile},
};

/// Futures kept for the next call that waits, so that waiting costs no allocation of its own.
const SPARE_FUTURES_MAX: usize = 64;

/// What a client that was refused for want of room should wait.
const PUSHBACK_MS: u32 = 100;

const CONTENT_TYPE_GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

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
    watching: Vec<Watching>,
    /// Watches end once they have seen the latest value: nobody will be here to change it.
    is_stopping: bool,
    greeting_due: Instant,
    /// No call's deadline is earlier. It may be the deadline of a call that has ended: then nothing is found to be due.
    deadline: Option<Instant>,
    /// Bytes of requests that are not complete.
    held_bytes: usize,
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
    /// Bytes counted in `held_bytes`.
    held_bytes: usize,
    slot: Option<Rc<RefCell<Slot<F>>>>,
    watch: Option<watch::Receiver>,
    has_head: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Call(Effect),
    HealthCheck,
    HealthWatch,
    Reflection,
}

/// A stream of messages that goes on until its caller has gone.
struct Watching {
    key: StreamKey,
    /// Nobody has asked for the next value, because the stream still has something to send.
    is_held_up: bool,
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
            watching: Vec::new(),
            is_stopping: false,
            greeting_due: now + profile.handshake,
            deadline: None,
            held_bytes: 0,
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
                Event::Head { key, pseudo, fields, is_end } => self.on_head(key, pseudo, &fields, is_end, now),
                Event::Data { key, bytes, is_end } => self.on_data(key, bytes, is_end, now),
                Event::Trailers { key, .. } => self.on_end(key, now),
                Event::Reset { .. } => {
                    if let Some(mut gone) = self.connection.take_reset() {
                        self.held_bytes -= gone.held_bytes;
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
    }

    /// Polls the calls that were woken, and what is watched.
    pub fn poll_calls(&mut self, cx: &mut Context<'_>) {
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
        self.poll_watches(cx);
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

    fn on_head(&mut self, key: StreamKey, pseudo: Pseudo, fields: &HeaderMap, is_end: bool, now: Instant) {
        if pseudo.method != Some(Method::POST) {
            return self.connection.send_head(key, StatusCode::METHOD_NOT_ALLOWED, HeaderMap::new(), true);
        }
        if !fields.get(CONTENT_TYPE).is_some_and(is_grpc) {
            return self.connection.send_head(key, StatusCode::UNSUPPORTED_MEDIA_TYPE, HeaderMap::new(), true);
        }
        let path = Path::new(pseudo.path.expect("the connection has checked it"));
        let kind = match &*path {
            path if path == HEALTH_CHECK.path => Kind::HealthCheck,
            path if path == HEALTH_WATCH.path => Kind::HealthWatch,
            path if REFLECTION_PATHS.contains(&path) => Kind::Reflection,
            path => match self.service.method(path) {
                Some(effect) => Kind::Call(effect),
                None => return self.fail(key, &Status::new(Code::Unimplemented, "there is no such method here")),
            },
        };
        let is_encoded = fields.get("grpc-encoding").is_some_and(|encoding| encoding != "identity");
        let deadline = fields.get(GRPC_TIMEOUT).and_then(timeout::parse).and_then(|timeout| now.checked_add(timeout));
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
                slot: None,
                watch: None,
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
        let Some(message) = call.message.take() else { return self.fail(key, &cardinality()) };
        if call.deadline.is_some_and(|deadline| deadline <= now) {
            return self.fail(key, &Status::new(Code::DeadlineExceeded, "the deadline had passed on arrival"));
        }
        let kind = call.kind;
        if self.connection.backlog_bytes() > self.profile.held_bytes_max {
            return self.fail(key, &unread_answers());
        }
        match kind {
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
        // Most calls are hits and end here. One that does not is polled again at once, with a waker of its own.
        let mut cx = Context::from_waker(Waker::noop());
        match future.as_mut().as_pin_mut().expect("just filled").poll(&mut cx) {
            Poll::Ready(reply) => {
                future.set(None);
                self.spare.push(future);
                self.reply(key, reply);
            }
            Poll::Pending => {
                let slot = Rc::new(RefCell::new(Slot { key, effect, future: Some(future), waker: None }));
                if let Some(call) = self.call(key) {
                    call.slot = Some(slot.clone());
                }
                self.waiting.push(Waiting(slot));
            }
        }
    }

    // ---- answers ----

    fn reply(&mut self, key: StreamKey, reply: Reply) {
        match reply {
            Reply::Message(message) => {
                let backlog_bytes = self.connection.backlog_bytes();
                let held_bytes_max = self.profile.held_bytes_max;
                let Some(call) = self.call(key) else { return }; // The caller is gone.
                let (head, value) = message.into_parts();
                // A write has happened, whatever we hold: its answer, which is small, is given.
                if call.kind != Kind::Call(Effect::Writes) && backlog_bytes + value.len() > held_bytes_max {
                    return self.fail(key, &unread_answers());
                }
                self.connection.send_ok_head(key);
                self.connection.send_part(key, &head, value, false);
                self.connection.end_ok(key);
            }
            Reply::Failed(status) => self.fail(key, &status),
            Reply::Watch(receiver) => {
                let Some(call) = self.call(key) else { return };
                call.watch = Some(receiver);
                call.slot = None;
                self.connection.send_ok_head(key);
                self.watching.push(Watching { key, is_held_up: false });
            }
        }
    }

    fn fail(&mut self, key: StreamKey, status: &Status) {
        let mut trailers = status.to_trailers();
        self.release_held(key);
        if self.call(key).is_some_and(|call| call.has_head || call.watch.is_some()) {
            return self.connection.end_with(key, trailers);
        }
        trailers.insert(CONTENT_TYPE, CONTENT_TYPE_GRPC); // Trailers-Only: one block, head and end at once.
        self.connection.send_head(key, StatusCode::OK, trailers, true);
    }

    fn answer_reflection(&mut self, key: StreamKey, question: &[u8]) {
        let answer = Message::from(self.reflection.answer(question));
        self.send_head_once(key);
        let (head, value) = answer.into_parts();
        self.connection.send_part(key, &head, value, false);
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

    fn poll_watches(&mut self, cx: &mut Context<'_>) {
        let mut index = 0;
        while let Some(&Watching { key, .. }) = self.watching.get(index) {
            if self.poll_watch(key, cx).is_ready() {
                self.watching.swap_remove(index);
            } else {
                self.watching[index].is_held_up = self.connection.has_backlog(key);
                index += 1;
            }
        }
    }

    /// Whether a watch that was held up need not be any more: its next value can be asked for.
    pub(super) fn can_resume_watch(&self) -> bool {
        self.watching.iter().any(|watching| watching.is_held_up && !self.connection.has_backlog(watching.key))
    }

    /// Ready when there is nothing to watch any more.
    fn poll_watch(&mut self, key: StreamKey, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // What is not read yet is not overtaken: the newest value goes out when there is room for it.
            if self.connection.has_backlog(key) {
                return Poll::Pending;
            }
            let Some(watch) = self.call(key).and_then(|call| call.watch.as_mut()) else {
                return Poll::Ready(());
            };
            match watch.poll_changed(cx) {
                Poll::Ready(Some(value)) => {
                    let (head, value) = Message::from(value).into_parts();
                    self.connection.send_part(key, &head, value, false);
                }
                Poll::Ready(None) => {
                    self.connection.end_ok(key);
                    return Poll::Ready(());
                }
                Poll::Pending if self.is_stopping => {
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

impl<F> Incoming<F> {
    /// Nobody waits for the answer any more: a call that only reads is dropped.
    fn abandon(&mut self) {
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

fn unread_answers() -> Status {
    Status::resource_exhausted("this connection has too many bytes of answers that it does not read", PUSHBACK_MS)
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
