//! The servers of one upstream as they are at the moment, for all cores of a worker.
//!
//! The configuration names servers; names have addresses that come and go, and the administrator has
//! a word to say that outlives a reload. So what cores pick from is a list that is replaced whole
//! ([`Members`]) and never changed: a core looks at one number for each request to see that its list is
//! still the last one. This knows no connection, and resolves nothing itself.
//!
//! # Ordering
//!
//! `version` is stored, with release, after the list that it belongs to was put in place under the
//! lock; a core that sees it, with acquire, then takes the lock and finds that list or a later one.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::balance::{Standing, server_id};
use super::health::FailureKind;
use super::line::Line;
use super::shared::{Judge, Shared};
use crate::config::model::{ServerAddr, ServerState, Upstream, UpstreamServer};
use crate::runtime::address::Address;

/// Most addresses of one name; more are left out.
pub const ADDRESSES_MAX: usize = 64;

/// An upstream at work: its settings, its servers with all that the cores share of them, and the line
/// of those that wait for one.
#[derive(Debug)]
pub struct Roster {
    settings: Arc<Upstream>,
    version: AtomicU64,
    state: Mutex<State>,
    line: Line,
}

#[derive(Debug)]
struct State {
    members: Arc<Members>,
    /// The administrator's word on each server of the settings.
    admin: Box<[Standing]>,
}

/// The servers of one moment.
#[derive(Debug)]
pub struct Members {
    /// Greater than that of every list before.
    pub version: u64,
    /// The servers; at most [`ADDRESSES_MAX`] for each one of the settings.
    pub list: Box<[Member]>,
    /// What all cores know of each, by its place in `list`.
    pub board: Shared,
}

/// A server that takes requests, or would if its name had an address.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its place in the settings.
    pub server: usize,
    /// Where it is; `None` for a name without an address.
    pub address: Option<Address>,
    /// What it is called in logs and in the status: its address, behind its name if it has one.
    pub label: Arc<str>,
    /// What keys and cookies know it by.
    pub id: u64,
    /// What its name was resolved to.
    resolved: Option<Resolved>,
    /// Its share, at least 1.
    pub weight: u16,
    /// Whether it only stands in for others.
    pub is_backup: bool,
    /// The requests that it works on, of all cores, where they are limited.
    pub limit: Option<Arc<Limit>>,
}

/// How many requests a server may work on, and does.
#[derive(Debug)]
pub struct Limit {
    /// The bound.
    pub max: NonZeroU32,
    in_flight: AtomicU32,
}

/// An address that a name has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Address and port.
    pub address: SocketAddr,
    /// Its weight among the addresses of the name (RFC 2782); multiplied with that of the server. 1 for
    /// names without such a thing; 0 counts as 1.
    pub weight: u16,
    /// Whether others of the name come first (RFC 2782: a lower priority).
    pub is_backup: bool,
}

/// The upstreams of a configuration, at work.
#[derive(Debug, Default)]
pub struct Rosters(Vec<Arc<Roster>>);

impl Rosters {
    /// Those of the first configuration.
    pub fn new(upstreams: &[Arc<Upstream>], now: Instant) -> Arc<Self> {
        Self::succeeding(upstreams, &Self::default(), now)
    }

    /// Those of the next one: an upstream whose settings haven't changed goes on as it is.
    pub fn succeeding(upstreams: &[Arc<Upstream>], before: &Self, now: Instant) -> Arc<Self> {
        let next = |settings: &Arc<Upstream>| match before.find(&settings.name) {
            Some(same) if same.settings == *settings => Arc::clone(same),
            Some(other) => Roster::succeeding(settings, other, now),
            None => Roster::new(settings, now),
        };
        Arc::new(Self(upstreams.iter().map(next).collect()))
    }

    /// In the order of the configuration.
    pub fn list(&self) -> &[Arc<Roster>] {
        &self.0
    }

    /// The one of this name.
    pub fn find(&self, name: &str) -> Option<&Arc<Roster>> {
        self.0.iter().find(|roster| *roster.settings.name == *name)
    }
}

/// A server that nobody knows by that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownServer {
    /// What it was called.
    pub name: String,
    /// What there is.
    pub known: Vec<String>,
}

impl Roster {
    /// The servers of these settings. Those that are names have no address yet.
    pub fn new(settings: &Arc<Upstream>, now: Instant) -> Arc<Self> {
        let admin: Box<[Standing]> = settings
            .servers
            .iter()
            .map(|server| server.state.into())
            .collect();
        let list = settings.servers.iter().enumerate();
        let list: Box<[Member]> = list.map(|(at, server)| first(at, server)).collect();
        let board = Shared::new(list.len(), now);
        let members = Members {
            version: 1,
            list,
            board,
        };
        members.judge(&admin, now);
        Arc::new(Self {
            settings: Arc::clone(settings),
            version: AtomicU64::new(1),
            line: Line::default(),
            state: Mutex::new(State {
                members: Arc::new(members),
                admin,
            }),
        })
    }

