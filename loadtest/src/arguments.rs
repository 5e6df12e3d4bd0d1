//! The command line: what users of wrk2, ghz and memtier expect, read into what a run needs.
//!
//! ```text
//!   texts ──clap──▶ Program ──LoadFlags::plan──▶ Plan, Workload, Settings      or ArgumentError: the flag, what was found
//! ```

use std::{fmt, path::PathBuf, thread, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{
    drive::Plan,
    keys::{KEY_BYTES, KeyDist},
    pace::Phases,
    report,
    result::Settings,
    slo::{Slo, duration, share},
    target::Target,
    trace::Format,
    workload::{PRESETS, Ratio, ValueSize, Walk, Workload},
};

/// Measures Milena, and others with the same instrument.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "milena-loadtest",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 96 regression, 97 wrong answers, 98 the run is not valid, \
                  99 a promise (--slo) was not kept."
)]
pub struct Program {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// One run: at a rate (-r), or as fast as the streams allow (-r 0).
    Run(RunFlags),
    /// One run of a recorded workload: as fast as the streams allow, at a rate (-r), or in its own time (--speed).
    Replay(ReplayFlags),
    /// One run whose answers are checked: no stale reads, nothing lost, nothing that comes back. Half reads, four tenths
    /// writes and a tenth deletes, unless --workload or --ratio say otherwise.
    Verify(VerifyFlags),
    /// Runs at several rates: latency against load.
    Sweep(SweepFlags),
    /// The highest rate that keeps every promise (--slo), by probes that close in on it.
    Search(SearchFlags),
    /// Two targets in turns, A B B A: ratios with 95 % intervals. A target with itself tells how much is noise.
    Ab(AbFlags),
    /// Two result files: exit code 96 if something is worse by more than the noise.
    Compare(CompareFlags),
    /// A page with pictures of one result file or several: one HTML file that fetches nothing.
    Report(ReportFlags),
}

/// The flags of `sweep`.
#[derive(Clone, Debug, Args)]
pub struct SweepFlags {
    /// The server, as for `run`.
    #[arg(long, value_name = "URL")]
    pub target: Target,
    /// Requests per second, such as 10k,20k,50k; they are run in a shuffled order.
    #[arg(long, required = true, value_delimiter = ',', value_name = "N,N,…", value_parser = positive_rate)]
    pub rates: Vec<f64>,
    /// As for `run`.
    #[command(flatten)]
    pub load: LoadFlags,
    /// As for `run`.
    #[command(flatten)]
    pub output: OutputFlags,
}

/// The flags of `search`.
#[derive(Clone, Debug, Args)]
#[command(mut_arg("slo", |slo| slo.required(true)))]
pub struct SearchFlags {
    /// The server, as for `run`.
    #[arg(long, value_name = "URL")]
    pub target: Target,
    /// Where to begin from above, in requests per second; otherwise a closed loop finds out.
    #[arg(long, value_name = "N", value_parser = positive_rate)]
    pub max_rate: Option<f64>,
    /// As for `run`.
    #[command(flatten)]
    pub load: LoadFlags,
    /// As for `run`.
    #[command(flatten)]
    pub output: OutputFlags,
}

/// The flags of `ab`.
#[derive(Clone, Debug, Args)]
pub struct AbFlags {
    /// The first target, as for `run`.
    #[arg(short, long, value_name = "URL")]
    pub a: Target,
    /// The second.
    #[arg(short, long, value_name = "URL")]
    pub b: Target,
    /// Pairs of turns; each turn is a run of --duration.
    #[arg(long, default_value_t = 6, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1_000))]
    pub pairs: u32,
    /// How fast.
    #[command(flatten)]
    pub rate: RateFlag,
    /// As for `run`.
    #[command(flatten)]
    pub load: LoadFlags,
    /// As for `run`.
    #[command(flatten)]
    pub output: OutputFlags,
}

/// The flags of `compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareFlags {
    /// The older result.
    #[arg(value_name = "BEFORE")]
    pub before: PathBuf,
    /// The newer result.
    #[arg(value_name = "AFTER")]
    pub after: PathBuf,
    /// Changes up to this are noise, such as 5%; `ab` of a target with itself tells how much it is.
    #[arg(long, default_value = "5%", value_name = "SHARE", value_parser = noise)]
    pub noise: f64,
}

