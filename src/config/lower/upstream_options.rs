//! What an upstream says besides its servers: balance, connections, health.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::address::check_host_value;
use super::headers::is_token;
use super::read::{Reader, Toggle};
use crate::config::diagnostics::Diagnostic;
use crate::config::model::{
    Balance, Breaker, Family, HashKey, HealthCheck, Keepalive, Passive, Probe, Queue, Resolve,
    RetryBudget, Secret, Source, Spread, StatusSet, Sticky, Upstream,
};
use crate::config::raw::{Entry, Item, Table, Value};
use crate::config::schema::Section;
use crate::http::types::{FieldName, Status};

/// A time of less than this would end everything before it began.
const TIME_MIN: Duration = Duration::from_millis(10);
/// Less time between two probes would be an attack.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Less time between two resolutions of a name would be one, too.
const RESOLVE_MIN: Duration = Duration::from_secs(1);
/// Fewer bytes of a secret can be guessed (RFC 2104 §3 asks for more, people for less).
const SECRET_MIN: usize = 16;
/// The cookie of `sticky` where no other is named.
const COOKIE: &str = "beltway";
/// Statuses that a final response may have.
const FINAL: RangeInclusive<u16> = 200..=599;
/// Counts over a window.
const REQUESTS: RangeInclusive<u64> = 1..=1_000_000;

const SPREADS: [(&str, Spread); 4] = [
    ("round-robin", Spread::RoundRobin),
    ("least-conn", Spread::LeastConnections),
    ("p2c", Spread::PowerOfTwo),
    ("random", Spread::Random),
];

/// An algorithm by its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Spread(Spread),
    Hash,
    Sticky,
}

