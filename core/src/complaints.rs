//! What the store's failures say to the operator: once when a kind of trouble begins, and again now and then while it lasts.
//!
//! ```text
//!   core 0 ─┐                         first of its kind ──────────▶ a line
//!   core 1 ─┼─ mailbox ─▶ Complaints  within the minute ──────────▶ counted
//!   core 2 ─┘             (core 0)    after it, still going on ───▶ a line, with the count
//! ```
//! Every failed request has its status anyway; a line for each would bury the one that says what to do.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use milena_net::mesh;
use milena_storage::Cause;

/// Complaints of all cores that may wait; more are dropped, because those that wait say the same.
pub const COMPLAINTS_WAITING_MAX: usize = 256;

/// Between two lines about the same kind of trouble.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// One failure that an operator should know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    trouble: Trouble,
    text: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Unavailable,
    Unknown,
    Denied,
    Misconfigured,
    Corrupt,
}

const TROUBLES: usize = 5;

impl Complaint {
    /// What `cause` is to an operator; `None` where it is the caller's business alone, or passes by itself.
    #[must_use]
    pub fn about(cause: &Cause) -> Option<Self> {
        let (trouble, text) = match cause {
            Cause::Unavailable(text) => (Trouble::Unavailable, text),
            Cause::OutcomeUnknown(text) => (Trouble::Unknown, text),
            Cause::PermissionDenied(text) => (Trouble::Denied, text),
            Cause::Misconfigured(text) => (Trouble::Misconfigured, text),
            Cause::Corrupt(text) => (Trouble::Corrupt, text),
            Cause::VersionMismatch | Cause::AlreadyExists | Cause::Busy => return None,
        };
        Some(Self { trouble, text: Arc::clone(text) })
    }
}

/// What has been said so far. Pure.
#[derive(Debug, Default)]
pub struct Complaints {
    said: [Option<Said>; TROUBLES],
}

#[derive(Debug)]
struct Said {
    at: Instant,
    /// Complaints of the kind since then.
    since: u64,
}

impl Complaints {
    /// Hears a complaint at `now`, and returns how many of its kind were passed over before it if it is to be written.
    pub fn hear(&mut self, complaint: &Complaint, now: Instant) -> Option<u64> {
        let said = &mut self.said[complaint.trouble as usize];
        match said {
            Some(said) if now < said.at + AGAIN_AFTER => {
                said.since += 1;
                None
            }
            _ => Some(said.replace(Said { at: now, since: 0 }).map_or(0, |said| said.since)),
        }
    }
}

/// Writes what the cores of a node complain about, for as long as one of them can.
pub async fn write(mut complaints: mesh::Receiver<Complaint>) {
    let mut said = Complaints::default();
    while let Some(complaint) = complaints.recv().await {
        let Some(passed_over) = said.hear(&complaint, Instant::now()) else { continue };
        let Complaint { trouble, text } = complaint;
        let since = if passed_over == 0 { String::new() } else { format!(" ({passed_over} more since the last line)") };
        // The store's texts say what fails and what to do where they can know it.
        match trouble {
            Trouble::Denied | Trouble::Misconfigured | Trouble::Corrupt => {
                tracing::error!(target: "milena_core::store", "{text}{since}");
            }
            Trouble::Unavailable => {
                let consequence = "what is in memory is answered, the rest fails until the store is back";
                tracing::warn!(target: "milena_core::store", "{text}; {consequence}{since}");
            }
            Trouble::Unknown => {
                tracing::warn!(target: "milena_core::store", "{text}; the cached copy is dropped{since}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(cause: &Cause) -> Complaint {
        Complaint::about(cause).unwrap()
    }

    #[test]
    fn trouble_is_written_when_it_begins_and_again_when_it_lasts() {
        let start = Instant::now();
        let mut complaints = Complaints::default();
        let down = complaint(&Cause::Unavailable("s3: no route".into()));
        let denied = complaint(&Cause::PermissionDenied("s3: 403".into()));
        assert_eq!(complaints.hear(&down, start), Some(0));
        for _ in 0..1000 {
            assert_eq!(complaints.hear(&down, start + AGAIN_AFTER / 2), None);
        }
        assert_eq!(complaints.hear(&denied, start + AGAIN_AFTER / 2), Some(0), "another kind");
        assert_eq!(complaints.hear(&down, start + AGAIN_AFTER), Some(1000));
        assert_eq!(complaints.hear(&down, start + AGAIN_AFTER * 3), Some(0));
    }

    #[test]
    fn what_only_the_caller_can_solve_is_not_written() {
        for cause in [Cause::VersionMismatch, Cause::AlreadyExists, Cause::Busy] {
            assert_eq!(Complaint::about(&cause), None);
        }
    }
}
