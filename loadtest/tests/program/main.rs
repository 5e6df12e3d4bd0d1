//! The load test program as a shell sees it: its exit codes, what it writes, and which servers it sees through.
//!
//! ```text
//!   fake     a server in this process that speaks as ours do, and lies in one way if it is told to
//!   ────────
//!   runs     exit codes, results, what is sent
//!   lies     each kind of wrong answer is noticed, and right ones are not
//! ```

mod fake;
mod lies;
mod runs;

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
    let output = Command::new(env!("CARGO_BIN_EXE_milena-loadtest"))
        .args(words.split_whitespace())
        .arg("-o")
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .expect("the program");
    Ended { output, file: path.is_file().then(|| ResultFile::read(&path).expect("a result of ours")) }
}
