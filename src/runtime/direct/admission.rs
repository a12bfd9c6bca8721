//! Whether a cold file may enter the page cache. Pure: it is told the time, and whether memory is short.
//!
//! The rule is that of 2Q (Johnson and Shasha, VLDB 1994): what is asked for once is read past the cache,
//! what is asked for again goes into it. Requests within a short time are one wave (a player that asks
//! for ranges, several clients after one announcement), and say nothing of the time after it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

/// How long the requests after the first one belong to its wave.
const WAVE: Duration = Duration::from_secs(10);

/// Files that are remembered; the one that was first asked for longest ago is forgotten first.
const GHOSTS_MAX: usize = 2048;

/// How files are read whose pages aren't in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectMode {
    /// Through the page cache.
    Off,
    /// By O_DIRECT while memory is short, if the file wasn't asked for lately; else through the page
    /// cache.
    #[default]
    Auto,
    /// By O_DIRECT.
    On,
}

/// What is known of earlier requests for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// None.
    First,
    /// There was one just now.
    SameWave,
    /// There was one, some time ago.
    Again,
}

/// Whether to read by O_DIRECT.
pub(crate) fn admits(mode: DirectMode, pressed: bool, asked: Asked) -> bool {
    match mode {
        DirectMode::Off => false,
        DirectMode::On => true,
        DirectMode::Auto => pressed && asked != Asked::Again,
    }
}

/// The files that were asked for and not in memory.
#[derive(Default)]
pub(crate) struct Ghosts {
    first: HashMap<(u64, u64), Instant>,
    /// Every key of `first` once, the oldest first.
    order: VecDeque<(u64, u64)>,
}

impl Ghosts {
    /// Notes a request for a file, named by device and inode.
    pub(crate) fn ask(&mut self, file: (u64, u64), now: Instant) -> Asked {
        if let Some(first) = self.first.get(&file) {
            return if now.saturating_duration_since(*first) < WAVE {
                Asked::SameWave
            } else {
                Asked::Again
            };
        }
        if self.order.len() == GHOSTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.first.remove(&oldest);
        }
        self.first.insert(file, now);
        self.order.push_back(file);
        Asked::First
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_reads_past_the_page_cache_what_is_asked_for_once_while_memory_is_short() {
        for (pressed, asked, direct) in [
            (false, Asked::First, false),
            (true, Asked::First, true),
            (true, Asked::SameWave, true),
            (true, Asked::Again, false),
        ] {
            assert_eq!(admits(DirectMode::Auto, pressed, asked), direct);
            assert!(admits(DirectMode::On, pressed, asked));
            assert!(!admits(DirectMode::Off, pressed, asked));
        }
    }

    #[test]
    fn requests_of_one_wave_are_one_and_later_ones_are_not() {
        let (mut ghosts, start) = (Ghosts::default(), Instant::now());
        assert_eq!(ghosts.ask((1, 7), start), Asked::First);
        assert_eq!(ghosts.ask((1, 7), start + WAVE / 2), Asked::SameWave);
        assert_eq!(ghosts.ask((2, 7), start + WAVE / 2), Asked::First);
        // The wave isn't prolonged by its requests: a file that is always asked for is popular.
        assert_eq!(ghosts.ask((1, 7), start + WAVE), Asked::Again);
        assert_eq!(ghosts.ask((1, 7), start + 9 * WAVE), Asked::Again);
    }

    #[test]
    fn a_sweep_makes_it_forget_the_oldest_and_nothing_else() {
        let (mut ghosts, now) = (Ghosts::default(), Instant::now());
        for inode in 0..=GHOSTS_MAX as u64 {
            assert_eq!(ghosts.ask((1, inode), now), Asked::First);
        }
        assert_eq!(
            (ghosts.first.len(), ghosts.order.len()),
            (GHOSTS_MAX, GHOSTS_MAX)
        );
        assert_eq!(ghosts.ask((1, 1), now), Asked::SameWave);
        assert_eq!(ghosts.ask((1, 0), now), Asked::First, "it was forgotten");
    }
}
