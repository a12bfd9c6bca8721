//! Backends under TLS that speak one version, that end without a word, that talk of other things in the
//! middle, and whose records somebody changes.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};

use super::backend::Backend;
use super::secured_tunnels::serving;
use super::{Setup, tables};
use crate::support::records::{ALERT, DATA, HANDSHAKE, Records, key_update};
use crate::support::{Client, End, Engine, Server, Tree, noise, on_both};
use crate::tls::{BOTH, Pem};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A certificate for backends, and the table of an upstream that believes it.
fn certificate(tree: &Tree) -> (Pem, String) {
    let pem = Pem::new(tree, "backend", &["localhost"]);
    let table = format!(
        "tls = {{ ca = {:?}, policy = \"intermediate\" }}\n",
        pem.cert
    );
    (pem, table)
}

/// A server in front of a backend at this port, which it never finds ill.
fn front(engine: Engine, port: u16, table: &str, lines: &str) -> Server {
    let servers = format!("[\"https://localhost:{port}\"]");
    let config = tables(&servers, &format!("{table}passive_health = false\n"), lines);
    Setup::run(engine, &config).workers(1).start()
}

/// A backend whose connections this makes record by record, and how many came.
struct ByHand {
    port: u16,
    accepting: thread::JoinHandle<()>,
}

impl ByHand {
    /// Takes so many connections, one after the other.
    fn start(
        config: Arc<ServerConfig>,
        connections: usize,
        script: impl Fn(usize, &mut Records) + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepting = thread::spawn(move || {
            for number in 0..connections {
                let (socket, _): (TcpStream, _) = listener.accept().unwrap();
                script(number, &mut Records::accept(socket, &config));
            }
        });
        Self { port, accepting }
    }

    /// All of them came, and went as they should.
    fn end(self) {
        self.accepting.join().unwrap();
    }
}

/// Reads the head of a request, which has no body; none where the connection ends.
fn asked(records: &mut Records) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match records.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    let head = String::from_utf8(head).unwrap();
    Some(head.split(' ').nth(1).unwrap().to_owned())
}

