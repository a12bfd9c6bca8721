//! Backends: the servers of an upstream, how requests are spread over them, and when one is left out.
//!
//! All of it is what was asked for. What is so at the moment (who is up, how many requests are in
//! flight) is nowhere here: a reload compares these values to know which pools it may keep.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::http::types::{FieldName, Status, StatusSet};
use crate::net::tls::{PeerName, Terms, Trust};
use crate::runtime::address::Address;

/// A group of servers that answer the same requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The name of its table; for servers that a route names itself, their addresses. Unique in
    /// a model.
    pub name: Arc<str>,
    /// 1 to 1000 servers, at least one of them no backup, in the order of the file. No address twice.
    pub servers: Vec<UpstreamServer>,
    /// How requests are spread.
    pub balance: Balance,
    /// Connections that wait for their next request.
    pub keepalive: Keepalive,
    /// Requests that wait while every server has all the connections that it may.
    pub queue: Queue,
    /// When requests that fail put a server aside; `None` for never.
    pub passive: Option<Passive>,
    /// How servers are asked whether they are well; `None` for not at all.
    pub health: Option<HealthCheck>,
    /// When the whole upstream is left alone for a while; `None` for never.
    pub breaker: Option<Breaker>,
    /// Local addresses that servers are connected to from.
    pub source: Source,
    /// Over which time the share of a server grows after it has recovered. Zero gives it all at once.
    pub slow_start: Duration,
    /// How many tries may be repetitions.
    pub retry_budget: RetryBudget,
    /// How names are resolved.
    pub resolve: Resolve,
    /// What connections under TLS are made by. Some if a server is [`secured`](UpstreamServer::secured).
    pub tls: Option<UpstreamTls>,
}

/// What the connections to servers under TLS are made by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The name of all the servers, instead of each one's own.
    pub name: Option<PeerName>,
    /// Who is believed, who we are, and what is spoken.
    pub terms: Terms,
    /// The files that this was read from.
    pub files: UpstreamFiles,
}

/// The files of TLS to servers that a configuration names; absolute paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamFiles {
    /// Of the authorities, in PEM.
    pub trust: Option<PathBuf>,
    /// Of our own certificate and its key, in PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Local addresses to connect from, at most one of each family; where there is none, the kernel takes one
/// by its routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// For servers with an IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// For servers with an IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl Source {
    /// What to connect from to this address; a path has no such thing.
    pub fn towards(&self, address: &Address) -> Option<IpAddr> {
        match address {
            Address::Tcp(SocketAddr::V4(_)) => self.v4.map(IpAddr::V4),
            Address::Tcp(SocketAddr::V6(_)) => self.v6.map(IpAddr::V6),
            Address::Unix(_) => None,
        }
    }

    /// Both, as far as there are any.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.map(IpAddr::V4);
        v4.into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// One server of an upstream; a name that resolves to several addresses is several servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamServer {
    /// Where it is.
    pub address: ServerAddr,
    /// Its share of the requests, compared with the others': 1 to 1000.
    pub weight: NonZeroU32,
    /// Whether it is used only while no other server is.
    pub backup: bool,
    /// Most requests that are in flight to it, of all cores of a worker; `None` for no bound.
    pub max_conns: Option<NonZeroU32>,
    /// What the configuration says of it; the control socket may say another thing later.
    pub state: ServerState,
    /// Whether it is talked to under TLS.
    pub secured: bool,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServerAddr {
    /// An address.
    Ip(SocketAddr),
    /// A host name in lower case without a final dot, to be resolved, and a port.
    Name(Arc<str>, u16),
    /// A service name (`_http._tcp.example.com`) whose SRV records have hosts, ports and weights
    /// (RFC 2782).
    Service(Arc<str>),
    /// A unix stream socket at this absolute path.
    Unix(PathBuf),
}

impl ServerAddr {
    /// Whether it has to be resolved.
    pub fn is_name(&self) -> bool {
        matches!(self, Self::Name(..) | Self::Service(_))
    }

    /// What Host says where nothing else is to be said (RFC 9110 §7.2): the server as it is configured;
    /// `localhost` for a unix socket, and `address` for a service, which has no name of its own.
    pub fn authority(&self, address: &Address) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Service(_) => address.to_string(),
            Self::Ip(_) | Self::Name(..) => self.to_string(),
        }
    }
}

