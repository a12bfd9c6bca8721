//! All connections of a core, so that idle ones can be closed when room is needed or the core drains.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::limits::LimitCounters;
use crate::net::listener::{Member, Population};
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
}

/// How long a connection may be silent at first before it counts as idle.
const FIRST_REQUEST_EXPECTED: Duration = Duration::from_secs(1);

/// The connections of one core.
#[derive(Default)]
pub struct Registry {
    entries: RefCell<Slab<Entry>>,
    population: Rc<Population>,
    limits: LimitCounters,
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

    /// Enters the current task's connection, busy.
    pub(super) fn enter(self: &Rc<Self>, core: &Core, member: Member) -> Registration {
        let task = core.current_task();
        let entry = Entry {
            task,
            idle_since: None,
            served: false,
            shed: false,
        };
        let index = self.entries.borrow_mut().insert(entry) as u32;
        Registration {
            registry: Rc::clone(self),
            index,
            _member: member,
        }
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
    index: u32,
    _member: Member,
}

impl Registration {
    /// The connection idles since `now`; `served` says whether it has been answered a request.
    pub(super) fn idle(&self, now: Instant, served: bool) {
        let entry = &mut self.registry.entries.borrow_mut()[self.index as usize];
        (entry.idle_since, entry.served) = (Some(now), served);
    }

    /// The connection is no longer idle.
    pub(super) fn busy(&self) {
        self.registry.entries.borrow_mut()[self.index as usize].idle_since = None;
    }

    /// Whether an idle connection is to be closed now.
    pub(super) fn must_close(&self) -> bool {
        self.registry.population.draining()
            || self.registry.entries.borrow()[self.index as usize].shed
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry
            .entries
            .borrow_mut()
            .try_remove(self.index as usize);
    }
}
