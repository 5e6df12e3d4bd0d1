//! A node with a disk and no store: the log is all that outlives the process.

use std::path::Path;

use super::*;

/// Memory for two entries, and no store.
fn start_alone(dir: &Path) -> Running {
    start(dir, |config| {
        config.store = Some("none".to_owned());
        config.disk = Some("8MiB".to_owned());
        config.lru_size = Some("2".to_owned());
    })
}

#[test]
fn without_a_store_what_was_written_is_on_disk_after_a_restart_and_what_was_deleted_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let node = start_alone(dir.path());
    let keys: Vec<Vec<u8>> = (0..20).map(|index| format!("key {index}").into_bytes()).collect();
    for key in &keys {
        put(node.addr, put_request(key, b"first")).unwrap();
        put(node.addr, put_request(key, key)).unwrap();
    }
    delete(node.addr, delete_request(&keys[0])).unwrap();
    let versions: Vec<_> = keys[1..].iter().map(|key| get(node.addr, key).unwrap().version).collect();
    stop(node);

    let node = start_alone(dir.path());
    assert_eq!(get(node.addr, &keys[0]).unwrap(), GetResponse::default());
    for (key, version) in keys[1..].iter().zip(&versions) {
        let found = get(node.addr, key).unwrap();
        assert_eq!((&*found.value, found.tier(), &found.version), (&**key, Tier::Disk, version));
    }
    assert_eq!(figure(&node, "milena_evictions_total{tier=\"disk\""), 0.0);
    stop(node);
}

#[test]
fn without_a_store_conditions_hold_against_what_only_the_disk_has() {
    let dir = tempfile::tempdir().unwrap();
    let node = start_alone(dir.path());
    let first = put(node.addr, put_request(b"a", b"1")).unwrap().version;
    stop(node);
    let node = start_alone(dir.path());
    let absent = PutRequest { if_absent: true, ..put_request(b"a", b"2") };
    assert_eq!(put(node.addr, absent).unwrap_err().code, Code::AlreadyExists);
    let other = PutRequest { if_version: "other".to_owned(), ..put_request(b"a", b"2") };
    assert_eq!(put(node.addr, other).unwrap_err().code, Code::Aborted);
    let same = PutRequest { if_version: first.clone(), ..put_request(b"a", b"2") };
    let second = put(node.addr, same).unwrap().version;
    assert_ne!(first, second, "no version is given twice, whichever process gives it");
    let gone = DeleteRequest { if_version: first, ..delete_request(b"a") };
    assert_eq!(delete(node.addr, gone).unwrap_err().code, Code::Aborted);
    assert_eq!(&*get(node.addr, b"a").unwrap().value, b"2");
    assert!(delete(node.addr, DeleteRequest { if_version: second, ..delete_request(b"a") }).unwrap().successful);
    assert!(!get(node.addr, b"a").unwrap().successful);
    stop(node);
}

#[test]
fn without_a_store_a_write_may_wait_for_the_disk_but_not_for_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let node = start_alone(dir.path());
    let with = |ack: Ack, key: &[u8]| PutRequest { ack: ack.into(), ..put_request(key, b"v") };
    for ack in [Ack::Default, Ack::Memory, Ack::Disk] {
        put(node.addr, with(ack, b"a")).unwrap();
        let removal = DeleteRequest { ack: ack.into(), ..delete_request(b"a") };
        assert!(delete(node.addr, removal).unwrap().successful);
        assert!(!get(node.addr, b"a").unwrap().successful);
    }
    let refused = put(node.addr, with(Ack::S3, b"b")).unwrap_err();
    assert_eq!(
        (refused.code, &*refused.message),
        (
            Code::FailedPrecondition,
            "ack is ACK_S3, and this node has no store; ACK_DISK, ACK_MEMORY and ACK_DEFAULT are possible; nothing was written"
        )
    );
    assert!(!get(node.addr, b"b").unwrap().successful);
    stop(node);
}

#[test]
fn without_a_store_a_value_too_large_for_memory_is_kept_on_disk_and_one_too_large_for_both_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| {
        config.store = Some("none".to_owned());
        config.disk = Some("512MiB".to_owned());
        config.memory = Some("32MiB".to_owned());
    });
    let large = vec![7; 400 << 10];
    put(node.addr, put_request(b"a", &large)).unwrap();
    let found = get(node.addr, b"a").unwrap();
    assert_eq!((&*found.value, found.tier()), (&*large, Tier::Disk));
    let refused = put(node.addr, put_request(b"a", &vec![8; 600 << 10])).unwrap_err();
    assert_eq!(refused.code, Code::InvalidArgument, "{refused}");
    assert_eq!(&*get(node.addr, b"a").unwrap().value, &*large, "nothing was written");
    stop(node);
}
