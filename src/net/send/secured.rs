//! Sending under TLS: everything goes through a buffer of the core's, in which it is encrypted, since
//! there is nothing that the kernel could take from a file or another socket as it is.
//!
//! Each future stands in a block of the core's pool, so that connections without TLS have no room for it.

use std::time::Duration;

use rustix::io::Errno;

use super::direct::Way;
use super::{FilePart, Progress, SendError, Sender, noop};
use crate::net::secured::{Ended, SEAL_BYTES, errno};
use crate::net::splice::{Cause, Moved};
use crate::net::tls::Failure;
use crate::net::tls::records::RECORD_MAX;
use crate::runtime::direct::admission::DirectMode;
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::op::{Interest, Op, Output};
use crate::runtime::task::Pooled;

impl Sender {
    /// Whether ciphertext waits to leave with what is sent next.
    pub fn holds(&self) -> bool {
        let secured = self.secured.as_ref();
        secured.is_some_and(|secured| secured.is_pending())
    }

    /// Sends what waits, of the protocol itself.
    ///
    /// # Errors
    /// As [`Self::buffer`].
    pub fn settle<'a>(&'a mut self, timer: &'a mut Timer) -> Pooled<'a, Result<(), SendError>> {
        let pool = self.core.futures().clone();
        pool.boxed(|| async move { self.deliver(timer, &mut None, false).await })
    }

    /// Tells the client of a secured connection that nothing follows, so that it knows the end from a
    /// cut.
    ///
    /// # Errors
    /// As [`Self::buffer`].
    pub fn finish<'a>(&'a mut self, timer: &'a mut Timer) -> Pooled<'a, Result<(), SendError>> {
        if let Some(secured) = &self.secured {
            secured.close();
            if secured.is_kernels() {
                return self.kernel_finish(timer);
            }
        }
        self.settle(timer)
    }

    pub(super) fn secured_at_once(&mut self, data: &[u8]) -> Result<usize, SendError> {
        let Some(secured) = &self.secured else {
            return Ok(0);
        };
        secured.push();
        if secured.is_pending() || data.is_empty() {
            return Ok(0);
        }
        let sealed = secured.seal_one(data, data.len()).map_err(broken)?;
        secured.push();
        self.taken += sealed as u64;
        Ok(sealed)
    }

