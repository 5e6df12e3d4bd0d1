//! How a log writes: what has gathered is written while the next gathers, and one sync serves all who wait.
//!
//! ```text
//!   gather ──▶ somebody waits? enough bytes? ──▶ write all ──▶ sync, if wanted ──▶ tell who waited ──▶ gather
//! ```

use std::{pin::pin, time::Duration};

use futures::future::{self, Either};

use super::{
    Device, Log, LogError, Trouble, Waiter,
    state::{Cycle, Failures},
};

/// A batch is written at once when it has this many bytes, whoever waits.
const BATCH_BYTES: usize = 256 << 10;

/// How long a record waits for company that nobody needs on disk now; a process that is killed loses no more.
const GATHER: Duration = Duration::from_millis(50);

impl<D: Device> Log<D> {
    pub(super) async fn write(&self) {
        loop {
            self.work_gathers().await;
            // A segment that is being emptied is emptied first.
            let is_stopping = self.is_stopping.get() && self.has_reclaimed.get();
            if is_stopping {
                self.state.borrow_mut().close_all();
            }
            let must_sync = is_stopping || self.is_waited_for();
            if self.state.borrow().has_work(must_sync) {
                let cycle = self.state.borrow_mut().begin_cycle(must_sync);
                let failures = self.perform(&cycle).await;
                self.state.borrow_mut().end_cycle(&cycle, &failures);
                self.tell_of_room();
                self.ring_if_needed();
            }
            self.tell_of_durability();
            if is_stopping && !self.state.borrow().has_work(true) {
                return;
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
            let write = self.device.write(batch.segment, batch.offset, batch.bytes.clone());
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

    pub(super) fn tell_of_durability(&self) {
        let (durable, is_offline) = {
            let state = self.state.borrow();
            (state.durable(), state.is_offline())
        };
        let is_over = |(sequence, tell): &mut Waiter| is_offline || *sequence <= durable || tell.is_canceled();
        let over: Vec<_> = self.durable.borrow_mut().extract_if(.., is_over).collect();
        for (sequence, tell) in over {
            let answer = if sequence <= durable { Ok(()) } else { Err(LogError::Offline) };
            // Who has gone needs no answer.
            let _ = tell.send(answer);
        }
    }
}
