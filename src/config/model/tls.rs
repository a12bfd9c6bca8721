//! TLS of a site.

use std::fmt;
use std::sync::Arc;

use crate::http::types::FieldValue;
use crate::net::tls::{Identity, Policy};

/// TLS of a site.
#[derive(Clone)]
pub struct SiteTls {
    /// Its certificates, at least one; empty only where files weren't read (`check --no-files`).
    pub certificates: Vec<Arc<Identity>>,
    /// Which versions and suites are spoken.
    pub policy: Policy,
    /// The field Strict-Transport-Security of its answers under TLS.
    pub hsts: Option<FieldValue>,
    /// The port of the first address where it is under TLS, for the redirect from plain ones; 0 where
    /// the kernel chooses it.
    pub port: u16,
}

impl fmt::Debug for SiteTls {
    /// Certificates by their names alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.certificates.iter().map(|one| one.names());
        f.debug_struct("SiteTls")
            .field("certificates", &names.collect::<Vec<_>>())
            .field("policy", &self.policy)
            .field("hsts", &self.hsts)
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
