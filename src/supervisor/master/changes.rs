//! Changes of the configuration: getting one ready, and what follows when it comes into force or not.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::Master;
use super::check::Check;
use super::configuration::{Checked, Configuration, check, open_log};
use super::machine::{ChangeId, ConfigId, Event, Kind, Placement};
use crate::config::diff;
use crate::config::model::LogTarget;
use crate::supervisor::bind::BoundAddr;
use crate::supervisor::channel::blob;
use crate::supervisor::messages::SocketId;
use crate::supervisor::worker::{Origin, level};
use crate::supervisor::{banner, refusal, sandbox};
use crate::util::clock;

impl Master {
    /// Gets a change ready: a reload and a refresh at once, an upgrade by a check in a child.
    pub(super) fn prepare(&mut self, change: ChangeId, kind: Kind) {
        self.notify.reloading(kind.word());
        self.notify_ready = true;
        if kind == Kind::Upgrade {
            if let Err(text) = self.start_check(change) {
                self.events.push_back(Event::NotPrepared {
                    change,
                    text,
                    code: 1,
                });
            }
            return;
        }
        let prepared = match kind {
            Kind::Refresh => self.made_again(),
            _ => check(&self.input, false),
        };
        let prepared = prepared.map_err(|text| (text, 78));
        self.prepared(change, prepared, None);
    }

    fn start_check(&mut self, change: ChangeId) -> Result<(), String> {
        let path = &self.program;
        let failed = |error: std::io::Error| {
            let what = format!(
                "the new binary {} can't be started: {error}",
                path.display()
            );
            let help = "put the new binary where the running one was started from";
            refusal::message(&what, None, &[help.to_owned()])
        };
        let image = std::fs::File::open(path).map_err(failed)?;
        let check = Check::start(image.as_fd(), &self.input, change).map_err(failed)?;
        self.new_image = Some(image.into());
        self.check = Some(check);
        Ok(())
    }

    pub(super) fn hear_check(&mut self) {
        let Some(check) = &mut self.check else { return };
        let Some(result) = check.result() else { return };
        let change = check.change;
        self.check = None;
        let mut version = None;
        let prepared = result
            .map(|passed| {
                version = Some(passed.version);
                passed.checked
            })
            .map_err(|refused| (refused.text, if refused.configuration { 78 } else { 1 }));
        self.prepared(change, prepared, version);
    }

    /// Binds what a checked configuration needs, and tells the machine how it can come into force.
    /// `version` is the new binary's, for an upgrade.
    fn prepared(
        &mut self,
        change: ChangeId,
        checked: Result<Checked, (String, u8)>,
        version: Option<String>,
    ) {
        let added = checked.and_then(|checked| {
            let policy = checked.facts.policy();
            self.add(checked).map(|config| (config, policy))
        });
        let event = match added {
            Ok((config, policy)) => {
                let reasons = match version {
                    Some(version) => vec![format!("version {version}")],
                    None => self.restart_reasons(config),
                };
                let placement = if reasons.is_empty() {
                    Placement::InPlace
                } else {
                    Placement::NewGeneration(reasons)
                };
                Event::Prepared {
                    change,
                    config,
                    policy,
                    placement,
                }
            }
            Err((text, code)) => {
                self.new_image = None;
                Event::NotPrepared { change, text, code }
            }
        };
        self.events.push_back(event);
    }

    /// Why a configuration can't be served by the workers that run.
    fn restart_reasons(&self, config: ConfigId) -> Vec<String> {
        let (Some(old), Some(new)) = (
            self.in_force.and_then(|id| self.configurations.get(&id)),
            self.configurations.get(&config.0),
        ) else {
            return Vec::new();
        };
        let mut reasons = Vec::new();
        if old.loaded.is_none() || new.loaded.is_none() {
            reasons.push("another version read the configuration in force".to_owned());
        }
        if let (Some(old), Some(new)) = (&old.loaded, &new.loaded) {
            let restart = diff::diff(old, new).restart;
            reasons.extend(
                restart
                    .into_iter()
                    .map(|restart| format!("{}: {}", restart.key, restart.why)),
            );
        }
        if let Err(why) = sandbox::covers(&old.facts.grants, &new.facts.grants) {
            reasons.push(why);
        }
        reasons
    }

