//! What a configuration of backends means, and what is said when it is wrong.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{case, routes};
use crate::config::model::*;
use crate::config::{bundle, load};
use crate::http::types::Status;
use crate::net::tls::{Policy, Trust, test_pem as pem};
use crate::runtime::address::Address;

fn proxy(route: &Route) -> &Proxy {
    match &route.action {
        Action::Proxy(proxy) => proxy,
        other => panic!("not a proxy: {other:?}"),
    }
}

fn model(text: &str) -> Arc<Model> {
    case(text).loaded().model
}

/// Line, message and help of everything that is wrong.
fn said(text: &str) -> Vec<String> {
    let Err(diagnostics) = load(&case(text).input) else {
        panic!("nothing is wrong with {text}");
    };
    let list = diagnostics.to_json();
    let list = list.as_array().unwrap().iter().map(|one| {
        let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let help = one["help"][0].as_str().unwrap_or_default();
        format!("{}: {}: {help}", one["line"], text("message"))
    });
    list.collect()
}

#[test]
fn a_backend_is_asked_with_safe_defaults() {
    let model = model("[site.\":1\"]\nproxy = \"http://app.internal\"\n");
    let proxy = proxy(&model.sites[0].fallback);
    assert_eq!(&*proxy.upstream.name, "app.internal:80");
    assert_eq!(
        *proxy.upstream,
        Upstream::new(
            "app.internal:80",
            vec![UpstreamServer::new(ServerAddr::Name(
                "app.internal".into(),
                80
            ))]
        )
    );
    assert_eq!(
        format!("{proxy:?}"),
        format!("{:?}", Proxy::new(Arc::clone(&proxy.upstream)))
    );
    assert_eq!(model.upstreams.len(), 1);
    assert!(model.sites[0].trusted_proxies.is_empty());
    assert!(model.listeners[0].proxy_protocol.is_none());
}

#[test]
fn an_upstream_says_everything_about_its_servers() {
    let model = model(
        r#"
[upstream.app]
servers = [
    "10.0.0.1:3000",
    { address = "b:3000", weight = 5, max_conns = 7, backup = true, state = "down" },
]
max_conns = 100
balance = { algorithm = "hash", by = "header X-User", load = 125 }
source = ["192.0.2.10", "2001:db8::10"]
slow_start = "30s"
keepalive = { idle = 4, total = 8, timeout = "5s" }
queue = { size = 9, timeout = "1s" }
passive_health = { failures = false, error_rate = 20, share = 10, statuses = [500, "502-504"] }
breaker = { open = "1m" }
retry_budget = { share = 1, per_second = 2 }
resolve = { interval = "10s", family = "ipv4" }
[upstream.app.health]
path = "/up?x=1"
interval = "1s"
status = ["2xx", 304]
body = "ok"
host = "app.example:81"
[site.":1"]
proxy = "app"
"#,
    );
    let upstream = &model.upstreams[0];
    assert_eq!(&*upstream.name, "app");
    let [first, second] = &upstream.servers[..] else {
        panic!("two servers");
    };
    assert_eq!(first.max_conns.map(u32::from), Some(100));
    assert_eq!((first.weight.get(), first.state), (1, ServerState::Up));
    assert_eq!(second.max_conns.map(u32::from), Some(7));
    assert!(second.backup && second.weight.get() == 5 && second.state == ServerState::Down);
    assert_eq!(
        upstream.balance,
        Balance::Hash {
            by: HashKey::Header(crate::http::types::FieldName::Shared("X-User".into())),
            load_max: Some(125),
        }
    );
    assert_eq!(upstream.slow_start, Duration::from_secs(30));
    let towards = |text: &str| {
        upstream
            .source
            .towards(&Address::Tcp(text.parse().unwrap()))
    };
    assert_eq!(towards("10.0.0.1:1"), Some("192.0.2.10".parse().unwrap()));
    assert_eq!(towards("[::1]:1"), Some("2001:db8::10".parse().unwrap()));
    assert_eq!(
        upstream
            .source
            .towards(&Address::Unix(PathBuf::from("/a").into())),
        None
    );
    assert_eq!((upstream.keepalive.idle, upstream.keepalive.total), (4, 8));
    assert_eq!(upstream.queue.size, 9);
    let passive = upstream.passive.as_ref().unwrap();
    assert_eq!((passive.failures, passive.error_rate), (None, Some(20)));
    assert!(passive.statuses.contains(Status(500)) && !passive.statuses.contains(Status(501)));
    assert_eq!(upstream.breaker.unwrap().open, Duration::from_secs(60));
    assert_eq!(upstream.retry_budget.per_second, 2);
    assert_eq!(upstream.resolve.family, Family::V4);
    let health = upstream.health.as_ref().unwrap();
    // Never longer than the interval, whatever the default is.
    assert_eq!(health.timeout, Duration::from_secs(1));
    let Probe::Http {
        path,
        host,
        statuses,
        body,
    } = &health.probe
    else {
        panic!("asks over HTTP");
    };
    assert_eq!(
        (&**path, host.as_deref()),
        ("/up?x=1", Some("app.example:81"))
    );
    assert!(statuses.contains(Status(304)) && !statuses.contains(Status(302)));
    assert_eq!(body.as_deref(), Some(&b"ok"[..]));
}

