//! All shards of a node, as one core sees them: its own is a function call away, the others a mailbox.
//!
//! ```text
//!   get(key) ─┬ mine:  Shard::get
//!             └ other: a ticket; request ─▶ mailbox ─▶ that core's run() ─▶ its Shard
//!                      reply ◀── mailbox ◀────────────┘
//!
//!   ticket   Waiting ──reply──▶ Answered ──polled──▶ free
//!               └─caller gone─▶ Abandoned ──reply──▶ free
//! ```
//! A ticket is free only when its reply has come, also where nobody waits for it any more. So never more replies are
//! under way to a core than it has tickets, its mailbox for them has that many places, and a reply always fits. It also
//! means that a ticket cannot be taken for an earlier one with the same number.

use std::{
    cell::RefCell,
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use futures::{
    StreamExt,
    future::{Either, LocalBoxFuture, join_all},
    stream::FuturesUnordered,
};
use milena_net::{
    fault::Fault,
    mesh::{Receiver, Refused, Sender, mailbox},
};
use milena_proto::{
    key::{Key, KeyRef},
    placement,
};
use milena_storage::{Tier, Timestamp};
use slab::Slab;

pub use crate::message::mesh;
use crate::{
    batch::{Change, Changed, Changes, Failure, Found, Reads},
    message::{Answered, Asked, Ends, MESH_TICKETS_MAX, Reply, Request},
    shard::{Answer, Limit, Refusal, Removal, Removed, Shard, Write, Written},
};

/// Messages that a core takes from its mailboxes before it lets other tasks run.
const MESSAGES_PER_TURN: usize = 128;

/// The shards of a node, from one of its cores. Held by `Rc` on that core.
pub struct Shards<T> {
    core: usize,
    shard: Rc<Shard<T>>,
    ask: Vec<Sender<Asked>>,
    tickets: RefCell<Slab<Ticket>>,
}

/// A request to another core whose reply has not come, or has not been looked at.
enum Ticket {
    Waiting(Option<Waker>),
    Answered(Reply),
    Abandoned,
}

impl<T: Tier + 'static> Shards<T> {
    /// Joins this core's `shard` with the others, and the future that serves them: run it on a task of its own for as
    /// long as the core lives.
    pub fn new(ends: Ends, shard: Rc<Shard<T>>) -> (Rc<Self>, impl Future<Output = ()> + use<T>) {
        let Ends { core, requests, replies, ask, answer } = ends;
        let shards = Rc::new(Self { core, shard, ask, tickets: RefCell::default() });
        let run = Rc::clone(&shards).run(requests, replies, answer);
        (shards, run)
    }

    /// This core's own shard.
    #[must_use]
    pub fn mine(&self) -> &Rc<Shard<T>> {
        &self.shard
    }

    /// As [`Shard::get`], on whichever core owns the key.
    ///
    /// # Errors
    /// As there, and [`Limit::Tickets`], [`Limit::Requests`] or [`Refusal::Stopped`].
    pub fn get(self: &Rc<Self>, key: KeyRef<'_>, now: Timestamp) -> impl Future<Output = Answer> + use<T> {
        let core = self.core_of(key.hash());
        if core == self.core {
            return Either::Left(self.shard.get(key, now));
        }
        let asking = self.ask(core, Request::Get { key: key.to_key(), now });
        Either::Right(async move {
            match asking?.await {
                Reply::Get(answer) => answer,
                _ => Err(Refusal::Fault(Fault::new("a Get was answered as another request"))),
            }
        })
    }

    /// As [`Shard::put`], on whichever core owns the key. On another core a write that was sent runs to its end there,
    /// whatever becomes of this future.
    ///
    /// # Errors
    /// As there, and as [`Shards::get`].
    pub fn put(self: &Rc<Self>, key: Key, write: Write, now: Timestamp) -> impl Future<Output = Written> + use<T> {
        let core = self.core_of(key.hash());
        if core == self.core {
            return Either::Left(self.shard.put(key, write, now));
        }
        let asking = self.ask(core, Request::Put { key, write: Box::new(write), now });
        Either::Right(async move {
            match asking?.await {
                Reply::Put(answer) => answer,
                _ => Err(Refusal::Fault(Fault::new("a Put was answered as another request"))),
            }
        })
    }

    /// As [`Shard::delete`], on whichever core owns the key; see [`Shards::put`].
    ///
    /// # Errors
    /// As there, and as [`Shards::get`].
    pub fn delete(
        self: &Rc<Self>,
        key: Key,
        removal: Removal,
        now: Timestamp,
    ) -> impl Future<Output = Removed> + use<T> {
        let core = self.core_of(key.hash());
        if core == self.core {
            return Either::Left(self.shard.delete(key, removal, now));
        }
        let asking = self.ask(core, Request::Delete { key, removal, now });
        Either::Right(async move {
            match asking?.await {
                Reply::Delete(answer) => answer,
                _ => Err(Refusal::Fault(Fault::new("a Delete was answered as another request"))),
            }
        })
    }

    /// As [`Shards::get`] for many keys, each with its index in their batch: one message to each core that owns some of
    /// them. The values may have `bytes_max` bytes together. Dropped, it begins no more reads on any core.
    ///
    /// # Errors
    /// The first that fails is the failure of all.
    pub fn get_many(
        self: &Rc<Self>,
        keys: Vec<(usize, Key)>,
        now: Timestamp,
        bytes_max: usize,
    ) -> impl Future<Output = Result<Found, Failure>> + use<T> {
        let (caller, waits) = mailbox(1);
        let parts = self.by_core(keys, |(_, key)| key.hash());
        let parts: FuturesUnordered<LocalBoxFuture<'static, _>> = parts
            .map(|(core, keys)| -> LocalBoxFuture<'static, _> {
                if core == self.core {
                    let reads = Reads { keys, now, bytes_max, caller: None };
                    return Box::pin(reads.run(Rc::clone(&self.shard), Found::new()));
                }
                let first = keys[0].1.clone();
                let failed = |refusal| Failure::Key { key: first, refusal };
                let reads = Reads { keys, now, bytes_max, caller: Some(caller.clone()) };
                let asking = self.ask(core, Request::GetMany(reads));
                Box::pin(async move {
                    let asking = match asking {
                        Ok(asking) => asking,
                        Err(refusal) => return Err(failed(refusal)),
                    };
                    match asking.await {
                        Reply::GetMany(found) => found,
                        _ => Err(failed(Refusal::Fault(Fault::new("Gets were answered as another request")))),
                    }
                })
            })
            .collect();
        async move {
            let _waits = waits;
            let mut parts = parts;
            let mut all = Found::new();
            while let Some(found) = parts.next().await {
                all.append(&mut found?);
            }
            Ok(all)
        }
    }

    /// As [`Shards::put`] and [`Shards::delete`] for many, each with its index in their batch, which its outcome has too:
    /// one message to each core that owns some of the keys. Writes of one key are done in their order.
    pub fn write_many(
        self: &Rc<Self>,
        changes: Vec<(usize, Change)>,
        now: Timestamp,
    ) -> impl Future<Output = Vec<(usize, Changed)>> + use<T> {
        let parts = self.by_core(changes, |(_, change)| change.key().hash());
        let parts = parts.map(|(core, changes)| -> LocalBoxFuture<'static, _> {
            if core == self.core {
                return Box::pin(Changes { changes, now }.run(Rc::clone(&self.shard)));
            }
            let indexes: Vec<usize> = changes.iter().map(|(index, _)| *index).collect();
            let asking = self.ask(core, Request::WriteMany(Changes { changes, now }));
            Box::pin(async move {
                let refusal = match asking {
                    Ok(asking) => match asking.await {
                        Reply::WriteMany(changed) => return changed,
                        _ => Refusal::Fault(Fault::new("writes were answered as another request")),
                    },
                    // The mailbox did not take them: none was done.
                    Err(refusal) => refusal,
                };
                indexes.into_iter().map(|index| (index, Err(refusal.clone()))).collect()
            })
        });
        let parts = join_all(parts);
        async move { parts.await.into_iter().flatten().collect() }
    }

    /// Parts `entries` by the cores that own their keys; cores that own none are left out.
    fn by_core<E>(
        &self,
        entries: Vec<E>,
        hash: impl Fn(&E) -> placement::KeyHash,
    ) -> impl Iterator<Item = (usize, Vec<E>)> {
        let mut cores: Vec<Vec<E>> = self.ask.iter().map(|_| Vec::new()).collect();
        for entry in entries {
            cores[self.core_of(hash(&entry))].push(entry);
        }
        cores.into_iter().enumerate().filter(|(_, entries)| !entries.is_empty())
    }

    fn core_of(&self, hash: placement::KeyHash) -> usize {
        placement::core(hash, self.ask.len())
    }

    /// Sends a request, and waits for its reply.
    fn ask(self: &Rc<Self>, core: usize, request: Request) -> Result<Asking<T>, Refusal> {
        let mut tickets = self.tickets.borrow_mut();
        if tickets.len() >= MESH_TICKETS_MAX {
            return Err(Refusal::Limit(Limit::Tickets));
        }
        let place = tickets.vacant_entry();
        let number = place.key();
        let ticket = u16::try_from(number).expect("below MESH_TICKETS_MAX");
        let asker = u16::try_from(self.core).expect("below CORES_MAX");
        self.ask[core].try_send(Asked { asker, ticket, request }).map_err(|refused| match refused {
            Refused::Full(_) => Refusal::Limit(Limit::Requests),
            Refused::Gone(_) => Refusal::Stopped,
        })?;
        place.insert(Ticket::Waiting(None));
        self.shard.stats().forwarded += 1;
        Ok(Asking { shards: Rc::clone(self), ticket: Some(number) })
    }

    /// Serves other cores' requests and takes in the replies to our own, until it is dropped.
    ///
    /// No request waits for another: what cannot be answered at once waits beside the others.
    async fn run(
        self: Rc<Self>,
        mut requests: Receiver<Asked>,
        mut replies: Receiver<Answered>,
        answer: Vec<Sender<Answered>>,
    ) {
        let mut waiting = FuturesUnordered::new();
        let turn = |cx: &mut Context<'_>| {
            for _ in 0..MESSAGES_PER_TURN {
                let mut is_idle = true;
                if let Poll::Ready(Some(Answered { ticket, reply })) = replies.poll_recv(cx) {
                    self.deliver(ticket, reply);
                    is_idle = false;
                }
                if let Poll::Ready(Some(Asked { asker, ticket, request })) = requests.poll_recv(cx) {
                    match self.answer_at_once(request) {
                        Ok(reply) => send_reply(&answer, asker, Answered { ticket, reply }),
                        Err(request) => waiting.push(answer_later(Rc::clone(&self.shard), asker, ticket, request)),
                    }
                    is_idle = false;
                }
                if let Poll::Ready(Some((asker, answered))) = waiting.poll_next_unpin(cx) {
                    send_reply(&answer, asker, answered);
                    is_idle = false;
                }
                if is_idle {
                    return Poll::Pending;
                }
            }
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        };
        poll_fn(turn).await;
    }

    /// Answers what needs no waiting; what does comes back.
    fn answer_at_once(&self, request: Request) -> Result<Reply, Request> {
        match request {
            Request::Get { ref key, now } => match self.shard.get_from_memory(key.as_ref(), now) {
                Some(answer) => Ok(Reply::Get(answer)),
                None => Err(request),
            },
            Request::Put { .. } | Request::Delete { .. } | Request::GetMany(_) | Request::WriteMany(_) => Err(request),
        }
    }

    /// Gives a reply to whoever waits for it.
    fn deliver(&self, ticket: u16, reply: Reply) {
        let number = usize::from(ticket);
        let waker = {
            let mut tickets = self.tickets.borrow_mut();
            match tickets.get_mut(number) {
                Some(ticket @ Ticket::Waiting(_)) => match std::mem::replace(ticket, Ticket::Answered(reply)) {
                    Ticket::Waiting(waker) => waker,
                    Ticket::Answered(_) | Ticket::Abandoned => None,
                },
                Some(Ticket::Abandoned) => {
                    tickets.remove(number);
                    None
                }
                Some(Ticket::Answered(_)) | None => {
                    // Nobody can be told; who waits for it has the other one.
                    let _ = Fault::new("another core has answered a request twice");
                    None
                }
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

async fn answer_later<T: Tier + 'static>(
    shard: Rc<Shard<T>>,
    asker: u16,
    ticket: u16,
    request: Request,
) -> (u16, Answered) {
    let reply = match request {
        Request::Get { key, now } => Reply::Get(shard.get(key.as_ref(), now).await),
        Request::Put { key, write, now } => Reply::Put(shard.put(key, *write, now).await),
        Request::Delete { key, removal, now } => Reply::Delete(shard.delete(key, removal, now).await),
        Request::GetMany(mut reads) => {
            let found = reads.take_from_memory(&shard);
            Reply::GetMany(reads.run(shard, found).await)
        }
        Request::WriteMany(changes) => Reply::WriteMany(changes.run(shard).await),
    };
    (asker, Answered { ticket, reply })
}

fn send_reply(answer: &[Sender<Answered>], asker: u16, answered: Answered) {
    match answer[usize::from(asker)].try_send(answered) {
        // A core that has stopped waits for nothing.
        Ok(()) | Err(Refused::Gone(_)) => {}
        Err(Refused::Full(_)) => panic!("a core has more replies coming than it has tickets"),
    }
}

/// A request that was sent. Dropped, its reply will be thrown away.
struct Asking<T> {
    shards: Rc<Shards<T>>,
    /// `None` once it is answered.
    ticket: Option<usize>,
}

impl<T> Future for Asking<T> {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        let number = self.ticket.expect("polled after its answer");
        let reply = {
            let mut tickets = self.shards.tickets.borrow_mut();
            match &mut tickets[number] {
                Ticket::Waiting(waker) => {
                    *waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Ticket::Answered(_) => match tickets.remove(number) {
                    Ticket::Answered(reply) => reply,
                    Ticket::Waiting(_) | Ticket::Abandoned => unreachable!("it was answered a line ago"),
                },
                Ticket::Abandoned => unreachable!("only a caller that has gone abandons its ticket"),
            }
        };
        self.ticket = None;
        Poll::Ready(reply)
    }
}

impl<T> Drop for Asking<T> {
    fn drop(&mut self) {
        let Some(number) = self.ticket else { return };
        let mut tickets = self.shards.tickets.borrow_mut();
        match tickets[number] {
            Ticket::Waiting(_) => tickets[number] = Ticket::Abandoned,
            Ticket::Answered(_) => drop(tickets.remove(number)),
            Ticket::Abandoned => unreachable!("a caller goes once"),
        }
    }
}

impl<T> fmt::Debug for Shards<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shards(core {} of {}, {} tickets)", self.core, self.ask.len(), self.tickets.borrow().len())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use milena_net::fault;
    use milena_storage::object::Object;

    use super::*;
    use crate::shard::{ShardSettings, WriteMode};

    /// Core 0 of two, and the ends of a core 1 that makes mistakes.
    fn beside_a_confused_core() -> (Rc<Shards<Object>>, impl Future<Output = ()>, Ends) {
        let mut ends = mesh(2);
        let confused = ends.pop().unwrap();
        let settings = ShardSettings {
            core: 0,
            core_count: 2,
            memory_bytes: 1 << 20,
            entries_max: 0,
            believed_ms: None,
            absent_ms: 0,
            incarnation: 1,
            write_mode: WriteMode::Through,
        };
        let (shards, run) = Shards::new(ends.pop().unwrap(), Shard::new(settings, None));
        (shards, run, confused)
    }

    fn key_of_core_1() -> Key {
        let keys = (0..).map(|number| KeyRef::parse(b"b", format!("k{number}").as_bytes()).unwrap().to_key());
        keys.into_iter().find(|key: &Key| placement::core(key.hash(), 2) == 1).unwrap()
    }

    #[test]
    fn an_answer_to_another_question_is_an_internal_error_and_neither_a_hang_nor_an_end() {
        let (shards, run, mut confused) = beside_a_confused_core();
        let mut run = Box::pin(run);
        let before = fault::count();
        let mut get = Box::pin(shards.get(key_of_core_1().as_ref(), Timestamp(1)));
        assert!((&mut get).now_or_never().is_none());
        let Asked { ticket, .. } = confused.requests.recv().now_or_never().unwrap().unwrap();
        let answer = |reply| confused.answer[0].try_send(Answered { ticket, reply }).unwrap();
        answer(Reply::Delete(Ok(())));
        answer(Reply::Get(Ok(None)));
        assert!((&mut run).now_or_never().is_none());
        assert!(matches!(get.now_or_never(), Some(Err(Refusal::Fault(_)))));
        assert_eq!(fault::count(), before + 2, "the second answer has no ticket");
        assert!((&mut run).now_or_never().is_none(), "it serves on");
    }
}
