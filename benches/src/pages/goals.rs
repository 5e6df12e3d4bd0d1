//! What should come out, and which comparison tells it.
//!
//! A goal is met by the median of the samples; where some of them are beyond it, the index says so. Who changes a goal
//! changes it here; the pages follow with `benches/compare --pages`.

use super::record::Found;

/// A comparison, in the order of the index.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// For `benches/compare NAME`, and of its record.
    pub name: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// How it is made and what is compared.
    pub how: &'static str,
}

/// All of them. `benches/compare --list` prints the same names.
pub const COMPARISONS: [Comparison; 10] = [
    Comparison {
        name: "get",
        title: "A Get of 100 bytes that hits",
        how: "`benches/measure`: processor time on the server's core, from the scheduler's own counter, divided by the \
              requests that h2load made. `8x32` is 8 connections with 32 requests in flight on each. Servers take turns \
              within a round, and a ratio is formed within a round. **tonic** (`peer-tonic`) has one thread and one lock \
              around one table, **pajamax** (`peer-pajamax`) the same with a thread for each connection and without most of \
              HTTP/2; neither has a store, evicts, or counts anything. The **router**'s node is not counted.",
    },
    Comparison {
        name: "latency",
        title: "Latency at half the rate that saturates",
        how: "`milena-loadtest ab`: Gets of 100 bytes in an open loop with Poisson arrivals, timed from when each was due, at \
              the same rate for both: half of what the slower of the two answered in a closed loop. Turns there and back, \
              the same keys and arrivals in both of a pair. A is tonic, B the node.",
    },
    Comparison {
        name: "batch",
        title: "BatchGet of 100 keys beside Redis",
        how: "`milena-loadtest ab` in a closed loop, 8 connections, 100 keys a call: one BatchGet, or 100 GETs sent together. \
              Processor time of the server for each key. A is redis-server without persistence, B the node.",
    },
    Comparison {
        name: "memcached",
        title: "A Get beside memcached",
        how: "`milena-loadtest ab` in a closed loop, 8 connections with 32 requests in flight: memcached's text protocol, \
              pipelined, beside gRPC. memcached has one thread. A is memcached, B the node.",
    },
    Comparison {
        name: "one-lock",
        title: "Gets and Puts beside one lock around all tiers",
        how: "`milena-loadtest ab` in a closed loop, 8 connections with 32 requests in flight, keys drawn evenly. \
              **`peer-onelock` is a stand-in**, written after a description of Milena's predecessor and not its code: tonic, \
              and one asynchronous mutex held across memory, disk and store. Both write through by the same code. **s3** is \
              what the predecessor has: SeaweedFS on the client's core, with 200 keys, behind `benches/far`, which keeps \
              its answers back for 20 ms, as a store over a network does. **directory** is a store as near as can be, synced for each \
              Put, with 2,000 keys; nobody has such a one below a cache. A is the stand-in, B the node, with a log of 64 MiB.",
    },
    Comparison {
        name: "log",
        title: "The disk tier",
        how: "`log-figures`: each figure beside what it is compared with, in turns within one process. It has one core; the \
              kernel may run it on either. The plain loop stands in the place of fio: it writes batches of the same size \
              directly and syncs each.",
    },
    Comparison {
        name: "neighbours",
        title: "What others on a core notice of its log",
        how: "`log-figures` too. A percentile is of ten seconds of each kind, in turns of one second.",
    },
    Comparison {
        name: "memory",
        title: "The memory tier",
        how: "`memory-figures`: resident bytes of a process that holds nothing else.",
    },
    Comparison {
        name: "instructions",
        title: "The parts alone, in instructions",
        how: "gungraun over valgrind counts the instructions of the functions in `benches/src/operations.rs`. They \
              repeat on any machine with the same compiler; a compiler or a library that changes moves them.",
    },
    Comparison {
        name: "times",
        title: "The parts alone, by the clock",
        how: "criterion times the same functions, everything they need in the processor's caches. The spread is its interval of \
              95 % for the median, of 100 samples.",
    },
];

/// Which side of a bound is good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// This, or less.
    AtMost(f64),
    /// This, or more.
    AtLeast(f64),
}

/// A goal.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// What should be small or large.
    pub what: &'static str,
    /// What it is compared with.
    pub with: &'static str,
    /// Behind the numbers.
    pub unit: &'static str,
    /// Where it should be.
    pub bound: Bound,
    /// In its picture; short.
    pub label: &'static str,
    /// The comparison, and the name of its figure.
    pub figure: (&'static str, &'static str),
}

