//! When each name is looked up: at once, then by interval or TTL, and sooner while it fails.
//!
//! Pure: it has no thread and no clock, and doesn't know what a lookup is. Whoever drives it starts what
//! [`Schedule::start`] gives, tells how it ended, and comes back at [`Schedule::wake`].
//!
//! # Bounds
//! At most [`LOOKUPS_MAX`] lookups run within their time. One that is over it counts as failed and makes
//! room for others, but goes on where it can't be stopped; at most [`THREADS_MAX`] run in all, and beyond
//! that the next ones wait for the end of one. A name isn't looked up again before its last lookup has
//! ended, so that one name that hangs holds one thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::model::{Resolve, ServerAddr};
use crate::util::random::Random;

/// Most lookups at the same time that are within their time.
pub const LOOKUPS_MAX: usize = 4;

/// Most lookups at the same time, those over their time and those that nobody waits for included.
pub const THREADS_MAX: usize = 16;

/// The shortest time from the end of a lookup to the next one of the same name.
pub const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The longest one after a failure; the interval of the name where that is less.
const PAUSE_FAILED_MAX: Duration = Duration::from_secs(30);

/// A name and how it is to be resolved. What is asked for twice is looked up once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    /// The name.
    pub address: ServerAddr,
    /// How.
    pub resolve: Resolve,
}

/// One lookup that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// How a lookup ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an answer that is good for so long; `None` for as long as the interval.
    Answered(Option<Duration>),
    /// Without one.
    Failed,
}

/// What the end of a lookup means for its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It goes on as before: well, or failing.
    Same,
    /// It fails, and didn't before.
    Failing,
    /// It is resolved again, after failures.
    Back,
}

/// All names of a worker.
#[derive(Debug)]
pub struct Schedule {
    names: Vec<Name>,
    /// Lookups that run and that nobody waits for any more.
    gone: Vec<Ticket>,
    next_ticket: u64,
    random: Random,
}

#[derive(Debug)]
struct Name {
    query: Arc<Query>,
    phase: Phase,
    /// Failures in a row.
    failures: u32,
    /// Whether a first lookup has ended or is over its time.
    asked: bool,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Waiting(Instant),
    Running(Ticket, Instant),
    /// Over its time, and counted as failed.
    Late(Ticket),
}

impl Schedule {
    /// One without names. The seed decides the jitter.
    pub fn new(seed: u64) -> Self {
        Self {
            names: Vec::new(),
            gone: Vec::new(),
            next_ticket: 0,
            random: Random::new(seed),
        }
    }

    /// These are the names from now on, each once: known ones go on as they were, new ones are due at
    /// once, all others are forgotten.
    pub fn keep(&mut self, queries: impl IntoIterator<Item = Arc<Query>>, now: Instant) {
        let old = std::mem::take(&mut self.names);
        let mut old: HashMap<Arc<Query>, Name> = old
            .into_iter()
            .map(|name| (Arc::clone(&name.query), name))
            .collect();
        for query in queries {
            let new = Name {
                query: Arc::clone(&query),
                phase: Phase::Waiting(now),
                failures: 0,
                asked: false,
            };
            self.names.push(old.remove(&query).unwrap_or(new));
        }
        let dropped = old.into_values().filter_map(|name| name.phase.ticket());
        self.gone.extend(dropped);
    }

    /// A lookup to start now, if one is due and may be. To be called until there is none.
    pub fn start(&mut self, now: Instant) -> Option<(Ticket, Arc<Query>)> {
        if !self.has_room() {
            return None;
        }
        let ticket = Ticket(self.next_ticket);
        let due = self.names.iter_mut().filter_map(|name| match name.phase {
            Phase::Waiting(at) if at <= now => Some((at, name)),
            _ => None,
        });
        let (_, name) = due.min_by_key(|(at, _)| *at)?;
        self.next_ticket += 1;
        name.phase = Phase::Running(ticket, now + name.query.resolve.timeout);
        Some((ticket, Arc::clone(&name.query)))
    }

