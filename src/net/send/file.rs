//! Files: by sendfile(2), never before their pages are in memory.
//!
//! The kernel reads ahead, and is kept at it; [`super::ahead`] says how.

use std::time::Instant;

use rustix::io::Errno;

use super::ahead::{ReadAhead, Warmth};
use super::direct::Way;
use super::{Progress, SendError, Sender, noop};
use crate::runtime::direct::admission::DirectMode;
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::op::Op;

/// From this size on a file goes out under `TCP_CORK`, where that pays: see [`Core::set_corking`].
const CORK_FROM: u64 = 256 << 10;

/// A file's last bytes go over what the turn may send by up to this, in bytes: as another turn's they would
/// cost a call and a segment of their own, and files that fit the quota but for their heads always had some.
const OVERDRAFT: u64 = 64 << 10;

/// A part of an open file.
#[derive(Clone, Debug)]
pub struct FilePart {
    /// The file.
    pub file: Fd,
    /// First byte.
    pub offset: u64,
    /// Bytes; the file had them when it was looked at.
    pub length: u64,
    /// Whether what isn't in memory is read past the page cache.
    pub direct: DirectMode,
    /// What all who send the file know of it.
    pub warmth: Warmth,
}

impl Sender {
    /// Sends `head` and then a part of a file. `more`: something follows at once.
    ///
    /// # Errors
    /// After an error the connection can't be used for anything more: the head has announced bytes
    /// that won't come.
    pub async fn file(
        &mut self,
        timer: &mut Timer,
        head: Vec<u8>,
        part: FilePart,
        more: bool,
    ) -> Result<(), SendError> {
        if self.seals_content(part.length) {
            return self.secured_file(timer, head, part, more).await;
        }
        let mut sending = FileSend {
            head_at: 0,
            offset: part.offset,
            end: part.offset + part.length,
            known_to: part.offset,
            file: part.file,
            ahead: ReadAhead::new(part.offset),
            warmth: part.warmth,
            progress: None,
            had_share: false,
            more,
            head,
            direct: part.direct,
            way: Way::default(),
        };
        let corked = sending.left() >= CORK_FROM && !more;
        if corked {
            self.core.cork(&self.socket, true);
        }
        while !sending.is_done() {
            self.share(&mut sending).await;
            match self.step(&mut sending) {
                Step::Sent(sent) => {
                    self.took(sent as u64)?;
                    self.core.bulk_sent(sent);
                    sending.took(sent);
                }
                Step::WaitForClient => self.wait_for_client(timer, &mut sending).await?,
                Step::WaitForDisk { missing } => {
                    self.core.watch_turns();
                    // In a box, so that what is seldom needed is no part of every connection.
                    if sending.direct != DirectMode::Off
                        && Box::pin(self.direct(timer, &mut sending)).await?
                    {
                        continue;
                    }
                    let asked = self.core.now();
                    self.wait_for_disk(&mut sending, missing).await?;
                    sending.forgive(asked, self.core.now());
                }
                Step::Failed(error) => return Err(error),
            }
        }
        if corked {
            self.core.cork(&self.socket, false);
        }
        self.core.recycle(sending.head);
        Ok(())
    }

    /// Waits until this transfer may send in this turn.
    pub(super) async fn share(&self, sending: &mut FileSend) {
        while self.core.bulk_left() == 0 {
            if std::mem::take(&mut sending.had_share) {
                self.core.yield_turn().await;
            } else {
                self.core.yield_for_bulk().await;
            }
        }
    }

    /// Sends what can be sent at once.
    fn step(&self, sending: &mut FileSend) -> Step {
        if sending.head_at < sending.head.len() {
            let more = sending.more || sending.left() > 0;
            return match self
                .core
                .send_now(&self.socket, &sending.head[sending.head_at..], more)
            {
                Ok(sent) => Step::Sent(sent),
                Err(errno) => of_socket(errno),
            };
        }
        if sending.offset >= sending.known_to {
            if self.is_read_direct(sending) {
                let missing = sending.offset;
                return Step::WaitForDisk { missing };
            }
            match self.known_to(sending) {
                Ok(known_to) => sending.known_to = known_to,
                Err(missing) => return Step::WaitForDisk { missing },
            }
        }
        let known = sending.known_to - sending.offset;
        let quota = self.core.bulk_left() as u64;
        // Once a turn at most, since nothing is left of the quota then.
        let is_last = known == sending.left() && known <= quota + OVERDRAFT;
        let count = if is_last { known } else { known.min(quota) } as usize;
        let mut offset = sending.offset;
        match self
            .core
            .send_file(&self.socket, &sending.file, &mut offset, count)
        {
            Ok(0) => Step::Failed(SendError::FileShrank),
            Ok(sent) => Step::Sent(sent),
            Err(errno @ (Errno::IO | Errno::INVAL | Errno::OPNOTSUPP)) => {
                Step::Failed(SendError::File(errno))
            }
            Err(errno) => of_socket(errno),
        }
    }

