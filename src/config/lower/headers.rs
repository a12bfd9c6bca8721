//! Fields of messages: `headers`, `request_headers`, `cache_control` and `cors`.

use std::sync::Arc;

use super::read::Reader;
use crate::config::diagnostics::{At, Diagnostic};
use crate::config::model::{Cors, HeaderOp};
use crate::config::raw::{Entry, Item, Table, Value};
use crate::config::schema::Section;
use crate::http::types::{FieldName, FieldValue};

/// Fields that frame a message or that the server itself keeps true. To set them by hand would
/// desynchronise connections, or be undone.
const PROTECTED: [&str; 9] = [
    "Connection",
    "Content-Length",
    "Date",
    "Keep-Alive",
    "Server",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
];

/// Fields of requests that frame a message or belong to a connection, and Host, which has a key.
const PROTECTED_IN_REQUESTS: [&str; 11] = [
    "Connection",
    "Content-Length",
    "Expect",
    "Host",
    "HTTP2-Settings",
    "Keep-Alive",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
];

impl Reader<'_> {
    /// The operations on responses of a site or a route: what it inherits, and its own over it.
    pub(super) fn headers(
        &mut self,
        table: &Table,
        section: Section,
        inherited: &Arc<[HeaderOp]>,
    ) -> Arc<[HeaderOp]> {
        self.fields((table, section, "headers"), inherited, &PROTECTED)
    }

    /// The operations on requests to backends, likewise.
    pub(super) fn request_headers(
        &mut self,
        table: &Table,
        section: Section,
        inherited: &Arc<[HeaderOp]>,
    ) -> Arc<[HeaderOp]> {
        let place = (table, section, "request_headers");
        self.fields(place, inherited, &PROTECTED_IN_REQUESTS)
    }

    fn fields(
        &mut self,
        (table, section, key): (&Table, Section, &str),
        inherited: &Arc<[HeaderOp]>,
        protected: &[&str],
    ) -> Arc<[HeaderOp]> {
        let Some(own) = self.table(table, section, key) else {
            return inherited.clone();
        };
        let mut merged: Vec<HeaderOp> = inherited.to_vec();
        let mut inherited_left = merged.len();
        let mut seen: Vec<&Entry> = Vec::new();
        for entry in &own.entries {
            if let Some(first) = seen
                .iter()
                .find(|other| other.key.eq_ignore_ascii_case(&entry.key))
            {
                let message = format!("the field `{}` is set twice", entry.key);
                self.diagnostics.push(
                    Diagnostic::new(entry.key_at, message, "again here")
                        .with(first.key_at, "first here")
                        .help("the case of a field name makes no difference; take one away"),
                );
                continue;
            }
            seen.push(entry);
            if let Some(operation) = self.header(entry, protected) {
                if !matches!(operation, HeaderOp::Append(..)) {
                    // It is about all fields of the name, also what was to be added.
                    let own_additions = merged.split_off(inherited_left);
                    merged.retain(|known| !name(known).eq_ignore_ascii_case(&entry.key));
                    inherited_left = merged.len();
                    merged.extend(own_additions);
                }
                merged.push(operation);
            }
        }
        // Stable: otherwise the order of the file.
        merged.sort_by_key(|operation| match operation {
            HeaderOp::Remove(_) => 0,
            HeaderOp::Set(..) => 1,
            HeaderOp::Append(..) => 2,
        });
        merged.into()
    }

    fn header(&mut self, entry: &Entry, protected: &[&str]) -> Option<HeaderOp> {
        let (field, adds) = match entry.key.strip_prefix('+') {
            Some(field) => (field, true),
            None => (entry.key.as_str(), false),
        };
        let Value::String(text) = &entry.item.value else {
            let message = format!("the field `{}` needs a string", entry.key);
            let label = format!("this is {}", entry.item.value.kind());
            self.diagnostics
                .push(Diagnostic::new(entry.item.at, message, label).help(format!(
                    "write it such as {} = \"value\"; \"\" removes it",
                    entry.key
                )));
            return None;
        };
        if !is_token(field) {
            let message = format!("`{}` is not a field name", entry.key);
            self.diagnostics.push(
                Diagnostic::new(entry.key_at, message, "")
                    .help("write a name such as X-Frame-Options, without a colon"),
            );
            return None;
        }
        if let Some(field) = protected
            .iter()
            .find(|known| known.eq_ignore_ascii_case(field))
        {
            let help = match *field {
                "Host" => "write upstream_host = \"NAME\" instead",
                _ => "the server sets it itself; take this line away",
            };
            self.diagnostics.push(
                Diagnostic::new(
                    entry.key_at,
                    format!("the field `{field}` can't be changed"),
                    "",
                )
                .help(help),
            );
            return None;
        }
        let field = FieldName::Shared(field.into());
        if text.is_empty() && !adds {
            return Some(HeaderOp::Remove(field));
        }
        let value = self.filled(entry.item.at, text)?;
        let value = self.secret_of(&entry.item, value)?;
        let value = self.field_value(entry.item.at, &value)?;
        Some(if adds {
            HeaderOp::Append(field, value)
        } else {
            HeaderOp::Set(field, value)
        })
    }

    /// The value of a field, checked for what would end it or begin another one (RFC 9110 §5.5).
    pub(super) fn field_value(&mut self, at: At, text: &str) -> Option<FieldValue> {
        let text = text.trim_matches([' ', '\t']);
        if text.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
            self.diagnostics.push(
                Diagnostic::new(at, "the value of a field has a control character", "")
                    .help("write it in one line"),
            );
            return None;
        }
        Some(FieldValue::Shared(text.as_bytes().into()))
    }

    /// `cache_control` of a site or a route.
    pub(super) fn cache_control(
        &mut self,
        table: &Table,
        section: Section,
        inherited: Option<&FieldValue>,
    ) -> Option<FieldValue> {
        let Some(entry) = table.get("cache_control") else {
            return inherited.cloned();
        };
        let text = self.string_of(section, entry, &entry.item)?;
        if text.is_empty() {
            return None;
        }
        self.field_value(entry.item.at, &text)
    }

    /// `cors` of a site or a route.
    pub(super) fn cors(
        &mut self,
        table: &Table,
        section: Section,
        inherited: Option<&Cors>,
    ) -> Option<Cors> {
        let Some(entry) = table.get("cors") else {
            return inherited.cloned();
        };
        match &entry.item.value {
            Value::Boolean(true) => Some(Cors::Any),
            Value::Boolean(false) => None,
            Value::Array(items) => {
                let origins: Vec<Arc<str>> = items
                    .iter()
                    .filter_map(|item| self.origin(section, entry, item))
                    .collect();
                Some(Cors::Origins(origins.into()))
            }
            Value::String(text) if text == "*" => Some(Cors::Any),
            _ => {
                let origin = self.origin(section, entry, &entry.item)?;
                Some(Cors::Origins([origin].into()))
            }
        }
    }

    fn origin(&mut self, section: Section, entry: &Entry, item: &Item) -> Option<Arc<str>> {
        let text = self.string_of(section, entry, item)?;
        let lower = text.to_ascii_lowercase();
        let host = lower.split_once("://").map_or("", |(_, host)| host);
        let valid = !host.is_empty()
            && !host.contains(['/', '?', '#', '@', '*', ' '])
            && lower.is_ascii()
            && !lower.bytes().any(|b| b.is_ascii_control());
        if valid {
            return Some(lower.into());
        }
        self.diagnostics.push(
            Diagnostic::new(item.at, format!("`{text}` is not an origin"), "").help(
                "write scheme, host and port only, such as \"https://app.example.com\"; \
                 cors = true is every origin",
            ),
        );
        None
    }
}

fn name(operation: &HeaderOp) -> &str {
    match operation {
        HeaderOp::Set(name, _) | HeaderOp::Remove(name) | HeaderOp::Append(name, _) => {
            name.as_str()
        }
    }
}

/// Whether a text is a token (RFC 9110 §5.6.2).
pub(super) fn is_token(text: &str) -> bool {
    let part = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(part)
}
