//! Receiving from a connection: a multishot receive that survives stalls.

use std::num::NonZeroU64;
use std::rc::Rc;
use std::task::Poll;

use rustix::io::Errno;

use super::secured::{self, Secured};
use super::tls::records::RECORD_MAX;
use crate::runtime::buf::RecvBuf;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::Many;
use crate::runtime::op::{Op, Output};

/// Why no more bytes come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer has ended its direction.
    Closed,
    /// The connection is broken: reset, timed out.
    Broken(Errno),
}

/// The bytes that a peer sends, in order.
///
/// It begins again by itself where a multishot receive ends without the stream ending: when the
/// core's buffers were all in use, when the connection's own share of them was, or when the kernel
/// chose to.
pub struct Receiver {
    core: Core,
    socket: Fd,
    receives: Option<Many>,
    /// The receive was asked to end.
    stopping: bool,
    /// Each receive ends with the first bytes.
    one_by_one: bool,
    /// The core is out of buffers, and this task stands in the queue for the next, at this place.
    starved: Option<NonZeroU64>,
    end: Option<End>,
    /// What the bytes are decrypted by.
    secured: Option<Rc<Secured>>,
}

impl Receiver {
    /// Receives from a connected socket; nothing is armed before the first poll.
    pub fn new(core: &Core, socket: Fd) -> Self {
        Self {
            core: core.clone(),
            socket,
            receives: None,
            stopping: false,
            one_by_one: false,
            starved: None,
            end: None,
            secured: None,
        }
    }

    /// From now on what comes is decrypted, and given as plaintext.
    pub fn secure(&mut self, secured: Rc<Secured>) {
        self.secured = Some(secured);
    }

    /// Whether what comes is decrypted: nobody else can then take bytes from the socket.
    pub fn is_secured(&self) -> bool {
        self.secured.is_some()
    }

    /// What it is decrypted by.
    pub fn secured(&self) -> Option<&Rc<Secured>> {
        self.secured.as_ref()
    }

    /// Whether the stream was cut: it ended, and the peer had not said that it would, as TLS has it
    /// (RFC 8446 §6.1). It matters where nothing else tells the end of a message.
    pub fn is_cut(&self) -> bool {
        let secured = self.secured.as_ref();
        self.end.is_some() && secured.is_some_and(|secured| !secured.is_peer_closed())
    }

    /// Whether each receive that begins from now on ends with the first bytes it brings, at most a
    /// buffer of them. What comes behind them stays in the socket until the next poll, for who takes
    /// it by other means ([`crate::net::splice`]); many small messages are dearer that way.
    pub fn one_by_one(&mut self, one_by_one: bool) {
        self.one_by_one = one_by_one;
    }

    /// The next bytes, never empty. An end repeats.
    pub fn poll_next(&mut self) -> Poll<Result<RecvBuf, End>> {
        match self.secured {
            None => self.poll_bytes(),
            Some(_) => self.poll_plain(),
        }
    }

    /// As [`Self::poll_next`], decrypted.
    #[inline(never)]
    fn poll_plain(&mut self) -> Poll<Result<RecvBuf, End>> {
        loop {
            let Poll::Ready(received) = self.poll_bytes() else {
                return Poll::Pending;
            };
            let (bytes, secured) = match (received, &self.secured) {
                (Ok(bytes), Some(secured)) => (bytes, secured),
                (received, _) => return Poll::Ready(received),
            };
            match secured.open(bytes) {
                Ok(plain) => {
                    if secured.is_peer_closed() {
                        self.end = Some(End::Closed);
                    }
                    if !plain.is_empty() {
                        return Poll::Ready(Ok(plain));
                    }
                }
                Err(failure) => self.end = Some(End::Broken(secured::errno(failure))),
            }
        }
    }

    /// As [`Self::poll_next`], just as it comes.
    fn poll_bytes(&mut self) -> Poll<Result<RecvBuf, End>> {
        loop {
            if let Some(end) = self.end {
                return Poll::Ready(Err(end));
            }
            if let Some(place) = &mut self.starved {
                if self.core.poll_buffers_back(place).is_pending() {
                    return Poll::Pending;
                }
                self.starved = None;
            }
            let receives = self.receives.get_or_insert_with(|| {
                self.core.many(Op::Recv {
                    socket: self.socket.clone(),
                    one: self.one_by_one,
                })
            });
            let Poll::Ready(received) = receives.poll_next() else {
                return Poll::Pending;
            };
            if !received.more {
                self.receives = None;
                self.stopping = false;
            }
            match (received.result, received.output) {
                (Ok(1..), Output::Received(bytes)) => return Poll::Ready(Ok(bytes)),
                (Ok(_), _) if received.more => {}
                (Ok(_), _) => self.end = Some(End::Closed),
                (Err(Errno::NOBUFS | Errno::AGAIN), _) => {
                    self.starved = Some(self.core.wait_for_buffers());
                    return Poll::Pending;
                }
                (Err(Errno::CANCELED | Errno::INTR), _) => {}
                (Err(errno), _) => self.end = Some(End::Broken(errno)),
            }
        }
    }

