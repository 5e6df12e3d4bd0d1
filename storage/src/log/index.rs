//! The index: where the newest record of each key is, in 8 bytes and the room around them.
//!
//! ```text
//! hash     ├ table: highest bits ┼ tag: the next 20 ┤
//! table    lines of 64 bytes; the home of a tag is line ⌊tag · lines / 2²⁰⌋, so a table may have any number of them
//! line     ├ spilled ┼ slot ┼ slot ┼ slot ┼ slot ┼ slot ┼ slot ┼ slot ┤          8 bytes each
//! slot     63      44 43  42 41       26 25                4 3         0
//!          ├ tag     ┼ hits ┼ segment   ┼ offset / 16       ┼ size     ┤          0 = empty
//! ```
//! `spilled` counts the slots that are at home in this line and stand in a later one, because it was full: a search goes
//! on to the next line only as long as there may be such. `size` says how much to read: 256 bytes · 2^size, or less:
//! a small record is seldom read with a page that it does not touch.
//! A table grows by an eighth when it is [`FULL_SHARE`] full. The home depends on the tag alone, which stands in the
//! slot, so growing needs no hash and no disk.
//!
//! Seven slots to a cache line: Yang, Yue and Rashmi, "Segcache", NSDI 2021, section 4.4. Why not their chains: a line
//! that overflows borrows from its neighbour, and there is no second kind of line.
//!
//! Equal tags are no rarity among millions of keys; two keys with the same one have a slot each, and only their records
//! on disk tell which is whose. Hence the caller sees *candidates*.

use std::fmt;

use milena_proto::placement::{KeyHash, mix64};

use super::{
    record::UNIT_BYTES,
    segment::{BLOCK_BYTES, SEGMENT_BYTES_MAX, SEGMENTS_MAX, SegmentNumber},
    state::RECORD_SHARE_MAX,
};

const LINE_SLOTS: usize = 7;

const TAG_BITS: u32 = 20;
const HITS_BITS: u32 = 2;
const SEGMENT_BITS: u32 = 16;
const OFFSET_BITS: u32 = 22;
const SIZE_BITS: u32 = 4;

/// What the least size stands for.
const SIZE_BYTES_MIN: usize = 256;

const HITS_MAX: u64 = (1 << HITS_BITS) - 1;
const OFFSET_SHIFT: u32 = SIZE_BITS;
const SEGMENT_SHIFT: u32 = OFFSET_SHIFT + OFFSET_BITS;
const HITS_SHIFT: u32 = SEGMENT_SHIFT + SEGMENT_BITS;
const TAG_SHIFT: u32 = HITS_SHIFT + HITS_BITS;

const _: () = assert!(TAG_BITS + HITS_BITS + SEGMENT_BITS + OFFSET_BITS + SIZE_BITS == u64::BITS);
const _: () = assert!(SEGMENTS_MAX as u64 == 1 << SEGMENT_BITS);
const _: () = assert!(SEGMENT_BYTES_MAX / UNIT_BYTES as u64 == 1 << OFFSET_BITS);
const _: () = assert!(SEGMENT_BYTES_MAX / RECORD_SHARE_MAX as u64 == (SIZE_BYTES_MIN as u64) << ((1 << SIZE_BITS) - 1));
const _: () = assert!(BLOCK_BYTES as u64 > 0, "no record begins at offset 0, so no slot is 0");

/// A table grows when more than this share of its slots, in eighths, is taken.
const FULL_SHARE: usize = 7;

/// Keys of a table that tables are planned for. A search for a new key then meets a stranger's tag, and reads the stranger's
/// record to know, once in two thousand times or less; a table's own 24 bytes are shared by as many keys.
const TABLE_KEYS: u64 = 512;

/// Record size that tables are planned for.
const PLANNED_RECORD_BYTES: u64 = 1024;

/// Tables of the largest log.
const TABLES_MAX: usize = (SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX / PLANNED_RECORD_BYTES / TABLE_KEYS) as usize;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) segment: SegmentNumber,
    /// In bytes, a multiple of [`UNIT_BYTES`].
    pub(super) offset: u32,
    size: u8,
}

impl Place {
    /// The place of a record of `record_bytes`.
    pub(super) fn new(segment: SegmentNumber, offset: u32, record_bytes: usize) -> Self {
        debug_assert!(offset as usize >= BLOCK_BYTES && (offset as usize).is_multiple_of(UNIT_BYTES));
        let least_sizes = record_bytes.div_ceil(SIZE_BYTES_MIN);
        let size = u8::try_from(least_sizes.next_power_of_two().ilog2()).expect("below 64");
        Self { segment, offset, size }
    }

