//! The table for people.

use std::fmt::Write;

use serde::Serialize;

use crate::verdict::{Bound, Outcome, Ratio, Stalls, Summary};
use crate::workload::{Cores, Run, SCALING_MAX, STALLS_MAX, Unit, Variants, Workload};

/// What was measured, on what, and how.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Header {
    /// The kernel's release.
    pub kernel: String,
    /// The processor's model.
    pub cpu_model: String,
    /// TCP's congestion control here, which the servers send with.
    pub congestion: String,
    /// Cores that this process may use.
    pub cpus: usize,
    /// The servers' core.
    pub server_cpu: usize,
    /// The generator's.
    pub client_cpu: usize,
    /// Times that each peer was measured, at most.
    pub rounds: usize,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// Seconds before each.
    pub warm_up: f64,
    /// Where the files lay, and on what.
    pub files: String,
    /// What for, name, version and settings of each peer.
    pub peers: Vec<[String; 4]>,
    /// Peers that are not there, and why.
    pub absent: Vec<String>,
}

impl Header {
    /// The header's lines.
    pub fn text(&self) -> String {
        let mut text = format!(
            "Linux {}, {} ({} CPUs), tcp {}; server on CPU {}, generator and backend on CPU {}\n\
             {} rounds of {} s after {} s of warm-up, peers interleaved; medians (± half the range)\n\
             files in {}\n",
            self.kernel,
            self.cpu_model,
            self.cpus,
            self.congestion,
            self.server_cpu,
            self.client_cpu,
            self.rounds,
            self.seconds,
            self.warm_up,
            self.files,
        );
        for [group, name, version, settings] in &self.peers {
            // Writing to a string can't fail.
            let _ = writeln!(text, "  {group:<6} {name:<18} {version}: {settings}");
        }
        for absent in &self.absent {
            let _ = writeln!(text, "  skipped: {absent}");
        }
        text.push_str(
            "× is against nginx's best configuration of the workload: its highest throughput, its least \
             processor time.\n≥: the generator's core was the limit for this peer alone; ≤: for the other alone; \
             ~: for both. Then processor time is what counts.\n",
        );
        text
    }
}

/// What was found under one workload, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    title: String,
    /// What is to be reached; empty where nothing is.
    targets: String,
    head: Vec<String>,
    /// A line for each peer that was measured, as long as the head.
    rows: Vec<Vec<String>>,
    /// What must be known about the figures.
    notes: Vec<String>,
}

/// One column: its head, and its cell for a peer.
struct Column<'a> {
    head: String,
    cell: Box<dyn Fn(&Summary) -> String + 'a>,
}

impl Grid {
    /// The figures of one workload.
    pub fn new(workload: &Workload, summaries: &[Summary]) -> Self {
        let columns = match workload.run {
            Run::Idle { .. } => idle_columns(),
            Run::Load { unit, .. } => load_columns(workload, unit, summaries),
        };
        let measured = |one: &&Summary| one.throughput.is_some() || one.memory.is_some();
        Self {
            title: format!("{} [{}]", workload.title, workload.name),
            targets: targets(workload),
            head: columns.iter().map(|column| column.head.clone()).collect(),
            rows: summaries
                .iter()
                .filter(measured)
                .map(|one| columns.iter().map(|column| (column.cell)(one)).collect())
                .collect(),
            notes: notes(workload, summaries),
        }
    }

