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

impl Handle {
    /// The number that the kernel (or the simulator) knows.
    pub(crate) fn raw(&self) -> RawFd {
        match self {
            Self::Os(fd) => fd.as_raw_fd(),
            Self::Shared(fd) => fd.as_raw_fd(),
            Self::Sim(number) => *number as RawFd,
        }
    }

    /// The descriptor, unless it is simulated.
    pub(crate) fn os(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Os(fd) => Some(fd.as_fd()),
            Self::Shared(fd) => Some(fd.as_fd()),
            Self::Sim(_) => None,
        }
    }
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

#[derive(Debug)]
struct Inner {
    handle: Option<Handle>,
    registration: Cell<u32>,
    closer: Rc<CloseQueue>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            let registration = self.registration.get();
            self.closer.queue.borrow_mut().push(Closing {
                handle,
                registration,
            });
        }
    }
}

/// A counted reference to a descriptor of this core. Cheap to clone; never leaves its thread.
#[derive(Clone, Debug)]
pub struct Fd(Rc<Inner>);

impl Fd {
    pub(crate) fn new(handle: Handle, closer: &Rc<CloseQueue>) -> Self {
        let registration = Cell::new(UNREGISTERED);
        Self(Rc::new(Inner {
            handle: Some(handle),
            registration,
            closer: Rc::clone(closer),
        }))
    }

    pub(crate) fn handle(&self) -> &Handle {
        self.0
            .handle
            .as_ref()
            .expect("the handle is taken by drop alone")
    }

    /// The number, for messages.
    pub fn raw(&self) -> RawFd {
        self.handle().raw()
    }

    /// The descriptor itself, for another thread.
    ///
    /// # Errors
    /// Gives it back when something else refers to it, an engine has registered it, or other cores
    /// share it.
    pub fn into_owned(self) -> Result<OwnedFd, Self> {
        if self.registration() != UNREGISTERED || !matches!(self.handle(), Handle::Os(_)) {
            return Err(self);
        }
        let mut inner = Rc::try_unwrap(self.0).map_err(Self)?;
        match inner.handle.take() {
            Some(Handle::Os(fd)) => Ok(fd),
            _ => unreachable!("it was looked at"),
        }
    }

    pub(crate) fn registration(&self) -> u32 {
        self.0.registration.get()
    }

    pub(crate) fn set_registration(&self, registration: u32) {
        self.0.registration.set(registration);
    }
}
