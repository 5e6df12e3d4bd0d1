//! A whole router, asked over the wire, with nodes that say what a test tells them to.

mod batches;

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::{Future, pending},
    net::SocketAddr,
    path::Path,
    pin::Pin,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use milena_net::{
    cores::{Cores, CoresConfig},
    grpc::{
        client::{CallError, Channel, ChannelLimits},
        health::Health,
        reflection::Reflection,
        server::{Effect, Message, Reply, Request, Server, ServerLimits, Service},
        status::{Code, RETRY_PUSHBACK, Status},
    },
    http2::limits::LINK,
    stream::ReadBuffer,
    task,
    tcp::{ListenOptions, listen},
};
use milena_proto::{
    cache_server as cache,
    generated::DESCRIPTORS,
    key::KeyRef,
    method::{Method, ROUTER_DELETE, ROUTER_GET, ROUTER_JOIN, ROUTER_LEAVE, ROUTER_PUT, ROUTER_TOPOLOGY},
    placement, router_server as wire,
};
use milena_router::{
    config::{Config, Settings},
    server::{self, Running},
};
use prost::Message as _;

const PATIENCE: Duration = Duration::from_secs(20);
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// What a caller is told when nodes go on refusing a key.
const UNSETTLED: &str = "the nodes do not agree yet who owns the key; nothing was done";

fn settings(dir: &Path, change: impl FnOnce(&mut Config)) -> Settings {
    let mut config = Config {
        listen_addr: Some("127.0.0.1:0".into()),
        metrics_port: Some("auto".into()),
        state: Some(format!("file://{}", dir.display())),
        cores: Some("1".into()),
        pin: Some("false".into()),
        ..Config::default()
    };
    change(&mut config);
    config.settings(1).unwrap()
}

/// Runs `body` on a core against a router; both have ended when this returns.
fn with_router<F: Future<Output = ()>>(
    change: impl FnOnce(&mut Config),
    body: impl FnOnce(Client) -> F + Send + 'static,
) {
    let dir = tempfile::tempdir().unwrap();
    let router = server::start(&settings(dir.path(), change)).unwrap();
    on_a_core(router.address(), body);
    let (outcome, _) = router.stop();
    assert_eq!(outcome.exit_code(), 0, "{outcome}");
}

/// The same with a node of one core that has joined.
fn with_node<F: Future<Output = ()>>(
    change: impl FnOnce(&mut Config),
    body: impl FnOnce(Client, ScriptedNode) -> F + Send + 'static,
) {
    with_router(change, |client| async move {
        let node = ScriptedNode::start("n", 1);
        client.join(&node).await;
        body(client, node).await;
    });
}

fn on_a_core<F: Future<Output = ()>>(router: SocketAddr, body: impl FnOnce(Client) -> F + Send + 'static) {
    let mut body = Some(body);
    let config = CoresConfig { pin: false, ..CoresConfig::new(1) };
    let cores = Cores::start(config, |_| {
        let body = body.take().expect("one core");
        move || async move { body(Client::new(router)).await }
    });
    let _: Vec<()> = cores.unwrap().join();
}

/// One that asks a router.
struct Client {
    channel: Channel,
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        let limits = ChannelLimits { profile: &LINK, message_bytes_max: MESSAGE_BYTES_MAX };
        let channel = Channel::new(&format!("http://{address}"), limits, &ReadBuffer::default()).unwrap();
        Self { channel }
    }

    async fn call<Q: prost::Message, A: prost::Message + Default>(
        &self,
        method: Method<Q, A>,
        request: &Q,
    ) -> Result<A, Status> {
        self.within(PATIENCE, method, request).await
    }

    async fn within<Q: prost::Message, A: prost::Message + Default>(
        &self,
        time: Duration,
        method: Method<Q, A>,
        request: &Q,
    ) -> Result<A, Status> {
        let outcome = self.channel.unary(method, request, Instant::now() + time).await;
        outcome.map_err(|CallError { status, .. }| status)
    }

    async fn get(&self, key: &str) -> Result<wire::GetResponse, Status> {
        self.call(ROUTER_GET, &wire::GetRequest { key: Bytes::copy_from_slice(key.as_bytes()), bucket: "b".into() })
            .await
    }

    async fn put(&self, key: &str, value: &[u8]) -> Result<wire::PutResponse, Status> {
        let request = wire::PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            bucket: "b".into(),
            value: Bytes::copy_from_slice(value),
            ..Default::default()
        };
        self.call(ROUTER_PUT, &request).await
    }

    async fn join(&self, node: &ScriptedNode) -> wire::JoinResponse {
        self.call(ROUTER_JOIN, &node.join_request()).await.unwrap()
    }

    async fn topology(&self) -> wire::TopologyResponse {
        self.call(ROUTER_TOPOLOGY, &wire::TopologyRequest {}).await.unwrap()
    }
}