    /// For a terminal: names to the left, figures to the right.
    pub fn text(&self) -> String {
        let mut text = format!("\n{}", self.title);
        if !self.targets.is_empty() {
            let _ = write!(text, ": {}", self.targets);
        }
        text.push('\n');
        let lines = || std::iter::once(&self.head).chain(&self.rows);
        let width = |place: usize| lines().map(|line| line[place].chars().count()).max();
        let widths: Vec<usize> = (0..self.head.len()).filter_map(width).collect();
        for line in lines() {
            let mut cells = line.iter().zip(&widths);
            if let Some((name, width)) = cells.next() {
                let _ = write!(text, "  {name:<width$}");
            }
            for (cell, width) in cells {
                let _ = write!(text, "  {cell:>width$}");
            }
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "  ! {}", note.replace('\n', "\n    "));
        }
        text
    }

    /// For a page.
    pub fn markdown(&self) -> String {
        let mut text = format!("\n### {}\n\n", self.title);
        if !self.targets.is_empty() {
            let _ = writeln!(text, "To reach: {}.\n", self.targets);
        }
        let alignment = std::iter::once(":--".to_owned())
            .chain(self.head.iter().skip(1).map(|_| "--:".to_owned()));
        let lines = [self.head.clone(), alignment.collect()];
        for line in lines.iter().chain(&self.rows) {
            let _ = writeln!(text, "| {} |", line.join(" | "));
        }
        for note in &self.notes {
            let first = note.lines().next().unwrap_or_default();
            let _ = writeln!(text, "\n**Note:** {first}");
        }
        text
    }
}

/// What makes figures doubtful, and why one is missing.
fn notes(workload: &Workload, summaries: &[Summary]) -> Vec<String> {
    let mut notes = Vec::new();
    for summary in summaries.iter().filter(|summary| !summary.clean()) {
        let counts: Vec<String> = summary
            .errors
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        let mut note = format!(
            "{}: ratio refused, {}",
            summary.peer,
            summary.first_error.as_deref().unwrap_or("errors"),
        );
        if !counts.is_empty() {
            let _ = write!(note, " ({})", counts.join(", "));
        }
        notes.push(note);
    }
    for summary in summaries {
        if let Some(why) = &summary.lacks {
            notes.push(format!("{}: n/a, {why}", summary.peer));
        }
    }
    let most = summaries.iter().filter_map(|one| one.memory);
    if let Some(opened) = most.map(|memory| memory.connections + 1).max()
        && opened < workload.connections
    {
        notes.push(format!(
            "only {opened} connections: the limit of descriptors (`ulimit -Hn`) allows no more"
        ));
    }
    let disturbed = summaries.iter().filter(|one| one.disturbed());
    if let Some(worst) = disturbed.map(|one| one.foreign).reduce(f64::max) {
        notes.push(format!(
            "something else used {:.0} % of a core meanwhile: measure again on an idle machine",
            worst * 100.0,
        ));
    }
    notes
}

