//! The core's receive buffers: a provided-buffer ring shared with the kernel, or its software twin.
//!
//! All connections of a core share them; an idle connection holds none. A received buffer goes back
//! when its [`RecvBuf`] is dropped. The kernel takes the ring's buffers first in, first out, so
//! all of it becomes the working set: many small buffers, not few.
#![allow(unsafe_code)]

pub mod fixed;

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use rustix::mm::{Advice, madvise};

/// Bytes in one receive buffer.
pub const BUFFER_SIZE: usize = 4096;

/// Default number of receive buffers of a core; a power of two.
pub const BUFFER_COUNT: u16 = 256;

const PAGE: usize = 4096;

/// Page-aligned zeroed memory that lives as long as this.
struct Pages {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory alone, as a box does.
unsafe impl Send for Pages {}
// SAFETY: by a shared reference there is no way to the memory but its address.
unsafe impl Sync for Pages {}

/// Bytes of a large page of the processor, and what one is aligned to, on x86-64 and mostly on AArch64.
const LARGE_PAGE: usize = 2 << 20;

impl Pages {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes.max(1), PAGE).expect("a page is a power of two");
        // SAFETY: the layout is not of size zero.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else {
            handle_alloc_error(layout)
        };
        Self { base, layout }
    }

    /// As [`Self::new`], in large pages where the kernel has some: a device that reads into them needs few
    /// entries where single pages need one each, for twice the throughput. Less than a large page is as
    /// [`Self::new`] has it.
    fn large(bytes: usize) -> Self {
        if bytes < LARGE_PAGE {
            return Self::new(bytes);
        }
        let layout =
            Layout::from_size_align(bytes, LARGE_PAGE).expect("a large page is a power of two");
        // SAFETY: the layout is not of size zero.
        let base = unsafe { alloc(layout) };
        let Some(base) = NonNull::new(base) else {
            handle_alloc_error(layout)
        };
        // Before it is touched, which settles what its pages are. A kernel without large pages refuses.
        // SAFETY: the memory was just allocated, and the advice changes none of it.
        let _ = unsafe { madvise(base.as_ptr().cast(), bytes, Advice::LinuxHugepage) };
        // SAFETY: the memory has this size, and nobody else knows of it.
        unsafe { base.as_ptr().write_bytes(0, bytes) };
        Self { base, layout }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed once.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// Who hands out the free buffers.
enum Free {
    /// The software twin: the engine itself takes from this list.
    List(Vec<u16>),
    /// The kernel takes from a ring in these pages; `tail` is what was published last.
    Ring { entries: Pages, tail: u16 },
}

/// A set of equal receive buffers.
///
/// Invariant: a buffer is either free (in the list, or published to the kernel) or held by exactly
/// one [`RecvBuf`]; `out` counts the latter.
pub struct BufPool {
    memory: Pages,
    count: u16,
    out: Cell<u16>,
    free: RefCell<Free>,
}

impl BufPool {
    /// The software twin, for engines that receive by a plain call. `count` is a power of two, at
    /// most 32768.
    pub fn software(count: u16) -> Rc<Self> {
        Self::with(count, Free::List((0..count).rev().collect()))
    }

    /// A ring of buffers for the kernel; [`Self::ring_address`] is to be registered by the engine.
    pub(crate) fn kernel(count: u16) -> Rc<Self> {
        let entries = Pages::new(usize::from(count) * size_of::<BufRingEntry>());
        let pool = Self::with(count, Free::Ring { entries, tail: 0 });
        (0..count).for_each(|id| pool.publish(id));
        pool
    }

    fn with(count: u16, free: Free) -> Rc<Self> {
        assert!(
            count.is_power_of_two() && count <= 1 << 15,
            "the kernel wants a power of two"
        );
        Rc::new(Self {
            memory: Pages::new(usize::from(count) * BUFFER_SIZE),
            count,
            out: Cell::new(0),
            free: RefCell::new(free),
        })
    }

    /// How many buffers there are.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// How many are free. The kernel may be filling some of them.
    pub fn available(&self) -> u16 {
        self.count - self.out.get()
    }

    /// Whether so few buffers are free that none should be held while its holder waits.
    pub fn is_scarce(&self) -> bool {
        self.available() < self.count / 2
    }

    /// Address and number of entries of the kernel's ring, `None` for the software twin.
    pub(crate) fn ring_address(&self) -> Option<(u64, u16)> {
        match &*self.free.borrow() {
            Free::Ring { entries, .. } => Some((entries.base.as_ptr() as u64, self.count)),
            Free::List(_) => None,
        }
    }

    fn start(&self, id: u16) -> NonNull<u8> {
        assert!(id < self.count, "a buffer id beyond the ring");
        // SAFETY: `id` is within the allocation of `count` buffers.
        unsafe { self.memory.base.add(usize::from(id) * BUFFER_SIZE) }
    }

    /// Gives a free buffer to `fill` and keeps what it wrote; `None` when there is none (a stall),
    /// and the buffer stays free when `fill` fails or writes nothing.
    pub(crate) fn receive<E>(
        &self,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Option<Result<(u16, usize), E>> {
        let Free::List(list) = &mut *self.free.borrow_mut() else {
            return None;
        };
        let id = *list.last()?;
        // SAFETY: the buffer is free, so nothing else refers to it; it is initialised memory.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.start(id).as_ptr(), BUFFER_SIZE) };
        Some(fill(bytes).map(|len| {
            if len > 0 {
                list.pop();
            }
            (id, len)
        }))
    }

    /// Lets `fill` write into a free buffer of the software twin and say how much it wrote; `None` when
    /// that was nothing, no buffer is free, or the kernel is the one that fills them.
    ///
    /// # Errors
    /// Those of `fill`; the buffer stays free then.
    pub fn fill<E>(
        self: &Rc<Self>,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Option<Result<RecvBuf, E>> {
        match self.receive(fill)? {
            Ok((_, 0)) => None,
            received => Some(received.map(|(id, len)| self.adopt(id, len))),
        }
    }

    /// The buffers in the software twin's list, for the simulator to check that none is there twice.
    pub(crate) fn free_ids(&self) -> Vec<u16> {
        match &*self.free.borrow() {
            Free::List(list) => list.clone(),
            Free::Ring { .. } => Vec::new(),
        }
    }

    /// Takes over a buffer that a completion names. `len` is at most [`BUFFER_SIZE`].
    pub(crate) fn adopt(self: &Rc<Self>, id: u16, len: usize) -> RecvBuf {
        assert!(
            id < self.count && len <= BUFFER_SIZE,
            "the completion names a buffer of this ring"
        );
        self.out.set(self.out.get() + 1);
        RecvBuf {
            place: Place::Shared {
                pool: Rc::clone(self),
                id,
            },
            start: 0,
            end: len as u16,
        }
    }

    fn give_back(&self, id: u16) {
        debug_assert!(self.out.get() > 0);
        self.out.set(self.out.get() - 1);
        if let Free::List(list) = &mut *self.free.borrow_mut() {
            list.push(id);
            return;
        }
        self.publish(id);
    }

    /// Hands a buffer to the kernel.
    fn publish(&self, id: u16) {
        let address = self.start(id).as_ptr() as u64;
        let Free::Ring { entries, tail } = &mut *self.free.borrow_mut() else {
            return;
        };
        let base = entries.base.cast::<BufRingEntry>();
        let index = usize::from(*tail & (self.count - 1));
        *tail = tail.wrapping_add(1);
        // SAFETY: `index` is within the ring; the kernel reads only entries below the tail, and at
        // most `count` buffers are ever published, so this one is not being read. The fields are
        // written one by one because the tail shares the first entry's last two bytes. The store of
        // the tail releases the entry to the kernel.
        unsafe {
            let entry = base.add(index).as_ptr();
            (*entry).set_addr(address);
            (*entry).set_len(BUFFER_SIZE as u32);
            (*entry).set_bid(id);
            let tail_at = BufRingEntry::tail(base.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail_at).store(*tail, Ordering::Release);
        }
    }
}

/// Bytes received into one of the core's buffers; gives the buffer back when dropped.
///
/// Invariant: `start <= end <= BUFFER_SIZE`.
pub struct RecvBuf {
    place: Place,
    start: u16,
    end: u16,
}

/// Where received bytes are.
enum Place {
    /// In a buffer that all connections of the core share.
    Shared { pool: Rc<BufPool>, id: u16 },
    /// In memory of their own, since nobody would take them soon.
    Own(Box<[u8]>),
}

impl RecvBuf {
    /// Forgets the first `bytes` bytes, at most all of them.
    pub fn advance(&mut self, bytes: usize) {
        assert!(bytes <= self.len(), "cannot consume more than was received");
        self.start += bytes as u16;
    }

    /// Bytes that stand in no shared buffer, at most 65 535.
    pub(crate) fn own(bytes: Box<[u8]>) -> Self {
        let end =
            u16::try_from(bytes.len()).expect("what was received at once is less than 64 KiB");
        Self {
            place: Place::Own(bytes),
            start: 0,
            end,
        }
    }

    /// The bytes, to be changed where they are.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let (start, end) = (usize::from(self.start), usize::from(self.end));
        match &mut self.place {
            Place::Own(bytes) => &mut bytes[start..end],
            Place::Shared { pool, id } => {
                let first = pool.start(*id);
                // SAFETY: start ≤ end ≤ BUFFER_SIZE, the memory is initialised, and this is the only
                // holder of the buffer, borrowed exclusively.
                unsafe { std::slice::from_raw_parts_mut(first.add(start).as_ptr(), end - start) }
            }
        }
    }

    /// Forgets all but the first `length` bytes, at most as many as there are.
    pub(crate) fn truncate(&mut self, length: usize) {
        assert!(length <= self.len(), "bytes that were not received");
        self.end = self.start + length as u16;
    }

    /// Gives a shared buffer back and keeps the bytes in memory of their own.
    pub(crate) fn detach(&mut self) {
        if let Place::Shared { .. } = self.place {
            let own: Box<[u8]> = Box::from(&**self);
            (self.start, self.end) = (0, own.len() as u16);
            self.release();
            self.place = Place::Own(own);
        }
    }

    fn release(&self) {
        if let Place::Shared { pool, id } = &self.place {
            pool.give_back(*id);
        }
    }
}

impl Deref for RecvBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let (start, end) = (usize::from(self.start), usize::from(self.end));
        match &self.place {
            Place::Own(bytes) => &bytes[start..end],
            Place::Shared { pool, id } => {
                let first = pool.start(*id);
                // SAFETY: start ≤ end ≤ BUFFER_SIZE, the memory is initialised, and nobody writes to
                // the buffer until it is given back.
                unsafe { std::slice::from_raw_parts(first.add(start).as_ptr(), end - start) }
            }
        }
    }
}

