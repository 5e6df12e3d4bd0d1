//! How long calls took: every percentile that the samples can bear.
//!
//! ```text
//!   the file's histogram ── value at 0, 0.05, 0.10, … nines ──▶ a curve, up to the percentile with
//!   the percentiles it tells ───────────────────────────────▶ markers      SAMPLES_BEYOND_MIN samples beyond it
//! ```
//! On an axis of nines each step to the right is ten times as rare; the worst calls, which users remember, get as much
//! room as the usual ones. The idea is HdrHistogram's.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hdrhistogram::serialization::Deserializer;

use super::{
    axis::{self, Axis},
    chart::{Chart, Line, Mark, Point, STYLES},
    figure::{Figure, Omission, Table, UNKNOWN, WITHHELD},
    quantity::{Grouped, Nanoseconds, ShortTime},
    subject::{Subject, all_operations},
};
use crate::result::{Histogram, Kind, PERCENTILES, SAMPLES_BEYOND_MIN};

/// Points of a curve for each step of the axis.
const POINTS_PER_NINE: f64 = 20.0;

/// The axis ends here, whatever is known beyond.
const NINES_MAX: f64 = 6.5;

/// With more runs than this only the response times are drawn: six lines can be told apart, not more.
const WITH_SERVICE_MAX: usize = 2;

/// How a line of service times is called.
const SERVICE: &str = "service";

/// Turns of an `ab` that are drawn: two styles, and more lines of one style than this are a smear.
const TURNS_MAX: usize = 12;

/// A distribution in the picture and in the table.
struct Trace<'a> {
    /// In the legend; several may share it.
    name: String,
    /// At the top of its column.
    column: String,
    style: usize,
    is_valid: bool,
    histogram: &'a Histogram,
}

/// Response and service time by percentile.
pub(super) fn response(subjects: &[Subject<'_>]) -> Result<Figure, Omission> {
    let traces = response_traces(subjects);
    let mut caption = "Response time is what a user waits, counted from when the call was due. ".to_owned();
    if traces.iter().any(|trace| trace.name.ends_with(SERVICE)) {
        caption += "Service time begins when it was sent: where the two part, calls queued. ";
    }
    caption += "To the right each step is ten times as rare.";
    figure("latency-by-percentile", "Latency by percentile", &caption, &traces)
}

/// Service time of reads by what answered them.
pub(super) fn tiers(subjects: &[Subject<'_>]) -> Option<Result<Figure, Omission>> {
    let [subject] = subjects else { return None };
    let run = subject.single()?;
    let traces: Vec<Trace<'_>> = run
        .tiers
        .iter()
        .take(STYLES)
        .enumerate()
        .map(|(style, tier)| Trace {
            name: tier.tier.clone(),
            column: tier.tier.clone(),
            style,
            is_valid: run.validity.is_valid,
            histogram: &tier.service,
        })
        .collect();
    let title = "Latency of reads by the tier that answered";
    let caption = "Service time, from when the call was sent. Calls for several keys are not in here: their keys come \
                   from several tiers.";
    (!traces.is_empty()).then(|| figure("latency-by-tier", title, caption, &traces))
}

fn response_traces<'a>(subjects: &[Subject<'a>]) -> Vec<Trace<'a>> {
    if let [subject] = subjects
        && subject.file.kind == Kind::Ab
    {
        return turn_traces(subject);
    }
    let runs: Vec<_> = subjects.iter().filter_map(|subject| Some((subject, subject.single()?))).collect();
    let with_service = runs.len() <= WITH_SERVICE_MAX;
    let mut traces = Vec::new();
    for (subject, run) in runs {
        let Some(latency) = all_operations(run) else { continue };
        let measures = [("response", &latency.response), (SERVICE, &latency.service)];
        // In a closed loop the two are the same.
        let is_open = run.settings.rate_per_s > 0.0;
        for (measure, histogram) in measures.into_iter().take(if with_service && is_open { 2 } else { 1 }) {
            let (name, style) = (subject.name_of(measure), traces.len() % STYLES);
            traces.push(Trace { column: name.clone(), name, style, is_valid: run.validity.is_valid, histogram });
        }
    }
    traces
}

