//! A shard with a log between memory and the store. The log is real, on a directory and a core of its own; gets and writes
//! are polled by hand, and what the log does happens when a test lets it.
//!
//! ```text
//!   memory   one entry, so that the next key pushes the last one out
//!   log      in a directory on tmpfs, which answers no read at once: each takes a turn, and the test decides what comes before
//!   store    the script
//! ```

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use glommio::{LocalExecutorBuilder, Placement};
use milena_core::shard::{Answer, Shard, Source};
use milena_storage::{
    Condition, Timestamp,
    log::{Disk, Log, LogSettings, open},
};

use super::{
    World,
    histories::{Simulation, is_linearizable, seeds},
    script::{Script, Started, key},
    settings, some, unknown, value, write,
};

/// Longer than anything here takes; what hangs fails the test.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

struct Logged {
    world: World,
    log: Rc<Log<Disk>>,
}

/// Runs `work` on a core with a log, which is killed at the end.
pub(super) fn with_log<T: 'static, F: Future<Output = T> + 'static>(
    work: impl FnOnce(Rc<Log<Disk>>) -> F + 'static,
) -> T {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a tmpfs at /dev/shm");
    let settings =
        LogSettings { dir: dir.path().to_owned(), core: 0, core_count: 1, disk_bytes: 2 << 20, new_log_id: 7 };
    let opened = open(&settings).unwrap_or_else(|error| panic!("{error}"));
    let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(32 << 20).make().unwrap();
    executor.run(async move {
        let (log, _keeper) = Log::new(opened, 0).await.unwrap();
        let run = glommio::spawn_local(Rc::clone(&log).run());
        let answer = work(log).await;
        run.cancel().await;
        answer
    })
}

fn with_logged<F: Future<Output = ()> + 'static>(work: impl FnOnce(Logged) -> F + 'static) {
    with_log(|log| {
        let store = Script::default();
        let settings = super::ShardSettings { entries_max: 1, ..settings() };
        let shard = Shard::with_log(settings, Some(store.clone()), Rc::clone(&log));
        work(Logged { world: World { shard, store, now_ms: Cell::new(1_000_000) }, log })
    });
}

