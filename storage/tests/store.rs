//! What every store promises, asked of S3 (a real server) and of a directory.

use std::{collections::HashMap, path::Path, sync::Barrier, thread};

use bytes::Bytes;
use milena_proto::key::{Key, KeyRef};
use milena_storage::{
    Cause, Condition, Entry, Error, Found, Put, Timestamp, Version,
    object::{Abilities, Asker, Store, StoreConfig, StoreSettings, directory::Directory, s3::S3},
};

#[path = "support/seaweed.rs"]
mod seaweed;

const NOW: Timestamp = Timestamp(1_000);
const LONG_AGO: Timestamp = Timestamp(1_500);
const FAR: Timestamp = Timestamp(4_000_000_000_000);

/// Runs each promise against each store. Tests share a bucket; each has a prefix of its own.
macro_rules! promises {
    ($($name:ident,)*) => {
        mod of_s3 {
            $(#[test] fn $name() { super::$name(&super::s3(stringify!($name))); })*
        }
        mod of_a_directory {
            $(#[test] fn $name() {
                let dir = tempfile::tempdir().unwrap();
                super::$name(&super::Directory::open(dir.path()).unwrap());
            })*
        }
    };
}

promises! {
    what_is_written_is_read_with_its_version,
    what_is_not_there_is_absent_and_can_be_removed,
    a_known_version_is_not_sent_again,
    a_value_whose_life_has_ended_is_absent,
    if_absent_writes_once_and_overwrites_nothing,
    if_absent_takes_the_place_of_a_value_whose_life_has_ended,
    if_version_replaces_that_version_only,
    a_conditional_delete_removes_that_version_only,
    odd_keys_are_kept_apart,
    equal_keys_in_other_buckets_are_kept_apart,
    of_sixteen_that_create_one_wins,
    no_increment_is_lost,
    a_document_is_compared_and_set,
    both_conditions_are_found_to_be_honoured,
}

fn s3(test: &str) -> S3 {
    let server = seaweed::shared();
    let settings = StoreSettings {
        store: Some(&format!("s3://{}/{test}", seaweed::BUCKET)),
        s3_endpoint: Some(&server.endpoint()),
        access_key_id: Some(seaweed::ACCESS_KEY_ID),
        secret_access_key: Some(seaweed::SECRET_ACCESS_KEY),
        ..StoreSettings::none(Path::new("."))
    };
    match StoreConfig::read(&settings).unwrap() {
        StoreConfig::S3(config) => S3::new(*config),
        other => panic!("{other}"),
    }
}

fn key(name: &[u8]) -> Key {
    KeyRef::parse(b"default", name).unwrap().to_key()
}

fn asker() -> Asker {
    Asker::new(1)
}

fn get(store: &dyn Store, name: &str) -> Found {
    store.get(&key(name.as_bytes()), None, NOW, &mut asker()).unwrap()
}

fn put(store: &dyn Store, name: &str, value: &str) -> Version {
    put_if(store, name, value, None, &Condition::Always).unwrap()
}

fn put_if(
    store: &dyn Store,
    name: &str,
    value: &str,
    expires: Option<Timestamp>,
    condition: &Condition,
) -> Result<Version, Cause> {
    let put = Put { expires, ..Put::new(value.to_owned(), condition.clone()) };
    store.put(&key(name.as_bytes()), &put, &mut asker()).map_err(|error| error.cause)
}

fn delete_if(store: &dyn Store, name: &str, condition: &Condition) -> Result<(), Cause> {
    store.delete(&key(name.as_bytes()), condition, &mut asker()).map_err(|error| error.cause)
}

fn entry(value: &str, version: &Version) -> Found {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Found::Entry(Entry { value, version: version.clone(), expires: None })
}

fn version(text: &'static str) -> Version {
    Version::new(Bytes::from(text)).unwrap()
}

// ---- The promises.

fn what_is_written_is_read_with_its_version(store: &dyn Store) {
    for size in [0, 1, 100, 16 << 10, (5 << 20) + 1] {
        let value: Bytes = (0..size).map(|index| ((index * 31) >> 3) as u8).collect();
        let name = format!("of {size} bytes");
        let version = store
            .put(
                &key(name.as_bytes()),
                &Put { expires: Some(FAR), ..Put::new(value.clone(), Condition::Always) },
                &mut asker(),
            )
            .unwrap();
        assert_eq!(get(store, &name), Found::Entry(Entry { value, version, expires: Some(FAR) }), "{size}");
    }
    put(store, "k", "old");
    let newer = put(store, "k", "new");
    assert_eq!(get(store, "k"), entry("new", &newer));
}

fn what_is_not_there_is_absent_and_can_be_removed(store: &dyn Store) {
    assert_eq!(get(store, "k"), Found::Absent);
    delete_if(store, "k", &Condition::Always).unwrap();
    put(store, "k", "1");
    delete_if(store, "k", &Condition::Always).unwrap();
    assert_eq!(get(store, "k"), Found::Absent);
    delete_if(store, "k", &Condition::Always).unwrap();
}

