//! The log on a scripted disk: what it keeps, what a crash leaves, and what faults may do to it.
//!
//! The model knows of each key all that was ever written to it, and from where on it may be answered: never less than
//! what was durable or seen before. That the log lacks a key is allowed where it had to make room; that it lies, never.

mod dirty;
mod dirty_model;

use std::{
    cell::Cell,
    collections::HashMap,
    future::Future,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{future::FutureExt as _, task::noop_waker_ref};
use milena_proto::key::{Key, KeyRef};

use super::{
    Copy, DeviceError, Known, Log, LogError, Position, Trouble,
    device::scripted::{Fault, Scripted},
    emptying::FOOTER_PIECE_BYTES,
    footer::footer_bytes,
    open::fit,
    record::Record,
    recover::recover,
    saved,
    segment::{BLOCK_BYTES, SEGMENT_BYTES_MIN, Segment, SegmentHeader, State as SegmentState},
    state::Found,
    testing::{Random, seeds},
};
use crate::{Entry, Timestamp, Version, log::index::Index};

const SEGMENT_BYTES: u32 = SEGMENT_BYTES_MIN as u32;
const LOG_ID: u64 = 77;
const NOW: Timestamp = Timestamp(1_000_000);

/// Turns after which a future that has not ended never will.
const TURNS_MAX: usize = 20_000;

/// A log and the disk below it.
struct Bench {
    device: Scripted,
    log: Rc<Log<Scripted>>,
    run: Pin<Box<dyn Future<Output = ()>>>,
    has_ended: bool,
    now: Timestamp,
}

fn key(name: &str) -> Key {
    KeyRef::parse(b"default", name.as_bytes()).unwrap().to_key()
}

fn entry(value: &[u8], version: &str) -> Entry {
    let version = Version::new(Bytes::copy_from_slice(version.as_bytes())).unwrap();
    Entry { value: Bytes::copy_from_slice(value), version, expires: None }
}

impl Bench {
    fn new(segment_count: usize) -> Self {
        Self::with_seed(segment_count, 0)
    }

    fn with_seed(segment_count: usize, seed: u64) -> Self {
        Self::with_segments(segment_count, SEGMENT_BYTES, seed)
    }

    fn with_segments(segment_count: usize, segment_bytes: u32, seed: u64) -> Self {
        let found = Found {
            log_id: LOG_ID,
            segment_bytes,
            segments: vec![Segment::FREE; segment_count],
            index: Index::new(0),
            debts: Vec::new(),
            next_sequence: 1,
            next_generation: 1,
            footers_kept: HashMap::new(),
        };
        Self::on(Scripted::new(segment_count, segment_bytes, seed), found)
    }

    fn on(device: Scripted, found: Found) -> Self {
        let log = Log::with_found(device.clone(), found, 0);
        let run = Box::pin(Rc::clone(&log).run());
        Self { device, log, run, has_ended: false, now: NOW }
    }

    /// A new process on what is on disk.
    fn restarted(self) -> Self {
        let segment_count = self.segment_count();
        self.restarted_with(segment_count)
    }

    fn segment_count(&self) -> usize {
        self.log.state.borrow().segments.len()
    }

    /// A new process that wants another size.
    fn restarted_with(self, wanted_count: usize) -> Self {
        let Self { device, now, .. } = self;
        device.grow(wanted_count, SEGMENT_BYTES);
        let recovered = device.with_bytes(|segments| {
            let bytes: Vec<&[u8]> = segments.iter().map(Vec::as_slice).collect();
            let recovered = recover(LOG_ID, SEGMENT_BYTES, &bytes);
            // As files are that somebody has cut short.
            segments.iter_mut().for_each(|segment| segment.resize(SEGMENT_BYTES as usize, 0));
            recovered
        });
        // As a start does, before it answers from them.
        recovered.unsealed.iter().for_each(|unsealed| device.sync_now(unsealed.header.segment));
        Self { now, ..Self::fitted(device, recovered.found, wanted_count) }
    }

    /// As a start does with what it has found.
    fn fitted(device: Scripted, mut found: Found, wanted_count: usize) -> Self {
        let segment_count = found.segments.len() + fit(&mut found, wanted_count);
        device.grow(segment_count, SEGMENT_BYTES);
        found.segments.resize(segment_count, Segment::FREE);
        Self::on(device, found)
    }

    /// A new process that goes on with the index of a clean stop, if there is one.
    fn restarted_from_index(self, wanted_count: usize) -> Self {
        let saved = saved::encode(&self.log.state.borrow());
        let Some(saved) = saved else { return self.restarted_with(wanted_count) };
        let segment_count = self.segment_count().max(wanted_count);
        self.device.grow(segment_count, SEGMENT_BYTES);
        let found = saved::decode(&saved, LOG_ID, SEGMENT_BYTES, segment_count).expect("it was just encoded");
        Self { now: self.now, ..Self::fitted(self.device, found, wanted_count) }
    }

    fn turn(&mut self) {
        if !self.has_ended {
            self.has_ended = self.run.as_mut().poll(&mut Context::from_waker(noop_waker_ref())).is_ready();
        }
    }

    /// Runs the log until `operation` has ended.
    fn finish<T>(&mut self, operation: impl Future<Output = T>) -> T {
        let mut operation = pin!(operation);
        for _ in 0..TURNS_MAX {
            if let Poll::Ready(answer) = operation.as_mut().poll(&mut Context::from_waker(noop_waker_ref())) {
                return answer;
            }
            self.turn();
        }
        panic!("it hangs: {:?}", self.log.figures());
    }

    fn put(&mut self, name: &str, value: &[u8]) -> Result<Position, LogError> {
        self.put_entry(name, entry(value, "v"))
    }

    fn put_entry(&mut self, name: &str, entry: Entry) -> Result<Position, LogError> {
        let now = self.now;
        self.finish(Rc::clone(&self.log).put(key(name), entry, None, now))
    }

    fn delete(&mut self, name: &str) -> Result<Position, LogError> {
        let now = self.now;
        self.finish(Rc::clone(&self.log).delete(key(name), now))
    }

    fn get(&mut self, name: &str) -> Option<Copy> {
        self.known(name).into_copy()
    }

    fn known(&mut self, name: &str) -> Known {
        let now = self.now;
        self.finish(Rc::clone(&self.log).get(key(name), now))
    }

    fn value(&mut self, name: &str) -> Option<String> {
        self.get(name).map(|copy| String::from_utf8(copy.entry.value.to_vec()).unwrap())
    }

    fn durable(&mut self, position: Position) -> Result<(), LogError> {
        self.finish(Rc::clone(&self.log).durable(position))
    }

    /// Puts, and waits until it is durable.
    fn put_durably(&mut self, name: &str, value: &[u8]) {
        let position = self.put(name, value).unwrap();
        self.durable(position).unwrap();
    }

    /// Puts, and waits until it is written, which nobody syncs.
    fn put_unsynced(&mut self, name: &str, value: &[u8]) {
        self.put(name, value).unwrap();
        self.flush();
    }

    /// Writes all there is, and reclaims all there should be.
    fn flush(&mut self) {
        for _ in 0..TURNS_MAX {
            let is_reclaiming = self.log.needs_reclaiming() || self.log.figures().segments[3] > 0;
            if !self.log.state.borrow().has_work(false) && !is_reclaiming {
                return;
            }
            self.turn();
        }
        panic!("it is never done writing");
    }

    fn stop(&mut self) {
        self.log.stop();
        for _ in 0..TURNS_MAX {
            if self.has_ended {
                return;
            }
            self.turn();
        }
        panic!("it does not stop: {:?}", self.log.figures());
    }
}

// ---- What it keeps.

#[test]
fn what_was_put_is_found_before_and_after_it_is_on_disk() {
    let mut bench = Bench::new(16);
    bench.put("a", b"one").unwrap();
    assert_eq!(bench.value("a").as_deref(), Some("one"));
    assert_eq!(bench.value("b"), None);
    bench.flush();
    assert_eq!((bench.value("a").as_deref(), bench.device.reads()), (Some("one"), 1));
    bench.device.set_resident(true);
    assert_eq!((bench.value("a").as_deref(), bench.device.reads()), (Some("one"), 1));
}

#[test]
fn the_newest_value_wins_also_over_one_on_disk() {
    let mut bench = Bench::new(16);
    bench.put_durably("a", b"old");
    bench.put("a", b"new").unwrap();
    assert_eq!(bench.value("a").as_deref(), Some("new"));
    bench.flush();
    let mut bench = bench.restarted();
    assert_eq!(bench.value("a").as_deref(), Some("new"));
    assert_eq!(bench.log.figures().entries, 1);
}

#[test]
fn what_was_deleted_stays_deleted() {
    let mut bench = Bench::new(16);
    bench.put_durably("a", b"one");
    let position = bench.delete("a").unwrap();
    assert_eq!(bench.value("a"), None);
    bench.durable(position).unwrap();
    let mut bench = bench.restarted();
    assert_eq!(bench.value("a"), None);
    assert_eq!(bench.log.figures().entries, 0);
}

#[test]
fn deleting_what_is_not_there_writes_nothing() {
    let mut bench = Bench::new(16);
    bench.delete("a").unwrap();
    assert!(!bench.log.state.borrow().has_work(false));
}

#[test]
fn a_durable_put_survives_the_machine_and_one_that_nobody_waited_for_may_not() {
    let mut bench = Bench::new(16);
    bench.put_durably("a", b"one");
    bench.put("b", b"two").unwrap();
    bench.device.lose_power();
    let mut bench = bench.restarted();
    assert_eq!(bench.value("a").as_deref(), Some("one"));
    assert_eq!(bench.value("b"), None);
}

#[test]
fn all_who_wait_share_one_sync() {
    let mut bench = Bench::new(16);
    let positions: Vec<Position> = (0..64).map(|n| bench.put(&format!("k{n}"), b"x").unwrap()).collect();
    let waits = positions.iter().map(|&position| Rc::clone(&bench.log).durable(position));
    let all = futures::future::join_all(waits.collect::<Vec<_>>());
    assert!(bench.finish(all).iter().all(Result::is_ok));
    assert_eq!(bench.log.figures().counts.syncs, 1);
}

#[test]
fn no_block_is_written_twice_within_a_generation() {
    // The scripted disk would not mind, so look at what is on it: a batch begins where the one before has ended.
    let mut bench = Bench::new(16);
    for n in 0..5 {
        bench.put_durably(&format!("k{n}"), b"x");
    }
    let places: Vec<u32> =
        (0..5).map(|n| bench.log.state.borrow().candidates(key(&format!("k{n}")).hash())[0].offset).collect();
    assert_eq!(places, [1, 2, 3, 4, 5].map(|block| block * BLOCK_BYTES as u32));
}

#[test]
fn a_value_too_large_is_not_kept_and_what_it_replaces_is_forgotten() {
    let mut bench = Bench::new(16);
    bench.put("a", b"small").unwrap();
    let large = vec![7; SEGMENT_BYTES as usize / 8];
    assert_eq!(bench.put("a", &large), Err(LogError::NotKept));
    assert_eq!(bench.value("a"), None);
    let long_version = entry(b"x", &"v".repeat(256));
    assert_eq!(bench.put_entry("b", long_version), Err(LogError::NotKept));
}

#[test]
fn two_keys_that_share_a_tag_have_each_its_own_value() {
    let mut bench = Bench::new(16);
    // One table of 2^20 tags: among this many keys some are equal.
    let mut tags: HashMap<u64, u64> = HashMap::new();
    let tag = |n: u64| milena_proto::placement::mix64(key(&n.to_string()).hash()) >> 44;
    let (first, second) = (0..).find_map(|n| tags.insert(tag(n), n).map(|before| (before, n))).unwrap();
    let (first, second) = (first.to_string(), second.to_string());
    bench.put_durably(&first, b"first");
    assert_eq!(bench.value(&second), None);
    bench.put_durably(&second, b"second");
    let check = |bench: &mut Bench| {
        assert_eq!(bench.value(&first).as_deref(), Some("first"));
        assert_eq!(bench.value(&second).as_deref(), Some("second"));
    };
    check(&mut bench);
    let mut bench = bench.restarted();
    check(&mut bench);
    let position = bench.delete(&second).unwrap();
    bench.durable(position).unwrap();
    assert_eq!(bench.value(&second), None);
    assert_eq!(bench.value(&first).as_deref(), Some("first"));
}

#[test]
fn reads_of_one_place_at_the_same_time_are_one_read() {
    let mut bench = Bench::new(16);
    bench.put_durably("a", b"one");
    let before = bench.device.reads();
    bench.device.set_delay_max(1000);
    let gets: Vec<_> = (0..10).map(|_| Rc::clone(&bench.log).get(key("a"), NOW)).collect();
    let found = bench.finish(futures::future::join_all(gets));
    assert!(found.into_iter().all(|known| known.into_copy().unwrap().entry.value == "one"));
    assert_eq!(bench.device.reads() - before, 1);
    assert!(bench.log.reads.borrow().is_empty());
}

#[test]
fn a_fill_that_is_withdrawn_leaves_nothing_behind() {
    let mut bench = Bench::new(16);
    let fill = Rc::clone(&bench.log).fill(key("a"), entry(b"old", "v"), None, NOW, || false);
    assert_eq!(bench.finish(fill), Err(LogError::Withdrawn));
    assert_eq!(bench.value("a"), None);
}

#[test]
fn what_is_forgotten_at_once_is_gone_also_after_a_restart() {
    let mut bench = Bench::new(16);
    bench.put_durably("a", b"one");
    bench.put_durably("b", b"two");
    bench.log.forget(key("a").as_ref());
    assert_eq!(bench.value("a"), None);
    let still = std::cell::Cell::new(false);
    bench.finish(Rc::clone(&bench.log).delete_if(key("b"), NOW, || still.get()));
    assert_eq!(bench.value("b").as_deref(), Some("two"));
    still.set(true);
    bench.finish(Rc::clone(&bench.log).delete_if(key("b"), NOW, || still.get()));
    bench.flush();
    let mut bench = bench.restarted();
    assert_eq!((bench.value("a"), bench.value("b")), (None, None));
}

#[test]
fn a_write_that_comes_between_the_search_and_the_fill_is_seen() {
    let mut bench = Bench::new(16);
    bench.put_durably("a", b"old");
    let overtaken = std::cell::Cell::new(false);
    let fill = Rc::clone(&bench.log).fill(key("a"), entry(b"older", "v"), None, NOW, || !overtaken.get());
    let mut fill = pin!(fill);
    let mut context = Context::from_waker(noop_waker_ref());
    bench.device.set_delay_max(10);
    while bench.device.reads() == 0 {
        assert!(fill.as_mut().poll(&mut context).is_pending());
    }
    bench.put("a", b"new").unwrap();
    overtaken.set(true);
    assert_eq!(bench.finish(fill), Err(LogError::Withdrawn));
    assert_eq!(bench.value("a").as_deref(), Some("new"));
}

// ---- Life.

fn expiring(value: &[u8], expires: Timestamp) -> Entry {
    Entry { expires: Some(expires), ..entry(value, "v") }
}

#[test]
fn a_value_whose_life_ended_is_a_miss_also_after_a_restart() {
    let mut bench = Bench::new(16);
    bench.put_entry("a", expiring(b"one", NOW.plus_ms(1000))).unwrap();
    bench.flush();
    bench.now = NOW.plus_ms(999);
    assert_eq!(bench.get("a").unwrap().entry.expires, Some(NOW.plus_ms(1000)));
    let mut bench = bench.restarted();
    assert!(bench.get("a").is_some());
    bench.now = NOW.plus_ms(1000);
    assert_eq!(bench.get("a"), None);
}

#[test]
fn a_clock_that_jumps_back_revives_nothing_not_even_after_a_restart() {
    let mut bench = Bench::new(16);
    bench.put_entry("a", expiring(b"one", NOW.plus_ms(1000))).unwrap();
    bench.flush();
    bench.now = NOW.plus_ms(2000);
    assert_eq!(bench.get("a"), None);
    bench.now = NOW;
    assert_eq!(bench.get("a"), None);
    bench.flush();
    let mut bench = bench.restarted();
    assert_eq!(bench.get("a"), None);
}

#[test]
fn how_long_a_copy_is_believed_survives_restarts_and_doubt_survives_being_copied() {
    let mut bench = Bench::new(16);
    let until = Some(Timestamp(5_000_999));
    let put = Rc::clone(&bench.log).put(key("a"), entry(b"x", "v"), until, NOW);
    bench.finish(put).unwrap();
    bench.put("b", b"y").unwrap();
    bench.flush();
    let mut bench = bench.restarted();
    assert_eq!(bench.get("a").unwrap().believed_until, Some(Timestamp(5_000_000)));
    assert_eq!(bench.get("b").unwrap().believed_until, None);
    bench.log.doubt_all();
    assert_eq!(bench.get("b").unwrap().believed_until, Some(Timestamp(0)));
    bench.put("b", b"z").unwrap();
    assert_eq!(bench.get("b").unwrap().believed_until, None);
    // "a" was hit, so it is carried along as often as it must.
    for n in 0..3000 {
        bench.put(&format!("k{n}"), &[0; 500]).unwrap();
        if n % 50 == 0 {
            assert_eq!(bench.get("a").unwrap().believed_until, Some(Timestamp(0)), "{n}");
        }
    }
    assert!(bench.log.figures().counts.reclaimed > 10);
}

// ---- Making room.

#[test]
fn a_full_log_lets_the_oldest_go_and_keeps_what_was_asked_for() {
    let mut bench = Bench::new(16);
    bench.put("hot", b"kept").unwrap();
    for n in 0..4000 {
        bench.put(&format!("k{n}"), &[n as u8; 500]).unwrap();
        if n % 100 == 0 {
            assert_eq!(bench.value("hot").as_deref(), Some("kept"), "after {n}");
        }
    }
    assert_eq!(bench.value("k0"), None);
    assert_eq!(bench.get("k3999").unwrap().entry.value, vec![(3999 % 256) as u8; 500]);
    let figures = bench.log.figures();
    assert!(figures.counts.reclaimed > 20 && figures.counts.evictions > 1000, "{figures:?}");
    assert!(figures.segments[0] >= 2, "{figures:?}");
}

#[test]
fn a_log_that_is_mostly_dead_loses_nothing_that_is_alive() {
    let mut bench = Bench::new(16);
    for n in 0..20 {
        bench.put(&format!("cold{n}"), &[7; 300]).unwrap();
    }
    for n in 0..6000 {
        bench.put(&format!("k{}", n % 10), &[0; 500]).unwrap();
    }
    assert!(bench.log.figures().counts.reclaimed > 30);
    assert!((0..20).all(|n| bench.get(&format!("cold{n}")).is_some()));
    assert_eq!(bench.log.figures().counts.evictions, 0);
}

#[test]
fn segments_whose_records_expired_go_first_and_cost_no_copying() {
    let mut bench = Bench::new(16);
    for n in 0..500 {
        bench.put_entry(&format!("short{n}"), expiring(&[0; 500], NOW.plus_ms(60_000))).unwrap();
    }
    for n in 0..400 {
        bench.put(&format!("long{n}"), &[0; 500]).unwrap();
    }
    bench.now = NOW.plus_ms(60_000);
    for n in 400..1000 {
        bench.put(&format!("long{n}"), &[0; 500]).unwrap();
    }
    bench.flush();
    assert!(bench.log.figures().counts.reclaimed >= 3, "{:?}", bench.log.figures());
    let lost = (0..1000).filter(|n| bench.get(&format!("long{n}")).is_none()).count();
    assert_eq!(lost, 0);
}

#[test]
fn what_was_deleted_or_replaced_stays_so_however_the_segments_go() {
    // Old values of a few keys are spread over many segments, then reclaiming takes those in its own order.
    for seed in seeds(20) {
        let mut bench = Bench::with_seed(20, seed);
        let mut random = Random(seed);
        let mut newest: HashMap<String, Option<String>> = HashMap::new();
        for n in 0..3000 {
            let name = format!("k{}", random.below(40));
            if random.below(4) == 0 {
                bench.delete(&name).unwrap();
                newest.insert(name, None);
            } else {
                let value = format!("{n}-{}", "x".repeat(random.below(900) as usize));
                bench.put(&name, value.as_bytes()).unwrap();
                newest.insert(name, Some(value));
            }
            bench.put(&format!("filler{n}"), &[0; 300]).unwrap();
        }
        bench.flush();
        for _ in 0..3 {
            bench = bench.restarted();
            for (name, newest) in &newest {
                let found = bench.value(name);
                assert!(found.is_none() || found == *newest, "MILENA_SEED={seed}: {name} is {found:?}");
            }
            for n in 0..200 {
                bench.put(&format!("more{n}"), &[0; 700]).unwrap();
            }
            bench.flush();
        }
    }
}

#[test]
fn tombstones_go_when_nothing_older_is_left() {
    let mut bench = Bench::new(16);
    for n in 0..5000 {
        bench.put(&format!("k{n}"), &[0; 300]).unwrap();
        bench.delete(&format!("k{n}")).unwrap();
    }
    bench.flush();
    let state = bench.log.state.borrow();
    let tombstones: u32 = state.segments.iter().map(|segment| segment.tombstone_count).sum();
    assert!(tombstones < 3500, "{tombstones} tombstones of 5000");
}

// ---- Crashes.

/// A segment with four records, on disk, and where they end.
fn small_log() -> (Vec<u8>, usize) {
    let mut bench = Bench::new(8);
    bench.put("a", b"one").unwrap();
    bench.put("b", b"two").unwrap();
    bench.flush();
    bench.put("a", b"three").unwrap();
    let position = bench.delete("b").unwrap();
    bench.durable(position).unwrap();
    let bytes = bench.device.with_bytes(|bytes| bytes[0].clone());
    let end = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    (bytes, end)
}

/// What is left of [`small_log`] after `damage`: the values of a and b.
fn left_after(bytes: &[u8], damage: impl FnOnce(&mut Vec<u8>)) -> (Option<String>, Option<String>) {
    let bench = Bench::new(8);
    bench.device.with_bytes(|target| {
        target[0].copy_from_slice(bytes);
        damage(&mut target[0]);
    });
    let mut bench = bench.restarted();
    let left = (bench.value("a"), bench.value("b"));
    bench.put("c", b"four").unwrap(); // and it works
    left
}

fn is_a_prefix(left: &(Option<String>, Option<String>)) -> bool {
    let states = [
        (None, None),
        (Some("one"), None),
        (Some("one"), Some("two")),
        (Some("three"), Some("two")),
        (Some("three"), None),
    ];
    states.contains(&(left.0.as_deref(), left.1.as_deref()))
}

#[test]
fn a_segment_cut_at_any_byte_holds_what_was_before_the_cut() {
    let (bytes, end) = small_log();
    let mut seen = 0;
    // Among zeros one cut is as good as the next.
    let is_edge = |cut: &usize| *cut == 0 || *cut == end || bytes[*cut] != 0 || bytes[*cut - 1] != 0;
    for cut in (0..=end).filter(is_edge) {
        let zeroed = left_after(&bytes, |segment| segment[cut..].fill(0));
        assert!(is_a_prefix(&zeroed), "zeros from {cut}: {zeroed:?}");
        let truncated = left_after(&bytes, |segment| segment.truncate(cut.max(1)));
        assert!(is_a_prefix(&truncated) || truncated == zeroed, "cut at {cut}: {truncated:?}");
        seen = usize::max(seen, zeroed.0.iter().chain(&zeroed.1).map(String::len).sum());
    }
    assert_eq!(seen, "onetwo".len().max("threetwo".len()));
    assert_eq!(left_after(&bytes, |_| {}), (Some("three".to_owned()), None));
}

#[test]
fn a_segment_with_any_byte_flipped_holds_what_was_before_it() {
    let (bytes, end) = small_log();
    for index in 0..end {
        let left = left_after(&bytes, |segment| segment[index] ^= 0x5A);
        assert!(is_a_prefix(&left), "byte {index}: {left:?}");
    }
}

#[test]
fn what_an_earlier_generation_left_behind_the_tail_is_not_taken_for_new() {
    let mut bench = Bench::new(16);
    // Round and round, so that every segment has old records behind its new ones.
    for n in 0..6000 {
        bench.put(&format!("k{}", n % 300), format!("{n:0>400}").as_bytes()).unwrap();
    }
    for round in 0..20 {
        bench.put(&format!("k{round}"), b"newest").unwrap();
        bench.flush();
        bench = bench.restarted();
        for seen in 0..=round {
            assert_eq!(bench.value(&format!("k{seen}")).as_deref(), Some("newest"));
        }
    }
}

#[test]
fn where_a_crash_left_a_record_beside_its_copy_a_delete_is_a_tombstone_until_its_segment_is_gone() {
    let mut bench = Bench::new(16);
    bench.put_durably("a", b"one");
    // The copy that reclaiming makes, in another segment; the void of the first never came.
    let (original, copy) = (0, 1);
    bench.device.with_bytes(|segments| {
        let header = SegmentHeader::decode(&segments[original]).unwrap();
        let (record, _) = Record::decode(&segments[original][BLOCK_BYTES..]).unwrap();
        let header = SegmentHeader { segment: copy, generation: 9, first_sequence: 9, ..header };
        let mut bytes = header.encode_block();
        Record { sequence: 9, ..record }.encode(&mut bytes);
        segments[usize::from(copy)][..bytes.len()].copy_from_slice(&bytes);
    });
    let mut bench = bench.restarted();
    assert_eq!(bench.value("a").as_deref(), Some("one"));
    // Without an index entry, as after an eviction, only a tombstone keeps the original dead.
    let hash = key("a").hash();
    let place = bench.log.state.borrow().candidates(hash)[0];
    assert_eq!(place.segment, copy);
    assert!(bench.log.state.borrow_mut().evict(hash, place, false));
    let position = bench.delete("a").unwrap();
    bench.durable(position).unwrap();
    bench.device.with_bytes(|segments| segments[usize::from(copy)].fill(0));
    let mut bench = bench.restarted();
    assert_eq!(bench.value("a"), None);
}

// ---- The model.

#[derive(Default)]
struct History {
    /// All that was written, oldest first: its position and the value, if it is no delete.
    changes: Vec<(Option<Position>, Option<Entry>)>,
    /// No change before this one may be answered.
    floor: usize,
    /// This one survives a crash.
    durable: usize,
}

struct Model {
    keys: Vec<History>,
    count: u64,
}

impl Model {
    fn new(key_count: usize) -> Self {
        let nothing = || History { changes: vec![(None, None)], ..History::default() };
        Self { keys: (0..key_count).map(|_| nothing()).collect(), count: 0 }
    }

    fn change(&mut self, key: usize, position: Option<Position>, entry: Option<Entry>) {
        let history = &mut self.keys[key];
        history.changes.push((position, entry));
        history.floor = history.changes.len() - 1;
    }

    fn durable(&mut self, upto: Position) {
        for history in &mut self.keys {
            let is_durable = |(position, _): &(Option<Position>, _)| position.is_some_and(|position| position <= upto);
            if let Some(durable) = history.changes.iter().rposition(is_durable) {
                history.durable = history.durable.max(durable);
            }
        }
    }

    fn crash(&mut self) {
        for history in &mut self.keys {
            history.floor = history.durable;
            // What did not survive never will.
            history.changes.iter_mut().for_each(|(position, _)| *position = None);
        }
    }

    /// What is found must be one of the changes from the floor on; from then on it is the floor.
    fn check(&mut self, key: usize, found: Option<&Entry>, now: Timestamp, is_after_crash: bool) -> Result<(), String> {
        let history = &mut self.keys[key];
        let Some(found) = found else { return Ok(()) };
        let is_it = |(_, entry): &(_, Option<Entry>)| entry.as_ref() == Some(found);
        let Some(index) = history.changes.iter().rposition(is_it) else {
            return Err(format!("nobody wrote {found:?}"));
        };
        if found.is_expired(now) {
            return Err(format!("{found:?} has expired"));
        }
        if index < history.floor {
            let floor = &history.changes[history.floor];
            return Err(format!("{found:?} is change {index}, and the floor is {}: {floor:?}", history.floor));
        }
        if is_after_crash {
            history.floor = index;
            history.durable = index;
        }
        Ok(())
    }

    fn new_entry(&mut self, random: &mut Random, now: Timestamp) -> Entry {
        self.count += 1;
        let len = match random.below(10) {
            0 => 0,
            1 => random.below(7000),
            _ => random.below(400),
        };
        let mut value = format!("{:x}.", self.count).into_bytes();
        value.resize(value.len() + len as usize, self.count as u8);
        let life_ms = [1, 50_000, 600_000, 10_000_000, 100_000_000][random.below(5) as usize];
        let expires = (random.below(3) == 0).then(|| now.plus_ms(life_ms));
        Entry { expires, ..entry(&value, &format!("v{}", self.count)) }
    }
}

/// What the state counts is what a look at the segments says.
fn check_counts(bench: &Bench, context: &str) {
    let state = bench.log.state.borrow();
    let count = |wanted: SegmentState| state.segments.iter().filter(|segment| segment.state == wanted).count();
    let is_unusable = |segment: &&Segment| segment.state == SegmentState::Free && segment.is_surplus;
    let unusable_count = state.segments.iter().filter(is_unusable).count();
    assert_eq!(state.free_count() + unusable_count, count(SegmentState::Free), "{context}");
    assert_eq!(state.is_reclaiming(), count(SegmentState::Reclaiming) > 0, "{context}");
    let live: u64 = state.segments.iter().map(|segment| u64::from(segment.live_count)).sum();
    assert_eq!(live, state.index.len() as u64, "{context}");
}

fn check_all(bench: &mut Bench, model: &mut Model, is_after_crash: bool, context: &str) -> usize {
    check_counts(bench, context);
    let mut found_count = 0;
    for key in 0..model.keys.len() {
        let found = bench.get(&format!("k{key}"));
        let entry = found.as_ref().map(|copy| &copy.entry);
        found_count += usize::from(entry.is_some());
        model.check(key, entry, bench.now, is_after_crash).unwrap_or_else(|why| panic!("{context}: k{key}: {why}"));
    }
    found_count
}

/// The size of a log in segments: what is wanted at a start, and another one at every third.
fn wanted_count(random: &mut Random, before: usize) -> usize {
    if random.below(3) == 0 { 16 + random.below(20) as usize } else { before }
}

/// Random operations on a log, with restarts of all kinds, to other sizes too; faults now and then if `with_faults`.
fn model_run(seed: u64, steps: u64, with_faults: bool) {
    const KEYS: usize = 150;
    let mut random = Random(seed ^ 0xABCD);
    let mut segment_count = 16 + random.below(12) as usize;
    let mut bench = Bench::with_seed(segment_count, seed);
    let mut model = Model::new(KEYS);
    let mut last = None;
    for step in 0..steps {
        let context = format!("MILENA_SEED={seed} step {step}");
        if step % 100 == 0 {
            check_counts(&bench, &context);
        }
        let key = random.below(KEYS as u64) as usize;
        let name = format!("k{key}");
        match random.below(1000) {
            0..450 => {
                let entry = model.new_entry(&mut random, bench.now);
                let done = bench.put_entry(&name, entry.clone());
                match done {
                    Ok(position) => {
                        model.change(key, Some(position), Some(entry));
                        last = Some(position);
                    }
                    Err(LogError::NotKept) => model.change(key, None, None),
                    // Not appended; what was there before may still be.
                    Err(_) if with_faults => {}
                    Err(error) => panic!("{context}: {error}"),
                }
            }
            450..550 => match bench.delete(&name) {
                Ok(position) => {
                    model.change(key, Some(position), None);
                    last = Some(position);
                }
                Err(_) if with_faults => {}
                Err(error) => panic!("{context}: {error}"),
            },
            550..900 => {
                let found = bench.get(&name);
                let entry = found.as_ref().map(|copy| &copy.entry);
                model.check(key, entry, bench.now, false).unwrap_or_else(|why| panic!("{context}: {name}: {why}"));
            }
            900..960 => {
                if let Some(last) = last {
                    match bench.durable(last) {
                        Ok(()) => model.durable(last),
                        Err(_) if with_faults => {}
                        Err(error) => panic!("{context}: {error}"),
                    }
                }
            }
            960..990 => bench.now = bench.now.plus_ms(random.below(100_000)),
            990..992 if with_faults => {
                let fault = [Fault::Error, Fault::NoSpace, Fault::Short][random.below(3) as usize];
                bench.device.fail(bench.device.calls() + random.below(20), 1 + random.below(3), fault);
            }
            992..994 => {
                bench.device.set_resident(random.below(2) == 0);
                bench.device.set_delay_max(random.below(8));
            }
            994..996 => {
                bench.device.fail_no_more();
                segment_count = wanted_count(&mut random, segment_count);
                bench = bench.restarted_with(segment_count); // killed
                last = None;
                model.crash();
                check_all(&mut bench, &mut model, true, &context);
            }
            996..998 => {
                bench.device.fail_no_more();
                bench.device.lose_power();
                segment_count = wanted_count(&mut random, segment_count);
                bench = bench.restarted_with(segment_count);
                last = None;
                model.crash();
                check_all(&mut bench, &mut model, true, &context);
            }
            998 => {
                bench.device.fail_no_more();
                bench.stop();
                if let Some(last) = last.take().filter(|_| !bench.log.state.borrow().is_offline()) {
                    model.durable(last);
                }
                segment_count = wanted_count(&mut random, segment_count);
                let is_read = random.below(2) == 0;
                bench = if is_read {
                    bench.restarted_with(segment_count)
                } else {
                    bench.restarted_from_index(segment_count)
                };
                model.crash();
                check_all(&mut bench, &mut model, true, &context);
            }
            _ => {}
        }
    }
    let context = format!("MILENA_SEED={seed} at the end");
    bench.device.fail_no_more();
    let found_count = check_all(&mut bench, &mut model, false, &context);
    assert!(with_faults || found_count > 0, "{context}: nothing is found any more");
}

/// Operations for each seed: 4,000, or what MILENA_MODEL_STEPS says.
fn model_steps() -> u64 {
    std::env::var("MILENA_MODEL_STEPS").map_or(4_000, |text| text.parse().expect("MILENA_MODEL_STEPS is a number"))
}

#[test]
fn random_operations_and_crashes_agree_with_the_model() {
    for seed in seeds(30) {
        model_run(seed, model_steps(), false);
    }
}

#[test]
fn random_operations_crashes_and_faults_agree_with_the_model() {
    for seed in seeds(30) {
        model_run(seed, model_steps(), true);
    }
}

// ---- Faults.

/// A fixed course of operations, with `fault` at call `number`. Answers how many calls there were.
fn course_with_fault(number: u64, fault: Fault) -> u64 {
    let mut bench = Bench::new(8);
    let mut model = Model::new(20);
    bench.device.fail(number, 1, fault);
    for step in 0..130 {
        let key = (step * 7) % 20;
        let name = format!("k{key}");
        let context = format!("{fault:?} at call {number}, step {step}");
        if step % 9 == 8 {
            if let Ok(position) = bench.delete(&name) {
                model.change(key, Some(position), None);
            }
        } else {
            let entry = entry(&vec![step as u8; 3000 + step], &format!("v{step}"));
            match bench.put_entry(&name, entry.clone()) {
                Ok(position) => {
                    model.change(key, Some(position), Some(entry));
                    if step % 5 == 0 && bench.durable(position).is_ok() {
                        model.durable(position);
                    }
                }
                Err(LogError::NotKept) => model.change(key, None, None),
                Err(_) => {}
            }
        }
        let found = bench.get(&name);
        model
            .check(key, found.as_ref().map(|copy| &copy.entry), NOW, false)
            .unwrap_or_else(|why| panic!("{context}: {why}"));
    }
    let calls = bench.device.calls();
    bench.device.fail_no_more();
    // A disk that lied about a write has lost it; that is beyond what a log can promise, so only look for lies.
    if fault == Fault::Lie {
        model.keys.iter_mut().for_each(|history| (history.durable, history.floor) = (0, 0));
    }
    bench.device.lose_power();
    let mut bench = bench.restarted();
    model.crash();
    check_all(&mut bench, &mut model, true, &format!("{fault:?} at call {number}, restarted"));
    calls
}

#[test]
fn a_fault_at_any_call_never_panics_and_never_answers_a_wrong_value() {
    let calls = course_with_fault(u64::MAX, Fault::Error);
    assert!(calls > 150, "{calls}");
    for fault in [Fault::Error, Fault::NoSpace, Fault::Short, Fault::Lie] {
        for number in 0..calls {
            course_with_fault(number, fault);
        }
    }
}

#[test]
fn what_a_failed_write_or_sync_held_goes_elsewhere_and_is_acknowledged_there() {
    // The one write that is durable by itself; or, where a fill is on its way to the disk already, the write and its sync.
    for (has_fill, failing) in [(false, 0), (true, 0), (true, 1)] {
        let mut bench = Bench::new(16);
        if has_fill {
            bench.put_unsynced("fill", b"zero");
        }
        bench.device.fail(bench.device.calls() + failing, 1, Fault::Error);
        bench.put_durably("a", b"one");
        let figures = bench.log.figures();
        assert_eq!((figures.counts.write_errors, bench.value("a").as_deref()), (1, Some("one")));
        bench.device.lose_power();
        let mut bench = bench.restarted();
        assert_eq!(bench.value("a").as_deref(), Some("one"));
        assert_eq!(bench.value("fill").is_some(), has_fill);
    }
}

#[test]
fn an_acknowledged_write_takes_one_call_and_a_second_only_where_an_earlier_one_was_not_synced() {
    let mut bench = Bench::new(16);
    for (name, has_fill) in [("a", false), ("b", false), ("c", true), ("d", false)] {
        if has_fill {
            bench.put_unsynced("fill", b"zero");
        }
        let before = bench.device.calls();
        bench.put_durably(name, b"one");
        assert_eq!(bench.device.calls() - before, if has_fill { 2 } else { 1 });
    }
}

#[test]
fn two_writes_are_in_the_air_and_who_waited_is_told_once_the_next_is_with_the_disk() {
    let mut bench = Bench::new(16);
    bench.device.set_delay_max(200);
    let before = bench.device.calls();
    let mut waits = Vec::new();
    for (name, calls) in [("a", 1), ("b", 2), ("c", 2), ("d", 2)] {
        let position = bench.put(name, b"one").unwrap();
        let mut wait = Box::pin(Rc::clone(&bench.log).durable(position));
        assert!((&mut wait).now_or_never().is_none());
        bench.turn();
        assert_eq!(bench.device.calls() - before, calls, "{name}");
        waits.push(wait);
    }
    let mut first = waits.remove(0);
    for turn in 0.. {
        assert!(turn < TURNS_MAX, "it hangs");
        if (&mut first).now_or_never().is_some() {
            break;
        }
        bench.turn();
    }
    assert_eq!(bench.device.calls() - before, 3, "one write for two, begun before the first was told");
    assert!(bench.finish(futures::future::join_all(waits)).iter().all(Result::is_ok));
    assert_eq!(bench.device.calls() - before, 3);
}

#[test]
fn a_footer_in_the_air_keeps_no_acknowledged_write_waiting() {
    let mut bench = Bench::new(16);
    bench.device.set_delay_max(5000);
    let is_sealing = |bench: &Bench| bench.log.state.borrow().segments[0].state == SegmentState::Sealing;
    let mut last = None;
    for number in 0..SEGMENT_BYTES as usize / (4 << 10) + 1 {
        last = Some(bench.put(&format!("k{number}"), &[7; 4 << 10]).unwrap());
    }
    bench.durable(last.unwrap()).unwrap();
    (0..10).for_each(|_| bench.turn());
    assert!(is_sealing(&bench) && bench.log.state.borrow().is_in_the_air(0), "its footer is on its way");
    let calls = bench.device.calls();
    let position = bench.put("a", b"one").unwrap();
    let mut wait = Box::pin(Rc::clone(&bench.log).durable(position));
    assert!((&mut wait).now_or_never().is_none());
    bench.turn();
    assert!(is_sealing(&bench));
    assert_eq!(bench.device.calls(), calls + 1, "and the record beside it");
    assert!(bench.finish(wait).is_ok());
}

#[test]
fn a_void_waits_until_the_one_before_is_on_disk_and_holds_up_no_acknowledged_write() {
    let mut bench = Bench::new(16);
    // Two segments of which nothing is needed: every key is written once more.
    for _ in 0..2 {
        for number in 0..2 * SEGMENT_BYTES as usize / (4 << 10) {
            bench.put_durably(&format!("k{number}"), &[7; 4 << 10]);
        }
    }
    bench.flush();
    bench.device.set_delay_max(5000);
    for segment in [0, 1] {
        let mut state = bench.log.state.borrow_mut();
        assert_eq!(state.segments[usize::from(segment)].live_count, 0);
        state.begin_reclaiming(segment);
        state.release(segment);
    }
    let are_in_the_air = |bench: &Bench| [0, 1].map(|segment| bench.log.state.borrow().is_in_the_air(segment));
    bench.log.work.ring();
    bench.turn();
    assert_eq!(are_in_the_air(&bench), [true, false]);
    let calls = bench.device.calls();
    let position = bench.put("a", b"one").unwrap();
    let mut wait = Box::pin(Rc::clone(&bench.log).durable(position));
    assert!((&mut wait).now_or_never().is_none());
    bench.turn();
    assert_eq!(
        (are_in_the_air(&bench), bench.device.calls()),
        ([true, false], calls + 1),
        "the record beside the void"
    );
    assert!(bench.finish(wait).is_ok());
    bench.flush();
    assert_eq!(bench.log.figures().counts.reclaimed, 2);
}

/// Puts and deletes its keys in turn for ever, each change durable before the next begins.
async fn change_for_ever(log: Rc<Log<Scripted>>, changes: &[Cell<Changes>], first: usize) {
    for number in (first..first + KEYS_OF_A_WRITER).cycle() {
        let Changes { begun, durable } = changes[number].get();
        let (key, change) = (key(&format!("k{number}")), begun + 1);
        changes[number].set(Changes { begun: change, durable });
        let position = if is_delete(change) {
            Rc::clone(&log).delete(key, NOW).await
        } else {
            let value = format!("{change:08}{}", "x".repeat(3000));
            Rc::clone(&log).put(key, entry(value.as_bytes(), "v"), None, NOW).await
        };
        Rc::clone(&log).durable(position.unwrap()).await.unwrap();
        changes[number].set(Changes { begun: change, durable: change });
    }
}

/// The changes of a key are numbered from 1.
#[derive(Clone, Copy, Default)]
struct Changes {
    begun: u64,
    durable: u64,
}

const KEYS_OF_A_WRITER: usize = 5;

fn is_delete(change: u64) -> bool {
    change.is_multiple_of(4)
}

#[test]
fn a_crash_while_writes_footers_and_voids_are_in_the_air_takes_no_key_back() {
    const WRITERS: usize = 6;
    let mut reclaimed = 0;
    for seed in seeds(40) {
        let mut bench = Bench::with_seed(16, seed);
        bench.device.set_delay_max(1 + seed % 20);
        let changes: [Cell<Changes>; WRITERS * KEYS_OF_A_WRITER] = Default::default();
        {
            let first_keys = (0..WRITERS).map(|writer| writer * KEYS_OF_A_WRITER);
            let writers = first_keys.map(|first| change_for_ever(Rc::clone(&bench.log), &changes, first));
            let mut writers = Box::pin(futures::future::join_all(writers));
            for _ in 0..2000 + Random(seed).below(2000) {
                assert!((&mut writers).now_or_never().is_none());
                bench.turn();
            }
        }
        reclaimed += bench.log.figures().counts.reclaimed;
        bench.device.lose_power();
        let mut bench = bench.restarted();
        for (number, changes) in changes.iter().enumerate() {
            let Changes { begun, durable } = changes.get();
            let value = bench.value(&format!("k{number}"));
            let found = value.map(|value| value[..8].parse::<u64>().unwrap());
            // None where it made room, and where a deletion is the newest.
            assert!(
                found.is_none_or(|found| (durable..=begun).contains(&found) && !is_delete(found)),
                "seed {seed}, k{number}: {found:?} of {durable} to {begun}"
            );
        }
    }
    assert!(reclaimed > 0);
}

#[test]
fn a_stop_seals_what_is_open_whatever_is_in_the_air() {
    for turns in 0..30 {
        let mut bench = Bench::new(16);
        bench.device.set_delay_max(20);
        let waits = ["a", "b", "c"].map(|name| {
            let position = bench.put(name, b"one").unwrap();
            let mut wait = Box::pin(Rc::clone(&bench.log).durable(position));
            assert!((&mut wait).now_or_never().is_none());
            bench.turn();
            wait
        });
        (0..turns).for_each(|_| bench.turn());
        bench.stop();
        assert!(bench.log.state.borrow().is_index_whole(), "after {turns} turns: {:?}", bench.log.figures());
        assert!(bench.finish(futures::future::join_all(waits)).iter().all(Result::is_ok));
    }
}

#[test]
fn of_two_writes_in_the_air_either_may_fail_and_both_are_acknowledged() {
    let mut count_in_the_air = [0; 2];
    for seed in seeds(50) {
        for (failing, count) in [(0, 1), (1, 1), (0, 2)] {
            let mut bench = Bench::with_seed(16, seed);
            bench.put_durably("before", b"zero");
            bench.device.set_delay_max(50);
            bench.device.fail(bench.device.calls() + failing, count, Fault::Error);
            let waits = ["a", "b"].map(|name| {
                let position = bench.put(name, name.as_bytes()).unwrap();
                let mut wait = Box::pin(Rc::clone(&bench.log).durable(position));
                assert!((&mut wait).now_or_never().is_none());
                bench.turn();
                wait
            });
            count_in_the_air[usize::from(bench.log.state.borrow().is_in_the_air(0))] += 1;
            let answers = bench.finish(futures::future::join_all(waits));
            assert!(answers.iter().all(Result::is_ok), "seed {seed}, {failing}: {answers:?}");
            for is_restarted in [false, true] {
                for (name, value) in [("before", "zero"), ("a", "a"), ("b", "b")] {
                    assert_eq!(bench.value(name).as_deref(), Some(value), "seed {seed}, {failing}, {is_restarted}");
                }
                bench.device.lose_power();
                bench = bench.restarted();
            }
        }
    }
    // Of one seed that was accepted back it may be none.
    assert!(count_in_the_air[1] + 10 > count_in_the_air[0], "{count_in_the_air:?}");
}

#[test]
fn a_disk_that_fails_for_good_is_given_up_and_nobody_hangs() {
    let mut bench = Bench::new(16);
    bench.put_durably("a", b"one");
    bench.device.fail(bench.device.calls(), u64::MAX, Fault::Error);
    let position = bench.put("b", b"two").unwrap();
    assert_eq!(bench.durable(position), Err(LogError::Offline));
    assert_eq!(bench.put("c", b"three"), Err(LogError::Offline));
    assert_eq!(bench.delete("a"), Err(LogError::Offline));
    assert_eq!(bench.value("a"), None);
    assert!(bench.log.figures().is_degraded);
    bench.stop();
}

#[test]
fn a_disk_that_fails_now_and_then_until_no_segment_is_left_refuses_writes_and_nobody_hangs() {
    let mut bench = Bench::new(16);
    let mut is_refused = false;
    for n in 0..40 {
        bench.device.fail(bench.device.calls(), 1, Fault::Error);
        match bench.put(&format!("k{n}"), &[0; 500]) {
            Ok(position) => bench.durable(position).unwrap(),
            Err(error) => {
                assert_eq!(error, LogError::Full);
                is_refused = true;
            }
        }
    }
    assert!(is_refused && bench.log.figures().is_degraded, "{:?}", bench.log.figures());
    bench.stop();
}

#[test]
fn a_record_that_cannot_be_read_is_a_miss_and_its_segment_is_emptied() {
    let mut bench = Bench::new(16);
    bench.put_durably("a", b"one");
    bench.put_durably("b", b"two");
    for n in 0..200 {
        bench.put(&format!("k{n}"), &[0; 500]).unwrap();
    }
    bench.flush();
    bench.device.fail(bench.device.calls(), 1, Fault::Lie);
    assert_eq!(bench.value("a"), None);
    assert_eq!(bench.log.figures().counts.corrupt, 1);
    for n in 200..2000 {
        bench.put(&format!("k{n}"), &[0; 500]).unwrap();
    }
    bench.flush();
    assert!(bench.log.figures().counts.reclaimed >= 1);
}

#[test]
fn operators_are_told_once_of_each_segment_that_fails_and_of_the_disk_that_is_given_up() {
    let mut bench = Bench::new(16);
    bench.put_durably("a", b"one");
    bench.put_durably("b", b"two");
    let told = |bench: &Bench| bench.log.take_troubles().first;
    let segment = 0;
    assert_eq!(told(&bench), []);
    for name in ["a", "b", "a"] {
        bench.device.fail(bench.device.calls(), 1, Fault::Error);
        assert_eq!(bench.value(name), None);
    }
    assert_eq!(told(&bench), [Trouble::Unreadable { segment, error: DeviceError::Os(5) }]);
    bench.device.fail(bench.device.calls(), 1, Fault::Lie);
    assert_eq!(bench.value("b"), None);
    let offset = 2 * BLOCK_BYTES as u32;
    assert_eq!(told(&bench), [Trouble::Corrupt { segment, offset }]);
    bench.put_unsynced("fill", b"zero");
    bench.device.fail(bench.device.calls() + 1, 1, Fault::Error);
    bench.put_durably("c", b"three");
    assert_eq!(told(&bench)[0], Trouble::Unsynced { segment, error: DeviceError::Os(5) });
    bench.device.fail(bench.device.calls(), u64::MAX, Fault::NoSpace);
    let position = bench.put("d", b"four").unwrap();
    assert_eq!(bench.durable(position), Err(LogError::Offline));
    let told_last = told(&bench);
    let unwritable = |told: &&Trouble| matches!(told, Trouble::Unwritable { error: DeviceError::Os(28), .. });
    assert!((1..=8).contains(&told_last.iter().filter(unwritable).count()), "{told_last:?}");
    assert_eq!(told_last.last(), Some(&Trouble::Offline));
    assert_eq!(told(&bench), []);
}

#[test]
fn what_was_found_at_the_start_is_counted_and_stays_so() {
    let mut bench = Bench::new(16);
    bench.put_durably("a", b"one");
    bench.put_durably("b", b"two");
    assert_eq!(bench.log.figures().recovered_entries, 0);
    let mut bench = bench.restarted();
    bench.put_durably("c", b"three");
    assert_eq!((bench.log.figures().recovered_entries, bench.log.figures().entries), (2, 3));
}

#[test]
fn a_footer_that_is_damaged_is_replaced_by_a_scan() {
    let mut bench = Bench::new(16);
    for n in 0..400 {
        bench.put(&format!("k{n}"), format!("{n:0>400}").as_bytes()).unwrap();
    }
    bench.flush();
    bench.device.with_bytes(|segments| {
        for segment in segments {
            let end = segment.len();
            segment[end - 100..].fill(0xFF);
        }
    });
    let mut bench = bench.restarted();
    assert!((0..400).all(|n| bench.value(&format!("k{n}")) == Some(format!("{n:0>400}"))));
    for n in 400..3000 {
        bench.put(&format!("k{n}"), format!("{n:0>400}").as_bytes()).unwrap();
    }
    let figures = bench.log.figures();
    assert!(figures.counts.reclaimed > 5, "{figures:?}");
}

#[test]
fn a_footer_of_several_pieces_tells_all_when_its_segment_is_reclaimed() {
    const LARGE_BYTES: u32 = 1 << 20;
    let mut bench = Bench::with_segments(12, LARGE_BYTES, 0);
    bench.device.set_delay_max(0);
    let mut count = 0;
    while !bench.log.needs_reclaiming() {
        bench.put(&format!("{count:07}"), b"").unwrap();
        count += 1;
    }
    let reads_before = bench.device.reads();
    bench.flush();
    let figures = bench.log.figures();
    let records = bench.log.state.borrow().segments.iter().map(|segment| segment.record_count).max().unwrap();
    let piece_count = footer_bytes(records as usize).div_ceil(FOOTER_PIECE_BYTES) as u64;
    assert!(piece_count > 1 && figures.counts.reclaimed > 0, "{records} records, {figures:?}");
    // A scan would read the whole segment.
    assert_eq!(bench.device.reads() - reads_before, piece_count * figures.counts.reclaimed);
    assert_eq!((figures.counts.corrupt, figures.entries), (0, count - u64::from(records) * figures.counts.reclaimed));
}

#[test]
fn a_clean_stop_seals_everything() {
    let mut bench = Bench::new(16);
    for n in 0..100 {
        bench.put(&format!("k{n}"), &[0; 100]).unwrap();
    }
    bench.put_entry("short", expiring(b"x", NOW.plus_ms(1000))).unwrap();
    bench.stop();
    bench.device.lose_power();
    let states: Vec<SegmentState> = bench.log.state.borrow().segments.iter().map(|segment| segment.state).collect();
    assert!(states.iter().all(|state| matches!(state, SegmentState::Free | SegmentState::Sealed)), "{states:?}");
    let recovered = bench.device.with_bytes(|segments| {
        let bytes: Vec<&[u8]> = segments.iter().map(Vec::as_slice).collect();
        recover(LOG_ID, SEGMENT_BYTES, &bytes)
    });
    assert!(recovered.unsealed.is_empty());
    assert_eq!(recovered.record_count, 101);
    let mut bench = bench.restarted();
    assert!(bench.get("k99").is_some() && bench.get("short").is_some());
}

#[test]
fn another_logs_segments_are_not_taken_for_this_ones() {
    let mut bench = Bench::new(16);
    bench.put_durably("a", b"one");
    bench.device.with_bytes(|segments| {
        let header = SegmentHeader::decode(&segments[0]).unwrap();
        let other = SegmentHeader { log_id: LOG_ID + 1, ..header }.encode_block();
        segments[0][..BLOCK_BYTES].copy_from_slice(&other);
    });
    let mut bench = bench.restarted();
    assert_eq!(bench.value("a"), None);
}
