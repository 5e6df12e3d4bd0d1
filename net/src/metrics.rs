//! What is counted, and how it reaches Prometheus.
//!
//! ```text
//!   core 0   u64, u64, Latency ─┐  report, over its mailbox
//!   core 1   u64, u64, Latency ─┼──────────▶ gather ──▶ Page ──▶ text        (on the page's own thread)
//!   core 2   …  (too busy)      ╳  left out after a second, and counted
//! ```
//! A core owns its counters, which are plain integers: counting is an addition, and nothing is shared.

use std::{
    fmt, fs, io,
    sync::mpsc,
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};

use crate::cores::CoreIndex;

/// Durations in buckets that are a quarter wider each, ten to a decade: what is read from it is off by an eighth at
/// most, from 1 µs to a minute, whatever the service. Values outside are counted at the ends.
///
/// The bounds are Renard's R10 (ISO 3), so they look like numbers: 1, 1.25, 1.6, 2, 2.5, 3.15, 4, 5, 6.3, 8, 10 µs, ...
/// 650 bytes; merging is addition.
#[derive(Clone, PartialEq, Eq)]
pub struct Latency {
    /// The last one is for what is longer than every bound.
    counts: [u64; BOUND_COUNT + 1],
    /// A thousand calls at once would overflow 64 bits in seven months.
    sum_ns: u128,
}

const RENARD_10: [u64; 10] = [100, 125, 160, 200, 250, 315, 400, 500, 630, 800];
const BOUND_COUNT: usize = 79;

/// Upper bounds in nanoseconds, each belonging to its bucket.
const BOUNDS_NS: [u64; BOUND_COUNT] = {
    let mut bounds = [0; BOUND_COUNT];
    let mut index = 0;
    while index < BOUND_COUNT {
        bounds[index] = RENARD_10[index % 10] * 10_u64.pow(1 + (index / 10) as u32);
        index += 1;
    }
    bounds
};

const _: () = assert!(BOUNDS_NS[0] == 1_000 && BOUNDS_NS[BOUND_COUNT - 1] == 63_000_000_000);

impl Default for Latency {
    fn default() -> Self {
        Self { counts: [0; BOUND_COUNT + 1], sum_ns: 0 }
    }
}

impl Latency {
    /// Counts one duration. A binary search over 79 numbers and two additions, a few nanoseconds.
    pub fn record(&mut self, duration: Duration) {
        let ns = duration.as_nanos();
        let index = BOUNDS_NS.partition_point(|bound| u128::from(*bound) < ns);
        self.counts[index] += 1;
        self.sum_ns += ns;
    }

    /// Adds what another one has counted.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum_ns += other.sum_ns;
    }

    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    fn encode(&self, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS_NS.iter().map(|ns| *ns as f64 / 1e9).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.counts).collect();
        encoder.encode_histogram::<NoLabelSet>(self.sum_ns as f64 / 1e9, self.count(), &buckets, None)
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Latency {{ {} in {:.6} s }}", self.count(), self.sum_ns as f64 / 1e9)
    }
}

/// The text that Prometheus reads, put together for one answer. Values of one name may come in any order.
///
/// Names are checked (they are ours, so a wrong one is a bug), values of labels are escaped (they may be a peer's).
#[derive(Debug, Default)]
pub struct Page {
    families: Vec<Family>,
}

/// What [`Page::finish`] makes: <https://prometheus.io/docs/specs/om/open_metrics_spec/>, version 1.0.0.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    series: Vec<(Vec<(&'static str, String)>, Value)>,
}

#[derive(Debug)]
enum Value {
    Counter(u64),
    Seconds(f64),
    Gauge(f64),
    Latency(Box<Latency>),
}

impl Value {
    fn metric_type(&self) -> MetricType {
        match self {
            Self::Counter(_) | Self::Seconds(_) => MetricType::Counter,
            Self::Gauge(_) => MetricType::Gauge,
            Self::Latency(_) => MetricType::Histogram,
        }
    }

