//! The words of HTTP that every version and every handler shares. Pure data: no sockets, no clock.

mod status_set;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use super::h1::encode::FieldLines;
pub use status_set::StatusSet;

/// A request method (RFC 9110 §9). Methods are case-sensitive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method<'b> {
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
    /// CONNECT.
    Connect,
    /// OPTIONS.
    Options,
    /// TRACE: recognised so that it can be refused.
    Trace,
    /// PATCH (RFC 5789).
    Patch,
    /// Any other token.
    Other(&'b str),
}

impl<'b> Method<'b> {
    /// The method of this token, which the parser has already checked to be one.
    pub fn from_token(token: &'b str) -> Self {
        match token {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "CONNECT" => Self::Connect,
            "OPTIONS" => Self::Options,
            "TRACE" => Self::Trace,
            "PATCH" => Self::Patch,
            other => Self::Other(other),
        }
    }

    /// The token as it stands on the wire.
    pub fn as_str(&self) -> &'b str {
        match *self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Patch => "PATCH",
            Self::Other(token) => token,
        }
    }
}

/// The protocol version of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// A status code, 100 to 999 (RFC 9110 §15).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Status(pub u16);

impl Status {
    /// The standard reason phrase, or the empty string for a code without one.
    pub fn reason(self) -> &'static str {
        match self.0 {
            100 => "Continue",
            101 => "Switching Protocols",
            103 => "Early Hints",
            200 => "OK",
            201 => "Created",
            202 => "Accepted",
            203 => "Non-Authoritative Information",
            204 => "No Content",
            205 => "Reset Content",
            206 => "Partial Content",
            300 => "Multiple Choices",
            301 => "Moved Permanently",
            302 => "Found",
            303 => "See Other",
            304 => "Not Modified",
            307 => "Temporary Redirect",
            308 => "Permanent Redirect",
            400 => "Bad Request",
            401 => "Unauthorized",
            402 => "Payment Required",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            406 => "Not Acceptable",
            407 => "Proxy Authentication Required",
            408 => "Request Timeout",
            409 => "Conflict",
            410 => "Gone",
            411 => "Length Required",
            412 => "Precondition Failed",
            413 => "Content Too Large",
            414 => "URI Too Long",
            415 => "Unsupported Media Type",
            416 => "Range Not Satisfiable",
            417 => "Expectation Failed",
            418 => "I'm a teapot",
            421 => "Misdirected Request",
            422 => "Unprocessable Content",
            425 => "Too Early",
            426 => "Upgrade Required",
            428 => "Precondition Required",
            429 => "Too Many Requests",
            431 => "Request Header Fields Too Large",
            451 => "Unavailable For Legal Reasons",
            500 => "Internal Server Error",
            501 => "Not Implemented",
            502 => "Bad Gateway",
            503 => "Service Unavailable",
            504 => "Gateway Timeout",
            505 => "HTTP Version Not Supported",
            507 => "Insufficient Storage",
            _ => "",
        }
    }

    /// Whether a response with this status never has content (RFC 9110 §6.4.1): 1xx, 204, 304.
    pub fn forbids_body(self) -> bool {
        matches!(self.0, 100..=199 | 204 | 304)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How the end of a request body is found (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// Exactly this many bytes; never 0.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// The form of a request target (RFC 9112 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path?query`.
    Origin,
    /// `http://host/path?query`; its authority has replaced Host.
    Absolute,
    /// `host:port`, for CONNECT.
    Authority,
    /// `*`, for OPTIONS.
    Asterisk,
}

/// The fields of a received message, borrowed from the bytes they came in, in order of arrival.
#[derive(Clone, Debug, Default)]
pub struct Fields<'b> {
    list: SmallVec<[(&'b str, &'b [u8]); 16]>,
}

impl<'b> Fields<'b> {
    /// Appends a field. The parser has checked that the name is a token and the value has neither
    /// control characters nor whitespace at its ends.
    pub fn push(&mut self, name: &'b str, value: &'b [u8]) {
        self.list.push((name, value));
    }

