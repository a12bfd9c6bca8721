//! What the control socket asks for: changes go to the state machine, the rest is answered here, some
//! of it after the workers have been asked.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::configuration::{check, open_log};
use super::machine::{self, ConfigId, Event, Outcome, RequestId, WorkerId};
use super::words::Said;
use super::{Child, Master, unix_now};
use crate::config::diff::{self, Difference, Restart};
use crate::config::model::LogTarget;
use crate::supervisor::control::protocol::{
    Command, Reply, Request, RequestId as CallerId, ServerAsk,
};
use crate::supervisor::control::status::{
    ChangeStatus, ExitStatus, GenerationState, GenerationStatus, ListenerStatus, SandboxStatus,
    StatusReport, WorkerStatus,
};
use crate::supervisor::control::upstreams::{self, UpstreamStatus};
use crate::supervisor::messages::{ToWorker, WorkerReport};
use crate::supervisor::sandbox::{self, Attempt, Report, State};
use crate::util::clock;

/// How long the workers' answers are waited for; a worker waits a second for its cores.
const ANSWERS: Duration = Duration::from_secs(2);

/// Most questions to the workers at a time; each comes from one of the control connections, of which
/// there are no more.
const GATHERS_MAX: usize = 32;

/// Questions that wait for answers of workers.
#[derive(Default)]
pub(super) struct Requests {
    next: u64,
    gathers: Vec<Gather>,
}

/// One question.
struct Gather {
    id: u64,
    caller: CallerId,
    kind: Kind,
    waiting: BTreeSet<WorkerId>,
    reports: BTreeMap<WorkerId, WorkerReport>,
    attempts: Vec<Attempt>,
    /// Workers that go by a word.
    set: usize,
    /// Why the health of the server keeps it out all the same, by one of them.
    out: String,
    deadline: Instant,
}

/// What the answers are for.
pub(super) enum Kind {
    Status,
    Plan(Box<Difference>),
    Probe,
    /// Of this upstream, or of all.
    Servers(Option<String>),
    Set(Said),
}

impl Requests {
    /// The questions that wait, for a master that asks them again.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (CallerId, Request)> {
        self.gathers.iter().map(|gather| {
            let request = match &gather.kind {
                Kind::Status => Request::new(Command::Status),
                Kind::Plan(_) => Request::new(Command::Plan),
                Kind::Probe => Request::new(Command::Probe),
                Kind::Servers(upstream) => Request::server(ServerAsk::List {
                    upstream: upstream.clone(),
                }),
                Kind::Set(said) => Request::server(said.ask()),
            };
            (gather.caller, request)
        })
    }

    /// When the first question is answered without those that haven't come.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.gathers.iter().map(|gather| gather.deadline).min()
    }

    /// A worker's status has come.
    pub(super) fn status(&mut self, id: u64, worker: WorkerId, report: WorkerReport) {
        let Some(gather) = self.gathers.iter_mut().find(|gather| gather.id == id) else {
            return;
        };
        gather.waiting.remove(&worker);
        gather.reports.insert(worker, report);
    }

    /// A worker's attempts have come.
    pub(super) fn probed(&mut self, id: u64, worker: WorkerId, attempts: Vec<Attempt>) {
        if let Some(gather) = self.gathers.iter_mut().find(|gather| gather.id == id) {
            gather.waiting.remove(&worker);
            gather.attempts.extend(attempts);
        }
    }

    /// A worker has heard a word. `found`: it has the server, and goes by it.
    pub(super) fn server_set(&mut self, id: u64, worker: WorkerId, found: bool, out: String) {
        if let Some(gather) = self.gathers.iter_mut().find(|gather| gather.id == id) {
            gather.waiting.remove(&worker);
            gather.set += usize::from(found);
            if gather.out.is_empty() {
                gather.out = out;
            }
        }
    }
}

impl Master {
    /// Takes the requests that have come over the control socket.
    pub(super) fn hear_control(&mut self, now: Instant) {
        let Some(control) = &mut self.control else {
            return;
        };
        for (caller, request) in control.ready(now) {
            self.asked(caller, request, now);
        }
    }

    pub(super) fn reply(&mut self, caller: CallerId, reply: &Reply) {
        if let Some(control) = &mut self.control {
            control.answer(caller, reply, Instant::now());
        }
    }

