//! `tls` of a site: what it says, its files, and whether a name needs it.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::Outside;
use super::read::Reader;
use crate::config::diagnostics::{At, Diagnostic};
use crate::config::model::{Certificate, CertificateId, Ocsp};
use crate::config::raw::{Entry, Item, Table, Value};
use crate::config::schema::Section;
use crate::config::sources::read_text;
use crate::http::router::HostPattern;
use crate::http::types::FieldValue;
use crate::net::tls::identity::Part;
use crate::net::tls::{Identity, Policy};
use crate::util::clock;

/// As `tls` of a site says that the local authority signs for it.
const SELF_SIGNED: &str = "self-signed";

/// What may be written where nothing, or too little, was.
const WRITE: &str = "write tls = { cert = \"PATH\", key = \"PATH\" }, or tls = \"self-signed\" for \
                     clients that trust the authority of this machine";

/// Domains that no authority outside of their network issues certificates for (RFC 2606, RFC 6761,
/// RFC 6762, RFC 8375, and what ICANN has set apart).
const PRIVATE: [&str; 8] = [
    "localhost",
    "local",
    "internal",
    "test",
    "example",
    "invalid",
    "lan",
    "home.arpa",
];

/// What a site says about TLS.
pub(super) enum Wanted {
    /// Nothing.
    Unsaid,
    /// None.
    Off,
    /// This, said here.
    On(Box<Spoken>, At),
    /// It was said wrongly, and reported.
    Wrong,
}

/// What `tls = { … }` says.
pub(super) struct Spoken {
    /// Of files; none where the local authority signs.
    pub(super) certificates: Vec<Certificate>,
    pub(super) is_self_signed: bool,
    pub(super) policy: Policy,
    pub(super) is_default: bool,
    pub(super) hsts: Option<FieldValue>,
}

