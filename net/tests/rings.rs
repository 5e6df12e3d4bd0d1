//! `net/io-uring-coop` stands where it should: io_uring's system calls go through it, and it sets its flag on the rings
//! that it means, in the order in which the runtime makes them. It is no member of the workspace, so its test is here.

use std::{io, os::fd::FromRawFd as _, thread};

use io_uring::{IoUring, opcode};

const COOP_TASKRUN: u32 = 1 << 8;
const IOPOLL: u32 = 1;

/// The flags with which the kernel has made the ring.
fn flags(ring: &IoUring) -> u32 {
    // SAFETY: `Parameters` is transparent over the kernel's struct, whose third 32-bit number are the flags.
    unsafe { *std::ptr::from_ref(ring.params()).cast::<u32>().add(2) }
}

fn main_ring() -> IoUring {
    IoUring::new(8).unwrap()
}

fn polled_ring() -> IoUring {
    IoUring::builder().setup_iopoll().build(8).unwrap()
}

/// Linux 5.19 and newer.
fn kernel_knows_the_flag() -> bool {
    let mut params = [0_u32; 30]; // 120 bytes
    params[2] = COOP_TASKRUN;
    // SAFETY: the struct is large enough, and the descriptor is owned at once.
    let made = unsafe { libc::syscall(libc::SYS_io_uring_setup, 8, params.as_mut_ptr()) };
    if made >= 0 {
        // SAFETY: a descriptor of ours.
        drop(unsafe { std::os::fd::OwnedFd::from_raw_fd(i32::try_from(made).unwrap()) });
    }
    made >= 0
}

#[test]
fn the_main_ring_is_cooperative_and_the_polled_and_the_latency_ring_are_as_asked() {
    let coop = if kernel_knows_the_flag() { COOP_TASKRUN } else { 0 };
    // The runtime's order on each core's thread, and once more, as when a thread makes a second executor.
    for _ in 0..2 {
        let rings = [main_ring(), polled_ring(), main_ring()];
        let seen = rings.each_ref().map(|ring| flags(ring) & (COOP_TASKRUN | IOPOLL));
        assert_eq!(seen, [coop, IOPOLL, 0]);
    }
    assert_eq!(flags(&main_ring()) & COOP_TASKRUN, coop);
}

#[test]
fn threads_do_not_confuse_each_other() {
    let coop = if kernel_knows_the_flag() { COOP_TASKRUN } else { 0 };
    let _polled_here = polled_ring();
    let there = thread::spawn(|| flags(&main_ring())).join().unwrap();
    assert_eq!(there & COOP_TASKRUN, coop);
    assert_eq!(flags(&main_ring()) & COOP_TASKRUN, 0, "here it is the one after the polled");
}

#[test]
fn a_ring_works() {
    let mut ring = main_ring();
    let nop = opcode::Nop::new().build().user_data(7);
    // SAFETY: a no-operation has no buffers.
    unsafe { ring.submission().push(&nop).unwrap() };
    assert_eq!(ring.submit_and_wait(1).unwrap(), 1);
    assert_eq!(ring.completion().next().unwrap().user_data(), 7);
}

#[test]
fn an_impossible_ring_is_refused_with_the_kernels_error() {
    let made: io::Result<IoUring> = IoUring::builder().setup_sqpoll(1).setup_sqpoll_cpu(1 << 20).build(8);
    let error = made.err().expect("there is no such CPU");
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{error}");
}

#[test]
fn a_wait_that_is_turned_down_looks_like_a_signal_and_loses_nothing() {
    let mut ring = main_ring();
    let nop = opcode::Nop::new().build().user_data(7);
    // SAFETY: a no-operation has no buffers.
    unsafe { ring.submission().push(&nop).unwrap() };
    sc::before_enter(Some(|would_wait| !would_wait));
    let error = ring.submit_and_wait(1).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    assert!(ring.completion().next().is_none());
    assert_eq!(ring.submit().unwrap(), 1, "what does not wait is let through");
    sc::before_enter(None);
    ring.submit_and_wait(1).unwrap();
    assert_eq!(ring.completion().next().unwrap().user_data(), 7);
}
