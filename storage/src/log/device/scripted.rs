//! A disk in memory that does what a test tells it: lose what was not synced, fail at a call, take its time.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    future::{Future, poll_fn},
    ops::Range,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;

use super::{Device, DeviceError};
use crate::log::{
    segment::{BLOCK_BYTES, SegmentNumber},
    testing::Random,
};

/// What a failing call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// EIO; of a write nothing is done.
    Error,
    /// ENOSPC; of a write nothing is done.
    NoSpace,
    /// A part of a write is done, and it fails; a read gives less.
    Short,
    /// A write does half of its blocks and says that it did all; a read gives other bytes.
    Lie,
}

/// Bytes that survive what tests do to logs. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Scripted {
    disk: Rc<Disk>,
}

#[derive(Debug)]
struct Disk {
    /// As a read sees them.
    current: RefCell<Vec<Vec<u8>>>,
    /// As the machine would find them after a crash, at worst.
    synced: RefCell<Vec<Vec<u8>>>,
    /// Blocks that differ.
    dirty: RefCell<BTreeSet<(SegmentNumber, usize)>>,
    calls: Cell<u64>,
    /// Calls that fail, and how; every `period`th after `first`, at most `count`.
    fault: Cell<Option<(u64, u64, Fault)>>,
    is_resident: Cell<bool>,
    delay_max: Cell<u64>,
    random: RefCell<Random>,
    pub(super) reads: Cell<u64>,
}

impl Disk {
    fn sync(&self, segment: SegmentNumber) {
        self.sync_blocks(segment, 0..usize::MAX);
    }

    fn sync_blocks(&self, segment: SegmentNumber, blocks: Range<usize>) {
        let is_synced = |(dirty, block): &(SegmentNumber, usize)| *dirty == segment && blocks.contains(block);
        for (segment, block) in self.dirty.borrow_mut().extract_if(.., is_synced) {
            let range = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
            let current = &self.current.borrow()[usize::from(segment)][range.clone()];
            self.synced.borrow_mut()[usize::from(segment)][range].copy_from_slice(current);
        }
    }
}

impl Scripted {
    pub(crate) fn new(segment_count: usize, segment_bytes: u32, seed: u64) -> Self {
        let zeros = vec![vec![0; segment_bytes as usize]; segment_count];
        let disk = Disk {
            current: RefCell::new(zeros.clone()),
            synced: RefCell::new(zeros),
            dirty: RefCell::default(),
            calls: Cell::new(0),
            fault: Cell::new(None),
            is_resident: Cell::new(false),
            delay_max: Cell::new(3),
            random: RefCell::new(Random(seed)),
            reads: Cell::new(0),
        };
        Self { disk: Rc::new(disk) }
    }

    /// Adds empty segments until there are `segment_count`.
    pub(crate) fn grow(&self, segment_count: usize, segment_bytes: u32) {
        for segments in [&self.disk.current, &self.disk.synced] {
            let mut segments = segments.borrow_mut();
            let count = segments.len().max(segment_count);
            segments.resize(count, vec![0; segment_bytes as usize]);
        }
    }

    /// All calls from number `first` on fail, `count` of them.
    pub(crate) fn fail(&self, first: u64, count: u64, fault: Fault) {
        self.disk.fault.set(Some((first, count, fault)));
    }

    pub(crate) fn fail_no_more(&self) {
        self.disk.fault.set(None);
    }

    pub(crate) fn calls(&self) -> u64 {
        self.disk.calls.get()
    }

    /// Reads that went to the disk.
    pub(crate) fn reads(&self) -> u64 {
        self.disk.reads.get()
    }

    /// Whether pages are in memory.
    pub(crate) fn set_resident(&self, is_resident: bool) {
        self.disk.is_resident.set(is_resident);
    }

    /// Each call takes up to this many turns.
    pub(crate) fn set_delay_max(&self, turns: u64) {
        self.disk.delay_max.set(turns);
    }

    /// The machine crashes: of what was not synced, any block may be there or not.
    pub(crate) fn lose_power(&self) {
        let (mut current, mut synced) = (self.disk.current.borrow_mut(), self.disk.synced.borrow_mut());
        for &(segment, block) in &*self.disk.dirty.borrow() {
            let range = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
            if self.disk.random.borrow_mut().below(2) == 0 {
                let old = synced[usize::from(segment)][range.clone()].to_vec();
                current[usize::from(segment)][range].copy_from_slice(&old);
            }
        }
        synced.clone_from(&current);
        self.disk.dirty.borrow_mut().clear();
    }

    /// A sync that succeeds at once.
    pub(crate) fn sync_now(&self, segment: SegmentNumber) {
        self.disk.sync(segment);
    }