/// A node that hears what it is asked and says what it was told to; a plain success where it was told nothing.
struct ScriptedNode {
    id: String,
    addresses: Vec<SocketAddr>,
    heard: Rc<RefCell<Vec<Heard>>>,
    script: Rc<RefCell<VecDeque<Say>>>,
}

struct Heard {
    core: usize,
    path: String,
    message: Bytes,
    time_left: Duration,
}

enum Say {
    Status(Status),
    Message(Bytes),
    /// Never anything.
    Nothing,
    /// The connection ends without an answer.
    HangUp,
}

struct NodeCore {
    core: usize,
    heard: Rc<RefCell<Vec<Heard>>>,
    script: Rc<RefCell<VecDeque<Say>>>,
    server: Rc<RefCell<Option<Rc<Server<NodeCore>>>>>,
}

impl Service for NodeCore {
    type Call = Pin<Box<dyn Future<Output = Reply>>>;

    fn method(&self, _: &str) -> Option<Effect> {
        Some(Effect::Reads)
    }

    fn call(&self, request: Request) -> Self::Call {
        let time_left = request.deadline.expect("the router says").saturating_duration_since(Instant::now());
        let says = self.script.borrow_mut().pop_front();
        let success = batches::answer(&request.path, &request.message).unwrap_or_else(answer);
        let heard = Heard { core: self.core, path: request.path.to_string(), message: request.message, time_left };
        self.heard.borrow_mut().push(heard);
        let server = self.server.borrow().clone().expect("it serves");
        Box::pin(async move {
            match says {
                None => Reply::Message(Message::from(success)),
                Some(Say::Message(message)) => Reply::Message(Message::from(message)),
                Some(Say::Status(status)) => Reply::Failed(status),
                Some(Say::Nothing) => pending().await,
                Some(Say::HangUp) => {
                    server.end();
                    pending().await
                }
            }
        })
    }
}

/// What a node answers to everything that is no batch: a hit, with a field that no router knows.
fn answer() -> Bytes {
    let mut bytes =
        cache::GetResponse { successful: true, value: Bytes::from_static(b"v"), ..Default::default() }.encode_to_vec();
    bytes.extend_from_slice(b"\xfa\x01\x03new"); // Field 31.
    bytes.into()
}

impl ScriptedNode {
    /// A node with `cores` addresses; it serves on this core until the test ends.
    fn start(id: &str, cores: usize) -> Self {
        let (heard, script) = (Rc::<RefCell<Vec<Heard>>>::default(), Rc::<RefCell<VecDeque<Say>>>::default());
        let mut addresses = Vec::new();
        for core in 0..cores {
            let mut listener = listen("127.0.0.1:0".parse().unwrap(), ListenOptions::default()).unwrap();
            addresses.push(listener.local_addr());
            let (heard, script) = (heard.clone(), script.clone());
            task::spawn(async move {
                // A server for each connection, so that one can be ended alone.
                while let Ok((stream, peer)) = listener.accept().await {
                    let own = Rc::new(RefCell::new(None));
                    let service = NodeCore { core, heard: heard.clone(), script: script.clone(), server: own.clone() };
                    let limits = ServerLimits { connections_max: 1, message_bytes_max: MESSAGE_BYTES_MAX };
                    let reflection = Rc::new(Reflection::new(DESCRIPTORS, &["cache_server.Cache"]).unwrap());
                    let server = Server::new(Rc::new(service), Health::new(&[]), reflection, &LINK, limits);
                    *own.borrow_mut() = Some(server.clone());
                    task::spawn(server.serve(stream, peer.ip()));
                }
            });
        }
        Self { id: id.to_owned(), addresses, heard, script }
    }

