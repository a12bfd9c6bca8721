//! Blocks of cold files in the core's fixed buffers: the page cache for those that are to enter no other.
//!
//! A transfer claims the block that it sends and some after it; several transfers of one file share
//! them. A block that is claimed stays. One that isn't is kept until its buffer is needed, the least
//! recently used first. Where every buffer is claimed there is no room, and the transfer does without.

use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::runtime::buf::fixed::FixedBuf;
use crate::runtime::engine::syscall::FileStat;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::op::{Op, Output};
use crate::runtime::task::TaskId;

/// How long blocks and buffers are kept that nobody used.
const IDLE: Duration = Duration::from_secs(2);

/// How often one that gives nothing new is read again: a read may be interrupted.
const STUCK_MAX: usize = 3;

/// Which content of which file. One that was changed is another.
pub type FileId = FileStat;

struct Block {
    file: FileId,
    /// Its place in the file, in blocks.
    index: u64,
    state: State,
    claims: usize,
    /// When it was claimed last, in claims of all blocks.
    used: u64,
}

enum State {
    /// Being read; these tasks wait for it.
    Loading(Vec<TaskId>),
    Ready(Rc<FixedBuf>),
    Failed,
}

/// All blocks of a core: no more than it has fixed buffers, so they are looked through one by one.
#[derive(Default)]
pub(super) struct Blocks {
    list: Vec<Block>,
    claims: u64,
    last_used: Option<Instant>,
    /// A task is there that lets go of what is idle.
    kept: bool,
}

impl Blocks {
    fn find(&mut self, file: &FileId, index: u64) -> Option<&mut Block> {
        let mut list = self.list.iter_mut();
        list.find(|block| block.index == index && block.file == *file)
    }

    /// Forgets a block whose read failed when nobody claims it any more: whoever asks next has it read again.
    fn forget_failed(&mut self, file: &FileId, index: u64) {
        self.list.retain(|block| {
            let failed = block.claims == 0 && matches!(block.state, State::Failed);
            !(failed && block.index == index && block.file == *file)
        });
    }

    /// Takes the least recently used block out that nobody needs.
    fn evict(&mut self) -> Option<Block> {
        let unused = |block: &Block| match &block.state {
            _ if block.claims > 0 => false,
            State::Loading(_) => false,
            State::Ready(bytes) => Rc::strong_count(bytes) == 1,
            State::Failed => true,
        };
        let all = self.list.iter().enumerate();
        let oldest = all
            .filter(|(_, block)| unused(block))
            .min_by_key(|(_, block)| block.used)
            .map(|(at, _)| at)?;
        Some(self.list.swap_remove(oldest))
    }
}

/// A claim on a block, which is read or being read; given up when dropped.
pub struct BlockClaim {
    core: Core,
    file: FileId,
    /// Its place in the file, in blocks.
    pub index: u64,
}

impl BlockClaim {
    /// The bytes of the block, once they are read; `None` when that failed.
    pub fn poll(&self) -> Poll<Option<Rc<FixedBuf>>> {
        let blocks = &mut *self.core.inner().direct.blocks.borrow_mut();
        match blocks.find(&self.file, self.index).map(|it| &mut it.state) {
            Some(State::Ready(bytes)) => Poll::Ready(Some(Rc::clone(bytes))),
            Some(State::Loading(waiting)) => {
                let task = self.core.current_task();
                if !waiting.contains(&task) {
                    waiting.push(task);
                }
                Poll::Pending
            }
            Some(State::Failed) | None => Poll::Ready(None),
        }
    }
}

impl Drop for BlockClaim {
    fn drop(&mut self) {
        let blocks = &mut *self.core.inner().direct.blocks.borrow_mut();
        if let Some(block) = blocks.find(&self.file, self.index) {
            block.claims -= 1;
            blocks.forget_failed(&self.file, self.index);
        }
    }
}

impl Core {
    /// Whether there are blocks of any file.
    pub fn has_blocks(&self) -> bool {
        !self.inner().direct.blocks.borrow().list.is_empty()
    }

    /// Whether there are blocks of this file.
    pub fn has_blocks_of(&self, file: &FileId) -> bool {
        let blocks = self.inner().direct.blocks.borrow();
        blocks.list.iter().any(|block| block.file == *file)
    }

