//! A log on filesystems that are too small, full, read-only, or cannot write directly.

use std::{fs, os::unix::process::CommandExt as _, path::Path, process::Command, rc::Rc};

use milena_storage::log::{Disk, Log, LogSettings, OpenError, open};

#[path = "support/log_dir.rs"]
mod log_dir;
#[path = "support/mounted.rs"]
mod mounted;

use log_dir::{End, NOW, entry, get, key, put, settings, with_log};
use mounted::{fill_up, make_read_only, mount};

/// Goes round the log of 2 MiB more than three times, and ends with the key `last`.
async fn go_round(log: Rc<Log<Disk>>) -> milena_storage::log::Figures {
    for n in 0..12_000 {
        Rc::clone(&log).put(key(&format!("k{n}")), entry(&format!("{n:0>500}")), None, NOW).await.unwrap();
    }
    put(&log, "last", "x").await;
    log.figures()
}

fn file_count(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().filter(|file| file.as_ref().unwrap().file_name() != "LOCK").count()
}

#[test]
fn a_disk_without_room_for_the_smallest_log_is_refused_with_what_is_free_and_needed_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let _mounted = mount("tmpfs", dir.path(), "size=640k");
    let error = open(&settings(dir.path())).unwrap_err();
    assert!(matches!(error, OpenError::NoSpace { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        format!(
            "cannot open {}: 640KiB free, and the log needs at least 832KiB: No space left on device (os error 28); \
             hint: lower DISK, or make room",
            dir.path().display()
        )
    );
    assert_eq!(file_count(dir.path()), 0);
}

#[test]
fn a_disk_with_less_room_than_asked_for_gives_a_smaller_log_and_keeps_room_for_its_index() {
    let dir = tempfile::tempdir().unwrap();
    let _mounted = mount("tmpfs", dir.path(), "size=1m"); // exactly 16 segments
    let (opening, figures) = with_log(&settings(dir.path()), End::Stopped, go_round);
    assert_eq!((opening.segments, opening.segments_missing), (15, 17));
    assert_eq!((figures.counts.write_errors, figures.is_degraded), (0, false));
    let (opening, found) = with_log(&settings(dir.path()), End::Killed, |log| async move { get(&log, "last").await });
    assert_eq!((opening.is_from_index, found.as_deref()), (true, Some("x")));
}

#[test]
fn a_disk_that_becomes_full_after_the_start_changes_nothing_for_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let _mounted = mount("tmpfs", dir.path(), "size=4m");
    let log_dir = dir.path().join("log");
    let other = dir.path().join("other");
    let (_, figures) = with_log(&settings(&log_dir), End::Killed, move |log| {
        fill_up(&other);
        go_round(log)
    });
    assert!(figures.counts.written_bytes > 3 * figures.capacity_bytes, "{figures:?}");
    assert_eq!((figures.counts.write_errors, figures.is_degraded), (0, false), "{figures:?}");
    // Nor for the next start.
    let (opening, found) = with_log(&settings(&log_dir), End::Killed, |log| async move { get(&log, "last").await });
    assert_eq!((opening.segments_missing, found.as_deref()), (0, Some("x")));
}

#[test]
fn a_read_only_disk_is_refused_with_the_file_that_cannot_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let _mounted = mount("tmpfs", dir.path(), "size=4m");
    drop(open(&settings(dir.path())).unwrap());
    make_read_only(dir.path());
    let error = open(&settings(dir.path())).unwrap_err().to_string();
    let lock = dir.path().join("LOCK");
    assert_eq!(error, format!("cannot open {}: Read-only file system (os error 30)", lock.display()));
}

#[test]
fn where_there_are_no_direct_writes_the_log_writes_through_the_page_cache_and_says_so() {
    for kind in ["tmpfs", "ramfs"] {
        let dir = tempfile::tempdir().unwrap();
        let _mounted = mount(kind, dir.path(), "");
        let (_, (is_direct, figures)) =
            with_log(&settings(dir.path()), End::Killed, |log| async move { (log.is_direct(), go_round(log).await) });
        assert!(!is_direct, "{kind}");
        assert_eq!((figures.counts.write_errors, figures.counts.read_errors), (0, 0), "{kind}: {figures:?}");
        let (_, found) = with_log(&settings(dir.path()), End::Killed, |log| async move { get(&log, "last").await });
        assert_eq!(found.as_deref(), Some("x"), "{kind}");
    }
}

const CHILD_DIR: &str = "MILENA_TEST_LOG_DIR";

/// Without a mount: a process that may not write large files. The limit is the process's, so it is one of its own.
#[test]
fn a_limit_on_the_size_of_files_is_refused_like_a_full_disk() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        println!("{}", open(&settings(Path::new(&dir))).unwrap_err());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "a_limit_on_the_size_of_files_is_refused_like_a_full_disk", "--nocapture"]);
    child.env(CHILD_DIR, dir.path());
    let limit_files = || {
        let limit = libc::rlimit { rlim_cur: 32 << 10, rlim_max: 32 << 10 };
        // SAFETY: points to one limit; both calls may be made between fork and exec.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN); // an error, not the end of the process
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
        }
        Ok(())
    };
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { child.pre_exec(limit_files) };
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("and the log needs at least 832KiB: File too large (os error 27)"), "{said}");
    assert_eq!(file_count(dir.path()), 0);
}

#[test]
fn a_log_that_cannot_grow_stays_as_large_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let _mounted = mount("tmpfs", dir.path(), "size=3m");
    with_log(&settings(dir.path()), End::Stopped, |log| async move { put(&log, "a", "one").await });
    let larger = LogSettings { disk_bytes: 8 << 20, ..settings(dir.path()) };
    let (opening, found) = with_log(&larger, End::Stopped, |log| async move { get(&log, "a").await });
    assert_eq!((opening.segments + opening.segments_missing, found.as_deref()), (128, Some("one")));
    assert!((32..48).contains(&opening.segments), "{opening:?}");
}
