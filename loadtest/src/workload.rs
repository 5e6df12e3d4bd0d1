//! What is asked: operations, keys and values drawn by chance, and the presets that people know by name.
//!
//! ```text
//!   preset, flags ──▶ Workload ──Draw::new(core)──▶ Draw ──draw──▶ Operation { op, key, value_bytes, ttl_ms }
//! ```
//! Every core draws its own, from the same seed. Keys that are inserted are numbered so that no two cores meet:
//!
//! ```text
//!   ids   0 … keys - 1          keys + insert × cores + core
//!         there from the start  inserted by `core`
//! ```
//! Pure. The presets `ycsb-*` are YCSB's core workloads with values in one piece (Cooper et al., "Benchmarking Cloud Serving
//! Systems with YCSB", SoCC 2010); its E needs scans, which a cache does not have. `etc` has the sizes and the ratio of
//! Facebook's general pool (Atikoglu et al., "Workload Analysis of a Large-Scale Key-Value Store", SIGMETRICS 2012,
//! sections 3.1 and 5).

use std::{collections::BTreeMap, fmt, str::FromStr};

use bytes::Bytes;
use milena_net::settings;
use milena_proto::limits::VALUE_BYTES_MAX;

use crate::{
    keys::{KeyDist, KeyId, Keys, name},
    random::{Random, mix},
};

/// What is done with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// Reads it.
    Get,
    /// Writes it.
    Put,
    /// Removes it.
    Delete,
    /// Reads it and then writes it: two calls.
    Rmw,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Get, Self::Put, Self::Delete, Self::Rmw];

    /// As in results and flags.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Delete => "delete",
            Self::Rmw => "rmw",
        }
    }
}

/// What a key is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// By its number: [`crate::keys::name`].
    Id(KeyId),
    /// As a trace has it.
    Text(Bytes),
}

impl Name {
    /// Calls `with` with the bytes of the name.
    pub fn with<T>(&self, with: impl FnOnce(&[u8]) -> T) -> T {
        match self {
            Self::Id(id) => with(&name(*id)),
            Self::Text(text) => with(text),
        }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.with(<[u8]>::len)
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What to do.
    pub op: Op,
    /// With which key.
    pub name: Name,
    /// How large the value is, if one is written.
    pub value_bytes: u32,
    /// Its life in milliseconds; 0 = for ever.
    pub ttl_ms: u64,
    /// What the source of the operation wants to be told again with its answer.
    pub token: u128,
}

/// Shares of what is done.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Ratio {
    /// Reads.
    pub get: f64,
    /// Writes of keys that are there.
    pub put: f64,
    /// Writes of keys that are not there yet.
    pub insert: f64,
    /// Deletes.
    pub delete: f64,
    /// Reads followed by a write of the same key.
    pub rmw: f64,
}

/// Sizes of values and how often each is written.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueSize {
    /// Bytes and weights; which of them is the key's own, so a key's values are all of one size.
    Weighted(Vec<(u32, f64)>),
    /// Facebook's general pool: a generalised Pareto distribution, from 15 bytes up to a MiB.
    Etc,
}

/// A flag that cannot be read: what was found, what is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    found: String,
    expected: &'static str,
}

/// Everything about the load but its rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Its name.
    pub preset: &'static str,
    /// Shares of what is done.
    pub ratio: Ratio,
    /// Keys that are there from the start.
    pub keys: u64,
    /// How often which key is asked for.
    pub key_dist: KeyDist,
    /// How large values are.
    pub value_size: ValueSize,
    /// The life of what is written, in milliseconds; 0 = for ever.
    pub ttl_ms: u64,
    /// How keys are chosen, if not by chance alone.
    pub walk: Walk,
    /// Whether every key is written before.
    pub is_preloaded: bool,
    /// Where all randomness comes from.
    pub seed: u64,
}

/// How keys follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// By chance, as the distribution says.
    Drawn,
    /// Each key once, and then again from the beginning: nothing is asked for that was asked for a moment ago.
    Once,
    /// As many requests as are in flight for one key, then for the next, which nobody has asked for before.
    Storm,
}

