//! The responder as a loop over completions, directly on the ring, with the techniques of our own engine:
//! multishot accept and receive, provided buffers, one send, and one `enter` a turn.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed};
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::squeue::Entry;
use io_uring::types::{BufRingEntry, Fd, SubmitArgs};
use io_uring::{EnterFlags, IoUring, cqueue, opcode};

use super::REQUEST;

const BUFFERS: u16 = 256;
const BUFFER: usize = 4096;
const GROUP: u16 = 0;
/// Completions taken in one turn.
const TURN: usize = 4096;

/// What a completion is of, in the high half of its name; the low half is the connection's place.
const ACCEPT: u64 = 1;
const RECEIVE: u64 = 2;
const SEND: u64 = 3;

struct Connection {
    socket: RawFd,
    got: usize,
    out: Vec<u8>,
    sent: usize,
}

/// Serves until it is killed.
pub(crate) fn serve(listener: TcpListener, answer: &[u8]) {
    let mut server = Server::new();
    server.push(accept(&listener));
    let mut connections: Vec<Connection> = Vec::new();
    let mut events = Vec::with_capacity(TURN);
    loop {
        server.turn(&mut events);
        for (name, result, flags) in events.drain(..) {
            let (kind, place) = (name >> 32, name as u32 as usize);
            match kind {
                ACCEPT => {
                    connections.push(Connection {
                        socket: result,
                        got: 0,
                        out: Vec::new(),
                        sent: 0,
                    });
                    server.push(receive(result, connections.len() - 1));
                    if !cqueue::more(flags) {
                        server.push(accept(&listener));
                    }
                }
                RECEIVE => {
                    let connection = &mut connections[place];
                    if let Some(id) = cqueue::buffer_select(flags) {
                        server.buffers.publish(id);
                    }
                    if result <= 0 && result != -libc::ENOBUFS {
                        // The load has gone: this process goes next.
                        continue;
                    }
                    if !cqueue::more(flags) {
                        server.push(receive(connection.socket, place));
                    }
                    connection.got += usize::try_from(result).unwrap_or(0);
                    assert!(
                        connection.out.is_empty(),
                        "nobody asks before the answer has come"
                    );
                    while connection.got >= REQUEST.len() {
                        connection.out.extend_from_slice(answer);
                        connection.got -= REQUEST.len();
                    }
                    if !connection.out.is_empty() {
                        server.push(send(connection, place));
                    }
                }
                _ => {
                    let connection = &mut connections[place];
                    connection.sent += usize::try_from(result).expect("the load takes its answers");
                    if connection.sent < connection.out.len() {
                        server.push(send(connection, place));
                    } else {
                        connection.out.clear();
                        connection.sent = 0;
                    }
                }
            }
        }
    }
}

fn name(kind: u64, place: usize) -> u64 {
    kind << 32 | place as u64
}

fn accept(listener: &TcpListener) -> Entry {
    opcode::AcceptMulti::new(Fd(listener.as_raw_fd()))
        .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
        .build()
        .user_data(name(ACCEPT, 0))
}

fn receive(socket: RawFd, place: usize) -> Entry {
    opcode::RecvMulti::new(Fd(socket), GROUP)
        .build()
        .user_data(name(RECEIVE, place))
}

fn send(connection: &Connection, place: usize) -> Entry {
    let bytes = &connection.out[connection.sent..];
    opcode::Send::new(Fd(connection.socket), bytes.as_ptr(), bytes.len() as u32)
        .flags(libc::MSG_NOSIGNAL)
        .build()
        .user_data(name(SEND, place))
}

struct Server {
    ring: IoUring,
    flags: EnterFlags,
    buffers: Buffers,
}

impl Server {
    fn new() -> Self {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_submit_all()
            .setup_no_sqarray()
            .setup_clamp()
            .setup_cqsize(8192)
            .build(1024)
            .expect("a ring");
        let buffers = Buffers::new();
        let address = buffers.entries.as_ptr() as u64;
        // SAFETY: the memory is never freed.
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(address, BUFFERS, GROUP, 0)
        }
        .expect("a ring of buffers");
        let mut flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if ring.params().is_feature_no_iowait() {
            flags |= EnterFlags::NO_IOWAIT;
        }
        Self {
            ring,
            flags,
            buffers,
        }
    }

    /// Queues an entry. There is room: a turn has few of them, and each ends with an `enter`.
    fn push(&mut self, entry: Entry) {
        // SAFETY: what an entry points to stays as it is until its completion: `out` of a connection
        // whose send is under way isn't touched.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("a queue that is long enough");
    }

    /// Submits, waits, and gives what has come.
    fn turn(&mut self, events: &mut Vec<(u64, i32, u32)>) {
        let queued = self.ring.submission().len() as u32;
        let args = SubmitArgs::new();
        // SAFETY: `EXT_ARG` announces the arguments, which outlive the call.
        let entered = unsafe {
            self.ring
                .submitter()
                .enter(queued, 1, self.flags.bits(), Some(&args))
        };
        if let Err(error) = entered {
            let errno = error.raw_os_error();
            assert!(
                matches!(errno, Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)),
                "{error}"
            );
        }
        let completions = self.ring.completion().take(TURN);
        events.extend(completions.map(|entry| (entry.user_data(), entry.result(), entry.flags())));
    }
}

/// Buffers that the kernel takes by itself. Never freed.
struct Buffers {
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    tail: u16,
}

impl Buffers {
    fn new() -> Self {
        let mut buffers = Self {
            entries: pages(usize::from(BUFFERS) * size_of::<BufRingEntry>()).cast(),
            memory: pages(usize::from(BUFFERS) * BUFFER),
            tail: 0,
        };
        (0..BUFFERS).for_each(|id| buffers.publish(id));
        buffers
    }

    /// Gives a buffer to the kernel.
    fn publish(&mut self, id: u16) {
        let place = usize::from(self.tail & (BUFFERS - 1));
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: place and buffer are within the two allocations; the kernel reads entries below the tail
        // alone, and no more than `BUFFERS` are ever published.
        unsafe {
            let entry = self.entries.add(place).as_ptr();
            (*entry).set_addr(self.memory.add(usize::from(id) * BUFFER).as_ptr() as u64);
            (*entry).set_len(BUFFER as u32);
            (*entry).set_bid(id);
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

fn pages(bytes: usize) -> NonNull<u8> {
    let layout = Layout::from_size_align(bytes, 4096).expect("a page is a power of two");
    // SAFETY: the layout isn't of size zero.
    NonNull::new(unsafe { alloc_zeroed(layout) }).expect("memory")
}
