//! The slot table: the engine's record of every op in flight.
//!
//! A slot owns the op's buffer and descriptor reference until the terminal completion. `LIFECYCLE.md`
//! has the table of states. Dropping a future orphans its slot and asks for cancellation; it frees
//! nothing. "Terminal" is decided by the more-flag alone.

use std::num::NonZeroU32;

use slab::Slab;

use super::fd::Fd;
use super::op::{Completion, Interest, Op, Output};
use super::scope::ScopeId;
use super::task::TaskId;

/// Most ops that one core may have in flight. At the bound a new op completes with `EAGAIN`.
pub const SLOTS_MAX: usize = 1 << 21;

/// Names one use of one slot; a reused slot has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotKey {
    index: u32,
    /// Never 0, so that an optional key needs no more room than a key.
    generation: NonZeroU32,
}

impl SlotKey {
    /// The key as the 64 bits that travel through the kernel.
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.generation.get()) << 32 | u64::from(self.index)
    }

    /// The key in these bits. Whether it names a live slot is for the table to say.
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self {
            index: bits as u32,
            // No slot has the last generation either.
            generation: NonZeroU32::new((bits >> 32) as u32).unwrap_or(NonZeroU32::MAX),
        }
    }
}

/// Where an op is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The engine has it.
    InFlight,
    /// Its cancellation was asked for; the terminal completion is still to come.
    Cancelling,
    /// A zero-copy send has its result; the notification that ends it is still to come.
    Notifying,
    /// The terminal completion came and waits for the future to take it.
    Done,
}

/// One op in flight. Every idle connection has one, so what only busy ones need is elsewhere.
pub struct Slot {
    generation: NonZeroU32,
    pub(crate) state: State,
    /// The newest of the completions that wait to be taken, or [`NONE`].
    newest: u32,
    scope: ScopeId,
    kept: Kept,
    /// The task that waits, `None` once the future was dropped: an orphan.
    pub(crate) task: Option<TaskId>,
}

/// The op of a slot with its resources, until they are taken apart at the terminal completion. What idle
/// connections wait for stands in the slot itself; other ops are several times as large, and few are in
/// flight at any time.
enum Kept {
    Nothing,
    Accept {
        listener: Fd,
        one: bool,
    },
    Recv {
        socket: Fd,
        one: bool,
    },
    Ready {
        fd: Fd,
        interest: Interest,
    },
    /// At this place among the larger ones.
    Larger(u32),
}

