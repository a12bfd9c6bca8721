//! The rest of a large request body on its way to another socket without a copy, for who passes it on.
//!
//! The upload is lent at each poll and not in between, so this is a state, not a future. It knows of the
//! sink no more than its socket.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{Upload, UploadError};
use crate::http::types::Framing;
use crate::net::recv::End;
use crate::net::splice::{Cause, Moved, UploadRules, relay_upload};
use crate::runtime::fd::Fd;

/// Why a body did not reach the sink whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadRelayError {
    /// The client's side: the upload has the same error from now on.
    Source(UploadError),
    /// The sink's side. The client is not to blame: what is left of the body can still be read, and the
    /// sink may have said why it takes no more.
    Sink(Cause),
}

impl fmt::Display for UploadRelayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(error) => error.fmt(f),
            Self::Sink(cause) => cause.fmt(f),
        }
    }
}

impl std::error::Error for UploadRelayError {}

/// Moves what is left of a body with a Content-Length from the client's socket to another one.
///
/// While it lives nothing else takes from the upload; it may end at any time by being dropped. The upload
/// then stands behind the bytes that were taken, and the sink has got [`Self::given`] of them.
pub struct UploadRelay {
    to: Fd,
    stall: Option<Duration>,
    stage: Stage,
    moved: Rc<Moved>,
    /// Bytes taken that the upload was told of.
    told: u64,
}

enum Stage {
    /// A receive is armed on the client's socket, and may bring bytes yet.
    Stopping,
    Moving(Pin<Box<dyn Future<Output = Result<(), Cause>>>>),
    Ended(Result<(), UploadRelayError>),
}

impl UploadRelay {
    /// For the rest of this body to this socket; `None` where that doesn't pay or can't be: more than
    /// [`splice_from`](crate::runtime::tuning::Tuning::splice_from) must be to come, of known length, and not held back by the client. What was received
    /// already may be taken before, and should be where it is to be kept for another try.
    /// `stall`: longest time that the sink may take nothing; `None`: for ever.
    pub fn new(upload: &Upload<'_>, to: &Fd, stall: Option<Duration>) -> Option<Self> {
        let received = upload.input.as_ref().map_or(0, |input| input.bytes().len());
        let ahead = upload.remaining().saturating_sub(received as u64);
        let pays = matches!(upload.framing(), Framing::Length(_))
            && ahead > upload.core.tuning().splice_from
            && !upload.expects_continue()
            && !upload.receiver.is_secured()
            && upload.state.error().is_none();
        pays.then(|| Self {
            to: to.clone(),
            stall,
            stage: Stage::Stopping,
            moved: Rc::default(),
            told: 0,
        })
    }

    /// Goes on, with the upload it was made for; ready when all of the body was given to the sink's
    /// kernel, or never will be. It repeats. Nothing of the time that the sink takes counts against the
    /// client.
    ///
    /// # Errors
    /// See [`UploadRelayError`].
    pub fn poll(&mut self, upload: &mut Upload<'_>) -> Poll<Result<(), UploadRelayError>> {
        if let Stage::Ended(ended) = self.stage {
            return Poll::Ready(ended);
        }
        // Responses to requests before this one go out meanwhile.
        if let Poll::Ready(Err(error)) = upload.poll_flush() {
            return self.end(Err(UploadRelayError::Source(error)));
        }
        if let Stage::Stopping = self.stage {
            if upload.poll_stop().is_pending() {
                return Poll::Pending;
            }
            if let Err(error) = self.begin(upload) {
                return self.end(Err(UploadRelayError::Source(error)));
            }
        }
        let Stage::Moving(moving) = &mut self.stage else {
            return self.end(Ok(()));
        };
        let polled = moving
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        // At once: whoever drops this finds the upload where the client's stream stands.
        let taken = self.moved.taken();
        upload.took(taken - self.told);
        self.told = taken;
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => self.end(Ok(())),
            Poll::Ready(Err(cause)) => {
                let error = match upload_error(cause) {
                    Some(error) => UploadRelayError::Source(upload.state.fail(error)),
                    None => UploadRelayError::Sink(cause),
                };
                self.end(Err(error))
            }
        }
    }

    /// Bytes of content that the sink's kernel has taken.
    pub fn given(&self) -> u64 {
        self.moved.given()
    }

    /// Begins with what was received; the receive has ended.
    fn begin(&mut self, upload: &mut Upload<'_>) -> Result<(), UploadError> {
        let mut early = Vec::new();
        while upload.has_received() {
            let Poll::Ready(Some(chunk)) = upload.poll_chunk() else {
                break;
            };
            let chunk = chunk?;
            early.extend_from_slice(chunk);
            let bytes = chunk.len();
            upload.consume(bytes);
        }
        // A request behind this one: it will wait as long as this takes.
        if let Some(input) = &mut upload.input {
            input.detach();
        }
        let left = upload.remaining();
        if left > 0
            && let Some(end) = upload.receiver.end()
        {
            return Err(upload.state.fail(UploadError::Gone(end)));
        }
        self.told = early.len() as u64;
        upload.took(0);
        let rules = UploadRules {
            source: upload.state.rule,
            sink_stall: self.stall,
        };
        let core = upload.core.clone();
        let from = upload.receiver.socket().clone();
        let (to, moved) = (self.to.clone(), Rc::clone(&self.moved));
        self.stage = Stage::Moving(Box::pin(async move {
            relay_upload(&core, (&from, &to), (early, left), &rules, &moved).await
        }));
        Ok(())
    }

    fn end(&mut self, ended: Result<(), UploadRelayError>) -> Poll<Result<(), UploadRelayError>> {
        self.stage = Stage::Ended(ended);
        Poll::Ready(ended)
    }
}

/// What it means to the upload, where it is of its side.
fn upload_error(cause: Cause) -> Option<UploadError> {
    match cause {
        Cause::SourceClosed => Some(UploadError::Gone(End::Closed)),
        Cause::SourceBroken(errno) => Some(UploadError::Gone(End::Broken(errno))),
        Cause::SourceSilent | Cause::SourceTooSlow => Some(UploadError::TooSlow),
        Cause::SinkBroken(_) | Cause::SinkTooSlow | Cause::SinkStalled => None,
    }
}

impl Upload<'_> {
    /// Ends the receive on the client's socket; what it had brought is in the input then.
    fn poll_stop(&mut self) -> Poll<()> {
        let (Some(incoming), Some(input)) = (&mut self.state.incoming, &mut self.input) else {
            return Poll::Ready(());
        };
        self.receiver.poll_stop(|next| {
            incoming.arrived += next.len() as u64;
            input.append(next);
        })
    }

    /// Whether content was received that isn't consumed yet.
    fn has_received(&self) -> bool {
        let waiting = self.input.as_ref().is_some_and(|i| !i.bytes().is_empty());
        waiting && !self.state.is_ended()
    }
}
