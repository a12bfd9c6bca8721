//! Finds the content of a body, and its end, in bytes that arrive in any pieces.
//!
//! The decoder copies nothing: it says which range of the input is content. It stops exactly at
//! the end of the body, so that what follows is the next message and nothing of the body ever is
//! (RFC 9112 §6, §7.1). Only the trailer section, which is rare and small, is kept.

use std::ops::Range;

use super::Reject;
use super::encode::ResponseFraming;
use crate::http::types::{Fields, Framing};

/// Longest chunk extension of one chunk, in bytes, whitespace included.
pub const EXTENSION_MAX: usize = 256;
/// Most bytes of chunk extensions in one body: nobody uses them, and a flood of them moves no
/// content.
pub const EXTENSIONS_TOTAL_MAX: usize = 4 * 1024;
/// Longest trailer section in bytes, with its line ends; beyond it 431.
pub const TRAILERS_MAX: usize = 8 * 1024;
/// Most trailer fields; beyond it 431.
pub const TRAILER_FIELDS_MAX: usize = 32;

/// Most hexadecimal digits of a chunk size: as many as `u64` holds.
const CHUNK_DIGITS_MAX: u8 = 16;

/// What a step of decoding has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// How much of the input is done with, content included. Once `end` is true, the rest of the
    /// input belongs to the next request.
    pub consumed: usize,
    /// Where the content lies within the input; possibly empty. Always within `..consumed`.
    pub data: Range<usize>,
    /// Whether the body has ended; content of this step still counts.
    pub end: bool,
}

/// Where the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Within content of known length, this many bytes before its end; never 0.
    Length(u64),
    /// Within content that ends with the connection.
    UntilClose,
    /// Within the hexadecimal chunk size.
    Size { digits: u8, size: u64 },
    /// Behind the size, in whitespace that only an extension may follow.
    BeforeExtension { size: u64 },
    /// Within a chunk extension.
    Extension { size: u64 },
    /// Behind the CR of the chunk's line.
    SizeLineEnd { size: u64 },
    /// Within the content of a chunk; never 0.
    Data(u64),
    /// Before the CR behind a chunk's content.
    DataEnd,
    /// Behind that CR.
    DataLineEnd,
    /// At the beginning of a line of the trailer section.
    TrailerStart,
    /// Within a trailer field.
    Trailer,
    /// Behind the CR of a trailer field.
    TrailerLineEnd,
    /// Behind the CR of the empty line that ends the body.
    LastLineEnd,
    /// The body has ended.
    End,
    /// The body is broken, and stays so.
    Broken(Reject),
}

/// Decodes one body.
#[derive(Clone, Debug)]
pub struct BodyDecoder {
    state: State,
    /// Extension bytes of this chunk.
    extension: usize,
    /// Extension bytes of all chunks.
    extensions: usize,
    /// The trailer section with its final empty line once the body has ended; empty, and without
    /// an allocation, when there is none.
    trailers: Vec<u8>,
    /// Whether fields that may not stand in a trailer section are left out instead of refused.
    filters_trailers: bool,
}

impl BodyDecoder {
    /// A decoder for the body of a request with this framing.
    pub fn new(framing: Framing) -> Self {
        Self {
            state: match framing {
                Framing::None | Framing::Length(0) => State::End,
                Framing::Length(length) => State::Length(length),
                Framing::Chunked => State::Size { digits: 0, size: 0 },
            },
            extension: 0,
            extensions: 0,
            trailers: Vec::new(),
            filters_trailers: false,
        }
    }

