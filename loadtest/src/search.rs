//! The highest rate that keeps every promise. Pure: says which rate to probe next, is told what came out.
//!
//! ```text
//!   closed loop ─▶ peak P      grid: P × (0.2 … 1), in an order that only the seed knows
//!                              kept  kept  missed   missed
//!                              ├─────┼─────┼────────┼──▶ rate
//!                                    └──┬──┘
//!                                    bisection, until the two are within 3 %, then the kept one once more
//! ```
//! Shuffled, so that a server that tires, or a machine that does, is not taken for one that is slow at high rates. The idea
//! is mutilate's (Leverich, 2014); that every probe is reported is ours.

use crate::{random::Random, statistics::shuffle};

/// The grid, as shares of the peak.
const GRID: [f64; 5] = [0.2, 0.4, 0.6, 0.8, 1.0];

/// The rates between which the answer lies are this close in the end.
const RESOLUTION: f64 = 1.03;

/// Probes in all, so that a search ends.
pub const PROBES_MAX: usize = 30;

/// Times that an invalid probe is made again.
const REPEATS_MAX: u32 = 2;

/// What came out of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every promise was kept.
    Kept,
    /// One was not, or the server did not keep up.
    Missed,
    /// Nothing can be concluded.
    Invalid,
}

impl Verdict {
    /// As in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Missed => "missed",
            Self::Invalid => "invalid",
        }
    }
}

/// A search under way.
#[derive(Debug)]
pub struct Search {
    grid: Vec<f64>,
    kept: Vec<f64>,
    missed: Vec<f64>,
    repeats: u32,
    probes: usize,
    is_over: bool,
}

impl Search {
    /// Below `peak_per_s`, which a closed loop has reached.
    #[must_use]
    pub fn new(peak_per_s: f64, seed: u64) -> Self {
        let mut grid = GRID.map(|share| share * peak_per_s).to_vec();
        shuffle(&mut grid, &mut Random::new(seed, 0));
        Self { grid, kept: Vec::new(), missed: Vec::new(), repeats: 0, probes: 0, is_over: false }
    }

    /// The rate to be probed next; `None` when the search is over.
    #[must_use]
    pub fn next(&self) -> Option<f64> {
        if self.probes >= PROBES_MAX || self.is_over {
            return None;
        }
        if let Some(rate) = self.grid.last() {
            return Some(*rate);
        }
        match (self.kept(), self.missed()) {
            (Some(kept), Some(missed)) if missed / kept > RESOLUTION => Some((kept * missed).sqrt()),
            (Some(kept), _) => Some(kept), // Once more.
            // Nothing was kept, down to a hundredth of the peak or so: give up.
            (None, Some(missed)) if self.missed.len() < GRID.len() + 5 => Some(missed / 2.0),
            (None, _) => None,
        }
    }

    /// Takes in what came out of the probe at [`Search::next`].
    ///
    /// # Panics
    /// When the search is over.
    pub fn note(&mut self, verdict: Verdict) {
        let rate = self.next().expect("a probe was asked for");
        self.probes += 1;
        if verdict == Verdict::Invalid && self.repeats < REPEATS_MAX {
            self.repeats += 1;
            return;
        }
        self.repeats = 0;
        let is_of_grid = self.grid.pop().is_some();
        match verdict {
            Verdict::Kept => {
                self.is_over = !is_of_grid && self.kept.contains(&rate); // Confirmed.
                self.kept.push(rate);
            }
            Verdict::Missed => {
                // A rate that was kept once and then not was luck.
                self.kept.retain(|kept| *kept < rate);
                self.missed.push(rate);
            }
            // Nothing is concluded: of the grid there are others, and after it there is no way on.
            Verdict::Invalid => self.is_over = !is_of_grid,
        }
    }

    /// The highest rate that was kept below every one that was missed.
    #[must_use]
    pub fn kept(&self) -> Option<f64> {
        let limit = self.missed().unwrap_or(f64::INFINITY);
        self.kept.iter().copied().filter(|kept| *kept < limit).max_by(f64::total_cmp)
    }

