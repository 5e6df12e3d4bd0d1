//! A shard above a store that does what the test says. No runtime, but for a log: futures are polled by hand.

mod back;
mod batches;
mod histories;
mod logged;
mod mesh;
mod script;

use std::{cell::Cell, rc::Rc, sync::Arc};

use bytes::Bytes;
use milena_core::{
    inflight::{INFLIGHT_WRITES_PER_KEY_MAX, KEYS_IN_FLIGHT_MAX, READERS_PER_KEY_MAX},
    ownership::View,
    shard::{Answer, Hit, Limit, Refusal, Removal, Shard, ShardSettings, Source, Write, WriteMode},
};
use milena_proto::{
    cache_server::Ack,
    router_server::{Slot, TopologyResponse},
};
use milena_storage::{Cause, Condition, Entry, Error, Operation, Timestamp, Version, memory::BUDGET_BYTES_MIN};
use script::{Script, Started, entry, key, version_of};

fn settings() -> ShardSettings {
    ShardSettings {
        core: 0,
        core_count: 1,
        memory_bytes: BUDGET_BYTES_MIN,
        entries_max: 0,
        believed_ms: Some(60_000),
        absent_ms: 1_000,
        incarnation: 0xbee,
        write_mode: WriteMode::Through,
    }
}

fn write(value: &str) -> Write {
    Write {
        value: Bytes::copy_from_slice(value.as_bytes()),
        expires: None,
        condition: Condition::Always,
        ack: Ack::Default,
    }
}

fn removal(condition: Condition) -> Removal {
    Removal { condition, ack: Ack::Default }
}

/// A shard, its store and its clock.
struct World {
    shard: Rc<Shard<Script>>,
    store: Script,
    now_ms: Cell<u64>,
}

fn world() -> World {
    world_with(settings())
}

fn world_with(settings: ShardSettings) -> World {
    let store = Script::default();
    World { shard: Shard::new(settings, Some(store.clone())), store, now_ms: Cell::new(1_000_000) }
}

fn world_without_store() -> World {
    World { shard: Shard::new(settings(), None), store: Script::default(), now_ms: Cell::new(1_000_000) }
}

impl World {
    fn now(&self) -> Timestamp {
        Timestamp(self.now_ms.get())
    }

    fn pass_ms(&self, ms: u64) {
        self.now_ms.set(self.now_ms.get() + ms);
    }

    fn start_get(&self, name: &str) -> Started<Answer> {
        Started::new(self.shard.get(key(name).as_ref(), self.now()))
    }

    fn start_put(&self, name: &str, write: Write) -> Started<Result<Version, Refusal>> {
        Started::new(self.shard.put(key(name), write, self.now()))
    }

    fn start_delete(&self, name: &str, condition: Condition) -> Started<Result<(), Refusal>> {
        Started::new(self.shard.delete(key(name), removal(condition), self.now()))
    }

    fn get(&self, name: &str) -> Option<Bytes> {
        value(self.start_get(name).finish())
    }

    fn source(&self, name: &str) -> Option<Source> {
        self.start_get(name).finish().unwrap().map(|hit| hit.source)
    }

    fn put(&self, name: &str, value: &str) {
        self.start_put(name, write(value)).finish().unwrap();
    }

    /// Nothing is in the air and nobody waits.
    fn is_quiet(&self) -> bool {
        self.store.in_the_air_count() == 0 && self.shard.keys_in_flight() == 0
    }
}

fn value(answer: Answer) -> Option<Bytes> {
    answer.unwrap().map(|hit| hit.entry.value)
}

fn unavailable() -> Cause {
    Cause::Unavailable("the store is away".into())
}

fn unknown() -> Cause {
    Cause::OutcomeUnknown("the connection broke".into())
}

fn some(text: &'static str) -> Option<Bytes> {
    Some(Bytes::from_static(text.as_bytes()))
}

