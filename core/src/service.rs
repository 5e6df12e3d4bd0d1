//! `cache_server.Cache` on one core: bytes in, a shard asked, bytes out; and which error becomes which status.
//!
//! ```text
//!   Get     key read from the message, nothing else ─▶ this core's memory ─ hit ─▶ answered inline: nothing allocated,
//!                                                        └ else ─▶ Shards          the value not copied
//!   Put     decoded; the value stays where the message is ─▶ checked ─▶ Shards
//!   Delete  decoded ─▶ checked ─▶ Shards
//!   Batch…  the same for each entry: service/batch.rs
//! ```
//! At the common port a node answers for any key. Whoever asks at a core's own port has computed whose the key is: there, a
//! key that is another node's is refused, when ownership.rs is certain of it.

mod batch;

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use milena_net::{
    grpc::{
        server::{Effect, Message, Reply, Request, Service},
        status::{Code, Status},
    },
    mesh,
};
use milena_proto::{
    cache_server::{Ack, DeleteRequest, DeleteResponse, PutRequest, PutResponse, Tier as WireTier},
    key::{Key, KeyError, KeyRef},
    method::{CACHE_BATCH_DELETE, CACHE_BATCH_GET, CACHE_BATCH_PUT, CACHE_DELETE, CACHE_GET, CACHE_PUT},
    placement::{self, KeyHash},
};
use milena_storage::{Cause, Condition, Entry, Error, Tier, Timestamp, Version, entry::VERSION_BYTES_MAX};
use prost::Message as _;
use smallvec::{Array, SmallVec};

use crate::{
    complaints::Complaint,
    inflight::{INFLIGHT_WRITES_PER_KEY_MAX, KEYS_IN_FLIGHT_MAX, READERS_PER_KEY_MAX},
    message::{MESH_REQUESTS_MAX, MESH_TICKETS_MAX},
    ownership::{Ownership, Stray},
    report::{Calls, Depth, Op},
    shard::{Answer, Hit, Limit, Refusal, Removal, Source, Write},
    shards::Shards,
};

/// What a caller is told to wait, in milliseconds, when there is no room for its request.
const PUSHBACK_MS: u32 = 50;

/// The calls of one core.
pub struct CacheService<T> {
    shards: Rc<Shards<T>>,
    core: usize,
    core_count: usize,
    /// The largest value that may be written, in bytes.
    value_bytes_max: usize,
    complaints: mesh::Sender<Complaint>,
    calls: Rc<RefCell<Calls>>,
    clock: Rc<Clock>,
    /// Where keys of other nodes are refused.
    ownership: Option<Rc<Ownership>>,
}

/// What a [`CacheService`] is made with.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    /// This core.
    pub core: usize,
    /// How many there are.
    pub core_count: usize,
    /// The largest value that may be written, in bytes.
    pub value_bytes_max: usize,
    /// Where the store's failures are made into log lines.
    pub complaints: mesh::Sender<Complaint>,
}

/// A call under way. One that memory can answer has its answer from the beginning.
pub struct Call(State);

enum State {
    Ready(Option<Reply>),
    Waiting(Pin<Box<dyn Future<Output = Reply>>>),
}

