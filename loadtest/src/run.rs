//! One run: the cores do the work, this thread keeps the time, reads `/proc`, and puts the result together.
//!
//! ```text
//!   cores     open, preload ──Ready──┐         ┌ second ┬ second ┬ … ┬ second ┬ afterwards ┐
//!   here                             └─ begin ─┤        │        │   │        │            └─ join ─▶ Run
//!   server's processor time              read  ┴────────┴────────┴───┴────────┘
//!   server's system calls                                        counted only ┴────────────┘
//! ```
//! System calls are counted after the measured part, with the same load: counting makes each of them slower.

use std::{
    fmt,
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use milena_net::cores::StartError;

use crate::{
    cost::{self, MachineUse, ProcessUse},
    drive::{CoreOutcome, CoreSecond, Driver, Load, Plan, Report, second_ends},
    progress::Progress,
    recorder::{Ended, Measured},
    result::{ClientUse, Noise, Rates, Run, Second, ServerUse, Settings},
    schedule::Arrivals,
    slo::Slo,
    system_calls::SystemCalls,
    times::Times,
    validity::{BUSY_SHARE_MAX, Evidence, judge},
};

/// How long a core may say nothing while it connects and writes its keys.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// From when all cores are ready to when they begin.
const LEAD: Duration = Duration::from_millis(20);

/// How long after a second, or a call's deadline at the end, its report may come.
const REPORT_MAX: Duration = Duration::from_secs(20);

/// How long system calls are counted.
pub const COUNTING: Duration = Duration::from_secs(1);

/// What is to be run.
#[derive(Debug)]
pub struct Job<'a> {
    /// What tells it from the others of its file.
    pub label: String,
    /// What the cores do. [`COUNTING`] is added to its end where system calls can be counted.
    pub plan: Plan,
    /// What was asked for, as results tell it.
    pub settings: Settings,
    /// The promises.
    pub slo: &'a [Slo],
    /// The server's process, or why it is not known.
    pub server: Result<u32, String>,
    /// Keys that are written before, over all cores.
    pub preload_count: u64,
}

/// A run that has ended.
#[derive(Debug)]
pub struct Done<L> {
    /// What it has come to.
    pub run: Run,
    /// Response times of each second of the series.
    pub seconds: Vec<Times>,
    /// The sources of the operations, with what they have learned; by core.
    pub loads: Vec<L>,
}

/// Why there is no result.
#[derive(Debug)]
pub enum RunError {
    /// The client's cores did not start.
    Start(StartError),
    /// A core could not go on; in words.
    Core(String),
    /// A core said nothing for too long.
    Silent {
        /// What was waited for.
        awaited: &'static str,
    },
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(error) => error.fmt(f),
            Self::Core(text) => f.write_str(text),
            Self::Silent { awaited } => write!(f, "a core of the client says nothing; waited for: {awaited}"),
        }
    }
}

impl std::error::Error for RunError {}

/// Runs `job` to its end; `make(core)` gives each core its operations and, for an open loop, its schedule.
///
/// # Errors
/// [`RunError`]: there is nothing to tell then.
pub fn run<L: Load + Send>(
    mut job: Job<'_>,
    progress: &Progress,
    make: impl FnMut(usize) -> (L, Option<Arrivals>),
) -> Result<Done<L>, RunError> {
    let system_calls = match &job.server {
        Ok(pid) => SystemCalls::of(*pid),
        Err(reason) => Err(reason.clone()),
    };
    if system_calls.is_ok() {
        job.plan.phases.end += COUNTING;
    }
    let driver = Driver::start(&job.plan, make).map_err(RunError::Start)?;
    let ends = second_ends(&job.plan.phases);
    let exhausted = vec![None; job.plan.cores];
    let mut watch = Watch { driver, job: &job, progress, ends, early: Vec::new(), exhausted };
    let protocol = watch.await_ready()?;
    let seen = watch.follow(system_calls)?;
    let outcomes: Option<Vec<CoreOutcome<L>>> = watch.driver.join().into_iter().collect();
    let outcomes = outcomes.expect("every core has told its last second");
    progress.end();
    job.settings.protocol = protocol.to_owned();
    Ok(seen.into_done(job, outcomes))
}

