//! The memory tier of one core: a table of entries within a budget of bytes. Never waits, cannot fail.
//!
//! ```text
//!   key ──hash, mixed──▶ tables ──▶ slot ──▶ record in a block        memory/blocks.rs: where bytes lie
//!                        64 small    │
//!                        ones        └─ newest ⇄ ... ⇄ oldest         memory/eviction.rs: who goes first
//!                                       ends by time                  memory/expiry.rs: whose life is over
//! ```
//! An entry costs 24 bytes for its slot, 4 to 8 for its record's header, 6 to 11 in its table, and its version; about 14
//! more if its life has an end. A value is copied once, when it is admitted, so that it does not pin the network buffer it came in;
//! a hit hands out a reference to that copy.
//!
//! 64 tables instead of one: a table that grows moves all that it holds, and a core cannot answer meanwhile.

mod blocks;
mod eviction;
mod expiry;

use std::fmt;

use ahash::RandomState;
use hashbrown::HashTable;
use milena_proto::{
    key::KeyRef,
    placement::{KeyHash, key_hash},
};

use self::{
    blocks::{BLOCK_BYTES, Blocks, Record, VERSION_BYTES_MAX},
    eviction::Slots,
    expiry::Lives,
};
use crate::{Entry, Timestamp, Version};

/// The smallest budget: below it, the smallest pages and blocks would be most of it.
pub const BUDGET_BYTES_MIN: usize = 1 << 20;

/// The largest value that is admitted, as a share of the budget. A larger one would empty the tier for one key.
pub const VALUE_SHARE_MAX: usize = 64;

/// Until when a copy is believed that is believed for ever.
const FOR_EVER_S: u32 = u32::MAX;

/// Tables, and the bits of a hash that choose one. hashbrown takes the lowest bits for the place and the seven highest
/// for the tag, so these are between them.
const TABLE_COUNT: usize = 1 << TABLE_BITS;
const TABLE_BITS: u32 = 6;
const TABLE_SHIFT: u32 = 32 - 7 - TABLE_BITS;

/// The memory tier of one core.
pub struct Memory {
    tables: Box<[HashTable<u32>]>,
    hasher: RandomState,
    slots: Slots,
    blocks: Blocks,
    lives: Lives,
    budget_bytes: usize,
    entries_max: usize,
    tables_bytes: usize,
    counts: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    key_bytes: usize,
    value_bytes: usize,
    evictions: u64,
    expirations: u64,
}

/// What memory knows about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The entry.
    Hit(Entry),
    /// An entry that was believed long enough: ask the store whether its version is still the current one.
    Stale(Entry),
    /// Nothing.
    Miss,
}

/// Figures for the metrics page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Entries held.
    pub entries: u64,
    /// Bytes of their buckets and keys.
    pub key_bytes: u64,
    /// Bytes of their values.
    pub value_bytes: u64,
    /// All bytes that count against the budget, those two included.
    pub held_bytes: u64,
    /// The budget.
    pub budget_bytes: u64,
    /// Entries that made room for others, since the start.
    pub evictions: u64,
    /// Entries whose life ended here, since the start.
    pub expirations: u64,
}

impl Memory {
    /// A tier within `budget_bytes`, everything included, and `entries_max` entries (0 = by bytes only).
    ///
    /// # Panics
    /// If the budget is below [`BUDGET_BYTES_MIN`]; settings are checked before they come here.
    #[must_use]
    pub fn new(budget_bytes: usize, entries_max: usize) -> Self {
        assert!(budget_bytes >= BUDGET_BYTES_MIN, "{budget_bytes} bytes of memory for a core");
        Self {
            tables: (0..TABLE_COUNT).map(|_| HashTable::new()).collect(),
            hasher: RandomState::new(),
            slots: Slots::new(),
            blocks: Blocks::default(),
            lives: Lives::default(),
            budget_bytes,
            entries_max: if entries_max == 0 { usize::MAX } else { entries_max },
            tables_bytes: 0,
            counts: Counts::default(),
        }
    }

    /// The largest value in bytes that is admitted.
    #[must_use]
    pub fn value_bytes_max(&self) -> usize {
        self.budget_bytes / VALUE_SHARE_MAX
    }

    /// Looks `key` up and makes its entry the most recently used. O(1); copies nothing, allocates nothing unless the
    /// entry was written a moment ago.
    ///
    /// An entry whose life has ended is dropped on sight, and a copy that is no longer believed stays so until
    /// [`Memory::restamp`]: a clock that jumps back revives neither.
    pub fn get(&mut self, key: KeyRef<'_>, now: Timestamp) -> Lookup {
        let Some(index) = self.find(key) else { return Lookup::Miss };
        let slot = self.slots.get_mut(index);
        let location = slot.location();
        let is_believed = slot.believed_until_s == FOR_EVER_S || now.0 < u64::from(slot.believed_until_s) * 1000;
        if !is_believed {
            slot.believed_until_s = 0;
        }
        if is_past(self.blocks.record(location).expires, now) {
            self.counts.expirations += 1;
            self.take_out(index);
            return Lookup::Miss;
        }
        self.slots.touch(index);
        let entry = self.blocks.lend(location);
        if is_believed { Lookup::Hit(entry) } else { Lookup::Stale(entry) }
    }

