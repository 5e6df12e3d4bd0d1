//! The subcommands that make several runs: `sweep`, `search` and `ab`. Each run is kept, whatever came out of it.

use crate::{
    arguments::{AbFlags, SearchFlags, SweepFlags},
    figures,
    program::{Ending, ProgramError, Results, synthetic},
    progress::{Progress, time},
    random::Random,
    result::{self, Ab, Kind, Latency, ReasonCode, ResultFile, Run},
    run::Done,
    search::{Search, Verdict},
    show,
    statistics::shuffle,
    synthetic::Synthetic,
    target::Target,
    workload::Workload,
};

/// The most of all pairs that may be discarded.
const DISCARDED_SHARE_MAX: f64 = 1.0 / 3.0;

/// One target, and whether its keys are there already.
struct Side<'a> {
    target: &'a Target,
    workload: Workload,
}

impl<'a> Side<'a> {
    fn new(target: &'a Target, workload: &Workload) -> Self {
        Self { target, workload: workload.clone() }
    }

    /// One run; only the first writes the keys before.
    fn run(
        &mut self,
        load: &crate::arguments::LoadFlags,
        rate_per_s: f64,
        label: &str,
        progress: &Progress,
    ) -> Result<Done<Synthetic>, ProgramError> {
        let done = synthetic(load, self.target, &self.workload, rate_per_s, label, progress)?;
        self.workload.is_preloaded = false;
        Ok(done)
    }
}

/// `sweep`: latency against load.
pub(super) fn sweep(flags: &SweepFlags) -> Result<Ending, ProgramError> {
    let mut results = Results::begin(Kind::Sweep);
    let progress = Progress::new(flags.output.quiet);
    let workload = flags.load.workload()?;
    let mut rates = flags.rates.clone();
    shuffle(&mut rates, &mut Random::new(workload.seed, 0));
    let mut side = Side::new(&flags.target, &workload);
    for rate in rates {
        progress.note(&format!("{rate} requests/s"));
        results.keep(side.run(&flags.load, rate, &rate.to_string(), &progress)?);
    }
    let mut sorted: Vec<&Run> = results.file.runs.iter().collect();
    sorted.sort_by(|one, other| one.rates.intended_per_s.total_cmp(&other.rates.intended_per_s));
    print!("{}", table(&sorted));
    results.write(&flags.output)?;
    Ok(worst(&results.file))
}

/// `search`: the highest rate that keeps its promises.
pub(super) fn search(flags: &SearchFlags) -> Result<Ending, ProgramError> {
    let load = &flags.load;
    let mut results = Results::begin(Kind::Search);
    let progress = Progress::new(flags.output.quiet);
    let workload = load.workload()?;
    let mut side = Side::new(&flags.target, &workload);
    let peak_per_s = match flags.max_rate {
        Some(rate) => rate,
        None => {
            progress.note("the peak, by a closed loop");
            side.run(load, 0.0, "peak", &progress)?.run.rates.achieved_per_s
        }
    };
    let mut search = Search::new(peak_per_s, workload.seed);
    let mut probes = Vec::new();
    while let Some(rate) = search.next() {
        progress.note(&format!("probe {}: {rate:.0} requests/s", probes.len() + 1));
        let done = side.run(load, rate, &format!("{rate:.0}"), &progress)?;
        let verdict = verdict(&done.run);
        progress.note(verdict.name());
        search.note(verdict);
        let run_index = u32::try_from(results.file.runs.len()).expect("few runs");
        probes.push(result::Probe { rate_per_s: rate, verdict: verdict.name().to_owned(), run_index });
        results.keep(done);
    }
    print!("{}", table(&results.file.runs.iter().collect::<Vec<_>>()));
    let (kept, missed) = (search.kept(), search.missed());
    let promises = promises(&load.slo);
    match (kept, missed) {
        (Some(kept), Some(missed)) => println!("{promises}: kept at {kept:.0} requests/s, missed at {missed:.0}"),
        (Some(kept), None) => println!("{promises}: kept at {kept:.0} requests/s, the peak"),
        (None, Some(missed)) => println!("{promises}: missed at {missed:.0} requests/s, kept at no rate"),
        (None, None) => println!("INVALID: {promises}: not one probe was valid"),
    }
    results.file.search = Some(result::Search { rate_per_s: kept, missed_per_s: missed, probes });
    results.write(&flags.output)?;
    Ok(match (kept, missed) {
        (Some(_), _) => Ending::Done,
        (None, Some(_)) => Ending::SloMissed,
        (None, None) => Ending::Invalid,
    })
}

