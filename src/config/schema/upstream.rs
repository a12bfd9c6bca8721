//! The keys of upstreams.

use super::{BOOLEAN, DURATION, Key, PERCENT, key};

pub(super) const UPSTREAM: &[Key] = &[
    key(
        "servers",
        "a list of addresses",
        "[\"10.0.0.1:3000\", { address = \"10.0.0.2:3000\", weight = 2 }, \"unix:/run/app.sock\"]",
        "",
        "The servers: addresses as in `proxy`, or tables.",
    ),
    key(
        "balance",
        "\"round-robin\", \"least-conn\", \"p2c\", \"random\", \"hash\" or a table",
        "\"least-conn\"",
        "\"round-robin\"",
        "How requests are spread: by turns; to the server with the least requests in flight; to the\n\
         one of two that answers sooner; at random; by a key of the request; by a cookie.",
    ),
    key(
        "max_conns",
        "a number from 1 to 1000000",
        "200",
        "",
        "Most requests in flight to each server, of all threads of a process together, unless the\n\
         server says otherwise.",
    ),
    key(
        "source",
        "an IP address, or a list of one IPv4 and one IPv6 address",
        "\"192.0.2.10\"",
        "",
        "The local address that servers of its family are connected to from. Without it, the kernel\n\
         takes one by its routes.",
    ),
    key(
        "tls",
        "true, false or a table",
        "{ ca = \"/etc/beltway/backends.pem\" }",
        "",
        "How servers are talked to under TLS: those with `https://`, and with true or a table also those\n\
         whose address says neither that nor `http://`. They are verified, by what the system trusts.",
    ),
    key(
        "slow_start",
        DURATION,
        "\"30s\"",
        "\"0s\"",
        "Over which time the share of a server grows after it has come back.",
    ),
    key(
        "keepalive",
        "a table or false",
        "{ idle = 64 }",
        "{ idle = 512, total = 1024, timeout = \"60s\" }",
        "Connections that wait for their next request; each thread has its own. false closes each\n\
         after its answer.",
    ),
    key(
        "queue",
        "a table or false",
        "{ size = 256 }",
        "{ size = 128, timeout = \"5s\" }",
        "Requests that wait while every server has all that it may. false answers them 503 at once.",
    ),
    key(
        "health",
        "a path, \"tcp\", false or a table",
        "\"/healthz\"",
        "false",
        "Asks the servers whether they are well: the path that is asked for, or \"tcp\" for whether\n\
         they take a connection.",
    ),
    key(
        "passive_health",
        "true, false or a table",
        "{ failures = 3 }",
        "true",
        "Leaves servers out for a while whose requests fail. Never all at once. Each thread counts\n\
         its own requests; what one has found counts for all.",
    ),
    key(
        "breaker",
        "true, false or a table",
        "true",
        "false",
        "Leaves the whole upstream alone for a while when too many of its requests fail, and\n\
         answers 503 meanwhile. Each thread has its own, and judges by its own requests.",
    ),
    key(
        "retry_budget",
        "a table",
        "{ share = 20 }",
        "{ share = 20, per_second = 10 }",
        "How many tries may be repetitions, so that a fault isn't made worse by them. Each thread\n\
         has its part.",
    ),
    key(
        "resolve",
        "a table",
        "{ interval = \"10s\" }",
        "{ interval = \"30s\", timeout = \"5s\", family = \"any\" }",
        "How names of servers are resolved. When that fails, the last good answer stays.",
    ),
];

pub(super) const TLS: &[Key] = &[
    key(
        "name",
        "a name or an address",
        "\"app.example.com\"",
        "",
        "What the certificates of the servers have to be for, and what they are asked for (SNI).\n\
         Without it, each server's own name or address.",
    ),
    key(
        "sni",
        BOOLEAN,
        "false",
        "true",
        "Whether a server is told the name that it is asked for. An address never is.",
    ),
    key(
        "ca",
        "a file name",
        "\"/etc/beltway/backends.pem\"",
        "",
        "The authorities whose certificates are accepted, in PEM, instead of those of the system\n\
         (SSL_CERT_FILE, or where the distribution has them).",
    ),
    key(
        "cert",
        "a file name",
        "\"/etc/beltway/client.pem\"",
        "",
        "The certificate that is shown to a server that asks who we are, in PEM.",
    ),
    key(
        "key",
        "a file name",
        "\"/etc/beltway/client.key\"",
        "",
        "Its private key. Nobody but the user that starts beltway has to be able to read it.",
    ),
    key(
        "policy",
        "\"modern\" or \"intermediate\"",
        "\"modern\"",
        "\"intermediate\"",
        "Which versions are spoken: \"modern\" is TLS 1.3 alone, \"intermediate\" TLS 1.2, too.",
    ),
    key(
        "insecure",
        BOOLEAN,
        "true",
        "false",
        "Whether anybody may answer for the servers: nothing is verified, and whoever is on the way\n\
         reads and changes what he likes. To try something out.",
    ),
];

