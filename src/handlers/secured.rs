//! TLS of a configuration at work: what the connections of each site are made by, and where those go
//! that come without it. Made once for all cores of a worker.

use std::sync::Arc;

use crate::config::model::{Listener, Model};
use crate::http::router::Template;
use crate::net::tls::tickets::Tickets;
use crate::net::tls::{Failure, Settings};

/// What is known of TLS beside a model.
#[derive(Debug, Default)]
pub struct SecuredSites {
    /// For each site of the model.
    sites: Box<[Option<OfSite>]>,
}

#[derive(Debug)]
struct OfSite {
    /// `None` where its certificates were not read, and so nothing is served.
    settings: Option<Arc<Settings>>,
    /// Where requests go that come without TLS.
    leads_to: Template,
}

impl SecuredSites {
    /// For this model; sessions are resumed by `tickets`. `port_of` tells the port of a listener of the
    /// model, by its place, where the kernel chose it.
    pub fn new(
        model: &Model,
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
            let settings = (!tls.certificates.is_empty()).then(|| {
                let tickets = tickets.of_site(&site.name);
                Settings::new(tls.certificates.clone(), tls.policy, Some(tickets))
            });
            Some(OfSite {
                settings,
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
