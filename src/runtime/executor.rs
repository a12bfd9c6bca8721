//! The core: one engine, its slots, buffers, timers and tasks, and the loop that turns them.
//!
//! A turn: run ready tasks under a budget; give the engine what they asked for, in one `enter` with
//! the next timer as its timeout; copy the completions out; wake whom they concern. Tasks never run
//! while completions are being taken, so no task sees the core half-changed.

mod fixed;
mod memory;
mod ops;
mod stop;
mod turns;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::budget::Gauge;
use super::buf::BufPool;
use super::buf::fixed::FixedPool;
use super::direct::Direct;
use super::engine::{Engine, Event};
use super::fd::{CloseQueue, Closing, Fd, Handle};
use super::heartbeat::Heartbeat;
use super::kernel_tls::KernelTls;
use super::mailbox::Wake;
use super::offload::HelperPort;
use super::op::Job;
use super::pipe::PipePool;
use super::scope::ScopeTable;
use super::slot::{SlotKey, SlotTable};
use super::sys::heap;
use super::task::{FuturePool, TaskId, TaskTable};
use super::timer::{TimerKey, Wheel};
use super::tuning::Tuning;
use crate::util::clock::Since;

pub use memory::Parts;
pub(crate) use turns::ThreadUse;
use turns::TurnWatch;
pub use turns::{LONG_STALL, STALL, Turns};

/// Most tasks run in one turn before the engine is asked again.
const TASKS_PER_TURN: usize = 1024;

/// Completions of one receive that may wait for their task; beyond it the op is cancelled, and its
/// holder starts it again when it has caught up. Bounds the buffers that one connection can hold.
pub const COMPLETIONS_PER_SLOT: usize = 4;

/// Bytes that all bulk sends of one turn may move together, so that a download never makes the
/// others wait longer than the copy of this much. Twice as much where sockets may be corked: a congestion
/// control that paces what it sends wants it in small parts.
pub const BULK_BYTES_PER_TURN: usize = 512 << 10;

/// Send buffers kept for use again; more are freed.
const SEND_BUFFERS_KEPT: usize = 64;

/// A send buffer that grew beyond this is freed after use, so that no idle memory stays large.
const SEND_BUFFER_KEPT_BYTES: usize = 64 << 10;

/// How soon a core offers a job again that found the helpers' queue full of other cores' jobs.
const JOB_AGAIN: Duration = Duration::from_millis(1);

/// Counters of one core, for tests and status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Slots in use.
    pub slots: usize,
    /// Tasks alive.
    pub tasks: usize,
    /// Scopes alive.
    pub scopes: usize,
    /// Armed timers.
    pub timers: usize,
    /// Receive buffers that are not free.
    pub buffers: usize,
    /// Pipes in use.
    pub pipes: usize,
    /// Fixed buffers that are held.
    pub fixed: usize,
}

pub(crate) struct Inner {
    engine: RefCell<Engine>,
    slots: RefCell<SlotTable>,
    pub(crate) scopes: RefCell<ScopeTable>,
    tasks: RefCell<TaskTable>,
    ready: RefCell<VecDeque<TaskId>>,
    next_turn: RefCell<NextTurn>,
    starved: RefCell<Starved>,
    woken: RefCell<Vec<TaskId>>,
    current: Cell<Option<TaskId>>,
    timers: RefCell<Wheel>,
    epoch: Instant,
    now: Cell<Instant>,
    buffers: Rc<BufPool>,
    closer: Rc<CloseQueue>,
    bulk_left: Cell<usize>,
    helpers: RefCell<Option<HelperPort>>,
    jobs_waiting: RefCell<VecDeque<(SlotKey, Job)>>,
    send_buffers: RefCell<Vec<Vec<u8>>>,
    pub(crate) pipes: RefCell<PipePool>,
    pub(crate) corking: Cell<bool>,
    pub(crate) kernel_tls: KernelTls,
    fixed: Rc<FixedPool>,
    pub(crate) direct: Direct,
    pub(crate) tuning: Cell<Tuning>,
    futures: FuturePool,
    wake: Arc<Wake>,
    wakes: Cell<u64>,
    panics: Cell<u64>,
    heartbeat: OnceCell<Arc<Heartbeat>>,
    pub(crate) gauge: Gauge,
    turns: TurnWatch,
    scratch: RefCell<Scratch>,
}

