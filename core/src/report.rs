//! What a core has counted, and how operators read it.
//!
//! ```text
//!   core 0 ─ Report ─┐  by mailbox, when somebody asks
//!   core 1 ─ Report ─┼───────────▶ page ──▶ /metrics      one series for each shard where a shard has a size,
//!   core 2 ─ Report ─┘                                    one for the node where requests are counted
//! ```
//! Counting is an addition to a number that the core owns.

use std::{fmt, time::Duration};

use milena_net::{
    cores::CoreIndex,
    fault,
    grpc::status::Code,
    metrics::{Latency, Page},
};
use milena_storage::{
    Timestamp, log,
    object::{self, Request},
};

use crate::stats::Stats;

/// The calls that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the methods'")]
pub enum Op {
    Get,
    Put,
    Delete,
    BatchGet,
    BatchPut,
    BatchDelete,
}

/// How far down a call had to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Memory answered, or took the write where there is no store.
    Memory,
    /// The log on disk did.
    Log,
    /// The store did.
    Store,
    /// There is no value, or the call failed.
    None,
}

const OPS: [(Op, &str); 6] = [
    (Op::Get, "get"),
    (Op::Put, "put"),
    (Op::Delete, "delete"),
    (Op::BatchGet, "batch_get"),
    (Op::BatchPut, "batch_put"),
    (Op::BatchDelete, "batch_delete"),
];
const DEPTHS: [(Depth, &str); 4] =
    [(Depth::Memory, "memory"), (Depth::Log, "disk"), (Depth::Store, "s3"), (Depth::None, "none")];
const CODE_COUNT: usize = Code::Unauthenticated as usize + 1;

/// One core's calls since its start: 12 KiB of numbers.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    codes: [[u64; CODE_COUNT]; OPS.len()],
    /// Of batches that were carried out.
    entry_codes: [[u64; CODE_COUNT]; OPS.len()],
    latency: [[Latency; DEPTHS.len()]; OPS.len()],
}

/// Everything a core has counted.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The shard.
    pub stats: Stats,
    /// The calls that this core has answered; their keys may have been another core's.
    pub calls: Calls,
    /// What this core has asked of the store.
    pub store: object::Counters,
    /// When it was made; `None` for one that nothing was counted in.
    pub now: Option<Timestamp>,
}

impl Calls {
    /// Counts one call that has ended with `code`.
    pub fn count(&mut self, op: Op, code: Code, depth: Depth, took: Duration) {
        self.codes[op as usize][code as usize] += 1;
        self.latency[op as usize][depth as usize].record(took);
    }

    /// Counts entries of a batch that have ended with `code`.
    pub fn count_entries(&mut self, op: Op, code: Code, count: usize) {
        self.entry_codes[op as usize][code as usize] += count as u64;
    }

    fn add(&mut self, other: &Self) {
        let codes = self.codes.iter_mut().chain(&mut self.entry_codes).flatten();
        for (count, more) in codes.zip(other.codes.iter().chain(&other.entry_codes).flatten()) {
            *count += more;
        }
        for (latency, more) in self.latency.iter_mut().flatten().zip(other.latency.iter().flatten()) {
            latency.merge(more);
        }
    }

    fn of(&self, op: Op) -> u64 {
        self.codes[op as usize].iter().sum()
    }

    fn errors(&self) -> u64 {
        self.codes.iter().flat_map(|codes| &codes[1..]).sum()
    }
}

impl Report {
    /// What all cores have counted, added up: rates and sums, without the sizes of shards.
    #[must_use]
    pub fn sum<'a>(reports: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for Self { stats, calls, store, now } in reports {
            sum.stats.hits_memory += stats.hits_memory;
            sum.stats.hits_log += stats.hits_log;
            sum.stats.hits_store += stats.hits_store;
            sum.stats.misses += stats.misses;
            sum.stats.coalesced += stats.coalesced;
            sum.stats.revalidated += stats.revalidated;
            sum.stats.forwarded += stats.forwarded;
            sum.stats.uploads_done += stats.uploads_done;
            sum.stats.uploads_failed += stats.uploads_failed;
            sum.stats.writes_slowed += stats.writes_slowed;
            sum.stats.faults += stats.faults;
            sum.calls.add(calls);
            sum.store.add(store);
            sum.now = sum.now.max(*now);
        }
        sum
    }
}

