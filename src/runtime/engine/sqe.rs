//! Ops as submission queue entries, and the list of what a ring may be asked for at all.

use std::os::fd::RawFd;

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode, types};
use rustix::fs::{CWD, OFlags};

use std::os::fd::AsRawFd;

use crate::runtime::fd::Fd;
use crate::runtime::op::{Interest, Op};
use crate::runtime::slot::SlotKey;

/// The group id of the core's receive buffers.
pub(crate) const BUFFER_GROUP: u16 = 0;

/// Completions that nobody waits for: closes and cancellations.
pub(crate) const IGNORED: u64 = u64::MAX;

/// Completions of the poll on the wake eventfd.
pub(crate) const WAKE: u64 = u64::MAX - 1;

/// Completions of the entries that [`forbidden`] gives: this one, and as many below it as there are.
const FORBIDDEN_LAST: u64 = u64::MAX - 2;

/// How many entries [`forbidden`] gives.
pub(crate) const FORBIDDEN_COUNT: usize = 5;

/// Every opcode that the entries below have. A restricted ring refuses all others with `EACCES`.
const OPCODES: [u8; 13] = [
    opcode::Nop::CODE,
    opcode::Accept::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Close::CODE,
    opcode::Connect::CODE,
    opcode::Fadvise::CODE,
    opcode::OpenAt2::CODE,
    opcode::PollAdd::CODE,
    opcode::Read::CODE,
    opcode::ReadFixed::CODE,
    opcode::Recv::CODE,
    opcode::Send::CODE,
    opcode::SendZc::CODE,
];

/// Every flag that the entries below have. A restricted ring refuses all others.
const FLAGS: Flags = Flags::BUFFER_SELECT;

/// `IORING_REGISTER_BUFFERS_UPDATE`, `IORING_UNREGISTER_RING_FDS` and `IORING_UNREGISTER_PBUF_RING`: all
/// that a ring registers or takes back once it runs.
const REGISTER_OPCODES: [u8; 3] = [16, 21, 23];

/// `IORING_SEND_ZC_REPORT_USAGE`: the notification says whether the kernel copied (kernel 6.2).
const REPORT_USAGE: u16 = 8;

/// `IORING_NOTIF_USAGE_ZC_COPIED`, the bit of a notification that says so.
const USAGE_COPIED: u32 = 1 << 31;

/// What a ring may be asked for (`IORING_REGISTER_RESTRICTIONS`, kernel 5.10).
pub(crate) fn restrictions() -> Vec<Restriction> {
    let mut all = vec![Restriction::sqe_flags_allowed(FLAGS.bits())];
    all.extend(OPCODES.map(Restriction::sqe_op));
    all.extend(REGISTER_OPCODES.map(Restriction::register_op));
    all
}

