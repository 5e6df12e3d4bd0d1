//! Keeps a core from going to sleep with work to do.
//!
//! The runtime's loop runs what is ready and sleeps when there is nothing. But its pass over the queues answers the same
//! to "nothing is left" and to "a timer of mine went off before I began", and sleeps after both. Then tasks that are
//! ready wait for whatever event comes next on that core, and there may be none: on a busy machine a request in a
//! thousand hung. Fixed upstream after 0.12.0 (glommio/glommio, pull request 53); **delete this file, and
//! `before_enter` in `net/io-uring-coop`, when a release has it.**
//!
//! ```text
//!   one turn of the loop:   look at the rings     enters ───────┐
//!                           pass over the queues  scheduler_runs += 1 or more, unless it was cut short
//!                           account               total_runtime += …
//!                           get ready to sleep    enters ◀──────┘ the first one that sees the account moved
//!                           sleep                 enters, waiting     knows whether a queue was looked at
//! ```
//! So we look at the runtime's own statistics before each of its system calls. A sleep after a pass that was cut short is
//! turned down, as if a signal had come; the loop makes another turn. Costs a few nanoseconds per system call.

use std::cell::Cell;

use glommio::LocalExecutor;

thread_local! {
    static PASS_WAS_CUT_SHORT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `future` on `executor`, which does not sleep as long as a task is ready.
pub(super) fn run<T>(executor: &LocalExecutor, future: impl Future<Output = T>) -> T {
    struct LookNoMore;
    impl Drop for LookNoMore {
        fn drop(&mut self) {
            sc::before_enter(None); // The statistics are there only while the executor runs.
        }
    }
    PASS_WAS_CUT_SHORT.set(false);
    sc::before_enter(Some(allows));
    let _end = LookNoMore;
    executor.run(future)
}

fn allows(would_wait: bool) -> bool {
    // What happened since we asked last: reading the statistics starts them anew. Nobody else reads them.
    let since = glommio::executor().executor_stats();
    if !since.total_runtime().is_zero() {
        // A pass has ended since the last system call, and a whole one ends by finding a queue empty or none ready.
        PASS_WAS_CUT_SHORT.set(since.scheduler_runs() == 0);
    }
    !(would_wait && PASS_WAS_CUT_SHORT.get())
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        sync::mpsc,
        thread,
        time::{Duration, Instant},
    };

    use super::allows;
    use crate::{
        cores::{Cores, CoresConfig},
        mesh,
    };

    const CONFIG: CoresConfig = CoresConfig { preempt_timer: Duration::from_micros(100), ..CoresConfig::new(1) };

    /// Does to this thread what a busy machine does: takes the processor away at a bad moment, for longer than the
    /// timer, every few system calls. Without what is tested here, the test below hangs after a few messages.
    fn be_interrupted_often() {
        thread_local! {
            static CALLS: Cell<u32> = const { Cell::new(0) };
        }
        sc::before_enter(Some(|would_wait| {
            CALLS.set(CALLS.get() + 1);
            if CALLS.get().is_multiple_of(5) {
                let begun = Instant::now();
                while begun.elapsed() < 3 * CONFIG.preempt_timer {}
            }
            allows(would_wait)
        }));
    }

    #[test]
    fn a_core_that_is_often_interrupted_answers_every_message_from_outside() {
        let (ask, mut asked) = mesh::mailbox(1);
        let (answer, answered) = mpsc::channel();
        let mut run = Some(move || async move {
            be_interrupted_often();
            while let Some(number) = asked.recv().await {
                answer.send(number).unwrap();
            }
        });
        let cores = Cores::start(CONFIG, |_| run.take().unwrap()).unwrap();
        for number in 0..500 {
            ask.try_send(number).unwrap();
            assert_eq!(answered.recv(), Ok(number));
        }
        drop(ask);
        cores.join();
    }

    #[test]
    fn an_idle_core_sleeps() {
        let (started, is_running) = mpsc::channel();
        let (stop, mut stopped) = mesh::mailbox::<()>(1);
        let mut run = Some(move || async move {
            // SAFETY: no arguments.
            started.send(unsafe { libc::gettid() }).unwrap();
            stopped.recv().await;
        });
        let cores = Cores::start(CoresConfig::new(1), |_| run.take().unwrap()).unwrap();
        let stat = format!("/proc/self/task/{}/stat", is_running.recv().unwrap());
        // The letter after the name; a core that turned every wait down would be R, running, for ever.
        let is_asleep = || std::fs::read_to_string(&stat).unwrap().split(") ").nth(1).unwrap().starts_with('S');
        while !is_asleep() {
            thread::yield_now();
        }
        stop.try_send(()).unwrap();
        cores.join();
    }
}
