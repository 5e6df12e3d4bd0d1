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

/// What is to be written, and under which condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The value.
    pub value: Bytes,
    /// When its life ends; `None` = never.
    pub expires: Option<Timestamp>,
    /// What must hold for it to be written.
    pub condition: Condition,
}

impl Put {
    /// A value without an end, if `condition` holds.
    #[must_use]
    pub fn new(value: impl Into<Bytes>, condition: Condition) -> Self {
        Self { value: value.into(), expires: None, condition }
    }
}

impl Found {
    /// The entry, where there is one that the caller does not have.
    #[must_use]
    pub fn into_entry(self) -> Option<Entry> {
        match self {
            Self::Entry(entry) => Some(entry),
            Self::Unchanged | Self::Absent => None,
        }
    }
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

    /// Writes a value under `key` if its condition holds, and answers the version it got.
    fn put(&self, key: &Key, put: Put) -> impl Future<Output = Result<Version, Error>> + 'static;

    /// Removes `key` if `condition` holds. Removing what is not there is no error.
    fn delete(&self, key: &Key, condition: Condition) -> impl Future<Output = Result<(), Error>> + 'static;
}
