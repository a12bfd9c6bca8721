//! Bodies that are larger than any buffer: they pass whole, at the pace of the slower side, in bounded
//! memory.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::backend::{Backend, Gate, ok};
use super::{plain, upstream_config};
use crate::support::{Client, PATIENCE, Server, Setup, memory, noise, on_both, wait_for};

/// A body.
const SIZE: usize = 100 << 20;

/// What is sent over and over.
const PIECE: usize = 1 << 20;

/// How much a worker may grow by while it passes such a body on.
const GROWTH_MAX: u64 = 24 << 20;

/// Waits until this counter stands still, and gives what it stands at.
fn settled(counter: &AtomicU64) -> u64 {
    let (mut last, mut same) = (0, 0);
    wait_for("it stands still", PATIENCE, || {
        let now = counter.load(Ordering::SeqCst);
        same = if now == last && now > 0 { same + 1 } else { 0 };
        last = now;
        // Of waits of 5 ms.
        (same >= 40).then_some(now)
    })
}

fn grown(server: &Server, before: u64) -> u64 {
    memory(server.worker()).saturating_sub(before)
}

#[test]
fn a_download_waits_for_a_slow_client_in_bounded_memory() {
    on_both(|engine| {
        let sent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sent);
        let piece = Arc::new(noise(PIECE));
        let content = Arc::clone(&piece);
        let backend = Backend::start(move |connection| {
            while let Some(request) = connection.request() {
                if request.target == "/warm" {
                    connection.send(ok("warm"));
                    continue;
                }
                connection.send(match request.target.as_str() {
                    "/length" => format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"),
                    _ => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
                });
                for _ in 0..SIZE / PIECE {
                    if request.target == "/chunked" {
                        connection.send(format!("{PIECE:x}\r\n"));
                    }
                    for part in content.chunks(64 << 10) {
                        if !connection.send(part) {
                            return;
                        }
                        counter.fetch_add(part.len() as u64, Ordering::SeqCst);
                    }
                    if request.target == "/chunked" {
                        connection.send("\r\n");
                    }
                }
                if request.target == "/chunked" {
                    connection.send("0\r\n\r\n");
                }
            }
        });
        let server = plain(engine, &backend);
        assert_eq!(server.connect().get("/warm").text(), "warm");
        let before = memory(server.worker());
        for target in ["/length", "/chunked"] {
            sent.store(0, Ordering::SeqCst);
            let mut client = Client::connect_with(server.address(), |socket| {
                socket.set_recv_buffer_size(64 << 10).expect("SO_RCVBUF");
            });
            client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            client.await_bytes(1);
            let ahead = settled(&sent);
            // Socket buffers may hold some megabytes; nobody has all of it.
            assert!(ahead < SIZE as u64 / 2, "{target}: {ahead} B were taken");
            let while_slow = grown(&server, before);
            assert!(while_slow < GROWTH_MAX, "{target}: {while_slow} B more");
            let response = client.response();
            assert_eq!(response.body.len(), SIZE, "{target}");
            let whole = response
                .body
                .chunks(PIECE)
                .all(|part| part == piece.as_slice());
            assert!(whole, "{target}: other bytes");
            let after = grown(&server, before);
            assert!(after < GROWTH_MAX, "{target}: {after} B more");
        }
        assert_eq!(backend.connections(), 1, "it is used again");
    });
}

