//! What the master and a worker say to each other, over a [`Channel`](super::channel::Channel).
//!
//! The master speaks of listening sockets by numbers that it gives once and never again, so that a
//! reload can name those that stay. A configuration is a blob beside the message: the worker opens no
//! file of it.

use serde::{Deserialize, Serialize};

use super::bind::Part;
use super::certificates::Replaced;
use super::control::memory::MemoryStatus;
use super::control::status::{CoreStatus, EpochStatus, ListenerStatus};
use super::control::upstreams::UpstreamStatus;
use super::privileges::Identity;
use super::sandbox::{Attempt, Grants, Report};
use crate::config::model::Sandbox;
use crate::config::model::ServerState;
use crate::net::tls::tickets::TicketKey;

/// The number of a listening socket, for the life of the master.
pub(super) type SocketId = u32;

/// From the master.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToWorker {
    /// Listening sockets, with these numbers; one descriptor for each. Beside it which one it is, where
    /// its address has one for each core.
    Sockets(Vec<(SocketId, Option<Part>)>),
    /// The first configuration, after its sockets. Comes once.
    Start(Box<Start>),
    /// Another configuration takes the place of the one in force.
    Reload(Next),
    /// Accept nothing more, and end when the last connection has closed, or at the deadline.
    Drain {
        /// Milliseconds until the deadline.
        within_ms: u64,
        /// Another generation serves on: idle connections stay until they ask again.
        handover: bool,
    },
    /// End now.
    Stop,
    /// The access log was rotated; its descriptor comes with the message.
    Reopen,
    /// Tell how it goes.
    Status {
        /// Comes back with the answer.
        id: u64,
    },
    /// Try what the sandbox forbids.
    Probe {
        /// Comes back with the answer.
        id: u64,
    },
    /// Certificates were replaced, or what is known of them and of clients: these take the place of those of
    /// the same name.
    Certificates(Replaced),
    /// The keys of session tickets were renewed: these are in force.
    TicketKeys(Vec<TicketKey>),
    /// The administrator has a word on a server of an upstream.
    Server {
        /// Comes back with the answer.
        id: u64,
        /// The word.
        word: Word,
    },
    /// Another worker has let go of the listening sockets: look at the accept queues, since what has
    /// woken that one wakes nobody else.
    AcceptAgain,
}

/// The administrator's word on a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Word {
    /// The server's upstream.
    pub(super) upstream: String,
    /// Its name in the configuration.
    pub(super) server: String,
    /// What is to be done with it.
    pub(super) state: ServerState,
}

/// A configuration, with the blob that has it as the first descriptor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Next {
    /// Its number.
    pub(super) config: u64,
    /// Which socket serves which of its listeners: the place in the model's list. A socket that isn't
    /// here any more is given up.
    pub(super) listeners: Vec<(SocketId, usize)>,
    /// Certificates and more that it hasn't, or that were replaced since it was read.
    pub(super) replaced: Replaced,
    /// Every word of the administrator that stands with it; the configuration itself speaks of all other
    /// servers.
    pub(super) words: Vec<Word>,
}

/// All that a worker begins with. Descriptors: the configuration, and the access log if there is one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Start {
    /// Which generation it belongs to.
    pub(super) generation: u64,
    /// What it serves.
    pub(super) next: Next,
    /// Who it becomes; `None` to stay who it is.
    pub(super) identity: Option<Identity>,
    /// What it may do beside serving.
    pub(super) sandbox: SandboxMode,
    /// Which files it may read and write.
    pub(super) grants: Grants,
    /// Whether the access log comes with it.
    pub(super) logs: bool,
    /// The keys of session tickets, the same for all workers.
    pub(super) ticket_keys: Vec<TicketKey>,
}

/// The sandbox as the channel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SandboxMode {
    /// None.
    Off,
    /// What the kernel has.
    Auto,
    /// All of it, or the worker doesn't start.
    Strict,
}

impl From<Sandbox> for SandboxMode {
    fn from(sandbox: Sandbox) -> Self {
        match sandbox {
            Sandbox::Off => Self::Off,
            Sandbox::Auto => Self::Auto,
            Sandbox::Strict => Self::Strict,
        }
    }
}

/// From the worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromWorker {
    /// Every core serves.
    Ready(Box<Ready>),
    /// It can't start, and ends.
    Failed(Failed),
    /// It serves this configuration now.
    Applied {
        /// Its number.
        config: u64,
    },
    /// It can't serve this configuration, and goes on with the one before.
    NotApplied {
        /// Its number.
        config: u64,
        /// Why.
        why: String,
    },
    /// A core is dead or stalled.
    CoreLost {
        /// Which one.
        core: usize,
        /// What was seen of it.
        why: String,
        /// It stalls, and lets nothing go.
        stalls: bool,
    },
    /// It accepts nothing more, and every answer says that its connection ends.
    Draining,
    /// The last connection has closed, or was cut; the process ends.
    Drained {
        /// Connections that were cut.
        cut: usize,
    },
    /// How it goes.
    Status {
        /// The request's.
        id: u64,
        /// What it tells.
        report: Box<WorkerReport>,
    },
    /// What became of each attempt.
    Probed {
        /// The request's.
        id: u64,
        /// The attempts.
        attempts: Vec<Attempt>,
    },
    /// A word was heard: every request from now on goes by it.
    ServerSet {
        /// The request's.
        id: u64,
        /// The worker has that server.
        found: bool,
        /// Why its health keeps it out all the same; empty where it doesn't.
        out: String,
    },
}

/// What a worker serves with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    /// Each engine with its reason and the number of its cores.
    pub(super) engines: Vec<(String, String, usize)>,
    /// What is enforced.
    pub(super) sandbox: Report,
    /// Where the numbers that depend on the machine come from: a file, or `defaults`.
    pub(super) tuning: String,
    /// Which records the kernel makes, or why none.
    #[serde(default)]
    pub(super) kernel_tls: String,
}

/// Why a worker doesn't start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Failed {
    /// The same start would fail again.
    pub(super) permanent: bool,
    /// Whole lines: what, where, and what to do.
    pub(super) text: String,
}

/// How a worker goes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct WorkerReport {
    /// Each core.
    pub(super) cores: Vec<CoreStatus>,
    /// The configurations that requests are answered by, of all cores together.
    pub(super) epochs: Vec<EpochStatus>,
    /// Connections of each socket, of all cores together.
    pub(super) listeners: Vec<(SocketId, ListenerStatus)>,
    /// How often each limit was reached.
    pub(super) limits: Vec<(String, u64)>,
    /// System calls and ring ops that the sandbox has refused.
    pub(super) refused: u64,
    /// Where requests are passed to, of all cores together.
    pub(super) upstreams: Vec<UpstreamStatus>,
    /// Its memory.
    #[serde(default)]
    pub(super) memory: MemoryStatus,
}
