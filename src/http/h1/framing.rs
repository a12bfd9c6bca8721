//! What the fields of a message say about the connection: where the body ends, whether another
//! message may follow, for which host it is (RFC 9112 §6, §9.3, RFC 9110 §7.2, §7.6.1, §10.1.1).
//!
//! Everything that two recipients have been seen to read differently is an error here: each rule
//! closes one way of request smuggling.

use super::{Reject, is_token};
use crate::http::types::{Framing, Version};

/// Most digits of Content-Length: the longest decimal that always fits `u64`.
const LENGTH_DIGITS_MAX: usize = 19;

/// Collects the fields that steer the connection while all fields are walked once.
#[derive(Debug, Default)]
pub(super) struct Control<'b> {
    /// The value of the first Host.
    host: Option<&'b [u8]>,
    host_repeated: bool,
    length: Option<&'b [u8]>,
    length_repeated: bool,
    codings: Codings,
    close: bool,
    keep_alive: bool,
    expectation: Option<Expectation>,
}

/// What a message says about the length of its content, whatever its method or status make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Neither Content-Length nor Transfer-Encoding.
    Nothing,
    /// Content-Length.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expectation {
    Continue,
    Other,
}

/// The transfer codings of all Transfer-Encoding fields together, in order.
#[derive(Debug, Default)]
struct Codings {
    present: bool,
    malformed: bool,
    chunked_count: usize,
    last_is_chunked: bool,
    other: bool,
}

impl<'b> Control<'b> {
    /// Notes one field, whichever it is.
    pub(super) fn note(&mut self, name: &str, value: &'b [u8]) {
        // Length and first letter decide almost always, without a comparison.
        let first = name.as_bytes().first().map_or(0, |byte| byte | 0x20);
        match (name.len(), first) {
            (4, b'h') if name.eq_ignore_ascii_case("host") => {
                self.host_repeated |= self.host.is_some();
                self.host.get_or_insert(value);
            }
            (6, b'e') if name.eq_ignore_ascii_case("expect") => self.note_expect(value),
            (10, b'c') if name.eq_ignore_ascii_case("connection") => self.note_connection(value),
            (14, b'c') if name.eq_ignore_ascii_case("content-length") => {
                self.length_repeated |= self.length.is_some();
                self.length.get_or_insert(value);
            }
            (17, b't') if name.eq_ignore_ascii_case("transfer-encoding") => {
                self.codings.note(value)
            }
            _ => {}
        }
    }

    fn note_connection(&mut self, value: &[u8]) {
        // Most often that is all there is.
        if value.eq_ignore_ascii_case(b"keep-alive") {
            self.keep_alive = true;
            return;
        }
        for option in list(value) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn note_expect(&mut self, value: &[u8]) {
        for expectation in list(value) {
            let known = expectation.eq_ignore_ascii_case(b"100-continue");
            if !known {
                self.expectation = Some(Expectation::Other);
            } else if self.expectation.is_none() {
                self.expectation = Some(Expectation::Continue);
            }
        }
    }

    /// The one Host value; None only for HTTP/1.0, which may lack it.
    pub(super) fn host(&self, version: Version) -> Result<Option<&'b [u8]>, Reject> {
        if self.host_repeated {
            return Err(Reject::bad("more than one Host"));
        }
        if self.host.is_none() && version == Version::Http11 {
            return Err(Reject::bad("HTTP/1.1 without Host"));
        }
        Ok(self.host)
    }

    /// Where the body ends (RFC 9112 §6.3).
    pub(super) fn framing(&self, version: Version) -> Result<Framing, Reject> {
        Ok(match self.told(version)? {
            Told::Nothing | Told::Length(0) => Framing::None,
            Told::Length(length) => Framing::Length(length),
            Told::Chunked => Framing::Chunked,
        })
    }

    /// What the fields say about the length of the content.
    pub(super) fn told(&self, version: Version) -> Result<Told, Reject> {
        if self.length_repeated {
            return Err(Reject::bad("more than one Content-Length"));
        }
        if self.codings.present {
            if version == Version::Http10 {
                return Err(Reject::bad("Transfer-Encoding in HTTP/1.0"));
            }
            if self.length.is_some() {
                return Err(Reject::bad("Content-Length with Transfer-Encoding"));
            }
            self.codings.check()?;
            return Ok(Told::Chunked);
        }
        match self.length.map(parse_length).transpose()? {
            None => Ok(Told::Nothing),
            Some(length) => Ok(Told::Length(length)),
        }
    }

