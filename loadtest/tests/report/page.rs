//! The page as text: what is in it, and what never is.

use std::{fs, sync::OnceLock};

use milena_loadtest::{
    report::{self, FILES_MAX, RUNS_MAX},
    result::ResultFile,
};

use serde_json::{Value, json};

use crate::sample;

/// What a report may weigh.
const PAGE_BYTES_MAX: usize = 500 * 1024;

/// Elements that are never closed.
const VOID: [&str; 1] = ["meta"];

/// Every sample with its name.
pub(crate) fn pages() -> &'static [(&'static str, String)] {
    static PAGES: OnceLock<Vec<(&'static str, String)>> = OnceLock::new();
    PAGES.get_or_init(make_pages)
}

fn make_pages() -> Vec<(&'static str, String)> {
    let samples = [
        ("run", vec![sample::run()]),
        ("invalid", vec![sample::invalid()]),
        ("scarce", vec![sample::scarce()]),
        ("verify", vec![sample::verified()]),
        ("sweep", vec![sample::sweep()]),
        ("search", vec![sample::search()]),
        ("ab", vec![sample::ab()]),
        ("compared", sample::compared()),
        ("sweeps", vec![sample::sweep(), sample::search()]),
        ("long", sample::long()),
        ("hostile", vec![sample::hostile()]),
        ("nothing", Vec::new()),
    ];
    samples.map(|(name, files)| (name, report::html(&files))).to_vec()
}

/// An element as it is opened.
#[derive(Debug)]
struct Tag<'a> {
    name: &'a str,
    attributes: Vec<(&'a str, &'a str)>,
    /// What stands between it and the next tag.
    text: &'a str,
}

impl Tag<'_> {
    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(found, _)| *found == name).map(|(_, value)| *value)
    }
}

/// Every tag of a page, closing ones included with their slash. That each that opens is closed is checked on the way.
fn tags(page: &str) -> Vec<Tag<'_>> {
    let mut tags = Vec::new();
    let mut open = Vec::new();
    for piece in page.split('<').skip(1) {
        let (inside, text) = piece.split_once('>').unwrap_or_else(|| panic!("a tag without an end: {piece}"));
        let (name, mut rest) = inside.split_once(' ').unwrap_or((inside, ""));
        let mut attributes = Vec::new();
        while let Some((attribute, behind)) = rest.split_once("=\"") {
            let (value, behind) =
                behind.split_once('"').unwrap_or_else(|| panic!("an attribute without end: {inside}"));
            attributes.push((attribute.trim(), value));
            rest = behind;
        }
        match name.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop(), Some(closed), "closed in another order than opened"),
            None if name.starts_with('!') || VOID.contains(&name) || rest.ends_with('/') => {}
            None => open.push(name),
        }
        tags.push(Tag { name, attributes, text });
    }
    assert_eq!(open, [""; 0], "never closed");
    tags
}

/// The texts of all elements with this name, their own text only.
fn texts<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    tags(page).into_iter().filter(|tag| tag.name == name).map(|tag| tag.text.trim()).collect()
}

#[test]
fn a_page_is_well_formed_and_not_large() {
    for (name, page) in pages() {
        assert!(page.len() <= PAGE_BYTES_MAX, "{name}: {} bytes", page.len());
        let tags = tags(page);
        assert_eq!(tags.iter().filter(|tag| tag.name == "h1").count(), 1, "{name}");
        let mut ids: Vec<&str> = tags.iter().filter_map(|tag| tag.attribute("id")).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count, "{name}: two elements with one id");
        for tag in &tags {
            let mut names: Vec<&str> = tag.attributes.iter().map(|(name, _)| *name).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{name}: {tag:?}");
        }
    }
}

#[test]
fn a_page_of_many_runs_is_not_large_and_says_that_it_does_not_show_all() {
    let mut file = sample::sweep();
    for run in &mut file.runs {
        run.series.clear();
        run.tiers.clear();
    }
    file.runs = file.runs.iter().cycle().take(4 * RUNS_MAX).cloned().collect();
    let page = report::html(&vec![file; FILES_MAX]);
    assert!(page.len() <= PAGE_BYTES_MAX, "{} bytes", page.len());
    assert!(page.contains("Not all runs of every file are shown"));
    assert!(page.contains("60 of 240 runs"), "invalid ones are counted all the same");
}