/// The text of `/metrics` for the cores that have answered. Names and labels are the contract's.
#[must_use]
pub fn metrics(reports: &[(CoreIndex, Report)], missing_count: usize) -> String {
    let mut page = Page::new();
    let sum = Report::sum(reports.iter().map(|(_, report)| report));
    calls_page(&mut page, &sum.calls);
    hits_page(&mut page, &sum.stats);
    for (core, report) in reports {
        shard_page(&mut page, &core.to_string(), &report.stats, report.now);
    }
    store_page(&mut page, &sum.store);
    for (result, count) in [("done", sum.stats.uploads_done), ("failed", sum.stats.uploads_failed)] {
        page.counter("milena_uploads_total", "Writes brought from the log to the store", &[("result", result)], count);
    }
    let slowed = "Writes that were held back because much waits for the store";
    page.counter("milena_writes_slowed_total", slowed, &[], sum.stats.writes_slowed);
    page.counter(fault::METRIC, fault::METRIC_HELP, &[], sum.stats.faults);
    page.gauge("milena_cores_silent", "Cores that did not answer in time for this page", &[], missing_count as f64);
    page.process();
    page.finish()
}

fn calls_page(page: &mut Page, calls: &Calls) {
    for (op, name) in OPS {
        page.counter("milena_cache_requests_total", "Calls by operation", &[("op", name)], calls.of(op));
    }
    for (op, name) in OPS {
        for code in Code::all().skip(1) {
            let count = calls.codes[op as usize][code as usize];
            if count > 0 {
                let labels = [("op", name), ("code", code.name())];
                page.counter("milena_cache_errors_total", "Calls that failed, by operation and status", &labels, count);
            }
        }
    }
    for (op, name) in OPS {
        for code in Code::all() {
            let count = calls.entry_codes[op as usize][code as usize];
            if count > 0 {
                let labels = [("op", name), ("code", code.name())];
                let help = "Entries of batches that were carried out, by operation and status";
                page.counter("milena_cache_batch_entries_total", help, &labels, count);
            }
        }
    }
    for (op, name) in OPS {
        for (depth, tier) in DEPTHS {
            let latency = &calls.latency[op as usize][depth as usize];
            let help = "From a call's arrival to its answer, by how far down it had to go (none: a miss or a failure)";
            page.latency("milena_operation_duration_seconds", help, &[("op", name), ("tier", tier)], latency);
        }
    }
}

fn hits_page(page: &mut Page, stats: &Stats) {
    for (tier, hits) in [("memory", stats.hits_memory), ("disk", stats.hits_log), ("s3", stats.hits_store)] {
        page.counter("milena_cache_hits_total", "Gets that found a value, by who had it", &[("tier", tier)], hits);
    }
    page.counter("milena_cache_misses_total", "Gets that found nothing", &[], stats.misses);
    page.counter("milena_coalesced_requests_total", "Gets that shared another's fetch", &[], stats.coalesced);
    let revalidated = "Cached copies that the store confirmed without sending them again";
    page.counter("milena_revalidated_total", revalidated, &[], stats.revalidated);
    page.counter("milena_forwarded_requests_total", "Calls passed on to another core", &[], stats.forwarded);
}

fn shard_page(page: &mut Page, shard: &str, stats: &Stats, now: Option<Timestamp>) {
    let memory = &stats.memory;
    for (what, bytes) in [
        ("keys", memory.key_bytes),
        ("values", memory.value_bytes),
        ("held", memory.held_bytes),
        ("budget", memory.budget_bytes),
    ] {
        let help = "Memory of a shard: keys, values, all that is held, and the budget";
        page.gauge("milena_memory_bytes", help, &[("what", what), ("shard", shard)], bytes as f64);
    }
    let shard = [("shard", shard)];
    page.gauge("milena_memory_entries", "Entries in memory", &shard, memory.entries as f64);
    page.gauge("milena_keys_in_flight", "Keys for which the store is being asked", &shard, stats.keys_in_flight as f64);
    let evictions = "Entries that made room for others";
    page.counter("milena_evictions_total", evictions, &[("tier", "memory"), shard[0]], memory.evictions);
    page.counter("milena_expirations_total", "Entries whose life ended", &shard, memory.expirations);
    let faults = "Times that a core waited for a page from the disk without knowing";
    page.counter("milena_core_major_faults_total", faults, &shard, stats.major_faults);
    if let Some(log) = &stats.log {
        log_page(page, shard, log);
        let lag_ms = log.dirty_since.zip(now).map_or(0, |(since, now)| now.0.saturating_sub(since.0));
        let help = "How long the store has lacked what has waited for its upload the longest";
        page.gauge("milena_upload_lag_seconds", help, &shard, lag_ms as f64 / 1e3);
    }
}

