//! The worker: listening sockets in, cores that serve on them, and their orderly end.
//!
//! The main thread binds, starts helpers, log and cores, and then sleeps until a signal comes or a
//! core ends. It knows of a core only what the core reports; everything else happens on the cores.

mod handlers;
mod plan;
mod secured;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub(super) use self::handlers::app;
pub(super) use self::plan::{WorkerPlan, parts_of};
pub(super) use self::secured::Secured;
use super::bind::ListenError;
use super::core_thread::{
    self, Account, End, Event, MakeService, Message, Report, Reporter, Serves, Setup,
};
use super::stall::{self, Sight, Watch};
use super::swap::Swap;
use super::sys_process::thread_cpu;
use crate::config::model::{Engine, LogFormat, LogLevel, LogTarget, Model};
use crate::http::session::{Counts, count_limit};
use crate::net::spread::Spread;
use crate::observability::access_log::Format;
use crate::observability::control_log::Level;
use crate::observability::sink::{Sink, Target};
use crate::runtime::budget::Ledger;
use crate::runtime::buf::{BUFFER_COUNT, BUFFER_SIZE};
use crate::runtime::engine::Forbidden;
use crate::runtime::engine::caps::{EngineChoice, EngineKind, Restriction, check_openat2, explain};
use crate::runtime::heartbeat::Heartbeat;
use crate::runtime::mailbox::{self, Sender, Wake};
use crate::runtime::offload::Helpers;

/// Jobs that may wait for the helpers.
const HELPER_QUEUE: usize = 256;

/// Messages that may wait for a core: one drain, one stop, one configuration, some questions, and
/// hints, which may be lost.
const MAILBOX: usize = 16;

/// How long a core may take to end beyond its deadline before it is left behind.
pub(super) const GRACE: Duration = Duration::from_secs(8);

/// How long the last lines of the access log may take.
const LOG_CLOSE: Duration = Duration::from_secs(2);

/// How long a helper's job may go on after the cores have ended.
const HELPERS_STOP: Duration = Duration::from_secs(1);

/// What the user typed to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `beltway` and `beltway serve`: print the URLs, the directory and the engine.
    Serve,
    /// `beltway run`.
    Run,
}

/// Why a worker did not start, or could not go on.
#[derive(Debug)]
pub enum StartError {
    /// The kernel refused to listen: every address that failed, in the order of the configuration.
    Listen(Vec<ListenError>),
    /// Anything else.
    Other {
        /// What went wrong.
        what: String,
        /// What to do; may be empty.
        help: String,
    },
}

