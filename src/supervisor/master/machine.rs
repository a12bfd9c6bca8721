//! What the master decides: events in, actions out.
//!
//! It knows no process, no socket and no clock: the loop around it tells what happened and when, and
//! does what it is told. So every history can be tested in virtual time, and all of it goes through a
//! binary upgrade as data ([`Machine::export`]).
//!
//! - At most one generation serves and at most one starts; the serving one is drained only after
//!   another is READY. Older ones drain, a bounded number of them.
//! - One change (reload, upgrade) at a time; the others wait in order. A change that fails leaves all
//!   as it was, but for workers of it that may already have clients: they drain.
//! - Each configuration that was prepared is ended by one `Commit` or one `Abandon`, each request by
//!   one `Answer`.
//! - A dead worker of the serving generation is replaced at once, then with backoff and within a
//!   budget. A lost core costs the whole generation: a new one is started for it.

mod changes;
mod ending;
#[cfg(test)]
mod simulation;
mod state;
#[cfg(test)]
mod tests;
mod types;
mod view;
mod workers;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::state::{Clock, Force, Generation, Life, Moment, Phase, Purpose, Stage, State, Worker};
pub use self::types::{
    Action, ChangeId, ConfigId, Event, GenerationId, Image, Kind, Level, Limits, Outcome,
    Placement, Policy, RequestId, WorkerId,
};
pub use self::view::{ChangeView, GenerationView, View, WorkerView};

/// Form of a [`Snapshot`]. It changes with every change of the state that an older reader would
/// misunderstand.
pub const SNAPSHOT_VERSION: u32 = 1;

/// The state machine of the master.
#[derive(Debug)]
pub struct Machine {
    limits: Limits,
    clock: Clock,
    state: State,
}

/// A machine on its way into another process. Times are kept as distances from the export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    version: u32,
    at: Moment,
    state: State,
}

/// A snapshot of another version, which the importing binary can't read.
///
/// After an exec there is no way back: so let the new binary say [`SNAPSHOT_VERSION`] when it checks
/// the configuration, and refuse the upgrade there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignSnapshot {
    /// Of the snapshot.
    pub version: u32,
}

impl fmt::Display for ForeignSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the state handed over has version {}, this binary reads version {SNAPSHOT_VERSION}: \
             stop the server and start it anew",
            self.version
        )
    }
}

impl std::error::Error for ForeignSnapshot {}

impl Machine {
    /// A master that has started nothing yet.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            clock: Clock {
                base: now,
                at: Moment::ZERO,
            },
            state: State::new(),
        }
    }

    /// Takes what happened and says what has to be done, in order.
    ///
    /// `now` never goes back. Events about workers and changes that are gone are ignored, so the loop
    /// may tell all it hears.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        self.turn(now, |turn| turn.event(event))
    }

    /// When `Tick` is due at the latest; none: only another event can change anything.
    pub fn deadline(&self) -> Option<Instant> {
        let state = &self.state;
        let workers = state.generations.iter().flat_map(|it| &it.workers);
        let of_workers = workers
            .flat_map(|w| [w.life.due(&self.limits), w.applying.map(|it| it.until)])
            .flatten();
        let of_change = state.change.as_ref().and_then(|it| it.step.due());
        let may_repair = state.phase == Phase::Running
            && state.is_idle()
            && state.needs_repair()
            && state.draining() < self.limits.draining_max;
        let of_repair = may_repair.then_some(state.repair_at);
        let first = of_workers.chain(of_change).chain(of_repair).min();
        first.map(|moment| self.clock.instant(moment))
    }

    /// All of it, for the process that comes after `Execute`.
    pub fn export(&self, now: Instant) -> Snapshot {
        Snapshot {
            version: SNAPSHOT_VERSION,
            at: self.clock.moment(now),
            state: self.state.clone(),
        }
    }

    /// The machine of a snapshot, as if no time had passed since the export.
    ///
    /// # Errors
    /// The snapshot has another version.
    pub fn import(
        limits: Limits,
        snapshot: Snapshot,
        now: Instant,
    ) -> Result<Self, ForeignSnapshot> {
        let Snapshot { version, at, state } = snapshot;
        if version != SNAPSHOT_VERSION {
            return Err(ForeignSnapshot { version });
        }
        Ok(Self {
            limits,
            clock: Clock { base: now, at },
            state,
        })
    }

    /// The first turn after an import. If the snapshot was made at `Execute`, this process is what the
    /// upgrade asked for: its generation serves, the older one drains, the request is answered, and
    /// `Image::New` is `Image::Own` from now on.
    pub fn resumed(&mut self, now: Instant) -> Vec<Action> {
        self.turn(now, |turn| turn.resumed())
    }

    /// Whether it was told to end, or gave up.
    pub fn is_ending(&self) -> bool {
        matches!(self.state.phase, Phase::Ending { .. })
    }

    /// Whether a change is under way.
    pub fn is_changing(&self) -> bool {
        self.state.change.is_some()
    }

    /// What `status` shows.
    pub fn view(&self) -> View {
        view::view(&self.state, &self.clock)
    }

    fn turn(&mut self, now: Instant, first: impl FnOnce(&mut Turn<'_>)) -> Vec<Action> {
        let mut turn = Turn {
            limits: &self.limits,
            clock: self.clock,
            now: self.clock.moment(now),
            state: &mut self.state,
            actions: Vec::new(),
            execute: false,
        };
        first(&mut turn);
        turn.timers();
        turn.advance();
        turn.execute_last();
        turn.actions
    }
}

