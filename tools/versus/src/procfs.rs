//! What `/proc` says about processes and cores.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// Processor time used, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuTime {
    /// In user mode.
    pub user: f64,
    /// In the kernel, softirq work done in the process's context included.
    pub system: f64,
}

impl CpuTime {
    /// User and system time together.
    pub fn total(self) -> f64 {
        self.user + self.system
    }

    /// What was used since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            user: self.user - earlier.user,
            system: self.system - earlier.system,
        }
    }
}

/// User memory in bytes, shared pages divided among their users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Anonymous and shared memory: what the program allocated.
    pub allocated: u64,
    /// The whole proportional set, mapped files included.
    pub proportional: u64,
}

/// Time of one core, in clock ticks since boot.
#[derive(Clone, Copy, Debug, Default)]
pub struct CoreTime {
    idle: u64,
    total: u64,
}

impl CoreTime {
    /// The share (0 to 1) of the time since `earlier` in which the core was not idle. Waiting on
    /// io_uring is shown as iowait by some kernels; it counts as idle.
    pub fn busy_since(self, earlier: Self) -> f64 {
        let total = self.total.saturating_sub(earlier.total);
        let idle = self.idle.saturating_sub(earlier.idle);
        if total == 0 {
            return 0.0;
        }
        1.0 - idle as f64 / total as f64
    }
}

/// One process: its id and when it started, which together name it for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId {
    /// The process id.
    pub pid: u32,
    started: u64,
}

impl ProcessId {
    /// Whether that very process still runs (and no other under its id).
    pub fn runs(self) -> bool {
        stat(self.pid).is_ok_and(|stat| stat.started == self.started && stat.state != b'Z')
    }
}

/// The process and all that descend from it.
pub fn tree(root: u32) -> Vec<ProcessId> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(stat) = pid.and_then(|pid: u32| stat(pid).ok()) {
            all.push(stat);
        }
    }
    let mut found: Vec<ProcessId> = Vec::new();
    let mut level = vec![root];
    while !level.is_empty() {
        found.extend(
            all.iter()
                .filter(|one| level.contains(&one.pid))
                .map(Stat::id),
        );
        level = all
            .iter()
            .filter(|one| level.contains(&one.parent) && !found.contains(&one.id()))
            .map(|one| one.pid)
            .collect();
    }
    found
}

/// Processor time of these processes together, threads included.
///
/// # Errors
/// When one of them is gone.
pub fn cpu_time(pids: &[u32]) -> io::Result<CpuTime> {
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    let mut sum = CpuTime::default();
    for &pid in pids {
        let stat = stat(pid)?;
        sum.user += stat.user_ticks as f64 / ticks_per_second;
        sum.system += stat.system_ticks as f64 / ticks_per_second;
    }
    Ok(sum)
}

/// User memory of these processes together.
///
/// # Errors
/// When one of them is gone or is another user's.
pub fn memory(pids: &[u32]) -> io::Result<Memory> {
    let mut sum = Memory::default();
    for pid in pids {
        let one = parse_rollup(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?);
        sum.allocated += one.allocated;
        sum.proportional += one.proportional;
    }
    Ok(sum)
}

/// Time of one core so far.
///
/// # Errors
/// When there is no such core.
pub fn core_time(cpu: usize) -> io::Result<CoreTime> {
    parse_core(&fs::read_to_string("/proc/stat")?, cpu)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no CPU {cpu}")))
}

/// The model of the processor, as `/proc/cpuinfo` calls it.
pub fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.and_then(|rest| rest.split_once(':'));
    model
        .map_or("unknown processor", |(_, name)| name.trim())
        .to_owned()
}

/// The congestion control of new TCP connections (tcp(7)).
pub fn congestion_control() -> String {
    let text = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    text.map_or("unknown".to_owned(), |name| name.trim().to_owned())
}

/// What `/proc/PID/stat` says (proc_pid_stat(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    pid: u32,
    state: u8,
    parent: u32,
    user_ticks: u64,
    system_ticks: u64,
    started: u64,
}

impl Stat {
    fn id(&self) -> ProcessId {
        ProcessId {
            pid: self.pid,
            started: self.started,
        }
    }
}

fn stat(pid: u32) -> io::Result<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected /proc/PID/stat"))
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The program's name stands in brackets and may hold spaces and brackets itself.
    let (start, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        pid: start.split_once(' ')?.0.parse().ok()?,
        state: *fields.first()?.as_bytes().first()?,
        parent: u32::try_from(number(4)?).ok()?,
        user_ticks: number(14)?,
        system_ticks: number(15)?,
        started: number(22)?,
    })
}

fn parse_rollup(text: &str) -> Memory {
    let kibibytes = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name));
        let number = rest.and_then(|rest| rest.split_ascii_whitespace().next());
        number
            .and_then(|number| number.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let swapped = kibibytes("SwapPss:");
    Memory {
        allocated: 1024 * (kibibytes("Pss_Anon:") + kibibytes("Pss_Shmem:") + swapped),
        proportional: 1024 * (kibibytes("Pss:") + swapped),
    }
}

fn parse_core(text: &str, cpu: usize) -> Option<CoreTime> {
    let name = format!("cpu{cpu} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name))?;
    // user nice system idle iowait irq softirq steal; guest time is inside user already.
    let fields: Vec<u64> = line
        .split_ascii_whitespace()
        .take(8)
        .map_while(|field| field.parse().ok())
        .collect();
    Some(CoreTime {
        idle: fields.get(3)? + fields.get(4)?,
        total: fields.iter().sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_process_whose_name_is_hostile() {
        let text = "42 (a) R 7 (b) S 1 42 42 0 -1 4194560 1 2 3 4 150 250 5 6 20 0 1 0 9876 1 2";
        let stat = parse_stat(text).expect("a line of the kernel's");
        assert_eq!((stat.pid, stat.state, stat.parent), (42, b'S', 1));
        assert_eq!((stat.user_ticks, stat.system_ticks), (150, 250));
        assert_eq!(stat.started, 9876);
        assert_eq!(parse_stat("42 (cut"), None);
    }

    #[test]
    fn sums_what_the_program_allocated() {
        let text = "00400000-7fff [rollup]\nRss: 90 kB\nPss:     80 kB\nPss_Dirty: 70 kB\n\
                    Pss_Anon:   50 kB\nPss_File: 20 kB\nPss_Shmem:  10 kB\nSwapPss: 4 kB\n";
        let memory = parse_rollup(text);
        assert_eq!(memory.allocated, 64 * 1024);
        assert_eq!(memory.proportional, 84 * 1024);
    }

    #[test]
    fn a_core_that_waits_is_idle() {
        let read = |text: &str| parse_core(text, 1).expect("core 1");
        let before = read("cpu 9 9 9 9 9 9 9 9 9 9\ncpu1 10 0 10 100 100 0 0 0 0 0\n");
        let after = read("cpu1 20 0 20 140 130 0 10 0 5 0\ncpu10 0 0 0 0 0 0 0 0 0 0\n");
        assert!((after.busy_since(before) - 0.3).abs() < 1e-9);
        assert!(parse_core("cpu1 1 2 3 4 5 6 7 8", 0).is_none());
    }

    #[test]
    fn finds_itself_and_its_time() {
        let own = std::process::id();
        assert!(
            tree(own)
                .iter()
                .any(|process| process.pid == own && process.runs())
        );
        assert!(cpu_time(&[own]).is_ok() && memory(&[own]).is_ok());
    }
}
