//! Who owns a key when nodes and routers come and go.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use milena_proto::{
    placement::{WEIGHT_FULL, key_hash, slot},
    router_server::{JoinRequest, SlotState, TopologyResponse},
};
use tonic::{Code, Status};

use crate::{
    client::Client,
    programs::{Cluster, PATIENCE, Server, TAKEOVER, start_cluster, wait_until},
};

/// Enough that every one of three nodes owns dozens.
const KEYS: usize = 200;

fn key(number: usize) -> String {
    format!("key-{number}")
}

fn put_all(client: &Client, value: &str) {
    for number in 0..KEYS {
        client.put(&key(number), value).unwrap();
    }
}

fn assert_all(client: &Client, value: &str) {
    for number in 0..KEYS {
        let found = client.get(&key(number)).unwrap_or_else(|status| panic!("{}: {status}", key(number)));
        assert_eq!(found.as_deref(), Some(value.as_bytes()), "{}", key(number));
    }
}

/// The slot of the node at `address`.
fn slot_of(topology: &TopologyResponse, address: SocketAddr) -> usize {
    let wanted = format!("http://{address}");
    topology.slots.iter().position(|slot| slot.address == wanted).expect("it has a slot")
}

/// The keys that belong to the node at `address` while every node lives.
fn keys_of(topology: &TopologyResponse, address: SocketAddr) -> Vec<String> {
    let weights = vec![WEIGHT_FULL; topology.slots.len()];
    let wanted = slot_of(topology, address);
    let keys = (0..KEYS).map(key);
    keys.filter(|key| slot(key_hash(b"default", key.as_bytes()), &weights) == Some(wanted)).collect()
}

fn gets_served(node: &Server) -> u64 {
    node.metric("milena_cache_requests_total", "get")
}

/// Waits until the node at `index` answers for all of its own keys again.
fn wait_for_return(cluster: &Cluster, index: usize, value: &str) {
    let client = cluster.client();
    let node = &cluster.nodes[index];
    let its_keys = keys_of(&client.topology().unwrap(), node.address);
    assert!(its_keys.len() > KEYS / 10, "a third of the keys, more or less");
    wait_until("the node answers for its keys again", PATIENCE, || {
        let before = gets_served(node);
        for key in &its_keys {
            assert_eq!(client.get(key).ok()?.as_deref(), Some(value.as_bytes()), "{key}");
        }
        (gets_served(node) - before >= its_keys.len() as u64).then_some(())
    });
}

#[test]
fn a_cluster_answers_get_put_and_delete_at_every_door() {
    let cluster = start_cluster(3);
    let client = cluster.client();
    put_all(&client, "one");
    assert_all(&client, "one");
    for node in &cluster.nodes {
        assert!(gets_served(node) > 0, "every node owns a share of the keys");
    }
    for number in 0..KEYS {
        client.delete(&key(number)).unwrap();
        assert_eq!(client.get(&key(number)).unwrap(), None);
    }
}

#[test]
fn the_keys_of_a_killed_node_are_answered_by_others_and_go_back_when_it_returns() {
    let mut cluster = start_cluster(3);
    let client = cluster.client();
    put_all(&client, "before");

    cluster.nodes[1].kill();
    let killed = Instant::now();
    wait_until("every key is answered without the node", TAKEOVER, || {
        (0..KEYS).all(|number| client.get(&key(number)).is_ok()).then_some(())
    });
    println!("all keys were answered again {:?} after the kill", killed.elapsed());
    assert_all(&client, "before");
    put_all(&client, "meanwhile");
    wait_until("the table calls it dead", TAKEOVER, || {
        let topology = client.topology().ok()?;
        let slot = &topology.slots[slot_of(&topology, cluster.nodes[1].address)];
        (slot.state() == SlotState::Dead).then_some(())
    });

    cluster.nodes[1].start();
    cluster.wait_for_live(3);
    wait_for_return(&cluster, 1, "meanwhile");
    assert_all(&client, "meanwhile");
}

