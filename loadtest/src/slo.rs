//! Promises: what a run has to keep, written as people say it.
//!
//! ```text
//!   p99<2ms   p99.9<=10ms   max<1s   mean<500us      response time of all operations
//!   errors<0.1%   hits>80%   rate>=100000            shares, and calls per second
//! ```

use std::{fmt, str::FromStr, time::Duration};

use crate::result::{Counts, Rates, SloOutcome};
use crate::times::Times;

/// One promise.
#[derive(Clone, Debug, PartialEq)]
pub struct Slo {
    text: String,
    figure: Figure,
    is_upper: bool,
    is_inclusive: bool,
    /// Nanoseconds, a share, or calls per second.
    bound: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Figure {
    Percentile(f64),
    Max,
    Mean,
    Errors,
    Hits,
    Rate,
}

/// A promise that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SloError(String);

impl Slo {
    /// Whether a run kept it. What too few samples leave open is not kept.
    #[must_use]
    pub fn judge(&self, response: &Times, counts: &Counts, rates: &Rates) -> SloOutcome {
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let some = |found: f64| (response.count() > 0).then_some(found);
        let observed = match self.figure {
            Figure::Percentile(percentile) => response.percentile_ns(percentile).map(|ns| ns as f64),
            Figure::Max => some(response.max_ns() as f64),
            Figure::Mean => some(response.mean_ns()),
            Figure::Errors => share(counts.errors, counts.requests),
            Figure::Hits => share(counts.hits, counts.hits + counts.misses),
            Figure::Rate => Some(rates.achieved_per_s),
        };
        SloOutcome {
            expression: self.text.clone(),
            observed,
            allowed: self.bound,
            is_kept: observed.is_some_and(|observed| self.allows(observed)),
        }
    }

    fn allows(&self, observed: f64) -> bool {
        match (self.is_upper, self.is_inclusive) {
            (true, true) => observed <= self.bound,
            (true, false) => observed < self.bound,
            (false, true) => observed >= self.bound,
            (false, false) => observed > self.bound,
        }
    }
}

impl FromStr for Slo {
    type Err = SloError;

    fn from_str(text: &str) -> Result<Self, SloError> {
        let error = || SloError(text.to_owned());
        let at = text.find(['<', '>']).ok_or_else(error)?;
        let (name, rest) = text.split_at(at);
        let is_upper = rest.starts_with('<');
        let is_inclusive = rest[1..].starts_with('=');
        let bound = rest[1 + usize::from(is_inclusive)..].trim();
        let figure = match name.trim() {
            "max" => Figure::Max,
            "mean" => Figure::Mean,
            "errors" => Figure::Errors,
            "hits" => Figure::Hits,
            "rate" => Figure::Rate,
            name => {
                let percentile = name.strip_prefix('p').and_then(|number| number.parse::<f64>().ok());
                Figure::Percentile(percentile.filter(|number| *number > 0.0 && *number < 100.0).ok_or_else(error)?)
            }
        };
        let bound = match figure {
            Figure::Percentile(_) | Figure::Max | Figure::Mean => duration(bound).map(|time| time.as_nanos() as f64),
            Figure::Errors | Figure::Hits => share(bound),
            Figure::Rate => bound.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate >= 0.0),
        };
        Ok(Self { text: text.to_owned(), figure, is_upper, is_inclusive, bound: bound.ok_or_else(error)? })
    }
}

/// `2ms`, `1.5s`, `500us`, `30ns`, `2m`, `1h`.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let units = [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let (number, unit) =
        units.iter().find_map(|(name, unit)| text.strip_suffix(name).map(|number| (number.trim(), *unit)))?;
    let number = number.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0)?;
    Duration::try_from_secs_f64(number * unit).ok()
}

/// `5%` or `0.05`: a share from 0 to 1.
#[must_use]
pub fn share(text: &str) -> Option<f64> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().ok()? / 100.0,
        None => text.parse().ok()?,
    };
    (0.0..=1.0).contains(&share).then_some(share)
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for SloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(found) = self;
        write!(
            f,
            "{found}: a promise such as p99<2ms, max<1s, mean<500us, errors<0.1%, hits>80% or rate>=1000 is expected"
        )
    }
}

impl std::error::Error for SloError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(slo: &str, times_us: impl IntoIterator<Item = u64>) -> SloOutcome {
        let mut response = Times::new();
        times_us.into_iter().for_each(|us| response.record(Duration::from_micros(us)));
        let requests = response.count();
        let counts = Counts { requests, errors: 5, hits: 80, misses: 20, ..Counts::default() };
        let rates = Rates { achieved_per_s: 1000.0, ..Rates::default() };
        slo.parse::<Slo>().unwrap().judge(&response, &counts, &rates)
    }

    #[test]
    fn a_percentile_is_kept_or_not() {
        assert!(judged("p99<1ms", 1..=10_000).observed.unwrap() > 9.8e6);
        assert!(!judged("p99<1ms", 1..=10_000).is_kept);
        assert!(judged("p50 < 5.1ms", 1..=10_000).is_kept);
        assert!(judged("max<=10.1ms", 1..=10_000).is_kept);
        assert!(!judged("mean<5000us", 1..=10_000).is_kept);
    }

    #[test]
    fn what_too_few_samples_leave_open_is_not_kept() {
        let outcome = judged("p99<1h", 1..=9_999);
        assert_eq!((outcome.observed, outcome.is_kept), (None, false));
        assert!(!judged("max<1h", []).is_kept);
    }

    #[test]
    fn shares_and_rates_are_judged_too() {
        assert!(judged("errors<0.1%", 1..=10_000).is_kept);
        assert!(!judged("errors<0.05%", 1..=10_000).is_kept, "5 of 10,000 are not less than that");
        assert!(judged("hits>=80%", []).is_kept && !judged("hits>0.8", []).is_kept);
        assert!(judged("rate>=1000", []).is_kept && !judged("rate>1000", []).is_kept);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for text in
            ["", "p99", "p99<", "p99<2", "p0<1ms", "p100<1ms", "q99<1ms", "errors<2", "hits>1ms", "rate>x", "p99=1ms"]
        {
            let error = text.parse::<Slo>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text}: a promise such as ")), "{error}");
        }
    }

    #[test]
    fn durations_have_units() {
        let read = |text| duration(text).map(|time| time.as_nanos());
        assert_eq!(read("1.5ms"), Some(1_500_000));
        assert_eq!(read("2m"), Some(120_000_000_000));
        assert_eq!((read("2"), read("-1s"), read("s"), read("1e300h")), (None, None, None, None));
    }
}