    /// A decoder for the body of a response with this framing, as it stands on the wire (so
    /// [`ResponseFraming::None`] for the answer to HEAD).
    ///
    /// Trailer fields that may not stand there are left out of [`trailers`](Self::trailers) rather
    /// than refused: the content has gone to the client before they come, and a backend that sends
    /// its Date again does no harm (RFC 9110 §6.5.1 lets a recipient drop any of them).
    pub fn for_response(framing: ResponseFraming) -> Self {
        let request = match framing {
            ResponseFraming::Length(length) => Framing::Length(length),
            ResponseFraming::Chunked => Framing::Chunked,
            ResponseFraming::None | ResponseFraming::Close => Framing::None,
        };
        let mut decoder = Self::new(request);
        decoder.filters_trailers = true;
        if framing == ResponseFraming::Close {
            decoder.state = State::UntilClose;
        }
        decoder
    }

    /// The peer has ended the connection. Returns whether the body is whole: one that lasts until
    /// the close ends here, any other one that has not ended is cut short (RFC 9112 §8) and must be
    /// shown as cut short to whoever it is passed on to.
    pub fn end_of_input(&mut self) -> bool {
        if self.state == State::UntilClose {
            self.state = State::End;
        }
        self.is_ended()
    }

    /// How many bytes of plain content follow next, so that they can be moved without being looked
    /// at: 0 where framing comes next, `u64::MAX` when the end of the connection is the only end.
    pub fn content_ahead(&self) -> u64 {
        match self.state {
            State::Length(left) | State::Data(left) => left,
            State::UntilClose => u64::MAX,
            _ => 0,
        }
    }

    /// Counts `length` bytes as content that was moved past the decoder.
    ///
    /// # Panics
    /// If that is more than [`content_ahead`](Self::content_ahead): framing would have been moved.
    pub fn skip_content(&mut self, length: u64) {
        assert!(
            length <= self.content_ahead(),
            "framing was taken for content"
        );
        self.pass_data(length);
    }

    /// Whether the whole body has been consumed.
    pub fn is_ended(&self) -> bool {
        self.state == State::End
    }

    /// How many bytes of content are certainly still to come: all of them with a Content-Length,
    /// the rest of the current chunk otherwise. Helps to decide whether draining is worth it.
    pub fn remaining_min(&self) -> u64 {
        match self.state {
            State::Length(left) | State::Data(left) => left,
            _ => 0,
        }
    }

