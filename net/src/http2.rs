//! One HTTP/2 connection, without a socket and without a clock: bytes in, events out; calls in, bytes out.
//!
//! ```text
//!              receive(bytes)                              next_event()
//!   socket ───────────────────▶ inbound ─ frame by frame ─┬─ DATA ──────────▶ a slice of what was read, no copy
//!                                                         ├─ a head that is known ─────────────────▶ streams ─▶ Event
//!                                                         └─ others ─▶ h2's codec (HPACK, its limits) ─▶ streams ─▶ Event
//!              outbox()
//!   socket ◀─────────────────── frames, values of 16 KiB and more by reference ◀── send_head, send_part, end, reset
//! ```
//! h2's codec does what is hard to get right, header blocks; the connection, its streams, flow control and what a peer
//! may do to us are here (RFC 9113; section numbers below are its own). The shell around it (`stream.rs`) owns the socket, sends
//! the outbox once a turn, and tells the time.
//!
//! Both roles are here: a server answers streams that the peer opens, a client opens them.

mod flow;
mod heads;
pub mod limits;
mod shape;
mod streams;
mod wire;

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::{Buf, Bytes, BytesMut};
use futures::Stream as _;
pub use h2::Reason;
use h2::{
    Codec,
    frame::{self, Frame, Pseudo, StreamId},
    proto,
};
use http::{HeaderMap, StatusCode};
use smallvec::SmallVec;

use self::{
    flow::{Overflow, ReceiveWindow, SendWindow},
    heads::KnownHeads,
    limits::{Meter, OUTBOX_BYTES_MAX, Profile},
    streams::{Backlog, Ending, Stream, Streams},
    wire::Wire,
};
pub use self::{
    heads::{Head, RequestHead},
    streams::StreamKey,
    wire::{COPIED_BYTES_MAX, Outbox},
};

/// What a client says first (section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The window that everybody starts with, for streams and for the connection (section 6.9.2).
const WINDOW_BYTES_INITIAL: u32 = 65_535;

/// What we remember of the headers we send, in bytes, however much the peer would (section 6.5.2).
const HEADER_TABLE_BYTES_MAX: u32 = 4096;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// The PING that asks whether the first GOAWAY of a drain has arrived.
const DRAIN_PING: [u8; 8] = *b"mldrain\0";

/// The PING that only wants to be answered.
const LIVENESS_PING: [u8; 8] = *b"mlalive\0";

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// We open streams.
    Client,
    /// We answer them.
    Server,
}

/// What has happened on a connection. `T` is what the owner attached to the stream.
#[derive(Debug)]
pub enum Event {
    /// Server: a request began. Client: its response did.
    Head {
        /// The stream.
        key: StreamKey,
        /// What it says.
        head: Rc<Head>,
        /// Nothing follows.
        is_end: bool,
    },
    /// Part of a body; boundaries mean nothing.
    Data {
        /// The stream.
        key: StreamKey,
        /// A slice of what was read from the socket: copy what is to be kept.
        bytes: Bytes,
        /// Nothing follows.
        is_end: bool,
    },
    /// Headers after the body; nothing follows.
    Trailers {
        /// The stream.
        key: StreamKey,
        /// The trailers.
        head: Rc<Head>,
    },
    /// The stream is gone before its end; ask [`Connection::take_reset`] for what was attached to it.
    Reset {
        /// The stream, no longer open.
        key: StreamKey,
        /// Why.
        reason: Reason,
        /// Who ended it.
        by_peer: bool,
    },
    /// Client: the peer takes no new streams, and has not processed those numbered above `last_id`: each of them is
    /// followed by a [`Event::Reset`] with `REFUSED_STREAM`.
    GoAway {
        /// The last stream the peer has processed or may still process.
        last_id: u32,
        /// Why it goes.
        reason: Reason,
    },
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// As many are open as the peer allows; try again when one has ended.
    Full,
    /// The connection ends, or its numbers are used up: a new one is needed.
    Closing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    /// Streams are welcome.
    No,
    /// GOAWAY with the highest number and a PING are on their way.
    Announced,
    /// The last stream is named; the connection ends with it.
    Named,
}

/// One connection; see the head of this file.
pub struct Connection<T> {
    role: Role,
    profile: &'static Profile,
    codec: Codec<Wire, Bytes>,
    inbound: BytesMut,
    /// Server: bytes of the preface that must still come.
    preface_left: &'static [u8],
    has_settings: bool,
    /// The stream of a header block that CONTINUATION frames must finish (section 6.10).
    open_block: Option<u32>,
    known_heads: KnownHeads,
    /// The block that the codec is about to decode, if what it means is worth knowing.
    new_block: Option<Box<[u8]>>,
    streams: Streams<T>,
    receive: ReceiveWindow,
    send: SendWindow,
    /// What a new stream may send, by the peer's settings.
    send_window_initial: u32,
    peer_streams_max: u32,
    /// Streams with a backlog and a window, in turn.
    sendable: VecDeque<StreamKey>,
    /// What was attached to a stream that an [`Event::Reset`] tells of.
    taken: Option<T>,
    /// Client: streams that a GOAWAY says were not processed, still to be told of.
    refused: VecDeque<StreamKey>,
    drain: Drain,
    /// We have said GOAWAY for a fault, or the peer has broken off: nothing is read any more.
    fault: Option<Reason>,
    is_peer_going: bool,
    resets: Meter,
    idle_frames: Meter,
    /// Bytes in all backlogs.
    backlog_bytes: usize,
    /// Bytes of bodies that have gone into frames.
    framed_bytes: u64,
    /// Where the block of a request is made, kept for the next one.
    block: Vec<u8>,
    /// The peer has changed the size of the table that it keeps for us: the smallest it has been since, and the last.
    /// The next header block says that we know (RFC 7541, section 4.2), whether it is the codec's or not.
    table_update: Option<(u32, u32)>,
}

