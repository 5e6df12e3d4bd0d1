//! Batches: who is asked for which entries, and how the answers come together.

use std::time::{Duration, Instant};

use bytes::Bytes;
use milena_net::{
    grpc::{
        client::CallError,
        status::{Code, RETRY_PUSHBACK, Status},
    },
    task,
};
use milena_proto::{
    cache_server as cache,
    method::{Method, ROUTER_BATCH_DELETE, ROUTER_BATCH_GET, ROUTER_BATCH_PUT},
    placement, router_server as wire,
};
use prost::Message as _;

use super::{Client, PATIENCE, Say, ScriptedNode, UNSETTLED, with_node, with_router};

const LARGE_BYTES: usize = 1 << 20;

/// What a node answers to a batch: the name of each key, as its value or its version; a miss for `none…`, and many bytes for
/// `large…`.
pub(crate) fn answer(path: &str, message: &[u8]) -> Option<Bytes> {
    let text = |key: &Bytes| String::from_utf8(key.to_vec()).unwrap();
    let result = |key: &Bytes| cache::PutResult { version: text(key), ..Default::default() };
    let bytes = match path.strip_prefix("/cache_server.Cache/Batch")? {
        "Get" => {
            let value = Bytes::from(vec![7; LARGE_BYTES]);
            let large = cache::GetResponse { successful: true, value, ..Default::default() };
            let found = |key: &Bytes| match &key[..] {
                [b'n', b'o', b'n', b'e', ..] => cache::GetResponse::default(),
                [b'l', b'a', b'r', b'g', b'e', ..] => large.clone(),
                _ => cache::GetResponse { successful: true, value: key.clone(), ..Default::default() },
            };
            let keys = cache::BatchGetRequest::decode(message).unwrap().keys;
            cache::BatchGetResponse { results: keys.iter().map(found).collect() }.encode_to_vec()
        }
        "Put" => {
            let entries = cache::BatchPutRequest::decode(message).unwrap().entries;
            cache::BatchPutResponse { results: entries.iter().map(|put| result(&put.key)).collect() }.encode_to_vec()
        }
        _ => {
            let keys = cache::BatchDeleteRequest::decode(message).unwrap().keys;
            cache::BatchDeleteResponse { results: keys.iter().map(result).collect() }.encode_to_vec()
        }
    };
    Some(bytes.into())
}

impl Client {
    async fn batch_get(&self, keys: &[String]) -> Result<Vec<wire::GetResponse>, Status> {
        self.call(ROUTER_BATCH_GET, &gets(keys)).await.map(|answer| answer.results)
    }

    async fn batch_put(&self, entries: Vec<wire::PutRequest>) -> Result<Vec<wire::PutResult>, Status> {
        self.call(ROUTER_BATCH_PUT, &wire::BatchPutRequest { entries }).await.map(|answer| answer.results)
    }

    async fn batch_delete(&self, keys: &[String]) -> Result<Vec<wire::PutResult>, Status> {
        let wire::BatchGetRequest { bucket, keys } = gets(keys);
        let request = wire::BatchDeleteRequest { bucket, keys };
        self.call(ROUTER_BATCH_DELETE, &request).await.map(|answer| answer.results)
    }

    async fn raw<Q, A>(&self, method: Method<Q, A>, message: Bytes) -> Result<Bytes, Status> {
        let answer = self.channel.call(method.path, message, Instant::now() + PATIENCE).await;
        answer.map_err(|CallError { status, .. }| status)
    }
}

fn gets(keys: &[String]) -> wire::BatchGetRequest {
    wire::BatchGetRequest { bucket: "b".into(), keys: keys.iter().map(|key| Bytes::from(key.clone())).collect() }
}

fn put(key: &str, value_bytes: usize) -> wire::PutRequest {
    wire::PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        bucket: "b".into(),
        value: vec![7; value_bytes].into(),
        ..Default::default()
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("key-{number}")).collect()
}

/// Node and core of `node_count` nodes with three cores each.
fn owner(name: &str, node_count: usize) -> (usize, usize) {
    let hash = placement::key_hash(b"b", name.as_bytes());
    (placement::slot(hash, &vec![placement::WEIGHT_FULL; node_count]).unwrap(), placement::core(hash, 3))
}

async fn nodes(client: &Client, count: usize) -> Vec<ScriptedNode> {
    let mut nodes = Vec::new();
    for number in 0..count {
        let node = ScriptedNode::start(&format!("n{number}"), 3);
        client.join(&node).await;
        nodes.push(node);
    }
    nodes
}

