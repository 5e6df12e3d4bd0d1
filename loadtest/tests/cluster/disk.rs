//! The log on disk below a node: what is there again after a kill, and never something older than what was accepted.

use std::{
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::{
    client::Client,
    programs::{PATIENCE, Server, program, wait_until},
};

const KEYS: usize = 20;

/// Small enough to be filled, and memory for so few entries that most answers must come from disk.
const SETTINGS: [(&str, &str); 2] = [("DISK", "16MiB"), ("LRU_SIZE", "4")];

/// A value that tells its number and fills a block and more.
fn value(number: usize) -> String {
    format!("{number:08}").repeat(600)
}

fn number(value: &[u8]) -> usize {
    let number = std::str::from_utf8(&value[..8]).unwrap().parse().unwrap();
    assert!(value == self::value(number).as_bytes(), "a value is whole");
    number
}

#[test]
fn a_node_that_is_killed_while_it_writes_its_log_answers_nothing_older_than_it_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Server::node(dir.path(), &SETTINGS);
    let accepted: Vec<AtomicUsize> = (0..KEYS).map(|_| AtomicUsize::new(0)).collect();
    for round in 1..=5 {
        node.start();
        thread::scope(|scope| {
            let (client, accepted) = (Client::node(node.address), &accepted);
            scope.spawn(move || {
                for turn in 0.. {
                    let key = turn % KEYS;
                    let next = accepted[key].load(Ordering::Relaxed) + 1;
                    if client.put(&format!("k{key}"), &value(next)).is_err() {
                        return;
                    }
                    accepted[key].store(next, Ordering::Relaxed);
                }
            });
            let enough = || accepted.iter().all(|accepted| accepted.load(Ordering::Relaxed) >= round * 10);
            wait_until("every key is written", PATIENCE, || enough().then_some(()));
            node.kill();
        });
        node.start();
        let client = Client::node(node.address);
        for (key, accepted) in accepted.iter().enumerate() {
            let found = number(&client.get(&format!("k{key}")).unwrap().expect("it was accepted"));
            let accepted_number = accepted.load(Ordering::Relaxed);
            assert!((accepted_number..=accepted_number + 1).contains(&found), "k{key}: {found}, not {accepted_number}");
            accepted.store(found, Ordering::Relaxed); // The write that the kill cut off may be there.
        }
        assert!(node.metric("milena_revalidated_total", "") > 0, "the disk was asked, and the store agreed");
        node.kill();
    }
}

#[test]
fn the_log_of_a_node_that_was_killed_can_be_looked_into_and_nothing_sealed_in_it_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Server::node(dir.path(), &SETTINGS);
    node.start();
    let client = Client::node(node.address);
    for turn in 0..40 {
        client.put(&format!("k{}", turn % KEYS), &value(turn)).unwrap();
    }
    let node_dir = dir.path().join(format!("node-{}", node.address.port()));
    node.kill();
    for core in 0..2 {
        let log = node_dir.join(format!("log-{core:03}"));
        let output = Command::new(program("milena")).args(["log", "inspect"]).arg(&log).output().unwrap();
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}{complained}");
        assert!(said.starts_with(&format!("core {core} of 2: ")), "{said}");
    }
}
