//! What one core does for the entries of a batch that are its own. Each is read or written by the same code as one alone.
//!
//! ```text
//!   Reads    memory ─ all found ─▶ answered at once
//!               └ the others: READS_MAX of them wait for disk or store at a time; the first that fails ends the batch
//!
//!   Changes  of one key: one after the other, in the order of the batch
//!            of different keys: WRITES_MAX at a time; each has an outcome of its own
//! ```
//! Reads stop when nobody waits for them. What is to be written is written, whoever still waits.

use std::rc::Rc;

use futures::{StreamExt as _, stream::FuturesUnordered};
use milena_net::mesh;
use milena_proto::key::Key;
use milena_storage::{Tier, Timestamp, Version};
use smallvec::SmallVec;

use crate::shard::{Hit, Refusal, Removal, Shard, Write};

/// Keys of one batch for which one core asks disk and store at the same time.
pub const READS_MAX: usize = 64;

/// Keys of one batch that one core writes at the same time.
pub const WRITES_MAX: usize = 64;

/// Keys of one core that a batch asks for.
#[derive(Debug)]
pub(crate) struct Reads {
    /// Each with its index in the batch.
    pub(crate) keys: Vec<(usize, Key)>,
    pub(crate) now: Timestamp,
    /// What all values of the batch together may have, in bytes.
    pub(crate) bytes_max: usize,
    /// Whoever waits, if on another core: gone with its end of this mailbox, through which nothing is ever sent.
    pub(crate) caller: Option<mesh::Sender<()>>,
}

/// What was found, by index in the batch, in no order. `None` is a miss.
pub type Found = Vec<(usize, Option<Hit>)>;

/// Why a batch of Gets has no answer: there is no way to say it of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// One of the keys could not be read.
    Key {
        /// Which.
        key: Key,
        /// Why.
        refusal: Refusal,
    },
    /// The values together have more bytes than one answer may.
    AnswerTooLarge,
}

/// A write of a batch.
#[derive(Debug)]
pub enum Change {
    /// A Put.
    Put(Key, Write),
    /// A Delete.
    Delete(Key, Removal),
}

/// What became of it: the version of what was put.
pub type Changed = Result<Option<Version>, Refusal>;

/// Writes of one core's keys, each with its index in the batch.
#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) changes: Vec<(usize, Change)>,
    pub(crate) now: Timestamp,
}

impl Change {
    /// What is written.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(key, _) | Self::Delete(key, _) => key,
        }
    }
}

impl Reads {
    /// Takes out what memory has. O(keys); never waits.
    pub(crate) fn take_from_memory<T: Tier + 'static>(&mut self, shard: &Shard<T>) -> Found {
        let mut found = Vec::with_capacity(self.keys.len());
        self.keys.retain(|(index, key)| match shard.get_from_memory(key.as_ref(), self.now) {
            Some(Ok(hit)) => {
                found.push((*index, hit));
                false
            }
            Some(Err(_)) | None => true,
        });
        found
    }

    /// Reads the keys, and answers with them and with what was `found` before.
    pub(crate) async fn run<T: Tier + 'static>(self, shard: Rc<Shard<T>>, mut found: Found) -> Result<Found, Failure> {
        let Self { keys, now, bytes_max, caller } = self;
        let mut found_bytes: usize = found.iter().filter_map(|(_, hit)| hit.as_ref()).map(value_bytes).sum();
        let mut keys = keys.into_iter();
        let mut waiting = FuturesUnordered::new();
        loop {
            if found_bytes > bytes_max {
                return Err(Failure::AnswerTooLarge);
            }
            while waiting.len() < READS_MAX
                && !caller.as_ref().is_some_and(mesh::Sender::is_gone)
                && let Some((index, key)) = keys.next()
            {
                let shard = Rc::clone(&shard);
                waiting.push(async move {
                    // Not before it is polled: a key that comes twice may be in memory by then.
                    let answer = shard.get(key.as_ref(), now).await;
                    (index, answer.map_err(|refusal| Failure::Key { key, refusal }))
                });
            }
            match waiting.next().await {
                Some((index, Ok(hit))) => {
                    found_bytes += hit.as_ref().map_or(0, value_bytes);
                    found.push((index, hit));
                }
                Some((_, Err(failure))) => return Err(failure),
                None => return Ok(found),
            }
        }
    }
}

fn value_bytes(hit: &Hit) -> usize {
    hit.entry.value.len()
}

impl Changes {
    /// Carries all of them out. Dropped, it leaves some undone, and those under way as [`Shard::put`] says.
    pub(crate) async fn run<T: Tier + 'static>(self, shard: Rc<Shard<T>>) -> Vec<(usize, Changed)> {
        let Self { changes, now } = self;
        let mut chains = in_chains(changes);
        let mut done = Vec::new();
        let mut waiting = FuturesUnordered::new();
        loop {
            while waiting.len() < WRITES_MAX
                && let Some(chain) = chains.next()
            {
                waiting.push(write_chain(Rc::clone(&shard), chain, now));
            }
            match waiting.next().await {
                Some(ends) => done.extend(ends),
                None => return done,
            }
        }
    }
}

/// Writes of one key, in their order. Nearly always one.
type Chain = SmallVec<[(usize, Change); 1]>;

/// Parts writes by their keys. Two keys with one hash, which hardly ever meet, only wait for each other.
fn in_chains(mut changes: Vec<(usize, Change)>) -> impl Iterator<Item = Chain> {
    changes.sort_by_key(|(_, change)| change.key().hash()); // Stable: those of one key stay in their order.
    let mut changes = changes.into_iter().peekable();
    std::iter::from_fn(move || {
        let first = changes.next()?;
        let hash = first.1.key().hash();
        let mut chain = Chain::new();
        chain.push(first);
        while let Some(next) = changes.next_if(|(_, change)| change.key().hash() == hash) {
            chain.push(next);
        }
        Some(chain)
    })
}

async fn write_chain<T: Tier + 'static>(
    shard: Rc<Shard<T>>,
    chain: Chain,
    now: Timestamp,
) -> SmallVec<[(usize, Changed); 1]> {
    let mut done = SmallVec::new();
    for (index, change) in chain {
        let changed = match change {
            Change::Put(key, write) => shard.put(key, write, now).await.map(Some),
            Change::Delete(key, removal) => shard.delete(key, removal, now).await.map(|()| None),
        };
        done.push((index, changed));
    }
    done
}