impl fmt::Display for ServerAddr {
    /// As `servers` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
            Self::Service(name) => write!(f, "srv:{name}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What is to be done with a server, whatever its health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    /// It takes requests.
    #[default]
    Up,
    /// It takes none but those of clients that are bound to it by a cookie.
    Drain,
    /// It takes none.
    Down,
}

impl ServerState {
    /// As the command line and the configuration have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Drain => "drain",
            Self::Down => "down",
        }
    }
}

/// How requests are spread over servers. Weights count in all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balance {
    /// By turns.
    Spread(Spread),
    /// By a key of the request: the same key, the same server, as long as it is there.
    Hash {
        /// The key. A request without it is spread at random.
        by: HashKey,
        /// Most load of a server in percent of the average, 101 to 1000: what is beyond it goes to
        /// the next one. `None` for no bound.
        load_max: Option<u16>,
    },
    /// By a signed cookie, which names the server that answered first.
    Sticky(Sticky),
}

/// How requests are spread that nothing binds to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Smooth weighted round robin.
    RoundRobin,
    /// The server with the least requests in flight.
    LeastConnections,
    /// Of two servers taken at random, the one that answers sooner (peak EWMA of its latency).
    PowerOfTwo,
    /// At random.
    Random,
}

/// What a consistent hash is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The address of the client.
    Client,
    /// The path, without the query.
    Path,
    /// The first field of this name.
    Header(FieldName),
    /// The cookie of this name.
    Cookie(Arc<str>),
}

/// A cookie that binds a client to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sticky {
    /// Its name, a token.
    pub cookie: Arc<str>,
    /// What it is signed with.
    pub secret: Secret,
    /// How long browsers keep it, in whole seconds; `None` until they are closed.
    pub max_age: Option<Duration>,
    /// Whether browsers send it over TLS only.
    pub secure: bool,
    /// How clients without one are spread.
    pub otherwise: Spread,
}

/// Bytes that are shown to nobody; at least 16, unless files were not checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// A secret of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The bytes. Compare what is made of them in constant time.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    /// Nothing of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Connections that wait for their next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Most idle connections to one server, in each core: 0 to 10 000. 0 closes each after its answer.
    pub idle: usize,
    /// Most idle connections to all servers of the upstream, in each core: 0 to 100 000.
    pub total: usize,
    /// How long one waits.
    pub timeout: Duration,
}

/// Requests that wait while every server has all the connections that it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Most of them, of all cores of a worker: 0 to 100 000. Beyond it: 503.
    pub size: usize,
    /// How long one waits. Then: 503.
    pub timeout: Duration,
}

/// When requests that fail put a server aside. A failure is a connection that isn't made, one that
/// ends before the answer does, a timeout, or one of `statuses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passive {
    /// That many failures one after the other: 1 to 1000. `None` for not by their number.
    pub failures: Option<NonZeroU32>,
    /// That share of failures in percent, 1 to 100, over `window`. `None` for not by their share.
    pub error_rate: Option<u8>,
    /// Least requests in the window for the share to count, 1 to 1 000 000.
    pub min_requests: u32,
    /// The time over which the share is taken.
    pub window: Duration,
    /// How long a server is left out the first time; each time in a row it doubles.
    pub eject: Duration,
    /// The longest it grows to. At least `eject`.
    pub eject_max: Duration,
    /// Most servers that are left out at the same time, in percent, 0 to 100; at least one stays.
    pub share_max: u8,
    /// Statuses that count as failures.
    pub statuses: StatusSet,
}

/// How servers are asked whether they are well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// The time between two probes of one server, a little jittered.
    pub interval: Duration,
    /// How long a probe may take. At most `interval`.
    pub timeout: Duration,
    /// Good probes in a row that bring a server back, 1 to 100.
    pub rise: u32,
    /// Bad probes in a row that take it out, 1 to 100.
    pub fall: u32,
    /// Whether servers under TLS are asked under TLS, and not only for a connection.
    pub tls: bool,
}

/// What is asked of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Whether it takes a connection.
    Tcp,
    /// How it answers GET.
    Http {
        /// The target, in origin form: printable ASCII that begins with a slash.
        path: Arc<str>,
        /// The value of Host; `None` is the address of the server.
        host: Option<Arc<str>>,
        /// Good statuses.
        statuses: StatusSet,
        /// What the first 64 KiB of the body hold; `None` for whatever.
        body: Option<Arc<[u8]>>,
    },
}

