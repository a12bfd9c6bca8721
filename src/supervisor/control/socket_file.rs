//! Makes the control socket so that at no moment anybody but its owner can use it, and never takes the
//! place of a server that lives.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::event::{Timespec, poll};
use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::net::socket::SocketFile;

/// Its owner alone may connect, which needs the right to write (unix(7)).
const MODE: Mode = Mode::from_raw_mode(0o600);

/// Connections that wait to be accepted; the kernel makes a caller wait beyond that.
const BACKLOG: i32 = 32;

/// How long another start in the same directory is waited for, in all and at a time.
const LOCK_ATTEMPTS: usize = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Longest path of a unix socket in bytes, without the byte that ends it (unix(7)).
const PATH_BYTES_MAX: usize = 107;

/// A listening socket and its file, which is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) socket: OwnedFd,
    pub(super) file: SocketFile,
}

impl Bound {
    /// A socket that listens at `path` already.
    pub(super) fn adopt(socket: OwnedFd, path: &Path) -> io::Result<Self> {
        let file = SocketFile::at(path)?;
        Ok(Self { socket, file })
    }
}

/// Listens at `path`: non-blocking, closed on exec, mode 0600.
pub(super) fn bind(path: &Path) -> io::Result<Bound> {
    if path.as_os_str().as_bytes().len() > PATH_BYTES_MAX {
        let text = format!(
            "the path of a unix socket has at most {PATH_BYTES_MAX} bytes, {} has more",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let _lock = lock(path)?;
    remove_stale(path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file gets the mode of the socket, less the umask (Linux, unix_bind_bsd). So no wider mode
    // ever exists, and the umask, which all threads share, stays as it is.
    rustix::fs::fchmod(&socket, MODE)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let file = SocketFile::at(path)?;
    // A umask may have taken the owner's own rights; nobody can connect before listen(2) anyway.
    rustix::fs::chmod(path, MODE)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(Bound { socket, file })
}

/// Locks the directory, until the descriptor is closed: of two servers that start together and find a
/// dead socket, the second must not remove the first one's.
fn lock(path: &Path) -> io::Result<OwnedFd> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, directory, flags, Mode::empty())?;
    let pause = Timespec::try_from(LOCK_PAUSE).map_err(io::Error::other)?;
    for _ in 0..LOCK_ATTEMPTS {
        match rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(opened),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => {
                // Nothing tells when a lock is free without waiting for ever.
                poll(&mut [], Some(&pause)).or_else(ignore_interruption)?;
            }
            // A file system without locks: the moment of two starts at once isn't worth a failure.
            Err(_) => return Ok(opened),
        }
    }
    let text = format!("another process keeps {} locked", directory.display());
    Err(io::Error::new(io::ErrorKind::WouldBlock, text))
}

fn ignore_interruption(error: Errno) -> Result<usize, Errno> {
    if error == Errno::INTR {
        Ok(0)
    } else {
        Err(error)
    }
}

/// Removes the socket file of a server that has ended.
fn remove_stale(path: &Path) -> io::Result<()> {
    let stat = match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        stat => stat?,
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        let text = format!("{} is in the way and is no socket", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => Ok(rustix::fs::unlink(path)?),
        Err(Errno::NOENT) => Ok(()),
        // EAGAIN is a server whose queue is full; with EACCES there may be one.
        result => {
            let owner = result.ok().and_then(|()| peer(probe.as_fd()));
            let owner = owner.map_or_else(String::new, |pid| format!(" (process {pid})"));
            let text = format!("another server{owner} answers at {}", path.display());
            Err(io::Error::new(io::ErrorKind::AddrInUse, text))
        }
    }
}

/// The process that listens at the other end.
fn peer(socket: BorrowedFd<'_>) -> Option<i32> {
    let peer = rustix::net::sockopt::socket_peercred(socket).ok()?;
    Some(peer.pid.as_raw_nonzero().get())
}