    fn join_request(&self) -> wire::JoinRequest {
        wire::JoinRequest {
            address: format!("http://{}", self.addresses[0]),
            node_id: self.id.clone(),
            shard_addresses: self.addresses.iter().map(|address| format!("http://{address}")).collect(),
            incarnation: 1,
            ..Default::default()
        }
    }

    fn say(&self, what: Say) {
        self.script.borrow_mut().push_back(what);
    }

    fn heard_count(&self) -> usize {
        self.heard.borrow().len()
    }
}

#[test]
fn requests_reach_the_core_that_owns_their_key_with_their_bytes_untouched() {
    with_router(
        |_| {},
        |client| async move {
            let nodes = [ScriptedNode::start("n0", 3), ScriptedNode::start("n1", 3)];
            for node in &nodes {
                client.join(node).await;
            }
            let calls = [
                (ROUTER_GET.path, "/cache_server.Cache/Get"),
                (ROUTER_PUT.path, "/cache_server.Cache/Put"),
                (ROUTER_DELETE.path, "/cache_server.Cache/Delete"),
            ];
            for number in 0..60_u32 {
                let (path, node_path) = calls[number as usize % calls.len()];
                let name = format!("key-{number}");
                let mut message = Vec::new();
                // Fields in an odd order, one that nobody knows, and the key twice: not what an encoder would write.
                message.extend_from_slice(b"\x0a\x03old\xfa\x01\x03new\x12\x01b\x0a");
                message.push(u8::try_from(name.len()).unwrap());
                message.extend_from_slice(name.as_bytes());
                let message = Bytes::from(message);
                let answered = client.channel.call(path, message.clone(), Instant::now() + PATIENCE).await.unwrap();
                assert_eq!(answered, answer(), "the node's own bytes");

                let hash = KeyRef::parse(b"b", name.as_bytes()).unwrap().hash();
                let owner = placement::slot(hash, &[placement::WEIGHT_FULL; 2]).unwrap();
                let heard = nodes[owner].heard.borrow_mut().pop().expect("the owner was asked");
                assert_eq!((heard.path.as_str(), heard.message), (node_path, message));
                assert_eq!(heard.core, placement::core(hash, 3));
            }
            assert!(nodes.iter().all(|node| node.heard_count() == 0), "and nobody else");
        },
    );
}

#[test]
fn without_a_node_every_request_is_unavailable() {
    with_router(
        |_| {},
        |client| async move {
            assert_eq!(client.get("k").await.unwrap_err().code, Code::Unavailable);
            assert_eq!(client.put("k", b"v").await.unwrap_err().code, Code::Unavailable);
        },
    );
}

#[test]
fn a_nodes_status_comes_back_with_its_text_and_trailers() {
    with_node(
        |_| {},
        |client, node| async move {
            node.say(Say::Status(Status::resource_exhausted("the queue ü is full", 70)));
            let status = client.put("k", b"v").await.unwrap_err();
            assert_eq!((status.code, &*status.message), (Code::ResourceExhausted, "the queue ü is full"));
            assert_eq!(status.trailer(&RETRY_PUSHBACK).unwrap(), "70");
            assert_eq!(node.heard_count(), 1, "an answer is an answer");
        },
    );
}

#[test]
fn a_node_that_does_not_own_the_key_is_asked_once_more_by_the_same_table_and_only_once() {
    with_node(
        |_| {},
        |client, node| async move {
            let not_owner = || Say::Status(Status::not_owner(9));
            node.say(not_owner());
            client.put("k", b"v").await.unwrap();
            assert_eq!(node.heard_count(), 2);

            node.say(not_owner());
            node.say(not_owner());
            let status = client.put("k", b"v").await.unwrap_err();
            assert_eq!((status.code, &*status.message, status.owner_epoch()), (Code::Unavailable, UNSETTLED, None));
            assert_eq!(node.heard_count(), 4);
        },
    );
}

