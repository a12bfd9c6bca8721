//! The circuit breaker of an upstream: when most of what it is asked fails, it isn't asked for a while.
//!
//! Clients then get their error at once and not after a timeout, and an upstream that drowns gets air.
//! After the pause a few requests try it (half-open): all of them well, and it is asked as before; one
//! fails, and the next pause is longer.

use std::time::{Duration, Instant};

use super::window::ErrorWindow;

/// When the breaker opens, and how it closes.
#[derive(Clone, Copy, Debug)]
pub struct BreakerLimits {
    /// Percent of the requests within `window` that must fail. 0: the breaker is off.
    pub error_percent: u32,
    /// Requests within `window` before a share of them means anything. At least 1.
    pub requests_min: u32,
    /// How far back the share looks; at least 10 ms, exact to a tenth.
    pub window: Duration,
    /// The first pause; doubles with each pause that didn't help.
    pub pause_first: Duration,
    /// The longest pause.
    pub pause_longest: Duration,
    /// How many requests try the upstream after a pause. At least 1.
    pub trials: u32,
}

/// What the breaker says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Go on, and [`Breaker::settle`] the pass whatever happens.
    Admitted(Pass),
    /// 503, with this time for `Retry-After` (at least 1 ms).
    Refused(Duration),
}

/// A request on its way. What it finds counts for the period in which it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a pass that isn't settled holds a place among the trials"]
pub struct Pass {
    period: u64,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The upstream did its part.
    Success,
    /// It didn't, with all retries.
    Failure,
    /// The client went away before anybody could know.
    Unknown,
}

/// What the breaker is doing: for the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// All requests pass.
    Closed,
    /// None passes until then.
    Open(Instant),
    /// A few pass.
    HalfOpen,
}

/// One upstream on one core.
#[derive(Debug)]
pub struct Breaker {
    limits: BreakerLimits,
    window: ErrorWindow,
    phase: Phase,
    /// Grows with each change of phase: a request from before one says nothing about after.
    period: u64,
    /// Pauses since the last success.
    pauses: u32,
}

#[derive(Debug)]
enum Phase {
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        /// Trials on their way or well; at most `trials`.
        begun: u32,
        well: u32,
        /// Then new ones may begin, whatever became of those before.
        patience: Instant,
    },
}

impl Breaker {
    /// A closed breaker.
    pub fn new(limits: BreakerLimits) -> Self {
        Self {
            limits,
            window: ErrorWindow::new(limits.window),
            phase: Phase::Closed,
            period: 0,
            pauses: 0,
        }
    }

