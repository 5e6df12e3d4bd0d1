//! `sweep`, `search`, `ab`, `compare` and `report`: every run is kept, and what is concluded fits them.

use std::path::PathBuf;

use milena_loadtest::result::{Kind, ResultFile, Second};

use crate::{
    fake::{Fake, Lie},
    loadtest, run,
};

const SMALL: &str = "-q -w 0 -d 0.5s -c 2 --streams 4 --keys 100 --value-size 100";

#[test]
fn a_sweep_keeps_a_run_for_each_rate() {
    let fake = Fake::start(Lie::None);
    let ended = loadtest(&format!("sweep --target {} {SMALL} --rates 300,100,200", fake.url()));
    let mut rates: Vec<f64> = ended.file().runs.iter().map(|run| run.rates.intended_per_s).collect();
    rates.sort_by(f64::total_cmp);
    assert_eq!(rates, [100.0, 200.0, 300.0]);
    assert!(ended.file().runs[0].settings.is_preloaded && !ended.file().runs[1].settings.is_preloaded);
}

#[test]
fn a_search_reports_every_probe_with_its_run() {
    let fake = Fake::start(Lie::None);
    let ended = loadtest(&format!("search --target {} {SMALL} --max-rate 2000 --slo p50<1h", fake.url()));
    let file = ended.file();
    let search = file.search.as_ref().expect("a search finds out");
    assert_eq!((file.kind, search.probes.len()), (Kind::Search, file.runs.len()));
    assert!(search.probes.len() >= 5, "the grid at least");
    for (index, probe) in search.probes.iter().enumerate() {
        assert_eq!((probe.run_index as usize, probe.rate_per_s), (index, file.runs[index].rates.intended_per_s));
    }
    let kept: Vec<f64> =
        search.probes.iter().filter(|probe| probe.verdict == "kept").map(|probe| probe.rate_per_s).collect();
    assert!(search.rate_per_s.is_none_or(|rate| kept.contains(&rate)), "{search:?}");
}

#[test]
fn ab_takes_turns_and_a_target_with_itself_is_the_noise() {
    let fake = Fake::start(Lie::None);
    let url = fake.url();
    let ended = loadtest(&format!("ab -a {url} -b {url} {SMALL} --pairs 2"));
    let file = ended.file();
    assert_eq!(file.runs.iter().map(|run| &*run.label).collect::<Vec<_>>(), ["A", "B", "B", "A"]);
    let seeds: Vec<u64> = file.runs.iter().map(|run| run.settings.seed).collect();
    assert_eq!(seeds, [42, 42, 43, 43], "the same load for both of a pair");
    let ab = file.ab.as_ref().expect("ab compares");
    assert!(ab.is_noise_floor && ab.pairs + ab.pairs_discarded == 2, "{ab:?}");
    assert!(ab.pairs < 2 || ab.ratios.iter().any(|ratio| ratio.figure == "throughput"), "{ab:?}");
}

/// Writes a result whose runs are valid and have this rate in each of their seconds.
fn written(mut file: ResultFile, keys_per_s: f64, path: PathBuf) -> PathBuf {
    for run in &mut file.runs {
        run.validity.is_valid = true;
        run.rates.keys_per_s = keys_per_s;
        let second = Second { length_s: 1.0, requests: keys_per_s as u64, ..Second::default() };
        run.series = vec![second; 5];
        run.latency.clear();
        run.server = None;
    }
    file.write(&path).expect("a directory of our own");
    path
}

#[test]
fn compare_tells_a_regression_by_its_exit_code() {
    const REGRESSED: i32 = 96;
    const USAGE: i32 = 2;
    let fake = Fake::start(Lie::None);
    let file = loadtest(&format!("run --target {} {SMALL}", fake.url())).file.expect("a result");
    let dir = tempfile::tempdir().unwrap();
    let fast = written(file.clone(), 1000.0, dir.path().join("fast.json"));
    let slow = written(file.clone(), 900.0, dir.path().join("slow.json"));
    let compare = |before: &PathBuf, after: &PathBuf, noise| {
        let words = ["compare", before.to_str().unwrap(), after.to_str().unwrap(), "--noise", noise];
        run(words)
    };
    assert_eq!(compare(&fast, &slow, "5%").code(), REGRESSED);
    assert_eq!(compare(&fast, &slow, "20%").code(), 0);
    assert_eq!(compare(&slow, &fast, "5%").code(), 0);
    let two = written(
        ResultFile { runs: [file.runs.clone(), file.runs.clone()].concat(), ..file },
        1.0,
        dir.path().join("two.json"),
    );
    assert_eq!(compare(&fast, &two, "5%").code(), USAGE);
}

#[test]
fn report_makes_one_page_of_the_files_it_is_given() {
    let fake = Fake::start(Lie::None);
    let file = loadtest(&format!("run --target {} {SMALL}", fake.url())).file.expect("a result");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    written(file.clone(), 1000.0, path("one.json").into());
    written(file, 900.0, path("two.json").into());
    let ended = run(["report", &path("one.json"), &path("two.json"), "-o", &path("page.html")]);
    assert_eq!(ended.code(), 0);
    let page = std::fs::read_to_string(path("page.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("2 results compared"), "{}", &page[..200]);
    assert_eq!(run(["report", &path("none.json"), "-o", &path("page.html")]).code(), 1);
    assert_eq!(run(["report"]).code(), 2);
}