    /// Asks the workers.
    pub(super) fn gather(&mut self, caller: CallerId, kind: Kind, now: Instant) {
        if self.requests.gathers.len() >= GATHERS_MAX {
            let reply = Reply::failed(1, "error: too many questions at a time; try again\n");
            return self.reply(caller, &reply);
        }
        let id = self.requests.next;
        self.requests.next += 1;
        let message = match &kind {
            Kind::Status | Kind::Plan(_) | Kind::Servers(_) => ToWorker::Status { id },
            Kind::Probe => ToWorker::Probe { id },
            Kind::Set(said) => ToWorker::Server {
                id,
                word: said.word(),
            },
        };
        let serving = self.children.iter().filter(|child| child.ready.is_some());
        let mut asked: Vec<WorkerId> = serving.map(|child| child.worker).collect();
        if matches!(kind, Kind::Probe) {
            // The newest says it for all.
            asked = asked.pop().into_iter().collect();
        }
        let told = match &kind {
            // Also those that aren't ready yet, which have had all words of before.
            Kind::Set(said) => {
                self.remember(said);
                self.concerned(said)
            }
            _ => asked.clone(),
        };
        asked.retain(|worker| told.contains(worker));
        for worker in &told {
            self.tell(*worker, &message);
        }
        self.requests.gathers.push(Gather {
            id,
            caller,
            kind,
            waiting: asked.into_iter().collect(),
            reports: BTreeMap::new(),
            attempts: Vec::new(),
            set: 0,
            out: String::new(),
            deadline: now + ANSWERS,
        });
        self.answer_late(now);
    }

    /// Answers the questions for which every worker has answered, has gone, or has had its time.
    pub(super) fn answer_late(&mut self, now: Instant) {
        let living: BTreeSet<WorkerId> = self.children.iter().map(|child| child.worker).collect();
        let done = |gather: &mut Gather| {
            gather.waiting.retain(|worker| living.contains(worker));
            gather.waiting.is_empty() || gather.deadline <= now
        };
        let ready: Vec<Gather> = self.requests.gathers.extract_if(.., done).collect();
        for gather in ready {
            let reply = match gather.kind {
                Kind::Status => {
                    let report = self.status(&gather.reports);
                    Reply::done(report.text()).with_data(report.to_json())
                }
                Kind::Plan(difference) => self.plan(&difference, &gather.reports),
                Kind::Probe => probe_reply(&gather.attempts),
                Kind::Servers(upstream) => {
                    let mut upstreams = self.upstreams(&gather.reports);
                    upstreams.retain(|it| upstream.as_ref().is_none_or(|name| *name == it.name));
                    list_reply(&upstreams)
                }
                Kind::Set(said) => {
                    self.set_reply(&said, (gather.set, &gather.out), gather.waiting.len())
                }
            };
            self.reply(gather.caller, &reply);
        }
    }

    /// Takes a request of the control socket, just come or left by the master before.
    pub(super) fn asked(&mut self, caller: CallerId, request: Request, now: Instant) {
        let id = Some(RequestId(caller.0));
        let event = match request.command {
            Command::Reload => Event::Ask {
                request: id,
                kind: machine::Kind::Reload,
            },
            Command::Upgrade => Event::Ask {
                request: id,
                kind: machine::Kind::Upgrade,
            },
            Command::Stop => Event::Stop {
                at_once: true,
                request: id,
            },
            Command::Quit => Event::Stop {
                at_once: false,
                request: id,
            },
            Command::Reopen => {
                let reply = match self.reopen_logs() {
                    Ok(text) => Reply::done(text),
                    Err(text) => Reply::failed(1, text),
                };
                return self.reply(caller, &reply);
            }
            Command::Status => return self.gather(caller, Kind::Status, now),
            Command::Plan => {
                return match self.difference() {
                    Ok(difference) => self.gather(caller, Kind::Plan(Box::new(difference)), now),
                    Err(reply) => self.reply(caller, &reply),
                };
            }
            Command::Probe => return self.gather(caller, Kind::Probe, now),
            Command::Server => return self.servers(caller, request.server, now),
        };
        self.events.push_back(event);
    }

