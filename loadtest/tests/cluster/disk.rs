//! The log on disk below a node: what is there again after a kill, and never something older than what was accepted.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::{
    client::Client,
    mounted::{Mounted, fill_up, make_read_only, mount},
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

/// Starts a node, writes its keys in turn, each with its next number as `value`, and kills it when all were accepted `least`
/// times. `accepted` has the last accepted number of each key.
pub(crate) fn write_and_kill(
    node: &mut Server,
    accepted: &[AtomicUsize],
    least: usize,
    value: impl Fn(usize) -> String + Send,
) {
    node.start();
    thread::scope(|scope| {
        let client = Client::node(node.address);
        scope.spawn(move || {
            for key in (0..accepted.len()).cycle() {
                let next = accepted[key].load(Ordering::Relaxed) + 1;
                if client.put(&format!("k{key}"), &value(next)).is_err() {
                    return;
                }
                accepted[key].store(next, Ordering::Relaxed);
            }
        });
        let enough = || accepted.iter().all(|accepted| accepted.load(Ordering::Relaxed) >= least);
        wait_until("every key is written", PATIENCE, || enough().then_some(()));
        node.kill();
    });
}

#[test]
fn a_node_that_is_killed_while_it_writes_its_log_answers_nothing_older_than_it_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Server::node(dir.path(), &SETTINGS);
    let accepted: Vec<AtomicUsize> = (0..KEYS).map(|_| AtomicUsize::new(0)).collect();
    for round in 1..=5 {
        write_and_kill(&mut node, &accepted, round * 10, value);
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

/// A node whose directory is a filesystem in memory of this size, and that directory; its store is elsewhere.
fn node_on_small_disk(dir: &Path, size: &str) -> (Server, PathBuf, Mounted) {
    let small = dir.join("small");
    fs::create_dir(&small).unwrap();
    let mounted = mount("tmpfs", &small, size);
    let (data_dir, store) = (small.display().to_string(), format!("file://{}/store", dir.display()));
    (Server::node(dir, &[&SETTINGS[..], &[("DATA_DIR", &*data_dir), ("STORE", &*store)]].concat()), small, mounted)
}

/// The lines about the log that are no news of success.
fn complaints(log: &str) -> Vec<&str> {
    log.lines()
        .filter(|line| line.contains("milena-cache: ") || (line.contains("log: ") && !line.contains("Z info ")))
        .collect()
}

#[test]
fn a_node_whose_disk_has_no_room_for_its_log_ends_with_one_line_that_says_how_much_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, small, _mounted) = node_on_small_disk(dir.path(), "size=1m");
    let program = node.launch();
    assert_eq!(program.exit_code(), Some(1));
    let log = program.log();
    let said = complaints(&log);
    assert_eq!(said.len(), 1, "{log}");
    let start = format!("milena-cache: cannot open {}/node-", small.display());
    assert!(said[0].starts_with(&start), "{log}");
    assert!(said[0].contains(" free, and the log needs at least 1664KiB: No space left on device"), "{log}");
}

#[test]
fn a_node_whose_disk_becomes_full_goes_on_with_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, small, _mounted) = node_on_small_disk(dir.path(), "size=24m");
    node.start();
    fill_up(&small.join("other"));
    let client = Client::node(node.address);
    for turn in 0..40 {
        client.put(&format!("k{}", turn % KEYS), &value(turn)).unwrap();
    }
    for key in 0..KEYS {
        assert_eq!(number(&client.get(&format!("k{key}")).unwrap().unwrap()), 20 + key);
    }
    assert!(node.metric("milena_cache_hits_total", "disk") > 0);
    assert_eq!((node.metric("milena_log_errors_total", "write"), node.metric("milena_disk_degraded", "")), (0, 0));
    assert_eq!(complaints(&node.program().log()), [""; 0]);
    node.kill();
}

#[test]
fn a_node_whose_disk_is_full_starts_again_as_itself_after_a_kill_and_after_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, small, _mounted) = node_on_small_disk(dir.path(), "size=24m");
    node.start();
    Client::node(node.address).put("k", "v").unwrap();
    let incarnation = small.join(format!("node-{}/incarnation", node.address.port()));
    let read = || fs::read_to_string(&incarnation).unwrap().trim_end().parse::<u64>().unwrap();
    let mut last = read();
    fill_up(&small.join("other"));
    for turn in 0..3 {
        if turn == 1 {
            assert_eq!(node.stop(), Some(0));
        } else {
            node.kill();
        }
        node.start();
        assert!(read() > last, "each start is another incarnation");
        last = read();
        assert_eq!(Client::node(node.address).get("k").unwrap().as_deref(), Some(&b"v"[..]));
    }
    node.kill();
}

