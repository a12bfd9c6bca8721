//! What touches the kernel for a connection or a file and is done at once, as a plain call: never
//! blocks, needs no slot. The simulator answers for its own descriptors, so that it can fail each.

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, StatxFlags, fstat, openat2, sendfile,
    statx,
};
use rustix::io::{Errno, IoSlice, IoSliceMut, ReadWriteFlags, preadv2};
use rustix::net::{self, RecvFlags, SendFlags, SocketAddrAny, sockopt};
use socket2::{Socket, Type};

use super::Engine;
use super::sim::Sim;
use crate::runtime::address::Address;
use crate::runtime::buf::fixed::FIXED_ALIGN;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::op::OpenRequest;

/// What `fstat(2)` says of a file, as far as we use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// Device and inode: which file it is.
    pub identity: (u64, u64),
    /// What kind of file.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Last modification of the content: seconds since 1970 and nanoseconds.
    pub modified: (i64, u32),
    /// Last change of the inode: seconds since 1970 and nanoseconds.
    pub changed: (i64, u32),
    /// Permission bits.
    pub mode: u32,
}

/// Kinds of files that are treated differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// FIFO, socket, device or symbolic link.
    Other,
}

impl From<&Stat> for FileStat {
    fn from(stat: &Stat) -> Self {
        Self {
            identity: (stat.st_dev, stat.st_ino),
            kind: match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => FileKind::Regular,
                FileType::Directory => FileKind::Directory,
                _ => FileKind::Other,
            },
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime, stat.st_mtime_nsec as u32),
            changed: (stat.st_ctime, stat.st_ctime_nsec as u32),
            mode: stat.st_mode,
        }
    }
}

impl Core {
    /// Runs a call on the real descriptor, or asks the simulator.
    pub(crate) fn at_once<T>(
        &self,
        fd: &Fd,
        real: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno>,
        simulated: impl FnOnce(&mut Sim) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match fd.os() {
            Some(os) => real(os),
            None => self.with_engine(|engine| match engine {
                Engine::Sim(sim) => simulated(sim),
                _ => Err(Errno::BADF),
            }),
        }
    }

    /// Accepts a connection that waits already: non-blocking and close-on-exec.
    ///
    /// # Errors
    /// `EAGAIN` when none waits; others as accept(2).
    pub fn accept_now(&self, listener: &Fd) -> Result<Fd, Errno> {
        match listener.os() {
            Some(os) => {
                let flags = net::SocketFlags::NONBLOCK | net::SocketFlags::CLOEXEC;
                net::accept_with(os, flags).map(|socket| self.own(socket))
            }
            None => self
                .with_engine(|engine| match engine {
                    Engine::Sim(sim) => sim.accept_now(listener),
                    _ => Err(Errno::BADF),
                })
                .map(|number| self.simulated(number)),
        }
    }

    /// A stream socket to connect to this address: non-blocking, close-on-exec, without Nagle's delay.
    /// `from`: the local address to connect from; the port is chosen by the connect.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `EAFNOSUPPORT`; with `from` `EADDRNOTAVAIL` for an address that isn't ours,
    /// `EINVAL` for one of another family.
    pub fn socket(&self, to: &Address, from: Option<IpAddr>) -> Result<Fd, Errno> {
        if let Some(made) = self.with_engine(|engine| match engine {
            Engine::Sim(sim) => Some(sim.socket()),
            _ => None,
        }) {
            return made.map(|number| self.simulated(number));
        }
        let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(to.domain(), kind, None).map_err(errno)?;
        if let Address::Tcp(_) = to {
            socket.set_tcp_nodelay(true).map_err(errno)?;
            if let Some(from) = from {
                crate::runtime::sys::bind_without_port(socket.as_fd());
                socket
                    .bind(&SocketAddr::new(from, 0).into())
                    .map_err(errno)?;
            }
        }
        Ok(self.own(socket.into()))
    }

    /// Receives what has come, as much as fits. 0 is the end of the stream. Not while an
    /// [`crate::runtime::op::Op::Recv`] of the socket is in flight: the order of the bytes would be lost.
    ///
    /// # Errors
    /// `EAGAIN` when nothing is there; otherwise the connection is broken.
    pub fn receive_now(&self, socket: &Fd, into: &mut [u8]) -> Result<usize, Errno> {
        match socket.os() {
            Some(os) => net::recv(os, into, RecvFlags::DONTWAIT).map(|(bytes, _)| bytes),
            None => self.with_engine(|engine| match engine {
                Engine::Sim(sim) => sim.receive_now(socket, into),
                _ => Err(Errno::BADF),
            }),
        }
    }

    /// Whether the engine performs a send by a plain call, so that an op for it costs a slot, a completion and
    /// another poll of the task, and spares nothing.
    pub fn sends_by_call(&self) -> bool {
        self.with_engine(|engine| matches!(engine, Engine::Poll(_)))
    }

