//! A picture with two axes, as SVG that takes its colours from the page.
//!
//! ```text
//!   y title
//!   tick ┤░░░     ╭──◆──   a line: colour, dash and marker by the number of its style
//!   tick ┤░░░─■───╯        ░ a shade: the warm-up          ┄┄ a limit: what was promised
//!        └──┬──────┬──
//!         tick   tick
//!                x title
//! ```
//! plotters writes colours, and a page that is read by day and by night wants classes. So a picture is drawn with inks
//! that no eye could tell from black, and each becomes the class whose number it carries.

use std::{fmt::Write as _, io};

use plotters::{
    chart::ChartContext,
    coord::cartesian::Cartesian2d,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::axis::Axis;

/// The picture's size in points of the page when it is as wide as drawn. On a telephone it is a little smaller, on a
/// desk two stand side by side and are larger.
pub(super) const WIDTH: u32 = 440;
pub(super) const HEIGHT: u32 = 306;

/// plotters places things on whole pixels; with four of them for a point nobody sees the rounding.
pub(super) const PIXELS: u32 = 4;

/// Height of the letters; `style.css` has the same.
const TEXT: u32 = 13;
const LETTER_WIDTH: f64 = 7.2;

/// Room around the axes, in points.
const TOP: u32 = 36;
const RIGHT: u32 = 26;
const BOTTOM: u32 = 54;

/// plotters puts labels twice as far away. So the first below and the first beside do not meet in the corner.
const TICK_BELOW: u32 = 6;

/// How far a marker reaches from its point.
const MARKER: f64 = 4.6;

/// Markers on a line with many points.
const MARKERS: usize = 6;

/// Ways to draw a line that can be told apart without colours.
pub(super) const STYLES: usize = 6;

/// A picture.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
    /// From and to which `x` something else holds.
    pub(super) shade: Option<(f64, f64)>,
    /// Lines across at these `y`.
    pub(super) limits: Vec<f64>,
}

/// What belongs together in a picture. Several lines may have one name and style.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    /// Below [`STYLES`].
    pub(super) style: usize,
    pub(super) points: Vec<Point>,
}

/// A point of a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) x: f64,
    /// `None` is a gap: nothing is known there.
    pub(super) y: Option<f64>,
    pub(super) mark: Mark,
}

/// What is drawn at a point besides the line through it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mark {
    No,
    Filled,
    /// For what is not to be believed.
    Hollow,
}

impl Line {
    /// A line with a few markers, and one at each point that stands alone.
    pub(super) fn curve(name: &str, style: usize, values: impl IntoIterator<Item = (f64, Option<f64>)>) -> Self {
        let mut points: Vec<Point> = values.into_iter().map(|(x, y)| Point { x, y, mark: Mark::No }).collect();
        // Each style begins elsewhere, so that lines that lie on each other are seen to be several.
        let every = points.len().div_ceil(MARKERS).max(1);
        let first = every * style / STYLES;
        for index in 0..points.len() {
            let is_known = |index: Option<usize>| index.and_then(|at| points.get(at)).is_some_and(|p| p.y.is_some());
            let stands_alone = !is_known(index.checked_sub(1)) && !is_known(Some(index + 1));
            if index % every == first % every || stands_alone {
                points[index].mark = Mark::Filled;
            }
        }
        Self { name: name.to_owned(), style, points }
    }

    fn has_markers(&self) -> bool {
        self.points.iter().any(|point| point.mark != Mark::No)
    }

    fn is_empty(&self) -> bool {
        self.points.iter().all(|point| point.y.is_none())
    }
}

impl Chart {
    /// One of each kind of line that is there.
    pub(super) fn legend(&self) -> Vec<&Line> {
        let mut legend: Vec<&Line> = Vec::new();
        for line in self.lines.iter().filter(|line| !line.is_empty()) {
            if !legend.iter().any(|known| (&known.name, known.style) == (&line.name, line.style)) {
                legend.push(line);
            }
        }
        legend
    }

