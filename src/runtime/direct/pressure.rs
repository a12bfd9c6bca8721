//! Whether a file that is read through the page cache would push another one out of it.
//!
//! Sampled by a helper thread while cold files are asked for: every few seconds, and when as much was
//! asked for as there was room for.

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

    /// How many bytes can be read through the page cache until the kernel evicts others for them: what is
    /// free beyond that which it keeps free anyway, less a margin for what others do until the next sample.
    pub fn room(&self) -> u64 {
        let kept = (self.total / 32).clamp(64 << 20, 1 << 30);
        let machine = self.free.saturating_sub(kept.min(self.total / 4));
        let group = self.group.map_or(u64::MAX, |(current, limit)| {
            let kept = (limit / 16).clamp(4 << 20, 256 << 20);
            limit.saturating_sub(current).saturating_sub(kept)
        });
        machine.min(group)
    }
}

/// Where memory is sampled from: opened while that may still be done, and read from then on, by helper
/// threads. What isn't there is left out; without /proc memory is never found short.
#[derive(Debug, Default)]
pub struct MemoryFiles {
    machine: Option<OwnedFd>,
    /// What is used, and the limits: `memory.current`, `memory.high` and `memory.max`, or what version 1 has
    /// for them.
    group: [Option<OwnedFd>; 3],
}

/// The files of a control group, version 2 and version 1, which has one limit.
const FILES: [[&str; 3]; 2] = [
    ["memory.current", "memory.high", "memory.max"],
    [
        "memory.usage_in_bytes",
        "memory.limit_in_bytes",
        "memory.limit_in_bytes",
    ],
];

impl MemoryFiles {
    /// Opens them: /proc/meminfo, and those of the control group of this process (cgroup v2).
    pub fn open() -> Self {
        let open = |path: &str| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).ok()
        };
        let of_group = open("/proc/self/cgroup").map(|file| read(&file));
        let group = of_group.as_deref().and_then(group_directory);
        let files = |(directory, version): (String, usize)| {
            FILES[version].map(|name| open(&format!("{directory}/{name}")))
        };
        Self {
            machine: open("/proc/meminfo"),
            group: group.map(files).unwrap_or_default(),
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

/// The directory that counts the memory of the control group in what /proc/self/cgroup says (cgroups(7)),
/// and which of [`FILES`] it has; none for a root, which has no limits.
fn group_directory(text: &str) -> Option<(String, usize)> {
    let path = |of: &str| {
        let mut fields = text.lines().map(|line| line.splitn(3, ':').skip(1));
        fields.find_map(|mut line| {
            let names_it = line.next()?.split(',').any(|name| name == of);
            line.next().filter(|path| names_it && path.len() > 1)
        })
    };
    // Where version 1 counts memory, version 2 doesn't.
    let first = path("memory").map(|path| (format!("/sys/fs/cgroup/memory{path}"), 1));
    first.or_else(|| path("").map(|path| (format!("/sys/fs/cgroup{path}"), 0)))
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
    fn what_nobody_uses_is_room_but_for_what_the_kernel_keeps() {
        let machine = |free| MemorySample {
            total: 24 * GIB,
            free,
            group: None,
        };
        assert_eq!(machine(15 * GIB).room(), 15 * GIB - 24 * GIB / 32);
        assert_eq!(machine(GIB / 2).room(), 0);
        let small = MemorySample {
            total: 128 << 20,
            free: 100 << 20,
            group: None,
        };
        assert_eq!(small.room(), 68 << 20);
    }

    #[test]
    fn this_machine_can_be_asked() {
        let sample = MemoryFiles::open().sample().unwrap();
        assert!(sample.total > sample.free && sample.free > 0);
    }

    #[test]
    fn the_group_is_found_and_a_root_is_none() {
        for (text, found) in [
            (
                "12:cpu:/x\n0::/system.slice/web.service\n",
                Some(("/sys/fs/cgroup/system.slice/web.service", 0)),
            ),
            (
                "5:cpu,memory:/web:1\n0::/x\n",
                Some(("/sys/fs/cgroup/memory/web:1", 1)),
            ),
            ("4:memory:/\n0::/x\n", Some(("/sys/fs/cgroup/x", 0))),
            ("0::/\n", None),
            ("1:cpu:/x\n", None),
            ("nonsense", None),
        ] {
            let found = found.map(|(path, version)| (path.to_owned(), version));
            assert_eq!(group_directory(text), found, "{text:?}");
        }
    }

    #[test]
    fn the_nearer_limit_of_the_group_counts() {
        let free = MemorySample {
            total: 24 * GIB,
            free: 15 * GIB,
            group: None,
        };
        let kept = 256 << 20;
        for (current, high, max, room) in [
            ("1000000000\n", "max\n", "max\n", free.room()),
            (
                "1000000000\n",
                "max\n",
                "4294967296\n",
                4 * GIB - 1_000_000_000 - kept,
            ),
            ("4290000000\n", "max\n", "4294967296\n", 0),
            ("1000000000\n", "1001000000\n", "4294967296\n", 0),
            // Version 1 writes no limit as a large one.
            (
                "1000\n",
                "9223372036854771712",
                "9223372036854771712",
                free.room(),
            ),
            ("", "1\n", "1\n", free.room()),
        ] {
            assert_eq!(free.with_group(current, high, max).room(), room);
        }
    }
}
