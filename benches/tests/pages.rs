//! The pages of what was measured say everything: what was reached, what was missed, and what nobody knows.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use milena_benches::pages::{
    self,
    goals::{COMPARISONS, GOALS},
};
use serde_json::{Value, json};

/// A folder of pages in the making.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(folder.path().join("raw")).unwrap();
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Leaves the record of a comparison.
    fn record(&self, name: &str, record: &Value) {
        fs::write(self.path().join("raw").join(format!("{name}.json")), record.to_string()).unwrap();
    }

    /// Leaves a file of a comparison.
    fn file(&self, name: &str, text: &str) {
        let path = self.path().join("raw").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The index.
    fn written(&self) -> String {
        pages::write(self.path()).unwrap_or_else(|error| panic!("{error}"));
        fs::read_to_string(self.path().join("README.md")).unwrap()
    }
}

fn record(state: &str, reason: &str, figures: &[Value]) -> Value {
    json!({
        "schema": 1, "state": state, "reason": reason, "date": "2026-01-02T03:04:05Z", "commit": "abc1234",
        "command": "benches/compare --quick get", "is_quick": false, "seconds": 61.0,
        "machine": {
            "processor": "Some Processor", "processors": 2, "memory_bytes": 8_u64 << 30, "kernel": "6.1",
            "is_virtual": true, "load_average": 0.25
        },
        "cores": "Server on core 0, client on core 1", "versions": { "tonic": "0.14.9" },
        "remarks": ["one of the pairs | was left out"], "figures": figures, "results": [], "files": []
    })
}

fn figure(name: &str, least: f64, median: f64, most: f64) -> Value {
    let found = json!({ "least": least, "median": median, "most": most, "samples": 5 });
    json!({ "name": name, "what": format!("what {name} is"), "unit": "times", "found": found, "withheld": "" })
}

/// The row of the table of goals that begins with these two cells.
fn row<'a>(index: &'a str, what: &str, with: &str) -> &'a str {
    let begins = format!("| {what} | {with} |");
    index.lines().find(|line| line.starts_with(&begins)).unwrap_or_else(|| panic!("no {begins} in\n{index}"))
}

const CPU: &str = "server CPU per Get, 100 bytes";

/// What every link of a page points to, pictures included.
fn links(page: &str) -> BTreeSet<PathBuf> {
    let targets = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).map(PathBuf::from).collect()
}

fn assert_links_exist(folder: &Path, page: &str) {
    for link in links(page).iter().filter(|link| !link.starts_with("../..")) {
        assert!(folder.join(link).is_file(), "{} is linked and not there", link.display());
    }
}

