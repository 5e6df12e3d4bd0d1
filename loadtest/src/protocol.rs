//! What a target is asked and what it answers, whatever it speaks.
//!
//! ```text
//!   Request ──▶ Connection ─┬─ grpc                      http://…        a node or a router of ours, over HTTP/2
//!                           └─ pipeline ─┬─ resp         redis://…       answers in order
//!   Answer  ◀──                          └─ memcached    memcached://…   answers in order
//! ```
//! One connection serves the streams of one core. All three are driven by the same streams with the same clock reads, so
//! that what differs between two targets is the target.

use std::{borrow::Cow, fmt, time::Instant};

use bytes::Bytes;
use milena_net::stream::ReadBuffer;
use smallvec::SmallVec;

use self::pipeline::Dialect;
use crate::{
    target::{Scheme, Target},
    workload::Name,
};

pub mod grpc;
mod memcached;
pub mod pipeline;
mod resp;

/// What is asked of all entries of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Read.
    Get,
    /// Write.
    Put,
    /// Remove.
    Delete,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub verb: Verb,
    /// With which keys; one, or a batch.
    pub entries: SmallVec<[Entry; 1]>,
}

/// One key of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub name: Name,
    /// For [`Verb::Put`].
    pub value: Bytes,
    /// For [`Verb::Put`]; milliseconds, 0 = for ever.
    pub ttl_ms: u64,
}

/// What became of each entry of a call that was answered, in their order.
pub type Answer = SmallVec<[Outcome; 1]>;

/// What became of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Read.
    Hit {
        /// Which tier had it.
        tier: ServedBy,
        /// The value.
        value: Bytes,
    },
    /// There is none.
    Miss,
    /// Written or removed.
    Done,
    /// This entry of a batch failed, with this status.
    Failed(Cow<'static, str>),
}

/// The tier that answered a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServedBy {
    /// The server does not say.
    Unspecified,
    /// Memory.
    Memory,
    /// The log on disk.
    Disk,
    /// The store.
    S3,
}

impl ServedBy {
    /// All of them, by their index.
    pub const ALL: [Self; 4] = [Self::Unspecified, Self::Memory, Self::Disk, Self::S3];

    /// As in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::S3 => "s3",
        }
    }
}

/// A call that failed as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its kind, such as `UNAVAILABLE`; few of them, to be counted by.
    pub status: Cow<'static, str>,
    /// In words.
    pub text: String,
    /// Whether it is certain that nothing was done.
    pub is_undone: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.text)
    }
}

/// A connection to the target.
#[derive(Debug)]
pub enum Connection {
    /// To a node or a router of ours.
    Grpc(grpc::Link),
    /// To Redis or memcached.
    Pipeline(pipeline::Link),
}

impl Connection {
    /// Connects, and finds out who answers there.
    ///
    /// # Errors
    /// Nobody answers, or somebody else.
    pub async fn open(target: &Target, bucket: &str, buffer: &ReadBuffer, deadline: Instant) -> Result<Self, Failure> {
        match target.scheme {
            Scheme::Http => grpc::Link::open(&target.text, bucket, buffer, deadline).await.map(Self::Grpc),
            Scheme::Redis => pipeline::Link::open(target, Dialect::Redis, deadline).await.map(Self::Pipeline),
            Scheme::Memcached => pipeline::Link::open(target, Dialect::Memcached, deadline).await.map(Self::Pipeline),
        }
    }

    /// Who answers there, as results call it.
    #[must_use]
    pub fn protocol(&self) -> &'static str {
        match self {
            Self::Grpc(link) => link.protocol(),
            Self::Pipeline(link) => link.protocol(),
        }
    }

    /// Sends `request` now and waits for its answer.
    ///
    /// # Errors
    /// [`Failure`], also when there is no answer at `deadline`.
    pub async fn call(&self, request: &Request, deadline: Instant) -> Result<Answer, Failure> {
        match self {
            Self::Grpc(link) => link.call(request, deadline).await,
            Self::Pipeline(link) => link.call(request, deadline).await,
        }
    }
}
