//! What master and workers, and a master and the next one, tell each other of certificates.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::certificates::files::{Content, Pair};
use crate::certificates::local_ca::Leaf;
use crate::certificates::{Name, names};
use crate::config::model::{CertificateId, ClientsId, Model, Ocsp, SelfSigned};
use crate::config::references::References;
use crate::handlers::secured::Replacements;
use crate::http::router::HostPattern;
use crate::net::tls::identity::{chain_of, digest_of, facts_of};
use crate::net::tls::{Clients, ClientsPart, Identity};
use crate::util::x509::Facts;

/// A certificate that a configuration asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Which one.
    pub id: CertificateId,
    /// The sites that have it.
    pub sites: Vec<String>,
    /// What it is to be for, if it is to be made.
    pub names: Vec<String>,
    /// Where its authority's statement on it comes from: of the sites that have it, the first that says
    /// something.
    pub ocsp: Ocsp,
}

/// Clients with certificates that a configuration takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedClients {
    /// Which.
    pub id: ClientsId,
    /// The sites that take them.
    pub sites: Vec<String>,
}

/// The clients that a configuration takes, those of the same files once.
pub fn wanted_clients(model: &Model) -> Vec<WantedClients> {
    let mut all: Vec<WantedClients> = Vec::new();
    for site in &model.sites {
        let Some(id) = site.tls.as_ref().and_then(|tls| tls.clients_id.as_ref()) else {
            continue;
        };
        let name = site.name.to_string();
        match all.iter_mut().find(|known| known.id == *id) {
            Some(known) => known.sites.push(name),
            None => all.push(WantedClients {
                id: id.clone(),
                sites: vec![name],
            }),
        }
    }
    all
}

/// Every certificate that a configuration asks for, each once.
pub fn wanted(model: &Model) -> Vec<Wanted> {
    let mut all: Vec<Wanted> = Vec::new();
    let mut places: BTreeMap<&CertificateId, usize> = BTreeMap::new();
    for site in &model.sites {
        let Some(tls) = &site.tls else { continue };
        for certificate in &tls.certificates {
            let name = site.name.to_string();
            if let Some(place) = places.get(&certificate.id) {
                let known = &mut all[*place];
                if known.sites.last() != Some(&name) {
                    known.sites.push(name);
                }
                if known.ocsp == Ocsp::None {
                    known.ocsp.clone_from(&certificate.ocsp);
                }
                continue;
            }
            places.insert(&certificate.id, all.len());
            all.push(Wanted {
                id: certificate.id.clone(),
                sites: vec![name],
                names: tls.self_signed.as_ref().map_or_else(Vec::new, names_of),
                ocsp: certificate.ocsp.clone(),
            });
        }
    }
    all
}

/// What a certificate is for that the local authority signs. A site for any host is also asked for by
/// the addresses where it listens.
fn names_of(wanted: &SelfSigned) -> Vec<String> {
    let mut names = names::of_site(&wanted.hosts, &names::of_this_machine());
    if wanted.hosts.contains(&HostPattern::Default) {
        for address in &wanted.addresses {
            let name = Name::Address(*address);
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names.iter().map(Name::to_string).collect()
}

/// A certificate and its key, as they are handed on. The key is wiped when this is dropped.
#[derive(Clone, Serialize, Deserialize)]
pub(in crate::supervisor) struct Pem {
    /// Which one.
    pub(in crate::supervisor) id: CertificateId,
    /// The chain.
    pub(in crate::supervisor) certificate: String,
    /// The key.
    pub(in crate::supervisor) key: Zeroizing<String>,
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pem")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Pem {
    pub(super) fn made(id: CertificateId, leaf: &Leaf) -> Self {
        Self {
            id,
            certificate: leaf.certificate.clone(),
            key: leaf.key.clone(),
        }
    }

    /// What files hold that were found to belong together.
    pub(super) fn read(pair: &Pair, content: &Content) -> Self {
        // PEM is ASCII; what is between its parts is for people.
        let ascii = |byte: &u8| {
            if byte.is_ascii() {
                char::from(*byte)
            } else {
                '?'
            }
        };
        let mut key = Zeroizing::new(String::with_capacity(content.key.len()));
        key.extend(content.key.iter().map(ascii));
        Self {
            id: CertificateId::Files {
                certificate: pair.certificate.clone(),
                key: pair.key.clone(),
            },
            certificate: content.certificate.iter().map(ascii).collect(),
            key,
        }
    }

    /// What the certificate is; `None` for one that isn't whole.
    pub(super) fn facts(&self) -> Option<Facts> {
        let facts = facts_of(self.certificate.as_bytes()).ok()?;
        facts.into_iter().next()
    }

    /// The chain in DER.
    pub(super) fn chain(&self) -> Vec<Vec<u8>> {
        chain_of(self.certificate.as_bytes())
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        digest_of(self.certificate.as_bytes(), self.key.as_bytes())
    }
}

/// Which clients a site takes, as it is handed on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::supervisor) struct ClientsPem {
    /// Which.
    pub(in crate::supervisor) id: ClientsId,
    /// The texts of the authorities, as many as the files.
    pub(in crate::supervisor) authorities: Vec<String>,
    /// The texts of the revocation lists, as many as the files.
    pub(in crate::supervisor) lists: Vec<String>,
}

impl ClientsPem {
    /// In the form in which connections are verified by them.
    ///
    /// # Errors
    /// Which file is wrong, and why.
    pub(super) fn made(&self) -> Result<Arc<Clients>, String> {
        let [authorities, lists] = [&self.authorities, &self.lists]
            .map(|texts| texts.iter().map(String::as_str).collect::<Vec<_>>());
        let made = Clients::from_pem(&authorities, &lists, self.id.is_required);
        made.map_err(|error| {
            let file = match error.part {
                ClientsPart::Authorities(index) => self.id.authorities.get(index),
                ClientsPart::Lists(index) => self.id.lists.get(index),
            };
            let name = file.map(|file| file.0.display().to_string());
            let name = name.unwrap_or_default();
            format!("{name} {}; {}", error.message, error.help)
        })
    }
}

/// What an authority says of a certificate, as it is handed on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::supervisor) struct Said {
    /// Of which.
    pub(in crate::supervisor) of: CertificateId,
    /// The response, in DER; `None` where the certificate is revoked, and clients are told nothing.
    pub(in crate::supervisor) response: Option<Vec<u8>>,
    /// When it came, in seconds since 1970.
    pub(in crate::supervisor) at_s: i64,
}

