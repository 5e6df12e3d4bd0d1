//! A node that starts with another number of cores than before: what its disk has is still answered, and still uploaded.

use std::{fs, path::Path};

use super::*;

/// Memory for two entries, so that the disk has to answer.
pub(super) fn with_disk(config: &mut Config, core_count: usize) {
    config.cores = Some(core_count.to_string());
    config.disk = Some("8MiB".to_owned());
    config.lru_size = Some("2".to_owned());
}

fn start_alone(dir: &Path, core_count: usize) -> Running {
    start(dir, |config| {
        with_disk(config, core_count);
        config.store = Some("none".to_owned());
    })
}

#[test]
fn every_value_is_still_answered_from_disk_after_a_start_with_another_number_of_cores() {
    let dir = tempfile::tempdir().unwrap();
    let keys: Vec<Vec<u8>> = (0..20).map(|index| format!("key {index}").into_bytes()).collect();
    let node = start_alone(dir.path(), 1);
    for key in &keys {
        put(node.addr, put_request(key, b"first")).unwrap();
        put(node.addr, put_request(key, key)).unwrap();
    }
    stop(node);
    for (round, core_count) in [2, 3, 2, 1].into_iter().enumerate() {
        let node = start_alone(dir.path(), core_count);
        assert_eq!(figure(&node, "milena_disk_entries{"), (keys.len() - round) as f64);
        for (index, key) in keys.iter().enumerate() {
            let found = get(node.addr, key).unwrap();
            if index < round {
                assert_eq!(found, GetResponse::default(), "deleted before {core_count} cores");
            } else {
                assert_eq!((&*found.value, found.tier()), (&**key, Tier::Disk), "with {core_count} cores");
            }
        }
        delete(node.addr, delete_request(&keys[round])).unwrap();
        stop(node);
    }
}

/// A node that acknowledges before the store has it.
pub(super) fn start_back(dir: &Path, core_count: usize) -> Running {
    start(dir, |config| {
        with_disk(config, core_count);
        config.store = Some(format!("file://{}", dir.join("store").display()));
        config.write_mode = Some("back".to_owned());
    })
}

/// Takes the store away, and puts something in its place that is none.
pub(super) fn take_store_away(dir: &Path) {
    fs::rename(dir.join("store"), dir.join("away")).unwrap();
    fs::write(dir.join("store"), b"").unwrap();
}

pub(super) fn bring_store_back(dir: &Path) {
    fs::remove_file(dir.join("store")).unwrap();
    fs::rename(dir.join("away"), dir.join("store")).unwrap();
}

pub(super) fn wait_until_uploaded(node: &Running) {
    let end = Instant::now() + PATIENCE;
    while figure(node, "milena_log_dirty_bytes{") > 0.0 {
        assert!(Instant::now() < end, "not uploaded");
        thread::park_timeout(Duration::from_millis(10));
    }
}

#[test]
fn what_was_acknowledged_with_one_core_arrives_in_the_store_from_two_and_no_start_forgets_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = start_back(dir.path(), 1);
    put(node.addr, put_request(b"deleted", b"old")).unwrap();
    put(node.addr, put_request(b"key 0", b"old")).unwrap();
    wait_until_uploaded(&node);
    take_store_away(dir.path());
    let keys: Vec<Vec<u8>> = (0..10).map(|index| format!("key {index}").into_bytes()).collect();
    for key in &keys {
        put(node.addr, put_request(key, key)).unwrap();
    }
    delete(node.addr, delete_request(b"deleted")).unwrap();
    stop(node);

    let refused = try_to_start(dir.path(), |config| {
        with_disk(config, 2);
        config.store = Some("none".to_owned());
    });
    let refused = refused.expect_err("nobody would upload them").to_string();
    assert!(refused.starts_with("--store none: 11 writes in "), "{refused}");

    bring_store_back(dir.path());
    let node = start_back(dir.path(), 2);
    for key in &keys {
        assert_eq!(&*get(node.addr, key).unwrap().value, &**key);
    }
    assert!(!get(node.addr, b"deleted").unwrap().successful);
    wait_until_uploaded(&node);
    stop(node);

    let other = tempfile::tempdir().unwrap();
    let node = start(other.path(), |config| {
        config.store = Some(format!("file://{}", dir.path().join("store").display()));
    });
    for key in &keys {
        let found = get(node.addr, key).unwrap();
        assert_eq!((&*found.value, found.tier()), (&**key, Tier::S3));
    }
    assert!(!get(node.addr, b"deleted").unwrap().successful);
    stop(node);
}