/// When a whole upstream is left alone: its requests are answered 503 at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// The share of failures in percent, 1 to 100, over `window`.
    pub error_rate: u8,
    /// Least requests in the window for it to count, 1 to 1 000 000.
    pub min_requests: u32,
    /// The time over which the share is taken.
    pub window: Duration,
    /// How long it stays open before it lets requests through to see.
    pub open: Duration,
    /// How many of these have to succeed for it to close: 1 to 1000.
    pub probes: u32,
}

/// How many tries may be repetitions: a share of the requests, and a number for quiet times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// In percent of the requests, 0 to 100.
    pub share: u8,
    /// Besides these, so many in each second, of all cores of a worker: 0 to 10 000.
    pub per_second: u32,
}

/// How names are resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Resolve {
    /// The time after which a name is resolved again. SRV records may ask for less by their TTL.
    pub interval: Duration,
    /// How long a resolution may take before it counts as failed. The last good answer stays.
    pub timeout: Duration,
    /// Which addresses are used.
    pub family: Family,
}

/// Which addresses of a name are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// All.
    Any,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            idle: 512,
            total: 1024,
            timeout: Duration::from_secs(60),
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            size: 128,
            timeout: Duration::from_secs(5),
        }
    }
}

impl Default for Passive {
    fn default() -> Self {
        Self {
            failures: NonZeroU32::new(5),
            error_rate: Some(50),
            min_requests: 20,
            window: Duration::from_secs(10),
            eject: Duration::from_secs(10),
            eject_max: Duration::from_secs(300),
            share_max: 50,
            statuses: StatusSet::new([(Status(502), Status(504))]),
        }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            error_rate: 50,
            min_requests: 20,
            window: Duration::from_secs(10),
            open: Duration::from_secs(5),
            probes: 3,
        }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            share: 20,
            per_second: 10,
        }
    }
}

impl Default for Resolve {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            family: Family::Any,
        }
    }
}

impl Upstream {
    /// An upstream of these servers, with the default of everything else.
    pub fn new(name: impl Into<Arc<str>>, servers: Vec<UpstreamServer>) -> Self {
        Self {
            name: name.into(),
            servers,
            balance: Balance::Spread(Spread::RoundRobin),
            keepalive: Keepalive::default(),
            queue: Queue::default(),
            passive: Some(Passive::default()),
            health: None,
            breaker: None,
            source: Source::default(),
            slow_start: Duration::ZERO,
            retry_budget: RetryBudget::default(),
            resolve: Resolve::default(),
            tls: None,
        }
    }

    /// Whether nobody verifies who answers for its servers.
    pub fn is_insecure(&self) -> bool {
        let trust = self.tls.as_ref().map(|tls| &tls.terms.trust);
        trust == Some(&Trust::Anybody)
    }

    /// The name that a server, by its place, has to have a certificate for; `None` of one that isn't
    /// under TLS. What has no name of its own is checked to be given one.
    pub fn peer_name(&self, server: usize) -> Option<PeerName> {
        let tls = self.tls.as_ref()?;
        let server = self.servers.get(server).filter(|server| server.secured)?;
        match (&tls.name, &server.address) {
            (Some(name), _) => Some(name.clone()),
            (None, ServerAddr::Ip(address)) => Some(PeerName::from(address.ip())),
            (None, ServerAddr::Name(host, _)) => PeerName::parse(host),
            (None, ServerAddr::Service(_) | ServerAddr::Unix(_)) => None,
        }
    }
}

impl UpstreamServer {
    /// A server at this address, with the default of everything else.
    pub fn new(address: ServerAddr) -> Self {
        Self {
            address,
            weight: NonZeroU32::MIN,
            backup: false,
            max_conns: None,
            state: ServerState::Up,
            secured: false,
        }
    }

    /// What Host says where nothing else is to be said: see [`ServerAddr::authority`]. The port of https
    /// is left out (RFC 9110 §4.2.3).
    pub fn authority(&self, address: &Address) -> String {
        let authority = self.address.authority(address);
        match authority.strip_suffix(":443") {
            Some(host) if self.secured => host.to_owned(),
            _ => authority,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let shown = format!("{:?}", Secret::new(b"hunter2"));
        assert!(!shown.contains("hunter2") && !shown.contains("104"));
    }
}
