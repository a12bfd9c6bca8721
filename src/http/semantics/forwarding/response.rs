//! What of a backend's response goes on to the client, and how its body is framed for the client.

use super::FieldOp;
use super::fields::{ConnectionOptions, each_added, replaces, via};
use super::role::{Role, Roles};
use crate::http::h1::encode::{FieldLines, HeadContext, HeadWriter, ResponseFraming};
use crate::http::h1::response::{BackendResponse, ResponseError};
use crate::http::types::{ResponseHead, Status, Version};

/// How the client finds the end of the body, in the version that it speaks: a length where the
/// backend told one, else chunks or the close. `asked_head`: the client asked by HEAD.
///
/// A body that is cut short must be shown so: by closing before the length or the last chunk.
pub fn client_framing(
    response: &BackendResponse<'_>,
    version: Version,
    asked_head: bool,
) -> ResponseFraming {
    ResponseFraming::choose(version, response.status, asked_head, response.length)
}

/// Whether an interim response goes on to the client (RFC 9110 §15.2): never to HTTP/1.0, which
/// would take it for the final one, and 100 only to a client that waits for it; it may have been
/// our own wish, or the backend's habit.
pub fn passes_interim(status: Status, version: Version, expects_continue: bool) -> bool {
    match status.0 {
        100 => version == Version::Http11 && expects_continue,
        101 => false,
        102..200 => version == Version::Http11,
        _ => false,
    }
}

/// The head for the client, without an allocation for each field. Removed: fields about the backend's connection, those that Connection
/// names (save protected ones), what is for a proxy, and the framing, which the session writes.
/// Via is added to what isn't interim, then the operations act.
///
/// `framing` is that of [`client_framing`]: Trailer passes only where trailers do, in chunks. For 101
/// Upgrade passes, and the session says `Connection: upgrade`.
///
/// # Errors
/// When Connection names more than
/// [`CONNECTION_OPTIONS_MAX`](super::CONNECTION_OPTIONS_MAX) fields.
pub fn response_head(
    response: &BackendResponse<'_>,
    framing: ResponseFraming,
    operations: &[FieldOp],
) -> Result<ResponseHead, ResponseError> {
    let mut head = ResponseHead::new(response.status.0);
    let room = response.fields.iter().map(|(n, v)| n.len() + v.len() + 4);
    let mut lines = FieldLines::with_room(room.sum::<usize>() + VIA_ROOM);
    let mut pass = |name: &str, value: &[u8]| lines.push(name, value);
    each_passed(response, framing, operations, &mut pass)?;
    head.passed = lines;
    if response.status.0 >= 200 {
        each_added(operations, |name, value| {
            head.push(name.clone(), value.clone())
        });
    }
    Ok(head)
}

/// Appends the head for the client to `out`, as [`response_head`] and
/// [`write_head`](crate::http::h1::encode::write_head) together would, without an allocation for
/// each field. Returns whether the client's connection may stay open.
///
/// # Errors
/// As [`response_head`]; nothing is left in `out` then.
pub fn write_response_head(
    out: &mut Vec<u8>,
    response: &BackendResponse<'_>,
    context: &HeadContext<'_>,
    operations: &[FieldOp],
) -> Result<bool, ResponseError> {
    let start = out.len();
    let mut writer = HeadWriter::new(out, response.status);
    let mut pass = |name: &str, value: &[u8]| writer.field(name, value);
    if let Err(error) = each_passed(response, context.framing, operations, &mut pass) {
        out.truncate(start);
        return Err(error);
    }
    if response.status.0 >= 200 {
        each_added(operations, |name, value| {
            writer.field(name.as_str(), value.as_bytes());
        });
    }
    Ok(writer.finish(context))
}

/// Calls `pass` for each field of the backend that goes on, and for Via.
fn each_passed(
    response: &BackendResponse<'_>,
    framing: ResponseFraming,
    operations: &[FieldOp],
    pass: &mut impl FnMut(&str, &[u8]),
) -> Result<(), ResponseError> {
    let mut options = ConnectionOptions::default();
    let mut roles = Roles::new();
    for (name, value) in response.fields.iter() {
        let role = Role::of(name);
        if role == Role::Connection {
            options.read(value)?;
        }
        roles.push(role);
    }
    // The operations are for the response that the client asked for, not for what announces it.
    let interim = response.status.0 < 200;
    let operations = if interim { &[] } else { operations };
    for ((name, value), role) in response.fields.iter().zip(roles) {
        let ours = match role {
            Role::Trailer => framing == ResponseFraming::Chunked,
            Role::Upgrade => response.status.0 == 101,
            role => !role.is_hop_by_hop(),
        };
        if ours && !options.names(name) && !replaces(operations, name) {
            pass(name, value);
        }
    }
    if !interim {
        pass("Via", via(response.version));
    }
    Ok(())
}

