//! What the access log tells of backends, and what error pages don't.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::backend::{Backend, Refusing, ok};
use super::{Engine, Setup, site};
use crate::support::{PATIENCE, Server, Tree, on_both, wait_for};

/// A server that logs in JSON, in front of these backends.
fn logging(engine: Engine, tree: &Tree, backends: &[&str], lines: &str) -> Server {
    let config = format!(
        "[server]\naccess_log = {:?}\nlog_format = \"json\"\n{}",
        tree.outside().join("access.log"),
        site(&format!("proxy = {backends:?}\n{lines}"))
    );
    Setup::run(engine, &config).start()
}

fn entries(path: &Path, count: usize) -> Vec<Value> {
    wait_for("the lines are written", PATIENCE, || {
        let text = fs::read_to_string(path.join("access.log")).ok()?;
        let whole = text.ends_with('\n') && text.lines().count() >= count;
        whole.then(|| {
            let entry = |line| serde_json::from_str(line).expect("JSON");
            text.lines().map(entry).collect()
        })
    })
}

#[test]
fn a_line_names_the_backend_its_tries_and_its_times() {
    on_both(|engine| {
        let tree = Tree::new();
        let refusing = Refusing::new();
        let backend = Backend::start(|connection| {
            while let Some(request) = connection.request() {
                connection.send(ok(&"x".repeat(1000 + request.body.len())));
            }
        });
        let server = logging(engine, &tree, &[refusing.name(), backend.name()], "");
        let mut client = server.connect();
        client.get("/first");
        client.send("POST /second HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
        client.response();
        let entries = entries(tree.outside(), 2);
        let tries = |entry: &Value| entry["upstream"]["tries"].as_u64().expect("tries");
        for entry in &entries {
            let upstream = &entry["upstream"];
            assert_eq!(upstream["address"], backend.name(), "{entry}");
            assert!((1..=2).contains(&tries(entry)), "{entry}");
            for time in ["head_us", "total_us"] {
                assert!(upstream[time].is_u64(), "{time}: {entry}");
            }
            let (head, total) = (&upstream["head_us"], &upstream["total_us"]);
            assert!(head.as_u64() <= total.as_u64(), "{entry}");
        }
        assert!(
            entries.iter().any(|entry| tries(entry) == 2),
            "one of two was asked in vain: {entries:?}"
        );
        assert!(
            entries[0]["upstream"]["connect_us"].is_u64(),
            "{}",
            entries[0]
        );
        assert_eq!(entries[0]["bytes"], 1000);
        assert_eq!(entries[1]["bytes"], 1005);
        assert_eq!(entries[1]["received"], 5);
    });
}

#[test]
fn what_no_backend_answered_is_told_as_well() {
    on_both(|engine| {
        let tree = Tree::new();
        let refusing = Refusing::new();
        let lines = "[site.\"*\".routes]\n\"=/own\" = { respond = 200, body = \"own\" }";
        let server = logging(engine, &tree, &[refusing.name()], lines);
        let mut client = server.connect();
        assert_eq!(client.get("/").status, 502);
        assert_eq!(client.get("/own").text(), "own");
        let entries = entries(tree.outside(), 2);
        assert_eq!(entries[0]["status"], 502);
        assert!(entries[0]["upstream"]["tries"].is_u64(), "{}", entries[0]);
        assert!(
            entries[0]["upstream"]["head_us"].is_null(),
            "{}",
            entries[0]
        );
        assert!(
            entries[1].get("upstream").is_none_or(Value::is_null),
            "{}",
            entries[1]
        );
    });
}

#[test]
fn a_page_of_the_configuration_stands_for_an_error_of_a_backend() {
    on_both(|engine| {
        let tree = Tree::with(&[("sorry.html", "<p>sorry</p>")]);
        let refusing = Refusing::new();
        let lines = format!("error_pages = {{ 5xx = {:?} }}", tree.path("sorry.html"));
        let server = logging(engine, &tree, &[refusing.name()], &lines);
        let response = server.connect().get("/");
        assert_eq!((response.status, response.text()), (502, "<p>sorry</p>"));
    });
}

#[test]
fn a_tunnel_is_told_of_at_its_end() {
    on_both(|engine| {
        let tree = Tree::new();
        let backend = Backend::start(|connection| {
            connection.request().expect("a request");
            connection.send(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                 Connection: upgrade\r\n\r\nwelcome",
            );
            connection.rest();
        });
        let server = logging(engine, &tree, &[backend.name()], "");
        let mut client = server.connect();
        let fields = "Connection: upgrade\r\nUpgrade: websocket\r\n";
        assert_eq!(client.get_with("/chat", fields).status, 101);
        assert_eq!(client.exactly(7), b"welcome");
        client.send("hello");
        client.end_input();
        client.end();
        let entry = &entries(tree.outside(), 1)[0];
        assert_eq!(entry["status"], 101, "{entry}");
        assert_eq!(
            (&entry["bytes"], &entry["received"]),
            (&7.into(), &5.into())
        );
        assert_eq!(entry["upstream"]["address"], backend.name(), "{entry}");
        assert!(entry["upstream"]["head_us"].is_u64(), "{entry}");
    });
}

#[test]
fn a_cut_is_told_with_what_was_sent_of_it() {
    on_both(|engine| {
        let tree = Tree::new();
        let backend = Backend::start(|connection| {
            connection.request().expect("a request");
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
            connection.close();
        });
        let server = logging(engine, &tree, &[backend.name()], "");
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.try_response().expect_err("it is cut");
        let entry = &entries(tree.outside(), 1)[0];
        assert_eq!(
            (&entry["status"], &entry["bytes"]),
            (&200.into(), &4.into())
        );
        assert_eq!(entry["upstream"]["tries"], 1, "{entry}");
        assert!(entry["upstream"]["total_us"].is_u64(), "{entry}");
    });
}
