//! Clients for a while: each a thread that takes one manner after the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use crate::http::Trouble;
use crate::manners::{Client, MANNERS, Round};
use crate::random::Random;
use crate::server::DRAIN;

/// Failures that are told; what comes after the first is often its consequence.
const FAILURES_MAX: usize = 8;

/// How much earlier or later than a kill its consequence may be seen.
const AROUND: Duration = Duration::from_secs(1);

/// What was done to a server that may cut connections.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Blow {
    /// A worker was killed at this moment.
    Kill(Instant),
    /// Workers were replaced by others, begun at this moment.
    Replacement(Instant),
}

impl Blow {
    /// Whether it is why a connection ended that was used from `begin` to `end`.
    fn explains(self, begin: Instant, end: Instant) -> bool {
        match self {
            Self::Kill(at) => begin <= at + AROUND && end + AROUND >= at,
            // Only what lasted longer than the time for draining is cut.
            Self::Replacement(at) => begin <= at + AROUND && end + AROUND >= at + DRAIN,
        }
    }
}

/// What clients of a server have seen.
#[derive(Default)]
pub(crate) struct Ledger {
    stop: AtomicBool,
    blows: Mutex<Vec<Blow>>,
    rounds: Mutex<BTreeMap<&'static str, u64>>,
    cuts: Mutex<u64>,
    failures: Mutex<Vec<String>>,
}

impl Ledger {
    /// Notes what is about to be done to the server.
    pub(crate) fn blow(&self, blow: Blow) {
        lock(&self.blows).push(blow);
    }

    /// Notes what must not be.
    pub(crate) fn fail(&self, what: String) {
        let failures = &mut *lock(&self.failures);
        if failures.len() < FAILURES_MAX {
            failures.push(what);
        }
        self.stop.store(true, Ordering::Relaxed);
    }

    /// What must not be and was.
    pub(crate) fn failures(&self) -> Vec<String> {
        lock(&self.failures).clone()
    }

    /// Whether something failed.
    pub(crate) fn has_failed(&self) -> bool {
        !lock(&self.failures).is_empty()
    }

    /// Rounds of each manner, and connections that were cut with a reason.
    pub(crate) fn counts(&self) -> (BTreeMap<&'static str, u64>, u64) {
        (lock(&self.rounds).clone(), *lock(&self.cuts))
    }

    /// Starts clients, which go on until [`Self::end_load`].
    pub(crate) fn start_load<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        address: SocketAddr,
        clients: usize,
        seed: &Random,
    ) {
        self.stop.store(self.has_failed(), Ordering::Relaxed);
        let mut seeds = seed.clone();
        for _ in 0..clients {
            let random = Random::new(seeds.bits(), "client");
            scope.spawn(move || self.client(address, random));
        }
    }

    /// Tells the clients to end after their round.
    pub(crate) fn end_load(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn client(&self, address: SocketAddr, random: Random) {
        let mut client = Client {
            address,
            random,
            kept: None,
        };
        while !self.stop.load(Ordering::Relaxed) {
            let (name, round) = draw(&mut client.random);
            let mut begin = Instant::now();
            let idle_since = client.kept.as_ref().map(|kept| kept.used);
            let result = round(&mut client);
            if let (Some(since), None) = (idle_since, &client.kept) {
                // What it took may have been closed since its last answer.
                begin = since;
            }
            match result {
                Ok(()) => *lock(&self.rounds).entry(name).or_default() += 1,
                Err(Trouble::Cut(_)) if self.is_explained(begin) => *lock(&self.cuts) += 1,
                Err(trouble) => {
                    let took = begin.elapsed();
                    self.fail(format!("{name}, after {took:.1?}: {trouble}"));
                }
            }
            // Many clients that think, not few that don't: the machine is to be left to others.
            thread::sleep(Duration::from_millis(client.random.below(8)));
        }
    }

    fn is_explained(&self, begin: Instant) -> bool {
        let end = Instant::now();
        lock(&self.blows)
            .iter()
            .rev()
            .any(|blow| blow.explains(begin, end))
    }
}

fn draw(random: &mut Random) -> (&'static str, Round) {
    let all = MANNERS.iter().map(|(_, weight, _)| weight).sum();
    let mut at = random.below(all);
    for (name, weight, round) in MANNERS {
        if at < weight {
            return (name, round);
        }
        at -= weight;
    }
    unreachable!("the weights are summed up")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole at any moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_explains_what_was_open_then() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let kill = Blow::Kill(at(20));
        assert!(kill.explains(at(10), at(20)) && kill.explains(at(20), at(21)));
        assert!(!kill.explains(at(10), at(15)) && !kill.explains(at(22), at(23)));
    }

    #[test]
    fn a_replacement_explains_what_outlasts_its_drain() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let replacement = Blow::Replacement(at(20));
        assert!(replacement.explains(at(10), at(25)));
        assert!(!replacement.explains(at(10), at(22)), "it had time to end");
        assert!(
            !replacement.explains(at(22), at(30)),
            "it came to the new workers"
        );
    }
}
