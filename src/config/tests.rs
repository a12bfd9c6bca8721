//! What a configuration means. `wrong` has what is said when it is wrong.

mod proxy;
mod wrong;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use super::model::*;
use super::schema::Section;
use super::sources::{FlagValue, Input, Setting};
use super::{Loaded, load};
use crate::http::types::Status;

/// A configuration in a directory of its own, with `www` as a directory to serve.
pub(super) struct Case {
    directory: tempfile::TempDir,
    pub(super) input: Input,
}

pub(super) fn case(text: &str) -> Case {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("beltway.toml"), text).unwrap();
    fs::create_dir_all(directory.path().join("www/errors")).unwrap();
    fs::write(directory.path().join("www/index.html"), "home").unwrap();
    fs::write(directory.path().join("www/errors/404.html"), "lost").unwrap();
    Case {
        input: Input {
            file: Some("beltway.toml".into()),
            directory: directory.path().canonicalize().unwrap(),
            check_files: true,
            ..Input::default()
        },
        directory,
    }
}

impl Case {
    pub(super) fn file(self, name: &str, text: &str) -> Self {
        let path = self.directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    pub(super) fn set(mut self, text: &str) -> Self {
        self.input.settings.push(Setting::Set(text.into()));
        self
    }

    fn flag(mut self, flag: &str, path: &[&str], value: FlagValue) -> Self {
        self.input.settings.push(Setting::Flag {
            flag: flag.into(),
            path: path.iter().map(|key| (*key).to_owned()).collect(),
            value,
        });
        self
    }

    pub(super) fn variable(mut self, name: &str, value: &str) -> Self {
        self.input.environment.insert(name.into(), value.into());
        self
    }

    pub(super) fn loaded(&self) -> Loaded {
        match load(&self.input) {
            Ok(loaded) => loaded,
            Err(diagnostics) => panic!("{}", diagnostics.render(false)),
        }
    }

    fn model(&self) -> std::sync::Arc<Model> {
        self.loaded().model
    }

    /// What is said, without the directory that differs in each run.
    pub(super) fn errors(&self) -> String {
        let Err(diagnostics) = load(&self.input) else {
            panic!("nothing is wrong");
        };
        let directory = self.input.directory.display().to_string();
        diagnostics.render(false).replace(&directory, "DIR")
    }

    fn root(&self) -> std::path::PathBuf {
        self.input.directory.join("www")
    }
}

const SITE: &str = "[site.\":8080\"]\nroot = \"www\"\n";

fn files(route: &Route) -> &Files {
    match &route.action {
        Action::Files(files) => files,
        other => panic!("not files: {other:?}"),
    }
}

/// The alternatives of the route that was written as `pattern`.
fn routes<'m>(site: &'m Site, pattern: &str) -> &'m [std::sync::Arc<Route>] {
    site.router
        .iter()
        .find(|(known, _)| known.as_str() == pattern)
        .map(|(_, routes)| routes.as_slice())
        .expect("the route is there")
}

#[test]
fn a_site_by_port_serves_files_to_any_host_with_safe_defaults() {
    let case = case(SITE);
    let model = case.model();
    let addresses: Vec<_> = model
        .listeners
        .iter()
        .map(|l| l.address.to_string())
        .collect();
    assert_eq!(addresses, ["0.0.0.0:8080", "[::]:8080"]);
    assert!(matches!(
        model.listeners[1].address,
        ListenAddr::Tcp {
            companion: true,
            ..
        }
    ));
    assert_eq!(model.listeners[0].sites.find("any.example"), Some(&0));
    let files = files(&model.sites[0].fallback);
    assert_eq!(files.root, case.root());
    assert_eq!(files.index, ["index.html"]);
    assert!(!files.list && !files.hidden_files && files.spa.is_none());
    assert!(files.etag && files.range);
    assert_eq!(files.symlinks, Symlinks::Beneath);
    assert_eq!(model.server, Server::default());
}