    /// What the `viewBox` of [`Chart::drawing`] is.
    pub(super) fn view_box() -> String {
        format!("0 0 {} {}", WIDTH * PIXELS, HEIGHT * PIXELS)
    }

    /// The inside of the SVG element: axes, lines, markers and their labels.
    pub(super) fn drawing(&self) -> String {
        let mut svg = String::new();
        self.draw(&mut svg).expect("a string takes whatever is written to it");
        let inside = svg.split_once('>').and_then(|(_, rest)| rest.rsplit_once("</svg>"));
        paint(inside.expect("plotters writes one svg element").0)
    }

    fn draw(&self, svg: &mut String) -> Result<(), DrawingAreaErrorKind<io::Error>> {
        let root = SVGBackend::with_string(svg, (WIDTH * PIXELS, HEIGHT * PIXELS)).into_drawing_area();
        let left = (self.y.label_letters_max() as f64 * LETTER_WIDTH) as u32 + 14;
        root.draw(&Text::new(self.y.title.clone(), pixels(4, 8), text(Pos::new(HPos::Left, VPos::Top))))?;
        let below = pixels(WIDTH - RIGHT, HEIGHT - 6);
        root.draw(&Text::new(self.x.title.clone(), below, text(Pos::new(HPos::Right, VPos::Bottom))))?;

        let mut chart = ChartBuilder::on(&root)
            .margin_top(TOP * PIXELS)
            .margin_right(RIGHT * PIXELS)
            .set_label_area_size(LabelAreaPosition::Left, left * PIXELS)
            .set_label_area_size(LabelAreaPosition::Bottom, BOTTOM * PIXELS)
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        if let Some((from, to)) = self.shade {
            let corners = [(from, self.y.low()), (to, self.y.high())];
            chart.draw_series([Rectangle::new(corners, Ink::Shade.fill())])?;
        }
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(Ink::Grid.stroke())
            .axis_style(Ink::Axis.stroke())
            .label_style(text(Pos::new(HPos::Left, VPos::Top)))
            .set_all_tick_mark_size(4 * PIXELS)
            .set_tick_mark_size(LabelAreaPosition::Bottom, TICK_BELOW * PIXELS)
            .draw()?;
        for limit in &self.limits {
            let ends = vec![(self.x.low(), *limit), (self.x.high(), *limit)];
            chart.draw_series([PathElement::new(ends, Ink::Limit.stroke())])?;
        }
        // Markers last: a line over a marker hides its shape.
        for line in &self.lines {
            for part in line.points.split(|point| point.y.is_none()).filter(|part| part.len() > 1) {
                let path: Vec<_> = part.iter().filter_map(|point| Some((point.x, point.y?))).collect();
                chart.draw_series([PathElement::new(path, Ink::Line(line.style).stroke())])?;
            }
        }
        for line in &self.lines {
            draw_markers(&mut chart, line)?;
        }
        root.present()
    }
}

fn draw_markers(
    chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<Axis, Axis>>,
    line: &Line,
) -> Result<(), DrawingAreaErrorKind<io::Error>> {
    let shape: Vec<(i32, i32)> = marker(line.style)
        .into_iter()
        .map(|(x, y)| ((x * f64::from(PIXELS)).round() as i32, (y * f64::from(PIXELS)).round() as i32))
        .collect();
    let outline: Vec<_> = shape.iter().chain(shape.first()).copied().collect();
    for point in &line.points {
        let Some(y) = point.y else { continue };
        let at = EmptyElement::at((point.x, y));
        match point.mark {
            Mark::No => {}
            Mark::Filled => {
                chart.draw_series([at + Polygon::new(shape.clone(), Ink::Marker(line.style).fill())])?;
            }
            Mark::Hollow => {
                let inside = Polygon::new(shape.clone(), Ink::Paper.fill());
                chart
                    .draw_series([at + inside + PathElement::new(outline.clone(), Ink::Hollow(line.style).stroke())])?;
            }
        }
    }
    Ok(())
}

