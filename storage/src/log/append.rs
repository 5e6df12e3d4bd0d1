//! Where records wait for the disk: one open segment for each class of life, and batches on their way.
//!
//! ```text
//!             on disk, never written again │ cut, or in the air │ pending, grows
//! open segment  ├ header ┼ batch ┼ batch ┼─┤ batch ┼ batch ┼──┤ record, record, ...      footer: kept free ─┤
//!                                          0 mod 4096          0 mod 4096
//! ```
//! A batch is cut when the writer is free, and padded with zeros to a whole block; the next begins after it, so that no
//! block is written twice. Until a batch is on disk its records are read from here.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::{
    footer::{Entries, FooterEntry, Growing, footer_bytes},
    index::Place,
    record::{Record, Sequence},
    segment::{BLOCK_BYTES, CLASS_COUNT, SegmentHeader, SegmentNumber},
};
use crate::Timestamp;

/// Blocks to be written in one go, and never again.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) segment: SegmentNumber,
    /// Where they begin, a multiple of [`BLOCK_BYTES`].
    pub(super) offset: u32,
    /// A multiple of [`BLOCK_BYTES`].
    pub(super) bytes: Bytes,
    pub(super) content: Content,
}

/// What a batch holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Records, the first batch of a segment its header before them.
    Records,
    /// The footer of a segment whose records are on disk.
    Footer,
    /// A header that says that nothing is in the segment any more.
    Void,
}

/// The segments that records are appended to, and what of them is not on disk yet.
#[derive(Debug)]
pub(super) struct Tail {
    segment_bytes: u32,
    open: [Option<Open>; CLASS_COUNT],
    /// How many records the last closed segment of each class has: the next has about as many.
    record_counts: [usize; CLASS_COUNT],
    /// Cut, and waiting for the writer.
    queue: VecDeque<Batch>,
    /// With the writer: of each cycle that has begun and not ended, oldest first.
    flying: VecDeque<Vec<Batch>>,
    buffered_bytes: usize,
}

/// An open segment.
#[derive(Debug)]
struct Open {
    header: SegmentHeader,
    /// Where `pending` begins in the segment.
    start: u32,
    pending: BytesMut,
    footer: Growing,
    last_sequence: Sequence,
}

/// A segment that was closed.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) header: SegmentHeader,
    footer: Growing,
    last_sequence: Sequence,
}

impl Closed {
    /// What the footer says of records.
    pub(super) fn into_entries(self) -> Entries {
        self.footer.into_entries()
    }

    /// The footer as a batch.
    pub(super) fn into_footer(self, segment_bytes: u32, expires_max: Option<Timestamp>) -> Batch {
        let bytes = self.footer.finish(&self.header, self.last_sequence, expires_max);
        let offset = segment_bytes - u32::try_from(bytes.len()).expect("fits the segment");
        Batch { segment: self.header.segment, offset, bytes, content: Content::Footer }
    }
}

impl Tail {
    pub(super) fn new(segment_bytes: u32) -> Self {
        Self {
            segment_bytes,
            open: [const { None }; CLASS_COUNT],
            record_counts: [0; CLASS_COUNT],
            queue: VecDeque::new(),
            flying: VecDeque::new(),
            buffered_bytes: 0,
        }
    }

    /// Bytes that are not known to be on disk.
    pub(super) fn buffered_bytes(&self) -> usize {
        self.buffered_bytes
    }

    /// Memory held for the footers of open segments.
    pub(super) fn footers_bytes(&self) -> usize {
        self.open.iter().flatten().map(|open| open.footer.held_bytes()).sum()
    }

    /// Whether the open segment of `class` takes a record of `record_bytes` more; `false` if there is none.
    pub(super) fn has_room(&self, class: usize, record_bytes: usize) -> bool {
        self.open[class].as_ref().is_some_and(|open| {
            let end = (open.start as usize + open.pending.len() + record_bytes).next_multiple_of(BLOCK_BYTES);
            end + footer_bytes(open.footer.len() + 1) <= self.segment_bytes as usize
        })
    }

    /// Begins a segment as the open one of its class, where there must be none.
    pub(super) fn begin(&mut self, header: SegmentHeader) {
        let pending = header.encode_block();
        self.buffered_bytes += pending.len();
        let class = usize::from(header.class);
        let footer = Growing::with_capacity(self.record_counts[class] * 9 / 8);
        let open = Open { header, start: 0, pending, footer, last_sequence: header.first_sequence };
        let before = self.open[class].replace(open);
        assert!(before.is_none(), "one open segment of a class at a time");
    }

