//! Changes: reload and upgrade, one at a time, and the way back from each step.

use std::time::Duration;

use super::Turn;
use super::ending::STOPPING;
use super::state::{Change, Force, Life, Phase, Purpose, Stage, Step, Waiting};
use super::types::{
    Action, ChangeId, ConfigId, GenerationId, Image, Kind, Level, Outcome, Placement, RequestId,
};

/// Exit code of a change that the configuration is to blame for (`EX_CONFIG` of sysexits.h).
const BAD_CONFIG: u8 = 78;

impl Turn<'_> {
    pub(super) fn ask(&mut self, request: Option<RequestId>, kind: Kind) {
        if matches!(self.state.phase, Phase::Ending { .. } | Phase::Ended) {
            return self.refuse(request, kind, STOPPING);
        }
        let waiting = &mut self.state.waiting;
        if request.is_none() && waiting.iter().any(|it| it.kind == kind) {
            // The one that waits will see what this one would: it isn't prepared yet.
            return;
        }
        if waiting.len() >= self.limits.changes_waiting_max {
            let text =
                "too many changes wait: ask again when some have ended, see `beltway status`";
            return self.refuse(request, kind, text);
        }
        waiting.push_back(Waiting { kind, request });
    }

    /// Begins the next change that waits. True if there was one.
    pub(super) fn next_change(&mut self) -> bool {
        let Some(Waiting { kind, request }) = self.state.waiting.pop_front() else {
            return false;
        };
        self.state.changes_made += 1;
        let id = ChangeId(self.state.changes_made);
        let until = self.now + self.start_timeout();
        self.state.change = Some(Change {
            id,
            kind,
            request,
            since: self.now,
            step: Step::Preparing { until },
        });
        self.actions.push(Action::Prepare { change: id, kind });
        true
    }

    fn start_timeout(&self) -> Duration {
        let force = self.state.force.as_ref();
        force.map_or(Duration::ZERO, |it| it.policy.start_timeout)
    }

    pub(super) fn prepared(&mut self, change: ChangeId, force: Force, placement: Placement) {
        let Some(kind) = self.preparing(change) else {
            // It came too late: nobody will use what it bound.
            return self.abandon(force.config);
        };
        match (kind, placement) {
            (Kind::Upgrade, _) => self.start_change(force, "a new binary".to_owned()),
            (Kind::Reload | Kind::Refresh, Placement::NewGeneration(reasons)) => {
                self.start_change(force, super::joined(&reasons));
            }
            (Kind::Reload | Kind::Refresh, Placement::InPlace) => self.apply_change(force),
        }
    }

    pub(super) fn not_prepared(&mut self, change: ChangeId, text: String, code: u8) {
        if self.preparing(change).is_some() {
            self.end_change(Outcome::Failed { text, code });
        }
    }

    /// The kind of this change, if it is the one being prepared.
    fn preparing(&self, change: ChangeId) -> Option<Kind> {
        let under_way = self.state.change.as_ref()?;
        let is_it = under_way.id == change && matches!(under_way.step, Step::Preparing { .. });
        is_it.then_some(under_way.kind)
    }

    /// Has every READY worker of the serving generation take it; if there is none, or their number
    /// changes, a new generation does.
    fn apply_change(&mut self, force: Force) {
        let Some(g) = self.state.serving() else {
            return self.start_change(force, "no worker serves".to_owned());
        };
        let workers = &self.state.generations[g].workers;
        if workers.len() != force.policy.processes.max(1) {
            return self.start_change(force, "the number of workers changes".to_owned());
        }
        let is_ready = |w: &usize| workers[*w].life.is_ready();
        let ready: Vec<usize> = (0..workers.len()).filter(is_ready).collect();
        if ready.is_empty() {
            return self.start_change(force, "no worker serves".to_owned());
        }
        self.set_step(Step::Applying(force));
        for w in ready {
            self.apply(g, w, force.config);
        }
    }

    fn set_step(&mut self, step: Step) {
        if let Some(change) = &mut self.state.change {
            change.step = step;
        }
    }

    /// Commits a change in place when all have answered.
    ///
    /// A worker that died meanwhile has no say: its replacement starts with what is in force then, and
    /// takes what comes into force later when it is READY. But if all of them died, that may have been
    /// the change's doing, and it has to prove itself in a generation of its own.
    pub(super) fn check_applying(&mut self) {
        let Some(Step::Applying(force)) = self.state.change.as_ref().map(|it| it.step.clone())
        else {
            return;
        };
        let Some(g) = self.state.serving() else {
            return;
        };
        let workers = &self.state.generations[g].workers;
        let is_pending = |it: &super::Worker| {
            it.applying
                .is_some_and(|applying| applying.config == force.config)
        };
        if workers.iter().any(is_pending) {
            return;
        }
        let has_it = |it: &super::Worker| it.life.is_ready() && it.config == force.config;
        if !workers.iter().any(has_it) {
            let why = "the workers died while they took it".to_owned();
            return self.fall_back_to_new_generation(why);
        }
        self.commit_in_place(g, force);
    }

    fn commit_in_place(&mut self, g: usize, force: Force) {
        let now = self.now;
        let generation = &mut self.state.generations[g];
        generation.config = force.config;
        generation.policy = force.policy;
        for place in &mut generation.workers {
            place.permanent = None;
            if place.life == Life::Down {
                // What made it impossible may have gone.
                place.life = Life::Waiting { respawn_at: now };
            }
        }
        self.commit(force);
        self.bring_all_to(g);
        let text = "reloaded in place".to_owned();
        self.end_change(Outcome::Done { text });
    }

    /// Some worker can't take the change in place.
    pub(super) fn fall_back_to_new_generation(&mut self, why: String) {
        if let Some(Step::Applying(force)) = self.state.change.as_ref().map(|it| it.step.clone()) {
            self.start_change(force, why);
        }
    }

    /// Starts the change's own generation.
    fn start_change(&mut self, force: Force, why: String) {
        let Some(kind) = self.state.change.as_ref().map(|it| it.kind) else {
            return self.abandon(force.config);
        };
        if self.state.draining() >= self.limits.draining_max {
            let text = self.why_full(&why);
            // For the way back: the prepared configuration goes.
            self.set_step(Step::Applying(force));
            return self.change_failed(text, 1);
        }
        let image = match kind {
            Kind::Reload | Kind::Refresh => Image::Own,
            Kind::Upgrade => Image::New,
        };
        let generation = self.start_generation(force, image, Purpose::Change);
        self.log(Level::Info, format!("{generation} starts: {why}"));
        self.set_step(Step::Starting {
            config: force.config,
            generation,
            why,
        });
    }

    fn why_full(&self, why: &str) -> String {
        let deadlines = self
            .state
            .generations
            .iter()
            .filter_map(|it| match it.stage {
                Stage::Draining { until } => Some(until),
                _ => None,
            });
        // Seconds rounded up: whoever waits so long isn't refused again.
        let wait = deadlines.min().map_or(0, |until| {
            (until + self.limits.grace).since(self.now).as_secs() + 1
        });
        format!(
            "this needs a new generation of workers ({why}), but {} still drain: ask again in {wait} s, \
             when the first of them has ended at the latest; `beltway status` says what keeps them",
            self.state.draining()
        )
    }

    /// All workers of the change's generation are READY.
    pub(super) fn change_ready(&mut self, generation: GenerationId, force: Force) {
        let Some(change) = &self.state.change else {
            return;
        };
        let why = match &change.step {
            Step::Starting { why, .. } => why.clone(),
            _ => String::new(),
        };
        match change.kind {
            Kind::Reload | Kind::Refresh => {
                self.commit(force);
                self.serve(generation);
                let text =
                    format!("reloaded by {generation}, since it could not be in place: {why}");
                self.end_change(Outcome::Done { text });
            }
            Kind::Upgrade => {
                let until = self.now + self.start_timeout();
                self.set_step(Step::Executing {
                    config: force.config,
                    generation,
                    until,
                });
                self.execute = true;
            }
        }
    }

    /// What comes after the exec would be lost by it, so that is the last action of its turn.
    pub(super) fn execute_last(&mut self) {
        let step = self.state.change.as_ref().map(|it| &it.step);
        if self.execute && matches!(step, Some(Step::Executing { .. })) {
            self.actions.push(Action::Execute);
        }
    }

    /// This process is the new binary, if an upgrade was on its way.
    pub(super) fn resumed(&mut self) {
        let step = self.state.change.as_ref().map(|it| it.step.clone());
        let Some(Step::Executing { generation, .. }) = step else {
            return;
        };
        for it in &mut self.state.generations {
            it.image = Image::Own;
        }
        let new = self.state.generations.iter().find(|it| it.id == generation);
        let Some((config, policy)) = new.map(|it| (it.config, it.policy)) else {
            return;
        };
        self.commit(Force { config, policy });
        self.serve(generation);
        let text = format!("upgraded: {generation} serves, the master has the new binary, too");
        self.end_change(Outcome::Done { text });
    }

    pub(super) fn exec_failed(&mut self, why: &str) {
        let change = self.state.change.as_ref();
        if change.is_some_and(|it| matches!(it.step, Step::Executing { .. })) {
            self.change_failed(format!("the new binary can't be executed: {why}"), 1);
        }
    }

    /// The change's generation failed; it is on its way out already.
    pub(super) fn change_not_ready(&mut self, generation: GenerationId, why: &str) {
        let Some(change) = &self.state.change else {
            return;
        };
        let code = match change.kind {
            Kind::Reload | Kind::Refresh => BAD_CONFIG,
            Kind::Upgrade => 1,
        };
        let text = format!("{generation} could not start, the old one goes on: {why}");
        self.change_failed(text, code);
    }

    pub(super) fn change_timed_out(&mut self) {
        let Some(change) = &self.state.change else {
            return;
        };
        let waited = self.now.since(change.since);
        let text = match change.step {
            Step::Preparing { .. } => {
                format!("the check took longer than {} s", waited.as_secs())
            }
            _ => format!("the new binary did not take over within {waited:?}"),
        };
        self.change_failed(text, 1);
    }

    /// Ends the change under way, if there is one, and takes back what it did.
    pub(super) fn change_failed(&mut self, text: String, code: u8) {
        let Some(change) = &self.state.change else {
            return;
        };
        let (id, step) = (change.id, change.step.clone());
        if let Step::Preparing { .. } = step {
            self.actions.push(Action::CancelPrepare { change: id });
        }
        let of_change = |it: &super::Generation| {
            Some(it.id) == step.generation() && matches!(it.stage, Stage::Starting(_))
        };
        if let Some(g) = self.state.generations.iter().position(of_change) {
            self.roll_back(g);
        }
        if let Some(config) = step.config() {
            if let Some(g) = self.state.serving() {
                self.bring_all_to(g);
            }
            self.abandon(config);
        }
        self.end_change(Outcome::Failed { text, code });
    }

    fn bring_all_to(&mut self, g: usize) {
        for w in 0..self.state.generations[g].workers.len() {
            self.bring_to(g, w);
        }
    }

    fn abandon(&mut self, config: ConfigId) {
        self.actions.push(Action::Abandon { config });
    }

    fn end_change(&mut self, outcome: Outcome) {
        let Some(change) = self.state.change.take() else {
            return;
        };
        self.state.last_change = Some((self.now, change.kind, outcome.clone()));
        let word = change.kind.word();
        match &outcome {
            Outcome::Done { text } => self.log(Level::Info, format!("{word}: {text}")),
            Outcome::Failed { text, .. } => {
                self.log(Level::Error, format!("{word} failed: {text}"));
            }
        }
        if let Some(request) = change.request {
            self.actions.push(Action::Answer { request, outcome });
        }
    }

    fn refuse(&mut self, request: Option<RequestId>, kind: Kind, text: &str) {
        let Some(request) = request else {
            let word = kind.word();
            return self.log(Level::Warn, format!("{word} by signal refused: {text}"));
        };
        let outcome = Outcome::Failed {
            text: text.to_owned(),
            code: 1,
        };
        self.actions.push(Action::Answer { request, outcome });
    }

    pub(super) fn refuse_waiting(&mut self, text: &str) {
        for Waiting { kind, request } in std::mem::take(&mut self.state.waiting) {
            self.refuse(request, kind, text);
        }
    }
}
