//! A whole node in this process, asked over gRPC on real sockets by our own client.

mod alone;
mod owed;
mod rehome;

use std::{
    future::Future,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use milena_core::{
    config::Config,
    node::{self, Running, StartError},
};
use milena_net::{
    cores::{Cores, CoresConfig},
    grpc::{
        client::{CallError, Channel, ChannelLimits},
        status::{Code, RETRY_PUSHBACK, Status},
    },
    http2::limits::LINK,
    shutdown::Shutdown,
    stream::ReadBuffer,
};
use milena_proto::{
    cache_server::{
        Ack, BatchDeleteRequest, BatchGetRequest, BatchPutRequest, DeleteRequest, DeleteResponse, GetRequest,
        GetResponse, PutRequest, PutResponse, Tier,
    },
    grpc_health_v1::HealthCheckRequest,
    method::{
        CACHE_BATCH_DELETE, CACHE_BATCH_GET, CACHE_BATCH_PUT, CACHE_DELETE, CACHE_GET, CACHE_PUT, HEALTH_CHECK,
        HEALTH_WATCH, Method,
    },
    placement,
};

/// Longer than anything here takes; a call that hangs fails the test.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node on free ports, alone unless told otherwise, with two cores and its own directory.
fn start(dir: &Path, change: impl FnOnce(&mut Config)) -> Running {
    try_to_start(dir, change).unwrap_or_else(|error| panic!("{error}"))
}

fn try_to_start(dir: &Path, change: impl FnOnce(&mut Config)) -> Result<Running, StartError> {
    let text = |text: &str| Some(text.to_owned());
    let mut config = Config {
        listen_addr: text("127.0.0.1:0"),
        metrics_port: text("auto"),
        cores: text("2"),
        pin: text("false"),
        memory: text("64MiB"),
        data_dir: text(dir.to_str().unwrap()),
        ..Config::default()
    };
    change(&mut config);
    let settings = config.settings(2).unwrap_or_else(|error| panic!("{error}"));
    let shutdown = Shutdown::new(node::stage_limits(settings.drain)).unwrap();
    node::start(&settings, &shutdown)
}

/// Runs what `client` makes of a channel to `address`, on a core of its own.
fn with_channel<T, Run>(address: SocketAddr, client: impl FnOnce(Channel) -> Run + Send + 'static) -> T
where
    T: Send + 'static,
    Run: Future<Output = T> + 'static,
{
    let mut client = Some(client);
    let make = move |_| {
        let client = client.take().unwrap();
        move || {
            let limits = ChannelLimits { profile: &LINK, message_bytes_max: 80 << 20 };
            client(Channel::new(&format!("http://{address}"), limits, &ReadBuffer::default()).unwrap())
        }
    };
    let cores = Cores::start(CoresConfig { pin: false, ..CoresConfig::new(1) }, make).unwrap();
    cores.join().pop().unwrap()
}

fn call<Q, A>(address: SocketAddr, method: Method<Q, A>, request: Q) -> Result<A, Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let call = move |channel: Channel| async move { channel.unary(method, &request, Instant::now() + PATIENCE).await };
    with_channel(address, call).map_err(|CallError { status, .. }| status)
}

fn batch_get(address: SocketAddr, keys: &[&str]) -> Result<Vec<GetResponse>, Status> {
    let keys = keys.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect();
    let answer = call(address, CACHE_BATCH_GET, BatchGetRequest { bucket: "default".to_owned(), keys });
    answer.map(|answer| answer.results)
}

fn put_request(key: &[u8], value: &[u8]) -> PutRequest {
    PutRequest {
        key: Bytes::copy_from_slice(key),
        bucket: "default".to_owned(),
        value: Bytes::copy_from_slice(value),
        ..PutRequest::default()
    }
}

fn put(address: SocketAddr, request: PutRequest) -> Result<PutResponse, Status> {
    call(address, CACHE_PUT, request)
}

fn get(address: SocketAddr, key: &[u8]) -> Result<GetResponse, Status> {
    call(address, CACHE_GET, GetRequest { key: Bytes::copy_from_slice(key), bucket: "default".to_owned() })
}

fn delete(address: SocketAddr, request: DeleteRequest) -> Result<DeleteResponse, Status> {
    call(address, CACHE_DELETE, request)
}

fn delete_request(key: &[u8]) -> DeleteRequest {
    DeleteRequest { key: Bytes::copy_from_slice(key), bucket: "default".to_owned(), ..DeleteRequest::default() }
}

/// Status line and body of a page.
fn page(node: &Running, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(node.metrics_addr.unwrap()).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn stop(node: Running) {
    let stopped = node.stop();
    assert_eq!(stopped.exit_code(), 0, "{stopped}");
}

#[test]
fn a_value_is_the_same_on_every_port_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {});
    let ports = [node.addr, node.shard_addrs[0], node.shard_addrs[1]];
    // Enough keys that each core owns some, so that each port passes some on.
    let keys: Vec<Vec<u8>> = (0..8).map(|index| format!("key {index}").into_bytes()).collect();
    for (index, key) in keys.iter().enumerate() {
        let written = put(ports[index % 3], put_request(key, key)).unwrap();
        assert!(written.successful && !written.version.is_empty());
        for port in ports {
            let found = get(port, key).unwrap();
            assert!(found.successful);
            assert_eq!((&*found.value, found.tier(), &found.version), (&**key, Tier::Memory, &written.version));
        }
    }
    stop(node);

    let node = start(dir.path(), |_| {});
    for key in &keys {
        assert_eq!(get(node.addr, key).unwrap().tier(), Tier::S3, "memory does not survive, the store does");
        assert_eq!(get(node.addr, key).unwrap().tier(), Tier::Memory);
    }
    assert!(delete(node.addr, delete_request(&keys[0])).unwrap().successful);
    assert_eq!(get(node.addr, &keys[0]).unwrap(), GetResponse::default());
    stop(node);
}

