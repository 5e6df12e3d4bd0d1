//! Many keys at once: one message to each core, results by index, failures each for itself.

use milena_core::{
    batch::{Change, Changed, Failure, Found, READS_MAX, WRITES_MAX},
    message::MESH_TICKETS_MAX,
    shard::{Limit, Refusal, Source},
};
use milena_storage::{Cause, Condition};

use super::{
    mesh::{NOW, Node, node, owned_by},
    removal,
    script::{Started, key, version_of},
    unavailable, write,
};

const BYTES_MAX: usize = 1 << 20;

impl Node {
    fn start_get_many(&self, core: usize, names: &[&str], bytes_max: usize) -> Started<Result<Found, Failure>> {
        let keys = names.iter().map(|name| key(name)).enumerate().collect();
        Started::new(self.cores[core].shards.get_many(keys, NOW, bytes_max))
    }

    fn start_write_many(&self, core: usize, changes: Vec<Change>) -> Started<Vec<(usize, Changed)>> {
        let changes = changes.into_iter().enumerate().collect();
        Started::new(self.cores[core].shards.write_many(changes, NOW))
    }

    fn forwarded(&self) -> Vec<u64> {
        self.cores.iter().map(|core| core.shards.mine().report().forwarded).collect()
    }
}

fn put(name: &str, value: &str) -> Change {
    Change::Put(key(name), write(value))
}

/// Answers what `batch` asks of the store, one by one; it never asks for more than `most` at a time.
fn work_on_all<T>(node: &mut Node, batch: &mut Started<T>, most: usize) {
    while node.store.in_the_air_count() > 0 {
        node.store.work_on(0);
        node.store.answer(0, false);
        batch.is_done();
        node.turn();
        assert!(node.store.in_the_air_count() <= most);
    }
}

/// The values by index.
fn values(found: Result<Found, Failure>) -> Vec<Option<String>> {
    let mut found = found.unwrap();
    found.sort_by_key(|(index, _)| *index);
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
    let value = |(expected, (index, hit)): (usize, (usize, Option<milena_core::shard::Hit>))| {
        assert_eq!(index, expected, "each index once");
        hit.map(|hit| text(&hit.entry.value))
    };
    found.into_iter().enumerate().map(value).collect()
}

