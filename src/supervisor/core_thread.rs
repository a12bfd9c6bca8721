//! The life of one core on its thread: made there, fed by its listeners, drained on a message, and
//! emptied before the thread ends, also when it panics.

mod memory;
mod reports;
mod setup;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use self::memory::Keeper;
pub(super) use self::reports::{Account, End, Event, Message, Report, Reporter};
pub(super) use self::setup::{ColdMeans, MakeService, Parts, Serves, Setup};
use super::swap::Swap;
use crate::http::session::{self, Counts, Registry};
use crate::net::listener::{Listening, Rest, accept_loop, limits};
use crate::net::socket::paces;
use crate::net::spread::{Handed, Seat};
use crate::observability::core_log::CoreLog;
use crate::runtime::affinity;
use crate::runtime::buf::fixed::FIXED_BYTES;
use crate::runtime::engine::caps::{EngineKind, Selection};
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::mailbox::Receiver;
use crate::runtime::task::TaskId;
use crate::runtime::tuning::ZeroCopy;
use crate::upstream::Share;

/// How long a drained core tries to hand its last log lines to the sink.
const LOG_DRAIN: Duration = Duration::from_secs(1);

/// The same when it is stopped at once.
const LOG_STOP: Duration = Duration::from_millis(100);

/// Turns between the last accept and the end of idle connections: enough to receive what the clients
/// that were accepted last have sent already, so that their requests have begun.
const SETTLE_TURNS: usize = 16;

/// How long after a socket was removed a connection from it may come from another core: ten times what
/// it takes a core that is busy to look.
const ON_ITS_WAY: Duration = Duration::from_millis(100);

/// Runs a core until it is told to end or can't go on: the body of its thread. A panic ends this core
/// alone.
pub(super) fn run<S: Serves>(setup: Setup, make: impl MakeService<S>) {
    let reporter = setup.reporter.clone();
    Core::claim_memory();
    let end = catch_unwind(AssertUnwindSafe(|| live(setup, make)))
        .unwrap_or_else(|panic| End::Broken(panicked(&*panic)));
    Core::release_memory();
    reporter.report(Event::Ended(end));
}

fn live<S: Serves>(mut setup: Setup, make: impl MakeService<S>) -> End {
    if let Some(cpu) = setup.cpu
        && let Err(error) = affinity::pin(cpu)
    {
        tracing::warn!(core = setup.reporter.core, %error, "running unpinned");
    }
    let (core, selection) = match make_core(&mut setup) {
        Ok(made) => made,
        Err(error) => return End::Refused(error),
    };
    let served = catch_unwind(AssertUnwindSafe(|| serve(&core, &selection, setup, make)));
    let emptied = catch_unwind(AssertUnwindSafe(|| core.shut_down()));
    if emptied.is_err() {
        // Never freed: the kernel may still write to its buffers.
        std::mem::forget(core.clone());
    }
    if !matches!(emptied, Ok(true)) {
        tracing::error!("a core could not be emptied; its buffers are leaked");
    }
    let panics = core.panics();
    match served {
        Ok(Ok((cut, limits))) => End::Told {
            cut,
            panics,
            limits,
        },
        Ok(Err(errno)) => End::Broken(format!("the engine failed: {errno}")),
        Err(panic) => End::Broken(panicked(&*panic)),
    }
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("no text"))
}

/// Makes the core, on epoll where its ring can't be made and that is allowed.
fn make_core(setup: &mut Setup) -> io::Result<(Core, Selection)> {
    let [first, second] = &mut setup.helpers;
    let selection = setup.selection.clone();
    match selection.core(setup.wake.clone(), first.take()) {
        Ok(core) => Ok((core, selection)),
        Err(error) if setup.may_degrade && selection.kind() == EngineKind::Uring => {
            let selection = selection.degraded(&error);
            let core = selection.core(setup.wake.clone(), second.take())?;
            Ok((core, selection))
        }
        Err(error) => Err(error),
    }
}