    /// Whether the sender lets the connection stay open (RFC 9112 §9.3). `close` wins over
    /// `keep-alive`.
    pub(super) fn keep_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    /// Whether the client waits for `100 Continue`. An HTTP/1.0 client cannot (RFC 9110 §10.1.1),
    /// and one without a body has nothing to wait with.
    pub(super) fn expects_continue(
        &self,
        version: Version,
        framing: Framing,
    ) -> Result<bool, Reject> {
        match self.expectation {
            Some(Expectation::Other) => Err(Reject::new(417, "unknown expectation")),
            Some(Expectation::Continue) => {
                Ok(version == Version::Http11 && framing != Framing::None)
            }
            None => Ok(false),
        }
    }
}

impl Codings {
    fn note(&mut self, value: &[u8]) {
        self.present = true;
        for coding in list(value) {
            // Parameters belong to other codings; `chunked` has none and must stand alone.
            let end = coding
                .iter()
                .position(|byte| matches!(byte, b';' | b' ' | b'\t'));
            let name = &coding[..end.unwrap_or(coding.len())];
            let chunked = name.eq_ignore_ascii_case(b"chunked");
            self.malformed |= !is_token(name) || (chunked && end.is_some());
            self.last_is_chunked = chunked;
            self.chunked_count += usize::from(chunked);
            self.other |= !chunked;
        }
    }

    /// Accepts `chunked` alone.
    fn check(&self) -> Result<(), Reject> {
        if self.malformed {
            return Err(Reject::bad("malformed Transfer-Encoding"));
        }
        if !self.last_is_chunked {
            return Err(Reject::bad("last transfer coding is not chunked"));
        }
        if self.chunked_count > 1 {
            return Err(Reject::bad("chunked more than once"));
        }
        if self.other {
            return Err(Reject::new(501, "unknown transfer coding"));
        }
        Ok(())
    }
}

