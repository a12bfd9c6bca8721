//! Streaming on both engines, by real sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use super::{Handlers, plain, request};
use crate::http::session::serve;
use crate::net::listener::Listening;
use crate::runtime::engine::caps::{EngineChoice, Selection};
use crate::runtime::executor::Core;
use crate::runtime::mailbox::Wake;

pub(super) struct Bench {
    pub(super) core: Core,
    pub(super) handlers: Rc<Handlers>,
    listening: Rc<Listening>,
}

impl Bench {
    pub(super) fn connect(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let population = self.handlers.registry.population();
        let member = population.enter(&self.core, &self.listening);
        let (core, handlers) = (self.core.clone(), self.handlers.clone());
        let socket = core.own(ours.into());
        let session = serve(core, socket, member, self.listening.clone(), handlers);
        self.core.spawn(session);
        theirs
    }

    /// Sends all of `bytes` while it reads, until it has read enough or the end.
    fn exchange(
        &self,
        client: &mut UnixStream,
        mut bytes: &[u8],
        enough: impl Fn(&[u8]) -> bool,
    ) -> Vec<u8> {
        let (mut got, mut part) = (Vec::new(), vec![0; 64 << 10]);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            assert!(Instant::now() < deadline, "in vain: {}", plain(&got));
            self.core.turn(Some(Duration::from_millis(2))).unwrap();
            if !bytes.is_empty() {
                match client.write(bytes) {
                    Ok(sent) => bytes = &bytes[sent..],
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            match client.read(&mut part) {
                Ok(0) => return got,
                Ok(len) => got.extend_from_slice(&part[..len]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            if bytes.is_empty() && enough(&got) {
                return got;
            }
        }
    }
}

pub(super) fn on_each_engine(test: impl Fn(&Bench)) {
    for choice in [EngineChoice::Auto, EngineChoice::Epoll] {
        let selection = Selection::choose(choice).unwrap();
        let core = selection.core(Wake::new().unwrap(), None).unwrap();
        let bench = Bench {
            handlers: Handlers::new(&core),
            listening: Listening::new(3),
            core,
        };
        test(&bench);
        assert_eq!(bench.core.panics(), 0);
        assert!(bench.core.shut_down());
        let seen = &bench.handlers.seen;
        assert_eq!((seen.streams.get(), seen.tunnels.get()), (0, 0));
    }
}

#[test]
fn a_large_upload_comes_back_whole_in_bounded_memory() {
    on_each_engine(|bench| {
        let length = 3 << 20;
        let mut bytes = request(
            "POST",
            "/echo",
            &format!("Content-Length: {length}\r\n"),
            "",
        );
        bytes.extend((0..length).map(|at: u32| (at % 251) as u8));
        let content = bytes[bytes.len() - length as usize..].to_vec();
        bytes.extend(request("GET", "/ok", "", ""));
        let mut client = bench.connect();
        let got = bench.exchange(&mut client, &bytes, |got| got.ends_with(b"ok."));
        let begin = 4 + got.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        assert!(
            got[begin..begin + content.len()] == content,
            "as it was sent"
        );
        assert!(plain(&got[begin + content.len()..]).starts_with("HTTP/1.1 200 OK"));
        assert_eq!(
            bench.handlers.log(),
            [
                format!("POST /echo 200 {length} {length}"),
                "GET /ok 200 3 0".to_owned()
            ]
        );
    });
}

#[test]
fn a_chunked_body_is_asked_for_and_ends_with_trailers() {
    on_each_engine(|bench| {
        let mut client = bench.connect();
        let fields = "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n";
        let head = request("POST", "/echo", fields, "");
        // A handler that answers before it reads has not asked, and can't any more.
        let got = bench.exchange(&mut client, &head, |got| got.ends_with(b"\r\n\r\n"));
        assert!(
            plain(&got).starts_with("HTTP/1.1 200 OK"),
            "no 100 behind it"
        );
        let mut client = bench.connect();
        let head = request("POST", "/count", fields, "");
        let got = bench.exchange(&mut client, &head, |got| got.ends_with(b"\r\n\r\n"));
        assert_eq!(plain(&got), "HTTP/1.1 100 Continue\r\n\r\n");
        let body = b"5\r\nhello\r\n0\r\n\r\n";
        let got = bench.exchange(&mut client, body, |got| got.ends_with(b"read."));
        assert!(plain(&got).ends_with("\r\n\r\n5 read."));
    });
}

#[test]
fn a_tunnel_echoes_and_each_direction_ends_by_itself() {
    on_each_engine(|bench| {
        let mut client = bench.connect();
        let bytes = [&request("GET", "/tunnel", "", "")[..], b"early."].concat();
        let got = bench.exchange(&mut client, &bytes, |got| got.ends_with(b"early."));
        assert!(plain(&got).starts_with("HTTP/1.1 101 Switching Protocols\r\n"));
        let large: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 253) as u8).collect();
        let got = bench.exchange(&mut client, &large, |got| got.len() == large.len());
        assert!(got == large, "as it was sent");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(bench.exchange(&mut client, b"", |_| false), b"");
        let total = large.len() + 6;
        assert_eq!(
            bench.handlers.log(),
            [format!("GET /tunnel 101 {total} {total}")]
        );
    });
}

#[test]
fn a_client_that_leaves_ends_the_stream() {
    on_each_engine(|bench| {
        let mut client = bench.connect();
        let head = request("GET", "/many/1000000", "", "");
        bench.exchange(&mut client, &head, |got| got.len() > 100_000);
        assert_eq!(bench.handlers.seen.streams.get(), 1);
        drop(client);
        let deadline = Instant::now() + Duration::from_secs(10);
        while bench.handlers.seen.streams.get() > 0 {
            assert!(Instant::now() < deadline, "it goes on");
            bench.core.turn(Some(Duration::from_millis(2))).unwrap();
        }
        let log = bench.handlers.log();
        assert!(log[0].ends_with("[client gone]"), "{log:?}");
    });
}

/// A backend's end of a socket that the next handler gets.
fn backend(bench: &Bench) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    *bench.handlers.seen.backend.borrow_mut() = Some(bench.core.own(ours.into()));
    theirs
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

#[test]
fn a_relayed_response_comes_whole_in_every_framing() {
    const LENGTH: usize = 3_000_000;
    on_each_engine(|bench| {
        let content = bytes(LENGTH);
        let mut client = bench.connect();
        for (target, begin, end) in [
            ("relay", "begin.", ""),
            ("relayed", "6\r\nbegin.\r\n2dc6c0\r\n", "\r\n0\r\n\r\n"),
        ] {
            let mut theirs = backend(bench);
            let source = content.clone();
            let writer = thread::spawn(move || theirs.write_all(&source).map(|()| theirs));
            let ask = request("GET", &format!("/{target}/{LENGTH}"), "", "");
            let most = LENGTH + begin.len() + end.len();
            let got = bench.exchange(&mut client, &ask, |got| {
                let head = got.windows(4).position(|four| four == b"\r\n\r\n");
                head.is_some_and(|at| got.len() >= at + 4 + most)
            });
            let head = 4 + got.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
            let whole = [begin.as_bytes(), &content, end.as_bytes()].concat();
            assert!(got[head..] == whole, "{target}");
            writer.join().unwrap().unwrap();
            let outcome = bench.handlers.seen.outcome.take().unwrap();
            let of = (outcome.taken(), outcome.given(), outcome.error());
            assert_eq!(of, (LENGTH as u64, LENGTH as u64, None));
        }
        // Up to the end of the connection.
        let mut theirs = backend(bench);
        let source = content.clone();
        let writer = thread::spawn(move || theirs.write_all(&source));
        let ask = format!("GET /relayed/{LENGTH} HTTP/1.0\r\n\r\n");
        let got = bench.exchange(&mut client, ask.as_bytes(), |_| false);
        assert!(got.ends_with(&[b"\r\n\r\nbegin.", &content[..]].concat()));
        writer.join().unwrap().unwrap();
        let sent = LENGTH + 6;
        assert_eq!(
            bench.handlers.log(),
            [
                format!("GET /relay/{LENGTH} 200 {sent} 0"),
                format!("GET /relayed/{LENGTH} 200 {sent} 0"),
                format!("GET /relayed/{LENGTH} 200 {sent} 0"),
            ]
        );
    });
}

#[test]
fn a_relayed_request_arrives_whole_and_the_next_one_is_not_lost() {
    const LENGTH: usize = 3_000_000;
    on_each_engine(|bench| {
        let mut theirs = backend(bench);
        let reader = thread::spawn(move || {
            let mut got = vec![0; LENGTH];
            theirs.read_exact(&mut got).map(|()| got)
        });
        let fields = format!("Content-Length: {LENGTH}\r\n");
        let mut all = request("POST", "/pass/10", &fields, "");
        all.extend(bytes(LENGTH));
        all.extend(request("GET", "/ok", "", ""));
        let mut client = bench.connect();
        let got = bench.exchange(&mut client, &all, |got| got.ends_with(b"ok."));
        assert!(plain(&got).contains("\r\n\r\n3000000 given."));
        assert!(reader.join().unwrap().unwrap() == bytes(LENGTH));
        assert_eq!(
            bench.handlers.log(),
            ["POST /pass/10 200 14 3000000", "GET /ok 200 3 0"]
        );
    });
}

#[test]
fn a_backend_that_takes_no_more_can_say_why() {
    on_each_engine(|bench| {
        let mut theirs = backend(bench);
        let reader = thread::spawn(move || {
            theirs.read_exact(&mut [0; 200_000]).unwrap();
            theirs.write_all(b"too large.").unwrap();
            theirs.shutdown(Shutdown::Read).unwrap();
            // Who waits for room in a unix socket isn't woken by that (unix(7)), but by room.
            theirs.read_to_end(&mut Vec::new()).unwrap();
            theirs
        });
        let mut all = request("POST", "/pass/10", "Content-Length: 9000000\r\n", "");
        all.extend(bytes(2_000_000));
        let mut client = bench.connect();
        let got = bench.exchange(&mut client, &all, |got| got.ends_with(b"too large."));
        let got = plain(&got);
        assert!(got.starts_with("HTTP/1.1 200 OK"), "{got}");
        assert!(got.contains("the receiver's connection broke"), "{got}");
        reader.join().unwrap();
    });
}