/// The keys of a BatchGet that a node has heard.
fn heard_keys(message: &[u8]) -> Vec<String> {
    let keys = cache::BatchGetRequest::decode(message).unwrap().keys;
    keys.iter().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect()
}

#[test]
fn a_batch_is_one_message_for_each_owning_core_and_its_results_are_in_its_order() {
    with_router(
        |_| {},
        |client| async move {
            let nodes = nodes(&client, 2).await;
            let mut keys = names(60);
            keys.push("none".into());
            keys.push("key-7".into());
            let found = client.batch_get(&keys).await.unwrap();
            for (key, result) in keys.iter().zip(&found) {
                assert_eq!(
                    (result.successful, &*result.value),
                    if key == "none" { (false, &b""[..]) } else { (true, key.as_bytes()) }
                );
            }
            for (number, node) in nodes.iter().enumerate() {
                let mut heard = node.heard.borrow_mut();
                let mut cores: Vec<usize> = heard.iter().map(|heard| heard.core).collect();
                cores.sort_unstable();
                assert_eq!(cores, [0, 1, 2], "one message to each core of node {number}");
                for heard in heard.drain(..) {
                    let asked = heard_keys(&heard.message);
                    let expected: Vec<_> = keys.iter().filter(|key| owner(key, 2) == (number, heard.core)).collect();
                    assert_eq!(asked.iter().collect::<Vec<_>>(), expected, "in the order of the batch");
                }
            }
            let written = client.batch_put(keys.iter().map(|key| put(key, 10)).collect()).await.unwrap();
            let deleted = client.batch_delete(&keys).await.unwrap();
            for (key, result) in keys.iter().zip(&written).chain(keys.iter().zip(&deleted)) {
                assert_eq!((result.code, &result.version), (0, key));
            }
        },
    );
}

#[test]
fn a_batch_that_belongs_to_one_core_is_passed_on_untouched() {
    with_router(
        |_| {},
        |client| async move {
            let nodes = nodes(&client, 2).await;
            let name = names(1).pop().unwrap();
            // The bucket behind the keys, and a field that nobody knows: not what an encoder would write.
            let message =
                [b"\x12\x05", name.as_bytes(), b"\xfa\x01\x03new\x12\x05", name.as_bytes(), b"\x0a\x01b"].concat();
            let message = Bytes::from(message);
            client.raw(ROUTER_BATCH_GET, message.clone()).await.unwrap();
            let (node, core) = owner(&name, 2);
            let heard = nodes[node].heard.borrow_mut().pop().unwrap();
            assert_eq!((heard.core, heard.message), (core, message));
            assert!(nodes.iter().all(|node| node.heard_count() == 0), "and nobody else");
        },
    );
}

#[test]
fn large_values_arrive_whole_at_each_of_their_owners() {
    with_router(
        |_| {},
        |client| async move {
            let nodes = nodes(&client, 2).await;
            let entries: Vec<_> = names(20).iter().enumerate().map(|(number, key)| put(key, number * 8_000)).collect();
            let results = client.batch_put(entries.clone()).await.unwrap();
            assert!(results.iter().all(|result| result.code == 0));
            let mut heard: Vec<wire::PutRequest> = Vec::new();
            for node in &nodes {
                for message in node.heard.borrow().iter().map(|heard| heard.message.clone()) {
                    heard.extend(wire::BatchPutRequest::decode(message).unwrap().entries);
                }
            }
            heard.sort_by_key(|put| put.value.len());
            assert_eq!(heard, entries);
        },
    );
}

#[test]
fn of_gets_one_part_that_fails_is_the_failure_of_all_and_of_writes_it_is_its_entries() {
    with_router(
        |_| {},
        |client| async move {
            let nodes = nodes(&client, 2).await;
            let keys: Vec<_> = names(40).into_iter().filter(|key| owner(key, 2).1 == 0).collect();
            assert!([0, 1].iter().all(|node| keys.iter().any(|key| owner(key, 2).0 == *node)));

            nodes[1].say(Say::Status(Status::resource_exhausted("the queue is full", 70)));
            let status = client.batch_get(&keys).await.unwrap_err();
            assert_eq!((status.code, &*status.message), (Code::ResourceExhausted, "the queue is full"));
            assert_eq!(status.trailer(&RETRY_PUSHBACK).unwrap(), "70");

            nodes[1].say(Say::HangUp);
            let written = client.batch_put(keys.iter().map(|key| put(key, 10)).collect()).await.unwrap();
            for (key, result) in keys.iter().zip(&written) {
                if owner(key, 2).0 == 0 {
                    assert_eq!((result.code, &result.version), (0, key));
                } else {
                    assert_eq!(Code::from_number(result.code), Code::Unavailable);
                    assert!(result.message.starts_with("outcome unknown: "), "{}", result.message);
                }
            }
        },
    );
}