    /// Binds and opens what a configuration needs, and keeps it.
    ///
    /// # Errors
    /// Everything that can't be had, and the exit code.
    pub(super) fn add(&mut self, checked: Checked) -> Result<ConfigId, (String, u8)> {
        let Checked {
            facts,
            bundle,
            loaded,
        } = checked;
        for warning in loaded.iter().flat_map(|loaded| &loaded.model.warnings) {
            tracing::warn!("{warning}");
        }
        let log = match &facts.log {
            None => Ok(None),
            Some(target) => match self.log_in_force(target) {
                Some(log) => Ok(Some(log)),
                None => open_log(target).map(|log| Some(Arc::new(log))),
            },
        };
        let made = (self.certificates).begin(&facts.certificates, clock::unix_s());
        let made =
            made.map_err(|problem| refusal::message(&problem.message, None, &[problem.help]));
        let bound = self
            .sockets
            .bind(&facts.listeners, facts.parts)
            .map_err(|errors| {
                let texts = errors
                    .iter()
                    .map(|error| refusal::not_bound(error, self.origin));
                texts.collect::<String>()
            });
        // At the first start it is exit code 1, as for every failure at run time; a reload that
        // can't be served is a bad configuration.
        let code = if self.in_force.is_some() { 78 } else { 1 };
        let failed = |text| (text, code);
        let (log, sockets, replaced) = match (log, bound, made) {
            (Ok(log), Ok(sockets), Ok(made)) => (log, sockets, made),
            (log, bound, made) => {
                let texts = [log.err(), bound.err(), made.err()].into_iter().flatten();
                let text = texts.collect();
                self.release();
                return Err(failed(text));
            }
        };
        for address in self.sockets.otherwise(facts.parts) {
            tracing::warn!(
                %address,
                "open already, it keeps the number of its sockets: `reuseport` and `workers` count for it \
                 after the next start"
            );
        }
        let bundle = blob("beltway-configuration", &bundle)
            .map_err(|error| failed(format!("error: can't hold the configuration: {error}\n")))?;
        let id = self.next_config;
        self.next_config += 1;
        let configuration = Configuration {
            facts,
            bundle: Arc::new(bundle),
            loaded,
            replaced,
            sockets,
            log,
        };
        self.configurations.insert(id, configuration);
        Ok(ConfigId(id))
    }

    /// The access log of the configuration in force, if it is the same.
    fn log_in_force(&self, target: &LogTarget) -> Option<Arc<OwnedFd>> {
        let configuration = self.configurations.get(&self.in_force?)?;
        let same = configuration.facts.log.as_ref() == Some(target);
        configuration.log.clone().filter(|_| same)
    }

    /// A configuration is in force: what only others needed goes.
    pub(super) fn commit(&mut self, config: ConfigId) {
        self.in_force = Some(config.0);
        self.configurations.retain(|id, _| *id == config.0);
        self.release();
        if let Some(configuration) = self.configurations.get(&config.0) {
            self.words.keep_to(&configuration.facts.upstreams);
        }
        self.keep_certificates();
        let configuration = self.configurations.get(&config.0);
        let loaded = configuration.and_then(|configuration| configuration.loaded.as_ref());
        if let (Some(log), Some(loaded)) = (&self.control_log, loaded) {
            log.set_level(level(loaded.model.server.log_level));
        }
        let addresses = self.addresses(Some(config));
        let new: Vec<&BoundAddr> = addresses
            .iter()
            .filter(|address| !self.announced.contains(address))
            .collect();
        let engines = self.engines();
        let newest = self.children.iter().map(|child| child.generation).max();
        if newest > self.told_engines {
            self.told_engines = newest;
            for (engine, reason, cores) in &engines {
                tracing::info!(engine, reason, cores, "engine");
            }
        }
        for address in new {
            let url = address.url(self.is_secured(config, address));
            tracing::info!("listening on {url}");
        }
        if self.announced.is_empty() && self.origin == Origin::Serve {
            self.greet(config, &engines, &addresses);
        }
        self.announced = addresses;
    }

