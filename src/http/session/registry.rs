//! All connections of a core, so that idle ones can be closed when room is needed or the core drains.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::limits::LimitCounters;
use crate::net::listener::{Listening, Member, Population};
use crate::runtime::executor::Core;
use crate::runtime::task::TaskId;

/// A connection as the others see it.
struct Entry {
    task: TaskId,
    /// Since when it idles; `None` while it is busy.
    idle_since: Option<Instant>,
    /// It has been answered a request.
    served: bool,
    /// It was chosen to make room.
    shed: bool,
    /// The number of the listening socket that it came from.
    listening: u32,
}

/// What a core has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections that were accepted.
    pub accepted: u64,
    /// Requests that were answered, refused ones included.
    pub requests: u64,
    /// Those of them that were answered with a status of 500 or above.
    pub errors: u64,
}

/// How long a connection may be silent at first before it counts as idle.
const FIRST_REQUEST_EXPECTED: Duration = Duration::from_secs(1);

/// The connections of one core.
#[derive(Default)]
pub struct Registry {
    entries: RefCell<Slab<Entry>>,
    population: Rc<Population>,
    limits: LimitCounters,
    traffic: Cell<Traffic>,
}

impl Registry {
    /// The count of connections that the listeners watch.
    pub fn population(&self) -> &Rc<Population> {
        &self.population
    }

    /// How often each limit was reached on this core.
    pub fn limits(&self) -> &LimitCounters {
        &self.limits
    }

    /// What this core has done so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic.get()
    }

    /// The head of a response with this status was written.
    pub(super) fn answered(&self, status: u16) {
        let mut traffic = self.traffic.get();
        traffic.requests += 1;
        traffic.errors += u64::from(status >= 500);
        self.traffic.set(traffic);
    }

    /// Ends what is left of the connections from one listening socket, at the deadline of its drain,
    /// whatever they do. Gives their number. Not to be called by the task of a connection.
    pub fn cut(&self, core: &Core, listening: &Listening) -> usize {
        let tasks: Vec<TaskId> = {
            let entries = self.entries.borrow();
            let entries = entries.iter().map(|(_, entry)| entry);
            entries
                .filter(|entry| entry.listening == listening.id())
                .map(|entry| entry.task)
                .collect()
        };
        // The end of each takes its entry out.
        tasks.into_iter().filter(|task| core.abort(*task)).count()
    }

    /// Closes those that have idled longest: a sixty-fourth of all, at least one, if any is idle. One
    /// that has just come is not idle: its request is on the way.
    pub fn make_room(&self, core: &Core) {
        let now = core.now();
        let idles = |entry: &Entry| {
            let since = entry.idle_since?;
            let idle = now.saturating_duration_since(since);
            (!entry.shed && (entry.served || idle >= FIRST_REQUEST_EXPECTED)).then_some(since)
        };
        let mut entries = self.entries.borrow_mut();
        let mut idle: Vec<(Instant, usize)> = entries
            .iter()
            .filter_map(|(index, entry)| idles(entry).map(|since| (since, index)))
            .collect();
        idle.sort_unstable();
        idle.truncate((entries.len() / 64).max(1));
        self.limits.reached("connections");
        for (_, index) in idle {
            entries[index].shed = true;
            core.wake_task(entries[index].task);
        }
    }
}

/// One connection's place in the registry; dropping it takes the connection out.
pub struct Registration {
    registry: Rc<Registry>,
    /// `None` until its task runs.
    index: Option<u32>,
    member: Member,
}

impl Registration {
    pub(super) fn new(registry: &Rc<Registry>, member: Member) -> Self {
        let mut traffic = registry.traffic.get();
        traffic.accepted += 1;
        registry.traffic.set(traffic);
        Self {
            registry: Rc::clone(registry),
            index: None,
            member,
        }
    }

    /// Enters the connection, busy, with the task that serves it.
    pub(super) fn enter(&mut self, task: TaskId) {
        let entry = Entry {
            task,
            idle_since: None,
            served: false,
            shed: false,
            listening: self.member.listening().id(),
        };
        self.index = Some(self.registry.entries.borrow_mut().insert(entry) as u32);
    }

    fn change<T>(&self, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut entries = self.registry.entries.borrow_mut();
        entries.get_mut(self.index? as usize).map(change)
    }

    /// The connection idles since `now`; `served` says whether it has been answered a request.
    pub(super) fn idle(&self, now: Instant, served: bool) {
        self.change(|entry| (entry.idle_since, entry.served) = (Some(now), served));
    }

    /// The connection is no longer idle.
    pub(super) fn busy(&self) {
        self.change(|entry| entry.idle_since = None);
    }

    /// Whether an idle connection is to be closed now.
    pub(super) fn must_close(&self) -> bool {
        self.registry.population.expired()
            || self.member.listening().expired()
            || self.change(|entry| entry.shed) == Some(true)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(index) = self.index {
            self.registry
                .entries
                .borrow_mut()
                .try_remove(index as usize);
        }
    }
}
