//! What a log finds of itself on disk: from bytes to index. How the files are opened is in open.rs.
//!
//! ```text
//!   each segment   header? ── none, void, another log's ─▶ free
//!                    └─ open ─▶ footer of the same generation? ─▶ its entries
//!                                 └─ none ─▶ scan to the first invalid record
//!   then           all tombstones and dirty deletes: hash ─▶ the highest origin;  all marks: the same
//!                  dirty records: neither dead nor marked, the newest of their hash ─▶ debts
//!                  all puts: below the origin ─▶ dead;  of equal hashes the highest sequence ─▶ index
//! ```
//! Keys are known by their 64-bit hash here: of two keys with the same one, the older is lost to the log. No change is
//! lost like this that the store does not have: while it waits, nothing newer of its hash is written. The expiry of a
//! record is in the record, and looked at when it is read.

use std::collections::HashMap;

use ahash::RandomState;

use super::{
    debts::DirtyRecord,
    footer::{Footer, FooterEntry},
    index::{Index, Place},
    record::{Kind, Sequence},
    scan::scan,
    segment::{Segment, SegmentHeader, SegmentNumber, State},
    state::Found,
};

/// After a start that is not from a clean stop, sequences begin this far above the last that was found: behind the
/// first invalid record there may be more, which must never be taken for new ones.
const SEQUENCE_GAP: Sequence = 1 << 32;

/// What was found of one segment.
struct Finding<'a> {
    number: SegmentNumber,
    entries: Entries<'a>,
}

enum Entries<'a> {
    Footer(Footer<'a>),
    Scanned(Vec<FooterEntry>),
}

impl Finding<'_> {
    fn for_each(&self, mut visit: impl FnMut(FooterEntry)) {
        match &self.entries {
            Entries::Footer(footer) => footer.iter().for_each(visit),
            Entries::Scanned(entries) => entries.iter().for_each(|entry| visit(*entry)),
        }
    }

    fn at(&self, offset: u32) -> Option<FooterEntry> {
        match &self.entries {
            Entries::Footer(footer) => footer.at(offset),
            Entries::Scanned(entries) => {
                entries.binary_search_by_key(&offset, |entry| entry.offset).ok().map(|index| entries[index])
            }
        }
    }
}

/// A segment whose footer is missing, to be given one.
#[derive(Debug)]
pub(super) struct Unsealed {
    pub(super) header: SegmentHeader,
    pub(super) entries: Vec<FooterEntry>,
    pub(super) last_sequence: Sequence,
}

/// What recovery has found.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) found: Found,
    pub(super) unsealed: Vec<Unsealed>,
    /// Records seen, dead or alive.
    pub(super) record_count: u64,
}

/// Builds the index from the bytes of all segments.
pub(super) fn recover(log_id: u64, segment_bytes: u32, segments: &[&[u8]]) -> Recovered {
    let mut rows = vec![Segment::FREE; segments.len()];
    let mut findings = Vec::new();
    let mut unsealed = Vec::new();
    let mut last_sequence: Sequence = 0;
    let mut last_generation = 0;
    for (number, (bytes, row)) in segments.iter().zip(&mut rows).enumerate() {
        let number = SegmentNumber::try_from(number).expect("at most SEGMENTS_MAX");
        let header = SegmentHeader::decode(bytes).filter(|header| header.log_id == log_id && header.segment == number);
        last_generation = last_generation.max(Footer::generation_in(bytes).unwrap_or(0));
        let Some(header) = header else { continue };
        last_generation = last_generation.max(header.generation);
        row.generation = header.generation;
        last_sequence = last_sequence.max(header.first_sequence);
        if header.is_void {
            continue;
        }
        row.state = State::Sealed;
        row.first_sequence = header.first_sequence;
        let footer = Footer::decode(bytes, &header);
        let entries = if let Some(footer) = footer {
            row.expires_max = footer.expires_max;
            last_sequence = last_sequence.max(footer.last_sequence);
            Entries::Footer(footer)
        } else {
            let scan = scan(bytes, &header, segment_bytes);
            row.expires_max = scan.expires_max;
            last_sequence = last_sequence.max(scan.last_sequence());
            let entries = scan.entries.clone();
            unsealed.push(Unsealed { header, last_sequence: scan.last_sequence(), entries });
            Entries::Scanned(scan.entries)
        };
        findings.push(Finding { number, entries });
    }

    let log_bytes = segments.len() as u64 * u64::from(segment_bytes);
    let mut building = Building { rows, index: Index::new(log_bytes), findings: &findings, record_count: 0 };
    let Known { origins, mut dirty, .. } = building.count_records();
    building.enter(&origins, &mut dirty);
    let Building { rows, index, record_count, .. } = building;
    let mut debts: Vec<DirtyRecord> = dirty.into_values().collect();
    debts.sort_unstable_by_key(|record| record.sequence);
    let found = Found {
        log_id,
        segment_bytes,
        segments: rows,
        index,
        debts,
        next_sequence: last_sequence + SEQUENCE_GAP,
        next_generation: last_generation + 1,
        footers_kept: HashMap::new(),
    };
    Recovered { found, unsealed, record_count }
}

/// Records that are looked up ahead of their turn, so that memory is fetched for all of them at once.
const LOOKAHEAD: usize = 32;

struct Building<'a> {
    rows: Vec<Segment>,
    index: Index,
    findings: &'a [Finding<'a>],
    record_count: u64,
}

type OfHash<T> = HashMap<u64, T, RandomState>;

