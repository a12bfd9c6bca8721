//! What all cores know of the servers of an upstream: health and the administrator's word.
//!
//! Each server is one atomic word, so what a core reads of it is of one moment, and a pick waits for
//! nobody. Writers (a core that found a server ill, the one that probes it, the control socket) are
//! rare and change a word by compare-exchange: of two that would put a server out, one wins and says
//! so in the log. This knows no connection and no clock.
//!
//! # Ordering
//!
//! A word carries all that is to be known of a server; nothing else is published by it. So reads could
//! be relaxed, but for two rules that hold across words:
//!
//! - *Suspicion never takes more than its share.* To put a server out is to count the others first, and
//!   two cores that count at the same time would both find room. One flag (`deciding`) is taken for
//!   the while, by a swap that acquires what the last holder released, so each one counts what those
//!   before it did. Nobody waits for the flag: who finds it taken leaves the server in, and the next
//!   failure asks again.
//! - *Suspicion never leaves nobody.* A probe, the resolver or the administrator put a server out
//!   without the flag, because they know. That may happen while a core puts out the only other one. So
//!   each writer, after its own change, reads all words by a read-modify-write, and if no server is
//!   left it pardons those that are out by suspicion alone. Of two writers one finds it: for their
//!   words X and Y, each changes its own and then reads the other's. If the second one's read of X
//!   comes before the first one's change of X in the order of X, that read released the second one's
//!   change of Y, the first one's change acquired it, and its read of Y, which is later, sees it. The
//!   model test tries all orders, and shows that plain reads would not do.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::balance::Standing;
use super::health::{EjectionLimits, FailureKind, Finder, Reason};

/// The servers of one upstream, by index.
#[derive(Debug)]
pub struct Shared {
    board: Board<AtomicU64, AtomicBool>,
    epoch: Instant,
}

/// Who puts a server out because he knows, and takes it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    /// Its probe.
    Probe,
    /// The resolver of its name.
    Resolver,
}

/// What became of a server that a core found ill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejection {
    /// It is out until then: this core has to say so in the log.
    Until(Instant),
    /// It was out already, by whomever.
    AlreadyOut,
    /// It stays in: too many are out, or it is the last one, or suspicion is off.
    NotAllowed,
    /// It stays in for now: another core was deciding just then.
    Busy,
}

/// All of a server at one moment: for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerState {
    /// What it takes, all in all.
    pub standing: Standing,
    /// What the administrator says.
    pub admin: Standing,
    /// Until when it is out by suspicion.
    pub ejected_until: Option<Instant>,
    /// How often it was, lately. At most 31.
    pub ejections: u8,
    /// Why it is out, when health keeps it out; else why it was out last.
    pub reason: Option<Reason>,
    /// When it came back, if it was ever out: the begin of its slow start.
    pub recovered: Option<Instant>,
}

impl Shared {
    /// All of `servers` up. Times are kept in milliseconds since `epoch`, for 17 years.
    pub fn new(servers: usize, epoch: Instant) -> Self {
        Self {
            board: Board::new(servers),
            epoch,
        }
    }

    /// As [`Shared::new`] after a reload: the server at each index is the one at that index of
    /// `before`, if any, with all that is known of it. Writers of `before` that come later are lost; what
    /// they found is found again.
    pub fn succeeding(before: &Self, servers: &[Option<usize>]) -> Self {
        let board = Board::<AtomicU64, AtomicBool>::new(servers.len());
        for (word, old) in board.words.iter().zip(servers) {
            if let Some(old) = old.and_then(|old| before.board.words.get(old)) {
                word.store(old.load(Ordering::Acquire), Ordering::Release);
            }
        }
        Self {
            board,
            epoch: before.epoch,
        }
    }

    /// How many servers there are.
    pub fn len(&self) -> usize {
        self.board.words.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.board.words.is_empty()
    }

    /// For a view: what the server at `index` takes at `now`, and when it came back. One load.
    pub fn standing(&self, index: usize, now: Instant) -> (Standing, Option<Instant>) {
        let word = Word(self.board.words[index].load(Ordering::Relaxed));
        (word.standing(self.ms(now)), self.recovered(word))
    }

    /// All of the server at `index` at `now`.
    pub fn state(&self, index: usize, now: Instant) -> ServerState {
        let word = Word(self.board.words[index].load(Ordering::Acquire));
        let now_ms = self.ms(now);
        let is_ejected = word.until_ms() > now_ms;
        ServerState {
            standing: word.standing(now_ms),
            admin: word.admin(),
            ejected_until: is_ejected.then(|| self.instant(word.until_ms())),
            ejections: word.ejections() as u8,
            reason: word.reason(),
            recovered: self.recovered(word).filter(|_| !is_ejected),
        }
    }

    /// Whether `judge` has condemned the server at `index`, and not acquitted it since.
    pub fn is_condemned(&self, index: usize, judge: Judge) -> bool {
        let word = Word(self.board.words[index].load(Ordering::Acquire));
        word.judges() & judge.bit() != 0
    }

