//! Cold files by O_DIRECT: what a core keeps for it. Blocks that were read, which files were asked for,
//! whether memory is short, and what was done, in numbers.
//!
//! The reason is the page cache: a sweep over an archive that is read through it evicts what everybody
//! asks for. Who sends such files is `net::send`.

pub mod admission;
mod blocks;
pub mod pressure;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use self::admission::{DirectMode, Ghosts};
use self::blocks::Blocks;
pub use self::blocks::{BlockClaim, FileId};
use self::pressure::{MemoryFiles, MemorySample};
use super::engine::Engine;
use super::executor::Core;
use super::op::{Op, Output, ZeroCopyLedger};
use super::tuning::{Tuning, ZEROCOPY_ON_FROM, ZeroCopy};

/// Most clients that are remembered to get copies whatever was asked for; the one that was noted longest
/// ago is forgotten first, and tried once more.
const COPIED_MAX: usize = 64;

/// Most notifications that one transfer may have outstanding; beyond it sends are copied.
const AWAITED_MAX: u32 = 16;

/// How long a sample of memory is believed.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(2);

/// How long it is believed at least: while memory is short, each cold file asks.
const SAMPLE_AGE_MIN: Duration = Duration::from_millis(100);

/// What was done, since the core's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectCounts {
    /// Transfers that began to read by O_DIRECT.
    pub transfers: u64,
    /// Bytes read from disks into fixed buffers.
    pub read_bytes: u64,
    /// Bytes sent from fixed buffers.
    pub sent_bytes: u64,
    /// Blocks that were wanted and there already, or on their way.
    pub shared: u64,
    /// Files that the file system doesn't let read by O_DIRECT.
    pub unsupported: u64,
    /// Blocks that found no buffer free.
    pub no_room: u64,
    /// Reads that failed or ended before the file should.
    pub failed: u64,
    /// Blocks that were given back because their client didn't take them.
    pub given_back: u64,
    /// Zero-copy sends.
    pub zerocopy_sends: u64,
    /// Bytes of them.
    pub zerocopy_bytes: u64,
    /// Notifications which said that the kernel had copied.
    pub zerocopy_copied: u64,
}

/// What a core keeps for it.
pub(crate) struct Direct {
    blocks: RefCell<Blocks>,
    ghosts: RefCell<Ghosts>,
    counts: Cell<DirectCounts>,
    zero_copy: Cell<ZeroCopy>,
    /// The kernel has refused such a send for what it is.
    zero_copy_refused: Cell<bool>,
    /// Clients to whom the kernel has copied after all.
    copied: RefCell<VecDeque<IpAddr>>,
    memory: RefCell<Option<Arc<MemoryFiles>>>,
    /// What could be read through the page cache when it was sampled last, less what was asked for since.
    room: Cell<u64>,
    sampled: Cell<Option<Instant>>,
}

impl Default for Direct {
    fn default() -> Self {
        Self {
            blocks: RefCell::default(),
            ghosts: RefCell::default(),
            counts: Cell::default(),
            zero_copy: Cell::new(ZeroCopy::Off),
            zero_copy_refused: Cell::new(false),
            copied: RefCell::default(),
            memory: RefCell::default(),
            room: Cell::new(u64::MAX),
            sampled: Cell::new(None),
        }
    }
}

impl Core {
    /// Takes these numbers from now on, and sends without a copy as `zero_copy` says; at first never.
    pub fn tune(&self, tuning: Tuning, zero_copy: ZeroCopy) {
        let direct = &self.inner().direct;
        self.inner().tuning.set(tuning);
        direct.zero_copy.set(zero_copy);
    }

    /// Looks here from now on how much memory is free; before that there is always enough.
    pub fn watch_page_cache(&self, files: Arc<MemoryFiles>) {
        *self.inner().direct.memory.borrow_mut() = Some(files);
    }

