//! Which segment goes next, and what of it stays. Decisions only; log.rs carries them out.
//!
//! ```text
//!   choose   suspect or surplus ─▶ expired ─▶ emptiest, if it is empty enough ─▶ oldest
//!            ─▶ only then those with records that the store does not have: the one with the fewest bytes of them,
//!               if that brings any room
//!
//!   fate     put        not in the index (dead) ───────────────▶ Drop
//!                       hit since it was placed, within budget ─▶ Carry     all of them, where few are alive
//!                       an older one may be elsewhere ─────────▶ Bury: a tombstone, so that it stays dead
//!                       else ──────────────────────────────────▶ Evict
//!            tombstone  something older is elsewhere ──────────▶ Repeat,  else Drop
//!            mark, and a delete that the store knows of: as a tombstone
//! ```
//! A record that the store does not have is none of these: it is always copied, whatever the budget says.
//!
//! Why the emptiest only where it is nearly empty: the oldest costs nothing but what nobody has asked for, and takes
//! tombstones with it.

use super::{
    footer::FooterEntry,
    record::Sequence,
    segment::{Segment, SegmentNumber, State},
};
use crate::Timestamp;

/// Of a segment's bytes, this share in percent is copied at most, because it was asked for since it was written. With 15,
/// values of 1 KiB cost 1.29 bytes written for each of key and value, of which a quarter should be enough.
pub(super) const CARRY_PERCENT_MAX: u64 = 10;

/// A segment is empty enough to go before older ones when no more than this share of its records is needed.
const EMPTY_PERCENT_MAX: u64 = 25;

/// A segment is not worth being emptied when more than this share of its records' bytes must be copied.
const DIRTY_SHARE_PERCENT_MAX: u64 = 90;

/// Neighbours that are to be copied are read together when no more than this lies between them, in bytes.
const SPAN_GAP_BYTES_MAX: u32 = 32 << 10;

/// What is read at once, in bytes, unless one record is longer.
pub(super) const SPAN_BYTES_MAX: u32 = 512 << 10;

/// What becomes of a record whose segment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is dead already.
    Drop,
    /// It makes room.
    Evict,
    /// It makes room, and a tombstone keeps what is older of its key from coming back.
    Bury,
    /// It is copied.
    Carry,
    /// A tombstone that is still needed.
    Repeat,
}

/// The segment to be emptied next. One that is surplus is of no use afterwards, so it may be taken only when enough are
/// free. O(segments).
pub(super) fn choose(segments: &[Segment], now: Timestamp, may_be_surplus: bool) -> Option<SegmentNumber> {
    let is_sealed = |segment: &Segment| segment.state == State::Sealed && (may_be_surplus || !segment.is_surplus);
    // One that could not be emptied is tried again when there is no other.
    let is_first_try = segments.iter().any(|segment| is_sealed(segment) && !segment.is_stubborn);
    let is_wanted = |segment: &Segment| is_sealed(segment) && !(is_first_try && segment.is_stubborn);
    let sealed = || (0..).zip(segments).filter(|(_, segment)| is_wanted(segment));
    let urgent = sealed().find(|(_, segment)| segment.is_suspect || segment.is_surplus);
    // What the store does not have would be copied again and again while it waits.
    let clean = || sealed().filter(|(_, segment)| segment.dirty_bytes == 0);
    let expired = || clean().find(|(_, segment)| segment.is_expired(now));
    let emptiest = || {
        let by_need = clean().min_by_key(|(_, segment)| needed_permille(segment));
        by_need.filter(|(_, segment)| needed_permille(segment) <= EMPTY_PERCENT_MAX * 10)
    };
    let oldest = || clean().min_by_key(|(_, segment)| segment.first_sequence);
    let cleanest = || {
        let brings_room = |segment: &Segment| segment.dirty_bytes * 100 <= segment.used_bytes * DIRTY_SHARE_PERCENT_MAX;
        sealed().filter(|(_, segment)| brings_room(segment)).min_by_key(|(_, segment)| segment.dirty_bytes)
    };
    urgent.or_else(expired).or_else(emptiest).or_else(oldest).or_else(cleanest).map(|(number, _)| number)
}

