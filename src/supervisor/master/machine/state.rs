//! What the machine remembers: plain data without a clock, so that it goes through an upgrade as is.

use std::collections::VecDeque;
use std::ops::Add;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::types::{
    ChangeId, ConfigId, GenerationId, Image, Kind, Limits, Outcome, Policy, RequestId, WorkerId,
};

/// A point in time: how long after the first start of the first master.
///
/// An [`Instant`] means nothing in another process; the [`Clock`] translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Moment(Duration);

impl Moment {
    pub(super) const ZERO: Self = Self(Duration::ZERO);

    /// How long it is from `earlier`; zero if that is later.
    pub(super) fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// Translates between this process's clock and [`Moment`]s.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    pub(super) base: Instant,
    pub(super) at: Moment,
}

/// Farthest point in time that is told to the loop: no timer waits longer than a year.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

impl Clock {
    pub(super) fn moment(&self, now: Instant) -> Moment {
        self.at + now.saturating_duration_since(self.base)
    }

    pub(super) fn instant(&self, moment: Moment) -> Instant {
        if moment >= self.at {
            let after = moment.since(self.at);
            self.base
                .checked_add(after)
                .unwrap_or_else(|| self.base + FAR)
        } else {
            let before = self.at.since(moment);
            self.base.checked_sub(before).unwrap_or(self.base)
        }
    }
}

/// Everything but limits and clock.
///
/// Invariants: at most one generation starts, at most one serves, and neither while the phase is
/// `Ending`; `respawns` has at most `Limits::budget` entries, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) phase: Phase,
    /// How many were made: the last id of each.
    pub(super) generations_made: u64,
    pub(super) workers_made: u64,
    pub(super) changes_made: u64,
    pub(super) force: Option<Force>,
    /// Oldest first.
    pub(super) generations: Vec<Generation>,
    pub(super) change: Option<Change>,
    pub(super) waiting: VecDeque<Waiting>,
    /// When workers and generations were started to replace others.
    pub(super) respawns: VecDeque<Moment>,
    /// When the next replacement of a generation that lost a core may start, and how many failed.
    pub(super) repair_at: Moment,
    pub(super) repair_failures: u32,
    /// Who waits for the end.
    pub(super) stops: Vec<RequestId>,
    pub(super) restarts: u64,
    pub(super) last_exit: Option<(Moment, String)>,
    pub(super) last_change: Option<(Moment, Kind, Outcome)>,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Idle,
            generations_made: 0,
            workers_made: 0,
            changes_made: 0,
            force: None,
            generations: Vec::new(),
            change: None,
            waiting: VecDeque::new(),
            respawns: VecDeque::new(),
            repair_at: Moment::ZERO,
            repair_failures: 0,
            stops: Vec::new(),
            restarts: 0,
            last_exit: None,
            last_change: None,
        }
    }

    /// Index of generation and worker.
    pub(super) fn find(&self, worker: WorkerId) -> Option<(usize, usize)> {
        self.generations.iter().enumerate().find_map(|(g, it)| {
            let has_process = |w: &Worker| w.id == worker && w.life.is_process();
            it.workers.iter().position(has_process).map(|w| (g, w))
        })
    }

    pub(super) fn serving(&self) -> Option<usize> {
        let serves = |it: &Generation| it.stage == Stage::Serving;
        self.generations.iter().position(serves)
    }

    pub(super) fn starting(&self) -> Option<usize> {
        let starts = |it: &Generation| matches!(it.stage, Stage::Starting(_));
        self.generations.iter().position(starts)
    }

    pub(super) fn draining(&self) -> usize {
        let drains = |it: &&Generation| matches!(it.stage, Stage::Draining { .. });
        self.generations.iter().filter(drains).count()
    }

    /// Nothing is under way that a change or a repair would have to wait for.
    pub(super) fn is_idle(&self) -> bool {
        let is_busy = |it: &Generation| matches!(it.stage, Stage::Starting(_) | Stage::Ending);
        self.change.is_none() && !self.generations.iter().any(is_busy)
    }

    /// The serving generation lost a core, or a worker that doesn't answer, and has to be replaced.
    pub(super) fn needs_repair(&self) -> bool {
        self.serving()
            .is_some_and(|g| self.generations[g].workers.iter().any(|w| w.lost))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Before `Begin`.
    Idle,
    Running,
    /// All workers were told to drain, and none is started until a reload.
    Parked,
    /// Exits when the last worker is gone.
    Ending {
        code: u8,
        why: String,
    },
    Ended,
}

