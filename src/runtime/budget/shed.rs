//! Decides what is given up when memory runs short, and in which order: caches, idle connections, new
//! connections, then what costs most.
//!
//! It is pure: told how much is used of how much room, it says what to do now. It knows no connection,
//! no cache and no clock.

use std::time::{Duration, Instant};

/// How short memory is. Each level does what those below it do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// There is enough.
    #[default]
    Enough,
    /// What is only kept for speed goes: cached files, free buffers, idle connections to backends.
    Caches,
    /// Idle connections of clients close, those that have idled longest first.
    Idle,
    /// Nothing is accepted, for a second at a time.
    Accept,
    /// Requests that would need more memory are refused, and the connections that hold most are cut.
    Cut,
}

/// Where each level begins, in thousandths of the room.
const BEGINS: [(Level, u64); 4] = [
    (Level::Caches, 800),
    (Level::Idle, 850),
    (Level::Accept, 900),
    (Level::Cut, 950),
];

/// How far below its beginning a level ends, in thousandths of the room.
const HYSTERESIS: u64 = 30;

/// For how long nothing is accepted at a time. Then it is, for a moment: longer, and whoever can fill the
/// memory could lock out everybody else. If many wait, that leads to the last level, and room is made
/// for them; if nobody does, nothing is lost.
const PAUSE: Duration = Duration::from_secs(1);

/// The same while connections are being cut: who fills the memory goes on filling it.
const PAUSE_SHORT: Duration = Duration::from_millis(50);

/// For how long a cut has that consequence.
const CUT_LATELY: Duration = Duration::from_secs(10);

/// How often it is asked while memory is short.
const STEP: Duration = Duration::from_millis(20);

/// How often caches are emptied and memory is given back to the kernel while it stays short. Oftener,
/// and the caches would be of no use at all.
const AGAIN: Duration = Duration::from_secs(1);

impl Level {
    /// Its name in status and log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enough => "enough",
            Self::Caches => "caches are emptied",
            Self::Idle => "idle connections close",
            Self::Accept => "accepting pauses",
            Self::Cut => "the largest are cut",
        }
    }

    /// The level of this name; [`Level::Enough`] for any other one.
    pub fn named(name: &str) -> Self {
        let found = BEGINS.iter().find(|(level, _)| level.name() == name);
        found.map_or(Self::Enough, |(level, _)| *level)
    }

    /// The bytes of `room` that this level begins at.
    pub fn begins(self, room: u64) -> u64 {
        let found = BEGINS.iter().find(|(level, _)| *level == self);
        found.map_or(0, |(_, per_mille)| part(room, *per_mille))
    }

    /// Below so many bytes of `room` it ends.
    fn ends(self, room: u64) -> u64 {
        self.begins(room).saturating_sub(part(room, HYSTERESIS))
    }

    /// The highest level that has begun.
    fn at(used: u64, room: u64) -> Self {
        let begun = |(level, _): &&(Self, u64)| used >= level.begins(room);
        let last = BEGINS.iter().rev().find(begun);
        last.map_or(Self::Enough, |(level, _)| *level)
    }
}

fn part(room: u64, per_mille: u64) -> u64 {
    (u128::from(room) * u128::from(per_mille) / 1000) as u64
}

/// What is used of what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Bytes that the process uses beyond its base.
    pub used: u64,
    /// Bytes that it may use beyond its base.
    pub room: u64,
    /// Bytes that the connections of this core hold.
    pub own: u64,
}

/// What to do now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// How short memory is.
    pub level: Level,
    /// Let go of what is kept for speed.
    pub empty_caches: bool,
    /// Close a part of the idle connections.
    pub close_idle: bool,
    /// Accept nothing.
    pub pause_accept: bool,
    /// Cut connections that hold so many bytes together, the largest first.
    pub cut_bytes: u64,
    /// Give free memory back to the kernel, after all of the above.
    pub trim: bool,
}

/// The decider of one core.
#[derive(Debug, Default)]
pub struct Shedder {
    level: Level,
    /// Since when nothing is accepted.
    paused: Option<Instant>,
    /// When connections were cut last.
    cut: Option<Instant>,
    /// When caches were emptied last.
    emptied: Option<Instant>,
    /// When memory was given back last.
    trimmed: Option<Instant>,
    /// When there was enough again; `None` when all has been given back since.
    ended: Option<Instant>,
}

