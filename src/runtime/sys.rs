//! The few calls that need `unsafe`, each behind a safe signature with its reason.
#![allow(unsafe_code)]

pub(crate) mod heap;
pub(crate) mod trial;

use rustix::io::Errno;
use socket2::{SockAddr, SockRef};

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Takes ownership of a descriptor that the kernel has just made for us: the result of an accept or
/// an open that nobody else has seen.
pub(crate) fn adopt(number: RawFd) -> OwnedFd {
    assert!(number >= 0, "a result that is an error is no descriptor");
    // SAFETY: the callers pass the result of a completed accept or open exactly once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Borrows a descriptor whose owner is a slot: it outlives the job that uses it.
pub(crate) fn borrow(number: RawFd) -> BorrowedFd<'static> {
    assert!(number >= 0, "a slot holds descriptors, not errors");
    // SAFETY: a slot keeps its `Fd` until the terminal completion of its op, which for a helper's job
    // is taken after the job has ended.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Bytes in the socket's send queue that the peer has not acknowledged (`SIOCOUTQ`, tcp(7)).
pub(crate) fn unsent(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int to the given address, which outlives the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    (done == 0).then(|| u64::try_from(bytes).unwrap_or(0))
}

/// Asks for a connection (connect(2)); `EINPROGRESS` when the answer is still to come.
pub(crate) fn connect(socket: BorrowedFd<'_>, address: &SockAddr) -> Result<(), Errno> {
    let done = SockRef::from(&socket).connect(address);
    done.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Lets a bind to a local address leave the choice of the port to the connect, which takes one that is
/// free for this peer (`IP_BIND_ADDRESS_NO_PORT`, ip(7), kernel 4.2). Without it the ports of the
/// machine are the bound for the connections to all peers together.
pub(crate) fn bind_without_port(socket: BorrowedFd<'_>) {
    let on: libc::c_int = 1;
    // SAFETY: the option reads one int at the given address, which outlives the call.
    let _ = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
}
