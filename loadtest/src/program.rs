//! The subcommands: each makes a result, shows it, writes it where it is wanted, and says how it ended by an exit code.
//!
//! ```text
//!   run, verify           one run  ─┐
//!   sweep, search, ab     several  ─┼─▶ ResultFile ─▶ standard output, FILES ─▶ Ending ─▶ exit code
//!   compare               two files ┘
//!   report                some files ─▶ a page
//! ```

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use milena_net::cores::{self, ProbeError};

use crate::{
    arguments::{ArgumentError, Command, LoadFlags, OutputFlags, Program, ReportFlags, RunFlags, VerifyFlags},
    cost,
    progress::Progress,
    random, report,
    result::{Kind, ReadError, ResultFile, Run, SCHEMA, Tool, Verify},
    run::{self, Done, Job, RunError},
    schedule::Arrivals,
    series, show,
    synthetic::Synthetic,
    target::Target,
    times::Times,
    trace::TraceError,
    verify::{self, Checked},
    workload::Workload,
};

mod compare;
mod replay;
mod several;

/// How the program ended, other than with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// All is well.
    Done,
    /// Slower than before.
    Regressed,
    /// A promise was not kept.
    SloMissed,
    /// The numbers are not to be believed.
    Invalid,
    /// The server gave wrong answers.
    Incorrect,
}

impl Ending {
    /// What the program exits with; k6's number for a promise that was not kept, and the ones below it.
    #[must_use]
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Done => 0,
            Self::Regressed => 96,
            Self::Incorrect => 97,
            Self::Invalid => 98,
            Self::SloMissed => 99,
        })
    }

    /// How a run ended. An invalid run says nothing about promises.
    #[must_use]
    pub fn of(run: &Run) -> Self {
        let is_wrong = run.verify.as_ref().is_some_and(|verify| verify.violations.values().any(|count| *count > 0));
        if is_wrong {
            Self::Incorrect
        } else if !run.validity.is_valid {
            Self::Invalid
        } else if run.slo.iter().any(|outcome| !outcome.is_kept) {
            Self::SloMissed
        } else {
            Self::Done
        }
    }
}

/// Why there is no result.
#[derive(Debug)]
pub enum ProgramError {
    /// The flags contradict each other.
    Arguments(ArgumentError),
    /// This machine cannot run cores.
    Machine(ProbeError),
    /// The run could not be made.
    Run(RunError),
    /// The trace could not be read.
    Trace(TraceError),
    /// A file could not be read.
    Input(ReadError),
    /// Two files that cannot be compared.
    Unlike {
        /// What the older is.
        before: String,
        /// What the newer is.
        after: String,
    },
    /// A file could not be written.
    Output {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl ProgramError {
    /// 2 for wrong usage, 1 for the rest.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Arguments(_) => ExitCode::from(2),
            Self::Unlike { .. } => ExitCode::from(2),
            Self::Machine(_) | Self::Run(_) | Self::Trace(_) | Self::Input(_) | Self::Output { .. } => {
                ExitCode::FAILURE
            }
        }
    }
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arguments(error) => error.fmt(f),
            Self::Machine(error) => error.fmt(f),
            Self::Run(error) => error.fmt(f),
            Self::Trace(error) => error.fmt(f),
            Self::Input(error) => error.fmt(f),
            Self::Unlike { before, after } => {
                write!(f, "two results of one kind are expected; the first is {before}, the second {after}")
            }
            Self::Output { path, source } => write!(f, "cannot write {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for ProgramError {}

impl From<ArgumentError> for ProgramError {
    fn from(error: ArgumentError) -> Self {
        Self::Arguments(error)
    }
}

impl From<RunError> for ProgramError {
    fn from(error: RunError) -> Self {
        Self::Run(error)
    }
}

impl Program {
    /// Does what was asked for.
    ///
    /// # Errors
    /// [`ProgramError`]: nothing was measured, or it could not be written.
    pub fn run(&self) -> Result<Ending, ProgramError> {
        if !matches!(&self.command, Command::Compare(_) | Command::Report(_)) {
            cores::probe().map_err(ProgramError::Machine)?;
        }
        match &self.command {
            Command::Run(flags) => run_once(flags),
            Command::Replay(flags) => replay::replay(flags),
            Command::Verify(flags) => verify_once(flags),
            Command::Sweep(flags) => several::sweep(flags),
            Command::Search(flags) => several::search(flags),
            Command::Ab(flags) => several::ab(flags),
            Command::Compare(flags) => compare::compare(flags),
            Command::Report(flags) => write_report(flags),
        }
    }
}

fn write_report(flags: &ReportFlags) -> Result<Ending, ProgramError> {
    let files = flags.results.iter().map(|path| ResultFile::read(path)).collect::<Result<Vec<_>, _>>();
    let page = report::html(&files.map_err(ProgramError::Input)?);
    let path = &flags.output;
    fs::write(path, page).map_err(|source| ProgramError::Output { path: path.clone(), source })?;
    println!("{}", path.display());
    Ok(Ending::Done)
}

fn run_once(flags: &RunFlags) -> Result<Ending, ProgramError> {
    let results = Results::begin(Kind::Run);
    let progress = Progress::new(flags.output.quiet);
    let workload = flags.load.workload()?;
    let done = synthetic(&flags.load, &flags.target, &workload, flags.rate.rate, "", &progress)?;
    results.keep_only(done, &flags.output)
}

fn verify_once(flags: &VerifyFlags) -> Result<Ending, ProgramError> {
    let RunFlags { target, rate, load, output } = &flags.run;
    let results = Results::begin(Kind::Verify);
    let workload = flags.workload()?;
    // Of no other run, also not of one with the same seed a moment ago.
    let run = random::mix(workload.seed ^ results.file.started_unix_ms << 16 ^ u64::from(std::process::id()));
    let job = job(load, target, &workload, rate.rate, "")?;
    let cores = job.plan.cores;
    let make = |core| {
        let checked = Checked::new(&workload, core, cores, run, !flags.allow_misses);
        (checked, arrivals(&workload, rate.rate, core, cores))
    };
    let mut done = run::run(job, &Progress::new(output.quiet), make)?;
    let mut found = Verify { violations: verify::no_violations(), ..Verify::default() };
    done.loads.drain(..).for_each(|checked| verify::add(&mut found, checked.into_found()));
    done.run.verify = Some(found);
    results.keep_only(done, output)
}

/// One run of a workload that is drawn by chance.
fn synthetic(
    flags: &LoadFlags,
    target: &Target,
    workload: &Workload,
    rate_per_s: f64,
    label: &str,
    progress: &Progress,
) -> Result<Done<Synthetic>, ProgramError> {
    let job = job(flags, target, workload, rate_per_s, label)?;
    let (cores, inflight_max) = (job.plan.cores, job.plan.streams * job.plan.connections.div_ceil(job.plan.cores));
    let make = |core| {
        let synthetic = Synthetic::new(workload, core, cores, inflight_max);
        (synthetic, arrivals(workload, rate_per_s, core, cores))
    };
    Ok(run::run(job, progress, make)?)
}

fn job<'a>(
    flags: &'a LoadFlags,
    target: &Target,
    workload: &Workload,
    rate_per_s: f64,
    label: &str,
) -> Result<Job<'a>, ProgramError> {
    Ok(Job {
        label: label.to_owned(),
        plan: flags.plan(target)?,
        settings: flags.settings(target, workload, rate_per_s),
        slo: &flags.slo,
        server: server(flags, target),
        preload_count: if workload.is_preloaded { workload.keys } else { 0 },
    })
}