/// A node with a log on disk, and memory for one entry on each core.
fn start_with_disk(dir: &Path) -> Running {
    start(dir, |config| {
        config.disk = Some("8MiB".to_owned());
        config.lru_size = Some("2".to_owned());
    })
}

/// A figure of the page, added up over the shards.
fn figure(node: &Running, name: &str) -> f64 {
    let (_, body) = page(node, "/metrics");
    let lines = body.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[test]
fn what_memory_has_no_room_for_is_answered_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let node = start_with_disk(dir.path());
    let keys: Vec<Vec<u8>> = (0..20).map(|index| format!("key {index}").into_bytes()).collect();
    for key in &keys {
        put(node.addr, put_request(key, key)).unwrap();
    }
    let mut from_disk = 0;
    for key in &keys {
        let found = get(node.addr, key).unwrap();
        assert_eq!(&*found.value, &**key);
        assert_ne!(found.tier(), Tier::S3);
        from_disk += i32::from(found.tier() == Tier::Disk);
    }
    assert!(from_disk >= 18, "{from_disk}");
    assert_eq!(figure(&node, "milena_cache_hits_total{tier=\"disk\"}"), f64::from(from_disk));
    assert_eq!(figure(&node, "milena_disk_entries"), 20.0);
    assert_eq!(figure(&node, "milena_disk_degraded"), 0.0);

    // A delete and a new value hold on disk too.
    delete(node.addr, delete_request(&keys[0])).unwrap();
    put(node.addr, put_request(&keys[1], b"new")).unwrap();
    for key in &keys[2..] {
        assert!(get(node.addr, key).unwrap().successful);
    }
    assert!(!get(node.addr, &keys[0]).unwrap().successful);
    let found = get(node.addr, &keys[1]).unwrap();
    assert_eq!((&*found.value, found.tier()), (&b"new"[..], Tier::Disk));
    stop(node);
}

