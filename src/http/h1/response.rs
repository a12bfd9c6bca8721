//! Reads the responses of a backend: interim ones, the final one, the switch of protocols.
//!
//! A backend is trusted more than a client, but not with our framing: whatever two readers could
//! take for two different messages is refused here as it is in requests, because the connection
//! behind it is shared by clients (RFC 9112 §6.3, §11.1). The reader knows what was asked, since
//! that decides whether there is a body at all. It may not know whom the response is for: what of
//! it goes on to the client is `semantics::forwarding`'s matter.

use std::fmt;
use std::mem::MaybeUninit;

use super::encode::ResponseFraming;
use super::framing::{Control, Told, list};
use super::head::{FIELDS_ON_STACK, broken_name};
use super::{FIELDS_CAP, HeadLimits, HeadScanner, Reject};
use crate::http::types::{Fields, Method, Status, Version};

/// Most interim responses before the final one; beyond it the backend floods. Two (100 and 103) are
/// usual.
pub const INTERIM_MAX: u8 = 16;

/// A response head of a backend, borrowed from the bytes it came in.
#[derive(Clone, Debug)]
pub struct BackendResponse<'b> {
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// 100 to 599. The reason phrase is ignored (RFC 9112 §4).
    pub status: Status,
    /// All fields.
    pub fields: Fields<'b>,
    /// How the body that follows on this connection ends; [`ResponseFraming::None`] when none
    /// follows, whatever the fields say.
    pub framing: ResponseFraming,
    /// The length that Content-Length tells, also where no body follows: for HEAD it is that of the
    /// answer to GET (RFC 9110 §8.6).
    pub length: Option<u64>,
    /// Whether the connection may serve another request once the body has been read.
    pub keep_alive: bool,
}

/// What a head is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// An interim response (100, 102, 103, any other 1xx but 101): another head follows.
    Interim,
    /// 101: from here on the bytes are those of the protocol that was asked for.
    Switch,
    /// The final response: its body follows.
    Final,
}

/// A head that is whole and valid.
#[derive(Clone, Debug)]
pub struct Received<'b> {
    /// The bytes it has; what follows is the next head, the body or the tunnel.
    pub length: usize,
    /// What it is.
    pub kind: HeadKind,
    /// The head.
    pub response: BackendResponse<'b>,
}

/// What was asked of the backend, as far as it decides how the response is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// HEAD: no response to it has a body.
    pub head: bool,
    /// The value of the Upgrade field that was sent; None without one. Only a protocol of this list
    /// can be switched to (RFC 9110 §7.8).
    pub upgrade: Option<Box<[u8]>>,
}

impl Asked {
    /// A request of this method without Upgrade.
    pub fn method(method: Method<'_>) -> Self {
        Self {
            head: method == Method::Head,
            upgrade: None,
        }
    }
}

/// A response that is refused: the backend's fault, a 502 for the client. The connection to the
/// backend closes, since what its next bytes mean is not known or not believed.
///
/// Whether the request may be sent again is not decided by this error: the backend has answered,
/// so it has acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseError {
    /// It breaks a rule of RFC 9112; typically a backend that speaks another protocol on this port,
    /// or an application that writes fields by hand.
    Malformed(&'static str),
    /// A bound is exceeded; typically cookies or a policy that have grown beyond it, or a flood.
    Limit(&'static str),
    /// 101 without an Upgrade that was asked for.
    Unasked(&'static str),
}

impl ResponseError {
    /// The rule or limit that was broken, for the log. Never shown to the client.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Malformed(reason) | Self::Limit(reason) | Self::Unasked(reason) => reason,
        }
    }

    /// What the client is answered while nothing of the response has been sent to it: 502
    /// (RFC 9110 §15.6.3). Later its connection is cut.
    pub const fn status(self) -> Status {
        Status(502)
    }
}

impl fmt::Display for ResponseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "response of the backend: {}", self.reason())
    }
}

impl std::error::Error for ResponseError {}

/// The rules are those of requests; the blame is another.
impl From<Reject> for ResponseError {
    fn from(reject: Reject) -> Self {
        match reject.status.0 {
            414 | 431 => Self::Limit(reject.reason),
            _ if reject.reason.starts_with("limit: ") => Self::Limit(reject.reason),
            _ => Self::Malformed(reject.reason),
        }
    }
}

/// Reads the heads that answer one request, until the final one.
#[derive(Clone, Debug)]
pub struct ResponseReader {
    scanner: HeadScanner,
    asked: Asked,
    /// Interim responses so far; at most [`INTERIM_MAX`].
    interim: u8,
    ended: bool,
}

impl ResponseReader {
    /// A reader for the response to what was asked.
    pub fn new(asked: Asked) -> Self {
        Self {
            scanner: HeadScanner::for_response(),
            asked,
            interim: 0,
            ended: false,
        }
    }

