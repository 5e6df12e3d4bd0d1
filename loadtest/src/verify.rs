//! Correctness under load: values that can be told apart, and what may be read when.
//!
//! ```text
//!   value   0       4          8          16        24      32           40
//!           ├ magic ┼ checksum ┼ key_hash ┼ version ┼ run ┼ value_bytes ┼ filler ┤          little-endian
//!
//!   writes of one key   ──┤ 1 ├────┤ 2 ├──────────────┤ 3      ├──▶      one at a time: the next begins when this is answered
//!   a read of it                          ├──────────────┤             legal: 2, which was acknowledged before it began,
//!                                         start         end            or 3, which was issued before it ended
//! ```
//! A read is legal if and only if `acked(start) <= version <= issued(end)`. A delete is a write whose version is read as a
//! miss. A write whose outcome is not known may happen at any time after, so its version is legal for ever. `checksum` is CRC-32C
//! (RFC 3720, section 12.1) over what follows it.
//!
//! Keys are shared out among the client's cores, and each checks what it has written itself, over all of its connections.
//! The rules are those of CacheLib's `ValueHistory` for one writer. Pure but for the values' bytes.

use std::collections::{BTreeMap, HashMap};

use bytes::{Buf as _, BufMut as _, Bytes};
use smallvec::SmallVec;

use crate::{
    drive::Load,
    protocol::{Answer, Failure, Outcome, Verb},
    random::mix,
    result::Verify,
    workload::{Draw, Name, Op, Operation, Workload},
};

/// Bytes before the filler; no value is shorter.
pub const HEADER_BYTES: usize = 40;

/// "MVER" as it stands in a dump.
const MAGIC: u32 = u32::from_le_bytes(*b"MVER");

/// Violations that are told in words.
const EXAMPLES_MAX: usize = 10;

/// Filler from here on, shifted by the version, so that neighbouring versions differ everywhere.
const FILLER: [u8; 256] = {
    let mut filler = [0; 256];
    let mut index = 0;
    while index < filler.len() {
        filler[index] = mix(index as u64) as u8;
        index += 1;
    }
    filler
};

/// A version of a key, from 1; 0 = from before this run.
pub type Version = u32;

/// How an answer is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// The bytes are none that were ever written.
    Corrupt,
    /// They were written, under another key.
    WrongKey,
    /// An older version than one that had been acknowledged.
    Stale,
    /// An older version than one that had been read already, or a value that had been deleted.
    Resurrected,
    /// Nothing, where something had been acknowledged.
    Lost,
    /// A version that was not issued yet.
    FromTheFuture,
}

impl Violation {
    /// As in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Corrupt => "corrupt",
            Self::WrongKey => "wrong_key",
            Self::Stale => "stale",
            Self::Resurrected => "resurrected",
            Self::Lost => "lost",
            Self::FromTheFuture => "from_the_future",
        }
    }
}

/// What is known about a key.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The newest version that was issued.
    issued: Version,
    /// The newest that was acknowledged.
    acked: Version,
    /// The newest that was read.
    seen: Version,
    /// Whether a write is under way.
    is_writing: bool,
    /// The newest version that is a delete.
    deleted: Version,
    /// The newest delete that was acknowledged.
    deleted_acked: Version,
    /// Versions whose outcome is not known.
    unknown: SmallVec<[Version; 2]>,
    /// One of them is a delete.
    may_be_deleted: bool,
}

/// What a read has to be measured by: how things stood when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    acked: Version,
    seen: Version,
    deleted: Version,
}

impl Start {
    /// As it travels with an operation.
    fn token(self) -> u128 {
        u128::from(self.acked) << 64 | u128::from(self.seen) << 32 | u128::from(self.deleted)
    }

    fn of(token: u128) -> Self {
        Self { acked: (token >> 64) as Version, seen: (token >> 32) as Version, deleted: token as Version }
    }
}

impl History {
    /// Begins a write; its version. `None` while another is under way.
    pub fn begin_write(&mut self, is_delete: bool) -> Option<Version> {
        if self.is_writing {
            return None;
        }
        self.is_writing = true;
        self.issued += 1;
        if is_delete {
            self.deleted = self.issued;
        }
        Some(self.issued)
    }

    /// Ends the write under way.
    pub fn end_write(&mut self, written: Written) {
        assert!(self.is_writing, "a write ends once");
        self.is_writing = false;
        match written {
            Written::Done => {
                self.acked = self.issued;
                if self.deleted == self.issued {
                    self.deleted_acked = self.issued;
                }
            }
            Written::Undone => {}
            Written::Unknown => {
                self.unknown.push(self.issued);
                self.may_be_deleted |= self.deleted == self.issued;
            }
        }
    }

