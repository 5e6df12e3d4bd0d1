//! Two targets in turns: B over A with the interval that holds the true ratio.
//!
//! ```text
//!   throughput   ├──◆──┤ ┊          ┊ = 1: no difference
//!   p99                  ┊  ├───◆──────┤
//! ```
//! An interval that lies on one side of 1 is a difference; all others are "nothing was shown", not "equal".

use super::{
    axis::Axis,
    chart::{Chart, Line, Mark, Point},
    figure::{Figure, Omission, Table},
    subject::{Subject, clip},
};
use crate::result::{Ab, Ratio};

/// The axis goes at least this far to both sides of 1, so that the noise of equal things looks small.
const SPREAD_MIN: f64 = 1.25;

/// How far the axis goes on behind the last end of an interval.
const MARGIN: f64 = 1.05;

/// Letters of a target in the caption, at most.
const TARGET_LETTERS_MAX: usize = 100;

/// Ends of the intervals that are still drawn.
const SPREAD_MAX: f64 = 100.0;

/// The picture of a single file of `ab`.
pub(super) fn figure(subjects: &[Subject<'_>]) -> Option<Result<Figure, Omission>> {
    let [subject] = subjects else { return None };
    let ab = subject.file.ab.as_ref()?;
    if ab.ratios.is_empty() {
        return Some(Err(Omission::new("B over A", "No pair of turns was valid.")));
    }
    let names: Vec<String> = ab.ratios.iter().map(|ratio| name(&ratio.figure)).collect();
    let ends = ab.ratios.iter().flat_map(|ratio| [ratio.high, ratio.low.recip()]).filter(|end| end.is_finite());
    let spread = (ends.fold(SPREAD_MIN, f64::max) * MARGIN).min(SPREAD_MAX);
    let intervals = ab.ratios.iter().enumerate().map(|(index, ratio)| interval(index, ratio));
    let y = Axis::names("", &names);
    let one = Line { name: "1: no difference".to_owned(), style: 1, points: upright(1.0, &y) };
    let chart = Chart {
        x: Axis::ratios("B over A", spread),
        y,
        lines: intervals.chain([one]).collect(),
        shade: None,
        limits: Vec::new(),
    };
    Some(Ok(Figure {
        id: "ratios",
        title: "B over A".to_owned(),
        chart,
        caption: caption(ab),
        table: table(&names, ab),
    }))
}

fn interval(index: usize, ratio: &Ratio) -> Line {
    let y = Some(-(index as f64));
    let at = |x: f64, mark| Point { x, y, mark };
    let points = vec![at(ratio.low, Mark::No), at(ratio.ratio, Mark::Filled), at(ratio.high, Mark::No)];
    Line { name: "ratio, and the interval of 95 %".to_owned(), style: 0, points }
}

fn upright(x: f64, y: &Axis) -> Vec<Point> {
    [y.low(), y.high()].map(|y| Point { x, y: Some(y), mark: Mark::No }).to_vec()
}

fn caption(ab: &Ab) -> String {
    let targets = match ab.is_noise_floor {
        true => "A and B are the same target: this is how far apart equal things are on this machine.".to_owned(),
        false => {
            format!("A is {}, B is {}.", clip(&ab.target_a, TARGET_LETTERS_MAX), clip(&ab.target_b, TARGET_LETTERS_MAX))
        }
    };
    format!(
        "{targets} An interval that leaves out 1 is a difference. Pairs of turns that count: {}; discarded because of an \
         invalid run: {}.",
        ab.pairs, ab.pairs_discarded
    )
}

fn table(names: &[String], ab: &Ab) -> Table {
    let row = |(name, ratio): (&String, &Ratio)| {
        vec![
            name.clone(),
            format!("{:.3}", ratio.ratio),
            format!("{:.3} to {:.3}", ratio.low, ratio.high),
            if ratio.is_difference { "differs" } else { "nothing shown" }.to_owned(),
        ]
    };
    Table {
        caption: "B over A".to_owned(),
        columns: ["", "ratio", "95 %", "verdict"].map(str::to_owned).to_vec(),
        rows: names.iter().zip(&ab.ratios).map(row).collect(),
    }
}

/// A figure of the file, shorter.
fn name(figure: &str) -> String {
    match figure {
        "p999" => "p99.9",
        "server_cpu_per_request" => "CPU per call",
        "server_cpu_per_key" => "CPU per key",
        other => other,
    }
    .to_owned()
}
