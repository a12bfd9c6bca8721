//! HTTP/1.1 (RFC 9112) without I/O: parser, body decoders and encoder.
//!
//! A connection uses it in this order: [`HeadScanner`] finds the end of a head in the bytes that
//! have come so far, [`parse_head`] turns it into a [`Request`](crate::http::types::Request),
//! [`body::BodyDecoder`] finds the body and its end, [`encode`] writes the response. Towards a
//! backend, [`response::ResponseReader`] reads what it answers. All of them
//! are strict: what two implementations could read differently is refused, since that difference
//! is what request smuggling is made of.

pub mod body;
pub mod encode;
mod framing;
mod head;
pub mod response;
mod scan;

use std::fmt;

use crate::http::types::Status;
use crate::http::uri::UriError;

pub(crate) use framing::list;
pub use head::parse_head;
pub use scan::HeadScanner;

/// Most fields that `HeadLimits::fields_max` can allow; a greater value acts as this one.
pub const FIELDS_CAP: usize = 1024;

/// Bounds of a request head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Longest request line in bytes, without its CRLF; beyond it 414.
    pub line_max: usize,
    /// Longest header section in bytes: all field lines and the empty line, with their CRLFs;
    /// beyond it 431.
    pub section_max: usize,
    /// Most fields, at most [`FIELDS_CAP`]; beyond it 431.
    pub fields_max: usize,
}

impl HeadLimits {
    /// Most bytes that a head can have before it is refused: a receive buffer needs no more.
    pub fn head_max(&self) -> usize {
        scan::BLANK_LINES_MAX * 2 + self.line_max + 2 + self.section_max
    }
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self {
            line_max: 8 * 1024,
            section_max: 32 * 1024,
            fields_max: 100,
        }
    }
}

/// A request that is refused. The client's fault; the connection closes after the response, since
/// where the next request would begin is not known or not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// What to answer.
    pub status: Status,
    /// The rule or limit that was broken, for the log. Never shown to the client.
    pub reason: &'static str,
}

impl Reject {
    /// The head did not come in time (RFC 9110 §15.5.9).
    pub const TIMEOUT: Self = Self::new(408, "limit: time to a whole header section");

    pub(crate) const fn new(status: u16, reason: &'static str) -> Self {
        Self {
            status: Status(status),
            reason,
        }
    }

    /// 400 Bad Request.
    pub(crate) const fn bad(reason: &'static str) -> Self {
        Self::new(400, reason)
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.reason)
    }
}

impl std::error::Error for Reject {}

impl From<UriError> for Reject {
    fn from(error: UriError) -> Self {
        Self::bad(error.reason())
    }
}

/// Whether `text` is a token (RFC 9110 §5.6.2).
pub(crate) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|&byte| TOKEN[usize::from(byte)])
}

const TOKEN: [bool; 256] = {
    let (mut table, marks) = ([false; 256], *b"!#$%&'*+-.^_`|~");
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < marks.len() {
        table[marks[at] as usize] = true;
        at += 1;
    }
    table
};
