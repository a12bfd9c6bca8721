//! Which CPUs cores run on: how many cores there are, and what each is pinned to.
//!
//! What the process may use is smaller than what the machine has, twice over: the allowed set
//! (cpusets, taskset) says which CPUs, and a container's quota says how much of them. A core per
//! CPU beyond the quota only makes the kernel stop all of them together for the rest of a period.
//!
//! [`plan`] and the parsers are pure; [`Cpus::of_this_machine`] and [`pin`] touch the system.

mod topology;

use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};

use rustix::thread::CpuSet;

pub use self::topology::{Topology, parse_list};

/// The number of a CPU, as the kernel counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(pub usize);

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The number of workers that the user asked for; `None` leaves it to the machine.
    pub workers: Option<usize>,
    /// The user's word on pinning.
    pub pin: Option<bool>,
    /// Whether each core has a poller beside it, a thread of the kernel on a CPU of its own.
    pub pollers: bool,
}

/// The CPUs of this machine, as far as they are ours.
#[derive(Clone, Debug, Default)]
pub struct Cpus {
    /// Those that we may run on, lowest first.
    pub allowed: Vec<usize>,
    /// CPUs' worth of time that the control group allows; `None` without a limit.
    pub quota: Option<f64>,
    /// Which of them belong together.
    pub topology: Topology,
}

impl Cpus {
    /// Asks the machine. To be asked before any thread is pinned.
    pub fn of_this_machine() -> Self {
        let allowed = allowed_cpus();
        let topology = Topology::read(Path::new("/sys/devices/system"), &allowed);
        Self {
            quota: cpu_quota(),
            topology,
            allowed,
        }
    }
}

/// How many cores to start and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// One entry for each core, at least one; `None` is a core that the kernel may move.
    pub cores: Vec<Option<CpuId>>,
    /// The CPU of each core's poller, where pollers were asked for; else empty.
    pub pollers: Vec<CpuId>,
    /// Why, in words for the log.
    pub reason: String,
}

/// There are not enough CPUs for pollers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooFewCpus {
    /// What there is, in words.
    pub there: String,
    /// Threads that would do, at least 1; `None` where none do.
    pub workers_max: Option<usize>,
}

/// Decides how many cores to start and what to pin them to.
///
/// Without a number of workers there is one core for each allowed CPU, capped by the quota rounded
/// up. Without a word on pinning, cores are pinned when each has a CPU for itself and there is more
/// than one CPU. A quota below the allowed CPUs leaves them unpinned too: neighbours with the same
/// quota would all choose the same first CPUs while the others stand idle. With pinning asked for
/// and more cores than CPUs, cores share CPUs in turn. Which CPUs come first, [`Topology::order`]
/// says.
///
/// With pollers each core takes two CPUs, since a poller spins, and on a CPU that it shares it takes
/// the time of whom it polls for.
///
/// # Errors
/// With pollers, when there are fewer than two CPUs for each core.
pub fn plan(wanted: Wanted, cpus: &Cpus) -> Result<Plan, TooFewCpus> {
    let Cpus {
        allowed,
        quota,
        topology,
    } = cpus;
    let count_cpus = allowed.len().max(1);
    let quota_cpus = quota.map_or(count_cpus, |quota| {
        (quota.ceil() as usize).clamp(1, count_cpus)
    });
    if wanted.pollers {
        return with_pollers(wanted, cpus, quota_cpus);
    }
    let count = wanted.workers.unwrap_or(quota_cpus).max(1);
    let count_reason = match (wanted.workers, quota) {
        (Some(_), _) => "as asked for".to_owned(),
        (None, Some(quota)) if quota_cpus < count_cpus => {
            format!("the quota is {quota} of {}", plural(count_cpus, "CPU"))
        }
        (None, _) => format!("{} allowed", plural(count_cpus, "CPU")),
    };
    let (pinned, pin_reason) = match wanted.pin {
        _ if allowed.is_empty() => (false, ", unpinned: the allowed CPUs are unknown"),
        Some(true) => (true, ", pinned as asked for"),
        Some(false) => (false, ", unpinned as asked for"),
        None if count_cpus == 1 => (false, ", unpinned: there is one CPU"),
        None if count > count_cpus => (false, ", unpinned: more cores than CPUs"),
        None if quota_cpus < count_cpus => {
            (false, ", unpinned: the quota isn't bound to certain CPUs")
        }
        None => (true, ", pinned"),
    };
    let order = topology.order(allowed, count);
    let cores = (0..count)
        .map(|core| pinned.then(|| CpuId(order[core % order.len()])))
        .collect();
    Ok(Plan {
        cores,
        pollers: Vec::new(),
        reason: format!("{} ({count_reason}){pin_reason}", plural(count, "core")),
    })
}

