//! Writes response heads and the chunked coding.
//!
//! Framing fields, Connection, Date and Server are written here and nowhere else: a handler or a
//! backend that sets one of the first three is ignored, so that a response cannot contradict its
//! own framing. Nothing is allocated beyond the room of the output buffer.

use std::io::Write;

use super::is_token;
use crate::http::semantics::date::imf_fixdate;
use crate::http::types::{FieldName, FieldValue, Fields, ResponseHead, Status, Version};

/// The interim response to `Expect: 100-continue` (RFC 9110 §15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The end of a chunk's content.
pub const CHUNK_END: &[u8] = b"\r\n";

/// The end of a chunked body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How the client finds the end of a response body (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFraming {
    /// The status or the method rules a body out, and no length is told: 1xx, 204, 304, and HEAD
    /// where the length of GET is unknown.
    None,
    /// Content-Length. For HEAD it is the length that GET would have.
    Length(u64),
    /// Transfer-Encoding: chunked; for HTTP/1.1 alone.
    Chunked,
    /// The body ends when the connection does.
    Close,
}

impl ResponseFraming {
    /// The framing of a response to a request of this version whose body has `length` bytes, or
    /// one that is not known yet. For HEAD the length is that of GET.
    pub fn choose(version: Version, status: Status, head: bool, length: Option<u64>) -> Self {
        match length {
            _ if status.forbids_body() => Self::None,
            Some(length) => Self::Length(length),
            None if head => Self::None,
            None if version == Version::Http11 => Self::Chunked,
            None => Self::Close,
        }
    }
}

/// What the session knows and the head does not.
#[derive(Clone, Copy, Debug)]
pub struct HeadContext<'a> {
    /// The version of the request. The response says HTTP/1.1 to both (RFC 9110 §6.2), but only
    /// HTTP/1.0 has to be told that the connection stays open.
    pub version: Version,
    /// Whether client and server both want the connection to stay open.
    pub keep_alive: bool,
    /// How the body ends.
    pub framing: ResponseFraming,
    /// The Server and Date lines of this second: [`DateCache::at`].
    pub date: &'a DateBlock,
}

/// Appends the head of a final or interim response to `out`; returns whether the connection may
/// stay open behind it.
///
/// Fields of `head` that framing owns (Connection, Content-Length, Keep-Alive, Proxy-Connection,
/// Transfer-Encoding) are left out; its own Date or Server, as a backend sends them, stand in for
/// ours. Status 101 gets `Connection: upgrade`, other interim responses get nothing added.
///
/// A field whose name is not a token or whose value has CR, LF or NUL is left out: it would split
/// the response. That is a bug of whoever made it, and stops a debug build.
pub fn write_head(out: &mut Vec<u8>, head: &ResponseHead, context: &HeadContext<'_>) -> bool {
    let fields: usize = head.fields.iter().map(field_size).sum();
    out.reserve(head.passed.bytes.len() + fields + HEAD_ROOM);
    let mut writer = HeadWriter::new(out, head.status);
    writer.lines(&head.passed);
    for (name, value) in &head.fields {
        if writer.takes(name.as_str()) {
            write_field(writer.out, name, value);
        }
    }
    writer.finish(context)
}

/// Writes a head field by field, by the rules of [`write_head`], for whoever has the fields in
/// another form than a [`ResponseHead`].
#[derive(Debug)]
pub struct HeadWriter<'o> {
    out: &'o mut Vec<u8>,
    status: Status,
    has_date: bool,
    has_server: bool,
}

impl<'o> HeadWriter<'o> {
    /// Appends the status line to `out`.
    pub fn new(out: &'o mut Vec<u8>, status: Status) -> Self {
        write_status_line(out, status);
        let interim = status.0 < 200;
        Self {
            out,
            status,
            has_date: interim,
            has_server: interim,
        }
    }

    /// Appends a field, unless framing owns it. It is one of a message that was parsed, or was checked
    /// as those are: it stays one line, which is asserted and not looked for again.
    pub fn field(&mut self, name: &str, value: &[u8]) {
        debug_assert!(
            is_token(name.as_bytes()) && is_one_line(value),
            "field {name:?} would split the response"
        );
        if self.takes(name) {
            write_line(self.out, name, value);
        }
    }

