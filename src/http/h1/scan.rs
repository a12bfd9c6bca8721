//! Finds the end of a head, of a request or of a response, in bytes that arrive in any pieces.
//!
//! httparse starts from the beginning each time and accepts a bare LF, so this scan runs first: it
//! remembers how far it has looked, which makes a head that comes byte by byte cost linear time,
//! and it refuses what is wrong at the first byte that shows it, so that a flood is cut early.
//! The verdict depends on the bytes alone, never on how they were cut.

use super::{HeadLimits, Reject};

/// Empty lines tolerated before a request line (RFC 9112 §2.2).
pub(super) const BLANK_LINES_MAX: usize = 2;

/// How far one head has been searched.
///
/// Invariants: `line_start <= scanned <= buffer.len()`, and every byte before `scanned` has been
/// found to be neither NUL nor part of a broken line end.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScanner {
    scanned: usize,
    line_start: usize,
    /// Where the header section begins; 0 until the request line is whole.
    section_start: usize,
    /// Field lines that are whole.
    fields: usize,
    blank_lines: u8,
    /// Whether it begins with a status line.
    response: bool,
    #[cfg(test)]
    examined: usize,
}

impl HeadScanner {
    /// A scanner for the head of a response; the default one is for a request.
    ///
    /// A response may not begin with an empty line: that tolerance is for servers alone
    /// (RFC 9112 §2.2), and behind a reused connection it would be a piece of another response.
    pub fn for_response() -> Self {
        Self {
            response: true,
            ..Self::default()
        }
    }

    /// Looks for the end of the head that begins at `buffer[0]`. `buffer` holds all bytes of the
    /// head that have come so far; each call passes the same bytes as the last one and more.
    ///
    /// Returns the length of the head, its final empty line included, once it is whole. Bytes
    /// behind it are the body's or the next request's; begin that one with a new scanner.
    ///
    /// # Errors
    /// 400 for a bare CR, a bare LF, a NUL, too many empty lines or a broken request line, 414 and
    /// 431 beyond `limits`, 505 for a version other than HTTP/1.0 and HTTP/1.1. For a response the
    /// reason alone matters: see [`ResponseError`](super::response::ResponseError).
    pub fn scan(&mut self, buffer: &[u8], limits: &HeadLimits) -> Result<Option<usize>, Reject> {
        loop {
            let unseen = &buffer[self.scanned..];
            let found = find_end(unseen);
            self.count(found.map_or(unseen.len(), |at| at + 1));
            let Some(found) = found else {
                self.scanned = buffer.len();
                self.check_size(buffer.len(), buffer.len(), limits)?;
                return Ok(None);
            };
            let at = self.scanned + found;
            if buffer[at] != b'\r' {
                self.check_size(at, at + 1, limits)?;
                return Err(Reject::bad(match buffer[at] {
                    0 => "NUL in head",
                    _ => "bare LF in head",
                }));
            }
            // The CR stays unscanned until its LF is there: it is one byte looked at twice.
            self.scanned = at;
            let Some(&next) = buffer.get(at + 1) else {
                self.check_size(at, at + 1, limits)?;
                return Ok(None);
            };
            self.check_size(at, at + 2, limits)?;
            if next != b'\n' {
                return Err(Reject::bad("bare CR in head"));
            }
            let line = &buffer[self.line_start..at];
            (self.scanned, self.line_start) = (at + 2, at + 2);
            if self.end_line(line, limits)? {
                return Ok(Some(self.scanned));
            }
        }
    }

    /// Takes a whole line; true if it ends the head.
    fn end_line(&mut self, line: &[u8], limits: &HeadLimits) -> Result<bool, Reject> {
        if self.section_start == 0 {
            if self.response {
                check_status_line(line)?;
                self.section_start = self.scanned;
                return Ok(false);
            }
            if !line.is_empty() {
                check_request_line(line)?;
                self.section_start = self.scanned;
                return Ok(false);
            }
            self.blank_lines += 1;
            if usize::from(self.blank_lines) > BLANK_LINES_MAX {
                return Err(Reject::bad("empty lines before the request line"));
            }
            return Ok(false);
        }
        if line.is_empty() {
            return Ok(true);
        }
        self.fields += 1;
        if self.fields > limits.fields_max.min(super::FIELDS_CAP) {
            return Err(Reject::new(431, "limit: number of fields"));
        }
        Ok(false)
    }

