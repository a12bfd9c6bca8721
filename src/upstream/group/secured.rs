//! How the servers of an upstream are connected to that are under TLS, on one core.

use std::rc::Rc;

use super::Group;
use crate::config::model::Upstream;
use crate::net::tls::{ClientSettings, PeerName};

/// What connections are made by, sessions that can be resumed included.
pub(super) struct SecuredServers {
    settings: ClientSettings,
    /// For each server of the settings.
    names: Box<[Option<PeerName>]>,
}

impl SecuredServers {
    /// For this upstream; `before`: the same one of the configuration before, with what was negotiated.
    pub(super) fn new(upstream: &Upstream, before: Option<&Group>) -> Option<Rc<Self>> {
        let terms = &upstream.tls.as_ref()?.terms;
        if let Some(before) = before {
            let old = before.roster.settings();
            if old.tls == upstream.tls && old.servers == upstream.servers {
                return before.secured.clone();
            }
        }
        let servers = upstream.servers.len();
        Some(Rc::new(Self {
            settings: ClientSettings::new(terms, servers),
            names: (0..servers).map(|at| upstream.peer_name(at)).collect(),
        }))
    }
}

/// Whether connections of one configuration are as those of the other would be.
pub(super) fn connects_alike(one: &Upstream, other: &Upstream) -> bool {
    one.source == other.source && one.tls == other.tls
}

impl Group {
    /// What a connection to this server, by its place in the settings, is made by, and the name that it
    /// has to have; `None` where it isn't under TLS.
    pub fn secured(&self, server: usize) -> Option<(&ClientSettings, &PeerName)> {
        let secured = self.secured.as_ref()?;
        let name = secured.names.get(server)?.as_ref()?;
        Some((&secured.settings, name))
    }
}
