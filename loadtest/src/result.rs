//! The file a measurement leaves behind: everything that somebody needs who was not there.
//!
//! ```text
//!   ResultFile ── schema, kind, tool, command, machine
//!     ├─ runs[]   one for `run`, `replay` and `verify`; one for each probe of `sweep` and `search`, for each turn of `ab`
//!     │    ├─ settings                      what was asked for
//!     │    ├─ validity, slo                 whether it may be believed, whether it is good enough
//!     │    ├─ counts, rates                 what was done
//!     │    ├─ latency[]                     by operation:  response ◀── intended ─▶ sent ─▶ done
//!     │    │                                                              └ lag ┘ └ service ┘
//!     │    ├─ tiers[]                       service time by the tier that answered
//!     │    ├─ series[]                      the same, second by second, warm-up included
//!     │    └─ server, client, noise         what it cost, and what else went on
//!     ├─ search   the rate that was found, for `search`
//!     └─ ab       ratios with their intervals, for `ab`
//! ```
//! JSON. Times are whole nanoseconds where a name ends in `_ns`; a rate is per second; a share is from 0 to 1. What could
//! not be measured is `null`, with the reason beside it. Readers pass over fields that they do not know, and refuse a
//! `schema` above their own; within one schema fields are only added. `docs/result.schema.json` says the same to programs;
//! `MILENA_REGENERATE=1 cargo test -p milena-loadtest --test report schema` writes it from these types and their comments.

use std::{collections::BTreeMap, fmt, fs, io, path::Path};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version of this format.
pub const SCHEMA: u32 = 1;

/// A percentile is only told if at least this many samples lie beyond it: 10,000 samples for a p99, a million for a
/// p99.99. With fewer it says more about luck than about the server.
pub const SAMPLES_BEYOND_MIN: u64 = 100;

/// The percentiles that are told, if there are samples enough.
pub const PERCENTILES: [f64; 9] = [50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 99.999, 99.9999];

/// A whole file.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ResultFile {
    /// [`SCHEMA`] of the program that wrote it.
    pub schema: u32,
    /// Which subcommand wrote it.
    pub kind: Kind,
    /// What measured.
    pub tool: Tool,
    /// The command line, word by word; what repeats the measurement.
    pub command: Vec<String>,
    /// When it began, milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    /// Where the program ran.
    pub machine: Machine,
    /// In the order in which they were run.
    pub runs: Vec<Run>,
    /// Only for [`Kind::Search`].
    pub search: Option<Search>,
    /// Only for [`Kind::Ab`].
    pub ab: Option<Ab>,
}

/// A subcommand that leaves a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One run of a synthetic workload.
    Run,
    /// One run of a recorded one.
    Replay,
    /// One run whose answers were checked.
    Verify,
    /// Runs at several rates; `runs[].rates.intended_per_s` tells them apart.
    Sweep,
    /// Runs at rates that close in on the highest that keeps a promise.
    Search,
    /// Runs against two targets in turns; `runs[].label` is `A` or `B`.
    Ab,
}

/// The program.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Tool {
    /// `milena-loadtest`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `release` or `debug`. A debug build measures itself.
    pub profile: String,
}

/// The machine of the client, which is the server's too where the target is loopback.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// The processor as `/proc/cpuinfo` calls it.
    pub cpu_model: String,
    /// Processors that this process may use.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// `uname -r`.
    pub kernel: String,
    /// `true` if the processor says that a hypervisor is beneath it.
    pub is_virtual: bool,
    /// The load average of the last minute before the measurement; above 0.1 somebody else was there.
    pub load_average: f64,
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// What tells it from the others of its file: `A`, `B`, a rate; empty where it is the only one.
    pub label: String,
    /// When its measured part began, milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    /// What was asked for.
    pub settings: Settings,
    /// Whether its numbers may be believed.
    pub validity: Validity,
    /// One for each promise that was asked for, in that order.
    pub slo: Vec<SloOutcome>,
    /// What was done in the measured part.
    pub counts: Counts,
    /// What the first call that failed said; `null` if none did.
    pub first_failure: Option<String>,
    /// How fast.
    pub rates: Rates,
    /// By operation; first [`Latency::ALL`], all of them together.
    pub latency: Vec<Latency>,
    /// Reads by what answered them. A batch is not in here: its keys come from several.
    pub tiers: Vec<TierLatency>,
    /// One for each second of warm-up and measured part.
    pub series: Vec<Second>,
    /// What it cost the server; `null` if the server is not on this machine or is not found.
    pub server: Option<ServerUse>,
    /// Why `server` is `null`; empty if it is not.
    pub server_absent_because: String,
    /// What it cost the client.
    pub client: ClientUse,
    /// What else went on on this machine.
    pub noise: Noise,
    /// Only for [`Kind::Verify`].
    pub verify: Option<Verify>,
}

