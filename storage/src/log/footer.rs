//! The footer of a sealed segment: 24 bytes for each record, so that a start need not read the records themselves.
//!
//! ```text
//! footer   ├ zeros to a whole number of blocks ┼ entry ┼ entry ┼ ... ┼ trailer ┤   ends with the segment
//!
//! entry    0          8          16                                            24
//!          ├ key_hash ┼ sequence ┼ offset:24  record:32  kind:7  has_older:1 ┤     offset and record in units of 16
//!                                                            kinds as in record.rs
//!
//! trailer  0       8         12         16       24           32                 40            44                48
//!          ├ magic ┼ version ┼ checksum ┼ log_id ┼ generation ┼ expires_max_ms   ┼ entry_count ┼ entries_checksum ┤
//!          48            56        64
//!          ├ last_sequence ┼ segment, zeros ┤
//! ```
//! Entries stand in the order of their offsets. The sequence of a tombstone or mark is its `origin`. `expires_max_ms` 0 =
//! at least one record never ends. A footer counts only with the header that has the same log and generation.

use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{
    record::{Body, HEADER_BYTES, Kind, Record, Sequence, UNIT_BYTES, u32_at, u64_at},
    segment::{BLOCK_BYTES, SEGMENT_BYTES_MAX, SegmentHeader},
    superblock::{SUPERBLOCK_BYTES, checksum_holds, head, is_head, sealed_with_checksum},
};
use crate::Timestamp;

/// Bytes of an entry.
pub(super) const ENTRY_BYTES: usize = 24;

const TRAILER_BYTES: usize = SUPERBLOCK_BYTES;

const MAGIC: [u8; 8] = *b"MILFOOT\n";

/// Where a record is, and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FooterEntry {
    pub(super) key_hash: u64,
    /// A change's own sequence, a tombstone's or mark's origin.
    pub(super) sequence: Sequence,
    /// Where the record begins, in bytes from the start of the segment.
    pub(super) offset: u32,
    pub(super) record_bytes: u32,
    pub(super) kind: Kind,
    pub(super) has_older: bool,
}

impl FooterEntry {
    /// The entry of a record that begins at `offset`.
    pub(super) fn of(record: &Record<'_>, offset: u32) -> Self {
        let (sequence, has_older) = match record.body {
            Body::Put { has_older, .. } => (record.sequence, has_older),
            Body::DirtyDelete { .. } => (record.sequence, false),
            Body::Tombstone { origin } | Body::Mark { origin } => (origin, false),
        };
        Self {
            key_hash: record.key_hash,
            sequence,
            offset,
            record_bytes: u32::try_from(record.bytes()).expect("below a segment's bytes"),
            kind: record.kind(),
            has_older,
        }
    }

    fn encode(&self, target: &mut BytesMut) {
        let place = (u64::from(self.offset) / UNIT_BYTES as u64)
            | ((u64::from(self.record_bytes) / UNIT_BYTES as u64) << 24)
            | (self.kind as u64) << 56
            | u64::from(self.has_older) << 63;
        target.put_u64_le(self.key_hash);
        target.put_u64_le(self.sequence);
        target.put_u64_le(place);
    }

    /// `None` for what [`FooterEntry::encode`] never writes.
    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let place = u64_at(bytes, 16);
        let bytes_of = |units: u64| u32::try_from(units * UNIT_BYTES as u64).ok();
        let entry = Self {
            key_hash: u64_at(bytes, 0),
            sequence: u64_at(bytes, 8),
            offset: bytes_of(place & 0xFF_FFFF)?,
            record_bytes: bytes_of(place >> 24 & 0xFFFF_FFFF)?,
            kind: Kind::of(place >> 56 & 0x7F)?,
            has_older: place >> 63 == 1,
        };
        let is_legal = entry.record_bytes as usize >= HEADER_BYTES
            && entry.offset as usize >= BLOCK_BYTES
            && u64::from(entry.offset) + u64::from(entry.record_bytes) <= SEGMENT_BYTES_MAX;
        is_legal.then_some(entry)
    }
}