    /// Looks for a head at `buffer[0]`. `buffer` holds all bytes of that head that have come so
    /// far: each call passes the same bytes as the last one and more, until a head is returned; the
    /// next call begins behind it.
    ///
    /// `limits` bound the status line by `line_max`. None: more bytes are needed.
    ///
    /// # Errors
    /// See [`ResponseError`]. After an error, and after a final head or a switch, the reader must
    /// not be asked again.
    pub fn head<'b>(
        &mut self,
        buffer: &'b [u8],
        limits: &HeadLimits,
    ) -> Result<Option<Received<'b>>, ResponseError> {
        debug_assert!(!self.ended, "nothing follows the final head");
        let Some(length) = self.scanner.scan(buffer, limits)? else {
            return Ok(None);
        };
        self.scanner = HeadScanner::for_response();
        let response = parse_response_head(&buffer[..length], limits, self.asked.head)?;
        let kind = match response.status.0 {
            101 => {
                self.check_switch(&response)?;
                HeadKind::Switch
            }
            100..200 => {
                self.interim += 1;
                if self.interim > INTERIM_MAX {
                    return Err(ResponseError::Limit("limit: interim responses"));
                }
                HeadKind::Interim
            }
            _ => HeadKind::Final,
        };
        self.ended = kind != HeadKind::Interim;
        Ok(Some(Received {
            length,
            kind,
            response,
        }))
    }

    /// A switch is believed only to a protocol that the request named, and only when the response
    /// names it too (RFC 9110 §7.8): anything else would make a tunnel of a connection that the
    /// client takes for HTTP.
    fn check_switch(&self, response: &BackendResponse<'_>) -> Result<(), ResponseError> {
        let Some(offered) = &self.asked.upgrade else {
            return Err(ResponseError::Unasked("101 without Upgrade asked for"));
        };
        if response.version == Version::Http10 {
            return Err(ResponseError::Malformed("101 in HTTP/1.0"));
        }
        let mut named = false;
        for value in response.fields.get_all("upgrade") {
            for protocol in list(value) {
                named = true;
                if !list(offered).any(|offer| offer.eq_ignore_ascii_case(protocol)) {
                    return Err(ResponseError::Unasked("101 to a protocol not asked for"));
                }
            }
        }
        if !named {
            return Err(ResponseError::Malformed("101 without Upgrade"));
        }
        Ok(())
    }
}

/// Parses `head`, exactly the bytes whose end [`HeadScanner::for_response`] has found.
/// `asked_head`: the request was HEAD.
///
/// # Errors
/// See [`ResponseError`].
pub fn parse_response_head<'b>(
    head: &'b [u8],
    limits: &HeadLimits,
    asked_head: bool,
) -> Result<BackendResponse<'b>, ResponseError> {
    debug_assert!(
        matches!(HeadScanner::for_response().scan(head, limits), Ok(Some(end)) if end == head.len()),
        "a head is scanned before it is parsed"
    );
    if limits.fields_max <= FIELDS_ON_STACK {
        parse_with_room::<FIELDS_ON_STACK>(head, limits.fields_max, asked_head)
    } else {
        parse_with_room::<FIELDS_CAP>(head, limits.fields_max.min(FIELDS_CAP), asked_head)
    }
}

#[inline(never)]
fn parse_with_room<const ROOM: usize>(
    head: &[u8],
    fields_max: usize,
    asked_head: bool,
) -> Result<BackendResponse<'_>, ResponseError> {
    let mut room = [const { MaybeUninit::uninit() }; ROOM];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let room = &mut room[..fields_max];
    match config.parse_response_with_uninit_headers(&mut parsed, head, room) {
        Ok(httparse::Status::Complete(end)) if end == head.len() => {}
        Ok(_) => {
            let reason = "head does not end where it was found to";
            return Err(ResponseError::Malformed(reason));
        }
        Err(error) => return Err(refuse_syntax(head, error)),
    }
    let (Some(code), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(ResponseError::Malformed("status line"));
    };
    let (status, version) = match (code, minor) {
        (100..=599, 0) => (Status(code), Version::Http10),
        (100..=599, _) => (Status(code), Version::Http11),
        _ => return Err(ResponseError::Malformed("status code out of range")),
    };
    let mut fields = Fields::default();
    let mut control = Control::default();
    for field in parsed.headers.iter() {
        control.note(field.name, field.value);
        fields.push(field.name, field.value);
    }
    let told = control.told(version)?;
    let body = Body::of(status, told, asked_head)?;
    Ok(BackendResponse {
        version,
        status,
        fields,
        framing: body.framing,
        length: match told {
            Told::Length(length) => Some(length),
            Told::Nothing | Told::Chunked => None,
        },
        keep_alive: body.keeps_connection && control.keep_alive(version),
    })
}

/// The body of a response, and what it means for the connection.
struct Body {
    framing: ResponseFraming,
    keeps_connection: bool,
}

impl Body {
    /// RFC 9112 §6.3, for a method other than CONNECT.
    fn of(status: Status, told: Told, asked_head: bool) -> Result<Self, ResponseError> {
        let has_content = !matches!(told, Told::Nothing | Told::Length(0));
        // A length belongs to an answer to HEAD and to 304 (it is that of 200). In 1xx and 204 it
        // may not stand (RFC 9110 §8.6, RFC 9112 §6.1).
        if status.0 < 200 && has_content {
            return Err(ResponseError::Malformed("interim response with a body"));
        }
        if asked_head || status.forbids_body() {
            return Ok(Self {
                framing: ResponseFraming::None,
                // Such a backend may well send that content too: the next response would be
                // looked for within it.
                keeps_connection: status.0 != 204 || !has_content,
            });
        }
        let framing = match told {
            Told::Length(length) => ResponseFraming::Length(length),
            Told::Chunked => ResponseFraming::Chunked,
            Told::Nothing => ResponseFraming::Close,
        };
        Ok(Self {
            framing,
            keeps_connection: framing != ResponseFraming::Close,
        })
    }
}

/// Names the rule that httparse found broken.
#[cold]
fn refuse_syntax(head: &[u8], error: httparse::Error) -> ResponseError {
    use httparse::Error;
    match error {
        Error::TooManyHeaders => ResponseError::Limit("limit: number of fields"),
        Error::HeaderName => ResponseError::Malformed(broken_name(head)),
        Error::HeaderValue => ResponseError::Malformed("control character in field value"),
        Error::Version | Error::Token | Error::NewLine | Error::Status => {
            ResponseError::Malformed("status line")
        }
    }
}

#[cfg(test)]
mod tests;