#[test]
fn after_a_restart_the_disk_is_asked_first_and_believed_when_the_store_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let node = start_with_disk(dir.path());
    for key in [b"a", b"b", b"c"] {
        put(node.addr, put_request(key, b"old")).unwrap();
    }
    stop(node);

    // Meanwhile somebody else writes, without a disk.
    let other = start(dir.path(), |_| {});
    put(other.addr, put_request(b"b", b"new")).unwrap();
    delete(other.addr, delete_request(b"c")).unwrap();
    stop(other);

    let node = start_with_disk(dir.path());
    assert_eq!(figure(&node, "milena_disk_entries"), 3.0);
    assert_eq!(&*get(node.addr, b"a").unwrap().value, b"old");
    assert_eq!(figure(&node, "milena_revalidated_total"), 1.0);
    // Once confirmed it is believed, also where memory has forgotten it.
    for n in 0..10 {
        put(node.addr, put_request(format!("other {n}").as_bytes(), b"x")).unwrap();
    }
    assert_eq!(get(node.addr, b"a").unwrap().tier(), Tier::Disk);
    assert_eq!(&*get(node.addr, b"b").unwrap().value, b"new");
    assert!(!get(node.addr, b"c").unwrap().successful);
    assert_eq!(figure(&node, "milena_revalidated_total"), 1.0);
    assert_eq!(figure(&node, "milena_disk_entries"), 12.0);
    stop(node);
}

#[test]
fn an_empty_value_is_a_hit_and_an_absent_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {});
    put(node.addr, put_request(b"empty", b"")).unwrap();
    let found = get(node.addr, b"empty").unwrap();
    assert!(found.successful && found.value.is_empty());
    assert!(!get(node.addr, b"absent").unwrap().successful);
    stop(node);
}

#[test]
fn values_up_to_the_limit_go_through_and_one_byte_more_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| config.value_max = Some("1MiB".to_owned()));
    let mut value = vec![7; 1 << 20];
    put(node.addr, put_request(b"large", &value)).unwrap();
    assert_eq!(get(node.addr, b"large").unwrap().value, value);
    value.push(7);
    let refused = put(node.addr, put_request(b"larger", &value)).unwrap_err();
    assert_eq!(refused.code, Code::InvalidArgument);
    assert_eq!(refused.message, "value has 1048577 bytes; at most 1048576 are allowed");
    // Too large to be a legal message at all.
    let refused = put(node.addr, put_request(b"largest", &vec![7; 2 << 20])).unwrap_err();
    assert_eq!(refused.code, Code::ResourceExhausted);
    stop(node);
}

#[test]
fn a_value_with_a_life_tells_what_is_left_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {});
    put(node.addr, PutRequest { ttl_ms: 3_600_000, ..put_request(b"k", b"v") }).unwrap();
    let ttl_ms = get(node.addr, b"k").unwrap().ttl_ms;
    assert!((1..=3_600_000).contains(&ttl_ms), "{ttl_ms}");
    put(node.addr, PutRequest { ttl_ms: 1, ..put_request(b"short", b"v") }).unwrap();
    let end = Instant::now() + PATIENCE;
    while get(node.addr, b"short").unwrap().successful {
        assert!(Instant::now() < end, "it lives for ever");
    }
    stop(node);
}

