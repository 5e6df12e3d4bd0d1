//! Write mode `back` over a real log and a store that does what the test says: what is answered while a change waits, and
//! in which order changes arrive. Uploads happen when a test lets them.

use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt as _, future::LocalBoxFuture, stream::FuturesUnordered};
use milena_core::shard::{Refusal, Shard, ShardSettings, Source, Write, WriteMode, back::Uploaded};
use milena_proto::cache_server::Ack;
use milena_storage::{
    Cause, Condition, Timestamp,
    log::{Disk, Log},
    memory::BUDGET_BYTES_MIN,
};

use super::{
    World,
    histories::{Simulation, is_linearizable, seeds},
    logged::{PATIENCE, flush, with_log},
    script::{Script, Started, key},
    settings, some, unavailable, write,
};

/// A node's core in write mode `back`, and what uploads.
struct Scene {
    world: World,
    uploads: Uploads,
}

/// The uploads of one shard that are under way.
struct Uploads {
    shard: Rc<Shard<Script>>,
    log: Rc<Log<Disk>>,
    under_way: RefCell<FuturesUnordered<LocalBoxFuture<'static, Uploaded>>>,
}

impl Uploads {
    fn of(shard: &Rc<Shard<Script>>, log: &Rc<Log<Disk>>) -> Self {
        Self { shard: Rc::clone(shard), log: Rc::clone(log), under_way: RefCell::default() }
    }

    /// Begins those that may, and lets all go on.
    async fn turn(&self) {
        // The runtime looks whether the disk has answered when no task is ready, and otherwise every tenth of a second.
        glommio::timer::sleep(Duration::from_micros(20)).await;
        let mut under_way = self.under_way.borrow_mut();
        while let Some(debt) = self.log.next_debt() {
            under_way.push(Box::pin(Rc::clone(&self.shard).upload(debt, Timestamp(1_000_000))));
        }
        while let Some(Some(_)) = under_way.next().now_or_never() {}
    }

    async fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < end, "after {PATIENCE:?} still not: {what}");
            self.turn().await;
        }
    }

    /// Until the store has been asked so many things.
    async fn until_asked(&self, store: &Script, count: usize) {
        self.until("the store is asked", || store.in_the_air_count() >= count).await;
    }

    /// Until the store has all changes of `name`.
    async fn until_done(&self, name: &str) {
        self.until("all is uploaded", || !self.log.has_debt(key(name).hash())).await;
    }

    /// Until a call has its answer.
    async fn finish<A>(&self, started: Started<A>) -> A {
        let mut started = started;
        self.until("it is answered", || started.is_done()).await;
        started.finish()
    }
}

fn with_scene<F: Future<Output = ()> + 'static>(work: impl FnOnce(Scene) -> F + 'static) {
    with_log(|log| {
        let store = Script::default();
        let settings = ShardSettings { entries_max: 1, write_mode: WriteMode::Back, ..settings() };
        let shard = Shard::with_log(settings, Some(store.clone()), Rc::clone(&log));
        let uploads = Uploads::of(&shard, &log);
        work(Scene { world: World { shard, store, now_ms: Cell::new(1_000_000) }, uploads })
    });
}

fn with_ack(value: &str, ack: Ack) -> Write {
    Write { ack, ..write(value) }
}

impl Scene {
    async fn put(&self, name: &str, value: &str) {
        self.uploads.finish(self.world.start_put(name, write(value))).await.unwrap();
    }

    /// Lets every write of `a` that the store is asked for fail until the call has its answer.
    async fn fail_until_done<A>(&self, mut started: Started<A>) -> A {
        let fail = || {
            if self.world.store.in_the_air_count() > 0 {
                self.world.store.fail_write("a", unavailable());
            }
            started.is_done()
        };
        self.uploads.until("it is answered", fail).await;
        started.finish()
    }