fn with_pollers(wanted: Wanted, cpus: &Cpus, usable: usize) -> Result<Plan, TooFewCpus> {
    let workers_max = usable.min(cpus.allowed.len()) / 2;
    let count = wanted.workers.unwrap_or(workers_max);
    if count == 0 || count > workers_max {
        let there = match cpus.quota {
            _ if cpus.allowed.is_empty() => "which CPUs this process may use is unknown".to_owned(),
            Some(quota) if usable < cpus.allowed.len() => {
                format!("the control group allows the time of {quota} CPUs")
            }
            _ => format!("this process may use {}", plural(cpus.allowed.len(), "CPU")),
        };
        return Err(TooFewCpus {
            there,
            workers_max: (workers_max > 0).then_some(workers_max),
        });
    }
    let mut order = cpus.topology.order(&cpus.allowed, 2 * count).into_iter();
    let cores = order
        .by_ref()
        .take(count)
        .map(|it| Some(CpuId(it)))
        .collect();
    Ok(Plan {
        cores,
        pollers: order.take(count).map(CpuId).collect(),
        reason: format!("{}, pinned, each with a poller", plural(count, "core")),
    })
}

fn plural(count: usize, what: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {what}{ending}")
}

/// The CPUs that the calling thread may run on, lowest first. Empty when the kernel doesn't say,
/// as on a machine with more than 1024 CPUs. To be asked before any thread is pinned.
pub fn allowed_cpus() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else {
        return Vec::new();
    };
    (0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect()
}

/// A CPU that can't be pinned to: it is gone, or the process may not use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinError(pub CpuId);

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "can't pin to CPU {}: it isn't allowed or went away",
            self.0.0
        )
    }
}

impl std::error::Error for PinError {}

/// Pins the calling thread to a CPU.
///
/// # Errors
/// When the kernel refuses, for instance because the CPU was taken out of the cpuset meanwhile. The
/// thread runs on as before.
pub fn pin(cpu: CpuId) -> Result<(), PinError> {
    if core_affinity::set_for_current(core_affinity::CoreId { id: cpu.0 }) {
        Ok(())
    } else {
        Err(PinError(cpu))
    }
}

/// How many CPUs' worth of time the process may use, where a control group limits it: the smallest
/// limit among its group and the groups above. `None` without a limit.
pub fn cpu_quota() -> Option<f64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    quota_of(&groups, &mounts, |file| fs::read_to_string(file).ok())
}

/// The quota that these files tell of; `read` gives the content of a file, if there is one.
fn quota_of(groups: &str, mounts: &str, read: impl Fn(&Path) -> Option<String>) -> Option<f64> {
    smallest(groups, mounts, "cpu", |version, directory| match version {
        GroupVersion::V2 => read(&directory.join("cpu.max")).and_then(|text| parse_cpu_max(&text)),
        GroupVersion::V1 => {
            let quota = read(&directory.join("cpu.cfs_quota_us"));
            let period = read(&directory.join("cpu.cfs_period_us"));
            quota
                .zip(period)
                .and_then(|(quota, period)| parse_cfs(&quota, &period))
        }
    })
}

