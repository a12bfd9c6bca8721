//! Configurations as the handlers of a core hold them: the current one, and those that a reload
//! replaced for as long as something needs them. Knows when which one answers, not how.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use foldhash::HashMap;

use super::app::Place;
use super::backends::{Backend, Backends};
use super::secured::{self, SecuredSites};
use crate::cache::open_files::{Links, OpenFiles, RootHandle, RootId};
use crate::config::model::{Files, Model, Peers, Proxy, Site, Symlinks};
use crate::http::h1::HeadLimits;
use crate::http::router::Captures;
use crate::http::session::{Epoch, Peer, Settings};
use crate::http::types::Request;
use crate::net::listener::Listening;
use crate::net::send::ProgressRule;
use crate::net::tls::{self, Failure};
use crate::observability::access_log::Record;
use crate::upstream::group::Group;
use crate::upstream::roster::Rosters;

/// Takes one record of the access log; never waits.
pub type LogRecord = dyn Fn(&Record<'_>);

/// What an epoch is made from.
pub struct NewEpoch<'n> {
    /// Its number; a later one has a greater number.
    pub id: u64,
    /// The configuration.
    pub model: &'n Arc<Model>,
    /// Its upstreams, at work on all cores: one for each of [`Model::upstreams`].
    pub rosters: &'n Arc<Rosters>,
    /// Its TLS, at work on all cores.
    pub secured: &'n Arc<SecuredSites>,
    /// The listening sockets that it has on this core, each with its place in [`Model::listeners`].
    pub listeners: &'n [(Rc<Listening>, usize)],
    /// Where its requests are logged.
    pub log: Option<Rc<LogRecord>>,
}

/// One immutable configuration on one core.
pub struct AppEpoch {
    id: u64,
    model: Arc<Model>,
    settings: Settings,
    /// Replaced when a certificate is, or a revocation list: what is kept here is what the next handshake
    /// and the next request go by.
    secured: RefCell<Arc<SecuredSites>>,
    /// Numbers of listening sockets, in order, with their places in the model.
    listeners: Box<[(u32, usize)]>,
    /// Roots in the cache, by the address of their settings in the model.
    roots: HashMap<usize, RootHandle>,
    backends: Backends,
    log: Option<Rc<LogRecord>>,
}

impl AppEpoch {
    fn new(
        (place, files): (&Place, &Rc<OpenFiles>),
        new: NewEpoch<'_>,
        before: Option<&Self>,
    ) -> Rc<Self> {
        let mut roots = HashMap::default();
        new.model.each_files(|settings| {
            let root = files.add_root(settings.root.clone(), links(settings.symlinks));
            roots.insert(Arc::as_ptr(settings) as usize, root);
        });
        let ids = new.listeners.iter().map(|(of, index)| (of.id(), *index));
        let mut listeners: Box<[(u32, usize)]> = ids.collect();
        listeners.sort_unstable();
        let none = Backends::default();
        let before = before.map_or(&none, |before| &before.backends);
        if new.model.listeners.iter().any(|one| one.tls.is_some()) {
            tls::ready_thread();
        }
        Rc::new(Self {
            id: new.id,
            backends: Backends::new(place, new.model, new.rosters, before),
            settings: settings(new.model),
            secured: RefCell::new(Arc::clone(new.secured)),
            model: Arc::clone(new.model),
            listeners,
            roots,
            log: new.log,
        })
    }

    /// Where the access log goes.
    pub(super) fn log(&self) -> Option<&LogRecord> {
        self.log.as_deref()
    }

    /// Whether there is an access log.
    pub(super) fn logs(&self) -> bool {
        self.log.is_some()
    }

    /// The site that a request is for, with its place.
    pub(super) fn site(&self, request: &Request<'_>, peer: &Peer) -> Option<(usize, &Site)> {
        let place = self.place(&peer.listener)?;
        let index = *self.model.listeners[place].sites.find(&request.host)?;
        Some((index, self.model.sites.get(index)?))
    }

