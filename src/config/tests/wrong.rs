//! What is said when a configuration is wrong.

use super::{SITE, case};
use crate::config::sources::FlagValue;

#[test]
fn an_unknown_key_with_the_nearest_name() {
    insta::assert_snapshot!(case(r#"[server]
wrokers = 2
[site.":8080"]
root = "www"
workers = 2
"#).errors(), @r#"
    error: there is no key `wrokers` in [server]
     --> beltway.toml:2:1
      |
    2 | wrokers = 2
      | ^^^^^^^ unknown key
      |
      = help: did you mean `workers`?

    error: there is no key `workers` in [site."NAME"]
     --> beltway.toml:5:1
      |
    5 | workers = 2
      | ^^^^^^^ unknown key
      |
      = help: `workers` belongs in [server]

    2 errors in the configuration
    "#);
}

#[test]
fn a_key_of_another_version_is_unknown() {
    insta::assert_snapshot!(case(&format!("{SITE}http2 = \"auto\"\n")).errors(), @r#"
    error: there is no key `http2` in [site."NAME"]
     --> beltway.toml:3:1
      |
    3 | http2 = "auto"
      | ^^^^^ unknown key
      |
      = help: the keys are aliases, listen, tls, client_certificates, trusted_proxies, proxy_protocol, routes, root, index, list, spa, precompressed, etag, range, hidden_files, symlinks, direct, cors, redirect, status, respond, body, content_type, headers, cache_control, error_pages, proxy, upstream_host, strip_prefix, rewrite, request_headers, timeout, timeouts, retries, buffer, upgrade, send_proxy_protocol

    1 error in the configuration
    "#);
}

#[test]
fn a_wrong_type() {
    insta::assert_snapshot!(case(r#"[server]
workers = true
drain_timeout = 30
engine = "urin"
[site.":8080"]
root = "www"
index = "index.html"
"#).errors(), @r#"
    error: `workers` needs "auto" or a number from 1 to 1024
     --> beltway.toml:2:11
      |
    2 | workers = true
      |           ^^^^ this is a boolean
      |
      = help: write it such as workers = 2

    error: `drain_timeout` needs a duration such as "10s"
     --> beltway.toml:3:17
      |
    3 | drain_timeout = 30
      |                 ^^ this is an integer
      |
      = help: write it such as drain_timeout = "30s"

    error: `engine` can't be "urin"
     --> beltway.toml:4:10
      |
    4 | engine = "urin"
      |          ^^^^^^ unknown value
      |
      = help: did you mean "uring"?

    error: `index` needs a list of file names
     --> beltway.toml:7:9
      |
    7 | index = "index.html"
      |         ^^^^^^^^^^^^ this is a string
      |
      = help: write it such as index = ["index.html"]

    4 errors in the configuration
    "#);
}

#[test]
fn a_bad_duration_and_a_bad_size() {
    insta::assert_snapshot!(case(&format!(r#"[server]
drain_timeout = "30"
limits = {{ request_line = "8K", header_section = "2GiB" }}
{SITE}"#)).errors(), @r#"
    error: `drain_timeout`: `30` has no unit
     --> beltway.toml:2:17
      |
    2 | drain_timeout = "30"
      |                 ^^^^
      |
      = help: write "30s" or "30ms"

    error: `request_line`: `K` is not a unit of size
     --> beltway.toml:3:27
      |
    3 | limits = { request_line = "8K", header_section = "2GiB" }
      |                           ^^^^
      |
      = help: write "8KiB" (by 1024) or "8kB" (by 1000)

    error: `header_section` is out of range
     --> beltway.toml:3:50
      |
    3 | limits = { request_line = "8K", header_section = "2GiB" }
      |                                                  ^^^^^^ out of range
      |
      = help: it has to be from "256B" to "1MiB"

    3 errors in the configuration
    "#);
}

#[test]
fn conflicting_routes_show_both_places() {
    insta::assert_snapshot!(case(&format!(r#"{SITE}[site.":8080".routes]
"/a" = {{ respond = 200 }}
"=/a" = {{ respond = 404 }}
"/b/*/c" = {{ respond = 200 }}
"#)).errors(), @r#"
    error: `=/a` matches the same requests as `/a`
     --> beltway.toml:5:1
      |
    4 | "/a" = { respond = 200 }
      | ---- this one matches them already
    5 | "=/a" = { respond = 404 }
      | ^^^^^ this route never answers
      |
      = help: take one away; where one path needs several answers, write a list of tables with `when`

    error: the route `/b/*/c`: only the end of a file name may follow `*`
     --> beltway.toml:6:6
      |
    6 | "/b/*/c" = { respond = 200 }
      |      ^^
      |
      = help: end the pattern with `/*`, or write a regular expression such as `~^/a/[^/]+/b$`

    2 errors in the configuration
    "#);
}

#[test]
fn a_missing_root() {
    insta::assert_snapshot!(case(r#"[site.":8080"]
root = "wwww"
[site.":8081"]
root = "www/index.html"
"#).errors(), @r#"
    error: the directory `DIR/wwww` doesn't exist
     --> beltway.toml:2:8
      |
    2 | root = "wwww"
      |        ^^^^^^
      |
      = help: did you mean `DIR/www`?

    error: `DIR/www/index.html` is not a directory
     --> beltway.toml:4:8
      |
    4 | root = "www/index.html"
      |        ^^^^^^^^^^^^^^^^
      |
      = help: name the directory that it is in

    2 errors in the configuration
    "#);
}

#[test]
fn a_syntax_error() {
    insta::assert_snapshot!(case(r#"[server]
workers = 
[site.":8080"
root = "www"
"#).errors(), @r#"
    error: syntax error: string values must be quoted, expected literal string
     --> beltway.toml:2:11
      |
    2 | workers = 
      |           ^

    error: syntax error: unclosed table, expected `]`
     --> beltway.toml:3:14
      |
    3 | [site.":8080"
      |              ^

    2 errors in the configuration
    "#);
}

#[test]
fn sends_without_a_copy_need_io_uring_and_direct_is_one_of_three() {
    let server = "[server]\nengine = \"epoll\"\nzerocopy = \"on\"\n";
    let site = "[site.\":8080\"]\nroot = \"www\"\ndirect = \"always\"\n";
    insta::assert_snapshot!(case(&[server, site].concat()).errors(), @r#"
    error: sends without a copy need io_uring
     --> beltway.toml:3:12
      |
    2 | engine = "epoll"
      | ------ this asks for epoll
    3 | zerocopy = "on"
      |            ^^^^ can't be on
      |
      = help: write zerocopy = "auto", or take the engine away

    error: `direct` needs "auto", true or false
     --> beltway.toml:6:10
      |
    6 | direct = "always"
      |          ^^^^^^^^ not this
      |
      = help: write it such as direct = true

    2 errors in the configuration
    "#);
}

#[test]
fn a_bad_set_and_a_bad_variable_and_a_bad_flag() {
    insta::assert_snapshot!(
        case(SITE)
            .set("server.workers=many")
            .set("server.wrokers=2")
            .set("workers")
            .set("server.drain_timeout=30")
            .variable("BELTWAY_SERVER_ENGINE", "uring2")
            .flag("--max-conns=", &["server", "max_conns"], FlagValue::Loose("0".into()))
            .errors(),
        @r#"
    error: `engine` can't be "uring2"
     |
     | BELTWAY_SERVER_ENGINE=uring2
     |                       ^^^^^^ unknown value
     |
     = help: did you mean "uring"?

    error: `workers` needs "auto" or a number from 1 to 1024
     |
     | --set server.workers=many
     |                      ^^^^ not this
     |
     = help: write it such as workers = 2

    error: there is no key `wrokers` in [server]
     |
     | --set server.wrokers=2
     |       ^^^^^^^^^^^^^^ unknown key
     |
     = help: did you mean `workers`?

    error: `=` and a value are missing
     |
     | --set workers
     |       ^^^^^^^
     |
     = help: write it such as --set server.workers=2 or --set 'site.":8080".list=true'

    error: `drain_timeout`: `30` has no unit
     |
     | --set server.drain_timeout=30
     |                            ^^
     |
     = help: write "30s" or "30ms"

    error: `max_conns` needs a number of at least 1
     |
     | --max-conns=0
     |             ^ not this
     |
     = help: write it such as max_conns = 10000

    6 errors in the configuration
    "#
    );
}

#[test]
fn an_include_that_is_not_found() {
    insta::assert_snapshot!(case(r#"include = ["site.toml", "conf.d/*.toml", "beltway.toml"]
"#).errors(), @r#"
    error: `site.toml` doesn't exist
     --> beltway.toml:1:12
      |
    1 | include = ["site.toml", "conf.d/*.toml", "beltway.toml"]
      |            ^^^^^^^^^^^
      |
      = help: check its name

    error: the directory `DIR/conf.d` doesn't exist
     --> beltway.toml:1:25
      |
    1 | include = ["site.toml", "conf.d/*.toml", "beltway.toml"]
      |                         ^^^^^^^^^^^^^^^
      |
      = help: file names are relative to the file that includes them

    error: `beltway.toml` is included twice
     --> beltway.toml:1:42
      |
    1 | include = ["site.toml", "conf.d/*.toml", "beltway.toml"]
      |                                          ^^^^^^^^^^^^^^
      |
      = help: include each file once; a file can't include itself

    3 errors in the configuration
    "#);
}

#[test]
fn a_file_that_is_not_found() {
    let mut case = case("");
    case.input.file = Some("other.toml".into());
    insta::assert_snapshot!(case.errors(), @r#"
    error: `other.toml` doesn't exist
     |
     = help: check its name
     = help: -c FILE names one; otherwise it is beltway.toml here, else /etc/beltway/beltway.toml
     = help: `beltway serve DIR` serves a directory without a configuration

    1 error in the configuration
    "#);
}

#[test]
fn hosts_and_addresses_that_collide() {
    insta::assert_snapshot!(case(r#"[site."a.example"]
respond = 200
aliases = ["b.example"]
[site."B.example"]
respond = 200
[site."127.0.0.1:80"]
respond = 200
"#).errors(), @r#"
    error: two sites answer for `b.example` on 0.0.0.0:80
     --> beltway.toml:4:7
      |
    3 | aliases = ["b.example"]
      |            ----------- first here
    4 | [site."B.example"]
      |       ^^^^^^^^^^^ again here
      |
      = help: take one away, or let one of them listen elsewhere

    error: 127.0.0.1:80 and 0.0.0.0:80 can't both be listened on
     --> beltway.toml:6:7
      |
    1 | [site."a.example"]
      |       ----------- includes it, or is included
    ...
    6 | [site."127.0.0.1:80"]
      |       ^^^^^^^^^^^^^^ this address
      |
      = help: listen on the same address in both, and tell sites apart by name

    2 errors in the configuration
    "#);
}

#[test]
fn a_name_without_quotes() {
    insta::assert_snapshot!(case(r#"[site.example.com]
root = "www"
"#).errors(), @r#"
    error: the dots in `example.com` part tables
     --> beltway.toml:1:15
      |
    1 | [site.example.com]
      |               ^^^ taken as a key of a site
      |
      = help: write the name in quotes: [site."example.com"]

    1 error in the configuration
    "#);
}

#[test]
fn two_answers_and_keys_that_do_nothing() {
    insta::assert_snapshot!(case(r#"[site.":1"]
root = "www"
redirect = "/x"
[site.":2"]
respond = 204
body = "x"
list = true
[site.":3"]
"#).errors(), @r#"
    error: `root` and `redirect` can't answer the same requests
     --> beltway.toml:3:1
      |
    2 | root = "www"
      | ---- the first answer
    3 | redirect = "/x"
      | ^^^^^^^^ the second answer
      |
      = help: take one away, or give it a route of its own

    error: an answer with status 204 has no body
     --> beltway.toml:6:1
      |
    6 | body = "x"
      | ^^^^
      |
      = help: take `body` away, or respond with 200

    error: `list` does nothing without `root`
     --> beltway.toml:7:1
      |
    7 | list = true
      | ^^^^
      |
      = help: name the directory with `root`, or take this away

    error: the site `:3` has nothing to answer with
     --> beltway.toml:8:7
      |
    8 | [site.":3"]
      |       ^^^^
      |
      = help: give it a `root`, a `proxy`, a `redirect`, a `respond` or `routes`

    4 errors in the configuration
    "#);
}

#[test]
fn fields_that_can_not_be_set() {
    insta::assert_snapshot!(case(r#"[site.":1"]
respond = 200
[site.":1".headers]
Content-Length = "1"
"X Y" = "1"
X-A = "a\nb"
x-a = "b"
X-B = 1
"#).errors(), @r#"
    error: the field `Content-Length` can't be changed
     --> beltway.toml:4:1
      |
    4 | Content-Length = "1"
      | ^^^^^^^^^^^^^^
      |
      = help: the server sets it itself; take this line away

    error: `X Y` is not a field name
     --> beltway.toml:5:1
      |
    5 | "X Y" = "1"
      | ^^^^^
      |
      = help: write a name such as X-Frame-Options, without a colon

    error: the value of a field has a control character
     --> beltway.toml:6:7
      |
    6 | X-A = "a\nb"
      |       ^^^^^^
      |
      = help: write it in one line

    error: the field `x-a` is set twice
     --> beltway.toml:7:1
      |
    6 | X-A = "a\nb"
      | --- first here
    7 | x-a = "b"
      | ^^^ again here
      |
      = help: the case of a field name makes no difference; take one away

    error: the field `X-B` needs a string
     --> beltway.toml:8:7
      |
    8 | X-B = 1
      |       ^ this is an integer
      |
      = help: write it such as X-B = "value"; "" removes it

    5 errors in the configuration
    "#);
}

#[test]
fn conditions_and_targets_that_are_wrong() {
    insta::assert_snapshot!(case(r#"[site.":1"]
respond = 200
[site.":1".routes]
"~^/(" = { respond = 200 }
"/a/*" = { redirect = "/b/{pth}", status = 200 }
"/b/*" = [{ respond = 200 }, { when = { method = ["get"], header = { A = 1 } }, respond = 201 }]
"#).errors(), @r#"
    error: the route `~^/(`: the regular expression is wrong: unclosed group
     --> beltway.toml:4:5
      |
    4 | "~^/(" = { respond = 200 }
      |     ^
      |
      = help: mend it here; a literal `.`, `(`, `[`, `{`, `+`, `?` or `*` needs `\` before it

    error: the target `/b/{pth}`: `{pth}` is not known here
     --> beltway.toml:5:27
      |
    5 | "/a/*" = { redirect = "/b/{pth}", status = 200 }
      |                           ^^^^^
      |
      = help: write {path}, {uri}, {query} or {host}, or give the pattern `/a/*` a group `(?<name>…)` and name that

    error: `status` needs 301, 302, 303, 307 or 308
     --> beltway.toml:5:44
      |
    5 | "/a/*" = { redirect = "/b/{pth}", status = 200 }
      |                                            ^^^ not this
      |
      = help: write it such as status = 308

    error: this alternative is never reached
     --> beltway.toml:6:30
      |
    6 | "/b/*" = [{ respond = 200 }, { when = { method = ["get"], header = { A = 1 } }, respond = 201 }]
      |           -----------------  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
      |           |
      |           without `when`, this one always answers
      |
      = help: give the earlier one a `when`, or put it at the end

    error: the method `get`: `get` never matches, because methods are case-sensitive
     --> beltway.toml:6:51
      |
    6 | "/b/*" = [{ respond = 200 }, { when = { method = ["get"], header = { A = 1 } }, respond = 201 }]
      |                                                   ^^^^^
      |
      = help: write `GET`

    error: the condition `A` needs a string
     --> beltway.toml:6:74
      |
    6 | "/b/*" = [{ respond = 200 }, { when = { method = ["get"], header = { A = 1 } }, respond = 201 }]
      |                                                                          ^ this is an integer
      |
      = help: write a value, in which * is anything, or "~expression"; true is any value, false is none

    6 errors in the configuration
    "#);
}

#[test]
fn no_site() {
    insta::assert_snapshot!(case("").errors(), @r#"
    error: there is no site
     |
     = help: write one such as [site.":8080"] with root = "/srv/www"
     = help: `beltway serve DIR` serves a directory without a file

    1 error in the configuration
    "#);
}

#[test]
fn what_the_supervisor_can_not_use() {
    insta::assert_snapshot!(case(&format!(r#"[server]
processes = 65
user = ""
group = 4294967295
sandbox = "strickt"
sandbox_read = ["missing", 1]
start_timeout = "99ms"
{SITE}listen = ["fd:", "fd:a:b"]
"#)).errors(), @r#"
    error: `processes` needs a number from 1 to 64
     --> beltway.toml:2:13
      |
    2 | processes = 65
      |             ^^ not this
      |
      = help: write it such as processes = 2

    error: `user` needs the name or the number of a user
     --> beltway.toml:3:8
      |
    3 | user = ""
      |        ^^ not this
      |
      = help: write it such as user = "www-data"

    error: `group` is out of range
     --> beltway.toml:4:9
      |
    4 | group = 4294967295
      |         ^^^^^^^^^^ out of range
      |
      = help: it has to be from 0 to 4294967294

    error: `sandbox` can't be "strickt"
     --> beltway.toml:5:11
      |
    5 | sandbox = "strickt"
      |           ^^^^^^^^^ unknown value
      |
      = help: did you mean "strict"?

    error: `DIR/missing` doesn't exist
     --> beltway.toml:6:17
      |
    6 | sandbox_read = ["missing", 1]
      |                 ^^^^^^^^^
      |
      = help: create it, or take it away

    error: `sandbox_read` needs a path or a list of paths
     --> beltway.toml:6:28
      |
    6 | sandbox_read = ["missing", 1]
      |                            ^ this is an integer
      |
      = help: write it such as sandbox_read = ["/srv/shared"]

    error: `start_timeout` is out of range
     --> beltway.toml:7:17
      |
    7 | start_timeout = "99ms"
      |                 ^^^^^^ out of range
      |
      = help: it has to be at least "100ms"

    error: `fd:` is not the name of a socket that is handed over
      --> beltway.toml:10:11
       |
    10 | listen = ["fd:", "fd:a:b"]
       |           ^^^^^
       |
       = help: write the FileDescriptorName= of the socket unit, such as "fd:web": 1 to 255 printable ASCII characters without a colon

    error: `fd:a:b` is not the name of a socket that is handed over
      --> beltway.toml:10:18
       |
    10 | listen = ["fd:", "fd:a:b"]
       |                  ^^^^^^^^
       |
       = help: write the FileDescriptorName= of the socket unit, such as "fd:web": 1 to 255 printable ASCII characters without a colon

    9 errors in the configuration
    "#);
}

#[test]
fn pollers_contradict_epoll_unpinned_threads_and_several_processes() {
    let errors = case(
        "[server]\nsqpoll = true\nengine = \"epoll\"\npin = false\nprocesses = 2\n\
         [site.\":8080\"]\nroot = \"www\"\n",
    )
    .errors();
    for told in [
        "`sqpoll` is a way to use io_uring, and `engine` is \"epoll\"\n --> beltway.toml:3:10",
        "`sqpoll` keeps threads on certain CPUs, and `pin` is false\n --> beltway.toml:4:7",
        "and `processes` is more than 1\n --> beltway.toml:5:13",
        "asked for here",
        "help: remove `sqpoll`, or set `engine` to \"auto\" or \"uring\"",
        "3 errors in the configuration",
    ] {
        assert!(errors.contains(told), "{told}\n{errors}");
    }
}

#[test]
fn pollers_without_a_contradiction_are_fine() {
    for server in [
        "sqpoll = true\nengine = \"uring\"\npin = true\nprocesses = 1\n",
        "sqpoll = false\nengine = \"epoll\"\npin = false\nprocesses = 2\n",
    ] {
        let text = format!("[server]\n{server}[site.\":8080\"]\nroot = \"www\"\n");
        let model = case(&text).model();
        assert_eq!(model.server.sqpoll, server.contains("sqpoll = true"));
    }
}