/// The flags of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportFlags {
    /// Result files, the one that the others are compared with first; up to 6.
    #[arg(required = true, num_args = 1..=report::FILES_MAX, value_name = "RESULT")]
    pub results: Vec<PathBuf>,
    /// Where to write the page.
    #[arg(short, long, default_value = "report.html", value_name = "FILE")]
    pub output: PathBuf,
}

/// The flags of `replay`.
#[derive(Clone, Debug, Args)]
pub struct ReplayFlags {
    /// The recorded requests; .zst and .xz are read as they are.
    #[arg(value_name = "FILE")]
    pub trace: PathBuf,
    /// As for `run`.
    #[command(flatten)]
    pub run: RunFlags,
    /// oracle (libCacheSim's oracleGeneral), twitter (CSV) or keys (one on each line); otherwise by the file's name.
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Its own times, passing so many times as fast.
    #[arg(long, value_name = "N", value_parser = positive_rate)]
    pub speed: Option<f64>,
    /// The most requests that are read of it; they are held in memory.
    #[arg(long, default_value = "10M", value_name = "N", value_parser = count)]
    pub limit: u64,
    /// Does not write the keys that a read has not found.
    #[arg(long)]
    pub no_fill: bool,
}

impl ReplayFlags {
    /// How it is written.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format.unwrap_or_else(|| Format::of(&self.trace))
    }

    /// The flags of its load: the whole trace, without a warm-up, unless they say otherwise.
    ///
    /// # Errors
    /// Flags that say what the trace says.
    pub fn load(&self) -> Result<LoadFlags, ArgumentError> {
        let load = &self.run.load;
        let drawn = [
            ("--workload", load.workload.is_some()),
            ("--keys", load.keys.is_some()),
            ("--key-dist", load.key_dist.is_some()),
            ("--value-size", load.value_size.is_some()),
            ("--ratio", load.ratio.is_some()),
            ("--ttl", load.ttl.is_some()),
        ];
        if let Some((flag, _)) = drawn.into_iter().find(|(_, is_there)| *is_there) {
            return Err(ArgumentError(format!("replay {flag}: that is the trace's business")));
        }
        if self.speed.is_some() && (self.run.rate.rate > 0.0 || self.format() == Format::Keys) {
            let text = "replay --speed: with a rate, or without times in the trace, there is nothing to speed up";
            return Err(ArgumentError(text.to_owned()));
        }
        Ok(LoadFlags {
            duration: load.duration.or(Some(TRACE_MAX)),
            warmup: load.warmup.or(Some(Duration::ZERO)),
            ..load.clone()
        })
    }
}

/// The flags of `verify`.
#[derive(Clone, Debug, Args)]
pub struct VerifyFlags {
    /// As for `run`.
    #[command(flatten)]
    pub run: RunFlags,
    /// A miss is never wrong: for a server that may forget, such as a node with STORE=none and more keys than memory.
    #[arg(long)]
    pub allow_misses: bool,
}

impl VerifyFlags {
    /// What the flags ask for.
    ///
    /// # Errors
    /// As [`LoadFlags::workload`]; a workload that cannot be checked.
    pub fn workload(&self) -> Result<Workload, ArgumentError> {
        const SHARES: Ratio = Ratio { get: 0.5, put: 0.4, insert: 0.0, delete: 0.1, rmw: 0.0 };
        let load = &self.run.load;
        let mut workload = load.workload()?;
        if load.ratio.is_none() && load.workload.is_none() {
            (workload.preset, workload.ratio) = ("verify", SHARES);
        }
        if workload.ratio.rmw > 0.0 || workload.walk != Walk::Drawn {
            return Err(ArgumentError(
                "verify: reads, writes and deletes of keys that are drawn can be checked".to_owned(),
            ));
        }
        if load.no_preload {
            return Err(ArgumentError("verify --no-preload: what was there before cannot be checked".to_owned()));
        }
        Ok(Workload { is_preloaded: true, ..workload })
    }
}