    fn lines(&mut self, lines: &FieldLines) {
        self.has_date |= lines.has_date;
        self.has_server |= lines.has_server;
        self.out.extend_from_slice(&lines.bytes);
    }

    /// Appends what belongs to the session, and the empty line; returns whether the connection may
    /// stay open behind the response.
    pub fn finish(self, context: &HeadContext<'_>) -> bool {
        if !self.has_server {
            self.out.extend_from_slice(SERVER_LINE);
        }
        if !self.has_date {
            self.out.extend_from_slice(context.date.date_line());
        }
        let keep_alive = write_framing(self.out, self.status, context);
        self.out.extend_from_slice(b"\r\n");
        keep_alive
    }

    /// Notes a field; false if it is left out.
    fn takes(&mut self, name: &str) -> bool {
        match role(name) {
            Role::Framing => return false,
            Role::Date => self.has_date = true,
            Role::Server => self.has_server = true,
            Role::Other => {}
        }
        true
    }
}

/// Field lines of a message that is passed on, as they are sent, and in one piece: most of them come
/// and go without anybody looking at them.
///
/// Invariant: `bytes` are lines `name: value` with CRLF, names tokens and values without CR, LF or NUL.
#[derive(Clone, Debug, Default)]
pub struct FieldLines {
    bytes: Vec<u8>,
    has_date: bool,
    has_server: bool,
}

impl FieldLines {
    /// No lines, and room for so many bytes.
    pub fn with_room(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            ..Self::default()
        }
    }

    /// Appends a field of a message that was parsed, unless framing owns it.
    pub fn push(&mut self, name: &str, value: &[u8]) {
        debug_assert!(
            is_token(name.as_bytes()) && is_one_line(value),
            "field {name:?} would split the response"
        );
        match role(name) {
            Role::Framing => return,
            Role::Date => self.has_date = true,
            Role::Server => self.has_server = true,
            Role::Other => {}
        }
        write_line(&mut self.bytes, name, value);
    }

    /// The value of the first field of that name, ASCII case ignored.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let mut lines = self.iter();
        let found = lines.find(|(line, _)| line.eq_ignore_ascii_case(name.as_bytes()));
        found.map(|(_, value)| value)
    }

    /// Removes every field of that name, ASCII case ignored.
    pub fn remove(&mut self, name: &str) {
        if self.get(name).is_none() {
            return;
        }
        let kept = Self::with_room(self.bytes.len());
        let before = std::mem::replace(self, kept);
        for (line, value) in before.iter() {
            if !line.eq_ignore_ascii_case(name.as_bytes()) {
                self.push(str::from_utf8(line).unwrap_or_default(), value);
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            let colon = memchr::memchr(b':', rest)?;
            let end = colon + memchr::memchr(b'\r', &rest[colon..])?;
            let line = (&rest[..colon], &rest[colon + 2..end]);
            rest = &rest[end + 2..];
            Some(line)
        })
    }
}

/// Room for all that [`write_head`] adds to the fields of a head: status line, Server, Date,
/// Content-Length and Connection, and a reason phrase.
const HEAD_ROOM: usize = 192;

fn field_size((name, value): &(FieldName, FieldValue)) -> usize {
    name.as_str().len() + value.as_bytes().len() + 4
}

/// Appends Content-Length or Transfer-Encoding, and Connection.
fn write_framing(out: &mut Vec<u8>, status: Status, context: &HeadContext<'_>) -> bool {
    if status.0 == 101 {
        out.extend_from_slice(b"Connection: upgrade\r\n");
        return true;
    }
    if status.0 < 200 {
        return true;
    }
    // Chunks would be content to HTTP/1.0: it gets the body bare, up to the end of the connection.
    let framing = match context.framing {
        _ if status.forbids_body() => ResponseFraming::None,
        ResponseFraming::Chunked if context.version == Version::Http10 => ResponseFraming::Close,
        framing => framing,
    };
    match framing {
        ResponseFraming::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            write_decimal(out, length);
            out.extend_from_slice(b"\r\n");
        }
        ResponseFraming::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        ResponseFraming::None | ResponseFraming::Close => {}
    }
    let keep_alive = context.keep_alive && framing != ResponseFraming::Close;
    if !keep_alive {
        out.extend_from_slice(b"Connection: close\r\n");
    } else if context.version == Version::Http10 {
        out.extend_from_slice(b"Connection: keep-alive\r\n");
    }
    keep_alive
}

