//! The request's side of an exchange while a handler is at work: the body as it comes, the interim
//! responses that go out before the final one, and what becomes of the client meanwhile.
//!
//! It lends the connection, and owns nothing of it: what is not taken here stays for the session, to
//! be drained or to close the connection over. It knows no backend.

mod relay;
use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::input::Input;
use super::record::Upstreamed;
use crate::http::h1::Reject;
use crate::http::h1::body::BodyDecoder;
use crate::http::h1::encode::{CONTINUE, DateBlock, HeadContext, ResponseFraming, write_head};
use crate::http::types::{Fields, Framing, Request, ResponseHead, Version};
use crate::net::recv::{End, Receiver};
use crate::net::send::{Progress, ProgressRule, SendError, Sender};
use crate::runtime::buf::RecvBuf;
use crate::runtime::executor::Core;
use crate::runtime::future::{Once, Timer};

pub use relay::{UploadRelay, UploadRelayError};

/// Most interim responses of one exchange; more are dropped. A backend that floods with them is cut
/// off elsewhere.
pub const INTERIM_MAX: u8 = 16;

/// Most bytes of responses that wait for the client while an interim one is added; beyond it that one
/// is dropped: nobody has to have them.
const INTERIM_ROOM: usize = 64 << 10;

/// Why no more of a request's body comes. It repeats; the connection ends behind the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadError {
    /// The client sends, or takes what has to be sent first, more slowly than the progress rule allows.
    TooSlow,
    /// The client ended or broke the connection before the end of the body.
    Gone(End),
    /// The body breaks a rule of its coding.
    Malformed(Reject),
    /// The client waits for `100 Continue`, and the final response has been sent instead: whether it
    /// sends the body now can't be known.
    NotAsked,
}

impl UploadError {
    /// What to answer where nothing was answered yet.
    pub fn status(self) -> u16 {
        match self {
            Self::TooSlow => 408,
            Self::Malformed(reject) => reject.status.0,
            Self::Gone(_) | Self::NotAsked => 400,
        }
    }

    /// The reason for the log.
    pub fn reason(self) -> &'static str {
        match self {
            Self::TooSlow => PROGRESS,
            Self::Gone(_) => "client gone within its request",
            Self::Malformed(reject) => reject.reason,
            Self::NotAsked => "body was not asked for",
        }
    }
}

impl fmt::Display for UploadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for UploadError {}

/// The name of the limit on slow clients.
pub(super) const PROGRESS: &str = "progress of a body";

/// The request's body, lent to a handler or to the stream of a response.
pub struct Upload<'c> {
    pub(super) core: &'c Core,
    pub(super) state: &'c mut State,
    /// `None` while the request has no body and still stands in the bytes that were received.
    pub(super) input: Option<&'c mut Input>,
    pub(super) receiver: &'c mut Receiver,
    /// `None` once the final head was written.
    pub(super) out: Option<Out<'c>>,
}

/// Where interim responses go.
pub(super) struct Out<'c> {
    pub(super) sender: &'c mut Sender,
    pub(super) batch: &'c mut Vec<u8>,
    pub(super) date: &'c DateBlock,
}

