//! What a core lets others see of its turns, without being asked: two stores a turn.
//!
//! A core that waits in its engine is healthy however long it waits, and is never woken to prove it.
//! One that has been in a turn for long may be stalled; who watches it decides that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Since when a core is in a turn. Written by the core, read by whoever watches it.
#[derive(Debug)]
pub struct Heartbeat {
    base: Instant,
    /// Milliseconds after `base`, plus one; 0 while the core waits.
    running_since: AtomicU64,
}

impl Heartbeat {
    /// A heartbeat of a core that hasn't begun. `now` is not after any time that it is told later.
    pub fn new(now: Instant) -> Self {
        Self {
            base: now,
            running_since: AtomicU64::new(0),
        }
    }

    /// A turn has begun.
    pub(crate) fn runs(&self, now: Instant) {
        let since = now.saturating_duration_since(self.base).as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX - 1);
        // Nothing else is published by it, so no order is needed.
        self.running_since.store(since + 1, Ordering::Relaxed);
    }

    /// The turn is over; the engine waits.
    pub(crate) fn waits(&self) {
        self.running_since.store(0, Ordering::Relaxed);
    }

    /// For how long the turn under way has lasted; `None` while the core waits.
    pub fn running_for(&self, now: Instant) -> Option<Duration> {
        let since = self.running_since.load(Ordering::Relaxed).checked_sub(1)?;
        let began = self.base + Duration::from_millis(since);
        Some(now.saturating_duration_since(began))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_turn_has_a_length() {
        let base = Instant::now();
        let at = |ms| base + Duration::from_millis(ms);
        let heartbeat = Heartbeat::new(base);
        assert_eq!(heartbeat.running_for(at(5)), None);
        for begin in [0, 7] {
            heartbeat.runs(at(begin));
            let expected = Some(Duration::from_millis(3));
            assert_eq!(heartbeat.running_for(at(begin + 3)), expected);
        }
        heartbeat.waits();
        assert_eq!(heartbeat.running_for(at(9)), None);
    }
}