fn promises(slo: &[crate::slo::Slo]) -> String {
    slo.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What a probe says about the server.
fn verdict(run: &Run) -> Verdict {
    let is_the_servers = |code| matches!(code, ReasonCode::AchievedRate | ReasonCode::Errors);
    let is_untold = run.slo.iter().any(|outcome| outcome.observed.is_none());
    if is_untold || run.validity.reasons.iter().any(|reason| !is_the_servers(reason.code)) {
        Verdict::Invalid
    } else if run.validity.is_valid && run.slo.iter().all(|outcome| outcome.is_kept) {
        Verdict::Kept
    } else {
        Verdict::Missed
    }
}

/// `ab`: two targets in turns.
pub(super) fn ab(flags: &AbFlags) -> Result<Ending, ProgramError> {
    let mut results = Results::begin(Kind::Ab);
    let progress = Progress::new(flags.output.quiet);
    let workload = flags.load.workload()?;
    let mut sides = [Side::new(&flags.a, &workload), Side::new(&flags.b, &workload)];
    for pair in 0..flags.pairs as usize {
        // A B, B A, A B, …: neither is always the second.
        let order = if pair.is_multiple_of(2) { [0, 1] } else { [1, 0] };
        for index in order {
            progress.note(&format!("pair {} of {}: {}", pair + 1, flags.pairs, LABELS[index]));
            let side = &mut sides[index];
            // The same keys and arrivals for both of a pair, and others for the next.
            side.workload.seed = workload.seed + pair as u64;
            results.keep(side.run(&flags.load, flags.rate.rate, LABELS[index], &progress)?);
        }
    }
    let ab = compare_pairs(flags, &results.file.runs);
    print!("{}", show::ab(&ab));
    let is_conclusive = f64::from(ab.pairs_discarded) <= f64::from(flags.pairs) * DISCARDED_SHARE_MAX && ab.pairs > 1;
    results.file.ab = Some(ab);
    results.write(&flags.output)?;
    if !is_conclusive {
        println!("INVALID: too many pairs have a run that is not valid");
    }
    Ok(if is_conclusive { Ending::Done } else { Ending::Invalid })
}

const LABELS: [&str; 2] = ["A", "B"];

/// The runs two by two; pairs with an invalid run are left out, whatever they would have said.
fn compare_pairs(flags: &AbFlags, runs: &[Run]) -> Ab {
    let in_order = |pair: &'_ [Run]| if pair[0].label == LABELS[0] { (0, 1) } else { (1, 0) };
    let pairs: Vec<(&Run, &Run)> = runs
        .chunks_exact(2)
        .map(|pair| {
            let (a, b) = in_order(pair);
            (&pair[a], &pair[b])
        })
        .collect();
    let valid: Vec<(&Run, &Run)> =
        pairs.iter().copied().filter(|(a, b)| a.validity.is_valid && b.validity.is_valid).collect();
    Ab {
        target_a: flags.a.text.clone(),
        target_b: flags.b.text.clone(),
        is_noise_floor: flags.a == flags.b,
        pairs: u32::try_from(valid.len()).expect("few pairs"),
        pairs_discarded: u32::try_from(pairs.len() - valid.len()).expect("few pairs"),
        ratios: figures::ratios(&valid),
    }
}

/// A line for each run.
fn table(runs: &[&Run]) -> String {
    let mut text = format!(
        "{:>12}{:>12}{:>11}{:>11}{:>11}{:>8}{:>14}  {}\n",
        "intended/s", "achieved/s", "p50", "p99", "p99.9", "errors", "server µs/req", "valid"
    );
    for run in runs {
        let all = run.latency.iter().find(|latency| latency.op == Latency::ALL);
        let percentile = |wanted: f64| {
            let found = all.and_then(|all| all.response.percentiles.iter().find(|found| found.percentile == wanted));
            time(found.and_then(|found| found.value_ns))
        };
        let cpu =
            run.server.as_ref().map_or("-".to_owned(), |server| format!("{:.2}", server.cpu_ns_per_request / 1e3));
        let reasons = run.validity.reasons.iter().map(|reason| format!("{:?}", reason.code)).collect::<Vec<_>>();
        text += &format!(
            "{:>12.0}{:>12.0}{:>11}{:>11}{:>11}{:>8}{:>14}  {}\n",
            run.rates.intended_per_s,
            run.rates.achieved_per_s,
            percentile(50.0),
            percentile(99.0),
            percentile(99.9),
            run.counts.errors,
            cpu,
            if reasons.is_empty() { "yes".to_owned() } else { reasons.join(", ") },
        );
    }
    text
}

/// Of several runs at several rates nothing is promised, but one of them must have said something.
fn worst(file: &ResultFile) -> Ending {
    if file.runs.iter().any(|run| run.validity.is_valid) { Ending::Done } else { Ending::Invalid }
}
