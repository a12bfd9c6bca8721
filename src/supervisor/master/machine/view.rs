//! What `status` shows of the machine.

use std::time::Instant;

use super::state::{Change, Clock, Generation, Life, Phase, Stage, State, Step, Worker};
use super::types::{ConfigId, GenerationId, Image, Kind, Outcome, WorkerId};

/// The machine at one moment. Times before this process started may be cut to its start.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// `idle`, `running`, `parked` (all workers were told to drain), `ending`, `ended`.
    pub phase: &'static str,
    /// In force; none before the first start has succeeded.
    pub config: Option<ConfigId>,
    /// Oldest first.
    pub generations: Vec<GenerationView>,
    /// Under way.
    pub change: Option<ChangeView>,
    /// Changes that wait for their turn.
    pub waiting: usize,
    /// Respawned workers since the first start.
    pub restarts: u64,
    /// When a worker ended last, which one, and why.
    pub last_exit: Option<(Instant, String)>,
    /// When a change ended last, and how.
    pub last_change: Option<(Instant, Kind, Outcome)>,
}

/// One generation.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationView {
    /// Its name.
    pub id: GenerationId,
    /// `starting`, `serving`, `draining`, `ending`.
    pub state: &'static str,
    /// Of the state.
    pub since: Instant,
    /// Of the drain.
    pub deadline: Option<Instant>,
    /// What its workers run with, or are brought to.
    pub config: ConfigId,
    /// What they run.
    pub image: Image,
    /// One entry a place.
    pub workers: Vec<WorkerView>,
}

/// One place of a generation.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerView {
    /// Of the process that holds the place, or held it last.
    pub id: WorkerId,
    /// `starting`, `ready`, `draining`, `leaving`, `killed`, `waiting` (for its respawn), `down`
    /// (never respawned).
    pub state: &'static str,
    /// Start of the process.
    pub since: Instant,
    /// When the next process starts here.
    pub respawn_at: Option<Instant>,
    /// It lost a core or doesn't answer.
    pub lost: bool,
    /// Respawns of this place.
    pub restarts: u64,
    /// Why none will start here.
    pub down_because: Option<String>,
}

/// The change under way.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangeView {
    /// What.
    pub kind: Kind,
    /// `preparing`, `applying`, `starting`, `executing`.
    pub step: &'static str,
    /// Start of the change.
    pub since: Instant,
}

pub(super) fn view(state: &State, clock: &Clock) -> View {
    View {
        phase: match state.phase {
            Phase::Idle => "idle",
            Phase::Running => "running",
            Phase::Parked => "parked",
            Phase::Ending { .. } => "ending",
            Phase::Ended => "ended",
        },
        config: state.force.map(|it| it.config),
        generations: state
            .generations
            .iter()
            .map(|it| generation(it, clock))
            .collect(),
        change: state.change.as_ref().map(|it| change(it, clock)),
        waiting: state.waiting.len(),
        restarts: state.restarts,
        last_exit: state
            .last_exit
            .as_ref()
            .map(|(at, text)| (clock.instant(*at), text.clone())),
        last_change: state
            .last_change
            .as_ref()
            .map(|(at, kind, outcome)| (clock.instant(*at), *kind, outcome.clone())),
    }
}

fn generation(generation: &Generation, clock: &Clock) -> GenerationView {
    let (state, deadline) = match generation.stage {
        Stage::Starting(_) => ("starting", None),
        Stage::Serving => ("serving", None),
        Stage::Draining { until } => ("draining", Some(clock.instant(until))),
        Stage::Ending => ("ending", None),
    };
    GenerationView {
        id: generation.id,
        state,
        since: clock.instant(generation.since),
        deadline,
        config: generation.config,
        image: generation.image,
        workers: generation
            .workers
            .iter()
            .map(|it| worker(it, clock))
            .collect(),
    }
}

fn worker(worker: &Worker, clock: &Clock) -> WorkerView {
    WorkerView {
        id: worker.id,
        state: match worker.life {
            Life::Starting { .. } => "starting",
            Life::Ready => "ready",
            Life::Draining { .. } => "draining",
            Life::Leaving { .. } => "leaving",
            Life::Killed { .. } => "killed",
            Life::Waiting { .. } => "waiting",
            Life::Down => "down",
        },
        since: clock.instant(worker.since),
        respawn_at: match worker.life {
            Life::Waiting { respawn_at } => Some(clock.instant(respawn_at)),
            _ => None,
        },
        lost: worker.lost,
        restarts: worker.restarts,
        down_because: worker.permanent.clone(),
    }
}

fn change(change: &Change, clock: &Clock) -> ChangeView {
    ChangeView {
        kind: change.kind,
        step: match change.step {
            Step::Preparing { .. } => "preparing",
            Step::Applying(_) => "applying",
            Step::Starting { .. } => "starting",
            Step::Executing { .. } => "executing",
        },
        since: clock.instant(change.since),
    }
}
