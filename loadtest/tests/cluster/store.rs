//! A store that is down, slow, refuses, or lies: a real S3 server with a proxy before it that breaks what it is told to.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use milena_proto::router_server::{GetResponse, TopologyResponse};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::{
    client::Client,
    fault_proxy::{Fault, FaultProxy},
    programs::{PATIENCE, Server, free_address, start_cluster_with, wait_until},
    seaweed,
};

/// More than any number of attempts: the fault stays until the proxy goes.
pub(crate) const ALWAYS: usize = usize::MAX;

/// Longer than all attempts and the waits between them take.
const LONG: Duration = Duration::from_secs(20);

/// A node on S3 behind a proxy. Its place in the bucket is its own.
struct Scene {
    node: Server,
    proxy: FaultProxy,
    /// Last, so that it goes away after the node.
    dir: TempDir,
}

/// What a node needs to find the S3 server at `endpoint`, and a place in it that nobody else uses.
pub(crate) fn on_s3(endpoint: &str, place: &str) -> Vec<(&'static str, String)> {
    vec![
        ("STORE", format!("s3://{}/{place}", seaweed::BUCKET)),
        ("S3_ENDPOINT", endpoint.to_owned()),
        ("AWS_ACCESS_KEY_ID", seaweed::ACCESS_KEY_ID.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", seaweed::SECRET_ACCESS_KEY.to_owned()),
    ]
}

pub(crate) fn borrowed<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    settings.iter().map(|(setting, value)| (*setting, &**value)).collect()
}

impl Scene {
    fn start(place: &str) -> Self {
        let proxy = FaultProxy::start(seaweed::shared().address());
        let dir = tempfile::tempdir().expect("a directory of our own");
        let mut node = Server::node(dir.path(), &borrowed(&on_s3(&proxy.endpoint(), place)));
        node.start();
        Self { node, proxy, dir }
    }

    fn client(&self) -> Client {
        Client::node(self.node.address)
    }

    /// Puts a value that the node does not have in memory afterwards.
    fn put_cold(&self, key: &str, value: &str, place: &str) {
        let mut other = Server::node(self.dir.path(), &borrowed(&on_s3(&seaweed::shared().endpoint(), place)));
        other.start();
        Client::node(other.address).put(key, value).unwrap();
        assert_eq!(other.stop(), Some(0));
    }

    /// Lines of the node's log at level `error`.
    fn operator_messages(&mut self) -> Vec<String> {
        let log = self.node.program().log();
        log.lines().filter(|line| line.to_lowercase().contains("error")).map(str::to_owned).collect()
    }
}

pub(crate) fn code<T>(answer: &Result<T, tonic::Status>) -> Code {
    answer.as_ref().err().map_or(Code::Ok, tonic::Status::code)
}

#[test]
fn what_was_accepted_is_in_s3_for_every_node_and_after_every_restart() {
    let proxy = FaultProxy::start(seaweed::shared().address());
    let settings = on_s3(&proxy.endpoint(), "accepted");
    let mut cluster = start_cluster_with(3, &borrowed(&settings));
    let client = cluster.client();
    for number in 0..50 {
        client.put(&format!("k-{number}"), "v").unwrap();
    }
    client.delete("k-0").unwrap();
    assert!(proxy.seen("PUT") >= 50, "every write goes to the store before it is acknowledged");

    for node in &mut cluster.nodes {
        node.kill();
        node.start();
        node.wait_for_ready(); // Until then the table has the ports of the one that was killed.
    }
    assert_eq!(client.get("k-0").unwrap(), None);
    for number in 1..50 {
        assert_eq!(client.get(&format!("k-{number}")).unwrap().as_deref(), Some(&b"v"[..]), "k-{number}");
    }
}