/// Appends the status line. The usual ones are constants.
fn write_status_line(out: &mut Vec<u8>, status: Status) {
    let line: &[u8] = match status.0 {
        200 => b"HTTP/1.1 200 OK\r\n",
        206 => b"HTTP/1.1 206 Partial Content\r\n",
        304 => b"HTTP/1.1 304 Not Modified\r\n",
        404 => b"HTTP/1.1 404 Not Found\r\n",
        _ => {
            out.extend_from_slice(b"HTTP/1.1 ");
            write_decimal(out, u64::from(status.0));
            // The space stays even where there is no phrase (RFC 9112 §4).
            out.push(b' ');
            out.extend_from_slice(status.reason().as_bytes());
            b"\r\n"
        }
    };
    out.extend_from_slice(line);
}

/// What a response field is to the codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Framing,
    Date,
    Server,
    Other,
}

fn role(name: &str) -> Role {
    let first = name.as_bytes().first().map_or(0, |byte| byte | 0x20);
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match (name.len(), first) {
        (4, b'd') if is("date") => Role::Date,
        (6, b's') if is("server") => Role::Server,
        (10, b'c') if is("connection") => Role::Framing,
        (10, b'k') if is("keep-alive") => Role::Framing,
        (14, b'c') if is("content-length") => Role::Framing,
        (16, b'p') if is("proxy-connection") => Role::Framing,
        (17, b't') if is("transfer-encoding") => Role::Framing,
        _ => Role::Other,
    }
}

/// Appends one field line, unless it would break the head.
fn write_field(out: &mut Vec<u8>, name: &FieldName, value: &FieldValue) {
    let safe = is_safe(name, value);
    debug_assert!(safe, "field {:?} would split the response", name.as_str());
    if safe {
        write_line(out, name.as_str(), value.as_bytes());
    }
}

fn write_line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn is_one_line(value: &[u8]) -> bool {
    memchr::memchr3(b'\r', b'\n', 0, value).is_none()
}

/// Whether a field line stays one line. Constants of the source are checked in debug builds alone.
fn is_safe(name: &FieldName, value: &FieldValue) -> bool {
    let name_safe = match name {
        FieldName::Static(name) => cfg!(not(debug_assertions)) || is_token(name.as_bytes()),
        FieldName::Shared(name) => is_token(name.as_bytes()),
    };
    let value_safe = match value {
        FieldValue::Static(_) if cfg!(not(debug_assertions)) => true,
        value => is_one_line(value.as_bytes()),
    };
    name_safe && value_safe
}

