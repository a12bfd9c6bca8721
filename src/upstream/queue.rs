//! Requests that wait for a server to have room.
//!
//! When all servers are full a short wait serves more clients than an error does; a long one serves
//! nobody. So the line is bounded, everyone in it has a deadline, and who came first goes first among
//! those who can use the server that has room (a retry may have tried just that one). It knows
//! nothing of tasks: a waiter is any value, and whoever leaves the line by other ways says so.

use std::collections::VecDeque;
use std::time::Instant;

/// A line of at most `waiting_max` waiters. First come, first served.
///
/// Invariants: tickets grow from front to back; `live` entries hold a waiter; at most as many entries
/// have lost theirs as hold one, plus one.
#[derive(Debug)]
pub struct WaitQueue<T> {
    entries: VecDeque<Entry<T>>,
    live: usize,
    waiting_max: usize,
    next_ticket: u64,
}

/// A place in the line; good for [`WaitQueue::leave`] once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// Whoever leaves the line because it is his turn.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<T> {
    /// He gets the server.
    Served(T),
    /// He waited until his deadline: 503, and the server is still there for the next one.
    Late(T),
}

/// The line is full: 503 at once. Gives the waiter back.
#[derive(Debug, PartialEq, Eq)]
pub struct QueueFull<T>(pub T);

#[derive(Debug)]
struct Entry<T> {
    ticket: u64,
    deadline: Instant,
    /// `None` after he left from the middle.
    waiter: Option<T>,
}

