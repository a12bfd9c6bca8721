//! The io_uring engine: one ring per core, made and used on the core's own thread.
//!
//! One `enter` a turn submits, waits and has the next timer as its timeout. What finds the submission
//! queue full waits in an overflow queue, so no op, cancel or close is lost.
#![allow(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{OpenHow, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Submitter, cqueue};
use rustix::io::Errno;

use super::caps::RingFlags;
use super::{Event, sqe};
use crate::runtime::buf::BufPool;
use crate::runtime::buf::fixed::{FIXED_MAX, FixedMemory};
use crate::runtime::fd::{Closing, Handle};
use crate::runtime::mailbox::Wake;
use crate::runtime::op::Op;
use crate::runtime::slot::SlotKey;
use crate::runtime::sys;

/// Entries of the submission queue. The overflow queue takes what doesn't fit.
pub(crate) const SQ_ENTRIES: u32 = 1024;

/// Entries of the completion queue: at least four times the submission queue.
pub(crate) const CQ_ENTRIES: u32 = 8192;

/// Most completions taken in one turn; the rest wait in the queue.
const EVENTS_PER_TURN: usize = 4096;

/// io_uring for one core.
///
/// Invariant: `submitter` borrows from `ring`, which is boxed, so its address is fixed, and which is
/// dropped after it; neither is handed out.
pub(crate) struct Ring {
    submitter: ManuallyDrop<Submitter<'static>>,
    ring: ManuallyDrop<Box<IoUring>>,
    enter_flags: EnterFlags,
    /// A thread of the kernel submits what is pushed, at once.
    polled: bool,
    overflow: VecDeque<Entry>,
    hows: HashMap<SlotKey, Box<OpenHow>>,
    buffers: Rc<BufPool>,
    wake: Arc<Wake>,
    pub(crate) local: Vec<Event>,
    pub(crate) woken: bool,
    leaked: bool,
    /// Whether the table of fixed buffers takes another one.
    takes_fixed: bool,
    /// What became of the forbidden entries, while and after they are tried.
    tried: Option<[Option<i32>; sqe::FORBIDDEN_COUNT]>,
    /// Entries that the kernel refused because the ring is restricted.
    pub(crate) refused: u64,
}

impl Ring {
    /// A ring with these flags, its buffers registered and the wake eventfd watched. A restricted one
    /// is made disabled and takes only what the engine uses before it is enabled, by this thread,
    /// which from then on is the only one that it serves.
    ///
    /// # Errors
    /// What `io_uring_setup(2)` or a registration answers: `ENOMEM` beyond the memory lock limit,
    /// `EPERM` or `ENOSYS` where io_uring is forbidden or missing.
    pub(crate) fn new(
        flags: RingFlags,
        buffer_count: u16,
        wake: &Arc<Wake>,
    ) -> std::io::Result<(Self, Rc<BufPool>)> {
        let ring = Box::new(flags.build(SQ_ENTRIES, CQ_ENTRIES)?);
        let buffers = BufPool::kernel(buffer_count);
        // SAFETY: the box's content neither moves nor is mutably borrowed while the submitter lives.
        let borrowed: &'static IoUring = unsafe { &*std::ptr::from_ref::<IoUring>(&*ring) };
        let mut submitter = borrowed.submitter();
        if let Some((address, entries)) = buffers.ring_address() {
            // SAFETY: the pages live in `buffers`, which the ring holds until it is dropped or leaked.
            unsafe {
                submitter.register_buf_ring_with_flags(address, entries, sqe::BUFFER_GROUP, 0)?;
            };
        }
        // Saves a descriptor lookup per enter (kernel 5.18); without it everything still works.
        let _ = submitter.register_ring_fd();
        // Blocking file ops go to kernel workers: a few are enough for a cold disk.
        let _ = submitter.register_iowq_max_workers(&mut [8, 2]);
        // Empty places: a buffer is put there when it is made (kernel 5.19).
        let takes_fixed = submitter
            .register_buffers_sparse(u32::from(FIXED_MAX))
            .is_ok();
        if flags.restricted() {
            submitter.register_restrictions(&mut sqe::restrictions())?;
            submitter.register_enable_rings()?;
        }
        let mut enter_flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if borrowed.params().is_feature_no_iowait() {
            enter_flags |= EnterFlags::NO_IOWAIT;
        }
        let mut engine = Self {
            submitter: ManuallyDrop::new(submitter),
            ring: ManuallyDrop::new(ring),
            enter_flags,
            polled: flags.polled(),
            overflow: VecDeque::new(),
            hows: HashMap::new(),
            buffers: Rc::clone(&buffers),
            wake: Arc::clone(wake),
            local: Vec::new(),
            woken: false,
            leaked: false,
            takes_fixed,
            tried: None,
            refused: 0,
        };
        engine.push(sqe::wake(wake.fd().as_raw_fd()));
        Ok((engine, buffers))
    }