/// The sequence at which the oldest segment but `number` begins; `None` if nothing is anywhere else.
pub(super) fn oldest_elsewhere(segments: &[Segment], number: SegmentNumber) -> Option<Sequence> {
    let others = (0..).zip(segments).filter(|(other, segment)| *other != number && segment.holds_records());
    others.map(|(_, segment)| segment.first_sequence).min()
}

/// How many bytes of a segment may be copied.
pub(super) fn carry_bytes_max(segment: &Segment, segment_bytes: u32) -> u64 {
    let percent = if segment.is_suspect { 100 } else { CARRY_PERCENT_MAX };
    u64::from(segment_bytes) * percent / 100
}

/// What becomes of a record. `hits` is `None` where the index does not point to it; `carry_all` where the segment is not
/// to be trusted, or holds little that is alive.
pub(super) fn fate(
    entry: &FooterEntry,
    hits: Option<u8>,
    oldest_elsewhere: Option<Sequence>,
    carry_all: bool,
    carry_bytes_left: u64,
) -> Fate {
    let is_older_elsewhere = oldest_elsewhere.is_some_and(|oldest| oldest < entry.sequence);
    match hits {
        _ if !entry.kind.is_put() => {
            if is_older_elsewhere {
                Fate::Repeat
            } else {
                Fate::Drop
            }
        }
        None => Fate::Drop,
        Some(hits) if (hits > 0 || carry_all) && u64::from(entry.record_bytes) <= carry_bytes_left => Fate::Carry,
        Some(_) if entry.has_older && is_older_elsewhere => Fate::Bury,
        Some(_) => Fate::Evict,
    }
}

/// How many of `entries`, from the first, are read together, and how many bytes that is. They stand in the order of
/// their offsets.
pub(super) fn span(entries: &[FooterEntry]) -> (usize, usize) {
    let Some(first) = entries.first() else { return (0, 0) };
    let mut end = first.offset + first.record_bytes;
    let mut count = 1;
    for entry in &entries[1..] {
        let next_end = entry.offset + entry.record_bytes;
        let is_near = entry.offset >= end && entry.offset - end <= SPAN_GAP_BYTES_MAX;
        if !is_near || next_end - first.offset > SPAN_BYTES_MAX {
            break;
        }
        end = next_end;
        count += 1;
    }
    (count, (end - first.offset) as usize)
}