    /// Sends what the socket takes at once. `more`: the last segment waits for what follows.
    ///
    /// # Errors
    /// `EAGAIN` when the socket takes nothing now; otherwise the connection is broken.
    pub fn send_now(&self, socket: &Fd, bytes: &[u8], more: bool) -> Result<usize, Errno> {
        let flags = if more {
            SendFlags::MORE
        } else {
            SendFlags::empty()
        };
        self.at_once(
            socket,
            |os| net::send(os, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT | flags),
            |sim| sim.send_now(socket, bytes),
        )
    }

    /// Sends two pieces as one, as far as the socket takes them at once, and copies neither in user
    /// space.
    ///
    /// # Errors
    /// As [`Self::send_now`].
    pub fn send_pair(&self, socket: &Fd, pair: [&[u8]; 2], more: bool) -> Result<usize, Errno> {
        let flags = if more {
            SendFlags::MORE
        } else {
            SendFlags::empty()
        };
        self.at_once(
            socket,
            |os| {
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT | flags;
                let mut control = net::SendAncillaryBuffer::default();
                net::sendmsg(os, &pair.map(IoSlice::new), &mut control, flags)
            },
            |sim| match sim.send_now(socket, pair[0])? {
                sent if sent < pair[0].len() => Ok(sent),
                sent => Ok(sent + sim.send_now(socket, pair[1]).unwrap_or(0)),
            },
        )
    }

    /// Moves up to `count` bytes of the file from `*offset` on into the socket, as many as it takes
    /// at once (sendfile(2)), and advances `*offset`. 0 means the file ends there.
    ///
    /// The caller has asked [`Self::is_resident`] first: a page that isn't in memory blocks the core.
    ///
    /// # Errors
    /// `EAGAIN` when the socket takes nothing now.
    pub fn send_file(
        &self,
        socket: &Fd,
        file: &Fd,
        offset: &mut u64,
        count: usize,
    ) -> Result<usize, Errno> {
        let Some(source) = file.os() else {
            return self.at_once(
                file,
                |_| Err(Errno::BADF),
                |sim| sim.send_file(socket, file, offset, count),
            );
        };
        let target = socket.os().ok_or(Errno::BADF)?;
        sendfile(target, source, Some(offset), count)
    }

    /// Reads what the page cache has (preadv2(2) with `RWF_NOWAIT`, kernel 4.14).
    ///
    /// # Errors
    /// `EAGAIN` when the first byte isn't in memory; `EOPNOTSUPP` where the file system can't say.
    pub fn read_resident(&self, file: &Fd, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
        match file.os() {
            Some(os) => {
                let mut slices = [IoSliceMut::new(into)];
                preadv2(os, &mut slices, offset, ReadWriteFlags::NOWAIT)
            }
            None => self.with_engine(|engine| match engine {
                Engine::Sim(sim) => sim.read_resident(file, into, offset),
                _ => Err(Errno::BADF),
            }),
        }
    }

    /// As [`Self::read_resident`], at most `len` bytes behind what is in `into`, which has room for them; it isn't filled
    /// with zeros before.
    ///
    /// # Errors
    /// As [`Self::read_resident`].
    pub fn append_resident(
        &self,
        file: &Fd,
        into: &mut Vec<u8>,
        len: usize,
        offset: u64,
    ) -> Result<usize, Errno> {
        match file.os() {
            Some(os) => crate::runtime::sys::append_resident(os, into, len, offset),
            None => {
                let mut read = vec![0; len];
                let there = self.read_resident(file, &mut read, offset)?;
                into.extend_from_slice(&read[..there]);
                Ok(there)
            }
        }
    }

    /// Whether the page of this byte is in memory; also where the file ends before it, or its file system
    /// can't say. What the kernel is reading at the moment isn't.
    ///
    /// A page that is on its way at the front of what the kernel reads ahead makes it read on, and one that
    /// it wasn't asked for it begins to read (kernel 5.10), neither of which is waited for. `reach` says
    /// how many bytes from here on are wanted: the kernel reads as far ahead in one piece, up to what the
    /// device takes in one request. It costs a page fault, which 0 doesn't.
    pub fn is_resident(&self, file: &Fd, offset: u64, reach: usize) -> bool {
        let mut byte = [0];
        let read = match file.os() {
            Some(os) if reach > 1 => crate::runtime::sys::read_reaching(os, offset, reach),
            _ => self.read_resident(file, &mut byte, offset),
        };
        read != Err(Errno::AGAIN)
    }

    /// What the file is now.
    ///
    /// # Errors
    /// As `fstat(2)`.
    pub fn stat(&self, file: &Fd) -> Result<FileStat, Errno> {
        self.at_once(
            file,
            |os| fstat(os).map(|stat| FileStat::from(&stat)),
            |sim| sim.stat(file),
        )
    }