pub(super) const BACKEND: &[Key] = &[
    key(
        "address",
        "an address",
        "\"10.0.0.2:3000\"",
        "",
        "Where the server is.",
    ),
    key(
        "weight",
        "a number from 1 to 1000",
        "2",
        "1",
        "Its share of the requests, compared with the others'.",
    ),
    key(
        "backup",
        BOOLEAN,
        "true",
        "false",
        "Whether it is used only while no other server is.",
    ),
    key(
        "max_conns",
        "a number from 1 to 1000000",
        "200",
        "",
        "Most requests in flight to it, of all threads of a process.",
    ),
    key(
        "state",
        "\"up\", \"drain\" or \"down\"",
        "\"drain\"",
        "\"up\"",
        "\"drain\" takes no requests but of clients that a cookie binds to it; \"down\" takes none.\n\
         `beltway server` sets it without a reload, until it is changed here.",
    ),
];

pub(super) const BALANCE: &[Key] = &[
    key(
        "algorithm",
        "\"round-robin\", \"least-conn\", \"p2c\", \"random\", \"hash\" or \"sticky\"",
        "\"hash\"",
        "\"round-robin\"",
        "The algorithm, as in `balance`; \"sticky\" binds clients to servers with a cookie.",
    ),
    key(
        "by",
        "\"client\", \"path\", \"header NAME\" or \"cookie NAME\"",
        "\"header X-User\"",
        "\"client\"",
        "With \"hash\": the key of a request. The same key goes to the same server.",
    ),
    key(
        "load",
        "a number from 101 to 1000, or false",
        "125",
        "false",
        "With \"hash\": most load of a server in percent of the average. What is beyond goes to the\n\
         next one.",
    ),
    key(
        "cookie",
        "the name of a cookie",
        "\"server\"",
        "\"beltway\"",
        "With \"sticky\": the name of the cookie.",
    ),
    key(
        "secret",
        "a string of at least 16 bytes",
        "\"file:/run/secrets/sticky\"",
        "",
        "With \"sticky\": what the cookie is signed with. \"file:NAME\" takes it from a file.",
    ),
    key(
        "max_age",
        DURATION,
        "\"1d\"",
        "",
        "With \"sticky\": how long browsers keep the cookie. Without it, until they are closed.",
    ),
    key(
        "secure",
        BOOLEAN,
        "true",
        "false",
        "With \"sticky\": whether browsers send the cookie over TLS only.",
    ),
    key(
        "otherwise",
        "\"round-robin\", \"least-conn\", \"p2c\" or \"random\"",
        "\"least-conn\"",
        "\"round-robin\"",
        "With \"sticky\": how clients without a cookie are spread.",
    ),
];

pub(super) const KEEPALIVE: &[Key] = &[
    key(
        "idle",
        "a number from 0 to 10000",
        "64",
        "512",
        "Most waiting connections to one server, in each thread.",
    ),
    key(
        "total",
        "a number from 0 to 100000",
        "1024",
        "1024",
        "Most waiting connections to all servers, in each thread.",
    ),
    key(
        "timeout",
        DURATION,
        "\"60s\"",
        "\"60s\"",
        "How long one waits. Best shorter than the server's own time.",
    ),
];

pub(super) const QUEUE: &[Key] = &[
    key(
        "size",
        "a number from 0 to 100000",
        "256",
        "128",
        "Most waiting requests, of all threads of a process together. Beyond it: 503.",
    ),
    key(
        "timeout",
        DURATION,
        "\"5s\"",
        "\"5s\"",
        "How long one waits. Then: 503.",
    ),
];

