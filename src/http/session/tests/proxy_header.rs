//! The PROXY header before the first request, in virtual time.

use std::sync::Arc;
use std::time::Duration;

use super::request;
use super::simulated::{Bench, at, send};
use crate::net::proxy_protocol::{Origin, ProxyVersion, write};
use crate::runtime::engine::sim::Act;
use crate::util::network::{Network, Peers};

const CLIENT: &str = "192.0.2.7:4711";

fn bench(from: &str) -> Bench {
    let bench = Bench::calm();
    let networks = vec![Network::parse(from).unwrap()];
    *bench.handlers.introduced_by.borrow_mut() = Some(Arc::new(Peers::new(networks, false)));
    bench
}

fn header(version: ProxyVersion) -> Vec<u8> {
    let mut header = Vec::new();
    let told = Origin::Tcp {
        source: CLIENT.parse().unwrap(),
        destination: "198.51.100.1:80".parse().unwrap(),
    };
    write(&mut header, version, told);
    header
}

fn limits(bench: &Bench) -> Vec<(&'static str, u64)> {
    bench.handlers.registry.limits().counts()
}

#[test]
fn requests_behind_a_header_are_those_of_its_client() {
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let bench = bench("0.0.0.0/0");
        let ok = request("GET", "/ok", "", "");
        let together = [&header(version)[..], &ok, &ok].concat();
        let (got, _) = bench.ask(&together);
        assert_eq!(got.matches("HTTP/1.1 200 OK").count(), 2, "{got}");
        // Byte by byte, and the second request later: it needs no header.
        let bytes = [&header(version)[..], &ok].concat();
        let mut script: Vec<_> = bytes.iter().map(|byte| at(5, send(&[*byte]))).collect();
        script.push(at(3000, send(&ok)));
        script.push(at(1, Act::HalfClose));
        let (got, _) = bench.finish_client(bench.client(script));
        assert_eq!(got.matches("HTTP/1.1 200 OK").count(), 2, "{got}");
        assert_eq!(*bench.handlers.seen.clients.borrow(), [CLIENT; 4]);
        assert_eq!(limits(&bench), []);
        bench.end();
    }
}

#[test]
fn a_header_that_tells_nobody_leaves_the_address_of_the_socket() {
    let bench = bench("0.0.0.0/0");
    let ok = request("GET", "/ok", "", "");
    let (got, _) = bench.ask(&[b"PROXY UNKNOWN\r\n", &ok[..]].concat());
    assert!(got.starts_with("HTTP/1.1 200 OK"), "{got}");
    let clients = bench.handlers.seen.clients.borrow().clone();
    assert!(
        !clients[0].is_empty() && clients[0] != CLIENT,
        "{clients:?}"
    );
    bench.end();
}

#[test]
fn what_does_not_begin_with_a_header_gets_no_byte() {
    let ok = request("GET", "/ok", "", "");
    let whole = header(ProxyVersion::V2);
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(200));
    let block = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec();
    for bytes in [
        ok.clone(),
        [b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n", &ok[..]].concat(),
        [long.as_bytes(), &ok].concat(),
        [&block[..], &ok].concat(),
        whole[..whole.len() - 1].to_vec(),
    ] {
        let bench = bench("0.0.0.0/0");
        assert_eq!(bench.ask(&bytes).0, "", "{bytes:?}");
        assert!(bench.handlers.log().is_empty());
        assert_eq!(limits(&bench), [("a whole and valid PROXY header", 1)]);
        bench.end();
    }
}

#[test]
fn a_peer_that_is_not_listed_is_refused() {
    let bench = bench("203.0.113.0/24");
    let ok = request("GET", "/ok", "", "");
    for bytes in [[&header(ProxyVersion::V1)[..], &ok].concat(), ok] {
        assert_eq!(bench.ask(&bytes).0, "");
    }
    assert!(bench.handlers.log().is_empty());
    assert_eq!(limits(&bench), [("peers that may send a PROXY header", 2)]);
    bench.end();
}

#[test]
fn a_slow_header_has_the_time_of_a_head() {
    let bench = bench("0.0.0.0/0");
    let script = vec![at(0, send(b"PROXY ")), at(9000, send(b"TCP4 "))];
    let before = bench.core.now();
    let (got, _) = bench.finish_client(bench.client(script));
    let took = bench.core.now().duration_since(before);
    assert_eq!(got, "");
    assert!((10..12).contains(&took.as_secs()), "{took:?}");
    assert_eq!(limits(&bench), [("time to a PROXY header", 1)]);
    bench.end();
}

#[test]
fn a_probe_that_connects_and_leaves_is_no_offence() {
    let bench = bench("0.0.0.0/0");
    let script = vec![(Duration::ZERO, Act::HalfClose)];
    assert_eq!(bench.finish_client(bench.client(script)).0, "");
    assert_eq!(limits(&bench), []);
    bench.end();
}
