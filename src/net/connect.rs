//! Connecting to a peer, within a bounded time, and saying whose fault it is when that fails.
//!
//! It knows one address: which one to take, and what to do when it can't be had, is decided above.
//! Nothing has been sent when a connect fails, so another address may always be tried.

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;

use rustix::io::Errno;

use crate::runtime::address::Address;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::op::Op;

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens there (`ECONNREFUSED`): the server is down, or the port is wrong.
    Refused,
    /// There is no way to the address, a router or this host says (`EHOSTUNREACH`, `ENETUNREACH` …).
    Unreachable(Errno),
    /// Nothing came back in time: the server is overloaded, or a firewall drops what we send.
    TimedOut,
    /// The server broke the connection while it was made (`ECONNRESET` and others).
    Broken(Errno),
    /// The backlog of a unix socket was full for the whole time: the server doesn't accept.
    BacklogFull,
    /// There is no socket at this path (`ENOENT`, `ENOTDIR`): the server isn't started, or the path is
    /// wrong.
    NoSuchPath,
    /// Forbidden (`EACCES`, `EPERM`): by the mode of the unix socket or of a directory above it, or by a
    /// local firewall.
    Forbidden(Errno),
    /// This process, or this system, has no descriptor left (`EMFILE`, `ENFILE`).
    NoDescriptors,
    /// This system has no memory, or this core no slot, for another connection.
    NoResources,
    /// Every local port is in use for this peer (`EADDRNOTAVAIL`).
    NoLocalAddress,
    /// The local address to connect from is none of this host's (`EADDRNOTAVAIL` from bind(2)).
    ForeignSource(IpAddr),
    /// Not an address that this system can connect to from there.
    BadAddress(Errno),
}

/// On whose side the cause of a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// On the peer's, or on the way to it: this counts against its health.
    Peer,
    /// On ours: another peer won't be had either.
    Ours,
}

impl ConnectError {
    /// Whose fault it is.
    pub fn fault(self) -> Fault {
        match self {
            Self::Refused
            | Self::Unreachable(_)
            | Self::TimedOut
            | Self::Broken(_)
            | Self::BacklogFull
            | Self::NoSuchPath => Fault::Peer,
            Self::Forbidden(_)
            | Self::NoDescriptors
            | Self::NoResources
            | Self::NoLocalAddress
            | Self::ForeignSource(_)
            | Self::BadAddress(_) => Fault::Ours,
        }
    }
}

impl From<Errno> for ConnectError {
    /// What connect(2), socket(2) and bind(2) answer.
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::CONNREFUSED => Self::Refused,
            Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::HOSTDOWN | Errno::NETDOWN => {
                Self::Unreachable(errno)
            }
            Errno::TIMEDOUT => Self::TimedOut,
            Errno::NOENT | Errno::NOTDIR => Self::NoSuchPath,
            Errno::ACCESS | Errno::PERM => Self::Forbidden(errno),
            Errno::MFILE | Errno::NFILE => Self::NoDescriptors,
            Errno::NOMEM | Errno::NOBUFS | Errno::AGAIN => Self::NoResources,
            Errno::ADDRNOTAVAIL | Errno::ADDRINUSE => Self::NoLocalAddress,
            Errno::AFNOSUPPORT
            | Errno::INVAL
            | Errno::NAMETOOLONG
            | Errno::PROTOTYPE
            | Errno::LOOP => Self::BadAddress(errno),
            other => Self::Broken(other),
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused: nobody listens there"),
            Self::Unreachable(errno) => write!(f, "unreachable: {errno}"),
            Self::TimedOut => f.write_str("no answer within the connect timeout"),
            Self::Broken(errno) => write!(f, "broken while connecting: {errno}"),
            Self::BacklogFull => {
                f.write_str("the listen queue of the unix socket is full: its server doesn't accept")
            }
            Self::NoSuchPath => f.write_str("no unix socket at this path: is its server started?"),
            Self::Forbidden(errno) => write!(
                f,
                "forbidden ({errno}): check the mode of the socket and its directories, or the firewall"
            ),
            Self::NoDescriptors => {
                f.write_str("no file descriptors left: raise the limit (LimitNOFILE, fs.file-max)")
            }
            Self::NoResources => f.write_str("no memory for another connection"),
            Self::NoLocalAddress => f.write_str(
                "no local address or port: widen net.ipv4.ip_local_port_range, or keep connections alive",
            ),
            Self::ForeignSource(source) => write!(
                f,
                "{source} is not an address of this host: check `source` of the upstream, or add it to an interface"
            ),
            Self::BadAddress(errno) => write!(f, "not an address to connect to: {errno}"),
        }
    }
}

impl std::error::Error for ConnectError {}

/// First pause before a unix socket with a full backlog is asked again; it doubles each time.
const BACKLOG_PAUSE: Duration = Duration::from_millis(1);

/// Longest such pause.
const BACKLOG_PAUSE_MAX: Duration = Duration::from_millis(50);

/// A connected, non-blocking socket to `to`, within `timeout`. Dropping the future cancels the connect;
/// its socket is closed when the kernel has let go of it.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(core: &Core, to: &Address, timeout: Duration) -> Result<Fd, ConnectError> {
    connect_from(core, to, None, timeout).await
}

/// The same, from a local address of the same family; ignored for unix sockets.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_from(
    core: &Core,
    to: &Address,
    from: Option<IpAddr>,
    timeout: Duration,
) -> Result<Fd, ConnectError> {
    let encoded = Box::new(to.encode()?);
    let socket = core.socket(to, from).map_err(|errno| match (errno, from) {
        (Errno::ADDRNOTAVAIL, Some(from)) => ConnectError::ForeignSource(from),
        _ => errno.into(),
    })?;
    let deadline = core.now() + timeout;
    let mut timer = Timer::new(core);
    let mut pause = BACKLOG_PAUSE;
    let mut late = ConnectError::TimedOut;
    loop {
        let mut connecting = core.once(Op::Connect {
            socket: socket.clone(),
            address: encoded.clone(),
        });
        timer.set(deadline);
        let mut context = Context::from_waker(Waker::noop());
        let ended = timer
            .bound(|| Pin::new(&mut connecting).poll(&mut context))
            .await;
        match (ended.map(|ended| ended.result), to) {
            (None, _) => return Err(late),
            (Some(Ok(_)), _) => return Ok(socket),
            (Some(Err(Errno::AGAIN)), Address::Unix(_)) => {
                late = ConnectError::BacklogFull;
                if core.now() + pause >= deadline {
                    return Err(late);
                }
                timer.set(core.now() + pause);
                timer.expired().await;
                pause = (pause * 2).min(BACKLOG_PAUSE_MAX);
            }
            (Some(Err(errno)), _) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests;
