//! The progress rule: how slow a client may be.

use std::time::{Duration, Instant};

/// How slow a client may be: at least `rate` bytes per second on average over each `window`.
#[derive(Clone, Copy, Debug)]
pub struct ProgressRule {
    /// Over which time the average is taken.
    pub window: Duration,
    /// Bytes per second; 0 switches the rule off.
    pub rate: u64,
}

/// Watches one transfer for progress. It is asked only while the client owes something: a wait for a
/// disk or a backend never counts against the client.
///
/// The first window only finds out where the transfer stands: to ask the kernel for that at the
/// beginning would cost each response a system call. So a client that takes nothing is found out
/// after two windows at the latest.
#[derive(Debug)]
pub struct Progress {
    rule: ProgressRule,
    window_start: Instant,
    moved_at_start: Option<u64>,
}

impl Progress {
    /// A transfer that begins now.
    pub fn new(rule: ProgressRule, now: Instant) -> Self {
        Self {
            rule,
            window_start: now,
            moved_at_start: None,
        }
    }

    /// A transfer that begins now and of which it is known how far it is: the first window counts.
    pub fn from(rule: ProgressRule, now: Instant, moved: u64) -> Self {
        Self {
            moved_at_start: Some(moved),
            ..Self::new(rule, now)
        }
    }

    /// When to look again; `None` when the rule is off.
    pub fn deadline(&self) -> Option<Instant> {
        (self.rule.rate > 0).then(|| self.window_start + self.rule.window)
    }

    /// At the deadline: whether the client took enough of `moved` bytes in all; begins a new window.
    pub fn check(&mut self, moved: u64, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.window_start);
        let owed = u128::from(self.rule.rate) * elapsed.as_millis() / 1000;
        let enough = self
            .moved_at_start
            .is_none_or(|start| u128::from(moved.saturating_sub(start)) >= owed);
        self.window_start = now;
        self.moved_at_start = Some(moved);
        enough
    }

    /// Time passed for which the client is not to blame.
    pub fn forgive(&mut self, since: Instant, now: Instant) {
        self.window_start += now.saturating_duration_since(since);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: ProgressRule = ProgressRule {
        window: Duration::from_secs(10),
        rate: 500,
    };

    #[test]
    fn a_client_that_takes_the_rate_goes_on_and_one_that_does_not_is_refused() {
        let start = Instant::now();
        let mut progress = Progress::new(RULE, start);
        assert_eq!(progress.deadline(), Some(start + RULE.window));
        assert!(
            progress.check(7, start + RULE.window),
            "where it stands is not known before"
        );
        assert!(progress.check(5007, start + 2 * RULE.window));
        assert!(!progress.check(10_006, start + 3 * RULE.window));
        assert!(progress.check(15_006, start + 4 * RULE.window));
    }

    #[test]
    fn time_that_a_disk_took_is_forgiven() {
        let start = Instant::now();
        let mut progress = Progress::new(RULE, start);
        progress.forgive(start, start + RULE.window);
        assert_eq!(progress.deadline(), Some(start + 2 * RULE.window));
    }

    #[test]
    fn a_rate_of_zero_never_has_a_deadline() {
        let rule = ProgressRule { rate: 0, ..RULE };
        assert_eq!(Progress::new(rule, Instant::now()).deadline(), None);
    }
}
