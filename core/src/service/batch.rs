//! BatchGet, BatchPut and BatchDelete on one core: one message in, one out, its results in the order of the entries.
//!
//! ```text
//!   BatchGet     key ─ this core's memory ─ hit ─▶ into the answer, nothing allocated for it
//!                  └ the first that is elsewhere: from here on hits are held, the others asked for all at once
//!                    (one message to each other core), and the answer goes on when all are there
//!   BatchPut     each entry read as a Put alone would be ─┬─ wrong ────────▶ its result says so
//!   BatchDelete                                           └─ right ─ core ─▶ its result says what became of it
//! ```
//! A `GetResponse` has no place for a status, and a failure is not a miss: so a BatchGet succeeds or fails as a whole. A batch
//! of writes is answered with OK, and each result has its own code: there is no other way to know which were done.
//!
//! A batch with a key that is another node's is refused as a whole where strays are, before anything is done: `PutResult`
//! has no place for the epoch by which the caller can tell that refusal from others.

use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;
use milena_net::grpc::{
    pieces::Gather,
    server::Message,
    status::{Code, Status},
};
use milena_proto::{
    batch::{BatchEntries, BatchError, BatchKeys, ENTRY_FIELD, entry_head},
    cache_server::{Ack, BatchDeleteResponse, BatchPutResponse, PutResult},
    key::{Key, KeyRef},
    limits::batch_answer_bytes_max,
    placement::{self, KeyHash},
};
use milena_storage::{Condition, Entry, Tier, Timestamp, Version};
use smallvec::SmallVec;

use super::{CacheService, Call, Counted, depth_of, malformed, put_hit_head, status_of};
use crate::{
    batch::{Change, Failure},
    ownership::Ownership,
    report::{Calls, Depth, Op},
    shard::{Hit, Removal},
};

/// What a small hit takes in an answer beside its value, in bytes: how large an answer is, guessed before it is known.
const HIT_BYTES_USUAL: usize = 128;

/// How far a BatchGet gets without waiting.
enum Begun {
    /// To its end.
    Answered(GetAnswer),
    /// Other cores, or tiers below memory, must be asked.
    Missing(GetAnswer, Missing),
    /// Keys that may be another node's.
    Strays(Vec<KeyHash>),
}

/// The keys from the first on that this core's memory does not have.
struct Missing {
    /// The index of the first.
    first: usize,
    /// From that one on, in their order, as far as they are known.
    hits: Vec<Option<Hit>>,
    /// Those that are not, with their indexes in the batch.
    keys: Vec<(usize, Key)>,
}

