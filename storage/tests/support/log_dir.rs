//! A log in a directory, opened and used on a core of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use glommio::{LocalExecutorBuilder, Placement};
use milena_proto::key::{Key, KeyRef};
use milena_storage::{
    Entry, Timestamp, Version,
    log::{Disk, Log, LogSettings, Opening, open},
};

pub(crate) const NOW: Timestamp = Timestamp(1_700_000_000_000);

pub(crate) fn settings(dir: &Path) -> LogSettings {
    LogSettings { dir: dir.to_owned(), core: 0, core_count: 1, disk_bytes: 2 << 20, new_log_id: 7 }
}

pub(crate) fn key(name: &str) -> Key {
    KeyRef::parse(b"default", name.as_bytes()).unwrap().to_key()
}

pub(crate) fn entry(value: &str) -> Entry {
    let version = Version::new(Bytes::from_static(b"v1")).unwrap();
    Entry { value: Bytes::copy_from_slice(value.as_bytes()), version, expires: None }
}

/// How a log ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// As if the process was killed.
    Killed,
    Stopped,
}

/// Opens the log in `dir`, does something with it on a core, and answers what opening it said.
pub(crate) fn with_log<T: 'static, F>(
    settings: &LogSettings,
    end: End,
    work: impl FnOnce(Rc<Log<Disk>>) -> F + 'static,
) -> (Opening, T)
where
    F: Future<Output = T> + 'static,
{
    let open_before = open_segments(&settings.dir);
    let opened = open(settings).unwrap_or_else(|error| panic!("{error}"));
    let (opening, dir) = (opened.opening.clone(), settings.dir.clone());
    let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(64 << 10).make().unwrap();
    let answer = executor.run(async move {
        let (log, keeper) = Log::new(opened, 0).await.unwrap();
        let run = glommio::spawn_local(Rc::clone(&log).run());
        let answer = work(Rc::clone(&log)).await;
        if end == End::Stopped {
            log.stop();
            run.await;
            assert_eq!(keeper.save(&log).unwrap(), log.figures().dirty_records == 0);
        } else {
            run.cancel().await;
        }
        drop(log);
        segments_are_closed(&dir, open_before).await;
        answer
    });
    (opening, answer)
}

/// How many files of segments in `dir` this process has open.
fn open_segments(dir: &Path) -> usize {
    let is_segment = |path: &PathBuf| path.starts_with(dir) && path.to_string_lossy().contains("/segment-");
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    open.filter(is_segment).count()
}

/// Waits until the ring has closed the files of a log that is gone: where the ring goes before, they stay open.
async fn segments_are_closed(dir: &Path, open_before: usize) {
    // Bounded, because a test may keep its log.
    for _ in 0..100 {
        if open_segments(dir) <= open_before {
            return;
        }
        glommio::timer::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) async fn put(log: &Rc<Log<Disk>>, name: &str, value: &str) {
    let position = Rc::clone(log).put(key(name), entry(value), None, NOW).await.unwrap();
    Rc::clone(log).durable(position).await.unwrap();
}

pub(crate) async fn get(log: &Rc<Log<Disk>>, name: &str) -> Option<String> {
    let copy = Rc::clone(log).get(key(name), NOW).await.into_copy()?;
    Some(String::from_utf8(copy.entry.value.to_vec()).unwrap())
}
