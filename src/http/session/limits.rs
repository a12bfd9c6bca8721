//! Counts how often each limit was reached on a core, for whoever asks why clients are refused.

use std::cell::RefCell;

/// How the reason of a [`Reject`](crate::http::h1::Reject) begins when a limit was reached and no rule
/// broken.
const PREFIX: &str = "limit: ";

/// The limit of those requests that are refused because memory is short.
pub const MEMORY: &str = "memory: requests refused";

/// Every limit that was reached, by its name, and how often.
pub type Counts = Vec<(&'static str, u64)>;

/// The counters of one core. There are few names, all of them constants of the source.
#[derive(Debug, Default)]
pub struct LimitCounters(RefCell<Counts>);

impl LimitCounters {
    /// The limit of this name was reached.
    #[cold]
    pub fn reached(&self, limit: &'static str) {
        tracing::debug!(limit, "limit reached");
        count_limit(&mut self.0.borrow_mut(), limit, 1);
    }

    /// The limit of this name was reached so many times.
    #[cold]
    pub fn reached_often(&self, limit: &'static str, times: u64) {
        if times > 0 {
            count_limit(&mut self.0.borrow_mut(), limit, times);
        }
    }

    /// Counts a refusal, if a limit was the reason.
    pub(super) fn refused(&self, reason: &'static str) {
        if let Some(limit) = reason.strip_prefix(PREFIX) {
            self.reached(limit);
        }
    }

    /// Counts something that is no limit.
    #[cold]
    pub fn count(&self, what: &'static str) {
        count_limit(&mut self.0.borrow_mut(), what, 1);
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.0.borrow().clone()
    }
}

/// Adds to the count of one limit.
pub fn count_limit(counts: &mut Counts, limit: &'static str, times: u64) {
    match counts.iter_mut().find(|(name, _)| *name == limit) {
        Some((_, count)) => *count += times,
        None => counts.push((limit, times)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::Reject;

    #[test]
    fn limits_are_counted_by_name_and_broken_rules_are_not() {
        let limits = LimitCounters::default();
        limits.refused(Reject::TIMEOUT.reason);
        limits.refused("more than one Host");
        limits.reached("keep-alive idle");
        limits.refused(Reject::TIMEOUT.reason);
        let expected = [
            ("time to a whole header section", 2),
            ("keep-alive idle", 1),
        ];
        assert_eq!(limits.counts(), expected);
        let mut all = limits.counts();
        count_limit(&mut all, "keep-alive idle", 4);
        assert_eq!(all[1].1, 5);
    }
}
