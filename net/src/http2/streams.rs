//! The table of streams that are open, with what each of them still has to send.
//!
//! ```text
//!                 HEADERS                    END_STREAM received            END_STREAM sent
//!   idle ───────────────────────▶ open ───────────────────────▶ half-closed ───────────────▶ closed: not in the table
//!                                                                (or the other way round, or a reset at any time)
//! ```
//! (RFC 9113, section 5.1, without the states of server push.) A number above the highest one seen is idle, one that
//! is not in the table is closed.

use std::{collections::VecDeque, ops::Range};

use ahash::AHashMap;
use bytes::Bytes;
use http::HeaderMap;
use slab::Slab;

use super::{
    flow::{ReceiveWindow, SendWindow},
    limits::RESET_STREAMS_REMEMBERED,
};

/// Names a stream of one connection. Numbers are never used twice, so a key outlives its stream without harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamKey {
    pub(crate) id: u32,
    index: usize,
}

/// How a stream ends.
#[derive(Debug)]
pub(crate) enum Ending {
    /// gRPC's trailers for a call that succeeded.
    Ok,
    /// These trailers.
    Trailers(HeaderMap),
    /// END_STREAM on the last DATA frame.
    Data,
}

/// What a stream has to send and could not yet: parts of messages, and then how it ends.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    pub(crate) parts: VecDeque<Bytes>,
    pub(crate) bytes: usize,
    pub(crate) ending: Option<Ending>,
    /// Whether the stream stands in the connection's queue of streams that have something to send.
    pub(crate) is_queued: bool,
}

#[derive(Debug)]
pub(crate) struct Stream<T> {
    pub(crate) id: u32,
    pub(crate) receive: ReceiveWindow,
    pub(crate) send: SendWindow,
    /// The peer has sent END_STREAM.
    pub(crate) is_remote_done: bool,
    /// The head of a response has come (client role): a second one is trailers.
    pub(crate) has_head: bool,
    /// Bytes of DATA still due by content-length, if the peer named one.
    pub(crate) due_bytes: Option<u64>,
    pub(crate) backlog: Backlog,
    pub(crate) attachment: Option<T>,
}

#[derive(Debug)]
pub(crate) struct Streams<T> {
    slab: Slab<Stream<T>>,
    index_by_id: AHashMap<u32, usize>,
    /// The highest number that was ever opened by the side that opens streams here.
    pub(crate) highest_id: u32,
    /// The numbers that were left out the last time some were.
    passed_over: Range<u32>,
    reset_ids: VecDeque<u32>,
}

impl<T> Streams<T> {
    pub(crate) fn new() -> Self {
        Self {
            slab: Slab::new(),
            index_by_id: AHashMap::new(),
            highest_id: 0,
            passed_over: 0..0,
            reset_ids: VecDeque::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn insert(&mut self, stream: Stream<T>) -> StreamKey {
        let id = stream.id;
        self.pass_to(id);
        let index = self.slab.insert(stream);
        self.index_by_id.insert(id, index);
        StreamKey { id, index }
    }

    /// Counts `id` among the numbers that were used.
    pub(crate) fn pass_to(&mut self, id: u32) {
        assert!(id > self.highest_id, "numbers only grow");
        if id > self.highest_id + 2 {
            self.passed_over = self.highest_id + 1..id;
        }
        self.highest_id = id;
    }

    /// Whether a stream of this number was never opened although one of a higher number was. Only the last gap is
    /// remembered: it is a matter of naming a fault.
    pub(crate) fn was_passed_over(&self, id: u32) -> bool {
        self.passed_over.contains(&id)
    }

    pub(crate) fn key(&self, id: u32) -> Option<StreamKey> {
        self.index_by_id.get(&id).map(|&index| StreamKey { id, index })
    }

    pub(crate) fn get(&self, key: StreamKey) -> Option<&Stream<T>> {
        self.slab.get(key.index).filter(|stream| stream.id == key.id)
    }

    pub(crate) fn get_mut(&mut self, key: StreamKey) -> Option<&mut Stream<T>> {
        self.slab.get_mut(key.index).filter(|stream| stream.id == key.id)
    }

    pub(crate) fn remove(&mut self, key: StreamKey) -> Option<Stream<T>> {
        self.get(key)?;
        self.index_by_id.remove(&key.id);
        Some(self.slab.remove(key.index))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = StreamKey> {
        self.slab.iter().map(|(index, stream)| StreamKey { id: stream.id, index })
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream<T>> {
        self.slab.iter_mut().map(|(_, stream)| stream)
    }

    /// Whether this number has not been used yet. Even ones, which only a server that pushes would use, never are.
    pub(crate) fn is_idle(&self, id: u32) -> bool {
        id > self.highest_id || id.is_multiple_of(2)
    }

    /// Remembers that we have reset `id`, so that frames which crossed with the reset are no fault.
    pub(crate) fn remember_reset(&mut self, id: u32) {
        if self.reset_ids.len() == RESET_STREAMS_REMEMBERED {
            self.reset_ids.pop_front();
        }
        self.reset_ids.push_back(id);
    }

    pub(crate) fn was_reset(&self, id: u32) -> bool {
        self.reset_ids.contains(&id)
    }
}