    /// A core found the server at `index` ill: puts it out for a time if that is allowed.
    pub fn eject(
        &self,
        index: usize,
        reason: Reason,
        limits: &EjectionLimits,
        now: Instant,
    ) -> Ejection {
        match self.board.eject(index, reason, limits, self.ms(now)) {
            Ok(until_ms) => Ejection::Until(self.instant(until_ms)),
            Err(ejection) => ejection,
        }
    }

    /// `judge` found the server at `index` to have failed. Says whether that is news.
    pub fn condemn(&self, index: usize, judge: Judge, kind: FailureKind, now: Instant) -> bool {
        self.board.condemn(index, judge, kind, self.ms(now))
    }

    /// `judge` found it well again: its slow start begins, and suspicion of before is over. Says whether
    /// that is news.
    pub fn acquit(&self, index: usize, judge: Judge, now: Instant) -> bool {
        self.board.acquit(index, judge, self.ms(now))
    }

    /// The administrator's word, which stands above health. [`Standing::Up`] also ends suspicion, and
    /// begins a slow start if the server was out. Says whether anything changed.
    pub fn set_admin(&self, index: usize, admin: Standing, now: Instant) -> bool {
        self.board.set_admin(index, admin, self.ms(now))
    }

    fn recovered(&self, word: Word) -> Option<Instant> {
        (word.until_ms() > 0).then(|| self.instant(word.until_ms()))
    }

    fn ms(&self, at: Instant) -> u64 {
        // 2^64 ms are longer than any Instant. One more, because 0 means never.
        at.saturating_duration_since(self.epoch).as_millis() as u64 + 1
    }

    fn instant(&self, ms: u64) -> Instant {
        self.epoch + Duration::from_millis(ms.saturating_sub(1))
    }
}

/// One server. From the low end: 2 bits administrator, 2 bits judges against it, 5 bits ejections,
/// 16 bits reason, 39 bits time: out until then by suspicion, or back since then; 0 for never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Word(u64);

const JUDGES_SHIFT: u32 = 2;
const EJECTIONS_SHIFT: u32 = 4;
const EJECTIONS_MAX: u64 = 31;
const REASON_SHIFT: u32 = 9;
const UNTIL_SHIFT: u32 = REASON_SHIFT + Reason::CODE_BITS;
const UNTIL_MAX: u64 = (1 << (u64::BITS - UNTIL_SHIFT)) - 1;

impl Word {
    fn admin(self) -> Standing {
        match self.0 & 0b11 {
            0 => Standing::Up,
            1 => Standing::Drain,
            _ => Standing::Down,
        }
    }

    fn with_admin(self, admin: Standing) -> Self {
        let bits = match admin {
            Standing::Up => 0,
            Standing::Drain => 1,
            Standing::Down => 2,
        };
        self.with(0, 0b11, bits)
    }

    fn judges(self) -> u64 {
        self.0 >> JUDGES_SHIFT & 0b11
    }

    fn with_judges(self, judges: u64) -> Self {
        self.with(JUDGES_SHIFT, 0b11, judges)
    }

    fn ejections(self) -> u64 {
        self.0 >> EJECTIONS_SHIFT & EJECTIONS_MAX
    }

    fn with_ejections(self, ejections: u64) -> Self {
        self.with(EJECTIONS_SHIFT, EJECTIONS_MAX, ejections.min(EJECTIONS_MAX))
    }

    fn reason(self) -> Option<Reason> {
        Reason::from_code(self.0 >> REASON_SHIFT & ((1 << Reason::CODE_BITS) - 1))
    }

    fn with_reason(self, reason: Reason) -> Self {
        self.with(REASON_SHIFT, (1 << Reason::CODE_BITS) - 1, reason.code())
    }

    fn until_ms(self) -> u64 {
        self.0 >> UNTIL_SHIFT
    }

    /// At least 1: 0 means never.
    fn with_until(self, ms: u64) -> Self {
        self.with(UNTIL_SHIFT, UNTIL_MAX, ms.clamp(1, UNTIL_MAX))
    }

    fn with(self, shift: u32, mask: u64, bits: u64) -> Self {
        Self(self.0 & !(mask << shift) | bits << shift)
    }

    fn is_ejected(self, now_ms: u64) -> bool {
        self.until_ms() > now_ms
    }

    fn standing(self, now_ms: u64) -> Standing {
        if self.judges() != 0 || self.is_ejected(now_ms) {
            Standing::Down
        } else {
            self.admin()
        }
    }

    /// Out by suspicion, and by nothing else.
    fn is_only_suspected(self, now_ms: u64) -> bool {
        self.admin() == Standing::Up && self.judges() == 0 && self.is_ejected(now_ms)
    }
}

impl Judge {
    fn bit(self) -> u64 {
        match self {
            Self::Probe => 0b01,
            Self::Resolver => 0b10,
        }
    }

    fn finder(self) -> Finder {
        match self {
            Self::Probe => Finder::Probe,
            Self::Resolver => Finder::Resolver,
        }
    }
}

mod board;
use board::Board;

#[cfg(test)]
mod tests;
