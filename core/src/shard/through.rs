//! Writes that are acknowledged when the store has them.
//!
//! ```text
//!   put ── the key's turn ── store ─┬ written ───────── log ── memory ──▶ answer
//!                                   ├ not, or unknown ─ log and memory forget the key
//!                                   └ busy: never told ─ all stays as it is
//! ```

use std::rc::Rc;

use milena_proto::key::Key;
use milena_storage::{Cause, Condition, Entry, Error, Put, Tier, Timestamp, Version};

use super::{Refusal, Shard, Write};
use crate::inflight::WriteTurn;

impl<T: Tier + 'static> Shard<T> {
    pub(super) async fn put_through(
        &self,
        store: &T,
        key: &Key,
        write: Write,
        now: Timestamp,
    ) -> Result<Version, Refusal> {
        let turn = self.inflight.begin_write(key).map_err(Refusal::Limit)?.await;
        self.absences.borrow_mut().forget(key);
        self.put_in_turn(store, key, write, turn, now).await
    }

    /// The rest, once it is the write's turn.
    pub(super) async fn put_in_turn(
        &self,
        store: &T,
        key: &Key,
        write: Write,
        turn: WriteTurn,
        now: Timestamp,
    ) -> Result<Version, Refusal> {
        self.until_settled(key).await?;
        let unfinished = Unfinished { shard: self, key, is_known: false };
        let Write { value, expires, condition, .. } = write;
        let tenure = self.tenure.get();
        let written = store.put(key, Put { value: value.clone(), expires, condition }).await;
        match written {
            Ok(version) => {
                let entry = Entry { value, version, expires };
                self.log_written(key, &entry, now).await;
                if self.tenure.get() == tenure {
                    self.memory.borrow_mut().insert(key.as_ref(), &entry, self.believed_until(now), now);
                    unfinished.finish();
                } else {
                    // Written, and perhaps replaced by another node since: nothing is known about the key.
                    drop(unfinished);
                }
                drop(turn); // Only now may the next writer begin.
                Ok(entry.version)
            }
            Err(error) => Err(unfinished.fail(error)),
        }
    }

    pub(super) async fn delete_through(
        &self,
        store: &T,
        key: &Key,
        condition: Condition,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let turn = self.inflight.begin_write(key).map_err(Refusal::Limit)?.await;
        self.absences.borrow_mut().forget(key);
        self.delete_in_turn(store, key, condition, turn, now).await
    }

    /// The rest, once it is the delete's turn.
    pub(super) async fn delete_in_turn(
        &self,
        store: &T,
        key: &Key,
        condition: Condition,
        turn: WriteTurn,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        self.until_settled(key).await?;
        let unfinished = Unfinished { shard: self, key, is_known: false };
        match store.delete(key, condition).await {
            Ok(()) => {
                if let Some(log) = &self.log {
                    // Nobody else changes the key meanwhile: it is our turn, and fills lost their leases to it.
                    Rc::clone(log).delete_if(key.clone(), now, || true).await;
                }
                self.memory.borrow_mut().remove(key.as_ref());
                self.absences.borrow_mut().remember(key, now);
                unfinished.finish();
                drop(turn);
                Ok(())
            }
            Err(error) => Err(unfinished.fail(error)),
        }
    }

    /// Puts what the store has into the log. The log may lack it, but then it must not have anything older.
    async fn log_written(&self, key: &Key, entry: &Entry, now: Timestamp) {
        let Some(log) = &self.log else { return };
        let put = Rc::clone(log).put(key.clone(), entry.clone(), self.believed_until(now), now);
        if put.await.is_err() {
            log.forget(key.as_ref());
        }
    }
}

/// A write of which the store has been told, or is about to be. Dropped, it makes memory and log forget the key: nobody
/// knows what the store has.
struct Unfinished<'a, T> {
    shard: &'a Shard<T>,
    key: &'a Key,
    is_known: bool,
}

impl<T> Unfinished<'_, T> {
    /// Memory agrees with the store.
    fn finish(mut self) {
        self.is_known = true;
    }

    fn fail(self, error: Error) -> Refusal {
        if error.cause == Cause::Busy {
            self.finish(); // The store was never told, and forgetting would make it busier.
        }
        Refusal::Store(error)
    }
}

impl<T> Drop for Unfinished<'_, T> {
    fn drop(&mut self) {
        if !self.is_known {
            self.shard.memory.borrow_mut().remove(self.key.as_ref());
            if let Some(log) = &self.shard.log {
                log.forget(self.key.as_ref());
            }
        }
    }
}
