//! What a master would hold of TLS, for a server without one: certificates, their keys, and the keys of
//! session tickets.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use super::EPOCH;
use crate::certificates::Places;
use crate::config::model::Model;
use crate::net::tls::tickets::{KeyMaker, Tickets};
use crate::supervisor::certificates::{Keeper, wanted, wanted_clients};
use crate::supervisor::swap::{self, Serving};
use crate::supervisor::worker::{Secured, StartError, Worker};
use crate::util::clock;

/// The secrets of a server without a master.
pub(super) struct Secrets {
    keeper: Keeper,
    ticket_keys: KeyMaker,
    tickets: Tickets,
    /// What connections are made by.
    pub(super) secured: Secured,
}

impl Secrets {
    /// Those of this configuration. What the local authority has to sign is signed.
    ///
    /// # Errors
    /// When it can't, or when there is no randomness.
    pub(super) fn new(model: Arc<Model>, serving: &[Serving]) -> Result<Self, StartError> {
        let now = Instant::now();
        let ticket_keys =
            KeyMaker::new(now).map_err(|error| StartError::other(error.to_string(), ""))?;
        let tickets = Tickets::default();
        tickets.install(ticket_keys.keys());
        let wanted = wanted(&model);
        let mut keeper = Keeper::new(Places::of_this_process());
        let replaced = keeper
            .begin(&wanted, clock::unix_s())
            .map_err(|problem| StartError::other(problem.message, problem.help))?;
        let replacements = replaced
            .made()
            .map_err(|what| StartError::other(what, ""))?;
        let clients = wanted_clients(&model);
        let now_s = clock::unix_s();
        keeper.take((&wanted, &clients), (&replaced, &model), (now, now_s));
        Ok(Self {
            secured: Secured {
                config: EPOCH,
                sites: swap::secured(&model, &replacements, &tickets, serving),
                model,
                replacements,
                untold: Vec::new(),
            },
            keeper,
            ticket_keys,
            tickets,
        })
    }

    /// When [`Secrets::renew`] has something to do.
    pub(super) fn deadline(&self) -> Instant {
        let tickets = self.ticket_keys.renew_at();
        let certificates = self.keeper.deadline();
        certificates.map_or(tickets, |at| at.min(tickets))
    }

    /// Readable when [`Secrets::renew`] has something to do.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.keeper.fds()
    }

    /// Renews what it is time for, and tells the cores.
    pub(super) fn renew(&mut self, worker: &mut Worker, now: Instant) {
        if self.ticket_keys.renew(now) {
            self.tickets.install(self.ticket_keys.keys());
        }
        let new = self.keeper.turn(now, clock::unix_s());
        if !new.is_empty() {
            match new.made() {
                Ok(new) => self.secured.replace(new, &self.tickets, worker),
                // They were checked.
                Err(why) => tracing::error!(why, "a certificate is no good"),
            }
        }
        self.secured.tell(worker);
    }
}