impl Upload<'_> {
    /// The next bytes of content, without their coding; `None` at the end, at once where there is no
    /// body. The same bytes come again until they are used up by [`Self::consume`], in part or whole.
    /// The first poll of a body that the client holds back asks for it by `100 Continue`.
    ///
    /// # Errors
    /// See [`UploadError`]; it repeats. What came before it has been given before it.
    pub fn poll_chunk(&mut self) -> Poll<Option<Result<&[u8], UploadError>>> {
        let ready = match self.poll_ready() {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
            Poll::Ready(Ok(ready)) => ready,
        };
        Poll::Ready(match &self.input {
            Some(input) if ready > 0 => Some(Ok(&input.bytes()[..ready])),
            _ => None,
        })
    }

    /// The next bytes, as [`Self::poll_chunk`].
    ///
    /// # Errors
    /// As [`Self::poll_chunk`].
    pub async fn chunk(&mut self) -> Option<Result<&[u8], UploadError>> {
        std::future::poll_fn(|_| self.poll_ready().map(drop)).await;
        match self.poll_chunk() {
            Poll::Ready(chunk) => chunk,
            Poll::Pending => unreachable!("what was ready stays so until it is consumed"),
        }
    }

    /// Uses the first `bytes` of the last chunk up.
    pub fn consume(&mut self, bytes: usize) {
        let (Some(incoming), Some(input)) = (&mut self.state.incoming, &mut self.input) else {
            debug_assert_eq!(bytes, 0, "no body, nothing to consume");
            return;
        };
        incoming.consume(input, bytes);
    }

    /// How the body's end is found.
    pub fn framing(&self) -> Framing {
        self.state.framing
    }

    /// Bytes of content that certainly come yet, those of the last chunk included: all that are left
    /// with a Content-Length, fewer than that with chunked coding.
    pub fn remaining(&self) -> u64 {
        self.state.remaining()
    }

    /// Whether all of the body was consumed, or there is none.
    pub fn is_ended(&self) -> bool {
        self.state.is_ended()
    }

    /// Bytes of content that were consumed.
    pub fn received(&self) -> u64 {
        self.state.received()
    }

    /// The trailer fields; none before the end of the body.
    pub fn trailers(&self) -> Fields<'_> {
        let incoming = self.state.incoming.as_ref();
        incoming.map_or_else(Fields::default, |incoming| incoming.decoder.trailers())
    }

    /// Whether the client holds the body back until it is asked for it.
    pub fn expects_continue(&self) -> bool {
        self.state.awaits_continue
    }

    /// Adds an interim response (status 1xx, but not 101), to be sent before the final one; what it
    /// waits for is [`Self::poll_flush`]. Says whether it was added: not for HTTP/1.0, not behind the
    /// final head, not beyond [`INTERIM_MAX`], nor when a slow client has too much before it already.
    pub fn interim(&mut self, head: &ResponseHead) -> bool {
        let status = head.status.0;
        debug_assert!((100..200).contains(&status) && status != 101, "{status}");
        let Some(out) = &mut self.out else {
            return false;
        };
        let room = self.state.interims < INTERIM_MAX && out.batch.len() < INTERIM_ROOM;
        let fits = (100..200).contains(&status) && status != 101;
        if !fits || !room || self.state.version == Version::Http10 {
            return false;
        }
        self.state.interims += 1;
        if status == 100 {
            self.state.awaits_continue = false;
        }
        let context = HeadContext {
            version: self.state.version,
            keep_alive: true,
            framing: ResponseFraming::None,
            date: out.date,
        };
        write_head(out.batch, head, &context);
        true
    }

    /// Sends what was answered before: interim responses, and final ones to requests before this one,
    /// which must not wait for a backend. Ready when all has left; a poll of the body does it, too.
    ///
    /// # Errors
    /// [`UploadError::TooSlow`] or [`UploadError::Gone`].
    pub fn poll_flush(&mut self) -> Poll<Result<(), UploadError>> {
        let Some(out) = &mut self.out else {
            return Poll::Ready(Ok(()));
        };
        if out.batch.is_empty() && !out.sender.holds() {
            return Poll::Ready(Ok(()));
        }
        let (core, rule) = (self.core, self.state.rule);
        let flushing = &mut self.state.flushing;
        let flushed = flushing
            .get_or_insert_with(|| Box::new(Flushing::new(core, rule)))
            .poll(core, out);
        if flushed.is_ready() {
            *flushing = None;
        }
        flushed.map(|flushed| {
            flushed.map_err(|error| {
                let error = match error {
                    SendError::Broken(errno) => UploadError::Gone(End::Broken(errno)),
                    _ => UploadError::TooSlow,
                };
                self.state.fail(error)
            })
        })
    }

    /// Ready when the client has ended its direction or broken the connection, for who waits for a
    /// backend and would wait in vain. [`End::Closed`] alone is no farewell: a client may end its
    /// direction behind its request and still read. Never ready while the body has not ended, nor
    /// while further requests wait.
    pub fn poll_gone(&mut self) -> Poll<End> {
        let waiting = self.input.as_ref().is_some_and(|i| !i.bytes().is_empty());
        if !self.state.is_ended() || waiting || self.state.ahead.is_some() {
            return Poll::Pending;
        }
        match self.receiver.poll_next() {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(end)) => Poll::Ready(end),
            Poll::Ready(Ok(mut next)) => {
                // It will wait as long as this exchange takes.
                next.detach();
                self.state.ahead = Some(next);
                Poll::Pending
            }
        }
    }

    /// The client's address as it is believed, for the access log, where that isn't the peer's.
    pub fn note_client(&mut self, client: Option<IpAddr>) {
        self.state.client = client;
    }

    /// Notes what is known of a backend, for the access log. The last note counts.
    pub fn note(&mut self, upstream: Upstreamed) {
        self.state.upstream = Some(Box::new(upstream));
    }

    /// What was noted last, to be completed.
    pub fn noted(&mut self) -> Option<&mut Upstreamed> {
        self.state.upstream.as_deref_mut()
    }

    /// The receiving direction of the socket itself and the bytes of content that are still in it or
    /// to come, for who moves them without a copy: where the length is known, nothing of it waits here,
    /// the client holds nothing back, and the connection isn't under TLS. Who takes bytes out of
    /// either says how many ([`Self::took`]), and leaves the rest of the stream alone.
    pub fn direct(&mut self) -> Option<(&mut Receiver, u64)> {
        if !matches!(self.state.framing, Framing::Length(_)) || self.receiver.is_secured() {
            return None;
        }
        let waiting = self.input.as_ref().is_some_and(|i| !i.bytes().is_empty());
        let incoming = self.state.incoming.as_ref()?;
        let usable = incoming.error.is_none() && !waiting && !self.state.awaits_continue;
        let left = incoming.remaining();
        (usable && left > 0).then_some((&mut *self.receiver, left))
    }

    /// This many bytes of content were taken by [`Self::direct`].
    pub fn took(&mut self, bytes: u64) {
        if let Some(incoming) = &mut self.state.incoming {
            incoming.decoder.skip_content(bytes);
            incoming.taken += bytes;
            incoming.arrived += bytes;
            // Whoever takes them so waits by a rule of his own, from the first loan on.
            incoming.lent_since.get_or_insert(self.core.now());
        }
    }

    /// Bytes of content at the beginning of the input, 0 at the end of the body.
    fn poll_ready(&mut self) -> Poll<Result<usize, UploadError>> {
        loop {
            let (Some(incoming), Some(input)) = (&mut self.state.incoming, &mut self.input) else {
                return Poll::Ready(Ok(0));
            };
            match incoming.advance(input) {
                Err(error) => return Poll::Ready(Err(error)),
                Ok(0) if !incoming.is_ended() => {}
                Ok(ready) => {
                    self.state.awaits_continue = false;
                    incoming.lent_since = Some(self.core.now());
                    if self.core.buffers_scarce() {
                        input.detach();
                    }
                    return Poll::Ready(Ok(ready));
                }
            }
            // Used up, but still a shared buffer that others may be waiting for.
            input.detach();
            if let Some(failed) = self.ask() {
                return failed;
            }
            if let Some(failed) = self.receive() {
                return failed;
            }
        }
    }

    /// Sends `100 Continue` where the client waits for it. Gives what `poll_ready` gives when that
    /// keeps it from going on.
    fn ask(&mut self) -> Option<Poll<Result<usize, UploadError>>> {
        if std::mem::take(&mut self.state.awaits_continue) {
            let Some(out) = &mut self.out else {
                return Some(Poll::Ready(Err(self.state.fail(UploadError::NotAsked))));
            };
            out.batch.extend_from_slice(CONTINUE);
        }
        match self.poll_flush() {
            Poll::Ready(Ok(())) => None,
            Poll::Ready(Err(error)) => Some(Poll::Ready(Err(error))),
            Poll::Pending => Some(Poll::Pending),
        }
    }

    /// Takes what the socket has into the input, as [`Self::ask`].
    fn receive(&mut self) -> Option<Poll<Result<usize, UploadError>>> {
        let (Some(incoming), Some(input)) = (&mut self.state.incoming, &mut self.input) else {
            return Some(Poll::Ready(Ok(0)));
        };
        match self.receiver.poll_next() {
            Poll::Ready(Ok(next)) => {
                incoming.arrived += next.len() as u64;
                input.append(next);
                None
            }
            Poll::Ready(Err(end)) => {
                let error = self.state.fail(UploadError::Gone(end));
                Some(Poll::Ready(Err(error)))
            }
            Poll::Pending if incoming.is_in_time(self.core, self.state.rule) => Some(Poll::Pending),
            Poll::Pending => Some(Poll::Ready(Err(self.state.fail(UploadError::TooSlow)))),
        }
    }
}