fn a_known_version_is_not_sent_again(store: &dyn Store) {
    let first = put(store, "k", "1");
    let ask = |known: &Version| store.get(&key(b"k"), Some(known), NOW, &mut asker()).unwrap();
    assert_eq!(ask(&first), Found::Unchanged);
    let second = put(store, "k", "2");
    assert_eq!(ask(&first), entry("2", &second));
    assert_eq!(ask(&version("no\"etag")), entry("2", &second));
    delete_if(store, "k", &Condition::Always).unwrap();
    assert_eq!(ask(&second), Found::Absent);
}

fn a_value_whose_life_has_ended_is_absent(store: &dyn Store) {
    let version = put_if(store, "k", "1", Some(Timestamp(2_000)), &Condition::Always).unwrap();
    let at = |ms| store.get(&key(b"k"), None, Timestamp(ms), &mut asker()).unwrap();
    let lives = Entry { value: Bytes::from("1"), version, expires: Some(Timestamp(2_000)) };
    assert_eq!(at(1_999), Found::Entry(lives));
    assert_eq!(at(2_000), Found::Absent);
    let newer = put(store, "k", "2");
    assert_eq!(at(2_000), entry("2", &newer));
}

fn if_absent_writes_once_and_overwrites_nothing(store: &dyn Store) {
    let first = put_if(store, "k", "1", None, &Condition::IfAbsent).unwrap();
    assert_eq!(put_if(store, "k", "2", None, &Condition::IfAbsent), Err(Cause::AlreadyExists));
    assert_eq!(get(store, "k"), entry("1", &first));
    delete_if(store, "k", &Condition::Always).unwrap();
    let second = put_if(store, "k", "3", None, &Condition::IfAbsent).unwrap();
    assert_eq!(get(store, "k"), entry("3", &second));
}

fn if_absent_takes_the_place_of_a_value_whose_life_has_ended(store: &dyn Store) {
    put_if(store, "k", "1", Some(LONG_AGO), &Condition::Always).unwrap();
    let second = put_if(store, "k", "2", None, &Condition::IfAbsent).unwrap();
    assert_eq!(get(store, "k"), entry("2", &second));
    assert_eq!(put_if(store, "k", "3", None, &Condition::IfAbsent), Err(Cause::AlreadyExists));
}

fn if_version_replaces_that_version_only(store: &dyn Store) {
    let mismatch = Err(Cause::VersionMismatch);
    let first = put(store, "k", "1");
    let second = put_if(store, "k", "2", None, &Condition::IfVersion(first.clone())).unwrap();
    assert_ne!(first, second);
    for wrong in [first, version("*"), version("a\"b"), version("\",\""), version("00000000000000000000000000000000")] {
        assert_eq!(put_if(store, "k", "3", None, &Condition::IfVersion(wrong)), mismatch);
    }
    assert_eq!(get(store, "k"), entry("2", &second));
    delete_if(store, "k", &Condition::Always).unwrap();
    assert_eq!(put_if(store, "k", "4", None, &Condition::IfVersion(second)), mismatch);
    assert_eq!(get(store, "k"), Found::Absent);
}

fn a_conditional_delete_removes_that_version_only(store: &dyn Store) {
    let first = put(store, "k", "1");
    let second = put(store, "k", "2");
    for wrong in [first, version("a\"b")] {
        assert_eq!(delete_if(store, "k", &Condition::IfVersion(wrong)), Err(Cause::VersionMismatch));
    }
    assert_eq!(delete_if(store, "k", &Condition::IfAbsent), Err(Cause::AlreadyExists));
    assert_eq!(get(store, "k"), entry("2", &second));
    delete_if(store, "k", &Condition::IfVersion(second)).unwrap();
    assert_eq!(get(store, "k"), Found::Absent);
    delete_if(store, "k", &Condition::IfAbsent).unwrap();
}

fn odd_keys_are_kept_apart(store: &dyn Store) {
    let mut names: Vec<Vec<u8>> = [
        "a",
        "a/b",
        "a/b/c",
        "a/",
        "/a",
        "a//b",
        "/",
        "//",
        ".",
        "..",
        "../..",
        "a/./b",
        "a/../b",
        ".hidden",
        "a.",
        "a b",
        " ",
        "a+b",
        "a%b",
        "a%2Fb",
        "%2E",
        "%",
        "%%",
        "%~",
        "~",
        "?",
        "#",
        "a?b=c&d",
        "ä",
        "漢字/🦀",
        "'",
        "\"",
        "<&>",
        "*",
        "|",
        ":",
        ";",
        "\\",
        "a\\b",
        "{}[]",
        "^`",
        "@",
        "!$'()*,;=",
        "CON",
        "A",
        "\u{fffd}",
        "e\u{301}",
        "é",
    ]
    .iter()
    .map(|name| name.as_bytes().to_vec())
    .collect();
    names.extend([b"\0".to_vec(), b"\n\r\t\x7f".to_vec(), b"\xff".to_vec(), b"\xc3".to_vec(), (1..=255).collect()]);
    for (byte, length) in
        [(b'x', 255), (b'x', 256), (b'x', 900), (b'x', 1_023), (b'x', 1_024), (b'%', 1_024), (0xff, 1_024)]
    {
        names.push(vec![byte; length]);
    }
    let mut versions = HashMap::new();
    for (index, name) in names.iter().enumerate() {
        let value = Bytes::from(index.to_string());
        let version = store.put(&key(name), &Put::new(value.clone(), Condition::Always), &mut asker());
        versions.insert(name, version.unwrap_or_else(|error| panic!("{}: {error}", name.escape_ascii())));
    }
    for (index, name) in names.iter().enumerate() {
        let found = store.get(&key(name), None, NOW, &mut asker());
        let expected = entry(&index.to_string(), &versions[name]);
        assert_eq!(found, Ok(expected), "{}", name.escape_ascii());
    }
    for name in &names {
        store.delete(&key(name), &Condition::Always, &mut asker()).unwrap();
        assert_eq!(store.get(&key(name), None, NOW, &mut asker()), Ok(Found::Absent), "{}", name.escape_ascii());
    }
}

