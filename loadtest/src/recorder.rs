//! What a core has seen: times and counts, of the measured part and of each second.
//!
//! ```text
//!   intended ───── lag ─────▶ sent ──── service ────▶ done
//!       └────────────────── response ─────────────────┘
//! ```
//! A call belongs to the measured part if it was meant to be sent in it, and to the second in which it ended. In a
//! closed loop nothing is intended: a call is meant to be sent when it is, and only the service time is recorded.

use std::{collections::BTreeMap, ops::Range, time::Instant};

use crate::{
    protocol::{Answer, Failure, Outcome, ServedBy},
    result::{Counts, Latency, TierLatency},
    times::Times,
    workload::Op,
};

/// A call that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// What it did; never [`Op::Rmw`], which is two calls.
    pub op: Op,
    /// When it was meant to be sent; `None` in a closed loop.
    pub intended: Option<Instant>,
    /// When it could have been sent: it was meant to, and a stream was free.
    pub possible: Instant,
    /// When it was sent.
    pub sent: Instant,
    /// When it was answered.
    pub done: Instant,
    /// Keys in it.
    pub keys: u64,
    /// Bytes of the values that were written.
    pub value_bytes_out: u64,
}

/// Everything a core records.
#[derive(Debug)]
pub struct Recorder {
    window: Range<Instant>,
    /// The measured part.
    pub measured: Measured,
    second: Ended,
}

/// The times and counts of the measured part. Those of several cores add up.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    ops: [OpTimes; Op::ALL.len()],
    /// By [`ServedBy`], and last those of misses.
    tiers: [Times; ServedBy::ALL.len() + 1],
    /// How late the client itself was, in an open loop.
    pub late: Times,
    /// What was done.
    pub tally: Tally,
}

#[derive(Clone, Debug, Default)]
struct OpTimes {
    response: Times,
    service: Times,
    lag: Times,
    count: u64,
}

/// Counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Calls.
    pub requests: u64,
    /// Keys in them.
    pub keys: u64,
    /// Reads that found something, by [`ServedBy`].
    pub hits: [u64; ServedBy::ALL.len()],
    /// Reads that found nothing.
    pub misses: u64,
    /// Calls that failed, wholly or for one of their keys.
    pub errors: u64,
    errors_by_status: BTreeMap<String, u64>,
    value_bytes_in: u64,
    value_bytes_out: u64,
    /// The first failure, in words.
    pub first_failure: Option<String>,
}

/// What ended in a stretch of time.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// Response times, or service times in a closed loop.
    pub response: Times,
    /// What was done.
    pub tally: Tally,
    /// The greatest send lag, in nanoseconds.
    pub lag_max_ns: u64,
}

impl Recorder {
    /// Measures what is meant to be sent in `window`.
    #[must_use]
    pub fn new(window: Range<Instant>) -> Self {
        Self { window, measured: Measured::default(), second: Ended::default() }
    }

    /// Takes in a call and how it ended. Allocates only for failures.
    pub fn record(&mut self, call: &Call, result: &Result<Answer, Failure>) {
        let service = call.done.saturating_duration_since(call.sent);
        let response = call.done.saturating_duration_since(call.intended.unwrap_or(call.sent));
        self.second.response.record(response);
        self.second.tally.take(call, result);
        if let Some(intended) = call.intended {
            let lag_ns = u64::try_from(call.sent.saturating_duration_since(intended).as_nanos()).unwrap_or(u64::MAX);
            self.second.lag_max_ns = self.second.lag_max_ns.max(lag_ns);
        }
        if !self.window.contains(&call.intended.unwrap_or(call.sent)) {
            return;
        }
        self.measured.tally.take(call, result);
        let times = &mut self.measured.ops[call.op as usize];
        times.count += 1;
        times.service.record(service);
        if let Some(intended) = call.intended {
            times.response.record(response);
            times.lag.record(call.sent.saturating_duration_since(intended));
            self.measured.late.record(call.sent.saturating_duration_since(call.possible));
        }
        if let Ok(outcomes) = result
            && let [outcome] = &outcomes[..]
        {
            match outcome {
                Outcome::Hit { tier, .. } => self.measured.tiers[*tier as usize].record(service),
                Outcome::Miss => self.measured.tiers[ServedBy::ALL.len()].record(service),
                Outcome::Done | Outcome::Failed(_) => {}
            }
        }
    }