    /// The value of the first field of that name, ASCII case ignored.
    pub fn get(&self, name: &str) -> Option<&'b [u8]> {
        self.get_all(name).next()
    }

    /// The values of all fields of that name, ASCII case ignored, in order.
    pub fn get_all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'b [u8]> + 's {
        self.list
            .iter()
            .filter(move |(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| *v)
    }

    /// All fields.
    pub fn iter(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> + '_ {
        self.list.iter().copied()
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// A request whose head is whole and valid; the body, if any, follows on the connection.
#[derive(Clone, Debug)]
pub struct Request<'b> {
    /// The method.
    pub method: Method<'b>,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// The request target as it came (for logs and for proxying as is).
    pub target: &'b str,
    /// Which form the target has.
    pub form: TargetForm,
    /// Host name in lower case without a port, brackets of an IPv6 literal kept; empty only for
    /// HTTP/1.0 without Host.
    pub host: Cow<'b, str>,
    /// The port in Host or in the target's authority, where one was given.
    pub port: Option<u16>,
    /// The canonical path: begins with `/`, percent-decoded once, dot segments removed, slashes
    /// merged, valid UTF-8 without NUL. It alone serves routing and file lookup. For asterisk and
    /// authority form it is `/`.
    pub path: Cow<'b, str>,
    /// What stands behind the first `?`, undecoded.
    pub query: Option<&'b str>,
    /// All fields.
    pub fields: Fields<'b>,
    /// How the body ends.
    pub framing: Framing,
    /// Whether the connection may stay open after this exchange, as far as the client is concerned.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue`.
    pub expects_continue: bool,
}

/// The value of a response field: valid field content, never with CR, LF or NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldValue {
    /// A constant.
    Static(&'static str),
    /// Shared with a cache or the configuration.
    Shared(Arc<[u8]>),
    /// Made for this response.
    Owned(Box<[u8]>),
}

impl FieldValue {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Static(s) => s.as_bytes(),
            Self::Shared(s) => s,
            Self::Owned(s) => s,
        }
    }
}

impl From<&'static str> for FieldValue {
    fn from(value: &'static str) -> Self {
        Self::Static(value)
    }
}

impl From<String> for FieldValue {
    fn from(value: String) -> Self {
        Self::Owned(value.into_bytes().into())
    }
}

impl From<Arc<[u8]>> for FieldValue {
    fn from(value: Arc<[u8]>) -> Self {
        Self::Shared(value)
    }
}

/// The name of a response field: a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldName {
    /// A constant, in its usual spelling.
    Static(&'static str),
    /// From the configuration or a backend.
    Shared(Arc<str>),
}

impl FieldName {
    /// The name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Static(s) => s,
            Self::Shared(s) => s,
        }
    }
}

impl From<&'static str> for FieldName {
    fn from(value: &'static str) -> Self {
        Self::Static(value)
    }
}

impl From<Arc<str>> for FieldName {
    fn from(value: Arc<str>) -> Self {
        Self::Shared(value)
    }
}

/// The head of a response, without what framing adds (Date, Server, Content-Length,
/// Transfer-Encoding and Connection belong to the session and the codec).
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// The status.
    pub status: Status,
    /// Fields of a backend, which are sent before the others.
    pub passed: FieldLines,
    /// The fields in the order in which they are sent.
    pub fields: SmallVec<[(FieldName, FieldValue); 8]>,
}

impl ResponseHead {
    /// A head without fields.
    pub fn new(status: u16) -> Self {
        Self {
            status: Status(status),
            passed: FieldLines::default(),
            fields: SmallVec::new(),
        }
    }

    /// Appends a field.
    #[must_use]
    pub fn with(mut self, name: impl Into<FieldName>, value: impl Into<FieldValue>) -> Self {
        self.push(name, value);
        self
    }

    /// Appends a field.
    pub fn push(&mut self, name: impl Into<FieldName>, value: impl Into<FieldValue>) {
        self.fields.push((name.into(), value.into()));
    }

    /// Replaces every field of that name by one, or appends it.
    pub fn set(&mut self, name: impl Into<FieldName>, value: impl Into<FieldValue>) {
        let name = name.into();
        self.remove(name.as_str());
        self.fields.push((name, value.into()));
    }

    /// Removes every field of that name, ASCII case ignored.
    pub fn remove(&mut self, name: &str) {
        self.passed.remove(name);
        self.fields
            .retain(|(n, _)| !n.as_str().eq_ignore_ascii_case(name));
    }

    /// The value of the first field of that name, ASCII case ignored.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let own = |(n, _): &&(FieldName, FieldValue)| n.as_str().eq_ignore_ascii_case(name);
        let passed = self.passed.get(name);
        passed.or_else(|| self.fields.iter().find(own).map(|(_, v)| v.as_bytes()))
    }
}
