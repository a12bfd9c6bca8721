//! How long the turns of a core take, and why the long ones do.
//!
//! The lengths cost nothing: the core reads the clock at both ends of a turn anyway. The reason takes a
//! system call at the beginning, before anybody knows that the turn will be long. So it is asked for only
//! while something like that is near: for a moment after a stall, and while files come from a disk.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Core;
use crate::runtime::engine::{Engine, Event};
use crate::runtime::sys;

/// A turn that takes longer than this is a stall: all connections of the core have waited for it.
pub const STALL: Duration = Duration::from_millis(2);

/// A stall that people notice.
pub const LONG_STALL: Duration = Duration::from_millis(15);

/// For how long turns are watched closely.
const WATCHED_FOR: Duration = Duration::from_millis(100);

/// How long the turns of a core have taken, without the time in which its engine waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// Those that took longer than [`STALL`].
    pub stalls: u64,
    /// Those of them that took longer than [`LONG_STALL`].
    pub long: u64,
    /// Stalls in which the thread used the processor for most of the time: it worked, or a hypervisor let
    /// another machine work and didn't tell.
    pub worked: u64,
    /// Stalls in which a system call waited: for a disk, a lock or memory.
    pub waited: u64,
    /// Stalls in which the thread was ready to run, and others ran: another thread, or as far as the
    /// hypervisor tells it, another machine.
    pub preempted: u64,
    /// The longest turn.
    pub longest: Duration,
}

/// What a thread has used of its processor, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ThreadUse {
    /// Processor time.
    pub(crate) time: Duration,
    /// How often it gave the processor away, because it waited for something.
    pub(crate) waits: u64,
}

impl Turns {
    /// A turn has taken so long; `used` is what it used of the processor, where that is known.
    fn count(&mut self, length: Duration, used: impl FnOnce() -> Option<ThreadUse>) {
        self.longest = self.longest.max(length);
        if length <= STALL {
            return;
        }
        self.stalls += 1;
        self.long += u64::from(length > LONG_STALL);
        match used() {
            None => {}
            Some(used) if used.time >= length / 2 => self.worked += 1,
            Some(used) if used.waits > 0 => self.waited += 1,
            Some(_) => self.preempted += 1,
        }
    }
}

/// What a core keeps for it.
pub(super) struct TurnWatch {
    /// Virtual time takes no processor.
    is_virtual: bool,
    turns: Cell<Turns>,
    /// No turn up to this length changes anything. At first none does: the first turn is as long as the
    /// start took.
    notable_from: Cell<Duration>,
    /// Until when turns are watched closely.
    until: Cell<Instant>,
    /// What the thread had used when the turn began, if it is watched.
    before: Cell<Option<ThreadUse>>,
}

impl TurnWatch {
    pub(super) fn new(engine: &Engine) -> Self {
        Self {
            is_virtual: matches!(engine, Engine::Sim(_)),
            turns: Cell::default(),
            notable_from: Cell::new(Duration::MAX),
            until: Cell::new(engine.now()),
            before: Cell::new(None),
        }
    }
}

impl Core {
    /// How long the turns have taken so far.
    pub fn turns(&self) -> Turns {
        self.0.turns.turns.get()
    }

    /// Turns are likely to be long from now on, for example because a disk is asked: the reasons are
    /// looked for.
    pub fn watch_turns(&self) {
        if !self.0.turns.is_virtual {
            self.0.turns.until.set(self.now() + WATCHED_FOR);
        }
    }

