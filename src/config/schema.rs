//! The one list of keys.
//!
//! What is unknown, what was probably meant, what a default is and what the reference file says all
//! come from here. `lower` reads keys by name; a test holds the two together.

mod clients;
mod proxy;
mod site;
mod tls;
mod upstream;

/// A table of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The top of a file.
    Top,
    /// `[server]`.
    Server,
    /// `[server.limits]`.
    Limits,
    /// `[server.timeouts]`.
    Timeouts,
    /// `[site."NAME"]`; its keys include those of a route.
    Site,
    /// A route's table, without what only a site has.
    Route,
    /// `when = { … }` of a route.
    When,
    /// `timeouts` of a site or a route.
    ProxyTimeouts,
    /// `retries` of a site or a route.
    Retries,
    /// `buffer` of a site or a route.
    Buffer,
    /// `proxy_protocol` of a site.
    ProxyProtocol,
    /// `tls` of a site.
    Tls,
    /// `client_certificates` of a site.
    Clients,
    /// `[upstream.NAME]`.
    Upstream,
    /// `tls` of an upstream.
    UpstreamTls,
    /// A server of an upstream, or of `proxy`.
    Backend,
    /// `balance` of an upstream.
    Balance,
    /// `keepalive` of an upstream.
    Keepalive,
    /// `queue` of an upstream.
    Queue,
    /// `passive_health` of an upstream.
    Passive,
    /// `health` of an upstream.
    Health,
    /// `breaker` of an upstream.
    Breaker,
    /// `retry_budget` of an upstream.
    RetryBudget,
    /// `resolve` of an upstream.
    Resolve,
}

impl Section {
    /// Where its keys belong, for messages.
    pub fn place(self) -> &'static str {
        match self {
            Self::Top => "at the top of a file",
            Self::Server => "in [server]",
            Self::Limits => "in [server.limits]",
            Self::Timeouts => "in [server.timeouts]",
            Self::Site => "in [site.\"NAME\"]",
            Self::Route => "in a route",
            Self::When => "in `when`",
            Self::ProxyTimeouts => "in `timeouts` of a route",
            Self::Retries => "in `retries`",
            Self::Buffer => "in `buffer`",
            Self::ProxyProtocol => "in `proxy_protocol`",
            Self::Tls => "in `tls`",
            Self::Clients => "in `client_certificates`",
            Self::Upstream => "in [upstream.NAME]",
            Self::UpstreamTls => "in `tls` of an upstream",
            Self::Backend => "in a server of an upstream",
            Self::Balance => "in `balance`",
            Self::Keepalive => "in `keepalive`",
            Self::Queue => "in `queue`",
            Self::Passive => "in `passive_health`",
            Self::Health => "in `health`",
            Self::Breaker => "in `breaker`",
            Self::RetryBudget => "in `retry_budget`",
            Self::Resolve => "in `resolve`",
        }
    }

    /// All sections.
    pub const ALL: [Self; 24] = [
        Self::Top,
        Self::Server,
        Self::Limits,
        Self::Timeouts,
        Self::Site,
        Self::Route,
        Self::When,
        Self::ProxyTimeouts,
        Self::Retries,
        Self::Buffer,
        Self::ProxyProtocol,
        Self::Tls,
        Self::Clients,
        Self::Upstream,
        Self::UpstreamTls,
        Self::Backend,
        Self::Balance,
        Self::Keepalive,
        Self::Queue,
        Self::Passive,
        Self::Health,
        Self::Breaker,
        Self::RetryBudget,
        Self::Resolve,
    ];

    /// The keys of this table.
    pub fn keys(self) -> impl Iterator<Item = &'static Key> {
        let own: [&'static [Key]; 3] = match self {
            Self::Top => [TOP, &[], &[]],
            Self::Server => [SERVER, &[], &[]],
            Self::Limits => [LIMITS, &[], &[]],
            Self::Timeouts => [TIMEOUTS, &[], &[]],
            Self::Site => [site::SITE, site::ANSWER, proxy::PROXY],
            Self::Route => [site::ROUTE, site::ANSWER, proxy::PROXY],
            Self::When => [site::WHEN, &[], &[]],
            Self::ProxyTimeouts => [proxy::TIMEOUTS, &[], &[]],
            Self::Retries => [proxy::RETRIES, &[], &[]],
            Self::Buffer => [proxy::BUFFER, &[], &[]],
            Self::ProxyProtocol => [proxy::PROXY_PROTOCOL, &[], &[]],
            Self::Tls => [tls::TLS, &[], &[]],
            Self::Clients => [clients::CLIENTS, &[], &[]],
            Self::Upstream => [upstream::UPSTREAM, &[], &[]],
            Self::UpstreamTls => [upstream::TLS, &[], &[]],
            Self::Backend => [upstream::BACKEND, &[], &[]],
            Self::Balance => [upstream::BALANCE, &[], &[]],
            Self::Keepalive => [upstream::KEEPALIVE, &[], &[]],
            Self::Queue => [upstream::QUEUE, &[], &[]],
            Self::Passive => [upstream::PASSIVE, &[], &[]],
            Self::Health => [upstream::HEALTH, &[], &[]],
            Self::Breaker => [upstream::BREAKER, &[], &[]],
            Self::RetryBudget => [upstream::RETRY_BUDGET, &[], &[]],
            Self::Resolve => [upstream::RESOLVE, &[], &[]],
        };
        own.into_iter().flatten()
    }

    /// The keys of a site or a route that backends need.
    pub fn of_proxies() -> impl Iterator<Item = &'static Key> {
        proxy::PROXY.iter()
    }

    /// The key of this name.
    pub fn key(self, name: &str) -> Option<&'static Key> {
        self.keys().find(|key| key.name == name)
    }
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it takes, to follow "needs".
    pub takes: &'static str,
    /// A value in TOML that shows how to write it.
    pub example: &'static str,
    /// The default in TOML; empty where nothing is the default.
    pub default: &'static str,
    /// What it does, in lines of at most 96 characters.
    pub doc: &'static str,
}