/// Serves until told to end. Gives the number of connections that are cut by that, and how often each
/// limit was reached.
fn serve<S: Serves>(
    core: &Core,
    selection: &Selection,
    setup: Setup,
    make: impl MakeService<S>,
) -> Result<(usize, Counts), Errno> {
    core.report_to(setup.heartbeat);
    core.account_to(Arc::clone(&setup.ledger), setup.reporter.core);
    core.allow_pipes(setup.first.model.server.splice);
    core.allow_fixed(setup.cold.fixed_max, FIXED_BYTES);
    core.keep_fixed_plain(setup.cold.plain);
    core.watch_page_cache(Arc::clone(&setup.cold.memory));
    core.allow_kernel_tls(setup.kernel_tls);
    core.tune(setup.tuning, setup.first.model.server.zerocopy);
    if setup.first.model.server.zerocopy == ZeroCopy::On && !core.has_zero_copy() {
        tracing::warn!("zerocopy = \"on\" does nothing: sends without a copy need io_uring");
    }
    let registry = Rc::new(Registry::default());
    let seat = setup.seat.map(Rc::new);
    if let Some(seat) = &seat {
        // Without sockets it is yet to come, and what is handed on would be of none that is known.
        if !setup.first.listeners.is_empty() {
            seat.serves(setup.first.epoch);
        }
        registry.population().show(Rc::clone(seat));
    }
    // Also when this thread panics: what is handed to one that is gone would wait for ever.
    let _closing = seat.clone().map(Closing);
    let log = setup
        .log
        .map(|(format, sink)| CoreLog::new(core, format, sink));
    let listening: Vec<Rc<Listening>> = setup.first.listenings(&[]);
    let share = Share {
        index: setup.reporter.core,
        of: setup.cores,
    };
    let service = make(Parts {
        core,
        wake: setup.wake,
        share,
        first: &setup.first,
        listeners: &setup.first.placed(&listening),
        registry: Rc::clone(&registry),
        log: log.clone(),
        files_max: setup.files_max,
    });
    let life = Rc::new(Life {
        core: core.clone(),
        registry,
        service,
        log,
        reporter: setup.reporter.clone(),
        connections_max: setup.connections_max,
        share,
        seat,
        listening: RefCell::new(listening.clone()),
        accepting: Cell::new(0),
        waits_for_accepts: Cell::new(None),
        done: Cell::new(false),
    });
    core.spawn(Rc::clone(&life).obey(setup.mailbox));
    let keeper = Keeper {
        core: core.clone(),
        registry: Rc::clone(&life.registry),
        ledger: setup.ledger,
        index: setup.reporter.core,
        shrink: {
            let service = Rc::clone(&life.service);
            move || service.shrink()
        },
    };
    core.spawn(keeper.keep());
    if let Some(log) = &life.log {
        core.spawn(Rc::clone(log).keep_flushed());
    }
    life.listen(&setup.first, &listening);
    // The cores hold the sockets, not what they were set up from: a removed one has to close.
    drop(setup.first);
    setup.reporter.report(Event::Started(
        selection.kind(),
        selection.reason.clone(),
        selection.restriction().clone(),
    ));
    core.run_until(|| life.done.get())?;
    let registry = &life.registry;
    Ok((registry.population().open(), registry.limits().counts()))
}

/// Gives a connection to the core that should have it, or back where that is this one.
fn hand_on(
    core: &Core,
    seat: Option<&Rc<Seat>>,
    accepted: Fd,
    listening: &Listening,
) -> Option<Fd> {
    let Some((seat, to)) = seat.and_then(|seat| Some((seat, seat.better()?))) else {
        return Some(accepted);
    };
    let socket = match accepted.into_owned() {
        Ok(socket) => socket,
        Err(accepted) => return Some(accepted),
    };
    let listening = listening.id();
    let handed = seat.hand(to, Handed { listening, socket });
    handed.err().map(|handed| core.own(handed.socket))
}

/// Closes a core's place however its thread ends.
struct Closing(Rc<Seat>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close(drop);
    }
}

/// Takes the choice of a configuration.
fn tune(core: &Core, swap: &Swap) {
    core.tune(core.tuning(), swap.model.server.zerocopy);
}

/// What the tasks that run a core know of each other.
struct Life<S> {
    core: Core,
    registry: Rc<Registry>,
    service: Rc<S>,
    log: Option<Rc<CoreLog>>,
    reporter: Reporter,
    connections_max: usize,
    /// Which one of how many it is.
    share: Share,
    /// Its place among the others, where there are others.
    seat: Option<Rc<Seat>>,
    /// The sockets of the configuration in force, and removed ones that still have connections.
    listening: RefCell<Vec<Rc<Listening>>>,
    /// Listeners that still accept.
    accepting: Cell<usize>,
    /// The task that waits until none does.
    waits_for_accepts: Cell<Option<TaskId>>,
    done: Cell<bool>,
}

impl<S: Serves> Life<S> {
    /// Accepts on these sockets of a configuration.
    fn listen(self: &Rc<Self>, swap: &Swap, new: &[Rc<Listening>]) {
        let paced = swap.listeners.iter().any(|it| paces(it.socket.as_fd()));
        self.core.set_corking(!paced);
        for listening in new {
            let serving = swap.listeners.iter().find(|it| it.id == listening.id());
            let Some(serving) = serving else { continue };
            let Share { index, of } = self.share;
            if serving.part.is_some_and(|part| !part.is_for(index, of)) {
                continue;
            }
            self.accepting.set(self.accepting.get() + 1);
            let socket = Arc::clone(&serving.socket);
            let has_parts = serving.part.is_some();
            self.core
                .spawn(Rc::clone(self).accept(Rc::clone(listening), socket, has_parts));
        }
    }

