//! Streaming in virtual time, with faults.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::handlers::MANY_PIECE;
use super::{BODY_DRAIN, Handlers, plain, request};
use crate::http::session::serve;
use crate::net::listener::{Listening, accept_loop, limits};
use crate::runtime::engine::sim::{
    self, Act, ClientId, Config, End, Faults, ListenerId, Pace, World,
};
use crate::runtime::executor::Core;

const TURNS_MAX: u64 = 400_000;

/// A connection's future that is dropped at one of its polls, unless that is 0.
struct Mortal<F> {
    inner: Option<Pin<Box<F>>>,
    polls_left: u64,
    survived: Rc<std::cell::Cell<bool>>,
}

impl<F: Future<Output = ()>> Future for Mortal<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.polls_left = self.polls_left.wrapping_sub(1);
        if self.polls_left == 0 {
            self.inner = None;
            self.survived.set(false);
        }
        match self.inner.as_mut() {
            Some(inner) => inner.as_mut().poll(context),
            None => Poll::Ready(()),
        }
    }
}

pub(super) struct Bench {
    pub(super) core: Core,
    pub(super) world: World,
    pub(super) handlers: Rc<Handlers>,
    listening: Rc<Listening>,
    listener: ListenerId,
    survived: Rc<std::cell::Cell<bool>>,
}

impl Bench {
    pub(super) fn new(seed: u64, faults: Faults, config: Config, dies_at: u64) -> Self {
        let (core, world) = sim::new(seed, faults, config);
        let handlers = Handlers::new(&core);
        let (listener, id) = world.listen();
        let listening = Listening::new(0);
        let survived = Rc::new(std::cell::Cell::new(true));
        let (inner, service, of) = (core.clone(), handlers.clone(), listening.clone());
        let told = survived.clone();
        let serve = move |socket, member| {
            let session = serve(inner.clone(), socket, member, of.clone(), service.clone());
            inner.spawn(Mortal {
                inner: Some(Box::pin(session)),
                polls_left: dies_at,
                survived: told.clone(),
            });
        };
        core.spawn(accept_loop(
            core.clone(),
            listener,
            handlers.registry.population().clone(),
            listening.clone(),
            limits(100),
            serve,
            || {},
        ));
        Self {
            core,
            world,
            handlers,
            listening,
            listener: id,
            survived,
        }
    }

    /// Without faults.
    pub(super) fn calm() -> Self {
        Self::new(1, Faults::default(), Config::default(), 0)
    }

    pub(super) fn client(&self, script: Vec<(Duration, Act)>) -> ClientId {
        self.world.connect(self.listener, Duration::ZERO, script)
    }

    /// What a client receives that sends these bytes, ends its direction, and reads to the end.
    pub(super) fn ask(&self, bytes: &[u8]) -> (String, Option<End>) {
        let script = vec![at(0, send(bytes)), at(1, Act::HalfClose)];
        self.finish_client(self.client(script))
    }

    pub(super) fn finish_client(&self, client: ClientId) -> (String, Option<End>) {
        let world = &self.world;
        world.run_until(TURNS_MAX, || {
            world.is_over(client) && self.listening.open() == 0
        });
        let seen = self.world.seen(client);
        (plain(&seen.received), seen.end)
    }

    /// Nothing may be left of anything.
    pub(super) fn end(self) {
        let Self {
            core,
            world,
            handlers,
            ..
        } = self;
        assert_eq!(handlers.seen.streams.get(), 0);
        assert_eq!(handlers.seen.tunnels.get(), 0);
        assert_eq!(core.panics(), 0);
        drop(handlers);
        assert!(core.shut_down());
        world.finish();
    }
}

pub(super) fn at(ms: u64, act: Act) -> (Duration, Act) {
    (Duration::from_millis(ms), act)
}

pub(super) fn send(bytes: &[u8]) -> Act {
    Act::Send(bytes.to_vec())
}

