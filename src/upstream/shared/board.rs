//! The protocol between the writers of the words.
//!
//! Generic over the atomics, so that the model test can put in those of loom; times are plain numbers.
//! The reasons for the orderings stand at the head of [`shared`](super).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Ejection, Judge, Word};
use crate::upstream::balance::Standing;
use crate::upstream::health::{Census, EjectionLimits, FailureKind, Reason};

/// What the board needs of an atomic word.
pub(super) trait Cell: Default {
    /// Acquires.
    fn read(&self) -> u64;
    /// The last value in the order of this word, by a read-modify-write that acquires and releases.
    fn read_last(&self) -> u64;
    /// Acquires and releases when it succeeds, acquires when it fails; may fail for nothing.
    fn exchange(&self, old: u64, new: u64) -> Result<u64, u64>;
}

/// What the board needs of an atomic flag.
pub(super) trait Flag: Default {
    /// Sets it and says what it was; acquires.
    fn take(&self) -> bool;
    /// Clears it; releases.
    fn give_back(&self);
}

/// The words of all servers.
#[derive(Debug)]
pub(super) struct Board<C, F> {
    pub(super) words: Box<[C]>,
    /// Whether somebody counts and puts out just now.
    deciding: F,
}

impl<C: Cell, F: Flag> Board<C, F> {
    pub(super) fn new(servers: usize) -> Self {
        Self {
            words: (0..servers).map(|_| C::default()).collect(),
            deciding: F::default(),
        }
    }

    /// Gives the time until which it is out.
    pub(super) fn eject(
        &self,
        index: usize,
        reason: Reason,
        limits: &EjectionLimits,
        now_ms: u64,
    ) -> Result<u64, Ejection> {
        // Most failures end here, before the flag.
        if Word(self.words[index].read()).standing(now_ms) == Standing::Down {
            return Err(Ejection::AlreadyOut);
        }
        if self.deciding.take() {
            return Err(Ejection::Busy);
        }
        let ejected = self.eject_alone(index, reason, limits, now_ms);
        self.deciding.give_back();
        if ejected.is_ok() {
            self.leave_someone(now_ms);
        }
        ejected
    }

    /// With the flag taken.
    fn eject_alone(
        &self,
        index: usize,
        reason: Reason,
        limits: &EjectionLimits,
        now_ms: u64,
    ) -> Result<u64, Ejection> {
        let mut out = Err(Ejection::AlreadyOut);
        self.change(index, |word| {
            out = Err(Ejection::AlreadyOut);
            if word.standing(now_ms) == Standing::Down {
                return None;
            }
            // Whoever has the administrator's drain takes few requests and leaves by itself.
            if word.admin() != Standing::Up || !limits.allow(self.census(now_ms)) {
                out = Err(Ejection::NotAllowed);
                return None;
            }
            let well_ms = now_ms.saturating_sub(word.until_ms());
            let times = limits.remaining(word.ejections(), well_ms);
            let word = word
                .with_until(now_ms.saturating_add(limits.time_ms(times)))
                .with_ejections(times + 1)
                .with_reason(reason);
            out = Ok(word.until_ms());
            Some(word)
        });
        out
    }

    pub(super) fn condemn(
        &self,
        index: usize,
        judge: Judge,
        kind: FailureKind,
        now_ms: u64,
    ) -> bool {
        let reason = Reason {
            finder: judge.finder(),
            kind,
        };
        let is_news = self.change(index, |word| {
            let judges = word.judges() | judge.bit();
            (judges != word.judges()).then(|| word.with_judges(judges).with_reason(reason))
        });
        if is_news {
            self.leave_someone(now_ms);
        }
        is_news
    }

    pub(super) fn acquit(&self, index: usize, judge: Judge, now_ms: u64) -> bool {
        self.change(index, |word| {
            let judges = word.judges() & !judge.bit();
            (judges != word.judges()).then(|| word.with_judges(judges).with_until(now_ms))
        })
    }

    pub(super) fn set_admin(&self, index: usize, admin: Standing, now_ms: u64) -> bool {
        let has_changed = self.change(index, |word| {
            let mut new = word.with_admin(admin);
            let was_down = word.admin() == Standing::Down;
            if admin != Standing::Down && was_down
                || admin == Standing::Up && word.is_ejected(now_ms)
            {
                new = new.with_until(now_ms);
            }
            (new != word).then_some(new)
        });
        if has_changed {
            self.leave_someone(now_ms);
        }
        has_changed
    }

    /// Pardons all that are out by suspicion alone when nobody else is left.
    fn leave_someone(&self, now_ms: u64) {
        let takes_requests = |cell: &C| Word(cell.read_last()).standing(now_ms) == Standing::Up;
        // All words and not up to the first that takes requests: each read is also a release that the
        // next writer of that word may need.
        if self
            .words
            .iter()
            .filter(|cell| takes_requests(cell))
            .count()
            > 0
        {
            return;
        }
        for index in 0..self.words.len() {
            self.change(index, |word| {
                word.is_only_suspected(now_ms)
                    .then(|| word.with_until(now_ms))
            });
        }
    }

    fn census(&self, now_ms: u64) -> Census {
        let mut census = Census::default();
        for word in self.words.iter().map(|cell| Word(cell.read())) {
            if word.admin() == Standing::Up {
                census.all += 1;
                census.ejected += usize::from(word.is_ejected(now_ms));
                census.usable += usize::from(word.standing(now_ms) == Standing::Up);
            }
        }
        census
    }

    /// Changes a word until nobody came between; `None` leaves it. Says whether it was changed.
    ///
    /// Ends: each failure is another writer's success, and writers are rare.
    fn change(&self, index: usize, mut new: impl FnMut(Word) -> Option<Word>) -> bool {
        let cell = &self.words[index];
        let mut old = cell.read();
        while let Some(word) = new(Word(old)) {
            match cell.exchange(old, word.0) {
                Ok(_) => return true,
                Err(last) => old = last,
            }
        }
        false
    }
}

impl Cell for AtomicU64 {
    fn read(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    fn read_last(&self) -> u64 {
        self.fetch_or(0, Ordering::AcqRel)
    }

    fn exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        self.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Acquire)
    }
}

impl Flag for AtomicBool {
    fn take(&self) -> bool {
        self.swap(true, Ordering::Acquire)
    }

    fn give_back(&self) {
        self.store(false, Ordering::Release);
    }
}