    /// Accepts on one socket until it, or the core, is drained.
    async fn accept(
        self: Rc<Self>,
        listening: Rc<Listening>,
        socket: Arc<OwnedFd>,
        has_parts: bool,
    ) {
        let (core, registry) = (&self.core, &self.registry);
        // What the kernel has spread stays where it is.
        let seat = self.seat.as_ref().filter(|_| !has_parts);
        let _accepting = Accepting(&self);
        accept_loop(
            core.clone(),
            core.share(socket),
            Rc::clone(registry.population()),
            Rc::clone(&listening),
            limits(self.connections_max),
            |accepted, member| {
                let Some(accepted) = hand_on(core, seat, accepted, &listening) else {
                    return;
                };
                let connection = session::serve(
                    core.clone(),
                    accepted,
                    member,
                    Rc::clone(&listening),
                    Rc::clone(&self.service),
                );
                core.spawn(connection);
            },
            || registry.make_room(core),
        )
        .await;
    }

    /// Does what the main thread says. A main thread that is gone says: stop.
    async fn obey(self: Rc<Self>, mut mailbox: Receiver<Message>) {
        let mut seen = 0;
        loop {
            self.core.woken(&mut seen).await;
            self.take_handed();
            loop {
                match mailbox.pop() {
                    Some(Message::Drain { deadline, handover }) => {
                        self.begin_drain(deadline, handover);
                    }
                    Some(Message::Swap(swap)) => self.swap(&swap),
                    Some(Message::Secure(epoch, secured)) => self.service.secure(epoch, &secured),
                    Some(Message::AcceptAgain) => {
                        self.registry.population().accept_again();
                        self.core.wake_all();
                    }
                    Some(Message::Status(id)) => {
                        let account = Box::new(self.account());
                        self.reporter.report(Event::Status(id, account));
                    }
                    Some(Message::TryForbidden(id)) => {
                        let life = Rc::clone(&self);
                        self.core.spawn(async move {
                            // An engine without a ring has nothing to try.
                            let results = life.core.try_forbidden().await.unwrap_or_default();
                            life.reporter.report(Event::Tried(id, results));
                        });
                    }
                    Some(Message::Tidy) => {
                        self.service.tidy();
                        self.reporter.report(Event::Tidied);
                    }
                    Some(Message::Stop) => return self.end(LOG_STOP).await,
                    None if mailbox.is_closed() => return self.end(LOG_STOP).await,
                    None => break,
                }
            }
        }
    }

    /// Serves what other cores have accepted for this one.
    fn take_handed(self: &Rc<Self>) {
        if let Some(seat) = &self.seat {
            seat.take_handed(|handed| self.serve_handed(handed));
        }
    }

    fn serve_handed(self: &Rc<Self>, handed: Handed) {
        let known = self.listening.borrow();
        let listening = known.iter().find(|it| it.id() == handed.listening);
        let Some(listening) = listening.cloned() else {
            // Its socket was removed longer ago than a connection is on its way.
            return tracing::warn!("a connection of a removed listener was closed");
        };
        let connection = session::serve(
            self.core.clone(),
            self.core.own(handed.socket),
            self.registry.population().enter(&self.core, &listening),
            listening,
            Rc::clone(&self.service),
        );
        self.core.spawn(connection);
    }

    fn begin_drain(self: &Rc<Self>, deadline: Instant, handover: bool) {
        let population = self.registry.population();
        if population.closed() {
            return;
        }
        if let Some(seat) = &self.seat {
            seat.close(|handed| self.serve_handed(handed));
        }
        population.close(if handover { Rest::Leave } else { Rest::Take });
        self.core.spawn(Rc::clone(self).drain(deadline, handover));
        self.core.wake_all();
    }