#[test]
fn short_forms_mean_their_tables() {
    let upstream = |line: &str| {
        let text =
            format!("[upstream.a]\nservers = \"a:1\"\n{line}\n[site.\":1\"]\nproxy = \"a\"\n");
        Arc::clone(&model(&text).upstreams[0])
    };
    for (short, long) in [
        ("balance = \"hash\"", "balance = { algorithm = \"hash\" }"),
        ("balance = \"p2c\"", "balance = { algorithm = \"p2c\" }"),
        ("health = \"/up\"", "health = { path = \"/up\" }"),
        ("health = \"tcp\"", "health = { tcp = true }"),
        ("breaker = true", "breaker = {}"),
        ("passive_health = true", "passive_health = {}"),
        ("queue = false", "queue = { size = 0 }"),
        ("keepalive = false", "keepalive = { idle = 0, total = 0 }"),
        ("passive_health = { failures = 5 }", ""),
    ] {
        assert_eq!(upstream(short), upstream(long), "{short}");
    }
    assert!(upstream("passive_health = false").passive.is_none());
    assert!(upstream("health = false").health.is_none());
}

#[test]
fn a_route_has_from_its_site_what_it_does_not_say() {
    let model = model(
        r#"
[site.":1"]
proxy = ["a:1", "b:1"]
timeouts = { connect = "1s", head = "2s" }
retries = { tries = 5, statuses = [503] }
request_headers = { X-A = "a", X-B = "b" }
buffer = { request = "1MiB" }
[site.":1".routes]
"/api/*"   = { strip_prefix = true, timeout = "15s", request_headers = { x-b = "", "+X-A" = "c" } }
"/events"  = { timeouts = { read = false, total = "1h" }, buffer = false, retries = false }
"/v2/*"    = { proxy = ["a:1", "b:1"], rewrite = "/new/{path}", upstream_host = "upstream", retries = 1 }
"/ws"      = { upgrade = false, buffer = { response = "64KiB", spill = "www" }, send_proxy_protocol = "v1" }
"/files/*" = { root = "www" }
"/deep/*"  = { strip_prefix = "/deep/er/", retries = { non_idempotent = true } }
"#,
    );
    let site = &model.sites[0];
    let of = |pattern: &str| proxy(&routes(site, pattern)[0]);
    let api = of("/api/*");
    assert!(Arc::ptr_eq(&api.upstream, &proxy(&site.fallback).upstream));
    assert!(matches!(&api.path, PathRule::Strip(prefix) if &**prefix == "/api"));
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs());
    assert_eq!(api.timeouts.connect, Duration::from_secs(1));
    assert_eq!(seconds(api.timeouts.head), Some(15));
    assert_eq!(seconds(api.timeouts.read), Some(15));
    let fields: Vec<String> = api
        .request_headers
        .iter()
        .map(|operation| match operation {
            HeaderOp::Set(name, value) => {
                format!(
                    "{}={}",
                    name.as_str(),
                    String::from_utf8_lossy(value.as_bytes())
                )
            }
            HeaderOp::Append(name, value) => {
                format!(
                    "+{}={}",
                    name.as_str(),
                    String::from_utf8_lossy(value.as_bytes())
                )
            }
            HeaderOp::Remove(name) => format!("-{}", name.as_str()),
        })
        .collect();
    assert_eq!(fields, ["-x-b", "X-A=a", "+X-A=c"]);
    let events = of("/events");
    assert_eq!(events.timeouts.read, None);
    assert_eq!(seconds(events.timeouts.head), Some(2));
    assert_eq!(seconds(events.timeouts.total), Some(3600));
    assert_eq!(events.buffer, Buffer::default());
    assert_eq!(events.retries.tries, 1);
    let v2 = of("/v2/*");
    assert!(
        Arc::ptr_eq(&v2.upstream, &api.upstream),
        "the same servers are one upstream"
    );
    assert!(matches!(&v2.path, PathRule::Rewrite { of_site: false, .. }));
    assert_eq!(v2.host, HostRule::Upstream);
    assert_eq!(v2.retries.tries, 2);
    let ws = of("/ws");
    assert!(!ws.upgrade && ws.send_proxy_protocol == Some(ProxyProtocol::V1));
    assert_eq!(
        (ws.buffer.request, ws.buffer.response),
        (Some(1 << 20), Some(64 << 10))
    );
    assert_eq!(ws.buffer.spill.as_ref().unwrap().size_max, 1 << 30);
    assert_eq!(model.spill_directories().len(), 1);
    let deep = of("/deep/*");
    assert!(matches!(&deep.path, PathRule::Strip(prefix) if &**prefix == "/deep/er"));
    assert!(deep.retries.non_idempotent && deep.retries.tries == 5);
    assert!(deep.retries.statuses.contains(Status(503)));
    assert!(matches!(
        routes(site, "/files/*")[0].action,
        Action::Files(_)
    ));
    assert_eq!(model.upstreams.len(), 1);
}

