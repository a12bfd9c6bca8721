//! Which fields end at a proxy, which nobody may take away, and the operations of the configuration.

use std::fmt;

use smallvec::SmallVec;

use super::role::Role;
use crate::http::h1::{Reject, is_token, list};
use crate::http::types::{FieldName, FieldValue, Version};

/// Most fields that Connection may name. Each is looked for among all fields, so a long list would
/// be work for nothing; browsers and backends name one.
pub const CONNECTION_OPTIONS_MAX: usize = 32;

/// A change to the fields of a message, as a configuration asks for it.
///
/// Operations act in their order: one sees what those before it have done. They act on the fields
/// that the proxy writes by itself too (X-Forwarded-For, say), save those it can't do without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldOp {
    change: Change,
    name: FieldName,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Set(FieldValue),
    Append(FieldValue),
    Remove,
}

/// Why an operation can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldOpError {
    /// The name is not a token (RFC 9110 §5.1); typically a colon or a space in it.
    Name,
    /// The value has a control character, most often a line end.
    Value,
    /// The field frames the message or is about the connection: the proxy alone writes it. Host has
    /// a key of its own.
    Owned,
}

impl fmt::Display for FieldOpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "a field name is made of letters, digits and `-`, without a colon",
            Self::Value => "a field value can't have control characters such as line ends",
            Self::Owned => "the proxy writes this field itself: take the operation away",
        })
    }
}

impl std::error::Error for FieldOpError {}

impl FieldOp {
    /// Replaces all fields of that name by one. Whitespace at the ends of the value goes.
    ///
    /// # Errors
    /// See [`FieldOpError`].
    pub fn set(
        name: impl Into<FieldName>,
        value: impl Into<FieldValue>,
    ) -> Result<Self, FieldOpError> {
        Ok(Self {
            change: Change::Set(checked_value(value.into())?),
            name: checked_name(name.into())?,
        })
    }

    /// Adds a field line behind those that are there.
    ///
    /// # Errors
    /// See [`FieldOpError`].
    pub fn append(
        name: impl Into<FieldName>,
        value: impl Into<FieldValue>,
    ) -> Result<Self, FieldOpError> {
        Ok(Self {
            change: Change::Append(checked_value(value.into())?),
            name: checked_name(name.into())?,
        })
    }

    /// Removes all fields of that name.
    ///
    /// # Errors
    /// See [`FieldOpError`].
    pub fn remove(name: impl Into<FieldName>) -> Result<Self, FieldOpError> {
        Ok(Self {
            change: Change::Remove,
            name: checked_name(name.into())?,
        })
    }

    fn is_named(&self, name: &str) -> bool {
        self.name.as_str().eq_ignore_ascii_case(name)
    }
}

/// Whether the proxy removes a field of that name, or writes it anew, whatever is configured, so that no
/// configuration may have it say something else.
pub fn is_written_anew(name: &str) -> bool {
    Role::of(name) != Role::EndToEnd
}

/// Whether the operations leave no field of that name that was there before them.
pub(super) fn replaces(operations: &[FieldOp], name: &str) -> bool {
    operations
        .iter()
        .any(|op| !matches!(op.change, Change::Append(_)) && op.is_named(name))
}

/// Calls `field` for each field that the operations add and that no later one takes away.
pub(super) fn each_added(operations: &[FieldOp], mut field: impl FnMut(&FieldName, &FieldValue)) {
    for (index, op) in operations.iter().enumerate() {
        if let Change::Set(value) | Change::Append(value) = &op.change
            && !replaces(&operations[index + 1..], op.name.as_str())
        {
            field(&op.name, value);
        }
    }
}

fn checked_name(name: FieldName) -> Result<FieldName, FieldOpError> {
    if !is_token(name.as_str().as_bytes()) {
        return Err(FieldOpError::Name);
    }
    if Role::of(name.as_str()).is_owned() {
        return Err(FieldOpError::Owned);
    }
    Ok(name)
}