/// The presets with what they are.
pub const PRESETS: [(&str, &str); 9] = [
    ("ycsb-a", "half reads, half writes, zipf"),
    ("ycsb-b", "95 % reads, 5 % writes, zipf"),
    ("ycsb-c", "reads only, zipf"),
    ("ycsb-d", "95 % reads of the latest keys, 5 % new keys"),
    ("ycsb-f", "half reads, half read-modify-writes, zipf"),
    ("etc", "Facebook's general pool: 30 reads for each write, most values of a few hundred bytes"),
    ("churn", "half reads, zipf; half new keys that nobody asks for again"),
    ("cold", "reads only, each key once, nothing written before: what a restarted cluster has to fetch"),
    ("storm", "reads only: everybody asks at once for one key after the other that is not there"),
];

impl Workload {
    /// The preset called `name`.
    #[must_use]
    pub fn preset(name: &str) -> Option<Self> {
        let (preset, _) = PRESETS.iter().find(|(preset, _)| *preset == name)?;
        let usual = Self {
            preset,
            ratio: Ratio { get: 1.0, ..Ratio::default() },
            keys: 100_000,
            key_dist: KeyDist::Zipf(0.99),
            value_size: ValueSize::Weighted(vec![(1000, 1.0)]),
            ttl_ms: 0,
            walk: Walk::Drawn,
            is_preloaded: true,
            seed: 42,
        };
        let ratio = |get, put| Ratio { get, put, ..Ratio::default() };
        Some(match *preset {
            "ycsb-a" => Self { ratio: ratio(0.5, 0.5), ..usual },
            "ycsb-b" => Self { ratio: ratio(0.95, 0.05), ..usual },
            "ycsb-c" => usual,
            "ycsb-d" => Self {
                ratio: Ratio { get: 0.95, insert: 0.05, ..Ratio::default() },
                key_dist: KeyDist::Latest(0.99),
                ..usual
            },
            "ycsb-f" => Self { ratio: Ratio { get: 0.5, rmw: 0.5, ..Ratio::default() }, ..usual },
            "etc" => Self { ratio: ratio(30.0 / 31.0, 1.0 / 31.0), value_size: ValueSize::Etc, ..usual },
            "churn" => Self { ratio: Ratio { get: 0.5, insert: 0.5, ..Ratio::default() }, ..usual },
            "cold" => Self { key_dist: KeyDist::Uniform, walk: Walk::Once, is_preloaded: false, ..usual },
            "storm" => Self { key_dist: KeyDist::Uniform, walk: Walk::Storm, is_preloaded: false, ..usual },
            _ => unreachable!("every preset is in the list"),
        })
    }
}

impl Ratio {
    /// Shares by name, those that are not 0.
    #[must_use]
    pub fn shares(&self) -> BTreeMap<String, f64> {
        let Self { get, put, insert, delete, rmw } = *self;
        let all = [("get", get), ("put", put), ("insert", insert), ("delete", delete), ("rmw", rmw)];
        all.into_iter().filter(|(_, share)| *share > 0.0).map(|(name, share)| (name.to_owned(), share)).collect()
    }
}

impl FromStr for Ratio {
    type Err = Unreadable;

    /// `get:95,put:5`, or as memtier has it, writes before reads: `1:10`. Any sum; shares come out of it.
    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let error = || Unreadable {
            found: text.to_owned(),
            expected: "get:95,put:5 (also insert, delete, rmw), or PUTS:GETS as memtier has it",
        };
        let weight = |text: &str| text.trim().parse::<f64>().ok().filter(|weight| weight.is_finite() && *weight >= 0.0);
        let mut ratio = Self::default();
        if let Some((puts, gets)) = text.split_once(':')
            && let (Some(puts), Some(gets)) = (weight(puts), weight(gets))
        {
            (ratio.put, ratio.get) = (puts, gets);
        } else {
            for part in text.split(',') {
                let (name, number) = part.split_once([':', '=']).ok_or_else(error)?;
                let share = match name.trim() {
                    "get" => &mut ratio.get,
                    "put" | "set" => &mut ratio.put,
                    "insert" => &mut ratio.insert,
                    "delete" => &mut ratio.delete,
                    "rmw" => &mut ratio.rmw,
                    _ => return Err(error()),
                };
                *share += weight(number).ok_or_else(error)?;
            }
        }
        let Self { get, put, insert, delete, rmw } = &mut ratio;
        let sum = *get + *put + *insert + *delete + *rmw;
        if sum <= 0.0 {
            return Err(error());
        }
        [get, put, insert, delete, rmw].into_iter().for_each(|share| *share /= sum);
        Ok(ratio)
    }
}