fn ok(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[test]
fn each_version_alone_is_spoken_and_its_sessions_go_on() {
    on_both(|engine| {
        let tree = Tree::new();
        let (pem, table) = certificate(&tree);
        for version in VERSIONS {
            let backend = Backend::secured(&serving(&pem, &[version]), |connection| {
                while connection.request().is_some() {
                    let version = connection.tls().protocol_version().unwrap();
                    let resumed = connection.is_resumed();
                    connection.send(super::backend::ok(&format!("{version:?} {resumed}")));
                }
            });
            let port: u16 = backend.name().rsplit(':').next().unwrap().parse().unwrap();
            let spoken = format!("{:?}", version.version);
            for keepalive in [true, false] {
                let table = match keepalive {
                    true => table.clone(),
                    false => format!("{table}keepalive = false\n"),
                };
                let server = front(engine, port, &table, "");
                let before = backend.connections();
                for (at, resumed) in [false, true, true].into_iter().enumerate() {
                    let mut client = server.connect();
                    // Kept connections aren't resumed, they go on.
                    let expected = format!("{spoken} {}", resumed && !keepalive);
                    assert_eq!(client.get("/").text(), expected, "{at}");
                }
                let came = backend.connections() - before;
                assert_eq!(came, if keepalive { 1 } else { 3 });
            }
            // Who wants the other one alone gets nothing.
            if version.version == TLS12.version {
                let modern = table.replace("intermediate", "modern");
                let server = front(engine, port, &modern, "");
                assert_eq!(server.connect().get("/").status, 502);
            }
        }
    });
}

#[test]
fn an_end_without_a_word_is_an_end_only_where_the_message_has_its_own() {
    on_both(|engine| {
        let tree = Tree::new();
        let (pem, table) = certificate(&tree);
        for version in VERSIONS {
            let backend = Backend::secured(&serving(&pem, &[version]), |connection| {
                let Some(request) = connection.request() else {
                    return;
                };
                let (how, framing) = request.target[1..].split_once('/').unwrap();
                connection.send(match framing {
                    "length" => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole",
                    "short" => "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nwhole",
                    "chunked" => {
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n"
                    }
                    "unchunked" => {
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n"
                    }
                    "close" => "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nwhole",
                    "none" => "HTTP/1.1 204 No Content\r\n\r\n",
                    "head" => "HTTP/1.1 200 OK\r\nContent-Le",
                    _ => "",
                });
                match how {
                    "told" => connection.end(),
                    "cut" => connection.cut(),
                    _ => connection.reset(),
                }
                if how != "reset" {
                    connection.rest();
                }
            });
            let port: u16 = backend.name().rsplit(':').next().unwrap().parse().unwrap();
            let server = front(engine, port, &table, "");
            for how in ["told", "cut"] {
                for (framing, body) in [("length", "whole"), ("chunked", "whole"), ("none", "")] {
                    let mut client = server.connect();
                    // The next ones get other connections.
                    for _ in 0..3 {
                        let response = client.get(&format!("/{how}/{framing}"));
                        assert!(response.status < 300, "{how} {framing}: {response:?}");
                        assert_eq!(response.text(), body, "{how} {framing}");
                    }
                }
                for framing in ["short", "unchunked"] {
                    let mut client = server.connect();
                    let asked = format!("GET /{how}/{framing} HTTP/1.1\r\nHost: a\r\n\r\n");
                    let got = client.try_response_to(&asked);
                    assert!(got.is_err(), "{how} {framing}: {got:?}");
                }
                for framing in ["head", "nothing"] {
                    let status = server.connect().get(&format!("/{how}/{framing}")).status;
                    assert_eq!(status, 502, "{how} {framing}");
                }
                let mut client = server.connect();
                client.send(format!("GET /{how}/close HTTP/1.0\r\nHost: a\r\n\r\n"));
                let (bytes, end) = client.rest();
                match how {
                    "told" => {
                        assert!(bytes.ends_with(b"\r\n\r\nwhole"));
                        assert_eq!(end, End::Closed);
                    }
                    _ => assert_eq!(end, End::Reset, "nobody knows whether it is whole"),
                }
            }
            for framing in ["short", "unchunked", "close"] {
                let mut client = server.connect();
                let asked = format!("GET /reset/{framing} HTTP/1.1\r\nHost: a\r\n\r\n");
                // A reset may come before what was sent, too.
                let got = client.try_response_to(&asked);
                assert!(got.is_err() || got.is_ok_and(|got| got.status == 502));
            }
        }
    });
}

/// A NewSessionTicket of TLS 1.3 (RFC 8446 §4.6.1).
fn ticket(number: u8, bytes: usize) -> Vec<u8> {
    let mut body = vec![0, 0, 0x1c, 0x20, 1, 2, 3, 4, 1, number];
    body.extend(u16::try_from(bytes).unwrap().to_be_bytes());
    body.resize(body.len() + bytes, number);
    body.extend([0, 0]);
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[4][..], &length[1..], &body].concat()
}

#[test]
fn tickets_come_whenever_they_like() {
    on_both(|engine| {
        let tree = Tree::new();
        let (pem, table) = certificate(&tree);
        let large = Arc::new(noise(400_000));
        let content = Arc::clone(&large);
        let backend = ByHand::start(serving(&pem, &[&TLS13]), 1, move |_, records| {
            let mut number = 0;
            let mut give = |records: &mut Records, bytes| {
                number += 1;
                let record = records.seal(HANDSHAKE, &ticket(number, bytes));
                records.send_raw(&record);
            };
            while let Some(target) = asked(records) {
                match &*target {
                    "/large" => {
                        let answer = ok(&content);
                        for part in answer.chunks(50_000) {
                            records.send(part);
                            give(records, 200);
                        }
                    }
                    "/idle" => {
                        records.send(&ok(b"/idle"));
                        // Behind the answer, when nobody waits for anything: one, one in two records, two in one.
                        give(records, 1);
                        let late = ticket(99, 16_000);
                        let mut all = records.seal(HANDSHAKE, &late[..5000]);
                        all.extend(records.seal(HANDSHAKE, &late[5000..]));
                        let two = [ticket(100, 10), ticket(101, 10)].concat();
                        all.extend(records.seal(HANDSHAKE, &two));
                        records.send_raw(&all);
                    }
                    target => records.send(&ok(target.as_bytes())),
                }
            }
        });
        let server = front(engine, backend.port, &table, "");
        let mut client = server.connect();
        for _ in 0..3 {
            assert_eq!(client.get("/a").text(), "/a");
            assert!(client.get("/large").body == *large);
            assert_eq!(client.get("/idle").text(), "/idle");
            assert_eq!(client.get("/b").text(), "/b");
        }
        drop(client);
        drop(server);
        backend.end();
    });
}

