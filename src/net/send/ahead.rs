//! Decides how a file that isn't in memory is read ahead of its client.
//!
//! The kernel's own read-ahead does the work, because nothing else is as fast: it fills the page cache with
//! large folios by requests of several MiB, where posix_fadvise(2) makes it take single pages and small
//! requests, for half of the throughput and three times the processor time. It belongs to the open file, so
//! all who send the file share it, and it asks for the next window as soon as somebody looks at the first
//! page of the one before it: while that is still to be sent, and mostly still to come from the disk.
//!
//! What it lacks is known here. It begins with few pages, so the first window is asked for by name. Its
//! windows are small on many machines (128 KiB), so who had to wait says how much he wants: the reach, which
//! grows while the client is faster than the disk, and shrinks when the client is the slower one. And where
//! it doesn't read ahead at all, or not to the end of a piece, that is asked for by name.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Bytes that are known to be in memory when their first and last page are: half of a window.
const PIECE: u64 = 256 << 10;

/// The same while the file comes from a disk: what has come can go while the rest is on its way.
const PIECE_COLD: u64 = 128 << 10;

/// What is asked for by name.
const ASKED: u64 = 512 << 10;

/// Bounds of the reach. The upper one is more than most devices take in one request.
const REACH: std::ops::RangeInclusive<u64> = 256 << 10..=4 << 20;

/// For so long after a wait the kernel is told the reach; then its read-ahead is under way.
const TOLD_FOR: u64 = 2 << 20;

/// A file of which so much was in memory doesn't come from a disk any more.
const WARM_AFTER: u64 = 16 << 20;

/// No more than this is taken to be in memory ahead of a client, who may take it slowly.
const KNOWN_MAX: u64 = 2 * PIECE;

/// A transfer that has come so far and found everything in memory takes the rest to be there, too, and looks
/// at one page of [`KNOWN_MAX`]. Each look costs as much as sending 5 KiB.
const HOT_AFTER: u64 = 4 << 20;

/// The reading of one file for one client. Offsets only grow.
#[derive(Debug)]
pub(super) struct ReadAhead {
    start: u64,
    missed: Option<Missed>,
}

/// What the last miss told.
#[derive(Clone, Copy, Debug)]
struct Missed {
    at: u64,
    reach: u64,
    /// The client has not taken all that there was since then.
    client_slower: bool,
}

/// A part of the file that the disk is to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) offset: u64,
    /// At least 1.
    pub(super) len: u32,
}

impl ReadAhead {
    /// The reading from `start` on.
    pub(super) fn new(start: u64) -> Self {
        Self {
            start,
            missed: None,
        }
    }

    /// Whether all that was looked at was in memory, for long enough that the page at `offset` isn't looked at.
    pub(super) fn is_hot(&self, offset: u64) -> bool {
        self.missed.is_none() && offset - self.start >= HOT_AFTER
    }

    /// The ends of the pieces that are looked at before the send goes on at `offset`, at least one. `end`
    /// is behind `offset`.
    pub(super) fn pieces(&self, offset: u64, end: u64) -> impl Iterator<Item = u64> + use<> {
        let size = match self.missed {
            Some(missed) if offset < missed.at.saturating_add(WARM_AFTER) => PIECE_COLD,
            None if self.is_hot(offset) => KNOWN_MAX,
            _ => PIECE,
        };
        let first = offset.saturating_add(size).min(end);
        let second = (first.saturating_add(size))
            .min(offset.saturating_add(KNOWN_MAX))
            .min(end);
        [Some(first), (second > first).then_some(second)]
            .into_iter()
            .flatten()
    }

    /// How much of what begins at `offset` the kernel is told to be wanted; 0 to tell it nothing.
    pub(super) fn reach(&self, offset: u64) -> u64 {
        match self.missed {
            Some(missed) if offset < missed.at.saturating_add(TOLD_FOR) => missed.reach,
            _ => 0,
        }
    }

    /// The client doesn't take more now.
    pub(super) fn client_waits(&mut self) {
        if let Some(missed) = &mut self.missed {
            missed.client_slower = true;
        }
    }

    /// The send is at `offset`, and the page at `missing`, in the first piece from there on, isn't in memory.
    /// Says what the disk is to be asked for before that page is waited for.
    pub(super) fn missed(&mut self, offset: u64, missing: u64, end: u64) -> Option<Ask> {
        let before = self.missed;
        let reach = match before {
            None => ASKED,
            Some(before) if before.client_slower => before.reach / 2,
            Some(before) => before.reach * 2,
        };
        self.missed = Some(Missed {
            at: missing,
            reach: reach.clamp(*REACH.start(), *REACH.end()),
            client_slower: false,
        });
        // A second miss this near says that nobody reads ahead.
        let near = |before: Missed| missing < before.at.saturating_add(PIECE_COLD + PIECE_COLD / 2);
        let len = if before.is_none_or(near) {
            (end - offset).min(ASKED)
        } else if missing > offset {
            // The front of a piece is there and its end isn't: nothing tells of what lies between.
            missing - offset + 1
        } else {
            return None;
        };
        let len = len as u32;
        Some(Ask { offset, len })
    }
}

