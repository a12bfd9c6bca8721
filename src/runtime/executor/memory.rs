//! What a core holds of the heap, and by whom.

use super::Core;
use crate::runtime::buf::BUFFER_SIZE;
use crate::runtime::sys::heap;
use crate::runtime::task::TaskId;

/// Bytes of what belongs to a core and to no task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Receive buffers and fixed ones, free or not.
    pub buffers: u64,
    /// Slots of ops.
    pub slots: u64,
}

impl Core {
    /// Bytes of user memory that the core holds for its connections: tasks, their busy parts, slots and
    /// buffers. What a cache or a handler holds isn't in it, nor what the kernel holds for sockets.
    pub fn memory(&self) -> usize {
        let kept: usize = self.0.send_buffers.borrow().iter().map(Vec::capacity).sum();
        self.0.tasks.borrow().bytes()
            + self.0.futures.bytes()
            + self.0.slots.borrow().bytes()
            + kept
            + usize::from(self.0.buffers.count()) * BUFFER_SIZE
            + self.fixed_held()
    }

    fn fixed_held(&self) -> usize {
        usize::from(self.0.fixed.made()) * self.0.fixed.size()
    }

    /// Bytes of its receive buffers and fixed ones, and of the slots of ops.
    pub fn parts(&self) -> Parts {
        Parts {
            buffers: (usize::from(self.0.buffers.count()) * BUFFER_SIZE + self.fixed_held()) as u64,
            slots: self.0.slots.borrow().bytes() as u64,
        }
    }

    /// Has the current task woken when another thread wakes this core the next time. `wakes` says for
    /// which time that was asked for already; `None` at first.
    pub(crate) fn note_woken(&self, wakes: &mut Option<u64>) {
        let now = self.0.wakes.get();
        if *wakes != Some(now) {
            *wakes = Some(now);
            self.0.woken.borrow_mut().push(self.current_task());
        }
    }

    /// Lets the task that watches the memory run next, before others need more of it.
    #[cold]
    pub(super) fn look_at_memory(&self) {
        if let Some(id) = self.0.gauge.take_watcher()
            && self.0.tasks.borrow_mut().mark_queued(id)
        {
            self.0.ready.borrow_mut().push_front(id);
        }
    }

    /// Bytes of the heap that a task has allocated and not freed: its future, and all that it holds but
    /// for receive buffers of the core. None for one that has ended.
    pub fn held(&self, id: TaskId) -> u64 {
        self.0.tasks.borrow().held(id)
    }

    /// Frees what is kept to be used again.
    pub fn free_pools(&self) {
        for buffer in self.0.send_buffers.take() {
            if buffer.capacity() > 0 {
                heap::unpool(buffer.capacity());
            }
        }
        self.0.futures.free_blocks();
    }
}