/// The smallest limit by a controller that `limit` finds in the directory of the process's group and of
/// those above, in each hierarchy that has the controller.
pub(super) fn smallest<T: PartialOrd>(
    groups: &str,
    mounts: &str,
    controller: &str,
    limit: impl Fn(GroupVersion, &Path) -> Option<T>,
) -> Option<T> {
    let mut smallest: Option<T> = None;
    let mounts = mounts.lines();
    for mount in mounts.filter_map(|line| parse_mount(line, controller)) {
        let Some(group) = groups
            .lines()
            .find_map(|line| parse_group(line, mount.version, controller))
        else {
            continue;
        };
        for directory in directories(&mount.directory, group) {
            let found = limit(mount.version, &directory);
            smallest = match (smallest, found) {
                (Some(a), Some(b)) => Some(if b < a { b } else { a }),
                (a, b) => a.or(b),
            };
        }
    }
    smallest
}

/// The two hierarchies of control groups, which may be mounted side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GroupVersion {
    /// A hierarchy with the controller of its own.
    V1,
    /// The unified hierarchy.
    V2,
}

/// Where a hierarchy that has the controller is mounted.
#[derive(Debug, PartialEq, Eq)]
struct GroupMount {
    version: GroupVersion,
    directory: PathBuf,
}

/// Reads a line of `/proc/self/mountinfo` (proc(5)): number, parent, device, root, mount point,
/// options, optional fields, `-`, type, source, super options.
fn parse_mount(line: &str, controller: &str) -> Option<GroupMount> {
    let (mount, kind) = line.split_once(" - ")?;
    let directory = PathBuf::from(unescape(mount.split(' ').nth(4)?));
    let mut kind = kind.split(' ');
    let version = match kind.next()? {
        "cgroup2" => GroupVersion::V2,
        "cgroup" if kind.nth(1)?.split(',').any(|option| option == controller) => GroupVersion::V1,
        _ => return None,
    };
    Some(GroupMount { version, directory })
}

/// Undoes the octal escapes (`\040` for a space) of mountinfo.
fn unescape(path: &str) -> String {
    let mut parts = path.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            Some(byte) if byte.is_ascii() => {
                plain.push(char::from(byte));
                plain.push_str(&part[3..]);
            }
            _ => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

/// The group in a line of `/proc/self/cgroup` (cgroups(7)), `number:controllers:path`, when the line
/// is about that version.
fn parse_group<'g>(line: &'g str, version: GroupVersion, controller: &str) -> Option<&'g str> {
    let mut parts = line.splitn(3, ':');
    let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let fits = match version {
        GroupVersion::V1 => controllers.split(',').any(|it| it == controller),
        GroupVersion::V2 => number == "0" && controllers.is_empty(),
    };
    fits.then_some(path)
}

/// The directory of a group and of every group above it, up to the mount point. A group outside of
/// what is mounted (`/../..`, in a container) has only the mount point.
fn directories(mount_point: &Path, group: &str) -> Vec<PathBuf> {
    let mut directories = vec![mount_point.to_owned()];
    let mut deepest = mount_point.to_owned();
    for component in Path::new(group).components() {
        match component {
            Component::RootDir => {}
            Component::Normal(name) => {
                deepest.push(name);
                directories.push(deepest.clone());
            }
            _ => return vec![mount_point.to_owned()],
        }
    }
    directories
}

/// Reads `cpu.max` of cgroup v2: quota or `max`, then the period, both in µs.
fn parse_cpu_max(text: &str) -> Option<f64> {
    let mut words = text.split_whitespace();
    ratio(words.next()?, words.next().unwrap_or("100000"))
}

/// Reads the two files of cgroup v1, both in µs; a quota of -1 is no limit.
fn parse_cfs(quota: &str, period: &str) -> Option<f64> {
    ratio(quota.trim(), period.trim())
}

