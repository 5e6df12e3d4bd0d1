//! When requests are meant to be sent.
//!
//! ```text
//!   open loop     ──┴─┴────┴┴──────┴──▶ t     a Poisson process: gaps of exponential length, whatever the server does;
//!                                             or the times of a trace
//!   closed loop   each stream sends as soon as its last answer is there
//! ```
//! Users do not wait for each other, so in an open loop a request that is late because the server was busy with those
//! before it is counted from when it was meant to be sent: else the slowest seconds of a server would be those with the
//! fewest samples ("coordinated omission", Tene, "How NOT to Measure Latency", 2013). Nothing is ever skipped.

use std::{collections::VecDeque, time::Duration};

use crate::random::Random;

/// The stream of random numbers that is for arrivals; those from 0 are for the cores' operations.
const ARRIVALS: u64 = 1 << 32;

/// The sends of one core, as times since the beginning.
#[derive(Debug)]
pub enum Arrivals {
    /// By chance.
    Poisson(Poisson),
    /// As they were recorded, in ascending order.
    Listed(VecDeque<Duration>),
}

/// Events that know nothing of each other.
#[derive(Debug)]
pub struct Poisson {
    gap_s: f64,
    random: Random,
    next_s: f64,
}

impl Arrivals {
    /// A Poisson process with `rate_per_s` above 0. The sum of several with different `core` is one of their sum of rates.
    #[must_use]
    pub fn poisson(rate_per_s: f64, seed: u64, core: usize) -> Self {
        assert!(rate_per_s > 0.0 && rate_per_s.is_finite(), "{rate_per_s} requests per second");
        let random = Random::new(seed, ARRIVALS + core as u64);
        let mut poisson = Poisson { gap_s: 1.0 / rate_per_s, random, next_s: 0.0 };
        poisson.pass();
        Self::Poisson(poisson)
    }

    /// When the next is due; stays the same until [`Arrivals::pass`]. The longest time there is after the last.
    #[must_use]
    pub fn next(&self) -> Duration {
        match self {
            Self::Poisson(poisson) => Duration::from_secs_f64(poisson.next_s),
            Self::Listed(times) => times.front().copied().unwrap_or(Duration::MAX),
        }
    }

    /// Goes on to the one after.
    pub fn pass(&mut self) {
        match self {
            Self::Poisson(poisson) => poisson.pass(),
            Self::Listed(times) => drop(times.pop_front()),
        }
    }

    /// Lets go of all before `until`; how many of them were due at `from` or later. For a Poisson process that is the number
    /// to be expected: which it would have been is never drawn, since there may be millions.
    pub fn skip(&mut self, from: Duration, until: Duration) -> u64 {
        match self {
            Self::Poisson(poisson) => {
                let first_s = poisson.next_s.max(from.as_secs_f64());
                let expected = (until.as_secs_f64() - first_s) / poisson.gap_s;
                // The process has no memory: what comes after does not depend on what came before.
                poisson.next_s = poisson.next_s.max(until.as_secs_f64());
                poisson.pass();
                // The one that is due at `first_s` itself, too.
                if expected > 0.0 { expected as u64 + 1 } else { 0 }
            }
            Self::Listed(times) => {
                let end = times.partition_point(|time| *time < until);
                times.drain(..end).filter(|time| *time >= from).count() as u64
            }
        }
    }
}

impl Poisson {
    fn pass(&mut self) {
        // Seconds as f64 keep their nanoseconds for 100 days.
        self.next_s += self.gap_s * self.random.exponential();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(rate_per_s: f64, core: usize, count: usize) -> Vec<f64> {
        let mut arrivals = Arrivals::poisson(rate_per_s, 42, core);
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
    fn recorded_times_come_as_they_are_and_then_nothing_for_ever() {
        let mut arrivals = Arrivals::Listed([1, 2].map(Duration::from_secs).into());
        for expected in [Duration::from_secs(1), Duration::from_secs(2), Duration::MAX, Duration::MAX] {
            assert_eq!(arrivals.next(), expected);
            arrivals.pass();
        }
    }

    #[test]
    fn what_is_skipped_is_counted_and_the_process_goes_on_after_it() {
        let mut arrivals = Arrivals::poisson(1e7, 42, 0);
        let skipped = arrivals.skip(Duration::from_secs(1), Duration::from_secs(4));
        assert!(skipped.abs_diff(30_000_000) < 10, "{skipped}");
        assert!(arrivals.next() > Duration::from_secs(4) && arrivals.next() < Duration::from_millis(4001));
        let mut arrivals = Arrivals::Listed([1, 2, 3, 4].map(Duration::from_secs).into());
        assert_eq!(arrivals.skip(Duration::from_secs(2), Duration::from_secs(4)), 2);
        assert_eq!(arrivals.next(), Duration::from_secs(4));
    }

    #[test]
    fn a_seed_is_one_schedule_and_cores_have_their_own() {
        assert_eq!(times(10.0, 0, 50), times(10.0, 0, 50));
        assert_ne!(times(10.0, 0, 50), times(10.0, 1, 50));
    }
}