#[test]
fn what_a_caller_got_wrong_is_told_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {});
    let bucket = |bucket: &str| PutRequest { bucket: bucket.to_owned(), ..put_request(b"k", b"v") };
    for (request, text) in [
        (bucket(""), "bucket has 0 characters; 1 to 63 are allowed"),
        (bucket("a_b"), "bucket has '_' at position 1; letters, digits and '-' are allowed"),
        (put_request(b"", b"v"), "key has 0 bytes; 1 to 1024 are allowed"),
        (put_request(&[b'k'; 1025], b"v"), "key has 1025 bytes; 1 to 1024 are allowed"),
        (PutRequest { ack: 9, ..put_request(b"k", b"v") }, "ack is 9; 0 to 3 are allowed"),
        (
            PutRequest { if_version: "a b".to_owned(), ..put_request(b"k", b"v") },
            "if_version has 3 bytes; 1 to 1024 printable ASCII characters are allowed",
        ),
        (
            PutRequest { if_version: "v".to_owned(), if_absent: true, ..put_request(b"k", b"v") },
            "if_version and if_absent are both set; one of them is allowed",
        ),
    ] {
        let refused = put(node.addr, request).unwrap_err();
        assert_eq!((refused.code, &*refused.message), (Code::InvalidArgument, text));
    }
    let call = |channel: Channel| async move {
        let garbage = Bytes::from_static(b"\x0a\xff\xff");
        let mut codes = Vec::new();
        let batches = [CACHE_BATCH_GET.path, CACHE_BATCH_PUT.path, CACHE_BATCH_DELETE.path];
        for path in [CACHE_GET.path, CACHE_PUT.path, CACHE_DELETE.path].into_iter().chain(batches) {
            codes.push(channel.call(path, garbage.clone(), Instant::now() + PATIENCE).await.unwrap_err().status.code);
        }
        codes
    };
    assert_eq!(with_channel(node.addr, call), [Code::InvalidArgument; 6]);
    stop(node);
}

#[test]
fn batches_are_answered_in_the_order_of_their_entries_on_every_port() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {});
    let keys: Vec<String> = (0..20).map(|index| format!("key {index}")).collect();
    let entries = keys.iter().map(|key| put_request(key.as_bytes(), key.as_bytes())).collect();
    let written = call(node.addr, CACHE_BATCH_PUT, BatchPutRequest { entries }).unwrap().results;
    assert!(written.iter().all(|result| result.code == 0 && result.message.is_empty()), "{written:?}");
    for port in [node.addr, node.shard_addrs[0], node.shard_addrs[1]] {
        let found = batch_get(port, &["key 19", "none", "key 3", "key 19", "key 0"]).unwrap();
        let values: Vec<_> = found.iter().map(|result| (result.successful, &*result.value)).collect();
        let expected: [(bool, &[u8]); 5] =
            [(true, b"key 19"), (false, b""), (true, b"key 3"), (true, b"key 19"), (true, b"key 0")];
        assert_eq!(values, expected);
        assert_eq!(found[2].version, written[3].version);
        assert_eq!((found[2].tier(), found[1].tier()), (Tier::Memory, Tier::Unspecified));
    }
    let request = BatchDeleteRequest { bucket: "default".into(), keys: vec!["key 3".into(), "none".into()] };
    let deleted = call(node.shard_addrs[0], CACHE_BATCH_DELETE, request).unwrap().results;
    assert_eq!(deleted.iter().map(|result| result.code).collect::<Vec<_>>(), [0, 0], "what is not there is no error");
    assert!(!batch_get(node.addr, &["key 3"]).unwrap()[0].successful);

    let (_, metrics) = page(&node, "/metrics");
    for line in [
        "milena_cache_requests_total{op=\"batch_get\"} 4",
        "milena_cache_requests_total{op=\"batch_put\"} 1",
        "milena_cache_batch_entries_total{op=\"batch_get\",code=\"OK\"} 16",
        "milena_cache_hits_total{tier=\"memory\"} 12",
        "milena_cache_misses_total 4",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line} in\n{metrics}");
    }
    stop(node);
}