    /// No record that is here is longer.
    pub(super) fn record_bytes_max(self) -> usize {
        SIZE_BYTES_MIN << self.size
    }

    fn packed(self) -> u64 {
        u64::from(self.segment) << SEGMENT_SHIFT
            | (u64::from(self.offset) / UNIT_BYTES as u64) << OFFSET_SHIFT
            | u64::from(self.size)
    }

    fn of_slot(slot: u64) -> Self {
        let offset_units = slot >> OFFSET_SHIFT & ((1 << OFFSET_BITS) - 1);
        Self {
            segment: (slot >> SEGMENT_SHIFT) as SegmentNumber,
            offset: u32::try_from(offset_units * UNIT_BYTES as u64).expect("26 bits"),
            size: (slot & ((1 << SIZE_BITS) - 1)) as u8,
        }
    }
}

const PLACE_MASK: u64 = (1 << HITS_SHIFT) - 1;

fn tag_of(slot: u64) -> u64 {
    slot >> TAG_SHIFT
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line {
    spilled: u64,
    slots: [u64; LINE_SLOTS],
}

const _: () = assert!(size_of::<Line>() == 64);

const EMPTY: Line = Line { spilled: 0, slots: [0; LINE_SLOTS] };

/// The index of one core.
pub(super) struct Index {
    tables: Box<[Table]>,
    len: usize,
    line_count: usize,
}

#[derive(Clone, Default)]
struct Table {
    lines: Box<[Line]>,
    len: u32,
}

impl Index {
    /// An index for a log of `log_bytes`: the number of its tables, and so how often tags are equal by chance, follows from it.
    pub(super) fn new(log_bytes: u64) -> Self {
        let keys = log_bytes / PLANNED_RECORD_BYTES;
        let table_count = usize::try_from((keys / TABLE_KEYS).max(1).next_power_of_two()).expect("a number of tables");
        Self { tables: vec![Table::default(); table_count].into(), len: 0, line_count: 0 }
    }

    /// An empty index with as many tables as one had that was saved; `None` for a number that no index has.
    pub(super) fn with_tables(table_count: usize) -> Option<Self> {
        let is_legal = table_count.is_power_of_two() && table_count <= TABLES_MAX;
        is_legal.then(|| Self { tables: vec![Table::default(); table_count].into(), len: 0, line_count: 0 })
    }

    /// Makes room for `len` keys in all, so that tables need not grow one step after the other.
    pub(super) fn reserve(&mut self, len: u64) {
        let slots = usize::try_from(len).expect("fits memory") / self.tables.len();
        // Tables are not equally full; a little less than the mean leaves nothing empty for long.
        let line_count = slots * 8 / (LINE_SLOTS * FULL_SHARE);
        for table in self.tables.iter_mut().filter(|table| table.lines.len() < line_count) {
            self.line_count += line_count - table.lines.len();
            table.resize(line_count);
        }
    }

    /// Gives back room that was reserved for keys which did not come.
    pub(super) fn trim(&mut self) {
        for table in &mut self.tables {
            let line_count = (table.len as usize * 8).div_ceil(LINE_SLOTS * FULL_SHARE);
            if table.lines.len() > line_count + line_count / 8 + 1 {
                self.line_count -= table.lines.len() - line_count;
                table.resize(line_count);
            }
        }
    }

    /// Fetches what a search for this hash will look at first. Only there for speed: at a start everything is looked up
    /// once, and hardly anything is in the processor's caches.
    pub(super) fn prefetch(&self, hash: KeyHash) {
        let (table, tag) = self.home(hash);
        let table = &self.tables[table];
        if let Some(line) = table.lines.get(table.home(tag)) {
            prefetch(line);
        }
    }

    /// Keys in it.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Memory taken.
    pub(super) fn held_bytes(&self) -> usize {
        self.line_count * size_of::<Line>() + self.tables.len() * size_of::<Table>()
    }

    /// The places that may hold the newest record of a key with this hash, put into `found`. O(1).
    pub(super) fn candidates(&self, hash: KeyHash, found: &mut Vec<Place>) {
        found.clear();
        let (table, tag) = self.home(hash);
        self.tables[table].for_each_of(tag, |slot| found.push(Place::of_slot(slot)));
    }

    /// Whether the key with this hash has its newest record at `place`.
    pub(super) fn contains(&self, hash: KeyHash, place: Place) -> bool {
        let (table, tag) = self.home(hash);
        self.tables[table].find(tag, place).is_some()
    }

    /// Gives the key with this hash a slot.
    pub(super) fn insert(&mut self, hash: KeyHash, place: Place) {
        let (number, tag) = self.home(hash);
        let table = &mut self.tables[number];
        let before = table.lines.len();
        table.insert(tag << TAG_SHIFT | place.packed());
        self.line_count += table.lines.len() - before;
        self.len += 1;
    }

    /// Points the slot of `old` to `new`, as never hit. `false` if there is none.
    pub(super) fn replace(&mut self, hash: KeyHash, old: Place, new: Place) -> bool {
        let (table, tag) = self.home(hash);
        let table = &mut self.tables[table];
        let Some((line, slot)) = table.find(tag, old) else { return false };
        table.lines[line].slots[slot] = tag << TAG_SHIFT | new.packed();
        true
    }

    /// Removes the slot of `place`. `false` if there is none.
    pub(super) fn remove(&mut self, hash: KeyHash, place: Place) -> bool {
        let (table, tag) = self.home(hash);
        let is_removed = self.tables[table].remove(tag, place);
        self.len -= usize::from(is_removed);
        is_removed
    }

    /// Counts a hit, up to three.
    pub(super) fn note_hit(&mut self, hash: KeyHash, place: Place) {
        let (table, tag) = self.home(hash);
        let table = &mut self.tables[table];
        if let Some((line, slot)) = table.find(tag, place) {
            let slot = &mut table.lines[line].slots[slot];
            if *slot >> HITS_SHIFT & HITS_MAX < HITS_MAX {
                *slot += 1 << HITS_SHIFT;
            }
        }
    }

    /// Hits since the record was placed, at most three; `None` if the key's newest record is not at `place`.
    pub(super) fn hits(&self, hash: KeyHash, place: Place) -> Option<u8> {
        let (table, tag) = self.home(hash);
        let table = &self.tables[table];
        let (line, slot) = table.find(tag, place)?;
        Some((table.lines[line].slots[slot] >> HITS_SHIFT & HITS_MAX) as u8)
    }

    /// Removes the slots of one table that point into a segment, and says how many there were. O(lines of the table).
    pub(super) fn remove_segment(&mut self, number: usize, segment: SegmentNumber) -> usize {
        let table = &mut self.tables[number];
        let of_segment = |slot: &u64| *slot != 0 && Place::of_slot(*slot).segment == segment;
        let slots: Vec<u64> = table.lines.iter().flat_map(|line| line.slots).filter(of_segment).collect();
        for &slot in &slots {
            assert!(table.remove(tag_of(slot), Place::of_slot(slot)), "it was there a line ago");
        }
        self.len -= slots.len();
        slots.len()
    }

    /// All places, in no order, for a file that a clean stop leaves: each table's lines as bytes.
    pub(super) fn for_each_table(&self, mut visit: impl FnMut(u32, &mut dyn Iterator<Item = u64>)) {
        for table in &self.tables {
            let mut slots = table.lines.iter().flat_map(|line| line.slots).filter(|&slot| slot != 0);
            visit(table.len, &mut slots);
        }
    }

    /// How many tables there are.
    pub(super) fn table_count(&self) -> usize {
        self.tables.len()
    }

    /// Takes in a table's slots as [`Index::for_each_table`] gave them, as bytes. `None` if the table is not empty, or a
    /// slot is, or points beyond `segment_count`.
    pub(super) fn load_table(&mut self, number: usize, slots: &[[u8; 8]], segment_count: usize) -> Option<()> {
        let table = &mut self.tables[number];
        if table.len != 0 {
            return None;
        }
        table.resize((slots.len() * 8).div_ceil(LINE_SLOTS * FULL_SHARE));
        self.line_count += table.lines.len();
        for slot in slots {
            let slot = u64::from_le_bytes(*slot);
            let place = Place::of_slot(slot);
            if (place.offset as usize) < BLOCK_BYTES || usize::from(place.segment) >= segment_count {
                return None;
            }
            table.place(slot);
            table.len += 1;
            self.len += 1;
        }
        Some(())
    }

    fn home(&self, hash: KeyHash) -> (usize, u64) {
        // All keys of a core have something in common in their hash.
        let mixed = mix64(hash);
        let table = mixed & (self.tables.len() as u64 - 1);
        (table as usize, mixed >> (u64::BITS - TAG_BITS))
    }
}

impl Table {
    fn home(&self, tag: u64) -> usize {
        ((tag * self.lines.len() as u64) >> TAG_BITS) as usize
    }

    fn for_each_of(&self, tag: u64, mut visit: impl FnMut(u64)) {
        if self.lines.is_empty() {
            return;
        }
        let home = self.home(tag);
        let mut spilled_left = self.lines[home].spilled;
        for slot in self.lines[home].slots {
            if slot != 0 && tag_of(slot) == tag {
                visit(slot);
            }
        }
        let mut line = home;
        while spilled_left > 0 {
            line = self.next(line);
            for slot in self.lines[line].slots {
                if slot != 0 && self.home(tag_of(slot)) == home {
                    spilled_left -= 1;
                    if tag_of(slot) == tag {
                        visit(slot);
                    }
                }
            }
        }
    }

    fn find(&self, tag: u64, place: Place) -> Option<(usize, usize)> {
        if self.lines.is_empty() {
            return None;
        }
        let home = self.home(tag);
        let mut spilled_left = self.lines[home].spilled;
        let is_it = |slot: u64| slot != 0 && tag_of(slot) == tag && slot & PLACE_MASK == place.packed();
        let mut line = home;
        loop {
            for (index, &slot) in self.lines[line].slots.iter().enumerate() {
                if is_it(slot) {
                    return Some((line, index));
                }
                if line != home && slot != 0 && self.home(tag_of(slot)) == home {
                    spilled_left -= 1;
                }
            }
            if spilled_left == 0 {
                return None;
            }
            line = self.next(line);
        }
    }

    fn insert(&mut self, slot: u64) {
        if (self.len as usize + 1) * 8 > self.lines.len() * LINE_SLOTS * FULL_SHARE {
            self.resize((self.lines.len() + self.lines.len() / 8).max(self.lines.len() + 1));
        }
        self.place(slot);
        self.len += 1;
    }

    /// Puts a slot where it belongs; there is a free one somewhere.
    fn place(&mut self, slot: u64) {
        let home = self.home(tag_of(slot));
        let mut line = home;
        loop {
            if let Some(free) = self.lines[line].slots.iter_mut().find(|slot| **slot == 0) {
                *free = slot;
                self.lines[home].spilled += u64::from(line != home);
                return;
            }
            line = self.next(line);
        }
    }

    fn remove(&mut self, tag: u64, place: Place) -> bool {
        let Some((line, slot)) = self.find(tag, place) else { return false };
        self.lines[line].slots[slot] = 0;
        let home = self.home(tag);
        self.lines[home].spilled -= u64::from(line != home);
        self.len -= 1;
        true
    }

    /// Some ten microseconds for a table of planned size.
    fn resize(&mut self, line_count: usize) {
        let old = std::mem::replace(&mut self.lines, vec![EMPTY; line_count].into());
        for slot in old.iter().flat_map(|line| line.slots).filter(|&slot| slot != 0) {
            self.place(slot);
        }
    }

    fn next(&self, line: usize) -> usize {
        if line + 1 == self.lines.len() { 0 } else { line + 1 }
    }
}

#[cfg(target_arch = "x86_64")]
fn prefetch(line: &Line) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch has no effect but on caches, and the address is that of a line.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch(_line: &Line) {}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Index({} keys, {} bytes)", self.len, self.held_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::log::testing::{Random, seeds};

    fn place(number: u64) -> Place {
        let offset = (4096 + number * 16 % (SEGMENT_BYTES_MAX - 8192)) as u32;
        Place::new((number % 65_536) as u16, offset, 100 << (number % 14))
    }

    fn candidates(index: &Index, hash: u64) -> Vec<Place> {
        let mut found = Vec::new();
        index.candidates(hash, &mut found);
        found
    }

    #[test]
    fn a_place_says_where_and_never_too_little_how_much() {
        for record_bytes in [48, 256, 257, 1104, 4096, 4097, 1 << 20, (5 << 20) + 77, 8 << 20] {
            let place = Place::new(65_535, SEGMENT_BYTES_MAX as u32 - 16, record_bytes);
            assert_eq!(Place::of_slot(place.packed()), place);
            assert!(place.record_bytes_max() >= record_bytes && place.record_bytes_max() < 2 * record_bytes.max(256));
        }
    }

    #[test]
    fn keys_with_the_same_tag_have_a_slot_each() {
        let mut index = Index::new(0);
        index.insert(1, place(1));
        index.insert(1, place(2));
        assert_eq!(candidates(&index, 1), [place(1), place(2)]);
        assert!(index.remove(1, place(1)));
        assert!(!index.remove(1, place(1)));
        assert_eq!(candidates(&index, 1), [place(2)]);
    }

    #[test]
    fn hits_are_counted_up_to_three_and_forgotten_when_the_record_moves() {
        let mut index = Index::new(0);
        index.insert(1, place(1));
        assert_eq!(index.hits(1, place(1)), Some(0));
        (0..5).for_each(|_| index.note_hit(1, place(1)));
        assert_eq!(index.hits(1, place(1)), Some(3));
        assert!(index.replace(1, place(1), place(2)));
        assert_eq!((index.hits(1, place(1)), index.hits(1, place(2))), (None, Some(0)));
        assert_eq!(candidates(&index, 1), [place(2)]);
    }

    #[test]
    fn random_insertions_moves_and_removals_agree_with_a_map() {
        for seed in seeds(20) {
            let mut random = Random(seed);
            let mut index = Index::new(random.below(1 << 25));
            let mut model: HashMap<u64, Place> = HashMap::new();
            for step in 0..20_000 {
                let hash = random.below(3000); // the hash is mixed, so that small numbers will do
                let new = place(random.next() >> 8);
                match (random.below(4), model.get(&hash).copied()) {
                    (0, Some(old)) => {
                        assert!(index.remove(hash, old), "MILENA_SEED={seed} step {step}");
                        model.remove(&hash);
                    }
                    (_, Some(old)) => {
                        assert!(index.replace(hash, old, new), "MILENA_SEED={seed} step {step}");
                        model.insert(hash, new);
                    }
                    (_, None) => {
                        index.insert(hash, new);
                        model.insert(hash, new);
                    }
                }
                assert_eq!(index.len(), model.len());
            }
            for hash in 0..3000 {
                match model.get(&hash) {
                    Some(&place) => assert!(index.contains(hash, place), "MILENA_SEED={seed}"),
                    None => assert!(candidates(&index, hash).len() <= 1, "MILENA_SEED={seed}"),
                }
            }
            for (hash, place) in model {
                assert!(index.remove(hash, place));
            }
            let is_clean = |table: &Table| table.lines.iter().all(|line| line.spilled == 0 && line.slots == [0; 7]);
            assert!(index.tables.iter().all(is_clean), "MILENA_SEED={seed}");
        }
    }

    #[test]
    fn a_key_costs_less_than_16_bytes_at_every_size_and_few_tags_are_equal_by_chance() {
        const KEYS: u64 = 2_000_000;
        let mut index = Index::new(KEYS * PLANNED_RECORD_BYTES);
        let mut worst: f64 = 0.0;
        for key in 0..KEYS {
            index.insert(mix64(key), place(key));
            if key > KEYS / 50 && key % 1000 == 0 {
                worst = worst.max(index.held_bytes() as f64 / index.len() as f64);
            }
        }
        let strangers: usize = (KEYS..2 * KEYS).map(|key| candidates(&index, mix64(key)).len()).sum();
        let share = strangers as f64 / KEYS as f64;
        println!("{worst:.2} bytes for each key at worst, {share:.4} reads for each key that is not there");
        assert!(worst <= 16.0, "{worst}");
        assert!(share < 0.001, "{share}");
    }

    #[test]
    fn room_that_was_reserved_for_nothing_is_given_back() {
        let mut index = Index::new(64 << 20);
        index.reserve(1_000_000);
        (0..50_000).for_each(|key| index.insert(mix64(key), place(key)));
        assert!(index.held_bytes() > 9_000_000);
        index.trim();
        assert!(index.held_bytes() < 16 * 50_000, "{index:?}");
        let line_count: usize = index.tables.iter().map(|table| table.lines.len()).sum();
        assert_eq!(line_count, index.line_count);
        assert!((0..50_000).all(|key| index.contains(mix64(key), place(key))));
    }

    #[test]
    fn an_index_that_was_written_table_by_table_is_the_same_afterwards() {
        let mut index = Index::new(64 << 20);
        (0..50_000).for_each(|key| index.insert(mix64(key), place(key)));
        let mut copy = Index::new(64 << 20);
        let mut number = 0;
        index.for_each_table(|len, slots| {
            let slots: Vec<[u8; 8]> = slots.map(u64::to_le_bytes).collect();
            assert_eq!(slots.len(), len as usize);
            copy.load_table(number, &slots, SEGMENTS_MAX as usize).unwrap();
            number += 1;
        });
        assert_eq!((number, copy.len()), (index.table_count(), 50_000));
        assert!((0..50_000).all(|key| copy.contains(mix64(key), place(key))));
    }
}
