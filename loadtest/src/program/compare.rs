//! `compare`: what has changed between two result files.

use crate::{
    arguments::CompareFlags,
    figures::{Change, Figure, Verdict, changes},
    program::{Ending, ProgramError},
    result::{ResultFile, Run},
};

pub(super) fn compare(flags: &CompareFlags) -> Result<Ending, ProgramError> {
    let before = ResultFile::read(&flags.before).map_err(ProgramError::Input)?;
    let after = ResultFile::read(&flags.after).map_err(ProgramError::Input)?;
    if before.runs.len() != after.runs.len() || before.kind != after.kind {
        return Err(ProgramError::Unlike {
            before: format!("{:?} with {} runs", before.kind, before.runs.len()),
            after: format!("{:?} with {} runs", after.kind, after.runs.len()),
        });
    }
    if before.machine.cpu_model != after.machine.cpu_model || before.machine.cpus != after.machine.cpus {
        println!("remark: not the same machine; only ratios of one machine mean something");
    }
    let mut ending = Ending::Done;
    for (before, after) in in_order(&before).into_iter().zip(in_order(&after)) {
        ending = ending.max(compare_runs(before, after, flags.noise));
    }
    Ok(ending)
}

/// By rate: runs at several rates are made in a shuffled order.
fn in_order(file: &ResultFile) -> Vec<&Run> {
    let mut runs: Vec<&Run> = file.runs.iter().collect();
    runs.sort_by(|one, other| {
        one.label.cmp(&other.label).then(one.settings.rate_per_s.total_cmp(&other.settings.rate_per_s))
    });
    runs
}

fn compare_runs(before: &Run, after: &Run, noise_share: f64) -> Ending {
    for difference in differences(before, after) {
        println!("remark: {difference}");
    }
    let invalid = [("before", before), ("after", after)].into_iter().find(|(_, run)| !run.validity.is_valid);
    if let Some((name, run)) = invalid {
        println!("INVALID: the run {name} is not valid: {}", run.validity.reasons[0].text);
        return Ending::Invalid;
    }
    let changes = changes(before, after, noise_share);
    print!("{}", table(&before.label, &changes));
    let is_worse = changes.iter().any(|change| change.verdict == Verdict::Worse);
    if is_worse { Ending::Regressed } else { Ending::Done }
}

/// What was asked for differently.
fn differences(before: &Run, after: &Run) -> Vec<String> {
    let fields = |run: &Run| match serde_json::to_value(&run.settings) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => unreachable!("settings are an object"),
    };
    let (old, new) = (fields(before), fields(after));
    // A target has another port each time, and a promise changes nothing.
    let compared = old.iter().filter(|(name, _)| !["target", "slo"].contains(&name.as_str()));
    let changed = compared.filter(|(name, value)| new.get(*name) != Some(value));
    changed.map(|(name, value)| format!("{name} was {value} and is {}", new[name])).collect()
}

fn table(label: &str, changes: &[Change]) -> String {
    let mut text = format!("{:24}{:>12}{:>12}{:>9}{:>20}\n", label, "before", "after", "change", "by seconds, 95 %");
    for change in changes {
        let percent = |ratio: f64| format!("{:+.1} %", (ratio - 1.0) * 100.0);
        let interval = change
            .by_seconds
            .map_or("-".to_owned(), |found| format!("{} to {}", percent(found.low), percent(found.high)));
        let verdict = match change.verdict {
            Verdict::Same => "",
            Verdict::Better => "better",
            Verdict::Worse => "WORSE",
        };
        text += &format!(
            "{:24}{:>12}{:>12}{:>9}{:>20}  {verdict}\n",
            change.figure.name(),
            number(change.figure, change.before),
            number(change.figure, change.after),
            percent(change.after / change.before),
            interval,
        );
    }
    text
}

fn number(figure: Figure, value: f64) -> String {
    match figure {
        Figure::Throughput => format!("{value:.0}/s"),
        _ => format!("{:.2}µs", value / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::run;

    #[test]
    fn a_regression_beyond_the_noise_is_one_and_an_invalid_run_is_not() {
        let before = run([1000, 1010, 990, 1005, 995]);
        let slow = run([700, 710, 690, 705, 695]);
        assert_eq!(compare_runs(&before, &slow, 0.05), Ending::Regressed);
        assert_eq!(compare_runs(&slow, &before, 0.05), Ending::Done);
        let mut invalid = slow;
        invalid.validity.is_valid = false;
        invalid.validity.reasons =
            vec![crate::result::Reason { code: crate::result::ReasonCode::Steal, text: "stolen".to_owned() }];
        assert_eq!(compare_runs(&before, &invalid, 0.05), Ending::Invalid);
    }

    #[test]
    fn what_was_asked_for_differently_is_told_and_the_target_is_not() {
        let (before, mut after) = (run([1; 5]), run([1; 5]));
        after.settings.target = "http://h:2".to_owned();
        assert_eq!(differences(&before, &after), [""; 0]);
        after.settings.streams = 2;
        assert_eq!(differences(&before, &after), ["streams was 1 and is 2"]);
    }
}
