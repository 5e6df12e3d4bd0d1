//! Another number of cores than before: what the old logs hold moves to the logs of the cores that own it now. At the
//! start, before any core begins; blocks for as long as it takes to copy a log.
//!
//! ```text
//! NODE/log-000 log-001 ..      the logs in use: all old, or, where they are not in rehomed, all new
//!      rehoming/log-000 ..     new ones that are being filled (build.rs); of no use to anybody
//!      rehomed/log-000 ..      the same, complete and synced: the rename is the moment that counts
//!
//!   what is there                                                     the next step
//!   rehoming                                                          remove it
//!   rehomed, and in NODE a log in the place of one that is in it,
//!     or of a core that there is not any more                         remove that log
//!   rehomed, and a log in it                                          move the log to NODE
//!   rehomed, empty                                                    remove it
//!   in NODE logs of another number of cores                           build; rehoming becomes rehomed
//!   anything else                                                     none, open the logs
//! ```
//! The directories alone say what comes next, so a start after a crash goes on where the one before was. Each key is in
//! one old log and goes to one new one, and old and new are never in use together: no version comes back.
//!
//! Why copy, and not segments for each group of virtual shards: that would cost every write for the sake of a change
//! that an operator makes once.

mod build;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    ffi::CString,
    fmt, fs,
    fs::File,
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use milena_net::settings::Size;

use self::build::Old;
use super::{
    open::{LogSettings, OpenError, failed, superblock_in, take_lock},
    superblock::{Superblock, SuperblockError},
};
use crate::Timestamp;

/// What stays free of the filesystem while old logs and new ones are side by side, for everything else that is on it.
const SPARE_BYTES: u64 = 16 << 20;

/// What became of the records of the old logs, for one line to the operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rehomed {
    /// Cores before.
    pub old_count: u16,
    /// Cores now.
    pub new_count: u16,
    /// Records that the new logs have.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them that the store does not have.
    pub debts: u64,
    /// Records, the oldest, for which there was no room. The store has them.
    pub dropped: u64,
    /// Records that were not as they were written. The store has them.
    pub damaged: u64,
}

/// Why the old logs stay as they are, and the node does not start.
#[derive(Debug)]
pub enum RehomeError {
    /// A file cannot be made, read or written, a log is in use, or the new ones would be too small.
    Open(OpenError),
    /// What a log holds cannot be known.
    Superblock {
        /// Its directory.
        dir: PathBuf,
        /// Why.
        why: SuperblockError,
    },
    /// Two logs are not of one node: which is the newer one, nobody knows.
    Mixed {
        /// A log's directory.
        dir: PathBuf,
        /// Whose log it says it is.
        core: u16,
        /// Of how many.
        core_count: u16,
        /// Of how many the first log says that they are.
        first_count: u16,
    },
    /// Changes that the store does not have are not as they were written.
    Damaged {
        /// The log's directory.
        dir: PathBuf,
        /// Cores before.
        old_count: u16,
        /// Cores now.
        new_count: u16,
    },
    /// Changes that the store does not have find no room.
    NoRoom {
        /// Cores before.
        old_count: u16,
        /// Cores now.
        new_count: u16,
        /// All those changes.
        debts: u64,
        /// Bytes of their records.
        bytes: u64,
        /// Where there is none.
        lack: Lack,
    },
}

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The new logs are too small, or a record is larger than an eighth of their segments.
    Disk,
    /// The filesystem is too full to hold old and new side by side.
    Space,
}

/// Where the log of a core is.
#[must_use]
pub fn log_dir(node_dir: &Path, core: usize) -> PathBuf {
    node_dir.join(format!("log-{core:03}"))
}

/// Makes the logs in `node_dir` those of as many cores as `logs` has settings, one for each core, with the directories
/// that [`log_dir`] says. Records whose life has ended by `now` stay behind. `None` where nothing had to be copied.
///
/// # Errors
/// [`RehomeError`]; then nothing was changed, or the next start goes on.
pub fn rehome(node_dir: &Path, logs: &[LogSettings], now: Timestamp) -> Result<Option<Rehomed>, RehomeError> {
    let rehoming = Rehoming { node_dir, logs, now, space_bytes_max: u64::MAX };
    let mut rehomed = None;
    while let Some(step) = rehoming.next_step()? {
        rehomed = rehoming.perform(&step)?.or(rehomed);
    }
    Ok(rehomed)
}

struct Rehoming<'a> {
    node_dir: &'a Path,
    logs: &'a [LogSettings],
    now: Timestamp,
    /// Of the filesystem's free bytes, no more than these are used.
    space_bytes_max: u64,
}

