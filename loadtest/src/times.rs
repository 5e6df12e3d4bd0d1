//! A distribution of times as it is recorded: HdrHistogram with 3 digits, and the rule which percentiles may be told.
//!
//! ```text
//!   1 ns ├────────── 3 significant digits everywhere ──────────┤ TIME_MAX, and what is longer counts as that
//! ```
//! 27,000 counters or so of 8 bytes. Recording touches one of them.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hdrhistogram::{
    Histogram as Hdr,
    serialization::{Deserializer, Serializer as _, V2DeflateSerializer},
};

use crate::result::{Histogram, PERCENTILES, Percentile, SAMPLES_BEYOND_MIN};

/// The longest time that is told from longer ones: no call may take that long.
pub const TIME_MAX: Duration = Duration::from_secs(3600);

/// Significant decimal digits.
const DIGITS: u8 = 3;

/// Times, in nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Times(Hdr<u64>);

impl Times {
    /// No times yet.
    #[must_use]
    pub fn new() -> Self {
        let max_ns = u64::try_from(TIME_MAX.as_nanos()).expect("584 years fit");
        Self(Hdr::new_with_bounds(1, max_ns, DIGITS).expect("bounds that are fine"))
    }

    /// Adds a sample.
    pub fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds the samples of `other`.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("of equal bounds");
    }

    /// Samples.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The greatest, in nanoseconds; 0 without samples.
    #[must_use]
    pub fn max_ns(&self) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.max() }
    }

    /// The mean, in nanoseconds; 0 without samples.
    #[must_use]
    pub fn mean_ns(&self) -> f64 {
        self.0.mean()
    }

    /// In nanoseconds; `None` with fewer than [`SAMPLES_BEYOND_MIN`] samples beyond it.
    #[must_use]
    pub fn percentile_ns(&self, percentile: f64) -> Option<u64> {
        let beyond = self.0.len() as f64 * (100.0 - percentile) / 100.0;
        // A rounding error of the product must not withhold the p99 of 10,000 samples.
        let is_told = (beyond + 1e-6) as u64 >= SAMPLES_BEYOND_MIN;
        is_told.then(|| self.0.value_at_percentile(percentile))
    }

    /// As it stands in a file.
    ///
    /// # Panics
    /// Never: memory takes what the serializer writes.
    #[must_use]
    pub fn to_result(&self) -> Histogram {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new().serialize(&self.0, &mut bytes).expect("a Vec takes everything");
        let is_empty = self.0.is_empty();
        Histogram {
            count: self.0.len(),
            min_ns: if is_empty { 0 } else { self.0.min() },
            mean_ns: self.0.mean(),
            stdev_ns: self.0.stdev(),
            max_ns: self.max_ns(),
            percentiles: PERCENTILES
                .iter()
                .map(|percentile| Percentile { percentile: *percentile, value_ns: self.percentile_ns(*percentile) })
                .collect(),
            hdr: BASE64_STANDARD.encode(bytes),
        }
    }

    /// From a file; `None` if its `hdr` is no histogram of ours.
    #[must_use]
    pub fn from_result(histogram: &Histogram) -> Option<Self> {
        let bytes = BASE64_STANDARD.decode(&histogram.hdr).ok()?;
        let found: Hdr<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).ok()?;
        let mut times = Self::new();
        times.0.add(found).ok()?;
        Some(times)
    }

    /// The recorder itself, for formats that libraries write.
    #[must_use]
    pub fn hdr(&self) -> &Hdr<u64> {
        &self.0
    }
}

impl Default for Times {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_us(samples: impl IntoIterator<Item = u64>) -> Times {
        let mut times = Times::new();
        samples.into_iter().for_each(|us| times.record(Duration::from_micros(us)));
        times
    }

    #[test]
    fn a_percentile_with_fewer_than_a_hundred_samples_beyond_it_is_withheld() {
        assert_eq!(of_us(1..=9_999).percentile_ns(99.0), None);
        let p99 = of_us(1..=10_000).percentile_ns(99.0).unwrap();
        assert!(p99.abs_diff(9_900_000) <= 9_900, "{p99}");
        assert_eq!(of_us(1..=10_000).percentile_ns(99.9), None);
        assert_eq!(of_us(1..=199).percentile_ns(50.0), None);
        assert!(of_us(1..=200).percentile_ns(50.0).is_some());
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let times = of_us((1..5000).map(|number| number * number));
        let written = times.to_result();
        assert_eq!(Times::from_result(&written).unwrap(), times);
        assert_eq!((written.count, written.max_ns), (4999, times.max_ns()));
        assert_eq!(Times::from_result(&Histogram { hdr: "AAAA".to_owned(), ..written }), None);
    }

    #[test]
    fn a_time_beyond_the_longest_counts_as_the_longest() {
        let mut times = Times::new();
        times.record(TIME_MAX * 2);
        assert_eq!(times.count(), 1);
        assert!(times.max_ns().abs_diff(TIME_MAX.as_nanos() as u64) < TIME_MAX.as_nanos() as u64 / 900);
    }

    #[test]
    fn without_samples_everything_is_nothing() {
        let empty = Times::new().to_result();
        assert_eq!((empty.count, empty.min_ns, empty.max_ns, empty.mean_ns), (0, 0, 0, 0.0));
        assert!(empty.percentiles.iter().all(|percentile| percentile.value_ns.is_none()));
    }

    #[test]
    fn samples_of_two_cores_add_up() {
        let mut one = of_us(1..=500);
        one.add(&of_us(501..=1000));
        assert_eq!(one, of_us(1..=1000));
    }
}
