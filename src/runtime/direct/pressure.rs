//! Whether a file that is read through the page cache would push another one out of it.
//!
//! Sampled by a helper thread while cold files are asked for, every few seconds; a core knows the last
//! answer.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

/// What was seen of memory at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemorySample {
    /// Of the machine.
    pub total: u64,
    /// Of the machine, used for nothing at all: the page cache is not counted.
    pub free: u64,
    /// Of the control group: what it uses, its page cache included, and where it begins to evict;
    /// `None` without such a limit.
    pub group: Option<(u64, u64)>,
}

impl MemorySample {
    /// Reads /proc/meminfo (proc(5)); `None` where that isn't what this is.
    pub fn of_machine(meminfo: &str) -> Option<Self> {
        let bytes = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            let number = line.trim().strip_suffix("kB")?.trim();
            number.parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(Self {
            total: bytes("MemTotal:")?,
            free: bytes("MemFree:")?,
            group: None,
        })
    }

    /// Adds what `memory.current`, `memory.high` and `memory.max` of a control group say (cgroup v2).
    #[must_use]
    pub fn with_group(self, current: &str, high: &str, max: &str) -> Self {
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let limit = [high, max].into_iter().filter_map(number).min();
        Self {
            group: number(current).zip(limit),
            ..self
        }
    }

    /// Whether what is read next makes the kernel evict: less is free than it keeps free anyway, with a
    /// margin for what is read until the next sample.
    pub fn is_high(&self) -> bool {
        let machine = self.free
            < (self.total / 32)
                .clamp(64 << 20, 1 << 30)
                .min(self.total / 4);
        let group = self.group.is_some_and(|(current, limit)| {
            limit.saturating_sub(current) < (limit / 16).clamp(4 << 20, 256 << 20)
        });
        machine || group
    }
}

/// Where memory is sampled from: opened while that may still be done, and read from then on, by helper
/// threads. What isn't there is left out; without /proc memory is never found short.
#[derive(Debug, Default)]
pub struct MemoryFiles {
    machine: Option<OwnedFd>,
    /// `memory.current`, `memory.high` and `memory.max`.
    group: [Option<OwnedFd>; 3],
}

impl MemoryFiles {
    /// Opens them: /proc/meminfo, and those of the control group of this process (cgroup v2).
    pub fn open() -> Self {
        let open = |path: &str| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).ok()
        };
        let of_group = open("/proc/self/cgroup").map(|file| read(&file));
        let group = of_group.as_deref().and_then(group_path);
        let files = ["memory.current", "memory.high", "memory.max"];
        Self {
            machine: open("/proc/meminfo"),
            group: files.map(|name| open(&format!("/sys/fs/cgroup{}/{name}", group?))),
        }
    }

    /// How it is now. For a helper thread: the kernel sums up over all CPUs.
    pub fn sample(&self) -> Option<MemorySample> {
        let machine = MemorySample::of_machine(&read(self.machine.as_ref()?))?;
        let [current, high, max] = self
            .group
            .each_ref()
            .map(|file| file.as_ref().map(read).unwrap_or_default());
        Some(machine.with_group(&current, &high, &max))
    }
}

/// The path of the control group in what /proc/self/cgroup says (cgroups(7)); none for the root, which
/// has no limits.
fn group_path(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    (path.len() > 1).then_some(path)
}

/// The beginning of a file that the kernel makes.
fn read(file: &OwnedFd) -> String {
    let mut bytes = [0; 4096];
    let read = rustix::io::pread(file, &mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn meminfo_is_read_and_what_is_no_meminfo_is_not() {
        let text = "MemTotal:       24683620 kB\nMemFree:        15826112 kB\nBuffers: 1 kB\n";
        let sample = MemorySample::of_machine(text).unwrap();
        assert_eq!(
            (sample.total, sample.free),
            (24_683_620 << 10, 15_826_112 << 10)
        );
        for wrong in ["", "MemTotal: 5 kB\n", "MemTotal: 5\nMemFree: 3\n"] {
            assert_eq!(MemorySample::of_machine(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_machine_with_memory_that_nobody_uses_isnt_short_of_it() {
        let machine = |free| MemorySample {
            total: 24 * GIB,
            free,
            group: None,
        };
        assert!(!machine(15 * GIB).is_high() && !machine(GIB).is_high());
        assert!(machine(GIB / 2).is_high());
        let small = MemorySample {
            total: 128 << 20,
            free: 100 << 20,
            group: None,
        };
        assert!(!small.is_high());
    }

    #[test]
    fn this_machine_can_be_asked() {
        let sample = MemoryFiles::open().sample().unwrap();
        assert!(sample.total > sample.free && sample.free > 0);
    }

    #[test]
    fn the_group_is_found_and_the_root_is_none() {
        let text = "12:cpu:/x\n0::/system.slice/web.service\n";
        assert_eq!(group_path(text), Some("/system.slice/web.service"));
        assert_eq!(group_path("0::/\n"), None);
        assert_eq!(group_path("1:memory:/x\n"), None);
    }

    #[test]
    fn the_nearer_limit_of_the_group_counts() {
        let free = MemorySample {
            total: 24 * GIB,
            free: 15 * GIB,
            group: None,
        };
        for (current, high, max, short) in [
            ("1000000000\n", "max\n", "max\n", false),
            ("1000000000\n", "max\n", "4294967296\n", false),
            ("4290000000\n", "max\n", "4294967296\n", true),
            ("1000000000\n", "1001000000\n", "4294967296\n", true),
            ("", "1\n", "1\n", false),
        ] {
            assert_eq!(free.with_group(current, high, max).is_high(), short);
        }
    }
}