#[test]
fn a_sticky_cookie_is_signed_with_a_secret_that_nobody_sees() {
    let case = case(
        "[upstream.a]\nservers = \"a:1\"\n\
         balance = { algorithm = \"sticky\", secret = \"${S}\", max_age = \"1d\", secure = true }\n\
         [site.\":1\"]\nproxy = \"a\"\n",
    )
    .variable("S", "hunter2-hunter2-hunter2");
    let loaded = case.loaded();
    let Balance::Sticky(sticky) = &loaded.model.upstreams[0].balance else {
        panic!("sticky");
    };
    assert_eq!(sticky.secret.as_bytes(), b"hunter2-hunter2-hunter2");
    assert_eq!(&*sticky.cookie, "beltway");
    assert_eq!(sticky.max_age, Some(Duration::from_secs(86_400)));
    assert!(sticky.secure && sticky.otherwise == Spread::RoundRobin);
    assert!(!format!("{:?}", loaded.model).contains("hunter2"));
}

#[test]
fn whose_word_is_taken_is_said_for_all_or_for_a_site() {
    let model = model(
        "[server]\ntrusted_proxies = [\"10.0.0.0/8\", \"unix\"]\n\
         [site.\"a.example\"]\nrespond = 200\nlisten = [\"unix:/a\"]\nproxy_protocol = \"unix\"\n\
         [site.\"b.example\"]\nrespond = 200\ntrusted_proxies = \"192.0.2.1\"\nlisten = [\"unix:/a\"]\n\
         proxy_protocol = { from = [\"unix\"] }\n\
         [site.\"c.example\"]\nrespond = 200\ntrusted_proxies = []\n",
    );
    let ten = "10.1.2.3".parse().ok();
    let trusts = |site: usize, peer| model.sites[site].trusted_proxies.contains(peer);
    assert!(trusts(0, ten) && trusts(0, None));
    assert!(!trusts(1, ten) && trusts(1, "192.0.2.1".parse().ok()));
    assert!(!trusts(2, ten) && !trusts(2, None));
    assert!(
        model.listeners[0]
            .proxy_protocol
            .as_ref()
            .unwrap()
            .contains(None)
    );
    assert!(model.listeners[1].proxy_protocol.is_none());
}

