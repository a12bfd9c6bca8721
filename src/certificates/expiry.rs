//! Warns before certificates end, and not more often than somebody reads.

use std::collections::BTreeMap;
use std::fmt;

use super::local_ca::day;

/// A day in seconds.
const DAY: i64 = 86_400;

/// The days before the end at which there is a warning.
const STAGES: [i64; 4] = [30, 14, 7, 1];

/// How often it is said that a certificate has ended, in seconds.
const ENDED_AGAIN_S: i64 = DAY;

/// How near the end of a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It isn't.
    Far,
    /// Not more than so many days, one of 30, 14, 7, 1: the fewer, the greater the stage.
    Near(std::cmp::Reverse<i64>),
    /// It is past.
    Ended,
}

impl Stage {
    /// The stage of a certificate with this validity, all in seconds since 1970.
    ///
    /// A stage that is more than a third of the whole life says nothing: who has certificates for 90
    /// days renews them when 30 are left, and only what comes after that is news.
    pub fn of((not_before, not_after): (i64, i64), now_s: i64) -> Self {
        if now_s > not_after {
            return Self::Ended;
        }
        let (left, life) = (not_after - now_s, not_after - not_before);
        let is_reached = |days: &&i64| left <= **days * DAY && **days * DAY * 3 <= life;
        let days = STAGES.iter().rev().find(is_reached);
        days.map_or(Self::Far, |days| Self::Near(std::cmp::Reverse(*days)))
    }
}

/// What is to be said of a certificate with this validity, if there is something; all in seconds since
/// 1970.
pub fn news((not_before, not_after): (i64, i64), now_s: i64) -> Option<String> {
    let (left, end) = (Left::until(not_after, now_s), day(not_after));
    match Stage::of((not_before, not_after), now_s) {
        Stage::Far => None,
        Stage::Near(_) => Some(format!("ends in {left}, on {end}")),
        Stage::Ended => Some(format!("ENDED {left}, on {end}")),
    }
}

/// How long a certificate has still to live, or for how long it hasn't, in whole days; for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left(pub i64);

impl Left {
    /// From its end and the time now, in seconds since 1970.
    pub fn until(not_after: i64, now_s: i64) -> Self {
        Self(not_after.saturating_sub(now_s))
    }

    /// Whole days, negative from the first second after the end.
    pub fn days(self) -> i64 {
        self.0.div_euclid(DAY)
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, unit) = match self.0.unsigned_abs() {
            seconds if seconds < 3600 => (seconds / 60, "minute"),
            seconds if seconds < 2 * DAY.unsigned_abs() => (seconds / 3600, "hour"),
            seconds => (seconds / DAY.unsigned_abs(), "day"),
        };
        let plural = if count == 1 { "" } else { "s" };
        let ago = if self.0 < 0 { " ago" } else { "" };
        write!(f, "{count} {unit}{plural}{ago}")
    }
}

/// Remembers what was warned of. `K` names a certificate, such as by its file.
#[derive(Debug)]
pub struct Warnings<K> {
    told: BTreeMap<K, Told>,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    not_after: i64,
    stage: Stage,
    at_s: i64,
}

