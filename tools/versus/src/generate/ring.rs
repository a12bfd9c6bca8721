//! The generator's io_uring, and all of its unsafe code.
//!
//! One `io_uring_enter` per turn sends everything that was queued, reaps what came and sleeps if there
//! was nothing. Small responses arrive through a multishot receive and provided buffers; large ones
//! are discarded in the kernel (MSG_TRUNC on TCP drops bytes uncopied, tcp(7)).
//!
//! Memory that the kernel reads or writes (requests, buffers, slots) is mapped once and never
//! unmapped, so no operation can outlive it: the generator is a process for one measurement.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// Bytes of a slot: enough for any measured server's head, little to copy.
pub const SLOT_LEN: usize = 2048;
/// Most bytes that one [`Ring::discard`] takes: progress is seen at least this often.
pub const DISCARD_MAX: u32 = 1 << 20;

/// The provided buffers together stay within a second-level cache: the kernel uses them first in,
/// first out, so all of them are the working set.
const POOL_BYTES: usize = 512 << 10;
const POOL_GROUP: u16 = 0;
/// Do not try at once, there can't be anything yet (`IORING_RECVSEND_POLL_FIRST`).
const POLL_FIRST: u16 = 1;

/// What an operation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Ring::send`]; only failures and short sends complete.
    Send,
    /// [`Ring::receive_many`].
    Many,
    /// [`Ring::receive_slot`].
    Slot,
    /// [`Ring::discard`].
    Discard,
}

/// Whose operation it was. The generation tells a connection from its successor in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The connection's place.
    pub index: u32,
    /// Its generation, modulo 2^24.
    pub generation: u32,
}

impl Owner {
    fn key(self, kind: Kind) -> u64 {
        (kind as u64) << 56 | u64::from(self.generation & 0x00FF_FFFF) << 32 | u64::from(self.index)
    }
}

/// An operation's end, or one step of a multishot one. It owns the bytes that came until
/// [`Ring::consume`] takes it.
#[derive(Debug)]
pub struct Completion {
    /// What it was.
    pub kind: Kind,
    /// Whose it was.
    pub owner: Owner,
    /// Bytes, or a negative errno.
    pub result: i32,
    /// The multishot receive goes on.
    pub more: bool,
    buffer: Option<u16>,
}

/// The ring, its buffers and the request bytes.
pub struct Ring {
    ring: IoUring,
    pool: Pool,
    slots: Slots,
    /// Address space without memory: what receives of discarded bytes point at.
    nowhere: NonNull<u8>,
    request: NonNull<u8>,
    request_len: u32,
    depth: u32,
}

/// How a ring is dimensioned.
#[derive(Clone, Copy, Debug)]
pub struct Dimensions {
    /// Connections, and so slots.
    pub connections: u32,
    /// Most requests of one send.
    pub depth: u32,
    /// Bytes of one provided buffer; what a batch of responses needs.
    pub buffer_len: u32,
}

impl Ring {
    /// A ring that sends `request`.
    ///
    /// # Errors
    /// Those of io_uring_setup(2) and of mapping memory.
    pub fn new(dimensions: Dimensions, request: &[u8]) -> io::Result<Self> {
        let Dimensions {
            connections,
            depth,
            buffer_len,
        } = dimensions;
        let ring = build((2 * connections).clamp(64, 4096).next_power_of_two())?;
        let pool = Pool::new(&ring, connections, buffer_len)?;
        let batch = request.repeat(depth as usize);
        let memory = map(batch.len(), ProtFlags::READ | ProtFlags::WRITE)?;
        // SAFETY: the mapping is at least this long, fresh, and nothing else refers to it yet.
        unsafe { memory.copy_from_nonoverlapping(NonNull::from(&batch[..]).cast(), batch.len()) };
        Ok(Self {
            ring,
            pool,
            slots: Slots::new(connections)?,
            nowhere: map(DISCARD_MAX as usize, ProtFlags::empty())?,
            request: memory,
            request_len: request.len() as u32,
            depth,
        })
    }

    /// Sends `requests` (1 to the depth) requests with one operation.
    ///
    /// MSG_WAITALL makes the kernel retry a short send, and success is not reported: what is on its
    /// way is bounded by the depth and far below any send buffer.
    ///
    /// # Errors
    /// Those of io_uring_enter(2) when the queue had to be submitted first; so for all below.
    pub fn send(&mut self, fd: BorrowedFd<'_>, owner: Owner, requests: u32) -> io::Result<()> {
        assert!((1..=self.depth).contains(&requests));
        let (data, len) = (self.request.as_ptr(), requests * self.request_len);
        let entry = opcode::Send::new(Fd(fd.as_raw_fd()), data, len)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        self.push(entry.user_data(owner.key(Kind::Send)))
    }