    async fn get(&self, name: &str) -> Option<(bytes::Bytes, Source)> {
        self.uploads.finish(self.world.start_get(name)).await.unwrap().map(|hit| (hit.entry.value, hit.source))
    }
}

#[test]
fn while_a_change_waits_the_store_is_not_asked_however_old_the_copy_and_wherever_it_is() {
    with_scene(|scene| async move {
        for name in ["a", "b"] {
            scene.world.store.set(name, "theirs");
            scene.world.store.hold_write(name);
        }
        scene.put("a", "ours").await;
        assert_eq!(scene.get("a").await, Some((some("ours").unwrap(), Source::Memory)));
        scene.world.pass_ms(10 * 60_000);
        assert_eq!(scene.get("a").await, Some((some("ours").unwrap(), Source::Log)), "memory's copy is old");
        scene.uploads.finish(scene.world.start_delete("b", Condition::Always)).await.unwrap();
        scene.world.pass_ms(10 * 60_000);
        assert_eq!(scene.get("b").await, None);
        scene.world.shard.end_tenure();
        assert_eq!(scene.get("a").await, Some((some("ours").unwrap(), Source::Log)), "whoever wrote it meanwhile");
        assert_eq!(scene.get("b").await, None);
        assert_eq!(scene.world.store.get_count(), 0);

        scene.uploads.until_asked(&scene.world.store, 2).await;
        for name in ["a", "b"] {
            scene.world.store.release_write(name);
            scene.uploads.until_done(name).await;
        }
        assert_eq!((scene.world.store.has("a"), scene.world.store.has("b")), (some("ours"), None));
        scene.world.pass_ms(10 * 60_000);
        scene.world.store.set("b", "theirs");
        assert_eq!(scene.get("b").await, Some((some("theirs").unwrap(), Source::Store)), "now the store is the truth");
    });
}

#[test]
fn a_change_that_comes_during_an_upload_goes_after_it_and_what_it_has_replaced_is_never_uploaded() {
    with_scene(|scene| async move {
        let store = &scene.world.store;
        store.hold_write("a");
        scene.put("a", "1").await;
        scene.uploads.until_asked(store, 1).await;
        scene.put("a", "2").await;
        scene.put("a", "3").await;
        for _ in 0..100 {
            scene.uploads.turn().await;
        }
        assert_eq!(store.in_the_air_count(), 1, "one upload of a key at a time");
        store.release_write("a");
        scene.uploads.until_asked(store, 1).await;
        assert_eq!(store.has("a"), some("1"));
        store.release_write("a");
        scene.uploads.until_done("a").await;
        assert_eq!((store.has("a"), store.write_count()), (some("3"), 2));
    });
}

#[test]
fn each_level_of_acknowledgement_waits_for_its_own_and_for_nothing_more() {
    with_scene(|scene| async move {
        let store = &scene.world.store;
        store.hold_write("a");
        let mut memory = scene.world.start_put("a", with_ack("memory", Ack::Memory));
        assert!(memory.is_done(), "at once");
        memory.finish().unwrap();
        let mut disk = scene.world.start_put("a", with_ack("disk", Ack::Disk));
        assert!(!disk.is_done(), "nothing is synced yet");
        scene.uploads.finish(disk).await.unwrap();
        scene.uploads.until_asked(store, 1).await;
        let mut s3 = scene.world.start_put("a", with_ack("s3", Ack::S3));
        store.release_write("a");
        scene.uploads.until("s3 is uploaded", || !s3.is_done() && store.in_the_air_count() == 1).await;
        assert_eq!(store.has("a"), some("disk"));
        store.release_write("a");
        scene.uploads.finish(s3).await.unwrap();
        assert_eq!((store.has("a"), store.write_count()), (some("s3"), 2));

        let refusal =
            scene.fail_until_done(scene.world.start_put("a", with_ack("refused", Ack::S3))).await.unwrap_err();
        assert!(
            matches!(&refusal, Refusal::Store(error) if matches!(error.cause, Cause::OutcomeUnknown(_))),
            "{refusal:?}"
        );
        scene.uploads.until_asked(store, 1).await;
        store.release_write("a");
        scene.uploads.until_done("a").await;
        assert_eq!(store.has("a"), some("refused"), "it was taken, and tried again");
    });
}