/// A footer, checked, with its entries still as bytes: they may be a part of a mapping.
#[derive(Clone, Copy, Debug)]
pub(super) struct Footer<'a> {
    entries: &'a [[u8; ENTRY_BYTES]],
    pub(super) expires_max: Option<Timestamp>,
    pub(super) last_sequence: Sequence,
}

/// Bytes at the end of a segment that the footer of `entry_count` records takes: a whole number of blocks.
pub(super) fn footer_bytes(entry_count: usize) -> usize {
    (entry_count * ENTRY_BYTES + TRAILER_BYTES).next_multiple_of(BLOCK_BYTES)
}

/// A footer that grows with its segment, in the bytes that it will have: a segment of small records has a footer of many
/// megabytes, and making it at once would keep the core from all else.
#[derive(Debug)]
pub(super) struct Growing {
    /// Zeros, of which a footer needs less than a block, and entries.
    bytes: BytesMut,
    checksum: u32,
}

impl Growing {
    /// Without entries; has room for `entry_count` before it moves, which takes the longer the more there are.
    pub(super) fn with_capacity(entry_count: usize) -> Self {
        let mut bytes = BytesMut::with_capacity(BLOCK_BYTES + entry_count * ENTRY_BYTES + TRAILER_BYTES);
        bytes.put_bytes(0, BLOCK_BYTES);
        Self { bytes, checksum: 0 }
    }

    pub(super) fn push(&mut self, entry: &FooterEntry) {
        let start = self.bytes.len();
        entry.encode(&mut self.bytes);
        self.checksum = crc32c::crc32c_append(self.checksum, &self.bytes[start..]);
    }

    /// Entries so far.
    pub(super) fn len(&self) -> usize {
        (self.bytes.len() - BLOCK_BYTES) / ENTRY_BYTES
    }

    /// Memory held.
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// The entries alone. O(1).
    pub(super) fn into_entries(self) -> Entries {
        Entries(self.bytes.freeze().slice(BLOCK_BYTES..))
    }

    /// The footer of the segment with this header, to be written so that it ends with the segment. O(1).
    pub(super) fn finish(
        mut self,
        header: &SegmentHeader,
        last_sequence: Sequence,
        expires_max: Option<Timestamp>,
    ) -> Bytes {
        let entry_count = self.len();
        let mut trailer = head(MAGIC, header.log_id);
        trailer.put_u64_le(header.generation);
        trailer.put_u64_le(expires_max.map_or(0, |expires| expires.0.max(1)));
        trailer.put_u32_le(u32::try_from(entry_count).expect("fewer than a segment's units"));
        trailer.put_u32_le(self.checksum);
        trailer.put_u64_le(last_sequence);
        trailer.put_u32_le(u32::from(header.segment));
        self.bytes.put_slice(&sealed_with_checksum(trailer));
        let surplus = self.bytes.len() - footer_bytes(entry_count);
        self.bytes.freeze().slice(surplus..)
    }
}

impl<'a> FromIterator<&'a FooterEntry> for Growing {
    fn from_iter<I: IntoIterator<Item = &'a FooterEntry>>(entries: I) -> Self {
        let entries = entries.into_iter();
        let mut growing = Self::with_capacity(entries.size_hint().0);
        entries.for_each(|entry| growing.push(entry));
        growing
    }
}

/// Entries in the bytes that a footer has of them. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Entries(Bytes);

impl Entries {
    /// Those of a footer that [`Growing::finish`] has made. O(1).
    pub(super) fn of_footer(footer: &Bytes) -> Self {
        let end = footer.len() - TRAILER_BYTES;
        let entry_count = u32_at(&footer[end..], 40) as usize;
        Self(footer.slice(end - entry_count * ENTRY_BYTES..end))
    }

    /// All, in the order of their offsets, at most `count` together. One that makes no sense is left out.
    pub(super) fn chunks(&self, count: usize) -> impl Iterator<Item = impl Iterator<Item = FooterEntry>> {
        self.0.as_chunks().0.chunks(count).map(|chunk| chunk.iter().filter_map(FooterEntry::decode))
    }
}

