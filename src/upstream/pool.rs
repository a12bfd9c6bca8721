//! Connections to upstream servers that wait to be used again: one pool per core, keyed by address.
//!
//! An idle connection keeps its receive armed, and its end or a byte that nobody asked for is seen
//! without a system call: at the latest when the connection is taken, and within a second by the
//! pool's keeper, a task that runs while anything is idle. The pool knows no protocol and doesn't open
//! connections: whoever takes one says how.
//!
//! Invariants: `idle` is the number of idle connections of all servers, at most `idle_max`; those of
//! one server are at most `idle_per_server` and ordered by the time they were given back.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::net::recv::Receiver;
use crate::net::secured::Secured;
use crate::runtime::address::Address;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::task::TaskId;

/// How often the keeper looks at all idle connections when nothing else wakes it.
const KEEPER_INTERVAL: Duration = Duration::from_secs(1);

/// After a large response so many small ones are taken for exceptions. To receive a small response as if
/// it were large costs one more entry of the ring; the other way round each 4 KiB that came with the
/// head are copied and sent by themselves, which costs many times as much.
const BULK_MEMORY: u8 = 16;

/// The bounds of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most idle connections to one server; at the bound the oldest one is closed. 0: none is kept.
    pub idle_per_server: usize,
    /// Most idle connections in all; at the bound the one that is idle for the longest time is closed.
    pub idle_max: usize,
    /// How long a connection may be idle, up to a second more.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle_per_server: 64,
            idle_max: 1024,
            idle_timeout: Duration::from_secs(60),
        }
    }
}

/// What a pool has done since its beginning, and what it holds. Of one core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that were opened.
    pub opened: u64,
    /// Times that an idle connection was used again.
    pub reused: u64,
    /// Idle connections that their server ended or broke.
    pub ended: u64,
    /// Idle connections on which bytes came that nobody had asked for.
    pub unasked: u64,
    /// Idle connections that reached their timeout.
    pub expired: u64,
    /// Idle connections closed because there were too many.
    pub crowded_out: u64,
    /// Idle connections closed by [`Pool::clear`] or [`Pool::close`], and connections in use that were
    /// not kept afterwards for that reason.
    pub cleared: u64,
    /// Connections that their user did not give back.
    pub discarded: u64,
    /// Connections that are idle now.
    pub idle: usize,
    /// Connections that are in use now.
    pub busy: usize,
}

/// A connection that waits.
struct Idle {
    receiver: Receiver,
    socket: Fd,
    since: Instant,
    uses: u64,
}

impl Idle {
    /// Whether it is under TLS to the server of this name, or, without one, in the clear.
    fn is_to(&self, name: Option<&str>) -> bool {
        match (self.receiver.secured(), name) {
            (None, None) => true,
            (Some(secured), Some(name)) => secured.with_name(|own| own == Some(name)),
            _ => false,
        }
    }
}

/// What the pool knows of one address. Forgotten when nothing is idle or in use.
#[derive(Default)]
struct Server {
    /// Oldest first.
    idle: Vec<Idle>,
    busy: usize,
    /// Counts the times that connections were cleared: those of an earlier time aren't kept.
    generation: u64,
    /// For how many more responses a large one is expected.
    bulk: u8,
}

struct Shared {
    core: Core,
    limits: Cell<Limits>,
    /// In order, so that a simulation of one seed is always the same.
    servers: RefCell<BTreeMap<Address, Server>>,
    counters: Cell<Counters>,
    keeper: Cell<Option<TaskId>>,
    closed: Cell<bool>,
}

/// The idle connections of one core. Cheap to clone; all clones are the same pool.
///
/// A core that ends needs [`Self::close`] to be called first, or idle connections hold on to it.
#[derive(Clone)]
pub struct Pool(Rc<Shared>);

/// A connection in use. Dropping it closes it; [`Self::give_back`] keeps it.
pub struct Connection {
    pool: Pool,
    address: Address,
    /// `None` in drop alone.
    parts: Option<(Fd, Receiver)>,
    generation: u64,
    uses: u64,
    is_bulk: bool,
}

impl Pool {
    /// An empty pool.
    pub fn new(core: &Core, limits: Limits) -> Self {
        Self(Rc::new(Shared {
            core: core.clone(),
            limits: Cell::new(limits),
            servers: RefCell::default(),
            counters: Cell::default(),
            keeper: Cell::default(),
            closed: Cell::default(),
        }))
    }

