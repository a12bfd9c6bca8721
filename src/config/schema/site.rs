//! The keys of sites and routes, but for those of backends.

use super::{BOOLEAN, Key, PEERS, key};

pub(super) const SITE: &[Key] = &[
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
         \"fd:NAME\" is the socket that systemd hands over with FileDescriptorName=NAME. Of a site with\n\
         `tls` all are under TLS, but for port 80 and \"http://ADDRESS\", which lead there.",
    ),
    key(
        "tls",
        "a table, \"self-signed\" or false",
        "{ cert = \"/etc/beltway/example.com.pem\", key = \"/etc/beltway/example.com.key\" }",
        "",
        "TLS. Without `listen` the site is then on port 443, and port 80 leads there. With \"self-signed\"\n\
         the authority of this machine signs for its names. A public name that has neither\n\
         `listen` nor a port says false here to be plain HTTP on port 80.",
    ),
    key(
        "client_certificates",
        "a table",
        "{ ca = \"/etc/beltway/clients-ca.pem\", subject = \"X-Client-Subject\" }",
        "",
        "Certificates that clients show under TLS. A request on a connection that was made for another\n\
         site, or by other authorities than are in force, gets 421.",
    ),
    key(
        "trusted_proxies",
        PEERS,
        "[\"10.0.0.0/8\", \"unix\"]",
        "",
        "Instead of those of [server], for this site.",
    ),
    key(
        "proxy_protocol",
        "a table, or a list of networks",
        "{ from = [\"10.0.0.0/8\"] }",
        "",
        "Whose connections begin with a PROXY header (version 1 or 2), which names the client. It\n\
         belongs to the addresses that the site listens on: all sites of one have to agree.",
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

pub(super) const ROUTE: &[Key] = &[key(
    "when",
    "a table",
    "{ method = [\"GET\"] }",
    "",
    "Further conditions. A route may be a list of tables: the first whose conditions hold answers.",
)];

pub(super) const WHEN: &[Key] = &[
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
pub(super) const ANSWER: &[Key] = &[
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
        "direct",
        "\"auto\", true or false",
        "true",
        "\"auto\"",
        "Whether files of 1 MiB and more that aren't in memory are read past the page cache\n\
         (O_DIRECT), so that a sweep over an archive doesn't evict what everybody asks for. \"auto\"\n\
         does so while memory is short, for files that nobody asked for lately. A file system that\n\
         has no O_DIRECT is read through the page cache, and so is what is encrypted here (TLS).",
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
        "Fields set in every answer; \"\" removes one, and \"+NAME\" adds one beside others of its\n\
         name. A route adds to those of its site.",
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
