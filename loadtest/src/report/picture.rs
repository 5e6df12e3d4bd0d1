//! Pictures that stand alone: for documents that can show a file and nothing else.
//!
//! ```text
//!   chart ──▶ <svg>  style.css        the same colours by day and by night; inside an <img> the browser's own setting counts
//!                    paper, drawing   report/chart.rs
//!                    legend           a line below the drawing for each kind of line
//! ```

use maud::{Markup, PreEscaped, html};

use super::{
    CSS,
    axis::Axis,
    chart::{self, Chart, HEIGHT, Line, Mark, PIXELS, Point, WIDTH},
    distribution,
    figure::Figure,
    ratio,
    subject::Subject,
};
use crate::result::ResultFile;

/// Height of a line of the legend, in points.
const LEGEND_LINE: u32 = 20;

/// How much larger than on a page, where two stand side by side.
const SCALE: f64 = 1.6;

/// The axis of ratios goes at least this far to both sides of 1.
const SPREAD_MIN: f64 = 1.5;

/// And at most this far.
const SPREAD_MAX: f64 = 120.0;

/// A picture as a file of its own.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Letters and dashes, another for each picture of a file.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// Sentences: what one should see, and what is missing.
    pub caption: String,
    /// The file: SVG 1.1, UTF-8, without scripts and fetching nothing.
    pub svg: String,
}

/// A ratio with its spread, and where it should be.
#[derive(Clone, Debug)]
pub struct Spread {
    /// In the picture, at most some 25 letters.
    pub name: String,
    /// The least of its samples.
    pub least: f64,
    /// The median.
    pub median: f64,
    /// The greatest.
    pub most: f64,
    /// Where it should end.
    pub goal: Option<f64>,
}

/// Latency by percentile, and for a file of `ab` its ratios; without those that `file` has too few samples for.
#[must_use]
pub fn pictures(file: &ResultFile) -> Vec<Picture> {
    let subjects = Subject::all(std::slice::from_ref(file));
    let figures = ratio::figure(&subjects).into_iter().chain([distribution::response(&subjects)]);
    figures.flatten().map(of_figure).collect()
}

/// Ratios below one another, on an axis on which twice is as far from 1 as half.
///
/// `None` if there is none above 0 to show. O(`rows`).
#[must_use]
pub fn ratios(name: &str, title: &str, axis: &str, rows: &[Spread]) -> Option<Picture> {
    let shown: Vec<&Spread> = rows.iter().filter(|row| row.least > 0.0 && row.most.is_finite()).collect();
    let ends = shown.iter().flat_map(|row| [row.most, row.least.recip()].into_iter().chain(goal_ends(row)));
    let spread = ends.reduce(f64::max)?.clamp(SPREAD_MIN, SPREAD_MAX) * 1.1;
    let names: Vec<String> = shown.iter().map(|row| row.name.clone()).collect();
    let y = Axis::names("", &names);
    let line = |name: &str, style, points| Line { name: name.to_owned(), style, points };
    let mut lines = Vec::new();
    for (index, row) in shown.iter().enumerate() {
        let at = |x, mark| Point { x, y: Some(-(index as f64)), mark };
        let ends = [at(row.least, Mark::No), at(row.median, Mark::Filled), at(row.most, Mark::No)];
        lines.push(line("median, and least to most", 0, ends.to_vec()));
        if let Some(goal) = row.goal {
            lines.push(line("goal", 2, vec![at(goal, Mark::Filled)]));
        }
    }
    let upright = [y.low(), y.high()].map(|y| Point { x: 1.0, y: Some(y), mark: Mark::No });
    lines.push(line("1", 1, upright.to_vec()));
    let chart = Chart { x: Axis::ratios(axis, spread), y, lines, shade: None, limits: Vec::new() };
    Some(Picture { name: name.to_owned(), title: title.to_owned(), caption: String::new(), svg: svg(title, &chart) })
}

fn goal_ends(row: &Spread) -> impl Iterator<Item = f64> {
    row.goal.into_iter().flat_map(|goal| [goal, goal.recip()])
}

fn of_figure(figure: Figure) -> Picture {
    let svg = svg(&figure.title, &figure.chart);
    Picture { name: figure.id.to_owned(), title: figure.title, caption: figure.caption, svg }
}

fn svg(title: &str, chart: &Chart) -> String {
    let legend = chart.legend();
    let height = HEIGHT + LEGEND_LINE * legend.len() as u32 + LEGEND_LINE / 2;
    let (across, down) = (WIDTH * PIXELS, height * PIXELS);
    let shown = |points: u32| (f64::from(points) * SCALE).round();
    let page = html! {
        svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label=(title)
            viewBox=(format!("0 0 {across} {down}")) width=(shown(WIDTH)) height=(shown(height)) {
            title { (title) }
            style { (PreEscaped(CSS)) }
            rect class="paper" width=(across) height=(down) {}
            (PreEscaped(chart.drawing()))
            @for (index, line) in legend.into_iter().enumerate() { (legend_line(index as u32, line)) }
        }
    };
    page.into_string()
}

fn legend_line(index: u32, line: &Line) -> Markup {
    let top = (HEIGHT + LEGEND_LINE * index) * PIXELS;
    html! {
        svg x=(12 * PIXELS) y=(top) width=(40 * PIXELS) height=(16 * PIXELS) viewBox=(chart::KEY_VIEW_BOX) {
            (PreEscaped(chart::key(line)))
        }
        text class="ink" x=(60 * PIXELS) y=(top + 12 * PIXELS) { (line.name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, least: f64, most: f64) -> Spread {
        Spread { name: name.to_owned(), least, median: least.midpoint(most), most, goal: Some(0.3) }
    }

    #[test]
    fn a_picture_stands_alone_by_day_and_by_night() {
        let picture = ratios("r", "A < B", "node / tonic", &[row("8x32", 0.2, 0.4), row("64x1", 0.5, 9.0)]).unwrap();
        let svg = &picture.svg;
        assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"") && svg.ends_with("</svg>"));
        for part in ["prefers-color-scheme: dark", "A &lt; B", "8x32", "median, and least to most", ">goal<"] {
            assert!(svg.contains(part), "{part}");
        }
        assert!(!svg.contains("<script") && svg.matches("http").count() == 1, "nothing is fetched");
    }

    #[test]
    fn where_nothing_was_measured_there_is_no_picture() {
        assert!(ratios("r", "", "", &[]).is_none());
        assert!(ratios("r", "", "", &[row("no ratio", 0.0, 1.0)]).is_none());
    }
}
