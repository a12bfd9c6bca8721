//! Writes the head of a request towards a backend.
//!
//! What arrives is exactly one request that means what the client's request meant: every field that
//! frames it is written here from what was parsed, never copied, so that the backend can't find
//! another end than we did (RFC 9112 §11.2).

use std::net::IpAddr;

use super::FieldOp;
use super::fields::{ConnectionOptions, each_added, replaces, via, write_line};
use super::forwarded::{Hops, authority};
use super::role::{Role, Roles};
use super::spelling::{rewritten_path, spelled_path, strip_segments, write_query};
use crate::http::h1::encode::write_decimal;
use crate::http::h1::response::Asked;
use crate::http::h1::{Reject, is_token, list};
use crate::http::types::{Framing, Method, Request, TargetForm, Version};

/// The request target that the backend gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// The canonical path and the query of the request. `OPTIONS *` stays that.
    Received,
    /// The same without this canonical prefix of whole segments (`/api` makes `/api/a` into `/a`);
    /// a path that doesn't begin with it stays.
    Stripped(&'a str),
    /// Another path, not percent-encoded, and a query, percent-encoded.
    Rewritten {
        /// Begins with `/`.
        path: &'a str,
        /// Without its `?`.
        query: Option<&'a str>,
    },
}

/// The Host field that the backend gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostField<'a> {
    /// That of the request. The text is for a request without one (HTTP/1.0): the authority of the
    /// backend.
    Keep(&'a str),
    /// This one, `host[:port]`.
    Set(&'a str),
}

/// What the proxy knows of a request beside the request.
#[derive(Clone, Copy, Debug)]
pub struct RequestContext<'a> {
    /// What to ask for.
    pub target: Target<'a>,
    /// Whom to ask.
    pub host: HostField<'a>,
    /// How the body is sent: that of the request, or the length of one that was buffered.
    pub framing: Framing,
    /// Whether the backend is asked for `100 Continue` when the client asks for it. If not, the
    /// proxy answers the client itself.
    pub expect: bool,
    /// Whether the connection may become a tunnel when the client asks for it.
    pub upgrade: bool,
    /// Whether the connection to the backend is to be used again.
    pub keep_alive: bool,
    /// The address of the peer that sent the request; None for one of a unix socket.
    pub peer: Option<IpAddr>,
    /// Whether the peer's word about its own clients is believed.
    pub peer_trusted: bool,
    /// The scheme of our listener, `http` or `https`.
    pub scheme: &'static str,
    /// What the client's certificate says, before all other changes: each sets a field, or removes it.
    pub client: &'a [FieldOp],
    /// Changes to the fields.
    pub operations: &'a [FieldOp],
}

/// Appends the head of the request for the backend to `out`. Returns what the reader of the response
/// has to know. The version is always HTTP/1.1.
///
/// Removed: fields about the client's connection and those that Connection names, save protected
/// ones; `Proxy`, credentials for proxies and names with an underscore (many backends take
/// `Content_Length` for another field); what an unbelieved peer says in X-Forwarded-*, X-Real-IP
/// and Forwarded; Upgrade to HTTP/2 or TLS, which would carry requests past every rule.
/// Written: Host, the framing, Via, X-Forwarded-For, -Proto and -Host, Forwarded; `TE: trailers`
/// where the client takes trailers; Upgrade where it is allowed and the request has no body.
///
/// # Errors
/// 405 for CONNECT and TRACE, 400 for too many names in Connection, 500 for a Host or a rewritten
/// path that can't be sent. Nothing is left in `out` then.
pub fn write_request_head(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    context: &RequestContext<'_>,
) -> Result<Asked, Reject> {
    let start = out.len();
    let asked = write_head(out, request, context);
    if asked.is_err() {
        out.truncate(start);
    }
    asked
}

fn write_head(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    context: &RequestContext<'_>,
) -> Result<Asked, Reject> {
    let seen = Seen::of(request)?;
    out.reserve(request.target.len() + seen.bytes + HEAD_ROOM);

    let authority = authority(request);
    write_request_line(out, request, context.target)?;
    write_host(out, request, context.host, &authority)?;
    for ((name, value), &role) in request.fields.iter().zip(&seen.roles) {
        if is_passed(name, role, &seen.options, context) {
            write_line(out, name, value);
        }
    }
    each_added(context.client, |name, value| {
        if !replaces(context.operations, name.as_str()) {
            write_line(out, name.as_str(), value.as_bytes());
        }
    });
    each_added(context.operations, |name, value| {
        write_line(out, name.as_str(), value.as_bytes());
    });
    let upgrade = match context.upgrade && context.framing == Framing::None && seen.options.upgrade
    {
        true => offered_upgrade(request),
        false => None,
    };
    write_connection(out, &seen, context, upgrade.as_deref());
    write_framing(out, request, &seen, context);
    write_hops(out, request, context, &authority);
    out.extend_from_slice(b"\r\n");
    Ok(Asked {
        upgrade,
        ..Asked::method(request.method)
    })
}

