//! The access log: its formats, what clients can't do to it, and a sink that doesn't keep up.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::server::serve;
use crate::support::{
    Client, Engine, PATIENCE, Server, Setup, Tree, noise, on_both, wait_for, wait_until,
};

/// Lines are written within a second; a loaded machine gets ten times as long.
const SOON: Duration = Duration::from_secs(10);

fn lines(path: &Path, count: usize) -> Vec<String> {
    wait_for("the lines are written", SOON, || {
        let text = fs::read(path).ok()?;
        let text = String::from_utf8(text).expect("the log is UTF-8");
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        (text.ends_with('\n') && lines.len() >= count).then_some(lines)
    })
}

fn logging(engine: Engine, tree: &Tree, format: &str) -> (Server, PathBuf) {
    let path = tree.outside().join("access.log");
    let _ = fs::remove_file(&path);
    let server = serve(
        engine,
        tree,
        &[
            &format!("--access-log={}", path.display()),
            &format!("--log-format={format}"),
        ],
    );
    (server, path)
}

fn some_requests(server: &Server) {
    let mut client = server.connect();
    let fields = "Referer: http://r.example/\r\nUser-Agent: test \"1\"\r\n";
    client.get_with("/a.txt?x=y", fields);
    client.request("HEAD", "/a.txt", "");
    client.get("/missing");
    client.get_with("/a.txt", "Range: bytes=0-1\r\n");
    client.send("GET /a.txt HTTP/1.0\r\n\r\n");
    client.response();
}

#[test]
fn a_body_of_any_kind_is_counted_whole() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        for n in 0..100 {
            tree.write(&format!("listed/{n}"), "x");
        }
        tree.write("many.bin", noise(200 << 10));
        let (server, path) = logging(engine, &tree, "common");
        let mut client = server.connect();
        let parts = "Range: bytes=0-9999,20000-39999,100000-100009\r\n";
        let lengths = [
            // Longer than what is copied behind a head, shorter than a batch.
            client.get("/listed/").body.len(),
            client.get_with("/many.bin", parts).body.len(),
            client.get("/many.bin").body.len(),
            client.get("/a.txt").body.len(),
        ];
        assert!((10_000..60_000).contains(&lengths[0]), "{lengths:?}");
        let lines = lines(&path, 4);
        for (line, length) in lines.iter().zip(lengths) {
            assert!(line.ends_with(&format!(" {length}")), "{line}: {length}");
        }
    });
}

#[test]
fn common_and_combined_lines_are_what_tools_read() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        for format in ["common", "combined"] {
            let (server, path) = logging(engine, &tree, format);
            some_requests(&server);
            let lines = lines(&path, 5);
            assert_eq!(lines.len(), 5, "{lines:#?}");
            let expected = [
                ("\"GET /a.txt?x=y HTTP/1.1\" 200 5", "\"http://r.example/\""),
                ("\"HEAD /a.txt HTTP/1.1\" 200 0", "\"-\" \"-\""),
                ("\"GET /missing HTTP/1.1\" 404 ", "\"-\" \"-\""),
                ("\"GET /a.txt HTTP/1.1\" 206 2", "\"-\" \"-\""),
                ("\"GET /a.txt HTTP/1.0\" 200 5", "\"-\" \"-\""),
            ];
            for (line, (request, tail)) in lines.iter().zip(expected) {
                let rest = line.strip_prefix("127.0.0.1 - - [").expect("the client");
                let (time, rest) = rest.split_once("] ").expect("the time");
                // 10/Oct/2000:13:55:36 +0000
                assert_eq!(time.len(), 26, "{line}");
                assert!(rest.starts_with(request), "{line}");
                assert_eq!(rest.contains(tail), format == "combined", "{line}");
            }
            if format == "combined" {
                // A quote of the client does not end the value.
                assert!(!lines[0].contains(" \"test \"1\"\""), "{}", lines[0]);
            }
        }
    });
}

#[test]
fn json_lines_are_json() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let (server, path) = logging(engine, &tree, "json");
        some_requests(&server);
        let lines = lines(&path, 5);
        let values: Vec<serde_json::Value> = lines
            .iter()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let first = &values[0];
        assert_eq!(first["remote"], "127.0.0.1");
        assert_eq!(first["method"], "GET");
        assert_eq!(first["target"], "/a.txt?x=y");
        assert_eq!(first["version"], "HTTP/1.1");
        assert_eq!(
            (&first["status"], &first["bytes"]),
            (&200.into(), &5.into())
        );
        assert_eq!(first["user_agent"], "test \"1\"");
        assert_eq!(first["referer"], "http://r.example/");
        assert_eq!(first["host"], "localhost");
        assert!(first["duration_us"].is_u64());
        assert!(
            first["time"]
                .as_str()
                .is_some_and(|time| time.starts_with("20"))
        );
        assert_eq!(values[1]["bytes"], 0, "HEAD sends no content");
        assert_eq!(values[3]["bytes"], 2);
        assert_eq!(values[4]["version"], "HTTP/1.0");
    });
}

