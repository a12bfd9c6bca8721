//! Moving bytes from one socket to another: by splice(2) through the core's pipes when they are many,
//! by a copy when they are few. It knows no protocol; how many bytes there are, or that the end of the
//! stream ends them, is said by the caller.
//!
//! Whoever relays from a socket has no receive armed on it: `net::recv::Receiver::stop` ends one
//! and gives what had come already.

mod patience;

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::send::ProgressRule;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::{Once, Timer};
use crate::runtime::op::{Interest, Op};
use crate::runtime::pipe::{PIPE_BYTES, Pipe};

use patience::{Endlessly, Patience, PatientWithSink, Waits};

/// Up to so many bytes are copied; more go through a pipe.
pub const COPY_MAX: usize = 16 << 10;

/// How patient a relay is with its two ends.
#[derive(Clone, Copy, Debug)]
pub struct RelayRules {
    /// Longest time that the source may send nothing while the sink waits for it; `None`: for ever.
    pub source_silence: Option<Duration>,
    /// How slowly the sink may take the bytes.
    pub sink: ProgressRule,
}

/// How patient the relay of a client's request is, where the source has to make progress and the sink
/// may take its time.
#[derive(Clone, Copy, Debug)]
pub struct UploadRules {
    /// How slowly the source may send while the sink has taken all there was.
    pub source: ProgressRule,
    /// Longest time that the sink may take nothing at all while there is something for it; `None`: for
    /// ever.
    pub sink_stall: Option<Duration>,
}

/// What ended a relay before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The source ended its stream before all announced bytes had come.
    SourceClosed,
    /// The source is broken: reset, timed out.
    SourceBroken(Errno),
    /// The source sent nothing for too long.
    SourceSilent,
    /// The source sends more slowly than the progress rule allows.
    SourceTooSlow,
    /// The sink is gone, or its connection is broken.
    SinkBroken(Errno),
    /// The sink takes the bytes more slowly than the progress rule allows.
    SinkTooSlow,
    /// The sink took nothing for too long.
    SinkStalled,
}

impl Cause {
    /// Whether the source is to blame, and not the sink.
    pub fn is_of_source(self) -> bool {
        matches!(
            self,
            Self::SourceClosed | Self::SourceBroken(_) | Self::SourceSilent | Self::SourceTooSlow
        )
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SourceClosed => {
                f.write_str("the sender ended before all announced bytes had come")
            }
            Self::SourceBroken(errno) => write!(f, "the sender's connection broke: {errno}"),
            Self::SourceSilent => f.write_str("the sender sent nothing for too long"),
            Self::SourceTooSlow => f.write_str("the sender sent the bytes too slowly"),
            Self::SinkBroken(errno) => write!(f, "the receiver's connection broke: {errno}"),
            Self::SinkTooSlow => f.write_str("the receiver took the bytes too slowly"),
            Self::SinkStalled => f.write_str("the receiver took nothing for too long"),
        }
    }
}

/// A relay that did not come to its end. Its sink has an unfinished message, its source may have more
/// to say: neither connection can be used for anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayError {
    /// What happened.
    pub cause: Cause,
    /// Bytes that were taken from the source.
    pub taken: u64,
    /// Bytes that the sink's kernel has taken.
    pub given: u64,
}

/// How far a relay has come, for who watches it, also after its future was dropped.
///
/// Invariant: `given <= taken`.
#[derive(Debug, Default)]
pub struct Moved {
    taken: Cell<u64>,
    given: Cell<u64>,
}

impl Moved {
    /// Bytes taken from the source.
    pub fn taken(&self) -> u64 {
        self.taken.get()
    }

    /// Bytes that the sink's kernel has taken.
    pub fn given(&self) -> u64 {
        self.given.get()
    }

    pub(super) fn took(&self, bytes: usize) {
        self.taken.set(self.taken.get() + bytes as u64);
    }

    pub(super) fn gave(&self, bytes: usize) {
        self.given.set(self.given.get() + bytes as u64);
    }
}

