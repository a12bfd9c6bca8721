//! How a site or a route has its requests answered by backends: `proxy` and what goes with it.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::address::check_host_value;
use super::read::{Reader, Toggle};
use crate::config::diagnostics::Diagnostic;
use crate::config::model::{
    Buffer, HeaderOp, HostRule, PathRule, Proxy, ProxyProtocol, ProxyTimeouts, Retries, Spill,
    Upstream,
};
use crate::config::raw::{Entry, Table, Value};
use crate::config::schema::Section;
use crate::http::router::{Pattern, Template};
use crate::http::types::FieldValue;

/// A time of less than this would end everything before it began.
const TIME_MIN: Duration = Duration::from_millis(10);
/// Most tries: beyond it a number is a slip.
const TRIES: RangeInclusive<u64> = 1..=10;
/// Statuses after which a request may be tried again.
const ERRORS: RangeInclusive<u16> = 400..=599;
/// Bytes of a body in memory.
const BUFFER_BYTES: RangeInclusive<u64> = 1 << 10..=1 << 30;
/// Bytes of a body in a file, where no other number is named.
const SPILL_BYTES: u64 = 1 << 30;

/// What a route inherits from its site: all of a [`Proxy`] but whom it asks.
#[derive(Clone, Debug)]
pub(super) struct Options {
    host: HostRule,
    path: PathRule,
    request_headers: Arc<[HeaderOp]>,
    timeouts: ProxyTimeouts,
    retries: Retries,
    buffer: Buffer,
    upgrade: bool,
    send_proxy_protocol: Option<ProxyProtocol>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: HostRule::Keep,
            path: PathRule::Keep,
            request_headers: Arc::new([]),
            timeouts: ProxyTimeouts::default(),
            retries: Retries::default(),
            buffer: Buffer::default(),
            upgrade: true,
            send_proxy_protocol: None,
        }
    }
}

impl Options {
    /// These options with somebody to ask.
    pub(super) fn with(&self, upstream: Arc<Upstream>) -> Proxy {
        let options = self.clone();
        Proxy {
            upstream,
            host: options.host,
            path: options.path,
            request_headers: options.request_headers,
            timeouts: options.timeouts,
            retries: options.retries,
            buffer: options.buffer,
            upgrade: options.upgrade,
            send_proxy_protocol: options.send_proxy_protocol,
        }
    }
}

