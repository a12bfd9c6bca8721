//! Charts of bars, as plain SVG.
//!
//! It knows numbers, names and where they go; what they mean is the page's.

use std::fmt::Write;

/// A chart of groups of bars, from the left.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What is shown.
    pub title: String,
    /// In what unit, and whether more is better.
    pub subtitle: String,
    /// Where values stand.
    pub scale: Scale,
    /// What the colours mean; a bar names one by its place.
    pub series: Vec<Series>,
    /// From above.
    pub groups: Vec<Group>,
    /// A line at this value, with a name.
    pub reference: Option<(f64, String)>,
}

/// Where values stand between the left and the right end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// Lengths are as values are.
    Linear,
    /// Each power of ten is as wide as the next, from this value (above 0) on; smaller ones have no length.
    Logarithmic(f64),
}

/// Bars of one colour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// Whose they are.
    pub name: String,
    /// As `#rrggbb`.
    pub colour: &'static str,
}

/// Bars under one name.
#[derive(Clone, Debug)]
pub struct Group {
    /// The name.
    pub label: String,
    /// From above.
    pub bars: Vec<Bar>,
}

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// The place of its name.
    pub series: usize,
    /// Its length, not negative.
    pub value: f64,
    /// What stands behind it.
    pub text: String,
}

/// In SVG's pixels.
const WIDTH: f64 = 900.0;
const LABELS: f64 = 320.0;
/// What stands behind the longest bar.
const VALUES: f64 = 90.0;
const BAR: f64 = 13.0;
const BAR_STEP: f64 = 15.0;
const GROUP_GAP: f64 = 14.0;
const LEGEND_STEP: f64 = 18.0;
const LEGENDS_IN_LINE: usize = 4;

impl Chart {
    /// The picture.
    pub fn svg(&self) -> String {
        let bars: usize = self.groups.iter().map(|group| group.bars.len()).sum();
        let legend = self.series.len().div_ceil(LEGENDS_IN_LINE) as f64 * LEGEND_STEP;
        let top = 66.0 + legend;
        let gaps = self.groups.len() as f64 * GROUP_GAP;
        let bottom = top + bars as f64 * BAR_STEP + gaps;
        let height = bottom + 30.0;
        // Writing to a string can't fail; so for all below.
        let mut svg = String::new();
        let _ = write!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"12\" y=\"24\" font-size=\"16\" font-weight=\"bold\">{}</text>\n\
             <text x=\"12\" y=\"43\" fill=\"#555555\">{}</text>\n",
            escaped(&self.title),
            escaped(&self.subtitle),
        );
        self.legend(&mut svg, 62.0);
        let longest = self.longest();
        let x = |value: f64| LABELS + (WIDTH - LABELS - VALUES) * self.scale.share(value, longest);
        for tick in self.scale.ticks(longest) {
            let at = x(tick);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\" stroke=\"#dddddd\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" fill=\"#555555\" text-anchor=\"middle\">{tick}</text>",
                bottom + 16.0,
            );
        }
        let mut y = top + GROUP_GAP / 2.0;
        for group in &self.groups {
            let middle = y + group.bars.len() as f64 * BAR_STEP / 2.0 + 3.0;
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>",
                LABELS - 8.0,
                escaped(&group.label),
            );
            for bar in &group.bars {
                let end = x(bar.value);
                let _ = writeln!(
                    svg,
                    "<rect x=\"{LABELS}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\"/>\
                     <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\">{}</text>",
                    end - LABELS,
                    self.series[bar.series].colour,
                    end + 4.0,
                    y + BAR - 2.5,
                    escaped(&bar.text),
                );
                y += BAR_STEP;
            }
            y += GROUP_GAP;
        }
        if let Some((value, name)) = &self.reference {
            let at = x(*value);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\" stroke=\"#000000\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\">{}</text>",
                at + 4.0,
                top - 1.0,
                escaped(name),
            );
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn legend(&self, svg: &mut String, top: f64) {
        let step = (WIDTH - 24.0) / LEGENDS_IN_LINE as f64;
        for (place, series) in self.series.iter().enumerate() {
            let x = 12.0 + step * (place % LEGENDS_IN_LINE) as f64;
            let y = top + LEGEND_STEP * (place / LEGENDS_IN_LINE) as f64;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"12\" height=\"12\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                series.colour,
                x + 17.0,
                y + 10.5,
                escaped(&series.name),
            );
        }
    }

    /// The value at the right end, above 0.
    fn longest(&self) -> f64 {
        let bars = self.groups.iter().flat_map(|group| &group.bars);
        let reference = self.reference.as_ref().map(|(value, _)| *value);
        bars.map(|bar| bar.value)
            .chain(reference)
            .fold(f64::MIN_POSITIVE, f64::max)
    }
}

impl Scale {
    /// Where a value stands (0 to 1) when `longest` is at the right end.
    fn share(self, value: f64, longest: f64) -> f64 {
        match self {
            Scale::Linear => value / longest,
            Scale::Logarithmic(from) => {
                let decades = (longest.max(from * 10.0) / from).log10();
                ((value.max(from) / from).log10() / decades).min(1.0)
            }
        }
    }

    /// Round values up to `longest`.
    fn ticks(self, longest: f64) -> Vec<f64> {
        match self {
            Scale::Linear => linear_ticks(longest),
            Scale::Logarithmic(from) => {
                let longest = longest.max(from * 10.0);
                std::iter::successors(Some(from), |tick| Some(tick * 10.0))
                    .take_while(|&tick| tick <= longest)
                    .collect()
            }
        }
    }
}

/// From 0, about five of them.
fn linear_ticks(longest: f64) -> Vec<f64> {
    let power = 10f64.powf((longest / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| longest / step <= 6.0)
        .unwrap_or(longest);
    let count = (longest / step).floor() as usize;
    // A tenth that isn't one in binary would be written with all its digits.
    let round = |value: f64| (value * 1e6).round() / 1e6;
    (0..=count).map(|tick| round(tick as f64 * step)).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        for (longest, expected) in [
            (1.0, &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0][..]),
            (2.3, &[0.0, 0.5, 1.0, 1.5, 2.0]),
            (19_000.0, &[0.0, 5000.0, 10_000.0, 15_000.0]),
        ] {
            assert_eq!(Scale::Linear.ticks(longest), expected, "{longest}");
        }
        let decades = Scale::Logarithmic(10.0);
        assert_eq!(decades.ticks(5000.0), [10.0, 100.0, 1000.0]);
        assert_eq!(decades.share(100.0, 1000.0), 0.5);
        assert_eq!(decades.share(1.0, 1000.0), 0.0);
    }

    #[test]
    fn bars_are_as_long_as_their_values_and_names_are_text() {
        let bar = |series, value| Bar {
            series,
            value,
            text: format!("{value}×"),
        };
        let chart = Chart {
            title: "a < b & c".to_owned(),
            subtitle: String::new(),
            scale: Scale::Linear,
            series: ["one", "two"]
                .map(|name| Series {
                    name: name.to_owned(),
                    colour: "#123456",
                })
                .to_vec(),
            groups: vec![Group {
                label: "group".to_owned(),
                bars: vec![bar(0, 2.0), bar(1, 1.0)],
            }],
            reference: Some((1.0, "nginx".to_owned())),
        };
        let svg = chart.svg();
        assert!(svg.contains("a &lt; b &amp; c") && svg.ends_with("</svg>\n"));
        // The room of the bars is 900 - 320 - 90 wide.
        assert!(svg.contains("width=\"490.0\"") && svg.contains("width=\"245.0\""));
        assert!(svg.contains(">2×<") && svg.contains(">nginx<"));
    }
}
