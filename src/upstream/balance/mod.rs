//! Chooses the server of an upstream that takes a request.
//!
//! A [`Picker`] belongs to one upstream on one core. It is told what every server looks like at this
//! moment ([`ServerView`]) and answers with an index. It knows nothing of addresses, connections or
//! clocks: where the key of a request comes from (client address, path, a field, a cookie), who
//! counts what is in flight, and who found a server ill, is the business of others.
//!
//! Rules of every policy:
//! - Down, full, tried and weightless servers are never picked, and draining ones only for a client
//!   whose cookie names them.
//! - Backup servers are picked only when no primary is available. A primary that is full is available:
//!   a request then waits for it ([`survey`] tells the two apart).
//! - A pick allocates nothing (the first one of all makes room for the turns) and ends after at most
//!   six passes over the servers.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::util::random::Random;

mod hash;
mod latency;
mod least_conn;
mod p2c;
mod random;
mod round_robin;
mod sticky;
#[cfg(test)]
mod tests;

pub use latency::PeakEwma;
pub use sticky::{CookieValue, SECRET_BYTES_MIN, SecretTooShort, Sticky};

/// Which server takes the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Smooth weighted round robin: as nginx does, turns of a heavy server lie apart.
    RoundRobin,
    /// The one with the fewest requests in flight for its weight; equal ones take turns.
    LeastConnections,
    /// The better one of two drawn by weight; better means less latency times requests in flight.
    PowerOfTwo,
    /// Drawn by weight.
    Random,
    /// The same key goes to the same server: weighted rendezvous hashing. When a server leaves, only
    /// its own keys move. A request without a key is drawn by weight.
    Hash {
        /// How far above the mean load a server may be, in percent of the mean, before its keys go to
        /// their next choice (Mirrokni, Thorup, Zadimoghaddam, "Consistent hashing with bounded
        /// loads", 2016). What is below 100 counts as 100. `None`: no bound.
        load_percent_max: Option<NonZeroU32>,
    },
}

/// Whether a server takes requests: what health and administrator say together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Takes all requests.
    #[default]
    Up,
    /// Takes the requests of clients that it has already, until they are gone.
    Drain,
    /// Takes none.
    Down,
}

/// A server at the moment of a pick.
#[derive(Clone, Copy, Debug)]
pub struct ServerView {
    /// What names the server for keys and cookies: [`server_id`] of its address, so that its keys
    /// stay with it when others come and go, on every core and after a restart.
    pub id: u64,
    /// Share of the requests, relative to the others. 0 takes none, except by cookie.
    pub weight: u16,
    /// Whether it only stands in for the primary servers.
    pub is_backup: bool,
    /// What health and administrator say.
    pub standing: Standing,
    /// Requests that it works on.
    pub in_flight: u32,
    /// How many it may work on; `None` for any number.
    pub in_flight_max: Option<NonZeroU32>,
    /// How long it takes; only [`Policy::PowerOfTwo`] looks at it.
    pub latency: PeakEwma,
    /// When it came back after being down; its slow start counts from here.
    pub recovered: Option<Instant>,
}

impl ServerView {
    /// Whether it works on as much as it may.
    pub fn is_full(&self) -> bool {
        self.in_flight_max
            .is_some_and(|max| self.in_flight >= max.get())
    }

    fn takes_new(&self) -> bool {
        self.standing == Standing::Up && self.weight > 0
    }
}

/// The id of the server at `address`, as the configuration writes it.
pub fn server_id(address: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(address.as_bytes())
}

/// Servers that one request has tried already, by index.
///
/// Holds the last [`Tried::MAX`] of them: when more are added the first one is forgotten. The bound
/// on tries (`retry::TRIES_MAX`) is not above it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    servers: [u16; Self::MAX],
    count: usize,
}

impl Tried {
    /// How many servers are remembered.
    pub const MAX: usize = 16;

    /// Remembers that the server at `index` was tried.
    pub fn add(&mut self, index: usize) {
        // An upstream has far fewer servers than this; one beyond it is just not remembered.
        if let Ok(index) = u16::try_from(index) {
            self.servers[self.count % Self::MAX] = index;
            self.count += 1;
        }
    }

    /// Whether the server at `index` was tried.
    pub fn contains(&self, index: usize) -> bool {
        let known = &self.servers[..self.count.min(Self::MAX)];
        known.iter().any(|tried| usize::from(*tried) == index)
    }
}

/// What a request that found no server may hope for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survey {
    /// A server takes it now.
    Usable,
    /// All servers that would take it are full: it may wait for one.
    Full,
    /// No server would take it, however long it waits.
    Nobody,
}

/// Says whether a request without a cookie that has tried `tried` finds a server among `servers`.
pub fn survey(servers: &[ServerView], tried: &Tried) -> Survey {
    let mut found = Survey::Nobody;
    let backups = stand_in(servers, tried);
    for (index, server) in servers.iter().enumerate() {
        if server.takes_new() && server.is_backup == backups && !tried.contains(index) {
            if !server.is_full() {
                return Survey::Usable;
            }
            found = Survey::Full;
        }
    }
    found
}

