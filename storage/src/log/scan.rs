//! A walk over the records of a segment that has no footer, window by window, to the first that is invalid.
//!
//! ```text
//!   ├ header ┼ record ┼ record ┼ zeros ┤ record ┼ ... ┤ anything else
//!                               to the next block     └─ the end
//! ```

use super::{
    footer::FooterEntry,
    record::{self, Body, Invalid, Record, Sequence},
    segment::{BLOCK_BYTES, SegmentHeader},
};
use crate::Timestamp;

/// The walk, and what it has found so far.
///
/// Records follow one another; zeros lead to the next block, and zeros at the start of a block end the walk, as does
/// anything else that is no record, and a sequence that does not rise: it is from an earlier generation.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) entries: Vec<FooterEntry>,
    offset: u32,
    segment_bytes: u32,
    sequence_min: Sequence,
    window_bytes: usize,
    has_ended: bool,
    pub(super) expires_max: Option<Timestamp>,
}

/// What a scan reads at once, unless a record is longer.
const SCAN_BYTES: usize = 512 << 10;

impl Scan {
    pub(super) fn new(first_sequence: Sequence, segment_bytes: u32) -> Self {
        Self {
            entries: Vec::new(),
            offset: BLOCK_BYTES as u32,
            segment_bytes,
            sequence_min: first_sequence,
            window_bytes: SCAN_BYTES,
            has_ended: false,
            expires_max: Some(Timestamp(0)),
        }
    }

    /// What to read next: where, and how much. `None` at the end.
    pub(super) fn wanted(&self) -> Option<(u32, usize)> {
        let left = self.segment_bytes.saturating_sub(self.offset) as usize;
        (!self.has_ended && left > 0).then_some((self.offset, self.window_bytes.min(left)))
    }

    /// Takes in what was read.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        let window_start = self.offset as usize;
        let Some((_, asked_bytes)) = self.wanted() else { return };
        // Fewer than were asked for: the file is shorter than it should be.
        let is_last = window_start + bytes.len() >= self.segment_bytes as usize || bytes.len() < asked_bytes;
        self.window_bytes = SCAN_BYTES;
        loop {
            let start = self.offset as usize - window_start;
            let rest = bytes.get(start..).unwrap_or_default();
            match Record::decode(rest) {
                Ok((record, record_bytes)) if record.sequence >= self.sequence_min => self.note(&record, record_bytes),
                Err(Invalid::Padding) if !self.offset.is_multiple_of(BLOCK_BYTES as u32) => {
                    self.offset = self.offset.next_multiple_of(BLOCK_BYTES as u32);
                }
                // The record goes on behind the window.
                Err(Invalid::Truncated { record_bytes }) if !is_last && record_bytes > rest.len() => {
                    self.window_bytes = SCAN_BYTES.max(record_bytes);
                    return;
                }
                Err(Invalid::Malformed) if !is_last && rest.len() < record::HEADER_BYTES => return,
                Ok(_) | Err(_) => {
                    self.has_ended = true;
                    return;
                }
            }
        }
    }

    /// The sequence of the last record, or the one before the segment's first.
    pub(super) fn last_sequence(&self) -> Sequence {
        self.sequence_min - 1
    }

    fn note(&mut self, record: &Record<'_>, record_bytes: usize) {
        let expires = match record.body {
            Body::Put { expires, .. } => expires,
            Body::Tombstone { .. } | Body::DirtyDelete { .. } | Body::Mark { .. } => None,
        };
        self.entries.push(FooterEntry::of(record, self.offset));
        self.expires_max = self.expires_max.and_then(|before| Some(before.max(expires?)));
        self.sequence_min = record.sequence + 1;
        self.offset += record_bytes as u32;
    }
}

/// Walks over a segment whose bytes are at hand.
pub(super) fn scan(bytes: &[u8], header: &SegmentHeader, segment_bytes: u32) -> Scan {
    debug_assert!(segment_bytes as usize >= 2 * BLOCK_BYTES);
    let mut scan = Scan::new(header.first_sequence, segment_bytes);
    while let Some((offset, len)) = scan.wanted() {
        let start = (offset as usize).min(bytes.len());
        scan.take(&bytes[start..(start + len).min(bytes.len())]);
    }
    scan
}