impl<T: Tier + 'static> CacheService<T> {
    /// Serves from `shards`.
    #[must_use]
    pub fn new(shards: Rc<Shards<T>>, settings: ServiceSettings) -> Self {
        let ServiceSettings { core, core_count, value_bytes_max, complaints } = settings;
        let (calls, clock) = (Rc::default(), Rc::new(Clock::new()));
        Self { shards, core, core_count, value_bytes_max, complaints, calls, clock, ownership: None }
    }

    /// The same calls behind a door where keys of other nodes are refused.
    #[must_use]
    pub fn refusing_strays(&self, ownership: Rc<Ownership>) -> Self {
        Self { ownership: Some(ownership), ..self.share() }
    }

    fn share(&self) -> Self {
        Self {
            shards: Rc::clone(&self.shards),
            core: self.core,
            core_count: self.core_count,
            value_bytes_max: self.value_bytes_max,
            complaints: self.complaints.clone(),
            calls: Rc::clone(&self.calls),
            clock: Rc::clone(&self.clock),
            ownership: self.ownership.clone(),
        }
    }

    /// What has been counted so far.
    #[must_use]
    pub fn calls(&self) -> Calls {
        self.calls.borrow().clone()
    }

    fn answer(&self, op: Op, message: &Bytes) -> Call {
        match op {
            Op::Get => self.get(message),
            Op::Put => self.put(message),
            Op::Delete => self.delete(message),
            Op::BatchGet => self.batch_get(message, None),
            Op::BatchPut | Op::BatchDelete => self.batch_write(op, message),
        }
    }

    fn get(&self, message: &Bytes) -> Call {
        match KeyRef::in_message(message) {
            Ok(key) => self.get_key(key),
            Err(error) => self.counted(Op::Get).end_at_once(Err(malformed(&error))),
        }
    }

    fn get_key(&self, key: KeyRef<'_>) -> Call {
        let counted = self.counted(Op::Get);
        let now = self.clock.at(counted.began);
        if placement::core(key.hash(), self.core_count) == self.core
            && let Some(answer) = self.shards.mine().get_from_memory(key, now)
        {
            return counted.end_at_once(self.found(answer, now));
        }
        let answer = self.shards.get(key, now);
        let complaints = self.complaints.clone();
        counted.end_later(async move { found(answer.await, now, &complaints) })
    }

    fn put(&self, message: &Bytes) -> Call {
        let counted = self.counted(Op::Put);
        let now = self.clock.at(counted.began);
        let (key, write) = match self.read_put(message, now) {
            Ok(write) => write,
            Err(status) => return counted.end_at_once(Err(status)),
        };
        let ack = write.ack;
        let written = self.shards.put(key, write, now);
        let (complaints, tier) = (self.complaints.clone(), self.write_depth(ack));
        counted.end_later(async move {
            let version = written.await.map_err(|refusal| status_of(&refusal, &complaints))?;
            let version = version.as_str().to_owned();
            Ok((Message::encode(&PutResponse { successful: true, version }), tier))
        })
    }

    fn delete(&self, message: &Bytes) -> Call {
        let counted = self.counted(Op::Delete);
        let (key, removal) = match read_delete(message) {
            Ok(delete) => delete,
            Err(status) => return counted.end_at_once(Err(status)),
        };
        let (ack, now) = (removal.ack, self.clock.at(counted.began));
        let removed = self.shards.delete(key, removal, now);
        let (complaints, tier) = (self.complaints.clone(), self.write_depth(ack));
        counted.end_later(async move {
            removed.await.map_err(|refusal| status_of(&refusal, &complaints))?;
            Ok((Message::encode(&DeleteResponse { successful: true }), tier))
        })
    }

    /// Where strays are refused: what to do with a message whose key, or one of whose keys, may be another node's.
    fn answer_unless_stray(&self, ownership: &Rc<Ownership>, op: Op, message: &Bytes) -> Call {
        let strays = match op {
            Op::Get | Op::Put | Op::Delete => match KeyRef::in_message(message) {
                Ok(key) if ownership.is_stray(key.hash()) => vec![key.hash()],
                Ok(key) if op == Op::Get => return self.get_key(key),
                Ok(_) | Err(_) => Vec::new(),
            },
            Op::BatchGet => return self.batch_get(message, Some(ownership)),
            Op::BatchPut | Op::BatchDelete => batch::strays(op, message, ownership),
        };
        if strays.is_empty() {
            self.answer(op, message)
        } else {
            self.answer_stray(ownership, op, strays, message.clone())
        }
    }

    /// Refuses, unless the keys are ours by the router's newest table, or nobody can tell.
    fn answer_stray(&self, ownership: &Rc<Ownership>, op: Op, strays: Vec<KeyHash>, message: Bytes) -> Call {
        let (service, ownership, counted) = (self.share(), Rc::clone(ownership), self.counted(op));
        Call(State::Waiting(Box::pin(async move {
            match ownership.check(&strays).await {
                Ok(()) => {
                    counted.leave_uncounted();
                    service.answer(op, &message).await
                }
                Err(stray) => counted.end(Err(status_of_stray(stray))),
            }
        })))
    }

    fn found(&self, answer: Answer, now: Timestamp) -> Outcome {
        found(answer, now, &self.complaints)
    }

    fn read_put(&self, message: &Bytes, now: Timestamp) -> Result<(Key, Write), Status> {
        let request = PutRequest::decode(message.clone()).map_err(|_| malformed(&KeyError::Malformed))?;
        let key = KeyRef::parse(request.bucket.as_bytes(), &request.key).map_err(|error| malformed(&error))?;
        let value_bytes = request.value.len();
        if value_bytes > self.value_bytes_max {
            let text = format!("value has {value_bytes} bytes; at most {} are allowed", self.value_bytes_max);
            return Err(Status::new(Code::InvalidArgument, text));
        }
        let condition = match (request.if_absent, condition(&request.if_version)?) {
            (false, condition) => condition,
            (true, Condition::Always) => Condition::IfAbsent,
            (true, _) => {
                let text = "if_version and if_absent are both set; one of them is allowed";
                return Err(Status::new(Code::InvalidArgument, text));
            }
        };
        let expires = (request.ttl_ms > 0).then(|| now.plus_ms(request.ttl_ms));
        Ok((key.to_key(), Write { value: request.value, expires, condition, ack: ack(request.ack)? }))
    }

    /// The tier that a write has reached when it is answered.
    fn write_depth(&self, ack: Ack) -> Depth {
        match self.shards.mine().given(ack) {
            Ack::Memory => Depth::Memory,
            Ack::Disk => Depth::Log,
            Ack::S3 | Ack::Default => Depth::Store,
        }
    }

    fn counted(&self, op: Op) -> Counted {
        Counted {
            calls: Rc::clone(&self.calls),
            op,
            began: Instant::now(),
            ending: Some((Code::Cancelled, Depth::None)),
        }
    }
}

