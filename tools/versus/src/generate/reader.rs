//! Reads responses out of a connection's bytes and judges them. It knows no sockets.
//!
//! A measured server sends the same head again and again. Once a head was read in full, its bytes are
//! the template: a head that equals it is as good, at the price of one comparison.

use std::fmt;

use crate::body;

/// Longest response head that is taken, in bytes.
pub const HEAD_MAX: usize = 8192;

/// What every response must be, shared by all connections.
#[derive(Debug)]
pub struct Expectation {
    /// 101 and what the server says first in the tunnel, instead of 200 and a file.
    upgrade: bool,
    /// The server was asked to close after each.
    last: bool,
    body_len: u64,
    body_first: u8,
    body_last: u8,
    /// The last good head that was read in full; empty before the first.
    template: Vec<u8>,
}

impl Expectation {
    /// Status 101, and then `body_len` bytes as those of a file, the first in a tunnel.
    pub fn tunnel(body_len: u64) -> Self {
        Self {
            upgrade: true,
            ..Self::new(body_len)
        }
    }

    /// As [`Self::new`], and then the end of the connection.
    pub fn last(body_len: u64) -> Self {
        Self {
            last: true,
            ..Self::new(body_len)
        }
    }

    /// Status 200 and the file of `body_len` bytes, which must not be 0.
    pub fn new(body_len: u64) -> Self {
        assert!(body_len > 0, "a response without a body ends unseen");
        Self {
            upgrade: false,
            last: false,
            body_len,
            body_first: body::byte_at(body_len, 0),
            body_last: body::byte_at(body_len, body_len - 1),
            template: Vec::new(),
        }
    }
}

/// Why a connection was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A status other than 200, or 101 where that is asked for.
    Status(String),
    /// A head that isn't one, is longer than [`HEAD_MAX`] or names no length.
    Head(String),
    /// A `Content-Length` other than the file's.
    Length(String),
    /// A byte of the body that isn't the file's.
    Body {
        /// Where the slice that holds it begins.
        offset: u64,
    },
    /// More came than was asked for.
    Unasked,
    /// The server closed the connection without having announced it.
    Closed,
    /// The connection failed.
    Io(i32),
    /// No byte came in the whole of the measurement.
    Stalled,
    /// TLS failed, or isn't what was to be measured.
    Tls(String),
}

impl Fault {
    /// The kind alone, to count by.
    pub fn kind(&self) -> &'static str {
        match self {
            Fault::Status(_) => "status",
            Fault::Head(_) => "head",
            Fault::Length(_) => "length",
            Fault::Body { .. } => "body",
            Fault::Unasked => "unasked",
            Fault::Closed => "closed",
            Fault::Io(_) => "io",
            Fault::Stalled => "stalled",
            Fault::Tls(_) => "tls",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Status(line) => write!(f, "status line {line:?}"),
            Fault::Head(why) => write!(f, "response head: {why}"),
            Fault::Length(value) => write!(f, "Content-Length {value:?} is not the file's"),
            Fault::Body { offset } => write!(f, "wrong byte in the body at or after {offset}"),
            Fault::Unasked => f.write_str("more bytes than were asked for"),
            Fault::Closed => f.write_str("closed by the server without announcement"),
            Fault::Io(errno) => {
                write!(f, "{}", std::io::Error::from_raw_os_error(*errno))
            }
            Fault::Tls(why) => write!(f, "TLS: {why}"),
            Fault::Stalled => f.write_str("no byte in the whole measurement"),
        }
    }
}

/// Where one connection stands in its responses.
///
/// Invariants: `left` is 0 between responses and in a head, `carry` is empty in a body.
#[derive(Debug)]
pub struct Reader {
    /// Bytes of the body still to come.
    left: u64,
    /// The beginning of a head whose end hasn't come.
    carry: Vec<u8>,
    /// The whole body is compared, not only its ends: true for the first response.
    compare_all: bool,
    closing: bool,
}

impl Reader {
    /// A reader before the first response.
    pub fn new() -> Self {
        Self {
            left: 0,
            carry: Vec::new(),
            compare_all: true,
            closing: false,
        }
    }

    /// Bytes of the current body that haven't come: 0 between responses and in a head.
    pub fn body_left(&self) -> u64 {
        self.left
    }