const fn key(
    name: &'static str,
    takes: &'static str,
    example: &'static str,
    default: &'static str,
    doc: &'static str,
) -> Key {
    Key {
        name,
        takes,
        example,
        default,
        doc,
    }
}

const BOOLEAN: &str = "true or false";
/// What a key takes whose value is a duration.
pub(super) const DURATION: &str = "a duration such as \"10s\"";
/// What a key takes whose value is a duration or nothing.
pub(super) const DURATION_OR_FALSE: &str = "a duration such as \"10s\", or false";
/// What a key takes whose value names peers.
const PEERS: &str = "a network or a list of networks";
/// What a key takes whose value is a share.
const PERCENT: &str = "a number from 1 to 100";
/// What a key takes whose value is a size.
pub(super) const SIZE: &str = "a size such as \"8KiB\"";

const TOP: &[Key] = &[
    key(
        "include",
        "a list of file names",
        "[\"sites/*.toml\"]",
        "",
        "Further files, relative to this one. `*` and `?` stand for any characters in a name.",
    ),
    key(
        "server",
        "a table",
        "{ workers = 2 }",
        "",
        "What belongs to the process.",
    ),
    key(
        "upstream",
        "a table",
        "{ app = { servers = [\"127.0.0.1:3000\"] } }",
        "",
        "Groups of backends, by the name that `proxy` calls them.",
    ),
    key(
        "site",
        "a table",
        "{ \":8080\" = { root = \"/srv/www\" } }",
        "",
        "The sites, by name.",
    ),
];

