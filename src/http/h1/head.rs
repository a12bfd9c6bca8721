//! Parses a whole head into a [`Request`], once, with httparse and the strict rules around it.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use super::framing::Control;
use super::{FIELDS_CAP, HeadLimits, Reject};
use crate::http::types::{Fields, Framing, Method, Request, TargetForm, Version};
use crate::http::uri::{self, Authority, UriError};

/// Fields that the usual parse has room for on the stack (3.2 KiB, not initialised). Limits above
/// it take a larger array.
pub(super) const FIELDS_ON_STACK: usize = 100;

/// Parses `head`, exactly the bytes whose end [`HeadScanner`](super::HeadScanner) has found: the
/// scan refuses a bare LF, which this parser by itself would take.
///
/// # Errors
/// The rules of RFC 9112 §3 to §6 and RFC 9110 §7.2, each with its reason: 400, or 417 for an
/// unknown expectation, 431 for too many fields, 501 for an unknown transfer coding.
pub fn parse_head<'b>(head: &'b [u8], limits: &HeadLimits) -> Result<Request<'b>, Reject> {
    debug_assert!(
        matches!(super::HeadScanner::default().scan(head, limits), Ok(Some(end)) if end == head.len()),
        "a head is scanned before it is parsed"
    );
    if limits.fields_max <= FIELDS_ON_STACK {
        parse_with_room::<FIELDS_ON_STACK>(head, limits.fields_max)
    } else {
        parse_with_room::<FIELDS_CAP>(head, limits.fields_max.min(FIELDS_CAP))
    }
}

#[inline(never)]
fn parse_with_room<const ROOM: usize>(
    head: &[u8],
    fields_max: usize,
) -> Result<Request<'_>, Reject> {
    let mut room = [const { MaybeUninit::uninit() }; ROOM];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, &mut room[..fields_max]) {
        Ok(httparse::Status::Complete(end)) if end == head.len() => {}
        Ok(_) => return Err(Reject::bad("head does not end where it was found to")),
        Err(error) => return Err(refuse_syntax(head, error)),
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(Reject::bad("request line"));
    };
    let version = match minor {
        0 => Version::Http10,
        _ => Version::Http11,
    };
    let mut fields = Fields::default();
    let mut control = Control::default();
    for field in parsed.headers.iter() {
        control.note(field.name, field.value);
        fields.push(field.name, field.value);
    }

    let method = Method::from_token(method);
    let framing = control.framing(version)?;
    if method == Method::Connect && framing != Framing::None {
        // Its body would have no meaning (RFC 9110 §9.3.6), and its bytes would be the tunnel's.
        return Err(Reject::bad("CONNECT with a body"));
    }
    // A Host that is overridden must be valid all the same.
    let host = control.host(version)?;
    let host = host.map(uri::parse_authority).transpose()?;
    let target_parts = parse_target(method, target)?;
    let (host, port) = match target_parts.authority.or(host) {
        Some(authority) => (authority.host, authority.port),
        None => (Cow::Borrowed(""), None),
    };
    Ok(Request {
        method,
        version,
        target,
        form: target_parts.form,
        host,
        port,
        path: target_parts.path,
        query: target_parts.query,
        fields,
        framing,
        keep_alive: control.keep_alive(version),
        expects_continue: control.expects_continue(version, framing)?,
    })
}

/// A request target, taken apart.
struct Target<'b> {
    form: TargetForm,
    authority: Option<Authority<'b>>,
    path: Cow<'b, str>,
    query: Option<&'b str>,
}