impl Drop for RecvBuf {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(pool: &Rc<BufPool>, text: &[u8]) -> Option<RecvBuf> {
        let filled = pool.fill(|buffer| {
            buffer[..text.len()].copy_from_slice(text);
            Ok::<_, ()>(text.len())
        });
        filled?.ok()
    }

    #[test]
    fn the_twin_hands_out_each_buffer_once_and_takes_it_back() {
        let pool = BufPool::software(4);
        let mut held: Vec<_> = (0..4).map(|n| fill(&pool, &[n; 3]).unwrap()).collect();
        assert_eq!(pool.available(), 0);
        assert!(fill(&pool, b"x").is_none(), "a stall, not an error");
        for (n, buffer) in held.iter().enumerate() {
            assert_eq!(&buffer[..], &[n as u8; 3]);
        }
        held.remove(2);
        assert_eq!(&fill(&pool, b"again").unwrap()[..], b"again");
        drop(held);
        assert_eq!(pool.available(), 4);
    }

    #[test]
    fn a_receive_that_fails_or_ends_keeps_the_buffer_free() {
        let pool = BufPool::software(2);
        assert_eq!(pool.receive(|_| Err("reset")), Some(Err("reset")));
        assert!(matches!(pool.receive(|_| Ok::<_, ()>(0)), Some(Ok((_, 0)))));
        assert_eq!(pool.available(), 2);
    }