    /// Takes in a read and the write that followed it as the one thing that a user has waited for.
    pub fn record_rmw(&mut self, read: &Call, write: &Call) {
        let intended = read.intended.unwrap_or(read.sent);
        if self.window.contains(&intended) {
            let times = &mut self.measured.ops[Op::Rmw as usize];
            times.count += 1;
            times.service.record(write.done.saturating_duration_since(read.sent));
            if read.intended.is_some() {
                times.response.record(write.done.saturating_duration_since(intended));
                times.lag.record(read.sent.saturating_duration_since(intended));
            }
        }
    }

    /// What has ended since this was asked last.
    pub fn take_second(&mut self) -> Ended {
        std::mem::take(&mut self.second)
    }
}

impl Tally {
    fn take(&mut self, call: &Call, result: &Result<Answer, Failure>) {
        self.requests += 1;
        self.keys += call.keys;
        self.value_bytes_out += call.value_bytes_out;
        match result {
            Ok(outcomes) => self.take_outcomes(outcomes),
            Err(failure) => self.fail(&failure.status, || failure.to_string()),
        }
    }

    fn take_outcomes(&mut self, outcomes: &[Outcome]) {
        let mut failed = None;
        for outcome in outcomes {
            match outcome {
                Outcome::Hit { tier, value } => {
                    self.hits[*tier as usize] += 1;
                    self.value_bytes_in += value.len() as u64;
                }
                Outcome::Miss => self.misses += 1,
                Outcome::Done => {}
                Outcome::Failed(status) => failed = Some(status),
            }
        }
        if let Some(status) = failed {
            self.fail(status, || format!("{status} for a key of a batch"));
        }
    }

    fn fail(&mut self, status: &str, text: impl FnOnce() -> String) {
        self.errors += 1;
        *self.errors_by_status.entry(status.to_owned()).or_default() += 1;
        self.first_failure.get_or_insert_with(text);
    }