/// An op that stands in its slot, as an engine looks at it.
pub(crate) enum Waits<'s> {
    /// [`Op::Accept`].
    Accept { listener: &'s Fd, one: bool },
    /// [`Op::Recv`].
    Recv { socket: &'s Fd, one: bool },
    /// [`Op::Ready`].
    Ready,
}

/// No completion waits, or no scope.
const NONE: u32 = u32::MAX;

const _: () = assert!(
    size_of::<Slot>() <= 40,
    "every idle connection pays for a slot"
);

impl Slot {
    /// Takes the op out of its scope, if it is in one.
    pub(crate) fn leave_scope(&mut self) -> Option<ScopeId> {
        let scope = std::mem::replace(&mut self.scope, NONE);
        (scope != NONE).then_some(scope)
    }
}

/// A completion that waits for its future, in the circle of those of its slot.
struct Waiting {
    completion: Completion,
    /// The next newer one; of the newest, the oldest.
    next: u32,
}

/// All slots of one core.
#[derive(Default)]
pub struct SlotTable {
    slots: Slab<Slot>,
    larger: Slab<Op>,
    /// The completions that wait, of all slots: few at any time, since a task takes them in the turn in
    /// which they come.
    waiting: Slab<Waiting>,
    generation: u32,
}

impl SlotTable {
    /// Puts an op in flight, or gives it back when the table is full.
    ///
    /// # Errors
    /// The op, beyond [`SLOTS_MAX`].
    pub fn insert(
        &mut self,
        op: Op,
        task: Option<TaskId>,
        scope: Option<ScopeId>,
    ) -> Result<SlotKey, Op> {
        if self.slots.len() >= SLOTS_MAX {
            return Err(op);
        }
        let kept = self.keep(op);
        Ok(self.add(kept, task, scope))
    }

    /// A slot for an op that is put there when it has begun; `None` beyond [`SLOTS_MAX`].
    pub(crate) fn reserve(
        &mut self,
        task: Option<TaskId>,
        scope: Option<ScopeId>,
    ) -> Option<SlotKey> {
        (self.slots.len() < SLOTS_MAX).then(|| self.add(Kept::Nothing, task, scope))
    }

    fn add(&mut self, kept: Kept, task: Option<TaskId>, scope: Option<ScopeId>) -> SlotKey {
        // The last generation is kept out of use: its keys are the engine's own user_data.
        self.generation = if self.generation >= u32::MAX - 1 {
            1
        } else {
            self.generation + 1
        };
        let generation = NonZeroU32::new(self.generation).unwrap_or(NonZeroU32::MIN);
        let slot = Slot {
            generation,
            state: State::InFlight,
            newest: NONE,
            scope: scope.unwrap_or(NONE),
            kept,
            task,
        };
        SlotKey {
            index: self.slots.insert(slot) as u32,
            generation,
        }
    }

    fn keep(&mut self, op: Op) -> Kept {
        match op {
            Op::Accept { listener, one } => Kept::Accept { listener, one },
            Op::Recv { socket, one } => Kept::Recv { socket, one },
            Op::Ready { fd, interest } => Kept::Ready { fd, interest },
            larger => Kept::Larger(self.larger.insert(larger) as u32),
        }
    }

    /// Puts an op into its slot, from which it was taken or for which the slot was reserved.
    pub(crate) fn put(&mut self, key: SlotKey, op: Op) {
        let kept = self.keep(op);
        if let Some(slot) = self.slots.get_mut(key.index as usize) {
            debug_assert!(slot.generation == key.generation && matches!(slot.kept, Kept::Nothing));
            slot.kept = kept;
        }
    }

    /// Takes the op out of its slot.
    pub(crate) fn take(&mut self, key: SlotKey) -> Option<Op> {
        let slot = self.get_mut(key)?;
        match std::mem::replace(&mut slot.kept, Kept::Nothing) {
            Kept::Nothing => None,
            Kept::Accept { listener, one } => Some(Op::Accept { listener, one }),
            Kept::Recv { socket, one } => Some(Op::Recv { socket, one }),
            Kept::Ready { fd, interest } => Some(Op::Ready { fd, interest }),
            Kept::Larger(place) => self.larger.try_remove(place as usize),
        }
    }

    /// The op of a slot, where it is one that waits for something to come.
    pub(crate) fn waits(&self, key: SlotKey) -> Option<Waits<'_>> {
        match &self.slot(key)?.kept {
            Kept::Accept { listener, one } => Some(Waits::Accept {
                listener,
                one: *one,
            }),
            Kept::Recv { socket, one } => Some(Waits::Recv { socket, one: *one }),
            Kept::Ready { .. } => Some(Waits::Ready),
            Kept::Nothing | Kept::Larger(_) => None,
        }
    }

    /// The op of a slot, where it isn't one of [`Self::waits`].
    pub(crate) fn larger(&self, key: SlotKey) -> Option<&Op> {
        match self.slot(key)?.kept {
            Kept::Larger(place) => self.larger.get(place as usize),
            _ => None,
        }
    }

    /// As [`Self::larger`], to change it.
    pub(crate) fn larger_mut(&mut self, key: SlotKey) -> Option<&mut Op> {
        match self.slot(key)?.kept {
            Kept::Larger(place) => self.larger.get_mut(place as usize),
            _ => None,
        }
    }

    fn slot(&self, key: SlotKey) -> Option<&Slot> {
        self.slots
            .get(key.index as usize)
            .filter(|slot| slot.generation == key.generation)
    }

    /// The slot, unless the key is of an earlier use.
    pub fn get_mut(&mut self, key: SlotKey) -> Option<&mut Slot> {
        self.slots
            .get_mut(key.index as usize)
            .filter(|slot| slot.generation == key.generation)
    }

    /// Frees a slot whose terminal completion has come, with what waits in it.
    pub fn remove(&mut self, key: SlotKey) -> Option<Slot> {
        let newest = self.slot(key)?.newest;
        if newest != NONE {
            while self.pop(key).is_some() {}
        }
        let slot = self.slots.remove(key.index as usize);
        if let Kept::Larger(place) = slot.kept {
            drop(self.larger.try_remove(place as usize));
        }
        Some(slot)
    }

    /// Keeps a completion of a slot until the future takes it, behind those that wait already.
    pub fn push(&mut self, key: SlotKey, completion: Completion) {
        let place = self.waiting.vacant_key() as u32;
        let Some(slot) = self.get_mut(key) else {
            return;
        };
        let before = std::mem::replace(&mut slot.newest, place);
        let next = match self.waiting.get_mut(before as usize) {
            Some(before) => std::mem::replace(&mut before.next, place),
            None => place,
        };
        self.waiting.insert(Waiting { completion, next });
    }

    /// Takes the oldest completion of a slot.
    pub fn pop(&mut self, key: SlotKey) -> Option<Completion> {
        let newest = self.get_mut(key)?.newest;
        let oldest = self.waiting.get(newest as usize)?.next;
        let taken = self.waiting.try_remove(oldest as usize)?;
        match self.waiting.get_mut(newest as usize) {
            Some(newest) => newest.next = taken.next,
            // It was the only one.
            None => self.get_mut(key)?.newest = NONE,
        }
        Some(taken.completion)
    }

    /// How many completions of a slot wait to be taken.
    pub(crate) fn waiting(&self, key: SlotKey) -> usize {
        self.places(key).count()
    }

    /// Gives the shared buffers of a slot's waiting completions back; the bytes stay.
    pub(crate) fn detach_waiting(&mut self, key: SlotKey) {
        // At most `COMPLETIONS_PER_SLOT`, and only where buffers are scarce.
        let places: Vec<u32> = self.places(key).collect();
        for place in places {
            if let Output::Received(bytes) = &mut self.waiting[place as usize].completion.output {
                bytes.detach();
            }
        }
    }

    /// Where the completions of a slot are, the oldest first.
    fn places(&self, key: SlotKey) -> impl Iterator<Item = u32> {
        let newest = self.slot(key).map_or(NONE, |slot| slot.newest);
        let after = |place: u32| Some(self.waiting.get(place as usize)?.next);
        let first = after(newest);
        std::iter::successors(first, move |&place| {
            (place != newest).then(|| after(place)).flatten()
        })
    }

    /// How many slots are in use.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of the table.
    pub(crate) fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
            + self.larger.capacity() * size_of::<Op>()
            + self.waiting.capacity() * size_of::<Waiting>()
    }

    /// Whether there are slots, and all of them await the notification of a zero-copy send.
    pub(crate) fn only_notifications(&self) -> bool {
        let mut slots = self.slots.iter();
        !self.slots.is_empty() && slots.all(|(_, slot)| slot.state == State::Notifying)
    }

    /// The keys of all slots whose terminal completion has not come.
    pub(crate) fn unfinished(&self) -> Vec<SlotKey> {
        self.slots
            .iter()
            .filter(|(_, slot)| slot.state != State::Done)
            .map(|(index, slot)| SlotKey {
                index: index as u32,
                generation: slot.generation,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    fn op() -> Op {
        Op::Offload(Box::new(|| Box::new(())))
    }

    fn completion(bytes: u32) -> Completion {
        Completion {
            result: Ok(bytes),
            more: true,
            output: Output::None,
        }
    }

    #[test]
    fn a_key_of_an_earlier_use_names_nothing() {
        let mut table = SlotTable::default();
        let Ok(first) = table.insert(op(), None, None) else {
            panic!("the table is empty")
        };
        table.remove(first);
        let Ok(second) = table.insert(op(), None, None) else {
            panic!("the table is empty")
        };
        assert_eq!(first.index, second.index, "the index is reused at once");
        assert!(table.get_mut(first).is_none());
        assert!(table.get_mut(second).is_some());
        assert_eq!(SlotKey::from_bits(second.to_bits()), second);
    }

    #[test]
    fn completions_come_out_in_order_and_leave_no_storage() {
        let mut table = SlotTable::default();
        let (Ok(key), Ok(other)) = (
            table.insert(op(), None, None),
            table.insert(op(), None, None),
        ) else {
            panic!("the table is empty")
        };
        for round in 0..3 {
            for n in 0..4 {
                table.push(key, completion(round * 4 + n));
                table.push(other, completion(n));
            }
            table.push(
                key,
                Completion {
                    result: Err(Errno::NOBUFS),
                    more: false,
                    output: Output::None,
                },
            );
            assert_eq!((table.waiting(key), table.waiting(other)), (5, 4));
            for n in 0..4 {
                assert_eq!(table.pop(key).unwrap().result, Ok(round * 4 + n));
                assert_eq!(table.pop(other).unwrap().result, Ok(n));
            }
            assert_eq!(table.pop(key).unwrap().result, Err(Errno::NOBUFS));
            assert!(table.pop(key).is_none() && table.pop(other).is_none());
            assert_eq!((table.waiting(key), table.waiting.len()), (0, 0));
        }
    }

    #[test]
    fn a_slot_takes_what_waits_in_it_along() {
        let mut table = SlotTable::default();
        let Ok(key) = table.insert(op(), None, None) else {
            panic!("the table is empty")
        };
        (0..3).for_each(|n| table.push(key, completion(n)));
        assert!(table.remove(key).is_some());
        assert!(table.waiting.is_empty() && table.remove(key).is_none());
        table.push(key, completion(0));
        assert!(table.waiting.is_empty(), "nobody would take it");
    }
}