#[test]
fn error_pages_of_a_proxied_site_have_a_directory_of_their_own() {
    let case = case(
        "[site.\":1\"]\nproxy = \"a:1\"\nerror_pages = { 5xx = \"${D}/www/errors/404.html\" }\n",
    );
    let directory = case.input.directory.display().to_string();
    let case = case.variable("D", &directory);
    let model = case.loaded().model;
    let page = model.sites[0]
        .fallback
        .error_pages
        .find(Status(502))
        .unwrap();
    assert_eq!(page.files.root, case.root().join("errors"));
    assert_eq!(&*page.path, "/404.html");
    assert_eq!(
        said("[site.\":1\"]\nproxy = \"a:1\"\nerror_pages = { 502 = \"502.html\" }\n"),
        [
            "3: without a `root`, the page of 502 needs an absolute path: write it such as \
          \"/srv/errors/502.html\", or name the directory with `root`"
        ]
    );
}

#[test]
fn backends_that_are_none_are_told_all_at_once() {
    let text = r#"
[upstream.app]
servers = ["10.0.0.1:3000", "10.0.0.1:3000", "ftp://b", { weight = 2 }, { address = "c:1", weigth = 2 }]
[upstream.empty]
servers = []
[upstream.none]
[upstream."a:b"]
servers = ["a:1"]
[upstream.spare]
servers = [{ address = "a:1", backup = true }]
[site.":1".routes]
"/a" = { proxy = "ap" }
"/b" = { proxy = "3000" }
"/c" = { proxy = ["app", "d:1"] }
"/d" = { proxy = "10.0.0.1" }
"/e" = { proxy = "app" }
"/f" = { proxy = "whatever" }
"#;
    assert_eq!(
        said(text),
        [
            "3: the server 10.0.0.1:3000 is named twice: take one away; `weight` gives a server a larger share",
            "3: backends are not asked over `ftp`: write it such as \"10.0.0.1:3000\", \"app.internal:3000\", \":3000\" or \"unix:/run/app.sock\"",
            "3: this server has no address: write it such as { address = \"10.0.0.2:3000\", weight = 2 }",
            "3: there is no key `weigth` in a server of an upstream: did you mean `weight`?",
            "5: `servers` needs a list of addresses: write it such as servers = [\"10.0.0.1:3000\", { address = \"10.0.0.2:3000\", weight = 2 }, \"unix:/run/app.sock\"]",
            "6: the upstream `none` has no servers: write servers = [\"10.0.0.1:3000\"] in it",
            "7: `a:b` is not a name of an upstream: write up to 64 letters, digits, `-`, `_` and `.`, such as [upstream.app]",
            "10: all servers are backups: take `backup` away from one at least",
            "12: there is no upstream `ap`: did you mean \"app\"?",
            "13: there is no upstream `3000`: write \":3000\" for that port on this machine",
            "14: `app` is an upstream, and addresses belong here: write proxy = \"app\" for its servers, or name them here",
            "15: the port is missing: write \"10.0.0.1:3000\"",
            "17: there is no upstream `whatever`: the upstreams are app, empty, none, a:b, spare; an address has a port: \"whatever:80\"",
        ]
    );
}

