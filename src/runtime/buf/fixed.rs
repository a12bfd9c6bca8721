//! The core's fixed buffers: large, aligned, and registered with the ring where that can be had, so
//! that a read goes from the disk straight into them and a send straight out of them.
//!
//! They are made one by one when they are first asked for, up to a bound, and kept for use again.
//! Whoever finds none free is told so at once and does without: nobody waits in line for one.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::{LARGE_PAGE, Pages};

/// Bytes of a fixed buffer, unless [`FixedPool::allow`] says otherwise.
pub const FIXED_BYTES: usize = 1 << 20;

/// Most fixed buffers of one core; as many places are reserved in the ring.
pub const FIXED_MAX: u16 = 64;

/// Alignment of every fixed buffer, in bytes: enough for O_DIRECT on any block device of today.
pub const FIXED_ALIGN: usize = super::PAGE;

/// The memory of one fixed buffer.
pub(crate) struct FixedMemory {
    /// What it stands in, with its neighbours.
    pages: Arc<Pages>,
    /// Where in there it begins. No two have a byte in common.
    at: usize,
    len: usize,
    /// Its place in the ring's table.
    index: u16,
    registered: bool,
    /// Bytes at its beginning that were read into it.
    filled: usize,
}

impl FixedMemory {
    /// All of it, to be written to.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        // SAFETY: the memory is initialised, lives as long as `pages`, is this one's alone, and is borrowed
        // with it.
        unsafe { std::slice::from_raw_parts_mut(self.base(), self.len) }
    }

    fn base(&self) -> *mut u8 {
        // SAFETY: `at` is within the pages (see `FixedPool::part`).
        unsafe { self.pages.base.as_ptr().add(self.at) }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: as in `room`; `filled` is at most the size (see `fill_to`).
        unsafe { std::slice::from_raw_parts(self.base(), self.filled) }
    }

    /// Address and bytes of it, for the ring's table.
    pub(crate) fn range(&self) -> (u64, usize) {
        (self.base() as u64, self.len)
    }

    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    pub(crate) fn set_registered(&mut self) {
        self.registered = true;
    }
}

/// The fixed buffers of one core.
///
/// Invariant: a buffer is either in `free` or held by exactly one [`FixedBuf`]; `made` counts both, and
/// `vacant` has the places in the ring's table that belong to neither.
#[derive(Default)]
pub struct FixedPool {
    bytes: Cell<usize>,
    max: Cell<u16>,
    made: Cell<u16>,
    #[expect(clippy::vec_box, reason = "one that is taken moves as a pointer")]
    free: RefCell<Vec<Box<FixedMemory>>>,
    vacant: RefCell<Vec<u16>>,
    next: Cell<u16>,
    /// The pages of the newest buffer, and from where on they are no buffer's yet. There is room for one.
    rest: RefCell<Option<(Arc<Pages>, usize)>>,
    /// New ones aren't registered.
    plain: Cell<bool>,
}

impl FixedPool {
    /// Bounds the buffers: at most `max` (and [`FIXED_MAX`]) of `bytes` each, a multiple of
    /// [`FIXED_ALIGN`]. Those that were made already stay as they are, and so does their size.
    pub(crate) fn allow(&self, max: u16, bytes: usize) {
        self.max.set(max.min(FIXED_MAX));
        if self.made.get() == 0 {
            debug_assert!(bytes.is_multiple_of(FIXED_ALIGN) && bytes > 0);
            self.bytes.set(bytes);
        }
    }

    /// Says whether new buffers are left unregistered.
    pub(crate) fn keep_plain(&self, plain: bool) {
        self.plain.set(plain);
    }

    /// Bytes of each buffer; 0 before any was allowed.
    pub(crate) fn size(&self) -> usize {
        self.bytes.get()
    }

    /// How many there may be.
    pub(crate) fn max(&self) -> u16 {
        self.max.get()
    }

    /// How many there are.
    pub(crate) fn made(&self) -> u16 {
        self.made.get()
    }

    /// How many are held.
    pub(crate) fn held(&self) -> usize {
        usize::from(self.made.get()) - self.free.borrow().len()
    }