#[test]
fn names_aliases_and_ports_lead_to_their_sites() {
    let case = case(
        "[site.\"example.com\"]\ntls = false\naliases = [\"*.example.com\"]\nroot = \"www\"\n\
         [site.\"other.example\"]\nrespond = 404\n\
         [site.\"*\"]\nrespond = 421\nlisten = [\":80\", \"unix:/run/b.sock\"]\n",
    );
    let model = case.model();
    assert_eq!(model.listeners.len(), 3);
    let find = |host| model.listeners[0].sites.find(host).copied();
    assert_eq!(find("example.com"), Some(0));
    assert_eq!(find("www.example.com"), Some(0));
    assert_eq!(find("other.example"), Some(1));
    assert_eq!(find("unknown"), Some(2));
    assert_eq!(model.listeners[2].sites.find("example.com"), Some(&2));
    assert_eq!(model.listeners[2].place.line, 9);
}

#[test]
fn routes_inherit_from_their_site() {
    let case = case(
        r#"
[site.":8080"]
root = "www"
cache_control = "no-cache"
error_pages = { 404 = "errors/404.html" }

[site.":8080".headers]
X-Site = "yes"
X-Gone = "soon"

[site.":8080".routes]
"/assets/*" = { cache_control = "max-age=60", headers = { x-gone = "", X-Route = "a" } }
"/list/*"   = { list = true }
"/old/*"    = { redirect = "/new/{path}", status = 308 }
"=/healthz" = { respond = 200, body = "ok" }
"/api/*"    = [
    { when = { method = ["GET"] }, respond = 200, body = "{}", content_type = "application/json" },
    { respond = 405 },
]
"#,
    );
    let model = case.model();
    let site = &model.sites[0];
    let assets = &routes(site, "/assets/*")[0];
    assert_eq!(files(assets).root, case.root());
    assert_eq!(
        assets.cache_control.as_ref().map(|v| v.as_bytes()),
        Some(&b"max-age=60"[..])
    );
    let operations: Vec<_> = assets
        .headers
        .iter()
        .map(|operation| match operation {
            HeaderOp::Set(name, _) => format!("+{}", name.as_str()),
            HeaderOp::Remove(name) => format!("-{}", name.as_str()),
            HeaderOp::Append(name, _) => format!("++{}", name.as_str()),
        })
        .collect();
    assert_eq!(operations, ["-x-gone", "+X-Site", "+X-Route"]);
    assert!(files(&routes(site, "/list/*")[0]).list);
    assert!(!files(&site.fallback).list);
    assert!(matches!(
        routes(site, "/old/*")[0].action,
        Action::Redirect {
            status: Status(308),
            of_site: false,
            ..
        }
    ));
    let Action::Respond {
        status,
        body,
        content_type,
    } = &routes(site, "=/healthz")[0].action
    else {
        panic!("responds");
    };
    assert_eq!((*status, &**body), (Status(200), &b"ok"[..]));
    assert!(content_type.is_some());
    let api = routes(site, "/api/*");
    assert!(api[0].when.is_some() && api[1].when.is_none());
    let page = api[1]
        .error_pages
        .find(Status(404))
        .expect("it is inherited");
    assert_eq!(&*page.path, "/errors/404.html");
    assert!(api[1].error_pages.find(Status(500)).is_none());
}

#[test]
fn the_nearer_source_wins() {
    let text = format!("[server]\nworkers = 1\nmax_conns = 5\ndrain_timeout = \"1s\"\n{SITE}");
    let model = case(&text)
        .variable("BELTWAY_SERVER_WORKERS", "2")
        .variable("BELTWAY_SERVER_MAX_CONNS", "6")
        .variable("BELTWAY_SERVER_LIMITS_HEADER_FIELDS", "7")
        .set("server.workers=3")
        .flag(
            "--drain=",
            &["server", "drain_timeout"],
            FlagValue::Text("2m".into()),
        )
        .model();
    assert_eq!(model.server.workers, Workers::Count(3.try_into().unwrap()));
    assert_eq!(model.server.max_conns, 6.try_into().ok());
    assert_eq!(model.server.limits.header_fields, 7);
    assert_eq!(model.server.drain_timeout, Duration::from_secs(120));
}

