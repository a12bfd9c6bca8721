//! How much memory there is for this process: what its control groups allow, and what the machine has.

use std::fs;
use std::path::Path;

use super::affinity::{GroupVersion, smallest};

/// Bytes that this process may use before the kernel ends it, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Available {
    /// A control group, its own or one above.
    Group(u64),
    /// The machine: all of its memory.
    Machine(u64),
}

impl Available {
    /// Bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Group(bytes) | Self::Machine(bytes) => bytes,
        }
    }
}

/// Asks the system. To be called before the process is confined.
pub fn available() -> Available {
    let system = rustix::system::sysinfo();
    let machine = (system.totalram as u64).saturating_mul(u64::from(system.mem_unit));
    match group_limit() {
        // Version 1 says "no limit" by a number that no machine has.
        Some(group) if group < machine => Available::Group(group),
        _ => Available::Machine(machine),
    }
}

fn group_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    limit_of(&groups, &mounts, |file| fs::read_to_string(file).ok())
}

/// The limit that these files tell of: the hard one, beyond which the kernel kills, and the soft one
/// (`memory.high`), beyond which it slows down.
fn limit_of(groups: &str, mounts: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    smallest(groups, mounts, "memory", |version, directory| {
        let files: &[&str] = match version {
            GroupVersion::V2 => &["memory.max", "memory.high"],
            GroupVersion::V1 => &["memory.limit_in_bytes"],
        };
        let limits = files.iter().filter_map(|file| read(&directory.join(file)));
        limits.filter_map(|text| text.trim().parse().ok()).min()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Option<u64> {
        limit_of(groups, mounts, |file| {
            let found = files.iter().find(|(name, _)| Path::new(name) == file);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn the_smallest_limit_of_a_group_and_those_above_counts() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let files = [
            ("/sys/fs/cgroup/a/memory.max", "3000\n"),
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/b/memory.high", "2000\n"),
            ("/sys/fs/cgroup/c/memory.max", "1\n"),
        ];
        assert_eq!(limit("0::/a/b\n", mounts, &files), Some(2000));
        assert_eq!(limit("0::/a\n", mounts, &files), Some(3000));
        assert_eq!(limit("0::/\n", mounts, &files), None);
    }

    #[test]
    fn the_older_hierarchy_has_a_controller_of_its_own() {
        let mounts = "33 25 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      34 25 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let files = [
            ("/sys/fs/cgroup/memory/app/memory.limit_in_bytes", "5000\n"),
            ("/sys/fs/cgroup/cpu/app/memory.limit_in_bytes", "1\n"),
        ];
        let groups = "5:memory:/app\n4:cpu:/app\n";
        assert_eq!(limit(groups, mounts, &files), Some(5000));
    }

    #[test]
    fn there_is_some_memory() {
        assert!(available().bytes() > 1 << 20);
    }
}
