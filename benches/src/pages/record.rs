//! What one comparison left behind: `raw/NAME.json`, as `benches/compare` writes it.
//!
//! ```text
//!   Record ── state, reason                 measured, skipped (something is missing) or failed; and why
//!     ├─ date, commit, command, machine     what repeats it, and where it was
//!     ├─ cores, versions, remarks           who ran where, which peers, what a reader should know
//!     ├─ figures[]                          name, unit, least ≤ median ≤ most of so many samples; or why it is withheld
//!     ├─ results[]                          files of milena-loadtest, for pictures
//!     └─ files[]                            all that is in raw/NAME/
//! ```
//! JSON. Paths are relative to `raw`.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::Deserialize;

use super::PageError;

/// The version of this format.
pub const SCHEMA: u32 = 1;

/// One comparison.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What became of it.
    pub state: State,
    /// Why it was skipped or failed; empty if it was measured.
    pub reason: String,
    /// When it began, UTC, as RFC 3339 has it.
    pub date: String,
    /// The tree that was built, by its commit, and whether it was changed.
    pub commit: String,
    /// What repeats it.
    pub command: String,
    /// A try of a minute: fewer rounds, fewer samples.
    pub is_quick: bool,
    /// How long it took.
    pub seconds: f64,
    /// Where it ran.
    pub machine: Machine,
    /// Which core ran what, in a sentence.
    pub cores: String,
    /// Peers and tools by name.
    pub versions: BTreeMap<String, String>,
    /// Sentences.
    pub remarks: Vec<String>,
    /// What came out.
    pub figures: Vec<Figure>,
    /// Files of `milena-loadtest`.
    pub results: Vec<String>,
    /// All files that belong to it.
    pub files: Vec<String>,
}

/// What became of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It was made.
    Measured,
    /// Something it needs is missing.
    Skipped,
    /// It began and did not end.
    Failed,
}

/// The machine of a comparison.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// As `/proc/cpuinfo` calls it.
    pub processor: String,
    /// How many of them.
    pub processors: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// `uname -r`.
    pub kernel: String,
    /// Whether a hypervisor is beneath it.
    pub is_virtual: bool,
    /// The load average of the last minute before it began.
    pub load_average: f64,
}

/// One figure.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// For programs: parts with slashes between them.
    pub name: String,
    /// For people.
    pub what: String,
    /// `times`, `µs`, …; what stands behind the number.
    pub unit: String,
    /// What was found; `None` if it is withheld.
    pub found: Option<Found>,
    /// Why it is withheld: too few samples, no valid run. Empty if it is not.
    pub withheld: String,
}

/// What was found of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// The median of its samples.
    pub median: f64,
    /// The least of them.
    pub least: f64,
    /// The greatest.
    pub most: f64,
    /// How many; 1 = no spread is known.
    pub samples: u32,
}

impl Record {
    /// The record of the comparison `name`; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read, is of another schema, or names a file that is not there.
    pub fn read(raw: &Path, name: &str) -> Result<Option<Self>, PageError> {
        let path = raw.join(format!("{name}.json"));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(PageError::file(&path, error)),
        };
        let record: Self = serde_json::from_str(&text).map_err(|error| PageError::content(&path, &error))?;
        if record.schema != SCHEMA {
            return Err(PageError::content(&path, &format!("schema {}; {SCHEMA} is known", record.schema)));
        }
        let named = record.files.iter().chain(&record.results);
        if let Some(missing) = named.into_iter().find(|file| !raw.join(file).is_file()) {
            return Err(PageError::content(&path, &format!("names {missing}, which is not there")));
        }
        Ok(Some(record))
    }

    /// The figure with this name.
    #[must_use]
    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }
}
