//! Heads of backends: what is accepted, with which framing, and what is refused.

use super::*;
use crate::http::h1::body::BodyDecoder;
use proptest::prelude::*;

const LIMITS: HeadLimits = HeadLimits {
    line_max: 64,
    section_max: 256,
    fields_max: 6,
};

fn reader(asked: Asked) -> ResponseReader {
    ResponseReader::new(asked)
}

fn get() -> Asked {
    Asked::method(Method::Get)
}

fn websocket() -> Asked {
    Asked {
        head: false,
        upgrade: Some(Box::from(&b"websocket, Foo"[..])),
    }
}

fn read(asked: Asked, text: &str) -> Result<Received<'_>, ResponseError> {
    let received = reader(asked).head(text.as_bytes(), &LIMITS)?;
    Ok(received.expect("a whole head"))
}

#[test]
fn a_response_is_taken_apart() {
    let text = "HTTP/1.1 404 Gone \u{e9} fishing\r\nX-A:  b \r\nContent-Length: 5\r\n\r\nhello";
    let received = read(get(), text).expect("valid");
    assert_eq!(&text[received.length..], "hello");
    assert_eq!(received.kind, HeadKind::Final);
    let response = received.response;
    assert_eq!(
        (response.version, response.status.0),
        (Version::Http11, 404)
    );
    assert_eq!(response.fields.get("x-a"), Some(&b"b"[..]));
    assert_eq!(response.framing, ResponseFraming::Length(5));
    assert_eq!((response.length, response.keep_alive), (Some(5), true));
}

#[test]
fn bodies_end_by_method_status_and_fields() {
    use ResponseFraming::{Chunked, Close, Length, None};
    let length = "Content-Length: 5\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n";
    for (head, status, fields, framing, keep_alive) in [
        (false, 200, "", Close, false),
        (false, 200, length, Length(5), true),
        (false, 200, "Content-Length: 0\r\n", Length(0), true),
        (false, 200, chunked, Chunked, true),
        (
            false,
            200,
            "transfer-encoding:\t CHUNKED\r\n",
            Chunked,
            true,
        ),
        (false, 500, "", Close, false),
        (false, 205, length, Length(5), true),
        (true, 200, "", None, true),
        (true, 200, length, None, true),
        (true, 200, chunked, None, true),
        (true, 404, length, None, true),
        (false, 204, "", None, true),
        (false, 204, "Content-Length: 0\r\n", None, true),
        // Content may follow that must not be: the connection isn't used again.
        (false, 204, length, None, false),
        (false, 204, chunked, None, false),
        (false, 304, "", None, true),
        (false, 304, length, None, true),
        (false, 304, chunked, None, true),
        (
            false,
            200,
            "Content-Length: 5\r\nConnection: close\r\n",
            Length(5),
            false,
        ),
        (
            false,
            200,
            "Content-Length: 5\r\nConnection: x, CLOSE\r\n",
            Length(5),
            false,
        ),
    ] {
        let text = format!("HTTP/1.1 {status} x\r\n{fields}\r\n");
        let asked = Asked {
            head,
            upgrade: Option::None,
        };
        let response = read(asked, &text).expect(&text).response;
        assert_eq!(response.framing, framing, "{head} {text:?}");
        assert_eq!(response.keep_alive, keep_alive, "{head} {text:?}");
    }
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 70\r\n\r\n";
    let response = read(Asked::method(Method::Head), text)
        .expect("valid")
        .response;
    assert_eq!(response.length, Some(70), "what GET would have");
}

#[test]
fn an_old_backend_keeps_its_connection_only_when_it_says_so() {
    for (fields, keep_alive) in [
        ("Content-Length: 5\r\n", false),
        ("Content-Length: 5\r\nConnection: Keep-Alive\r\n", true),
        (
            "Content-Length: 5\r\nConnection: keep-alive, close\r\n",
            false,
        ),
        ("Connection: keep-alive\r\n", false),
    ] {
        let text = format!("HTTP/1.0 200 OK\r\n{fields}\r\n");
        let response = read(get(), &text).expect(&text).response;
        assert_eq!(response.version, Version::Http10);
        assert_eq!(response.keep_alive, keep_alive, "{fields:?}");
    }
}

