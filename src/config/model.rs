//! The configuration as the cores see it: checked, immutable, shared as `Arc<Model>`.
//!
//! Everything here is ready to use per request: names are tokens, field values are valid, durations
//! and sizes are numbers, paths are absolute, inheritance is already applied. Nothing in this module
//! knows how a configuration is written; `lower` builds it, a reload builds another one.

mod proxy;
mod tls;
mod upstream;

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::http::router::{HostMap, Router, Template, When};
use crate::http::semantics::negotiate::Coding;
use crate::http::types::{FieldName, FieldValue, Method, Status};

pub use crate::http::types::StatusSet;
pub use crate::runtime::direct::admission::DirectMode;
pub use crate::runtime::tuning::ZeroCopy;
pub use crate::util::network::{Network, NetworkError, Peers};
pub use proxy::{Buffer, HostRule, PathRule, Proxy, ProxyProtocol, ProxyTimeouts, Retries, Spill};
pub use tls::{
    Certificate, CertificateId, ClientFact, ClientFields, ClientsId, ListenerTls, Ocsp, PemFile,
    SelfSigned, SiteTls,
};
pub use upstream::{
    Balance, Breaker, Family, HashKey, HealthCheck, Keepalive, Passive, Probe, Queue, Resolve,
    RetryBudget, Secret, ServerAddr, ServerState, Source, Spread, Sticky, Upstream, UpstreamFiles,
    UpstreamServer, UpstreamTls,
};

/// One snapshot of the whole configuration.
#[derive(Debug)]
pub struct Model {
    /// What belongs to the process, not to a site.
    pub server: Server,
    /// The sockets to listen on, each address once, in the order of the file. Never empty.
    pub listeners: Vec<Listener>,
    /// All sites. [`Listener::sites`] holds indexes into this list.
    pub sites: Vec<Arc<Site>>,
    /// The upstreams that routes use, each once, in the order of the sites. Each has a name of its
    /// own, by which a reload finds the one that it replaces.
    pub upstreams: Vec<Arc<Upstream>>,
    /// What is right and deserves attention all the same, in whole sentences. Only where the files of
    /// this machine were looked at.
    pub warnings: Vec<String>,
}

impl Model {
    /// Every set of file settings: of sites, of routes, of error pages.
    pub fn each_files(&self, mut each: impl FnMut(&Arc<Files>)) {
        for route in self.sites.iter().flat_map(|site| site.each_route()) {
            if let Action::Files(files) = &route.action {
                each(files);
            }
            route.error_pages.iter().for_each(|page| each(&page.files));
        }
    }

    /// The directories that bodies are written to, each once, in order. A sandboxed worker needs
    /// the right to make files in them.
    pub fn spill_directories(&self) -> Vec<PathBuf> {
        let mut directories: Vec<PathBuf> = self
            .sites
            .iter()
            .flat_map(|site| site.each_route())
            .filter_map(|route| match &route.action {
                Action::Proxy(proxy) => Some(proxy.buffer.spill.as_ref()?.directory.clone()),
                _ => None,
            })
            .collect();
        directories.sort();
        directories.dedup();
        directories
    }

    /// The directories that files are served from, each once, in order.
    pub fn roots(&self) -> Vec<PathBuf> {
        let mut roots = Vec::new();
        self.each_files(|files| roots.push(files.root.clone()));
        roots.sort();
        roots.dedup();
        roots
    }
}

