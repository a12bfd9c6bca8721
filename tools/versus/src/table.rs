//! The table for people.

use std::fmt::Write;

use serde::Serialize;

use crate::verdict::{Bound, Outcome, Ratio, Summary};
use crate::workload::{Cores, Quantile, Run, SCALING_MAX, Unit, Workload};

/// What was measured, on what, and how.
#[derive(Clone, Debug, Serialize)]
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

/// The lines of one workload.
pub fn workload_text(workload: &Workload, summaries: &[Summary]) -> String {
    let mut text = format!(
        "\n{} [{}]{}\n",
        workload.title,
        workload.name,
        targets(workload)
    );
    match workload.run {
        Run::Idle { .. } => idle_rows(&mut text, workload, summaries),
        Run::Load { unit, .. } => load_rows(&mut text, workload, unit, summaries),
    }
    for summary in summaries.iter().filter(|summary| !summary.clean()) {
        let counts: Vec<String> = summary
            .errors
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        let _ = writeln!(
            text,
            "  ! {}: ratio refused, {}{}",
            summary.peer,
            summary.first_error.as_deref().unwrap_or("errors"),
            match counts.is_empty() {
                true => String::new(),
                false => format!(" ({})", counts.join(", ")),
            },
        );
    }
    if let Some(worst) = summaries
        .iter()
        .filter(|one| one.disturbed())
        .map(|one| one.foreign)
        .reduce(f64::max)
    {
        let _ = writeln!(
            text,
            "  ! something else used {:.0} % of a core meanwhile: measure again on an idle machine",
            worst * 100.0,
        );
    }
    text
}

fn targets(workload: &Workload) -> String {
    let target = match workload.run {
        Run::Idle { bytes_max, .. } => return format!(": at most {bytes_max} bytes each"),
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
    if workload.cores == Cores::All {
        parts.push(format!("processor at most {SCALING_MAX} × one core's"));
    }
    match parts.is_empty() {
        true => String::new(),
        false => format!(": {}", parts.join(", ")),
    }
}

fn load_rows(text: &mut String, workload: &Workload, unit: Unit, summaries: &[Summary]) {
    let (rate, cost) = match unit {
        Unit::Requests => ("requests/s", "CPU µs/req"),
        Unit::Bytes => ("GiB/s", "CPU ms/GiB"),
    };
    let wrk = summaries.iter().any(|summary| summary.wrk.is_some());
    let _ = writeln!(
        text,
        "  {:<18}{rate:>11} {:>6} {:>8} {:<8}{cost:>11} {:>8} {:<8}{:>9} {:<7}{:>9}{:>9}{:>7}{}",
        "",
        "±",
        "×",
        "",
        "×",
        "",
        "p50 µs",
        "",
        "p99 µs",
        "p999 µs",
        "gen.",
        if wrk { "  wrk req/s" } else { "" },
    );
    for summary in summaries {
        let Some(throughput) = summary.throughput else {
            continue;
        };
        let (rate, cost) = match unit {
            Unit::Requests => (format!("{throughput:.0}"), 1e6),
            Unit::Bytes => (format!("{:.2}", throughput / GIB), 1e3 * GIB),
        };
        let cpu = summary.cpu_per_unit.map(|cpu| format!("{:.2}", cpu * cost));
        let _ = write!(
            text,
            "  {:<18}{rate:>11} {:>5.1}% {:>8} {:<8}{:>11} {:>8} {:<8}{:>9.1} {:<7}{:>9.0}{:>9.0}{:>6.0}%",
            summary.peer,
            summary.spread * 100.0,
            ratio_text(summary.throughput_ratio),
            mark(summary, "throughput"),
            cpu.as_deref().unwrap_or("-"),
            times_text(summary.cpu_ratio),
            mark(summary, "cpu"),
            summary.latency_us.p50,
            mark(summary, "latency"),
            summary.latency_us.p99,
            summary.latency_us.p999,
            summary.client_busy * 100.0,
        );
        if wrk {
            let figure = summary
                .wrk
                .map_or("-".to_owned(), |figure| format!("{figure:.0}"));
            let _ = write!(text, "{figure:>11}");
        }
        if let Some(against) = summary.beside {
            let _ = write!(
                text,
                "  {}: {} {:<8} CPU {} {}",
                against.family,
                ratio_text(against.throughput),
                mark(summary, "throughput beside"),
                times_text(against.cpu),
                mark(summary, "cpu beside"),
            );
        }
        if let (Some(bystander), Some(latency)) = (workload.bystander, summary.bystander_us) {
            let value = match bystander.quantile {
                Quantile::P99 => latency.p99,
                Quantile::P999 => latency.p999,
            };
            let _ = write!(
                text,
                "  small client: {} {value:.0} µs {} {}",
                bystander.quantile.name(),
                times_text(summary.bystander_ratio),
                mark(summary, "bystander"),
            );
        }
        if let Some(scaling) = summary.scaling {
            let _ = write!(
                text,
                "  CPU of one core's: {scaling:.2}× {}",
                mark(summary, "scaling"),
            );
        }
        let end = text.trim_end().len();
        text.truncate(end);
        text.push('\n');
    }
}

fn idle_rows(text: &mut String, workload: &Workload, summaries: &[Summary]) {
    let _ = writeln!(
        text,
        "  {:<18}{:>11} {:<8}{:>14}{:>14}{:>14}",
        "", "bytes each", "", "connections", "before KiB", "after KiB",
    );
    for summary in summaries {
        let (Some(each), Some(memory)) = (summary.memory_per_connection, summary.memory) else {
            continue;
        };
        let _ = writeln!(
            text,
            "  {:<18}{each:>11.0} {:<8}{:>14}{:>14}{:>14}",
            summary.peer,
            mark(summary, "memory"),
            memory.connections,
            memory.before.allocated / 1024,
            memory.after.allocated / 1024,
        );
    }
    let most = summaries.iter().filter_map(|one| one.memory);
    if let Some(opened) = most.map(|memory| memory.connections + 1).max()
        && opened < workload.connections
    {
        let _ = writeln!(
            text,
            "  ! only {opened} connections: the limit of descriptors (`ulimit -Hn`) allows no more",
        );
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
