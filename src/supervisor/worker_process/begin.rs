//! How a worker begins: its channel, the first words of its master, and what it gives up.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::config::model::Model;
use crate::supervisor::bind::Part;
use crate::supervisor::channel::Channel;
use crate::supervisor::messages::{Failed, FromWorker, Next, SocketId, Start, ToWorker};
use crate::supervisor::sandbox::{Report, State};
use crate::supervisor::swap::Serving;
use crate::supervisor::{privileges, refusal};

/// Moves the channel away from the standard input, which becomes empty.
pub(super) fn take_channel() -> io::Result<Channel> {
    let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let channel = Channel::of(socket)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(channel)
}

/// The sockets by number, each with which one of its address it is.
pub(super) type SocketTable = BTreeMap<SocketId, (Arc<OwnedFd>, Option<Part>)>;

/// Adds sockets that came with these numbers.
pub(super) fn keep(
    sockets: &mut SocketTable,
    ids: Vec<(SocketId, Option<Part>)>,
    descriptors: Vec<OwnedFd>,
) {
    let came = ids.into_iter().zip(descriptors);
    sockets.extend(came.map(|((id, part), socket)| (id, (Arc::new(socket), part))));
}

/// Everything up to the start.
pub(super) fn first_messages(channel: &Channel) -> Option<(Start, SocketTable, Vec<OwnedFd>)> {
    let mut sockets = SocketTable::new();
    loop {
        match channel.receive() {
            Ok(None) => wait(&mut [PollFd::new(channel, PollFlags::IN)], None),
            Ok(Some((ToWorker::Sockets(ids), descriptors))) => {
                keep(&mut sockets, ids, descriptors);
            }
            Ok(Some((ToWorker::Start(start), descriptors))) => {
                return Some((*start, sockets, descriptors));
            }
            Ok(Some((ToWorker::Stop | ToWorker::Drain { .. }, _))) => return None,
            Ok(Some(_)) => {}
            Err(error) => {
                let text = format!("error: the worker can't understand its master: {error}\n");
                let permanent = true;
                let _ = channel.send(&FromWorker::Failed(Failed { permanent, text }), &[]);
                return None;
            }
        }
    }
}

/// Becomes who the master said, for good.
pub(super) fn drop_privileges(start: &Start) -> Result<Report, Failed> {
    privileges::drop_to(start.identity.as_ref()).map_err(|error| {
        let who = start.identity_name();
        let help = "start as root, or as that user without `user` in the configuration";
        failed(true, &format!("can't become {who}: {error}"), help)
    })?;
    Ok(Report {
        user: privileges::Identity::current().user,
        no_new_privs: true,
        files: State::Off,
        rings: State::Off,
        calls: State::Off,
        refused: 0,
    })
}

fn readable(who: &str, roots: &[PathBuf]) -> Result<(), String> {
    let unreadable = privileges::unreadable(roots);
    if unreadable.is_empty() {
        return Ok(());
    }
    let lines = unreadable.iter().map(|(path, error)| {
        let path = path.display();
        let help = format!(
            "give it the right to (every directory above needs x), for example \
             `chmod -R a+rX {path}`; or set `user` in [server]"
        );
        let what = format!("{who} can't read the directory {path}: {error}");
        refusal::message(&what, None, &[help])
    });
    Err(lines.collect())
}

/// Says which of what a configuration names can't be used by this process, if anything.
pub(super) fn usable(who: &str, model: &Model) -> Result<(), String> {
    let roots = readable(who, &model.roots());
    let spills = writable(who, &model.spill_directories());
    let texts = [roots.err(), spills.err()];
    let text: String = texts.into_iter().flatten().collect();
    if text.is_empty() { Ok(()) } else { Err(text) }
}

fn writable(who: &str, directories: &[PathBuf]) -> Result<(), String> {
    let unwritable = privileges::unwritable(directories);
    let texts = unwritable.iter().map(|(path, error)| {
        let (what, help) = refusal::not_writable(who, path, error);
        refusal::message(&what, None, &[help])
    });
    let text: String = texts.collect();
    if text.is_empty() { Ok(()) } else { Err(text) }
}

/// The sockets that a configuration wants, with their numbers and places.
pub(super) fn listening(next: &Next, sockets: &SocketTable) -> Option<Vec<Serving>> {
    let listeners = next.listeners.iter();
    listeners
        .map(|(id, listener)| {
            let (socket, part) = sockets.get(id)?;
            Some(Serving {
                id: *id,
                listener: *listener,
                socket: Arc::clone(socket),
                part: *part,
            })
        })
        .collect()
}

/// Waits until one of these is ready, or for so long.
pub(super) fn wait(fds: &mut [PollFd<'_>], timeout: Option<Duration>) {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        // Out of memory for a moment: the caller looks for what there is and comes back.
        Err(errno) => tracing::error!(%errno, "waiting for the master failed"),
    }
}

/// Why a worker doesn't start, in whole lines.
pub(super) fn failed(permanent: bool, what: &str, help: &str) -> Failed {
    let text = refusal::message(what, None, &[help.to_owned()]);
    Failed { permanent, text }
}

impl Start {
    /// Who serves, for messages.
    pub(super) fn identity_name(&self) -> String {
        match &self.identity {
            Some(identity) => format!("the user {}", identity.user),
            None => "this user".to_owned(),
        }
    }
}
