//! The worker process: started by a master, unprivileged, confined, and told everything over the
//! channel that is its standard input.
//!
//! The order matters. Privileges go first, while there is one thread; then the engine is chosen, as the
//! user that will run it; then the files are confined; then threads and rings come up; and when all
//! rings stand, system calls are confined for every thread. READY says that all of this is done.

mod begin;
mod certificates;
mod questions;
mod servers;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use zeroize::Zeroize as _;

use self::begin::{
    SocketTable, drop_privileges, failed, first_messages, keep, listening, take_channel, usable,
    wait,
};
use self::questions::{Asked, Question};
use self::servers::Tidying;
use super::channel::{Channel, ChannelError, read_blob};
use super::core_thread::Message;
use super::hook;
use super::messages::{Failed, FromWorker, Next, Ready, SandboxMode, SocketId, Start, ToWorker};
use super::refusal;
use super::sandbox::{self, Notifier, Report, State};
use super::signals::Signals;
use super::stall::LOOK_EVERY;
use super::swap::{self, Swap};
use super::sys_process;
use super::worker::{
    GRACE, Origin, Secured, StartError, Told, Worker, WorkerPlan, app, check_kernel, level,
};
use crate::config::bundle;
use crate::config::model::{Engine, Model};
use crate::handlers::secured::Replacements;
use crate::net::tls::tickets::Tickets;
use crate::observability::control_log::{self, Colour, ControlLog};
use crate::observability::sink::Sink;
use crate::upstream::resolve::{Resolver, wait_for_answers};
use crate::upstream::roster::Rosters;
use crate::upstream::source::warn_of_foreign;

/// Serves as the worker of the master at the other end of the standard input, until it says so or is
/// gone. Gives the exit code.
///
/// # Errors
/// When the standard input is no channel of a master: somebody has typed the command.
pub fn main() -> Result<u8, String> {
    let channel = take_channel().map_err(|error| {
        format!("only the master starts workers (standard input is no channel: {error}); use `beltway run`")
    })?;
    let Some((start, sockets, descriptors)) = first_messages(&channel) else {
        // The master is gone, or speaks another language; it was told.
        return Ok(1);
    };
    match Process::start(channel, start, sockets, descriptors) {
        Ok(process) => Ok(process.serve()),
        Err((channel, failed)) => {
            // The master that hears it not is gone.
            let _ = channel.send(&FromWorker::Failed(failed), &[]);
            Ok(1)
        }
    }
}

fn not_started(permanent: bool, error: &StartError) -> Failed {
    let text = refusal::start_refused(error, Origin::Run);
    Failed { permanent, text }
}

fn no_resolver(error: &std::io::Error) -> String {
    format!("can't start the resolver of names: {error}")
}

/// The worker process while it serves.
struct Process {
    /// `None` when the master is gone.
    channel: Option<Channel>,
    start: Start,
    worker: Worker,
    sockets: SocketTable,
    report: Report,
    /// Where the numbers that depend on the machine come from.
    tuning: String,
    /// Which records the kernel makes.
    kernel_tls: String,
    notifier: Option<Notifier>,
    /// The model in force, whose drain timeout counts when the master is gone.
    model: Arc<Model>,
    /// Its upstreams, at work.
    rosters: Arc<Rosters>,
    /// By which sessions of TLS are resumed, whatever configuration is in force.
    tickets: Tickets,
    /// TLS of the configuration that the cores have, or are about to have.
    secured: Secured,
    /// What finds the addresses of their names.
    resolver: Resolver,
    swapping: Option<Swapping>,
    /// Cores that still accept, while the worker drains.
    accepting: Vec<usize>,
    asked: Vec<Asked>,
    tidying: Tidying,
    /// When cores that don't end are left behind.
    give_up: Option<Instant>,
    /// What is logged follows the configuration.
    control_log: Option<Arc<ControlLog>>,
    /// What the control log is written by; dropped last.
    _log: Option<Sink>,
}

