//! A figure: a picture, what its lines are, what it says, and the numbers it was made of.
//!
//! ```text
//!   <figure>  title
//!             picture          role=img, with title and description for those who cannot see it
//!             legend
//!             caption          what one should see, and what is missing
//!             ▸ numbers        a table, closed
//! ```

use maud::{Markup, PreEscaped, html};

use super::chart::{self, Chart};

/// What is written where a percentile has too few samples beyond it.
pub(super) const WITHHELD: &str = "withheld";

/// What is written where something was not measured.
pub(super) const UNKNOWN: &str = "–";

/// A figure.
#[derive(Debug)]
pub(super) struct Figure {
    /// In the page's addresses: letters and dashes, another for each figure.
    pub(super) id: &'static str,
    pub(super) title: String,
    pub(super) chart: Chart,
    /// Sentences.
    pub(super) caption: String,
    pub(super) table: Table,
}

/// A figure that cannot be made.
#[derive(Debug)]
pub(super) struct Omission {
    pub(super) title: String,
    /// A sentence.
    pub(super) reason: String,
}

/// Numbers in rows. The first column tells the rows apart.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) caption: String,
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Figure {
    /// For the page.
    pub(super) fn html(&self) -> Markup {
        let (title_id, desc_id) = (format!("{}-title", self.id), format!("{}-desc", self.id));
        html! {
            figure id=(self.id) {
                h3 { (self.title) }
                svg.picture role="img" viewBox=(Chart::view_box()) aria-labelledby=(format!("{title_id} {desc_id}")) {
                    title id=(title_id) { (self.title) }
                    desc id=(desc_id) { (self.description()) }
                    g aria-hidden="true" { (PreEscaped(self.chart.drawing())) }
                }
                ul.legend {
                    @for line in self.chart.legend() { li { (key(&chart::key(line))) (line.name) } }
                    @if !self.chart.limits.is_empty() {
                        li { (key(chart::LIMIT_KEY)) "promised" }
                    }
                }
                figcaption { (self.caption) }
                details {
                    summary { "Numbers" }
                    (self.table.html())
                }
            }
        }
    }

    /// The picture in words: its axes and its lines.
    fn description(&self) -> String {
        let names: Vec<&str> = self.chart.legend().into_iter().map(|line| &*line.name).collect();
        let (x, y) = (&self.chart.x.title, &self.chart.y.title);
        format!("Across: {x}. Up: {y}. Lines: {}. The numbers are in the table below the picture.", names.join("; "))
    }
}

impl Omission {
    /// A figure of `title` that cannot be made, because of `reason`.
    pub(super) fn new(title: &str, reason: impl Into<String>) -> Self {
        Self { title: title.to_owned(), reason: reason.into() }
    }
}

impl Table {
    /// For the page.
    pub(super) fn html(&self) -> Markup {
        html! {
            // What scrolls must be reachable without a mouse.
            div.scroll tabindex="0" role="region" aria-label=(self.caption) {
                table {
                    caption { (self.caption) }
                    thead { tr { @for column in &self.columns { th scope="col" { (column) } } } }
                    tbody {
                        @for row in &self.rows {
                            tr {
                                @for (index, cell) in row.iter().enumerate() {
                                    @if index == 0 { th scope="row" { (cell) } } @else { td { (cell) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn key(drawing: &str) -> Markup {
    html! { svg.key viewBox=(chart::KEY_VIEW_BOX) aria-hidden="true" { (PreEscaped(drawing)) } }
}