    /// Whether a file of so many bytes, read through the page cache, would push others out of it. Has memory
    /// sampled where the last sample doesn't tell, and waits for that: it is nothing beside a disk.
    async fn is_pressed(&self, bytes: u64) -> bool {
        let direct = &self.inner().direct;
        let (now, last) = (self.now(), direct.sampled.get());
        let age = last.map(|at| now.saturating_duration_since(at));
        let used_up = bytes > direct.room.get();
        let old = age.is_none_or(|age| age >= SAMPLE_AGE_MAX || used_up && age >= SAMPLE_AGE_MIN);
        let files = direct.memory.borrow().clone();
        if old && let Some(files) = files {
            direct.sampled.set(Some(now));
            let job = Box::new(move || Box::new(files.sample()) as Box<_>);
            let done = self.once(Op::Offload(job)).await;
            let sample = match done.output {
                Output::Answer(answer) => answer.downcast::<Option<MemorySample>>().ok(),
                _ => None,
            };
            let sample = sample.and_then(|sample| *sample);
            direct.room.set(sample.map_or(u64::MAX, |it| it.room()));
        }
        match direct.room.get().checked_sub(bytes) {
            Some(left) => {
                direct.room.set(left);
                false
            }
            None => true,
        }
    }

    /// What was done so far.
    pub fn direct_counts(&self) -> DirectCounts {
        self.inner().direct.counts.get()
    }

    /// Counts something.
    pub fn count_direct(&self, count: impl FnOnce(&mut DirectCounts)) {
        let counts = &self.inner().direct.counts;
        let mut changed = counts.get();
        count(&mut changed);
        counts.set(changed);
    }

    /// Whether a file whose pages aren't in memory is to be read by O_DIRECT. Asked once a transfer.
    pub async fn wants_direct(&self, mode: DirectMode, file: (u64, u64), bytes: u64) -> bool {
        let block = self.fixed_bytes() as u64;
        if mode == DirectMode::Off || block == 0 || bytes < block {
            return false;
        }
        let direct = &self.inner().direct;
        let asked = direct.ghosts.borrow_mut().ask(file, self.now());
        let pressed = mode == DirectMode::Auto && self.is_pressed(bytes).await;
        admission::admits(mode, pressed, asked)
    }

    /// Bytes from which on a send out of a fixed buffer is to be made without a copy; `None` for never.
    /// `ledger` is that of the transfer. Memory that isn't registered is pinned and counted for each send,
    /// which only those who want it at any price get.
    pub fn zero_copy_from(&self, registered: bool, ledger: &ZeroCopyLedger) -> Option<u64> {
        let direct = &self.inner().direct;
        if direct.zero_copy_refused.get() || ledger.awaited() >= AWAITED_MAX {
            return None;
        }
        match direct.zero_copy.get() {
            ZeroCopy::Off => None,
            ZeroCopy::On => Some(ZEROCOPY_ON_FROM),
            ZeroCopy::Auto if !registered => None,
            ZeroCopy::Auto => {
                let peer = ledger.peer()?;
                let from = self.tuning().zerocopy_from;
                from.filter(|_| !direct.copied.borrow().contains(&peer))
            }
        }
    }

    /// Whether zero-copy sends can be had at all, as far as is known.
    pub fn has_zero_copy(&self) -> bool {
        let possible = self.with_engine(|engine| !matches!(engine, Engine::Poll(_)));
        possible && !self.inner().direct.zero_copy_refused.get()
    }

    /// A zero-copy send failed: whether that says nothing of the connection, and the same bytes can be
    /// sent with a copy. The kernel isn't asked again for what it doesn't have (`EINVAL`,
    /// `EOPNOTSUPP`), or can't do within the memory lock limit (`ENOMEM`).
    pub fn zero_copy_failed(&self, errno: Errno) -> bool {
        let refused = matches!(
            errno,
            Errno::INVAL | Errno::OPNOTSUPP | Errno::NOMEM | Errno::ACCESS
        );
        if refused {
            self.inner().direct.zero_copy_refused.set(true);
        }
        refused || errno == Errno::NOBUFS
    }

    pub(crate) fn notified(&self, ledger: &ZeroCopyLedger, copied: bool) {
        ledger.notified();
        if copied && let Some(peer) = ledger.peer() {
            let routes = &mut *self.inner().direct.copied.borrow_mut();
            if !routes.contains(&peer) {
                routes.truncate(COPIED_MAX - 1);
                routes.push_front(peer);
            }
        }
        self.count_direct(|counts| counts.zerocopy_copied += u64::from(copied));
    }

    /// Forgets every block that was read.
    pub(crate) fn drop_blocks(&self) {
        let blocks = std::mem::take(&mut *self.inner().direct.blocks.borrow_mut());
        drop(blocks);
        self.release_fixed();
    }
}

#[cfg(test)]
mod tests;