/// The tasks that asked for the next turn, in the order in which they get it.
#[derive(Default)]
struct NextTurn {
    first: Vec<TaskId>,
    later: Vec<TaskId>,
}

impl NextTurn {
    fn is_empty(&self) -> bool {
        self.first.is_empty() && self.later.is_empty()
    }
}

/// The tasks that wait for a receive buffer. Places count up; the last task in the queue has place
/// `last`, and each one before it one less.
#[derive(Default)]
struct Starved {
    queue: VecDeque<TaskId>,
    last: u64,
}

/// Storage that a turn uses and keeps.
#[derive(Default)]
struct Scratch {
    events: Vec<Event>,
    closing: Vec<Closing>,
    fired: Vec<u64>,
}

/// A handle to the core that this thread runs. Cheap to clone; never leaves its thread.
#[derive(Clone)]
pub struct Core(Rc<Inner>);

impl Core {
    /// A core on this engine. `wake` is what other threads wake it by; without `helpers` every
    /// [`Op::Offload`] is cancelled.
    pub(crate) fn new(
        engine: Engine,
        buffers: Rc<BufPool>,
        wake: Arc<Wake>,
        helpers: Option<HelperPort>,
    ) -> Self {
        let (epoch, turns) = (engine.now(), TurnWatch::new(&engine));
        Self(Rc::new(Inner {
            engine: RefCell::new(engine),
            slots: RefCell::default(),
            scopes: RefCell::default(),
            tasks: RefCell::default(),
            ready: RefCell::default(),
            next_turn: RefCell::default(),
            starved: RefCell::default(),
            woken: RefCell::default(),
            current: Cell::new(None),
            timers: RefCell::new(Wheel::new(0)),
            epoch,
            now: Cell::new(epoch),
            buffers,
            closer: Rc::default(),
            bulk_left: Cell::new(BULK_BYTES_PER_TURN),
            helpers: RefCell::new(helpers),
            jobs_waiting: RefCell::default(),
            send_buffers: RefCell::default(),
            pipes: RefCell::default(),
            corking: Cell::new(true),
            kernel_tls: KernelTls::default(),
            fixed: Rc::default(),
            direct: Direct::default(),
            tuning: Cell::new(Tuning::default()),
            futures: FuturePool::default(),
            wake,
            wakes: Cell::new(0),
            panics: Cell::new(0),
            heartbeat: OnceCell::new(),
            gauge: Gauge::default(),
            turns,
            scratch: RefCell::default(),
        }))
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    pub(crate) fn with_engine<T>(&self, work: impl FnOnce(&mut Engine) -> T) -> T {
        work(&mut self.0.engine.borrow_mut())
    }

    /// The time at the beginning of this turn.
    pub fn now(&self) -> Instant {
        self.0.now.get()
    }

    /// The time at this moment, for what is measured within a turn.
    pub fn clock(&self) -> Instant {
        self.0.engine.borrow().now()
    }

    /// The pool for futures that live while a connection is busy.
    pub fn futures(&self) -> &FuturePool {
        &self.0.futures
    }

    /// Wraps a descriptor so that this core closes it after its last use.
    pub fn own(&self, fd: OwnedFd) -> Fd {
        Fd::new(Handle::Os(fd), &self.0.closer)
    }

    /// Wraps a descriptor that other cores use too.
    pub fn share(&self, fd: Arc<OwnedFd>) -> Fd {
        Fd::new(Handle::Shared(fd), &self.0.closer)
    }

    /// Wraps a descriptor of the simulator.
    pub(crate) fn simulated(&self, number: u32) -> Fd {
        Fd::new(Handle::Sim(number), &self.0.closer)
    }

    /// How many of everything there is at this moment.
    pub fn usage(&self) -> Usage {
        Usage {
            slots: self.0.slots.borrow().len(),
            tasks: self.0.tasks.borrow().len(),
            scopes: self.0.scopes.borrow().len(),
            timers: self.0.timers.borrow().len(),
            buffers: usize::from(self.0.buffers.count() - self.0.buffers.available()),
            pipes: self.0.pipes.borrow().in_use(),
            fixed: self.0.fixed.held(),
        }
    }

    /// Tells from now on when a turn begins and when the core waits. The first call counts.
    pub fn report_to(&self, heartbeat: Arc<Heartbeat>) {
        heartbeat.runs(self.now());
        let _ = self.0.heartbeat.set(heartbeat);
    }

    /// How many tasks have panicked.
    pub fn panics(&self) -> u64 {
        self.0.panics.get()
    }

    // ---- tasks -------------------------------------------------------------------------------

    /// Starts a task; it runs first in the next round of ready tasks.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) -> TaskId {
        let id = self.0.tasks.borrow_mut().insert(Box::pin(future));
        self.wake_task(id);
        id
    }

