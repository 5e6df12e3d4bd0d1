//! Batches on their way to the nodes that own their keys, and back.
//!
//! ```text
//!   message ─ keys ─▶ limits ─▶ view: slot, core of each ─┬ all the same ─▶ the same bytes, another path; answer as it comes
//!                                                         └ several: one message for each, all at once
//!                                                              │ a part fails and may be repeated: parted by the newest
//!                                                              ▼ table, and each of those asked for
//!   answer ◀── results in the order of the entries ◀──────── joined, as far as JOINED_BYTES_MAX allows
//! ```
//! What is asked of a node, and whether once more, follows the rules of a single call, for each part (`forward.rs`).
//!
//! A BatchGet fails with the first part that does: its results have no place for a status. A batch of writes is answered with
//! OK; the entries of a part that failed have the code and text that its call alone would have had.

use std::{cell::Cell, future::poll_fn, rc::Rc, time::Instant};

use ahash::HashMap;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use milena_net::grpc::{
    client::Answer,
    pieces::{Gather, Pieces},
    server::{Message, Reply, Request},
    status::{Code, Status},
};
use milena_proto::{
    batch::{BUCKET_FIELD, BatchEntries, BatchError, BatchKeys, ENTRY_FIELD, KEY_FIELD, entry_head},
    key::KeyRef,
    limits::batch_answer_bytes_max,
    method::{CACHE_BATCH_DELETE, CACHE_BATCH_GET, CACHE_BATCH_PUT},
    router_server::PutResult,
};
use prost::Message as _;

use crate::{
    forward::{
        DEADLINE_DEFAULT, Failure, Forwarded, InTheAir, Reached, check_value, invalid, may_try_again, pass_on, reach,
        turn_away,
    },
    members::View,
    peers::Access,
    rate_limit::Costs,
    service::Desk,
    stats::Op,
};

/// Bytes of large answers that one core may have in its hands to join them; more are refused. Small ones are bounded by
/// the number of calls.
pub const JOINED_BYTES_MAX: usize = 128 << 20;

/// What a caller is told to wait, in milliseconds, when there is no room to join its answer.
const PUSHBACK_JOINED_MS: u32 = 100;

/// A BatchGet.
pub const GET: Forwarded = Forwarded { op: Op::BatchGet, path: CACHE_BATCH_GET.path, access: Access::Read };
/// A BatchPut.
pub const PUT: Forwarded = Forwarded { op: Op::BatchPut, path: CACHE_BATCH_PUT.path, access: Access::Write };
/// A BatchDelete.
pub const DELETE: Forwarded = Forwarded { op: Op::BatchDelete, path: CACHE_BATCH_DELETE.path, access: Access::Write };

/// Passes a batch on to the owners of its keys and brings back their results, joined.
///
/// # Errors
/// Of a BatchGet: a key that is not legal, or what one of its parts said. Of all: a batch that cannot be read, or that a limit
/// turns away; nothing was done then.
pub(crate) async fn forward(desk: Rc<Desk>, call: Forwarded, request: Request) -> Result<Reply, Status> {
    let now = Instant::now();
    let Request { message, deadline, peer, .. } = request;
    let deadline = deadline.unwrap_or(now + DEADLINE_DEFAULT);
    let batch = Batch::read(call, &message, desk.value_bytes_max).map_err(|error| invalid(error.to_string()))?;
    desk.rates.borrow_mut().admit(peer, || batch.costs(), now).map_err(|limited| turn_away(&desk, limited))?;

    let mut answer = Joined::new(&batch, batch_answer_bytes_max(desk.value_bytes_max));
    let legal = (0..batch.entries.len()).filter(|index| batch.entries[*index].is_ok()).collect();
    let parts = batch.split(&desk.view.borrow(), legal);
    if let [whole] = &parts[..]
        && whole.len() == batch.entries.len()
    {
        let mut air = InTheAir::begin(&desk);
        // Its answer is passed on as it comes. Only what has to be asked again may come apart.
        let failed = match batch.ask_untouched(&desk, whole, deadline).await {
            Ok(reply) => return Ok(reply),
            Err(failure) => (whole.clone(), Err(failure)),
        };
        answer.take_all(batch.settle(&desk, failed, &mut air, deadline).await)?;
        return Ok(answer.into_reply());
    }
    let mut parts: FuturesUnordered<_> =
        parts.into_iter().map(|part| batch.ask_until_settled(&desk, part, deadline)).collect();
    while let Some(outcomes) = parts.next().await {
        answer.take_all(outcomes)?;
    }
    drop(parts);
    Ok(answer.into_reply())
}

/// A batch as it came: every entry is a slice of its message.
struct Batch<'a> {
    call: Forwarded,
    message: &'a Bytes,
    /// Of the keys; a BatchPut has one in each entry.
    bucket: Option<&'a [u8]>,
    /// Of writes that cannot be passed on, what their result says.
    entries: Vec<Result<Entry<'a>, Status>>,
}

