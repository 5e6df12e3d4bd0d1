//! Nothing that a result says is kept from who reads the page or the terminal: each figure is changed, and seen to change them.

use milena_loadtest::{
    report,
    result::{Kind, ResultFile},
    show,
};
use serde_json::{Value, json};

use crate::sample;

/// What the page does not show: whatever ends like this, and why.
const NOT_ON_THE_PAGE: [(&str, &str); 13] = [
    ("schema", "for programs"),
    ("kind", "it is one of few"),
    ("/hdr", "the curves are drawn from it"),
    ("/code", "the text says the same to people"),
    ("stdev_ns", "says little of times, whose tail is long"),
    ("/percentile", "it is one of few"),
    ("lag/percentiles/1/value_ns", "of the lag a few are enough"),
    ("lag/percentiles/3/value_ns", "the same"),
    ("runs/0/started_unix_ms", "the file's beginning is shown"),
    ("runs/0/label", "tells runs apart, and there is one"),
    ("/second", "the seconds are counted by their lengths"),
    ("/server_absent_because", "it is not"),
    ("/allowed", "the promise says it"),
];

/// What a terminal shows: whatever begins like this in a run. The rest is what the page is for.
const ON_A_TERMINAL: [&str; 25] = [
    "settings/protocol",
    "settings/target",
    "settings/workload",
    "settings/rate_per_s",
    "settings/connections",
    "settings/streams",
    "settings/threads",
    "settings/duration_s",
    "rates/achieved_per_s",
    "rates/value_bytes_per_s",
    "latency/0/service/count",
    "counts/hits",
    "counts/errors",
    "counts/value_bytes",
    "counts/unsent",
    "first_failure",
    "server/name",
    "server/resident_bytes",
    "server/cpu_ns_per",
    "client/late_p99_ns",
    "client/is_the_limit",
    "noise",
    "verify",
    "slo/0/observed",
    "validity/reasons/0/text",
];

/// A result with one run in which nothing is absent, of few seconds.
fn full() -> Value {
    let mut file = serde_json::to_value(sample::verified()).unwrap();
    let run = &mut file["runs"][0];
    run["series"].as_array_mut().unwrap().drain(6..);
    run["first_failure"] = json!("UNAVAILABLE: node 3 does not answer");
    run["client"]["late_p99_ns"] = json!(12_000);
    run["validity"]["is_valid"] = json!(false);
    run["validity"]["reasons"] = json!([{ "code": "errors", "text": "too many calls failed" }]);
    file
}

/// The paths of all numbers, texts and booleans.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| leaves(value, &format!("{path}/{name}"), found));
        }
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(index, value)| leaves(value, &format!("{path}/{index}"), found));
        }
        Value::Null => {}
        _ => found.push(path.to_owned()),
    }
}

fn change(value: &mut Value) {
    *value = match value {
        Value::Number(number) if number.is_u64() => json!(number.as_u64().unwrap() * 3 + 7),
        Value::Number(number) => json!(number.as_f64().unwrap() * 3.0 + 7.0),
        Value::String(text) => json!(format!("{text} and more")),
        Value::Bool(is) => json!(!*is),
        _ => unreachable!("leaves only"),
    };
}

/// The leaves of which a change is not seen by `look`.
fn unseen(paths: impl Iterator<Item = String>, look: impl Fn(&ResultFile) -> String) -> Vec<String> {
    let file = full();
    let before = look(&serde_json::from_value(file.clone()).unwrap());
    let is_unseen = |path: &String| {
        let mut changed = file.clone();
        change(changed.pointer_mut(path).expect("a leaf"));
        look(&serde_json::from_value(changed).unwrap_or_else(|error| panic!("{path}: {error}"))) == before
    };
    paths.filter(is_unseen).collect()
}

fn all_leaves() -> Vec<String> {
    let mut paths = Vec::new();
    leaves(&full(), "", &mut paths);
    paths
}

#[test]
fn every_figure_of_a_result_is_on_its_page_or_named_here_with_the_reason() {
    let is_told = |path: &String| !NOT_ON_THE_PAGE.iter().any(|(end, _)| path.ends_with(end));
    let unseen = unseen(all_leaves().into_iter().filter(is_told), |file| report::html(std::slice::from_ref(file)));
    assert_eq!(unseen, [""; 0]);
    assert_eq!(full()["kind"], serde_json::to_value(Kind::Verify).unwrap());
}

#[test]
fn what_tells_whether_and_why_a_run_is_good_is_on_the_terminal() {
    let of_run = |path: &String| {
        path.strip_prefix("/runs/0/").is_some_and(|path| ON_A_TERMINAL.iter().any(|start| path.starts_with(start)))
    };
    let unseen = unseen(all_leaves().into_iter().filter(of_run), |file| show::run(&file.runs[0]));
    assert_eq!(unseen, [""; 0]);
}
