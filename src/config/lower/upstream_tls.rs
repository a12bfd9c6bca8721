//! TLS to the servers of an upstream: who is believed, who we are, and which servers it is for.

use std::path::{Path, PathBuf};

use super::Outside;
use super::address::Written;
use super::read::{Reader, Toggle};
use crate::config::diagnostics::{At, Diagnostic};
use crate::config::model::{
    Certificate, CertificateId, ServerAddr, UpstreamFiles, UpstreamServer, UpstreamTls,
};
use crate::config::raw::{Entry, Item, Table};
use crate::config::schema::Section;
use crate::net::tls::{PeerName, Policy, Roots, Terms, Trust};

/// Where systems keep the certificates of the authorities that they believe: Debian and Alpine, Fedora,
/// openSUSE, and others.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The variable that names another file, as OpenSSL has it.
const ROOTS_VARIABLE: &str = "SSL_CERT_FILE";

/// What an upstream says of TLS.
pub(super) enum TlsToServers {
    /// Nothing: each server's address says it.
    Unsaid,
    /// None.
    Off,
    /// This, for all servers whose address says nothing else.
    On(UpstreamTls),
}

impl TlsToServers {
    /// Whether a server is under TLS whose address says nothing of it.
    fn is_default(&self) -> bool {
        matches!(self, Self::On(_))
    }

    fn has_name(&self) -> bool {
        matches!(self, Self::On(tls) if tls.name.is_some())
    }
}