/// The flags of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunFlags {
    /// The server: http://HOST:PORT of a node or a router, redis://HOST:PORT or memcached://HOST:PORT.
    #[arg(long, value_name = "URL")]
    pub target: Target,
    /// How fast.
    #[command(flatten)]
    pub rate: RateFlag,
    /// What.
    #[command(flatten)]
    pub load: LoadFlags,
    /// And where to write it.
    #[command(flatten)]
    pub output: OutputFlags,
}

/// Where results go.
#[derive(Clone, Debug, Args)]
pub struct OutputFlags {
    /// Where to write the result, as JSON.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Where to write the response times of each second, as an HdrHistogram interval log.
    #[arg(long, value_name = "FILE")]
    pub hdr_log: Option<PathBuf>,
    /// Where to write the series, as CSV with a line for each second.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// No progress on standard error.
    #[arg(short, long)]
    pub quiet: bool,
}

/// The rate.
#[derive(Clone, Copy, Debug, Args)]
pub struct RateFlag {
    /// Requests per second over all connections, such as 50k, with Poisson arrivals; 0 = a closed loop: each stream sends
    /// again as soon as it is answered.
    #[arg(short, long, default_value = "0", value_name = "N", value_parser = rate)]
    pub rate: f64,
}

/// What all subcommands that make load have in common.
#[derive(Clone, Debug, Args)]
pub struct LoadFlags {
    /// How long to measure, such as 30s or 2m [default: 10s; replay: the whole trace, up to a day]
    #[arg(short, long, value_name = "TIME", value_parser = time)]
    pub duration: Option<Duration>,
    /// How long the same load runs before that [default: 2s; replay: 0]
    #[arg(short, long, value_name = "TIME", value_parser = time)]
    pub warmup: Option<Duration>,
    /// Connections over all threads.
    #[arg(short, long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub connections: u32,
    /// Client cores, each a thread with its own connections.
    #[arg(short, long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// The most requests in flight on each connection.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub streams: u32,
    /// Binds each client core to one of the processors that it may use.
    #[arg(long)]
    pub pin: bool,
    /// What to do; the flags below change it.
    #[arg(long, value_name = "NAME", long_help = workload_help())]
    pub workload: Option<String>,
    /// Keys in the population.
    #[arg(long, value_name = "N", value_parser = count)]
    pub keys: Option<u64>,
    /// zipf:0.99, uniform, latest:0.99, or hotspot:0.2,0.8 (a fifth of the keys gets four fifths of the requests).
    #[arg(long, value_name = "DIST")]
    pub key_dist: Option<KeyDist>,
    /// A size, or sizes with weights: 100B:90,1MiB:1; or etc.
    #[arg(long, value_name = "SIZES")]
    pub value_size: Option<ValueSize>,
    /// Shares of the operations: get:95,put:5 (also insert, delete, rmw); or PUTS:GETS, such as 1:10.
    #[arg(long, value_name = "SHARES")]
    pub ratio: Option<Ratio>,
    /// The life of what is written, such as 60s; none = for ever.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub ttl: Option<Duration>,
    /// Keys in each call: BatchGet, BatchPut and BatchDelete instead of Get, Put and Delete.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch: u32,
    /// A promise, such as 'p99<2ms' or 'errors<0.1%'; may be given several times.
    #[arg(long, value_name = "PROMISE")]
    pub slo: Vec<Slo>,
    /// Where all randomness comes from: keys, sizes and arrivals are the same for the same seed.
    #[arg(long, default_value_t = 42, value_name = "N")]
    pub seed: u64,
    /// The bucket of all keys.
    #[arg(long, default_value = "loadtest", value_name = "NAME")]
    pub bucket: String,
    /// How long a call may take; after that it is an error.
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = time)]
    pub deadline: Duration,
    /// Does not write the keys before.
    #[arg(long)]
    pub no_preload: bool,
    /// The server's process, where it is not the one that listens on the target's port of this machine.
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
}

/// How long is measured, and how long before, where nothing is said.
const DURATION: Duration = Duration::from_secs(10);
const WARMUP: Duration = Duration::from_secs(2);

/// How long a trace may take where nothing is said.
const TRACE_MAX: Duration = Duration::from_secs(24 * 3600);

/// The workload where none is named.
const USUAL: &str = "ycsb-c";

/// Flags that do not go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgumentError(String);