#[test]
fn a_node_that_hangs_loses_its_keys_and_gets_them_back_when_it_goes_on() {
    let mut cluster = start_cluster(3);
    let client = cluster.client();
    put_all(&client, "v");
    let its_keys = keys_of(&client.topology().unwrap(), cluster.nodes[0].address);

    cluster.nodes[0].program().signal(libc::SIGSTOP);
    // The connection stands, so only the deadline of a call and the lease of the node end the wait.
    let patience = Duration::from_secs(1);
    wait_until("every key is answered without the node", TAKEOVER + patience, || {
        its_keys.iter().all(|key| client.answer(key, patience).is_ok()).then_some(())
    });
    assert_all(&client, "v");
    let new_key = format!("new-{}", its_keys[0]);
    client.put(&new_key, "written while a node hung").unwrap();

    cluster.nodes[0].program().signal(libc::SIGCONT);
    cluster.wait_for_live(3);
    wait_for_return(&cluster, 0, "v");
    assert_eq!(client.get(&new_key).unwrap().as_deref(), Some(&b"written while a node hung"[..]));
}

#[test]
fn a_router_that_restarts_has_its_table() {
    let mut cluster = start_cluster(3);
    let client = cluster.client();
    put_all(&client, "v");
    let places = |topology: TopologyResponse| -> Vec<_> {
        topology.slots.into_iter().map(|slot| (slot.node_id, slot.address, slot.shard_addresses)).collect()
    };
    let before = client.topology().unwrap();

    cluster.router.kill();
    cluster.router.start();
    let after = wait_until("the router answers", PATIENCE, || client.topology().ok());
    assert!(after.epoch >= before.epoch, "an epoch never goes back");
    assert_eq!(places(after), places(before));
    wait_until("every key is answered", PATIENCE, || {
        (0..KEYS).all(|number| client.get(&key(number)).is_ok()).then_some(())
    });
    assert_all(&client, "v");
    cluster.wait_for_live(3);
}

#[test]
fn nodes_go_on_without_the_router_and_join_again_when_it_is_back() {
    let mut cluster = start_cluster(2);
    let client = cluster.client();
    put_all(&client, "v");
    cluster.router.kill();

    wait_until("the nodes notice", PATIENCE, || {
        cluster.nodes.iter_mut().all(|node| node.program().log().contains("router")).then_some(())
    });
    for node in &cluster.nodes {
        let direct = Client::node(node.address);
        assert_all(&direct, "v");
        direct.put("written without a router", "v").unwrap();
    }

    cluster.router.start();
    cluster.wait_for_live(2);
    assert_all(&client, "v");
}

#[test]
fn a_node_that_stops_leaves_at_once_and_no_call_fails() {
    let mut cluster = start_cluster(3);
    let client = cluster.client();
    put_all(&client, "v");
    let watching = client.clone();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let reader = std::thread::spawn(move || {
        let mut number = 0;
        while stopped.try_recv().is_err() {
            let found = watching.get(&key(number % KEYS)).unwrap_or_else(|status| panic!("{status}"));
            assert_eq!(found.as_deref(), Some(&b"v"[..]));
            number += 1;
        }
        number
    });

    assert_eq!(cluster.nodes[2].stop(), Some(0));
    assert_eq!(client.states().unwrap(), 2, "it left before it stopped");
    assert_all(&client, "v");
    stop.send(()).unwrap();
    assert!(reader.join().expect("no call failed") > 0);
}

/// Where a node answers for the keys of its first core.
fn own_port(topology: &TopologyResponse, slot: usize) -> SocketAddr {
    let address = topology.slots[slot].shard_addresses[0].strip_prefix("http://");
    address.and_then(|address| address.parse().ok()).expect("http://ip:port")
}

#[test]
fn a_key_that_went_to_another_node_and_came_back_has_the_value_it_was_given_there() {
    let mut cluster = start_cluster(1);
    let client = cluster.client();
    put_all(&client, "before");
    assert_all(&client, "before");

    cluster.add_node(&[]);
    wait_until("the second node is in the table", PATIENCE, || (client.states().ok()? == 2).then_some(()));
    let its_keys = keys_of(&client.topology().unwrap(), cluster.nodes[1].address);
    assert!(its_keys.len() > KEYS / 4, "half of the keys, more or less");
    for key in &its_keys {
        client.put(key, "there").unwrap();
    }
    assert_eq!(cluster.nodes[1].stop(), Some(0));
    assert_eq!(client.states().unwrap(), 1, "it left before it stopped");
    for number in 0..KEYS {
        let expected = if its_keys.contains(&key(number)) { "there" } else { "before" };
        assert_eq!(client.get(&key(number)).unwrap().as_deref(), Some(expected.as_bytes()), "{}", key(number));
    }
    let evidence = cluster.nodes[0].metric("milena_cache_hits_total", "memory");
    assert!(evidence > 0, "keys that never went away are still in memory");
}

