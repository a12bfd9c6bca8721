//! Engines: what performs I/O for one core, with the same results on each.

pub mod caps;
pub(crate) mod offload;
pub(crate) mod poll;
pub(crate) mod ring;
pub mod sim;
pub(crate) mod sqe;
pub mod syscall;
#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::buf::BufPool;
use super::buf::fixed::FixedMemory;
use super::fd::{Closing, Handle};
use super::op::{Job, Op};
use super::slot::{SlotKey, SlotTable};
use super::sys;

/// One completion as the engine sees it, in the form of a completion queue entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) key: SlotKey,
    /// Bytes or a descriptor, or `-errno`.
    pub(crate) result: i32,
    /// More completions of this op follow.
    pub(crate) more: bool,
    /// The receive buffer that was filled.
    pub(crate) buffer: Option<u16>,
}

impl Event {
    /// A terminal event without a buffer.
    pub(crate) fn ended(key: SlotKey, result: i32) -> Self {
        Self {
            key,
            result,
            more: false,
            buffer: None,
        }
    }
}

/// What became of an entry that a restricted ring refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// What it would have done.
    pub what: &'static str,
    /// Its result: `-errno`, or what it gave.
    pub result: i32,
}

impl Forbidden {
    /// Whether the ring would not hear of it. A kernel that has no such operation says `EINVAL`.
    pub fn refused(&self) -> bool {
        matches!(-self.result, libc::EACCES | libc::EINVAL)
    }
}

/// The engine of one core.
pub(crate) enum Engine {
    /// io_uring.
    Ring(Box<ring::Ring>),
    /// epoll.
    Poll(Box<poll::Poll>),
    /// Seeded, in virtual time, with faults.
    Sim(sim::Sim),
}

impl Engine {
    /// Starts an op whose slot is in the table. Returns the job of an op that a helper thread has to
    /// run.
    pub(crate) fn start(
        &mut self,
        key: SlotKey,
        op: &mut Op,
        buffers: &Rc<BufPool>,
    ) -> Option<Job> {
        if let Op::Offload(job) = op {
            return Some(std::mem::replace(job, Box::new(|| Box::new(()))));
        }
        match self {
            Self::Ring(ring) => {
                ring.start(key, op);
                None
            }
            Self::Poll(poll) => poll.start(key, op, buffers),
            Self::Sim(sim) => {
                sim.start(key, op);
                None
            }
        }
    }

    /// Asks for the end of an op. Its terminal event comes in a later turn.
    pub(crate) fn cancel(&mut self, key: SlotKey, op: &Op) {
        match self {
            Self::Ring(ring) => ring.cancel(key, op),
            Self::Poll(poll) => poll.cancel(key, op),
            Self::Sim(sim) => sim.cancel(key, op),
        }
    }

    /// Ends an op that never began.
    pub(crate) fn refuse(&mut self, key: SlotKey, errno: Errno) {
        let event = Event::ended(key, -errno.raw_os_error());
        match self {
            Self::Ring(ring) => ring.local.push(event),
            Self::Poll(poll) => poll.local.push(event),
            Self::Sim(sim) => sim.refuse(event),
        }
    }

    /// Closes a descriptor that nothing refers to.
    pub(crate) fn close(&mut self, closing: Closing) {
        match self {
            Self::Ring(ring) => ring.close(closing),
            Self::Poll(poll) => poll.close(closing),
            Self::Sim(sim) => sim.close(closing),
        }
    }

    /// Submits what was started, waits for at most `wait` (`None`: for ever) unless there is
    /// something to tell already, and appends the events.
    pub(crate) fn turn(
        &mut self,
        wait: Option<Duration>,
        slots: &mut SlotTable,
        buffers: &Rc<BufPool>,
        events: &mut Vec<Event>,
    ) -> Result<(), Errno> {
        match self {
            Self::Ring(ring) => ring.turn(wait, events),
            Self::Poll(poll) => poll.turn(wait, slots, buffers, events),
            Self::Sim(sim) => sim.turn(wait, slots, buffers, events),
        }
    }

    /// Whether another thread has woken this one since the last call.
    pub(crate) fn take_woken(&mut self) -> bool {
        match self {
            Self::Ring(ring) => std::mem::take(&mut ring.woken),
            Self::Poll(poll) => std::mem::take(&mut poll.woken),
            Self::Sim(sim) => sim.take_woken(),
        }
    }

    /// Whether something waits to be submitted or told.
    pub(crate) fn pending(&self) -> bool {
        match self {
            Self::Ring(ring) => ring.pending(),
            Self::Poll(poll) => !poll.local.is_empty(),
            Self::Sim(sim) => sim.pending(),
        }
    }

    /// The time of this engine: monotonic, or virtual.
    pub(crate) fn now(&self) -> Instant {
        match self {
            Self::Ring(_) | Self::Poll(_) => Instant::now(),
            Self::Sim(sim) => sim.now(),
        }
    }

    /// The descriptor of this number, which a completion has just made ours.
    pub(crate) fn adopt(&self, number: i32) -> Handle {
        match self {
            Self::Ring(_) | Self::Poll(_) => Handle::Os(sys::adopt(number)),
            Self::Sim(_) => Handle::Sim(number as u32),
        }
    }

    /// Submits what a restricted ring refuses; says whether there is a ring.
    pub(crate) fn try_forbidden(&mut self) -> bool {
        let Self::Ring(ring) = self else { return false };
        ring.try_forbidden();
        true
    }

    /// What has become of that: `None` until all is known.
    pub(crate) fn forbidden_results(&self) -> Option<Vec<Forbidden>> {
        let Self::Ring(ring) = self else { return None };
        let all = sqe::forbidden().into_iter().zip(ring.tried());
        all.map(|((what, _), result)| result.map(|result| Forbidden { what, result }))
            .collect()
    }

    /// How many entries the kernel has refused because the ring is restricted.
    pub(crate) fn refused(&self) -> u64 {
        match self {
            Self::Ring(ring) => ring.refused,
            Self::Poll(_) | Self::Sim(_) => 0,
        }
    }

    /// Registers a new fixed buffer, where the engine can.
    pub(crate) fn register_fixed(&mut self, memory: &mut FixedMemory) {
        match self {
            Self::Ring(ring) => ring.register_fixed(memory),
            Self::Sim(_) => memory.set_registered(),
            Self::Poll(_) => {}
        }
    }

    /// Takes a registered buffer back, whose memory is freed next.
    pub(crate) fn forget_fixed(&mut self, memory: &FixedMemory) {
        if let Self::Ring(ring) = self {
            ring.forget_fixed(memory);
        }
    }

    /// Never frees what the kernel may still write to.
    pub(crate) fn leak(&mut self) {
        if let Self::Ring(ring) = self {
            ring.leak();
        }
    }
}