    /// Checks the limits when the current line is known to reach `line_end`, and `end` bytes are
    /// known to belong to the head (a line end may stand between the two).
    fn check_size(&self, line_end: usize, end: usize, limits: &HeadLimits) -> Result<(), Reject> {
        if self.section_start == 0 {
            if line_end - self.line_start > limits.line_max {
                return Err(Reject::new(
                    414,
                    match self.response {
                        true => "limit: status line",
                        false => "limit: request line",
                    },
                ));
            }
        } else if end - self.section_start > limits.section_max {
            return Err(Reject::new(431, "limit: header section"));
        }
        Ok(())
    }

    #[cfg(test)]
    fn count(&mut self, bytes: usize) {
        self.examined += bytes;
    }

    #[cfg(not(test))]
    fn count(&mut self, _bytes: usize) {}
}

/// Bytes of a line that are looked at word by word.
const SHORT: usize = 128;

/// Where the first CR, LF or NUL is. Most lines are short, and a call of the vector search costs more
/// than to look at so few bytes a word at a time.
fn find_end(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let (words, rest) = bytes[..bytes.len().min(SHORT)].as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // The high bit of each byte below 0x0e, and perhaps of some above the first such.
        let mut low = word.wrapping_sub(ONES * 0x0e) & !word & (ONES * 0x80);
        while low != 0 {
            let at = index * 8 + low.trailing_zeros() as usize / 8;
            if is_end(bytes[at]) {
                return Some(at);
            }
            low &= low - 1;
        }
    }
    if bytes.len() <= SHORT {
        let start = bytes.len() - rest.len();
        return rest
            .iter()
            .position(|&byte| is_end(byte))
            .map(|at| start + at);
    }
    memchr::memchr3(b'\r', b'\n', 0, &bytes[SHORT..]).map(|at| SHORT + at)
}

fn is_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n' | 0)
}

/// Checks that a request line ends with a version that is spoken here. It is done as soon as the
/// line is whole, because a client of HTTP/0.9 sends nothing after it and waits.
fn check_request_line(line: &[u8]) -> Result<(), Reject> {
    if line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") {
        return Ok(());
    }
    Err(refuse_request_line(line))
}

/// Checks version and status code (RFC 9112 §4). The space behind the code may be missing where
/// there is no reason phrase: many servers leave it out, and nothing can be read into it.
fn check_status_line(line: &[u8]) -> Result<(), Reject> {
    let Some(rest) = line.strip_prefix(b"HTTP/") else {
        return Err(Reject::bad("status line"));
    };
    match rest {
        [b'1', b'.', b'0' | b'1', b' ', code @ ..] => match code {
            [b'1'..=b'5', b'0'..=b'9', b'0'..=b'9'] => Ok(()),
            [b'1'..=b'5', b'0'..=b'9', b'0'..=b'9', b' ', ..] => Ok(()),
            [b'0' | b'6'..=b'9', b'0'..=b'9', b'0'..=b'9', ..] => {
                Err(Reject::bad("status code out of range"))
            }
            _ => Err(Reject::bad("status code")),
        },
        [b'0'..=b'9', b'.', b'0'..=b'9', b' ', ..] | [b'0'..=b'9', b' ', ..] => {
            Err(Reject::new(505, "HTTP version"))
        }
        _ => Err(Reject::bad("status line")),
    }
}