impl<T: Tier + 'static> CacheService<T> {
    /// Strays are refused where there is a `door`.
    pub(super) fn batch_get(&self, message: &Bytes, door: Option<&Rc<Ownership>>) -> Call {
        let counted = self.counted(Op::BatchGet);
        let now = self.clock.at(counted.began);
        match self.begin_batch_get(message, door, now) {
            Ok(Begun::Answered(answer)) => counted.end_at_once(Ok(answer.end(&self.calls))),
            Ok(Begun::Missing(answer, missing)) => self.batch_get_below(counted, answer, missing, now),
            Ok(Begun::Strays(strays)) => {
                counted.leave_uncounted();
                let door = door.expect("only a door finds strays");
                self.answer_stray(door, Op::BatchGet, strays, message.clone())
            }
            Err(status) => counted.end_at_once(Err(status)),
        }
    }

    fn begin_batch_get(&self, message: &[u8], door: Option<&Rc<Ownership>>, now: Timestamp) -> Result<Begun, Status> {
        let batch = BatchKeys::in_message(message).map_err(|error| refused(&error))?;
        let mut answer = GetAnswer::new(batch.count(), batch_answer_bytes_max(self.value_bytes_max));
        let mut missing: Option<Missing> = None;
        for (index, key) in batch.keys().enumerate() {
            let key = key.map_err(|error| refused(&BatchError::Key { index, error }))?;
            if let Some(door) = door.filter(|door| door.is_stray(key.hash())) {
                let hashes = batch.keys().flatten().map(|key| key.hash());
                return Ok(Begun::Strays(hashes.filter(|hash| door.is_stray(*hash)).collect()));
            }
            let hit = self.hit_here(key, now);
            if missing.is_none() && hit.is_some() {
                answer.put(hit, now)?;
                continue;
            }
            let missing = missing.get_or_insert_with(|| Missing { first: index, hits: Vec::new(), keys: Vec::new() });
            if hit.is_none() {
                missing.keys.push((index, key.to_key()));
            }
            missing.hits.push(hit);
        }
        Ok(match missing {
            None => Begun::Answered(answer),
            Some(missing) => Begun::Missing(answer, missing),
        })
    }

    /// What this core's memory has.
    fn hit_here(&self, key: KeyRef<'_>, now: Timestamp) -> Option<Hit> {
        if placement::core(key.hash(), self.core_count) != self.core {
            return None;
        }
        self.shards.mine().get_from_memory(key, now)?.ok()?
    }

    fn batch_get_below(&self, counted: Counted, mut answer: GetAnswer, missing: Missing, now: Timestamp) -> Call {
        let Missing { first, mut hits, keys } = missing;
        let found = self.shards.get_many(keys, now, answer.bytes_max);
        let (complaints, calls) = (self.complaints.clone(), Rc::clone(&self.calls));
        counted.end_later(async move {
            let found = found.await.map_err(|failure| match failure {
                Failure::Key { key, refusal } => of_key(&key, status_of(&refusal, &complaints)),
                Failure::AnswerTooLarge => too_large(answer.bytes_max),
            })?;
            for (index, hit) in found {
                hits[index - first] = hit;
            }
            for hit in hits {
                answer.put(hit, now)?;
            }
            Ok(answer.end(&calls))
        })
    }

    /// A BatchPut or a BatchDelete. Writes that have begun run to their end, whoever waits for them.
    pub(super) fn batch_write(&self, op: Op, message: &Bytes) -> Call {
        let counted = self.counted(op);
        let now = self.clock.at(counted.began);
        let entries = match self.read_changes(op, message, now) {
            Ok(entries) => entries,
            Err(error) => return counted.end_at_once(Err(refused(&error))),
        };
        let mut changes = Vec::with_capacity(entries.len());
        let mut results = Vec::with_capacity(entries.len());
        for (index, entry) in entries.into_iter().enumerate() {
            results.push(entry.map(|change| changes.push((index, change))).map(|()| String::new()));
        }
        let changed = self.shards.write_many(changes, now);
        let (complaints, calls) = (self.complaints.clone(), Rc::clone(&self.calls));
        let depth = self.write_depth(Ack::Default); // Of most of them.
        counted.end_later(async move {
            for (index, changed) in changed.await {
                let version = |version: Option<Version>| version.map_or_else(String::new, |v| v.as_str().to_owned());
                results[index] = changed.map(version).map_err(|refusal| status_of(&refusal, &complaints));
            }
            Ok((results_message(op, results, &calls), depth))
        })
    }

    /// The writes of a batch, each as far as it can be read.
    fn read_changes(&self, op: Op, message: &Bytes, now: Timestamp) -> Result<Vec<Result<Change, Status>>, BatchError> {
        if op == Op::BatchPut {
            let batch = BatchEntries::in_message(message)?;
            let puts = batch.entries().map(|entry| self.read_put(&message.slice_ref(entry), now));
            return Ok(puts.map(|put| put.map(|(key, write)| Change::Put(key, write))).collect());
        }
        let removal = || Removal { condition: Condition::Always, ack: Ack::Default };
        let deletes = BatchKeys::in_message(message)?.keys();
        let deletes = deletes.map(|key| key.map(|key| Change::Delete(key.to_key(), removal())));
        Ok(deletes.map(|delete| delete.map_err(|error| malformed(&error))).collect())
    }
}

