//! The words that the machine and the loop around it speak: ids, policies, events, actions.
//!
//! They are plain data, so that a test writes a history down and reads one back.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident: $word:literal,)*) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($word, " {}"), self.0)
            }
        }
    )*};
}

ids! {
    /// One life of the set of workers. Given by the machine, from 1, never used again.
    GenerationId: "generation",
    /// One process. A respawned worker has a new one. Given by the machine.
    WorkerId: "worker",
    /// One prepared configuration. Given by the loop, never used again.
    ConfigId: "configuration",
    /// Somebody who waits for an answer at the control socket. Given by the loop.
    RequestId: "request",
    /// One reload or upgrade. Given by the machine.
    ChangeId: "change",
}

/// Which binary a worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Image {
    /// The master's own, by `/proc/self/exe`: the path may already hold another version.
    Own,
    /// That of the upgrade under way.
    New,
}

/// What can be asked of the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Take the newest configuration.
    Reload,
    /// Replace the binary, and take the newest configuration with it.
    Upgrade,
    /// Take the configuration in force with what its files hold by now, as the master has noticed.
    Refresh,
}

impl Kind {
    /// The word of the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Upgrade => "upgrade",
            Self::Refresh => "refresh",
        }
    }
}

/// What a configuration says of its workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Workers of a generation; 0 counts as 1.
    pub processes: usize,
    /// Longest wait for READY, for the answer to an `Apply`, and for a preparation.
    pub start_timeout: Duration,
    /// Longest wait for connections to end.
    pub drain_timeout: Duration,
}

/// Bounds that no configuration changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Wait before the second respawn in a row (the first is at once); doubles with each one.
    pub backoff_first: Duration,
    /// Longest such wait.
    pub backoff_max: Duration,
    /// A worker that was READY for this long has ended its row of deaths.
    pub healthy_after: Duration,
    /// Respawns and replacement generations per `window`; at it, the next one waits until the oldest
    /// leaves the window. At least 1.
    pub budget: usize,
    /// See `budget`.
    pub window: Duration,
    /// Draining generations; at it, a change that needs a further one is refused. At least 1.
    pub draining_max: usize,
    /// Changes that wait for the one under way, and requests that wait for the end of a stop; at it,
    /// the next is refused.
    pub changes_waiting_max: usize,
    /// From a drain's deadline, or from a worker's word that it leaves, to KILL.
    pub grace: Duration,
    /// From `StopWorker` to KILL; and from KILL until the process is given up, which only one that
    /// hangs in the kernel comes to.
    pub stop_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            healthy_after: Duration::from_secs(30),
            budget: 20,
            window: Duration::from_secs(60),
            draining_max: 4,
            changes_waiting_max: 16,
            grace: Duration::from_secs(2),
            stop_grace: Duration::from_secs(2),
        }
    }
}