const fn goal(
    figure: (&'static str, &'static str),
    label: &'static str,
    what: &'static str,
    with: &'static str,
    bound: Bound,
    unit: &'static str,
) -> Goal {
    Goal { what, with, unit, bound, label, figure }
}

use Bound::{AtLeast, AtMost};

const CPU: &str = "server CPU per Get, 100 bytes";
const ROUTER: &str = "router CPU per forwarded Get, 100 bytes";
const RESPONSE: &str = "response time of a Get, half the saturating rate";

/// All of them.
pub const GOALS: [Goal; 29] = [
    goal(("get", "8x32/node:tonic"), "CPU 8x32, tonic", CPU, "tonic, 8x32", AtMost(0.30), "times"),
    goal(("get", "64x1/node:tonic"), "CPU 64x1, tonic", CPU, "tonic, 64x1", AtMost(0.65), "times"),
    goal(("get", "8x1/node:tonic"), "CPU 8x1, tonic", CPU, "tonic, 8x1", AtMost(0.65), "times"),
    goal(("get", "8x32/node:pajamax"), "CPU 8x32, pajamax", CPU, "pajamax, 8x32", AtMost(2.0), "times"),
    goal(("get", "64x1/node:pajamax"), "CPU 64x1, pajamax", CPU, "pajamax, 64x1", AtMost(0.7), "times"),
    goal(("get", "8x32/router:node"), "router 8x32, node", ROUTER, "the node, 8x32", AtMost(1.0), "times"),
    goal(("get", "64x1/router:node"), "router 64x1, node", ROUTER, "the node, 64x1", AtMost(1.0), "times"),
    goal(("get", "8x1/router:node"), "router 8x1, node", ROUTER, "the node, 8x1", AtMost(1.0), "times"),
    goal(("latency", "p50"), "p50, tonic", RESPONSE, "tonic, p50", AtMost(0.8), "times"),
    goal(("latency", "p99"), "p99, tonic", RESPONSE, "tonic, p99", AtMost(0.8), "times"),
    goal(("latency", "p999"), "p99.9, tonic", RESPONSE, "tonic, p99.9", AtMost(0.8), "times"),
    goal(
        ("batch", "server_cpu_per_key"),
        "CPU a key, Redis",
        "server CPU per key, BatchGet of 100",
        "redis-server, 100 GETs in a pipeline",
        AtMost(1.0),
        "times",
    ),
    goal(
        ("one-lock", "s3/95-5/throughput"),
        "rate 95:5, one lock",
        "throughput, 95 % Get, 5 % Put, S3 below",
        "one lock around all tiers (a stand-in)",
        AtLeast(10.0),
        "times",
    ),
    goal(
        ("one-lock", "s3/50-50/throughput"),
        "rate 50:50, one lock",
        "throughput, half Get, half Put, S3 below",
        "one lock around all tiers (a stand-in)",
        AtLeast(10.0),
        "times",
    ),
    goal(
        ("log", "resident-more"),
        "log, resident",
        "CPU of a get of 1 KiB from the log, page resident",
        "memory and a copy: so much more",
        AtMost(2.0),
        "µs",
    ),
    goal(
        ("log", "cold:read"),
        "log, cold",
        "a get of 1 KiB from the log, cold, p50",
        "a direct read of 4 KiB, p50",
        AtMost(1.2),
        "times",
    ),
    goal(
        ("log", "sustained"),
        "log, bandwidth",
        "bytes written by Puts of 1 KiB with ack=DISK",
        "a plain loop of the same batches, each synced",
        AtLeast(0.8),
        "times",
    ),
    goal(
        ("log", "put-p99:sync-p99"),
        "log, Put p99",
        "a Put of 1 KiB with ack=DISK, 64 at a time, p99",
        "a plain write of 72 KiB with its sync, p99",
        AtMost(2.0),
        "times",
    ),
    goal(("log", "start-killed"), "start, killed", "start of 10 million keys after a kill", "–", AtMost(2.0), "s"),
    goal(("log", "start-clean"), "start, clean", "start of 10 million keys after a clean stop", "–", AtMost(0.5), "s"),
    goal(("log", "index-bytes"), "index, a key", "memory for each key of the log", "–", AtMost(16.0), "bytes"),
    goal(
        ("neighbours", "writing"),
        "p99.9, log writes",
        "p99.9 of gets from memory while the log of their core writes all it can",
        "the log at rest",
        AtMost(1.5),
        "times",
    ),
    goal(
        ("neighbours", "reclaiming-more"),
        "turn, reclaiming",
        "longest turn of the log's task on its core while it reclaims, segments of 4 and 64 MiB: so much more CPU",
        "the same puts to a log that has room",
        AtMost(1.0),
        "ms",
    ),
    goal(("neighbours", "faults"), "faults", "major page faults of the core's thread", "–", AtMost(0.0), "faults"),
    goal(
        ("neighbours", "faults-pressed"),
        "faults, pressed",
        "the same with 64 MiB of memory for a log of 256 MiB and the program",
        "–",
        AtMost(0.0),
        "faults",
    ),
    goal(
        ("log", "amplification"),
        "amplification",
        "bytes written for each byte put, log full",
        "–",
        AtMost(1.25),
        "times",
    ),
    goal(
        ("memory", "entry-bytes"),
        "memory, an entry",
        "memory for each entry of 100 bytes beyond key, value and version",
        "–",
        AtMost(40.0),
        "bytes",
    ),
    goal(
        ("memory", "resident"),
        "memory, resident",
        "resident memory after writes of mixed sizes",
        "the budget of 256 MiB",
        AtMost(1.10),
        "times",
    ),
    goal(("traces", "misses"), "misses", "misses on recorded traces", "LRU of the same size", AtMost(0.95), "times"),
];