#[test]
fn a_backend_renews_its_keys_and_ours() {
    on_both(|engine| {
        let tree = Tree::new();
        let (pem, table) = certificate(&tree);
        let large = Arc::new(noise(900_000));
        let content = Arc::clone(&large);
        let (told, seen) = std::sync::mpsc::channel();
        let backend = ByHand::start(serving(&pem, &[&TLS13]), 1, move |_, records| {
            while let Some(target) = asked(records) {
                let before = match &*target {
                    // Half of them with the answer, half behind it.
                    "/large" => {
                        for (at, part) in ok(&content).chunks(40_000).enumerate() {
                            let record = records.seal_key_update(at % 2 == 0);
                            records.send_raw(&record);
                            records.send(part);
                        }
                        continue;
                    }
                    target => ok(target.as_bytes()),
                };
                records.send(&before);
                let record = records.seal_key_update(true);
                records.send_raw(&record);
            }
            told.send(records.key_updates).unwrap();
        });
        let server = front(engine, backend.port, &table, "");
        let mut client = server.connect();
        for _ in 0..10 {
            assert_eq!(client.get("/a").text(), "/a");
            assert!(client.get("/large").body == *large);
        }
        drop(client);
        drop(server);
        let renewed = seen.recv().unwrap();
        assert!((10..=20 * 15).contains(&renewed), "{renewed}");
        backend.end();
    });
}

/// Asks until the server gives up on the connection and takes another one: the first is answered or is a
/// 502, and later ones are answered.
fn goes_on(client: &mut Client) {
    let first = client.get("/first");
    assert!(first.status == 502 || first.text() == "/first", "{first:?}");
    assert_eq!(client.get("/next").text(), "/next");
}

#[test]
fn another_handshake_is_refused() {
    on_both(|engine| {
        let tree = Tree::new();
        let (pem, table) = certificate(&tree);
        for version in VERSIONS {
            let is_13 = version.version == TLS13.version;
            let mut messages: Vec<(&str, &[u8])> = vec![
                ("a ServerHello", &[2, 0, 0, 2, 3, 3]),
                ("a ClientHello", &[1, 0, 0, 2, 3, 3]),
                ("a Finished", &[20, 0, 0, 2, 3, 3]),
                ("a CertificateRequest", &[13, 0, 0, 3, 0, 0, 0]),
                ("too many HelloRequests", &[0; 4 * 50]),
                ("another one without an end", &[2, 0xff, 0xff, 0xff, 0]),
            ];
            let long = [&[4, 1, 0, 0][..], &[0; 16_000]].concat();
            let update = key_update(true);
            if is_13 {
                messages.push(("a HelloRequest", &[0, 0, 0, 0]));
                messages.push(("a ticket that is none", &[4, 0, 0, 1, 7]));
            } else {
                messages.push(("a KeyUpdate", &update));
                messages.push(("a ticket", &long));
            }
            for (what, message) in messages {
                let message = message.to_vec();
                let config = serving(&pem, &[version]);
                let backend = ByHand::start(config, 2, move |number, records| {
                    let mut count = 0;
                    while let Some(target) = asked(records) {
                        // The first connection says it before its answer, the other one never.
                        if number == 0 {
                            count += 1;
                            assert_eq!(count, 1, "no second request");
                            // What asks for a handshake does so in records of its own.
                            let size = if message[0] == 0 { 4 } else { message.len() };
                            let parts = message.chunks(size);
                            let mut bytes: Vec<u8> = parts
                                .flat_map(|part| records.seal(HANDSHAKE, part))
                                .collect();
                            bytes.extend(records.seal(DATA, &ok(b"forged")));
                            records.send_raw(&bytes);
                            let (content, _) = records.rest();
                            assert_eq!(content, b"");
                            return;
                        }
                        records.send(&ok(target.as_bytes()));
                    }
                });
                let server = front(engine, backend.port, &table, "retries = false");
                let mut client = server.connect();
                assert_eq!(client.get("/first").status, 502, "{what}");
                goes_on(&mut client);
                drop(client);
                drop(server);
                backend.end();
            }
        }
    });
}

