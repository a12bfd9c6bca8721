//! Connections under TLS, on both engines, by real sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection};

use super::engines::{Bench, on_each_engine};
use super::{plain, request};
use crate::net::tls::{Failure, Policy, client, client_config, test_settings};

const NAME: &str = "a.example";

/// Has the bench speak TLS, and gives a client's configuration.
fn secure(bench: &Bench, version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
    let (settings, roots) = test_settings(&[NAME], Policy::Intermediate);
    *bench.handlers.secured_by.borrow_mut() = Some((settings, NAME));
    client_config(roots, &[version])
}

struct Client {
    socket: UnixStream,
    tls: ClientConnection,
    got: Vec<u8>,
    /// The stream has ended, and whether that was told.
    ended: Option<bool>,
}

impl Client {
    fn new(bench: &Bench, config: &Arc<ClientConfig>) -> Self {
        Self {
            socket: bench.connect(),
            tls: client(config, NAME),
            got: Vec::new(),
            ended: None,
        }
    }

    /// Lets both go on until enough was got.
    fn until(&mut self, bench: &Bench, mut enough: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !enough(self) {
            let text = plain(&self.got[..self.got.len().min(2000)]);
            assert!(Instant::now() < deadline, "in vain: {text}");
            bench.core.turn(Some(Duration::from_millis(2))).unwrap();
            while self.tls.wants_write() {
                match self.tls.write_tls(&mut self.socket) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => break,
                }
            }
            match self.tls.read_tls(&mut self.socket) {
                Ok(0) => self.ended = self.ended.or(Some(false)),
                Ok(_) => {
                    let state = self.tls.process_new_packets().unwrap();
                    let start = self.got.len();
                    self.got.resize(start + state.plaintext_bytes_to_read(), 0);
                    self.tls
                        .reader()
                        .read_exact(&mut self.got[start..])
                        .unwrap();
                    if state.peer_has_closed() {
                        self.ended = Some(true);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.ended = self.ended.or(Some(false)),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.tls.set_buffer_limit(None);
        self.tls.writer().write_all(bytes).unwrap();
    }

    /// The answers to these bytes, which end so.
    fn ask(&mut self, bench: &Bench, bytes: &[u8], end: &[u8]) -> String {
        self.send(bytes);
        self.until(bench, |client| client.got.ends_with(end));
        plain(&std::mem::take(&mut self.got))
    }
}

fn on_each_version(test: impl Fn(&Bench, &Arc<ClientConfig>)) {
    on_each_engine(|bench| {
        for version in [&TLS12, &TLS13] {
            test(bench, &secure(bench, version));
            bench.handlers.seen.log.borrow_mut().clear();
        }
    });
}

#[test]
fn requests_are_answered_one_by_one_and_together() {
    on_each_version(|bench, config| {
        let mut client = Client::new(bench, config);
        let ok = request("GET", "/ok", "", "");
        for _ in 0..3 {
            let got = client.ask(bench, &ok, b"ok.");
            assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
        }
        let got = client.ask(bench, &ok.repeat(100), b"ok.");
        assert!(got.starts_with("HTTP/1.1 200 OK\r\n"));
        let last = request("GET", "/ok", "Connection: close\r\n", "");
        // The limit of requests of a connection ended it, and said so.
        client.until(bench, |client| client.ended.is_some());
        assert_eq!(client.ended, Some(true));
        let mut client = Client::new(bench, config);
        client.send(&last);
        client.until(bench, |client| client.ended.is_some());
        assert_eq!(client.ended, Some(true));
        assert!(client.got.ends_with(b"ok."));
    });
}

#[test]
fn large_bodies_go_both_ways_at_once() {
    on_each_version(|bench, config| {
        let length = 3 << 20;
        let fields = format!("Content-Length: {length}\r\n");
        let mut bytes = request("POST", "/echo", &fields, "");
        bytes.extend((0..length).map(|at: u32| (at % 251) as u8));
        let content = bytes[bytes.len() - length as usize..].to_vec();
        let mut client = Client::new(bench, config);
        client.send(&bytes);
        client.send(&request("GET", "/ok", "", ""));
        client.until(bench, |client| client.got.ends_with(b"ok."));
        let begin = 4 + client
            .got
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .unwrap();
        assert!(client.got[begin..begin + content.len()] == content);
        let lines = [
            format!("POST /echo 200 {length} {length}"),
            "GET /ok 200 3 0".into(),
        ];
        assert_eq!(bench.handlers.log(), lines);
    });
}

#[test]
fn chunks_trailers_and_interim_responses_pass() {
    on_each_version(|bench, config| {
        let mut client = Client::new(bench, config);
        let fields = "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n";
        let head = request("POST", "/count", fields, "");
        let got = client.ask(bench, &head, b"\r\n\r\n");
        assert_eq!(got, "HTTP/1.1 100 Continue\r\n\r\n");
        let got = client.ask(bench, b"5\r\nhello\r\n0\r\n\r\n", b"read.");
        assert!(got.ends_with("\r\n\r\n5 read."));
        let got = client.ask(bench, &request("GET", "/hints/3", "", ""), b"true.");
        assert_eq!(got.matches("103 Early Hints").count(), 3, "{got}");
    });
}

#[test]
fn a_relayed_response_is_encrypted() {
    on_each_version(|bench, config| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        *bench.handlers.seen.backend.borrow_mut() = Some(bench.core.own(ours.into()));
        let length = 700_000;
        let content: Vec<u8> = (0..length).map(|at: u32| (at % 251) as u8).collect();
        let sent = content.clone();
        let backend = std::thread::spawn(move || {
            theirs.write_all(&sent).unwrap();
            theirs
        });
        let mut client = Client::new(bench, config);
        client.send(&request("GET", &format!("/relay/{length}"), "", ""));
        client.until(bench, |client| {
            client.got.len() > content.len()
                && client.got.ends_with(&content[length as usize - 4000..])
        });
        assert!(client.got.ends_with(&content));
        drop(backend.join().unwrap());
        let outcome = bench.handlers.seen.outcome.borrow().clone().unwrap();
        assert_eq!((outcome.taken(), outcome.error()), (outcome.given(), None));
    });
}

#[test]
fn a_tunnel_is_encrypted_and_each_direction_ends_by_itself() {
    on_each_version(|bench, config| {
        let mut client = Client::new(bench, config);
        let bytes = [&request("GET", "/tunnel", "", "")[..], b"early."].concat();
        let got = client.ask(bench, &bytes, b"early.");
        assert!(got.starts_with("HTTP/1.1 101 Switching Protocols\r\n"));
        let large: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 253) as u8).collect();
        client.send(&large);
        client.until(bench, |client| client.got.len() == large.len());
        assert!(client.got == large);
        client.tls.send_close_notify();
        client.until(bench, |client| client.ended.is_some());
        assert_eq!(client.ended, Some(true));
    });
}

