//! Request targets: the one canonical path, and hosts.
//!
//! Routing, authorization, the cache key, the file and the backend must all mean the same resource
//! by the same bytes, or one of them can be led past another. So there is one rule, here, and what
//! it cannot make unambiguous it refuses (RFC 3986 §6.2.2, RFC 9110 §4.2.3):
//!
//! - A path is percent-decoded exactly once; `%252e` becomes `%2e` and stays that.
//! - Empty segments are merged first (`/a//b` is `/a/b`), then `.` and `..` are removed; a path
//!   that climbs above the root is refused, not clamped.
//! - `%2f`, `%5c`, `%00`, a raw backslash, a raw NUL, an incomplete escape and bytes that are not
//!   UTF-8 after decoding are refused: each of them is read differently by some file system,
//!   framework or backend.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Longest host accepted, in bytes; DNS names have at most 253 and a final dot.
pub const HOST_MAX: usize = 255;

/// Why a target is refused. Always the client's fault, always 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UriError {
    /// The path does not begin with `/`.
    NotRooted,
    /// `%` without two hexadecimal digits behind it.
    Escape,
    /// `%2f` or `%5c`: a separator for some, a character for others.
    EncodedSeparator,
    /// A raw `\`.
    Backslash,
    /// A raw NUL or `%00`.
    Nul,
    /// The decoded path is not UTF-8.
    NotUtf8,
    /// `..` leads above the root.
    AboveRoot,
    /// A raw `?` or `#` where only a path may stand; a fragment is never sent (RFC 9112 §3.2).
    Delimiter,
    /// The host is empty, too long or has characters that no host has.
    Host,
    /// The port is not a number up to 65535.
    Port,
    /// The authority carries user information (RFC 9110 §4.2.4).
    UserInfo,
}

impl UriError {
    /// The rule that was broken, for the log.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotRooted => "path does not begin with a slash",
            Self::Escape => "incomplete percent-encoding in path",
            Self::EncodedSeparator => "encoded separator in path",
            Self::Backslash => "backslash in path",
            Self::Nul => "NUL in path",
            Self::NotUtf8 => "path is not UTF-8",
            Self::AboveRoot => "path leads above the root",
            Self::Delimiter => "fragment or stray delimiter in target",
            Self::Host => "invalid host",
            Self::Port => "invalid port",
            Self::UserInfo => "user information in authority",
        }
    }
}

impl fmt::Display for UriError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for UriError {}

/// The canonical form of `raw`, a path without query; borrowed when `raw` is canonical already.
///
/// Idempotent across encoding: `canonical_path(encode_path(p)) == p` for each `p` it returns.
///
/// # Errors
/// See [`UriError`]; every case of the module's rule has its own variant.
pub fn canonical_path(raw: &str) -> Result<Cow<'_, str>, UriError> {
    let bytes = raw.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(UriError::NotRooted);
    }
    if !looks_odd(bytes) || !is_odd(bytes) {
        return Ok(Cow::Borrowed(raw));
    }
    rebuild(&bytes[1..]).map(Cow::Owned)
}

/// Whether anything in `path` may need work. One pass without branches, which the compiler turns
/// into vector code; it also says yes to a dot-file, which [`is_odd`] then acquits.
fn looks_odd(path: &[u8]) -> bool {
    let pairs = path.iter().zip(&path[1..]);
    pairs.fold(false, |odd, (&before, &byte)| {
        odd | is_special(byte) | ((before == b'/') & ((byte == b'/') | (byte == b'.')))
    })
}

/// Whether `path` is not canonical as it stands.
fn is_odd(path: &[u8]) -> bool {
    let mut segments = path[1..].split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        let odd = match segment {
            b"" => !last,
            b"." | b".." => true,
            other => other.iter().any(|&byte| is_special(byte)),
        };
        if odd {
            return true;
        }
    }
    false
}

fn is_special(byte: u8) -> bool {
    (byte == b'%') | (byte == b'\\') | (byte == 0) | (byte == b'?') | (byte == b'#')
}