#[test]
fn a_thousand_misses_on_one_key_are_one_get_to_the_store() {
    let scene = Scene::start("thousand");
    scene.put_cold("hot", "v", "thousand");
    scene.proxy.fail("GET", 1, Fault::Hold);
    let before = scene.proxy.seen("GET");
    thread::scope(|scope| {
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let client = scene.client();
                scope.spawn(move || client.get_many("hot", 125))
            })
            .collect();
        scene.proxy.await_held(1);
        let waiting = || (scene.node.metric("milena_coalesced_requests_total", "") >= 999).then_some(());
        wait_until("all others wait for the one that asks", PATIENCE, waiting);
        scene.proxy.release();
        for reader in readers {
            for found in reader.join().expect("a reader") {
                assert_eq!(found.unwrap().as_deref(), Some(&b"v"[..]));
            }
        }
    });
    assert_eq!(scene.proxy.seen("GET") - before, 1);
}

#[test]
fn a_store_that_is_down_at_start_heals_by_itself() {
    let place = free_address();
    let dir = tempfile::tempdir().unwrap();
    let mut node = Server::node(dir.path(), &borrowed(&on_s3(&format!("http://{place}"), "heals")));
    node.start();
    let client = Client::node(node.address);
    assert_eq!(code(&client.get("k")), Code::Unavailable);
    assert_eq!(code(&client.put("k", "v")), Code::Unavailable);

    let _proxy = FaultProxy::start_at(place, seaweed::shared().address());
    wait_until("writes are taken", PATIENCE, || client.put("k", "v").ok());
    assert_eq!(client.get("k").unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(client.get("absent").unwrap(), None);
}

#[test]
fn what_is_in_memory_is_served_while_the_store_is_down() {
    let scene = Scene::start("memory");
    let client = scene.client();
    client.put("cached", "v").unwrap();
    scene.proxy.fail("GET", ALWAYS, Fault::Reset);
    scene.proxy.fail("PUT", ALWAYS, Fault::Reset);
    for _ in 0..100 {
        assert_eq!(client.get("cached").unwrap().as_deref(), Some(&b"v"[..]));
    }
    assert_eq!(code(&client.get("other")), Code::Unavailable);
    assert_eq!(code(&client.put("other", "v")), Code::Unavailable);
    // The write may have reached the store, so the copy in memory is no longer believed.
    let refused = client.put("cached", "new").unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("outcome unknown"), "{refused}");
    assert_eq!(code(&client.get("cached")), Code::Unavailable);
}

#[test]
fn a_slow_store_delays_only_those_who_need_it_and_no_longer_than_they_wait() {
    let scene = Scene::start("slow");
    let client = scene.client();
    client.put("cached", "v").unwrap();
    scene.proxy.fail("GET", ALWAYS, Fault::Hold);

    let waiting = scene.client();
    let asked = Instant::now();
    let slow = thread::spawn(move || (code(&waiting.answer("slow", Duration::from_millis(500))), asked.elapsed()));
    scene.proxy.await_held(1);
    for _ in 0..100 {
        assert_eq!(client.get("cached").unwrap().as_deref(), Some(&b"v"[..]), "nobody else waits");
    }
    let (status, waited) = slow.join().expect("answered");
    assert!(matches!(status, Code::DeadlineExceeded | Code::Cancelled), "{status:?}"); // tonic gives up by itself, too
    assert!(waited < Duration::from_secs(10), "the deadline of half a second holds: {waited:?}");

    scene.proxy.release();
    assert_eq!(client.get("slow").unwrap(), None, "later it is asked again");
}

#[test]
fn a_write_whose_answer_is_lost_has_an_unknown_outcome_and_reads_tell_the_truth() {
    let scene = Scene::start("unanswered");
    let client = scene.client();
    client.put("k", "old").unwrap();
    scene.proxy.fail("PUT", ALWAYS, Fault::Unanswered);
    match client.put("k", "new") {
        // The store had it, and a repeated request was recognised as our own.
        Ok(()) => {}
        Err(status) => {
            assert_eq!(status.code(), Code::Unavailable);
            assert!(status.message().contains("outcome unknown"), "{status}");
        }
    }
    assert_eq!(
        client.get("k").unwrap().as_deref(),
        Some(&b"new"[..]),
        "the store has it, memory must not say otherwise"
    );
}

