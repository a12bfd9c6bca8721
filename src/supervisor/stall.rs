//! Decides whether a core is stalled, from what can be seen of it from outside.
//!
//! A core that waits in its engine is healthy however long it waits. One that is in a turn for long may
//! wait for a disk or for a processor that others use: only when it has also burnt processor time all
//! along does it spin. And one that doesn't answer a wake is gone, whatever it does. It knows nothing of
//! threads or clocks.

use std::time::{Duration, Instant};

/// What is too long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// A turn that is longer than this is suspicious.
    pub(super) turn_wall: Duration,
    /// Processor time that a suspicious turn must have used.
    pub(super) turn_cpu: Duration,
    /// How long a wake may be unanswered.
    pub(super) wake_answer: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            turn_wall: Duration::from_secs(10),
            turn_cpu: Duration::from_secs(5),
            wake_answer: Duration::from_secs(30),
        }
    }
}

/// How often a core is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What is seen of a core at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    /// How long its turn has lasted; `None` while it waits.
    pub(super) turn: Option<Duration>,
    /// Processor time that its thread has used in its life.
    pub(super) cpu: Duration,
    /// The number of the wake that it hasn't answered.
    pub(super) unanswered: Option<u64>,
}

/// Watches one core.
#[derive(Debug, Default)]
pub(super) struct Watch {
    bounds: Bounds,
    /// When the turn under way began, and the processor time when it was first seen.
    turn: Option<(Instant, Duration)>,
    /// The wake that isn't answered, and when it was first seen so.
    wake: Option<(u64, Instant)>,
}

impl Watch {
    /// Watches with these bounds.
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            ..Self::default()
        }
    }

    /// Looks at the core. Says why it is stalled, if it is.
    pub(super) fn look(&mut self, sight: Sight, now: Instant) -> Option<String> {
        self.wake = sight.unanswered.map(|number| match self.wake {
            Some((known, since)) if known == number => (known, since),
            _ => (number, now),
        });
        self.turn = sight.turn.map(|lasted| {
            let began = now.checked_sub(lasted).unwrap_or(now);
            match self.turn {
                Some((known, cpu)) if known == began => (known, cpu),
                _ => (began, sight.cpu),
            }
        });
        if let (Some((_, cpu)), Some(lasted)) = (self.turn, sight.turn) {
            let used = sight.cpu.saturating_sub(cpu);
            if lasted >= self.bounds.turn_wall && used >= self.bounds.turn_cpu {
                return Some(format!(
                    "one turn has lasted {} s and used {} s of processor time",
                    lasted.as_secs(),
                    used.as_secs()
                ));
            }
        }
        let silent = now.saturating_duration_since(self.wake?.1);
        (silent >= self.bounds.wake_answer)
            .then(|| format!("it has not answered a wake for {} s", silent.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Looks every five seconds at what `sight` says of that second; gives the first second of a stall.
    fn stalled_at(sight: impl Fn(u32) -> Sight) -> Option<u32> {
        let (mut watch, begin) = (Watch::new(Bounds::default()), Instant::now());
        (0..200).step_by(5).find(|second| {
            watch
                .look(sight(*second), begin + SECOND * *second)
                .is_some()
        })
    }

    const WAITS: Sight = Sight {
        turn: None,
        cpu: Duration::ZERO,
        unanswered: None,
    };

    #[test]
    fn a_core_that_waits_is_healthy() {
        assert_eq!(stalled_at(|_| WAITS), None);
    }

    #[test]
    fn a_turn_that_spins_is_a_stall_and_one_that_waits_for_a_disk_is_none() {
        let turn = |cpu: fn(u32) -> Duration| {
            move |second: u32| Sight {
                turn: second.checked_sub(20).map(|lasted| SECOND * lasted),
                cpu: cpu(second),
                ..WAITS
            }
        };
        assert_eq!(stalled_at(turn(|second| SECOND * second)), Some(30));
        // A processor that is shared with four others.
        assert_eq!(stalled_at(turn(|second| SECOND * second / 5)), Some(45));
        assert_eq!(stalled_at(turn(|_| SECOND * 100)), None);
    }

    #[test]
    fn many_short_turns_are_no_long_one() {
        let busy = |second: u32| Sight {
            turn: Some(Duration::from_millis(u64::from(second % 7))),
            cpu: SECOND * second,
            unanswered: Some(u64::from(second)),
        };
        assert_eq!(stalled_at(busy), None);
    }

    #[test]
    fn a_wake_without_an_answer_is_a_stall() {
        let silent = |second: u32| Sight {
            unanswered: (second >= 10).then_some(7),
            ..WAITS
        };
        assert_eq!(stalled_at(silent), Some(40));
    }
}
