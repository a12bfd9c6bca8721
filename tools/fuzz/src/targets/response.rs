//! Responses of backends, head and body: the verdict does not depend on the cuts, what is accepted has
//! one meaning, and what is passed on to a client has the same one.

use beltway::http::h1::HeadLimits;
use beltway::http::h1::body::{BodyDecoder, is_forbidden_trailer};
use beltway::http::h1::encode::{DateCache, HeadContext, ResponseFraming};
use beltway::http::h1::response::{
    Asked, BackendResponse, HeadKind, INTERIM_MAX, Received, ResponseError, ResponseReader,
};
use beltway::http::semantics::forwarding::{client_framing, write_response_head};
use beltway::http::types::{Method, Version};

use crate::Target;
use crate::targets::cuts_of;

/// Small, so that mutation reaches them.
const LIMITS: HeadLimits = HeadLimits {
    line_max: 128,
    section_max: 1024,
    fields_max: 16,
};

/// The target. The first byte says what was asked: `h` HEAD, `u` an upgrade, anything else GET.
pub const TARGET: Target = Target {
    name: "response",
    run,
    corpus: &[
        b"gHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n\r\n",
        b"gHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
        b"gHTTP/1.0 200 OK\r\nServer: a\r\n\r\nuntil the end",
        b"gHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        b"hHTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close, X-A\r\nX-A: b\r\n\r\n",
        b"uHTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00",
        b"gHTTP/1.1 304\r\nETag: \"a\"\r\nContent-Length: 70\r\nDate: a\r\n\r\n",
        b"gHTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"g<html>\r\n",
    ],
    tokens: &[
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"\r\n ",
        b" :",
        b"HTTP/1.0 ",
        b"HTTP/1.1 ",
        b" 100 ",
        b" 101 ",
        b" 103 ",
        b" 204 ",
        b" 304 ",
        b" 600 ",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: +1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Connection: close\r\n",
        b"Connection: keep-alive\r\n",
        b"Connection: Content-Type, x, Set-Cookie\r\n",
        b"Upgrade: h2c\r\n",
        b"Set-Cookie: a\r\n",
        b"HTTP/1.1 103 x\r\n\r\n",
        b"0\r\n\r\n",
        b"1\r\na\r\n",
        b"ffffffffffffffff",
        b"99999999999999999999",
    ],
};

/// What came of the bytes of a connection.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    heads: Vec<(u16, HeadKind, ResponseFraming, bool)>,
    content: Vec<u8>,
    trailers: usize,
    /// Bytes used, and whether the message is whole if the connection ends behind them.
    used: usize,
    whole: bool,
}

fn run(input: &[u8]) {
    let Some((&choice, input)) = input.split_first() else {
        return;
    };
    let asked = match choice {
        b'h' => Asked::method(Method::Head),
        b'u' => Asked {
            head: false,
            upgrade: Some(Box::from(&b"websocket"[..])),
        },
        _ => Asked::method(Method::Get),
    };
    let whole = read(&asked, input, &[]);
    assert_eq!(read(&asked, input, &cuts_of(input)), whole, "cut at random");
    let each: Vec<usize> = (0..input.len()).collect();
    assert_eq!(read(&asked, input, &each), whole, "byte by byte");
    match whole {
        Ok(outcome) => assert!(outcome.heads.len() <= usize::from(INTERIM_MAX) + 1),
        Err(error) => {
            assert_eq!(error.status().0, 502);
            assert!(!error.reason().is_empty());
        }
    }
}