fn needed_permille(segment: &Segment) -> u64 {
    let needed = u64::from(segment.live_count) + u64::from(segment.tombstone_count);
    (needed * 1000).checked_div(u64::from(segment.record_count)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::record::Kind;

    const NOW: Timestamp = Timestamp(1000);

    fn sealed(first_sequence: Sequence, live_count: u32) -> Segment {
        let expires_max = None;
        Segment { state: State::Sealed, first_sequence, live_count, record_count: 100, expires_max, ..Segment::FREE }
    }

    fn put() -> FooterEntry {
        FooterEntry { key_hash: 1, sequence: 50, offset: 4096, record_bytes: 1024, kind: Kind::Put, has_older: false }
    }

    #[test]
    fn the_suspect_go_before_the_expired_before_the_empty_before_the_old() {
        let mut segments = [sealed(1, 100), sealed(2, 20), sealed(3, 100), sealed(4, 100), Segment::FREE];
        segments[2].expires_max = Some(NOW);
        segments[3].is_suspect = true;
        assert_eq!(choose(&segments, NOW, true), Some(3));
        segments[3].state = State::Reclaiming;
        assert_eq!(choose(&segments, NOW, true), Some(2));
        segments[2].expires_max = Some(NOW.plus_ms(1));
        assert_eq!(choose(&segments, NOW, true), Some(1));
        segments[1].tombstone_count = 6;
        assert_eq!(choose(&segments, NOW, true), Some(0));
        assert_eq!(choose(&segments[4..], NOW, true), None);
    }

    #[test]
    fn what_was_asked_for_is_carried_within_the_budget() {
        let fate_of = |hits, left| fate(&put(), hits, None, false, left);
        assert_eq!(fate_of(Some(1), 1024), Fate::Carry);
        assert_eq!(fate_of(Some(1), 1023), Fate::Evict);
        assert_eq!(fate_of(Some(0), 1024), Fate::Evict);
        assert_eq!(fate_of(None, 1024), Fate::Drop);
        assert_eq!(fate(&put(), Some(0), None, true, 1024), Fate::Carry);
    }

    #[test]
    fn what_may_uncover_something_older_is_buried_and_only_then() {
        let newer = FooterEntry { has_older: true, ..put() };
        assert_eq!(fate(&newer, Some(0), Some(49), false, 0), Fate::Bury);
        assert_eq!(fate(&newer, Some(0), Some(50), false, 0), Fate::Evict);
        assert_eq!(fate(&newer, Some(0), None, false, 0), Fate::Evict);
        assert_eq!(fate(&newer, None, Some(1), false, 0), Fate::Drop);
    }

    #[test]
    fn a_tombstone_is_repeated_until_nothing_older_is_left() {
        for kind in [Kind::Tombstone, Kind::Mark, Kind::DirtyDelete] {
            let tombstone = FooterEntry { kind, record_bytes: 48, ..put() };
            assert_eq!(fate(&tombstone, None, Some(49), false, 0), Fate::Repeat);
            assert_eq!(fate(&tombstone, None, Some(50), false, 0), Fate::Drop);
            assert_eq!(fate(&tombstone, None, None, false, 0), Fate::Drop);
        }
    }

    #[test]
    fn segments_with_records_that_the_store_lacks_go_last_and_the_cleanest_of_them_first() {
        let mut segments = [sealed(1, 0), sealed(2, 100), sealed(3, 10)];
        segments.iter_mut().for_each(|segment| segment.used_bytes = 1000);
        segments[0].dirty_bytes = 200;
        segments[0].expires_max = Some(NOW);
        segments[2].dirty_bytes = 100;
        assert_eq!(choose(&segments, NOW, true), Some(1));
        segments[1].state = State::Reclaiming;
        assert_eq!(choose(&segments, NOW, true), Some(2));
        segments[2].dirty_bytes = 901;
        segments[0].dirty_bytes = 950;
        assert_eq!(choose(&segments, NOW, true), None, "it would only be copied");
        segments[0].is_suspect = true;
        assert_eq!(choose(&segments, NOW, true), Some(0));
    }

    #[test]
    fn the_oldest_elsewhere_counts_what_may_still_be_on_disk() {
        let mut segments = [sealed(5, 0), sealed(9, 0), sealed(7, 0), Segment::FREE];
        assert_eq!(oldest_elsewhere(&segments, 0), Some(7));
        segments[2].state = State::Bad;
        assert_eq!(oldest_elsewhere(&segments, 0), Some(7));
        segments[2].state = State::Free;
        assert_eq!(oldest_elsewhere(&segments, 0), Some(9));
        assert_eq!(oldest_elsewhere(&segments[..1], 0), None);
    }

    #[test]
    fn neighbours_are_read_together_up_to_a_limit() {
        let at = |offset, record_bytes| FooterEntry { offset, record_bytes, ..put() };
        assert_eq!(span(&[]), (0, 0));
        assert_eq!(span(&[at(4096, 64), at(4160, 64)]), (2, 128));
        assert_eq!(span(&[at(4096, 64), at(4160 + SPAN_GAP_BYTES_MAX + 16, 64)]), (1, 64));
        assert_eq!(span(&[at(4096, 4 << 20), at(4096 + (4 << 20), 64)]), (1, 4 << 20));
    }
}