impl<T: Tier + 'static> Service for CacheService<T> {
    type Call = Call;

    fn method(&self, path: &str) -> Option<Effect> {
        match Op::at(path)? {
            Op::Get | Op::BatchGet => Some(Effect::Reads),
            Op::Put | Op::Delete | Op::BatchPut | Op::BatchDelete => Some(Effect::Writes),
        }
    }

    fn call(&self, request: Request) -> Call {
        let op = Op::at(&request.path).expect("asked for what is known only");
        match &self.ownership {
            None => self.answer(op, &request.message),
            Some(ownership) => self.answer_unless_stray(ownership, op, &request.message),
        }
    }
}

impl Op {
    /// The operation behind a path.
    fn at(path: &str) -> Option<Self> {
        const PATHS: [(&str, Op); 6] = [
            (CACHE_GET.path, Op::Get),
            (CACHE_PUT.path, Op::Put),
            (CACHE_DELETE.path, Op::Delete),
            (CACHE_BATCH_GET.path, Op::BatchGet),
            (CACHE_BATCH_PUT.path, Op::BatchPut),
            (CACHE_BATCH_DELETE.path, Op::BatchDelete),
        ];
        PATHS.iter().find(|(known, _)| *known == path).map(|(_, op)| *op)
    }
}

impl Future for Call {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        match &mut self.0 {
            State::Ready(reply) => Poll::Ready(reply.take().expect("polled once more after its end")),
            State::Waiting(future) => future.as_mut().poll(cx),
        }
    }
}

type Outcome = Result<(Message, Depth), Status>;

/// Counts a call when it ends, also one whose future is dropped: as CANCELLED.
struct Counted {
    calls: Rc<RefCell<Calls>>,
    op: Op,
    began: Instant,
    ending: Option<(Code, Depth)>,
}

impl Counted {
    fn end(mut self, outcome: Outcome) -> Reply {
        match outcome {
            Ok((message, depth)) => {
                self.ending = Some((Code::Ok, depth));
                Reply::Message(message)
            }
            Err(status) => {
                self.ending = Some((status.code, Depth::None));
                Reply::Failed(status)
            }
        }
    }

    /// Somebody else counts it.
    fn leave_uncounted(mut self) {
        self.ending = None;
    }

    fn end_at_once(self, outcome: Outcome) -> Call {
        Call(State::Ready(Some(self.end(outcome))))
    }

    fn end_later(self, outcome: impl Future<Output = Outcome> + 'static) -> Call {
        Call(State::Waiting(Box::pin(async move { self.end(outcome.await) })))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some((code, depth)) = self.ending.take() {
            self.calls.borrow_mut().count(self.op, code, depth, self.began.elapsed());
        }
    }
}

/// The time of day. Only the shells read it; what is below gets it as an argument.
pub(crate) fn time_of_day() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// The time of day for calls: read once in a while, and reckoned in between, because each call has a clock of its own to read
/// already, for what it took.
struct Clock(Cell<(Instant, Timestamp)>);

/// After this long the time of day is read again, so that a clock that is set is followed.
const CLOCK_AGE_MAX: Duration = Duration::from_millis(10);

impl Clock {
    fn new() -> Self {
        Self(Cell::new(Self::read()))
    }

    fn read() -> (Instant, Timestamp) {
        (Instant::now(), time_of_day())
    }

    /// The time of day at `at`, which is now, to two milliseconds.
    fn at(&self, at: Instant) -> Timestamp {
        let (read_at, time) = self.0.get();
        let age = at.saturating_duration_since(read_at);
        if age < CLOCK_AGE_MAX {
            return time.plus_ms(u64::from(age.subsec_millis()));
        }
        self.0.set(Self::read());
        self.0.get().1
    }
}