fn ratio(quota: &str, period: &str) -> Option<f64> {
    let quota: u64 = quota.parse().ok()?;
    let period: u64 = period.parse().ok()?;
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const V2_MOUNT: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn plan(
        workers: Option<usize>,
        allowed: &[usize],
        quota: Option<f64>,
        pin: Option<bool>,
    ) -> Plan {
        let cpus = Cpus {
            allowed: allowed.to_vec(),
            quota,
            topology: Topology::default(),
        };
        let wanted = Wanted {
            workers,
            pin,
            pollers: false,
        };
        super::plan(wanted, &cpus).unwrap()
    }

    fn pinned(plan: &Plan) -> Vec<Option<usize>> {
        plan.cores.iter().map(|cpu| cpu.map(|cpu| cpu.0)).collect()
    }

    #[test]
    fn one_pinned_core_for_each_allowed_cpu() {
        let plan = plan(None, &[0, 2, 5], None, None);
        assert_eq!(pinned(&plan), [Some(0), Some(2), Some(5)]);
        assert_eq!(plan.reason, "3 cores (3 CPUs allowed), pinned");
    }

    #[test]
    fn the_quota_caps_what_is_chosen_but_not_what_is_asked_for() {
        for (quota, cores) in [(0.5, 1), (1.0, 1), (1.5, 2), (2.0, 2), (3.1, 4), (64.0, 4)] {
            let plan = plan(None, &[0, 1, 2, 3], Some(quota), None);
            assert_eq!(plan.cores.len(), cores, "{quota}");
            assert_eq!(plan.cores[0].is_some(), cores == 4, "{}", plan.reason);
        }
        assert_eq!(plan(Some(3), &[0, 1, 2, 3], Some(1.0), None).cores.len(), 3);
    }

    #[test]
    fn unpinned_with_one_cpu_or_more_cores_than_cpus() {
        assert_eq!(pinned(&plan(None, &[3], None, None)), [None]);
        assert_eq!(pinned(&plan(Some(3), &[0, 1], None, None)), [None; 3]);
        assert_eq!(pinned(&plan(Some(1), &[4, 6], None, None)), [Some(4)]);
    }

    #[test]
    fn the_user_has_the_last_word_on_pinning() {
        assert_eq!(pinned(&plan(None, &[0, 1], None, Some(false))), [None; 2]);
        assert_eq!(pinned(&plan(None, &[3], None, Some(true))), [Some(3)]);
        let shared = plan(Some(3), &[0, 1], None, Some(true));
        assert_eq!(pinned(&shared), [Some(0), Some(1), Some(0)]);
        assert_eq!(
            pinned(&plan(None, &[], None, Some(true))),
            [None],
            "nothing known"
        );
        assert_eq!(plan(Some(0), &[0, 1], None, None).cores.len(), 1);
    }

    #[test]
    fn pollers_take_a_cpu_for_each_core_or_are_refused() {
        let plan = |workers, allowed: &[usize], quota| {
            let cpus = Cpus {
                allowed: allowed.to_vec(),
                quota,
                topology: Topology::default(),
            };
            let wanted = Wanted {
                workers,
                pin: None,
                pollers: true,
            };
            super::plan(wanted, &cpus)
        };
        for (workers, cores, pollers) in [
            (None, vec![0, 2], vec![5, 6]),
            (Some(1), vec![0], vec![2]),
            (Some(2), vec![0, 2], vec![5, 6]),
        ] {
            let plan = plan(workers, &[0, 2, 5, 6], None).unwrap();
            let at: Vec<usize> = pinned(&plan).into_iter().flatten().collect();
            assert_eq!(at, cores);
            assert_eq!(
                plan.pollers.iter().map(|cpu| cpu.0).collect::<Vec<_>>(),
                pollers
            );
        }
        for (workers, allowed, quota, there, workers_max) in [
            (None, &[3][..], None, "may use 1 CPU", None),
            (Some(2), &[0, 1], None, "may use 2 CPUs", Some(1)),
            (Some(1), &[0, 1], Some(0.5), "the time of 0.5 CPUs", None),
            (None, &[], None, "unknown", None),
        ] {
            let error = plan(workers, allowed, quota).unwrap_err();
            assert!(error.there.contains(there), "{error:?}");
            assert_eq!(error.workers_max, workers_max, "{error:?}");
        }
    }

    #[test]
    fn cpu_max_and_cfs_quota() {
        for (text, quota) in [
            ("max 100000\n", None),
            ("150000 100000\n", Some(1.5)),
            ("50000 100000", Some(0.5)),
            ("200000", Some(2.0)),
            ("", None),
            ("0 100000", None),
            ("1 0", None),
            ("-5 100000", None),
            ("many 100000", None),
        ] {
            assert_eq!(parse_cpu_max(text), quota, "{text:?}");
        }
        assert_eq!(parse_cfs("-1\n", "100000\n"), None);
        assert_eq!(parse_cfs("250000\n", "100000\n"), Some(2.5));
    }

    fn quota(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Option<f64> {
        let files: HashMap<_, _> = files.iter().copied().collect();
        quota_of(groups, mounts, |file| {
            files
                .get(file.to_str().unwrap())
                .map(|text| (*text).to_owned())
        })
    }

    #[test]
    fn the_smallest_limit_among_a_group_and_those_above_counts() {
        let files = [
            ("/sys/fs/cgroup/a/cpu.max", "300000 100000"),
            ("/sys/fs/cgroup/a/b/cpu.max", "200000 100000"),
            ("/sys/fs/cgroup/a/b/c/cpu.max", "max 100000"),
            ("/sys/fs/cgroup/other/cpu.max", "100 100000"),
        ];
        assert_eq!(quota("0::/a/b/c\n", V2_MOUNT, &files), Some(2.0));
        assert_eq!(quota("0::/a\n", V2_MOUNT, &files), Some(3.0));
        assert_eq!(quota("0::/\n", V2_MOUNT, &files), None);
    }

    #[test]
    fn a_container_sees_its_own_limit_at_the_mount_point() {
        let files = [("/sys/fs/cgroup/cpu.max", "100000 100000")];
        assert_eq!(quota("0::/\n", V2_MOUNT, &files), Some(1.0));
        assert_eq!(quota("0::/../../x\n", V2_MOUNT, &files), Some(1.0));
        assert_eq!(
            quota("0::/system.slice/docker-1\n", V2_MOUNT, &files),
            Some(1.0)
        );
    }

    #[test]
    fn both_versions_side_by_side() {
        let groups = "4:cpu,cpuacct:/app\n3:cpuset:/\n0::/app\n";
        let mounts = "\
            33 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n\
            34 25 0:30 / /sys/fs/cgroup/cpuset rw shared:11 - cgroup cgroup rw,cpuset\n\
            35 25 0:31 / /sys/fs/cgroup/unified rw shared:12 - cgroup2 cgroup2 rw\n\
            36 25 0:32 / /proc rw - proc proc rw\n";
        let files = [
            (
                "/sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us",
                "150000\n",
            ),
            (
                "/sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us",
                "100000\n",
            ),
            ("/sys/fs/cgroup/cpuset/app/cpu.cfs_quota_us", "1\n"),
        ];
        assert_eq!(quota(groups, mounts, &files), Some(1.5));
    }

    #[test]
    fn what_is_malformed_is_no_limit() {
        assert_eq!(quota("", "", &[]), None);
        assert_eq!(quota("0:\nx", V2_MOUNT, &[]), None);
        assert_eq!(quota("0::/a", "1 2 - cgroup2\nnothing", &[]), None);
        assert_eq!(unescape("/a\\040b\\134c\\9"), "/a b\\c\\9");
        assert_eq!(unescape("/\\é"), "/\\é");
    }

    #[test]
    fn this_thread_has_a_cpu_and_can_be_pinned_to_it() {
        // A thread of its own, so that no other test runs pinned.
        std::thread::spawn(|| {
            let allowed = allowed_cpus();
            let last = *allowed.last().unwrap();
            pin(CpuId(last)).unwrap();
            assert_eq!(allowed_cpus(), [last]);
            assert_eq!(pin(CpuId(1023)), Err(PinError(CpuId(1023))));
        })
        .join()
        .unwrap();
        assert!(cpu_quota().is_none_or(|quota| quota > 0.0));
    }
}
