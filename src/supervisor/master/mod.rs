//! The master: holds every listening socket for its whole life, starts, watches, replaces and drains
//! workers, and parses nothing that a client sent.
//!
//! What is to be done is decided by the state machine ([`machine`]), which knows no process and no clock;
//! here its actions are carried out, and what happens is told to it. One thread sleeps in one poll(2)
//! for signals, the control socket, the channels of the workers and their ends.

mod certificates;
mod changes;
pub(super) mod check;
mod children;
mod configuration;
mod handover;
pub mod machine;
mod requests;
mod sockets;
mod upgrade;
mod words;
mod workers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::IsTerminal as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

pub use self::check::CHECK_COMMAND;
use self::check::Check;
use self::children::Child;
pub use self::children::WORKER_COMMAND;
use self::configuration::{Configuration, check, millis};
use self::machine::{
    Action, Event, GenerationId, Kind, Level, Machine, Outcome, RequestId, WorkerId,
};
use self::requests::Requests;
use self::sockets::Sockets;
use self::words::Words;
use super::bind::BoundAddr;
use super::certificates::Keeper;
use super::control::protocol::Reply;
use super::control::server::ControlServer;
use super::messages::ToWorker;
use super::notify::Notifier;
use super::signals::{Signal, Signals};
use super::worker::{Origin, level};
use super::{hook, listen_fds, privileges, refusal};
use crate::certificates::Places;
use crate::config::model::LogLevel;
use crate::config::sources::Input;
use crate::net::tls::tickets::KeyMaker;
use crate::observability::control_log::{self, Colour, ControlLog};
use crate::observability::sink::Sink;

/// How long the last lines of the control log may take before an exec.
const LOG_FLUSH: Duration = Duration::from_secs(1);

/// How long the answer to a change waits for the old workers to accept nothing more.
const HANDOVER: Duration = Duration::from_secs(2);

/// What a master is started with.
#[derive(Debug)]
pub struct Options {
    /// What the configuration is read from.
    pub input: Input,
    /// Where the control socket is to be, instead of where the configuration's path says.
    pub control: Option<PathBuf>,
    /// What the user typed: a one-liner prints where it can be opened.
    pub origin: Origin,
}

/// How a master ended, or why it did not start.
#[derive(Debug)]
pub struct End {
    /// The exit code.
    pub code: u8,
    /// Whole lines for standard error; empty when all is said.
    pub text: String,
}

/// Runs a master until it is told to end.
pub fn run(options: Options) -> End {
    match Master::start(options) {
        Ok(mut master) => master.serve(),
        Err(end) => end,
    }
}

/// Goes on for the master that was here before the upgrade; `None` in a process that was started
/// otherwise.
pub fn resume() -> Option<End> {
    let handover = upgrade::taken()?;
    Some(match handover.and_then(Master::resume) {
        Ok(mut master) => master.serve(),
        // The workers notice that nobody is there, and serve their clients to the end.
        Err(why) => End {
            code: 1,
            text: format!("error: the upgrade has failed: {why}\n"),
        },
    })
}

struct Master {
    machine: Machine,
    signals: Signals,
    control: Option<ControlServer>,
    notify: Notifier,
    input: Input,
    origin: Origin,
    /// Where the program stands, for an upgrade.
    program: PathBuf,
    /// The image that this process runs: workers are started from it, whatever stands at `program`.
    own_image: OwnedFd,
    /// The image of the upgrade under way.
    new_image: Option<OwnedFd>,
    check: Option<Check>,
    sockets: Sockets,
    configurations: BTreeMap<u64, Configuration>,
    /// The one in force.
    in_force: Option<u64>,
    next_config: u64,
    children: Vec<Child>,
    requests: Requests,
    /// What the administrator has said of servers.
    words: Words,
    /// The certificates of the configuration in force.
    certificates: Keeper,
    /// By which sessions of TLS are resumed, at whichever worker.
    ticket_keys: KeyMaker,
    /// Workers that were told to drain in a handover, and may still accept.
    accepting: BTreeSet<WorkerId>,
    /// Answers that wait until no old worker accepts: who has the answer gets the new configuration.
    held: Vec<(RequestId, Outcome, Instant)>,
    events: VecDeque<Event>,
    started_unix: u64,
    /// The generation whose engines were told.
    told_engines: Option<GenerationId>,
    /// The addresses that were told to listen.
    announced: Vec<BoundAddr>,
    end: Option<End>,
    /// The service manager waits to hear that the server is ready, at the start or after a change.
    notify_ready: bool,
    /// It ends, and the service manager knows.
    ending: bool,
    /// What is logged follows the configuration.
    control_log: Option<Arc<ControlLog>>,
    /// Writes the control log; dropped last.
    log: Option<Sink>,
}

