//! Where the bytes of entries lie: records one after the other in blocks, lent out by reference count.
//!
//! ```text
//! record  ├ bucket_len ┼ version_len ┼ name_len ┼ value_len ┼ expires_ms ┼ bucket, name, version, value ┤
//!          1 byte; its    1 byte        1 or 2     1 to 4      0 or 8       nothing padded
//!          highest bit: there is an expires_ms; lengths of several bytes: seven bits each, the lowest first
//!
//! block   ├ record ┼ record ┼ record ┼ record ┼ free ──────┤   BLOCK_BYTES, or one record larger than OWN_BLOCK_BYTES_MIN
//!         ├──── run, frozen ────┼─── open: being written ──┤   a hit in the open part freezes what is written of it
//! ```
//! Why not one allocation for each value: a `Bytes` is 32 bytes, and its reference count and the allocator's rounding
//! come on top. Here a record costs its header, and all records of a block share one count. Why no raw memory and
//! reference counts of our own: `BytesMut::split` and `freeze` give the same without `unsafe`, because what is frozen is
//! never written again.
//!
//! A record that dies leaves a hole. When the holes are a [`HOLES_SHARE`]th of all, the emptiest block is cleaned: its
//! living records are appended to the open block and it is given back. See Rumble, Kejriwal and Ousterhout,
//! "Log-structured Memory for DRAM-based Storage", FAST 2014. With LRU most records of a block die at about the same
//! time, so that there is little to copy.
//!
//! A block that is given back while a reader still holds a slice of it lives until the reader is done; until then it
//! counts against the budget.

use bytes::{BufMut, Bytes, BytesMut};
use milena_proto::{key::KeyRef, limits};
use slab::Slab;

use crate::{Entry, Timestamp, Version};

/// Bytes of a block that records share.
pub(super) const BLOCK_BYTES: usize = 32 << 10;

/// A record of this many bytes has a block of its own: it would leave too much of a shared one unused.
const OWN_BLOCK_BYTES_MIN: usize = BLOCK_BYTES / 8;

/// Blocks are cleaned when this share of what they hold is holes.
const HOLES_SHARE: usize = 8;

/// What a block costs beside its bytes: its row in the table, one run, the reference count.
const BLOCK_OVERHEAD_BYTES: usize = size_of::<Block>() + 2 * size_of::<Run>() + 48;

/// The allocator's rounding of a block with a size of its own: one sixteenth on average in allocators with eight
/// classes for each doubling.
const OWN_BLOCK_ROUNDING: usize = 16;

/// Longest version that memory keeps; a store with longer ones is read through.
pub(super) const VERSION_BYTES_MAX: usize = u8::MAX as usize;

const HAS_EXPIRES: u8 = 0x80;

const _: () = assert!(BLOCK_BYTES <= 1 << 16, "offsets are 16 bits");
const _: () = assert!(limits::BUCKET_BYTES_MAX < HAS_EXPIRES as usize);
const _: () = assert!(limits::VALUE_BYTES_MAX < 1 << 28, "four bytes of a length");

/// Where a record begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) block: u32,
    pub(super) offset: u16,
}

/// A record, borrowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) bucket: &'a [u8],
    pub(super) name: &'a [u8],
    pub(super) version: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) expires: Option<Timestamp>,
}

/// All blocks of a memory tier.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    blocks: Slab<Block>,
    open: Option<Open>,
    /// Given back while somebody still reads them; one handle of each, and the bytes they count.
    lent: Vec<(Bytes, usize)>,
    held_bytes: usize,
    /// Bytes of records, dead or alive, in shared blocks that are not open.
    sealed_bytes: usize,
    /// Those of them that are alive.
    sealed_living_bytes: usize,
}

#[derive(Debug)]
struct Block {
    /// In the order of their starts.
    runs: Vec<Run>,
    living_bytes: usize,
    /// Bytes of records, dead or alive.
    written_bytes: usize,
    /// What it counts against the budget.
    held_bytes: usize,
    is_shared: bool,
}

/// A part of a block that is never written again.
#[derive(Debug)]
struct Run {
    start: usize,
    bytes: Bytes,
}

/// The block that is being written.
#[derive(Debug)]
struct Open {
    block: usize,
    /// Where `tail` begins in the block.
    start: usize,
    tail: BytesMut,
}

