//! A connection whose records the kernel makes, as far as they are sent (kTLS): then sendfile(2) and
//! splice(2) work as they do without TLS, and nothing is copied to be encrypted.
//!
//! It begins with the first large content, not with the connection: the kernel needs a moment to make its
//! cipher, knows no small records for a fast first byte, and isn't faster than we are at small answers.
//! There is no way back. From then on the kernel alone may write to the socket; what the protocol itself
//! has to say are alerts, each a record of its own.

use std::cell::Cell;

use rustix::io::Errno;

use super::{Secured, Tls};
use crate::net::tls::Failure;
use crate::net::tls::kernel::{self, ALERT, Kind, RECORDS_MAX};

/// Content from this size on makes it worth while to have the kernel encrypt: some copies of so many bytes
/// take several times as long as it does to hand a connection over.
pub const KERNEL_FROM: u64 = 256 << 10;

/// What a connection has of the kernel.
#[derive(Default)]
pub(super) struct Kernel {
    state: Cell<State>,
    /// Up to this many bytes of content the keys can't be used up.
    good_to: Cell<u64>,
    /// A good part of what the keys are good for is used up.
    worn: Cell<bool>,
}

#[derive(Clone, Copy, Default)]
enum State {
    /// Records are made here.
    #[default]
    Ours,
    /// So they are, and the kernel has refused to make them.
    Refused,
    /// By the kernel, with keys of this kind.
    Kernels(Kind),
}

impl Secured {
    /// Whether the kernel encrypts what is put into the socket.
    pub(in crate::net) fn is_kernels(&self) -> bool {
        matches!(self.kernel.state.get(), State::Kernels(_))
    }

    /// Has the kernel make the records from now on where it can and nothing is on its way in either
    /// direction, and says whether it does. What fails after the keys were given away fails the
    /// connection: it never sends anything that isn't encrypted.
    pub(in crate::net) fn hand_over(&self) -> bool {
        let kinds = self.core.kernel_tls_kinds();
        match self.kernel.state.get() {
            State::Kernels(_) => return true,
            State::Refused => return false,
            State::Ours if kinds == 0 || self.is_pending() => return false,
            State::Ours => {}
        }
        let kind = match &*self.tls.borrow() {
            Tls::Server(server) => server.kernel_kind(),
            Tls::Client(_) => None,
        };
        let Some(kind) = kind.filter(|kind| kind.is_among(kinds)) else {
            return false;
        };
        if let Err(errno) = self.core.attach_tls(&self.socket) {
            self.kernel.state.set(State::Refused);
            self.core.count_kernel_tls(|counts| counts.refused += 1);
            tracing::debug!(%errno, "the kernel doesn't take a connection");
            return false;
        }
        let handed = match &mut *self.tls.borrow_mut() {
            Tls::Server(server) => server.hand_over(),
            Tls::Client(_) => Err(Failure::Ours),
        };
        let handed = handed.and_then(|keys| {
            let set = self.core.set_tls_sending(&self.socket, keys.bytes());
            set.map_err(|_| Failure::Ours)
        });
        if let Err(failure) = handed {
            // It was tried at the start, so this is want of memory.
            self.failure.set(Some(failure));
            self.kernel.state.set(State::Refused);
            self.core.count_kernel_tls(|counts| counts.refused += 1);
            return false;
        }
        self.kernel.state.set(State::Kernels(kind));
        if !kind.wears_out() {
            self.kernel.good_to.set(u64::MAX);
        }
        self.core.count_kernel_tls(|counts| {
            counts.open += 1;
            counts.total += 1;
        });
        true
    }

    /// Whether the keys are used up, of a connection that has sent so many bytes of content. The kernel
    /// doesn't look after that, so it is asked for the number of records: each has a byte at least, so it needn't
    /// be asked before as many bytes were sent as records are left.
    pub(in crate::net) fn is_used_up(&self, taken: u64) -> bool {
        let State::Kernels(kind) = self.kernel.state.get() else {
            return false;
        };
        if taken < self.kernel.good_to.get() {
            return false;
        }
        let (mut keys, length) = kernel::room_for(kind);
        let told = self.core.tls_sending(&self.socket, &mut keys[..length]);
        let next = kernel::next_record(&mut keys[..length]).filter(|_| told.is_ok());
        let left = next.map_or(0, |next| RECORDS_MAX.saturating_sub(next));
        self.kernel.worn.set(left < RECORDS_MAX / 2);
        self.kernel.good_to.set(taken.saturating_add(left));
        if left == 0 {
            self.failure.set(Some(Failure::Exhausted));
        }
        left == 0
    }

    /// Whether the connection is to end with its present response: the keys that the kernel has can't be renewed,
    /// and they are worn, or the client has asked for others.
    pub(in crate::net) fn is_spent(&self) -> bool {
        self.is_kernels()
            && (self.kernel.worn.get()
                || on_either!(&*self.tls.borrow(), one => one.is_asked_for_keys()))
    }

    /// Sends the alert that is to be sent by the kernel, if there is one.
    ///
    /// # Errors
    /// `EAGAIN` when the socket takes nothing now: it is still to be sent.
    pub(in crate::net) fn send_alert(&self) -> Result<(), Errno> {
        let Some(alert) = on_either!(&mut *self.tls.borrow_mut(), one => one.take_alert()) else {
            return Ok(());
        };
        // Where the kernel doesn't encrypt, nothing may be sent.
        if !self.is_kernels() {
            return Ok(());
        }
        let sent = self.core.send_tls_record(&self.socket, ALERT, &alert);
        if sent == Err(Errno::AGAIN) {
            on_either!(&mut *self.tls.borrow_mut(), one => one.put_alert_back(alert));
        }
        sent
    }
}

impl Secured {
    /// The connection goes.
    pub(super) fn leave_kernel(&self) {
        if self.is_kernels() {
            self.core.count_kernel_tls(|counts| counts.open -= 1);
        }
    }
}