fn checked_value(value: FieldValue) -> Result<FieldValue, FieldOpError> {
    let bytes = value.as_bytes();
    if bytes.iter().any(|&byte| is_control(byte)) {
        return Err(FieldOpError::Value);
    }
    let trimmed = bytes.trim_ascii();
    Ok(match trimmed.len() == bytes.len() {
        true => value,
        false => FieldValue::Owned(trimmed.into()),
    })
}

/// Whether a byte can't stand in a field value (RFC 9110 §5.5).
fn is_control(byte: u8) -> bool {
    byte == 0x7f || (byte < b' ' && byte != b'\t')
}

/// Appends one field line, of a message that was parsed, of an operation, or of ours: a token and a
/// value that stays one line, which is asserted and not looked for again.
pub(super) fn write_line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    debug_assert!(
        is_token(name.as_bytes()) && memchr::memchr3(b'\r', b'\n', 0, value).is_none(),
        "field {name:?} would split the head"
    );
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// What Connection says, beside `close` and `keep-alive`.
#[derive(Debug, Default)]
pub(super) struct ConnectionOptions<'b> {
    /// Fields that it names and that may be named.
    names: SmallVec<[&'b [u8]; 4]>,
    /// Whether it names `upgrade`.
    pub(super) upgrade: bool,
}

impl<'b> ConnectionOptions<'b> {
    /// Reads the value of a Connection field.
    ///
    /// # Errors
    /// 400 when more than [`CONNECTION_OPTIONS_MAX`] fields are named by all of them.
    pub(super) fn read(&mut self, value: &'b [u8]) -> Result<(), Reject> {
        // Most often that is all there is.
        if value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close") {
            return Ok(());
        }
        list(value).try_for_each(|option| self.note(option))
    }

    fn note(&mut self, option: &'b [u8]) -> Result<(), Reject> {
        if option.eq_ignore_ascii_case(b"close") || option.eq_ignore_ascii_case(b"keep-alive") {
            return Ok(());
        }
        if option.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade = true;
            return Ok(());
        }
        let name = match str::from_utf8(option) {
            Ok(name) if is_token(option) => name,
            _ => return Ok(()),
        };
        if is_protected(name) {
            return Ok(());
        }
        if self.names.len() == CONNECTION_OPTIONS_MAX {
            return Err(Reject::bad("limit: fields named in Connection"));
        }
        self.names.push(option);
        Ok(())
    }

    /// Whether Connection makes a field of that name one of this connection alone.
    pub(super) fn names(&self, name: &str) -> bool {
        let name = name.as_bytes();
        self.names.iter().any(|n| n.eq_ignore_ascii_case(name))
    }
}