/// What records say about others.
#[derive(Default)]
struct Known {
    /// Records below are dead.
    origins: OfHash<Sequence>,
    /// Dirty records below are in the store.
    marks: OfHash<Sequence>,
    /// The newest dirty record of each hash.
    dirty: OfHash<DirtyRecord>,
}

impl Known {
    fn note(&mut self, segment: SegmentNumber, entry: &FooterEntry) {
        let origins = match entry.kind {
            Kind::Mark => &mut self.marks,
            Kind::Put | Kind::Tombstone | Kind::DirtyPut | Kind::DirtyDelete => &mut self.origins,
        };
        if !entry.kind.is_put() {
            let origin = origins.entry(entry.key_hash).or_default();
            *origin = entry.sequence.max(*origin);
        }
        let newest = self.dirty.get(&entry.key_hash).map_or(0, |dirty| dirty.sequence);
        if entry.kind.is_dirty() && entry.sequence > newest {
            self.dirty.insert(entry.key_hash, dirty_record(segment, entry));
        }
    }

    /// Leaves of the dirty records those that are to be uploaded, as far as what was noted tells.
    fn settle(&mut self) {
        let Self { origins, marks, dirty } = self;
        let end = |ends: &OfHash<Sequence>, hash| ends.get(&hash).copied().unwrap_or_default();
        dirty.retain(|&hash, record| record.sequence >= end(origins, hash).max(end(marks, hash)));
    }
}

fn dirty_record(segment: SegmentNumber, entry: &FooterEntry) -> DirtyRecord {
    DirtyRecord {
        key_hash: entry.key_hash,
        sequence: entry.sequence,
        place: Place::new(segment, entry.offset, entry.record_bytes as usize),
        record_bytes: entry.record_bytes,
        is_delete: entry.kind == Kind::DirtyDelete,
    }
}

impl Building<'_> {
    /// Counts the records of each segment, and answers what they say about others.
    fn count_records(&mut self) -> Known {
        let mut known = Known::default();
        for finding in self.findings {
            let row = &mut self.rows[usize::from(finding.number)];
            finding.for_each(|entry| {
                row.used_bytes += u64::from(entry.record_bytes);
                row.record_count += 1;
                row.tombstone_count += u32::from(!entry.kind.is_put());
                if entry.kind != Kind::Put {
                    known.note(finding.number, &entry);
                }
            });
            self.record_count += u64::from(row.record_count);
        }
        known.settle();
        known
    }

    /// Enters the newest put of each hash; those that are in `dirty` are debts instead, unless something is newer.
    fn enter(&mut self, origins: &OfHash<Sequence>, dirty: &mut OfHash<DirtyRecord>) {
        let of_segment: HashMap<SegmentNumber, &Finding<'_>, RandomState> =
            self.findings.iter().map(|finding| (finding.number, finding)).collect();
        self.index.reserve(self.record_count);
        let mut ahead = Vec::with_capacity(LOOKAHEAD);
        let mut candidates = Vec::new();
        for finding in self.findings {
            finding.for_each(|entry| {
                let is_buried = || origins.get(&entry.key_hash).is_some_and(|&origin| entry.sequence < origin);
                if !entry.kind.is_put() || (!origins.is_empty() && is_buried()) {
                    return;
                }
                if !dirty.is_empty() && is_owed(dirty, &entry) {
                    return;
                }
                self.index.prefetch(entry.key_hash);
                ahead.push(entry);
                if ahead.len() == LOOKAHEAD {
                    ahead.drain(..).for_each(|entry| self.enter_one(finding, entry, &of_segment, &mut candidates));
                }
            });
            ahead.drain(..).for_each(|entry| self.enter_one(finding, entry, &of_segment, &mut candidates));
        }
        self.index.trim();
    }

    /// Enters a put, unless the index has a newer one of its hash.
    fn enter_one(
        &mut self,
        finding: &Finding<'_>,
        entry: FooterEntry,
        of_segment: &HashMap<SegmentNumber, &Finding<'_>, RandomState>,
        candidates: &mut Vec<Place>,
    ) {
        self.index.candidates(entry.key_hash, candidates);
        let rival = candidates.iter().find_map(|&place| {
            let rival = of_segment[&place.segment].at(place.offset)?;
            (rival.key_hash == entry.key_hash).then_some((place, rival))
        });
        let new = Place::new(finding.number, entry.offset, entry.record_bytes as usize);
        match rival {
            Some((_, rival)) if rival.sequence > entry.sequence => {
                self.note_older(finding.number, rival);
                return;
            }
            Some((old, _)) => {
                self.note_older(old.segment, entry);
                self.index.replace(entry.key_hash, old, new);
                self.rows[usize::from(old.segment)].live_count -= 1;
            }
            None => self.index.insert(entry.key_hash, new),
        }
        self.rows[usize::from(new.segment)].live_count += 1;
    }

    /// `number` has an older record of a key than `newest`. Where `newest` does not know of it, the crash came between
    /// the eviction or the copying of that record and its segment's void: the segment leaks, or `newest` could go without
    /// a tombstone, and the older one would come back.
    fn note_older(&mut self, number: SegmentNumber, newest: FooterEntry) {
        self.rows[usize::from(number)].has_leaked |= !newest.has_older;
    }
}

/// Whether a put is a debt, or older than one of its hash. A debt that is older than the put is none: something newer is
/// written only when its mark is durable, so that the mark was damaged since.
fn is_owed(dirty: &mut OfHash<DirtyRecord>, entry: &FooterEntry) -> bool {
    let Some(debt) = dirty.get(&entry.key_hash) else { return false };
    if entry.sequence > debt.sequence {
        dirty.remove(&entry.key_hash);
        return false;
    }
    true
}