#[test]
fn who_reads_slowly_gets_all_of_it() {
    on_each_version(|bench, config| {
        let mut client = Client::new(bench, config);
        client.send(&request("GET", "/many/4000", "", ""));
        for _ in 0..200 {
            bench.core.turn(Some(Duration::ZERO)).unwrap();
        }
        client.until(bench, |client| client.got.ends_with(b"0\r\n\r\n"));
    });
}

#[test]
fn every_wrong_begin_is_counted_and_ends() {
    on_each_engine(|bench| {
        let config = secure(bench, &TLS13);
        let until_end = |bytes: &[u8]| {
            let mut socket = bench.connect();
            socket.write_all(bytes).unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
            let mut got = Vec::new();
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                assert!(Instant::now() < deadline);
                bench.core.turn(Some(Duration::from_millis(2))).unwrap();
                match socket.read_to_end(&mut got) {
                    Ok(_) => return got,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => return got,
                }
            }
        };
        let plain_http = until_end(&request("GET", "/ok", "", ""));
        let text = plain(&plain_http);
        assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{text}");
        assert!(text.contains("https://"), "{text}");
        assert_eq!(until_end(b"\0\0\0"), b"");
        assert_eq!(
            until_end(b"\x16\x03\x01\0\x01\x02"),
            b"\x15\x03\x03\0\x02\x02\x32"
        );
        // Cut off at each byte of a hello, nothing is said.
        let mut stranger = client(&config, "b.example");
        let mut hello = Vec::new();
        stranger.write_tls(&mut hello).unwrap();
        for end in (0..hello.len()).step_by(97) {
            assert_eq!(until_end(&hello[..end]), b"", "{end}");
        }
        assert_eq!(until_end(&hello), b"\x15\x03\x03\0\x02\x02\x70");
        let mut address = client(&config, "127.0.0.1");
        hello.clear();
        address.write_tls(&mut hello).unwrap();
        assert_eq!(until_end(&hello), b"\x15\x03\x03\0\x02\x02\x6d");
        let counts = bench.handlers.registry.limits().counts();
        for failure in [
            Failure::PlainHttp,
            Failure::NotTls,
            Failure::Hello(""),
            Failure::Left,
            Failure::UnknownName,
            Failure::NoName,
        ] {
            let name = failure.name();
            assert!(counts.iter().any(|(known, _)| *known == name), "{counts:?}");
        }
    });
}

#[test]
fn who_leaves_within_the_handshake_leaves_nothing_behind() {
    on_each_version(|bench, config| {
        for round in 0..20 {
            let mut client = Client::new(bench, config);
            let mut left = round;
            client.until(bench, |_| {
                left -= 1;
                left < 0
            });
            drop(client);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while bench.core.usage().tasks > 0 {
            assert!(
                Instant::now() < deadline,
                "{} tasks",
                bench.core.usage().tasks
            );
            bench.core.turn(Some(Duration::from_millis(2))).unwrap();
        }
    });
}

#[test]
fn tls_on_a_plain_port_is_refused_and_closed() {
    on_each_engine(|bench| {
        let config = secure(bench, &TLS13);
        *bench.handlers.secured_by.borrow_mut() = None;
        let mut hello = Vec::new();
        client(&config, NAME).write_tls(&mut hello).unwrap();
        let mut socket = bench.connect();
        socket.write_all(&hello).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut got = Vec::new();
        let ended = loop {
            assert!(Instant::now() < deadline);
            bench.core.turn(Some(Duration::from_millis(2))).unwrap();
            match socket.read_to_end(&mut got) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => break other,
            }
        };
        assert!(ended.is_ok(), "no reset");
        assert!(plain(&got).starts_with("HTTP/1.1 400 "), "{}", plain(&got));
        let counts = bench.handlers.registry.limits().counts();
        assert_eq!(counts, [("TLS on a plain port", 1)]);
    });
}
