//! Heads: of clients and of backends, read and written, and what is decided by them.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use beltway::http::h1::body::BodyDecoder;
use beltway::http::h1::encode::{DateCache, HeadContext, ResponseFraming, write_head};
use beltway::http::h1::response::{Asked, ResponseReader, parse_response_head};
use beltway::http::h1::{HeadLimits, HeadScanner, parse_head};
use beltway::http::router::{HostMap, HostPattern, Pattern, Router, RouterCache};
use beltway::http::semantics::forwarding::{
    HostField, RequestContext, Target, write_request_head, write_response_head,
};
use beltway::http::semantics::negotiate::{Coding, choose};
use beltway::http::types::{Framing, ResponseHead, Version};

use super::{Piece, aligned, piece};

const SMALL: &[u8] =
    b"GET /assets/app.js HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: bench/1.0\r\n\
Accept: */*\r\nConnection: keep-alive\r\n\r\n";

const BROWSER: &[u8] = b"GET /assets/app.js?v=8f3e HTTP/1.1\r\nHost: www.example.com\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
Referer: https://www.example.com/\r\nConnection: keep-alive\r\nSec-Fetch-Dest: script\r\n\
Sec-Fetch-Mode: no-cors\r\nSec-Fetch-Site: same-origin\r\n\r\n";

const BACKEND: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: app/2.1\r\nDate: Tue, 14 Nov 2023 22:13:20 GMT\r\n\
Content-Type: application/json; charset=utf-8\r\nContent-Length: 1024\r\nVary: Accept-Encoding\r\n\
Cache-Control: private, no-cache\r\nX-Request-Id: 7f9d1c2ab0\r\nConnection: keep-alive\r\n\r\n";

pub(super) fn pieces() -> Vec<Piece> {
    let mut pieces = Vec::new();
    pieces.extend(requests(
        "scan-small",
        "parse-small",
        "negotiate-small",
        SMALL,
    ));
    pieces.extend(requests(
        "scan-browser",
        "parse-browser",
        "negotiate-browser",
        BROWSER,
    ));
    pieces.extend([encode(), route(), expression(), host(), chunked()]);
    pieces.extend(backends());
    pieces
}

fn requests(
    scan: &'static str,
    parse: &'static str,
    negotiate: &'static str,
    head: &[u8],
) -> [Piece; 3] {
    let head = aligned(head);
    let limits = HeadLimits::default();
    let (of_parse, of_both) = (limits, limits);
    [
        piece(scan, move || {
            let found = HeadScanner::default().scan(black_box(head), &limits);
            assert!(matches!(black_box(found), Ok(Some(_))));
        }),
        piece(parse, move || {
            assert!(black_box(&parse_head(black_box(head), &of_parse)).is_ok());
        }),
        piece(negotiate, move || {
            let request = parse_head(black_box(head), &of_both).expect("a valid head");
            black_box(choose(&request.fields, &[Coding::Brotli, Coding::Gzip]));
        }),
    ]
}

fn encode() -> Piece {
    let date = DateCache::new(1_700_000_000).at(1_700_000_000).clone();
    let head = ResponseHead::new(200)
        .with("Content-Type", "text/javascript; charset=utf-8")
        .with("ETag", "\"400-18f2a3b4c5d6e7f8\"")
        .with("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")
        .with("Accept-Ranges", "bytes");
    let mut out = Vec::with_capacity(1024);
    piece("encode-head", move || {
        let context = HeadContext {
            version: Version::Http11,
            keep_alive: true,
            framing: ResponseFraming::Length(1024),
            date: &date,
        };
        out.clear();
        black_box(write_head(&mut out, black_box(&head), &context));
    })
}

fn router(patterns: &[&str]) -> Router<()> {
    let routes = patterns
        .iter()
        .map(|text| (Pattern::parse(text).expect("a valid pattern"), ()));
    Router::build(routes.collect()).expect("no conflict")
}

fn route() -> Piece {
    let router = router(&[
        "/api/*",
        "/assets/*",
        "=/healthz",
        "*.php",
        "/old/deep/er/*",
    ]);
    let mut cache = RouterCache::new();
    piece("route-among-five", move || {
        let found = router.find(&mut cache, black_box("/assets/js/app.js"));
        assert!(black_box(found).is_some());
    })
}

fn expression() -> Piece {
    let router = router(&["~^/v[0-9]+/users/(?<id>[0-9]+)$"]);
    let mut cache = RouterCache::new();
    piece("route-by-expression", move || {
        let found = router.find(&mut cache, black_box("/v2/users/184467"));
        assert!(black_box(found).is_some());
    })
}

/// Many names: where one stands in a table is drawn at random, which decides what finding it costs.
fn host() -> Piece {
    let names: Vec<String> = (0..64).map(|n| format!("www{n}.example.com")).collect();
    let patterns = names.iter().map(String::as_str).chain(["*.example.org"]);
    let sites = patterns.map(|name| (HostPattern::parse(name).expect("a valid name"), ()));
    let sites = HostMap::build(sites.collect()).expect("no conflict");
    piece("find-64-sites", move || {
        for name in &names {
            assert!(sites.find(black_box(name)).is_some());
        }
        assert!(sites.find(black_box("a.b.example.org")).is_some());
    })
}

fn chunked() -> Piece {
    let body = [&b"200\r\n"[..], &[b'x'; 512], b"\r\n0\r\n\r\n"].concat();
    let body = aligned(&body);
    piece("decode-chunks", move || {
        let mut decoder = BodyDecoder::new(Framing::Chunked);
        let mut rest = black_box(body);
        while !decoder.is_ended() {
            let decoded = decoder.decode(rest).expect("valid chunks");
            rest = &rest[black_box(&decoded).consumed..];
        }
    })
}

/// What the proxy does with the heads of both sides.
fn backends() -> [Piece; 4] {
    let (browser, backend) = (aligned(BROWSER), aligned(BACKEND));
    let limits = HeadLimits::default();
    let date = DateCache::new(1_700_000_000).at(1_700_000_000).clone();
    let (mut to_backend, mut to_client) = (Vec::with_capacity(2048), Vec::with_capacity(2048));
    [
        piece("read-response", move || {
            let mut reader = ResponseReader::new(Asked::default());
            let read = reader.head(black_box(backend), &limits);
            assert!(matches!(black_box(read), Ok(Some(_))));
        }),
        piece("parse-response", move || {
            let parsed = parse_response_head(black_box(backend), &limits, false);
            assert!(black_box(parsed).is_ok());
        }),
        piece("forward-request", move || {
            let request = parse_head(black_box(browser), &limits).expect("a valid head");
            let context = RequestContext {
                target: Target::Received,
                host: HostField::Keep("10.0.0.1:3000"),
                framing: Framing::None,
                expect: true,
                upgrade: true,
                keep_alive: true,
                peer: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                peer_trusted: false,
                scheme: "http",
                client: &[],
                operations: &[],
            };
            to_backend.clear();
            let written = write_request_head(&mut to_backend, &request, &context);
            assert!(black_box(written).is_ok());
        }),
        piece("forward-response", move || {
            let response = parse_response_head(black_box(backend), &limits, false);
            let response = response.expect("a valid head");
            let context = HeadContext {
                version: Version::Http11,
                keep_alive: true,
                framing: response.framing,
                date: &date,
            };
            to_client.clear();
            let written = write_response_head(&mut to_client, &response, &context, &[]);
            assert!(black_box(written).is_ok());
        }),
    ]
}