impl<'a> Record<'a> {
    pub(super) fn new(key: KeyRef<'a>, entry: &'a Entry) -> Self {
        Self {
            bucket: key.bucket_bytes(),
            name: key.name(),
            version: entry.version.as_bytes(),
            value: &entry.value,
            expires: entry.expires,
        }
    }

    /// The record at the beginning of `bytes`, which we wrote ourselves.
    fn parse(bytes: &'a [u8]) -> Self {
        let [bucket_len, version_len, rest @ ..] = bytes else { unreachable!("a record has a header") };
        let (name_len, rest) = take_length(rest);
        let (value_len, rest) = take_length(rest);
        let (expires, rest) = if bucket_len & HAS_EXPIRES == 0 {
            (None, rest)
        } else {
            let (expires_ms, rest) = rest.split_first_chunk().expect("as the header says");
            (Some(Timestamp(u64::from_le_bytes(*expires_ms))), rest)
        };
        let (bucket, rest) = rest.split_at(usize::from(bucket_len & !HAS_EXPIRES));
        let (name, rest) = rest.split_at(name_len);
        let (version, rest) = rest.split_at(usize::from(*version_len));
        Self { bucket, name, version, value: &rest[..value_len], expires }
    }

    pub(super) fn bytes(&self) -> usize {
        self.value_start() + self.value.len()
    }

    fn version_start(&self) -> usize {
        let lengths_bytes = 2 + length_bytes(self.name.len()) + length_bytes(self.value.len());
        lengths_bytes + self.expires.map_or(0, |_| size_of::<u64>()) + self.bucket.len() + self.name.len()
    }

    fn value_start(&self) -> usize {
        self.version_start() + self.version.len()
    }

    #[expect(clippy::cast_possible_truncation, reason = "the limits are asserted above, the version's by the caller")]
    fn write(&self, target: &mut BytesMut) {
        debug_assert!(self.version.len() <= VERSION_BYTES_MAX);
        target.put_u8(self.bucket.len() as u8 | self.expires.map_or(0, |_| HAS_EXPIRES));
        target.put_u8(self.version.len() as u8);
        put_length(self.name.len(), target);
        put_length(self.value.len(), target);
        if let Some(Timestamp(expires_ms)) = self.expires {
            target.put_u64_le(expires_ms);
        }
        for part in [self.bucket, self.name, self.version, self.value] {
            target.put_slice(part);
        }
    }
}

impl Blocks {
    /// What the blocks count against the budget, those included that are only lent any more.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// How much [`Blocks::append`] of a record of `record_bytes` would add to [`Blocks::held_bytes`].
    pub(super) fn growth_bytes(&self, record_bytes: usize) -> usize {
        if record_bytes >= OWN_BLOCK_BYTES_MIN {
            own_block_bytes(record_bytes)
        } else if self.open.as_ref().is_some_and(|open| open.room_bytes() >= record_bytes) {
            0
        } else {
            BLOCK_BYTES + BLOCK_OVERHEAD_BYTES
        }
    }

    /// Writes `record` where there is room. O(bytes).
    pub(super) fn append(&mut self, record: &Record<'_>) -> Location {
        let record_bytes = record.bytes();
        if record_bytes >= OWN_BLOCK_BYTES_MIN {
            let mut bytes = BytesMut::with_capacity(record_bytes);
            record.write(&mut bytes);
            let bytes = bytes.freeze();
            drop(bytes.clone()); // Makes the shared count now, so that a hit does not have to allocate it.
            return self.append_own_block(bytes);
        }
        let open = self.open_with_room(record_bytes);
        let location = open.end();
        record.write(&mut open.tail);
        self.count_appended(location, record_bytes);
        location
    }

