//! What is refused at start, and how it is said: one line, which names the setting, what was found, and what is allowed.

use std::{fs, path::Path};

use crate::{
    client::Client,
    programs::{PATIENCE, Program, Server, free_address, wait_until},
};

/// Starts a program that must refuse to run; its exit code and what it said.
fn refused(name: &'static str, settings: &[(&str, &str)], dir: &Path) -> (Option<i32>, String) {
    let settings: Vec<(&str, String)> =
        settings.iter().map(|(setting, value)| (*setting, (*value).to_owned())).collect();
    let mut program = Program::start(name, &[], &settings, dir);
    let code = program.exit_code();
    (code, program.log())
}

#[test]
fn a_setting_that_makes_no_sense_is_named_with_what_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("milena-cache", "LISTEN_ADDR", "nowhere"),
        ("milena-cache", "LISTEN_ADDR", "127.0.0.1:70000"),
        ("milena-cache", "ROUTER_ADDR", "ftp://x:1"),
        ("milena-cache", "ADVERTISE_ADDR", "a b"),
        ("milena-cache", "CORES", "0"),
        ("milena-cache", "CORES", "many"),
        ("milena-cache", "PIN", "maybe"),
        ("milena-cache", "MEMORY", "1KiB"),
        ("milena-cache", "MEMORY", "lots"),
        ("milena-cache", "LRU_SIZE", "-1"),
        ("milena-cache", "TTL_SECONDS", "1.5"),
        ("milena-cache", "STORE", "ftp://x"),
        ("milena-cache", "STORE", "s3://"),
        ("milena-cache", "S3_KEY_LAYOUT", "flat"),
        ("milena-cache", "S3_ENDPOINT", "nowhere"),
        ("milena-cache", "S3_ADDRESSING", "sideways"),
        ("milena-cache", "S3_READ_THREADS", "0"),
        ("milena-cache", "SHARD_PORTS", "some"),
        ("milena-cache", "DRAIN_SECONDS", "long"),
        ("milena-cache", "DISK", "1KiB"),
        ("milena-cache", "DISK", "plenty"),
        ("milena-cache", "LOG_LEVEL", "loud"),
        ("milena-cache", "WRITE_MODE", "sometimes"),
        ("milena-cache", "WRITE_MODE", "back"),
        ("milena-cache", "METRICS_PORT", "99999"),
        ("milena-cache", "LOG_FORMAT", "xml"),
        ("milena-router", "LISTEN_ADDR", "50050"),
        ("milena-router", "RATE_LIMIT", "fast"),
        ("milena-router", "STATE", "redis://x"),
        ("milena-router", "CORES", "0"),
        ("milena-router", "METRICS_PORT", "-1"),
        ("milena-router", "LOG_FORMAT", "xml"),
    ];
    for (name, setting, value) in cases {
        let flag = format!("--{}", setting.to_lowercase().replace('_', "-"));
        // Settings of S3 are read where there is S3.
        let bucket = ("S3_BUCKET", if setting.starts_with("S3_") { "tests" } else { "" });
        let (code, said) = refused(name, &[(setting, value), bucket], dir.path());
        assert_eq!(code, Some(2), "{name} {setting}={value}:\n{said}");
        let named = said.contains(setting) || said.contains(&flag);
        // Of a URL, what is wrong with it is named.
        let found = value.trim_start_matches("s3://");
        assert!(named && said.contains(found), "{name} {setting}={value} should be named:\n{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{name} {setting}={value}: one line, please:\n{said}");
    }
}

#[test]
fn an_unknown_flag_is_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["milena-cache", "milena-router", "milena"] {
        let mut program = Program::start(name, &["--no-such-flag"], &[], dir.path());
        assert_eq!(program.exit_code(), Some(2), "{name}");
        assert!(program.log().contains("--no-such-flag"), "{name}:\n{}", program.log());
    }
}

#[test]
fn a_port_in_use_is_said_in_one_line_and_ends_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Server::node(dir.path(), &[("STORE", "none")]);
    first.start();
    let (taken, page) = (first.address.to_string(), first.page);
    let free = free_address().to_string();
    let taken_page = page.port().to_string();

    for (name, listen, metrics) in [
        ("milena-cache", &taken, "0"),
        ("milena-router", &taken, "0"),
        ("milena-cache", &free, &*taken_page),
        ("milena-router", &free, &*taken_page),
    ] {
        let data = dir.path().join("second").display().to_string();
        let state = format!("file://{data}/router");
        let place = if name == "milena-cache" { ("DATA_DIR", &*data) } else { ("STATE", &*state) };
        let (code, said) = refused(name, &[("LISTEN_ADDR", listen), ("METRICS_PORT", metrics), place], dir.path());
        assert_eq!(code, Some(1), "{name}:\n{said}");
        let culprit = if metrics == "0" { &taken } else { &taken_page };
        let last = said.trim_end().lines().last().unwrap_or_default();
        assert!(last.contains(&**culprit) && last.contains("in use"), "{name} names {culprit}:\n{said}");
    }
    Client::node(first.address).put("the first one is unharmed", "v").unwrap();
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    // A file where a directory should be: nobody can write into that, not even root.
    let file = dir.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    let inside = file.join("inside").display().to_string();
    let url = format!("file://{inside}");
    let listen = free_address().to_string();
    let usual = [("LISTEN_ADDR", &*listen), ("METRICS_PORT", "0")];

    for (name, setting) in [
        ("milena-cache", ("DATA_DIR", &*inside)),
        ("milena-cache", ("STORE", &*url)),
        ("milena-router", ("STATE", &*url)),
    ] {
        let (code, said) = refused(name, &[&usual[..], &[setting]].concat(), dir.path());
        assert!(matches!(code, Some(1 | 2)), "{name} {setting:?} ended with {code:?}:\n{said}");
        let last = said.trim_end().lines().last().unwrap_or_default();
        assert!(last.contains(&inside), "{name} names {inside}:\n{said}");
    }
}

#[test]
fn every_program_explains_itself() {
    let dir = tempfile::tempdir().unwrap();
    for (name, words) in [
        ("milena-cache", ["LISTEN_ADDR", "S3_BUCKET", "50051"]),
        ("milena-router", ["LISTEN_ADDR", "RATE_LIMIT", "50050"]),
        ("milena", ["dev", "get", "topology"]),
    ] {
        let mut program = Program::start(name, &["--help"], &[], dir.path());
        assert_eq!(program.exit_code(), Some(0));
        for word in words {
            assert!(program.log().contains(word), "{name} --help does not mention {word}");
        }
    }
}

#[test]
fn logs_are_one_json_object_a_line_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Server::node(dir.path(), &[("STORE", "none"), ("LOG_FORMAT", "json")]);
    node.start();
    let program = node.program();
    wait_until("it has said something", PATIENCE, || program.log().contains('\n').then_some(()));
    assert_eq!(node.program().log().lines().find(|line| !line.starts_with('{') || !line.ends_with('}')), None);
}