    /// A lookup that has just gone over its time. To be called until there is none.
    pub fn overdue(&mut self, now: Instant) -> Option<(Arc<Query>, Turn)> {
        let over =
            |name: &&mut Name| matches!(name.phase, Phase::Running(_, until) if until <= now);
        let name = self.names.iter_mut().find(over)?;
        if let Phase::Running(ticket, _) = name.phase {
            name.phase = Phase::Late(ticket);
        }
        Some((Arc::clone(&name.query), name.failed()))
    }

    /// A lookup has ended. `None` when nobody waits for its answer any more.
    pub fn ended(
        &mut self,
        ticket: Ticket,
        ended: Ended,
        now: Instant,
    ) -> Option<(Arc<Query>, Turn)> {
        self.gone.retain(|gone| *gone != ticket);
        let its = |name: &&mut Name| name.phase.ticket() == Some(ticket);
        let name = self.names.iter_mut().find(its)?;
        let interval = name.query.resolve.interval;
        let (turn, pause) = match (ended, name.phase) {
            (Ended::Answered(ttl), _) => {
                let turn = match name.failures {
                    0 => Turn::Same,
                    _ => Turn::Back,
                };
                (name.failures, name.asked) = (0, true);
                (turn, ttl.map_or(interval, |ttl| ttl.min(interval)))
            }
            // It was counted when it went over its time.
            (Ended::Failed, Phase::Late(_)) => (Turn::Same, name.pause_failed()),
            (Ended::Failed, _) => {
                let turn = name.failed();
                (turn, name.pause_failed())
            }
        };
        let tenth = u64::try_from(pause.as_nanos() / 10).unwrap_or(u64::MAX);
        let jitter = Duration::from_nanos(self.random.below(tenth));
        name.phase = Phase::Waiting(now + (pause - jitter).max(PAUSE_MIN));
        Some((Arc::clone(&name.query), turn))
    }

    /// When to come back, if nothing ends before; `None` when there is nothing to come back for.
    pub fn wake(&self) -> Option<Instant> {
        let has_room = self.has_room();
        let times = self.names.iter().filter_map(|name| match name.phase {
            Phase::Waiting(at) => has_room.then_some(at),
            Phase::Running(_, until) => Some(until),
            Phase::Late(_) => None,
        });
        times.min()
    }

    /// Whether each name was looked up once, well or not.
    pub fn is_settled(&self) -> bool {
        self.names.iter().all(|name| name.asked)
    }

    fn has_room(&self) -> bool {
        let phases = || self.names.iter().map(|name| name.phase);
        let within = phases().filter(|phase| matches!(phase, Phase::Running(..)));
        let all = phases().filter_map(Phase::ticket).count() + self.gone.len();
        within.count() < LOOKUPS_MAX && all < THREADS_MAX
    }
}

impl Name {
    fn failed(&mut self) -> Turn {
        self.failures = self.failures.saturating_add(1);
        self.asked = true;
        match self.failures {
            1 => Turn::Failing,
            _ => Turn::Same,
        }
    }

    /// Doubles with each failure in a row.
    fn pause_failed(&self) -> Duration {
        let doubled = PAUSE_MIN * (1 << self.failures.saturating_sub(1).min(10));
        doubled
            .min(PAUSE_FAILED_MAX)
            .min(self.query.resolve.interval)
    }
}

