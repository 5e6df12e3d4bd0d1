//! Write mode `back`: the disk has what was acknowledged, and the store gets it later, whatever happens in between.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use milena_proto::{cache_server::Ack, router_server::PutRequest};
use tempfile::TempDir;
use tonic::Code;

use crate::{
    client::Client,
    disk::write_and_kill,
    fault_proxy::{Fault, FaultProxy},
    programs::{PATIENCE, Server, wait_until},
    seaweed,
    store::{ALWAYS, borrowed, code, on_s3},
};

/// A node that acknowledges early, on S3 behind a proxy, and another on the same place in S3 that sees what arrives.
struct Scene {
    node: Server,
    proxy: FaultProxy,
    place: &'static str,
    /// Last, so that it goes away after the node.
    _dir: TempDir,
}

impl Scene {
    fn start(place: &'static str, changes: &[(&'static str, &str)]) -> Self {
        let proxy = FaultProxy::start(seaweed::shared().address());
        let dir = tempfile::tempdir().expect("a directory of our own");
        let s3 = on_s3(&proxy.endpoint(), place);
        let back = [("WRITE_MODE", "back"), ("DISK", "16MiB"), ("LRU_SIZE", "4")];
        let mut node = Server::node(dir.path(), &[&borrowed(&s3), &back[..], changes].concat());
        node.start();
        Self { node, proxy, place, _dir: dir }
    }

    fn client(&self) -> Client {
        Client::node(self.node.address)
    }

    /// S3 refuses all writes; it is still read.
    fn break_store(&self) {
        for method in ["PUT", "DELETE"] {
            self.proxy.fail(method, ALWAYS, Fault::Status(503, "SlowDown"));
        }
    }

    fn restart(&mut self) {
        self.node.kill();
        self.node.start();
    }

    fn dirty_bytes(&self) -> u64 {
        self.node.metric("milena_log_dirty_bytes", "")
    }

    fn wait_until_uploaded(&self) {
        wait_until("all is in the store", PATIENCE, || (self.dirty_bytes() == 0).then_some(()));
    }

    /// What the store has, as a node sees it that has never heard of any of it.
    fn in_store<'a>(&self, keys: impl IntoIterator<Item = &'a str>) -> BTreeMap<&'a str, Option<String>> {
        let dir = tempfile::tempdir().unwrap();
        let mut other = Server::node(dir.path(), &borrowed(&on_s3(&seaweed::shared().endpoint(), self.place)));
        other.start();
        let client = Client::node(other.address);
        let found = keys.into_iter().map(|key| (key, text(&client, key))).collect();
        assert_eq!(other.stop(), Some(0));
        found
    }
}

fn text(client: &Client, key: &str) -> Option<String> {
    client.get(key).unwrap().map(|value| String::from_utf8(value.to_vec()).unwrap())
}

fn with_ack(ack: Ack) -> PutRequest {
    PutRequest { ack: ack.into(), ..PutRequest::default() }
}

#[test]
fn writes_are_acknowledged_and_answered_while_the_store_is_away_and_it_gets_the_last_of_each_key_when_it_is_back() {
    let scene = Scene::start("back-away", &[]);
    let client = scene.client();
    client.put("deleted", "old").unwrap();
    client.put("kept", "old").unwrap();
    scene.wait_until_uploaded();
    assert_eq!(scene.in_store(["deleted", "kept"])["deleted"].as_deref(), Some("old"));

    scene.break_store();
    for number in 0..10 {
        client.put("replaced", &number.to_string()).unwrap();
    }
    for number in 0..20 {
        client.put(&format!("k{number}"), "v").unwrap(); // More than memory has room for.
    }
    client.delete("deleted").unwrap();
    assert_eq!(text(&client, "replaced").as_deref(), Some("9"));
    assert_eq!(text(&client, "deleted"), None, "the store still has it, and is not asked");
    assert!((0..20).all(|number| text(&client, &format!("k{number}")).as_deref() == Some("v")));
    assert!(scene.dirty_bytes() > 0);
    let lags = || (scene.node.metric("milena_upload_lag_seconds", "") > 0).then_some(());
    wait_until("the lag is told", PATIENCE, lags);
    assert_eq!(scene.in_store(["replaced", "deleted"])["deleted"].as_deref(), Some("old"));

    scene.proxy.heal();
    scene.wait_until_uploaded();
    let found = scene.in_store(["replaced", "deleted", "kept", "k0", "k19"]);
    assert_eq!(found["replaced"].as_deref(), Some("9"));
    assert_eq!(found["deleted"], None);
    assert_eq!(found["kept"].as_deref(), Some("old"));
    assert!(found["k0"].is_some() && found["k19"].is_some());
    assert_eq!(scene.node.metric("milena_upload_lag_seconds", ""), 0);
}