/// A footer of which the pieces come one after the other, and its checksum as they come.
#[derive(Debug)]
pub(super) struct Pieces {
    bytes: BytesMut,
    checksum: u32,
    /// Where the entries are in `bytes` when all have come.
    entries: Range<usize>,
}

impl Pieces {
    /// Of a footer of `entry_count` entries, which has [`footer_bytes`] of them.
    pub(super) fn new(entry_count: usize) -> Self {
        let end = footer_bytes(entry_count) - TRAILER_BYTES;
        let bytes = BytesMut::with_capacity(footer_bytes(entry_count));
        Self { bytes, checksum: 0, entries: end - entry_count * ENTRY_BYTES..end }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn push(&mut self, piece: &[u8]) {
        let start = self.bytes.len().max(self.entries.start);
        self.bytes.put_slice(piece);
        let end = self.bytes.len().min(self.entries.end);
        if start < end {
            self.checksum = crc32c::crc32c_append(self.checksum, &self.bytes[start..end]);
        }
    }

    /// The entries, if all has come and is a footer that belongs to `header`. O(1).
    pub(super) fn finish(self, header: &SegmentHeader) -> Option<Entries> {
        let trailer = trailer_of(&self.bytes, header)?;
        let is_whole = u32_at(trailer, 40) as usize * ENTRY_BYTES == self.entries.len()
            && u32_at(trailer, 44) == self.checksum
            && self.bytes.len() == self.entries.end + TRAILER_BYTES;
        is_whole.then(|| Entries(self.bytes.freeze().slice(self.entries)))
    }
}

/// The trailer at the end of `bytes`, if it belongs to `header`.
fn trailer_of<'a>(bytes: &'a [u8], header: &SegmentHeader) -> Option<&'a [u8; TRAILER_BYTES]> {
    let trailer = bytes.last_chunk()?;
    let is_of_header = is_head(trailer, MAGIC)
        && u64_at(trailer, 16) == header.log_id
        && u64_at(trailer, 24) == header.generation
        && u32_at(trailer, 56) == u32::from(header.segment);
    is_of_header.then_some(trailer)
}

impl<'a> Footer<'a> {
    /// The footer at the end of `bytes`, which end with the segment, if it belongs to `header`.
    pub(super) fn decode(bytes: &'a [u8], header: &SegmentHeader) -> Option<Self> {
        let trailer = trailer_of(bytes, header)?;
        let entries_bytes = (u32_at(trailer, 40) as usize).checked_mul(ENTRY_BYTES)?;
        let before = &bytes[..bytes.len() - TRAILER_BYTES];
        let entries = &before[before.len().checked_sub(entries_bytes)?..];
        (crc32c::crc32c(entries) == u32_at(trailer, 44)).then_some(())?;
        let expires_ms = u64_at(trailer, 32);
        Some(Self {
            entries: entries.as_chunks().0,
            expires_max: (expires_ms != 0).then_some(Timestamp(expires_ms)),
            last_sequence: u64_at(trailer, 48),
        })
    }

    /// The generation of a trailer at the end of `bytes`, whatever header it belongs to.
    pub(super) fn generation_in(bytes: &[u8]) -> Option<u64> {
        Some(u64_at(Self::trailer_in(bytes)?, 24))
    }

    /// How many bytes the footer takes whose trailer is at the end of `bytes`.
    pub(super) fn bytes_in(bytes: &[u8]) -> Option<usize> {
        let entry_count = u32_at(Self::trailer_in(bytes)?, 40);
        Some(footer_bytes(entry_count as usize))
    }

    fn trailer_in(bytes: &[u8]) -> Option<&[u8; TRAILER_BYTES]> {
        bytes.last_chunk().filter(|trailer| trailer[..8] == MAGIC && checksum_holds(trailer))
    }