/// Entries that a restricted ring refuses, each with what it would do. Without a restriction they do
/// no harm: what names a descriptor names none, and a socket that is made is closed at once.
pub(crate) fn forbidden() -> [(&'static str, Entry); FORBIDDEN_COUNT] {
    let nothing = types::Fd(-1);
    let raw = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    let mut all = [
        (
            "make a packet socket",
            opcode::Socket::new(libc::AF_PACKET, raw, 0).build(),
        ),
        (
            "make a netlink socket",
            opcode::Socket::new(libc::AF_NETLINK, raw, 0).build(),
        ),
        (
            "bind a socket",
            opcode::Bind::new(nothing, std::ptr::null(), 0).build(),
        ),
        ("listen", opcode::Listen::new(nothing, 1).build()),
        (
            "command a driver",
            opcode::UringCmd16::new(nothing, 0).build(),
        ),
    ];
    for (index, (_, entry)) in all.iter_mut().enumerate() {
        *entry = entry.clone().user_data(FORBIDDEN_LAST - index as u64);
    }
    all
}

/// Which of the [`forbidden`] entries a completion belongs to.
pub(crate) fn forbidden_index(user_data: u64) -> Option<usize> {
    let index = usize::try_from(FORBIDDEN_LAST.checked_sub(user_data)?).ok()?;
    (index < FORBIDDEN_COUNT).then_some(index)
}

/// What an `OPENAT2` points to besides the path. It lives in the op's box until the completion.
pub(crate) fn open_how(op: &Op) -> Option<Box<types::OpenHow>> {
    let Op::Open(request) = op else { return None };
    let flags = (request.flags | OFlags::CLOEXEC).bits();
    Some(Box::new(
        types::OpenHow::new()
            .flags(u64::from(flags))
            .resolve(request.resolve.bits()),
    ))
}

/// The entry of an op. It points into the op's heap storage (and to `how`), which the slot keeps
/// until the terminal completion. A read's buffer is made ready here.
pub(crate) fn entry(key: SlotKey, op: &mut Op, how: *const types::OpenHow) -> Entry {
    let entry = match op {
        Op::Accept {
            listener,
            one: false,
        } => opcode::AcceptMulti::new(types::Fd(listener.raw()))
            .flags(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)
            .build(),
        Op::Accept {
            listener,
            one: true,
        } => {
            let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
            opcode::Accept::new(types::Fd(listener.raw()), address, length)
                .flags(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)
                .build()
        }
        Op::Connect { socket, address } => {
            let (at, len) = (address.as_ptr().cast(), address.len());
            opcode::Connect::new(types::Fd(socket.raw()), at, len).build()
        }
        Op::Recv { socket, one: false } => {
            opcode::RecvMulti::new(types::Fd(socket.raw()), BUFFER_GROUP).build()
        }
        // With a length of 0 as many bytes as the buffer has room for.
        Op::Recv { socket, one: true } => {
            opcode::Recv::new(types::Fd(socket.raw()), std::ptr::null_mut(), 0)
                .buf_group(BUFFER_GROUP)
                .build()
                .flags(Flags::BUFFER_SELECT)
        }
        Op::Send {
            socket,
            data,
            from,
            more,
        } => {
            let bytes = &data[*from..];
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX >> 1);
            opcode::Send::new(types::Fd(socket.raw()), bytes.as_ptr(), len)
                .flags(libc::MSG_NOSIGNAL | if *more { libc::MSG_MORE } else { 0 })
                .build()
        }
        Op::Ready { fd, interest } => {
            let mask = match interest {
                Interest::Readable => libc::POLLIN | libc::POLLRDHUP,
                Interest::Writable => libc::POLLOUT,
            };
            opcode::PollAdd::new(types::Fd(fd.raw()), mask as u32).build()
        }
        Op::Open(request) => {
            let dir: RawFd = request
                .dir
                .as_ref()
                .map_or_else(|| CWD.as_raw_fd(), |dir| dir.raw());
            opcode::OpenAt2::new(types::Fd(dir), request.path.as_ptr(), how).build()
        }
        Op::Read {
            file,
            data,
            len,
            offset,
        } => {
            data.resize(*len, 0);
            let len = u32::try_from(*len).unwrap_or(u32::MAX >> 1);
            opcode::Read::new(types::Fd(file.raw()), data.as_mut_ptr(), len)
                .offset(*offset)
                .build()
        }
        Op::ReadFixed {
            file,
            buffer,
            at,
            len,
            offset,
        } => {
            let file = types::Fd(file.raw());
            let index = buffer.registered();
            // The core has checked that `at` and `len` are within the buffer.
            let target = buffer.memory().map_or(std::ptr::null_mut(), |memory| {
                memory.room()[*at as usize..].as_mut_ptr()
            });
            match index {
                Some(index) => opcode::ReadFixed::new(file, target, *len, index)
                    .offset(*offset)
                    .build(),
                None => opcode::Read::new(file, target, *len)
                    .offset(*offset)
                    .build(),
            }
        }
        Op::SendZeroCopy {
            socket,
            bytes,
            range,
            more,
            ..
        } => {
            let socket = types::Fd(socket.as_ref().map_or(-1, Fd::raw));
            let sent = &bytes.bytes()[range.0 as usize..range.1 as usize];
            let more = if *more { libc::MSG_MORE } else { 0 };
            opcode::SendZc::new(socket, sent.as_ptr(), sent.len() as u32)
                .buf_index(bytes.registered())
                .flags(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | more)
                .zc_flags(REPORT_USAGE)
                .build()
        }
        Op::WillNeed { file, offset, len } => {
            let (file, len) = (types::Fd(file.raw()), libc::off_t::from(*len));
            opcode::Fadvise::new(file, len, libc::POSIX_FADV_WILLNEED)
                .offset(*offset)
                .build()
        }
        Op::Offload(_) => opcode::Nop::new().build(),
    };
    debug_assert!(may(&entry), "an op that a restricted ring refuses");
    entry.user_data(key.to_bits())
}

/// The result of a notification of a zero-copy send: whether the kernel has copied.
pub(crate) fn notified(result: i32) -> i32 {
    i32::from(result as u32 & USAGE_COPIED != 0)
}

/// Whether a restricted ring takes this entry's opcode.
fn may(entry: &Entry) -> bool {
    OPCODES
        .iter()
        .any(|opcode| u32::from(*opcode) == entry.get_opcode())
}