/// Moves `limit` bytes, or all until the source's stream ends, and says how many. The sink's direction
/// stays open. When the future is dropped both connections are as after an error.
///
/// # Errors
/// See [`Cause`]; [`Cause::SourceClosed`] only with a limit.
pub async fn relay(
    core: &Core,
    timer: &mut Timer,
    (from, to): (&Fd, &Fd),
    limit: Option<u64>,
    rules: &RelayRules,
    moved: &Moved,
) -> Result<u64, RelayError> {
    let begun = Cell::new(core.now());
    let mut mover = Mover::new(core, (from, to), moved, &begun);
    let mut patience = Patience::new(timer, rules);
    match mover.run(limit, &mut patience).await {
        Ok(()) => Ok(moved.given()),
        Err(cause) => Err(RelayError {
            cause,
            taken: moved.taken(),
            given: moved.given(),
        }),
    }
}

/// Moves `early`, which the source has sent already, and then `length` more bytes from the source; `moved`
/// counts both. It waits as one does for a client and a server behind us: the source owes bytes, but
/// only while the sink has taken what there was. The sink's direction stays open. When the future is
/// dropped the sink is as after an error; the source has given [`Moved::taken`] bytes, and no more.
///
/// # Errors
/// See [`Cause`].
pub async fn relay_upload(
    core: &Core,
    (from, to): (&Fd, &Fd),
    (early, length): (Vec<u8>, u64),
    rules: &UploadRules,
    moved: &Moved,
) -> Result<(), Cause> {
    let begun = Cell::new(core.now());
    let mut timer = Timer::new(core);
    let mut mover = Mover::new(core, (from, to), moved, &begun);
    let limit = early.len() as u64 + length;
    mover.begin_with(early);
    let mut patience = PatientWithSink::new(&mut timer, rules, core.now());
    mover.run(Some(limit), &mut patience).await
}

/// Bytes that came from either end before the tunnel began, and go to the other end first.
#[derive(Debug, Default)]
pub struct Early {
    /// From the first end.
    pub from_a: Vec<u8>,
    /// From the second end.
    pub from_b: Vec<u8>,
}

/// How one direction of a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowEnd {
    /// Its source ended the stream, and its sink was told so after the last byte.
    Closed,
    /// It failed, and the tunnel with it.
    Failed(Cause),
    /// It was still open when the other direction failed.
    Cut,
    /// It was still open when nothing had moved in either direction for too long.
    Idle,
}

/// One direction of a tunnel that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Bytes that the sink's kernel has taken, early ones included.
    pub bytes: u64,
    /// How it ended.
    pub end: FlowEnd,
}

/// A tunnel that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelEnd {
    /// From the first end to the second.
    pub a_to_b: Flow,
    /// From the second end to the first.
    pub b_to_a: Flow,
}

/// Moves bytes both ways until both directions have ended, one fails, or nothing moves for
/// `idle_timeout` (`None`: for ever). The end of one direction is passed on and leaves the other one
/// open. A tunnel at rest holds neither buffer nor pipe.
///
/// The caller closes both connections afterwards; after a failure each close is a reset, so that
/// neither end takes for whole what was cut.
pub async fn tunnel(
    core: &Core,
    (a, b): (&Fd, &Fd),
    early: &mut Early,
    idle_timeout: Option<Duration>,
) -> TunnelEnd {
    let moved = [Moved::default(), Moved::default()];
    let active = Cell::new(core.now());
    let mut ends = [None, None];
    let mut is_idle = false;
    {
        // By reference into the futures, where what is given by value would have room twice.
        let mut there = Mover::new(core, (a, b), &moved[0], &active);
        let mut back = Mover::new(core, (b, a), &moved[1], &active);
        there.begin_with(std::mem::take(&mut early.from_a));
        back.begin_with(std::mem::take(&mut early.from_b));
        let mut there = std::pin::pin!(flow(&mut there));
        let mut back = std::pin::pin!(flow(&mut back));
        let mut timer = Timer::new(core);
        let mut both = || poll_flows([there.as_mut(), back.as_mut()], &mut ends);
        match idle_timeout {
            None => poll_fn(|_| both()).await,
            Some(idle) => loop {
                let last = active.get();
                timer.set(last + idle);
                if timer.bound(&mut both).await.is_some() {
                    break;
                }
                if active.get() == last {
                    is_idle = true;
                    break;
                }
            },
        }
    }
    if ends.iter().any(|end| matches!(end, Some(Err(_)))) {
        core.reset_on_close(a);
        core.reset_on_close(b);
    }
    TunnelEnd::of(&moved, ends, is_idle)
}