/// What was asked for, defaults and presets written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Settings {
    /// As it was given: `http://host:port`, `redis://…`, `memcached://…`.
    pub target: String,
    /// `milena-node`, `milena-router`, `redis` or `memcached`: who answered there.
    pub protocol: String,
    /// Requests per second over all connections; 0 = a closed loop: each stream sends again as soon as it is answered.
    pub rate_per_s: f64,
    /// The measured part, in seconds.
    pub duration_s: f64,
    /// Before it, with the same load, in seconds.
    pub warmup_s: f64,
    /// Connections over all threads.
    pub connections: u32,
    /// Client cores.
    pub threads: u32,
    /// The most requests in flight on each connection.
    pub streams: u32,
    /// Whether each client core was bound to a processor.
    pub is_pinned: bool,
    /// The preset, or the name of the trace.
    pub workload: String,
    /// Shares of the operations by name: `get`, `put`, `insert` (a put of a new key), `delete`, `rmw`; together 1.
    pub ratio: BTreeMap<String, f64>,
    /// Keys in the population, or different keys in the trace.
    pub keys: u64,
    /// `zipf:0.99`, `uniform`, …; `trace` for a recorded workload.
    pub key_dist: String,
    /// Bytes of each key; the mean for a trace.
    pub key_bytes: f64,
    /// Sizes and weights as in `--value-size`; `trace` for a recorded workload.
    pub value_size: String,
    /// Their mean, in bytes.
    pub value_bytes_mean: f64,
    /// Life of each value that is written, in milliseconds; 0 = for ever.
    pub ttl_ms: u64,
    /// Keys in each call; 1 = unary calls.
    pub batch: u32,
    /// Whether every key was written before the warm-up.
    pub is_preloaded: bool,
    /// How long a call may take, in milliseconds; after that it counts as an error.
    pub deadline_ms: u64,
    /// Where all randomness comes from.
    pub seed: u64,
    /// The promises as they were written.
    pub slo: Vec<String>,
}

/// Whether the numbers of a run may be believed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Validity {
    /// `false` if any reason says so.
    pub is_valid: bool,
    /// Why not; empty for a valid run.
    pub reasons: Vec<Reason>,
    /// What should be known and does not make the run invalid.
    pub remarks: Vec<String>,
}

/// One reason against a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reason {
    /// For programs.
    pub code: ReasonCode,
    /// For people: what was found and what is allowed.
    pub text: String,
}

/// What is wrong with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// Requests left much later than they were meant to, and not because the server had not answered others.
    SendLag,
    /// Fewer requests were done than were asked for.
    AchievedRate,
    /// Too many requests failed.
    Errors,
    /// Nothing was measured.
    NothingDone,
    /// The client itself was the limit: its cores were busy all the time.
    ClientBusy,
    /// The hypervisor took processors away.
    Steal,
}

/// A promise and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SloOutcome {
    /// As it was written, `p99<2ms`.
    pub expression: String,
    /// What was found: nanoseconds for latencies, a share for `errors` and `hits`; `null` = too few samples to tell.
    pub observed: Option<f64>,
    /// What was allowed, in the same unit.
    pub allowed: f64,
    /// Whether it was kept; what cannot be told is not.
    pub is_kept: bool,
}

