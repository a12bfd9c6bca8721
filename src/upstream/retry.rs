//! Decides whether a try that failed may be repeated.
//!
//! Two harms stand against each other. A request that isn't repeated is an error a client sees. One
//! that is repeated may be done twice, and many that are repeated finish off an upstream that is only
//! slow. So a repetition needs all of: a failure that says the first try had no effect, or a method
//! for which that doesn't matter (RFC 9110 §9.2.2); a body that can be sent again; tries and time
//! left; and a token of the upstream's budget, which grows with its requests.
//!
//! This knows nothing of connections: the proxy says how far the try came.

use std::fmt;
use std::time::{Duration, Instant};

use crate::http::types::Method;
use crate::http::types::{Status, StatusSet};
use crate::upstream::balance::Tried;

/// Most tries a policy may allow, the first one included.
pub const TRIES_MAX: u8 = 16;
const _: () = assert!(TRIES_MAX as usize <= Tried::MAX);

/// How often one request begins anew because a kept connection turned out to be closed. An upstream
/// that has restarted leaves a whole pool of those, and one fresh connection tells more.
const STALE_MAX: u8 = 2;

/// What a route allows.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Tries in all, the first one included. 0 and 1 mean none is repeated; above [`TRIES_MAX`] counts
    /// as that.
    pub tries_max: u8,
    /// No try begins later than this after the first one; `None` for any time.
    pub time_max: Option<Duration>,
    /// Statuses that are answered by another try.
    pub statuses: StatusSet,
    /// The route says that its requests may be done twice, whatever their method.
    pub repeats_any_method: bool,
}

/// How far a try came before it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There was no connection: refused, unreachable, or not in time.
    Connect,
    /// A kept connection was closed by the server. `sent`: bytes of the request were written to it.
    Stale {
        /// Whether the server may have seen anything of the request.
        sent: bool,
    },
    /// A connection of this request alone was lost, and not a byte of a response had come.
    NoResponse {
        /// Whether the server may have seen anything of the request.
        sent: bool,
    },
    /// The server has the request and didn't answer in time. It may be working on it, and another one
    /// would then do the same work.
    HeadTimeout,
    /// A whole head with this status came, and nothing of it went on to the client.
    Status(u16),
    /// Some of a response came, an interim one (1xx) included, and then something went wrong.
    Response,
}

/// What the decision must know of the request.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Whether doing it twice is as good as once ([`is_idempotent`]).
    pub is_idempotent: bool,
    /// Whether its body can be sent from its first byte once more: there is none, nothing of it was
    /// taken from the client yet, or all that was taken is kept.
    pub is_replayable: bool,
}

/// The tries of one request.
#[derive(Clone, Copy, Debug)]
pub struct Tries {
    started: Instant,
    made: u8,
    stale: u8,
}

/// What follows a failed try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again, and not with a server that was tried.
    Elsewhere,
    /// Try again on a fresh connection. The same server is as good as any: it did nothing wrong. Costs
    /// neither a try nor budget.
    Afresh,
    /// The client gets an error, or the response with the status that came.
    GiveUp(Refusal),
}

/// Why a try isn't repeated: for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Some of a response came.
    ResponseBegun,
    /// The status isn't among those of the route.
    StatusNotChosen,
    /// The server may be at work still.
    TimedOut,
    /// It might be done twice, and its method doesn't allow that.
    NotIdempotent,
    /// Some of the body is gone.
    BodySpent,
    /// As many tries as the route allows.
    TriesSpent,
    /// Later than the route allows.
    TimeSpent,
    /// Too large a share of the upstream's requests has been repeated.
    BudgetSpent,
}

/// Whether `method` is idempotent (RFC 9110 §9.2.2). What isn't known isn't.
pub fn is_idempotent(method: Method<'_>) -> bool {
    match method {
        Method::Get | Method::Head | Method::Put | Method::Delete => true,
        Method::Options | Method::Trace => true,
        Method::Post | Method::Connect | Method::Patch | Method::Other(_) => false,
    }
}

impl Tries {
    /// The first try begins at `now`.
    pub fn begin(now: Instant) -> Self {
        Self {
            started: now,
            made: 1,
            stale: 0,
        }
    }

    /// How many were made, those on stale connections not counted: for the log.
    pub fn made(&self) -> u8 {
        self.made
    }

    /// Says what follows `failure` at `now`. When it is another try, that one is counted, and paid for
    /// from `budget`.
    pub fn failed(
        &mut self,
        failure: Failure,
        request: Request,
        policy: &RetryPolicy,
        budget: &mut RetryBudget,
        now: Instant,
    ) -> Verdict {
        if let Err(refusal) = may_repeat(failure, request, policy) {
            return Verdict::GiveUp(refusal);
        }
        let passed = now.saturating_duration_since(self.started);
        if policy.time_max.is_some_and(|max| passed >= max) {
            return Verdict::GiveUp(Refusal::TimeSpent);
        }
        if matches!(failure, Failure::Stale { .. }) && self.stale < STALE_MAX {
            self.stale += 1;
            return Verdict::Afresh;
        }
        if self.made >= policy.tries_max.min(TRIES_MAX) {
            return Verdict::GiveUp(Refusal::TriesSpent);
        }
        if !budget.take(now) {
            return Verdict::GiveUp(Refusal::BudgetSpent);
        }
        self.made += 1;
        Verdict::Elsewhere
    }
}

