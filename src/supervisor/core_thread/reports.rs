//! What a core is told, and what it tells.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use crate::handlers::secured::SecuredSites;
use crate::http::session::Counts;
use crate::runtime::budget::Level;
use crate::runtime::direct::DirectCounts;
use crate::runtime::engine::Forbidden;
use crate::runtime::engine::caps::{EngineKind, Restriction};
use crate::runtime::executor::Turns;
use crate::runtime::kernel_tls::KernelTlsCounts;
use crate::runtime::mailbox::Wake;
use crate::supervisor::messages::SocketId;
use crate::supervisor::swap::Swap;
use crate::upstream::group;

/// What a core is told.
#[derive(Clone, Debug)]
pub(in crate::supervisor) enum Message {
    /// Accept nothing more, finish what is in flight, end at the deadline at the latest.
    Drain {
        /// When what is left is cut.
        deadline: Instant,
        /// Another process goes on accepting from the same sockets: what waits there is left to it, and
        /// idle connections stay until they ask again, or until the deadline.
        handover: bool,
    },
    /// Another holder of the listening sockets has let go of them: look at the accept queues.
    AcceptAgain,
    /// End now.
    Stop,
    /// Serve another configuration from now on.
    Swap(Arc<Swap>),
    /// Make connections by these certificates from now on, those of the configuration of this number.
    Secure(u64, Arc<SecuredSites>),
    /// Tell how it goes; the number comes back.
    Status(u64),
    /// Let the ring try what it may not; the number comes back.
    TryForbidden(u64),
    /// Close idle connections to servers that take nothing any more. Not sent again before the answer.
    Tidy,
}

/// What a core tells.
#[derive(Debug)]
pub(in crate::supervisor) struct Report {
    /// Which core.
    pub(in crate::supervisor) core: usize,
    /// What happened to it.
    pub(in crate::supervisor) event: Event,
}

/// What happens to a core. The end comes once and last.
#[derive(Debug)]
pub(in crate::supervisor) enum Event {
    /// It accepts nothing more, and every answer says that the connection ends.
    Draining,
    /// It serves this configuration.
    Swapped(u64),
    /// How it goes, for the question of this number.
    Status(u64, Box<Account>),
    /// What the ring said to each forbidden op, for the question of this number.
    Tried(u64, Vec<Forbidden>),
    /// Idle connections to servers that take nothing are closed.
    Tidied,
    /// It serves, on this engine, for this reason, with its ring restricted or not.
    Started(EngineKind, String, Restriction),
    /// Its thread has nothing more to do.
    Ended(End),
}

/// How a core goes.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Account {
    /// Open connections.
    pub(in crate::supervisor) connections: usize,
    /// Heads that were answered.
    pub(in crate::supervisor) requests: u64,
    /// Answers of 500 and above.
    pub(in crate::supervisor) errors: u64,
    /// TLS handshakes that came to their end, and how many of them resumed a session.
    pub(in crate::supervisor) handshakes: (u64, u64),
    /// Bytes that it holds for connections.
    pub(in crate::supervisor) memory: usize,
    /// Tasks.
    pub(in crate::supervisor) tasks: usize,
    /// Ops in flight.
    pub(in crate::supervisor) slots: usize,
    /// Configurations that are in use, with the requests that each answers.
    pub(in crate::supervisor) epochs: Vec<(u64, usize)>,
    /// Sockets, with their connections, and whether they were removed.
    pub(in crate::supervisor) listeners: Vec<(SocketId, usize, bool)>,
    /// How often each limit was reached.
    pub(in crate::supervisor) limits: Counts,
    /// How long its turns have taken.
    pub(in crate::supervisor) turns: Turns,
    /// Ring ops that were refused because they are forbidden.
    pub(in crate::supervisor) refused: u64,
    /// Bytes in use by category, and how short memory is.
    pub(in crate::supervisor) categories: Vec<(&'static str, u64)>,
    /// How short memory is for it.
    pub(in crate::supervisor) level: Level,
    /// What was read past the page cache and sent without a copy.
    pub(in crate::supervisor) direct: DirectCounts,
    /// What the kernel encrypts.
    pub(in crate::supervisor) kernel_tls: KernelTlsCounts,
    /// What it knows of each upstream of the current configuration.
    pub(in crate::supervisor) upstreams: Vec<group::Account>,
}

/// How a core ended.
#[derive(Debug)]
pub(in crate::supervisor) enum End {
    /// It could not be set up.
    Refused(io::Error),
    /// It was told to end; so many connections were cut.
    Told {
        /// Connections that were open when it ended.
        cut: usize,
        /// Tasks that had panicked during its life.
        panics: u64,
        /// How often each limit was reached.
        limits: Counts,
    },
    /// It could not go on.
    Broken(String),
}

/// Sends reports to the main thread.
#[derive(Clone)]
pub(in crate::supervisor) struct Reporter {
    /// Has room for every report of every core, so that no core ever waits.
    pub(in crate::supervisor) sender: SyncSender<Report>,
    /// Wakes the main thread.
    pub(in crate::supervisor) wake: Arc<Wake>,
    /// Which core it is.
    pub(in crate::supervisor) core: usize,
}

impl Reporter {
    pub(super) fn report(&self, event: Event) {
        let core = self.core;
        // A main thread that is gone needs no report.
        let _ = self.sender.try_send(Report { core, event });
        self.wake.wake();
    }
}
