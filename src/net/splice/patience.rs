//! How a relay waits for its two ends, and for how long: which of them is to blame when nothing moves.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::{Cause, Mover, RelayRules, UploadRules};
use crate::net::send::Progress;
use crate::runtime::future::{Once, Timer};
use crate::runtime::op::Interest;

/// How a relay waits for one of its ends. A trait, so that a tunnel at rest has no room for the timers
/// of others.
pub(super) trait Waits {
    async fn wait(&mut self, mover: &Mover<'_>, interest: Interest) -> Result<(), Cause>;
}

/// For ever: the tunnel has a timer for both directions.
pub(super) struct Endlessly;

impl Waits for Endlessly {
    async fn wait(&mut self, mover: &Mover<'_>, interest: Interest) -> Result<(), Cause> {
        let mut ready = mover.ready(interest);
        poll_fn(|_| poll_ready(&mut ready, interest)).await
    }
}

/// For a source with a bound on its silence, and a sink that has to make progress: a response.
pub(super) struct Patience<'a> {
    timer: &'a mut Timer,
    rules: &'a RelayRules,
    progress: Option<Progress>,
}

impl Waits for Patience<'_> {
    async fn wait(&mut self, mover: &Mover<'_>, interest: Interest) -> Result<(), Cause> {
        let mut ready = mover.ready(interest);
        match interest {
            Interest::Readable => self.wait_for_source(mover, &mut ready).await,
            Interest::Writable => self.wait_for_sink(mover, &mut ready).await,
        }
    }
}

impl<'a> Patience<'a> {
    pub(super) fn new(timer: &'a mut Timer, rules: &'a RelayRules) -> Self {
        Self {
            timer,
            rules,
            progress: None,
        }
    }

    async fn wait_for_source(&mut self, mover: &Mover<'_>, ready: &mut Once) -> Result<(), Cause> {
        let begun = mover.core.now();
        let mut poll = || poll_ready(ready, Interest::Readable);
        let ended = match self.rules.source_silence {
            None => Some(poll_fn(|_| poll()).await),
            Some(silence) => {
                // From the last byte on, so that empty wake-ups prolong nothing.
                self.timer.set(mover.active.get() + silence);
                self.timer.bound(&mut poll).await
            }
        };
        if let Some(progress) = self.progress.as_mut() {
            // The sink isn't to blame for this time.
            progress.forgive(begun, mover.core.now());
        }
        ended.unwrap_or(Err(Cause::SourceSilent))
    }

    async fn wait_for_sink(&mut self, mover: &Mover<'_>, ready: &mut Once) -> Result<(), Cause> {
        let mut poll = || poll_ready(ready, Interest::Writable);
        loop {
            let now = mover.core.now();
            let rule = self.rules.sink;
            let progress = (self.progress).get_or_insert_with(|| Progress::new(rule, now));
            let Some(deadline) = progress.deadline() else {
                return poll_fn(|_| poll()).await;
            };
            self.timer.set(deadline);
            if let Some(ended) = self.timer.bound(&mut poll).await {
                return ended;
            }
            if !progress.check(mover.acknowledged(), mover.core.now()) {
                return Err(Cause::SinkTooSlow);
            }
        }
    }
}

/// For a source that has to make progress, and a sink with a bound on its stalls: a request.
pub(super) struct PatientWithSink<'a> {
    timer: &'a mut Timer,
    rules: &'a UploadRules,
    progress: Option<Progress>,
    /// Since when it is not the source that is waited for.
    free_since: Instant,
}

impl Waits for PatientWithSink<'_> {
    async fn wait(&mut self, mover: &Mover<'_>, interest: Interest) -> Result<(), Cause> {
        let mut ready = mover.ready(interest);
        match interest {
            Interest::Readable => {
                let waited = self.wait_for_source(mover, &mut ready).await;
                self.free_since = mover.core.now();
                waited
            }
            Interest::Writable => self.wait_for_sink(mover, &mut ready).await,
        }
    }
}

impl<'a> PatientWithSink<'a> {
    pub(super) fn new(timer: &'a mut Timer, rules: &'a UploadRules, now: Instant) -> Self {
        Self {
            timer,
            rules,
            progress: None,
            free_since: now,
        }
    }

    async fn wait_for_source(&mut self, mover: &Mover<'_>, ready: &mut Once) -> Result<(), Cause> {
        let mut poll = || poll_ready(ready, Interest::Readable);
        let (now, rule, taken) = (mover.core.now(), self.rules.source, mover.moved.taken());
        match &mut self.progress {
            Some(progress) => progress.forgive(self.free_since, now),
            None => self.progress = Some(Progress::from(rule, now, taken)),
        }
        loop {
            let deadline = self.progress.as_ref().and_then(Progress::deadline);
            let Some(deadline) = deadline else {
                return poll_fn(|_| poll()).await;
            };
            self.timer.set(deadline);
            if let Some(ended) = self.timer.bound(&mut poll).await {
                return ended;
            }
            let now = mover.core.now();
            let progress = self.progress.as_mut();
            if progress.is_some_and(|progress| !progress.check(taken, now)) {
                return Err(Cause::SourceTooSlow);
            }
        }
    }

    async fn wait_for_sink(&mut self, mover: &Mover<'_>, ready: &mut Once) -> Result<(), Cause> {
        let mut poll = || poll_ready(ready, Interest::Writable);
        let Some(stall) = self.rules.sink_stall else {
            return poll_fn(|_| poll()).await;
        };
        // A sink whose buffer is large is not writable again for long, and takes bytes all the same.
        let mut acknowledged = mover.acknowledged();
        let mut since = mover.core.now();
        loop {
            self.timer.set(since + stall);
            if let Some(ended) = self.timer.bound(&mut poll).await {
                return ended;
            }
            let before = std::mem::replace(&mut acknowledged, mover.acknowledged());
            if acknowledged <= before {
                return Err(Cause::SinkStalled);
            }
            since = mover.core.now();
        }
    }
}

fn poll_ready(ready: &mut Once, interest: Interest) -> Poll<Result<(), Cause>> {
    let mut context = Context::from_waker(Waker::noop());
    let polled = Pin::new(ready).poll(&mut context);
    polled.map(|completion| match (completion.result, interest) {
        (Ok(_), _) => Ok(()),
        (Err(errno), Interest::Readable) => Err(Cause::SourceBroken(errno)),
        (Err(errno), Interest::Writable) => Err(Cause::SinkBroken(errno)),
    })
}
