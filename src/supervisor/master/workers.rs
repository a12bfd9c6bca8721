//! Workers, as the master deals with them: what they say, and what they are told.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::Instant;

use super::Master;
use super::children::Child;
use super::machine::{ConfigId, Event, GenerationId, Image, WorkerId};
use super::sockets::Sockets;
use crate::runtime::kernel_tls::load_kernel_tls;
use crate::supervisor::channel::ChannelError;
use crate::supervisor::messages::{FromWorker, Next, SocketId, Start, ToWorker};

impl Master {
    pub(super) fn child(&mut self, worker: WorkerId) -> Option<&mut Child> {
        self.children
            .iter_mut()
            .find(|child| child.worker == worker)
    }

    pub(super) fn hear_children(&mut self) {
        let mut gone = BTreeSet::new();
        for index in 0..self.children.len() {
            // What it said before its end comes before the end.
            let ended = self.children[index].ended();
            self.hear_child(index);
            if let Some(cause) = ended {
                let child = &self.children[index];
                let worker = child.worker;
                gone.insert(worker);
                let cause = format!("process {}, {cause}", child.pid.as_raw_nonzero());
                self.events.push_back(Event::Exited { worker, cause });
            }
        }
        self.children.retain(|child| !gone.contains(&child.worker));
        if !gone.is_empty() {
            self.accept_again();
        }
    }

    /// Has the workers look at their accept queues: one of them has let go of sockets that others
    /// accept from, too.
    fn accept_again(&self) {
        for child in &self.children {
            // To one that is gone, or takes nothing, it makes no difference.
            let _ = child.channel.send(&ToWorker::AcceptAgain, &[]);
        }
    }

    fn hear_child(&mut self, index: usize) {
        loop {
            let child = &mut self.children[index];
            if child.silent {
                return;
            }
            let worker = child.worker;
            match child.channel.receive::<FromWorker>() {
                Ok(None) => return,
                Ok(Some((message, _))) => self.told(index, message),
                Err(ChannelError::Unknown(what)) => {
                    tracing::error!(?worker, what, "a message of a worker was not understood");
                }
                // Its end comes through the process descriptor.
                Err(_) => {
                    child.silent = true;
                    return;
                }
            }
        }
    }

    fn told(&mut self, index: usize, message: FromWorker) {
        let child = &mut self.children[index];
        let worker = child.worker;
        let event = match message {
            FromWorker::Ready(ready) => {
                child.ready = Some(*ready);
                Event::Ready { worker }
            }
            FromWorker::Failed(failed) => Event::Failed {
                worker,
                permanent: failed.permanent,
                why: within(&failed.text),
            },
            FromWorker::Applied { config } => Event::Applied {
                worker,
                config: ConfigId(config),
            },
            FromWorker::NotApplied { config, why } => Event::NotApplied {
                worker,
                config: ConfigId(config),
                why: within(&why),
            },
            FromWorker::CoreLost { core, why, stalls } => Event::CoreLost {
                worker,
                core,
                why,
                stalls,
            },
            FromWorker::Draining => {
                self.accepting.remove(&worker);
                self.accept_again();
                return;
            }
            FromWorker::Drained { cut } => {
                tracing::info!(
                    pid = child.pid.as_raw_nonzero().get(),
                    cut,
                    "a worker has drained"
                );
                Event::Drained { worker }
            }
            FromWorker::Status { id, report } => {
                self.requests.status(id, worker, *report);
                return;
            }
            FromWorker::Probed { id, attempts } => {
                self.requests.probed(id, worker, attempts);
                return;
            }
            FromWorker::ServerSet { id, found, out } => {
                self.requests.server_set(id, worker, found, out);
                return;
            }
        };
        self.events.push_back(event);
    }

    /// Starts a worker and gives it its sockets and its configuration.
    pub(super) fn spawn(
        &mut self,
        worker: WorkerId,
        generation: GenerationId,
        config: ConfigId,
        image: Image,
    ) {
        if let Err(why) = self.try_spawn(worker, generation, config, image) {
            tracing::error!(?worker, why, "a worker can't be started");
            if let Some(child) = self.child(worker) {
                // Its end is told like any other.
                child.kill();
            } else {
                let cause = format!("it could not be started: {why}");
                self.events.push_back(Event::Exited { worker, cause });
            }
        }
    }