    /// Copies `entry` in under `key`, replacing what was there, and drops others until the tier is within its budget
    /// again: the least recently used go first.
    ///
    /// `believed_until` says how long this copy may be answered with before the store must be asked (`None` = for ever);
    /// it is kept in whole seconds, rounded down. Whatever was under `key` is gone also where the answer is `false`: the
    /// value is larger than [`Memory::value_bytes_max`], its life is over at `now`, or its version is longer than 255
    /// bytes. Amortised O(bytes); now and then it cleans a block, which copies up to 28 KiB.
    pub fn insert(
        &mut self,
        key: KeyRef<'_>,
        entry: &Entry,
        believed_until: Option<Timestamp>,
        now: Timestamp,
    ) -> bool {
        self.remove(key);
        let is_too_large =
            entry.value.len() > self.value_bytes_max() || entry.version.as_str().len() > VERSION_BYTES_MAX;
        if is_too_large || entry.is_expired(now) {
            return false;
        }
        let record = Record::new(key, entry);
        let growth_bytes = self.blocks.growth_bytes(record.bytes()) + self.slots.growth_bytes();
        if !self.make_room(growth_bytes) {
            return false;
        }

        let location = self.blocks.append(&record);
        let hash = self.mixed(key);
        let index = self.slots.take(hash, location, whole_seconds(believed_until));
        self.enter_in_table(hash, index);
        self.counts.key_bytes += record.bucket.len() + record.name.len();
        self.counts.value_bytes += record.value.len();
        if let Some(expires) = entry.expires {
            self.note_life(index, expires);
        }
        // The tables and the notes may have grown.
        self.make_room(0);
        while self.slots.used_count() > self.entries_max {
            self.evict_oldest();
        }
        true
    }

    /// Believes no copy any more until its version has been asked for. Some nanoseconds for each entry.
    pub fn doubt_all(&mut self) {
        self.slots.doubt_all();
    }

    /// Believes the copy under `key` no more until its version has been asked for. O(1).
    pub fn doubt(&mut self, key: KeyRef<'_>) {
        if let Some(index) = self.find(key) {
            self.slots.get_mut(index).believed_until_s = 0;
        }
    }

    /// The same for every key whose hash is `doubtful`, a step at a time: looks at `slots_max` slots from the one at `from`
    /// on, and says where the next step begins; `None` after the last one. What is inserted between two steps may or may
    /// not be looked at. Some 100 ns for each entry: its key must be hashed again.
    pub fn doubt_some(&mut self, from: u32, slots_max: u32, doubtful: impl Fn(KeyHash) -> bool) -> Option<u32> {
        let count = self.slots.count();
        let next = from.saturating_add(slots_max).min(count);
        for index in from..next {
            let Some(slot) = self.slots.used(index) else { continue };
            let record = self.blocks.record(slot.location());
            if doubtful(key_hash(record.bucket, record.name)) {
                self.slots.get_mut(index).believed_until_s = 0;
            }
        }
        (next < count).then_some(next)
    }

    /// Believes the copy under `key` until `believed_until`, if it is still the one with this version.
    pub fn restamp(&mut self, key: KeyRef<'_>, version: &Version, believed_until: Option<Timestamp>) {
        if let Some(index) = self.find_version(key, version) {
            self.slots.get_mut(index).believed_until_s = whole_seconds(believed_until);
        }
    }

    /// Forgets `key`. O(1).
    pub fn remove(&mut self, key: KeyRef<'_>) {
        if let Some(index) = self.find(key) {
            self.take_out(index);
        }
    }

    /// Forgets `key` if what is there has this version.
    pub fn remove_version(&mut self, key: KeyRef<'_>, version: &Version) {
        if let Some(index) = self.find_version(key, version) {
            self.take_out(index);
        }
    }

    /// Drops entries whose life is over, looking at `entries_max` at most, and says whether there may be more.
    /// O(entries looked at): the others are not looked at.
    pub fn sweep(&mut self, now: Timestamp, entries_max: usize) -> bool {
        for _ in 0..entries_max {
            let Some(index) = self.lives.pop_due(now) else { return false };
            if self.slots.used(index).is_some_and(|slot| is_past(self.blocks.record(slot.location()).expires, now)) {
                self.counts.expirations += 1;
                self.take_out(index);
            }
        }
        true
    }