    /// A free buffer. `make` registers the memory of a new one with the engine, if it can. `None` when
    /// all that may be are held.
    pub(crate) fn take(self: &Rc<Self>, make: impl FnOnce(&mut FixedMemory)) -> Option<FixedBuf> {
        let free = self.free.borrow_mut().pop();
        let memory = match free {
            Some(memory) => memory,
            None if self.made.get() >= self.max.get() => return None,
            None => {
                let vacant = self.vacant.borrow_mut().pop();
                let index = vacant.unwrap_or_else(|| self.next.replace(self.next.get() + 1));
                let (pages, at) = self.part();
                let mut memory = Box::new(FixedMemory {
                    pages,
                    at,
                    len: self.bytes.get(),
                    index,
                    registered: false,
                    filled: 0,
                });
                self.made.set(self.made.get() + 1);
                if !self.plain.get() {
                    make(&mut memory);
                }
                memory
            }
        };
        let mut taken = FixedBuf {
            memory: Some(memory),
            pool: Rc::clone(self),
        };
        taken.fill_to(0);
        Some(taken)
    }

    /// Pages with room for a buffer, and where in them it is.
    fn part(&self) -> (Arc<Pages>, usize) {
        let bytes = self.bytes.get();
        let mut rest = self.rest.borrow_mut();
        let (pages, at) = rest.take().unwrap_or_else(|| {
            // As many as a large page has room for, if so many may be.
            let fits = (LARGE_PAGE / bytes).max(1);
            let left = usize::from(self.max.get() - self.made.get()).max(1);
            (Arc::new(Pages::large(fits.min(left) * bytes)), 0)
        });
        let next = at + bytes;
        if next + bytes <= pages.layout.size() {
            *rest = Some((Arc::clone(&pages), next));
        }
        (pages, at)
    }

    /// Gives the memory of all free buffers back to the system. `forget` takes it out of the ring's
    /// table before.
    pub(crate) fn release(&self, mut forget: impl FnMut(&FixedMemory)) {
        self.rest.take();
        for memory in self.free.borrow_mut().drain(..) {
            if memory.registered {
                forget(&memory);
            }
            self.vacant.borrow_mut().push(memory.index);
            self.made.set(self.made.get() - 1);
        }
    }
}

/// One fixed buffer, held; it goes back to its core when it is dropped.
///
/// While it is held alone it may be read into; behind an `Rc` it is shared and never written to. An op
/// takes it, so nobody can look at it while the kernel writes.
pub struct FixedBuf {
    /// `None` while a helper's job has it, and after that job was lost.
    memory: Option<Box<FixedMemory>>,
    pool: Rc<FixedPool>,
}

impl FixedBuf {
    /// The bytes that were read into it, from its beginning.
    pub fn bytes(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], |memory| memory.bytes())
    }

    /// How many bytes it has room for.
    pub fn size(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.len)
    }

    /// Counts the bytes before `end` as read, at most [`Self::size`] of them.
    pub(crate) fn fill_to(&mut self, end: usize) {
        let end = end.min(self.size());
        if let Some(memory) = &mut self.memory {
            memory.filled = end;
        }
    }

    /// Its place in the ring's table, where it has one.
    pub(crate) fn registered(&self) -> Option<u16> {
        let memory = self.memory.as_ref()?;
        memory.registered.then_some(memory.index)
    }

    /// The memory, for the engine to read into.
    pub(crate) fn memory(&mut self) -> Option<&mut FixedMemory> {
        self.memory.as_deref_mut()
    }

    /// Address of its first byte; 0 while a helper has it.
    pub(crate) fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.range().0)
    }

    /// Takes the memory out, for a helper's job that reads into it. A job that is lost takes it along.
    pub(crate) fn lend(&mut self) -> Option<Box<FixedMemory>> {
        self.memory.take()
    }

    /// Puts back what was lent.
    pub(crate) fn give_back(&mut self, memory: Box<FixedMemory>) {
        debug_assert!(self.memory.is_none());
        self.memory = Some(memory);
    }
}