    /// Begins a read.
    #[must_use]
    pub fn begin_read(&self) -> Start {
        Start { acked: self.acked, seen: self.seen, deleted: self.deleted_acked }
    }

    /// Ends a read that brought `version`.
    ///
    /// # Errors
    /// How it is wrong.
    pub fn end_hit(&mut self, start: Start, version: Version) -> Result<(), Violation> {
        if version > self.issued {
            return Err(Violation::FromTheFuture);
        }
        if version >= start.acked && version > 0 || self.unknown.contains(&version) {
            self.seen = self.seen.max(version);
            return Ok(());
        }
        Err(if version < start.seen.max(start.deleted) { Violation::Resurrected } else { Violation::Stale })
    }

    /// Ends a read that brought nothing.
    ///
    /// # Errors
    /// Something should have been there.
    pub fn end_miss(&self, start: Start) -> Result<(), Violation> {
        // A delete was acknowledged last when the read began, or was issued since.
        let may_be_absent = start.acked == 0 || self.deleted >= start.acked || self.may_be_deleted;
        if may_be_absent { Ok(()) } else { Err(Violation::Lost) }
    }
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It was acknowledged.
    Done,
    /// It is certain that nothing was done.
    Undone,
    /// Nobody knows.
    Unknown,
}

/// One core's share of a workload whose answers are checked.
#[derive(Debug)]
pub struct Checked {
    draw: Draw,
    preloaded: Option<u64>,
    run: u64,
    histories: HashMap<u64, History>,
    /// Whether a miss is wrong where something was acknowledged.
    misses_are_wrong: bool,
    found: Verify,
}

impl Checked {
    /// The share of core number `core` of `cores`. `run` tells this run's values from those of others. `misses_are_wrong`
    /// where the server has a store, or room for everything.
    #[must_use]
    pub fn new(workload: &Workload, core: usize, cores: usize, run: u64, misses_are_wrong: bool) -> Self {
        // A value that lives for a while only may be a miss at any time.
        let misses_are_wrong = misses_are_wrong && workload.ttl_ms == 0;
        Self {
            draw: Draw::new(workload, core, cores, 1),
            preloaded: Some(0),
            run,
            histories: HashMap::new(),
            misses_are_wrong,
            found: Verify::default(),
        }
    }

    /// What was found.
    #[must_use]
    pub fn into_found(self) -> Verify {
        self.found
    }

    fn history(&mut self, operation: &Operation) -> &mut History {
        self.histories.entry(id(operation)).or_default()
    }

    /// Gives `operation` the version it writes, or makes it a read where a write is under way.
    fn issue(&mut self, mut operation: Operation) -> Operation {
        let is_delete = operation.op == Op::Delete;
        let history = self.history(&operation);
        let version = if operation.op == Op::Get { None } else { history.begin_write(is_delete) };
        match version {
            Some(version) => operation.token = u128::from(version),
            None => {
                operation.op = Op::Get;
                operation.token = history.begin_read().token();
            }
        }
        operation
    }

    fn written(&mut self, operation: &Operation, outcome: Result<&Outcome, &Failure>) {
        let written = match outcome {
            Ok(Outcome::Failed(_)) => Written::Unknown,
            Ok(_) => Written::Done,
            Err(failure) if failure.is_undone => Written::Undone,
            Err(_) => Written::Unknown,
        };
        self.history(operation).end_write(written);
        match written {
            Written::Done => self.found.writes += 1,
            Written::Undone => {}
            Written::Unknown => self.found.writes_unknown += 1,
        }
    }

    fn read(&mut self, operation: &Operation, outcome: Result<&Outcome, &Failure>) {
        let start = Start::of(operation.token);
        let run = self.run;
        let history = self.histories.entry(id(operation)).or_default();
        let verdict = match outcome {
            Ok(Outcome::Hit { value, .. }) => {
                version_in(value, id(operation), run).and_then(|version| history.end_hit(start, version))
            }
            Ok(Outcome::Miss) => {
                let verdict = history.end_miss(start);
                self.found.misses_allowed += u64::from(verdict.is_ok() || !self.misses_are_wrong);
                if self.misses_are_wrong { verdict } else { Ok(()) }
            }
            Ok(Outcome::Done | Outcome::Failed(_)) | Err(_) => return,
        };
        self.found.reads += 1;
        let Err(violation) = verdict else { return };
        *self.found.violations.entry(violation.name().to_owned()).or_default() += 1;
        if self.found.examples.len() < EXAMPLES_MAX {
            let what = match outcome {
                Ok(Outcome::Hit { value, .. }) => match version_in(value, id(operation), run) {
                    Ok(0) => "a value of another run".to_owned(),
                    Ok(version) => format!("version {version}"),
                    Err(_) => format!("{} bytes", value.len()),
                },
                _ => "nothing".to_owned(),
            };
            let key = operation.name.with(|name| name.escape_ascii().to_string());
            self.found.examples.push(format!(
                "{}: key {key}: read {what}; acknowledged when it began: {}, read before: {}, issued when it ended: {}, \
                 last delete: {}",
                violation.name(),
                start.acked,
                start.seen,
                history.issued,
                history.deleted,
            ));
        }
    }
}

