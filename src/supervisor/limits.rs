//! How many connections a core may hold, from what the kernel and the configuration allow.

use crate::runtime::buf::fixed::FIXED_BYTES;
use crate::runtime::memory::Available;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are kept for the process itself: standard streams, logs, signals, helpers.
const DESCRIPTORS_PROCESS: u64 = 24;

/// Descriptors that are kept for each core: ring or epoll, wake, what helpers open for it.
const DESCRIPTORS_CORE: u64 = 8;

/// Memory that a connection takes at least: its task, its ops, its place in the tables. What it takes
/// beyond that while it is busy is accounted when it takes it (`runtime::budget`).
const CONNECTION_BYTES: u64 = 512;

/// Most connections of one core, so that the slots of its engine suffice for several ops on each.
const CORE_CONNECTIONS_MAX: u64 = 1 << 19;

/// Most files that a core keeps open.
const FILES_MAX: u64 = 4096;

/// Most fixed buffers of a core.
const FIXED_MAX: u64 = 32;

/// Fewer connections than this are worth a warning when nobody asked for so few.
const FEW: usize = 1000;

/// Lifts the soft limit of open descriptors to the hard limit, and gives what holds now; `None` is no
/// limit. A failure changes nothing: the limit that holds is respected anyway.
pub(super) fn raise_descriptors() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current == limit.maximum || setrlimit(Resource::Nofile, raised).is_err() {
        return limit.current;
    }
    limit.maximum
}

/// Bytes of memory that a process may use, and why so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryLimit {
    /// Bytes.
    pub(super) bytes: u64,
    /// Where the number comes from, in words.
    pub(super) source: &'static str,
}

impl MemoryLimit {
    /// What is configured, or else three quarters of what there is: the rest is for what the kernel holds
    /// on behalf of the process (sockets, pages of files), which its group is charged with, too. Several
    /// processes share it.
    pub(super) fn of(configured: Option<u64>, processes: usize, available: Available) -> Self {
        let (bytes, source) = match (configured, available) {
            (Some(bytes), _) => (bytes, "memory_limit"),
            (None, Available::Group(bytes)) => {
                (bytes / 4 * 3, "three quarters of the control group's limit")
            }
            (None, Available::Machine(bytes)) => {
                (bytes / 4 * 3, "three quarters of the machine's memory")
            }
        };
        Self {
            bytes: bytes / processes.max(1) as u64,
            source,
        }
    }
}

/// What limits the connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Means {
    /// Cores, at least 1.
    pub(super) cores: usize,
    /// Listening sockets.
    pub(super) listeners: usize,
    /// Descriptors that the process may open; `None` for any number.
    pub(super) descriptors: Option<u64>,
    /// Bytes of memory for connections; `None` for any number.
    pub(super) memory: Option<u64>,
    /// Most connections as configured.
    pub(super) max_conns: Option<usize>,
}

/// What sets the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// The size of the engine's tables.
    Engine,
    /// RLIMIT_NOFILE.
    Descriptors,
    /// `memory_limit`.
    Memory,
    /// `max_conns`.
    Configured,
}

/// The connections that each core may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// For each core, at least 1.
    pub(super) connections_per_core: usize,
    /// Why not more.
    pub(super) bound: Bound,
    /// Files that each core may keep open for later, at least 1.
    pub(super) files_per_core: usize,
}

impl Budget {
    /// Divides what there is among the cores.
    ///
    /// A quarter of the free descriptors is left to the files that are being served, so that a full
    /// server can still open one. Each core has its own share, so a process whose clients all land on
    /// one core holds fewer than `max_conns`, never more (but for one connection a core).
    pub(super) fn of(means: Means) -> Self {
        let cores = means.cores.max(1) as u64;
        let kept = DESCRIPTORS_PROCESS + DESCRIPTORS_CORE * cores + means.listeners as u64;
        let free = means.descriptors.map(|all| all.saturating_sub(kept));
        let files = free.map_or(FILES_MAX, |free| (free / 4 / cores).clamp(1, FILES_MAX));
        let descriptors = free.map(|free| free - free / 4);
        let memory = means.memory.map(|bytes| bytes / CONNECTION_BYTES);
        let configured = means.max_conns.map(|count| count as u64);
        let (total, bound) = [
            (configured, Bound::Configured),
            (descriptors, Bound::Descriptors),
            (memory, Bound::Memory),
        ]
        .into_iter()
        .filter_map(|(total, bound)| total.map(|total| (total, bound)))
        .fold(
            (CORE_CONNECTIONS_MAX * cores, Bound::Engine),
            |least, other| if other.0 < least.0 { other } else { least },
        );
        Self {
            connections_per_core: (total / cores).max(1) as usize,
            bound,
            files_per_core: files as usize,
        }
    }

    /// What to tell the administrator, when connections will be refused sooner than expected.
    pub(super) fn warning(&self, cores: usize) -> Option<String> {
        let total = self.connections_per_core * cores;
        let mend = match self.bound {
            Bound::Descriptors => "raise RLIMIT_NOFILE, for example LimitNOFILE=65536",
            Bound::Memory => "raise memory_limit",
            Bound::Configured | Bound::Engine => return None,
        };
        (total < FEW).then(|| format!("at most {total} connections can be open; {mend}"))
    }
}

