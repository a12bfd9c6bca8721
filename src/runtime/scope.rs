//! Structured cancellation: a group of ops that is cancelled together and waited for before what
//! they use is let go.

use std::future::poll_fn;
use std::task::Poll;

use slab::Slab;
use smallvec::SmallVec;

use super::executor::Core;
use super::future::{Many, Once};
use super::op::Op;
use super::slot::SlotKey;
use super::task::TaskId;

/// Index of a scope in the core's table. A slot holds it until its terminal completion, and the
/// entry outlives its slots, so it needs no generation.
pub type ScopeId = u32;

#[derive(Default)]
struct Entry {
    slots: SmallVec<[SlotKey; 2]>,
    waiter: Option<TaskId>,
    /// The handle was dropped: the last slot frees the entry.
    abandoned: bool,
}

/// All scopes of one core.
#[derive(Default)]
pub(crate) struct ScopeTable {
    scopes: Slab<Entry>,
}

impl ScopeTable {
    fn insert(&mut self) -> ScopeId {
        self.scopes.insert(Entry::default()) as ScopeId
    }

    pub(crate) fn enter(&mut self, scope: ScopeId, slot: SlotKey) {
        if let Some(entry) = self.scopes.get_mut(scope as usize) {
            entry.slots.push(slot);
        }
    }

    /// A slot of the scope reached its terminal completion; gives the task to wake, if the scope
    /// is empty now and somebody waits for that.
    pub(crate) fn leave(&mut self, scope: ScopeId, slot: SlotKey) -> Option<TaskId> {
        let entry = self.scopes.get_mut(scope as usize)?;
        entry.slots.retain(|held| *held != slot);
        if !entry.slots.is_empty() {
            return None;
        }
        if entry.abandoned {
            self.scopes.remove(scope as usize);
            return None;
        }
        entry.waiter.take()
    }

    fn abandon(&mut self, scope: ScopeId) {
        let Some(entry) = self.scopes.get_mut(scope as usize) else {
            return;
        };
        entry.abandoned = true;
        if entry.slots.is_empty() {
            self.scopes.remove(scope as usize);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.scopes.len()
    }
}

/// A group of ops. Dropping it lets its ops go on as their futures decide.
pub struct Scope {
    core: Core,
    id: ScopeId,
}

impl Scope {
    /// An empty scope.
    pub fn new(core: &Core) -> Self {
        let id = core.inner().scopes.borrow_mut().insert();
        Self {
            core: core.clone(),
            id,
        }
    }

    /// Submits an op with one completion as part of this scope.
    pub fn once(&self, op: Op) -> Once {
        self.core.submit_once(op, Some(self.id))
    }

    /// Submits an op with many completions as part of this scope.
    pub fn many(&self, op: Op) -> Many {
        self.core.submit_many(op, Some(self.id))
    }

    /// Asks for the cancellation of all its ops and waits for their terminal completions. Results
    /// that their futures did not take stay with the futures.
    pub async fn cancel(&self) {
        let slots = self.slots();
        for slot in slots {
            self.core.cancel(slot);
        }
        self.empty().await;
    }

    /// Waits until no op of the scope is in flight.
    pub async fn empty(&self) {
        poll_fn(|_| {
            let mut scopes = self.core.inner().scopes.borrow_mut();
            match scopes.scopes.get_mut(self.id as usize) {
                Some(entry) if !entry.slots.is_empty() => {
                    entry.waiter = Some(self.core.current_task());
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
        .await;
    }

    fn slots(&self) -> SmallVec<[SlotKey; 2]> {
        let scopes = self.core.inner().scopes.borrow();
        scopes
            .scopes
            .get(self.id as usize)
            .map(|entry| entry.slots.clone())
            .unwrap_or_default()
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        self.core.inner().scopes.borrow_mut().abandon(self.id);
    }
}