#[test]
fn each_entry_of_a_batch_of_writes_has_the_status_that_it_would_have_alone() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| config.value_max = Some("1000".to_owned()));
    put(node.addr, put_request(b"there", b"old")).unwrap();
    let entries = vec![
        put_request(b"a", b"1"),
        put_request(b"", b"1"),
        PutRequest { bucket: "no_such".into(), ..put_request(b"b", b"1") },
        put_request(b"large", &[0; 1001]),
        PutRequest { if_absent: true, ..put_request(b"there", b"new") },
        PutRequest { ack: Ack::Disk.into(), ..put_request(b"c", b"1") },
        put_request(b"a", b"2"),
    ];
    let alone: Vec<_> = entries.iter().map(|entry| put(node.addr, entry.clone())).collect();
    let results = call(node.addr, CACHE_BATCH_PUT, BatchPutRequest { entries }).unwrap().results;
    for (result, alone) in results.iter().zip(&alone) {
        match alone {
            Ok(_) => assert_eq!((result.code, &*result.message, result.version.is_empty()), (0, "", false)),
            Err(status) => {
                assert_eq!((Code::from_number(result.code), &result.message[..]), (status.code, &*status.message));
            }
        }
    }
    assert_eq!(results.iter().map(|result| result.code).collect::<Vec<_>>(), [0, 3, 3, 3, 6, 9, 0]);
    assert_eq!(&*get(node.addr, b"a").unwrap().value, b"2", "those of one key are done in their order");
    let request = BatchDeleteRequest { bucket: "default".into(), keys: vec!["".into(), "a".into()] };
    let deleted = call(node.addr, CACHE_BATCH_DELETE, request).unwrap().results;
    assert_eq!(deleted.iter().map(|result| result.code).collect::<Vec<_>>(), [3, 0]);
    assert_eq!(deleted[0].message, "key has 0 bytes; 1 to 1024 are allowed");
    stop(node);
}

#[test]
fn a_batch_of_gets_fails_as_a_whole_and_says_with_which_key() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {});
    assert_eq!(batch_get(node.addr, &[]).unwrap(), []);
    for (keys, text) in [
        (vec!["k", "k", ""], "keys[2]: key has 0 bytes; 1 to 1024 are allowed"),
        (vec!["k"; 1_001], "the batch has 1001 entries; at most 1000 are allowed"),
    ] {
        let refused = batch_get(node.addr, &keys).unwrap_err();
        assert_eq!((refused.code, &*refused.message), (Code::InvalidArgument, text));
    }
    assert_eq!(batch_get(node.addr, &["k"; 1_000]).unwrap().len(), 1_000);
    stop(node);
}

#[test]
fn an_answer_to_a_batch_has_a_limit_and_below_it_large_values_come_whole() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| config.memory = Some("1GiB".to_owned()));
    let value: Vec<u8> = (0..5 << 20).map(|index: u32| (index % 251) as u8).collect();
    let keys = ["a", "b", "c", "d"];
    for key in keys {
        put(node.addr, put_request(key.as_bytes(), &value)).unwrap();
    }
    let found = batch_get(node.addr, &keys[..3]).unwrap();
    assert!(found.iter().all(|result| result.successful && *result.value == *value));
    let refused = batch_get(node.addr, &keys).unwrap_err();
    let text = "the answer would have more than 16777216 bytes; ask for fewer keys at a time";
    assert_eq!((refused.code, &*refused.message), (Code::ResourceExhausted, text));
    stop(node);
}

#[test]
fn conditions_hold_or_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {});
    let first = put(node.addr, PutRequest { if_absent: true, ..put_request(b"k", b"1") }).unwrap().version;
    let again = put(node.addr, PutRequest { if_absent: true, ..put_request(b"k", b"2") }).unwrap_err();
    assert_eq!(again.code, Code::AlreadyExists);
    let second = put(node.addr, PutRequest { if_version: first.clone(), ..put_request(b"k", b"2") }).unwrap().version;
    let late = put(node.addr, PutRequest { if_version: first.clone(), ..put_request(b"k", b"3") }).unwrap_err();
    assert_eq!(late.code, Code::Aborted);
    assert_eq!(
        delete(node.addr, DeleteRequest { if_version: first, ..delete_request(b"k") }).unwrap_err().code,
        Code::Aborted
    );
    assert_eq!(get(node.addr, b"k").unwrap().value, &b"2"[..]);
    delete(node.addr, DeleteRequest { if_version: second, ..delete_request(b"k") }).unwrap();
    stop(node);
}