/// Polls both directions of a tunnel; ready when both have ended, or one has failed.
pub(super) fn poll_flows(
    flows: [Pin<&mut dyn Future<Output = Result<(), Cause>>>; 2],
    ends: &mut [Option<Result<(), Cause>>; 2],
) -> Poll<()> {
    let mut context = Context::from_waker(Waker::noop());
    for (flow, end) in flows.into_iter().zip(&mut *ends) {
        if end.is_none()
            && let Poll::Ready(ended) = flow.poll(&mut context)
        {
            *end = Some(ended);
        }
    }
    let failed = ends.iter().any(|end| matches!(end, Some(Err(_))));
    match failed || ends.iter().all(Option::is_some) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    }
}

impl TunnelEnd {
    /// How a tunnel ended whose two flows came to this, where both stopped as soon as one failed.
    pub(super) fn of(
        moved: &[Moved; 2],
        ends: [Option<Result<(), Cause>>; 2],
        is_idle: bool,
    ) -> Self {
        let ended = |index: usize| Flow {
            bytes: moved[index].given(),
            end: match ends[index] {
                Some(Ok(())) => FlowEnd::Closed,
                Some(Err(cause)) => FlowEnd::Failed(cause),
                None if is_idle => FlowEnd::Idle,
                None => FlowEnd::Cut,
            },
        };
        Self {
            a_to_b: ended(0),
            b_to_a: ended(1),
        }
    }
}

/// One direction of a tunnel.
async fn flow(mover: &mut Mover<'_>) -> Result<(), Cause> {
    mover.run(None, &mut Endlessly).await?;
    mover.core.shut_down_write(mover.to);
    Ok(())
}

/// What bytes on their way are in.
enum Carrier {
    Nothing,
    /// Invariant: `at < data.len()`.
    Copy {
        data: Vec<u8>,
        at: usize,
    },
    Pipe(Pipe),
}

/// What one attempt came to.
enum Step {
    /// Bytes came from the source.
    Took(usize),
    /// Bytes went to the sink.
    Gave(usize),
    /// The source's stream has ended.
    Ended,
    Wait(Interest),
    Failed(Cause),
}

/// One direction: takes from the source, gives all of that to the sink, and begins again.
struct Mover<'a> {
    core: &'a Core,
    from: &'a Fd,
    to: &'a Fd,
    carrier: Carrier,
    /// The source had more than fits into a copy the last time.
    is_bulk: bool,
    /// A splice isn't possible between these two.
    copies_only: bool,
    /// It had a share of this turn's quota.
    had_share: bool,
    moved: &'a Moved,
    /// When bytes moved last.
    active: &'a Cell<Instant>,
}

impl<'a> Mover<'a> {
    fn new(
        core: &'a Core,
        (from, to): (&'a Fd, &'a Fd),
        moved: &'a Moved,
        active: &'a Cell<Instant>,
    ) -> Self {
        Self {
            core,
            from,
            to,
            carrier: Carrier::Nothing,
            is_bulk: false,
            copies_only: false,
            had_share: false,
            moved,
            active,
        }
    }

    /// Takes bytes that came from the source before.
    fn begin_with(&mut self, early: Vec<u8>) {
        if !early.is_empty() {
            self.moved.taken.set(early.len() as u64);
            self.carrier = Carrier::Copy { data: early, at: 0 };
        }
    }

    /// Bytes that the sink's peer has taken, and a constant. Only differences count: older bytes of the
    /// same connection, which this relay doesn't know, may still be unacknowledged, and without the
    /// constant a sink that works them off would seem to take nothing.
    fn acknowledged(&self) -> u64 {
        const OLDER_BYTES: u64 = 1 << 40;
        let unsent = self.core.unsent(self.to).unwrap_or(0);
        (OLDER_BYTES + self.moved.given()).saturating_sub(unsent)
    }

    async fn run(&mut self, limit: Option<u64>, waits: &mut impl Waits) -> Result<(), Cause> {
        loop {
            self.share().await;
            match self.step(limit) {
                Step::Took(bytes) => {
                    self.moved.taken.set(self.moved.taken() + bytes as u64);
                    self.active.set(self.core.now());
                }
                Step::Gave(bytes) => {
                    self.core.bulk_sent(bytes);
                    self.had_share = true;
                    self.moved.given.set(self.moved.given() + bytes as u64);
                    self.active.set(self.core.now());
                }
                Step::Ended => {
                    let early = limit.is_some_and(|limit| self.moved.given() < limit);
                    return if early {
                        Err(Cause::SourceClosed)
                    } else {
                        Ok(())
                    };
                }
                Step::Wait(interest) => waits.wait(self, interest).await?,
                Step::Failed(cause) => return Err(cause),
            }
        }
    }