    /// Whether connections to the listening socket of this peer are under TLS.
    pub(super) fn is_secured(&self, peer: &Peer) -> bool {
        let place = self.place(&peer.listener);
        place.is_some_and(|place| self.model.listeners[place].tls.is_some())
    }

    /// What a connection is made by that asks for this name.
    ///
    /// # Errors
    /// [`Failure::UnknownName`] or [`Failure::NoName`].
    pub(super) fn tls(
        &self,
        peer: &Peer,
        name: Option<&str>,
    ) -> Result<Arc<tls::Settings>, Failure> {
        let place = self.place(&peer.listener).ok_or(Failure::UnknownName)?;
        let secured = self.secured.borrow();
        secured.find(&self.model.listeners[place], name)
    }

    /// Whether a request for this host to a site, by its place, may come on the connection of this peer at
    /// `now`, in seconds since 1970.
    ///
    /// # Errors
    /// Why it may not.
    pub(super) fn admits(
        &self,
        peer: &Peer,
        (index, host): (usize, &str),
        now: u64,
    ) -> Result<(), Failure> {
        match (peer.secured(), self.place(&peer.listener)) {
            (Some(secured), Some(place)) => {
                let listener = &self.model.listeners[place];
                let sites = self.secured.borrow();
                secured::admits((&sites, listener), (index, host), secured, now)
            }
            _ => Ok(()),
        }
    }

    /// Where a request to a site leads that comes without TLS and can't stay.
    pub(super) fn leads_to(&self, site: usize, request: &Request<'_>) -> Option<String> {
        let secured = self.secured.borrow();
        let leads_to = secured.leads_to(site)?;
        // The host is one that the site answers for.
        Some(leads_to.render(request, "", &Captures::none()))
    }

    /// Where a route of this configuration leads.
    pub(super) fn backend(&self, proxy: &Arc<Proxy>) -> &Rc<Backend> {
        self.backends.of(proxy)
    }

    /// The upstreams of this configuration.
    pub(super) fn groups(&self) -> &[Rc<Group>] {
        self.backends.groups()
    }

    /// Ends what of it would keep the core from ending.
    pub(super) fn close(&self) {
        self.backends.close();
    }

    /// Whose connections to the listening socket of this peer begin with a PROXY header.
    pub(super) fn proxy_header(&self, peer: &Peer) -> Option<Arc<Peers>> {
        let place = self.place(&peer.listener)?;
        self.model.listeners[place].proxy_protocol.clone()
    }

    /// The root of a set of file settings of this configuration.
    pub(super) fn root_of(&self, files: &Arc<Files>) -> RootId {
        self.roots
            .get(&(Arc::as_ptr(files) as usize))
            .expect("every root of the model is entered")
            .id()
    }

    fn place(&self, listening: &Listening) -> Option<usize> {
        let found = match &*self.listeners {
            // Hardly any configuration has more than two.
            few @ ([_] | [_, _]) => few.iter().position(|(id, _)| *id == listening.id()),
            many => many
                .binary_search_by_key(&listening.id(), |(id, _)| *id)
                .ok(),
        };
        found.map(|at| self.listeners[at].1)
    }
}

impl Epoch for AppEpoch {
    fn settings(&self) -> &Settings {
        &self.settings
    }
}

/// The epochs of a core: the current one, and how those that were replaced can be found as long as they
/// live. A replaced one is held by the requests that began in it, and by the listening sockets that had
/// it last ([`Listening::keep`]); nothing else, so it goes with the last of them.
pub(super) struct Epochs {
    current: Rc<AppEpoch>,
    /// The listening sockets of the current one.
    listenings: Vec<Weak<Listening>>,
    /// In order. Those that are gone leave the list with the next swap.
    replaced: Vec<Weak<AppEpoch>>,
    /// Listening sockets that were removed.
    removed: Vec<Weak<Listening>>,
}

