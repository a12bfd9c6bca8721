//! One upstream on one core: who takes the next request, and what is made of how that went.
//!
//! Here the deciders of this directory come together. A group sees the [`Roster`] that all cores
//! share, and keeps for itself what would cost the request path a shared cache line: turns, latencies,
//! what this core has in flight, failures in a row, the breaker, the retry budget, idle connections. It
//! knows nothing of HTTP: what a request is, and what of it is a failure, is the handler's to say.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

mod account;
mod secured;
mod settings;

pub use self::account::{Account, BreakerAccount, ServerAccount};
use self::secured::{SecuredServers, connects_alike};
use self::settings::{
    breaker_limits, budget_limits, ejection_limits, passive_limits, picker, pool_limits,
};
use super::Share;
use super::balance::{CookieValue, PeakEwma, Picker, ServerView, Standing, Survey, Tried, survey};
use super::health::{
    Admission, Breaker, BreakerState, EjectionLimits, Outcome, Pass, Passive, Settled,
};
use super::line::InLine;
use super::pool::Pool;
use super::retry::RetryBudget;
use super::roster::{Member, Members, Roster};
use super::shared::Ejection;
use crate::config::model::Upstream;
use crate::runtime::address::Address;
use crate::runtime::executor::Core;
use crate::runtime::future::Timer;
use crate::runtime::mailbox::Wake;

/// An upstream on a core.
pub struct Group {
    core: Core,
    wake: Arc<Wake>,
    roster: Arc<Roster>,
    pool: Pool,
    secured: Option<Rc<SecuredServers>>,
    ejection: Option<EjectionLimits>,
    breaker: Option<RefCell<Breaker>>,
    budget: RefCell<RetryBudget>,
    /// Differs from core to core, so that they don't all begin with the same server.
    seed: u64,
    state: RefCell<State>,
}

struct State {
    members: Arc<Members>,
    servers: Vec<Rc<Server>>,
    views: Vec<ServerView>,
    picker: Picker,
}

/// A server of the list in force.
struct Server {
    members: Arc<Members>,
    /// Its place there.
    index: usize,
    address: Address,
    seen: Rc<Seen>,
}

/// What this core has seen of a server; outlives lists that it stays in.
#[derive(Default)]
struct Seen {
    in_flight: Cell<u32>,
    requests: Cell<u64>,
    failures: Cell<u64>,
    latency: Cell<PeakEwma>,
    /// For people, who want to know how long answers take, not whom to prefer.
    answers: Cell<Option<Duration>>,
    passive: Option<RefCell<Passive>>,
}

/// A server that takes a request: counts as in flight until it is dropped.
pub struct Claim {
    group: Rc<Group>,
    server: Rc<Server>,
}

/// Why no server takes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoServer {
    /// None is up, or all of them were tried: 502 or 503.
    Nobody,
    /// All are full, and so is the line behind them: 503.
    LineFull,
    /// All were full until the end of the wait: 503.
    WaitedInVain,
}

impl Group {
    /// A group for this core. `seed` differs from core to core. `before`: the group of the same name of
    /// the configuration before, whose connections and sights are taken over.
    pub fn new(
        core: &Core,
        wake: &Arc<Wake>,
        roster: &Arc<Roster>,
        (share, seed): (Share, u64),
        before: Option<&Self>,
    ) -> Rc<Self> {
        let settings = roster.settings();
        let limits = pool_limits(settings);
        let pool = match before {
            Some(before) if connects_alike(before.roster.settings(), settings) => {
                before.pool.clone()
            }
            // In another way: requests of before end on the connections that they have.
            Some(before) => {
                before.pool.close();
                Pool::new(core, limits)
            }
            None => Pool::new(core, limits),
        };
        pool.set_limits(limits);
        let known: Vec<Rc<Server>> = match before {
            Some(before) => before.state.borrow().servers.clone(),
            None => Vec::new(),
        };
        let state = State::new(settings, roster.members(), seed, &known);
        let group = Rc::new(Self {
            core: core.clone(),
            wake: Arc::clone(wake),
            roster: Arc::clone(roster),
            pool,
            secured: SecuredServers::new(settings, before),
            ejection: settings.passive.as_ref().map(ejection_limits),
            breaker: settings
                .breaker
                .as_ref()
                .map(|breaker| RefCell::new(Breaker::new(breaker_limits(breaker)))),
            budget: RefCell::new(RetryBudget::new(budget_limits(settings, share), core.now())),
            seed,
            state: RefCell::new(state),
        });
        group.let_go(&known, &group.state.borrow().servers);
        group
    }