    /// Takes the connection that was given back last, or opens one. Only `open` waits.
    ///
    /// # Errors
    /// What `open` answers.
    pub async fn take<E>(
        &self,
        address: &Address,
        open: impl AsyncFnOnce() -> Result<Fd, E>,
    ) -> Result<Connection, E> {
        match self.take_idle(address, None) {
            Some(connection) => Ok(connection),
            None => self.take_new(address, open).await,
        }
    }

    /// The live connection that was given back last, of those under TLS to the server of this name, or,
    /// without one, of those in the clear: an address may have several names. For tasks alone, as
    /// everything that receives.
    pub fn take_idle(&self, address: &Address, name: Option<&str>) -> Option<Connection> {
        let mut dead = Vec::new();
        let mut servers = self.0.servers.borrow_mut();
        let server = servers.get_mut(address)?;
        let (now, timeout) = (self.0.core.now(), self.0.limits.get().idle_timeout);
        let mut found = None;
        while let Some(at) = server.idle.iter().rposition(|idle| idle.is_to(name)) {
            let mut idle = server.idle.remove(at);
            self.count(|counters| counters.idle -= 1);
            if self.is_usable(&mut idle, now, timeout) {
                found = Some(idle);
                break;
            }
            dead.push(idle);
        }
        let taken = found.map(|idle| {
            server.busy += 1;
            self.count(|counters| {
                counters.busy += 1;
                counters.reused += 1;
            });
            if let Some(secured) = idle.receiver.secured() {
                secured.leave_politely(false);
            }
            Connection {
                pool: self.clone(),
                address: address.clone(),
                parts: Some((idle.socket, idle.receiver)),
                generation: server.generation,
                uses: idle.uses + 1,
                is_bulk: false,
            }
        });
        if server.idle.is_empty() && server.busy == 0 {
            servers.remove(address);
        }
        taken
    }

    /// Opens a connection, whatever is idle: for who was just told by a reused one that it was dead.
    ///
    /// # Errors
    /// What `open` answers.
    pub async fn take_new<E>(
        &self,
        address: &Address,
        open: impl AsyncFnOnce() -> Result<Fd, E>,
    ) -> Result<Connection, E> {
        let receiver = async || {
            let socket = open().await?;
            Ok(Receiver::new(&self.0.core, socket))
        };
        self.take_made(address, receiver).await
    }

    /// As [`Self::take_new`], with what receives, as of a connection under TLS.
    ///
    /// # Errors
    /// What `open` answers.
    pub async fn take_made<E>(
        &self,
        address: &Address,
        open: impl AsyncFnOnce() -> Result<Receiver, E>,
    ) -> Result<Connection, E> {
        let opening = Opening::new(self, address);
        let receiver = open().await?;
        self.count(|counters| counters.opened += 1);
        Ok(opening.done(receiver.socket().clone(), receiver))
    }

    /// How many connections to this address are in use or being opened.
    pub fn busy(&self, address: &Address) -> usize {
        let servers = self.0.servers.borrow();
        servers.get(address).map_or(0, |server| server.busy)
    }

    /// How many connections to this address are idle.
    pub fn idle(&self, address: &Address) -> usize {
        let servers = self.0.servers.borrow();
        servers.get(address).map_or(0, |server| server.idle.len())
    }

    /// What the pool has done and holds.
    pub fn counters(&self) -> Counters {
        self.0.counters.get()
    }

    /// Sets other bounds; what is beyond them goes within a second.
    pub fn set_limits(&self, limits: Limits) {
        self.0.limits.set(limits);
    }

    /// Closes the idle connections to an address, and lets those in use be closed after it: for a
    /// server that is drained, down, or not configured any more.
    pub fn clear(&self, address: &Address) {
        let mut servers = self.0.servers.borrow_mut();
        let Some(server) = servers.get_mut(address) else {
            return;
        };
        server.generation += 1;
        let idle = std::mem::take(&mut server.idle);
        if server.busy == 0 {
            servers.remove(address);
        }
        drop(servers);
        self.count(|counters| {
            counters.idle -= idle.len();
            counters.cleared += idle.len() as u64;
        });
    }

    /// Closes all idle connections, since memory is short. Those in use are kept as ever afterwards.
    pub fn shrink(&self) {
        let mut closed = Vec::new();
        let mut servers = self.0.servers.borrow_mut();
        for server in servers.values_mut() {
            closed.append(&mut server.idle);
        }
        servers.retain(|_, server| server.busy > 0);
        drop(servers);
        self.count(|counters| {
            counters.idle -= closed.len();
            counters.crowded_out += closed.len() as u64;
        });
    }

