//! How the content of a response leaves: behind its head where it is small, by sendfile, in pieces as
//! they come, each at the pace of the client.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use super::body::{Body, BodyStream, Piece, RelayOutcome, RelayPart};
use super::input::Input;
use super::upload::{State, Upload};
use super::{Connection, Service};
use crate::http::h1::encode::{
    CHUNK_END, LAST_CHUNK, ResponseFraming, write_chunk_header, write_last_chunk,
};
use crate::net::recv::End;
use crate::net::send::{SendError, Sender};
use crate::net::splice::Cause;
use crate::runtime::executor::Core;
use crate::runtime::future::Timer;

/// Answers of a batch are collected up to this many bytes before they are sent.
pub(super) const BATCH_BYTES: usize = 64 << 10;

impl<S: Service> Connection<S> {
    pub(super) async fn send_large(
        &mut self,
        batch: &mut Vec<u8>,
        body: Body,
        framing: ResponseFraming,
    ) -> Result<(), SendError> {
        match body {
            Body::Empty | Body::Absent(_) => Ok(()),
            // They leave by ways of their own.
            Body::Stream(_) | Body::Tunnel(_) => unreachable!("not content at hand"),
            Body::Bytes(bytes) => self.send_bytes(batch, &bytes).await,
            Body::Received(bytes) => self.send_bytes(batch, &bytes).await,
            Body::Shared(bytes, range) => {
                let head = self.take(batch);
                self.sender.pair(&mut self.timer, head, &bytes[range]).await
            }
            Body::Constant(bytes) => self.send_bytes(batch, &bytes).await,
            Body::File(part) => {
                let head = self.take(batch);
                self.sender.file(&mut self.timer, head, part, false).await
            }
            Body::Pieces(pieces) => {
                let last = pieces.len().saturating_sub(1);
                for (index, piece) in pieces.into_iter().enumerate() {
                    match piece {
                        Piece::Bytes(bytes) => self.send_bytes(batch, &bytes).await?,
                        Piece::Received(bytes) => self.send_bytes(batch, &bytes).await?,
                        Piece::File(part) => {
                            let head = self.take(batch);
                            self.sender
                                .file(&mut self.timer, head, part, index < last)
                                .await?;
                        }
                        Piece::Relay(part) => {
                            self.flush(batch, false).await?;
                            relay(&mut self.sender, &mut self.timer, &part).await?;
                        }
                    }
                }
                self.flush(batch, false).await
            }
            Body::Chunks(chunks) => {
                let chunked = framing == ResponseFraming::Chunked;
                for chunk in chunks.filter(|chunk| !chunk.is_empty()) {
                    if chunked {
                        write_chunk_header(batch, chunk.len() as u64);
                    }
                    self.send_bytes(batch, &chunk).await?;
                    if chunked {
                        batch.extend_from_slice(CHUNK_END);
                    }
                }
                if chunked {
                    batch.extend_from_slice(LAST_CHUNK);
                }
                self.flush(batch, false).await
            }
        }
    }