/// Decodes, merges and resolves the segments behind the first slash.
fn rebuild(segments: &[u8]) -> Result<String, UriError> {
    let mut out = Vec::with_capacity(segments.len() + 1);
    let mut directory = true;
    for segment in segments.split(|&byte| byte == b'/') {
        let start = out.len();
        out.push(b'/');
        decode_segment(segment, &mut out)?;
        directory = true;
        match &out[start + 1..] {
            b"" | b"." => out.truncate(start),
            b".." => {
                let parent = memchr::memrchr(b'/', &out[..start]).ok_or(UriError::AboveRoot)?;
                out.truncate(parent);
            }
            _ => directory = false,
        }
    }
    if directory {
        out.push(b'/');
    }
    String::from_utf8(out).map_err(|_| UriError::NotUtf8)
}

/// Appends one decoded segment. Each is checked by itself, so that a bad one is refused even where
/// a later `..` removes it.
fn decode_segment(segment: &[u8], out: &mut Vec<u8>) -> Result<(), UriError> {
    let start = out.len();
    let mut rest = segment;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let decoded = match byte {
            b'%' => {
                let [high, low, tail @ ..] = tail else {
                    return Err(UriError::Escape);
                };
                rest = tail;
                let decoded = hex(*high)? << 4 | hex(*low)?;
                if matches!(decoded, b'/' | b'\\') {
                    return Err(UriError::EncodedSeparator);
                }
                decoded
            }
            b'\\' => return Err(UriError::Backslash),
            b'?' | b'#' => return Err(UriError::Delimiter),
            other => *other,
        };
        if decoded == 0 {
            return Err(UriError::Nul);
        }
        out.push(decoded);
    }
    match str::from_utf8(&out[start..]) {
        Ok(_) => Ok(()),
        Err(_) => Err(UriError::NotUtf8),
    }
}

fn hex(digit: u8) -> Result<u8, UriError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(UriError::Escape),
    }
}

/// What [`encode_path`] escapes: all but unreserved characters, `/` and the sub-delimiters that
/// mean nothing in a quoted attribute (RFC 3986 §3.3 without the apostrophe).
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// Percent-encodes a canonical path for a Location field or a link. The result is ASCII without
/// spaces, controls or quotes; `&` stays and is escaped by whoever writes HTML.
///
/// A *relative* link whose first segment has a colon needs `./` before it (RFC 3986 §4.2): the
/// caller's duty, since only it knows that the link is relative.
pub fn encode_path(path: &str) -> Cow<'_, str> {
    utf8_percent_encode(path, PATH).into()
}

/// Splits a target at its first `?`: the path, and the query without the mark.
pub fn split_query(target: &str) -> (&str, Option<&str>) {
    match memchr::memchr(b'?', target.as_bytes()) {
        Some(mark) => (&target[..mark], Some(&target[mark + 1..])),
        None => (target, None),
    }
}

/// Splits an absolute `http` or `https` target behind its scheme: the authority, and the rest
/// from the first `/`, `?` or `#` on (possibly empty). None for any other text.
pub fn split_absolute(target: &str) -> Option<(&str, &str)> {
    let scheme = target.find("://")?;
    let known = ["http", "https"];
    if !known
        .iter()
        .any(|s| target[..scheme].eq_ignore_ascii_case(s))
    {
        return None;
    }
    let rest = &target[scheme + 3..];
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    Some(rest.split_at(end))
}

/// `host[:port]`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority<'b> {
    /// The host in lower case, without the final dot of a rooted name; an IPv6 address has its
    /// brackets and its shortest spelling (RFC 5952). Never empty.
    pub host: Cow<'b, str>,
    /// The port, where one was given; `host:` gives none (RFC 3986 §3.2.3).
    pub port: Option<u16>,
}

/// Parses the value of Host, or the authority of a target.
///
/// A host is an IPv6 address in brackets, or a name of letters, digits, `-`, `.`, `_` and `~`
/// without empty labels (which covers IPv4). RFC 3986 would allow percent-encoding and
/// sub-delimiters in a name too; no DNS name has them, and a comma there is how two hosts look
/// like one. Zone identifiers and `IPvFuture` are refused as well.
///
/// # Errors
/// [`UriError::Host`], [`UriError::Port`] or [`UriError::UserInfo`].
pub fn parse_authority(value: &[u8]) -> Result<Authority<'_>, UriError> {
    let text = str::from_utf8(value).map_err(|_| UriError::Host)?;
    let (host, port) = if text.starts_with('[') {
        let close = text.find(']').ok_or(UriError::Host)?;
        let address: Ipv6Addr = text[1..close].parse().map_err(|_| UriError::Host)?;
        (ipv6_host(address, &text[..=close]), &text[close + 1..])
    } else {
        let colon = memchr::memchr(b':', value).unwrap_or(text.len());
        (host_name(&text[..colon])?, &text[colon..])
    };
    Ok(Authority {
        host,
        port: parse_port(port)?,
    })
}