#[test]
fn options_of_upstreams_that_are_wrong() {
    let line = |line: &str| {
        said(&format!(
            "[upstream.a]\nservers = \"a:1\"\n{line}\n[site.\":1\"]\nproxy = \"a\"\n"
        ))
    };
    for (written, says) in [
        (
            "balance = \"least_con\"",
            "3: `balance` can't be \"least_con\": did you mean \"least-conn\"?",
        ),
        (
            "balance = \"sticky\"",
            "3: \"sticky\" needs a secret: write balance = { algorithm = \"sticky\", secret = \"${NAME}\" }",
        ),
        (
            "balance = { algorithm = \"sticky\" }",
            "3: \"sticky\" needs a secret: write secret = \"file:/etc/beltway/sticky\" or secret = \"${NAME}\"; `openssl rand -hex 32` makes one",
        ),
        (
            "balance = { algorithm = \"sticky\", secret = \"short\" }",
            "3: the secret has fewer than 16 bytes: make one with `openssl rand -hex 32`",
        ),
        (
            "balance = { by = \"path\" }",
            "3: `by` does nothing without \"hash\": write algorithm = \"hash\", or take this away",
        ),
        (
            "balance = { algorithm = \"hash\", by = \"header\" }",
            "3: `by` needs \"client\", \"path\", \"header NAME\" or \"cookie NAME\": write it such as by = \"header X-User\"",
        ),
        (
            "health = { interval = \"1s\" }",
            "3: `health` doesn't say what to ask for: write path = \"/healthz\", or tcp = true, in it",
        ),
        (
            "health = \"healthz\"",
            "3: `healthz` is not a path to ask for: begin it with a slash, and percent-encode it, such as \"/healthz\"",
        ),
        (
            "health = { tcp = true, body = \"ok\" }",
            "3: `body` does nothing with `tcp`: take it away, or `tcp`",
        ),
        (
            "health = { tcp = true, timeout = \"9s\" }",
            "3: `timeout` is out of range: it has to be at most `interval`",
        ),
        (
            "health = { path = \"/\", status = [\"5yy\"] }",
            "3: `status` has something that is no status: write a number from 200 to 599, a class such as \"5xx\", or a range such as \"502-504\"",
        ),
        (
            "passive_health = { eject_max = \"1s\" }",
            "3: `eject_max` is out of range: it has to be at least `eject`",
        ),
        (
            "keepalive = true",
            "3: `keepalive` needs a table or false: write it such as keepalive = { idle = 64 }",
        ),
        (
            "source = \"10.0.0.1:80\"",
            "3: `10.0.0.1:80` is not an IP address: write an address of this machine, such as \
             source = \"192.0.2.10\", or one of each family, source = [\"192.0.2.10\", \
             \"2001:db8::10\"]",
        ),
        (
            "source = [\"10.0.0.1\", \"10.0.0.2\"]",
            "3: `10.0.0.2` is the second address of its family: write an address of this machine, \
             such as source = \"192.0.2.10\", or one of each family, source = [\"192.0.2.10\", \
             \"2001:db8::10\"]",
        ),
        (
            "source = \"0.0.0.0\"",
            "3: `0.0.0.0` is the address of no interface: write an address of this machine, such as \
             source = \"192.0.2.10\", or one of each family, source = [\"192.0.2.10\", \
             \"2001:db8::10\"]",
        ),
        (
            "max_conns = 0",
            "3: `max_conns` needs a number from 1 to 1000000: write it such as max_conns = 200",
        ),
    ] {
        assert_eq!(line(written), [says], "{written}");
    }
}

#[test]
fn options_of_routes_that_are_wrong() {
    let line = |line: &str| said(&format!("[site.\":1\"]\nproxy = \"a:1\"\n{line}\n"));
    for (written, says) in [
        (
            "strip_prefix = true",
            "3: a site has no prefix of its own: write the prefix, such as strip_prefix = \"/api\"",
        ),
        (
            "strip_prefix = \"/\"",
            "3: `strip_prefix` needs true, false or a path: write it such as strip_prefix = \"/api\"",
        ),
        (
            "strip_prefix = \"/a\"\nrewrite = \"/b\"",
            "4: `strip_prefix` and `rewrite` both say what the path becomes: take one away; {path} in `rewrite` is what the route's `*` matched",
        ),
        (
            "rewrite = \"http://b/\"",
            "3: `http://b/` is not a path to ask a backend for: begin it with a slash, and leave out host and fragment: \"/v2/{path}\"",
        ),
        (
            "request_headers = { host = \"a\" }",
            "3: the field `Host` can't be changed: write upstream_host = \"NAME\" instead",
        ),
        (
            "request_headers = { \"+Content-Length\" = \"1\" }",
            "3: the field `Content-Length` can't be changed: the server sets it itself; take this line away",
        ),
        (
            "upstream_host = \"*.a\"",
            "3: `*.a` is not one host: write a host such as \"app.internal\", \"keep\" or \"upstream\"",
        ),
        (
            "timeouts = { connect = false }",
            "3: `connect` needs a duration such as \"10s\": write it such as connect = \"5s\"",
        ),
        (
            "retries = 10",
            "3: `retries` is out of range: it has to be from 0 to 9",
        ),
        (
            "retries = { statuses = [200] }",
            "3: `statuses` has something that is no status: write a number from 400 to 599, a class such as \"5xx\", or a range such as \"502-504\"",
        ),
        (
            "buffer = { request = \"1B\" }",
            "3: `request` is out of range: it has to be from \"1KiB\" to \"1GiB\"",
        ),
        (
            "buffer = { spill = \"www\" }",
            "3: `spill` does nothing without `request`: say how much stays in memory, with `request` or `response`",
        ),
        (
            "buffer = { request = \"1MiB\", spill_limit = \"1GiB\" }",
            "3: `spill_limit` does nothing without `spill`: name the directory with `spill`",
        ),
        (
            "send_proxy_protocol = \"v3\"",
            "3: `send_proxy_protocol` can't be \"v3\": did you mean \"v1\"?",
        ),
        (
            "trusted_proxies = \"10.0.0.1/8\"",
            "3: `10.0.0.1/8` has bits behind its prefix: write \"10.0.0.0/8\", or \"10.0.0.1\" for that one alone",
        ),
        (
            "proxy_protocol = {}",
            "3: `proxy_protocol` names no peers: write proxy_protocol = { from = [\"10.0.0.0/8\"] }",
        ),
        (
            "root = \"www\"",
            "3: `proxy` and `root` can't answer the same requests: take one away, or give it a route of its own",
        ),
    ] {
        assert_eq!(line(written), [says], "{written}");
    }
    assert_eq!(
        said("[site.\":1\"]\nrespond = 200\ntimeout = \"1s\"\n"),
        [
            "3: `timeout` does nothing without `proxy`: name the backend with `proxy`, or take this away"
        ]
    );
}

