//! Tasks: one future per connection, never moved between threads; and a pool for the futures that
//! live only while a connection is busy.
//!
//! Our futures name the task that waits in the slot or the timer they wait for, so a completion
//! wakes its task without a reference-counted waker. A future that relies on its `Context`'s waker
//! would never be polled again: nothing here drives foreign futures.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::{Context, Poll};

use slab::Slab;

/// Names one life of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskId {
    index: u32,
    generation: u32,
}

impl TaskId {
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self {
            index: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

/// The future of a task.
pub(crate) type TaskFuture = Pin<Box<dyn Future<Output = ()>>>;

struct Entry {
    generation: u32,
    /// Set while the task waits in the ready queue, so that it stands there once.
    queued: bool,
    /// `None` while the task is being polled.
    future: Option<TaskFuture>,
}

/// All tasks of one core.
#[derive(Default)]
pub(crate) struct TaskTable {
    tasks: Slab<Entry>,
    generation: u32,
}

impl TaskTable {
    pub(crate) fn insert(&mut self, future: TaskFuture) -> TaskId {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let index = self.tasks.insert(Entry {
            generation,
            queued: false,
            future: Some(future),
        });
        TaskId {
            index: index as u32,
            generation,
        }
    }

    fn get_mut(&mut self, id: TaskId) -> Option<&mut Entry> {
        self.tasks
            .get_mut(id.index as usize)
            .filter(|entry| entry.generation == id.generation)
    }

    /// Says whether the task is to be put into the ready queue: it lives and isn't there yet.
    pub(crate) fn mark_queued(&mut self, id: TaskId) -> bool {
        self.get_mut(id)
            .is_some_and(|entry| !std::mem::replace(&mut entry.queued, true))
    }

    /// Takes the future out to be polled.
    pub(crate) fn begin(&mut self, id: TaskId) -> Option<TaskFuture> {
        let entry = self.get_mut(id)?;
        entry.queued = false;
        entry.future.take()
    }

    /// Puts a future that is still pending back.
    pub(crate) fn park(&mut self, id: TaskId, future: TaskFuture) {
        if let Some(entry) = self.get_mut(id) {
            entry.future = Some(future);
        }
    }

    /// Forgets a task that ended.
    pub(crate) fn remove(&mut self, id: TaskId) -> Option<TaskFuture> {
        self.get_mut(id)?;
        self.tasks.remove(id.index as usize).future
    }

    pub(crate) fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Bytes of all futures that wait, and of the table.
    pub(crate) fn bytes(&self) -> usize {
        let futures = self
            .tasks
            .iter()
            .filter_map(|(_, entry)| entry.future.as_ref());
        let futures: usize = futures.map(|future| size_of_val(&**future)).sum();
        futures + self.tasks.capacity() * size_of::<Entry>()
    }

    /// All tasks.
    pub(crate) fn ids(&self) -> Vec<TaskId> {
        self.tasks
            .iter()
            .map(|(index, entry)| TaskId {
                index: index as u32,
                generation: entry.generation,
            })
            .collect()
    }
}

/// Most free blocks that a pool keeps of one layout; more are given back to the allocator.
const FREE_MAX: usize = 256;

#[derive(Default)]
struct Blocks {
    free: Vec<(Layout, Vec<NonNull<u8>>)>,
    /// Bytes of all blocks, free or not.
    bytes: usize,
}

impl Drop for Blocks {
    fn drop(&mut self) {
        for (layout, blocks) in self.free.drain(..) {
            for block in blocks {
                // SAFETY: allocated by `FuturePool::block` with this layout and held by nobody.
                unsafe { dealloc(block.as_ptr(), layout) }
            }
        }
    }
}

/// Memory for short-lived futures: taken when a connection becomes busy, given back when it idles,
/// so that an idle connection pays only for its outer future and a busy one never allocates.
#[derive(Clone, Default)]
pub struct FuturePool(Rc<RefCell<Blocks>>);

impl FuturePool {
    /// Makes a future in a block of this pool. It is made in its place: a busy connection's is some KiB,
    /// of which only what it captures means anything at first, and to move it would copy all of them. So
    /// this is always inlined, and takes what makes the future instead of the future.
    #[inline(always)]
    pub fn boxed<'a, F: Future + 'a>(&self, make: impl FnOnce() -> F) -> Pooled<'a, F::Output> {
        const { assert!(size_of::<F>() > 0) };
        let layout = Layout::new::<F>();
        let block = self.block(layout).cast::<F>();
        // SAFETY: the block has the layout of `F` and belongs to nobody else. Should `make` panic, the
        // block leaks.
        unsafe { block.write(make()) };
        Pooled {
            future: block,
            layout,
            pool: self.clone(),
            owns: PhantomData,
        }
    }

    /// Bytes of all blocks, free or not.
    pub(crate) fn bytes(&self) -> usize {
        self.0.borrow().bytes
    }

    fn block(&self, layout: Layout) -> NonNull<u8> {
        let mut blocks = self.0.borrow_mut();
        let found = blocks.free.iter_mut().find(|(of, _)| *of == layout);
        if let Some(block) = found.and_then(|(_, free)| free.pop()) {
            return block;
        }
        blocks.bytes += layout.size();
        // SAFETY: `boxed` refuses futures of size zero.
        let block = unsafe { alloc(layout) };
        NonNull::new(block).unwrap_or_else(|| handle_alloc_error(layout))
    }

    fn give_back(&self, block: NonNull<u8>, layout: Layout) {
        let mut blocks = self.0.borrow_mut();
        let at = match blocks.free.iter().position(|(of, _)| *of == layout) {
            Some(at) => at,
            None => {
                blocks.free.push((layout, Vec::new()));
                blocks.free.len() - 1
            }
        };
        let free = &mut blocks.free[at].1;
        if free.len() < FREE_MAX {
            free.push(block);
        } else {
            blocks.bytes -= layout.size();
            // SAFETY: allocated by `block` with this layout; its future was dropped.
            unsafe { dealloc(block.as_ptr(), layout) }
        }
    }
}

/// A future in a block of a [`FuturePool`].
pub struct Pooled<'a, T> {
    future: NonNull<dyn Future<Output = T> + 'a>,
    layout: Layout,
    pool: FuturePool,
    owns: PhantomData<Box<dyn Future<Output = T> + 'a>>,
}