    /// The bytes as they are, to be looked at or damaged.
    pub(crate) fn with_bytes<T>(&self, visit: impl FnOnce(&mut Vec<Vec<u8>>) -> T) -> T {
        visit(&mut self.disk.current.borrow_mut())
    }

    fn fault_of_call(&self) -> Option<Fault> {
        let call = self.disk.calls.replace(self.disk.calls.get() + 1);
        let (first, count, fault) = self.disk.fault.get()?;
        (first..first.saturating_add(count)).contains(&call).then_some(fault)
    }

    fn delay(&self) -> impl Future<Output = ()> + use<> {
        let turns = match self.disk.delay_max.get() {
            0 => 0,
            max => 1 + self.disk.random.borrow_mut().below(max),
        };
        async move {
            for _ in 0..turns {
                yield_now().await;
            }
        }
    }
}

impl Device for Scripted {
    fn write(
        &self,
        segment: SegmentNumber,
        offset: u32,
        blocks: Bytes,
        durable: bool,
    ) -> impl Future<Output = Result<(), DeviceError>> + 'static {
        assert!((offset as usize).is_multiple_of(BLOCK_BYTES) && blocks.len().is_multiple_of(BLOCK_BYTES));
        assert!(!blocks.is_empty());
        let (fault, delay, disk) = (self.fault_of_call(), self.delay(), Rc::clone(&self.disk));
        async move {
            delay.await;
            let asked = blocks.len();
            let half = (asked / BLOCK_BYTES).div_ceil(2) * BLOCK_BYTES - BLOCK_BYTES;
            let written = match fault {
                None => asked,
                Some(Fault::Error | Fault::NoSpace) => 0,
                Some(Fault::Short | Fault::Lie) => half,
            };
            let start = offset as usize;
            disk.current.borrow_mut()[usize::from(segment)][start..start + written].copy_from_slice(&blocks[..written]);
            let touched = start / BLOCK_BYTES..(start + written) / BLOCK_BYTES;
            disk.dirty.borrow_mut().extend(touched.map(|block| (segment, block)));
            match fault {
                Some(Fault::Error) => Err(DeviceError::Os(5)),
                Some(Fault::NoSpace) => Err(DeviceError::Os(28)),
                Some(Fault::Short) => Err(DeviceError::Short { written, asked }),
                Some(Fault::Lie) | None => {
                    if durable {
                        disk.sync_blocks(segment, start / BLOCK_BYTES..(start + asked) / BLOCK_BYTES);
                    }
                    Ok(())
                }
            }
        }
    }

    fn sync(&self, segment: SegmentNumber) -> impl Future<Output = Result<(), DeviceError>> + 'static {
        let (fault, delay, disk) = (self.fault_of_call(), self.delay(), Rc::clone(&self.disk));
        async move {
            delay.await;
            if fault.is_some_and(|fault| fault != Fault::Lie) {
                return Err(DeviceError::Os(5));
            }
            disk.sync(segment);
            Ok(())
        }
    }

    fn read(
        &self,
        segment: SegmentNumber,
        offset: u32,
        len: usize,
    ) -> impl Future<Output = Result<Bytes, DeviceError>> + 'static {
        self.disk.reads.set(self.disk.reads.get() + 1);
        let (fault, delay, disk) = (self.fault_of_call(), self.delay(), Rc::clone(&self.disk));
        async move {
            delay.await;
            let current = disk.current.borrow();
            let bytes = &current[usize::from(segment)];
            let start = (offset as usize).min(bytes.len());
            let found = &bytes[start..(start + len).min(bytes.len())];
            match fault {
                None => Ok(Bytes::copy_from_slice(found)),
                Some(Fault::Error | Fault::NoSpace) => Err(DeviceError::Os(5)),
                Some(Fault::Short) => Ok(Bytes::copy_from_slice(&found[..found.len() / 2 / 16 * 16])),
                Some(Fault::Lie) => Ok(found.iter().map(|byte| byte ^ 1).collect()),
            }
        }
    }

    fn read_resident(&self, segment: SegmentNumber, offset: u32, len: usize) -> Option<Bytes> {
        let current = self.disk.current.borrow();
        let found = current[usize::from(segment)].get(offset as usize..)?;
        self.disk.is_resident.get().then(|| Bytes::copy_from_slice(&found[..len.min(found.len())]))
    }

    fn submitted(&self) -> impl Future<Output = ()> + 'static {
        yield_now()
    }

    fn pause(&self, _duration: Duration) -> impl Future<Output = ()> + 'static {
        let delay = self.delay();
        async move {
            yield_now().await;
            delay.await;
        }
    }
}

/// Lets other tasks run.
fn yield_now() -> impl Future<Output = ()> {
    let mut has_yielded = false;
    poll_fn(move |cx| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}
