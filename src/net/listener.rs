//! Accepting connections under the rules of the accept gate.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;

use super::accept_gate::{AcceptGate, Decision, Limits};
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::op::{Op, Output};
use crate::runtime::scope::Scope;
use crate::runtime::task::TaskId;

/// What the listeners and connections of one core know of each other.
#[derive(Default)]
pub struct Population {
    open: Cell<usize>,
    closed: Cell<bool>,
    draining: Cell<bool>,
    waiting: Cell<Vec<TaskId>>,
}

impl Population {
    /// Connections open on this core.
    pub fn open(&self) -> usize {
        self.open.get()
    }

    /// Lets the listeners end; the caller wakes all tasks. It comes before [`Self::drain`], so that a
    /// request that waits in the accept queue is begun, and answered like every one that has begun.
    pub fn close(&self) {
        self.closed.set(true);
    }

    /// Whether the core accepts nothing more.
    pub fn closed(&self) -> bool {
        self.closed.get() || self.draining()
    }

    /// Whether the core accepts nothing more and ends its connections.
    pub fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Begins the drain; the caller wakes all tasks.
    pub fn drain(&self) {
        self.draining.set(true);
    }

    /// Counts a connection until the guard is dropped.
    pub fn enter(self: &Rc<Self>, core: &Core) -> Member {
        self.open.set(self.open.get() + 1);
        Member {
            population: Rc::clone(self),
            core: core.clone(),
        }
    }

    /// Ready when no connection is open; otherwise the current task is woken when one closes.
    pub fn poll_empty(&self, core: &Core) -> std::task::Poll<()> {
        if self.open() == 0 {
            return std::task::Poll::Ready(());
        }
        self.wait_for_close(core.current_task());
        std::task::Poll::Pending
    }

    fn wait_for_close(&self, task: TaskId) {
        let mut waiting = self.waiting.take();
        if !waiting.contains(&task) {
            waiting.push(task);
        }
        self.waiting.set(waiting);
    }
}

/// One open connection, counted.
pub struct Member {
    population: Rc<Population>,
    core: Core,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.population.open.set(self.population.open.get() - 1);
        let waiting = self.population.waiting.take();
        waiting
            .into_iter()
            .for_each(|task| self.core.wake_task(task));
    }
}

/// The gate's limits for a core that may hold so many connections.
pub fn limits(connections_max: usize) -> Limits {
    let connections_max = connections_max.max(2);
    Limits {
        connections_max,
        connections_resume: connections_max - (connections_max / 64).max(1),
        pause_min: Duration::from_millis(5),
        pause_max: Duration::from_secs(1),
    }
}

/// With room for fewer connections than this they are accepted one by one: an accept for many takes
/// all that wait before it can be cancelled.
const ROOM_FOR_MANY: usize = 256;

/// Most connections that are taken from the accept queue at the end; the kernel's own bound
/// (`net.core.somaxconn`) is this by default.
const LAST_ACCEPTS: usize = 4096;

/// How long a core that is full waits for a connection to close before it tries again to make room:
/// one that was busy may idle by now.
const MAKE_ROOM_AGAIN: Duration = Duration::from_millis(50);

/// Accepts on one listening socket until the core takes no more; then what waits in the accept queue is
/// taken, as far as there is room, since the close of the last socket would reset it. `serve` starts the task of a connection,
/// which counts from then on until its membership is dropped; `make_room` is told when there are as
/// many as allowed, and closes idle ones if it can.
pub async fn accept_loop(
    core: Core,
    listener: Fd,
    population: Rc<Population>,
    limits: Limits,
    mut serve: impl FnMut(Fd, Member),
    mut make_room: impl FnMut(),
) {
    let mut gate = AcceptGate::new(limits);
    let mut timer = Timer::new(&core);
    while !population.closed() {
        match gate.next(population.open(), core.now()) {
            Decision::WaitForClose => {
                make_room();
                timer.set(core.now() + MAKE_ROOM_AGAIN);
                timer
                    .bound(|| poll_closed(&core, &population, &limits))
                    .await;
            }
            Decision::WaitUntil(until) => {
                timer.set(until);
                let drained = || {
                    if population.closed() {
                        std::task::Poll::Ready(())
                    } else {
                        std::task::Poll::Pending
                    }
                };
                timer.bound(drained).await;
            }
            Decision::Accept => {
                accept(&core, &listener, &population, &mut gate, &mut serve).await;
            }
        }
    }
    let room = gate.room(population.open()).min(LAST_ACCEPTS);
    for _ in 0..room {
        match core.accept_now(&listener) {
            Ok(socket) => serve(socket, population.enter(&core)),
            Err(Errno::CONNABORTED | Errno::INTR | Errno::PROTO) => {}
            // The queue is empty, or nothing more can be taken from it.
            Err(_) => return,
        }
    }
}

/// Ready when enough connections have closed, or the core takes no more.
fn poll_closed(core: &Core, population: &Population, limits: &Limits) -> std::task::Poll<()> {
    if population.closed() || population.open() <= limits.connections_resume {
        return std::task::Poll::Ready(());
    }
    population.wait_for_close(core.current_task());
    std::task::Poll::Pending
}

/// Keeps one accept armed while the gate is open. What was accepted when it closed is served, too; so
/// that this is little, connections are accepted one by one where there is not much room left.
async fn accept(
    core: &Core,
    listener: &Fd,
    population: &Rc<Population>,
    gate: &mut AcceptGate,
    serve: &mut impl FnMut(Fd, Member),
) {
    let scope = Scope::new(core);
    let one = gate.room(population.open()) < ROOM_FOR_MANY;
    let mut accepts = scope.many(Op::Accept {
        listener: listener.clone(),
        one,
    });
    let mut cancelled = false;
    // An accept that found no slot has ended before it began, and says so once.
    loop {
        let accepted = std::future::poll_fn(|_| {
            if !cancelled && population.closed() {
                cancelled = true;
                accepts.cancel();
            }
            accepts.poll_next()
        })
        .await;
        match (accepted.result, accepted.output) {
            (_, Output::Socket(socket)) => {
                gate.accepted();
                serve(socket, population.enter(core));
                let open = gate.next(population.open(), core.now()) == Decision::Accept;
                let room = gate.room(population.open());
                if !(one || cancelled || open && room >= ROOM_FOR_MANY) {
                    cancelled = true;
                    accepts.cancel();
                }
            }
            (Err(errno), _) if is_exhaustion(errno) => {
                tracing::warn!(%errno, connections = population.open(), "accepting pauses");
                gate.exhausted(core.now());
            }
            (Err(Errno::CANCELED | Errno::CONNABORTED | Errno::INTR), _) | (Ok(_), _) => {}
            (Err(errno), _) => {
                tracing::error!(%errno, "accepting failed; trying again");
                gate.exhausted(core.now());
            }
        }
        if accepts.ended() {
            return;
        }
    }
}

/// The kernel is out of something that closing connections gives back (accept(2)).
fn is_exhaustion(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM
    )
}