    /// Whether a connection on which nothing is due has anything to say: ready with bytes that nobody
    /// asked for, of which one may be lost, or with the end. Where no receive is armed (after a stop, or
    /// for want of buffers), what has come would be told later than the next request is sent; so the
    /// socket itself is asked.
    pub fn poll_unasked(&mut self) -> Poll<Result<(), End>> {
        if self.ask_socket() {
            return Poll::Ready(Ok(()));
        }
        let polled = self.poll_next().map_ok(drop);
        match polled.is_pending() && self.ask_socket() {
            true => Poll::Ready(Ok(())),
            false => polled,
        }
    }

    /// Whether bytes lie in a socket that no receive is armed on; an end is noted.
    fn ask_socket(&mut self) -> bool {
        if self.receives.is_some() || self.end.is_some() {
            return false;
        }
        if let Some(secured) = self.secured.clone() {
            return self.ask_secured(&secured);
        }
        match self.core.receive_now(&self.socket, &mut [0]) {
            Ok(0) => self.end = Some(End::Closed),
            Ok(_) => return true,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => self.end = Some(End::Broken(errno)),
        }
        false
    }

    /// The same under TLS, where what has come may be nobody's but the protocol's, such as a late ticket.
    #[inline(never)]
    fn ask_secured(&mut self, secured: &Secured) -> bool {
        while self.end.is_none() {
            let mut data = self.core.send_buffer();
            data.resize(RECORD_MAX, 0);
            match self.core.receive_now(&self.socket, &mut data) {
                Ok(0) => self.end = Some(End::Closed),
                Ok(came) => {
                    data.truncate(came);
                    match secured.open(RecvBuf::own(data.into())) {
                        Ok(plain) if !plain.is_empty() => return true,
                        Ok(_) if secured.is_peer_closed() => self.end = Some(End::Closed),
                        Ok(_) => {}
                        Err(failure) => self.end = Some(End::Broken(secured::errno(failure))),
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => return false,
                Err(errno) => self.end = Some(End::Broken(errno)),
            }
        }
        false
    }

    /// Ends the receive, so that the socket may be read by other means, and gives what had come by then.
    /// An end of the stream that had come is in [`Self::end`]; it isn't told a second time to others
    /// when it was an error. The next poll begins to receive again. When the future is dropped bytes are
    /// lost: the connection is to be closed then.
    pub async fn stop(&mut self) -> Vec<u8> {
        let mut came = Vec::new();
        std::future::poll_fn(|_| self.poll_stop(|bytes| came.extend_from_slice(&bytes))).await;
        came
    }

    /// Ends the receive as [`Self::stop`]: ready when it has ended. Each piece that had come is given
    /// to `take`, at whichever poll, so that nothing is lost when nobody polls to the end.
    pub fn poll_stop(&mut self, mut take: impl FnMut(RecvBuf)) -> Poll<()> {
        self.starved = None;
        let Some(receives) = &mut self.receives else {
            return Poll::Ready(());
        };
        if !std::mem::replace(&mut self.stopping, true) {
            receives.cancel();
        }
        while !receives.ended() {
            let Poll::Ready(received) = receives.poll_next() else {
                return Poll::Pending;
            };
            match (received.result, received.output) {
                (Ok(1..), Output::Received(bytes)) => take(bytes),
                (Ok(_), _) if received.more => {}
                (Ok(_), _) => self.end = Some(End::Closed),
                (Err(Errno::NOBUFS | Errno::AGAIN | Errno::CANCELED | Errno::INTR), _) => {}
                (Err(errno), _) => self.end = Some(End::Broken(errno)),
            }
        }
        self.receives = None;
        self.stopping = false;
        Poll::Ready(())
    }

    /// The socket.
    pub fn socket(&self) -> &Fd {
        &self.socket
    }

    /// Whether the peer has ended or broken the connection, as far as it was told.
    pub fn end(&self) -> Option<End> {
        self.end
    }
}
