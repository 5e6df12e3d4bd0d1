//! Segments: files of fixed size that are filled from front to back, sealed, and one day begun anew.
//!
//! ```text
//! segment  ├ header ┼ batch ┼ batch ┼ ... ┼ free ┼ footer, ends with the file ┤    all in blocks of 4,096
//! batch    ├ record ┼ record ┼ ... ┼ zeros to the end of the block ┤
//!
//! header   0       8         12         16       24           32               40        44      45      46      64
//!          ├ magic ┼ version ┼ checksum ┼ log_id ┼ generation ┼ first_sequence ┼ segment ┼ state ┼ class ┼ zeros ┤
//!
//!            begin            full            footer on disk        chosen          its header says void, on disk
//!   Free ──────────▶ Open ──────────▶ Sealing ──────────▶ Sealed ──────────▶ Reclaiming ──────────▶ Free
//!                     └── a write failed ──────────────────▲                                  └───▶ Bad, if one failed
//! ```
//! A footer belongs to the header with the same generation. So a header that says `void`, or begins a new generation,
//! ends in one block what the segment held before. Records of an earlier generation that lie behind the newest have
//! lower sequences than `first_sequence`, which is how a scan knows them.

use bytes::{BufMut as _, BytesMut};

use super::{
    record::{Sequence, UNIT_BYTES, u32_at, u64_at},
    superblock::{SUPERBLOCK_BYTES, head, is_head, sealed_with_checksum},
};
use crate::Timestamp;

/// What is written at once is a multiple of this, and begins at one: the largest page and sector there is.
pub(super) const BLOCK_BYTES: usize = 4096;

/// The largest segment in bytes: 22 bits of offset in units of 16.
pub const SEGMENT_BYTES_MAX: u64 = 64 << 20;

/// The smallest segment in bytes, for tests and very small disks.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;

/// Segments of one core: 16 bits of an index slot. At the largest size that is 4 TiB.
pub const SEGMENTS_MAX: u32 = 1 << 16;

/// Bytes of a segment's header within its first block.
pub(super) const HEADER_BYTES: usize = SUPERBLOCK_BYTES;

/// Records that end at about the same time share a segment, so that it expires as a whole: the ends of the classes, in
/// milliseconds of life. The last class is everything else.
const CLASS_LIFE_MS: [u64; CLASS_COUNT - 1] = [5 * 60 * 1000, 60 * 60 * 1000, 24 * 60 * 60 * 1000];

/// Classes of life, each with an open segment of its own.
pub(super) const CLASS_COUNT: usize = 4;

const MAGIC: [u8; 8] = *b"MILSEG\r\n";

const _: () = assert!(SEGMENT_BYTES_MAX <= (UNIT_BYTES as u64) << 22);
const _: () = assert!(SEGMENT_BYTES_MAX.is_multiple_of(BLOCK_BYTES as u64));

/// A segment's number within its log, from 0.
pub(super) type SegmentNumber = u16;

/// The head of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) log_id: u64,
    pub(super) segment: SegmentNumber,
    /// Counts the headers that this segment has had.
    pub(super) generation: u64,
    /// Every record of this generation has at least this sequence.
    pub(super) first_sequence: Sequence,
    pub(super) is_void: bool,
    pub(super) class: u8,
}

impl SegmentHeader {
    /// The header as a block of its own.
    pub(super) fn encode_block(&self) -> BytesMut {
        let mut bytes = head(MAGIC, self.log_id);
        bytes.put_u64_le(self.generation);
        bytes.put_u64_le(self.first_sequence);
        bytes.put_u32_le(u32::from(self.segment));
        bytes.put_u8(if self.is_void { 1 } else { 2 });
        bytes.put_u8(self.class);
        let mut block = BytesMut::zeroed(BLOCK_BYTES);
        block[..HEADER_BYTES].copy_from_slice(&sealed_with_checksum(bytes));
        block
    }

    /// The header at the start of `bytes`, if there is one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let is_legal = is_head(bytes, MAGIC) && matches!(bytes[44], 1 | 2) && usize::from(bytes[45]) < CLASS_COUNT;
        is_legal.then_some(())?;
        Some(Self {
            log_id: u64_at(bytes, 16),
            segment: SegmentNumber::try_from(u32_at(bytes, 40)).ok()?,
            generation: u64_at(bytes, 24),
            first_sequence: u64_at(bytes, 32),
            is_void: bytes[44] == 1,
            class: bytes[45],
        })
    }
}

/// Where a segment is in its circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is in it, and its header on disk says so.
    Free,
    /// Records are appended to it.
    Open,
    /// Full, or given up after a failed write; its footer is not on disk yet, or never will be.
    Sealing,
    /// Never written again until it is reclaimed.
    Sealed,
    /// What is still needed of it is being copied elsewhere.
    Reclaiming,
    /// A write to it failed. It is empty now, and out of use until the next start.
    Bad,
}

