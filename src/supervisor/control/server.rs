//! The master's half of the control socket. Nothing here waits: the master's loop polls the
//! descriptors and calls [`ControlServer::ready`], which gives the requests that have come; each is
//! answered by [`ControlServer::answer`], now or much later.
//!
//! Bounds: [`CONNECTIONS_MAX`] connections, one more is told so and closed; [`REQUEST_TIME`] to send a
//! request, [`REPLY_TIME`] to take the answer, then the connection is closed. An answer itself may take
//! as long as it takes. A caller that goes away is forgotten, what it asked for goes on.

use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};
use serde::{Deserialize, Serialize};

use super::protocol::{self, REQUEST_BYTES_MAX, Reply, Request, RequestId};
use super::socket_file::{self, Bound};

/// Most connections at a time.
pub const CONNECTIONS_MAX: usize = 32;

/// How long a caller may take to send its request.
pub const REQUEST_TIME: Duration = Duration::from_secs(10);

/// How long a caller may take to read its answer.
pub const REPLY_TIME: Duration = Duration::from_secs(10);

/// How long no connection is accepted after the process had no descriptor left for one.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Most connections accepted in one call, so that the master's loop gets its turn.
const ACCEPTS_PER_CALL: usize = 64;

/// The listening socket and the connections of those who asked something.
#[derive(Debug)]
pub struct ControlServer {
    bound: Bound,
    connections: Vec<Connection>,
    next_id: u64,
    /// The user that this process runs as.
    own_uid: u32,
    /// No connection is accepted before this.
    paused_until: Option<Instant>,
}

/// A caller as it goes through an upgrade, beside the descriptor of its connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// Its request.
    pub id: RequestId,
    stage: Stage,
}

/// What a new program needs to go on answering.
#[derive(Debug)]
pub struct Exported {
    /// The listening socket, closed on exec as long as nobody changes that.
    pub listener: OwnedFd,
    /// Where it is.
    pub path: PathBuf,
    /// The callers and their connections, also closed on exec.
    pub callers: Vec<(Caller, OwnedFd)>,
    /// The next request gets at least this number.
    pub next_id: u64,
}

/// How far a connection is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    /// The request comes in; these bytes of it are here, without an end of line.
    Receiving(Vec<u8>),
    /// Somebody works on the answer.
    Waiting,
    /// The answer goes out; these bytes are left.
    Sending(Vec<u8>),
}

#[derive(Debug)]
struct Connection {
    caller: Caller,
    socket: OwnedFd,
    /// When the stage must be over; none while waiting.
    deadline: Option<Instant>,
}

/// What became of a connection.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Stays,
    Asks(Request),
    Ends,
}

impl ControlServer {
    /// Listens at `path`, mode 0600 from the first moment. The socket file of a server that has ended
    /// is replaced; it is removed when this is dropped.
    ///
    /// # Errors
    /// `AddrInUse` when a server answers there, naming its process; `AlreadyExists` when something
    /// else than a socket is in the way; others from bind(2) and listen(2).
    pub fn bind(path: &Path) -> io::Result<Self> {
        Ok(Self::on(socket_file::bind(path)?, 1))
    }

    fn on(bound: Bound, next_id: u64) -> Self {
        Self {
            bound,
            connections: Vec::new(),
            next_id,
            own_uid: rustix::process::geteuid().as_raw(),
            paused_until: None,
        }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.bound.file.path()
    }