/// This thread, while the cores run.
struct Watch<'a, L: Send + 'static> {
    driver: Driver<L>,
    job: &'a Job<'a>,
    progress: &'a Progress,
    /// Ends of the seconds, and of what comes after.
    ends: Vec<Duration>,
    /// Reports of seconds that are not over on all cores.
    early: Vec<CoreSecond>,
    /// By core: the second in which it had nothing more to ask, and when.
    exhausted: Vec<Option<(usize, Duration)>>,
}

/// What was seen from outside of the cores.
struct Seen {
    measured_unix_ms: u64,
    /// How long the measured part was.
    measured: Duration,
    seconds: Vec<SecondSeen>,
    server: Option<ProcessUse>,
    system_calls_per_request: Result<f64, String>,
    noise: Noise,
}

struct SecondSeen {
    start: Duration,
    end: Duration,
    ended: Ended,
    busy_by_core: Vec<Duration>,
    server: Option<ProcessUse>,
}

impl<L: Load + Send> Watch<'_, L> {
    /// Waits until every core is connected and has written its keys; who answers there.
    fn await_ready(&self) -> Result<&'static str, RunError> {
        let (mut ready_count, mut written) = (0, 0);
        loop {
            match self.driver.report(SILENCE_MAX) {
                Ok(Report::Ready { protocol }) => {
                    ready_count += 1;
                    if ready_count == self.job.plan.cores {
                        return Ok(protocol);
                    }
                }
                Ok(Report::Preloaded(count)) => {
                    written += count;
                    self.progress.preload(written, self.job.preload_count);
                }
                Ok(Report::Failed(text)) => return Err(RunError::Core(text)),
                Ok(Report::Second(_)) => unreachable!("nobody was told to begin"),
                Err(_) => return Err(RunError::Silent { awaited: "connections and the first writes" }),
            }
        }
    }

    /// Begins, and looks on to the end.
    fn follow(&mut self, system_calls: Result<SystemCalls, String>) -> Result<Seen, RunError> {
        let phases = self.job.plan.phases;
        let begin = Instant::now() + LEAD;
        let measured_at = begin + phases.measured_from;
        let measured_unix = SystemTime::now() + measured_at.saturating_duration_since(Instant::now());
        self.driver.begin(begin);
        self.wait_until(begin, 0)?;

        let server_now = || self.job.server.as_ref().ok().and_then(|pid| ProcessUse::of(*pid));
        let (mut server_before, mut start) = (server_now(), Duration::ZERO);
        let (mut machine_before, mut machine_after) = (MachineUse::now(), MachineUse::now());
        let mut server = None;
        let mut seconds = Vec::new();
        for (index, end) in self.ends.clone().into_iter().enumerate() {
            if start == phases.measured_from {
                (machine_before, server) = (MachineUse::now(), server_before);
            }
            self.wait_until(begin + end, index)?;
            let server_after = server_now();
            let over = self.over(index);
            let end = over.unwrap_or(end);
            let spent = server_before.zip(server_after).map(|(before, after)| after.since(before));
            if end == phases.measured_to || over.is_some() {
                machine_after = MachineUse::now();
                server = server.zip(server_after).map(|(before, after)| after.since(before));
            }
            let (ended, busy_by_core) = self.gather(index)?;
            let second = SecondSeen { start, end, ended, busy_by_core, server: spent };
            self.progress.second(&second.to_result(index, &phases), self.ends.len());
            seconds.push(second);
            (server_before, start) = (server_after, end);
            if over.is_some() {
                break;
            }
        }
        let system_calls_per_request = match system_calls {
            Ok(_) if start < phases.measured_to => Err("not counted: there was nothing more to ask".to_owned()),
            Ok(counter) => self.count(&counter, begin),
            Err(reason) => Err(reason),
        };
        let measured = start.saturating_sub(phases.measured_from);
        Ok(Seen {
            measured_unix_ms: unix_ms(measured_unix),
            measured,
            seconds,
            server,
            system_calls_per_request,
            noise: Noise {
                steal_share: machine_after.steal_share_since(machine_before),
                cpu_pressure_share: machine_after.pressure_share_since(machine_before, measured),
            },
        })
    }

    /// When the last answer came, if no core has had anything more to ask by the end of second `index`.
    fn over(&self, index: usize) -> Option<Duration> {
        let by_then = |exhausted: &Option<(usize, Duration)>| exhausted.filter(|(second, _)| *second <= index);
        let all: Option<Vec<(usize, Duration)>> = self.exhausted.iter().map(by_then).collect();
        all?.into_iter().map(|(_, at)| at).max()
    }

    /// Counts the server's system calls while the load goes on after the measured part.
    fn count(&mut self, counter: &SystemCalls, begin: Instant) -> Result<f64, String> {
        counter.start();
        let failed = |error: RunError| error.to_string();
        self.wait_until(begin + self.job.plan.phases.end, self.ends.len()).map_err(failed)?;
        let calls = counter.stop();
        let (ended, _) = self.gather(self.ends.len()).map_err(failed)?;
        match ended.tally.requests {
            0 => Err("no call ended while they were counted".to_owned()),
            requests => Ok(calls as f64 / requests as f64),
        }
    }

    /// Waits for `at`, the end of second `index`, or until there is nothing more to ask; keeps what the cores tell meanwhile.
    fn wait_until(&mut self, at: Instant, index: usize) -> Result<(), RunError> {
        loop {
            if self.over(index).is_some() {
                return Ok(());
            }
            let left = at.saturating_duration_since(Instant::now());
            match self.driver.report(left) {
                Ok(report) => self.take(report)?,
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                // All cores have ended. Their reports are here, the clock goes on.
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(left);
                    return Ok(());
                }
            }
        }
    }

    fn take(&mut self, report: Report) -> Result<(), RunError> {
        match report {
            Report::Second(second) => {
                self.exhausted[second.core] = second.exhausted.map(|at| (second.index, at));
                self.early.push(*second);
            }
            Report::Failed(text) => return Err(RunError::Core(text)),
            Report::Ready { .. } | Report::Preloaded(_) => {}
        }
        Ok(())
    }

    /// Whether every core has told second `index`, or will tell nothing more.
    fn is_told(&self, index: usize) -> bool {
        (0..self.job.plan.cores).all(|core| {
            let is_exhausted = self.exhausted[core].is_some_and(|(second, _)| second < index);
            is_exhausted || self.early.iter().any(|second| (second.core, second.index) == (core, index))
        })
    }

    /// What ended in second `index` on all cores, and each core's processor time.
    fn gather(&mut self, index: usize) -> Result<(Ended, Vec<Duration>), RunError> {
        let until = Instant::now() + self.job.plan.deadline + REPORT_MAX;
        while !self.is_told(index) {
            let left = until.saturating_duration_since(Instant::now());
            let report = self.driver.report(left).map_err(|_| RunError::Silent { awaited: "a second's end" })?;
            self.take(report)?;
        }
        let (mut ended, mut busy_by_core) = (Ended::default(), vec![Duration::ZERO; self.job.plan.cores]);
        for second in self.early.extract_if(.., |second| second.index == index) {
            ended.add(second.ended);
            busy_by_core[second.core] = second.busy;
        }
        Ok((ended, busy_by_core))
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).expect("a date that fits")
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl SecondSeen {
    fn to_result(&self, index: usize, phases: &crate::pace::Phases) -> Second {
        let Ended { response, tally, lag_max_ns } = &self.ended;
        Second {
            second: u32::try_from(index).expect("136 years fit"),
            is_warmup: self.start < phases.measured_from,
            length_s: (self.end - self.start).as_secs_f64(),
            requests: tally.requests,
            errors: tally.errors,
            misses: tally.misses,
            hits_by_tier: tally.hits_by_tier(),
            p50_ns: response.percentile_ns(50.0),
            p99_ns: response.percentile_ns(99.0),
            p999_ns: response.percentile_ns(99.9),
            max_ns: response.max_ns(),
            lag_max_ns: *lag_max_ns,
            server_cpu_ns: self.server.map(|server| server.cpu_ns),
            client_cpu_ns: nanos(self.busy_by_core.iter().sum()),
        }
    }
}