/// Whether a host has a name that the public may know, and that an authority would issue a certificate
/// for.
pub(super) fn is_public(host: &HostPattern) -> bool {
    let name: &str = match host {
        HostPattern::Exact(name) => name,
        HostPattern::Below(domain) => &domain[1..],
        HostPattern::Default => return false,
    };
    let is_address = name.starts_with('[') || name.parse::<std::net::IpAddr>().is_ok();
    let is_beneath = |domain: &str| {
        name.strip_suffix(domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    name.contains('.') && !is_address && !PRIVATE.iter().any(|domain| is_beneath(domain))
}

impl Reader<'_> {
    /// What a site says of TLS. `hosts`: the names that it answers for.
    pub(super) fn tls(&mut self, site: &Table, hosts: &[(HostPattern, At)]) -> Wanted {
        const AT: Section = Section::Tls;
        let Some(entry) = site.get("tls") else {
            return Wanted::Unsaid;
        };
        let table = match &entry.item.value {
            Value::Boolean(false) => return Wanted::Off,
            Value::Table(table) => table,
            Value::String(_) => {
                let word = self.string_of(Section::Site, entry, &entry.item);
                if word.as_deref() == Some(SELF_SIGNED) {
                    return Wanted::On(Box::new(Spoken::self_signed()), entry.key_at);
                }
                if let Some(word) = word {
                    self.unknown_word(entry, &word, &[SELF_SIGNED]);
                }
                return Wanted::Wrong;
            }
            Value::Boolean(true) => {
                self.diagnostics.push(
                    Diagnostic::new(entry.item.at, "`tls` names no certificate", "").help(WRITE),
                );
                return Wanted::Wrong;
            }
            _ => {
                self.wrong(Section::Site, entry, &entry.item);
                return Wanted::Wrong;
            }
        };
        self.unknown_keys(table, AT);
        let before = self.diagnostics.len();
        let is_self_signed = self.boolean(table, AT, "self_signed").unwrap_or(false);
        let mut certificates = match is_self_signed {
            true => {
                self.neither(table);
                Vec::new()
            }
            false => self.certificates(entry, table),
        };
        self.staples(table, &mut certificates);
        self.warn_of(&certificates, hosts);
        let policy = self.word(
            table,
            AT,
            "policy",
            &[
                (Policy::Modern.name(), Policy::Modern),
                (Policy::Intermediate.name(), Policy::Intermediate),
            ],
        );
        let hsts = self
            .duration_or_false(table, AT, "hsts", Duration::from_secs(1))
            .flatten();
        let spoken = Spoken {
            policy: policy.unwrap_or_default(),
            is_default: self.boolean(table, AT, "default").unwrap_or(false),
            hsts: hsts.map(|age| {
                let value = format!("max-age={}", age.as_secs());
                FieldValue::Shared(value.into_bytes().into())
            }),
            certificates: certificates.into_iter().map(|(one, _)| one).collect(),
            is_self_signed,
        };
        self.warn_of_hsts(&spoken, hosts, entry.key_at);
        match self.diagnostics.len() == before {
            true => Wanted::On(Box::new(spoken), entry.key_at),
            false => Wanted::Wrong,
        }
    }

    /// Reports a public name that says nothing of TLS.
    pub(super) fn needs_tls(&mut self, host: &HostPattern, site: &Entry) {
        if !is_public(host) {
            return;
        }
        let message = format!("the site `{}` says nothing of TLS", site.key);
        self.diagnostics.push(
            Diagnostic::new(site.key_at, message, "a public name")
                .help(
                    "write tls = { cert = \"PATH\", key = \"PATH\" }: it then listens on port 443, \
                     and port 80 leads there",
                )
                .help(
                    "or tls = \"self-signed\", for clients that trust the authority of this machine",
                )
                .help("or tls = false for plain HTTP on port 80, or `listen` for other addresses"),
        );
    }

    /// Reports files where the local authority signs.
    fn neither(&mut self, table: &Table) {
        for entry in ["cert", "key", "ocsp"]
            .into_iter()
            .filter_map(|name| table.get(name))
            .filter(|entry| !matches!(entry.item.value, Value::Boolean(false)))
        {
            let message = format!("`{}` beside `self_signed`", entry.key);
            self.diagnostics.push(
                Diagnostic::new(entry.key_at, message, "")
                    .help("name files, or have the local authority sign: take one of them away"),
            );
        }
    }

    /// The certificates, each with the place of its file.
    fn certificates(&mut self, entry: &Entry, table: &Table) -> Vec<(Certificate, At)> {
        const AT: Section = Section::Tls;
        let missing = ["cert", "key"].map(|name| table.get(name).is_none());
        let chains = self.file_names(table, AT, "cert");
        let keys = self.file_names(table, AT, "key");
        if missing[0] || missing[1] {
            let name = if missing[0] { "cert" } else { "key" };
            self.diagnostics.push(
                Diagnostic::new(entry.item.at, format!("`tls` has no `{name}`"), "").help(WRITE),
            );
            return Vec::new();
        }
        let (Some(chains), Some(keys)) = (chains, keys) else {
            return Vec::new();
        };
        if chains.len() != keys.len() {
            let message = format!(
                "`tls` names {} of `cert` and {} of `key`",
                chains.len(),
                keys.len()
            );
            self.diagnostics.push(
                Diagnostic::new(entry.item.at, message, "")
                    .help("each certificate has a key of its own, in the same order"),
            );
            return Vec::new();
        }
        let pairs = chains.into_iter().zip(keys);
        pairs
            .filter_map(|(chain, key)| self.certificate(chain, key))
            .collect()
    }

    /// One file name, or a list of them, with their items.
    pub(super) fn file_names<'t>(
        &mut self,
        table: &'t Table,
        section: Section,
        name: &str,
    ) -> Option<Vec<(String, &'t Item)>> {
        let entry = table.get(name)?;
        match &entry.item.value {
            Value::Array(items) if !items.is_empty() => self.strings(table, section, name),
            Value::String(_) => {
                let text = self.string_of(section, entry, &entry.item)?;
                Some(vec![(text, &entry.item)])
            }
            _ => {
                self.wrong(section, entry, &entry.item);
                None
            }
        }
    }

    pub(super) fn certificate(
        &mut self,
        (chain, chain_item): (String, &Item),
        (key, key_item): (String, &Item),
    ) -> Option<(Certificate, At)> {
        let chain_path = self.path(chain_item.at, &chain);
        let key_path = self.path(key_item.at, &key);
        // Both, so that one run finds what is wrong with either.
        let chain = self.pem(chain_item.at, &chain_path);
        let key = self.pem(key_item.at, &key_path);
        let id = CertificateId::Files {
            certificate: chain_path.clone(),
            key: key_path.clone(),
        };
        let (Some(chain), Some(key)) = (chain?, key?) else {
            return Some((certificate(id, None), chain_item.at));
        };
        if let Outside::Machine { .. } = self.outside {
            self.warn_of_readable(&key_path);
        }
        match Identity::from_pem(chain.as_bytes(), key.as_bytes()) {
            Ok(identity) => {
                let identity = Some(Arc::new(identity));
                Some((certificate(id, identity), chain_item.at))
            }
            Err(error) => {
                let (path, at) = match error.part {
                    Part::Certificate => (chain_path, chain_item.at),
                    Part::Key => (key_path, key_item.at),
                };
                let message = format!("the file `{}` {}", path.display(), error.message);
                self.diagnostics
                    .push(Diagnostic::new(at, message, "").help(error.help));
                None
            }
        }
    }

    /// The text of a file in PEM; `Some(None)` where files aren't read, `None` and a report where it
    /// can't be.
    pub(super) fn pem(&mut self, at: At, path: &Path) -> Option<Option<Zeroizing<String>>> {
        self.text_of(at, path, read_text)
    }

    /// As [`Self::pem`], of a file that `read` makes text of.
    pub(super) fn text_of(
        &mut self,
        at: At,
        path: &Path,
        read: impl FnOnce(&Path) -> Result<String, (String, String)>,
    ) -> Option<Option<Zeroizing<String>>> {
        let read = match self.outside {
            // As nothing, which is told from a file that is empty when it is read.
            Outside::Machine {
                check_files: false, ..
            } => Ok(Zeroizing::default()),
            Outside::Machine { .. } => read(path).map(Zeroizing::new),
            Outside::Known(known) => known.pem.get(path).cloned().ok_or_else(|| {
                let help = "the text of every file that is named has to come along";
                ("is not known here".to_owned(), help.to_owned())
            }),
        };
        match read {
            Ok(text) => {
                self.references.pem.insert(path.to_owned(), text.clone());
                let unread = text.is_empty() && !self.checks_files();
                Some((!unread).then_some(text))
            }
            Err((message, help)) => {
                let message = format!("the file `{}` {message}", path.display());
                self.diagnostics
                    .push(Diagnostic::new(at, message, "").help(help));
                None
            }
        }
    }

    fn warn_of_readable(&mut self, key: &Path) {
        let mode = std::fs::metadata(key).map_or(0, |metadata| metadata.mode());
        if mode & 0o004 != 0 {
            self.warnings.push(format!(
                "everybody on this machine can read the private key `{}`: chmod 600 {0}",
                key.display()
            ));
        }
    }

    /// Warns of certificates that clients won't like. Of those that end, whoever has them in use warns.
    fn warn_of(&mut self, certificates: &[(Certificate, At)], hosts: &[(HostPattern, At)]) {
        let Outside::Machine { .. } = self.outside else {
            return;
        };
        let now = clock::unix_s();
        for (certificate, at) in certificates {
            let Some(identity) = &certificate.identity else {
                continue;
            };
            let place = self.place(*at);
            if now < identity.validity().0 {
                self.warnings.push(format!(
                    "{place}: the certificate is not valid yet: look at the clock of this machine"
                ));
            }
            for (host, _) in hosts {
                let name = match host {
                    HostPattern::Exact(name) => name.to_string(),
                    HostPattern::Below(domain) => format!("*{domain}"),
                    HostPattern::Default => continue,
                };
                if !identity.covers(&name) {
                    self.warnings.push(format!(
                        "{place}: the certificate is not for {name}, but for {}",
                        identity.names().join(", ")
                    ));
                }
            }
        }
    }

    /// Warns of HSTS where it counts for more than this site: browsers don't tell ports apart (RFC 6797
    /// §8.3), and everybody's servers are at `localhost`.
    fn warn_of_hsts(&mut self, spoken: &Spoken, hosts: &[(HostPattern, At)], at: At) {
        let Outside::Machine { .. } = self.outside else {
            return;
        };
        let is_shared = |host: &HostPattern| match host {
            HostPattern::Exact(name) => &**name == "localhost",
            HostPattern::Below(domain) => &**domain == ".localhost",
            HostPattern::Default => spoken.is_self_signed,
        };
        if spoken.hsts.is_some() && hosts.iter().any(|(host, _)| is_shared(host)) {
            let place = self.place(at);
            self.warnings.push(format!(
                "{place}: by `hsts` browsers will ask every port of localhost by HTTPS alone, also those of \
                 other programs: take it away"
            ));
        }
    }

    /// File and line, as warnings begin.
    pub(super) fn place(&self, at: At) -> String {
        let place = self.diagnostics.sources.place(at);
        format!("{}:{}", place.source, place.line)
    }
}

/// A certificate of which nobody has said where its authority's statement comes from.
fn certificate(id: CertificateId, identity: Option<Arc<Identity>>) -> Certificate {
    Certificate {
        id,
        identity,
        ocsp: Ocsp::None,
    }
}

impl Spoken {
    /// What `tls = "self-signed"` says.
    fn self_signed() -> Self {
        Self {
            certificates: Vec::new(),
            is_self_signed: true,
            policy: Policy::default(),
            is_default: false,
            hsts: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_names_are_told_from_private_ones() {
        for (name, public) in [
            ("example.com", true),
            ("*.example.com", true),
            ("local.org", true),
            ("mylocalhost.com", true),
            ("a.notlocal", true),
            ("localhost", false),
            ("a.localhost", false),
            ("a.test", false),
            ("router.home.arpa", false),
            ("intranet", false),
            ("10.0.0.1", false),
            ("[::1]", false),
            ("*", false),
        ] {
            assert_eq!(
                is_public(&HostPattern::parse(name).unwrap()),
                public,
                "{name}"
            );
        }
    }
}
