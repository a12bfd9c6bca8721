//! The memory of a process against its limit: counted per core, summed without a lock, and compared
//! with what the kernel says.
//!
//! Every byte of the heap counts, whoever allocates it: the allocator itself keeps the count of the
//! thread (`sys::heap`), so no buffer, table or queue can be forgotten. A core publishes its count once
//! a turn, in a cache line of its own. Whether the sum comes near the limit is asked only when the
//! core's own count has grown by its part of what is left: until then one comparison after each task.
//!
//! What the process costs before it serves (code that was relocated, stacks, rings, tables) is its base
//! and is subtracted. What the allocator keeps beyond what is in use (fragments) is the slack: it is
//! measured after free memory was given back, and counts as used.

mod shed;

use std::cell::{Cell, OnceCell};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::executor::Core;
use super::mailbox::Wake;
use super::sys::heap;
use super::task::TaskId;

pub use shed::{Level, Orders, Reading, Shedder};

/// A core looks at the sum at the latest when it has grown by so much, however much is left.
const LOOK_MAX: i64 = 64 << 20;

/// And not sooner than by so much.
const LOOK_MIN: i64 = 64 << 10;

/// Free memory beyond an eighth of the room is given back to the kernel when that is noticed; at least
/// and at most so much.
const FREE_MIN: u64 = 4 << 20;
const FREE_MAX: u64 = 64 << 20;

/// How often the kernel is asked for one measurement of the slack, and how long between.
const SAMPLES: usize = 4;
const BETWEEN_SAMPLES: Duration = Duration::from_millis(5);

/// What a process has beyond its base at least, for each core: below, nothing could be served.
pub const ROOM_MIN: u64 = 4 << 20;

/// A cache line, or two that are fetched together.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Line(AtomicI64);

/// What all cores of a process know of its memory.
#[derive(Debug)]
pub struct Ledger {
    /// Bytes that the process may use in all.
    limit: u64,
    /// What each core has in use.
    cores: Box<[Line]>,
    /// What threads that are no cores have in use counts, too. Not so in a simulation, where these are
    /// other tests.
    others: bool,
    /// Anonymous memory at the start that isn't in any count, in bytes.
    uncounted: AtomicI64,
    /// What was in use at the start, uncounted memory included; below zero before that.
    base: AtomicI64,
    /// Memory that the allocator has beyond what is in use, measured after it gave back what it could.
    slack: AtomicI64,
    /// How often a core has found memory short.
    alarms: AtomicU64,
    /// What cores are woken by to hear of an alarm.
    wakes: Box<[Arc<Wake>]>,
    /// Somebody gives free memory back just now.
    trimming: AtomicBool,
    /// `/proc/self/statm`, opened before the process was confined.
    statm: Option<OwnedFd>,
}

/// Opens what [`Ledger::measure`] reads; `None` where there is no `/proc`.
pub fn open_statm() -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/self/statm", flags, Mode::empty()).ok()
}

impl Ledger {
    /// For a process that may use `limit` bytes, with a core for each wake. Nothing is short before
    /// [`Self::begin`].
    pub fn new(limit: u64, wakes: Vec<Arc<Wake>>, statm: Option<OwnedFd>) -> Arc<Self> {
        Arc::new(Self {
            limit,
            cores: wakes.iter().map(|_| Line::default()).collect(),
            others: true,
            uncounted: AtomicI64::new(0),
            base: AtomicI64::new(-1),
            slack: AtomicI64::new(0),
            alarms: AtomicU64::new(0),
            wakes: wakes.into(),
            trimming: AtomicBool::new(false),
            statm,
        })
    }

    /// For the one core of this thread, beyond what is in use now; what other threads do doesn't count.
    pub fn of_this_thread(room: u64) -> Arc<Self> {
        heap::claim();
        let base = heap::own_and_pooled();
        let line = Line(AtomicI64::new(base));
        Arc::new(Self {
            limit: room + u64::try_from(base).unwrap_or(0),
            cores: Box::new([line]),
            others: false,
            uncounted: AtomicI64::new(0),
            base: AtomicI64::new(base.max(0)),
            slack: AtomicI64::new(0),
            alarms: AtomicU64::new(0),
            wakes: Box::new([]),
            trimming: AtomicBool::new(false),
            statm: None,
        })
    }

