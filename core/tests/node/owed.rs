//! Writes that only a node's disk has: no start passes over them without a word, and none begins an empty log in their place.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    rehome::{bring_store_back, start_back, take_store_away, wait_until_uploaded, with_disk},
    *,
};

/// Leaves two writes in the log of a node with one core that the store does not have.
fn leave_two_writes(dir: &Path) {
    let node = start_back(dir, 1);
    put(node.addr, put_request(b"before", b"v")).unwrap();
    wait_until_uploaded(&node);
    take_store_away(dir);
    put(node.addr, put_request(b"a", b"v")).unwrap();
    put(node.addr, put_request(b"b", b"v")).unwrap();
    stop(node);
    bring_store_back(dir);
}

fn without_disk(dir: &Path) -> Result<Running, StartError> {
    try_to_start(dir, |config| config.store = Some(format!("file://{}", dir.join("store").display())))
}

/// What a node says that does not start.
fn refusal(outcome: Result<Running, StartError>) -> String {
    outcome.expect_err("it must not start").to_string()
}

/// The directory of the only log below `dir`.
fn log_dir(dir: &Path) -> PathBuf {
    let nodes = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    nodes.map(|node| node.join("log-000")).find(|log| log.is_dir()).expect("a node has a log")
}

#[test]
fn a_node_does_not_start_without_the_disk_that_has_writes_for_the_store_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    leave_two_writes(dir.path());
    let node_dir = log_dir(dir.path()).parent().unwrap().to_owned();
    let said = refusal(without_disk(dir.path()));
    let start =
        format!("--disk 0: 2 writes in {} wait for the store; start once with the former DISK, ", node_dir.display());
    assert!(said.starts_with(&start), "{said}");
    assert!(said.ends_with(&format!("or remove {}/log-*, which loses them", node_dir.display())), "{said}");

    let node = start_back(dir.path(), 1);
    wait_until_uploaded(&node);
    stop(node);
    let node = without_disk(dir.path()).unwrap();
    assert_eq!(&*get(node.addr, b"b").unwrap().value, b"v");
    stop(node);
}

#[test]
fn writes_that_a_change_of_cores_was_moving_when_it_was_cut_off_are_counted_too() {
    let dir = tempfile::tempdir().unwrap();
    leave_two_writes(dir.path());
    // As a crash leaves it behind: the new logs are complete, the first old one is gone.
    let log = log_dir(dir.path());
    let complete = log.with_file_name("rehomed");
    fs::create_dir(&complete).unwrap();
    fs::rename(&log, complete.join("log-000")).unwrap();
    assert!(refusal(without_disk(dir.path())).starts_with("--disk 0: 2 writes in "));
}

#[test]
fn in_write_mode_back_a_log_that_cannot_be_read_is_not_replaced_by_an_empty_one_until_somebody_says_so() {
    let dir = tempfile::tempdir().unwrap();
    leave_two_writes(dir.path());
    let log = log_dir(dir.path());
    let superblock = log.join("superblock");
    let whole = fs::read(&superblock).unwrap();
    let back = |dir: &Path| {
        try_to_start(dir, |config| {
            with_disk(config, 1);
            config.store = Some(format!("file://{}", dir.join("store").display()));
            config.write_mode = Some("back".to_owned());
        })
    };
    let mut of_another_version = whole.clone();
    of_another_version[8] = 9;
    for (bytes, why) in [
        (&b"rubbish"[..], "its superblock is damaged"),
        (&of_another_version, "it has format version 9, and this program knows 1"),
    ] {
        fs::write(&superblock, bytes).unwrap();
        let said = refusal(back(dir.path()));
        assert!(
            said.starts_with(&format!("cannot open {}: {why}, and with --write-mode back ", log.display())),
            "{said}"
        );
        assert!(said.contains(&format!("bring {} back from a copy, or remove it", superblock.display())), "{said}");
        assert_eq!(fs::read(&superblock).unwrap(), bytes, "nothing was changed");
    }
    fs::write(&superblock, &whole).unwrap();
    let node = back(dir.path()).unwrap();
    wait_until_uploaded(&node);
    assert_eq!(&*get(node.addr, b"a").unwrap().value, b"v", "nothing was lost");
    stop(node);

    fs::remove_file(&superblock).unwrap();
    let node = back(dir.path()).unwrap();
    assert_eq!(figure(&node, "milena_disk_entries{") as u64, 0, "an operator wanted an empty one");
    stop(node);
}

#[test]
fn in_write_mode_through_a_log_that_cannot_be_read_is_replaced_by_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let through = |dir: &Path| {
        start(dir, |config| {
            with_disk(config, 1);
            config.store = Some(format!("file://{}", dir.join("store").display()));
        })
    };
    let node = through(dir.path());
    put(node.addr, put_request(b"a", b"v")).unwrap();
    stop(node);
    fs::write(log_dir(dir.path()).join("superblock"), b"rubbish").unwrap();
    let node = through(dir.path());
    let found = get(node.addr, b"a").unwrap();
    assert_eq!((&*found.value, found.tier()), (&b"v"[..], Tier::S3));
    stop(node);
}