    fn encode(&self, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Counter(value) => encoder.encode_counter::<NoLabelSet, _, f64>(value, None),
            Self::Seconds(value) => encoder.encode_counter::<NoLabelSet, _, f64>(value, None),
            Self::Gauge(value) => encoder.encode_gauge(value),
            Self::Latency(value) => value.encode(encoder),
        }
    }
}

impl Page {
    /// An empty page.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A number that only grows. `name` ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: u64) {
        self.add(without_total(name), help, labels, Value::Counter(value));
    }

    /// A number of seconds, or of anything that has fractions, that only grows. `name` ends in `_total`.
    pub fn counter_f64(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: f64) {
        self.add(without_total(name), help, labels, Value::Seconds(value));
    }

    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: f64) {
        self.add(name, help, labels, Value::Gauge(value));
    }

    /// A distribution of durations. `name` ends in `_seconds`.
    pub fn latency(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        value: &Latency,
    ) {
        assert!(name.ends_with("_seconds"), "{name}: a histogram of durations is in seconds and says so");
        self.add(name, help, labels, Value::Latency(Box::new(value.clone())));
    }

    /// Processor time, resident memory and open files of this process, with the names that every exporter uses.
    /// What cannot be found out is left out.
    pub fn process(&mut self) {
        let cpu = cpu_seconds();
        self.counter_f64("process_cpu_seconds_total", "User and system time of this process in seconds", &[], cpu);
        if let Ok(bytes) = resident_bytes() {
            self.gauge("process_resident_memory_bytes", "Resident memory in bytes", &[], bytes as f64);
        }
        if let Ok(count) = open_fds() {
            self.gauge("process_open_fds", "Open file descriptors", &[], count as f64);
        }
    }

    fn add(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: Value) {
        debug_assert!(is_name(name) && labels.iter().all(|(label, _)| is_name(label)), "{name} {labels:?}");
        let labels = labels.iter().map(|(label, value)| (*label, (*value).to_owned())).collect();
        if let Some(family) = self.families.iter_mut().find(|family| family.name == name) {
            let first = &family.series[0].1;
            assert_eq!(first.metric_type().as_str(), value.metric_type().as_str(), "two metrics are called {name}");
            family.series.push((labels, value));
        } else {
            self.families.push(Family { name, help, series: vec![(labels, value)] });
        }
    }

    /// The text, of type [`CONTENT_TYPE`].
    #[must_use]
    pub fn finish(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        text::encode(&mut text, &registry).expect("a string takes everything");
        text
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.families {
            let metric_type = family.series[0].1.metric_type();
            let mut encoder = encoder.encode_descriptor(family.name, family.help, None, metric_type)?;
            for (labels, value) in &family.series {
                if labels.is_empty() {
                    value.encode(&mut encoder)?; // a family would show its empty set of labels as `{}`
                } else {
                    value.encode(&mut encoder.encode_family(labels)?)?;
                }
            }
        }
        Ok(())
    }
}

