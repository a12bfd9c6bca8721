//! Sockets whose records the kernel makes (linux/tls.h, kernel 4.13): the options that nobody wraps,
//! and records of another type than content.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Puts the kernel's TLS on a connected socket (`TCP_ULP`, tcp(7)); by itself that changes nothing.
///
/// # Errors
/// `ENOENT` where the kernel has none, or hasn't loaded it; `ENOTCONN` on a socket that isn't connected
/// in both directions; `EEXIST` where it is there already.
pub(crate) fn attach(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    set(socket, (libc::IPPROTO_TCP, libc::TCP_ULP), b"tls")
}

/// From now on what is sent is encrypted by these keys, one of the `tls12_crypto_info_*` structures.
///
/// # Errors
/// `EINVAL`, `ENOENT` for a version or cipher that the kernel hasn't got, `EBUSY` where it has keys.
pub(crate) fn set_sending(socket: BorrowedFd<'_>, keys: &[u8]) -> Result<(), Errno> {
    set(socket, (libc::SOL_TLS, libc::TLS_TX), keys)
}

/// Fills `keys` with those that are in use, and the number of the next record. It has to have the
/// size of their structure.
///
/// # Errors
/// `EINVAL` for another size or a cipher of which the kernel doesn't tell.
pub(crate) fn sending(socket: BorrowedFd<'_>, keys: &mut [u8]) -> Result<(), Errno> {
    let mut length = length_of(keys);
    // SAFETY: the kernel writes at most `length` bytes to `keys`, which is as long and outlives the call,
    // and one socklen_t to `length`.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_TLS,
            libc::TLS_TX,
            keys.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    result(done as isize).map(drop)
}

/// Sends one record of this type (RFC 8446 §5.1) on a socket whose records the kernel makes; one of
/// content that is still open goes before it. Never blocks.
///
/// # Errors
/// `EAGAIN` when the socket takes nothing now.
pub(crate) fn send_record(
    socket: BorrowedFd<'_>,
    kind: u8,
    content: &[u8],
) -> Result<usize, Errno> {
    /// Room for a header and one byte, aligned as a header has to be.
    #[repr(C, align(8))]
    struct Control([u8; 32]);

    let mut control = Control([0; 32]);
    let mut slice = libc::iovec {
        iov_base: content.as_ptr().cast_mut().cast(),
        iov_len: content.len(),
    };
    // SAFETY: a msghdr of zeros is a valid one without anything in it.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: arithmetic only.
    let space = unsafe { libc::CMSG_SPACE(1) } as usize;
    assert!(space <= control.0.len(), "a header and a byte have room");
    message.msg_controllen = space as _;
    // SAFETY: `control` has room for one header and its byte and is aligned for it, so the first header
    // and its data lie in it; nothing else refers to it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_TLS;
        (*header).cmsg_type = libc::TLS_SET_RECORD_TYPE;
        (*header).cmsg_len = libc::CMSG_LEN(1) as _;
        *libc::CMSG_DATA(header) = kind;
    }
    // SAFETY: everything that `message` refers to outlives the call; the kernel reads it only.
    let sent = unsafe {
        libc::sendmsg(
            socket.as_raw_fd(),
            &raw const message,
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        )
    };
    result(sent)
}

fn set(
    socket: BorrowedFd<'_>,
    (level, option): (libc::c_int, libc::c_int),
    value: &[u8],
) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many bytes as `value` has, which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            value.as_ptr().cast(),
            length_of(value),
        )
    };
    result(done as isize).map(drop)
}

/// Structures of options have some bytes.
fn length_of(value: &[u8]) -> libc::socklen_t {
    libc::socklen_t::try_from(value.len()).unwrap_or(0)
}

fn result(done: isize) -> Result<usize, Errno> {
    usize::try_from(done)
        .map_err(|_| Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}
