//! Draws costs over sizes for a terminal. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use super::judge::Costs;
use super::measure::Way;

/// Lines of the drawing.
const HEIGHT: usize = 14;

/// Columns before the drawing: a cost and its axis.
const MARGIN: usize = 12;

/// A sign and a colour (SGR) for each way.
fn sign(way: Way) -> (char, u8) {
    match way {
        Way::Copy => ('●', 36),
        Way::Pair => ('▲', 33),
        Way::Sendfile => ('■', 32),
        Way::Relay => ('○', 35),
        Way::Splice => ('◆', 34),
        Way::Send => ('△', 37),
        Way::ZeroCopy => ('★', 31),
    }
}

/// A size in words: `64 KiB`.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// Cost of a MiB in microseconds.
fn per_mib(cost: Duration, bytes: u64) -> f64 {
    cost.as_secs_f64() * 1e6 * (1 << 20) as f64 / bytes.max(1) as f64
}

/// The cost of a MiB by each way, both axes logarithmic; `width` is that of the terminal.
pub(super) fn plot(costs: &Costs, width: usize, colours: bool) -> String {
    let points: Vec<(usize, f64, Way)> = costs
        .of
        .iter()
        .flat_map(|(way, row)| {
            let row = row.iter().zip(&costs.sizes).enumerate();
            row.filter_map(|(column, (cost, size))| Some((column, per_mib((*cost)?, *size), *way)))
        })
        .filter(|(_, cost, _)| *cost > 0.0)
        .collect();
    let logs = points.iter().map(|(_, cost, _)| cost.ln());
    let (low, high) = logs.fold((f64::MAX, f64::MIN), |(low, high), log| {
        (low.min(log), high.max(log))
    });
    if points.is_empty() {
        return String::new();
    }
    let span = (high - low).max(0.01);
    let step = (width.saturating_sub(MARGIN) / costs.sizes.len().max(1)).clamp(2, 8);
    let mut grid = vec![vec![None; step * costs.sizes.len()]; HEIGHT];
    for (column, cost, way) in points {
        let line = ((high - cost.ln()) / span * (HEIGHT - 1) as f64).round() as usize;
        let row = &mut grid[line.min(HEIGHT - 1)];
        // Ways that cost the same stand side by side.
        let place = column * step;
        if let Some(free) = (place..place + step).find(|at| row[*at].is_none()) {
            row[free] = Some(way);
        }
    }
    let mut text = String::from("processor time of a MiB, by size\n");
    for (line, row) in grid.iter().enumerate() {
        let at = line as f64 / (HEIGHT - 1) as f64;
        let cost = (high - at * span).exp();
        let label = if line % 3 == 0 {
            format!("{cost:.0} µs")
        } else {
            String::new()
        };
        let _ = write!(text, "{label:>10} │");
        let mut drawn = String::new();
        for way in row {
            match way.map(sign) {
                None => drawn.push(' '),
                Some((sign, colour)) if colours => {
                    let _ = write!(drawn, "\x1b[{colour}m{sign}\x1b[0m");
                }
                Some((sign, _)) => drawn.push(sign),
            }
        }
        text.push_str(drawn.trim_end());
        text.push('\n');
    }
    let _ = writeln!(text, "{:>10} └{}", "", "─".repeat(step * costs.sizes.len()));
    let _ = write!(text, "{:>12}", "");
    for bytes in &costs.sizes {
        let label = match bytes {
            0..1_048_576 => format!("{}K", bytes >> 10),
            _ => format!("{}M", bytes >> 20),
        };
        let shown: String = label.chars().take(step - 1).collect();
        // What would be cut says something else.
        let shown = if shown == label { shown } else { String::new() };
        let _ = write!(text, "{shown:<step$}");
    }
    let mut text = text.trim_end().to_owned();
    text.push_str("\n            ");
    for (way, _) in &costs.of {
        let (sign, colour) = sign(*way);
        if colours {
            let _ = write!(text, "\x1b[{colour}m{sign}\x1b[0m {}  ", way.name());
        } else {
            let _ = write!(text, "{sign} {}  ", way.name());
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// A line for each size: the time of one send, in microseconds.
pub(super) fn table(costs: &Costs) -> String {
    let mut text = format!("{:>8}", "size");
    for (way, _) in &costs.of {
        let _ = write!(text, "{:>11}", way.name());
    }
    text.push_str("   (µs of processor time for one)\n");
    for (index, bytes) in costs.sizes.iter().enumerate() {
        let _ = write!(text, "{:>8}", size(*bytes));
        for (_, row) in &costs.of {
            match row.get(index).copied().flatten() {
                Some(cost) => {
                    let _ = write!(text, "{:>11.1}", cost.as_secs_f64() * 1e6);
                }
                None => {
                    let _ = write!(text, "{:>11}", "-");
                }
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs() -> Costs {
        let us = |us: u64| (us > 0).then(|| Duration::from_micros(us));
        Costs {
            sizes: vec![1 << 10, 64 << 10, 64 << 20],
            of: vec![
                (Way::Copy, [2, 20, 0].map(us).to_vec()),
                (Way::Sendfile, [4, 20, 9000].map(us).to_vec()),
            ],
            direct: Vec::new(),
        }
    }

    #[test]
    fn a_drawing_fits_and_has_colours_only_where_they_are_wanted() {
        for width in [0, 30, 80, 200] {
            let text = plot(&costs(), width, false);
            assert!(!text.contains('\x1b'));
            assert!(
                text.lines()
                    .all(|line| line.chars().count() <= width.max(50)),
                "{text}"
            );
            assert_eq!(
                text.matches('●').count(),
                2 + 1,
                "and in the legend: {text}"
            );
            assert_eq!(text.matches('■').count(), 3 + 1, "{text}");
        }
        assert!(plot(&costs(), 80, true).contains("\x1b[36m●\x1b[0m"));
        assert_eq!(plot(&Costs::default(), 80, false), "");
    }

    #[test]
    fn the_table_has_what_was_measured() {
        let text = table(&costs());
        insta::assert_snapshot!(text, @r"
            size       copy   sendfile   (µs of processor time for one)
           1 KiB        2.0        4.0
          64 KiB       20.0       20.0
          64 MiB          -     9000.0
        ");
    }
}