/// The format adds the suffix to every sample itself.
fn without_total(name: &'static str) -> &'static str {
    name.strip_suffix("_total").unwrap_or_else(|| panic!("{name}: the name of a counter ends in _total"))
}

fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

fn cpu_seconds() -> f64 {
    // SAFETY: all zeros is a value of the struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: points to one struct.
    let got = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    assert_eq!(got, 0, "getrusage of this process cannot fail");
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn resident_bytes() -> io::Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    // SAFETY: no pointers.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.cast_unsigned();
    pages.map(|pages| pages * page_bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn open_fds() -> io::Result<usize> {
    // One of them is the directory that is being read.
    Ok(fs::read_dir("/proc/self/fd")?.count() - 1)
}

/// The longest that a metrics page waits for its cores.
pub const GATHER_MAX: Duration = Duration::from_secs(1);

/// A core's way to answer; to be put into the message that asks for its counters. Dropping it means no answer.
#[derive(Debug)]
pub struct Reporter<R> {
    core: CoreIndex,
    reports: mpsc::Sender<(CoreIndex, R)>,
}

impl<R> Reporter<R> {
    /// Answers. Never waits; who comes too late speaks to nobody.
    pub fn report(self, report: R) {
        let _ = self.reports.send((self.core, report));
    }
}

/// What the cores have answered.
#[derive(Debug)]
pub struct Gathered<R> {
    /// One from each core that answered, in the order of the cores.
    pub reports: Vec<(CoreIndex, R)>,
    /// Cores that did not.
    pub missing_count: usize,
}

/// Asks every core for its report and waits for them, `within` in all. For plain threads: it blocks.
///
/// `ask` passes the reporter on to its core, usually by mailbox; when it cannot (a full mailbox), it drops it.
pub fn gather<R: Send>(
    core_count: usize,
    within: Duration,
    mut ask: impl FnMut(CoreIndex, Reporter<R>),
) -> Gathered<R> {
    let (sender, receiver) = mpsc::channel();
    (0..core_count).for_each(|core| ask(core, Reporter { core, reports: sender.clone() }));
    drop(sender); // so that the end comes when nobody is left who could answer

    let deadline = Instant::now() + within;
    let next = || receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
    let mut reports: Vec<_> = std::iter::from_fn(next).collect();
    reports.sort_unstable_by_key(|(core, _)| *core);
    Gathered { missing_count: core_count - reports.len(), reports }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn page(fill: impl FnOnce(&mut Page)) -> String {
        let mut page = Page::new();
        fill(&mut page);
        page.finish()
    }

    #[test]
    fn a_page_reads_as_prometheus_wants_it() {
        let text = page(|page| {
            page.counter("milena_cache_requests_total", "Requests by operation", &[("op", "get")], 7);
            page.gauge("milena_memory_bytes", "Memory", &[("what", "values"), ("shard", "0")], 1.5);
            page.counter("milena_cache_requests_total", "Requests by operation", &[("op", "put")], u64::MAX);
            page.counter("milena_cache_misses_total", "Misses", &[], 0);
            page.gauge("milena_s3_inflight", "Requests under way", &[("node", "a\"b\\c\nd")], 0.0);
        });
        assert_eq!(
            text,
            "# HELP milena_cache_requests Requests by operation\n\
             # TYPE milena_cache_requests counter\n\
             milena_cache_requests_total{op=\"get\"} 7\n\
             milena_cache_requests_total{op=\"put\"} 18446744073709551615\n\
             # HELP milena_memory_bytes Memory\n\
             # TYPE milena_memory_bytes gauge\n\
             milena_memory_bytes{what=\"values\",shard=\"0\"} 1.5\n\
             # HELP milena_cache_misses Misses\n\
             # TYPE milena_cache_misses counter\n\
             milena_cache_misses_total 0\n\
             # HELP milena_s3_inflight Requests under way\n\
             # TYPE milena_s3_inflight gauge\n\
             milena_s3_inflight{node=\"a\\\"b\\\\c\\nd\"} 0.0\n\
             # EOF\n"
        );
    }

    #[test]
    fn an_empty_page_is_a_page() {
        assert_eq!(page(|_| {}), "# EOF\n");
    }

    #[test]
    #[should_panic(expected = "two metrics are called")]
    fn one_name_is_one_kind_of_metric() {
        page(|page| {
            page.counter("milena_things_total", "Things", &[], 1);
            page.gauge("milena_things", "Things", &[], 1.0);
        });
    }

    /// The counts that a histogram shows up to each bound.
    fn shown(latency: &Latency) -> Vec<(String, u64)> {
        let text = page(|page| page.latency("x_seconds", "X", &[], latency));
        let buckets = text.lines().filter_map(|line| line.strip_prefix("x_seconds_bucket{le=\""));
        buckets
            .map(|line| {
                let (bound, count) = line.split_once("\"} ").unwrap();
                (bound.to_owned(), count.parse().unwrap())
            })
            .collect()
    }

    #[test]
    fn buckets_are_a_quarter_wide_from_a_microsecond_to_a_minute() {
        let bounds: Vec<f64> = shown(&Latency::default()).iter().map(|(bound, _)| bound.parse().unwrap()).collect();
        assert_eq!(bounds[..4], [1e-6, 1.25e-6, 1.6e-6, 2e-6]);
        assert_eq!(bounds[bounds.len() - 3..], [50.0, 63.0, f64::INFINITY]);
        for pair in bounds[..bounds.len() - 1].windows(2) {
            let ratio = pair[1] / pair[0];
            assert!((1.2..1.3).contains(&ratio), "{pair:?}");
        }
    }

    #[test]
    fn a_duration_is_counted_at_the_first_bound_that_is_not_less() {
        for (ns, expected) in [
            (0, "0.000001"),
            (1_000, "0.000001"),
            (1_001, "0.00000125"),
            (50_000, "0.00005"),
            (50_001, "0.000063"),
            (63_000_000_000, "63.0"),
            (63_000_000_001, "+Inf"),
            (u64::MAX, "+Inf"),
        ] {
            let mut latency = Latency::default();
            latency.record(Duration::from_nanos(ns));
            let shown = shown(&latency);
            let (bound, count) = shown.iter().find(|(_, count)| *count > 0).unwrap();
            assert_eq!((bound.as_str(), *count), (expected, 1), "{ns} ns");
            assert_eq!(shown.last().unwrap().1, 1, "the last bucket counts everything");
        }
    }

    #[test]
    fn merged_histograms_show_the_sum_of_both() {
        let (mut one, mut other) = (Latency::default(), Latency::default());
        for microseconds in 1..=1000 {
            one.record(Duration::from_micros(microseconds));
            other.record(Duration::from_micros(microseconds * 1000));
        }
        let mut both = one.clone();
        both.merge(&other);
        assert_eq!(both.count(), 2000);
        for ((a, b), sum) in shown(&one).iter().zip(&shown(&other)).zip(&shown(&both)) {
            assert_eq!(a.1 + b.1, sum.1, "up to {}", sum.0);
        }
        let text = page(|page| page.latency("x_seconds", "X", &[("op", "get")], &both));
        assert!(text.contains("x_seconds_sum{op=\"get\"} 501.0005\n"), "{text}");
        assert!(text.contains("x_seconds_count{op=\"get\"} 2000\n"), "{text}");
    }

    #[test]
    fn the_process_shows_itself_under_the_usual_names() {
        let before = cpu_seconds();
        let text = page(Page::process);
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
        };
        assert!(value("process_cpu_seconds_total") >= before);
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_open_fds") >= 3.0);
    }

    #[test]
    fn reports_come_in_the_order_of_the_cores_and_without_delay() {
        let gathered = gather(8, Duration::from_secs(600), |core, reporter| {
            drop(thread::spawn(move || reporter.report(core * 10)));
        });
        assert_eq!(gathered.missing_count, 0);
        assert_eq!(gathered.reports, (0..8).map(|core| (core, core * 10)).collect::<Vec<_>>());
    }

    #[test]
    fn a_core_that_cannot_be_asked_is_left_out_at_once() {
        let gathered = gather(3, Duration::from_secs(600), |core, reporter| {
            if core != 1 {
                reporter.report("here");
            }
        });
        assert_eq!((gathered.reports.len(), gathered.missing_count), (2, 1));
    }

    #[test]
    fn a_core_that_does_not_answer_is_left_out_when_the_time_is_up() {
        let mut silent = None;
        let gathered = gather(2, Duration::ZERO, |core, reporter| match core {
            0 => reporter.report(()),
            _ => silent = Some(reporter),
        });
        assert!(gathered.missing_count >= 1);
        silent.unwrap().report(()); // too late, and no harm done
    }
}
