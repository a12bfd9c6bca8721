//! Upstreams: those with a table of their own, and those that a route makes of addresses.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::address::{Written, server_address};
use super::read::Reader;
use super::upstream_tls::TlsToServers;
use crate::config::diagnostics::{At, Diagnostic};
use crate::config::model::{Action, ServerState, Site, Upstream, UpstreamServer, UpstreamTls};
use crate::config::nearest::nearest;
use crate::config::raw::{Entry, Item, Table, Value};
use crate::config::schema::Section;
use crate::net::tls::Trust;

/// Most servers of an upstream.
const SERVERS_MAX: usize = 1000;
/// Longest name of an upstream in bytes: it stands in every line of a log.
const NAME_MAX: usize = 64;
/// So many addresses make the name of an upstream that has none.
const NAMED_BY: usize = 3;
/// Weights, within which sums fit 32 bits.
const WEIGHTS: RangeInclusive<u64> = 1..=1000;
/// Bounds of a bound of connections: there are no more ports.
pub(super) const CONNECTIONS: RangeInclusive<u64> = 1..=1_000_000;

/// The upstreams of a configuration as they are collected.
#[derive(Default)]
pub(super) struct Upstreams {
    /// Those with a table, in order; `None` where it is wrong and was reported.
    named: Vec<(String, Option<Arc<Upstream>>)>,
    /// Those that routes made.
    made: Vec<Arc<Upstream>>,
    /// Whom the system believes, once that was asked for.
    pub(super) system_trust: Option<Trust>,
}

/// The upstreams that the routes of these sites use, each once.
pub(super) fn used(sites: &[Arc<Site>]) -> Vec<Arc<Upstream>> {
    let mut used: Vec<Arc<Upstream>> = Vec::new();
    for route in sites.iter().flat_map(|site| site.each_route()) {
        if let Action::Proxy(proxy) = &route.action
            && !used.iter().any(|known| Arc::ptr_eq(known, &proxy.upstream))
        {
            used.push(Arc::clone(&proxy.upstream));
        }
    }
    used
}