const SERVER: &[Key] = &[
    key(
        "workers",
        "\"auto\" or a number from 1 to 1024",
        "2",
        "\"auto\"",
        "Threads that serve. \"auto\" is one for each CPU this process may use, capped by the\n\
         cgroup's CPU limit.",
    ),
    key(
        "pin",
        "\"auto\", true or false",
        "true",
        "\"auto\"",
        "Whether each thread stays on one CPU. \"auto\" pins when there are several CPUs and no\n\
         more threads than CPUs.",
    ),
    key(
        "engine",
        "\"auto\", \"uring\" or \"epoll\"",
        "\"epoll\"",
        "\"auto\"",
        "What performs I/O. \"auto\" takes io_uring where the kernel has all of it and allows it.",
    ),
    key(
        "splice",
        BOOLEAN,
        "false",
        "true",
        "Whether large bodies of proxied requests and responses, and tunnels, go from socket to\n\
         socket through a pipe (splice). Without it they are copied. Files aren't concerned.",
    ),
    key(
        "zerocopy",
        "\"auto\", \"on\" or \"off\"",
        "\"off\"",
        "\"auto\"",
        "Whether what was read past the page cache (`direct`) is sent without a copy, io_uring only.\n\
         \"auto\" does so for large pieces to other machines, while the kernel doesn't say that it had\n\
         to copy; \"on\" from 16 KiB on, to everybody.",
    ),
    key(
        "ktls",
        "\"auto\", \"on\" or \"off\"",
        "\"off\"",
        "\"auto\"",
        "Whether the kernel encrypts files and proxied bodies of 256 KiB or more under TLS (kTLS), so\n\
         that they aren't copied for it. \"auto\" does so where the kernel has it, \"on\" doesn't start\n\
         without. It takes the kernel's module `tls`.",
    ),
    key(
        "sqpoll",
        BOOLEAN,
        "true",
        "false",
        "Whether a thread of the kernel submits what each of our threads asks of io_uring, on a CPU of\n\
         its own, which it keeps busy while there is traffic. It takes two CPUs for each thread, and\n\
         without `workers` there are half as many threads as CPUs. epoll has no such thing.",
    ),
    key(
        "reuseport",
        BOOLEAN,
        "true",
        "false",
        "Whether each thread accepts from a socket of its own (SO_REUSEPORT), to which the kernel\n\
         assigns clients by their addresses. Without it threads share one socket for each address, and\n\
         connections are spread evenly. It counts for addresses that are opened from then on.",
    ),
    key(
        "memory_limit",
        SIZE,
        "\"2GiB\"",
        "",
        "Most memory of the server (of its processes together): what it holds for requests, connections\n\
         and caches, and itself. When it runs short, caches are emptied, then idle connections are\n\
         closed, then accepting pauses, then the connections that hold most are cut. Without it, three\n\
         quarters of what the control group allows, or else of the machine's memory.",
    ),
    key(
        "max_conns",
        "a number of at least 1",
        "10000",
        "",
        "Most open connections. Without it, the memory limit and the descriptor limit decide.",
    ),
    key(
        "drain_timeout",
        DURATION,
        "\"30s\"",
        "\"30s\"",
        "How long running requests may take to end: at a stop, on a listener that a reload removes,\n\
         and in workers that others replace.",
    ),
    key(
        "processes",
        "a number from 1 to 64",
        "2",
        "1",
        "Worker processes, each with all the threads of `workers`. They share the sockets.",
    ),
    key(
        "user",
        "the name or the number of a user",
        "\"www-data\"",
        "",
        "The user that the workers become when the server is started as root under a master. Without\n\
         it, \"beltway\" if there is one, else \"nobody\".",
    ),
    key(
        "group",
        "the name or the number of a group",
        "\"www-data\"",
        "",
        "The group that the workers become. Without it, the user's own.",
    ),
    key(
        "sandbox",
        "\"auto\", \"strict\", true or false",
        "\"strict\"",
        "\"auto\"",
        "Whether the workers give up what they don't need: other files, programs, new sockets.\n\
         \"auto\" and true take what the kernel can enforce, \"strict\" all of it or no start.",
    ),
    key(
        "sandbox_read",
        "a path or a list of paths",
        "[\"/srv/shared\"]",
        "",
        "Further files and directories that sandboxed workers may read, such as what symbolic\n\
         links lead to.",
    ),
    key(
        "start_timeout",
        DURATION,
        "\"30s\"",
        "\"30s\"",
        "How long a worker may take until it serves, and a new version to check the configuration.",
    ),
    key(
        "access_log",
        "true, false, \"-\" or a file name",
        "\"/var/log/beltway/access.log\"",
        "false",
        "Where requests are logged. true and \"-\" are standard output. A file is opened by the master,\n\
         and again after `beltway reopen`.",
    ),
    key(
        "log_format",
        "\"common\", \"combined\" or \"json\"",
        "\"json\"",
        "\"combined\"",
        "How a line of the access log looks. \"json\" is an object with time, remote, method, target,\n\
         version, status, bytes (sent), referer, user_agent, host, duration_us and received (bytes of\n\
         the request's body).",
    ),
    key(
        "log_level",
        "\"error\", \"warn\", \"info\" or \"debug\"",
        "\"warn\"",
        "\"info\"",
        "What the server says about itself, on standard error.",
    ),
    key(
        "trusted_proxies",
        PEERS,
        "[\"10.0.0.0/8\", \"unix\"]",
        "",
        "Whose word is taken for who the client is (X-Forwarded-For, Forwarded): networks, single\n\
         addresses, and \"unix\" for peers of unix sockets. Nobody's, if it is not set.",
    ),
    key(
        "limits",
        "a table",
        "{ header_fields = 100 }",
        "",
        "What a client can't exceed in size or number.",
    ),
    key(
        "timeouts",
        "a table",
        "{ idle = \"75s\" }",
        "",
        "What a client can't exceed in time.",
    ),
];