    fn try_spawn(
        &mut self,
        worker: WorkerId,
        generation: GenerationId,
        config: ConfigId,
        image: Image,
    ) -> Result<(), String> {
        let configuration = self
            .configurations
            .get(&config.0)
            .ok_or("its configuration is gone")?;
        let image = match (image, &self.new_image) {
            (Image::New, Some(image)) => image.as_fd(),
            (Image::New, None) => return Err("the new binary is gone".to_owned()),
            (Image::Own, _) => self.own_image.as_fd(),
        };
        let child =
            Child::start(image, worker, generation, config.0).map_err(|error| error.to_string())?;
        tracing::info!(
            pid = child.pid.as_raw_nonzero().get(),
            generation = generation.0,
            epoch = config.0,
            "worker started"
        );
        if configuration.facts.kernel_tls {
            // The kernel loads its module for whoever has `CAP_NET_ADMIN`, which no worker has. What comes
            // of it the worker finds out.
            load_kernel_tls();
        }
        self.children.push(child);
        let child = self.children.last_mut().ok_or("it is gone")?;
        let facts = &configuration.facts;
        child.log.clone_from(&facts.log);
        let start = Start {
            generation: generation.0,
            next: Next {
                config: config.0,
                listeners: configuration.sockets.clone(),
                replaced: configuration.replaced.clone(),
                words: self.words.of(&configuration.facts.upstreams),
            },
            identity: facts.identity.clone(),
            sandbox: facts.sandbox,
            grants: facts.grants.clone(),
            logs: configuration.log.is_some(),
            ticket_keys: self.ticket_keys.keys().to_vec(),
        };
        let mut descriptors = vec![configuration.bundle.as_fd()];
        descriptors.extend(configuration.log.iter().map(|log| log.as_fd()));
        give(&self.sockets, child, &configuration.sockets)
            .and_then(|()| {
                child
                    .channel
                    .send(&ToWorker::Start(Box::new(start)), &descriptors)
            })
            .map_err(|error| error.to_string())
    }

    /// Tells a worker to take another configuration.
    pub(super) fn apply(&mut self, worker: WorkerId, config: ConfigId) {
        let sockets = &self.sockets;
        let child = self
            .children
            .iter_mut()
            .find(|child| child.worker == worker);
        let (Some(child), Some(configuration)) = (child, self.configurations.get(&config.0)) else {
            return;
        };
        let next = Next {
            config: config.0,
            listeners: configuration.sockets.clone(),
            replaced: configuration.replaced.clone(),
            words: self.words.of(&configuration.facts.upstreams),
        };
        let told = give(sockets, child, &configuration.sockets).and_then(|()| {
            let bundle = configuration.bundle.as_fd();
            child.channel.send(&ToWorker::Reload(next), &[bundle])
        });
        match told {
            Ok(()) => {
                child.config = config.0;
                let used = configuration.sockets.iter().map(|(id, _)| *id);
                child.sockets = used.collect();
            }
            Err(error) => {
                let why = error.to_string();
                let event = Event::NotApplied {
                    worker,
                    config,
                    why,
                };
                self.events.push_back(event);
            }
        }
    }

    /// Renews the keys of session tickets when it is time, for all workers at once: also for those that
    /// drain, whose sessions go on elsewhere.
    pub(super) fn renew_ticket_keys(&mut self, now: Instant) {
        if !self.ticket_keys.renew(now) {
            return;
        }
        let keys = ToWorker::TicketKeys(self.ticket_keys.keys().to_vec());
        let workers: Vec<WorkerId> = self.children.iter().map(|child| child.worker).collect();
        for worker in workers {
            self.tell(worker, &keys);
        }
    }

    /// Says something to a worker. One that can't be told is beyond help.
    pub(super) fn tell(&mut self, worker: WorkerId, message: &ToWorker) {
        if let Some(child) = self.child(worker)
            && let Err(error) = child.channel.send(message, &[])
            && !matches!(error, ChannelError::Closed)
        {
            tracing::error!(?worker, %error, "a worker doesn't listen; it is killed");
            child.kill();
        }
    }
}

/// An error of a worker, to stand within a sentence of the master.
fn within(text: &str) -> String {
    text.strip_prefix("error: ")
        .unwrap_or(text)
        .trim_end()
        .to_owned()
}

/// Gives a worker the sockets that a configuration uses.
fn give(
    sockets: &Sockets,
    child: &mut Child,
    used: &[(SocketId, usize)],
) -> Result<(), ChannelError> {
    for held in used.iter().filter_map(|(id, _)| sockets.get(*id)) {
        child.addresses.insert(held.id, held.address.listen_text());
    }
    let held = used.iter().filter_map(|(id, _)| sockets.get(*id));
    child.give(held.map(|held| ((held.id, held.part), held.socket.as_fd())))
}
