//! What the access log is told of an exchange, and what has to be kept of a request for that.

use std::net::IpAddr;
use std::time::Instant;

use crate::http::types::{Request, Version};
pub use crate::observability::access_log::Upstreamed;

/// What the access log is told of an exchange that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'e> {
    /// The method, `-` where none could be read.
    pub method: &'e str,
    /// The request target as it came.
    pub target: &'e str,
    /// The version of the request.
    pub version: Option<Version>,
    /// The Host that was asked for.
    pub host: &'e str,
    /// Referer and User-Agent, as they came.
    pub referer: Option<&'e [u8]>,
    /// User-Agent.
    pub user_agent: Option<&'e [u8]>,
    /// The status that was sent.
    pub status: u16,
    /// Bytes of content that were sent; of a tunnel, all bytes.
    pub body_bytes: u64,
    /// Bytes of the request's content that the handler took; of a tunnel, all bytes.
    pub received: u64,
    /// When the head was whole.
    pub started: Instant,
    /// The client's address where the handler believes somebody about it
    /// ([`Upload::note_client`](super::Upload::note_client)); else it is the peer's.
    pub client: Option<IpAddr>,
    /// The rule or limit that was broken, where one was.
    pub reason: Option<&'static str>,
    /// What the handler noted of a backend: [`Upload::note`](super::Upload::note).
    pub upstream: Option<&'e Upstreamed>,
}

impl<'e> Exchange<'e> {
    /// A request that is answered at once, without anything in either body.
    pub(super) fn of(request: &'e Request<'_>, status: u16, started: Instant) -> Self {
        Self {
            method: request.method.as_str(),
            target: request.target,
            version: Some(request.version),
            host: &request.host,
            referer: request.fields.get("referer"),
            user_agent: request.fields.get("user-agent"),
            status,
            body_bytes: 0,
            received: 0,
            started,
            client: None,
            reason: None,
            upstream: None,
        }
    }
}

/// What an access log line needs of a request that has gone.
pub(super) struct PendingLog {
    method: String,
    target: String,
    version: Version,
    host: String,
    referer: Option<Vec<u8>>,
    user_agent: Option<Vec<u8>>,
    status: u16,
    started: Instant,
    /// What was noted of the client.
    pub(super) client: Option<IpAddr>,
    /// What was noted of a backend.
    pub(super) upstream: Option<Box<Upstreamed>>,
}

impl PendingLog {
    pub(super) fn of(request: &Request<'_>, status: u16, started: Instant) -> Box<Self> {
        Box::new(Self {
            method: request.method.as_str().to_owned(),
            target: request.target.to_owned(),
            version: request.version,
            host: request.host.clone().into_owned(),
            referer: request.fields.get("referer").map(<[u8]>::to_vec),
            user_agent: request.fields.get("user-agent").map(<[u8]>::to_vec),
            status,
            started,
            client: None,
            upstream: None,
        })
    }

    pub(super) fn exchange(
        &self,
        sent: u64,
        received: u64,
        reason: Option<&'static str>,
    ) -> Exchange<'_> {
        Exchange {
            method: &self.method,
            target: &self.target,
            version: Some(self.version),
            host: &self.host,
            referer: self.referer.as_deref(),
            user_agent: self.user_agent.as_deref(),
            status: self.status,
            body_bytes: sent,
            received,
            started: self.started,
            client: self.client,
            reason,
            upstream: self.upstream.as_deref(),
        }
    }
}
