//! TLS of a configuration at work: what the connections of each site are made by, and where those go
//! that come without it. Made once for all cores of a worker, and again when a certificate is replaced.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::model::{
    Certificate, CertificateId, ClientFact, ClientFields, ClientsId, Listener, Model, Site, SiteTls,
};
use crate::http::router::Template;
use crate::http::semantics::forwarding::FieldOp;
use crate::http::types::{FieldName, FieldValue};
use crate::net::secured::Secured;
use crate::net::tls::tickets::Tickets;
use crate::net::tls::{ClientCertificate, Clients, Failure, Identity, Settings};
use crate::util::clock;

/// What stands in place of what a model says, or what it doesn't have: made by the local authority, told by
/// others, and replaced since the configuration was read.
#[derive(Clone, Debug, Default)]
pub struct Replacements {
    /// Certificates.
    pub identities: BTreeMap<CertificateId, Arc<Identity>>,
    /// Which clients are taken.
    pub clients: BTreeMap<ClientsId, Arc<Clients>>,
    /// What authorities say of certificates (OCSP, in DER); `None` where that is nothing good.
    pub statements: BTreeMap<CertificateId, Option<Vec<u8>>>,
}

impl Replacements {
    /// Takes these, too: they stand in place of those that are here.
    pub fn extend(&mut self, new: Self) {
        self.identities.extend(new.identities);
        self.clients.extend(new.clients);
        self.statements.extend(new.statements);
    }

    /// The certificate that is in use where the model has this one.
    fn identity<'a>(&'a self, certificate: &'a Certificate) -> Option<&'a Arc<Identity>> {
        let in_place = self.identities.get(&certificate.id);
        in_place.or(certificate.identity.as_ref())
    }

    /// Whose certificates a site takes from clients, if it asks for any.
    fn clients(&self, tls: &SiteTls) -> Option<Arc<Clients>> {
        let in_place = tls.clients_id.as_ref().and_then(|id| self.clients.get(id));
        in_place.or(tls.clients.as_ref()).map(Arc::clone)
    }

    /// Has clients told what the authorities say of the certificates of a model that `is_meant` names. What
    /// isn't about the certificate in use, such as what was said of the one before it, is told to nobody.
    fn staple(&self, model: &Model, is_meant: impl Fn(&CertificateId) -> bool) {
        let sites = model.sites.iter().filter_map(|site| site.tls.as_ref());
        let all = sites.flat_map(|tls| &tls.certificates);
        let now = clock::unix_s();
        for certificate in all.filter(|one| is_meant(&one.id)) {
            let said = self.statements.get(&certificate.id);
            let (Some(said), Some(identity)) = (said, self.identity(certificate)) else {
                continue;
            };
            match said {
                Some(response) => {
                    if let Err(error) = identity.staple(response, now) {
                        let why = error.message();
                        tracing::debug!(?certificate.id, why, "a statement is not stapled");
                    }
                }
                None => identity.unstaple(),
            }
        }
    }
}

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
    /// Whose certificates clients show; `None` where they are not asked for any.
    clients: Option<Arc<Clients>>,
    /// Where requests go that come without TLS.
    leads_to: Template,
}

