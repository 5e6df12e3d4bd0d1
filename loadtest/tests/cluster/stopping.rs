//! What a stop leaves behind, and what it must not.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use crate::{
    client::Client,
    programs::{PATIENCE, Program, Server, start_cluster, wait_until},
};

#[test]
fn a_stop_under_load_is_clean_and_loses_no_accepted_write() {
    const WRITERS: usize = 4;
    let dir = tempfile::tempdir().unwrap();
    let mut node = Server::node(dir.path(), &[]);
    node.start();

    let accepted: Vec<AtomicUsize> = (0..WRITERS).map(|_| AtomicUsize::new(0)).collect();
    let code = thread::scope(|scope| {
        for (writer, accepted) in accepted.iter().enumerate() {
            let client = Client::node(node.address);
            scope.spawn(move || {
                // Every key is written once, so that the last one accepted tells which must be there.
                while client.put(&format!("{writer}-{}", accepted.load(Ordering::Relaxed)), "v").is_ok() {
                    accepted.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let under_load = || accepted.iter().all(|accepted| accepted.load(Ordering::Relaxed) >= 20).then_some(());
        wait_until("every writer writes", PATIENCE, under_load);
        node.stop()
    });
    assert_eq!(code, Some(0), "a clean stop");

    node.start();
    let client = Client::node(node.address);
    for (writer, accepted) in accepted.iter().enumerate() {
        for number in 0..accepted.load(Ordering::Relaxed) {
            let key = format!("{writer}-{number}");
            assert_eq!(client.get(&key).unwrap().as_deref(), Some(&b"v"[..]), "{key} was accepted");
        }
    }
}

#[test]
fn a_kill_at_any_moment_loses_no_accepted_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Server::node(dir.path(), &[]);
    for round in 0..5 {
        node.start();
        let accepted = AtomicUsize::new(0);
        thread::scope(|scope| {
            let client = Client::node(node.address);
            let accepted = &accepted;
            scope.spawn(move || {
                while client.put(&format!("{round}-{}", accepted.load(Ordering::Relaxed)), "v").is_ok() {
                    accepted.fetch_add(1, Ordering::Relaxed);
                }
            });
            let enough = (round + 1) * 10;
            wait_until("it writes", PATIENCE, || (accepted.load(Ordering::Relaxed) >= enough).then_some(()));
            node.kill();
        });
        node.start();
        let client = Client::node(node.address);
        for number in 0..accepted.load(Ordering::Relaxed) {
            let key = format!("{round}-{number}");
            assert_eq!(client.get(&key).unwrap().as_deref(), Some(&b"v"[..]), "{key} was accepted");
        }
        assert_eq!(node.stop(), Some(0));
    }
}

#[test]
fn a_whole_cluster_stopped_under_load_is_there_again_after_a_start() {
    let mut cluster = start_cluster(3);
    let client = cluster.client();
    let stopping = AtomicBool::new(false);
    let accepted = AtomicUsize::new(0);
    thread::scope(|scope| {
        let (client, accepted, stopping) = (client.clone(), &accepted, &stopping);
        scope.spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                match client.put(&format!("k-{}", accepted.load(Ordering::Relaxed)), "v") {
                    Ok(()) => accepted.fetch_add(1, Ordering::Relaxed),
                    Err(_) => break,
                };
            }
        });
        wait_until("it writes", PATIENCE, || (accepted.load(Ordering::Relaxed) >= 100).then_some(()));
        for node in &mut cluster.nodes {
            assert_eq!(node.stop(), Some(0));
        }
        assert_eq!(cluster.router.stop(), Some(0));
        stopping.store(true, Ordering::Relaxed);
    });

    cluster.router.start();
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.wait_for_live(3);
    for number in 0..accepted.load(Ordering::Relaxed) {
        let key = format!("k-{number}");
        assert_eq!(client.get(&key).unwrap().as_deref(), Some(&b"v"[..]), "{key} was accepted");
    }
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let dir = tempfile::tempdir().unwrap();
    // A drain of an hour, and a watch that never ends by itself.
    let mut node = Server::node(dir.path(), &[("DRAIN_SECONDS", "3600")]);
    node.start();
    let program = node.program();
    program.signal(libc::SIGTERM);
    wait_until("it says that it stops", PATIENCE, || {
        program.signal(libc::SIGTERM);
        (!program.is_running()).then_some(())
    });
}

