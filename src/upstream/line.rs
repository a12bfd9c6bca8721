//! The line of those that wait until a server of an upstream has room, for all cores of a worker.
//!
//! Room is a matter of all cores, so the line is, too: whoever gives a place back hands it to the one
//! who waits for the longest time, on whichever core. The lock is taken only while somebody waits.
//!
//! # Ordering
//!
//! No place is lost between two who look past each other: one who waits has joined the line
//! (`waiting`) before it looks for a free place once more, and one who gives a place back has freed it
//! before it looks at `waiting`. Both are sequentially consistent, so one of them sees the other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::balance::{Standing, Tried};
use super::queue::{Ticket, Turn, WaitQueue};
use super::roster::Members;
use crate::runtime::mailbox::Wake;

/// A line; its bound is told by whoever joins.
#[derive(Debug)]
pub struct Line {
    queue: Mutex<WaitQueue<Waiter>>,
    waiting: AtomicUsize,
}

/// One who waits.
#[derive(Debug)]
struct Waiter {
    place: Arc<Place>,
    tried: Tried,
    wake: Arc<Wake>,
}

/// Where a waiter finds what he was given: the list, and the server's place in it. Its limit has
/// counted him already.
#[derive(Debug, Default)]
pub struct Place(OnceLock<(Arc<Members>, usize)>);

impl Place {
    /// What he was given, if it was his turn.
    pub fn given(&self) -> Option<&(Arc<Members>, usize)> {
        self.0.get()
    }
}

/// One's own place in the line.
#[derive(Debug)]
pub struct InLine {
    place: Arc<Place>,
    ticket: Ticket,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            queue: Mutex::new(WaitQueue::new(usize::MAX)),
            waiting: AtomicUsize::new(0),
        }
    }
}

impl Line {
    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Joins the end until `deadline`, unless `waiting_max` wait already. `wake` is the core to wake.
    /// Whoever has joined looks for a free place once more before he sleeps.
    pub fn join(
        &self,
        waiting_max: usize,
        tried: Tried,
        wake: &Arc<Wake>,
        deadline: Instant,
    ) -> Option<InLine> {
        let mut queue = self.lock();
        if queue.len() >= waiting_max {
            return None;
        }
        let place = Arc::new(Place::default());
        let waiter = Waiter {
            place: Arc::clone(&place),
            tried,
            wake: Arc::clone(wake),
        };
        let ticket = queue.join(waiter, deadline).ok()?;
        self.waiting.store(queue.len(), Ordering::SeqCst);
        Some(InLine { place, ticket })
    }

    /// Leaves the line, and gives what he was given meanwhile.
    pub fn leave(&self, own: &InLine) -> Option<(Arc<Members>, usize)> {
        let mut queue = self.lock();
        if queue.leave(own.ticket).is_some() {
            self.waiting.store(queue.len(), Ordering::SeqCst);
            return None;
        }
        drop(queue);
        own.place.given().cloned()
    }

