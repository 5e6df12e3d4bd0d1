//! Results as the program writes them, made up: smooth distributions, and time series with a bend in the middle.
//!
//! They are written as JSON, so that a field which a later version adds and may be absent needs nothing here.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hdrhistogram::{
    Histogram,
    serialization::{Serializer as _, V2DeflateSerializer},
};
use milena_loadtest::result::{PERCENTILES, ResultFile, SAMPLES_BEYOND_MIN};
use serde_json::{Value, json};

/// Quantiles of which a made-up histogram consists.
const QUANTILES: u32 = 1_000;

/// One run at 20,000 calls per second, valid, its promises kept.
pub(crate) fn run() -> ResultFile {
    file("run", &[one("", 20_000.0, 60, true)])
}

/// The same with the promise missed, and not to be believed.
pub(crate) fn invalid() -> ResultFile {
    file("run", &[one("", 20_000.0, 60, false)])
}

/// A closed loop with so few calls that hardly a percentile can be told, and a server that is elsewhere.
pub(crate) fn scarce() -> ResultFile {
    let mut run = one("", 0.0, 12, true);
    let few = histogram(900, 200_000.0);
    run["latency"] = json!([{ "op": "all", "response": few, "service": few, "lag": histogram(0, 1.0) }]);
    run["settings"]["target"] = json!("http://cache.example:50051");
    run["server"] = Value::Null;
    run["server_absent_because"] = json!("cache.example is not this machine");
    for second in run["series"].as_array_mut().unwrap() {
        for unknown in ["p99_ns", "p999_ns", "server_cpu_ns"] {
            second[unknown] = Value::Null;
        }
    }
    file("run", &[run])
}

/// A run that checked its answers and found some that were wrong.
pub(crate) fn verified() -> ResultFile {
    let mut run = one("", 5_000.0, 30, true);
    run["verify"] = json!({
        "reads": 1_000_000, "writes": 50_000, "writes_unknown": 3, "misses_allowed": 12_000,
        "violations": { "stale": 2, "lost": 1 },
        "examples": ["key 4711: version 3 after version 5 was acknowledged"],
    });
    file("verify", &[run])
}

/// Eight rates, of which the last two were too much for the client.
pub(crate) fn sweep() -> ResultFile {
    let rates = (1..=8).map(|step| f64::from(step) * 10_000.0);
    let runs: Vec<Value> = rates.map(|rate| one(&format!("{rate:.0}/s"), rate, 20, rate < 70_000.0)).collect();
    file("sweep", &runs)
}

/// The same as a search.
pub(crate) fn search() -> ResultFile {
    let mut file = serde_json::to_value(sweep()).unwrap();
    file["kind"] = json!("search");
    let verdicts = ["kept", "kept", "kept", "kept", "missed", "missed", "invalid", "invalid"];
    let probes = verdicts
        .iter()
        .enumerate()
        .map(|(index, verdict)| json!({ "rate_per_s": (index + 1) * 10_000, "verdict": verdict, "run_index": index }));
    file["search"] =
        json!({ "rate_per_s": 40_000.0, "missed_per_s": 50_000.0, "probes": probes.collect::<Vec<Value>>() });
    serde_json::from_value(file).unwrap()
}

/// Four pairs of turns.
pub(crate) fn ab() -> ResultFile {
    let turns = ["A", "B", "B", "A", "A", "B", "B", "A"];
    let runs = turns.map(|turn| one(turn, if turn == "A" { 20_000.0 } else { 26_000.0 }, 10, true));
    let mut file = serde_json::to_value(file("ab", &runs)).unwrap();
    let ratio = |figure: &str, ratio: f64, spread: f64| {
        let (low, high) = (ratio / spread, ratio * spread);
        let is_difference = low > 1.0 || high < 1.0;
        let pairs = [ratio];
        json!({ "figure": figure, "ratio": ratio, "low": low, "high": high, "pairs": pairs, "is_difference": is_difference })
    };
    file["ab"] = json!({
        "target_a": "http://127.0.0.1:50051", "target_b": "http://127.0.0.1:50052", "is_noise_floor": false,
        "pairs": 4, "pairs_discarded": 1,
        "ratios": [
            ratio("throughput", 1.3, 1.05), ratio("p50", 0.8, 1.1), ratio("p99", 0.9, 1.3), ratio("p999", 1.1, 1.6),
            ratio("server_cpu_per_request", 0.71, 1.04), ratio("server_cpu_per_key", 0.72, 1.04),
        ],
    });
    serde_json::from_value(file).unwrap()
}

/// Three servers with the same load.
pub(crate) fn compared() -> Vec<ResultFile> {
    let protocols = [("milena-node", 1.0), ("redis", 1.4), ("memcached", 1.8)];
    let file = |(protocol, factor)| {
        let mut run = one("", 20_000.0 / factor, 60, protocol != "memcached");
        run["settings"]["protocol"] = json!(protocol);
        run["settings"]["rate_per_s"] = json!(20_000.0);
        file("run", &[run])
    };
    protocols.map(file).to_vec()
}