/// Lets what is on this core have a turn.
pub(super) async fn turn() {
    let mut has_yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Gives turns until `started` is done.
pub(super) async fn finish<A>(mut started: Started<A>) -> A {
    let end = Instant::now() + PATIENCE;
    while !started.is_done() {
        assert!(Instant::now() < end, "it waits for something that nobody does");
        turn().await;
    }
    started.finish()
}

/// Waits until all that is in the log is on its disk.
pub(super) async fn flush(log: &Rc<Log<Disk>>) {
    let position = Rc::clone(log).delete(key("nobody"), Timestamp(0)).await.unwrap();
    Rc::clone(log).durable(position).await.unwrap();
}

impl Logged {
    async fn get(&self, name: &str) -> Option<(Bytes, Source)> {
        found(finish(self.world.start_get(name)).await)
    }

    async fn put(&self, name: &str, text: &str) {
        finish(self.world.start_put(name, write(text))).await.unwrap();
    }

    /// What the log itself has.
    async fn in_log(&self, name: &str) -> Option<Bytes> {
        let copy = Rc::clone(&self.log).get(key(name), self.world.now()).await;
        copy.into_copy().map(|copy| copy.entry.value)
    }

    /// Puts it where only the log's disk and the store have it.
    async fn put_on_disk(&self, name: &str, text: &str) {
        self.put(name, text).await;
        self.push_out_of_memory().await;
        flush(&self.log).await;
    }

    async fn push_out_of_memory(&self) {
        self.put("other", "x").await;
    }

    fn disk_reads(&self) -> u64 {
        self.log.figures().counts.reads_ring
    }
}

fn found(answer: Answer) -> Option<(Bytes, Source)> {
    answer.unwrap().map(|hit| (hit.entry.value, hit.source))
}

fn from_log(text: &'static str) -> Option<(Bytes, Source)> {
    Some((Bytes::from_static(text.as_bytes()), Source::Log))
}

#[test]
fn what_memory_had_no_room_for_is_answered_by_the_log() {
    with_logged(|logged| async move {
        logged.put_on_disk("a", "1").await;
        let mut reader = logged.world.start_get("a");
        assert!(!reader.is_done(), "it is on disk alone");
        assert_eq!(found(finish(reader).await), from_log("1"));
        assert_eq!(logged.world.source("a"), Some(Source::Memory));
        assert_eq!((logged.world.store.get_count(), logged.disk_reads()), (0, 1));
    });
}

#[test]
fn readers_who_miss_memory_at_the_same_time_share_one_read_of_the_disk() {
    with_logged(|logged| async move {
        logged.put_on_disk("a", "1").await;
        let readers: Vec<_> = (0..100).map(|_| logged.world.start_get("a")).collect();
        for reader in readers {
            assert_eq!(found(finish(reader).await), from_log("1"));
        }
        assert_eq!((logged.disk_reads(), logged.world.store.get_count()), (1, 0));
        assert_eq!(logged.world.shard.report().coalesced, 99);
    });
}

#[test]
fn a_reader_who_goes_away_while_the_disk_is_read_leaves_the_lead_to_the_next() {
    with_logged(|logged| async move {
        logged.put_on_disk("a", "1").await;
        let leader = logged.world.start_get("a");
        let follower = logged.world.start_get("a");
        drop(leader);
        assert_eq!(found(finish(follower).await), from_log("1"));
        assert!(logged.world.is_quiet());
    });
}

#[test]
fn a_fetch_that_a_write_overtakes_leaves_nothing_old_in_the_log() {
    with_logged(|logged| async move {
        logged.world.store.hold_get("a");
        let fetch = logged.world.start_get("a");
        logged.put("a", "new").await;
        logged.world.store.release_get("a", Some("old"));
        assert_eq!(value(finish(fetch).await), some("new"));
        assert_eq!(logged.in_log("a").await, some("new"));
        logged.push_out_of_memory().await;
        assert_eq!(logged.get("a").await, from_log("new"));
    });
}

#[test]
fn a_write_that_overtakes_a_read_of_the_disk_wins() {
    with_logged(|logged| async move {
        logged.put_on_disk("a", "old").await;
        let mut reader = logged.world.start_get("a");
        let put = logged.world.start_put("a", write("new"));
        assert!(!reader.is_done());
        finish(put).await.unwrap();
        let read = value(finish(reader).await);
        assert!(read == some("old") || read == some("new"), "they were under way together");
        assert_eq!(value(finish(logged.world.start_get("a")).await), some("new"));
        assert_eq!(logged.in_log("a").await, some("new"));
    });
}

/// Gives turns until the disk has answered and the store is asked.
async fn wait_for_the_store(logged: &Logged, reader: &mut Started<Answer>) {
    let end = Instant::now() + PATIENCE;
    while logged.world.store.in_the_air_count() == 0 {
        assert!(!reader.is_done() && Instant::now() < end, "the store is not asked");
        turn().await;
    }
}

/// A get whose fill is looking at the disk for what it replaces: the log had a copy that nobody believes, and the store
/// something newer.
async fn fill_under_way(logged: &Logged) -> Started<Answer> {
    logged.put_on_disk("a", "old").await;
    logged.world.shard.end_tenure();
    logged.world.store.set("a", "found"); // by somebody else
    logged.world.store.hold_get("a");
    let mut reader = logged.world.start_get("a");
    let reads_before = logged.disk_reads();
    wait_for_the_store(logged, &mut reader).await;
    assert_eq!(logged.disk_reads(), reads_before + 1);
    logged.world.store.release_get_as_it_is("a");
    assert!(!reader.is_done(), "the fill reads the disk");
    reader
}

#[test]
fn a_fill_replaces_what_the_log_had() {
    with_logged(|logged| async move {
        let reader = fill_under_way(&logged).await;
        assert_eq!(value(finish(reader).await), some("found"));
        assert_eq!(logged.in_log("a").await, some("found"));
    });
}

#[test]
fn a_write_during_a_fill_is_what_the_log_has_in_the_end() {
    with_logged(|logged| async move {
        let reader = fill_under_way(&logged).await;
        let put = logged.world.start_put("a", write("new"));
        finish(put).await.unwrap();
        finish(reader).await.unwrap();
        assert_eq!(logged.in_log("a").await, some("new"));
        logged.push_out_of_memory().await;
        assert_eq!(logged.get("a").await, from_log("new"));
    });
}

#[test]
fn a_delete_during_a_fill_leaves_nothing_in_the_log() {
    with_logged(|logged| async move {
        let reader = fill_under_way(&logged).await;
        finish(logged.world.start_delete("a", Condition::Always)).await.unwrap();
        finish(reader).await.unwrap();
        assert_eq!(logged.in_log("a").await, None);
        assert_eq!(value(finish(logged.world.start_get("a")).await), None);
    });
}

#[test]
fn a_fill_whose_lease_is_revoked_leaves_the_log_as_nobody_believes_it() {
    with_logged(|logged| async move {
        let reader = fill_under_way(&logged).await;
        logged.world.shard.end_tenure();
        assert_eq!(value(finish(reader).await), some("found"));
        assert_ne!(logged.in_log("a").await, some("found"));
        logged.push_out_of_memory().await;
        assert_eq!(logged.world.store.get_count(), 1);
        // What the log has is asked for before it is answered.
        let mut reader = logged.world.start_get("a");
        wait_for_the_store(&logged, &mut reader).await;
        logged.world.store.release_get_as_it_is("a");
        assert_eq!(value(finish(reader).await), some("found"));
    });
}

// As in memory; found by a random history.
#[test]
fn a_copy_in_the_log_seen_to_be_old_while_a_write_is_in_the_air_is_forgotten() {
    with_logged(|logged| async move {
        logged.put_on_disk("a", "old").await;
        logged.world.pass_ms(60_000);
        logged.world.store.hold_write("a");
        let delete = logged.world.start_delete("a", Condition::Always);
        logged.world.store.remove("a"); // the store has done it, and has not said so
        assert_eq!(logged.get("a").await, None);
        logged.world.now_ms.set(1_000_000); // the clock jumps back: the copy would be believed again
        assert_eq!(logged.get("a").await, None);
        logged.world.store.release_write("a");
        finish(delete).await.unwrap();
    });
}

#[test]
fn a_write_of_which_nobody_knows_makes_the_log_forget() {
    with_logged(|logged| async move {
        logged.put_on_disk("a", "old").await;
        logged.world.store.hold_write("a");
        let put = logged.world.start_put("a", write("new"));
        logged.world.store.fail_write("a", unknown());
        assert!(finish(put).await.is_err());
        assert_eq!(logged.in_log("a").await, None);
        assert_eq!(logged.get("a").await.map(|(_, source)| source), Some(Source::Store));
    });
}

/// On a log that all seeds share, as processes do that come one after the other: what the log has of an earlier one is not
/// believed.
#[test]
fn random_histories_with_a_log_could_be_those_of_one_register() {
    with_log(|log| async move {
        for seed in seeds(1_000) {
            let make = |settings, store| Shard::with_log(settings, Some(store), Rc::clone(&log));
            let histories = Simulation::new(seed, make).run_with_turns(turn, || flush(&log)).await;
            if let Some(history) = histories.iter().find(|history| !is_linearizable(history)) {
                history.iter().for_each(|seen| println!("{seen:?}"));
                panic!("MILENA_SEED={seed}");
            }
        }
        let counts = log.figures().counts;
        assert!(counts.reads_ring > 100 && counts.reads_buffered > 100, "the log was asked: {counts:?}");
    });
}