    /// Whether an address of a configuration is under TLS, as far as this binary has read it.
    pub(super) fn is_secured(&self, config: ConfigId, address: &BoundAddr) -> bool {
        let Some(configuration) = self.configurations.get(&config.0) else {
            return false;
        };
        let Some(loaded) = &configuration.loaded else {
            return false;
        };
        let of_address = |id: &SocketId| {
            let held = self.sockets.get(*id);
            held.is_some_and(|held| held.address == *address)
        };
        let used = configuration.sockets.iter().find(|(id, _)| of_address(id));
        let listener = used.and_then(|(_, place)| loaded.model.listeners.get(*place));
        listener.is_some_and(|listener| listener.tls.is_some())
    }

    /// Prints where a one-liner can be opened.
    fn greet(
        &self,
        config: ConfigId,
        engines: &[(String, String, usize)],
        addresses: &[BoundAddr],
    ) {
        let configuration = self.configurations.get(&config.0);
        let Some(loaded) = configuration.and_then(|configuration| configuration.loaded.as_ref())
        else {
            return;
        };
        let kinds = engines
            .iter()
            .map(|(kind, reason, _)| format!("{kind} ({reason})"));
        let engine = kinds.collect::<Vec<_>>().join(" and ");
        let cores = engines.iter().map(|(_, _, cores)| cores).sum();
        let addresses = addresses.iter();
        let shown = addresses.map(|at| (at.clone(), self.is_secured(config, at)));
        let shown: Vec<_> = shown.collect();
        let text = banner::started(&loaded.model, &shown, &engine, cores);
        banner::Stream::of(&loaded.model).say(&text);
    }

    /// Where a configuration listens.
    pub(super) fn addresses(&self, config: Option<ConfigId>) -> Vec<BoundAddr> {
        let configuration = config.and_then(|config| self.configurations.get(&config.0));
        let used = configuration
            .iter()
            .flat_map(|configuration| &configuration.sockets);
        let held = used.filter_map(|(id, _)| self.sockets.get(*id));
        // Several sockets of an address are one for people.
        let firsts = held.filter(|held| held.part.is_none_or(|part| part.index == 0));
        firsts.map(|held| held.address.clone()).collect()
    }

    /// The engines of the newest generation, each with its reason and cores.
    fn engines(&self) -> Vec<(String, String, usize)> {
        let newest = self.children.iter().map(|child| child.generation).max();
        let children = self.children.iter();
        let children = children.filter(|child| Some(child.generation) == newest);
        let mut engines: Vec<(String, String, usize)> = Vec::new();
        let ready = children.filter_map(|child| child.ready.as_ref());
        for (kind, reason, cores) in ready.flat_map(|ready| &ready.engines) {
            match engines
                .iter_mut()
                .find(|it| it.0 == *kind && it.1 == *reason)
            {
                Some(known) => known.2 += cores,
                None => engines.push((kind.clone(), reason.clone(), *cores)),
            }
        }
        engines
    }

    /// Closes the sockets that no configuration uses.
    pub(super) fn release(&mut self) {
        let configurations = self.configurations.values();
        let used: BTreeSet<SocketId> = configurations
            .flat_map(|configuration| configuration.sockets.iter().map(|(id, _)| *id))
            .collect();
        for address in self.sockets.retain(&used) {
            tracing::info!("no longer listening on {address}");
        }
    }
}
