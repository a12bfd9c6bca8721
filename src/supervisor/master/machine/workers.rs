//! Workers: what they say, how they die, when they are respawned or killed.

use super::Turn;
use super::state::{Applying, Life, Moment, Purpose, Stage, Step};
use super::types::{Action, ConfigId, Level, WorkerId};

impl Turn<'_> {
    pub(super) fn ready(&mut self, worker: WorkerId) {
        let Some((g, w)) = self.state.find(worker) else {
            return;
        };
        let now = self.now;
        let generation = &mut self.state.generations[g];
        let place = &mut generation.workers[w];
        if !matches!(place.life, Life::Starting { .. }) {
            // It was told to drain or to end while it started.
            return;
        }
        place.life = Life::Ready;
        place.ready_since = Some(now);
        match generation.stage {
            Stage::Starting(purpose) if !generation.has_unready() => {
                self.generation_ready(g, purpose);
            }
            Stage::Serving => {
                let id = generation.id;
                self.log(Level::Info, format!("{worker} ({id}) serves"));
                // A reload may have come into force while it started.
                self.bring_to(g, w);
            }
            Stage::Starting(_) | Stage::Draining { .. } | Stage::Ending => {}
        }
    }

    pub(super) fn drained(&mut self, worker: WorkerId) {
        let Some((g, w)) = self.state.find(worker) else {
            return;
        };
        if !self.state.generations[g].workers[w].life.is_active() {
            return;
        }
        self.leaves(g, w);
        if matches!(self.state.generations[g].stage, Stage::Starting(_)) {
            self.fail_generation(g, format!("{worker} was told to drain by somebody else"));
        }
        self.check_applying();
    }

    pub(super) fn failed(&mut self, worker: WorkerId, permanent: bool, why: String) {
        let Some((g, w)) = self.state.find(worker) else {
            return;
        };
        let generation = &self.state.generations[g];
        if !generation.workers[w].life.is_active() {
            return;
        }
        let (id, stage) = (generation.id, generation.stage);
        self.leaves(g, w);
        if let Stage::Starting(_) = stage {
            return self.fail_generation(g, format!("{worker} can't start: {why}"));
        }
        self.log(Level::Error, format!("{worker} ({id}) can't go on: {why}"));
        if permanent {
            self.state.generations[g].workers[w].permanent = Some(why);
        }
        self.check_applying();
    }

    /// The worker said that it exits: it has a moment to do so.
    fn leaves(&mut self, g: usize, w: usize) {
        let kill_at = self.now + self.limits.grace;
        let place = &mut self.state.generations[g].workers[w];
        place.life = Life::Leaving { kill_at };
        place.applying = None;
        place.lost = false;
    }

    pub(super) fn exited(&mut self, worker: WorkerId, cause: &str) {
        let Some((g, w)) = self.state.find(worker) else {
            return;
        };
        let (id, stage) = (
            self.state.generations[g].id,
            self.state.generations[g].stage,
        );
        let life = self.state.generations[g].workers[w].life;
        // One that was drained, or killed in the end, has done what it was told.
        let was_told = matches!(stage, Stage::Draining { .. } | Stage::Ending)
            && matches!(life, Life::Leaving { .. } | Life::Killed { .. });
        if !was_told {
            self.state.last_exit = Some((self.now, format!("{worker} ({id}): {cause}")));
        }
        match stage {
            Stage::Starting(_) => {
                self.state.generations[g].workers.remove(w);
                self.fail_generation(g, format!("{worker} ended before all were ready: {cause}"));
            }
            Stage::Serving => {
                self.died(g, w, cause);
                self.check_applying();
            }
            Stage::Draining { .. } | Stage::Ending => {
                let place = self.state.generations[g].workers.remove(w);
                let level = match place.life {
                    Life::Leaving { .. } | Life::Killed { .. } => Level::Info,
                    // It had not said that it was done: clients may have lost their connection.
                    _ => Level::Warn,
                };
                self.log(level, format!("{worker} ({id}) has ended: {cause}"));
            }
        }
    }

    /// A worker of the serving generation is gone.
    fn died(&mut self, g: usize, w: usize, cause: &str) {
        let (now, healthy_after) = (self.now, self.limits.healthy_after);
        let generation = &mut self.state.generations[g];
        let place = &mut generation.workers[w];
        let was_ready_for = place.ready_since.take().map(|at| now.since(at));
        if was_ready_for.is_some_and(|it| it >= healthy_after) {
            place.deaths = 0;
        }
        let answered = place.deaths;
        place.deaths = place.deaths.saturating_add(1);
        place.applying = None;
        (place.lost, place.stalls) = (false, false);
        let (worker, id) = (place.id, generation.id);
        let what = format!("{worker} ({id}) has died: {cause}");
        if let Some(why) = &place.permanent {
            let text =
                format!("{what}; it isn't started again, since that would fail alike: {why}");
            place.life = Life::Down;
            return self.log(Level::Error, text);
        }
        let wait = self.backoff(answered);
        self.state.generations[g].workers[w].life = Life::Waiting {
            respawn_at: now + wait,
        };
        let when = match wait.is_zero() {
            true => "at once".to_owned(),
            false => format!("in {wait:?}"),
        };
        self.log(Level::Error, format!("{what}; started again {when}"));
    }

    fn respawn(&mut self, g: usize, w: usize) {
        if let Some(free_at) = self.budget_free_at() {
            self.state.generations[g].workers[w].life = Life::Waiting {
                respawn_at: free_at,
            };
            let text = format!(
                "{} respawns within {:?}: the next one waits for {:?}; see why workers die",
                self.state.respawns.len(),
                self.limits.window,
                free_at.since(self.now)
            );
            return self.log(Level::Error, text);
        }
        self.state.respawns.push_back(self.now);
        self.state.restarts += 1;
        let generation = &self.state.generations[g];
        let (id, config, image) = (generation.id, generation.config, generation.image);
        let until = self.now + generation.policy.start_timeout;
        let worker = self.spawn(id, config, image);
        let place = &mut self.state.generations[g].workers[w];
        place.id = worker;
        place.config = config;
        place.life = Life::Starting { until };
        place.since = self.now;
        place.restarts += 1;
    }

    pub(super) fn core_lost(&mut self, worker: WorkerId, core: usize, why: &str, stalls: bool) {
        let Some((g, w)) = self.state.find(worker) else {
            return;
        };
        let generation = &self.state.generations[g];
        let (id, stage) = (generation.id, generation.stage);
        let is_active = generation.workers[w].life.is_active();
        self.state.generations[g].workers[w].stalls |= stalls;
        let text = format!("core {core} of {worker} ({id}) is lost: {why}");
        match stage {
            Stage::Starting(_) => self.fail_generation(g, text),
            Stage::Serving if is_active => self.lost(g, w, text),
            _ => self.log(Level::Error, text),
        }
    }

    /// The generation of this worker has to be replaced.
    fn lost(&mut self, g: usize, w: usize, text: String) {
        self.log(Level::Error, text);
        self.state.generations[g].workers[w].lost = true;
    }

    pub(super) fn applied(&mut self, worker: WorkerId, config: ConfigId) {
        let Some((g, w)) = self.state.find(worker) else {
            return;
        };
        let place = &mut self.state.generations[g].workers[w];
        place.config = config;
        if place.applying.is_some() {
            place.applying = place.applying.filter(|it| it.config != config);
            return self.check_applying();
        }
        // Nobody waited for it any more: while the change goes on elsewhere it may stay.
        let change = self.state.change.as_ref();
        let goes_on = change.is_some_and(|it| it.step.config() == Some(config));
        if self.state.generations[g].stage == Stage::Serving && !goes_on {
            self.bring_to(g, w);
        }
    }

    pub(super) fn not_applied(&mut self, worker: WorkerId, config: ConfigId, why: &str) {
        let text = format!("{worker} can't take {config} in place: {why}");
        self.apply_failed(worker, config, text, false);
    }

    /// `silent`: it gave no answer at all, so nothing is known of it.
    fn apply_failed(&mut self, worker: WorkerId, config: ConfigId, text: String, silent: bool) {
        let Some((g, w)) = self.state.find(worker) else {
            return;
        };
        let place = &mut self.state.generations[g].workers[w];
        if place.applying.is_none_or(|it| it.config != config) {
            return;
        }
        place.applying = None;
        let is_change =
            self.state.change.as_ref().is_some_and(
                |it| matches!(it.step, Step::Applying(force) if force.config == config),
            );
        if silent || !is_change {
            // It neither runs with what it has to, nor can it be brought to.
            self.state.generations[g].workers[w].stalls |= silent;
            self.lost(g, w, text.clone());
        }
        if is_change {
            self.fall_back_to_new_generation(text);
        }
    }

    /// Has a READY worker of the serving generation take the generation's configuration, unless it
    /// runs with it, or will.
    pub(super) fn bring_to(&mut self, g: usize, w: usize) {
        let generation = &self.state.generations[g];
        let place = &generation.workers[w];
        let heads_for = place.applying.map_or(place.config, |it| it.config);
        if place.life.is_ready() && heads_for != generation.config {
            self.apply(g, w, generation.config);
        }
    }

    pub(super) fn apply(&mut self, g: usize, w: usize, config: ConfigId) {
        let generation = &mut self.state.generations[g];
        let until = self.now + generation.policy.start_timeout;
        let place = &mut generation.workers[w];
        place.applying = Some(Applying { config, until });
        self.actions.push(Action::Apply {
            worker: place.id,
            config,
        });
    }

    /// Does what is due.
    ///
    /// Each step ends its timer or sets it later than now, so this comes to an end.
    pub(super) fn timers(&mut self) {
        while let Some((g, w)) = self.due_worker() {
            let place = &self.state.generations[g].workers[w];
            let (worker, applying) = (place.id, place.applying);
            match applying {
                Some(Applying { config, until }) if until <= self.now => {
                    let text = format!("{worker} doesn't answer to {config}: it stalls");
                    self.apply_failed(worker, config, text, true);
                }
                _ => self.worker_due(g, w),
            }
        }
        let change = self.state.change.as_ref();
        if change.is_some_and(|it| it.step.due().is_some_and(|at| at <= self.now)) {
            self.change_timed_out();
        }
    }

    fn due_worker(&self) -> Option<(usize, usize)> {
        let is_due = |at: Option<Moment>| at.is_some_and(|at| at <= self.now);
        let generations = self.state.generations.iter().enumerate();
        generations
            .flat_map(|(g, it)| it.workers.iter().enumerate().map(move |(w, it)| (g, w, it)))
            .find(|(_, _, it)| {
                is_due(it.life.due(self.limits)) || is_due(it.applying.map(|it| it.until))
            })
            .map(|(g, w, _)| (g, w))
    }

    fn worker_due(&mut self, g: usize, w: usize) {
        let generation = &self.state.generations[g];
        let (id, stage, policy) = (generation.id, generation.stage, generation.policy);
        let place = &generation.workers[w];
        let (worker, life) = (place.id, place.life);
        match life {
            Life::Starting { .. } => {
                let why = format!("{worker} wasn't ready within {:?}", policy.start_timeout);
                self.log(Level::Error, format!("{why} ({id}): it is killed"));
                self.kill(g, w);
                if matches!(stage, Stage::Starting(_)) {
                    self.fail_generation(g, why);
                }
            }
            Life::Draining { .. } => {
                let text = format!("{worker} ({id}) hasn't ended at its deadline: it is killed");
                self.log(Level::Warn, text);
                self.kill(g, w);
            }
            Life::Leaving { .. } => {
                let text = format!("{worker} ({id}) hasn't ended as it should: it is killed");
                self.log(Level::Warn, text);
                self.kill(g, w);
            }
            Life::Killed { .. } => {
                self.exited(
                    worker,
                    "not even KILL ends it, the kernel holds it; left alone",
                );
            }
            Life::Waiting { .. } => self.respawn(g, w),
            Life::Ready | Life::Down => {}
        }
    }

    fn kill(&mut self, g: usize, w: usize) {
        let forget_at = self.now + self.limits.stop_grace;
        let place = &mut self.state.generations[g].workers[w];
        place.life = Life::Killed { forget_at };
        place.applying = None;
        place.lost = false;
        self.actions.push(Action::Kill { worker: place.id });
    }

    /// Ends the server if the serving generation has no worker, none will ever start, and nothing
    /// under way could bring one.
    pub(super) fn give_up_if_nothing_can_serve(&mut self) -> bool {
        let (Some(g), None) = (self.state.serving(), &self.state.change) else {
            return false;
        };
        let workers = &self.state.generations[g].workers;
        let are_down = workers.iter().all(|w| w.life == Life::Down);
        let may_come = self.state.starting().is_some() || !self.state.waiting.is_empty();
        if !are_down || may_come {
            return false;
        }
        let reasons: Vec<_> = workers.iter().filter_map(|w| w.permanent.clone()).collect();
        let text = format!("no worker can start any more: {}", super::joined(&reasons));
        self.fail_server(text);
        true
    }

    /// Purpose of the generation that starts, if one does.
    pub(super) fn starting_purpose(&self) -> Option<Purpose> {
        let generation = &self.state.generations[self.state.starting()?];
        match generation.stage {
            Stage::Starting(purpose) => Some(purpose),
            _ => None,
        }
    }
}
