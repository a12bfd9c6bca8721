//! TLS of a configuration at work: what the connections of each site are made by, and where those go
//! that come without it. Made once for all cores of a worker, and again when a certificate is replaced.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::model::{CertificateId, Listener, Model, Site};
use crate::http::router::Template;
use crate::net::tls::tickets::Tickets;
use crate::net::tls::{Failure, Identity, Settings};

/// Certificates that stand in place of those of a model, or that it doesn't have: made by the local
/// authority, and replaced since the configuration was read.
pub type Identities = BTreeMap<CertificateId, Arc<Identity>>;

/// What is known of TLS beside a model.
#[derive(Debug, Default)]
pub struct SecuredSites {
    /// For each site of the model.
    sites: Box<[Option<OfSite>]>,
}

#[derive(Clone, Debug)]
struct OfSite {
    /// `None` where its certificates are not known, and so nothing is served.
    settings: Option<Arc<Settings>>,
    /// Where requests go that come without TLS.
    leads_to: Template,
}

impl SecuredSites {
    /// For this model with these certificates; sessions are resumed by `tickets`. `port_of` tells the
    /// port of a listener of the model, by its place, where the kernel chose it.
    pub fn new(
        model: &Model,
        identities: &Identities,
        tickets: &Tickets,
        port_of: impl Fn(usize) -> Option<u16>,
    ) -> Arc<Self> {
        let of_site = |index: usize| {
            let site = &model.sites[index];
            let tls = site.tls.as_ref()?;
            let has = |listener: &Listener| {
                listener.tls.is_some() && listener.sites.iter().any(|site| *site == index)
            };
            let chosen = || {
                let mut places = (0..model.listeners.len()).filter(|at| has(&model.listeners[*at]));
                places.find_map(&port_of)
            };
            Some(OfSite {
                settings: settings_of(site, identities, tickets),
                leads_to: Template::to_https(match tls.port {
                    0 => chosen().unwrap_or(443),
                    port => port,
                }),
            })
        };
        Arc::new(Self {
            sites: (0..model.sites.len()).map(of_site).collect(),
        })
    }

    /// The same for these certificates, of which those that `is_new` tells are others than before; `None`
    /// where no site has one of them. Sessions are resumed as before, and connections that are open go on.
    pub fn renewed(
        &self,
        model: &Model,
        identities: &Identities,
        tickets: &Tickets,
        is_new: impl Fn(&CertificateId) -> bool,
    ) -> Option<Arc<Self>> {
        let has_new = |site: &Arc<Site>| {
            let tls = site.tls.as_ref();
            tls.is_some_and(|tls| tls.certificates.iter().any(|one| is_new(&one.id)))
        };
        if !model.sites.iter().any(has_new) {
            return None;
        }
        let sites = model.sites.iter().zip(&self.sites).map(|(site, before)| {
            let mut of_site = before.clone()?;
            if has_new(site) {
                of_site.settings = settings_of(site, identities, tickets);
            }
            Some(of_site)
        });
        Some(Arc::new(Self {
            sites: sites.collect(),
        }))
    }

    /// What a connection is made by that asks for this name on a listener.
    ///
    /// # Errors
    /// [`Failure::UnknownName`] or [`Failure::NoName`].
    pub(super) fn find(
        &self,
        listener: &Listener,
        name: Option<&str>,
    ) -> Result<Arc<Settings>, Failure> {
        // A site for any host is found by no name, too.
        let named = listener.sites.find(name.unwrap_or_default()).copied();
        let fallback = listener.tls.and_then(|tls| tls.fallback);
        let site = named
            .or(fallback)
            .and_then(|site| self.sites.get(site)?.as_ref());
        match site.and_then(|site| site.settings.clone()) {
            Some(settings) => Ok(settings),
            None if name.is_none() => Err(Failure::NoName),
            None => Err(Failure::UnknownName),
        }
    }

    /// Where a request to this site goes that comes without TLS.
    pub(super) fn leads_to(&self, site: usize) -> Option<&Template> {
        let site = self.sites.get(site)?.as_ref();
        site.map(|site| &site.leads_to)
    }
}

/// What the connections of a site are made by, if all its certificates are known.
fn settings_of(site: &Site, identities: &Identities, tickets: &Tickets) -> Option<Arc<Settings>> {
    let tls = site.tls.as_ref()?;
    let certificates = tls.certificates.iter();
    let certificates: Option<Vec<Arc<Identity>>> = certificates
        .map(|one| {
            let in_place = identities.get(&one.id);
            in_place.or(one.identity.as_ref()).map(Arc::clone)
        })
        .collect();
    let certificates = certificates.filter(|certificates| !certificates.is_empty())?;
    let tickets = tickets.of_site(&site.name);
    Some(Settings::new(certificates, tls.policy, Some(tickets)))
}
