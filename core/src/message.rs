//! What one core asks of another, and what it hears. Owned or immutable throughout, so it may change threads.
//!
//! ```text
//!   asking core ── Asked { ticket, request } ──▶ requests of the owning core     full: refused at once
//!               ◀── Answered { ticket, reply } ── replies of the asking core     as many places as tickets: never full
//! ```

use milena_net::mesh::{Receiver, Sender, mailbox};
use milena_proto::key::Key;
use milena_storage::Timestamp;

use crate::{
    batch::{Changed, Changes, Failure, Found, Reads},
    shard::{Answer, Removal, Removed, Write, Written},
};

/// Requests of one core that wait for others' answers.
pub const MESH_TICKETS_MAX: usize = 1024;

/// Requests that wait in a core's mailbox, from all others together.
pub const MESH_REQUESTS_MAX: usize = 1024;

/// What one core asks of another.
#[derive(Debug)]
pub(crate) enum Request {
    Get { key: Key, now: Timestamp },
    Put { key: Key, write: Box<Write>, now: Timestamp },
    Delete { key: Key, removal: Removal, now: Timestamp },
    GetMany(Reads),
    WriteMany(Changes),
}

/// The answer to the request with the same ticket.
#[derive(Debug)]
pub(crate) enum Reply {
    Get(Answer),
    Put(Written),
    Delete(Removed),
    GetMany(Result<Found, Failure>),
    WriteMany(Vec<(usize, Changed)>),
}

const _: () = assert!(size_of::<Asked>() <= 128, "a message is two cache lines, not a value");
const _: () = assert!(size_of::<Answered>() <= 128);

/// A request on its way from core `asker`.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) asker: u16,
    pub(crate) ticket: u16,
    pub(crate) request: Request,
}

/// A reply on its way back.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) ticket: u16,
    pub(crate) reply: Reply,
}

const _: () = assert!(MESH_TICKETS_MAX <= 1 << 16);
const _: () = assert!(milena_proto::limits::CORES_MAX < 1 << 16);

/// One core's ends of all mailboxes. Made before the cores start; moves to its core.
#[derive(Debug)]
pub struct Ends {
    pub(crate) core: usize,
    pub(crate) requests: Receiver<Asked>,
    pub(crate) replies: Receiver<Answered>,
    /// To each core, our own included.
    pub(crate) ask: Vec<Sender<Asked>>,
    /// To each core, our own included.
    pub(crate) answer: Vec<Sender<Answered>>,
}

/// Makes the mailboxes between `core_count` cores: the ends of each core.
#[must_use]
pub fn mesh(core_count: usize) -> Vec<Ends> {
    let (ask, requests): (Vec<_>, Vec<_>) = (0..core_count).map(|_| mailbox(MESH_REQUESTS_MAX)).unzip();
    let (answer, replies): (Vec<_>, Vec<_>) = (0..core_count).map(|_| mailbox(MESH_TICKETS_MAX)).unzip();
    let ends = requests.into_iter().zip(replies).enumerate();
    let ends = ends.map(|(core, (requests, replies))| Ends {
        core,
        requests,
        replies,
        ask: ask.clone(),
        answer: answer.clone(),
    });
    ends.collect()
}
