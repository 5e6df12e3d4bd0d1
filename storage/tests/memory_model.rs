//! The memory tier against a plain list that forgets nothing by itself, and its costs as an allocator sees them.

#[path = "support/counting.rs"]
mod counting;

use std::env;

use bytes::Bytes;
use milena_proto::key::{Key, KeyRef};
use milena_storage::{
    Entry, Timestamp, Version,
    memory::{BUDGET_BYTES_MIN, Lookup, Memory},
};

use counting::counts;

/// splitmix64: enough for tests, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        milena_proto::placement::mix64(self.0)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The seeds of a random test: `count` of them, or the one in MILENA_SEED.
fn seeds(count: u64) -> impl Iterator<Item = u64> {
    match env::var("MILENA_SEED") {
        Ok(text) => {
            let seed: u64 = text.parse().expect("MILENA_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..count,
    }
}

fn key(name: &str) -> Key {
    KeyRef::parse(b"default", name.as_bytes()).unwrap().to_key()
}

fn version(text: &str) -> Version {
    Version::new(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

fn entry(value: &[u8]) -> Entry {
    Entry { value: Bytes::copy_from_slice(value), version: version("v1"), expires: None }
}

fn expiring(value: &[u8], expires_ms: u64) -> Entry {
    Entry { expires: Some(Timestamp(expires_ms)), ..entry(value) }
}

const NOW: Timestamp = Timestamp(1_000_000);

/// A tier as tests use it most: copies are believed for ever.
struct Tier(Memory);

impl Tier {
    fn new() -> Self {
        Self(Memory::new(BUDGET_BYTES_MIN, 0))
    }

    fn with_entries_max(entries_max: usize) -> Self {
        Self(Memory::new(BUDGET_BYTES_MIN, entries_max))
    }

    fn put(&mut self, name: &str, entry: &Entry) -> bool {
        self.0.insert(key(name).as_ref(), entry, None, NOW)
    }

    fn get_at(&mut self, name: &str, now: Timestamp) -> Option<Entry> {
        match self.0.get(key(name).as_ref(), now) {
            Lookup::Hit(entry) => Some(entry),
            Lookup::Stale(_) => panic!("{name} is stale"),
            Lookup::Miss => None,
        }
    }

    fn get(&mut self, name: &str) -> Option<Entry> {
        self.get_at(name, NOW)
    }
}

#[test]
fn a_hit_answers_what_was_put_also_an_empty_value() {
    let mut tier = Tier::new();
    assert_eq!(tier.get("a"), None);
    for value in [&b""[..], b"x", &[7; 4000], &[8; 16 << 10]] {
        let entry = expiring(value, NOW.0 + 5);
        assert!(tier.put("a", &entry));
        assert_eq!(tier.get("a"), Some(entry));
    }
    tier.0.remove(key("a").as_ref());
    assert_eq!(tier.get("a"), None);
    assert_eq!(tier.0.figures().entries, 0);
}

#[test]
fn equal_bytes_cut_into_bucket_and_name_elsewhere_are_another_key() {
    let mut memory = Memory::new(BUDGET_BYTES_MIN, 0);
    let [one, other] = [("a", "bc"), ("ab", "c")].map(|(b, n)| KeyRef::parse(b.as_bytes(), n.as_bytes()).unwrap());
    memory.insert(one, &entry(b"1"), None, NOW);
    assert_eq!(memory.get(other, NOW), Lookup::Miss);
    assert_eq!(memory.get(one, NOW), Lookup::Hit(entry(b"1")));
}

#[test]
fn the_least_recently_used_goes_first() {
    let mut tier = Tier::with_entries_max(3);
    for name in ["a", "b", "c"] {
        tier.put(name, &entry(name.as_bytes()));
    }
    tier.get("a");
    tier.put("b", &entry(b"again"));
    tier.put("d", &entry(b"d")); // c was used least recently
    assert_eq!(["a", "b", "c", "d"].map(|name| tier.get(name).is_some()), [true, true, false, true]);
    tier.put("e", &entry(b"e")); // now a
    assert_eq!(["a", "b", "d", "e"].map(|name| tier.get(name).is_some()), [false, true, true, true]);
    assert_eq!(tier.0.figures().evictions, 2);
}

#[test]
fn a_value_larger_than_its_share_of_the_budget_is_refused_and_what_it_replaces_is_gone() {
    let mut tier = Tier::new();
    let bytes_max = tier.0.value_bytes_max();
    assert_eq!(bytes_max, BUDGET_BYTES_MIN / 64);
    assert!(tier.put("a", &entry(&vec![1; bytes_max])));
    assert!(!tier.put("a", &entry(&vec![1; bytes_max + 1])));
    assert_eq!(tier.get("a"), None);
}

#[test]
fn a_version_that_is_too_long_for_a_record_is_refused() {
    let long = Entry { version: version(&"v".repeat(256)), ..entry(b"x") };
    assert!(!Tier::new().put("a", &long));
}

#[test]
fn a_value_past_its_life_is_a_miss_and_a_clock_that_jumps_back_does_not_revive_it() {
    let mut tier = Tier::new();
    tier.put("a", &expiring(b"x", NOW.0 + 10));
    assert!(tier.get_at("a", Timestamp(NOW.0 + 9)).is_some());
    assert_eq!(tier.get_at("a", Timestamp(NOW.0 + 10)), None);
    assert_eq!(tier.get_at("a", NOW), None);
    assert_eq!(tier.0.figures().expirations, 1);
    assert!(!tier.put("a", &expiring(b"x", NOW.0)), "it ended before it began");
}

#[test]
fn a_copy_no_longer_believed_is_stale_until_it_is_stamped_again() {
    let mut memory = Memory::new(BUDGET_BYTES_MIN, 0);
    let name = key("a");
    let at = |seconds: u64| Timestamp(seconds * 1000);
    memory.insert(name.as_ref(), &entry(b"x"), Some(at(10)), at(0));
    assert_eq!(memory.get(name.as_ref(), Timestamp(9_999)), Lookup::Hit(entry(b"x")));
    assert_eq!(memory.get(name.as_ref(), at(10)), Lookup::Stale(entry(b"x")));
    assert_eq!(memory.get(name.as_ref(), at(0)), Lookup::Stale(entry(b"x")), "the clock jumped back");

    memory.restamp(name.as_ref(), &version("another"), Some(at(20)));
    assert_eq!(memory.get(name.as_ref(), at(10)), Lookup::Stale(entry(b"x")));
    memory.restamp(name.as_ref(), &version("v1"), Some(at(20)));
    assert_eq!(memory.get(name.as_ref(), at(10)), Lookup::Hit(entry(b"x")));

    memory.remove_version(name.as_ref(), &version("another"));
    assert_eq!(memory.get(name.as_ref(), at(10)), Lookup::Hit(entry(b"x")));
    memory.remove_version(name.as_ref(), &version("v1"));
    assert_eq!(memory.get(name.as_ref(), at(10)), Lookup::Miss);
}

#[test]
fn a_walk_in_steps_doubts_the_copies_it_is_told_to_and_no_others() {
    let mut memory = Memory::new(BUDGET_BYTES_MIN, 0);
    let now = Timestamp(1_000);
    let keys: Vec<Key> = (0..3_000).map(|number| key(&format!("k-{number}"))).collect();
    for key in &keys {
        assert!(memory.insert(key.as_ref(), &entry(b"v"), None, now));
    }
    memory.remove(keys[7].as_ref());
    let is_doubtful = |hash: u64| hash.is_multiple_of(3);
    let (mut next, mut steps) = (Some(0), 0);
    while let Some(from) = next {
        next = memory.doubt_some(from, 500, is_doubtful);
        steps += 1;
    }
    assert!(steps >= 6, "{steps} steps of 500 slots");
    for (number, key) in keys.iter().enumerate() {
        let expected = match (number, is_doubtful(key.hash())) {
            (7, _) => Lookup::Miss,
            (_, true) => Lookup::Stale(entry(b"v")),
            (_, false) => Lookup::Hit(entry(b"v")),
        };
        assert_eq!(memory.get(key.as_ref(), now), expected, "{number}");
    }
}

#[test]
fn a_sweep_drops_what_has_ended_and_nothing_else() {
    let mut tier = Tier::new();
    for number in 0..100 {
        tier.put(&format!("short{number}"), &expiring(b"x", NOW.0 + number));
        tier.put(&format!("long{number}"), &expiring(b"x", NOW.0 + 1_000_000));
        tier.put(&format!("ever{number}"), &entry(b"x"));
    }
    tier.put("short7", &expiring(b"x", NOW.0 + 1_000_000)); // lives longer now
    assert!(!tier.0.sweep(NOW, 1000));
    assert_eq!(tier.0.figures().entries, 300 - 1, "the first was over before it began");

    let later = Timestamp(NOW.0 + 10_000);
    assert!(tier.0.sweep(later, 10), "there are more");
    assert!(!tier.0.sweep(later, 1000));
    assert_eq!(tier.0.figures().entries, 201);
    assert_eq!(tier.0.figures().expirations, 98);
}

#[test]
fn lives_that_are_replaced_again_and_again_cost_nothing() {
    let mut tier = Tier::new();
    let before = counts();
    for number in 0..200_000 {
        tier.put("a", &expiring(b"x", NOW.0 + 1 + number % 5_000));
    }
    assert!(before.until_now().held_bytes < 200_000);
}

#[test]
fn a_value_in_a_readers_hands_outlives_its_entry() {
    let mut tier = Tier::new();
    tier.put("a", &entry(&[1; 100]));
    let read = tier.get("a").unwrap();
    for number in 0..20_000 {
        tier.put(&format!("k{number}"), &entry(&[2; 200]));
    }
    assert_eq!(tier.get("a"), None);
    assert_eq!(read.value, [1; 100][..]);
}

#[test]
fn what_readers_hold_counts_until_they_let_it_go() {
    let mut tier = Tier::new();
    let mut held = Vec::new();
    for number in 0..2_000 {
        let name = format!("k{number}");
        tier.put(&name, &entry(&[number as u8; 8 << 10]));
        held.extend(tier.get(&name));
    }
    assert!(held.len() < 128, "{} values of 8 KiB in 1 MiB", held.len());
    for entry in &held {
        assert!(entry.value.iter().all(|byte| *byte == entry.value[0]));
    }
    held.clear();
    assert!(tier.put("a", &entry(b"x")));
    assert_eq!(tier.get("a"), Some(entry(b"x")));
}

#[test]
fn a_hit_allocates_nothing() {
    let mut tier = Tier::new();
    for number in 0..1000 {
        tier.put(&format!("k{number}"), &entry(&vec![1; if number == 0 { 10_000 } else { 100 }]));
    }
    let names = ["k0", "k1", "k500"].map(key);
    tier.get("k999"); // who reads what was just written pays once for its block
    let before = counts();
    for name in &names {
        assert!(matches!(tier.0.get(name.as_ref(), NOW), Lookup::Hit(_)));
    }
    assert_eq!(before.until_now().allocations, 0);
}

#[test]
fn an_entry_costs_at_most_forty_bytes_beyond_key_version_and_value() {
    let before = counts();
    let mut memory = Memory::new(256 << 20, 0);
    let count = 87_000_u64; // tables two thirds full, as they are on average
    let (mut own_bytes, etag) = (0, version(&"e".repeat(32)));
    for number in 0..count {
        let name = format!("key-{number}");
        let value = vec![7; 50 + (number % 100) as usize];
        own_bytes += "default".len() + name.len() + etag.as_str().len() + value.len();
        let entry = Entry { value: value.into(), version: etag.clone(), expires: None };
        assert!(memory.insert(key(&name).as_ref(), &entry, None, NOW));
    }
    assert_eq!(memory.figures().evictions, 0);
    let held_bytes = before.until_now().held_bytes.cast_unsigned();
    let overhead = (held_bytes - own_bytes) as f64 / count as f64;
    let counted_bytes = memory.figures().held_bytes;
    println!("{overhead:.1} bytes an entry; {counted_bytes} counted, {held_bytes} held");
    assert!(overhead <= 40.0, "{overhead}");
    let share = counted_bytes as f64 / held_bytes as f64;
    assert!((0.99..1.02).contains(&share), "{counted_bytes} counted, {held_bytes} held");
}

#[test]
fn what_is_counted_is_what_is_held_after_much_coming_and_going() {
    const BUDGET_BYTES: u64 = 8 << 20;
    let before = counts();
    let mut random = Random(1);
    let mut tier = Tier(Memory::new(BUDGET_BYTES as usize, 0));
    let mut used_bytes_sum = 0;
    for round in 0..150_000 {
        let name = format!("k{}", random.below(100_000));
        let kinds_count = 1 + (round / 1000) % 5; // what comes in changes all the time
        let bytes = [20, 100, 300, 1_000, 6_000][random.below(kinds_count) as usize];
        tier.put(&name, &entry(&vec![1; bytes]));
        if round % 4 == 0 {
            tier.get(&format!("k{}", random.below(100_000)));
        }
        let figures = tier.0.figures();
        if round >= 50_000 {
            used_bytes_sum += figures.value_bytes + figures.key_bytes;
        }
        if round % 100 == 0 {
            let held_bytes = before.until_now().held_bytes as u64;
            assert!(figures.held_bytes <= BUDGET_BYTES && held_bytes <= BUDGET_BYTES, "{figures:?}, held {held_bytes}");
            assert!(held_bytes as f64 >= 0.9 * figures.held_bytes as f64, "{figures:?}, held {held_bytes}");
        }
    }
    println!("{:.1} % of the budget are keys and values", used_bytes_sum as f64 / 1000.0 / BUDGET_BYTES as f64);
}

/// The same tier as a list, the most recently used last.
#[derive(Default)]
struct Model {
    entries: Vec<(u64, Entry, Option<u64>)>,
}

impl Model {
    fn take(&mut self, number: u64) -> Option<(u64, Entry, Option<u64>)> {
        let index = self.entries.iter().position(|(other, ..)| *other == number)?;
        Some(self.entries.remove(index))
    }

    /// What a read finds; it makes the entry the most recently used.
    fn read(&mut self, number: u64, now: Timestamp) -> Lookup {
        let Some((_, entry, believed_s)) = self.take(number).filter(|(_, entry, _)| !entry.is_expired(now)) else {
            return Lookup::Miss;
        };
        self.entries.push((number, entry.clone(), believed_s));
        if believed_s.is_none_or(|seconds| now.0 < seconds * 1000) { Lookup::Hit(entry) } else { Lookup::Stale(entry) }
    }
}

fn random_entry(random: &mut Random, sizes: &[usize], now: Timestamp) -> Entry {
    let bytes = sizes[random.below(sizes.len() as u64) as usize];
    Entry {
        value: vec![random.next() as u8; bytes].into(),
        version: version(&random.below(1000).to_string()),
        expires: (random.below(3) == 0).then(|| now.plus_ms(random.below(20_000))),
    }
}

/// Puts, reads, removes and sweeps at random, and compares. The model learns only how many entries were evicted; they
/// must have been the least recently used.
fn agrees_with_the_model(seed: u64) {
    println!("MILENA_SEED={seed}");
    let mut random = Random(seed);
    let entries_max = [0, 0, 7, 50][random.below(4) as usize];
    // Few keys of all sizes, or so many small ones that blocks have holes to clean.
    let (key_count, rounds, sizes): (u64, u32, &[usize]) = if random.below(2) == 0 {
        (200, 2_000, &[0, 10, 500, 3_000, 9_000, 16 << 10])
    } else {
        (2_000, 6_000, &[300, 600, 1_500])
    };
    let mut memory = Memory::new(BUDGET_BYTES_MIN, entries_max);
    let mut model = Model::default();
    let mut now = NOW;
    let mut lent: Vec<Entry> = Vec::new();
    for _ in 0..rounds {
        now = now.plus_ms(random.below(300));
        let number = random.below(key_count);
        let name = key(&number.to_string());
        match random.below(20) {
            0..8 => {
                let entry = random_entry(&mut random, sizes, now);
                let believed_s = (random.below(4) == 0).then(|| now.0 / 1000 + random.below(60));
                let believed_until = believed_s.map(|seconds| Timestamp(seconds * 1000 + random.below(1000)));
                model.take(number);
                if memory.insert(name.as_ref(), &entry, believed_until, now) {
                    model.entries.push((number, entry, believed_s));
                } else {
                    assert!(entry.is_expired(now));
                }
            }
            8..17 => {
                let found = memory.get(name.as_ref(), now);
                assert_eq!(found, model.read(number, now));
                match found {
                    Lookup::Hit(entry) | Lookup::Stale(entry) if random.below(4) == 0 => lent.push(entry),
                    _ => {}
                }
            }
            17 => {
                memory.remove(name.as_ref());
                model.take(number);
            }
            18 => {
                // A sweep may leave those that ended a moment ago; a read of them drops them.
                memory.sweep(now, 1000);
                let over = model.entries.extract_if(.., |(_, entry, _)| entry.is_expired(now));
                over.for_each(|(number, ..)| {
                    assert_eq!(memory.get(key(&number.to_string()).as_ref(), now), Lookup::Miss);
                });
            }
            _ => lent.clear(),
        }
        let figures = memory.figures();
        assert!(figures.held_bytes <= figures.budget_bytes);
        assert!(entries_max == 0 || figures.entries <= entries_max as u64);
        let evicted_count = model.entries.len() - figures.entries as usize;
        model.entries.drain(..evicted_count);
        assert_eq!(
            figures.value_bytes,
            model.entries.iter().map(|(_, entry, _)| entry.value.len() as u64).sum::<u64>()
        );
    }
    for entry in &lent {
        assert!(entry.value.iter().all(|byte| *byte == entry.value[0]), "a lent value changed");
    }
    for number in 0..key_count {
        assert_eq!(memory.get(key(&number.to_string()).as_ref(), now), model.read(number, now));
    }
}

#[test]
fn random_use_agrees_with_a_plain_list() {
    seeds(60).for_each(agrees_with_the_model);
}
