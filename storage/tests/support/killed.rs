//! A test that starts itself as another process, hears what that one says, and kills it. For tests; include it with
//! `#[path]`.
//!
//! ```text
//!   the test ──starts──▶ the same test, told by its environment ── lines ──▶ heard, counted ── enough ──▶ SIGKILL
//! ```

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const DIR: &str = "MILENA_TEST_LOG_DIR";
const ROUND: &str = "MILENA_TEST_LOG_ROUND";

/// In the process that is to be killed: its directory, and which of them it is.
pub(crate) fn child() -> Option<(PathBuf, u64)> {
    let dir = env::var_os(DIR)?;
    Some((dir.into(), env::var(ROUND).unwrap().parse().unwrap()))
}

/// How many processes are killed: 12, or what MILENA_KILLS says.
pub(crate) fn rounds() -> u64 {
    env::var("MILENA_KILLS").map_or(12, |text| text.parse().expect("MILENA_KILLS is a number"))
}

/// Starts `test` as another process and kills it after so many lines that `hear` takes, which gets the words of each; the
/// number of lines differs from round to round.
pub(crate) fn hear_and_kill(test: &str, dir: &Path, round: u64, mut hear: impl FnMut(&[&str]) -> bool) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(DIR, dir)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines_max = 50 + round * 131 % 400;
    let mut count = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if !hear(&line.split(' ').collect::<Vec<_>>()) {
            continue;
        }
        count += 1;
        if count == lines_max {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(count >= lines_max, "the child ended by itself after {count} lines");
}