/// Goals that no comparison tells, and why.
pub const UNTOLD: [(&str, &str); 1] =
    [("traces", "needs another eviction than the least recently used, which is not there")];

/// How a figure stands to its goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All samples are within it.
    Reached,
    /// The median is, some samples are not.
    ReachedByMedian,
    /// The median is beyond it.
    Missed,
}

impl Bound {
    /// The number.
    #[must_use]
    pub fn value(self) -> f64 {
        match self {
            AtMost(value) | AtLeast(value) => value,
        }
    }

    fn holds(self, found: f64) -> bool {
        match self {
            AtMost(bound) => found <= bound,
            AtLeast(bound) => found >= bound,
        }
    }

    /// How `found` stands to this.
    #[must_use]
    pub fn verdict(self, found: Found) -> Verdict {
        match (self.holds(found.median), self.holds(found.least) && self.holds(found.most)) {
            (false, _) => Verdict::Missed,
            (true, false) => Verdict::ReachedByMedian,
            (true, true) => Verdict::Reached,
        }
    }

    /// Least, median and most as shares of the bound, such that 1 is the bound and less is better; `None` where the bound
    /// or a sample is 0.
    #[must_use]
    pub fn shares(self, found: Found) -> Option<(f64, f64, f64)> {
        if self.value() <= 0.0 || found.least <= 0.0 {
            return None;
        }
        Some(match self {
            AtMost(bound) => (found.least / bound, found.median / bound, found.most / bound),
            AtLeast(bound) => (bound / found.most, bound / found.median, bound / found.least),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(least: f64, median: f64, most: f64) -> Found {
        Found { median, least, most, samples: 3 }
    }

    #[test]
    fn a_goal_is_met_by_the_median_and_what_lies_beyond_is_not_forgotten() {
        assert_eq!(AtMost(1.0).verdict(found(0.5, 0.6, 1.0)), Verdict::Reached);
        assert_eq!(AtMost(1.0).verdict(found(0.5, 0.6, 1.1)), Verdict::ReachedByMedian);
        assert_eq!(AtMost(1.0).verdict(found(0.5, 1.01, 1.1)), Verdict::Missed);
        assert_eq!(AtLeast(10.0).verdict(found(9.0, 11.0, 12.0)), Verdict::ReachedByMedian);
        assert_eq!(AtLeast(10.0).verdict(found(1.0, 2.0, 12.0)), Verdict::Missed);
    }

    #[test]
    fn as_shares_of_the_goal_less_is_better_on_either_side() {
        assert_eq!(AtMost(2.0).shares(found(1.0, 2.0, 4.0)), Some((0.5, 1.0, 2.0)));
        assert_eq!(AtLeast(2.0).shares(found(1.0, 2.0, 4.0)), Some((0.5, 1.0, 2.0)));
        assert_eq!(AtMost(0.0).shares(found(0.0, 0.0, 0.0)), None);
    }

    #[test]
    fn every_goal_belongs_to_a_comparison_or_says_why_none_tells_it() {
        for goal in GOALS {
            let (comparison, _) = goal.figure;
            let is_told = COMPARISONS.iter().any(|known| known.name == comparison);
            assert!(is_told || UNTOLD.iter().any(|(name, _)| *name == comparison), "{}", goal.label);
        }
    }
}
