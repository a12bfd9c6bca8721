//! PROXY headers that are accepted, and whose word about the client is believed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{Client, Engine, Server, Setup, Tree, on_both, wait_for};

const SOON: Duration = Duration::from_secs(10);
const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n";
const V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f\xc0\0\x02\x07\xc6\x33\x64\x01\x12\x67\0\x50\x04\0\0";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A server whose listening socket takes PROXY headers from these peers, and its access log.
fn accepting(engine: Engine, tree: &Tree, from: &str) -> (Server, PathBuf) {
    let path = tree.outside().join("access.log");
    let _ = fs::remove_file(&path);
    let config = format!(
        "[server]\naccess_log = {path:?}\nlog_format = \"common\"\n\
         trusted_proxies = [\"192.0.2.0/24\"]\n\
         timeouts = {{ header = \"1s\" }}\n\
         [site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nproxy_protocol = {{ from = [\"{from}\"] }}\n\
         respond = 200\nbody = \"ok\"\n"
    );
    (Setup::run(engine, &config).start(), path)
}

/// The address of each line of the access log.
fn clients(path: &Path, count: usize) -> Vec<String> {
    wait_for("the lines are written", SOON, || {
        let text = fs::read_to_string(path).ok()?;
        let first = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        let clients: Vec<String> = text.lines().map(first).collect();
        (text.ends_with('\n') && clients.len() >= count).then_some(clients)
    })
}

fn refused(server: &Server, bytes: &[u8], ends: bool) {
    let mut client = server.connect();
    let _ = client.try_send(bytes);
    if ends {
        client.end_input();
    }
    assert_eq!(client.rest().0, b"", "{bytes:?}");
}

#[test]
fn the_client_of_a_header_is_logged_for_every_request() {
    on_both(|engine| {
        let tree = Tree::new();
        let (server, log) = accepting(engine, &tree, "127.0.0.0/8");
        for header in [V1, V2] {
            let mut client = server.connect();
            // Pipelined, and one later without a header.
            client.send([header, REQUEST, REQUEST].concat());
            assert_eq!(
                (client.response().status, client.response().status),
                (200, 200)
            );
            assert_eq!(client.get("/").status, 200);
            let mut client = server.connect();
            for byte in header {
                client.send([*byte]);
            }
            assert_eq!(client.get("/").status, 200);
        }
        assert_eq!(clients(&log, 8), ["192.0.2.7"; 8]);
        let mut client: Client = server.connect();
        client.send(b"PROXY UNKNOWN\r\n");
        client.get("/");
        // The peer of the header is a trusted proxy here, that of the socket is not.
        client.get_with("/", "X-Forwarded-For: 203.0.113.9\r\n");
        let mut client = server.connect();
        client.send(V1);
        client.get_with("/", "X-Forwarded-For: 203.0.113.9\r\n");
        assert_eq!(
            clients(&log, 11)[8..],
            ["127.0.0.1", "127.0.0.1", "203.0.113.9"]
        );
    });
}

#[test]
fn whatever_else_comes_is_closed_without_a_byte() {
    on_both(|engine| {
        let tree = Tree::new();
        let (server, _) = accepting(engine, &tree, "127.0.0.1");
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(200));
        for bytes in [
            REQUEST,
            b"\x16\x03\x01garbage",
            long.as_bytes(),
            b"PROXY TCP4 1\r\n",
        ] {
            refused(&server, bytes, false);
        }
        refused(&server, &V1[..20], true);
        refused(&server, &V2[..20], true);
        let begin = Instant::now();
        refused(&server, &V1[..20], false);
        assert!(
            begin.elapsed() >= Duration::from_millis(900),
            "{:?}",
            begin.elapsed()
        );
        let (server, _) = accepting(engine, &tree, "203.0.113.0/24");
        refused(&server, REQUEST, false);
        refused(&server, &[V1, REQUEST].concat(), false);
    });
}
