//! The dispatch: site by listener and host, route by path and conditions, then the action and what
//! the route adds to every response. All of it in the configuration of the request ([`AppEpoch`]).

use std::cell::{Cell, LazyCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::client::client_of;
use super::epoch::{AppEpoch, Epochs, LogRecord, NewEpoch};
use super::secured::{self, SecuredSites};
use super::{error_page, proxy};
use crate::cache::open_files::{Bounds, OpenFiles};
use crate::config::model::{Action, Cors, Files, HeaderOp, PathRule, Peers, Proxy, Route, Site};
use crate::http::h1::encode::{DateBlock, DateCache};
use crate::http::router::{Captures, RouterCache, Template};
use crate::http::session::{Body, Exchange, MEMORY, Peer, Registry, Response, Service, Upload};
use crate::http::types::{Method, Request, ResponseHead, Status, TargetForm, Version};
use crate::net::tls::{self, Failure};
use crate::observability::access_log::Record;
use crate::runtime::executor::Core;
use crate::runtime::mailbox::Wake;
use crate::upstream::Share;
use crate::upstream::group::Account;
use crate::util::clock::WallClock;

/// Where an [`App`] lives: a core, and what is to be known of the others.
pub struct Place {
    /// The core.
    pub core: Core,
    /// What other threads wake it by.
    pub wake: Arc<Wake>,
    /// Which one of how many it is.
    pub share: Share,
}

impl Place {
    /// A number that differs from core to core and from call to call.
    pub(super) fn seed(&self) -> u64 {
        use std::hash::BuildHasher as _;
        foldhash::fast::RandomState::default().hash_one(self.share.index)
    }
}

/// All handlers of one core.
pub struct App {
    pub(super) core: Core,
    place: Place,
    pub(super) files: Rc<OpenFiles>,
    epochs: RefCell<Epochs>,
    router_cache: RefCell<RouterCache>,
    clock: RefCell<WallClock>,
    dates: RefCell<DateCache>,
    pub(super) registry: Rc<Registry>,
    pub(super) random: Cell<u128>,
}

/// What a route leads to, with all that needs the request's path worked out.
enum Plan<'m> {
    Files(&'m Arc<Files>),
    Redirect(Status, String),
    /// With the target that is asked for instead, if the route says one.
    Proxy(&'m Arc<Proxy>, Option<String>),
    Respond(&'m Action),
}

impl App {
    /// The handlers of a core, with its first configuration. `seed` is secret and differs for each core.
    pub fn new(
        place: Place,
        first: NewEpoch<'_>,
        registry: Rc<Registry>,
        bounds: Bounds,
        seed: u128,
    ) -> Rc<Self> {
        let core = &place.core;
        let files = OpenFiles::new(core, bounds);
        let epochs = Epochs::new((&place, &files), first);
        let mut clock = WallClock::default();
        let now = clock.unix_seconds(core.now());
        Rc::new(Self {
            core: core.clone(),
            place,
            files,
            epochs: RefCell::new(epochs),
            router_cache: RefCell::new(RouterCache::new()),
            clock: RefCell::new(clock),
            dates: RefCell::new(DateCache::new(now)),
            registry,
            random: Cell::new(seed | 1),
        })
    }

    /// Answers by another configuration from now on: every request that begins later, on whichever
    /// connection, but for those from listening sockets that it does not have; these keep the last
    /// configuration that had them. A request in flight ends by the one it began with.
    pub fn swap(&self, next: NewEpoch<'_>) {
        let replaced = self
            .epochs
            .borrow_mut()
            .swap((&self.place, &self.files), next);
        self.router_cache.borrow_mut().clear();
        // Its end closes files and may end a log: nothing is borrowed meanwhile.
        drop(replaced);
        // It may say of a server that it takes nothing any more.
        self.tidy();
    }

    /// Makes connections by other certificates from now on, if these are of the current configuration.
    pub fn secure(&self, epoch: u64, secured: &Arc<SecuredSites>) {
        self.epochs.borrow().secure(epoch, secured);
    }

    /// The configurations that are alive, oldest first, each with the number of requests that it still
    /// answers. The last is the current one; the others live by their requests, or by the connections
    /// of a listening socket that was removed.
    pub fn epochs(&self) -> Vec<(u64, usize)> {
        self.epochs.borrow().alive()
    }

    /// What this core knows of the upstreams of the current configuration.
    pub fn upstreams(&self) -> Vec<Account> {
        let epochs = self.epochs.borrow();
        let groups = epochs.current().groups().iter();
        groups.map(|group| group.account()).collect()
    }

    /// Closes idle connections to servers that take nothing any more.
    pub fn tidy(&self) {
        let epochs = self.epochs.borrow();
        let groups = epochs.current().groups().iter();
        groups.for_each(|group| group.tidy());
    }

    /// Lets go of what is only kept for speed: what is known of files, and idle connections to servers.
    pub fn shrink(&self) {
        self.files.clear();
        let epochs = self.epochs.borrow();
        let groups = epochs.current().groups().iter();
        groups.for_each(|group| group.pool().shrink());
    }

    /// Bytes that the cache of files holds.
    pub fn cached(&self) -> usize {
        self.files.usage().1
    }

    /// Closes what nobody uses just now and that would keep the core from ending.
    pub fn close(&self) {
        self.epochs.borrow().current().close();
    }

    /// Where the current configuration logs requests, for one that does the same.
    pub fn log_in_force(&self) -> Option<Rc<LogRecord>> {
        self.epochs.borrow().log()
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub(super) fn unix_seconds(&self) -> u64 {
        self.clock.borrow_mut().unix_seconds(self.core.now())
    }

    /// Numbers that a client can't foresee, for boundaries.
    pub(super) fn next_random(&self) -> u128 {
        let hasher = foldhash::quality::RandomState::default();
        let high = std::hash::BuildHasher::hash_one(&hasher, self.random.get());
        let low = std::hash::BuildHasher::hash_one(&hasher, (high, self.random.get()));
        self.random.set(u128::from(high) << 64 | u128::from(low));
        self.random.get()
    }

    /// The most specific route whose conditions hold, and what it leads to.
    fn plan<'m>(&'m self, site: &'m Site, request: &Request<'_>) -> (&'m Route, Plan<'m>) {
        let cache = &mut *self.router_cache.borrow_mut();
        let mut candidates = site.router.candidates(&request.path);
        while let Some(found) = candidates.advance(cache) {
            let chosen = found.value.iter().find(|route| match &route.when {
                Some(when) => when.matches(cache, request),
                None => true,
            });
            let Some(route) = chosen else { continue };
            let plan = lead(&route.action, request, found.rest, &found.captures);
            return (route, plan);
        }
        let route = &*site.fallback;
        let plan = lead(
            &route.action,
            request,
            &request.path[1..],
            &Captures::none(),
        );
        (route, plan)
    }

    async fn dispatch(
        &self,
        epoch: &Rc<AppEpoch>,
        request: &Request<'_>,
        upload: &mut Upload<'_>,
        peer: &Peer,
    ) -> Response {
        if let Some(response) = without_site(request) {
            return response;
        }
        let Some((index, site)) = epoch.site(request, peer) else {
            return error_page::plain(421);
        };
        let client = LazyCell::new(|| client_of(site, request, peer, &self.core));
        let is_secured = peer.secured().is_some();
        if is_secured {
            let host = (index, &*request.host);
            if let Err(failure) = epoch.admits(peer, host, self.unix_seconds()) {
                return self.misdirected(failure, site, peer);
            }
        } else if let Some(tls) = &site.tls {
            if !says_https(request, || client.peer_trusted) {
                if let Some(location) = epoch.leads_to(index, request) {
                    return redirect(Status(308), location);
                }
            } else if tls
                .clients
                .as_ref()
                .is_some_and(|clients| clients.is_required())
            {
                // Whoever has verified the client, it wasn't us.
                return self.misdirected(Failure::NoClientCertificate, site, peer);
            }
        }
        if !site.trusted_proxies.is_empty() {
            upload.note_client(client.address);
        }
        let (route, plan) = self.plan(site, request);
        let mut is_ours = true;
        let mut response = match plan {
            _ if is_preflight(request, route) => preflight(route),
            Plan::Files(files) => self.serve_files(epoch, files, request).await,
            Plan::Redirect(status, location) => redirect(status, location),
            Plan::Proxy(..) if self.core.is_out_of_memory() => self.no_memory(),
            Plan::Proxy(proxy, target) => {
                let asked = proxy::Asked {
                    request,
                    target: target.as_deref(),
                    client: *client,
                    scheme: if is_secured { "https" } else { "http" },
                    addresses: self.addresses(proxy, peer),
                    told: secured::told(site, peer.secured()),
                    client_fields: site.client_fields.as_ref(),
                };
                // In a block of its own: other requests don't have the room of this one.
                let pool = self.core.futures().clone();
                let answer = pool
                    .boxed(|| self.serve_proxy(epoch, proxy, asked, upload))
                    .await;
                is_ours = answer.is_ours;
                answer.response
            }
            Plan::Respond(action) => respond(action),
        };
        // What a backend says of an error is left to it.
        if response.head.status.0 >= 400 && is_ours {
            response = self.with_error_page(epoch, route, response).await;
        }
        decorate(&mut response.head, route, request);
        // Over plain HTTP it would be anybody's word (RFC 6797 §7.2).
        if is_secured
            && let Some(hsts) = site.tls.as_ref().and_then(|tls| tls.hsts.as_ref())
            && response.head.get(HSTS).is_none()
        {
            response.head.push(HSTS, hsts.clone());
        }
        response
    }

    /// The answer to a request that came on a connection that it may not come on (RFC 9110 §15.5.20).
    fn misdirected(&self, failure: Failure, site: &Site, peer: &Peer) -> Response {
        self.registry.limits().count(failure.name());
        let (peer, site) = (peer.address(&self.core), &*site.name);
        tracing::debug!(?peer, site, "{}", failure.name());
        error_page::plain(421)
    }

    /// The answer to a request that would take more memory than there is.
    pub(super) fn no_memory(&self) -> Response {
        self.registry.limits().reached(MEMORY);
        let mut response = error_page::plain(503);
        response.head.push("Retry-After", "1");
        response
    }

    /// The addresses of the client's connection for a backend that wants a PROXY header.
    fn addresses(&self, proxy: &Proxy, peer: &Peer) -> Option<(SocketAddr, SocketAddr)> {
        proxy.send_proxy_protocol?;
        let own = self.core.local_address(&peer.socket)?;
        Some((peer.address(&self.core)?, SocketAddr::try_from(own).ok()?))
    }

    /// Puts the route's own page in the place of ours, if it has one for this status.
    async fn with_error_page(
        &self,
        epoch: &AppEpoch,
        route: &Route,
        response: Response,
    ) -> Response {
        let Some(page) = route.error_pages.find(response.head.status) else {
            return response;
        };
        let path = page.path.trim_start_matches('/');
        let root = epoch.root_of(&page.files);
        match self.whole_file(root, path, response.head.status).await {
            Some(mut custom) => {
                for name in ["Allow", "Content-Range", "Retry-After"] {
                    if let Some(value) = response.head.get(name) {
                        let value = crate::http::types::FieldValue::Owned(value.into());
                        custom.head.push(name, value);
                    }
                }
                custom
            }
            None => response,
        }
    }
}

impl Service for App {
    type Epoch = AppEpoch;

    fn epoch(&self, peer: &Peer) -> Rc<AppEpoch> {
        self.epochs.borrow().of(&peer.listener)
    }

    fn proxy_header(&self, peer: &Peer) -> Option<Arc<Peers>> {
        self.epoch(peer).proxy_header(peer)
    }

    fn is_secured(&self, peer: &Peer) -> bool {
        self.epoch(peer).is_secured(peer)
    }

    fn tls(&self, peer: &Peer, name: Option<&str>) -> Result<Arc<tls::Settings>, Failure> {
        self.epoch(peer).tls(peer, name)
    }

    async fn call(
        &self,
        epoch: &Rc<AppEpoch>,
        request: &Request<'_>,
        upload: &mut Upload<'_>,
        peer: &Peer,
    ) -> Response {
        self.dispatch(epoch, request, upload, peer).await
    }

    fn refusal(&self, status: u16) -> Response {
        error_page::plain(status)
    }

    fn date(&self) -> DateBlock {
        let now = self.unix_seconds();
        self.dates.borrow_mut().at(now).clone()
    }

    fn logs(&self, epoch: &AppEpoch) -> bool {
        epoch.logs()
    }

    fn log(&self, epoch: &AppEpoch, peer: &Peer, exchange: &Exchange<'_>) {
        let Some(log) = epoch.log() else { return };
        let duration = self.core.now().saturating_duration_since(exchange.started);
        let record = Record {
            remote: exchange.client.or_else(|| {
                let address = peer.address(&self.core)?;
                Some(address.ip().to_canonical())
            }),
            time_unix: self.unix_seconds().saturating_sub(duration.as_secs()),
            method: exchange.method.as_bytes(),
            target: exchange.target.as_bytes(),
            version: exchange.version.unwrap_or(Version::Http11),
            status: Status(exchange.status),
            body_bytes: exchange.body_bytes,
            referer: exchange.referer,
            user_agent: exchange.user_agent,
            host: (!exchange.host.is_empty()).then_some(exchange.host.as_bytes()),
            client_subject: None,
            scheme: match peer.secured() {
                Some(_) => "https",
                None => "http",
            },
            duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            received: exchange.received,
            upstream: exchange.upstream,
        };
        match peer.secured() {
            Some(secured) => secured.with_client(|client| {
                log(&Record {
                    client_subject: client.map(|client| &*client.subject),
                    ..record
                });
            }),
            None => log(&record),
        }
    }

    fn registry(&self) -> &Rc<Registry> {
        &self.registry
    }
}

/// What an action leads to. `rest` and `captures`: what its route's pattern has matched.
fn lead<'m>(
    action: &'m Action,
    request: &Request<'_>,
    rest: &str,
    captures: &Captures<'_, '_>,
) -> Plan<'m> {
    let render = |to: &Template, of_site: bool| {
        let rest = if of_site { &request.path[1..] } else { rest };
        to.render(request, rest, captures)
    };
    match action {
        Action::Files(files) => Plan::Files(files),
        Action::Redirect {
            to,
            status,
            of_site,
        } => Plan::Redirect(*status, render(to, *of_site)),
        Action::Proxy(proxy) => {
            let target = match &proxy.path {
                PathRule::Rewrite { to, of_site } => Some(render(to, *of_site)),
                PathRule::Keep | PathRule::Strip(_) => None,
            };
            Plan::Proxy(proxy, target)
        }
        action => Plan::Respond(action),
    }
}

/// Requests that no site has a say in.
fn without_site(request: &Request<'_>) -> Option<Response> {
    match (request.method, request.form) {
        // TRACE would show a script the fields that its browser hides from it.
        (Method::Trace | Method::Connect, _) => Some(method_not_allowed()),
        (Method::Options, TargetForm::Asterisk) => Some(allowed()),
        _ => None,
    }
}

const ALLOW: &str = "GET, HEAD, OPTIONS";

/// 405 for a resource that can only be read.
pub(super) fn method_not_allowed() -> Response {
    let mut response = error_page::plain(405);
    response.head.push("Allow", ALLOW);
    response
}

/// The answer to OPTIONS.
pub(super) fn allowed() -> Response {
    let mut response = Response::empty(204);
    response.head.push("Allow", ALLOW);
    response
}

const HSTS: &str = "Strict-Transport-Security";

/// Whether a proxy that is believed says that its client came by HTTPS: to send that one to where it
/// comes from would go on for ever.
fn says_https(request: &Request<'_>, is_believed: impl FnOnce() -> bool) -> bool {
    let said = request.fields.get("x-forwarded-proto");
    said.is_some_and(|said| said.trim_ascii().eq_ignore_ascii_case(b"https")) && is_believed()
}

fn redirect(status: Status, location: String) -> Response {
    let mut response = error_page::plain(status.0);
    response.head.push("Location", location);
    response
}

fn respond(action: &Action) -> Response {
    let Action::Respond {
        status,
        body,
        content_type,
    } = action
    else {
        return error_page::plain(404);
    };
    let mut head = ResponseHead::new(status.0);
    if let Some(content_type) = content_type {
        head.push("Content-Type", content_type.clone());
    }
    Response {
        head,
        body: Body::Constant(Arc::clone(body)),
    }
}

/// Whether a browser asks, before a request from another origin, if it may be made.
fn is_preflight(request: &Request<'_>, route: &Route) -> bool {
    route.cors.is_some()
        && request.method == Method::Options
        && request.fields.get("origin").is_some()
        && request
            .fields
            .get("access-control-request-method")
            .is_some()
}

fn preflight(route: &Route) -> Response {
    let mut response = Response::empty(204);
    let methods = match route.action {
        Action::Proxy(_) => "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
        _ => ALLOW,
    };
    response.head.push("Access-Control-Allow-Methods", methods);
    response.head.push("Access-Control-Allow-Headers", "*");
    response.head.push("Access-Control-Max-Age", "86400");
    response
}

/// Adds what the route adds to every response.
fn decorate(head: &mut ResponseHead, route: &Route, request: &Request<'_>) {
    if let Some(value) = &route.cache_control
        && matches!(head.status.0, 200 | 203 | 206 | 304)
    {
        head.push("Cache-Control", value.clone());
    }
    match &route.cors {
        None => {}
        Some(Cors::Any) => head.push("Access-Control-Allow-Origin", "*"),
        Some(Cors::Origins(origins)) => {
            head.push("Vary", "Origin");
            let asked = request.fields.get("origin").unwrap_or_default();
            if let Some(origin) = origins.iter().find(|origin| origin.as_bytes() == asked) {
                head.push("Access-Control-Allow-Origin", origin.to_string());
            }
        }
    }
    for change in route.headers.iter() {
        match change {
            HeaderOp::Set(name, value) => head.set(name.clone(), value.clone()),
            HeaderOp::Remove(name) => head.remove(name.as_str()),
            HeaderOp::Append(name, value) => head.push(name.clone(), value.clone()),
        }
    }
}
