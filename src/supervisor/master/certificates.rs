//! The certificates of the configurations, as the master drives them: what the keeper finds goes to every
//! worker, and to those that are started later.

use std::time::Instant;

use super::Master;
use super::configuration::{Checked, Facts};
use super::machine::{Event, Kind, WorkerId};
use crate::config::bundle;
use crate::supervisor::messages::ToWorker;
use crate::supervisor::refusal;
use crate::util::clock;

impl Master {
    /// Watches the certificates of the configuration in force, and no others.
    pub(super) fn keep_certificates(&mut self) {
        let in_force = self.in_force.and_then(|id| self.configurations.get(&id));
        // What another version has read, its master will watch.
        let Some((configuration, loaded)) = in_force.and_then(|it| Some((it, it.loaded.as_ref()?)))
        else {
            return;
        };
        let wanted = (
            &*configuration.facts.certificates,
            &*configuration.facts.clients,
        );
        let in_use = (&configuration.replaced, &*loaded.model);
        let now = (Instant::now(), clock::unix_s());
        self.certificates.take(wanted, in_use, now);
    }

    /// Hands on what was replaced or renewed: to all workers, also to those that drain, and to the
    /// configurations that have it, for workers to come.
    pub(super) fn renew_certificates(&mut self, now: Instant) {
        let new = self.certificates.turn(now, clock::unix_s());
        self.refresh();
        if new.is_empty() {
            return;
        }
        for configuration in self.configurations.values_mut() {
            let facts = &configuration.facts;
            let mut of_this = new.clone();
            of_this.keep(&facts.certificates, &facts.clients);
            if let Some(loaded) = &mut configuration.loaded {
                // What a reload would change is told by what is in use.
                of_this.refer(&facts.certificates, &mut loaded.references);
            }
            configuration.replaced.put(of_this);
        }
        let workers: Vec<WorkerId> = self.children.iter().map(|child| child.worker).collect();
        let message = ToWorker::Certificates(new);
        for worker in workers {
            self.tell(worker, &message);
        }
    }

    /// Has the configuration in force made again with what files of upstreams hold by now, if some were
    /// replaced.
    fn refresh(&mut self) {
        let texts = self.certificates.take_of_upstreams();
        let in_force = self
            .in_force
            .and_then(|id| self.configurations.get_mut(&id));
        let loaded = in_force.and_then(|configuration| configuration.loaded.as_mut());
        if texts.is_empty() {
            return;
        }
        let Some(loaded) = loaded else { return };
        loaded.references.pem.extend(texts);
        self.events.push_back(Event::Ask {
            request: None,
            kind: Kind::Refresh,
        });
    }

    /// The configuration in force with what is known of its files by now: no file is read.
    ///
    /// # Errors
    /// Whole lines: why it can't be made again.
    pub(super) fn made_again(&self) -> Result<Checked, String> {
        let refused = |what: &str| refusal::message(what, None, &[]);
        let in_force = self.in_force.and_then(|id| self.configurations.get(&id));
        let loaded = in_force.and_then(|configuration| configuration.loaded.as_ref());
        let loaded = loaded.ok_or_else(|| refused("another version read the configuration"))?;
        let bytes = bundle::pack(loaded).map_err(|what| refused(&what))?;
        let loaded = bundle::unpack(&bytes)?;
        Ok(Checked {
            facts: Facts::of(&loaded.model, self.input.file.is_none())?,
            bundle: bytes,
            loaded: Some(loaded),
        })
    }
}
