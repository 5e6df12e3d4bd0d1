//! How much of a difference is the machine's mood: ratios with intervals. Pure.
//!
//! ```text
//!   turns   A B   B A   A B   …      one ratio B/A from each pair, of turns that are next to each other
//!             └─ ln ─▶ mean ± t · s / √n ─ exp ─▶ ratio, low, high
//! ```
//! Logarithms, because a ratio and its inverse are the same news; pairs, because a machine that slows down slows both
//! (Student, "The Probable Error of a Mean", 1908). What does not come in pairs is compared by Welch's test ("The
//! Generalization of Student's Problem", 1947).

use crate::random::Random;

/// A ratio, and the interval that holds the true one with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The estimate.
    pub ratio: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Interval {
    /// Whether 1, "no difference", is outside.
    #[must_use]
    pub fn excludes_one(&self) -> bool {
        self.low > 1.0 || self.high < 1.0
    }
}

/// From the ratios of pairs, all above 0; `None` with fewer than two.
#[must_use]
pub fn of_pairs(ratios: &[f64]) -> Option<Interval> {
    let (mean, variance) = mean_and_variance(ratios)?;
    let count = ratios.len() as f64;
    Some(interval(mean, (variance / count).sqrt(), count - 1.0))
}

/// Of the second's geometric mean over the first's; all samples above 0; `None` with fewer than two of either.
#[must_use]
pub fn of_samples(first: &[f64], second: &[f64]) -> Option<Interval> {
    let (first_mean, first_variance) = mean_and_variance(first)?;
    let (second_mean, second_variance) = mean_and_variance(second)?;
    let (first_count, second_count) = (first.len() as f64, second.len() as f64);
    let [a, b] = [first_variance / first_count, second_variance / second_count];
    // Welch's degrees of freedom; with no variance at all any number will do.
    let freedom = (a + b).powi(2) / (a.powi(2) / (first_count - 1.0) + b.powi(2) / (second_count - 1.0));
    let freedom = if freedom.is_finite() { freedom } else { first_count + second_count - 2.0 };
    Some(interval(second_mean - first_mean, (a + b).sqrt(), freedom))
}

fn interval(mean: f64, error: f64, freedom: f64) -> Interval {
    let margin = student(freedom) * error;
    Interval { ratio: mean.exp(), low: (mean - margin).exp(), high: (mean + margin).exp() }
}

/// Of the logarithms.
fn mean_and_variance(samples: &[f64]) -> Option<(f64, f64)> {
    if samples.len() < 2 {
        return None;
    }
    let logs: Vec<f64> = samples.iter().map(|sample| sample.ln()).collect();
    let count = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / count;
    let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0);
    Some((mean, variance))
}

/// The 97.5th percentile of Student's distribution, to three digits: exactly for 1 and 2 degrees of freedom, then by the
/// expansion of Cornish and Fisher (Abramowitz and Stegun, 26.7.5).
fn student(freedom: f64) -> f64 {
    const NORMAL: f64 = 1.959_963_985;
    if freedom < 1.5 {
        return 12.706;
    }
    if freedom < 2.5 {
        return 4.303;
    }
    let z = NORMAL;
    let terms = [
        (z.powi(3) + z) / 4.0,
        (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0,
        (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0,
        (79.0 * z.powi(9) + 776.0 * z.powi(7) + 1482.0 * z.powi(5) - 1920.0 * z.powi(3) - 945.0 * z) / 92_160.0,
    ];
    terms.iter().zip(1..).map(|(term, power)| term / freedom.powi(power)).sum::<f64>() + z
}

/// Puts `all` into an order that only the seed knows (Fisher and Yates).
pub fn shuffle<T>(all: &mut [T], random: &mut Random) {
    for end in (1..all.len()).rev() {
        let index = random.below(end as u64 + 1) as usize;
        all.swap(index, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn students_percentiles_are_those_of_the_tables() {
        let table =
            [(1.0, 12.706), (2.0, 4.303), (3.0, 3.182), (4.0, 2.776), (5.0, 2.571), (9.0, 2.262), (30.0, 2.042)];
        for (freedom, expected) in table {
            let found = student(freedom);
            assert!((found - expected).abs() < 0.005, "{freedom}: {found}");
        }
        assert!((student(1e9) - 1.96).abs() < 0.001);
    }

    #[test]
    fn a_ratio_and_its_inverse_are_the_same_news() {
        let ratios = [1.1, 1.2, 1.15, 1.05];
        let inverse = ratios.map(|ratio: f64| 1.0 / ratio);
        let (one, other) = (of_pairs(&ratios).unwrap(), of_pairs(&inverse).unwrap());
        assert!((one.ratio * other.ratio - 1.0).abs() < 1e-12 && (one.low * other.high - 1.0).abs() < 1e-12);
        assert!(one.excludes_one() && other.excludes_one());
    }

    #[test]
    fn one_pair_says_nothing_and_equal_things_are_no_difference() {
        assert_eq!(of_pairs(&[2.0]), None);
        assert!(!of_pairs(&[1.1, 0.9, 1.05, 0.97]).unwrap().excludes_one());
        assert_eq!(of_pairs(&[1.0, 1.0]).unwrap(), Interval { ratio: 1.0, low: 1.0, high: 1.0 });
    }

    /// Noise of a few per cent, by the sum of twelve uniform numbers.
    fn noisy(random: &mut Random, mean: f64) -> f64 {
        let normal = (0..12).map(|_| random.share()).sum::<f64>() - 6.0;
        mean * (0.05 * normal).exp()
    }

    #[test]
    fn intervals_hold_the_truth_nineteen_times_in_twenty() {
        let mut random = Random::new(11, 0);
        let (mut by_pairs, mut by_samples) = (0, 0);
        for _ in 0..2000 {
            let ratios: Vec<f64> = (0..6).map(|_| noisy(&mut random, 1.3)).collect();
            let found = of_pairs(&ratios).unwrap();
            by_pairs += u32::from((found.low..found.high).contains(&1.3));
            let first: Vec<f64> = (0..8).map(|_| noisy(&mut random, 100.0)).collect();
            let second: Vec<f64> = (0..5).map(|_| noisy(&mut random, 130.0)).collect();
            let found = of_samples(&first, &second).unwrap();
            by_samples += u32::from((found.low..found.high).contains(&1.3));
        }
        // 1,900 with a standard deviation of 10.
        assert!((1850..1950).contains(&by_pairs) && (1850..1950).contains(&by_samples), "{by_pairs} {by_samples}");
    }

    #[test]
    fn a_shuffle_keeps_everything_and_is_the_seeds_own() {
        let shuffled = |seed| {
            let mut all: Vec<u32> = (0..50).collect();
            shuffle(&mut all, &mut Random::new(seed, 0));
            all
        };
        assert_eq!(shuffled(1), shuffled(1));
        assert_ne!(shuffled(1), shuffled(2));
        let mut sorted = shuffled(1);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }
}
