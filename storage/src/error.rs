//! What can go wrong below memory: who failed at what, why, and whether trying again may help.

use std::{fmt, sync::Arc};

/// What was attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Reading an entry.
    Get,
    /// Writing an entry.
    Put,
    /// Removing an entry.
    Delete,
}

/// A tier below memory failed. `Clone`, because several callers may share one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What was attempted.
    pub operation: Operation,
    /// Why it failed.
    pub cause: Cause,
}

/// Why an operation on a tier failed. Texts are for operators and already name store, bucket and code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The store cannot be reached, or answered with faults until the retries were used up. For a write: certainly not done.
    Unavailable(Arc<str>),
    /// A write was sent and its answer is not known: it may have happened, now or later.
    OutcomeUnknown(Arc<str>),
    /// The store refuses these credentials this operation (HTTP 403).
    PermissionDenied(Arc<str>),
    /// The store is not set up for this: no such bucket, no credentials, a redirect to another region.
    Misconfigured(Arc<str>),
    /// `if_version` does not hold, nothing was written.
    VersionMismatch,
    /// `if_absent` does not hold, nothing was written.
    AlreadyExists,
    /// Too many requests are waiting for a helper thread.
    Busy,
    /// What was read is not what was written: length or checksum are off.
    Corrupt(Arc<str>),
}

impl Error {
    /// Whether the same operation may succeed a moment later without anybody's doing.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.cause, Cause::Unavailable(_) | Cause::Busy)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Delete => "delete",
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Unavailable(text) | Cause::PermissionDenied(text) | Cause::Misconfigured(text) => f.write_str(text),
            Cause::OutcomeUnknown(text) => write!(f, "outcome unknown: {text}"),
            Cause::VersionMismatch => f.write_str("the current version is another one"),
            Cause::AlreadyExists => f.write_str("there is a value already"),
            Cause::Busy => f.write_str("too many requests are waiting for the store"),
            Cause::Corrupt(text) => write!(f, "what the store returned is damaged: {text}"),
        }
    }
}

impl std::error::Error for Error {}
