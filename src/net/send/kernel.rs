//! Sending where the kernel encrypts: as without TLS, but for the end, and for keys that are used up.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;

use super::{SendError, Sender, noop};
use crate::net::splice::{self, Cause, Moved, RelayRules};
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::task::Pooled;

impl Sender {
    /// As [`Self::relay`].
    pub(super) fn kernel_relay<'a>(
        &'a mut self,
        timer: &'a mut Timer,
        (from, length): (&'a Fd, u64),
        silence: Option<Duration>,
        moved: &'a Moved,
    ) -> Pooled<'a, Result<(), Cause>> {
        let pool = self.core.futures().clone();
        pool.boxed(|| async move {
            let rules = RelayRules {
                source_silence: silence,
                sink: self.rule.into(),
            };
            let before = self.taken;
            let secured = self.secured.clone();
            let is_used_up = |taken| {
                secured
                    .as_ref()
                    .is_some_and(|secured| secured.is_used_up(taken))
            };
            let relayed = {
                let ends = (from, &self.socket);
                let relay = splice::relay(&self.core, timer, ends, Some(length), &rules, moved);
                let mut relay = pin!(relay);
                // What it moves at a poll is bounded by its share of a turn.
                poll_fn(|context| match relay.as_mut().poll(context) {
                    Poll::Ready(relayed) => {
                        Poll::Ready(relayed.map(drop).map_err(|error| error.cause))
                    }
                    Poll::Pending if is_used_up(before + moved.given()) => {
                        Poll::Ready(Err(Cause::SinkBroken(Errno::PROTO)))
                    }
                    Poll::Pending => Poll::Pending,
                })
                .await
            };
            self.taken = before + moved.given();
            relayed
        })
    }

    /// Tells the client that nothing follows. What the kernel has encrypted and not yet found room for waits
    /// outside of the socket's queue: it goes there with the alert, and with the close, as far as there is
    /// room. So there is room before each.
    pub(super) fn kernel_finish<'a>(
        &'a mut self,
        timer: &'a mut Timer,
    ) -> Pooled<'a, Result<(), SendError>> {
        let pool = self.core.futures().clone();
        pool.boxed(|| async move {
            let mut progress = None;
            loop {
                let mut ready = self.writable();
                let mut poll = || Pin::new(&mut ready).poll(&mut noop());
                let done = self.patiently(timer, &mut progress, &mut poll).await?;
                done.result.map_err(SendError::Broken)?;
                let Some(secured) = &self.secured else {
                    return Ok(());
                };
                match secured.send_alert() {
                    Ok(()) => break,
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(errno) => return Err(SendError::Broken(errno)),
                }
            }
            let mut ready = self.writable();
            let mut poll = || Pin::new(&mut ready).poll(&mut noop());
            let done = self.patiently(timer, &mut progress, &mut poll).await?;
            done.result.map(drop).map_err(SendError::Broken)
        })
    }
}
