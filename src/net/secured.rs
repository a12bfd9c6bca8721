//! A connection under TLS, as the two directions of its socket share it: what is received goes through
//! [`Secured::open`], what is sent through [`Secured::seal`], and either may have something to say for
//! the protocol itself.
//!
//! Ciphertext leaves in the order in which it was made: while a send is in flight, whatever is made
//! waits in the queue behind it.
//!
//! From some moment on the kernel may make the records ([`Secured::hand_over`], `kernel`): then what is sent goes
//! into the socket as it is, and nothing is sealed here any more.

mod kernel;
mod tunnel;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use rustix::io::Errno;

use super::tls::records::{RECORD_MAX, RecordSizer};
use super::tls::{Failure, Handshake, Plain, Settings, TlsServer};
use crate::runtime::buf::RecvBuf;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;

pub use kernel::KERNEL_FROM;
use kernel::Kernel;
pub use tunnel::{TunnelSide, tunnel};

/// Most bytes that are encrypted before they are sent: a batch then fits into a buffer that the core
/// keeps for use again.
pub(super) const SEAL_BYTES: usize = 3 * RECORD_MAX;

/// Most bytes that the protocol itself may have queued, such as answers to key updates. A client that
/// takes nothing and wants more is cut off.
const QUEUE_MAX: usize = 128 << 10;

/// The TLS side of a connection.
pub struct Secured {
    core: Core,
    socket: Fd,
    tls: RefCell<TlsServer>,
    sizer: RefCell<RecordSizer>,
    /// Ciphertext that is to be sent.
    queue: RefCell<Vec<u8>>,
    /// A part of the queue is being sent by an op.
    sending: Cell<bool>,
    /// Bytes of ciphertext that the kernel has taken.
    sent: Cell<u64>,
    failure: Cell<Option<Failure>>,
    kernel: Kernel,
}

impl Secured {
    /// For a connection whose ClientHello names `name`, by these settings.
    ///
    /// # Errors
    /// [`Failure::Ours`].
    pub fn new(
        (core, socket): (&Core, &Fd),
        settings: &Settings,
        name: Option<Box<str>>,
    ) -> Result<Rc<Self>, Failure> {
        Ok(Rc::new(Self {
            core: core.clone(),
            socket: socket.clone(),
            tls: RefCell::new(TlsServer::new(settings, name)?),
            sizer: RefCell::default(),
            queue: RefCell::default(),
            sending: Cell::new(false),
            sent: Cell::new(0),
            failure: Cell::new(None),
            kernel: Kernel::default(),
        }))
    }

    /// Whether the handshake is over.
    pub fn is_open(&self) -> bool {
        self.tls.borrow().is_open()
    }

    /// What the handshake came to.
    pub fn handshake(&self) -> Option<Handshake> {
        self.tls.borrow().handshake()
    }

    /// Whether this is the name that the client asked for; `None` where it asked for none.
    pub fn is_named(&self, name: &str) -> Option<bool> {
        self.tls.borrow().name().map(|own| own == name)
    }

    /// What ended it.
    pub fn failure(&self) -> Option<Failure> {
        self.failure.get()
    }

    /// Whether the client has said that nothing follows.
    pub fn is_peer_closed(&self) -> bool {
        self.tls.borrow().is_peer_closed()
    }

    /// Bytes of ciphertext that the kernel has taken.
    pub(super) fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Takes received ciphertext, and gives the plaintext in it: empty where there is none. What the
    /// protocol has to say in answer is sent, or queued where the socket doesn't take it.
    ///
    /// # Errors
    /// What ended the connection; the client was told.
    pub fn open(&self, mut received: RecvBuf) -> Result<RecvBuf, Failure> {
        let result = {
            let mut queue = self.queue.borrow_mut();
            let queued = queue.len();
            let result = self
                .tls
                .borrow_mut()
                .receive(received.bytes_mut(), &mut queue);
            match result {
                Ok(_) if queue.len() > queued && queue.len() > QUEUE_MAX => Err(Failure::TooMuch),
                result => result,
            }
        };
        self.push();
        if result.is_err() {
            // One that finds no room is lost with the connection.
            let _ = self.send_alert();
        }
        match result {
            Ok(Plain::InPlace(length)) => {
                received.truncate(length);
                Ok(received)
            }
            Ok(Plain::Gathered(plain)) => Ok(RecvBuf::own(plain.into())),
            Err(failure) => {
                self.failure.set(Some(failure));
                Err(failure)
            }
        }
    }

    /// Encrypts the first bytes of `plain` into the queue, at most [`SEAL_BYTES`] of them, and says how
    /// many.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn seal(&self, plain: &[u8]) -> Result<usize, Failure> {
        let most = plain.len().min(SEAL_BYTES);
        let mut sealed = 0;
        while sealed < most {
            sealed += self.seal_one(&plain[sealed..most], plain.len() - sealed)?;
        }
        Ok(sealed)
    }

    /// Encrypts one record, of a message of which so much is left.
    pub(super) fn seal_one(&self, plain: &[u8], left: usize) -> Result<usize, Failure> {
        let mut queue = self.queue.borrow_mut();
        if queue.capacity() == 0 {
            *queue = self.core.send_buffer();
        }
        let now = self.core.now();
        let size = self.sizer.borrow_mut().next(left, now).min(plain.len());
        let sealed = self.tls.borrow_mut().send(&plain[..size], &mut queue);
        sealed.inspect_err(|failure| self.failure.set(Some(*failure)))?;
        Ok(size)
    }

    /// Queues what tells the client that nothing follows.
    pub(super) fn close(&self) {
        self.tls.borrow_mut().close(&mut self.queue.borrow_mut());
    }

    /// Whether ciphertext waits to be sent.
    pub fn is_pending(&self) -> bool {
        self.sending.get() || !self.queue.borrow().is_empty()
    }

    /// Sends what the socket takes of the queue at once, unless an op is sending.
    pub(super) fn push(&self) {
        if self.sending.get() {
            return;
        }
        let mut queue = self.queue.borrow_mut();
        if queue.is_empty() {
            return;
        }
        // What is broken is told to who waits for the socket.
        if let Ok(sent) = self.core.send_now(&self.socket, &queue, false) {
            self.took(sent);
            if sent == queue.len() {
                self.core.recycle(std::mem::take(&mut queue));
            } else {
                queue.drain(..sent);
            }
        }
    }

    /// Takes the queue, to be sent by an op; `None` when it is empty. [`Self::sent_all`] follows, or the
    /// connection is never sent to again.
    pub(super) fn take_queue(&self) -> Option<Vec<u8>> {
        let queue = std::mem::take(&mut *self.queue.borrow_mut());
        if queue.is_empty() {
            return None;
        }
        self.sending.set(true);
        Some(queue)
    }

    /// What was taken is with the kernel.
    pub(super) fn sent_all(&self) {
        self.sending.set(false);
    }

    /// The kernel has taken so many bytes of ciphertext.
    pub(super) fn took(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }
}

/// How a connection ends whose protocol has failed.
pub(super) fn errno(_: Failure) -> Errno {
    Errno::PROTO
}