/// A fault of the peer's, by how much it takes down.
enum Fault {
    Connection(Reason),
    Stream(u32, Reason),
}

type Handled = Result<Option<Event>, Fault>;

impl<T> Connection<T> {
    /// A connection in either role. What must be said first waits in the outbox.
    #[must_use]
    pub fn new(role: Role, profile: &'static Profile) -> Self {
        let mut codec = Codec::with_max_recv_frame_size(Wire::default(), profile.frame_bytes_max as usize);
        codec.set_max_recv_header_list_size(profile.header_list_bytes_max as usize);
        let mut connection = Self {
            role,
            profile,
            codec,
            inbound: BytesMut::new(),
            preface_left: if role == Role::Server { PREFACE } else { b"" },
            has_settings: false,
            open_block: None,
            known_heads: KnownHeads::default(),
            new_block: None,
            streams: Streams::new(),
            receive: ReceiveWindow::new(profile.connection_window_bytes),
            send: SendWindow::new(WINDOW_BYTES_INITIAL),
            send_window_initial: WINDOW_BYTES_INITIAL,
            // Until the peer's settings come, as many as section 6.5.2 advises a server to allow at least.
            peer_streams_max: 100,
            sendable: VecDeque::new(),
            taken: None,
            refused: VecDeque::new(),
            drain: Drain::No,
            fault: None,
            is_peer_going: false,
            resets: Meter::new(profile.resets),
            idle_frames: Meter::new(profile.idle_frames),
            backlog_bytes: 0,
            framed_bytes: 0,
            block: Vec::new(),
            table_update: None,
        };
        connection.greet();
        connection
    }

    fn greet(&mut self) {
        if self.role == Role::Client {
            self.outbox().put(PREFACE);
        }
        let mut settings = frame::Settings::default();
        settings.set_initial_window_size(Some(self.profile.stream_window_bytes));
        settings.set_max_frame_size(Some(self.profile.frame_bytes_max));
        settings.set_max_header_list_size(Some(self.profile.header_list_bytes_max));
        match self.role {
            Role::Server => settings.set_max_concurrent_streams(Some(self.profile.streams_max)),
            Role::Client => settings.set_enable_push(false),
        }
        self.put_frame(settings.into());
        let raise = self.profile.connection_window_bytes - WINDOW_BYTES_INITIAL;
        self.put_frame(frame::WindowUpdate::new(StreamId::ZERO, raise).into());
    }

    // ---- what the socket brings ----

    /// Takes in what was read from the socket; [`Connection::next_event`] makes sense of it.
    pub fn receive(&mut self, bytes: &[u8]) {
        if self.fault.is_none() {
            self.inbound.extend_from_slice(bytes);
        }
    }

