//! What a run did besides what the pictures show: what failed, how long each operation took, what it cost whom.
//!
//! ```text
//!   failures     each status with its count, and what the first call that failed said
//!   operations   a row for each operation and each of response, service, send lag
//!   costs        the server's process, the client's cores, and what else went on
//! ```
//! For files with one run; of the others only the failures, which may be why a point of their curve is where it is.

use maud::{Markup, html};

use super::{
    distribution::told,
    figure::{Table, UNKNOWN},
    pairs,
    quantity::{Grouped, Nanoseconds, Share, Size},
    said_of_runs, sentences,
    subject::Subject,
};
use crate::result::{Histogram, Run};

/// The percentiles that have a column.
const SHOWN: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

/// A section for each file.
pub(super) fn html(subjects: &[Subject<'_>]) -> Markup {
    html! {
        @for subject in subjects {
            @let failures = said_of_runs(subject, failures);
            @if !failures.is_empty() {
                section {
                    h2 { (subject.name_of("Failures")) }
                    ul { @for failure in sentences(&failures) { li { (failure) } } }
                }
            }
            @if let Some(run) = subject.single() {
                section {
                    h2 { (subject.name_of("Times by operation")) }
                    (operations(run).html())
                }
                section {
                    h2 { (subject.name_of("Costs")) }
                    (pairs(costs(run)))
                }
            }
        }
    }
}

/// Each status, then the first failure in its own words.
fn failures(run: &Run) -> Vec<String> {
    let statuses = run.counts.errors_by_status.iter();
    let mut said: Vec<String> =
        statuses.map(|(status, count)| format!("{status}: {} calls", Grouped(*count as f64))).collect();
    said.extend(run.first_failure.iter().map(|failure| format!("the first: {failure}")));
    said
}

fn operations(run: &Run) -> Table {
    let is_open = run.settings.rate_per_s > 0.0;
    let rows = run.latency.iter().flat_map(|latency| {
        let kinds = [("response", &latency.response), ("service", &latency.service), ("send lag", &latency.lag)];
        // A closed loop sends when it can: nothing waits to be sent.
        let kinds = kinds.into_iter().filter(move |(kind, _)| is_open || *kind == "service");
        kinds.map(|(kind, histogram)| times(format!("{} {kind}", latency.op), histogram))
    });
    let columns = ["", "calls", "mean", "least"].map(str::to_owned).into_iter();
    let columns = columns.chain(SHOWN.map(|percentile| format!("p{percentile}"))).chain(["greatest".to_owned()]);
    Table { caption: "Times by operation".to_owned(), columns: columns.collect(), rows: rows.collect() }
}

fn times(name: String, histogram: &Histogram) -> Vec<String> {
    let of_any = |ns: f64| if histogram.count == 0 { UNKNOWN.to_owned() } else { Nanoseconds(ns).to_string() };
    let mut cells = vec![name, Grouped(histogram.count as f64).to_string()];
    cells.extend([of_any(histogram.mean_ns), of_any(histogram.min_ns as f64)]);
    cells.extend(SHOWN.map(|percentile| told(histogram, percentile)));
    cells.push(of_any(histogram.max_ns as f64));
    cells
}

fn costs(run: &Run) -> Vec<(&'static str, String)> {
    let by_count = |counts: &std::collections::BTreeMap<String, u64>| {
        let counts = counts.iter().map(|(name, count)| format!("{name} {}", Grouped(*count as f64)));
        counts.collect::<Vec<_>>().join(", ")
    };
    let counts = &run.counts;
    let [read, written] = [counts.value_bytes_in, counts.value_bytes_out].map(|bytes| Size(bytes as f64));
    let busy = run.client.busy_share_by_core.iter().map(|share| Share(*share).to_string());
    let limit =
        if run.client.is_the_limit { "; it was the limit, and the rate says nothing about the server" } else { "" };
    let pressure = run.noise.cpu_pressure_share.map_or_else(|| UNKNOWN.to_owned(), |share| Share(share).to_string());
    let mut costs = vec![
        ("calls", by_count(&counts.requests_by_op)),
        ("keys", Grouped(counts.keys as f64).to_string()),
        ("hits by tier", by_count(&counts.hits_by_tier)),
        ("values", format!("{}/s, {read} read and {written} written", Size(run.rates.value_bytes_per_s))),
    ];
    match &run.server {
        Some(server) => costs.extend([
            (
                "server",
                format!("{}, process {}, {} resident", server.name, server.pid, Size(server.resident_bytes as f64)),
            ),
            (
                "its processors",
                format!(
                    "{} used; ready to run and waiting for {}",
                    Nanoseconds(server.cpu_ns as f64),
                    Nanoseconds(server.run_queue_wait_ns as f64)
                ),
            ),
            ("its system calls", server.system_calls_note.clone()),
        ]),
        None => costs.push(("server", format!("not known: {}", run.server_absent_because))),
    }
    costs.extend([
        (
            "client",
            format!(
                "{} used; its cores busy {}{limit}",
                Nanoseconds(run.client.cpu_ns as f64),
                busy.collect::<Vec<_>>().join(", ")
            ),
        ),
        (
            "elsewhere",
            format!(
                "{} of the processors' time stolen, {pressure} of the time contended",
                Share(run.noise.steal_share)
            ),
        ),
    ]);
    costs
}