    /// A place was given back: serves those who can use what is free, first come first.
    pub fn serve(&self, members: &Arc<Members>, now: Instant) {
        if self.waiting() == 0 {
            return;
        }
        let mut queue = self.lock();
        loop {
            let mut found = None;
            let turn = queue.next(now, |waiter| {
                found = take_free(members, &waiter.tried, now);
                found.is_some()
            });
            match turn {
                Some(Turn::Served(waiter)) => {
                    if let Some(index) = found {
                        let given = (Arc::clone(members), index);
                        if waiter.place.0.set(given).is_err() {
                            debug_assert!(false, "nobody is served twice");
                        }
                    }
                    waiter.wake.wake();
                }
                // He knows it by his own timer.
                Some(Turn::Late(_)) => {}
                None => break,
            }
        }
        self.waiting.store(queue.len(), Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, WaitQueue<Waiter>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InLine {
    /// Where the turn is told.
    pub fn place(&self) -> &Place {
        &self.place
    }
}

/// Takes a place at a server that has one: of the backup servers only while no other one would take
/// the waiter, now or later, as in every pick.
fn take_free(members: &Members, tried: &Tried, now: Instant) -> Option<usize> {
    let list = || members.list.iter().enumerate();
    let takes_him =
        |at: usize| !tried.contains(at) && members.board.standing(at, now).0 == Standing::Up;
    let backups = !list().any(|(at, member)| !member.is_backup && takes_him(at));
    list().position(|(at, member)| {
        member.is_backup == backups
            && takes_him(at)
            && member.limit.as_ref().is_some_and(|limit| limit.take())
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::*;
    use crate::config::model::{ServerAddr, Upstream, UpstreamServer};
    use crate::upstream::roster::Roster;

    const S: Duration = Duration::from_secs(1);

    fn members(limits: &[u32]) -> Arc<Members> {
        let servers = limits.iter().zip(1..).map(|(max, port)| UpstreamServer {
            max_conns: NonZeroU32::new(*max),
            ..UpstreamServer::new(ServerAddr::Ip(([127, 0, 0, 1], port).into()))
        });
        let settings = Arc::new(Upstream::new("a", servers.collect()));
        Roster::new(&settings, Instant::now()).members()
    }

    #[test]
    fn a_place_goes_to_the_first_one_who_can_use_it() {
        let (members, now) = (members(&[1, 1]), Instant::now());
        let limits: Vec<_> = members
            .list
            .iter()
            .map(|it| it.limit.clone().unwrap())
            .collect();
        assert!(limits[0].take() && limits[1].take());
        let (line, wake) = (Line::default(), Wake::new().unwrap());
        let mut not_first = Tried::default();
        not_first.add(0);
        let a = line.join(3, not_first, &wake, now + S).unwrap();
        let b = line.join(3, Tried::default(), &wake, now + S).unwrap();
        let c = line.join(3, Tried::default(), &wake, now + S).unwrap();
        assert!(line.join(3, Tried::default(), &wake, now + S).is_none());
        limits[0].give_back();
        line.serve(&members, now);
        assert!(a.place().given().is_none() && c.place().given().is_none());
        assert_eq!(b.place().given().map(|given| given.1), Some(0));
        assert_eq!((limits[0].in_flight(), line.waiting()), (1, 2));
        assert!(wake.unanswered().is_some());
        limits[1].give_back();
        line.serve(&members, now);
        assert_eq!(a.place().given().map(|given| given.1), Some(1));
        assert!(line.leave(&c).is_none());
        assert_eq!(line.waiting(), 0);
        // Served before he could leave: the place is his to give back.
        assert_eq!(line.leave(&b).map(|given| given.1), Some(0));
    }

    #[test]
    fn a_backup_stands_in_for_servers_that_are_down_and_not_for_full_ones() {
        let now = Instant::now();
        let servers = [false, true].map(|backup| UpstreamServer {
            max_conns: NonZeroU32::new(1),
            backup,
            ..UpstreamServer::new(ServerAddr::Ip(
                ([127, 0, 0, 1], 1 + u16::from(backup)).into(),
            ))
        });
        let settings = Arc::new(Upstream::new("a", servers.into()));
        let members = Roster::new(&settings, now).members();
        let (line, wake) = (Line::default(), Wake::new().unwrap());
        let first = line.join(9, Tried::default(), &wake, now + S).unwrap();
        let second = line.join(9, Tried::default(), &wake, now + S).unwrap();
        line.serve(&members, now);
        assert_eq!(first.place().given().map(|given| given.1), Some(0));
        assert!(
            second.place().given().is_none(),
            "the first one is only full"
        );
        members.board.set_admin(0, Standing::Down, now);
        line.serve(&members, now);
        assert_eq!(second.place().given().map(|given| given.1), Some(1));
    }

    #[test]
    fn who_is_late_or_finds_all_servers_down_gets_nothing() {
        let (members, now) = (members(&[1]), Instant::now());
        let line = Line::default();
        let wake = Wake::new().unwrap();
        let late = line.join(9, Tried::default(), &wake, now).unwrap();
        let waits = line.join(9, Tried::default(), &wake, now + 9 * S).unwrap();
        members.board.set_admin(0, Standing::Down, now);
        line.serve(&members, now + S);
        assert!(late.place().given().is_none() && waits.place().given().is_none());
        assert_eq!(members.list[0].limit.as_ref().unwrap().in_flight(), 0);
    }
}
