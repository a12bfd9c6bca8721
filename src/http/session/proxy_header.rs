//! The PROXY header before the first request, on a listening socket whose peers send one.
//!
//! A phase of its own, in a block of the core's pool: an idle connection pays nothing for it. A
//! connection that doesn't begin as it has to is closed without a byte, and never read as HTTP: the
//! other end is no client that would understand an answer, or one that wants to be taken for another.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use super::registry::Registration;
use super::{After, Connection, Epoch, Service};
use crate::net::proxy_protocol::{self, Origin};
use crate::net::recv::End;
use crate::runtime::buf::RecvBuf;
use crate::runtime::task::Pooled;
use crate::util::network::Peers;

/// Names of what such connections are closed over, for the counters.
const UNLISTED: &str = "peers that may send a PROXY header";
const BROKEN: &str = "a whole and valid PROXY header";
const SLOW: &str = "time to a PROXY header";

impl<S: Service> Connection<S> {
    /// What comes before the first request, a PROXY header and a TLS handshake, and then the requests
    /// that came with it; `None` where neither is to come.
    pub(super) fn introduction<'c>(
        &'c mut self,
        registration: &'c Registration,
    ) -> Option<Pooled<'c, After<S::Epoch>>> {
        let from = self.service.proxy_header(&self.peer);
        let is_secured = self.service.is_secured(&self.peer);
        if from.is_none() && !is_secured {
            return None;
        }
        let pool = self.core.futures().clone();
        Some(pool.boxed(|| self.introduced(from, is_secured, registration)))
    }

    async fn introduced(
        &mut self,
        from: Option<Arc<Peers>>,
        is_secured: bool,
        registration: &Registration,
    ) -> After<S::Epoch> {
        let pool = self.core.futures().clone();
        let mut rest = None;
        if let Some(from) = from {
            match pool.boxed(|| self.proxied(from, registration)).await {
                Some(behind) => rest = Some(behind),
                None => return After::Close,
            }
        }
        if is_secured {
            match pool.boxed(|| self.handshake(rest, registration)).await {
                Ok(behind) => rest = behind,
                Err(after) => return after,
            }
        }
        match rest {
            Some(rest) if !rest.is_empty() => {
                registration.busy();
                pool.boxed(|| self.exchange(rest)).await
            }
            _ => After::Keep,
        }
    }

    /// Reads a PROXY header, and gives what came behind it; `None` when the connection is to be closed.
    async fn proxied(&mut self, from: Arc<Peers>, registration: &Registration) -> Option<RecvBuf> {
        if !self.peer.is_among(&self.core, &from) {
            self.unintroduced(UNLISTED, "the peer is not listed");
            return None;
        }
        let (origin, rest) = self.header_before_requests(registration).await?;
        if let Origin::Tcp { source, .. } = origin {
            self.peer
                .told(SocketAddr::new(source.ip().to_canonical(), source.port()));
        }
        Some(rest)
    }

    /// The header, and what came behind it in the same bytes. `None` when the connection is to be
    /// closed. What is gathered is shorter than the longest header: the parser refuses more.
    async fn header_before_requests(
        &mut self,
        registration: &Registration,
    ) -> Option<(Origin, RecvBuf)> {
        let patience = self.service.epoch(&self.peer).settings().header_timeout;
        let now = self.core.now();
        registration.idle(now, false);
        self.timer.set(now + patience);
        let mut gathered = Vec::new();
        loop {
            let receiver = &mut self.receiver;
            let next = || match receiver.poll_next() {
                Poll::Pending if registration.must_close() => Poll::Ready(None),
                next => next.map(Some),
            };
            let mut came = match self.timer.bound(next).await {
                Some(Some(Ok(came))) => came,
                // Who connects and leaves, such as a probe, has broken no rule.
                Some(Some(Err(End::Closed))) if !gathered.is_empty() => {
                    self.unintroduced(BROKEN, "it ends within the header");
                    return None;
                }
                Some(_) => return None,
                None => {
                    self.unintroduced(SLOW, "the header is not whole in time");
                    return None;
                }
            };
            let before = gathered.len();
            gathered.extend_from_slice(&came);
            match proxy_protocol::parse(&gathered) {
                Ok(Some(header)) => {
                    came.advance(header.length.saturating_sub(before));
                    return Some((header.origin, came));
                }
                Ok(None) => {}
                Err(error) => {
                    self.unintroduced(BROKEN, error.reason());
                    return None;
                }
            }
        }
    }

    fn unintroduced(&self, limit: &'static str, reason: &'static str) {
        self.limit(limit);
        let peer = self.peer.socket_address(&self.core);
        tracing::debug!(?peer, reason, "connection without a PROXY header closed");
    }
}
