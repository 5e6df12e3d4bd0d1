//! Entries as files in a directory: what runs where there is no S3. Several processes may share one directory.
//!
//! ```text
//!   {dir}/default/greeting       an entry: 40 bytes of header, then the value       (names: see name.rs)
//!   {dir}/.documents/topology    what belongs to no bucket
//!   {dir}/.writing/{32 hex}      not yet in its place
//!   {dir}/.locks/{2 hex}         one lock for each 64th of the keys; {dir}/.locks/all says that a process is here
//!
//!   a file, little-endian; `expires_ms` since the Unix epoch, 0 = never
//!   0       8          12            16           24        40
//!   ├ magic ┼ checksum ┼ value_bytes ┼ expires_ms ┼ version ┼ value ┤
//! ```
//! `checksum` is CRC-32C (RFC 3720, section 12.1) over every byte that follows it.
//!
//! A write fills a new file and syncs it; then, under the key's lock, looks whether its condition holds, renames the
//! file into its place and syncs the folder. Locks are `flock`s, which end with the process that holds them, so a crash
//! between any two steps leaves the old value or the new one, and perhaps a file in `.writing`, which the next process
//! that is alone in the directory removes. A reader takes no lock: it sees one whole file or the other.
//!
//! There is no limit on how long a call takes beyond the file system's own.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{BufMut as _, Bytes};
use milena_proto::{key::Key, limits};

use super::{Abilities, Asker, Store, is_document_name, name};
use crate::{Cause, Condition, Entry, Error, Found, Operation, Put, Timestamp, Version};

const MAGIC: [u8; 8] = *b"milena1\n";
const HEADER_BYTES: usize = 40;
const CHECKSUM_END: usize = 12;

/// Locks for all keys: so many writers never wait for a stranger, nearly always.
const LOCKS: u64 = 64;

const DOCUMENTS: &str = ".documents";
const WRITING: &str = ".writing";
const LOCK_FILES: &str = ".locks";

// The length is a 32-bit number. Bytes of a key become three, with a folder for every 200 of them.
const _: () = assert!(limits::VALUE_BYTES_MAX <= u32::MAX as usize);

/// A directory that is a store.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    /// Held as long as this lives: others must not tidy up what we are writing.
    _presence: File,
}

/// The header of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    checksum: u32,
    value_bytes: u32,
    expires_ms: u64,
    version: [u8; 16],
}

/// A file in `.writing`, removed unless it has been renamed into its place.
struct NewFile {
    path: PathBuf,
    is_in_place: bool,
}

impl Directory {
    /// Opens `root` and makes it when it is not there; removes what a crash left behind when nobody else is using it.
    ///
    /// # Errors
    /// [`Cause::Misconfigured`] when it cannot be written to.
    pub fn open(root: &Path) -> Result<Self, Error> {
        Self::try_open(root).map_err(|(path, error)| {
            Operation::Put.failed(Cause::Misconfigured(Arc::from(format!(
                "store file://{}: cannot write to {}: {error}; hint: does the directory belong to the user that runs this?",
                root.display(),
                path.display(),
            ))))
        })
    }