/// The elements of a comma-separated list, trimmed; empty ones are kept, for the strict to refuse.
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// Parses Content-Length: digits alone, so that no sign, list, space or hexadecimal passes.
fn parse_length(value: &[u8]) -> Result<u64, Reject> {
    if value.is_empty() || value.len() > LENGTH_DIGITS_MAX {
        return Err(Reject::bad("Content-Length has no or too many digits"));
    }
    value.iter().try_fold(0_u64, |length, byte| {
        let digit = match byte {
            b'0'..=b'9' => u64::from(byte - b'0'),
            _ => return Err(Reject::bad("Content-Length is not a number")),
        };
        length
            .checked_mul(10)
            .and_then(|length| length.checked_add(digit))
            .ok_or(Reject::bad("Content-Length overflows"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::{HeadLimits, HeadScanner, parse_head};
    use crate::http::types::Request;

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

    #[test]
    fn bodies_end_in_one_way_only() {
        for (fields, framing) in [
            ("", Framing::None),
            ("Content-Length: 0\r\n", Framing::None),
            ("Content-Length: 5\r\n", Framing::Length(5)),
            ("content-length: 007\r\n", Framing::Length(7)),
            (
                "Content-Length: 9999999999999999999\r\n",
                Framing::Length(9_999_999_999_999_999_999),
            ),
            ("Transfer-Encoding: chunked\r\n", Framing::Chunked),
            ("transfer-encoding: Chunked \r\n", Framing::Chunked),
        ] {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            let found = receive(&head).expect(fields);
            assert_eq!(found.framing, framing, "{fields:?}");
        }
    }

    #[test]
    fn ambiguous_lengths_are_refused() {
        let digits = "Content-Length has no or too many digits";
        let number = "Content-Length is not a number";
        let both = "Content-Length with Transfer-Encoding";
        let twice = "more than one Content-Length";
        for (fields, status, reason) in [
            (
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                400,
                both,
            ),
            (
                "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
                400,
                both,
            ),
            ("Transfer-Encoding: x\r\nContent-Length: 5\r\n", 400, both),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", 400, twice),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", 400, twice),
            ("Content-Length: 5, 5\r\n", 400, number),
            ("Content-Length: 5,6\r\n", 400, number),
            ("Content-Length: +5\r\n", 400, number),
            ("Content-Length: -5\r\n", 400, number),
            ("Content-Length: 1 5\r\n", 400, number),
            ("Content-Length: 0x5\r\n", 400, number),
            ("Content-Length: a\r\n", 400, number),
            ("Content-Length: 5;\r\n", 400, number),
            ("Content-Length: \"5\"\r\n", 400, number),
            ("Content-Length: 5.0\r\n", 400, number),
            ("Content-Length:\r\n", 400, digits),
            ("Content-Length: 10000000000000000000\r\n", 400, digits),
            ("Content-Length: 00000000000000000005\r\n", 400, digits),
        ] {
            let found = refused_fields("POST / HTTP/1.1", fields);
            assert_eq!(found, Some((status, reason)), "{fields:?}");
        }
    }

    #[test]
    fn transfer_codings_other_than_chunked_are_refused() {
        let last = "last transfer coding is not chunked";
        let malformed = "malformed Transfer-Encoding";
        for (fields, status, reason) in [
            ("Transfer-Encoding: identity\r\n", 400, last),
            ("Transfer-Encoding: gzip\r\n", 400, last),
            ("Transfer-Encoding: xchunked\r\n", 400, last),
            ("Transfer-Encoding: chunked, gzip\r\n", 400, last),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
                400,
                last,
            ),
            (
                "Transfer-Encoding: chunked, chunked\r\n",
                400,
                "chunked more than once",
            ),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                400,
                "chunked more than once",
            ),
            ("Transfer-Encoding:\r\n", 400, malformed),
            ("Transfer-Encoding: ,chunked\r\n", 400, malformed),
            ("Transfer-Encoding: chunked,\r\n", 400, malformed),
            ("Transfer-Encoding: chunked;q=1\r\n", 400, malformed),
            ("Transfer-Encoding: chunked x\r\n", 400, malformed),
            ("Transfer-Encoding: \"chunked\"\r\n", 400, malformed),
            ("Transfer-Encoding: x=\"a,chunked\"\r\n", 400, malformed),
            (
                "Transfer-Encoding: gzip, chunked\r\n",
                501,
                "unknown transfer coding",
            ),
            (
                "Transfer-Encoding: gzip;q=1\r\nTransfer-Encoding: chunked\r\n",
                501,
                "unknown transfer coding",
            ),
        ] {
            let found = refused_fields("POST / HTTP/1.1", fields);
            assert_eq!(found, Some((status, reason)), "{fields:?}");
        }
        assert_eq!(
            refused_fields("POST / HTTP/1.0", "Transfer-Encoding: chunked\r\n"),
            Some((400, "Transfer-Encoding in HTTP/1.0"))
        );
        assert_eq!(
            refused_fields("CONNECT a:1 HTTP/1.1", "Content-Length: 5\r\n"),
            Some((400, "CONNECT with a body"))
        );
    }

    #[test]
    fn connections_stay_open_when_both_sides_mean_it() {
        for (version, connection, keep_alive) in [
            ("1.1", "X-A: b", true),
            ("1.1", "Connection: close", false),
            ("1.1", "Connection: CLOSE", false),
            ("1.1", "Connection: foo, close ,bar", false),
            ("1.1", "Connection: keep-alive, close", false),
            ("1.1", "Connection: keep-alive\r\nConnection: close", false),
            ("1.1", "Connection: closed", true),
            ("1.0", "X-A: b", false),
            ("1.0", "Connection: Keep-Alive", true),
            ("1.0", "Connection: x,keep-alive", true),
            ("1.0", "Connection: keep-alive, close", false),
        ] {
            let head = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n\r\n");
            let request = receive(&head).expect("valid");
            assert_eq!(request.keep_alive, keep_alive, "{version} {connection}");
        }
    }

    #[test]
    fn expectations_are_known_or_refused() {
        for (version, fields, waits) in [
            ("1.1", "Content-Length: 5\r\nExpect: 100-Continue\r\n", true),
            (
                "1.1",
                "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n",
                true,
            ),
            ("1.1", "Expect: 100-continue\r\n", false),
            (
                "1.0",
                "Content-Length: 5\r\nExpect: 100-continue\r\n",
                false,
            ),
        ] {
            let head = format!("POST / HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
            let request = receive(&head).expect("valid");
            assert_eq!(request.expects_continue, waits, "{version} {fields}");
        }
        for fields in [
            "Expect: 200-ok\r\n",
            "Expect: 100-continue, more\r\n",
            "Expect: more\r\nExpect: 100-continue\r\n",
            "Expect:\r\n",
        ] {
            let found = refused_fields("POST / HTTP/1.1", fields);
            assert_eq!(found, Some((417, "unknown expectation")), "{fields:?}");
        }
    }
}
