//! A result as people read it on a terminal.

use std::{fmt::Write as _, time::Duration};

use crate::{
    progress::time,
    report::quantity::Size,
    result::{Ab, Histogram, Run},
};

/// The percentiles that have a column.
const COLUMNS: [f64; 5] = [50.0, 90.0, 99.0, 99.9, 99.99];

macro_rules! line {
    ($text:expr, $($arguments:tt)*) => {
        writeln!($text, $($arguments)*).expect("a String takes everything")
    };
}

/// Everything about a run that fits on a screen.
#[must_use]
pub fn run(run: &Run) -> String {
    let mut text = String::new();
    head(run, &mut text);
    times(run, &mut text);
    cost(run, &mut text);
    verdict(run, &mut text);
    text
}

/// Ratios, as `ab` finds them.
#[must_use]
pub fn ab(ab: &Ab) -> String {
    let mut text = String::new();
    line!(text, "A {}\nB {}", ab.target_a, ab.target_b);
    line!(text, "{} pairs, {} discarded", ab.pairs, ab.pairs_discarded);
    line!(text, "{:24}{:>8}{:>20}", "B / A", "ratio", "95 % interval");
    for ratio in &ab.ratios {
        let interval = format!("{:.3} to {:.3}", ratio.low, ratio.high);
        let verdict = if ratio.is_difference { "" } else { "  no difference can be seen" };
        line!(text, "{:24}{:>8.3}{:>20}{verdict}", ratio.figure, ratio.ratio, interval);
    }
    if ab.is_noise_floor {
        line!(text, "A and B are the same: what differs is noise");
    }
    text
}

fn head(run: &Run, text: &mut String) {
    let settings = &run.settings;
    let pace = match settings.rate_per_s {
        rate if rate > 0.0 => format!("{rate} requests/s, open loop"),
        _ => "closed loop".to_owned(),
    };
    let label = if run.label.is_empty() { String::new() } else { format!("{}: ", run.label) };
    line!(
        text,
        "{label}{} at {}: {}, {pace}, {} connections x {} streams, {} threads, {:.1} s",
        settings.protocol,
        settings.target,
        settings.workload,
        settings.connections,
        settings.streams,
        settings.threads,
        settings.duration_s
    );
    let counts = &run.counts;
    let reads = counts.hits + counts.misses;
    let mut line = format!("  {:.0} requests/s, {} in all", run.rates.achieved_per_s, counts.requests);
    if settings.batch > 1 {
        let _ = write!(line, ", {:.0} keys/s", run.rates.keys_per_s);
    }
    if reads > 0 {
        let _ = write!(line, "; hits {:.2} %", counts.hits as f64 / reads as f64 * 100.0);
        let tiers = counts.hits_by_tier.iter().map(|(tier, count)| format!("{tier} {count}"));
        let tiers = tiers.collect::<Vec<_>>().join(", ");
        if !tiers.is_empty() {
            let _ = write!(line, " ({tiers})");
        }
    }
    let _ = write!(line, "; errors {}", counts.errors);
    if counts.unsent > 0 {
        let _ = write!(line, "; {} were due and not sent", counts.unsent);
    }
    line!(text, "{line}");
    let values = [counts.value_bytes_in, counts.value_bytes_out].map(|bytes| Size(bytes as f64));
    let rate = Size(run.rates.value_bytes_per_s);
    line!(text, "  values: {rate}/s, {} read and {} written in all", values[0], values[1]);
    for (status, count) in &counts.errors_by_status {
        line!(text, "  {count} x {status}");
    }
    if let Some(failure) = &run.first_failure {
        line!(text, "  the first: {failure}");
    }
}

