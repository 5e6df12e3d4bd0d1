//! Whether the numbers of a run may be believed. Pure.
//!
//! A run in which the client was late, or too slow to make the load it was to make, says something about the client. It is
//! called invalid, and not slow.

use std::time::Duration;

use crate::result::{Counts, Noise, Reason, ReasonCode, Validity};
use crate::times::Times;

/// The client's own lateness at the 99th percentile may be this share of the response time there.
pub const LATE_SHARE_MAX: f64 = 0.1;

/// Lateness below this is never held against a run: a thread is preempted for that long on any machine.
pub const LATE_NS_MIN: u64 = 50_000;

/// Of the sends that were meant to be made, this share must have been made and answered.
pub const ACHIEVED_SHARE_MIN: f64 = 0.99;

/// Calls that may fail.
pub const ERROR_SHARE_MAX: f64 = 0.01;

/// A client core that is busier may be what limits the rate.
pub const BUSY_SHARE_MAX: f64 = 0.95;

/// Processor time that the hypervisor may take.
pub const STEAL_SHARE_MAX: f64 = 0.05;

/// A server that waits longer for its processor than this share of the time it runs on it was disturbed.
pub const DISTURBED_SHARE_MAX: f64 = 0.1;

/// What is known about a run when it has ended.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// Whether it was an open loop.
    pub is_open: bool,
    /// Counts of the measured part.
    pub counts: &'a Counts,
    /// Response times.
    pub response: &'a Times,
    /// How late the client itself was.
    pub late: &'a Times,
    /// How busy the busiest client core was.
    pub busy_share: f64,
    /// How long the server waited for its processor, as a share of the time it ran; `None` = not known.
    pub disturbed_share: Option<f64>,
    /// What else went on.
    pub noise: &'a Noise,
    /// Whether the program that measures was built without optimisation.
    pub is_debug_build: bool,
}

/// The verdict.
#[must_use]
pub fn judge(evidence: &Evidence<'_>) -> Validity {
    let reasons: Vec<Reason> = [nothing_done, send_lag, achieved_rate, client_busy, errors, steal]
        .iter()
        .filter_map(|rule| rule(evidence))
        .collect();
    Validity { is_valid: reasons.is_empty(), reasons, remarks: remarks(evidence) }
}

fn reason(code: ReasonCode, text: String) -> Option<Reason> {
    Some(Reason { code, text })
}

fn nothing_done(evidence: &Evidence<'_>) -> Option<Reason> {
    if evidence.counts.requests > 0 {
        return None;
    }
    reason(ReasonCode::NothingDone, "not one call ended in the measured part".to_owned())
}

fn send_lag(evidence: &Evidence<'_>) -> Option<Reason> {
    // The bare figures: with few samples they are uncertain, and still the only sign there is.
    let p99 = |times: &Times| times.hdr().value_at_percentile(99.0);
    let (late_ns, response_ns) = (p99(evidence.late), p99(evidence.response));
    let allowed_ns = LATE_NS_MIN.max((response_ns as f64 * LATE_SHARE_MAX) as u64);
    if !evidence.is_open || late_ns <= allowed_ns {
        return None;
    }
    let [late, allowed] = [late_ns, allowed_ns].map(Duration::from_nanos);
    let text = format!("the client itself sent late: {late:.1?} at the 99th percentile; {allowed:.1?} is allowed");
    reason(ReasonCode::SendLag, text)
}

fn achieved_rate(evidence: &Evidence<'_>) -> Option<Reason> {
    let Counts { requests, unsent, .. } = *evidence.counts;
    let share = requests as f64 / (requests + unsent) as f64;
    if !evidence.is_open || requests + unsent == 0 || share >= ACHIEVED_SHARE_MIN {
        return None;
    }
    let text = format!(
        "{:.1} % of the calls that were meant to be sent were sent; at least {:.0} % must be: the server is slower than \
         the rate, or the streams are too few",
        share * 100.0,
        ACHIEVED_SHARE_MIN * 100.0
    );
    reason(ReasonCode::AchievedRate, text)
}

fn client_busy(evidence: &Evidence<'_>) -> Option<Reason> {
    if !evidence.is_open || evidence.busy_share < BUSY_SHARE_MAX {
        return None;
    }
    let text = format!("a client core was busy {:.0} % of the time; give it more threads", evidence.busy_share * 100.0);
    reason(ReasonCode::ClientBusy, text)
}

fn errors(evidence: &Evidence<'_>) -> Option<Reason> {
    let Counts { requests, errors, .. } = *evidence.counts;
    let share = errors as f64 / requests.max(1) as f64;
    if share <= ERROR_SHARE_MAX {
        return None;
    }
    let text = format!("{:.1} % of the calls failed; {:.0} % may", share * 100.0, ERROR_SHARE_MAX * 100.0);
    reason(ReasonCode::Errors, text)
}