    /// What it is doing at `now`.
    pub fn state(&self, now: Instant) -> BreakerState {
        match self.phase {
            Phase::Closed => BreakerState::Closed,
            Phase::Open { until } if now < until => BreakerState::Open(until),
            Phase::Open { .. } | Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// A request wants to go to the upstream at `now`. Its retries aren't asked for again.
    pub fn admit(&mut self, now: Instant) -> Admission {
        let refuse = |until: Instant| {
            let wait = until.saturating_duration_since(now);
            Admission::Refused(wait.max(Duration::from_millis(1)))
        };
        match self.phase {
            Phase::Open { until } if now < until => return refuse(until),
            Phase::Open { .. } => self.half_open(now),
            Phase::HalfOpen { patience, .. } if now >= patience => self.half_open(now),
            Phase::Closed | Phase::HalfOpen { .. } => {}
        }
        if let Phase::HalfOpen {
            begun, patience, ..
        } = &mut self.phase
        {
            if *begun >= self.limits.trials.max(1) {
                return refuse(*patience);
            }
            *begun += 1;
        }
        Admission::Admitted(Pass {
            period: self.period,
        })
    }

    /// Takes what became of a request at `now`.
    pub fn settle(&mut self, pass: Pass, settled: Settled, now: Instant) {
        if pass.period != self.period {
            return;
        }
        match (&mut self.phase, settled) {
            (Phase::Closed, Settled::Success | Settled::Failure) => {
                let has_failed = settled == Settled::Failure;
                let counts = self.window.record(has_failed, now);
                let limits = &self.limits;
                if has_failed
                    && limits.error_percent > 0
                    && counts.exceed(limits.error_percent, limits.requests_min)
                {
                    self.open(now);
                }
            }
            (Phase::HalfOpen { .. }, Settled::Failure) => self.open(now),
            (Phase::HalfOpen { well, .. }, Settled::Success) => {
                *well += 1;
                if *well >= self.limits.trials.max(1) {
                    self.close();
                }
            }
            (Phase::HalfOpen { begun, .. }, Settled::Unknown) => *begun = begun.saturating_sub(1),
            (Phase::Closed, Settled::Unknown) | (Phase::Open { .. }, _) => {}
        }
    }

    fn open(&mut self, now: Instant) {
        self.period += 1;
        self.phase = Phase::Open {
            until: now + self.pause(),
        };
        self.pauses = self.pauses.saturating_add(1);
    }

    fn half_open(&mut self, now: Instant) {
        self.period += 1;
        self.phase = Phase::HalfOpen {
            begun: 0,
            well: 0,
            patience: now + self.pause(),
        };
    }

    fn close(&mut self) {
        self.period += 1;
        self.phase = Phase::Closed;
        self.pauses = 0;
        self.window.clear();
    }

    fn pause(&self) -> Duration {
        let factor = 1_u32.checked_shl(self.pauses).unwrap_or(u32::MAX);
        let pause = self.limits.pause_first.saturating_mul(factor);
        let longest = self.limits.pause_longest.max(self.limits.pause_first);
        pause.min(longest).max(Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);
    const LIMITS: BreakerLimits = BreakerLimits {
        error_percent: 50,
        requests_min: 4,
        window: Duration::from_secs(10),
        pause_first: Duration::from_secs(5),
        pause_longest: Duration::from_secs(15),
        trials: 2,
    };

    fn admitted(breaker: &mut Breaker, now: Instant) -> Pass {
        match breaker.admit(now) {
            Admission::Admitted(pass) => pass,
            Admission::Refused(wait) => panic!("refused for {wait:?}"),
        }
    }

    fn ask(breaker: &mut Breaker, settled: Settled, now: Instant) {
        let pass = admitted(breaker, now);
        breaker.settle(pass, settled, now);
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(LIMITS);
        for _ in 0..4 {
            ask(&mut breaker, Settled::Failure, now);
        }
        breaker
    }

    #[test]
    fn opens_at_the_share_and_says_for_how_long() {
        let (mut breaker, now) = (Breaker::new(LIMITS), Instant::now());
        for settled in [Settled::Success, Settled::Failure, Settled::Unknown] {
            ask(&mut breaker, settled, now);
        }
        ask(&mut breaker, Settled::Success, now);
        assert_eq!(breaker.state(now), BreakerState::Closed);
        ask(&mut breaker, Settled::Failure, now);
        assert_eq!(breaker.state(now), BreakerState::Open(now + 5 * S));
        assert_eq!(breaker.admit(now + 2 * S), Admission::Refused(3 * S));
    }

    #[test]
    fn closes_when_all_trials_are_well() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + 5 * S;
        let (first, second) = (admitted(&mut breaker, later), admitted(&mut breaker, later));
        assert!(
            matches!(breaker.admit(later), Admission::Refused(_)),
            "two trials, not three"
        );
        breaker.settle(first, Settled::Success, later);
        assert_eq!(breaker.state(later), BreakerState::HalfOpen);
        breaker.settle(second, Settled::Success, later);
        assert_eq!(breaker.state(later), BreakerState::Closed);
        // The next trouble begins with the short pause again.
        for _ in 0..4 {
            ask(&mut breaker, Settled::Failure, later);
        }
        assert_eq!(breaker.state(later), BreakerState::Open(later + 5 * S));
    }

    #[test]
    fn pauses_grow_to_the_bound_while_trials_fail() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for pause in [5, 10, 15, 15] {
            assert_eq!(breaker.state(now), BreakerState::Open(now + pause * S));
            now += pause * S;
            ask(&mut breaker, Settled::Failure, now);
        }
    }

    #[test]
    fn a_request_from_before_says_nothing_about_after() {
        let (mut breaker, now) = (Breaker::new(LIMITS), Instant::now());
        let old = admitted(&mut breaker, now);
        for _ in 0..4 {
            ask(&mut breaker, Settled::Failure, now);
        }
        let later = now + 5 * S;
        let trial = admitted(&mut breaker, later);
        breaker.settle(old, Settled::Failure, later);
        assert_eq!(breaker.state(later), BreakerState::HalfOpen);
        breaker.settle(trial, Settled::Unknown, later);
        // Its place is free again.
        let _first = admitted(&mut breaker, later);
        let _second = admitted(&mut breaker, later);
    }

    proptest! {
        #[test]
        fn never_refuses_forever(
            steps in prop::collection::vec((0..4_u8, 0..2_000_u64), 1..300),
        ) {
            let (mut breaker, mut now) = (Breaker::new(LIMITS), Instant::now());
            let mut passes = Vec::new();
            for (kind, millis) in steps {
                match (kind, passes.pop()) {
                    (1, Some(pass)) => breaker.settle(pass, Settled::Success, now),
                    (2, Some(pass)) => breaker.settle(pass, Settled::Failure, now),
                    // Lost: nobody settles it.
                    (3, Some(_)) => {}
                    (_, pass) => {
                        passes.extend(pass);
                        now += Duration::from_millis(millis);
                        match breaker.admit(now) {
                            Admission::Admitted(pass) => passes.push(pass),
                            Admission::Refused(wait) => {
                                prop_assert!(wait <= LIMITS.pause_longest);
                                let mut patient = breaker.admit(now + wait);
                                if let Admission::Refused(wait) = patient {
                                    patient = breaker.admit(now + 2 * LIMITS.pause_longest + wait);
                                }
                                prop_assert!(matches!(patient, Admission::Admitted(_)));
                                now += LIMITS.pause_longest * 2;
                            }
                        }
                    }
                }
            }
        }
    }
}