    /// Up to where the file can be sent without waiting for a disk, as far as the next window tells; or the
    /// first byte that was looked at and isn't in memory.
    ///
    /// Looked at are the first page, which makes the kernel read on ahead of it, and the last one of each
    /// piece: between them it has read in order. Of a hot file it is the last page alone.
    fn known_to(&self, sending: &FileSend) -> Result<u64, u64> {
        let (offset, end, now) = (sending.offset, sending.end, self.core.now());
        if let Some(known_to) = sending.warmth.known_to(offset, now) {
            return Ok(known_to.min(end));
        }
        let reach = sending.ahead.reach(offset).min(end - offset);
        // A reach is at most some MiB.
        let is_hot = sending.ahead.is_hot(offset);
        if !is_hot && !(self.core).is_resident(&sending.file, offset, reach as usize) {
            return Err(offset);
        }
        let mut known_to = offset;
        for piece in sending.ahead.pieces(offset, end) {
            if !self.core.is_resident(&sending.file, piece - 1, 0) {
                if known_to > offset {
                    break;
                }
                return Err(piece - 1);
            }
            known_to = piece;
        }
        sending.warmth.saw(offset, known_to, now);
        Ok(known_to)
    }

    pub(super) async fn wait_for_client(
        &self,
        timer: &mut Timer,
        sending: &mut FileSend,
    ) -> Result<(), SendError> {
        let mut ready = self.writable();
        let mut ready = std::pin::Pin::new(&mut ready);
        let mut poll = || ready.as_mut().poll(&mut noop());
        sending.ahead.client_waits();
        let done = self
            .patiently(timer, &mut sending.progress, &mut poll)
            .await?;
        sending.had_share = false;
        done.result.map(drop).map_err(SendError::Broken)
    }

    /// Waits for a page that isn't in memory; where the kernel doesn't read ahead by itself, after it was
    /// told to.
    async fn wait_for_disk(&self, sending: &mut FileSend, missing: u64) -> Result<(), SendError> {
        let file = &sending.file;
        if let Some(ask) = sending.ahead.missed(sending.offset, missing, sending.end) {
            // Advice: without it the read that follows is only slower.
            let (file, offset, len) = (file.clone(), ask.offset, ask.len);
            self.core.once(Op::WillNeed { file, offset, len }).await;
        }
        let read = Op::Read {
            file: file.clone(),
            data: Vec::new(),
            len: 1,
            offset: missing,
        };
        let done = self.core.once(read).await;
        done.result.map(drop).map_err(SendError::File)
    }
}

/// A head and a part of a file on their way.
pub(super) struct FileSend {
    head: Vec<u8>,
    head_at: usize,
    pub(super) file: Fd,
    pub(super) offset: u64,
    pub(super) end: u64,
    /// Up to here the file is known to be in memory.
    known_to: u64,
    ahead: ReadAhead,
    warmth: Warmth,
    pub(super) progress: Option<Progress>,
    /// It has sent in this turn.
    pub(super) had_share: bool,
    pub(super) more: bool,
    pub(super) direct: DirectMode,
    pub(super) way: Way,
}

impl FileSend {
    fn is_done(&self) -> bool {
        self.head_at == self.head.len() && self.offset == self.end
    }

    pub(super) fn left(&self) -> u64 {
        self.end - self.offset
    }

    /// The client isn't to blame for the time between these two.
    pub(super) fn forgive(&mut self, since: Instant, now: Instant) {
        if let Some(progress) = &mut self.progress {
            progress.forgive(since, now);
        }
    }

    pub(super) fn took(&mut self, sent: usize) {
        let of_head = sent.min(self.head.len() - self.head_at);
        self.head_at += of_head;
        self.offset += (sent - of_head) as u64;
        self.had_share = true;
    }
}

/// What came of one attempt to send.
enum Step {
    Sent(usize),
    WaitForClient,
    /// This byte isn't in memory.
    WaitForDisk {
        missing: u64,
    },
    Failed(SendError),
}

fn of_socket(errno: Errno) -> Step {
    match errno {
        Errno::AGAIN => Step::WaitForClient,
        Errno::INTR => Step::Sent(0),
        errno => Step::Failed(SendError::Broken(errno)),
    }
}

#[cfg(test)]
mod tests;
