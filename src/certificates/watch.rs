//! Decides when a certificate's files are read again, when what they hold is used, and when somebody is
//! warned.
//!
//! Files are replaced in every way there is: written over, renamed onto, or by a link that points to
//! another directory from now on; the certificate before the key, or after it. So the files of a pair are
//! looked at (stat(2), by path, through all links), and read when they have stayed the same from one
//! look to the next. Looking beats inotify(7) here: that watches inodes, so each link and each
//! directory on the way would have to be watched and found again, and it sees nothing that another
//! machine writes to a network file system.
//!
//! What is in use stays in use until there is something better. The decision is pure: it knows neither
//! files nor certificates, only marks that change when a file does.

use std::time::{Duration, Instant};

/// How long two files that don't belong together, or a file that is broken, may be the middle of a
/// change.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How often files that are wrong are read again though nothing about them has changed: what the file
/// system says of a failure may be over, and a certificate may have become valid.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Least time from one warning about a pair to the next; what would be said sooner waits.
const WARNINGS_APART: Duration = Duration::from_secs(300);

/// What is said of files that never stay as they are for a second.
const RESTLESS: &str = "the files change all the time";

/// What a read has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What is in use already.
    Same,
    /// A certificate and its key, other than those in use, and no worse.
    Better,
    /// The files were changed meanwhile.
    Torn,
    /// Nothing to be used, and why.
    Wrong(String),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// Read the files, and tell the outcome.
    Read,
    /// Use what was read.
    Use,
    /// Warn that the files are wrong for this reason, and that the old ones stay in use.
    Warn(String),
    /// Say that what was warned of is over, though what is in use is the same.
    Well,
}

/// The watch over one pair of files. `M` is a mark of both: equal as long as nothing has changed.
#[derive(Debug)]
pub struct Watch<M> {
    /// As of the last look.
    seen: M,
    /// As of the last read; `None` to read again.
    read: Option<M>,
    /// Since when there is something to read that doesn't stay as it is.
    moving_since: Option<Instant>,
    /// When to read again without a change.
    again_at: Option<Instant>,
    /// What has been wrong since the last read that was well.
    trouble: Option<Trouble>,
    warned_at: Option<Instant>,
}

#[derive(Debug)]
struct Trouble {
    since: Instant,
    why: String,
    is_told: bool,
}

impl<M: PartialEq + Clone> Watch<M> {
    /// A watch over files that had this mark before they were read, and are in use.
    pub fn new(mark: M) -> Self {
        Self {
            seen: mark.clone(),
            read: Some(mark),
            moving_since: None,
            again_at: None,
            trouble: None,
            warned_at: None,
        }
    }

    /// What is wrong with the files, warned of or not.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().map(|trouble| trouble.why.as_str())
    }

    /// The files have this mark now. To be told every second or two.
    pub fn looked(&mut self, mark: M, now: Instant) -> Step {
        let has_moved = mark != self.seen;
        self.seen = mark;
        if self.read.as_ref() == Some(&self.seen) {
            self.moving_since = None;
        } else {
            let since = *self.moving_since.get_or_insert(now);
            // What never rests is read all the same, and will be found torn.
            let is_restless = now.saturating_duration_since(since) >= PATIENCE;
            return if !has_moved || is_restless {
                self.begin_read()
            } else {
                Step::Nothing
            };
        }
        // Before the warning, so that it is true when it is given.
        if self.again_at.is_some_and(|at| now >= at) {
            return self.begin_read();
        }
        self.warning(now)
    }

    fn begin_read(&mut self) -> Step {
        self.read = Some(self.seen.clone());
        self.again_at = None;
        Step::Read
    }

    /// What the read has found that [`Step::Read`] asked for.
    pub fn found(&mut self, outcome: Outcome, now: Instant) -> Step {
        let why = match outcome {
            Outcome::Same | Outcome::Better => {
                self.moving_since = None;
                let trouble = self.trouble.take();
                return match outcome {
                    Outcome::Better => Step::Use,
                    _ if trouble.is_some_and(|trouble| trouble.is_told) => Step::Well,
                    _ => Step::Nothing,
                };
            }
            Outcome::Torn => {
                self.read = None;
                // It says nothing of what was wrong before.
                if self
                    .trouble
                    .as_ref()
                    .is_some_and(|trouble| trouble.why != RESTLESS)
                {
                    return Step::Nothing;
                }
                RESTLESS.to_owned()
            }
            Outcome::Wrong(why) => {
                self.moving_since = None;
                self.again_at = Some(now + AGAIN_AFTER);
                why
            }
        };
        match &mut self.trouble {
            Some(trouble) if !trouble.is_told => trouble.why = why,
            Some(trouble) if trouble.why == why => {}
            trouble => {
                *trouble = Some(Trouble {
                    since: now,
                    why,
                    is_told: false,
                });
            }
        }
        self.warning(now)
    }

    fn warning(&mut self, now: Instant) -> Step {
        let has_passed = |since: Instant, time| now.saturating_duration_since(since) >= time;
        let is_early = (self.warned_at).is_some_and(|at| !has_passed(at, WARNINGS_APART));
        match &mut self.trouble {
            Some(trouble)
                if !trouble.is_told && !is_early && has_passed(trouble.since, PATIENCE) =>
            {
                trouble.is_told = true;
                self.warned_at = Some(now);
                Step::Warn(trouble.why.clone())
            }
            _ => Step::Nothing,
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