    /// Opens the access logs again and hands them to the workers.
    ///
    /// # Errors
    /// What went wrong, in whole lines; the old files go on then.
    pub(super) fn reopen_logs(&mut self) -> Result<String, String> {
        let mut errors = String::new();
        let configurations = self.configurations.values();
        let logs = configurations.filter_map(|configuration| configuration.facts.log.clone());
        // A draining worker may log elsewhere than any configuration that is still known.
        let logs = logs.chain(self.children.iter().filter_map(|child| child.log.clone()));
        let mut opened: Vec<(LogTarget, Arc<OwnedFd>)> = Vec::new();
        for target in logs {
            if opened.iter().any(|(known, _)| *known == target) {
                continue;
            }
            match open_log(&target) {
                Ok(fd) => opened.push((target, Arc::new(fd))),
                Err(text) => errors.push_str(&text),
            }
        }
        let of = |target: Option<&LogTarget>| {
            let known = opened.iter().find(|(known, _)| Some(known) == target);
            known.map(|(_, fd)| Arc::clone(fd))
        };
        for configuration in self.configurations.values_mut() {
            if let Some(log) = of(configuration.facts.log.as_ref()) {
                configuration.log = Some(log);
            }
        }
        for child in &self.children {
            let Some(log) = of(child.log.as_ref()) else {
                continue;
            };
            if let Err(error) = child.channel.send(&ToWorker::Reopen, &[log.as_fd()]) {
                errors.push_str(&format!("error: a worker could not be told: {error}\n"));
            }
        }
        if !errors.is_empty() {
            tracing::error!("logs can't be reopened; the old ones go on: {errors}");
            return Err(errors);
        }
        tracing::info!(logs = opened.len(), "logs reopened");
        Ok(match opened.len() {
            0 => "no log file is open\n".to_owned(),
            _ => "logs reopened\n".to_owned(),
        })
    }

    /// What a reload would change, and why it would need a new generation beside the configuration.
    fn difference(&self) -> Result<Difference, Reply> {
        let in_force = self.in_force.and_then(|id| self.configurations.get(&id));
        let Some((facts, old)) = in_force.and_then(|c| Some((&c.facts, c.loaded.as_ref()?))) else {
            let text =
                "error: the configuration in force was read by another version; reload once\n";
            return Err(Reply::failed(1, text));
        };
        let checked = check(&self.input, false).map_err(|text| Reply::failed(78, text))?;
        let new = checked
            .loaded
            .as_ref()
            .ok_or_else(|| Reply::failed(1, "error: nothing was read\n"))?;
        let mut difference = diff::diff(old, new);
        if let Err(why) = sandbox::covers(&facts.grants, &checked.facts.grants) {
            let key = "the sandbox".to_owned();
            difference.restart.push(Restart { key, why });
        }
        Ok(difference)
    }

    fn plan(&self, difference: &Difference, reports: &BTreeMap<WorkerId, WorkerReport>) -> Reply {
        let mut live: BTreeMap<String, u64> = BTreeMap::new();
        for (id, listener) in reports.values().flat_map(|report| &report.listeners) {
            if let Some(held) = self.sockets.get(*id) {
                *live.entry(held.key.to_string()).or_default() += listener.connections;
            }
        }
        let count = |listener: &str| live.get(listener).copied();
        Reply::done(difference.text(&count)).with_data(difference.to_json())
    }