/// What was done in the measured part of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counts {
    /// Calls that were answered, errors included.
    pub requests: u64,
    /// Keys in them: the same without `--batch`.
    pub keys: u64,
    /// Calls by operation.
    pub requests_by_op: BTreeMap<String, u64>,
    /// Reads that brought a value, in keys.
    pub hits: u64,
    /// Reads that found none, in keys.
    pub misses: u64,
    /// `hits` by the tier that answered: `memory`, `disk`, `s3`, `unspecified`.
    pub hits_by_tier: BTreeMap<String, u64>,
    /// Calls that failed.
    pub errors: u64,
    /// The same by the name of the status, such as `UNAVAILABLE`.
    pub errors_by_status: BTreeMap<String, u64>,
    /// Bytes of the values that came.
    pub value_bytes_in: u64,
    /// Bytes of the values that were written.
    pub value_bytes_out: u64,
    /// Calls that were due in the measured part and had not been sent when it ended.
    pub unsent: u64,
}

/// Rates of the measured part, per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rates {
    /// Calls that were meant to be sent; 0 for a closed loop.
    pub intended_per_s: f64,
    /// Calls that were answered, errors included.
    pub achieved_per_s: f64,
    /// Keys that were answered.
    pub keys_per_s: f64,
    /// Bytes of values, in and out.
    pub value_bytes_per_s: f64,
}

/// How long the calls of one operation took. Failed calls are in here too: not to count them would reward failing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// `all`, `get`, `put`, `delete`; `rmw` = a read and then a write of the same key, as one.
    pub op: String,
    /// From when it was meant to be sent to its answer: what a user waits. For a closed loop the same as `service`.
    pub response: Histogram,
    /// From when it was sent to its answer.
    pub service: Histogram,
    /// From when it was meant to be sent to when it was; empty for a closed loop.
    pub lag: Histogram,
}

impl Latency {
    /// The `op` of all operations together.
    pub const ALL: &str = "all";
}

/// Service times of reads with one kind of answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TierLatency {
    /// `memory`, `disk`, `s3`, `unspecified` (the server does not say), or `miss`.
    pub tier: String,
    /// From when it was sent to its answer.
    pub service: Histogram,
}

/// A distribution of times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Histogram {
    /// Samples.
    pub count: u64,
    /// The least; 0 without samples, as the next three.
    pub min_ns: u64,
    /// The mean.
    pub mean_ns: f64,
    /// The standard deviation.
    pub stdev_ns: f64,
    /// The greatest.
    pub max_ns: u64,
    /// [`PERCENTILES`], in ascending order.
    pub percentiles: Vec<Percentile>,
    /// The whole: HdrHistogram's V2 encoding, compressed with deflate, in base64; nanoseconds, 3 digits. Any
    /// HdrHistogram library reads it.
    pub hdr: String,
}

/// One percentile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Percentile {
    /// Above 0, below 100.
    pub percentile: f64,
    /// At most this for so many per cent of the samples; `null` = fewer than [`SAMPLES_BEYOND_MIN`] samples beyond it.
    pub value_ns: Option<u64>,
}

/// One second of a run. Calls count in the second in which they ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Second {
    /// Its number, from 0. All are a second long but the last of the warm-up and the last of the measured part.
    pub second: u32,
    /// `true` for seconds that are in no other figure of the file.
    pub is_warmup: bool,
    /// How long it was.
    pub length_s: f64,
    /// Calls that were answered, errors included.
    pub requests: u64,
    /// Calls that failed.
    pub errors: u64,
    /// Reads that found nothing, in keys.
    pub misses: u64,
    /// Reads that brought a value, in keys, by the tier that answered.
    pub hits_by_tier: BTreeMap<String, u64>,
    /// Response times of this second; `null` = too few samples to tell.
    pub p50_ns: Option<u64>,
    /// The 99th percentile.
    pub p99_ns: Option<u64>,
    /// The 99.9th percentile.
    pub p999_ns: Option<u64>,
    /// The greatest; 0 without samples.
    pub max_ns: u64,
    /// The greatest send lag.
    pub lag_max_ns: u64,
    /// Processor time of the server; `null` if it is not on this machine.
    pub server_cpu_ns: Option<u64>,
    /// Processor time of the client.
    pub client_cpu_ns: u64,
}

