//! A connection under TLS, as the two directions of its socket share it: what is received goes through
//! [`Secured::open`], what is sent through [`Secured::seal`], and either may have something to say for
//! the protocol itself.
//!
//! Ciphertext leaves in the order in which it was made: while a send is in flight, whatever is made
//! waits in the queue behind it.
//!
//! From some moment on the kernel may make the records ([`Secured::hand_over`], `kernel`): then what is sent goes
//! into the socket as it is, and nothing is sealed here any more.

/// Does the same on either side.
macro_rules! on_either {
    ($tls:expr, $side:ident => $does:expr) => {
        match $tls {
            Tls::Server($side) => $does,
            Tls::Client($side) => $does,
        }
    };
}

mod connect;
mod kernel;
mod tunnel;

use std::cell::{Cell, RefCell, RefMut};
use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;

use super::send::FilePart;
use super::tls::records::{RECORD_MAX, RecordSizer};
use super::tls::{
    ClientCertificate, ClientSettings, Clients, Failure, Handshake, PeerName, Plain, Settings,
    TlsClient, TlsServer,
};
use crate::runtime::buf::RecvBuf;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;

pub use connect::{HandshakeError, connect, why};
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
    tls: RefCell<Tls>,
    sizer: RefCell<RecordSizer>,
    /// Ciphertext that is to be sent.
    queue: RefCell<Vec<u8>>,
    /// A part of the queue is being sent by an op.
    sending: Cell<bool>,
    /// Bytes of ciphertext that the kernel has taken.
    sent: Cell<u64>,
    failure: Cell<Option<Failure>>,
    /// Its client isn't admitted any more.
    is_over: Cell<bool>,
    /// Nothing is owed to the peer: it is told when this goes.
    leaves_politely: Cell<bool>,
    kernel: Kernel,
}

/// What came of [`Secured::seal_file`].
pub(super) struct SealedFile {
    /// Bytes of the file.
    pub(super) of_file: usize,
    pub(super) ended: Ended,
}

/// Why no more of a file was encrypted.
pub(super) enum Ended {
    /// It is the end of it, or of a batch.
    Whole,
    /// What follows isn't in memory, or its file system can't say.
    Missing,
    /// The file is shorter than it was.
    FileShrank,
}

