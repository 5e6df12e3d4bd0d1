//! `milena` as a process: what it prints, how it exits, and that `milena dev` leaves nothing behind.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

const MILENA: &str = env!("CARGO_BIN_EXE_milena");

/// The tool in a folder of its own, beside programs that do what these scripts say.
fn beside(programs: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tool = dir.path().join("milena");
    if fs::hard_link(MILENA, &tool).is_err() {
        fs::copy(MILENA, &tool).unwrap();
    }
    for (name, script) in programs {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

fn dev(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(dir.join("milena"));
    command.arg("dev").args(arguments).current_dir(dir).stdin(Stdio::null());
    for variable in ["STORE", "S3_BUCKET", "CORES", "MILENA_ROUTER"] {
        command.env_remove(variable);
    }
    command
}

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn dev_names_a_program_that_is_missing() {
    let dir = beside(&[]);
    let output = dev(dir.path(), &["--port", "0"]).output().unwrap();
    let (_, errors) = text(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.starts_with("milena: cannot find ") && errors.contains("milena-router; hint: "), "{errors}");
}

#[test]
fn dev_names_a_port_in_use_before_it_starts_anything() {
    let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = held.local_addr().unwrap().port();
    let dir = beside(&[("milena-router", "touch started"), ("milena-cache", "touch started")]);
    let output = dev(dir.path(), &["--port", &port.to_string(), "--metrics-port", "0"]).output().unwrap();
    let (_, errors) = text(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.starts_with(&format!("milena: 127.0.0.1:{port} is in use; hint: ")), "{errors}");
    assert!(!dir.path().join("started").exists());
}

#[test]
fn dev_shows_the_last_words_of_a_program_that_ends_and_exits_with_1() {
    let dir = beside(&[("milena-router", "echo out; echo cannot go on >&2; exit 7"), ("milena-cache", "exit 0")]);
    let output = dev(dir.path(), &["--port", "0"]).output().unwrap();
    let (printed, errors) = text(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(printed.is_empty(), "{printed}");
    assert!(errors.contains("router | cannot go on\n"), "{errors}");
    assert!(errors.contains("milena: router ended with exit status: 7; "), "{errors}");
}

#[test]
fn dev_stops_its_programs_on_a_signal_and_exits_with_0() {
    let dir = beside(&[
        ("milena-router", "trap 'echo stopped >&2; exit 0' TERM; echo started >&2; while :; do sleep 0.05; done"),
        ("milena-cache", "exit 0"),
    ]);
    let mut child = dev(dir.path(), &["--port", "0"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    assert_eq!(line, "router | started\n");
    // SAFETY: a system call without memory.
    unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) };
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "router | stopped\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_programs_of_a_dev_cluster_that_was_killed_end_too() {
    let dir = beside(&[("milena-router", "echo $$ >&2; exec sleep 600"), ("milena-cache", "")]);
    let mut child = dev(dir.path(), &["--port", "0"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let pid: i32 = line.trim_start_matches("router | ").trim().parse().unwrap();
    // SAFETY: a system call without memory.
    unsafe { libc::kill(child.id().cast_signed(), libc::SIGKILL) };
    child.wait().unwrap();
    while fs::read_link(format!("/proc/{pid}/exe")).is_ok() {
        std::thread::yield_now();
    }
}

#[test]
fn a_router_that_is_not_there_is_unavailable_and_exit_code_1() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let mut command = Command::new(MILENA);
    command.args(["get", "default", "key", "--router", &free.to_string()]);
    let output = command.output().unwrap();
    let (printed, errors) = text(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(printed.is_empty(), "{printed}");
    assert!(errors.starts_with(&format!("milena: http://{free}: UNAVAILABLE: ")), "{errors}");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for arguments in [&["get", "default"] as &[_], &["get", "no_such", "key"], &["get", "b", "k", "--router", "x"]] {
        let output = Command::new(MILENA).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {:?}", text(&output));
    }
}