/// Appends the line before a chunk's content of `length` bytes; [`CHUNK_END`] follows the content.
/// Writes nothing for 0, which would end the body.
pub fn write_chunk_header(out: &mut Vec<u8>, length: u64) {
    debug_assert!(length > 0, "an empty chunk ends the body");
    if length == 0 {
        return;
    }
    let digits = (64 - length.leading_zeros()).div_ceil(4);
    for digit in (0..digits).rev() {
        let nibble = (length >> (digit * 4)) & 0xf;
        out.push(b"0123456789abcdef"[nibble as usize]);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the last chunk with trailer fields. Those that may not stand there
/// ([`is_forbidden_trailer`](super::body::is_forbidden_trailer)) are left out, as are unsafe ones.
pub fn write_last_chunk(out: &mut Vec<u8>, trailers: &[(FieldName, FieldValue)]) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        if !super::body::is_forbidden_trailer(name.as_str()) {
            write_field(out, name, value);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the last chunk with the trailer fields of another message, by the same rule; names with an
/// underscore are left out too, as from a head that is passed on, and those that don't pass.
pub fn write_last_chunk_of(
    out: &mut Vec<u8>,
    trailers: &Fields<'_>,
    passes: impl Fn(&str) -> bool,
) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.iter() {
        let safe = is_token(name.as_bytes()) && is_one_line(value);
        if safe && !name.contains('_') && !super::body::is_forbidden_trailer(name) && passes(name) {
            write_line(out, name, value);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a number.
pub(crate) fn write_decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0_u8; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

const SERVER_LINE: &[u8] = b"Server: Beltway\r\n";
const DATE_PREFIX: &[u8] = b"Date: ";
/// Length of an IMF-fixdate (RFC 9110 §5.6.7).
const DATE_LENGTH: usize = 29;
const DATE_LINE: usize = DATE_PREFIX.len() + DATE_LENGTH + 2;

/// The Server and Date lines as they stand in a head:
/// `Server: Beltway\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n`.
#[derive(Clone, Debug)]
pub struct DateBlock([u8; SERVER_LINE.len() + DATE_LINE]);

impl DateBlock {
    /// Both lines, for heads that are kept ready.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn date_line(&self) -> &[u8] {
        &self.0[SERVER_LINE.len()..]
    }

    fn format(unix_seconds: u64) -> Self {
        let date = imf_fixdate(i64::try_from(unix_seconds).unwrap_or(i64::MAX));
        let mut block = [0; SERVER_LINE.len() + DATE_LINE];
        let mut rest = &mut block[..];
        // The block is exactly as long as what is written, which the test of its text asserts.
        let _ = rest
            .write_all(SERVER_LINE)
            .and_then(|()| rest.write_all(DATE_PREFIX))
            .and_then(|()| rest.write_all(&date))
            .and_then(|()| rest.write_all(b"\r\n"));
        Self(block)
    }
}

/// The lines of this second. One per core: formatting a date costs more than a small response.
#[derive(Clone, Debug)]
pub struct DateCache {
    block: DateBlock,
    unix_seconds: u64,
}

impl DateCache {
    /// A cache that begins at this second since the Unix epoch.
    pub fn new(unix_seconds: u64) -> Self {
        Self {
            block: DateBlock::format(unix_seconds),
            unix_seconds,
        }
    }

    /// The block for this second, made anew only when the second is another one.
    pub fn at(&mut self, unix_seconds: u64) -> &DateBlock {
        if unix_seconds != self.unix_seconds {
            *self = Self::new(unix_seconds);
        }
        &self.block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::types::Version::{Http10, Http11};
    use proptest::prelude::*;
    use std::sync::Arc;

    const DATE: &str = "Server: Beltway\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    const SECOND: u64 = 784_111_777;

    fn write(
        head: &ResponseHead,
        version: Version,
        keep_alive: bool,
        framing: ResponseFraming,
    ) -> (String, bool) {
        let (mut out, mut date) = (Vec::new(), DateCache::new(0));
        let context = HeadContext {
            version,
            keep_alive,
            framing,
            date: date.at(SECOND),
        };
        let stays = write_head(&mut out, head, &context);
        (String::from_utf8(out).expect("ASCII"), stays)
    }

    #[test]
    fn heads_say_how_the_body_ends_and_whether_the_connection_does() {
        use ResponseFraming::{Chunked, Close, Length, None};
        let close = "Connection: close\r\n";
        let chunked = "Transfer-Encoding: chunked\r\n";
        for (status, version, keep_alive, framing, lines, stays) in [
            (200, Http11, true, Length(0), "Content-Length: 0\r\n", true),
            (200, Http11, true, Chunked, chunked, true),
            (204, Http11, true, Length(5), "", true),
            (304, Http11, true, Chunked, "", true),
            (304, Http11, false, None, close, false),
            (200, Http11, true, Close, close, false),
            (200, Http10, true, Chunked, close, false),
            (200, Http10, true, None, "Connection: keep-alive\r\n", true),
            (200, Http10, false, None, close, false),
        ] {
            let (text, open) = write(&ResponseHead::new(status), version, keep_alive, framing);
            let reason = Status(status).reason();
            assert_eq!(
                text,
                format!("HTTP/1.1 {status} {reason}\r\n{DATE}{lines}\r\n")
            );
            assert_eq!(open, stays, "{text}");
        }
        let (text, _) = write(&ResponseHead::new(499), Http11, true, Length(u64::MAX));
        let length = "Content-Length: 18446744073709551615";
        assert_eq!(text, format!("HTTP/1.1 499 \r\n{DATE}{length}\r\n\r\n"));
    }

    #[test]
    fn framing_follows_version_status_and_method() {
        use ResponseFraming::{Chunked, Close, Length, None as Nothing};
        for (version, status, head, length, framing) in [
            (Http11, 200, false, Some(5), Length(5)),
            (Http11, 200, false, None, Chunked),
            (Http10, 200, false, None, Close),
            (Http11, 200, true, None, Nothing),
            (Http10, 200, true, None, Nothing),
            (Http11, 200, true, Some(5), Length(5)),
            (Http11, 304, false, Some(5), Nothing),
            (Http11, 204, false, None, Nothing),
        ] {
            let found = ResponseFraming::choose(version, Status(status), head, length);
            assert_eq!(found, framing, "{version:?} {status} {head} {length:?}");
        }
    }

    #[test]
    fn fields_stand_in_order_and_framing_is_not_theirs() {
        let head = ResponseHead::new(200)
            .with("ETag", "\"a\"")
            .with("content-length", "9")
            .with("Transfer-Encoding", "gzip")
            .with("CONNECTION", "close")
            .with("Keep-Alive", "timeout=5")
            .with(
                FieldName::Shared(Arc::from("Vary")),
                "Accept-Encoding".to_owned(),
            );
        let (text, stays) = write(&head, Http11, true, ResponseFraming::Length(1));
        let fields = "ETag: \"a\"\r\nVary: Accept-Encoding\r\n";
        let expected = format!("HTTP/1.1 200 OK\r\n{fields}{DATE}Content-Length: 1\r\n\r\n");
        assert_eq!((text, stays), (expected, true));
    }

    #[test]
    fn a_backends_date_and_server_stand_in_for_ours() {
        let head = ResponseHead::new(200)
            .with("date", "then")
            .with("Server", "x");
        let (text, _) = write(&head, Http11, true, ResponseFraming::None);
        assert_eq!(text, "HTTP/1.1 200 OK\r\ndate: then\r\nServer: x\r\n\r\n");
    }

    #[test]
    fn interim_responses_have_nothing_added() {
        let hints = ResponseHead::new(103).with("Link", "</a.css>");
        let (text, stays) = write(&hints, Http11, false, ResponseFraming::Close);
        assert_eq!(text, "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
        assert!(stays);
        let switch = ResponseHead::new(101).with("Upgrade", "websocket");
        let (text, _) = write(&switch, Http11, true, ResponseFraming::None);
        let start = "HTTP/1.1 101 Switching Protocols\r\n";
        assert_eq!(
            text,
            format!("{start}Upgrade: websocket\r\nConnection: upgrade\r\n\r\n")
        );
    }

    #[test]
    fn lines_of_a_backend_are_sent_first_and_can_be_changed() {
        let mut head = ResponseHead::new(200).with("A", "own");
        for (name, value) in [
            ("date", "then"),
            ("Content-Length", "9"),
            ("Keep-Alive", "timeout=5"),
            ("X", ""),
            ("SERVER", "app: 1"),
            ("a", "b: c"),
            ("x", "2"),
        ] {
            head.passed.push(name, value.as_bytes());
        }
        let length = ResponseFraming::Length(1);
        let (text, _) = write(&head, Http11, true, length);
        assert_eq!(
            text,
            "HTTP/1.1 200 OK\r\ndate: then\r\nX: \r\nSERVER: app: 1\r\na: b: c\r\nx: 2\r\nA: own\r\n\
             Content-Length: 1\r\n\r\n"
        );
        assert_eq!(head.get("A"), Some(&b"b: c"[..]));
        assert_eq!(head.get("x"), Some(&b""[..]));
        assert_eq!(head.get("Y"), None);
        for name in ["X", "Date", "none"] {
            head.remove(name);
        }
        head.set("A", "set");
        let (text, _) = write(&head, Http11, true, length);
        assert_eq!(
            text,
            "HTTP/1.1 200 OK\r\nSERVER: app: 1\r\nA: set\r\n\
             Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 1\r\n\r\n"
        );
    }

    #[test]
    fn fields_that_would_split_the_response_are_unsafe() {
        for value in ["a\r\nSet-Cookie: b", "a\n", "\r", "\0"] {
            assert!(!is_safe(&"A".into(), &value.to_owned().into()), "{value:?}");
        }
        for name in ["", "a b", "a:", "a\r\n", "\u{e9}"] {
            let name = FieldName::Shared(Arc::from(name));
            assert!(!is_safe(&name, &"a".into()), "{name:?}");
        }
        let latin: Arc<[u8]> = Arc::from(&b"caf\xe9\tau lait"[..]);
        assert!(is_safe(&"A".into(), &latin.into()));
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "would split the response"))]
    fn an_unsafe_field_is_left_out_and_stops_a_debug_build() {
        let mut out = Vec::new();
        write_field(&mut out, &"A".into(), &"a\r\nB: c".to_owned().into());
        assert!(out.is_empty());
    }

    #[test]
    fn a_head_is_written_without_growing_the_buffer_twice() {
        let head = ResponseHead::new(505).with("A", "b".repeat(300));
        let (mut out, mut date) = (Vec::new(), DateCache::new(0));
        let context = HeadContext {
            version: Http10,
            keep_alive: true,
            framing: ResponseFraming::Length(u64::MAX),
            date: date.at(SECOND),
        };
        write_head(&mut out, &head, &context);
        assert!(out.len() <= field_size(&head.fields[0]) + HEAD_ROOM);
    }

    #[test]
    fn the_date_is_of_its_second() {
        let mut cache = DateCache::new(SECOND);
        assert_eq!(cache.at(SECOND).as_bytes(), DATE.as_bytes());
        let next = cache.at(SECOND + 1).as_bytes();
        assert!(next.ends_with(b"08:49:38 GMT\r\n"), "{next:?}");
        let last = cache.at(u64::MAX).as_bytes();
        assert!(last.ends_with(b"Fri, 31 Dec 9999 23:59:59 GMT\r\n"));
    }

    #[test]
    fn chunks_are_framed() {
        for (length, line) in [
            (1, "1\r\n"),
            (15, "f\r\n"),
            (16, "10\r\n"),
            (0x1_0000, "10000\r\n"),
            (u64::MAX, "ffffffffffffffff\r\n"),
        ] {
            let mut out = Vec::new();
            write_chunk_header(&mut out, length);
            assert_eq!(out, line.as_bytes());
        }
        let mut out = Vec::new();
        write_last_chunk(
            &mut out,
            &[("X-Sum".into(), "1".into()), ("Host".into(), "a".into())],
        );
        assert_eq!(out, b"0\r\nX-Sum: 1\r\n\r\n");
        let mut trailers = Fields::default();
        for name in ["X-Sum", "X_Sum", "Host", "a b"] {
            trailers.push(name, b"1");
        }
        trailers.push("X-Line", b"1\r\nHost: a");
        out.clear();
        write_last_chunk_of(&mut out, &trailers, |_| true);
        assert_eq!(out, b"0\r\nX-Sum: 1\r\n\r\n");
        out.clear();
        write_last_chunk_of(&mut out, &trailers, |name| name != "X-Sum");
        assert_eq!(out, b"0\r\n\r\n");
    }

    proptest! {
        #[test]
        fn what_is_chunked_here_is_decoded_there(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..600), 0..5),
        ) {
            let mut out = Vec::new();
            for chunk in &chunks {
                write_chunk_header(&mut out, chunk.len() as u64);
                out.extend_from_slice(chunk);
                out.extend_from_slice(CHUNK_END);
            }
            out.extend_from_slice(LAST_CHUNK);
            let mut decoder = crate::http::h1::body::BodyDecoder::new(crate::http::types::Framing::Chunked);
            let (mut content, mut at) = (Vec::new(), 0);
            while !decoder.is_ended() {
                let decoded = decoder.decode(&out[at..]).expect("valid");
                content.extend_from_slice(&out[at..][decoded.data]);
                at += decoded.consumed;
            }
            prop_assert_eq!((content, at), (chunks.concat(), out.len()));
        }
    }
}