fn steal(evidence: &Evidence<'_>) -> Option<Reason> {
    let share = evidence.noise.steal_share;
    if share <= STEAL_SHARE_MAX {
        return None;
    }
    let text = format!(
        "the hypervisor took {:.1} % of the processors' time; {:.0} % may be",
        share * 100.0,
        STEAL_SHARE_MAX * 100.0
    );
    reason(ReasonCode::Steal, text)
}

fn remarks(evidence: &Evidence<'_>) -> Vec<String> {
    let mut remarks = Vec::new();
    if !evidence.is_open {
        remarks.push(
            "closed loop: times are service times, which understate what users wait who do not wait for each other"
                .to_owned(),
        );
        if evidence.busy_share >= BUSY_SHARE_MAX {
            remarks.push(format!(
                "the client was the limit: one of its cores was busy {:.0} % of the time; the rate says nothing about \
                 the server",
                evidence.busy_share * 100.0
            ));
        }
    }
    if let Some(share) = evidence.disturbed_share.filter(|share| *share > DISTURBED_SHARE_MAX) {
        remarks.push(format!(
            "the server waited for a processor {:.0} % as long as it ran: something else used its processor",
            share * 100.0
        ));
    }
    if evidence.is_debug_build {
        remarks.push("milena-loadtest is a debug build: it measures itself".to_owned());
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        is_open: bool,
        counts: Counts,
        response_us: u64,
        late_us: u64,
        busy_share: f64,
        steal_share: f64,
    }

    impl Default for Case {
        fn default() -> Self {
            let counts = Counts { requests: 10_000, ..Counts::default() };
            Self { is_open: true, counts, response_us: 1000, late_us: 10, busy_share: 0.5, steal_share: 0.0 }
        }
    }

    fn of(us: u64) -> Times {
        let mut times = Times::new();
        times.record(Duration::from_micros(us));
        times
    }

    impl Case {
        fn judge(&self) -> (Vec<ReasonCode>, Vec<String>) {
            let validity = judge(&Evidence {
                is_open: self.is_open,
                counts: &self.counts,
                response: &of(self.response_us),
                late: &of(self.late_us),
                busy_share: self.busy_share,
                disturbed_share: None,
                noise: &Noise { steal_share: self.steal_share, cpu_pressure_share: None },
                is_debug_build: false,
            });
            assert_eq!(validity.is_valid, validity.reasons.is_empty());
            (validity.reasons.into_iter().map(|reason| reason.code).collect(), validity.remarks)
        }

        fn codes(&self) -> Vec<ReasonCode> {
            self.judge().0
        }
    }

    #[test]
    fn a_run_as_it_should_be_is_valid() {
        assert_eq!(Case::default().judge(), (vec![], vec![]));
    }

    #[test]
    fn a_client_that_sends_late_makes_a_run_invalid_unless_the_server_was_slower_by_far() {
        assert_eq!(Case { late_us: 150, ..Case::default() }.codes(), [ReasonCode::SendLag]);
        assert_eq!(Case { late_us: 150, response_us: 2000, ..Case::default() }.codes(), []);
        assert_eq!(Case { late_us: 40, response_us: 100, ..Case::default() }.codes(), [], "preempted once");
    }

    #[test]
    fn sends_that_were_not_made_make_a_run_invalid_and_not_slow() {
        let counts = |unsent| Counts { requests: 9_900, unsent, ..Counts::default() };
        assert_eq!(Case { counts: counts(100), ..Case::default() }.codes(), []);
        assert_eq!(Case { counts: counts(101), ..Case::default() }.codes(), [ReasonCode::AchievedRate]);
    }

    #[test]
    fn failures_a_busy_client_and_a_greedy_hypervisor_are_reasons_too() {
        let counts = Counts { requests: 1000, errors: 11, ..Counts::default() };
        assert_eq!(Case { counts, ..Case::default() }.codes(), [ReasonCode::Errors]);
        assert_eq!(Case { busy_share: 0.97, ..Case::default() }.codes(), [ReasonCode::ClientBusy]);
        assert_eq!(Case { steal_share: 0.06, ..Case::default() }.codes(), [ReasonCode::Steal]);
        assert_eq!(Case { counts: Counts::default(), ..Case::default() }.codes(), [ReasonCode::NothingDone]);
    }

    #[test]
    fn a_closed_loop_says_what_its_times_are_and_when_the_client_was_the_limit() {
        let closed = Case { is_open: false, late_us: 10_000, ..Case::default() };
        let (codes, remarks) = closed.judge();
        assert_eq!((codes, remarks.len()), (vec![], 1));
        let (codes, remarks) = Case { busy_share: 0.99, ..closed }.judge();
        assert_eq!(codes, []);
        assert!(remarks[1].starts_with("the client was the limit: "), "{remarks:?}");
    }
}