#[test]
fn the_command_measures_what_the_pages_show() {
    let compare = Path::new(env!("CARGO_MANIFEST_DIR")).join("compare");
    let done = Command::new("python3").arg(compare).arg("--list").output().unwrap();
    let listed = String::from_utf8(done.stdout).unwrap();
    let known: Vec<&str> = COMPARISONS.iter().map(|comparison| comparison.name).collect();
    assert_eq!(listed.lines().collect::<Vec<_>>(), known, "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_goal_that_is_missed_is_said_and_so_is_one_that_not_every_sample_reaches() {
    let folder = Folder::new();
    let figures = [
        figure("8x32/node:tonic", 0.2, 0.25, 0.29),
        figure("64x1/node:tonic", 0.6, 0.64, 0.9),
        figure("8x1/node:tonic", 0.6, 0.66, 0.7),
    ];
    folder.record("get", &record("measured", "", &figures));
    let index = folder.written();
    assert_eq!(
        row(&index, CPU, "tonic, 8x32"),
        format!("| {CPU} | tonic, 8x32 | ≤ 0.3 times | 0.25 (0.20 to 0.29) times | reached |")
    );
    assert!(row(&index, CPU, "tonic, 64x1").ends_with("| reached by the median, not by every sample |"));
    assert!(row(&index, CPU, "tonic, 8x1").ends_with("0.66 (0.60 to 0.70) times | **missed** |"));
    assert!(index.contains(&format!("Of {} goals 2 are reached, **1 are missed** and", GOALS.len())), "{index}");
}

#[test]
fn a_large_figure_is_good_where_it_should_be_large() {
    let folder = Folder::new();
    let figures = [figure("s3/95-5/throughput", 11.0, 12.0, 13.0), figure("s3/50-50/throughput", 8.0, 9.0, 9.5)];
    folder.record("one-lock", &record("measured", "", &figures));
    let index = folder.written();
    assert!(
        row(&index, "throughput, 95 % Get, 5 % Put, S3 below", "one lock around all tiers (a stand-in)")
            .ends_with("| reached |")
    );
    assert!(
        row(&index, "throughput, half Get, half Put, S3 below", "one lock around all tiers (a stand-in)")
            .ends_with("| **missed** |")
    );
}

#[test]
fn what_was_never_measured_was_skipped_or_failed_is_said_and_ends_nothing() {
    let folder = Folder::new();
    folder.record("batch", &record("skipped", "redis-server is missing", &[]));
    folder.record("memory", &record("failed", "memory-figures ended with 101: out of | memory", &[]));
    let index = folder.written();
    assert!(row(&index, CPU, "tonic, 8x32").ends_with("| – | not measured yet |"));
    assert!(index.contains("**Not measured yet**: `benches/compare latency`."));
    assert!(index.contains("**Skipped**: redis-server is missing.\n"));
    assert!(index.contains("skipped: redis-server is missing |"), "in the table of goals too");
    assert!(index.contains("failed: memory-figures ended with 101: out of \\| memory |"));
    assert!(index.contains(&format!("and {} could not be told", GOALS.len())));
    assert_links_exist(folder.path(), &index);
}

#[test]
fn a_figure_that_is_withheld_or_not_told_gives_its_reason_in_place_of_a_number() {
    let folder = Folder::new();
    let withheld = json!({
        "name": "p999", "what": "p99.9, node / tonic", "unit": "times", "found": null,
        "withheld": "too few samples beyond it"
    });
    folder.record("latency", &record("measured", "", &[figure("p50", 0.4, 0.5, 0.6), withheld]));
    let index = folder.written();
    let response = "response time of a Get, half the saturating rate";
    assert!(row(&index, response, "tonic, p99.9").ends_with("| – | withheld: too few samples beyond it |"));
    assert!(row(&index, response, "tonic, p99").ends_with("| – | not told by this run of `latency` |"));
    assert!(index.contains("| p99.9, node / tonic | withheld: too few samples beyond it |"));
}

#[test]
fn a_section_tells_how_where_and_when_and_links_what_is_there() {
    let folder = Folder::new();
    let mut get = record("measured", "", &[figure("8x32/node:tonic", 0.2, 0.25, 0.29)]);
    get["is_quick"] = true.into();
    get["files"] = json!(["get/samples.json"]);
    folder.file("get/samples.json", "{}");
    folder.record("get", &get);
    let index = folder.written();
    let told = [
        "A quick try, with few rounds.",
        "| what 8x32/node:tonic is | 0.25 (0.20 to 0.29) times | 5 |",
        "- one of the pairs | was left out",
        "Server on core 0, client on core 1. tonic 0.14.9. 2026-01-02T03:04:05Z, in 61 s, commit abc1234;",
        "\n    benches/compare --quick get\n",
        "[get/samples.json](raw/get/samples.json)",
        "![Ratios and their goals](pictures/get-goals.svg)",
        "Some Processor, 2 processors, 8 GiB of memory, Linux 6.1, a virtual machine",
    ];
    for part in told {
        assert!(index.contains(part), "{part} is not in\n{index}");
    }
    assert_links_exist(folder.path(), &index);
}

#[test]
fn pictures_stand_alone_by_day_and_by_night_and_old_ones_go() {
    let folder = Folder::new();
    let result = json!({
        "schema": 1, "kind": "ab", "command": [], "started_unix_ms": 1,
        "tool": { "name": "milena-loadtest", "version": "0", "profile": "release" },
        "machine": {
            "cpu_model": "", "cpus": 2, "memory_bytes": 0, "kernel": "", "is_virtual": true, "load_average": 0
        },
        "runs": [], "search": null,
        "ab": {
            "target_a": "http://a", "target_b": "http://b", "is_noise_floor": false, "pairs": 3, "pairs_discarded": 0,
            "ratios": [{
                "figure": "p50", "ratio": 0.5, "low": 0.4, "high": 0.6, "pairs": [0.5], "is_difference": true
            }]
        }
    });
    let mut latency = record("measured", "", &[figure("p50", 0.4, 0.5, 0.6)]);
    latency["files"] = json!(["latency/ab.json"]);
    latency["results"] = json!(["latency/ab.json"]);
    folder.file("latency/ab.json", &result.to_string());
    folder.record("latency", &latency);
    let index = folder.written();
    assert!(index.contains("![B over A](pictures/latency-ratios.svg)"), "{index}");
    assert_links_exist(folder.path(), &index);
    for link in links(&index).iter().filter(|link| link.extension().is_some_and(|extension| extension == "svg")) {
        let svg = fs::read_to_string(folder.path().join(link)).unwrap();
        assert!(svg.contains("prefers-color-scheme: dark") && !svg.contains("<script"), "{}", link.display());
    }

    fs::remove_file(folder.path().join("raw/latency.json")).unwrap();
    folder.written();
    assert!(!folder.path().join("pictures/latency-ratios.svg").exists(), "a picture of what is not there any more");
}

#[test]
fn a_record_of_another_schema_or_one_that_names_a_file_that_is_not_there_is_refused() {
    let folder = Folder::new();
    let mut get = record("measured", "", &[]);
    get["files"] = json!(["get/gone.json"]);
    folder.record("get", &get);
    let refused = pages::write(folder.path()).unwrap_err().to_string();
    assert!(refused.ends_with("get.json: names get/gone.json, which is not there"), "{refused}");

    get["schema"] = 2.into();
    folder.record("get", &get);
    let refused = pages::write(folder.path()).unwrap_err().to_string();
    assert!(refused.ends_with("get.json: schema 2; 1 is known"), "{refused}");
}

/// Whoever changes the pages or the goals runs `benches/compare --pages`.
#[test]
fn the_pages_of_this_repository_are_what_its_raw_files_make() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/benchmarks");
    let folder = Folder::new();
    copy(&kept.join("raw"), &folder.path().join("raw"));
    let written = pages::write(folder.path()).unwrap();
    for name in &written {
        let read = |folder: &Path| fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert!(read(&kept) == read(folder.path()), "{} is another one: benches/compare --pages", name.display());
    }
    let pictures = fs::read_dir(kept.join("pictures")).unwrap().count();
    assert_eq!(pictures + 1, written.len(), "a picture that nobody shows");
    assert_links_exist(&kept, &fs::read_to_string(kept.join("README.md")).unwrap());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { _ = fs::copy(&path, &target).unwrap() }
    }
}