impl StartError {
    pub(super) fn other(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Other {
            what: what.into(),
            help: help.into(),
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(errors) => {
                let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
                f.write_str(&texts.join("; "))
            }
            Self::Other { what, help } if help.is_empty() => f.write_str(what),
            Self::Other { what, help } => write!(f, "{what}: {help}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Whether this kernel, and whoever confines us, lets files be served at all.
///
/// # Errors
/// What forbids it.
pub(super) fn check_kernel() -> Result<(), StartError> {
    let help = "Linux 5.6 or later is needed; in a container, a current runtime";
    check_openat2().map_err(|what| StartError::other(what, help))
}

/// The cores of a process and what they share.
pub(super) struct Worker {
    pub(super) cores: Vec<CoreHandle>,
    reports: Receiver<Report>,
    /// Wakes the main thread for reports.
    pub(super) told: Arc<Wake>,
    helpers: Helpers,
    /// What cores see of each other, where there are several.
    spread: Option<Arc<Spread>>,
    /// The writer of the access log.
    pub(super) sink: Option<Sink>,
    /// Connections that were cut when their cores ended.
    pub(super) cut: usize,
    /// How often each limit was reached on cores that have ended.
    pub(super) limits: Counts,
    /// The memory of the process.
    pub(super) ledger: Arc<Ledger>,
    /// Where its limit comes from.
    pub(super) memory_source: &'static str,
    /// Cores that live are left behind: they were given all the time there is.
    pub(super) abandoned: bool,
}

/// A core as the main thread sees it.
pub(super) struct CoreHandle {
    mailbox: Sender<Message>,
    /// Taken when the core has ended.
    thread: Option<JoinHandle<()>>,
    pub(super) engine: Option<(EngineKind, String)>,
    restriction: Restriction,
    wake: Arc<Wake>,
    heartbeat: Arc<Heartbeat>,
    watch: Watch,
    /// It was told of as stalled.
    stalled: bool,
}

/// What a core has told that somebody waits for.
#[derive(Debug)]
pub(super) enum Told {
    /// It accepts nothing more, and every answer says that the connection ends.
    Draining,
    /// It serves this configuration.
    Swapped(u64),
    /// How it goes, for the question of this number.
    Status(u64, Box<Account>),
    /// What the ring said to each forbidden op, for the question of this number.
    Tried(u64, Vec<Forbidden>),
    /// Idle connections to servers that take nothing are closed.
    Tidied,
    /// It has ended as it was told to.
    Ended,
    /// It is gone, and nobody has asked for that.
    Lost(String),
}

impl Worker {
    /// Starts everything and waits until every core serves the configuration.
    ///
    /// # Errors
    /// When one of the parts can't be had; those that were started end again.
    pub(super) fn start<S: Serves>(
        plan: &WorkerPlan,
        first: Swap,
        sink: Option<Sink>,
        make: impl MakeService<S>,
    ) -> Result<Self, StartError> {
        let server = &first.model.server;
        let uring = server.engine == Engine::Uring;
        let format = server.access_log.as_ref().map(|log| format(log.format));
        let helpers = Helpers::start(Helpers::threads_default(plan.cpus.len()), HELPER_QUEUE)
            .map_err(|error| failed("helper threads", &error))?;
        // Each core starts once and ends once, and answers one question of each kind at a time.
        let (sender, reports) = mpsc::sync_channel(8 * plan.cpus.len());
        let wakes = plan.cpus.iter().map(|_| Wake::new());
        let wakes = wakes.collect::<io::Result<Vec<_>>>();
        let wakes = wakes.map_err(|error| failed("eventfd", &error))?;
        let statm = plan.statm.as_ref().and_then(|fd| fd.try_clone().ok());
        let ledger = Ledger::new(plan.memory.bytes, wakes.clone(), statm);
        let spread = (wakes.len() > 1).then(|| {
            let connections_max = plan.budget.connections_per_core;
            Spread::new(wakes.iter().cloned(), connections_max)
        });
        let mut worker = Self {
            cores: Vec::with_capacity(plan.cpus.len()),
            spread: spread.clone(),
            reports,
            told: Wake::new().map_err(|error| failed("eventfd", &error))?,
            helpers,
            sink,
            cut: 0,
            limits: Counts::new(),
            ledger: Arc::clone(&ledger),
            memory_source: plan.memory.source,
            abandoned: false,
        };
        let may_degrade = server.engine == Engine::Auto;
        let first = Arc::new(first);
        for (index, cpu) in plan.cpus.iter().enumerate() {
            let reporter = Reporter {
                sender: sender.clone(),
                wake: Arc::clone(&worker.told),
                core: index,
            };
            let wake = Arc::clone(&wakes[index]);
            let (mailbox, messages) = mailbox::channel(MAILBOX, Arc::clone(&wake));
            let heartbeat = Arc::new(Heartbeat::new(Instant::now()));
            let sink = worker.sink.as_ref().map(Sink::handle);
            let poller = plan.pollers.get(index);
            let setup = Setup {
                cpu: *cpu,
                selection: match poller {
                    Some(cpu) => plan.selection.on_poller(*cpu),
                    None => plan.selection.clone(),
                },
                may_degrade,
                helpers: [0; 2].map(|_| Some(worker.helpers.port(Arc::clone(&wake)))),
                wake: Arc::clone(&wake),
                cores: plan.cpus.len(),
                mailbox: messages,
                first: Arc::clone(&first),
                connections_max: plan.budget.connections_per_core,
                files_max: plan.budget.files_per_core,
                cold: plan.cold.clone(),
                kernel_tls: plan.kernel_tls.clone().unwrap_or(0),
                log: format.zip(sink),
                heartbeat: Arc::clone(&heartbeat),
                ledger: Arc::clone(&ledger),
                tuning: plan.tuning.tuning,
                seat: spread.as_ref().map(|spread| spread.seat(index)),
                reporter,
            };
            let thread = thread::Builder::new()
                .name(format!("beltway-core-{index}"))
                .spawn(move || core_thread::run(setup, make))
                .map_err(|error| failed("a thread", &error))?;
            worker.cores.push(CoreHandle {
                mailbox,
                thread: Some(thread),
                engine: None,
                restriction: Restriction::NoRing,
                wake,
                heartbeat,
                watch: Watch::new(stall::Bounds::default()),
                stalled: false,
            });
        }
        drop((sender, first));
        worker.wait_for_start(uring)?;
        let buffers = usize::from(BUFFER_COUNT) * BUFFER_SIZE * plan.cpus.len();
        ledger.begin(buffers as u64);
        if ledger.is_too_small() {
            let (limit, base, room) = (ledger.limit(), ledger.base(), ledger.room());
            tracing::warn!(
                limit,
                base,
                room,
                "memory_limit is hardly more than the server needs without a client: {room} bytes \
                 more are used; set it to at least {}",
                base + room
            );
        }
        Ok(worker)
    }

    /// Opens the access log again, for one that was rotated.
    pub(super) fn reopen(&self, model: &Model) {
        let (Some(sink), Some(log)) = (&self.sink, &model.server.access_log) else {
            return;
        };
        match target(&log.target).open() {
            Ok(fd) => sink.reopen(fd),
            Err(error) => {
                tracing::error!(%error, "the access log can't be reopened; the old one goes on")
            }
        }
    }

    /// Waits until each core serves; each says so or ends. `uring`: io_uring was demanded.
    fn wait_for_start(&mut self, uring: bool) -> Result<(), StartError> {
        let mut waiting = self.cores.len();
        while waiting > 0 {
            let report = self
                .reports
                .recv()
                .map_err(|_| StartError::other("the cores ended without a word", ""))?;
            match report.event {
                Event::Started(kind, reason, restriction) => {
                    let core = &mut self.cores[report.core];
                    core.engine = Some((kind, reason));
                    core.restriction = restriction;
                    waiting -= 1;
                }
                // Nothing of this was asked for yet.
                Event::Draining | Event::Swapped(_) | Event::Status(..) => {}
                Event::Tried(..) | Event::Tidied => {}
                Event::Ended(end) => {
                    let why = match end {
                        // Without a ring there is epoll, unless the ring was demanded.
                        End::Refused(error) if uring => explain(&error),
                        End::Refused(error) => error.to_string(),
                        End::Broken(why) => why,
                        End::Told { .. } => "it ended".to_owned(),
                    };
                    return Err(StartError::other(
                        format!("core {} can't start: {why}", report.core),
                        "",
                    ));
                }
            }
        }
        self.told.drain();
        Ok(())
    }

    /// Cores that have not ended.
    pub(super) fn alive(&self) -> usize {
        let alive = |core: &&CoreHandle| core.thread.is_some();
        self.cores.iter().filter(alive).count()
    }

    /// Whether the rings are restricted: the worst of all cores.
    pub(super) fn restriction(&self) -> &Restriction {
        let of = |core: &CoreHandle| match &core.restriction {
            Restriction::Missing(_) => 0,
            Restriction::Off => 1,
            Restriction::Enforced => 2,
            Restriction::NoRing => 3,
        };
        let worst = self.cores.iter().min_by_key(|core| of(core));
        worst.map_or(&Restriction::NoRing, |core| &core.restriction)
    }

    /// Each engine with its reason and the number of its cores.
    pub(super) fn engines(&self) -> Vec<(String, String, usize)> {
        let mut engines: Vec<(String, String, usize)> = Vec::new();
        for (kind, reason) in self.cores.iter().filter_map(|core| core.engine.as_ref()) {
            let kind = kind.to_string();
            match engines
                .iter_mut()
                .find(|it| it.0 == kind && it.1 == *reason)
            {
                Some((_, _, cores)) => *cores += 1,
                None => engines.push((kind, reason.clone(), 1)),
            }
        }
        engines
    }

    /// Sends a message to every core that lives, and gives those that it reached.
    pub(super) fn tell(&mut self, message: &Message) -> Vec<usize> {
        let mut told = Vec::with_capacity(self.cores.len());
        for (index, core) in self.cores.iter_mut().enumerate() {
            // One that takes nothing is stalled, and told of when that is certain.
            if core.thread.is_some() && core.mailbox.try_send(message.clone()).is_ok() {
                told.push(index);
            }
        }
        told
    }

    /// The cores that have not ended.
    pub(super) fn living(&self) -> Vec<usize> {
        let cores = self.cores.iter().enumerate();
        let living = cores.filter(|(_, core)| core.thread.is_some());
        living.map(|(index, _)| index).collect()
    }

    /// Sends a message to a core; whether it need not be sent again: it was, or the core is gone.
    pub(super) fn tell_core(&mut self, core: usize, message: Message) -> bool {
        let core = &mut self.cores[core];
        core.thread.is_none() || core.mailbox.try_send(message).is_ok()
    }

    /// Takes the reports that have come, each with its core.
    pub(super) fn collect(&mut self) -> Vec<(usize, Told)> {
        self.told.drain();
        let mut all = Vec::new();
        while let Ok(Report { core, event }) = self.reports.try_recv() {
            let told = match event {
                Event::Ended(end) => self.ended(core, end),
                Event::Draining => Told::Draining,
                Event::Swapped(epoch) => Told::Swapped(epoch),
                Event::Status(id, account) => Told::Status(id, account),
                Event::Tried(id, results) => Told::Tried(id, results),
                Event::Tidied => Told::Tidied,
                Event::Started(..) => continue,
            };
            all.push((core, told));
        }
        all
    }

    /// The cores that are found stalled, each once, with what was seen.
    pub(super) fn stalled(&mut self, now: Instant) -> Vec<(usize, String)> {
        let cores = self.cores.iter_mut().enumerate();
        let spread = &self.spread;
        cores
            .filter_map(|(index, core)| {
                let sight = Sight {
                    turn: core.heartbeat.running_for(now),
                    cpu: thread_cpu(core.thread.as_ref()?)?,
                    unanswered: core.wake.unanswered(),
                };
                let why = core.watch.look(sight, now).filter(|_| !core.stalled)?;
                core.stalled = true;
                if let Some(spread) = spread {
                    spread.abandon(index);
                }
                Some((index, why))
            })
            .collect()
    }

    fn ended(&mut self, core: usize, end: End) -> Told {
        let told = match end {
            End::Told {
                cut,
                panics,
                limits,
            } => {
                self.cut += cut;
                for (limit, times) in limits {
                    count_limit(&mut self.limits, limit, times);
                }
                if panics > 0 {
                    tracing::error!(core, panics, "tasks of this core had panicked");
                }
                Told::Ended
            }
            End::Refused(error) => {
                tracing::error!(core, %error, "a core could not start");
                Told::Lost(error.to_string())
            }
            End::Broken(why) => {
                tracing::error!(
                    core,
                    why,
                    "A CORE IS GONE, and its connections with it; the others go on"
                );
                Told::Lost(why)
            }
        };
        if let Some(thread) = self.cores[core].thread.take() {
            // Its body catches panics, and reported its end already.
            let _ = thread.join();
        }
        if matches!(told, Told::Lost(_)) {
            self.tell(&Message::AcceptAgain);
        }
        told
    }

    /// Writes into the control log how often limits were reached, at the end.
    pub(super) fn log_limits(&self) {
        for (limit, times) in &self.limits {
            tracing::info!(limit, times, "limit reached");
        }
    }

    /// Ends what the cores shared, after them. Cores that are left are told to stop.
    pub(super) fn close(&mut self) {
        if self.alive() > 0 && !self.abandoned {
            self.tell(&Message::Stop);
            let deadline = Instant::now() + GRACE;
            while self.alive() > 0 {
                let left = deadline.saturating_duration_since(Instant::now());
                match self.reports.recv_timeout(left) {
                    Ok(Report {
                        core,
                        event: Event::Ended(end),
                    }) => {
                        self.ended(core, end);
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        }
        if let Some(mut sink) = self.sink.take()
            && !sink.close(LOG_CLOSE)
        {
            tracing::warn!("the access log is too slow: its last lines are lost");
        }
        self.helpers.stop(HELPERS_STOP);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.close();
    }
}

pub(super) fn failed(what: &str, error: &io::Error) -> StartError {
    StartError::other(format!("can't set up {what}: {error}"), "")
}

/// Where the access log goes, in the words of the sink.
pub(super) fn target(target: &LogTarget) -> Target {
    match target {
        LogTarget::Stdout => Target::Stdout,
        LogTarget::File(path) => Target::File(path.clone()),
    }
}

fn engine(engine: Engine) -> EngineChoice {
    match engine {
        Engine::Auto => EngineChoice::Auto,
        Engine::Uring => EngineChoice::Uring,
        Engine::Epoll => EngineChoice::Epoll,
    }
}

fn format(format: LogFormat) -> Format {
    match format {
        LogFormat::Common => Format::Common,
        LogFormat::Combined => Format::Combined,
        LogFormat::Json => Format::Json,
    }
}

pub(super) fn level(level: LogLevel) -> Level {
    match level {
        LogLevel::Error => Level::Error,
        LogLevel::Warn => Level::Warn,
        LogLevel::Info => Level::Info,
        LogLevel::Debug => Level::Debug,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::config;
    use crate::config::sources::{Input, Setting};
    use crate::supervisor::bind::{self, BoundAddr};
    use crate::supervisor::ok_service::{OkService, SPINNING};
    use crate::supervisor::standalone::{Opened, open};
    use crate::upstream::roster::Rosters;

    /// Longest that anything here may take.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn model(settings: &[&str]) -> Arc<Model> {
        let input = Input {
            settings: [r#"site.*.listen=["127.0.0.1:0"]"#, r#"site.*.root="/""#]
                .iter()
                .chain(settings)
                .map(|setting| Setting::Set((*setting).to_owned()))
                .collect(),
            directory: "/".into(),
            ..Input::default()
        };
        match config::load(&input) {
            Ok(loaded) => loaded.model,
            Err(diagnostics) => panic!("{}", diagnostics.render(false)),
        }
    }

    /// Starts cores on these sockets.
    fn start_on<S: Serves>(
        model: &Arc<Model>,
        opened: &Opened,
        make: impl MakeService<S>,
    ) -> Result<Worker, StartError> {
        let plan = WorkerPlan::of(model, opened.serving.len(), true)?;
        let sink = model.server.access_log.as_ref();
        let sink = sink.map(|log| Sink::start(&target(&log.target)).unwrap());
        let first = Swap {
            epoch: 1,
            rosters: Rosters::new(&model.upstreams, Instant::now()),
            secured: Arc::default(),
            model: Arc::clone(model),
            listeners: opened.serving.clone(),
        };
        Worker::start(&plan, first, sink, make)
    }

    fn start(settings: &[&str]) -> (Worker, SocketAddr) {
        let model = model(settings);
        let opened = open(bind::bind(&model.listeners, None).unwrap());
        let worker = start_on(&model, &opened, OkService::new).unwrap();
        let BoundAddr::Tcp(address) = opened.addresses[0] else {
            panic!("it listens on TCP");
        };
        (worker, address)
    }

    fn connect(address: SocketAddr) -> TcpStream {
        let client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    fn request(client: &mut TcpStream, path: &str) -> String {
        write!(client, "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        response(client)
    }

    /// Reads up to the end of the body, or of the connection.
    fn response(client: &mut TcpStream) -> String {
        let (mut text, mut bytes) = (String::new(), [0; 1024]);
        while !text.ends_with("\r\n\r\nok") {
            match client.read(&mut bytes) {
                // The probe of the engine ran on this thread: what its ring leaves to be done
                // interrupts a read with a timeout.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
                Ok(count) => text.push_str(std::str::from_utf8(&bytes[..count]).unwrap()),
            }
        }
        text
    }

    fn wait_for_end(worker: &mut Worker) {
        let deadline = Instant::now() + PATIENCE;
        while worker.alive() > 0 {
            assert!(Instant::now() < deadline, "cores don't end");
            let left = Timespec::try_from(Duration::from_secs(1)).unwrap();
            let mut fds = [PollFd::new(&*worker.told, PollFlags::IN)];
            poll(&mut fds, Some(&left)).unwrap();
            worker.collect();
        }
    }

    fn drain(worker: &mut Worker, time: Duration) {
        let deadline = Instant::now() + time;
        worker.tell(&Message::Drain {
            deadline,
            handover: false,
        });
    }

    #[test]
    fn serves_and_drains_on_each_engine_and_number_of_cores() {
        for engine in ["auto", "epoll"] {
            for workers in [1, 2] {
                let engine = format!("server.engine={engine:?}");
                let workers = format!("server.workers={workers}");
                let (mut worker, address) = start(&[&engine, &workers]);
                let mut clients: Vec<_> = (0..8).map(|_| connect(address)).collect();
                for client in &mut clients {
                    for _ in 0..2 {
                        let text = request(client, "/");
                        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
                        assert!(!text.contains("Connection: close"), "{text}");
                    }
                }
                drain(&mut worker, PATIENCE);
                for client in &mut clients {
                    assert_eq!(response(client), "", "idle ones are closed");
                }
                wait_for_end(&mut worker);
                assert_eq!(worker.cut, 0);
                assert!(
                    TcpStream::connect(address).is_err(),
                    "nothing listens any more"
                );
            }
        }
    }

    #[test]
    fn a_request_that_waits_to_be_accepted_is_answered_during_the_drain() {
        for engine in ["auto", "epoll"] {
            for _ in 0..10 {
                let engine = format!("server.engine={engine:?}");
                let (mut worker, address) = start(&[&engine, "server.workers=1"]);
                let mut clients: Vec<_> = (0..100).map(|_| connect(address)).collect();
                for client in &mut clients {
                    client
                        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                        .unwrap();
                }
                drain(&mut worker, PATIENCE);
                for client in &mut clients {
                    let text = response(client);
                    assert!(text.starts_with("HTTP/1.1 200 "), "{engine}: {text:?}");
                }
                wait_for_end(&mut worker);
                assert_eq!(worker.cut, 0);
            }
        }
    }

    #[test]
    fn a_request_that_has_begun_is_answered_during_the_drain_and_the_connection_closes() {
        for engine in ["auto", "epoll"] {
            let engine = format!("server.engine={engine:?}");
            let (mut worker, address) = start(&[&engine, "server.workers=1"]);
            let (mut begun, mut idle) = (connect(address), connect(address));
            request(&mut begun, "/");
            request(&mut idle, "/");
            begun.write_all(b"GET / HTTP/1.1\r\n").unwrap();
            // A second connection is answered after the core has taken these bytes.
            request(&mut idle, "/");
            drain(&mut worker, PATIENCE);
            assert_eq!(response(&mut idle), "");
            begun.write_all(b"Host: a\r\n\r\n").unwrap();
            let text = response(&mut begun);
            assert!(text.contains("Connection: close\r\n"), "{text}");
            drop(begun);
            wait_for_end(&mut worker);
            assert_eq!(worker.cut, 0);
        }
    }

    #[test]
    fn what_is_left_at_the_deadline_or_at_a_stop_is_cut_and_counted() {
        for stop in [false, true] {
            let (mut worker, address) = start(&["server.workers=1"]);
            let (mut begun, mut other) = (connect(address), connect(address));
            request(&mut begun, "/");
            begun.write_all(b"GET / HTTP/1.1\r\n").unwrap();
            request(&mut other, "/");
            drop(other);
            if stop {
                drain(&mut worker, PATIENCE);
                worker.tell(&Message::Stop);
            } else {
                drain(&mut worker, Duration::from_millis(1));
            }
            wait_for_end(&mut worker);
            assert_eq!(worker.cut, 1);
            assert_eq!(response(&mut begun), "");
        }
    }

    #[test]
    fn a_core_that_spins_is_told_of_once() {
        for engine in ["auto", "epoll"] {
            let engine = format!("server.engine={engine:?}");
            let (worker, address) = start(&[&engine, "server.workers=2"]);
            spins(worker, address);
        }
    }

    fn spins(mut worker: Worker, address: SocketAddr) {
        let bounds = stall::Bounds {
            turn_wall: Duration::from_millis(50),
            turn_cpu: Duration::from_millis(20),
            wake_answer: PATIENCE,
        };
        for core in &mut worker.cores {
            core.watch = Watch::new(bounds);
        }
        let spinning = Arc::new(AtomicBool::new(true));
        *SPINNING.lock().unwrap() = Some(Arc::clone(&spinning));
        let mut bad = connect(address);
        write!(bad, "GET /spin HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let deadline = Instant::now() + PATIENCE;
        let stalled = loop {
            assert!(Instant::now() < deadline, "no core is found stalled");
            let stalled = worker.stalled(Instant::now());
            if !stalled.is_empty() {
                break stalled;
            }
            thread::yield_now();
        };
        assert_eq!(stalled.len(), 1);
        assert!(stalled[0].1.contains("one turn has lasted"), "{stalled:?}");
        assert_eq!(worker.stalled(Instant::now()), [], "it is told once");
        spinning.store(false, Ordering::Relaxed);
        assert!(response(&mut bad).ends_with("ok"));
        drain(&mut worker, PATIENCE);
        wait_for_end(&mut worker);
    }

    #[test]
    fn a_task_that_panics_closes_its_connection_only() {
        let (mut worker, address) = start(&["server.workers=1"]);
        let (mut bad, mut good) = (connect(address), connect(address));
        request(&mut good, "/");
        assert_eq!(request(&mut bad, "/panic"), "");
        assert!(request(&mut good, "/").ends_with("ok"));
        drain(&mut worker, PATIENCE);
        wait_for_end(&mut worker);
    }

    #[test]
    fn a_core_that_panics_at_its_start_ends_the_others_in_order() {
        let model = model(&["server.workers=2"]);
        let opened = open(bind::bind(&model.listeners, None).unwrap());
        let started = start_on(&model, &opened, |parts| {
            let name = thread::current().name().unwrap_or_default().to_owned();
            assert_ne!(name, "beltway-core-1", "for this test");
            OkService::new(parts)
        });
        let why = started.err().unwrap().to_string();
        assert!(why.contains("core 1 can't start: it panicked"), "{why}");
    }

    #[test]
    fn the_access_log_is_complete_after_a_drain() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let log = format!("server.access_log={path:?}");
        let (mut worker, address) = start(&["server.workers=2", &log]);
        for _ in 0..4 {
            request(&mut connect(address), "/page");
        }
        drain(&mut worker, PATIENCE);
        wait_for_end(&mut worker);
        worker.close();
        let lines = std::fs::read_to_string(path).unwrap();
        assert_eq!(lines.matches("GET /page HTTP/1.1").count(), 4, "{lines}");
    }
}