fn log_page(page: &mut Page, shard: [(&'static str, &str); 1], log: &log::Figures) {
    for (what, bytes) in [("capacity", log.capacity_bytes), ("used", log.used_bytes), ("live", log.live_bytes)] {
        let help = "Disk of a shard's log: all of it, records, and records that are the newest of their key (about)";
        page.gauge("milena_disk_bytes", help, &[("what", what), shard[0]], bytes as f64);
    }
    for (what, bytes) in [("index", log.index_bytes), ("held", log.held_bytes)] {
        let help = "Memory of a shard's log: the index, and all that is held";
        page.gauge("milena_disk_memory_bytes", help, &[("what", what), shard[0]], bytes as f64);
    }
    for (state, count) in ["free", "open", "sealed", "reclaiming", "bad"].into_iter().zip(log.segments) {
        let help = "Segments of a shard's log";
        page.gauge("milena_log_segments", help, &[("state", state), shard[0]], f64::from(count));
    }
    let dirty = "Bytes on disk that the store does not have yet";
    page.gauge("milena_log_dirty_bytes", dirty, &shard, log.dirty_bytes as f64);
    page.gauge(
        "milena_log_dirty_bytes_max",
        "Dirty bytes at which writes are refused",
        &shard,
        log.dirty_bytes_max as f64,
    );
    page.gauge("milena_disk_entries", "Entries on disk", &shard, log.entries as f64);
    let recovered = "Entries that the log had when the node started";
    page.gauge("milena_log_recovered_entries", recovered, &shard, log.recovered_entries as f64);
    let degraded = "1 where the disk, or a part of it, is not used any more because it failed";
    page.gauge("milena_disk_degraded", degraded, &shard, f64::from(u8::from(log.is_degraded)));
    let evictions = "Entries that made room for others";
    page.counter("milena_evictions_total", evictions, &[("tier", "disk"), shard[0]], log.counts.evictions);
    for (what, bytes) in [
        ("appended", log.counts.appended_bytes),
        ("carried", log.counts.carried_bytes),
        ("written", log.counts.written_bytes),
    ] {
        let help = "Bytes of new records, of records copied to make room, and all that was written";
        page.counter("milena_log_bytes_total", help, &[("what", what), shard[0]], bytes);
    }
    for (what, count) in [
        ("read", log.counts.read_errors),
        ("write", log.counts.write_errors),
        ("corrupt", log.counts.corrupt),
        ("dropped", log.counts.fills_dropped),
    ] {
        let help = "Reads, writes and syncs that failed, records that were not as written, fills without room";
        page.counter("milena_log_errors_total", help, &[("what", what), shard[0]], count);
    }
    for (source, count) in
        [("buffer", log.counts.reads_buffered), ("page", log.counts.reads_resident), ("disk", log.counts.reads_ring)]
    {
        let help = "Records read, by where they were";
        page.counter("milena_log_reads_total", help, &[("from", source), shard[0]], count);
    }
}

fn store_page(page: &mut Page, store: &object::Counters) {
    for ((request, status), count) in &store.requests {
        let code = status.map_or_else(|| "none".to_owned(), |status| status.to_string());
        let help = "Requests to S3, by HTTP status (none: no answer)";
        let labels = [("op", request_name(*request)), ("code", &*code)];
        page.counter("milena_s3_requests_total", help, &labels, *count);
    }
    page.gauge("milena_s3_inflight", "Requests that wait for the store", &[], store.inflight as f64);
    for request in [Request::Get, Request::Head, Request::Put, Request::Delete] {
        let op = [("op", request_name(request))];
        let dollars = store.cost_dollars(request);
        page.counter_f64("milena_s3_cost_dollars_total", "What they cost at list prices", &op, dollars);
        if let Some(took) = store.took.get(&request) {
            let help = "Time until S3's answer was complete";
            page.latency("milena_s3_request_duration_seconds", help, &op, took);
        }
    }
}

fn request_name(request: Request) -> &'static str {
    match request {
        Request::Get => "get",
        Request::Head => "head",
        Request::Put => "put",
        Request::Delete => "delete",
    }
}

/// A node's counters in one line, for its last words.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stats, calls, .. } = self;
        let batches: u64 = [Op::BatchGet, Op::BatchPut, Op::BatchDelete].map(|op| calls.of(op)).iter().sum();
        write!(
            f,
            "{} gets ({} from memory, {} from disk, {} from the store, {} misses), {} puts, {} deletes, {batches} batches, \
             {} errors",
            calls.of(Op::Get),
            stats.hits_memory,
            stats.hits_log,
            stats.hits_store,
            stats.misses,
            calls.of(Op::Put),
            calls.of(Op::Delete),
            calls.errors(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::default();
        report.calls.count(Op::Get, Code::Ok, Depth::Memory, Duration::from_micros(50));
        report.calls.count(Op::Get, Code::Unavailable, Depth::None, Duration::from_millis(2));
        report.calls.count(Op::Put, Code::Ok, Depth::Store, Duration::from_millis(20));
        report.calls.count(Op::BatchPut, Code::Ok, Depth::Store, Duration::from_millis(20));
        report.calls.count_entries(Op::BatchPut, Code::Aborted, 3);
        report.stats.hits_memory = 1;
        report.stats.memory.entries = 7;
        report
    }

    #[test]
    fn the_page_has_the_names_and_labels_of_the_contract() {
        let text = metrics(&[(0, report()), (1, report())], 1);
        for line in [
            "milena_cache_requests_total{op=\"get\"} 4",
            "milena_cache_requests_total{op=\"delete\"} 0",
            "milena_cache_requests_total{op=\"batch_put\"} 2",
            "milena_cache_batch_entries_total{op=\"batch_put\",code=\"ABORTED\"} 6",
            "milena_cache_hits_total{tier=\"memory\"} 2",
            "milena_cache_hits_total{tier=\"s3\"} 0",
            "milena_cache_misses_total 0",
            "milena_cache_errors_total{op=\"get\",code=\"UNAVAILABLE\"} 2",
            "milena_operation_duration_seconds_count{op=\"get\",tier=\"memory\"} 2",
            "milena_operation_duration_seconds_count{op=\"put\",tier=\"s3\"} 2",
            "milena_memory_bytes{what=\"values\",shard=\"1\"} 0.0",
            "milena_memory_entries{shard=\"0\"} 7.0",
            "milena_evictions_total{tier=\"memory\",shard=\"0\"} 0",
            "milena_core_major_faults_total{shard=\"0\"} 0",
            "milena_coalesced_requests_total 0",
            "milena_forwarded_requests_total 0",
            "milena_s3_inflight 0.0",
            "milena_s3_cost_dollars_total{op=\"put\"} 0.0",
            "milena_uploads_total{result=\"failed\"} 0",
            "milena_writes_slowed_total 0",
            "milena_internal_errors_total 0",
            "milena_cores_silent 1.0",
        ] {
            assert!(text.lines().any(|other| other == line), "no {line} in\n{text}");
        }
        assert!(text.contains("process_cpu_seconds_total "), "{text}");
    }

    #[test]
    fn a_shard_with_a_log_says_what_the_log_had_at_the_start() {
        let with_log = |recovered_entries| {
            let mut report = report();
            report.stats.log = Some(log::Figures { entries: 9, recovered_entries, ..log::Figures::default() });
            report
        };
        let text = metrics(&[(0, with_log(3)), (1, with_log(4)), (2, report())], 0);
        for line in [
            "milena_log_recovered_entries{shard=\"0\"} 3.0",
            "milena_log_recovered_entries{shard=\"1\"} 4.0",
            "milena_disk_entries{shard=\"0\"} 9.0",
            "milena_disk_degraded{shard=\"0\"} 0.0",
        ] {
            assert!(text.lines().any(|other| other == line), "no {line} in\n{text}");
        }
        assert!(!text.contains("milena_log_recovered_entries{shard=\"2\"}"), "{text}");
    }

    #[test]
    fn the_last_words_count_all_cores() {
        let sum = Report::sum([&report(), &report()]);
        assert_eq!(
            sum.to_string(),
            "4 gets (2 from memory, 0 from disk, 0 from the store, 0 misses), 2 puts, 0 deletes, 2 batches, 2 errors"
        );
    }
}