    /// The same after a reload that has changed the settings: what is known of servers that stay is
    /// kept, addresses of names included, and the administrator's word where the configuration says
    /// of the server what it said before.
    pub fn succeeding(settings: &Arc<Upstream>, before: &Self, now: Instant) -> Arc<Self> {
        let old = before.lock();
        let mut list = Vec::new();
        let mut admin = Vec::new();
        for (at, server) in settings.servers.iter().enumerate() {
            let same = |other: &UpstreamServer| other.address == server.address;
            let place = before.settings.servers.iter().position(same);
            admin.push(match place {
                Some(place) if before.settings.servers[place].state == server.state => {
                    old.admin[place]
                }
                _ => server.state.into(),
            });
            let of_name = old
                .members
                .list
                .iter()
                .filter(|member| Some(member.server) == place && server.address.is_name());
            let known = list.len();
            let resolved = of_name.filter_map(|member| member.resolved.as_ref());
            list.extend(resolved.map(|resolved| of_address(at, server, resolved)));
            if list.len() == known {
                list.push(first(at, server));
            }
        }
        let next = old.members.next(list.into());
        next.judge(&admin, now);
        Arc::new(Self {
            settings: Arc::clone(settings),
            version: AtomicU64::new(next.version),
            line: Line::default(),
            state: Mutex::new(State {
                members: Arc::new(next),
                admin: admin.into(),
            }),
        })
    }

    /// What the configuration says.
    pub fn settings(&self) -> &Arc<Upstream> {
        &self.settings
    }

    /// The number of the last list: one load.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The servers. Takes a lock: for whoever has seen another [`Self::version`].
    pub fn members(&self) -> Arc<Members> {
        Arc::clone(&self.lock().members)
    }

    /// Those that wait until a server has room.
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// The places in the settings of servers that have to be resolved.
    pub fn names(&self) -> impl Iterator<Item = (usize, &ServerAddr)> {
        let servers = self.settings.servers.iter().enumerate();
        servers
            .map(|(at, server)| (at, &server.address))
            .filter(|(_, address)| address.is_name())
    }

    /// The name of the server at this place of the settings has these addresses now. None at all
    /// leaves what was known: the last good answer stays when names can't be resolved. Says whether
    /// anything has changed.
    pub fn resolved(&self, server: usize, addresses: &[Resolved], now: Instant) -> bool {
        let Some(configured) = self.settings.servers.get(server) else {
            return false;
        };
        if addresses.is_empty() {
            return false;
        }
        let mut state = self.lock();
        let old = Arc::clone(&state.members);
        let mut new: Vec<Member> = Vec::new();
        for resolved in addresses {
            let address = Address::Tcp(resolved.address);
            if new
                .iter()
                .any(|known| known.address.as_ref() == Some(&address))
            {
                continue;
            }
            if new.len() == ADDRESSES_MAX {
                break;
            }
            let known = old.list.iter().find(|member| {
                member.server == server && member.address.as_ref() == Some(&address)
            });
            new.push(Member {
                limit: known.map_or_else(|| limit(configured), |known| known.limit.clone()),
                ..of_address(server, configured, resolved)
            });
        }
        // In one order, whatever the order of the answer, which name servers turn about.
        new.sort_by(|a, b| a.address.cmp(&b.address));
        let of_others = |member: &&Member| member.server < server;
        let before = old.list.iter().take_while(of_others).cloned();
        let after = old.list.iter().filter(|member| member.server > server);
        let list: Box<[Member]> = before.chain(new).chain(after.cloned()).collect();
        if list.len() == old.list.len() && list.iter().zip(&old.list).all(|(a, b)| a.is_same(b)) {
            return false;
        }
        let next = old.next(list);
        next.judge(&state.admin, now);
        let version = next.version;
        state.members = Arc::new(next);
        drop(state);
        self.version.store(version, Ordering::Release);
        true
    }

    /// The administrator's word on a server, by its name in the configuration: for all addresses of a
    /// name, those that it will have included. It stands until the next word, or until the
    /// configuration says another thing of the server than before. Gives how many addresses that are.
    ///
    /// # Errors
    /// When there is no such server.
    pub fn set_admin(
        &self,
        name: &str,
        admin: Standing,
        now: Instant,
    ) -> Result<usize, UnknownServer> {
        let mut servers = self.settings.servers.iter();
        let Some(place) = servers.position(|server| server.address.to_string() == name) else {
            let known = self.settings.servers.iter();
            return Err(UnknownServer {
                name: name.to_owned(),
                known: known.map(|server| server.address.to_string()).collect(),
            });
        };
        Ok(self.administer(&mut self.lock(), place, admin, now))
    }