/// What the session keeps of an upload between two loans.
pub(super) struct State {
    version: Version,
    framing: Framing,
    rule: ProgressRule,
    awaits_continue: bool,
    interims: u8,
    incoming: Option<Box<Incoming>>,
    flushing: Option<Box<Flushing>>,
    /// What came behind the body, while only the client's end was asked for.
    ahead: Option<RecvBuf>,
    pub(super) upstream: Option<Box<Upstreamed>>,
    /// What a handler noted of the client.
    pub(super) client: Option<IpAddr>,
}

/// A body on its way. Invariant: of the bytes in the input the first `ready` are content, and the next
/// `coding` are to go with them; the decoder has seen both.
struct Incoming {
    decoder: BodyDecoder,
    ready: usize,
    coding: usize,
    /// Bytes of content that were consumed.
    taken: u64,
    /// Bytes that came from the socket.
    arrived: u64,
    timer: Timer,
    progress: Option<Progress>,
    /// Since when it is not the client that is waited for.
    lent_since: Option<Instant>,
    error: Option<UploadError>,
    /// The error was counted.
    blamed: bool,
}

impl State {
    pub(super) fn new(core: &Core, request: &Request<'_>, rule: ProgressRule) -> Self {
        let decoder = BodyDecoder::new(request.framing);
        let incoming = (!decoder.is_ended()).then(|| {
            Box::new(Incoming {
                decoder,
                ready: 0,
                coding: 0,
                taken: 0,
                arrived: 0,
                timer: Timer::new(core),
                progress: None,
                lent_since: None,
                error: None,
                blamed: false,
            })
        });
        Self {
            version: request.version,
            framing: request.framing,
            rule,
            awaits_continue: request.expects_continue,
            interims: 0,
            incoming,
            flushing: None,
            ahead: None,
            upstream: None,
            client: None,
        }
    }