/// One step, to be repeated as a whole where a crash cut it off.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Removes a directory, unless a process has it locked.
    Remove(PathBuf),
    Move {
        source: PathBuf,
        target: PathBuf,
    },
    /// Copies what is alive in these logs.
    Build(Vec<Old>),
}

impl Rehoming<'_> {
    fn unfinished(&self) -> PathBuf {
        self.node_dir.join("rehoming")
    }

    fn complete(&self) -> PathBuf {
        self.node_dir.join("rehomed")
    }

    /// What comes next, from what is there.
    fn next_step(&self) -> Result<Option<Step>, RehomeError> {
        let (unfinished, complete) = (self.unfinished(), self.complete());
        if is_there(&unfinished)? {
            return Ok(Some(Step::Remove(unfinished)));
        }
        if is_there(&complete)? { self.next_move(complete).map(Some) } else { self.next_build() }
    }

    fn next_move(&self, complete: PathBuf) -> Result<Step, RehomeError> {
        let new = logs_in(&complete)?;
        let Some((core, source)) = new.first_key_value() else { return Ok(Step::Remove(complete)) };
        let core_count = usize::from(superblock_of(source)?.core_count);
        let is_replaced = |core: &usize| *core >= core_count || new.contains_key(core);
        if let Some((_, old)) = logs_in(self.node_dir)?.into_iter().find(|(core, _)| is_replaced(core)) {
            return Ok(Step::Remove(old));
        }
        Ok(Step::Move { source: source.clone(), target: log_dir(self.node_dir, *core) })
    }

    fn next_build(&self) -> Result<Option<Step>, RehomeError> {
        let mut damaged = None;
        let mut found = Vec::new();
        for (core, dir) in logs_in(self.node_dir)? {
            match superblock_in(&dir).map_err(RehomeError::Open)? {
                Some(Ok(superblock)) => found.push((core, Old { dir, superblock })),
                Some(Err(why)) => damaged = Some(RehomeError::Superblock { dir, why }),
                None => {} // A start was cut off before there was a log.
            }
        }
        let is_of = |core: usize, superblock: &Superblock, core_count: usize| {
            (usize::from(superblock.core), usize::from(superblock.core_count)) == (core, core_count)
        };
        if found.iter().all(|(core, old)| is_of(*core, &old.superblock, self.logs.len())) {
            return Ok(None); // A damaged one begins empty, as it does at any start.
        }
        let first_count = found[0].1.superblock.core_count;
        let mixed = found.iter().find(|(core, old)| !is_of(*core, &old.superblock, usize::from(first_count)));
        if let Some((_, Old { dir, superblock: Superblock { core, core_count, .. } })) = mixed {
            let (dir, core, core_count) = (dir.clone(), *core, *core_count);
            return Err(RehomeError::Mixed { dir, core, core_count, first_count });
        }
        match damaged {
            Some(error) => Err(error),
            None => Ok(Some(Step::Build(found.into_iter().map(|(_, old)| old).collect()))),
        }
    }

    fn perform(&self, step: &Step) -> Result<Option<Rehomed>, RehomeError> {
        match step {
            Step::Remove(dir) => remove(dir).map(|()| None).map_err(RehomeError::Open),
            Step::Move { source, target } => move_to(source, target).map(|()| None).map_err(RehomeError::Open),
            Step::Build(old) => self.build(old).map(Some),
        }
    }

    fn build(&self, old: &[Old]) -> Result<Rehomed, RehomeError> {
        let unfinished = self.unfinished();
        let free_bytes =
            free_bytes(self.node_dir).map_err(failed(self.node_dir, "look at")).map_err(RehomeError::Open)?;
        let space_bytes = free_bytes.saturating_sub(SPARE_BYTES).min(self.space_bytes_max);
        let built = build::build(&unfinished, old, self.logs, space_bytes, self.now);
        if built.is_err() {
            // Only to give its space back at once: the next start removes it as well.
            let _ = fs::remove_dir_all(&unfinished);
        }
        let rehomed = built?;
        move_to(&unfinished, &self.complete()).map_err(RehomeError::Open)?;
        Ok(rehomed)
    }
}

/// The directories of the logs that the next start would use, were it with the number of cores that they are of.
pub(super) fn logs_in_use(node_dir: &Path) -> Result<Vec<PathBuf>, RehomeError> {
    let mut logs = logs_in(node_dir)?;
    let complete = node_dir.join("rehomed");
    if is_there(&complete)? {
        let new = logs_in(&complete)?;
        if let Some(first) = new.values().next() {
            let core_count = usize::from(superblock_of(first)?.core_count);
            logs.retain(|core, _| *core < core_count);
            logs.extend(new);
        }
    }
    Ok(logs.into_values().collect())
}