/// Where a prepared configuration can come into force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Inside of the running workers.
    InPlace,
    /// In new workers only; why, one cause an entry.
    NewGeneration(Vec<String>),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first start, once.
    Begin {
        /// Loaded and bound.
        config: ConfigId,
        /// What it says of its workers.
        policy: Policy,
    },
    /// The worker serves.
    Ready {
        /// Which one.
        worker: WorkerId,
    },
    /// The worker has no connection any more, and exits.
    Drained {
        /// Which one.
        worker: WorkerId,
    },
    /// The worker says that it can't start or go on, and exits.
    Failed {
        /// Which one.
        worker: WorkerId,
        /// Another try would fail alike.
        permanent: bool,
        /// Its words.
        why: String,
    },
    /// The process is gone, or was never made.
    Exited {
        /// Which one.
        worker: WorkerId,
        /// Such as "killed by SIGSEGV", "exit code 1".
        cause: String,
    },
    /// The worker runs with this configuration now.
    Applied {
        /// Which one.
        worker: WorkerId,
        /// As in the `Apply` that it answers.
        config: ConfigId,
    },
    /// The worker can't run with it, and goes on with the one it had.
    NotApplied {
        /// Which one.
        worker: WorkerId,
        /// As in the `Apply` that it answers.
        config: ConfigId,
        /// Such as "root /srv/www: permission denied".
        why: String,
    },
    /// A core of the worker died or stalls.
    CoreLost {
        /// Which one.
        worker: WorkerId,
        /// Its number there.
        core: usize,
        /// What is known of it.
        why: String,
        /// It does nothing and lets nothing go: what it was to accept waits until the process is gone. One
        /// that is dead has let go of all.
        stalls: bool,
    },
    /// Somebody wants a change.
    Ask {
        /// Who waits for the answer; none: a signal.
        request: Option<RequestId>,
        /// What.
        kind: Kind,
    },
    /// Loaded, checked and bound, as `Prepare` wanted.
    Prepared {
        /// As in `Prepare`.
        change: ChangeId,
        /// The outcome: the machine ends it by `Commit` or by `Abandon`.
        config: ConfigId,
        /// What it says of its workers.
        policy: Policy,
        /// Compared with the configuration in force.
        placement: Placement,
    },
    /// It can't be.
    NotPrepared {
        /// As in `Prepare`.
        change: ChangeId,
        /// The diagnostics.
        text: String,
        /// Exit code of who asked: 78 for a bad configuration, else 1.
        code: u8,
    },
    /// The server has to end. The first graceful one drains; a second one ends at once.
    Stop {
        /// Without a drain.
        at_once: bool,
        /// Who waits for the end.
        request: Option<RequestId>,
    },
    /// The workers have to drain, while master and sockets stay (WINCH). A reload brings workers.
    DrainWorkers,
    /// `Execute` came back.
    ExecFailed {
        /// The error.
        why: String,
    },
    /// Time passed; to be given at [`deadline`](super::Machine::deadline).
    Tick,
}

/// What has to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Load, check and bind; the answer is `Prepared` or `NotPrepared`. For an upgrade the new
    /// binary checks, in a child.
    Prepare {
        /// Names it in the answer.
        change: ChangeId,
        /// For what.
        kind: Kind,
    },
    /// Nobody waits for the answer any more; a late `Prepared` is abandoned.
    CancelPrepare {
        /// As in `Prepare`.
        change: ChangeId,
    },
    /// Start a process. If it can't be made, that is `Exited`.
    Spawn {
        /// Its name from now on.
        worker: WorkerId,
        /// To which it belongs.
        generation: GenerationId,
        /// What it starts with.
        config: ConfigId,
        /// What it runs.
        image: Image,
    },
    /// Have the worker take a configuration. Sent while another is unanswered, too: the worker takes
    /// and answers them in order.
    Apply {
        /// Which one.
        worker: WorkerId,
        /// Which one.
        config: ConfigId,
    },
    /// Have the worker serve what it has, and accept no more. Sent again, it is stricter.
    Drain {
        /// Which one.
        worker: WorkerId,
        /// When it has to end what is left.
        deadline: Instant,
        /// Others serve on: idle connections are kept until they ask again. Else they close now.
        handover: bool,
    },
    /// Have the worker end without a drain.
    StopWorker {
        /// Which one.
        worker: WorkerId,
    },
    /// KILL.
    Kill {
        /// Which one.
        worker: WorkerId,
    },
    /// In force from now on: older configurations go, and the listeners that only they had.
    Commit {
        /// Which one.
        config: ConfigId,
    },
    /// Will never be in force: what only it had bound is closed.
    Abandon {
        /// Which one.
        config: ConfigId,
    },
    /// The last word to who asked.
    Answer {
        /// Who.
        request: RequestId,
        /// What became of it.
        outcome: Outcome,
    },
    /// Export the machine and replace the master by the image of the upgrade, at once. Always the
    /// last action of its turn. If it fails: `ExecFailed`.
    Execute,
    /// End the master: no worker is left. The last action ever.
    Exit {
        /// Exit code.
        code: u8,
        /// For the log.
        why: String,
    },
    /// Tell people.
    Log {
        /// How bad.
        level: Level,
        /// One sentence.
        text: String,
    },
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was done.
    Done {
        /// How.
        text: String,
    },
    /// All is as it was before.
    Failed {
        /// Why, and what to do.
        text: String,
        /// Exit code: 78 where the configuration is at fault, else 1.
        code: u8,
    },
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Info,
    /// Somebody should look at it.
    Warn,
    /// Something is broken.
    Error,
}