#[test]
fn a_hello_request_begins_nothing() {
    on_both(|engine| {
        let tree = Tree::new();
        let (pem, table) = certificate(&tree);
        let backend = ByHand::start(serving(&pem, &[&TLS12]), 1, |_, records| {
            let target = asked(records).expect("a request");
            // Once is answered by a warning, or by silence; never by a ClientHello.
            let mut bytes = records.seal(HANDSHAKE, &[0; 4]);
            bytes.extend(records.seal(DATA, &ok(target.as_bytes())));
            records.send_raw(&bytes);
            loop {
                match records.next() {
                    Ok(Some(record)) if record.kind == ALERT => {
                        assert!([100, 0].contains(&record.content[1]), "{record:?}");
                    }
                    Ok(Some(record)) => assert_eq!(record.kind, DATA, "{record:?}"),
                    _ => return,
                }
            }
        });
        let server = front(engine, backend.port, &table, "");
        let mut client = server.connect();
        assert_eq!(client.get("/first").text(), "/first");
        drop(client);
        drop(server);
        backend.end();
    });
}

#[test]
fn what_was_changed_on_its_way_reaches_no_client() {
    on_both(|engine| {
        let tree = Tree::new();
        let (pem, table) = certificate(&tree);
        for version in VERSIONS {
            for in_head in [true, false] {
                let config = serving(&pem, &[version]);
                let backend = ByHand::start(config, 2, move |number, records| {
                    let Some(target) = asked(records) else {
                        return;
                    };
                    if number == 1 {
                        return records.send(&ok(target.as_bytes()));
                    }
                    let answer = ok(&[b'x'; 30_000]);
                    let cut = if in_head { 0 } else { 20_000 };
                    records.send(&answer[..cut]);
                    let mut bytes = records.seal(DATA, &answer[cut..cut + 9000]);
                    bytes[2000] ^= 4;
                    bytes.extend(records.seal(DATA, &answer[cut + 9000..]));
                    let _ = records.try_send_raw(&bytes);
                    records.rest();
                });
                let server = front(engine, backend.port, &table, "retries = false");
                let mut client = server.connect();
                let got = client.try_response_to("GET /first HTTP/1.1\r\nHost: a\r\n\r\n");
                match in_head {
                    true => assert_eq!(got.unwrap().status, 502),
                    false => assert!(got.is_err(), "{got:?}"),
                }
                assert_eq!(server.connect().get("/next").text(), "/next");
                drop(server);
                backend.end();
            }
        }
    });
}

#[test]
fn empty_and_padded_records_of_a_backend_are_as_good_as_any() {
    on_both(|engine| {
        let tree = Tree::new();
        let (pem, table) = certificate(&tree);
        let backend = ByHand::start(serving(&pem, BOTH), 1, |_, records| {
            while let Some(target) = asked(records) {
                let mut bytes = Vec::new();
                for byte in ok(target.as_bytes()) {
                    bytes.extend(records.seal(DATA, b""));
                    bytes.extend(records.seal_padded(DATA, &[byte], 300));
                }
                records.send_raw(&bytes);
                // Behind it, when nobody waits for anything.
                let nothing: Vec<u8> = (0..20).flat_map(|_| records.seal(DATA, b"")).collect();
                records.send_raw(&nothing);
            }
        });
        let server = front(engine, backend.port, &table, "");
        let mut client = server.connect();
        for at in 0..10 {
            let target = format!("/{at}");
            assert_eq!(client.get(&target).text(), target);
        }
        drop(client);
        drop(server);
        backend.end();
    });
}
