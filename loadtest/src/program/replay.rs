//! `replay`: one run of a recorded workload.

use std::collections::BTreeMap;

use crate::{
    arguments::{LoadFlags, ReplayFlags, RunFlags},
    drive::Plan,
    program::{Ending, ProgramError, Results, server},
    progress::Progress,
    result::{Kind, Settings},
    run::{self, Job},
    schedule::Arrivals,
    trace::{Replay, Trace, due},
    workload::Op,
};

pub(super) fn replay(flags: &ReplayFlags) -> Result<Ending, ProgramError> {
    let RunFlags { target, rate, output, .. } = &flags.run;
    let load = flags.load()?;
    let results = Results::begin(Kind::Replay);
    let progress = Progress::new(output.quiet);
    let plan = Plan { fill: !flags.no_fill, ..load.plan(target)? };
    let limit = usize::try_from(flags.limit).unwrap_or(usize::MAX);
    let trace = Trace::read(&flags.trace, flags.format(), limit, load.seed).map_err(ProgramError::Trace)?;
    progress.note(&format!("{} requests for {} keys", trace.records.len(), trace.key_count()));

    let cores = plan.cores;
    let job = Job {
        label: String::new(),
        settings: settings(flags, &load, &trace),
        slo: &load.slo,
        server: server(&load, target),
        preload_count: 0,
        plan,
    };
    let make = |core| {
        let records = trace.share(core, cores);
        let arrivals = match flags.speed {
            Some(speed) => Some(Arrivals::Listed(due(&records, speed).into())),
            None => (rate.rate > 0.0).then(|| Arrivals::poisson(rate.rate / cores as f64, load.seed, core)),
        };
        (Replay::new(records, load.seed), arrivals)
    };
    let mut done = run::run(job, &progress, make)?;
    let measured = done.run.series.iter().filter(|second| !second.is_warmup);
    done.run.settings.duration_s = measured.map(|second| second.length_s).sum();
    if trace.cut_count > 0 {
        let remark = format!("{} values are larger than a node takes, and were cut to what it takes", trace.cut_count);
        done.run.validity.remarks.push(remark);
    }
    if trace.records.len() == limit {
        done.run.validity.remarks.push(format!("no more than {limit} requests of the trace were read (--limit)"));
    }
    results.keep_only(done, output)
}

fn settings(flags: &ReplayFlags, load: &LoadFlags, trace: &Trace) -> Settings {
    let RunFlags { target, rate, .. } = &flags.run;
    let share = |op: Op| {
        let count = trace.records.iter().filter(|record| record.operation.op == op).count();
        (op.name().to_owned(), count as f64 / trace.records.len() as f64)
    };
    let last_s = trace.records.last().map_or(0.0, |record| record.at_s);
    let rate_per_s = match flags.speed {
        Some(speed) => trace.records.len() as f64 / last_s * speed,
        None => rate.rate,
    };
    let usual = load.workload().expect("a trace has no flags that contradict each other");
    Settings {
        workload: flags.trace.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        ratio: Op::ALL.map(share).into_iter().filter(|(_, share)| *share > 0.0).collect::<BTreeMap<_, _>>(),
        keys: trace.key_count(),
        key_dist: "trace".to_owned(),
        key_bytes: trace.mean(|operation| operation.name.bytes() as f64),
        value_size: "trace".to_owned(),
        value_bytes_mean: trace.mean(|operation| f64::from(operation.value_bytes)),
        is_preloaded: false,
        ..load.settings(target, &usual, rate_per_s)
    }
}