fn turn_traces<'a>(subject: &Subject<'a>) -> Vec<Trace<'a>> {
    let turns = subject.runs.iter().take(TURNS_MAX).enumerate();
    turns
        .filter_map(|(index, run)| {
            let style = usize::from(run.label != "A");
            let histogram = &all_operations(run)?.response;
            let (name, column) = (run.label.clone(), subject.run_name(run, index));
            Some(Trace { name, column, style, is_valid: run.validity.is_valid, histogram })
        })
        .collect()
}

fn figure(id: &'static str, title: &str, caption: &str, traces: &[Trace<'_>]) -> Result<Figure, Omission> {
    let mut lines = Vec::new();
    let mut unreadable = Vec::new();
    for trace in traces {
        let mark = if trace.is_valid { Mark::Filled } else { Mark::Hollow };
        match curve(trace.histogram, mark) {
            Some(points) => lines.push(Line { name: trace.name.clone(), style: trace.style, points }),
            None => unreadable.push(&*trace.column),
        }
    }
    let ns: Vec<f64> = lines.iter().flat_map(|line| &line.points).filter_map(|point| point.y).collect();
    let (Some(low), Some(high)) = (ns.iter().copied().reduce(f64::min), ns.iter().copied().reduce(f64::max)) else {
        return Err(Omission::new(title, omission_reason(traces, &unreadable)));
    };
    let nines = lines.iter().filter_map(|line| line.points.last()).map(|point| point.x).fold(0.0, f64::max);
    let chart = Chart {
        x: Axis::nines("per cent of the calls", nines + 0.2),
        y: Axis::logarithmic("latency, at most", low, high, |ns| ShortTime(ns).to_string()),
        lines,
        shade: None,
        limits: Vec::new(),
    };
    let mut caption = format!("{caption} Curves end where fewer than {SAMPLES_BEYOND_MIN} samples lie beyond.");
    if traces.iter().any(|trace| !trace.is_valid) {
        caption += " Hollow: an invalid run, from which nothing follows.";
    }
    if !unreadable.is_empty() {
        caption += &format!(" Not drawn, because the histogram in the file cannot be read: {}.", unreadable.join(", "));
    }
    Ok(Figure { id, title: title.to_owned(), chart, caption, table: table(title, traces) })
}

