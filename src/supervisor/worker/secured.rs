//! TLS of what the cores serve, while its certificates are replaced.

use std::sync::Arc;

use super::Worker;
use crate::config::model::Model;
use crate::handlers::secured::{Replacements, SecuredSites};
use crate::net::tls::tickets::Tickets;
use crate::supervisor::core_thread::Message;

/// TLS of the configuration that the cores were handed last.
pub(in crate::supervisor) struct Secured {
    /// Its number.
    pub(in crate::supervisor) config: u64,
    /// What it says.
    pub(in crate::supervisor) model: Arc<Model>,
    /// What stands in place of what it says.
    pub(in crate::supervisor) replacements: Replacements,
    /// What connections are made by.
    pub(in crate::supervisor) sites: Arc<SecuredSites>,
    /// Cores that don't know yet.
    pub(in crate::supervisor) untold: Vec<usize>,
}

impl Secured {
    /// Makes connections by these from now on, on every core that is told.
    pub(in crate::supervisor) fn replace(
        &mut self,
        new: Replacements,
        tickets: &Tickets,
        worker: &Worker,
    ) {
        self.replacements.extend(new.clone());
        let (model, replacements) = (&self.model, &self.replacements);
        if let Some(sites) = self.sites.renewed(model, replacements, tickets, &new) {
            self.sites = sites;
            self.untold = worker.living();
        }
    }

    /// Tells the cores that don't know yet; one that has no room for a message hears it later.
    pub(in crate::supervisor) fn tell(&mut self, worker: &mut Worker) {
        if self.untold.is_empty() {
            return;
        }
        let message = Message::Secure(self.config, Arc::clone(&self.sites));
        self.untold
            .retain(|core| !worker.tell_core(*core, message.clone()));
    }
}