const LIMITS: &[Key] = &[
    key(
        "request_line",
        SIZE,
        "\"8KiB\"",
        "\"8KiB\"",
        "The request line, from 256B to 1MiB. Beyond it: 414.",
    ),
    key(
        "header_section",
        SIZE,
        "\"32KiB\"",
        "\"32KiB\"",
        "All header fields of a request together, from 256B to 1MiB. Beyond it: 431.",
    ),
    key(
        "header_fields",
        "a number from 1 to 10000",
        "100",
        "100",
        "Header fields of a request. Beyond it: 431.",
    ),
    key(
        "requests_per_connection",
        "a number of at least 1",
        "100000",
        "100000",
        "Requests on one connection. Then it is closed.",
    ),
    key(
        "body_drain",
        SIZE,
        "\"64KiB\"",
        "\"64KiB\"",
        "How much of a request body that nobody wants is read to keep the connection. With more\n\
         to come it is closed.",
    ),
    key(
        "spill",
        SIZE,
        "\"16GiB\"",
        "\"16GiB\"",
        "What all bodies in files of `buffer.spill` take of the disk together, 1MiB or more. Beyond\n\
         it bodies go at the pace of the slower side, as without `spill`.",
    ),
];

const TIMEOUTS: &[Key] = &[
    key(
        "header",
        DURATION,
        "\"10s\"",
        "\"10s\"",
        "From the first byte of a request to the end of its header fields. Then: 408.",
    ),
    key(
        "handshake",
        DURATION,
        "\"10s\"",
        "\"10s\"",
        "From the begin of a connection under TLS to the end of its handshake.",
    ),
    key(
        "idle",
        DURATION,
        "\"75s\"",
        "\"75s\"",
        "How long a connection stays open without a request.",
    ),
    key(
        "progress",
        DURATION,
        "\"10s\"",
        "\"10s\"",
        "The window in which a client that sends a body or reads a response has to keep to\n\
         `progress_rate`. Then: 408, or the connection is reset.",
    ),
    key(
        "progress_rate",
        SIZE,
        "\"500B\"",
        "\"500B\"",
        "How much a client has to send or read in each second, on average over the window.\n\
         With \"0\" there is no such bound.",
    ),
];

/// The keys of `[server]` as the environment writes them behind `BELTWAY_`, such as
/// `SERVER_LIMITS_REQUEST_LINE`, each with its path.
pub fn environment_names() -> impl Iterator<Item = (String, Vec<String>)> {
    let tables: [(Section, &[&str]); 3] = [
        (Section::Server, &["server"]),
        (Section::Limits, &["server", "limits"]),
        (Section::Timeouts, &["server", "timeouts"]),
    ];
    tables.into_iter().flat_map(|(section, path)| {
        section
            .keys()
            .filter(|key| key.takes != "a table")
            .map(move |key| {
                let path: Vec<String> = path
                    .iter()
                    .copied()
                    .chain([key.name])
                    .map(str::to_owned)
                    .collect();
                (path.join("_").to_ascii_uppercase(), path)
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_and_default_is_toml() {
        for section in Section::ALL {
            for key in section.keys() {
                for value in [key.example, key.default] {
                    let text = format!("{} = {value}", key.name);
                    assert!(
                        value.is_empty() || text.parse::<toml::Table>().is_ok(),
                        "{text}"
                    );
                }
            }
        }
    }

    #[test]
    fn names_are_unique_in_their_table_and_docs_are_short() {
        for section in Section::ALL {
            let mut names: Vec<_> = section.keys().map(|key| key.name).collect();
            names.sort_unstable();
            let count = names.len();
            names.dedup();
            assert_eq!(names.len(), count, "{section:?}");
            for key in section.keys() {
                assert!(key.doc.lines().all(|line| line.len() <= 96), "{}", key.name);
            }
        }
    }

    #[test]
    fn environment_names_are_unambiguous() {
        let mut names: Vec<_> = environment_names().map(|(name, _)| name).collect();
        assert!(names.contains(&"SERVER_LIMITS_REQUEST_LINE".to_owned()));
        assert!(names.contains(&"SERVER_WORKERS".to_owned()));
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