#[test]
fn included_files_add_sites_and_have_paths_of_their_own() {
    let case = case("include = [\"sites/*.toml\", \"more.toml\"]\n")
        .file("sites/a.toml", "[site.\"a.example\"]\nroot = \"../www\"\n")
        .file("sites/b.toml", "[site.\"b.example\"]\nroot = \"web\"\n")
        .file("sites/web/index.html", "b")
        .file("more.toml", "[server]\nworkers = 1\n");
    let model = case.model();
    assert_eq!(model.sites.len(), 2);
    assert_eq!(
        files(&model.sites[1].fallback).root,
        case.input.directory.join("sites/web")
    );
    assert_eq!(model.server.workers, Workers::Count(1.try_into().unwrap()));
}

#[test]
fn secrets_come_from_the_environment_and_from_files() {
    let case = case(
        "[site.\":1\"]\nrespond = 200\nbody = \"file:token\"\n\
         headers = { A = \"${TOKEN}\", B = \"x-${NONE:-y}\", C = \"$${TOKEN}\" }\n",
    )
    .file("token", "secret\n")
    .variable("TOKEN", "t");
    let model = case.model();
    let route = &model.sites[0].fallback;
    let values: Vec<_> = route
        .headers
        .iter()
        .map(|operation| match operation {
            HeaderOp::Set(_, value) | HeaderOp::Append(_, value) => {
                String::from_utf8_lossy(value.as_bytes()).into_owned()
            }
            HeaderOp::Remove(_) => String::new(),
        })
        .collect();
    assert_eq!(values, ["t", "x-y", "${TOKEN}"]);
    assert!(matches!(&route.action, Action::Respond { body, .. } if &**body == b"secret"));
}

#[test]
fn a_single_page_application_never_swallows_a_missing_script() {
    use crate::http::types::Method;
    let model = case(&format!("{SITE}spa = true\n")).model();
    let files = files(&model.sites[0].fallback);
    for (method, path, answers) in [
        (Method::Get, "/users/7", true),
        (Method::Head, "/", true),
        (Method::Get, "/v1.2/users", true),
        (Method::Get, "/app.js", false),
        (Method::Get, "/users/photo.png", false),
        (Method::Post, "/users/7", false),
    ] {
        assert_eq!(files.spa_answers(&method, path), answers, "{path}");
    }
}

#[test]
fn every_key_of_the_list_is_read() {
    for (section, head) in [
        (Section::Top, ""),
        (Section::Server, "[server]\n"),
        (Section::Limits, "[server.limits]\n"),
        (Section::Timeouts, "[server.timeouts]\n"),
        (Section::Site, "[site.\":1\"]\n"),
        (Section::Route, "[site.\":1\".routes.\"/a\"]\n"),
        (Section::When, "[site.\":1\".routes.\"/a\".when]\n"),
        (Section::ProxyTimeouts, "[site.\":1\".timeouts]\n"),
        (Section::Retries, "[site.\":1\".retries]\n"),
        (Section::Buffer, "[site.\":1\".buffer]\n"),
        (Section::ProxyProtocol, "[site.\":1\".proxy_protocol]\n"),
        (Section::Tls, "[site.\":1\".tls]\n"),
        (Section::Clients, "[site.\":1\".client_certificates]\n"),
        (Section::Upstream, "[upstream.a]\n"),
        (Section::UpstreamTls, "[upstream.a.tls]\n"),
        (Section::Backend, "[[upstream.a.servers]]\n"),
        (Section::Balance, "[upstream.a.balance]\n"),
        (Section::Keepalive, "[upstream.a.keepalive]\n"),
        (Section::Queue, "[upstream.a.queue]\n"),
        (Section::Passive, "[upstream.a.passive_health]\n"),
        (Section::Health, "[upstream.a.health]\n"),
        (Section::Breaker, "[upstream.a.breaker]\n"),
        (Section::RetryBudget, "[upstream.a.retry_budget]\n"),
        (Section::Resolve, "[upstream.a.resolve]\n"),
    ] {
        for key in section.keys() {
            // No key takes a date.
            let errors = case(&format!("{head}{} = 2026-01-01\n", key.name)).errors();
            let named = errors.contains(&format!("`{}`", key.name));
            assert!(named && !errors.contains("there is no key"), "{errors}");
        }
    }
}

