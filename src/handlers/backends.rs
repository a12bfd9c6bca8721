//! The backends that the routes of a configuration lead to, as a core holds them: for each route that
//! is proxied its upstream at work, and what of its settings can be worked out before a request comes.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::HashMap;

use super::app::Place;
use super::proxy::proxy_version;
use crate::config::model::{Action, HeaderOp, Model, Proxy};
use crate::http::semantics::forwarding::{FieldOp, FieldOpError};
use crate::http::types::StatusSet;
use crate::net::proxy_protocol::ProxyVersion;
use crate::upstream::group::Group;
use crate::upstream::prober::Prober;
use crate::upstream::retry::RetryPolicy;
use crate::upstream::roster::Rosters;

/// The backends of one configuration.
#[derive(Default)]
pub(super) struct Backends {
    groups: Vec<Rc<Group>>,
    /// Of the current configuration alone: one that was replaced goes on without.
    probers: RefCell<Vec<Prober>>,
    /// By the address of their settings in the model.
    routes: HashMap<usize, Rc<Backend>>,
}

/// Where the requests of a route go.
pub(super) struct Backend {
    /// The upstream.
    pub(super) group: Rc<Group>,
    /// The settings.
    pub(super) proxy: Arc<Proxy>,
    /// Changes to the fields of requests.
    pub(super) operations: Box<[FieldOp]>,
    /// When a try is repeated.
    pub(super) retries: RetryPolicy,
    /// Statuses that count as failures of a server.
    pub(super) failing: StatusSet,
}

impl Backends {
    /// Those of `model`, whose upstreams are `rosters`. What `before` has of the same ones is taken over;
    /// whatever of it probes servers goes on here, or ends.
    pub(super) fn new(place: &Place, model: &Model, rosters: &Rosters, before: &Self) -> Self {
        let groups: Vec<Rc<Group>> = rosters
            .list()
            .iter()
            .map(
                |roster| match named(&before.groups, &roster.settings().name) {
                    Some(same) if Arc::ptr_eq(same.roster(), roster) => Rc::clone(same),
                    other => Group::new(
                        &place.core,
                        &place.wake,
                        roster,
                        (place.share, place.seed()),
                        other.map(|group| &**group),
                    ),
                },
            )
            .collect();
        let mut running = before.probers.take();
        let probers = rosters.list().iter().filter_map(|roster| {
            let header = header_of(model, &roster.settings().name);
            let same = |prober: &Prober| prober.is_for(roster, header);
            match running.iter().position(same) {
                Some(at) => Some(running.swap_remove(at)),
                None => Prober::start(&place.core, roster, header, (place.share, place.seed())),
            }
        });
        let probers = RefCell::new(probers.collect());
        let mut routes = HashMap::default();
        for route in model.sites.iter().flat_map(|site| site.each_route()) {
            let Action::Proxy(proxy) = &route.action else {
                continue;
            };
            if let Some(group) = named(&groups, &proxy.upstream.name) {
                let backend = Backend::new(Rc::clone(group), proxy);
                routes.insert(key(proxy), Rc::new(backend));
            }
        }
        Self {
            groups,
            probers,
            routes,
        }
    }

    /// Where a route leads.
    pub(super) fn of(&self, proxy: &Arc<Proxy>) -> &Rc<Backend> {
        self.routes
            .get(&key(proxy))
            .expect("every proxy of the model is entered")
    }

    /// The upstreams.
    pub(super) fn groups(&self) -> &[Rc<Group>] {
        &self.groups
    }

    /// Closes what nobody uses just now, and asks no server any more how it is.
    pub(super) fn close(&self) {
        self.probers.take();
        self.groups.iter().for_each(|group| group.pool().close());
    }
}

/// The PROXY header that the servers of an upstream are sent: that of the first route that sends one.
/// A server awaits it on each of its connections, or on none.
fn header_of(model: &Model, upstream: &str) -> Option<ProxyVersion> {
    let mut routes = model.sites.iter().flat_map(|site| site.each_route());
    routes.find_map(|route| match &route.action {
        Action::Proxy(proxy) if *proxy.upstream.name == *upstream => {
            proxy.send_proxy_protocol.map(proxy_version)
        }
        _ => None,
    })
}

fn named<'g>(groups: &'g [Rc<Group>], name: &str) -> Option<&'g Rc<Group>> {
    groups
        .iter()
        .find(|group| *group.roster().settings().name == *name)
}

fn key(proxy: &Arc<Proxy>) -> usize {
    Arc::as_ptr(proxy) as usize
}

impl Backend {
    fn new(group: Rc<Group>, proxy: &Arc<Proxy>) -> Self {
        let operations = proxy.request_headers.iter().filter_map(|op| {
            let op = field_op(op);
            if let Err(error) = &op {
                // The configuration has refused it before.
                tracing::error!(%error, "a change to the fields of requests can't be made");
            }
            op.ok()
        });
        let retries = &proxy.retries;
        Self {
            operations: operations.collect(),
            retries: RetryPolicy {
                tries_max: u8::try_from(retries.tries).unwrap_or(u8::MAX),
                time_max: Some(retries.time),
                statuses: retries.statuses,
                repeats_any_method: retries.non_idempotent,
            },
            failing: match &proxy.upstream.passive {
                Some(passive) => passive.statuses,
                None => StatusSet::default(),
            },
            proxy: Arc::clone(proxy),
            group,
        }
    }
}

fn field_op(op: &HeaderOp) -> Result<FieldOp, FieldOpError> {
    match op {
        HeaderOp::Set(name, value) => FieldOp::set(name.clone(), value.clone()),
        HeaderOp::Append(name, value) => FieldOp::append(name.clone(), value.clone()),
        HeaderOp::Remove(name) => FieldOp::remove(name.clone()),
    }
}
