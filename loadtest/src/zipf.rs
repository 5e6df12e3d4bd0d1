//! Zipf's distribution, exactly: rank k of n is drawn with probability k^-s / (1^-s + … + n^-s).
//!
//! ```text
//!   density   h(x) = x^-s          area   H(x) = ∫ h             a uniform point of the area under the curve …
//!
//!    h │█                          u ∈ (H(1.5) - 1, H(n + 0.5))   … inverted: x = H⁻¹(u), k = round(x)
//!      │█▙                         accepted if the point lies below the bar of k, else drawn again;
//!      │██▙▄▄▖                     more than 9 in 10 are accepted whatever n and s
//!      └────────▶ k
//! ```
//! Rejection-inversion: Hörmann and Derflinger, "Rejection-Inversion to Generate Variates from Monotone Discrete
//! Distributions", ACM TOMACS 6 (3), 1996. No table, so a billion keys cost what ten do. Others' generators approximate:
//! YCSB draws from ten thousand million ranks and folds them, so its "zipfian" has other hit ratios than this.

use crate::random::Random;

/// A distribution over the ranks 1 to `count`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Zipf {
    count: f64,
    exponent: f64,
    area_low: f64,
    area_high: f64,
    /// A point this close to its rank lies below the bar for certain: saves the test for most. Only for speed.
    sure: f64,
}

impl Zipf {
    /// Ranks 1 to `count`, which is not 0, with an `exponent` above 0 (1 is allowed).
    ///
    /// # Panics
    /// When it is outside these bounds.
    #[must_use]
    pub fn new(count: u64, exponent: f64) -> Self {
        assert!(count > 0 && exponent > 0.0 && exponent.is_finite(), "{count} ranks, exponent {exponent}");
        let count = count as f64;
        let mut zipf = Self { count, exponent, area_low: 0.0, area_high: 0.0, sure: 0.0 };
        zipf.area_low = zipf.area(1.5) - 1.0;
        zipf.area_high = zipf.area(count + 0.5);
        zipf.sure = 2.0 - zipf.inverse(zipf.area(2.5) - zipf.density(2.0));
        zipf
    }

    /// A rank, from 1.
    pub fn rank(&self, random: &mut Random) -> u64 {
        loop {
            let point = self.area_high + random.share() * (self.area_low - self.area_high);
            let x = self.inverse(point);
            let rank = x.round().clamp(1.0, self.count);
            if rank - x <= self.sure || point >= self.area(rank + 0.5) - self.density(rank) {
                return rank as u64;
            }
        }
    }

    fn density(&self, x: f64) -> f64 {
        x.powf(-self.exponent)
    }

    /// (x^(1-s) - 1) / (1 - s), which for s = 1 is ln x; written so that it is exact near 1 too.
    fn area(&self, x: f64) -> f64 {
        let log = x.ln();
        exp_minus_one_over((1.0 - self.exponent) * log) * log
    }

    fn inverse(&self, area: f64) -> f64 {
        // Rounding may bring the argument of the logarithm below its pole.
        let bend = ((1.0 - self.exponent) * area).max(-1.0);
        (log_one_plus_over(bend) * area).exp()
    }
}

/// (e^t - 1) / t.
fn exp_minus_one_over(t: f64) -> f64 {
    if t.abs() > 1e-8 { t.exp_m1() / t } else { 1.0 + t / 2.0 * (1.0 + t / 3.0) }
}

/// ln(1 + t) / t.
fn log_one_plus_over(t: f64) -> f64 {
    if t.abs() > 1e-8 { t.ln_1p() / t } else { 1.0 - t * (0.5 - t / 3.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u32 = 400_000;

    /// Pearson's statistic of draws against exact probabilities. Ranks whose expectation is below 20 are taken together.
    fn chi_square(count: u64, exponent: f64) -> (f64, f64) {
        let zipf = Zipf::new(count, exponent);
        let mut random = Random::new(1, count);
        let mut counts = vec![0_u32; count as usize];
        for _ in 0..DRAWS {
            counts[zipf.rank(&mut random) as usize - 1] += 1;
        }
        let weights: Vec<f64> = (1..=count).map(|rank| (rank as f64).powf(-exponent)).collect();
        let total: f64 = weights.iter().sum();
        let (mut statistic, mut cells) = (0.0, 0.0);
        let (mut expected, mut found) = (0.0, 0.0);
        for (weight, count) in weights.iter().zip(&counts) {
            expected += weight / total * f64::from(DRAWS);
            found += f64::from(*count);
            if expected >= 20.0 {
                statistic += (found - expected).powi(2) / expected;
                cells += 1.0;
                (expected, found) = (0.0, 0.0);
            }
        }
        (statistic, cells - 1.0)
    }

    #[test]
    fn ranks_are_drawn_with_their_exact_probabilities() {
        for (count, exponent) in [(1, 0.99), (2, 0.99), (10, 0.5), (1000, 0.99), (1000, 1.0), (5000, 1.2), (300, 3.0)] {
            let (statistic, freedom) = chi_square(count, exponent);
            // The statistic has mean `freedom` and variance twice that; beyond five deviations nobody is lucky.
            let bound = freedom + 5.0 * (2.0 * freedom).sqrt() + 5.0;
            assert!(statistic < bound, "n {count}, s {exponent}: {statistic} with {freedom} degrees of freedom");
        }
    }

    #[test]
    fn a_thousand_million_ranks_stay_within_their_bounds() {
        let zipf = Zipf::new(1_000_000_000, 0.99);
        let mut random = Random::new(2, 0);
        let ranks: Vec<u64> = (0..10_000).map(|_| zipf.rank(&mut random)).collect();
        assert!(ranks.iter().all(|rank| (1..=1_000_000_000).contains(rank)));
        // Rank 1 has a share of 1 / 23.6 (the sum of k^-0.99 to 10^9, by Euler and Maclaurin).
        let firsts = ranks.iter().filter(|rank| **rank == 1).count();
        assert!((300..560).contains(&firsts), "{firsts}");
    }
}
