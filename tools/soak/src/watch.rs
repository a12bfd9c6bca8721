//! What a server holds, and whether it holds ever more.

use std::fmt;
use std::fs;
use std::io;

use serde_json::Value;

use crate::server::Server;

/// What is looked at, each with how much more than at first it may be when nothing is asked of the server:
/// a share, and what is always granted (in its own unit).
const BOUNDS: [(Metric, f64, f64); 10] = [
    (Metric::Connections, 0.0, 0.0),
    (Metric::Slots, 0.0, 8.0),
    (Metric::Tasks, 0.0, 4.0),
    (Metric::Sockets, 0.0, 2.0),
    // Each core knows the files for a while that were asked for last.
    (Metric::Files, 0.0, 16.0),
    // Each of the two cores keeps 16 pipes at most, with two ends.
    (Metric::Pipes, 0.0, 64.0),
    (Metric::Accounted, 0.25, (1 << 20) as f64),
    (Metric::Memory, 0.30, (16 << 20) as f64),
    (Metric::MasterDescriptors, 0.0, 4.0),
    (Metric::MasterMemory, 0.30, (8 << 20) as f64),
];

/// Fewer points than this are no trend.
const TREND_POINTS: usize = 4;

/// A trend counts from this share of the middle value on, and from so many bytes on.
const TREND: (f64, f64) = (0.10, (4 << 20) as f64);

/// Something that a server holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    /// Open connections of clients.
    Connections,
    /// Ops in flight.
    Slots,
    /// Tasks of the cores.
    Tasks,
    /// Descriptors of the workers that are sockets.
    Sockets,
    /// Those that are pipes.
    Pipes,
    /// All others.
    Files,
    /// What the cores account for, in bytes.
    Accounted,
    /// Proportional memory of the workers, in bytes.
    Memory,
    /// Descriptors of the master.
    MasterDescriptors,
    /// Proportional memory of the master, in bytes.
    MasterMemory,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connections => "connections",
            Self::Slots => "slots",
            Self::Tasks => "tasks",
            Self::Sockets => "sockets",
            Self::Pipes => "ends of pipes",
            Self::Files => "files and other descriptors",
            Self::Accounted => "accounted bytes",
            Self::Memory => "bytes of memory",
            Self::MasterDescriptors => "descriptors of the master",
            Self::MasterMemory => "bytes of the master's memory",
        })
    }
}

/// What a server holds at a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    /// Generations that live.
    pub(crate) generations: usize,
    connections: f64,
    slots: f64,
    tasks: f64,
    accounted: f64,
    /// `None` where this user may not see them.
    descriptors: Option<Descriptors>,
    memory: Option<f64>,
    master_descriptors: Option<f64>,
    master_memory: Option<f64>,
}

/// Descriptors by what they are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Descriptors {
    sockets: f64,
    pipes: f64,
    files: f64,
}

impl Descriptors {
    /// Those of a process; `None` where this user may not see them.
    fn of(pid: u64) -> Option<Self> {
        let mut found = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
            // One that was closed meanwhile is none.
            let Ok(what) = fs::read_link(entry.path()) else {
                continue;
            };
            let what = what.to_string_lossy();
            *match what.split_once(":[") {
                Some(("socket", _)) => &mut found.sockets,
                Some(("pipe", _)) => &mut found.pipes,
                _ => &mut found.files,
            } += 1.0;
        }
        Some(found)
    }

    fn all(self) -> f64 {
        self.sockets + self.pipes + self.files
    }

    fn and(self, other: Self) -> Self {
        Self {
            sockets: self.sockets + other.sockets,
            pipes: self.pipes + other.pipes,
            files: self.files + other.files,
        }
    }
}

impl Sample {
    /// Looks at a server.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub(crate) fn take(server: &Server) -> io::Result<Self> {
        let status = server.status()?;
        let list = |of: &Value, name: &str| of[name].as_array().cloned().unwrap_or_default();
        let generations = list(&status, "generations");
        let workers: Vec<Value> = generations
            .iter()
            .flat_map(|one| list(one, "workers"))
            .collect();
        let cores: Vec<Value> = workers.iter().flat_map(|one| list(one, "cores")).collect();
        let sum = |name: &str| cores.iter().filter_map(|core| core[name].as_f64()).sum();
        let pids = || workers.iter().filter_map(|worker| worker["pid"].as_u64());
        let master = u64::from(server.master());
        Ok(Self {
            generations: generations.len(),
            connections: sum("connections"),
            slots: sum("slots"),
            tasks: sum("tasks"),
            accounted: sum("memory_bytes"),
            descriptors: pids()
                .map(Descriptors::of)
                .try_fold(Descriptors::default(), |sum, one| Some(sum.and(one?))),
            memory: pids().map(memory).sum(),
            master_descriptors: Descriptors::of(master).map(Descriptors::all),
            master_memory: memory(master),
        })
    }

    fn of(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Connections => Some(self.connections),
            Metric::Slots => Some(self.slots),
            Metric::Tasks => Some(self.tasks),
            Metric::Sockets => self.descriptors.map(|of| of.sockets),
            Metric::Pipes => self.descriptors.map(|of| of.pipes),
            Metric::Files => self.descriptors.map(|of| of.files),
            Metric::Accounted => Some(self.accounted),
            Metric::Memory => self.memory,
            Metric::MasterDescriptors => self.master_descriptors,
            Metric::MasterMemory => self.master_memory,
        }
    }

    /// What is more than it was in `base` by more than is granted. Nothing is asked of the server now, as
    /// then.
    pub(crate) fn excess(&self, base: &Self) -> Vec<String> {
        BOUNDS
            .into_iter()
            .filter_map(|(metric, share, free)| {
                let (before, now) = (base.of(metric)?, self.of(metric)?);
                let most = before * (1.0 + share) + free;
                (now > most).then(|| format!("{now:.0} {metric}, {before:.0} at first"))
            })
            .collect()
    }

    /// Whether what can be counted is the same: the server has come to rest.
    pub(crate) fn same_counts(&self, other: &Self) -> bool {
        [
            Metric::Connections,
            Metric::Slots,
            Metric::Tasks,
            Metric::Sockets,
            Metric::Pipes,
            Metric::Files,
            Metric::MasterDescriptors,
        ]
        .iter()
        .all(|metric| self.of(*metric) == other.of(*metric))
            && self.connections == 0.0
            && self.generations == other.generations
    }
}