/// The directories of logs in `dir`, by their cores.
fn logs_in(dir: &Path) -> Result<BTreeMap<usize, PathBuf>, RehomeError> {
    let list = || -> io::Result<BTreeMap<usize, PathBuf>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let core = name.strip_prefix("log-").and_then(|digits| digits.parse().ok());
            if let Some(core) = core.filter(|&core| log_dir(dir, core) == path) {
                found.insert(core, path);
            }
        }
        Ok(found)
    };
    list().map_err(failed(dir, "list")).map_err(RehomeError::Open)
}

/// The superblock of a log that has one.
fn superblock_of(dir: &Path) -> Result<Superblock, RehomeError> {
    match superblock_in(dir).map_err(RehomeError::Open)? {
        Some(Ok(superblock)) => Ok(superblock),
        Some(Err(why)) => Err(RehomeError::Superblock { dir: dir.to_owned(), why }),
        None => Err(RehomeError::Superblock { dir: dir.to_owned(), why: SuperblockError::Damaged }),
    }
}

fn is_there(path: &Path) -> Result<bool, RehomeError> {
    path.try_exists().map_err(failed(path, "look at")).map_err(RehomeError::Open)
}

fn remove(dir: &Path) -> Result<(), OpenError> {
    let _lock = take_lock(dir)?;
    fs::remove_dir_all(dir).map_err(failed(dir, "remove"))?;
    sync_parent(dir)
}

fn move_to(source: &Path, target: &Path) -> Result<(), OpenError> {
    fs::rename(source, target).map_err(failed(source, "move"))?;
    sync_parent(target)?;
    if source.parent() == target.parent() { Ok(()) } else { sync_parent(source) }
}

fn sync_parent(path: &Path) -> Result<(), OpenError> {
    let parent = path.parent().expect("it is in a node's directory");
    sync_dir(parent)
}

fn sync_dir(dir: &Path) -> Result<(), OpenError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir, "sync"))
}

/// Bytes of the filesystem of `dir` that this process may still use.
fn free_bytes(dir: &Path) -> io::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: all zeros are figures.
    let mut figures: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a path that ends with a zero, and figures to be filled in.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut figures) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(figures.f_bavail.saturating_mul(figures.f_frsize))
}

/// A number of cores, as in a sentence.
struct CoreCount(u16);

impl fmt::Display for CoreCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} core{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

impl fmt::Display for Rehomed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { old_count, new_count, records, bytes, debts, dropped, damaged } = *self;
        write!(f, "from {} to {new_count}: {records} records ({}) taken over", CoreCount(old_count), Size(bytes))?;
        write!(f, ", {debts} of them not in the store yet; {dropped} dropped for want of room, {damaged} damaged")
    }
}

impl fmt::Display for RehomeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) => error.fmt(f),
            Self::Superblock { dir, why } => write!(
                f,
                "cannot move the logs to another number of cores: {}: {why}; nothing was changed; start with the former \
                 CORES, or remove that directory",
                dir.display()
            ),
            Self::Mixed { dir, core, core_count, first_count } => write!(
                f,
                "cannot tell which logs are the newer ones: {} belongs to core {core} of {core_count}, and the first one \
                 to a node with {}; nothing was changed; remove the older ones",
                dir.display(),
                CoreCount(*first_count)
            ),
            Self::Damaged { dir, old_count, new_count } => write!(
                f,
                "cannot go from {} to {new_count}: a write in {} that the store does not have is damaged; nothing was \
                 changed; start with CORES={old_count}, or remove that directory, which loses all such writes in it",
                CoreCount(*old_count),
                dir.display()
            ),
            Self::NoRoom { old_count, new_count, debts, bytes, lack } => {
                let (place, way_out) = match lack {
                    Lack::Disk => ("DISK", "raise DISK"),
                    Lack::Space => ("the filesystem, beside the old logs", "free some space"),
                };
                write!(
                    f,
                    "cannot go from {} to {new_count}: {debts} writes ({}) that the store does not have find no room in \
                     {place}; nothing was changed; start with CORES={old_count} until they are uploaded, or {way_out}",
                    CoreCount(*old_count),
                    Size(*bytes)
                )
            }
        }
    }
}

impl std::error::Error for RehomeError {}
