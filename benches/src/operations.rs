//! What is timed and counted, each once: `benches/times.rs` and `benches/instructions.rs` run the same functions.
//!
//! ```text
//!   shard ──▶ memory: touched, evicted        record, index: the log        placement: whose key
//!   HTTP/2: bytes of requests ──▶ Conversation ──▶ bytes of answers         frame: gRPC's prefix
//! ```
//! An [`Operation`] is made ready once and then run as often as one likes. A run is [`PER_RUN`] of what its name says, so that
//! what happens now and then, such as the cleaning of a block, is in every figure. Where a run needs something that should
//! not be counted, such as a client's bytes, [`Subject::prepare`] makes it.

use std::{
    future::Future,
    hint::black_box,
    io::IoSlice,
    net::{IpAddr, Ipv4Addr},
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use milena_core::{
    service::{CacheService, ServiceSettings},
    shard::{Shard, ShardSettings, Write, WriteMode},
    shards::{self, Shards},
};
use milena_net::{
    grpc::{
        frame::{self, Assembler},
        health::Health,
        reflection::Reflection,
        server::Conversation,
    },
    http2::{Connection, Event, RequestHead, Role, limits::LINK},
    mesh,
};
use milena_proto::{
    cache_server::{Ack, GetRequest, PutRequest},
    generated::DESCRIPTORS,
    key::{Key, KeyRef},
    method::{CACHE_GET, CACHE_PUT},
    placement,
};
use milena_storage::{
    Condition, Entry, Timestamp, Version,
    log::parts,
    memory::{BUDGET_BYTES_MIN, Lookup, Memory},
    object::Object,
};
use prost::Message as _;

const NOW: Timestamp = Timestamp(1_700_000_000_000);
const BUCKET: &[u8] = b"default";
const VALUE_BYTES: usize = 100;
/// As long as S3's.
const VERSION: &[u8] = b"0123456789abcdef0123456789abcdef";

/// Keys that operations go through in turns: few enough for the processor's nearest caches, so that what is told is the
/// code and not the machine's memory.
const KEYS: u64 = 256;

/// How many of what its name says an operation does in a run; `benches/compare` divides by it.
pub const PER_RUN: u64 = 32;

/// Something worth measuring alone.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Letters and underscores; the name of its figure.
    pub name: &'static str,
    /// One line for people.
    pub what: &'static str,
    make: fn() -> Box<dyn Subject>,
}

/// An operation made ready.
pub trait Subject {
    /// Whether [`Subject::prepare`] does anything.
    fn needs_preparing(&self) -> bool {
        false
    }

    /// What the next run needs and nobody wants to know about; to be called before each.
    fn prepare(&mut self) {}

    /// What is measured.
    fn run(&mut self);
}

impl Operation {
    /// The operation, made ready and run a few times: buffers have grown, pages are mapped, heads are known.
    #[must_use]
    pub fn subject(&self) -> Box<dyn Subject> {
        let mut subject = (self.make)();
        for _ in 0..2 * KEYS / PER_RUN {
            subject.prepare();
            subject.run();
        }
        subject.prepare();
        subject
    }
}

/// All of them.
pub const OPERATIONS: [Operation; 13] = [
    Operation { name: "shard_get", what: "Shard::get, a hit in memory, 100 bytes", make: shard_get },
    Operation { name: "shard_put", what: "Shard::put without a store, 100 bytes", make: shard_put },
    Operation { name: "memory_touch", what: "Memory::get: found, made the most recent", make: memory_touch },
    Operation { name: "memory_evict", what: "Memory::insert, full: others make room", make: memory_evict },
    Operation { name: "record_encode", what: "a record of the log written, 1 KiB", make: record_encode },
    Operation { name: "record_decode", what: "a record of the log checked, 1 KiB", make: record_decode },
    Operation { name: "index_probe", what: "a key looked for among a million of the log", make: index_probe },
    Operation { name: "key_hash", what: "XXH64 of bucket and key", make: key_hash },
    Operation { name: "placement_node", what: "whose key, of 100 slots all alive", make: placement_node },
    Operation { name: "placement_core", what: "which core of 8", make: placement_core },
    Operation { name: "grpc_frame", what: "a message out of a DATA frame", make: grpc_frame },
    Operation { name: "http2_get", what: "a Get that hits, from bytes to bytes", make: http2_get },
    Operation { name: "http2_get_of_32", what: "the same, 32 of them at once", make: http2_get_of_32 },
];

/// The operation with this name.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn operation(name: &str) -> &'static Operation {
    OPERATIONS.iter().find(|operation| operation.name == name).expect("the name of an operation")
}

/// A subject that is a function of a number that grows.
struct Repeat<F>(u64, F);

impl<F: FnMut(u64)> Subject for Repeat<F> {
    fn run(&mut self) {
        for _ in 0..PER_RUN {
            self.0 += 1;
            (self.1)(self.0);
        }
    }
}

fn repeat(run: impl FnMut(u64) + 'static) -> Box<dyn Subject> {
    Box::new(Repeat(0, run))
}