#[test]
fn ambiguous_and_malformed_heads_are_refused() {
    for (text, reason) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "Content-Length with Transfer-Encoding",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            "more than one Content-Length",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 6\r\n\r\n",
            "more than one Content-Length",
        ),
        (
            "HTTP/1.1 304 x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "more than one Content-Length",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
            "Content-Length is not a number",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "Content-Length is not a number",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            "Content-Length is not a number",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n",
            "Content-Length is not a number",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            "Content-Length has no or too many digits",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "last transfer coding is not chunked",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
            "last transfer coding is not chunked",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "unknown transfer coding",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            "chunked more than once",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "last transfer coding is not chunked",
        ),
        (
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "Transfer-Encoding in HTTP/1.0",
        ),
        (
            "HTTP/1.1 100 x\r\nContent-Length: 5\r\n\r\n",
            "interim response with a body",
        ),
        (
            "HTTP/1.1 103 x\r\nTransfer-Encoding: chunked\r\n\r\n",
            "interim response with a body",
        ),
        ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "folded field line"),
        (
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            "whitespace before the colon",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
            "whitespace before the colon",
        ),
        ("HTTP/1.1 200 OK\r\n: b\r\n\r\n", "empty field name"),
        ("HTTP/1.1 200 OK\r\nA b\r\n\r\n", "field line without colon"),
        (
            "HTTP/1.1 200 OK\r\nA: \x01\r\n\r\n",
            "control character in field value",
        ),
        ("HTTP/1.1 200 OK\r\nA: b\nB: c\r\n\r\n", "bare LF in head"),
        ("HTTP/1.1 200 OK\nA: b\r\n\r\n", "bare LF in head"),
        ("HTTP/1.1 200 OK\r\nA: b\rB: c\r\n\r\n", "bare CR in head"),
        ("HTTP/1.1 200 OK\r\nA: \0\r\n\r\n", "NUL in head"),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", "status line"),
        ("HTTP/1.1\r\n\r\n", "status line"),
        ("HTTP/1.1 \r\n\r\n", "status code"),
        ("HTTP/1.1  200 OK\r\n\r\n", "status code"),
        ("HTTP/1.1 20 OK\r\n\r\n", "status code"),
        ("HTTP/1.1 2000 OK\r\n\r\n", "status code"),
        ("HTTP/1.1 20x OK\r\n\r\n", "status code"),
        ("HTTP/1.1 200OK\r\n\r\n", "status code"),
        ("HTTP/1.1 099 OK\r\n\r\n", "status code out of range"),
        ("HTTP/1.1 600 OK\r\n\r\n", "status code out of range"),
        ("HTTP/1.1 999 OK\r\n\r\n", "status code out of range"),
        ("HTTP/1.1 200 a\x01b\r\n\r\n", "status line"),
        ("HTTP/1.2 200 OK\r\n\r\n", "HTTP version"),
        ("HTTP/2 200 OK\r\n\r\n", "HTTP version"),
        ("http/1.1 200 OK\r\n\r\n", "status line"),
        ("SSH-2.0-OpenSSH_9.9\r\n", "status line"),
        ("<html>\r\n", "status line"),
    ] {
        let error = read(get(), text).expect_err(text);
        assert_eq!(error, ResponseError::Malformed(reason), "{text:?}");
        assert_eq!(error.status().0, 502);
    }
    assert!(
        read(get(), "HTTP/1.1 200\r\n\r\n").is_ok(),
        "no reason, no space"
    );
    assert!(read(get(), "HTTP/1.1 200 \r\n\r\n").is_ok(), "no reason");
}

#[test]
fn sizes_are_bounded() {
    let limit = |text: String| {
        reader(get())
            .head(text.as_bytes(), &LIMITS)
            .expect_err("too large")
    };
    let line = format!("HTTP/1.1 200 {}", "x".repeat(52));
    assert_eq!(limit(line), ResponseError::Limit("limit: status line"));
    let section = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(256));
    assert_eq!(
        limit(section),
        ResponseError::Limit("limit: header section")
    );
    let fields = format!("HTTP/1.1 200 OK\r\n{}", "A: b\r\n".repeat(7));
    assert_eq!(
        limit(fields),
        ResponseError::Limit("limit: number of fields")
    );
}

