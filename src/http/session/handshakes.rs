//! How many TLS handshakes go on at a time, and how many begin in a turn: each costs a core as much as
//! dozens of requests, and those of clients that go no further must not keep others out.
//!
//! A whole ClientHello waits in a line, first come, first served. Of each turn a share of time goes to
//! the line, so that whatever signatures cost, other connections have theirs. Who finds the line full
//! is refused, at the price of a send and a close.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::runtime::task::TaskId;

/// Most handshakes of a core between the answer to a ClientHello and the end. Beyond it the oldest one
/// ends: it has had more time than a client needs, and one that floods loses its own.
const UNDER_WAY_MAX: usize = 1024;

/// Most that wait for their begin. With keys of elliptic curves that is a wait of 40 ms at most, with
/// RSA of 4096 bits a second or two: beyond that, a refusal serves a client better.
const WAITING_MAX: usize = 256;

/// Time of a turn in which handshakes may begin; one may in any case. Six or so with keys of elliptic
/// curves, one with RSA.
const TIME_OF_TURN: Duration = Duration::from_millis(1);

/// The handshakes of one core.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// By the order in which they began.
    under_way: RefCell<BTreeMap<u64, TaskId>>,
    begun: Cell<u64>,
    /// Those that haven't, by number, the longest wait first.
    waiting: RefCell<VecDeque<u64>>,
    came: Cell<u64>,
    /// The time of a turn is the same at any moment of it.
    turn: Cell<Option<Instant>>,
    /// What those that began in it have taken.
    of_turn: Cell<Duration>,
    full: Cell<u64>,
    resumed: Cell<u64>,
}

impl Handshakes {
    /// Takes a place in the line, until the guard is dropped; `None` where it is full.
    pub(super) fn queue(&self) -> Option<Waiting<'_>> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= WAITING_MAX {
            return None;
        }
        let number = self.came.get();
        self.came.set(number + 1);
        waiting.push_back(number);
        Some(Waiting {
            handshakes: self,
            number,
        })
    }

    /// One that began in the turn of this time has taken so long.
    pub(super) fn took(&self, turn: Instant, time: Duration) {
        let before = match self.turn.replace(Some(turn)) == Some(turn) {
            true => self.of_turn.get(),
            false => Duration::ZERO,
        };
        self.of_turn.set(before + time);
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

/// A place in the line.
#[derive(Debug)]
pub(super) struct Waiting<'h> {
    handshakes: &'h Handshakes,
    number: u64,
}

impl Waiting<'_> {
    /// Whether the handshake may begin in the turn of this time.
    pub(super) fn may_begin(&self, turn: Instant) -> bool {
        let handshakes = self.handshakes;
        let time_is_left =
            handshakes.turn.get() != Some(turn) || handshakes.of_turn.get() < TIME_OF_TURN;
        time_is_left && handshakes.waiting.borrow().front() == Some(&self.number)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.handshakes.waiting.borrow_mut();
        // Numbers ascend, since they are given out in order.
        if let Ok(place) = waiting.binary_search(&self.number) {
            waiting.remove(place);
        }
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
    fn a_turn_has_time_for_a_few() {
        let handshakes = Handshakes::default();
        let now = Instant::now();
        let [first, second, third] = [(); 3].map(|()| handshakes.queue().unwrap());
        assert!(first.may_begin(now) && !second.may_begin(now));
        drop(first);
        handshakes.took(now, TIME_OF_TURN / 2);
        assert!(second.may_begin(now) && !third.may_begin(now));
        drop(second);
        handshakes.took(now, TIME_OF_TURN / 2);
        assert!(!third.may_begin(now));
        let next = now + Duration::from_micros(1);
        assert!(third.may_begin(next));
        // However long it takes, the next turn has time for another.
        drop(third);
        handshakes.took(next, TIME_OF_TURN * 9);
        let fourth = handshakes.queue().unwrap();
        assert!(!fourth.may_begin(next) && fourth.may_begin(next + Duration::from_micros(1)));
    }

    #[test]
    fn who_finds_the_line_full_is_refused_and_who_leaves_makes_room() {
        let handshakes = Handshakes::default();
        let mut line: Vec<_> = (0..WAITING_MAX)
            .map(|_| handshakes.queue().unwrap())
            .collect();
        assert!(handshakes.queue().is_none());
        let now = Instant::now();
        drop(line.remove(7));
        let last = handshakes.queue().unwrap();
        assert!(handshakes.queue().is_none());
        // First come, first served.
        for place in line {
            assert!(place.may_begin(now) && !last.may_begin(now));
        }
        assert!(last.may_begin(now));
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