fn found(answer: Answer, now: Timestamp, complaints: &mesh::Sender<Complaint>) -> Outcome {
    match answer {
        Ok(Some(hit)) => {
            let depth = depth_of(hit.source);
            Ok((hit_message(hit, now), depth))
        }
        // All fields of a miss have their default: no bytes at all.
        Ok(None) => Ok((Message::from(Bytes::new()), Depth::None)),
        Err(refusal) => Err(status_of(&refusal, complaints)),
    }
}

fn depth_of(source: Source) -> Depth {
    match source {
        Source::Memory => Depth::Memory,
        Source::Log => Depth::Log,
        Source::Store => Depth::Store,
    }
}

/// A `GetResponse`, its value last and not copied.
fn hit_message(hit: Hit, now: Timestamp) -> Message {
    let ttl_ms = hit.ttl_ms(now);
    let Hit { entry: Entry { value, version, .. }, source } = hit;
    let value_bytes = value.len();
    Message::new(|head| put_hit_head(head, source, &version, ttl_ms, value_bytes), value)
}

/// A `GetResponse` up to its value, which stands last: fields may stand in any order.
fn put_hit_head<A: Array<Item = u8>>(
    head: &mut SmallVec<A>,
    source: Source,
    version: &Version,
    ttl_ms: u64,
    value_bytes: usize,
) {
    const SUCCESSFUL: u32 = 1;
    const VALUE: u32 = 2;
    const VERSION: u32 = 3;
    const TIER: u32 = 4;
    const TTL_MS: u32 = 5;
    let tier = match source {
        Source::Memory => WireTier::Memory,
        Source::Log => WireTier::Disk,
        Source::Store => WireTier::S3,
    };
    put_number(head, SUCCESSFUL, 1);
    put_bytes(head, VERSION, version.as_bytes());
    put_number(head, TIER, u64::try_from(tier as i32).expect("tiers are not negative"));
    if ttl_ms > 0 {
        put_number(head, TTL_MS, ttl_ms);
    }
    if value_bytes > 0 {
        put_length(head, VALUE, value_bytes);
    }
}

// Protocol buffers' encoding (https://protobuf.dev/programming-guides/encoding/): a field is its number and wire type as
// one varint, then the varint itself (type 0), or a length and the bytes (type 2).

fn put_number<A: Array<Item = u8>>(head: &mut SmallVec<A>, field: u32, number: u64) {
    put_varint(head, u64::from(field << 3));
    put_varint(head, number);
}

fn put_bytes<A: Array<Item = u8>>(head: &mut SmallVec<A>, field: u32, bytes: &[u8]) {
    put_length(head, field, bytes.len());
    head.extend_from_slice(bytes);
}

fn put_length<A: Array<Item = u8>>(head: &mut SmallVec<A>, field: u32, length: usize) {
    put_varint(head, u64::from(field << 3 | 2));
    put_varint(head, length as u64);
}