#[test]
fn the_first_reader_asks_the_store_and_the_next_does_not() {
    let world = world();
    world.store.set("a", "1");
    assert_eq!(world.source("a"), Some(Source::Store));
    assert_eq!(world.source("a"), Some(Source::Memory));
    assert_eq!(world.store.get_count(), 1);
    assert!(world.is_quiet());
    let stats = world.shard.report();
    assert_eq!((stats.hits_memory, stats.hits_store, stats.misses), (1, 1, 0));
    assert_eq!(stats.memory.entries, 1);
}

#[test]
fn two_hits_share_one_copy_of_the_value() {
    let world = world();
    world.put("a", "1");
    let [one, other] = [world.get("a"), world.get("a")].map(Option::unwrap);
    assert_eq!(one.as_ptr(), other.as_ptr());
}

#[test]
fn a_value_is_read_by_those_who_come_after_its_put() {
    let world = world();
    world.put("a", "1");
    assert_eq!(world.get("a"), some("1"));
    assert_eq!(world.store.has("a"), some("1"));
    assert_eq!(world.store.get_count(), 0);
    world.start_delete("a", Condition::Always).finish().unwrap();
    assert_eq!(world.get("a"), None);
    assert_eq!(world.store.has("a"), None);
}

#[test]
fn a_put_is_not_done_and_not_seen_before_the_store_has_it() {
    let world = world();
    world.put("a", "old");
    world.store.hold_write("a");
    let mut put = world.start_put("a", write("new"));
    assert!(!put.is_done());
    assert_eq!(world.get("a"), some("old"));
    world.store.release_write("a");
    assert_eq!(put.finish().unwrap(), version_of(b"new"));
    assert_eq!(world.get("a"), some("new"));
}

#[test]
fn a_thousand_readers_who_miss_one_key_are_one_get() {
    let world = world();
    world.store.hold_get("a");
    let readers: Vec<_> = (0..1_000).map(|_| world.start_get("a")).collect();
    world.store.release_get("a", Some("1"));
    for reader in readers {
        assert_eq!(value(reader.finish()), some("1"));
    }
    assert_eq!(world.store.get_count(), 1);
    assert_eq!(world.shard.report().coalesced, 999);
    assert!(world.is_quiet());
}

#[test]
fn readers_of_different_keys_do_not_wait_for_each_other() {
    let world = world();
    world.store.hold_get("slow");
    world.store.set("quick", "1");
    let mut slow = world.start_get("slow");
    assert_eq!(world.get("quick"), some("1"));
    assert!(!slow.is_done());
}

// Rule G.
#[test]
fn a_write_that_overtakes_a_fetch_wins() {
    let world = world();
    world.store.hold_get("a");
    let fetch = world.start_get("a");
    world.put("a", "new");
    world.store.release_get("a", Some("old"));
    assert_eq!(value(fetch.finish()), some("new")); // so that nobody sees it before somebody who sees the old
    assert_eq!(world.get("a"), some("new")); // and the fetch left nothing old behind
}

// Rule G.
#[test]
fn a_fetch_that_begins_during_a_write_leaves_nothing_behind() {
    let world = world();
    world.store.hold_get("a");
    world.store.hold_write("a");
    let put = world.start_put("a", write("new"));
    let fetch = world.start_get("a");
    world.store.release_write("a");
    put.finish().unwrap();
    world.store.release_get("a", Some("old")); // the store answered it before the write
    fetch.finish().unwrap();
    assert_eq!(world.get("a"), some("new"));
}

// Rule G, with an entry in memory that the fetch did not put there.
#[test]
fn a_fetch_that_sees_a_write_in_the_air_does_not_tell_before_memory_does() {
    let world = world();
    world.store.hold_get("a");
    let fetch = world.start_get("a");
    world.put("a", "1");
    world.store.hold_write("a");
    let put = world.start_put("a", write("2"));
    world.store.set("a", "2"); // the store has it, and has not said so
    world.store.release_get_as_it_is("a");
    assert_eq!(value(fetch.finish()), some("1"));
    assert_eq!(world.get("a"), some("1"), "after a 2 it could not be a 1");
    world.store.release_write("a");
    put.finish().unwrap();
    assert_eq!(world.get("a"), some("2"));
}

