//! Watches files that certificates and clients are known by, and gives what is to be used instead.
//!
//! [`watch`](super::watch) decides; here files are looked at and read, and whoever drives it says what they are
//! ([`Source`]). He has one thread and other work: a turn looks at some files only, and reads fewer.

use std::time::{Duration, Instant};

use super::files::Mark;
use super::watch::{Outcome, Step, Watch};

/// How often each source is looked at, as long as there are not too many.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Most sources that a turn looks at. With more of them each is looked at less often.
const LOOKS_MAX: usize = 256;

/// Most sources that a turn reads and checks: 0.1 ms for a certificate of an elliptic curve, 1 ms with RSA.
const READS_MAX: usize = 16;

/// Files that belong together, and what is in use of them.
pub trait Source {
    /// What they are read as.
    type Read;

    /// Whether these are the same files.
    fn is_at(&self, other: &Self) -> bool;

    /// Whether the same of the same files is in use.
    fn is_same(&self, other: &Self) -> bool;

    /// What stat(2) says of them.
    fn marks(&self) -> Vec<Mark>;

    /// Reads them at a time in seconds since 1970; `None` where that is what is in use.
    ///
    /// # Errors
    /// Why it is nothing to be used, and what to do.
    fn read(&self, unix_s: i64) -> Result<Option<Self::Read>, String>;

    /// From now on this is in use.
    fn take(&mut self, read: &Self::Read);
}

/// What has come of a source, as it is from now on.
pub struct Change<S: Source> {
    /// Which one.
    pub of: S,
    /// What.
    pub news: News<S::Read>,
}

/// What has come of some files.
pub enum News<R> {
    /// From now on this is to be used.
    Use(R),
    /// They are wrong, and have been for 10 s; what was used before stays in use. Says what is wrong, and
    /// what to do.
    Warn(String),
    /// What was warned of is over.
    Well,
}

struct Watched<S> {
    source: S,
    watch: Watch<Vec<Mark>>,
}

/// Watches files.
pub struct Watcher<S> {
    all: Vec<Watched<S>>,
    /// Whose turn it is.
    next: usize,
    look_at: Option<Instant>,
}

impl<S> Default for Watcher<S> {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            next: 0,
            look_at: None,
        }
    }
}

impl<S: Source + Clone> Watcher<S> {
    /// Watches files of which that is in use that the source says. `marks` are those of before it was read;
    /// without them the first look reads them. Files that are watched already go on where that is in use of
    /// them, and begin anew where something else is.
    pub fn watch(&mut self, source: S, marks: Vec<Mark>) {
        if self
            .all
            .iter()
            .any(|watched| watched.source.is_same(&source))
        {
            return;
        }
        self.all.retain(|watched| !watched.source.is_at(&source));
        self.all.push(Watched {
            watch: Watch::new(marks),
            source,
        });
    }

    /// Watches no other files than these any more.
    pub fn retain(&mut self, mut keep: impl FnMut(&S) -> bool) {
        self.all.retain(|watched| keep(&watched.source));
    }

    /// What is watched.
    pub fn all(&self) -> impl Iterator<Item = &S> {
        self.all.iter().map(|watched| &watched.source)
    }

    /// The files that are wrong, and what is, also if that may still be the middle of a change.
    pub fn troubles(&self) -> impl Iterator<Item = (&S, &str)> {
        let all = self.all.iter();
        all.filter_map(|watched| Some((&watched.source, watched.watch.trouble()?)))
    }

    /// When [`Watcher::turn`] has something to do; `None` also before the first one.
    pub fn deadline(&self) -> Option<Instant> {
        self.look_at.filter(|_| !self.all.is_empty())
    }

    /// Looks at files whose turn it is, if it is time, and reads those that have changed. `unix_s` is the
    /// time in seconds since 1970.
    pub fn turn(&mut self, now: Instant, unix_s: i64) -> Vec<Change<S>> {
        if self.look_at.is_some_and(|at| now < at) || self.all.is_empty() {
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
            let mut step = watched.watch.looked(watched.source.marks(), now);
            let mut read = None;
            if step == Step::Read {
                reads += 1;
                let (outcome, found) = watched.read(unix_s);
                step = watched.watch.found(outcome, now);
                read = found;
            }
            let news = match (step, read) {
                (Step::Use, Some(read)) => {
                    watched.source.take(&read);
                    News::Use(read)
                }
                (Step::Warn(why), _) => News::Warn(why),
                (Step::Well, _) => News::Well,
                _ => continue,
            };
            let of = watched.source.clone();
            changes.push(Change { of, news });
        }
        changes
    }
}

impl<S: Source> Watched<S> {
    fn read(&self, unix_s: i64) -> (Outcome, Option<S::Read>) {
        let before = self.source.marks();
        let read = self.source.read(unix_s);
        // Of what changed meanwhile nothing is known: one file may be of another day than the other.
        if self.source.marks() != before {
            return (Outcome::Torn, None);
        }
        match read {
            Err(why) => (Outcome::Wrong(why), None),
            Ok(None) => (Outcome::Same, None),
            Ok(Some(read)) => (Outcome::Better, Some(read)),
        }
    }
}

#[cfg(test)]
mod tests;
