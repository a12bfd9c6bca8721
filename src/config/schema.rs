//! The one list of keys.
//!
//! What is unknown, what was probably meant, what a default is and what the reference file says all
//! come from here. `lower` reads keys by name; a test holds the two together.

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
        }
    }

    /// All sections.
    pub const ALL: [Self; 7] = [
        Self::Top,
        Self::Server,
        Self::Limits,
        Self::Timeouts,
        Self::Site,
        Self::Route,
        Self::When,
    ];

    /// The keys of this table.
    pub fn keys(self) -> impl Iterator<Item = &'static Key> {
        let (own, shared): (&'static [Key], &'static [Key]) = match self {
            Self::Top => (TOP, &[]),
            Self::Server => (SERVER, &[]),
            Self::Limits => (LIMITS, &[]),
            Self::Timeouts => (TIMEOUTS, &[]),
            Self::Site => (SITE, ANSWER),
            Self::Route => (ROUTE, ANSWER),
            Self::When => (WHEN, &[]),
        };
        own.iter().chain(shared)
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
        "memory_limit",
        SIZE,
        "\"2GiB\"",
        "",
        "Memory that connections may take. It bounds how many are open.",
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
        "How a line of the access log looks.",
    ),
    key(
        "log_level",
        "\"error\", \"warn\", \"info\" or \"debug\"",
        "\"warn\"",
        "\"info\"",
        "What the server says about itself, on standard error.",
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

const SITE: &[Key] = &[
    key(
        "aliases",
        "a list of host names",
        "[\"www.example.com\"]",
        "",
        "Further host names of this site. `*.example.com` stands for every name below.",
    ),
    key(
        "listen",
        "a list of addresses",
        "[\"0.0.0.0:8080\", \"[::]:8080\", \"unix:/run/site.sock\"]",
        "",
        "Where the site listens, instead of what its name implies. \":8080\" is IPv4 and IPv6;\n\
         \"fd:NAME\" is the socket that systemd hands over with FileDescriptorName=NAME.",
    ),
    key(
        "routes",
        "a table",
        "{ \"/old/*\" = { redirect = \"/new/{path}\" } }",
        "",
        "What answers for some paths: \"=/exact\", \"/prefix/*\", \"*.suffix\" or \"~expression\". The most\n\
         specific one wins, not the first. What a route leaves out it has from its site.",
    ),
];

const ROUTE: &[Key] = &[key(
    "when",
    "a table",
    "{ method = [\"GET\"] }",
    "",
    "Further conditions. A route may be a list of tables: the first whose conditions hold answers.",
)];

const WHEN: &[Key] = &[
    key(
        "method",
        "a list of methods",
        "[\"GET\", \"HEAD\"]",
        "",
        "The request has one of these methods.",
    ),
    key(
        "header",
        "a table of strings",
        "{ Accept = \"*json*\" }",
        "",
        "The request has these header fields. In a value * is anything; \"~…\" is an expression;\n\
         true is any value, false is that the field is missing.",
    ),
    key(
        "query",
        "a table of strings",
        "{ version = \"2\" }",
        "",
        "The query has these parameters, as with `header`.",
    ),
];

/// What says how to answer: the same keys in a site and in a route.
const ANSWER: &[Key] = &[
    key(
        "root",
        "a directory",
        "\"/srv/www\"",
        "",
        "Directory whose files are served. The whole path of a request is looked up beneath it.",
    ),
    key(
        "index",
        "a list of file names",
        "[\"index.html\"]",
        "[\"index.html\"]",
        "Files that answer for a directory, the first that exists.",
    ),
    key(
        "list",
        BOOLEAN,
        "true",
        "false",
        "Whether a directory without an index file is listed.",
    ),
    key(
        "spa",
        "true, false or a file name",
        "true",
        "false",
        "Single-page application: a missing path is answered with this file beneath the root (true:\n\
         \"index.html\"). Never where the last part of the path has an extension, so that a missing\n\
         app.js stays a 404, and never where a route answers.",
    ),
    key(
        "precompressed",
        "true, false or a list of \"zstd\", \"br\" and \"gzip\"",
        "[\"br\", \"gzip\"]",
        "true",
        "Whether app.js.zst, app.js.br and app.js.gz beside app.js are sent to clients that take\n\
         them. A list says which and which first.",
    ),
    key(
        "etag",
        BOOLEAN,
        "false",
        "true",
        "Whether files are sent with an ETag.",
    ),
    key(
        "range",
        BOOLEAN,
        "false",
        "true",
        "Whether parts of files are sent when asked for.",
    ),
    key(
        "hidden_files",
        BOOLEAN,
        "true",
        "false",
        "Whether names that begin with a dot are served. /.well-known/ always is.",
    ),
    key(
        "symlinks",
        "\"off\", \"beneath\" or \"on\"",
        "\"off\"",
        "\"beneath\"",
        "Which symbolic links are followed: none, those that stay beneath the root, or all.",
    ),
    key(
        "cors",
        "true, false, an origin or a list of origins",
        "[\"https://app.example.com\"]",
        "false",
        "Which pages of other origins may read the answers. true is all.",
    ),
    key(
        "redirect",
        "a path or an address",
        "\"https://example.com/{path}\"",
        "",
        "Answers with another address. {path} is what `*` matched; {uri}, {query} and {host} are\n\
         the request's.",
    ),
    key(
        "status",
        "301, 302, 303, 307 or 308",
        "308",
        "302",
        "The status of `redirect`.",
    ),
    key(
        "respond",
        "a status from 200 to 599",
        "200",
        "",
        "Answers with this status and `body`.",
    ),
    key(
        "body",
        "a string",
        "\"ok\"",
        "\"\"",
        "The body of `respond`. \"file:NAME\" takes it from a file.",
    ),
    key(
        "content_type",
        "a media type",
        "\"application/json\"",
        "\"text/plain; charset=utf-8\"",
        "The type of `body`.",
    ),
    key(
        "headers",
        "a table of strings",
        "{ X-Frame-Options = \"DENY\" }",
        "",
        "Fields set in every answer; \"\" removes one. A route adds to those of its site.",
    ),
    key(
        "cache_control",
        "a string",
        "\"public, max-age=31536000, immutable\"",
        "",
        "The field Cache-Control of successful answers.",
    ),
    key(
        "error_pages",
        "a table of file names",
        "{ 404 = \"404.html\", 5xx = \"sorry.html\" }",
        "",
        "Files beneath the root, sent instead of a plain error. The status stays.",
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
