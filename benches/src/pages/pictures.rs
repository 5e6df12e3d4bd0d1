//! The pictures of each comparison: its figures that have goals, and what its load tests say.

use std::path::Path;

use milena_loadtest::{
    report::picture::{self, Picture, Spread},
    result::ResultFile,
};

use super::{
    PageError,
    goals::{COMPARISONS, GOALS, Goal},
    record::{Found, Record},
};

/// The unit of a goal that is a ratio already.
const RATIO: &str = "times";

/// A picture of the index.
pub(super) struct Drawn {
    /// The comparison it belongs to.
    pub(super) comparison: &'static str,
    /// In `pictures`.
    pub(super) file: String,
    pub(super) title: String,
    pub(super) caption: String,
    pub(super) svg: String,
}

/// All of them, in the order of the index.
pub(super) fn all(raw: &Path, records: &[Option<Record>]) -> Result<Vec<Drawn>, PageError> {
    let mut drawn = Vec::new();
    for (comparison, record) in COMPARISONS.iter().zip(records) {
        let Some(record) = record else { continue };
        drawn.extend(goals(comparison.name, record).map(|picture| of(comparison.name, "", picture)));
        for (index, file) in record.results.iter().enumerate() {
            let path = raw.join(file);
            let result = ResultFile::read(&path).map_err(|error| PageError::content(&path, &error))?;
            let number = if index == 0 { String::new() } else { format!("-{}", index + 1) };
            drawn.extend(picture::pictures(&result).into_iter().map(|picture| of(comparison.name, &number, picture)));
        }
    }
    Ok(drawn)
}

/// Every figure that has a goal: as it is, with its goal beside it, or, where not all are ratios, as a share of its goal.
fn goals(comparison: &str, record: &Record) -> Option<Picture> {
    let own: Vec<(&Goal, Found)> = GOALS
        .iter()
        .filter(|goal| goal.figure.0 == comparison)
        .filter_map(|goal| Some((goal, record.figure(goal.figure.1)?.found?)))
        .collect();
    if own.iter().all(|(goal, _)| goal.unit == RATIO) {
        let row = |(goal, found): &(&Goal, Found)| {
            spread(goal, (found.least, found.median, found.most), Some(goal.bound.value()))
        };
        let rows: Vec<Spread> = own.iter().map(row).collect();
        return picture::ratios("goals", "Ratios and their goals", "ratio", &rows);
    }
    let rows: Vec<Spread> =
        own.iter().filter_map(|(goal, found)| Some(spread(goal, goal.bound.shares(*found)?, None))).collect();
    let mut picture =
        picture::ratios("goals", "Figures as shares of their goals", "share of the goal: 1 or less is good", &rows)?;
    picture.caption = "What should be large is turned over: left of 1 every goal is reached.".to_owned();
    Some(picture)
}

fn spread(goal: &Goal, (least, median, most): (f64, f64, f64), bound: Option<f64>) -> Spread {
    Spread { name: goal.label.to_owned(), least, median, most, goal: bound }
}

fn of(comparison: &'static str, number: &str, picture: Picture) -> Drawn {
    let Picture { name, title, caption, svg } = picture;
    Drawn { comparison, file: format!("{comparison}-{name}{number}.svg"), title, caption, svg }
}