/// Facebook's general pool, values: location, scale and shape of the generalised Pareto distribution.
const ETC: [f64; 3] = [15.0, 214.476, 0.348_238];
const ETC_BYTES_MAX: f64 = (1 << 20) as f64;

impl ValueSize {
    /// The size of the values of a key, in bytes: the same for the same key and seed.
    #[must_use]
    pub fn of(&self, name_hash: u64) -> u32 {
        // From 0 to below 1.
        let share = (mix(name_hash) >> 11) as f64 * f64::EPSILON / 2.0;
        match self {
            Self::Weighted(sizes) => {
                let mut left = share;
                let found = sizes.iter().find(|(_, weight)| {
                    left -= weight;
                    left < 0.0
                });
                found.or(sizes.last()).expect("at least one size").0
            }
            Self::Etc => {
                let [location, scale, shape] = ETC;
                let bytes = location + scale * ((1.0 - share).powf(-shape) - 1.0) / shape;
                bytes.min(ETC_BYTES_MAX) as u32
            }
        }
    }

    /// The mean over all keys, in bytes.
    #[must_use]
    pub fn mean_bytes(&self) -> f64 {
        match self {
            Self::Weighted(sizes) => sizes.iter().map(|(bytes, weight)| f64::from(*bytes) * weight).sum(),
            Self::Etc => ETC[0] + ETC[1] / (1.0 - ETC[2]),
        }
    }

    /// The largest, in bytes.
    #[must_use]
    pub fn bytes_max(&self) -> u32 {
        match self {
            Self::Weighted(sizes) => sizes.iter().map(|(bytes, _)| *bytes).max().expect("at least one size"),
            Self::Etc => ETC_BYTES_MAX as u32,
        }
    }
}

impl FromStr for ValueSize {
    type Err = Unreadable;

    /// `1KiB`, or sizes with weights: `100B:90,1MiB:1`; or `etc`.
    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let expected = "a size, or sizes with weights such as 100B:90,1MiB:1, each at most 64MiB, or etc";
        let error = || Unreadable { found: text.to_owned(), expected };
        if text == "etc" {
            return Ok(Self::Etc);
        }
        let mut sizes = Vec::new();
        for part in text.split(',') {
            let (size, weight) = part.split_once(':').unwrap_or((part, "1"));
            let bytes = settings::size(size.trim()).filter(|bytes| *bytes <= VALUE_BYTES_MAX as u64);
            let weight = weight.trim().parse::<f64>().ok().filter(|weight| weight.is_finite() && *weight > 0.0);
            let bytes = bytes.ok_or_else(error)?;
            sizes.push((u32::try_from(bytes).expect("at most VALUE_BYTES_MAX"), weight.ok_or_else(error)?));
        }
        let sum: f64 = sizes.iter().map(|(_, weight)| weight).sum();
        sizes.iter_mut().for_each(|(_, weight)| *weight /= sum);
        Ok(Self::Weighted(sizes))
    }
}

impl fmt::Display for ValueSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Etc => f.write_str("etc"),
            Self::Weighted(sizes) if sizes.len() == 1 => write!(f, "{}B", sizes[0].0),
            Self::Weighted(sizes) => {
                let parts: Vec<String> = sizes.iter().map(|(bytes, weight)| format!("{bytes}B:{weight}")).collect();
                f.write_str(&parts.join(","))
            }
        }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} is expected", self.found, self.expected)
    }
}

impl std::error::Error for Unreadable {}

/// One core's share of a workload.
#[derive(Debug)]
pub struct Draw {
    workload: Workload,
    keys: Keys,
    random: Random,
    core: u64,
    cores: u64,
    /// Keys that this core has inserted.
    inserted: u64,
    /// Operations that were drawn.
    drawn: u64,
    /// Requests of this core that are in flight at once: the width of a storm.
    inflight_max: u64,
}

