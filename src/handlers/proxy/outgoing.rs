//! The request on its way to a backend: its head, then its body at the pace of both sides.
//!
//! What is in flight is one buffer of at most [`SEND_BYTES`], so a backend that reads slowly holds the
//! client back. What was taken of the body is kept as long as that is little, for another try.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::http::h1::encode::{CHUNK_END, write_chunk_header, write_last_chunk_of};
use crate::http::session::{Upload, UploadError, UploadRelay, UploadRelayError};
use crate::http::types::{Framing, Request};
use crate::net::splice::Cause;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::Once;
use crate::runtime::op::{Op, Output};
use crate::upstream::retry::{RetryPolicy, is_idempotent};

/// Most bytes of a body in one send.
const SEND_BYTES: usize = 64 << 10;

/// A body up to this size is kept for another try, where there may be one after it was sent.
const REPLAY_BYTES: usize = 16 << 10;

/// What was taken of a body, as far as it is kept.
pub(super) struct Replay {
    kept: Vec<u8>,
    /// Most bytes to keep.
    most: usize,
    /// Bytes of `kept` that this try has sent.
    at: usize,
    /// More was taken than is kept.
    is_lost: bool,
    /// All of the body is in `kept`.
    is_all: bool,
}

impl Replay {
    pub(super) fn new(request: &Request<'_>, policy: &RetryPolicy) -> Self {
        let may_repeat = policy.repeats_any_method || is_idempotent(request.method);
        Self {
            kept: Vec::new(),
            most: if may_repeat { REPLAY_BYTES } else { 0 },
            at: 0,
            is_lost: false,
            is_all: false,
        }
    }

    /// Reads the body, up to `bound` bytes of it, before a backend is asked.
    ///
    /// # Errors
    /// When the client's body fails.
    pub(super) async fn buffer(
        &mut self,
        upload: &mut Upload<'_>,
        bound: u64,
    ) -> Result<(), UploadError> {
        let bound = usize::try_from(bound).unwrap_or(usize::MAX);
        self.most = self.most.max(bound);
        while self.kept.len() < bound {
            match upload.chunk().await {
                None => {
                    self.is_all = true;
                    return Ok(());
                }
                Some(Err(error)) => return Err(error),
                Some(Ok(bytes)) => {
                    let taken = bytes.len().min(bound - self.kept.len());
                    self.kept.extend_from_slice(&bytes[..taken]);
                    upload.consume(taken);
                }
            }
        }
        self.is_all = upload.is_ended();
        Ok(())
    }

    /// How the body is framed for a backend: by its length once all of it is here.
    pub(super) fn framing(&self, upload: &Upload<'_>) -> Framing {
        match upload.framing() {
            Framing::Chunked if self.is_all && upload.trailers().is_empty() => {
                Framing::Length(self.kept.len() as u64)
            }
            framing => framing,
        }
    }

    /// Whether the body can be sent from its first byte.
    pub(super) fn is_whole(&self) -> bool {
        !self.is_lost
    }

    /// Begins anew.
    pub(super) fn rewind(&mut self) {
        self.at = 0;
    }

    fn keep(&mut self, bytes: &[u8]) {
        if !self.is_lost && self.kept.len() + bytes.len() <= self.most {
            self.kept.extend_from_slice(bytes);
            self.at = self.kept.len();
        } else if !bytes.is_empty() {
            self.lose();
        }
    }

    /// From here on it can't be sent again.
    fn lose(&mut self) {
        self.is_lost = true;
        self.kept = Vec::new();
        self.at = 0;
    }
}

/// Why a request did not go out whole.
#[derive(Clone, Copy, Debug)]
pub(super) enum SendFault {
    /// The client's body failed.
    Upload(UploadError),
    /// The backend's connection is broken; it may have answered before.
    Server,
    /// The backend took nothing for too long.
    Stuck,
}

/// A request on its way.
pub(super) struct Outgoing {
    core: Core,
    socket: Fd,
    sending: Option<Once>,
    /// Bytes that are not in flight, from `from` on.
    data: Vec<u8>,
    from: usize,
    framing: Framing,
    /// The body waits until the backend asks for it.
    pub(super) is_held: bool,
    is_filled: bool,
    /// The rest of a large body, from socket to socket.
    relay: Option<UploadRelay>,
    /// How long the backend may take nothing of that.
    patience: Option<Duration>,
    /// Bytes that the kernel has taken.
    sent: u64,
    /// Since when the backend is waited for, while something is in flight.
    since: Instant,
}