    /// Arms a multishot receive into the provided buffers.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub fn receive_many(&mut self, fd: BorrowedFd<'_>, owner: Owner) -> io::Result<()> {
        let entry = opcode::RecvMulti::new(Fd(fd.as_raw_fd()), POOL_GROUP).build();
        self.push(entry.user_data(owner.key(Kind::Many)))
    }

    /// Receives at most `len` bytes (and a slot's length) into the connection's slot. `wait` says that
    /// nothing can be there yet.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub fn receive_slot(
        &mut self,
        fd: BorrowedFd<'_>,
        owner: Owner,
        len: usize,
        wait: bool,
    ) -> io::Result<()> {
        let slot = self.slots.lend(owner.index);
        let entry = opcode::Recv::new(Fd(fd.as_raw_fd()), slot, len.min(SLOT_LEN) as u32)
            .ioprio(if wait { POLL_FIRST } else { 0 })
            .build();
        self.push(entry.user_data(owner.key(Kind::Slot)))
    }

    /// Takes at most `len` bytes (and at most [`DISCARD_MAX`]) off the connection without copying them.
    ///
    /// Not with MSG_WAITALL: the kernel counts what is left by what was copied, and would wait for
    /// the discarded bytes a second time.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub fn discard(&mut self, fd: BorrowedFd<'_>, owner: Owner, len: u64) -> io::Result<()> {
        let len = len.min(u64::from(DISCARD_MAX)) as u32;
        let entry = opcode::Recv::new(Fd(fd.as_raw_fd()), self.nowhere.as_ptr(), len)
            .flags(libc::MSG_TRUNC)
            .build();
        self.push(entry.user_data(owner.key(Kind::Discard)))
    }

    /// Submits what was queued, waits at most `limit` for one completion and appends all there are.
    ///
    /// # Errors
    /// Those of io_uring_enter(2), except an expired limit and an interrupting signal.
    pub fn turn(&mut self, limit: Duration, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.pool.publish();
        let limit = Timespec::from(limit.max(Duration::from_nanos(1)));
        let arguments = SubmitArgs::new().timespec(&limit);
        match self.ring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => return Err(error),
            },
        }
        let slots = &mut self.slots;
        completions.extend(self.ring.completion().map(|entry| {
            let completion = Completion::new(&entry);
            if completion.kind == Kind::Slot {
                slots.take_back(completion.owner.index);
            }
            completion
        }));
        Ok(())
    }

    /// Submits what was queued. Needed before a descriptor is closed: entries name it by its number,
    /// which the next socket takes over.
    ///
    /// # Errors
    /// Those of io_uring_enter(2).
    pub fn flush(&mut self) -> io::Result<()> {
        self.ring.submit()?;
        Ok(())
    }

    /// Hands the bytes of a completion to `read` (none where it brought none) and gives its buffer
    /// back to the kernel.
    pub fn consume<R>(&mut self, completion: Completion, read: impl FnOnce(&[u8]) -> R) -> R {
        let len = usize::try_from(completion.result).unwrap_or(0);
        match (completion.kind, completion.buffer) {
            (Kind::Many, Some(id)) => {
                let result = read(self.pool.bytes(id, len));
                self.pool.recycle(id);
                result
            }
            (Kind::Slot, _) => read(self.slots.bytes(completion.owner.index, len)),
            _ => read(&[]),
        }
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: descriptors are checked by the kernel when the entry is submitted; all memory that
        // entries of this type point at is never unmapped, and a slot is lent to one entry at a time.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?;
            // SAFETY: as above.
            unsafe { self.ring.submission().push(&entry) }
                .map_err(|_| io::Error::other("the submission queue stays full"))?;
        }
        Ok(())
    }
}

impl Completion {
    fn new(entry: &cqueue::Entry) -> Self {
        let key = entry.user_data();
        Self {
            kind: match key >> 56 {
                0 => Kind::Send,
                1 => Kind::Many,
                2 => Kind::Slot,
                _ => Kind::Discard,
            },
            owner: Owner {
                index: key as u32,
                generation: (key >> 32) as u32 & 0x00FF_FFFF,
            },
            result: entry.result(),
            more: cqueue::more(entry.flags()),
            buffer: cqueue::buffer_select(entry.flags()),
        }
    }
}