    /// Appends bytes to the batch, sending it whenever it is full.
    async fn send_bytes(&mut self, batch: &mut Vec<u8>, bytes: &[u8]) -> Result<(), SendError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = BATCH_BYTES.saturating_sub(batch.len()).max(1);
            let (now, later) = rest.split_at(room.min(rest.len()));
            batch.extend_from_slice(now);
            rest = later;
            if batch.len() >= BATCH_BYTES {
                self.flush(batch, !rest.is_empty()).await?;
                self.core.yield_turn().await;
            }
        }
        Ok(())
    }

    fn take(&self, batch: &mut Vec<u8>) -> Vec<u8> {
        std::mem::replace(batch, self.core.send_buffer())
    }

    /// Sends the batch.
    pub(super) async fn flush(&mut self, batch: &mut Vec<u8>, more: bool) -> Result<(), SendError> {
        if batch.is_empty() {
            return Ok(());
        }
        let full = self.take(batch);
        self.sender.buffer(&mut self.timer, full, more).await
    }

    /// Sends content that comes from elsewhere, while the rest of the request may be coming. Counts in
    /// `sent` the bytes of content that were given to the kernel or into the batch.
    ///
    /// # Errors
    /// [`SendError::Cut`] when the content ended early, or was not as long as announced: what is in the
    /// batch then is still to be sent.
    pub(super) async fn send_stream(
        &mut self,
        (input, state): (&mut Input, &mut State),
        batch: &mut Vec<u8>,
        mut stream: Box<dyn BodyStream>,
        framing: ResponseFraming,
        sent: &mut u64,
    ) -> Result<(), SendError> {
        let (length, chunked) = match framing {
            ResponseFraming::Length(length) => (Some(length), false),
            framing => (None, framing == ResponseFraming::Chunked),
        };
        let mut delivery = Delivery {
            core: &self.core,
            sender: &mut self.sender,
            timer: &mut self.timer,
            upload: Upload {
                core: &self.core,
                state,
                input: Some(input),
                receiver: &mut self.receiver,
                out: None,
            },
            stream: &mut *stream,
            batch,
        };
        while let Some(piece) = delivery.next().await? {
            let bytes = piece.length();
            if length.is_some_and(|length| length - *sent < bytes) {
                return Err(SendError::Cut("more content than was announced"));
            }
            if bytes == 0 {
                continue;
            }
            if chunked {
                write_chunk_header(delivery.batch, bytes);
            }
            delivery.send(piece, sent).await?;
            if chunked {
                delivery.batch.extend_from_slice(CHUNK_END);
            }
        }
        if length.is_some_and(|length| length != *sent) {
            return Err(SendError::Cut("less content than was announced"));
        }
        if chunked {
            write_last_chunk(delivery.batch, &delivery.stream.trailers());
        }
        delivery.flush().await
    }
}

/// A stream on its way to the client.
struct Delivery<'d> {
    core: &'d Core,
    sender: &'d mut Sender,
    timer: &'d mut Timer,
    upload: Upload<'d>,
    stream: &'d mut dyn BodyStream,
    batch: &'d mut Vec<u8>,
}

impl Delivery<'_> {
    /// The next piece. What is in the batch leaves before there is a wait for it.
    async fn next(&mut self) -> Result<Option<Piece>, SendError> {
        let mut next = self.stream.poll_next(&mut self.upload);
        if next.is_pending() {
            self.flush().await?;
            next = Poll::Ready(poll_fn(|_| self.stream.poll_next(&mut self.upload)).await);
        }
        match next {
            Poll::Ready(Some(Ok(piece))) => Ok(Some(piece)),
            Poll::Ready(Some(Err(cut))) => Err(SendError::Cut(cut.reason)),
            Poll::Ready(None) | Poll::Pending => Ok(None),
        }
    }

    /// Sends a piece, and counts in `sent` what was given of it to the kernel or into the batch.
    async fn send(&mut self, piece: Piece, sent: &mut u64) -> Result<(), SendError> {
        let length = piece.length();
        let small = length <= self.core.tuning().copy_up_to;
        match piece {
            Piece::Bytes(bytes) if small => self.batch.extend_from_slice(&bytes),
            Piece::Received(bytes) if small => self.batch.extend_from_slice(&bytes),
            Piece::Bytes(bytes) => self.pair(&bytes).await?,
            Piece::Received(bytes) => self.pair(&bytes).await?,
            Piece::File(part) => {
                let head = self.take();
                let sending = self.sender.file(self.timer, head, part, false);
                beside(sending, || self.stream.poll_upload(&mut self.upload)).await?;
            }
            Piece::Relay(part) => {
                // By itself: nobody knows when the source goes on. At once, for on the ring a send takes
                // a turn, and the source's bytes are here.
                let ahead = self.sender.at_once(self.batch)?;
                self.batch.drain(..ahead);
                self.flush().await?;
                let mut relaying = pin!(relay(self.sender, self.timer, &part));
                let relayed = poll_fn(|context| {
                    if let Poll::Ready(relayed) = relaying.as_mut().poll(context) {
                        return Poll::Ready(relayed);
                    }
                    self.stream.poll_upload(&mut self.upload);
                    // The source may be silent for long, and nothing else would tell.
                    match self.upload.poll_gone() {
                        Poll::Ready(End::Broken(errno)) => {
                            part.outcome.error.set(Some(Cause::SinkBroken(errno)));
                            Poll::Ready(Err(SendError::Broken(errno)))
                        }
                        Poll::Ready(End::Closed) | Poll::Pending => Poll::Pending,
                    }
                });
                let relayed = relayed.await;
                *sent += part.outcome.given();
                return relayed;
            }
        }
        *sent += length;
        if self.batch.len() >= BATCH_BYTES {
            self.flush().await?;
            self.core.yield_turn().await;
        }
        Ok(())
    }

    async fn pair(&mut self, bytes: &[u8]) -> Result<(), SendError> {
        let head = self.take();
        let sending = self.sender.pair(self.timer, head, bytes);
        beside(sending, || self.stream.poll_upload(&mut self.upload)).await?;
        // Others have their turn, however fast both ends of this are.
        self.core.yield_turn().await;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), SendError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let full = self.take();
        let sending = self.sender.buffer(self.timer, full, false);
        beside(sending, || self.stream.poll_upload(&mut self.upload)).await
    }

    fn take(&mut self) -> Vec<u8> {
        std::mem::replace(self.batch, self.core.send_buffer())
    }
}