    /// Adds those of another core.
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.keys += other.keys;
        self.hits.iter_mut().zip(other.hits).for_each(|(mine, theirs)| *mine += theirs);
        self.misses += other.misses;
        self.errors += other.errors;
        for (status, count) in other.errors_by_status {
            *self.errors_by_status.entry(status).or_default() += count;
        }
        self.value_bytes_in += other.value_bytes_in;
        self.value_bytes_out += other.value_bytes_out;
        self.first_failure = self.first_failure.take().or(other.first_failure);
    }

    /// Reads that found something, by name; those that did not happen left out.
    #[must_use]
    pub fn hits_by_tier(&self) -> BTreeMap<String, u64> {
        let by_name = ServedBy::ALL.map(|tier| (tier.name().to_owned(), self.hits[tier as usize]));
        by_name.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

impl Ended {
    /// Adds what ended on another core.
    pub fn add(&mut self, other: Self) {
        self.response.add(&other.response);
        self.tally.add(other.tally);
        self.lag_max_ns = self.lag_max_ns.max(other.lag_max_ns);
    }
}

impl Measured {
    /// Adds those of another core.
    pub fn add(&mut self, other: Self) {
        for (mine, theirs) in self.ops.iter_mut().zip(other.ops) {
            mine.response.add(&theirs.response);
            mine.service.add(&theirs.service);
            mine.lag.add(&theirs.lag);
            mine.count += theirs.count;
        }
        self.tiers.iter_mut().zip(&other.tiers).for_each(|(mine, theirs)| mine.add(theirs));
        self.late.add(&other.late);
        self.tally.add(other.tally);
    }

    /// Response times of all calls, or service times in a closed loop.
    #[must_use]
    pub fn response(&self) -> Times {
        let mut all = Times::new();
        for times in self.calls() {
            all.add(if times.response.count() > 0 { &times.response } else { &times.service });
        }
        all
    }

    /// Read-modify-writes are two calls each, which are counted as such.
    fn calls(&self) -> impl Iterator<Item = &OpTimes> {
        self.ops.iter().take(Op::Rmw as usize)
    }

    /// By operation, as it stands in a file.
    #[must_use]
    pub fn latency(&self) -> Vec<Latency> {
        let one = |op: &str, response: &Times, service: &Times, lag: &Times| Latency {
            op: op.to_owned(),
            response: if response.count() > 0 { response } else { service }.to_result(),
            service: service.to_result(),
            lag: lag.to_result(),
        };
        let (mut service, mut lag) = (Times::new(), Times::new());
        for times in self.calls() {
            service.add(&times.service);
            lag.add(&times.lag);
        }
        let mut latency = vec![one(Latency::ALL, &self.response(), &service, &lag)];
        for op in Op::ALL {
            let times = &self.ops[op as usize];
            if times.count > 0 {
                latency.push(one(op.name(), &times.response, &times.service, &times.lag));
            }
        }
        latency
    }

    /// Reads by what answered them, as it stands in a file.
    #[must_use]
    pub fn tiers(&self) -> Vec<TierLatency> {
        let names = ServedBy::ALL.map(ServedBy::name).into_iter().chain(["miss"]);
        let named = names.zip(&self.tiers).filter(|(_, times)| times.count() > 0);
        named.map(|(name, times)| TierLatency { tier: name.to_owned(), service: times.to_result() }).collect()
    }

    /// As it stands in a file.
    #[must_use]
    pub fn counts(&self, unsent: u64) -> Counts {
        let Tally { requests, keys, misses, errors, value_bytes_in, value_bytes_out, .. } = self.tally;
        let by_op = Op::ALL.iter().map(|op| (op.name().to_owned(), self.ops[*op as usize].count));
        Counts {
            requests,
            keys,
            requests_by_op: by_op.filter(|(_, count)| *count > 0).collect(),
            hits: self.tally.hits.iter().sum(),
            misses,
            hits_by_tier: self.tally.hits_by_tier(),
            errors,
            errors_by_status: self.tally.errors_by_status.clone(),
            value_bytes_in,
            value_bytes_out,
            unsent,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;

    struct Clock(Instant);

    impl Clock {
        fn at(&self, ms: u64) -> Instant {
            self.0 + Duration::from_millis(ms)
        }

        /// Measures from 1,000 to 2,000 ms.
        fn recorder(&self) -> Recorder {
            Recorder::new(self.at(1000)..self.at(2000))
        }

        fn call(&self, op: Op, intended: Option<u64>, sent: u64, done: u64) -> Call {
            let intended = intended.map(|ms| self.at(ms));
            let [sent, done] = [sent, done].map(|ms| self.at(ms));
            Call { op, intended, possible: sent, sent, done, keys: 1, value_bytes_out: 0 }
        }
    }

    fn hit() -> Result<Answer, Failure> {
        Ok([Outcome::Hit { tier: ServedBy::Memory, value: Bytes::from_static(b"abc") }].into())
    }

    fn max_ms(times: &crate::result::Histogram) -> u64 {
        (times.max_ns + 500_000) / 1_000_000
    }

    #[test]
    fn a_call_that_waited_for_the_server_counts_from_when_it_was_meant_to_be_sent() {
        let clock = Clock(Instant::now());
        let mut recorder = clock.recorder();
        recorder.record(&clock.call(Op::Get, Some(1100), 1400, 1450), &hit());
        let latency = &recorder.measured.latency()[0];
        assert_eq!([&latency.response, &latency.service, &latency.lag].map(max_ms), [350, 50, 300]);
    }

    #[test]
    fn a_call_is_measured_by_its_intended_start_and_told_in_the_second_in_which_it_ends() {
        let clock = Clock(Instant::now());
        let mut recorder = clock.recorder();
        for (intended, done) in [(999, 1500), (1000, 1500), (1999, 2500), (2000, 2001)] {
            recorder.record(&clock.call(Op::Get, Some(intended), intended, done), &hit());
        }
        assert_eq!(recorder.measured.counts(0).requests, 2);
        assert_eq!(recorder.take_second().tally.requests, 4);
        assert_eq!(recorder.take_second().tally.requests, 0);
    }

    #[test]
    fn in_a_closed_loop_response_is_service_and_there_is_no_lag() {
        let clock = Clock(Instant::now());
        let mut recorder = clock.recorder();
        recorder.record(&clock.call(Op::Put, None, 1100, 1150), &Ok([Outcome::Done].into()));
        let latency = recorder.measured.latency();
        assert_eq!((max_ms(&latency[0].response), latency[0].lag.count), (50, 0));
        assert_eq!((&*latency[1].op, latency.len()), ("put", 2));
    }

    #[test]
    fn failures_are_timed_and_counted_by_status() {
        let clock = Clock(Instant::now());
        let mut recorder = clock.recorder();
        let failure = Failure { status: "UNAVAILABLE".into(), text: "gone".to_owned(), is_undone: false };
        recorder.record(&clock.call(Op::Get, None, 1100, 1150), &Err(failure));
        let part = Ok([Outcome::Done, Outcome::Failed("ABORTED".into())].into_iter().collect());
        recorder.record(&clock.call(Op::Put, None, 1100, 1150), &part);
        let counts = recorder.measured.counts(3);
        assert_eq!((counts.requests, counts.errors, counts.unsent), (2, 2, 3));
        assert_eq!(counts.errors_by_status.keys().collect::<Vec<_>>(), ["ABORTED", "UNAVAILABLE"]);
        assert_eq!(recorder.measured.response().count(), 2);
        assert_eq!(recorder.measured.tally.first_failure.as_deref(), Some("UNAVAILABLE: gone"));
    }

    #[test]
    fn reads_are_told_by_tier_and_a_read_modify_write_is_not_counted_twice() {
        let clock = Clock(Instant::now());
        let mut recorder = clock.recorder();
        let read = clock.call(Op::Get, Some(1000), 1010, 1020);
        let write = clock.call(Op::Put, Some(1020), 1020, 1050);
        recorder.record(&read, &Ok([Outcome::Miss].into()));
        recorder.record(&write, &Ok([Outcome::Done].into()));
        recorder.record_rmw(&read, &write);
        let latency = recorder.measured.latency();
        assert_eq!(latency[0].response.count, 2);
        let rmw = latency.iter().find(|latency| latency.op == "rmw").unwrap();
        assert_eq!([&rmw.response, &rmw.service, &rmw.lag].map(max_ms), [50, 40, 10]);
        let tiers = recorder.measured.tiers();
        assert_eq!((tiers.len(), &*tiers[0].tier), (1, "miss"));
    }

    #[test]
    fn two_cores_add_up() {
        let clock = Clock(Instant::now());
        let mut all = Measured::default();
        for _ in 0..2 {
            let mut recorder = clock.recorder();
            recorder.record(&clock.call(Op::Get, Some(1000), 1000, 1001), &hit());
            all.add(recorder.measured);
        }
        let counts = all.counts(0);
        assert_eq!((counts.hits, counts.value_bytes_in, all.late.count()), (2, 6, 2));
        assert_eq!(counts.hits_by_tier["memory"], 2);
    }
}