    /// Queues an entry behind those that wait.
    fn push(&mut self, entry: Entry) {
        if self.overflow.is_empty() {
            // SAFETY: this thread alone uses the queue, and no other queue handle is alive. What the
            // entry points to lives in its slot until the terminal completion.
            let pushed = unsafe { self.ring.submission_shared().push(&entry) };
            if pushed.is_ok() {
                return;
            }
        }
        self.overflow.push_back(entry);
    }

    /// Moves what fits from the overflow queue into the submission queue.
    fn refill(&mut self) {
        if self.overflow.is_empty() {
            return;
        }
        // SAFETY: as in `push`.
        let mut queue = unsafe { self.ring.submission_shared() };
        while let Some(entry) = self.overflow.front() {
            // SAFETY: as in `push`.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.overflow.pop_front();
        }
    }

    pub(crate) fn start(&mut self, key: SlotKey, op: &mut Op) {
        // To a unix socket there is nothing to wait for. A full backlog would hold a kernel worker.
        if let Op::Connect { socket, address } = op
            && address.is_unix()
            && let Some(os) = socket.os()
        {
            let result = sys::connect(os, address).err();
            let result = result.map_or(0, |errno| -errno.raw_os_error());
            return self.local.push(Event::ended(key, result));
        }
        let mut how = std::ptr::null();
        if let Some(boxed) = sqe::open_how(op) {
            how = &raw const *boxed;
            self.hows.insert(key, boxed);
        }
        self.push(sqe::entry(key, op, how));
    }

    pub(crate) fn cancel(&mut self, key: SlotKey, op: &Op) {
        // A helper's job can't be called back; its slot waits for the answer.
        if !matches!(op, Op::Offload(_)) {
            self.push(sqe::cancel(key));
        }
    }

    pub(crate) fn close(&mut self, closing: Closing) {
        match closing.handle {
            Handle::Os(fd) => self.push(sqe::close(fd.into_raw_fd())),
            // Another core may still use it: the last one closes it by dropping it.
            Handle::Shared(fd) => drop(fd),
            Handle::Sim(_) => debug_assert!(false, "the simulator's descriptors stay in it"),
        }
    }

    pub(crate) fn pending(&self) -> bool {
        // SAFETY: as in `push`.
        let queued = unsafe { !self.ring.submission_shared().is_empty() };
        queued || !self.overflow.is_empty() || !self.local.is_empty()
    }