    /// Waits until this direction may move bytes in this turn.
    async fn share(&mut self) {
        while self.core.bulk_left() == 0 {
            if std::mem::take(&mut self.had_share) {
                self.core.yield_turn().await;
            } else {
                self.core.yield_for_bulk().await;
            }
        }
    }

    /// Moves what can be moved at once, in one of its two halves.
    fn step(&mut self, limit: Option<u64>) -> Step {
        let quota = self.core.bulk_left();
        let given = match &mut self.carrier {
            Carrier::Nothing => None,
            Carrier::Copy { data, at } => {
                let end = data.len().min(*at + quota);
                let sent = self.core.send_now(self.to, &data[*at..end], false);
                *at += sent.unwrap_or(0);
                let is_empty = *at == data.len();
                Some((sent, is_empty))
            }
            Carrier::Pipe(pipe) if pipe.held() > 0 => {
                let sent = pipe.drain(self.to, quota);
                Some((sent, false))
            }
            Carrier::Pipe(_) => None,
        };
        match given {
            Some((Ok(bytes), is_empty)) => {
                if is_empty {
                    self.let_go();
                }
                Step::Gave(bytes)
            }
            Some((Err(Errno::AGAIN), _)) => Step::Wait(Interest::Writable),
            Some((Err(Errno::INTR), _)) => Step::Gave(0),
            Some((Err(errno), _)) => Step::Failed(Cause::SinkBroken(errno)),
            None => self.take(limit),
        }
    }

    /// Lets go of an empty carrier.
    fn let_go(&mut self) {
        if let Carrier::Copy { data, .. } = std::mem::replace(&mut self.carrier, Carrier::Nothing) {
            self.core.recycle(data);
        }
    }

    /// Takes bytes from the source, with nothing on the way to the sink.
    fn take(&mut self, limit: Option<u64>) -> Step {
        let left = limit.map(|limit| limit - self.moved.taken());
        if left == Some(0) {
            self.let_go();
            return Step::Ended;
        }
        let most = left.map_or(PIPE_BYTES, |left| left.min(PIPE_BYTES as u64) as usize);
        let is_bulk = match left {
            Some(left) => left > COPY_MAX as u64,
            None => self.is_bulk,
        };
        let has_pipe = matches!(self.carrier, Carrier::Pipe(_));
        if is_bulk && !has_pipe && !self.copies_only {
            self.carrier = self
                .core
                .take_pipe()
                .map_or(Carrier::Nothing, Carrier::Pipe);
        }
        let taken = match &mut self.carrier {
            Carrier::Pipe(pipe) => match pipe.fill(self.from, most) {
                // Not a socket that can be spliced from, or forbidden.
                Err(Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP) => {
                    self.copies_only = true;
                    self.carrier = Carrier::Nothing;
                    self.copy(most)
                }
                taken => taken,
            },
            _ => self.copy(most),
        };
        match taken {
            Ok(0) => {
                self.let_go();
                Step::Ended
            }
            Ok(bytes) => {
                self.is_bulk = bytes >= COPY_MAX;
                Step::Took(bytes)
            }
            Err(Errno::AGAIN) => {
                // Who waits for a source holds nothing.
                self.let_go();
                Step::Wait(Interest::Readable)
            }
            Err(Errno::INTR) => Step::Took(0),
            Err(errno) => Step::Failed(Cause::SourceBroken(errno)),
        }
    }

    /// Receives into a buffer of the core's.
    fn copy(&mut self, most: usize) -> Result<usize, Errno> {
        let mut data = self.core.send_buffer();
        data.resize(most.min(COPY_MAX), 0);
        match self.core.receive_now(self.from, &mut data) {
            Ok(bytes) if bytes > 0 => {
                data.truncate(bytes);
                self.carrier = Carrier::Copy { data, at: 0 };
                Ok(bytes)
            }
            nothing => {
                self.core.recycle(data);
                nothing
            }
        }
    }

    /// Asks to be told when an end is ready.
    fn ready(&self, interest: Interest) -> Once {
        let fd = match interest {
            Interest::Readable => self.from,
            Interest::Writable => self.to,
        };
        self.core.once(Op::Ready {
            fd: fd.clone(),
            interest,
        })
    }
}

#[cfg(test)]
mod tests;
