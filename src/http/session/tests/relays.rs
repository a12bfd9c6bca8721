//! Large bodies that are relayed, in virtual time and with faults.

use std::cell::Cell;
use std::time::Duration;

use super::relaying::{SILENCE, backend_address};
use super::request;
use super::simulated::{Bench, at, send, trickle};
use crate::net::splice::Cause;
use crate::runtime::engine::sim::{Act, Answer, ClientId, Config, End, Faults, Pace};

type Script = Vec<(Duration, Act)>;

fn backend(bench: &Bench, script: impl Fn() -> Script + 'static) {
    let script = move |_| script();
    bench
        .world
        .backend(&backend_address(), Answer::Accepts, script);
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

/// The received bytes behind the first head.
fn content(bench: &Bench, client: ClientId) -> Vec<u8> {
    let received = bench.world.seen(client).received;
    let end = received.windows(4).position(|four| four == b"\r\n\r\n");
    received[end.unwrap() + 4..].to_vec()
}

fn error(bench: &Bench) -> Option<Cause> {
    let outcome = bench.handlers.seen.outcome.borrow();
    outcome.as_ref().unwrap().error()
}

#[test]
fn a_relayed_response_that_is_cut_never_looks_whole() {
    const LENGTH: usize = 200_000;
    for came in [0, 1, 1000, 70_000, LENGTH - 1] {
        let bench = Bench::calm();
        backend(&bench, move || {
            vec![at(1, Act::Send(bytes(came))), at(0, Act::HalfClose)]
        });
        let ask = |target: &str| {
            let script = vec![at(0, send(&request("GET", target, "", "")))];
            let client = bench.client(script);
            let (_, end) = bench.finish_client(client);
            (content(&bench, client), end)
        };
        let (received, end) = ask(&format!("/relay/{LENGTH}"));
        assert!(received == [b"begin.".to_vec(), bytes(came)].concat());
        assert_eq!(end, Some(End::Fin), "shorter than announced");
        assert_eq!(error(&bench), Some(Cause::SourceClosed));
        let (received, end) = ask(&format!("/relayed/{LENGTH}"));
        let head = format!("6\r\nbegin.\r\n{LENGTH:x}\r\n");
        assert!(received == [head.into_bytes(), bytes(came)].concat());
        assert_eq!(end, Some(End::Fin), "no last chunk");
        // Nothing but a reset tells HTTP/1.0 that it is not whole.
        let old = format!("GET /relayed/{LENGTH} HTTP/1.0\r\n\r\n");
        let client = bench.client(vec![at(0, send(old.as_bytes()))]);
        assert_eq!(bench.finish_client(client).1, Some(End::Reset));
        let sent = came + 6;
        let reason = "[backend closed within its response]";
        assert_eq!(
            bench.handlers.log(),
            [
                format!("GET /relay/{LENGTH} 200 {sent} 0 {reason}"),
                format!("GET /relayed/{LENGTH} 200 {sent} 0 {reason}"),
                format!("GET /relayed/{LENGTH} 200 {sent} 0 {reason}"),
            ]
        );
        bench.end();
    }
}

#[test]
fn a_silent_backend_is_cut_and_a_slow_client_is_not_blamed_for_it() {
    let bench = Bench::calm();
    backend(&bench, || vec![at(0, Act::Send(bytes(100_000)))]);
    let get = || at(0, send(&request("GET", "/relay/120000", "", "")));
    bench.finish_client(bench.client(vec![get()]));
    assert_eq!(error(&bench), Some(Cause::SourceSilent));
    assert!(bench.world.elapsed() >= SILENCE && bench.world.elapsed() < 2 * SILENCE);
    let log = bench.handlers.log();
    assert_eq!(
        log,
        ["GET /relay/120000 200 100006 0 [backend silent within its response]"]
    );
    bench.end();

    // Both are slow, the client at more than the rate, the backend at less.
    let bench = Bench::calm();
    backend(&bench, || {
        (0..24)
            .map(|_| at(15_000, Act::Send(vec![b'b'; 5000])))
            .collect()
    });
    let pace = Pace::Slow {
        bytes: 1000,
        every: Duration::from_secs(1),
    };
    let client = bench.client(vec![at(0, Act::Read(pace)), get(), at(0, Act::HalfClose)]);
    bench.world.set_window(client, 2000);
    bench.finish_client(client);
    assert_eq!(content(&bench, client).len(), 120_006);
    assert_eq!(bench.handlers.log(), ["GET /relay/120000 200 120006 0"]);
    bench.end();
}

#[test]
fn a_client_that_is_too_slow_or_gone_ends_the_relay() {
    let bench = Bench::calm();
    backend(&bench, || vec![at(0, Act::Send(bytes(2_000_000)))]);
    let get = at(0, send(&request("GET", "/relay/2000000", "", "")));
    let pace = Pace::Slow {
        bytes: 100,
        every: Duration::from_secs(1),
    };
    let client = bench.client(vec![at(0, Act::Read(pace)), get]);
    bench.world.set_window(client, 2000);
    let (_, end) = bench.finish_client(client);
    assert_eq!(
        (end, error(&bench)),
        (Some(End::Reset), Some(Cause::SinkTooSlow))
    );
    assert!(
        bench.world.elapsed() < Duration::from_secs(60),
        "found out in time"
    );
    let get = at(0, send(&request("GET", "/relay/2000000", "", "")));
    let pause = at(0, Act::Read(Pace::Paused));
    let client = bench.client(vec![pause, get, at(1000, Act::Abort)]);
    bench.finish_client(client);
    assert!(matches!(error(&bench), Some(Cause::SinkBroken(_))));
    let log = bench.handlers.log();
    assert!(log[0].ends_with("0 [client too slow]"), "{log:?}");
    assert!(log[1].ends_with("0 [client gone]"), "{log:?}");
    bench.end();
}

#[test]
fn a_client_owes_its_request_and_a_backend_may_take_its_time() {
    // The client sends too slowly.
    let bench = Bench::calm();
    backend(&bench, Vec::new);
    let (received, _) = bench.finish_client(bench.client(trickle("/pass/20", 100_000, 100)));
    assert!(received.starts_with("HTTP/1.1 408 "), "{received}");
    assert!(bench.world.elapsed() < Duration::from_secs(20), "in time");
    // Just fast enough.
    let mut script = trickle("/pass/20", 90_000, 600);
    script.push(at(0, Act::HalfClose));
    let (received, _) = bench.finish_client(bench.client(script));
    assert!(received.ends_with("90000 given."), "{received}");
    // It ends in the middle.
    let mut half = request("POST", "/pass/20", "Content-Length: 200000\r\n", "");
    half.extend(bytes(100_000));
    let (received, _) = bench.ask(&half);
    assert!(received.starts_with("HTTP/1.1 400 "), "{received}");
    let log = bench.handlers.log();
    assert!(log[0].ends_with("[progress of a body]"), "{log:?}");
    assert_eq!(log[1], "POST /pass/20 200 12 90000");
    assert_eq!(
        log[2],
        "POST /pass/20 400 0 100000 [client gone within its request]"
    );
    bench.end();

    // The backend reads less than a client has to send, but it reads.
    let bench = Bench::calm();
    backend(&bench, || {
        let pace = Pace::Slow {
            bytes: 4000,
            every: Duration::from_secs(15),
        };
        vec![at(0, Act::Read(pace))]
    });
    let mut whole = request("POST", "/pass/20", "Content-Length: 400000\r\n", "");
    whole.extend(bytes(400_000));
    let (received, _) = bench.ask(&whole);
    assert!(received.ends_with("400000 given."), "{received}");
    assert!(bench.world.elapsed() > Duration::from_secs(300));
    assert_eq!(bench.handlers.log(), ["POST /pass/20 200 13 400000"]);
    bench.end();

    // It takes nothing: the client is told something better than a timeout of its own.
    let bench = Bench::calm();
    backend(&bench, || {
        vec![at(0, Act::Read(Pace::Paused)), at(0, send(b"busy"))]
    });
    let (received, _) = bench.ask(&whole);
    let said = "the receiver took nothing for too long: busy";
    assert!(received.ends_with(said), "{received}");
    assert!(bench.world.elapsed() < Duration::from_secs(45));
    bench.end();
}

#[test]
fn a_relay_that_is_given_up_leaves_the_request_where_it_stands() {
    let bench = Bench::calm();
    backend(&bench, Vec::new);
    let mut whole = request("POST", "/part/5000", "Content-Length: 300000\r\n", "");
    let pieces = bytes(300_000);
    let mut script = vec![at(0, Act::Send(std::mem::take(&mut whole)))];
    script.extend(pieces.chunks(10_000).map(|piece| at(5, send(piece))));
    script.push(at(0, send(&request("GET", "/ok", "", ""))));
    script.push(at(0, Act::HalfClose));
    let (received, _) = bench.finish_client(bench.client(script));
    assert!(
        received.contains("\r\n\r\n300000 read, true."),
        "{received}"
    );
    assert!(received.ends_with("\r\n\r\nok."), "{received}");
    bench.end();
}

#[test]
fn relays_lose_nothing_on_any_machine() {
    const LENGTH: usize = 100_000;
    for seed in 0..150 {
        let faults = Faults {
            reset: 0.0,
            ..Faults::seeded(seed)
        };
        let bench = Bench::new(seed, faults, Config::seeded(seed), 0);
        let mut random = bench.world.random(7);
        let first = random.between(0, LENGTH as u64) as usize;
        // The one that is uploaded to says nothing: what it had said would be unread when it is closed,
        // and that reset overtakes what is on its way to it.
        let connections = Cell::new(0);
        backend(&bench, move || {
            let all = bytes(LENGTH);
            match connections.replace(connections.get() + 1) {
                0 => Vec::new(),
                _ => vec![at(0, send(&all[..first])), at(7, send(&all[first..]))],
            }
        });
        let fields = format!("Content-Length: {LENGTH}\r\n");
        let mut all = request("POST", "/pass/1000", &fields, "");
        all.extend(bytes(LENGTH));
        all.extend(request("GET", &format!("/relay/{LENGTH}"), "", ""));
        all.extend(request(
            "POST",
            "/relayed/90000",
            "Content-Length: 4\r\n",
            "body",
        ));
        all.extend(request("GET", "/ok", "", ""));
        let (mut script, mut rest) = (Vec::new(), &all[..]);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(random.part(rest.len()));
            script.push(at(random.below(20), send(now)));
            rest = later;
        }
        script.push(at(0, Act::HalfClose));
        let client = bench.client(script);
        bench.finish_client(client);
        let received = bench.world.seen(client).received;
        assert!(received.ends_with(b"ok."), "seed {seed}");
        let with_head = |head: &str, length: usize, end: &[u8]| {
            let whole = [head.as_bytes(), &bytes(length), end].concat();
            received.windows(whole.len()).any(|part| part == whole)
        };
        assert!(with_head("\r\n\r\nbegin.", LENGTH, b"HTTP/"), "seed {seed}");
        let chunked = "\r\n\r\n6\r\nbegin.\r\n15f90\r\n";
        assert!(with_head(chunked, 90_000, b"\r\n0\r\n\r\n"), "seed {seed}");
        // One connection has the whole upload; the others were only received from.
        let peers = bench.world.peers(&backend_address());
        let uploads = peers.iter().map(|peer| bench.world.seen(*peer).received);
        let uploads: Vec<Vec<u8>> = uploads.filter(|received| !received.is_empty()).collect();
        assert!(uploads == [bytes(LENGTH)], "seed {seed}");
        bench.end();
    }
}

#[test]
fn a_relay_may_be_dropped_at_any_wait() {
    for seed in 0..120 {
        let dies_at = 1 + seed % 40;
        let bench = Bench::new(seed, Faults::seeded(seed), Config::seeded(seed), dies_at);
        backend(&bench, || vec![at(0, send(&bytes(100_000)))]);
        let fields = "Content-Length: 100000\r\n";
        let mut all = request("POST", "/pass/1000", fields, "");
        all.extend(bytes(100_000));
        all.extend(request("GET", "/relay/100000", "", ""));
        let client = bench.client(vec![at(0, send(&all)), at(3, Act::HalfClose)]);
        bench.finish_client(client);
        bench.end();
    }
}