/// What one walk over the fields of a request has found.
struct Seen<'b> {
    roles: Roles,
    options: ConnectionOptions<'b>,
    /// The client takes trailers.
    trailers: bool,
    has_length: bool,
    /// What all field lines need at most.
    bytes: usize,
}

impl<'b> Seen<'b> {
    fn of(request: &Request<'b>) -> Result<Self, Reject> {
        let mut seen = Self {
            roles: Roles::new(),
            options: ConnectionOptions::default(),
            trailers: false,
            has_length: false,
            bytes: 0,
        };
        for (name, value) in request.fields.iter() {
            let role = Role::of(name);
            match role {
                Role::Connection => seen.options.read(value)?,
                // A client of HTTP/1.0 can't be sent trailers, whatever it says.
                Role::Te if request.version == Version::Http11 => {
                    let named = |coding: &[u8]| coding.eq_ignore_ascii_case(b"trailers");
                    seen.trailers |= list(value).any(named);
                }
                Role::ContentLength => seen.has_length = true,
                _ => {}
            }
            seen.roles.push(role);
            seen.bytes += name.len() + value.len() + 4;
        }
        Ok(seen)
    }
}

/// Room for what is written beside the fields of the client: the addresses, Via, the framing.
const HEAD_ROOM: usize = 384;