    /// Whether there is a body.
    pub(super) fn has_body(&self) -> bool {
        self.incoming.is_some()
    }

    pub(super) fn is_ended(&self) -> bool {
        let incoming = self.incoming.as_ref();
        incoming.is_none_or(|incoming| incoming.is_ended())
    }

    pub(super) fn remaining(&self) -> u64 {
        let incoming = self.incoming.as_ref();
        incoming.map_or(0, |incoming| incoming.remaining())
    }

    pub(super) fn received(&self) -> u64 {
        self.incoming.as_ref().map_or(0, |incoming| incoming.taken)
    }

    /// Whether the client still waits to be asked for the body.
    pub(super) fn awaits_continue(&self) -> bool {
        self.awaits_continue
    }

    /// Why the body ended before its end.
    pub(super) fn error(&self) -> Option<UploadError> {
        self.incoming.as_ref()?.error
    }

    /// The same, once.
    pub(super) fn unblamed(&mut self) -> Option<UploadError> {
        let incoming = self.incoming.as_mut()?;
        let error = incoming.error?;
        (!std::mem::replace(&mut incoming.blamed, true)).then_some(error)
    }

    /// What is left of the body, for the session to throw away; content that was lent and not
    /// consumed is used up.
    pub(super) fn leftover(&mut self, input: &mut Input) -> Option<&mut BodyDecoder> {
        let incoming = self.incoming.as_mut()?;
        incoming.consume(input, incoming.ready);
        Some(&mut incoming.decoder)
    }

