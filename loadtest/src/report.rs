//! A page about one result or several: for whoever has to believe the numbers, and was not there.
//!
//! ```text
//!   verdict        may it be believed, were the promises kept            first, and loud if not
//!   results        the figures, one column for each file
//!   account        what failed, times by operation, what it cost         report/account.rs
//!   pictures       each with its numbers                                 report/{distribution,time,load,ratio}.rs
//!   what was run   command, machine, settings, reasons and remarks
//!   limits         what these measurements cannot show
//! ```
//! One file that needs nothing else: no script, nothing fetched, by day and by night, from a telephone's width on. Its
//! content security policy says the same to the browser. All text of a result is escaped by `maud`; only the drawings
//! of `report/chart.rs` are not, which escapes its labels itself. Some of the pictures can also be had as files of their
//! own: `report/picture.rs`.

mod account;
mod axis;
mod chart;
mod distribution;
mod figure;
mod load;
pub mod picture;
pub(crate) mod quantity;
mod ratio;
mod subject;
mod time;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use self::{
    distribution::percentile_ns,
    figure::{Figure, Omission, Table, UNKNOWN, WITHHELD},
    quantity::{Grouped, Moment, Nanoseconds, Share, Size},
    subject::{Subject, all_operations, clip},
};
use crate::result::{ResultFile, Run, SAMPLES_BEYOND_MIN, Settings, SloOutcome, Verify};

/// Files that are shown: as many lines as can be told apart.
pub const FILES_MAX: usize = chart::STYLES;

/// Runs of a file that are shown.
pub const RUNS_MAX: usize = 60;

/// Letters of a text of the file, such as its command, that are shown.
const TEXT_LETTERS_MAX: usize = 2_000;

/// Examples, reasons and remarks of one kind that are shown.
const SENTENCES_MAX: usize = 20;

/// Seconds of a measured part that are few.
const SHORT_SECONDS: f64 = 30.0;

/// A load average before the measurement above which somebody else was there.
const LOAD_AVERAGE_MAX: f64 = 0.1;

/// The rates and percentiles of the results.
const SHOWN: [f64; 5] = [50.0, 90.0, 99.0, 99.9, 99.99];

const CSS: &str = include_str!("report/style.css");

/// The page of `files`, in the order given. The first [`FILES_MAX`] are shown, of each the first [`RUNS_MAX`] runs.
///
/// HTML 5 in UTF-8, below 500 KiB whatever the length of the runs. Reads and writes nothing.
#[must_use]
pub fn html(files: &[ResultFile]) -> String {
    let shown = &files[..files.len().min(FILES_MAX)];
    let subjects = Subject::all(shown);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { "Load test: " (headline(&subjects)) }
                style { (PreEscaped(CSS)) }
            }
            body {
                main {
                    h1 { "Load test: " (headline(&subjects)) }
                    @if files.len() > shown.len() {
                        p.verdict.bad { "Of " (files.len()) " files the first " (shown.len()) " are shown." }
                    }
                    @if subjects.is_empty() { p { "No result was given." } }
                    (verdicts(&subjects))
                    (results(&subjects))
                    (account::html(&subjects))
                    (pictures(&subjects))
                    (checks(&subjects))
                    (what_was_run(&subjects))
                    (limits(&subjects))
                }
            }
        }
    };
    page.into_string()
}

