//! Sending to a connection: buffers, and files without copying them through user space, always
//! under the progress rule.

use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::splice::{self, Cause, Moved, RelayRules};
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::{Once, Timer};
use crate::runtime::op::{Interest, Op, Output};

/// From this size on a file goes out under `TCP_CORK`, where that pays: see [`Core::set_corking`].
const CORK_FROM: u64 = 256 << 10;

/// Bytes whose residency is asked for at once, before a sendfile(2).
const WINDOW: u64 = 512 << 10;

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
    /// What was to be sent came from elsewhere, and ended before its end.
    Cut(&'static str),
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

    /// A transfer that begins now and of which it is known how far it is: the first window counts.
    pub fn from(rule: ProgressRule, now: Instant, moved: u64) -> Self {
        Self {
            moved_at_start: Some(moved),
            ..Self::new(rule, now)
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

    /// Sends under this rule from now on.
    pub fn set_rule(&mut self, rule: ProgressRule) {
        self.rule = rule;
    }

    /// Bytes that the kernel has taken so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Sends all of `data` and gives the buffer back to the core. `more`: something follows at once.
    ///
    /// # Errors
    /// [`SendError::Broken`] or [`SendError::TooSlow`].
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

    /// Sends what the socket takes at once, and says how much that was.
    ///
    /// # Errors
    /// [`SendError::Broken`].
    pub fn at_once(&mut self, data: &[u8]) -> Result<usize, SendError> {
        let sent = match self.core.send_now(&self.socket, data, false) {
            Ok(sent) => sent,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(errno) => return Err(SendError::Broken(errno)),
        };
        self.taken += sent as u64;
        Ok(sent)
    }

    /// Completes when the socket may take more.
    pub fn writable(&self) -> Once {
        self.core.once(Op::Ready {
            fd: self.socket.clone(),
            interest: Interest::Writable,
        })
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
    pub fn acknowledged(&self) -> u64 {
        self.taken
            .saturating_sub(self.core.unsent(&self.socket).unwrap_or(0))
    }

    /// Sends two pieces, the first of them a buffer of the core's.
    ///
    /// # Errors
    /// As [`Self::buffer`].
    pub async fn pair(
        &mut self,
        timer: &mut Timer,
        mut head: Vec<u8>,
        body: &[u8],
    ) -> Result<(), SendError> {
        let sent = match self.core.send_pair(&self.socket, [&head, body], false) {
            Ok(sent) => sent,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(errno) => return Err(SendError::Broken(errno)),
        };
        self.taken += sent as u64;
        if sent == head.len() + body.len() {
            self.core.recycle(head);
            return Ok(());
        }
        // The client is slow, so the rest waits in memory of its own.
        let of_head = sent.min(head.len());
        head.drain(..of_head);
        head.extend_from_slice(&body[sent - of_head..]);
        self.buffer(timer, head, false).await
    }

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
                    let asked = self.core.now();
                    self.read_ahead(&sending).await?;
                    if let Some(progress) = &mut sending.progress {
                        progress.forgive(asked, self.core.now());
                    }
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

    /// Moves `length` bytes to the client from another socket, on which nothing is armed. `moved`, which
    /// begins at 0, tells how far it has come, also after the future was dropped.
    ///
    /// There is no cork and no `MSG_MORE`: nobody knows when the source goes on, and the end of what
    /// came would wait for it.
    ///
    /// # Errors
    /// See [`Cause`]; neither connection can be used for anything more.
    pub async fn relay(
        &mut self,
        timer: &mut Timer,
        (from, length): (&Fd, u64),
        silence: Option<Duration>,
        moved: &Moved,
    ) -> Result<(), Cause> {
        let rules = RelayRules {
            source_silence: silence,
            sink: self.rule,
        };
        let ends = (from, &self.socket);
        let relayed = splice::relay(&self.core, timer, ends, Some(length), &rules, moved).await;
        self.taken += moved.given();
        relayed.map(drop).map_err(|error| error.cause)
    }

    /// Waits until this transfer may send in this turn.
    async fn share(&self, sending: &mut FileSend) {
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
            if !self.is_resident(&sending.file, sending.offset, window) {
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

    async fn wait_for_client(
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
struct FileSend {
    head: Vec<u8>,
    head_at: usize,
    file: Fd,
    offset: u64,
    end: u64,
    /// Up to here the file is known to be in memory.
    known_to: u64,
    progress: Option<Progress>,
    /// It has sent in this turn.
    had_share: bool,
    more: bool,
}

impl FileSend {
    fn is_done(&self) -> bool {
        self.head_at == self.head.len() && self.offset == self.end
    }

    fn left(&self) -> u64 {
        self.end - self.offset
    }

    fn took(&mut self, sent: usize) {
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
