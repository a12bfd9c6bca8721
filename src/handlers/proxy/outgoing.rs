//! The request on its way to a backend: its head, then its body at the pace of both sides.
//!
//! What is in flight is one buffer of at most [`SEND_BYTES`], so a backend that reads slowly holds the
//! client back. What was taken of the body before, or is to be kept for another try, is in a [`Replay`].

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::replay::Replay;
use crate::config::model::ClientFields;
use crate::http::h1::encode::{CHUNK_END, write_chunk_header, write_last_chunk_of};
use crate::http::session::{Upload, UploadError, UploadRelay, UploadRelayError};
use crate::http::types::Framing;
use crate::net::secured::Secured;
use crate::net::send::FilePart;
use crate::net::splice::Cause;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::Once;
use crate::runtime::op::{Op, Output};
use crate::upstream::pool::Connection;

/// Most bytes of a body in one send.
const SEND_BYTES: usize = 64 << 10;

/// Why a request did not go out whole.
#[derive(Clone, Copy, Debug)]
pub(super) enum SendFault {
    /// The client's body failed.
    Upload(UploadError),
    /// What was kept of it on a disk can't be read.
    Disk,
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
    /// Of a connection under TLS what is being sent instead of `data`.
    sealed: Option<Box<Sealed>>,
    /// A read of what is kept on a disk, which goes out next.
    reading: Option<Once>,
    /// Bytes that are not in flight, from `from` on.
    data: Vec<u8>,
    from: usize,
    framing: Framing,
    /// Fields that are never the client's own.
    pub(super) client_fields: Option<Arc<ClientFields>>,
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

/// Bytes on their way under TLS.
struct Sealed {
    secured: Rc<Secured>,
    /// Ciphertext that is not in flight, from `from` on.
    data: Vec<u8>,
    from: usize,
    /// How many bytes of the request are in it.
    plain: usize,
}

impl Sealed {
    /// Encrypts the next bytes, and says how many.
    fn seal(&mut self, plain: &[u8]) -> Result<usize, SendFault> {
        let sealed = self.secured.seal(plain).map_err(|_| SendFault::Server)?;
        self.data = self.secured.take_queue().unwrap_or_default();
        (self.from, self.plain) = (0, sealed);
        Ok(sealed)
    }

    /// The kernel has taken some bytes; gives how many of the request that makes known to be with it.
    fn took(&mut self, bytes: usize, data: Vec<u8>) -> usize {
        self.data = data;
        self.from += bytes;
        self.secured.took(bytes);
        // None of a record that isn't whole is of use to anybody, but who would know?
        std::mem::take(&mut self.plain)
    }

    /// Whether all of it has gone; what the protocol has to say meanwhile goes after it.
    fn is_gone(&mut self, core: &Core) -> bool {
        if self.from < self.data.len() {
            return false;
        }
        if self.data.is_empty() {
            return true;
        }
        core.recycle(std::mem::take(&mut self.data));
        self.from = 0;
        self.secured.sent_all();
        match self.secured.take_queue() {
            Some(more) => self.data = more,
            None => return true,
        }
        false
    }
}

impl Outgoing {
    /// Sends the head, then a body of this framing. `patience`: how long the backend may take nothing.
    pub(super) fn new(
        core: &Core,
        connection: &Connection,
        (head, framing): (Vec<u8>, Framing),
        patience: Option<Duration>,
    ) -> Self {
        Self {
            core: core.clone(),
            socket: connection.socket().clone(),
            sending: None,
            sealed: connection.secured().map(|secured| {
                Box::new(Sealed {
                    secured: Rc::clone(secured),
                    data: Vec::new(),
                    from: 0,
                    plain: 0,
                })
            }),
            reading: None,
            data: head,
            from: 0,
            framing,
            client_fields: None,
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
                match (done.result, done.output, &mut self.sealed) {
                    (Ok(bytes), Output::Data(data), Some(sealed)) => {
                        self.sent += sealed.took(bytes as usize, data) as u64;
                    }
                    (Err(Errno::INTR | Errno::AGAIN), Output::Data(data), Some(sealed)) => {
                        sealed.data = data;
                    }
                    (Ok(bytes), Output::Data(data), None) => {
                        self.sent += u64::from(bytes);
                        self.from += bytes as usize;
                        self.data = data;
                    }
                    (Err(Errno::INTR | Errno::AGAIN), Output::Data(data), None) => {
                        self.data = data;
                    }
                    _ => return Poll::Ready(Err(SendFault::Server)),
                }
            }
            if let Some(sealed) = &mut self.sealed
                && !sealed.is_gone(&self.core)
            {
                let (data, from) = (std::mem::take(&mut sealed.data), sealed.from);
                self.send(data, from);
                continue;
            }
            if self.from == self.data.len() {
                self.data.clear();
                self.from = 0;
                if self.is_filled {
                    self.core.recycle(std::mem::take(&mut self.data));
                    return Poll::Ready(Ok(()));
                }
                if !self.is_held && self.sealed.is_none() && replay.is_used_up() {
                    self.relay = UploadRelay::new(upload, &self.socket, self.patience);
                    if self.relay.is_some() {
                        replay.lose();
                        continue;
                    }
                }
            }
            if self.from == 0
                && self.data.len() < SEND_BYTES
                && let Err(fault) = self.fill(replay, upload)
            {
                return Poll::Ready(Err(fault));
            }
            if self.data.is_empty() && !self.is_filled {
                return Poll::Pending;
            }
            if self.from < self.data.len() {
                match &mut self.sealed {
                    None => {
                        let data = std::mem::take(&mut self.data);
                        self.send(data, self.from);
                    }
                    // It goes from there with the next turn of this loop.
                    Some(sealed) => self.from += sealed.seal(&self.data[self.from..])?,
                }
            }
        }
    }