/// A segment that holds something, of any core of the node in `dir`, and all others.
fn segments(node_dir: &Path) -> Vec<PathBuf> {
    let logs = (0..2).map(|core| node_dir.join(format!("log-{core:03}")));
    let files = logs.flat_map(|log| fs::read_dir(log).unwrap()).map(|file| file.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("segment-")).collect()
}

#[test]
fn what_goes_wrong_with_a_segment_is_said_once_and_what_was_in_it_comes_from_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Server::node(dir.path(), &SETTINGS);
    let node_dir = dir.path().join(format!("node-{}", node.address.port()));
    node.start();
    let client = Client::node(node.address);
    for key in 0..KEYS {
        client.put(&format!("k{key}"), &value(key)).unwrap();
    }
    node.stop();
    for path in segments(&node_dir) {
        // A byte of the first record's value.
        fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"X", 4096 + 1000).unwrap();
    }
    node.start();
    let recovered = node.metric("milena_log_recovered_entries", "");
    assert!(recovered > 0 && recovered <= KEYS as u64, "{recovered}");
    let client = Client::node(node.address);
    for key in (0..KEYS).chain(0..KEYS) {
        assert_eq!(number(&client.get(&format!("k{key}")).unwrap().unwrap()), key);
    }
    // Each was met by a get, and again before it was replaced.
    assert!(node.metric("milena_log_errors_total", "corrupt") > 2);
    let count = || {
        let log = node.program().log();
        let said: Vec<String> = complaints(&log).iter().map(|line| (*line).to_owned()).collect();
        (said.len() >= 2).then_some(said)
    };
    let said = wait_until("both cores say it", PATIENCE, count);
    assert_eq!(said.len(), 2, "{said:?}");
    let text = "segment 0 at byte 4096: not what was written; a miss, and the segment will be emptied";
    assert!(said.iter().all(|line| line.contains("Z warn ") && line.ends_with(text)), "{said:?}");

    // What cannot be told from rubbish is none.
    node.stop();
    fs::write(node_dir.join("log-000/superblock"), "rubbish").unwrap();
    node.start();
    let log = node.program().log();
    assert_eq!(complaints(&log).len(), 1, "{log}");
    assert!(log.contains("log: core 0 begins with an empty log: its superblock is damaged"), "{log}");
    node.kill();
}

#[test]
fn a_disk_that_takes_no_writes_any_more_is_given_up_with_a_few_lines_and_the_node_serves_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, small, _mounted) = node_on_small_disk(dir.path(), "size=24m");
    node.start();
    let node_dir = small.join(format!("node-{}", node.address.port()));
    // What was taken at the start is taken away: every write needs room that is not there.
    for path in segments(&node_dir) {
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
    }
    fill_up(&small.join("other"));
    let client = Client::node(node.address);
    let mut turn = 0;
    let is_given_up = || {
        client.put(&format!("k{}", turn % KEYS), &value(turn)).unwrap();
        turn += 1;
        let log = node.program().log();
        (log.matches("Z error ").count() == 2).then_some(log)
    };
    let log = wait_until("both cores give their disk up", PATIENCE, is_given_up);
    let said = complaints(&log);
    assert!(said.len() <= 2 * 12, "a line for each segment that was tried: {log}");
    assert!(said.iter().any(|line| line.contains("cannot be written: no storage space")), "{log}");
    let given_up = "the disk failed too often and is not used any more; serving from memory and the store";
    assert_eq!(said.iter().filter(|line| line.contains(given_up)).count(), 2, "{log}");
    assert_eq!(node.metric("milena_disk_degraded", ""), 2);
    for key in 0..KEYS.min(turn) {
        assert_eq!(number(&client.get(&format!("k{key}")).unwrap().unwrap()) % KEYS, key);
    }
    node.kill();
}

#[test]
fn a_node_whose_disk_is_read_only_ends_with_one_line_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, small, _mounted) = node_on_small_disk(dir.path(), "size=24m");
    make_read_only(&small);
    let program = node.launch();
    assert_eq!(program.exit_code(), Some(1));
    let log = program.log();
    let said = complaints(&log);
    assert!(said.len() == 1 && said[0].contains(&format!("{}/", small.display())), "{log}");
    assert!(said[0].contains("Read-only file system"), "{log}");
}
