//! What master and workers, and a master and the next one, tell each other of certificates.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::certificates::files::{Content, Pair};
use crate::certificates::local_ca::Leaf;
use crate::certificates::{Name, names};
use crate::config::model::{CertificateId, Model, SelfSigned};
use crate::handlers::secured::Identities;
use crate::http::router::HostPattern;
use crate::net::tls::Identity;
use crate::net::tls::identity::{digest_of, facts_of};
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
                let sites = &mut all[*place].sites;
                if sites.last() != Some(&name) {
                    sites.push(name);
                }
                continue;
            }
            places.insert(&certificate.id, all.len());
            all.push(Wanted {
                id: certificate.id.clone(),
                sites: vec![name],
                names: tls.self_signed.as_ref().map_or_else(Vec::new, names_of),
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

    pub(super) fn digest(&self) -> [u8; 32] {
        digest_of(self.certificate.as_bytes(), self.key.as_bytes())
    }
}

/// The certificates in the form in which connections use them.
///
/// # Errors
/// When one is no certificate with its key, which whoever sent it had checked.
pub(in crate::supervisor) fn identities(pems: &[Pem]) -> Result<Identities, String> {
    let identity = |pem: &Pem| {
        let identity = Identity::from_pem(pem.certificate.as_bytes(), pem.key.as_bytes());
        let identity = identity.map_err(|error| format!("a certificate {}", error.message))?;
        Ok((pem.id.clone(), Arc::new(identity)))
    };
    pems.iter().map(identity).collect()
}