/// Whether another try does no harm, however many there were.
fn may_repeat(failure: Failure, request: Request, policy: &RetryPolicy) -> Result<(), Refusal> {
    let may_have_acted = match failure {
        Failure::Connect => false,
        Failure::Stale { sent } | Failure::NoResponse { sent } => sent,
        Failure::HeadTimeout => return Err(Refusal::TimedOut),
        Failure::Response => return Err(Refusal::ResponseBegun),
        Failure::Status(status) if !policy.statuses.contains(Status(status)) => {
            return Err(Refusal::StatusNotChosen);
        }
        Failure::Status(_) => true,
    };
    if may_have_acted && !request.is_idempotent && !policy.repeats_any_method {
        return Err(Refusal::NotIdempotent);
    }
    if !request.is_replayable {
        return Err(Refusal::BodySpent);
    }
    Ok(())
}

/// How much of an upstream's work may be repetition.
#[derive(Clone, Copy, Debug)]
pub struct BudgetLimits {
    /// Retries for each hundred requests.
    pub percent: u32,
    /// Retries a second that are always allowed, so that an upstream with few requests has some.
    pub per_second_min: u32,
}

/// Tokens, one for a retry. Each request earns a part of a token, and so does time.
///
/// From its beginning, `t` seconds and `n` requests ago, there were at most
/// `n × percent / 100 + t × per_second_min + capacity` retries. Nothing is saved for long: what time
/// brought is kept up to `capacity` (ten seconds of it, at least [`CAPACITY_MIN`]), and of what requests
/// earned a tenth is lost each second, so that a good hour doesn't pay for a storm. One per core: the
/// limits are divided by the number of cores before.
#[derive(Debug)]
pub struct RetryBudget {
    limits: BudgetLimits,
    /// From time; in parts of a [`TOKEN`], as all of these.
    saved: u64,
    capacity: u64,
    /// From requests.
    earned: u64,
    updated: Instant,
    /// Until when `earned` has lost its tenths.
    decayed: Instant,
    granted: u64,
    refused: u64,
}

/// What a budget has done, and what it could do: for the status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BudgetAccount {
    /// Retries that were paid for.
    pub granted: u64,
    /// Retries that weren't.
    pub refused: u64,
    /// Retries that could be paid for at once.
    pub left: u64,
}

/// The parts of a token: a request earns `percent` × 10^7 of them, a nanosecond `per_second_min`.
const TOKEN: u64 = 1_000_000_000;
/// For how long tokens of time are kept.
const SAVED: Duration = Duration::from_secs(10);
/// Smallest capacity, in tokens.
const CAPACITY_MIN: u64 = 10;
const DECAY: Duration = Duration::from_secs(1);

impl RetryBudget {
    /// A budget with its capacity saved.
    pub fn new(limits: BudgetLimits, now: Instant) -> Self {
        let tokens = (u64::from(limits.per_second_min) * SAVED.as_secs()).max(CAPACITY_MIN);
        let capacity = tokens.saturating_mul(TOKEN);
        Self {
            limits,
            saved: capacity,
            capacity,
            earned: 0,
            updated: now,
            decayed: now,
            granted: 0,
            refused: 0,
        }
    }

    /// How it stands at `now`.
    pub fn account(&mut self, now: Instant) -> BudgetAccount {
        self.pass(now);
        self.decay(now);
        BudgetAccount {
            granted: self.granted,
            refused: self.refused,
            left: self.saved / TOKEN + self.earned / TOKEN,
        }
    }

    /// A request came; its retries are not counted here.
    pub fn request(&mut self, now: Instant) {
        self.decay(now);
        let part = u64::from(self.limits.percent) * (TOKEN / 100);
        self.earned = self.earned.saturating_add(part);
    }

    /// Whole retries that are left at `now`: for the status.
    pub fn left(&mut self, now: Instant) -> u64 {
        self.pass(now);
        self.decay(now);
        self.saved / TOKEN + self.earned / TOKEN
    }

    fn take(&mut self, now: Instant) -> bool {
        self.pass(now);
        self.decay(now);
        for purse in [&mut self.saved, &mut self.earned] {
            if let Some(rest) = purse.checked_sub(TOKEN) {
                *purse = rest;
                self.granted += 1;
                return true;
            }
        }
        self.refused += 1;
        false
    }

    fn pass(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.updated).min(SAVED);
        self.updated = self.updated.max(now);
        // Ten seconds of nanoseconds are within 64 bits.
        let part = (passed.as_nanos() as u64).saturating_mul(u64::from(self.limits.per_second_min));
        self.saved = self.saved.saturating_add(part).min(self.capacity);
    }

    fn decay(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.decayed).as_secs();
        if seconds == 0 {
            return;
        }
        self.decayed += DECAY * u32::try_from(seconds).unwrap_or(u32::MAX);
        for _ in 0..seconds {
            if self.earned < TOKEN / 100 {
                self.earned = 0;
                break;
            }
            self.earned -= self.earned / 10;
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ResponseBegun => "the response had begun",
            Self::StatusNotChosen => "no retry for this status",
            Self::TimedOut => "the server may still be working on it",
            Self::NotIdempotent => "the method is not idempotent",
            Self::BodySpent => "the request body can't be sent again",
            Self::TriesSpent => "no tries left",
            Self::TimeSpent => "no time left for a retry",
            Self::BudgetSpent => "the retry budget of the upstream is spent",
        })
    }
}

#[cfg(test)]
mod tests;
