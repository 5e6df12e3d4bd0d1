//! The figures by which two runs, or two files, are compared. Pure.
//!
//! ```text
//!   pairs of runs next to each other  ─▶ Ratio for each figure       (`ab`)
//!   two runs of other days            ─▶ Change for each figure      (`compare`): by their seconds, and beyond the noise
//! ```

use crate::{
    result::{Latency, Ratio, Run, Second},
    statistics::{self, Interval},
};

/// One number of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Keys per second; only for a closed loop, in which it is the server's doing.
    Throughput,
    /// Response time at the median.
    P50,
    /// Response time at the 99th percentile.
    P99,
    /// Response time at the 99.9th percentile.
    P999,
    /// The server's processor time for each call.
    CpuPerRequest,
    /// The server's processor time for each key.
    CpuPerKey,
}

impl Figure {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Throughput, Self::P50, Self::P99, Self::P999, Self::CpuPerRequest, Self::CpuPerKey];

    /// As in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::P999 => "p999",
            Self::CpuPerRequest => "server_cpu_per_request",
            Self::CpuPerKey => "server_cpu_per_key",
        }
    }

    /// Whether more of it is better.
    #[must_use]
    pub const fn is_gain(self) -> bool {
        matches!(self, Self::Throughput)
    }

    /// The figure of a run; `None` where it is not told, or 0.
    #[must_use]
    pub fn of(self, run: &Run) -> Option<f64> {
        let percentile = |wanted: f64| {
            let all = run.latency.iter().find(|latency| latency.op == Latency::ALL)?;
            let found = all.response.percentiles.iter().find(|found| found.percentile == wanted)?;
            found.value_ns.map(|ns| ns as f64)
        };
        let server = run.server.as_ref();
        let found = match self {
            Self::Throughput => (run.settings.rate_per_s == 0.0).then_some(run.rates.keys_per_s),
            Self::P50 => percentile(50.0),
            Self::P99 => percentile(99.0),
            Self::P999 => percentile(99.9),
            Self::CpuPerRequest => server.map(|server| server.cpu_ns_per_request),
            Self::CpuPerKey => server.map(|server| server.cpu_ns_per_key),
        };
        found.filter(|figure| *figure > 0.0)
    }

    /// The figure of one second of a run.
    fn of_second(self, run: &Run, second: &Second) -> Option<f64> {
        let found = match self {
            Self::Throughput if run.settings.rate_per_s > 0.0 => None,
            Self::Throughput => Some(second.requests as f64 / second.length_s),
            Self::P50 => second.p50_ns.map(|ns| ns as f64),
            Self::P99 => second.p99_ns.map(|ns| ns as f64),
            Self::P999 => second.p999_ns.map(|ns| ns as f64),
            Self::CpuPerRequest if second.requests > 0 => {
                second.server_cpu_ns.map(|ns| ns as f64 / second.requests as f64)
            }
            Self::CpuPerRequest | Self::CpuPerKey => None,
        };
        found.filter(|figure| *figure > 0.0)
    }

    fn of_seconds(self, run: &Run) -> Vec<f64> {
        let measured = run.series.iter().filter(|second| !second.is_warmup);
        measured.filter_map(|second| self.of_second(run, second)).collect()
    }
}

/// B over A for each figure that both runs of every pair tell; needs two pairs.
#[must_use]
pub fn ratios(pairs: &[(&Run, &Run)]) -> Vec<Ratio> {
    let one = |figure: Figure| {
        let ratio = |(a, b): &(&Run, &Run)| Some(figure.of(b)? / figure.of(a)?);
        let pairs: Vec<f64> = pairs.iter().map(ratio).collect::<Option<_>>()?;
        let found = statistics::of_pairs(&pairs)?;
        let Interval { ratio, low, high } = found;
        let figure = figure.name().to_owned();
        Some(Ratio { figure, ratio, low, high, pairs, is_difference: found.excludes_one() })
    };
    Figure::ALL.into_iter().filter_map(one).collect()
}

/// How a figure has changed from one run to a later one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Which.
    pub figure: Figure,
    /// Before.
    pub before: f64,
    /// After.
    pub after: f64,
    /// After over before by their seconds, if both have seconds enough.
    pub by_seconds: Option<Interval>,
    /// What this is.
    pub verdict: Verdict,
}

/// What a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// None that is beyond the noise.
    Same,
    /// Better, beyond the noise.
    Better,
    /// Worse, beyond the noise.
    Worse,
}

