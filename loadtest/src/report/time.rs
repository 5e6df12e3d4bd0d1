//! A run second by second: throughput, latency, hits and processor time.
//!
//! ```text
//!   series   │0│1│2│…                  │  seconds; the last may be shorter
//!            ░░░ warm-up
//!   spans    │   │      │      │       │  at most SPANS_MAX, each of whole seconds of one kind
//! ```
//! Counts of a span are added. Percentiles cannot be: no average of two p99 is a p99. A span has the worst of its
//! seconds, and says so.

use std::collections::BTreeMap;

use super::{
    axis::Axis,
    chart::{Chart, Line, STYLES},
    figure::{Figure, Omission, Table, UNKNOWN, WITHHELD},
    quantity::{Grouped, Nanoseconds, Share, Short, ShortTime},
    subject::Subject,
};
use crate::result::{Run, Second};

/// Points of a line, and rows of its table.
const SPANS_MAX: usize = 90;

/// Tiers in the order in which they are asked; others behind them.
const TIERS: [&str; 3] = ["memory", "disk", "s3"];

/// Some seconds of a run.
#[derive(Clone, Debug, Default)]
struct Span {
    from_s: f64,
    length_s: f64,
    is_warmup: bool,
    requests: u64,
    errors: u64,
    misses: u64,
    hits_by_tier: BTreeMap<String, u64>,
    p50_ns: Option<u64>,
    p99_ns: Option<u64>,
    p999_ns: Option<u64>,
    max_ns: u64,
    lag_max_ns: u64,
    server_cpu_ns: Option<u64>,
    client_cpu_ns: u64,
}

/// A run and its spans.
struct Course<'a> {
    subject: &'a Subject<'a>,
    run: &'a Run,
    spans: Vec<Span>,
}

/// One line of a picture: its name, and its value in each span.
struct Measure {
    name: String,
    values: Vec<Option<f64>>,
}