/// The lines of `milena dev --json`: the one that is JSON.
fn summary(dev: &Program) -> Option<String> {
    dev.log().lines().find(|line| line.starts_with('{') && line.ends_with('}')).map(str::to_owned)
}

fn start_dev(dir: &Path) -> (Program, String) {
    let mut dev = Program::start("milena", &["dev", "--port", "0", "--json"], &[], dir);
    let found = wait_until("the cluster is ready", PATIENCE * 2, || {
        assert!(dev.is_running(), "ended before it was ready:\n{}", dev.log());
        summary(&dev)
    });
    (dev, found)
}

/// Processes of ours that still work in `dir`.
fn left_behind(dir: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let working_there = processes.filter(|process| {
        fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
            // A process that has ended but is not yet waited for is nobody.
            && fs::read_to_string(process.path().join("stat")).is_ok_and(|stat| !stat.contains(") Z "))
    });
    working_there.map(|process| fs::read_to_string(process.path().join("cmdline")).unwrap_or_default()).collect()
}

#[test]
fn a_development_cluster_is_up_with_one_command_and_stops_with_ctrl_c() {
    let dir = tempfile::tempdir().unwrap();
    let (mut dev, summary) = start_dev(dir.path());
    let router = summary.split("\"router\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let client = Client::router(router.parse().unwrap());
    client.put("greeting", "hello").unwrap();
    assert_eq!(client.get("greeting").unwrap().as_deref(), Some(&b"hello"[..]));

    dev.signal(libc::SIGINT);
    assert_eq!(dev.exit_code(), Some(0), "{}", dev.log());
    assert_eq!(left_behind(dir.path()), [""; 0]);

    // What was put is there at the next start.
    let (mut dev, summary) = start_dev(dir.path());
    let router = summary.split("\"router\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    assert_eq!(Client::router(router.parse().unwrap()).get("greeting").unwrap().as_deref(), Some(&b"hello"[..]));
    assert_eq!(dev.stop(), Some(0));
}

#[test]
fn a_development_cluster_leaves_nothing_behind_however_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (mut dev, _) = start_dev(dir.path());
    assert!(left_behind(dir.path()).len() >= 5, "milena, a router and three nodes");
    dev.kill();
    wait_until("its children are gone", PATIENCE, || left_behind(dir.path()).is_empty().then_some(()));
}

#[test]
fn a_development_cluster_ends_when_a_member_does() {
    let dir = tempfile::tempdir().unwrap();
    let (mut dev, _) = start_dev(dir.path());
    let node = fs::read_dir("/proc").unwrap().filter_map(Result::ok).find_map(|process| {
        let is_ours = fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir.path()));
        let command = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        let name = process.file_name().into_string().ok()?;
        (is_ours && command.contains("milena-cache")).then(|| name.parse::<i32>().ok()).flatten()
    });
    // SAFETY: a system call without memory; the process is one of the cluster that this test has started.
    unsafe { libc::kill(node.expect("a node runs"), libc::SIGKILL) };
    assert_eq!(dev.exit_code(), Some(1));
    assert!(dev.log().contains("node"), "it is named:\n{}", dev.log());
    wait_until("the others are gone", Duration::from_secs(10), || left_behind(dir.path()).is_empty().then_some(()));
}

#[test]
fn no_line_of_a_log_names_its_part_twice() {
    let mut cluster = start_cluster(1);
    let mut logs = String::new();
    for server in [&mut cluster.nodes[0], &mut cluster.router] {
        assert_eq!(server.program().stop(), Some(0));
        logs.push_str(&server.program().log());
    }
    assert!(logs.contains("stopping"), "{logs}");
    for line in logs.lines() {
        // Time, level, part, and then what it says.
        let (part, text) = line.split_once(": ").expect("every line has a part");
        let part = part.rsplit(' ').next().expect("split gives one at least");
        assert!(!text.starts_with(&format!("{part}: ")), "{line}");
    }
}