/// The keys that a batch of writes names and that may be another node's. What cannot be read is nobody's.
pub(super) fn strays(op: Op, message: &[u8], door: &Ownership) -> Vec<KeyHash> {
    let stray = |key: KeyRef<'_>| Some(key.hash()).filter(|hash| door.is_stray(*hash));
    if op == Op::BatchPut {
        let Ok(batch) = BatchEntries::in_message(message) else { return Vec::new() };
        return batch.entries().filter_map(|entry| stray(KeyRef::in_message(entry).ok()?)).collect();
    }
    let Ok(batch) = BatchKeys::in_message(message) else { return Vec::new() };
    batch.keys().filter_map(|key| stray(key.ok()?)).collect()
}

/// A BatchGetResponse that grows result by result.
struct GetAnswer {
    message: Gather,
    bytes_max: usize,
    entry_count: usize,
    /// Of the hit for which one had to go furthest down.
    depth: Depth,
}

impl GetAnswer {
    fn new(entry_count: usize, bytes_max: usize) -> Self {
        let message = Gather::with_capacity(entry_count * HIT_BYTES_USUAL);
        Self { message, bytes_max, entry_count, depth: Depth::None }
    }

    /// Appends a result. A small value is copied, a large one is not.
    fn put(&mut self, hit: Option<Hit>, now: Timestamp) -> Result<(), Status> {
        let Some(hit) = hit else {
            self.message.put(&entry_head(ENTRY_FIELD, 0)); // All fields of a miss have their default.
            return Ok(());
        };
        let depth = depth_of(hit.source);
        if self.depth == Depth::None || depth as usize > self.depth as usize {
            self.depth = depth;
        }
        let ttl_ms = hit.ttl_ms(now);
        let Entry { value, version, .. } = hit.entry;
        let mut head = SmallVec::<[u8; HIT_BYTES_USUAL]>::new();
        put_hit_head(&mut head, hit.source, &version, ttl_ms, value.len());
        let before = entry_head(ENTRY_FIELD, head.len() + value.len());
        if self.message.bytes() + before.len() + head.len() + value.len() > self.bytes_max {
            return Err(too_large(self.bytes_max));
        }
        self.message.put(&before);
        self.message.put(&head);
        self.message.put_bytes(value);
        Ok(())
    }

    fn end(self, calls: &RefCell<Calls>) -> (Message, Depth) {
        calls.borrow_mut().count_entries(Op::BatchGet, Code::Ok, self.entry_count);
        (Message::from(self.message.into_pieces()), self.depth)
    }
}

/// The answer to a batch of writes: the version of each, or why there is none.
fn results_message(op: Op, results: Vec<Result<String, Status>>, calls: &RefCell<Calls>) -> Message {
    let mut calls = calls.borrow_mut();
    let results = results.into_iter().map(|result| {
        let result = match result {
            Ok(version) => PutResult { code: Code::Ok as i32, message: String::new(), version },
            Err(status) => {
                PutResult { code: status.code as i32, message: status.message.into_owned(), version: String::new() }
            }
        };
        calls.count_entries(op, Code::from_number(result.code), 1);
        result
    });
    let results = results.collect();
    match op {
        Op::BatchPut => Message::encode(&BatchPutResponse { results }),
        _ => Message::encode(&BatchDeleteResponse { results }),
    }
}

fn refused(error: &BatchError) -> Status {
    Status::new(Code::InvalidArgument, error.to_string())
}

/// The status of one key that is the status of all.
fn of_key(key: &Key, status: Status) -> Status {
    let text = format!("{key}: {}", status.message);
    Status { message: text.into(), ..status }
}

fn too_large(bytes_max: usize) -> Status {
    let text = format!("the answer would have more than {bytes_max} bytes; ask for fewer keys at a time");
    Status::new(Code::ResourceExhausted, text)
}
