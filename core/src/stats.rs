//! What a core counts. Plain numbers that the core owns; the metrics page gets copies.

use milena_storage::{log, memory::Figures};

/// One core's counters since its start, and its gauges.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Gets answered from memory: `milena_cache_hits_total{tier="memory"}`.
    pub hits_memory: u64,
    /// Gets answered by the log: `milena_cache_hits_total{tier="disk"}`.
    pub hits_log: u64,
    /// Gets answered by the store: `milena_cache_hits_total{tier="s3"}`.
    pub hits_store: u64,
    /// Gets that found nothing: `milena_cache_misses_total`.
    pub misses: u64,
    /// Gets that shared another's fetch: `milena_coalesced_requests_total`.
    pub coalesced: u64,
    /// Copies that the store confirmed without sending them again.
    pub revalidated: u64,
    /// Requests sent to other cores: `milena_forwarded_requests_total`.
    pub forwarded: u64,
    /// Keys for which the store is being asked.
    pub keys_in_flight: u64,
    /// The memory tier: `milena_memory_bytes{what}`, `milena_memory_entries`, `milena_evictions_total{tier="memory"}`.
    pub memory: Figures,
    /// Major page faults of the core's thread since its start, each a wait for the disk: `milena_core_major_faults_total`.
    pub major_faults: u64,
    /// Changes that the store got from the log: `milena_uploads_total{result="done"}`.
    pub uploads_done: u64,
    /// Times that it did not: `milena_uploads_total{result="failed"}`.
    pub uploads_failed: u64,
    /// Writes that were held back because much waits for the store: `milena_writes_slowed_total`.
    pub writes_slowed: u64,
    /// Mistakes of ours that the core has noticed: `milena_internal_errors_total`.
    pub faults: u64,
    /// The log, where there is one: `milena_disk_bytes{what}`, `milena_log_segments{state}`, `milena_disk_degraded`,
    /// `milena_log_dirty_bytes`, `milena_upload_lag_seconds`.
    pub log: Option<log::Figures>,
}
