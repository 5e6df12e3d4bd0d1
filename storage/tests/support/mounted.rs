//! Filesystems in memory that only the calling thread sees, and the threads and processes that it starts: for disks that are
//! full, read-only, or cannot do what others can. For tests; include it with `#[path]`.
//!
//! ```text
//!   unshare(CLONE_NEWNS) ─▶ all mounts private ─▶ mount over a directory ─▶ unmount, so that the directory can go
//! ```
//! Needs root (CAP_SYS_ADMIN). A test that cannot have it fails and says so.

use std::{cell::Cell, ffi::CString, fs, io, os::unix::ffi::OsStrExt as _, path::Path, ptr};

thread_local! {
    /// Whether this thread has mounts of its own.
    static IS_APART: Cell<bool> = const { Cell::new(false) };
}

/// Unmounts when it goes: to be declared after what removes the directory.
#[must_use]
pub(crate) struct Mounted {
    dir: CString,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // SAFETY: a text that ends with zero. Where it fails, a directory stays behind.
        unsafe { libc::umount2(self.dir.as_ptr(), libc::MNT_DETACH) };
    }
}

/// A filesystem of `kind` over the directory `dir`, with these options, as of mount(8)'s `-o`.
///
/// # Panics
/// Where mounting is not allowed.
pub(crate) fn mount(kind: &str, dir: &Path, options: &str) -> Mounted {
    // Once for a thread: workers of its rings, which open files, stay in the namespace that they began in.
    if !IS_APART.replace(true) {
        // SAFETY: no pointers; only what this thread sees of mounts changes.
        let is_apart = unsafe { libc::unshare(libc::CLONE_NEWNS) };
        assert_eq!(is_apart, 0, "a mount namespace needs root (CAP_SYS_ADMIN): {}", io::Error::last_os_error());
        mount_with("none", Path::new("/"), libc::MS_REC | libc::MS_PRIVATE, "");
    }
    mount_with(kind, dir, 0, options);
    Mounted { dir: CString::new(dir.as_os_str().as_bytes()).expect("no zeros") }
}

/// Nothing can be written there any more.
pub(crate) fn make_read_only(dir: &Path) {
    mount_with("none", dir, libc::MS_REMOUNT | libc::MS_RDONLY, "");
}

fn mount_with(kind: &str, dir: &Path, flags: libc::c_ulong, options: &str) {
    let text = |bytes: &[u8]| CString::new(bytes).expect("no zeros");
    let (source, target) = (text(kind.as_bytes()), text(dir.as_os_str().as_bytes()));
    let (kind, options) = (text(kind.as_bytes()), text(options.as_bytes()));
    let options = if options.is_empty() { ptr::null() } else { options.as_ptr().cast() };
    // SAFETY: texts that end with zero and outlive the call.
    let done = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options) };
    assert_eq!(done, 0, "mounting needs root (CAP_SYS_ADMIN): {}: {}", dir.display(), io::Error::last_os_error());
}

/// Writes a file until there is no room any more.
pub(crate) fn fill_up(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    let piece = [1; 4096];
    let error = loop {
        if let Err(error) = io::Write::write_all(&mut file, &piece) {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
}