/// The configuration in force.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Force {
    pub(super) config: ConfigId,
    pub(super) policy: Policy,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Generation {
    pub(super) id: GenerationId,
    /// What a worker of it is started with.
    pub(super) config: ConfigId,
    pub(super) policy: Policy,
    pub(super) image: Image,
    pub(super) stage: Stage,
    /// Of the stage.
    pub(super) since: Moment,
    pub(super) workers: Vec<Worker>,
}

impl Generation {
    /// Not every worker has said READY yet.
    pub(super) fn has_unready(&self) -> bool {
        self.workers.iter().any(|w| !w.life.is_ready())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Stage {
    Starting(Purpose),
    /// The one that accepts, and whose workers are respawned.
    Serving,
    Draining {
        until: Moment,
    },
    /// Its workers were told to end at once.
    Ending,
}

/// What a generation is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    First,
    Change,
    /// In place of one that lost a core.
    Repair,
}

/// One place of a generation, through all the processes that hold it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Worker {
    /// Of the process that holds it, or held it last.
    pub(super) id: WorkerId,
    pub(super) life: Life,
    /// Of the process.
    pub(super) since: Moment,
    pub(super) ready_since: Option<Moment>,
    /// What the process runs with, as far as it said.
    pub(super) config: ConfigId,
    pub(super) applying: Option<Applying>,
    /// It lost a core or doesn't answer: the generation has to be replaced.
    pub(super) lost: bool,
    /// A core of it, or all of it, does nothing and lets nothing go.
    pub(super) stalls: bool,
    /// Why no process would ever start here.
    pub(super) permanent: Option<String>,
    /// Deaths in a row.
    pub(super) deaths: u32,
    pub(super) restarts: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Applying {
    pub(super) config: ConfigId,
    pub(super) until: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Life {
    Starting {
        until: Moment,
    },
    Ready,
    Draining {
        until: Moment,
    },
    /// Said that it exits, or was told to.
    Leaving {
        kill_at: Moment,
    },
    Killed {
        forget_at: Moment,
    },
    /// No process; the next one starts then.
    Waiting {
        respawn_at: Moment,
    },
    /// No process, and none to come before the next reload.
    Down,
}

impl Life {
    pub(super) fn is_process(self) -> bool {
        !matches!(self, Self::Waiting { .. } | Self::Down)
    }

    pub(super) fn is_ready(self) -> bool {
        self == Self::Ready
    }

    /// A live process that wasn't told to end, and didn't say that it does.
    pub(super) fn is_active(self) -> bool {
        matches!(
            self,
            Self::Starting { .. } | Self::Ready | Self::Draining { .. }
        )
    }

    /// When something has to be done, whatever happens.
    pub(super) fn due(self, limits: &Limits) -> Option<Moment> {
        match self {
            Self::Starting { until: at }
            | Self::Leaving { kill_at: at }
            | Self::Killed { forget_at: at }
            | Self::Waiting { respawn_at: at } => Some(at),
            Self::Draining { until } => Some(until + limits.grace),
            Self::Ready | Self::Down => None,
        }
    }
}

/// The change under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Change {
    pub(super) id: ChangeId,
    pub(super) kind: Kind,
    pub(super) request: Option<RequestId>,
    pub(super) since: Moment,
    pub(super) step: Step,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Step {
    Preparing {
        until: Moment,
    },
    /// The serving generation takes it in place.
    Applying(Force),
    /// Its generation starts; why it needs one.
    Starting {
        config: ConfigId,
        generation: GenerationId,
        why: String,
    },
    /// The master is about to be replaced.
    Executing {
        config: ConfigId,
        generation: GenerationId,
        until: Moment,
    },
}

impl Step {
    pub(super) fn config(&self) -> Option<ConfigId> {
        match self {
            Self::Preparing { .. } => None,
            Self::Applying(Force { config, .. })
            | Self::Starting { config, .. }
            | Self::Executing { config, .. } => Some(*config),
        }
    }

    pub(super) fn generation(&self) -> Option<GenerationId> {
        match self {
            Self::Preparing { .. } | Self::Applying(_) => None,
            Self::Starting { generation, .. } | Self::Executing { generation, .. } => {
                Some(*generation)
            }
        }
    }

    pub(super) fn due(&self) -> Option<Moment> {
        match self {
            Self::Preparing { until } | Self::Executing { until, .. } => Some(*until),
            Self::Applying(_) | Self::Starting { .. } => None,
        }
    }
}

/// A change that waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Waiting {
    pub(super) kind: Kind,
    pub(super) request: Option<RequestId>,
}
