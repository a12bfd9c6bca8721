//! Signals as events: blocked in every thread, read from a descriptor by the main thread alone, so
//! that no code ever runs in a signal context.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::sys;

/// Bytes of a `signalfd_siginfo` (signalfd(2)); the number of the signal is its first 32 bits.
const SIGINFO_BYTES: usize = 128;

/// Where its `ssi_code` begins: who sent it (sigaction(2)).
const CODE_OFFSET: usize = 8;

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
    /// SIGUSR2.
    User2,
    /// SIGWINCH from a process. The kernel's own, which says that the terminal's window was resized,
    /// is none.
    WindowChange,
}

impl Signal {
    const ALL: [(libc::c_int, Self); 7] = [
        (libc::SIGINT, Self::Interrupt),
        (libc::SIGTERM, Self::Terminate),
        (libc::SIGQUIT, Self::Terminate),
        (libc::SIGHUP, Self::Hangup),
        (libc::SIGUSR1, Self::User1),
        (libc::SIGUSR2, Self::User2),
        (libc::SIGWINCH, Self::WindowChange),
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
            let word = |at: usize| [info[at], info[at + 1], info[at + 2], info[at + 3]];
            let number = u32::from_ne_bytes(word(0));
            // SI_USER, SI_QUEUE and SI_TKILL aren't positive; SI_KERNEL is.
            let from_kernel = i32::from_ne_bytes(word(CODE_OFFSET)) > 0;
            let known = Signal::ALL
                .into_iter()
                .find(|(of, _)| u32::try_from(*of) == Ok(number));
            match known {
                Some((_, Signal::WindowChange)) if from_kernel => {}
                Some((_, signal)) => return Some(signal),
                None => {}
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
            sys::raise(libc::SIGWINCH);
            let mut read: Vec<Signal> = std::iter::from_fn(|| signals.next()).collect();
            read.sort_by_key(|signal| format!("{signal:?}"));
            let sent = [Signal::Hangup, Signal::Terminate, Signal::WindowChange];
            assert_eq!(read, sent);
            assert_eq!(signals.next(), None);
        })
        .join()
        .unwrap();
    }
}