    /// Figures for the metrics page. O(1).
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            entries: self.slots.used_count() as u64,
            key_bytes: self.counts.key_bytes as u64,
            value_bytes: self.counts.value_bytes as u64,
            held_bytes: self.held_bytes() as u64,
            budget_bytes: self.budget_bytes as u64,
            evictions: self.counts.evictions,
            expirations: self.counts.expirations,
        }
    }

    fn held_bytes(&self) -> usize {
        self.tables_bytes + self.slots.held_bytes() + self.blocks.held_bytes() + self.lives.held_bytes()
    }

    /// Drops entries until `growth_bytes` more fit, and one block besides, which cleaning may need for a moment.
    /// `false` when nothing is left to drop: readers hold the rest.
    fn make_room(&mut self, growth_bytes: usize) -> bool {
        let reserve_bytes = 2 * BLOCK_BYTES;
        if self.held_bytes() + growth_bytes + reserve_bytes > self.budget_bytes {
            self.blocks.collect_lent();
        }
        while self.held_bytes() + growth_bytes + reserve_bytes > self.budget_bytes {
            if let Some(block) = self.blocks.to_clean() {
                self.clean(block);
            } else if self.slots.oldest().is_some() {
                self.evict_oldest();
            } else {
                return growth_bytes == 0;
            }
        }
        true
    }

    fn clean(&mut self, block: usize) {
        let cleaning = self.blocks.begin_cleaning(block);
        for (source, record) in cleaning.records() {
            let hash = self.mixed_bytes(record.bucket, record.name);
            let is_here = |&index: &u32| self.slots.get(index).location() == source;
            if let Some(&index) = self.tables[table_of(hash)].find(spread(hash), is_here) {
                let target = self.blocks.append(&record);
                self.slots.get_mut(index).set_location(target);
            }
        }
        self.blocks.end_cleaning(cleaning);
    }

    fn evict_oldest(&mut self) {
        let oldest = self.slots.oldest().expect("the caller saw one");
        self.counts.evictions += 1;
        self.take_out(oldest);
    }

    fn take_out(&mut self, index: u32) {
        let slot = *self.slots.get(index);
        let record = self.blocks.record(slot.location());
        self.counts.key_bytes -= record.bucket.len() + record.name.len();
        self.counts.value_bytes -= record.value.len();
        if record.expires.is_some() {
            self.lives.forget();
        }
        self.blocks.free(slot.location());
        let in_table = self.tables[table_of(slot.hash)].find_entry(spread(slot.hash), |&other| other == index);
        in_table.expect("every slot in use is in its table").remove();
        self.slots.release(index);
    }

    fn enter_in_table(&mut self, hash: u32, index: u32) {
        let table = &mut self.tables[table_of(hash)];
        let before_bytes = table.allocation_size();
        table.insert_unique(spread(hash), index, |&other| spread(self.slots.get(other).hash));
        self.tables_bytes += table.allocation_size() - before_bytes;
    }

    fn note_life(&mut self, index: u32, expires: Timestamp) {
        self.lives.note(index, expires);
        if self.lives.is_mostly_outdated() {
            let (slots, blocks) = (&self.slots, &self.blocks);
            self.lives.check(|index, bucket| {
                let expires = slots.used(index).and_then(|slot| blocks.record(slot.location()).expires);
                expires.is_some_and(|expires| expiry::bucket(expires) == bucket)
            });
        }
    }

    fn find(&self, key: KeyRef<'_>) -> Option<u32> {
        let hash = self.mixed(key);
        let is_it = |&index: &u32| {
            let slot = self.slots.get(index);
            slot.hash == hash && {
                let record = self.blocks.record(slot.location());
                record.name == key.name() && record.bucket == key.bucket_bytes()
            }
        };
        self.tables[table_of(hash)].find(spread(hash), is_it).copied()
    }

    fn find_version(&self, key: KeyRef<'_>, version: &Version) -> Option<u32> {
        self.find(key).filter(|&index| {
            let record = self.blocks.record(self.slots.get(index).location());
            record.version == version.as_bytes()
        })
    }

    fn mixed(&self, key: KeyRef<'_>) -> u32 {
        // The key's own hash is the same everywhere, and all keys of a core have something in common in it.
        (self.hasher.hash_one(key.hash()) >> 32) as u32
    }

    fn mixed_bytes(&self, bucket: &[u8], name: &[u8]) -> u32 {
        (self.hasher.hash_one(key_hash(bucket, name)) >> 32) as u32
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({:?})", self.figures())
    }
}

fn is_past(expires: Option<Timestamp>, now: Timestamp) -> bool {
    expires.is_some_and(|expires| expires <= now)
}

fn whole_seconds(until: Option<Timestamp>) -> u32 {
    until.map_or(FOR_EVER_S, |until| u32::try_from(until.0 / 1000).unwrap_or(FOR_EVER_S))
}

fn table_of(hash: u32) -> usize {
    (hash >> TABLE_SHIFT) as usize % TABLE_COUNT
}

/// A slot keeps 32 bits of the hash; hashbrown looks at both ends of 64.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}
