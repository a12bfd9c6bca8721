//! A server without a master: one process that binds, serves until a signal comes, and drains.
//!
//! One-liners run so. There is nothing to reload and nobody to take over; everything else is as under
//! a master, because the same [`Worker`] serves.

mod secrets;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use self::secrets::Secrets;
use super::bind::{self, BoundAddr, BoundListener};
use super::core_thread::Message;
use super::signals::{Signal, Signals};
use super::stall::LOOK_EVERY;
use super::swap::{Serving, Swap};
use super::worker::{
    GRACE, Origin, StartError, Worker, WorkerPlan, app, check_kernel, failed, level, parts_of,
    target,
};
use super::{banner, hook, privileges, refusal};
use crate::config::model::{AccessLog, LogTarget, Model};
use crate::net::socket::SocketFile;
use crate::observability::control_log::{self, Colour, ControlLog};
use crate::observability::sink::Sink;
use crate::runtime::mailbox::Wake;
use crate::upstream::resolve::{Resolver, wait_for_answers};
use crate::upstream::roster::Rosters;
use crate::upstream::source::warn_of_foreign;

/// The number of the one configuration.
const EPOCH: u64 = 1;

/// Serves until a signal ends it and the drain is over.
///
/// # Errors
/// When it can't start, or when no core is left to serve.
pub fn run(model: Arc<Model>, origin: Origin) -> Result<(), StartError> {
    // Whoever embeds the server may have a log already.
    let log = control_log::init(level(model.server.log_level), Colour::Auto).ok();
    check_kernel()?;
    let listeners = bind(&model)?;
    run_logged(model, listeners, origin, log.as_deref())
}

/// Binds every address of the configuration.
///
/// # Errors
/// [`StartError::Listen`] with every address that failed.
fn bind(model: &Model) -> Result<Vec<BoundListener>, StartError> {
    bind::bind(&model.listeners, parts_of(&model.server)).map_err(StartError::Listen)
}

/// Serves on sockets that listen already. To be called before the process has other threads: signals
/// are blocked in this one and in those that it starts.
///
/// # Errors
/// As [`run`], but for the sockets.
pub fn run_with(
    model: Arc<Model>,
    listeners: Vec<BoundListener>,
    origin: Origin,
) -> Result<(), StartError> {
    run_logged(model, listeners, origin, None)
}

fn run_logged(
    model: Arc<Model>,
    listeners: Vec<BoundListener>,
    origin: Origin,
    log: Option<&ControlLog>,
) -> Result<(), StartError> {
    let signals = Signals::block()
        .map_err(|error| StartError::other(format!("can't read signals: {error}"), ""))?;
    // After the signals were blocked, so that they are in its thread, too; dropped after all who log.
    let _log = log
        .map(ControlLog::detach)
        .transpose()
        .map_err(|error| failed("the control log", &error))?;
    hook::log_panics();
    let spills = model.spill_directories();
    if let Some((path, error)) = privileges::unwritable(&spills).first() {
        let who = format!("user {}", privileges::Identity::current().user);
        let (what, help) = refusal::not_writable(&who, path, error);
        return Err(StartError::other(what, help));
    }
    let plan = WorkerPlan::of(&model, listeners.len(), false)?;
    let sink = model
        .server
        .access_log
        .as_ref()
        .map(open_sink)
        .transpose()?;
    let Opened {
        serving,
        addresses,
        files,
    } = open(listeners);
    let is_secured = |serving: &Serving| model.listeners[serving.listener].tls.is_some();
    // Several sockets of an address are one for people.
    let firsts = serving
        .iter()
        .filter(|it| it.part.is_none_or(|part| part.index == 0));
    let secured = firsts.map(is_secured);
    let addresses: Vec<_> = addresses.into_iter().zip(secured).collect();
    warn_of_foreign(&model.upstreams);
    for warning in &model.warnings {
        tracing::warn!("{warning}");
    }
    let rosters = Rosters::new(&model.upstreams, Instant::now());
    let resolver = Resolver::start(&rosters).map_err(|error| failed("the resolver", &error))?;
    wait_for_answers(&resolver);
    let mut secrets = Secrets::new(Arc::clone(&model), &serving)?;
    let first = Swap {
        epoch: EPOCH,
        secured: Arc::clone(&secrets.secured.sites),
        rosters,
        model: Arc::clone(&model),
        listeners: serving,
    };
    let mut worker = Worker::start(&plan, first, sink, app)?;
    announce(&worker, &model, &addresses, origin);
    let result = supervise(&mut worker, &signals, &model, origin, &mut secrets);
    worker.close();
    // Socket files go with the server, not before.
    drop(files);
    result
}

/// Listening sockets, taken apart.
pub(super) struct Opened {
    /// What the cores listen on.
    pub(super) serving: Vec<Serving>,
    /// Where that is.
    pub(super) addresses: Vec<BoundAddr>,
    /// Files that are removed when this is dropped.
    pub(super) files: Vec<SocketFile>,
}

