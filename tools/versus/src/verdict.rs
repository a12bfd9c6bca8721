//! From what was measured to what may be said.
//!
//! A ratio is refused where there were errors, and it is a bound where the generator, not the server,
//! was the limit of one side.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::generate::{IdleMemory, Latency, Report};
use crate::measure::Measured;
use crate::peers::{Family, Peer};
use crate::stalls;
use crate::workload::{Quantile, Run, SCALING_MAX, STALLS_MAX, Target, Unit, Workload};

/// A generator that is busier than this share of the time was the limit.
const SATURATED: f64 = 0.97;
/// More than this share of a core used by others makes figures worthless.
const FOREIGN_MAX: f64 = 0.10;
const GIB: f64 = (1u64 << 30) as f64;

/// One peer under one workload: medians over the rounds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// The peer.
    pub peer: &'static str,
    /// Whose it is.
    pub family: &'static str,
    /// Requests or bytes in a second.
    pub throughput: Option<f64>,
    /// Half of the distance between the best and the worst round, as a share of the median.
    pub spread: f64,
    /// Seconds of the server's processor time for each request or byte.
    pub cpu_per_unit: Option<f64>,
    /// Latencies; the maximum is of all rounds.
    pub latency_us: Latency,
    /// The same of the small client beside the load.
    pub bystander_us: Option<Latency>,
    /// Of its latency that counts, this peer's over the least of nginx's.
    pub bystander_ratio: Option<f64>,
    /// Long turns of Beltway's core, where it was asked for them.
    pub stalls: Option<Stalls>,
    /// Processor time per unit on all cores over that on one.
    pub scaling: Option<f64>,
    /// Share of the time in which the generator was busy.
    pub client_busy: f64,
    /// The generator was the limit.
    pub saturated: bool,
    /// Share of a core that something else used during the measurements.
    pub foreign: f64,
    /// With the idle workload only: memory in the round of the median.
    pub memory: Option<IdleMemory>,
    /// Bytes for each idle connection.
    pub memory_per_connection: Option<f64>,
    /// Why the peer can't do what was measured.
    pub lacks: Option<String>,
    /// Faults of all rounds by kind.
    pub errors: BTreeMap<String, u64>,
    /// The first fault, or why it could not be measured.
    pub first_error: Option<String>,
    /// Connections opened anew after an announced close.
    pub reconnects: u64,
    /// Requests per second by wrk.
    pub wrk: Option<f64>,
    /// Throughput over that of nginx's best.
    pub throughput_ratio: Option<Ratio>,
    /// The least processor time per unit of nginx's configurations over this peer's.
    pub cpu_ratio: Option<f64>,
    /// The same two ratios against the family that the workload names beside nginx.
    pub beside: Option<Against>,
    /// The best of nginx's configurations here.
    pub reference: bool,
    /// For Beltway only: what was to be reached.
    pub verdicts: Vec<Verdict>,
}

/// Long turns of all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Stalls {
    /// Those above 2 ms that the machine isn't known to be to blame for, for each GiB.
    pub per_gib: f64,
    /// All.
    pub all: stalls::Stalls,
    /// At most so many for each GiB.
    pub most: f64,
}

/// How a peer compares with the best of a family.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Against {
    /// The family's name.
    pub family: &'static str,
    /// Throughput over that of its best.
    pub throughput: Option<Ratio>,
    /// Its least processor time per unit over this peer's.
    pub cpu: Option<f64>,
}

/// A ratio and what it says about the true one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// As measured.
    pub value: f64,
    /// How the true one relates to it.
    pub bound: Bound,
}

/// How a true ratio relates to the measured one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Neither side was limited by the generator.
    Exact,
    /// Only the numerator was.
    AtLeast,
    /// Only the denominator was.
    AtMost,
    /// Both were: the generator was measured.
    Unknown,
}