// Rule G.
#[test]
fn a_fetch_that_finds_nothing_does_not_hide_what_was_written_meanwhile() {
    let world = world();
    world.store.hold_get("a");
    let fetch = world.start_get("a");
    world.store.hold_write("a");
    let put = world.start_put("a", write("new"));
    world.store.lose_write("a"); // memory does not have it, the store does
    assert!(put.finish().is_err());
    world.store.release_get("a", None);
    assert_eq!(value(fetch.finish()), None);

    let reader = world.start_get("a");
    world.store.release_get_as_it_is("a");
    assert_eq!(value(reader.finish()), some("new"));
}

// Rule F.
#[test]
fn a_reader_who_comes_after_a_write_does_not_share_a_fetch_from_before_it() {
    let world = world();
    world.store.hold_get("a");
    let early = world.start_get("a");
    let large = "x".repeat(BUDGET_BYTES_MIN / 64 + 1); // memory does not take it
    world.put("a", &large);
    let mut late = world.start_get("a");
    let mut later = world.start_get("a");
    assert_eq!(world.store.get_count(), 1, "one fetch at a time");

    world.store.release_get("a", Some("old"));
    assert_eq!(value(early.finish()), some("old"));
    assert!(!late.is_done() && !later.is_done());
    assert_eq!(world.store.get_count(), 2, "those who came after the write share the next");
    world.store.release_get_as_it_is("a");
    assert_eq!(value(late.finish()).unwrap(), large);
    assert_eq!(value(later.finish()).unwrap(), large);
    assert!(world.is_quiet());
}

#[test]
fn a_reader_who_comes_during_a_write_may_share_the_fetch() {
    let world = world();
    world.store.hold_get("a");
    world.store.hold_write("a");
    let one = world.start_get("a");
    let put = world.start_put("a", write("new"));
    let other = world.start_get("a");
    world.store.release_get("a", Some("old"));
    assert_eq!([one, other].map(|reader| value(reader.finish())), [some("old"), some("old")]);
    assert_eq!(world.store.get_count(), 1);
    world.store.release_write("a");
    put.finish().unwrap();
}

#[test]
fn readers_of_the_next_fetch_find_what_a_write_left_in_memory() {
    let world = world();
    world.store.hold_get("a");
    world.store.hold_write("a");
    let early = world.start_get("a");
    let lost = world.start_put("a", write("lost"));
    world.store.lose_write("a");
    assert!(lost.finish().is_err());
    let late = world.start_get("a");
    let put = world.start_put("a", write("new"));
    world.store.release_write("a");
    put.finish().unwrap();
    world.store.fail_get("a", unavailable());
    assert_eq!([early, late].map(|reader| value(reader.finish())), [some("new"), some("new")]);
    assert_eq!(world.store.get_count(), 1, "the second fetch was not needed");
}

#[test]
fn a_leader_who_goes_away_leaves_the_lead_to_the_next() {
    let world = world();
    world.store.hold_get("a");
    let leader = world.start_get("a");
    let mut followers: Vec<_> = (0..3).map(|_| world.start_get("a")).collect();
    drop(leader);
    drop(followers.remove(0)); // it was told to lead, and never knew
    assert!(!followers[0].is_done() && !followers[1].is_done());
    world.store.release_get("a", Some("abandoned"));
    world.store.release_get("a", Some("1"));
    for follower in followers {
        assert_eq!(value(follower.finish()), some("1"));
    }
    assert_eq!(world.get("a"), some("1"));
    assert!(world.is_quiet());
}

#[test]
fn readers_who_all_go_away_leave_nothing_in_the_air() {
    let world = world();
    world.store.hold_get("a");
    let readers: Vec<_> = (0..3).map(|_| world.start_get("a")).collect();
    drop(readers);
    assert_eq!(world.shard.keys_in_flight(), 0);
}