fn key(number: u64) -> Key {
    KeyRef::parse(BUCKET, format!("key-{number:010}").as_bytes()).expect("a legal key").to_key()
}

fn keys() -> Vec<Key> {
    (0..KEYS).map(key).collect()
}

fn nth(keys: &[Key], number: u64) -> &Key {
    &keys[(number % KEYS) as usize]
}

fn entry(value_bytes: usize) -> Entry {
    let version = Version::new(Bytes::from_static(VERSION)).expect("printable");
    Entry { value: Bytes::from(vec![7; value_bytes]), version, expires: None }
}

// ---- The shard.

fn shard() -> Rc<Shard<Object>> {
    let settings = ShardSettings {
        core: 0,
        core_count: 1,
        memory_bytes: 64 << 20,
        entries_max: 0,
        believed_ms: None,
        absent_ms: 0,
        incarnation: 1,
        write_mode: WriteMode::Through,
    };
    Shard::new(settings, None)
}

fn write() -> Write {
    let value = Bytes::from(vec![7; VALUE_BYTES]);
    Write { value, expires: None, condition: Condition::Always, ack: Ack::Default }
}

/// What a future that never waits comes to.
fn done<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("there is nothing below memory to wait for"),
    }
}

fn shard_get() -> Box<dyn Subject> {
    let (shard, keys) = (shard(), keys());
    for key in &keys {
        done(shard.put(key.clone(), write(), NOW)).expect("there is room");
    }
    repeat(move |number| {
        let found = done(shard.get(nth(&keys, number).as_ref(), NOW)).expect("nothing can fail");
        assert!(black_box(found).is_some());
    })
}

fn shard_put() -> Box<dyn Subject> {
    let (shard, keys, write) = (shard(), keys(), write());
    repeat(move |number| {
        black_box(done(shard.put(nth(&keys, number).clone(), write.clone(), NOW))).expect("there is room");
    })
}

// ---- Memory.

fn memory_touch() -> Box<dyn Subject> {
    let (mut memory, keys, entry) = (Memory::new(64 << 20, 0), keys(), entry(VALUE_BYTES));
    for key in &keys {
        assert!(memory.insert(key.as_ref(), &entry, None, NOW));
    }
    repeat(move |number| {
        assert!(matches!(black_box(memory.get(nth(&keys, number).as_ref(), NOW)), Lookup::Hit(_)));
    })
}

fn memory_evict() -> Box<dyn Subject> {
    let (mut memory, entry) = (Memory::new(BUDGET_BYTES_MIN, 0), entry(VALUE_BYTES));
    let mut name = *b"key-00000000";
    let mut insert = move |number: u64| {
        name[4..].copy_from_slice(&number.to_be_bytes());
        let key = KeyRef::parse(BUCKET, &name).expect("a legal key");
        assert!(memory.insert(key, &entry, None, NOW));
        memory.figures().evictions
    };
    let full = (0..).find(|number| insert(*number) > 0).expect("it becomes full");
    repeat(move |number| {
        black_box(insert(full + number));
    })
}

// ---- The log.

fn record_encode() -> Box<dyn Subject> {
    let (keys, entry, mut bytes) = (keys(), entry(1024), BytesMut::new());
    repeat(move |number| {
        bytes.clear();
        parts::encode(nth(&keys, number).as_ref(), &entry, &mut bytes);
        black_box(&bytes);
    })
}

fn record_decode() -> Box<dyn Subject> {
    let mut bytes = BytesMut::new();
    parts::encode(key(0).as_ref(), &entry(1024), &mut bytes);
    repeat(move |_| assert!(parts::decode(black_box(&bytes)).is_some()))
}

fn index_probe() -> Box<dyn Subject> {
    const INDEX_KEYS: usize = 1_000_000;
    let hash = |number: usize| placement::mix64(number as u64);
    let mut probes = parts::Probes::new((0..INDEX_KEYS).map(hash));
    repeat(move |number| {
        let wanted = hash(number as usize * 7_919 % INDEX_KEYS);
        assert!(black_box(probes.candidates(wanted)) >= 1);
    })
}

// ---- Placement.

fn key_hash() -> Box<dyn Subject> {
    let keys = keys();
    repeat(move |number| {
        let key = nth(&keys, number);
        black_box(placement::key_hash(black_box(BUCKET), black_box(key.name())));
    })
}

fn placement_node() -> Box<dyn Subject> {
    let weights = vec![placement::WEIGHT_FULL; 100];
    repeat(move |number| {
        black_box(placement::slot(placement::mix64(number), black_box(&weights)));
    })
}

fn placement_core() -> Box<dyn Subject> {
    repeat(|number| {
        black_box(placement::core(placement::mix64(number), black_box(8)));
    })
}

// ---- The wire.

fn grpc_frame() -> Box<dyn Subject> {
    let message = get_request(&key(0));
    let mut framed = frame::prefix(message.len()).to_vec();
    framed.extend_from_slice(&message);
    let (framed, mut assembler) = (Bytes::from(framed), Assembler::default());
    repeat(move |_| {
        let mut bytes = framed.clone();
        assert!(matches!(black_box(assembler.push(&mut bytes, 1 << 20)), Ok(Some(_))));
    })
}