#[test]
fn every_example_of_the_list_is_right() {
    for key in Section::Site.keys() {
        let beside = match key.name {
            "root" | "redirect" | "respond" | "proxy" => "",
            name if Section::of_proxies().any(|key| key.name == name) => "proxy = \":3000\"",
            "status" => "redirect = \"/x\"",
            "body" => "respond = 200",
            "content_type" => "respond = 200\nbody = \"{}\"",
            "client_certificates" => "root = \"www\"\ntls = { cert = \"a.pem\", key = \"a.key\" }",
            _ => "root = \"www\"",
        };
        for value in [key.example, key.default] {
            let value = if value.is_empty() { key.example } else { value };
            let text = format!("[site.\":1\"]\n{beside}\n{} = {value}\n", key.name);
            let mut case = case(&text);
            case.input.check_files = false;
            case.model();
        }
    }
    for (section, before, after) in [
        (Section::Upstream, "", ""),
        (Section::Backend, "servers = [{ address = \"a:1\", ", " }]"),
        (Section::UpstreamTls, "tls = { ", " }"),
        (Section::Balance, "balance = { ", " }"),
        (Section::Keepalive, "keepalive = { ", " }"),
        (Section::Queue, "queue = { ", " }"),
        (Section::Passive, "passive_health = { ", " }"),
        (Section::Health, "health = { ", " }"),
        (Section::Breaker, "breaker = { ", " }"),
        (Section::RetryBudget, "retry_budget = { ", " }"),
        (Section::Resolve, "resolve = { ", " }"),
    ] {
        for key in section.keys() {
            let beside = match (section, key.name) {
                (Section::Balance, "by" | "load") => "algorithm = \"hash\", ",
                (Section::Balance, "secret" | "algorithm") => "",
                (Section::Balance, _) => "algorithm = \"sticky\", secret = \"0123456789abcdef\", ",
                (Section::Health, "path" | "tcp") => "",
                (Section::UpstreamTls, "cert") => "key = \"a.key\", ",
                (Section::UpstreamTls, "key") => "cert = \"a.pem\", ",
                (Section::Health, _) => "path = \"/\", ",
                _ => "",
            };
            let (before, after) = match (section, key.name) {
                (Section::Backend, "address") => ("servers = [{ ", after),
                (Section::Balance, "secret") => ("balance = { algorithm = \"sticky\", ", after),
                _ => (before, after),
            };
            let servers = match (section, key.name) {
                (Section::Backend, _) | (_, "servers") => "",
                _ => "servers = [\"a:1\"]\n",
            };
            for value in [key.example, key.default] {
                // What is written in it switches `health` off, or needs another server.
                if value.is_empty()
                    || matches!((key.name, value), ("tcp", "false") | ("backup", "true"))
                {
                    continue;
                }
                let line = format!("{before}{beside}{} = {value}{after}", key.name);
                let text = format!("[upstream.a]\n{servers}{line}\n{SITE}");
                let mut case = case(&text);
                case.input.check_files = false;
                case.model();
            }
        }
    }
    let default = |section: Section, head: &str| {
        let set = section.keys().filter(|key| !key.default.is_empty());
        let lines: String = set
            .map(|k| format!("{} = {}\n", k.name, k.default))
            .collect();
        format!("{head}\n{lines}")
    };
    let text = default(Section::Server, "[server]")
        + &default(Section::Limits, "[server.limits]")
        + &default(Section::Timeouts, "[server.timeouts]")
        + SITE;
    assert_eq!(case(&text).model().server, Server::default());
}

#[test]
fn what_the_supervisor_needs() {
    let case = case(&format!(
        "[server]\nprocesses = 2\nuser = \"www-data\"\ngroup = 33\nsandbox = \"strict\"\n\
         sandbox_read = [\"www\", \"www/index.html\"]\nstart_timeout = \"100ms\"\n{SITE}"
    ));
    let server = &case.model().server;
    assert_eq!(server.processes.get(), 2);
    assert_eq!(server.user.as_deref(), Some("www-data"));
    assert_eq!(server.group.as_deref(), Some("33"));
    assert_eq!(server.sandbox, Sandbox::Strict);
    assert_eq!(
        server.sandbox_read,
        [case.root(), case.root().join("index.html")]
    );
    assert_eq!(server.start_timeout, Duration::from_millis(100));
    for (written, sandbox) in [
        ("true", Sandbox::Auto),
        ("\"auto\"", Sandbox::Auto),
        ("false", Sandbox::Off),
    ] {
        let case = self::case(SITE).set(&format!("server.sandbox={written}"));
        assert_eq!(case.model().server.sandbox, sandbox);
    }
}

