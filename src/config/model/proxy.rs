//! How a route is answered by a backend.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{HeaderOp, StatusSet, Upstream};
use crate::http::router::Template;
use crate::http::types::FieldValue;

/// A route that backends answer.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// The servers. Routes that name the same ones share it.
    pub upstream: Arc<Upstream>,
    /// The value of Host.
    pub host: HostRule,
    /// The path that is asked for.
    pub path: PathRule,
    /// What is done to the fields of a request, in order, after those that the server itself takes
    /// away and adds. Never to those that frame a message, and never to Host. For the fields of
    /// responses there is [`super::Route::headers`].
    pub request_headers: Arc<[HeaderOp]>,
    /// How long things may take.
    pub timeouts: ProxyTimeouts,
    /// When a request is tried again.
    pub retries: Retries,
    /// Which bodies are read before they go on.
    pub buffer: Buffer,
    /// Whether a request may turn its connection into a tunnel (`Upgrade`, such as WebSocket).
    pub upgrade: bool,
    /// Whether a connection to a backend begins with a PROXY header. Such a connection is used for
    /// one client connection only.
    pub send_proxy_protocol: Option<ProxyProtocol>,
}

/// The value of Host in requests to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostRule {
    /// What the client sent.
    Keep,
    /// The address of the server as it is configured; `localhost` for a unix socket.
    Upstream,
    /// This.
    Set(FieldValue),
}

/// The path in requests to a backend.
#[derive(Clone, Debug)]
pub enum PathRule {
    /// The canonical path of the request, encoded again.
    Keep,
    /// Without this prefix, which begins with a slash and doesn't end with one. It ends at the end
    /// of a segment; a path without it stays as it is, and one that is nothing else becomes `/`.
    Strip(Arc<str>),
    /// This path, with the query that the template makes. It begins with a slash and has no fragment.
    Rewrite {
        /// The path, with placeholders.
        to: Template,
        /// Whether it is the site's own, for which `{path}` is the whole path without its first
        /// slash, whatever the pattern of the route that inherited it.
        of_site: bool,
    },
}

/// How long things may take between us and a backend. None of them counts while the client is the
/// one that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyTimeouts {
    /// Until a connection is made. Then the next server is tried, and at last: 504.
    pub connect: Duration,
    /// From the end of the request to the end of the head of the response. Then: 504. `None` waits.
    pub head: Option<Duration>,
    /// Between two reads of the body of a response. Then it is cut short. `None` waits.
    pub read: Option<Duration>,
    /// From the head of the request to the end of the response, retries included. Then: 504, or the
    /// response is cut short. `None` for no such bound.
    pub total: Option<Duration>,
    /// How long a tunnel stays open in which nothing moves in either direction. `None` for ever.
    pub tunnel: Option<Duration>,
}

/// When a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Most tries, the first one included: 1 to 10. 1 is no retry.
    pub tries: u32,
    /// How long after the first try another may begin.
    pub time: Duration,
    /// Statuses (400 to 599) of a response that is thrown away for another try.
    pub statuses: StatusSet,
    /// Whether requests are tried again that may have had an effect: those with methods that are not
    /// idempotent (RFC 9110 §9.2.2) after a byte of them was sent.
    pub non_idempotent: bool,
}

/// Which bodies are read before they go on. What is longer than its bound goes on as it comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffer {
    /// Bytes of a request body in memory; `None` streams.
    pub request: Option<u64>,
    /// Bytes of a response body in memory; `None` streams.
    pub response: Option<u64>,
    /// Where what exceeds the memory is written; `None` for nowhere.
    pub spill: Option<Spill>,
}

/// Where bodies are written that exceed the memory they may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spill {
    /// The directory, absolute. Files in it have no name.
    pub directory: PathBuf,
    /// Most bytes of one body there.
    pub size_max: u64,
    /// Most bytes of all bodies of one worker process, in whichever directories.
    pub total_max: u64,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// In text.
    V1,
    /// In binary.
    V2,
}

impl Default for ProxyTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            head: Some(Duration::from_secs(60)),
            read: Some(Duration::from_secs(60)),
            total: None,
            tunnel: Some(Duration::from_secs(3600)),
        }
    }
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            tries: 3,
            time: Duration::from_secs(10),
            statuses: StatusSet::default(),
            non_idempotent: false,
        }
    }
}

impl Proxy {
    /// A route that these servers answer, with the default of everything else.
    pub fn new(upstream: Arc<Upstream>) -> Self {
        Self {
            upstream,
            host: HostRule::Keep,
            path: PathRule::Keep,
            request_headers: Arc::new([]),
            timeouts: ProxyTimeouts::default(),
            retries: Retries::default(),
            buffer: Buffer::default(),
            upgrade: true,
            send_proxy_protocol: None,
        }
    }
}
