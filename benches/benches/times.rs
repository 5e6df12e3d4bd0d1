//! How long each operation takes, by criterion: `cargo bench -p milena-benches --bench times`. On a machine that others use,
//! look at `instructions` instead.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use milena_benches::operations::{OPERATIONS, PER_RUN};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("operations");
    for operation in &OPERATIONS {
        let mut subject = operation.subject();
        group.throughput(Throughput::Elements(PER_RUN));
        group.bench_function(BenchmarkId::from_parameter(operation.name), |bencher| {
            // Most need nothing prepared, and take so little that looks at the clock would be seen.
            if !subject.needs_preparing() {
                return bencher.iter(|| subject.run());
            }
            bencher.iter_custom(|rounds| {
                let mut took = Duration::ZERO;
                // It comes prepared, and is left so.
                for _ in 0..rounds {
                    let begun = Instant::now();
                    subject.run();
                    took += begun.elapsed();
                    subject.prepare();
                }
                took
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
