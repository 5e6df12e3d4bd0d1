//! How many instructions each operation takes, by gungraun over valgrind: `cargo bench -p milena-benches --bench instructions`.
//!
//! Needs valgrind and `gungraun-runner` of exactly the version in the root manifest, which `benches/compare` installs. Counts
//! repeat to within a few instructions on any machine with the same compiler: what a processor makes of them they do not say.

#![allow(missing_docs, reason = "gungraun's macros write public items without any")]

use gungraun::prelude::*;
use milena_benches::operations::{Subject, operation};

fn prepared(name: &str) -> Box<dyn Subject> {
    operation(name).subject()
}

// It is given back so that what it costs to drop it is not counted.
#[library_benchmark(setup = prepared)]
#[bench::shard_get("shard_get")]
#[bench::shard_put("shard_put")]
#[bench::memory_touch("memory_touch")]
#[bench::memory_evict("memory_evict")]
#[bench::record_encode("record_encode")]
#[bench::record_decode("record_decode")]
#[bench::index_probe("index_probe")]
#[bench::key_hash("key_hash")]
#[bench::placement_node("placement_node")]
#[bench::placement_core("placement_core")]
#[bench::grpc_frame("grpc_frame")]
#[bench::http2_get("http2_get")]
#[bench::http2_get_of_32("http2_get_of_32")]
fn once(mut subject: Box<dyn Subject>) -> Box<dyn Subject> {
    subject.run();
    subject
}

library_benchmark_group!(name = operations, benchmarks = once);

main!(library_benchmark_groups = operations);
