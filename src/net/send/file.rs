//! Files: by sendfile(2), never before their pages are in memory.

use std::time::Instant;

use rustix::io::Errno;

use super::direct::Way;
use super::{Progress, SendError, Sender, noop};
use crate::runtime::direct::admission::DirectMode;
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::op::Op;

/// From this size on a file goes out under `TCP_CORK`, where that pays: see [`Core::set_corking`].
const CORK_FROM: u64 = 256 << 10;

/// Bytes whose residency is asked for at once, before a sendfile(2).
const WINDOW: u64 = 512 << 10;

/// Read ahead this far where the disk has to be asked.
const READ_AHEAD: u64 = 2 << 20;

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
        let mut sending = FileSend {
            head_at: 0,
            offset: part.offset,
            end: part.offset + part.length,
            known_to: part.offset,
            file: part.file,
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
                    self.taken += sent as u64;
                    self.core.bulk_sent(sent);
                    sending.took(sent);
                }
                Step::WaitForClient => self.wait_for_client(timer, &mut sending).await?,
                Step::WaitForDisk => {
                    // In a box, so that what is seldom needed is no part of every connection.
                    if sending.direct != DirectMode::Off
                        && Box::pin(self.direct(timer, &mut sending)).await?
                    {
                        continue;
                    }
                    let asked = self.core.now();
                    self.read_ahead(&sending).await?;
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
            let window = sending.left().min(WINDOW);
            if self.is_read_direct(sending)
                || !self.is_resident(&sending.file, sending.offset, window)
            {
                return Step::WaitForDisk;
            }
            sending.known_to = sending.offset + window;
        }
        let known = sending.known_to - sending.offset;
        let count = known.min(self.core.bulk_left() as u64) as usize;
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

    /// Whether sending this window would not make the core wait for a disk: its last and its first page
    /// are in memory, between which the kernel has read ahead.
    fn is_resident(&self, file: &Fd, offset: u64, window: u64) -> bool {
        let mut byte = [0];
        let mut there = |at| self.core.read_resident(file, &mut byte, at) != Err(Errno::AGAIN);
        there(offset + window - 1) && there(offset)
    }

    pub(super) async fn wait_for_client(
        &self,
        timer: &mut Timer,
        sending: &mut FileSend,
    ) -> Result<(), SendError> {
        let mut ready = self.writable();
        let mut ready = std::pin::Pin::new(&mut ready);
        let mut poll = || ready.as_mut().poll(&mut noop());
        let done = self
            .patiently(timer, &mut sending.progress, &mut poll)
            .await?;
        sending.had_share = false;
        done.result.map(drop).map_err(SendError::Broken)
    }

    /// Has the disk asked for what comes next, and waits for its first page.
    async fn read_ahead(&self, sending: &FileSend) -> Result<(), SendError> {
        self.core.will_need(
            &sending.file,
            sending.offset,
            READ_AHEAD.min(sending.left()),
        );
        let window = sending.left().min(WINDOW);
        let last = sending.offset + window - 1;
        for offset in [sending.offset, last] {
            let file = sending.file.clone();
            let read = Op::Read {
                file,
                data: Vec::new(),
                len: 1,
                offset,
            };
            self.core.once(read).await.result.map_err(SendError::File)?;
            if offset == last {
                break;
            }
        }
        Ok(())
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
    WaitForDisk,
    Failed(SendError),
}

fn of_socket(errno: Errno) -> Step {
    match errno {
        Errno::AGAIN => Step::WaitForClient,
        Errno::INTR => Step::Sent(0),
        errno => Step::Failed(SendError::Broken(errno)),
    }
}