impl Load for Checked {
    fn preload(&mut self) -> Option<Operation> {
        let index = self.preloaded?;
        self.preloaded = Some(index + 1);
        let Some(operation) = self.draw.preload(index) else {
            self.preloaded = None;
            return None;
        };
        Some(self.issue(operation))
    }

    fn next(&mut self, like: Option<Op>) -> Option<Operation> {
        let operation = self.draw.draw_own();
        let Some(like) = like else { return Some(self.issue(operation)) };
        let is_busy = self.history(&operation).is_writing;
        // A batch is as long as there are keys for it.
        (like == Op::Get || !is_busy).then(|| self.issue(Operation { op: like, ..operation }))
    }

    fn value(&mut self, operation: &Operation) -> Bytes {
        value(id(operation), operation.token as Version, self.run, operation.value_bytes as usize)
    }

    fn answered(&mut self, verb: Verb, operations: &[Operation], result: &Result<Answer, Failure>) {
        for (index, operation) in operations.iter().enumerate() {
            let outcome = result.as_ref().map(|outcomes| &outcomes[index]);
            match verb {
                Verb::Get => self.read(operation, outcome),
                Verb::Put | Verb::Delete => self.written(operation, outcome),
            }
        }
    }
}

fn id(operation: &Operation) -> u64 {
    match operation.name {
        Name::Id(id) => id,
        Name::Text(_) => unreachable!("keys that are drawn have numbers"),
    }
}

/// Adds what another core has found.
pub fn add(all: &mut Verify, other: Verify) {
    all.reads += other.reads;
    all.writes += other.writes;
    all.writes_unknown += other.writes_unknown;
    all.misses_allowed += other.misses_allowed;
    for (kind, count) in other.violations {
        *all.violations.entry(kind).or_default() += count;
    }
    all.examples.extend(other.examples);
    all.examples.truncate(EXAMPLES_MAX);
}

/// All kinds of violations, none of which has happened.
#[must_use]
pub fn no_violations() -> BTreeMap<String, u64> {
    use Violation::{Corrupt, FromTheFuture, Lost, Resurrected, Stale, WrongKey};
    let all = [Corrupt, WrongKey, Stale, Resurrected, Lost, FromTheFuture];
    all.into_iter().map(|violation| (violation.name().to_owned(), 0)).collect()
}

/// The value of `version` of a key; at least [`HEADER_BYTES`] long.
fn value(key: u64, version: Version, run: u64, value_bytes: usize) -> Bytes {
    let value_bytes = value_bytes.max(HEADER_BYTES);
    let mut value = Vec::with_capacity(value_bytes);
    value.put_u32_le(MAGIC);
    value.put_u32_le(0); // The checksum, once the rest is in place.
    value.put_u64_le(mix(key));
    value.put_u64_le(u64::from(version));
    value.put_u64_le(run);
    value.put_u64_le(value_bytes as u64);
    while value.len() < value_bytes {
        let from = (version as usize + value.len()) % (FILLER.len() / 2);
        let left = value_bytes - value.len();
        value.extend_from_slice(&FILLER[from..][..left.min(FILLER.len() / 2)]);
    }
    let checksum = crc32c::crc32c(&value[8..]);
    value[4..8].copy_from_slice(&checksum.to_le_bytes());
    value.into()
}