    fn send(&mut self, data: Vec<u8>, from: usize) {
        self.since = self.core.now();
        self.sending = Some(self.core.once(Op::Send {
            socket: self.socket.clone(),
            data,
            from,
            more: false,
        }));
    }

    /// Adds what there is of the body to what goes out next.
    fn fill(&mut self, replay: &mut Replay, upload: &mut Upload<'_>) -> Result<(), SendFault> {
        if !self.take_read(replay)? {
            return Ok(());
        }
        while !self.is_filled && !self.is_held && self.data.len() < SEND_BYTES {
            let room = SEND_BYTES - self.data.len();
            if let Some(bytes) = replay.in_memory(room) {
                let taken = bytes.len();
                self.add(bytes);
                replay.used(taken);
                continue;
            }
            if let Some(part) = replay.on_disk(room) {
                if !self.read(&part, replay)? {
                    return Ok(());
                }
                continue;
            }
            match upload.poll_chunk() {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Err(error))) => return Err(SendFault::Upload(error)),
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
                        // A backend may take a trailer for a field of the head.
                        let fields = self.client_fields.as_deref();
                        let passes = |name: &str| !fields.is_some_and(|fields| fields.names(name));
                        write_last_chunk_of(&mut self.data, &upload.trailers(), passes);
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds a part of what is kept on a disk; `false`: the disk has to be waited for.
    fn read(&mut self, part: &FilePart, replay: &mut Replay) -> Result<bool, SendFault> {
        let len = usize::try_from(part.length).unwrap_or(SEND_BYTES);
        let mut bytes = self.core.send_buffer();
        bytes.resize(len, 0);
        match self.core.read_resident(&part.file, &mut bytes, part.offset) {
            Ok(read) => {
                bytes.truncate(read);
                self.took_read(bytes, replay)?;
                Ok(true)
            }
            // It isn't in memory, or the file system can't say.
            Err(_) => {
                self.reading = Some(self.core.once(Op::Read {
                    file: part.file.clone(),
                    data: bytes,
                    len,
                    offset: part.offset,
                }));
                self.take_read(replay)
            }
        }
    }

    /// Adds what a read has brought; `false`: it is still on its way.
    fn take_read(&mut self, replay: &mut Replay) -> Result<bool, SendFault> {
        let Some(reading) = &mut self.reading else {
            return Ok(true);
        };
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(done) = Pin::new(reading).poll(&mut context) else {
            return Ok(false);
        };
        self.reading = None;
        match (done.result, done.output) {
            (Ok(_), Output::Data(bytes)) => self.took_read(bytes, replay)?,
            (result, _) => {
                let errno = result.err().unwrap_or(Errno::IO);
                tracing::error!(%errno, "a request's body can't be read back from `spill`");
                return Err(SendFault::Disk);
            }
        }
        Ok(true)
    }

    fn took_read(&mut self, bytes: Vec<u8>, replay: &mut Replay) -> Result<(), SendFault> {
        if bytes.is_empty() {
            tracing::error!("a file in `spill` is shorter than what was written to it");
            return Err(SendFault::Disk);
        }
        self.add(&bytes);
        replay.used(bytes.len());
        self.core.recycle(bytes);
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
