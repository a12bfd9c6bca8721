//! Shares connections evenly among the cores of a process.
//!
//! A connection wakes one of those that wait on a shared listening socket, and it is always the same
//! one that the kernel asks first (`EPOLLEXCLUSIVE`, and the polls of io_uring): a core that is not
//! busy takes every connection, also those of clients that will keep it busy later. So a core that has
//! accepted one, and has more than another, hands it on: the descriptor is the same in all threads.
//!
//! Nothing is lost on the way. An inbox is a row of words; a connection is in a word or in nobody's
//! hands but the sender's. Who ends closes its words one by one, and takes what it finds.

use std::cell::Cell;
use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::runtime::mailbox::Wake;
use crate::runtime::sys;

/// Connections that a core may have more than another, beside a sixteenth of what that one has. Where
/// there are few connections they may stay where they are.
const SLACK: usize = 2;

/// Others that a core looks at for each connection, so that many cores don't read each other's words
/// all the time.
const LOOKED_AT: usize = 8;

/// Connections that may wait for a core to take them. With so many waiting it is busy, or worse, and
/// the core that has accepted keeps them.
const WAITING_MAX: usize = 1024;

/// Words of an inbox: several may look at once how many wait, and there is always an empty one near.
const INBOX: usize = 2 * WAITING_MAX;

/// An empty word. A descriptor is never it, since 1 is added.
const EMPTY: u64 = 0;

/// A word of a core that has ended.
const CLOSED: u64 = u64::MAX;

/// Whether a core that has `own` connections, the new one among them, should hand it to one that has
/// `other`.
fn tilts(own: usize, other: usize) -> bool {
    own > other.saturating_add(SLACK).saturating_add(other / 16)
}

/// What one core shows the others. Words of its own cache lines.
#[derive(Debug)]
#[repr(align(128))]
struct Desk {
    /// Open connections, and those on their way to it.
    load: AtomicUsize,
    /// The configuration that it serves.
    epoch: AtomicU64,
    /// It takes nothing more.
    closed: AtomicBool,
    /// Connections in the inbox, counted when they are in.
    came: AtomicUsize,
    /// Where the next sender begins to look for an empty word.
    next: AtomicUsize,
    inbox: Box<[AtomicU64]>,
    wake: Arc<Wake>,
}

/// The cores of a process, as they see each other.
#[derive(Debug)]
pub struct Spread {
    desks: Vec<Desk>,
    /// Most connections of a core.
    connections_max: usize,
}

impl Spread {
    /// For cores that are woken by these, each with at most so many connections.
    pub fn new(wakes: impl Iterator<Item = Arc<Wake>>, connections_max: usize) -> Arc<Self> {
        let desk = |wake| Desk {
            load: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            came: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            inbox: (0..INBOX).map(|_| AtomicU64::new(EMPTY)).collect(),
            wake,
        };
        Arc::new(Self {
            desks: wakes.map(desk).collect(),
            connections_max,
        })
    }

