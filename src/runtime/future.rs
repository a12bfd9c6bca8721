//! Futures over slots: one completion, or many.
//!
//! Dropping one before its terminal completion orphans the slot: the engine is asked to cancel, and
//! the slot keeps buffer and descriptor until the completion, whose resources it reaps.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use rustix::io::Errno;

use super::executor::Core;
use super::op::{Completion, Output};
use super::slot::SlotKey;
use super::timer::TimerKey;
use crate::util::clock::Since;

/// An op in flight that its holder may take results from.
struct Ticket {
    core: Core,
    /// `None` after the terminal completion was taken, or when the slot table was full.
    key: Option<SlotKey>,
}

impl Ticket {
    fn poll(&mut self) -> Poll<Completion> {
        let Some(key) = self.key else {
            return Poll::Ready(refused());
        };
        match self.core.take_completion(key) {
            Some(completion) => {
                if !completion.more {
                    self.key = None;
                }
                Poll::Ready(completion)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.core.orphan(key);
        }
    }
}

/// What an op completes with that found no slot, and what follows a terminal completion.
fn refused() -> Completion {
    Completion {
        result: Err(Errno::AGAIN),
        more: false,
        output: Output::None,
    }
}

/// An op with one completion.
pub struct Once(Ticket);

impl Once {
    pub(crate) fn new(core: Core, key: Option<SlotKey>) -> Self {
        Self(Ticket { core, key })
    }
}

impl Future for Once {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Completion> {
        self.0.poll()
    }
}

/// An op with many completions, of which the one without `more` is the last.
pub struct Many(Ticket);

impl Many {
    pub(crate) fn new(core: Core, key: Option<SlotKey>) -> Self {
        Self(Ticket { core, key })
    }

    /// Whether the terminal completion was taken.
    pub fn ended(&self) -> bool {
        self.0.key.is_none()
    }

    /// The next completion. After the terminal one: `EAGAIN` without `more`.
    pub fn poll_next(&mut self) -> Poll<Completion> {
        self.0.poll()
    }

    /// The next completion, as [`Self::poll_next`].
    pub async fn next(&mut self) -> Completion {
        std::future::poll_fn(|_| self.poll_next()).await
    }

    /// Asks the engine to end the op. Completions go on until the terminal one.
    pub fn cancel(&self) {
        if let Some(key) = self.0.key {
            self.0.core.cancel(key);
        }
    }
}

/// A deadline that is cheap to move: the wheel is touched only when the deadline comes nearer, or
/// when the old one has passed.
pub struct Timer {
    core: Core,
    deadline: Option<Instant>,
    /// The entry in the wheel and when it fires, at or before the deadline.
    armed: Option<(TimerKey, Since)>,
}

const _: () = assert!(size_of::<Timer>() <= 40, "every connection has one");

impl Timer {
    /// A timer without a deadline.
    pub fn new(core: &Core) -> Self {
        Self {
            core: core.clone(),
            deadline: None,
            armed: None,
        }
    }

    /// Moves the deadline.
    pub fn set(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// The deadline.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Ready when the deadline has passed; otherwise the current task is woken at it.
    pub fn poll_expired(&mut self) -> Poll<()> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        let now = self.core.now();
        if now >= deadline {
            return Poll::Ready(());
        }
        let at = self.core.since_start(deadline);
        if let Some((key, fires)) = self.armed {
            if fires > self.core.since_start(now) && fires <= at {
                return Poll::Pending;
            }
            self.core.disarm(key);
        }
        self.armed = Some((self.core.arm(deadline), at));
        Poll::Pending
    }

    /// Waits for the deadline.
    pub async fn expired(&mut self) {
        std::future::poll_fn(|_| self.poll_expired()).await;
    }

    /// Polls `work` until it is ready or the deadline has passed; `None` then.
    pub async fn bound<T>(&mut self, mut work: impl FnMut() -> Poll<T>) -> Option<T> {
        std::future::poll_fn(|_| {
            if let Poll::Ready(done) = work() {
                return Poll::Ready(Some(done));
            }
            self.poll_expired().map(|()| None)
        })
        .await
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some((key, _)) = self.armed {
            self.core.disarm(key);
        }
    }
}