fn headline(subjects: &[Subject<'_>]) -> String {
    let kind = |subject: &Subject<'_>| format!("{:?}", subject.file.kind).to_lowercase();
    match subjects {
        [] => "nothing".to_owned(),
        [subject] => {
            let target = subject.runs.first().map_or("", |run| &*run.settings.target);
            let is_invalid = subject.single().is_some_and(|run| !run.validity.is_valid);
            let invalid = if is_invalid { " (invalid)" } else { "" };
            format!("{} {}{invalid}", kind(subject), clip(target, 80))
        }
        _ => format!("{} results compared", subjects.len()),
    }
}

// ---- The verdict.

/// One box for each file: bad if there is anything to object to.
fn verdicts(subjects: &[Subject<'_>]) -> Markup {
    html! {
        section aria-label="Verdict" {
            @for subject in subjects {
                div.verdict.(verdict_class(is_good(subject))) {
                    @if !subject.name.is_empty() { p { b { (subject.name) } } }
                    (validity(subject))
                    (promises(subject))
                    (search(subject))
                    @let violations = violation_count(subject);
                    @if violations > 0 { p { strong.bad { "Wrong answers: " } (Grouped(violations as f64)) } }
                }
            }
        }
    }
}

/// As `style.css` calls it.
fn verdict_class(is_good: bool) -> &'static str {
    if is_good { "good" } else { "bad" }
}

fn is_good(subject: &Subject<'_>) -> bool {
    let is_kept = subject.single().is_none_or(|run| run.slo.iter().all(|outcome| outcome.is_kept));
    let is_found = subject.file.search.as_ref().is_none_or(|search| search.rate_per_s.is_some());
    let is_valid = subject.file.runs.iter().all(|run| run.validity.is_valid);
    is_valid && is_kept && is_found && violation_count(subject) == 0
}

fn validity(subject: &Subject<'_>) -> Markup {
    // Also of those that are not shown.
    let invalid = subject.file.runs.iter().filter(|run| !run.validity.is_valid).count();
    let text = match subject.file.runs.len() {
        0 => return html! { p { "No run is in this file." } },
        _ if invalid == 0 => {
            return html! { p { strong.good { "Valid: " } "the numbers may be believed, within the limits below" } };
        }
        1 => "these numbers say nothing about the server".to_owned(),
        count => format!("{invalid} of {count} runs, which say nothing about the server"),
    };
    html! {
        p { strong.bad { "Invalid: " } (text) }
        ul { @for sentence in sentences(&reasons(subject)) { li { (sentence) } } }
    }
}

fn reasons(subject: &Subject<'_>) -> Vec<String> {
    said_of_runs(subject, |run| run.validity.reasons.iter().map(|reason| reason.text.clone()).collect())
}

/// What `say` has to say of each run, after the name of the run where there are several.
fn said_of_runs(subject: &Subject<'_>, say: impl Fn(&Run) -> Vec<String>) -> Vec<String> {
    let named = |(index, run): (usize, &&Run)| {
        let prefix =
            if subject.runs.len() == 1 { String::new() } else { format!("{}: ", subject.run_name(run, index)) };
        say(run).into_iter().map(move |text| format!("{prefix}{text}"))
    };
    subject.runs.iter().enumerate().flat_map(named).collect()
}

fn promises(subject: &Subject<'_>) -> Markup {
    let Some(run) = subject.single().filter(|run| !run.slo.is_empty()) else { return html! {} };
    let sentence = |outcome: &SloOutcome| {
        let found = outcome.observed.map_or_else(|| WITHHELD.to_owned(), |observed| quantity_of(outcome, observed));
        format!("{}: {found}, {}", outcome.expression, if outcome.is_kept { "kept" } else { "missed" })
    };
    let outcomes: Vec<String> = run.slo.iter().map(sentence).collect();
    let kept = run.slo.iter().filter(|outcome| outcome.is_kept).count();
    let follows = if run.validity.is_valid { "" } else { ", from which nothing follows" };
    html! {
        p {
            strong.(verdict_class(kept == run.slo.len() && run.validity.is_valid)) {
                (kept) " of " (run.slo.len()) " promises kept" (follows)
            }
        }
        ul { @for outcome in sentences(&outcomes) { li { (outcome) } } }
    }
}

/// What was found, in the unit of what was promised.
fn quantity_of(outcome: &SloOutcome, observed: f64) -> String {
    match &outcome.expression {
        text if text.starts_with("errors") || text.starts_with("hits") => Share(observed).to_string(),
        text if text.starts_with("rate") => format!("{}/s", Grouped(observed.round())),
        _ => Nanoseconds(observed).to_string(),
    }
}

fn search(subject: &Subject<'_>) -> Markup {
    let Some(search) = &subject.file.search else { return html! {} };
    let text = match (search.rate_per_s, search.missed_per_s) {
        (Some(kept), Some(missed)) => {
            format!("promises were kept up to {}/s and missed at {}/s", Grouped(kept.round()), Grouped(missed.round()))
        }
        (Some(kept), None) => format!("promises were kept at every rate, up to {}/s", Grouped(kept.round())),
        (None, _) => "promises were kept at no rate".to_owned(),
    };
    html! { p { strong.(verdict_class(search.rate_per_s.is_some())) { "Search: " } (text) } }
}

// ---- The results.

/// A row for each figure and a column for each run, with its ratio to the first.
fn results(subjects: &[Subject<'_>]) -> Markup {
    let runs: Vec<(&Subject<'_>, &Run)> =
        subjects.iter().filter_map(|subject| Some((subject, subject.single()?))).collect();
    if runs.is_empty() {
        return html! {};
    }
    let mut columns = vec![String::new()];
    for (index, (subject, _)) in runs.iter().enumerate() {
        columns.push(if subject.name.is_empty() { "result".to_owned() } else { subject.name.clone() });
        columns.extend((index > 0).then(|| "÷ #1".to_owned()));
    }
    let runs: Vec<&Run> = runs.into_iter().map(|(_, run)| run).collect();
    let table = Table { caption: "Results of the measured part".to_owned(), columns, rows: result_rows(&runs) };
    html! {
        section aria-labelledby="results" {
            h2 id="results" { "Results" }
            (table.html())
            p.note {
                "Percentiles are of the response time. One that is withheld has fewer than " (SAMPLES_BEYOND_MIN)
                " samples beyond it: it would say more about luck than about the server."
            }
        }
    }
}

fn result_rows(runs: &[&Run]) -> Vec<Vec<String>> {
    let row = |name: &str, show: fn(f64) -> String, value: &dyn Fn(&Run) -> Option<f64>| {
        result_row(runs, name, UNKNOWN, show, value)
    };
    let per = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    let time: fn(f64) -> String = |ns| Nanoseconds(ns).to_string();
    let count: fn(f64) -> String = |count| Grouped(count).to_string();
    let rate: fn(f64) -> String = |rate| format!("{}/s", Grouped(rate.round()));
    let share: fn(f64) -> String = |share| Share(share).to_string();
    let mut rows = vec![
        row("calls", count, &|run| Some(run.counts.requests as f64)),
        row("intended", rate, &|run| Some(run.rates.intended_per_s).filter(|rate| *rate > 0.0)),
        row("answered", rate, &|run| Some(run.rates.achieved_per_s)),
        row("keys", rate, &|run| Some(run.rates.keys_per_s)),
        row("due and not sent", count, &|run| Some(run.counts.unsent as f64)),
        row("failed", share, &|run| per(run.counts.errors, run.counts.requests)),
        row("hits", share, &|run| per(run.counts.hits, run.counts.hits + run.counts.misses)),
    ];
    rows.extend(SHOWN.map(|percentile| {
        let value = |run: &Run| percentile_ns(&all_operations(run)?.response, percentile);
        result_row(runs, &format!("p{percentile}"), WITHHELD, time, &value)
    }));
    rows.extend([
        row("greatest", time, &|run| Some(all_operations(run)?.response.max_ns as f64).filter(|ns| *ns > 0.0)),
        row("server CPU per call", time, &|run| Some(run.server.as_ref()?.cpu_ns_per_request)),
        row("server CPU per key", time, &|run| Some(run.server.as_ref()?.cpu_ns_per_key)),
        row("system calls per call", count, &|run| run.server.as_ref()?.system_calls_per_request),
        row("client CPU per call", time, &|run| Some(run.client.cpu_ns_per_request)),
        row("client itself late, p99", time, &|run| run.client.late_p99_ns.map(|ns| ns as f64)),
    ]);
    rows
}

fn result_row(
    runs: &[&Run],
    name: &str,
    absent: &str,
    show: fn(f64) -> String,
    value: &dyn Fn(&Run) -> Option<f64>,
) -> Vec<String> {
    let first = runs.first().and_then(|run| value(run)).filter(|first| *first > 0.0);
    let mut row = vec![name.to_owned()];
    for (index, run) in runs.iter().enumerate() {
        let value = value(run);
        row.push(value.map_or_else(|| absent.to_owned(), show));
        if index > 0 {
            let ratio = value.zip(first).map(|(value, first)| format!("{:.2}", value / first));
            row.push(ratio.unwrap_or_else(|| UNKNOWN.to_owned()));
        }
    }
    row
}

// ---- The pictures.

fn pictures(subjects: &[Subject<'_>]) -> Markup {
    let mut pictures: Vec<Result<Figure, Omission>> = Vec::new();
    pictures.extend(ratio::figure(subjects));
    pictures.extend(load::figures(subjects));
    pictures.push(distribution::response(subjects));
    pictures.extend(distribution::tiers(subjects));
    pictures.extend(time::figures(subjects));
    let (figures, omissions): (Vec<_>, Vec<_>) = pictures.into_iter().partition(Result::is_ok);
    let omissions: Vec<Omission> = omissions.into_iter().filter_map(Result::err).collect();
    html! {
        section aria-labelledby="pictures" {
            h2 id="pictures" { "Pictures" }
            div.figures { @for figure in figures.iter().flatten() { (figure.html()) } }
            @if !omissions.is_empty() {
                h3 { "Not shown" }
                dl { @for omission in &omissions { dt { (omission.title) } dd { (omission.reason) } } }
            }
        }
    }
}

// ---- What `verify` found.

fn checks(subjects: &[Subject<'_>]) -> Markup {
    html! {
        @for subject in subjects {
            @for verify in subject.runs.iter().filter_map(|run| run.verify.as_ref()) {
                section {
                    h2 { (subject.name_of("Checks of the answers")) }
                    (check_table(verify).html())
                    @if !verify.examples.is_empty() {
                        h3 { "The first violations" }
                        ul { @for example in sentences(&verify.examples) { li { (example) } } }
                    }
                }
            }
        }
    }
}

fn check_table(verify: &Verify) -> Table {
    let counts = [
        ("reads checked", verify.reads),
        ("writes acknowledged", verify.writes),
        ("writes with unknown outcome", verify.writes_unknown),
        ("misses that are allowed", verify.misses_allowed),
    ];
    let counts = counts.map(|(name, count)| (name.to_owned(), count));
    let violations = verify.violations.iter().map(|(kind, count)| (format!("violations: {kind}"), *count));
    let rows = counts.into_iter().chain(violations).map(|(name, count)| vec![name, Grouped(count as f64).to_string()]);
    Table {
        caption: "Checks of the answers".to_owned(),
        columns: vec![String::new(), "count".to_owned()],
        rows: rows.collect(),
    }
}

fn violation_count(subject: &Subject<'_>) -> u64 {
    let checked = subject.runs.iter().filter_map(|run| run.verify.as_ref());
    checked.flat_map(|verify| verify.violations.values()).sum()
}

// ---- What was run.

fn what_was_run(subjects: &[Subject<'_>]) -> Markup {
    html! {
        section aria-labelledby="run" {
            h2 id="run" { "What was run" }
            @for subject in subjects {
                @if !subject.name.is_empty() { h3 { (subject.name) } }
                pre tabindex="0" { code { (clip(&command(&subject.file.command), TEXT_LETTERS_MAX)) } }
                (machine(subject.file))
                @if let Some(run) = subject.runs.first() {
                    details {
                        summary { "Settings" @if subject.runs.len() > 1 { " of the first run" } }
                        (pairs(settings(&run.settings)))
                    }
                }
                (remarks(subject))
            }
        }
    }
}

/// As one would type it.
fn command(words: &[String]) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=,@%+".contains(letter);
    let quoted = words.iter().map(|word| match word {
        word if !word.is_empty() && word.chars().all(is_plain) => word.clone(),
        word => format!("'{}'", word.replace('\'', r"'\''")),
    });
    quoted.collect::<Vec<String>>().join(" ")
}

fn machine(file: &ResultFile) -> Markup {
    let machine = &file.machine;
    let processors = if machine.cpus == 1 { "processor" } else { "processors" };
    pairs(vec![
        ("begun", Moment(file.started_unix_ms).to_string()),
        (
            "machine",
            format!("{}, {} {processors}, {}", machine.cpu_model, machine.cpus, Size(machine.memory_bytes as f64)),
        ),
        ("kernel", format!("{}{}", machine.kernel, if machine.is_virtual { ", in a virtual machine" } else { "" })),
        ("load average before", format!("{:.2}", machine.load_average)),
        ("program", format!("{} {}, {} build", file.tool.name, file.tool.version, file.tool.profile)),
    ])
}

fn settings(settings: &Settings) -> Vec<(&'static str, String)> {
    let rate = match settings.rate_per_s {
        rate if rate > 0.0 => format!("{}/s, open loop", Grouped(rate)),
        _ => "closed loop".to_owned(),
    };
    let operations = settings.ratio.iter().map(|(name, share)| format!("{name} {}", Share(*share)));
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let ttl =
        if settings.ttl_ms == 0 { "for ever".to_owned() } else { format!("{} ms", Grouped(settings.ttl_ms as f64)) };
    vec![
        ("target", settings.target.clone()),
        ("protocol", settings.protocol.clone()),
        ("rate", rate),
        ("measured", format!("{} s after {} s of warm-up", settings.duration_s, settings.warmup_s)),
        ("connections", format!("{}, {} requests in flight on each at most", settings.connections, settings.streams)),
        ("client cores", format!("{}, bound to processors: {}", settings.threads, yes(settings.is_pinned))),
        ("workload", settings.workload.clone()),
        ("operations", operations.collect::<Vec<String>>().join(", ")),
        ("keys", format!("{}, {}, of {} bytes", Grouped(settings.keys as f64), settings.key_dist, settings.key_bytes)),
        ("values", format!("{}, {} in the mean", settings.value_size, Size(settings.value_bytes_mean))),
        ("life of values", ttl),
        ("keys in a call", settings.batch.to_string()),
        ("written before", yes(settings.is_preloaded)),
        ("deadline", format!("{} ms", Grouped(settings.deadline_ms as f64))),
        ("seed", settings.seed.to_string()),
        ("promises", settings.slo.join(", ")),
    ]
}

fn remarks(subject: &Subject<'_>) -> Markup {
    let remarks = said_of_runs(subject, |run| run.validity.remarks.clone());
    html! { @if !remarks.is_empty() { ul { @for remark in sentences(&remarks) { li { (remark) } } } } }
}

fn pairs(pairs: Vec<(&str, String)>) -> Markup {
    html! {
        dl {
            @for (name, text) in pairs {
                @if !text.is_empty() { dt { (name) } dd { (clip(&text, TEXT_LETTERS_MAX)) } }
            }
        }
    }
}

/// At most [`SENTENCES_MAX`], none too long, and how many are left.
fn sentences(texts: &[String]) -> Vec<String> {
    let left = texts.len().saturating_sub(SENTENCES_MAX);
    let mut shown: Vec<String> =
        texts.iter().take(SENTENCES_MAX).map(|text| clip(text, TEXT_LETTERS_MAX / 4)).collect();
    if left > 0 {
        shown.push(format!("and {left} more in the file"));
    }
    shown
}

// ---- What cannot be shown.

fn limits(subjects: &[Subject<'_>]) -> Markup {
    html! {
        section aria-labelledby="limits" {
            h2 id="limits" { "What this cannot show" }
            ul { @for limit in limits_of(subjects) { li { (limit) } } }
        }
    }
}

/// What holds for every measurement, and what follows from how these were made.
fn limits_of(subjects: &[Subject<'_>]) -> Vec<String> {
    let files = || subjects.iter().map(|subject| subject.file);
    let runs = || subjects.iter().flat_map(|subject| &subject.runs);
    let local =
        |run: &&&Run| ["//127.", "//localhost", "//[::1]"].iter().any(|host| run.settings.target.contains(host));
    let conditional = [
        (
            runs().any(|run| run.settings.rate_per_s == 0.0),
            "A closed loop waits for an answer before it asks again: while the server is slow, it is asked less. Its \
             latencies are service times and less than what independent clients would see.",
        ),
        (
            runs().any(|run| local(&run)),
            "Client and server shared a machine: the client took processor time, and there was no network between \
             them. Absolute figures do not carry over; ratios on one machine do.",
        ),
        (
            files().any(|file| file.machine.is_virtual),
            "A virtual machine shares its processors: system calls and wake-ups cost more than on bare metal, and \
             what others do shows in the tail.",
        ),
        (
            files().any(|file| file.machine.load_average > LOAD_AVERAGE_MAX),
            "The machine was not idle before the measurement.",
        ),
        (files().any(|file| file.tool.profile != "release"), "A debug build of the client measured itself."),
        (
            runs().any(|run| run.settings.duration_s < SHORT_SECONDS),
            "A measured part of less than 30 s shows no expiry, no reclaim of the log, no slow leak.",
        ),
        (
            runs().any(|run| !run.settings.is_pinned),
            "The client was not bound to processors: the scheduler moved it, and its caches with it.",
        ),
        (runs().any(|run| run.server.is_none()), "What it cost the server is not known for every run."),
        (
            subjects.len() > 1,
            "Separate measurements: what changed between them is not only what one wanted to change. Only turns (`ab`) \
             tell a difference from noise.",
        ),
        (
            subjects.iter().any(|subject| subject.file.runs.len() > subject.runs.len()),
            "Not all runs of every file are shown: there are too many.",
        ),
    ];
    let always = [
        "A load that is made is not the load of users: real keys, sizes and pauses are other ones.",
        "Time that the server's kernel spent on arriving packets may be counted to whichever process it interrupted.",
    ];
    let conditional = conditional.into_iter().filter(|(holds, _)| *holds).map(|(_, text)| text);
    conditional.chain(always).map(str::to_owned).collect()
}
