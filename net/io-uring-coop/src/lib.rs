//! The system calls of the crate `io-uring`, with one flag added: rings are made with `IORING_SETUP_COOP_TASKRUN`.
//!
//! Without it, every completion that the kernel raises on another core (the loopback softirq of a client, a network
//! card's interrupt) sends an inter-processor interrupt to the core that owns the ring, which then leaves user mode
//! only to find what it would have found at its next system call anyway. A fifth of all samples of a server with one
//! request in flight per connection were that interrupt; with the flag such a request cost 6.2 µs of CPU instead of 15.7.
//!
//! The runtime has no setting for it. But with its feature `direct-syscall` (which `milena-net` turns on) the crate
//! `io-uring` makes its system calls through the crate `sc`, and this crate is put in the place of `sc`. It offers just
//! the three functions that are called.
//!
//! ```text
//!   glommio, per core:   main ring     COOP_TASKRUN
//!                        polled ring   as asked for (IOPOLL raises no interrupts)
//!                        latency ring  as asked for: its timers preempt a running task, and with the flag they
//!                                      would wait for the next system call (p99 of 1.5 ms instead of 0.7)
//! ```
//! What it asks of us: completions on the main ring arrive at the next entry into the kernel, so long computations
//! yield by a budget of their own.
//!
//! Second, [`before_enter`] lets a thread look at each of its calls of `io_uring_enter` and turn a wait down. What for:
//! `net/src/cores/wakeful.rs`.

use std::cell::Cell;

/// Interrupts the owner of a ring for a completion only when it enters the kernel anyway. Linux 5.19 and newer.
const IORING_SETUP_COOP_TASKRUN: u32 = 1 << 8;
const IORING_SETUP_IOPOLL: u32 = 1;

/// The beginning of the kernel's `struct io_uring_params`; the rest is not ours to touch.
#[repr(C)]
struct ParamsHead {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
}

thread_local! {
    /// The runtime makes its latency ring right after its polled one: the only way to tell it from the main ring.
    static LATENCY_RING_IS_NEXT: Cell<bool> = const { Cell::new(false) };
}

thread_local! {
    static BEFORE_ENTER: Cell<Option<fn(bool) -> bool>> = const { Cell::new(None) };
}

/// From now on calls `look` before each `io_uring_enter` of this thread, with whether that call would wait for
/// completions. When it answers `false`, the kernel is not asked, and the caller sees what a signal would have
/// caused: `EINTR`, nothing submitted, nothing lost. `None` ends it.
pub fn before_enter(look: Option<fn(would_wait: bool) -> bool>) {
    BEFORE_ENTER.set(look);
}

/// `io_uring_setup(entries, params)`. Answers a file descriptor or a negated error number.
///
/// A kernel that does not know the flag (`EINVAL`) is asked again without it.
///
/// # Safety
/// `params` is the address of a `struct io_uring_params`, as the system call demands.
pub unsafe fn syscall2(number: usize, entries: usize, params: usize) -> usize {
    assert_eq!(number as libc::c_long, libc::SYS_io_uring_setup, "the only call with two arguments");
    // SAFETY: the caller promises the struct, and its head is laid out as ours.
    let head = unsafe { &mut *(params as *mut ParamsHead) };
    let is_polled = head.flags & IORING_SETUP_IOPOLL != 0;
    let is_latency = LATENCY_RING_IS_NEXT.replace(is_polled);
    let flags_asked = head.flags;
    if !is_polled && !is_latency {
        head.flags |= IORING_SETUP_COOP_TASKRUN;
    }
    // SAFETY: as the caller promises.
    let made = unsafe { negated(libc::syscall(number as libc::c_long, entries, params)) };
    if made.cast_signed() != -(libc::EINVAL as isize) {
        return made;
    }
    // SAFETY: the same struct as above; the first reference is dead.
    unsafe { (*(params as *mut ParamsHead)).flags = flags_asked };
    // SAFETY: as the caller promises.
    unsafe { negated(libc::syscall(number as libc::c_long, entries, params)) }
}

/// `io_uring_register`.
///
/// # Safety
/// As the system call demands.
pub unsafe fn syscall4(number: usize, a: usize, b: usize, c: usize, d: usize) -> usize {
    // SAFETY: passed on as it came.
    unsafe { negated(libc::syscall(number as libc::c_long, a, b, c, d)) }
}

/// `io_uring_enter(ring, to_submit, min_complete, flags, ..)`.
///
/// # Safety
/// As the system call demands.
pub unsafe fn syscall6(number: usize, a: usize, b: usize, min_complete: usize, d: usize, e: usize, f: usize) -> usize {
    assert_eq!(number as libc::c_long, libc::SYS_io_uring_enter, "the only call with six arguments");
    if let Some(look) = BEFORE_ENTER.get()
        && !look(min_complete > 0)
    {
        return (-(libc::EINTR as isize)).cast_unsigned();
    }
    // SAFETY: passed on as it came.
    unsafe { negated(libc::syscall(number as libc::c_long, a, b, min_complete, d, e, f)) }
}

/// The kernel's own convention, which libc turns into -1 and `errno`: a negative answer is the error.
fn negated(answer: libc::c_long) -> usize {
    if answer >= 0 {
        answer.cast_unsigned() as usize
    } else {
        // SAFETY: the address of this thread's `errno`, always valid.
        (-(unsafe { *libc::__errno_location() } as isize)).cast_unsigned()
    }
}