#[test]
fn a_store_that_fails_for_a_moment_is_asked_again() {
    let scene = Scene::start("moment");
    scene.put_cold("k", "v", "moment");
    let client = scene.client();
    for fault in [Fault::Status(500, "InternalError"), Fault::Status(503, "SlowDown"), Fault::Reset] {
        scene.proxy.fail("PUT", 1, fault);
        client.put(&format!("{fault:?}"), "v").unwrap_or_else(|status| panic!("{fault:?}: {status}"));
    }
    scene.proxy.fail("GET", 1, Fault::Status(503, "SlowDown"));
    assert_eq!(client.get("k").unwrap().as_deref(), Some(&b"v"[..]));
}

/// A Get of a key of its own, on a node that finds the store broken in one way: the answer, and how often the store was asked.
fn get_from_broken(place: &str, key: &str, fault: Fault, deadline: Duration) -> (Result<GetResponse, Status>, usize) {
    let scene = Scene::start(place);
    // What the proxy passes on is answered: the store behind it has the value, and gives it to others.
    scene.put_cold(key, WHOLE, place);
    let mut other = Server::node(scene.dir.path(), &borrowed(&on_s3(&seaweed::shared().endpoint(), place)));
    other.start();
    assert_eq!(Client::node(other.address).get(key).unwrap().as_deref(), Some(WHOLE.as_bytes()));
    assert_eq!(other.stop(), Some(0));

    scene.proxy.fail("GET", ALWAYS, fault);
    let answer = scene.client().answer(key, deadline);
    (answer, scene.proxy.seen("GET"))
}

const WHOLE: &str = "a value of some length, so that half of it can be missing";

#[test]
fn the_first_answer_of_a_broken_store_has_its_status_and_is_never_a_wrong_value() {
    // The fault, the status of the very first Get and a word of its text that tells why, and how often the store is asked.
    let cases = [
        (Fault::Status(500, "InternalError"), Code::Unavailable, "failed 3 times: 500", 3),
        (Fault::Status(503, "SlowDown"), Code::Unavailable, "failed 3 times: 503", 3),
        (Fault::Status(403, "AccessDenied"), Code::PermissionDenied, "403", 1),
        (Fault::Status(404, "NoSuchBucket"), Code::FailedPrecondition, "NoSuchBucket", 1),
        (Fault::Truncate(10), Code::Unavailable, "failed 3 times", 3),
        (Fault::Raw("this is not HTTP\r\n\r\n"), Code::Unavailable, "failed 3 times", 3),
        // As long as it says, and yet not what was written: its checksum tells, and one more look finds the same.
        (Fault::Lie(-10), Code::Unavailable, "checksum mismatch", 2),
        (Fault::Flip, Code::Unavailable, "checksum mismatch", 2),
    ];
    for (number, (fault, expected, word, asked)) in cases.into_iter().enumerate() {
        let (answer, seen) = get_from_broken("broken", &format!("broken-{number}"), fault, LONG);
        let status = answer.expect_err("whatever the store says, a wrong value is never passed on");
        assert_eq!(status.code(), expected, "{fault:?}: {status}");
        assert!(status.message().contains(word), "{fault:?}: {status}");
        assert_eq!(seen, asked, "{fault:?}");
    }
}

#[test]
fn a_store_that_has_no_such_key_is_a_miss_at_the_first_answer() {
    let (answer, seen) = get_from_broken("no-key", "k", Fault::Status(404, "NoSuchKey"), LONG);
    let answer = answer.unwrap();
    assert!(!answer.successful && answer.value.is_empty());
    assert_eq!(seen, 1);
}

#[test]
fn a_body_whose_rest_never_comes_is_waited_for_as_long_as_the_caller_has_said() {
    let (answer, seen) = get_from_broken("no-rest", "k", Fault::Lie(10), Duration::from_secs(3));
    // tonic gives up by itself, too, and calls it CANCELLED.
    assert!(matches!(code(&answer), Code::DeadlineExceeded | Code::Cancelled), "{answer:?}");
    assert_eq!(seen, 1);
}

