//! What more load does: latency and processor time against the rate that was reached.
//!
//! ```text
//!   latency │            ╱◇   hollow: the run is invalid
//!           │┄┄┄┄┄┄┄┄┄┄┄╱┄┄   promised
//!           │●───●────●╱
//!           └──────────────   calls answered per second
//! ```
//! The whole curve says more than its best point: where it bends, how steeply, and whether it comes back.

use super::{
    axis::Axis,
    chart::{Chart, Line, Mark, Point, STYLES},
    distribution::{percentile_ns, told},
    figure::{Figure, Omission, Table, UNKNOWN},
    quantity::{Grouped, Nanoseconds, Share, Short, ShortTime},
    subject::{Subject, all_operations},
};
use crate::result::{ResultFile, Run};

/// The percentiles of a curve, and of its table.
const SHOWN: [f64; 3] = [50.0, 99.0, 99.9];

/// The runs of one file by load.
struct Curve<'a> {
    subject: &'a Subject<'a>,
    runs: Vec<&'a Run>,
}

/// The pictures against load of all files that have runs at several rates.
pub(super) fn figures(subjects: &[Subject<'_>]) -> Vec<Result<Figure, Omission>> {
    let curves: Vec<Curve<'_>> = subjects
        .iter()
        .map(|subject| Curve { subject, runs: subject.by_load() })
        .filter(|curve| !curve.runs.is_empty())
        .collect();
    if curves.is_empty() { Vec::new() } else { vec![latency(&curves), cpu(&curves)] }
}

fn latency(curves: &[Curve<'_>]) -> Result<Figure, Omission> {
    let title = "Latency against load";
    // There is no 0 on a logarithmic axis.
    let response = |run: &Run, percentile| Some(percentile_ns(&all_operations(run)?.response, percentile)?.max(1.0));
    let mut lines = Vec::new();
    for curve in curves {
        // One curve has room for several percentiles, several curves for one.
        let shown = if curves.len() == 1 { &SHOWN[..] } else { &SHOWN[1..2] };
        for percentile in shown {
            let name = curve.subject.name_of(&format!("p{percentile}"));
            lines.push(line(&curve.runs, &name, lines.len() % STYLES, |run| response(run, *percentile)));
        }
    }
    let ns: Vec<f64> = lines.iter().flat_map(|line| &line.points).filter_map(|point| point.y).collect();
    let (Some(low), Some(high)) = (ns.iter().copied().reduce(f64::min), ns.iter().copied().reduce(f64::max)) else {
        return Err(Omission::new(title, "No run had samples enough."));
    };
    let limits = promised_ns(curves);
    let reach = |end: fn(f64, f64) -> f64, from: f64| limits.iter().copied().fold(from, end);
    let time = |ns: f64| ShortTime(ns).to_string();
    let chart = Chart {
        x: load_axis(curves),
        y: Axis::logarithmic("response time", reach(f64::min, low), reach(f64::max, high), time),
        lines,
        shade: None,
        limits,
    };
    let caption = "Response time by the rate that was reached. Hollow: an invalid run, from which nothing follows. A \
                   gap: too few samples."
        .to_owned();
    let columns = ["intended/s", "answered/s", "p50", "p99", "p99.9", "failed", "hits", "verdict"];
    let table = table(title, curves, &columns, latency_cells);
    Ok(Figure { id: "latency-by-load", title: title.to_owned(), chart, caption, table })
}

fn cpu(curves: &[Curve<'_>]) -> Result<Figure, Omission> {
    let title = "Processor time per call against load";
    let mut lines = Vec::new();
    for curve in curves {
        let name = curve.subject.name_of("server");
        lines.push(line(&curve.runs, &name, lines.len() % STYLES, |run| Some(run.server.as_ref()?.cpu_ns_per_request)));
    }
    let high = lines.iter().flat_map(|line| &line.points).filter_map(|point| point.y).reduce(f64::max);
    let Some(high) = high else {
        let run = curves.iter().find_map(|curve| curve.runs.first());
        let reason = run.map_or("", |run| &*run.server_absent_because);
        return Err(Omission::new(title, format!("The server's is not known: {reason}.")));
    };
    if let [curve] = curves {
        lines.push(line(&curve.runs, "client", lines.len(), |run| Some(run.client.cpu_ns_per_request)));
    }
    let high = lines.iter().flat_map(|line| &line.points).filter_map(|point| point.y).fold(high, f64::max);
    let time = |ns: f64| ShortTime(ns).to_string();
    let chart = Chart {
        x: load_axis(curves),
        y: Axis::linear("for each call", high, time),
        lines,
        shade: None,
        limits: Vec::new(),
    };
    let caption = "User and system time of all threads over the calls that were answered.".to_owned();
    let table = table(title, curves, &["answered/s", "server CPU/call", "client CPU/call"], |_, run| {
        let server = run.server.as_ref().map(|server| Nanoseconds(server.cpu_ns_per_request).to_string());
        let client = Nanoseconds(run.client.cpu_ns_per_request).to_string();
        vec![answered(run), server.unwrap_or_else(|| UNKNOWN.to_owned()), client]
    });
    Ok(Figure { id: "cpu-by-load", title: title.to_owned(), chart, caption, table })
}

fn line(runs: &[&Run], name: &str, style: usize, value: impl Fn(&Run) -> Option<f64>) -> Line {
    let point = |run: &&Run| Point {
        x: run.rates.achieved_per_s,
        y: value(run),
        mark: if run.validity.is_valid { Mark::Filled } else { Mark::Hollow },
    };
    Line { name: name.to_owned(), style, points: runs.iter().map(point).collect() }
}

fn load_axis(curves: &[Curve<'_>]) -> Axis {
    let rates = curves.iter().flat_map(|curve| &curve.runs).map(|run| run.rates.achieved_per_s);
    Axis::linear("calls answered per second", rates.fold(0.0, f64::max), |rate| Short(rate).to_string())
}

/// What was promised of latencies, each once.
fn promised_ns(curves: &[Curve<'_>]) -> Vec<f64> {
    let outcomes = curves.iter().flat_map(|curve| &curve.runs).flat_map(|run| &run.slo);
    let of_latency = outcomes.filter(|outcome| outcome.expression.starts_with('p') && outcome.allowed > 0.0);
    let mut promised: Vec<f64> = of_latency.map(|outcome| outcome.allowed).collect();
    promised.sort_by(f64::total_cmp);
    promised.dedup();
    promised
}

/// A row for each run.
fn table(
    title: &str,
    curves: &[Curve<'_>],
    columns: &[&str],
    cells: impl Fn(&ResultFile, &Run) -> Vec<String>,
) -> Table {
    let rows = curves.iter().flat_map(|curve| {
        let named = curve.runs.iter().enumerate().map(|(index, run)| (curve.subject.run_name(run, index), run));
        named.map(|(name, run)| [vec![name], cells(curve.subject.file, run)].concat())
    });
    Table {
        caption: title.to_owned(),
        rows: rows.collect(),
        columns: ["run"].iter().chain(columns).map(|column| (*column).to_owned()).collect(),
    }
}

fn latency_cells(file: &ResultFile, run: &Run) -> Vec<String> {
    let response = all_operations(run).map(|latency| &latency.response);
    let percentile = |percentile| response.map_or_else(|| UNKNOWN.to_owned(), |response| told(response, percentile));
    let reads = run.counts.hits + run.counts.misses;
    let hits = if reads > 0 { Share(run.counts.hits as f64 / reads as f64).to_string() } else { UNKNOWN.to_owned() };
    let mut cells = vec![intended(run), answered(run)];
    cells.extend(SHOWN.map(percentile));
    cells.extend([Grouped(run.counts.errors as f64).to_string(), hits, verdict(file, run)]);
    cells
}

fn answered(run: &Run) -> String {
    Grouped(run.rates.achieved_per_s.round()).to_string()
}

/// The rate that was asked for.
fn intended(run: &Run) -> String {
    if run.rates.intended_per_s > 0.0 {
        return Grouped(run.rates.intended_per_s.round()).to_string();
    }
    "closed loop".to_owned()
}

/// A search says itself what it made of a run; of other runs their promises do.
fn verdict(file: &ResultFile, run: &Run) -> String {
    let index = file.runs.iter().position(|other| std::ptr::eq(other, run));
    let probes = file.search.as_ref().map_or(&[][..], |search| &search.probes);
    let probe = probes.iter().find(|probe| Some(probe.run_index as usize) == index);
    match probe {
        Some(probe) => probe.verdict.clone(),
        None if !run.validity.is_valid => "invalid".to_owned(),
        None if run.slo.is_empty() => "valid".to_owned(),
        None if run.slo.iter().all(|outcome| outcome.is_kept) => "kept".to_owned(),
        None => "missed".to_owned(),
    }
}
