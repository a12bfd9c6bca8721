//! `client_certificates` of a site: whose are taken, and which fields tell a backend of them.

use std::path::PathBuf;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::Outside;
use super::read::Reader;
use crate::config::diagnostics::{At, Diagnostic};
use crate::config::model::{ClientFact, ClientFields, ClientsId, PemFile, SiteTls};
use crate::config::raw::{Table, Value};
use crate::config::schema::Section;
use crate::http::semantics::forwarding::{FieldOp, FieldOpError, is_written_anew};
use crate::http::types::FieldName;
use crate::net::tls::{Clients, ClientsPart};
use crate::util::clock;

/// Before so long its end, a revocation list is spoken of.
const SOON: i64 = 86_400;

const AT: Section = Section::Clients;

/// The keys that name fields.
const FACTS: [(&str, ClientFact); 5] = [
    ("verified", ClientFact::Verified),
    ("subject", ClientFact::Subject),
    ("issuer", ClientFact::Issuer),
    ("serial", ClientFact::Serial),
    ("fingerprint", ClientFact::Fingerprint),
];

impl Reader<'_> {
    /// What a site says of its clients' certificates: into its TLS, whose they are; and the fields.
    pub(super) fn client_certificates(
        &mut self,
        site: &Table,
        tls: Option<&mut SiteTls>,
    ) -> Option<Arc<ClientFields>> {
        let entry = site.get("client_certificates")?;
        let Value::Table(table) = &entry.item.value else {
            self.wrong(Section::Site, entry, &entry.item);
            return None;
        };
        self.unknown_keys(table, AT);
        let fields = self.client_fields(table);
        let is_required = self.boolean(table, AT, "required");
        let authorities = self.pem_files(table, "ca");
        let lists = self.pem_files(table, "crl");
        if table.get("ca").is_none() {
            let needless = ["required", "crl"].map(|name| table.get(name));
            if let Some(needless) = needless.into_iter().flatten().next() {
                let message = format!("`{}` says nothing without `ca`", needless.key);
                self.diagnostics
                    .push(Diagnostic::new(needless.key_at, message, "").help(
                        "write ca = \"PATH\": the authorities that issue certificates to clients",
                    ));
            } else if table.entries.is_empty() {
                self.diagnostics.push(
                    Diagnostic::new(entry.item.at, "`client_certificates` says nothing", "")
                        .help("write client_certificates = { ca = \"PATH\" }"),
                );
            }
            return fields;
        }
        let has_tls = site.get("tls");
        if !has_tls.is_some_and(|tls| !matches!(tls.item.value, Value::Boolean(false))) {
            self.diagnostics.push(
                Diagnostic::new(
                    entry.key_at,
                    "certificates of clients come by TLS alone",
                    "",
                )
                .help("write tls = { cert = \"PATH\", key = \"PATH\" } in this site, too"),
            );
        }
        let (Some(authorities), Some(lists)) = (authorities, lists) else {
            return fields;
        };
        let unread = |files: &[Found]| files.iter().any(|file| file.text.is_none());
        if let Some(tls) = tls
            && !unread(&authorities)
            && !unread(&lists)
        {
            let is_required = is_required.unwrap_or(true);
            tls.clients = self.clients(&authorities, &lists, is_required);
            tls.clients_id = Some(ClientsId {
                authorities: paths(&authorities),
                lists: paths(&lists),
                is_required,
            });
        }
        fields
    }

    fn clients(
        &mut self,
        authorities: &[Found],
        lists: &[Found],
        is_required: bool,
    ) -> Option<Arc<Clients>> {
        let clients = Clients::from_pem(&texts(authorities), &texts(lists), is_required);
        match clients {
            Ok(clients) => {
                self.warn_of_clients(&clients, authorities);
                Some(clients)
            }
            Err(error) => {
                let file = match error.part {
                    ClientsPart::Authorities(index) => &authorities[index],
                    ClientsPart::Lists(index) => &lists[index],
                };
                let message = format!("the file `{}` {}", file.path.display(), error.message);
                self.diagnostics
                    .push(Diagnostic::new(file.at, message, "").help(error.help));
                None
            }
        }
    }

    /// The files that a key names; none where it isn't there, `None` where one can't be read.
    fn pem_files(&mut self, table: &Table, name: &str) -> Option<Vec<Found>> {
        if table.get(name).is_none() {
            return Some(Vec::new());
        }
        let names = self.file_names(table, AT, name)?;
        let files: Vec<_> = names
            .into_iter()
            .map(|(name, item)| {
                let path = self.path(item.at, &name);
                let text = self.pem(item.at, &path)?;
                Some(Found {
                    path,
                    at: item.at,
                    text,
                })
            })
            .collect();
        files.into_iter().collect()
    }

    /// The fields that tell a backend of the client; `None` where there are none.
    fn client_fields(&mut self, table: &Table) -> Option<Arc<ClientFields>> {
        let mut fields: Vec<(ClientFact, FieldName)> = Vec::new();
        for (key, fact) in FACTS {
            let Some(entry) = table.get(key) else {
                continue;
            };
            let Some(name) = self.string_of(AT, entry, &entry.item) else {
                continue;
            };
            let name = FieldName::Shared(name.as_str().into());
            let wrong = match FieldOp::remove(name.clone()) {
                Err(FieldOpError::Owned) => Some("the proxy writes this field itself"),
                Err(_) => Some("a field name is made of letters, digits and `-`, without a colon"),
                Ok(_) if name.as_str().contains('_') => {
                    Some("many backends take `_` for `-`: write it with `-`")
                }
                Ok(_) if is_written_anew(name.as_str()) => {
                    Some("the proxy writes this field itself")
                }
                Ok(_) => None,
            };
            if let Some(why) = wrong {
                let message = format!("`{}` can't be such a field", name.as_str());
                self.diagnostics.push(
                    Diagnostic::new(entry.item.at, message, why)
                        .help("name one that only this proxy sets, such as \"X-Client-Subject\""),
                );
                continue;
            }
            let is_same = |(_, other): &&(ClientFact, FieldName)| {
                other.as_str().eq_ignore_ascii_case(name.as_str())
            };
            if fields.iter().find(is_same).is_some() {
                let message = format!("the field `{}` is named twice", name.as_str());
                self.diagnostics.push(
                    Diagnostic::new(entry.item.at, message, "again here")
                        .help("the case of a field name makes no difference; name another one"),
                );
                continue;
            }
            fields.push((fact, name));
        }
        (!fields.is_empty()).then(|| Arc::new(ClientFields::new(fields)))
    }

    /// Warns of what would keep clients out.
    fn warn_of_clients(&mut self, clients: &Clients, authorities: &[Found]) {
        let (Outside::Machine { .. }, Some(first)) = (self.outside, authorities.first()) else {
            return;
        };
        let place = self.place(first.at);
        let now = clock::unix_s();
        for authority in clients.authorities() {
            if now > authority.not_after {
                self.warnings.push(format!(
                    "{place}: the authority `{}` expired {} days ago: its clients still come in, \
                     so take it away or renew it",
                    authority.subject,
                    (now - authority.not_after) / 86_400
                ));
            }
        }
        for name in clients.unlisted() {
            self.warnings.push(format!(
                "{place}: none of the revocation lists is of the authority `{name}`: its clients are \
                 refused until one is"
            ));
        }
        for end in clients.lists().iter().filter_map(|list| list.next_update) {
            if now > end {
                self.warnings.push(format!(
                    "{place}: a revocation list has ended: all clients of its authority are refused \
                     until a new one is in its place"
                ));
            } else if now > end - SOON {
                self.warnings.push(format!(
                    "{place}: a revocation list ends in {} hours: replace it",
                    (end - now) / 3600
                ));
            }
        }
    }
}

/// A file in PEM, as it was found.
struct Found {
    path: PathBuf,
    at: At,
    /// `None` where files aren't read.
    text: Option<Zeroizing<String>>,
}

fn paths(files: &[Found]) -> Vec<PemFile> {
    let paths = files.iter().map(|file| file.path.clone());
    paths.map(PemFile).collect()
}

fn texts(files: &[Found]) -> Vec<&str> {
    let texts = files.iter().filter_map(|file| file.text.as_ref());
    texts.map(|text| text.as_str()).collect()
}