/// The cancellation of an op; its own completion is ignored.
pub(crate) fn cancel(key: SlotKey) -> Entry {
    opcode::AsyncCancel::new(key.to_bits())
        .build()
        .user_data(IGNORED)
}

/// The close of a descriptor; its own completion is ignored.
pub(crate) fn close(number: RawFd) -> Entry {
    opcode::Close::new(types::Fd(number))
        .build()
        .user_data(IGNORED)
}

/// The multishot poll on the wake eventfd.
pub(crate) fn wake(number: RawFd) -> Entry {
    opcode::PollAdd::new(types::Fd(number), libc::POLLIN as u32)
        .multi(true)
        .build()
        .user_data(WAKE)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::rc::Rc;

    use super::*;
    use crate::runtime::buf::BufPool;
    use crate::runtime::buf::fixed::FIXED_BYTES;
    use crate::runtime::engine::Engine;
    use crate::runtime::engine::poll::Poll;
    use crate::runtime::executor::Core;
    use crate::runtime::mailbox::Wake;
    use crate::runtime::op::OpenRequest;
    use crate::runtime::slot::SlotTable;
    use rustix::fs::ResolveFlags;

    /// One of every op, with its variations.
    fn ops(core: &Core) -> Vec<Op> {
        let fd = || core.own(tempfile::tempfile().unwrap().into());
        core.allow_fixed(2, FIXED_BYTES);
        let ops = vec![
            Op::Accept {
                listener: fd(),
                one: false,
            },
            Op::Accept {
                listener: fd(),
                one: true,
            },
            Op::Connect {
                socket: fd(),
                address: Box::new(SocketAddr::from(([127, 0, 0, 1], 1)).into()),
            },
            Op::Recv {
                socket: fd(),
                one: false,
            },
            Op::Recv {
                socket: fd(),
                one: true,
            },
            Op::Send {
                socket: fd(),
                data: vec![1],
                from: 0,
                more: true,
            },
            Op::Ready {
                fd: fd(),
                interest: Interest::Readable,
            },
            Op::Open(Box::new(OpenRequest {
                dir: None,
                path: c"/".into(),
                flags: OFlags::PATH,
                resolve: ResolveFlags::empty(),
            })),
            Op::Read {
                file: fd(),
                data: Vec::new(),
                len: 1,
                offset: 0,
            },
            Op::ReadFixed {
                file: fd(),
                buffer: core.fixed_buffer().unwrap(),
                at: 0,
                len: 1,
                offset: 0,
            },
            Op::SendZeroCopy {
                socket: Some(fd()),
                bytes: Rc::new(core.fixed_buffer().unwrap()),
                range: (0, 0),
                more: true,
                ledger: Rc::default(),
            },
            Op::WillNeed {
                file: fd(),
                offset: 0,
                len: 1,
            },
            Op::Offload(Box::new(|| Box::new(()))),
        ];
        for op in &ops {
            // No wildcard: whoever adds an op is led here, and adds it above.
            match op {
                Op::Accept { .. } | Op::Recv { .. } | Op::Send { .. } | Op::Ready { .. } => {}
                Op::Connect { .. } | Op::Open(_) | Op::Read { .. } | Op::WillNeed { .. } => {}
                Op::Offload(_) => {}
                Op::ReadFixed { .. } | Op::SendZeroCopy { .. } => {}
            }
        }
        ops
    }

    #[test]
    fn every_entry_of_ours_may_pass_and_no_forbidden_one_does() {
        let wake = Wake::new().unwrap();
        let poll = Engine::Poll(Box::new(Poll::new(&wake).unwrap()));
        let core = Core::new(poll, BufPool::software(4), wake, None);
        let mut slots = SlotTable::default();
        let key = slots.insert(ops(&core).remove(0), None, None).ok().unwrap();
        for mut op in ops(&core) {
            let how = open_how(&op);
            let how = how
                .as_ref()
                .map_or(std::ptr::null(), |how| &raw const **how);
            assert!(may(&entry(key, &mut op, how)));
        }
        for entry in [cancel(key), close(0), wake_entry()] {
            assert!(may(&entry));
        }
        for (index, (what, entry)) in forbidden().into_iter().enumerate() {
            assert!(!may(&entry), "{what} would pass");
            assert_eq!(forbidden_index(entry.get_user_data()), Some(index));
        }
        for other in [IGNORED, WAKE, key.to_bits(), FORBIDDEN_LAST - 5] {
            assert_eq!(forbidden_index(other), None);
        }
        assert!(core.shut_down());
    }

    fn wake_entry() -> Entry {
        wake(0)
    }
}
