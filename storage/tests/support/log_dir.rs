//! A log in a directory, opened and used on a core of its own.

use std::{path::Path, rc::Rc, time::Duration};

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
    let opened = open(settings).unwrap_or_else(|error| panic!("{error}"));
    let opening = opened.opening.clone();
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
        // Files are closed by the ring once nobody has them, and stay open where the ring has gone before.
        drop(log);
        glommio::timer::sleep(Duration::from_millis(1)).await;
        answer
    });
    (opening, answer)
}

pub(crate) async fn put(log: &Rc<Log<Disk>>, name: &str, value: &str) {
    let position = Rc::clone(log).put(key(name), entry(value), None, NOW).await.unwrap();
    Rc::clone(log).durable(position).await.unwrap();
}

pub(crate) async fn get(log: &Rc<Log<Disk>>, name: &str) -> Option<String> {
    let copy = Rc::clone(log).get(key(name), NOW).await.into_copy()?;
    Some(String::from_utf8(copy.entry.value.to_vec()).unwrap())
}