#[test]
fn a_level_of_acknowledgement_that_cannot_be_had_is_refused_and_nothing_is_written() {
    for (store, possible, impossible) in [
        (None, [Ack::Default, Ack::S3], [Ack::Disk, Ack::Memory]),
        (Some("none"), [Ack::Default, Ack::Memory], [Ack::S3, Ack::Disk]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let node = start(dir.path(), |config| config.store = store.map(str::to_owned));
        for ack in impossible {
            let refused = put(node.addr, PutRequest { ack: ack.into(), ..put_request(b"k", b"v") }).unwrap_err();
            assert_eq!(refused.code, Code::FailedPrecondition, "{refused}");
            assert!(
                refused.message.starts_with(&format!("ack is {}, and this node has ", ack.as_str_name())),
                "{refused}"
            );
            assert!(!get(node.addr, b"k").unwrap().successful);
        }
        for ack in possible {
            put(node.addr, PutRequest { ack: ack.into(), ..put_request(b"k", b"v") }).unwrap();
        }
        assert!(get(node.addr, b"k").unwrap().successful);
        stop(node);
    }
}

#[test]
fn a_node_starts_and_serves_while_its_store_is_away() {
    // Nobody listens there.
    let away = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| {
        config.s3_bucket = Some("kv-prod".to_owned());
        config.s3.s3_endpoint = Some(format!("http://{away}"));
        config.s3.aws_access_key_id = Some("id".to_owned());
        config.s3.aws_secret_access_key = Some("secret".parse().unwrap());
    });
    assert_eq!(page(&node, "/ready").0, "HTTP/1.1 200 OK");
    let failed = get(node.addr, b"k").unwrap_err();
    assert_eq!(failed.code, Code::Unavailable, "{failed}");
    assert_eq!(put(node.addr, put_request(b"k", b"v")).unwrap_err().code, Code::Unavailable);
    let health = |channel: Channel| async move {
        channel.unary(HEALTH_CHECK, &HealthCheckRequest::default(), Instant::now() + PATIENCE).await
    };
    assert_eq!(with_channel(node.addr, health).unwrap().status, 1, "SERVING");
    stop(node);
}

#[test]
fn credentials_that_are_missing_are_a_matter_of_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| config.s3_bucket = Some("kv-prod".to_owned()));
    let refused = get(node.addr, b"k").unwrap_err();
    assert_eq!(refused.code, Code::FailedPrecondition, "{refused}");
    stop(node);
}

#[test]
fn the_page_counts_what_was_asked() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {});
    put(node.addr, put_request(b"k", b"v")).unwrap();
    for _ in 0..3 {
        get(node.addr, b"k").unwrap();
    }
    get(node.addr, b"absent").unwrap();
    put(node.addr, put_request(b"", b"v")).unwrap_err();
    assert_eq!(page(&node, "/health").0, "HTTP/1.1 200 OK");
    let (_, metrics) = page(&node, "/metrics");
    for line in [
        "milena_cache_requests_total{op=\"get\"} 4",
        "milena_cache_requests_total{op=\"put\"} 2",
        "milena_cache_hits_total{tier=\"memory\"} 3",
        "milena_cache_misses_total 1",
        "milena_cache_errors_total{op=\"put\",code=\"INVALID_ARGUMENT\"} 1",
        "milena_operation_duration_seconds_count{op=\"get\",tier=\"memory\"} 3",
        "milena_cores_silent 0.0",
    ] {
        assert!(metrics.lines().any(|other| other == line), "no {line} in\n{metrics}");
    }
    stop(node);
}

#[test]
fn a_node_whose_router_is_away_serves_and_says_that_it_is_not_ready() {
    let away = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| config.router_addr = Some(away.to_string()));
    put(node.addr, put_request(b"k", b"v")).unwrap();
    assert!(get(node.addr, b"k").unwrap().successful);
    let (status, reason) = page(&node, "/ready");
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(reason, format!("not joined yet: no answer from http://{away}\n"));
    stop(node);
}

