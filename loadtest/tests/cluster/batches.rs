//! Batches through a router to two nodes of two cores: who gets which entries, what becomes of them when a node is killed in the
//! middle, and that the table may change under them.
//!
//! ```text
//!   batch ──▶ router ──┬──▶ node 0, core 0 ──┐
//!                      ├──▶ node 0, core 1 ──┼──▶ S3 or a directory; here a proxy may hold what one node writes
//!                      ├──▶ node 1, core 0 ──┤
//!                      └──▶ node 1, core 1 ──┘
//! ```

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use milena_proto::{
    limits::{BATCH_ENTRIES_MAX, VALUE_BYTES_MAX_DEFAULT},
    placement::{WEIGHT_FULL, key_hash, slot},
    router_server::PutResult,
};
use tonic::{Code, Status};

use crate::{
    client::Client,
    fault_proxy::{Fault, FaultProxy},
    programs::{Cluster, PATIENCE, TAKEOVER, start_cluster, wait_until},
    seaweed,
    store::{ALWAYS, borrowed, on_s3},
};

fn keys(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

/// The node that owns a key of a cluster that has had no more than `node_count` nodes, all of which live.
fn owner(key: &str, node_count: usize) -> usize {
    slot(key_hash(b"default", key.as_bytes()), &vec![WEIGHT_FULL; node_count]).expect("all of them live")
}

fn entries_done(cluster: &Cluster, node: usize, op: &str) -> u64 {
    cluster.nodes[node].metric("milena_cache_batch_entries_total", &format!("op=\"{op}\",code=\"OK\""))
}

fn assert_done(results: &[PutResult]) {
    let failed = results.iter().find(|result| result.code != 0);
    assert!(failed.is_none(), "{failed:?}");
}

#[test]
fn entries_go_to_the_nodes_that_own_them_and_are_answered_in_the_order_of_the_batch() {
    let cluster = start_cluster(2);
    let client = cluster.client();
    let written = keys("k", 300);
    // Each value is its key's number in a batch of its own, so that an answer in the wrong place is seen.
    for (number, key) in written.iter().enumerate() {
        assert_done(&client.batch_put(std::slice::from_ref(key), &number.to_string()).unwrap());
    }
    let before: Vec<u64> = (0..2).map(|node| entries_done(&cluster, node, "batch_get")).collect();
    let asked: Vec<String> = written.iter().rev().flat_map(|key| [key.clone(), format!("absent-{key}")]).collect();
    let found = client.batch_get(&asked).unwrap();
    assert_eq!(found.len(), asked.len());
    for (number, pair) in found.chunks(2).enumerate() {
        assert_eq!(pair[0].as_deref(), Some((299 - number).to_string().as_bytes()));
        assert_eq!(pair[1], None);
    }
    for (node, before) in before.into_iter().enumerate() {
        let own = asked.iter().filter(|key| owner(key, 2) == node).count() as u64;
        assert_eq!(entries_done(&cluster, node, "batch_get") - before, own, "node {node} reads its own keys");
        let forwarded = cluster.nodes[node].metric("milena_forwarded_requests_total", "");
        assert_eq!(forwarded, 0, "the router sends each key to the core that owns it");
    }

    // At a node's common port any key is answered: by its own cores over mailboxes, and others' from the store.
    let direct = Client::node(cluster.nodes[0].address);
    assert_eq!(direct.batch_get(&asked).unwrap(), found);
    assert_done(&client.batch_delete(&asked).unwrap());
    assert!(client.batch_get(&asked).unwrap().iter().all(Option::is_none));
}

#[test]
fn a_node_and_a_router_refuse_a_batch_that_is_too_large_and_an_entry_that_is() {
    let cluster = start_cluster(2);
    for client in [cluster.client(), Client::node(cluster.nodes[0].address)] {
        for (count, code) in [(BATCH_ENTRIES_MAX, None), (BATCH_ENTRIES_MAX + 1, Some(Code::InvalidArgument))] {
            let keys = keys("k", count);
            assert_eq!(refusal(client.batch_put(&keys, "v")), code, "{count} puts");
            assert_eq!(refusal(client.batch_get(&keys)), code, "{count} gets");
            assert_eq!(refusal(client.batch_delete(&keys)), code, "{count} deletes");
        }
        // Two halves of a largest value, and headers, are a little more than one Put may have; three thirds are not.
        let half = "v".repeat(VALUE_BYTES_MAX_DEFAULT / 2 + 10_000);
        assert_eq!(refusal(client.batch_put(&keys("large", 2), &half)), Some(Code::ResourceExhausted));
        let third = "v".repeat(VALUE_BYTES_MAX_DEFAULT / 3);
        assert_done(&client.batch_put(&keys("large", 3), &third).unwrap());
        let found = client.batch_get(&keys("large", 3)).unwrap();
        assert!(found.iter().all(|value| value.as_deref() == Some(third.as_bytes())));

        let over = "v".repeat(VALUE_BYTES_MAX_DEFAULT + 1);
        let results = client.batch_put(&keys("over", 1), &over).unwrap();
        assert_eq!(Code::from_i32(results[0].code), Code::InvalidArgument, "{results:?}");
    }
}

fn refusal<T>(answer: Result<T, Status>) -> Option<Code> {
    answer.err().map(|status| status.code())
}

/// Two nodes on one place in S3; what the first one writes there can be held.
fn cluster_on_s3(place: &str) -> (Cluster, FaultProxy) {
    let proxy = FaultProxy::start(seaweed::shared().address());
    let mut cluster = start_cluster(0);
    for endpoint in [proxy.endpoint(), seaweed::shared().endpoint()] {
        cluster.add_node(&borrowed(&on_s3(&endpoint, place)));
        cluster.wait_for_live(cluster.nodes.len()); // So that the first one has the first slot.
    }
    (cluster, proxy)
}

#[test]
fn when_a_node_is_killed_in_the_middle_the_outcome_of_its_writes_is_unknown_and_the_others_are_done() {
    let (mut cluster, proxy) = cluster_on_s3("batch-killed");
    let client = cluster.client();
    let keys = keys("k", 60);
    assert_done(&client.batch_put(&keys, "before").unwrap());

    proxy.fail("PUT", ALWAYS, Fault::Hold);
    let (writer, written) = (client.clone(), keys.clone());
    let batch = thread::spawn(move || writer.batch_put(&written, "after"));
    proxy.await_held(1);
    cluster.nodes[0].kill();
    let results = batch.join().expect("it does not panic").unwrap();
    for (key, result) in keys.iter().zip(&results) {
        if owner(key, 2) == 1 {
            assert_eq!((result.code, &*result.message), (0, ""), "{key} is another node's");
            assert!(!result.version.is_empty(), "{key}");
        } else {
            assert_eq!(Code::from_i32(result.code), Code::Unavailable, "{key}: {result:?}");
            assert!(result.message.starts_with("outcome unknown: "), "{key}: {result:?}");
        }
    }

    // Nobody has its keys yet: reads fail as a whole, and of writes those entries.
    let status = client.batch_get(&keys).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    for (key, result) in keys.iter().zip(client.batch_put(&keys, "meanwhile").unwrap()) {
        let expected = if owner(key, 2) == 1 { Code::Ok } else { Code::Unavailable };
        assert_eq!(Code::from_i32(result.code), expected, "{key}: {result:?}");
        assert!(!result.message.contains("unknown"), "{key} was never sent: {result:?}");
    }

    proxy.heal();
    proxy.release();
    wait_until("another node answers for all keys", TAKEOVER, || client.batch_get(&keys).ok());
    assert_done(&client.batch_put(&keys, "again").unwrap());
    let found = client.batch_get(&keys).unwrap();
    assert!(found.iter().all(|value| value.as_deref() == Some(b"again")));
}

#[test]
fn no_batch_meets_a_node_that_does_not_own_its_keys_while_nodes_join_and_leave() {
    const CLIENTS: usize = 4;
    const CHANGES: usize = 3;
    let mut cluster = start_cluster(2);
    let (is_over, turns): (_, Vec<_>) = (AtomicBool::new(false), (0..CLIENTS).map(|_| AtomicUsize::new(0)).collect());
    thread::scope(|scope| {
        for (number, turns) in turns.iter().enumerate() {
            let (client, is_over) = (cluster.client(), &is_over);
            scope.spawn(move || {
                // The keys of this client are nobody else's, so that it knows what it must read.
                let keys = keys(&format!("client-{number}"), 100);
                while !is_over.load(Ordering::Relaxed) {
                    let value = turns.load(Ordering::Relaxed).to_string();
                    assert_done(&client.batch_put(&keys, &value).unwrap());
                    let found = client.batch_get(&keys).unwrap();
                    assert!(found.iter().all(|found| found.as_deref() == Some(value.as_bytes())), "{found:?}");
                    assert_done(&client.batch_delete(&keys[..10]).unwrap());
                    assert!(client.batch_get(&keys[..10]).unwrap().iter().all(Option::is_none));
                    turns.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let wait_for_turns = || {
            let before: Vec<usize> = turns.iter().map(|turns| turns.load(Ordering::Relaxed)).collect();
            let go_on = || turns.iter().zip(&before).all(|(turns, before)| turns.load(Ordering::Relaxed) > before + 1);
            wait_until("every client goes on", PATIENCE, || go_on().then_some(()));
        };
        for _ in 0..CHANGES {
            wait_for_turns();
            cluster.add_node(&[]);
            cluster.wait_for_live(3);
            wait_for_turns();
            let mut third = cluster.nodes.pop().expect("it was added");
            assert_eq!(third.stop(), Some(0));
            cluster.wait_for_live(2);
        }
        wait_for_turns();
        is_over.store(true, Ordering::Relaxed);
    });
}