impl LoadFlags {
    /// What the flags ask for.
    ///
    /// # Errors
    /// A workload that nobody knows, flags that contradict each other.
    pub fn workload(&self) -> Result<Workload, ArgumentError> {
        let name = self.workload.as_deref().unwrap_or(USUAL);
        let preset = Workload::preset(name).ok_or_else(|| {
            let names = PRESETS.map(|(name, _)| name).join(", ");
            ArgumentError(format!("--workload {name}: one of {names} is expected"))
        })?;
        let workload = Workload {
            ratio: self.ratio.unwrap_or(preset.ratio),
            keys: self.keys.unwrap_or(preset.keys),
            key_dist: self.key_dist.unwrap_or(preset.key_dist),
            value_size: self.value_size.clone().unwrap_or(preset.value_size),
            ttl_ms: self.ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
            is_preloaded: preset.is_preloaded && !self.no_preload,
            seed: self.seed,
            ..preset
        };
        if workload.keys < u64::from(self.threads) {
            return Err(ArgumentError(format!("--keys {}: {} threads need one each", workload.keys, self.threads)));
        }
        if self.batch > 1 && workload.ratio.rmw > 0.0 {
            return Err(ArgumentError(format!("--batch {}: a read-modify-write has one key", self.batch)));
        }
        Ok(workload)
    }

    /// What the client's cores do to `target`.
    ///
    /// # Errors
    /// Fewer connections than threads, or nothing to measure.
    pub fn plan(&self, target: &Target) -> Result<Plan, ArgumentError> {
        if self.connections < self.threads {
            return Err(ArgumentError(format!(
                "-c {}: {} threads need at least one connection each",
                self.connections, self.threads
            )));
        }
        let (warmup, duration) = (self.warmup.unwrap_or(WARMUP), self.duration.unwrap_or(DURATION));
        if duration.is_zero() || self.deadline.is_zero() {
            return Err(ArgumentError("--duration and --deadline: more than 0 is expected".to_owned()));
        }
        let measured_to = warmup + duration;
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Ok(Plan {
            target: target.clone(),
            bucket: self.bucket.clone(),
            cores: self.threads as usize,
            pin: self.pin,
            // With a processor left for others; a pacer that has to share its own is in the way of the server.
            spin: self.pin || (self.threads as usize) < processors,
            connections: self.connections as usize,
            streams: self.streams as usize,
            batch: self.batch as usize,
            deadline: self.deadline,
            fill: false,
            phases: Phases { measured_from: warmup, measured_to, end: measured_to },
        })
    }

    /// What was asked for, as results tell it. Who answers is not known yet.
    #[must_use]
    pub fn settings(&self, target: &Target, workload: &Workload, rate_per_s: f64) -> Settings {
        Settings {
            target: target.text.clone(),
            protocol: String::new(),
            rate_per_s,
            duration_s: self.duration.unwrap_or(DURATION).as_secs_f64(),
            warmup_s: self.warmup.unwrap_or(WARMUP).as_secs_f64(),
            connections: self.connections,
            threads: self.threads,
            streams: self.streams,
            is_pinned: self.pin,
            workload: workload.preset.to_owned(),
            ratio: workload.ratio.shares(),
            keys: workload.keys,
            key_dist: workload.key_dist.to_string(),
            key_bytes: KEY_BYTES as f64,
            value_size: workload.value_size.to_string(),
            value_bytes_mean: workload.value_size.mean_bytes(),
            ttl_ms: workload.ttl_ms,
            batch: self.batch,
            is_preloaded: workload.is_preloaded,
            deadline_ms: u64::try_from(self.deadline.as_millis()).unwrap_or(u64::MAX),
            seed: workload.seed,
            slo: self.slo.iter().map(ToString::to_string).collect(),
        }
    }
}

fn workload_help() -> String {
    let presets = PRESETS.map(|(name, what)| format!("  {name:8} {what}")).join("\n");
    format!("What to do; the flags below change it. {USUAL} unless the subcommand has its own.\n\n{presets}")
}

/// `50000`, `50k`, `1.5M`.
fn rate(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.strip_suffix(['k', 'K', 'M']) {
        Some(number) if text.ends_with('M') => (number, 1e6),
        Some(number) => (number, 1e3),
        None => (text, 1.0),
    };
    let number = number.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    number.map(|number| number * unit).ok_or_else(|| "a number such as 50000, 50k or 1.5M is expected".to_owned())
}