impl Reader<'_> {
    /// What an upstream says of TLS.
    pub(super) fn tls_to_servers(&mut self, upstream: &Table) -> TlsToServers {
        let Some(entry) = upstream.get("tls") else {
            return TlsToServers::Unsaid;
        };
        match self.toggle(upstream, Section::Upstream, "tls") {
            None => TlsToServers::Unsaid,
            Some(Toggle::Off) => TlsToServers::Off,
            Some(Toggle::On) => TlsToServers::On(self.usual_tls(entry.item.at)),
            Some(Toggle::Table(table)) => TlsToServers::On(self.upstream_tls(entry, table)),
        }
    }

    /// What TLS is where nothing is said of it. `at` is where it is wanted.
    fn usual_tls(&mut self, at: At) -> UpstreamTls {
        UpstreamTls {
            name: None,
            terms: Terms {
                trust: self.system_trust(at),
                identity: None,
                policy: Policy::Intermediate,
                tells_name: true,
            },
            files: UpstreamFiles::default(),
        }
    }

    fn upstream_tls(&mut self, entry: &Entry, table: &Table) -> UpstreamTls {
        const AT: Section = Section::UpstreamTls;
        self.unknown_keys(table, AT);
        let name = table.get("name").and_then(|entry| {
            let text = self.string_of(AT, entry, &entry.item)?;
            let name = PeerName::parse(&text);
            if name.is_none() {
                let message = format!("`{text}` is neither the name of a host nor an address");
                self.diagnostics.push(
                    Diagnostic::new(entry.item.at, message, "")
                        .help("write a name that the certificate has, without a port"),
                );
            }
            name
        });
        let insecure = self.boolean(table, AT, "insecure").unwrap_or(false);
        let mut files = UpstreamFiles::default();
        let trust = match (insecure, table.get("ca")) {
            (true, Some(ca)) => {
                self.diagnostics.push(
                    Diagnostic::new(ca.key_at, "`ca` does nothing with `insecure`", "")
                        .help("take `insecure` away: with `ca` servers are verified by it"),
                );
                Trust::Anybody
            }
            (true, None) => {
                self.warn_of_insecure(entry);
                Trust::Anybody
            }
            (false, Some(ca)) => self.trust_of(AT, ca, &mut files),
            (false, None) => self.system_trust(entry.item.at),
        };
        let policies = [Policy::Modern, Policy::Intermediate].map(|one| (one.name(), one));
        let policy = self.word(table, AT, "policy", &policies);
        let own = self.identity(entry, table);
        if let Some(CertificateId::Files { certificate, key }) = own.as_ref().map(|own| &own.id) {
            files.identity = Some((certificate.clone(), key.clone()));
        }
        UpstreamTls {
            name,
            terms: Terms {
                trust,
                identity: own.and_then(|own| own.identity),
                policy: policy.unwrap_or(Policy::Intermediate),
                tells_name: self.boolean(table, AT, "sni").unwrap_or(true),
            },
            files,
        }
    }

    fn warn_of_insecure(&mut self, entry: &Entry) {
        let place = self.place(entry.item.at);
        self.warnings.push(format!(
            "{place}: insecure = true: nobody verifies who answers for these servers, and whoever is on \
             the way can read and change everything: name their authority with `ca`"
        ));
    }

    /// The client certificate, where there is one.
    fn identity(&mut self, tls: &Entry, table: &Table) -> Option<Certificate> {
        const AT: Section = Section::UpstreamTls;
        let mut file = |name| {
            let entry = table.get(name)?;
            let text = self.string_of(AT, entry, &entry.item);
            Some(text.map(|text| (text, &entry.item)))
        };
        match (file("cert"), file("key")) {
            (None, None) => None,
            (Some(chain), Some(key)) => {
                let (certificate, _) = self.certificate(chain?, key?)?;
                Some(certificate)
            }
            (chain, _) => {
                let name = if chain.is_some() { "key" } else { "cert" };
                self.diagnostics.push(
                    Diagnostic::new(tls.item.at, format!("`tls` has no `{name}`"), "")
                        .help("a client certificate is both, cert = \"PATH\" and key = \"PATH\""),
                );
                None
            }
        }
    }

    fn trust_of(&mut self, section: Section, entry: &Entry, files: &mut UpstreamFiles) -> Trust {
        match self.string_of(section, entry, &entry.item) {
            Some(text) => {
                let path = self.path(entry.item.at, &text);
                let trust = self.trust_in(entry.item.at, &path);
                files.trust = Some(path);
                trust
            }
            None => Trust::Nobody,
        }
    }

    /// The authorities of a file; none, and a report, where they can't be read.
    fn trust_in(&mut self, at: At, path: &Path) -> Trust {
        let Some(Some(text)) = self.pem(at, path) else {
            return Trust::Nobody;
        };
        match Roots::from_pem(text.as_bytes()) {
            Ok(roots) => Trust::Roots(roots),
            Err(error) => {
                let message = format!("the file `{}` {}", path.display(), error.message);
                self.diagnostics
                    .push(Diagnostic::new(at, message, "").help(error.help));
                Trust::Nobody
            }
        }
    }

    /// The authorities that this system believes, read once.
    fn system_trust(&mut self, at: At) -> Trust {
        if let Some(trust) = &self.upstreams.system_trust {
            return trust.clone();
        }
        let trust = match self.system_roots() {
            Some(path) => self.trust_in(at, &path),
            None => {
                let message = "this system has no certificates of authorities to verify servers by";
                self.diagnostics.push(
                    Diagnostic::new(at, message, "TLS to servers")
                        .help("install them (the package ca-certificates)")
                        .help("or name the authority of the servers: tls = { ca = \"PATH\" }"),
                );
                Trust::Nobody
            }
        };
        self.upstreams.system_trust.insert(trust).clone()
    }

    fn system_roots(&mut self) -> Option<PathBuf> {
        let variables = match self.outside {
            Outside::Machine { environment, .. } => environment,
            Outside::Known(known) => &known.variables,
        };
        if let Some(path) = variables.get(ROOTS_VARIABLE).filter(|it| !it.is_empty()) {
            let used = &mut self.references.variables;
            used.insert(ROOTS_VARIABLE.to_owned(), path.clone());
            return Some(path.into());
        }
        let is_there = |path: &&str| match self.outside {
            Outside::Machine { check_files, .. } => !check_files || Path::new(path).exists(),
            Outside::Known(known) => known.pem.contains_key(Path::new(path)),
        };
        SYSTEM_ROOTS.iter().copied().find(is_there).map(Into::into)
    }

    /// The server of an address, under TLS or not as both it and the upstream have it.
    pub(super) fn server_at(
        &mut self,
        item: &Item,
        written: Written,
        tls: &TlsToServers,
    ) -> UpstreamServer {
        let mut server = UpstreamServer::new(written.address);
        server.secured = written.secured.unwrap_or(tls.is_default());
        if server.secured && matches!(tls, TlsToServers::Off) {
            self.diagnostics.push(
                Diagnostic::new(
                    item.at,
                    "`tls` of this upstream is false",
                    "and this is https",
                )
                .help("take `tls` away, or write `http://`"),
            );
        }
        if server.secured && !tls.has_name() {
            let no_name = match &server.address {
                ServerAddr::Ip(_) => None,
                ServerAddr::Name(host, _) => match PeerName::parse(host) {
                    Some(_) => None,
                    None => Some(format!("no certificate can be for `{host}`")),
                },
                ServerAddr::Service(_) | ServerAddr::Unix(_) => Some(format!(
                    "`{}` doesn't say whose certificate the server has",
                    server.address
                )),
            };
            if let Some(message) = no_name {
                self.diagnostics.push(
                    Diagnostic::new(item.at, message, "under TLS").help(
                        "write the name in the upstream: tls = { name = \"app.example.com\" }",
                    ),
                );
            }
        }
        server
    }

    /// What the servers that are under TLS are connected to by; nothing where none is.
    pub(super) fn tls_of(
        &mut self,
        servers: &[UpstreamServer],
        said: TlsToServers,
        (entry, at): (Option<&Entry>, At),
    ) -> Option<UpstreamTls> {
        let is_secured = servers.iter().any(|server| server.secured);
        match said {
            TlsToServers::On(tls) if is_secured => Some(tls),
            TlsToServers::On(_) => {
                if let Some(entry) = entry
                    && !servers.is_empty()
                {
                    let message = "`tls` does nothing: every server begins with `http://`";
                    self.diagnostics.push(
                        Diagnostic::new(entry.key_at, message, "")
                            .help("write `https://` instead, or take `tls` away"),
                    );
                }
                None
            }
            TlsToServers::Unsaid if is_secured => Some(self.usual_tls(at)),
            TlsToServers::Unsaid | TlsToServers::Off => None,
        }
    }
}