/// One figure to reach.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// `throughput`, `cpu` and `latency` against nginx; `throughput beside` and `cpu beside` against the
    /// family that the workload names beside it; `bystander`, `stalls`, `scaling`, `memory`.
    pub figure: &'static str,
    /// The target, where it is a number.
    pub target: Option<f64>,
    /// Whether it was reached.
    pub outcome: Outcome,
}

/// Whether a figure was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Reached.
    Pass,
    /// Not reached.
    Miss,
    /// The generator was the limit, so it can't be said.
    Unclear,
    /// There were errors, or nothing to compare with.
    Refused,
}

impl Outcome {
    /// As the table writes it.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Pass => "pass",
            Outcome::Miss => "MISS",
            Outcome::Unclear => "unclear",
            Outcome::Refused => "refused",
        }
    }

    fn of(reached: bool) -> Self {
        if reached {
            Outcome::Pass
        } else {
            Outcome::Miss
        }
    }
}

impl Ratio {
    /// Of two throughputs, each with whether the generator was the limit.
    fn of((ours, ours_saturated): (f64, bool), (theirs, theirs_saturated): (f64, bool)) -> Self {
        Self {
            value: ours / theirs,
            bound: match (ours_saturated, theirs_saturated) {
                (false, false) => Bound::Exact,
                (true, false) => Bound::AtLeast,
                (false, true) => Bound::AtMost,
                (true, true) => Bound::Unknown,
            },
        }
    }

    /// Whether the true ratio is at least `target`, as far as that can be said.
    fn reaches(self, target: f64) -> Outcome {
        let reached = self.value >= target;
        match self.bound {
            Bound::AtLeast if !reached => Outcome::Unclear,
            Bound::AtMost if reached => Outcome::Unclear,
            Bound::Unknown => Outcome::Unclear,
            _ => Outcome::of(reached),
        }
    }
}

/// Summarises one workload, in the peers' order.
pub fn summarise(workload: &Workload, peers: &[Peer], measured: &[Measured]) -> Vec<Summary> {
    let mut summaries: Vec<Summary> = peers
        .iter()
        .zip(measured)
        .map(|(peer, measured)| summary(workload, peer, measured))
        .collect();
    let families: Vec<Family> = peers.iter().map(|peer| peer.family).collect();
    let nginx = Best::of(&families, &summaries, Family::Nginx);
    let second = match workload.run {
        Run::Load { target, .. } => target.beside.map(|beside| beside.family),
        Run::Idle { .. } => None,
    };
    let second = second.map(|family| Best::of(&families, &summaries, family));
    let nginx_beside = workload.bystander.and_then(|bystander| {
        let of = summaries.iter().zip(&families);
        of.filter(|&(_, &family)| family == Family::Nginx)
            .filter_map(|(summary, _)| summary.bystander(bystander.quantile))
            .min_by(f64::total_cmp)
    });
    for (place, summary) in summaries.iter_mut().enumerate() {
        summary.reference = nginx.place == Some(place);
        (summary.throughput_ratio, summary.cpu_ratio) = nginx.against(summary);
        summary.beside = second.as_ref().map(|best| {
            let (throughput, cpu) = best.against(summary);
            Against {
                family: best.family.name(),
                throughput,
                cpu,
            }
        });
        if let Some(bystander) = workload.bystander {
            let ours = summary.bystander(bystander.quantile);
            summary.bystander_ratio = ours.zip(nginx_beside).map(|(ours, theirs)| ours / theirs);
        }
        if families[place] == Family::Beltway {
            summary.verdicts = verdicts(workload, summary, &nginx, second.as_ref());
        }
    }
    summaries
}

/// The best that a family's clean configurations reach, each figure for itself.
struct Best {
    family: Family,
    /// The configuration with the highest throughput.
    place: Option<usize>,
    /// Its throughput, and whether the generator was its limit.
    side: Option<(f64, bool)>,
    /// Seconds of processor time per unit.
    cpu: Option<f64>,
    /// The median in microseconds.
    latency_us: Option<f64>,
    /// Whether any of it was measured, cleanly or not.
    measured: bool,
    /// All that there is of it can't do what was measured.
    lacks: bool,
}