#[test]
fn a_page_needs_nothing_else() {
    const FETCHING: [&str; 11] =
        ["script", "link", "img", "image", "iframe", "object", "embed", "use", "base", "form", "a"];
    for (name, page) in pages() {
        for tag in tags(page) {
            assert!(!FETCHING.contains(&tag.name), "{name}: {tag:?}");
            for (attribute, value) in tag.attributes {
                assert!(!["src", "href", "xlink:href", "style"].contains(&attribute), "{name}: {attribute}={value}");
                assert!(!attribute.starts_with("on"), "{name}: {attribute}={value}");
                assert!(attribute == "xmlns" || !value.contains("://"), "{name}: {attribute}={value}");
            }
        }
        let style = texts(page, "style");
        assert_eq!(style.len(), 1, "{name}");
        assert!(!style[0].contains("url(") && !style[0].contains("@import"), "{name}");
        assert!(page.contains("default-src 'none'"), "{name}: the browser is told too");
    }
}

#[test]
fn every_picture_has_title_description_and_numbers() {
    for (name, page) in pages() {
        let figures: Vec<&str> =
            page.split("<figure").skip(1).map(|part| part.split("</figure>").next().unwrap()).collect();
        let pictures = tags(page).iter().filter(|tag| tag.attribute("role") == Some("img")).count();
        assert_eq!(pictures, figures.len(), "{name}: a picture outside of a figure");
        for figure in figures {
            let whole = format!("<figure{figure}</figure>");
            let found = tags(&whole);
            let svg = found.iter().find(|tag| tag.attribute("role") == Some("img")).unwrap();
            let labels = svg.attribute("aria-labelledby").unwrap();
            for (element, id) in ["title", "desc"].iter().zip(labels.split(' ')) {
                let tag = found.iter().find(|tag| tag.name == *element).unwrap();
                assert_eq!(tag.attribute("id"), Some(id), "{name}");
                assert!(!tag.text.trim().is_empty(), "{name}: {tag:?}");
            }
            let has = |element: &str| found.iter().any(|tag| tag.name == element);
            for element in ["h3", "figcaption", "table", "caption", "details", "polyline"] {
                assert!(has(element), "{name}: {labels} has no {element}");
            }
            assert!(
                found.iter().filter(|tag| tag.name == "th").any(|tag| tag.attribute("scope") == Some("row")),
                "{name}"
            );
        }
    }
}

#[test]
fn the_pictures_are_those_that_the_results_can_show() {
    let figures = |file: ResultFile| {
        let page = report::html(&[file]);
        let found = tags(&page);
        let ids: Vec<String> = found
            .iter()
            .filter(|tag| tag.name == "figure")
            .map(|tag| tag.attribute("id").unwrap().to_owned())
            .collect();
        ids.join(" ")
    };
    let over_time = "throughput-over-time latency-over-time hits-over-time cpu-over-time";
    assert_eq!(figures(sample::run()), format!("latency-by-percentile latency-by-tier {over_time}"));
    assert_eq!(figures(sample::sweep()), "latency-by-load cpu-by-load");
    assert_eq!(figures(sample::search()), "latency-by-load cpu-by-load");
    assert_eq!(figures(sample::ab()), "ratios latency-by-percentile");
    assert!(!figures(sample::scarce()).contains("cpu"), "the server is elsewhere");
}

#[test]
fn a_picture_that_is_not_there_has_its_reason() {
    let page = report::html(&[sample::scarce()]);
    assert!(page.contains("cache.example is not this machine"));
    let page = report::html(&[sample::sweep()]);
    assert!(texts(&page, "dt").contains(&"Latency by percentile"));
}

#[test]
fn an_invalid_run_is_called_so_before_anything_else_is_said() {
    let page = report::html(&[sample::invalid()]);
    let (invalid, results) = (page.find("Invalid: ").unwrap(), page.find("id=\"results\"").unwrap());
    assert!(invalid < results);
    assert!(page[..results].contains("requests left 4.1 ms late at p99"), "with its reasons");
    assert!(!page.contains("Valid: "));
    assert!(page.contains("2 of 2 promises kept, from which nothing follows"));
    assert_eq!(texts(&page, "h1"), ["Load test: run http://127.0.0.1:50051 (invalid)"]);
    let page = report::html(&[sample::sweep()]);
    assert!(page.contains("Invalid: ") && page.contains("2 of 8 runs"));
    assert!(page.contains("class=\"hollow s0\""), "and its points are hollow");
    let page = report::html(&[sample::invalid()]);
    assert!(page.contains("Hollow: an invalid run") && page.contains("class=\"hollow s1\""), "by percentile too");
    for (name, good) in [("run", sample::run()), ("ab", sample::ab())] {
        let page = report::html(&[good]);
        assert!(page.contains("Valid: ") && !page.contains("Invalid: "), "{name}");
    }
}

#[test]
fn promises_and_wrong_answers_are_part_of_the_verdict() {
    let verdict = |file: ResultFile| {
        let page = report::html(&[file]);
        page[..page.find("id=\"pictures\"").unwrap()].to_owned()
    };
    assert!(verdict(sample::run()).contains("2 of 2 promises kept"));
    assert!(verdict(sample::search()).contains("kept up to 40,000/s and missed at 50,000/s"));
    assert!(verdict(sample::verified()).contains("Wrong answers: "));
    assert!(!verdict(sample::run()).contains("Wrong answers: "));
}

