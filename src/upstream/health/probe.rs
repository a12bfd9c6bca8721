//! When to ask a server whether it is well, and what its answer means.
//!
//! One core asks each server, and all share what it finds. The questions of many servers, and of many
//! Beltways in front of the same ones, are spread by chance, so they don't come in beats.

use std::time::{Duration, Instant};

use memchr::memmem;

use super::FailureKind;
use crate::http::types::{Status, StatusSet};
use crate::util::random::Random;

/// How much of the body of an answer is read to find the text that is expected in it.
pub const PROBE_BODY_BYTES_MAX: usize = 64 * 1024;

/// An interval is longer or shorter by up to this, in percent.
const JITTER_PERCENT: u64 = 10;

/// How a server is asked.
#[derive(Clone, Debug)]
pub struct ProbePlan {
    /// From the begin of a probe to the next, give or take a tenth. At least 1 ms.
    pub interval: Duration,
    /// How long one may take, connecting included. Whoever carries it out keeps this.
    pub timeout: Duration,
    /// Good answers in a row that bring a server back. At least 1.
    pub rise: u32,
    /// Bad ones in a row that put it out. At least 1.
    pub fall: u32,
    /// What a good answer is.
    pub expects: Expectation,
}

/// What a good answer is.
#[derive(Clone, Debug)]
pub enum Expectation {
    /// A connection.
    Connection,
    /// A response to a GET.
    Response {
        /// With one of these statuses.
        statuses: StatusSet,
        /// And this text within the first [`PROBE_BODY_BYTES_MAX`] of its body, when given.
        body: Option<Box<[u8]>>,
    },
}

impl Expectation {
    /// Whether a response is good.
    ///
    /// # Errors
    /// What isn't as expected. A response where only a connection was wanted is good.
    pub fn judge(&self, status: u16, body: &[u8]) -> Result<(), FailureKind> {
        let Self::Response {
            statuses,
            body: text,
        } = self
        else {
            return Ok(());
        };
        if !statuses.contains(Status(status)) {
            return Err(FailureKind::Status(status));
        }
        let read = &body[..body.len().min(PROBE_BODY_BYTES_MAX)];
        match text {
            Some(text) if memmem::find(read, text).is_none() => Err(FailureKind::Body),
            _ => Ok(()),
        }
    }

    /// Whether the body has to be read to judge.
    pub fn wants_body(&self) -> bool {
        matches!(self, Self::Response { body: Some(_), .. })
    }
}

/// Whether the core numbered `core` of `cores` asks the server at `server`: each server has one.
pub fn probes_here(server: usize, core: usize, cores: usize) -> bool {
    server % cores.max(1) == core
}

/// What has to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask, and tell [`Probe::finish`].
    Ask,
    /// Come again at this time.
    WaitUntil(Instant),
    /// An answer is awaited.
    Pending,
}

/// What an answer has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The server is well now.
    Up,
    /// It isn't any more.
    Down(FailureKind),
}

/// The questions to one server.
#[derive(Debug)]
pub struct Probe {
    plan: ProbePlan,
    next: Instant,
    is_pending: bool,
    /// `None` before the first answer: the server takes requests then, and the first answer decides
    /// alone.
    is_up: Option<bool>,
    /// Answers in a row that speak against `is_up`.
    against: u32,
    random: Random,
}

impl Probe {
    /// The first question comes within one interval of `now`, at a time that `seed` decides.
    pub fn new(plan: ProbePlan, now: Instant, seed: u64) -> Self {
        Self::resume(plan, now, seed, None)
    }

    /// As [`Self::new`] for a server of which is known what somebody who asked it before has found.
    pub fn resume(plan: ProbePlan, now: Instant, seed: u64, is_up: Option<bool>) -> Self {
        let mut random = Random::new(seed);
        let wait = scale(plan.interval, random.below(100));
        Self {
            plan,
            next: now + wait,
            is_pending: false,
            is_up,
            against: 0,
            random,
        }
    }

    /// How it asks.
    pub fn plan(&self) -> &ProbePlan {
        &self.plan
    }

    /// When the next question is due; `None` while an answer is awaited.
    pub fn due(&self) -> Option<Instant> {
        (!self.is_pending).then_some(self.next)
    }

    /// Says what to do at `now`. After [`Step::Ask`] the question counts as asked.
    pub fn step(&mut self, now: Instant) -> Step {
        if self.is_pending {
            return Step::Pending;
        }
        if now < self.next {
            return Step::WaitUntil(self.next);
        }
        self.is_pending = true;
        let percent = 100 - JITTER_PERCENT + self.random.below(2 * JITTER_PERCENT + 1);
        let interval = scale(self.plan.interval, percent);
        // From now and not from when it was due: what was missed isn't made up for.
        self.next = now + interval.max(Duration::from_millis(1));
        Step::Ask
    }

    /// Takes the result of a question; not in time is [`FailureKind::Timeout`] or
    /// [`FailureKind::ConnectTimeout`].
    pub fn finish(&mut self, result: Result<(), FailureKind>) -> Option<Change> {
        self.is_pending = false;
        let is_good = result.is_ok();
        if self.is_up == Some(is_good) {
            self.against = 0;
            return None;
        }
        self.against = self.against.saturating_add(1);
        let needed = match self.is_up {
            None => 1,
            Some(true) => self.plan.fall,
            Some(false) => self.plan.rise,
        };
        if self.against < needed {
            return None;
        }
        let was = self.is_up.replace(is_good);
        self.against = 0;
        match result {
            Err(kind) => Some(Change::Down(kind)),
            // It took requests already.
            Ok(()) if was.is_none() => None,
            Ok(()) => Some(Change::Up),
        }
    }