    #[test]
    fn detached_bytes_hold_no_shared_buffer() {
        let pool = BufPool::software(2);
        let mut buffer = fill(&pool, b"GET /").unwrap();
        buffer.advance(1);
        buffer.detach();
        assert_eq!((&buffer[..], pool.available()), (&b"ET /"[..], 2));
        buffer.advance(3);
        buffer.detach();
        assert_eq!(&buffer[..], b"/");
        drop(buffer);
        assert_eq!(pool.available(), 2);
    }

    #[test]
    fn bytes_are_changed_where_they_are() {
        let pool = BufPool::software(2);
        let mut buffer = fill(&pool, b"GET /").unwrap();
        buffer.advance(1);
        buffer.bytes_mut().reverse();
        buffer.truncate(3);
        assert_eq!(&buffer[..], b"/ T");
        buffer.detach();
        buffer.bytes_mut()[0] = b'x';
        assert_eq!((&buffer[..], pool.available()), (&b"x T"[..], 2));
        let mut own = RecvBuf::own(vec![7; 65_535].into());
        own.truncate(2);
        assert_eq!(own.bytes_mut(), [7, 7]);
    }

    #[test]
    fn advance_consumes_from_the_front() {
        let pool = BufPool::software(2);
        let mut buffer = fill(&pool, b"GET /").unwrap();
        buffer.advance(4);
        assert_eq!(&buffer[..], b"/");
        buffer.advance(1);
        assert!(buffer.is_empty());
    }
}