impl Master {
    /// Everything up to the first worker's start.
    ///
    /// # Errors
    /// How the start ended instead.
    fn start(options: Options) -> Result<Self, End> {
        let coloured = coloured();
        let checked = check(&options.input, coloured).map_err(|text| End { code: 78, text })?;
        let log_level = checked.loaded.as_ref().map(|l| l.model.server.log_level);
        let own_image = own_image().map_err(fatal)?;
        let program = std::env::current_exe().unwrap_or_default();
        let (inherited, refused) = listen_fds::take();
        let Begun {
            signals,
            control_log,
            log,
        } = begin(log_level)?;
        for why in refused {
            tracing::warn!("{why}");
        }
        let limits = privileges::raise_limits();
        tracing::debug!(?limits, "limits");
        let mut master = Self {
            machine: Machine::new(machine::Limits::default(), Instant::now()),
            signals,
            control: None,
            notify: Notifier::of_this_process(Instant::now()),
            input: options.input,
            origin: options.origin,
            program,
            own_image,
            new_image: None,
            check: None,
            sockets: Sockets::new(inherited),
            configurations: BTreeMap::new(),
            in_force: None,
            next_config: 1,
            children: Vec::new(),
            requests: Requests::default(),
            words: Words::default(),
            certificates: Keeper::new(Places::of_this_process()),
            ticket_keys: KeyMaker::new(Instant::now()).map_err(fatal)?,
            accepting: BTreeSet::new(),
            held: Vec::new(),
            events: VecDeque::new(),
            started_unix: unix_now(),
            told_engines: None,
            announced: Vec::new(),
            end: None,
            notify_ready: true,
            ending: false,
            control_log,
            log,
        };
        let policy = checked.facts.policy();
        let config = master
            .add(checked)
            .map_err(|(text, code)| End { code, text })?;
        for unused in master.sockets.unused() {
            tracing::warn!(
                socket = unused,
                "the service manager has handed over a socket that no site listens on"
            );
        }
        master.control = master.control_socket(options.control)?;
        master.events.push_back(Event::Begin { config, policy });
        Ok(master)
    }

    /// The control socket. Without one the server runs all the same, and says what is lost.
    ///
    /// # Errors
    /// When another master has it, or the path that was asked for can't be used.
    fn control_socket(&self, asked: Option<PathBuf>) -> Result<Option<ControlServer>, End> {
        use super::control::path::Places;
        let explicit = asked.is_some();
        let file = self
            .input
            .file
            .as_ref()
            .map(|file| self.input.directory.join(file));
        let path = match (asked, file) {
            (Some(path), _) => Ok(self.input.directory.join(path)),
            (None, Some(file)) => Places::of_this_process().to_bind(&file),
            // A one-liner has no file that a command could name.
            (None, None) => return Ok(None),
        };
        let mut in_use = false;
        let made = path.and_then(|path| {
            let taken = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
            ControlServer::bind(&path).map_err(|error| {
                in_use = taken(&error);
                format!("{}: {error}", path.display())
            })
        });
        match made {
            Ok(server) => Ok(Some(server)),
            Err(why) if explicit || in_use => Err(End {
                code: 1,
                text: refusal::message(
                    &format!("no control socket: {why}"),
                    None,
                    &["one server runs with one file; `beltway status` tells of the other one, and \
                       --control=PATH puts this socket elsewhere"
                        .to_owned()],
                ),
            }),
            Err(why) => {
                tracing::warn!(
                    why,
                    "no control socket: signals work, `beltway reload` and others don't; --control=PATH \
                     says where to make one"
                );
                Ok(None)
            }
        }
    }