fn targets(workload: &Workload) -> String {
    let target = match workload.run {
        Run::Idle { bytes_max, .. } => return format!("at most {bytes_max} bytes each"),
        Run::Load { target, .. } => target,
    };
    let times = |what: &str, target: Option<f64>| target.map(|times| format!("{what} {times} ×"));
    let mut parts: Vec<String> = [
        times("throughput", target.throughput),
        times("processor", target.cpu),
        target.latency.then(|| "p50 below nginx's".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Some(beside) = target.beside {
        let against = beside.family.name();
        parts.extend(times(&format!("{against}: throughput"), beside.throughput));
        parts.extend(times(&format!("{against}: processor"), beside.cpu));
    }
    if let Some(bystander) = workload.bystander {
        let quantile = bystander.quantile.name();
        let most = bystander.ratio_max;
        parts.push(format!(
            "the small client's {quantile} at most {most} × nginx's"
        ));
    }
    if workload.variants == Variants::Cold {
        parts.push(format!(
            "at most {STALLS_MAX} stalls of the core above 2 ms per GiB and none above 15 ms, none at all \
             past the page cache, those not counted in which others had the processor"
        ));
    }
    if workload.cores == Cores::All && workload.variants == Variants::Engines {
        parts.push(format!("processor at most {SCALING_MAX} × one core's"));
    }
    parts.join(", ")
}

impl<'a> Column<'a> {
    fn new(head: impl Into<String>, cell: impl Fn(&Summary) -> String + 'a) -> Self {
        Self {
            head: head.into(),
            cell: Box::new(cell),
        }
    }
}

fn load_columns<'a>(
    workload: &'a Workload,
    unit: Unit,
    summaries: &'a [Summary],
) -> Vec<Column<'a>> {
    let (rate, cost) = match unit {
        Unit::Requests => ("requests/s", "CPU µs/req"),
        Unit::Bytes => ("GiB/s", "CPU ms/GiB"),
    };
    let mut columns = vec![
        Column::new("", |one| one.peer.to_owned()),
        Column::new(rate, move |one| rate_text(unit, one.throughput)),
        Column::new("±", |one| format!("{:.1}%", one.spread * 100.0)),
        Column::new("×", |one| {
            marked(ratio_text(one.throughput_ratio), one, "throughput")
        }),
        Column::new(cost, move |one| cost_text(unit, one.cpu_per_unit)),
        Column::new("CPU ×", |one| {
            marked(times_text(one.cpu_ratio), one, "cpu")
        }),
        Column::new("p50 µs", |one| {
            let text = latency_text(one.latency_us.p50, 1);
            marked(text, one, "latency")
        }),
        Column::new("p99 µs", |one| latency_text(one.latency_us.p99, 0)),
        Column::new("p999 µs", |one| latency_text(one.latency_us.p999, 0)),
        Column::new("gen.", |one| format!("{:.0}%", one.client_busy * 100.0)),
    ];
    if summaries.iter().any(|summary| summary.wrk.is_some()) {
        columns.push(Column::new("wrk req/s", |one| {
            one.wrk
                .map_or("-".to_owned(), |figure| format!("{figure:.0}"))
        }));
    }
    if let Some(family) = summaries.iter().find_map(|one| one.beside) {
        let family = family.family;
        columns.push(Column::new(format!("× {family}"), |one| {
            let ratio = one.beside.and_then(|against| against.throughput);
            marked(ratio_text(ratio), one, "throughput beside")
        }));
        columns.push(Column::new(format!("CPU × {family}"), |one| {
            let ratio = one.beside.and_then(|against| against.cpu);
            marked(times_text(ratio), one, "cpu beside")
        }));
    }
    if let Some(bystander) = workload.bystander {
        let quantile = bystander.quantile;
        let head = format!("small client's {} µs", quantile.name());
        columns.push(Column::new(head, move |one| {
            let latency = one.bystander_us.unwrap_or_default();
            latency_text(quantile.of(&latency), 0)
        }));
        columns.push(Column::new("of nginx's", |one| {
            let text = one.bystander_ratio;
            let text = text.map_or("-".to_owned(), |ratio| format!("{ratio:.3}×"));
            marked(text, one, "bystander")
        }));
    }
    if summaries.iter().any(|summary| summary.stalls.is_some()) {
        columns.extend(stall_columns());
    }
    if summaries.iter().any(|summary| summary.scaling.is_some()) {
        columns.push(Column::new("CPU of one core's", |one| {
            marked(times_text(one.scaling), one, "scaling")
        }));
    }
    columns
}

/// How long a core of Beltway has let everybody wait. Nobody else tells it.
fn stall_columns<'a>() -> [Column<'a>; 3] {
    let of = |one: &Summary, text: fn(Stalls) -> String| one.stalls.map_or("-".to_owned(), text);
    [
        Column::new("stalls/GiB", move |one| {
            let text = of(one, |stalls| format!("{:.1}", stalls.per_gib));
            marked(text, one, "stalls")
        }),
        Column::new("waiting, work, preempted, ?", move |one| {
            of(one, |stalls| stalls.all.reasons())
        }),
        Column::new(">15 ms, longest", move |one| {
            of(one, |stalls| {
                let longest = stalls.all.longest_us as f64 / 1e3;
                format!("{}, {longest:.1} ms", stalls.all.long)
            })
        }),
    ]
}

fn idle_columns<'a>() -> Vec<Column<'a>> {
    let memory = |one: &Summary| one.memory.unwrap_or_default();
    vec![
        Column::new("", |one| one.peer.to_owned()),
        Column::new("bytes each", |one| {
            let each = one.memory_per_connection;
            let text = each.map_or("-".to_owned(), |each| format!("{each:.0}"));
            marked(text, one, "memory")
        }),
        Column::new("connections", move |one| {
            memory(one).connections.to_string()
        }),
        Column::new("before KiB", move |one| {
            (memory(one).before.allocated / 1024).to_string()
        }),
        Column::new("after KiB", move |one| {
            (memory(one).after.allocated / 1024).to_string()
        }),
    ]
}