/// One event on its way through the machine.
struct Turn<'m> {
    limits: &'m Limits,
    clock: Clock,
    now: Moment,
    state: &'m mut State,
    actions: Vec<Action>,
    /// The master is to be replaced at the end of the turn.
    execute: bool,
}

impl Turn<'_> {
    fn event(&mut self, event: Event) {
        match event {
            Event::Begin { config, policy } => self.begin(config, policy),
            Event::Ready { worker } => self.ready(worker),
            Event::Drained { worker } => self.drained(worker),
            Event::Failed {
                worker,
                permanent,
                why,
            } => self.failed(worker, permanent, why),
            Event::Exited { worker, cause } => self.exited(worker, &cause),
            Event::Applied { worker, config } => self.applied(worker, config),
            Event::NotApplied {
                worker,
                config,
                why,
            } => self.not_applied(worker, config, &why),
            Event::CoreLost {
                worker,
                core,
                why,
                stalls,
            } => self.core_lost(worker, core, &why, stalls),
            Event::Ask { request, kind } => self.ask(request, kind),
            Event::Prepared {
                change,
                config,
                policy,
                placement,
            } => self.prepared(change, Force { config, policy }, placement),
            Event::NotPrepared { change, text, code } => self.not_prepared(change, text, code),
            Event::Stop { at_once, request } => self.stop(at_once, request),
            Event::DrainWorkers => self.park(),
            Event::ExecFailed { why } => self.exec_failed(&why),
            Event::Tick => {}
        }
    }

    fn begin(&mut self, config: ConfigId, policy: Policy) {
        if self.state.phase != Phase::Idle {
            self.log(Level::Error, "the first start was asked for twice".into());
            return;
        }
        self.state.phase = Phase::Running;
        self.start_generation(Force { config, policy }, Image::Own, Purpose::First);
    }

    /// Everything that follows from the state alone.
    fn advance(&mut self) {
        loop {
            self.forget_empty_generations();
            match self.state.phase {
                Phase::Idle | Phase::Ended => return,
                Phase::Ending { .. } => return self.end_if_all_are_gone(),
                Phase::Running | Phase::Parked => {}
            }
            if self.give_up_if_nothing_can_serve() || !self.state.is_idle() {
                // A server that gives up comes round to its end.
                if matches!(self.state.phase, Phase::Ending { .. }) {
                    continue;
                }
                return;
            }
            if !self.repair() && !self.next_change() {
                return;
            }
        }
    }

    fn forget_empty_generations(&mut self) {
        let is_over = |it: &Generation| {
            it.workers.is_empty() && matches!(it.stage, Stage::Draining { .. } | Stage::Ending)
        };
        let over = self.state.generations.extract_if(.., |it| is_over(it));
        let over: Vec<_> = over.map(|it| it.id).collect();
        for id in over {
            self.log(Level::Info, format!("{id} has ended"));
        }
    }

    /// Starts a generation in place of one that lost a core. True if it did, or had to end an attempt.
    fn repair(&mut self) -> bool {
        if self.state.phase != Phase::Running
            || !self.state.needs_repair()
            || self.now < self.state.repair_at
            || self.state.draining() >= self.limits.draining_max
        {
            return false;
        }
        let Some(g) = self.state.serving() else {
            return false;
        };
        if let Some(free_at) = self.budget_free_at() {
            self.state.repair_at = free_at;
            return false;
        }
        self.state.respawns.push_back(self.now);
        let lost = &self.state.generations[g];
        let (id, force) = (
            lost.id,
            Force {
                config: lost.config,
                policy: lost.policy,
            },
        );
        let next = self.start_generation(force, Image::Own, Purpose::Repair);
        self.log(Level::Warn, format!("{next} starts in place of {id}"));
        true
    }

    /// When the budget allows another respawn; none: now.
    fn budget_free_at(&mut self) -> Option<Moment> {
        let (now, window) = (self.now, self.limits.window);
        let respawns = &mut self.state.respawns;
        while respawns.front().is_some_and(|at| *at + window <= now) {
            respawns.pop_front();
        }
        if respawns.len() < self.limits.budget.max(1) {
            return None;
        }
        respawns.front().map(|oldest| *oldest + window)
    }

    fn start_generation(&mut self, force: Force, image: Image, purpose: Purpose) -> GenerationId {
        self.state.generations_made += 1;
        let id = GenerationId(self.state.generations_made);
        let Force { config, policy } = force;
        let mut workers = Vec::new();
        for _ in 0..policy.processes.max(1) {
            let worker = self.spawn(id, config, image);
            workers.push(Worker {
                id: worker,
                life: Life::Starting {
                    until: self.now + policy.start_timeout,
                },
                since: self.now,
                ready_since: None,
                config,
                applying: None,
                lost: false,
                stalls: false,
                permanent: None,
                deaths: 0,
                restarts: 0,
            });
        }
        self.state.generations.push(Generation {
            id,
            config,
            policy,
            image,
            stage: Stage::Starting(purpose),
            since: self.now,
            workers,
        });
        id
    }

    fn spawn(&mut self, generation: GenerationId, config: ConfigId, image: Image) -> WorkerId {
        self.state.workers_made += 1;
        let worker = WorkerId(self.state.workers_made);
        self.actions.push(Action::Spawn {
            worker,
            generation,
            config,
            image,
        });
        worker
    }

    /// All workers of a starting generation are READY.
    fn generation_ready(&mut self, g: usize, purpose: Purpose) {
        let Generation {
            id, config, policy, ..
        } = self.state.generations[g];
        match purpose {
            Purpose::First => {
                self.commit(Force { config, policy });
                self.serve(id);
                self.log(Level::Info, format!("{id} serves"));
            }
            Purpose::Repair => {
                self.serve(id);
                self.log(Level::Info, format!("{id} serves with all its cores"));
            }
            Purpose::Change => self.change_ready(id, Force { config, policy }),
        }
    }

    /// Makes it the one that serves; the one before drains.
    fn serve(&mut self, id: GenerationId) {
        if let Some(old) = self.state.serving() {
            let until = self.now + self.state.generations[old].policy.drain_timeout;
            self.drain_generation(old, true, until);
        }
        let (now, state) = (self.now, &mut *self.state);
        for generation in state.generations.iter_mut().filter(|it| it.id == id) {
            generation.stage = Stage::Serving;
            generation.since = now;
        }
        state.phase = Phase::Running;
        state.repair_failures = 0;
        state.repair_at = now;
    }

    fn commit(&mut self, force: Force) {
        self.state.force = Some(force);
        self.actions.push(Action::Commit {
            config: force.config,
        });
    }

    /// A worker of a starting generation failed: none of it will serve.
    ///
    /// Those that were READY may have clients already, so they drain.
    fn fail_generation(&mut self, g: usize, why: String) {
        let Stage::Starting(purpose) = self.state.generations[g].stage else {
            return;
        };
        if purpose == Purpose::First {
            return self.fail_server(format!("the first start failed: {why}"));
        }
        let id = self.state.generations[g].id;
        self.roll_back(g);
        match purpose {
            Purpose::First => {}
            Purpose::Change => self.change_not_ready(id, &why),
            Purpose::Repair => self.repair_failed(id, &why),
        }
    }

    fn roll_back(&mut self, g: usize) {
        let (now, stop_grace) = (self.now, self.limits.stop_grace);
        let generation = &mut self.state.generations[g];
        let unready = |w: &&mut Worker| matches!(w.life, Life::Starting { .. });
        for worker in generation.workers.iter_mut().filter(unready) {
            worker.life = Life::Killed {
                forget_at: now + stop_grace,
            };
            self.actions.push(Action::Kill { worker: worker.id });
        }
        if generation.workers.iter().any(|w| w.life.is_ready()) {
            let until = now + generation.policy.drain_timeout;
            self.drain_generation(g, true, until);
        } else {
            generation.stage = Stage::Ending;
            generation.since = now;
        }
    }

    fn repair_failed(&mut self, id: GenerationId, why: &str) {
        let wait = self.backoff(self.state.repair_failures.saturating_add(1));
        self.state.repair_failures = self.state.repair_failures.saturating_add(1);
        self.state.repair_at = self.now + wait;
        let text = format!(
            "{id}, which had to replace one that lost a core, failed: {why}; the old one goes on, \
             the next try is in {wait:?}"
        );
        self.log(Level::Error, text);
    }

    /// Wait before a respawn, after this many deaths in a row that were answered already.
    fn backoff(&self, deaths: u32) -> Duration {
        let Some(doublings) = deaths.checked_sub(1) else {
            return Duration::ZERO;
        };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        let wait = self.limits.backoff_first.saturating_mul(factor);
        wait.min(self.limits.backoff_max)
    }

    fn drain_generation(&mut self, g: usize, handover: bool, until: Moment) {
        let (clock, now, grace) = (self.clock, self.now, self.limits.grace);
        let generation = &mut self.state.generations[g];
        generation.workers.retain(|w| w.life.is_process());
        let mut last = now;
        for worker in &mut generation.workers {
            worker.applying = None;
            worker.lost = false;
            if !worker.life.is_active() {
                continue;
            }
            let until = match worker.life {
                Life::Draining { until: before } => before.min(until),
                // Its clients wait for nothing, and new ones fall to it that it never serves.
                _ if worker.stalls => until.min(now + grace),
                _ => until,
            };
            worker.life = Life::Draining { until };
            last = last.max(until);
            self.actions.push(Action::Drain {
                worker: worker.id,
                deadline: clock.instant(until.max(now)),
                handover,
            });
        }
        if !matches!(generation.stage, Stage::Draining { .. }) {
            generation.since = now;
        }
        generation.stage = Stage::Draining { until: last };
    }

    fn log(&mut self, level: Level, text: String) {
        self.actions.push(Action::Log { level, text });
    }
}

/// Joins reasons into one line; the same one is said once, with how often it was.
fn joined(reasons: &[String]) -> String {
    let mut counts = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason.as_str()).or_insert(0_usize) += 1;
    }
    let parts: Vec<_> = counts
        .into_iter()
        .map(|(reason, count)| match count {
            1 => reason.to_owned(),
            _ => format!("{reason} ({count} times)"),
        })
        .collect();
    parts.join("; ")
}
