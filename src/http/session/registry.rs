//! All connections of a core, so that idle ones can be closed when room is needed or the core drains.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::handshakes::Handshakes;
use super::limits::LimitCounters;
use crate::net::listener::{Listening, Member, Population};
use crate::runtime::executor::Core;
use crate::runtime::task::TaskId;
use crate::util::clock::Since;

/// A connection as the others see it.
struct Entry {
    task: TaskId,
    /// Since when it idles; `None` while it is busy.
    idle_since: Option<Since>,
    /// The number of the listening socket that it came from.
    listening: u32,
    /// It has been answered a request.
    served: bool,
    /// It was chosen to make room.
    shed: bool,
}

const _: () = assert!(
    size_of::<Entry>() <= 28,
    "every idle connection pays for its entry"
);

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

/// A connection that holds less than so many bytes is never cut to free memory: it costs hardly more than
/// an idle one.
const CUT_FROM: u64 = 4 << 10;

/// Most connections that are cut at once, so that a turn stays short.
const CUT_MAX: usize = 4096;

/// What the connections of a core hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes of the heap of all.
    pub bytes: u64,
    /// Bytes of those that are busy.
    pub busy_bytes: u64,
    /// Connections that are idle.
    pub idle: usize,
}

/// The connections of one core.
#[derive(Default)]
pub struct Registry {
    entries: RefCell<Slab<Entry>>,
    /// When the first connection idled, from which [`Since`] counts.
    epoch: OnceCell<Instant>,
    population: Rc<Population>,
    limits: LimitCounters,
    traffic: Cell<Traffic>,
    handshakes: Handshakes,
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

    /// The TLS handshakes of this core.
    pub fn handshakes(&self) -> &Handshakes {
        &self.handshakes
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

    /// Closes those that have idled longest: a sixty-fourth of all, at least one, if any is idle.
    pub fn make_room(&self, core: &Core) {
        self.limits.reached("connections");
        let part = self.entries.borrow().len() / 64;
        self.close_idle(core, part.max(1));
    }

    /// Closes at most so many of those that have idled longest, and says how many that are. One that
    /// has just come is not idle: its request is on the way.
    pub fn close_idle(&self, core: &Core, most: usize) -> usize {
        let now = self.since_epoch(core.now());
        let idles = |entry: &Entry| {
            let since = entry.idle_since?;
            let idle = now.saturating_sub(Duration::from(since));
            (!entry.shed && (entry.served || idle >= FIRST_REQUEST_EXPECTED)).then_some(since)
        };
        let mut entries = self.entries.borrow_mut();
        let mut idle: Vec<(Since, usize)> = entries
            .iter()
            .filter_map(|(index, entry)| idles(entry).map(|since| (since, index)))
            .collect();
        if idle.len() > most {
            // Which ones matters, not their order.
            idle.select_nth_unstable(most);
            idle.truncate(most);
        }
        for (_, index) in &idle {
            entries[*index].shed = true;
            core.wake_task(entries[*index].task);
        }
        idle.len()
    }

    fn since_epoch(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.epoch.get_or_init(|| now))
    }

    /// Bytes of the heap that the connections hold, and how many of them are busy.
    pub fn held(&self, core: &Core) -> Held {
        let entries = self.entries.borrow();
        let mut held = Held::default();
        for (_, entry) in entries.iter() {
            let bytes = core.held(entry.task);
            held.bytes += bytes;
            match entry.idle_since {
                Some(_) => held.idle += 1,
                None => held.busy_bytes += bytes,
            }
        }
        held
    }

    /// Cuts the connections that hold most of the heap, until they have held `bytes` together. None that
    /// holds less than [`CUT_FROM`], and no more than [`CUT_MAX`] at once. Says how many were cut, and
    /// what they held. Not to be called by the task of a connection.
    pub fn cut_largest(&self, core: &Core, bytes: u64) -> (usize, u64) {
        let mut holders: Vec<(u64, TaskId)> = {
            let entries = self.entries.borrow();
            let entries = entries.iter().map(|(_, entry)| entry.task);
            entries
                .map(|task| (core.held(task), task))
                .filter(|(held, _)| *held >= CUT_FROM)
                .collect()
        };
        holders.sort_unstable_by_key(|(held, _)| std::cmp::Reverse(*held));
        let (mut cut, mut freed) = (0, 0);
        for (held, task) in holders.into_iter().take(CUT_MAX) {
            if freed >= bytes {
                break;
            }
            if core.abort(task) {
                (cut, freed) = (cut + 1, freed + held);
            }
        }
        (cut, freed)
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
        let since = self.registry.since_epoch(now).into();
        self.change(|entry| (entry.idle_since, entry.served) = (Some(since), served));
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