    /// Puts a connection into an inbox, if there is room and the core takes something.
    fn put(&self, to: usize, word: u64) -> bool {
        let desk = &self.desks[to];
        // Before it is in, so that the core never counts below nothing.
        desk.load.fetch_add(1, Ordering::Relaxed);
        let first = desk.next.fetch_add(1, Ordering::Relaxed);
        // Words are emptied in about this order: a full one here means that most are.
        let mut tries = (0..LOOKED_AT).map(|nth| &desk.inbox[first.wrapping_add(nth) % INBOX]);
        let put = tries.any(|it| {
            let put = it.compare_exchange(EMPTY, word, Ordering::AcqRel, Ordering::Relaxed);
            put.is_ok()
        });
        if !put {
            desk.load.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        desk.came.fetch_add(1, Ordering::AcqRel);
        desk.wake.wake();
        true
    }

    /// Gives what waits for a core that doesn't turn to the others, which have the same sockets; nothing
    /// more is handed to it. Called by the thread that watches the cores.
    pub fn abandon(&self, core: usize) {
        let Some(desk) = self.desks.get(core) else {
            return;
        };
        desk.closed.store(true, Ordering::Release);
        for word in &desk.inbox {
            let word = word.swap(CLOSED, Ordering::AcqRel);
            if matches!(word, EMPTY | CLOSED) {
                continue;
            }
            let others = (0..self.desks.len()).filter(|it| *it != core);
            let open = |it: &usize| !self.desks[*it].closed.load(Ordering::Relaxed);
            let least = |it: &usize| self.desks[*it].load.load(Ordering::Relaxed);
            let to = others.filter(open).min_by_key(least);
            if !to.is_some_and(|to| self.put(to, word)) {
                // Nobody is left to serve it: its client sees the end.
                drop(opened(word));
            }
            desk.load.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The place of a core. When it is dropped the core takes nothing more.
    ///
    /// # Panics
    /// If there is no such core.
    pub fn seat(self: &Arc<Self>, core: usize) -> Seat {
        assert!(core < self.desks.len(), "cores are counted at the start");
        Seat {
            spread: Arc::clone(self),
            core,
            looked: Cell::new(0),
            next_word: Cell::new(0),
        }
    }
}

/// A core at its place. One for each, used by the core's thread alone.
#[derive(Debug)]
pub struct Seat {
    spread: Arc<Spread>,
    core: usize,
    /// How many of the others were looked at last.
    looked: Cell<usize>,
    /// Where in its inbox it looks first.
    next_word: Cell<usize>,
}

/// A connection that another core has accepted.
#[derive(Debug)]
pub struct Handed {
    /// The number of its listening socket.
    pub listening: u32,
    /// The connection.
    pub socket: OwnedFd,
}

impl Seat {
    fn desk(&self) -> &Desk {
        &self.spread.desks[self.core]
    }

    /// A connection is open.
    pub fn enter(&self) {
        self.desk().load.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection has closed.
    pub fn leave(&self) {
        self.desk().load.fetch_sub(1, Ordering::Relaxed);
    }

    /// The core serves this configuration from now on.
    pub fn serves(&self, epoch: u64) {
        self.desk().epoch.store(epoch, Ordering::Release);
    }

    /// The core that should serve a connection which this one has accepted and counted; `None` for
    /// this one.
    pub fn better(&self) -> Option<usize> {
        let desks = &self.spread.desks;
        let own = self.desk();
        let (load, epoch) = (
            own.load.load(Ordering::Relaxed),
            own.epoch.load(Ordering::Acquire),
        );
        let others = desks.len().saturating_sub(1);
        let skip = self.looked.get();
        if others > LOOKED_AT {
            // Others each time.
            self.looked.set((skip + LOOKED_AT) % others);
        }
        let look = |nth: usize| (self.core + 1 + (skip + nth) % others) % desks.len();
        let fits = |core: &usize| {
            let desk = &desks[*core];
            let other = desk.load.load(Ordering::Relaxed);
            tilts(load, other)
                && other < self.spread.connections_max
                && desk.came.load(Ordering::Relaxed) < WAITING_MAX
                && desk.epoch.load(Ordering::Acquire) == epoch
                && !desk.closed.load(Ordering::Relaxed)
        };
        (0..others.min(LOOKED_AT))
            .map(look)
            .filter(fits)
            .min_by_key(|core| desks[*core].load.load(Ordering::Relaxed))
    }

    /// Hands a connection to a core.
    ///
    /// # Errors
    /// Gives it back when that core has ended, or too many wait for it.
    pub fn hand(&self, to: usize, handed: Handed) -> Result<(), Handed> {
        let Handed { listening, socket } = handed;
        let number = socket.into_raw_fd();
        let word = u64::from(listening) << 32 | (u64::from(number.unsigned_abs()) + 1);
        if self.spread.put(to, word) {
            Ok(())
        } else {
            Err(opened(word))
        }
    }

    /// Takes what has come, each with `take`, which counts it as open before this does no more. Costs
    /// a look at a word where nothing has.
    pub fn take_handed(&self, mut take: impl FnMut(Handed)) {
        let desk = self.desk();
        if desk.came.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut left = desk.came.swap(0, Ordering::AcqRel);
        let first = self.next_word.get();
        for nth in 0..INBOX {
            if left == 0 {
                return;
            }
            let place = first.wrapping_add(nth) % INBOX;
            let word = &desk.inbox[place];
            // About where the next one will be.
            self.next_word.set(place);
            if !matches!(word.load(Ordering::Relaxed), EMPTY | CLOSED) {
                let word = word.swap(EMPTY, Ordering::AcqRel);
                left -= 1;
                self.taken(word, &mut take);
            }
        }
    }

    /// Takes nothing more from now on; what has come is taken with `take`.
    pub fn close(&self, mut take: impl FnMut(Handed)) {
        let desk = self.desk();
        if desk.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        for word in &desk.inbox {
            let word = word.swap(CLOSED, Ordering::AcqRel);
            self.taken(word, &mut take);
        }
        desk.came.store(0, Ordering::Relaxed);
    }

    fn taken(&self, word: u64, take: &mut impl FnMut(Handed)) {
        if matches!(word, EMPTY | CLOSED) {
            return;
        }
        take(opened(word));
        // It was counted on its way, and is counted as open now.
        self.leave();
    }
}

/// The connection in a word, which was taken out of its place.
fn opened(word: u64) -> Handed {
    Handed {
        listening: (word >> 32) as u32,
        socket: sys::adopt((word as u32 - 1) as i32),
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.close(drop);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn spread(cores: usize) -> Vec<Seat> {
        let wakes = (0..cores).map(|_| Wake::new().unwrap());
        let spread = Spread::new(wakes, 10_000);
        (0..cores).map(|core| spread.seat(core)).collect()
    }

    fn handed(listening: u32) -> Handed {
        let socket = UnixStream::pair().unwrap().0.into();
        Handed { listening, socket }
    }

    /// What a core accepts, one after the other: how many each core has in the end.
    fn accept_all(seats: &[Seat], by: usize, count: usize) -> Vec<usize> {
        for _ in 0..count {
            seats[by].enter();
            if let Some(to) = seats[by].better() {
                seats[by].hand(to, handed(7)).unwrap();
                seats[by].leave();
                seats[to].take_handed(|it| {
                    assert_eq!(it.listening, 7);
                    seats[to].enter();
                });
            }
        }
        let load = |seat: &Seat| seat.desk().load.load(Ordering::Relaxed);
        seats.iter().map(load).collect()
    }

    #[test]
    fn one_core_accepts_and_all_have_the_same() {
        for (cores, count) in [
            (2, 64),
            (2, 1024),
            (4, 64),
            (3, 300),
            (16, 1024),
            (64, 6400),
        ] {
            let seats = spread(cores);
            let loads = accept_all(&seats, 1, count);
            assert_eq!(loads.iter().sum::<usize>(), count);
            let (most, least) = (loads.iter().max().unwrap(), loads.iter().min().unwrap());
            assert!(
                *most as f64 <= *least as f64 * 1.3,
                "{cores}, {count}: {loads:?}"
            );
        }
    }

    #[test]
    fn a_few_connections_stay_where_they_are() {
        let seats = spread(2);
        assert_eq!(accept_all(&seats, 0, 2), [2, 0]);
        assert!(tilts(3, 0) && !tilts(33, 30) && tilts(34, 30) && !tilts(0, usize::MAX));
    }

    #[test]
    fn nothing_goes_to_one_that_is_full_closed_stalled_or_of_another_configuration() {
        let seats = spread(2);
        (0..10).for_each(|_| seats[0].enter());
        assert_eq!(seats[0].better(), Some(1));
        seats[1].serves(2);
        assert_eq!(seats[0].better(), None);
        seats[0].serves(2);
        assert_eq!(seats[0].better(), Some(1));
        (0..20_000).for_each(|_| seats[0].enter());
        (0..10_000).for_each(|_| seats[1].enter());
        assert_eq!(seats[0].better(), None, "it is full");
        (0..10_000).for_each(|_| seats[1].leave());
        let mut given = 0;
        while seats[0].better().is_some() && seats[0].hand(1, handed(given)).is_ok() {
            given += 1;
        }
        assert_eq!(given as usize, WAITING_MAX, "nobody takes them");
        let mut came = Vec::new();
        seats[1].close(|it| came.push(it.listening));
        came.sort_unstable();
        assert_eq!(came, (0..given).collect::<Vec<_>>(), "each was taken");
        assert_eq!(seats[0].better(), None, "it has closed");
        let back = seats[0].hand(1, handed(9)).unwrap_err();
        assert_eq!(back.listening, 9);
    }

    #[test]
    fn what_waits_for_one_that_stalls_goes_to_the_others() {
        let seats = spread(3);
        (0..10).for_each(|_| seats[2].enter());
        for id in 0..5 {
            seats[2].hand(1, handed(id)).unwrap();
        }
        seats[2].spread.abandon(1);
        let mut came = Vec::new();
        seats[0].take_handed(|it| came.push(it.listening));
        assert_eq!(came, [0, 1, 2, 3, 4]);
        seats[1].take_handed(|_| unreachable!("it takes nothing more"));
        let loads: Vec<usize> = seats
            .iter()
            .map(|seat| seat.desk().load.load(Ordering::Relaxed))
            .collect();
        assert_eq!(loads, [0, 0, 10], "who takes one counts it");
    }

    #[test]
    fn nothing_is_lost_between_threads_when_one_ends() {
        const EACH: u32 = 5000;
        let mut seats = spread(3);
        let taker = seats.remove(0);
        let kept = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = seats
            .into_iter()
            .map(|seat| {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || {
                    for id in 0..EACH {
                        if seat.hand(0, handed(id)).is_err() {
                            kept.fetch_add(1, Ordering::Relaxed);
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut taken = 0;
        while taken < EACH as usize / 2 {
            taker.take_handed(|_| taken += 1);
        }
        taker.close(|_| taken += 1);
        threads.into_iter().for_each(|it| it.join().unwrap());
        assert_eq!(taken + kept.load(Ordering::Relaxed), 2 * EACH as usize);
    }
}