    fn try_open(root: &Path) -> Result<Self, (PathBuf, io::Error)> {
        make_folders(root).map_err(|error| (root.to_owned(), error))?;
        for folder in [DOCUMENTS, WRITING, LOCK_FILES] {
            let path = root.join(folder);
            make_folders(&path).map_err(|error| (path, error))?;
        }
        let path = root.join(LOCK_FILES).join("all");
        let at = |error| (path.clone(), error);
        let presence = lock_file(&path).map_err(at)?;
        match presence.try_lock() {
            Ok(()) => {
                let writing = root.join(WRITING);
                remove_files(&writing).map_err(|error| (writing, error))?;
                // Not in one step, so two may tidy at once; neither has begun to write.
                presence.unlock().map_err(at)?;
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(at(error)),
        }
        uninterrupted(|| presence.lock_shared()).map_err(at)?;
        Ok(Self { root: root.to_owned(), _presence: presence })
    }

    fn entry_path(&self, key: &Key) -> PathBuf {
        self.root.join(name::file_path(key.as_ref()))
    }

    fn document_path(&self, name: &str) -> PathBuf {
        assert!(is_document_name(name), "not a document's name: {name:?}");
        self.root.join(DOCUMENTS).join(name)
    }

    fn read(path: &Path, known: Option<&Version>, now: Timestamp) -> Result<Found, Error> {
        let failed = |error: io::Error| Operation::Get.failed(cause(path, &error));
        let damaged =
            |what: &str| Operation::Get.failed(Cause::Corrupt(Arc::from(format!("{}: {what}", path.display()))));

        let Some(mut file) = open_existing(path).map_err(failed)? else { return Ok(Found::Absent) };
        let header = Header::read(&mut file).map_err(failed)?.ok_or_else(|| damaged("not an entry's header"))?;
        let version = header.version();
        let is_expired = header.expires().is_some_and(|expires| expires <= now);
        if known == Some(&version) && !is_expired {
            return Ok(Found::Unchanged);
        }
        let value_bytes = header.value_bytes as usize;
        if value_bytes > limits::VALUE_BYTES_MAX {
            return Err(damaged("longer than any value"));
        }
        let mut value = Vec::with_capacity(value_bytes);
        // One byte more than there should be, so that it would be seen.
        file.take(value_bytes as u64 + 1).read_to_end(&mut value).map_err(failed)?;
        if value.len() != value_bytes {
            return Err(damaged("another length than its header says"));
        }
        if header.checksum != header.checksum_with(&value) {
            return Err(damaged("checksum mismatch"));
        }
        if is_expired {
            return Ok(Found::Absent);
        }
        Ok(Found::Entry(Entry { value: value.into(), version, expires: header.expires() }))
    }

    fn write(&self, path: &Path, lock: u64, put: &Put, asker: &mut Asker) -> Result<Version, Error> {
        let failed = |error: io::Error| Operation::Put.failed(cause(path, &error));
        let Put { value, expires, condition } = put;
        assert!(value.len() <= limits::VALUE_BYTES_MAX, "checked where it came in");

        let header = Header::new(value, *expires, asker.unique());
        let mut new = NewFile { path: self.root.join(WRITING).join(asker.unique_hex()), is_in_place: false };
        new.fill(&header, value).map_err(failed)?;

        let _turn = self.lock(lock).map_err(failed)?;
        let current = Self::current(path).map_err(failed)?;
        check(condition, current, Asker::now()).map_err(|cause| Operation::Put.failed(cause))?;
        new.put_in_place(path).map_err(failed)?;
        sync_folder(path).map_err(|error| unsynced(Operation::Put, path, &error))?;
        Ok(header.version())
    }

    fn remove(&self, path: &Path, lock: u64, condition: &Condition) -> Result<(), Error> {
        let failed = |error: io::Error| Operation::Delete.failed(cause(path, &error));
        let _turn = self.lock(lock).map_err(failed)?;
        let current = Self::current(path).map_err(failed)?;
        check(condition, current, Asker::now()).map_err(|cause| Operation::Delete.failed(cause))?;
        match fs::remove_file(path) {
            Ok(()) => sync_folder(path).map_err(|error| unsynced(Operation::Delete, path, &error)),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// The header of what is there now. Something damaged counts as absent: it can be replaced, and its version is
    /// nobody's.
    fn current(path: &Path) -> io::Result<Option<Header>> {
        match open_existing(path)? {
            Some(mut file) => Header::read(&mut file),
            None => Ok(None),
        }
    }

    /// Waits for the turn to write keys of this lock, in this process and others.
    fn lock(&self, lock: u64) -> io::Result<File> {
        let file = lock_file(&self.root.join(LOCK_FILES).join(format!("{:02x}", lock % LOCKS)))?;
        uninterrupted(|| file.lock())?;
        Ok(file)
    }
}

impl Store for Directory {
    fn get(&self, key: &Key, known: Option<&Version>, now: Timestamp, _: &mut Asker) -> Result<Found, Error> {
        Self::read(&self.entry_path(key), known, now)
    }

    fn put(&self, key: &Key, put: &Put, asker: &mut Asker) -> Result<Version, Error> {
        self.write(&self.entry_path(key), key.hash(), put, asker)
    }

    fn delete(&self, key: &Key, condition: &Condition, _: &mut Asker) -> Result<(), Error> {
        self.remove(&self.entry_path(key), key.hash(), condition)
    }

    fn get_document(&self, name: &str, _: &mut Asker) -> Result<Option<Entry>, Error> {
        Ok(Self::read(&self.document_path(name), None, Asker::now())?.into_entry())
    }

    fn put_document(&self, name: &str, put: &Put, asker: &mut Asker) -> Result<Version, Error> {
        self.write(&self.document_path(name), 0, put, asker)
    }

    fn probe(&self, _: &mut Asker) -> Result<Abilities, Error> {
        Ok(Abilities { conditional_puts: true, conditional_deletes: true })
    }
}

impl Header {
    fn new(value: &[u8], expires: Option<Timestamp>, version: [u8; 16]) -> Self {
        let value_bytes = u32::try_from(value.len()).expect("at most VALUE_BYTES_MAX");
        // A life that ended at the epoch would read as one that never ends.
        let expires_ms = expires.map_or(0, |expires| expires.0.max(1));
        let mut header = Self { checksum: 0, value_bytes, expires_ms, version };
        header.checksum = header.checksum_with(value);
        header
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut rest = &mut bytes[..];
        rest.put_slice(&MAGIC);
        rest.put_u32_le(self.checksum);
        rest.put_u32_le(self.value_bytes);
        rest.put_u64_le(self.expires_ms);
        rest.put_slice(&self.version);
        assert!(rest.is_empty());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (checksum, rest) = rest.split_first_chunk()?;
        let (value_bytes, rest) = rest.split_first_chunk()?;
        let (expires_ms, rest) = rest.split_first_chunk()?;
        let version = rest.first_chunk()?;
        (*magic == MAGIC).then(|| Self {
            checksum: u32::from_le_bytes(*checksum),
            value_bytes: u32::from_le_bytes(*value_bytes),
            expires_ms: u64::from_le_bytes(*expires_ms),
            version: *version,
        })
    }

    /// `None` when the file is shorter than a header or begins with something else.
    fn read(file: &mut File) -> io::Result<Option<Self>> {
        let mut bytes = [0; HEADER_BYTES];
        match file.read_exact(&mut bytes) {
            Ok(()) => Ok(Self::decode(&bytes)),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn checksum_with(&self, value: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.encode()[CHECKSUM_END..]), value)
    }

    fn expires(&self) -> Option<Timestamp> {
        (self.expires_ms != 0).then_some(Timestamp(self.expires_ms))
    }

    fn version(&self) -> Version {
        let hex = format!("{:032x}", u128::from_le_bytes(self.version));
        Version::new(Bytes::from(hex)).expect("hex digits are printable")
    }
}

impl NewFile {
    fn fill(&self, header: &Header, value: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&self.path)?;
        file.write_all(&header.encode())?;
        file.write_all(value)?;
        file.sync_all()
    }

    fn put_in_place(&mut self, path: &Path) -> io::Result<()> {
        if let Err(error) = fs::rename(&self.path, path) {
            if error.kind() != ErrorKind::NotFound {
                return Err(error);
            }
            // The first key of its bucket or folder.
            make_folders(path.parent().expect("an entry is in a folder"))?;
            fs::rename(&self.path, path)?;
        }
        self.is_in_place = true;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_in_place {
            // If this fails too, the next start removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn check(condition: &Condition, current: Option<Header>, now: Timestamp) -> Result<(), Cause> {
    match condition {
        Condition::Always => Ok(()),
        Condition::IfVersion(version) => match current {
            Some(header) if header.version() == *version => Ok(()),
            _ => Err(Cause::VersionMismatch),
        },
        Condition::IfAbsent => match current {
            Some(header) if header.expires().is_none_or(|expires| expires > now) => Err(Cause::AlreadyExists),
            _ => Ok(()),
        },
    }
}

fn open_existing(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).open(path)
}

fn uninterrupted(mut lock: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match lock() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn remove_files(folder: &Path) -> io::Result<()> {
    for file in fs::read_dir(folder)? {
        match fs::remove_file(file?.path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Makes `folder` and those above it, each of them durable before what comes to lie in it.
fn make_folders(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_folders(above)?;
    }
    match fs::create_dir(folder) {
        Ok(()) => sync_folder(folder),
        // Another writer's: it may not have synced it yet.
        Err(_) if folder.is_dir() => sync_folder(folder),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(ErrorKind::NotADirectory.into()),
        Err(error) => Err(error),
    }
}

/// Makes the name `path` durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(above)?.sync_all()
}

fn cause(path: &Path, error: &io::Error) -> Cause {
    let text = Arc::from(format!("store: {}: {error}", path.display()));
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Cause::PermissionDenied(text),
        _ => Cause::Unavailable(text),
    }
}

/// What is in its place by now, but may not be there after a crash.
fn unsynced(operation: Operation, path: &Path, error: &io::Error) -> Error {
    operation.failed(Cause::OutcomeUnknown(Arc::from(format!("store: {}: sync failed: {error}", path.display()))))
}

#[cfg(test)]
mod tests {
    use milena_proto::key::KeyRef;

    use super::*;

    const VERSION: [u8; 16] = *b"0123456789abcdef";

    fn key(name: &str) -> Key {
        KeyRef::parse(b"b", name.as_bytes()).unwrap().to_key()
    }

    fn get(store: &Directory, name: &str) -> Result<Found, Error> {
        store.get(&key(name), None, Timestamp(0), &mut Asker::new(1))
    }

    fn put(store: &Directory, name: &str, value: &'static str) -> Version {
        store.put(&key(name), &Put::new(value, Condition::Always), &mut Asker::new(1)).unwrap()
    }

    fn files_in(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_file_has_these_bytes() {
        let header = Header::new(b"hello", Some(Timestamp(1_700_000_000_123)), VERSION);
        let golden = b"milena1\n\xa4\xd7\xae\x28\x05\0\0\0\x7b\x68\xe5\xcf\x8b\x01\0\x000123456789abcdef";
        assert_eq!(header.encode().escape_ascii().to_string(), golden.escape_ascii().to_string());
        assert_eq!(Header::decode(golden), Some(header));
        assert_eq!(header.version().as_str(), "66656463626139383736353433323130");
    }

    #[test]
    fn a_damaged_file_is_reported_never_believed_and_can_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = Directory::open(dir.path()).unwrap();
        put(&store, "k", "value");
        let path = dir.path().join("b/k");
        let whole = fs::read(&path).unwrap();

        for index in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[index] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            match get(&store, "k") {
                Err(Error { cause: Cause::Corrupt(text), .. }) => assert!(text.contains("b/k: "), "{text}"),
                other => panic!("byte {index}: {other:?}"),
            }
        }
        for end in 0..whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            assert!(matches!(get(&store, "k"), Err(Error { cause: Cause::Corrupt(_), .. })), "cut at {end}");
        }
        fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(matches!(get(&store, "k"), Err(Error { cause: Cause::Corrupt(_), .. })));

        let version = put(&store, "k", "again");
        let entry = Entry { value: Bytes::from("again"), version, expires: None };
        assert_eq!(get(&store, "k"), Ok(Found::Entry(entry)));
    }

    #[test]
    fn what_a_crash_left_unfinished_is_removed_by_who_is_alone() {
        let dir = tempfile::tempdir().unwrap();
        let first = Directory::open(dir.path()).unwrap();
        let left = dir.path().join(WRITING).join("left");
        fs::write(&left, "half").unwrap();

        let second = Directory::open(dir.path()).unwrap();
        assert!(left.exists(), "the first may still be writing it");
        drop((first, second));
        Directory::open(dir.path()).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn a_write_leaves_nothing_but_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = Directory::open(dir.path()).unwrap();
        put(&store, "k", "1");
        let refused = store.put(&key("k"), &Put::new("", Condition::IfAbsent), &mut Asker::new(1));
        assert_eq!(refused.unwrap_err().cause, Cause::AlreadyExists);
        assert_eq!((files_in(&dir.path().join(WRITING)), files_in(&dir.path().join("b"))), (0, 1));
    }

    #[test]
    fn the_longest_key_of_the_oddest_bytes_has_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = Directory::open(dir.path()).unwrap();
        let longest = KeyRef::parse(&[b'b'; 63], &[0xff; 1024]).unwrap().to_key();
        let asker = &mut Asker::new(1);
        store.put(&longest, &Put::new("v", Condition::Always), asker).unwrap();
        assert!(matches!(store.get(&longest, None, Timestamp(0), asker), Ok(Found::Entry(_))));
        let neighbour = KeyRef::parse(&[b'b'; 63], &[0xff; 1023]).unwrap().to_key();
        assert_eq!(store.get(&neighbour, None, Timestamp(0), asker), Ok(Found::Absent));
    }

    #[test]
    fn a_directory_that_cannot_be_written_to_is_refused_with_its_name_and_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a-file");
        fs::write(&file, "").unwrap();
        let error = Directory::open(&file.join("store")).unwrap_err();
        assert!(matches!(error.cause, Cause::Misconfigured(_)));
        let text = error.to_string();
        assert!(text.starts_with("store file://") && text.contains("a-file/store: cannot write to"), "{text}");
        assert!(text.contains("a-file/store: not a directory") && text.contains("hint: "), "{text}");
    }
}