impl Best {
    fn of(families: &[Family], summaries: &[Summary], family: Family) -> Self {
        let clean = || {
            (0..summaries.len())
                .filter(|&place| families[place] == family && summaries[place].side().is_some())
        };
        let place = clean().max_by(|&one, &other| {
            let throughput = |place: usize| summaries[place].throughput.unwrap_or(0.0);
            throughput(one).total_cmp(&throughput(other))
        });
        Self {
            family,
            place,
            side: place.and_then(|place| summaries[place].side()),
            cpu: clean()
                .filter_map(|place| summaries[place].cpu_per_unit)
                .min_by(f64::total_cmp),
            latency_us: clean()
                .map(|place| summaries[place].latency_us.p50)
                .min_by(f64::total_cmp),
            measured: families.contains(&family),
            lacks: families.contains(&family)
                && (0..summaries.len())
                    .all(|place| families[place] != family || summaries[place].lacks.is_some()),
        }
    }

    /// Throughput over its, and its processor time over that of `summary`.
    fn against(&self, summary: &Summary) -> (Option<Ratio>, Option<f64>) {
        let side = summary.side();
        let throughput = side
            .zip(self.side)
            .map(|(one, other)| Ratio::of(one, other));
        let cpu = summary.cpu_per_unit.filter(|_| side.is_some());
        (
            throughput,
            self.cpu.zip(cpu).map(|(theirs, ours)| theirs / ours),
        )
    }
}

impl Summary {
    /// Whether every round succeeded without a fault.
    pub fn clean(&self) -> bool {
        self.errors.is_empty() && self.first_error.is_none()
    }

    /// The latency of the small client that counts; none where a ratio must be refused.
    fn bystander(&self, quantile: Quantile) -> Option<f64> {
        let latency = self.bystander_us.filter(|_| self.clean())?;
        let value = quantile.of(&latency);
        (value > 0.0).then_some(value)
    }

    /// Throughput and whether the generator was its limit; none where a ratio must be refused.
    fn side(&self) -> Option<(f64, bool)> {
        let throughput = self.throughput.filter(|&throughput| throughput > 0.0)?;
        self.clean().then_some((throughput, self.saturated))
    }
}

fn verdicts(
    workload: &Workload,
    summary: &Summary,
    nginx: &Best,
    second: Option<&Best>,
) -> Vec<Verdict> {
    let target = match workload.run {
        Run::Idle { bytes_max, .. } => {
            let memory = summary.memory_per_connection.filter(|_| summary.clean());
            let outcome = memory.map(|bytes| Outcome::of(bytes <= bytes_max));
            return vec![Verdict::new("memory", Some(bytes_max), outcome)];
        }
        // There is nothing to reach beside a peer that can't do it.
        Run::Load { .. } if nginx.lacks => Target::NONE,
        Run::Load { target, .. } => target,
    };
    let throughput = |figure, target: Option<f64>, ratio: Option<Ratio>| {
        target.map(|target| {
            let outcome = ratio.map(|ratio| ratio.reaches(target));
            Verdict::new(figure, Some(target), outcome)
        })
    };
    let cpu = |figure, target: Option<f64>, ratio: Option<f64>| {
        target.map(|target| {
            let outcome = ratio.map(|ratio| Outcome::of(ratio >= target));
            Verdict::new(figure, Some(target), outcome)
        })
    };
    let latency = target.latency.then(|| {
        let ours = summary.side().map(|_| summary.latency_us.p50);
        let outcome = ours.zip(nginx.latency_us);
        let outcome = outcome.map(|(ours, theirs)| Outcome::of(ours < theirs));
        Verdict::new("latency", None, outcome)
    });
    let mut verdicts: Vec<Verdict> = [
        throughput("throughput", target.throughput, summary.throughput_ratio),
        cpu("cpu", target.cpu, summary.cpu_ratio),
        latency,
    ]
    .into_iter()
    .flatten()
    .collect();
    // A second family that isn't installed is no miss.
    if let (Some(beside), true) = (target.beside, second.is_some_and(|best| best.measured)) {
        let against = summary.beside;
        let ratio = against.and_then(|against| against.throughput);
        verdicts.extend(throughput("throughput beside", beside.throughput, ratio));
        let ratio = against.and_then(|against| against.cpu);
        verdicts.extend(cpu("cpu beside", beside.cpu, ratio));
    }
    if let Some(stalls) = summary.stalls {
        let outcome = Outcome::of(stalls.per_gib <= stalls.most && stalls.all.long == 0);
        let outcome = summary.clean().then_some(outcome);
        verdicts.push(Verdict::new("stalls", Some(stalls.most), outcome));
    }
    if let Some(bystander) = workload.bystander {
        let outcome = summary
            .bystander_ratio
            .map(|ratio| Outcome::of(ratio <= bystander.ratio_max));
        verdicts.push(Verdict::new(
            "bystander",
            Some(bystander.ratio_max),
            outcome,
        ));
    }
    verdicts
}