    /// Closes all idle connections, and keeps none from now on: before the core ends.
    pub fn close(&self) {
        self.0.closed.set(true);
        let addresses: Vec<Address> = self.0.servers.borrow().keys().cloned().collect();
        addresses.iter().for_each(|address| self.clear(address));
        if let Some(keeper) = self.0.keeper.get() {
            self.0.core.wake_task(keeper);
        }
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.0.counters.get();
        change(&mut counters);
        self.0.counters.set(counters);
    }

    /// Whether an idle connection can be used; counts why not.
    fn is_usable(&self, idle: &mut Idle, now: Instant, timeout: Duration) -> bool {
        match idle.receiver.poll_unasked() {
            Poll::Pending if now.saturating_duration_since(idle.since) < timeout => return true,
            Poll::Pending => self.count(|counters| counters.expired += 1),
            Poll::Ready(Ok(_)) => self.count(|counters| counters.unasked += 1),
            Poll::Ready(Err(_)) => self.count(|counters| counters.ended += 1),
        }
        false
    }

    /// Keeps a connection, as far as the bounds allow.
    fn keep(&self, address: &Address, generation: u64, mut idle: Idle, is_bulk: bool) {
        let limits = self.0.limits.get();
        let now = idle.since;
        if let Some(secured) = idle.receiver.secured() {
            secured.leave_politely(true);
        }
        let mut dropped = None;
        {
            let mut servers = self.0.servers.borrow_mut();
            let Some(server) = servers.get_mut(address) else {
                return;
            };
            server.bulk = match is_bulk {
                true => BULK_MEMORY,
                false => server.bulk.saturating_sub(1),
            };
            idle.receiver.one_by_one(server.bulk > 0);
            let is_usable = self.is_usable(&mut idle, now, Duration::MAX);
            let cleared = self.0.closed.get() || server.generation != generation;
            if cleared && is_usable {
                self.count(|counters| counters.cleared += 1);
            }
            if cleared || !is_usable {
                return;
            }
            if limits.idle_per_server == 0 || limits.idle_max == 0 {
                return self.count(|counters| counters.crowded_out += 1);
            }
            if server.idle.len() >= limits.idle_per_server {
                dropped = Some(server.idle.remove(0));
            }
            server.idle.push(idle);
            if dropped.is_none() && self.counters().idle >= limits.idle_max {
                dropped = remove_oldest(&mut servers);
            }
        }
        self.count(|counters| {
            counters.idle += usize::from(dropped.is_none());
            counters.crowded_out += u64::from(dropped.is_some());
        });
        if self.0.keeper.get().is_none() {
            let keeper = self.0.core.spawn(keep_watch(self.clone()));
            self.0.keeper.set(Some(keeper));
        }
    }

    /// Closes what is of no use any more among the idle connections. Each one that stays names the
    /// current task as the one to wake when something comes.
    fn sweep(&self) {
        let mut dead = Vec::new();
        let mut servers = self.0.servers.borrow_mut();
        let (now, limits) = (self.0.core.now(), self.0.limits.get());
        for server in servers.values_mut() {
            let too_many = server.idle.len().saturating_sub(limits.idle_per_server);
            for (index, mut idle) in std::mem::take(&mut server.idle).into_iter().enumerate() {
                if index < too_many {
                    self.count(|counters| counters.crowded_out += 1);
                } else if self.is_usable(&mut idle, now, limits.idle_timeout) {
                    server.idle.push(idle);
                    continue;
                }
                dead.push(idle);
            }
        }
        self.count(|counters| counters.idle -= dead.len());
        while self.counters().idle > limits.idle_max {
            dead.extend(remove_oldest(&mut servers));
            self.count(|counters| {
                counters.idle -= 1;
                counters.crowded_out += 1;
            });
        }
        servers.retain(|_, server| server.busy > 0 || !server.idle.is_empty());
    }

    /// A connection is not in use any more.
    fn leave(&self, address: &Address) {
        self.count(|counters| counters.busy -= 1);
        let mut servers = self.0.servers.borrow_mut();
        if let Some(server) = servers.get_mut(address) {
            server.busy -= 1;
            if server.busy == 0 && server.idle.is_empty() {
                servers.remove(address);
            }
        }
    }
}