/// What a core knows about a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) state: State,
    pub(super) generation: u64,
    pub(super) first_sequence: Sequence,
    /// Bytes of records, dead or alive.
    pub(super) used_bytes: u64,
    /// Puts and tombstones, dead or alive.
    pub(super) record_count: u32,
    /// Records that the index points to.
    pub(super) live_count: u32,
    /// Records that say something about others, needed or not: tombstones, marks, dirty deletes.
    pub(super) tombstone_count: u32,
    /// Bytes of records that the store does not have.
    pub(super) dirty_bytes: u64,
    /// When the last record ends; `None` = at least one never does.
    pub(super) expires_max: Option<Timestamp>,
    /// Something could not be written or read here: to be emptied soon, and not to be used again if it was a write.
    pub(super) is_suspect: bool,
    pub(super) write_failed: bool,
    /// It was to be emptied, which could not be finished.
    pub(super) is_stubborn: bool,
    /// It may hold records that neither the index nor a tombstone knows.
    pub(super) has_leaked: bool,
    /// Beyond the size that the log should have: to be emptied, and not to be used again.
    pub(super) is_surplus: bool,
}

impl Segment {
    pub(super) const FREE: Self = Self {
        state: State::Free,
        generation: 0,
        first_sequence: 0,
        used_bytes: 0,
        record_count: 0,
        live_count: 0,
        tombstone_count: 0,
        dirty_bytes: 0,
        expires_max: Some(Timestamp(0)),
        is_suspect: false,
        write_failed: false,
        is_stubborn: false,
        has_leaked: false,
        is_surplus: false,
    };

    /// Whether every record's life has ended.
    pub(super) fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_max.is_some_and(|expires| expires <= now)
    }

    /// Counts a record that ends at `expires`.
    pub(super) fn note_record(&mut self, record_bytes: u64, expires: Option<Timestamp>) {
        self.used_bytes += record_bytes;
        self.record_count += 1;
        self.expires_max = self.expires_max.and_then(|before| Some(before.max(expires?)));
    }

    /// Whether what it held may still be read from the disk after a crash.
    pub(super) fn holds_records(&self) -> bool {
        !matches!(self.state, State::Free)
    }

    /// Bytes of the living, if all records were of one size.
    pub(super) fn live_bytes(&self) -> u64 {
        let live = u64::from(self.live_count) * self.used_bytes;
        live.checked_div(u64::from(self.record_count)).unwrap_or(0)
    }
}

/// The class of a record that ends at `expires`.
pub(super) fn class_of(expires: Option<Timestamp>, now: Timestamp) -> usize {
    let Some(expires) = expires else { return CLASS_COUNT - 1 };
    let life_ms = expires.0.saturating_sub(now.0);
    CLASS_LIFE_MS.iter().position(|&end_ms| life_ms <= end_ms).unwrap_or(CLASS_COUNT - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::testing::{Random, hex, seeds};

    fn header() -> SegmentHeader {
        SegmentHeader {
            log_id: 0x1122_3344_5566_7788,
            segment: 17,
            generation: 3,
            first_sequence: 1000,
            is_void: false,
            class: 2,
        }
    }

    #[test]
    fn a_header_has_the_golden_bytes_of_version_1() {
        let block = header().encode_block();
        assert_eq!(hex(&block[..HEADER_BYTES]), GOLDEN.replace([' ', '\n'], ""));
        assert!(block.len() == BLOCK_BYTES && block[HEADER_BYTES..].iter().all(|&byte| byte == 0));
    }

    const GOLDEN: &str = "\
        4d494c5345470d0a0100000003ad0f3f88776655443322110300000000000000
        e803000000000000110000000202000000000000000000000000000000000000
    ";

    #[test]
    fn a_header_cut_or_flipped_anywhere_is_none() {
        let mut bytes = header().encode_block();
        assert_eq!(SegmentHeader::decode(&bytes), Some(header()));
        for end in 0..HEADER_BYTES {
            assert_eq!(SegmentHeader::decode(&bytes[..end]), None);
        }
        for bit in 0..HEADER_BYTES * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bytes), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_header() {
        for seed in seeds(100) {
            let mut random = Random(seed);
            let bytes: Vec<u8> = (0..random.below(5000)).map(|_| random.next() as u8).collect();
            assert_eq!(SegmentHeader::decode(&bytes), None, "MILENA_SEED={seed}");
        }
    }

    #[test]
    fn records_are_sorted_by_what_is_left_of_their_lives() {
        let now = Timestamp(1_000_000);
        let in_minutes = |minutes: u64| class_of(Some(now.plus_ms(minutes * 60_000)), now);
        assert_eq!([0, 5, 6, 60, 61, 1440, 1441].map(in_minutes), [0, 0, 1, 1, 2, 2, 3]);
        assert_eq!(class_of(None, now), 3);
        assert_eq!(class_of(Some(Timestamp(0)), now), 0);
    }

    #[test]
    fn a_segment_is_expired_when_its_last_record_is_and_never_with_one_that_lives_for_ever() {
        let mut segment = Segment::FREE;
        segment.note_record(64, Some(Timestamp(10)));
        segment.note_record(64, Some(Timestamp(30)));
        segment.note_record(64, Some(Timestamp(20)));
        assert!(!segment.is_expired(Timestamp(29)));
        assert!(segment.is_expired(Timestamp(30)));
        segment.note_record(64, None);
        assert!(!segment.is_expired(Timestamp(u64::MAX)));
    }
}
