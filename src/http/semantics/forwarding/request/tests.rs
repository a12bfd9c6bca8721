//! What a backend gets for a request: fields, framing, upgrade, and nothing of the client's making
//! that it could read as a second request.

use super::*;
use crate::http::h1::{HeadLimits, HeadScanner, parse_head};
use proptest::prelude::*;

const PLAIN: RequestContext<'static> = RequestContext {
    target: Target::Received,
    host: HostField::Keep("backend:8080"),
    framing: Framing::None,
    expect: true,
    upgrade: true,
    keep_alive: true,
    peer: None,
    peer_trusted: false,
    scheme: "http",
    client: &[],
    operations: &[],
};

fn parse(head: &str) -> Request<'_> {
    parse_head(head.as_bytes(), &HeadLimits::default()).expect(head)
}

/// The head that the backend gets, and what was asked.
fn forwarded(head: &str, context: RequestContext<'_>) -> Result<(String, Asked), Reject> {
    let request = parse(head);
    let mut context = context;
    if context.framing == Framing::None {
        context.framing = request.framing;
    }
    let mut out = Vec::new();
    let asked = write_request_head(&mut out, &request, &context)?;
    Ok((String::from_utf8(out).expect("ASCII"), asked))
}

/// The lines of that head without those that tell of the client.
fn lines(head: &str, context: RequestContext<'_>) -> Vec<String> {
    let (text, _) = forwarded(head, context).expect("passed on");
    let ours = ["Via: ", "X-Forwarded-", "Forwarded: "];
    let text = text.strip_suffix("\r\n\r\n").expect("ends").to_owned();
    text.split("\r\n")
        .filter(|line| !ours.iter().any(|name| line.starts_with(name)))
        .map(str::to_owned)
        .collect()
}