/// As [`rate`], but not 0.
fn positive_rate(text: &str) -> Result<f64, String> {
    rate(text).and_then(|rate| if rate > 0.0 { Ok(rate) } else { Err("more than 0 is expected".to_owned()) })
}

/// `5%` or `0.05`.
fn noise(text: &str) -> Result<f64, String> {
    share(text).ok_or_else(|| "a share such as 5% or 0.05 is expected".to_owned())
}

/// As [`rate`], but whole and not 0.
fn count(text: &str) -> Result<u64, String> {
    let count = rate(text)?;
    if count >= 1.0 && count.fract() == 0.0 && count < 9e15 {
        Ok(count as u64)
    } else {
        Err("a whole number of at least 1 is expected".to_owned())
    }
}

/// `10s`, `2m`, `500ms`; a bare number is seconds.
fn time(text: &str) -> Result<Duration, String> {
    let time = duration(text).or_else(|| duration(&format!("{text}s")));
    time.ok_or_else(|| "a time such as 30s, 2m or 500ms is expected".to_owned())
}

impl fmt::Display for ArgumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ArgumentError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &str) -> Result<RunFlags, String> {
        let words = ["milena-loadtest", "run"].into_iter().chain(flags.split_whitespace());
        match Program::try_parse_from(words).map_err(|error| error.to_string())?.command {
            Command::Run(flags) => Ok(flags),
            other => panic!("{other:?}"),
        }
    }

    fn refusal(flags: &str) -> String {
        let flags = parse(&format!("--target http://h:1 {flags}")).unwrap();
        let workload = flags.load.workload().map(drop);
        workload.and_then(|()| flags.load.plan(&flags.target).map(drop)).unwrap_err().to_string()
    }

    #[test]
    fn flags_are_read_as_users_of_other_tools_write_them() {
        let flags = parse(
            "--target http://127.0.0.1:50051 -r 50k -d 1m -w 500ms -c 64 -t 2 --streams 4 --workload ycsb-a --keys 1M \
             --key-dist hotspot:0.1,0.9 --value-size 100B:90,1MiB:1 --ratio 1:10 --ttl 60 --batch 10 --slo p99<2ms \
             --slo errors<1% --seed 7 -o result.json",
        )
        .unwrap();
        let workload = flags.load.workload().unwrap();
        let settings = flags.load.settings(&flags.target, &workload, flags.rate.rate);
        assert_eq!((settings.rate_per_s, settings.duration_s, settings.warmup_s), (50_000.0, 60.0, 0.5));
        assert_eq!((workload.keys, workload.ttl_ms, workload.seed), (1_000_000, 60_000, 7));
        assert_eq!(settings.key_dist, "hotspot:0.1,0.9");
        assert_eq!(settings.slo, ["p99<2ms", "errors<1%"]);
        assert_eq!(settings.ratio["put"], 1.0 / 11.0);
    }

    #[test]
    fn flags_that_do_not_go_together_are_refused_with_what_is_expected() {
        assert_eq!(refusal("-c 2 -t 3"), "-c 2: 3 threads need at least one connection each");
        assert_eq!(refusal("--workload ycsb-f --batch 2"), "--batch 2: a read-modify-write has one key");
        assert!(refusal("--workload ycsb-e").starts_with("--workload ycsb-e: one of ycsb-a, "));
        assert_eq!(refusal("-t 3 --keys 2"), "--keys 2: 3 threads need one each");
        assert_eq!(refusal("-d 0"), "--duration and --deadline: more than 0 is expected");
    }

    #[test]
    fn values_that_cannot_be_read_are_refused_by_clap_with_their_flag() {
        for (flags, expected) in [
            ("--target h:1", "--target"),
            ("--target http://h:1 -r -5", "-5"),
            ("--target http://h:1 -d soon", "--duration"),
            ("--target http://h:1 --keys 0", "--keys"),
            ("--target http://h:1 --slo p99=2", "--slo"),
        ] {
            let text = parse(flags).unwrap_err();
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn the_program_describes_itself() {
        use clap::CommandFactory as _;
        Program::command().debug_assert();
    }
}
