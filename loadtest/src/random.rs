//! Random numbers: the same for the same seed, on every machine and in every version.
//!
//! ```text
//!   seed ──splitmix64──▶ four words of state ──xoshiro256++──▶ 64 bits at a time
//! ```
//! Blackman and Vigna, "Scrambled Linear Pseudorandom Number Generators", ACM TOMS 47 (4), 2021. Our own, because a
//! library's generator may change with its version, and then the same seed would be another load.

use std::fmt;

/// A generator. Not for secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// The generator number `stream` of `seed`; different streams have nothing in common.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut word = mix(seed ^ mix(stream.wrapping_add(INCREMENT)));
        let state = std::array::from_fn(|_| {
            word = word.wrapping_add(INCREMENT);
            mix(word)
        });
        Self { state }
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let answer = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let [c, d] = [c ^ a, d ^ b];
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        answer
    }

    /// A number from 0 to below 1, each multiple of 2^-53 as likely as any other.
    pub fn share(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * f64::EPSILON / 2.0
    }

    /// A number below `end`, which is not 0. Lemire, "Fast Random Integer Generation in an Interval", 2019, without the
    /// rejection: its bias is below `end` / 2^64.
    pub fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "there is no number below 0");
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// A waiting time with mean 1: how long to the next of events that know nothing of each other.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.share()).ln() // 1 - share is never 0
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}

/// splitmix64's increment, an odd number near 2^64 divided by the golden ratio.
const INCREMENT: u64 = 0x9E37_79B9_7F4A_7C15;

/// splitmix64's finaliser: every bit of the answer depends on every bit of `x`. Steele, Lea and Flood, "Fast Splittable
/// Pseudorandom Number Generators", OOPSLA 2014.
#[must_use]
pub const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_algorithm_is_xoshiro256_plus_plus() {
        // The first outputs for the state 1, 2, 3, 4: (1 + 4 <<< 23) + 1, and so on by hand.
        let mut random = Random { state: [1, 2, 3, 4] };
        assert_eq!(random.bits(), 41_943_041);
        assert_eq!(random.bits(), 58_720_359);
        assert_eq!(random.bits(), 3_588_806_011_781_223);
    }

    #[test]
    fn a_seed_is_the_same_numbers_for_ever_and_streams_differ() {
        let first = |seed, stream| Random::new(seed, stream).bits();
        assert_eq!(first(42, 0), first(42, 0));
        assert_ne!(first(42, 0), first(42, 1));
        assert_ne!(first(42, 0), first(43, 0));
    }

    #[test]
    fn shares_fill_the_unit_interval_evenly() {
        let mut random = Random::new(7, 0);
        let mut counts = [0_u32; 10];
        for _ in 0..100_000 {
            let share = random.share();
            assert!((0.0..1.0).contains(&share));
            counts[(share * 10.0) as usize] += 1;
        }
        // Six standard deviations of a binomial count.
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 570), "{counts:?}");
    }

    #[test]
    fn waiting_times_have_mean_one_and_standard_deviation_one() {
        let mut random = Random::new(9, 0);
        let times: Vec<f64> = (0..100_000).map(|_| random.exponential()).collect();
        let mean = times.iter().sum::<f64>() / 1e5;
        let variance = times.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / 1e5;
        assert!((mean - 1.0).abs() < 0.02 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