/// Numbers the sockets in their order.
pub(super) fn open(listeners: Vec<BoundListener>) -> Opened {
    let mut opened = Opened {
        serving: Vec::with_capacity(listeners.len()),
        addresses: Vec::with_capacity(listeners.len()),
        files: Vec::new(),
    };
    for (id, listener) in (0..).zip(listeners) {
        opened.serving.push(Serving {
            id,
            listener: listener.listener,
            socket: Arc::new(listener.socket),
            part: listener.part,
        });
        if listener.part.is_none_or(|part| part.index == 0) {
            opened.addresses.push(listener.address);
        }
        opened.files.extend(listener.file);
    }
    opened
}

fn open_sink(log: &AccessLog) -> Result<Sink, StartError> {
    Sink::start(&target(&log.target)).map_err(|error| match &log.target {
        LogTarget::Stdout => failed("the access log on standard output", &error),
        LogTarget::File(path) => StartError::other(
            format!("can't open the access log {}: {error}", path.display()),
            "its directory has to exist, and this user has to be allowed to write there",
        ),
    })
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
    Stopping,
}

/// Sleeps until a signal comes or a core ends, until no core is left.
fn supervise(
    worker: &mut Worker,
    signals: &Signals,
    model: &Model,
    origin: Origin,
    secrets: &mut Secrets,
) -> Result<(), StartError> {
    let mut phase = Phase::Serving;
    let mut give_up: Option<Instant> = None;
    let mut next_look = Instant::now() + LOOK_EVERY;
    while worker.alive() > 0 {
        secrets.renew(worker, Instant::now());
        let until = next_look.min(secrets.deadline());
        wait(
            signals,
            &worker.told,
            secrets,
            give_up.map_or(until, |at| at.min(until)),
        );
        if next_look <= Instant::now() {
            next_look = Instant::now() + LOOK_EVERY;
            worker.ledger.verify();
        }
        while let Some(signal) = signals.next() {
            match (signal, phase) {
                (Signal::Hangup, _) => {
                    tracing::info!("SIGHUP: there is nothing to reload without a master");
                }
                (Signal::User1, _) => worker.reopen(model),
                (Signal::User2, _) => {
                    tracing::info!("SIGUSR2: there is no upgrade without a master");
                }
                (Signal::WindowChange, _) => {
                    tracing::info!("SIGWINCH: there is nothing to drain without a master");
                }
                (signal, Phase::Serving) => {
                    phase = Phase::Draining;
                    let drain = model.server.drain_timeout;
                    if origin == Origin::Serve && signal == Signal::Interrupt {
                        banner::Stream::of(model).say(&banner::stopping(drain));
                    }
                    tracing::info!(timeout = ?drain, "draining");
                    let deadline = Instant::now() + drain;
                    worker.tell(&Message::Drain {
                        deadline,
                        handover: false,
                    });
                    give_up = Some(deadline + GRACE);
                }
                (_, Phase::Draining) => {
                    phase = Phase::Stopping;
                    tracing::info!("ending at once");
                    worker.tell(&Message::Stop);
                    give_up = Some(Instant::now() + GRACE);
                }
                (_, Phase::Stopping) => give_up = Some(Instant::now()),
            }
        }
        worker.collect();
        if give_up.is_some_and(|at| at <= Instant::now()) && worker.alive() > 0 {
            let cores = worker.alive();
            tracing::error!(cores, "cores that don't end are left behind");
            worker.abandoned = true;
            return Ok(());
        }
    }
    match phase {
        Phase::Serving => Err(StartError::other("no core is left to serve", "see the log")),
        Phase::Draining | Phase::Stopping => {
            worker.log_limits();
            let cut = worker.cut;
            if cut > 0 {
                tracing::warn!(connections = cut, "stopped; connections were cut");
            } else {
                tracing::info!("stopped");
            }
            Ok(())
        }
    }
}

/// Sleeps until a signal, a report or an answer of an authority has come, or until then.
fn wait(signals: &Signals, told: &Wake, secrets: &Secrets, until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).ok();
    let awaited = [signals.as_fd(), told.as_fd()];
    let awaited = awaited.into_iter().chain(secrets.fds());
    let mut fds: Vec<_> = awaited
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        // Out of memory for a moment: the caller looks for what there is and comes back.
        Err(errno) => tracing::error!(%errno, "waiting for signals failed"),
    }
}

/// Says what runs and where it listens.
fn announce(worker: &Worker, model: &Model, addresses: &[(BoundAddr, bool)], origin: Origin) {
    let engines = worker.engines();
    for (engine, reason, cores) in &engines {
        tracing::info!(engine, reason, cores, "engine");
    }
    for (address, is_secured) in addresses {
        tracing::info!("listening on {}", address.url(*is_secured));
    }
    if origin == Origin::Serve {
        let kinds: Vec<String> = engines
            .iter()
            .map(|(kind, reason, _)| format!("{kind} ({reason})"))
            .collect();
        let engine = kinds.join(" and ");
        let text = banner::started(model, addresses, &engine, worker.cores.len());
        banner::Stream::of(model).say(&text);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::config::model::{ListenAddr, Place};

    #[test]
    fn a_socket_file_goes_with_what_was_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site.sock");
        let wanted = [(ListenAddr::Unix(path.clone()), Place::default())];
        let opened = open(bind::bind_missing(&wanted, None, |_| false).unwrap());
        UnixStream::connect(&path).unwrap();
        assert_eq!(opened.serving[0].listener, 0);
        drop(opened);
        assert!(!path.exists());
    }
}
