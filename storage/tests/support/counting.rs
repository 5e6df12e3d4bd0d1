//! An allocator that counts what each thread asks for, as it was asked for: rounding is the system's own. For tests; include it
//! with `#[path]`, and the program has it.

#![allow(dead_code)] // each test program uses another part

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// What a thread has asked for, since it began or since a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// How often; memory that moved to grow was asked for once more.
    pub(crate) allocations: usize,
    /// All of it.
    pub(crate) allocated_bytes: usize,
    /// Without what was given back, whoever had asked for that.
    pub(crate) held_bytes: isize,
}

/// The counts of this thread since it began.
pub(crate) fn counts() -> Counts {
    COUNTS.get()
}

impl Counts {
    /// The counts since the moment of these.
    pub(crate) fn until_now(self) -> Self {
        let now = counts();
        Self {
            allocations: now.allocations - self.allocations,
            allocated_bytes: now.allocated_bytes - self.allocated_bytes,
            held_bytes: now.held_bytes - self.held_bytes,
        }
    }
}

struct Counting;

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { allocations: 0, allocated_bytes: 0, held_bytes: 0 }) };
}

fn count(change: impl FnOnce(&mut Counts)) {
    let mut counts = COUNTS.get();
    change(&mut counts);
    COUNTS.set(counts);
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(|counts| {
            counts.allocations += 1;
            counts.allocated_bytes += layout.size();
            counts.held_bytes += layout.size().cast_signed();
        });
        // SAFETY: the caller's promises are those of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(|counts| counts.held_bytes -= layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;
