//! Our own mistakes that one request alone suffers from: it ends with INTERNAL, they are counted, and a line says so.
//!
//! ```text
//!   what cannot be ─┬ shared state may be wrong ──▶ assert!: the process ends, and callers see UNAVAILABLE
//!                   └ one request's alone ────────▶ Fault::new ─▶ this core's count      milena_internal_errors_total
//!                                                      │       └▶ a line, level error    the 1st, 2nd, 4th, 8th ... of a core
//!                                                      └▶ INTERNAL, for the caller
//! ```
//! A mistake that comes with every request would fill the disk with lines that say the same, so lines thin out.

use std::{cell::Cell, fmt};

use crate::grpc::status::{Code, Status};

/// The name of the counter on every program's page.
pub const METRIC: &str = "milena_internal_errors_total";

/// What it counts.
pub const METRIC_HELP: &str = "Mistakes of this program that it noticed; each has failed a request or less";

thread_local! {
    /// Of this core. Numbers of threads that are no cores are read by nobody.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// A mistake of ours that has been counted and logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    what: &'static str,
}

impl Fault {
    /// Counts a mistake, and logs it; `what` is what was found that cannot be.
    #[must_use]
    pub fn new(what: &'static str) -> Self {
        let count = COUNT.get() + 1;
        COUNT.set(count);
        if count.is_power_of_two() {
            tracing::error!(
                "{what}: a mistake of this program, please report it ({count} on this core since its start)"
            );
        }
        Self { what }
    }
}

/// How many mistakes this core has noticed since its start.
#[must_use]
pub fn count() -> u64 {
    COUNT.get()
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        Self::new(Code::Internal, fault.to_string())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: a mistake of the server, which its log tells of too", self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::written_during;

    #[test]
    fn a_mistake_is_internal_to_its_caller_counted_and_an_error_line() {
        let before = count();
        let mut status = None;
        let lines = written_during(|| status = Some(Status::from(Fault::new("two ends of one stick"))));
        let status = status.unwrap();
        assert_eq!(status.code, Code::Internal);
        assert_eq!(status.message, "two ends of one stick: a mistake of the server, which its log tells of too");
        assert_eq!(count(), before + 1);
        assert!(lines.contains(" error ") && lines.contains("fault: two ends of one stick"), "{lines}");
    }

    #[test]
    fn a_mistake_that_comes_with_every_request_does_not_fill_the_log() {
        let lines = written_during(|| (0..1024).for_each(|_| drop(Status::from(Fault::new("again")))));
        assert!((10..=12).contains(&lines.lines().count()), "{lines}");
    }
}
