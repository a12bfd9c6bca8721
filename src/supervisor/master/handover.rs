//! From the master to the program that takes its place, and back into a master there.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::process::Pid;

use super::children::Child;
use super::configuration::Configuration;
use super::machine::{self, ConfigId, Event, Machine};
use super::requests::Requests;
use super::sockets::{Held, Sockets};
use super::upgrade::{self, Handover, Kept};
use super::{Begun, LOG_FLUSH, Master, begin, own_image};
use crate::certificates::Places;
use crate::config::bundle;
use crate::net::socket::SocketFile;
use crate::net::tls::tickets::KeyMaker;
use crate::supervisor::certificates::Keeper;
use crate::supervisor::channel::{Channel, read_blob};
use crate::supervisor::control::server::{ControlServer, Exported};
use crate::supervisor::listen_fds::Inherited;
use crate::supervisor::notify::Notifier;
use crate::supervisor::worker::Origin;

impl Master {
    /// Puts the new binary in the place of this one. When that fails, nothing has changed, and the
    /// machine is told.
    pub(super) fn execute(&mut self) {
        self.accepting.clear();
        self.answer_held(Instant::now());
        let error = match self.try_execute() {
            Ok(error) | Err(error) => error,
        };
        self.new_image = None;
        let why = error.to_string();
        self.events.push_back(Event::ExecFailed { why });
    }

    fn try_execute(&self) -> io::Result<io::Error> {
        let image = self
            .new_image
            .as_ref()
            .ok_or_else(|| io::Error::other("the new binary is gone"))?;
        let control = self
            .control
            .as_ref()
            .map(ControlServer::export)
            .transpose()?;
        // Configurations may share an open log, and every descriptor is named once.
        let logs = self
            .configurations
            .iter()
            .filter_map(|(id, configuration)| {
                let log = configuration.log.as_ref()?;
                Some(log.as_fd().try_clone_to_owned().map(|log| (*id, log)))
            });
        let logs = logs.collect::<io::Result<BTreeMap<u64, OwnedFd>>>()?;
        let mut kept = Kept::default();
        let handover = self.handover(control.as_ref(), &logs, &mut kept)?;
        if let Some(log) = &self.log {
            // The thread that writes the log doesn't survive the exec.
            log.flush(LOG_FLUSH);
        }
        Ok(upgrade::replace(image.as_fd(), &handover, kept))
    }

    fn handover<'m>(
        &'m self,
        control: Option<&'m Exported>,
        logs: &'m BTreeMap<u64, OwnedFd>,
        kept: &mut Kept<'m>,
    ) -> io::Result<Handover> {
        let mut keep = |fd: BorrowedFd<'m>| kept.keep(fd);
        let (held, next_socket, spare) = self.sockets.parts();
        let sockets = held.iter().map(|held| {
            Ok(upgrade::Socket {
                id: held.id,
                key: held.key.clone(),
                address: held.address.clone(),
                fd: keep(held.socket.as_fd())?,
                file: held.file.as_ref().map(|file| file.path().to_owned()),
                inherited: held.inherited,
                dual_stack: held.dual_stack,
                part: held.part,
            })
        });
        let sockets = sockets.collect::<io::Result<_>>()?;
        let spare = spare.iter().map(|spare| {
            Ok(upgrade::Spare {
                name: spare.name.clone(),
                address: spare.address.clone(),
                fd: keep(spare.socket.as_fd())?,
                dual_stack: spare.dual_stack,
            })
        });
        let spare = spare.collect::<io::Result<_>>()?;
        let workers = self.children.iter().map(|child| {
            Ok(upgrade::Worker {
                worker: child.worker,
                generation: child.generation,
                pid: child.pid.as_raw_nonzero().get(),
                channel: keep(child.channel.as_fd())?,
                sockets: child.sockets.iter().copied().collect(),
                addresses: child.addresses.clone().into_iter().collect(),
                log: child.log.clone(),
                config: child.config,
                ready: child.ready.clone(),
            })
        });
        let workers = workers.collect::<io::Result<_>>()?;
        let configurations = self.configurations.iter().map(|(id, configuration)| {
            Ok(upgrade::Configuration {
                id: *id,
                facts: configuration.facts.clone(),
                bundle: keep(configuration.bundle.as_fd())?,
                replaced: configuration.replaced.clone(),
                sockets: configuration.sockets.clone(),
                log: logs.get(id).map(|log| keep(log.as_fd())).transpose()?,
            })
        });
        let configurations = configurations.collect::<io::Result<_>>()?;
        let control = control.map(|control| {
            let listener = keep(control.listener.as_fd())?;
            let callers = control.callers.iter();
            let callers = callers.map(|(caller, fd)| Ok((caller.clone(), keep(fd.as_fd())?)));
            io::Result::Ok(upgrade::Control {
                path: control.path.clone(),
                listener,
                callers: callers.collect::<io::Result<_>>()?,
                next_id: control.next_id,
            })
        });
        Ok(Handover {
            version: upgrade::VERSION,
            from: env!("CARGO_PKG_VERSION").to_owned(),
            machine: self.machine.export(Instant::now()),
            sockets,
            next_socket,
            spare,
            workers,
            configurations,
            in_force: self.in_force,
            next_config: self.next_config,
            control: control.transpose()?,
            questions: self.requests.waiting().collect(),
            words: self.words.clone(),
            ticket_keys: self.ticket_keys.keys().to_vec(),
            input: self.input.clone(),
            started_unix: self.started_unix,
            program: self.program.clone(),
        })
    }

    /// A master from what the one before has left.
    ///
    /// # Errors
    /// What can't be taken over, in words. The workers notice that nobody is there.
    pub(super) fn resume(handover: Handover) -> Result<Self, String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        let configurations = handover
            .configurations
            .into_iter()
            .map(configuration)
            .collect::<Result<BTreeMap<u64, Configuration>, String>>()?;
        let level = configurations
            .values()
            .rev()
            .find_map(|configuration| configuration.loaded.as_ref())
            .map(|loaded| loaded.model.server.log_level);
        // Signals were blocked all along; those that came meanwhile are read now.
        let Begun {
            signals,
            control_log,
            log,
        } = begin(level).map_err(|end| end.text)?;
        let own_image = own_image().map_err(|error| failed("the own program", &error))?;
        let sockets = sockets(handover.sockets, handover.next_socket, handover.spare)
            .map_err(|error| failed("a listening socket", &error))?;
        let children = handover
            .workers
            .into_iter()
            .map(child)
            .collect::<io::Result<Vec<Child>>>()
            .map_err(|error| failed("a worker", &error))?;
        let now = Instant::now();
        let control = handover.control.and_then(|control| {
            let server = control_server(control, now);
            // Callers of before get no answer, and everything else goes on.
            let lost = |error: &io::Error| tracing::error!(%error, "the control socket is lost");
            server.inspect_err(lost).ok()
        });
        let mut machine = Machine::import(machine::Limits::default(), handover.machine, now)
            .map_err(|error| error.to_string())?;
        let actions = machine.resumed(now);
        tracing::info!(
            from = handover.from,
            to = env!("CARGO_PKG_VERSION"),
            "upgraded"
        );
        let mut master = Self {
            machine,
            signals,
            control,
            notify: Notifier::of_this_process(now),
            input: handover.input,
            // What a one-liner says at its start was said.
            origin: Origin::Run,
            program: handover.program,
            own_image,
            new_image: None,
            check: None,
            sockets,
            configurations,
            in_force: handover.in_force,
            next_config: handover.next_config,
            children,
            requests: Requests::default(),
            words: handover.words,
            certificates: Keeper::new(Places::of_this_process()),
            ticket_keys: KeyMaker::from(handover.ticket_keys, now),
            accepting: std::collections::BTreeSet::new(),
            held: Vec::new(),
            events: std::collections::VecDeque::new(),
            started_unix: handover.started_unix,
            told_engines: None,
            announced: Vec::new(),
            end: None,
            notify_ready: true,
            ending: false,
            control_log,
            log,
        };
        master.announced = master.addresses(master.in_force.map(ConfigId));
        master.keep_certificates();
        actions
            .into_iter()
            .for_each(|action| master.perform(action));
        for (caller, request) in handover.questions {
            master.asked(caller, request, now);
        }
        Ok(master)
    }
}

