//! The seconds of runs, for other programs: CSV, and HdrHistogram's interval log.
//!
//! ```text
//!   CSV            run,second,start_s,length_s,is_warmup,requests,…      a line for each second of each run
//!   interval log   [Tag=…,]start_s,length_s,max_ms,histogram             response times, warm-up left out, in milliseconds
//! ```
//! A run's label is its tag; what an empty label leaves is a run without one. Format of the log: HdrHistogram,
//! `HistogramLogWriter.java`, version 1.3.

use std::{
    fmt::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use hdrhistogram::serialization::{
    V2DeflateSerializer,
    interval_log::{IntervalLogWriterBuilder, Tag},
};

use crate::{
    protocol::ServedBy,
    result::{Run, Second},
    times::Times,
};

/// Nanoseconds in the unit of the maxima that the log has beside its histograms.
const NS_PER_MS: f64 = 1e6;

/// The series of all runs.
///
/// # Panics
/// Never: a String takes everything.
#[must_use]
pub fn csv(runs: &[Run]) -> String {
    let mut text = "run,second,start_s,length_s,is_warmup,requests,errors,misses".to_owned();
    for tier in ServedBy::ALL {
        write!(text, ",hits_{}", tier.name()).expect("a String takes everything");
    }
    text += ",p50_ns,p99_ns,p999_ns,max_ns,lag_max_ns,server_cpu_ns,client_cpu_ns\n";
    for run in runs {
        for (second, start_s) in run.series.iter().zip(starts_s(&run.series)) {
            put_line(&run.label, second, start_s, &mut text);
        }
    }
    text
}

/// When each second begins, in seconds since the first.
fn starts_s(series: &[Second]) -> impl Iterator<Item = f64> {
    series.iter().scan(0.0, |next_s, second| {
        let start_s = *next_s;
        *next_s += second.length_s;
        Some(start_s)
    })
}

fn put_line(label: &str, second: &Second, start_s: f64, text: &mut String) {
    let Second { second: number, is_warmup, length_s, requests, errors, misses, .. } = second;
    let told = |value: Option<u64>| value.map_or(String::new(), |value| value.to_string());
    let hits = ServedBy::ALL.map(|tier| second.hits_by_tier.get(tier.name()).copied().unwrap_or_default().to_string());
    let cells = [
        format!("{label},{number},{start_s:.3},{length_s:.3},{is_warmup},{requests},{errors},{misses}"),
        hits.join(","),
        [second.p50_ns, second.p99_ns, second.p999_ns, Some(second.max_ns), Some(second.lag_max_ns)]
            .map(told)
            .join(","),
        format!("{},{}", told(second.server_cpu_ns), second.client_cpu_ns),
    ];
    writeln!(text, "{}", cells.join(",")).expect("a String takes everything");
}

/// The response times of all runs; `seconds` holds those of each run's series.
///
/// # Panics
/// Never: a Vec takes everything.
#[must_use]
pub fn interval_log(runs: &[Run], seconds: &[Vec<Times>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let start_ms = runs.iter().map(|run| run.started_unix_ms).min().unwrap_or_default();
    let mut builder = IntervalLogWriterBuilder::new();
    builder
        .add_comment("[Histogram log format version 1.3]")
        .add_comment("milena-loadtest: response times in nanoseconds, maxima in milliseconds")
        .with_start_time(UNIX_EPOCH + Duration::from_millis(start_ms))
        .with_base_time(UNIX_EPOCH + Duration::from_millis(start_ms))
        .with_max_value_divisor(NS_PER_MS);
    let mut log = builder.begin_log_with(&mut bytes, &mut serializer).expect("a Vec takes everything");
    for (run, seconds) in runs.iter().zip(seconds) {
        let run_start = Duration::from_millis(run.started_unix_ms - start_ms);
        let measured = run.series.iter().zip(seconds).filter(|(second, _)| !second.is_warmup);
        let tag = || Some(&*run.label).filter(|label| !label.is_empty()).and_then(Tag::new);
        let mut since = Duration::ZERO;
        for (second, times) in measured {
            let length = Duration::from_secs_f64(second.length_s);
            let written = log.write_histogram(times.hdr(), run_start + since, length, tag());
            written.expect("a Vec takes everything");
            since += length;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use hdrhistogram::{
        Histogram,
        serialization::{
            Deserializer,
            interval_log::{IntervalLogIterator, LogEntry},
        },
    };

    use base64::{Engine as _, prelude::BASE64_STANDARD};

    use super::*;
    use crate::figures::tests::run;

    #[test]
    fn a_line_for_each_second_has_as_many_cells_as_the_head() {
        let mut one = run([10, 20, 30, 40, 50]);
        one.series[0].is_warmup = true;
        one.series[1].hits_by_tier.insert("disk".to_owned(), 7);
        one.series[1].p50_ns = Some(123);
        let text = csv(&[one.clone(), one]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
        assert_eq!(lines.len(), 11);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
        let cell = |line: usize, name: &str| {
            let column = lines[0].iter().position(|column| *column == name).expect(name);
            lines[line][column]
        };
        assert_eq!((cell(1, "is_warmup"), cell(2, "start_s"), cell(2, "requests")), ("true", "1.000", "20"));
        assert_eq!((cell(2, "hits_disk"), cell(2, "p50_ns"), cell(2, "p99_ns")), ("7", "123", ""));
    }

    #[test]
    fn the_log_is_read_back_by_the_library_with_tags_and_without_the_warm_up() {
        let mut one = run([1, 2, 3, 4, 5]);
        one.label = "A".to_owned();
        one.series[0].is_warmup = true;
        let seconds: Vec<Times> = (1..=5_u64)
            .map(|number| {
                let mut times = Times::new();
                times.record(Duration::from_millis(number));
                times
            })
            .collect();
        let log = interval_log(&[one], &[seconds]);
        assert!(log.starts_with(b"#[Histogram log format version 1.3]\n"), "{}", String::from_utf8_lossy(&log));
        let entries: Vec<LogEntry<'_>> = IntervalLogIterator::new(&log).map(|entry| entry.unwrap()).collect();
        let intervals = entries.iter().filter_map(|entry| match entry {
            LogEntry::Interval(interval) => Some(interval),
            _ => None,
        });
        let maxima: Vec<u64> = intervals
            .map(|interval| {
                assert_eq!(interval.tag().map(|tag| tag.as_str()), Some("A"));
                let bytes = BASE64_STANDARD.decode(interval.encoded_histogram()).unwrap();
                let found: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
                (found.max() + 500_000) / 1_000_000
            })
            .collect();
        assert_eq!(maxima, [2, 3, 4, 5]);
    }
}
