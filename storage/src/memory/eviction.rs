//! The slots of the memory tier, and the order in which they were last used: the oldest goes first.
//!
//! ```text
//!             newest                              oldest
//!               ▼                                   ▼
//!            ┌──────┐ older  ┌──────┐ older      ┌──────┐
//!            │ slot │───────▶│ slot │───▶  ...  ▶│ slot │     slots stand in pages; the links are their numbers
//!            └──────┘◀───────└──────┘◀───  ...   └──────┘
//!                      newer
//! ```
//! Pages instead of one growing vector: a vector of a hundred megabytes takes a tenth of a second to grow, and up to
//! half of it is not in use.

use super::blocks::Location;

/// "No slot" in a link.
const NONE: u32 = u32::MAX;

/// Slots of a page.
const PAGE_SLOTS: usize = 1024;

/// One entry: where it is, and its place in the order of use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// The low half of the key's mixed hash.
    pub(super) hash: u32,
    pub(super) location_block: u32,
    pub(super) location_offset: u16,
    is_used: bool,
    /// Until when this copy is believed, in whole seconds since the Unix epoch: enough until the year 2106.
    pub(super) believed_until_s: u32,
    newer: u32,
    /// In a free slot, the next free one.
    older: u32,
}

const _: () = assert!(size_of::<Slot>() == 24, "every entry pays for this");

/// All slots, used and free.
#[derive(Debug)]
pub(super) struct Slots {
    pages: Vec<Box<[Slot]>>,
    free: u32,
    newest: u32,
    oldest: u32,
    used_count: usize,
}

impl Slot {
    pub(super) fn location(&self) -> Location {
        Location { block: self.location_block, offset: self.location_offset }
    }

    pub(super) fn set_location(&mut self, location: Location) {
        self.location_block = location.block;
        self.location_offset = location.offset;
    }
}

impl Slots {
    pub(super) fn new() -> Self {
        Self { pages: Vec::new(), free: NONE, newest: NONE, oldest: NONE, used_count: 0 }
    }

    /// Slots there are, used and free: their numbers are those below.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.pages.len() * PAGE_SLOTS).expect("fewer than 2^32 entries")
    }

    /// Slots in use.
    pub(super) fn used_count(&self) -> usize {
        self.used_count
    }

    /// Memory taken by all slots.
    pub(super) fn held_bytes(&self) -> usize {
        self.pages.len() * PAGE_SLOTS * size_of::<Slot>() + self.pages.capacity() * size_of::<Box<[Slot]>>()
    }

    /// How much [`Slots::take`] would add to [`Slots::held_bytes`].
    pub(super) fn growth_bytes(&self) -> usize {
        if self.free == NONE { PAGE_SLOTS * size_of::<Slot>() } else { 0 }
    }

    /// A slot for a new entry, which is the newest.
    pub(super) fn take(&mut self, hash: u32, location: Location, believed_until_s: u32) -> u32 {
        if self.free == NONE {
            self.add_page();
        }
        let index = self.free;
        self.free = self.get(index).older;
        let slot = self.get_mut(index);
        slot.hash = hash;
        slot.set_location(location);
        slot.believed_until_s = believed_until_s;
        slot.is_used = true;
        self.used_count += 1;
        self.link_newest(index);
        index
    }

    /// Frees a slot.
    pub(super) fn release(&mut self, index: u32) {
        self.unlink(index);
        let free = std::mem::replace(&mut self.free, index);
        let slot = self.get_mut(index);
        debug_assert!(slot.is_used);
        slot.is_used = false;
        slot.older = free;
        self.used_count -= 1;
    }

    /// Makes a slot the newest.
    pub(super) fn touch(&mut self, index: u32) {
        if self.newest != index {
            self.unlink(index);
            self.link_newest(index);
        }
    }

    /// No copy is believed any more. O(slots).
    pub(super) fn doubt_all(&mut self) {
        self.pages.iter_mut().flatten().for_each(|slot| slot.believed_until_s = 0);
    }

    /// The slot that has not been used for longest.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// The slot, if it is in use.
    pub(super) fn used(&self, index: u32) -> Option<&Slot> {
        Some(self.get(index)).filter(|slot| slot.is_used)
    }

    pub(super) fn get(&self, index: u32) -> &Slot {
        &self.pages[index as usize / PAGE_SLOTS][index as usize % PAGE_SLOTS]
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Slot {
        &mut self.pages[index as usize / PAGE_SLOTS][index as usize % PAGE_SLOTS]
    }

    fn link_newest(&mut self, index: u32) {
        let older = std::mem::replace(&mut self.newest, index);
        let slot = self.get_mut(index);
        slot.newer = NONE;
        slot.older = older;
        match older {
            NONE => self.oldest = index,
            older => self.get_mut(older).newer = index,
        }
    }

    fn unlink(&mut self, index: u32) {
        let Slot { newer, older, .. } = *self.get(index);
        match newer {
            NONE => self.newest = older,
            newer => self.get_mut(newer).older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.get_mut(older).newer = newer,
        }
    }

    fn add_page(&mut self) {
        let first = u32::try_from(self.pages.len() * PAGE_SLOTS).expect("fewer than 2^32 entries");
        let free_slot = |older| Slot {
            hash: 0,
            location_block: 0,
            location_offset: 0,
            is_used: false,
            believed_until_s: 0,
            newer: NONE,
            older,
        };
        let last = first + PAGE_SLOTS as u32 - 1;
        assert!(last < NONE, "fewer than 2^32 entries");
        let links = (first..=last).map(|index| if index == last { NONE } else { index + 1 });
        self.pages.push(links.map(free_slot).collect());
        self.free = first;
    }
}