#[test]
fn variables_set_users_and_paths_too() {
    let case = case(SITE)
        .variable("BELTWAY_SERVER_USER", "1000")
        .variable("BELTWAY_SERVER_SANDBOX_READ", "www")
        .variable("BELTWAY_SERVER_SANDBOX", "false");
    let server = &case.model().server;
    assert_eq!(server.user.as_deref(), Some("1000"));
    assert_eq!(server.sandbox_read, [case.root()]);
    assert_eq!(server.sandbox, Sandbox::Off);
}

#[test]
fn a_socket_that_is_handed_over_serves_the_sites_that_name_it() {
    let case = case(
        "[site.\"a.example\"]\nrespond = 200\nlisten = [\"fd:web\"]\n\
         [site.\"b.example\"]\nrespond = 404\nlisten = [\"fd:web\", \"fd:my socket\"]\n",
    );
    let model = case.model();
    let names: Vec<_> = model
        .listeners
        .iter()
        .map(|listener| listener.address.to_string())
        .collect();
    assert_eq!(names, ["fd:web", "fd:my socket"]);
    assert_eq!(model.listeners[0].sites.find("a.example"), Some(&0));
    assert_eq!(model.listeners[0].sites.find("b.example"), Some(&1));
}

#[test]
fn a_secret_named_by_a_variable_prints_as_it_is_written() {
    use super::print::{Defaults, to_toml};
    let case = case("[site.\":1\"]\nrespond = 200\nbody = \"file:${DIR}/token\"\n")
        .file("token", "secret");
    let directory = case.input.directory.display().to_string();
    let loaded = case.variable("DIR", &directory).loaded();
    let printed = to_toml(&loaded.tree, &loaded.sources, Defaults::Hidden);
    assert!(
        printed.contains("body = \"file:${DIR}/token\""),
        "{printed}"
    );
}

/// A configuration with everything that can be written.
pub(super) const WHOLE: &str = r#"
[server]
workers = 2
access_log = "access.log"
limits = { request_line = "4KiB" }

[site."example.com"]
aliases = ["www.example.com"]
listen = ["localhost:8080", "unix:/run/a.sock"]
root = "www"
spa = true
precompressed = ["br"]
cors = ["https://a.example"]
trusted_proxies = ["10.0.0.0/8", "unix"]
proxy_protocol = { from = ["10.0.0.1"] }
error_pages = { 404 = "errors/404.html", 5xx = "errors/404.html" }
headers = { "X-A" = "quote \" and \\ and \t", X-Token = "file:token", X-B = "${B:-b}" }

[site."example.com".routes]
"~^/u/(?<id>[0-9]+)$" = { redirect = "/users/{id}", status = 308 }
"/a/*" = [{ when = { header = { Accept = "*json*" }, query = { v = true } }, respond = 200 }, { root = "www" }]
"/api/*" = { proxy = "app", strip_prefix = true, timeout = "15s", buffer = { request = "1MiB", spill = "www" } }
"/raw/*" = { proxy = [":3000", { address = "unix:/run/b.sock", backup = true }], send_proxy_protocol = "v2" }

[site."example.com".request_headers]
X-Token = "file:token"
"+X-B" = "${B:-b}"

[upstream.app]
servers = ["10.0.0.1:3000", { address = "srv:_http._tcp.example.com", weight = 2, state = "drain" }]
balance = { algorithm = "sticky", secret = "file:sticky", otherwise = "p2c" }
health = "/healthz"
breaker = true
"#;

/// [`WHOLE`] with the files that it needs.
pub(super) fn whole() -> Case {
    case(WHOLE)
        .file("token", "t")
        .file("sticky", "0123456789abcdef\n")
}