#[test]
fn a_store_that_cannot_be_asked_is_an_error_for_all_who_wait_and_for_nobody_after() {
    let world = world();
    world.store.hold_get("a");
    let readers = [world.start_get("a"), world.start_get("a")];
    world.store.fail_get("a", unavailable());
    for reader in readers {
        let refusal = Refusal::Store(Error { operation: Operation::Get, cause: unavailable() });
        assert_eq!(reader.finish(), Err(refusal));
    }
    let reader = world.start_get("a");
    world.store.release_get("a", Some("1"));
    assert_eq!(value(reader.finish()), some("1"));
}

#[test]
fn writes_of_one_key_run_in_order_and_one_at_a_time() {
    let world = world();
    world.store.hold_write("a");
    let mut puts: Vec<_> = ["1", "2", "3"].map(|value| world.start_put("a", write(value))).into();
    let mut delete = world.start_delete("a", Condition::IfVersion(version_of(b"3")));
    for (index, value) in ["1", "2", "3"].into_iter().enumerate() {
        assert_eq!(world.store.write_count(), index + 1);
        world.store.release_write("a");
        assert!(puts[index].is_done());
        assert_eq!(world.store.has("a").unwrap(), value);
        assert!(puts[index + 1..].iter_mut().all(|put| !put.is_done()));
        assert!(!delete.is_done());
    }
    world.store.release_write("a");
    delete.finish().unwrap();
    assert_eq!(world.store.has("a"), None);
    assert!(world.is_quiet());
}

#[test]
fn writes_of_other_keys_do_not_wait() {
    let world = world();
    world.store.hold_write("a");
    let mut put = world.start_put("a", write("1"));
    world.put("b", "2");
    assert!(!put.is_done());
}

#[test]
fn a_write_whose_caller_goes_away_before_its_turn_is_never_sent() {
    let world = world();
    world.store.hold_write("a");
    let first = world.start_put("a", write("1"));
    let second = world.start_put("a", write("2"));
    let mut third = world.start_put("a", write("3"));
    drop(second);
    world.store.release_write("a");
    first.finish().unwrap();
    assert!(!third.is_done());
    world.store.release_write("a");
    third.finish().unwrap();
    assert_eq!(world.store.write_count(), 2);
    assert!(world.is_quiet());
}

#[test]
fn a_write_that_is_dropped_in_the_air_makes_memory_forget_and_lets_the_next_begin() {
    let world = world();
    world.put("a", "old");
    world.store.hold_write("a");
    let dropped = world.start_put("a", write("1"));
    let mut next = world.start_put("a", write("2"));
    drop(dropped);
    assert!(!next.is_done());
    world.store.hold_get("a");
    let mut reader = world.start_get("a");
    assert!(!reader.is_done(), "nobody knows what the store has");
    world.store.release_write("a"); // the one that was dropped: it was sent
    world.store.release_write("a");
    next.finish().unwrap();
    assert_eq!(world.get("a"), some("2"));
}

#[test]
fn a_write_that_fails_or_whose_outcome_is_unknown_makes_memory_forget() {
    for cause in [unavailable(), unknown(), Cause::VersionMismatch] {
        let world = world();
        world.put("a", "old");
        world.store.hold_write("a");
        let put = world.start_put("a", write("new"));
        world.store.fail_write("a", cause.clone());
        assert_eq!(put.finish(), Err(Refusal::Store(Error { operation: Operation::Put, cause })));
        assert_eq!(world.source("a"), Some(Source::Store));
        assert!(world.is_quiet());
    }
}

#[test]
fn a_write_that_was_never_sent_leaves_memory_as_it_is() {
    let world = world();
    world.put("a", "old");
    world.store.hold_write("a");
    let put = world.start_put("a", write("new"));
    world.store.fail_write("a", Cause::Busy);
    assert!(put.finish().is_err());
    assert_eq!(world.source("a"), Some(Source::Memory));
}