/// Settings of the process: the table `[server]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// How many cores (pinned threads) serve.
    pub workers: Workers,
    /// Whether the threads are pinned to CPUs; `None` pins when there are enough CPUs for it.
    pub pin: Option<bool>,
    /// Which engine performs I/O.
    pub engine: Engine,
    /// Whether large bodies and tunnels go from socket to socket through a pipe, without a copy.
    pub splice: bool,
    /// When files leave without a copy, from buffers that the network device reads.
    pub zerocopy: ZeroCopy,
    /// Whether the kernel encrypts large contents under TLS.
    pub ktls: KernelTls,
    /// Whether a thread of the kernel on another CPU submits what each ring is asked for
    /// (`IORING_SETUP_SQPOLL`). Never with epoll, without pinning, or in several processes.
    pub sqpoll: bool,
    /// Whether each core accepts from a socket of its own (`SO_REUSEPORT`).
    pub reuseport: bool,
    /// Most bytes of memory of all processes of a generation; `None` takes a part of what there is.
    pub memory_limit: Option<u64>,
    /// Most open connections of the whole process; `None` leaves it to `memory_limit` and the
    /// descriptor limit.
    pub max_conns: Option<NonZeroUsize>,
    /// Worker processes of a generation, 1 to 64. Each has all the threads of `workers`.
    pub processes: NonZeroUsize,
    /// The user that a worker becomes, a name or a number; `None` leaves the choice to the master.
    pub user: Option<String>,
    /// The group that a worker becomes, a name or a number; `None` is the user's own.
    pub group: Option<String>,
    /// What is taken from a worker before it serves.
    pub sandbox: Sandbox,
    /// What a sandboxed worker may read besides the roots: absolute paths of files or directories.
    pub sandbox_read: Vec<PathBuf>,
    /// How long a worker may take to be ready, and a new binary to check the configuration. At
    /// least 100 ms.
    pub start_timeout: Duration,
    /// How long exchanges may go on after the first SIGTERM or SIGINT. Zero ends at once.
    pub drain_timeout: Duration,
    /// Sizes and counts that a client can't exceed.
    pub limits: Limits,
    /// Times that a client can't exceed.
    pub timeouts: Timeouts,
    /// Where requests are logged; `None` for nowhere.
    pub access_log: Option<AccessLog>,
    /// What the control log shows.
    pub log_level: LogLevel,
    /// Whose forwarding fields are believed, by sites that don't say.
    pub trusted_proxies: Arc<Peers>,
}

/// How many cores serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// The CPUs this process may use, capped by the cgroup's `cpu.max`.
    Auto,
    /// This many threads, 1 to 1024.
    Count(NonZeroUsize),
}

/// Which engine performs I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// io_uring where a probe finds it whole, else epoll.
    Auto,
    /// io_uring, or the start fails.
    Uring,
    /// epoll.
    Epoll,
}

/// Whether the kernel encrypts large contents of connections under TLS (kTLS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelTls {
    /// Where it can.
    #[default]
    Auto,
    /// It has to be able to, or the server doesn't start.
    On,
    /// Never.
    Off,
}

/// What is taken from a worker before it serves: files, system calls, ring operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// Nothing.
    Off,
    /// What the kernel can enforce; what it can't is said.
    Auto,
    /// Everything, or the start fails.
    Strict,
}

/// Sizes and counts that a client can't exceed: the table `[server.limits]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the request line without its line end; beyond it 414. 256 B to 1 MiB.
    pub request_line: usize,
    /// Bytes of the header section; beyond it 431. 256 B to 1 MiB.
    pub header_section: usize,
    /// Header fields of one request; beyond it 431. 1 to 10 000.
    pub header_fields: usize,
    /// Requests served on one connection before it is closed. At least 1.
    pub requests_per_connection: u64,
    /// Bytes of an unread request body that are read and thrown away to keep the connection;
    /// with more left it is closed.
    pub body_drain: u64,
    /// Bytes of all files of bodies in `spill` directories together, in one worker process. At least 1 MiB.
    pub spill: u64,
}

/// Times that a client can't exceed: the table `[server.timeouts]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first byte of a request to the end of its header section; then 408 and close.
    pub header: Duration,
    /// From the begin of a connection under TLS to the end of its handshake; then it is closed.
    pub handshake: Duration,
    /// How long a connection without a request stays open.
    pub idle: Duration,
    /// Window over which a body or a response has to make progress; then 408 or reset.
    pub progress: Duration,
    /// Bytes per second that count as progress, on average over the window. 0 switches it off.
    pub progress_rate: u64,
}

/// Where and how requests are logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// Where lines go.
    pub target: LogTarget,
    /// How a line looks.
    pub format: LogFormat,
}

/// Where lines of the access log go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// Appended to the file of this absolute path.
    File(PathBuf),
}

/// How a line of the access log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// The Common Log Format of NCSA httpd.
    Common,
    /// Common, with Referer and User-Agent.
    Combined,
    /// One JSON object per line.
    Json,
}