#[test]
fn a_write_that_the_store_refuses_is_refused_and_said_once() {
    let mut scene = Scene::start("refused");
    let client = scene.client();
    client.put("k", "v").unwrap();
    scene.proxy.fail("PUT", ALWAYS, Fault::Status(403, "AccessDenied"));
    for _ in 0..5 {
        assert_eq!(code(&client.put("k", "new")), Code::PermissionDenied);
    }
    assert_eq!(client.get("k").unwrap().as_deref(), Some(&b"v"[..]));
    let said = scene.operator_messages();
    let refusals: Vec<_> = said.iter().filter(|line| line.contains("403")).collect();
    assert_eq!(refusals.len(), 1, "five refusals, one message: {said:#?}");
    assert!(refusals[0].contains(seaweed::BUCKET) && refusals[0].contains("hint"), "{}", refusals[0]);
}

#[test]
fn credentials_that_are_missing_or_wrong_are_said_once_with_what_to_do() {
    let endpoint = seaweed::shared().endpoint();
    let credentials = |id: &str, secret: &str| {
        let mut settings = on_s3(&endpoint, "credentials");
        settings.retain(|(setting, _)| !setting.starts_with("AWS_"));
        if !id.is_empty() {
            settings.push(("AWS_ACCESS_KEY_ID", id.to_owned()));
            settings.push(("AWS_SECRET_ACCESS_KEY", secret.to_owned()));
        }
        settings
    };
    let cases = [
        (credentials("", ""), "AWS_ACCESS_KEY_ID"),
        (credentials(seaweed::ACCESS_KEY_ID, "wrong"), " 403 "),
        (credentials("AKIANOBODY", seaweed::SECRET_ACCESS_KEY), " 403 "),
    ];
    for (settings, word) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Server::node(dir.path(), &borrowed(&settings));
        node.start();
        // At the start, before anybody asks for anything.
        wait_until("the operator is told", PATIENCE, || node.program().log().contains(word).then_some(()));
        let client = Client::node(node.address);
        let codes: BTreeSet<_> = (0..5).map(|_| format!("{:?}", code(&client.put("k", "v")))).collect();
        assert!(
            codes.iter().all(|code| ["PermissionDenied", "FailedPrecondition"].contains(&&**code)),
            "{word}: {codes:?}"
        );
        let log = node.program().log();
        let said: Vec<_> = log.lines().filter(|line| line.contains(word)).collect();
        assert_eq!(said.len(), 1, "{word} is said once, at the start or by the first request:\n{log}");
        assert!(said[0].contains("hint"), "and what to do: {}", said[0]);
    }
}

#[test]
fn s3_behind_tls_is_believed_by_the_authority_that_is_named_and_by_no_other() {
    let https = seaweed::shared().https_endpoint();
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("authority.pem");
    fs::write(&bundle, seaweed::AUTHORITY).unwrap();
    let trusting = |path: &Path| {
        let mut settings = on_s3(&https, "tls");
        settings.push(("AWS_CA_BUNDLE", path.display().to_string()));
        settings
    };

    let mut node = Server::node(dir.path(), &borrowed(&trusting(&bundle)));
    node.start();
    Client::node(node.address).put("k", "over TLS").unwrap();
    let mut plain = Server::node(dir.path(), &borrowed(&on_s3(&seaweed::shared().endpoint(), "tls")));
    plain.start();
    let plain = Client::node(plain.address);
    assert_eq!(plain.get("k").unwrap().as_deref(), Some(&b"over TLS"[..]), "it is in S3");
    plain.put("other", "without TLS").unwrap();
    assert_eq!(Client::node(node.address).get("other").unwrap().as_deref(), Some(&b"without TLS"[..]));

    let mut distrusting = Server::node(dir.path(), &borrowed(&on_s3(&https, "tls")));
    distrusting.start();
    let refused = Client::node(distrusting.address).put("k", "never sent").unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("certificate") && refused.message().contains("AWS_CA_BUNDLE"), "{refused}");
    assert!(!refused.message().contains("outcome unknown"), "nothing was asked of the server: {refused}");

    let mut mistaken = Server::node(dir.path(), &borrowed(&trusting(&dir.path().join("nowhere.pem"))));
    let program = mistaken.launch();
    assert_eq!(program.exit_code(), Some(1));
    assert!(program.log().contains("AWS_CA_BUNDLE="), "{}", program.log());
}