    /// All cores stand: what is in use now is the base. `untouched`: bytes that are counted, and that
    /// the kernel gives at the first use.
    pub fn begin(&self, untouched: u64) {
        if let Some(measured) = self.measure() {
            let uncounted = measured + untouched as i64 - self.counted();
            self.uncounted.store(uncounted.max(0), Ordering::Relaxed);
        }
        self.base.store(self.used().max(0), Ordering::Relaxed);
        self.alarm();
    }

    /// Bytes that the process may use in all.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that it used when it began; 0 before.
    pub fn base(&self) -> u64 {
        u64::try_from(self.base.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Bytes that it may use beyond its base, at least [`ROOM_MIN`] for each core.
    pub fn room(&self) -> u64 {
        let least = ROOM_MIN * self.cores.len() as u64;
        match self.others {
            true => self.limit.saturating_sub(self.base()).max(least),
            false => self.limit.saturating_sub(self.base()),
        }
    }

    /// Whether the limit leaves less beyond the base than is needed to serve.
    pub fn is_too_small(&self) -> bool {
        self.limit.saturating_sub(self.base()) < self.room()
    }

    /// Bytes beyond what is in use that the allocator can't give back, as measured last.
    pub fn slack(&self) -> u64 {
        u64::try_from(self.slack.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Bytes that threads which are no cores have in use, and what is no heap.
    pub fn elsewhere(&self) -> u64 {
        let bytes = heap::others() + self.uncounted.load(Ordering::Relaxed);
        u64::try_from(bytes).unwrap_or(0)
    }

    fn counted(&self) -> i64 {
        let cores = self.cores.iter().map(|line| line.0.load(Ordering::Relaxed));
        cores.sum::<i64>() + if self.others { heap::others() } else { 0 }
    }

    fn used(&self) -> i64 {
        let uncounted = self.uncounted.load(Ordering::Relaxed);
        self.counted() + uncounted + self.slack.load(Ordering::Relaxed)
    }

    /// Bytes in use in all, the base included.
    pub fn total(&self) -> u64 {
        u64::try_from(self.used()).unwrap_or(0)
    }

    /// What is used beyond the base, for a core whose connections hold `own` bytes.
    pub fn reading(&self, own: u64) -> Reading {
        if self.base.load(Ordering::Relaxed) < 0 {
            return Reading {
                used: 0,
                room: u64::MAX,
                own,
            };
        }
        Reading {
            used: self.total().saturating_sub(self.base()),
            room: self.room(),
            own,
        }
    }

    /// The anonymous memory of the process in bytes, as the kernel counts it.
    fn measure(&self) -> Option<i64> {
        let mut text = [0; 128];
        let read = rustix::io::pread(self.statm.as_ref()?.as_fd(), &mut text, 0).ok()?;
        parse_statm(
            std::str::from_utf8(&text[..read]).ok()?,
            rustix::param::page_size(),
        )
    }

    /// Compares the counts with what the kernel says, after free memory was given back: the difference
    /// is the slack. A core that is in the middle of a turn has more, or less, than it has told, so the
    /// least of some differences counts.
    fn measure_slack(&self) {
        let mut least = i64::MAX;
        for _ in 0..SAMPLES {
            let Some(difference) = self.difference() else {
                return;
            };
            least = least.min(difference);
            if least <= self.slack.load(Ordering::Relaxed) {
                break;
            }
            std::thread::park_timeout(BETWEEN_SAMPLES);
        }
        self.slack.store(least, Ordering::Relaxed);
    }

    /// Takes back what was said of the slack, as far as the kernel counts less by now. A few microseconds.
    pub fn lower_slack(&self) {
        let slack = self.slack.load(Ordering::Relaxed);
        if slack > 0
            && let Some(difference) = self.difference()
            && difference < slack
        {
            self.slack.store(difference, Ordering::Relaxed);
        }
    }

    /// Whether free memory is to be given back now, by [`give_back`]: only by one at a time, until
    /// [`Self::end_trim`].
    pub fn begin_trim(&self) -> bool {
        !self.trimming.swap(true, Ordering::Relaxed)
    }

    /// The next one may.
    pub fn end_trim(&self) {
        self.trimming.store(false, Ordering::Relaxed);
    }

    /// Bytes that the kernel counts and we don't.
    fn difference(&self) -> Option<i64> {
        let counted = self.counted() + self.uncounted.load(Ordering::Relaxed);
        Some((self.measure()? - counted).max(0))
    }

    /// Looks whether the process is much larger than its counts say. Then free memory is given back to
    /// the kernel, and what stays counts as used. For a thread that may take milliseconds for it.
    pub fn verify(&self) {
        let Some(difference) = self.difference() else {
            return;
        };
        if difference <= self.slack.load(Ordering::Relaxed) {
            self.slack.store(difference, Ordering::Relaxed);
            return;
        }
        let used = self.counted() + self.uncounted.load(Ordering::Relaxed) + difference;
        let beyond = u64::try_from(used).unwrap_or(0).saturating_sub(self.base());
        let is_short = beyond >= Level::Caches.begins(self.room());
        let free_max = (self.room() / 8).clamp(FREE_MIN, FREE_MAX);
        let free = difference - self.slack.load(Ordering::Relaxed);
        if (is_short || free >= free_max as i64) && self.begin_trim() {
            give_back(self);
            self.end_trim();
            self.alarm();
        }
    }

    /// Has every core look.
    pub fn alarm(&self) {
        self.alarms.fetch_add(1, Ordering::Relaxed);
        self.wakes.iter().for_each(|wake| wake.wake());
    }
}

/// Resident pages that are not of files nor shared: the second field less the third (proc_pid_statm(5)).
fn parse_statm(text: &str, page: usize) -> Option<i64> {
    let mut fields = text.split(' ').skip(1);
    let mut next = || fields.next()?.trim().parse::<i64>().ok();
    let (resident, shared) = (next()?, next()?);
    Some((resident - shared).max(0) * page as i64)
}

/// Gives free memory back to the kernel, and measures what is left: milliseconds. For a thread that is
/// no core, after [`Ledger::begin_trim`].
pub fn give_back(ledger: &Ledger) {
    heap::trim();
    ledger.measure_slack();
}

/// What a core knows of its memory.
pub(crate) struct Gauge {
    ledger: OnceCell<(Arc<Ledger>, usize)>,
    /// When the own count is here, it is time to look at the sum.
    look_at: Cell<i64>,
    /// The task that looks.
    watcher: Cell<Option<TaskId>>,
    level: Cell<Level>,
    alarms: Cell<u64>,
}

impl Default for Gauge {
    fn default() -> Self {
        Self {
            ledger: OnceCell::new(),
            look_at: Cell::new(i64::MAX),
            watcher: Cell::new(None),
            level: Cell::default(),
            alarms: Cell::new(0),
        }
    }
}

impl Gauge {
    /// Tells the others what this core has in use.
    #[inline]
    pub(super) fn publish(&self) {
        if let Some((ledger, index)) = self.ledger.get() {
            let used = heap::own_and_pooled();
            ledger.cores[*index].0.store(used, Ordering::Relaxed);
        }
    }

    /// The task to be run next, if the count of this core is now where it is to be looked at.
    #[inline]
    pub(super) fn is_due(&self, own: i64) -> bool {
        own >= self.look_at.get()
    }

    /// Takes the task that looks; it isn't due again before it has looked.
    pub(super) fn take_watcher(&self) -> Option<TaskId> {
        self.look_at.set(i64::MAX);
        self.watcher.get()
    }
}

impl Core {
    /// Counts the memory of this core, the one at `index`, in a ledger from now on. The first call
    /// counts.
    pub fn account_to(&self, ledger: Arc<Ledger>, index: usize) {
        let gauge = &self.inner().gauge;
        let _ = gauge.ledger.set((ledger, index));
        gauge.publish();
    }

    /// How short memory is, as this core was told last.
    pub fn memory_level(&self) -> Level {
        self.inner().gauge.level.get()
    }

    /// Whether what would need more memory is to be refused.
    pub fn is_out_of_memory(&self) -> bool {
        self.memory_level() >= Level::Cut
    }

    /// Says how short memory is.
    pub fn set_memory_level(&self, level: Level) {
        self.inner().gauge.level.set(level);
    }

    /// The current task is the one that looks at the memory: it is run next when this core's count
    /// has grown by its part of what is left up to the next level, or has come beyond that.
    pub fn watch_memory(&self, ledger: &Ledger) {
        let gauge = &self.inner().gauge;
        gauge.watcher.set(Some(self.current_task()));
        gauge.publish();
        let Reading { used, room, .. } = ledger.reading(0);
        let levels = [Level::Caches, Level::Idle, Level::Accept, Level::Cut];
        let next = levels.iter().map(|level| level.begins(room));
        let left = next.filter(|begins| *begins > used).min();
        let left = left.map_or(room / 50, |begins| begins - used);
        let cores = ledger.cores.len() as i64;
        let part = i64::try_from(left).unwrap_or(i64::MAX) / (2 * cores.max(1));
        gauge
            .look_at
            .set(heap::own() + part.clamp(LOOK_MIN, LOOK_MAX));
        gauge.alarms.set(ledger.alarms.load(Ordering::Relaxed));
    }

    /// Whether there is a reason to look at the memory since [`Self::watch_memory`]: its own count, or
    /// an alarm, at which the current task is woken. `wakes` is at first `None`, and kept by the task.
    pub fn poll_memory(&self, ledger: &Ledger, wakes: &mut Option<u64>) -> bool {
        self.note_woken(wakes);
        let gauge = &self.inner().gauge;
        gauge.look_at.get() == i64::MAX
            || gauge.is_due(heap::own())
            || gauge.alarms.get() != ledger.alarms.load(Ordering::Relaxed)
    }

    /// Tells the other cores what this one has in use, sooner than at the end of the turn.
    pub fn publish_memory(&self) {
        self.inner().gauge.publish();
    }

    /// Counts what this thread allocates as a core's, until [`Self::release_memory`].
    pub fn claim_memory() {
        heap::claim();
    }

    /// What the thread of a core still has in use when it ends is the process's.
    pub fn release_memory() {
        heap::release();
    }

    /// Bytes of blocks and buffers that are kept to be used again.
    pub fn pooled_memory(&self) -> u64 {
        u64::try_from(heap::pooled()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_memory_is_what_is_resident_and_not_shared() {
        let text = "5000 1200 200 300 0 700 0\n";
        assert_eq!(parse_statm(text, 4096), Some(1000 * 4096));
        assert_eq!(parse_statm("5000 1 2 3", 4096), Some(0));
        assert_eq!(parse_statm("", 4096), None);
        assert_eq!(parse_statm("5000 x 2", 4096), None);
    }

    #[test]
    fn what_is_allocated_is_seen_and_what_is_freed_is_gone() {
        let ledger = Ledger::new(1 << 40, Vec::new(), open_statm());
        assert_eq!(ledger.reading(7).room, u64::MAX, "not begun");
        ledger.begin(0);
        let base = ledger.base();
        assert!(base > 0 && !ledger.is_too_small());
        // Other tests go on meanwhile, but don't use as much. Nothing of it is touched.
        let (size, most) = (16 << 30, 2 << 30);
        let mut block: Vec<u8> = Vec::new();
        if let Err(why) = block.try_reserve_exact(size as usize) {
            crate::runtime::skipped(format_args!(
                "this kernel promises no memory that nobody touches: {why}"
            ));
            return;
        }
        let block = std::hint::black_box(block);
        let used = ledger.reading(0).used;
        assert!(used.abs_diff(size) < most, "{used}");
        drop(block);
        assert!(ledger.reading(0).used < most);
        assert!(ledger.difference().is_some_and(|bytes| bytes < most as i64));
    }

    #[test]
    fn a_limit_below_the_base_leaves_the_least_room() {
        let wake = Wake::new().unwrap();
        let ledger = Ledger::new(1 << 10, vec![wake], open_statm());
        ledger.begin(0);
        assert_eq!(ledger.room(), ROOM_MIN);
        assert!(ledger.is_too_small());
    }
}