/// Moves a part from its socket to the client, and notes how that went.
async fn relay(sender: &mut Sender, timer: &mut Timer, part: &RelayPart) -> Result<(), SendError> {
    let RelayOutcome { moved, error } = &*part.outcome;
    let source = (&part.from, part.length);
    let relayed = sender.relay(timer, source, part.silence, moved).await;
    error.set(relayed.err());
    relayed.map_err(|cause| match cause {
        Cause::SourceClosed => SendError::Cut("backend closed within its response"),
        Cause::SourceBroken(_) => SendError::Cut("backend broke within its response"),
        Cause::SourceSilent | Cause::SourceTooSlow => {
            SendError::Cut("backend silent within its response")
        }
        Cause::SinkBroken(errno) => SendError::Broken(errno),
        Cause::SinkTooSlow | Cause::SinkStalled => SendError::TooSlow,
    })
}

/// Waits for `work`, and lets `other` go on whenever the task wakes meanwhile.
async fn beside<T>(work: impl Future<Output = T>, mut other: impl FnMut()) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        let done = work.as_mut().poll(context);
        if done.is_pending() {
            other();
        }
        done
    })
    .await
}

/// Moves a body that is at hand and small, of at most `most` bytes, into the batch. Gives the bytes that
/// were appended. A larger one is sent from where it is.
pub(super) fn append_small(body: &mut Body, batch: &mut Vec<u8>, most: u64) -> u64 {
    let length = body.length().unwrap_or(u64::MAX);
    if length > most {
        return 0;
    }
    match &*body {
        Body::Bytes(bytes) => batch.extend_from_slice(bytes),
        Body::Received(bytes) => batch.extend_from_slice(bytes),
        Body::Shared(bytes, range) => batch.extend_from_slice(&bytes[range.clone()]),
        Body::Constant(bytes) => batch.extend_from_slice(bytes),
        Body::Empty => {}
        // An empty file needs no send of its own.
        Body::File(part) if part.length == 0 => {}
        Body::File(_)
        | Body::Pieces(_)
        | Body::Chunks(_)
        | Body::Stream(_)
        | Body::Absent(_)
        | Body::Tunnel(_) => return 0,
    }
    *body = Body::Empty;
    length
}
