//! Watches the files of certificates, and gives what is to be used instead.
//!
//! [`watch`](super::watch) decides; here files are looked at and read. Whoever drives it has one thread
//! and other work: a turn looks at some files only, and reads fewer.

use std::time::{Duration, Instant};

use super::files::{Content, Mark, Pair};
use super::local_ca::day;
use super::watch::{Outcome, Step, Watch};
use crate::util::x509::Facts;

/// How often each pair is looked at, as long as there are not too many.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Most pairs that a turn looks at. With more of them each is looked at less often.
const LOOKS_MAX: usize = 256;

/// Most pairs that a turn reads and checks: 0.1 ms each with an elliptic curve, 1 ms with RSA.
const READS_MAX: usize = 16;

/// What has come of a pair of files.
pub enum Change {
    /// From now on this is to be used.
    Use {
        /// The files.
        pair: Pair,
        /// What they hold.
        content: Content,
        /// What the certificate is.
        facts: Box<Facts>,
    },
    /// They are wrong, and have been for 10 s; what was used before stays in use.
    Warn {
        /// The files.
        pair: Pair,
        /// What is wrong, and what to do.
        why: String,
    },
    /// What was warned of is over.
    Well {
        /// The files.
        pair: Pair,
    },
}

struct Watched {
    pair: Pair,
    watch: Watch<[Mark; 2]>,
    /// Of what is in use.
    digest: [u8; 32],
    facts: Facts,
}

/// Watches pairs of files.
#[derive(Default)]
pub struct Watcher {
    all: Vec<Watched>,
    /// Whose turn it is.
    next: usize,
    look_at: Option<Instant>,
}

impl Watcher {
    /// Watches a pair of which that is in use whose digest ([`Content::digest`]) this is. `marks` are those
    /// of before it was read. One that is watched already goes on where that is in use of it, and begins
    /// anew where something else is.
    pub fn watch(&mut self, pair: Pair, marks: [Mark; 2], digest: [u8; 32], facts: Facts) {
        let is_known = |watched: &Watched| watched.digest == digest && watched.pair == pair;
        if self.all.iter().any(is_known) {
            return;
        }
        self.all.retain(|watched| watched.pair != pair);
        self.all.push(Watched {
            watch: Watch::new(marks),
            digest,
            pair,
            facts,
        });
    }

    /// Watches no other pairs than these any more.
    pub fn retain(&mut self, mut keep: impl FnMut(&Pair) -> bool) {
        self.all.retain(|watched| keep(&watched.pair));
    }

    /// The pairs that are watched, and what is in use of each.
    pub fn in_use(&self) -> impl Iterator<Item = (&Pair, &Facts)> {
        self.all
            .iter()
            .map(|watched| (&watched.pair, &watched.facts))
    }

    /// The pairs whose files are wrong, and what is, also if that may still be the middle of a change.
    pub fn troubles(&self) -> impl Iterator<Item = (&Pair, &str)> {
        let all = self.all.iter();
        all.filter_map(|watched| Some((&watched.pair, watched.watch.trouble()?)))
    }

    /// When [`Watcher::turn`] has something to do; `None` also before the first one.
    pub fn deadline(&self) -> Option<Instant> {
        self.look_at.filter(|_| !self.all.is_empty())
    }

    /// Looks at files, if it is time, and says what has come of it. `unix_s` is the wall clock in seconds
    /// since 1970.
    pub fn turn(&mut self, now: Instant, unix_s: i64) -> Vec<Change> {
        let is_due = self.look_at.is_none_or(|at| now >= at);
        if !is_due {
            return Vec::new();
        }
        self.look_at = Some(now + LOOK_EVERY);
        let mut changes = Vec::new();
        let mut reads = 0;
        for _ in 0..self.all.len().min(LOOKS_MAX) {
            if reads == READS_MAX {
                break;
            }
            self.next = (self.next + 1) % self.all.len();
            let watched = &mut self.all[self.next];
            let mut step = watched.watch.looked(watched.pair.marks(), now);
            let mut read = None;
            if step == Step::Read {
                reads += 1;
                let (outcome, found) = watched.read(unix_s);
                step = watched.watch.found(outcome, now);
                read = found;
            }
            let pair = watched.pair.clone();
            match (step, read) {
                (Step::Use, Some((content, facts))) => {
                    watched.digest = content.digest();
                    watched.facts = (*facts).clone();
                    changes.push(Change::Use {
                        pair,
                        content,
                        facts,
                    });
                }
                (Step::Warn(why), _) => changes.push(Change::Warn { pair, why }),
                (Step::Well, _) => changes.push(Change::Well { pair }),
                _ => {}
            }
        }
        changes
    }
}

impl Watched {
    fn read(&self, unix_s: i64) -> (Outcome, Option<(Content, Box<Facts>)>) {
        let before = self.pair.marks();
        let content = self.pair.read();
        // Of what changed meanwhile nothing is known: one file may be of another day than the other.
        if self.pair.marks() != before {
            return (Outcome::Torn, None);
        }
        let content = match content {
            Ok(content) => content,
            Err(why) => return (Outcome::Wrong(why), None),
        };
        if content.digest() == self.digest {
            return (Outcome::Same, None);
        }
        match self.pair.check(&content) {
            Err(why) => (Outcome::Wrong(why), None),
            Ok(facts) => match worse(&facts, &self.facts, unix_s) {
                Some(why) => {
                    let path = self.pair.certificate.display();
                    (Outcome::Wrong(format!("{path} {why}")), None)
                }
                None => (Outcome::Better, Some((content, Box::new(facts)))),
            },
        }
    }
}

/// Why a certificate that is whole is worse than the one in use: clients would refuse it, and they take
/// the other one.
fn worse(new: &Facts, old: &Facts, unix_s: i64) -> Option<String> {
    let is_valid = |facts: &Facts| (facts.not_before..=facts.not_after).contains(&unix_s);
    if is_valid(new) || !is_valid(old) {
        return None;
    }
    Some(if unix_s > new.not_after {
        format!(
            "has a certificate that ended on {}, and the one in use is valid; put the new one there",
            day(new.not_after)
        )
    } else {
        format!(
            "has a certificate that isn't valid before {}, and the one in use is; it is taken then",
            day(new.not_before)
        )
    })
}

#[cfg(test)]
mod tests;
