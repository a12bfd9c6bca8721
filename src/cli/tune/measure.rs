//! Measures what each way of sending costs: time of the processor that the sending thread used, with
//! the same system calls as the server. Whoever receives is another thread that throws all away.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, Mode, OFlags, open, sendfile};
use rustix::io::{Errno, IoSlice, pwrite};
use rustix::net::{RecvFlags, SendFlags, recv, send, sendmsg};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use rustix::time::{ClockId, clock_gettime};

use crate::runtime::sys::trial::{DirectRead, ZeroCopySend};
use crate::util::unnamed_file::unnamed_file;

/// Bytes of a response's head.
const HEAD: usize = 256;

/// Bytes of a receive buffer of a core.
const RECEIVED: usize = 4 << 10;

/// Bytes of a core's pipe.
const PIPE: usize = 256 << 10;

/// A way of sending content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Copied behind its head, both sent as one buffer.
    Copy,
    /// From memory beside its head, by one sendmsg(2).
    Pair,
    /// sendfile(2) after its head.
    Sendfile,
    /// From another socket through a receive buffer.
    Relay,
    /// From another socket through a pipe.
    Splice,
    /// From memory, by send(2).
    Send,
    /// From memory without a copy, by the ring.
    ZeroCopy,
}

impl Way {
    /// Short, for a table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Pair => "memory",
            Self::Sendfile => "sendfile",
            Self::Relay => "relay",
            Self::Splice => "splice",
            Self::Send => "send",
            Self::ZeroCopy => "zerocopy",
        }
    }

    /// Largest content that it is measured with: beyond it nobody would use it.
    pub(super) fn size_max(self) -> u64 {
        match self {
            Self::Copy => 256 << 10,
            Self::Pair => 4 << 20,
            _ => u64::MAX,
        }
    }
}

/// Where all is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// A thread of this process.
    Loopback,
    /// Something at this address that takes all and answers nothing.
    Peer(SocketAddr),
}

/// Everything that a measurement needs.
pub(super) struct Rig {
    sink: TcpStream,
    source: TcpStream,
    pipe: (OwnedFd, OwnedFd),
    file: OwnedFd,
    content: Vec<u8>,
    zero_copy: Option<ZeroCopySend>,
    /// The kernel has copied in a send that should be without a copy.
    pub(super) copied: bool,
}

/// Time that this thread has used.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Bytes that compress badly and aren't zero, which some disks don't store.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Two ends of a connection within this machine.
fn connection() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    for end in [&one, &other] {
        end.set_nodelay(true)?;
    }
    Ok((one, other))
}

/// A file of so many bytes in this directory, written to the disk.
fn file(directory: &Path, size: u64, content: &[u8]) -> io::Result<OwnedFd> {
    let file = unnamed_file(directory)?;
    // Where the file system can't reserve it, the writes tell whether there is room.
    let _ = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size);
    let mut at = 0;
    while at < size {
        let piece = content
            .len()
            .min(usize::try_from(size - at).unwrap_or(usize::MAX));
        at += pwrite(&file, &content[..piece], at)? as u64;
    }
    rustix::fs::fdatasync(&file)?;
    Ok(file)
}

impl Rig {
    /// With a file of `size_max` bytes in this directory.
    ///
    /// # Errors
    /// Which part can't be had, in words.
    pub(super) fn new(directory: &Path, size_max: u64, route: Route) -> Result<Self, String> {
        let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let content = noise(usize::try_from(size_max).map_err(|error| error.to_string())?);
        let file = file(directory, size_max, &content).map_err(|error| {
            let directory = directory.display();
            format!(
                "can't write {size_max} bytes to {directory}: {error}; name a directory of the same \
                 disk that this user can write to"
            )
        })?;
        let sink = match route {
            Route::Loopback => {
                let (sink, drain) = connection().map_err(failed("no connection"))?;
                spawn("beltway-tune-sink", move || throw_away(drain.as_fd()))
                    .map_err(failed("no thread"))?;
                sink
            }
            Route::Peer(peer) => {
                let patience = Duration::from_secs(5);
                let sink = TcpStream::connect_timeout(&peer, patience)
                    .map_err(|error| format!("can't connect to {peer}: {error}"))?;
                sink.set_nodelay(true).map_err(failed("TCP_NODELAY"))?;
                // A peer that takes nothing ends the measurement.
                sink.set_write_timeout(Some(patience))
                    .map_err(failed("SO_SNDTIMEO"))?;
                // The ring doesn't look at that one, and a notification waits for the peer.
                rustix::net::sockopt::set_tcp_user_timeout(&sink, patience.as_millis() as u32)
                    .map_err(io::Error::from)
                    .map_err(failed("TCP_USER_TIMEOUT"))?;
                sink
            }
        };
        let (source, spring) = connection().map_err(failed("no connection"))?;
        let piece = content[..content.len().min(256 << 10)].to_vec();
        spawn("beltway-tune-source", move || flow(spring.as_fd(), &piece))
            .map_err(failed("no thread"))?;
        let pipe = pipe_with(PipeFlags::CLOEXEC)
            .map_err(io::Error::from)
            .map_err(failed("no pipe"))?;
        // A smaller one works, too.
        let _ = fcntl_setpipe_size(&pipe.1, PIPE);
        Ok(Self {
            sink,
            source,
            pipe,
            file,
            content,
            zero_copy: None,
            copied: false,
        })
    }