/// A core's share of the schedule; none in a closed loop.
fn arrivals(workload: &Workload, rate_per_s: f64, core: usize, cores: usize) -> Option<Arrivals> {
    (rate_per_s > 0.0).then(|| Arrivals::poisson(rate_per_s / cores as f64, workload.seed, core))
}

/// The process of the server, if it is on this machine.
fn server(flags: &LoadFlags, target: &Target) -> Result<u32, String> {
    match flags.server_pid {
        Some(pid) => Ok(pid),
        None if target.is_local() => cost::listening_pid(target.port),
        None => Err(format!("{} is not this machine", target.host)),
    }
}

/// What was measured, until it is written.
struct Results {
    file: ResultFile,
    /// For each run the response times of each second of its series.
    seconds: Vec<Vec<Times>>,
}

impl Results {
    fn begin(kind: Kind) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let file = ResultFile {
            schema: SCHEMA,
            kind,
            tool: Tool {
                name: "milena-loadtest".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            },
            command: std::env::args().collect(),
            started_unix_ms: u64::try_from(now.as_millis()).expect("a date that fits"),
            machine: cost::machine(),
            runs: Vec::new(),
            search: None,
            ab: None,
        };
        Self { file, seconds: Vec::new() }
    }

    fn keep<L>(&mut self, done: Done<L>) {
        self.file.runs.push(done.run);
        self.seconds.push(done.seconds);
    }

    /// Keeps the only run, shows it and writes it.
    fn keep_only<L>(mut self, done: Done<L>, flags: &OutputFlags) -> Result<Ending, ProgramError> {
        print!("{}", show::run(&done.run));
        let ending = Ending::of(&done.run);
        self.keep(done);
        self.write(flags)?;
        Ok(ending)
    }

    fn write(&self, flags: &OutputFlags) -> Result<(), ProgramError> {
        let OutputFlags { output, hdr_log, csv, .. } = flags;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ProgramError::Output { path, source }
        };
        if let Some(path) = output {
            self.file.write(path).map_err(failed(path))?;
        }
        if let Some(path) = hdr_log {
            fs::write(path, series::interval_log(&self.file.runs, &self.seconds)).map_err(failed(path))?;
        }
        if let Some(path) = csv {
            fs::write(path, series::csv(&self.file.runs)).map_err(failed(path))?;
        }
        Ok(())
    }
}