fn get(fields: &str) -> String {
    format!("GET /a HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
}

#[test]
fn a_request_is_passed_on_whole() {
    let head = "POST /a%20b/../c?d=%20 HTTP/1.1\r\nAccept: */*\r\nHost: Example.com:81\r\n\
                Content-Length: 5\r\nVia: 1.0 x\r\nCookie: a=b\r\n\r\n";
    let mut context = PLAIN;
    context.peer = "192.0.2.7".parse().ok();
    let (text, asked) = forwarded(head, context).expect("passed on");
    assert_eq!(
        text,
        "POST /c?d=%20 HTTP/1.1\r\nHost: example.com:81\r\nAccept: */*\r\nVia: 1.0 x\r\nCookie: a=b\r\n\
         Content-Length: 5\r\nVia: 1.1 beltway\r\nX-Forwarded-For: 192.0.2.7\r\n\
         X-Forwarded-Proto: http\r\nX-Forwarded-Host: example.com:81\r\n\
         Forwarded: for=192.0.2.7;host=\"example.com:81\";proto=http\r\n\r\n"
    );
    assert_eq!(asked, Asked::default());
    assert!(
        forwarded("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", PLAIN)
            .expect("passed on")
            .1
            .head
    );
}

#[test]
fn fields_of_the_connection_and_false_ones_end_here() {
    for fields in [
        "Connection: close\r\n",
        "Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n",
        "Connection: X-Secret\r\nX-Secret: 1\r\nx-secret: 2\r\n",
        "Proxy-Connection: keep-alive\r\n",
        "Proxy: http://evil\r\n",
        "Proxy-Authorization: Basic x\r\n",
        "TE: gzip\r\nConnection: TE\r\n",
        "TE: trailersx\r\n",
        "Trailer: X-Sum\r\n",
        "Upgrade: websocket\r\n",
        "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
        "Expect: 100-continue\r\n",
        "Content_Length: 5\r\n",
        "X_Forwarded_For: 9.9.9.9\r\n",
        "X-Real-IP: 9.9.9.9\r\n",
        "X-Forwarded-Port: 1\r\n",
        "X-Forwarded-Prefix: /evil\r\n",
    ] {
        assert_eq!(
            lines(&get(fields), PLAIN),
            ["GET /a HTTP/1.1", "Host: h"],
            "{fields:?}"
        );
    }
}

#[test]
fn protected_fields_can_not_be_named_in_connection() {
    let fields = "Connection: Host, Cookie, Authorization, X-Forwarded-For, Content-Length, If-Match\r\n\
                  Cookie: a\r\nAuthorization: b\r\nIf-Match: \"c\"\r\n";
    assert_eq!(
        lines(&get(fields), PLAIN),
        [
            "GET /a HTTP/1.1",
            "Host: h",
            "Cookie: a",
            "Authorization: b",
            "If-Match: \"c\""
        ]
    );
    let (text, _) = forwarded(
        &get(fields),
        RequestContext {
            peer: "1.2.3.4".parse().ok(),
            ..PLAIN
        },
    )
    .expect("passed on");
    assert!(text.contains("X-Forwarded-For: 1.2.3.4\r\n"));
    let flood = format!("Connection: {}\r\n", "x,".repeat(40));
    let refused = forwarded(&get(&flood), PLAIN).expect_err("a flood");
    assert_eq!(refused.status.0, 400);
}

#[test]
fn the_body_is_framed_by_what_is_sent() {
    let head =
        |method: &str, fields: &str| format!("{method} / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    let chunked = "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n";
    for (head, framing, expected) in [
        (head("POST", ""), Framing::None, &["Content-Length: 0"][..]),
        (
            head("PUT", "Content-Length: 0\r\n"),
            Framing::None,
            &["Content-Length: 0"],
        ),
        (
            head("DELETE", "Content-Length: 000\r\n"),
            Framing::None,
            &["Content-Length: 0"],
        ),
        (head("DELETE", ""), Framing::None, &[]),
        (
            head("POST", "Content-Length: 007\r\n"),
            Framing::None,
            &["Content-Length: 7"],
        ),
        (
            head("POST", chunked),
            Framing::None,
            &["Trailer: X-Sum", "Transfer-Encoding: chunked"],
        ),
        // Buffered: the length is known, and trailers don't pass.
        (
            head("POST", chunked),
            Framing::Length(9),
            &["Content-Length: 9"],
        ),
    ] {
        let context = RequestContext { framing, ..PLAIN };
        assert_eq!(lines(&head, context)[2..], *expected, "{head:?}");
    }
}

#[test]
fn expectations_go_on_when_the_body_does() {
    let head = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n";
    let found = lines(head, PLAIN);
    assert_eq!(found[2..], ["Content-Length: 5", "Expect: 100-continue"]);
    let found = lines(
        head,
        RequestContext {
            expect: false,
            ..PLAIN
        },
    );
    assert_eq!(found[2..], ["Content-Length: 5"]);
}

#[test]
fn upgrades_are_offered_with_care() {
    let upgrade = |protocols: &str| {
        let fields = format!(
            "Connection: keep-alive, Upgrade\r\nUpgrade: {protocols}\r\nSec-WebSocket-Key: k\r\n"
        );
        forwarded(&get(&fields), PLAIN).expect("passed on")
    };
    let (text, asked) = upgrade("websocket");
    assert!(
        text.contains("Upgrade: websocket\r\nConnection: upgrade\r\n"),
        "{text}"
    );
    assert_eq!(asked.upgrade.as_deref(), Some(&b"websocket"[..]));
    let (text, asked) = upgrade("h2c, WebSocket, IRC/6.9, HTTP/2.0,TLS/1.2, a b");
    assert!(text.contains("Upgrade: WebSocket, IRC/6.9\r\n"), "{text}");
    assert_eq!(asked.upgrade.as_deref(), Some(&b"WebSocket, IRC/6.9"[..]));
    for refused in ["h2c", "H2C", "h2", "HTTP/2.0", "TLS/1.0", "", ",", "a/b/c"] {
        let (text, asked) = upgrade(refused);
        assert!(!text.to_ascii_lowercase().contains("upgrade"), "{text}");
        assert_eq!(asked.upgrade, None, "{refused}");
    }
    let websocket = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    for (head, context) in [
        (
            get(websocket),
            RequestContext {
                upgrade: false,
                ..PLAIN
            },
        ),
        (get("Upgrade: websocket\r\n"), PLAIN),
        (
            format!("GET / HTTP/1.0\r\nHost: h\r\n{websocket}\r\n"),
            PLAIN,
        ),
        (get(&format!("Content-Length: 1\r\n{websocket}")), PLAIN),
        (
            get(&format!("Transfer-Encoding: chunked\r\n{websocket}")),
            PLAIN,
        ),
    ] {
        let (text, asked) = forwarded(&head, context).expect("passed on");
        assert!(!text.contains("pgrade"), "{text}");
        assert_eq!(asked.upgrade, None);
    }
}

#[test]
fn connection_says_what_is_ours() {
    for (fields, keep_alive, expected) in [
        ("", true, &[][..]),
        ("", false, &["Connection: close"]),
        (
            "TE: gzip, Trailers\r\n",
            true,
            &["TE: trailers", "Connection: TE"],
        ),
        (
            "TE: trailers\r\n",
            false,
            &["TE: trailers", "Connection: close, TE"],
        ),
    ] {
        let context = RequestContext {
            keep_alive,
            ..PLAIN
        };
        assert_eq!(lines(&get(fields), context)[2..], *expected, "{fields:?}");
    }
}

#[test]
fn hosts_are_kept_or_set() {
    let set = RequestContext {
        host: HostField::Set("inner:81"),
        ..PLAIN
    };
    assert_eq!(lines(&get(""), set)[1], "Host: inner:81");
    let (text, _) = forwarded(&get(""), set).expect("passed on");
    assert!(text.contains("X-Forwarded-Host: h\r\n"), "the client's own");
    let old = "GET / HTTP/1.0\r\n\r\n";
    assert_eq!(lines(old, PLAIN)[1], "Host: backend:8080");
    assert!(
        forwarded(old, PLAIN)
            .expect("passed on")
            .0
            .contains("Via: 1.0 beltway\r\n")
    );
    let absolute = "GET http://b/x HTTP/1.1\r\nHost: c\r\n\r\n";
    assert_eq!(lines(absolute, PLAIN)[..2], ["GET /x HTTP/1.1", "Host: b"]);
    let broken = RequestContext {
        host: HostField::Set("a\r\nX: y"),
        ..PLAIN
    };
    assert_eq!(
        forwarded(&get(""), broken).map_err(|r| r.status.0),
        Err(500)
    );
}

#[test]
fn targets_are_received_stripped_or_rewritten() {
    let line = |target: &str, context: Target<'_>| {
        let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        let context = RequestContext {
            target: context,
            ..PLAIN
        };
        forwarded(&head, context).map(|(text, _)| text.split(' ').nth(1).unwrap_or("").to_owned())
    };
    let rewritten = |path, query| Target::Rewritten { path, query };
    for (target, context, expected) in [
        ("/api/a%2Bb?q", Target::Stripped("/api"), "/a%2Bb?q"),
        ("/api", Target::Stripped("/api/"), "/"),
        ("/apix/a", Target::Stripped("/api"), "/apix/a"),
        ("/a", rewritten("/x y/../z", None), "/z"),
        (
            "/a?b",
            rewritten("/x?y", Some("c=d e\r\n")),
            "/x%3Fy?c=d%20e%0D%0A",
        ),
        ("/a?", Target::Received, "/a?"),
    ] {
        assert_eq!(line(target, context).as_deref(), Ok(expected), "{target}");
    }
    assert_eq!(
        line("/a", rewritten("/../x", None)).map_err(|r| r.status.0),
        Err(500)
    );
    let asterisk = "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(lines(asterisk, PLAIN)[0], "OPTIONS * HTTP/1.1");
    for refused in ["CONNECT a:1", "TRACE /"] {
        let head = format!("{refused} HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(forwarded(&head, PLAIN).map_err(|r| r.status.0), Err(405));
    }
}

#[test]
fn an_error_leaves_nothing_behind() {
    let head = "TRACE / HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut out = b"before".to_vec();
    assert!(write_request_head(&mut out, &parse(head), &PLAIN).is_err());
    assert_eq!(out, b"before");
}

#[test]
fn operations_act_on_the_client_s_fields_and_on_ours() {
    let operations = [
        FieldOp::set("X-Forwarded-Proto", "https").expect("valid"),
        FieldOp::remove("Forwarded").expect("valid"),
        FieldOp::remove("cookie").expect("valid"),
        FieldOp::append("Accept", "b").expect("valid"),
    ];
    let context = RequestContext {
        operations: &operations,
        ..PLAIN
    };
    let (text, _) = forwarded(&get("Cookie: a\r\nAccept: a\r\n"), context).expect("passed on");
    assert_eq!(
        text,
        "GET /a HTTP/1.1\r\nHost: h\r\nAccept: a\r\nX-Forwarded-Proto: https\r\nAccept: b\r\n\
         Via: 1.1 beltway\r\nX-Forwarded-Host: h\r\n\r\n"
    );
}

#[test]
fn believed_peers_are_passed_on() {
    let context = RequestContext {
        peer: "10.0.0.1".parse().ok(),
        peer_trusted: true,
        ..PLAIN
    };
    let fields = "X-Forwarded-For: 9.9.9.9\r\nX-Real-IP: 9.9.9.9\r\nX-Forwarded-Port: 443\r\n\
                  X-Forwarded-Proto: https\r\n";
    let (text, _) = forwarded(&get(fields), context).expect("passed on");
    assert!(
        text.contains("X-Real-IP: 9.9.9.9\r\nX-Forwarded-Port: 443\r\n"),
        "{text}"
    );
    assert!(
        text.contains("X-Forwarded-For: 9.9.9.9, 10.0.0.1\r\nX-Forwarded-Proto: https\r\n"),
        "{text}"
    );
    assert_eq!(text.matches("X-Forwarded-").count(), 4, "{text}");
    assert!(
        text.contains(
            "Forwarded: for=9.9.9.9;host=h;proto=https, for=10.0.0.1;host=h;proto=http\r\n"
        )
    );
}

proptest! {
    /// What arrives is exactly one request with the same meaning.
    #[test]
    fn what_is_written_is_read_as_the_same_request(
        method in "(GET|POST|HEAD|OPTIONS|DELETE|M-1)",
        path in "/(a|/|\\.\\.?|%2e|%3b|;|%20|\u{e9}|'){0,8}",
        query in "(\\?(a|=|&|%0d%0a|\u{e9}|\"|\\?){0,6})?",
        fields in prop::collection::vec(
            "(Accept|X-A|X_B|Connection|TE|Upgrade|Via|Cookie|X-Forwarded-For|Forwarded|Proxy|Trailer): (a|,| |;|=|\"|\u{e9}|close|upgrade|X-A|trailers|websocket|h2c|\t){0,6}", 0..6),
        body in prop::sample::select(vec!["", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", "Content-Length: 0\r\n"]),
        (keep_alive, peer_trusted) in any::<(bool, bool)>(),
    ) {
        let fields: String = fields.iter().map(|line| format!("{line}\r\n")).collect();
        let head = format!("{method} {path}{query} HTTP/1.1\r\nHost: h:1\r\n{fields}{body}\r\n");
        let Ok(request) = parse_head(head.as_bytes(), &HeadLimits::default()) else {
            return Ok(());
        };
        let context = RequestContext {
            framing: request.framing,
            keep_alive,
            peer_trusted,
            peer: "10.0.0.1".parse().ok(),
            ..PLAIN
        };
        let mut out = Vec::new();
        let asked = write_request_head(&mut out, &request, &context).expect("passed on");
        let limits = HeadLimits::default();
        let end = HeadScanner::default().scan(&out, &limits);
        prop_assert_eq!(end, Ok(Some(out.len())), "one head and nothing else");
        let arrived = parse_head(&out, &limits).expect("valid");
        prop_assert_eq!(arrived.method, request.method);
        prop_assert_eq!(&arrived.path, &request.path);
        prop_assert_eq!(&arrived.host, &request.host);
        prop_assert_eq!(arrived.port, request.port);
        prop_assert_eq!(arrived.framing, request.framing);
        prop_assert_eq!(arrived.keep_alive, keep_alive || asked.upgrade.is_some());
        prop_assert_eq!(arrived.query.is_some(), request.query.is_some());
        prop_assert_eq!(arrived.fields.get_all("cookie").count(), request.fields.get_all("cookie").count());
        prop_assert_eq!(arrived.fields.get("upgrade").is_some(), asked.upgrade.is_some());
    }
}