    /// What O_DIRECT asks of offsets and sizes in this file, in bytes (`STATX_DIOALIGN`, kernel 6.1);
    /// 4096 where the kernel doesn't say.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the file system has no O_DIRECT for it, or wants buffers of a larger alignment
    /// than ours; others as statx(2).
    pub fn direct_alignment(&self, file: &Fd) -> Result<usize, Errno> {
        self.at_once(
            file,
            |os| {
                let stat = statx(os, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
                if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
                    return Ok(FIXED_ALIGN);
                }
                let memory = stat.stx_dio_mem_align as usize;
                match stat.stx_dio_offset_align as usize {
                    offset if offset > 0 && memory <= FIXED_ALIGN => Ok(offset),
                    _ => Err(Errno::OPNOTSUPP),
                }
            },
            |sim| sim.direct_alignment(file),
        )
    }

    /// Opens a path whose every part is in the kernel's caches (`RESOLVE_CACHED`, kernel 5.12).
    ///
    /// # Errors
    /// `EAGAIN` when it would have to ask the disk: open it by [`crate::runtime::op::Op::Open`].
    pub fn open_cached(&self, request: &OpenRequest) -> Result<Fd, Errno> {
        let flags = request.flags | OFlags::CLOEXEC;
        let resolve = request.resolve | ResolveFlags::CACHED;
        if let Some(result) = self.with_engine(|engine| match engine {
            Engine::Sim(sim) => Some(sim.open(request)),
            _ => None,
        }) {
            return result.map(|number| self.simulated(number));
        }
        let dir = match &request.dir {
            Some(dir) => dir.os().ok_or(Errno::BADF)?,
            None => CWD,
        };
        let opened = openat2(dir, request.path.as_c_str(), flags, Mode::empty(), resolve);
        // A kernel before 5.12 doesn't know the flag.
        let opened = opened.map_err(|errno| {
            if errno == Errno::INVAL {
                Errno::AGAIN
            } else {
                errno
            }
        });
        opened.map(|fd| self.own(fd))
    }

    /// What stands at a path beneath a directory, the last link not followed.
    ///
    /// # Errors
    /// As `fstatat(2)`.
    pub fn stat_at(&self, dir: &Fd, path: &CStr) -> Result<FileStat, Errno> {
        self.at_once(
            dir,
            |os| {
                rustix::fs::statat(os, path, AtFlags::SYMLINK_NOFOLLOW)
                    .map(|stat| FileStat::from(&stat))
            },
            |sim| sim.stat_at(dir, path),
        )
    }

    /// A second descriptor for a helper thread, which outlives every future of this core.
    ///
    /// # Errors
    /// `EMFILE`; `EBADF` for a simulated descriptor.
    pub fn duplicate(&self, fd: &Fd) -> Result<std::os::fd::OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(fd.os().ok_or(Errno::BADF)?, 0)
    }

    /// Says whether [`Self::cork`] does anything. A cork saves segments with congestion controls that
    /// send as soon as they may; with one that paces, as BBR does, it doubles the cost of a bulk send.
    pub fn set_corking(&self, on: bool) {
        self.inner().corking.set(on);
    }

    /// Holds back partly filled segments (`TCP_CORK`) until it is taken off. No-op on other sockets.
    pub fn cork(&self, socket: &Fd, on: bool) {
        if !self.inner().corking.get() {
            return;
        }
        // A unix socket has no segments to hold back.
        let _ = self.at_once(socket, |os| sockopt::set_tcp_cork(os, on), |_| Ok(()));
    }

    /// Ends the sending direction (shutdown(2)): what was sent still arrives, then a FIN.
    pub fn shut_down_write(&self, socket: &Fd) {
        let _ = self.at_once(
            socket,
            |os| net::shutdown(os, net::Shutdown::Write),
            |sim| sim.shut_down_write(socket),
        );
    }

    /// Makes the close of this socket a reset, which tells the client that the response was cut.
    pub fn reset_on_close(&self, socket: &Fd) {
        let _ = self.at_once(
            socket,
            |os| sockopt::set_socket_linger(os, Some(std::time::Duration::ZERO)),
            |sim| sim.reset_on_close(socket),
        );
    }

    /// The peer's address, asked once per connection: multishot accept doesn't tell it.
    pub fn peer_address(&self, socket: &Fd) -> Option<SocketAddrAny> {
        self.at_once(
            socket,
            |os| net::getpeername(os),
            |sim| Ok(sim.peer(socket).map(|peer| SocketAddr::V4(peer).into())),
        )
        .ok()
        .flatten()
    }

    /// Our own address of a connection; `None` in a simulation, and where the kernel doesn't say.
    pub fn local_address(&self, socket: &Fd) -> Option<SocketAddrAny> {
        self.at_once(socket, |os| net::getsockname(os).map(Some), |_| Ok(None))
            .ok()
            .flatten()
    }

    /// The bytes of the send buffer that the peer has not acknowledged (`SIOCOUTQ`), as far as the
    /// kernel says.
    pub fn unsent(&self, socket: &Fd) -> Option<u64> {
        self.at_once(
            socket,
            |os| Ok(crate::runtime::sys::unsent(os)),
            |sim| Ok(sim.unsent(socket)),
        )
        .ok()
        .flatten()
    }
}
