//! What an operator should hear about the disk: each segment's trouble once, not each read of it.
//!
//! ```text
//!   a read, write or sync fails ─┐
//!   a record is not as written  ─┼▶ first of its kind for this generation of the segment? ──▶ waiting ──▶ a line in the log
//!   the disk is given up ────────┘   else only counted (state.rs)                             TROUBLES_WAITING_MAX
//! ```

use std::{collections::HashMap, fmt};

use super::{device::DeviceError, segment::SegmentNumber};

/// Troubles that may wait to be told; more are counted.
pub const TROUBLES_WAITING_MAX: usize = 16;

/// Something went wrong with the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A record is not what was written: a miss, and its segment is emptied soon.
    Corrupt {
        /// The segment.
        segment: SegmentNumber,
        /// Where the record begins, in bytes from the start of the segment.
        offset: u32,
    },
    /// A read failed: a miss, and the segment is emptied soon.
    Unreadable {
        /// The segment.
        segment: SegmentNumber,
        /// How.
        error: DeviceError,
    },
    /// A write failed: what the segment held goes elsewhere, and it is out of use until the next start.
    Unwritable {
        /// The segment.
        segment: SegmentNumber,
        /// How.
        error: DeviceError,
    },
    /// A sync failed: the same.
    Unsynced {
        /// The segment.
        segment: SegmentNumber,
        /// How.
        error: DeviceError,
    },
    /// The disk failed too often and is not used any more.
    Offline,
}

/// What has gone wrong and was not told yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Oldest first, at most [`TROUBLES_WAITING_MAX`].
    pub first: Vec<Trouble>,
    /// How many there were besides.
    pub more: u64,
}

/// What was noticed since the start.
#[derive(Debug, Default)]
pub(super) struct Noticed {
    waiting: Troubles,
    /// The generation of a segment when it was last in trouble, by the kind of trouble.
    of_segment: HashMap<(SegmentNumber, usize), u64>,
    is_offline: bool,
}

impl Trouble {
    /// The segment and the number of the kind; `None` for what is not one segment's.
    fn source(self) -> Option<(SegmentNumber, usize)> {
        match self {
            Self::Corrupt { segment, .. } => Some((segment, 0)),
            Self::Unreadable { segment, .. } => Some((segment, 1)),
            Self::Unwritable { segment, .. } => Some((segment, 2)),
            Self::Unsynced { segment, .. } => Some((segment, 3)),
            Self::Offline => None,
        }
    }
}

impl Noticed {
    /// Takes in that something went wrong with a segment of this generation.
    pub(super) fn note(&mut self, trouble: Trouble, generation: u64) {
        let is_new = match trouble.source() {
            Some(source) => self.of_segment.insert(source, generation) != Some(generation),
            None => !std::mem::replace(&mut self.is_offline, true),
        };
        if !is_new {
            return;
        }
        // That the disk is gone is never one of those that are only counted.
        if self.waiting.first.len() < TROUBLES_WAITING_MAX || trouble == Trouble::Offline {
            self.waiting.first.push(trouble);
        } else {
            self.waiting.more += 1;
        }
    }

    pub(super) fn take(&mut self) -> Troubles {
        std::mem::take(&mut self.waiting)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let emptied = "a miss, and the segment will be emptied";
        let left = "what it held goes elsewhere, and it is out of use until the next start";
        match self {
            Self::Corrupt { segment, offset } => {
                write!(f, "segment {segment} at byte {offset}: not what was written; {emptied}")
            }
            Self::Unreadable { segment, error } => write!(f, "segment {segment} cannot be read: {error}; {emptied}"),
            Self::Unwritable { segment, error } => write!(f, "segment {segment} cannot be written: {error}; {left}"),
            Self::Unsynced { segment, error } => write!(f, "segment {segment} cannot be synced: {error}; {left}"),
            Self::Offline => f.write_str(
                "the disk failed too often and is not used any more; serving from memory and the store until the next start",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corrupt(segment: SegmentNumber, offset: u32) -> Trouble {
        Trouble::Corrupt { segment, offset }
    }

    #[test]
    fn a_segment_is_told_of_once_for_each_kind_and_again_when_it_was_begun_anew() {
        let mut noticed = Noticed::default();
        let unreadable = Trouble::Unreadable { segment: 7, error: DeviceError::Os(5) };
        noticed.note(corrupt(7, 4096), 1);
        noticed.note(corrupt(7, 8192), 1);
        noticed.note(unreadable, 1);
        noticed.note(corrupt(8, 4096), 1);
        assert_eq!(noticed.take().first, [corrupt(7, 4096), unreadable, corrupt(8, 4096)]);
        noticed.note(corrupt(7, 4096), 1);
        assert_eq!(noticed.take(), Troubles::default());
        noticed.note(corrupt(7, 4096), 2);
        assert_eq!(noticed.take().first, [corrupt(7, 4096)]);
    }

    #[test]
    fn a_disk_that_fails_everywhere_at_once_is_counted_and_that_it_is_gone_is_always_told() {
        let mut noticed = Noticed::default();
        (0..100).for_each(|segment| noticed.note(corrupt(segment, 4096), 1));
        noticed.note(Trouble::Offline, 0);
        noticed.note(Trouble::Offline, 0);
        let told = noticed.take();
        assert_eq!((told.first.len(), told.more), (TROUBLES_WAITING_MAX + 1, 100 - TROUBLES_WAITING_MAX as u64));
        assert_eq!(told.first.last(), Some(&Trouble::Offline));
    }
}
