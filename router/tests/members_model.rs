//! Random joins, leaves, silences and restarts of the router against what must hold whatever happens.
//!
//! `MILENA_SEED=n cargo test -p milena-router --test members_model` repeats the run that printed `n`.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use milena_proto::{key::KeyRef, placement::mix64};
use milena_router::members::{LEASE, LEASE_MARGIN, Member, Members, Slot, State, View};

const RUNS: u64 = 40;
const EVENTS: usize = 400;
const KEYS: u32 = 150;

/// splitmix64: enough randomness for choosing events.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        usize::try_from(mix64(self.0) % bound as u64).unwrap()
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

struct Run {
    random: Random,
    members: Members,
    now: Instant,
    /// When each node that is in the table was last heard of.
    heard: HashMap<String, Instant>,
    view: View,
    shares: &'static [u32],
}

/// With a part of a share, a slot accepts that part of the keys that probe it, and the others probe on. When the table grows
/// by such a slot its rejects move as well, and a key that no living slot accepts moves with every change; so where the
/// keys move is checked with full shares only.
const SHARES: [&[u32]; 2] = [&[u32::MAX], &[u32::MAX, u32::MAX, u32::MAX / 3]];

impl Run {
    fn new(seed: u64, shares: &'static [u32]) -> Self {
        let members = Members::new();
        let view = members.view();
        Self { random: Random(seed), members, now: Instant::now(), heard: HashMap::new(), view, shares }
    }

    /// Few ids and addresses, so that they meet often; small tables, so that tails and holes do too.
    fn someone(&mut self) -> Member {
        let address = format!("http://host-{}:1", self.random.below(10));
        let node_id = if self.random.below(8) == 0 { String::new() } else { format!("node-{}", self.random.below(8)) };
        let shard_addresses = (0..self.random.below(3)).map(|core| format!("{address}{core}")).collect();
        let weight = self.random.pick(self.shares);
        Member {
            node_id,
            address,
            shard_addresses,
            weight,
            incarnation: self.random.below(3) as u64,
            zone: String::new(),
        }
    }

    fn step(&mut self) -> String {
        match self.random.below(10) {
            0..4 => {
                let member = self.someone();
                self.join(member)
            }
            4..7 => self.renew_somebody(),
            7 => self.leave(),
            8 if self.random.below(4) == 0 => {
                self.members = Members::restore(self.view.epoch(), self.view.slots().to_vec(), self.now);
                for slot in self.view.slots().iter().flatten().filter(|slot| slot.state == State::Live) {
                    self.heard.insert(slot.member.node_id.clone(), self.now);
                }
                "the router restarts".to_owned()
            }
            _ => {
                let passed = Duration::from_millis(self.random.below(2500) as u64);
                self.now += passed;
                let lapsed = self.members.tick(self.now);
                format!("{passed:?} pass, {} lapse", lapsed.len())
            }
        }
    }

    fn join(&mut self, member: Member) -> String {
        let before = self.members.view();
        let said = format!("join of {member:?}");
        let (now, id) = (self.now, member.node_id.clone());
        match self.members.join(member, now) {
            Ok(joined) => {
                assert!(joined.epoch <= self.members.epoch());
                assert_eq!(joined.lease, if id.is_empty() { Duration::ZERO } else { LEASE });
                if !id.is_empty() {
                    self.heard.insert(id, now);
                }
                said
            }
            Err(refusal) => {
                assert_eq!(before.slots(), self.members.view().slots(), "a refusal changes nothing");
                format!("{said}: {refusal}")
            }
        }
    }

    fn renew_somebody(&mut self) -> String {
        let seated: Vec<Slot> = self.view.slots().iter().flatten().cloned().collect();
        if seated.is_empty() {
            return "nobody to renew".to_owned();
        }
        let slot = self.random.pick(&seated);
        let epoch = self.members.epoch();
        let said = self.join(Member::clone(&slot.member));
        if slot.state != State::Dead {
            assert_eq!(self.members.epoch(), epoch, "a renewal is no change");
        }
        said
    }

    fn leave(&mut self) -> String {
        let Member { node_id, address, .. } = self.someone();
        let left = self.members.leave(&node_id, &address);
        if let Some(left) = &left {
            self.heard.remove(&left.node_id);
        }
        format!("leave of {node_id} at {address}: {left:?}")
    }