#[test]
fn a_node_that_is_killed_uploads_after_its_start_what_it_had_acknowledged_and_each_key_once() {
    let mut scene = Scene::start("back-killed", &[]);
    scene.break_store();
    let client = scene.client();
    for round in 0..3 {
        for number in 0..10 {
            client.put(&format!("k{number}"), &format!("{round}")).unwrap();
        }
    }
    client.delete("k9").unwrap();
    scene.restart();
    for number in 0..9 {
        assert_eq!(
            text(&client, &format!("k{number}")).as_deref(),
            Some("2"),
            "from disk, and the store is not believed"
        );
    }
    assert_eq!(text(&client, "k9"), None);
    scene.restart();
    scene.proxy.heal();
    scene.wait_until_uploaded();
    assert_eq!(scene.node.metric("milena_uploads_total", "result=\"done\""), 10, "superseded versions are skipped");
    let found = scene.in_store(["k0", "k8", "k9"]);
    assert_eq!((found["k0"].as_deref(), found["k8"].as_deref(), found["k9"].as_deref()), (Some("2"), Some("2"), None));

    scene.restart();
    assert_eq!(scene.dirty_bytes(), 0, "what was uploaded is not uploaded again");
    assert_eq!(text(&client, "k0").as_deref(), Some("2"));
}

#[test]
fn each_write_may_say_how_long_it_waits() {
    let scene = Scene::start("back-acks", &[]);
    let client = scene.client();
    for ack in [Ack::Default, Ack::Memory, Ack::Disk, Ack::S3] {
        client.write("a", ack.as_str_name(), with_ack(ack)).unwrap();
    }
    assert_eq!(scene.in_store(["a"])["a"].as_deref(), Some("ACK_S3"), "it was there before it was acknowledged");

    scene.break_store();
    for ack in [Ack::Default, Ack::Memory, Ack::Disk] {
        client.write("a", ack.as_str_name(), with_ack(ack)).unwrap();
        assert_eq!(text(&client, "a").as_deref(), Some(ack.as_str_name()));
    }
    let status = client.write("a", "last", with_ack(Ack::S3)).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("outcome unknown"), "{status}");
    scene.proxy.heal();
    scene.wait_until_uploaded();
    assert_eq!(scene.in_store(["a"])["a"].as_deref(), Some("last"), "it was kept, and has arrived");
}

#[test]
fn conditions_hold_against_what_was_acknowledged_and_not_against_what_the_store_has() {
    let scene = Scene::start("back-conditions", &[]);
    let client = scene.client();
    client.put("a", "0").unwrap();
    client.put("gone", "0").unwrap();
    scene.wait_until_uploaded();
    scene.break_store();
    let first = client.write("a", "1", PutRequest::default()).unwrap();
    let absent = || PutRequest { if_absent: true, ..PutRequest::default() };
    let is = |version: &str| PutRequest { if_version: version.to_owned(), ..PutRequest::default() };
    assert_eq!(code(&client.write("a", "2", absent())), Code::AlreadyExists);
    assert_eq!(code(&client.write("a", "2", is("other"))), Code::Aborted);
    for number in 0..10 {
        client.put(&format!("other {number}"), "v").unwrap(); // Memory forgets `a`.
    }
    let second = client.write("a", "2", is(&first)).unwrap();
    assert_eq!(code(&client.write("a", "3", is(&first))), Code::Aborted);
    client.delete("gone").unwrap();
    assert_eq!(code(&client.write("gone", "1", is("any"))), Code::Aborted);
    client.write("gone", "1", absent()).unwrap();
    scene.proxy.heal();
    scene.wait_until_uploaded();
    let found = scene.in_store(["a", "gone"]);
    assert_eq!((found["a"].as_deref(), found["gone"].as_deref()), (Some("2"), Some("1")));
    for number in 0..10 {
        client.put(&format!("other {number}"), "v").unwrap();
    }
    client.write("a", "3", is(&second)).unwrap();
}