fn configuration(handed: upgrade::Configuration) -> Result<(u64, Configuration), String> {
    let failed = |error: io::Error| format!("a configuration: {error}");
    let content = upgrade::adopt(handed.bundle).map_err(failed)?;
    let log = handed.log.map(upgrade::adopt).transpose().map_err(failed)?;
    // One of the version before may have another form; nothing but its workers need it.
    let loaded = read_blob(&content)
        .ok()
        .and_then(|bytes| bundle::unpack(&bytes).ok());
    let configuration = Configuration {
        facts: handed.facts,
        bundle: Arc::new(content),
        loaded,
        replaced: handed.replaced,
        sockets: handed.sockets,
        log: log.map(Arc::new),
    };
    Ok((handed.id, configuration))
}

fn sockets(
    handed: Vec<upgrade::Socket>,
    next: u32,
    spare: Vec<upgrade::Spare>,
) -> io::Result<Sockets> {
    let held = handed.into_iter().map(|socket| {
        Ok(Held {
            id: socket.id,
            key: socket.key,
            address: socket.address,
            socket: upgrade::adopt(socket.fd)?,
            // One that is gone, or stands for another, is not ours to remove.
            file: socket.file.and_then(|path| SocketFile::at(&path).ok()),
            inherited: socket.inherited,
            dual_stack: socket.dual_stack,
            part: socket.part,
        })
    });
    let held = held.collect::<io::Result<Vec<Held>>>()?;
    let spare = spare.into_iter().map(|spare| {
        Ok(Inherited {
            name: spare.name,
            socket: upgrade::adopt(spare.fd)?,
            address: spare.address,
            dual_stack: spare.dual_stack,
        })
    });
    Ok(Sockets::resume(
        held,
        next,
        spare.collect::<io::Result<_>>()?,
    ))
}

fn child(handed: upgrade::Worker) -> io::Result<Child> {
    let pid = Pid::from_raw(handed.pid).ok_or_else(|| io::Error::other("no process"))?;
    let channel = Channel::of(upgrade::adopt(handed.channel)?)?;
    let mut child = Child::of(
        pid,
        channel,
        handed.worker,
        handed.generation,
        handed.config,
    )?;
    child.sockets = handed.sockets.into_iter().collect();
    child.addresses = handed.addresses.into_iter().collect();
    child.log = handed.log;
    child.ready = handed.ready;
    Ok(child)
}

fn control_server(handed: upgrade::Control, now: Instant) -> io::Result<ControlServer> {
    let callers = handed.callers.into_iter();
    let callers = callers.map(|(caller, fd)| Ok((caller, upgrade::adopt(fd)?)));
    let exported = Exported {
        listener: upgrade::adopt(handed.listener)?,
        path: handed.path,
        callers: callers.collect::<io::Result<_>>()?,
        next_id: handed.next_id,
    };
    ControlServer::import(exported, now)
}