impl<T> Future for Pooled<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // SAFETY: the block stays where it is until the future is dropped in `drop`, so it is pinned;
        // `self` is borrowed uniquely, so the future is.
        let future = unsafe { Pin::new_unchecked(self.future.as_mut()) };
        future.poll(context)
    }
}

impl<T> Drop for Pooled<'_, T> {
    fn drop(&mut self) {
        // SAFETY: written by `boxed`, dropped here alone; should its drop panic, the block leaks.
        unsafe { self.future.drop_in_place() };
        self.pool.give_back(self.future.cast(), self.layout);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    #[test]
    fn a_task_is_queued_once_and_a_stale_id_names_nothing() {
        let mut table = TaskTable::default();
        let id = table.insert(Box::pin(async {}));
        assert!(table.mark_queued(id));
        assert!(!table.mark_queued(id));
        let future = table.begin(id).unwrap();
        assert!(table.begin(id).is_none(), "it is being polled");
        assert!(table.mark_queued(id), "a wake while it is polled counts");
        table.park(id, future);
        assert!(table.remove(id).is_some());
        let second = table.insert(Box::pin(async {}));
        assert!(!table.mark_queued(id) && table.mark_queued(second));
        assert_eq!(TaskId::from_bits(id.to_bits()), id);
    }

    #[test]
    fn pooled_futures_run_and_their_blocks_are_used_again() {
        let pool = FuturePool::default();
        let text = String::from("borrowed");
        let block_of = |n: usize| {
            let work = async { text.len() + std::future::ready(n).await };
            let mut pooled = pool.boxed(|| work);
            let at = pooled.future.cast::<u8>();
            let polled = Pin::new(&mut pooled).poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(polled, Poll::Ready(8 + n));
            at
        };
        assert_eq!(block_of(1), block_of(2));
    }

    #[test]
    fn dropping_a_pooled_future_drops_what_it_holds() {
        let pool = FuturePool::default();
        let held = Rc::new(());
        let inner = Rc::clone(&held);
        let pooled = pool.boxed(|| async move {
            std::future::pending::<()>().await;
            drop(inner);
        });
        assert_eq!(Rc::strong_count(&held), 2);
        drop(pooled);
        assert_eq!(Rc::strong_count(&held), 1);
    }
}