#[test]
fn at_a_cores_own_port_a_key_of_another_node_is_refused_and_nothing_is_done() {
    let cluster = start_cluster(2);
    let client = cluster.client();
    let topology = client.topology().unwrap();
    let others = keys_of(&topology, cluster.nodes[1].address);
    let own = keys_of(&topology, cluster.nodes[0].address);
    let port = Client::node(own_port(&topology, slot_of(&topology, cluster.nodes[0].address)));
    let key = &others[0];
    client.put(key, "its owner's").unwrap();

    let refused = wait_until("the node knows the table", PATIENCE, || port.get(key).err());
    assert_not_owner(&refused, &topology);
    assert_not_owner(&port.put(key, "a stranger's").unwrap_err(), &topology);
    assert_not_owner(&port.delete(key).unwrap_err(), &topology);
    assert_eq!(client.get(key).unwrap().as_deref(), Some(&b"its owner's"[..]), "nothing was done");

    let questions = || cluster.router.metric("milena_router_requests_total", "op=\"topology\"");
    let before = questions();
    for refused in port.get_many(key, 100) {
        assert_not_owner(&refused.unwrap_err(), &topology);
    }
    let asked = questions() - before;
    assert!((1..50).contains(&asked), "one question serves all who wait: {asked} for 100");

    port.put(&own[0], "v").unwrap();
    assert_eq!(port.get(&own[0]).unwrap().as_deref(), Some(&b"v"[..]), "its own keys are answered there");
    let common = Client::node(cluster.nodes[0].address);
    assert_eq!(common.get(key).unwrap().as_deref(), Some(&b"its owner's"[..]), "and any key at the common port");
}

fn assert_not_owner(status: &Status, topology: &TopologyResponse) {
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    let epoch = status.metadata().get("milena-owner-epoch").expect("a trailer that tells the epoch");
    assert_eq!(epoch.to_str().unwrap(), topology.epoch.to_string());
}

#[test]
fn without_a_router_a_node_refuses_nothing_at_its_own_ports() {
    let mut cluster = start_cluster(2);
    let client = cluster.client();
    let topology = client.topology().unwrap();
    let key = &keys_of(&topology, cluster.nodes[1].address)[0];
    client.put(key, "v").unwrap();
    let port = Client::node(own_port(&topology, slot_of(&topology, cluster.nodes[0].address)));
    wait_until("the node knows the table", PATIENCE, || port.get(key).err());
    cluster.router.kill();
    wait_until("nobody can tell any more", PATIENCE, || (port.get(key).ok()?.as_deref() == Some(b"v")).then_some(()));
}

#[test]
fn of_two_nodes_with_one_address_the_first_stays() {
    let mut cluster = start_cluster(1);
    let client = cluster.client();
    let first = cluster.nodes[0].address.to_string();

    // It listens elsewhere and only says so: the operator has copied a setting.
    cluster.add_node(&[("ADVERTISE_ADDR", &first)]);
    let copy = cluster.nodes[1].program();
    wait_until("the second one says why it is not in", PATIENCE, || copy.log().contains(&first).then_some(()));
    let addresses: Vec<String> = client.topology().unwrap().slots.into_iter().map(|slot| slot.address).collect();
    let once: BTreeSet<&String> = addresses.iter().collect();
    assert_eq!(once.len(), addresses.len(), "an address stands in the table once: {addresses:?}");
    put_all(&client, "v");
    assert_all(&client, "v");
}

#[test]
fn a_join_with_a_copied_id_is_refused_while_the_first_lives() {
    let cluster = start_cluster(1);
    let client = cluster.client();
    let slot = client.topology().unwrap().slots.remove(0);
    let copied = JoinRequest {
        address: "http://127.0.0.1:9".to_owned(),
        node_id: slot.node_id.clone(),
        shard_addresses: vec!["http://127.0.0.1:9".to_owned()],
        incarnation: 1,
        ..JoinRequest::default()
    };
    client.join(copied).unwrap_err();
    assert_eq!(client.topology().unwrap().slots[0].address, slot.address);
}
