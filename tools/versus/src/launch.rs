//! Starts programs pinned to a core, and ends them.
//!
//! `versus launch` is the step between fork and exec as a program: it binds itself to the core, raises
//! its limit of descriptors, asks to be signalled when its parent dies, and becomes the program, which
//! knows nothing of it all.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, getrlimit, kill_process,
    set_parent_process_death_signal, setpgid, setrlimit,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::interrupt;
use crate::procfs::{self, ProcessId};

/// Descriptors that a launched program may have, where this user may raise the limit.
const DESCRIPTORS: u64 = 65_536;
/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(10);
/// Longest time from start to the first connection.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// How long a server may take to stop before it is told again, and then killed.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// What `versus launch` is told.
#[derive(Args, Clone, Debug)]
pub struct LaunchOptions {
    /// A core to be bound to
    #[arg(long = "cpu", required = true)]
    cpus: Vec<usize>,
    /// The process to die with
    #[arg(long)]
    parent: i32,
    /// What it is told when the parent died
    #[arg(long, value_enum)]
    orphaned: Orphaned,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// The signal that follows the parent's death.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Orphaned {
    /// SIGTERM: it has processes of its own to end.
    Term,
    /// SIGKILL.
    Kill,
}

/// Becomes the program. Returns only when that failed.
pub fn launch(options: &LaunchOptions) -> io::Error {
    match prepare(options) {
        Ok(()) => Command::new(&options.command[0])
            .args(&options.command[1..])
            .exec(),
        Err(error) => error,
    }
}

fn prepare(options: &LaunchOptions) -> io::Result<()> {
    let signal = match options.orphaned {
        Orphaned::Term => Signal::TERM,
        Orphaned::Kill => Signal::KILL,
    };
    set_parent_process_death_signal(Some(signal))?;
    if getppid().map(Pid::as_raw_pid) != Some(options.parent) {
        return Err(io::Error::other("the parent is gone"));
    }
    if matches!(options.orphaned, Orphaned::Term) {
        // A server of a group of its own: Apache ends by a signal to its whole group.
        setpgid(None, None)?;
    }
    bind_to(&options.cpus)?;
    raise_descriptors();
    Ok(())
}

/// Binds this thread, and what it starts, to these cores.
///
/// # Errors
/// When this process may not use them, in words.
fn bind_to(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::Error::other(format!("no CPU {cpu}")));
        }
        set.set(cpu);
    }
    sched_setaffinity(None, &set)
        .map_err(|error| io::Error::other(format!("this process may not run on {cpus:?}: {error}")))
}

/// The cores that this process may use.
///
/// # Errors
/// Those of sched_getaffinity(2).
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect())
}

/// Raises the limit of descriptors as far as this user may, and says how many there may be.
pub fn raise_descriptors() -> u64 {
    let old = getrlimit(Resource::Nofile);
    let allowed = old.maximum.unwrap_or(DESCRIPTORS);
    for limit in [DESCRIPTORS.max(allowed), allowed] {
        let new = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        if setrlimit(Resource::Nofile, new).is_ok() {
            return limit;
        }
    }
    old.current.unwrap_or(allowed)
}

/// A command that runs `command` through `versus launch`.
fn launcher(cpus: &[usize], orphaned: Orphaned, command: &[OsString]) -> Command {
    let mut launcher = Command::new("/proc/self/exe");
    launcher
        .arg("launch")
        .args(cpus.iter().map(|cpu| format!("--cpu={cpu}")))
        .arg(format!("--parent={}", std::process::id()))
        .arg(match orphaned {
            Orphaned::Term => "--orphaned=term",
            Orphaned::Kill => "--orphaned=kill",
        })
        .arg("--")
        .args(command)
        .stdin(Stdio::null());
    launcher
}

/// A server that runs, until it is dropped.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
    /// The server and its workers, as last seen.
    seen: Vec<ProcessId>,
    log: PathBuf,
}

impl Server {
    /// Starts `command` on `cpus` and waits until it takes connections at `address`. Its output goes to
    /// the file `log`.
    ///
    /// # Errors
    /// When it can't be started, ends, or isn't ready in time; with the end of its output.
    pub fn start(
        command: &[OsString],
        cpus: &[usize],
        address: SocketAddr,
        log: PathBuf,
    ) -> io::Result<Self> {
        let output = File::create(&log)?;
        let child = launcher(cpus, Orphaned::Term, command)
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        let mut server = Self {
            address,
            child,
            seen: Vec::new(),
            log,
        };
        let deadline = Instant::now() + READY_LIMIT;
        while TcpStream::connect_timeout(&address, STEP).is_err() {
            interrupt::check()?;
            if let Some(status) = server.child.try_wait()? {
                return Err(server.failure(&format!("ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(server.failure("took no connection in time"));
            }
            thread::sleep(STEP);
        }
        server.pids();
        Ok(server)
    }

    /// Ids of the server and its workers.
    pub fn pids(&mut self) -> Vec<u32> {
        let now = procfs::tree(self.child.id());
        for process in &now {
            if !self.seen.contains(process) {
                self.seen.push(*process);
            }
        }
        now.iter().map(|process| process.pid).collect()
    }

    fn failure(&self, what: &str) -> io::Error {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.trim_end().lines().collect();
        let end = lines[lines.len().saturating_sub(8)..].join("\n    ");
        io::Error::other(format!("{what}; its output ends\n    {end}"))
    }

    /// Waits at most `limit` for the server's end, and says whether it came.
    fn ended_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(STEP);
        }
        true
    }
}

impl Drop for Server {
    /// Asks twice, as a drain is ended by a second SIGTERM, then kills; and kills workers that were
    /// left behind, if they are still the ones that were seen.
    fn drop(&mut self) {
        self.pids();
        for _ in 0..2 {
            if matches!(self.child.try_wait(), Ok(None)) {
                signal(self.child.id(), Signal::TERM);
            }
            if self.ended_within(STOP_LIMIT) {
                break;
            }
        }
        // Both fail only when the child is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for process in self.seen.iter().filter(|process| process.runs()) {
            signal(process.pid, Signal::KILL);
        }
    }
}

/// A process that is gone needs no signal, so a failure is none.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Runs a program on `cpu` to its end, at most `limit`, and returns its output. Its error output is
/// ours.
///
/// # Errors
/// When it can't be started, fails or isn't done in time.
pub fn run(command: &[OsString], cpu: usize, limit: Duration) -> io::Result<Vec<u8>> {
    let mut child = launcher(&[cpu], Orphaned::Kill, command)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = match child.stdout.take() {
        Some(pipe) => read_within(pipe, limit),
        None => Ok(Vec::new()),
    };
    if output.is_err() {
        // It fails only when the child has ended by itself.
        let _ = child.kill();
    }
    let status = child.wait()?;
    let output = output?;
    if !status.success() {
        return Err(io::Error::other(format!("it ended with {status}")));
    }
    Ok(output)
}

/// Reads to the end, sleeping in between: nothing may run beside a measurement.
fn read_within(mut pipe: ChildStdout, limit: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + limit;
    let mut output = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        interrupt::check()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "it was not done in time",
            ));
        }
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&left)) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        match pipe.read(&mut chunk)? {
            0 => return Ok(output),
            len => output.extend_from_slice(&chunk[..len]),
        }
    }
}
