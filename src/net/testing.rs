//! What the tests of this layer share: cores of both engines, simulations, and tasks that die.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::runtime;
use crate::runtime::engine::sim::{self, Config, Faults, World};
use crate::runtime::executor::Core;

/// How long the tasks of a test may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the test on a core of each engine, and checks that nothing is left behind.
pub(crate) fn on_each_engine(test: impl Fn(&Core)) {
    runtime::on_each_engine(None, PATIENCE, test);
}

/// Turns until all tasks are done.
pub(crate) fn run(core: &Core) {
    runtime::run(core, PATIENCE);
    assert_eq!(core.panics(), 0, "a task has panicked");
}

/// Runs a task, and those that it starts, to the end on a simulated machine, and checks the ledger.
pub(crate) fn simulate<F: Future<Output = ()> + 'static>(
    seed: u64,
    faults: Faults,
    task: impl FnOnce(Core, World) -> F,
) -> World {
    let (core, world) = sim::new(seed, faults, Config::seeded(seed));
    core.spawn(task(core.clone(), world.clone()));
    let watched = core.clone();
    world.run_until(400_000, || watched.usage().tasks == 0);
    world.finish();
    world
}

/// A future that is dropped at its n-th poll; says whether it came so far.
struct Mortal<F> {
    inner: Option<Pin<Box<F>>>,
    polls_left: u64,
    died: Rc<Cell<bool>>,
}

impl<F: Future<Output = ()>> Future for Mortal<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.polls_left = self.polls_left.saturating_sub(1);
        if self.polls_left == 0 {
            self.inner = None;
            self.died.set(true);
        }
        match self.inner.as_mut() {
            Some(inner) => inner.as_mut().poll(context),
            None => Poll::Ready(()),
        }
    }
}

/// Starts a task whose work is dropped at its `polls`-th poll; `died` tells whether it lived so long.
pub(crate) fn spawn_mortal(
    core: &Core,
    polls: u64,
    died: Rc<Cell<bool>>,
    work: impl Future<Output = ()> + 'static,
) {
    core.spawn(Mortal {
        inner: Some(Box::pin(work)),
        polls_left: polls,
        died,
    });
}
