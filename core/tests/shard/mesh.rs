//! Two cores on one thread: requests for the other's keys go through mailboxes.

use std::rc::Rc;

use milena_core::{
    message::{MESH_REQUESTS_MAX, MESH_TICKETS_MAX},
    shard::{Answer, Limit, Refusal, Shard, Source},
    shards::{Shards, mesh},
};
use milena_proto::placement;
use milena_storage::{Condition, Timestamp};

use super::{
    removal,
    script::{Script, Started, key, version_of},
    settings, some, value, write,
};

pub(crate) const NOW: Timestamp = Timestamp(1_000_000);

pub(crate) struct Core {
    pub(crate) shards: Rc<Shards<Script>>,
    /// `None` once it has stopped.
    pub(crate) run: Option<Started<()>>,
}

pub(crate) struct Node {
    pub(crate) cores: Vec<Core>,
    pub(crate) store: Script,
}

pub(crate) fn node(core_count: usize) -> Node {
    let store = Script::default();
    let cores = mesh(core_count).into_iter().enumerate().map(|(core, ends)| {
        let shard = Shard::new(super::ShardSettings { core, core_count, ..settings() }, Some(store.clone()));
        let (shards, run) = Shards::new(ends, shard);
        Core { shards, run: Some(Started::new(run)) }
    });
    Node { cores: cores.collect(), store }
}

impl Node {
    /// Lets every core that was woken do what there is to do.
    pub(crate) fn turn(&mut self) {
        for _ in 0..10 {
            self.cores.iter_mut().filter_map(|core| core.run.as_mut()).for_each(|run| assert!(!run.is_done()));
        }
    }

    fn start_get(&self, core: usize, name: &str) -> Started<Answer> {
        Started::new(self.cores[core].shards.get(key(name).as_ref(), NOW))
    }

    pub(crate) fn get(&mut self, core: usize, name: &str) -> Answer {
        let started = self.start_get(core, name);
        self.turn();
        started.finish()
    }
}

/// A key that this core of `core_count` owns, the `number`th.
pub(crate) fn owned_by(core: usize, core_count: usize, number: usize) -> String {
    let names = (0..).map(|number| format!("k{number}"));
    names.filter(|name| placement::core(key(name).hash(), core_count) == core).nth(number).unwrap()
}

#[test]
fn a_key_of_another_core_is_read_written_and_deleted_there() {
    let mut node = node(3);
    let name = owned_by(2, 3, 0);
    let put = Started::new(node.cores[0].shards.put(key(&name), write("1"), NOW));
    node.turn();
    assert_eq!(put.finish().unwrap(), version_of(b"1"));
    for core in 0..3 {
        let hit = node.get(core, &name).unwrap().unwrap();
        assert_eq!((hit.entry.value, hit.source), (some("1").unwrap(), Source::Memory));
    }
    let delete = Started::new(node.cores[1].shards.delete(key(&name), removal(Condition::Always), NOW));
    node.turn();
    delete.finish().unwrap();
    assert_eq!(node.get(0, &name), Ok(None));

    let forwarded: Vec<u64> = node.cores.iter().map(|core| core.shards.mine().report().forwarded).collect();
    assert_eq!(forwarded, [3, 2, 0]);
    assert_eq!(node.cores[2].shards.mine().report().hits_memory, 3);
}

#[test]
fn a_key_of_ones_own_needs_no_mailbox() {
    let node = node(2);
    let name = owned_by(1, 2, 0);
    node.store.set(&name, "1");
    assert_eq!(value(node.start_get(1, &name).finish()), some("1"));
    assert_eq!(node.cores[1].shards.mine().report().forwarded, 0);
}

#[test]
fn a_request_that_waits_for_the_store_holds_up_none_behind_it() {
    let mut node = node(2);
    let (slow, quick) = (owned_by(1, 2, 0), owned_by(1, 2, 1));
    node.store.hold_get(&slow);
    node.store.set(&quick, "2");
    let mut waiting = node.start_get(0, &slow);
    node.turn();
    assert_eq!(value(node.get(0, &quick)), some("2"));
    assert!(!waiting.is_done());
    node.store.release_get(&slow, Some("1"));
    node.turn();
    assert_eq!(value(waiting.finish()), some("1"));
}

#[test]
fn callers_who_go_away_leave_their_tickets_until_the_replies_come() {
    let mut node = node(2);
    let name = owned_by(1, 2, 0);
    node.store.hold_get(&name);
    let mut waiting: Vec<_> = Vec::new();
    for _ in 0..MESH_TICKETS_MAX {
        waiting.push(node.start_get(0, &name));
        node.turn();
    }
    assert_eq!(node.start_get(0, &name).finish(), Err(Refusal::Limit(Limit::Tickets)));
    let stays = waiting.pop().unwrap();
    drop(waiting);
    assert_eq!(
        node.start_get(0, &name).finish(),
        Err(Refusal::Limit(Limit::Tickets)),
        "their replies are still to come"
    );

    node.store.release_get(&name, Some("1"));
    for _ in 0..MESH_TICKETS_MAX {
        node.turn();
    }
    assert_eq!(value(stays.finish()), some("1"));
    assert_eq!(value(node.get(0, &name)), some("1"));
    assert_eq!(node.store.get_count(), 1);
}

#[test]
fn a_caller_who_goes_away_after_its_reply_has_come_leaves_nothing() {
    let mut node = node(2);
    let name = owned_by(1, 2, 0);
    for _ in 0..2 * MESH_TICKETS_MAX {
        let unread = node.start_get(0, &name);
        node.turn();
        drop(unread);
    }
    assert_eq!(node.get(0, &name), Ok(None));
}

#[test]
fn a_full_mailbox_is_refused_at_once() {
    let mut node = node(3);
    let name = owned_by(2, 3, 0);
    let mut waiting: Vec<_> = (0..MESH_REQUESTS_MAX - 1).map(|_| node.start_get(0, &name)).collect();
    waiting.push(node.start_get(1, &name));
    assert_eq!(node.start_get(1, &name).finish(), Err(Refusal::Limit(Limit::Requests)));
    for _ in 0..MESH_REQUESTS_MAX {
        node.turn();
    }
    for started in waiting {
        assert_eq!(started.finish(), Ok(None));
    }
    assert_eq!(node.get(1, &name), Ok(None));
}

#[test]
fn a_write_on_another_core_runs_to_its_end_when_its_caller_goes_away() {
    let mut node = node(2);
    let name = owned_by(1, 2, 0);
    node.store.hold_write(&name);
    let put = Started::new(node.cores[0].shards.put(key(&name), write("1"), NOW));
    node.turn();
    drop(put);
    node.store.release_write(&name);
    node.turn();
    assert_eq!(node.get(1, &name).unwrap().unwrap().source, Source::Memory);
}

#[test]
fn keys_of_a_core_that_has_stopped_are_refused() {
    let mut node = node(2);
    node.cores[1].run = None;
    assert_eq!(node.get(0, &owned_by(1, 2, 0)), Err(Refusal::Stopped));
}
