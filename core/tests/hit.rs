//! What a Get costs that memory answers, from the bytes of its request to the bytes of its answer, as an allocator sees it.

#[path = "../../storage/tests/support/counting.rs"]
mod counting;

use std::{
    io::IoSlice,
    net::{IpAddr, Ipv4Addr},
    rc::Rc,
    task::{Context, Waker},
    time::Instant,
};

use bytes::Bytes;
use milena_core::{
    service::{CacheService, ServiceSettings},
    shard::{Shard, ShardSettings, WriteMode},
    shards::{self, Shards},
};
use milena_net::{
    grpc::{frame, health::Health, reflection::Reflection, server::Conversation},
    http2::{COPIED_BYTES_MAX, Connection, Event, RequestHead, Role, limits::LINK},
    mesh,
};
use milena_proto::{
    cache_server::{BatchGetRequest, GetRequest, PutRequest},
    generated::DESCRIPTORS,
    method::{CACHE_BATCH_GET, CACHE_GET, CACHE_PUT},
};
use milena_storage::object::Object;
use prost::Message as _;

use counting::{Counts, counts};

/// A client and a node's core, with no socket between them.
struct Pair {
    client: Connection<()>,
    node: Conversation<CacheService<Object>>,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let settings = ShardSettings {
            core: 0,
            core_count: 1,
            memory_bytes: 256 << 20,
            entries_max: 0,
            believed_ms: None,
            absent_ms: 0,
            incarnation: 1,
            write_mode: WriteMode::Through,
        };
        let ends = shards::mesh(1).into_iter().next().unwrap();
        let (shards, _run) = Shards::new(ends, Shard::<Object>::new(settings, None));
        let (complaints, _) = mesh::mailbox(1);
        let settings = ServiceSettings { core: 0, core_count: 1, value_bytes_max: 5 << 20, complaints };
        let service = Rc::new(CacheService::new(shards, settings));
        let reflection = Rc::new(Reflection::new(DESCRIPTORS, &[]).unwrap());
        let now = Instant::now();
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let node = Conversation::new(service, Health::new(&[]), reflection, &LINK, 6 << 20, peer, now);
        let mut pair = Self { client: Connection::new(Role::Client, &LINK), node, now };
        pair.turn_node();
        pair.turn_client();
        pair.turn_node();
        pair
    }

    fn ask(&mut self, path: &str, message: Vec<u8>) {
        let head = RequestHead { path, authority: "node:1", timeout: b"5S" };
        let key = self.client.open(&head, ()).unwrap();
        self.client.send_part(key, &frame::prefix(message.len()), message.into(), true);
    }

    /// Lets the node answer everything that was asked.
    fn turn_node(&mut self) {
        let bytes = take(&mut self.client);
        self.node.receive(&bytes, self.now);
        self.node.poll_calls(&mut Context::from_waker(Waker::noop()));
    }

    /// What came back: how many answers, and bytes of messages.
    fn turn_client(&mut self) -> (usize, usize) {
        let bytes = take(self.node.connection());
        self.client.receive(&bytes);
        let (mut answer_count, mut message_bytes) = (0, 0);
        while let Some(event) = self.client.next_event(self.now) {
            match event {
                Event::Data { bytes, .. } => message_bytes += bytes.len(),
                Event::Trailers { key, .. } => {
                    answer_count += 1;
                    self.client.close(key);
                }
                _ => {}
            }
        }
        (answer_count, message_bytes)
    }
}

fn take<T>(connection: &mut Connection<T>) -> Vec<u8> {
    let mut taken = Vec::new();
    while !connection.outbox().is_empty() {
        let mut slices = [IoSlice::new(&[]); 16];
        let count = connection.outbox().fill(&mut slices);
        let before = taken.len();
        slices[..count].iter().for_each(|slice| taken.extend_from_slice(slice));
        connection.outbox().advance(taken.len() - before);
        connection.refill_outbox();
    }
    taken
}

const KEYS: [&str; 4] = ["a", "b", "c", "k"];

fn get(key: &'static str) -> Vec<u8> {
    GetRequest { key: Bytes::from_static(key.as_bytes()), bucket: "default".into() }.encode_to_vec()
}

fn put(key: &'static str, value_bytes: usize) -> Vec<u8> {
    let (key, value) = (Bytes::from_static(key.as_bytes()), vec![7; value_bytes].into());
    PutRequest { key, bucket: "default".into(), value, ..Default::default() }.encode_to_vec()
}

/// Allocations, and bytes of them, of `count` Gets of `key` that arrive together.
fn cost(pair: &mut Pair, key: &'static str, count: usize) -> (usize, usize) {
    (0..count).for_each(|_| pair.ask(CACHE_GET.path, get(key)));
    let bytes = take(&mut pair.client);
    let before = counts();
    pair.node.receive(&bytes, pair.now);
    let Counts { allocations, allocated_bytes, .. } = before.until_now();
    let (answer_count, message_bytes) = pair.turn_client();
    assert_eq!(answer_count, count);
    assert!(message_bytes > count * 100, "all of them hit");
    (allocations, allocated_bytes)
}

#[test]
fn a_small_hit_allocates_nothing_for_itself() {
    let mut pair = Pair::new();
    pair.ask(CACHE_PUT.path, put("k", 100));
    pair.turn_node();
    pair.turn_client();
    cost(&mut pair, "k", 32); // Buffers grow, the head becomes known.
    let (allocations, bytes) = cost(&mut pair, "k", 32);
    println!("32 Gets of 100 bytes: {allocations} allocations, {bytes} bytes");
    assert!(allocations <= 4, "{allocations} allocations for 32 Gets");
}

#[test]
fn a_batch_of_hits_allocates_nothing_for_each_key() {
    let mut pair = Pair::new();
    for key in KEYS {
        pair.ask(CACHE_PUT.path, put(key, 100));
        pair.turn_node();
        pair.turn_client();
    }
    let batch = |key_count: usize| {
        let key = |number: usize| Bytes::from_static(KEYS[number % KEYS.len()].as_bytes());
        BatchGetRequest { bucket: "default".into(), keys: (0..key_count).map(key).collect() }.encode_to_vec()
    };
    let mut cost = |key_count: usize| {
        pair.ask(CACHE_BATCH_GET.path, batch(key_count));
        let bytes = take(&mut pair.client);
        let before = counts();
        pair.node.receive(&bytes, pair.now);
        let allocations = before.until_now().allocations;
        let (answer_count, message_bytes) = pair.turn_client();
        assert_eq!(answer_count, 1);
        assert!(message_bytes > key_count * 100, "all of them hit");
        allocations
    };
    [100, 10, 100].into_iter().for_each(|key_count| _ = cost(key_count)); // Buffers grow, the head becomes known.
    let (few, many) = (cost(10), cost(100));
    println!("a batch of 10 keys: {few} allocations; of 100: {many}");
    assert!(many <= few + 1, "{} allocations for 90 more keys", many - few);
}

#[test]
fn a_large_hit_copies_no_value() {
    let value_bytes = 4 * COPIED_BYTES_MAX;
    let mut pair = Pair::new();
    pair.ask(CACHE_PUT.path, put("k", value_bytes));
    while pair.client.has_backlog(pair.client.keys()[0]) {
        pair.turn_node();
        pair.turn_client();
    }
    pair.turn_node();
    pair.turn_client();
    cost(&mut pair, "k", 4);
    let (_, bytes) = cost(&mut pair, "k", 4);
    println!("4 Gets of {value_bytes} bytes: {bytes} bytes allocated");
    assert!(bytes < value_bytes, "{bytes} bytes were allocated for 4 values of {value_bytes}");
}