/// The corners of a marker around its point, in points of the page: circle, square, triangle, diamond, triangle
/// upside down, cross.
fn marker(style: usize) -> Vec<(f64, f64)> {
    let r = MARKER;
    match style % STYLES {
        0 => (0..16)
            .map(|step| f64::from(step) * std::f64::consts::TAU / 16.0)
            .map(|angle| (r * angle.cos(), r * angle.sin()))
            .collect(),
        1 => vec![(-0.85 * r, -0.85 * r), (0.85 * r, -0.85 * r), (0.85 * r, 0.85 * r), (-0.85 * r, 0.85 * r)],
        2 => vec![(0.0, -1.2 * r), (1.1 * r, 0.8 * r), (-1.1 * r, 0.8 * r)],
        3 => vec![(0.0, -1.3 * r), (1.3 * r, 0.0), (0.0, 1.3 * r), (-1.3 * r, 0.0)],
        4 => vec![(0.0, 1.2 * r), (1.1 * r, -0.8 * r), (-1.1 * r, -0.8 * r)],
        _ => {
            let (arm, half) = (1.2 * r, 0.42 * r);
            let quarter = [(half, -half), (arm, -half), (arm, half)];
            let turn = |turns: u32, (x, y): (f64, f64)| (0..turns).fold((x, y), |(x, y), _| (-y, x));
            (0..4).flat_map(|turns| quarter.map(|corner| turn(turns, corner))).collect()
        }
    }
}