impl Seen {
    fn into_done<L>(self, job: Job<'_>, outcomes: Vec<CoreOutcome<L>>) -> Done<L> {
        let phases = job.plan.phases;
        let (mut measured, mut unsent, mut loads) = (Measured::default(), 0, Vec::new());
        for outcome in outcomes {
            measured.add(outcome.measured);
            unsent += outcome.unsent;
            loads.push(outcome.load);
        }
        let wall_s = self.measured.as_secs_f64();
        let per_s = |count: u64| if wall_s > 0.0 { count as f64 / wall_s } else { 0.0 };
        let counts = measured.counts(unsent);
        let response = measured.response();
        let client = self.client(&phases, counts.requests, &measured.late);
        let per = |whole: u64, parts: u64| if parts == 0 { 0.0 } else { whole as f64 / parts as f64 };
        let rates = Rates {
            intended_per_s: job.settings.rate_per_s,
            achieved_per_s: per_s(counts.requests),
            keys_per_s: per_s(counts.keys),
            value_bytes_per_s: per_s(counts.value_bytes_in + counts.value_bytes_out),
        };
        let (server, server_absent_because) = match (&job.server, self.server) {
            (Ok(pid), Some(ProcessUse { cpu_ns, run_queue_wait_ns })) => {
                let (system_calls_per_request, system_calls_note) = match self.system_calls_per_request {
                    Ok(calls) => (Some(calls), SystemCalls::NOTE.to_owned()),
                    Err(reason) => (None, reason),
                };
                let server = ServerUse {
                    pid: *pid,
                    name: cost::process_name(*pid),
                    cpu_ns,
                    run_queue_wait_ns,
                    cpu_ns_per_request: per(cpu_ns, counts.requests),
                    cpu_ns_per_key: per(cpu_ns, counts.keys),
                    system_calls_per_request,
                    system_calls_note,
                    resident_bytes: cost::resident_bytes(*pid),
                };
                (Some(server), String::new())
            }
            (Ok(pid), None) => (None, format!("process {pid} has ended, or does not tell what it uses")),
            (Err(reason), _) => (None, reason.clone()),
        };
        let validity = judge(&Evidence {
            is_open: job.settings.rate_per_s > 0.0,
            counts: &counts,
            response: &response,
            late: &measured.late,
            busy_share: client.busy_share_by_core.iter().copied().fold(0.0, f64::max),
            disturbed_share: server.as_ref().map(|server| per(server.run_queue_wait_ns, server.cpu_ns)),
            noise: &self.noise,
            is_debug_build: cfg!(debug_assertions),
        });
        let series = self.seconds.iter().enumerate().map(|(index, second)| second.to_result(index, &phases)).collect();
        let run = Run {
            label: job.label,
            started_unix_ms: self.measured_unix_ms,
            settings: job.settings,
            validity,
            slo: job.slo.iter().map(|slo| slo.judge(&response, &counts, &rates)).collect(),
            first_failure: measured.tally.first_failure.clone(),
            counts,
            rates,
            latency: measured.latency(),
            tiers: measured.tiers(),
            series,
            server,
            server_absent_because,
            client,
            noise: self.noise,
            verify: None,
        };
        Done { run, seconds: self.seconds.into_iter().map(|second| second.ended.response).collect(), loads }
    }

    fn client(&self, phases: &crate::pace::Phases, requests: u64, late: &Times) -> ClientUse {
        let wall_s = self.measured.as_secs_f64().max(f64::MIN_POSITIVE);
        let measured = || self.seconds.iter().filter(|second| second.start >= phases.measured_from);
        let cores = self.seconds.first().map_or(0, |second| second.busy_by_core.len());
        let busy = |core: usize| measured().map(|second| second.busy_by_core[core]).sum::<Duration>();
        let by_core: Vec<Duration> = (0..cores).map(busy).collect();
        let cpu_ns = nanos(by_core.iter().sum());
        let busy_share_by_core: Vec<f64> = by_core.iter().map(|busy| busy.as_secs_f64() / wall_s).collect();
        ClientUse {
            cpu_ns,
            cpu_ns_per_request: if requests == 0 { 0.0 } else { cpu_ns as f64 / requests as f64 },
            is_the_limit: busy_share_by_core.iter().any(|share| *share >= BUSY_SHARE_MAX),
            busy_share_by_core,
            late_p99_ns: late.percentile_ns(99.0),
        }
    }
}