    /// Sends content of this size again and again for `slot`, at least twice. Gives what one time costs.
    ///
    /// # Errors
    /// From the calls.
    pub(super) fn cost(&mut self, way: Way, size: u64, slot: Duration) -> io::Result<Duration> {
        let size = usize::try_from(size)
            .map_err(io::Error::other)?
            .min(self.content.len());
        if way == Way::ZeroCopy && self.zero_copy.is_none() {
            self.zero_copy = Some(ZeroCopySend::new()?);
        }
        // Once for what is made at first.
        self.send(way, size)?;
        let (begin, before, mut times) = (Instant::now(), used(), 0);
        while times < 2 || begin.elapsed() < slot {
            self.send(way, size)?;
            times += 1;
        }
        Ok(used().saturating_sub(before) / times)
    }

    fn send(&mut self, way: Way, size: usize) -> io::Result<()> {
        let head = [b'h'; HEAD];
        let sink = self.sink.as_fd();
        match way {
            Way::Copy => {
                let mut batch = Vec::with_capacity(HEAD + size);
                batch.extend_from_slice(&head);
                batch.extend_from_slice(&self.content[..size]);
                send_all(sink, &batch, SendFlags::empty())
            }
            Way::Pair => {
                let pair = [IoSlice::new(&head), IoSlice::new(&self.content[..size])];
                let mut control = rustix::net::SendAncillaryBuffer::default();
                let sent = sendmsg(sink, &pair, &mut control, SendFlags::NOSIGNAL)?;
                let rest = sent.saturating_sub(HEAD).min(size);
                send_all(sink, &self.content[rest..size], SendFlags::empty())
            }
            Way::Sendfile => {
                send_all(sink, &head, SendFlags::MORE)?;
                let mut offset = 0;
                while (offset as usize) < size {
                    let left = size - offset as usize;
                    if sendfile(sink, &self.file, Some(&mut offset), left)? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Ok(())
            }
            Way::Relay => {
                let mut left = size;
                let mut buffer = [0; RECEIVED];
                while left > 0 {
                    let room = left.min(RECEIVED);
                    let (got, _) = recv(&self.source, &mut buffer[..room], RecvFlags::empty())?;
                    send_all(sink, &buffer[..got], SendFlags::empty())?;
                    left -= got;
                }
                Ok(())
            }
            Way::Splice => {
                let mut left = size;
                while left > 0 {
                    let flags = SpliceFlags::MOVE;
                    let most = left.min(PIPE);
                    let got = splice(&self.source, None, &self.pipe.1, None, most, flags)?;
                    let mut rest = got;
                    while rest > 0 {
                        rest -= splice(&self.pipe.0, None, sink, None, rest, flags)?;
                    }
                    left -= got;
                }
                Ok(())
            }
            Way::Send => send_all(sink, &self.content[..size], SendFlags::empty()),
            Way::ZeroCopy => {
                let Some(zero_copy) = &mut self.zero_copy else {
                    return Err(io::ErrorKind::Unsupported.into());
                };
                let mut at = 0;
                while at < size {
                    let (sent, copied) = zero_copy.send(sink, &self.content[at..size])?;
                    self.copied |= copied;
                    at += sent.max(1);
                }
                Ok(())
            }
        }
    }

    /// How long it takes to read the file past the page cache, with so many blocks at a time.
    ///
    /// # Errors
    /// Where the file system has no `O_DIRECT`, or the kernel no ring.
    pub(super) fn direct(&self, depth: usize, length: u64) -> io::Result<Duration> {
        let path = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&self.file)
        );
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        let direct = open(path, flags, Mode::empty())?;
        let mut reader = DirectRead::new(depth)?;
        let begin = Instant::now();
        reader.read(direct.as_fd(), length)?;
        Ok(begin.elapsed())
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // It ends when the other end of its connection is closed, at the latest with the process.
    let builder = thread::Builder::new().name(name.to_owned());
    builder.spawn(work).map(drop)
}

/// Receives without looking (`MSG_TRUNC`, tcp(7)).
fn throw_away(socket: BorrowedFd<'_>) {
    let mut room = vec![0_u8; 1 << 20];
    loop {
        match recv(socket, room.as_mut_slice(), RecvFlags::TRUNC) {
            Ok((_, 0)) => return,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Sends for ever.
fn flow(socket: BorrowedFd<'_>, piece: &[u8]) {
    while send_all(socket, piece, SendFlags::empty()).is_ok() {}
}

fn send_all(socket: BorrowedFd<'_>, mut bytes: &[u8], flags: SendFlags) -> io::Result<()> {
    while !bytes.is_empty() {
        match send(socket, bytes, SendFlags::NOSIGNAL | flags) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