    pub(crate) fn turn(
        &mut self,
        wait: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> Result<(), Errno> {
        events.append(&mut self.local);
        self.refill();
        // SAFETY: as in `push`; the handle is gone at the end of the statement.
        let ready = unsafe { !self.ring.completion_shared().is_empty() };
        let at_once = ready || !events.is_empty() || !self.overflow.is_empty();
        self.enter(if at_once { Some(Duration::ZERO) } else { wait })?;
        self.take(events);
        Ok(())
    }

    /// Submits and waits for one completion, for at most `wait`.
    fn enter(&mut self, wait: Option<Duration>) -> Result<(), Errno> {
        // SAFETY: as in `push`.
        let submit = unsafe { self.ring.submission_shared().len() } as u32;
        let want = u32::from(wait != Some(Duration::ZERO));
        let until = wait.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(until) = until.as_ref().filter(|_| want > 0) {
            args = args.timespec(until);
        }
        let mut flags = self.enter_flags;
        if self.polled {
            // SAFETY: as in `push`.
            let queue = unsafe { self.ring.submission_shared() };
            let (asleep, overflown) = (queue.need_wakeup(), queue.cq_overflow());
            if want == 0 && !asleep && !overflown {
                // The poller is at it, and what it has done is in the completion queue.
                return Ok(());
            }
            if asleep && submit > 0 {
                flags |= EnterFlags::SQ_WAKEUP;
            }
        }
        let flags = flags.bits();
        // SAFETY: EXT_ARG announces a SubmitArgs, which outlives the call.
        let entered = unsafe { self.submitter.enter(submit, want, flags, Some(&args)) };
        match entered.map_err(|error| error.raw_os_error()) {
            Ok(_) => Ok(()),
            // The time is up; a signal; the completion queue has to be emptied first.
            Err(Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
            Err(errno) => Err(errno.map_or(Errno::IO, Errno::from_raw_os_error)),
        }
    }

    fn take(&mut self, events: &mut Vec<Event>) {
        let mut rearm = false;
        {
            // SAFETY: as in `push`.
            let queue = unsafe { self.ring.completion_shared() };
            for entry in queue.take(EVENTS_PER_TURN) {
                let more = cqueue::more(entry.flags());
                match entry.user_data() {
                    sqe::IGNORED => {}
                    sqe::WAKE => {
                        self.woken = true;
                        rearm |= !more;
                    }
                    bits => {
                        if let Some(index) = sqe::forbidden_index(bits) {
                            let result = entry.result();
                            self.refused += u64::from(result == -libc::EACCES);
                            self.tried.get_or_insert_default()[index] = Some(result);
                            if result > 0 {
                                // Only the entries that make a socket give something: not restricted.
                                drop(sys::adopt(result));
                            }
                            continue;
                        }
                        let key = SlotKey::from_bits(bits);
                        let buffer = cqueue::buffer_select(entry.flags());
                        if !more && !self.hows.is_empty() {
                            self.hows.remove(&key);
                        }
                        let result = match cqueue::notif(entry.flags()) {
                            true => sqe::notified(entry.result()),
                            false => entry.result(),
                        };
                        events.push(Event {
                            key,
                            result,
                            more,
                            buffer,
                        });
                    }
                }
            }
        }
        if rearm {
            self.push(sqe::wake(self.wake.fd().as_raw_fd()));
        }
    }

    /// Submits every entry that a restricted ring refuses, unless that is being done.
    pub(crate) fn try_forbidden(&mut self) {
        if self.tried.is_some_and(|tried| tried.contains(&None)) {
            return;
        }
        self.tried = Some([None; sqe::FORBIDDEN_COUNT]);
        for (_, entry) in sqe::forbidden() {
            self.push(entry);
        }
    }

    /// What has become of the forbidden entries so far.
    pub(crate) fn tried(&self) -> [Option<i32>; sqe::FORBIDDEN_COUNT] {
        self.tried.unwrap_or_default()
    }

    /// Puts a fixed buffer into the ring's table, where it stays until [`Self::forget_fixed`]. Beyond the
    /// memory lock limit it can't be put there, and is used as plain memory.
    pub(crate) fn register_fixed(&mut self, memory: &mut FixedMemory) {
        if !self.takes_fixed {
            return;
        }
        let (address, bytes) = memory.range();
        let range = libc::iovec {
            iov_base: address as *mut libc::c_void,
            iov_len: bytes,
        };
        // SAFETY: the memory is a fixed buffer's, which is freed only after `forget_fixed`, or with the
        // ring, or never, if the ring is leaked.
        let done = unsafe {
            self.submitter
                .register_buffers_update(u32::from(memory.index()), &[range], None)
        };
        match done {
            Ok(()) => memory.set_registered(),
            // It would be the same for the next one.
            Err(_) => self.takes_fixed = false,
        }
    }

    /// Takes a fixed buffer out of the ring's table.
    pub(crate) fn forget_fixed(&mut self, memory: &FixedMemory) {
        let nothing = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        // SAFETY: an empty range names no memory. The kernel holds on to the pages of the old one until
        // the last op that uses them has ended.
        let _ = unsafe {
            self.submitter
                .register_buffers_update(u32::from(memory.index()), &[nothing], None)
        };
    }

    /// Gives ring and buffers up without freeing them: an op is still in flight.
    pub(crate) fn leak(&mut self) {
        self.leaked = true;
        std::mem::forget(Rc::clone(&self.buffers));
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.leaked {
            return;
        }
        let _ = self.submitter.unregister_buf_ring(sqe::BUFFER_GROUP);
        // Registered, the ring outlives its descriptor until this thread ends, and its poller with it.
        let _ = self.submitter.unregister_ring_fd();
        // SAFETY: dropped here alone, the borrower before what it borrows from.
        unsafe {
            ManuallyDrop::drop(&mut self.submitter);
            ManuallyDrop::drop(&mut self.ring);
        }
    }
}
