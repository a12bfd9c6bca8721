//! How many TLS handshakes go on at a time, and how many begin in a turn: each costs a core as much as
//! dozens of requests, and those of clients that go no further must not keep others out.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Instant;

use crate::runtime::task::TaskId;

/// Most handshakes of a core between ClientHello and end. Beyond it the oldest one ends: it has had
/// more time than a client needs, and one that floods loses its own.
const UNDER_WAY_MAX: usize = 1024;

/// Most that begin in one turn. With keys of elliptic curves that is a millisecond or two, with RSA
/// less than ten.
const BEGUN_PER_TURN: u32 = 8;

/// The handshakes of one core.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// By the order in which they began.
    under_way: RefCell<BTreeMap<u64, TaskId>>,
    begun: Cell<u64>,
    /// The time of a turn is the same at any moment of it.
    turn: Cell<Option<Instant>>,
    of_turn: Cell<u32>,
    full: Cell<u64>,
    resumed: Cell<u64>,
}

impl Handshakes {
    /// Whether one may begin in the turn of this time; it counts.
    pub(super) fn may_begin(&self, now: Instant) -> bool {
        if self.turn.replace(Some(now)) != Some(now) {
            self.of_turn.set(0);
        }
        let begun = self.of_turn.get();
        self.of_turn
            .set(begun.saturating_add(1).min(BEGUN_PER_TURN));
        begun < BEGUN_PER_TURN
    }

    /// Enters one, until the guard is dropped; with the task to be ended to make room for it.
    pub(super) fn enter(&self, task: TaskId) -> (UnderWay<'_>, Option<TaskId>) {
        let mut under_way = self.under_way.borrow_mut();
        let oldest = match under_way.len() >= UNDER_WAY_MAX {
            true => under_way.pop_first().map(|(_, oldest)| oldest),
            false => None,
        };
        let number = self.begun.get();
        self.begun.set(number + 1);
        under_way.insert(number, task);
        let entered = UnderWay {
            handshakes: self,
            number,
        };
        (entered, oldest)
    }

    /// One has come to its end.
    pub(super) fn done(&self, resumed: bool) {
        let count = if resumed { &self.resumed } else { &self.full };
        count.set(count.get() + 1);
    }

    /// How many were done, and how many of them went on with a session that was made before.
    pub fn counts(&self) -> (u64, u64) {
        let resumed = self.resumed.get();
        (self.full.get() + resumed, resumed)
    }
}

/// A handshake that is under way.
#[derive(Debug)]
pub(super) struct UnderWay<'h> {
    handshakes: &'h Handshakes,
    number: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.handshakes.under_way.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn few_begin_in_a_turn() {
        let handshakes = Handshakes::default();
        let now = Instant::now();
        let begun = (0..100).filter(|_| handshakes.may_begin(now)).count();
        assert_eq!(begun, BEGUN_PER_TURN as usize);
        assert!(handshakes.may_begin(now + Duration::from_millis(1)));
    }

    #[test]
    fn the_oldest_makes_room() {
        let handshakes = Handshakes::default();
        let task = |number| TaskId::from_bits(number);
        let mut guards: Vec<_> = (0..UNDER_WAY_MAX as u64)
            .map(|number| {
                let (guard, oldest) = handshakes.enter(task(number));
                assert_eq!(oldest, None);
                guard
            })
            .collect();
        let (next, oldest) = handshakes.enter(task(5000));
        assert_eq!(oldest, Some(task(0)));
        // The guard of one that was ended takes out nobody else.
        drop(guards.remove(0));
        let (after, oldest) = handshakes.enter(task(5001));
        assert_eq!(oldest, Some(task(1)));
        drop((guards, next, after));
        assert!(handshakes.under_way.borrow().is_empty());
    }
}