/// Takes a target apart by the form that the method allows (RFC 9112 §3.2).
fn parse_target<'b>(method: Method<'_>, target: &'b str) -> Result<Target<'b>, Reject> {
    if method == Method::Connect {
        return parse_connect(target);
    }
    if target.starts_with('/') {
        let (path, query) = parse_path(target)?;
        return Ok(Target {
            form: TargetForm::Origin,
            authority: None,
            path,
            query,
        });
    }
    if target == "*" {
        if method != Method::Options {
            return Err(Reject::bad("asterisk-form without OPTIONS"));
        }
        return Ok(Target {
            form: TargetForm::Asterisk,
            authority: None,
            path: Cow::Borrowed("/"),
            query: None,
        });
    }
    let Some((authority, rest)) = uri::split_absolute(target) else {
        return Err(Reject::bad("request target has no valid form"));
    };
    let authority = uri::parse_authority(authority.as_bytes())?;
    let (path, query) = match rest.strip_prefix('?') {
        // An empty path is `/` (RFC 9110 §4.2.3).
        Some(query) => (Cow::Borrowed("/"), Some(check_query(query)?)),
        None if rest.is_empty() => (Cow::Borrowed("/"), None),
        None => parse_path(rest)?,
    };
    Ok(Target {
        form: TargetForm::Absolute,
        authority: Some(authority),
        path,
        query,
    })
}

fn parse_connect(target: &str) -> Result<Target<'_>, Reject> {
    let authority = uri::parse_authority(target.as_bytes())
        .map_err(|_| Reject::bad("CONNECT without authority-form"))?;
    if authority.port.is_none() {
        return Err(Reject::bad("CONNECT without a port"));
    }
    Ok(Target {
        form: TargetForm::Authority,
        authority: Some(authority),
        path: Cow::Borrowed("/"),
        query: None,
    })
}

fn parse_path(target: &str) -> Result<(Cow<'_, str>, Option<&str>), UriError> {
    let (path, query) = uri::split_query(target);
    Ok((
        uri::canonical_path(path)?,
        query.map(check_query).transpose()?,
    ))
}

/// A query is opaque, but a fragment is never sent.
fn check_query(query: &str) -> Result<&str, UriError> {
    match memchr::memchr(b'#', query.as_bytes()) {
        Some(_) => Err(UriError::Delimiter),
        None => Ok(query),
    }
}

/// Names the rule that httparse found broken.
#[cold]
fn refuse_syntax(head: &[u8], error: httparse::Error) -> Reject {
    use httparse::Error;
    match error {
        Error::TooManyHeaders => Reject::new(431, "limit: number of fields"),
        Error::HeaderName => Reject::bad(broken_name(head)),
        Error::HeaderValue => Reject::bad("control character in field value"),
        // The scan has seen a known version at the end of the line: something stands before it.
        Error::Version | Error::Token | Error::NewLine | Error::Status => {
            Reject::bad("request line")
        }
    }
}