    /// Whether this is the connection's first response.
    pub fn first(&self) -> bool {
        self.compare_all
    }

    /// Whether a response said `Connection: close`.
    pub fn closing(&self) -> bool {
        self.closing
    }

    /// Takes what came and says how many responses it completed.
    ///
    /// # Errors
    /// The fault, after which the connection is of no use.
    pub fn receive(&mut self, expected: &mut Expectation, mut bytes: &[u8]) -> Result<u32, Fault> {
        let mut completed = 0;
        while !bytes.is_empty() {
            if self.left == 0 {
                let taken = self.head(expected, bytes)?;
                bytes = &bytes[taken..];
                continue;
            }
            let taken = bytes
                .len()
                .min(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.check(expected, &bytes[..taken])?;
            completed += self.skip(taken as u64);
            bytes = &bytes[taken..];
        }
        Ok(completed)
    }

    /// Counts bytes of the body that the kernel discarded: at most [`Self::body_left`]. Says how many
    /// responses (0 or 1) that completed.
    pub fn skip(&mut self, bytes: u64) -> u32 {
        self.left -= bytes;
        if self.left > 0 {
            return 0;
        }
        self.compare_all = false;
        1
    }

    /// Reads a head, or the part of it that is there, and says how many bytes belonged to it.
    fn head(&mut self, expected: &mut Expectation, bytes: &[u8]) -> Result<usize, Fault> {
        let template = &expected.template;
        if self.carry.is_empty() && !template.is_empty() && bytes.starts_with(template) {
            self.left = expected.body_len;
            self.closing |= expected.last;
            return Ok(template.len());
        }
        let carried = self.carry.len();
        let room = HEAD_MAX - carried;
        self.carry
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        let Some(end) = self.carry.windows(4).position(|four| four == b"\r\n\r\n") else {
            if self.carry.len() == HEAD_MAX {
                return Err(Fault::Head(format!("no end within {HEAD_MAX} bytes")));
            }
            return Ok(bytes.len());
        };
        let end = end + 4;
        self.closing |= parse_head(&self.carry[..end], expected)? || expected.last;
        if self.closing == expected.last {
            expected.template.clear();
            expected.template.extend_from_slice(&self.carry[..end]);
        }
        self.carry.clear();
        self.left = expected.body_len;
        Ok(end - carried)
    }

    /// Compares a slice of the body: all of it in the first response, its ends in later ones.
    fn check(&self, expected: &Expectation, slice: &[u8]) -> Result<(), Fault> {
        let offset = expected.body_len - self.left;
        let good = if self.compare_all {
            body::matches(expected.body_len, offset, slice)
        } else {
            let begins = offset == 0;
            let ends = slice.len() as u64 == self.left;
            (!begins || slice.first() == Some(&expected.body_first))
                && (!ends || slice.last() == Some(&expected.body_last))
        };
        if good {
            Ok(())
        } else {
            Err(Fault::Body { offset })
        }
    }
}

/// Judges a whole head and says whether the server is going to close (RFC 9112 §9.6).
fn parse_head(head: &[u8], expected: &Expectation) -> Result<bool, Fault> {
    let body_len = expected.body_len;
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let wanted = match expected.upgrade {
        true => "HTTP/1.1 101 ",
        false => "HTTP/1.1 200 ",
    };
    if !status.starts_with(wanted) {
        return Err(Fault::Status(status.to_owned()));
    }
    if expected.upgrade {
        return Ok(false);
    }
    let (mut length, mut closing) = (None, false);
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| Fault::Head(format!("a line without a colon, {line:?}")))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            if value.parse() != Ok(body_len) {
                return Err(Fault::Length(value.to_owned()));
            }
            length = Some(body_len);
        } else if name.eq_ignore_ascii_case("connection") {
            closing |= value.eq_ignore_ascii_case("close");
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Fault::Head(format!("Transfer-Encoding: {value}")));
        }
    }
    match length {
        Some(_) => Ok(closing),
        None => Err(Fault::Head("no Content-Length".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = 100;

    fn response(fields: &str) -> Vec<u8> {
        let mut bytes = format!("HTTP/1.1 200 OK\r\n{fields}\r\n").into_bytes();
        bytes.extend((0..LEN).map(|offset| body::byte_at(LEN, offset)));
        bytes
    }

    #[test]
    fn counts_the_same_however_the_bytes_are_cut() {
        let mut bytes = Vec::new();
        for second in 0..4 {
            bytes.extend(response(&format!(
                "Date: {second}\r\nContent-Length: 100\r\n"
            )));
            bytes.extend(response(&format!(
                "Date: {second}\r\ncontent-length:100\r\n"
            )));
        }
        for size in 1..bytes.len() {
            let (mut reader, mut expected) = (Reader::new(), Expectation::new(LEN));
            let completed: u32 = bytes
                .chunks(size)
                .map(|chunk| {
                    reader
                        .receive(&mut expected, chunk)
                        .expect("good responses")
                })
                .sum();
            assert_eq!(
                (completed, reader.body_left()),
                (8, 0),
                "in chunks of {size}"
            );
        }
    }

    #[test]
    fn refuses_what_is_not_the_file() {
        let good = "Content-Length: 100\r\n";
        let mut first_wrong = response(good);
        let at = first_wrong.len() - 50;
        first_wrong[at] ^= 1;
        for (bytes, kind) in [
            (
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 100\r\n\r\n".to_vec(),
                "status",
            ),
            (
                b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n".to_vec(),
                "status",
            ),
            (response("Content-Length: 99\r\n"), "length"),
            (response("Transfer-Encoding: chunked\r\n"), "head"),
            (response(""), "head"),
            (vec![b'x'; 2 * HEAD_MAX], "head"),
            (first_wrong, "body"),
        ] {
            let fault = Reader::new().receive(&mut Expectation::new(LEN), &bytes);
            assert_eq!(fault.map_err(|fault| fault.kind()), Err(kind));
        }
    }

    #[test]
    fn later_responses_are_compared_at_their_ends() {
        let good = response("Content-Length: 100\r\n");
        for (back, wrong) in [(100, true), (50, false), (1, true)] {
            let (mut reader, mut expected) = (Reader::new(), Expectation::new(LEN));
            assert_eq!(reader.receive(&mut expected, &good), Ok(1));
            let mut bytes = good.clone();
            let at = bytes.len() - back;
            bytes[at] ^= 1;
            assert_eq!(
                reader.receive(&mut expected, &bytes).is_err(),
                wrong,
                "{back} from the end"
            );
        }
    }

    #[test]
    fn an_announced_close_is_seen_after_the_template_was_learnt() {
        let (mut reader, mut expected) = (Reader::new(), Expectation::new(LEN));
        assert_eq!(
            reader.receive(&mut expected, &response("Content-Length: 100\r\n")),
            Ok(1)
        );
        assert!(!reader.closing());
        let last = response("Content-Length: 100\r\nConnection: close\r\n");
        assert_eq!(reader.receive(&mut expected, &last), Ok(1));
        assert!(reader.closing());
    }

    #[test]
    fn an_upgrade_is_complete_with_the_first_bytes_of_the_tunnel() {
        let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n".to_vec();
        bytes.extend((0..LEN).map(|offset| body::byte_at(LEN, offset)));
        let (mut reader, mut expected) = (Reader::new(), Expectation::tunnel(LEN));
        let (most, last) = bytes.split_at(bytes.len() - 1);
        assert_eq!(reader.receive(&mut expected, most), Ok(0));
        assert_eq!(reader.receive(&mut expected, last), Ok(1));
        let refused = Reader::new().receive(&mut expected, &response("Content-Length: 100\r\n"));
        assert_eq!(refused.map_err(|fault| fault.kind()), Err("status"));
    }

    #[test]
    fn discarded_bytes_complete_a_response() {
        let (mut reader, mut expected) = (Reader::new(), Expectation::new(LEN));
        let bytes = response("Content-Length: 100\r\n");
        assert_eq!(
            reader.receive(&mut expected, &bytes[..bytes.len() - 60]),
            Ok(0)
        );
        assert_eq!(
            (reader.body_left(), reader.skip(59), reader.skip(1)),
            (60, 0, 1)
        );
        assert_eq!(reader.body_left(), 0);
    }
}