/// Reads a response from `input` that arrives in pieces, and then the end of the connection.
fn read(asked: &Asked, input: &[u8], cuts: &[usize]) -> Result<Outcome, ResponseError> {
    let mut reader = ResponseReader::new(asked.clone());
    let mut outcome = Outcome {
        heads: vec![],
        content: vec![],
        trailers: 0,
        used: 0,
        whole: false,
    };
    let mut body: Option<BodyDecoder> = None;
    for &cut in cuts.iter().chain([&input.len()]) {
        while body.is_none() {
            let Some(received) = reader.head(&input[outcome.used..cut], &LIMITS)? else {
                break;
            };
            check(asked, &received);
            let Received {
                length,
                kind,
                response,
            } = received;
            outcome.used += length;
            outcome.heads.push((
                response.status.0,
                kind,
                response.framing,
                response.keep_alive,
            ));
            match kind {
                HeadKind::Interim => {}
                HeadKind::Switch => return Ok(outcome),
                HeadKind::Final => body = Some(BodyDecoder::for_response(response.framing)),
            }
        }
        let Some(decoder) = &mut body else {
            continue;
        };
        while outcome.used < cut && !decoder.is_ended() {
            let piece = &input[outcome.used..cut];
            let ahead = decoder.content_ahead();
            let decoded = decoder.decode(piece)?;
            assert!(decoded.consumed > 0, "each call gets on");
            if ahead > 0 {
                let plain = usize::try_from(ahead)
                    .unwrap_or(usize::MAX)
                    .min(piece.len());
                assert_eq!(decoded.data, 0..plain, "content is where it was announced");
            }
            outcome.content.extend_from_slice(&piece[decoded.data]);
            outcome.used += decoded.consumed;
        }
    }
    if let Some(mut decoder) = body {
        outcome.whole = decoder.end_of_input();
        let trailers = decoder.trailers();
        assert!(trailers.iter().all(|(name, _)| !is_forbidden_trailer(name)));
        outcome.trailers = trailers.len();
    }
    Ok(outcome)
}

fn check(asked: &Asked, received: &Received<'_>) {
    let response = &received.response;
    assert!((100..600).contains(&response.status.0));
    assert!(response.fields.len() <= LIMITS.fields_max);
    let lengths = response.fields.get_all("content-length").count();
    let codings = response.fields.get_all("transfer-encoding").count();
    assert!(
        lengths <= 1 && (lengths == 0 || codings == 0),
        "one framing"
    );
    match response.framing {
        ResponseFraming::None => assert!(asked.head || response.status.forbids_body()),
        ResponseFraming::Length(length) => assert_eq!(response.length, Some(length)),
        ResponseFraming::Chunked => {
            assert!(codings > 0 && response.version == Version::Http11);
        }
        ResponseFraming::Close => assert!(lengths + codings == 0 && !response.keep_alive),
    }
    for (name, value) in response.fields.iter() {
        assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b':'));
        assert!(
            value
                .iter()
                .all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f))
        );
    }
    if received.kind == HeadKind::Switch {
        assert!(asked.upgrade.is_some());
    }
    for version in [Version::Http10, Version::Http11] {
        check_client(asked, response, version);
    }
}

/// What a client gets is one head that says of its body what the backend has said.
fn check_client(asked: &Asked, response: &BackendResponse<'_>, version: Version) {
    let framing = client_framing(response, version, asked.head);
    let mut date = DateCache::new(0);
    let context = HeadContext {
        version,
        keep_alive: true,
        framing,
        date: date.at(0),
    };
    let mut out = Vec::new();
    if write_response_head(&mut out, response, &context, &[]).is_err() {
        assert!(out.is_empty());
        return;
    }
    // Our own fields come on top of the backend's.
    let limits = HeadLimits {
        section_max: LIMITS.section_max * 2,
        fields_max: LIMITS.fields_max + 5,
        ..LIMITS
    };
    let mut reader = ResponseReader::new(asked.clone());
    let received = reader.head(&out, &limits).expect("valid");
    let received = received.expect("whole");
    assert_eq!(received.length, out.len(), "one head and nothing else");
    assert_eq!(received.response.status, response.status);
    match framing {
        ResponseFraming::Length(length) => {
            assert_eq!(received.response.length, Some(length));
        }
        other => assert_eq!(received.response.framing, other),
    }
    for cookie in response.fields.get_all("set-cookie") {
        let mut kept = received.response.fields.get_all("set-cookie");
        assert!(kept.any(|other| other == cookie), "a cookie is lost");
    }
    let keep_alive = received.response.fields.get("keep-alive");
    assert_eq!(keep_alive, None, "a field of the backend's connection");
}