#[test]
fn a_key_that_was_absent_is_not_asked_for_again_for_a_moment() {
    let world = world();
    assert_eq!(world.get("a"), None);
    world.store.set("a", "1"); // by somebody else
    world.pass_ms(999);
    assert_eq!(world.get("a"), None);
    assert_eq!(world.store.get_count(), 1);
    world.pass_ms(1);
    assert_eq!(world.get("a"), some("1"));
    assert_eq!(world.shard.report().misses, 2);
}

#[test]
fn a_put_ends_an_absence_also_when_nobody_knows_what_became_of_it() {
    let world = world();
    assert_eq!(world.get("a"), None);
    world.put("a", "1");
    assert_eq!(world.get("a"), some("1"));

    assert_eq!(world.get("b"), None);
    world.store.hold_write("b");
    let put = world.start_put("b", write("1"));
    world.store.lose_write("b");
    assert!(put.finish().is_err());
    assert_eq!(world.get("b"), some("1"));
}

#[test]
fn a_copy_that_the_store_confirms_is_believed_again() {
    let world = world();
    world.put("a", "1");
    world.pass_ms(59_000);
    assert_eq!(world.source("a"), Some(Source::Memory));
    world.pass_ms(1_000);
    assert_eq!(world.source("a"), Some(Source::Store));
    assert_eq!(world.source("a"), Some(Source::Memory));
    assert_eq!(world.store.get_count(), 1);
    assert_eq!(world.shard.report().revalidated, 1);
}

#[test]
fn a_copy_that_the_store_does_not_confirm_is_replaced() {
    let world = world();
    world.put("a", "1");
    world.put("b", "1");
    world.store.set("a", "2");
    world.store.remove("b");
    world.pass_ms(60_000);
    assert_eq!([world.get("a"), world.get("b")], [some("2"), None]);
    assert_eq!(world.source("a"), Some(Source::Memory));
    assert_eq!(world.get("b"), None);
    assert_eq!(world.store.get_count(), 2);
}

#[test]
fn a_copy_that_is_no_longer_believed_is_not_answered_with_while_the_store_is_away() {
    let world = world();
    world.put("a", "1");
    world.pass_ms(60_000);
    world.store.hold_get("a");
    let reader = world.start_get("a");
    world.store.fail_get("a", unavailable());
    assert!(reader.finish().is_err());
    let reader = world.start_get("a");
    world.store.release_get_as_it_is("a");
    assert_eq!(value(reader.finish()), some("1"));
}

#[test]
fn a_copy_seen_to_be_old_while_a_write_is_in_the_air_is_forgotten() {
    let world = world();
    world.put("a", "1");
    world.pass_ms(60_000);
    world.store.hold_write("a");
    let put = world.start_put("a", write("3"));
    world.store.set("a", "2");
    assert_eq!(world.get("a"), some("2"));
    world.now_ms.set(0); // the clock jumps back: the copy would be believed again
    assert_eq!(world.get("a"), some("2"));
    world.store.release_write("a");
    put.finish().unwrap();
    assert_eq!(world.get("a"), some("3"));
}

#[test]
fn a_write_during_a_revalidation_is_what_is_read_afterwards() {
    let world = world();
    world.put("a", "1");
    world.pass_ms(60_000);
    world.store.hold_get("a");
    let reader = world.start_get("a");
    world.put("a", "2");
    world.store.release_get("a", Some("1"));
    assert_eq!(value(reader.finish()), some("2"));
    assert_eq!(world.get("a"), some("2"));
}

// Rule T.
#[test]
fn after_a_tenure_a_copy_is_asked_for_before_it_is_answered() {
    let world = world();
    world.put("same", "1");
    world.put("replaced", "1");
    world.put("removed", "1");
    world.store.set("replaced", "2"); // by another node, while this one was no member
    world.store.remove("removed");
    assert_eq!(world.get("replaced"), some("1"));
    world.shard.end_tenure();
    assert_eq!(world.source("same"), Some(Source::Store));
    assert_eq!(world.source("same"), Some(Source::Memory), "confirmed once is enough");
    assert_eq!(world.get("replaced"), some("2"));
    assert_eq!(world.get("removed"), None);
}