#[derive(Clone, Copy)]
struct Entry<'a> {
    key: KeyRef<'a>,
    /// The name of a key, or a Put.
    bytes: &'a [u8],
}

/// Entries that one core owns, by their indexes in the batch.
type Part = Vec<usize>;

/// What a node answered for a part.
type Outcome = (Part, Result<Taken, Failure>);

/// An answer that was put together here, and the room it takes until it is passed on.
struct Taken {
    answer: Bytes,
    room: Option<Room>,
}

impl<'a> Batch<'a> {
    /// Finds the entries, and checks what a node would refuse.
    fn read(call: Forwarded, message: &'a Bytes, value_bytes_max: usize) -> Result<Self, BatchError> {
        if call.op == Op::BatchPut {
            let batch = BatchEntries::in_message(message)?;
            let entries = batch.entries().map(|bytes| {
                let key = KeyRef::in_message(bytes).map_err(|error| invalid(error.to_string()))?;
                check_value(bytes, value_bytes_max)?;
                Ok(Entry { key, bytes })
            });
            return Ok(Self { call, message, bucket: None, entries: entries.collect() });
        }
        let batch = BatchKeys::in_message(message)?;
        let mut entries = Vec::with_capacity(batch.count());
        for (index, key) in batch.keys().enumerate() {
            entries.push(match key {
                Ok(key) => Ok(Entry { key, bytes: key.name() }),
                Err(error) if call.access == Access::Read => return Err(BatchError::Key { index, error }),
                Err(error) => Err(invalid(error.to_string())),
            });
        }
        let bucket = entries.iter().flatten().next().map(|entry| entry.key.bucket_bytes());
        Ok(Self { call, message, bucket, entries })
    }

    fn entry(&self, index: usize) -> Entry<'a> {
        *self.entries[index].as_ref().expect("only what can be passed on is in a part")
    }

    /// Each entry costs as much as a call of its own.
    fn costs(&self) -> Costs<'a> {
        let mut costs: Costs<'a> = self.entries.iter().flatten().map(|entry| (entry.key.bucket(), 1)).collect();
        costs.sort_unstable(); // Not looked up one by one: a batch may have as many buckets as entries.
        costs.dedup_by(|(other, more), (bucket, count)| {
            let is_same = other == bucket;
            *count += if is_same { *more } else { 0 };
            is_same
        });
        costs
    }

    /// Parts these entries by the cores that own their keys.
    fn split(&self, view: &View, indexes: Part) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        let mut by_core = HashMap::default();
        for index in indexes {
            // Without an owner they are in a part too: whoever asks learns that there is none.
            let core = view.owner(self.entry(index).key).map(|owner| (owner.slot, owner.core));
            let number = *by_core.entry(core).or_insert(parts.len());
            if number == parts.len() {
                parts.push(Part::new());
            }
            parts[number].push(index);
        }
        parts
    }

    fn reach<'d>(&self, desk: &'d Desk, part: &Part, deadline: Instant) -> Result<Reached<'d>, Failure> {
        reach(desk, self.entry(part[0]).key, deadline, Instant::now())
    }

    /// Passes the batch on as it came, and its answer as that comes.
    async fn ask_untouched(&self, desk: &Desk, whole: &Part, deadline: Instant) -> Result<Reply, Failure> {
        let reached = self.reach(desk, whole, deadline)?;
        reached.ask(self.call.path, self.message.clone(), deadline).await.map(pass_on)
    }

    /// Asks the owner of a part once.
    async fn ask(&self, desk: &Desk, part: Part, deadline: Instant) -> Outcome {
        let answer = match self.reach(desk, &part, deadline) {
            Ok(reached) => reached.ask(self.call.path, self.message_of(&part), deadline).await,
            Err(failure) => Err(failure),
        };
        let taken = match answer {
            Ok(answer) => self.put_together(desk, answer).await,
            Err(failure) => Err(failure),
        };
        (part, taken)
    }

    /// Waits for the rest of a large answer, if there is room for it. What became of writes is always taken in: they have
    /// happened, and their results are small.
    async fn put_together(&self, desk: &Desk, answer: Answer) -> Result<Taken, Failure> {
        let mut body = match answer {
            Answer::Whole(answer) => return Ok(Taken { answer, room: None }),
            Answer::Parts(body) => body,
        };
        let room = match self.call.access {
            Access::Read => Some(Room::take(&desk.joined_bytes, body.message_bytes())?),
            Access::Write => None,
        };
        let mut answer = BytesMut::with_capacity(body.message_bytes());
        while let Some(part) = poll_fn(|cx| body.poll_next(cx)).await {
            answer.extend_from_slice(&part.map_err(Failure::Broken)?);
        }
        Ok(Taken { answer: answer.freeze(), room })
    }

    /// The same, and again as far as the rules allow it.
    async fn ask_until_settled(&self, desk: &Desk, part: Part, deadline: Instant) -> Vec<Outcome> {
        let mut air = InTheAir::begin(desk);
        let asked = self.ask(desk, part, deadline).await;
        self.settle(desk, asked, &mut air, deadline).await
    }

    /// Asks again for what has failed and may be repeated: the owners by the view of that moment, which may be several by then.
    async fn settle(&self, desk: &Desk, asked: Outcome, air: &mut InTheAir<'_>, deadline: Instant) -> Vec<Outcome> {
        let mut settled = Vec::new();
        let mut open = vec![asked];
        while let Some((part, outcome)) = open.pop() {
            match outcome {
                Err(failure) if may_try_again(desk, self.call, &failure, air, deadline).await => {
                    let parts = self.split(&desk.view.borrow(), part);
                    open.extend(join_all(parts.into_iter().map(|part| self.ask(desk, part, deadline))).await);
                }
                outcome => settled.push((part, outcome)),
            }
        }
        settled
    }

    /// The batch of these entries alone. Large values stay where they are.
    fn message_of(&self, part: &Part) -> Pieces {
        let mut message = Gather::default();
        if let Some(bucket) = self.bucket {
            message.put(&entry_head(BUCKET_FIELD, bucket.len()));
            message.put(bucket);
        }
        let field = if self.call.op == Op::BatchPut { ENTRY_FIELD } else { KEY_FIELD };
        for index in part {
            let bytes = self.entry(*index).bytes;
            message.put(&entry_head(field, bytes.len()));
            message.put_bytes(self.message.slice_ref(bytes));
        }
        message.into_pieces()
    }
}