#[test]
fn ports_and_directories_in_use_are_refused_readably() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {});
    let refused = |change: &dyn Fn(&mut Config)| {
        let mut config = Config {
            listen_addr: Some("127.0.0.1:0".to_owned()),
            metrics_port: Some("0".to_owned()),
            data_dir: Some(dir.path().join("second").to_str().unwrap().to_owned()),
            ..Config::default()
        };
        change(&mut config);
        let settings = config.settings(1).unwrap();
        let shutdown = Shutdown::new(node::stage_limits(settings.drain)).unwrap();
        node::start(&settings, &shutdown).map(|_| ()).unwrap_err().to_string()
    };
    let in_use = refused(&|config| config.listen_addr = Some(node.addr.to_string()));
    assert!(in_use.starts_with(&format!("cannot listen on {}: the port is in use", node.addr)), "{in_use}");
    let taken_page = node.metrics_addr.unwrap();
    let in_use = refused(&|config| config.metrics_port = Some(taken_page.port().to_string()));
    assert!(in_use.contains(&format!("cannot listen on {taken_page}: the port is in use")), "{in_use}");
    let in_use = refused(&|config| config.data_dir = Some(dir.path().to_str().unwrap().to_owned()));
    assert!(in_use.contains("another process holds LOCK"), "{in_use}");
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let not_writable = refused(&|config| config.store = Some(format!("file://{}/store", file.display())));
    assert!(not_writable.contains(file.to_str().unwrap()), "{not_writable}");
    stop(node);
}

#[test]
fn a_stop_waits_for_writes_under_way_and_refuses_new_connections() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {});
    let address = node.addr;
    let writer = thread::spawn(move || {
        let write = |channel: Channel| async move {
            let mut accepted = 0_u32;
            loop {
                let request = put_request(format!("k{accepted}").as_bytes(), b"v");
                match channel.unary(CACHE_PUT, &request, Instant::now() + PATIENCE).await {
                    Ok(_) => accepted += 1,
                    Err(error) => return (accepted, error.status.code),
                }
            }
        };
        with_channel(address, write)
    });
    while !get(address, b"k10").unwrap().successful {}
    stop(node);
    let (accepted, code) = writer.join().unwrap();
    assert_eq!(code, Code::Unavailable);
    assert!(TcpStream::connect(address).is_err());

    let node = start(dir.path(), |_| {});
    for index in 0..accepted {
        assert!(get(node.addr, format!("k{index}").as_bytes()).unwrap().successful, "k{index} was accepted");
    }
    stop(node);
}

#[test]
fn a_stop_does_not_wait_for_those_who_watch() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| config.drain_seconds = Some("600".to_owned()));
    let (tell, watching) = mpsc::channel();
    let address = node.addr;
    let watcher = thread::spawn(move || {
        let watch = move |channel: Channel| async move {
            let deadline = Instant::now() + Duration::from_secs(600);
            let watch = channel.call(HEALTH_WATCH.path, Bytes::new(), deadline);
            // On one connection, what was asked later is answered later.
            channel.unary(HEALTH_CHECK, &HealthCheckRequest::default(), deadline).await.unwrap();
            tell.send(()).unwrap();
            watch.await.map(drop)
        };
        with_channel(address, watch)
    });
    watching.recv().unwrap();
    stop(node);
    assert!(watcher.join().unwrap().is_err(), "a watch ends with a status");
}

#[test]
fn too_many_requests_come_with_a_time_to_wait() {
    // One thread that writes and a queue behind it: writes of one key wait for each other, up to a limit with a name.
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| config.s3_write_threads = Some("1".to_owned()));
    let call = |channel: Channel| async move {
        let request = put_request(b"one key", b"v");
        let calls = (0..400).map(|_| channel.unary(CACHE_PUT, &request, Instant::now() + PATIENCE));
        futures::future::join_all(calls).await
    };
    let key = placement::key_hash(b"default", b"one key");
    let owner = node.shard_addrs[placement::core(key, 2)];
    let answers = with_channel(owner, call);
    let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty(), "400 writes of one key at once are beyond its limit");
    for CallError { status, .. } in refused {
        assert_eq!(status.code, Code::ResourceExhausted, "{status}");
        assert!(status.trailer(&RETRY_PUSHBACK).is_some());
    }
    stop(node);
}