    /// Carries out what there is to do until the end.
    fn serve(&mut self) -> End {
        loop {
            self.decide();
            self.tell_manager();
            if let Some(end) = self.end.take() {
                return self.finish(end);
            }
            self.sleep();
            let now = Instant::now();
            while let Some(signal) = self.signals.next() {
                self.signalled(signal);
            }
            self.hear_control(now);
            self.hear_children();
            self.hear_check();
            self.notify.tick(now);
            self.renew_ticket_keys(now);
            self.renew_certificates(now);
            self.answer_late(now);
            self.answer_held(now);
            self.events.push_back(Event::Tick);
        }
    }

    /// Tells the machine what has happened, and does what it says.
    fn decide(&mut self) {
        while let Some(event) = self.events.pop_front() {
            for action in self.machine.handle(event, Instant::now()) {
                self.perform(action);
                if self.end.is_some() {
                    return;
                }
            }
        }
    }

    /// Tells the service manager when the server is ready, and lets go of the sockets when it ends: who
    /// connects then is refused, and does not wait for nobody.
    fn tell_manager(&mut self) {
        if self.machine.is_ending() && !self.ending {
            self.ending = true;
            self.notify.stopping("ending");
            self.sockets.close();
        }
        let is_ready = self.in_force.is_some() && !self.machine.is_changing();
        if self.notify_ready && is_ready && !self.ending {
            self.notify_ready = false;
            let epoch = self.in_force.unwrap_or_default();
            self.notify.ready(&format!("serving, epoch {epoch}"));
        }
    }