/// Bytes of answers that are being joined, given back when the joined one is handed over: from there on it counts as the
/// connection's.
struct Room {
    joined_bytes: Rc<Cell<usize>>,
    bytes: usize,
}

impl Room {
    fn take(joined_bytes: &Rc<Cell<usize>>, bytes: usize) -> Result<Self, Failure> {
        let after = joined_bytes.get() + bytes;
        if after > JOINED_BYTES_MAX {
            let text = format!("answers to batches that are being joined have {JOINED_BYTES_MAX} bytes already");
            return Err(Failure::Ours(Status::resource_exhausted(text, PUSHBACK_JOINED_MS)));
        }
        joined_bytes.set(after);
        Ok(Self { joined_bytes: Rc::clone(joined_bytes), bytes })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.joined_bytes.set(self.joined_bytes.get() - self.bytes);
    }
}

/// The answer, as it comes together.
struct Joined {
    rooms: Vec<Room>,
    access: Access,
    /// Encoded, by index.
    results: Vec<Bytes>,
    bytes: usize,
    bytes_max: usize,
}

impl Joined {
    fn new(batch: &Batch<'_>, bytes_max: usize) -> Self {
        let result = |entry: &Result<Entry<'_>, Status>| entry.as_ref().err().map_or_else(Bytes::new, put_result);
        let results = batch.entries.iter().map(result).collect();
        Self { rooms: Vec::new(), access: batch.call.access, results, bytes: 0, bytes_max }
    }

    fn take_all(&mut self, outcomes: Vec<Outcome>) -> Result<(), Status> {
        outcomes.into_iter().try_for_each(|(part, outcome)| self.take(&part, outcome))
    }

    /// Takes in what was answered for a part. A part that was not read is the end of the whole.
    fn take(&mut self, part: &Part, outcome: Result<Taken, Failure>) -> Result<(), Status> {
        let taken = outcome.map_err(|failure| failure.into_status(self.access));
        let taken = taken.and_then(|Taken { answer, room }| {
            self.rooms.extend(room);
            self.take_results(part, &answer)
        });
        match (taken, self.access) {
            (Err(status), Access::Write) => {
                part.iter().for_each(|index| self.results[*index] = put_result(&status));
                Ok(())
            }
            (taken, _) => taken,
        }
    }

    fn take_results(&mut self, part: &Part, answer: &Bytes) -> Result<(), Status> {
        let batch = BatchEntries::in_message(answer).ok().filter(|batch| batch.count() == part.len());
        let Some(batch) = batch else {
            let text = format!("a node's answer is not the results of {} entries", part.len());
            return Err(Status::new(Code::Internal, text));
        };
        self.bytes += answer.len();
        if self.bytes > self.bytes_max && self.access == Access::Read {
            let text =
                format!("the answer would have more than {} bytes; ask for fewer keys at a time", self.bytes_max);
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        for (index, result) in part.iter().zip(batch.entries()) {
            self.results[*index] = answer.slice_ref(result);
        }
        Ok(())
    }

    fn into_reply(self) -> Reply {
        let mut message = Gather::with_capacity(self.bytes);
        for result in self.results {
            message.put(&entry_head(ENTRY_FIELD, result.len()));
            message.put_bytes(result);
        }
        Reply::Message(Message::from(message.into_pieces()))
    }
}

/// The result of a write that failed.
fn put_result(status: &Status) -> Bytes {
    let result = PutResult { code: status.code as i32, message: status.message.to_string(), version: String::new() };
    result.encode_to_vec().into()
}