    /// Gives the engine what tasks have asked for, and waits for at most `wait`. Says whether another
    /// thread has woken this one.
    pub(super) fn ask_engine(
        &self,
        wait: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> Result<bool, Errno> {
        let mut engine = self.0.engine.borrow_mut();
        let mut slots = self.0.slots.borrow_mut();
        let buffers = &self.0.buffers;
        let mut began = engine.now();
        self.count(began.saturating_duration_since(self.now()));
        let at_once = Some(Duration::ZERO);
        let (mut woken, mut done) = (false, false);
        // In one call can't be told apart how long it took to submit, and for how long there was nothing.
        if self.0.turns.before.get().is_some() && wait != at_once {
            engine.turn(at_once, &mut slots, buffers, events)?;
            let now = engine.now();
            self.count(now.saturating_duration_since(began));
            began = now;
            woken = engine.take_woken();
            done = woken || !events.is_empty();
        }
        let heartbeat = self.0.heartbeat.get();
        if !done {
            if let Some(heartbeat) = heartbeat {
                heartbeat.waits();
            }
            engine.turn(wait, &mut slots, buffers, events)?;
            let now = engine.now();
            if wait == at_once {
                self.count(now.saturating_duration_since(began));
            }
            began = now;
            woken = engine.take_woken();
        }
        if let Some(heartbeat) = heartbeat {
            heartbeat.runs(began);
        }
        self.turn_begins(began);
        Ok(woken)
    }

    fn turn_begins(&self, now: Instant) {
        self.0.now.set(now);
        let watch = &self.0.turns;
        if watch.notable_from.get() == Duration::MAX {
            watch.notable_from.set(Duration::ZERO);
        }
        if now < watch.until.get() {
            watch.before.set(sys::thread_use());
        } else if watch.before.get().is_some() {
            watch.before.set(None);
        }
    }

    /// A turn, or the part of one that the engine had, has taken so long.
    fn count(&self, length: Duration) {
        if length > self.0.turns.notable_from.get() {
            self.count_notable(length);
        }
    }

    #[cold]
    fn count_notable(&self, length: Duration) {
        let watch = &self.0.turns;
        let mut turns = self.turns();
        turns.count(length, || {
            let before = watch.before.get()?;
            let now = sys::thread_use()?;
            Some(ThreadUse {
                time: now.time.saturating_sub(before.time),
                waits: now.waits.saturating_sub(before.waits),
            })
        });
        watch.turns.set(turns);
        watch.notable_from.set(turns.longest.min(STALL));
        if length > STALL {
            self.watch_turns();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime;

    #[test]
    fn a_turn_that_waits_and_one_that_works_are_told_apart() {
        let length = 2 * STALL;
        runtime::on_each_engine(None, Duration::from_secs(10), |core| {
            let inner = core.clone();
            core.spawn(async move {
                inner.watch_turns();
                // From the next turn on.
                inner.yield_turn().await;
                inner.yield_turn().await;
                let before = inner.turns();
                std::thread::park_timeout(length);
                inner.yield_turn().await;
                let waited = inner.turns();
                let begin = Instant::now();
                while begin.elapsed() < length {
                    std::hint::spin_loop();
                }
                inner.yield_turn().await;
                let worked = inner.turns();
                assert!(waited.stalls > before.stalls && worked.stalls > waited.stalls);
                assert!(waited.waited > before.waited, "{before:?} {waited:?}");
                assert!(worked.longest >= length);
                // Unless another thread got the processor.
                let known = worked.worked + worked.preempted;
                assert!(known > waited.worked + waited.preempted, "{worked:?}");
            });
        });
    }

    #[test]
    fn a_stall_is_longer_than_the_bound_and_has_a_reason_where_that_is_known() {
        let mut turns = Turns::default();
        let ms = Duration::from_millis;
        let used = |time, waits| move || Some(ThreadUse { time, waits });
        turns.count(ms(1), || panic!("nobody asks"));
        turns.count(STALL, || panic!("nobody asks"));
        turns.count(ms(7), used(ms(1), 3));
        turns.count(ms(3), used(ms(2), 3));
        turns.count(ms(16), used(ms(1), 0));
        turns.count(LONG_STALL, || None);
        let expected = Turns {
            stalls: 4,
            long: 1,
            worked: 1,
            waited: 1,
            preempted: 1,
            longest: ms(16),
        };
        assert_eq!(turns, expected);
    }
}
