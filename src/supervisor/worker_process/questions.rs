//! Questions of the master that the cores answer: how it goes, and what the sandbox refuses.

use std::io;
use std::time::{Duration, Instant};

use super::{Process, servers};
use crate::runtime::budget::Level;
use crate::runtime::engine::Forbidden;
use crate::supervisor::control::direct::DirectStatus;
use crate::supervisor::control::kernel_tls::KernelTlsStatus;
use crate::supervisor::control::memory::MemoryStatus;
use crate::supervisor::control::status::{CoreStatus, EpochStatus, ListenerStatus};
use crate::supervisor::core_thread::{Account, Message};
use crate::supervisor::messages::{FromWorker, WorkerReport};
use crate::supervisor::sandbox::{self, Notifier};
use crate::supervisor::worker::Worker;

/// How long the answers of the cores to a question are waited for.
const ANSWERS: Duration = Duration::from_secs(1);

/// A question on its way to the cores.
pub(super) struct Asked {
    pub(super) id: u64,
    pub(super) deadline: Instant,
    pub(super) waiting: Vec<usize>,
    pub(super) kind: Question,
}

pub(super) enum Question {
    Status(Box<WorkerReport>),
    Probe(Vec<sandbox::Attempt>),
}

impl Process {
    pub(super) fn ask(&mut self, id: u64, kind: Question, message: &Message) {
        let waiting = self.worker.tell(message);
        self.asked.push(Asked {
            id,
            deadline: Instant::now() + ANSWERS,
            waiting,
            kind,
        });
        self.answer_late(Instant::now());
    }

    /// Answers the questions that every core has answered, or that have waited long enough.
    pub(super) fn answer_late(&mut self, now: Instant) {
        let done = |asked: &mut Asked| asked.waiting.is_empty() || asked.deadline <= now;
        let ready: Vec<Asked> = self.asked.extract_if(.., done).collect();
        for asked in ready {
            match asked.kind {
                Question::Probe(attempts) => self.say(&FromWorker::Probed {
                    id: asked.id,
                    attempts,
                }),
                Question::Status(mut status) => {
                    for core in &asked.waiting {
                        status.cores.push(silent(*core, &self.worker));
                    }
                    status.cores.sort_by_key(|core| core.core);
                    status.refused += self.refused();
                    complete(&mut status.memory, &self.worker);
                    self.say(&FromWorker::Status {
                        id: asked.id,
                        report: status,
                    });
                }
            }
        }
    }

    /// A core has told how it goes.
    pub(super) fn accounted(&mut self, core: usize, id: u64, account: &Account) {
        if let Some(asked) = self.asked.iter_mut().find(|asked| asked.id == id)
            && let Question::Status(report) = &mut asked.kind
        {
            asked.waiting.retain(|waiting| *waiting != core);
            add(report, core, &self.worker, account);
        }
    }

    /// A core has told what its ring said.
    pub(super) fn tried(&mut self, core: usize, id: u64, results: &[Forbidden]) {
        if let Some(asked) = self.asked.iter_mut().find(|asked| asked.id == id)
            && let Question::Probe(all) = &mut asked.kind
        {
            asked.waiting.retain(|waiting| *waiting != core);
            for attempt in results.iter().map(attempt) {
                // Cores that all say the same say it once.
                if !all.contains(&attempt) {
                    all.push(attempt);
                }
            }
        }
    }

    fn refused(&self) -> u64 {
        self.notifier.as_ref().map_or(0, Notifier::refused)
    }
}

/// Adds what a core has told to what the worker tells.
fn add(report: &mut WorkerReport, core: usize, worker: &Worker, account: &Account) {
    report.cores.push(CoreStatus {
        connections: account.connections as u64,
        requests: account.requests,
        errors: account.errors,
        handshakes: account.handshakes.0,
        handshakes_resumed: account.handshakes.1,
        memory_bytes: account.memory as u64,
        tasks: account.tasks as u64,
        slots: account.slots as u64,
        direct: DirectStatus::of(&account.direct),
        kernel_tls: KernelTlsStatus::of(&account.kernel_tls),
        stalls: account.turns.stalls,
        stalls_long: account.turns.long,
        stalls_worked: account.turns.worked,
        stalls_waited: account.turns.waited,
        stalls_preempted: account.turns.preempted,
        longest_turn_us: u64::try_from(account.turns.longest.as_micros()).unwrap_or(u64::MAX),
        responding: true,
        ..silent(core, worker)
    });
    for (epoch, requests) in &account.epochs {
        let requests = *requests as u64;
        match report.epochs.iter_mut().find(|known| known.epoch == *epoch) {
            Some(known) => known.requests += requests,
            None => report.epochs.push(EpochStatus {
                epoch: *epoch,
                requests,
            }),
        }
    }
    report
        .epochs
        .sort_by_key(|epoch| std::cmp::Reverse(epoch.epoch));
    for (id, open, draining) in &account.listeners {
        let connections = *open as u64;
        match report.listeners.iter_mut().find(|(known, _)| known == id) {
            Some((_, known)) => known.connections += connections,
            None => {
                let status = ListenerStatus {
                    connections,
                    draining: *draining,
                    ..ListenerStatus::default()
                };
                report.listeners.push((*id, status));
            }
        }
    }
    for (limit, times) in &account.limits {
        match report.limits.iter_mut().find(|(known, _)| known == limit) {
            Some((_, known)) => *known += times,
            None => report.limits.push(((*limit).to_owned(), *times)),
        }
    }
    report.refused += account.refused;
    for (name, bytes) in &account.categories {
        report.memory.add(name, *bytes);
    }
    // The worst of all cores.
    if account.level > Level::named(&report.memory.level) {
        report.memory.level = account.level.name().to_owned();
    }
    servers::add(&mut report.upstreams, &account.upstreams);
}

/// Adds to what the cores have told of the memory what is told of the process.
fn complete(memory: &mut MemoryStatus, worker: &Worker) {
    let ledger = &worker.ledger;
    memory.limit_bytes = ledger.limit();
    memory.limit_source = worker.memory_source.to_owned();
    memory.base_bytes = ledger.base();
    memory.used_bytes = ledger.total();
    if memory.level.is_empty() {
        memory.level = Level::Enough.name().to_owned();
    }
    memory.add("outside of cores", ledger.elsewhere());
    memory.add("fragments", ledger.slack());
}

/// What is known of a core without asking it.
fn silent(core: usize, worker: &Worker) -> CoreStatus {
    let engine = worker.cores[core].engine.as_ref();
    CoreStatus {
        core,
        engine: engine.map_or_else(String::new, |(kind, _)| kind.to_string()),
        ..CoreStatus::default()
    }
}

/// What became of an op that the ring may not do.
fn attempt(tried: &Forbidden) -> sandbox::Attempt {
    sandbox::Attempt {
        what: format!("by a ring: {}", tried.what),
        refused: tried.refused(),
        how: match tried.result {
            result if result < 0 => io::Error::from_raw_os_error(-result).to_string(),
            result => format!("it was allowed, and gave {result}"),
        },
    }
}