/// Room for the line of Via.
const VIA_ROOM: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::HeadLimits;
    use crate::http::h1::encode::{DateCache, write_head};
    use crate::http::h1::response::{Asked, ResponseReader};
    use crate::http::types::Method;

    /// The head that a client of `version` gets for a GET, by both ways of writing it.
    fn passed(text: &str, version: Version, operations: &[FieldOp]) -> String {
        let asked = Asked {
            head: false,
            upgrade: Some(Box::from(&b"websocket"[..])),
        };
        let mut reader = ResponseReader::new(asked);
        let received = reader.head(text.as_bytes(), &HeadLimits::default());
        let response = received.expect("valid").expect("whole").response;
        let mut date = DateCache::new(0);
        let context = HeadContext {
            version,
            keep_alive: true,
            framing: client_framing(&response, version, false),
            date: date.at(0),
        };
        let head = response_head(&response, context.framing, operations).expect("valid");
        let (mut kept, mut direct) = (Vec::new(), Vec::new());
        let stays = write_head(&mut kept, &head, &context);
        let found = write_response_head(&mut direct, &response, &context, operations);
        assert_eq!(found, Ok(stays));
        assert_eq!(
            kept.escape_ascii().to_string(),
            direct.escape_ascii().to_string()
        );
        String::from_utf8(kept).expect("ASCII")
    }

    #[test]
    fn fields_of_the_connection_end_here() {
        let text = "HTTP/1.1 200 Fine\r\nServer: app\r\nDate: today\r\nConnection: X-Inner, keep-alive, Set-Cookie\r\n\
                    X-Inner: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: a\r\nUpgrade: h2c\r\nTE: x\r\n\
                    Trailer: X-Sum\r\nProxy-Authenticate: Basic\r\nTransfer-Encoding: chunked\r\n\
                    Set-Cookie: a=b\r\nSet-Cookie: c=d\r\nX_Y: z\r\n\r\n";
        assert_eq!(
            passed(text, Version::Http11, &[]),
            "HTTP/1.1 200 OK\r\nServer: app\r\nDate: today\r\nTrailer: X-Sum\r\n\
             Set-Cookie: a=b\r\nSet-Cookie: c=d\r\nX_Y: z\r\nVia: 1.1 beltway\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        );
        let old = passed(text, Version::Http10, &[]);
        assert!(
            old.ends_with("Via: 1.1 beltway\r\nConnection: close\r\n\r\n"),
            "{old}"
        );
        assert!(!old.contains("Trailer"), "no chunks, no trailers");
    }

    #[test]
    fn operations_change_what_the_client_gets() {
        let operations = [
            FieldOp::set("Server", "ours").expect("valid"),
            FieldOp::remove("x-powered-by").expect("valid"),
            FieldOp::append("Vary", "Origin").expect("valid"),
        ];
        let text = "HTTP/1.0 404 x\r\nServer: app\r\nDate: d\r\nX-Powered-By: a\r\nVary: b\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(
            passed(text, Version::Http11, &operations),
            "HTTP/1.1 404 Not Found\r\nDate: d\r\nVary: b\r\nVia: 1.0 beltway\r\nServer: ours\r\n\
             Vary: Origin\r\nContent-Length: 3\r\n\r\n"
        );
        let hints = "HTTP/1.1 103 x\r\nLink: </a>\r\nServer: app\r\nConnection: close\r\n\r\n";
        assert_eq!(
            passed(hints, Version::Http11, &operations),
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nServer: app\r\n\r\n"
        );
    }

    #[test]
    fn a_switch_names_its_protocol() {
        let text = "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\n";
        assert_eq!(
            passed(text, Version::Http11, &[]),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\
             Connection: upgrade\r\n\r\n"
        );
    }

    #[test]
    fn heads_of_head_tell_the_length_of_get() {
        let text = b"HTTP/1.1 200 x\r\nContent-Length: 70\r\n\r\n";
        let mut reader = ResponseReader::new(Asked::method(Method::Head));
        let received = reader.head(text, &HeadLimits::default());
        let response = received.expect("valid").expect("whole").response;
        let framing = client_framing(&response, Version::Http11, true);
        assert_eq!(framing, ResponseFraming::Length(70));
    }

    #[test]
    fn interim_responses_pass_to_those_who_understand_them() {
        use Version::{Http10, Http11};
        for (status, version, expects, passes) in [
            (100, Http11, true, true),
            (100, Http11, false, false),
            (100, Http10, true, false),
            (103, Http11, false, true),
            (103, Http10, false, false),
            (102, Http11, false, true),
            (101, Http11, true, false),
            (200, Http11, true, false),
        ] {
            let found = passes_interim(Status(status), version, expects);
            assert_eq!(found, passes, "{status} {version:?} {expects}");
        }
    }

    #[test]
    fn a_flood_of_connection_options_is_refused_and_leaves_nothing() {
        let text = format!("HTTP/1.1 200 x\r\nConnection: {}\r\n\r\n", "x,".repeat(40));
        let mut reader = ResponseReader::new(Asked::default());
        let received = reader.head(text.as_bytes(), &HeadLimits::default());
        let response = received.expect("valid").expect("whole").response;
        let error = ResponseError::Limit("limit: fields named in Connection");
        let head = response_head(&response, ResponseFraming::Close, &[]);
        assert_eq!(head.err(), Some(error));
        let (mut out, mut date) = (b"before".to_vec(), DateCache::new(0));
        let context = HeadContext {
            version: Version::Http11,
            keep_alive: true,
            framing: ResponseFraming::Close,
            date: date.at(0),
        };
        let written = write_response_head(&mut out, &response, &context, &[]);
        assert_eq!((written, &out[..]), (Err(error), &b"before"[..]));
    }
}
