//! The life of one core on its thread: made there, fed by its listeners, drained on a message, and
//! emptied before the thread ends, also when it panics.

use std::any::Any;
use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::config::model::Model;
use crate::http::session::{self, Counts, Registry, Service};
use crate::net::listener::{Listening, Rest, accept_loop, limits};
use crate::net::socket::paces;
use crate::observability::access_log::Format;
use crate::observability::core_log::CoreLog;
use crate::observability::sink::SinkHandle;
use crate::runtime::affinity::{self, CpuId};
use crate::runtime::engine::caps::{EngineKind, Selection};
use crate::runtime::executor::Core;
use crate::runtime::future::Timer;
use crate::runtime::mailbox::{Receiver, Wake};
use crate::runtime::offload::HelperPort;
use crate::runtime::task::TaskId;

/// How long a drained core tries to hand its last log lines to the sink.
const LOG_DRAIN: Duration = Duration::from_secs(1);

/// The same when it is stopped at once.
const LOG_STOP: Duration = Duration::from_millis(100);

/// Turns between the last accept and the end of idle connections: enough to receive what the clients
/// that were accepted last have sent already, so that their requests have begun.
const SETTLE_TURNS: usize = 16;

/// What a core is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Accept nothing more, finish what is in flight, end at the deadline at the latest.
    Drain {
        /// When what is left is cut.
        deadline: Instant,
    },
    /// End now.
    Stop,
}

/// What a core tells.
#[derive(Debug)]
pub(super) struct Report {
    /// Which core.
    pub(super) core: usize,
    /// What happened to it.
    pub(super) event: Event,
}

/// What happens to a core. The end comes once and last.
#[derive(Debug)]
pub(super) enum Event {
    /// It serves, on this engine, for this reason.
    Started(EngineKind, String),
    /// Its thread has nothing more to do.
    Ended(End),
}

/// How a core ended.
#[derive(Debug)]
pub(super) enum End {
    /// It could not be set up.
    Refused(io::Error),
    /// It was told to end; so many connections were cut.
    Told {
        /// Connections that were open when it ended.
        cut: usize,
        /// Tasks that had panicked during its life.
        panics: u64,
        /// How often each limit was reached.
        limits: Counts,
    },
    /// It could not go on.
    Broken(String),
}

/// Sends reports to the main thread.
#[derive(Clone)]
pub(super) struct Reporter {
    /// Has room for every report of every core, so that no core ever waits.
    pub(super) sender: SyncSender<Report>,
    /// Wakes the main thread.
    pub(super) wake: Arc<Wake>,
    /// Which core it is.
    pub(super) core: usize,
}

impl Reporter {
    fn report(&self, event: Event) {
        let core = self.core;
        // A main thread that is gone needs no report.
        let _ = self.sender.try_send(Report { core, event });
        self.wake.wake();
    }
}

/// Everything that a core is made from.
pub(super) struct Setup {
    /// The CPU it is pinned to.
    pub(super) cpu: Option<CpuId>,
    /// Its engine.
    pub(super) selection: Selection,
    /// Whether it may run on epoll when its ring can't be made.
    pub(super) may_degrade: bool,
    /// What other threads wake it by.
    pub(super) wake: Arc<Wake>,
    /// Its way to the helpers, and another one for a second attempt.
    pub(super) helpers: [Option<HelperPort>; 2],
    /// Where its messages come from.
    pub(super) mailbox: Receiver<Message>,
    /// Listening sockets, each with its place in the model.
    pub(super) listeners: Vec<(usize, Arc<OwnedFd>)>,
    /// Most connections that it may hold.
    pub(super) connections_max: usize,
    /// Most files that it may keep open.
    pub(super) files_max: usize,
    /// The configuration.
    pub(super) model: Arc<Model>,
    /// The access log.
    pub(super) log: Option<(Format, SinkHandle)>,
    /// Where its reports go.
    pub(super) reporter: Reporter,
}

/// What the service of a core is made from.
pub(super) struct Parts<'p> {
    /// The core.
    pub(super) core: &'p Core,
    /// The configuration.
    pub(super) model: &'p Arc<Model>,
    /// Its listening sockets, each with its place in the model.
    pub(super) listeners: &'p [(Rc<Listening>, usize)],
    /// The connections of the core.
    pub(super) registry: Rc<Registry>,
    /// Its access log.
    pub(super) log: Option<Rc<CoreLog>>,
    /// Most files that it may keep open.
    pub(super) files_max: usize,
}