#[test]
fn a_node_that_knows_a_newer_table_is_believed_and_that_tables_owner_is_asked() {
    with_router(
        |_| {},
        |client| async move {
            let (first, second) = (ScriptedNode::start("n0", 1), ScriptedNode::start("n1", 1));
            client.join(&first).await;
            let is_seconds = |name: &String| {
                let hash = placement::key_hash(b"b", name.as_bytes());
                placement::slot(hash, &[placement::WEIGHT_FULL; 2]) == Some(1)
            };
            let key = (0..100).map(|number| format!("key-{number}")).find(is_seconds).unwrap();
            first.say(Say::Status(Status::not_owner(2)));
            let joins_meanwhile = async {
                while first.heard_count() == 0 {
                    task::sleep(Duration::from_millis(1)).await;
                }
                client.join(&second).await;
            };
            let (put, ()) = futures::future::join(client.put(&key, b"v"), joins_meanwhile).await;
            put.unwrap();
            assert_eq!((first.heard_count(), second.heard_count()), (1, 1));
        },
    );
}

#[test]
fn calls_that_are_refused_because_the_table_changed_are_all_made_again_however_many_there_are() {
    const CALLS: usize = 50; // A fifth of them may be retried for other reasons.
    with_node(
        |_| {},
        |client, node| async move {
            (0..CALLS).for_each(|_| node.say(Say::Status(Status::not_owner(1))));
            let puts = (0..CALLS).map(|_| client.put("k", b"v"));
            futures::future::try_join_all(puts).await.unwrap();
            assert_eq!(node.heard_count(), 2 * CALLS);
        },
    );
}

#[test]
fn a_call_that_each_of_several_tables_sends_to_another_node_arrives_at_the_last() {
    with_router(
        |_| {},
        |client| async move {
            // One client is enough to make the table change as often as it is refused.
            let nodes: Vec<_> = (0..4).map(|number| ScriptedNode::start(&format!("n{number}"), 1)).collect();
            client.join(&nodes[0]).await;
            let refuse = |epoch| nodes.iter().for_each(|node| node.say(Say::Status(Status::not_owner(epoch))));
            refuse(2);
            let heard = || nodes.iter().map(ScriptedNode::heard_count).sum::<usize>();
            let changes = async {
                for (count, node) in (1..).zip(&nodes[1..]) {
                    while heard() < count {
                        task::sleep(Duration::from_millis(1)).await;
                    }
                    nodes.iter().for_each(|node| node.script.borrow_mut().clear());
                    if count < 3 {
                        refuse(count as u64 + 2);
                    }
                    client.join(node).await;
                }
            };
            let (put, ()) = futures::future::join(client.put("k", b"v"), changes).await;
            put.unwrap();
            assert_eq!(heard(), 4, "once by each table");
        },
    );
}

#[test]
fn a_write_that_may_have_happened_is_not_sent_again_and_a_read_is() {
    with_node(
        |_| {},
        |client, node| async move {
            node.say(Say::HangUp);
            let status = client.put("k", b"v").await.unwrap_err();
            assert_eq!(status.code, Code::Unavailable);
            assert!(status.message.starts_with("outcome unknown: "), "{status}");
            assert_eq!(node.heard_count(), 1);
        },
    );
    with_node(
        |_| {},
        |client, node| async move {
            client.get("k").await.unwrap();
            node.say(Say::HangUp);
            assert!(client.get("k").await.unwrap().successful, "by the second connection");
            assert_eq!(node.heard_count(), 3);

            client.get("k").await.unwrap();
            node.say(Say::HangUp);
            node.say(Say::HangUp);
            assert_eq!(client.get("k").await.unwrap_err().code, Code::Unavailable);
            assert!(node.heard_count() <= 6, "twice and no more");
        },
    );
}