impl SecuredSites {
    /// For this model with these certificates; sessions are resumed by `tickets`. `port_of` tells the
    /// port of a listener of the model, by its place, where the kernel chose it.
    pub fn new(
        model: &Model,
        replacements: &Replacements,
        tickets: &Tickets,
        port_of: impl Fn(usize) -> Option<u16>,
    ) -> Arc<Self> {
        replacements.staple(model, |_| true);
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
                settings: settings_of(site, replacements, tickets),
                clients: replacements.clients(tls),
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

    /// The same for these, of which those that `new` has are others than before; `None` where no site has
    /// one of them. Sessions are resumed as before, and connections that are open go on, unless their
    /// clients aren't taken any more. Statements need no other sites: they are told from now on.
    pub fn renewed(
        &self,
        model: &Model,
        replacements: &Replacements,
        tickets: &Tickets,
        new: &Replacements,
    ) -> Option<Arc<Self>> {
        let is_told = |id: &_| new.statements.contains_key(id) || new.identities.contains_key(id);
        replacements.staple(model, is_told);
        let has_new = |site: &Arc<Site>| {
            site.tls.as_ref().is_some_and(|tls| {
                let mut certificates = tls.certificates.iter();
                let clients = tls.clients_id.as_ref();
                certificates.any(|one| new.identities.contains_key(&one.id))
                    || clients.is_some_and(|id| new.clients.contains_key(id))
            })
        };
        if !model.sites.iter().any(has_new) {
            return None;
        }
        let sites = model.sites.iter().zip(&self.sites).map(|(site, before)| {
            let mut of_site = before.clone()?;
            if has_new(site) {
                of_site.settings = settings_of(site, replacements, tickets);
                of_site.clients = replacements.clients(site.tls.as_ref()?);
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
        let site = match led(listener, name) {
            Led::ByName(site) | Led::Otherwise(Some(site)) => {
                self.sites.get(site).and_then(Option::as_ref)
            }
            Led::Otherwise(None) => None,
        };
        match site.and_then(|site| site.settings.clone()) {
            Some(settings) => Ok(settings),
            None if name.is_none() => Err(Failure::NoName),
            None => Err(Failure::UnknownName),
        }
    }

    /// Whose certificates clients of a site show.
    fn clients_of(&self, site: usize) -> Option<&Arc<Clients>> {
        self.sites.get(site)?.as_ref()?.clients.as_ref()
    }

    /// Where a request to this site goes that comes without TLS.
    pub(super) fn leads_to(&self, site: usize) -> Option<&Template> {
        let site = self.sites.get(site)?.as_ref();
        site.map(|site| &site.leads_to)
    }
}

/// What the connections of a site are made by, if all its certificates are known.
fn settings_of(
    site: &Site,
    replacements: &Replacements,
    tickets: &Tickets,
) -> Option<Arc<Settings>> {
    let tls = site.tls.as_ref()?;
    let certificates = tls.certificates.iter();
    let certificates: Option<Vec<Arc<Identity>>> = certificates
        .map(|one| replacements.identity(one).map(Arc::clone))
        .collect();
    let certificates = certificates.filter(|certificates| !certificates.is_empty())?;
    let tickets = tickets.of_site(&site.name);
    let clients = replacements.clients(tls);
    let settings = Settings::with_clients(certificates, tls.policy, Some(tickets), clients);
    Some(settings)
}

/// The site whose certificates a name leads to.
enum Led {
    /// It is the site's.
    ByName(usize),
    /// There is no name, or it is nobody's.
    Otherwise(Option<usize>),
}

fn led(listener: &Listener, name: Option<&str>) -> Led {
    // A site for any host is found by no name, too.
    let named = listener.sites.find(name.unwrap_or_default()).copied();
    match (name, named) {
        (Some(_), Some(site)) => Led::ByName(site),
        (_, named) => Led::Otherwise(named.or_else(|| listener.tls.and_then(|tls| tls.fallback))),
    }
}

/// Whether a request to a site may come on this connection at `now`, in seconds since 1970: it was not made
/// for another one (RFC 9110 §7.4), and where clients show certificates it was made for this one, by those
/// that are in force.
///
/// # Errors
/// Why it may not: the answer is 421.
pub(super) fn admits(
    (sites, listener): (&SecuredSites, &Listener),
    (index, host): (usize, &str),
    secured: &Secured,
    now: u64,
) -> Result<(), Failure> {
    let clients_of = |site: usize| sites.clients_of(site);
    let clients = clients_of(index);
    let is_of_another = secured.with_name(|name| {
        if name == Some(host) {
            return false;
        }
        match led(listener, name) {
            Led::ByName(site) => site != index,
            // Without a name a client can't say it better, unless that would let it in.
            Led::Otherwise(Some(site)) => {
                site != index && (clients.is_some() || clients_of(site).is_some())
            }
            Led::Otherwise(None) => clients.is_some(),
        }
    });
    if is_of_another {
        return Err(Failure::OtherSite);
    }
    match clients {
        Some(clients) => secured.admits(clients, i64::try_from(now).unwrap_or(i64::MAX)),
        None => Ok(()),
    }
}

/// What backends of a site are told of a client's certificate: in each of the fields what it says, or
/// nothing. Empty where there are no such fields.
pub(super) fn told(site: &Site, secured: Option<&Secured>) -> Vec<FieldOp> {
    let Some(fields) = &site.client_fields else {
        return Vec::new();
    };
    // A site that asks for none believes none.
    let asks = site.tls.as_ref().is_some_and(|tls| tls.clients.is_some());
    match secured {
        Some(secured) if asks => secured.with_client(|client| operations(fields, client)),
        _ => operations(fields, None),
    }
}

fn operations(fields: &ClientFields, client: Option<&ClientCertificate>) -> Vec<FieldOp> {
    let operation = |(fact, name): &(ClientFact, FieldName)| {
        let name = name.clone();
        let value = match (fact, client) {
            (ClientFact::Verified, Some(_)) => FieldValue::Static("SUCCESS"),
            (ClientFact::Verified, None) => FieldValue::Static("NONE"),
            (_, None) => return FieldOp::remove(name),
            (ClientFact::Subject, Some(client)) => shared(&client.subject),
            (ClientFact::Issuer, Some(client)) => shared(&client.issuer),
            (ClientFact::Serial, Some(client)) => shared(&client.serial),
            (ClientFact::Fingerprint, Some(client)) => shared(&client.fingerprint),
        };
        FieldOp::set(name, value)
    };
    // The configuration has found the names to be right, and the values are printable.
    fields
        .iter()
        .filter_map(|field| operation(field).ok())
        .collect()
}

fn shared(text: &Arc<[u8]>) -> FieldValue {
    FieldValue::Shared(Arc::clone(text))
}
