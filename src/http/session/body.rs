//! The content of a response: what a handler gives, and where a session gets the rest of it from.
//! Whether it leaves by a copy, by sendfile or through a pipe is not decided here.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::tunnel::Tunnel;
use super::upload::Upload;
use crate::http::types::{FieldName, FieldValue};
use crate::net::send::FilePart;
use crate::net::splice::{Cause, Moved};
use crate::runtime::buf::RecvBuf;
use crate::runtime::fd::Fd;

/// The content of a response.
pub enum Body {
    /// None.
    Empty,
    /// Bytes made for this response.
    Bytes(Vec<u8>),
    /// Bytes just as they were received from elsewhere.
    Received(RecvBuf),
    /// A part of bytes that a cache of this core holds.
    Shared(Rc<[u8]>, Range<usize>),
    /// Bytes of the configuration.
    Constant(Arc<[u8]>),
    /// A part of a file.
    File(FilePart),
    /// Several pieces, in order: multipart ranges.
    Pieces(Vec<Piece>),
    /// Pieces of unknown number and length: chunked to HTTP/1.1, up to the end of the connection
    /// to HTTP/1.0. Each `next` is short work.
    Chunks(Box<dyn Iterator<Item = Vec<u8>>>),
    /// Pieces that come when they come, while the request may still be on its way.
    Stream(Box<dyn BodyStream>),
    /// Content that is not there, as in a backend's answer to HEAD: its length is told where it is
    /// known. Only for a response that has none by its method or status.
    Absent(Option<u64>),
    /// Bytes in both directions, in no framing of ours, once a head with status 101 was sent.
    Tunnel(Box<dyn Tunnel>),
}

/// One of several pieces of a body.
pub enum Piece {
    /// Bytes.
    Bytes(Vec<u8>),
    /// Bytes just as they were received from elsewhere.
    Received(RecvBuf),
    /// A part of a file.
    File(FilePart),
    /// Bytes that still stand in another socket.
    Relay(RelayPart),
}

/// Bytes that still stand in another socket, or come there yet, to be moved without a copy where the
/// kernel can. It pays from [`crate::runtime::tuning::Tuning::splice_from`] on.
pub struct RelayPart {
    /// The socket they come from; nothing is armed on it.
    pub from: Fd,
    /// How many bytes.
    pub length: u64,
    /// Longest silence of the source while the client waits; `None`: for ever.
    pub silence: Option<Duration>,
    /// How it goes, for whom has given the part away.
    pub outcome: Rc<RelayOutcome>,
}

/// How the relay of one [`RelayPart`] goes, and went. Up to date at any time, also when the exchange was
/// dropped in the middle.
#[derive(Debug, Default)]
pub struct RelayOutcome {
    pub(super) moved: Moved,
    pub(super) error: Cell<Option<Cause>>,
}

impl RelayOutcome {
    /// Bytes taken from the source. When these are all, the source stands behind its message.
    pub fn taken(&self) -> u64 {
        self.moved.taken()
    }

    /// Bytes that our kernel has taken for the client.
    pub fn given(&self) -> u64 {
        self.moved.given()
    }

    /// What ended it before its end.
    pub fn error(&self) -> Option<Cause> {
        self.error.get()
    }
}

impl Piece {
    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Received(bytes) => bytes.len() as u64,
            Self::File(part) => part.length,
            Self::Relay(part) => part.length,
        }
    }
}

/// A response that ended before its content did. The client is shown that it is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Why, for the log.
    pub reason: &'static str,
}

/// Trailer fields, in order.
pub type Trailers = Vec<(FieldName, FieldValue)>;

/// Content that comes from somewhere else. The session takes a piece, sends it at the pace of the
/// client, and only then asks for the next: what is in flight is one piece and a batch of 64 KiB.
pub trait BodyStream {
    /// The next piece, `None` at the end; not asked again after the end or a cut. The request's body
    /// is lent to it, for it may go on while the response comes; what it waits for, of the upload or
    /// of its own, is to wake the current task. An empty piece is skipped.
    ///
    /// # Errors
    /// [`Cut`] when the content can't be had to its end.
    fn poll_next(&mut self, upload: &mut Upload<'_>) -> Poll<Option<Result<Piece, Cut>>>;

    /// Goes on with the request's body alone, while the client takes its time with a piece: a client
    /// may send all of its request before it reads any of the response. Asked whenever the task wakes
    /// meanwhile.
    fn poll_upload(&mut self, _upload: &mut Upload<'_>) {}

    /// The length of the content in bytes where that is known before it comes. More or fewer is a
    /// cut. Asked once, before anything else.
    fn length(&self) -> Option<u64>;

    /// The trailer fields, asked for once behind the last piece, and sent where the framing has room
    /// for them: chunked alone. Those that may not stand in a trailer section are left out.
    fn trailers(&mut self) -> Trailers {
        Trailers::new()
    }
}

impl Body {
    /// Its length in bytes where that is known beforehand.
    pub fn length(&self) -> Option<u64> {
        Some(match self {
            Self::Empty => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Received(bytes) => bytes.len() as u64,
            Self::Shared(_, range) => range.len() as u64,
            Self::Constant(bytes) => bytes.len() as u64,
            Self::File(part) => part.length,
            Self::Pieces(pieces) => pieces.iter().map(Piece::length).sum(),
            Self::Stream(stream) => return stream.length(),
            Self::Absent(length) => return *length,
            Self::Chunks(_) | Self::Tunnel(_) => return None,
        })
    }

    /// Whether it may still read the request's body when the head of the response has been sent.
    pub(super) fn reads_on(&self) -> bool {
        matches!(self, Self::Stream(_))
    }
}