/// As many files as are shown, an hour each: as large as a report gets.
pub(crate) fn long() -> Vec<ResultFile> {
    let file = |index: u32| file("run", &[one("", 20_000.0 + f64::from(index) * 1_000.0, 3_600, true)]);
    (0..8).map(file).collect()
}

/// Every text is markup that would do something.
pub(crate) fn hostile() -> ResultFile {
    fn spoil(value: &mut Value) {
        match value {
            Value::String(text) => *text = format!("{text}<script>alert('&')</script>\"><img src=x onerror=alert(1)>"),
            Value::Array(values) => values.iter_mut().for_each(spoil),
            Value::Object(fields) => {
                let structural = ["kind", "code", "hdr", "op"];
                fields
                    .iter_mut()
                    .filter(|(name, _)| !structural.contains(&&***name))
                    .for_each(|(_, value)| spoil(value));
            }
            _ => {}
        }
    }
    let mut file = serde_json::to_value(invalid()).unwrap();
    spoil(&mut file);
    let run = &mut file["runs"][0];
    run["verify"] = json!({
        "reads": 1, "writes": 1, "writes_unknown": 0, "misses_allowed": 0,
        "violations": { "<b>stale</b>": 1 }, "examples": ["<b>bucket</b>"],
    });
    for second in run["series"].as_array_mut().unwrap() {
        second["hits_by_tier"] = json!({ "<b>memory</b>": 90, "<i>disk</i>": 5 });
    }
    serde_json::from_value(file).unwrap()
}

fn file(kind: &str, runs: &[Value]) -> ResultFile {
    let file = json!({
        "schema": 1, "kind": kind,
        "tool": { "name": "milena-loadtest", "version": "0.1.0", "profile": "release" },
        "command": ["milena-loadtest", kind, "--target", "http://127.0.0.1:50051", "-r", "20k", "-c", "8", "--streams", "32",
                    "--workload", "ycsb-b", "--slo", "p99<2ms", "-o", "result.json"],
        "started_unix_ms": 1_795_359_785_000_u64,
        "machine": {
            "cpu_model": "Intel(R) Xeon(R) Platinum 8488C", "cpus": 2, "memory_bytes": 25_769_803_776_u64,
            "kernel": "6.18.44", "is_virtual": true, "load_average": 0.04,
        },
        "runs": runs, "search": null, "ab": null,
    });
    serde_json::from_value(file).unwrap()
}

/// A run at a rate; latencies rise with it.
fn one(label: &str, rate_per_s: f64, seconds: u32, is_valid: bool) -> Value {
    const WARMUP_SECONDS: u32 = 5;
    let answered_per_s = if rate_per_s > 0.0 { rate_per_s.min(62_000.0) } else { 75.0 };
    let requests = (answered_per_s * f64::from(seconds)) as u64;
    let median_ns = 90_000.0 / (1.02 - answered_per_s / 64_000.0);
    let service_ns = 80_000.0;
    let series = (0..WARMUP_SECONDS + seconds).map(|index| {
        second(index, index < WARMUP_SECONDS, answered_per_s, median_ns, f64::from(index) / f64::from(seconds))
    });
    let reasons = if is_valid {
        json!([])
    } else {
        json!([{ "code": "send_lag", "text": "requests left 4.1 ms late at p99; allowed is a tenth of the response time" }])
    };
    let response = histogram(requests, median_ns);
    let p99_ns = response["percentiles"][4]["value_ns"].as_f64();
    json!({
        "label": label, "started_unix_ms": 1_795_359_790_000_u64,
        "settings": {
            "target": "http://127.0.0.1:50051", "protocol": "milena-node", "rate_per_s": rate_per_s,
            "duration_s": seconds, "warmup_s": WARMUP_SECONDS, "connections": 8, "threads": 1, "streams": 32,
            "is_pinned": true, "workload": "ycsb-b", "ratio": { "get": 0.95, "put": 0.05 }, "keys": 1_000_000,
            "key_dist": "zipf:0.99", "key_bytes": 24.0, "value_size": "100B:90,1KiB:10", "value_bytes_mean": 192.4,
            "ttl_ms": 0, "batch": 1, "is_preloaded": true, "deadline_ms": 1_000, "seed": 42, "slo": ["p99<2ms", "errors<0.1%"],
        },
        "validity": {
            "is_valid": is_valid, "reasons": reasons,
            "remarks": ["the processors were taken away for 0.2 % of the time"],
        },
        "slo": [
            { "expression": "p99<2ms", "observed": p99_ns, "allowed": 2e6, "is_kept": p99_ns.is_some_and(|ns| ns < 2e6) },
            { "expression": "errors<0.1%", "observed": 0.0002, "allowed": 0.001, "is_kept": true },
        ],
        "counts": {
            "requests": requests, "keys": requests, "requests_by_op": { "get": requests * 95 / 100, "put": requests / 20 },
            "hits": requests * 92 / 100, "misses": requests * 3 / 100,
            "hits_by_tier": { "memory": requests * 70 / 100, "disk": requests * 20 / 100, "s3": requests * 2 / 100 },
            "errors": requests / 5_000, "errors_by_status": { "UNAVAILABLE": requests / 5_000 },
            "value_bytes_in": requests * 180, "value_bytes_out": requests * 9, "unsent": 0,
        },
        "rates": {
            "intended_per_s": rate_per_s, "achieved_per_s": answered_per_s, "keys_per_s": answered_per_s,
            "value_bytes_per_s": answered_per_s * 189.0,
        },
        "latency": [{
            "op": "all", "response": response, "service": histogram(requests, service_ns), "lag": histogram(requests, 900.0),
        }],
        "tiers": [
            { "tier": "memory", "service": histogram(requests * 70 / 100, service_ns) },
            { "tier": "disk", "service": histogram(requests * 20 / 100, 2.5 * service_ns) },
            { "tier": "s3", "service": histogram(requests * 2 / 100, 18e6) },
            { "tier": "miss", "service": histogram(requests * 3 / 100, 16e6) },
        ],
        "series": series.collect::<Vec<Value>>(),
        "server": {
            "pid": 4711, "name": "milena-cache", "cpu_ns": requests * 2_400, "run_queue_wait_ns": 1_000_000,
            "cpu_ns_per_request": 2_400.0 - answered_per_s / 60.0, "cpu_ns_per_key": 2_400.0,
            "system_calls_per_request": 0.31, "system_calls_note": "perf trace", "resident_bytes": 268_435_456,
        },
        "server_absent_because": "",
        "client": {
            "cpu_ns": requests * 3_100, "cpu_ns_per_request": 3_100.0, "busy_share_by_core": [0.41], "is_the_limit": !is_valid,
        },
        "noise": { "steal_share": 0.002, "cpu_pressure_share": 0.01 },
        "verify": null,
    })
}