    /// The record at `location`. O(log runs of the block).
    pub(super) fn record(&self, location: Location) -> Record<'_> {
        let (block, offset) = (location.block as usize, usize::from(location.offset));
        match &self.open {
            Some(open) if open.block == block && offset >= open.start => {
                Record::parse(&open.tail[offset - open.start..])
            }
            _ => {
                let run = self.blocks[block].run_at(offset);
                Record::parse(&run.bytes[offset - run.start..])
            }
        }
    }

    /// The entry at `location`, sharing its block's bytes: nothing is copied. O(log runs of the block).
    pub(super) fn lend(&mut self, location: Location) -> Entry {
        let (block, offset) = (location.block as usize, usize::from(location.offset));
        if self.open.as_ref().is_some_and(|open| open.block == block && offset >= open.start) {
            self.freeze_tail();
        }
        let run = self.blocks[block].run_at(offset);
        let start = offset - run.start;
        let record = Record::parse(&run.bytes[start..]);
        let version = run.bytes.slice(start + record.version_start()..start + record.value_start());
        let value = run.bytes.slice(start + record.value_start()..start + record.bytes());
        Entry { value, version: Version::checked_before(version), expires: record.expires }
    }

    /// Counts the record at `location` as dead, and gives its block back if it was the last one alive in there.
    pub(super) fn free(&mut self, location: Location) {
        let record_bytes = self.record(location).bytes();
        let index = location.block as usize;
        let is_open = self.open.as_ref().is_some_and(|open| open.block == index);
        let block = &mut self.blocks[index];
        block.living_bytes -= record_bytes;
        if block.is_shared && !is_open {
            self.sealed_living_bytes -= record_bytes;
        }
        if block.living_bytes == 0 && !is_open {
            self.give_back(index);
        }
    }

    /// The block that is worth cleaning most, if there are enough holes for that. O(blocks), a microsecond for some
    /// thousands, which is little beside the copying that follows.
    pub(super) fn to_clean(&self) -> Option<usize> {
        let holes_bytes = self.sealed_bytes - self.sealed_living_bytes;
        if holes_bytes < BLOCK_BYTES || holes_bytes < self.sealed_bytes / HOLES_SHARE {
            return None;
        }
        let open = self.open.as_ref().map(|open| open.block);
        let sealed = self.blocks.iter().filter(|(index, block)| block.is_shared && Some(*index) != open);
        sealed.min_by_key(|(_, block)| block.living_bytes).map(|(index, _)| index)
    }

    /// Takes the records out of block `index`, which [`Blocks::to_clean`] named: append those that are alive again, then
    /// drop it with [`Blocks::end_cleaning`].
    pub(super) fn begin_cleaning(&mut self, index: usize) -> Cleaning {
        let block = &mut self.blocks[index];
        assert!(block.is_shared, "a block of one record has no holes");
        Cleaning { block: index, runs: std::mem::take(&mut block.runs) }
    }

    /// Gives the block back.
    pub(super) fn end_cleaning(&mut self, cleaning: Cleaning) {
        let index = cleaning.block;
        self.blocks[index].runs = cleaning.runs;
        self.sealed_living_bytes -= self.blocks[index].living_bytes;
        self.blocks[index].living_bytes = 0;
        self.give_back(index);
    }

    /// Forgets the blocks that nobody reads any more. O(blocks that are lent).
    pub(super) fn collect_lent(&mut self) {
        self.lent.retain(|(bytes, held_bytes)| {
            let is_read = !bytes.is_unique();
            if !is_read {
                self.held_bytes -= held_bytes;
            }
            is_read
        });
    }

    fn append_own_block(&mut self, bytes: Bytes) -> Location {
        let held_bytes = own_block_bytes(bytes.len());
        self.held_bytes += held_bytes;
        let index = self.blocks.insert(Block {
            living_bytes: bytes.len(),
            written_bytes: bytes.len(),
            held_bytes,
            is_shared: false,
            runs: vec![Run { start: 0, bytes }],
        });
        Location::new(index, 0)
    }

    /// The open block, another one if the one that is open has no room for `record_bytes`.
    fn open_with_room(&mut self, record_bytes: usize) -> &mut Open {
        if self.open.as_ref().is_some_and(|open| open.room_bytes() < record_bytes) {
            self.seal();
        }
        self.open.get_or_insert_with(|| {
            let held_bytes = BLOCK_BYTES + BLOCK_OVERHEAD_BYTES;
            self.held_bytes += held_bytes;
            let block = Block { runs: Vec::new(), living_bytes: 0, written_bytes: 0, held_bytes, is_shared: true };
            Open { block: self.blocks.insert(block), start: 0, tail: BytesMut::with_capacity(BLOCK_BYTES) }
        })
    }

    fn count_appended(&mut self, location: Location, record_bytes: usize) {
        let block = &mut self.blocks[location.block as usize];
        block.living_bytes += record_bytes;
        block.written_bytes += record_bytes;
    }

    /// Makes what is written of the open block a run, so that it can be lent.
    fn freeze_tail(&mut self) {
        let open = self.open.as_mut().expect("the caller saw it");
        let bytes = open.tail.split().freeze();
        let block = &mut self.blocks[open.block];
        let run = Run { start: open.start, bytes };
        open.start += run.bytes.len();
        if !block.runs.is_empty() {
            block.held_bytes += size_of::<Run>();
            self.held_bytes += size_of::<Run>();
        }
        block.runs.push(run);
    }

    fn seal(&mut self) {
        if self.open.as_ref().is_some_and(|open| !open.tail.is_empty()) {
            self.freeze_tail();
        }
        let Some(Open { block: index, .. }) = self.open.take() else { return };
        let block = &self.blocks[index];
        self.sealed_bytes += block.written_bytes;
        self.sealed_living_bytes += block.living_bytes;
        if block.living_bytes == 0 {
            self.give_back(index);
        }
    }

    /// Drops a block without living records, or keeps an eye on it while somebody reads it.
    fn give_back(&mut self, index: usize) {
        let mut block = self.blocks.remove(index);
        debug_assert_eq!(block.living_bytes, 0);
        if block.is_shared {
            self.sealed_bytes -= block.written_bytes;
        }
        // Runs of a block share one count, so only the last of them can tell whether there are other readers.
        let last = block.runs.pop().map(|run| run.bytes);
        drop(block.runs);
        match last {
            Some(bytes) if !bytes.is_unique() => self.lent.push((bytes, block.held_bytes)),
            _ => self.held_bytes -= block.held_bytes,
        }
    }
}

