//! Ops of a core: from the submission to the completion, and jobs that helpers run.

use std::any::Any;

use rustix::io::Errno;

use super::{COMPLETIONS_PER_SLOT, Core, SEND_BUFFER_KEPT_BYTES, SEND_BUFFERS_KEPT};
use crate::runtime::engine::{Engine, Event, Forbidden, offload};
use crate::runtime::fd::Fd;
use crate::runtime::future::{Many, Once};
use crate::runtime::op::{Completion, Op, Output};
use crate::runtime::scope::ScopeId;
use crate::runtime::slot::{SlotKey, SlotTable, State, Waits};
use crate::runtime::sys::heap;
use crate::runtime::tuning::Tuning;

/// Most turns that a refusal may take; the kernel refuses at the submission, in the first one.
const FORBIDDEN_TURNS: usize = 10_000;

impl Core {
    /// The numbers that depend on the machine.
    pub fn tuning(&self) -> Tuning {
        self.0.tuning.get()
    }

    /// Submits an op with one completion. For tasks alone: elsewhere nobody is there to take it.
    pub fn once(&self, op: Op) -> Once {
        self.submit_once(op, None)
    }

    /// Submits an op with many completions.
    pub fn many(&self, op: Op) -> Many {
        self.submit_many(op, None)
    }

    pub(crate) fn submit_once(&self, op: Op, scope: Option<ScopeId>) -> Once {
        debug_assert!(
            self.0.current.get().is_some(),
            "an op of no task is an orphan: its result would be thrown away"
        );
        Once::new(self.clone(), self.submit(op, scope))
    }

    pub(crate) fn submit_many(&self, op: Op, scope: Option<ScopeId>) -> Many {
        Many::new(self.clone(), self.submit(op, scope))
    }

    fn submit(&self, mut op: Op, scope: Option<ScopeId>) -> Option<SlotKey> {
        check_range(&op);
        let mut slots = self.0.slots.borrow_mut();
        let key = slots.reserve(self.0.current.get(), scope)?;
        if let Some(scope) = scope {
            self.0.scopes.borrow_mut().enter(scope, key);
        }
        let mut engine = self.0.engine.borrow_mut();
        // What the kernel is told of stays in its place when the op is moved: it is on the heap.
        let job = engine.start(key, &mut op, &self.0.buffers);
        slots.put(key, op);
        if let Some(job) = job {
            self.0.jobs_waiting.borrow_mut().push_back((key, job));
        }
        Some(key)
    }

    /// Takes the oldest completion of a slot, and names the current task as the one to wake.
    pub(crate) fn take_completion(&self, key: SlotKey) -> Option<Completion> {
        let mut slots = self.0.slots.borrow_mut();
        let Some(completion) = slots.pop(key) else {
            slots.get_mut(key)?.task = self.0.current.get();
            return None;
        };
        if !completion.more {
            slots.remove(key);
        }
        Some(completion)
    }

    /// Asks the engine to end an op; the slot stays until the terminal completion.
    pub(crate) fn cancel(&self, key: SlotKey) {
        let mut slots = self.0.slots.borrow_mut();
        let Some(slot) = slots.get_mut(key) else {
            return;
        };
        if slot.state != State::InFlight {
            return;
        }
        slot.state = State::Cancelling;
        let waiting = &mut *self.0.jobs_waiting.borrow_mut();
        if let Some(at) = waiting.iter().position(|(of, _)| *of == key) {
            waiting.remove(at);
            self.0.engine.borrow_mut().refuse(key, Errno::CANCELED);
            return;
        }
        self.cancel_in(&mut slots, key);
    }

    /// Asks the engine to end the op of a slot.
    fn cancel_in(&self, slots: &mut SlotTable, key: SlotKey) {
        if let Some(op) = slots.take(key) {
            self.0.engine.borrow_mut().cancel(key, &op);
            slots.put(key, op);
        }
    }

    /// The future of a slot is gone: what came is reaped, and what is to come will be.
    pub(crate) fn orphan(&self, key: SlotKey) {
        let mut reaped = Vec::new();
        {
            let mut slots = self.0.slots.borrow_mut();
            while let Some(completion) = slots.pop(key) {
                reaped.push(completion);
            }
            let Some(slot) = slots.get_mut(key) else {
                return;
            };
            slot.task = None;
            if slot.state == State::Done {
                slots.remove(key);
            }
        }
        drop(reaped);
        self.cancel(key);
    }

    /// Asks the ring for what a restricted one refuses, each once, and tells what came of it; `None`
    /// where there is no ring, or where it doesn't answer within 10 000 turns of the core.
    pub async fn try_forbidden(&self) -> Option<Vec<Forbidden>> {
        if !self.with_engine(Engine::try_forbidden) {
            return None;
        }
        for _ in 0..FORBIDDEN_TURNS {
            self.yield_turn().await;
            let results = self.with_engine(|engine| engine.forbidden_results());
            if results.is_some() {
                return results;
            }
        }
        None
    }

