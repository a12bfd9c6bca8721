//! The few calls of the supervisor that need `unsafe`, each behind a safe signature with its reason.
#![allow(unsafe_code)]

pub(super) mod accounts;
pub(super) mod filter;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

/// Blocks these signals in the calling thread, and in every thread that it starts from now on, and
/// gives a descriptor that they are read from instead: non-blocking, closed on exec (signalfd(2)).
///
/// # Errors
/// EMFILE, ENFILE or ENOMEM.
pub(super) fn block_signals(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that it is given, and sigaddset changes an initialised
    // one; neither keeps the pointer.
    let set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            if libc::sigaddset(set.as_mut_ptr(), *signal) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        set.assume_init()
    };
    // SAFETY: the set is initialised and outlives the call; no old mask is asked for.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: the set is initialised and outlives the call.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets a write to a connection that is gone fail with EPIPE instead of ending the process. sendfile(2)
/// has no flag for it as send(2) has.
pub(super) fn ignore_sigpipe() {
    // SAFETY: SIG_IGN is no handler of ours: nothing runs in a signal context.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// Sends a signal to the calling thread, for tests.
#[cfg(test)]
pub(super) fn raise(signal: libc::c_int) {
    // SAFETY: the call has no requirement but a valid thread, which the calling one is.
    let error = unsafe { libc::pthread_kill(libc::pthread_self(), signal) };
    assert_eq!(error, 0);
}