/// What a worker process is made of, when all of it stands.
struct Started {
    worker: Worker,
    resolver: Resolver,
    tickets: Tickets,
    /// What stands in place of what the configuration says.
    replacements: Replacements,
    /// What it is to serve now.
    first: Swap,
    report: Report,
    tuning: String,
    kernel_tls: String,
    notifier: Option<Notifier>,
    control_log: Option<Arc<ControlLog>>,
    log: Option<Sink>,
}

/// A configuration on its way to the cores.
struct Swapping {
    /// It is the first one: nothing was accepted before it.
    first: bool,
    config: u64,
    model: Arc<Model>,
    sockets: Vec<SocketId>,
    waiting: Vec<usize>,
}

impl Process {
    /// Becomes a confined worker and serves.
    ///
    /// # Errors
    /// Why not, and the channel to say it through.
    fn start(
        channel: Channel,
        start: Start,
        sockets: SocketTable,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Self, (Channel, Failed)> {
        match Self::try_start(&start, &sockets, descriptors) {
            Ok(Started {
                worker,
                resolver,
                tickets,
                replacements,
                first,
                report,
                tuning,
                kernel_tls,
                notifier,
                control_log,
                log,
            }) => {
                let mut process = Self {
                    channel: Some(channel),
                    start,
                    worker,
                    sockets,
                    report,
                    tuning,
                    kernel_tls,
                    notifier,
                    model: Arc::clone(&first.model),
                    rosters: Arc::clone(&first.rosters),
                    tickets,
                    secured: Secured {
                        config: first.epoch,
                        model: Arc::clone(&first.model),
                        replacements,
                        sites: Arc::clone(&first.secured),
                        untold: Vec::new(),
                    },
                    resolver,
                    swapping: None,
                    accepting: Vec::new(),
                    asked: Vec::new(),
                    tidying: Tidying::default(),
                    give_up: None,
                    control_log,
                    _log: log,
                };
                let next = process.start.next.clone();
                // Keys are kept in one form alone.
                process.start.next.replaced.certificates.clear();
                process.swap(&next, first, true);
                Ok(process)
            }
            Err(failed) => Err((channel, failed)),
        }
    }

    fn try_start(
        start: &Start,
        sockets: &SocketTable,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Started, Failed> {
        let mut descriptors = descriptors.into_iter();
        let broken =
            |what: &str| failed(true, what, "the master and the worker don't fit together");
        let content = descriptors
            .next()
            .ok_or_else(|| broken("the configuration is missing"))?;
        let mut content = read_blob(content)
            .map_err(|error| broken(&format!("the configuration can't be read: {error}")))?;
        let loaded = bundle::unpack(&content)
            .map_err(|error| broken(&format!("the configuration can't be understood: {error}")))?;
        // It has private keys in it.
        content.zeroize();
        let model = loaded.model;
        let control_log = control_log::init(level(model.server.log_level), Colour::Auto).ok();
        hook::log_panics();
        sys_process::die_of_faults();
        // A name that `top` and `ps` show. That it can't be set would do no harm.
        let _ = rustix::thread::set_name(c"beltway-worker");
        let _signals = Signals::block()
            .map_err(|error| failed(false, &format!("can't block signals: {error}"), ""))?;
        check_kernel().map_err(|error| not_started(true, &error))?;
        // Read once and kept. Before kernel 6.4 it is read from a file of /proc that belongs to root in a
        // process which has become another user.
        let _ = rustix::param::page_size();
        let mut report = drop_privileges(start)?;
        usable(&start.identity_name(), &model).map_err(|text| Failed {
            permanent: true,
            text,
        })?;
        let plan = WorkerPlan::of(
            &model,
            start.next.listeners.len(),
            start.sandbox != SandboxMode::Off,
        )
        // Another engine, or another number of descriptors, takes a change by somebody.
        .map_err(|error| not_started(true, &error))?;
        if start.sandbox != SandboxMode::Off {
            report.files = sandbox::restrict_files(&start.grants);
        }
        let log = control_log.as_ref().and_then(|log| log.detach().ok());
        let sink = if start.logs {
            let fd = descriptors
                .next()
                .ok_or_else(|| broken("the access log is missing"))?;
            let sink = Sink::start_on(fd, "the access log".to_owned());
            Some(sink.map_err(|error| {
                failed(
                    false,
                    &format!("can't start the writer of the access log: {error}"),
                    "",
                )
            })?)
        } else {
            None
        };
        let serving = listening(&start.next, sockets)
            .ok_or_else(|| broken("a listening socket is missing"))?;
        let engine = model.server.engine;
        warn_of_foreign(&model.upstreams);
        let rosters = Rosters::new(&model.upstreams, Instant::now());
        servers::heed(&rosters, &start.next.words);
        let resolver =
            Resolver::start(&rosters).map_err(|error| failed(false, &no_resolver(&error), ""))?;
        let tickets = Tickets::default();
        tickets.install(&start.ticket_keys);
        let replacements = (start.next.replaced.made()).map_err(|what| broken(&what))?;
        let secured = swap::secured(&model, &replacements, &tickets, &serving);
        let swap = |listeners| Swap {
            epoch: start.next.config,
            model: Arc::clone(&model),
            rosters: Arc::clone(&rosters),
            secured: Arc::clone(&secured),
            listeners,
        };
        // No connection is accepted before all of this has succeeded: one that fails now would take
        // the clients along that it has met.
        let worker = Worker::start(&plan, swap(Vec::new()), sink, app)
            .map_err(|error| not_started(engine == Engine::Uring, &error))?;
        let mut notifier = None;
        if start.sandbox != SandboxMode::Off {
            report.rings = State::from(worker.restriction());
            (report.calls, notifier) = sandbox::restrict_calls(start.grants.bind);
        }
        if start.sandbox == SandboxMode::Strict {
            let missing = sandbox::missing(&report);
            if !missing.is_empty() {
                let what = format!("the sandbox is not whole: {}", missing.join("; "));
                let help = "use a kernel that has it, or sandbox = \"auto\"";
                return Err(failed(true, &what, help));
            }
        }
        for (what, state) in [
            ("files", &report.files),
            ("rings", &report.rings),
            ("system calls", &report.calls),
        ] {
            if let State::Missing(why) | State::Partly { lacks: why, .. } = state {
                tracing::warn!(what, why, "the sandbox is not whole");
            }
        }
        wait_for_answers(&resolver);
        Ok(Started {
            worker,
            resolver,
            tickets,
            replacements,
            first: swap(serving),
            report,
            tuning: plan.tuning_origin(),
            kernel_tls: plan.kernel_tls_means(),
            notifier,
            control_log,
            log,
        })
    }

    /// Serves until the end, and gives the exit code.
    fn serve(mut self) -> u8 {
        let mut next_look = Instant::now() + LOOK_EVERY;
        while self.worker.alive() > 0 {
            self.sleep(next_look);
            self.hear();
            self.collect();
            let now = Instant::now();
            if now >= next_look {
                next_look = now + LOOK_EVERY;
                self.worker.ledger.verify();
                for (core, why) in self.worker.stalled(now) {
                    tracing::error!(core, why, "A CORE IS STALLED");
                    let stalls = true;
                    self.say(&FromWorker::CoreLost { core, why, stalls });
                }
            }
            self.answer_late(now);
            self.tell_certificates();
            if self.give_up.is_some_and(|at| at <= now) {
                let cores = self.worker.alive();
                tracing::error!(cores, "cores that don't end are left behind");
                self.worker.abandoned = true;
                break;
            }
        }
        self.worker.log_limits();
        let cut = self.worker.cut;
        if cut > 0 {
            tracing::warn!(connections = cut, "connections were cut");
        }
        self.worker.close();
        self.say(&FromWorker::Drained { cut });
        0
    }

    fn sleep(&self, next_look: Instant) {
        let asked = self.asked.iter().map(|asked| asked.deadline).min();
        let until = [Some(next_look), self.give_up, asked]
            .into_iter()
            .flatten()
            .min();
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        let told = PollFd::from_borrowed_fd(self.worker.told.as_fd(), PollFlags::IN);
        match &self.channel {
            Some(channel) => wait(&mut [told, PollFd::new(channel, PollFlags::IN)], timeout),
            None => wait(&mut [told], timeout),
        }
    }

    /// Says something to the master, if it is there.
    fn say(&self, message: &FromWorker) {
        let Some(channel) = &self.channel else { return };
        if let Err(error) = channel.send(message, &[]) {
            tracing::warn!(%error, "the master could not be told");
        }
    }

    /// Does what the master says. A master that is gone leaves the rest to us: let go of the listeners,
    /// and serve the clients that are there to their end.
    fn hear(&mut self) {
        loop {
            let Some(channel) = &self.channel else { return };
            match channel.receive::<ToWorker>() {
                Ok(None) => return,
                Ok(Some((message, descriptors))) => self.obey(message, descriptors),
                Err(ChannelError::Unknown(what)) => {
                    tracing::error!(what, "a message of the master was not understood");
                }
                Err(error) => {
                    self.channel = None;
                    if self.give_up.is_none() {
                        tracing::error!(%error, "the master is gone: no more connections are accepted");
                        self.drain(self.model.server.drain_timeout, false);
                    }
                    return;
                }
            }
        }
    }

    fn obey(&mut self, message: ToWorker, descriptors: Vec<OwnedFd>) {
        match message {
            ToWorker::Sockets(ids) => keep(&mut self.sockets, ids, descriptors),
            ToWorker::Start(_) => tracing::error!("the master has started this worker twice"),
            ToWorker::Reload(next) => {
                let config = next.config;
                if let Err(why) = self.reload(next, descriptors) {
                    self.say(&FromWorker::NotApplied { config, why });
                }
            }
            ToWorker::TicketKeys(keys) => self.tickets.install(&keys),
            ToWorker::Certificates(replaced) => self.replace_certificates(&replaced),
            ToWorker::Drain {
                within_ms,
                handover,
            } => self.drain(Duration::from_millis(within_ms), handover),
            ToWorker::Stop => {
                let _ = self.worker.tell(&Message::Stop);
                self.give_up = Some(Instant::now() + GRACE);
            }
            ToWorker::Reopen => match (descriptors.into_iter().next(), &self.worker.sink) {
                (Some(fd), Some(sink)) => sink.reopen(fd),
                _ => tracing::error!("the access log can't be reopened: there is none"),
            },
            ToWorker::Status { id } => {
                let report = Box::new(servers::report(&self.rosters));
                self.ask(id, Question::Status(report), &Message::Status(id));
            }
            ToWorker::AcceptAgain => {
                // A core that takes no message is stalled, and told of when that is certain.
                let _ = self.worker.tell(&Message::AcceptAgain);
            }
            ToWorker::Probe { id } => {
                let attempts = sandbox::probe(&self.start.grants);
                self.ask(id, Question::Probe(attempts), &Message::TryForbidden(id));
            }
            ToWorker::Server { id, word } => self.hear_word(id, &word),
        }
    }

    fn drain(&mut self, within: Duration, handover: bool) {
        let now = Instant::now();
        let deadline = now + within;
        // It was cut to milliseconds on its way.
        let tenths = (within.as_millis() + 50) / 100;
        let timeout = Duration::from_millis(u64::try_from(tenths * 100).unwrap_or(u64::MAX));
        tracing::info!(?timeout, handover, "draining");
        self.accepting = self.worker.tell(&Message::Drain { deadline, handover });
        // Cores that had a copy each of the listening sockets let go of theirs.
        self.sockets.clear();
        self.give_up = Some(deadline + GRACE);
    }

    /// Hands another configuration to the cores.
    ///
    /// # Errors
    /// Why it can't be served by this worker; nothing has changed then.
    fn reload(&mut self, next: Next, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        let content = descriptors
            .into_iter()
            .next()
            .ok_or("it came without its content")?;
        let mut content = read_blob(content).map_err(|error| error.to_string())?;
        let unpacked = bundle::unpack(&content);
        // It has private keys in it.
        content.zeroize();
        let model = unpacked?.model;
        usable(&self.start.identity_name(), &model)?;
        let listeners = listening(&next, &self.sockets).ok_or("a listening socket is missing")?;
        let replacements = next.replaced.made()?;
        warn_of_foreign(&model.upstreams);
        let rosters = Rosters::succeeding(&model.upstreams, &self.rosters, Instant::now());
        servers::heed(&rosters, &next.words);
        let updated = self.resolver.update(&rosters);
        updated.map_err(|error| no_resolver(&error))?;
        wait_for_answers(&self.resolver);
        self.rosters = Arc::clone(&rosters);
        let secured = swap::secured(&model, &replacements, &self.tickets, &listeners);
        self.secured = Secured {
            config: next.config,
            model: Arc::clone(&model),
            replacements,
            sites: Arc::clone(&secured),
            untold: Vec::new(),
        };
        let swap = Swap {
            epoch: next.config,
            secured,
            model,
            rosters,
            listeners,
        };
        self.swap(&next, swap, false);
        Ok(())
    }

    fn swap(&mut self, next: &Next, swap: Swap, first: bool) {
        let model = Arc::clone(&swap.model);
        let waiting = self.worker.tell(&Message::Swap(Arc::new(swap)));
        self.swapping = Some(Swapping {
            first,
            config: next.config,
            model,
            sockets: next.listeners.iter().map(|(id, _)| *id).collect(),
            waiting,
        });
        self.swapped();
    }

    /// Tells the master when the last core has the new configuration.
    fn swapped(&mut self) {
        if !self
            .swapping
            .as_ref()
            .is_some_and(|swap| swap.waiting.is_empty())
        {
            return;
        }
        let Some(swap) = self.swapping.take() else {
            return;
        };
        // The master closes its own copies when every worker has said so.
        self.sockets.retain(|id, _| swap.sockets.contains(id));
        self.model = swap.model;
        if let Some(log) = &self.control_log {
            log.set_level(level(self.model.server.log_level));
        }
        if swap.first {
            self.say(&FromWorker::Ready(Box::new(Ready {
                engines: self.worker.engines(),
                sandbox: self.report.clone(),
                tuning: self.tuning.clone(),
                kernel_tls: self.kernel_tls.clone(),
            })));
        } else {
            self.say(&FromWorker::Applied {
                config: swap.config,
            });
        }
    }

    /// Takes what the cores have told.
    fn collect(&mut self) {
        for (core, told) in self.worker.collect() {
            match told {
                Told::Lost(why) => {
                    self.forget(core);
                    let stalls = false;
                    self.say(&FromWorker::CoreLost { core, why, stalls });
                }
                Told::Ended => self.forget(core),
                Told::Draining => self.accepts_no_more(core),
                Told::Swapped(config) => {
                    let swap = self.swapping.iter_mut();
                    for swap in swap.filter(|swap| swap.config == config) {
                        swap.waiting.retain(|waiting| *waiting != core);
                    }
                    self.swapped();
                }
                Told::Status(id, account) => self.accounted(core, id, &account),
                Told::Tried(id, results) => self.tried(core, id, &results),
                Told::Tidied => self.tidied(core),
            }
        }
    }

    /// Tells the master when the last core has let go of the listening sockets.
    fn accepts_no_more(&mut self, core: usize) {
        let before = self.accepting.len();
        self.accepting.retain(|accepting| *accepting != core);
        if before > 0 && self.accepting.is_empty() {
            self.say(&FromWorker::Draining);
        }
    }

    /// A core that is gone answers nothing.
    fn forget(&mut self, core: usize) {
        self.accepts_no_more(core);
        self.tidied(core);
        for asked in &mut self.asked {
            asked.waiting.retain(|waiting| *waiting != core);
        }
        if let Some(swap) = &mut self.swapping {
            swap.waiting.retain(|waiting| *waiting != core);
        }
        self.swapped();
    }
}
