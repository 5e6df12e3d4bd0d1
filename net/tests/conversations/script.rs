//! A conversation under test: the service behind it does as it is told, and what the server says is read by h2's codec.

use std::{
    cell::RefCell,
    collections::HashMap,
    future::{Future, poll_fn},
    io,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use futures::Stream as _;
use h2::{Codec, frame::Frame};
use http::HeaderMap;
use milena_net::{
    grpc::{
        health::Health,
        reflection::Reflection,
        server::{Conversation, Effect, Message, Reply, Request, Service},
        status::{Code, Status},
        watch,
    },
    http2::limits::{LINK, OUTSIDE, Profile},
};
use milena_proto::generated::DESCRIPTORS;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frames::{PREFACE, settings};

pub(crate) const MESSAGE_BYTES_MAX: usize = (5 << 20) + 64;

/// `Echo` answers the message, `Size` as many bytes as the message says, `Fail` with a status; `Read` and `Write` wait
/// until they are let go; `Watch` sends what is published.
pub(crate) struct Script {
    log: RefCell<Vec<String>>,
    held: RefCell<Vec<Waker>>,
    is_open: RefCell<bool>,
    published: watch::Sender,
}

pub(crate) struct Scripted(Rc<Script>);

impl Service for Scripted {
    type Call = Pin<Box<dyn Future<Output = Reply>>>;

    fn method(&self, path: &str) -> Option<Effect> {
        match path {
            "/t/Echo" | "/t/Size" | "/t/Fail" | "/t/Read" | "/t/Watch" => Some(Effect::Reads),
            "/t/Write" => Some(Effect::Writes),
            _ => None,
        }
    }

    fn call(&self, request: Request) -> Self::Call {
        let script = self.0.clone();
        let message = request.message;
        match &request.path[3..] {
            "Size" => {
                let size = u32::from_be_bytes(message[..].try_into().unwrap()) as usize;
                answer(Reply::Message(Message::new(|_| {}, pattern(size))))
            }
            "Fail" => answer(Reply::Failed(Status::new(Code::NotFound, "100 % ünïcode\n"))),
            "Watch" => answer(Reply::Watch(script.published.subscribe())),
            name @ ("Read" | "Write") => {
                let mut wait = Wait { script, name: name.to_owned(), is_done: false };
                Box::pin(async move {
                    wait.through().await;
                    Reply::Message(message.into())
                })
            }
            _ => answer(Reply::Message(message.into())),
        }
    }
}

fn answer(reply: Reply) -> Pin<Box<dyn Future<Output = Reply>>> {
    Box::pin(std::future::ready(reply))
}

/// Logs how a call that waits ends.
struct Wait {
    script: Rc<Script>,
    name: String,
    is_done: bool,
}

impl Wait {
    async fn through(&mut self) {
        poll_fn(|cx| {
            if *self.script.is_open.borrow() {
                return Poll::Ready(());
            }
            self.script.held.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
        self.is_done = true;
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let end = if self.is_done { "done" } else { "dropped" };
        self.script.log.borrow_mut().push(format!("{} {end}", self.name));
    }
}

/// Bytes that tell where they stood.
pub(crate) fn pattern(size: usize) -> Bytes {
    let block: Vec<u8> = (0..251).map(|index| (index * 31 + size) as u8).collect();
    let mut bytes = block.repeat(size / block.len() + 1);
    bytes.truncate(size);
    bytes.into()
}

/// A server to talk to, and what it has said.
pub(crate) struct Srv {
    pub(crate) conversation: Conversation<Scripted>,
    pub(crate) script: Rc<Script>,
    pub(crate) health: Health,
    pub(crate) now: Instant,
    /// What came in DATA frames, by stream.
    pub(crate) bodies: HashMap<u32, Vec<u8>>,
    codec: Codec<Pipe, Bytes>,
}

impl Srv {
    /// As clients meet it, after the greeting.
    pub(crate) fn outside() -> Self {
        Self::greeted(&OUTSIDE)
    }

    /// As routers meet it.
    pub(crate) fn link() -> Self {
        Self::greeted(&LINK)
    }

    pub(crate) fn greeted(profile: &'static Profile) -> Self {
        let mut srv = Self::silent(profile);
        srv.recv(PREFACE);
        srv.recv(settings(&[]));
        assert_eq!(srv.said(), ["SETTINGS", "WINDOW 0", "ACK"]);
        srv
    }

    /// Before anything was said.
    pub(crate) fn silent(profile: &'static Profile) -> Self {
        let (published, _) = watch::channel(Bytes::from_static(b"first"));
        let script = Rc::new(Script {
            log: RefCell::default(),
            held: RefCell::default(),
            is_open: RefCell::default(),
            published,
        });
        let health = Health::new(&["t"]);
        let reflection = Rc::new(Reflection::new(DESCRIPTORS, &[]).unwrap());
        let now = Instant::now();
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let service = Rc::new(Scripted(script.clone()));
        let conversation =
            Conversation::new(service, health.clone(), reflection, profile, MESSAGE_BYTES_MAX, peer, now);
        let mut codec = Codec::new(Pipe::default());
        codec.set_max_recv_frame_size((1 << 24) - 1);
        Self { conversation, script, health, now, bodies: HashMap::new(), codec }
    }

    /// The client says `bytes`.
    pub(crate) fn recv(&mut self, bytes: impl AsRef<[u8]>) {
        self.conversation.receive(bytes.as_ref(), self.now);
        self.turn();
    }

    /// The client says `bytes`; answers what the server says to that.
    pub(crate) fn ask(&mut self, bytes: impl AsRef<[u8]>) -> Vec<String> {
        self.recv(bytes);
        self.said()
    }

    /// Polls what was woken, as the task of the connection would.
    pub(crate) fn turn(&mut self) {
        self.conversation.poll_calls(&mut Context::from_waker(Waker::noop()));
    }

    /// Lets `Read` and `Write` go on.
    pub(crate) fn release(&mut self) {
        *self.script.is_open.borrow_mut() = true;
        self.script.held.borrow_mut().drain(..).for_each(Waker::wake);
        self.turn();
    }

    /// Publishes what `Watch` sends.
    pub(crate) fn publish(&mut self, value: &'static str) {
        self.script.published.send(Bytes::from_static(value.as_bytes()));
        self.turn();
    }

    /// Time goes on; answers whether the connection may.
    pub(crate) fn wait(&mut self, time: Duration) -> bool {
        self.now += time;
        let goes_on = self.conversation.on_time(self.now).is_continue();
        self.turn();
        goes_on
    }

    /// How calls that waited have ended since the last time.
    pub(crate) fn log(&self) -> Vec<String> {
        self.script.log.take()
    }

    /// Takes bytes off the outbox as a socket does, `bytes_max` at most.
    pub(crate) fn take(&mut self, bytes_max: usize) -> Vec<u8> {
        let connection = self.conversation.connection();
        let mut taken = Vec::new();
        while taken.len() < bytes_max && !connection.outbox().is_empty() {
            let mut slices = [io::IoSlice::new(&[]); 8];
            let count = connection.outbox().fill(&mut slices);
            let before = taken.len();
            for slice in &slices[..count] {
                let bytes = slice.len().min(bytes_max - taken.len());
                taken.extend_from_slice(&slice[..bytes]);
            }
            connection.outbox().advance(taken.len() - before);
            connection.refill_outbox();
        }
        taken
    }

    /// What the server has said since the last time, a line for each frame.
    pub(crate) fn said(&mut self) -> Vec<String> {
        let bytes = self.take(usize::MAX);
        self.codec.get_mut().0.extend_from_slice(&bytes);
        let mut lines = Vec::new();
        while let Poll::Ready(Some(frame)) =
            Pin::new(&mut self.codec).poll_next(&mut Context::from_waker(Waker::noop()))
        {
            lines.push(self.line(frame.expect("the server says only what is legal")));
        }
        assert!(self.codec.get_ref().0.is_empty(), "the server says whole frames");
        lines
    }

    fn line(&mut self, frame: Frame) -> String {
        match frame {
            Frame::Data(data) => {
                let id = u32::from(data.stream_id());
                let end = if data.is_end_stream() { " END" } else { "" };
                self.bodies.entry(id).or_default().extend_from_slice(data.payload());
                format!("{id} DATA {}{end}", data.payload().len())
            }
            Frame::Headers(headers) => {
                let (id, is_end) = (u32::from(headers.stream_id()), headers.is_end_stream());
                let (pseudo, fields) = headers.into_parts();
                let status = pseudo.status.map(|status| format!(" {}", status.as_u16())).unwrap_or_default();
                format!("{id}{status}{}{}", text(&fields), if is_end { " END" } else { "" })
            }
            Frame::Reset(reset) => format!("{} RESET {:?}", u32::from(reset.stream_id()), reset.reason()),
            Frame::GoAway(away) => format!("GOAWAY {} {:?}", u32::from(away.last_stream_id()), away.reason()),
            Frame::Settings(settings) if settings.is_ack() => "ACK".to_owned(),
            Frame::Settings(_) => "SETTINGS".to_owned(),
            Frame::Ping(ping) if ping.is_ack() => "PONG".to_owned(),
            Frame::Ping(ping) => format!("PING {}", String::from_utf8_lossy(ping.payload())),
            Frame::WindowUpdate(update) => format!("WINDOW {}", u32::from(update.stream_id())),
            other => panic!("a server never says {other:?}"),
        }
    }

    /// Whether the socket would be closed once everything is sent.
    pub(crate) fn is_over(&mut self) -> bool {
        self.conversation.connection().is_over()
    }
}

fn text(fields: &HeaderMap) -> String {
    fields.iter().map(|(name, value)| format!(" {name}={}", String::from_utf8_lossy(value.as_bytes()))).collect()
}

/// What the codec reads.
#[derive(Default)]
struct Pipe(BytesMut);

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        let bytes = self.0.len().min(buf.remaining());
        buf.put_slice(&self.0[..bytes]);
        self.0.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        panic!("the codec of a test only reads")
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
