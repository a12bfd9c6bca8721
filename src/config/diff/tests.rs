//! What is said about two configurations.

use super::*;
use crate::config::tests::{case, whole};

const BASE: &str = r#"
[server]
drain_timeout = "60s"
[site."a.example"]
listen = ["127.0.0.1:80"]
root = "www"
[site."a.example".headers]
X-Token = "${TOKEN}"
[site."a.example".routes]
"/x/*" = { redirect = "/y/{path}" }
"/l/*" = [{ when = { method = ["GET"] }, respond = 200 }, { respond = 405 }]
[site."b.example"]
listen = ["127.0.0.1:80", "unix:/run/b.sock"]
respond = 200
"#;

fn loaded(text: &str) -> Loaded {
    case(text).variable("TOKEN", "hunter2").loaded()
}

fn changed(pairs: &[(&str, &str)]) -> Difference {
    let old = case(BASE).variable("TOKEN", "hunter2");
    let mut text = BASE.to_owned();
    for (from, to) in pairs {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    // In the same directory: else every name of a file is another.
    let before = old.loaded();
    std::fs::write(old.input.directory.join("beltway.toml"), text).unwrap();
    diff(&before, &old.loaded())
}

/// 3 connections on the first port, 4 on the socket.
fn live(name: &str) -> Option<u64> {
    match name {
        "127.0.0.1:80" => Some(3),
        "unix:/run/b.sock" => Some(4),
        _ => None,
    }
}

#[test]
fn each_change_is_a_line_with_the_connections_it_touches() {
    let difference = changed(&[
        (
            "drain_timeout = \"60s\"",
            "drain_timeout = \"5s\"\nlimits = { header_fields = 50 }",
        ),
        (
            "{ redirect = \"/y/{path}\" }",
            "{ redirect = \"/z/{path}\" }",
        ),
        ("\"/l/*\"", "\"/m/*\""),
        (
            "[\"127.0.0.1:80\", \"unix:/run/b.sock\"]",
            "[\":81\", \"unix:/run/b.sock\"]",
        ),
    ]);
    insta::assert_snapshot!(difference.text(&live), @r#"
    + listen 0.0.0.0:81
    + listen [::]:81
    ~ server.drain_timeout = "60s" -> "5s"
    + server.limits.header_fields = 50  (7 connections)
    ~ site."a.example".routes."/x/*".redirect = "/y/{path}" -> "/z/{path}"  (3 connections)
    + site."a.example".routes."/m/*" = [{ when = { method = ["GET"] }, respond = 200 }, { respond = 405 }]  (3 connections)
    - site."a.example".routes."/l/*" = [{ when = { method = ["GET"] }, respond = 200 }, { respond = 405 }]  (3 connections)
    ~ site."b.example".listen = ["127.0.0.1:80", "unix:/run/b.sock"] -> [":81", "unix:/run/b.sock"]  (7 connections)
    "#);
    assert!(difference.restart.is_empty());
    let names = |sockets: &[Socket]| -> Vec<String> {
        sockets.iter().map(|socket| socket.name.clone()).collect()
    };
    assert_eq!(
        names(&difference.listeners.added),
        ["0.0.0.0:81", "[::]:81"]
    );
    assert!(difference.listeners.removed.is_empty());
    assert_eq!(
        names(&difference.listeners.kept),
        ["127.0.0.1:80", "unix:/run/b.sock"]
    );
}

#[test]
fn a_site_that_goes_and_one_that_comes() {
    let tail = &BASE[BASE.find("[site.\"b.example\"]").unwrap()..];
    let difference = changed(&[(
        tail,
        "[site.\"c.example\"]\nlisten = [\"fd:web\"]\nrespond = 404\n",
    )]);
    insta::assert_snapshot!(difference.text(&live), @r#"
    - listen unix:/run/b.sock  (4 connections to drain)
    + listen fd:web
    + site."c.example" = { listen = ["fd:web"], respond = 404 }
    - site."b.example" = { listen = ["127.0.0.1:80", "unix:/run/b.sock"], respond = 200 }  (7 connections)
    "#);
    assert_eq!(
        difference.listeners.added,
        [Socket {
            name: "fd:web".into(),
            address: ListenAddr::Inherited("web".into())
        }]
    );
}

#[test]
fn alternatives_of_a_route_are_told_apart() {
    let difference = changed(&[("respond = 405", "respond = 403")]);
    let [change] = &difference.changes[..] else {
        panic!("{difference:?}");
    };
    assert_eq!(
        change,
        &Change {
            path: "site.\"a.example\".routes.\"/l/*\"[1].respond".into(),
            kind: Kind::Changed,
            from: Some("405".into()),
            to: Some("403".into()),
            referred: false,
            sites: vec!["a.example".into()],
            listeners: vec!["127.0.0.1:80".into()],
        }
    );
}

#[test]
fn what_means_the_same_is_no_change() {
    for pairs in [
        &[][..],
        &[("\"60s\"", "\"1m\"")],
        &[(
            "[server]",
            "[server]\nworkers = \"auto\"\ntimeouts = { idle = \"75s\" }",
        )],
        &[(
            "root = \"www\"",
            "list = false\nroot = \"./www/\"\nindex = [\"index.html\"]",
        )],
        &[(
            "[server]",
            "[server]\nlimits = { request_line = \"8192B\" }",
        )],
    ] {
        let difference = changed(pairs);
        assert!(difference.is_empty(), "{pairs:?}: {difference:?}");
        assert_eq!(difference.text(&live), "nothing would change\n");
    }
}

#[test]
fn what_a_worker_can_not_change_needs_a_new_generation() {
    let all = "[server]\nworkers = 3\npin = true\nengine = \"epoll\"\nuser = \"a\"\ngroup = \"b\"\n\
               processes = 2\nsandbox = \"strict\"\nsandbox_read = [\"www\"]\nmemory_limit = \"1GiB\"\n\
               max_conns = 9\naccess_log = \"-\"\nlog_format = \"json\"\nlog_level = \"warn\"\n\
               start_timeout = \"9s\"\nktls = \"off\"\n";
    let difference = changed(&[("[server]\n", all)]);
    let mut keys: Vec<_> = difference.restart.iter().map(|r| r.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "server.access_log",
            "server.engine",
            "server.group",
            "server.ktls",
            "server.max_conns",
            "server.memory_limit",
            "server.pin",
            "server.processes",
            "server.sandbox",
            "server.sandbox_read",
            "server.user",
            "server.workers",
        ]
    );
    let text = difference.text(&live);
    assert!(
        text.contains("+ server.workers = 3  (7 connections)\n"),
        "{text}"
    );
    assert!(text.contains("+ server.start_timeout = \"9s\"\n"), "{text}");
    assert_eq!(
        text.matches("a new generation with drain, for server.")
            .count(),
        12
    );
    // A format without a log, and further places without a sandbox, change nothing.
    let format = changed(&[("[server]", "[server]\nlog_format = \"json\"")]);
    assert!(format.restart.is_empty() && format.changes.len() == 1);
    let open = "[server]\nsandbox = false\n";
    let before = loaded(&BASE.replace("[server]", open));
    let after = loaded(&BASE.replace("[server]", &format!("{open}sandbox_read = [\"www\"]\n")));
    let difference = diff(&before, &after);
    let placed = |change: &Change| change.path == "server.sandbox_read";
    assert!(difference.changes.iter().any(placed));
    assert!(difference.restart.is_empty());
    let logged = |format: &str| {
        loaded(&BASE.replace(
            "[server]",
            &format!("[server]\naccess_log = true\n{format}"),
        ))
    };
    let difference = diff(&logged(""), &logged("log_format = \"json\""));
    assert_eq!(difference.restart[0].key, "server.log_format");
}

#[test]
fn a_secret_that_changes_is_seen_and_not_shown() {
    let case = case(
        "[site.\":1\"]\nrespond = 200\nbody = \"file:token\"\nheaders = { A = \"${TOKEN}\" }\n",
    );
    let case = case.file("token", "hunter2").variable("TOKEN", "hunter3");
    let before = case.loaded();
    let case = case.file("token", "hunter4").variable("TOKEN", "hunter5");
    let difference = diff(&before, &case.loaded());
    let directory = case.input.directory.display().to_string();
    let text = difference.text(&|_| None).replace(&directory, "/DIR");
    insta::assert_snapshot!(text, @r#"
    ~ site.":1".body = "file:/DIR/token", which stands for something else
    ~ site.":1".headers.A = "${TOKEN}", which stands for something else
    "#);
    assert!(difference.changes.iter().all(|change| change.referred));
    assert!(!difference.to_json().to_string().contains("hunter"));
    assert!(diff(&before, &before).is_empty());
}

#[test]
fn the_same_after_a_bundle() {
    use crate::config::bundle::{pack, unpack};
    let case = whole();
    let loaded = case.loaded();
    let again = unpack(&pack(&loaded).unwrap()).unwrap();
    assert!(diff(&loaded, &again).is_empty());
}

#[test]
fn programs_get_the_same_and_it_reads_back() {
    let difference = changed(&[("respond = 405", "respond = 403"), ("\"60s\"", "\"2m\"")]);
    let json = difference.to_json();
    assert_eq!(json["changes"][0]["path"], "server.drain_timeout");
    assert_eq!(json["changes"][1]["kind"], "changed");
    assert_eq!(
        json["listeners"]["kept"][1]["address"]["unix"],
        "/run/b.sock"
    );
    let again: Difference = serde_json::from_value(json).unwrap();
    assert_eq!(again, difference);
}

#[test]
fn long_values_and_many_changes_are_cut() {
    let body = "é".repeat(3000);
    let difference = changed(&[(
        "respond = 405",
        &format!("respond = 403, body = \"{body}\""),
    )]);
    let change = difference
        .changes
        .iter()
        .find(|c| c.path.ends_with("body"))
        .unwrap();
    let to = change.to.as_deref().unwrap();
    assert!(to.len() <= VALUE_MAX && to.ends_with('…'), "{}", to.len());
    let text = difference.text(&live);
    assert!(
        text.lines().all(|line| line.chars().count() < 250),
        "{text}"
    );

    let many: String = (0..1200)
        .map(|n| format!("\"/{n}\" = {{ respond = 200 }}\n"))
        .collect();
    let difference = changed(&[("\"/x/*\"", &format!("{many}\"/x/*\""))]);
    assert_eq!(difference.changes.len(), 1200);
    let text = difference.text(&live);
    assert_eq!(text.lines().count(), 1001);
    assert!(text.ends_with("and 200 more changes\n"));
}

#[test]
fn a_change_of_an_upstream_names_the_sites_that_use_it() {
    let upstream = "[upstream.app]\nservers = [\"10.0.0.1:1\"]\nhealth = { path = \"/up\" }\n\
                    balance = { algorithm = \"sticky\", secret = \"${TOKEN}-0123456789abcdef\" }\n\
                    [upstream.other]\nservers = [\"10.0.0.2:1\"]\n[site.\"b.example\"]";
    let old = BASE
        .replace("[site.\"b.example\"]", upstream)
        .replace("\nrespond = 200\n", "\nproxy = \"app\"\n");
    let new = old
        .replace("10.0.0.1:1", "10.0.0.3:1")
        .replace(
            "path = \"/up\"",
            "path = \"/up\", interval = \"5000ms\", rise = 5",
        )
        .replace("10.0.0.2:1", "10.0.0.4:1")
        .replace("proxy = \"app\"", "proxy = \"app\"\nretries = 1")
        .replace(
            "[server]\n",
            "[server]\ntrusted_proxies = [\"10.0.0.0/8\"]\n",
        );
    let case = case(&old).variable("TOKEN", "hunter2");
    let before = case.loaded();
    std::fs::write(case.input.directory.join("beltway.toml"), new).unwrap();
    let difference = diff(&before, &case.loaded());
    insta::assert_snapshot!(difference.text(&live), @r#"
    + server.trusted_proxies = ["10.0.0.0/8"]  (7 connections)
    + site."b.example".retries = 1  (7 connections)
    ~ upstream.app.servers = ["10.0.0.1:1"] -> ["10.0.0.3:1"]  (7 connections)
    + upstream.app.health.rise = 5  (7 connections)
    ~ upstream.other.servers = ["10.0.0.2:1"] -> ["10.0.0.4:1"]
    "#);
    assert!(difference.restart.is_empty());
    assert_eq!(difference.changes[2].sites, ["b.example"]);
}
