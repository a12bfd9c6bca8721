//! Request heads: the verdict does not depend on the cuts, and what is accepted has one meaning.

use beltway::http::h1::{HeadLimits, HeadScanner, Reject, parse_head};
use beltway::http::types::{Framing, Method, Request, TargetForm, Version};
use beltway::http::uri;

use crate::Target;
use crate::targets::cuts_of;

/// Small, so that mutation reaches them.
const LIMITS: HeadLimits = HeadLimits {
    line_max: 256,
    section_max: 1024,
    fields_max: 16,
};

/// The target.
pub const TARGET: Target = Target {
    name: "request",
    run,
    corpus: &[
        b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"GET /a/../b%20c?d=e HTTP/1.1\r\nHost: A.b:80\r\nConnection: close\r\nAccept: */*\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        b"GET http://example.com:81/x HTTP/1.1\r\nHost: other\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
        b"\r\nGET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        b"GET /\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    tokens: &[
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"\r\n ",
        b" :",
        b": ",
        b",",
        b";",
        b"chunked",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: +1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, ",
        b"Host: b\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n",
        b"HTTP/1.0",
        b"HTTP/1.1",
        b"HTTP/2.0",
        b"CONNECT ",
        b"OPTIONS ",
        b" * ",
        b"http://b",
        b"/../",
        b"%2f",
        b"%00",
        b"[::1]:80",
        b"99999999999999999999",
        b"18446744073709551616",
    ],
};

fn run(input: &[u8]) {
    let whole = scan(input, &[]);
    assert_eq!(scan(input, &cuts_of(input)), whole, "cut at random");
    let each: Vec<usize> = (0..input.len()).collect();
    assert_eq!(scan(input, &each), whole, "byte by byte");
    let Ok(Some(end)) = whole else {
        check_reject(whole.err());
        return;
    };
    assert!(end <= LIMITS.head_max());
    let head = &input[..end];
    assert_lines(head);
    match parse_head(head, &LIMITS) {
        Ok(request) => check_request(head, &request),
        Err(reject) => check_reject(Some(reject)),
    }
}

/// The first verdict on `input` that arrives in pieces.
fn scan(input: &[u8], cuts: &[usize]) -> Result<Option<usize>, Reject> {
    let mut scanner = HeadScanner::default();
    for &cut in cuts.iter().chain([&input.len()]) {
        match scanner.scan(&input[..cut], &LIMITS) {
            Ok(None) => {}
            verdict => return verdict,
        }
    }
    Ok(None)
}

fn check_reject(reject: Option<Reject>) {
    if let Some(reject) = reject {
        assert!(matches!(reject.status.0, 400 | 414 | 417 | 431 | 501 | 505));
        assert!(!reject.reason.is_empty());
    }
}

/// An accepted head has whole lines only, and one empty line at its end.
fn assert_lines(head: &[u8]) {
    assert!(head.ends_with(b"\r\n\r\n") && !head.contains(&0));
    for (at, byte) in head.iter().enumerate() {
        match byte {
            b'\n' => assert_eq!(head[at - 1], b'\r', "bare LF accepted"),
            b'\r' => assert_eq!(head[at + 1], b'\n', "bare CR accepted"),
            _ => {}
        }
    }
}

fn check_request(head: &[u8], request: &Request<'_>) {
    assert!(request.fields.len() <= LIMITS.fields_max);
    check_framing(request);
    check_target(request);
    let hosts = request.fields.get_all("host").count();
    assert!(hosts == 1 || (hosts == 0 && request.version == Version::Http10));
    for (name, value) in request.fields.iter() {
        assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b':'));
        assert!(
            value
                .iter()
                .all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f))
        );
        assert_eq!(value, value.trim_ascii());
    }
    check_against_naive_reader(head, request);
}

/// Exactly one thing says where the body ends.
fn check_framing(request: &Request<'_>) {
    let lengths: Vec<_> = request.fields.get_all("content-length").collect();
    let codings: Vec<_> = request.fields.get_all("transfer-encoding").collect();
    assert!(lengths.len() + codings.len() <= 1);
    match request.framing {
        Framing::None => assert!(codings.is_empty()),
        Framing::Length(length) => {
            assert!(length > 0 && codings.is_empty());
            let text = str::from_utf8(lengths[0]).expect("digits");
            assert_eq!(text.trim_start_matches('0'), length.to_string());
        }
        Framing::Chunked => {
            assert!(lengths.is_empty() && request.version == Version::Http11);
            assert!(codings[0].eq_ignore_ascii_case(b"chunked"));
        }
    }
    assert!(!request.expects_continue || request.framing != Framing::None);
}

fn check_target(request: &Request<'_>) {
    let connect = request.method == Method::Connect;
    assert_eq!(connect, request.form == TargetForm::Authority);
    assert!(!connect || request.framing == Framing::None);
    if request.form == TargetForm::Asterisk {
        assert_eq!(request.method, Method::Options);
    }
    assert!(!request.target.contains('#') && !request.target.contains(' '));
    assert!(request.path.starts_with('/'));
    let again = uri::encode_path(&request.path);
    assert_eq!(uri::canonical_path(&again).as_deref(), Ok(&*request.path));
    assert!(!request.host.is_empty() || request.version == Version::Http10);
    assert!(!request.host.contains(|c: char| c.is_ascii_uppercase()));
}

/// Differential: a reader that knows nothing but lines and colons finds the same fields.
fn check_against_naive_reader(head: &[u8], request: &Request<'_>) {
    let text = head.trim_ascii_start();
    let mut lines = text
        .split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii_end);
    let start = lines.next().expect("a request line");
    let words: Vec<_> = start.split(|&byte| byte == b' ').collect();
    assert_eq!(words.len(), 3);
    assert_eq!(words[0], request.method.as_str().as_bytes());
    assert_eq!(words[1], request.target.as_bytes());
    let mut fields = request.fields.iter();
    for line in lines.take_while(|line| !line.is_empty()) {
        let colon = line.iter().position(|&byte| byte == b':').expect("a colon");
        let (name, value) = fields.next().expect("a field for each line");
        assert_eq!(name.as_bytes(), &line[..colon]);
        assert_eq!(value, line[colon + 1..].trim_ascii());
    }
    assert!(fields.next().is_none(), "a field for no line");
}