#[cold]
fn refuse_request_line(line: &[u8]) -> Reject {
    const VERSION: Reject = Reject::new(505, "HTTP version");
    let mut words = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Reject::bad("request line");
    };
    match (words.next(), words.next()) {
        // `GET /path`: the whole of an HTTP/0.9 request.
        (None, _) if super::is_token(method) && !target.is_empty() => VERSION,
        (Some(version), None) => match version.strip_prefix(b"HTTP/") {
            // RFC 9110 §2.5 would let HTTP/1.2 pass as HTTP/1.1; nothing sends it, so it is not
            // worth a second reading of the line.
            Some([b'0'..=b'9', b'.', b'0'..=b'9']) => VERSION,
            Some([b'0' | b'2'..=b'9']) => VERSION,
            _ => Reject::bad("HTTP version is malformed"),
        },
        _ => Reject::bad("request line"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: HeadLimits = HeadLimits {
        line_max: 20,
        section_max: 40,
        fields_max: 3,
    };

    fn scan(bytes: &[u8]) -> Result<Option<usize>, Reject> {
        HeadScanner::default().scan(bytes, &LIMITS)
    }

    /// Feeds `bytes` in pieces that end at `cuts` and gives the first verdict.
    fn scan_in_pieces(bytes: &[u8], cuts: &[usize]) -> (Result<Option<usize>, Reject>, usize) {
        let mut scanner = HeadScanner::default();
        for &cut in cuts.iter().chain([&bytes.len()]) {
            match scanner.scan(&bytes[..cut], &LIMITS) {
                Ok(None) => {}
                verdict => return (verdict, scanner.examined),
            }
        }
        (Ok(None), scanner.examined)
    }

    #[test]
    fn heads_end_at_their_empty_line() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(scan(head), Ok(Some(head.len())));
        assert_eq!(
            scan(&[head, &b"body\n\0"[..]].concat()),
            Ok(Some(head.len()))
        );
        assert_eq!(scan(b"GET / HTTP/1.0\r\n\r\n"), Ok(Some(18)));
        for end in 0..head.len() {
            assert_eq!(scan(&head[..end]), Ok(None), "{end} bytes");
        }
    }

    #[test]
    fn few_empty_lines_may_come_first() {
        assert_eq!(scan(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n"), Ok(Some(22)));
        assert_eq!(scan(b"\r\n\r\n"), Ok(None));
        assert_eq!(
            scan(b"\r\n\r\n\r\n"),
            Err(Reject::bad("empty lines before the request line"))
        );
        assert_eq!(scan(b"\nGET /"), Err(Reject::bad("bare LF in head")));
    }

    #[test]
    fn broken_bytes_are_refused_as_soon_as_they_come() {
        for (bytes, reason) in [
            (&b"GET / HTTP/1.1\n"[..], "bare LF in head"),
            (b"GET /\n", "bare LF in head"),
            (b"GET /\r ", "bare CR in head"),
            (b"GET /\r\r", "bare CR in head"),
            (b"GET /\0", "NUL in head"),
            (b"GET / HTTP/1.1\r\nA: b\n", "bare LF in head"),
            (b"GET / HTTP/1.1\r\nA: b\rc", "bare CR in head"),
            (b"GET / HTTP/1.1\r\nA: b\r\n\n", "bare LF in head"),
            (b"GET / HTTP/1.1\r\nA: b\r\n\r\r", "bare CR in head"),
            (b"GET / HTTP/1.1\r\nA: \0", "NUL in head"),
            (b"\x16\x03\x01\x00", "NUL in head"),
        ] {
            assert_eq!(scan(bytes), Err(Reject::bad(reason)), "{bytes:?}");
            let before = &bytes[..bytes.len() - 1];
            assert_eq!(scan(before), Ok(None), "{before:?}");
        }
    }

    #[test]
    fn versions_are_checked_when_the_request_line_is_whole() {
        for (line, status) in [
            ("GET /", 505),
            ("GET / HTTP/0.9", 505),
            ("GET / HTTP/1.2", 505),
            ("GET / HTTP/2.0", 505),
            ("GET / HTTP/2", 505),
            ("PRI * HTTP/2.0", 505),
            ("GET / HTTP/9.9", 505),
            ("GET", 400),
            ("GET ", 400),
            ("GET / ", 400),
            ("GET / http/1.1", 400),
            ("GET / HTTP/1.10", 400),
            ("GET / HTTP/1", 400),
            ("GET / HTTP/1.1 ", 400),
            ("GET / a HTTP/2.0", 400),
            ("GET / HTTP/+1.1", 400),
            ("GET / HTTPS/1.1", 400),
            ("GET /\tHTTP/1.1", 505),
            ("<!> x", 400),
        ] {
            let verdict = scan(format!("{line}\r\n").as_bytes());
            assert_eq!(verdict.map_err(|r| r.status.0), Err(status), "{line:?}");
        }
    }

    #[test]
    fn limits_are_enforced_at_the_first_byte_beyond() {
        let line = |extra: usize| format!("GET /{} HTTP/1.1\r\n", "x".repeat(6 + extra));
        assert_eq!(scan(line(0).as_bytes()), Ok(None));
        let long = Err(Reject::new(414, "limit: request line"));
        assert_eq!(scan(line(1).as_bytes()), long);
        assert_eq!(scan(&[b'x'; 20]), Ok(None));
        assert_eq!(scan(&[b'x'; 21]), long);

        let section = |value: usize| format!("{}A: {}\r\n\r\n", line(0), "v".repeat(value));
        assert_eq!(scan(section(33).as_bytes()), Ok(Some(62)));
        let long = Err(Reject::new(431, "limit: header section"));
        assert_eq!(scan(section(34).as_bytes()), long);
        assert_eq!(scan(&section(80).as_bytes()[..22 + 40]), Ok(None));
        assert_eq!(scan(&section(80).as_bytes()[..22 + 41]), long);

        let fields = |count: usize| format!("{}{}", line(0), "A:\r\n".repeat(count));
        assert_eq!(scan(fields(3).as_bytes()), Ok(None));
        assert_eq!(
            scan(fields(4).as_bytes()),
            Err(Reject::new(431, "limit: number of fields"))
        );
        assert_eq!(LIMITS.head_max(), 4 + 22 + 40);
    }

    #[test]
    fn a_head_that_comes_byte_by_byte_costs_linear_work() {
        let fields: String = (0..80).map(|n| format!("X-{n}: {:0300}\r\n", n)).collect();
        let head = format!("GET / HTTP/1.1\r\n{fields}\r\n");
        let (mut scanner, limits) = (HeadScanner::default(), HeadLimits::default());
        for end in 0..head.len() {
            assert_eq!(scanner.scan(&head.as_bytes()[..end], &limits), Ok(None));
        }
        assert_eq!(scanner.scan(head.as_bytes(), &limits), Ok(Some(head.len())));
        assert!(head.len() > 20_000 && scanner.examined < 2 * head.len());
    }

    proptest! {
        #[test]
        fn ends_are_found_wherever_they_are(
            bytes in prop::collection::vec(prop_oneof![
                40 => Just(b'a'), 4 => 0_u8..16, 1 => any::<u8>(),
            ], 0..200),
        ) {
            prop_assert_eq!(find_end(&bytes), memchr::memchr3(b'\r', b'\n', 0, &bytes));
        }

        #[test]
        fn the_verdict_does_not_depend_on_the_cuts(
            text in "(\r\n){0,3}(GET / HTTP/1.1\r\n|GET /\r\n)?([a:\r\n\x00]|\r\n|aaaaa){0,20}(\r\n\r\n)?",
            mut cuts in prop::collection::vec(0..100_usize, 0..8),
        ) {
            cuts.iter_mut().for_each(|cut| *cut = (*cut).min(text.len()));
            cuts.sort_unstable();
            let whole = scan(text.as_bytes());
            prop_assert_eq!(scan_in_pieces(text.as_bytes(), &cuts).0, whole);
            let each: Vec<usize> = (0..text.len()).collect();
            prop_assert_eq!(scan_in_pieces(text.as_bytes(), &each).0, whole);
        }
    }
}