/// Waits until this has come.
fn until(text: &'static str) -> Act {
    let text = text.as_bytes();
    Act::Await(Box::new(move |received: &[u8]| {
        received.windows(text.len()).any(|window| window == text)
    }))
}

/// The first response in these bytes as `status content|trailers`, and its length.
fn response(bytes: &[u8], to_head: bool) -> Option<(String, usize)> {
    let mut at = 4 + bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = plain(&bytes[..at]);
    let mut content = Vec::new();
    let mut trailers = String::new();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    if head.contains("Transfer-Encoding: chunked") && !to_head {
        loop {
            let line = bytes[at..].windows(2).position(|two| two == b"\r\n")?;
            let size = std::str::from_utf8(&bytes[at..at + line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            at += line + 2;
            if size == 0 {
                let end = bytes[at - 2..]
                    .windows(4)
                    .position(|four| four == b"\r\n\r\n")?;
                trailers = plain(bytes.get(at..at + end)?);
                at += end + 2;
                break;
            }
            content.extend_from_slice(bytes.get(at..at + size)?);
            assert_eq!(bytes.get(at + size..at + size + 2)?, b"\r\n");
            at += size + 2;
        }
    } else if let (Some(length), false) = (length, to_head) {
        let length: usize = length.parse().unwrap();
        content.extend_from_slice(bytes.get(at..at + length)?);
        at += length;
    }
    let content = match content.len() {
        0..100 => plain(&content),
        many => format!("{many} bytes"),
    };
    Some((
        format!("{} {content}|{}", &head[9..12], trailers.trim_end()),
        at,
    ))
}

fn responses(mut bytes: &[u8], heads: &[bool]) -> Vec<String> {
    let mut found = Vec::new();
    for to_head in heads {
        let Some((text, length)) = response(bytes, *to_head) else {
            break;
        };
        found.push(text);
        bytes = &bytes[length..];
    }
    if !bytes.is_empty() {
        found.push(format!("and {}", plain(bytes)));
    }
    found
}

/// Every kind of exchange that keeps its connection, and how it is answered.
fn exchanges() -> Vec<(Vec<u8>, &'static str)> {
    let chunked = "Transfer-Encoding: chunked\r\n";
    vec![
        (
            request("POST", "/echo", "Content-Length: 5\r\n", "hello"),
            "200 hello|",
        ),
        (
            request(
                "POST",
                "/echo",
                chunked,
                "5;x=y\r\nhello\r\n3\r\n, w\r\n0\r\nA: b\r\n\r\n",
            ),
            "200 hello, w|X-End: yes",
        ),
        (request("GET", "/echo", "", ""), "200 |"),
        (
            request("PUT", "/count", chunked, "4\r\nbody\r\n0\r\n\r\n"),
            "200 4 read.|",
        ),
        (
            request("POST", "/ok", "Content-Length: 6\r\n", "unread"),
            "200 ok.|",
        ),
        (request("GET", "/whole", "", ""), "200 beginend.|"),
        (request("GET", "/exact", "", ""), "200 beginend.|"),
        (
            request("POST", "/whole", "Content-Length: 6\r\n", "unread"),
            "200 beginend.|",
        ),
        (request("GET", "/many/3", "", ""), "200 49152 bytes|"),
        (request("HEAD", "/whole", "", ""), "200 |"),
        (request("HEAD", "/exact", "", ""), "200 |"),
        (request("HEAD", "/absent/7", "", ""), "200 |"),
        (request("GET", "/ok", "", ""), "200 ok.|"),
    ]
}

#[test]
fn bodies_stream_both_ways_and_the_connection_stays() {
    let exchanges = exchanges();
    let expected: Vec<&str> = exchanges.iter().map(|(_, answer)| *answer).collect();
    let heads: Vec<bool> = exchanges
        .iter()
        .map(|(r, _)| r.starts_with(b"HEAD"))
        .collect();
    let all: Vec<u8> = exchanges.iter().flat_map(|(r, _)| r.clone()).collect();
    for seed in 0..400 {
        let faults = Faults {
            reset: 0.0,
            ..Faults::seeded(seed)
        };
        let bench = Bench::new(seed, faults, Config::seeded(seed), 0);
        let mut random = bench.world.random(5);
        let (mut script, mut rest) = (Vec::new(), &all[..]);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(random.part(rest.len()));
            script.push(at(random.below(50), send(now)));
            rest = later;
        }
        script.push(at(0, Act::HalfClose));
        let client = bench.client(script);
        bench.finish_client(client);
        let seen = bench.world.seen(client);
        assert_eq!(responses(&seen.received, &heads), expected, "seed {seed}");
        let log = bench.handlers.log();
        assert_eq!(log.len(), expected.len(), "seed {seed}: {log:?}");
        assert_eq!(log[0], "POST /echo 200 5 5");
        assert_eq!(log[3], "PUT /count 200 7 4");
        bench.end();
    }
}

#[test]
fn a_body_is_asked_for_when_it_is_read_and_not_before() {
    let bench = Bench::calm();
    let expects = "Content-Length: 4\r\nExpect: 100-continue\r\n";
    let client = bench.client(vec![
        at(0, send(&request("POST", "/count", expects, ""))),
        at(0, until("100 Continue\r\n\r\n")),
        at(50, send(b"body")),
        at(0, until("read.")),
        at(0, send(&request("POST", "/count", expects, "body"))),
        at(50, send(&request("POST", "/ok", expects, ""))),
        at(0, until("ok.")),
        at(0, Act::HalfClose),
    ]);
    let (received, end) = bench.finish_client(client);
    let counted = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n4 read.";
    assert_eq!(
        received,
        format!(
            "HTTP/1.1 100 Continue\r\n\r\n{counted}{counted}\
             HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok."
        )
    );
    assert_eq!(end, Some(End::Fin));
    bench.end();
}

#[test]
fn interim_responses_come_first_within_a_bound_and_never_to_http_1_0() {
    let bench = Bench::calm();
    let (received, _) = bench.ask(&request("GET", "/hints/2", "", ""));
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let final_one = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n2 false true.";
    assert_eq!(received, format!("{hint}{hint}{final_one}"));
    let (received, _) = bench.ask(&request("GET", "/hints/100", "", ""));
    assert_eq!(received.matches(hint).count(), 16);
    let (received, _) = bench.ask(b"GET /hints/2 HTTP/1.0\r\n\r\n");
    assert!(received.starts_with("HTTP/1.1 200 OK"), "{received}");
    assert!(received.ends_with("\r\n\r\n0 false true."), "{received}");
    bench.end();
}

#[test]
fn a_response_cut_short_never_looks_whole() {
    let bench = Bench::calm();
    let (received, end) = bench.ask(&request("GET", "/cut", "", ""));
    assert!(received.ends_with("\r\n\r\n5\r\nbegin\r\n"), "{received}");
    assert_eq!(end, Some(End::Fin));
    let (received, _) = bench.ask(&request("GET", "/short", "", ""));
    assert!(
        received.ends_with("Content-Length: 9\r\n\r\nbegin"),
        "{received}"
    );
    let (received, _) = bench.ask(&request("GET", "/long", "", ""));
    assert!(
        received.ends_with("Content-Length: 7\r\n\r\nbegin"),
        "{received}"
    );
    // Nothing but a reset tells HTTP/1.0 that it is not whole.
    let (_, end) = bench.ask(b"GET /cut HTTP/1.0\r\n\r\n");
    assert_eq!(end, Some(End::Reset));
    let (received, end) = bench.ask(b"GET /whole HTTP/1.0\r\n\r\n");
    assert!(
        received.ends_with("Connection: close\r\n\r\nbeginend."),
        "{received}"
    );
    assert_eq!(end, Some(End::Fin));
    bench.ask(&request("GET", "/noted", "", ""));
    assert_eq!(
        bench.handlers.log(),
        [
            "GET /cut 200 5 0 [backend gone]",
            "GET /short 200 5 0 [less content than was announced]",
            "GET /long 200 5 0 [more content than was announced]",
            "GET /cut 200 5 0 [backend gone]",
            "GET /whole 200 9 0",
            "GET /noted 200 5 0 [192.0.2.1:80]",
        ]
    );
    bench.end();
}

#[test]
fn lengths_are_told_to_head_and_absent_content_is_not_missed() {
    let bench = Bench::calm();
    let (received, _) = bench.ask(&request("HEAD", "/absent/7", "", ""));
    assert_eq!(received, "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n");
    let (received, _) = bench.ask(&request("HEAD", "/absent", "", ""));
    assert_eq!(received, "HTTP/1.1 200 OK\r\n\r\n");
    let (received, _) = bench.ask(&request("HEAD", "/exact", "", ""));
    assert_eq!(received, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n");
    bench.end();
}

/// A script that sends `bytes` bytes of a body, so many every second.
pub(super) fn trickle(target: &str, bytes: usize, rate: usize) -> Vec<(Duration, Act)> {
    let fields = format!("Content-Length: {bytes}\r\n");
    let mut script = vec![at(0, send(&request("POST", target, &fields, "")))];
    for _ in 0..bytes / rate {
        script.push(at(1000, Act::Send(vec![b'b'; rate])));
    }
    script
}

#[test]
fn a_client_must_send_at_the_rate_and_a_handler_need_not_read_at_it() {
    let bench = Bench::calm();
    let (received, end) = bench.finish_client(bench.client(trickle("/count", 60_000, 100)));
    assert!(received.starts_with("HTTP/1.1 408 "), "{received}");
    assert!(received.contains("Connection: close"), "{received}");
    assert_eq!(end, Some(End::Fin));
    assert!(bench.world.elapsed() < Duration::from_secs(20), "in time");
    let counts = bench.handlers.registry.limits().counts();
    assert_eq!(counts, [("progress of a body", 1)]);
    let mut script = trickle("/count", 60_000, 600);
    script.push(at(0, Act::HalfClose));
    let (received, _) = bench.finish_client(bench.client(script));
    assert!(received.ends_with("60000 read."), "{received}");
    // A byte each 15 seconds, which the handler takes each 20.
    let begin = request("POST", "/slow/20", "Content-Length: 4\r\n", "b");
    let mut script = vec![at(0, send(&begin))];
    script.extend((0..3).map(|_| at(15_000, send(b"b"))));
    script.push(at(0, Act::HalfClose));
    let (received, _) = bench.finish_client(bench.client(script));
    assert!(received.ends_with("4 read."), "{received}");
    assert_eq!(
        bench.handlers.log()[1..],
        ["POST /count 200 11 60000", "POST /slow/20 200 7 4"]
    );
    bench.end();
}

#[test]
fn a_body_that_is_malformed_or_ends_early_is_refused() {
    let bench = Bench::calm();
    let chunked = "Transfer-Encoding: chunked\r\n";
    let mut bad = request("POST", "/count", chunked, "4\r\nbody\nx");
    bad.extend(request("GET", "/ok", "", ""));
    for bytes in [
        bad,
        request("POST", "/count", "Content-Length: 9\r\n", "half"),
        request("POST", "/count", chunked, "4\r\nbo"),
    ] {
        let (received, end) = bench.ask(&bytes);
        assert_eq!(
            received,
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(end, Some(End::Fin));
    }
    // The response has begun: its end does not come.
    let (received, _) = bench.ask(&request("POST", "/echo", chunked, "4\r\nbody\r\n"));
    assert!(received.ends_with("\r\n\r\n4\r\nbody\r\n"), "{received}");
    assert_eq!(
        bench.handlers.log(),
        [
            "POST /count 400 0 4 [chunk is longer than its size]",
            "POST /count 400 0 4 [client gone within its request]",
            "POST /count 400 0 2 [client gone within its request]",
            "POST /echo 200 4 4 [client gone within its request]",
        ]
    );
    bench.end();
}

#[test]
fn a_response_that_ends_first_leaves_the_rest_of_the_request_to_the_bound() {
    let bench = Bench::calm();
    let next = request("GET", "/ok", "", "");
    for (length, stays) in [
        (BODY_DRAIN as usize, true),
        (10 * BODY_DRAIN as usize, false),
    ] {
        let fields = format!("Content-Length: {length}\r\n");
        let mut bytes = request("POST", "/whole", &fields, &"b".repeat(length));
        bytes.extend(&next);
        let (received, end) = bench.ask(&bytes);
        assert_eq!(received.ends_with("ok."), stays, "{received}");
        assert!(received.contains("0\r\n\r\n"), "{received}");
        assert_eq!(end, Some(End::Fin));
    }
    bench.end();
}

#[test]
fn a_client_may_send_everything_before_it_reads_anything() {
    let bench = Bench::calm();
    let (upload, pieces) = (400 << 10, 100);
    let fields = format!("Content-Length: {upload}\r\n");
    let mut bytes = request("POST", "/many/100", &fields, "");
    bytes.resize(bytes.len() + upload, b'u');
    let client = bench.client(vec![
        at(0, Act::Read(Pace::Paused)),
        at(0, Act::Send(bytes)),
        at(0, Act::Read(Pace::Eager)),
        at(0, send(&request("GET", "/ok", "", ""))),
        at(0, Act::HalfClose),
    ]);
    bench.finish_client(client);
    let received = bench.world.seen(client).received;
    let expected = [
        format!("200 {} bytes|", pieces * MANY_PIECE),
        "200 ok.|".to_owned(),
    ];
    assert_eq!(responses(&received, &[false, false]), expected);
    assert_eq!(bench.handlers.seen.uploaded.get(), upload as u64);
    bench.end();
}

#[test]
fn a_slow_reader_holds_the_source_back_and_one_that_stops_is_cut_off() {
    let config = Config::default();
    let in_flight = 2 * config.socket_bytes / MANY_PIECE + 6;
    let bench = Bench::new(1, Faults::default(), config, 0);
    let client = bench.client(vec![
        at(0, Act::Read(Pace::Paused)),
        at(0, send(&request("GET", "/many/100000", "", ""))),
    ]);
    bench.world.run_for(Duration::from_secs(5));
    let pieces = bench.handlers.seen.pieces.get();
    assert!(
        (1..=in_flight).contains(&pieces),
        "{pieces} pieces in flight"
    );
    bench.finish_client(client);
    assert!(bench.world.elapsed() < Duration::from_secs(30), "in time");
    assert_eq!(bench.world.seen(client).end, Some(End::Reset));
    let log = bench.handlers.log();
    assert!(log[0].ends_with("[client too slow]"), "{log:?}");
    bench.end();
}

#[test]
fn who_waits_for_a_backend_learns_that_the_client_has_gone() {
    let bench = Bench::calm();
    let (received, _) = bench.ask(&request("GET", "/gone", "", ""));
    assert!(received.ends_with("half."), "{received}");
    let client = bench.client(vec![
        at(0, send(&request("GET", "/gone", "", ""))),
        at(100, Act::Abort),
    ]);
    bench.finish_client(client);
    assert_eq!(bench.handlers.log()[1], "GET /gone 200 7 0");
    bench.end();
}

#[test]
fn a_tunnel_carries_what_came_before_it_and_each_direction_ends_by_itself() {
    let bench = Bench::calm();
    let mut bytes = request(
        "GET",
        "/tunnel",
        "Connection: upgrade\r\nUpgrade: echo\r\n",
        "",
    );
    bytes.extend(b"early ");
    let client = bench.client(vec![
        at(0, send(&bytes)),
        at(0, until("early ")),
        at(3_600_000, send(b"late ")),
        at(0, until("late ")),
        at(0, send(b"last")),
        at(0, Act::HalfClose),
    ]);
    bench.world.run_for(Duration::from_secs(600));
    assert_eq!(bench.handlers.seen.tunnels.get(), 1);
    // It is neither idle nor done with its configuration.
    bench.handlers.registry.make_room(&bench.core);
    bench.handlers.registry.population().drain();
    bench.core.wake_all();
    bench.world.run_for(Duration::from_secs(600));
    assert_eq!(bench.listening.open(), 1);
    assert_eq!(Rc::strong_count(&bench.handlers.rules), 2, "held");
    let (received, end) = bench.finish_client(client);
    assert_eq!(
        received,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n\
         early late last"
    );
    assert_eq!(end, Some(End::Fin));
    assert_eq!(Rc::strong_count(&bench.handlers.rules), 1);
    assert_eq!(bench.handlers.log(), ["GET /tunnel 101 15 15"]);
    bench.end();
}

#[test]
fn a_tunnel_is_cut_at_the_deadline_and_refused_where_there_is_none_to_be() {
    let bench = Bench::calm();
    let client = bench.client(vec![at(0, send(&request("GET", "/tunnel", "", "")))]);
    bench.world.run_for(Duration::from_secs(100));
    assert_eq!(
        bench.handlers.registry.cut(&bench.core, &bench.listening),
        1
    );
    let (_, end) = bench.finish_client(client);
    assert_eq!(end, Some(End::Reset));
    let (received, _) = bench.ask(b"GET /tunnel HTTP/1.0\r\n\r\n");
    assert!(received.starts_with("HTTP/1.1 500 "), "{received}");
    let unread = request("POST", "/tunnel", "Content-Length: 4\r\n", "body");
    let (received, _) = bench.ask(&unread);
    assert!(received.starts_with("HTTP/1.1 500 "), "{received}");
    bench.end();
}

#[test]
fn a_connection_may_be_dropped_at_each_of_its_polls() {
    let expects = "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n";
    let chunks = "5\r\nhello\r\n3\r\n, w\r\n0\r\nA: b\r\n\r\n";
    let tunnel = [&request("GET", "/tunnel", "", "")[..], b"early"].concat();
    let scripts: [&dyn Fn() -> Vec<(Duration, Act)>; 3] = [
        &|| {
            vec![
                at(0, send(&request("POST", "/echo", expects, ""))),
                at(30, send(&chunks.as_bytes()[..12])),
                at(30, send(&chunks.as_bytes()[12..])),
                at(0, send(&request("GET", "/hints/2", "", ""))),
                at(0, Act::HalfClose),
            ]
        },
        &|| {
            let mut many = request("POST", "/many/2", "Content-Length: 20000\r\n", "");
            many.resize(many.len() + 20_000, b'u');
            vec![at(0, Act::Send(many)), at(0, Act::HalfClose)]
        },
        &|| {
            vec![
                at(0, send(&tunnel)),
                at(9, send(b"more")),
                at(0, Act::HalfClose),
            ]
        },
    ];
    let mut deaths = 0;
    for seed in 0..5 {
        for script in scripts {
            for poll in 1.. {
                let faults = Faults {
                    reset: 0.0,
                    ..Faults::seeded(seed)
                };
                let config = Config {
                    socket_bytes: 2048,
                    ..Config::seeded(seed)
                };
                let bench = Bench::new(seed, faults, config, poll);
                let client = bench.client(script());
                bench.finish_client(client);
                let survived = bench.survived.get();
                bench.end();
                if survived {
                    break;
                }
                deaths += 1;
            }
        }
    }
    assert!(deaths > 200, "{deaths} deaths");
}
