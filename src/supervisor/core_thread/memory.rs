//! What a core does when memory runs short: the orders of the decider, carried out.

use std::any::Any;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::{Life, Serves};
use crate::http::session::Registry;
use crate::runtime::budget::{Ledger, Level, Orders, Reading, Shedder, give_back};
use crate::runtime::executor::Core;
use crate::runtime::future::Timer;
use crate::runtime::op::Op;

/// How often the log is told of the same level.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// Least part of the connections that is looked for idle ones in a step, and most of them that close in
/// one, so that a turn stays short.
const IDLE_PART: usize = 16;
const IDLE_MIN: usize = 16;
const IDLE_MAX: usize = 4096;

const CACHES: &str = "memory: caches emptied";
const IDLE: &str = "memory: idle connections closed";
const ACCEPT: &str = "memory: accepting paused";
const CUT: &str = "memory: connections cut";

/// When the log was told last, of which level, and whether of its end.
#[derive(Default)]
struct Told {
    at: Option<Instant>,
    level: Level,
    ended: bool,
}

/// Keeps the memory of a core within the limit.
pub(super) struct Keeper<F> {
    pub(super) core: Core,
    pub(super) registry: Rc<Registry>,
    pub(super) ledger: Arc<Ledger>,
    /// Which core it is, for the log.
    pub(super) index: usize,
    /// Lets go of what is only kept for speed.
    pub(super) shrink: F,
}

impl<F: Fn()> Keeper<F> {
    /// Looks whenever that is due, for ever: the body of a task.
    pub(super) async fn keep(self) {
        let (core, ledger) = (&self.core, &self.ledger);
        let mut shedder = Shedder::default();
        let mut timer = Timer::new(core);
        let mut told = Told::default();
        let mut wakes = None;
        loop {
            let before = shedder.level();
            let orders = shedder.next(self.read(before), core.now());
            if orders.level != before {
                core.set_memory_level(orders.level);
                self.tell(&mut told, before, orders.level);
            }
            self.obey(&orders, before);
            core.watch_memory(ledger);
            let mut due = || match core.poll_memory(ledger, &mut wakes) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            };
            match shedder.again() {
                None => std::future::poll_fn(|_| due()).await,
                Some(again) => {
                    timer.set(core.now() + again);
                    timer.bound(due).await;
                }
            }
        }
    }

    fn read(&self, before: Level) -> Reading {
        let (core, ledger) = (&self.core, &self.ledger);
        core.publish_memory();
        let mut reading = ledger.reading(0);
        if reading.used >= Level::Caches.begins(reading.room) {
            // Nothing is given up for what the kernel has back already.
            ledger.lower_slack();
            reading = ledger.reading(0);
        }
        if reading.used >= Level::Accept.begins(reading.room) || before >= Level::Accept {
            reading.own = self.registry.held(core).bytes;
        }
        reading
    }

    fn obey(&self, orders: &Orders, before: Level) {
        let (core, limits) = (&self.core, self.registry.limits());
        if orders.empty_caches {
            limits.reached(CACHES);
            (self.shrink)();
            core.free_pools();
        }
        if orders.close_idle {
            let part = self.registry.population().open() / IDLE_PART;
            let most = part.clamp(IDLE_MIN, IDLE_MAX);
            let closed = self.registry.close_idle(core, most);
            limits.reached_often(IDLE, closed as u64);
        }
        if orders.pause_accept && before < Level::Accept {
            limits.reached(ACCEPT);
        }
        self.registry.population().pause(core, orders.pause_accept);
        if orders.cut_bytes > 0 {
            let (cut, _) = self.registry.cut_largest(core, orders.cut_bytes);
            limits.reached_often(CUT, cut as u64);
        }
        if orders.trim && self.ledger.begin_trim() {
            self.give_back();
        }
    }

    /// Has a helper give free memory back to the kernel.
    fn give_back(&self) {
        let (core, ledger) = (self.core.clone(), Arc::clone(&self.ledger));
        // Whether it runs or is dropped: the next one may.
        let trim = Trim(ledger);
        self.core.spawn(async move {
            let job = move || -> Box<dyn Any + Send> {
                give_back(&trim.0);
                Box::new(())
            };
            core.once(Op::Offload(Box::new(job))).await;
        });
    }

    /// Tells the log of a worse level at once, of the same one seldom, and of the end.
    fn tell(&self, told: &mut Told, before: Level, level: Level) {
        let core = self.index;
        let (used, limit) = (self.ledger.total(), self.ledger.limit());
        let what = level.name();
        let now = self.core.now();
        let lately = told
            .at
            .is_some_and(|at| now.saturating_duration_since(at) < TELL_AGAIN);
        if level == Level::Enough {
            if !std::mem::replace(&mut told.ended, true) {
                tracing::info!(core, used, limit, "memory is no longer short");
            }
        } else if level > before && (level > told.level || !lately) {
            tracing::warn!(core, used, limit, what, "MEMORY IS SHORT");
            *told = Told {
                at: Some(now),
                level,
                ended: false,
            };
        }
    }
}

/// The turn to give memory back, until this is dropped.
struct Trim(Arc<Ledger>);

impl Drop for Trim {
    fn drop(&mut self) {
        self.0.end_trim();
    }
}

impl<S: Serves> Life<S> {
    /// Bytes in use by category. What is in none of them are tables of the core.
    pub(super) fn categories(&self) -> Vec<(&'static str, u64)> {
        let (core, held) = (&self.core, self.registry.held(&self.core));
        let parts = core.parts();
        vec![
            ("receive buffers", parts.buffers),
            ("idle connections", held.bytes - held.busy_bytes),
            ("requests", held.busy_bytes),
            ("operations", parts.slots),
            ("files", self.service.cached() as u64),
            ("kept for reuse", core.pooled_memory()),
        ]
    }
}

#[cfg(test)]
mod tests;
