//! Signals as events: blocked in every thread, read from a descriptor by the main thread alone, so
//! that no code ever runs in a signal context.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::sys;

/// Bytes of a `signalfd_siginfo` (signalfd(2)); the number of the signal is its first 32 bits.
const SIGINFO_BYTES: usize = 128;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGINT: somebody at the terminal wants the end.
    Interrupt,
    /// SIGTERM or SIGQUIT: the end.
    Terminate,
    /// SIGHUP.
    Hangup,
    /// SIGUSR1.
    User1,
}

impl Signal {
    const ALL: [(libc::c_int, Self); 5] = [
        (libc::SIGINT, Self::Interrupt),
        (libc::SIGTERM, Self::Terminate),
        (libc::SIGQUIT, Self::Terminate),
        (libc::SIGHUP, Self::Hangup),
        (libc::SIGUSR1, Self::User1),
    ];
}

/// The signals of the process, after they were blocked.
pub(super) struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks the signals in this thread and all that it starts from now on; ignores SIGPIPE.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub(super) fn block() -> io::Result<Self> {
        sys::ignore_sigpipe();
        let numbers = Signal::ALL.map(|(number, _)| number);
        Ok(Self {
            fd: sys::block_signals(&numbers)?,
        })
    }

    /// The next signal that has come, if there is one. Never waits.
    pub(super) fn next(&self) -> Option<Signal> {
        let mut info = [0; SIGINFO_BYTES];
        loop {
            match rustix::io::read(&self.fd, &mut info) {
                Ok(SIGINFO_BYTES) => {}
                Err(Errno::INTR) => continue,
                Ok(_) | Err(_) => return None,
            }
            let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            let known = Signal::ALL
                .into_iter()
                .find(|(of, _)| u32::try_from(*of) == Ok(number));
            if let Some((_, signal)) = known {
                return Some(signal);
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read_and_does_nothing_else() {
        // A thread of its own: the mask belongs to it and ends with it.
        std::thread::spawn(|| {
            let signals = Signals::block().unwrap();
            assert_eq!(signals.next(), None);
            sys::raise(libc::SIGTERM);
            sys::raise(libc::SIGHUP);
            let mut read = [signals.next(), signals.next()];
            read.sort_by_key(|signal| *signal == Some(Signal::Terminate));
            assert_eq!(read, [Some(Signal::Hangup), Some(Signal::Terminate)]);
            assert_eq!(signals.next(), None);
        })
        .join()
        .unwrap();
    }
}