#[test]
fn a_write_that_the_log_cannot_take_goes_to_the_store_after_what_waits_and_not_if_that_fails() {
    with_scene(|scene| async move {
        let store = &scene.world.store;
        store.hold_write("a");
        scene.put("a", "1").await;
        let large = "x".repeat(BUDGET_BYTES_MIN);
        let refusal = scene.fail_until_done(scene.world.start_put("a", write(&large))).await.unwrap_err();
        assert!(
            matches!(&refusal, Refusal::Store(error) if matches!(error.cause, Cause::Unavailable(_))),
            "{refusal:?}"
        );
        assert_eq!(scene.get("a").await.map(|(value, _)| value), some("1"));

        let mut put = scene.world.start_put("a", write(&large));
        scene.uploads.until_asked(store, 1).await;
        store.release_write("a");
        scene.uploads.until("it is its turn", || !put.is_done() && store.in_the_air_count() == 1).await;
        assert_eq!(store.has("a"), some("1"), "first what came first");
        store.release_write("a");
        scene.uploads.finish(put).await.unwrap();
        assert_eq!(store.has("a").map(|value| value.len()), Some(large.len()));
    });
}

#[test]
fn a_node_that_stops_takes_writes_through_to_the_store() {
    with_scene(|scene| async move {
        let store = &scene.world.store;
        scene.put("a", "1").await;
        let mut settled = pin!(scene.world.shard.settle());
        assert!((&mut settled).now_or_never().is_none(), "something waits");
        store.hold_write("b");
        let mut put = pin!(scene.world.shard.put(key("b"), write("1"), scene.world.now()));
        assert!((&mut put).now_or_never().is_none());
        store.release_write("b");
        put.await.unwrap();
        assert_eq!(store.has("b"), some("1"));
        scene.uploads.until_done("a").await;
        assert_eq!(store.has("a"), some("1"));
        scene.uploads.until("all is settled", || (&mut settled).now_or_never().is_some()).await;
    });
}

/// On a log that all seeds share, as processes do that come one after the other.
#[test]
fn random_histories_in_write_mode_back_could_be_those_of_one_register_and_the_store_ends_with_its_value() {
    with_log(|log| async move {
        for seed in seeds(300) {
            let made = Rc::new(RefCell::new(None));
            let make = |settings, store: Script| {
                let settings = ShardSettings { write_mode: WriteMode::Back, ..settings };
                let shard = Shard::with_log(settings, Some(store.clone()), Rc::clone(&log));
                *made.borrow_mut() = Some((Uploads::of(&shard, &log), store));
                shard
            };
            let simulation = Simulation::new(seed, make).without_versions();
            let (uploads, store) = made.take().expect("made");
            let histories = simulation.run_with_turns(|| uploads.turn(), || flush(&log)).await;
            if let Some(history) = histories.iter().find(|history| !is_linearizable(history)) {
                history.iter().for_each(|seen| println!("{seen:?}"));
                panic!("MILENA_SEED={seed}");
            }
            store.answer_all();
            for name in ["a", "b"] {
                uploads.until_done(name).await;
                let shown =
                    uploads.finish(Started::new(uploads.shard.get(key(name).as_ref(), Timestamp(1_000_000)))).await;
                let shown = shown.unwrap().map(|hit| hit.entry.value);
                assert_eq!(shown, store.has(name), "MILENA_SEED={seed}: {name}");
                uploads
                    .finish(Started::new(uploads.shard.delete(
                        key(name),
                        super::removal(Condition::Always),
                        Timestamp(1_000_000),
                    )))
                    .await
                    .unwrap();
                uploads.until_done(name).await;
            }
        }
    });
}
