//! How a run is getting on: a bar on a terminal, a line for each second elsewhere. Both on standard error.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::result::Second;

/// Where progress is shown.
#[derive(Debug)]
pub enum Progress {
    /// Nowhere.
    Silent,
    /// A line for each second.
    Lines,
    /// A bar that is drawn over.
    Bar(ProgressBar),
}

impl Progress {
    /// As suits standard error.
    #[must_use]
    pub fn new(is_quiet: bool) -> Self {
        if is_quiet {
            return Self::Silent;
        }
        if !io::stderr().is_terminal() {
            return Self::Lines;
        }
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}").expect("a template of ours");
        bar.set_style(style);
        Self::Bar(bar)
    }

    /// So many keys of `total` are written.
    pub fn preload(&self, written: u64, total: u64) {
        match self {
            Self::Bar(bar) => {
                bar.set_length(total);
                bar.set_message("keys written");
                bar.set_position(written);
            }
            // Not for each of them.
            Self::Lines if written == total => eprintln!("{total} keys written"),
            Self::Lines | Self::Silent => {}
        }
    }

    /// A second of `count` is over.
    pub fn second(&self, second: &Second, count: usize) {
        match self {
            Self::Bar(bar) => {
                bar.set_length(count as u64);
                bar.set_position(u64::from(second.second) + 1);
                bar.set_message(line(second));
            }
            Self::Lines => eprintln!("{:4} of {count} s  {}", second.second + 1, line(second)),
            Self::Silent => {}
        }
    }

    /// Something to be read now.
    pub fn note(&self, text: &str) {
        match self {
            Self::Bar(bar) => bar.suspend(|| eprintln!("{text}")),
            Self::Lines => eprintln!("{text}"),
            Self::Silent => {}
        }
    }

    /// The run is over.
    pub fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// A time as people read it; `-` where it is not told.
#[must_use]
pub fn time(ns: Option<u64>) -> String {
    ns.map_or("-".to_owned(), |ns| format!("{:.3?}", Duration::from_nanos(ns)))
}

fn line(second: &Second) -> String {
    let rate = second.requests as f64 / second.length_s;
    let hits = second.hit_share().map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0));
    let mut line = format!(
        "{rate:9.0} requests/s  p50 {}  p99 {}  max {}  hits {hits}  errors {}",
        time(second.p50_ns),
        time(second.p99_ns),
        time(Some(second.max_ns)),
        second.errors
    );
    if let (Some(cpu_ns), true) = (second.server_cpu_ns, second.requests > 0) {
        line += &format!("  server {:.2} µs/request", cpu_ns as f64 / 1000.0 / second.requests as f64);
    }
    if second.is_warmup {
        line += "  (warm-up)";
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_rate_times_hits_and_cost_and_what_is_not_known_is_a_dash() {
        let mut second = Second {
            length_s: 0.5,
            requests: 1000,
            misses: 250,
            p50_ns: Some(81_234),
            max_ns: 2_000_000,
            ..Second::default()
        };
        second.hits_by_tier.insert("memory".to_owned(), 750);
        second.server_cpu_ns = Some(3_000_000);
        assert_eq!(
            line(&second),
            "     2000 requests/s  p50 81.234µs  p99 -  max 2.000ms  hits 75.0 %  errors 0  server 3.00 µs/request"
        );
        let empty = Second { length_s: 1.0, is_warmup: true, ..Second::default() };
        assert!(line(&empty).contains("hits -") && line(&empty).ends_with("(warm-up)"));
    }
}