    /// The trailer fields; none before the end of the body, and never one of
    /// [`is_forbidden_trailer`].
    pub fn trailers(&self) -> Fields<'_> {
        let mut allowed = Fields::default();
        if !self.is_ended() || self.trailers.is_empty() {
            return allowed;
        }
        for (name, value) in parse_trailers(&self.trailers).unwrap_or_default().iter() {
            if !is_forbidden_trailer(name) {
                allowed.push(name, value);
            }
        }
        allowed
    }

    /// Takes the next bytes of the connection: at most one range of content a call. Call again
    /// with what was not consumed until the input is empty or the body has ended; each call with
    /// input consumes something unless the body has ended.
    ///
    /// # Errors
    /// 400 for anything but exact chunked coding (a bare LF, a size that is not hexadecimal or
    /// overflows, extensions beyond their bounds, a field that may not stand in the trailer section
    /// of a request) and 431 for too large a trailer section. The error repeats at each later call; the
    /// connection must close.
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, Reject> {
        let mut at = 0;
        let mut data = 0..0;
        while at < input.len() {
            match self.state {
                State::Length(left) | State::Data(left) => {
                    let length = take(left, input.len() - at);
                    data = at..at + length;
                    at += length;
                    self.pass_data(length as u64);
                    break;
                }
                State::UntilClose => {
                    data = at..input.len();
                    at = input.len();
                }
                State::Trailer => at += self.take_trailer(&input[at..])?,
                State::End => break,
                _ => {
                    self.state = self.step(input[at]).map_err(|reject| self.refuse(reject))?;
                    at += 1;
                }
            }
        }
        if let State::Broken(reject) = self.state {
            return Err(reject);
        }
        Ok(Decoded {
            consumed: at,
            data,
            end: self.is_ended(),
        })
    }

    /// Counts `length` bytes of content as seen.
    fn pass_data(&mut self, length: u64) {
        if length == 0 {
            return;
        }
        self.state = match self.state {
            State::Length(left) if left > length => State::Length(left - length),
            State::Length(_) => State::End,
            State::Data(left) if left > length => State::Data(left - length),
            State::Data(_) => State::DataEnd,
            other => other,
        };
    }

    /// Takes one byte of framing.
    fn step(&mut self, byte: u8) -> Result<State, Reject> {
        Ok(match (self.state, byte) {
            (State::Size { digits, size }, _) => self.step_size(digits, size, byte)?,
            (State::BeforeExtension { size }, b' ' | b'\t') => {
                self.count_extension()?;
                State::BeforeExtension { size }
            }
            (State::BeforeExtension { size }, b';') => {
                self.count_extension()?;
                State::Extension { size }
            }
            (State::BeforeExtension { .. }, _) => return Err(Reject::bad("chunk size")),
            (State::Extension { size }, b'\r') => State::SizeLineEnd { size },
            (State::Extension { size }, b'\t' | b' '..=b'~' | 0x80..) => {
                self.count_extension()?;
                State::Extension { size }
            }
            (State::Extension { .. }, _) => {
                return Err(Reject::bad("control character in chunk extension"));
            }
            (State::SizeLineEnd { size: 0 }, b'\n') => State::TrailerStart,
            (State::SizeLineEnd { size }, b'\n') => State::Data(size),
            (State::DataEnd, b'\r') => State::DataLineEnd,
            (State::DataEnd, _) => return Err(Reject::bad("chunk is longer than its size")),
            (State::DataLineEnd, b'\n') => {
                self.extension = 0;
                State::Size { digits: 0, size: 0 }
            }
            (State::TrailerStart, b'\r') => State::LastLineEnd,
            (State::TrailerStart, _) => {
                self.keep_trailer(&[byte])?;
                match byte {
                    b'\n' | 0 => return Err(Reject::bad("bare LF or NUL in trailers")),
                    _ => State::Trailer,
                }
            }
            (State::TrailerLineEnd, b'\n') => {
                self.keep_trailer(b"\r\n")?;
                State::TrailerStart
            }
            (State::LastLineEnd, b'\n') => self.end_trailers()?,
            (State::SizeLineEnd { .. } | State::DataLineEnd, _) => {
                return Err(Reject::bad("bare CR in chunked coding"));
            }
            (State::TrailerLineEnd | State::LastLineEnd, _) => {
                return Err(Reject::bad("bare CR in trailers"));
            }
            (State::Broken(reject), _) => return Err(reject),
            (State::Length(_) | State::UntilClose | State::Data(_), _) => self.state,
            (State::Trailer | State::End, _) => self.state,
        })
    }

    /// Takes a byte of a chunk size, or the one behind it.
    fn step_size(&mut self, digits: u8, size: u64, byte: u8) -> Result<State, Reject> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ if digits == 0 => return Err(Reject::bad("chunk size")),
            b'\r' => return Ok(State::SizeLineEnd { size }),
            b';' | b' ' | b'\t' => {
                self.count_extension()?;
                return Ok(match byte {
                    b';' => State::Extension { size },
                    _ => State::BeforeExtension { size },
                });
            }
            _ => return Err(Reject::bad("chunk size")),
        };
        if digits == CHUNK_DIGITS_MAX {
            return Err(Reject::bad("chunk size has too many digits"));
        }
        let size = size
            .checked_mul(16)
            .and_then(|size| size.checked_add(u64::from(digit)))
            .ok_or(Reject::bad("chunk size overflows"))?;
        let digits = digits + 1;
        Ok(State::Size { digits, size })
    }

    fn count_extension(&mut self) -> Result<(), Reject> {
        self.extension += 1;
        self.extensions += 1;
        if self.extension > EXTENSION_MAX || self.extensions > EXTENSIONS_TOTAL_MAX {
            return Err(Reject::bad("limit: chunk extensions"));
        }
        Ok(())
    }

    /// Takes bytes of a trailer field up to its line end; returns how many.
    fn take_trailer(&mut self, input: &[u8]) -> Result<usize, Reject> {
        let found = memchr::memchr3(b'\r', b'\n', 0, input);
        let length = found.unwrap_or(input.len());
        self.keep_trailer(&input[..length])
            .map_err(|reject| self.refuse(reject))?;
        let Some(found) = found else {
            return Ok(length);
        };
        if input[found] != b'\r' {
            return Err(self.refuse(Reject::bad("bare LF or NUL in trailers")));
        }
        self.state = State::TrailerLineEnd;
        Ok(length + 1)
    }

    fn keep_trailer(&mut self, bytes: &[u8]) -> Result<(), Reject> {
        if self.trailers.len() + bytes.len() > TRAILERS_MAX {
            return Err(Reject::new(431, "limit: trailer section"));
        }
        self.trailers.extend_from_slice(bytes);
        Ok(())
    }

    fn end_trailers(&mut self) -> Result<State, Reject> {
        if !self.trailers.is_empty() {
            self.trailers.extend_from_slice(b"\r\n");
            for (name, _) in parse_trailers(&self.trailers)?.iter() {
                if !self.filters_trailers && is_forbidden_trailer(name) {
                    return Err(Reject::bad("field not allowed in trailers"));
                }
            }
        }
        Ok(State::End)
    }

    fn refuse(&mut self, reject: Reject) -> Reject {
        self.state = State::Broken(reject);
        reject
    }
}