impl Reader<'_> {
    /// Reads all keys but `servers` and `max_conns`.
    pub(super) fn upstream_options(&mut self, table: &Table, upstream: &mut Upstream) {
        const AT: Section = Section::Upstream;
        if let Some(entry) = table.get("balance")
            && let Some(balance) = self.balance(entry)
        {
            upstream.balance = balance;
        }
        if let Some(entry) = table.get("source") {
            upstream.source = self.source(entry);
        }
        if let Some(time) = self.duration(table, AT, "slow_start", Duration::ZERO) {
            upstream.slow_start = time;
        }
        upstream.keepalive = match self.toggle(table, AT, "keepalive") {
            Some(Toggle::Off) => Keepalive {
                idle: 0,
                total: 0,
                ..Keepalive::default()
            },
            Some(Toggle::Table(table)) => self.keepalive(table),
            _ => Keepalive::default(),
        };
        upstream.queue = match self.toggle(table, AT, "queue") {
            Some(Toggle::Off) => Queue {
                size: 0,
                ..Queue::default()
            },
            Some(Toggle::Table(table)) => self.queue(table),
            _ => Queue::default(),
        };
        upstream.health = table.get("health").and_then(|entry| self.health(entry));
        upstream.passive = match self.toggle(table, AT, "passive_health") {
            Some(Toggle::Off) => None,
            Some(Toggle::Table(table)) => Some(self.passive(table)),
            _ => Some(Passive::default()),
        };
        upstream.breaker = match self.toggle(table, AT, "breaker") {
            Some(Toggle::On) => Some(Breaker::default()),
            Some(Toggle::Table(table)) => Some(self.breaker(table)),
            _ => None,
        };
        if let Some(table) = self.table(table, AT, "retry_budget") {
            upstream.retry_budget = self.retry_budget(table);
        }
        if let Some(table) = self.table(table, AT, "resolve") {
            upstream.resolve = self.resolve(table);
        }
    }

    fn source(&mut self, entry: &Entry) -> Source {
        let mut source = Source::default();
        let items: &[Item] = match &entry.item.value {
            Value::Array(items) => items,
            _ => std::slice::from_ref(&entry.item),
        };
        if items.is_empty() {
            self.wrong(Section::Upstream, entry, &entry.item);
        }
        for item in items {
            let Some(text) = self.string_of(Section::Upstream, entry, item) else {
                continue;
            };
            let taken = match text.parse::<IpAddr>() {
                Ok(address) if address.is_unspecified() || address.is_multicast() => {
                    self.no_source(item, format!("`{address}` is the address of no interface"));
                    continue;
                }
                Ok(IpAddr::V4(address)) => source.v4.replace(address).is_some(),
                Ok(IpAddr::V6(address)) => source.v6.replace(address).is_some(),
                Err(_) => {
                    self.no_source(item, format!("`{text}` is not an IP address"));
                    continue;
                }
            };
            if taken {
                let message = format!("`{text}` is the second address of its family");
                self.no_source(item, message);
            }
        }
        source
    }

    fn no_source(&mut self, item: &Item, message: String) {
        let help = "write an address of this machine, such as source = \"192.0.2.10\", or one of each \
                    family, source = [\"192.0.2.10\", \"2001:db8::10\"]";
        self.diagnostics
            .push(Diagnostic::new(item.at, message, "").help(help));
    }

    fn balance(&mut self, entry: &Entry) -> Option<Balance> {
        const AT: Section = Section::Balance;
        let table = match &entry.item.value {
            Value::Table(table) => table,
            Value::String(_) => return self.balance_by_name(entry),
            _ => {
                self.wrong(Section::Upstream, entry, &entry.item);
                return None;
            }
        };
        self.unknown_keys(table, AT);
        let algorithms = SPREADS
            .map(|(name, spread)| (name, Algorithm::Spread(spread)))
            .into_iter()
            .chain([("hash", Algorithm::Hash), ("sticky", Algorithm::Sticky)]);
        let algorithms: Vec<_> = algorithms.collect();
        let algorithm = match table.get("algorithm") {
            Some(_) => self.word(table, AT, "algorithm", &algorithms),
            None => Some(Algorithm::Spread(Spread::RoundRobin)),
        };
        let by = table.get("by").map(|entry| self.hash_key(entry));
        let load_max = self
            .number_or_false(table, AT, "load", 101..=1000)
            .flatten()
            .and_then(|load| u16::try_from(load).ok());
        let sticky = self.sticky(table, algorithm == Some(Algorithm::Sticky));
        let algorithm = algorithm?;
        let of_hash = ["by", "load"];
        let of_sticky = ["cookie", "secret", "max_age", "secure", "otherwise"];
        for (names, own, word) in [
            (&of_hash[..], Algorithm::Hash, "hash"),
            (&of_sticky[..], Algorithm::Sticky, "sticky"),
        ] {
            for entry in names.iter().filter_map(|name| table.get(name)) {
                if algorithm != own {
                    let message = format!("`{}` does nothing without \"{word}\"", entry.key);
                    self.diagnostics.push(
                        Diagnostic::new(entry.key_at, message, "")
                            .help(format!("write algorithm = \"{word}\", or take this away")),
                    );
                }
            }
        }
        match algorithm {
            Algorithm::Spread(spread) => Some(Balance::Spread(spread)),
            Algorithm::Hash => Some(Balance::Hash {
                by: by.unwrap_or(Some(HashKey::Client))?,
                load_max,
            }),
            Algorithm::Sticky => {
                if table.get("secret").is_none() {
                    self.diagnostics.push(
                        Diagnostic::new(entry.item.at, "\"sticky\" needs a secret", "").help(
                            "write secret = \"file:/etc/beltway/sticky\" or secret = \"${NAME}\"; \
                             `openssl rand -hex 32` makes one",
                        ),
                    );
                }
                sticky.map(Balance::Sticky)
            }
        }
    }

    /// `balance = "NAME"`.
    fn balance_by_name(&mut self, entry: &Entry) -> Option<Balance> {
        let text = self.string_of(Section::Upstream, entry, &entry.item)?;
        if let Some((_, spread)) = SPREADS.iter().find(|(name, _)| *name == text) {
            return Some(Balance::Spread(*spread));
        }
        match text.as_str() {
            "hash" => {
                return Some(Balance::Hash {
                    by: HashKey::Client,
                    load_max: None,
                });
            }
            "sticky" => {
                let help = "write balance = { algorithm = \"sticky\", secret = \"${NAME}\" }";
                self.diagnostics.push(
                    Diagnostic::new(entry.item.at, "\"sticky\" needs a secret", "").help(help),
                );
            }
            _ => {
                let names = SPREADS
                    .iter()
                    .map(|(name, _)| *name)
                    .chain(["hash", "sticky"]);
                self.unknown_word(entry, &text, &names.collect::<Vec<_>>());
            }
        }
        None
    }

    fn hash_key(&mut self, entry: &Entry) -> Option<HashKey> {
        const AT: Section = Section::Balance;
        let text = self.string_of(AT, entry, &entry.item)?;
        let key = match text
            .split_once(' ')
            .map_or((&*text, ""), |(a, b)| (a, b.trim()))
        {
            ("client", "") => Some(HashKey::Client),
            ("path", "") => Some(HashKey::Path),
            ("header", name) if is_token(name) => {
                Some(HashKey::Header(FieldName::Shared(name.into())))
            }
            ("cookie", name) if is_token(name) => Some(HashKey::Cookie(name.into())),
            _ => None,
        };
        if key.is_none() {
            self.wrong(AT, entry, &entry.item);
        }
        key
    }

    /// The keys of `sticky`; nothing where one is wrong, or the secret is missing.
    fn sticky(&mut self, table: &Table, wanted: bool) -> Option<Sticky> {
        const AT: Section = Section::Balance;
        let cookie = match table.get("cookie") {
            None => Some(COOKIE.to_owned()),
            Some(entry) => {
                let name = self.string_of(AT, entry, &entry.item);
                if name.as_deref().is_some_and(|name| !is_token(name)) {
                    self.wrong(AT, entry, &entry.item);
                }
                name.filter(|name| is_token(name))
            }
        };
        let max_age = self.duration(table, AT, "max_age", Duration::from_secs(1));
        let secure = self.boolean(table, AT, "secure").unwrap_or(false);
        let otherwise = self
            .word(table, AT, "otherwise", &SPREADS)
            .unwrap_or(Spread::RoundRobin);
        let entry = table.get("secret")?;
        let text = self.string_of(AT, entry, &entry.item)?;
        let is_file = text.starts_with("file:");
        let secret = self.secret_of(&entry.item, text)?;
        let unread = is_file && secret.is_empty() && !self.checks_files();
        if wanted && secret.len() < SECRET_MIN && !unread {
            self.diagnostics.push(
                Diagnostic::new(
                    entry.item.at,
                    format!("the secret has fewer than {SECRET_MIN} bytes"),
                    "",
                )
                .help("make one with `openssl rand -hex 32`"),
            );
        }
        Some(Sticky {
            cookie: cookie?.into(),
            secret: Secret::new(secret.as_bytes()),
            max_age: max_age.map(|age| Duration::from_secs(age.as_secs())),
            secure,
            otherwise,
        })
    }

    fn keepalive(&mut self, table: &Table) -> Keepalive {
        const AT: Section = Section::Keepalive;
        self.unknown_keys(table, AT);
        let default = Keepalive::default();
        Keepalive {
            idle: self
                .integer(table, AT, "idle", 0..=10_000)
                .map_or(default.idle, narrow),
            total: self
                .integer(table, AT, "total", 0..=100_000)
                .map_or(default.total, narrow),
            timeout: self
                .duration(table, AT, "timeout", TIME_MIN)
                .unwrap_or(default.timeout),
        }
    }

    fn queue(&mut self, table: &Table) -> Queue {
        const AT: Section = Section::Queue;
        self.unknown_keys(table, AT);
        let default = Queue::default();
        Queue {
            size: self
                .integer(table, AT, "size", 0..=100_000)
                .map_or(default.size, narrow),
            timeout: self
                .duration(table, AT, "timeout", TIME_MIN)
                .unwrap_or(default.timeout),
        }
    }

    fn passive(&mut self, table: &Table) -> Passive {
        const AT: Section = Section::Passive;
        self.unknown_keys(table, AT);
        let default = Passive::default();
        let failures = self.number_or_false(table, AT, "failures", 1..=1000);
        let error_rate = self.number_or_false(table, AT, "error_rate", 1..=100);
        let passive = Passive {
            failures: failures.map_or(default.failures, |number| {
                NonZeroU32::new(narrow(number.unwrap_or(0)))
            }),
            error_rate: error_rate.map_or(default.error_rate, |rate| rate.map(narrow)),
            min_requests: self
                .integer(table, AT, "min_requests", REQUESTS)
                .map_or(default.min_requests, narrow),
            window: self
                .duration(table, AT, "window", INTERVAL_MIN)
                .unwrap_or(default.window),
            eject: self
                .duration(table, AT, "eject", INTERVAL_MIN)
                .unwrap_or(default.eject),
            eject_max: self
                .duration(table, AT, "eject_max", INTERVAL_MIN)
                .unwrap_or(default.eject_max),
            share_max: self
                .integer(table, AT, "share", 0..=100)
                .map_or(default.share_max, narrow),
            statuses: self
                .statuses(table, AT, "statuses", FINAL)
                .unwrap_or(default.statuses),
        };
        if let Some(entry) = table.get("eject_max")
            && passive.eject_max < passive.eject
        {
            self.out_of_range(entry, "at least `eject`");
        }
        Passive {
            eject_max: passive.eject_max.max(passive.eject),
            ..passive
        }
    }

    fn health(&mut self, entry: &Entry) -> Option<HealthCheck> {
        const AT: Section = Section::Health;
        let default = HealthCheck {
            probe: Probe::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            rise: 2,
            fall: 3,
            tls: true,
        };
        let table = match &entry.item.value {
            Value::Boolean(false) => return None,
            Value::Table(table) => table,
            Value::String(text) if text == "tcp" => return Some(default),
            _ => {
                let path = self.string_of(Section::Upstream, entry, &entry.item)?;
                let probe = Probe::Http {
                    path: self.probe_path(&entry.item, &path)?,
                    host: None,
                    statuses: good_statuses(),
                    body: None,
                };
                return Some(HealthCheck { probe, ..default });
            }
        };
        self.unknown_keys(table, AT);
        let probe = self.probe(entry, table);
        let interval = self
            .duration(table, AT, "interval", INTERVAL_MIN)
            .unwrap_or(default.interval);
        let timeout = self.duration(table, AT, "timeout", TIME_MIN);
        if let Some(entry) = table.get("timeout")
            && timeout.is_some_and(|timeout| timeout > interval)
        {
            self.out_of_range(entry, "at most `interval`");
        }
        let rise = self.integer(table, AT, "rise", 1..=100);
        let fall = self.integer(table, AT, "fall", 1..=100);
        let tls = self.boolean(table, AT, "tls");
        Some(HealthCheck {
            probe: probe?,
            interval,
            timeout: timeout.unwrap_or(default.timeout).min(interval),
            rise: rise.map_or(default.rise, narrow),
            fall: fall.map_or(default.fall, narrow),
            tls: tls.unwrap_or(default.tls),
        })
    }

    /// What a table of `health` asks for.
    fn probe(&mut self, health: &Entry, table: &Table) -> Option<Probe> {
        const AT: Section = Section::Health;
        let tcp = self.boolean(table, AT, "tcp").unwrap_or(false);
        let path = table.get("path").map(|entry| {
            let text = self.string_of(AT, entry, &entry.item)?;
            self.probe_path(&entry.item, &text)
        });
        let statuses = self.statuses(table, AT, "status", FINAL);
        let body = self.text(table, AT, "body");
        let host = self.host_of(table);
        match (tcp, path) {
            (true, _) => {
                for name in ["path", "status", "body", "host"] {
                    if let Some(entry) = table.get(name) {
                        let message = format!("`{name}` does nothing with `tcp`");
                        self.diagnostics.push(
                            Diagnostic::new(entry.key_at, message, "")
                                .help("take it away, or `tcp`"),
                        );
                    }
                }
                Some(Probe::Tcp)
            }
            (false, Some(path)) => Some(Probe::Http {
                path: path?,
                host: host.map(Into::into),
                statuses: statuses.unwrap_or_else(good_statuses),
                body: body.map(|text| text.into_bytes().into()),
            }),
            (false, None) => {
                self.diagnostics.push(
                    Diagnostic::new(health.key_at, "`health` doesn't say what to ask for", "")
                        .help("write path = \"/healthz\", or tcp = true, in it"),
                );
                None
            }
        }
    }

    /// The host of a probe.
    fn host_of(&mut self, table: &Table) -> Option<String> {
        let host = self.text(table, Section::Health, "host")?;
        match check_host_value(&host) {
            Ok(()) => Some(host),
            Err((message, help)) => {
                let at = table.get("host").map(|entry| entry.item.at)?;
                self.diagnostics
                    .push(Diagnostic::new(at, message, "").help(help));
                None
            }
        }
    }

    /// The target of a probe: origin form (RFC 9112 §3.2.1).
    fn probe_path(&mut self, item: &Item, text: &str) -> Option<std::sync::Arc<str>> {
        let printable = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
        if text.starts_with('/') && text.bytes().all(printable) {
            return Some(text.into());
        }
        let message = format!("`{text}` is not a path to ask for");
        self.diagnostics.push(
            Diagnostic::new(item.at, message, "")
                .help("begin it with a slash, and percent-encode it, such as \"/healthz\""),
        );
        None
    }

    fn breaker(&mut self, table: &Table) -> Breaker {
        const AT: Section = Section::Breaker;
        self.unknown_keys(table, AT);
        let default = Breaker::default();
        Breaker {
            error_rate: self
                .integer(table, AT, "error_rate", 1..=100)
                .map_or(default.error_rate, narrow),
            min_requests: self
                .integer(table, AT, "min_requests", REQUESTS)
                .map_or(default.min_requests, narrow),
            window: self
                .duration(table, AT, "window", INTERVAL_MIN)
                .unwrap_or(default.window),
            open: self
                .duration(table, AT, "open", INTERVAL_MIN)
                .unwrap_or(default.open),
            probes: self
                .integer(table, AT, "probes", 1..=1000)
                .map_or(default.probes, narrow),
        }
    }

    fn retry_budget(&mut self, table: &Table) -> RetryBudget {
        const AT: Section = Section::RetryBudget;
        self.unknown_keys(table, AT);
        let default = RetryBudget::default();
        RetryBudget {
            share: self
                .integer(table, AT, "share", 0..=100)
                .map_or(default.share, narrow),
            per_second: self
                .integer(table, AT, "per_second", 0..=10_000)
                .map_or(default.per_second, narrow),
        }
    }

    fn resolve(&mut self, table: &Table) -> Resolve {
        const AT: Section = Section::Resolve;
        self.unknown_keys(table, AT);
        let default = Resolve::default();
        let families = [
            ("any", Family::Any),
            ("ipv4", Family::V4),
            ("ipv6", Family::V6),
        ];
        Resolve {
            interval: self
                .duration(table, AT, "interval", RESOLVE_MIN)
                .unwrap_or(default.interval),
            timeout: self
                .duration(table, AT, "timeout", TIME_MIN)
                .unwrap_or(default.timeout),
            family: self
                .word(table, AT, "family", &families)
                .unwrap_or(default.family),
        }
    }
}

/// The statuses of a server that is well, where no others are named.
fn good_statuses() -> StatusSet {
    StatusSet::new([(Status(200), Status(399))])
}

/// A number that was checked to be in a range that fits.
fn narrow<T: TryFrom<u64>>(number: u64) -> T {
    T::try_from(number).unwrap_or_else(|_| unreachable!("its range was checked"))
}