#[test]
fn more_than_may_wait_is_slowed_down_then_refused_and_taken_again_when_the_store_is_back() {
    let scene = Scene::start("back-full", &[("CORES", "1"), ("DISK", "4MiB")]);
    scene.break_store();
    let client = scene.client();
    let value = "x".repeat(4_000);
    let mut accepted = 0;
    let refused = loop {
        match client.put(&format!("k{accepted}"), &value) {
            Ok(()) => accepted += 1,
            Err(status) => break status,
        }
        assert!(accepted < 1_000, "a quarter of 4 MiB is 256 of them");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"), "{refused:?}");
    assert!((200..=260).contains(&accepted), "{accepted}");
    assert!(scene.node.metric("milena_writes_slowed_total", "") > 50);
    assert_eq!(text(&client, "k0").as_deref(), Some(&*value), "reads go on");
    client.put("k0", "shorter").unwrap();

    scene.proxy.heal();
    wait_until("there is room again", PATIENCE, || client.put("one more", &value).ok());
    scene.wait_until_uploaded();
    let last = format!("k{}", accepted - 1);
    let found = scene.in_store(["k0", "k1", &*last]);
    assert_eq!((found["k0"].as_deref(), found["k1"].as_deref()), (Some("shorter"), Some(&*value)));
    assert_eq!(found[&*last].as_deref(), Some(&*value));
}

#[test]
fn a_stop_waits_for_uploads_and_says_what_is_left_where_they_cannot_be_done() {
    let mut scene = Scene::start("back-stop", &[]);
    let client = scene.client();
    for number in 0..50 {
        client.put(&format!("k{number}"), "1").unwrap();
    }
    assert_eq!(scene.node.stop(), Some(0));
    assert_eq!(scene.in_store(["k0", "k49"])["k49"].as_deref(), Some("1"));

    scene.node.start();
    scene.break_store();
    client.put("k0", "2").unwrap();
    client.delete("k1").unwrap();
    let program = scene.node.program();
    assert_eq!(program.stop(), Some(0));
    let log = program.log();
    let said = log.lines().filter(|line| line.contains("that the store does not have; they are on disk")).count();
    assert!((1..=2).contains(&said), "a line for each core that has any:\n{log}");
    scene.node.kill();

    scene.proxy.heal();
    scene.node.start();
    assert_eq!(text(&client, "k0").as_deref(), Some("2"));
    scene.wait_until_uploaded();
    let found = scene.in_store(["k0", "k1"]);
    assert_eq!((found["k0"].as_deref(), found["k1"].as_deref()), (Some("2"), None));
}

#[test]
fn what_waits_is_uploaded_before_a_write_that_goes_through_also_when_the_write_mode_has_changed() {
    let mut scene = Scene::start("back-through", &[]);
    scene.break_store();
    let client = scene.client();
    client.put("a", "1").unwrap();
    client.put("b", "1").unwrap();
    scene.node.kill();
    scene.node.set("WRITE_MODE", "through");
    scene.node.start();
    assert_eq!(text(&client, "a").as_deref(), Some("1"), "acknowledged is acknowledged");
    assert_eq!(code(&client.put("a", "2")), Code::Unavailable, "the store cannot take what comes before it");
    assert_eq!(text(&client, "a").as_deref(), Some("1"));
    scene.proxy.heal();
    wait_until("the store takes it", PATIENCE, || client.put("a", "2").ok());
    scene.wait_until_uploaded();
    scene.restart();
    assert_eq!(text(&client, "a").as_deref(), Some("2"));
    let found = scene.in_store(["a", "b"]);
    assert_eq!((found["a"].as_deref(), found["b"].as_deref()), (Some("2"), Some("1")));
}

#[test]
fn what_waits_is_uploaded_after_a_start_with_another_number_of_cores_and_each_key_once() {
    let mut scene = Scene::start("back-cores", &[("CORES", "1")]);
    let client = scene.client();
    client.put("k9", "old").unwrap();
    scene.wait_until_uploaded();
    scene.break_store();
    for round in 0..2 {
        for number in 0..10 {
            client.put(&format!("k{number}"), &format!("{round}")).unwrap();
        }
    }
    client.delete("k9").unwrap();
    scene.node.kill();
    scene.node.set("CORES", "2");
    scene.node.start();
    for number in 0..9 {
        assert_eq!(text(&client, &format!("k{number}")).as_deref(), Some("1"), "from disk");
    }
    assert_eq!(text(&client, "k9"), None);
    scene.node.kill();
    scene.node.set("CORES", "1");
    scene.node.start();
    scene.proxy.heal();
    scene.wait_until_uploaded();
    assert_eq!(scene.node.metric("milena_uploads_total", "result=\"done\""), 10, "superseded versions are skipped");
    let found = scene.in_store(["k0", "k8", "k9"]);
    assert_eq!((found["k0"].as_deref(), found["k8"].as_deref(), found["k9"].as_deref()), (Some("1"), Some("1"), None));
    scene.restart();
    assert_eq!(scene.dirty_bytes(), 0, "what was uploaded is not uploaded again");
}

#[test]
fn a_value_that_the_log_cannot_take_is_in_the_store_before_it_is_acknowledged() {
    let scene = Scene::start("back-large", &[]);
    let client = scene.client();
    let large = "x".repeat(1 << 20);
    client.put("a", "small").unwrap();
    client.put("a", &large).unwrap();
    assert_eq!(scene.in_store(["a"])["a"].as_deref(), Some(&*large));
    assert_eq!(text(&client, "a").as_deref(), Some(&*large));
    scene.break_store();
    assert_eq!(code(&client.put("b", &large)), Code::Unavailable);
}

#[test]
fn a_node_that_is_killed_again_and_again_loses_nothing_that_was_acknowledged_and_brings_nothing_older_to_the_store() {
    const KEYS: usize = 16;
    let dir = tempfile::tempdir().unwrap();
    let back = [("WRITE_MODE", "back"), ("DISK", "16MiB"), ("LRU_SIZE", "4")];
    let mut node = Server::node(dir.path(), &back);
    let accepted: Vec<AtomicUsize> = (0..KEYS).map(|_| AtomicUsize::new(0)).collect();
    for round in 1..=5 {
        write_and_kill(&mut node, &accepted, round * 20, |number| number.to_string());
        node.start();
        let client = Client::node(node.address);
        let check = |client: &Client, when: &str| {
            for (key, accepted) in accepted.iter().enumerate() {
                let found: usize = text(client, &format!("k{key}")).expect("it was accepted").parse().unwrap();
                let at_least = accepted.load(Ordering::Relaxed);
                assert!((at_least..=at_least + 1).contains(&found), "{when}, k{key}: {found}, not {at_least}");
                accepted.store(found, Ordering::Relaxed); // The write that the kill cut off may be there.
            }
        };
        check(&client, "after the start");
        wait_until("all is uploaded", PATIENCE, || (node.metric("milena_log_dirty_bytes", "") == 0).then_some(()));
        check(&client, "after the uploads");
        node.kill();
        // The store alone, without the log.
        node.set("DISK", "0");
        node.set("WRITE_MODE", "through");
        node.start();
        check(&Client::node(node.address), "in the store");
        node.kill();
        node.set("DISK", "16MiB");
        node.set("WRITE_MODE", "back");
    }
}