    fn sleep(&mut self) {
        let control = self.control.as_ref().and_then(ControlServer::deadline);
        let until = [
            self.machine.deadline(),
            control,
            self.notify.deadline(),
            self.requests.deadline(),
            self.held.iter().map(|(_, _, until)| *until).min(),
            Some(self.ticket_keys.renew_at()),
            self.certificates.deadline(),
        ];
        let now = Instant::now();
        let until = until.into_iter().flatten().min();
        let timeout =
            until.and_then(|until| Timespec::try_from(until.saturating_duration_since(now)).ok());
        let mut fds = vec![PollFd::from_borrowed_fd(
            self.signals.as_fd(),
            PollFlags::IN,
        )];
        if let Some(control) = &self.control {
            fds.extend(
                control
                    .fds()
                    .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)),
            );
        }
        for child in &self.children {
            fds.push(PollFd::from_borrowed_fd(child.end(), PollFlags::IN));
            if !child.silent {
                fds.push(PollFd::from_borrowed_fd(
                    child.channel.as_fd(),
                    PollFlags::IN,
                ));
            }
        }
        let answers = self.certificates.fds();
        fds.extend(answers.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        if let Some(check) = &self.check {
            fds.push(PollFd::from_borrowed_fd(check.end(), PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => tracing::error!(%errno, "waiting failed"),
        }
    }

    fn signalled(&mut self, signal: Signal) {
        let event = match signal {
            Signal::Interrupt | Signal::Terminate => Event::Stop {
                at_once: false,
                request: None,
            },
            Signal::Hangup => Event::Ask {
                request: None,
                kind: Kind::Reload,
            },
            Signal::User2 => Event::Ask {
                request: None,
                kind: Kind::Upgrade,
            },
            Signal::WindowChange => Event::DrainWorkers,
            Signal::User1 => {
                // What went wrong is in the log.
                let _ = self.reopen_logs();
                return;
            }
        };
        self.events.push_back(event);
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Prepare { change, kind } => self.prepare(change, kind),
            Action::CancelPrepare { .. } => (self.check, self.new_image) = (None, None),
            Action::Spawn {
                worker,
                generation,
                config,
                image,
            } => self.spawn(worker, generation, config, image),
            Action::Apply { worker, config } => self.apply(worker, config),
            Action::Drain {
                worker,
                deadline,
                handover,
            } => {
                if handover && self.child(worker).is_some() {
                    self.accepting.insert(worker);
                }
                let within = deadline.saturating_duration_since(Instant::now());
                let within_ms = millis(within);
                self.tell(
                    worker,
                    &ToWorker::Drain {
                        within_ms,
                        handover,
                    },
                );
            }
            Action::StopWorker { worker } => self.tell(worker, &ToWorker::Stop),
            Action::Kill { worker } => {
                if let Some(child) = self.child(worker) {
                    child.kill();
                }
            }
            Action::Commit { config } => self.commit(config),
            Action::Abandon { config } => {
                self.configurations.remove(&config.0);
                self.release();
                self.new_image = None;
            }
            Action::Answer { request, outcome } => {
                let until = Instant::now() + HANDOVER;
                self.held.push((request, outcome, until));
                self.answer_held(Instant::now());
            }
            Action::Execute => self.execute(),
            Action::Exit { code, why } => {
                let text = match code {
                    0 => String::new(),
                    _ => refusal::message(&why, None, &[]),
                };
                self.end = Some(End { code, text });
            }
            // A diagnostic has several lines, and each is one of the log.
            Action::Log { level, text } => text.lines().for_each(|line| match level {
                Level::Error => tracing::error!("{line}"),
                Level::Warn => tracing::warn!("{line}"),
                Level::Info => tracing::info!("{line}"),
            }),
        }
    }

    /// Gives the answers that need not wait any more.
    fn answer_held(&mut self, now: Instant) {
        let living = |worker: &WorkerId| self.children.iter().any(|child| child.worker == *worker);
        self.accepting.retain(living);
        let all = self.accepting.is_empty();
        let due = |(_, outcome, until): &mut (RequestId, Outcome, Instant)| {
            all || matches!(outcome, Outcome::Failed { .. }) || *until <= now
        };
        let due: Vec<_> = self.held.extract_if(.., due).collect();
        for (request, outcome, _) in due {
            self.answer(request, outcome);
        }
    }

    fn answer(&mut self, request: RequestId, outcome: Outcome) {
        let reply = match outcome {
            Outcome::Done { text } => Reply::done(lines(text)),
            Outcome::Failed { text, code } if text.starts_with("error: ") => {
                Reply::failed(code, lines(text))
            }
            Outcome::Failed { text, code } => {
                Reply::failed(code, refusal::message(&text, None, &[]))
            }
        };
        self.reply(super::control::protocol::RequestId(request.0), &reply);
    }

    /// The end: what waits for an answer gets it, and sockets and files go.
    fn finish(&mut self, end: End) -> End {
        self.accepting.clear();
        self.answer_held(Instant::now());
        if !self.ending {
            self.notify.stopping("ending");
        }
        self.children.iter().for_each(Child::kill);
        self.sockets.close();
        if end.code == 0 {
            tracing::info!("stopped");
        }
        if let Some(log) = &mut self.log {
            log.close(LOG_FLUSH);
        }
        end
    }
}

/// The text with an end to its last line.
fn lines(mut text: String) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// What a master takes of its process first.
struct Begun {
    signals: Signals,
    control_log: Option<Arc<ControlLog>>,
    /// Writes the control log.
    log: Option<Sink>,
}

/// Takes the signals and the control log of a master.
fn begin(log_level: Option<LogLevel>) -> Result<Begun, End> {
    let log_level = log_level.map_or(control_log::Level::Info, level);
    let control_log = control_log::init(log_level, Colour::Auto).ok();
    let signals = Signals::block().map_err(|error| End {
        code: 1,
        text: format!("error: can't read signals: {error}\n"),
    })?;
    let log = control_log.as_ref().and_then(|log| log.detach().ok());
    hook::log_panics();
    // After an upgrade it would be a number. That it can't be set would do no harm.
    let _ = rustix::thread::set_name(c"beltway");
    Ok(Begun {
        signals,
        control_log,
        log,
    })
}

/// The program that this process runs, also when another one stands at its path by now.
fn own_image() -> std::io::Result<OwnedFd> {
    Ok(std::fs::File::open("/proc/self/exe")?.into())
}

fn fatal(error: impl std::fmt::Display) -> End {
    End {
        code: 1,
        text: refusal::message(&error.to_string(), None, &[]),
    }
}

fn coloured() -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !no_color
}

fn unix_now() -> u64 {
    crate::util::clock::since_epoch().as_secs()
}
