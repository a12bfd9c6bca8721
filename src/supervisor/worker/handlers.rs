//! The handlers of a core, as its thread makes and tells them.

use std::hash::{BuildHasher as _, RandomState};
use std::rc::Rc;
use std::sync::Arc;

use crate::cache::open_files::Bounds;
use crate::handlers::app::{App, Place};
use crate::handlers::epoch::{LogRecord, NewEpoch};
use crate::handlers::secured::SecuredSites;
use crate::net::listener::Listening;
use crate::supervisor::core_thread::{Parts, Serves};
use crate::supervisor::swap::Swap;
use crate::upstream::group;

/// The handlers of a core.
pub(in crate::supervisor) fn app(parts: Parts<'_>) -> Rc<App> {
    let bounds = Bounds {
        entries_max: parts.files_max.min(Bounds::default().entries_max),
        ..Bounds::default()
    };
    // The keys of the standard library's hasher come from the system's source of randomness.
    let random = || u128::from(RandomState::new().hash_one(0));
    let seed = random() << 64 | random();
    let log = parts
        .log
        .map(|log| -> Rc<LogRecord> { Rc::new(move |record| log.push(record)) });
    let first = NewEpoch {
        id: parts.first.epoch,
        model: &parts.first.model,
        rosters: &parts.first.rosters,
        secured: &parts.first.secured,
        listeners: parts.listeners,
        log,
    };
    let place = Place {
        core: parts.core.clone(),
        wake: parts.wake,
        share: parts.share,
    };
    App::new(place, first, parts.registry, bounds, seed)
}

impl Serves for App {
    fn swap(&self, swap: &Swap, listeners: &[(Rc<Listening>, usize)]) {
        // Where requests are logged changes with a new generation only.
        self.swap(NewEpoch {
            id: swap.epoch,
            model: &swap.model,
            rosters: &swap.rosters,
            secured: &swap.secured,
            listeners,
            log: self.log_in_force(),
        });
    }

    fn secure(&self, epoch: u64, secured: &Arc<SecuredSites>) {
        self.secure(epoch, secured);
    }

    fn epochs(&self) -> Vec<(u64, usize)> {
        self.epochs()
    }

    fn upstreams(&self) -> Vec<group::Account> {
        self.upstreams()
    }

    fn tidy(&self) {
        self.tidy();
    }

    fn shrink(&self) {
        self.shrink();
    }

    fn cached(&self) -> usize {
        self.cached()
    }

    fn close(&self) {
        self.close();
    }
}
