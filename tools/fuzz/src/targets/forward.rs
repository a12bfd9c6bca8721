//! Requests passed on to a backend: what arrives is exactly one request with the same meaning, whatever
//! stands in its fields, in the rewritten target and in the operations.

use beltway::http::h1::{HeadLimits, HeadScanner, parse_head};
use beltway::http::semantics::forwarding::{
    FieldOp, HostField, RequestContext, Target as RequestTarget, client_address, write_request_head,
};
use beltway::http::types::{Framing, Method, Request, TargetForm, Version};
use beltway::util::network::{Network, Peers};

use crate::Target;

/// The limits of the client's request.
const LIMITS: HeadLimits = HeadLimits {
    line_max: 256,
    section_max: 1024,
    fields_max: 16,
};

/// The target. The first byte is a set of choices; behind the head stands a text that the
/// configuration would have made, used as path, host and field.
pub const TARGET: Target = Target {
    name: "forward",
    run,
    corpus: &[
        b"\x00GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"\x01GET /a/../b%3bc?d=e HTTP/1.1\r\nHost: A.b:80\r\nConnection: close, X-A\r\nX-A: 1\r\n\r\n/x",
        b"\x0fPOST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n/y\r\nB: c",
        b"\x10POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nTrailer: x\r\n\r\n",
        b"\x20GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
        b"\x08GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4, ::1\r\nForwarded: for=\"[::1]:80\";host=b\r\n\r\n",
        b"\x40GET http://example.com:81/x HTTP/1.1\r\nHost: other\r\n\r\nb:81",
        b"\x80OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x00GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"\x00TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    tokens: &[
        b"\r\nX-Client: ",
        b"\r\n",
        b"\r",
        b"\n",
        b"\0",
        b",",
        b";",
        b"\"",
        b"\\",
        b"%0d%0a",
        b"%3B",
        b"%2e",
        b"/../",
        b"//",
        b"?",
        b"#",
        b" ",
        b"\xc3\xa9",
        b"Connection: X-A, Host, Content-Length, Cookie\r\n",
        b"Connection: upgrade\r\n",
        b"Upgrade: h2c\r\n",
        b"Upgrade: websocket\r\n",
        b"Content_Length: 5\r\n",
        b"Content-Length: 7\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer_Encoding: chunked\r\n",
        b"Proxy: a\r\n",
        b"X-Forwarded-For: 6.6.6.6\r\n",
        b"X-Forwarded-Host: b\r\n",
        b"Forwarded: for=\"",
        b"Cookie: a\r\n",
        b"TE: trailers\r\n",
        b"Expect: 100-continue\r\n",
        b"HTTP/1.0",
    ],
};

fn run(input: &[u8]) {
    let Some((&choices, input)) = input.split_first() else {
        return;
    };
    let Ok(Some(end)) = HeadScanner::default().scan(input, &LIMITS) else {
        return;
    };
    let (head, text) = input.split_at(end);
    let Ok(request) = parse_head(head, &LIMITS) else {
        return;
    };
    check_client_address(&request);
    let is = |choice: u32| choices & (1 << choice) != 0;
    let text = String::from_utf8_lossy(text);
    let operations: Vec<FieldOp> = [
        FieldOp::set("X-Op", text.to_string()).ok(),
        FieldOp::append("Cookie", text.to_string()).ok(),
    ]
    .into_iter()
    .flatten()
    .filter(|_| is(1))
    .collect();
    let client = [FieldOp::remove("X-Client").expect("a name")];
    let context = RequestContext {
        target: match (is(0), is(7)) {
            (true, _) => RequestTarget::Rewritten {
                path: &text,
                query: is(2).then_some(&*text),
            },
            (false, true) => RequestTarget::Stripped(&text),
            (false, false) => RequestTarget::Received,
        },
        host: match is(6) {
            true => HostField::Set(&text),
            false => HostField::Keep("backend:8080"),
        },
        framing: request.framing,
        expect: is(4),
        upgrade: is(5),
        keep_alive: is(2),
        peer: (!is(1)).then(|| [10, 0, 0, 1].into()),
        peer_trusted: is(3),
        scheme: "http",
        client: &client,
        operations: &operations,
    };
    let mut out = b"before".to_vec();
    match write_request_head(&mut out, &request, &context) {
        Ok(asked) => {
            let upgrade = asked.upgrade.is_some();
            check_arrival(&request, &context, &out[b"before".len()..], upgrade);
            let lower = out.to_ascii_lowercase();
            let spoofed = lower.windows(11).any(|part| part == b"\r\nx-client:");
            assert!(!spoofed, "a field that is never the client's");
        }
        Err(reject) => {
            assert!(matches!(reject.status.0, 400 | 405 | 500));
            assert_eq!(out, b"before", "nothing is left behind");
        }
    }
}

/// The backend is as strict as we are, and its limits are wider.
fn check_arrival(request: &Request<'_>, context: &RequestContext<'_>, out: &[u8], upgrade: bool) {
    let limits = HeadLimits {
        line_max: 64 << 10,
        section_max: 64 << 10,
        fields_max: 64,
    };
    let end = HeadScanner::default().scan(out, &limits);
    assert_eq!(end, Ok(Some(out.len())), "one head and nothing else");
    let arrived = parse_head(out, &limits).expect("a valid request");
    assert_eq!(arrived.version, Version::Http11);
    assert_eq!(arrived.method, request.method);
    assert!(!matches!(arrived.method, Method::Connect | Method::Trace));
    assert_eq!(arrived.framing, request.framing);
    assert_eq!(
        arrived.expects_continue,
        context.expect && request.expects_continue
    );
    assert_eq!(arrived.keep_alive, context.keep_alive || upgrade);
    check_target(request, context, &arrived);
    for name in [
        "content-length",
        "transfer-encoding",
        "upgrade",
        "te",
        "x-forwarded-proto",
    ] {
        assert!(arrived.fields.get_all(name).count() <= 1, "{name}");
    }
    assert!(arrived.framing != Framing::Chunked || arrived.fields.get("content-length").is_none());
    let offered = arrived.fields.get("upgrade");
    assert_eq!(offered.is_some(), upgrade);
    for protocol in offered.unwrap_or_default().split(|&byte| byte == b',') {
        let name = protocol.trim_ascii().to_ascii_lowercase();
        assert!(
            name != b"h2c" && !name.starts_with(b"http/"),
            "HTTP/2 would pass unseen"
        );
    }
    for (name, _) in arrived.fields.iter() {
        assert!(
            !name.contains('_') && !name.eq_ignore_ascii_case("proxy"),
            "{name}"
        );
    }
    check_client_told(request, context, &arrived);
}

fn check_target(request: &Request<'_>, context: &RequestContext<'_>, arrived: &Request<'_>) {
    if let HostField::Keep(backend) = context.host {
        let (host, port) = match &*request.host {
            "" => backend
                .split_once(':')
                .map_or((backend, None), |(h, p)| (h, p.parse().ok())),
            host => (host, request.port),
        };
        assert_eq!((&*arrived.host, arrived.port), (host, port));
    }
    if request.form == TargetForm::Asterisk {
        assert_eq!(arrived.form, TargetForm::Asterisk);
        return;
    }
    assert_eq!(arrived.form, TargetForm::Origin);
    match context.target {
        RequestTarget::Received => {
            assert_eq!(arrived.path, request.path);
            assert_eq!(arrived.query.is_some(), request.query.is_some());
        }
        RequestTarget::Stripped(_) => {
            assert!(request.path.ends_with(&*arrived.path) || arrived.path == "/")
        }
        RequestTarget::Rewritten { .. } => {}
    }
}

/// The backend is told of our peer, last, and of others only by a believed peer.
fn check_client_told(request: &Request<'_>, context: &RequestContext<'_>, arrived: &Request<'_>) {
    let peer_told = context.peer.is_some();
    let list = arrived.fields.get("x-forwarded-for");
    let told = list.map(<[u8]>::to_vec).unwrap_or_default();
    assert!(!peer_told || told.ends_with(b"10.0.0.1"));
    assert!(context.peer_trusted || !peer_told || told == b"10.0.0.1");
    assert!(arrived.fields.get_all("x-forwarded-for").count() <= 1);
    assert_eq!(arrived.fields.get_all("forwarded").count(), 1);
    if !context.peer_trusted {
        for name in ["x-real-ip", "x-forwarded-port"] {
            assert_eq!(arrived.fields.get(name), None, "{name}");
        }
    }
    let cookies = request.fields.get_all("cookie").count();
    assert!(
        arrived.fields.get_all("cookie").count() >= cookies,
        "a cookie is lost"
    );
    // Whoever believes us finds our peer in it, by either field.
    let us = Peers::new(
        vec![Network::parse("192.0.2.0/24").expect("a network")],
        false,
    );
    let seen = client_address("192.0.2.1".parse().ok(), &arrived.fields, &us);
    assert!(!peer_told || seen == context.peer, "{seen:?}");
}

/// An address that isn't believed is the client, and what it says changes nothing.
fn check_client_address(request: &Request<'_>) {
    let peer = Some([10, 0, 0, 1].into());
    let nobody = client_address(peer, &request.fields, &Peers::default());
    assert_eq!(nobody, peer);
    let all = Peers::new(
        vec![Network::parse("10.0.0.0/8").expect("a network")],
        false,
    );
    assert!(client_address(peer, &request.fields, &all).is_some());
}