impl<T> WaitQueue<T> {
    /// An empty line. With `waiting_max` of 0 nobody waits.
    pub fn new(waiting_max: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            live: 0,
            waiting_max,
            next_ticket: 0,
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Puts `waiter` at the end, until `deadline`.
    ///
    /// # Errors
    /// [`QueueFull`] when as many wait already as may.
    pub fn join(&mut self, waiter: T, deadline: Instant) -> Result<Ticket, QueueFull<T>> {
        if self.live >= self.waiting_max {
            return Err(QueueFull(waiter));
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.live += 1;
        self.entries.push_back(Entry {
            ticket,
            deadline,
            waiter: Some(waiter),
        });
        Ok(Ticket(ticket))
    }

    /// Takes out whoever holds `ticket`: his client has gone, or his own timer has fired. `None`: he
    /// had his turn before.
    pub fn leave(&mut self, ticket: Ticket) -> Option<T> {
        let by_ticket = |entry: &Entry<T>| entry.ticket;
        let at = self.entries.binary_search_by_key(&ticket.0, by_ticket);
        self.take(at.ok()?)
    }

    /// A server has room: the first one whom `can_use` lets have it. Those before him whose time is
    /// over come first, one a call, as [`Turn::Late`]: call again until it is served or `None`.
    pub fn next(&mut self, now: Instant, mut can_use: impl FnMut(&T) -> bool) -> Option<Turn<T>> {
        let at = self.entries.iter().position(|entry| {
            let waiter = entry.waiter.as_ref();
            waiter.is_some_and(|waiter| entry.deadline <= now || can_use(waiter))
        })?;
        let is_late = self.entries[at].deadline <= now;
        let waiter = self.take(at)?;
        Some(if is_late {
            Turn::Late(waiter)
        } else {
            Turn::Served(waiter)
        })
    }

    /// No server will have room (all are down): everyone, first come first.
    pub fn dismiss(&mut self) -> impl Iterator<Item = T> {
        self.live = 0;
        self.entries.drain(..).filter_map(|entry| entry.waiter)
    }

    fn take(&mut self, at: usize) -> Option<T> {
        let waiter = self.entries[at].waiter.take()?;
        self.live -= 1;
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.waiter.is_none())
        {
            self.entries.pop_front();
        }
        // One who waits long at the front must not let the line behind him grow without bound.
        if self.entries.len() > 2 * self.live + 1 {
            self.entries.retain(|entry| entry.waiter.is_some());
        }
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn first_come_first_served_up_to_the_bound() {
        let (mut queue, now) = (WaitQueue::new(2), Instant::now());
        queue.join('a', now + S).unwrap();
        queue.join('b', now + S).unwrap();
        assert_eq!(queue.join('c', now + S), Err(QueueFull('c')));
        assert_eq!(queue.next(now, |_| true), Some(Turn::Served('a')));
        queue.join('c', now + S).unwrap();
        assert_eq!(queue.next(now, |_| true), Some(Turn::Served('b')));
        assert_eq!(queue.next(now, |_| true), Some(Turn::Served('c')));
        assert_eq!(queue.next(now, |_| true), None);
        assert_eq!(WaitQueue::new(0).join('a', now), Err(QueueFull('a')));
    }

    #[test]
    fn who_is_late_does_not_get_the_server_and_says_so() {
        let (mut queue, now) = (WaitQueue::new(9), Instant::now());
        queue.join('a', now + S).unwrap();
        queue.join('b', now + 3 * S).unwrap();
        assert_eq!(queue.next(now + S, |_| true), Some(Turn::Late('a')));
        assert_eq!(queue.next(now + S, |_| true), Some(Turn::Served('b')));
    }

    #[test]
    fn who_cannot_use_the_server_keeps_his_place() {
        let (mut queue, now) = (WaitQueue::new(9), Instant::now());
        for waiter in ['a', 'b', 'c'] {
            queue.join(waiter, now + S).unwrap();
        }
        assert_eq!(queue.next(now, |w| *w == 'b'), Some(Turn::Served('b')));
        assert_eq!(queue.next(now, |_| false), None);
        assert_eq!(queue.next(now, |_| true), Some(Turn::Served('a')));
        assert_eq!(queue.dismiss().collect::<Vec<_>>(), ['c']);
        assert!(queue.is_empty());
    }

    #[test]
    fn who_has_left_is_not_called_and_cannot_leave_twice() {
        let (mut queue, now) = (WaitQueue::new(9), Instant::now());
        let first = queue.join('a', now + S).unwrap();
        let second = queue.join('b', now + S).unwrap();
        assert_eq!(queue.leave(second), Some('b'));
        assert_eq!(queue.leave(second), None);
        assert_eq!(queue.next(now, |_| true), Some(Turn::Served('a')));
        assert_eq!(queue.leave(first), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Join { wait_s: u32 },
        Leave { pick: prop::sample::Index },
        Next { modulo: u32 },
        Pass { seconds: u32 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..9_u32).prop_map(|wait_s| Step::Join { wait_s }),
            2 => any::<prop::sample::Index>().prop_map(|pick| Step::Leave { pick }),
            2 => (1..4_u32).prop_map(|modulo| Step::Next { modulo }),
            1 => (1..4_u32).prop_map(|seconds| Step::Pass { seconds }),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_list_and_stays_small(steps in prop::collection::vec(step(), 1..300)) {
            const MAX: usize = 8;
            let (mut queue, mut now) = (WaitQueue::new(MAX), Instant::now());
            let mut list: Vec<(u32, Instant, Ticket)> = Vec::new();
            let mut number = 0;
            for step in steps {
                match step {
                    Step::Join { wait_s } => {
                        number += 1;
                        let deadline = now + wait_s * S;
                        match queue.join(number, deadline) {
                            Ok(ticket) => list.push((number, deadline, ticket)),
                            Err(QueueFull(_)) => prop_assert_eq!(list.len(), MAX),
                        }
                    }
                    Step::Leave { pick } if !list.is_empty() => {
                        let (number, _, ticket) = list.remove(pick.index(list.len()));
                        prop_assert_eq!(queue.leave(ticket), Some(number));
                    }
                    Step::Leave { .. } => {}
                    Step::Next { modulo } => {
                        let can_use = |waiter: &u32| waiter.is_multiple_of(modulo);
                        let at = list.iter().position(|(w, until, _)| *until <= now || can_use(w));
                        let expected = at.map(|at| list.remove(at)).map(|(waiter, until, _)| {
                            if until <= now { Turn::Late(waiter) } else { Turn::Served(waiter) }
                        });
                        prop_assert_eq!(queue.next(now, can_use), expected);
                    }
                    Step::Pass { seconds } => now += seconds * S,
                }
                prop_assert_eq!(queue.len(), list.len());
                prop_assert!(queue.entries.len() <= 2 * MAX + 1);
            }
        }
    }
}