#[test]
fn an_upload_waits_for_a_slow_backend_in_bounded_memory() {
    on_both(|engine| {
        let gate = Gate::default();
        let at_backend = gate.clone();
        let piece = Arc::new(noise(PIECE));
        let expected = Arc::clone(&piece);
        let backend = Backend::start(move |connection| {
            while let Some(request) = connection.head() {
                if request.target == "/warm" {
                    connection.send(ok("warm"));
                    continue;
                }
                at_backend.wait();
                let mut raw = Vec::new();
                let mut whole = true;
                match request.is_chunked() {
                    false => {
                        for _ in 0..SIZE / PIECE {
                            whole &= connection.exactly(PIECE) == *expected;
                        }
                    }
                    true => {
                        while !raw.ends_with(b"0\r\n\r\n") {
                            raw.extend(connection.bytes());
                        }
                        whole = count_chunks(&raw) == SIZE;
                    }
                }
                connection.send(ok(if whole { "whole" } else { "other bytes" }));
            }
        });
        let server = plain(engine, &backend);
        assert_eq!(server.connect().get("/warm").text(), "warm");
        let before = memory(server.worker());
        for framing in [
            format!("Content-Length: {SIZE}"),
            "Transfer-Encoding: chunked".to_owned(),
        ] {
            let sent = Arc::new(AtomicU64::new(0));
            let mut client = server.connect();
            client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"));
            let mut socket = client.socket().try_clone().expect("a descriptor");
            let (counter, content) = (Arc::clone(&sent), Arc::clone(&piece));
            let chunked = framing.starts_with('T');
            let sender = std::thread::spawn(move || {
                use std::io::Write as _;
                for _ in 0..SIZE / PIECE {
                    if chunked {
                        write!(socket, "{PIECE:x}\r\n").expect("it goes out");
                    }
                    for part in content.chunks(64 << 10) {
                        socket.write_all(part).expect("it goes out");
                        counter.fetch_add(part.len() as u64, Ordering::SeqCst);
                    }
                    if chunked {
                        socket.write_all(b"\r\n").expect("it goes out");
                    }
                }
                if chunked {
                    socket.write_all(b"0\r\n\r\n").expect("it goes out");
                }
            });
            let ahead = settled(&sent);
            assert!(ahead < SIZE as u64 / 2, "{framing}: {ahead} B were taken");
            let while_slow = grown(&server, before);
            assert!(while_slow < GROWTH_MAX, "{framing}: {while_slow} B more");
            gate.open();
            sender.join().expect("it was sent");
            assert_eq!(client.response().text(), "whole", "{framing}");
            let after = grown(&server, before);
            assert!(after < GROWTH_MAX, "{framing}: {after} B more");
        }
    });
}

/// The bytes of content in these chunks.
fn count_chunks(mut raw: &[u8]) -> usize {
    let mut sum = 0;
    loop {
        let end = raw.iter().position(|byte| *byte == b'\r').expect("a line");
        let size = std::str::from_utf8(&raw[..end]).expect("hex digits");
        let size = usize::from_str_radix(size, 16).expect("hex digits");
        if size == 0 {
            return sum;
        }
        sum += size;
        raw = &raw[end + 2 + size + 2..];
    }
}

#[test]
fn many_slow_downloads_at_once_have_bounded_memory() {
    const CLIENTS: usize = 50;
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            let Some(request) = connection.request() else {
                return;
            };
            if request.target == "/warm" {
                connection.send(ok("warm"));
                return;
            }
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
            while connection.send([b'x'; 64 << 10]) {}
        });
        let server = plain(engine, &backend);
        assert_eq!(server.connect().get("/warm").text(), "warm");
        let before = memory(server.worker());
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| server.download("/long")).collect();
        let mut last = 0;
        let mut same = 0;
        let while_slow = wait_for("its memory stands still", PATIENCE, || {
            let now = grown(&server, before);
            same = if now == last { same + 1 } else { 0 };
            last = now;
            (same >= 20).then_some(now)
        });
        assert!(
            while_slow < (CLIENTS as u64) * (512 << 10),
            "{while_slow} B for {CLIENTS} clients"
        );
        let mut room = [0; 1 << 16];
        for client in &mut clients {
            let mut socket = client.socket();
            assert!(socket.read(&mut room).expect("more of it") > 0);
        }
    });
}

/// How many pipes a worker has open.
fn pipes(server: &Server) -> usize {
    let directory = format!("/proc/{}/fd", server.worker());
    let links = std::fs::read_dir(directory).expect("it runs");
    let targets = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    targets
        .filter(|target| target.to_string_lossy().starts_with("pipe:"))
        .count()
}

#[test]
fn without_splice_large_bodies_are_copied() {
    on_both(|engine| {
        let content = noise(PIECE);
        let sent = content.clone();
        let backend = Backend::start(move |connection| {
            while connection.request().is_some() {
                connection.send(format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {PIECE}\r\n\r\n"
                ));
                connection.send(&sent);
            }
        });
        let with = upstream_config(&[backend.name()], "", "");
        let without = format!("[server]\nsplice = false\n{with}");
        let server = Setup::run(engine, &without).start();
        let before = pipes(&server);
        let mut client = server.connect();
        for _ in 0..3 {
            assert!(client.get("/").body == content);
        }
        assert_eq!(pipes(&server), before);
        // A reload in place is enough for the change.
        let worker = server.worker();
        for (config, more) in [(&with, 2), (&without, 0)] {
            server.write_config(config);
            server.must(&["reload"]);
            for _ in 0..3 {
                assert!(client.get("/").body == content);
            }
            assert_eq!(pipes(&server), before + more);
        }
        assert_eq!(server.worker(), worker);
    });
}
