//! Sending to a connection: buffers, and files without copying them through user space, always
//! under the progress rule.

use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::runtime::executor::{BULK_BYTES_PER_TURN, Core};
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::op::{Interest, Op, Output};

/// Above this many bytes a file goes out under `TCP_CORK`; below it `MSG_MORE` on the head is enough.
const CORK_FROM: u64 = 256 << 10;

/// Bytes whose residency is asked for, and which are then sent, in one step.
const WINDOW: usize = 256 << 10;

/// Read ahead this far where the disk has to be asked.
const READ_AHEAD: u64 = 2 << 20;

/// Why a send did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The client is gone, or the connection is broken.
    Broken(Errno),
    /// The client takes the bytes more slowly than the progress rule allows.
    TooSlow,
    /// The file ended before the bytes that were announced: it was truncated.
    FileShrank,
    /// The file can't be read.
    File(Errno),
}

/// How slow a client may be: at least `rate` bytes per second on average over each `window`.
#[derive(Clone, Copy, Debug)]
pub struct ProgressRule {
    /// Over which time the average is taken.
    pub window: Duration,
    /// Bytes per second; 0 switches the rule off.
    pub rate: u64,
}

/// Watches one transfer for progress. It is asked only while the client owes something: a wait for a
/// disk or a backend never counts against the client.
///
/// The first window only finds out where the transfer stands: to ask the kernel for that at the
/// beginning would cost each response a system call. So a client that takes nothing is found out
/// after two windows at the latest.
#[derive(Debug)]
pub struct Progress {
    rule: ProgressRule,
    window_start: Instant,
    moved_at_start: Option<u64>,
}

impl Progress {
    /// A transfer that begins now.
    pub fn new(rule: ProgressRule, now: Instant) -> Self {
        Self {
            rule,
            window_start: now,
            moved_at_start: None,
        }
    }

    /// When to look again; `None` when the rule is off.
    pub fn deadline(&self) -> Option<Instant> {
        (self.rule.rate > 0).then(|| self.window_start + self.rule.window)
    }

    /// At the deadline: whether the client took enough of `moved` bytes in all; begins a new window.
    pub fn check(&mut self, moved: u64, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.window_start);
        let owed = u128::from(self.rule.rate) * elapsed.as_millis() / 1000;
        let enough = self
            .moved_at_start
            .is_none_or(|start| u128::from(moved.saturating_sub(start)) >= owed);
        self.window_start = now;
        self.moved_at_start = Some(moved);
        enough
    }

    /// Time passed for which the client is not to blame.
    pub fn forgive(&mut self, since: Instant, now: Instant) {
        self.window_start += now.saturating_duration_since(since);
    }
}

/// A part of an open file.
#[derive(Clone, Debug)]
pub struct FilePart {
    /// The file.
    pub file: Fd,
    /// First byte.
    pub offset: u64,
    /// Bytes; the file had them when it was looked at.
    pub length: u64,
    /// Whether all of it was seen in memory so recently that asking again is a waste.
    pub resident: bool,
}

/// The sending direction of a connection.
pub struct Sender {
    core: Core,
    socket: Fd,
    rule: ProgressRule,
    /// Bytes that the kernel has taken over the whole life of the connection.
    taken: u64,
}

impl Sender {
    /// Sends on a connected socket.
    pub fn new(core: &Core, socket: Fd, rule: ProgressRule) -> Self {
        Self {
            core: core.clone(),
            socket,
            rule,
            taken: 0,
        }
    }