/// Why the first bad field line of `head` is bad.
pub(super) fn broken_name(head: &[u8]) -> &'static str {
    let lines = head.trim_ascii_start().split(|&byte| byte == b'\n');
    for line in lines.skip(1) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            break;
        }
        if line[0] == b' ' || line[0] == b'\t' {
            return "folded field line";
        }
        let Some(colon) = memchr::memchr(b':', line) else {
            return "field line without colon";
        };
        match &line[..colon] {
            [] => return "empty field name",
            [.., b' ' | b'\t'] => return "whitespace before the colon",
            name if !super::is_token(name) => return "field name is not a token",
            _ => {}
        }
    }
    "field name"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::HeadScanner;

    fn receive(head: &str) -> Result<Request<'_>, Reject> {
        let limits = HeadLimits::default();
        let end = HeadScanner::default().scan(head.as_bytes(), &limits)?;
        assert_eq!(end, Some(head.len()), "{head:?}");
        parse_head(head.as_bytes(), &limits)
    }

    /// The verdict on a request with a valid Host and these field lines.
    fn refused_fields(start: &str, fields: &str) -> Option<(u16, &'static str)> {
        let head = format!("{start}\r\nHost: a\r\n{fields}\r\n");
        receive(&head).err().map(|r| (r.status.0, r.reason))
    }

    fn refused_head(head: &str) -> Option<(u16, &'static str)> {
        receive(head).err().map(|r| (r.status.0, r.reason))
    }

    #[test]
    fn a_request_is_taken_apart() {
        let head = "\r\nGET /a%20b/../c?x=1?y HTTP/1.1\r\nHOST:\t Example.com:8080 \r\nX-Y:\r\n\
                    x-z: \u{e9} \"q\"\r\nx-z: 2\r\n\r\n";
        let request = receive(head).expect("valid");
        assert_eq!(request.method, Method::Get);
        assert_eq!(request.version, Version::Http11);
        assert_eq!(request.target, "/a%20b/../c?x=1?y");
        assert_eq!(request.form, TargetForm::Origin);
        assert_eq!((&*request.host, request.port), ("example.com", Some(8080)));
        assert_eq!((&*request.path, request.query), ("/c", Some("x=1?y")));
        assert_eq!(request.fields.get("host"), Some(&b"Example.com:8080"[..]));
        assert_eq!(request.fields.get("x-y"), Some(&b""[..]));
        assert_eq!(request.fields.get_all("X-Z").count(), 2);
        assert_eq!(request.framing, Framing::None);
        assert!(request.keep_alive && !request.expects_continue);
    }

    #[test]
    fn malformed_field_lines_are_refused() {
        let control = "control character in field value";
        for (fields, reason) in [
            ("A: b\r\n c\r\n", "folded field line"),
            ("A: b\r\n\tc: d\r\n", "folded field line"),
            ("A : b\r\n", "whitespace before the colon"),
            ("Content-Length : 5\r\n", "whitespace before the colon"),
            ("A\t: b\r\n", "whitespace before the colon"),
            (": b\r\n", "empty field name"),
            ("A B: c\r\n", "field name is not a token"),
            ("A(b): c\r\n", "field name is not a token"),
            ("\u{e9}: c\r\n", "field name is not a token"),
            ("A\u{1}: c\r\n", "field name is not a token"),
            ("abc\r\n", "field line without colon"),
            ("A: b\u{b}c\r\n", control),
            ("A: b\u{7f}\r\n", control),
            ("Transfer-Encoding: \u{b}chunked\r\n", control),
        ] {
            let found = refused_fields("GET / HTTP/1.1", fields);
            assert_eq!(found, Some((400, reason)), "{fields:?}");
        }
        let first = "GET / HTTP/1.1\r\n Host: a\r\n\r\n";
        assert_eq!(refused_head(first), Some((400, "folded field line")));
    }

    #[test]
    fn request_lines_are_strict() {
        for line in [
            "GET  / HTTP/1.1",
            "GET /  HTTP/1.1",
            " GET / HTTP/1.1",
            "GET /a b HTTP/1.1",
            "GET\t/ HTTP/1.1",
            "G(T / HTTP/1.1",
            "/ HTTP/1.1",
            "GET /\u{7f} HTTP/1.1",
            "GET /\u{1} HTTP/1.1",
        ] {
            let found = refused_fields(line, "").map(|(status, _)| status);
            assert_eq!(found, Some(400), "{line:?}");
        }
        let not_utf8 = b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!(parse_head(not_utf8, &HeadLimits::default()).is_err());
    }

    #[test]
    fn hosts_are_exactly_one() {
        for (head, reason) in [
            ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 without Host"),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "invalid host"),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "invalid host"),
            ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", "invalid host"),
            ("GET / HTTP/1.1\r\nHost: a:x\r\n\r\n", "invalid port"),
            (
                "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
                "user information in authority",
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
                "more than one Host",
            ),
            (
                "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
                "more than one Host",
            ),
            ("GET / HTTP/1.0\r\nHost: /\r\n\r\n", "invalid host"),
            // Absolute-form overrides Host but does not replace the duty to send one.
            ("GET http://a/ HTTP/1.1\r\n\r\n", "HTTP/1.1 without Host"),
            (
                "GET http://a/ HTTP/1.1\r\nHost: b c\r\n\r\n",
                "invalid host",
            ),
        ] {
            assert_eq!(refused_head(head), Some((400, reason)), "{head:?}");
        }
        let old = receive("GET / HTTP/1.0\r\n\r\n").expect("HTTP/1.0 may lack Host");
        assert_eq!((&*old.host, old.port), ("", None));
    }

    #[test]
    fn targets_have_the_form_of_their_method() {
        for (method, target, form, host, port, path, query) in [
            ("GET", "/", TargetForm::Origin, "h", None, "/", None),
            (
                "GET",
                "http://A:81/x?y",
                TargetForm::Absolute,
                "a",
                Some(81),
                "/x",
                Some("y"),
            ),
            (
                "GET",
                "HTTPS://a",
                TargetForm::Absolute,
                "a",
                None,
                "/",
                None,
            ),
            (
                "GET",
                "http://a?y",
                TargetForm::Absolute,
                "a",
                None,
                "/",
                Some("y"),
            ),
            ("OPTIONS", "*", TargetForm::Asterisk, "h", None, "/", None),
            ("OPTIONS", "/x", TargetForm::Origin, "h", None, "/x", None),
            (
                "CONNECT",
                "a:443",
                TargetForm::Authority,
                "a",
                Some(443),
                "/",
                None,
            ),
            (
                "CONNECT",
                "[::1]:443",
                TargetForm::Authority,
                "[::1]",
                Some(443),
                "/",
                None,
            ),
        ] {
            let head = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            let request = receive(&head).expect(target);
            assert_eq!(request.form, form, "{target}");
            assert_eq!((&*request.host, request.port), (host, port), "{target}");
            assert_eq!((&*request.path, request.query), (path, query), "{target}");
        }
    }

    #[test]
    fn targets_of_another_form_are_refused() {
        for (start, reason) in [
            ("GET *", "asterisk-form without OPTIONS"),
            ("OPTIONS *x", "request target has no valid form"),
            ("GET a:80", "request target has no valid form"),
            ("GET index.html", "request target has no valid form"),
            ("GET ftp://a/", "request target has no valid form"),
            ("GET http:/a", "request target has no valid form"),
            ("GET http:///a", "invalid host"),
            ("GET http://u@a/", "user information in authority"),
            ("GET http://a#f", "path does not begin with a slash"),
            ("GET /#f", "fragment or stray delimiter in target"),
            ("GET /?#f", "fragment or stray delimiter in target"),
            ("GET http://a?#f", "fragment or stray delimiter in target"),
            ("GET /../x", "path leads above the root"),
            ("GET /a%2fb", "encoded separator in path"),
            ("CONNECT /", "CONNECT without authority-form"),
            ("CONNECT *", "CONNECT without authority-form"),
            ("CONNECT http://a:80/", "CONNECT without authority-form"),
            ("CONNECT a", "CONNECT without a port"),
        ] {
            let found = refused_fields(&format!("{start} HTTP/1.1"), "");
            assert_eq!(found, Some((400, reason)), "{start}");
        }
    }

    #[test]
    fn the_number_of_fields_is_a_limit_below_and_above_the_usual_room() {
        let head = |count: usize| {
            let fields = "A: b\r\n".repeat(count - 1);
            format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
        };
        for fields_max in [2, 100, 101, 500] {
            let limits = HeadLimits {
                fields_max,
                ..HeadLimits::default()
            };
            let full = head(fields_max);
            let request = parse_head(full.as_bytes(), &limits).expect("at the limit");
            assert_eq!(request.fields.len(), fields_max);
            let over = head(fields_max + 1);
            let verdict = HeadScanner::default().scan(over.as_bytes(), &limits);
            assert_eq!(verdict.map_err(|r| r.status.0), Err(431));
        }
    }
}