impl Shedder {
    /// How short memory was at last.
    pub fn level(&self) -> Level {
        self.level
    }

    /// In how long it is to be asked again at the latest, when nothing grows; `None` for no need.
    pub fn again(&self) -> Option<Duration> {
        match (self.level, self.ended) {
            (Level::Enough, None) => None,
            (Level::Enough, Some(_)) => Some(AGAIN),
            _ => Some(STEP),
        }
    }

    /// What to do at `now`, which is never before that of the last call.
    pub fn next(&mut self, reading: Reading, now: Instant) -> Orders {
        let Reading { used, room, own } = reading;
        let before = self.level;
        let begun = Level::at(used, room);
        // A level that has begun goes on until it ends; what lies between is the next one below.
        let lasts = |(level, _): &&(Level, u64)| *level <= before && used >= level.ends(room);
        let last = BEGINS.iter().rev().find(lasts);
        self.level = last.map_or(begun, |(level, _)| begun.max(*level));
        let mut orders = Orders {
            level: self.level,
            ..Orders::default()
        };
        let within =
            |last: Option<Instant>, time| last.is_some_and(|at| now.duration_since(at) < time);
        let due = |last| !within(last, AGAIN);
        if self.level == Level::Enough {
            (self.paused, self.emptied) = (None, None);
            if before != Level::Enough {
                self.ended = Some(now);
            } else if self.ended.is_some() && due(self.ended) {
                // What was freed in the meantime goes back, too.
                self.ended = None;
                orders.trim = true;
            }
            return orders;
        }
        self.ended = None;
        if due(self.emptied) {
            self.emptied = Some(now);
            orders.empty_caches = true;
        }
        if due(self.trimmed) {
            self.trimmed = Some(now);
            orders.trim = true;
        }
        orders.close_idle = self.level >= Level::Idle;
        orders.pause_accept = self.level >= Level::Accept;
        if self.level == Level::Accept {
            let pause = match within(self.cut, CUT_LATELY) {
                true => PAUSE_SHORT,
                false => PAUSE,
            };
            let since = *self.paused.get_or_insert(now);
            if now.duration_since(since) >= pause {
                self.paused = None;
                orders.pause_accept = false;
            }
        } else {
            self.paused = None;
        }
        if self.level < Level::Cut {
            return orders;
        }
        self.cut = Some(now);
        // Down to where accepting goes on.
        let excess = used.saturating_sub(Level::Accept.ends(room));
        // Each core gives in proportion to what it holds.
        let own = u128::from(own.min(used));
        orders.cut_bytes = (u128::from(excess) * own).div_ceil(u128::from(used.max(1))) as u64;
        orders
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn reading(used: u64) -> Reading {
        Reading {
            used,
            room: 1000,
            own: used,
        }
    }

    #[test]
    fn levels_come_in_their_order_and_end_below_where_they_began() {
        let (mut shedder, now) = (Shedder::default(), Instant::now());
        for (used, level) in [
            (0, Level::Enough),
            (799, Level::Enough),
            (800, Level::Caches),
            (770, Level::Caches),
            (769, Level::Enough),
            (850, Level::Idle),
            (820, Level::Idle),
            (819, Level::Caches),
            (900, Level::Accept),
            (870, Level::Accept),
            (869, Level::Idle),
            (950, Level::Cut),
            (920, Level::Cut),
            (919, Level::Accept),
            (2000, Level::Cut),
            (830, Level::Idle),
            (0, Level::Enough),
        ] {
            let orders = shedder.next(reading(used), now);
            assert_eq!(orders.level, level, "{used}");
            assert_eq!(shedder.level(), level);
            assert_eq!(orders.close_idle, level >= Level::Idle, "{used}");
            assert_eq!(orders.pause_accept, level >= Level::Accept, "{used}");
            assert_eq!(orders.cut_bytes > 0, level == Level::Cut, "{used}");
        }
    }

    #[test]
    fn caches_are_emptied_and_memory_is_given_back_once_a_second() {
        let (mut shedder, now) = (Shedder::default(), Instant::now());
        for (after, used, caches, trim, again) in [
            (0, 1, false, false, None),
            (1, 810, true, true, Some(STEP)),
            (20, 810, false, false, Some(STEP)),
            (1000, 810, false, false, Some(STEP)),
            (1001, 810, true, true, Some(STEP)),
            // It ends, and what is freed within another second goes back, too.
            (1500, 1, false, false, Some(AGAIN)),
            (2499, 1, false, false, Some(AGAIN)),
            (2500, 1, false, true, None),
            (2600, 1, false, false, None),
            // Caches that are filled again are emptied at once when it begins again.
            (2700, 810, true, true, Some(STEP)),
        ] {
            let orders = shedder.next(reading(used), now + after * MS);
            let done = (orders.empty_caches, orders.trim, shedder.again());
            assert_eq!(done, (caches, trim, again), "{after} ms");
        }
    }

    #[test]
    fn what_is_cut_is_the_part_of_this_core_and_lets_accepting_go_on() {
        let now = Instant::now();
        for (used, own, cut) in [
            (960, 960, 90),
            (960, 480, 45),
            (960, 0, 0),
            (960, 1, 1),
            (2000, 2000, 1130),
            (960, 5000, 90),
        ] {
            let read = Reading {
                used,
                room: 1000,
                own,
            };
            let orders = Shedder::default().next(read, now);
            assert_eq!(orders.cut_bytes, cut, "{used} {own}");
        }
        let mut shedder = Shedder::default();
        assert!(shedder.next(reading(960), now).pause_accept);
        assert!(!shedder.next(reading(869), now).pause_accept);
    }

    #[test]
    fn nobody_is_locked_out_for_longer_than_a_second() {
        let (mut shedder, now) = (Shedder::default(), Instant::now());
        for (after, used, paused) in [
            (0, 905, true),
            (999, 905, true),
            (1000, 905, false),
            (1020, 905, true),
            (2019, 905, true),
            (2020, 905, false),
            // Many came, and some of those that were there are cut.
            (2040, 960, true),
            (2060, 860, false),
            (2080, 905, true),
            (2129, 905, true),
            (2130, 905, false),
            (2150, 905, true),
            // Long after that it is as before.
            (12_050, 905, false),
            (12_070, 905, true),
            (12_200, 905, true),
        ] {
            let orders = shedder.next(reading(used), now + after * MS);
            assert_eq!(orders.pause_accept, paused, "{after} ms");
        }
    }

    #[test]
    fn no_room_at_all_is_the_last_level_and_divides_by_nothing() {
        let nothing = Reading::default();
        let orders = Shedder::default().next(nothing, Instant::now());
        assert_eq!((orders.level, orders.cut_bytes), (Level::Cut, 0));
        let full = Reading {
            used: u64::MAX,
            room: u64::MAX,
            own: u64::MAX,
        };
        assert!(Shedder::default().next(full, Instant::now()).cut_bytes > 0);
    }

    proptest! {
        #[test]
        fn levels_follow_the_use(steps in prop::collection::vec((0u64..1200, 0u64..400), 1..200)) {
            let mut shedder = Shedder::default();
            let mut now = Instant::now();
            for (used, ms) in steps {
                now += Duration::from_millis(ms);
                let before = shedder.level();
                let orders = shedder.next(reading(used), now);
                // Never less than what has begun, never more than what was and has not ended.
                prop_assert!(orders.level >= Level::at(used, 1000));
                let most = Level::at((used + HYSTERESIS).min(2000), 1000).min(before);
                prop_assert!(orders.level <= Level::at(used, 1000).max(most));
                // What is cut is never more than lets accepting go on.
                prop_assert!(used - orders.cut_bytes >= used.min(Level::Accept.ends(1000)));
                prop_assert_eq!(orders.cut_bytes > 0, orders.level == Level::Cut);
                prop_assert!(!orders.pause_accept || orders.level >= Level::Accept);
                prop_assert_eq!(orders.close_idle, orders.level >= Level::Idle);
                // Who is asked about the same again says the same level.
                let again = shedder.next(reading(used), now);
                prop_assert_eq!(again.level, orders.level);
                prop_assert!(!again.empty_caches && !again.trim);
            }
        }
    }
}
