//! A chart of what happens by the second, as SVG.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 36.0;

/// A row of bars.
pub(crate) struct BarSeries<'a> {
    pub(crate) name: &'a str,
    pub(crate) color: &'a str,
    pub(crate) values: Vec<u64>,
}

/// A level that is looked at.
pub(crate) struct ReferenceLine<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: f64,
}

/// The next of 1, 2, 5, 10, 20, … that is not less.
fn round_up_tick(least: f64) -> f64 {
    let power = 10_f64.powf(least.max(1.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|step| *step >= least).unwrap_or(least)
}

/// The bars of one second stand one before the other, the first at the back; `origin` is the second that is called 0.
pub(crate) fn render_chart(
    title: &str,
    origin: usize,
    rows: &[BarSeries<'_>],
    levels: &[ReferenceLine<'_>],
) -> String {
    let highest = rows.iter().flat_map(|row| &row.values).copied().max().unwrap_or(0) as f64;
    let most = levels.iter().map(|level| level.value).fold(highest, f64::max);
    let tick = round_up_tick(most / 4.0);
    let top = most * 1.1;
    let count = rows.iter().map(|row| row.values.len()).max().unwrap_or(0);
    let step = (WIDTH - LEFT - RIGHT) / count.max(1) as f64;
    let y = |value: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - value / top);
    let x = |second: usize| LEFT + step * second as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<title>{title}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for row in rows {
        let _ = writeln!(svg, "<g fill=\"{}\">", row.color);
        for (second, value) in row.values.iter().enumerate().filter(|(_, value)| **value > 0) {
            let (at, up) = (x(second), y(*value as f64));
            let _ = writeln!(
                svg,
                "<rect x=\"{at:.1}\" y=\"{up:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                step * 0.85,
                y(0.0) - up
            );
        }
        svg += "</g>\n";
    }
    for ReferenceLine { name, value } in levels {
        let at = y(*value);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#555\" stroke-dasharray=\"4 3\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#333\">{name}</text>",
            WIDTH - RIGHT,
            WIDTH - RIGHT - 2.0,
            at - 4.0
        );
    }
    let _ = writeln!(
        svg,
        "<path d=\"M{LEFT} {TOP}V{:.1}H{:.1}\" fill=\"none\" stroke=\"#333\"/>",
        y(0.0),
        WIDTH - RIGHT
    );
    for value in (0..).map(|count| tick * f64::from(count)).take_while(|value| *value <= top) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#333\">{value:.0}</text>",
            LEFT - 6.0,
            y(value) + 4.0
        );
    }
    for second in (origin % 10..=count).step_by(10) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#333\">{}</text>",
            x(second),
            y(0.0) + 16.0,
            second as i64 - origin as i64
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#333\">seconds</text>",
        WIDTH - RIGHT,
        HEIGHT - 6.0
    );
    let mut at = LEFT;
    for row in rows {
        let _ = writeln!(
            svg,
            "<rect x=\"{at:.1}\" y=\"12\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{:.1}\" y=\"21\" fill=\"#333\">{}</text>",
            row.color,
            at + 14.0,
            row.name
        );
        at += 30.0 + 6.2 * row.name.len() as f64;
    }
    svg + "</svg>\n"
}