/// Whether Connection can't take a field away: one that says for whom the message is, what it is,
/// who sends it, or what the recipient may do with it. A client that could name them would make us
/// remove what the next hop relies on (RFC 9110 §7.6.1: options never name end-to-end fields).
fn is_protected(name: &str) -> bool {
    const PROTECTED: &[&str] = &[
        "accept-encoding",
        "accept-ranges",
        "age",
        "authorization",
        "cache-control",
        "content-encoding",
        "content-length",
        "content-location",
        "content-range",
        "content-security-policy",
        "content-type",
        "cookie",
        "date",
        "etag",
        "expect",
        "expires",
        "host",
        "last-modified",
        "location",
        "origin",
        "permissions-policy",
        "pragma",
        "range",
        "referer",
        "referrer-policy",
        "set-cookie",
        "strict-transport-security",
        "transfer-encoding",
        "user-agent",
        "vary",
        "via",
        "www-authenticate",
        "x-content-type-options",
        "x-frame-options",
        "x-request-id",
    ];
    let begins = |prefix: &[u8]| {
        let start = name.as_bytes().get(..prefix.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    Role::of(name).is_about_client()
        || begins(b"access-control-")
        || begins(b"if-")
        || begins(b"sec-")
        || PROTECTED.iter().any(|p| p.eq_ignore_ascii_case(name))
}

/// The value of Via for a message that was received in this version.
pub(super) fn via(version: Version) -> &'static [u8] {
    match version {
        Version::Http10 => b"1.0 beltway",
        Version::Http11 => b"1.1 beltway",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn connection(values: &[&'static str]) -> Result<ConnectionOptions<'static>, Reject> {
        let mut options = ConnectionOptions::default();
        for value in values {
            options.read(value.as_bytes())?;
        }
        Ok(options)
    }

    #[test]
    fn via_names_us() {
        for version in [Version::Http10, Version::Http11] {
            let value = str::from_utf8(via(version)).expect("ASCII");
            assert!(value.ends_with(crate::http::semantics::forwarding::PSEUDONYM));
        }
    }

    #[test]
    fn operations_act_in_order() {
        let operations = [
            FieldOp::append("A", "1").expect("valid"),
            FieldOp::set("a", "2").expect("valid"),
            FieldOp::append("A", "3").expect("valid"),
            FieldOp::set("B", " 4\t").expect("valid"),
            FieldOp::remove("b").expect("valid"),
            FieldOp::append("C", "5").expect("valid"),
        ];
        let mut added = Vec::new();
        each_added(&operations, |name, value| {
            added.push(format!(
                "{}={}",
                name.as_str(),
                value.as_bytes().escape_ascii()
            ));
        });
        assert_eq!(added, ["a=2", "A=3", "C=5"]);
        assert!(replaces(&operations, "A") && replaces(&operations, "b"));
        assert!(!replaces(&operations, "C"), "appending keeps what is there");
    }

    #[test]
    fn operations_that_would_break_a_message_can_not_be_made() {
        for value in ["a\r\nB: c", "a\n", "\r", "\0", "\x1b[0m", "\x7f"] {
            let set = FieldOp::set("A", value.to_owned());
            assert_eq!(set, Err(FieldOpError::Value), "{value:?}");
        }
        for name in ["", "a b", "a:", "a\r\n", "\u{e9}"] {
            let name: FieldName = Arc::<str>::from(name).into();
            assert_eq!(FieldOp::remove(name), Err(FieldOpError::Name));
        }
        for name in [
            "Host",
            "connection",
            "Content-Length",
            "Transfer-Encoding",
            "Upgrade",
            "TE",
            "Via",
            "Expect",
            "Trailer",
            "Keep-Alive",
            "Proxy",
        ] {
            assert_eq!(
                FieldOp::append(name, "a"),
                Err(FieldOpError::Owned),
                "{name}"
            );
        }
        let latin: Arc<[u8]> = Arc::from(&b"caf\xe9\tau lait"[..]);
        assert!(FieldOp::set("X_Y", latin).is_ok());
    }

    #[test]
    fn connection_names_what_may_be_named() {
        let options = connection(&[
            "close, X-Secret , Host,,te",
            "UPGRADE, cookie, a b, X-Forwarded-For",
        ])
        .expect("few");
        assert!(options.upgrade);
        assert!(options.names("x-secret"));
        for name in ["Host", "Cookie", "X-Forwarded-For", "a b", "close", ""] {
            assert!(!options.names(name), "{name}");
        }
    }

    #[test]
    fn the_fields_that_connection_names_are_bounded() {
        let names = |count: usize| -> &'static str { "x,".repeat(count).leak() };
        assert!(connection(&[names(CONNECTION_OPTIONS_MAX)]).is_ok());
        let over = connection(&[names(CONNECTION_OPTIONS_MAX + 1)]);
        assert_eq!(
            over.err(),
            Some(Reject::bad("limit: fields named in Connection"))
        );
        let harmless: &'static str = "close,".repeat(1000).leak();
        assert!(connection(&[harmless]).is_ok());
    }
}
