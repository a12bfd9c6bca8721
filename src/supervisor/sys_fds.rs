//! Takes over descriptors that another program opened: those that a service manager hands over, and
//! those that pass through an exec. Only their numbers say that they are ours.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// The first descriptor that isn't a standard stream.
const FIRST: RawFd = 3;

/// Takes the open descriptor `fd`, and closes it on exec from now on. The caller was told, by whoever
/// started the program, that this number is its own, and gives each number once.
///
/// # Errors
/// EBADF when it isn't open; `InvalidInput` for a standard stream.
pub(super) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < FIRST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: F_GETFD and F_SETFD take no pointer; a number that isn't open gives EBADF.
    let set = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFD);
        flags >= 0 && libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) == 0
    };
    if !set {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, as the call above has shown, and nobody else in this program owns
    // it: it was open when the program began, and the caller gives each number once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd as _;

    use super::*;

    #[test]
    fn an_open_descriptor_is_taken_and_closed_on_exec() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        rustix::io::fcntl_setfd(&one, rustix::io::FdFlags::empty()).unwrap();
        let owned = adopt(one.into_raw_fd()).unwrap();
        let flags = rustix::io::fcntl_getfd(&owned).unwrap();
        assert_eq!(flags, rustix::io::FdFlags::CLOEXEC);
    }

    #[test]
    fn what_isnt_open_or_is_a_standard_stream_is_not_taken() {
        let error = adopt(RawFd::MAX).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        assert_eq!(adopt(2).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