    pub(super) fn secured_buffer<'a>(
        &'a mut self,
        timer: &'a mut Timer,
        data: Vec<u8>,
        more: bool,
    ) -> Pooled<'a, Result<(), SendError>> {
        let pool = self.core.futures().clone();
        pool.boxed(|| async move {
            self.sealed(timer, &mut None, &data, more).await?;
            self.core.recycle(data);
            Ok(())
        })
    }

    pub(super) fn secured_pair<'a>(
        &'a mut self,
        timer: &'a mut Timer,
        mut head: Vec<u8>,
        body: &'a [u8],
    ) -> Pooled<'a, Result<(), SendError>> {
        let pool = self.core.futures().clone();
        pool.boxed(|| async move {
            // The head shares its record with the begin of the body; the rest is encrypted from where
            // it is.
            let room = RECORD_MAX.saturating_sub(head.len());
            let (first, rest) = body.split_at(room.min(body.len()));
            head.extend_from_slice(first);
            let mut progress = None;
            self.sealed(timer, &mut progress, &head, !rest.is_empty())
                .await?;
            self.core.recycle(head);
            self.sealed(timer, &mut progress, rest, false).await
        })
    }

    /// Reads a part of a file to where its records are made, and sends them.
    pub(super) fn secured_file<'a>(
        &'a mut self,
        timer: &'a mut Timer,
        head: Vec<u8>,
        mut part: FilePart,
        more: bool,
    ) -> Pooled<'a, Result<(), SendError>> {
        let pool = self.core.futures().clone();
        pool.boxed(|| async move {
            let (mut progress, mut had_share) = (None, false);
            let (mut left, mut way) = (&head[..], Way::default());
            while !(left.is_empty() && part.length == 0) {
                self.secured_share(&mut had_share).await;
                let Some(secured) = &self.secured else {
                    break;
                };
                let before = left.len();
                let sealed = secured.seal_file(&mut left, &mut part).map_err(broken)?;
                self.core.bulk_sent(sealed.of_file);
                let plain = before - left.len() + sealed.of_file;
                if plain > 0 {
                    self.deliver(timer, &mut progress, more || part.length > 0)
                        .await?;
                    self.taken += plain as u64;
                }
                match sealed.ended {
                    Ended::Whole => {}
                    Ended::FileShrank => return Err(SendError::FileShrank),
                    Ended::Missing => {
                        self.core.watch_turns();
                        // In a box, so that what is seldom needed is no part of every connection.
                        let is_direct = part.direct != DirectMode::Off && {
                            let at = (&mut part, &mut way);
                            Box::pin(self.sealed_direct(timer, &mut progress, at, more)).await?
                        };
                        if !is_direct {
                            self.sealed_read(timer, &mut progress, &mut part, more)
                                .await?;
                        }
                    }
                }
            }
            self.core.recycle(head);
            Ok(())
        })
    }

    /// Sends the next bytes of a part of a file, after they were read in the background.
    async fn sealed_read(
        &mut self,
        timer: &mut Timer,
        progress: &mut Option<Progress>,
        part: &mut FilePart,
        more: bool,
    ) -> Result<(), SendError> {
        if part.length == 0 {
            return Ok(());
        }
        let asked = self.core.now();
        let read = self.core.once(Op::Read {
            file: part.file.clone(),
            data: self.core.send_buffer(),
            len: part.length.min(SEAL_BYTES as u64) as usize,
            offset: part.offset,
        });
        let done = read.await;
        if let Some(progress) = progress {
            progress.forgive(asked, self.core.now());
        }
        let read = done.result.map_err(SendError::File)? as usize;
        let Output::Data(data) = done.output else {
            return Err(SendError::File(Errno::IO));
        };
        if read == 0 {
            return Err(SendError::FileShrank);
        }
        part.offset += read as u64;
        part.length -= read as u64;
        self.core.bulk_sent(read);
        let follows = more || part.length > 0;
        self.sealed(timer, progress, &data[..read], follows).await?;
        self.core.recycle(data);
        Ok(())
    }

    /// Encrypts the first of these bytes, and says how many.
    pub(super) fn seal_some(&self, plain: &[u8]) -> Result<usize, SendError> {
        match &self.secured {
            Some(secured) => secured.seal(plain).map_err(broken),
            None => Err(SendError::Broken(Errno::IO)),
        }
    }

    /// Waits until this transfer may send in this turn.
    pub(super) async fn secured_share(&self, had_share: &mut bool) {
        while self.core.bulk_left() == 0 {
            if std::mem::take(had_share) {
                self.core.yield_turn().await;
            } else {
                self.core.yield_for_bulk().await;
            }
        }
        *had_share = true;
    }

    /// As [`Self::relay`]: bytes of another socket, received, encrypted and sent.
    pub(super) fn secured_relay<'a>(
        &'a mut self,
        timer: &'a mut Timer,
        (from, length): (&'a Fd, u64),
        silence: Option<Duration>,
        moved: &'a Moved,
    ) -> Pooled<'a, Result<(), Cause>> {
        let pool = self.core.futures().clone();
        pool.boxed(|| async move {
            let (mut progress, mut had_share) = (None, false);
            let mut active = self.core.now();
            // Kept as long as there is something to be received; room is filled with zeros once.
            let mut data = Vec::new();
            while moved.taken() < length {
                self.secured_share(&mut had_share).await;
                let left = length - moved.taken();
                let wanted = left.min(SEAL_BYTES as u64) as usize;
                if data.capacity() == 0 {
                    data = self.core.send_buffer();
                }
                if data.len() < wanted {
                    data.resize(wanted, 0);
                }
                match self.core.receive_now(from, &mut data[..wanted]) {
                    Ok(0) => return Err(Cause::SourceClosed),
                    Ok(received) => {
                        let data = &data[..received];
                        moved.took(received);
                        self.core.bulk_sent(received);
                        let sent = self.sealed(timer, &mut progress, data, false).await;
                        sent.map_err(|error| match error {
                            SendError::Broken(errno) => Cause::SinkBroken(errno),
                            _ => Cause::SinkTooSlow,
                        })?;
                        moved.gave(received);
                        active = self.core.now();
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => {
                        self.core.recycle(std::mem::take(&mut data));
                        had_share = false;
                        let since = self.core.now();
                        let mut ready = self.core.once(Op::Ready {
                            fd: from.clone(),
                            interest: Interest::Readable,
                        });
                        let mut ready = std::pin::Pin::new(&mut ready);
                        let mut poll = || ready.as_mut().poll(&mut noop());
                        let ended = match silence {
                            None => Some(std::future::poll_fn(|_| poll()).await),
                            Some(silence) => {
                                timer.set(active + silence);
                                timer.bound(&mut poll).await
                            }
                        };
                        if let Some(progress) = &mut progress {
                            progress.forgive(since, self.core.now());
                        }
                        let Some(ended) = ended else {
                            return Err(Cause::SourceSilent);
                        };
                        ended.result.map_err(Cause::SourceBroken)?;
                    }
                    Err(errno) => return Err(Cause::SourceBroken(errno)),
                }
            }
            self.core.recycle(data);
            Ok(())
        })
    }

    /// Encrypts and sends all of `data`.
    async fn sealed(
        &mut self,
        timer: &mut Timer,
        progress: &mut Option<Progress>,
        data: &[u8],
        more: bool,
    ) -> Result<(), SendError> {
        let mut at = 0;
        while at < data.len() {
            let Some(secured) = &self.secured else {
                return Ok(());
            };
            let sealed = secured.seal(&data[at..]).map_err(broken)?;
            at += sealed;
            self.deliver(timer, progress, more || at < data.len())
                .await?;
            self.taken += sealed as u64;
        }
        Ok(())
    }

    /// Sends the ciphertext that waits.
    pub(super) async fn deliver(
        &mut self,
        timer: &mut Timer,
        progress: &mut Option<Progress>,
        more: bool,
    ) -> Result<(), SendError> {
        let Some(secured) = self.secured.clone() else {
            return Ok(());
        };
        while let Some(mut data) = secured.take_queue() {
            let mut from = 0;
            while from < data.len() {
                let mut sending = self.core.once(Op::Send {
                    socket: self.socket.clone(),
                    data,
                    from,
                    more,
                });
                let sent = {
                    let mut sending = std::pin::Pin::new(&mut sending);
                    let mut poll = || sending.as_mut().poll(&mut noop());
                    self.patiently(timer, progress, &mut poll).await?
                };
                let Output::Data(back) = sent.output else {
                    return Err(SendError::Broken(sent.result.err().unwrap_or(Errno::IO)));
                };
                data = back;
                let bytes = sent.result.map_err(SendError::Broken)? as usize;
                secured.took(bytes);
                from += bytes;
            }
            secured.sent_all();
            self.core.recycle(data);
        }
        Ok(())
    }
}

fn broken(failure: Failure) -> SendError {
    SendError::Broken(errno(failure))
}
