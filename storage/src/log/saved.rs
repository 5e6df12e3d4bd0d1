//! The index as a clean stop leaves it: one file, read in one go, used once.
//!
//! ```text
//! 0       8         12         16       24              32                40              44            48
//! ├ magic ┼ version ┼ checksum ┼ log_id ┼ next_sequence ┼ next_generation ┼ segment_count ┼ table_count ┼─▶
//! 48              52      64
//! ├ body_checksum ┼ zeros ┼ segments ┼ tables ┤
//!
//! segment  ├ generation:8 ┼ first_sequence:8 ┼ used_bytes:8 ┼ expires_max:8 ┼ records:4 ┼ live:4 ┼ tombstones:4 ┼ sealed:4 ┤
//! table    ├ count:4 ┼ slot:8 ┼ slot:8 ┼ ... ┤
//! ```
//! A log with changes that the store does not have leaves none: they are few, and the footers tell of them.
//!
//! The checksums are CRC-32C. A file that does not hold together, or belongs to another log, is none: the footers tell
//! the same, and take longer.

use std::{fs, path::Path};

use bytes::BufMut as _;

use super::{
    index::Index,
    record::{u32_at, u64_at},
    segment::{Segment, State as SegmentState},
    state::{Found, State},
    superblock::{self, SUPERBLOCK_BYTES, sealed_with_checksum},
};
use crate::Timestamp;

/// Its last digit counts the forms that slots had. An index of another is none, where another [`FORMAT_VERSION`] would be another
/// log.
///
/// [`FORMAT_VERSION`]: super::superblock::FORMAT_VERSION
const MAGIC: [u8; 8] = *b"MILINDX2";
const HEAD_BYTES: usize = SUPERBLOCK_BYTES;
const SEGMENT_ROW_BYTES: usize = 48;

/// The file, or `None` where the index alone does not say all that a start must know.
pub(super) fn encode(state: &State) -> Option<Vec<u8>> {
    if !state.is_index_whole() {
        return None;
    }
    let mut body = Vec::with_capacity(state.index.len() * 8 + state.segments.len() * SEGMENT_ROW_BYTES);
    for segment in &state.segments {
        body.put_u64_le(segment.generation);
        body.put_u64_le(segment.first_sequence);
        body.put_u64_le(segment.used_bytes);
        body.put_u64_le(segment.expires_max.map_or(0, |expires| expires.0.max(1)));
        body.put_u32_le(segment.record_count);
        body.put_u32_le(segment.live_count);
        body.put_u32_le(segment.tombstone_count);
        body.put_u32_le(u32::from(segment.state == SegmentState::Sealed));
    }
    state.index.for_each_table(|len, slots| {
        body.put_u32_le(len);
        slots.for_each(|slot| body.put_u64_le(slot));
    });

    let mut head = superblock::head(MAGIC, state.log_id());
    head.put_u64_le(state.last_sequence() + 1);
    head.put_u64_le(state.next_generation());
    head.put_u32_le(u32::try_from(state.segments.len()).expect("at most SEGMENTS_MAX"));
    head.put_u32_le(u32::try_from(state.index.table_count()).expect("fewer than segments have units"));
    head.put_u32_le(crc32c::crc32c(&body));
    let mut file = sealed_with_checksum(head).to_vec();
    file.extend_from_slice(&body);
    Some(file)
}

/// What was saved, if it is of this log and holds together.
pub(super) fn load(path: &Path, log_id: u64, segment_bytes: u32, segment_count: usize) -> Option<Found> {
    decode(&fs::read(path).ok()?, log_id, segment_bytes, segment_count)
}

/// The same from the file's bytes.
pub(super) fn decode(bytes: &[u8], log_id: u64, segment_bytes: u32, segment_count: usize) -> Option<Found> {
    let head: &[u8; HEAD_BYTES] = bytes.first_chunk()?;
    let body = &bytes[HEAD_BYTES..];
    let saved_count = u32_at(head, 40) as usize;
    let is_whole = superblock::is_head(head, MAGIC)
        && u64_at(head, 16) == log_id
        && saved_count <= segment_count
        && crc32c::crc32c(body) == u32_at(head, 48);
    is_whole.then_some(())?;

    let (rows, mut rest) = body.split_at_checked(saved_count * SEGMENT_ROW_BYTES)?;
    let mut segments: Vec<Segment> = rows.chunks_exact(SEGMENT_ROW_BYTES).map(segment).collect();
    segments.resize(segment_count, Segment::FREE); // Those that were added since.
    let mut index = Index::with_tables(u32_at(head, 44) as usize)?;
    for table in 0..index.table_count() {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let (slots, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize * 8)?;
        rest = after;
        index.load_table(table, slots.as_chunks().0, saved_count)?;
    }
    let (next_sequence, next_generation) = (u64_at(head, 24), u64_at(head, 32));
    let footers_kept = std::collections::HashMap::new();
    let debts = Vec::new();
    Some(Found { log_id, segment_bytes, segments, index, debts, next_sequence, next_generation, footers_kept })
}

