//! How a log writes: what has gathered is written while the next gathers, and one write serves all who wait.
//!
//! ```text
//!   gather ──▶ somebody waits? enough bytes? ──▶ write all, durably if wanted; sync what was written before, if wanted
//!                                                  └─▶ it is with the disk: tell some who waited for the one before
//!
//!   disk   ├── cycle 1 ──┤├── cycle 3 ──┤        a second begins while the first is in the air, where somebody waits for it
//!               ├── cycle 2 ──┤├── cycle 4 ──┤    and neither has anything to sync
//! ```
//! Who is told has something to do, all of it before the core looks at its ring again: if they were told first, the disk
//! would have nothing to do meanwhile.

use std::{
    cell::RefCell,
    collections::{BTreeSet, VecDeque},
    pin::pin,
    time::Duration,
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{self, Either, LocalBoxFuture},
    stream::FuturesOrdered,
};

use super::{
    Device, Log, LogError, Over, Trouble, Waiter,
    segment::SegmentNumber,
    state::{Cycle, Failures},
};

/// Cycles in the air.
const CYCLES_MAX: usize = 2;

/// Who waited is told in such portions, and what a portion goes on to write is with the disk before the next is told: else all
/// would write at the same time for ever, and the disk would have nothing to do while they prepare it.
const TOLD_AT_ONCE_MAX: usize = 32;

/// A batch is written at once when it has this many bytes, whoever waits.
const BATCH_BYTES: usize = 256 << 10;

/// How long a record waits for company that nobody needs on disk now; a process that is killed loses no more.
const GATHER: Duration = Duration::from_millis(50);

/// A cycle on its way to the disk, and what became of it.
type Flight<'a> = LocalBoxFuture<'a, (Cycle, Failures)>;

/// What a log that writes waits for.
enum Event {
    /// The cycle that began first is over.
    Landed(Cycle, Failures),
    /// Another should begin.
    Due,
    /// What was begun is with the disk, and somebody can be told.
    Submitted,
}

impl<D: Device> Log<D> {
    pub(super) async fn write(&self) {
        let mut flights = FuturesOrdered::new();
        let mut over = VecDeque::new();
        let mut is_closed = false;
        loop {
            match self.next_event(&mut flights, !over.is_empty()).await {
                Event::Landed(cycle, failures) => {
                    self.state.borrow_mut().end_cycle(&cycle, &failures);
                    self.tell_of_room();
                    self.ring_if_needed();
                    over.extend(self.take_durable());
                    if !self.is_due(flights.len()) {
                        self.tell_some(&mut over);
                    }
                }
                Event::Due => {
                    // A segment that is being emptied is emptied first.
                    is_closed = self.is_stopping.get() && self.has_reclaimed.get();
                    if is_closed {
                        self.state.borrow_mut().close_all();
                    }
                    flights.extend(self.begin(is_closed));
                }
                Event::Submitted => self.tell_some(&mut over),
            }
            if is_closed && flights.is_empty() && !self.state.borrow().has_work(true) {
                return self.tell(over);
            }
        }
    }

    async fn next_event(&self, flights: &mut FuturesOrdered<Flight<'_>>, is_anybody_over: bool) -> Event {
        let due = self.cycle_is_due(flights.len());
        let landed = async {
            match flights.next().await {
                Some((cycle, failures)) => Event::Landed(cycle, failures),
                None => future::pending().await,
            }
        };
        let submitted = async {
            if !is_anybody_over {
                future::pending::<()>().await;
            }
            self.device.submitted().await;
        };
        match future::select(pin!(landed), future::select(pin!(due), pin!(submitted))).await {
            Either::Left((landed, _)) => landed,
            Either::Right((Either::Left(_), _)) => Event::Due,
            Either::Right((Either::Right(_), _)) => Event::Submitted,
        }
    }