    /// The next thing that has happened, until all that was received is used up.
    pub fn next_event(&mut self, now: Instant) -> Option<Event> {
        loop {
            if let Some(key) = self.refused.pop_front() {
                match self.drop_stream(key, Reason::REFUSED_STREAM, true) {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            if self.fault.is_some() || !self.take_preface() {
                return None;
            }
            let frame_bytes = self.next_frame_bytes()?;
            let handled = self.frame(frame_bytes, now);
            if let Some(event) = self.settle(handled, now) {
                return Some(event);
            }
        }
    }

    /// What was attached to the stream of the [`Event::Reset`] just returned.
    pub fn take_reset(&mut self) -> Option<T> {
        self.taken.take()
    }

    /// Whether the preface has come and the peer's settings after it.
    #[must_use]
    pub fn is_greeted(&self) -> bool {
        self.has_settings
    }

    fn take_preface(&mut self) -> bool {
        let common = self.preface_left.len().min(self.inbound.len());
        if self.inbound[..common] != self.preface_left[..common] {
            self.fail(Reason::PROTOCOL_ERROR);
            return false;
        }
        self.inbound.advance(common);
        self.preface_left = &self.preface_left[common..];
        self.preface_left.is_empty()
    }

    /// How long the next frame is, head and all, once all of it is there.
    fn next_frame_bytes(&mut self) -> Option<usize> {
        let head: &[u8; frame::HEADER_LEN] = self.inbound.first_chunk()?;
        let payload_bytes = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        if payload_bytes > self.profile.frame_bytes_max {
            self.fail(Reason::FRAME_SIZE_ERROR);
            return None;
        }
        let frame_bytes = frame::HEADER_LEN + payload_bytes as usize;
        if self.inbound.len() < frame_bytes {
            self.inbound.reserve(frame_bytes - self.inbound.len());
            return None;
        }
        Some(frame_bytes)
    }

    /// Takes in the first `frame_bytes` of what was received.
    fn frame(&mut self, frame_bytes: usize, now: Instant) -> Handled {
        let frame = &self.inbound[..frame_bytes];
        let (kind, flags) = (frame[3], frame[4]);
        let id = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]) & 0x7fff_ffff;
        if !self.has_settings && (kind != SETTINGS || flags & ACK != 0) {
            return Err(Fault::Connection(Reason::PROTOCOL_ERROR)); // Section 3.4: SETTINGS come first.
        }
        if self.open_block != (kind == CONTINUATION).then_some(id) {
            return Err(Fault::Connection(Reason::PROTOCOL_ERROR));
        }
        shape::check(kind, flags, id, &frame[frame::HEADER_LEN..]).map_err(Fault::Connection)?;
        match kind {
            DATA => {
                self.inbound.advance(frame::HEADER_LEN);
                let payload = self.inbound.split_to(frame_bytes - frame::HEADER_LEN).freeze();
                return self.data(id, flags, payload, now);
            }
            HEADERS if flags & !END_STREAM == END_HEADERS => {
                let block = &frame[frame::HEADER_LEN..];
                if let Some(head) = self.known_heads.get(block) {
                    self.inbound.advance(frame_bytes);
                    return self.headers(id, flags & END_STREAM != 0, false, head);
                }
                self.new_block = heads::is_neutral(block).then(|| block.into());
                if self.new_block.is_none() {
                    self.known_heads.forget();
                }
            }
            HEADERS | CONTINUATION => {
                self.new_block = None;
                self.known_heads.forget();
                self.open_block = (flags & END_HEADERS == 0).then_some(id);
            }
            _ if kind > CONTINUATION => {
                self.inbound.advance(frame_bytes);
                return self.count_idle_frame(now).map(|()| None);
            }
            _ => {}
        }
        let frame = self.inbound.split_to(frame_bytes);
        self.codec.get_mut().feed(frame);
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut self.codec).poll_next(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => self.decoded(frame, now),
            Poll::Ready(Some(Err(proto::Error::Reset(_, reason, _))))
                if kind == PRIORITY && self.streams.is_idle(id) =>
            {
                Err(Fault::Connection(reason)) // There is no stream yet that could be reset.
            }
            Poll::Ready(Some(Err(proto::Error::Reset(id, reason, _)))) => Err(Fault::Stream(id.into(), reason)),
            Poll::Ready(Some(Err(proto::Error::GoAway(_, reason, _)))) => Err(Fault::Connection(reason)),
            Poll::Ready(Some(Err(proto::Error::Io(..))) | None) => Err(Fault::Connection(Reason::INTERNAL_ERROR)),
            Poll::Pending => Ok(None), // A header block that goes on.
        }
    }

    fn decoded(&mut self, frame: Frame, now: Instant) -> Handled {
        match frame {
            Frame::Headers(headers) => {
                let (id, is_end) = (u32::from(headers.stream_id()), headers.is_end_stream());
                let is_over_size = headers.is_over_size();
                let (pseudo, fields) = headers.into_parts();
                let head = Head::new(pseudo, fields);
                if let Some(block) = self.new_block.take().filter(|_| !is_over_size) {
                    self.known_heads.learn(block, &head);
                }
                self.headers(id, is_end, is_over_size, head)
            }
            Frame::WindowUpdate(update) => self.window_update(&update),
            Frame::Reset(reset) => self.peer_reset(&reset, now),
            Frame::GoAway(away) => Ok(self.peer_goes(&away)),
            Frame::Settings(settings) => {
                self.count_idle_frame(now)?;
                self.settings(&settings).map(|()| None)
            }
            Frame::Ping(ping) => {
                self.count_idle_frame(now)?;
                self.ping(&ping);
                Ok(None)
            }
            Frame::Priority(_) => self.count_idle_frame(now).map(|()| None), // Deprecated, section 5.3.2.
            Frame::PushPromise(_) | Frame::Data(_) => unreachable!("neither passes through the codec"),
        }
    }

    // ---- frames of streams ----

    fn data(&mut self, id: u32, flags: u8, mut payload: Bytes, now: Instant) -> Handled {
        if self.streams.is_idle(id) {
            return Err(Fault::Connection(Reason::PROTOCOL_ERROR));
        }
        let flow_bytes = payload.len();
        self.receive.received(flow_bytes).map_err(|Overflow| Fault::Connection(Reason::FLOW_CONTROL_ERROR))?;
        if let Some(update) = self.receive.update() {
            self.put_frame(frame::WindowUpdate::new(StreamId::ZERO, update).into());
        }
        let is_end = flags & END_STREAM != 0;
        if flags & PADDED != 0 {
            let padding_bytes = if payload.has_remaining() { usize::from(payload.get_u8()) } else { usize::MAX };
            if padding_bytes > payload.len() {
                return Err(Fault::Connection(Reason::PROTOCOL_ERROR)); // Section 6.1.
            }
            payload.truncate(payload.len() - padding_bytes);
        }
        if !payload.is_empty() {
            self.idle_frames.earn();
        } else if !is_end {
            self.count_idle_frame(now)?;
        }
        let Some(key) = self.streams.key(id) else {
            // Frames that crossed with our reset are no fault; on a stream that has ended they are (section 5.1).
            return if self.streams.was_reset(id) { Ok(None) } else { Err(Fault::Stream(id, Reason::STREAM_CLOSED)) };
        };
        let stream = self.streams.get_mut(key).expect("just found");
        if stream.is_remote_done {
            return Err(Fault::Stream(id, Reason::STREAM_CLOSED));
        }
        if self.role == Role::Client && !stream.has_head {
            return Err(Fault::Stream(id, Reason::PROTOCOL_ERROR));
        }
        stream.receive.received(flow_bytes).map_err(|Overflow| Fault::Stream(id, Reason::FLOW_CONTROL_ERROR))?;
        stream.receive.take(flow_bytes - payload.len()); // Padding goes nowhere.
        if let Some(due) = &mut stream.due_bytes {
            // Section 8.1.1: a content-length that does not match makes the message malformed.
            *due = due.checked_sub(payload.len() as u64).ok_or(Fault::Stream(id, Reason::PROTOCOL_ERROR))?;
            if is_end && *due != 0 {
                return Err(Fault::Stream(id, Reason::PROTOCOL_ERROR));
            }
        }
        if is_end {
            stream.is_remote_done = true;
        } else if let Some(update) = stream.receive.update() {
            self.put_frame(frame::WindowUpdate::new(id.into(), update).into());
        }
        Ok(Some(Event::Data { key, bytes: payload, is_end }))
    }

    fn headers(&mut self, id: u32, is_end: bool, is_over_size: bool, head: Rc<Head>) -> Handled {
        if !self.is_ours_or_theirs(id) {
            return Err(Fault::Connection(Reason::PROTOCOL_ERROR));
        }
        let Some(key) = self.streams.key(id) else {
            if !self.streams.is_idle(id) {
                return match id {
                    _ if self.streams.was_reset(id) => Ok(None),
                    // Section 5.1.1: numbers only grow.
                    _ if self.streams.was_passed_over(id) => Err(Fault::Connection(Reason::PROTOCOL_ERROR)),
                    // Section 5.1: on a stream that ended by itself, HEADERS are a fault of the connection.
                    _ => Err(Fault::Connection(Reason::STREAM_CLOSED)),
                };
            }
            return match self.role {
                Role::Server => self.request(id, is_end, is_over_size, head),
                Role::Client => Err(Fault::Connection(Reason::PROTOCOL_ERROR)),
            };
        };
        let stream = self.streams.get_mut(key).expect("just found");
        if stream.is_remote_done {
            return Err(Fault::Stream(id, Reason::STREAM_CLOSED));
        }
        if self.role == Role::Client && !stream.has_head {
            return self.response(key, is_end, is_over_size, head);
        }
        let is_short = stream.due_bytes.is_some_and(|due| due > 0);
        if !is_end || is_short || is_over_size || head.pseudo != Pseudo::default() || !head.are_values_legal {
            return Err(Fault::Stream(id, Reason::PROTOCOL_ERROR)); // Section 8.1: trailers end a message.
        }
        stream.is_remote_done = true;
        Ok(Some(Event::Trailers { key, head }))
    }

    fn request(&mut self, id: u32, is_end: bool, is_over_size: bool, head: Rc<Head>) -> Handled {
        let pseudo = &head.pseudo;
        // Section 8.3.1. CONNECT, which has no path, is nothing a gRPC server answers.
        let is_legal = pseudo.method.is_some()
            && pseudo.scheme.is_some()
            && pseudo.path.as_ref().is_some_and(|path| !path.is_empty())
            && pseudo.status.is_none()
            && head.is_host_legal
            && head.are_values_legal;
        if !is_legal && !is_over_size {
            self.streams.pass_to(id);
            return Err(Fault::Stream(id, Reason::PROTOCOL_ERROR));
        }
        let due_bytes = head.due_bytes.map_err(|()| {
            self.streams.pass_to(id);
            Fault::Stream(id, Reason::PROTOCOL_ERROR)
        })?;
        if is_end && due_bytes.is_some_and(|due| due > 0) {
            self.streams.pass_to(id);
            return Err(Fault::Stream(id, Reason::PROTOCOL_ERROR));
        }
        if self.streams.len() >= self.profile.streams_max as usize || self.drain == Drain::Named {
            self.streams.pass_to(id);
            return Err(Fault::Stream(id, Reason::REFUSED_STREAM));
        }
        self.idle_frames.earn();
        let key = self.streams.insert(Stream {
            id,
            receive: ReceiveWindow::new(self.profile.stream_window_bytes),
            send: SendWindow::new(self.send_window_initial),
            is_remote_done: is_end,
            has_head: true,
            due_bytes,
            backlog: Backlog::default(),
            attachment: None,
        });
        if is_over_size {
            self.send_head(key, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, HeaderMap::new(), true);
            return Ok(None);
        }
        Ok(Some(Event::Head { key, head, is_end }))
    }

    fn response(&mut self, key: StreamKey, is_end: bool, is_over_size: bool, head: Rc<Head>) -> Handled {
        let malformed = Fault::Stream(key.id, Reason::PROTOCOL_ERROR);
        let is_legal = !is_over_size && head.are_values_legal;
        let Some(status) = head.pseudo.status.filter(|_| is_legal) else { return Err(malformed) };
        if status.is_informational() {
            return if is_end { Err(malformed) } else { Ok(None) };
        }
        let due_bytes = head.due_bytes.map_err(|()| Fault::Stream(key.id, Reason::PROTOCOL_ERROR))?;
        self.idle_frames.earn();
        let stream = self.streams.get_mut(key).expect("the caller has found it");
        stream.has_head = true;
        stream.due_bytes = due_bytes;
        stream.is_remote_done = is_end;
        Ok(Some(Event::Head { key, head, is_end }))
    }

    fn peer_reset(&mut self, reset: &frame::Reset, now: Instant) -> Handled {
        let id = u32::from(reset.stream_id());
        if self.streams.is_idle(id) {
            return Err(Fault::Connection(Reason::PROTOCOL_ERROR)); // Section 6.4.
        }
        if !self.resets.take(now) {
            return Err(Fault::Connection(Reason::ENHANCE_YOUR_CALM));
        }
        let Some(key) = self.streams.key(id) else { return Ok(None) };
        Ok(self.drop_stream(key, reset.reason(), true))
    }

    fn window_update(&mut self, update: &frame::WindowUpdate) -> Handled {
        let id = u32::from(update.stream_id());
        let bytes = update.size_increment();
        if id == 0 {
            self.send.raise(bytes).map_err(|Overflow| Fault::Connection(Reason::FLOW_CONTROL_ERROR))?;
            self.pump();
            return Ok(None);
        }
        if self.streams.is_idle(id) {
            return Err(Fault::Connection(Reason::PROTOCOL_ERROR)); // Section 5.1, idle.
        }
        let Some(key) = self.streams.key(id) else { return Ok(None) };
        let stream = self.streams.get_mut(key).expect("just found");
        stream.send.raise(bytes).map_err(|Overflow| Fault::Stream(id, Reason::FLOW_CONTROL_ERROR))?;
        self.queue(key);
        self.pump();
        Ok(None)
    }

    // ---- frames of the connection ----

    fn settings(&mut self, settings: &frame::Settings) -> Result<(), Fault> {
        if settings.is_ack() {
            return Ok(());
        }
        let is_first = !std::mem::replace(&mut self.has_settings, true);
        if self.role == Role::Client && settings.is_push_enabled() == Some(true) {
            return Err(Fault::Connection(Reason::PROTOCOL_ERROR)); // Section 6.5.2.
        }
        if let Some(bytes) = settings.header_table_size() {
            let bytes = bytes.min(HEADER_TABLE_BYTES_MAX);
            self.codec.set_send_header_table_size(bytes as usize);
            self.table_update = Some((self.table_update.map_or(bytes, |(least, _)| least.min(bytes)), bytes));
        }
        if let Some(bytes) = settings.max_frame_size() {
            self.codec.set_max_send_frame_size(bytes as usize);
        }
        if let Some(count) = settings.max_concurrent_streams() {
            self.peer_streams_max = count;
        } else if is_first {
            self.peer_streams_max = self.profile.streams_max;
        }
        if let Some(bytes) = settings.initial_window_size() {
            let difference = i64::from(bytes) - i64::from(self.send_window_initial);
            self.send_window_initial = bytes;
            for stream in self.streams.iter_mut() {
                // Section 6.9.2: over the maximum it is a fault of the connection.
                stream.send.shift(difference).map_err(|Overflow| Fault::Connection(Reason::FLOW_CONTROL_ERROR))?;
            }
        }
        self.put_frame(frame::Settings::ack().into());
        if settings.initial_window_size().is_some() {
            let waiting: Vec<_> = self.streams.keys().collect();
            for key in waiting {
                self.queue(key);
            }
            self.pump();
        }
        Ok(())
    }

    fn ping(&mut self, ping: &frame::Ping) {
        if !ping.is_ack() {
            self.put_frame(frame::Ping::pong(*ping.payload()).into());
        } else if *ping.payload() == DRAIN_PING && self.drain == Drain::Announced {
            self.name_last_stream();
        }
    }

    fn peer_goes(&mut self, away: &frame::GoAway) -> Option<Event> {
        self.is_peer_going = true;
        if self.role == Role::Server {
            return None; // We open no streams; what is open goes on.
        }
        let last_id = u32::from(away.last_stream_id());
        self.refused.extend(self.streams.keys().filter(|key| key.id > last_id));
        Some(Event::GoAway { last_id, reason: away.reason() })
    }

    fn count_idle_frame(&mut self, now: Instant) -> Result<(), Fault> {
        if self.idle_frames.take(now) { Ok(()) } else { Err(Fault::Connection(Reason::ENHANCE_YOUR_CALM)) }
    }

    // ---- what we say ----

    /// What waits for the socket.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.codec.get_mut().outbox
    }

    /// After the socket took bytes: turns more of what waits into frames.
    pub fn refill_outbox(&mut self) {
        self.pump();
    }

    /// Whether more should be read: not while the peer does not read what we have to say.
    #[must_use]
    pub fn wants_bytes(&self) -> bool {
        self.fault.is_none() && self.codec.get_ref().outbox.len() < OUTBOX_BYTES_MAX
    }

    /// Bytes of bodies that have gone into frames so far: as long as the number grows, the peer opens windows.
    #[must_use]
    pub fn framed_bytes(&self) -> u64 {
        self.framed_bytes
    }

    /// Bytes of answers that wait for windows.
    #[must_use]
    pub fn backlog_bytes(&self) -> usize {
        self.backlog_bytes
    }

    /// Opens a stream (client role) and says `head` on it.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was said then.
    pub fn open(&mut self, head: &RequestHead<'_>, attachment: T) -> Result<StreamKey, OpenError> {
        assert_eq!(self.role, Role::Client);
        let id = if self.streams.highest_id == 0 { 1 } else { self.streams.highest_id + 2 };
        if !self.takes_streams() || id > i32::MAX as u32 {
            return Err(OpenError::Closing);
        }
        if self.streams.len() >= self.peer_streams_max as usize {
            return Err(OpenError::Full);
        }
        let key = self.streams.insert(Stream {
            id,
            receive: ReceiveWindow::new(self.profile.stream_window_bytes),
            send: SendWindow::new(self.send_window_initial),
            is_remote_done: false,
            has_head: false,
            due_bytes: None,
            backlog: Backlog::default(),
            attachment: Some(attachment),
        });
        let mut block = std::mem::take(&mut self.block);
        head.put(&mut block);
        self.put_block(id, END_HEADERS, &block);
        block.clear();
        self.block = block;
        Ok(key)
    }

    /// Whether a stream could be opened, or could be but for the peer's limit.
    #[must_use]
    pub fn takes_streams(&self) -> bool {
        self.fault.is_none() && !self.is_peer_going && self.drain == Drain::No
    }

    /// Whether another stream may be opened now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.takes_streams() && self.streams.len() < self.peer_streams_max as usize
    }

    /// Keeps `attachment` with the stream; answers whether the stream is still open.
    pub fn attach(&mut self, key: StreamKey, attachment: T) -> bool {
        match self.streams.get_mut(key) {
            Some(stream) => stream.attachment = Some(attachment),
            None => return false,
        }
        true
    }

    /// What is attached to the stream, if both are there.
    pub fn attachment(&mut self, key: StreamKey) -> Option<&mut T> {
        self.streams.get_mut(key)?.attachment.as_mut()
    }

    /// Whether something can still be said on the stream.
    #[must_use]
    pub fn is_open(&self, key: StreamKey) -> bool {
        self.streams.get(key).is_some_and(|stream| stream.backlog.ending.is_none())
    }

    /// Whether the stream has something to say that waits for a window.
    #[must_use]
    pub fn has_backlog(&self, key: StreamKey) -> bool {
        self.streams.get(key).is_some_and(|stream| !stream.backlog.parts.is_empty())
    }

    /// From now on the peer may send on this stream only as much as we have [passed on](Connection::pass_on), and a
    /// window more.
    pub fn hold_window(&mut self, key: StreamKey) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.receive.hold();
        }
    }

    /// `bytes` that came on a stream whose window is [held](Connection::hold_window) have gone where they belong.
    pub fn pass_on(&mut self, key: StreamKey, bytes: usize) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.receive.take(bytes);
        if !stream.is_remote_done
            && let Some(update) = stream.receive.update()
        {
            self.put_frame(frame::WindowUpdate::new(key.id.into(), update).into());
        }
    }

    /// Says the head of a response; with `is_end`, nothing follows it.
    pub fn send_head(&mut self, key: StreamKey, status: StatusCode, fields: HeaderMap, is_end: bool) {
        if !self.is_open(key) {
            return;
        }
        let mut headers = frame::Headers::new(key.id.into(), Pseudo::response(status), fields);
        if is_end {
            headers.set_end_stream();
        }
        self.put_frame(headers.into());
        if is_end {
            self.finish(key);
        }
    }

    /// Says the head of a gRPC response: status 200, `content-type: application/grpc`.
    pub fn send_ok_head(&mut self, key: StreamKey) {
        if self.is_open(key) {
            self.put_block(key.id, END_HEADERS, heads::OK_HEAD_BLOCK);
        }
    }

    /// Says a whole gRPC response: its head, one message of `head` and `rest`, and that all is well.
    ///
    /// What windows do not allow now waits, as with [`Connection::send_part`].
    pub fn send_ok(&mut self, key: StreamKey, head: &[u8], rest: Bytes) {
        let bytes = head.len() + rest.len();
        if self.table_update.is_some() || !self.takes_at_once(key, bytes) {
            self.send_ok_head(key);
            self.send_part(key, head, rest, false);
            return self.end_ok(key);
        }
        // Only for speed: most answers are these three frames, and all of them go out at once.
        self.note_sent(key, bytes);
        let id = key.id.to_be_bytes();
        let length = u32::try_from(bytes).expect("no frame is that large").to_be_bytes();
        let mut before = heads::OK_FRAMES_BEFORE;
        before[5..9].copy_from_slice(&id);
        before[heads::OK_DATA_AT..][..3].copy_from_slice(&length[1..]);
        before[heads::OK_DATA_AT..][5..9].copy_from_slice(&id);
        let mut after = heads::OK_FRAME_AFTER;
        after[5..9].copy_from_slice(&id);
        let outbox = self.outbox();
        outbox.put(&before);
        outbox.put(head);
        outbox.put_bytes(rest);
        outbox.put(&after);
        self.finish(key);
    }

    /// Whether a part of `bytes` is allowed to go out now, and nothing of its stream waits before it.
    fn takes_at_once(&self, key: StreamKey, bytes: usize) -> bool {
        let frame_bytes_max = self.codec.max_send_frame_size();
        let Some(stream) = self.streams.get(key) else { return false };
        bytes <= frame_bytes_max.min(self.send.available_bytes()).min(stream.send.available_bytes())
            && stream.backlog.parts.is_empty()
            && stream.backlog.ending.is_none()
            && self.codec.get_ref().outbox.len() < OUTBOX_BYTES_MAX
    }

    /// A frame with `bytes` of a body goes out on the stream.
    fn note_sent(&mut self, key: StreamKey, bytes: usize) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.send.sent(bytes);
        }
        self.send.sent(bytes);
        self.framed_bytes += bytes as u64;
        self.idle_frames.earn();
    }

    /// Says a part of a body: `head`, which is small and copied, and then `rest`, which is not copied if it is large.
    /// With `is_last`, nothing follows it.
    ///
    /// What windows do not allow now waits, and goes out as they are raised.
    pub fn send_part(&mut self, key: StreamKey, head: &[u8], rest: Bytes, is_last: bool) {
        let bytes = head.len() + rest.len();
        // Only for speed: what fits goes out at once, without standing in a queue.
        if self.takes_at_once(key, bytes) {
            self.note_sent(key, bytes);
            self.put_head(DATA, if is_last { END_STREAM } else { 0 }, key.id, bytes);
            self.outbox().put(head);
            self.outbox().put_bytes(rest);
            if is_last {
                self.finish(key);
            }
            return;
        }
        let Some(stream) = self.streams.get_mut(key) else { return };
        for part in [Bytes::copy_from_slice(head), rest] {
            if !part.is_empty() {
                stream.backlog.bytes += part.len();
                self.backlog_bytes += part.len();
                stream.backlog.parts.push_back(part);
            }
        }
        if is_last {
            stream.backlog.ending = Some(Ending::Data);
        }
        self.queue(key);
        self.pump();
    }

    /// Ends our side of the stream with `grpc-status: 0`.
    pub fn end_ok(&mut self, key: StreamKey) {
        self.end(key, Ending::Ok);
    }

    /// Ends our side of the stream with these trailers.
    pub fn end_with(&mut self, key: StreamKey, trailers: HeaderMap) {
        self.end(key, Ending::Trailers(trailers));
    }

    /// Ends the stream before its end, both ways; answers what was attached to it.
    pub fn reset(&mut self, key: StreamKey, reason: Reason) -> Option<T> {
        let mut stream = self.streams.remove(key)?;
        self.backlog_bytes -= stream.backlog.bytes;
        self.streams.remember_reset(key.id);
        self.put_frame(frame::Reset::new(key.id.into(), reason).into());
        stream.attachment.take()
    }

    /// Asks the peer for a sign of life.
    pub fn send_ping(&mut self) {
        self.put_frame(frame::Ping::new(LIVENESS_PING).into());
    }

    /// Asks the peer to open no more streams, in two steps so that none is lost (section 6.8). The connection
    /// [ends](Connection::is_over) when the last open stream has.
    pub fn begin_drain(&mut self) {
        if self.drain != Drain::No || self.fault.is_some() {
            return;
        }
        if self.role == Role::Client {
            self.drain = Drain::Named;
            return;
        }
        self.drain = Drain::Announced;
        self.put_frame(frame::GoAway::new(StreamId::MAX, Reason::NO_ERROR).into());
        self.put_frame(frame::Ping::new(DRAIN_PING).into());
    }

    /// Does not wait for the answer to the first step of a drain any longer.
    pub fn finish_drain(&mut self) {
        if self.drain == Drain::Announced {
            self.name_last_stream();
        }
    }

    /// Ends the connection for a reason: GOAWAY, and nothing is read any more.
    pub fn fail(&mut self, reason: Reason) {
        if self.fault.is_some() {
            return;
        }
        let last_id = if self.role == Role::Server { self.streams.highest_id } else { 0 };
        self.put_frame(frame::GoAway::new(last_id.into(), reason).into());
        self.fault = Some(reason);
    }

    /// Why the connection was ended, if it was.
    #[must_use]
    pub fn fault(&self) -> Option<Reason> {
        self.fault
    }

    /// Whether everything is said and the socket may be closed once the outbox is empty.
    #[must_use]
    pub fn is_over(&self) -> bool {
        // A client that says goodbye closes the connection itself, and may have a PING on its way that wants an answer.
        let is_going = self.drain == Drain::Named || (self.is_peer_going && self.role == Role::Client);
        self.fault.is_some() || (is_going && self.streams.len() == 0)
    }

    /// Streams that are open.
    #[must_use]
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Every open stream.
    pub fn keys(&self) -> Vec<StreamKey> {
        self.streams.keys().collect()
    }

    /// Gives large buffers back when they are empty, so that a connection that falls silent costs little.
    pub fn rest(&mut self) {
        let resting_bytes_max = self.profile.resting_bytes_max;
        if self.inbound.is_empty() && self.inbound.capacity() > resting_bytes_max {
            self.inbound = BytesMut::new();
        }
        self.outbox().rest(resting_bytes_max);
    }

    fn end(&mut self, key: StreamKey, ending: Ending) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        assert!(stream.backlog.ending.is_none(), "a stream ends once");
        if stream.backlog.parts.is_empty() {
            self.put_ending(key, ending);
        } else {
            stream.backlog.ending = Some(ending);
        }
    }

    /// Turns backlogs into frames as far as windows and outbox allow, a frame of each stream in turn.
    fn pump(&mut self) {
        while self.codec.get_ref().outbox.len() < OUTBOX_BYTES_MAX {
            let Some(key) = self.sendable.pop_front() else { return };
            let connection_bytes = self.send.available_bytes();
            if connection_bytes == 0 {
                self.sendable.push_front(key);
                return;
            }
            let frame_bytes_max = self.codec.max_send_frame_size();
            let Some(stream) = self.streams.get_mut(key) else { continue };
            stream.backlog.is_queued = false;
            let Some(part) = stream.backlog.parts.front_mut() else { continue };
            let bytes = part.len().min(frame_bytes_max).min(connection_bytes).min(stream.send.available_bytes());
            if bytes == 0 {
                continue; // Comes back with a WINDOW_UPDATE.
            }
            let part_now = part.split_to(bytes);
            if part.is_empty() {
                stream.backlog.parts.pop_front();
            }
            stream.backlog.bytes -= bytes;
            self.backlog_bytes -= bytes;
            stream.send.sent(bytes);
            let ending = if stream.backlog.parts.is_empty() { stream.backlog.ending.take() } else { None };
            self.send.sent(bytes);
            self.framed_bytes += bytes as u64;
            self.idle_frames.earn();
            let flags = if matches!(ending, Some(Ending::Data)) { END_STREAM } else { 0 };
            self.put_head(DATA, flags, key.id, bytes);
            self.outbox().put_bytes(part_now);
            match ending {
                Some(ending) => self.put_ending(key, ending),
                None => self.queue(key),
            }
        }
    }

    /// Puts the stream into the queue of those that can send, if it has something to send and may.
    fn queue(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if !stream.backlog.is_queued && !stream.backlog.parts.is_empty() && stream.send.available_bytes() > 0 {
            stream.backlog.is_queued = true;
            self.sendable.push_back(key);
        }
    }

    fn put_ending(&mut self, key: StreamKey, ending: Ending) {
        match ending {
            Ending::Ok => self.put_block(key.id, END_HEADERS | END_STREAM, heads::OK_TRAILERS_BLOCK),
            Ending::Trailers(fields) => self.put_frame(frame::Headers::trailers(key.id.into(), fields).into()),
            Ending::Data => {} // Said with the last DATA frame.
        }
        self.finish(key);
    }

    /// Our side has ended: so has the stream, unless the peer (of a client) still speaks.
    fn finish(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get(key) else { return };
        let is_remote_done = stream.is_remote_done;
        match self.role {
            Role::Client if !is_remote_done => return,
            Role::Server if !is_remote_done => {
                // Section 8.1: the answer is complete, the rest of the request is of no use.
                self.streams.remember_reset(key.id);
                self.put_frame(frame::Reset::new(key.id.into(), Reason::NO_ERROR).into());
            }
            _ => {}
        }
        self.streams.remove(key);
    }

    /// Client: the response is complete; the stream is closed, whatever we had left to say.
    pub fn close(&mut self, key: StreamKey) -> Option<T> {
        let mut stream = self.streams.remove(key)?;
        self.backlog_bytes -= stream.backlog.bytes;
        if stream.backlog.ending.is_some() || !stream.backlog.parts.is_empty() {
            self.streams.remember_reset(key.id);
            self.put_frame(frame::Reset::new(key.id.into(), Reason::CANCEL).into());
        }
        stream.attachment.take()
    }

    fn name_last_stream(&mut self) {
        self.drain = Drain::Named;
        let last_id = self.streams.highest_id;
        self.put_frame(frame::GoAway::new(last_id.into(), Reason::NO_ERROR).into());
    }

    // ---- faults ----

    fn settle(&mut self, handled: Handled, now: Instant) -> Option<Event> {
        match handled {
            Ok(event) => event,
            Err(Fault::Connection(reason)) => {
                self.fail(reason);
                None
            }
            Err(Fault::Stream(id, reason)) => self.fault_of_stream(id, reason, now),
        }
    }

    fn fault_of_stream(&mut self, id: u32, reason: Reason, now: Instant) -> Option<Event> {
        if id == 0 || !self.is_ours_or_theirs(id) {
            self.fail(reason);
            return None;
        }
        // Resets that the peer makes us send are as good as its own (CVE-2025-8671, MadeYouReset); but one stream too
        // many is no fault of a peer that has not seen our settings yet.
        if reason != Reason::REFUSED_STREAM && !self.resets.take(now) {
            self.fail(Reason::ENHANCE_YOUR_CALM);
            return None;
        }
        if self.role == Role::Server && self.streams.is_idle(id) {
            self.streams.pass_to(id); // A header block that was malformed opened and closed it.
        }
        let event = self.streams.key(id).and_then(|key| self.drop_stream(key, reason, false));
        self.streams.remember_reset(id);
        self.put_frame(frame::Reset::new(id.into(), reason).into());
        event
    }

    fn drop_stream(&mut self, key: StreamKey, reason: Reason, by_peer: bool) -> Option<Event> {
        let mut stream = self.streams.remove(key)?;
        self.backlog_bytes -= stream.backlog.bytes;
        self.taken = stream.attachment.take();
        Some(Event::Reset { key, reason, by_peer })
    }

    /// Whether a stream of this number is one that the client of this connection may open: odd (section 5.1.1).
    fn is_ours_or_theirs(&self, id: u32) -> bool {
        id % 2 == 1
    }

    // ---- frames into the outbox ----

    fn put_frame(&mut self, frame: Frame<Bytes>) {
        if matches!(frame, Frame::Headers(_)) {
            self.table_update = None; // The codec says it by itself.
        }
        let mut cx = Context::from_waker(Waker::noop());
        // The wire takes everything at once, so the codec is ready before and empty after.
        let ready = self.codec.poll_ready(&mut cx);
        assert!(matches!(ready, Poll::Ready(Ok(()))));
        self.codec.buffer(frame).expect("only DATA can be too large, and DATA does not pass through the codec");
        let flushed = self.codec.flush(&mut cx);
        assert!(matches!(flushed, Poll::Ready(Ok(()))));
    }

    /// Says a header block that leaves the table of headers alone.
    fn put_block(&mut self, id: u32, flags: u8, block: &[u8]) {
        let mut sizes = SmallVec::<[u8; 8]>::new();
        if let Some((least_bytes, bytes)) = self.table_update.take() {
            if least_bytes < bytes {
                heads::put_table_size(least_bytes, &mut sizes);
            }
            heads::put_table_size(bytes, &mut sizes);
        }
        self.put_head(HEADERS, flags, id, sizes.len() + block.len());
        self.outbox().put(&sizes);
        self.outbox().put(block);
    }

    fn put_head(&mut self, kind: u8, flags: u8, id: u32, payload_bytes: usize) {
        let length = u32::try_from(payload_bytes).expect("no frame is that large").to_be_bytes();
        let id = id.to_be_bytes();
        self.outbox().put(&[length[1], length[2], length[3], kind, flags, id[0], id[1], id[2], id[3]]);
    }
}

impl<T> fmt::Debug for Connection<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({:?}, {} streams, fault {:?})", self.role, self.streams.len(), self.fault)
    }
}