/// Compares what a request costs on all cores with what it costs on one: `one`, of the same peers. Judged
/// for Beltway, and only where that was measured.
pub fn judge_scaling(peers: &[Peer], summaries: &mut [Summary], one: Option<&[Summary]>) {
    let Some(one) = one else {
        return;
    };
    for ((peer, summary), one) in peers.iter().zip(summaries).zip(one) {
        let all = summary.side().and(summary.cpu_per_unit);
        let one = one.side().and(one.cpu_per_unit);
        summary.scaling = all.zip(one).map(|(all, one)| all / one);
        if peer.family == Family::Beltway {
            let outcome = summary
                .scaling
                .map(|ratio| Outcome::of(ratio <= SCALING_MAX));
            let verdict = Verdict::new("scaling", Some(SCALING_MAX), outcome);
            summary.verdicts.push(verdict);
        }
    }
}

impl Verdict {
    /// Refused where there is no outcome.
    fn new(figure: &'static str, target: Option<f64>, outcome: Option<Outcome>) -> Self {
        Self {
            figure,
            target,
            outcome: outcome.unwrap_or(Outcome::Refused),
        }
    }
}

fn summary(workload: &Workload, peer: &Peer, measured: &Measured) -> Summary {
    let reports = &measured.reports;
    let mut summary = Summary {
        peer: peer.name,
        family: peer.family.name(),
        wrk: measured.wrk,
        first_error: measured.failure.clone(),
        lacks: measured.lacks.clone(),
        ..Summary::default()
    };
    for report in reports {
        summary.reconnects += report.reconnects;
        for (kind, count) in &report.errors {
            *summary.errors.entry(kind.clone()).or_default() += count;
        }
        if summary.first_error.is_none() {
            summary.first_error.clone_from(&report.first_error);
        }
    }
    let of = |value: &dyn Fn(&Report) -> f64| median(reports.iter().map(value).collect());
    match workload.run {
        Run::Idle { .. } => {
            let idle = |report: &Report| report.idle.unwrap_or_default().per_connection();
            summary.memory_per_connection = of(&idle);
            let middle = reports
                .iter()
                .find(|one| Some(idle(one)) == summary.memory_per_connection);
            summary.memory = middle.or(reports.first()).and_then(|report| report.idle);
        }
        Run::Load { unit, .. } => {
            let units = |report: &Report| match unit {
                Unit::Requests => report.requests as f64,
                Unit::Bytes => report.bytes as f64,
            };
            let rate = |report: &Report| units(report) / report.seconds;
            summary.throughput = of(&rate);
            summary.spread = spread(reports.iter().map(rate).collect());
            let cpu = of(&|report| report.server.total() / units(report).max(1.0));
            summary.cpu_per_unit = cpu.filter(|&cpu| cpu > 0.0);
        }
    }
    summary.latency_us = latency(reports.iter().map(|report| report.latency_us));
    let beside = || reports.iter().filter_map(|report| report.bystander_us);
    summary.bystander_us = beside().next().map(|_| latency(beside()));
    let bytes: u64 = reports.iter().map(|report| report.bytes).sum();
    let stalls = reports.iter().filter_map(|report| report.stalls);
    summary.stalls = stalls.reduce(stalls::Stalls::and).map(|all| Stalls {
        per_gib: all.own() as f64 / (bytes as f64 / GIB).max(f64::MIN_POSITIVE),
        all,
        most: if peer.is_direct() { 0.0 } else { STALLS_MAX },
    });
    summary.client_busy = of(&client_busy).unwrap_or(0.0);
    summary.saturated = summary.client_busy > SATURATED;
    summary.foreign = of(&foreign).unwrap_or(0.0);
    summary
}