/// What goes on growing from one rest to the next, in words.
pub(crate) fn trends(samples: &[Sample]) -> Vec<String> {
    let metrics = [
        Metric::Slots,
        Metric::Tasks,
        Metric::Sockets,
        Metric::Files,
        Metric::Accounted,
        Metric::Memory,
    ];
    metrics
        .into_iter()
        .filter_map(|metric| {
            let values: Option<Vec<f64>> = samples.iter().map(|one| one.of(metric)).collect();
            let free = match metric {
                Metric::Accounted | Metric::Memory => TREND.1,
                _ => 4.0,
            };
            let growth = growth(&values?, TREND.0, free)?;
            Some(format!(
                "{metric} grow with every load, by {growth:.0} so far"
            ))
        })
        .collect()
}

/// By how much values have grown from the first to the last, if they do so without an end in sight: the
/// median of all slopes (Theil, Sen) amounts to more than the granted share and `free`, and the second half
/// grows no less than half as fast as the first.
fn growth(values: &[f64], share: f64, free: f64) -> Option<f64> {
    if values.len() < TREND_POINTS {
        return None;
    }
    let whole = slope(values) * (values.len() - 1) as f64;
    let (first, second) = values.split_at(values.len() / 2);
    let goes_on = slope(second) >= slope(first) / 2.0;
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let most = (sorted[sorted.len() / 2] * share).max(free);
    (whole > most && goes_on).then_some(whole)
}

/// The median of the slopes between all pairs; values are one step apart.
fn slope(values: &[f64]) -> f64 {
    let pairs = values.iter().enumerate().flat_map(|(at, before)| {
        let behind = values[at + 1..].iter().zip(1..);
        behind.map(move |(after, steps)| (after - before) / f64::from(steps))
    });
    let mut slopes: Vec<f64> = pairs.collect();
    slopes.sort_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).copied().unwrap_or(0.0)
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = |bytes: Option<f64>| match bytes {
            Some(bytes) => format!("{:.1} MiB", bytes / f64::from(1 << 20)),
            None => "? MiB".to_owned(),
        };
        let count = |count: Option<f64>| count.map_or("?".to_owned(), |count| count.to_string());
        write!(
            f,
            "{}, {} sockets, {} pipe ends, {} files, {} slots, {} tasks, {} accounted; master {}, {} descriptors",
            mebibytes(self.memory),
            count(self.of(Metric::Sockets)),
            count(self.of(Metric::Pipes)),
            count(self.of(Metric::Files)),
            self.slots,
            self.tasks,
            mebibytes(Some(self.accounted)),
            mebibytes(self.master_memory),
            count(self.master_descriptors),
        )
    }
}

/// Proportional set size in bytes.
fn memory(pid: u64) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kibibytes: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(sockets: f64, memory: f64) -> Sample {
        Sample {
            generations: 1,
            descriptors: Some(Descriptors {
                sockets,
                ..Descriptors::default()
            }),
            memory: Some(memory),
            ..Sample::default()
        }
    }

    #[test]
    fn what_is_granted_is_no_excess() {
        let base = sample(20.0, 10e6);
        assert_eq!(sample(22.0, 29e6).excess(&base), Vec::<String>::new());
        let excess = sample(23.0, 31e6).excess(&base);
        assert_eq!(excess.len(), 2, "{excess:?}");
        assert_eq!(excess[0], "23 sockets, 20 at first");
    }

    #[test]
    fn steady_growth_is_a_trend_and_settling_is_none() {
        let mebibytes = |values: &[f64]| -> Vec<f64> {
            values
                .iter()
                .map(|value| value * f64::from(1 << 20))
                .collect()
        };
        let (share, free) = TREND;
        let grows = |values: &[f64]| growth(&mebibytes(values), share, free).is_some();
        assert!(grows(&[20.0, 22.0, 24.1, 25.9, 28.0]));
        assert!(!grows(&[20.0, 25.0, 27.0, 27.5, 27.4, 27.6]), "it settles");
        assert!(!grows(&[20.0, 20.2, 19.9, 20.1, 20.3]));
        assert!(!grows(&[20.0, 30.0, 40.0]), "too few to say");
    }

    #[test]
    fn a_trend_is_told_by_what_grows() {
        let samples: Vec<Sample> = (0..6)
            .map(|n| sample(20.0 + 3.0 * f64::from(n), 10e6))
            .collect();
        assert_eq!(
            trends(&samples),
            ["sockets grow with every load, by 15 so far"]
        );
    }
}