impl Reader<'_> {
    /// The options of a site or a route: what it inherits, and its own over it.
    pub(super) fn proxy_options(
        &mut self,
        table: &Table,
        section: Section,
        inherited: &Options,
        pattern: Option<&Pattern>,
    ) -> Options {
        if !Section::of_proxies().any(|key| table.get(key.name).is_some()) {
            return inherited.clone();
        }
        Options {
            host: self
                .upstream_host(table, section)
                .unwrap_or_else(|| inherited.host.clone()),
            path: self
                .path_rule(table, section, pattern)
                .unwrap_or_else(|| inherited.path.clone()),
            request_headers: self.request_headers(table, section, &inherited.request_headers),
            timeouts: self.proxy_timeouts(table, section, inherited.timeouts),
            retries: self.retries(table, section, &inherited.retries),
            buffer: self.buffer(table, section, &inherited.buffer),
            upgrade: self
                .boolean(table, section, "upgrade")
                .unwrap_or(inherited.upgrade),
            send_proxy_protocol: self
                .send_proxy_protocol(table, section)
                .unwrap_or(inherited.send_proxy_protocol),
        }
    }

    fn upstream_host(&mut self, table: &Table, section: Section) -> Option<HostRule> {
        let entry = table.get("upstream_host")?;
        let text = self.string_of(section, entry, &entry.item)?;
        match text.as_str() {
            "keep" => return Some(HostRule::Keep),
            "upstream" => return Some(HostRule::Upstream),
            _ => {}
        }
        match check_host_value(&text) {
            Ok(()) => Some(HostRule::Set(FieldValue::Shared(text.as_bytes().into()))),
            Err((message, help)) => {
                self.diagnostics
                    .push(Diagnostic::new(entry.item.at, message, "").help(help));
                None
            }
        }
    }

    /// `strip_prefix` or `rewrite`.
    fn path_rule(
        &mut self,
        table: &Table,
        section: Section,
        pattern: Option<&Pattern>,
    ) -> Option<PathRule> {
        let (strip, rewrite) = (table.get("strip_prefix"), table.get("rewrite"));
        if let (Some(strip), Some(rewrite)) = (strip, rewrite)
            && !matches!(strip.item.value, Value::Boolean(false))
        {
            let (first, second) = if strip.key_at.start <= rewrite.key_at.start {
                (strip, rewrite)
            } else {
                (rewrite, strip)
            };
            self.diagnostics.push(
                Diagnostic::new(
                    second.key_at,
                    "`strip_prefix` and `rewrite` both say what the path becomes",
                    "the second rule",
                )
                .with(first.key_at, "the first rule")
                .help("take one away; {path} in `rewrite` is what the route's `*` matched"),
            );
        }
        let stripped = strip.and_then(|entry| self.strip_prefix(section, entry, pattern));
        match rewrite {
            Some(entry) => self.rewrite(section, entry, pattern),
            None => stripped,
        }
    }

    fn strip_prefix(
        &mut self,
        section: Section,
        entry: &Entry,
        pattern: Option<&Pattern>,
    ) -> Option<PathRule> {
        match &entry.item.value {
            Value::Boolean(false) => return Some(PathRule::Keep),
            Value::Boolean(true) => {
                let prefix = pattern?.prefix().unwrap_or_default();
                if prefix.is_empty() {
                    let message = match section {
                        Section::Site => "a site has no prefix of its own",
                        _ => "this route has no prefix",
                    };
                    self.diagnostics.push(
                        Diagnostic::new(entry.item.at, message, "")
                            .help("write the prefix, such as strip_prefix = \"/api\""),
                    );
                    return None;
                }
                return Some(PathRule::Strip(prefix.into()));
            }
            _ => {}
        }
        let text = self.string_of(section, entry, &entry.item)?;
        let prefix = text.trim_end_matches('/');
        if prefix.is_empty() {
            self.wrong(section, entry, &entry.item);
            return None;
        }
        if let Err(mut error) = Pattern::parse(&format!("={prefix}")) {
            error.position = error.position.saturating_sub(1);
            error.help = "write a path such as \"/api\", without a `*`".into();
            self.pattern_error(entry.item.at, &text, "the prefix", &error);
            return None;
        }
        Some(PathRule::Strip(prefix.into()))
    }

    fn rewrite(
        &mut self,
        section: Section,
        entry: &Entry,
        pattern: Option<&Pattern>,
    ) -> Option<PathRule> {
        let text = self.string_of(section, entry, &entry.item)?;
        if text.contains('#') || !(text.starts_with('/') || text.starts_with("{uri}")) {
            let message = format!("`{text}` is not a path to ask a backend for");
            self.diagnostics
                .push(Diagnostic::new(entry.item.at, message, "").help(
                    "begin it with a slash, and leave out host and fragment: \"/v2/{path}\"",
                ));
            return None;
        }
        match Template::parse(&text, pattern?) {
            Ok(to) => Some(PathRule::Rewrite {
                to,
                of_site: section == Section::Site,
            }),
            Err(error) => {
                self.pattern_error(entry.item.at, &text, "the path", &error);
                None
            }
        }
    }

    fn proxy_timeouts(
        &mut self,
        table: &Table,
        section: Section,
        inherited: ProxyTimeouts,
    ) -> ProxyTimeouts {
        const AT: Section = Section::ProxyTimeouts;
        let mut timeouts = inherited;
        if let Some(time) = self.duration_or_false(table, section, "timeout", TIME_MIN) {
            timeouts.head = time;
            timeouts.read = time;
        }
        let Some(own) = self.table(table, section, "timeouts") else {
            return timeouts;
        };
        self.unknown_keys(own, AT);
        let mut part = |name, inherited| {
            self.duration_or_false(own, AT, name, TIME_MIN)
                .unwrap_or(inherited)
        };
        timeouts.head = part("head", timeouts.head);
        timeouts.read = part("read", timeouts.read);
        timeouts.total = part("total", timeouts.total);
        timeouts.tunnel = part("tunnel", timeouts.tunnel);
        timeouts.connect = self
            .duration(own, AT, "connect", TIME_MIN)
            .unwrap_or(timeouts.connect);
        timeouts
    }

    fn retries(&mut self, table: &Table, section: Section, inherited: &Retries) -> Retries {
        const AT: Section = Section::Retries;
        let mut retries = inherited.clone();
        if let Some(entry) = table.get("retries")
            && let Value::Integer(number) = entry.item.value
        {
            // Retries, while `tries` counts the first one, too.
            match u32::try_from(number) {
                Ok(number) if TRIES.contains(&(u64::from(number) + 1)) => {
                    retries.tries = number + 1
                }
                _ => self.out_of_range(entry, "from 0 to 9"),
            }
            return retries;
        }
        let own = match self.toggle(table, section, "retries") {
            None | Some(Toggle::On) => return retries,
            Some(Toggle::Off) => {
                retries.tries = 1;
                return retries;
            }
            Some(Toggle::Table(own)) => own,
        };
        self.unknown_keys(own, AT);
        if let Some(tries) = self.integer(own, AT, "tries", TRIES) {
            retries.tries = u32::try_from(tries).unwrap_or(retries.tries);
        }
        Retries {
            tries: retries.tries,
            time: self
                .duration(own, AT, "time", TIME_MIN)
                .unwrap_or(retries.time),
            statuses: self
                .statuses(own, AT, "statuses", ERRORS)
                .unwrap_or(retries.statuses),
            non_idempotent: self
                .boolean(own, AT, "non_idempotent")
                .unwrap_or(retries.non_idempotent),
        }
    }

    fn buffer(&mut self, table: &Table, section: Section, inherited: &Buffer) -> Buffer {
        const AT: Section = Section::Buffer;
        let own = match self.toggle(table, section, "buffer") {
            None | Some(Toggle::On) => return inherited.clone(),
            Some(Toggle::Off) => return Buffer::default(),
            Some(Toggle::Table(own)) => own,
        };
        self.unknown_keys(own, AT);
        let bytes = |size: Option<u64>, inherited: Option<u64>| size.or(inherited);
        let request = self.size(own, AT, "request", BUFFER_BYTES);
        let response = self.size(own, AT, "response", BUFFER_BYTES);
        let size_max = self.size(own, AT, "spill_limit", 1 << 10..=u64::MAX);
        let directory = own.get("spill").and_then(|entry| {
            let text = self.string_of(AT, entry, &entry.item)?;
            if text.is_empty() {
                self.wrong(AT, entry, &entry.item);
                return None;
            }
            let path = self.path(entry.item.at, &text);
            self.check_directory(&entry.item, "directory", &path);
            Some(path)
        });
        let before = inherited.spill.as_ref();
        let directory = directory.or_else(|| before.map(|spill| spill.directory.clone()));
        if directory.is_none()
            && own.get("spill").is_none()
            && let Some(entry) = own.get("spill_limit")
        {
            self.needs(entry, "spill", "name the directory with `spill`");
        }
        let buffer = Buffer {
            request: bytes(request, inherited.request),
            response: bytes(response, inherited.response),
            spill: directory.map(|directory| Spill {
                directory,
                size_max: size_max
                    .or(before.map(|spill| spill.size_max))
                    .unwrap_or(SPILL_BYTES),
                total_max: self.spill_total,
            }),
        };
        let sized = ["request", "response"]
            .iter()
            .any(|name| own.get(name).is_some());
        if let Some(entry) = own.get("spill")
            && !sized
            && (buffer.request, buffer.response) == (None, None)
        {
            self.needs(
                entry,
                "request",
                "say how much stays in memory, with `request` or `response`",
            );
        }
        buffer
    }

    fn send_proxy_protocol(
        &mut self,
        table: &Table,
        section: Section,
    ) -> Option<Option<ProxyProtocol>> {
        const NAME: &str = "send_proxy_protocol";
        let words = [("v1", ProxyProtocol::V1), ("v2", ProxyProtocol::V2)];
        match &table.get(NAME)?.item.value {
            Value::Boolean(false) => Some(None),
            _ => self.word(table, section, NAME, &words).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_what_the_model_says() {
        let upstream = Arc::new(Upstream::new("app", Vec::new()));
        let proxy = Options::default().with(Arc::clone(&upstream));
        assert_eq!(format!("{proxy:?}"), format!("{:?}", Proxy::new(upstream)));
        assert!(proxy.retries.statuses.is_empty());
    }
}
