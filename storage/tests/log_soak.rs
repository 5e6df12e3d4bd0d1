//! A log that is written over ten times, with values of 1 byte to 5 MiB: what it answers, which keys it still has, and that
//! it takes no more memory, files and mappings in the end than in the beginning. Alone in its file: it counts what the
//! process has.
//!
//! ```text
//!   written since a     0 ──────────── LIVE_SHARE_MIN ──────────── 1 of the log ────────▶
//!   key was last put    it is there    it may have made room       gone, unless it was asked for and carried along
//! ```
//! `MILENA_SOAK_MIB` is the size of the log in MiB: 2 unless given, which takes seconds. Records above an eighth of a segment
//! are not kept, so only with 4,096 are values of all sizes. It prints what it found: `-- --nocapture`.

use std::{
    cell::{Cell, RefCell},
    env, fs,
    ops::Range,
    rc::Rc,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::join_all;
use milena_proto::placement::mix64;
use milena_storage::{
    Entry, Version,
    log::{Disk, Log, LogError, LogSettings},
};

#[path = "support/log_dir.rs"]
#[expect(dead_code, reason = "values here are not text")]
mod log_dir;

use log_dir::{End, NOW, key, settings, with_log};

/// How often the log is written over.
const ROUNDS: u64 = 10;

/// Who works at the same time, each on keys of its own.
const WORKERS: u64 = 8;

/// Of the log's size, what the newest records surely have to themselves: of 32 segments or more 5 are free or being emptied
/// and 1 is open, and an eighth of each other one may be too short for the next record.
const LIVE_SHARE_MIN: f64 = 0.7;

/// Of the log's size, what is carried along at most: of each segment a tenth, and what is carried again and again is never
/// more than that of what is written anew.
const CARRIED_SHARE_MAX: f64 = 0.12;

/// Memory above what the process had before the log was opened, in bytes, besides the index: what waits for the disk (16 MiB)
/// twice, because a direct write needs a copy that is aligned, as much again for what the allocator keeps of it, and the
/// values in the hands of the workers.
const MEMORY_BYTES_MAX: u64 = 96 << 20;

/// Keys for each that the log has room for: so many that segments are still mostly alive when they are the oldest, and go
/// in their order.
const KEYS_PER_ENTRY: u64 = 8;

/// Mappings more or fewer at any moment: the allocator gives a large value one of its own.
const MAPPINGS_SLACK: u64 = 64;

/// What was last done with a key.
#[derive(Clone, Copy)]
struct Last {
    number: u64,
    value_bytes: usize,
    /// [`Soak::end_bytes`] then.
    end_bytes: u64,
}

/// What the keys of one worker should have, `None` for what was deleted or not kept. Made before anything is measured.
type Model = Vec<Option<Last>>;

/// What gets found, by how many bytes were put since the key was.
#[derive(Clone, Copy, Debug, Default)]
struct Hits {
    gets: u64,
    hits: u64,
    /// Bytes of values found.
    hit_bytes: u64,
}

/// What the workers share.
struct Soak {
    log: Rc<Log<Disk>>,
    log_bytes: u64,
    seed: u64,
    refused: Cell<u64>,
    puts: Cell<u64>,
    deletes: Cell<u64>,
    live: RefCell<Hits>,
    between: RefCell<Hits>,
    beyond: RefCell<Hits>,
}

/// What a process takes.
#[derive(Clone, Copy, Debug)]
struct Taken {
    resident_bytes: u64,
    files: u64,
    mappings: u64,
}

fn taken() -> Taken {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident_kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    Taken {
        resident_bytes: resident_kib << 10,
        files: fs::read_dir("/proc/self/fd").unwrap().count() as u64,
        mappings: fs::read_to_string("/proc/self/maps").unwrap().lines().count() as u64,
    }
}

/// Nine of ten are small, one of a hundred is large; within each range small ones are more frequent.
fn value_bytes(random: u64) -> usize {
    let range: Range<f64> = match random % 1000 {
        0..900 => 1.0..4096.0,
        900..990 => 4096.0..65_536.0,
        _ => 65_536.0..(5 << 20) as f64,
    };
    let share = (random >> 11) as f64 / (1_u64 << 53) as f64;
    (range.start * (range.end / range.start).powf(share)) as usize
}

/// Differs in every byte from that of another number, nearly always; the same for the same number.
fn value(number: u64, bytes: usize) -> Bytes {
    let mut value = BytesMut::with_capacity(bytes + 8);
    value.put_bytes(mix64(number) as u8, bytes);
    let head = number.to_le_bytes();
    let head_bytes = head.len().min(bytes);
    value[..head_bytes].copy_from_slice(&head[..head_bytes]);
    value.freeze()
}

fn name(worker: u64, index: usize) -> String {
    format!("k{worker}-{index}")
}

/// The mean size of a value that is kept by a log of this size, in bytes.
fn kept_bytes_mean(log_bytes: u64) -> u64 {
    const DRAWN: u64 = 10_000;
    let record_bytes_max = log_bytes / 512;
    let kept = (0..DRAWN).map(|n| value_bytes(mix64(n)) as u64).filter(|&bytes| bytes < record_bytes_max);
    kept.sum::<u64>() / DRAWN
}

impl Soak {
    /// Bytes that were ever written or wait for the disk, all included: where in its circles the log is.
    fn end_bytes(&self) -> u64 {
        let figures = self.log.figures();
        figures.counts.written_bytes + figures.held_bytes - figures.index_bytes
    }

    /// One worker: puts, gets and deletes of its keys, until the log was written over `round` times.
    async fn work(&self, worker: u64, round: u64, model: &mut Model) {
        let mut step = round << 40 | worker << 32;
        while self.log.figures().counts.written_bytes < round * self.log_bytes {
            step += 1;
            let random = mix64(self.seed ^ mix64(step));
            let index = mix64(random) as usize % model.len();
            let (name, last) = (name(worker, index), &mut model[index]);
            match random >> 54 {
                0..500 => self.put(&name, step, last).await,
                500..510 => self.delete(&name, last).await,
                _ => self.get(&name, last.as_ref()).await,
            }
        }
    }

    async fn put(&self, name: &str, step: u64, last: &mut Option<Last>) {
        let value_bytes = value_bytes(mix64(step ^ self.seed));
        let version = Version::new(Bytes::from(format!("{step:016x}"))).unwrap();
        let entry = Entry { value: value(step, value_bytes), version, expires: None };
        self.puts.set(self.puts.get() + 1);
        match Rc::clone(&self.log).put(key(name), entry, None, NOW).await {
            Ok(_) => {
                *last = Some(Last { number: step, value_bytes, end_bytes: self.end_bytes() });
            }
            Err(LogError::NotKept) => {
                self.refused.set(self.refused.get() + 1);
                *last = None;
            }
            Err(error) => panic!("MILENA_SEED={}: {name}: {error}", self.seed),
        }
    }

    async fn delete(&self, name: &str, last: &mut Option<Last>) {
        Rc::clone(&self.log).delete(key(name), NOW).await.unwrap();
        self.deletes.set(self.deletes.get() + 1);
        *last = None;
    }

    async fn get(&self, name: &str, last: Option<&Last>) {
        let found = Rc::clone(&self.log).get(key(name), NOW).await.into_copy();
        let context = format!("MILENA_SEED={}: {name}", self.seed);
        let Some(last) = last else {
            assert!(found.is_none(), "{context} was deleted, or not kept");
            return;
        };
        if let Some(found) = &found {
            assert_eq!(found.entry.version.as_str(), format!("{:016x}", last.number), "{context}");
            assert!(found.entry.value == value(last.number, last.value_bytes), "{context}: another value");
        }
        let age = self.end_bytes().saturating_sub(last.end_bytes) as f64 / self.log_bytes as f64;
        let hits = match age {
            ..LIVE_SHARE_MIN => &self.live,
            LIVE_SHARE_MIN..1.0 => &self.between,
            _ => &self.beyond,
        };
        let mut hits = hits.borrow_mut();
        hits.gets += 1;
        hits.hits += u64::from(found.is_some());
        hits.hit_bytes += found.as_ref().map_or(0, |found| found.entry.value.len() as u64);
        assert!(found.is_some() || age >= LIVE_SHARE_MIN, "{context}: gone after {age:.2} of the log");
    }
}

/// All rounds, and what the process takes after each.
async fn soak(soak: Rc<Soak>, mut models: Vec<Model>) -> (Rc<Soak>, Vec<Taken>) {
    let mut takings = Vec::new();
    for round in 1..=ROUNDS {
        join_all((0..).zip(&mut models).map(|(worker, model)| soak.work(worker, round, model))).await;
        takings.push(taken());
    }
    // A last look at every key.
    [&soak.live, &soak.between, &soak.beyond].into_iter().for_each(|hits| *hits.borrow_mut() = Hits::default());
    for (worker, model) in (0..).zip(&models) {
        for (index, last) in model.iter().enumerate() {
            soak.get(&name(worker, index), last.as_ref()).await;
        }
    }
    (soak, takings)
}

#[test]
fn a_log_written_over_ten_times_is_right_and_takes_no_more_than_in_the_beginning() {
    let number_in = |name, default| env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let log_bytes: u64 = number_in("MILENA_SOAK_MIB", 2) << 20;
    let seed: u64 = number_in("MILENA_SEED", 1);
    let dir = tempfile::tempdir().unwrap();
    let keys = KEYS_PER_ENTRY * log_bytes / kept_bytes_mean(log_bytes) / WORKERS;
    let models: Vec<Model> = (0..WORKERS).map(|_| vec![None; keys as usize]).collect();
    let before = taken();
    let settings = LogSettings { disk_bytes: log_bytes, ..settings(dir.path()) };
    let (_, (soak, takings)) = with_log(&settings, End::Stopped, move |log| {
        let count = || Cell::new(0);
        let (refused, puts, deletes) = (count(), count(), count());
        let (live, between, beyond) = <(RefCell<Hits>, RefCell<Hits>, RefCell<Hits>)>::default();
        soak(Rc::new(Soak { log, log_bytes, seed, refused, puts, deletes, live, between, beyond }), models)
    });
    let figures = soak.log.figures();
    println!(
        "MILENA_SEED={seed}: {} puts ({} not kept), {} deletes; {} MiB written; live part {:?}, between {:?}, beyond {:?}",
        soak.puts.get(),
        soak.refused.get(),
        soak.deletes.get(),
        figures.counts.written_bytes >> 20,
        soak.live.borrow(),
        soak.between.borrow(),
        soak.beyond.borrow(),
    );
    println!("{figures:?}");
    println!("taken before {before:?}; after each round {takings:?}");

    assert_eq!((figures.counts.corrupt, figures.counts.read_errors, figures.is_degraded), (0, 0, false));
    assert!(figures.counts.written_bytes >= ROUNDS * log_bytes, "{figures:?}");
    // Every key of the live part is there, as was asserted with each get; there were enough to mean something.
    let (live, beyond) = (*soak.live.borrow(), *soak.beyond.borrow());
    assert!(live.gets > 500 && live.hits == live.gets, "{live:?}");
    // What is older is there only where it was asked for and carried along.
    assert!(beyond.hit_bytes as f64 <= CARRIED_SHARE_MAX * log_bytes as f64, "{beyond:?}");

    let resident_bytes_max = before.resident_bytes + MEMORY_BYTES_MAX + figures.index_bytes;
    let first = takings[0];
    for taken in &takings {
        assert!(taken.resident_bytes <= resident_bytes_max, "{taken:?} of {resident_bytes_max} bytes");
        assert_eq!(taken.files, first.files, "{takings:?}");
        assert!(taken.mappings <= first.mappings + MAPPINGS_SLACK, "{takings:?}");
    }
}