    /// What is shared with other cores.
    pub fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }

    /// The connections of this core.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What the tries of requests are paid from.
    pub fn budget(&self) -> &RefCell<RetryBudget> {
        &self.budget
    }

    /// A request wants to go here: asks the breaker, and adds to the retry budget. `Err` with the time
    /// for Retry-After.
    ///
    /// # Errors
    /// When the breaker is open.
    pub fn admit(self: &Rc<Self>) -> Result<Admitted, Duration> {
        let now = self.core.now();
        let pass = match &self.breaker {
            None => None,
            Some(breaker) => match breaker.borrow_mut().admit(now) {
                Admission::Admitted(pass) => Some(pass),
                Admission::Refused(after) => return Err(after),
            },
        };
        self.budget.borrow_mut().request(now);
        Ok(Admitted {
            pass: pass.map(|pass| (Rc::clone(self), pass)),
        })
    }

    /// A server for a request with this key that isn't among the visited ones; waits in line while all
    /// that would take it are full.
    ///
    /// # Errors
    /// See [`NoServer`].
    pub async fn claim(
        self: &Rc<Self>,
        timer: &mut Timer,
        key: Option<&[u8]>,
        visited: &mut Visited,
    ) -> Result<Claim, NoServer> {
        match self.claim_now(key, visited) {
            Ok(claim) => Ok(claim),
            Err(Survey::Full) => self.wait_in_line(timer, key, visited).await,
            Err(_) => Err(NoServer::Nobody),
        }
    }

    async fn wait_in_line(
        self: &Rc<Self>,
        timer: &mut Timer,
        key: Option<&[u8]>,
        visited: &mut Visited,
    ) -> Result<Claim, NoServer> {
        let queue = self.roster.settings().queue;
        let deadline = self.core.now() + queue.timeout;
        let (line, servers) = (self.roster.line(), visited.servers);
        let in_line = line.join(queue.size, servers, &self.wake, deadline);
        let mut waiting = Waiting {
            group: self,
            in_line: Some(in_line.ok_or(NoServer::LineFull)?),
        };
        // One that became free before we stood in line was offered to nobody.
        if let Ok(claim) = self.claim_now(key, visited) {
            return Ok(claim);
        }
        timer.set(deadline);
        let mut seen = 0;
        timer
            .bound(|| {
                // To be woken by the next wake of the core, whatever woke it until now.
                while self.core.poll_woken(&mut seen).is_ready() {}
                match waiting.is_served() {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })
            .await;
        waiting.leave().ok_or(NoServer::WaitedInVain)
    }

    /// A server at once, if one has room.
    fn claim_now(
        self: &Rc<Self>,
        key: Option<&[u8]>,
        visited: &mut Visited,
    ) -> Result<Claim, Survey> {
        let now = self.core.now();
        let mut state = self.state.borrow_mut();
        if self.roster.version() != state.members.version {
            self.take_list(&mut state, self.roster.members());
        }
        let state = &mut *state;
        visited.keep_to(state.members.version);
        loop {
            state.look(now);
            let tried = &visited.servers;
            let Some(index) = state.picker.pick(&state.views, key, now, tried) else {
                return Err(survey(&state.views, tried));
            };
            let member = &state.members.list[index];
            let server = &state.servers[index];
            // Another core may have taken the last place since.
            if member.limit.as_ref().is_none_or(|limit| limit.take()) {
                return Ok(Claim::new(self, server));
            }
        }
    }

    /// Whether another server than the visited ones would take a request.
    pub fn has_other(&self, visited: &Visited) -> bool {
        let mut state = self.state.borrow_mut();
        state.look(self.core.now());
        let is_same = visited.version == state.members.version;
        !is_same || survey(&state.views, &visited.servers) != Survey::Nobody
    }

    /// Goes over to another list.
    fn take_list(&self, state: &mut State, members: Arc<Members>) {
        let next = State::new(self.roster.settings(), members, self.seed, &state.servers);
        self.let_go(&state.servers, &next.servers);
        *state = next;
    }

    /// Closes idle connections to servers that are gone.
    fn let_go(&self, before: &[Rc<Server>], after: &[Rc<Server>]) {
        for gone in before {
            if !after.iter().any(|server| server.address == gone.address) {
                self.pool.clear(&gone.address);
            }
        }
    }

    /// A claim on what was given in line.
    fn adopt(self: &Rc<Self>, members: &Arc<Members>, index: usize) -> Claim {
        let state = self.state.borrow();
        let known = state
            .servers
            .iter()
            .find(|server| Arc::ptr_eq(&server.members, members) && server.index == index);
        let server = known.cloned().unwrap_or_else(|| {
            // Of a list that this core doesn't have yet, or no more.
            let member = &members.list[index];
            Rc::new(Server {
                members: Arc::clone(members),
                index,
                address: member.address.clone().unwrap_or_else(nowhere),
                seen: Rc::default(),
            })
        });
        Claim::new(self, &server)
    }
}

