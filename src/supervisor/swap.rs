//! A configuration on its way to the cores, with the sockets that it listens on.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use super::bind::Part;
use super::messages::SocketId;
use crate::config::model::Model;
use crate::handlers::secured::{Replacements, SecuredSites};
use crate::net::listener::Listening;
use crate::net::tls::tickets::Tickets;
use crate::upstream::roster::Rosters;

/// Another configuration.
#[derive(Debug)]
pub(super) struct Swap {
    /// Its number.
    pub(super) epoch: u64,
    /// What it says.
    pub(super) model: Arc<Model>,
    /// Its upstreams, at work.
    pub(super) rosters: Arc<Rosters>,
    /// Its TLS, at work.
    pub(super) secured: Arc<SecuredSites>,
    /// Its sockets.
    pub(super) listeners: Vec<Serving>,
}

impl Swap {
    /// What a core is to know of the sockets that it doesn't know yet.
    pub(super) fn listenings(&self, known: &[Rc<Listening>]) -> Vec<Rc<Listening>> {
        let new = |it: &&Serving| !known.iter().any(|known| known.id() == it.id);
        let new = self.listeners.iter().filter(new);
        new.map(|it| Listening::new(it.id)).collect()
    }

    /// The sockets of this configuration, each with its place in the model.
    pub(super) fn placed(&self, listening: &[Rc<Listening>]) -> Vec<(Rc<Listening>, usize)> {
        let of = |it: &Serving| {
            let listening = listening.iter().find(|known| known.id() == it.id)?;
            Some((Rc::clone(listening), it.listener))
        };
        self.listeners.iter().filter_map(of).collect()
    }
}

/// What is known of TLS beside a configuration with these sockets.
pub(super) fn secured(
    model: &Model,
    replacements: &Replacements,
    tickets: &Tickets,
    sockets: &[Serving],
) -> Arc<SecuredSites> {
    SecuredSites::new(model, replacements, tickets, |listener| {
        let serving = sockets.iter().find(|it| it.listener == listener)?;
        let address = rustix::net::getsockname(&*serving.socket).ok()?;
        SocketAddr::try_from(address).ok().map(|at| at.port())
    })
}

/// A listening socket and what it is for.
#[derive(Clone, Debug)]
pub(super) struct Serving {
    /// Its number, the same in every configuration that has it.
    pub(super) id: SocketId,
    /// The place of its listener in the model.
    pub(super) listener: usize,
    /// The socket.
    pub(super) socket: Arc<OwnedFd>,
    /// Which one it is, where its address has one for each core.
    pub(super) part: Option<Part>,
}