impl<K> Default for Warnings<K> {
    fn default() -> Self {
        Self {
            told: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone> Warnings<K> {
    /// Which of these certificates, all that there are, to warn of now, and how near their ends are. To be
    /// asked about once an hour. Each stage of a certificate is given once; that it has ended, once a day.
    pub fn due(
        &mut self,
        all: impl IntoIterator<Item = (K, (i64, i64))>,
        now_s: i64,
    ) -> Vec<(K, Stage)> {
        let mut due = Vec::new();
        let mut told = BTreeMap::new();
        for (name, validity) in all {
            let stage = Stage::of(validity, now_s);
            let before = self.told.get(&name);
            let before = before.filter(|before| before.not_after == validity.1);
            let is_new = before.is_none_or(|before| stage > before.stage);
            let is_again = before.is_some_and(|before| {
                stage == Stage::Ended && now_s.saturating_sub(before.at_s) >= ENDED_AGAIN_S
            });
            let is_due = stage != Stage::Far && (is_new || is_again);
            let one = Told {
                not_after: validity.1,
                // A clock that was set back makes no stage new.
                stage: before.map_or(stage, |before| before.stage.max(stage)),
                at_s: match before {
                    Some(before) if !is_due => before.at_s.min(now_s),
                    _ => now_s,
                },
            };
            // Two with one name are one: the first.
            if !told.contains_key(&name) {
                told.insert(name.clone(), one);
                if is_due {
                    due.push((name, stage));
                }
            }
        }
        self.told = told;
        due
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use super::*;

    const YEAR: i64 = 365 * DAY;

    fn near(days: i64) -> Stage {
        Stage::Near(Reverse(days))
    }

    #[test]
    fn stages_are_those_of_its_life() {
        for (life, left, stage) in [
            (YEAR, 31 * DAY, Stage::Far),
            (YEAR, 30 * DAY, near(30)),
            (YEAR, 14 * DAY + 1, near(30)),
            (YEAR, 14 * DAY, near(14)),
            (YEAR, 7 * DAY, near(7)),
            (YEAR, DAY, near(1)),
            (YEAR, 0, near(1)),
            (YEAR, -1, Stage::Ended),
            // As Let's Encrypt has them: renewed when 30 days are left.
            (90 * DAY - 1, 29 * DAY, Stage::Far),
            (90 * DAY - 1, 14 * DAY, near(14)),
            (47 * DAY, 14 * DAY, near(14)),
            (6 * DAY, 3 * DAY, Stage::Far),
            (6 * DAY, DAY, near(1)),
            (DAY, 60, Stage::Far),
            (DAY, -1, Stage::Ended),
        ] {
            assert_eq!(
                Stage::of((1000, 1000 + life), 1000 + life - left),
                stage,
                "{life} {left}"
            );
        }
        assert!(Stage::Far < near(30) && near(30) < near(14) && near(1) < Stage::Ended);
    }

    #[test]
    fn what_is_said_has_days_and_the_day() {
        let news = |left: i64| news((0, YEAR), YEAR - left);
        assert_eq!(news(31 * DAY), None);
        assert_eq!(news(5 * DAY).unwrap(), "ends in 5 days, on 1971-01-01");
        assert_eq!(news(-3 * DAY).unwrap(), "ENDED 3 days ago, on 1971-01-01");
    }

    #[test]
    fn each_stage_is_said_once_and_the_end_each_day() {
        let mut warnings = Warnings::default();
        let mut said = Vec::new();
        for hour in 0..40 * 24 {
            let now = hour * 3600;
            for (name, stage) in warnings.due([("a", (-YEAR, 32 * DAY))], now) {
                assert_eq!(name, "a");
                said.push((now / DAY, stage));
            }
        }
        let stages = [(2, near(30)), (18, near(14)), (25, near(7)), (31, near(1))];
        let ended = (32..40).map(|day| (day, Stage::Ended));
        assert_eq!(said, stages.into_iter().chain(ended).collect::<Vec<_>>());
    }

    #[test]
    fn a_start_says_the_present_stage_alone() {
        let mut warnings = Warnings::default();
        let all = || {
            [
                ("a", (-YEAR, 5 * DAY)),
                ("b", (-YEAR, -DAY)),
                ("c", (-YEAR, YEAR)),
            ]
        };
        assert_eq!(
            warnings.due(all(), 0),
            [("a", near(7)), ("b", Stage::Ended)]
        );
        assert_eq!(warnings.due(all(), 3600), []);
    }

    #[test]
    fn another_certificate_begins_anew_and_one_that_is_gone_is_forgotten() {
        let mut warnings = Warnings::default();
        assert_eq!(warnings.due([("a", (-YEAR, 5 * DAY))], 0), [("a", near(7))]);
        assert_eq!(warnings.due([("a", (-YEAR, YEAR))], 1), []);
        assert_eq!(warnings.due([("a", (-YEAR, 5 * DAY))], 2), [("a", near(7))]);
        assert_eq!(warnings.due([], 3), []);
        assert!(warnings.told.is_empty());
    }

    #[test]
    fn a_clock_that_is_set_repeats_nothing() {
        let mut warnings = Warnings::default();
        let all = || [("a", (-YEAR, 20 * DAY))];
        assert_eq!(warnings.due(all(), 10 * DAY), [("a", near(14))]);
        assert_eq!(warnings.due(all(), 0), []);
        assert_eq!(warnings.due(all(), 10 * DAY), []);
        assert_eq!(warnings.due(all(), 40 * DAY), [("a", Stage::Ended)]);
        assert_eq!(warnings.due(all(), 0), []);
        // Once a day by the clock that goes now.
        assert_eq!(warnings.due(all(), 40 * DAY).len(), 1);
    }

    #[test]
    fn time_that_is_left_is_short_to_read() {
        for (seconds, text, days) in [
            (90 * DAY, "90 days", 90),
            (2 * DAY, "2 days", 2),
            (2 * DAY - 1, "47 hours", 1),
            (3600, "1 hour", 0),
            (90, "1 minute", 0),
            (-1, "0 minutes ago", -1),
            (-3 * DAY, "3 days ago", -3),
        ] {
            assert_eq!(
                (Left(seconds).to_string().as_str(), Left(seconds).days()),
                (text, days)
            );
        }
    }
}