/// Whose side of the connection this is.
enum Tls {
    Server(TlsServer),
    Client(TlsClient),
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
        let tls = Tls::Server(TlsServer::new(settings, name)?);
        Ok(Self::of((core, socket), tls, Vec::new()))
    }

    /// For a connection to a server of this name. What begins the handshake is queued behind `header`,
    /// which is in the clear.
    ///
    /// # Errors
    /// As [`Self::new`].
    fn client(
        (core, socket): (&Core, &Fd),
        (settings, name): (&ClientSettings, &PeerName),
        header: Vec<u8>,
    ) -> Result<Rc<Self>, Failure> {
        let mut queue = header;
        let tls = Tls::Client(TlsClient::connect(settings, name, &mut queue)?);
        Ok(Self::of((core, socket), tls, queue))
    }

    fn of((core, socket): (&Core, &Fd), tls: Tls, queue: Vec<u8>) -> Rc<Self> {
        Rc::new(Self {
            core: core.clone(),
            socket: socket.clone(),
            tls: RefCell::new(tls),
            sizer: RefCell::default(),
            queue: RefCell::new(queue),
            sending: Cell::new(false),
            sent: Cell::new(0),
            failure: Cell::new(None),
            is_over: Cell::new(false),
            leaves_politely: Cell::new(false),
            kernel: Kernel::default(),
        })
    }

    /// Whether the handshake is over.
    pub fn is_open(&self) -> bool {
        on_either!(&*self.tls.borrow(), one => one.is_open())
    }

    /// What the handshake came to.
    pub fn handshake(&self) -> Option<Handshake> {
        on_either!(&*self.tls.borrow(), one => one.handshake())
    }

    /// Gives the name that is asked for, if one is.
    pub fn with_name<T>(&self, take: impl FnOnce(Option<&str>) -> T) -> T {
        take(on_either!(&*self.tls.borrow(), one => one.name()))
    }

    /// Gives who the client is by its certificate, if it has shown one.
    pub fn with_client<T>(&self, take: impl FnOnce(Option<&ClientCertificate>) -> T) -> T {
        match &*self.tls.borrow() {
            Tls::Server(server) => take(server.client()),
            Tls::Client(_) => take(None),
        }
    }

    /// The name in a certificate of the client that was refused.
    pub fn refused_client(&self) -> Option<String> {
        match &*self.tls.borrow() {
            Tls::Server(server) => server.refused_client().map(str::to_owned),
            Tls::Client(_) => None,
        }
    }

    /// Whether the client is one of these at `now`, in seconds since 1970. If not, the connection is over:
    /// another one may go better.
    ///
    /// # Errors
    /// As [`TlsServer::admits`].
    pub fn admits(&self, clients: &Arc<Clients>, now: i64) -> Result<(), Failure> {
        let admitted = match &mut *self.tls.borrow_mut() {
            Tls::Server(server) => server.admits(clients, now),
            // Servers are no clients.
            Tls::Client(_) => Err(Failure::Ours),
        };
        self.is_over.set(admitted.is_err());
        admitted
    }

    /// Whether no further request is to be taken.
    pub fn is_over(&self) -> bool {
        self.is_over.get()
    }

    /// What ended it.
    pub fn failure(&self) -> Option<Failure> {
        self.failure.get()
    }

    /// More of that, in words.
    fn detail(&self) -> Option<Box<str>> {
        on_either!(&*self.tls.borrow(), one => one.detail().map(Box::from))
    }

    /// Whether the peer has said that nothing follows.
    pub fn is_peer_closed(&self) -> bool {
        on_either!(&*self.tls.borrow(), one => one.is_peer_closed())
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
            let bytes = received.bytes_mut();
            let mut tls = self.tls.borrow_mut();
            let result = on_either!(&mut *tls, one => one.receive(bytes, &mut queue));
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
    pub fn seal(&self, plain: &[u8]) -> Result<usize, Failure> {
        let most = plain.len().min(SEAL_BYTES);
        let mut sealed = 0;
        while sealed < most {
            sealed += self.seal_one(&plain[sealed..most], plain.len() - sealed)?;
        }
        Ok(sealed)
    }

    /// Encrypts one record, of a message of which so much is left.
    pub(super) fn seal_one(&self, plain: &[u8], left: usize) -> Result<usize, Failure> {
        let mut queue = self.queue();
        let now = self.core.now();
        let size = self.sizer.borrow_mut().next(left, now).min(plain.len());
        let mut tls = self.tls.borrow_mut();
        let sealed = on_either!(&mut *tls, one => one.send(&plain[..size], &mut queue));
        sealed.inspect_err(|failure| self.failure.set(Some(*failure)))?;
        Ok(size)
    }

    /// The queue, with room of the core's.
    fn queue(&self) -> RefMut<'_, Vec<u8>> {
        let mut queue = self.queue.borrow_mut();
        if queue.capacity() == 0 {
            *queue = self.core.send_buffer();
        }
        queue
    }

    /// Encrypts `head` and what is in memory of a part of a file behind it, at most [`SEAL_BYTES`] of both:
    /// the file is read to where its records are made. What is used up of the two is taken off.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn seal_file(
        &self,
        head: &mut &[u8],
        part: &mut FilePart,
    ) -> Result<SealedFile, Failure> {
        let mut queue = self.queue();
        let mut tls = self.tls.borrow_mut();
        let mut sizer = self.sizer.borrow_mut();
        let now = self.core.now();
        let mut sealed = SealedFile {
            of_file: 0,
            ended: Ended::Whole,
        };
        let mut most = SEAL_BYTES;
        while most > 0 && !(head.is_empty() && part.length == 0) {
            let begun = on_either!(&mut *tls, one => one.begin(&mut queue));
            let begun = begun.inspect_err(|failure| self.failure.set(Some(*failure)))?;
            let left = head.len().saturating_add(part.length as usize);
            let size = sizer.next(left, now).min(most);
            let (first, rest) = head.split_at(head.len().min(size));
            queue.extend_from_slice(first);
            *head = rest;
            let wanted = (size - first.len()).min(part.length as usize);
            let read = match wanted {
                0 => Ok(0),
                _ => self
                    .core
                    .append_resident(&part.file, &mut queue, wanted, part.offset),
            };
            if let Ok(read) = read {
                part.offset += read as u64;
                part.length -= read as u64;
                sealed.of_file += read;
            }
            let plain = first.len() + read.unwrap_or(0);
            let finished = on_either!(&mut *tls, one => match plain {
                0 => {
                    one.abandon(&mut queue, begun);
                    Ok(())
                }
                _ => one.finish(&mut queue, begun),
            });
            finished.inspect_err(|failure| self.failure.set(Some(*failure)))?;
            most -= plain;
            match read {
                Ok(0) if wanted > 0 => sealed.ended = Ended::FileShrank,
                Ok(_) => continue,
                Err(_) => sealed.ended = Ended::Missing,
            }
            break;
        }
        Ok(sealed)
    }

    /// Queues what tells the peer that nothing follows.
    pub(super) fn close(&self) {
        let mut queue = self.queue.borrow_mut();
        on_either!(&mut *self.tls.borrow_mut(), one => one.close(&mut queue));
    }

    /// Whether the peer is told, when this goes, that nothing follows: where nothing is owed to it, and
    /// an end without a word would look like a cut.
    pub fn leave_politely(&self, politely: bool) {
        self.leaves_politely.set(politely);
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
    pub fn take_queue(&self) -> Option<Vec<u8>> {
        let queue = std::mem::take(&mut *self.queue.borrow_mut());
        if queue.is_empty() {
            return None;
        }
        self.sending.set(true);
        Some(queue)
    }

    /// What was taken is with the kernel.
    pub fn sent_all(&self) {
        self.sending.set(false);
    }

    /// The kernel has taken so many bytes of ciphertext.
    pub fn took(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        if self.leaves_politely.get() {
            self.close();
            self.push();
        }
        self.leave_kernel();
    }
}

/// How a connection ends whose protocol has failed.
pub(super) fn errno(_: Failure) -> Errno {
    Errno::PROTO
}
