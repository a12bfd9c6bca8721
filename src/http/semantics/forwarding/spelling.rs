//! The request target as a backend gets it: the canonical path, spelled so that it means the same.
//!
//! The backend must see the resource that was routed and authorized, so dot segments and doubled
//! slashes are gone. But a reserved character that came escaped stays escaped: `%3B` is data where
//! `;` may be a delimiter (RFC 3986 §2.2), and only the backend knows. Whatever spelling is chosen,
//! it has the same canonical path, which is checked and not assumed.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::http::types::{Request, TargetForm};
use crate::http::uri::{UriError, canonical_path, encode_path, split_absolute, split_query};

/// What can't stand in a query as it came: it would end the target or the line.
const QUERY: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>');

/// The path of a request in origin or absolute form, percent-encoded.
pub(super) fn spelled_path<'r>(request: &'r Request<'_>) -> Cow<'r, str> {
    let absolute = match request.form {
        TargetForm::Absolute => split_absolute(request.target),
        _ => None,
    };
    let rest = absolute.map_or(request.target, |(_, rest)| rest);
    let (raw, _) = split_query(rest);
    if raw == request.path {
        return encode_path(&request.path);
    }
    let spelled = rebuild(raw);
    match canonical_path(&spelled) {
        Ok(path) if path == request.path => Cow::Owned(spelled),
        _ => encode_path(&request.path),
    }
}

/// `spelled` without as many leading segments as `prefix` has. `prefix` is canonical, begins the
/// canonical path that `spelled` spells, and ends at a segment: so both have their slashes at the
/// same places.
pub(super) fn strip_segments<'s>(spelled: &'s str, prefix: &str) -> &'s str {
    let segments = prefix.trim_end_matches('/').matches('/').count();
    let start = spelled.match_indices('/').nth(segments);
    start.map_or("/", |(at, _)| &spelled[at..])
}

/// A path that a rule has made, percent-encoded. `path` is not encoded.
///
/// # Errors
/// When it has no canonical form, such as one that leads above the root.
pub(super) fn rewritten_path(path: &str) -> Result<String, UriError> {
    let canonical = canonical_path(&encode_path(path))?.into_owned();
    Ok(encode_path(&canonical).into_owned())
}

/// Appends `?` and a query.
pub(super) fn write_query(out: &mut Vec<u8>, query: &str) {
    out.push(b'?');
    for part in utf8_percent_encode(query, QUERY) {
        out.extend_from_slice(part.as_bytes());
    }
}

/// Removes empty and dot segments of a valid path, keeping its escapes.
fn rebuild(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len() + 8);
    let mut directory = true;
    for segment in raw.strip_prefix('/').unwrap_or(raw).split('/') {
        let start = out.len();
        out.push('/');
        spell_segment(&mut out, segment);
        directory = true;
        match &out[start + 1..] {
            "" | "." => out.truncate(start),
            ".." => {
                let parent = out[..start].rfind('/').unwrap_or(0);
                out.truncate(parent);
            }
            _ => directory = false,
        }
    }
    if directory {
        out.push('/');
    }
    out
}

/// Appends a segment: escapes of unreserved characters are resolved, others stay, in capitals
/// (RFC 3986 §6.2.2).
fn spell_segment(out: &mut String, segment: &str) {
    let mut rest = segment;
    while let Some(at) = rest.find('%') {
        out.push_str(&encode_path(&rest[..at]));
        let escape = rest.get(at..at + 3).unwrap_or("%25");
        match u8::from_str_radix(&escape[1..], 16) {
            Ok(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&escape.to_ascii_uppercase()),
        }
        rest = rest.get(at + 3..).unwrap_or("");
    }
    out.push_str(&encode_path(rest));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::{HeadLimits, parse_head};
    use proptest::prelude::*;

    fn spelled(target: &str) -> Option<(String, String)> {
        let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let request = parse_head(head.as_bytes(), &HeadLimits::default()).ok()?;
        Some((
            spelled_path(&request).into_owned(),
            request.path.into_owned(),
        ))
    }

    #[test]
    fn escapes_keep_their_meaning() {
        for (target, path) in [
            ("/a/b", "/a/b"),
            ("/", "/"),
            ("/a%3Bb;c", "/a%3Bb;c"),
            ("/a%2bb+c", "/a%2Bb+c"),
            ("/%7euser/%41", "/~user/A"),
            ("/a//b/./c/../d", "/a/b/d"),
            ("/a%3b/%2e%2e/b%3d", "/b%3D"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a%3F?b", "/a%3F"),
            ("/caf\u{e9}/%c3%a9", "/caf%C3%A9/%C3%A9"),
            ("/a'b\"c", "/a%27b%22c"),
            ("/%252e%252e/x", "/%252e%252e/x"),
            ("http://b/c%3b/../d?e", "/d"),
            ("http://b", "/"),
            ("http://b?q", "/"),
        ] {
            let (found, _) = spelled(target).expect(target);
            assert_eq!(found, path, "{target}");
        }
    }

    #[test]
    fn prefixes_are_stripped_by_segment() {
        for (path, prefix, rest) in [
            ("/api/a%2Bb", "/api", "/a%2Bb"),
            ("/api/a", "/api/", "/a"),
            ("/api", "/api", "/"),
            ("/api/", "/api", "/"),
            ("/a%3Bb/c/d/", "/a;b/c", "/d/"),
            ("/a", "", "/a"),
            ("/a", "/", "/a"),
        ] {
            assert_eq!(strip_segments(path, prefix), rest, "{path} {prefix}");
        }
    }

    #[test]
    fn rewritten_paths_are_canonical_or_refused() {
        assert_eq!(
            rewritten_path("/a b//c/../d?").as_deref(),
            Ok("/a%20b/d%3F")
        );
        assert_eq!(rewritten_path("/\r\nX: y").as_deref(), Ok("/%0D%0AX:%20y"));
        assert_eq!(rewritten_path("/%2e").as_deref(), Ok("/%252e"));
        assert_eq!(rewritten_path("/../x"), Err(UriError::AboveRoot));
        assert_eq!(rewritten_path("x"), Err(UriError::NotRooted));
        assert_eq!(rewritten_path("/\\x"), Err(UriError::EncodedSeparator));
    }

    #[test]
    fn queries_stay_on_their_line() {
        let mut out = Vec::new();
        write_query(&mut out, "a=%20&b=c d\r\n\u{e9}#'\\|");
        assert_eq!(out, b"?a=%20&b=c%20d%0D%0A%C3%A9%23'\\|");
    }

    proptest! {
        #[test]
        fn the_spelling_means_the_same(target in "(/|\\.|%2e|%2E|a|%41|%3b|;|%25|%20|\u{e9}|%c3%a9|'|\"){0,24}") {
            if let Some((spelling, path)) = spelled(&format!("/{target}")) {
                let canonical = canonical_path(&spelling);
                prop_assert_eq!(canonical.as_deref(), Ok(&*path));
                prop_assert!(spelling.bytes().all(|byte| byte.is_ascii_graphic()));
                // It is a fixed point.
                let again = spelled(&spelling);
                prop_assert_eq!(again, Some((spelling, path)));
            }
        }
    }
}