#[test]
fn no_client_writes_a_line_of_its_own() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        for format in ["common", "combined", "json"] {
            let (server, path) = logging(engine, &tree, format);
            let requests: &[&[u8]] = &[
                b"GET /a%0a127.0.0.1%20-%20-%20[x] HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /\x1b[2J HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /a\rGET HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET /a\nGET HTTP/1.1\r\nHost: a\r\n\r\n",
                "GET /\u{202e}txt.a HTTP/1.1\r\nHost: a\r\n\r\n".as_bytes(),
                "GET /a.txt HTTP/1.1\r\nHost: a\r\nUser-Agent: \u{202e}\u{2066}x\u{9b}\r\n\r\n"
                    .as_bytes(),
                b"GET /a.txt HTTP/1.1\r\nHost: a\r\nUser-Agent: \xff\xfe\t\\ \"q\" \r\n\r\n",
                b"GET /a.txt HTTP/1.1\r\nHost: a\r\nReferer: x\" 200 0 \"y\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
                b"GET /a.txt\"><script> HTTP/1.1\r\nHost: a\r\n\r\n",
            ];
            for request in requests {
                let mut client = server.connect();
                client.send(request);
                client.response();
            }
            let lines = lines(&path, requests.len());
            assert_eq!(lines.len(), requests.len(), "{format}: {lines:#?}");
            for line in &lines {
                let harmless = |char: char| {
                    !char.is_control()
                        && !('\u{202a}'..='\u{202e}').contains(&char)
                        && !('\u{2066}'..='\u{2069}').contains(&char)
                };
                assert!(line.chars().all(harmless), "{format}: {line:?}");
                if format == "json" {
                    serde_json::from_str::<serde_json::Value>(line).expect("JSON");
                } else {
                    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
                    // Quotes that aren't escaped come in pairs around what they should.
                    let quotes = line
                        .replace("\\\\", "")
                        .replace("\\\"", "")
                        .matches('"')
                        .count();
                    assert_eq!(quotes, if format == "common" { 2 } else { 6 }, "{line}");
                }
            }
        }
    });
}

#[test]
fn what_is_logged_is_written_at_the_end() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let (mut server, path) = logging(engine, &tree, "common");
        let mut client = server.connect();
        for _ in 0..100 {
            client.get("/a.txt");
        }
        server.signal(Signal::TERM);
        assert_eq!(server.exit_code(), Some(0));
        let text = fs::read_to_string(path).expect("the log");
        assert_eq!(text.lines().count(), 100);
    });
}

#[test]
fn standard_output_is_a_target_too() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let server = serve(engine, &tree, &["--access-log", "--log-format=common"]);
        server.connect().get("/a.txt");
        wait_until("the line is written", SOON, || {
            server.stdout().contains("\"GET /a.txt HTTP/1.1\" 200 5")
        });
        // Without the flag nothing is logged there.
        let mut server = serve(engine, &tree, &[]);
        server.connect().get("/a.txt");
        server.signal(Signal::TERM);
        server.exit_code();
        assert!(!server.stdout().contains("GET"));
    });
}

#[test]
fn a_cut_download_is_logged_with_what_was_sent() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("large.bin", noise(32 << 20));
        let (server, path) = logging(engine, &tree, "json");
        let mut client = Client::connect_with(server.address(), |socket| {
            socket.set_recv_buffer_size(4096).expect("SO_RCVBUF");
        });
        client.send("GET /large.bin HTTP/1.1\r\nHost: a\r\n\r\n");
        client.await_bytes(1);
        client.abort();
        let line = lines(&path, 1).remove(0);
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let bytes = value["bytes"].as_u64().expect("a number");
        assert!(bytes < 32 << 20, "{line}");
    });
}

/// A sink that nobody reads: a pipe, full after 64 KiB.
#[test]
fn a_slow_sink_stalls_nobody_and_the_log_tells_what_is_missing() {
    const REQUESTS: usize = 3000;
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let server = Setup::serve(engine, tree.root())
            .arguments(&["--access-log=-", "--log-format=combined"])
            .hold_stdout()
            .start();
        let agent = "x".repeat(1000);
        let request = format!("GET /a.txt HTTP/1.1\r\nHost: a\r\nUser-Agent: {agent}\r\n\r\n");
        let mut client = server.connect();
        for _ in 0..REQUESTS / 10 {
            client.send(request.repeat(10));
            for _ in 0..10 {
                assert_eq!(client.response().text(), "hello");
            }
        }
        server.release_stdout();
        let mut numbers = HashMap::new();
        wait_until("all lines are told of", PATIENCE, || {
            let text = server.stdout();
            let written = text.matches(&agent).count();
            let dropped: usize = text
                .lines()
                .filter_map(|line| line.strip_prefix("# ")?.strip_suffix(" lines dropped"))
                .map(|count| count.parse::<usize>().expect("a number"))
                .sum();
            numbers.insert("written", written);
            numbers.insert("dropped", dropped);
            written + dropped == REQUESTS
        });
        assert!(numbers["dropped"] > 0, "{numbers:?}: the sink was not slow");
    });
}