    /// How many entries the kernel has refused because this core's ring is restricted.
    pub fn ring_refused(&self) -> u64 {
        self.0.engine.borrow().refused()
    }

    /// A buffer to build a send in: empty, with room kept from its last use.
    pub fn send_buffer(&self) -> Vec<u8> {
        let buffer = self.0.send_buffers.borrow_mut().pop().unwrap_or_default();
        if buffer.capacity() > 0 {
            heap::unpool(buffer.capacity());
        }
        buffer
    }

    /// Gives a send buffer back for use again.
    pub fn recycle(&self, mut buffer: Vec<u8>) {
        let mut kept = self.0.send_buffers.borrow_mut();
        if kept.len() < SEND_BUFFERS_KEPT && buffer.capacity() <= SEND_BUFFER_KEPT_BYTES {
            buffer.clear();
            if buffer.capacity() > 0 {
                heap::pool(buffer.capacity());
            }
            kept.push(buffer);
        }
    }

    /// How many bytes a bulk send may move now; 0 means: [`Self::yield_turn`] first.
    pub fn bulk_left(&self) -> usize {
        self.0.bulk_left.get()
    }

    /// Counts bytes that a bulk send moved.
    pub fn bulk_sent(&self, bytes: usize) {
        self.0
            .bulk_left
            .set(self.0.bulk_left.get().saturating_sub(bytes));
    }

    pub(super) fn complete(&self, event: Event) {
        let (task, reaped) = {
            let slots = &mut *self.0.slots.borrow_mut();
            let accepts = matches!(slots.waits(event.key), Some(Waits::Accept { .. }));
            let op = if event.more {
                None
            } else {
                slots.take(event.key)
            };
            let notifies = event.more && awaits_notification(slots, event.key);
            let Some(slot) = slots.get_mut(event.key) else {
                // A slot lives until its terminal completion, so this is a completion for nobody:
                // only a buffer could be lost, and it is not.
                drop(event.buffer.map(|id| self.0.buffers.adopt(id, 0)));
                return;
            };
            if slot.state == State::Notifying
                && let Some(Op::SendZeroCopy { ledger, .. }) = &op
            {
                self.notified(ledger, event.result == 1);
            }
            let output = self.output(op, accepts, &event);
            let result = match u32::try_from(event.result) {
                Ok(bytes) => Ok(bytes),
                Err(_) => Err(Errno::from_raw_os_error(-event.result)),
            };
            let completion = Completion {
                result,
                more: event.more,
                output,
            };
            let leaves = !event.more || notifies;
            if !event.more {
                slot.state = State::Done;
            } else if notifies {
                slot.state = State::Notifying;
            }
            if leaves && let Some(scope) = slot.leave_scope() {
                let waiter = self.0.scopes.borrow_mut().leave(scope, event.key);
                waiter.inspect(|task| self.wake_task(*task));
            }
            match slot.task {
                Some(task) => {
                    slots.push(event.key, completion);
                    // A task that leaves bytes lying waits for something else, perhaps for a client
                    // that wants just this: to hold the buffers that all others need.
                    let waiting = slots.waiting(event.key);
                    if waiting > 1 && self.0.buffers.is_scarce() {
                        let before = heap::own();
                        slots.detach_waiting(event.key);
                        let grown = heap::own() - before;
                        self.0.tasks.borrow_mut().give(task, grown);
                    }
                    if waiting >= COMPLETIONS_PER_SLOT
                        && matches!(slots.waits(event.key), Some(Waits::Recv { .. }))
                        && let Some(slot) = slots.get_mut(event.key)
                        && slot.state == State::InFlight
                    {
                        slot.state = State::Cancelling;
                        self.cancel_in(slots, event.key);
                    }
                    (Some(task), None)
                }
                None => {
                    if !event.more {
                        slots.remove(event.key);
                    }
                    (None, Some(completion))
                }
            }
        };
        // Dropping what an orphan received puts its descriptor or buffer back into a queue.
        drop(reaped);
        if let Some(task) = task {
            self.wake_task(task);
        }
    }