    /// Claims a block of a file, and has it read if it is not there. `opened` is the file, opened with
    /// O_DIRECT, that wants offsets that are multiples of `align`; `want` bytes of the block are
    /// needed. `None` when there is no room.
    pub fn claim_block(
        &self,
        opened: &Fd,
        file: FileId,
        index: u64,
        (want, align): (usize, usize),
    ) -> Option<BlockClaim> {
        let cell = &self.inner().direct.blocks;
        let claim = || BlockClaim {
            core: self.clone(),
            file,
            index,
        };
        {
            let blocks = &mut *cell.borrow_mut();
            blocks.last_used = Some(self.now());
            blocks.claims += 1;
            let used = blocks.claims;
            if let Some(block) = blocks.find(&file, index) {
                block.claims += 1;
                block.used = used;
                self.count_direct(|counts| counts.shared += 1);
                return Some(claim());
            }
        }
        let buffer = self.fixed_or_evicted()?;
        {
            let blocks = &mut *cell.borrow_mut();
            let used = blocks.claims;
            blocks.list.push(Block {
                file,
                index,
                state: State::Loading(Vec::new()),
                claims: 1,
                used,
            });
            if !std::mem::replace(&mut blocks.kept, true) {
                self.spawn(let_go_of_idle(self.clone()));
            }
        }
        self.spawn(load(
            self.clone(),
            opened.clone(),
            (file, index),
            buffer,
            (want, align),
        ));
        Some(claim())
    }

    /// A fixed buffer, for which an unused block may have to go; counted when there is none.
    pub fn fixed_or_evicted(&self) -> Option<FixedBuf> {
        if let Some(buffer) = self.fixed_buffer() {
            return Some(buffer);
        }
        let cell = &self.inner().direct.blocks;
        while let Some(unused) = { cell.borrow_mut().evict() } {
            drop(unused);
            if let Some(buffer) = self.fixed_buffer() {
                return Some(buffer);
            }
        }
        self.count_direct(|counts| counts.no_room += 1);
        None
    }

    /// Reads `range` of a fixed buffer from the file, of which `want` bytes are needed from the buffer's
    /// beginning on; the file's bytes from `offset` on belong there. Gives the buffer back, filled as far
    /// as the file goes.
    ///
    /// # Errors
    /// What the read failed with; the buffer has gone back.
    pub async fn read_fixed(
        &self,
        opened: &Fd,
        mut buffer: FixedBuf,
        (offset, len): (u64, usize),
        (want, align): (usize, usize),
    ) -> Result<FixedBuf, Errno> {
        let (mut filled, mut stuck) = (0, 0);
        while filled < want && stuck < STUCK_MAX {
            // What came short ends anywhere, and the next read begins where one may.
            let at = filled / align * align;
            let read = Op::ReadFixed {
                file: opened.clone(),
                buffer,
                at: at as u32,
                len: (len - at) as u32,
                offset: offset + at as u64,
            };
            let done = self.once(read).await;
            let Output::Fixed(back) = done.output else {
                return Err(done.result.err().unwrap_or(Errno::CANCELED));
            };
            buffer = back;
            let read = match done.result {
                Ok(bytes) => bytes as usize,
                Err(Errno::INTR | Errno::AGAIN) => 0,
                Err(errno) => return Err(errno),
            };
            self.count_direct(|counts| counts.read_bytes += read as u64);
            stuck = if at + read > filled { 0 } else { stuck + 1 };
            filled = filled.max(at + read);
        }
        buffer.fill_to(filled);
        Ok(buffer)
    }
}

/// Reads a block, and tells those who wait for it.
async fn load(
    core: Core,
    opened: Fd,
    (file, index): (FileId, u64),
    buffer: FixedBuf,
    needed: (usize, usize),
) {
    let size = buffer.size();
    let place = (index * size as u64, size);
    let read = core.read_fixed(&opened, buffer, place, needed).await;
    let waiting = {
        let blocks = &mut *core.inner().direct.blocks.borrow_mut();
        let Some(block) = blocks.find(&file, index) else {
            return;
        };
        let state = match read {
            Ok(buffer) => State::Ready(Rc::new(buffer)),
            Err(_) => State::Failed,
        };
        let before = std::mem::replace(&mut block.state, state);
        blocks.forget_failed(&file, index);
        match before {
            State::Loading(waiting) => waiting,
            State::Ready(_) | State::Failed => Vec::new(),
        }
    };
    waiting.into_iter().for_each(|task| core.wake_task(task));
}

/// Lets go of blocks and buffers when they have been idle, and ends when none is left.
async fn let_go_of_idle(core: Core) {
    let cell = &core.inner().direct.blocks;
    let mut timer = Timer::new(&core);
    loop {
        timer.set(core.now() + IDLE / 2);
        timer.expired().await;
        let idle = cell
            .borrow()
            .last_used
            .is_none_or(|used| core.now().saturating_duration_since(used) >= IDLE);
        if !idle {
            continue;
        }
        while let Some(unused) = { cell.borrow_mut().evict() } {
            drop(unused);
        }
        core.release_fixed();
        let (made, _) = core.fixed_usage();
        if made == 0 {
            cell.borrow_mut().kept = false;
            return;
        }
    }
}