    /// Answers by another configuration from now on. What it no longer listens on drains by itself.
    fn swap(self: &Rc<Self>, swap: &Arc<Swap>) {
        // What was handed on by the configuration in force is served by it.
        self.take_handed();
        let known = self.listening.borrow().clone();
        let new = swap.listenings(&known);
        self.listening.borrow_mut().extend(new.iter().cloned());
        let all = swap.placed(&self.listening.borrow());
        self.service.swap(swap, &all);
        self.core.allow_pipes(swap.model.server.splice);
        tune(&self.core, swap);
        self.listen(swap, &new);
        let removed: Vec<Rc<Listening>> = self
            .listening
            .borrow()
            .iter()
            .filter(|listening| {
                !listening.closed() && !swap.listeners.iter().any(|it| it.id == listening.id())
            })
            .cloned()
            .collect();
        let deadline = self.core.now() + swap.model.server.drain_timeout;
        for listening in removed {
            // Nobody accepts from it any more, so what waits there is ours.
            listening.close(Rest::Take);
            self.core
                .spawn(Rc::clone(self).drain_listener(listening, deadline));
        }
        self.core.wake_all();
        if let Some(seat) = &self.seat {
            seat.serves(swap.epoch);
        }
        self.reporter.report(Event::Swapped(swap.epoch));
    }

    /// Ends the connections of a socket that isn't listened on any more.
    async fn drain_listener(self: Rc<Self>, listening: Rc<Listening>, deadline: Instant) {
        let mut timer = Timer::new(&self.core);
        timer.set(deadline);
        listening.drain();
        self.core.wake_all();
        if timer
            .bound(|| listening.poll_empty(&self.core))
            .await
            .is_none()
        {
            listening.expire();
            self.core.wake_all();
            self.settle().await;
            let cut = self.registry.cut(&self.core, &listening);
            if cut > 0 {
                tracing::warn!(
                    connections = cut,
                    "connections of a removed listener were cut"
                );
            }
        }
        if self.seat.is_some() {
            // Another core may have handed on a connection just before it heard of the change.
            timer.set(self.core.now() + ON_ITS_WAY);
            timer.bound(|| Poll::<()>::Pending).await;
        }
        let mut known = self.listening.borrow_mut();
        known.retain(|known| !Rc::ptr_eq(known, &listening));
    }

    /// Lets what was accepted last be received, and what was told be seen by every task.
    async fn settle(&self) {
        for _ in 0..SETTLE_TURNS {
            self.core.yield_turn().await;
        }
    }

    fn account(&self) -> Account {
        let registry = &self.registry;
        let listening = self.listening.borrow();
        let usage = self.core.usage();
        Account {
            connections: registry.population().open(),
            requests: registry.traffic().requests,
            errors: registry.traffic().errors,
            handshakes: registry.handshakes().counts(),
            memory: self.core.memory(),
            tasks: usage.tasks,
            slots: usage.slots,
            epochs: self.service.epochs(),
            listeners: listening
                .iter()
                .map(|it| (it.id(), it.open(), it.closed()))
                .collect(),
            limits: registry.limits().counts(),
            turns: self.core.turns(),
            refused: self.core.ring_refused(),
            categories: self.categories(),
            level: self.core.memory_level(),
            direct: self.core.direct_counts(),
            kernel_tls: self.core.kernel_tls_counts(),
            upstreams: self.service.upstreams(),
        }
    }

    /// Ends the core when its last connection has closed, or at the deadline.
    async fn drain(self: Rc<Self>, deadline: Instant, handover: bool) {
        let mut timer = Timer::new(&self.core);
        timer.set(deadline);
        timer.bound(|| self.poll_accepts_ended()).await;
        self.settle().await;
        let population = self.registry.population();
        population.drain();
        self.reporter.report(Event::Draining);
        if !handover {
            // Nobody takes over, so nothing is gained by waiting for another request.
            population.expire();
        }
        self.core.wake_all();
        timer.bound(|| population.poll_empty(&self.core)).await;
        if handover && population.open() > 0 {
            // Those that have nothing in flight get their FIN; the others are cut.
            population.expire();
            self.core.wake_all();
            self.settle().await;
        }
        self.end(LOG_DRAIN).await;
    }

    fn poll_accepts_ended(&self) -> Poll<()> {
        if self.accepting.get() == 0 {
            return Poll::Ready(());
        }
        self.waits_for_accepts.set(Some(self.core.current_task()));
        Poll::Pending
    }

    /// Hands the last lines to the log and lets the loop of the core end.
    async fn end(&self, patience: Duration) {
        if let Some(log) = &self.log
            && !log.drain(self.core.now() + patience).await
        {
            tracing::warn!("the access log is too slow: its last lines are lost");
        }
        self.service.close();
        self.done.set(true);
        // The engine must not sleep on it: whether all is done is asked between two turns.
        self.core.yield_turn().await;
    }
}

/// Counts a listener as accepting until it is dropped, however its task ends.
struct Accepting<'l, S>(&'l Life<S>);

impl<S> Drop for Accepting<'_, S> {
    fn drop(&mut self) {
        let life = self.0;
        life.accepting.set(life.accepting.get() - 1);
        if let Some(task) = life.waits_for_accepts.take() {
            life.core.wake_task(task);
        }
    }
}