    /// Bytes that the kernel has taken so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Sends all of `data` and gives the buffer back to the core. `more`: something follows at once.
    ///
    /// # Errors
    /// Never [`SendError::FileShrank`] or [`SendError::File`].
    pub async fn buffer(
        &mut self,
        timer: &mut Timer,
        mut data: Vec<u8>,
        more: bool,
    ) -> Result<(), SendError> {
        let mut progress = None;
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
                self.patiently(timer, &mut progress, &mut poll).await?
            };
            let Output::Data(back) = sent.output else {
                return Err(SendError::Broken(sent.result.err().unwrap_or(Errno::IO)));
            };
            data = back;
            let bytes = sent.result.map_err(SendError::Broken)? as usize;
            self.taken += bytes as u64;
            from += bytes;
        }
        self.core.recycle(data);
        Ok(())
    }

    /// Waits for the client under the progress rule.
    async fn patiently<T>(
        &self,
        timer: &mut Timer,
        progress: &mut Option<Progress>,
        poll: &mut impl FnMut() -> Poll<T>,
    ) -> Result<T, SendError> {
        loop {
            let now = self.core.now();
            let progress = progress.get_or_insert_with(|| Progress::new(self.rule, now));
            let Some(deadline) = progress.deadline() else {
                return Ok(std::future::poll_fn(|_| poll()).await);
            };
            timer.set(deadline);
            if let Some(done) = timer.bound(&mut *poll).await {
                return Ok(done);
            }
            if !progress.check(self.acknowledged(), self.core.now()) {
                return Err(SendError::TooSlow);
            }
        }
    }

    /// Bytes that the peer has taken from us: what the kernel holds unacknowledged does not count, or
    /// a large socket buffer would hide a client that reads slowly as well as one that reads.
    fn acknowledged(&self) -> u64 {
        self.taken
            .saturating_sub(self.core.unsent(&self.socket).unwrap_or(0))
    }

    /// Sends `head` and then parts of files, copying nothing through user space.
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
        let corked = part.length >= CORK_FROM && !more;
        if corked {
            self.core.cork(&self.socket, true);
        }
        if !head.is_empty() {
            self.head(timer, head).await?;
        }
        self.part(timer, part).await?;
        if corked {
            self.core.cork(&self.socket, false);
        }
        Ok(())
    }

    /// Sends a head that a file follows: usually at once, as a plain call.
    async fn head(&mut self, timer: &mut Timer, mut head: Vec<u8>) -> Result<(), SendError> {
        match self.core.send_now(&self.socket, &head, true) {
            Ok(sent) if sent == head.len() => {
                self.taken += sent as u64;
                self.core.recycle(head);
                Ok(())
            }
            Ok(sent) => {
                self.taken += sent as u64;
                head.drain(..sent);
                self.buffer(timer, head, true).await
            }
            Err(Errno::AGAIN | Errno::INTR) => self.buffer(timer, head, true).await,
            Err(errno) => Err(SendError::Broken(errno)),
        }
    }

    async fn part(&mut self, timer: &mut Timer, part: FilePart) -> Result<(), SendError> {
        let FilePart {
            file,
            mut offset,
            length,
            mut resident,
        } = part;
        let end = offset + length;
        let mut known_to = if resident { end } else { offset };
        let mut progress = None;
        while offset < end {
            let quota = self.core.bulk_left();
            if quota == 0 {
                self.core.yield_turn().await;
                continue;
            }
            if offset >= known_to {
                let window = (end - offset).min(WINDOW as u64);
                let asked = self.core.now();
                resident = self.make_resident(&file, offset, window).await?;
                if let (false, Some(progress)) = (resident, &mut progress) {
                    Progress::forgive(progress, asked, self.core.now());
                }
                known_to = offset + window;
            }
            let step = (known_to - offset).min(BULK_BYTES_PER_TURN as u64) as usize;
            match self
                .core
                .send_file(&self.socket, &file, &mut offset, step.min(quota))
            {
                Ok(0) => return Err(SendError::FileShrank),
                Ok(sent) => {
                    self.core.bulk_sent(sent);
                    self.taken += sent as u64;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut ready = self.core.once(Op::Ready {
                        fd: self.socket.clone(),
                        interest: Interest::Writable,
                    });
                    let mut ready = std::pin::Pin::new(&mut ready);
                    let mut poll = || ready.as_mut().poll(&mut noop());
                    let done = self.patiently(timer, &mut progress, &mut poll).await?;
                    done.result.map_err(SendError::Broken)?;
                }
                Err(errno @ (Errno::IO | Errno::INVAL | Errno::OPNOTSUPP)) => {
                    return Err(SendError::File(errno));
                }
                Err(errno) => return Err(SendError::Broken(errno)),
            }
        }
        Ok(())
    }

    /// Makes sure that sending this window doesn't make the core wait for a disk. Says whether it was
    /// in memory already.
    async fn make_resident(&self, file: &Fd, offset: u64, window: u64) -> Result<bool, SendError> {
        let mut byte = [0];
        let last = offset + window - 1;
        let mut resident = true;
        for at in [last, offset] {
            match self.core.read_resident(file, &mut byte, at) {
                Ok(1..) => {}
                // At its end the file has shrunk: the send finds out.
                Ok(_) => return Ok(resident),
                Err(Errno::AGAIN) => {
                    resident = false;
                    self.core.will_need(file, offset, READ_AHEAD);
                    let read = Op::Read {
                        file: file.clone(),
                        data: Vec::new(),
                        len: 1,
                        offset: at,
                    };
                    self.core.once(read).await.result.map_err(SendError::File)?;
                }
                // A file system that can't say: nothing is known, so it goes on.
                Err(_) => return Ok(resident),
            }
            if offset == last {
                break;
            }
        }
        Ok(resident)
    }
}

fn noop() -> std::task::Context<'static> {
    std::task::Context::from_waker(std::task::Waker::noop())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: ProgressRule = ProgressRule {
        window: Duration::from_secs(10),
        rate: 500,
    };

    #[test]
    fn a_client_that_takes_the_rate_goes_on_and_one_that_does_not_is_refused() {
        let start = Instant::now();
        let mut progress = Progress::new(RULE, start);
        assert_eq!(progress.deadline(), Some(start + RULE.window));
        assert!(
            progress.check(7, start + RULE.window),
            "where it stands is not known before"
        );
        assert!(progress.check(5007, start + 2 * RULE.window));
        assert!(!progress.check(10_006, start + 3 * RULE.window));
        assert!(progress.check(15_006, start + 4 * RULE.window));
    }

    #[test]
    fn time_that_a_disk_took_is_forgiven() {
        let start = Instant::now();
        let mut progress = Progress::new(RULE, start);
        progress.forgive(start, start + RULE.window);
        assert_eq!(progress.deadline(), Some(start + 2 * RULE.window));
    }

    #[test]
    fn a_rate_of_zero_never_has_a_deadline() {
        let rule = ProgressRule { rate: 0, ..RULE };
        assert_eq!(Progress::new(rule, Instant::now()).deadline(), None);
    }
}