/// A piece of a line with its marker, for the legend; the inside of an SVG element of [`KEY_VIEW_BOX`].
pub(super) fn key(line: &Line) -> String {
    let mut corners = String::new();
    let shape = if line.has_markers() { marker(line.style) } else { Vec::new() };
    for (x, y) in shape {
        write!(corners, "{:.1},{:.1} ", x + 20.0, y + 8.0).expect("a string takes whatever is written to it");
    }
    let (line, marker) = (Ink::Line(line.style).class(), Ink::Marker(line.style).class());
    format!(r#"<path class="{line}" d="M0 8H40"/><polygon class="{marker}" points="{corners}"/>"#)
}

/// The same of a limit.
pub(super) const LIMIT_KEY: &str = r#"<path class="limit" d="M0 8H40"/>"#;

/// The `viewBox` of [`key`].
pub(super) const KEY_VIEW_BOX: &str = "0 0 40 16";

/// What something is drawn with.
#[derive(Clone, Copy)]
enum Ink {
    Text,
    Grid,
    Axis,
    Shade,
    Limit,
    Paper,
    Line(usize),
    Marker(usize),
    Hollow(usize),
}

impl Ink {
    const PLAIN: [Self; 6] = [Self::Text, Self::Grid, Self::Axis, Self::Shade, Self::Limit, Self::Paper];

    /// Its number, at least 1: black is what plotters takes where nothing is said.
    fn code(self) -> u8 {
        let code = match self {
            Self::Text => 1,
            Self::Grid => 2,
            Self::Axis => 3,
            Self::Shade => 4,
            Self::Limit => 5,
            Self::Paper => 6,
            Self::Line(style) => 0x10 + style % STYLES,
            Self::Marker(style) => 0x20 + style % STYLES,
            Self::Hollow(style) => 0x30 + style % STYLES,
        };
        code as u8
    }

    /// What `style.css` calls it.
    fn class(self) -> String {
        match self {
            Self::Text => "ink".to_owned(),
            Self::Grid => "grid".to_owned(),
            Self::Axis => "axis".to_owned(),
            Self::Shade => "shade".to_owned(),
            Self::Limit => "limit".to_owned(),
            Self::Paper => "paper".to_owned(),
            Self::Line(style) => format!("line s{}", style % STYLES),
            Self::Marker(style) => format!("mark s{}", style % STYLES),
            Self::Hollow(style) => format!("hollow s{}", style % STYLES),
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        let styled = (0..STYLES).flat_map(|style| [Self::Line(style), Self::Marker(style), Self::Hollow(style)]);
        Self::PLAIN.into_iter().chain(styled)
    }

    fn color(self) -> RGBColor {
        RGBColor(0, 0, self.code())
    }

    fn stroke(self) -> ShapeStyle {
        self.color().stroke_width(PIXELS)
    }

    fn fill(self) -> ShapeStyle {
        self.color().filled()
    }
}

/// Puts a class in the place of every ink.
fn paint(svg: &str) -> String {
    let mut painted = svg.replace(" opacity=\"1\"", "");
    for ink in Ink::all() {
        let class = format!("class=\"{}\"", ink.class());
        for attribute in ["fill", "stroke"] {
            painted = painted.replace(&format!("{attribute}=\"#0000{:02X}\"", ink.code()), &class);
        }
    }
    painted
}

fn text<'a>(pos: Pos) -> TextStyle<'a> {
    // plotters divides what it is told by 1.24.
    let font = ("sans-serif", f64::from(TEXT * PIXELS) * 1.24).into_font();
    TextStyle { font, color: Ink::Text.color().to_backend_color(), pos }
}

fn pixels(x: u32, y: u32) -> (i32, i32) {
    ((x * PIXELS) as i32, (y * PIXELS) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(lines: Vec<Line>) -> Chart {
        let axis = |title| Axis::linear(title, 10.0, |value| value.to_string());
        Chart { x: axis("x"), y: axis("y <b>"), lines, shade: Some((0.0, 1.0)), limits: vec![5.0] }
    }

    fn line(style: usize, ys: &[Option<f64>]) -> Line {
        Line::curve("", style, ys.iter().enumerate().map(|(x, y)| (x as f64, *y)))
    }

    #[test]
    fn no_colour_is_left_in_a_picture() {
        let mut lines: Vec<Line> = (0..STYLES).map(|style| line(style, &[Some(1.0), Some(2.0)])).collect();
        lines[3].points[0].mark = Mark::Hollow;
        let drawing = chart(lines).drawing();
        assert!(!drawing.contains('#'), "{drawing}");
        for class in ["ink", "grid", "axis", "shade", "limit", "paper", "line s5", "mark s0", "hollow s3"] {
            assert!(drawing.contains(&format!("class=\"{class}\"")), "{class}");
        }
    }

    #[test]
    fn letters_that_mean_something_to_a_browser_are_escaped() {
        assert!(chart(vec![line(0, &[Some(1.0)])]).drawing().contains("y &lt;b&gt;"));
    }

    #[test]
    fn a_gap_parts_a_line_and_a_point_between_gaps_is_seen() {
        let with_gap = line(0, &[Some(1.0), Some(2.0), None, Some(3.0), None, Some(4.0), Some(5.0)]);
        assert_eq!(with_gap.points[3].mark, Mark::Filled);
        let drawing = chart(vec![with_gap]).drawing();
        assert_eq!(drawing.matches("class=\"line s0\"").count(), 2);
    }

    #[test]
    fn long_lines_have_few_markers_and_none_is_without() {
        for style in 0..STYLES {
            for points in [1, 2, 7, 1_000] {
                let marked = line(style, &vec![Some(1.0); points]);
                let marked = marked.points.iter().filter(|point| point.mark == Mark::Filled).count();
                assert!((1..=MARKERS).contains(&marked), "style {style}: {marked} on {points}");
            }
        }
    }

    #[test]
    fn a_legend_names_each_kind_of_line_once_and_none_that_is_not_there() {
        let mut lines = vec![line(0, &[Some(1.0)]), line(0, &[Some(2.0)]), line(1, &[None])];
        lines[2].name = "absent".to_owned();
        let chart = chart(lines);
        let legend: Vec<(&str, usize)> = chart.legend().iter().map(|line| (&*line.name, line.style)).collect();
        assert_eq!(legend, [("", 0)]);
    }
}
