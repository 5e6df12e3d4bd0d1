//! `replay`: each request of a trace is made once, and the run ends with it.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use crate::{
    Ended,
    fake::{Fake, Lie},
    loadtest,
};

/// A trace file in a directory of its own.
struct Recorded {
    dir: TempDir,
    path: PathBuf,
}

fn recorded(name: &str, bytes: impl AsRef<[u8]>) -> Recorded {
    let dir = tempfile::tempdir().expect("a directory of our own");
    let path = dir.path().join(name);
    fs::write(&path, bytes).expect("a file in it");
    Recorded { dir, path }
}

fn replay(fake: &Fake, trace: &Recorded, more: &str) -> Ended {
    assert!(trace.dir.path().is_dir());
    loadtest(&format!("replay {} --target {} -q -c 2 --streams 4 {more}", trace.path.display(), fake.url()))
}

#[test]
fn every_request_is_made_and_what_was_not_there_is_written() {
    let lines: String = (0..1000).map(|index| format!("key {}\n", index % 100)).collect();
    let trace = recorded("keys.txt", lines);
    let ended = replay(&Fake::start(Lie::None), &trace, "");
    let run = &ended.file().runs[0];
    assert_eq!(run.counts.requests_by_op["get"], 1000);
    // Several streams may miss the same key before the first has written it.
    assert!(run.counts.misses >= 100 && run.counts.requests_by_op["put"] == run.counts.misses, "{:?}", run.counts);
    assert_eq!((run.settings.keys, &*run.settings.workload, &*run.settings.key_dist), (100, "keys.txt", "trace"));
    assert!(run.series.len() < 30, "it ends with the trace: {}", run.series.len());
}

#[test]
fn without_filling_nothing_is_written() {
    let trace = recorded("keys.txt", "one\ntwo\none\n");
    let ended = replay(&Fake::start(Lie::None), &trace, "--no-fill -t 2");
    let counts = &ended.file().runs[0].counts;
    assert_eq!((counts.requests, counts.misses), (3, 3));
}

#[test]
fn a_trace_in_its_own_time_is_an_open_loop() {
    let lines: String = (0..200).map(|index| format!("{},k{index},3,50,1,set,0\n", index / 100)).collect();
    let trace = recorded("cluster.csv", lines);
    let ended = replay(&Fake::start(Lie::None), &trace, "--speed 2");
    let run = &ended.file().runs[0];
    assert_eq!((run.counts.requests, run.latency[0].lag.count), (200, 200));
    assert!(run.settings.rate_per_s > 150.0, "{}", run.settings.rate_per_s);
}

#[test]
fn a_trace_that_cannot_be_read_is_named() {
    let trace = recorded("cluster.csv", "1,k,1,1,1,fetch,0\n");
    let ended = replay(&Fake::start(Lie::None), &trace, "");
    assert_eq!(ended.code(), 1);
    assert!(ended.errors().contains("record 1 of the trace: an operation that nobody knows"), "{}", ended.errors());
    let ended = replay(&Fake::start(Lie::None), &trace, "--keys 5");
    assert_eq!(ended.code(), 2);
}
