//! The slot table: the engine's record of every op in flight.
//!
//! A slot owns the op's buffer and descriptor reference until the terminal completion. `LIFECYCLE.md`
//! has the table of states. Dropping a future orphans its slot and asks for cancellation; it frees
//! nothing. "Terminal" is decided by the more-flag alone.

use std::collections::VecDeque;

use slab::Slab;

use super::op::{Completion, Op, Output};
use super::scope::ScopeId;
use super::task::TaskId;

/// Most ops that one core may have in flight. At the bound a new op completes with `EAGAIN`.
pub const SLOTS_MAX: usize = 1 << 21;

/// Names one use of one slot; a reused slot has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotKey {
    index: u32,
    generation: u32,
}

impl SlotKey {
    /// The key as the 64 bits that travel through the kernel.
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The key in these bits. Whether it names a live slot is for the table to say.
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self {
            index: bits as u32,
            generation: (bits >> 32) as u32,
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

/// One op in flight.
pub struct Slot {
    generation: u32,
    pub(crate) state: State,
    /// The op with its resources. Taken apart at the terminal completion.
    pub(crate) op: Option<Op>,
    /// The task that waits, `None` once the future was dropped: an orphan.
    pub(crate) task: Option<TaskId>,
    pub(crate) scope: Option<ScopeId>,
    first: Option<Completion>,
    #[expect(clippy::box_collection, reason = "a thin pointer: idle slots are many")]
    rest: Option<Box<VecDeque<Completion>>>,
}

impl Slot {
    /// How many completions wait to be taken.
    pub(crate) fn waiting(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.as_ref().map_or(0, |rest| rest.len())
    }

    /// Keeps a completion until the future takes it, behind those that wait already.
    pub fn push(&mut self, completion: Completion) {
        if self.first.is_none() && self.rest.is_none() {
            self.first = Some(completion);
        } else {
            self.rest.get_or_insert_default().push_back(completion);
        }
    }

    /// Gives the shared buffers of waiting completions back; the bytes stay.
    pub(crate) fn detach_waiting(&mut self) {
        let rest = self.rest.iter_mut().flat_map(|rest| rest.iter_mut());
        for completion in self.first.iter_mut().chain(rest) {
            if let Output::Received(bytes) = &mut completion.output {
                bytes.detach();
            }
        }
    }

    /// Takes the oldest completion. An idle slot keeps no storage for completions.
    pub fn pop(&mut self) -> Option<Completion> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let rest = self.rest.as_mut()?;
        let next = rest.pop_front();
        if rest.is_empty() {
            self.rest = None;
        }
        next
    }
}

/// All slots of one core.
#[derive(Default)]
pub struct SlotTable {
    slots: Slab<Slot>,
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
        // The last generation is kept out of use: its keys are the engine's own user_data.
        self.generation = if self.generation >= u32::MAX - 1 {
            1
        } else {
            self.generation + 1
        };
        let generation = self.generation;
        let slot = Slot {
            generation,
            state: State::InFlight,
            op: Some(op),
            task,
            scope,
            first: None,
            rest: None,
        };
        Ok(SlotKey {
            index: self.slots.insert(slot) as u32,
            generation,
        })
    }

    /// The slot, unless the key is of an earlier use.
    pub fn get_mut(&mut self, key: SlotKey) -> Option<&mut Slot> {
        self.slots
            .get_mut(key.index as usize)
            .filter(|slot| slot.generation == key.generation)
    }

    /// Frees a slot whose terminal completion has come.
    pub fn remove(&mut self, key: SlotKey) -> Option<Slot> {
        self.get_mut(key)?;
        Some(self.slots.remove(key.index as usize))
    }

    /// How many slots are in use.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of the table.
    pub(crate) fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
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
        let Ok(key) = table.insert(op(), None, None) else {
            panic!("the table is empty")
        };
        let slot = table.get_mut(key).unwrap();
        for round in 0..3 {
            (0..4).for_each(|n| slot.push(completion(round * 4 + n)));
            slot.push(Completion {
                result: Err(Errno::NOBUFS),
                more: false,
                output: Output::None,
            });
            assert_eq!(slot.waiting(), 5);
            for n in 0..4 {
                assert_eq!(slot.pop().unwrap().result, Ok(round * 4 + n));
            }
            assert_eq!(slot.pop().unwrap().result, Err(Errno::NOBUFS));
            assert!(slot.pop().is_none() && slot.rest.is_none());
        }
    }
}
