//! The closed set of operations, with completion semantics on every engine.
//!
//! An [`Op`] goes into a slot, which owns its buffer and its descriptor reference until the
//! *terminal* completion. What an engine performs at once as a plain call is in
//! [`crate::runtime::engine::syscall`].

use std::any::Any;
use std::cell::Cell;
use std::ffi::CString;
use std::net::IpAddr;
use std::rc::Rc;

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;
use socket2::SockAddr;

use super::buf::RecvBuf;
use super::buf::fixed::FixedBuf;
use super::fd::Fd;
pub use super::offload::Job;

/// Which readiness an [`Op::Ready`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes, an end of stream or an error can be read.
    Readable,
    /// There is room in the send buffer, or the peer is gone.
    Writable,
}

/// What to open, beneath which directory, and how (`openat2(2)`, kernel 5.6).
#[derive(Debug)]
pub struct OpenRequest {
    /// The directory that the path is relative to, `None` for the working directory.
    pub dir: Option<Fd>,
    /// The path.
    pub path: CString,
    /// Flags; `O_CLOEXEC` is always added.
    pub flags: OFlags,
    /// How the path is resolved.
    pub resolve: ResolveFlags,
}

/// One request to the engine.
pub enum Op {
    /// Accepts connections until it is cancelled or fails: many completions, each with an
    /// [`Output::Socket`] that is non-blocking and close-on-exec.
    Accept {
        /// A listening, non-blocking socket.
        listener: Fd,
        /// Whether the first connection is the last: for who may not take more than it can hold,
        /// because what is in the backlog is accepted faster than an accept is cancelled.
        one: bool,
    },
    /// Connects a socket; the completion says how that ended: 0, or `ECONNREFUSED`, `EHOSTUNREACH` …
    /// It takes as long as the kernel tries (tcp(7), `tcp_syn_retries`: minutes): whoever waits sets a
    /// timer and drops the future. On a unix socket the answer comes at once, and is `EAGAIN` while
    /// the backlog of the listener is full.
    Connect {
        /// A stream socket that isn't connected, of the address's family.
        socket: Fd,
        /// Where to; boxed, so that it stays in its place until the completion.
        address: Box<SockAddr>,
    },
    /// Receives until end of stream, an error or cancellation: many completions, each with an
    /// [`Output::Received`] from the core's shared buffers. A completion with 0 bytes is the end of
    /// the stream. `ENOBUFS` is terminal and means a stall: ask again when buffers are back.
    Recv {
        /// A connected stream socket.
        socket: Fd,
        /// Whether the first bytes, at most a buffer of them, are the last: for who takes what comes
        /// behind them by other means, because what has arrived is received faster than a receive is
        /// cancelled.
        one: bool,
    },
    /// Sends `data[from..]`; the completion says how many bytes went, possibly fewer, and gives
    /// `data` back as [`Output::Data`].
    Send {
        /// A connected stream socket.
        socket: Fd,
        /// The bytes; the slot owns them until the completion.
        data: Vec<u8>,
        /// Where in `data` to begin.
        from: usize,
        /// More follows at once (`MSG_MORE`): the last, partly filled segment waits for it.
        more: bool,
    },
    /// Completes once when the descriptor is ready.
    Ready {
        /// A socket, pipe or eventfd.
        fd: Fd,
        /// For what.
        interest: Interest,
    },
    /// Opens a file; the completion has [`Output::Opened`].
    Open(Box<OpenRequest>),
    /// Reads at an offset into `data`, which is resized to `len` before and truncated to what was
    /// read after, and given back as [`Output::Data`].
    Read {
        /// A regular file.
        file: Fd,
        /// Storage for the bytes.
        data: Vec<u8>,
        /// How many bytes to ask for. At most 2 GiB − 4 KiB.
        len: usize,
        /// Offset in the file.
        offset: u64,
    },
    /// Reads at an offset into a fixed buffer, which is given back as [`Output::Fixed`], filled up to the
    /// end of what was read. `ECANCELED` without the buffer: it was lost with the helper that had it.
    ReadFixed {
        /// A regular file, perhaps opened with `O_DIRECT`: then offset and length are multiples of what
        /// the file asks for.
        file: Fd,
        /// Where to.
        buffer: FixedBuf,
        /// Where in the buffer to begin; before it stays what there is.
        at: u32,
        /// How many bytes to ask for: at most as many as there is room for behind `at`.
        len: u32,
        /// Offset in the file.
        offset: u64,
    },
    /// Sends part of a fixed buffer without copying it (`IORING_OP_SEND_ZC` with
    /// `IORING_SEND_ZC_REPORT_USAGE`, kernel 6.2), as much as the socket takes at once. The first
    /// completion says how many bytes went, or why none did; if it has *more*, the terminal one says
    /// when the kernel needs the bytes no more: 0, or 1 if it has copied them after all. Between the two
    /// the slot awaits the notification: it holds the bytes, and no descriptor; dropping the future
    /// cancels nothing then.
    ///
    /// `EOPNOTSUPP` on an engine without such a send.
    SendZeroCopy {
        /// A connected stream socket; `None` while the notification is awaited, so that the connection
        /// can be closed, which may be what brings it.
        socket: Option<Fd>,
        /// The bytes.
        bytes: Rc<FixedBuf>,
        /// Which of them to send: at most those that are filled.
        range: (u32, u32),
        /// More follows at once (`MSG_MORE`).
        more: bool,
        /// Where the transfer keeps account of such sends.
        ledger: Rc<ZeroCopyLedger>,
    },
    /// Has the disk asked for a part of a file (posix_fadvise(2), `POSIX_FADV_WILLNEED`), away from the core:
    /// to find pages for it and room in the queue of the device takes time. It ends when the disk has
    /// been asked, not when it has answered.
    WillNeed {
        /// A regular file.
        file: Fd,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Runs a job on a helper thread; the completion has [`Output::Answer`], or `ECANCELED` when
    /// the job panicked or the helpers are gone.
    Offload(Job),
}

/// What a completion carries besides its result.
#[derive(Default)]
pub enum Output {
    /// Nothing.
    #[default]
    None,
    /// The buffer of a send or a read.
    Data(Vec<u8>),
    /// The buffer of a read into a fixed one.
    Fixed(FixedBuf),
    /// Bytes in one of the core's shared buffers.
    Received(RecvBuf),
    /// A connection.
    Socket(Fd),
    /// An opened file.
    Opened(Fd),
    /// What a helper's job returned.
    Answer(Box<dyn Any + Send>),
}

/// One result of an op.
pub struct Completion {
    /// Bytes moved (or 0) on success; `errno` is mapped here, once, at the engine.
    pub result: Result<u32, Errno>,
    /// Whether more completions of the same op follow; without it this one is terminal.
    pub more: bool,
    /// What came with it.
    pub output: Output,
}

/// What became of the zero-copy sends of one transfer.
#[derive(Debug, Default)]
pub struct ZeroCopyLedger {
    peer: Option<IpAddr>,
    awaited: Cell<u32>,
}

impl ZeroCopyLedger {
    /// For sends to a machine with this address; `None` where they stay on ours.
    pub fn to(peer: Option<IpAddr>) -> Self {
        Self {
            peer,
            ..Self::default()
        }
    }

    /// Where they go; `None` where that is our own machine.
    pub fn peer(&self) -> Option<IpAddr> {
        self.peer
    }

    /// How many notifications are still to come.
    pub fn awaited(&self) -> u32 {
        self.awaited.get()
    }

    /// A send was taken, and its notification is to come.
    pub(crate) fn await_one(&self) {
        self.awaited.set(self.awaited.get() + 1);
    }

    /// A notification came.
    pub(crate) fn notified(&self) {
        self.awaited.set(self.awaited.get().saturating_sub(1));
    }
}