fn put_varint<A: Array<Item = u8>>(head: &mut SmallVec<A>, mut number: u64) {
    while number >= 0x80 {
        head.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    head.push(number as u8);
}

fn condition(if_version: &str) -> Result<Condition, Status> {
    if if_version.is_empty() {
        return Ok(Condition::Always);
    }
    Version::new(Bytes::copy_from_slice(if_version.as_bytes())).map(Condition::IfVersion).ok_or_else(|| {
        let found = if_version.len();
        let text =
            format!("if_version has {found} bytes; 1 to {VERSION_BYTES_MAX} printable ASCII characters are allowed");
        Status::new(Code::InvalidArgument, text)
    })
}

fn ack(number: i32) -> Result<Ack, Status> {
    Ack::try_from(number)
        .map_err(|_| Status::new(Code::InvalidArgument, format!("ack is {number}; 0 to 3 are allowed")))
}

fn read_delete(message: &Bytes) -> Result<(Key, Removal), Status> {
    let request = DeleteRequest::decode(message.clone()).map_err(|_| malformed(&KeyError::Malformed))?;
    let key = KeyRef::parse(request.bucket.as_bytes(), &request.key).map_err(|error| malformed(&error))?;
    Ok((key.to_key(), Removal { condition: condition(&request.if_version)?, ack: ack(request.ack)? }))
}

fn malformed(error: &KeyError) -> Status {
    Status::new(Code::InvalidArgument, error.to_string())
}

/// The one place where an error becomes a status. The store's own failures become a log line here too.
fn status_of(refusal: &Refusal, complaints: &mesh::Sender<Complaint>) -> Status {
    match refusal {
        Refusal::Store(error) => {
            if let Some(complaint) = Complaint::about(&error.cause) {
                // Full: what waits there says the same.
                let _ = complaints.try_send(complaint);
            }
            status_of_store(error)
        }
        Refusal::Limit(limit) => Status::resource_exhausted(limit_text(*limit), PUSHBACK_MS),
        Refusal::AckNotGiven { ack, has_store, has_log } => {
            Status::new(Code::FailedPrecondition, ack_text(*ack, *has_store, *has_log))
        }
        Refusal::ValueTooLarge { bytes, bytes_max } => Status::new(
            Code::InvalidArgument,
            format!("value has {bytes} bytes; at most {bytes_max} fit this node's tiers, and it has no store"),
        ),
        Refusal::DiskFailed { is_unknown: false } => {
            Status::new(Code::Unavailable, "this node's disk has failed; nothing was written")
        }
        Refusal::DiskFailed { is_unknown: true } => Status::new(
            Code::Unavailable,
            "outcome unknown: this node's disk failed before it had synced the write; it is not on disk for certain",
        ),
        Refusal::Stopped => Status::new(Code::Unavailable, "the node is stopping"),
        Refusal::Fault(fault) => Status::from(*fault),
    }
}

fn status_of_stray(stray: Stray) -> Status {
    match stray {
        Stray::Anothers { epoch } => Status::not_owner(epoch),
        Stray::TooMany => {
            Status::resource_exhausted("too many requests wait for the newest table of the cluster", PUSHBACK_MS)
        }
    }
}

fn status_of_store(error: &Error) -> Status {
    let code = match error.cause {
        // Damaged on the way or damaged there, also when we looked again: no value is to be had now. DATA_LOSS would say
        // that it is lost for good, which nobody knows yet; the operator is told which object.
        Cause::Unavailable(_) | Cause::OutcomeUnknown(_) | Cause::Corrupt(_) => Code::Unavailable,
        Cause::PermissionDenied(_) => Code::PermissionDenied,
        Cause::Misconfigured(_) => Code::FailedPrecondition,
        Cause::VersionMismatch => Code::Aborted,
        Cause::AlreadyExists => Code::AlreadyExists,
        Cause::Busy => return Status::resource_exhausted(error.to_string(), PUSHBACK_MS),
    };
    Status::new(code, error.to_string())
}

fn limit_text(limit: Limit) -> String {
    match limit {
        Limit::KeysInFlight => format!("this core asks the store for {KEYS_IN_FLIGHT_MAX} keys already"),
        Limit::ReadersOfKey => format!("{READERS_PER_KEY_MAX} requests wait for this key already"),
        Limit::WritesOfKey => format!("{INFLIGHT_WRITES_PER_KEY_MAX} writes of this key wait already"),
        Limit::Tickets => format!("{MESH_TICKETS_MAX} requests of this core wait for other cores already"),
        Limit::Requests => format!("{MESH_REQUESTS_MAX} requests wait for the core that owns the key already"),
        Limit::Log => "too much waits for the disk of the core that owns the key already".to_owned(),
        Limit::Uploads => "too many writes of the core that owns the key wait for the store already".to_owned(),
        Limit::Memory => "answers under way hold all memory of the core that owns the key".to_owned(),
    }
}

fn ack_text(ack: Ack, has_store: bool, has_log: bool) -> String {
    let name = ack.as_str_name();
    let (what, levels) = match (has_store, has_log) {
        (true, _) => ("write mode through", "ACK_S3 and ACK_DEFAULT are"),
        (false, true) => ("no store", "ACK_DISK, ACK_MEMORY and ACK_DEFAULT are"),
        (false, false) => ("no store and no disk", "ACK_MEMORY and ACK_DEFAULT are"),
    };
    format!("ack is {name}, and this node has {what}; {levels} possible; nothing was written")
}

impl<T> fmt::Debug for CacheService<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheService(core {} of {})", self.core, self.core_count)
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            State::Ready(_) => "Call(ready)",
            State::Waiting(_) => "Call(waiting)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_day_is_reckoned_for_ten_milliseconds_and_then_read_again() {
        let (clock, read_at) = (Clock::new(), Instant::now());
        clock.0.set((read_at, Timestamp(1_000)));
        assert_eq!(clock.at(read_at), Timestamp(1_000));
        assert_eq!(clock.at(read_at + CLOCK_AGE_MAX - Duration::from_millis(1)), Timestamp(1_009));
        let now = clock.at(read_at + CLOCK_AGE_MAX);
        assert!(now > Timestamp(1_700_000_000_000), "{now:?} is long ago");
        assert_eq!(clock.0.get().1, now, "from which it is reckoned on");
    }
}