#[test]
fn a_part_that_failed_in_transport_is_read_again_and_not_written_again() {
    with_node(
        |_| {},
        |client, node| async move {
            client.get("k").await.unwrap();
            node.say(Say::HangUp);
            let found = client.batch_get(&names(3)).await.unwrap();
            assert!(found.iter().all(|result| result.successful));
            assert_eq!(node.heard_count(), 3, "by the second connection");

            node.say(Say::HangUp);
            let results = client.batch_delete(&names(3)).await.unwrap();
            assert!(results.iter().all(|result| result.message.starts_with("outcome unknown: ")), "{results:?}");
            assert_eq!(node.heard_count(), 4);
        },
    );
}

#[test]
fn a_part_whose_owner_has_changed_is_split_anew_by_the_newer_table() {
    with_router(
        |_| {},
        |client| async move {
            let first = ScriptedNode::start("n0", 3);
            let second = ScriptedNode::start("n1", 3);
            client.join(&first).await;
            // All of them one core's, as long as there is one node; with two they part.
            let keys: Vec<_> = names(60).into_iter().filter(|key| owner(key, 1).1 == 1).collect();
            assert!([0, 1].iter().all(|node| keys.iter().any(|key| owner(key, 2).0 == *node)));
            first.say(Say::Status(Status::not_owner(2)));
            let joins_meanwhile = async {
                while first.heard_count() == 0 {
                    task::sleep(Duration::from_millis(1)).await;
                }
                client.join(&second).await;
            };
            let entries = keys.iter().map(|key| put(key, 10)).collect();
            let (written, ()) = futures::future::join(client.batch_put(entries), joins_meanwhile).await;
            for (key, result) in keys.iter().zip(written.unwrap()) {
                assert_eq!((result.code, &result.version), (0, key));
            }
            assert_eq!((first.heard_count(), second.heard_count()), (2, 1));
        },
    );
}

#[test]
fn a_part_that_is_refused_by_one_table_after_another_comes_apart_each_time_and_arrives() {
    with_router(
        |_| {},
        |client| async move {
            let nodes: Vec<_> = (0..3).map(|number| ScriptedNode::start(&format!("n{number}"), 3)).collect();
            client.join(&nodes[0]).await;
            // All of them one core's, as long as there is one node; with two they part, and again with three.
            let keys: Vec<_> = names(100).into_iter().filter(|key| owner(key, 1).1 == 1).collect();
            let count_of = |node_count, node| keys.iter().filter(|key| owner(key, node_count).0 == node).count();
            assert!((0..3).all(|node| count_of(3, node) > 0));
            nodes[0].say(Say::Status(Status::not_owner(2)));
            nodes[1].say(Say::Status(Status::not_owner(3)));
            let joins_meanwhile = async {
                for [asked, joins] in [[0, 1], [1, 2]] {
                    while nodes[asked].heard_count() == 0 {
                        task::sleep(Duration::from_millis(1)).await;
                    }
                    client.join(&nodes[joins]).await;
                }
            };
            let entries = keys.iter().map(|key| put(key, 10)).collect();
            let (written, ()) = futures::future::join(client.batch_put(entries), joins_meanwhile).await;
            for (key, result) in keys.iter().zip(written.unwrap()) {
                assert_eq!((result.code, &result.version), (0, key));
            }
            assert!(nodes[2].heard_count() > 0);
        },
    );
}

#[test]
fn a_part_that_two_nodes_refuse_is_refused_and_was_not_asked_for_a_third_time() {
    with_node(
        |_| {},
        |client, node| async move {
            (0..2).for_each(|_| node.say(Say::Status(Status::not_owner(9))));
            let status = client.batch_get(&names(2)).await.unwrap_err();
            assert_eq!((status.code, &*status.message, status.owner_epoch()), (Code::Unavailable, UNSETTLED, None));
            (0..2).for_each(|_| node.say(Say::Status(Status::not_owner(9))));
            let results = client.batch_put(vec![put("k", 1)]).await.unwrap();
            assert_eq!((Code::from_number(results[0].code), &*results[0].message), (Code::Unavailable, UNSETTLED));
            assert_eq!(node.heard_count(), 4);
        },
    );
}

