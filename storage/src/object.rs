//! The bottom tier, which is the truth: an entry as an object in S3, or as a file in a directory.
//!
//! ```text
//!   core 0: Object ──job──┐                 ┌─ read threads  ─┐
//!   core 1: Object ──job──┼─ bounded queues ┼─ write threads ─┼─ dyn Store ─┬ S3         rusty-s3 signs, ureq asks
//!      ▲                  │                 └─ background    ─┘             └ Directory  file, fsync, rename
//!      └──── answers, through the mailbox of the core that asked ◀──┘
//! ```
//! A core never waits for a store: it hands a job to a helper thread, and its own task of answers ([`Answers::run`])
//! completes the future when the answer is in the mailbox. A full queue is answered with [`Cause::Busy`] at once.
//!
//! [`Store`] itself blocks. The router uses it directly for its document, from a plain thread.

use std::{fmt, sync::Arc};

use milena_proto::key::Key;

use crate::{Cause, Condition, Entry, Error, Found, Operation, Put, Timestamp, Version};

pub mod asker;
mod authorities;
pub mod config;
pub mod directory;
pub mod flags;
pub mod front;
pub mod name;
pub mod pool;
pub mod retry;
pub mod s3;

pub use asker::{Asked, Asker, Request};
pub use config::{StoreConfig, StoreConfigError, StoreSettings};
pub use flags::{S3Flags, Secret};
pub use front::{Answers, Counters, Object};
pub use pool::{PoolSizes, Pools};

/// A place where entries are kept for good. Every method blocks, for at most as long as its implementation says.
///
/// What each method promises is the same for every store, and one test suite asks all of them.
pub trait Store: Send + Sync + fmt::Debug {
    /// Reads `key`; with `known`, only if its version is another one by now.
    ///
    /// # Errors
    /// When the store could not be asked, refused, or sent something damaged.
    fn get(&self, key: &Key, known: Option<&Version>, now: Timestamp, asker: &mut Asker) -> Result<Found, Error>;

    /// Writes a value under `key` if its condition holds, and returns its version. A value whose life has ended counts as
    /// absent for [`Condition::IfAbsent`], and may still be replaced by who knows its version.
    ///
    /// # Errors
    /// As [`Store::get`]; besides, the condition does not hold, or the outcome is unknown. A store without conditional
    /// writes answers every condition with [`Cause::Misconfigured`]; it never overwrites in silence.
    fn put(&self, key: &Key, put: &Put, asker: &mut Asker) -> Result<Version, Error>;

    /// Removes `key` if `condition` holds. Removing what is not there is no error.
    ///
    /// # Errors
    /// As [`Store::put`].
    fn delete(&self, key: &Key, condition: &Condition, asker: &mut Asker) -> Result<(), Error>;

    /// Reads a document: an entry outside all buckets, for the router's own state.
    ///
    /// # Errors
    /// As [`Store::get`].
    ///
    /// # Panics
    /// When `name` is not [a document's name](is_document_name).
    fn get_document(&self, name: &str, asker: &mut Asker) -> Result<Option<Entry>, Error>;

    /// Writes a document if its condition holds, and returns its version: compare-and-set.
    ///
    /// # Errors
    /// As [`Store::put`].
    ///
    /// # Panics
    /// When `name` is not [a document's name](is_document_name).
    fn put_document(&self, name: &str, put: &Put, asker: &mut Asker) -> Result<Version, Error>;

    /// Asks the store whether it can be written to and which conditions it honours: at start, and by itself before the
    /// first condition. Costs up to seven requests; once it is known, none.
    ///
    /// # Errors
    /// When the store could not be asked or refused. Nothing is remembered then.
    fn probe(&self, asker: &mut Asker) -> Result<Abilities, Error>;
}

/// Which conditions a store honours. One that does not overwrites what the condition should have protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// `If-Match` and `If-None-Match: *` on a PUT.
    pub conditional_puts: bool,
    /// `If-Match` on a DELETE.
    pub conditional_deletes: bool,
}

/// Opens the store that the settings name; `None` for [`StoreConfig::None`].
///
/// A directory is made and tried here; S3 is not asked, so that a node starts while S3 is down.
///
/// # Errors
/// [`Cause::Misconfigured`] with the reason: a directory that cannot be written to, a file of authorities that is none.
pub fn open(config: &StoreConfig) -> Result<Option<Arc<dyn Store>>, Error> {
    Ok(match config {
        StoreConfig::None => None,
        StoreConfig::Directory(path) => Some(Arc::new(directory::Directory::open(path)?)),
        StoreConfig::S3(s3) => Some(Arc::new(s3::S3::open((**s3).clone())?)),
    })
}

/// Whether `name` can name a document: 1 to 100 characters of `[a-z0-9.-]`, the first of `[a-z0-9]`.
#[must_use]
pub fn is_document_name(name: &str) -> bool {
    let is_legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=100).contains(&name.len())
        && name.bytes().all(|byte| is_legal(byte) || b".-".contains(&byte))
        && is_legal(name.as_bytes()[0])
}

impl Operation {
    /// An error of this operation.
    #[must_use]
    pub fn failed(self, cause: Cause) -> Error {
        Error { operation: self, cause }
    }
}
