//! How much of the heap is in use, counted where it is allocated and freed.
//!
//! A core counts for itself, in a plain cell of its thread: no atomic, no shared cache line. All other
//! threads together have one atomic count, since they allocate little. What is allocated by one and
//! freed by another moves between the counts and leaves their sum right.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};

/// The allocator of the system, counted.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is in use of what threads that are no cores have allocated, less what of it others freed.
static OTHERS: AtomicI64 = AtomicI64::new(0);

struct Count {
    /// Bytes that this thread has allocated, less those that it has freed.
    own: Cell<i64>,
    /// Bytes that are kept for use again; not in `own`.
    pooled: Cell<i64>,
    is_core: Cell<bool>,
}

thread_local! {
    static COUNT: Count = const {
        Count {
            own: Cell::new(0),
            pooled: Cell::new(0),
            is_core: Cell::new(false),
        }
    };
}

/// What the allocator takes for so many bytes: its header, and a multiple of 16 (malloc(3) of glibc).
const fn taken(bytes: usize) -> i64 {
    (bytes as i64 + 8 + 15) & !15
}

#[inline]
fn add(bytes: i64) {
    COUNT.with(|count| {
        count.own.set(count.own.get() + bytes);
        if !count.is_core.get() {
            OTHERS.fetch_add(bytes, Ordering::Relaxed);
        }
    });
}

// SAFETY: everything is left to the system's allocator, as it is asked for; the counting beside it
// allocates nothing, cannot panic, and its cells have no destructor that could have run.
unsafe impl GlobalAlloc for Counting {
    /// # Safety
    /// As the trait has it.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            add(taken(layout.size()));
        }
        block
    }

    /// # Safety
    /// As the trait has it.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        let block = unsafe { System.alloc_zeroed(layout) };
        if !block.is_null() {
            add(taken(layout.size()));
        }
        block
    }

    /// # Safety
    /// As the trait has it.
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `alloc` gave what the system gave.
        unsafe { System.dealloc(block, layout) };
        add(-taken(layout.size()));
    }

    /// # Safety
    /// As the trait has it.
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `realloc`, and `alloc` gave what the system gave.
        let moved = unsafe { System.realloc(block, layout, size) };
        if !moved.is_null() {
            add(taken(size) - taken(layout.size()));
        }
        moved
    }
}

/// Bytes that this thread has allocated since it began, or since [`claim`], less those that it has freed
/// and those in its pools. Below zero where it frees what others allocate.
#[inline]
pub(crate) fn own() -> i64 {
    COUNT.with(|count| count.own.get())
}

/// As [`own`], with what is in its pools.
#[inline]
pub(crate) fn own_and_pooled() -> i64 {
    COUNT.with(|count| count.own.get() + count.pooled.get())
}

/// Bytes in the pools of this thread.
pub(crate) fn pooled() -> i64 {
    COUNT.with(|count| count.pooled.get())
}

/// What all threads that are no cores have in use.
pub(crate) fn others() -> i64 {
    OTHERS.load(Ordering::Relaxed)
}

/// This thread is a core from now on: what it allocates is its own.
pub(crate) fn claim() {
    COUNT.with(|count| {
        if !count.is_core.replace(true) {
            count.own.set(0);
            count.pooled.set(0);
        }
    });
}

/// This thread is no core any more: what it still has in use is everybody's.
pub(crate) fn release() {
    COUNT.with(|count| {
        if count.is_core.replace(false) {
            let left = count.own.get() + count.pooled.replace(0);
            OTHERS.fetch_add(left, Ordering::Relaxed);
        }
    });
}

/// A block of this size goes into a pool: whoever had it has it no more.
#[inline]
pub(crate) fn pool(bytes: usize) {
    COUNT.with(|count| {
        count.own.set(count.own.get() - bytes as i64);
        count.pooled.set(count.pooled.get() + bytes as i64);
    });
}

/// A block of this size is taken from a pool, to be used or to be freed.
#[inline]
pub(crate) fn unpool(bytes: usize) {
    COUNT.with(|count| {
        count.own.set(count.own.get() + bytes as i64);
        count.pooled.set(count.pooled.get() - bytes as i64);
    });
}

/// What a helper has allocated for this thread, less what it freed of it, is this thread's now.
pub(crate) fn adopt(bytes: i64) {
    COUNT.with(|count| {
        count.own.set(count.own.get() + bytes);
        if count.is_core.get() {
            OTHERS.fetch_sub(bytes, Ordering::Relaxed);
        }
    });
}

/// Gives memory that is free back to the kernel, also from the middle of the heap (malloc_trim(3)). It
/// takes a lock of each arena in turn, for as long as that has much to give back: nothing for a core.
pub(crate) fn trim() {
    // SAFETY: the call takes a number and may be made by any thread at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread of its own, which may become a core.
    fn alone(work: impl FnOnce() + Send + 'static) {
        std::thread::spawn(work).join().unwrap();
    }

    #[test]
    fn a_core_counts_what_it_has_and_what_its_pools_have() {
        alone(|| {
            claim();
            let before = own();
            let mut bytes: Vec<u8> = Vec::with_capacity(1000);
            assert_eq!(own() - before, 1008);
            bytes.reserve_exact(5000);
            assert_eq!(own() - before, 5008);
            pool(bytes.capacity());
            assert_eq!((own() - before, pooled()), (8, 5000));
            assert_eq!(own_and_pooled() - before, 5008);
            unpool(bytes.capacity());
            drop(bytes);
            assert_eq!((own(), pooled()), (before, 0));
            release();
        });
    }

    #[test]
    fn what_a_helper_made_moves_to_the_core_that_wanted_it() {
        alone(|| {
            claim();
            let before = own();
            let (bytes, made) = std::thread::spawn(|| {
                let before = own();
                let bytes: Vec<u8> = Vec::with_capacity(10_000);
                (bytes, own() - before)
            })
            .join()
            .unwrap();
            adopt(made);
            drop(bytes);
            // The thread itself has cost something, too, on this side.
            assert!((own() - before).abs() < 2000, "{}", own() - before);
            release();
        });
    }
}
