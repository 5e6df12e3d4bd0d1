//! What a report is about: the runs of its files, with names short enough for a legend.
//!
//! ```text
//!   file of run, replay, verify   ─▶ a subject: one run, shown over time and by percentile
//!   file of sweep, search         ─▶ a curve:   its runs by rate, shown against load
//!   file of ab                    ─▶ turns:     its runs by percentile, and their ratios
//! ```
//! With several files each is named by its number and by what tells its settings from those of the others.

use super::quantity::Grouped;
use crate::result::{Kind, Latency, ResultFile, Run};

/// Letters of a name, at most: it stands in a legend.
const NAME_LETTERS_MAX: usize = 28;

/// Settings in a name, at most.
const DIFFERENCES_MAX: usize = 2;

/// A file and what it is called.
#[derive(Clone, Debug)]
pub(super) struct Subject<'a> {
    /// Empty if there is only one.
    pub(super) name: String,
    pub(super) file: &'a ResultFile,
    /// The runs that are shown, at most [`super::RUNS_MAX`].
    pub(super) runs: Vec<&'a Run>,
}

impl<'a> Subject<'a> {
    /// One for each file.
    pub(super) fn all(files: &'a [ResultFile]) -> Vec<Self> {
        let settings: Vec<Vec<String>> = files.iter().map(distinctions).collect();
        let differs = |column: &usize| settings.iter().any(|row| row[*column] != settings[0][*column]);
        let columns: Vec<usize> = match settings.first() {
            Some(first) => (0..first.len()).filter(differs).take(DIFFERENCES_MAX).collect(),
            None => Vec::new(),
        };
        let name = |index: usize| {
            if files.len() == 1 {
                return String::new();
            }
            let words: Vec<&str> = columns.iter().map(|column| &*settings[index][*column]).collect();
            let name = clip(format!("#{} {}", index + 1, words.join(" ")).trim(), NAME_LETTERS_MAX);
            // Wherever its line or its column is: who looks at a picture has forgotten the top of the page.
            let is_invalid = files[index].runs.iter().any(|run| !run.validity.is_valid);
            if is_invalid && files[index].runs.len() == 1 { format!("{name} (invalid)") } else { name }
        };
        let subject = |(index, file): (usize, &'a ResultFile)| Self {
            name: name(index),
            file,
            runs: file.runs.iter().take(super::RUNS_MAX).collect(),
        };
        files.iter().enumerate().map(subject).collect()
    }

    /// The run of a file that has one by its nature.
    pub(super) fn single(&self) -> Option<&'a Run> {
        match self.file.kind {
            Kind::Run | Kind::Replay | Kind::Verify => self.runs.first().copied(),
            Kind::Sweep | Kind::Search | Kind::Ab => None,
        }
    }

    /// The runs of a file that differ in their rate, slowest first.
    pub(super) fn by_load(&self) -> Vec<&'a Run> {
        if !matches!(self.file.kind, Kind::Sweep | Kind::Search) {
            return Vec::new();
        }
        let mut runs = self.runs.clone();
        runs.sort_by(|a, b| a.rates.achieved_per_s.total_cmp(&b.rates.achieved_per_s));
        runs
    }

    /// The name of a measure of this subject: the measure alone if there is only one subject.
    pub(super) fn name_of(&self, measure: &str) -> String {
        if self.name.is_empty() { measure.to_owned() } else { format!("{}: {measure}", self.name) }
    }

    /// The name of one of its runs.
    pub(super) fn run_name(&self, run: &Run, index: usize) -> String {
        let run = match &*run.label {
            "" if self.runs.len() == 1 => String::new(),
            "" => format!("run {}", index + 1),
            label if self.file.kind == Kind::Ab => format!("{} turn {}", clip(label, NAME_LETTERS_MAX), index + 1),
            label => clip(label, NAME_LETTERS_MAX),
        };
        [&*self.name, &*run].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
    }
}

/// All operations of a run together.
pub(super) fn all_operations(run: &Run) -> Option<&Latency> {
    run.latency.iter().find(|latency| latency.op == Latency::ALL)
}

/// The beginning of a text that may be too long, with a word about the rest.
pub(super) fn clip(text: &str, letters_max: usize) -> String {
    match text.char_indices().nth(letters_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What may tell a file from another, what matters most first.
fn distinctions(file: &ResultFile) -> Vec<String> {
    let kind = format!("{:?}", file.kind).to_lowercase();
    let Some(run) = file.runs.first() else { return vec![String::new(); 12] };
    let settings = &run.settings;
    let rate = if settings.rate_per_s > 0.0 {
        format!("{}/s", Grouped(settings.rate_per_s))
    } else {
        "closed loop".to_owned()
    };
    vec![
        settings.protocol.clone(),
        kind,
        settings.workload.clone(),
        rate,
        format!("{}×{}", settings.connections, settings.streams),
        format!("batch {}", settings.batch),
        settings.value_size.clone(),
        settings.key_dist.clone(),
        format!("{} keys", settings.keys),
        format!("{} threads", settings.threads),
        settings.target.clone(),
        file.tool.version.clone(),
    ]
}