impl Second {
    /// Reads that brought a value, over all reads; `None` where nothing was read.
    #[must_use]
    pub fn hit_share(&self) -> Option<f64> {
        let hits: u64 = self.hits_by_tier.values().sum();
        let reads = hits + self.misses;
        (reads > 0).then(|| hits as f64 / reads as f64)
    }
}

/// What a run cost the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServerUse {
    /// Its process.
    pub pid: u32,
    /// Its name, as `/proc/PID/comm` has it.
    pub name: String,
    /// User and system time of all its threads in the measured part, from `/proc/PID/task/*/schedstat`.
    pub cpu_ns: u64,
    /// How long its threads were ready to run and did not: with much of it the server was disturbed.
    pub run_queue_wait_ns: u64,
    /// `cpu_ns` by calls.
    pub cpu_ns_per_request: f64,
    /// `cpu_ns` by keys.
    pub cpu_ns_per_key: f64,
    /// System calls by calls.
    pub system_calls_per_request: Option<f64>,
    /// How they were counted, or why not.
    pub system_calls_note: String,
    /// Resident memory at the end, in bytes.
    pub resident_bytes: u64,
}

/// What a run cost the client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClientUse {
    /// User and system time of all client cores in the measured part.
    pub cpu_ns: u64,
    /// `cpu_ns` by calls.
    pub cpu_ns_per_request: f64,
    /// How busy each client core was, as a share of one processor. Waiting in a loop for the next send counts as idle.
    pub busy_share_by_core: Vec<f64>,
    /// `true` if the busiest core was so busy that the rate says nothing about the server.
    pub is_the_limit: bool,
    /// How late the client itself sent, from when a send was due and a stream was free; 99th percentile; `null` for a
    /// closed loop or too few samples.
    pub late_p99_ns: Option<u64>,
}

/// What else went on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Noise {
    /// Share of the processors' time that the hypervisor gave to others.
    pub steal_share: f64,
    /// Share of the time in which some task waited for a processor (`/proc/pressure/cpu`, `some`); `null` = not there.
    pub cpu_pressure_share: Option<f64>,
}

/// What the checks of `verify` came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verify {
    /// Reads whose answer was checked, in keys.
    pub reads: u64,
    /// Writes that were acknowledged, in keys.
    pub writes: u64,
    /// Writes whose outcome is not known: they may or may not have happened, ever after.
    pub writes_unknown: u64,
    /// Misses that are allowed: the key was never written, was deleted, may have expired, or misses are allowed.
    pub misses_allowed: u64,
    /// By kind of violation: `corrupt`, `wrong_key`, `stale`, `resurrected`, `lost`, `from_the_future`.
    pub violations: BTreeMap<String, u64>,
    /// The first few, in words.
    pub examples: Vec<String>,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Search {
    /// The highest rate that kept every promise, calls per second; `null` if none is known to.
    pub rate_per_s: Option<f64>,
    /// The lowest rate that did not; `null` if none is known not to. The limit lies between the two.
    pub missed_per_s: Option<f64>,
    /// Every probe, in the order in which they were made; `runs` has the same order.
    pub probes: Vec<Probe>,
}

/// One probe of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Probe {
    /// Calls per second that were asked for.
    pub rate_per_s: f64,
    /// `kept`, `missed`, or `invalid`: nothing is concluded from it, and it is made twice more.
    pub verdict: String,
    /// Index into `runs`.
    pub run_index: u32,
}

/// Two targets in turns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ab {
    /// The targets as they were given.
    pub target_a: String,
    /// The other.
    pub target_b: String,
    /// The same target twice: the ratios say how far apart equal things are on this machine.
    pub is_noise_floor: bool,
    /// Pairs of turns that count.
    pub pairs: u32,
    /// Pairs that do not, because one of their runs was invalid.
    pub pairs_discarded: u32,
    /// One for each figure that was compared.
    pub ratios: Vec<Ratio>,
}