#[test]
fn without_a_node_gets_are_unavailable_and_so_is_every_entry_of_the_writes() {
    with_router(
        |_| {},
        |client| async move {
            assert_eq!(client.batch_get(&names(2)).await.unwrap_err().code, Code::Unavailable);
            let results = client.batch_delete(&names(2)).await.unwrap();
            assert!(results.iter().all(|result| Code::from_number(result.code) == Code::Unavailable), "{results:?}");
            assert_eq!(client.batch_get(&[]).await.unwrap(), [], "who asks for nothing needs no node");
        },
    );
}

#[test]
fn what_is_wrong_with_an_entry_never_reaches_a_node() {
    with_node(
        |config| config.value_max = Some("1KiB".into()),
        |client, node| async move {
            let status = client.batch_get(&["k".to_owned(), String::new()]).await.unwrap_err();
            let text = "keys[1]: key has 0 bytes; 1 to 1024 are allowed";
            assert_eq!((status.code, &*status.message), (Code::InvalidArgument, text));
            let status = client.raw(ROUTER_BATCH_GET, b"\x12\x01k".repeat(1_001).into()).await.unwrap_err();
            let text = "the batch has 1001 entries; at most 1000 are allowed";
            assert_eq!((status.code, &*status.message), (Code::InvalidArgument, text));
            for method in [ROUTER_BATCH_GET.path, ROUTER_BATCH_PUT.path, ROUTER_BATCH_DELETE.path] {
                let garbage = client.channel.call(method, Bytes::from_static(b"\xff"), Instant::now() + PATIENCE).await;
                assert_eq!(garbage.unwrap_err().status.code, Code::InvalidArgument);
            }
            let wrong = vec![put("", 1), put("k", 1025), wire::PutRequest { bucket: "a_b".into(), ..put("k", 1) }];
            let results = client.batch_put(wrong.clone()).await.unwrap();
            let texts = results.iter().map(|result| (result.code, &*result.message)).collect::<Vec<_>>();
            let expected = [
                (3, "key has 0 bytes; 1 to 1024 are allowed"),
                (3, "value has 1025 bytes; at most 1024 are allowed"),
                (3, "bucket has '_' at position 1; letters, digits and '-' are allowed"),
            ];
            assert_eq!(texts, expected);
            assert_eq!(node.heard_count(), 0);

            let results = client.batch_put([vec![put("a", 1)], wrong, vec![put("b", 1)]].concat()).await.unwrap();
            assert_eq!(results.iter().map(|result| result.code).collect::<Vec<_>>(), [0, 3, 3, 3, 0]);
            assert_eq!((&*results[0].version, &*results[4].version), ("a", "b"));
        },
    );
}

#[test]
fn an_answer_that_does_not_fit_its_question_is_no_answer() {
    with_router(
        |_| {},
        |client| async move {
            let nodes = nodes(&client, 2).await;
            nodes[0].say(Say::Message(Bytes::new()));
            let status = client.batch_get(&names(40)).await.unwrap_err();
            assert_eq!(status.code, Code::Internal, "{status}");
        },
    );
}

#[test]
fn parts_that_together_are_too_large_for_one_answer_are_refused() {
    with_router(
        |_| {},
        |client| async move {
            let _nodes = nodes(&client, 2).await;
            let keys: Vec<String> = (0..20).map(|number| format!("large-{number}")).collect();
            let status = client.batch_get(&keys).await.unwrap_err();
            let text = "the answer would have more than 16777216 bytes; ask for fewer keys at a time";
            assert_eq!((status.code, &*status.message), (Code::ResourceExhausted, text));
            let found = client.batch_get(&keys[..10]).await.unwrap();
            assert!(found.iter().all(|result| result.value.len() == LARGE_BYTES));
        },
    );
}

#[test]
fn a_batch_costs_the_rate_limit_what_its_keys_would_cost_alone() {
    with_node(
        |config| config.rate_limit = Some("10".into()),
        |client, node| async move {
            client.batch_get(&names(8)).await.unwrap();
            let refused = client.batch_put(names(8).iter().map(|key| put(key, 1)).collect()).await.unwrap_err();
            assert_eq!(refused.code, Code::ResourceExhausted);
            assert!(refused.trailer(&RETRY_PUSHBACK).is_some());
            assert_eq!(node.heard_count(), 1);
        },
    );
}