/// What the control log shows: this and all that is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Only what makes requests fail.
    Error,
    /// And what may need attention.
    Warn,
    /// And what the server does: start, engine, drain.
    Info,
    /// And details that help to find a fault.
    Debug,
}

/// One listening socket and the sites that it serves.
#[derive(Debug)]
pub struct Listener {
    /// Where it listens.
    pub address: ListenAddr,
    /// Indexes into [`Model::sites`], by host name. A site for any host is the map's default.
    pub sites: HostMap<usize>,
    /// Whose connections begin with a PROXY header; `None` for nobody's. A connection of these peers
    /// without one is closed.
    pub proxy_protocol: Option<Arc<Peers>>,
    /// Whether connections are under TLS.
    pub tls: Option<ListenerTls>,
    /// Where the address was asked for, to name it when the start fails.
    pub place: Place,
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenAddr {
    /// TCP. An IPv6 socket always sets `IPV6_V6ONLY`, so that `0.0.0.0` and `[::]` are two sockets.
    Tcp {
        /// Address and port; port 0 asks the kernel for a free one.
        address: SocketAddr,
        /// The IPv6 half of `:PORT`: on a machine without IPv6 its absence is no error. With port
        /// 0 it takes the port that the IPv4 half was given.
        companion: bool,
    },
    /// A unix stream socket at this absolute path.
    Unix(PathBuf),
    /// A socket that the service manager hands over under this name (`FileDescriptorName=` of
    /// systemd.socket(5)): 1 to 255 printable ASCII characters without `:`.
    Inherited(String),
}

impl ListenAddr {
    /// Whether one socket serves both: whether its absence is forgiven makes no other socket.
    pub fn is_same_socket(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp { address: a, .. }, Self::Tcp { address: b, .. }) => a == b,
            _ => self == other,
        }
    }
}

impl fmt::Display for ListenAddr {
    /// As `listen` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address, .. } => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Inherited(name) => write!(f, "fd:{name}"),
        }
    }
}

/// Where something was written: the file, or the flag or variable that set it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// File name as the user gave it, `--flag` or variable name.
    pub source: Arc<str>,
    /// Line, from 1; 0 where the source is not a file.
    pub line: u32,
    /// Column in characters, from 1; 0 where the source is not a file.
    pub column: u32,
}

/// One site: what answers for a set of host names.
#[derive(Debug)]
pub struct Site {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Routes by pattern. A list holds the alternatives of one pattern in order: the first whose
    /// `when` matches answers; when none does, the next less specific pattern is asked, and at last
    /// `fallback`.
    pub router: Router<Vec<Arc<Route>>>,
    /// What the site itself does where no route answers.
    pub fallback: Arc<Route>,
    /// Whose forwarding fields (X-Forwarded-For, Forwarded …) are believed.
    pub trusted_proxies: Arc<Peers>,
    /// TLS: where it isn't under TLS it leads there.
    pub tls: Option<SiteTls>,
    /// The fields that tell backends of the client's certificate.
    pub client_fields: Option<Arc<ClientFields>>,
}

impl Site {
    /// Every route, `fallback` first.
    pub fn each_route(&self) -> impl Iterator<Item = &Arc<Route>> {
        let routes = self.router.iter().flat_map(|(_, routes)| routes);
        std::iter::once(&self.fallback).chain(routes)
    }
}

/// What to do with the requests of one route, inheritance from its site applied.
#[derive(Debug)]
pub struct Route {
    /// Number of the route in its site, for logs and counters; the fallback is 0.
    pub id: usize,
    /// The key as it was written; empty for the fallback.
    pub pattern: Arc<str>,
    /// Further conditions; `None` always matches.
    pub when: Option<When>,
    /// What answers.
    pub action: Action,
    /// What is done to the fields of every response of this route, in order: removals first,
    /// additions last.
    pub headers: Arc<[HeaderOp]>,
    /// `Cache-Control` for 200, 203, 206 and 304 unless `headers` sets it.
    pub cache_control: Option<FieldValue>,
    /// Who may read responses from another origin; `None` for nobody.
    pub cors: Option<Cors>,
    /// Pages that stand in for error responses.
    pub error_pages: Arc<ErrorPages>,
}