#[test]
fn sites_of_one_address_agree_about_proxy_headers() {
    let text = "[site.\"a.example\"]\nrespond = 200\nproxy_protocol = { from = \"10.0.0.0/8\" }\n\
                [site.\"b.example\"]\nrespond = 200\n\
                [site.\"c.example\"]\nrespond = 200\nlisten = [\":81\"]\n";
    insta::assert_snapshot!(load(&case(text).input).unwrap_err().render(false), @r#"
    error: two sites on 0.0.0.0:80 expect PROXY headers from different peers
     --> beltway.toml:4:7
      |
    3 | proxy_protocol = { from = "10.0.0.0/8" }
      | -------------- the first site
    4 | [site."b.example"]
      |       ^^^^^^^^^^^ not as the first site
      |
      = help: the header comes before a site is known: write the same `proxy_protocol` in both, or let one of them listen elsewhere

    1 error in the configuration
    "#);
}

/// Configurations as people will write them, whole.
#[test]
fn whole_configurations_are_understood() {
    for (name, text) in [
        ("one backend", include_str!("../../../conf/proxy.toml")),
        (
            "several with checks",
            include_str!("../../../conf/load-balancing.toml"),
        ),
        ("WebSocket", include_str!("../../../conf/websocket.toml")),
        (
            "behind another proxy",
            include_str!("../../../conf/behind-a-load-balancer.toml"),
        ),
        (
            "canary by weight",
            include_str!("../../../conf/canary.toml"),
        ),
        (
            "blue and green",
            include_str!("../../../conf/blue-green.toml"),
        ),
    ] {
        let mut case = case(text);
        case.input.check_files = false;
        if let Err(diagnostics) = load(&case.input) {
            panic!("{name}: {}", diagnostics.render(false));
        }
    }
}

/// An upstream with these lines, and what a certificate and its key are called in its directory.
fn secured(lines: &str) -> super::Case {
    let case = case(&format!(
        "[upstream.a]\n{lines}\n[site.\":1\"]\nproxy = \"a\"\n"
    ));
    let [certificate, key] = pem(&["a.example"], &rcgen::PKCS_ECDSA_P256_SHA256);
    let directory = &case.input.directory;
    for (name, text) in [
        ("a.pem", &certificate),
        ("a.key", &key),
        ("none.pem", &String::new()),
    ] {
        std::fs::write(directory.join(name), text).unwrap();
    }
    let path = directory.join("a.pem").display().to_string();
    // Whatever this machine believes.
    case.variable("SSL_CERT_FILE", &path)
}

#[test]
fn a_server_is_under_tls_by_its_address_or_by_its_upstream() {
    let told = |lines: &str| {
        let model = secured(lines).loaded().model;
        let upstream = Arc::clone(&model.upstreams[0]);
        let of = |at: usize| upstream.peer_name(at).map(|name| name.to_string());
        let names: Vec<_> = (0..upstream.servers.len()).map(of).collect();
        (names, upstream)
    };
    let some = |name: &str| Some(name.to_owned());
    let (names, upstream) = told("servers = [\"https://b\", \"c:1\", \"https://10.0.0.1:8443\"]");
    assert_eq!(names, [some("b"), None, some("10.0.0.1")]);
    let terms = &upstream.tls.as_ref().unwrap().terms;
    assert!(matches!(&terms.trust, Trust::Roots(roots) if roots.count() == 1));
    assert_eq!(terms.policy, Policy::Intermediate);
    assert!(terms.tells_name && terms.identity.is_none());
    let (names, _) = told("servers = [\"b:1\", \"http://c:1\"]\ntls = true");
    assert_eq!(names, [some("b"), None]);
    let (names, upstream) = told(
        "servers = [\"unix:/run/a.sock\", \"srv:_a._tcp.b\", { address = \"https://c\" }]\n\
         tls = { name = \"d.example\", ca = \"a.pem\", cert = \"a.pem\", key = \"a.key\", sni = false, \
         policy = \"modern\" }",
    );
    assert_eq!(
        names,
        [some("d.example"), some("d.example"), some("d.example")]
    );
    let terms = &upstream.tls.as_ref().unwrap().terms;
    assert!(terms.identity.is_some() && !terms.tells_name);
    assert_eq!(terms.policy, Policy::Modern);
    let (names, upstream) = told("servers = \"b:1\"\ntls = false");
    assert_eq!((names, &upstream.tls), (vec![None], &None));
    let model = secured("servers = \"https://b\"\ntls = { insecure = true }")
        .loaded()
        .model;
    assert!(
        model.warnings[0].contains("insecure = true: nobody verifies"),
        "{:?}",
        model.warnings
    );
    let trust = &model.upstreams[0].tls.as_ref().unwrap().terms.trust;
    assert_eq!(*trust, Trust::Anybody);
    // Host says what a client would, without the port of https.
    let server = &model.upstreams[0].servers[0];
    let address = Address::Tcp("10.0.0.1:443".parse().unwrap());
    assert_eq!(server.authority(&address), "b");
}

#[test]
fn what_is_wrong_with_tls_to_servers() {
    for (lines, says) in [
        (
            "servers = \"unix:/a\"\ntls = true",
            "2: `unix:/a` doesn't say whose certificate the server has",
        ),
        (
            "servers = \"https://a\"\ntls = false",
            "2: `tls` of this upstream is false",
        ),
        (
            "servers = \"http://a\"\ntls = true",
            "3: `tls` does nothing: every server begins with `http://`",
        ),
        (
            "servers = \"a:1\"\ntls = { cert = \"a.pem\" }",
            "3: `tls` has no `key`",
        ),
        (
            "servers = \"a:1\"\ntls = { name = \"a b\" }",
            "3: `a b` is neither the name of a host nor an address",
        ),
        (
            "servers = \"a:1\"\ntls = { ca = \"none.pem\" }",
            "holds no certificate of an authority in PEM",
        ),
        (
            "servers = \"a:1\"\ntls = { ca = \"missing.pem\" }",
            "missing.pem` ",
        ),
        (
            "servers = \"a:1\"\ntls = { ca = \"a.pem\", insecure = true }",
            "3: `ca` does nothing with `insecure`",
        ),
        (
            "servers = \"a:1\"\ntls = { verify = false }",
            "3: there is no key `verify` in `tls` of an upstream",
        ),
    ] {
        let errors = secured(lines).errors();
        let first = says.split_once(": ").map_or(says, |(_, text)| text);
        assert!(errors.contains(first), "{lines}\n{errors}");
    }
}

#[test]
fn certificates_to_servers_come_along_in_a_bundle_and_tell_a_change() {
    let case = secured("servers = \"https://b\"\ntls = { ca = \"a.pem\" }");
    let loaded = case.loaded();
    let packed = bundle::pack(&loaded).unwrap();
    std::fs::remove_file(case.input.directory.join("a.pem")).unwrap();
    let again = bundle::unpack(&packed).unwrap();
    assert_eq!(again.model.upstreams[0], loaded.model.upstreams[0]);
    let other = secured("servers = \"https://b\"\ntls = { ca = \"a.pem\" }").loaded();
    assert_ne!(
        other.model.upstreams[0], loaded.model.upstreams[0],
        "another authority"
    );
}