pub(super) const PASSIVE: &[Key] = &[
    key(
        "failures",
        "a number from 1 to 1000, or false",
        "5",
        "5",
        "That many failures one after the other, seen by one thread, leave a server out.",
    ),
    key(
        "error_rate",
        "a number from 1 to 100, or false",
        "50",
        "50",
        "That share of failures in percent leaves a server out.",
    ),
    key(
        "min_requests",
        "a number from 1 to 1000000",
        "20",
        "20",
        "Least requests of one thread in the window for the share to count.",
    ),
    key(
        "window",
        DURATION,
        "\"10s\"",
        "\"10s\"",
        "The time over which the share is taken.",
    ),
    key(
        "eject",
        DURATION,
        "\"10s\"",
        "\"10s\"",
        "How long a server is left out. Each time in a row doubles it.",
    ),
    key(
        "eject_max",
        DURATION,
        "\"5m\"",
        "\"5m\"",
        "The longest it grows to.",
    ),
    key(
        "share",
        "a number from 0 to 100",
        "50",
        "50",
        "Most servers that are left out at once, in percent. One stays in any case.",
    ),
    key(
        "statuses",
        "a list of statuses",
        "[500, \"502-504\"]",
        "[\"502-504\"]",
        "Statuses that count as failures, as do connections that fail, end too early or time out.",
    ),
];

pub(super) const HEALTH: &[Key] = &[
    key(
        "path",
        "a path",
        "\"/healthz\"",
        "",
        "What is asked for with GET.",
    ),
    key(
        "tcp",
        BOOLEAN,
        "true",
        "false",
        "Asks only for a connection, instead of `path`.",
    ),
    key(
        "interval",
        DURATION,
        "\"5s\"",
        "\"5s\"",
        "The time between two probes of a server, at least 100ms.",
    ),
    key(
        "timeout",
        DURATION,
        "\"2s\"",
        "\"2s\"",
        "How long a probe may take. At most `interval`.",
    ),
    key(
        "rise",
        "a number from 1 to 100",
        "2",
        "2",
        "Good probes in a row that bring a server back.",
    ),
    key(
        "fall",
        "a number from 1 to 100",
        "3",
        "3",
        "Bad probes in a row that take it out.",
    ),
    key(
        "status",
        "a list of statuses",
        "[200, 204]",
        "[\"2xx\", \"3xx\"]",
        "Good statuses; \"2xx\" is a class, \"200-204\" a range.",
    ),
    key(
        "body",
        "a string",
        "\"ok\"",
        "",
        "What the body has to hold in its first 64 KiB.",
    ),
    key(
        "host",
        "a host",
        "\"app.example.com\"",
        "",
        "The field Host. Without it, the address of the server.",
    ),
    key(
        "tls",
        BOOLEAN,
        "false",
        "true",
        "Whether servers under TLS are asked under TLS; with `tcp` and without this, a connection is\n\
         all that is asked for.",
    ),
];

pub(super) const BREAKER: &[Key] = &[
    key(
        "error_rate",
        PERCENT,
        "50",
        "50",
        "The share of failures in percent that opens it.",
    ),
    key(
        "min_requests",
        "a number from 1 to 1000000",
        "20",
        "20",
        "Least requests of one thread in the window for it to count.",
    ),
    key(
        "window",
        DURATION,
        "\"10s\"",
        "\"10s\"",
        "The time over which the share is taken.",
    ),
    key(
        "open",
        DURATION,
        "\"5s\"",
        "\"5s\"",
        "How long it stays open before some requests go through to see.",
    ),
    key(
        "probes",
        "a number from 1 to 1000",
        "3",
        "3",
        "How many of these have to succeed.",
    ),
];

pub(super) const RETRY_BUDGET: &[Key] = &[
    key(
        "share",
        "a number from 0 to 100",
        "20",
        "20",
        "Repetitions in percent of the requests of the same thread.",
    ),
    key(
        "per_second",
        "a number from 0 to 10000",
        "10",
        "10",
        "Repetitions in each second besides these, for quiet times: of a process, divided by its\n\
         threads and rounded up.",
    ),
];

pub(super) const RESOLVE: &[Key] = &[
    key(
        "interval",
        DURATION,
        "\"30s\"",
        "\"30s\"",
        "The time after which a name is resolved again, at least 1s.",
    ),
    key(
        "timeout",
        DURATION,
        "\"5s\"",
        "\"5s\"",
        "How long it may take.",
    ),
    key(
        "family",
        "\"any\", \"ipv4\" or \"ipv6\"",
        "\"ipv4\"",
        "\"any\"",
        "Which addresses are used.",
    ),
];