/// The pictures over time of all runs that are shown alone.
pub(super) fn figures(subjects: &[Subject<'_>]) -> Vec<Result<Figure, Omission>> {
    let courses: Vec<Course<'_>> = subjects
        .iter()
        .filter_map(|subject| {
            let run = subject.single()?;
            Some(Course { subject, run, spans: spans(&run.series) })
        })
        .collect();
    if courses.is_empty() {
        return Vec::new();
    }
    vec![throughput(&courses), latency(&courses), hits(&courses), cpu(&courses)]
}

fn throughput(courses: &[Course<'_>]) -> Result<Figure, Omission> {
    let per_second = |count: fn(&Span) -> u64| move |span: &Span| Some(count(span) as f64 / span.length_s.max(1e-9));
    let mut measures = measures(courses, "answered", per_second(|span| span.requests));
    if let [course] = courses {
        measures.push(Measure::of(course, "failed", per_second(|span| span.errors)));
        if course.run.rates.intended_per_s > 0.0 {
            let intended = course.run.rates.intended_per_s;
            measures.push(Measure::of(course, "intended", move |_| Some(intended)));
        }
    }
    let caption = "Calls per second, failed ones included: an error that comes quickly is throughput too.";
    picture(courses, "throughput-over-time", "Throughput over time", caption, measures, Scale::Rate)
}

fn latency(courses: &[Course<'_>]) -> Result<Figure, Omission> {
    let ns = |value: fn(&Span) -> Option<u64>| move |span: &Span| value(span).map(|ns| ns.max(1) as f64);
    let is_p99_known = courses.iter().flat_map(|course| &course.spans).any(|span| span.p99_ns.is_some());
    let mut measures = match courses {
        [course] => vec![
            Measure::of(course, "p50", ns(|span| span.p50_ns)),
            Measure::of(course, "p99", ns(|span| span.p99_ns)),
            Measure::of(course, "p99.9", ns(|span| span.p999_ns)),
            Measure::of(course, "greatest", ns(|span| (span.max_ns > 0).then_some(span.max_ns))),
        ],
        _ if is_p99_known => measures(courses, "p99", ns(|span| span.p99_ns)),
        _ => measures(courses, "p50", ns(|span| span.p50_ns)),
    };
    // A closed loop has no send lag: it sends when it can.
    if let [course] = courses
        && course.run.rates.intended_per_s > 0.0
    {
        measures.push(Measure::of(course, "greatest send lag", ns(|span| Some(span.lag_max_ns))));
    }
    let mut caption = "Response times of each second.".to_owned();
    if courses.iter().any(|course| course.spans.len() < course.run.series.len()) {
        caption += " A point stands for several seconds and shows the worst of them: percentiles cannot be averaged.";
    }
    if courses.len() > 1 && !is_p99_known {
        caption += " The median, because no second had samples enough for a p99.";
    }
    caption += " Gaps are seconds with too few samples.";
    picture(courses, "latency-over-time", "Latency over time", &caption, measures, Scale::Latency)
}

fn hits(courses: &[Course<'_>]) -> Result<Figure, Omission> {
    let title = if courses.len() == 1 { "Hits by tier over time" } else { "Hits over time" };
    if courses.iter().all(|course| course.spans.iter().all(|span| span.reads() == 0)) {
        return Err(Omission::new(title, "Nothing was read."));
    }
    let share = |span: &Span, hits: u64| (span.reads() > 0).then(|| hits as f64 / span.reads() as f64);
    let mut measures = measures(courses, "all hits", |span| share(span, span.hits()));
    let mut caption = "Shares of all reads; a read that found nothing is in none of the lines but in the whole.";
    if let [course] = courses {
        for tier in tiers(&course.spans) {
            let of_tier = |span: &Span| share(span, span.hits_by_tier.get(tier).copied().unwrap_or(0));
            measures.push(Measure::of(course, tier, of_tier));
        }
        // The sum of one is the one.
        if measures.len() == 2 {
            measures.remove(0);
            caption = "Shares of all reads. The only tier that answered.";
        }
    }
    picture(courses, "hits-over-time", title, caption, measures, Scale::Share)
}

fn cpu(courses: &[Course<'_>]) -> Result<Figure, Omission> {
    let title = "Processor time per call";
    let per_call = |span: &Span, ns: u64| (span.requests > 0).then(|| ns as f64 / span.requests as f64);
    let mut measures = measures(courses, "server", |span| per_call(span, span.server_cpu_ns?));
    let reasons: Vec<String> = courses
        .iter()
        .filter(|course| course.spans.iter().all(|span| span.server_cpu_ns.is_none()))
        .map(|course| course.subject.name_of(&format!("not known: {}", course.run.server_absent_because)))
        .collect();
    if reasons.len() == courses.len() {
        return Err(Omission::new(title, format!("The server's is {}.", reasons.join("; "))));
    }
    if let [course] = courses {
        measures.push(Measure::of(course, "client", |span| per_call(span, span.client_cpu_ns)));
    }
    let mut caption = "User and system time of all threads over the calls that were answered. Near its limit a server \
                       needs less for each call: it finds more of them at once."
        .to_owned();
    if !reasons.is_empty() {
        caption += &format!(" Without {}.", reasons.join("; "));
    }
    picture(courses, "cpu-over-time", title, &caption, measures, Scale::Cpu)
}

// ---- From measures to a picture.

#[derive(Clone, Copy)]
enum Scale {
    Rate,
    Latency,
    Share,
    Cpu,
}

impl Scale {
    fn axis(self, low: f64, high: f64) -> Axis {
        let time = |ns: f64| ShortTime(ns).to_string();
        match self {
            Self::Rate => Axis::linear("calls per second", high, |rate| Short(rate).to_string()),
            Self::Latency => Axis::logarithmic("response time", low, high, time),
            Self::Share => Axis::linear("share of the reads", 1.0, |share| format!("{:.0} %", share * 100.0)),
            Self::Cpu => Axis::linear("for each call", high, time),
        }
    }

    fn cell(self, value: f64) -> String {
        match self {
            Self::Rate => Grouped(value.round()).to_string(),
            Self::Latency | Self::Cpu => Nanoseconds(value).to_string(),
            Self::Share => Share(value).to_string(),
        }
    }

    fn absent(self) -> &'static str {
        match self {
            Self::Latency => WITHHELD,
            _ => UNKNOWN,
        }
    }
}

fn picture(
    courses: &[Course<'_>],
    id: &'static str,
    title: &str,
    caption: &str,
    mut measures: Vec<Measure>,
    scale: Scale,
) -> Result<Figure, Omission> {
    measures.truncate(STYLES);
    let values: Vec<f64> = measures.iter().flat_map(|measure| &measure.values).filter_map(|value| *value).collect();
    let (Some(low), Some(high)) = (values.iter().copied().reduce(f64::min), values.iter().copied().reduce(f64::max))
    else {
        return Err(Omission::new(title, "No second had samples enough."));
    };
    let of_course = |index: usize| &courses[if courses.len() == 1 { 0 } else { index }];
    let line = |(style, measure): (usize, &Measure)| {
        let middles = of_course(style).spans.iter().map(|span| span.from_s + span.length_s / 2.0);
        Line::curve(&measure.name, style, middles.zip(measure.values.iter().copied()))
    };
    let end_s = courses.iter().map(Course::end_s).fold(0.0, f64::max);
    let warmup_s = courses.iter().map(Course::warmup_s).fold(0.0, f64::max);
    let mut caption = caption.to_owned();
    if warmup_s > 0.0 {
        caption += " Shaded: the warm-up, which is in no other figure.";
    }
    let chart = Chart {
        x: Axis::seconds("time", end_s),
        y: scale.axis(low, high),
        lines: measures.iter().enumerate().map(line).collect(),
        shade: (warmup_s > 0.0).then_some((0.0, warmup_s)),
        limits: Vec::new(),
    };
    let table = table(title, courses, &measures, scale);
    Ok(Figure { id, title: title.to_owned(), chart, caption, table })
}

/// A row for each span of the longest course; the others have theirs of the same number beside it.
fn table(title: &str, courses: &[Course<'_>], measures: &[Measure], scale: Scale) -> Table {
    let Some(longest) = courses.iter().max_by_key(|course| course.spans.len()) else {
        return Table { caption: title.to_owned(), columns: Vec::new(), rows: Vec::new() };
    };
    let row = |(index, span): (usize, &Span)| {
        let phase = if span.is_warmup { " (warm-up)" } else { "" };
        let head = format!("{:.0} to {:.0} s{phase}", span.from_s, span.from_s + span.length_s);
        let cells = measures.iter().map(|measure| match measure.values.get(index) {
            Some(Some(value)) => scale.cell(*value),
            Some(None) => scale.absent().to_owned(),
            None => UNKNOWN.to_owned(),
        });
        std::iter::once(head).chain(cells).collect()
    };
    let columns = std::iter::once("time".to_owned()).chain(measures.iter().map(|measure| measure.name.clone()));
    Table {
        caption: title.to_owned(),
        columns: columns.collect(),
        rows: longest.spans.iter().enumerate().map(row).collect(),
    }
}

/// The same measure of each course, under the name of its subject; under its own if there is one course.
fn measures(courses: &[Course<'_>], name: &str, value: impl Fn(&Span) -> Option<f64> + Copy) -> Vec<Measure> {
    let named = courses.iter().map(|course| Measure::of(course, &course.subject.name_of(name), value));
    named.collect()
}

impl Measure {
    fn of(course: &Course<'_>, name: &str, value: impl Fn(&Span) -> Option<f64>) -> Self {
        Self { name: name.to_owned(), values: course.spans.iter().map(value).collect() }
    }
}

impl Course<'_> {
    fn end_s(&self) -> f64 {
        self.spans.last().map_or(0.0, |span| span.from_s + span.length_s)
    }

    fn warmup_s(&self) -> f64 {
        self.spans.iter().filter(|span| span.is_warmup).map(|span| span.length_s).sum()
    }
}

/// The tiers that answered anything, in the order of [`TIERS`].
fn tiers(spans: &[Span]) -> Vec<&str> {
    let mut tiers: Vec<&str> = spans.iter().flat_map(|span| span.hits_by_tier.keys()).map(String::as_str).collect();
    tiers.sort_by_key(|tier| (TIERS.iter().position(|known| known == tier).unwrap_or(TIERS.len()), *tier));
    tiers.dedup();
    tiers
}

// ---- Seconds to spans.

fn spans(series: &[Second]) -> Vec<Span> {
    let seconds_max = series.len().div_ceil(SPANS_MAX - 1).max(1); // one more where the warm-up ends
    let mut spans: Vec<Span> = Vec::new();
    let mut seconds = 0;
    let mut from_s = 0.0;
    for second in series {
        let is_full = seconds == seconds_max;
        match spans.last_mut() {
            Some(span) if !is_full && span.is_warmup == second.is_warmup => span.add(second),
            _ => {
                spans.push(Span::begin(from_s, second));
                seconds = 0;
            }
        }
        seconds += 1;
        from_s += second.length_s;
    }
    spans
}

impl Span {
    fn begin(from_s: f64, second: &Second) -> Self {
        let mut span = Self {
            from_s,
            is_warmup: second.is_warmup,
            p50_ns: second.p50_ns,
            p99_ns: second.p99_ns,
            p999_ns: second.p999_ns,
            server_cpu_ns: Some(0),
            ..Self::default()
        };
        span.add(second);
        span
    }

    fn add(&mut self, second: &Second) {
        self.length_s += second.length_s;
        self.requests += second.requests;
        self.errors += second.errors;
        self.misses += second.misses;
        for (tier, hits) in &second.hits_by_tier {
            *self.hits_by_tier.entry(tier.clone()).or_default() += hits;
        }
        // One second that is withheld might have been the worst.
        let worst = |a: Option<u64>, b: Option<u64>| Some(a?.max(b?));
        self.p50_ns = worst(self.p50_ns, second.p50_ns);
        self.p99_ns = worst(self.p99_ns, second.p99_ns);
        self.p999_ns = worst(self.p999_ns, second.p999_ns);
        self.max_ns = self.max_ns.max(second.max_ns);
        self.lag_max_ns = self.lag_max_ns.max(second.lag_max_ns);
        self.server_cpu_ns = self.server_cpu_ns.zip(second.server_cpu_ns).map(|(sum, ns)| sum + ns);
        self.client_cpu_ns += second.client_cpu_ns;
    }

    fn hits(&self) -> u64 {
        self.hits_by_tier.values().sum()
    }

    fn reads(&self) -> u64 {
        self.hits() + self.misses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(warmup: usize, measured: usize) -> Vec<Second> {
        let second = |index: usize| Second {
            second: index as u32,
            is_warmup: index < warmup,
            length_s: 1.0,
            requests: 10,
            p50_ns: Some(index as u64),
            max_ns: 1_000 - index as u64 % 100,
            server_cpu_ns: Some(5),
            ..Second::default()
        };
        (0..warmup + measured).map(second).collect()
    }

    #[test]
    fn a_short_run_has_a_span_for_each_second() {
        let spans = spans(&series(2, 10));
        assert_eq!(spans.len(), 12);
        assert_eq!((spans[3].from_s, spans[3].length_s, spans[3].requests), (3.0, 1.0, 10));
    }

    #[test]
    fn a_long_run_has_few_spans_and_loses_no_call() {
        for (warmup, measured) in [(0, 90), (7, 601), (30, 3_600), (1, 86_400)] {
            let spans = spans(&series(warmup, measured));
            assert!(spans.len() <= SPANS_MAX, "{} of {warmup} and {measured} seconds", spans.len());
            assert_eq!(spans.iter().map(|span| span.requests).sum::<u64>(), (warmup + measured) as u64 * 10);
            let of_warmup: u64 = spans.iter().filter(|span| span.is_warmup).map(|span| span.requests).sum();
            assert_eq!(of_warmup, warmup as u64 * 10, "no span is half warm-up");
        }
    }

    #[test]
    fn a_span_shows_the_worst_of_its_seconds_or_nothing() {
        let mut seconds = series(0, 180);
        seconds[5].p50_ns = None;
        let spans = spans(&seconds);
        assert_eq!((spans[0].p50_ns, spans[0].max_ns), (Some(2), 1_000));
        assert_eq!(spans[1].p50_ns, None, "the second that is withheld may have been the worst");
        assert_eq!(spans[0].server_cpu_ns, Some(15));
    }

    #[test]
    fn tiers_stand_in_the_order_in_which_they_are_asked() {
        let mut seconds = series(0, 2);
        for tier in ["unspecified", "s3", "memory", "disk"] {
            seconds[1].hits_by_tier.insert(tier.to_owned(), 1);
        }
        assert_eq!(tiers(&spans(&seconds)), ["memory", "disk", "s3", "unspecified"]);
    }
}
