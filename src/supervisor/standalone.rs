//! A server without a master: one process that binds, serves until a signal comes, and drains.
//!
//! One-liners run so. There is nothing to reload and nobody to take over; everything else is as under
//! a master, because the same [`Worker`] serves.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::bind::{self, BoundListener};
use super::core_thread::Message;
use super::signals::{Signal, Signals};
use super::worker::{GRACE, Origin, StartError, Worker, app, failed, level};
use super::{banner, hook};
use crate::config::model::Model;
use crate::observability::control_log::{self, Colour, ControlLog};
use crate::runtime::engine::caps::{EngineKind, check_openat2};
use crate::runtime::mailbox::Wake;

/// Serves until a signal ends it and the drain is over.
///
/// # Errors
/// When it can't start, or when no core is left to serve.
pub fn run(model: Arc<Model>, origin: Origin) -> Result<(), StartError> {
    // Whoever embeds the server may have a log already.
    let log = control_log::init(level(model.server.log_level), Colour::Auto).ok();
    check_openat2().map_err(|what| {
        StartError::other(
            what,
            "Linux 5.6 or later is needed; in a container, a current runtime",
        )
    })?;
    let listeners = bind(&model)?;
    run_logged(model, listeners, origin, log.as_deref())
}

/// Binds every address of the configuration.
///
/// # Errors
/// [`StartError::Listen`] with every address that failed.
fn bind(model: &Model) -> Result<Vec<BoundListener>, StartError> {
    bind::bind(&model.listeners).map_err(StartError::Listen)
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
    let mut worker = Worker::start(&model, listeners, app)?;
    announce(&worker, &model, origin);
    let result = supervise(&mut worker, &signals, &model, origin);
    worker.close();
    result
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
) -> Result<(), StartError> {
    let mut phase = Phase::Serving;
    let mut give_up = None;
    while worker.alive() > 0 {
        wait(signals, &worker.told, give_up);
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
                    worker.tell(Message::Drain { deadline });
                    give_up = Some(deadline + GRACE);
                }
                (_, Phase::Draining) => {
                    phase = Phase::Stopping;
                    tracing::info!("ending at once");
                    worker.tell(Message::Stop);
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
            for (limit, times) in &worker.limits {
                tracing::info!(limit, times, "limit reached");
            }
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

/// Sleeps until a signal or a report has come, or until then.
fn wait(signals: &Signals, told: &Wake, until: Option<Instant>) {
    let timeout = until.and_then(|until| {
        let left = until.saturating_duration_since(Instant::now());
        Timespec::try_from(left).ok()
    });
    let mut fds = [
        PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(told.as_fd(), PollFlags::IN),
    ];
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        // Out of memory for a moment: the caller looks for what there is and comes back.
        Err(errno) => tracing::error!(%errno, "waiting for signals failed"),
    }
}

/// Says what runs and where it listens.
fn announce(worker: &Worker, model: &Model, origin: Origin) {
    let mut engines: Vec<(&(EngineKind, String), usize)> = Vec::new();
    for engine in worker.cores.iter().filter_map(|core| core.engine.as_ref()) {
        match engines.iter_mut().find(|(known, _)| *known == engine) {
            Some((_, cores)) => *cores += 1,
            None => engines.push((engine, 1)),
        }
    }
    for ((kind, reason), cores) in &engines {
        tracing::info!(engine = %kind, reason, cores, "engine");
    }
    for address in &worker.addresses {
        tracing::info!("listening on {address}");
    }
    if origin == Origin::Serve {
        let kinds: Vec<String> = engines
            .iter()
            .map(|((kind, reason), _)| format!("{kind} ({reason})"))
            .collect();
        let engine = kinds.join(" and ");
        let text = banner::started(model, &worker.addresses, &engine, worker.cores.len());
        banner::Stream::of(model).say(&text);
    }
}