impl Outgoing {
    /// Sends the head, then a body of this framing. `patience`: how long the backend may take nothing.
    pub(super) fn new(
        core: &Core,
        socket: &Fd,
        (head, framing): (Vec<u8>, Framing),
        patience: Option<Duration>,
    ) -> Self {
        Self {
            core: core.clone(),
            socket: socket.clone(),
            sending: None,
            data: head,
            from: 0,
            framing,
            is_held: false,
            is_filled: framing == Framing::None,
            relay: None,
            patience,
            sent: 0,
            since: core.now(),
        }
    }

    /// Bytes that the kernel has taken.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Since when the backend has taken nothing of what is in flight; `None` while nothing is.
    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.sending.as_ref().map(|_| self.since)
    }

    /// Goes on; ready when all of the request has been given to the kernel.
    pub(super) fn poll(
        &mut self,
        replay: &mut Replay,
        upload: &mut Upload<'_>,
    ) -> Poll<Result<(), SendFault>> {
        loop {
            if let Some(relay) = &mut self.relay {
                let Poll::Ready(ended) = relay.poll(upload) else {
                    return Poll::Pending;
                };
                self.sent += relay.given();
                self.relay = None;
                self.is_filled = true;
                match ended {
                    Ok(()) => {}
                    Err(UploadRelayError::Source(error)) => {
                        return Poll::Ready(Err(SendFault::Upload(error)));
                    }
                    Err(UploadRelayError::Sink(Cause::SinkStalled)) => {
                        return Poll::Ready(Err(SendFault::Stuck));
                    }
                    Err(UploadRelayError::Sink(_)) => return Poll::Ready(Err(SendFault::Server)),
                }
            }
            if let Some(sending) = &mut self.sending {
                let mut context = Context::from_waker(Waker::noop());
                let Poll::Ready(done) = Pin::new(sending).poll(&mut context) else {
                    return Poll::Pending;
                };
                self.sending = None;
                match (done.result, done.output) {
                    (Ok(bytes), Output::Data(data)) => {
                        self.sent += u64::from(bytes);
                        self.from += bytes as usize;
                        self.data = data;
                    }
                    (Err(Errno::INTR | Errno::AGAIN), Output::Data(data)) => self.data = data,
                    _ => return Poll::Ready(Err(SendFault::Server)),
                }
            }
            if self.from == self.data.len() {
                self.data.clear();
                self.from = 0;
                if self.is_filled {
                    self.core.recycle(std::mem::take(&mut self.data));
                    return Poll::Ready(Ok(()));
                }
                if !self.is_held && replay.at == replay.kept.len() {
                    self.relay = UploadRelay::new(upload, &self.socket, self.patience);
                    if self.relay.is_some() {
                        replay.lose();
                        continue;
                    }
                }
            }
            if self.from == 0
                && self.data.len() < SEND_BYTES
                && let Err(error) = self.fill(replay, upload)
            {
                return Poll::Ready(Err(SendFault::Upload(error)));
            }
            if self.data.is_empty() && !self.is_filled {
                return Poll::Pending;
            }
            if self.from < self.data.len() {
                self.since = self.core.now();
                self.sending = Some(self.core.once(Op::Send {
                    socket: self.socket.clone(),
                    data: std::mem::take(&mut self.data),
                    from: self.from,
                    more: false,
                }));
            }
        }
    }

    /// Adds what there is of the body to what goes out next.
    fn fill(&mut self, replay: &mut Replay, upload: &mut Upload<'_>) -> Result<(), UploadError> {
        while !self.is_filled && !self.is_held && self.data.len() < SEND_BYTES {
            let room = SEND_BYTES - self.data.len();
            if replay.at < replay.kept.len() {
                let end = replay.kept.len().min(replay.at + room);
                let piece = replay.at..end;
                self.add(&replay.kept[piece]);
                replay.at = end;
                continue;
            }
            match upload.poll_chunk() {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Err(error))) => return Err(error),
                Poll::Ready(Some(Ok(bytes))) => {
                    let bytes = &bytes[..bytes.len().min(room)];
                    let taken = bytes.len();
                    self.add(bytes);
                    replay.keep(bytes);
                    upload.consume(taken);
                }
                Poll::Ready(None) => {
                    self.is_filled = true;
                    if self.framing == Framing::Chunked {
                        write_last_chunk_of(&mut self.data, &upload.trailers());
                    }
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, bytes: &[u8]) {
        let is_chunked = self.framing == Framing::Chunked;
        if is_chunked {
            write_chunk_header(&mut self.data, bytes.len() as u64);
        }
        self.data.extend_from_slice(bytes);
        if is_chunked {
            self.data.extend_from_slice(CHUNK_END);
        }
    }
}
