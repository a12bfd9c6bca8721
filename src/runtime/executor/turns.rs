//! How long the turns of a core take.

use std::time::{Duration, Instant};

use super::Core;

/// A turn that takes longer than this is a stall: all connections of the core have waited for it.
pub const STALL: Duration = Duration::from_millis(2);

/// How long the turns of a core have taken, without the time in which its engine waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// Those that took longer than [`STALL`].
    pub stalls: u64,
    /// The longest.
    pub longest: Duration,
}

impl Turns {
    fn count(&mut self, length: Duration) {
        self.stalls += u64::from(length > STALL);
        self.longest = self.longest.max(length);
    }
}

impl Core {
    /// How long the turns have taken so far.
    pub fn turns(&self) -> Turns {
        self.0.turns.get().unwrap_or_default()
    }

    /// A turn is over. The first one is as long as the start took, and doesn't count.
    pub(super) fn turn_ends(&self, now: Instant) {
        let Some(mut turns) = self.0.turns.get() else {
            self.0.turns.set(Some(Turns::default()));
            return;
        };
        turns.count(now.saturating_duration_since(self.now()));
        self.0.turns.set(Some(turns));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_longer_than_the_bound() {
        let mut turns = Turns::default();
        let ms = Duration::from_millis;
        for length in [ms(1), STALL, ms(7), ms(3)] {
            turns.count(length);
        }
        let longest = ms(7);
        assert_eq!(turns, Turns { stalls: 2, longest });
    }
}