fn omission_reason(traces: &[Trace<'_>], unreadable: &[&str]) -> String {
    if traces.is_empty() {
        return "No file has one run to show; runs at several rates are shown against load.".to_owned();
    }
    if !unreadable.is_empty() {
        return format!("The histograms in the file cannot be read: {}.", unreadable.join(", "));
    }
    format!("Too few calls: a percentile is only told with {SAMPLES_BEYOND_MIN} samples beyond it.")
}

/// The curve, with a `mark` at each percentile that is told; no points with too few samples, `None` if the histogram
/// cannot be read.
fn curve(histogram: &Histogram, mark: Mark) -> Option<Vec<Point>> {
    let bytes = BASE64_STANDARD.decode(&histogram.hdr).ok()?;
    let whole: hdrhistogram::Histogram<u64> = Deserializer::new().deserialize(&mut &*bytes).ok()?;
    let nines = (whole.len() as f64 / SAMPLES_BEYOND_MIN as f64).log10().min(NINES_MAX);
    if nines < 0.0 {
        return Some(Vec::new());
    }
    // All cells once; to ask the histogram for each point is to go through its 28,000 cells each time.
    let mut below = 0;
    let cells = whole.iter_recorded().map(|cell| {
        below += cell.count_at_value();
        (below, cell.value_iterated_to())
    });
    let cells: Vec<(u64, u64)> = cells.collect();
    let point = |x: f64, mark| {
        let wanted = whole.len() as f64 * (1.0 - 10f64.powf(-x));
        let index = cells.partition_point(|(below, _)| (*below as f64) < wanted);
        let ns = cells.get(index).map(|(_, ns)| (*ns).max(1) as f64);
        Point { x, y: ns, mark }
    };
    let steps = (nines * POINTS_PER_NINE).floor() as u32;
    let told = histogram.percentiles.iter().filter(|told| told.value_ns.is_some());
    let marked = told.map(|told| axis::nines(told.percentile)).filter(|x| *x <= nines);
    let mut points: Vec<Point> = (0..=steps).map(|step| point(f64::from(step) / POINTS_PER_NINE, Mark::No)).collect();
    points.extend(marked.map(|x| point(x, mark)));
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    // No line without a marker, as there is none without a dash.
    if let Some(last) = points.last_mut().filter(|last| last.x < axis::nines(PERCENTILES[0])) {
        last.mark = mark;
    }
    Some(points)
}

fn table(title: &str, traces: &[Trace<'_>]) -> Table {
    let row = |name: &str, cell: &dyn Fn(&Histogram) -> String| {
        std::iter::once(name.to_owned())
            .chain(traces.iter().map(|trace| cell(trace.histogram)))
            .collect::<Vec<String>>()
    };
    let filled = |histogram: &Histogram, ns: f64| {
        if histogram.count == 0 { UNKNOWN.to_owned() } else { Nanoseconds(ns).to_string() }
    };
    let mut rows = vec![
        row("samples", &|histogram| Grouped(histogram.count as f64).to_string()),
        row("least", &|histogram| filled(histogram, histogram.min_ns as f64)),
        row("mean", &|histogram| filled(histogram, histogram.mean_ns)),
    ];
    rows.extend(PERCENTILES.map(|percentile| row(&format!("p{percentile}"), &|histogram| told(histogram, percentile))));
    rows.push(row("greatest", &|histogram| filled(histogram, histogram.max_ns as f64)));
    let columns = std::iter::once(String::new()).chain(traces.iter().map(|trace| trace.column.clone())).collect();
    Table { caption: title.to_owned(), columns, rows }
}

/// A percentile as the file has it.
pub(super) fn told(histogram: &Histogram, percentile: f64) -> String {
    match percentile_ns(histogram, percentile) {
        Some(ns) => Nanoseconds(ns).to_string(),
        None if histogram.percentiles.iter().any(|told| told.percentile == percentile) => WITHHELD.to_owned(),
        None => UNKNOWN.to_owned(),
    }
}

/// A percentile as the file has it, in nanoseconds; `None` if it is withheld.
pub(super) fn percentile_ns(histogram: &Histogram, percentile: f64) -> Option<f64> {
    let told = histogram.percentiles.iter().find(|told| told.percentile == percentile)?;
    told.value_ns.map(|ns| ns as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_percentile_that_is_told_is_on_the_axis() {
        assert!(PERCENTILES.iter().all(|percentile| axis::nines(*percentile) < NINES_MAX));
    }

    #[test]
    fn a_histogram_that_cannot_be_read_has_no_curve() {
        let broken = |hdr: &str| Histogram {
            count: 1_000,
            min_ns: 1,
            mean_ns: 1.0,
            stdev_ns: 0.0,
            max_ns: 1,
            percentiles: Vec::new(),
            hdr: hdr.to_owned(),
        };
        for hdr in ["", "no base64 <", "AAAA", "HISTFAAAAAh42pNpmSzMwMDAxAABzFCaEUoz2X+AMABaDwNk"] {
            assert!(
                curve(&broken(hdr), Mark::Filled).is_none_or(|points| points.iter().all(|point| point.y.is_some())),
                "{hdr}"
            );
        }
        assert!(curve(&broken("no base64 <"), Mark::Filled).is_none());
    }
}