/// What a model says, without places and without the order of hash tables.
pub(super) fn without_maps(model: &Model) -> String {
    use std::fmt::Write as _;
    let mut out = format!("{:?}", model.server);
    for listener in &model.listeners {
        let sites: Vec<_> = listener.sites.iter().collect();
        let accepted = &listener.proxy_protocol;
        let _ = write!(out, "\n{:?} {accepted:?} {sites:?}", listener.address);
    }
    for site in &model.sites {
        let trusted = &site.trusted_proxies;
        let _ = write!(out, "\n{} {trusted:?} {:?}", site.name, site.fallback);
        for (pattern, routes) in site.router.iter() {
            let _ = write!(out, "\n{} {routes:?}", pattern.as_str());
        }
    }
    let _ = write!(out, "\n{:?}", model.upstreams);
    out
}

#[test]
fn what_is_printed_reads_back_as_the_same_configuration() {
    use super::print::{Defaults, to_toml};
    for defaults in [Defaults::Hidden, Defaults::Shown] {
        let first = whole().set("server.pin=true");
        let loaded = first.loaded();
        let printed = to_toml(&loaded.tree, &loaded.sources, defaults);
        assert!(
            printed.contains("${B:-b}"),
            "secrets stay references: {printed}"
        );
        // In another directory: what is printed has no directory of its own.
        let second = case(&printed);
        let again = second.loaded();
        assert_eq!(printed, to_toml(&again.tree, &again.sources, defaults));
        assert_eq!(without_maps(&loaded.model), without_maps(&again.model));
    }
}

#[test]
fn printed_configurations_are_pleasant_to_read() {
    use super::print::{Defaults, to_toml};
    let case = whole();
    let loaded = case.loaded();
    let printed = to_toml(&loaded.tree, &loaded.sources, Defaults::Hidden);
    let directory = case.input.directory.display().to_string();
    insta::assert_snapshot!(printed.replace(&directory, "/DIR"), @r#"
    [server]
    workers = 2
    access_log = "/DIR/access.log"

    [server.limits]
    request_line = "4KiB"

    [upstream.app]
    servers = ["10.0.0.1:3000", { address = "srv:_http._tcp.example.com", weight = 2, state = "drain" }]
    balance = { algorithm = "sticky", secret = "file:/DIR/sticky", otherwise = "p2c" }
    health = "/healthz"
    breaker = true

    [site."example.com"]
    aliases = ["www.example.com"]
    listen = ["localhost:8080", "unix:/run/a.sock"]
    root = "/DIR/www"
    spa = true
    precompressed = ["br"]
    cors = ["https://a.example"]
    trusted_proxies = ["10.0.0.0/8", "unix"]
    proxy_protocol = { from = ["10.0.0.1"] }

    [site."example.com".error_pages]
    404 = "errors/404.html"
    5xx = "errors/404.html"

    [site."example.com".headers]
    X-A = "quote \" and \\ and \t"
    X-Token = "file:/DIR/token"
    X-B = "${B:-b}"

    [site."example.com".routes]
    "~^/u/(?<id>[0-9]+)$" = { redirect = "/users/{id}", status = 308 }
    "/a/*" = [{ when = { header = { Accept = "*json*" }, query = { v = true } }, respond = 200 }, { root = "/DIR/www" }]
    "/api/*" = { proxy = "app", strip_prefix = true, timeout = "15s", buffer = { request = "1MiB", spill = "/DIR/www" } }
    "/raw/*" = { proxy = [":3000", { address = "unix:/run/b.sock", backup = true }], send_proxy_protocol = "v2" }

    [site."example.com".request_headers]
    X-Token = "file:/DIR/token"
    "+X-B" = "${B:-b}"
    "#);
}

#[test]
fn without_checking_files_missing_ones_are_no_error() {
    let mut case = case(
        "[server]\naccess_log = \"no/log\"\n[site.\":1\"]\nroot = \"no\"\nspa = true\n[site.\":2\"]\nrespond = 200\nbody = \"file:no\"\n",
    );
    case.input.check_files = false;
    case.model();
}

#[test]
fn the_environment_is_only_read_for_what_is_ours() {
    let environment: BTreeMap<_, _> = [("HOME".to_owned(), "/".to_owned())].into();
    let mut case = case(SITE);
    case.input.environment = environment;
    case.model();
}
