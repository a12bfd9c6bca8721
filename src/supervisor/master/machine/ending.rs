//! Ends: a stop that was asked for, a server that can't go on, workers that drain while the master
//! stays.

use super::Turn;
use super::state::{Life, Phase, Purpose, Stage};
use super::types::{Action, Level, Outcome, RequestId};

/// Why a change is refused from the first word of a stop on.
pub(super) const STOPPING: &str = "the server is stopping";

impl Turn<'_> {
    pub(super) fn stop(&mut self, at_once: bool, request: Option<RequestId>) {
        if self.state.phase == Phase::Ended {
            return self.answer_done(request, "the server has ended");
        }
        if self.state.stops.len() < self.limits.changes_waiting_max {
            self.state.stops.extend(request);
        } else {
            self.answer_done(request, STOPPING);
        }
        let is_second = matches!(self.state.phase, Phase::Ending { .. });
        if is_second || at_once {
            return self.end(0, "stopped at once".to_owned(), true);
        }
        self.log(Level::Info, "stops when its clients have ended".to_owned());
        self.end(0, "stopped".to_owned(), false);
    }

    /// The server can't go on: ends it with exit code 1.
    pub(super) fn fail_server(&mut self, why: String) {
        self.log(Level::Error, why.clone());
        self.end(1, why, true);
    }

    /// Nothing is started or changed from now on. The first reason stays.
    fn end(&mut self, code: u8, why: String, at_once: bool) {
        let is_first = !matches!(self.state.phase, Phase::Ending { .. });
        if is_first {
            self.state.phase = Phase::Ending { code, why };
        }
        // Before the change is ended: a generation of it has nothing to roll back then.
        match at_once {
            true => self.stop_workers(),
            false => self.drain_all(),
        }
        if is_first {
            self.change_failed(STOPPING.to_owned(), 1);
            self.refuse_waiting(STOPPING);
        }
    }

    /// WINCH.
    pub(super) fn park(&mut self) {
        let is_first = self.starting_purpose() == Some(Purpose::First);
        if self.state.phase != Phase::Running || is_first {
            let text = "there is no serving worker to drain: ignored".to_owned();
            return self.log(Level::Warn, text);
        }
        self.state.phase = Phase::Parked;
        self.drain_all();
        let why = "all workers were told to drain: ask again to have new ones";
        self.change_failed(why.to_owned(), 1);
        self.refuse_waiting(why);
        let text = "all workers drain; a reload brings new ones".to_owned();
        self.log(Level::Info, text);
    }

    /// Drains all, for nobody takes over.
    fn drain_all(&mut self) {
        for g in 0..self.state.generations.len() {
            let generation = &self.state.generations[g];
            if generation.stage == Stage::Ending {
                continue;
            }
            let policy = self.state.force.map_or(generation.policy, |it| it.policy);
            self.drain_generation(g, false, self.now + policy.drain_timeout);
        }
    }

    fn stop_workers(&mut self) {
        let kill_at = self.now + self.limits.stop_grace;
        for generation in &mut self.state.generations {
            generation.stage = Stage::Ending;
            generation.workers.retain(|w| w.life.is_process());
            for worker in &mut generation.workers {
                match &mut worker.life {
                    Life::Leaving { kill_at: before } => *before = kill_at.min(*before),
                    Life::Killed { .. } => {}
                    life => {
                        *life = Life::Leaving { kill_at };
                        self.actions.push(Action::StopWorker { worker: worker.id });
                    }
                }
            }
        }
    }

    pub(super) fn end_if_all_are_gone(&mut self) {
        let Phase::Ending { code, why } = &self.state.phase else {
            return;
        };
        if !self.state.generations.is_empty() {
            return;
        }
        let (code, why) = (*code, why.clone());
        self.state.phase = Phase::Ended;
        for request in std::mem::take(&mut self.state.stops) {
            self.answer_done(Some(request), "the server has ended");
        }
        self.actions.push(Action::Exit { code, why });
    }

    fn answer_done(&mut self, request: Option<RequestId>, text: &str) {
        let outcome = Outcome::Done { text: text.into() };
        if let Some(request) = request {
            self.actions.push(Action::Answer { request, outcome });
        }
    }
}