    /// What to poll, and for what. Also poll until [`deadline`](Self::deadline) at most.
    pub fn fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let listener = self
            .paused_until
            .is_none()
            .then(|| self.bound.socket.as_fd());
        let listener = listener.map(|listener| (listener, PollFlags::IN));
        listener
            .into_iter()
            .chain(self.connections.iter().map(Connection::interest))
    }

    /// When [`ready`](Self::ready) must be called even if nothing has happened.
    pub fn deadline(&self) -> Option<Instant> {
        let connections = self.connections.iter().filter_map(|it| it.deadline);
        connections.chain(self.paused_until).min()
    }

    /// Accepts, reads, writes and times out whatever there is, and gives the requests that are whole.
    /// Each of them wants one [`answer`](Self::answer). Never waits.
    pub fn ready(&mut self, now: Instant) -> Vec<(RequestId, Request)> {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
        }
        if self.paused_until.is_none() {
            self.accept(now);
        }
        self.forget_those_who_left();
        let mut requests = Vec::new();
        self.connections
            .retain_mut(|connection| match connection.advance(now) {
                Step::Stays => true,
                Step::Ends => false,
                Step::Asks(request) => {
                    requests.push((connection.caller.id, request));
                    true
                }
            });
        requests
    }

    /// Answers a request. A caller that has gone gets nothing, and an answer given twice is given once.
    pub fn answer(&mut self, id: RequestId, reply: &Reply, now: Instant) {
        let asked = |it: &Connection| it.caller.id == id && it.caller.stage == Stage::Waiting;
        let Some(index) = self.connections.iter().position(asked) else {
            return;
        };
        let connection = &mut self.connections[index];
        connection.reply(reply, now);
        if connection.advance(now) == Step::Ends {
            self.connections.swap_remove(index);
        }
    }

    /// Whether somebody still waits for the answer to this request.
    pub fn is_waiting(&self, id: RequestId) -> bool {
        let is_it = |it: &Connection| it.caller.id == id && it.caller.stage == Stage::Waiting;
        self.connections.iter().any(is_it)
    }

    /// Duplicates of all descriptors, and what belongs to them, for the program that an upgrade puts
    /// into the place of this one. This server goes on as if nothing had happened when the exec fails:
    /// then the duplicates are dropped.
    ///
    /// # Errors
    /// EMFILE: no descriptors left.
    pub fn export(&self) -> io::Result<Exported> {
        let callers: io::Result<Vec<_>> = self
            .connections
            .iter()
            .map(|it| Ok((it.caller.clone(), it.socket.try_clone()?)))
            .collect();
        Ok(Exported {
            listener: self.bound.socket.try_clone()?,
            path: self.path().to_owned(),
            callers: callers?,
            next_id: self.next_id,
        })
    }

    /// Goes on with what another program exported. Callers have their whole time again; those beyond
    /// [`CONNECTIONS_MAX`] are dropped.
    ///
    /// # Errors
    /// When the socket file isn't there any more: then nobody could find this server.
    pub fn import(exported: Exported, now: Instant) -> io::Result<Self> {
        let Exported {
            listener,
            path,
            callers,
            next_id,
        } = exported;
        for socket in callers.iter().map(|(_, socket)| socket).chain([&listener]) {
            rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(socket, true)?;
        }
        let mut server = Self::on(Bound::adopt(listener, &path)?, next_id);
        for (caller, socket) in callers.into_iter().take(CONNECTIONS_MAX) {
            server.next_id = server.next_id.max(caller.id.0.saturating_add(1));
            let deadline = match caller.stage {
                Stage::Receiving(_) => Some(now + REQUEST_TIME),
                Stage::Sending(_) => Some(now + REPLY_TIME),
                Stage::Waiting => None,
            };
            server.connections.push(Connection {
                caller,
                socket,
                deadline,
            });
        }
        Ok(server)
    }

    fn accept(&mut self, now: Instant) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        for _ in 0..ACCEPTS_PER_CALL {
            match accept_with(&self.bound.socket, flags) {
                Ok(socket) => self.admit(socket, now),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::WOULDBLOCK) => return,
                Err(error) => {
                    tracing::warn!(%error, "no control connection can be accepted for a second");
                    self.paused_until = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Takes a connection in, or sends it away with the reason.
    fn admit(&mut self, socket: OwnedFd, now: Instant) {
        let uid = rustix::net::sockopt::socket_peercred(&socket).map(|peer| peer.uid.as_raw());
        let refusal = match uid {
            Ok(uid) if !protocol::may_command(uid, self.own_uid) => Some(format!(
                "error: user {uid} may not command this server; only root and user {} may\n",
                self.own_uid
            )),
            Err(error) => Some(format!("error: who you are can't be found out: {error}\n")),
            Ok(_) if self.connections.len() >= CONNECTIONS_MAX => Some(format!(
                "error: {CONNECTIONS_MAX} control connections are open already; try again later\n"
            )),
            Ok(_) => None,
        };
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let mut connection = Connection {
            caller: Caller {
                id,
                stage: Stage::Receiving(Vec::new()),
            },
            socket,
            deadline: Some(now + REQUEST_TIME),
        };
        match refusal {
            None => self.connections.push(connection),
            Some(text) => {
                tracing::warn!(uid = uid.ok(), "control: {}", text.trim_end());
                // It fits into an empty socket; whoever doesn't take it then doesn't get it.
                connection.reply(&Reply::failed(1, text), now);
                connection.advance(now);
            }
        }
    }

    /// Drops the callers that hung up while somebody works on their answer. Others are noticed by
    /// reading and writing.
    fn forget_those_who_left(&mut self) {
        let mut polled: Vec<PollFd<'_>> = self
            .connections
            .iter()
            .map(|it| PollFd::from_borrowed_fd(it.socket.as_fd(), PollFlags::empty()))
            .collect();
        if polled.is_empty() || poll(&mut polled, Some(&Timespec::default())).is_err() {
            return;
        }
        let gone = PollFlags::HUP | PollFlags::ERR;
        let left: Vec<bool> = polled
            .iter()
            .map(|it| it.revents().intersects(gone))
            .collect();
        let mut left = left.into_iter();
        self.connections
            .retain(|it| !(left.next().unwrap_or(false) && it.caller.stage == Stage::Waiting));
    }
}

impl Connection {
    fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let flags = match self.caller.stage {
            Stage::Receiving(_) => PollFlags::IN,
            // The end of the caller (POLLHUP) is told without being asked for.
            Stage::Waiting => PollFlags::empty(),
            Stage::Sending(_) => PollFlags::OUT,
        };
        (self.socket.as_fd(), flags)
    }

    fn reply(&mut self, reply: &Reply, now: Instant) {
        self.caller.stage = Stage::Sending(reply.to_line());
        self.deadline = Some(now + REPLY_TIME);
    }

    /// Goes as far as it can without waiting.
    fn advance(&mut self, now: Instant) -> Step {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            if !matches!(self.caller.stage, Stage::Receiving(_)) {
                return Step::Ends;
            }
            let text = format!(
                "error: no request came within {} s\n",
                REQUEST_TIME.as_secs()
            );
            self.reply(&Reply::failed(1, text), now);
            self.send();
            return Step::Ends;
        }
        let step = match self.caller.stage {
            Stage::Receiving(_) => self.receive(now),
            Stage::Waiting => return Step::Stays,
            Stage::Sending(_) => Step::Stays,
        };
        match self.caller.stage {
            Stage::Sending(_) if step == Step::Stays => self.send(),
            _ => step,
        }
    }

    /// Reads until the line is whole; a bad one turns into its refusal.
    fn receive(&mut self, now: Instant) -> Step {
        let Stage::Receiving(received) = &mut self.caller.stage else {
            return Step::Stays;
        };
        let mut buffer = [0; 4096];
        loop {
            let part = match recv(&self.socket, &mut buffer, RecvFlags::empty()) {
                Ok((0, _)) => return Step::Ends,
                Ok((length, _)) => &buffer[..length],
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => return Step::Stays,
                Err(_) => return Step::Ends,
            };
            let end = part.iter().position(|byte| *byte == b'\n');
            received.extend_from_slice(&part[..end.unwrap_or(part.len())]);
            if received.len() >= REQUEST_BYTES_MAX {
                let most = REQUEST_BYTES_MAX >> 10;
                let text = format!("error: a request has at most {most} KiB\n");
                self.reply(&Reply::failed(1, text), now);
                return Step::Stays;
            }
            if end.is_some() {
                return match Request::parse(&mem::take(received)) {
                    Ok(request) => {
                        self.caller.stage = Stage::Waiting;
                        self.deadline = None;
                        Step::Asks(request)
                    }
                    Err(refusal) => {
                        self.reply(&refusal, now);
                        Step::Stays
                    }
                };
            }
        }
    }

    fn send(&mut self) -> Step {
        let Stage::Sending(left) = &mut self.caller.stage else {
            return Step::Stays;
        };
        let mut sent = 0;
        let step = loop {
            // SIGPIPE would end the master.
            match send(&self.socket, &left[sent..], SendFlags::NOSIGNAL) {
                Ok(length) => sent += length,
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => break Step::Stays,
                Err(_) => break Step::Ends,
            }
            if sent == left.len() {
                break Step::Ends;
            }
        };
        left.drain(..sent);
        step
    }
}

#[cfg(test)]
mod tests;