fn rate_text(unit: Unit, throughput: Option<f64>) -> String {
    match (throughput, unit) {
        (None, _) => "-".to_owned(),
        (Some(rate), Unit::Requests) => format!("{rate:.0}"),
        (Some(rate), Unit::Bytes) => format!("{:.2}", rate / GIB),
    }
}

fn cost_text(unit: Unit, seconds: Option<f64>) -> String {
    let factor = match unit {
        Unit::Requests => 1e6,
        Unit::Bytes => 1e3 * GIB,
    };
    seconds.map_or("-".to_owned(), |seconds| format!("{:.2}", seconds * factor))
}

/// Zero is that of a load of which no response was whole.
fn latency_text(microseconds: f64, decimals: usize) -> String {
    match microseconds > 0.0 {
        true => format!("{microseconds:.decimals$}"),
        false => "-".to_owned(),
    }
}

/// A figure, and its outcome where it was to reach something.
fn marked(text: String, summary: &Summary, figure: &str) -> String {
    match mark(summary, figure) {
        "" => text,
        mark => format!("{text} {mark}"),
    }
}

/// The outcome of one figure; for nginx's best configuration, that it is the reference.
fn mark(summary: &Summary, figure: &str) -> &'static str {
    let verdict = summary
        .verdicts
        .iter()
        .find(|verdict| verdict.figure == figure);
    match verdict {
        Some(verdict) => verdict.outcome.word(),
        None if summary.reference && figure == "throughput" => "best",
        None => "",
    }
}

fn times_text(ratio: Option<f64>) -> String {
    ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}×"))
}

fn ratio_text(ratio: Option<Ratio>) -> String {
    let Some(Ratio { value, bound }) = ratio else {
        return "-".to_owned();
    };
    let sign = match bound {
        Bound::Exact => "",
        Bound::AtLeast => "≥",
        Bound::AtMost => "≤",
        Bound::Unknown => "~",
    };
    format!("{sign}{value:.2}×")
}

/// How many figures were reached, in one line; nothing where none was to be.
pub fn conclusion(all: &[Vec<Summary>]) -> String {
    let outcomes = || all.iter().flatten().flat_map(|summary| &summary.verdicts);
    let count = |outcome| {
        outcomes()
            .filter(|verdict| verdict.outcome == outcome)
            .count()
    };
    if outcomes().next().is_none() {
        return String::new();
    }
    format!(
        "\n{} pass, {} miss, {} unclear, {} refused\n",
        count(Outcome::Pass),
        count(Outcome::Miss),
        count(Outcome::Unclear),
        count(Outcome::Refused),
    )
}

const GIB: f64 = (1u64 << 30) as f64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Verdict;
    use crate::workload::select;

    #[test]
    fn a_grid_is_the_same_in_a_terminal_and_on_a_page() {
        let workload = select(&["proxy-1k-1".to_owned()]).expect("a known name")[0];
        let mut summary = Summary {
            peer: "beltway uring",
            throughput: Some(1234.5),
            ..Summary::default()
        };
        summary.latency_us.p50 = 20.25;
        summary.verdicts = vec![Verdict {
            figure: "latency",
            target: None,
            outcome: Outcome::Pass,
        }];
        let failed = Summary {
            peer: "nginx",
            first_error: Some("ended\nand said why".to_owned()),
            ..Summary::default()
        };
        let grid = Grid::new(&workload, &[summary, failed]);
        let (text, page) = (grid.text(), grid.markdown());
        for part in [
            "1234",
            "20.2 pass",
            "p50 below nginx's",
            "nginx: ratio refused, ended",
        ] {
            assert!(
                text.contains(part) && page.contains(part),
                "{part} in\n{text}{page}"
            );
        }
        assert!(text.contains("said why") && !page.contains("said why"));
        let columns: Vec<usize> = page
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.matches('|').count())
            .collect();
        // The head, the alignment and the one peer that was measured.
        assert_eq!(columns, [11; 3]);
    }
}