    /// The lowest that was missed.
    #[must_use]
    pub fn missed(&self) -> Option<f64> {
        self.missed.iter().copied().min_by(f64::total_cmp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches with these verdicts to the end; the rates that were probed.
    fn search(search: &mut Search, mut verdict: impl FnMut(f64) -> Verdict) -> Vec<f64> {
        let mut probed = Vec::new();
        while let Some(rate) = search.next() {
            search.note(verdict(rate));
            probed.push(rate);
        }
        probed
    }

    fn up_to(limit: f64) -> impl FnMut(f64) -> Verdict {
        move |rate| if rate <= limit { Verdict::Kept } else { Verdict::Missed }
    }

    #[test]
    fn the_limit_is_found_to_three_per_cent_and_confirmed() {
        for limit in [150.0, 333.0, 700.0, 990.0] {
            let mut found = Search::new(1000.0, 1);
            let probed = search(&mut found, up_to(limit));
            let (kept, missed) = (found.kept().unwrap(), found.missed().unwrap());
            assert!(kept <= limit && limit < missed && missed / kept <= RESOLUTION, "{limit}: {kept} {missed}");
            assert_eq!(probed.last(), Some(&kept), "confirmed");
            assert!(probed.len() <= 14, "{probed:?}");
        }
    }

    #[test]
    fn a_limit_above_the_peak_is_the_peak() {
        let mut found = Search::new(1000.0, 1);
        search(&mut found, up_to(5000.0));
        assert_eq!((found.kept(), found.missed()), (Some(1000.0), None));
    }

    #[test]
    fn a_promise_that_no_rate_keeps_is_given_up() {
        let mut found = Search::new(1000.0, 1);
        let probed = search(&mut found, |_| Verdict::Missed);
        assert_eq!(found.kept(), None);
        assert!(probed.len() < PROBES_MAX && probed.iter().any(|rate| *rate < 10.0), "{probed:?}");
    }

    #[test]
    fn the_first_probes_are_shuffled_by_the_seed() {
        let first = |seed| search(&mut Search::new(1000.0, seed), up_to(700.0))[..GRID.len()].to_vec();
        assert_eq!(first(1), first(1));
        assert!((0..5).any(|seed| first(seed) != first(seed + 1)));
        assert!((0..5).any(|seed| !first(seed).is_sorted()));
    }

    #[test]
    fn an_invalid_probe_is_made_three_times_and_nothing_is_concluded_from_it() {
        let mut found = Search::new(1000.0, 1);
        let probed = search(&mut found, |rate| match rate {
            rate if rate < 500.0 => Verdict::Invalid,
            rate if rate < 700.0 => Verdict::Kept,
            _ => Verdict::Missed,
        });
        let (kept, missed) = (found.kept().unwrap(), found.missed().unwrap());
        assert!((600.0..700.0).contains(&kept) && missed / kept <= RESOLUTION, "{kept} {missed}");
        assert_eq!(probed.iter().filter(|rate| **rate == 200.0).count(), 3);

        let mut found = Search::new(1000.0, 1);
        assert_eq!(search(&mut found, |_| Verdict::Invalid).len(), 3 * GRID.len());
        assert_eq!((found.kept(), found.missed()), (None, None));
    }

    #[test]
    fn a_rate_that_is_kept_by_luck_is_left_when_it_is_missed_the_second_time() {
        let mut found = Search::new(1000.0, 1);
        let mut lucky = true;
        search(&mut found, |rate| match rate {
            rate if rate <= 500.0 => Verdict::Kept,
            rate if rate > 650.0 => Verdict::Missed,
            _ => {
                if std::mem::take(&mut lucky) {
                    Verdict::Kept
                } else {
                    Verdict::Missed
                }
            }
        });
        let kept = found.kept().unwrap();
        assert!(kept <= 500.0 * RESOLUTION, "{kept}");
    }
}
