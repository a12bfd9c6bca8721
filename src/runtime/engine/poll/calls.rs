//! The system calls that an op tries, and their results in the form of a completion.

use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::net::{SendFlags, getpeername, send, sockopt};

/// Sends at once, as much as there is room for.
pub(super) fn send_now(socket: BorrowedFd<'_>, bytes: &[u8], more: bool) -> Result<usize, Errno> {
    let more = if more {
        SendFlags::MORE
    } else {
        SendFlags::empty()
    };
    loop {
        match send(
            socket,
            bytes,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT | more,
        ) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// How a connect ended; `EAGAIN` while it has not.
pub(super) fn connected(socket: BorrowedFd<'_>) -> Result<usize, Errno> {
    sockopt::socket_error(socket)??;
    match getpeername(socket) {
        Ok(_) => Ok(0),
        Err(Errno::NOTCONN) => Err(Errno::AGAIN),
        Err(errno) => Err(errno),
    }
}

/// Whether it is ready now for one of these.
pub(super) fn is_ready(fd: BorrowedFd<'_>, interest: PollFlags) -> bool {
    let mut asked = [PollFd::from_borrowed_fd(fd, interest)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    !matches!(
        rustix::event::poll(&mut asked, Some(&now)),
        Ok(0) | Err(Errno::INTR)
    )
}

/// As the ring has it: `-errno`.
pub(super) fn as_result(result: Result<usize, Errno>) -> i32 {
    match result {
        Ok(bytes) => i32::try_from(bytes).unwrap_or(i32::MAX),
        Err(errno) => -errno.raw_os_error(),
    }
}