#[test]
fn a_router_that_keeps_its_table_in_s3_has_it_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = seaweed::shared().endpoint();
    let mut settings = on_s3(&endpoint, "table");
    settings[0] = ("STATE", format!("s3://{}/table", seaweed::BUCKET));
    let mut router = Server::router(dir.path(), &borrowed(&settings));
    router.start();
    let address = router.address.to_string();
    let mut nodes: Vec<Server> = (0..2).map(|_| Server::node(dir.path(), &[("ROUTER_ADDR", &*address)])).collect();
    nodes.iter_mut().for_each(Server::start);
    let client = Client::router(router.address);
    wait_until("two live nodes", PATIENCE, || (client.states().ok()? == 2).then_some(()));
    let before = client.topology().unwrap();

    // Without nodes, so that only the store can know.
    nodes.iter_mut().for_each(Server::kill);
    router.kill();
    router.start();
    let after = wait_until("the router answers", PATIENCE, || client.topology().ok());
    assert!(after.epoch >= before.epoch, "an epoch never goes back");
    let places = |topology: TopologyResponse| -> Vec<_> {
        topology.slots.into_iter().map(|slot| (slot.node_id, slot.address, slot.shard_addresses)).collect()
    };
    assert_eq!(places(after), places(before));
    assert!(!dir.path().join("router").exists(), "nothing of it is on the disk");

    nodes.iter_mut().for_each(Server::start);
    wait_until("the nodes are back", PATIENCE, || client.put("k", "v").ok());
    assert_eq!(client.get("k").unwrap().as_deref(), Some(&b"v"[..]));
}

/// The environment of deployments that were there before flags: three nodes and a router on one machine.
#[test]
fn the_old_environment_variables_alone_are_enough() {
    let dir = tempfile::tempdir().unwrap();
    // On a network these come from the machine's role and Amazon's name; here the server must be found.
    let server = [
        ("AWS_ENDPOINT_URL", seaweed::shared().endpoint()),
        ("AWS_ACCESS_KEY_ID", seaweed::ACCESS_KEY_ID.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", seaweed::SECRET_ACCESS_KEY.to_owned()),
    ];
    let router_address = free_address();
    let router_settings = [
        ("LISTEN_ADDR", router_address.to_string()),
        ("RATE_LIMIT", "100000".to_owned()),
        ("LOG_LEVEL", "INFO".to_owned()),
        // Its default is a fixed port, and other tests run at the same time.
        ("METRICS_PORT", "0".to_owned()),
    ];
    let mut router = crate::programs::Program::start("milena-router", &[], &router_settings, dir.path());
    let mut nodes: Vec<(SocketAddr, crate::programs::Program)> = Vec::new();
    for _ in 0..3 {
        let address = free_address();
        let settings = [
            ("LISTEN_ADDR", address.to_string()),
            ("ROUTER_ADDR", format!("http://{router_address}")),
            ("LRU_SIZE", "1000".to_owned()),
            ("TTL_SECONDS", "60".to_owned()),
            ("METRICS_PORT", free_address().port().to_string()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("S3_BUCKET", seaweed::BUCKET.to_owned()),
            ("LOG_LEVEL", "INFO".to_owned()),
        ];
        let all = [&settings[..], &server[..]].concat();
        nodes.push((address, crate::programs::Program::start("milena-cache", &[], &all, dir.path())));
    }
    let client = Client::router(router_address);
    wait_until("three live nodes", PATIENCE, || (client.states().ok()? == 3).then_some(()));
    for number in 0..100 {
        client.put(&format!("old-{number}"), "v").unwrap();
    }
    for (address, _) in &nodes {
        assert_eq!(Client::node(*address).get("old-7").unwrap().as_deref(), Some(&b"v"[..]));
    }
    for (_, node) in &mut nodes {
        assert_eq!(node.stop(), Some(0));
    }
    assert_eq!(router.stop(), Some(0));
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    println!("left in the working directory: {left:?}");
}