/// The version in a value that was read under `key`; 0 if another run has written it.
fn version_in(value: &Bytes, key: u64, run: u64) -> Result<Version, Violation> {
    if value.len() < HEADER_BYTES {
        return Err(Violation::Corrupt);
    }
    let mut fields = &value[..];
    let (magic, checksum) = (fields.get_u32_le(), fields.get_u32_le());
    if magic != MAGIC || checksum != crc32c::crc32c(fields) {
        return Err(Violation::Corrupt);
    }
    let [key_hash, version, found_run, value_bytes] = std::array::from_fn(|_| fields.get_u64_le());
    if key_hash != mix(key) {
        return Err(Violation::WrongKey);
    }
    if value_bytes != value.len() as u64 {
        return Err(Violation::Corrupt);
    }
    if found_run != run {
        return Ok(0);
    }
    Version::try_from(version).map_err(|_| Violation::Corrupt)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl History {
        fn write(&mut self, is_delete: bool, written: Written) -> Version {
            let version = self.begin_write(is_delete).unwrap();
            self.end_write(written);
            version
        }

        fn put(&mut self) -> Version {
            self.write(false, Written::Done)
        }
    }

    #[test]
    fn a_read_may_bring_what_was_acknowledged_before_it_or_issued_during_it() {
        let mut history = History::default();
        history.put();
        history.put();
        let start = history.begin_read();
        assert_eq!(history.end_hit(start, 3), Err(Violation::FromTheFuture));
        history.begin_write(false).unwrap();
        assert_eq!(history.end_hit(start, 1), Err(Violation::Stale));
        assert_eq!((history.end_hit(start, 2), history.end_hit(start, 3)), (Ok(()), Ok(())));
    }

    #[test]
    fn an_older_version_than_one_that_was_read_is_resurrected_and_not_only_stale() {
        let mut history = History::default();
        history.put();
        history.put();
        assert_eq!(history.end_hit(history.begin_read(), 2), Ok(()));
        assert_eq!(history.end_hit(history.begin_read(), 1), Err(Violation::Resurrected));
    }

    #[test]
    fn a_value_that_was_deleted_is_resurrected_and_its_absence_is_right() {
        let mut history = History::default();
        history.put();
        history.write(true, Written::Done);
        let start = history.begin_read();
        assert_eq!((history.end_hit(start, 1), history.end_miss(start)), (Err(Violation::Resurrected), Ok(())));
        // Also when the next delete is under way by the time it comes.
        history.begin_write(true).unwrap();
        assert_eq!(history.end_hit(start, 1), Err(Violation::Resurrected));
        history.end_write(Written::Done);
        history.put();
        assert_eq!(history.end_miss(history.begin_read()), Err(Violation::Lost));
    }

    #[test]
    fn a_delete_under_way_allows_both() {
        let mut history = History::default();
        history.put();
        let start = history.begin_read();
        assert_eq!(history.end_miss(start), Err(Violation::Lost));
        history.begin_write(true).unwrap();
        assert_eq!((history.end_miss(start), history.end_hit(start, 1)), (Ok(()), Ok(())));
    }

    #[test]
    fn a_write_whose_outcome_is_not_known_may_be_read_ever_after() {
        let mut history = History::default();
        history.put();
        let unknown = history.write(false, Written::Unknown);
        history.put();
        assert_eq!(history.end_hit(history.begin_read(), unknown), Ok(()));
        assert_eq!(history.end_hit(history.begin_read(), 1), Err(Violation::Resurrected));
        history.write(true, Written::Unknown);
        history.put();
        assert_eq!(history.end_miss(history.begin_read()), Ok(()));
    }

    #[test]
    fn a_write_that_was_not_done_changes_nothing_and_writes_of_a_key_wait_for_each_other() {
        let mut history = History::default();
        history.put();
        history.write(false, Written::Undone);
        assert_eq!(history.end_hit(history.begin_read(), 1), Ok(()));
        history.begin_write(false).unwrap();
        assert_eq!(history.begin_write(true), None);
    }

    #[test]
    fn what_another_run_has_left_is_stale_once_something_was_acknowledged() {
        let mut history = History::default();
        history.put();
        assert_eq!(history.end_hit(history.begin_read(), 0), Err(Violation::Stale));
    }

    #[test]
    fn a_value_tells_its_key_its_version_and_its_run_and_every_bit_of_it_counts() {
        for value_bytes in [0, HEADER_BYTES, HEADER_BYTES + 1, 1000] {
            let original = value(7, 3, 99, value_bytes);
            assert_eq!(original.len(), value_bytes.max(HEADER_BYTES));
            assert_eq!(version_in(&original, 7, 99), Ok(3));
            assert_eq!(version_in(&original, 8, 99), Err(Violation::WrongKey));
            assert_eq!(version_in(&original, 7, 98), Ok(0));
            for bit in 0..original.len() * 8 {
                let mut bytes = original.to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(version_in(&bytes.into(), 7, 99), Err(Violation::Corrupt), "bit {bit}");
            }
            assert_eq!(version_in(&original.slice(1..), 7, 99), Err(Violation::Corrupt));
        }
    }
}