/// Makes what answers the requests of a core.
pub(super) trait MakeService<S>: Fn(Parts<'_>) -> Rc<S> + Copy + Send + 'static {}

impl<S, F> MakeService<S> for F where F: Fn(Parts<'_>) -> Rc<S> + Copy + Send + 'static {}

/// Runs a core until it is told to end or can't go on: the body of its thread. A panic ends this core
/// alone.
pub(super) fn run<S: Service>(setup: Setup, make: impl MakeService<S>) {
    let reporter = setup.reporter.clone();
    let end = catch_unwind(AssertUnwindSafe(|| live(setup, make)))
        .unwrap_or_else(|panic| End::Broken(panicked(&*panic)));
    reporter.report(Event::Ended(end));
}

fn live<S: Service>(mut setup: Setup, make: impl MakeService<S>) -> End {
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
fn serve<S: Service>(
    core: &Core,
    selection: &Selection,
    setup: Setup,
    make: impl MakeService<S>,
) -> Result<(usize, Counts), Errno> {
    let registry = Rc::new(Registry::default());
    let log = setup
        .log
        .map(|(format, sink)| CoreLog::new(core, format, sink));
    let listeners: Vec<(Rc<Listening>, usize)> = (0..)
        .zip(&setup.listeners)
        .map(|(id, (place, _))| (Listening::new(id), *place))
        .collect();
    let service = make(Parts {
        core,
        model: &setup.model,
        listeners: &listeners,
        registry: Rc::clone(&registry),
        log: log.clone(),
        files_max: setup.files_max,
    });
    let life = Rc::new(Life {
        core: core.clone(),
        registry,
        log,
        accepting: Cell::new(setup.listeners.len()),
        waits_for_accepts: Cell::new(None),
        done: Cell::new(false),
    });
    core.spawn(Rc::clone(&life).obey(setup.mailbox));
    if let Some(log) = &life.log {
        core.spawn(Rc::clone(log).keep_flushed());
    }
    core.set_corking(
        !setup
            .listeners
            .iter()
            .any(|(_, socket)| paces(socket.as_fd())),
    );
    for ((listening, _), (_, socket)) in listeners.into_iter().zip(setup.listeners) {
        let (life, service) = (Rc::clone(&life), Rc::clone(&service));
        core.spawn(life.accept(listening, socket, setup.connections_max, service));
    }
    setup
        .reporter
        .report(Event::Started(selection.kind(), selection.reason.clone()));
    core.run_until(|| life.done.get())?;
    let registry = &life.registry;
    Ok((registry.population().open(), registry.limits().counts()))
}

/// What the tasks that run a core know of each other.
struct Life {
    core: Core,
    registry: Rc<Registry>,
    log: Option<Rc<CoreLog>>,
    /// Listeners that still accept.
    accepting: Cell<usize>,
    /// The task that waits until none does.
    waits_for_accepts: Cell<Option<TaskId>>,
    done: Cell<bool>,
}

impl Life {
    /// Accepts on one socket until the drain.
    async fn accept<S: Service>(
        self: Rc<Self>,
        listening: Rc<Listening>,
        socket: Arc<OwnedFd>,
        connections_max: usize,
        service: Rc<S>,
    ) {
        let (core, registry) = (&self.core, &self.registry);
        let _accepting = Accepting(&self);
        accept_loop(
            core.clone(),
            core.share(socket),
            Rc::clone(registry.population()),
            Rc::clone(&listening),
            limits(connections_max),
            |accepted, member| {
                let connection = session::serve(
                    core.clone(),
                    accepted,
                    member,
                    Rc::clone(&listening),
                    Rc::clone(&service),
                );
                core.spawn(connection);
            },
            || registry.make_room(core),
        )
        .await;
    }

    /// Does what the main thread says. A main thread that is gone says: stop.
    async fn obey(self: Rc<Self>, mut mailbox: Receiver<Message>) {
        let population = Rc::clone(self.registry.population());
        let mut seen = 0;
        loop {
            self.core.woken(&mut seen).await;
            loop {
                match mailbox.pop() {
                    Some(Message::Drain { deadline }) if !population.closed() => {
                        population.close(Rest::Take);
                        self.core.spawn(Rc::clone(&self).drain(deadline));
                        self.core.wake_all();
                    }
                    Some(Message::Drain { .. }) => {}
                    Some(Message::Stop) => return self.end(LOG_STOP).await,
                    None if mailbox.is_closed() => return self.end(LOG_STOP).await,
                    None => break,
                }
            }
        }
    }

    /// Ends the core when its last connection has closed, or at the deadline.
    async fn drain(self: Rc<Self>, deadline: Instant) {
        let mut timer = Timer::new(&self.core);
        timer.set(deadline);
        timer.bound(|| self.poll_accepts_ended()).await;
        for _ in 0..SETTLE_TURNS {
            self.core.yield_turn().await;
        }
        let population = self.registry.population();
        population.expire();
        self.core.wake_all();
        timer.bound(|| population.poll_empty(&self.core)).await;
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
        self.done.set(true);
        // The engine must not sleep on it: whether all is done is asked between two turns.
        self.core.yield_turn().await;
    }
}

/// Counts a listener as accepting until it is dropped, however its task ends.
struct Accepting<'l>(&'l Life);

impl Drop for Accepting<'_> {
    fn drop(&mut self) {
        let life = self.0;
        life.accepting.set(life.accepting.get() - 1);
        if let Some(task) = life.waits_for_accepts.take() {
            life.core.wake_task(task);
        }
    }
}