/// The leanest ring this kernel gives: single issuer with deferred task work is 6.1, leaving out the
/// submission array 6.6.
fn build(entries: u32) -> io::Result<IoUring> {
    let mut newest = IoUring::builder();
    newest
        .setup_clamp()
        .setup_cqsize(4 * entries)
        .setup_submit_all()
        .setup_coop_taskrun();
    let oldest = newest.clone();
    newest.setup_single_issuer().setup_defer_taskrun();
    let middle = newest.clone();
    newest.setup_no_sqarray();
    newest
        .build(entries)
        .or_else(|_| middle.build(entries))
        .or_else(|_| oldest.build(entries))
}

/// Fresh memory, page-aligned, for ever.
fn map(len: usize, protection: ProtFlags) -> io::Result<NonNull<u8>> {
    // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that exists.
    let address = unsafe { mmap_anonymous(null_mut(), len.max(1), protection, MapFlags::PRIVATE) }?;
    NonNull::new(address.cast()).ok_or_else(|| io::Error::other("a mapping at address zero"))
}

/// Provided buffers and the ring in which the kernel finds them.
///
/// Invariant: a buffer's id is either in the ring, and the kernel's, or in exactly one
/// [`Completion`], and ours.
struct Pool {
    entries: NonNull<BufRingEntry>,
    buffers: NonNull<u8>,
    buffer_len: usize,
    /// One less than the number of buffers, which is a power of two.
    mask: u16,
    tail: u16,
}

impl Pool {
    fn new(ring: &IoUring, connections: u32, buffer_len: u32) -> io::Result<Self> {
        let buffer_len = buffer_len as usize;
        let affordable = (POOL_BYTES / buffer_len).max(1).next_power_of_two();
        let wanted = connections.next_power_of_two() as usize;
        let count = wanted.clamp(16, affordable.clamp(16, 1024)) as u16;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let mut pool = Self {
            entries: map(usize::from(count) * size_of::<BufRingEntry>(), access)?.cast(),
            buffers: map(usize::from(count) * buffer_len, access)?,
            buffer_len,
            mask: count - 1,
            tail: 0,
        };
        let address = pool.entries.as_ptr() as u64;
        // SAFETY: the mapping holds `count` entries, is page-aligned and is never unmapped.
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(address, count, POOL_GROUP, 0)
        }?;
        (0..count).for_each(|id| pool.recycle(id));
        pool.publish();
        Ok(pool)
    }

    /// The bytes of a buffer that a completion owns.
    fn bytes(&self, id: u16, len: usize) -> &[u8] {
        assert!(id <= self.mask && len <= self.buffer_len);
        // SAFETY: within the mapping by the assertion; ours until recycled, by the invariant.
        unsafe {
            let start = self.buffers.add(usize::from(id) * self.buffer_len);
            slice::from_raw_parts(start.as_ptr(), len)
        }
    }

    /// Puts a buffer into the ring; the kernel sees it after [`Self::publish`].
    fn recycle(&mut self, id: u16) {
        // SAFETY: the masked index is within the mapping, and the kernel doesn't read an entry beyond
        // the published tail. There are as many entries as buffers, so this one was used up.
        let (entry, address) = unsafe {
            (
                self.entries
                    .add(usize::from(self.tail & self.mask))
                    .as_mut(),
                self.buffers.add(usize::from(id) * self.buffer_len),
            )
        };
        entry.set_addr(address.as_ptr() as u64);
        entry.set_len(self.buffer_len as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel what was recycled.
    fn publish(&self) {
        // SAFETY: the tail lies in the first entry's reserved field, which is aligned for a u16 and is
        // written nowhere else; the kernel only reads it.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

/// One short buffer for each connection.
struct Slots {
    memory: NonNull<u8>,
    /// Whose slot the kernel has.
    lent: Vec<bool>,
}

impl Slots {
    fn new(count: u32) -> io::Result<Self> {
        let len = count as usize * SLOT_LEN;
        Ok(Self {
            memory: map(len, ProtFlags::READ | ProtFlags::WRITE)?,
            lent: vec![false; count as usize],
        })
    }

    fn lend(&mut self, index: u32) -> *mut u8 {
        let lent = &mut self.lent[index as usize];
        assert!(!*lent, "two receives into one slot");
        *lent = true;
        // SAFETY: within the mapping, since the index is one of `lent`'s.
        unsafe { self.memory.add(index as usize * SLOT_LEN) }.as_ptr()
    }

    fn take_back(&mut self, index: u32) {
        self.lent[index as usize] = false;
    }

    fn bytes(&self, index: u32, len: usize) -> &[u8] {
        assert!(!self.lent[index as usize] && len <= SLOT_LEN);
        // SAFETY: within the mapping by the assertion, and the kernel doesn't have it.
        unsafe {
            let start = self.memory.add(index as usize * SLOT_LEN);
            slice::from_raw_parts(start.as_ptr(), len)
        }
    }
}