#[test]
fn interim_responses_come_before_the_final_one_and_are_bounded() {
    let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
                HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let (mut reader_of_all, mut at, mut seen) = (reader(get()), 0, Vec::new());
    while let Some(received) = reader_of_all
        .head(&text.as_bytes()[at..], &LIMITS)
        .expect("valid")
    {
        seen.push((received.response.status.0, received.kind));
        at += received.length;
        if received.kind == HeadKind::Final {
            break;
        }
    }
    use HeadKind::{Final, Interim};
    assert_eq!(seen, [(100, Interim), (103, Interim), (200, Final)]);
    assert_eq!(at, text.len());

    let interim = b"HTTP/1.1 103 Early Hints\r\n\r\n";
    let mut flooded = reader(get());
    for _ in 0..INTERIM_MAX {
        assert!(
            flooded
                .head(interim, &LIMITS)
                .expect("within the bound")
                .is_some()
        );
    }
    let error = flooded.head(interim, &LIMITS).expect_err("a flood");
    assert_eq!(error, ResponseError::Limit("limit: interim responses"));
}

#[test]
fn a_switch_is_believed_only_when_it_was_asked_for() {
    let switch = |version: &str, fields: &str| format!("HTTP/{version} 101 x\r\n{fields}\r\n");
    let upgrade = "Connection: upgrade\r\nUpgrade: WebSocket\r\n";
    let text = switch("1.1", upgrade);
    let received = read(websocket(), &text).expect("asked for");
    assert_eq!(
        (received.kind, received.length),
        (HeadKind::Switch, text.len())
    );
    for (asked, text, reason) in [
        (
            get(),
            switch("1.1", upgrade),
            "101 without Upgrade asked for",
        ),
        (
            websocket(),
            switch("1.1", "Upgrade: h2c\r\n"),
            "101 to a protocol not asked for",
        ),
        (
            websocket(),
            switch("1.1", "Upgrade: foo, h2c\r\n"),
            "101 to a protocol not asked for",
        ),
        (
            websocket(),
            switch("1.1", "Connection: upgrade\r\n"),
            "101 without Upgrade",
        ),
        (websocket(), switch("1.0", upgrade), "101 in HTTP/1.0"),
    ] {
        assert_eq!(read(asked, &text).expect_err(&text).reason(), reason);
    }
    let refused = "HTTP/1.1 400 x\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(
        read(websocket(), refused).expect("valid").kind,
        HeadKind::Final
    );
}

#[test]
fn what_follows_a_response_is_not_part_of_it() {
    let text = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                 1\r\na\r\n0\r\nX-Sum: 1\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
    let received = reader(get())
        .head(text, &LIMITS)
        .expect("valid")
        .expect("whole");
    let mut decoder = BodyDecoder::for_response(received.response.framing);
    let (mut at, mut content) = (received.length, Vec::new());
    while !decoder.is_ended() {
        let decoded = decoder.decode(&text[at..]).expect("valid");
        content.extend_from_slice(&text[at..][decoded.data]);
        at += decoded.consumed;
    }
    assert_eq!(content, b"a");
    assert_eq!(decoder.trailers().get("x-sum"), Some(&b"1"[..]));
    assert_eq!(
        &text[at..],
        b"HTTP/1.1 200 OK\r\n\r\n",
        "left for whoever counts it as a fault"
    );
}

proptest! {
    #[test]
    fn the_verdict_does_not_depend_on_the_cuts(
        text in "(HTTP/1.[01] (100|101|200|204|700) ?x?\r\n)?(Content-Length: 5\r\n|Upgrade: foo\r\n|[a:\r\n\x00]|\r\n){0,6}(\r\n)?",
        mut cuts in prop::collection::vec(0..200_usize, 0..8),
    ) {
        cuts.iter_mut().for_each(|cut| *cut = (*cut).min(text.len()));
        cuts.sort_unstable();
        let summary = |verdict: Result<Option<Received<'_>>, ResponseError>| {
            verdict.map(|found| found.map(|r| (r.length, r.kind, r.response.framing)))
        };
        let whole = summary(reader(websocket()).head(text.as_bytes(), &LIMITS));
        let mut pieces = reader(websocket());
        let mut verdict = Ok(None);
        for &cut in cuts.iter().chain([&text.len()]) {
            verdict = summary(pieces.head(&text.as_bytes()[..cut], &LIMITS));
            if verdict != Ok(None) {
                break;
            }
        }
        prop_assert_eq!(verdict, whole);
    }
}
