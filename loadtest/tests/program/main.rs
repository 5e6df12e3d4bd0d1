//! The load test program as a shell sees it: its exit codes, what it writes, and which servers it sees through.
//!
//! ```text
//!   fake     a server in this process that speaks as ours do, and lies in one way if it is told to
//!   ────────
//!   runs     exit codes, results, what is sent
//!   lies     each kind of wrong answer is noticed, and right ones are not
//!   several  sweep, search, ab, compare
//!   traces   replay
//!   others   Redis and memcached
//! ```

mod fake;
mod lies;
mod others;
mod runs;
mod several;
mod traces;

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use milena_loadtest::result::ResultFile;

/// What a run of the program has left.
struct Ended {
    output: Output,
    file: Option<ResultFile>,
}

impl Ended {
    fn code(&self) -> i32 {
        self.output.status.code().expect("no signal ended it")
    }

    fn errors(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    fn file(&self) -> &ResultFile {
        self.file.as_ref().unwrap_or_else(|| panic!("no result:\n{}{}", self.shown(), self.errors()))
    }
}

/// Runs the program with these words, which are split at spaces, and `-o`.
fn loadtest(words: &str) -> Ended {
    let dir = tempfile::tempdir().expect("a directory of our own");
    let path: PathBuf = dir.path().join("result.json");
    let words = words.split_whitespace().chain(["-o", path.to_str().expect("a name that is text")]);
    let ended = run(words);
    Ended { file: path.is_file().then(|| ResultFile::read(&path).expect("a result of ours")), ..ended }
}

/// Runs the program with just these words.
fn run<'a>(words: impl IntoIterator<Item = &'a str>) -> Ended {
    let program = env!("CARGO_BIN_EXE_milena-loadtest");
    let output = Command::new(program).args(words).stdin(Stdio::null()).output().expect("the program");
    Ended { output, file: None }
}