// Rule T.
#[test]
fn what_was_asked_of_the_store_before_a_tenure_ended_fills_nothing_and_is_not_shared_after_it() {
    let world = world();
    world.store.hold_get("a");
    let before = world.start_get("a");
    world.shard.end_tenure();
    let mut after = world.start_get("a");
    world.store.release_get("a", Some("old"));
    assert_eq!(value(before.finish()), some("old"));
    world.store.set("a", "new");
    assert!(!after.is_done(), "it waits for the next answer");
    world.store.release_get_as_it_is("a");
    assert_eq!(value(after.finish()), some("new"));
    assert_eq!(world.get("a"), some("new"));
}

// Rule T.
#[test]
fn a_write_that_was_under_way_when_a_tenure_ended_leaves_nothing_in_memory() {
    let world = world();
    world.store.hold_write("a");
    let put = world.start_put("a", write("1"));
    world.shard.end_tenure();
    world.store.release_write("a");
    put.finish().unwrap();
    world.store.set("a", "2"); // by another node, after ours
    assert_eq!(world.get("a"), some("2"));
}

#[test]
fn without_a_store_a_tenure_that_ends_changes_nothing() {
    let world = world_without_store();
    world.put("a", "1");
    world.shard.end_tenure();
    assert!(!world.shard.follow(table(1, "a")) && !world.shard.follow(table(3, "ab")));
    assert_eq!(world.get("a"), some("1"));
}

/// The table of an epoch whose slots have these nodes, as node `a` reads it.
fn table(epoch: u64, nodes: &str) -> Arc<View> {
    let slots = nodes.chars().map(|name| Slot { node_id: name.into(), weight: u32::MAX, ..Slot::default() });
    Arc::new(View::read(&TopologyResponse { epoch, slots: slots.collect() }, "a"))
}

/// A key of node `a` that becomes node `b`'s where `b` is in the table, and one that stays.
fn key_that_moves_and_key_that_stays() -> (String, String) {
    let both = table(0, "ab");
    let find = |moves: bool| {
        let names = (0..100).map(|number| format!("k-{number}"));
        names.into_iter().find(|name| both.owns(key(name).hash()) != moves).expect("each has half of the keys")
    };
    (find(true), find(false))
}

// Rule T.
#[test]
fn a_key_that_went_away_and_came_back_is_asked_for_and_one_that_stayed_is_not() {
    let world = world();
    let (moving, staying) = key_that_moves_and_key_that_stays();
    world.shard.follow(table(1, "a"));
    world.put(&moving, "1");
    world.put(&staying, "1");
    world.shard.follow(table(2, "ab"));
    world.store.set(&moving, "2"); // by the other node, whose key it is now
    assert!(world.shard.follow(table(3, "a")), "there is something to walk for");
    assert_eq!(world.get(&moving), some("2"));
    assert_eq!(world.source(&staying), Some(Source::Memory));
    while world.shard.walk_gained() {}
    assert_eq!(world.source(&moving), Some(Source::Store), "confirmed before the walk, it is asked for once more");
    assert_eq!(world.source(&moving), Some(Source::Memory));
    assert_eq!(world.source(&staying), Some(Source::Memory));
}

// Rule T.
#[test]
fn after_the_walk_nothing_old_is_believed_though_nobody_asked_for_it_meanwhile() {
    let world = world();
    let (moving, _) = key_that_moves_and_key_that_stays();
    world.shard.follow(table(1, "a"));
    world.put(&moving, "1");
    for epoch in [2, 4, 6] {
        world.shard.follow(table(epoch, "ab"));
        world.store.set(&moving, &epoch.to_string());
        world.shard.follow(table(epoch + 1, "a"));
        while world.shard.walk_gained() {}
    }
    assert_eq!(world.get(&moving), some("6"));
}