/// B over A.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ratio {
    /// `throughput`, `p50`, `p99`, `p999`, `server_cpu_per_request`, `server_cpu_per_key`.
    pub figure: String,
    /// The geometric mean of the pairs' ratios.
    pub ratio: f64,
    /// The lower end of the interval that holds the true ratio with 95 % confidence.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// The ratio of each pair that counts.
    pub pairs: Vec<f64>,
    /// Whether the interval leaves out 1.
    pub is_difference: bool,
}

impl ResultFile {
    /// Writes the file, all of it or none: first beside `path`, then in its place.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut name = path.as_os_str().to_owned();
        name.push(".part");
        let part = Path::new(&name);
        fs::write(part, serde_json::to_vec_pretty(self)?)?;
        fs::rename(part, path)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ReadError`]: it cannot be read, is no result, or is of a newer schema.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let error = |cause| ReadError { path: path.display().to_string(), cause };
        let bytes = fs::read(path).map_err(|source| error(Cause::File(source)))?;
        Self::parse(&bytes).map_err(error)
    }

    fn parse(bytes: &[u8]) -> Result<Self, Cause> {
        /// First the number alone: what a newer schema has made of the rest is not for us to complain about.
        #[derive(Deserialize)]
        struct Head {
            schema: u32,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(Cause::Json)?;
        if head.schema > SCHEMA {
            return Err(Cause::Newer(head.schema));
        }
        serde_json::from_slice(bytes).map_err(Cause::Json)
    }
}

/// A file that is no result.
#[derive(Debug)]
pub struct ReadError {
    path: String,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    File(io::Error),
    Json(serde_json::Error),
    Newer(u32),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, cause } = self;
        match cause {
            Cause::File(error) => write!(f, "cannot read {path}: {error}"),
            Cause::Json(error) => write!(f, "{path} is no result of milena-loadtest: {error}"),
            Cause::Newer(schema) => {
                write!(f, "{path} has schema {schema}, this program reads up to {SCHEMA}; use a newer one")
            }
        }
    }
}

impl std::error::Error for ReadError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least that is a file.
    const EMPTY: &str = r#"{
        "schema": 1, "kind": "run", "command": [], "started_unix_ms": 1,
        "tool": { "name": "milena-loadtest", "version": "0", "profile": "release" },
        "machine": { "cpu_model": "", "cpus": 2, "memory_bytes": 0, "kernel": "", "is_virtual": true, "load_average": 0 },
        "runs": [], "search": null, "ab": null, "from_a_later_version": [1, 2]
    }"#;

    #[test]
    fn fields_that_nobody_knows_are_passed_over() {
        let file = ResultFile::parse(EMPTY.as_bytes()).unwrap();
        assert_eq!((file.kind, file.machine.cpus), (Kind::Run, 2));
    }

    #[test]
    fn a_newer_schema_is_refused_by_its_number_whatever_the_rest_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("newer.json");
        fs::write(&path, r#"{ "schema": 2, "runs": "elsewhere" }"#).unwrap();
        let text = ResultFile::read(&path).unwrap_err().to_string();
        assert!(text.ends_with("has schema 2, this program reads up to 1; use a newer one"), "{text}");
    }

    #[test]
    fn what_is_no_result_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.json");
        let absent = ResultFile::read(&path).unwrap_err().to_string();
        assert!(absent.starts_with("cannot read "), "{absent}");
        fs::write(&path, "[]").unwrap();
        let other = ResultFile::read(&path).unwrap_err().to_string();
        assert!(other.contains("other.json is no result of milena-loadtest: "), "{other}");
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_reads_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("result.json");
        let mut file = ResultFile::parse(EMPTY.as_bytes()).unwrap();
        file.write(&path).unwrap();
        file.search = Some(Search {
            rate_per_s: None,
            missed_per_s: Some(1.5),
            probes: vec![Probe { rate_per_s: 1.5, verdict: "missed".to_owned(), run_index: 0 }],
        });
        file.write(&path).unwrap();
        assert_eq!(ResultFile::read(&path).unwrap().search, file.search);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn reads_without_any_have_no_share_of_hits() {
        let mut second = Second::default();
        assert_eq!(second.hit_share(), None);
        second.misses = 1;
        second.hits_by_tier.insert("memory".to_owned(), 3);
        assert_eq!(second.hit_share(), Some(0.75));
    }
}