fn equal_keys_in_other_buckets_are_kept_apart(store: &dyn Store) {
    let one = KeyRef::parse(b"a", b"bc").unwrap().to_key();
    let other = KeyRef::parse(b"ab", b"c").unwrap().to_key();
    store.put(&one, &Put::new("1", Condition::Always), &mut asker()).unwrap();
    assert_eq!(store.get(&other, None, NOW, &mut asker()), Ok(Found::Absent));
}

fn of_sixteen_that_create_one_wins(store: &dyn Store) {
    store.probe(&mut asker()).unwrap();
    let start = Barrier::new(16);
    let results: Vec<_> = thread::scope(|scope| {
        let create = |value: String| {
            start.wait();
            put_if(store, "k", &value, None, &Condition::IfAbsent).map(|version| (value, version))
        };
        let threads: Vec<_> = (0..16).map(|index| scope.spawn(move || create(index.to_string()))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let winners: Vec<_> = results.iter().flatten().collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    assert!(results.iter().flat_map(|result| result.as_ref().err()).all(|cause| *cause == Cause::AlreadyExists));
    assert_eq!(get(store, "k"), entry(&winners[0].0, &winners[0].1));
}

fn no_increment_is_lost(store: &dyn Store) {
    const THREADS: usize = 8;
    const INCREMENTS: usize = 5;
    put(store, "k", "0");
    let increment = || {
        loop {
            let Found::Entry(current) = get(store, "k") else { panic!("it was there") };
            let count: usize = std::str::from_utf8(&current.value).unwrap().parse().unwrap();
            match put_if(store, "k", &(count + 1).to_string(), None, &Condition::IfVersion(current.version)) {
                Ok(_) => return,
                Err(Cause::VersionMismatch) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| (0..INCREMENTS).for_each(|_| increment()));
        }
    });
    let Found::Entry(last) = get(store, "k") else { panic!("it was there") };
    assert_eq!(last.value, (THREADS * INCREMENTS).to_string());
}

fn a_document_is_compared_and_set(store: &dyn Store) {
    let name = "topology.json";
    let read = || store.get_document(name, &mut asker()).unwrap();
    let write = |text: &'static str, condition: &Condition| -> Result<Version, Error> {
        store.put_document(name, &Put::new(text, condition.clone()), &mut asker())
    };
    assert_eq!(read(), None);
    let first = write("{}", &Condition::IfAbsent).unwrap();
    assert_eq!(write("{1}", &Condition::IfAbsent).unwrap_err().cause, Cause::AlreadyExists);
    let second = write("{2}", &Condition::IfVersion(first.clone())).unwrap();
    assert_eq!(write("{3}", &Condition::IfVersion(first)).unwrap_err().cause, Cause::VersionMismatch);
    assert_eq!(read(), Some(Entry { value: Bytes::from("{2}"), version: second, expires: None }));
}

fn both_conditions_are_found_to_be_honoured(store: &dyn Store) {
    let expected = Abilities { conditional_puts: true, conditional_deletes: true };
    assert_eq!(store.probe(&mut asker()), Ok(expected));
}

// ---- Two processes on one directory.

#[test]
fn two_that_share_a_directory_lose_no_increment() {
    let dir = tempfile::tempdir().unwrap();
    let stores = [Directory::open(dir.path()).unwrap(), Directory::open(dir.path()).unwrap()];
    put(&stores[0], "k", "0");
    thread::scope(|scope| {
        for store in &stores {
            scope.spawn(move || {
                for _ in 0..20 {
                    loop {
                        let Found::Entry(current) = get(store, "k") else { panic!("it was there") };
                        let count: usize = std::str::from_utf8(&current.value).unwrap().parse().unwrap();
                        let next = (count + 1).to_string();
                        if put_if(store, "k", &next, None, &Condition::IfVersion(current.version)).is_ok() {
                            break;
                        }
                    }
                }
            });
        }
    });
    let Found::Entry(last) = get(&stores[1], "k") else { panic!("it was there") };
    assert_eq!(last.value, "40");
}