fn write_request_line(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    target: Target<'_>,
) -> Result<(), Reject> {
    if matches!(request.method, Method::Connect | Method::Trace) {
        return Err(Reject::new(405, "method is not passed to a backend"));
    }
    let method = request.method.as_str().as_bytes();
    debug_assert!(is_token(method), "the parser takes nothing else");
    out.extend_from_slice(method);
    out.push(b' ');
    match target {
        _ if request.form == TargetForm::Asterisk => out.push(b'*'),
        Target::Rewritten { path, query } => {
            let path = rewritten_path(path)
                .map_err(|_| Reject::new(500, "rewritten path has no canonical form"))?;
            out.extend_from_slice(path.as_bytes());
            write_optional_query(out, query);
        }
        Target::Received | Target::Stripped(_) => {
            let path = spelled_path(request);
            let path = match target {
                Target::Stripped(prefix) if is_prefix(&request.path, prefix) => {
                    strip_segments(&path, prefix)
                }
                _ => &path,
            };
            out.extend_from_slice(path.as_bytes());
            write_optional_query(out, request.query);
        }
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    Ok(())
}

fn write_optional_query(out: &mut Vec<u8>, query: Option<&str>) {
    if let Some(query) = query {
        write_query(out, query);
    }
}

/// Whether whole segments of a canonical path are this prefix.
fn is_prefix(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    let rest = path.strip_prefix(prefix);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Host comes first (RFC 9112 §3.2). `authority` is that of the request.
fn write_host(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    host: HostField<'_>,
    authority: &str,
) -> Result<(), Reject> {
    let host = match host {
        HostField::Set(host) => host,
        HostField::Keep(backend) if request.host.is_empty() => backend,
        // The parser has checked it.
        HostField::Keep(_) => {
            write_line(out, "Host", authority.as_bytes());
            return Ok(());
        }
    };
    if crate::http::uri::parse_authority(host.as_bytes()).is_err() {
        return Err(Reject::new(500, "Host for the backend is not host[:port]"));
    }
    write_line(out, "Host", host.as_bytes());
    Ok(())
}

/// Whether a field of the client goes on to the backend as it is.
fn is_passed(
    name: &str,
    role: Role,
    options: &ConnectionOptions<'_>,
    context: &RequestContext<'_>,
) -> bool {
    let ours = match role {
        Role::EndToEnd | Role::Via => !name.as_bytes().contains(&b'_') && !options.names(name),
        // Trailers pass where the body is chunked (RFC 9110 §6.6.2).
        Role::Trailer => context.framing == Framing::Chunked,
        // Names with an underscore among them, which many backends take for another field.
        Role::AboutClient => {
            context.peer_trusted && !name.as_bytes().contains(&b'_') && !options.names(name)
        }
        Role::Connection
        | Role::Te
        | Role::Upgrade
        | Role::ContentLength
        | Role::OfConnection
        | Role::Host
        | Role::Expect
        | Role::Hop => false,
    };
    ours && !replaces(context.client, name) && !replaces(context.operations, name)
}

/// The protocols of the request's Upgrade that may be asked for; None when there are none, or the
/// request is of HTTP/1.0, which has no upgrade (RFC 9110 §7.8).
///
/// Not HTTP/2 and not TLS: what is spoken behind such an upgrade are requests again, and nobody
/// would see them.
pub fn offered_upgrade(request: &Request<'_>) -> Option<Box<[u8]>> {
    if request.version == Version::Http10 {
        return None;
    }
    let mut offered = Vec::new();
    for value in request.fields.get_all("upgrade") {
        for protocol in list(value) {
            let mut parts = protocol.splitn(2, |&byte| byte == b'/');
            let name = parts.next().unwrap_or_default();
            let refused = ["h2", "h2c", "http", "tls"]
                .iter()
                .any(|other| name.eq_ignore_ascii_case(other.as_bytes()));
            if is_token(name) && parts.next().is_none_or(is_token) && !refused {
                if !offered.is_empty() {
                    offered.extend_from_slice(b", ");
                }
                offered.extend_from_slice(protocol);
            }
        }
    }
    (!offered.is_empty()).then(|| offered.into())
}

/// Appends Connection, and the fields that it names.
fn write_connection(
    out: &mut Vec<u8>,
    seen: &Seen<'_>,
    context: &RequestContext<'_>,
    upgrade: Option<&[u8]>,
) {
    if let Some(upgrade) = upgrade {
        write_line(out, "Upgrade", upgrade);
    }
    if seen.trailers {
        write_line(out, "TE", b"trailers");
    }
    let value: &[u8] = match (upgrade.is_some(), seen.trailers, context.keep_alive) {
        (true, true, _) => b"upgrade, TE",
        (true, false, _) => b"upgrade",
        (false, true, true) => b"TE",
        (false, true, false) => b"close, TE",
        (false, false, false) => b"close",
        (false, false, true) => return,
    };
    write_line(out, "Connection", value);
}

/// Appends Content-Length or Transfer-Encoding, and Expect.
fn write_framing(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    seen: &Seen<'_>,
    context: &RequestContext<'_>,
) {
    match context.framing {
        Framing::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            write_decimal(out, length);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => write_line(out, "Transfer-Encoding", b"chunked"),
        // A method that usually has content says that it has none (RFC 9110 §8.6).
        Framing::None => {
            let usual = matches!(request.method, Method::Post | Method::Put | Method::Patch);
            if usual || seen.has_length {
                write_line(out, "Content-Length", b"0");
            }
        }
    }
    if context.expect && request.expects_continue && context.framing != Framing::None {
        write_line(out, "Expect", b"100-continue");
    }
}

/// Appends what tells of the way the request has come.
fn write_hops(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    context: &RequestContext<'_>,
    authority: &str,
) {
    write_line(out, "Via", via(request.version));
    let hops = Hops::of(
        &request.fields,
        (context.peer, context.peer_trusted),
        (context.scheme, authority),
    );
    let operations = context.operations;
    write_made(out, operations, "X-Forwarded-For", |out| {
        hops.write_forwarded_for(out);
    });
    write_made(out, operations, "X-Forwarded-Proto", |out| {
        out.extend_from_slice(hops.forwarded_proto());
    });
    write_made(out, operations, "X-Forwarded-Host", |out| {
        out.extend_from_slice(hops.forwarded_host());
    });
    write_made(out, operations, "Forwarded", |out| {
        hops.write_forwarded(out);
    });
}

/// Appends a field of ours whose value `make` appends, unless there is none, or an operation stands in
/// its place.
fn write_made(
    out: &mut Vec<u8>,
    operations: &[FieldOp],
    name: &'static str,
    make: impl FnOnce(&mut Vec<u8>),
) {
    if replaces(operations, name) {
        return;
    }
    let start = out.len();
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    let value = out.len();
    make(out);
    debug_assert!(
        memchr::memchr3(b'\r', b'\n', 0, &out[value..]).is_none(),
        "field {name:?} would split the head"
    );
    match out.len() > value {
        true => out.extend_from_slice(b"\r\n"),
        false => out.truncate(start),
    }
}

#[cfg(test)]
mod tests;