    /// The server as a whole.
    fn status(&self, reports: &BTreeMap<WorkerId, WorkerReport>) -> StatusReport {
        let now = Instant::now();
        let view = self.machine.view();
        let since = |at: Instant| now.saturating_duration_since(at).as_secs();
        let file = self
            .input
            .file
            .as_ref()
            .map(|file| self.input.directory.join(file));
        let mut report = StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: unix_now().saturating_sub(self.started_unix),
            config_file: file.map_or_else(String::new, |file| file.display().to_string()),
            epoch: self.in_force.unwrap_or_default(),
            listeners: self
                .announced
                .iter()
                .map(|address| match self.in_force {
                    Some(config) if self.is_secured(ConfigId(config), address) => {
                        format!("https://{}", address.listen_text())
                    }
                    _ => address.listen_text(),
                })
                .collect(),
            certificates: self.certificates.status(clock::unix_s()),
            client_certificates: self.certificates.clients_status(clock::unix_s()),
            ..StatusReport::default()
        };
        report.waiting_changes = view.waiting;
        report.restarts = view.restarts;
        report.last_exit = view.last_exit.map(|(at, cause)| ExitStatus {
            ago_s: since(at),
            cause,
        });
        report.last_change = view.last_change.map(|(at, kind, outcome)| {
            let (ok, text) = match outcome {
                Outcome::Done { text } => (true, text),
                Outcome::Failed { text, .. } => (false, text),
            };
            let first = text.lines().next().unwrap_or_default();
            ChangeStatus {
                kind: kind.word().to_owned(),
                ago_s: since(at),
                ok,
                text: first.trim_start_matches("error: ").to_owned(),
            }
        });
        for generation in view.generations.iter().rev() {
            let workers = generation.workers.iter().filter_map(|worker| {
                let child = self
                    .children
                    .iter()
                    .find(|child| child.worker == worker.id)?;
                Some(self.worker_status(child, worker.restarts, reports.get(&worker.id)))
            });
            report.generations.push(GenerationStatus {
                id: generation.id.0,
                state: match generation.state {
                    "serving" => GenerationState::Serving,
                    "starting" => GenerationState::Starting,
                    _ => GenerationState::Draining,
                },
                since_s: since(generation.since),
                deadline_s: generation
                    .deadline
                    .map(|at| at.saturating_duration_since(now).as_secs()),
                workers: workers.collect(),
            });
        }
        for (name, times) in reports.values().flat_map(|report| &report.limits) {
            *report.limits.entry(name.clone()).or_default() += times;
        }
        report.upstreams = self.upstreams(reports);
        report
    }

    /// What the workers tell of upstreams, those that serve before those that don't.
    fn upstreams(&self, reports: &BTreeMap<WorkerId, WorkerReport>) -> Vec<UpstreamStatus> {
        let view = self.machine.view();
        let (serving, others): (Vec<_>, Vec<_>) = view
            .generations
            .iter()
            .partition(|generation| generation.state == "serving");
        let mut all = Vec::new();
        for (generations, serve) in [(serving, true), (others, false)] {
            let workers = generations.iter().flat_map(|it| &it.workers);
            for report in workers.filter_map(|worker| reports.get(&worker.id)) {
                upstreams::join(&mut all, &report.upstreams, serve);
            }
        }
        all
    }

    fn worker_status(
        &self,
        child: &Child,
        restarts: u64,
        report: Option<&WorkerReport>,
    ) -> WorkerStatus {
        let pid = child.pid.as_raw_nonzero().get().unsigned_abs();
        let ready = child.ready.as_ref();
        let engine = ready.and_then(|ready| ready.engines.first());
        let mut status = WorkerStatus {
            pid,
            restarts,
            engine: engine.map_or_else(String::new, |(engine, _, _)| engine.clone()),
            engine_reason: engine.map_or_else(String::new, |(_, reason, _)| reason.clone()),
            tuning: ready.map_or_else(String::new, |ready| ready.tuning.clone()),
            kernel_tls: ready.map_or_else(String::new, |ready| ready.kernel_tls.clone()),
            sandbox: ready
                .map(|ready| sandbox_status(&ready.sandbox))
                .unwrap_or_default(),
            rss_bytes: resident(pid),
            ..WorkerStatus::default()
        };
        let Some(report) = report else {
            if ready.is_some() {
                status.kept_by = "it does not answer".to_owned();
            }
            return status;
        };
        status.cores = report.cores.clone();
        status.epochs = report.epochs.clone();
        status.sandbox.refused = report.refused;
        status.memory = report.memory.clone();
        for (id, listener) in &report.listeners {
            let address = child.addresses.get(id).cloned();
            let address = address.unwrap_or_else(|| "a removed listener".to_owned());
            let same = |it: &&mut ListenerStatus| {
                it.address == address && it.draining == listener.draining
            };
            // Several sockets of an address are one for people.
            match status.listeners.iter_mut().find(same) {
                Some(known) => known.connections += listener.connections,
                None => status.listeners.push(ListenerStatus {
                    address,
                    ..listener.clone()
                }),
            }
        }
        status
    }
}

fn sandbox_status(report: &Report) -> SandboxStatus {
    let text = State::to_string;
    SandboxStatus {
        user: report.user.clone(),
        files: text(&report.files),
        rings: text(&report.rings),
        calls: text(&report.calls),
        refused: report.refused,
        missing: sandbox::missing(report),
    }
}

/// Resident memory of a process in bytes (proc_pid_statm(5)); 0 for one that is gone.
fn resident(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or_default() * rustix::param::page_size() as u64
}

fn list_reply(list: &[UpstreamStatus]) -> Reply {
    let text = match list {
        [] => "no request is passed to anybody: there is no upstream\n".to_owned(),
        list => upstreams::text(list).trim_start().to_owned(),
    };
    Reply::done(text).with_data(serde_json::json!({ "upstreams": list }))
}

/// What became of each attempt; it fails when one wasn't refused.
fn probe_reply(attempts: &[Attempt]) -> Reply {
    if attempts.is_empty() {
        return Reply::failed(1, "error: no worker has answered\n");
    }
    let lines = attempts.iter().map(|attempt| {
        let outcome = if attempt.refused {
            "refused"
        } else {
            "ALLOWED"
        };
        format!("{outcome}  {}: {}\n", attempt.what, attempt.how)
    });
    let text: String = lines.collect();
    let data = serde_json::to_value(attempts).unwrap_or_default();
    let exit = u8::from(attempts.iter().any(|attempt| !attempt.refused));
    Reply::failed(exit, text).with_data(data)
}
