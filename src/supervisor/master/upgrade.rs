//! Binary upgrade: the new program takes the place of the master itself, with the same process id, the
//! same sockets and the same children.
//!
//! What the next master has to know goes through the exec in a sealed memory file, which names the
//! descriptors that stay open. The next master reads that before it looks at its arguments, so that no
//! change of the command line can leave workers without a master.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::configuration::Facts;
use super::machine::{GenerationId, Snapshot, WorkerId};
use super::words::Words;
use crate::config::model::{ListenAddr, LogTarget};
use crate::config::sources::Input;
use crate::net::tls::tickets::TicketKey;
use crate::supervisor::bind::{BoundAddr, Part};
use crate::supervisor::certificates::Replaced;
use crate::supervisor::channel::{blob, read_blob};
use crate::supervisor::control::protocol::{Request, RequestId};
use crate::supervisor::control::server::Caller;
use crate::supervisor::messages::{Ready, SocketId};
use crate::supervisor::sys_process;

/// The variable that has the number of the memory file's descriptor.
pub(super) const HANDOVER_VARIABLE: &str = "BELTWAY_HANDOVER";

/// The version of [`Handover`]. The check of the configuration with the new binary comes first, so a
/// binary that doesn't know this one is refused before anything is replaced.
pub(super) const VERSION: u16 = 6;

/// All that the next master has to know.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Handover {
    /// [`VERSION`].
    pub(super) version: u16,
    /// The version of the program that was here before, to tell it.
    pub(super) from: String,
    /// Where the state machine stands.
    pub(super) machine: Snapshot,
    /// Sockets that configurations use.
    pub(super) sockets: Vec<Socket>,
    /// The next number of a socket.
    pub(super) next_socket: SocketId,
    /// Sockets of the service manager that nobody has asked for.
    pub(super) spare: Vec<Spare>,
    /// Worker processes.
    pub(super) workers: Vec<Worker>,
    /// Configurations that workers serve.
    pub(super) configurations: Vec<Configuration>,
    /// The one in force.
    pub(super) in_force: Option<u64>,
    /// The next number of a configuration.
    pub(super) next_config: u64,
    /// The control socket.
    pub(super) control: Option<Control>,
    /// Questions that wait for workers, which are asked again.
    pub(super) questions: Vec<(RequestId, Request)>,
    /// What the administrator has said of servers.
    pub(super) words: Words,
    /// The keys of session tickets, the newest first.
    pub(super) ticket_keys: Vec<TicketKey>,
    /// What the configuration is read from.
    pub(super) input: Input,
    /// When the first master started, in seconds since 1970.
    pub(super) started_unix: u64,
    /// Where the program stands.
    pub(super) program: PathBuf,
}

/// A listening socket.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Socket {
    pub(super) id: SocketId,
    pub(super) key: ListenAddr,
    pub(super) address: BoundAddr,
    pub(super) fd: RawFd,
    pub(super) file: Option<PathBuf>,
    pub(super) inherited: bool,
    pub(super) dual_stack: bool,
    pub(super) part: Option<Part>,
}

/// A socket that the service manager has handed over for nobody.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Spare {
    pub(super) name: String,
    pub(super) address: BoundAddr,
    pub(super) fd: RawFd,
    pub(super) dual_stack: bool,
}

/// A worker process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Worker {
    pub(super) worker: WorkerId,
    pub(super) generation: GenerationId,
    pub(super) pid: i32,
    pub(super) channel: RawFd,
    pub(super) sockets: Vec<SocketId>,
    pub(super) addresses: Vec<(SocketId, String)>,
    pub(super) log: Option<LogTarget>,
    pub(super) config: u64,
    pub(super) ready: Option<Ready>,
}

/// A configuration.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Configuration {
    pub(super) id: u64,
    pub(super) facts: Facts,
    pub(super) bundle: RawFd,
    pub(super) replaced: Replaced,
    pub(super) sockets: Vec<(SocketId, usize)>,
    pub(super) log: Option<RawFd>,
}

/// The control socket and who waits for an answer there.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Control {
    pub(super) path: PathBuf,
    pub(super) listener: RawFd,
    pub(super) callers: Vec<(Caller, RawFd)>,
    pub(super) next_id: u64,
}

/// Descriptors that go through the exec; they close on exec again when this is dropped, because the
/// exec has failed.
#[derive(Debug, Default)]
pub(super) struct Kept<'f>(Vec<BorrowedFd<'f>>);

impl<'f> Kept<'f> {
    /// Keeps a descriptor open, and gives its number.
    ///
    /// # Errors
    /// From fcntl(2).
    pub(super) fn keep(&mut self, fd: BorrowedFd<'f>) -> io::Result<RawFd> {
        rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
        self.0.push(fd);
        Ok(fd.as_raw_fd())
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        for fd in &self.0 {
            // It was possible the other way round.
            let _ = rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
    }
}

/// Puts the program behind `image` in the place of this one. Returns only when that fails.
pub(super) fn replace(image: BorrowedFd<'_>, handover: &Handover, kept: Kept<'_>) -> io::Error {
    let content = match serde_json::to_vec(handover) {
        // It has keys in it.
        Ok(content) => Zeroizing::new(content),
        Err(error) => return error.into(),
    };
    let content = match blob("beltway-handover", &content) {
        Ok(content) => content,
        Err(error) => return error,
    };
    if let Err(errno) = rustix::io::fcntl_setfd(&content, FdFlags::empty()) {
        return errno.into();
    }
    let text = |bytes: Vec<u8>| CString::new(bytes).ok();
    let arguments: Vec<CString> = std::env::args_os()
        .filter_map(|argument| text(argument.into_vec()))
        .collect();
    let mut environment: Vec<CString> = std::env::vars_os()
        .filter(|(name, _)| {
            let ours = |own: &str| name.as_bytes() == own.as_bytes();
            !ours(HANDOVER_VARIABLE) && !name.as_bytes().starts_with(b"LISTEN_")
        })
        .filter_map(|(name, value)| text([name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect();
    environment.extend(text(
        format!("{HANDOVER_VARIABLE}={}", content.as_raw_fd()).into_bytes(),
    ));
    let error = sys_process::exec(image, &arguments, &environment);
    drop(kept);
    error
}

/// The handover, in a process that was put in the place of a master; `None` in any other.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn taken() -> Option<Result<Handover, String>> {
    let number = std::env::var(HANDOVER_VARIABLE).ok()?;
    Some(
        read(&number).map_err(|why| format!("the state of the master before can't be read: {why}")),
    )
}

fn read(number: &str) -> Result<Handover, String> {
    let number: RawFd = number.parse().map_err(|_| "no descriptor".to_owned())?;
    let content = adopt(number).map_err(|error| error.to_string())?;
    let content = read_blob(content.as_fd()).map_err(|error| error.to_string())?;
    let content = Zeroizing::new(content);
    let handover: Handover = serde_json::from_slice(&content).map_err(|error| error.to_string())?;
    if handover.version != VERSION {
        return Err(format!(
            "it has version {}, not {VERSION}",
            handover.version
        ));
    }
    Ok(handover)
}

/// A descriptor that the handover names, ours from now on.
///
/// # Errors
/// EBADF for a number that isn't open.
pub(super) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    let fd = sys_process::adopt(number)?;
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}
