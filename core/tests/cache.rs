//! `milena-cache` as a process: what it refuses, how it says so, and how it ends.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Output, Stdio},
};

/// The program in a directory of its own, with these variables and no others.
fn cache(dir: &tempfile::TempDir, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_milena-cache"));
    command.env_clear().envs(variables.iter().copied()).current_dir(dir.path()).stdin(Stdio::null());
    command
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Starts the program and reads its log up to the line that says where it serves.
fn started(mut command: Command) -> (Child, impl Iterator<Item = String>) {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let serving = lines.by_ref().find(|line| line.contains("serving on "));
    assert!(serving.is_some(), "it ended before it served");
    (child, lines)
}

fn end(child: &mut Child, signal: i32) -> Option<i32> {
    // SAFETY: a system call without memory; the child is ours and not waited for yet.
    unsafe { libc::kill(child.id().cast_signed(), signal) };
    child.wait().unwrap().code()
}

#[test]
fn a_setting_that_makes_no_sense_is_one_line_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    for (variable, value, line) in [
        ("CORES", "0", "milena-cache: --cores 0: allowed is all, or a count from 1 to 256\n"),
        (
            "WRITE_MODE",
            "back",
            "milena-cache: --write-mode back: writes wait on the disk for the store; set DISK, or --write-mode through\n",
        ),
        ("DISK", "x", "milena-cache: --disk x: allowed is bytes, or a number with KiB, MiB, GiB or TiB\n"),
        ("LOG_FORMAT", "xml", "milena-cache: --log-format xml: not a format; allowed are text and json\n"),
    ] {
        let output = cache(&dir, &[(variable, value)]).output().unwrap();
        assert_eq!((output.status.code(), &*errors(&output)), (Some(2), line));
        assert!(output.stdout.is_empty());
    }
    assert_eq!(dir.path().read_dir().unwrap().count(), 0, "nothing was made before the settings were read");
}

#[test]
fn what_the_machine_refuses_is_one_line_and_exit_code_1() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    let output = cache(&dir, &[("DATA_DIR", "file/inside"), ("METRICS_PORT", "0"), ("LISTEN_ADDR", "127.0.0.1:0")]);
    let output = { output }.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = errors(&output);
    assert!(said.starts_with("milena-cache: cannot make file/inside/node-0: Not a directory"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn three_old_deployments_start_in_one_directory_and_stop_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = Vec::new();
    for port in free_ports() {
        let variables = [
            ("LISTEN_ADDR", &*format!("127.0.0.1:{port}")),
            ("ROUTER_ADDR", "http://127.0.0.1:9"),
            ("LRU_SIZE", "100"),
            ("TTL_SECONDS", "360"),
            ("METRICS_PORT", "0"),
            ("AWS_REGION", "us-east-1"),
            ("S3_BUCKET", "milena-cache"),
            ("LOG_LEVEL", "INFO"),
        ];
        nodes.push(started(cache(&dir, &variables)));
    }
    for (child, lines) in &mut nodes {
        assert_eq!(end(child, libc::SIGTERM), Some(0));
        let last = lines.last().unwrap();
        assert!(last.contains("info  node: stopped after ") && last.contains("(SIGTERM); 0 gets"), "{last}");
    }
}

/// Three ports that nobody listens on now.
fn free_ports() -> [u16; 3] {
    let held = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|held| held.local_addr().unwrap().port())
}

#[test]
fn a_log_in_json_is_json_from_the_first_line_to_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let variables = [("LOG_FORMAT", "json"), ("STORE", "none"), ("METRICS_PORT", "0"), ("LISTEN_ADDR", "127.0.0.1:0")];
    let (mut child, lines) = started(cache(&dir, &variables));
    assert_eq!(end(&mut child, libc::SIGINT), Some(0));
    for line in lines {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["message"].is_string() && line["level"].is_string(), "{line}");
    }
}
