//! Counts the system calls of a process, where the kernel lets us: the tracepoint `raw_syscalls:sys_enter`, on each of its
//! threads.
//!
//! It needs tracefs (`/sys/kernel/tracing`) and the right to look at the process (root, or CAP_PERFMON). Where it cannot be
//! had, the result says why instead.

use std::{
    fs, io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// Where tracefs may be.
const TRACEPOINTS: [&str; 2] = [
    "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id",
    "/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter/id",
];

/// `linux/perf_event.h`.
const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
const PERF_EVENT_IOC_DISABLE: libc::c_ulong = 0x2401;
/// In the flags of the attributes: does not count before it is told to.
const DISABLED: u64 = 1;

/// `struct perf_event_attr`, its first version: the rest is for what we do not ask for.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

const _: () = assert!(size_of::<Attributes>() == 64, "PERF_ATTR_SIZE_VER0");

/// A counter for each thread that a process has now.
#[derive(Debug)]
pub struct SystemCalls {
    counters: Vec<OwnedFd>,
}

impl SystemCalls {
    /// How they are counted.
    pub const NOTE: &str = "counted by raw_syscalls:sys_enter for a second after the measured part";

    /// Counters for the process `pid`, not yet started.
    ///
    /// # Errors
    /// Why they cannot be had, in words.
    pub fn of(pid: u32) -> Result<Self, String> {
        let id = TRACEPOINTS.iter().find_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
        let id =
            id.ok_or("not counted: tracefs cannot be read; hint: as root, mount -t tracefs none /sys/kernel/tracing")?;
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).map_err(|error| format!("not counted: {error}"))?;
        let threads = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse::<libc::pid_t>().ok());
        let counters: io::Result<Vec<OwnedFd>> = threads.map(|thread| open(id, thread)).collect();
        let counters = counters.map_err(|error| format!("not counted: the kernel refuses: {error}"))?;
        Ok(Self { counters })
    }

    /// Begins.
    pub fn start(&self) {
        self.tell(PERF_EVENT_IOC_ENABLE);
    }

    /// Ends; how many there were since it began.
    #[must_use]
    pub fn stop(&self) -> u64 {
        self.tell(PERF_EVENT_IOC_DISABLE);
        self.counters.iter().map(count).sum()
    }

    fn tell(&self, what: libc::c_ulong) {
        for counter in &self.counters {
            // SAFETY: a counter of ours; the request has no argument that the kernel writes to.
            unsafe { libc::ioctl(counter.as_raw_fd(), what as _, 0) };
        }
    }
}

fn open(tracepoint: u64, thread: libc::pid_t) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: PERF_TYPE_TRACEPOINT,
        size: size_of::<Attributes>() as u32,
        config: tracepoint,
        flags: DISABLED,
        ..Attributes::default()
    };
    const ANY_CPU: libc::c_int = -1;
    const NO_GROUP: libc::c_int = -1;
    // SAFETY: the attributes are read only, and as long as they say.
    let counter = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attributes, thread, ANY_CPU, NO_GROUP, PERF_FLAG_FD_CLOEXEC)
    };
    match i32::try_from(counter) {
        // SAFETY: a descriptor that the kernel has just made, and nobody else's.
        Ok(counter) if counter >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(counter) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn count(counter: &OwnedFd) -> u64 {
    let mut count = 0_u64;
    // SAFETY: the buffer is a number of eight bytes, which is what a counter without a read format has to say.
    let read = unsafe { libc::read(counter.as_raw_fd(), (&raw mut count).cast(), mem::size_of::<u64>()) };
    if read == size_of::<u64>() as isize { count } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_not_there_is_not_counted_and_the_reason_is_told() {
        let reason = SystemCalls::of(u32::MAX).unwrap_err();
        assert!(reason.starts_with("not counted: "), "{reason}");
    }
}