    /// Puts what came behind the body where the session looks for it.
    pub(super) fn settle(&mut self, input: &mut Input) {
        if let Some(ahead) = self.ahead.take() {
            input.append(ahead);
        }
    }

    fn fail(&mut self, error: UploadError) -> UploadError {
        if let Some(incoming) = &mut self.incoming {
            incoming.error.get_or_insert(error);
        }
        error
    }
}

impl Incoming {
    fn is_ended(&self) -> bool {
        self.ready == 0 && self.decoder.is_ended()
    }

    fn remaining(&self) -> u64 {
        self.decoder.remaining_min() + self.ready as u64
    }

    /// Finds the next content among the received bytes; gives its length, 0 when there is none.
    fn advance(&mut self, input: &mut Input) -> Result<usize, UploadError> {
        while self.ready == 0 && !self.decoder.is_ended() && !input.bytes().is_empty() {
            if let Some(error) = self.error {
                return Err(error);
            }
            match self.decoder.decode(input.bytes()) {
                Ok(decoded) => {
                    input.consume(decoded.data.start);
                    self.ready = decoded.data.len();
                    self.coding = decoded.consumed - decoded.data.end;
                    if self.ready == 0 {
                        input.consume(std::mem::take(&mut self.coding));
                    }
                }
                Err(reject) => self.error = Some(UploadError::Malformed(reject)),
            }
        }
        match self.error {
            Some(error) if self.ready == 0 => Err(error),
            _ => Ok(self.ready),
        }
    }

    fn consume(&mut self, input: &mut Input, bytes: usize) {
        assert!(bytes <= self.ready, "cannot consume more than was lent");
        self.ready -= bytes;
        self.taken += bytes as u64;
        input.consume(bytes);
        if self.ready == 0 {
            input.consume(std::mem::take(&mut self.coding));
        }
    }

    /// Whether the client, which owes bytes, has time left; the task is woken when it has not.
    fn is_in_time(&mut self, core: &Core, rule: ProgressRule) -> bool {
        let now = core.now();
        let arrived = self.arrived;
        let progress = self
            .progress
            .get_or_insert_with(|| Progress::from(rule, now, arrived));
        if let Some(since) = self.lent_since.take() {
            progress.forgive(since, now);
        }
        while let Some(deadline) = progress.deadline() {
            self.timer.set(deadline);
            if self.timer.poll_expired().is_pending() {
                break;
            }
            if !progress.check(arrived, now) {
                return false;
            }
        }
        true
    }
}

/// A batch on its way out while a handler is at work.
struct Flushing {
    writable: Option<Once>,
    timer: Timer,
    progress: Progress,
}

impl Flushing {
    fn new(core: &Core, rule: ProgressRule) -> Self {
        Self {
            writable: None,
            timer: Timer::new(core),
            progress: Progress::new(rule, core.now()),
        }
    }

    fn poll(&mut self, core: &Core, out: &mut Out<'_>) -> Poll<Result<(), SendError>> {
        loop {
            if let Some(writable) = &mut self.writable {
                let mut context = Context::from_waker(Waker::noop());
                match Pin::new(writable).poll(&mut context) {
                    Poll::Ready(ready) => {
                        self.writable = None;
                        ready.result.map_err(SendError::Broken)?;
                    }
                    Poll::Pending if self.is_in_time(core, out.sender) => return Poll::Pending,
                    Poll::Pending => return Poll::Ready(Err(SendError::TooSlow)),
                }
            }
            let sent = out.sender.at_once(out.batch)?;
            out.batch.drain(..sent);
            if out.batch.is_empty() && !out.sender.holds() {
                return Poll::Ready(Ok(()));
            }
            self.writable = Some(out.sender.writable());
        }
    }

    fn is_in_time(&mut self, core: &Core, sender: &Sender) -> bool {
        while let Some(deadline) = self.progress.deadline() {
            self.timer.set(deadline);
            if self.timer.poll_expired().is_pending() {
                break;
            }
            if !self.progress.check(sender.acknowledged(), core.now()) {
                return false;
            }
        }
        true
    }
}