    /// Begins a cycle, if there is anything to write; it is synced if that is asked for, or somebody waits for it.
    fn begin(&self, must_sync: bool) -> Option<Flight<'_>> {
        let must_sync = must_sync || self.is_waited_for();
        if !self.state.borrow().has_work(must_sync) {
            return None;
        }
        let cycle = self.state.borrow_mut().begin_cycle(must_sync);
        let flight = async move {
            let failures = self.perform(&cycle).await;
            (cycle, failures)
        };
        Some(flight.boxed_local())
    }

    fn tell_some(&self, over: &mut VecDeque<Over>) {
        let count = over.len().min(TOLD_AT_ONCE_MAX);
        self.tell(over.drain(..count));
    }

    fn is_waited_for(&self) -> bool {
        !self.durable.borrow().is_empty()
    }

    /// Whether a cycle should begin at once, with so many in the air.
    fn is_due(&self, flight_count: usize) -> bool {
        match flight_count {
            0 => self.state.borrow().has_urgent_work(self.is_waited_for(), BATCH_BYTES),
            CYCLES_MAX.. => false,
            _ => {
                let given = self.state.borrow().given();
                // The last to come waits for the last record, or for nearly the last.
                let is_waited_for = self.durable.borrow().last().is_some_and(|(sequence, _)| *sequence > given);
                is_waited_for && !self.is_stopping.get() && self.state.borrow().may_overlap()
            }
        }
    }

    /// Waits until a cycle should begin, with so many in the air.
    async fn cycle_is_due(&self, flight_count: usize) {
        if flight_count == 0 {
            return self.work_gathers().await;
        }
        while !self.is_due(flight_count) {
            self.work.heard().await;
        }
    }

    /// Waits for something to write, and then for company, unless somebody waits for it.
    async fn work_gathers(&self) {
        let mut gathering = None;
        loop {
            if self.is_due(0) || self.has_reclaimed.get() {
                return;
            }
            if gathering.is_none() && self.state.borrow().has_work(false) {
                gathering = Some(Box::pin(self.device.pause(GATHER)));
            }
            match &mut gathering {
                None => self.work.heard().await,
                Some(gathered) => match future::select(pin!(self.work.heard()), gathered).await {
                    Either::Left(_) => {}
                    Either::Right(_) => return,
                },
            }
        }
    }

    async fn perform(&self, cycle: &Cycle) -> Failures {
        let segments: BTreeSet<_> =
            cycle.batches.iter().map(|batch| batch.segment).chain(cycle.syncs.clone()).collect();
        let failures = RefCell::default();
        future::join_all(segments.into_iter().map(|segment| self.perform_on(segment, cycle, &failures))).await;
        failures.into_inner()
    }

    /// All that a cycle does to one segment; it waits for no other's.
    async fn perform_on(&self, segment: SegmentNumber, cycle: &Cycle, failures: &RefCell<Failures>) {
        let batches = cycle.batches.iter().filter(|batch| batch.segment == segment);
        let writes =
            batches.map(|batch| self.device.write(segment, batch.offset, batch.bytes.clone(), cycle.is_durable(batch)));
        for written in future::join_all(writes).await {
            if let Err(error) = written {
                self.notice(segment, Trouble::Unwritable { segment, error });
                failures.borrow_mut().writes.insert(segment);
            }
        }
        if !cycle.syncs.contains(&segment) || failures.borrow().writes.contains(&segment) {
            return;
        }
        if let Err(error) = self.device.sync(segment).await {
            self.notice(segment, Trouble::Unsynced { segment, error });
            failures.borrow_mut().syncs.insert(segment);
        }
    }

    /// Those who need not wait any longer, and how it has ended.
    pub(super) fn take_durable(&self) -> Vec<Over> {
        let (durable, is_offline) = {
            let state = self.state.borrow();
            (state.durable(), state.is_offline())
        };
        let is_over = |(sequence, tell): &mut Waiter| is_offline || *sequence <= durable || tell.is_canceled();
        let over = self.durable.borrow_mut().extract_if(.., is_over).collect::<Vec<_>>();
        let with_answer = |(sequence, tell)| (tell, if sequence <= durable { Ok(()) } else { Err(LogError::Offline) });
        over.into_iter().map(with_answer).collect()
    }

    pub(super) fn tell(&self, over: impl IntoIterator<Item = Over>) {
        for (tell, answer) in over {
            // Who has gone needs no answer.
            let _ = tell.send(answer);
        }
    }
}