#[test]
fn percentiles_with_too_few_samples_are_withheld_and_not_made_up() {
    let page = report::html(&[sample::run()]);
    let cells = |head: &str| {
        let row = page.split("<tr>").find(|row| row.contains(&format!(">{head}</th>"))).unwrap();
        texts(&row[..row.find("</tr>").unwrap()], "td").join(" ")
    };
    assert!(
        cells("p99.99").ends_with(" µs") || cells("p99.99").ends_with(" ms"),
        "of 1.2 million calls 120 are slower"
    );
    let beyond = page.split("<tr>").find(|row| row.contains(">p99.999</th>")).unwrap();
    assert!(beyond.starts_with("<th scope=\"row\">p99.999</th><td>withheld</td>"), "{}", &beyond[..90]);
    let scarce = report::html(&[sample::scarce()]);
    assert!(scarce.split("<tr>").any(|row| row.starts_with("<th scope=\"row\">p99</th><td>withheld</td>")));
}

#[test]
fn what_was_run_and_what_it_cannot_show_is_told() {
    let page = report::html(&[sample::run()]);
    let told = [
        "milena-loadtest run --target http://127.0.0.1:50051 -r 20k -c 8 --streams 32 --workload ycsb-b --slo &#39;p99&lt;2ms&#39; -o result.json",
        "Intel(R) Xeon(R) Platinum 8488C, 2 processors, 24 GiB",
        "2026-11-22 15:03:05 UTC",
        "zipf:0.99",
        "the processors were taken away for 0.2 % of the time",
        "Client and server shared a machine",
    ];
    let page = page.replace("&#x27;", "&#39;").replace('\'', "&#39;");
    for text in told {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("A closed loop"));
    let closed = report::html(&[sample::scarce()]);
    assert!(closed.contains("A closed loop") && !closed.contains("Service time begins"));
}

#[test]
fn text_of_a_result_is_text_on_the_page() {
    let page = report::html(&[sample::hostile()]);
    let clean = report::html(&[sample::invalid()]);
    assert!(page.contains("&lt;script&gt;"));
    let names = |page: &str| {
        let mut names: Vec<String> = tags(page).iter().map(|tag| tag.name.to_owned()).collect();
        names.sort();
        names.dedup();
        names
    };
    let new: Vec<String> = names(&page).into_iter().filter(|name| !names(&clean).contains(name)).collect();
    assert_eq!(new, [""; 0], "elements that only the text of the result could have brought");
}

#[test]
fn numbers_that_cannot_be_do_no_harm() {
    fn set(value: &mut Value, number: u32) {
        match value {
            Value::Number(_) => *value = json!(number),
            Value::Array(values) => values.iter_mut().for_each(|value| set(value, number)),
            Value::Object(fields) => fields.values_mut().for_each(|value| set(value, number)),
            _ => {}
        }
    }
    for file in [sample::run(), sample::search(), sample::ab()] {
        for number in [0, 1, u32::MAX] {
            let mut file = serde_json::to_value(&file).unwrap();
            set(&mut file, number);
            let page = report::html(&[serde_json::from_value(file).unwrap()]);
            assert!(!page.contains("NaN") && !page.contains(">inf"), "{number}");
        }
    }
}

#[test]
fn several_results_are_told_apart_by_what_differs_and_compared_with_the_first() {
    let page = report::html(&sample::compared());
    for name in ["#1 milena-node", "#2 redis", "#3 memcached (invalid)"] {
        assert!(page.contains(&format!("</svg>{name}: response</li>")), "{name} is in the legend");
    }
    assert!(texts(&page, "th").contains(&"÷ #1"));
    let answered = page.split("<tr>").find(|row| row.contains(">answered</th>")).unwrap();
    assert_eq!(
        texts(&answered[..answered.find("</tr>").unwrap()], "td"),
        ["20,000/s", "14,286/s", "0.71", "11,111/s", "0.56"]
    );
}

#[test]
fn files_beyond_what_can_be_told_apart_are_not_shown_and_that_is_said() {
    let files = sample::long();
    assert!(files.len() > FILES_MAX);
    let page = report::html(&files);
    assert!(page.contains(&format!("Of {} files the first {FILES_MAX} are shown.", files.len())));
}

#[test]
fn a_report_is_a_file_that_anyone_can_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.html");
    fs::write(&path, report::html(&[sample::run()])).unwrap();
    let page = fs::read_to_string(&path).unwrap();
    assert!(page.starts_with("<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\">"));
}