impl Summary {
    /// Whether something else took so much of a core that the figures mean little.
    pub fn disturbed(&self) -> bool {
        self.foreign > FOREIGN_MAX
    }
}

/// The generator is as busy as its core, which it has alone; or as its own clock says, where the
/// core's isn't known.
fn client_busy(report: &Report) -> f64 {
    report
        .client_core_busy
        .unwrap_or(0.0)
        .max(report.client_busy)
}

/// The larger share of the two cores that neither the server, nor the generator, nor what is behind a
/// proxy used.
fn foreign(report: &Report) -> f64 {
    let server = report.server.total() / report.seconds.max(1e-9);
    let on_server = report.server_core_busy.map_or(0.0, |busy| busy - server);
    let backend = report.backend.total() / report.seconds.max(1e-9);
    let on_client = report
        .client_core_busy
        .map_or(0.0, |busy| busy - report.client_busy - backend);
    on_server.max(on_client).max(0.0)
}

/// Medians over the rounds; the maximum is of all.
fn latency(rounds: impl Iterator<Item = Latency>) -> Latency {
    let rounds: Vec<Latency> = rounds.collect();
    let of = |value: fn(&Latency) -> f64| median(rounds.iter().map(value).collect()).unwrap_or(0.0);
    Latency {
        p50: of(|latency| latency.p50),
        p99: of(|latency| latency.p99),
        p999: of(|latency| latency.p999),
        max: rounds.iter().map(|latency| latency.max).fold(0.0, f64::max),
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    Some(match values.len() % 2 {
        0 => (values[values.len() / 2 - 1] + upper) / 2.0,
        _ => upper,
    })
}

fn spread(values: Vec<f64>) -> f64 {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    match median(values) {
        Some(median) if median > 0.0 => (most - least) / 2.0 / median,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::{CpuTime, Memory};
    use crate::workload::{Via, select};

    fn workload(name: &str) -> Workload {
        select(&[name.to_owned()]).expect("a known name")[0]
    }

    fn report(requests: u64, cpu: f64, busy: f64) -> Report {
        Report {
            requests,
            seconds: 1.0,
            server: CpuTime {
                user: cpu,
                system: 0.0,
            },
            client_busy: busy,
            ..Report::default()
        }
    }

    fn measured(reports: &[Report]) -> Measured {
        Measured {
            reports: reports.to_vec(),
            ..Measured::default()
        }
    }

    /// Beltway on both engines, nginx A and B, and two of the family beside it.
    fn judge(name: &str, reports: [Report; 6]) -> Vec<Summary> {
        let workload = workload(name);
        let peers = Peer::all_for_tests(match workload.via {
            Via::Files => Family::Lighttpd,
            Via::Proxy { .. } => Family::Haproxy,
        });
        summarise(
            &workload,
            &peers,
            &reports.map(|report| measured(&[report])),
        )
    }

    fn outcomes(summary: &Summary) -> Vec<Outcome> {
        summary
            .verdicts
            .iter()
            .map(|verdict| verdict.outcome)
            .collect()
    }

    #[test]
    fn compares_with_the_best_of_nginx() {
        let summaries = judge(
            "1k-64",
            [
                report(200, 0.5, 0.5),
                report(170, 1.0, 0.5),
                report(100, 1.0, 0.5),
                report(90, 0.8, 0.5),
                report(150, 1.0, 0.5),
                report(180, 1.0, 0.5),
            ],
        );
        assert!(summaries[2].reference && !summaries[3].reference);
        let ratio = summaries[0].throughput_ratio.expect("no errors");
        assert_eq!(
            ratio,
            Ratio {
                value: 2.0,
                bound: Bound::Exact
            }
        );
        // The least processor time per request is that of the other configuration.
        let cpu = summaries[0].cpu_ratio.expect("no errors");
        assert!((cpu - (0.8 / 90.0) / (0.5 / 200.0)).abs() < 1e-9);
        assert_eq!(outcomes(&summaries[0]), [Outcome::Pass; 3]);
        assert_eq!(outcomes(&summaries[1]), [Outcome::Miss; 3]);
        assert!(summaries[4].verdicts.is_empty());
    }

    #[test]
    fn errors_refuse_the_ratio_and_take_a_reference_away() {
        let mut broken = report(1000, 1.0, 0.5);
        broken.errors.insert("closed".to_owned(), 1);
        let good = report(100, 1.0, 0.5);
        let summaries = judge(
            "16k",
            [
                broken.clone(),
                good.clone(),
                broken.clone(),
                good.clone(),
                good.clone(),
                good.clone(),
            ],
        );
        assert_eq!(summaries[0].throughput_ratio, None);
        assert_eq!(outcomes(&summaries[0]), [Outcome::Refused; 2]);
        assert!(summaries[3].reference);
        let ratio = summaries[1].throughput_ratio.map(|ratio| ratio.value);
        assert_eq!(ratio, Some(1.0));
        let all_broken = [
            broken.clone(),
            good.clone(),
            broken.clone(),
            broken,
            good.clone(),
            good,
        ];
        assert_eq!(
            outcomes(&judge("16k", all_broken)[1]),
            [Outcome::Refused; 2]
        );
    }

    #[test]
    fn a_saturated_generator_makes_a_bound() {
        for (ours, theirs, bound, above, below) in [
            (0.99, 0.5, Bound::AtLeast, Outcome::Pass, Outcome::Unclear),
            (0.5, 0.99, Bound::AtMost, Outcome::Unclear, Outcome::Miss),
            (
                0.99,
                0.99,
                Bound::Unknown,
                Outcome::Unclear,
                Outcome::Unclear,
            ),
            (0.5, 0.5, Bound::Exact, Outcome::Pass, Outcome::Miss),
        ] {
            let summaries = judge(
                "64k",
                [
                    report(200, 0.1, ours),
                    report(150, 0.1, ours),
                    report(100, 1.0, theirs),
                    report(50, 1.0, 0.5),
                    report(50, 1.0, 0.5),
                    report(50, 1.0, 0.5),
                ],
            );
            assert_eq!(
                summaries[0].throughput_ratio.map(|ratio| ratio.bound),
                Some(bound)
            );
            assert_eq!(outcomes(&summaries[0]), [above, Outcome::Pass]);
            assert_eq!(outcomes(&summaries[1]), [below, Outcome::Pass]);
        }
    }

    #[test]
    fn a_proxy_is_judged_beside_haproxy_as_well() {
        // Its CPU per request is 1.5 and 1.0 times ours.
        let summaries = judge(
            "proxy-1k-64",
            [
                report(200, 0.5, 0.5),
                report(200, 0.75, 0.5),
                report(100, 1.0, 0.5),
                report(90, 0.8, 0.5),
                report(200, 0.75, 0.5),
                report(180, 1.0, 0.5),
            ],
        );
        let against = summaries[0].beside.expect("a second family");
        assert_eq!(against.family, "haproxy");
        assert!((against.cpu.expect("no errors") - 1.5).abs() < 1e-9);
        assert_eq!(outcomes(&summaries[0]), [Outcome::Pass; 3]);
        let figures: Vec<_> = summaries[1].verdicts.iter().map(|one| one.figure).collect();
        assert_eq!(figures, ["throughput", "cpu", "cpu beside"]);
        assert_eq!(outcomes(&summaries[1])[2], Outcome::Miss);
    }

    #[test]
    fn latency_is_judged_by_the_medians_alone() {
        let slow = |p50| Report {
            latency_us: Latency {
                p50,
                ..Latency::default()
            },
            ..report(100, 1.0, 0.5)
        };
        let p50s = [19.0, 20.0, 25.0, 20.0, 1.0, 1.0];
        let summaries = judge("proxy-1k-1", p50s.map(slow));
        assert_eq!(outcomes(&summaries[0]), [Outcome::Pass]);
        assert_eq!(outcomes(&summaries[1]), [Outcome::Miss]);
    }

    #[test]
    fn a_small_client_is_compared_with_nginxs_least_wait() {
        let waits = |p999| Report {
            bytes: 100,
            bystander_us: Some(Latency {
                p99: 1.0,
                p999,
                ..Latency::default()
            }),
            ..report(1, 1.0, 0.5)
        };
        let summaries = judge("1g-cold", [10.0, 11.0, 100.0, 105.0, 1.0, 1.0].map(waits));
        assert_eq!(summaries[0].bystander_ratio, Some(0.1));
        assert_eq!(outcomes(&summaries[0]), [Outcome::Pass; 2]);
        assert_eq!(outcomes(&summaries[1]), [Outcome::Pass, Outcome::Miss]);
    }

    #[test]
    fn all_cores_are_compared_with_one_of_the_same_peer() {
        let peers = Peer::all_for_tests(Family::Lighttpd);
        let of = |cpu: f64| {
            let reports = [0.0, 0.1, 0.0, 0.0, 0.0, 0.0].map(|more| report(100, cpu + more, 0.5));
            let measured = reports.map(|report| measured(&[report]));
            summarise(&workload("1k-cores"), &peers, &measured)
        };
        let (one, mut all) = (of(1.0), of(1.05));
        all[1].cpu_per_unit = Some(0.0125);
        judge_scaling(&peers, &mut all, None);
        assert!(all[0].verdicts.is_empty());
        judge_scaling(&peers, &mut all, Some(&one));
        assert_eq!(outcomes(&all[0]), [Outcome::Pass]);
        assert_eq!(outcomes(&all[1]), [Outcome::Miss]);
        assert!(all[2].verdicts.is_empty() && all[2].scaling.is_some());
    }

    #[test]
    fn what_is_behind_a_proxy_is_nothing_foreign() {
        let mut one = report(100, 0.5, 0.4);
        one.client_core_busy = Some(0.9);
        assert!((foreign(&one) - 0.5).abs() < 1e-9);
        one.backend.system = 0.45;
        assert!((foreign(&one) - 0.05).abs() < 1e-9);
    }

    #[test]
    fn memory_of_idle_connections_is_judged_alone() {
        let idle = |allocated| Report {
            idle: Some(IdleMemory {
                before: Memory {
                    allocated: 1000,
                    proportional: 0,
                },
                after: Memory {
                    allocated,
                    proportional: 0,
                },
                connections: 100,
            }),
            ..Report::default()
        };
        let sizes = [51_000, 54_000, 0, 0, 0, 0];
        let summaries = judge("idle", sizes.map(idle));
        assert_eq!(summaries[0].memory_per_connection, Some(500.0));
        assert_eq!(outcomes(&summaries[0]), [Outcome::Pass]);
        assert_eq!(outcomes(&summaries[1]), [Outcome::Miss]);
    }

    #[test]
    fn medians_and_spread_over_rounds() {
        let peers = &Peer::all_for_tests(Family::Lighttpd)[..1];
        let rounds = measured(&[
            report(100, 1.0, 0.1),
            report(90, 1.0, 0.1),
            report(130, 1.0, 0.1),
        ]);
        let summaries = summarise(&workload("1k-1"), peers, &[rounds]);
        assert_eq!(summaries[0].throughput, Some(100.0));
        assert!((summaries[0].spread - 0.2).abs() < 1e-9);
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }
}
