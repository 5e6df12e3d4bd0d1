//! One axis of a picture: its range, its scale, and a few ticks at round values.
//!
//! ```text
//!   linear        0 ─────── 5k ────── 10k          from 0, because a cut axis makes small differences large
//!   logarithmic   10 µs ─── 100 µs ── 1 ms         latencies span decades
//!   nines         0 ── 90 ── 99 ── 99.9 ── 99.99   each step is a tenth of what was left: 1 - 10^-x, in per cent
//! ```
//! Ticks are few: a picture is read on a telephone too.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// Steps between ticks of a linear axis, at most.
const LINEAR_STEPS_MAX: f64 = 4.0;

/// Ticks of a logarithmic axis, at most.
const LOGARITHMIC_TICKS_MAX: usize = 6;

/// Where ticks of an axis of seconds may lie: people count time in these.
const SECONDS: [f64; 15] =
    [1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 7_200.0, 21_600.0, 86_400.0];

/// Samples lie in front of every percentile of the axis, and the curves end before a millionth is left.
const NINES: [(f64, &str); 7] =
    [(0.0, "0"), (1.0, "90"), (2.0, "99"), (3.0, "99.9"), (4.0, "99.99"), (5.0, "99.999"), (6.0, "99.9999")];

/// On a longer axis of nines there is no room for a tick at 50.
const WITH_MEDIAN_MAX: f64 = 3.0;

/// An axis.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub(super) title: String,
    is_logarithmic: bool,
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From 0 to at least `high`.
    pub(super) fn linear(title: &str, high: f64, label: impl Fn(f64) -> String) -> Self {
        let high = if high > 0.0 { high } else { 1.0 };
        let step = round_up(high / LINEAR_STEPS_MAX);
        Self::stepped(title, step, high, label)
    }

    /// From 0 to at least `high` seconds.
    pub(super) fn seconds(title: &str, high: f64) -> Self {
        let step = SECONDS.into_iter().find(|step| high / step <= LINEAR_STEPS_MAX + 1.0);
        let step = step.unwrap_or_else(|| round_up(high / LINEAR_STEPS_MAX));
        let (unit, unit_seconds) = match step {
            step if step >= 3_600.0 => ("h", 3_600.0),
            step if step >= 60.0 => ("min", 60.0),
            _ => ("s", 1.0),
        };
        let mut axis = Self::stepped(title, step, high, |second| format!("{} {unit}", second / unit_seconds));
        axis.high = high.max(1.0); // A run ends where it ends.
        axis.ticks.retain(|(second, _)| *second <= axis.high);
        axis
    }

    /// From a round value below `low` to one above `high`, both above 0.
    pub(super) fn logarithmic(title: &str, low: f64, high: f64, label: impl Fn(f64) -> String) -> Self {
        assert!(0.0 < low && low <= high, "{title}: {low} to {high} on a logarithmic axis");
        let (low, high) = (round_down(low), round_up(high));
        let high = if high > low { high } else { round_up(low * 1.5) };
        let rounds: Vec<f64> = std::iter::successors(Some(low), |value| Some(round_up(value * 1.5)))
            .take_while(|value| *value <= high * 1.001)
            .collect();
        let is_decade = |value: &f64| (value.log10() - value.log10().round()).abs() < 1e-9;
        let mut ticks = rounds.clone();
        if ticks.len() > LOGARITHMIC_TICKS_MAX {
            ticks.retain(is_decade);
        }
        let every = ticks.len().div_ceil(LOGARITHMIC_TICKS_MAX).max(1);
        let ticks = ticks.into_iter().step_by(every).map(|value| (value, label(value))).collect();
        Self { title: title.to_owned(), is_logarithmic: true, low, high, ticks }
    }

    /// Percentiles on an axis on which each step is a tenth of what was left; `high` in such steps. A percentile of
    /// `p` per cent is at [`nines`].
    pub(super) fn nines(title: &str, high: f64) -> Self {
        let high = high.clamp(1.0, 6.5);
        let ticks = NINES.iter().filter(|(step, _)| *step <= high).map(|(step, text)| (*step, (*text).to_owned()));
        let mut ticks: Vec<(f64, String)> = ticks.collect();
        if high < WITH_MEDIAN_MAX {
            ticks.insert(1, (nines(50.0), "50".to_owned()));
        }
        Self { title: title.to_owned(), is_logarithmic: false, low: 0.0, high, ticks }
    }

    /// Ratios from 1 / `spread` to `spread`, which is above 1: twice is as far from 1 as half.
    pub(super) fn ratios(title: &str, spread: f64) -> Self {
        const FACTORS: [f64; 9] = [1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0];
        assert!(spread > FACTORS[0], "{title}: a spread of {spread}");
        let factors = FACTORS.into_iter().filter(|factor| *factor <= spread);
        // The widest that fit, two on each side.
        let shown: Vec<f64> = factors.rev().take(2).collect();
        let mut values: Vec<f64> = shown.iter().flat_map(|factor| [*factor, factor.recip()]).chain([1.0]).collect();
        values.sort_by(f64::total_cmp);
        let ticks = values.into_iter().map(|value| (value, ((value * 100.0).round() / 100.0).to_string()));
        Self {
            title: title.to_owned(),
            is_logarithmic: true,
            low: spread.recip(),
            high: spread,
            ticks: ticks.collect(),
        }
    }

    /// One place for each name, the first at the top: the name with index `i` is at `-i`.
    pub(super) fn names(title: &str, names: &[String]) -> Self {
        let ticks = names.iter().enumerate().map(|(index, name)| (-(index as f64), name.clone())).collect();
        Self { title: title.to_owned(), is_logarithmic: false, low: 0.5 - names.len() as f64, high: 0.5, ticks }
    }

    /// The end of the axis.
    pub(super) fn high(&self) -> f64 {
        self.high
    }

    /// The beginning of the axis.
    pub(super) fn low(&self) -> f64 {
        self.low
    }

    /// What stands at the tick at `value`.
    pub(super) fn label(&self, value: f64) -> String {
        self.ticks.iter().find(|(tick, _)| *tick == value).map_or(String::new(), |(_, label)| label.clone())
    }

    /// Letters of the longest label.
    pub(super) fn label_letters_max(&self) -> usize {
        self.ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(0)
    }

    fn stepped(title: &str, step: f64, high: f64, label: impl Fn(f64) -> String) -> Self {
        let count = (high / step - 1e-9).ceil().max(1.0);
        let ticks = (0..=count as u32).map(|index| f64::from(index) * step).map(|value| (value, label(value)));
        Self { title: title.to_owned(), is_logarithmic: false, low: 0.0, high: count * step, ticks: ticks.collect() }
    }

    /// Where `value` is, from 0 to 1; what is outside is at the end.
    fn position(&self, value: f64) -> f64 {
        let on_scale = |value: f64| if self.is_logarithmic { value.log10() } else { value };
        let (low, high) = (on_scale(self.low), on_scale(self.high));
        ((on_scale(value) - low) / (high - low)).clamp(0.0, 1.0)
    }
}