fn ipv6_host(address: Ipv6Addr, text: &str) -> Cow<'_, str> {
    let host = format!("[{address}]");
    if host == text {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(host)
    }
}

fn host_name(name: &str) -> Result<Cow<'_, str>, UriError> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || name.len() > HOST_MAX {
        return Err(UriError::Host);
    }
    let (mut upper, mut before) = (false, b'.');
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => {}
            b'A'..=b'Z' => upper = true,
            b'.' if before != b'.' => {}
            b'@' => return Err(UriError::UserInfo),
            _ => return Err(UriError::Host),
        }
        before = byte;
    }
    if before == b'.' {
        return Err(UriError::Host);
    }
    Ok(if upper {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    })
}

/// The port in `""`, `":"` or `":digits"`.
fn parse_port(text: &str) -> Result<Option<u16>, UriError> {
    if text.is_empty() {
        return Ok(None);
    }
    let digits = text.strip_prefix(':').ok_or(UriError::Host)?;
    if digits.contains('@') {
        return Err(UriError::UserInfo);
    }
    if digits.is_empty() {
        return Ok(None);
    }
    // `parse` alone would take a plus sign.
    if digits.len() > 5 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(UriError::Port);
    }
    digits.parse().map(Some).map_err(|_| UriError::Port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_have_one_canonical_form() {
        for (raw, canonical) in [
            ("/", "/"),
            ("/a/b.html", "/a/b.html"),
            ("/a/b/", "/a/b/"),
            ("//", "/"),
            ("/a//b///c//", "/a/b/c/"),
            ("/.", "/"),
            ("/./a/./b", "/a/b"),
            ("/a/..", "/"),
            ("/a/../b", "/b"),
            ("/a//../b", "/b"),
            ("/a/b/.", "/a/b/"),
            ("/a/b/..", "/a/"),
            ("/a/%2e%2E/b", "/b"),
            ("/%2e/a", "/a"),
            ("/.well-known/x", "/.well-known/x"),
            ("/..a/...", "/..a/..."),
            ("/a%20b%C3%A9", "/a bé"),
            ("/é", "/é"),
            ("/%252e%252e/%252f", "/%2e%2e/%2f"),
            ("/a%3fb%23c", "/a?b#c"),
            ("/a%0ab", "/a\nb"),
            ("/a;v=1,2:@!$&'()*+", "/a;v=1,2:@!$&'()*+"),
        ] {
            let found = canonical_path(raw).expect(raw);
            assert_eq!(found, canonical, "{raw}");
            let borrowed = matches!(found, Cow::Borrowed(_));
            assert_eq!(borrowed, raw == canonical, "{raw} borrowed");
        }
    }

    #[test]
    fn ambiguous_paths_are_refused() {
        for (raw, error) in [
            ("", UriError::NotRooted),
            ("a", UriError::NotRooted),
            ("*", UriError::NotRooted),
            ("/..", UriError::AboveRoot),
            ("/a/../..", UriError::AboveRoot),
            ("/a/../../b", UriError::AboveRoot),
            ("/%2e%2e/etc", UriError::AboveRoot),
            ("//../x", UriError::AboveRoot),
            ("/..%2fetc", UriError::EncodedSeparator),
            ("/a%2Fb", UriError::EncodedSeparator),
            ("/a%5cb", UriError::EncodedSeparator),
            ("/a\\b", UriError::Backslash),
            ("/a%00", UriError::Nul),
            ("/a\0", UriError::Nul),
            ("/%", UriError::Escape),
            ("/%4", UriError::Escape),
            ("/%4/1", UriError::Escape),
            ("/%zz", UriError::Escape),
            ("/%+1", UriError::Escape),
            ("/%ff", UriError::NotUtf8),
            ("/%c0%af", UriError::NotUtf8),
            ("/%ff/..", UriError::NotUtf8),
            ("/%c3/%a9", UriError::NotUtf8),
            ("/a#b", UriError::Delimiter),
            ("/a?b", UriError::Delimiter),
        ] {
            assert_eq!(canonical_path(raw), Err(error), "{raw:?}");
        }
    }

    #[test]
    fn hosts_are_lowered_and_checked() {
        for (value, host, port) in [
            ("example.com", "example.com", None),
            ("Example.COM:8080", "example.com", Some(8080)),
            ("example.com.", "example.com", None),
            ("example.com:", "example.com", None),
            ("127.0.0.1:80", "127.0.0.1", Some(80)),
            ("my_host-1", "my_host-1", None),
            ("[::1]", "[::1]", None),
            ("[0:0:0:0:0:0:0:1]:443", "[::1]", Some(443)),
            ("[2001:DB8::A]:65535", "[2001:db8::a]", Some(65535)),
        ] {
            let authority = parse_authority(value.as_bytes()).expect(value);
            assert_eq!((&*authority.host, authority.port), (host, port), "{value}");
        }
        for (value, error) in [
            ("", UriError::Host),
            (".", UriError::Host),
            (":80", UriError::Host),
            (".a", UriError::Host),
            ("a..b", UriError::Host),
            ("a..", UriError::Host),
            ("a b", UriError::Host),
            ("a,b", UriError::Host),
            ("a/b", UriError::Host),
            ("a%41", UriError::Host),
            ("é", UriError::Host),
            ("::1", UriError::Host),
            ("a:b", UriError::Port),
            ("a:80:80", UriError::Port),
            ("a:+80", UriError::Port),
            ("a:65536", UriError::Port),
            ("a:000080", UriError::Port),
            ("[::1", UriError::Host),
            ("[::1%25eth0]", UriError::Host),
            ("[v1.x]", UriError::Host),
            ("[::1]x", UriError::Host),
            ("user@host", UriError::UserInfo),
            ("user:pass@host", UriError::UserInfo),
        ] {
            assert_eq!(parse_authority(value.as_bytes()), Err(error), "{value:?}");
        }
        assert_eq!(parse_authority(b"a\xff"), Err(UriError::Host));
        assert_eq!(
            parse_authority("a".repeat(256).as_bytes()),
            Err(UriError::Host)
        );
    }

    #[test]
    fn targets_are_split() {
        assert_eq!(split_query("/a?b?c"), ("/a", Some("b?c")));
        assert_eq!(split_query("/a?"), ("/a", Some("")));
        assert_eq!(split_query("/a"), ("/a", None));
        assert_eq!(split_absolute("HTTP://h:1/p?q"), Some(("h:1", "/p?q")));
        assert_eq!(split_absolute("https://h?q"), Some(("h", "?q")));
        assert_eq!(split_absolute("http://h"), Some(("h", "")));
        assert_eq!(split_absolute("ftp://h/"), None);
        assert_eq!(split_absolute("/http://h/"), None);
        assert_eq!(split_absolute("h:80"), None);
    }

    #[test]
    fn encoded_paths_are_safe_in_fields_and_attributes() {
        assert_eq!(
            encode_path("/a b/é\r\n\"'<>?#%\\"),
            "/a%20b/%C3%A9%0D%0A%22%27%3C%3E%3F%23%25%5C"
        );
        assert!(matches!(encode_path("/plain/path.html"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn canonical_paths_survive_encoding(raw in "/([a.%/?#é\\\\ ]|%2[0-9a-f]|%[4-7][0-9a-e]|\\.\\.)*") {
            if let Ok(path) = canonical_path(&raw) {
                prop_assert!(path.starts_with('/') && !path.contains("//") && !path.contains('\0'));
                prop_assert!(path.split('/').all(|segment| segment != "." && segment != ".."));
                let encoded = encode_path(&path);
                prop_assert_eq!(canonical_path(&encoded), Ok(Cow::Borrowed(&*path)));
            }
        }

        #[test]
        fn hosts_parse_to_themselves(value in "[A-Za-z0-9.:\\[\\]-]{0,24}") {
            if let Ok(authority) = parse_authority(value.as_bytes()) {
                let again = parse_authority(authority.host.as_bytes()).expect("canonical host");
                prop_assert_eq!(&again.host, &authority.host);
                prop_assert_eq!(again.port, None);
            }
        }
    }
}