/// The outcomes by index.
fn outcomes(mut changed: Vec<(usize, Changed)>) -> Vec<Changed> {
    changed.sort_by_key(|(index, _)| *index);
    assert!(changed.iter().enumerate().all(|(expected, (index, _))| expected == *index), "each index once");
    changed.into_iter().map(|(_, outcome)| outcome).collect()
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn a_batch_of_three_cores_is_two_messages_and_its_values_are_told_apart_by_their_indexes() {
    let mut node = node(3);
    let names: Vec<String> = (0..12).map(|number| owned_by(number % 3, 3, number / 3)).collect();
    names.iter().skip(1).for_each(|name| node.store.set(name, name));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for _ in 0..2 {
        let batch = node.start_get_many(0, &names, BYTES_MAX);
        node.turn();
        let expected: Vec<_> = names.iter().enumerate().map(|(index, name)| some(name).filter(|_| index > 0)).collect();
        assert_eq!(values(batch.finish()), expected);
    }
    assert_eq!(node.forwarded(), [4, 0, 0], "one message to each of two cores, twice");
    assert_eq!(node.store.get_count(), 12, "the second time all is known");
    let counted = node.cores.iter().map(|core| core.shards.mine().report());
    let (memory, store, misses) = counted
        .fold((0, 0, 0), |sum, stats| (sum.0 + stats.hits_memory, sum.1 + stats.hits_store, sum.2 + stats.misses));
    assert_eq!((memory, store, misses), (11, 11, 2), "each key is counted");
}

#[test]
fn the_same_key_several_times_is_fetched_once_and_found_each_time() {
    let mut node = node(2);
    let name = owned_by(1, 2, 0);
    node.store.set(&name, "1");
    let batch = node.start_get_many(0, &[&name, &name, &name], BYTES_MAX);
    node.turn();
    assert_eq!(values(batch.finish()), [some("1"), some("1"), some("1")]);
    assert_eq!(node.store.get_count(), 1);
}

#[test]
fn one_key_that_cannot_be_read_is_the_failure_of_the_batch_and_never_a_miss() {
    for core in 0..2 {
        let mut node = node(2);
        let (good, bad) = (owned_by(core, 2, 0), owned_by(core, 2, 1));
        node.store.set(&good, "1");
        node.store.hold_get(&bad);
        let batch = node.start_get_many(0, &[&good, &bad], BYTES_MAX);
        node.turn();
        node.store.fail_get(&bad, unavailable());
        node.turn();
        match batch.finish() {
            Err(Failure::Key { key: failed, refusal: Refusal::Store(error) }) => {
                assert_eq!((failed, error.cause), (key(&bad), unavailable()));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn no_more_reads_of_a_batch_wait_at_a_time_than_there_may() {
    for core in 0..2 {
        let mut node = node(2);
        let names: Vec<String> = (0..READS_MAX + 10).map(|number| owned_by(core, 2, number)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        node.store.hold_all();
        let mut batch = node.start_get_many(0, &names, BYTES_MAX);
        node.turn();
        assert_eq!(node.store.get_count(), READS_MAX);
        work_on_all(&mut node, &mut batch, READS_MAX);
        assert_eq!(values(batch.finish()), vec![None; READS_MAX + 10]);
    }
}

#[test]
fn a_batch_whose_caller_has_gone_asks_for_nothing_more_on_any_core() {
    for core in 0..2 {
        let mut node = node(2);
        let names: Vec<String> = (0..2 * READS_MAX).map(|number| owned_by(core, 2, number)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        node.store.hold_all();
        let batch = node.start_get_many(0, &names, BYTES_MAX);
        node.turn();
        drop(batch);
        while node.store.in_the_air_count() > 0 {
            node.store.work_on(0);
            node.store.answer(0, false);
            node.turn();
        }
        assert_eq!(node.store.get_count(), READS_MAX, "core {core}");
        assert_eq!(node.cores[core].shards.mine().keys_in_flight(), 0, "core {core}");
    }
}

#[test]
fn values_of_more_bytes_than_one_answer_may_have_end_the_batch_wherever_they_lie() {
    for core in 0..2 {
        let mut node = node(2);
        let names: Vec<String> = (0..5).map(|number| owned_by(core, 2, number)).collect();
        names.iter().for_each(|name| node.store.set(name, &"v".repeat(100)));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for _ in 0..2 {
            let batch = node.start_get_many(0, &names, 499);
            node.turn();
            assert_eq!(batch.finish(), Err(Failure::AnswerTooLarge), "from the store, then from memory");
        }
        let batch = node.start_get_many(0, &names, 500);
        node.turn();
        assert_eq!(values(batch.finish()).len(), 5);
    }
}

#[test]
fn each_write_of_a_batch_has_its_own_outcome() {
    for core in 0..2 {
        let mut node = node(2);
        let names: Vec<String> = (0..4).map(|number| owned_by(core, 2, number)).collect();
        let [first, held, failed, gone] = [0, 1, 2, 3].map(|number| names[number].as_str());
        node.store.set(held, "old");
        node.store.hold_write(failed);
        let mut if_absent = write("new");
        if_absent.condition = Condition::IfAbsent;
        let changes = vec![
            put(first, "1"),
            Change::Put(key(held), if_absent),
            put(failed, "3"),
            Change::Delete(key(gone), removal(Condition::Always)),
        ];
        let mut batch = node.start_write_many(0, changes);
        node.turn();
        assert!(!batch.is_done());
        node.store.lose_write(failed);
        node.turn();
        let outcomes = outcomes(batch.finish());
        assert_eq!(outcomes[0], Ok(Some(version_of(b"1"))));
        assert!(matches!(&outcomes[1], Err(Refusal::Store(error)) if error.cause == Cause::AlreadyExists));
        assert!(matches!(&outcomes[2], Err(Refusal::Store(error)) if matches!(error.cause, Cause::OutcomeUnknown(_))));
        assert_eq!(outcomes[3], Ok(None));
        assert_eq!(node.get(0, first).unwrap().unwrap().source, Source::Memory);
        assert_eq!(node.store.has(held).as_deref(), Some(&b"old"[..]));
    }
}

#[test]
fn writes_of_one_key_are_done_in_the_order_of_the_batch_one_after_the_other() {
    for core in 0..2 {
        let mut node = node(2);
        let (name, other) = (owned_by(core, 2, 0), owned_by(core, 2, 1));
        node.store.hold_write(&name);
        let changes = vec![
            put(&name, "1"),
            put(&other, "o"),
            Change::Delete(key(&name), removal(Condition::Always)),
            put(&name, "3"),
        ];
        let mut batch = node.start_write_many(0, changes);
        node.turn();
        for _ in 0..3 {
            assert!(!batch.is_done());
            assert_eq!(node.store.in_the_air_count(), 1, "the next begins when the one before it has ended");
            node.store.release_write(&name);
            batch.is_done();
            node.turn();
        }
        let outcomes = outcomes(batch.finish());
        let versions = [Ok(Some(version_of(b"1"))), Ok(Some(version_of(b"o"))), Ok(None), Ok(Some(version_of(b"3")))];
        assert_eq!(outcomes, versions);
        assert_eq!(node.store.has(&name).as_deref(), Some(&b"3"[..]));
    }
}

#[test]
fn a_write_that_fails_does_not_keep_the_next_one_of_its_key_from_being_done() {
    let mut node = node(1);
    node.store.hold_write("a");
    let mut batch = node.start_write_many(0, vec![put("a", "1"), put("a", "2")]);
    node.store.fail_write("a", unavailable());
    batch.is_done();
    node.store.release_write("a");
    node.turn();
    let outcomes = outcomes(batch.finish());
    assert!(outcomes[0].is_err());
    assert_eq!(outcomes[1], Ok(Some(version_of(b"2"))));
}

#[test]
fn no_more_writes_of_a_batch_are_under_way_than_there_may() {
    let mut node = node(1);
    node.store.hold_all();
    let changes = (0..WRITES_MAX + 10).map(|number| put(&format!("k{number}"), "v")).collect();
    let mut batch = node.start_write_many(0, changes);
    assert_eq!(node.store.write_count(), WRITES_MAX);
    work_on_all(&mut node, &mut batch, WRITES_MAX);
    assert!(outcomes(batch.finish()).iter().all(Result::is_ok));
}

#[test]
fn writes_that_another_core_was_sent_are_done_when_their_caller_has_gone() {
    let mut node = node(2);
    let names: Vec<String> = (0..WRITES_MAX + 10).map(|number| owned_by(1, 2, number)).collect();
    node.store.hold_all();
    let batch = node.start_write_many(0, names.iter().map(|name| put(name, "v")).collect());
    node.turn();
    drop(batch);
    while node.store.in_the_air_count() > 0 {
        node.store.work_on(0);
        node.store.answer(0, false);
        node.turn();
    }
    assert!(names.iter().all(|name| node.store.has(name).is_some()));
}

#[test]
fn a_core_that_cannot_be_asked_refuses_its_entries_and_no_others() {
    let mut node = node(2);
    let (here, there) = (owned_by(0, 2, 0), owned_by(1, 2, 0));
    node.cores[1].run = None;
    let batch = node.start_write_many(0, vec![put(&there, "t"), put(&here, "h")]);
    assert_eq!(outcomes(batch.finish()), [Err(Refusal::Stopped), Ok(Some(version_of(b"h")))]);
    assert_eq!(node.store.has(&there), None);
    let batch = node.start_get_many(0, &[&here, &there], BYTES_MAX);
    assert_eq!(batch.finish(), Err(Failure::Key { key: key(&there), refusal: Refusal::Stopped }));
    node.turn();
}

#[test]
fn a_batch_takes_one_ticket_for_each_core() {
    let mut node = node(2);
    let names: Vec<String> = (0..3).map(|number| owned_by(1, 2, number)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    node.store.hold_all();
    let mut waiting = Vec::new();
    for _ in 0..MESH_TICKETS_MAX {
        waiting.push(node.start_get_many(0, &names, BYTES_MAX));
        node.turn();
    }
    let refused = node.start_get_many(0, &names, BYTES_MAX).finish();
    assert_eq!(refused, Err(Failure::Key { key: key(names[0]), refusal: Refusal::Limit(Limit::Tickets) }));
    drop(waiting);
    while node.store.in_the_air_count() > 0 {
        node.store.work_on(0);
        node.store.answer(0, false);
        node.turn();
    }
}