/// Where a percentile is on an axis of nines: 90 at 1, 99 at 2, 99.9 at 3.
pub(super) fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).log10()
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (self.position(*value) * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.iter().map(|(value, _)| *value).collect()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.label(*value)
    }
}

/// The next of 1, 2, 5, 10, 20, … at or above `value`, which is above 0.
fn round_up(value: f64) -> f64 {
    let decade = power_of_ten(value);
    let round = [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| decade * step >= value * (1.0 - 1e-9));
    decade * round.unwrap_or(10.0)
}

/// The last of the same at or below `value`.
fn round_down(value: f64) -> f64 {
    let decade = power_of_ten(value);
    let round = [5.0, 2.0, 1.0].into_iter().find(|step| decade * step <= value * (1.0 + 1e-9));
    decade * round.unwrap_or(1.0)
}

fn power_of_ten(value: f64) -> f64 {
    10f64.powi((value.log10() + 1e-9).floor() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| &**label).collect()
    }

    #[test]
    fn a_linear_axis_begins_at_0_and_ends_at_a_round_value_above_what_it_shows() {
        let axis = Axis::linear("", 17_300.0, |value| value.to_string());
        assert_eq!(labels(&axis), ["0", "5000", "10000", "15000", "20000"]);
        assert_eq!(axis.high(), 20_000.0);
        assert_eq!(labels(&Axis::linear("", 0.0, |value| value.to_string())).first(), Some(&"0"), "nothing to show");
    }

    #[test]
    fn a_logarithmic_axis_has_ticks_within_a_decade_and_not_too_many_over_several() {
        let show = |low, high| Axis::logarithmic("", low, high, |value| value.to_string());
        assert_eq!(labels(&show(130.0, 800.0)), ["100", "200", "500", "1000"]);
        assert_eq!(labels(&show(130.0, 8e5)), ["100", "1000", "10000", "100000", "1000000"]);
        assert_eq!(labels(&show(1.0, 9e9)).len(), 6);
        assert_eq!(labels(&show(100.0, 100.0)), ["100", "200"], "one value only");
    }

    #[test]
    fn an_axis_of_seconds_counts_as_people_do_and_ends_with_the_run() {
        assert_eq!(labels(&Axis::seconds("", 62.0)), ["0 s", "15 s", "30 s", "45 s", "60 s"]);
        assert_eq!(labels(&Axis::seconds("", 600.0)), ["0 min", "2 min", "4 min", "6 min", "8 min", "10 min"]);
        assert_eq!(Axis::seconds("", 62.0).high(), 62.0);
        assert_eq!(labels(&Axis::seconds("", 0.0)), ["0 s", "1 s"]);
    }

    #[test]
    fn nines_are_evenly_spaced() {
        for (percentile, at) in [(0.0, 0.0), (90.0, 1.0), (99.0, 2.0), (99.99, 4.0)] {
            assert!((nines(percentile) - at).abs() < 1e-9, "{percentile}");
        }
        assert_eq!(labels(&Axis::nines("", 3.4)), ["0", "90", "99", "99.9"]);
        assert_eq!(labels(&Axis::nines("", 1.2)), ["0", "50", "90"], "where there is room");
    }

    #[test]
    fn values_keep_their_order_on_every_axis_and_stay_on_it() {
        let axes = [Axis::linear("", 900.0, |_| String::new()), Axis::logarithmic("", 1.0, 900.0, |_| String::new())];
        for axis in axes {
            let at: Vec<i32> = [-5.0, 1.0, 10.0, 100.0, 900.0, 1e9].map(|value| axis.map(&value, (0, 1000))).to_vec();
            assert!(at.is_sorted() && at[1] < at[2] && at[2] < at[3], "{at:?}");
            assert!((0..=1000).contains(&at[0]) && (0..=1000).contains(&at[5]), "{at:?}");
        }
    }
}