/// How many fixed buffers of 1 MiB a core may have: 32, and at most a sixteenth of what `memory_limit`
/// leaves for each core. Fewer than 2 aren't worth having.
pub(super) fn fixed_per_core(memory: Option<u64>, cores: usize) -> u16 {
    let share = memory.map_or(FIXED_MAX, |bytes| {
        bytes / 16 / (FIXED_BYTES as u64) / cores.max(1) as u64
    });
    match share.min(FIXED_MAX) {
        0 | 1 => 0,
        count => count as u16,
    }
}

/// Whether fixed buffers may be registered, which counts against the memory lock limit (`None` for none).
/// All processes of the user share it, and the rings of the next generation have to find room in it: so
/// only where all buffers together take no more than a quarter.
pub(super) fn may_register(memlock: Option<u64>, cores: usize, fixed: u16) -> bool {
    let all = cores as u64 * u64::from(fixed) * FIXED_BYTES as u64;
    memlock.is_none_or(|limit| all <= limit / 4)
}

/// How many connections a process with this limit of descriptors (`None` for any number) may hold on
/// all of its cores together, when nothing else limits them.
pub fn connections_for(descriptors: Option<u64>, cores: usize) -> usize {
    let cores = cores.max(1);
    let means = Means {
        cores,
        listeners: 1,
        descriptors,
        memory: None,
        max_conns: None,
    };
    Budget::of(means).connections_per_core * cores
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEANS: Means = Means {
        cores: 2,
        listeners: 4,
        descriptors: None,
        memory: None,
        max_conns: None,
    };

    fn budget(descriptors: Option<u64>, memory: Option<u64>, max_conns: Option<usize>) -> Budget {
        Budget::of(Means {
            descriptors,
            memory,
            max_conns,
            ..MEANS
        })
    }

    #[test]
    fn the_smallest_limit_counts_and_is_divided_among_the_cores() {
        for (descriptors, memory, max_conns, each, bound) in [
            (None, None, None, 1 << 19, Bound::Engine),
            (Some(1100), None, None, 396, Bound::Descriptors),
            (Some(1100), Some(512 << 10), None, 396, Bound::Descriptors),
            (Some(100_000), Some(512 << 10), None, 512, Bound::Memory),
            (Some(1100), Some(512 << 10), Some(7), 3, Bound::Configured),
        ] {
            let budget = budget(descriptors, memory, max_conns);
            assert_eq!((budget.connections_per_core, budget.bound), (each, bound));
        }
    }

    #[test]
    fn memory_is_what_is_configured_or_three_quarters_of_what_there_is() {
        let (group, machine) = (Available::Group(4000), Available::Machine(8000));
        for (configured, processes, available, bytes, source) in [
            (Some(1000), 1, group, 1000, "memory_limit"),
            (Some(1000), 4, machine, 250, "memory_limit"),
            (
                None,
                1,
                group,
                3000,
                "three quarters of the control group's limit",
            ),
            (
                None,
                2,
                machine,
                3000,
                "three quarters of the machine's memory",
            ),
        ] {
            let limit = MemoryLimit::of(configured, processes, available);
            assert_eq!((limit.bytes, limit.source), (bytes, source));
        }
    }

    #[test]
    fn fixed_buffers_are_a_small_part_of_the_memory() {
        for (memory, cores, count) in [
            (None, 64, 32),
            (Some(2 << 30), 2, 32),
            (Some(256 << 20), 2, 8),
            (Some(64 << 20), 2, 2),
            (Some(32 << 20), 2, 0),
            (Some(0), 0, 0),
        ] {
            assert_eq!(fixed_per_core(memory, cores), count, "{memory:?}");
        }
        assert!(may_register(None, 64, 32) && may_register(Some(256 << 20), 2, 32));
        assert!(
            !may_register(Some(8 << 20), 1, 32),
            "room for rings is left"
        );
    }

    #[test]
    fn descriptors_alone_say_how_many_connections() {
        assert_eq!(connections_for(Some(1100), 2), 794);
        assert_eq!(connections_for(None, 2), 1 << 20);
        assert_eq!(connections_for(Some(0), 0), 1);
    }

    #[test]
    fn files_have_their_share_of_the_descriptors() {
        assert_eq!(budget(None, None, None).files_per_core, 4096);
        assert_eq!(budget(Some(1100), None, None).files_per_core, 132);
        assert_eq!(budget(Some(3), None, None).files_per_core, 1);
    }

    #[test]
    fn even_without_anything_left_a_core_may_hold_one() {
        assert_eq!(budget(Some(3), None, None).connections_per_core, 1);
    }

    #[test]
    fn only_a_limit_that_nobody_asked_for_is_warned_of() {
        let warning = budget(Some(1100), None, None).warning(2).unwrap();
        assert!(warning.contains("792") && warning.contains("LimitNOFILE"));
        assert_eq!(budget(None, None, Some(2)).warning(2), None);
        assert_eq!(budget(Some(100_000), None, None).warning(2), None);
    }
}
