//! Ops as submission queue entries.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};
use rustix::fs::{CWD, OFlags};

use std::os::fd::AsRawFd;

use crate::runtime::op::{Interest, Op};
use crate::runtime::slot::SlotKey;

/// The group id of the core's receive buffers.
pub(crate) const BUFFER_GROUP: u16 = 0;

/// Completions that nobody waits for: closes and cancellations.
pub(crate) const IGNORED: u64 = u64::MAX;

/// Completions of the poll on the wake eventfd.
pub(crate) const WAKE: u64 = u64::MAX - 1;

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
        Op::Recv { socket } => {
            opcode::RecvMulti::new(types::Fd(socket.raw()), BUFFER_GROUP).build()
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
        Op::Offload(_) => opcode::Nop::new().build(),
    };
    entry.user_data(key.to_bits())
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