impl Draw {
    /// The share of core number `core` of `cores`, which has up to `inflight_max` requests in flight.
    #[must_use]
    pub fn new(workload: &Workload, core: usize, cores: usize, inflight_max: usize) -> Self {
        assert!(workload.keys >= cores as u64, "each core has a key");
        assert!(core < cores && inflight_max > 0, "core {core} of {cores}, {inflight_max} in flight");
        Self {
            keys: Keys::new(workload.keys, workload.key_dist, workload.seed),
            random: Random::new(workload.seed, core as u64),
            workload: workload.clone(),
            core: core as u64,
            cores: cores as u64,
            inserted: 0,
            drawn: 0,
            inflight_max: inflight_max as u64,
        }
    }

    /// The next operation. O(1), allocates nothing.
    pub fn draw(&mut self) -> Operation {
        let Ratio { get, put, insert, delete, .. } = self.workload.ratio;
        let share = self.random.share();
        self.drawn += 1;
        if share < get {
            let id = self.id();
            self.operation(Op::Get, id)
        } else if share < get + put {
            let id = self.id();
            self.operation(Op::Put, id)
        } else if share < get + put + insert {
            let id = self.workload.keys + self.inserted * self.cores + self.core;
            self.inserted += 1;
            self.operation(Op::Put, id)
        } else if share < get + put + insert + delete {
            let id = self.id();
            self.operation(Op::Delete, id)
        } else {
            let id = self.id();
            self.operation(Op::Rmw, id)
        }
    }

    /// The next operation, with a key that no other core is given.
    pub fn draw_own(&mut self) -> Operation {
        let mut operation = self.draw();
        if let Name::Id(id) = &mut operation.name {
            // Down to this core's key of the same stretch, or the one before the end: 0 to `keys` - 1 again.
            let own = *id - *id % self.cores + self.core;
            *id = if *id < self.workload.keys && own >= self.workload.keys { own - self.cores } else { own };
        }
        operation
    }

    /// Key number `index` of those that this core writes before the measurement; `None` after the last.
    #[must_use]
    pub fn preload(&self, index: u64) -> Option<Operation> {
        let id = index * self.cores + self.core;
        (id < self.workload.keys).then(|| self.operation(Op::Put, id))
    }

    fn id(&mut self) -> KeyId {
        match self.workload.walk {
            Walk::Drawn => self.keys.draw(self.workload.keys + self.inserted * self.cores, &mut self.random),
            Walk::Once => self.keys.walk((self.drawn - 1) * self.cores + self.core),
            // Of no other run: the seed is in it.
            Walk::Storm => mix(self.workload.seed).wrapping_add((self.drawn - 1) / self.inflight_max),
        }
    }

