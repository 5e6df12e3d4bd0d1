//! Writes without a store: memory is the truth, and the log where there is one.
//!
//! ```text
//!   put ── the key's turn ── condition ── log, if there is one ── memory ──▶ answer; ack=DISK: once the log has synced it
//!                                          └ not kept: what it had is forgotten, so that it never answers with less
//! ```
//! Without a log nothing waits, and a key needs no turn.

use std::rc::Rc;

use milena_proto::{
    cache_server::Ack,
    key::{Key, KeyRef},
};
use milena_storage::{
    Condition, Entry, Operation, Tier, Timestamp, Version,
    log::{Disk, Log, LogError},
    memory::Lookup,
};

use super::{Limit, Refusal, Shard, Write, check_condition};

impl<T: Tier + 'static> Shard<T> {
    pub(super) async fn put_alone(&self, key: &Key, write: Write, now: Timestamp) -> Result<Version, Refusal> {
        self.check_size(&write)?;
        let Some(log) = &self.log else { return self.put_in_memory(key.as_ref(), write, now) };
        let turn = self.inflight.begin_write(key).map_err(Refusal::Limit)?.await;
        self.check_alone(log, key, &write.condition, Operation::Put, now).await?;

        let Write { value, expires, ack, .. } = write;
        let entry = Entry { value, version: self.own_version(), expires };
        let logged = Rc::clone(log).put(key.clone(), entry.clone(), None, now).await;
        if let Err(error) = logged {
            forget_or_refuse(log, key, ack, error)?;
        }
        let is_in_memory = self.memory.borrow_mut().insert(key.as_ref(), &entry, None, now);
        drop(turn);
        match logged {
            Ok(position) if ack == Ack::Disk => self.durable(log, position).await?,
            Err(_) if !is_in_memory && !entry.is_expired(now) => return Err(Refusal::Limit(Limit::Memory)),
            Ok(_) | Err(_) => {}
        }
        Ok(entry.version)
    }

    pub(super) async fn delete_alone(
        &self,
        key: &Key,
        condition: Condition,
        ack: Ack,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let Some(log) = &self.log else { return self.delete_in_memory(key.as_ref(), &condition, now) };
        let turn = self.inflight.begin_write(key).map_err(Refusal::Limit)?.await;
        self.check_alone(log, key, &condition, Operation::Delete, now).await?;
        let logged = Rc::clone(log).delete(key.clone(), now).await;
        if let Err(error) = logged {
            forget_or_refuse(log, key, ack, error)?;
        }
        self.memory.borrow_mut().remove(key.as_ref());
        drop(turn);
        match logged {
            Ok(position) if ack == Ack::Disk => self.durable(log, position).await,
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// What neither memory nor the log would take is refused before anything has changed.
    fn check_size(&self, write: &Write) -> Result<(), Refusal> {
        let in_memory = self.memory.borrow().value_bytes_max();
        let in_log = self.log.as_ref().map(|log| log.value_bytes_max());
        let bytes_max = match (write.ack, in_log) {
            (Ack::Disk, Some(in_log)) => in_log,
            (_, in_log) => in_memory.max(in_log.unwrap_or(0)),
        };
        let bytes = write.value.len();
        if bytes > bytes_max { Err(Refusal::ValueTooLarge { bytes, bytes_max }) } else { Ok(()) }
    }

    async fn check_alone(
        &self,
        log: &Rc<Log<Disk>>,
        key: &Key,
        condition: &Condition,
        operation: Operation,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        if *condition == Condition::Always {
            return Ok(());
        }
        let in_memory = self.version_in_memory(key.as_ref(), now);
        let found = match in_memory {
            Some(version) => Some(version),
            None => Rc::clone(log).get(key.clone(), now).await.into_copy().map(|copy| copy.entry.version),
        };
        check_condition(found.as_ref(), condition, operation)
    }

    fn put_in_memory(&self, key: KeyRef<'_>, write: Write, now: Timestamp) -> Result<Version, Refusal> {
        check_condition(self.version_in_memory(key, now).as_ref(), &write.condition, Operation::Put)?;
        let entry = Entry { value: write.value, version: self.own_version(), expires: write.expires };
        if !self.memory.borrow_mut().insert(key, &entry, None, now) && !entry.is_expired(now) {
            return Err(Refusal::Limit(Limit::Memory));
        }
        Ok(entry.version)
    }

    fn delete_in_memory(&self, key: KeyRef<'_>, condition: &Condition, now: Timestamp) -> Result<(), Refusal> {
        check_condition(self.version_in_memory(key, now).as_ref(), condition, Operation::Delete)?;
        self.memory.borrow_mut().remove(key);
        Ok(())
    }

    /// The version that memory has, believed or not: without a store there is no newer one.
    fn version_in_memory(&self, key: KeyRef<'_>, now: Timestamp) -> Option<Version> {
        match self.memory.borrow_mut().get(key, now) {
            Lookup::Hit(entry) | Lookup::Stale(entry) => Some(entry.version),
            Lookup::Miss => None,
        }
    }
}

/// The log has not taken a change: what it has of the key is older and must go, unless the caller wants the change on disk
/// or not at all.
fn forget_or_refuse(log: &Rc<Log<Disk>>, key: &Key, ack: Ack, error: LogError) -> Result<(), Refusal> {
    match error {
        LogError::Full if ack == Ack::Disk => Err(Refusal::Limit(Limit::Log)),
        LogError::Offline if ack == Ack::Disk => Err(Refusal::DiskFailed { is_unknown: false }),
        _ => {
            log.forget(key.as_ref());
            Ok(())
        }
    }
}
