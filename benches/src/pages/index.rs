//! `README.md` of the folder: the goals and what became of each, then every comparison with its figures, pictures and files.

use std::fmt::Write as _;

use super::{
    goals::{Bound, COMPARISONS, Comparison, GOALS, Goal, UNTOLD, Verdict},
    pictures::Drawn,
    record::{Figure, Found, Machine, Record, State},
};
use crate::operations::OPERATIONS;

const HEAD: &str = "\
# What was measured

Made by `benches/compare`; [how to run it](../../benches/README.md). Nothing here was written by hand: to change a figure,
measure again (`benches/compare NAME` measures one comparison and changes its part alone).

Read ratios, not absolute figures: both sides of a ratio were measured in turns in one run, on one machine, by one
client. A figure is the median, with the least and the most of its samples behind it; it reaches its goal by the median.
Percentiles with fewer than 100 samples beyond them are withheld. The machine is shared with others whom nobody can see from
inside, so a wide spread says more about them than about any server.
";

/// The whole page. `records` is in the order of [`COMPARISONS`].
pub(super) fn markdown(records: &[Option<Record>], pictures: &[Drawn]) -> String {
    let mut page = HEAD.to_owned();
    page += &machines(records);
    page += "\n## Goals\n\n";
    page += &verdicts(records);
    page += &goals(records);
    for (comparison, record) in COMPARISONS.iter().zip(records) {
        let own = pictures.iter().filter(|picture| picture.comparison == comparison.name);
        page += &section(comparison, record.as_ref(), own);
    }
    page
}

// ---- Where.

fn machines(records: &[Option<Record>]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for record in records.iter().flatten() {
        let line = machine(&record.machine);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    match &*lines {
        [] => "\nNothing was measured yet.\n".to_owned(),
        [one] => format!("\nThe machine: {one}.\n"),
        several => {
            format!("\nNot all on the same machine: {}. Each comparison says on which.\n", several.join("; and "))
        }
    }
}

fn machine(machine: &Machine) -> String {
    format!(
        "{}, {} processors, {:.0} GiB of memory, Linux {}{}",
        machine.processor,
        machine.processors,
        machine.memory_bytes as f64 / (1_u64 << 30) as f64,
        machine.kernel,
        if machine.is_virtual { ", a virtual machine" } else { "" }
    )
}

// ---- The goals.

fn verdicts(records: &[Option<Record>]) -> String {
    let told: Vec<Verdict> =
        GOALS.iter().filter_map(|goal| Some(goal.bound.verdict(outcome(records, goal).ok()?))).collect();
    let missed = told.iter().filter(|verdict| **verdict == Verdict::Missed).count();
    format!(
        "Of {} goals {} are reached, **{missed} are missed** and {} could not be told.\n\n",
        GOALS.len(),
        told.len() - missed,
        GOALS.len() - told.len()
    )
}

/// What was found for a goal, or why nothing was.
fn outcome(records: &[Option<Record>], goal: &Goal) -> Result<Found, String> {
    let (name, figure) = goal.figure;
    if let Some((_, why)) = UNTOLD.iter().find(|(untold, _)| *untold == name) {
        return Err((*why).to_owned());
    }
    let index = COMPARISONS.iter().position(|comparison| comparison.name == name).expect("a test looks at each goal");
    let Some(record) = &records[index] else { return Err("not measured yet".to_owned()) };
    match (record.state, record.figure(figure)) {
        (State::Skipped, _) => Err(format!("skipped: {}", record.reason)),
        (State::Failed, _) => Err(format!("failed: {}", record.reason)),
        (State::Measured, None) => Err(format!("not told by this run of `{name}`")),
        (State::Measured, Some(Figure { found: None, withheld, .. })) => Err(format!("withheld: {withheld}")),
        (State::Measured, Some(Figure { found: Some(found), .. })) => Ok(*found),
    }
}

fn goals(records: &[Option<Record>]) -> String {
    let mut table = "| what | compared with | goal | measured | |\n|---|---|---|---|---|\n".to_owned();
    for goal in &GOALS {
        let (measured, verdict) = match outcome(records, goal) {
            Ok(found) => {
                let verdict = match goal.bound.verdict(found) {
                    Verdict::Reached => "reached",
                    Verdict::ReachedByMedian => "reached by the median, not by every sample",
                    Verdict::Missed => "**missed**",
                };
                (spread(found, goal.unit), verdict.to_owned())
            }
            Err(why) => ("–".to_owned(), why),
        };
        let sign = match goal.bound {
            Bound::AtMost(_) => "≤",
            Bound::AtLeast(_) => "≥",
        };
        let bound = format!("{sign} {} {}", goal.bound.value(), goal.unit);
        row(&mut table, &[goal.what, goal.with, &bound, &measured, &verdict]);
    }
    table
}

// ---- The comparisons.

fn section<'a>(comparison: &Comparison, record: Option<&Record>, pictures: impl Iterator<Item = &'a Drawn>) -> String {
    let mut text = format!("\n## {}\n\n{}\n", comparison.title, comparison.how);
    let Some(record) = record else {
        return text + &format!("\n**Not measured yet**: `benches/compare {}`.\n", comparison.name);
    };
    text += &match record.state {
        State::Measured => String::new(),
        State::Skipped => format!("\n**Skipped**: {}\n", sentence(&record.reason)),
        State::Failed => format!("\n**Failed**: {}\n", sentence(&record.reason)),
    };
    if record.is_quick {
        text += "\nA quick try, with few rounds.\n";
    }
    if !record.figures.is_empty() {
        text += "\n| | median (least to most) | samples |\n|---|---|---|\n";
    }
    for figure in &record.figures {
        let (found, samples) = match figure.found {
            Some(found) => (spread(found, &figure.unit), found.samples.to_string()),
            None => (format!("withheld: {}", figure.withheld), String::new()),
        };
        row(&mut text, &[&what(figure), &found, &samples]);
    }
    text += &shown(pictures);
    for remark in &record.remarks {
        text += &format!("\n- {}", line(remark));
    }
    text += if record.remarks.is_empty() { "" } else { "\n" };
    text + &provenance(comparison, record)
}

