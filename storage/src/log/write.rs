//! How a log writes: what has gathered is written while the next gathers, and one sync serves all who wait.
//!
//! ```text
//!   gather ──▶ somebody waits? enough bytes? ──▶ write all, durably if wanted ──▶ gather
//!                                                     ├─▶ sync what was written before, if wanted
//!                                                     └─▶ tell who waited for the cycle before, once this is with the disk
//! ```
//! Who is told has something to do, all of it before the core looks at its ring again: if they were told first, the disk
//! would have nothing to do meanwhile.

use std::{mem, pin::pin, time::Duration};

use futures::future::{self, Either};

use super::{
    Device, Log, LogError, Over, Trouble, Waiter,
    state::{Cycle, Failures},
};

/// A batch is written at once when it has this many bytes, whoever waits.
const BATCH_BYTES: usize = 256 << 10;

/// How long a record waits for company that nobody needs on disk now; a process that is killed loses no more.
const GATHER: Duration = Duration::from_millis(50);

impl<D: Device> Log<D> {
    pub(super) async fn write(&self) {
        let mut over = Vec::new();
        loop {
            let is_urgent = self.state.borrow().has_urgent_work(self.is_waited_for(), BATCH_BYTES);
            if !is_urgent {
                self.tell(mem::take(&mut over));
            }
            self.work_gathers().await;
            // A segment that is being emptied is emptied first.
            let is_stopping = self.is_stopping.get() && self.has_reclaimed.get();
            if is_stopping {
                self.state.borrow_mut().close_all();
            }
            let must_sync = is_stopping || self.is_waited_for();
            if self.state.borrow().has_work(must_sync) {
                let cycle = self.state.borrow_mut().begin_cycle(must_sync);
                let told = async {
                    self.device.submitted().await;
                    self.tell(mem::take(&mut over));
                };
                let (failures, ()) = future::join(self.perform(&cycle), told).await;
                self.state.borrow_mut().end_cycle(&cycle, &failures);
                self.tell_of_room();
                self.ring_if_needed();
            }
            over.extend(self.take_durable());
            if is_stopping && !self.state.borrow().has_work(true) {
                return self.tell(over);
            }
        }
    }

    fn is_waited_for(&self) -> bool {
        !self.durable.borrow().is_empty()
    }

    /// Waits for something to write, and then for company, unless somebody waits for it.
    async fn work_gathers(&self) {
        let mut gathering = None;
        loop {
            let is_urgent = self.state.borrow().has_urgent_work(self.is_waited_for(), BATCH_BYTES);
            if is_urgent || self.has_reclaimed.get() {
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
        let mut failures = Failures::default();
        let writes = cycle.batches.iter().map(|batch| {
            let durable = cycle.is_durable(batch);
            let write = self.device.write(batch.segment, batch.offset, batch.bytes.clone(), durable);
            async move { (batch.segment, write.await) }
        });
        for (segment, written) in future::join_all(writes).await {
            if let Err(error) = written {
                self.notice(segment, Trouble::Unwritable { segment, error });
                failures.writes.insert(segment);
            }
        }
        let to_sync = cycle.syncs.iter().filter(|segment| !failures.writes.contains(segment));
        let syncs = to_sync.map(|&segment| {
            let sync = self.device.sync(segment);
            async move { (segment, sync.await) }
        });
        for (segment, synced) in future::join_all(syncs).await {
            if let Err(error) = synced {
                self.notice(segment, Trouble::Unsynced { segment, error });
                failures.syncs.insert(segment);
            }
        }
        failures
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

    pub(super) fn tell(&self, over: Vec<Over>) {
        for (tell, answer) in over {
            // Who has gone needs no answer.
            let _ = tell.send(answer);
        }
    }
}