fn get_request(key: &Key) -> Vec<u8> {
    GetRequest { key: Bytes::copy_from_slice(key.name()), bucket: key.bucket().to_owned() }.encode_to_vec()
}

fn http2_get() -> Box<dyn Subject> {
    Box::new(Pair::with_keys(1))
}

fn http2_get_of_32() -> Box<dyn Subject> {
    Box::new(Pair::with_keys(32))
}

/// A client and a node's core with no socket between them. What is run is the core's side: bytes of Gets, to the bytes of
/// their answers.
struct Pair {
    client: Connection<()>,
    node: Conversation<CacheService<Object>>,
    keys: Vec<Key>,
    /// Gets that arrive together.
    at_once: u64,
    number: u64,
    /// What the node is about to receive, one after the other.
    arriving: Vec<Vec<u8>>,
    now: Instant,
}

impl Pair {
    fn with_keys(at_once: u64) -> Self {
        let ends = shards::mesh(1).into_iter().next().expect("one core");
        let (shards, _run) = Shards::new(ends, shard());
        let (complaints, _) = mesh::mailbox(1);
        let settings = ServiceSettings { core: 0, core_count: 1, value_bytes_max: 5 << 20, complaints };
        let service = Rc::new(CacheService::new(shards, settings));
        let reflection = Rc::new(Reflection::new(DESCRIPTORS, &[]).expect("our own descriptors"));
        let now = Instant::now();
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let node = Conversation::new(service, Health::new(&[]), reflection, &LINK, 6 << 20, peer, now);
        let client = Connection::new(Role::Client, &LINK);
        let mut pair = Self { client, node, keys: keys(), at_once, number: 0, arriving: Vec::new(), now };
        // Both have greeted and acknowledged.
        for _ in 0..2 {
            pair.arriving.clear();
            pair.send();
            pair.run();
            pair.hear();
        }
        for key in pair.keys.clone() {
            pair.arriving.clear();
            pair.ask(CACHE_PUT.path, put_request(&key));
            pair.send();
            pair.run();
            assert_eq!(pair.hear(), 1);
        }
        pair
    }

    fn ask(&mut self, path: &str, message: Vec<u8>) {
        let head = RequestHead { path, authority: "node:1", timeout: b"5S" };
        let stream = self.client.open(&head, ()).expect("there is room for a stream");
        self.client.send_part(stream, &frame::prefix(message.len()), message.into(), true);
    }

    /// Takes what the client has to say to where the node finds it.
    fn send(&mut self) {
        let mut bytes = Vec::new();
        take(&mut self.client, &mut bytes);
        self.arriving.push(bytes);
    }

    /// Lets the client hear all that the node has said; how many answers that was.
    fn hear(&mut self) -> u64 {
        let mut bytes = Vec::new();
        take(self.node.connection(), &mut bytes);
        self.client.receive(&bytes);
        let mut answer_count = 0;
        while let Some(event) = self.client.next_event(self.now) {
            if let Event::Trailers { key, .. } = event {
                answer_count += 1;
                self.client.close(key);
            }
        }
        answer_count
    }
}

impl Subject for Pair {
    fn needs_preparing(&self) -> bool {
        true
    }

    fn prepare(&mut self) {
        if self.number > 0 {
            assert_eq!(self.hear(), PER_RUN, "every Get is answered");
        }
        self.arriving.clear();
        for _ in 0..PER_RUN / self.at_once {
            for _ in 0..self.at_once {
                self.number += 1;
                let message = get_request(nth(&self.keys, self.number));
                self.ask(CACHE_GET.path, message);
            }
            self.send();
        }
    }

    fn run(&mut self) {
        for bytes in &self.arriving {
            self.node.receive(bytes, self.now);
            self.node.poll_calls(&mut Context::from_waker(Waker::noop()));
        }
    }
}

fn put_request(key: &Key) -> Vec<u8> {
    let (bucket, value) = (key.bucket().to_owned(), vec![7; VALUE_BYTES].into());
    PutRequest { key: Bytes::copy_from_slice(key.name()), bucket, value, ..Default::default() }.encode_to_vec()
}

/// Appends everything that `connection` would write to its socket.
fn take<T>(connection: &mut Connection<T>, taken: &mut Vec<u8>) {
    while !connection.outbox().is_empty() {
        let mut slices = [IoSlice::new(&[]); 16];
        let count = connection.outbox().fill(&mut slices);
        let before = taken.len();
        slices[..count].iter().for_each(|slice| taken.extend_from_slice(slice));
        connection.outbox().advance(taken.len() - before);
        connection.refill_outbox();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_a_name_of_its_own_and_can_be_run_twice() {
        for (index, operation) in OPERATIONS.iter().enumerate() {
            assert!(OPERATIONS[..index].iter().all(|other| other.name != operation.name), "{}", operation.name);
            let mut subject = operation.subject();
            subject.run();
            subject.prepare();
            subject.run();
        }
    }
}