/// One change to the fields of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderOp {
    /// Replaces every field of this name.
    Set(FieldName, FieldValue),
    /// Takes every field of this name away.
    Remove(FieldName),
    /// Adds a field, whatever others of this name there are.
    Append(FieldName, FieldValue),
}

/// What answers a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// Files of a directory.
    Files(Arc<Files>),
    /// Another place.
    Redirect {
        /// `Location`, with placeholders.
        to: Template,
        /// 301, 302, 303, 307 or 308.
        status: Status,
        /// Whether it is the site's own, for which `{path}` is the whole path without its first
        /// slash, whatever the pattern of the route that inherited it.
        of_site: bool,
    },
    /// A fixed answer.
    Respond {
        /// 200 to 599.
        status: Status,
        /// The body; empty where the status forbids one.
        body: Arc<[u8]>,
        /// `Content-Type`; `None` for an empty body.
        content_type: Option<FieldValue>,
    },
    /// Backends.
    Proxy(Arc<Proxy>),
    /// Nothing: 404.
    None,
}

/// Files of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The directory, absolute. The whole canonical path of a request is looked up beneath it.
    pub root: PathBuf,
    /// Names that answer for a directory, in order of preference. Each is one path segment.
    pub index: Vec<String>,
    /// Whether a directory without index is listed; else 403.
    pub list: bool,
    /// File beneath `root` that answers, with 200, a GET or HEAD whose file doesn't exist, see
    /// [`Files::spa_answers`]. Without a leading slash.
    pub spa: Option<String>,
    /// Codings whose sidecar (`app.js.zst`, `app.js.br`, `app.js.gz`) is looked for, best first.
    pub precompressed: Vec<Coding>,
    /// Whether responses carry an ETag.
    pub etag: bool,
    /// Whether ranges are answered.
    pub range: bool,
    /// Whether names that begin with a dot are served. `/.well-known/` always is.
    pub hidden_files: bool,
    /// Which symbolic links are followed.
    pub symlinks: Symlinks,
    /// Whether large files that aren't in memory are read past the page cache.
    pub direct: DirectMode,
}

impl Files {
    /// Whether the page of a single-page application may stand in for this missing path.
    ///
    /// A missing `app.js` must stay a 404: answering it with HTML turns a failed deployment into a
    /// syntax error in the browser, and caches keep it. So a path whose last segment has an
    /// extension is never swallowed. A path that a route serves does not get here.
    pub fn spa_answers(&self, method: &Method<'_>, path: &str) -> bool {
        let last = path.rsplit('/').next().unwrap_or_default();
        self.spa.is_some() && matches!(method, Method::Get | Method::Head) && !last.contains('.')
    }
}

/// Which symbolic links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symlinks {
    /// None.
    Off,
    /// Those that stay beneath the root.
    Beneath,
    /// All. Whoever can write beneath the root can then show every file the server can read.
    On,
}

/// Which origins may read responses (the Fetch standard's CORS protocol).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cors {
    /// All: `Access-Control-Allow-Origin: *`.
    Any,
    /// These, each `scheme://host[:port]` in lower case, compared whole; with `Vary: Origin`.
    Origins(Arc<[Arc<str>]>),
}

/// Pages that stand in for error responses; the status stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorPages {
    pages: Vec<ErrorPage>,
}

/// The page for some statuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorPage {
    /// First status, 400 to 599.
    pub first: Status,
    /// Last status, inclusive.
    pub last: Status,
    /// The directory and its rules.
    pub files: Arc<Files>,
    /// The file beneath the directory, with a leading slash.
    pub path: Arc<str>,
}

impl ErrorPages {
    /// Pages in order of preference: an exact status before its class.
    pub fn new(pages: Vec<ErrorPage>) -> Self {
        Self { pages }
    }

    /// The page for a status.
    pub fn find(&self, status: Status) -> Option<&ErrorPage> {
        self.pages
            .iter()
            .find(|page| page.first <= status && status <= page.last)
    }

    /// All pages.
    pub fn iter(&self) -> impl Iterator<Item = &ErrorPage> {
        self.pages.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}