/// What a figure is; of an operation, what it does.
fn what(figure: &Figure) -> String {
    match OPERATIONS.iter().find(|operation| operation.name == figure.name) {
        Some(operation) => format!("{}: {}", figure.what, operation.what),
        None => figure.what.clone(),
    }
}

/// Who, where, when, and with what.
fn provenance(comparison: &Comparison, record: &Record) -> String {
    let mut text = format!("\n{} ", sentence(&record.cores));
    let versions: Vec<String> = record.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    if !versions.is_empty() {
        text += &sentence(&versions.join(", "));
        text.push(' ');
    }
    let _ = writeln!(
        text,
        "{}, in {:.0} s, commit {}; load average before: {:.2}; {}.",
        record.date,
        record.seconds,
        record.commit,
        record.machine.load_average,
        machine(&record.machine)
    );
    let _ = write!(text, "\n    {}\n\nRaw: [{1}.json](raw/{1}.json)", record.command, comparison.name);
    for file in &record.files {
        let _ = write!(text, ", [{file}](raw/{file})");
    }
    text.push('\n');
    text
}

fn shown<'a>(pictures: impl Iterator<Item = &'a Drawn>) -> String {
    let mut text = String::new();
    for picture in pictures {
        let _ = write!(text, "\n![{}](pictures/{})\n", picture.title, picture.file);
        if !picture.caption.is_empty() {
            let _ = write!(text, "\n{}\n", picture.caption);
        }
    }
    text
}

/// The median, with the spread behind it where there is one.
fn spread(found: Found, unit: &str) -> String {
    let median = number(found.median);
    match found.samples {
        1 => format!("{median} {unit}"),
        _ => format!("{median} ({} to {}) {unit}", number(found.least), number(found.most)),
    }
}

/// With three digits that count, and no more than they are worth.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        small if small < 0.1 => format!("{value:.4}"),
        small if small < 10.0 => format!("{value:.2}"),
        middle if middle < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn row(table: &mut String, cells: &[&str]) {
    let cells: Vec<String> = cells.iter().map(|cell| line(cell).replace('|', "\\|")).collect();
    let _ = writeln!(table, "| {} |", cells.join(" | "));
}

/// Without the line breaks that would end a row of a table.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn sentence(text: &str) -> String {
    let text = line(text);
    if text.is_empty() || text.ends_with('.') { text } else { format!("{text}.") }
}