/// How much of `available` input lies within `left` bytes.
fn take(left: u64, available: usize) -> usize {
    usize::try_from(left).map_or(available, |left| left.min(available))
}

/// Parses a trailer section that ends with its empty line and whose line ends are known to be
/// CRLF.
fn parse_trailers(section: &[u8]) -> Result<Fields<'_>, Reject> {
    let mut room = [httparse::EMPTY_HEADER; TRAILER_FIELDS_MAX];
    match httparse::parse_headers(section, &mut room) {
        Ok(httparse::Status::Complete((end, parsed))) if end == section.len() => {
            let mut fields = Fields::default();
            for field in parsed {
                fields.push(field.name, field.value);
            }
            Ok(fields)
        }
        Err(httparse::Error::TooManyHeaders) => {
            Err(Reject::new(431, "limit: number of trailer fields"))
        }
        _ => Err(Reject::bad("malformed trailer field")),
    }
}

/// Whether a field may not stand in a trailer section: those for framing, routing, request
/// modification, authentication, content handling and control of the response (RFC 9110 §6.5.1),
/// since a recipient that merges them into the head would act on what nobody has checked.
pub fn is_forbidden_trailer(name: &str) -> bool {
    const FORBIDDEN: &[&str] = &[
        "age",
        "authorization",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-location",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expect",
        "expires",
        "forwarded",
        "host",
        "http2-settings",
        "keep-alive",
        "location",
        "max-forwards",
        "pragma",
        "proxy",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "retry-after",
        "set-cookie",
        "strict-transport-security",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "vary",
        "via",
        "warning",
        "www-authenticate",
        "x-real-ip",
    ];
    let begins = |prefix: &[u8]| {
        let start = name.as_bytes().get(..prefix.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    begins(b"if-")
        || begins(b"x-forwarded-")
        || FORBIDDEN.iter().any(|f| f.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What came of a body: its content, how many bytes it had, whether it ended.
    type Outcome = Result<(Vec<u8>, usize, bool), Reject>;

    /// Decodes `bytes` that arrive in pieces ending at `cuts` (sorted).
    fn decode_in_pieces(framing: Framing, bytes: &[u8], cuts: &[usize]) -> Outcome {
        let mut decoder = BodyDecoder::new(framing);
        let (mut content, mut at) = (Vec::new(), 0);
        for &cut in cuts.iter().chain([&bytes.len()]) {
            while at < cut && !decoder.is_ended() {
                let input = &bytes[at..cut];
                let decoded = decoder.decode(input)?;
                assert!(decoded.consumed > 0 && decoded.data.end <= decoded.consumed);
                content.extend_from_slice(&input[decoded.data]);
                at += decoded.consumed;
                assert_eq!(decoded.end, decoder.is_ended());
            }
        }
        Ok((content, at, decoder.is_ended()))
    }

    fn chunked(bytes: &[u8]) -> Outcome {
        let each: Vec<usize> = (1..bytes.len()).collect();
        let whole = decode_in_pieces(Framing::Chunked, bytes, &[]);
        assert_eq!(whole, decode_in_pieces(Framing::Chunked, bytes, &each));
        whole
    }

    #[test]
    fn a_body_ends_exactly_where_it_ends() {
        let none = decode_in_pieces(Framing::None, b"GET", &[]);
        assert_eq!(none, Ok((vec![], 0, true)));
        let known = decode_in_pieces(Framing::Length(3), b"abcGET", &[2]);
        assert_eq!(known, Ok((b"abc".to_vec(), 3, true)));
        let short = decode_in_pieces(Framing::Length(9), b"abc", &[]);
        assert_eq!(short, Ok((b"abc".to_vec(), 3, false)));
        let body = b"3\r\nabc\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\n\r\nGET / HTTP/1.1\r\n";
        assert_eq!(chunked(body), Ok((b"abc0123456789".to_vec(), 36, true)));
        assert_eq!(chunked(b"0\r\n\r\n0\r\n"), Ok((vec![], 5, true)));
        assert_eq!(chunked(b"000\r\n\r\n"), Ok((vec![], 7, true)));
        assert_eq!(
            chunked(b"1 ;a\r\nx\r\n0\t; b\r\n\r\n"),
            Ok((b"x".to_vec(), 18, true))
        );
        assert_eq!(chunked(b"5\r\nabc"), Ok((b"abc".to_vec(), 6, false)));
    }

    #[test]
    fn an_ended_decoder_takes_nothing() {
        let mut decoder = BodyDecoder::new(Framing::Length(1));
        assert_eq!(decoder.remaining_min(), 1);
        assert!(decoder.decode(b"ab").expect("content").end);
        let after = decoder.decode(b"GET / HTTP/1.1").expect("nothing");
        assert_eq!((after.consumed, after.data, after.end), (0, 0..0, true));
    }

    #[test]
    fn a_response_body_may_end_with_the_connection() {
        let mut decoder = BodyDecoder::for_response(ResponseFraming::Close);
        assert_eq!(decoder.content_ahead(), u64::MAX);
        let decoded = decoder.decode(b"abc").expect("content");
        assert_eq!(
            (decoded.consumed, decoded.data, decoded.end),
            (3, 0..3, false)
        );
        assert!(!decoder.is_ended());
        assert!(decoder.end_of_input() && decoder.is_ended());
        for (framing, bytes) in [
            (ResponseFraming::Length(4), &b"abc"[..]),
            (ResponseFraming::Chunked, b"3\r\nabc\r\n"),
            (ResponseFraming::Chunked, b"3\r\nabc\r\n0\r\n"),
        ] {
            let mut decoder = BodyDecoder::for_response(framing);
            let mut at = 0;
            while at < bytes.len() {
                at += decoder.decode(&bytes[at..]).expect("valid").consumed;
            }
            assert!(!decoder.end_of_input(), "{framing:?} is cut short");
        }
        assert!(BodyDecoder::for_response(ResponseFraming::None).is_ended());
        assert!(BodyDecoder::for_response(ResponseFraming::Length(0)).end_of_input());
    }

    #[test]
    fn content_can_be_moved_past_the_decoder() {
        let mut decoder = BodyDecoder::for_response(ResponseFraming::Chunked);
        assert_eq!(decoder.content_ahead(), 0);
        let decoded = decoder.decode(b"5\r\n").expect("a size");
        assert_eq!((decoded.consumed, decoder.content_ahead()), (3, 5));
        decoder.skip_content(0);
        decoder.skip_content(5);
        assert_eq!(decoder.content_ahead(), 0);
        assert!(decoder.decode(b"\r\n0\r\n\r\n").expect("valid").end);
        let mut decoder = BodyDecoder::for_response(ResponseFraming::Length(7));
        decoder.skip_content(7);
        assert!(decoder.is_ended());
    }

    #[test]
    #[should_panic(expected = "framing was taken for content")]
    fn framing_is_never_moved_past_the_decoder() {
        BodyDecoder::new(Framing::Length(3)).skip_content(4);
    }

    #[test]
    fn forbidden_trailers_of_a_response_are_left_out() {
        let body =
            b"0\r\nX-Sum: 1\r\nSet-Cookie: a=b\r\nX-Forwarded-Anything: c\r\nDate: d\r\n\r\n";
        let mut decoder = BodyDecoder::for_response(ResponseFraming::Chunked);
        assert!(decoder.decode(body).expect("valid").end);
        let names: Vec<_> = decoder.trailers().iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["X-Sum"]);
        let request = chunked(body);
        assert_eq!(
            request,
            Err(Reject::bad("field not allowed in trailers")),
            "a request that has them is refused"
        );
    }

    #[test]
    fn inexact_chunked_coding_is_refused() {
        for (body, reason) in [
            (&b"\r\n"[..], "chunk size"),
            (b"g\r\n", "chunk size"),
            (b"-1\r\n", "chunk size"),
            (b"+1\r\n", "chunk size"),
            (b"0x1\r\n", "chunk size"),
            (b" 1\r\n", "chunk size"),
            (b"1 \r\n", "chunk size"),
            (b"1 1\r\n", "chunk size"),
            (b"1\n", "chunk size"),
            (b";a\r\n", "chunk size"),
            (b"1\rx", "bare CR in chunked coding"),
            (b"1;a\nx", "control character in chunk extension"),
            (b"1;\0", "control character in chunk extension"),
            (b"1;a\rb", "bare CR in chunked coding"),
            (b"1\r\nab", "chunk is longer than its size"),
            (b"1\r\na\n", "chunk is longer than its size"),
            (b"1\r\na\rb", "bare CR in chunked coding"),
            (b"ffffffffffffffff1\r\n", "chunk size has too many digits"),
            (b"00000000000000001\r\n", "chunk size has too many digits"),
            (b"0\r\n\n", "bare LF or NUL in trailers"),
            (b"0\r\nA: b\n", "bare LF or NUL in trailers"),
            (b"0\r\nA: b\0", "bare LF or NUL in trailers"),
            (b"0\r\nA: b\rc", "bare CR in trailers"),
            (b"0\r\n\rA", "bare CR in trailers"),
            (b"0\r\nA : b\r\n\r\n", "malformed trailer field"),
            (b"0\r\nA: b\r\n c\r\n\r\n", "malformed trailer field"),
            (b"0\r\n: b\r\n\r\n", "malformed trailer field"),
            (b"0\r\nA\r\n\r\n", "malformed trailer field"),
            (b"0\r\nA: \x01\r\n\r\n", "malformed trailer field"),
        ] {
            assert_eq!(chunked(body), Err(Reject::bad(reason)), "{body:?}");
        }
        let largest = chunked(b"ffffffffffffffff\r\na");
        assert_eq!(largest, Ok((b"a".to_vec(), 19, false)));
    }

    #[test]
    fn an_error_stays() {
        let mut decoder = BodyDecoder::new(Framing::Chunked);
        let error = decoder.decode(b"x").expect_err("no size");
        assert_eq!(decoder.decode(b"0\r\n\r\n"), Err(error));
        assert!(!decoder.is_ended());
    }

    #[test]
    fn chunk_extensions_are_bounded_for_a_chunk_and_for_a_body() {
        let chunk = |length: usize| format!("1;{}\r\na\r\n", "x".repeat(length - 1));
        let end = "0\r\n\r\n";
        let limit = Err(Reject::bad("limit: chunk extensions"));
        assert!(chunked(format!("{}{end}", chunk(EXTENSION_MAX)).as_bytes()).is_ok());
        assert_eq!(chunked(chunk(EXTENSION_MAX + 1).as_bytes()), limit);
        let full = chunk(EXTENSION_MAX).repeat(EXTENSIONS_TOTAL_MAX / EXTENSION_MAX);
        assert!(chunked(format!("{full}{end}").as_bytes()).is_ok());
        assert_eq!(chunked(format!("{full}{}", chunk(1)).as_bytes()), limit);
    }

    #[test]
    fn trailers_are_read_and_bounded() {
        let mut decoder = BodyDecoder::new(Framing::Chunked);
        let body = b"0\r\nX-Sum:  abc \r\nServer-Timing: a\r\n\r\nGET";
        let decoded = decoder.decode(body).expect("valid");
        assert_eq!((decoded.consumed, decoded.end), (body.len() - 3, true));
        let trailers = decoder.trailers();
        assert_eq!(trailers.len(), 2);
        assert_eq!(trailers.get("x-sum"), Some(&b"abc"[..]));

        let fields = |count: usize| format!("0\r\n{}\r\n", "a: b\r\n".repeat(count));
        assert!(chunked(fields(TRAILER_FIELDS_MAX).as_bytes()).is_ok());
        assert_eq!(
            chunked(fields(TRAILER_FIELDS_MAX + 1).as_bytes()),
            Err(Reject::new(431, "limit: number of trailer fields"))
        );
        let long = |length: usize| format!("0\r\na:{}\r\n\r\n", "v".repeat(length - 4));
        assert!(chunked(long(TRAILERS_MAX).as_bytes()).is_ok());
        assert_eq!(
            chunked(long(TRAILERS_MAX + 1).as_bytes()),
            Err(Reject::new(431, "limit: trailer section"))
        );
    }

    #[test]
    fn trailers_carry_no_framing_routing_or_credentials() {
        for name in [
            "Content-Length",
            "TRANSFER-ENCODING",
            "Host",
            "Authorization",
            "Cookie",
            "Connection",
            "If-None-Match",
            "X-Forwarded-For",
            "Vary",
            "Location",
            "Retry-After",
        ] {
            let body = format!("0\r\n{name}: 1\r\n\r\n");
            let refused = Err(Reject::bad("field not allowed in trailers"));
            assert_eq!(chunked(body.as_bytes()), refused, "{name}");
        }
        assert!(!is_forbidden_trailer("x-checksum") && !is_forbidden_trailer("if"));
    }

    proptest! {
        #[test]
        fn content_does_not_depend_on_chunks_or_cuts(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            next in prop::collection::vec(any::<u8>(), 0..8),
            mut cuts in prop::collection::vec(0..300_usize, 0..10),
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:X};e\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\nA: b\r\n\r\n");
            let length = body.len();
            body.extend_from_slice(&next);
            cuts.iter_mut().for_each(|cut| *cut = (*cut).min(body.len()));
            cuts.sort_unstable();
            let outcome = decode_in_pieces(Framing::Chunked, &body, &cuts);
            prop_assert_eq!(outcome, Ok((chunks.concat(), length, true)));
        }

        #[test]
        fn any_bytes_have_one_verdict(
            body in "([0-3;a \\r\\n:]|\\r\\n|[12]\\r\\na|0\\r\\n){0,24}",
            mut cuts in prop::collection::vec(0..60_usize, 0..6),
        ) {
            cuts.iter_mut().for_each(|cut| *cut = (*cut).min(body.len()));
            cuts.sort_unstable();
            let pieces = decode_in_pieces(Framing::Chunked, body.as_bytes(), &cuts);
            prop_assert_eq!(pieces, chunked(body.as_bytes()));
        }
    }
}