// Rule T.
#[test]
fn when_tables_were_missed_any_key_may_have_been_away() {
    let world = world();
    let (moving, staying) = key_that_moves_and_key_that_stays();
    world.shard.follow(table(1, "a"));
    world.put(&moving, "1");
    world.put(&staying, "1");
    world.store.set(&moving, "2"); // while a table was in force that this node has not seen
    assert!(!world.shard.follow(table(3, "a")), "all are doubted, so there is nothing to look for");
    assert_eq!(world.get(&moving), some("2"));
    assert_eq!(world.source(&staying), Some(Source::Store));
}

// Rule T.
#[test]
fn a_copy_from_before_the_key_was_ours_is_asked_for() {
    let world = world();
    let (moving, _) = key_that_moves_and_key_that_stays();
    world.shard.follow(table(1, "ab"));
    world.put(&moving, "1"); // asked at the common port, where any key is answered
    world.store.set(&moving, "2"); // by its owner
    world.shard.follow(table(2, "a"));
    assert_eq!(world.get(&moving), some("2"));
}

#[test]
fn a_value_past_its_life_is_a_miss_also_if_the_store_still_has_it() {
    let world = world();
    world.store.set_entry("a", Entry { expires: Some(world.now().plus_ms(10)), ..entry("1") });
    let hit = world.start_get("a").finish().unwrap().unwrap();
    assert_eq!(hit.ttl_ms(world.now()), 10);
    world.pass_ms(9);
    assert_eq!(world.source("a"), Some(Source::Memory));
    world.pass_ms(1);
    assert_eq!(world.get("a"), None);
    assert_eq!(world.shard.memory_figures().entries, 0);
}

#[test]
fn a_follower_with_a_later_clock_does_not_get_a_value_past_its_life() {
    let world = world();
    world.store.set_entry("a", Entry { expires: Some(world.now().plus_ms(10)), ..entry("1") });
    world.store.hold_get("a");
    let leader = world.start_get("a");
    world.pass_ms(10);
    let follower = world.start_get("a");
    world.store.release_get_as_it_is("a");
    assert_eq!(value(leader.finish()), some("1"));
    assert_eq!(value(follower.finish()), None);
}

#[test]
fn a_value_with_a_life_is_put_with_it() {
    let world = world();
    let expires = Some(world.now().plus_ms(5));
    world.start_put("a", Write { expires, ..write("1") }).finish().unwrap();
    let Some(Hit { entry, .. }) = world.start_get("a").finish().unwrap() else { panic!("it is there") };
    assert_eq!(entry.expires, expires);
    assert!(!world.shard.sweep(Timestamp(world.now_ms.get() + 10_000)));
    assert_eq!(world.shard.memory_figures().entries, 0);
}

#[test]
fn conditions_are_the_stores_to_check() {
    let world = world();
    world.store.set("a", "1");
    let wrong = Condition::IfVersion(version_of(b"0"));
    let refused = |cause| Err(Refusal::Store(Error { operation: Operation::Put, cause }));
    let put = |condition: &Condition, value| {
        world.start_put("a", Write { condition: condition.clone(), ..write(value) }).finish()
    };
    assert_eq!(put(&wrong, "2"), refused(Cause::VersionMismatch));
    assert_eq!(put(&Condition::IfAbsent, "2"), refused(Cause::AlreadyExists));
    assert_eq!(world.get("a"), some("1"));
    assert_eq!(put(&Condition::IfVersion(version_of(b"1")), "2"), Ok(version_of(b"2")));
    let error = Error { operation: Operation::Delete, cause: Cause::VersionMismatch };
    assert_eq!(world.start_delete("a", wrong).finish(), Err(Refusal::Store(error)));
    assert_eq!(world.get("a"), some("2"));
}