impl Epochs {
    pub(super) fn new(made: (&Place, &Rc<OpenFiles>), first: NewEpoch<'_>) -> Self {
        Self {
            listenings: weak(first.listeners),
            current: AppEpoch::new(made, first, None),
            replaced: Vec::new(),
            removed: Vec::new(),
        }
    }

    /// The epoch that answers what comes from this listening socket.
    pub(super) fn of(&self, listening: &Listening) -> Rc<AppEpoch> {
        if self.current.place(listening).is_none()
            && let Some(last) = listening.kept()
        {
            return last;
        }
        Rc::clone(&self.current)
    }

    /// The current one.
    pub(super) fn current(&self) -> &Rc<AppEpoch> {
        &self.current
    }

    /// Takes what connections are made by from now on, if it is for the current one.
    pub(super) fn secure(&self, id: u64, secured: &Arc<SecuredSites>) {
        if self.current.id == id {
            self.current.secured.replace(Arc::clone(secured));
        }
    }

    /// Where the current one logs requests.
    pub(super) fn log(&self) -> Option<Rc<LogRecord>> {
        self.current.log.clone()
    }

    /// Puts another epoch in the place of the current one, which it gives back.
    pub(super) fn swap(
        &mut self,
        made: (&Place, &Rc<OpenFiles>),
        next: NewEpoch<'_>,
    ) -> Rc<AppEpoch> {
        self.replaced.retain(|epoch| epoch.strong_count() > 0);
        self.removed.retain(|of| of.strong_count() > 0);
        let listenings = weak(next.listeners);
        // The new one is made before the old one is let go, so roots that both have stay known.
        let next = AppEpoch::new(made, next, Some(&self.current));
        let before = std::mem::replace(&mut self.listenings, listenings);
        let replaced = std::mem::replace(&mut self.current, next);
        for listening in before.iter().filter_map(Weak::upgrade) {
            if self.current.place(&listening).is_none() {
                listening.keep(Rc::clone(&replaced) as Rc<_>);
                self.removed.push(Rc::downgrade(&listening));
            }
        }
        self.replaced.push(Rc::downgrade(&replaced));
        replaced
    }

    /// Every epoch that is alive, oldest first, and how many requests hold it.
    pub(super) fn alive(&self) -> Vec<(u64, usize)> {
        let kept_by = |epoch: &Rc<AppEpoch>| {
            let removed = self.removed.iter().filter_map(Weak::upgrade);
            removed
                .filter_map(|listening| listening.kept::<AppEpoch>())
                .filter(|kept| Rc::ptr_eq(kept, epoch))
                .count()
        };
        let replaced = self.replaced.iter().filter_map(Weak::upgrade);
        replaced
            .chain([Rc::clone(&self.current)])
            .map(|epoch| {
                let keepers = kept_by(&epoch);
                let is_current = Rc::ptr_eq(&epoch, &self.current);
                let own = 1 + usize::from(is_current);
                (epoch.id, Rc::strong_count(&epoch) - own - keepers)
            })
            .collect()
    }
}

fn weak(listeners: &[(Rc<Listening>, usize)]) -> Vec<Weak<Listening>> {
    let listenings = listeners.iter().map(|(listening, _)| listening);
    listenings.map(Rc::downgrade).collect()
}

fn links(symlinks: Symlinks) -> Links {
    match symlinks {
        Symlinks::Off => Links::Off,
        Symlinks::Beneath => Links::Beneath,
        Symlinks::On => Links::On,
    }
}

fn settings(model: &Model) -> Settings {
    let (limits, timeouts) = (&model.server.limits, &model.server.timeouts);
    Settings {
        head: HeadLimits {
            line_max: limits.request_line,
            section_max: limits.header_section,
            fields_max: limits.header_fields,
        },
        header_timeout: timeouts.header,
        handshake_timeout: timeouts.handshake,
        idle_timeout: timeouts.idle,
        progress: ProgressRule {
            window: timeouts.progress,
            rate: timeouts.progress_rate,
        },
        requests_max: limits.requests_per_connection,
        body_drain: limits.body_drain,
    }
}