    /// What must hold between the view before and the one after an event.
    fn check(&mut self, keys: &[KeyRef<'_>]) {
        let after = self.members.view();
        let before = std::mem::replace(&mut self.view, self.members.view());

        let is_change = before.slots() != after.slots();
        assert_eq!(after.epoch(), before.epoch() + u64::from(is_change), "the epoch counts changes");

        let (weights_before, weights_after) = (weights(&before), weights(&after));
        for key in keys {
            let (from, to) = (before.owner(*key), after.owner(*key));
            let (from_slot, to_slot) = (from.map(|o| o.slot), to.map(|o| o.slot));
            if from_slot != to_slot && self.shares.len() == 1 {
                let change = |slot: usize| {
                    let weight = |weights: &[u32]| weights.get(slot).copied().unwrap_or(0);
                    weight(&weights_after).cmp(&weight(&weights_before))
                };
                let lost = from_slot.is_none_or(|slot| change(slot).is_lt());
                let gained = to_slot.is_none_or(|slot| change(slot).is_gt());
                assert!(lost || gained, "a key moved from slot {from_slot:?} to {to_slot:?}, and neither changed");
            }
            if let Some(owner) = to {
                assert!(owner.core < owner.member.core_count());
                assert_ne!(after.slots()[owner.slot].as_ref().unwrap().state, State::Dead);
            }
        }

        let mut ids = HashSet::new();
        let mut addresses = HashSet::new();
        for (index, slot) in after.slots().iter().enumerate() {
            let Some(slot) = slot else { continue };
            let member = &slot.member;
            assert!(slot.since_epoch <= after.epoch());
            assert!(member.is_pinned() || ids.insert(member.node_id.clone()), "one slot for each id");
            if slot.state != State::Dead {
                let own: HashSet<&String> = member.shard_addresses.iter().chain([&member.address]).collect();
                for address in own {
                    assert!(addresses.insert(address.clone()), "{address} leads to two living members");
                }
            }
            assert_eq!(slot.state == State::Pinned, member.is_pinned());
            if slot.state == State::Live {
                let was_alive = before
                    .slots()
                    .get(index)
                    .and_then(Option::as_ref)
                    .filter(|b| b.state == State::Live && b.member.node_id == member.node_id);
                if let Some(before) = was_alive {
                    assert_eq!(before.since_epoch, slot.since_epoch, "a tenure without a break goes on");
                }
            }
        }
        self.check_slots_are_kept(&before, &after);
        self.check_leases(&after);
    }

    fn check_slots_are_kept(&self, before: &View, after: &View) {
        for (index, slot) in before.slots().iter().enumerate() {
            let Some(slot) = slot.as_ref().filter(|slot| !slot.member.is_pinned()) else { continue };
            let is_at = |now: &Option<Slot>| now.as_ref().is_some_and(|now| now.member.node_id == slot.member.node_id);
            if let Some(now_at) = after.slots().iter().position(is_at) {
                assert_eq!(now_at, index, "{} changed its slot", slot.member);
            } else if let Some(Some(heir)) = after.slots().get(index) {
                assert_eq!(
                    heir.member.address, slot.member.address,
                    "only who stands at its address may inherit a slot"
                );
                assert_eq!(slot.state, State::Dead, "and only from the dead");
            }
        }
    }

    fn check_leases(&self, after: &View) {
        for slot in after.slots().iter().flatten().filter(|slot| !slot.member.is_pinned()) {
            let silent = self.now - self.heard[&slot.member.node_id];
            if slot.state == State::Dead {
                assert!(silent >= LEASE + LEASE_MARGIN, "{} was given up after {silent:?}", slot.member);
            }
        }
    }
}

fn weights(view: &View) -> Vec<u32> {
    view.to_message().slots.iter().map(|slot| slot.weight).collect()
}

#[test]
fn keys_move_only_off_slots_that_lost_and_onto_slots_that_gained_whatever_happens() {
    let names: Vec<[u8; 4]> = (0..KEYS).map(u32::to_le_bytes).collect();
    let keys: Vec<KeyRef<'_>> = names.iter().map(|name| KeyRef::parse(b"default", name).unwrap()).collect();
    let seed = seed();
    for run in 0..RUNS {
        let mut run = Run::new(seed.wrapping_add(run), SHARES[(run % 2) as usize]);
        let mut story = Vec::new();
        for _ in 0..EVENTS {
            story.push(run.step());
            let _told = Told(&story);
            run.check(&keys);
        }
    }
}

/// Tells the last events when a check fails.
struct Told<'a>(&'a [String]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for event in self.0.iter().rev().take(8).rev() {
            eprintln!("  {event}");
        }
    }
}

#[test]
fn two_routers_that_know_the_same_dead_agree_whatever_died_first() {
    let names: Vec<[u8; 4]> = (0..KEYS).map(u32::to_le_bytes).collect();
    let mut random = Random(seed());
    let begin = Instant::now();
    let member = |index: usize| Member {
        node_id: format!("node-{index}"),
        address: format!("http://host-{index}:1"),
        shard_addresses: Vec::new(),
        weight: u32::MAX,
        incarnation: 1,
        zone: String::new(),
    };
    let dead: HashSet<usize> = (0..4).map(|_| random.below(12)).collect();
    let mut owners = Vec::new();
    for _ in 0..2 {
        let mut members = Members::new();
        for index in 0..12 {
            members.join(member(index), begin).unwrap();
        }
        // They die at moments of their own, and one that lives on goes away and returns.
        let mut last_seen: Vec<u64> = (0..12).map(|_| random.below(20) as u64).collect();
        let returning = (0..12).find(|index| !dead.contains(index)).unwrap();
        last_seen[returning] = 3;
        for second in 0..40 {
            let now = begin + Duration::from_secs(second);
            for (index, last) in last_seen.iter().enumerate() {
                let is_silent = if index == returning { (*last..30).contains(&second) } else { second > *last };
                if !(is_silent && (dead.contains(&index) || index == returning)) {
                    members.join(member(index), now).unwrap();
                }
            }
            members.tick(now);
        }
        let view = members.view();
        assert_eq!(view.count(State::Dead), dead.len());
        let owner = |name: &[u8; 4]| view.owner(KeyRef::parse(b"default", name).unwrap()).unwrap().slot;
        owners.push(names.iter().map(owner).collect::<Vec<_>>());
    }
    assert_eq!(owners[0], owners[1]);
}

fn seed() -> u64 {
    let seed = std::env::var("MILENA_SEED").ok().map(|text| text.parse().expect("MILENA_SEED is a number"));
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("MILENA_SEED={seed}");
    seed
}