impl State {
    /// A list in force. What was seen of the servers that are among `known` is kept.
    fn new(settings: &Upstream, members: Arc<Members>, seed: u64, known: &[Rc<Server>]) -> Self {
        let passive = settings.passive.as_ref().map(passive_limits);
        let list = members.list.iter().enumerate().map(|(index, member)| {
            // One without an address is never picked.
            let address = member.address.clone().unwrap_or_else(nowhere);
            let same = known.iter().find(|server| server.address == address);
            let seen = match same {
                Some(server) if server.seen.passive.is_some() == passive.is_some() => {
                    Rc::clone(&server.seen)
                }
                _ => Rc::new(Seen {
                    passive: passive.map(|limits| RefCell::new(Passive::new(limits))),
                    ..Seen::default()
                }),
            };
            Rc::new(Server {
                members: Arc::clone(&members),
                index,
                address,
                seen,
            })
        });
        Self {
            servers: list.collect(),
            views: Vec::new(),
            // Another order with each list, too.
            picker: picker(settings, &members, seed ^ members.version),
            members,
        }
    }

    /// Looks at all servers as they are at `now`.
    fn look(&mut self, now: Instant) {
        self.views.clear();
        let servers = self.servers.iter().zip(&self.members.list);
        self.views.extend(servers.map(|(server, member)| {
            let (standing, recovered) = self.members.board.standing(server.index, now);
            let own = server.seen.in_flight.get();
            ServerView {
                id: member.id,
                weight: member.weight,
                is_backup: member.is_backup,
                standing,
                in_flight: member.limit.as_ref().map_or(own, |limit| limit.in_flight()),
                in_flight_max: member.limit.as_ref().map(|limit| limit.max),
                latency: server.seen.latency.get(),
                recovered,
            }
        }));
    }
}

impl Server {
    fn member(&self) -> &Member {
        &self.members.list[self.index]
    }
}

/// Servers that a request has been to, of one list; of another list it is new to all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Visited {
    version: u64,
    servers: Tried,
}

impl Visited {
    /// Remembers the server of a claim.
    pub fn add(&mut self, claim: &Claim) {
        self.keep_to(claim.server.members.version);
        self.servers.add(claim.server.index);
    }

    fn keep_to(&mut self, version: u64) {
        if self.version != version {
            *self = Self {
                version,
                servers: Tried::default(),
            };
        }
    }
}

/// A place in line, left when it is dropped.
struct Waiting<'g> {
    group: &'g Rc<Group>,
    in_line: Option<InLine>,
}

impl Waiting<'_> {
    fn is_served(&self) -> bool {
        let in_line = self.in_line.as_ref();
        in_line.is_some_and(|in_line| in_line.place().given().is_some())
    }

    /// Leaves the line, with what was given by then.
    fn leave(&mut self) -> Option<Claim> {
        let in_line = self.in_line.take()?;
        let (members, index) = self.group.roster.line().leave(&in_line)?;
        Some(self.group.adopt(&members, index))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        drop(self.leave());
    }
}

/// A request that was let in. What becomes of it is to be told; dropped, nobody could know.
pub struct Admitted {
    pass: Option<(Rc<Group>, Pass)>,
}

impl Admitted {
    /// Tells the breaker what became of the request, all tries together.
    pub fn settle(mut self, settled: Settled) {
        self.tell(settled);
    }

