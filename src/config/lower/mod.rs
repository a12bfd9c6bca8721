//! From the tree as it is written to the model: everything is checked, everything that is wrong is
//! reported, inheritance is applied.
//!
//! What is wrong is replaced by its default and the walk goes on, so that one run finds it all. The
//! model is given out only when nothing was wrong.

mod address;
mod answer;
mod clients;
mod headers;
mod listen;
mod ocsp;
mod proxy;
mod read;
mod routes;
mod server;
mod tls;
mod upstream;
mod upstream_options;
mod upstream_tls;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use self::answer::Answer;
use self::listen::{Accepted, Listeners, Speaks, site_name};
use self::read::Reader;
use self::tls::Wanted;
use super::diagnostics::{At, Diagnostic, Diagnostics};
use super::model::{
    Action, Certificate, CertificateId, ListenAddr, Model, Ocsp, SelfSigned, Server, Site, SiteTls,
};
use super::raw::{Entry, Table, Value};
use super::references::References;
use super::schema::Section;
use crate::http::router::{HostPattern, Pattern};

/// What the sources refer to, and where it is found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outside<'a> {
    /// In this environment, and in the files of this machine.
    Machine {
        /// The variables.
        environment: &'a BTreeMap<String, String>,
        /// Whether directories and files that are named must exist; else no file is opened.
        check_files: bool,
    },
    /// Here: nothing is asked of the machine, and no file is opened.
    Known(&'a References),
}

/// Checks the tree and makes the model of it, and gives what it refers to. What is wrong goes to
/// `diagnostics`; the model is whole only when that is empty.
pub(super) fn lower(
    tree: &Table,
    outside: Outside<'_>,
    diagnostics: &mut Diagnostics,
) -> (Model, References) {
    let mut reader = Reader {
        diagnostics,
        outside,
        references: References::default(),
        upstreams: upstream::Upstreams::default(),
        warnings: Vec::new(),
        spill_total: Server::default().limits.spill,
    };
    reader.unknown_keys(tree, Section::Top);
    let server = match reader.table(tree, Section::Top, "server") {
        Some(table) => reader.server(table),
        None => Server::default(),
    };
    reader.spill_total = server.limits.spill;
    // Sites name them.
    if let Some(table) = reader.table(tree, Section::Top, "upstream") {
        reader.upstreams(table);
    }
    let mut sites = Vec::new();
    let mut listeners = Listeners::default();
    if let Some(table) = reader.table(tree, Section::Top, "site") {
        for entry in &table.entries {
            if let Some(site) = reader.site(entry, sites.len(), &mut listeners, &server) {
                sites.push(Arc::new(site));
            }
        }
    }
    let listeners = listeners.build(&mut reader);
    if sites.is_empty() && reader.diagnostics.is_empty() {
        reader.diagnostics.push(
            Diagnostic::global("there is no site")
                .help("write one such as [site.\":8080\"] with root = \"/srv/www\"")
                .help("`beltway serve DIR` serves a directory without a file"),
        );
    }
    let model = Model {
        upstreams: upstream::used(&sites),
        server,
        listeners,
        sites,
        warnings: reader.warnings,
    };
    (model, reader.references)
}