/// The change of each figure that both runs tell. It counts if it is larger than `noise_share` and their seconds say the same;
/// a figure that no second tells is shown, and nothing is concluded from it.
#[must_use]
pub fn changes(before: &Run, after: &Run, noise_share: f64) -> Vec<Change> {
    let one = |figure: Figure| {
        let (old, new) = (figure.of(before)?, figure.of(after)?);
        let by_seconds = statistics::of_samples(&figure.of_seconds(before), &figure.of_seconds(after));
        let is_beyond_noise = (new / old).ln().abs() > (1.0 + noise_share).ln();
        let is_real = is_beyond_noise && by_seconds.is_some_and(|interval| interval.excludes_one());
        let verdict = match (is_real, (new > old) == figure.is_gain()) {
            (false, _) => Verdict::Same,
            (true, true) => Verdict::Better,
            (true, false) => Verdict::Worse,
        };
        Some(Change { figure, before: old, after: new, by_seconds, verdict })
    };
    Figure::ALL.into_iter().filter_map(one).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::result::{ClientUse, Counts, Noise, Rates, Settings, Validity};
    use crate::times::Times;

    /// A closed loop of five seconds with these requests in each.
    pub(crate) fn run(requests: [u64; 5]) -> Run {
        let second = |(second, requests)| Second { second, length_s: 1.0, requests, ..Second::default() };
        let empty = Times::new().to_result();
        Run {
            label: String::new(),
            started_unix_ms: 0,
            settings: Settings {
                target: "http://h:1".to_owned(),
                protocol: "milena-node".to_owned(),
                rate_per_s: 0.0,
                duration_s: 5.0,
                warmup_s: 0.0,
                connections: 1,
                threads: 1,
                streams: 1,
                is_pinned: false,
                workload: "ycsb-c".to_owned(),
                ratio: [("get".to_owned(), 1.0)].into(),
                keys: 1,
                key_dist: "uniform".to_owned(),
                key_bytes: 20.0,
                value_size: "100B".to_owned(),
                value_bytes_mean: 100.0,
                ttl_ms: 0,
                batch: 1,
                is_preloaded: true,
                deadline_ms: 1000,
                seed: 1,
                slo: Vec::new(),
            },
            validity: Validity { is_valid: true, reasons: Vec::new(), remarks: Vec::new() },
            slo: Vec::new(),
            counts: Counts { requests: requests.iter().sum(), ..Counts::default() },
            first_failure: None,
            rates: Rates { keys_per_s: requests.iter().sum::<u64>() as f64 / 5.0, ..Rates::default() },
            latency: vec![Latency {
                op: Latency::ALL.to_owned(),
                response: empty.clone(),
                service: empty.clone(),
                lag: empty,
            }],
            tiers: Vec::new(),
            series: (0..).zip(requests).map(second).collect(),
            server: None,
            server_absent_because: String::new(),
            client: ClientUse {
                cpu_ns: 0,
                cpu_ns_per_request: 0.0,
                busy_share_by_core: vec![0.5],
                is_the_limit: false,
                late_p99_ns: None,
            },
            noise: Noise { steal_share: 0.0, cpu_pressure_share: None },
            verify: None,
        }
    }

    #[test]
    fn a_drop_that_every_second_shows_is_worse_and_one_within_the_noise_is_not() {
        let before = run([1000, 1010, 990, 1005, 995]);
        let verdict = |after: &Run| changes(&before, after, 0.05)[0].verdict;
        assert_eq!(verdict(&run([800, 810, 790, 805, 795])), Verdict::Worse);
        assert_eq!(verdict(&run([1200, 1210, 1190, 1205, 1195])), Verdict::Better);
        assert_eq!(verdict(&run([970, 980, 960, 975, 965])), Verdict::Same, "3 % is within the 5 allowed");
        assert_eq!(verdict(&run([100, 1400, 900, 700, 900])), Verdict::Same, "its own seconds differ more");
    }

    #[test]
    fn a_figure_that_no_second_tells_is_shown_and_nothing_is_concluded_from_it() {
        let (before, mut after) = (run([1000; 5]), run([500; 5]));
        after.series.clear();
        let change = changes(&before, &after, 0.05)[0];
        assert_eq!((change.by_seconds, change.verdict), (None, Verdict::Same));
    }

    #[test]
    fn a_figure_that_one_run_does_not_tell_is_not_compared() {
        let (one, mut other) = (run([1000; 5]), run([1000; 5]));
        assert_eq!(changes(&one, &other, 0.05).len(), 1, "no percentiles, no server");
        other.settings.rate_per_s = 1000.0;
        assert_eq!(changes(&one, &other, 0.05), []);
    }

    #[test]
    fn pairs_make_a_ratio_with_an_interval() {
        let (a, b) = (run([1000; 5]), run([1100; 5]));
        let (c, d) = (run([900; 5]), run([1000; 5]));
        let found = ratios(&[(&a, &b), (&c, &d)]);
        assert_eq!((found.len(), &*found[0].figure, found[0].pairs.len()), (1, "throughput", 2));
        assert!((found[0].ratio - 1.1055).abs() < 0.001 && found[0].low < found[0].ratio, "{found:?}");
        assert_eq!(ratios(&[(&a, &b)]), []);
    }
}
