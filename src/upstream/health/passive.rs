//! Finds an ill server by what requests meet there.
//!
//! Two signs: so many failures in a row (it is down, and few requests are enough to see that), or too
//! large a share of a time (it fails now and then, and successes between would hide that). Whether the
//! server may then be put out is not decided here: that depends on the others
//! ([`EjectionLimits`](super::EjectionLimits)).

use std::time::{Duration, Instant};

use super::window::ErrorWindow;
use super::{FailureKind, Finder, Reason};

/// What makes a server ill. Each core counts what it sees itself.
#[derive(Clone, Copy, Debug)]
pub struct PassiveLimits {
    /// Failures in a row; 0: this sign is off.
    pub in_a_row: u32,
    /// Percent of the requests within `window` that fail; 0: this sign is off.
    pub error_percent: u32,
    /// Requests within `window` before a share of them means anything. At least 1.
    pub requests_min: u32,
    /// How far back the share looks; at least 10 ms, exact to a tenth.
    pub window: Duration,
}

/// How a try went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server did its part. A client that went away, or sent nonsense, is that too.
    Success,
    /// It didn't.
    Failure(FailureKind),
}

/// One server as one core sees it.
#[derive(Debug)]
pub struct Passive {
    limits: PassiveLimits,
    in_a_row: u32,
    window: ErrorWindow,
}

impl Passive {
    /// Nothing seen yet.
    pub fn new(limits: PassiveLimits) -> Self {
        Self {
            limits,
            in_a_row: 0,
            window: ErrorWindow::new(limits.window),
        }
    }

    /// Takes the outcome of a try that ended at `now`. A reason means: the server is ill, put it out if
    /// that is allowed. Both signs begin anew then.
    pub fn record(&mut self, outcome: Outcome, now: Instant) -> Option<Reason> {
        let limits = self.limits;
        let counts = self.window.record(outcome != Outcome::Success, now);
        let Outcome::Failure(kind) = outcome else {
            self.in_a_row = 0;
            return None;
        };
        self.in_a_row = self.in_a_row.saturating_add(1);
        let finder = if limits.in_a_row > 0 && self.in_a_row >= limits.in_a_row {
            Finder::InARow
        } else if limits.error_percent > 0
            && counts.exceed(limits.error_percent, limits.requests_min)
        {
            Finder::ErrorRate
        } else {
            return None;
        };
        self.in_a_row = 0;
        self.window.clear();
        Some(Reason { finder, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PassiveLimits = PassiveLimits {
        in_a_row: 3,
        error_percent: 50,
        requests_min: 10,
        window: Duration::from_secs(10),
    };
    const FAILURE: Outcome = Outcome::Failure(FailureKind::Refused);

    fn run(limits: PassiveLimits, outcomes: &str) -> Vec<(usize, Finder)> {
        let (mut passive, now) = (Passive::new(limits), Instant::now());
        let outcome = |letter| {
            if letter == 'x' {
                FAILURE
            } else {
                Outcome::Success
            }
        };
        let reasons = outcomes.chars().enumerate().filter_map(|(at, letter)| {
            let reason = passive.record(outcome(letter), now)?;
            assert_eq!(reason.kind, FailureKind::Refused);
            Some((at, reason.finder))
        });
        reasons.collect()
    }

    #[test]
    fn failures_in_a_row_and_the_share_are_both_signs() {
        for (outcomes, expected) in [
            ("xx.xx.xx.", vec![]),
            ("..xxx", vec![(4, Finder::InARow)]),
            ("xxxxxx", vec![(2, Finder::InARow), (5, Finder::InARow)]),
            ("x.x.x.x.x", vec![]),
            (".x.x.x.x.x", vec![(9, Finder::ErrorRate)]),
            // Begins anew.
            (".x.x.x.x.x.x.x.x.x", vec![(9, Finder::ErrorRate)]),
            ("x..x..x..x..x..", vec![]),
        ] {
            assert_eq!(run(LIMITS, outcomes), expected, "{outcomes}");
        }
    }

    #[test]
    fn each_sign_can_be_off() {
        let (mut row, mut rate) = (LIMITS, LIMITS);
        row.error_percent = 0;
        rate.in_a_row = 0;
        assert_eq!(run(row, ".x.x.x.x.x.x.x.x.x.x"), []);
        assert_eq!(run(rate, "xxxxxxxxx"), []);
        assert_eq!(run(rate, "xxxxxxxxxx"), [(9, Finder::ErrorRate)]);
    }

    #[test]
    fn what_is_long_ago_is_no_sign() {
        let (mut passive, now) = (Passive::new(LIMITS), Instant::now());
        for turn in 0..100 {
            let at = now + turn * Duration::from_secs(4);
            assert_eq!(passive.record(FAILURE, at), None);
            assert_eq!(passive.record(Outcome::Success, at), None);
        }
    }
}