impl Reader<'_> {
    /// The table `upstream`.
    pub(super) fn upstreams(&mut self, table: &Table) {
        for entry in &table.entries {
            let upstream = self.upstream(entry).map(Arc::new);
            self.upstreams.named.push((entry.key.clone(), upstream));
        }
    }

    fn upstream(&mut self, entry: &Entry) -> Option<Upstream> {
        const AT: Section = Section::Upstream;
        let Value::Table(table) = &entry.item.value else {
            let message = format!("the upstream `{}` needs a table", entry.key);
            let label = format!("this is {}", entry.item.value.kind());
            self.diagnostics.push(
                Diagnostic::new(entry.item.at, message, label)
                    .help("write it such as [upstream.app] with servers = [\"10.0.0.1:3000\"]"),
            );
            return None;
        };
        let errors_before = self.diagnostics.len();
        if !is_name(&entry.key) || entry.key.len() > NAME_MAX {
            let message = format!("`{}` is not a name of an upstream", entry.key);
            self.diagnostics
                .push(Diagnostic::new(entry.key_at, message, "").help(format!(
                "write up to {NAME_MAX} letters, digits, `-`, `_` and `.`, such as [upstream.app]"
            )));
        }
        self.unknown_keys(table, AT);
        let max_conns = self.connections(table, AT);
        let tls = self.tls_to_servers(table);
        let servers = match table.get("servers") {
            Some(servers) => self.servers(AT, servers, (max_conns, &tls)),
            None => {
                let message = format!("the upstream `{}` has no servers", entry.key);
                self.diagnostics.push(
                    Diagnostic::new(entry.key_at, message, "")
                        .help("write servers = [\"10.0.0.1:3000\"] in it"),
                );
                None
            }
        };
        let servers = servers.unwrap_or_default();
        let at = table.get("servers").map_or(entry.key_at, |it| it.item.at);
        let tls = self.tls_of(&servers, tls, (table.get("tls"), at));
        let mut upstream = Upstream::new(entry.key.as_str(), servers);
        upstream.tls = tls;
        self.upstream_options(table, &mut upstream);
        (self.diagnostics.len() == errors_before).then_some(upstream)
    }

    fn connections(&mut self, table: &Table, section: Section) -> Option<NonZeroU32> {
        self.integer(table, section, "max_conns", CONNECTIONS)
            .and_then(number)
    }

    /// The servers that are written under a key: a list, or a single one.
    fn servers(
        &mut self,
        section: Section,
        entry: &Entry,
        (max_conns, tls): (Option<NonZeroU32>, &TlsToServers),
    ) -> Option<Vec<UpstreamServer>> {
        let items: &[Item] = match &entry.item.value {
            Value::Array(items) => items,
            _ => std::slice::from_ref(&entry.item),
        };
        if items.is_empty() {
            self.wrong(section, entry, &entry.item);
            return None;
        }
        if items.len() > SERVERS_MAX {
            let message = format!("`{}` has more than {SERVERS_MAX} servers", entry.key);
            self.diagnostics.push(
                Diagnostic::new(entry.item.at, message, "")
                    .help("take some away, or name them by one host name that resolves to all"),
            );
            return None;
        }
        let mut servers: Vec<(UpstreamServer, At)> = Vec::with_capacity(items.len());
        let mut whole = true;
        for item in items {
            let Some(mut server) = self.server_of(section, (entry, item), tls) else {
                whole = false;
                continue;
            };
            server.max_conns = server.max_conns.or(max_conns);
            if let Some((_, first)) = servers.iter().find(|(s, _)| s.address == server.address) {
                let message = format!("the server {} is named twice", server.address);
                self.diagnostics.push(
                    Diagnostic::new(item.at, message, "again here")
                        .with(*first, "first here")
                        .help("take one away; `weight` gives a server a larger share"),
                );
                whole = false;
                continue;
            }
            servers.push((server, item.at));
        }
        if whole && servers.iter().all(|(server, _)| server.backup) {
            self.diagnostics.push(
                Diagnostic::new(entry.item.at, "all servers are backups", "")
                    .help("take `backup` away from one at least"),
            );
            whole = false;
        }
        whole.then(|| servers.into_iter().map(|(server, _)| server).collect())
    }

    /// One server: an address, or a table.
    fn server_of(
        &mut self,
        section: Section,
        (entry, item): (&Entry, &Item),
        tls: &TlsToServers,
    ) -> Option<UpstreamServer> {
        const AT: Section = Section::Backend;
        let Value::Table(table) = &item.value else {
            let text = self.string_of(section, entry, item)?;
            let written = self.address(item, &text)?;
            return Some(self.server_at(item, written, tls));
        };
        self.unknown_keys(table, AT);
        let server = match table.get("address") {
            Some(entry) => {
                let text = self.string_of(AT, entry, &entry.item);
                let written = text.and_then(|text| self.address(&entry.item, &text));
                written.map(|written| self.server_at(&entry.item, written, tls))
            }
            None => {
                self.diagnostics.push(
                    Diagnostic::new(item.at, "this server has no address", "")
                        .help("write it such as { address = \"10.0.0.2:3000\", weight = 2 }"),
                );
                None
            }
        };
        let states = [
            ("up", ServerState::Up),
            ("drain", ServerState::Drain),
            ("down", ServerState::Down),
        ];
        let weight = self.integer(table, AT, "weight", WEIGHTS).and_then(number);
        let backup = self.boolean(table, AT, "backup");
        let max_conns = self.connections(table, AT);
        let state = self.word(table, AT, "state", &states);
        let mut server = server?;
        server.weight = weight.unwrap_or(server.weight);
        server.backup = backup.unwrap_or(server.backup);
        server.state = state.unwrap_or(server.state);
        server.max_conns = max_conns;
        Some(server)
    }

    fn address(&mut self, item: &Item, text: &str) -> Option<Written> {
        if self.upstreams.named.iter().any(|(name, _)| name == text) {
            let message = format!("`{text}` is an upstream, and addresses belong here");
            self.diagnostics
                .push(Diagnostic::new(item.at, message, "").help(format!(
                    "write proxy = \"{text}\" for its servers, or name them here"
                )));
            return None;
        }
        match server_address(text) {
            Ok(address) => Some(address),
            Err((message, help)) => {
                self.diagnostics
                    .push(Diagnostic::new(item.at, message, "").help(help));
                None
            }
        }
    }

    /// The upstream that the key `proxy` of a site or a route names.
    pub(super) fn proxied(&mut self, section: Section, entry: &Entry) -> Option<Arc<Upstream>> {
        if let Value::String(text) = &entry.item.value {
            let text = self.filled(entry.item.at, text)?;
            if text.is_empty() {
                self.wrong(section, entry, &entry.item);
                return None;
            }
            if is_name(&text) && text.parse::<std::net::Ipv4Addr>().is_err() {
                return self.named(&entry.item, &text);
            }
        }
        let unsaid = TlsToServers::Unsaid;
        let servers = self.servers(section, entry, (None, &unsaid))?;
        let tls = self.tls_of(&servers, unsaid, (None, entry.item.at));
        Some(self.upstreams.made_of(servers, tls))
    }

    fn named(&mut self, item: &Item, name: &str) -> Option<Arc<Upstream>> {
        let named = &self.upstreams.named;
        if let Some((_, upstream)) = named.iter().find(|(known, _)| known == name) {
            return upstream.clone();
        }
        let help = if name.bytes().all(|byte| byte.is_ascii_digit()) {
            format!("write \":{name}\" for that port on this machine")
        } else if let Some(near) = nearest(name, named.iter().map(|(name, _)| name.as_str())) {
            format!("did you mean \"{near}\"?")
        } else if named.is_empty() {
            format!("write a table [upstream.{name}], or an address with a port: \"{name}:80\"")
        } else {
            let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
            let names = names.join(", ");
            format!("the upstreams are {names}; an address has a port: \"{name}:80\"")
        };
        self.diagnostics.push(
            Diagnostic::new(item.at, format!("there is no upstream `{name}`"), "").help(help),
        );
        None
    }
}

impl Upstreams {
    /// The upstream of servers that a route names: the same for the same servers.
    fn made_of(&mut self, servers: Vec<UpstreamServer>, tls: Option<UpstreamTls>) -> Arc<Upstream> {
        if let Some(known) = self.made.iter().find(|known| known.servers == servers) {
            return Arc::clone(known);
        }
        let addresses = servers.iter().map(|server| server.address.to_string());
        let mut base = addresses.take(NAMED_BY).collect::<Vec<_>>().join(", ");
        if servers.len() > NAMED_BY {
            base.push_str(&format!(" and {} more", servers.len() - NAMED_BY));
        }
        let mut name = base.clone();
        let mut count = 1;
        // Those with a table have no colon in their name.
        while self.made.iter().any(|known| *known.name == *name) {
            count += 1;
            name = format!("{base} ({count})");
        }
        let mut upstream = Upstream::new(name, servers);
        upstream.tls = tls;
        let upstream = Arc::new(upstream);
        self.made.push(Arc::clone(&upstream));
        upstream
    }
}

/// Whether a text is a name, which no address is.
fn is_name(text: &str) -> bool {
    let part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !text.is_empty() && text.bytes().all(part)
}

fn number(value: u64) -> Option<NonZeroU32> {
    NonZeroU32::new(u32::try_from(value).ok()?)
}
