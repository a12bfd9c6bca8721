//! Descriptors that are closed only when nothing refers to them any more.
//!
//! A slot holds an [`Fd`] until its terminal completion, so the last reference can't go while the
//! kernel may still use the descriptor: a close never races an op in flight. The last reference
//! puts the descriptor into the core's close queue, which the engine empties once a turn.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

/// What a descriptor really is.
#[derive(Debug)]
pub(crate) enum Handle {
    /// Owned by this core alone.
    Os(OwnedFd),
    /// Shared by cores, as listening sockets are: the last core closes it.
    Shared(Arc<OwnedFd>),
    /// A number that only the simulator knows.
    Sim(u32),
}

/// A descriptor on its way out, with what the readiness engine remembers of it.
#[derive(Debug)]
pub(crate) struct Closing {
    pub(crate) handle: Handle,
    pub(crate) registration: u32,
}

/// The core's queue of descriptors to close. Bounded by the number of descriptors.
#[derive(Debug, Default)]
pub(crate) struct CloseQueue {
    queue: RefCell<Vec<Closing>>,
}

impl CloseQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    /// Moves all that waits into `into`, which must be empty, so that the storage is kept.
    pub(crate) fn take(&self, into: &mut Vec<Closing>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut *self.queue.borrow_mut(), into);
    }
}

/// Registration of a descriptor that no engine has registered.
pub(crate) const UNREGISTERED: u32 = u32::MAX;

/// A descriptor with its registration: together they have the room that the largest of them needs.
#[derive(Debug)]
enum Held {
    Os(OwnedFd, Cell<u32>),
    Shared(Cell<u32>, Arc<OwnedFd>),
    Sim(u32),
    /// Taken, on the way out.
    Gone,
}

#[derive(Debug)]
struct Inner {
    held: Held,
    closer: Rc<CloseQueue>,
}

const _: () = assert!(
    size_of::<Inner>() <= 24,
    "every idle connection has one, with two counts before it"
);

impl Drop for Inner {
    fn drop(&mut self) {
        let (handle, registration) = match std::mem::replace(&mut self.held, Held::Gone) {
            Held::Os(fd, registration) => (Handle::Os(fd), registration.get()),
            Held::Shared(registration, fd) => (Handle::Shared(fd), registration.get()),
            Held::Sim(number) => (Handle::Sim(number), UNREGISTERED),
            Held::Gone => return,
        };
        self.closer.queue.borrow_mut().push(Closing {
            handle,
            registration,
        });
    }
}

/// A counted reference to a descriptor of this core. Cheap to clone; never leaves its thread.
#[derive(Clone, Debug)]
pub struct Fd(Rc<Inner>);

impl Fd {
    pub(crate) fn new(handle: Handle, closer: &Rc<CloseQueue>) -> Self {
        let registration = Cell::new(UNREGISTERED);
        let held = match handle {
            Handle::Os(fd) => Held::Os(fd, registration),
            Handle::Shared(fd) => Held::Shared(registration, fd),
            Handle::Sim(number) => Held::Sim(number),
        };
        let closer = Rc::clone(closer);
        Self(Rc::new(Inner { held, closer }))
    }

    /// The number that the kernel (or the simulator) knows.
    pub fn raw(&self) -> RawFd {
        match &self.0.held {
            Held::Os(fd, _) => fd.as_raw_fd(),
            Held::Shared(_, fd) => fd.as_raw_fd(),
            Held::Sim(number) => *number as RawFd,
            // The last reference is gone by then.
            Held::Gone => -1,
        }
    }

    /// The descriptor, unless it is simulated.
    pub(crate) fn os(&self) -> Option<BorrowedFd<'_>> {
        match &self.0.held {
            Held::Os(fd, _) => Some(fd.as_fd()),
            Held::Shared(_, fd) => Some(fd.as_fd()),
            Held::Sim(_) | Held::Gone => None,
        }
    }

    /// The descriptor itself, for another thread.
    ///
    /// # Errors
    /// Gives it back when something else refers to it, an engine has registered it, or other cores
    /// share it.
    pub fn into_owned(self) -> Result<OwnedFd, Self> {
        let Held::Os(_, registration) = &self.0.held else {
            return Err(self);
        };
        if registration.get() != UNREGISTERED {
            return Err(self);
        }
        let mut inner = Rc::try_unwrap(self.0).map_err(Self)?;
        match std::mem::replace(&mut inner.held, Held::Gone) {
            Held::Os(fd, _) => Ok(fd),
            _ => unreachable!("it was looked at"),
        }
    }

    pub(crate) fn registration(&self) -> u32 {
        match &self.0.held {
            Held::Os(_, registration) | Held::Shared(registration, _) => registration.get(),
            Held::Sim(_) | Held::Gone => UNREGISTERED,
        }
    }

    pub(crate) fn set_registration(&self, to: u32) {
        if let Held::Os(_, registration) | Held::Shared(registration, _) = &self.0.held {
            registration.set(to);
        }
    }
}