impl Drop for FixedBuf {
    fn drop(&mut self) {
        match self.memory.take() {
            Some(memory) => self.pool.free.borrow_mut().push(memory),
            // Lost with its job. Its place stays unused: only a ring has places, and no helper.
            None => self.pool.made.set(self.pool.made.get() - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(max: u16) -> Rc<FixedPool> {
        let pool = Rc::new(FixedPool::default());
        pool.allow(max, 2 * FIXED_ALIGN);
        pool
    }

    #[test]
    fn there_is_none_beyond_the_bound_and_one_that_is_given_back_is_used_again() {
        let pool = pool(2);
        let mut made = 0;
        let mut take = || pool.take(|_| made += 1);
        let (first, second) = (take().unwrap(), take().unwrap());
        assert!(take().is_none());
        assert_ne!(first.address(), second.address());
        assert!(first.address().is_multiple_of(FIXED_ALIGN as u64));
        let address = first.address();
        drop(first);
        assert_eq!(take().unwrap().address(), address);
        assert_eq!(made, 2, "no memory is made for one that is used again");
        assert_eq!((pool.made(), pool.held()), (2, 1));
    }

    #[test]
    fn those_that_fit_stand_together_in_a_large_page() {
        let pool = Rc::new(FixedPool::default());
        pool.allow(5, FIXED_BYTES);
        let held: Vec<_> = (0..5).map(|_| pool.take(|_| {}).unwrap()).collect();
        let at: Vec<_> = (held.iter()).map(FixedBuf::address).collect();
        let (page, size) = (LARGE_PAGE as u64, FIXED_BYTES as u64);
        for pair in at[..4].chunks(2) {
            assert!(pair[0].is_multiple_of(page), "{at:x?}");
            assert_eq!(pair[1], pair[0] + size);
        }
        drop(held);
        // Written from end to end they keep apart.
        let mut held: Vec<_> = (0..5).map(|_| pool.take(|_| {}).unwrap()).collect();
        for (number, buffer) in held.iter_mut().enumerate() {
            buffer.memory().unwrap().room().fill(number as u8);
            buffer.fill_to(FIXED_BYTES);
        }
        for (number, buffer) in held.iter().enumerate() {
            assert!(buffer.bytes().iter().all(|&byte| byte == number as u8));
        }
        // What is left of the newest pages isn't kept for itself, and neither are those.
        held.truncate(1);
        pool.release(|_| {});
        assert_eq!(pool.made(), 1);
        let again: Vec<_> = std::iter::from_fn(|| pool.take(|_| {})).collect();
        assert_eq!(again.len(), 4);
        assert!(held[0].bytes().iter().all(|&byte| byte == 0));
        assert!(
            again
                .iter()
                .all(|buffer| buffer.address() != held[0].address())
        );
    }

    #[test]
    fn what_is_released_leaves_the_table_and_its_place_is_used_again() {
        let pool = pool(4);
        let held = pool.take(FixedMemory::set_registered).unwrap();
        drop(pool.take(FixedMemory::set_registered));
        let mut forgotten = Vec::new();
        pool.release(|memory| forgotten.push(memory.index()));
        assert_eq!((forgotten, pool.made()), (vec![1], 1));
        assert_eq!(held.registered(), Some(0));
        let again = pool.take(|memory| assert_eq!(memory.index(), 1)).unwrap();
        assert_eq!(again.registered(), None, "the engine didn't take it");
    }

    #[test]
    fn memory_that_a_lost_job_took_along_makes_room_for_another() {
        let pool = pool(1);
        let mut held = pool.take(|_| {}).unwrap();
        let lent = held.lend().unwrap();
        assert!(pool.take(|_| {}).is_none());
        drop((held, lent));
        assert_eq!(pool.made(), 0);
        assert!(pool.take(|_| {}).is_some());
    }

    #[test]
    fn only_what_was_read_into_it_is_seen() {
        let pool = pool(1);
        let mut held = pool.take(|_| {}).unwrap();
        held.memory().unwrap().room()[..5].copy_from_slice(b"block");
        assert_eq!(held.bytes(), b"");
        held.fill_to(3);
        assert_eq!(held.bytes(), b"blo");
        held.fill_to(usize::MAX);
        assert_eq!(held.bytes().len(), held.size());
        drop(held);
        assert_eq!(pool.take(|_| {}).unwrap().bytes(), b"", "nothing is left");
    }
}