/// For so long what was seen in memory is taken to be there still. What was read within it is the last that
/// the kernel gives up, and many transfers of one file look at its pages only once.
const WARM_FOR: Duration = Duration::from_millis(20);

/// What of an open file has just been seen in memory, by whoever sends it.
#[derive(Clone, Debug, Default)]
pub struct Warmth(Rc<Cell<Option<Warm>>>);

#[derive(Clone, Copy, Debug)]
struct Warm {
    from: u64,
    to: u64,
    /// When the first of it was seen.
    at: Instant,
}

impl Warmth {
    fn fresh(&self, now: Instant) -> Option<Warm> {
        (self.0.get()).filter(|warm| now.saturating_duration_since(warm.at) < WARM_FOR)
    }

    /// Up to where the file needn't be looked at from `offset` on.
    pub(super) fn known_to(&self, offset: u64, now: Instant) -> Option<u64> {
        let warm = self.fresh(now)?;
        (warm.from..warm.to)
            .contains(&offset)
            .then(|| warm.to.min(offset.saturating_add(KNOWN_MAX)))
    }

    /// Between these two the file was seen in memory.
    pub(super) fn saw(&self, from: u64, to: u64, now: Instant) {
        let seen = match self.fresh(now) {
            Some(warm) if (warm.from..=warm.to).contains(&from) => Warm {
                to: warm.to.max(to),
                ..warm
            },
            _ => Warm { from, to, at: now },
        };
        self.0.set(Some(seen));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn ends(ahead: &ReadAhead, offset: u64, end: u64) -> Vec<u64> {
        ahead.pieces(offset, end).collect()
    }

    #[test]
    fn a_file_in_memory_is_looked_at_in_large_pieces_and_the_kernel_told_nothing() {
        let ahead = ReadAhead::new(0);
        assert_eq!(ends(&ahead, 0, 1), [1]);
        assert_eq!(ends(&ahead, 7, 7 + PIECE), [7 + PIECE]);
        assert_eq!(ends(&ahead, 0, 9 * PIECE), [PIECE, 2 * PIECE]);
        assert_eq!(ahead.reach(0), 0);
    }

    #[test]
    fn who_has_found_much_in_memory_looks_at_little_until_something_is_missing() {
        let mut ahead = ReadAhead::new(MIB);
        assert!(!ahead.is_hot(MIB + HOT_AFTER - 1));
        let hot = MIB + HOT_AFTER;
        assert!(ahead.is_hot(hot));
        assert_eq!(ends(&ahead, hot, 99 * MIB), [hot + KNOWN_MAX]);
        assert_eq!(ends(&ahead, hot, hot + 5), [hot + 5]);
        // All of the piece is asked for, up to the page that was looked at.
        let ask = ahead.missed(hot, hot + KNOWN_MAX - 1, 99 * MIB).unwrap();
        assert_eq!((ask.offset, u64::from(ask.len)), (hot, KNOWN_MAX));
        assert!(!ahead.is_hot(hot) && !ahead.is_hot(99 * MIB));
        assert_eq!(ends(&ahead, hot, 99 * MIB)[0], hot + PIECE_COLD);
    }

    #[test]
    fn the_first_window_is_asked_for_by_name_and_the_kernel_does_the_rest() {
        let mut ahead = ReadAhead::new(0);
        let ask = |offset, len| Some(Ask { offset, len });
        assert_eq!(ahead.missed(0, 0, 900), ask(0, 900));
        let mut ahead = ReadAhead::new(0);
        assert_eq!(ahead.missed(MIB, MIB, 9 * MIB), ask(MIB, ASKED as u32));
        assert_eq!(ahead.reach(MIB), ASKED);
        assert_eq!(ends(&ahead, MIB, 2 * MIB)[0], MIB + PIECE_COLD);
        // It has read ahead, and the client was faster.
        assert_eq!(ahead.missed(2 * MIB, 2 * MIB, 9 * MIB), None);
        // It hasn't.
        let missing = 2 * MIB + PIECE_COLD - 1;
        let again = ahead.missed(2 * MIB, missing, 9 * MIB);
        assert_eq!(again, ask(2 * MIB, ASKED as u32));
        // It has, but not as far as the end of the next piece.
        let missing = 4 * MIB + PIECE_COLD - 1;
        let rest = ahead.missed(4 * MIB, missing, 9 * MIB);
        assert_eq!(rest, ask(4 * MIB, PIECE_COLD as u32));
    }

    #[test]
    fn the_reach_grows_with_a_fast_client_and_shrinks_with_a_slow_one() {
        let mut ahead = ReadAhead::new(0);
        let mut reach_at = |at: u64, slow: bool| {
            if slow {
                ahead.client_waits();
            }
            ahead.missed(at, at, u64::MAX);
            ahead.reach(at)
        };
        let fast: Vec<u64> = (0..6).map(|at| reach_at(at * MIB, false)).collect();
        assert_eq!(fast, [1, 2, 4, 8, 8, 8].map(|times| times * ASKED));
        let slow: Vec<u64> = (6..12).map(|at| reach_at(at * MIB, true)).collect();
        let least = *REACH.start();
        assert_eq!(slow, [4 * ASKED, 2 * ASKED, ASKED, least, least, least]);
    }

    #[test]
    fn a_file_that_is_in_memory_from_somewhere_on_is_a_warm_one_again() {
        let mut ahead = ReadAhead::new(0);
        ahead.missed(0, 0, 99 * MIB);
        assert_eq!(ahead.reach(TOLD_FOR - 1), ASKED);
        assert_eq!(ahead.reach(TOLD_FOR), 0);
        let from = WARM_AFTER;
        assert_eq!(ends(&ahead, from - 1, 99 * MIB)[0], from - 1 + PIECE_COLD);
        assert_eq!(ends(&ahead, from, 99 * MIB)[0], from + PIECE);
    }

    #[test]
    fn what_one_has_seen_another_neednt_look_at_for_a_moment() {
        let (warmth, start) = (Warmth::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(warmth.known_to(0, start), None);
        warmth.saw(0, PIECE, start);
        let other = warmth.clone();
        assert_eq!(other.known_to(0, at(1)), Some(PIECE));
        assert_eq!(other.known_to(PIECE - 1, at(1)), Some(PIECE));
        assert_eq!(
            other.known_to(PIECE, at(1)),
            None,
            "the next piece is unknown"
        );
        // It grows, but not older than its oldest part may be, nor far ahead of a slow client.
        warmth.saw(PIECE, MIB, at(15));
        assert_eq!(other.known_to(0, at(19)), Some(2 * PIECE));
        assert_eq!(other.known_to(MIB - 1, at(19)), Some(MIB));
        assert_eq!(other.known_to(0, at(20)), None);
        // Elsewhere it begins anew, and where it has grown old.
        warmth.saw(9 * MIB, 10 * MIB, at(19));
        assert_eq!(other.known_to(0, at(19)), None);
        assert_eq!(other.known_to(9 * MIB, at(38)), Some(9 * MIB + 2 * PIECE));
        warmth.saw(9 * MIB, 9 * MIB + 1, at(39));
        assert_eq!(other.known_to(9 * MIB, at(39)), Some(9 * MIB + 1));
    }

    proptest! {
        /// Whatever the client and the disk do: the pieces cover what is next without a gap, and what is
        /// asked for lies in the file and within the bounds.
        #[test]
        fn it_goes_on_and_never_asks_for_much(
            start in 0..1u64 << 62,
            length in 1..1u64 << 40,
            steps in proptest::collection::vec((any::<bool>(), any::<bool>(), 0..3u64), 0..60),
        ) {
            let (mut ahead, mut at, end) = (ReadAhead::new(start), start, start + length);
            for (missing, waits, which) in steps {
                let pieces = ends(&ahead, at, end);
                prop_assert!(!pieces.is_empty() && pieces[0] > at);
                prop_assert!(pieces.is_sorted_by(|a, b| a < b));
                prop_assert!(*pieces.last().unwrap() <= end);
                prop_assert!(pieces.last().unwrap() - at <= 2 * PIECE);
                prop_assert!(ahead.reach(at) <= *REACH.end());
                if waits {
                    ahead.client_waits();
                }
                if missing {
                    let page = if which == 0 { at } else { pieces[0] - 1 };
                    if let Some(ask) = ahead.missed(at, page, end) {
                        prop_assert_eq!(ask.offset, at);
                        let len = u64::from(ask.len);
                        prop_assert!((1..=ASKED).contains(&len) && at + len <= end);
                        prop_assert!(page < at + len, "the page that is waited for is in it");
                    }
                    prop_assert!(ahead.reach(at) >= *REACH.start());
                } else {
                    at = *pieces.last().unwrap();
                }
                if at == end {
                    break;
                }
            }
        }
    }
}