    fn tell(&mut self, settled: Settled) {
        if let Some((group, pass)) = self.pass.take()
            && let Some(breaker) = &group.breaker
        {
            let mut breaker = breaker.borrow_mut();
            let now = group.core.now();
            let was = breaker.state(now);
            breaker.settle(pass, settled, now);
            let upstream = &*group.roster.settings().name;
            match (was, breaker.state(now)) {
                (BreakerState::Closed | BreakerState::HalfOpen, BreakerState::Open(until)) => {
                    let pause = until.saturating_duration_since(now);
                    tracing::warn!(upstream, ?pause, "too many failures: the breaker opens");
                }
                (BreakerState::HalfOpen, BreakerState::Closed) => {
                    tracing::info!(upstream, "the breaker closes");
                }
                _ => {}
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.tell(Settled::Unknown);
    }
}

impl Claim {
    fn new(group: &Rc<Group>, server: &Rc<Server>) -> Self {
        let seen = &server.seen;
        seen.in_flight.set(seen.in_flight.get() + 1);
        seen.requests.set(seen.requests.get() + 1);
        Self {
            group: Rc::clone(group),
            server: Rc::clone(server),
        }
    }

    /// The upstream.
    pub fn group(&self) -> &Rc<Group> {
        &self.group
    }

    /// Where the server is.
    pub fn address(&self) -> &Address {
        &self.server.address
    }

    /// What it is called.
    pub fn label(&self) -> &Arc<str> {
        &self.server.member().label
    }

    /// Its place among the servers of the settings.
    pub fn server(&self) -> usize {
        self.server.member().server
    }

    /// The cookie that binds the client to this server, unless `cookie` does so already.
    pub fn cookie_to_set(&self, cookie: Option<&[u8]>) -> Option<CookieValue> {
        let state = self.group.state.borrow();
        let (sticky, id) = (state.picker.sticky()?, self.server.member().id);
        if cookie.is_some_and(|cookie| sticky.names(cookie, id)) {
            return None;
        }
        Some(sticky.value(id))
    }

    /// The head of a response came after this time.
    pub fn answered(&self, latency: Duration) {
        let seen = &self.server.seen;
        let mut of_server = seen.latency.get();
        of_server.observe(latency, self.group.core.now());
        seen.latency.set(of_server);
        seen.answers
            .set(Some(account::smooth(seen.answers.get(), latency)));
    }

    /// How the try went that has taken `elapsed`. A server that fails too often is put out, if that may be.
    pub fn record(&self, outcome: Outcome, elapsed: Duration) {
        let (seen, now) = (&self.server.seen, self.group.core.now());
        if outcome != Outcome::Success {
            seen.failures.set(seen.failures.get() + 1);
            let mut latency = seen.latency.get();
            latency.observe_failure(elapsed, now);
            seen.latency.set(latency);
        }
        let (Some(passive), Some(limits)) = (&seen.passive, &self.group.ejection) else {
            return;
        };
        let Some(reason) = passive.borrow_mut().record(outcome, now) else {
            return;
        };
        let (members, index) = (&self.server.members, self.server.index);
        match members.board.eject(index, reason, limits, now) {
            Ejection::Until(until) => {
                let time = until.saturating_duration_since(now);
                let upstream = &*self.group.roster.settings().name;
                let (server, reason) = (&**self.label(), reason.to_string());
                tracing::warn!(upstream, server, reason, ?time, "a server is left out");
                self.group.pool.clear(self.address());
            }
            Ejection::AlreadyOut | Ejection::NotAllowed | Ejection::Busy => {}
        }
    }

    /// Whether the server takes requests still: the connection to one that doesn't isn't kept.
    pub fn is_wanted(&self) -> bool {
        let now = self.group.core.now();
        let (standing, _) = self.server.members.board.standing(self.server.index, now);
        standing == Standing::Up
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let seen = &self.server.seen;
        seen.in_flight.set(seen.in_flight.get() - 1);
        if let Some(limit) = &self.server.member().limit {
            limit.give_back();
            let members = Arc::clone(&self.group.state.borrow().members);
            self.group
                .roster
                .line()
                .serve(&members, self.group.core.now());
        }
    }
}

/// The address of a name that has none. Nothing connects to it, for no pick leads there.
fn nowhere() -> Address {
    Address::from(std::path::Path::new(""))
}

#[cfg(test)]
mod tests;
