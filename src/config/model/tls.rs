//! TLS of a site.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::http::router::HostPattern;
use crate::http::types::{FieldName, FieldValue};
use crate::net::tls::{Clients, Identity, Policy};

/// TLS of a site.
#[derive(Clone)]
pub struct SiteTls {
    /// Its certificates, at least one.
    pub certificates: Vec<Certificate>,
    /// What the certificate is for that the local authority signs; `None` where files are named.
    pub self_signed: Option<SelfSigned>,
    /// Which versions and suites are spoken.
    pub policy: Policy,
    /// The field Strict-Transport-Security of its answers under TLS.
    pub hsts: Option<FieldValue>,
    /// Whose certificates clients show; `None` where they are not asked for any.
    pub clients: Option<Arc<Clients>>,
    /// Where that was read; `None` where there is none of it.
    pub clients_id: Option<ClientsId>,
    /// The port of the first address where it is under TLS, for the redirect from plain ones; 0 where
    /// the kernel chooses it.
    pub port: u16,
}

/// A certificate of a site, as the configuration has it.
#[derive(Clone)]
pub struct Certificate {
    /// Which one it is.
    pub id: CertificateId,
    /// What its files held when they were read; `None` where they weren't (`check --no-files`), and where
    /// the master makes it.
    pub identity: Option<Arc<Identity>>,
    /// Where its authority's statement on it comes from.
    pub ocsp: Ocsp,
}

/// Where the statement of an authority on a certificate (OCSP) comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ocsp {
    /// There is none.
    #[default]
    None,
    /// A file, in DER; an absolute path.
    File(#[serde(with = "crate::util::os_path")] PathBuf),
    /// The authority is asked, where the certificate says.
    Responder,
}

/// Which clients are taken, in whatever configuration: by which files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientsId {
    /// The authorities, in PEM.
    pub authorities: Vec<PemFile>,
    /// Their revocation lists, in PEM.
    pub lists: Vec<PemFile>,
    /// Whether a client without a certificate is refused.
    pub is_required: bool,
}

impl ClientsId {
    /// All files.
    pub fn files(&self) -> impl Iterator<Item = &PemFile> {
        self.authorities.iter().chain(&self.lists)
    }
}

/// The absolute path of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PemFile(#[serde(with = "crate::util::os_path")] pub PathBuf);

/// Which certificate it is, in whatever configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CertificateId {
    /// The one in these files, which may be one and the same; absolute paths.
    Files {
        /// The certificate, in PEM.
        #[serde(with = "crate::util::os_path")]
        certificate: PathBuf,
        /// Its key, in PEM.
        #[serde(with = "crate::util::os_path")]
        key: PathBuf,
    },
    /// The one that the local authority signs for the site of this name.
    Made {
        /// The site, as the configuration names it.
        site: String,
    },
}

/// What a certificate of the local authority is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfSigned {
    /// The hosts that the site answers for.
    pub hosts: Vec<HostPattern>,
    /// The addresses where it listens, without those that stand for all.
    pub addresses: Vec<IpAddr>,
}

impl fmt::Debug for SiteTls {
    /// Certificates by their files and names alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let certificates = self.certificates.iter().map(|one| {
            let names = one.identity.as_ref().map(|identity| identity.names());
            (&one.id, names.unwrap_or_default())
        });
        f.debug_struct("SiteTls")
            .field("certificates", &certificates.collect::<Vec<_>>())
            .field("self_signed", &self.self_signed)
            .field("policy", &self.policy)
            .field("hsts", &self.hsts)
            .field("clients", &self.clients)
            .field("port", &self.port)
            .finish()
    }
}

/// TLS of a listener. All its sites are under it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerTls {
    /// The site whose certificates a client gets that asks for no site that is here, or for none at
    /// all: an index into [`Model::sites`](super::Model::sites). `None` refuses it, unless a site answers
    /// for any host.
    pub fallback: Option<usize>,
}

/// What a backend may be told of a client's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientFact {
    /// Whether there is one.
    Verified,
    /// Whose it is.
    Subject,
    /// Who has issued it.
    Issuer,
    /// Its number.
    Serial,
    /// Its fingerprint.
    Fingerprint,
}

/// The fields of requests to backends that tell of the client's certificate. None of them is ever the
/// client's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFields(Box<[(ClientFact, FieldName)]>);

impl ClientFields {
    /// These, each name once.
    pub fn new(fields: Vec<(ClientFact, FieldName)>) -> Self {
        Self(fields.into())
    }

    /// Each with what it tells.
    pub fn iter(&self) -> impl Iterator<Item = &(ClientFact, FieldName)> {
        self.0.iter()
    }

    /// Whether one has this name, ASCII case ignored.
    pub fn names(&self, name: &str) -> bool {
        let mut names = self.0.iter().map(|(_, own)| own.as_str());
        names.any(|own| own.eq_ignore_ascii_case(name))
    }
}