fn times(run: &Run, text: &mut String) {
    let names = COLUMNS.map(|percentile| format!("p{percentile}"));
    line!(text, "\n{:24}{:>11}{}{:>11}", "", "count", row(&names), "max");
    let is_open = run.settings.rate_per_s > 0.0;
    for latency in &run.latency {
        let kinds = [("response", &latency.response), ("service", &latency.service), ("send lag", &latency.lag)];
        for (kind, histogram) in kinds.into_iter().filter(|(kind, _)| is_open || *kind == "service") {
            line!(text, "{}", times_row(&format!("{:8} {kind}", latency.op), histogram));
        }
    }
    for tier in &run.tiers {
        let name = if tier.tier == "miss" { "get of nothing".to_owned() } else { format!("get from {}", tier.tier) };
        line!(text, "{}", times_row(&name, &tier.service));
    }
    line!(text, "  - = fewer than 100 samples beyond it");
}

fn row(cells: &[String]) -> String {
    cells.iter().map(|cell| format!("{cell:>11}")).collect()
}

fn times_row(name: &str, histogram: &Histogram) -> String {
    let value = |wanted: f64| {
        let found = histogram.percentiles.iter().find(|found| found.percentile == wanted);
        time(found.and_then(|found| found.value_ns))
    };
    let max = if histogram.count == 0 { None } else { Some(histogram.max_ns) };
    format!("  {name:22}{:>11}{}{:>11}", histogram.count, row(&COLUMNS.map(value)), time(max))
}

fn cost(run: &Run, text: &mut String) {
    line!(text, "");
    match &run.server {
        Some(server) => {
            let calls = match server.system_calls_per_request {
                Some(calls) => format!("{calls:.3} system calls per request"),
                None => format!("system calls {}", server.system_calls_note),
            };
            line!(
                text,
                "  server {} (pid {}): {:.2} µs of processor time per request, {:.2} per key, {calls}; {} resident",
                server.name,
                server.pid,
                server.cpu_ns_per_request / 1000.0,
                server.cpu_ns_per_key / 1000.0,
                Size(server.resident_bytes as f64)
            );
        }
        None => line!(text, "  server's processor time: {}", run.server_absent_because),
    }
    let busy = run.client.busy_share_by_core.iter().map(|share| format!("{:.0} %", share * 100.0));
    line!(
        text,
        "  client: {:.2} µs of processor time per request, its cores busy {}{}, late itself by {} (p99)",
        run.client.cpu_ns_per_request / 1000.0,
        busy.collect::<Vec<_>>().join(", "),
        if run.client.is_the_limit { " (the limit)" } else { "" },
        time(run.client.late_p99_ns)
    );
    let pressure = run.noise.cpu_pressure_share.map_or("-".to_owned(), |share| format!("{:.0} %", share * 100.0));
    line!(text, "  noise: {:.1} % stolen, processors contended {pressure} of the time", run.noise.steal_share * 100.0);
}

fn verdict(run: &Run, text: &mut String) {
    if let Some(verify) = &run.verify {
        line!(
            text,
            "  checked {} reads against {} writes, {} of which have an unknown outcome; {} misses are allowed",
            verify.reads,
            verify.writes,
            verify.writes_unknown,
            verify.misses_allowed
        );
        for (kind, count) in verify.violations.iter().filter(|(_, count)| **count > 0) {
            line!(text, "  WRONG: {count} x {kind}");
        }
        for example in &verify.examples {
            line!(text, "    {example}");
        }
    }
    for outcome in &run.slo {
        let found = match (outcome.observed, outcome.expression.starts_with(['p', 'm'])) {
            (None, _) => "too few samples to tell".to_owned(),
            (Some(ns), true) => format!("found {:.3?}", Duration::from_nanos(ns as u64)),
            (Some(number), false) => format!("found {number:.4}"),
        };
        line!(text, "  {} {}: {found}", if outcome.is_kept { "kept" } else { "MISSED" }, outcome.expression);
    }
    for remark in &run.validity.remarks {
        line!(text, "  {remark}");
    }
    for reason in &run.validity.reasons {
        line!(text, "  INVALID: {}", reason.text);
    }
}