#[test]
fn a_node_that_is_not_there_is_unavailable_and_its_breaker_opens() {
    with_router(
        |_| {},
        |client| async move {
            let free = listen("127.0.0.1:0".parse().unwrap(), ListenOptions::default()).unwrap().local_addr();
            let nodes: Vec<ScriptedNode> = (0..2).map(|index| ScriptedNode::start(&format!("n{index}"), 1)).collect();
            for node in &nodes {
                client.join(node).await;
            }
            let pinned = wire::JoinRequest { address: format!("http://{free}"), ..Default::default() };
            let joined = client.call(ROUTER_JOIN, &pinned).await.unwrap();
            assert_eq!((joined.lease_ms, joined.epoch), (0, 3));

            let gone = (0..).map(|number| format!("k{number}")).find(|name| {
                let hash = KeyRef::parse(b"b", name.as_bytes()).unwrap().hash();
                placement::slot(hash, &[placement::WEIGHT_FULL; 3]) == Some(2)
            });
            let gone = gone.unwrap();
            let mut last = String::new();
            for _ in 0..6 {
                let status = client.put(&gone, b"v").await.unwrap_err();
                assert_eq!(status.code, Code::Unavailable, "{status}");
                last = status.message.into_owned();
            }
            assert!(last.contains("does not answer; it is tried again in the background"), "{last}");
        },
    );
}

#[test]
fn the_time_that_is_left_is_passed_on_and_holds() {
    with_node(
        |_| {},
        |client, node| async move {
            client.get("k").await.unwrap();
            assert!(node.heard.borrow()[0].time_left <= PATIENCE);

            node.say(Say::Nothing);
            let request = wire::GetRequest { key: Bytes::from_static(b"k"), bucket: "b".into() };
            let status = client.within(Duration::from_millis(200), ROUTER_GET, &request).await.unwrap_err();
            assert_eq!(status.code, Code::DeadlineExceeded);
            assert!(node.heard.borrow()[1].time_left <= Duration::from_millis(200));
        },
    );
}

#[test]
fn what_breaks_a_limit_never_reaches_a_node() {
    with_node(
        |config| config.value_max = Some("1KiB".into()),
        |client, node| async move {
            let status = client.put("k", &[0; 1025]).await.unwrap_err();
            assert_eq!(
                (status.code, &*status.message),
                (Code::InvalidArgument, "value has 1025 bytes; at most 1024 are allowed")
            );
            let status = client.get(&"k".repeat(1025)).await.unwrap_err();
            assert_eq!(
                (status.code, &*status.message),
                (Code::InvalidArgument, "key has 1025 bytes; 1 to 1024 are allowed")
            );
            let status = client.put("k", &[0; 100_000]).await.unwrap_err();
            assert_eq!(status.code, Code::ResourceExhausted, "no legal message is that large");
            let garbage =
                client.channel.call(ROUTER_GET.path, Bytes::from_static(b"\xff"), Instant::now() + PATIENCE).await;
            assert_eq!(garbage.unwrap_err().status.code, Code::InvalidArgument);
            assert_eq!(node.heard_count(), 0);
            client.put("k", &[0; 1024]).await.unwrap();
        },
    );
}

#[test]
fn joins_that_make_no_sense_or_come_in_the_way_of_another_are_refused() {
    with_router(
        |_| {},
        |client| async move {
            let refuse = async |change: fn(&mut wire::JoinRequest)| {
                let mut join = wire::JoinRequest {
                    address: "http://127.0.0.1:1".into(),
                    node_id: "a".into(),
                    incarnation: 2,
                    ..Default::default()
                };
                change(&mut join);
                client.call(ROUTER_JOIN, &join).await.map_err(|status| status.code)
            };
            assert_eq!(refuse(|join| join.address = "127.0.0.1:1".into()).await, Err(Code::InvalidArgument));
            assert_eq!(refuse(|join| join.node_id = "a\n".into()).await, Err(Code::InvalidArgument));
            let joined = refuse(|_| {}).await.unwrap();
            assert_eq!((joined.successful, joined.epoch, joined.lease_ms), (true, 1, 5000));
            assert_eq!(refuse(|join| join.node_id = "b".into()).await, Err(Code::AlreadyExists));
            assert_eq!(refuse(|join| join.address = "http://127.0.0.1:2".into()).await, Err(Code::AlreadyExists));
            assert_eq!(refuse(|join| join.incarnation = 1).await, Err(Code::FailedPrecondition));

            let leave = |node_id: &str| wire::LeaveRequest { node_id: node_id.into(), ..Default::default() };
            assert!(client.call(ROUTER_LEAVE, &leave("a")).await.unwrap().successful);
            assert!(!client.call(ROUTER_LEAVE, &leave("a")).await.unwrap().successful);
            assert_eq!(client.call(ROUTER_LEAVE, &leave("")).await.unwrap_err().code, Code::InvalidArgument);
            assert_eq!(client.topology().await, wire::TopologyResponse { epoch: 2, slots: vec![] });
        },
    );
}

