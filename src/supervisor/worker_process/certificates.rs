//! Certificates that the master replaces while a worker serves.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Process;
use crate::config::model::Model;
use crate::handlers::secured::{Identities, SecuredSites};
use crate::supervisor::certificates::{Pem, identities};
use crate::supervisor::core_thread::Message;

/// TLS of the configuration that the cores were handed last.
pub(super) struct Secured {
    /// Its number.
    pub(super) config: u64,
    /// What it says.
    pub(super) model: Arc<Model>,
    /// The certificates that stand in place of its own.
    pub(super) identities: Identities,
    /// What connections are made by.
    pub(super) sites: Arc<SecuredSites>,
    /// Cores that don't know yet.
    pub(super) untold: Vec<usize>,
}

impl Process {
    /// Makes connections by other certificates from now on, on every core.
    pub(super) fn replace_certificates(&mut self, pems: &[Pem]) {
        let new = match identities(pems) {
            Ok(new) => new,
            // The master had checked them.
            Err(why) => return tracing::error!(why, "certificates of the master are no good"),
        };
        let ids: BTreeSet<_> = new.keys().cloned().collect();
        let secured = &mut self.secured;
        secured.identities.extend(new);
        let (model, identities) = (&secured.model, &secured.identities);
        let is_new = |id: &_| ids.contains(id);
        let renewed = secured
            .sites
            .renewed(model, identities, &self.tickets, is_new);
        let Some(sites) = renewed else { return };
        secured.sites = sites;
        secured.untold = self.worker.living();
        self.tell_certificates();
    }

    /// Tells the cores that don't know yet; one that has no room for a message hears it later.
    pub(super) fn tell_certificates(&mut self) {
        let secured = &mut self.secured;
        if secured.untold.is_empty() {
            return;
        }
        let message = Message::Secure(secured.config, Arc::clone(&secured.sites));
        let worker = &mut self.worker;
        secured
            .untold
            .retain(|core| !worker.tell_core(*core, message.clone()));
    }
}