impl Phase {
    fn ticket(self) -> Option<Ticket> {
        match self {
            Self::Waiting(_) => None,
            Self::Running(ticket, _) | Self::Late(ticket) => Some(ticket),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::config::model::Family;

    const TIMEOUT: Duration = Duration::from_secs(5);
    const INTERVAL: Duration = Duration::from_secs(60);

    fn query(number: usize) -> Arc<Query> {
        Arc::new(Query {
            address: ServerAddr::Name(format!("app{number}.internal").into(), 80),
            resolve: Resolve {
                interval: INTERVAL,
                timeout: TIMEOUT,
                family: Family::Any,
            },
        })
    }

    fn schedule(names: usize, now: Instant) -> Schedule {
        let mut schedule = Schedule::new(7);
        schedule.keep((0..names).map(query), now);
        schedule
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn all_names_are_due_at_once_and_a_few_run_at_a_time() {
        let now = Instant::now();
        let mut schedule = schedule(LOOKUPS_MAX + 1, now);
        let tickets: Vec<_> = std::iter::from_fn(|| schedule.start(now)).collect();
        assert_eq!(tickets.len(), LOOKUPS_MAX);
        assert_eq!(
            schedule.wake(),
            Some(now + TIMEOUT),
            "there is no room before"
        );
        assert!(!schedule.is_settled());
        for (ticket, query) in tickets {
            let ended = schedule.ended(ticket, Ended::Answered(None), now);
            assert_eq!(ended, Some((query, Turn::Same)));
        }
        let (last, _) = schedule.start(now).unwrap();
        assert!(schedule.start(now).is_none() && !schedule.is_settled());
        schedule.ended(last, Ended::Failed, now);
        assert!(schedule.is_settled());
    }

    #[test]
    fn failures_are_told_once_and_asked_for_sooner() {
        let start = Instant::now();
        let (mut now, mut schedule) = (start, schedule(1, start));
        let mut pauses = Vec::new();
        for turn in 0..8 {
            let (ticket, query) = schedule.start(now).unwrap();
            let expected = if turn == 0 { Turn::Failing } else { Turn::Same };
            let ended = schedule.ended(ticket, Ended::Failed, now);
            assert_eq!(ended, Some((query, expected)));
            let next = schedule.wake().unwrap();
            pauses.push((next - now).as_secs_f64());
            now = next;
        }
        for (pause, most) in pauses.iter().zip([1., 2., 4., 8., 16., 30., 30., 30.]) {
            assert!(
                (most * 0.9..=most).contains(pause) || *pause == 1.,
                "{pauses:?}"
            );
        }
        let (ticket, query) = schedule.start(now).unwrap();
        let back = schedule.ended(ticket, Ended::Answered(None), now);
        assert_eq!(back, Some((query, Turn::Back)));
        assert!(schedule.wake().unwrap() >= now + seconds(54));
    }

    #[test]
    fn a_ttl_shortens_the_interval_and_never_below_a_second() {
        let now = Instant::now();
        for (ttl, least, most) in [(0, 1., 1.), (10, 9., 10.), (600, 54., 60.)] {
            let mut schedule = schedule(1, now);
            let (ticket, _) = schedule.start(now).unwrap();
            schedule.ended(ticket, Ended::Answered(Some(seconds(ttl))), now);
            let pause = (schedule.wake().unwrap() - now).as_secs_f64();
            assert!((least..=most).contains(&pause), "{ttl}: {pause}");
        }
    }

    #[test]
    fn a_name_that_hangs_fails_and_lets_others_go_on() {
        let now = Instant::now();
        let mut schedule = schedule(THREADS_MAX + 2, now);
        let mut at = now;
        let mut hanging = Vec::new();
        while hanging.len() < THREADS_MAX {
            let started: Vec<_> = std::iter::from_fn(|| schedule.start(at)).collect();
            assert_eq!(started.len(), LOOKUPS_MAX);
            hanging.extend(started);
            at = schedule.wake().unwrap();
            let over: Vec<_> = std::iter::from_fn(|| schedule.overdue(at)).collect();
            assert_eq!(over.len(), LOOKUPS_MAX);
            assert!(over.iter().all(|(_, turn)| *turn == Turn::Failing));
        }
        assert!(schedule.start(at).is_none(), "all threads hang");
        assert_eq!(schedule.wake(), None, "nothing to do before one ends");
        let (ticket, query) = hanging.remove(0);
        let late = schedule.ended(ticket, Ended::Answered(None), at);
        assert_eq!(late, Some((query, Turn::Back)), "late is better than never");
        assert!(schedule.start(at).is_some());
    }

    #[test]
    fn names_that_stay_keep_their_time_and_forgotten_ones_are_not_heard() {
        let now = Instant::now();
        let mut schedule = schedule(2, now);
        let (first, _) = schedule.start(now).unwrap();
        let (second, _) = schedule.start(now).unwrap();
        schedule.ended(first, Ended::Answered(None), now);
        let due = now + INTERVAL;
        schedule.keep([query(0), query(2)], now + seconds(1));
        assert_eq!(schedule.ended(second, Ended::Failed, now), None);
        let (_, new) = schedule.start(now + seconds(1)).unwrap();
        assert_eq!(new, query(2));
        assert!(schedule.start(now + seconds(1)).is_none());
        assert_eq!(schedule.start(due).map(|it| it.1), Some(query(0)));
        schedule.keep([], due);
        assert!(schedule.is_settled() && schedule.wake().is_none());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Pass(u64),
        End(usize, bool, Option<u64>),
        Keep(Vec<usize>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..20_000_u64).prop_map(Step::Pass),
            (
                any::<usize>(),
                any::<bool>(),
                proptest::option::of(0..100_u64)
            )
                .prop_map(|(which, well, ttl)| Step::End(which, well, ttl)),
            proptest::collection::vec(0..30_usize, 0..30).prop_map(Step::Keep),
        ];
        proptest::collection::vec(step, 1..80)
    }

    proptest! {
        #[test]
        fn bounds_hold_and_no_name_is_forgotten_or_asked_twice(steps in steps(), seed: u64) {
            let start = Instant::now();
            let mut now = start;
            let mut schedule = Schedule::new(seed);
            let mut running: Vec<(Ticket, Arc<Query>, Instant)> = Vec::new();
            let mut last_end: HashMap<Arc<Query>, Instant> = HashMap::new();
            let mut kept: HashSet<Arc<Query>> = HashSet::new();
            for step in steps {
                match step {
                    Step::Pass(ms) => now += Duration::from_millis(ms),
                    Step::End(which, well, ttl) if !running.is_empty() => {
                        let (ticket, query, _) = running.remove(which % running.len());
                        let ended = match well {
                            true => Ended::Answered(ttl.map(seconds)),
                            false => Ended::Failed,
                        };
                        if let Some((of, turn)) = schedule.ended(ticket, ended, now) {
                            prop_assert_eq!(&of, &query);
                            prop_assert!(well || turn != Turn::Back);
                            prop_assert!(!well || turn != Turn::Failing);
                            last_end.insert(query, now);
                        }
                    }
                    Step::End(..) => {}
                    Step::Keep(numbers) => {
                        kept = numbers.into_iter().map(query).collect();
                        schedule.keep(kept.iter().cloned(), now);
                        last_end.retain(|query, _| kept.contains(query));
                    }
                }
                while schedule.overdue(now).is_some() {}
                while let Some((ticket, query)) = schedule.start(now) {
                    prop_assert!(kept.contains(&query));
                    if let Some(end) = last_end.get(&query) {
                        prop_assert!(now >= *end + PAUSE_MIN);
                    }
                    running.push((ticket, query, now));
                }
                prop_assert!(running.len() <= THREADS_MAX);
                let within = running.iter().filter(|(_, query, since)| {
                    kept.contains(query) && *since + TIMEOUT > now
                });
                // One that was forgotten and came back is another lookup of the same name.
                prop_assert!(within.count() <= THREADS_MAX.min(LOOKUPS_MAX + schedule.gone.len()));
                if let Some(wake) = schedule.wake() {
                    prop_assert!(wake > now, "it would spin");
                    prop_assert!(wake <= now + INTERVAL.max(TIMEOUT));
                } else {
                    let all_hang = running.len() == THREADS_MAX;
                    let late = schedule.names.iter().all(|name| matches!(name.phase, Phase::Late(_)));
                    prop_assert!(all_hang || late);
                }
            }
            // However it went: when all end well, every name is well.
            for (ticket, ..) in running {
                schedule.ended(ticket, Ended::Answered(None), now);
            }
            for _ in 0..1000 {
                if schedule.is_settled() {
                    break;
                }
                while let Some((ticket, _)) = schedule.start(now) {
                    schedule.ended(ticket, Ended::Answered(None), now);
                }
                now = schedule.wake().unwrap_or(now);
            }
            prop_assert!(schedule.is_settled());
        }
    }
}