    fn operation(&self, op: Op, id: KeyId) -> Operation {
        let value_bytes = self.workload.value_size.of(id ^ self.workload.seed);
        Operation { op, name: Name::Id(id), value_bytes, ttl_ms: self.workload.ttl_ms, token: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn draw(workload: &Workload, count: usize) -> Vec<Operation> {
        let mut draw = Draw::new(workload, 0, 1, 8);
        (0..count).map(|_| draw.draw()).collect()
    }

    fn id(operation: &Operation) -> KeyId {
        match operation.name {
            Name::Id(id) => id,
            Name::Text(_) => panic!("drawn keys have numbers"),
        }
    }

    #[test]
    fn every_preset_in_the_list_exists_and_its_shares_sum_up() {
        for (name, _) in PRESETS {
            let workload = Workload::preset(name).expect(name);
            let sum: f64 = workload.ratio.shares().values().sum();
            assert!((sum - 1.0).abs() < 1e-9, "{name}: {sum}");
        }
        assert_eq!(Workload::preset("ycsb-e"), None);
    }

    #[test]
    fn operations_come_in_their_shares() {
        let mut workload = Workload::preset("ycsb-c").unwrap();
        workload.ratio = "get:50,put:20,insert:10,delete:15,rmw:5".parse().unwrap();
        let operations = draw(&workload, 100_000);
        let share = |op| operations.iter().filter(|operation| operation.op == op).count() as f64 / 1e5;
        for (op, expected) in [(Op::Get, 0.5), (Op::Put, 0.3), (Op::Delete, 0.15), (Op::Rmw, 0.05)] {
            assert!((share(op) - expected).abs() < 0.01, "{op:?}: {}", share(op));
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_and_another_core_something_else() {
        let workload = Workload::preset("ycsb-a").unwrap();
        assert_eq!(draw(&workload, 100), draw(&workload, 100));
        let mut other = Draw::new(&workload, 1, 2, 8);
        assert_ne!(draw(&workload, 100), (0..100).map(|_| other.draw()).collect::<Vec<_>>());
    }

    #[test]
    fn two_cores_insert_different_keys_and_preload_each_key_once() {
        let workload = Workload { keys: 11, ..Workload::preset("churn").unwrap() };
        let mut inserted = HashSet::new();
        let mut preloaded = HashSet::new();
        for core in 0..2 {
            let mut draw = Draw::new(&workload, core, 2, 8);
            for operation in (0..100).map(|_| draw.draw()).filter(|operation| operation.op == Op::Put) {
                assert!(id(&operation) >= 11 && inserted.insert(id(&operation)));
            }
            preloaded.extend((0..).map_while(|index| draw.preload(index)).map(|operation| id(&operation)));
        }
        assert_eq!(preloaded, (0..11).collect());
    }

    #[test]
    fn keys_of_its_own_are_this_cores_and_within_the_population() {
        let workload = Workload { keys: 11, ..Workload::preset("ycsb-a").unwrap() };
        for core in 0..3 {
            let mut draw = Draw::new(&workload, core, 3, 8);
            let ids: HashSet<_> = (0..1000).map(|_| id(&draw.draw_own())).collect();
            let expected = (0..11).filter(|id| id % 3 == core as u64).collect();
            assert_eq!(ids, expected);
        }
    }

    #[test]
    fn a_cold_walk_asks_for_each_key_once_and_a_storm_for_one_key_as_often_as_requests_fly() {
        let cold = draw(&Workload { keys: 50, ..Workload::preset("cold").unwrap() }, 50);
        assert_eq!(cold.iter().map(id).collect::<HashSet<_>>().len(), 50);
        let storm = draw(&Workload::preset("storm").unwrap(), 16);
        let ids: Vec<_> = storm.iter().map(id).collect();
        assert!(ids[..8].iter().all(|id| *id == ids[0]) && ids[8..].iter().all(|id| *id == ids[0] + 1));
    }

    #[test]
    fn values_have_their_sizes_in_their_shares_and_a_key_keeps_its_own() {
        let sizes: ValueSize = "100B:90,1KiB:9,1MiB:1".parse().unwrap();
        let count = |bytes| (0..100_000).filter(|id| sizes.of(*id) == bytes).count();
        assert!(count(100).abs_diff(90_000) < 600 && count(1 << 20).abs_diff(1000) < 200);
        assert_eq!(sizes.of(7), sizes.of(7));
        assert_eq!((sizes.bytes_max(), sizes.mean_bytes()), (1 << 20, 90.0 + 92.16 + 10_485.76));
        assert_eq!("0".parse::<ValueSize>().unwrap().of(1), 0);
    }

    #[test]
    fn the_general_pool_has_its_mean_and_its_median() {
        let mut sizes: Vec<u32> = (0..100_000).map(|id| ValueSize::Etc.of(id)).collect();
        sizes.sort_unstable();
        let mean = sizes.iter().map(|bytes| f64::from(*bytes)).sum::<f64>() / 1e5;
        assert!((mean - ValueSize::Etc.mean_bytes()).abs() < 15.0, "{mean}");
        // 15 + 214.476 × (2^0.348238 - 1) / 0.348238
        assert!(sizes[50_000].abs_diff(183) < 5, "{}", sizes[50_000]);
    }

    #[test]
    fn ratios_and_sizes_are_read_and_nonsense_is_refused_with_what_is_expected() {
        let ratio: Ratio = "1:10".parse().unwrap();
        assert!((ratio.put - 1.0 / 11.0).abs() < 1e-12 && (ratio.get - 10.0 / 11.0).abs() < 1e-12);
        for text in ["", "get", "get:-1", "get:0", "scan:1", "0:0", "1:"] {
            let error = text.parse::<Ratio>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text}: get:95,put:5 ")), "{error}");
        }
        for text in ["", "x", "100B:0", "100B:-1", "65MiB", "1,,2"] {
            assert!(text.parse::<ValueSize>().is_err(), "{text}");
        }
        assert_eq!("1000".parse::<ValueSize>().unwrap().to_string(), "1000B");
    }
}