/// The records of a block that is being cleaned.
#[derive(Debug)]
pub(super) struct Cleaning {
    block: usize,
    runs: Vec<Run>,
}

impl Cleaning {
    /// The records, dead or alive, with where they are.
    pub(super) fn records(&self) -> impl Iterator<Item = (Location, Record<'_>)> {
        self.runs.iter().flat_map(move |run| {
            let mut offset = 0;
            std::iter::from_fn(move || {
                let rest = &run.bytes[offset..];
                let record = (!rest.is_empty()).then(|| Record::parse(rest))?;
                let location = Location::new(self.block, run.start + offset);
                offset += record.bytes();
                Some((location, record))
            })
        })
    }
}

impl Block {
    fn run_at(&self, offset: usize) -> &Run {
        let after = self.runs.partition_point(|run| run.start <= offset);
        &self.runs[after - 1]
    }
}

impl Open {
    fn room_bytes(&self) -> usize {
        BLOCK_BYTES - self.start - self.tail.len()
    }

    fn end(&self) -> Location {
        Location::new(self.block, self.start + self.tail.len())
    }
}

impl Location {
    fn new(block: usize, offset: usize) -> Self {
        Self {
            block: u32::try_from(block).expect("fewer than 2^32 blocks"),
            offset: u16::try_from(offset).expect("blocks are at most 64 KiB, and only shared ones have offsets"),
        }
    }
}

/// What a record with a block of its own counts against the budget.
fn own_block_bytes(record_bytes: usize) -> usize {
    record_bytes + record_bytes / OWN_BLOCK_ROUNDING + BLOCK_OVERHEAD_BYTES
}

fn length_bytes(length: usize) -> usize {
    1 + (length >= 1 << 7) as usize + (length >= 1 << 14) as usize + (length >= 1 << 21) as usize
}

#[expect(clippy::cast_possible_truncation, reason = "seven bits")]
fn put_length(mut length: usize, target: &mut BytesMut) {
    while length >= 0x80 {
        target.put_u8(length as u8 | 0x80);
        length >>= 7;
    }
    target.put_u8(length as u8);
}

fn take_length(bytes: &[u8]) -> (usize, &[u8]) {
    let mut length = 0;
    for (index, byte) in bytes.iter().enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return (length, &bytes[index + 1..]);
        }
    }
    unreachable!("a length ends within its record")
}
