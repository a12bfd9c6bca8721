//! Sending to a connection: buffers, and files without copying them through user space, always
//! under the progress rule.

mod ahead;
mod direct;
mod file;
mod kernel;
mod progress;
mod secured;

use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;

pub use ahead::Warmth;
pub use file::FilePart;
pub use progress::{Progress, ProgressRule};

use super::secured::{KERNEL_FROM, Secured};
use super::splice::{self, Cause, Moved, RelayRules};
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::{Once, Timer};
use crate::runtime::op::{Interest, Op, Output};

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

/// The rule of whoever watches the time by himself.
pub const UNHURRIED: ProgressRule = ProgressRule {
    window: Duration::ZERO,
    rate: 0,
};

/// A progress rule as every connection keeps it.
#[derive(Clone, Copy)]
struct Rule {
    window_ms: u32,
    /// Bytes per second; more than 4 GiB is as good as that.
    rate: u32,
}

impl From<ProgressRule> for Rule {
    fn from(rule: ProgressRule) -> Self {
        let whole_ms = rule.window.as_secs().saturating_mul(1000);
        let window_ms = whole_ms.saturating_add(rule.window.subsec_millis().into());
        Self {
            window_ms: u32::try_from(window_ms).unwrap_or(u32::MAX),
            rate: u32::try_from(rule.rate).unwrap_or(u32::MAX),
        }
    }
}

impl From<Rule> for ProgressRule {
    fn from(rule: Rule) -> Self {
        Self {
            window: Duration::from_millis(rule.window_ms.into()),
            rate: rule.rate.into(),
        }
    }
}

/// The sending direction of a connection.
pub struct Sender {
    core: Core,
    socket: Fd,
    rule: Rule,
    /// Bytes that the kernel has taken over the whole life of the connection; of a secured one, before
    /// they were encrypted.
    taken: u64,
    /// What the bytes are encrypted by.
    secured: Option<Rc<Secured>>,
}

impl Sender {
    /// Sends on a connected socket.
    pub fn new(core: &Core, socket: Fd, rule: ProgressRule) -> Self {
        Self {
            core: core.clone(),
            socket,
            rule: rule.into(),
            taken: 0,
            secured: None,
        }
    }

    /// From now on what is sent is encrypted.
    pub fn secure(&mut self, secured: Rc<Secured>) {
        self.secured = Some(secured);
    }

    /// Whether the connection is under TLS.
    pub fn is_secured(&self) -> bool {
        self.secured.is_some()
    }

    /// Whether what is sent is encrypted here: nothing else can then be put into the socket.
    fn seals(&self) -> bool {
        match &self.secured {
            None => false,
            Some(secured) => !secured.is_kernels(),
        }
    }

    /// As [`Self::seals`], before content of this length, which may be a reason to have the kernel encrypt.
    fn seals_content(&self, length: u64) -> bool {
        match &self.secured {
            None => false,
            Some(secured) if secured.is_kernels() => false,
            Some(secured) => length < KERNEL_FROM || !secured.hand_over(),
        }
    }

    /// Whether the keys of the connection can't be renewed and should not be used much longer: it is to
    /// end with its next response.
    pub fn is_spent(&self) -> bool {
        self.secured
            .as_ref()
            .is_some_and(|secured| secured.is_spent())
    }

    /// Whether the end of our direction has to be left to the close: where the kernel encrypts, shutdown(2)
    /// would overtake what it has encrypted and not yet put into the socket. The client was told by
    /// [`Self::finish`].
    pub fn waits_for_close(&self) -> bool {
        self.is_secured() && !self.seals()
    }

    /// Counts bytes that the kernel has taken.
    fn took(&mut self, bytes: u64) -> Result<(), SendError> {
        self.taken += bytes;
        match &self.secured {
            Some(secured) if secured.is_used_up(self.taken) => Err(SendError::Broken(Errno::PROTO)),
            _ => Ok(()),
        }
    }

    /// Sends under this rule from now on.
    pub fn set_rule(&mut self, rule: ProgressRule) {
        self.rule = rule.into();
    }

    /// The socket.
    pub fn socket(&self) -> &Fd {
        &self.socket
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
        if self.seals() {
            return self.secured_buffer(timer, data, more).await;
        }
        let mut progress = None;
        let mut from = 0;
        if self.core.sends_by_call() {
            from = self.at_once_of(&data, more)?;
        }
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
            self.took(bytes as u64)?;
            from += bytes;
        }
        self.core.recycle(data);
        Ok(())
    }

    /// Sends what the socket takes at once, and says how much that was. Under TLS a part of it may wait
    /// to leave with what is sent next: see [`Self::holds`].
    ///
    /// # Errors
    /// [`SendError::Broken`].
    pub fn at_once(&mut self, data: &[u8]) -> Result<usize, SendError> {
        if self.seals() {
            return self.secured_at_once(data);
        }
        self.at_once_of(data, false)
    }

    /// As [`Self::at_once`], of bytes that are sent as they are.
    fn at_once_of(&mut self, data: &[u8], more: bool) -> Result<usize, SendError> {
        let sent = match self.core.send_now(&self.socket, data, more) {
            Ok(sent) => sent,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(errno) => return Err(SendError::Broken(errno)),
        };
        self.took(sent as u64)?;
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
            let progress = progress.get_or_insert_with(|| Progress::new(self.rule.into(), now));
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
        let taken = match &self.secured {
            Some(secured) if !secured.is_kernels() => secured.sent(),
            _ => self.taken,
        };
        taken.saturating_sub(self.core.unsent(&self.socket).unwrap_or(0))
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
        if self.seals() {
            return self.secured_pair(timer, head, body).await;
        }
        let sent = match self.core.send_pair(&self.socket, [&head, body], false) {
            Ok(sent) => sent,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(errno) => return Err(SendError::Broken(errno)),
        };
        self.took(sent as u64)?;
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
        if self.seals_content(length) {
            return self
                .secured_relay(timer, (from, length), silence, moved)
                .await;
        }
        if self.secured.is_some() {
            return self
                .kernel_relay(timer, (from, length), silence, moved)
                .await;
        }
        let rules = RelayRules {
            source_silence: silence,
            sink: self.rule.into(),
        };
        let ends = (from, &self.socket);
        let relayed = splice::relay(&self.core, timer, ends, Some(length), &rules, moved).await;
        self.taken += moved.given();
        relayed.map(drop).map_err(|error| error.cause)
    }
}

fn noop() -> std::task::Context<'static> {
    std::task::Context::from_waker(std::task::Waker::noop())
}