/// What stands in place of what a configuration was read with, or what it doesn't have. Keys are wiped when
/// this is dropped.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in crate::supervisor) struct Replaced {
    /// Certificates with their keys.
    pub(in crate::supervisor) certificates: Vec<Pem>,
    /// Which clients are taken.
    pub(in crate::supervisor) clients: Vec<ClientsPem>,
    /// What authorities say of certificates.
    pub(in crate::supervisor) statements: Vec<Said>,
}

impl Replaced {
    pub(in crate::supervisor) fn is_empty(&self) -> bool {
        self.certificates.is_empty() && self.clients.is_empty() && self.statements.is_empty()
    }

    /// Puts these in place of those of the same name.
    pub(in crate::supervisor) fn put(&mut self, new: Self) {
        let is_new = |id: &CertificateId| new.certificates.iter().any(|pem| pem.id == *id);
        self.certificates.retain(|known| !is_new(&known.id));
        let is_new = |id: &ClientsId| new.clients.iter().any(|one| one.id == *id);
        self.clients.retain(|known| !is_new(&known.id));
        let is_new = |id: &CertificateId| new.statements.iter().any(|said| said.of == *id);
        self.statements.retain(|known| !is_new(&known.of));
        self.certificates.extend(new.certificates);
        self.clients.extend(new.clients);
        self.statements.extend(new.statements);
    }

    /// Keeps what these ask for.
    pub(in crate::supervisor) fn keep(&mut self, wanted: &[Wanted], clients: &[WantedClients]) {
        let is_wanted = |id: &CertificateId| wanted.iter().any(|wanted| wanted.id == *id);
        self.certificates.retain(|pem| is_wanted(&pem.id));
        let has_statements = |id: &CertificateId| {
            let mut wanted = wanted.iter().filter(|wanted| wanted.id == *id);
            wanted.any(|wanted| wanted.ocsp != Ocsp::None)
        };
        self.statements.retain(|said| has_statements(&said.of));
        self.clients
            .retain(|one| clients.iter().any(|wanted| wanted.id == one.id));
    }

    /// Notes what the files of a configuration with these certificates hold by now.
    pub(in crate::supervisor) fn refer(&self, wanted: &[Wanted], to: &mut References) {
        for pem in &self.certificates {
            if let CertificateId::Files { certificate, key } = &pem.id {
                to.pem
                    .insert(certificate.clone(), pem.certificate.clone().into());
                to.pem.insert(key.clone(), pem.key.clone());
            }
        }
        for one in &self.clients {
            let authorities = one.id.authorities.iter().zip(&one.authorities);
            for (file, text) in authorities.chain(one.id.lists.iter().zip(&one.lists)) {
                to.pem.insert(file.0.clone(), text.clone().into());
            }
        }
        for said in &self.statements {
            let wanted = wanted.iter().find(|wanted| wanted.id == said.of);
            let ocsp = wanted.map(|wanted| &wanted.ocsp);
            if let (Some(Ocsp::File(path)), Some(response)) = (ocsp, &said.response) {
                to.put_bytes(path.clone(), response);
            }
        }
    }

    /// In the form in which connections use it.
    ///
    /// # Errors
    /// When it is not what it is called, which whoever sent it had checked.
    pub(in crate::supervisor) fn made(&self) -> Result<Replacements, String> {
        let identity = |pem: &Pem| {
            let identity = Identity::from_pem(pem.certificate.as_bytes(), pem.key.as_bytes());
            let identity = identity.map_err(|error| format!("a certificate {}", error.message))?;
            Ok((pem.id.clone(), Arc::new(identity)))
        };
        let clients = |one: &ClientsPem| Ok((one.id.clone(), one.made()?));
        let statements = self.statements.iter();
        Ok(Replacements {
            identities: self
                .certificates
                .iter()
                .map(identity)
                .collect::<Result<_, String>>()?,
            clients: self
                .clients
                .iter()
                .map(clients)
                .collect::<Result<_, String>>()?,
            statements: statements
                .map(|said| (said.of.clone(), said.response.clone()))
                .collect(),
        })
    }
}