    /// The question came to nothing, and not by the server's fault (no descriptors): it is asked again
    /// at the next interval.
    pub fn abandon(&mut self) {
        self.is_pending = false;
    }
}

fn scale(time: Duration, percent: u64) -> Duration {
    // At most 110 percent.
    time * percent as u32 / 100
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);
    const BAD: Result<(), FailureKind> = Err(FailureKind::Refused);

    fn plan(rise: u32, fall: u32) -> ProbePlan {
        ProbePlan {
            interval: 10 * S,
            timeout: S,
            rise,
            fall,
            expects: Expectation::Connection,
        }
    }

    #[test]
    fn rise_and_fall_count_in_a_row_and_the_first_answer_decides_alone() {
        for (answers, expected) in [
            ("+", vec![]),
            ("-", vec![(0, false)]),
            ("+--+---", vec![(6, false)]),
            ("-+-++", vec![(0, false), (4, true)]),
            ("---+++---", vec![(0, false), (4, true), (8, false)]),
        ] {
            let mut probe = Probe::new(plan(2, 3), Instant::now(), 1);
            let mut changes = Vec::new();
            for (at, answer) in answers.chars().enumerate() {
                match probe.finish(if answer == '+' { Ok(()) } else { BAD }) {
                    Some(Change::Up) => changes.push((at, true)),
                    Some(Change::Down(kind)) => {
                        assert_eq!(kind, FailureKind::Refused);
                        changes.push((at, false));
                    }
                    None => {}
                }
            }
            assert_eq!(changes, expected, "{answers}");
        }
    }

    #[test]
    fn asks_once_at_a_time_and_does_not_make_up_for_what_it_missed() {
        let now = Instant::now();
        let mut probe = Probe::new(plan(1, 1), now, 3);
        let Step::WaitUntil(first) = probe.step(now) else {
            panic!("the first one is spread");
        };
        assert_eq!(probe.step(first), Step::Ask);
        assert_eq!(probe.step(first + 90 * S), Step::Pending);
        probe.abandon();
        assert_eq!(probe.step(first + 90 * S), Step::Ask);
        probe.finish(Ok(()));
        assert!(matches!(probe.step(first + 90 * S), Step::WaitUntil(_)));
    }

    #[test]
    fn an_answer_is_judged_by_status_and_text() {
        let statuses = StatusSet::new([(Status(200), Status(299))]);
        let body = |text: &str| Expectation::Response {
            statuses,
            body: Some(text.as_bytes().into()),
        };
        let long = [vec![b' '; PROBE_BODY_BYTES_MAX], b"ok".to_vec()].concat();
        for (expects, status, answer, expected) in [
            (body("ok"), 200, &b"all ok"[..], Ok(())),
            (body("ok"), 200, b"no", Err(FailureKind::Body)),
            (body("ok"), 200, &long, Err(FailureKind::Body)),
            (body("ok"), 503, b"ok", Err(FailureKind::Status(503))),
            (
                Expectation::Response {
                    statuses,
                    body: None,
                },
                204,
                b"",
                Ok(()),
            ),
            (Expectation::Connection, 500, b"", Ok(())),
        ] {
            assert_eq!(expects.judge(status, answer), expected, "{expects:?}");
        }
        assert!(body("ok").wants_body() && !Expectation::Connection.wants_body());
    }

    #[test]
    fn each_server_is_asked_by_one_core() {
        for cores in 1..5 {
            for server in 0..20 {
                let asking = (0..cores).filter(|core| probes_here(server, *core, cores));
                assert_eq!(asking.count(), 1);
            }
        }
    }

    proptest! {
        #[test]
        fn questions_are_spread_and_keep_their_distance(seed: u64) {
            let begin = Instant::now();
            let mut probe = Probe::new(plan(1, 1), begin, seed);
            let (mut now, mut last) = (begin, None);
            for _ in 0..50 {
                match probe.step(now) {
                    Step::WaitUntil(next) => {
                        prop_assert!(next > now, "time goes on");
                        now = next;
                    }
                    Step::Ask => {
                        match last {
                            None => prop_assert!(now - begin < 10 * S),
                            Some(last) => {
                                prop_assert!((9 * S..=11 * S).contains(&(now - last)));
                            }
                        }
                        last = Some(now);
                        probe.finish(Ok(()));
                    }
                    Step::Pending => prop_assert!(false, "it was finished"),
                }
            }
        }
    }

    #[test]
    fn many_probes_do_not_begin_together() {
        let now = Instant::now();
        let first = |seed| match Probe::new(plan(1, 1), now, seed).step(now) {
            Step::WaitUntil(next) => (next - now).as_secs(),
            _ => 0,
        };
        let distinct: std::collections::BTreeSet<u64> = (0..100).map(first).collect();
        assert_eq!(
            distinct.len(),
            10,
            "one in each second of the interval at least"
        );
    }
}
