//! The pages of `docs/benchmarks`, made of what was measured: an index with tables, and pictures.
//!
//! ```text
//!   raw/NAME.json  one for each comparison ──┐ record.rs
//!   raw/NAME/…     what its tools wrote      │
//!                                            ├─▶ README.md     index.rs      goals first, then each comparison
//!   goals.rs       what should come out ─────┘   pictures/     pictures.rs   SVG, by day and by night
//! ```
//! `benches/compare` measures and writes `raw`; here nothing is measured and nothing forgotten: a goal without a figure, a
//! comparison that failed or was never made, and a goal that was missed are each said.

pub mod goals;
mod index;
mod pictures;
pub mod record;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use self::{goals::COMPARISONS, record::Record};

/// Writes `README.md` and `pictures` of the folder anew from its `raw`. What it wrote is in the answer, relative to `folder`.
///
/// # Errors
/// [`PageError`]: a record cannot be read, or a page not written. Comparisons without a record are no error.
pub fn write(folder: &Path) -> Result<Vec<PathBuf>, PageError> {
    let raw = folder.join("raw");
    let records: Vec<Option<Record>> =
        COMPARISONS.iter().map(|comparison| Record::read(&raw, comparison.name)).collect::<Result<_, _>>()?;
    let pictures = pictures::all(&raw, &records)?;

    let drawn = folder.join("pictures");
    match fs::remove_dir_all(&drawn) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(PageError::file(&drawn, error)),
        _ => {}
    }
    fs::create_dir_all(&drawn).map_err(|error| PageError::file(&drawn, error))?;
    let mut written = Vec::new();
    let mut write = |name: PathBuf, text: &str| {
        let path = folder.join(&name);
        fs::write(&path, text).map_err(|error| PageError::file(&path, error))?;
        written.push(name);
        Ok(())
    };
    for picture in &pictures {
        write(Path::new("pictures").join(&picture.file), &picture.svg)?;
    }
    write(PathBuf::from("README.md"), &index::markdown(&records, &pictures))?;
    Ok(written)
}

/// Why there are no pages.
#[derive(Debug)]
pub enum PageError {
    /// A file cannot be read or written.
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is not what it should be.
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        text: String,
    },
}

impl PageError {
    fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }

    fn content(path: &Path, text: &impl ToString) -> Self {
        Self::Content { path: path.to_owned(), text: text.to_string() }
    }
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, source } => write!(f, "{}: {source}", path.display()),
            Self::Content { path, text } => write!(f, "{}: {text}", path.display()),
        }
    }
}

impl std::error::Error for PageError {}