    /// Makes the output of a completion. `ended` is the op at its terminal completion, `accepts` that it
    /// is one of an accept.
    fn output(&self, ended: Option<Op>, accepts: bool, event: &Event) -> Output {
        if let Some(id) = event.buffer {
            let len = usize::try_from(event.result).unwrap_or(0);
            return Output::Received(self.0.buffers.adopt(id, len));
        }
        if accepts && event.result >= 0 {
            return Output::Socket(self.adopt(event.result));
        }
        match ended {
            Some(Op::Send { data, .. }) => Output::Data(data),
            Some(Op::Read { mut data, .. }) => {
                data.truncate(usize::try_from(event.result).unwrap_or(0));
                Output::Data(data)
            }
            Some(Op::ReadFixed { mut buffer, at, .. }) => {
                let end = at as usize + usize::try_from(event.result).unwrap_or(0);
                buffer.fill_to(end);
                // Without its memory it was lost with a job that was never run.
                match buffer.size() {
                    0 => Output::None,
                    _ => Output::Fixed(buffer),
                }
            }
            Some(Op::Open(_)) if event.result >= 0 => Output::Opened(self.adopt(event.result)),
            _ => Output::None,
        }
    }

    /// Wraps a descriptor number that a completion carries.
    fn adopt(&self, number: i32) -> Fd {
        let handle = self.0.engine.borrow().adopt(number);
        Fd::new(handle, &self.0.closer)
    }

    pub(super) fn submit_jobs(&self) {
        let mut waiting = self.0.jobs_waiting.borrow_mut();
        if waiting.is_empty() {
            return;
        }
        let mut helpers = self.0.helpers.borrow_mut();
        let mut engine = self.0.engine.borrow_mut();
        while let Some((key, job)) = waiting.pop_front() {
            if let Engine::Sim(sim) = &mut *engine {
                sim.offload(key, job);
                continue;
            }
            let Some(port) = helpers.as_mut() else {
                engine.refuse(key, Errno::CANCELED);
                continue;
            };
            if let Err(job) = port.submit(key.to_bits(), job) {
                waiting.push_front((key, job));
                return;
            }
        }
    }

    pub(super) fn finish_jobs(&self) {
        loop {
            let before = heap::own();
            let answer = match &mut *self.0.engine.borrow_mut() {
                Engine::Sim(sim) => sim.finished_job(),
                _ => self.0.helpers.borrow_mut().as_mut().and_then(|port| {
                    let (token, answer) = port.poll()?;
                    Some((SlotKey::from_bits(token), answer.ok()))
                }),
            };
            let Some((key, answer)) = answer else { return };
            // What a helper has made for it is held by the task.
            let task = self
                .0
                .slots
                .borrow_mut()
                .get_mut(key)
                .and_then(|slot| slot.task);
            if let Some(task) = task {
                self.0.tasks.borrow_mut().give(task, heap::own() - before);
            }
            self.complete_job(key, answer);
        }
    }

    /// A helper's job ended: with `None` when it panicked.
    fn complete_job(&self, key: SlotKey, answer: Option<Box<dyn Any + Send>>) {
        let Some(answer) = answer else {
            return self.complete(Event::ended(key, -Errno::CANCELED.raw_os_error()));
        };
        let mut slots = self.0.slots.borrow_mut();
        match slots.larger_mut(key) {
            Some(Op::Offload(_)) => {
                drop(slots.take(key));
                let Some(slot) = slots.get_mut(key) else {
                    return;
                };
                slot.state = State::Done;
                let (task, scope) = (slot.task, slot.leave_scope());
                slots.push(
                    key,
                    Completion {
                        result: Ok(0),
                        more: false,
                        output: Output::Answer(answer),
                    },
                );
                if task.is_none() {
                    slots.remove(key);
                }
                drop(slots);
                let waiter = scope.and_then(|scope| self.0.scopes.borrow_mut().leave(scope, key));
                task.into_iter()
                    .chain(waiter)
                    .for_each(|task| self.wake_task(task));
            }
            Some(op) => {
                let result = offload::finish(op, answer);
                drop(slots);
                self.complete(Event::ended(key, result));
            }
            None => {}
        }
    }
}

/// After a completion with *more*: whether all that is still to come is the notification of a zero-copy
/// send. The kernel needs the bytes and nothing else then: the connection may close, and whoever waits
/// for the end of its ops need not wait for this.
fn awaits_notification(slots: &mut SlotTable, key: SlotKey) -> bool {
    let Some(Op::SendZeroCopy { socket, ledger, .. }) = slots.larger_mut(key) else {
        return false;
    };
    *socket = None;
    ledger.await_one();
    true
}

/// Reads and sends of fixed buffers stay within them.
fn check_range(op: &Op) {
    match op {
        Op::ReadFixed {
            buffer, at, len, ..
        } => {
            let end = u64::from(*at) + u64::from(*len);
            assert!(end <= buffer.size() as u64, "a read beyond its buffer");
        }
        Op::SendZeroCopy { bytes, range, .. } => {
            let filled = bytes.bytes().len();
            let within = range.0 <= range.1 && range.1 as usize <= filled;
            assert!(within, "a send beyond what was read");
        }
        _ => {}
    }
}