    pub(crate) fn current_task(&self) -> TaskId {
        self.0
            .current
            .get()
            .expect("the futures of a core are polled by its tasks alone")
    }

    /// Makes a task ready. Waking one that ended is no error.
    pub fn wake_task(&self, id: TaskId) {
        if self.0.tasks.borrow_mut().mark_queued(id) {
            self.0.ready.borrow_mut().push_back(id);
        }
    }

    /// Lets the other tasks and the engine have a turn.
    pub async fn yield_turn(&self) {
        self.yield_as(|turn| &mut turn.later).await;
    }

    /// Waits for the next turn's quota after this turn's was found used up. Those that had no share of
    /// it come before those that had, and before all that events wake, in the order in which they began
    /// to wait; so nobody waits for ever.
    pub async fn yield_for_bulk(&self) {
        self.yield_as(|turn| &mut turn.first).await;
    }

    async fn yield_as(&self, list: impl Fn(&mut NextTurn) -> &mut Vec<TaskId>) {
        let mut yielded = false;
        poll_fn(|_| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            list(&mut self.0.next_turn.borrow_mut()).push(self.current_task());
            Poll::Pending
        })
        .await;
    }

    /// Whether so few receive buffers are free that none should be held during a wait.
    pub fn buffers_scarce(&self) -> bool {
        self.0.buffers.is_scarce()
    }

    /// Puts the current task into the queue for receive buffers, after a receive ended with
    /// `ENOBUFS`, and gives its place. Those that wait are woken in their order.
    pub fn wait_for_buffers(&self) -> NonZeroU64 {
        let mut starved = self.0.starved.borrow_mut();
        starved.queue.push_back(self.current_task());
        starved.last += 1;
        NonZeroU64::new(starved.last).unwrap_or(NonZeroU64::MIN)
    }

    /// Ready when a receive buffer is free for the task at this place in the queue; one that comes
    /// too late goes to the end of the queue.
    pub fn poll_buffers_back(&self, place: &mut NonZeroU64) -> Poll<()> {
        let waits = {
            let starved = self.0.starved.borrow();
            let first = starved.last + 1 - starved.queue.len() as u64;
            place.get() >= first
        };
        if waits {
            return Poll::Pending;
        }
        if self.0.buffers.available() > 0 {
            return Poll::Ready(());
        }
        *place = self.wait_for_buffers();
        Poll::Pending
    }

    /// Wakes every task, so that each looks at what has changed around it.
    pub fn wake_all(&self) {
        let ids = self.0.tasks.borrow().ids();
        ids.into_iter().for_each(|id| self.wake_task(id));
    }

    /// Waits until another thread has woken this core since `seen`, which is then brought up to date.
    pub async fn woken(&self, seen: &mut u64) {
        poll_fn(|_| self.poll_woken(seen)).await;
    }

    /// Ready when another thread has woken this core since `seen`, as [`Self::woken`].
    pub fn poll_woken(&self, seen: &mut u64) -> Poll<()> {
        let wakes = self.0.wakes.get();
        if wakes != *seen {
            *seen = wakes;
            return Poll::Ready(());
        }
        self.0.woken.borrow_mut().push(self.current_task());
        Poll::Pending
    }

    fn run_ready(&self) {
        let mut waker = Context::from_waker(Waker::noop());
        let mut before = heap::own();
        for _ in 0..TASKS_PER_TURN {
            let Some(id) = self.0.ready.borrow_mut().pop_front() else {
                return;
            };
            let Some(mut future) = self.0.tasks.borrow_mut().begin(id) else {
                continue;
            };
            self.0.current.set(Some(id));
            let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut waker)));
            let mut own = heap::own();
            match polled {
                Ok(Poll::Pending) => self.0.tasks.borrow_mut().park(id, future, own - before),
                Ok(Poll::Ready(())) => {
                    self.0.tasks.borrow_mut().remove(id);
                    self.discard(future);
                    own = heap::own();
                }
                Err(_) => {
                    self.0.panics.set(self.0.panics.get() + 1);
                    self.0.tasks.borrow_mut().remove(id);
                    self.discard(future);
                    own = heap::own();
                }
            }
            before = own;
            self.0.current.set(None);
            if self.0.gauge.is_due(own) {
                self.look_at_memory();
            }
        }
    }

    /// Ends another task between two of its polls: its future is dropped now, its ops are orphaned. Says
    /// whether it was alive; the current task is never ended by this.
    pub fn abort(&self, id: TaskId) -> bool {
        if self.0.current.get() == Some(id) {
            return false;
        }
        let future = self.0.tasks.borrow_mut().remove(id);
        match future {
            Some(future) => {
                self.discard(future);
                true
            }
            None => false,
        }
    }

    /// Drops a task's future. Should that panic, the connection's ops are still orphaned one by one.
    fn discard(&self, future: super::task::TaskFuture) {
        if catch_unwind(AssertUnwindSafe(|| drop(future))).is_err() {
            self.0.panics.set(self.0.panics.get() + 1);
        }
    }

    // ---- timers ------------------------------------------------------------------------------

    fn ms_until(&self, at: Instant) -> u64 {
        // Without `as_micros`, whose 128 bits are divided by a function of their own.
        let since = at.saturating_duration_since(self.0.epoch);
        let ms = u64::from(since.subsec_micros().div_ceil(1000));
        since.as_secs().saturating_mul(1000).saturating_add(ms)
    }

    fn now_ms(&self) -> u64 {
        self.now()
            .saturating_duration_since(self.0.epoch)
            .as_millis() as u64
    }

    /// A time as that since the core began.
    pub(crate) fn since_start(&self, at: Instant) -> Since {
        at.saturating_duration_since(self.0.epoch).into()
    }

    pub(crate) fn arm(&self, deadline: Instant) -> TimerKey {
        let payload = self.current_task().to_bits();
        self.0
            .timers
            .borrow_mut()
            .insert(self.ms_until(deadline), payload)
    }

    pub(crate) fn disarm(&self, key: TimerKey) {
        self.0.timers.borrow_mut().cancel(key);
    }

    // ---- the loop ----------------------------------------------------------------------------

    /// Turns until `done` says so between two turns.
    ///
    /// # Errors
    /// What made the engine itself fail: the core can't go on.
    pub fn run_until(&self, mut done: impl FnMut() -> bool) -> Result<(), Errno> {
        while !done() {
            self.run_ready();
            // A task may just have done the last thing there was to wait for.
            if done() {
                break;
            }
            self.turn_engine(None)?;
        }
        Ok(())
    }

    /// Turns until no task is left.
    ///
    /// # Errors
    /// As [`Self::run_until`].
    pub fn run(&self) -> Result<(), Errno> {
        self.run_until(|| self.0.tasks.borrow().len() == 0)
    }

    /// One turn. With `wait_max` the engine waits no longer than that.
    ///
    /// # Errors
    /// As [`Self::run_until`].
    pub fn turn(&self, wait_max: Option<Duration>) -> Result<(), Errno> {
        self.run_ready();
        self.turn_engine(wait_max)
    }

    /// The part of a turn after the tasks: asks the engine, and wakes whom its answers concern.
    fn turn_engine(&self, wait_max: Option<Duration>) -> Result<(), Errno> {
        let scratch = &mut *self.0.scratch.borrow_mut();
        self.0.gauge.publish();
        self.close_unused(&mut scratch.closing);
        self.submit_jobs();
        let wait = self.wait_time(wait_max);
        if self.ask_engine(wait, &mut scratch.events)? {
            self.0.wake.drain();
            self.0.wakes.set(self.0.wakes.get() + 1);
            for task in self.0.woken.borrow_mut().drain(..) {
                self.wake_task(task);
            }
        }
        let corking = usize::from(self.0.corking.get());
        self.0.bulk_left.set(BULK_BYTES_PER_TURN << corking);
        // Before those that events wake: these come anew each turn, and would use up the quota each
        // time before those that have waited for it.
        for task in self.0.next_turn.borrow_mut().first.drain(..) {
            self.wake_task(task);
        }
        for event in scratch.events.drain(..) {
            self.complete(event);
        }
        self.finish_jobs();
        self.fire_timers(&mut scratch.fired);
        self.wake_waiting();
        Ok(())
    }

    fn close_unused(&self, closing: &mut Vec<Closing>) {
        if self.0.closer.is_empty() {
            return;
        }
        self.0.closer.take(closing);
        let mut engine = self.0.engine.borrow_mut();
        for unused in closing.drain(..) {
            engine.close(unused);
        }
    }

    fn wait_time(&self, wait_max: Option<Duration>) -> Option<Duration> {
        let busy = !self.0.ready.borrow().is_empty() || !self.0.next_turn.borrow().is_empty();
        let starved = !self.0.starved.borrow().queue.is_empty() && self.0.buffers.available() > 0;
        if busy || starved {
            return Some(Duration::ZERO);
        }
        let wait_max = match (self.jobs_refused(), wait_max) {
            (false, max) => max,
            (true, max) => Some(max.map_or(JOB_AGAIN, |max| max.min(JOB_AGAIN))),
        };
        let next = self.0.timers.borrow().next_expiry(self.now_ms());
        let until = next.map(|ms| {
            let at = self.0.epoch + Duration::from_millis(ms);
            at.saturating_duration_since(self.now())
        });
        match (until, wait_max) {
            (Some(until), Some(max)) => Some(until.min(max)),
            (until, max) => until.or(max),
        }
    }

    /// Whether a job waits for room among the helpers, and no answer is to come that would wake this
    /// core: the room is taken by the jobs of other cores, which wake those.
    fn jobs_refused(&self) -> bool {
        let helpers = self.0.helpers.borrow();
        let answers = helpers.as_ref().map_or(0, HelperPort::outstanding);
        answers == 0 && !self.0.jobs_waiting.borrow().is_empty()
    }

    fn fire_timers(&self, fired: &mut Vec<u64>) {
        self.0.timers.borrow_mut().advance(self.now_ms(), fired);
        for payload in fired.drain(..) {
            self.wake_task(TaskId::from_bits(payload));
        }
    }

    fn wake_waiting(&self) {
        let next = &mut *self.0.next_turn.borrow_mut();
        for task in next.later.drain(..) {
            self.wake_task(task);
        }
        let starved = &mut *self.0.starved.borrow_mut();
        let back = usize::from(self.0.buffers.available()).min(starved.queue.len());
        for task in starved.queue.drain(..back) {
            self.wake_task(task);
        }
    }
}