    /// The entries, in the order of their offsets. One that makes no sense, behind a checksum that holds, is left out.
    pub(super) fn iter(&self) -> impl Iterator<Item = FooterEntry> + use<'a> {
        self.entries.iter().filter_map(FooterEntry::decode)
    }

    /// The entry of the record that begins at `offset`. O(log entries).
    pub(super) fn at(&self, offset: u32) -> Option<FooterEntry> {
        let units = u64::from(offset) / UNIT_BYTES as u64;
        let index = self.entries.binary_search_by_key(&units, |entry| u64_at(entry, 16) & 0xFF_FFFF).ok()?;
        FooterEntry::decode(&self.entries[index])
    }
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

    fn entries() -> [FooterEntry; 2] {
        let put = FooterEntry {
            key_hash: 0xAABB_CCDD_EEFF_0011,
            sequence: 1000,
            offset: 4096,
            record_bytes: 64,
            kind: Kind::Put,
            has_older: true,
        };
        let tombstone = FooterEntry { sequence: 1001, offset: 4160, record_bytes: 48, kind: Kind::Tombstone, ..put };
        [put, FooterEntry { has_older: false, ..tombstone }]
    }

    fn encoded() -> BytesMut {
        let growing = Growing::from_iter(&entries());
        growing.finish(&header(), 1001, Some(Timestamp(1_700_000_000_123))).into()
    }

    /// As many entries as that, one behind the other.
    fn many(count: usize) -> Vec<FooterEntry> {
        let entry = |number: u32| FooterEntry { offset: 4096 + 64 * number, ..entries()[0] };
        (0..count as u32).map(entry).collect()
    }

    fn in_pieces(bytes: &[u8], count: usize, piece_bytes: usize, header: &SegmentHeader) -> Option<Vec<FooterEntry>> {
        let mut pieces = Pieces::new(count);
        bytes.chunks(piece_bytes).for_each(|piece| pieces.push(piece));
        pieces.finish(header).map(|entries| entries.chunks(7).flatten().collect())
    }

    #[test]
    fn a_footer_that_comes_in_pieces_of_any_size_is_the_footer_that_comes_whole() {
        for count in [0, 1, 167, 168, 169, 500] {
            let entries = many(count);
            let growing = Growing::from_iter(&entries);
            assert_eq!(growing.len(), count);
            let bytes = growing.finish(&header(), 1001, None);
            assert_eq!(bytes.len(), footer_bytes(count), "{count} entries");
            assert_eq!(Footer::decode(&bytes, &header()).unwrap().iter().collect::<Vec<_>>(), entries);
            for piece_bytes in [1, 100, 4096, 5000, 1 << 20] {
                assert_eq!(
                    in_pieces(&bytes, count, piece_bytes, &header()),
                    Some(entries.clone()),
                    "{count}, {piece_bytes}"
                );
            }
        }
    }

    #[test]
    fn a_footer_in_pieces_that_is_cut_flipped_or_of_other_size_does_not_count() {
        let count = 200;
        let mut bytes = Growing::from_iter(&many(count)).finish(&header(), 1001, None).to_vec();
        let used = count * ENTRY_BYTES + TRAILER_BYTES;
        for len in 0..bytes.len() {
            assert_eq!(in_pieces(&bytes[..len], count, 4096, &header()), None, "{len} bytes");
        }
        for other in [count - 1, count + 1] {
            assert_eq!(in_pieces(&bytes, other, 4096, &header()), None, "{other} entries");
        }
        assert_eq!(in_pieces(&bytes, count, 4096, &SegmentHeader { generation: 4, ..header() }), None);
        for index in bytes.len() - used..bytes.len() {
            bytes[index] ^= 16;
            assert_eq!(in_pieces(&bytes, count, 4096, &header()), None, "byte {index}");
            bytes[index] ^= 16;
        }
    }

    #[test]
    fn a_footer_has_the_golden_bytes_of_version_1() {
        let bytes = encoded();
        let used = 2 * ENTRY_BYTES + TRAILER_BYTES;
        assert!(bytes.len() == BLOCK_BYTES && bytes[..BLOCK_BYTES - used].iter().all(|&byte| byte == 0));
        assert_eq!(hex(&bytes[BLOCK_BYTES - used..]), GOLDEN.replace([' ', '\n'], ""));
    }

    const GOLDEN: &str = "\
        1100ffeeddccbbaae80300000000000000010004000000811100ffeeddccbbaa
        e90300000000000004010003000000024d494c464f4f540a0100000076c6f9fe
        887766554433221103000000000000007b68e5cf8b01000002000000747bd73c
        e9030000000000001100000000000000
    ";

    #[test]
    fn the_kinds_of_dirty_records_have_the_golden_bytes_of_version_1() {
        for (kind, byte) in [(Kind::DirtyPut, "83"), (Kind::DirtyDelete, "84"), (Kind::Mark, "85")] {
            let entry = FooterEntry { kind, ..entries()[0] };
            let mut bytes = BytesMut::new();
            entry.encode(&mut bytes);
            assert_eq!(hex(&bytes), format!("1100ffeeddccbbaae80300000000000000010004000000{byte}"));
            assert_eq!(FooterEntry::decode(bytes.first_chunk().unwrap()), Some(entry));
        }
        let mut bytes = BytesMut::new();
        entries()[0].encode(&mut bytes);
        bytes[23] = 6;
        assert_eq!(FooterEntry::decode(bytes.first_chunk().unwrap()), None, "a kind of another version");
    }

    #[test]
    fn what_was_encoded_is_what_is_decoded() {
        let bytes = encoded();
        assert_eq!((Footer::generation_in(&bytes), Footer::bytes_in(&bytes)), (Some(3), Some(bytes.len())));
        let footer = Footer::decode(&bytes, &header()).unwrap();
        assert_eq!(footer.iter().collect::<Vec<_>>(), entries());
        assert_eq!(footer.last_sequence, 1001);
        assert_eq!(footer.expires_max, Some(Timestamp(1_700_000_000_123)));
        for entry in entries() {
            assert_eq!(footer.at(entry.offset), Some(entry));
        }
        assert_eq!(footer.at(4112), None);
    }

    #[test]
    fn a_footer_of_another_generation_log_or_segment_does_not_count() {
        let bytes = encoded();
        let others = [
            SegmentHeader { generation: 4, ..header() },
            SegmentHeader { log_id: 1, ..header() },
            SegmentHeader { segment: 18, ..header() },
        ];
        for other in others {
            assert!(Footer::decode(&bytes, &other).is_none());
        }
    }

    #[test]
    fn a_footer_cut_or_flipped_anywhere_does_not_count() {
        let mut bytes = encoded();
        let used = 2 * ENTRY_BYTES + TRAILER_BYTES;
        for start in 0..used {
            assert!(Footer::decode(&bytes[bytes.len() - start..], &header()).is_none(), "{start} bytes");
        }
        for bit in (BLOCK_BYTES - used) * 8..BLOCK_BYTES * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Footer::decode(&bytes, &header()).is_none(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_footer_and_arbitrary_entries_do_no_harm() {
        for seed in seeds(200) {
            let mut random = Random(seed);
            let mut bytes: Vec<u8> = (0..random.below(5000)).map(|_| random.next() as u8).collect();
            assert!(Footer::decode(&bytes, &header()).is_none(), "MILENA_SEED={seed}");
            assert_eq!(Footer::generation_in(&bytes), None);
            // Checksums that hold over nonsense: what a bug of another version could leave.
            bytes.truncate(bytes.len() / ENTRY_BYTES * ENTRY_BYTES);
            let count = (bytes.len() / ENTRY_BYTES) as u32;
            let mut trailer = BytesMut::from(&encoded()[BLOCK_BYTES - TRAILER_BYTES..]);
            trailer[12..16].fill(0);
            trailer[40..44].copy_from_slice(&count.to_le_bytes());
            trailer[44..48].copy_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
            bytes.extend_from_slice(&sealed_with_checksum(trailer));
            let footer = Footer::decode(&bytes, &header()).expect("the checksums hold");
            for entry in footer.iter() {
                assert!(u64::from(entry.offset) + u64::from(entry.record_bytes) <= SEGMENT_BYTES_MAX);
            }
            footer.at(random.next() as u32);
        }
    }
}
