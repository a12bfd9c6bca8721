//! The keys of sites and routes that are answered by backends.

use super::{BOOLEAN, DURATION, DURATION_OR_FALSE, Key, PEERS, SIZE, key};

/// What says how a backend is asked: the same keys in a site and in a route.
pub(super) const PROXY: &[Key] = &[
    key(
        "proxy",
        "the name of an upstream, an address or a list of addresses",
        "[\"10.0.0.1:3000\", \"unix:/run/app.sock\"]",
        "",
        "Answers with what a backend says: the name of an upstream, an address (\"10.0.0.1:3000\",\n\
         \"app.internal:3000\", \":3000\" on this machine, \"unix:/run/app.sock\",\n\
         \"srv:_http._tcp.example.com\"), or a list of addresses, with tables as in `servers`.",
    ),
    key(
        "upstream_host",
        "\"keep\", \"upstream\" or a host",
        "\"app.internal\"",
        "\"keep\"",
        "The field Host that a backend sees: the client's, the address of the server, or this.",
    ),
    key(
        "strip_prefix",
        "true, false or a path",
        "\"/api\"",
        "false",
        "A prefix that the backend doesn't see; true is what the route has in front of its `*`.",
    ),
    key(
        "rewrite",
        "a path",
        "\"/v2/{path}\"",
        "",
        "The path that the backend sees, with the variables of `redirect`.",
    ),
    key(
        "request_headers",
        "a table of strings",
        "{ X-Request-Source = \"edge\" }",
        "",
        "Fields set in every request to a backend; \"\" removes one, \"+NAME\" adds one. A route adds\n\
         to those of its site.",
    ),
    key(
        "timeout",
        DURATION_OR_FALSE,
        "\"15s\"",
        "",
        "Short for `head` and `read` of `timeouts`.",
    ),
    key(
        "timeouts",
        "a table",
        "{ connect = \"5s\" }",
        "{ connect = \"5s\", head = \"60s\", read = \"60s\", total = false, tunnel = \"1h\" }",
        "How long a backend may take. What a route leaves out it has from its site.",
    ),
    key(
        "retries",
        "a table, a number of retries, or false",
        "{ tries = 2 }",
        "{ tries = 3, time = \"10s\", statuses = [], non_idempotent = false }",
        "When a request is tried again, with the next server. What a route leaves out it has from\n\
         its site.",
    ),
    key(
        "buffer",
        "a table or false",
        "{ request = \"1MiB\", response = \"64KiB\" }",
        "false",
        "Bodies that are read before they go on. Without it they go on as they come.",
    ),
    key(
        "upgrade",
        BOOLEAN,
        "false",
        "true",
        "Whether requests may become tunnels, as those of WebSockets do.",
    ),
    key(
        "send_proxy_protocol",
        "false, \"v1\" or \"v2\"",
        "\"v2\"",
        "false",
        "Whether connections to a backend begin with a PROXY header that names the client. Then no\n\
         two clients share one. Health checks send one that names nobody.",
    ),
];

pub(super) const TIMEOUTS: &[Key] = &[
    key(
        "connect",
        DURATION,
        "\"5s\"",
        "\"5s\"",
        "Until a connection is made. Then the next server is tried, and at last: 504.",
    ),
    key(
        "head",
        DURATION_OR_FALSE,
        "\"60s\"",
        "\"60s\"",
        "From the end of a request to the header fields of its answer. Then: 504.",
    ),
    key(
        "read",
        DURATION_OR_FALSE,
        "\"60s\"",
        "\"60s\"",
        "Between two parts of an answer. Then it is cut short. false suits streams of events that\n\
         may be silent for longer.",
    ),
    key(
        "total",
        DURATION_OR_FALSE,
        "\"5m\"",
        "false",
        "From the header fields of a request to the end of its answer, with all tries.",
    ),
    key(
        "tunnel",
        DURATION_OR_FALSE,
        "\"1h\"",
        "\"1h\"",
        "How long a tunnel (WebSocket) stays open in which nothing moves.",
    ),
];

pub(super) const RETRIES: &[Key] = &[
    key(
        "tries",
        "a number from 1 to 10",
        "3",
        "3",
        "Most tries, the first one included.",
    ),
    key(
        "time",
        DURATION,
        "\"10s\"",
        "\"10s\"",
        "How long after the first one another try may begin.",
    ),
    key(
        "statuses",
        "a list of statuses",
        "[502, 503, 504]",
        "[]",
        "Statuses from 400 to 599 after which the next server is tried; \"5xx\" is a class. A server\n\
         that can't be reached, or ends before it answers, is no matter of this.",
    ),
    key(
        "non_idempotent",
        BOOLEAN,
        "true",
        "false",
        "Whether a request whose method may have an effect each time, such as POST, is tried again\n\
         also after a part of it was sent.",
    ),
];

pub(super) const BUFFER: &[Key] = &[
    key(
        "request",
        SIZE,
        "\"1MiB\"",
        "",
        "How much of a request body is read into memory before a server is chosen, from 1KiB to 1GiB.\n\
         What is longer goes on as it comes, unless `spill` has a place for it.",
    ),
    key(
        "response",
        SIZE,
        "\"64KiB\"",
        "",
        "How much of an answer is read into memory from a server that the client is slower than, from\n\
         1KiB to 1GiB. The server waits for the client with what is longer, unless `spill` has a\n\
         place for it.",
    ),
    key(
        "spill",
        "a directory",
        "\"/var/tmp\"",
        "",
        "Directory for what exceeds these, in files without names: it has to be writable for the user\n\
         that serves. When it is full, requests get status 507, and answers go on without it.",
    ),
    key(
        "spill_limit",
        SIZE,
        "\"1GiB\"",
        "\"1GiB\"",
        "Most of one body in that directory, at least 1KiB. A longer request goes on as it comes, and a\n\
         server waits for the client with a longer answer.",
    ),
];

pub(super) const PROXY_PROTOCOL: &[Key] = &[key(
    "from",
    PEERS,
    "[\"10.0.0.0/8\", \"unix\"]",
    "",
    "Whose connections begin with a PROXY header: networks, single addresses, and \"unix\" for\n\
     peers of unix sockets. Those of others never do.",
)];