fn segment(row: &[u8]) -> Segment {
    let expires_max = u64_at(row, 24);
    Segment {
        state: if u32_at(row, 44) == 1 { SegmentState::Sealed } else { SegmentState::Free },
        generation: u64_at(row, 0),
        first_sequence: u64_at(row, 8),
        used_bytes: u64_at(row, 16),
        expires_max: (expires_max != 0).then_some(Timestamp(expires_max)),
        record_count: u32_at(row, 32),
        live_count: u32_at(row, 36),
        tombstone_count: u32_at(row, 40),
        ..Segment::FREE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{
        index::Place,
        testing::{Random, hex, seeds},
    };

    const SEGMENT_BYTES: u32 = 64 << 10;

    fn found() -> Found {
        let mut index = Index::new(0);
        index.insert(5, Place::new(1, 4096, 64));
        let sealed = Segment {
            state: SegmentState::Sealed,
            generation: 3,
            first_sequence: 7,
            used_bytes: 64,
            record_count: 1,
            live_count: 1,
            expires_max: None,
            ..Segment::FREE
        };
        Found {
            log_id: 77,
            segment_bytes: SEGMENT_BYTES,
            segments: vec![Segment::FREE, sealed],
            index,
            debts: Vec::new(),
            next_sequence: 8,
            next_generation: 4,
            footers_kept: std::collections::HashMap::new(),
        }
    }

    fn encoded() -> Vec<u8> {
        encode(&State::new(found())).unwrap()
    }

    #[test]
    fn a_saved_index_has_the_golden_bytes_of_form_2() {
        assert_eq!(hex(&encoded()), GOLDEN.replace([' ', '\n'], ""));
    }

    const GOLDEN: &str = "\
        4d494c494e44583201000000fee7910b4d000000000000000800000000000000
        040000000000000002000000010000005c1e0091000000000000000000000000
        0000000000000000000000000000000000000000000000000100000000000000
        0000000000000000000000000000000003000000000000000700000000000000
        4000000000000000000000000000000001000000010000000000000001000000
        01000000001000040060bfb6
    ";

    #[test]
    fn what_was_saved_is_what_is_loaded_also_when_segments_were_added() {
        let loaded = decode(&encoded(), 77, SEGMENT_BYTES, 3).unwrap();
        assert!(loaded.index.contains(5, Place::new(1, 4096, 64)));
        assert_eq!((loaded.next_sequence, loaded.next_generation, loaded.segments.len()), (8, 4, 3));
        let states = loaded.segments.iter().map(|segment| segment.state);
        assert!(states.eq([SegmentState::Free, SegmentState::Sealed, SegmentState::Free]));
        assert_eq!(loaded.segments[1].live_count, 1);
    }

    #[test]
    fn an_index_of_another_log_or_for_more_segments_than_there_are_is_none() {
        assert!(decode(&encoded(), 78, SEGMENT_BYTES, 2).is_none());
        assert!(decode(&encoded(), 77, SEGMENT_BYTES, 1).is_none());
    }

    #[test]
    fn a_saved_index_cut_or_flipped_anywhere_is_none() {
        let mut bytes = encoded();
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end], 77, SEGMENT_BYTES, 2).is_none(), "cut at {end}");
        }
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes, 77, SEGMENT_BYTES, 2).is_none(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn arbitrary_bytes_are_none() {
        for seed in seeds(100) {
            let mut random = Random(seed);
            let bytes: Vec<u8> = (0..random.below(500)).map(|_| random.next() as u8).collect();
            assert!(decode(&bytes, 77, SEGMENT_BYTES, 2).is_none(), "MILENA_SEED={seed}");
        }
    }
}