/// One second; `progress` is from 0 to 1 through the run. Memory fills first, and in the middle something goes wrong.
fn second(index: u32, is_warmup: bool, rate_per_s: f64, median_ns: f64, progress: f64) -> Value {
    let dip = if (0.5..0.55).contains(&progress) { 0.4 } else { 1.0 };
    let ripple = 1.0 + 0.03 * f64::from(index * 7 % 11) / 11.0;
    let requests = (rate_per_s * dip * ripple) as u64;
    let memory = (0.3 + 0.5 * (1.0 - (-4.0 * progress).exp())) * 0.95;
    let disk = (0.92 - memory).max(0.0);
    let reads = |share: f64| (requests as f64 * share) as u64;
    json!({
        "second": index, "is_warmup": is_warmup, "length_s": 1.0, "requests": requests,
        "errors": if dip < 1.0 { requests / 50 } else { 0 }, "misses": reads(0.03),
        "hits_by_tier": { "memory": reads(memory), "disk": reads(disk), "s3": reads(0.02) },
        "p50_ns": (median_ns * ripple / dip) as u64, "p99_ns": (median_ns * 6.0 * ripple / dip) as u64,
        "p999_ns": if dip < 1.0 { Value::Null } else { json!((median_ns * 20.0 * ripple) as u64) },
        "max_ns": (median_ns * 60.0 * ripple / dip / dip) as u64, "lag_max_ns": 40_000,
        "server_cpu_ns": (requests as f64 * 2_300.0 * ripple) as u64, "client_cpu_ns": (requests as f64 * 3_100.0) as u64,
    })
}

/// Many calls near the median and a tail that grows by three medians with each nine.
fn histogram(count: u64, median_ns: f64) -> Value {
    let mut whole = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).unwrap();
    // Down to a ten-millionth of the calls, in steps of equal ratio.
    let beyond =
        |index: u32| if index == QUANTILES { 0.0 } else { 10f64.powf(-7.0 * f64::from(index) / f64::from(QUANTILES)) };
    let slower = |index: u32| (count as f64 * beyond(index)).round() as u64;
    for index in 0..QUANTILES {
        let ns = median_ns * (0.7 + 0.3 * -beyond(index).log2() + 0.02 * beyond(index).log10().powi(4));
        whole.record_n(ns as u64, slower(index) - slower(index + 1)).unwrap();
    }
    assert_eq!(whole.len(), count);
    let told = PERCENTILES.map(|percentile| {
        let beyond = count as f64 * (100.0 - percentile) / 100.0;
        let value_ns = (beyond >= SAMPLES_BEYOND_MIN as f64).then(|| whole.value_at_percentile(percentile));
        json!({ "percentile": percentile, "value_ns": value_ns })
    });
    let mut bytes = Vec::new();
    V2DeflateSerializer::new().serialize(&whole, &mut bytes).unwrap();
    let min_ns = if count == 0 { 0 } else { whole.min() };
    json!({
        "count": count, "min_ns": min_ns, "mean_ns": whole.mean(), "stdev_ns": whole.stdev(), "max_ns": whole.max(),
        "percentiles": told, "hdr": BASE64_STANDARD.encode(bytes),
    })
}