#[test]
fn beyond_the_rate_limit_requests_are_told_when_to_come_back_and_members_are_not_turned_away() {
    with_node(
        |config| config.rate_limit = Some("5".into()),
        |client, node| async move {
            let mut refused = None;
            for _ in 0..200 {
                refused = refused.or(client.get("k").await.err());
            }
            let refused = refused.expect("200 at once are more than 5 a second");
            assert_eq!(refused.code, Code::ResourceExhausted);
            let pushback: u64 = refused.trailer(&RETRY_PUSHBACK).unwrap().to_str().unwrap().parse().unwrap();
            assert!((1..=1000).contains(&pushback), "{pushback}");
            client.join(&node).await;
            assert_eq!(client.topology().await.slots.len(), 1);
        },
    );
}

#[test]
fn a_restart_keeps_the_table_and_a_second_router_on_the_same_state_deposes_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), |_| {});
    let join = |node: u16| wire::JoinRequest {
        address: format!("http://127.0.0.1:{node}"),
        node_id: format!("n{node}"),
        ..Default::default()
    };
    let first = server::start(&settings).unwrap();
    on_a_core(first.address(), move |client| async move {
        client.call(ROUTER_JOIN, &join(1)).await.unwrap();
        client.call(ROUTER_JOIN, &join(2)).await.unwrap();
    });
    assert_eq!(first.stop().0.exit_code(), 0);

    let second = server::start(&settings).unwrap();
    on_a_core(second.address(), move |client| async move {
        let topology = client.topology().await;
        let ids: Vec<&str> = topology.slots.iter().map(|slot| slot.node_id.as_str()).collect();
        assert_eq!((topology.epoch, ids), (2, vec!["n1", "n2"]));
        assert!(topology.slots.iter().all(|slot| slot.state() == wire::SlotState::Live));
    });

    let third = server::start(&settings).unwrap();
    on_a_core(second.address(), move |client| async move {
        client.call(ROUTER_JOIN, &join(2)).await.expect("a renewal changes nothing, so it is not noticed yet");
        for _ in 0..2 {
            let status = client.call(ROUTER_JOIN, &join(3)).await.unwrap_err();
            assert_eq!(status.code, Code::Unavailable);
            assert!(status.message.contains("another router writes the same state"), "{status}");
        }
        assert_eq!(client.topology().await.epoch, 2);
    });
    on_a_core(third.address(), move |client| async move {
        assert_eq!(client.call(ROUTER_JOIN, &join(3)).await.unwrap().epoch, 3);
    });
    for router in [second, third] {
        assert_eq!(router.stop().0.exit_code(), 0);
    }
}

#[test]
fn a_state_that_cannot_be_read_or_kept_stops_the_start_with_a_readable_line() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), |_| {});
    let stop = |router: Running| assert_eq!(router.stop().0.exit_code(), 0);
    stop(server::start(&settings).unwrap());
    let documents = dir.path().join(".documents");
    let document = std::fs::read_dir(&documents).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&document).unwrap();
    std::fs::write(&document, &whole[..whole.len() - 1]).unwrap();
    let error = server::start(&settings).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().starts_with(&format!("--state file://{}: ", dir.path().display())), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);

    std::fs::write(&document, whole).unwrap();
    stop(server::start(&settings).unwrap());
}

#[test]
fn every_core_learns_of_a_change_and_a_stop_ends_what_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), |config| config.cores = Some("3".into()));
    let router = server::start(&settings).unwrap();
    let address = router.address();
    on_a_core(address, move |client| async move {
        let node = ScriptedNode::start("n", 1);
        client.join(&node).await;
        // Each connection meets one core; thirty meet all of them, as good as certainly.
        for _ in 0..30 {
            let other = Client::new(address);
            while other.topology().await.epoch < 1 {
                task::sleep(Duration::from_millis(1)).await;
            }
            other.get("k").await.unwrap();
        }
    });
    let (outcome, stats) = router.stop();
    assert_eq!(outcome.exit_code(), 0, "{outcome}");
    assert!(stats.request_count() >= 61);
}