#[test]
fn levels_of_acknowledgement_that_are_not_to_be_had_are_refused_and_nothing_is_written() {
    let (through, alone) = (world(), world_without_store());
    for (world, ack, is_given) in [
        (&through, Ack::Default, true),
        (&through, Ack::S3, true),
        (&through, Ack::Disk, false),
        (&through, Ack::Memory, false),
        (&alone, Ack::Default, true),
        (&alone, Ack::Memory, true),
        (&alone, Ack::S3, false),
        (&alone, Ack::Disk, false),
    ] {
        let name = ack.as_str_name();
        let put = world.start_put(name, Write { ack, ..write("1") }).finish();
        assert_eq!(put.is_ok(), is_given, "{name}");
        assert_eq!(world.get(name).is_some(), is_given, "{name}");
        let delete =
            Started::new(world.shard.delete(key(name), Removal { ack, ..removal(Condition::Always) }, world.now()))
                .finish();
        assert_eq!(delete.is_ok(), is_given, "{name}");
        if !is_given {
            let has_store = Rc::ptr_eq(&world.shard, &through.shard);
            assert_eq!(put, Err(Refusal::AckNotGiven { ack, has_store, has_log: false }));
        }
    }
}

#[test]
fn without_a_store_memory_is_all_there_is() {
    let world = world_without_store();
    assert_eq!(world.get("a"), None);
    let first = world.start_put("a", write("1")).finish().unwrap();
    assert_eq!(world.source("a"), Some(Source::Memory));
    world.pass_ms(10 * 60_000);
    assert_eq!(world.get("a"), some("1"), "there is nobody to ask whether it is still so");

    let put = |condition, value| world.start_put("a", Write { condition, ..write(value) }).finish();
    let refused = |operation, cause| Refusal::Store(Error { operation, cause });
    assert_eq!(put(Condition::IfAbsent, "2"), Err(refused(Operation::Put, Cause::AlreadyExists)));
    let second = put(Condition::IfVersion(first.clone()), "2").unwrap();
    assert_ne!(first, second);
    let mismatch = refused(Operation::Put, Cause::VersionMismatch);
    assert_eq!(put(Condition::IfVersion(first.clone()), "3"), Err(mismatch));
    let delete = |condition| world.start_delete("a", condition).finish();
    assert_eq!(delete(Condition::IfVersion(first)), Err(refused(Operation::Delete, Cause::VersionMismatch)));
    assert_eq!(world.get("a"), some("2"));
    assert_eq!(delete(Condition::IfVersion(second)), Ok(()));
    assert_eq!(world.get("a"), None);
    assert!(put(Condition::IfAbsent, "4").is_ok());
}

#[test]
fn without_a_store_a_value_too_large_for_memory_is_refused_and_the_old_one_stays() {
    let world = world_without_store();
    world.put("a", "1");
    let bytes_max = BUDGET_BYTES_MIN / 64;
    let refused = world.start_put("a", write(&"x".repeat(bytes_max + 1))).finish();
    assert_eq!(refused, Err(Refusal::ValueTooLarge { bytes: bytes_max + 1, bytes_max }));
    assert_eq!(world.get("a"), some("1"));
}

#[test]
fn every_limit_says_no_at_once_and_yes_again_when_there_is_room() {
    let world = world();
    world.store.hold_all();
    let mut readers: Vec<_> = (0..=READERS_PER_KEY_MAX).map(|_| world.start_get("a")).collect();
    assert_eq!(world.start_get("a").finish(), Err(Refusal::Limit(Limit::ReadersOfKey)));
    readers.pop();
    readers.push(world.start_get("a"));
    assert!(!readers.last_mut().unwrap().is_done());

    let mut writers: Vec<_> = (0..=INFLIGHT_WRITES_PER_KEY_MAX).map(|_| world.start_put("a", write("1"))).collect();
    assert_eq!(world.start_put("a", write("1")).finish(), Err(Refusal::Limit(Limit::WritesOfKey)));
    writers.pop();
    writers.push(world.start_put("a", write("1")));
    assert!(!writers.last_mut().unwrap().is_done());

    let mut others: Vec<_> = (1..KEYS_IN_FLIGHT_MAX).map(|number| world.start_get(&format!("k{number}"))).collect();
    assert_eq!(world.start_get("b").finish(), Err(Refusal::Limit(Limit::KeysInFlight)));
    assert_eq!(world.start_put("b", write("1")).finish(), Err(Refusal::Limit(Limit::KeysInFlight)));
    others.pop();
    assert!(!world.start_get("b").is_done());
}
