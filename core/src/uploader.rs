//! Uploads what the log owes the store, on each core of its own: how many at once, and when to pause.
//!
//! ```text
//!   uploads fine ──▶ uploads_max at once
//!   one fails ─────▶ 1 at once, after 100 ms, 200 ms, .. 10 s ──one is done──▶ uploads_max again
//! ```
//! What one upload is, and the order within a key, is in shard/back.rs and in the log; here is only the waiting.

use std::{
    future::pending,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use futures::{
    StreamExt as _,
    future::{Either, select},
    stream::FuturesUnordered,
};
use milena_net::{mesh, task};
use milena_storage::{Tier, Timestamp};

use crate::{
    complaints::Complaint,
    shard::{Shard, back::Uploaded},
};

/// The first pause after a failure; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Between two times that writes are let go on which were held back.
const SLOWED_INTERVAL: Duration = Duration::from_millis(10);

/// How many are let go on each time: 1,600 a second for each core, while nothing is uploaded.
const SLOWED_PER_INTERVAL: usize = 16;

/// How fast uploads may go. Pure.
#[derive(Debug, Default)]
struct Pace {
    failures_in_a_row: u32,
    paused_until: Option<Instant>,
}

impl Pace {
    /// Uploads that may be under way at once.
    fn at_once(&mut self, uploads_max: usize, now: Instant) -> usize {
        self.paused_until = self.paused_until.filter(|until| now < *until);
        match (self.paused_until, self.failures_in_a_row) {
            (Some(_), _) => 0,
            (None, 0) => uploads_max,
            (None, _) => 1,
        }
    }

    /// Takes in what became of an upload.
    fn note(&mut self, uploaded: &Uploaded, now: Instant) {
        match uploaded {
            Uploaded::Done => *self = Self::default(),
            Uploaded::Superseded => {}
            Uploaded::Failed(_) => {
                let pause = PAUSE_MIN * 2_u32.pow(self.failures_in_a_row.min(16));
                self.failures_in_a_row += 1;
                self.paused_until = Some(now + pause.min(PAUSE_MAX));
            }
        }
    }
}

/// Uploads for as long as it is polled, at most `uploads_max` changes at once, and lets writes go on that are held back.
/// Failures go to `complaints`.
pub async fn run<T: Tier + 'static>(
    shard: Rc<Shard<T>>,
    uploads_max: usize,
    complaints: mesh::Sender<Complaint>,
    time_of_day: impl Fn() -> Timestamp,
) {
    let mut pace = Pace::default();
    let mut under_way = FuturesUnordered::new();
    let mut released_at = Instant::now();
    loop {
        let now = Instant::now();
        while under_way.len() < pace.at_once(uploads_max, now)
            && let Some(debt) = shard.next_debt()
        {
            under_way.push(Rc::clone(&shard).upload(debt, time_of_day()));
        }
        if now >= released_at + SLOWED_INTERVAL {
            shard.release_slowed(SLOWED_PER_INTERVAL);
            released_at = now;
        }
        let look_again = shard.has_slowed().then(|| released_at + SLOWED_INTERVAL);
        let due = look_again.into_iter().chain(pace.paused_until).min();
        let ended = pin!(async {
            match under_way.next().await {
                Some(uploaded) => uploaded,
                None => pending().await,
            }
        });
        let due = pin!(async {
            match due {
                Some(due) => task::sleep_until(due).await,
                None => pending().await,
            }
        });
        let more = pin!(shard.more_debts());
        if let Either::Left((uploaded, _)) = select(ended, select(due, more)).await {
            pace.note(&uploaded, Instant::now());
            if let Uploaded::Failed(error) = uploaded
                && let Some(complaint) = Complaint::about(&error.cause)
            {
                // Full: what waits there says the same.
                let _ = complaints.try_send(complaint);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use milena_storage::{Cause, Error, Operation};

    use super::*;

    fn failed() -> Uploaded {
        Uploaded::Failed(Error { operation: Operation::Put, cause: Cause::Unavailable("away".into()) })
    }

    #[test]
    fn failures_make_uploads_fewer_and_pauses_longer_up_to_a_limit_until_one_is_done() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        assert_eq!(pace.at_once(8, now), 8);
        for pause_ms in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            pace.note(&failed(), now);
            now += Duration::from_millis(pause_ms - 1);
            assert_eq!(pace.at_once(8, now), 0);
            now += Duration::from_millis(1);
            assert_eq!(pace.at_once(8, now), 1);
        }
        pace.note(&Uploaded::Superseded, now);
        assert_eq!(pace.at_once(8, now), 1, "the store was not asked");
        pace.note(&failed(), now);
        pace.note(&Uploaded::Done, now);
        assert_eq!(pace.at_once(8, now), 8, "another one that was under way got through");
        pace.note(&failed(), now);
        assert_eq!(pace.paused_until, Some(now + PAUSE_MIN));
    }
}