impl Reader<'_> {
    fn site(
        &mut self,
        entry: &Entry,
        index: usize,
        listeners: &mut Listeners,
        server: &Server,
    ) -> Option<Site> {
        const AT: Section = Section::Site;
        let Value::Table(table) = &entry.item.value else {
            let message = format!("the site `{}` needs a table", entry.key);
            let label = format!("this is {}", entry.item.value.kind());
            self.diagnostics.push(
                Diagnostic::new(entry.item.at, message, label)
                    .help("a site has a name: [site.\"example.com\"] or [site.\":8080\"]"),
            );
            return None;
        };
        if self.unquoted_name(entry, table) {
            return None;
        }
        self.unknown_keys(table, AT);
        let mut tls = self.addresses(entry, table, index, listeners);
        let client_fields = self.client_certificates(table, tls.as_mut());
        let everything = Pattern::everything();
        let answer = self.answer(table, AT, &Answer::default(), Some(&everything));
        let router = self.routes(table, &answer);
        let nothing = matches!(answer.action, Action::None) && table.get("routes").is_none();
        let tried = ["root", "redirect", "respond", "proxy"];
        if nothing && !tried.iter().any(|name| table.get(name).is_some()) {
            self.diagnostics.push(
                Diagnostic::new(
                    entry.key_at,
                    format!("the site `{}` has nothing to answer with", entry.key),
                    "",
                )
                .help("give it a `root`, a `proxy`, a `redirect`, a `respond` or `routes`"),
            );
        }
        Some(Site {
            name: entry.key.as_str().into(),
            router,
            fallback: Arc::new(routes::route(0, "", None, answer)),
            trusted_proxies: match self.peers(table, AT, "trusted_proxies") {
                Some(peers) => Arc::new(peers),
                None => Arc::clone(&server.trusted_proxies),
            },
            tls,
            client_fields,
        })
    }

    /// Whose connections begin with a PROXY header.
    fn accepted(&mut self, site: &Entry, table: &Table) -> Accepted {
        const AT: Section = Section::ProxyProtocol;
        let Some(entry) = table.get("proxy_protocol") else {
            return Accepted {
                from: None,
                at: site.key_at,
            };
        };
        let peers = match &entry.item.value {
            Value::Table(inner) => {
                self.unknown_keys(inner, AT);
                if inner.get("from").is_none() {
                    self.diagnostics.push(
                        Diagnostic::new(entry.item.at, "`proxy_protocol` names no peers", "")
                            .help("write proxy_protocol = { from = [\"10.0.0.0/8\"] }"),
                    );
                }
                self.peers(inner, AT, "from")
            }
            _ => self.peers_of(Section::Site, entry),
        };
        Accepted {
            from: peers.filter(|peers| !peers.is_empty()).map(Arc::new),
            at: entry.key_at,
        }
    }

    /// Finds `[site.example.com]`, which TOML reads as a table `com` in the site `example`.
    fn unquoted_name(&mut self, entry: &Entry, table: &Table) -> bool {
        let mut name = entry.key.clone();
        let (mut table, mut at) = (table, None::<At>);
        while let [only] = table.entries.as_slice()
            && let Value::Table(inner) = &only.item.value
            && Section::Site.key(&only.key).is_none()
        {
            name = format!("{name}.{}", only.key);
            at = Some(only.key_at);
            table = inner;
        }
        let Some(at) = at else { return false };
        self.diagnostics.push(
            Diagnostic::new(
                at,
                format!("the dots in `{name}` part tables"),
                "taken as a key of a site",
            )
            .help(format!("write the name in quotes: [site.\"{name}\"]")),
        );
        true
    }

    /// The hosts and the addresses of a site, and TLS where it has it.
    fn addresses(
        &mut self,
        entry: &Entry,
        table: &Table,
        index: usize,
        to: &mut Listeners,
    ) -> Option<SiteTls> {
        const AT: Section = Section::Site;
        let mut hosts: Vec<(HostPattern, At)> = Vec::new();
        let mut name = None;
        match site_name(&entry.key) {
            Ok(read) => {
                hosts.push((read.host.clone(), entry.key_at));
                name = Some(read);
            }
            Err(error) => self.pattern_error(entry.key_at, &entry.key, "the site", &error),
        }
        for (alias, item) in self.strings(table, AT, "aliases").unwrap_or_default() {
            match HostPattern::parse(&alias) {
                Ok(host) => hosts.push((host, item.at)),
                Err(error) => self.pattern_error(item.at, &alias, "the alias", &error),
            }
        }
        let tls = self.tls(table, &hosts);
        let is_on = matches!(tls, Wanted::On(..));
        let mut addresses = Vec::new();
        if let Some(name) = &name
            && table.get("listen").is_none()
        {
            if matches!(tls, Wanted::Unsaid) && name.port.is_none() {
                self.needs_tls(&name.host, entry);
            }
            let of_name = name.addresses(is_on).into_iter();
            addresses.extend(of_name.map(|(a, secured)| (a, secured, entry.key_at)));
        }
        if let Some(listen) = table.get("listen") {
            let texts = self.strings(table, AT, "listen");
            if texts.as_ref().is_some_and(Vec::is_empty) {
                self.wrong(AT, listen, &listen.item);
            }
            for (text, item) in texts.unwrap_or_default() {
                let (speaks, text) = Speaks::read(&text);
                if speaks == Some(Speaks::Tls) && matches!(tls, Wanted::Unsaid | Wanted::Off) {
                    self.diagnostics.push(
                        Diagnostic::new(item.at, "this site has no certificate", "under TLS").help(
                            "write tls = { cert = \"PATH\", key = \"PATH\" } or tls = \
                             \"self-signed\" in it, or take `https://` away",
                        ),
                    );
                }
                for address in self.listen_address(text, item.at) {
                    let secured = is_on && Speaks::of(speaks, &address) == Speaks::Tls;
                    if addresses.iter().any(|(known, ..)| *known == address) {
                        self.diagnostics.push(
                            Diagnostic::new(item.at, "this address is named twice", "")
                                .help("take one away"),
                        );
                    } else {
                        addresses.push((address, secured, item.at));
                    }
                }
            }
        }
        let accepted = self.accepted(entry, table);
        let is_default = matches!(&tls, Wanted::On(spoken, _) if spoken.is_default);
        let port = addresses
            .iter()
            .find_map(|(address, secured, _)| match address {
                ListenAddr::Tcp { address, .. } if *secured => Some(address.port()),
                _ => None,
            });
        let is_secured = addresses.iter().any(|(_, secured, _)| *secured);
        let listens: Vec<IpAddr> = addresses
            .iter()
            .filter_map(|(address, ..)| match address {
                ListenAddr::Tcp { address, .. } => Some(address.ip()),
                _ => None,
            })
            .filter(|address| !address.is_unspecified())
            .collect();
        for (address, secured, at) in addresses {
            let secured = secured.then_some(is_default);
            to.add(index, &hosts, (address, secured, at), &accepted);
        }
        let Wanted::On(spoken, at) = tls else {
            return None;
        };
        if !is_secured && self.diagnostics.is_empty() {
            self.diagnostics.push(
                Diagnostic::new(at, "no address of this site is under TLS", "").help(
                    "take `listen` away, or add an address to it such as \":443\"; port 80 and \
                     what begins with `http://` is plain",
                ),
            );
        }
        let mut certificates = spoken.certificates;
        let self_signed = spoken.is_self_signed.then(|| {
            certificates.push(Certificate {
                id: CertificateId::Made {
                    site: entry.key.clone(),
                },
                identity: None,
                ocsp: Ocsp::None,
            });
            SelfSigned {
                hosts: hosts.into_iter().map(|(host, _)| host).collect(),
                addresses: listens,
            }
        });
        Some(SiteTls {
            certificates,
            self_signed,
            policy: spoken.policy,
            hsts: spoken.hsts,
            clients: None,
            clients_id: None,
            port: port.unwrap_or(443),
        })
    }
}
