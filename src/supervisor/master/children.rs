//! Worker processes as the master has them: started by exec, talked to over a channel, and noticed at
//! once when they end.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};

use super::machine::{GenerationId, WorkerId};
use crate::config::model::LogTarget;
use crate::supervisor::bind::Part;
use crate::supervisor::channel::{Channel, ChannelError, DESCRIPTORS_MAX};
use crate::supervisor::messages::{Ready, SocketId, ToWorker};

/// The hidden subcommand that a worker is started with.
pub const WORKER_COMMAND: &str = "worker";

/// Variables that are for the master alone.
pub(super) const OWN_VARIABLES: [&str; 7] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    super::upgrade::HANDOVER_VARIABLE,
];

/// One worker process.
pub(super) struct Child {
    /// Its number in the state machine.
    pub(super) worker: WorkerId,
    /// Its generation.
    pub(super) generation: GenerationId,
    /// Its process.
    pub(super) pid: Pid,
    pidfd: OwnedFd,
    /// The way to it.
    pub(super) channel: Channel,
    /// Nothing more comes from it.
    pub(super) silent: bool,
    /// The sockets that it has been given and not been told to give up.
    pub(super) sockets: BTreeSet<SocketId>,
    /// Where the sockets that it has ever had listen, for the status.
    pub(super) addresses: BTreeMap<SocketId, String>,
    /// Where it logs requests.
    pub(super) log: Option<LogTarget>,
    /// The configuration that it was given last.
    pub(super) config: u64,
    /// What it serves with, once it does.
    pub(super) ready: Option<Ready>,
}

impl Child {
    /// Starts the program behind `image` as a worker.
    ///
    /// # Errors
    /// From fork and exec, among them EAGAIN at the limit of processes.
    pub(super) fn start(
        image: BorrowedFd<'_>,
        worker: WorkerId,
        generation: GenerationId,
        config: u64,
    ) -> io::Result<Self> {
        let (ours, theirs) = Channel::pair()?;
        // The link leads to the very file that this process runs, or has opened, whatever stands at
        // its path by now. It is resolved in the child, which has the descriptor until the exec.
        let mut command = Command::new(format!("/proc/self/fd/{}", image.as_raw_fd()));
        command
            .arg0("beltway:")
            .arg(WORKER_COMMAND)
            .stdin(Stdio::from(theirs.into_socket()))
            // Ctrl-C at a terminal is for the master, which drains.
            .process_group(0);
        for variable in OWN_VARIABLES {
            command.env_remove(variable);
        }
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        Self::of(pid, ours, worker, generation, config)
    }

    /// A worker that runs already: a child of this process, also of the program that was here before.
    ///
    /// # Errors
    /// From pidfd_open(2), ESRCH among them.
    pub(super) fn of(
        pid: Pid,
        channel: Channel,
        worker: WorkerId,
        generation: GenerationId,
        config: u64,
    ) -> io::Result<Self> {
        Ok(Self {
            worker,
            generation,
            pid,
            pidfd: pidfd_open(pid, PidfdFlags::empty())?,
            channel,
            silent: false,
            sockets: BTreeSet::new(),
            addresses: BTreeMap::new(),
            log: None,
            config,
            ready: None,
        })
    }

    /// Readable when the process has ended.
    pub(super) fn end(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How the process ended, if it has; it is reaped then.
    pub(super) fn ended(&self) -> Option<String> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.end()), options) {
            Ok(None) => None,
            Ok(Some(status)) => Some(cause(&status)),
            // Somebody else has reaped it.
            Err(error) => Some(format!("it is gone: {error}")),
        }
    }

    /// Ends the process at once.
    pub(super) fn kill(&self) {
        // One that has ended needs no signal.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Gives it the sockets that it doesn't have yet.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub(super) fn give<'s>(
        &mut self,
        sockets: impl Iterator<Item = ((SocketId, Option<Part>), BorrowedFd<'s>)>,
    ) -> Result<(), ChannelError> {
        let new: Vec<_> = sockets
            .filter(|((id, _), _)| !self.sockets.contains(id))
            .collect();
        for part in new.chunks(DESCRIPTORS_MAX) {
            let (ids, descriptors): (Vec<_>, Vec<_>) = part.iter().copied().unzip();
            self.channel
                .send(&ToWorker::Sockets(ids.clone()), &descriptors)?;
            self.sockets.extend(ids.into_iter().map(|(id, _)| id));
        }
        Ok(())
    }
}

/// How a process ended, in words.
fn cause(status: &WaitIdStatus) -> String {
    if let Some(signal) = status.terminating_signal() {
        let core = if status.dumped() {
            " (core dumped)"
        } else {
            ""
        };
        return match name_of(signal) {
            Some(name) => format!("killed by {name}{core}"),
            None => format!("killed by signal {signal}{core}"),
        };
    }
    match status.exit_status() {
        Some(code) => format!("exit code {code}"),
        None => "it ended".to_owned(),
    }
}

fn name_of(signal: i32) -> Option<&'static str> {
    [
        (
            libc::SIGKILL,
            "SIGKILL (for example by the kernel, out of memory)",
        ),
        (libc::SIGSEGV, "SIGSEGV"),
        (libc::SIGBUS, "SIGBUS"),
        (libc::SIGABRT, "SIGABRT"),
        (libc::SIGILL, "SIGILL"),
        (libc::SIGFPE, "SIGFPE"),
        (libc::SIGTRAP, "SIGTRAP"),
        (libc::SIGSYS, "SIGSYS"),
        (libc::SIGTERM, "SIGTERM"),
        (libc::SIGINT, "SIGINT"),
        (libc::SIGXCPU, "SIGXCPU"),
    ]
    .into_iter()
    .find_map(|(number, name)| (number == signal).then_some(name))
}
