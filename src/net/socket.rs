//! Makes listening sockets. It knows addresses, not configurations: what to do when one of many
//! can't be had is decided above.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

/// The backlog that is asked for. The kernel takes no more than `net.core.somaxconn` (listen(2)),
/// 4096 since Linux 5.4, so this says: as many as the administrator allows.
const BACKLOG: i32 = 65_535;

/// Who may connect to a unix socket: everybody who can reach it. The proxy in front runs as another
/// user more often than not, and the directory is where access is limited.
const SOCKET_MODE: Mode = Mode::from_raw_mode(0o666);

/// A listening TCP socket, and the address that it got: non-blocking, closed on exec.
///
/// `TCP_NODELAY` is set here because accepted sockets inherit it (tcp(7)). An IPv6 socket takes IPv6
/// only, whatever `net.ipv6.bindv6only` says. `SO_REUSEADDR` lets a restart bind while connections of
/// the last run are in TIME-WAIT; it never lets two servers listen on one address.
///
/// # Errors
/// From socket(2), bind(2) and listen(2): EADDRINUSE, EADDRNOTAVAIL, EACCES, EAFNOSUPPORT …
pub fn tcp(address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    listen(unbound(address)?, address, false)
}

/// Like [`tcp`], and [`tcp_beside`] may make more for the same address.
///
/// It is bound before it says so (`SO_REUSEPORT`, socket(7)): an address that somebody has, also
/// another server of ours with sockets of this kind, is in use as ever, and only then do others of
/// this user get in beside it.
///
/// # Errors
/// As [`tcp`].
pub fn tcp_first(address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    listen(unbound(address)?, address, true)
}

/// A further listening socket for the address of one from [`tcp_first`]. The kernel spreads clients
/// over all of them by a hash of both ends' addresses. A socket that is closed takes along who waits
/// in its accept queue.
///
/// # Errors
/// As [`tcp`].
pub fn tcp_beside(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = unbound(address)?;
    socket.set_reuse_port(true)?;
    listen(socket, address, true).map(|(socket, _)| socket)
}

fn unbound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        None,
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// Binds and listens; `several`: other sockets may listen there, too.
fn listen(socket: Socket, address: SocketAddr, several: bool) -> io::Result<(OwnedFd, SocketAddr)> {
    socket.bind(&address.into())?;
    if several {
        socket.set_reuse_port(true)?;
    }
    socket.listen(BACKLOG)?;
    let bound = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((socket.into(), bound))
}

/// A listening unix stream socket at `path`, mode 0666: non-blocking, closed on exec. A socket file
/// that nobody listens behind any more is replaced.
///
/// # Errors
/// EADDRINUSE when somebody listens there, EEXIST when something else than a socket is in the way,
/// and others from bind(2).
pub fn unix(path: &Path) -> io::Result<(OwnedFd, SocketFile)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    let address = SockAddr::unix(path)?;
    if let Err(error) = socket.bind(&address) {
        if error.raw_os_error() != Some(Errno::ADDRINUSE.raw_os_error()) {
            return Err(error);
        }
        remove_stale(path, &address)?;
        socket.bind(&address)?;
    }
    let file = SocketFile::at(path)?;
    rustix::fs::chmod(path, SOCKET_MODE)?;
    socket.listen(BACKLOG)?;
    Ok((socket.into(), file))
}

/// Removes the socket file of a server that has ended.
fn remove_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(Errno::EXIST.into());
    }
    // Non-blocking: a server whose backlog is full answers EAGAIN, and is alive.
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Ok(rustix::fs::unlink(path)?)
        }
        _ => Err(Errno::ADDRINUSE.into()),
    }
}

/// The file of a unix socket. Dropping it removes the file, unless another one stands in its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// The socket file that stands at `path` now.
    ///
    /// # Errors
    /// From lstat(2).
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path)?,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|there| there == self.identity) {
            // Nothing can be done about a file that can't be removed; the next start replaces it.
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

/// Device and inode.
fn identity(path: &Path) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Whether the congestion control of a socket spreads its segments over time, as BBR does. Accepted
/// sockets inherit it from the listening one.
pub fn paces(socket: BorrowedFd<'_>) -> bool {
    rustix::net::sockopt::tcp_congestion(socket).is_ok_and(|name| name.starts_with("bbr"))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_tcp_socket_listens_on_the_port_that_the_kernel_chose() {
        let (listener, bound) = tcp((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        assert_ne!(bound.port(), 0);
        TcpStream::connect(bound).unwrap();
        let error = tcp(bound).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let listener = Socket::from(listener);
        let (accepted, _) = listener.accept().unwrap();
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(listener.nonblocking().unwrap());
    }

    #[test]
    fn a_unix_socket_replaces_a_dead_one_and_removes_itself() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site.sock");
        drop(UnixListener::bind(&path).unwrap());
        let (_listener, file) = unix(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        assert_eq!(
            unix(&path).unwrap_err().kind(),
            io::ErrorKind::AddrInUse,
            "somebody listens there"
        );
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone_and_so_is_the_socket_of_a_successor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site.sock");
        std::fs::write(&path, "precious").unwrap();
        let error = unix(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");

        std::fs::remove_file(&path).unwrap();
        let (_old, file) = unix(&path).unwrap();
        // Renamed and not removed, so that the inode number isn't used again.
        std::fs::rename(&path, directory.path().join("old.sock")).unwrap();
        let (_new, successor) = unix(&path).unwrap();
        drop(file);
        assert!(path.exists());
        drop(successor);
        assert!(!path.exists());
    }
}