    /// All words of the administrator: of a server that isn't among them what the configuration says
    /// holds. What stands already is left as it is.
    pub fn heed<'w>(&self, words: impl Iterator<Item = (&'w str, Standing)>, now: Instant) {
        let words: Vec<(&str, Standing)> = words.collect();
        let mut state = self.lock();
        for (place, server) in self.settings.servers.iter().enumerate() {
            let name = server.address.to_string();
            let word = words.iter().find(|(known, _)| *known == name);
            let wanted = word.map_or_else(|| server.state.into(), |(_, admin)| *admin);
            if state.admin[place] != wanted {
                self.administer(&mut state, place, wanted, now);
            }
        }
    }

    fn administer(&self, state: &mut State, place: usize, admin: Standing, now: Instant) -> usize {
        state.admin[place] = admin;
        let members = &state.members;
        let of_server = |(_, member): &(usize, &Member)| member.server == place;
        let mut found = 0;
        for (at, _) in members.list.iter().enumerate().filter(of_server) {
            members.board.set_admin(at, admin, now);
            found += 1;
        }
        // Those who wait may have somebody to go to.
        self.line.serve(members, now);
        found
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked with the lock taken had not put anything in place yet.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Members {
    /// Another list with what is known of the servers that stay.
    fn next(&self, list: Box<[Member]>) -> Self {
        let places: Vec<Option<usize>> = list
            .iter()
            .map(|new| {
                let same = |old: &Member| old.address == new.address && old.id == new.id;
                self.list.iter().position(same)
            })
            .collect();
        Self {
            version: self.version + 1,
            board: Shared::succeeding(&self.board, &places),
            list,
        }
    }

    /// Says on the board what is known beforehand: the administrator's word, and names without
    /// an address.
    fn judge(&self, admin: &[Standing], now: Instant) {
        for (at, member) in self.list.iter().enumerate() {
            self.board.set_admin(at, admin[member.server], now);
            if member.address.is_none() {
                self.board
                    .condemn(at, Judge::Resolver, FailureKind::Unresolved, now);
            }
        }
    }
}

impl Member {
    fn is_same(&self, other: &Self) -> bool {
        self.server == other.server
            && self.address == other.address
            && self.weight == other.weight
            && self.is_backup == other.is_backup
    }
}

impl Limit {
    /// A bound with nothing in flight.
    pub fn new(max: NonZeroU32) -> Self {
        Self {
            max,
            in_flight: AtomicU32::new(0),
        }
    }

    /// Requests that the server works on.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Takes a place if one is free.
    pub fn take(&self) -> bool {
        let more = |count: u32| (count < self.max.get()).then_some(count + 1);
        self.in_flight
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more)
            .is_ok()
    }

    /// Gives a place back.
    pub fn give_back(&self) {
        let before = self.in_flight.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(before > 0, "a place that nobody took");
    }
}

impl fmt::Display for UnknownServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.known.join(", ");
        write!(f, "no server `{}`; there are {known}", self.name)
    }
}

impl std::error::Error for UnknownServer {}

impl From<ServerState> for Standing {
    fn from(state: ServerState) -> Self {
        match state {
            ServerState::Up => Self::Up,
            ServerState::Drain => Self::Drain,
            ServerState::Down => Self::Down,
        }
    }
}

fn limit(server: &UpstreamServer) -> Option<Arc<Limit>> {
    server.max_conns.map(|max| Arc::new(Limit::new(max)))
}

fn weight(server: &UpstreamServer) -> u16 {
    u16::try_from(server.weight.get()).unwrap_or(u16::MAX)
}

/// A server before anything was resolved.
fn first(at: usize, server: &UpstreamServer) -> Member {
    let label: Arc<str> = server.address.to_string().into();
    let address = match &server.address {
        ServerAddr::Ip(address) => Some(Address::Tcp(*address)),
        ServerAddr::Unix(path) => Some(Address::from(path.as_path())),
        ServerAddr::Name(..) | ServerAddr::Service(_) => None,
    };
    Member {
        server: at,
        id: server_id(&label),
        address,
        label,
        resolved: None,
        weight: weight(server),
        is_backup: server.backup,
        limit: limit(server),
    }
}

/// One of the addresses of a name.
fn of_address(at: usize, server: &UpstreamServer, resolved: &Resolved) -> Member {
    let address = resolved.address.to_string();
    let weight = u32::from(weight(server)) * u32::from(resolved.weight.max(1));
    Member {
        id: server_id(&address),
        label: format!("{} ({address})", server.address).into(),
        address: Some(Address::Tcp(resolved.address)),
        weight: u16::try_from(weight).unwrap_or(u16::MAX),
        is_backup: server.backup || resolved.is_backup,
        resolved: Some(*resolved),
        ..first(at, server)
    }
}

#[cfg(test)]
mod tests;