/// The connection that is idle for the longest time, of all servers.
fn remove_oldest(servers: &mut BTreeMap<Address, Server>) -> Option<Idle> {
    let with_idle = servers
        .values_mut()
        .filter(|server| !server.idle.is_empty());
    let oldest = with_idle.min_by_key(|server| server.idle[0].since)?;
    Some(oldest.idle.remove(0))
}

/// The keeper: closes idle connections that have ended, said something or expired. It ends when nothing
/// is idle.
async fn keep_watch(pool: Pool) {
    let _gone = KeeperGone(Rc::clone(&pool.0));
    let core = pool.0.core.clone();
    let mut timer = Timer::new(&core);
    loop {
        pool.sweep();
        if pool.counters().idle == 0 {
            return;
        }
        timer.set(core.now() + KEEPER_INTERVAL);
        let mut is_first = true;
        // Any wake-up is from a connection that has something to say, or from a close.
        timer
            .bound(|| {
                if std::mem::take(&mut is_first) {
                    Poll::Pending
                } else {
                    Poll::Ready(())
                }
            })
            .await;
    }
}

/// Lets another keeper begin, whatever ended this one.
struct KeeperGone(Rc<Shared>);

impl Drop for KeeperGone {
    fn drop(&mut self) {
        self.0.keeper.set(None);
    }
}

/// Counts a connection as in use while it is opened, also when that fails or is dropped.
struct Opening<'a> {
    pool: &'a Pool,
    address: &'a Address,
    generation: u64,
    bulk: bool,
    is_done: bool,
}

impl<'a> Opening<'a> {
    fn new(pool: &'a Pool, address: &'a Address) -> Self {
        let mut servers = pool.0.servers.borrow_mut();
        let server = servers.entry(address.clone()).or_default();
        server.busy += 1;
        pool.count(|counters| counters.busy += 1);
        Self {
            pool,
            address,
            generation: server.generation,
            bulk: server.bulk > 0,
            is_done: false,
        }
    }

    fn done(mut self, socket: Fd, mut receiver: Receiver) -> Connection {
        self.is_done = true;
        receiver.one_by_one(self.bulk);
        Connection {
            pool: self.pool.clone(),
            address: self.address.clone(),
            parts: Some((socket, receiver)),
            generation: self.generation,
            uses: 1,
            is_bulk: false,
        }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.pool.leave(self.address);
        }
    }
}

impl Connection {
    /// The socket, to send on.
    pub fn socket(&self) -> &Fd {
        &self.parts().0
    }

    /// What the server sends.
    pub fn receiver(&mut self) -> &mut Receiver {
        let parts = self.parts.as_mut();
        &mut parts.expect("the parts are taken by drop alone").1
    }

    /// Where it leads.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether it was used before: then its server may just be closing it, and a request that got no
    /// byte of a response may not have been seen.
    pub fn is_reused(&self) -> bool {
        self.uses > 1
    }

    /// How often it was taken, this time included.
    pub fn uses(&self) -> u64 {
        self.uses
    }

    /// The response is a large one that is taken by other means than a receive, so the next ones are
    /// expected to be such too, and aren't received further than their heads.
    pub fn note_bulk(&mut self) {
        self.is_bulk = true;
    }

    /// Keeps the connection for the next one who wants it. To be called when request and response are
    /// whole, by a task. What has come after the response, or an end, closes it.
    pub fn give_back(mut self) {
        if let Some((socket, receiver)) = self.parts.take() {
            let idle = Idle {
                receiver,
                socket,
                since: self.pool.0.core.now(),
                uses: self.uses,
            };
            self.pool
                .keep(&self.address, self.generation, idle, self.is_bulk);
        }
    }

    /// Closes the connection, on which request and response are whole.
    pub fn close(self) {
        if let Some(secured) = self.secured() {
            secured.leave_politely(true);
        }
    }

    /// What it is secured by; `None` in the clear.
    pub fn secured(&self) -> Option<&Rc<Secured>> {
        self.parts().1.secured()
    }

    fn parts(&self) -> &(Fd, Receiver) {
        let parts = self.parts.as_ref();
        parts.expect("the parts are taken by drop alone")
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.parts.is_some() {
            self.pool.count(|counters| counters.discarded += 1);
        }
        self.pool.leave(&self.address);
    }
}

#[cfg(test)]
mod tests;
