//! When requests are meant to be sent.
//!
//! ```text
//!   open loop     ──┴─┴────┴┴──────┴──▶ t     a Poisson process: gaps of exponential length, whatever the server does
//!   closed loop   each stream sends as soon as its last answer is there
//! ```
//! Users do not wait for each other, so in an open loop a request that is late because the server was busy with those
//! before it is counted from when it was meant to be sent: else the slowest seconds of a server would be those with the
//! fewest samples ("coordinated omission", Tene, "How NOT to Measure Latency", 2013). Nothing is ever skipped.

use std::time::Duration;

use crate::random::Random;

/// The stream of random numbers that is for arrivals; those from 0 are for the cores' operations.
const ARRIVALS: u64 = 1 << 32;

/// The sends of one core, as times since the beginning.
#[derive(Debug)]
pub struct Arrivals {
    gap_s: f64,
    random: Random,
    next_s: f64,
}

impl Arrivals {
    /// A Poisson process with `rate_per_s` above 0. The sum of several with different `core` is one of their sum of rates.
    #[must_use]
    pub fn new(rate_per_s: f64, seed: u64, core: usize) -> Self {
        assert!(rate_per_s > 0.0 && rate_per_s.is_finite(), "{rate_per_s} requests per second");
        let mut arrivals =
            Self { gap_s: 1.0 / rate_per_s, random: Random::new(seed, ARRIVALS + core as u64), next_s: 0.0 };
        arrivals.pass();
        arrivals
    }

    /// When the next is due. Stays the same until [`Arrivals::pass`].
    #[must_use]
    pub fn next(&self) -> Duration {
        Duration::from_secs_f64(self.next_s)
    }

    /// Goes on to the one after.
    pub fn pass(&mut self) {
        // Seconds as f64 keep their nanoseconds for 100 days.
        self.next_s += self.gap_s * self.random.exponential();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(rate_per_s: f64, core: usize, count: usize) -> Vec<f64> {
        let mut arrivals = Arrivals::new(rate_per_s, 42, core);
        let next = |_| {
            let next = arrivals.next().as_secs_f64();
            arrivals.pass();
            next
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn arrivals_keep_their_rate() {
        let times = times(1000.0, 0, 100_000);
        assert!((times[99_999] - 100.0).abs() < 1.5, "{}", times[99_999]);
        assert!(times.is_sorted());
    }

    #[test]
    fn counts_of_equal_intervals_vary_as_poisson_says() {
        let mut counts = vec![0_u32; 1000];
        for time in times(100.0, 0, 200_000) {
            if let Some(count) = counts.get_mut(time as usize) {
                *count += 1;
            }
        }
        let mean = counts.iter().sum::<u32>() as f64 / 1000.0;
        let variance = counts.iter().map(|count| (f64::from(*count) - mean).powi(2)).sum::<f64>() / 1000.0;
        assert!((mean - 100.0).abs() < 2.0, "{mean}");
        assert!((0.8..1.2).contains(&(variance / mean)), "{}", variance / mean); // 0 for equal gaps
    }

    #[test]
    fn a_seed_is_one_schedule_and_cores_have_their_own() {
        assert_eq!(times(10.0, 0, 50), times(10.0, 0, 50));
        assert_ne!(times(10.0, 0, 50), times(10.0, 1, 50));
    }
}
