//! What every tier below memory can do. The object store and the tests' scripted tier implement it; memory does not,
//! because it never waits and cannot fail.

use std::future::Future;

use bytes::Bytes;
use milena_proto::key::Key;

use crate::{Entry, Error, Timestamp, Version};

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The entry.
    Entry(Entry),
    /// The version the caller named is still the current one; its bytes were not sent again.
    Unchanged,
    /// Nothing, or a value whose life has ended.
    Absent,
}

/// What must hold for a write to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    Always,
    /// This is the current version.
    IfVersion(Version),
    /// There is no value.
    IfAbsent,
}

/// A tier below memory. A future that is dropped stops what only it wanted; a write that was sent may still happen.
pub trait Tier {
    /// Reads `key`; with `known`, only if its version is another one by now.
    ///
    /// `now` decides whether a value's life has ended: such a value is [`Found::Absent`].
    fn get(
        &self,
        key: &Key,
        known: Option<&Version>,
        now: Timestamp,
    ) -> impl Future<Output = Result<Found, Error>> + 'static;

    /// Writes `value` under `key` if `condition` holds, and answers the version it got.
    fn put(
        &self,
        key: &Key,
        value: Bytes,
        expires: Option<Timestamp>,
        condition: Condition,
    ) -> impl Future<Output = Result<Version, Error>> + 'static;

    /// Removes `key` if `condition` holds. Removing what is not there is no error.
    fn delete(&self, key: &Key, condition: Condition) -> impl Future<Output = Result<(), Error>> + 'static;
}