/// Whether the backup servers stand in: no primary would take the request, now or later.
fn stand_in(servers: &[ServerView], tried: &Tried) -> bool {
    let mut indexed = servers.iter().enumerate();
    !indexed
        .any(|(index, server)| !server.is_backup && server.takes_new() && !tried.contains(index))
}

/// Chooses servers of one upstream on one core.
///
/// It remembers turns by index: when servers are added, removed or change places, make a new one.
#[derive(Debug)]
pub struct Picker {
    policy: Policy,
    sticky: Option<Sticky>,
    slow_start: Duration,
    turns: round_robin::Turns,
    random: Random,
}

impl Picker {
    /// A picker of `policy`. A server that came back gets its full share only after `slow_start`
    /// (zero: at once). `seed` should differ from core to core, or all of them begin with the same
    /// server and draw the same numbers.
    pub fn new(policy: Policy, slow_start: Duration, seed: u64) -> Self {
        Self {
            policy,
            sticky: None,
            slow_start,
            turns: round_robin::Turns::new(seed),
            random: Random::new(seed),
        }
    }

    /// Lets the cookie of a client decide before the policy does. The key of a pick is then the value
    /// of that cookie, so that [`Policy::Hash`] behind it has no key and draws.
    pub fn with_sticky(mut self, sticky: Sticky) -> Self {
        self.sticky = Some(sticky);
        self
    }

    /// The cookies, when they decide: to make the value for the server that was picked.
    pub fn sticky(&self) -> Option<&Sticky> {
        self.sticky.as_ref()
    }

    /// The index of the server for a request with `key` that has been refused by those in `exclude`.
    ///
    /// `None`: no server takes it now; [`survey`] says whether one may later.
    pub fn pick(
        &mut self,
        servers: &[ServerView],
        key: Option<&[u8]>,
        now: Instant,
        exclude: &Tried,
    ) -> Option<usize> {
        let (mut key, is_sticky) = (key, self.sticky.is_some());
        if let Some(sticky) = &self.sticky
            && let Some(index) = key.and_then(|cookie| sticky.find(servers, cookie))
            && servers[index].standing != Standing::Down
            && !servers[index].is_full()
            && !exclude.contains(index)
        {
            return Some(index);
        }
        if is_sticky {
            key = None;
        }
        let candidates = Candidates {
            servers,
            exclude,
            backups: stand_in(servers, exclude),
            slow_start: self.slow_start,
            now,
        };
        match (self.policy, key) {
            (Policy::RoundRobin, _) => self.turns.pick(servers.len(), || candidates.iter()),
            (Policy::LeastConnections, _) => least_conn::pick(&candidates, &mut self.turns),
            (Policy::PowerOfTwo, _) => p2c::pick(&candidates, &mut self.random),
            (Policy::Hash { load_percent_max }, Some(key)) => {
                hash::pick(&candidates, key, load_percent_max)
            }
            (Policy::Random | Policy::Hash { .. }, _) => {
                random::pick(&candidates, &mut self.random)
            }
        }
    }
}

/// The servers that may take a new request, each with the weight it has at this moment.
struct Candidates<'v> {
    servers: &'v [ServerView],
    exclude: &'v Tried,
    backups: bool,
    slow_start: Duration,
    now: Instant,
}

/// One of them.
#[derive(Clone, Copy)]
struct Candidate<'v> {
    index: usize,
    /// Its weight in parts of [`WEIGHT_ONE`], never 0.
    weight: u64,
    view: &'v ServerView,
}

/// What a weight of 1 counts. With it the largest weight is below 2^26, and sums and products with a
/// number of requests stay below 2^63.
const WEIGHT_ONE: u64 = 1_024;

/// A slow start begins with this part of the weight: with none at all nobody would ever learn
/// whether the server works.
const SLOW_START_PART: u64 = 20;

impl<'v> Candidates<'v> {
    fn iter(&self) -> impl Iterator<Item = Candidate<'v>> {
        let indexed = self.servers.iter().enumerate();
        indexed.filter_map(|(index, view)| {
            let is_one = view.takes_new()
                && view.is_backup == self.backups
                && !view.is_full()
                && !self.exclude.contains(index);
            is_one.then(|| Candidate {
                index,
                weight: weight_at(view, self.slow_start, self.now),
                view,
            })
        })
    }

    fn weight(&self) -> u64 {
        self.iter().map(|candidate| candidate.weight).sum()
    }
}

/// The weight of `view` at `now`: it grows in a line from a twentieth at its recovery to the whole.
fn weight_at(view: &ServerView, slow_start: Duration, now: Instant) -> u64 {
    let whole = u64::from(view.weight) * WEIGHT_ONE;
    let Some(recovered) = view.recovered else {
        return whole;
    };
    let passed = now.saturating_duration_since(recovered);
    if passed >= slow_start {
        return whole;
    }
    let part = passed.as_secs_f64() / slow_start.as_secs_f64();
    ((whole as f64 * part) as u64).max(whole / SLOW_START_PART)
}
