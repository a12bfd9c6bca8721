//! What one core tells of an upstream, and what it does when the administrator has spoken.

use std::sync::Arc;
use std::time::Duration;

use super::Group;
use crate::upstream::balance::Standing;
use crate::upstream::health::BreakerState;
use crate::upstream::retry::BudgetAccount;

/// What a core knows of an upstream: for the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// The upstream's name.
    pub name: Arc<str>,
    /// Its servers.
    pub servers: Vec<ServerAccount>,
    /// What its breaker does on this core; `None` where it has none.
    pub breaker: Option<BreakerAccount>,
    /// Its retry budget on this core.
    pub retries: BudgetAccount,
}

/// What the breaker of a core does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerAccount {
    /// All requests pass.
    Closed,
    /// None passes for so long.
    Open(Duration),
    /// A few pass.
    HalfOpen,
}

/// What a core knows of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerAccount {
    /// What it is called: [`Member::label`](crate::upstream::roster::Member::label).
    pub label: Arc<str>,
    /// Requests that it works on, tunnels among them.
    pub in_flight: u32,
    /// Connections in use, or being made.
    pub busy: usize,
    /// Connections that wait for the next request.
    pub idle: usize,
    /// Requests that were sent to it, repetitions included.
    pub tries: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// How long it takes from the begin of a try to the head of its response: a moving average over the
    /// last answers. `None` before the first one.
    pub latency: Option<Duration>,
}

impl Group {
    /// What this core knows of it.
    pub fn account(&self) -> Account {
        let state = self.state.borrow();
        let now = self.core.now();
        let servers = state.servers.iter().map(|server| {
            let seen = &server.seen;
            ServerAccount {
                label: Arc::clone(&server.member().label),
                in_flight: seen.in_flight.get(),
                busy: self.pool.busy(&server.address),
                idle: self.pool.idle(&server.address),
                tries: seen.requests.get(),
                failures: seen.failures.get(),
                latency: seen.answers.get(),
            }
        });
        let breaker = self.breaker.as_ref();
        Account {
            name: Arc::clone(&self.roster.settings().name),
            servers: servers.collect(),
            breaker: breaker.map(|breaker| match breaker.borrow().state(now) {
                BreakerState::Closed => BreakerAccount::Closed,
                BreakerState::Open(until) => {
                    BreakerAccount::Open(until.saturating_duration_since(now))
                }
                BreakerState::HalfOpen => BreakerAccount::HalfOpen,
            }),
            retries: self.budget.borrow_mut().account(now),
        }
    }

    /// Closes the idle connections to servers that take nothing new: after a word of the administrator.
    /// Those in use are closed after it, as always when a server isn't wanted
    /// ([`Claim::is_wanted`](super::Claim::is_wanted)).
    pub fn tidy(&self) {
        let state = self.state.borrow();
        let now = self.core.now();
        for server in &state.servers {
            let (standing, _) = server.members.board.standing(server.index, now);
            if standing != Standing::Up {
                self.pool.clear(&server.address);
            }
        }
    }
}

/// A moving average to which each sample adds an eighth, as TCP has it of round trips (RFC 6298 §2).
pub(super) fn smooth(average: Option<Duration>, sample: Duration) -> Duration {
    match average {
        None => sample,
        Some(average) => average - average / 8 + sample / 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_begins_with_the_first_sample_and_follows_the_others() {
        let ms = Duration::from_millis;
        let mut average = smooth(None, ms(800));
        assert_eq!(average, ms(800));
        average = smooth(Some(average), ms(1600));
        assert_eq!(average, ms(900));
        for _ in 0..100 {
            average = smooth(Some(average), ms(8));
        }
        assert!((ms(7)..ms(9)).contains(&average), "{average:?}");
    }
}
