//! `run`: exit codes, and a result that says what happened.

use std::net::TcpListener;

use milena_loadtest::{result::ReasonCode, times::Times};

use crate::{
    fake::{Fake, Lie},
    loadtest,
};

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const INVALID: i32 = 98;
const SLO_MISSED: i32 = 99;

/// Small enough for a machine with more to do.
const SMALL: &str = "-q -w 0.5s -d 1.5s -c 2 --streams 4 --keys 500 --value-size 100";

#[test]
fn a_closed_loop_leaves_a_result_with_everything_in_it() {
    let fake = Fake::start(Lie::None);
    let ended = loadtest(&format!("run --target {} {SMALL} --workload ycsb-a", fake.url()));
    let file = ended.file();
    let run = &file.runs[0];
    assert_eq!((&*run.settings.protocol, &*run.settings.workload), ("milena-node", "ycsb-a"));
    assert_eq!(file.command[1], "run");
    assert!(run.counts.requests > 0 && run.counts.errors == 0, "{:?}", run.counts);
    assert_eq!(run.counts.misses, 0, "every key was written before");
    assert_eq!(run.counts.hits_by_tier["memory"], run.counts.hits);
    assert_eq!(run.latency.iter().map(|latency| &*latency.op).collect::<Vec<_>>(), ["all", "get", "put"]);
    let all = &run.latency[0].response;
    assert_eq!(all.count, run.counts.requests);
    assert_eq!(Times::from_result(all).expect("a histogram").count(), all.count);
    let lengths: Vec<f64> = run.series.iter().map(|second| (second.length_s * 10.0).round() / 10.0).collect();
    assert_eq!(lengths, [0.5, 1.0, 0.5]);
    assert!(run.series[0].is_warmup && !run.series[1].is_warmup);
    assert_eq!(run.server.as_ref().map(|server| server.pid), Some(std::process::id()), "the server is this test");
    assert!(ended.shown().contains("requests/s"), "{}", ended.shown());
}

#[test]
fn an_open_loop_keeps_response_service_and_lag_apart() {
    let fake = Fake::start(Lie::None);
    let ended = loadtest(&format!("run --target {} {SMALL} -r 200", fake.url()));
    let run = &ended.file().runs[0];
    let all = &run.latency[0];
    assert!(run.counts.requests + run.counts.unsent > 200, "{:?}", run.counts);
    assert_eq!([all.response.count, all.service.count, all.lag.count], [run.counts.requests; 3]);
    assert!(all.response.mean_ns >= all.service.mean_ns, "{all:?}");
}

#[test]
fn the_exit_code_says_what_the_result_says() {
    let fake = Fake::start(Lie::None);
    let ended = loadtest(&format!("run --target {} {SMALL} --slo max<1ns --slo errors<=0", fake.url()));
    let run = &ended.file().runs[0];
    assert_eq!(run.slo.iter().map(|slo| slo.is_kept).collect::<Vec<_>>(), [false, true]);
    let expected = if run.validity.is_valid { SLO_MISSED } else { INVALID };
    assert_eq!(ended.code(), expected, "{:?}", run.validity);
}

#[test]
fn a_rate_that_nobody_can_make_is_invalid_and_not_slow() {
    let fake = Fake::start(Lie::None);
    let ended = loadtest(&format!("run --target {} {SMALL} -r 20M", fake.url()));
    let run = &ended.file().runs[0];
    assert_eq!(ended.code(), INVALID, "{}", ended.shown());
    assert!(run.validity.reasons.iter().any(|reason| reason.code == ReasonCode::AchievedRate), "{:?}", run.validity);
    assert!(run.counts.unsent > 0);
}

#[test]
fn batches_count_calls_and_keys_apart() {
    let fake = Fake::start(Lie::None);
    let ended = loadtest(&format!("run --target {} {SMALL} --batch 10", fake.url()));
    let counts = &ended.file().runs[0].counts;
    assert_eq!((counts.keys, counts.hits), (counts.requests * 10, counts.requests * 10));
}

#[test]
fn without_a_preload_nothing_is_there() {
    let fake = Fake::start(Lie::None);
    let ended = loadtest(&format!("run --target {} {SMALL} --no-preload", fake.url()));
    let counts = &ended.file().runs[0].counts;
    assert_eq!((counts.hits, counts.misses), (0, counts.requests));
}

#[test]
fn nobody_there_is_a_failure_with_the_address() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ended = loadtest(&format!("run --target http://{nobody} {SMALL}"));
    assert_eq!(ended.code(), FAILED);
    assert!(
        ended.errors().starts_with(&format!("milena-loadtest: http://{nobody}: UNAVAILABLE: ")),
        "{}",
        ended.errors()
    );
    assert!(ended.file.is_none());
}

#[test]
fn wrong_usage_is_named_by_its_flag() {
    let ended = loadtest("run --target http://127.0.0.1:1 --workload ycsb-e");
    assert_eq!(ended.code(), USAGE);
    assert!(ended.errors().contains("--workload ycsb-e: "), "{}", ended.errors());
    assert_eq!(loadtest("run --target nowhere").code(), USAGE);
}