    /// Appends a record to the open segment of `class`, which has room for it.
    pub(super) fn append(&mut self, class: usize, record: &Record<'_>) -> Place {
        debug_assert!(self.has_room(class, record.bytes()));
        let open = self.open[class].as_mut().expect("the caller asked for room");
        let offset = open.start + u32::try_from(open.pending.len()).expect("below a segment's bytes");
        record.encode(&mut open.pending);
        self.buffered_bytes += record.bytes();
        open.last_sequence = record.sequence;
        open.footer.push(&FooterEntry::of(record, offset));
        Place::new(open.header.segment, offset, record.bytes())
    }

    /// Closes the open segment of `class`, if there is one; what is pending in it is cut.
    pub(super) fn close(&mut self, class: usize) -> Option<Closed> {
        self.cut(class);
        let Open { header, footer, last_sequence, .. } = self.open[class].take()?;
        self.record_counts[class] = footer.len();
        Some(Closed { header, footer, last_sequence })
    }

    /// The class whose open segment is `segment`.
    pub(super) fn class_of(&self, segment: SegmentNumber) -> Option<usize> {
        self.open.iter().position(|open| open.as_ref().is_some_and(|open| open.header.segment == segment))
    }

    /// Queues a batch that is no records.
    pub(super) fn queue(&mut self, batch: Batch) {
        debug_assert!(batch.content != Content::Records);
        self.buffered_bytes += batch.bytes.len();
        self.queue.push_back(batch);
    }

    /// Cuts all that is pending, and gives everything to the writer.
    pub(super) fn give(&mut self) -> Vec<Batch> {
        (0..CLASS_COUNT).for_each(|class| self.cut(class));
        let given: Vec<Batch> = self.queue.drain(..).collect();
        self.flying.push_back(given.clone());
        given
    }

    /// What the writer has.
    pub(super) fn flying(&self) -> impl Iterator<Item = &Batch> {
        self.flying.iter().flatten()
    }

    /// The writer is done with what it was given first; the batches come back.
    pub(super) fn take_back(&mut self) -> Vec<Batch> {
        let flown = self.flying.pop_front().expect("it was given");
        self.buffered_bytes -= flown.iter().map(|batch| batch.bytes.len()).sum::<usize>();
        flown
    }

    /// Takes back what the writer has not been given of a segment.
    pub(super) fn withdraw(&mut self, segment: SegmentNumber) -> Vec<Batch> {
        let (withdrawn, kept): (Vec<_>, Vec<_>) = self.queue.drain(..).partition(|batch| batch.segment == segment);
        self.queue = kept.into();
        self.buffered_bytes -= withdrawn.iter().map(|batch| batch.bytes.len()).sum::<usize>();
        withdrawn
    }

    /// The record at `place`, if it is not known to be on disk. Copies it only as long as it is pending.
    pub(super) fn find(&self, place: Place) -> Option<Bytes> {
        let open = self.open.iter().flatten().find(|open| open.header.segment == place.segment);
        if let Some(open) = open.filter(|open| open.start <= place.offset) {
            let rest = open.pending.get((place.offset - open.start) as usize..)?;
            let (_, record_bytes) = Record::parse(rest).ok()?;
            return Some(Bytes::copy_from_slice(&rest[..record_bytes]));
        }
        let batches = self.flying().chain(&self.queue);
        let holds = |batch: &&Batch| {
            batch.segment == place.segment
                && batch.content == Content::Records
                && (batch.offset..batch.offset + batch.bytes.len() as u32).contains(&place.offset)
        };
        let batch = batches.into_iter().find(holds)?;
        let rest = batch.bytes.slice((place.offset - batch.offset) as usize..);
        let (_, record_bytes) = Record::parse(&rest).ok()?;
        Some(rest.slice(..record_bytes))
    }

    fn cut(&mut self, class: usize) {
        let Some(open) = self.open[class].as_mut().filter(|open| !open.pending.is_empty()) else { return };
        let padded_bytes = open.pending.len().next_multiple_of(BLOCK_BYTES);
        self.buffered_bytes += padded_bytes - open.pending.len();
        open.pending.resize(padded_bytes, 0);
        let bytes = open.pending.split().freeze();
        let (segment, offset) = (open.header.segment, open.start);
        open.start += u32::try_from(padded_bytes).expect("below a segment's bytes");
        self.queue.push_back(Batch { segment, offset, bytes, content: Content::Records });
    }
}

/// The records of a batch, with where each begins in the segment.
pub(super) fn records(batch: &Batch) -> impl Iterator<Item = (u32, Record<'_>)> {
    let mut index = if batch.offset == 0 { BLOCK_BYTES } else { 0 };
    std::iter::from_fn(move || {
        let (record, record_bytes) = Record::parse(batch.bytes.get(index..)?).ok()?;
        let offset = batch.offset + index as u32;
        index += record_bytes;
        Some((offset, record))
    })
}
