//! One configuration as the master has it: what it needs to know itself, and the bundle that it hands to
//! its workers unread.
//!
//! An upgrade checks the configuration with the new binary, whose bundle may differ in form from ours.
//! So the new binary tells the facts beside it, and those are all that this master works with.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::machine::Policy;
use crate::config::model::{
    AccessLog, KernelTls, ListenAddr, LogTarget, Model, Place, ServerState, Upstream,
};
use crate::config::sources::Input;
use crate::config::{self, Loaded, bundle};
use crate::supervisor::certificates::{self, Replaced, Wanted, WantedClients};
use crate::supervisor::messages::{SandboxMode, SocketId};
use crate::supervisor::privileges::{self, Identity};
use crate::supervisor::sandbox::{self, Grants};
use crate::supervisor::{refusal, worker};

/// What the master needs to know of a configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::supervisor) struct Facts {
    /// Where to listen, in the order of the model, with the place where it was asked for.
    pub(super) listeners: Vec<(ListenAddr, Place)>,
    /// How many sockets an address gets where that is more than one for all cores. A binary that doesn't
    /// tell is of another version, which is said elsewhere.
    #[serde(default)]
    pub(super) parts: Option<usize>,
    /// Worker processes of a generation.
    pub(super) processes: usize,
    /// How long a worker may take to be ready, in milliseconds.
    pub(super) start_timeout_ms: u64,
    /// How long connections may take to end, in milliseconds.
    pub(super) drain_timeout_ms: u64,
    /// Who the workers become.
    pub(super) identity: Option<Identity>,
    /// What confines them.
    pub(super) sandbox: SandboxMode,
    /// Which files they may use.
    pub(super) grants: Grants,
    /// Whether the kernel may make records of TLS, for which the master has it load its module. A binary that
    /// doesn't tell is of another version.
    #[serde(default)]
    pub(super) kernel_tls: bool,
    /// Where requests are logged.
    pub(super) log: Option<LogTarget>,
    /// Where requests are passed to, in the order of the model. A binary that doesn't tell is of another
    /// version, which is said elsewhere.
    #[serde(default)]
    pub(super) upstreams: Vec<UpstreamFacts>,
    /// Which certificates it has. A binary that doesn't tell is of another version, which is said
    /// elsewhere.
    #[serde(default)]
    pub(super) certificates: Vec<Wanted>,
    /// Which clients with certificates it takes. A binary that doesn't tell is of another version.
    #[serde(default)]
    pub(super) clients: Vec<WantedClients>,
}

/// What the master needs to know of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UpstreamFacts {
    /// Its name.
    pub(super) name: String,
    /// Its servers: what each is called, and what the configuration says of it.
    pub(super) servers: Vec<(String, ServerState)>,
}

impl Facts {
    /// The facts of a configuration that was read here; a one-liner has no file.
    ///
    /// # Errors
    /// Whole lines: a user that doesn't exist, or that this process may not become.
    pub(super) fn of(model: &Model, is_one_liner: bool) -> Result<Self, String> {
        let server = &model.server;
        let (user, group) = (server.user.as_deref(), server.group.as_deref());
        let is_root = rustix::process::geteuid().is_root();
        // Root becomes somebody else only where a file says what is served.
        let stays = is_one_liner && user.is_none() && group.is_none();
        let identity = match stays {
            true => None,
            false => privileges::resolve(user, group, is_root)
                .map_err(|what| refusal::message(&what, None, &[]))?,
        };
        let listeners = model.listeners.iter();
        Ok(Self {
            listeners: listeners
                .map(|listener| (listener.address.clone(), listener.place.clone()))
                .collect(),
            parts: worker::parts_of(server),
            processes: server.processes.get(),
            start_timeout_ms: millis(server.start_timeout),
            drain_timeout_ms: millis(server.drain_timeout),
            identity,
            sandbox: server.sandbox.into(),
            grants: sandbox::grants(model, &server.sandbox_read, &model.spill_directories()),
            kernel_tls: server.ktls != KernelTls::Off,
            log: server
                .access_log
                .as_ref()
                .map(|log: &AccessLog| log.target.clone()),
            upstreams: model.upstreams.iter().map(|it| upstream(it)).collect(),
            certificates: certificates::wanted(model),
            clients: certificates::wanted_clients(model),
        })
    }

    /// What the state machine goes by.
    pub(super) fn policy(&self) -> Policy {
        Policy {
            processes: self.processes,
            start_timeout: Duration::from_millis(self.start_timeout_ms),
            drain_timeout: Duration::from_millis(self.drain_timeout_ms),
        }
    }
}

fn upstream(upstream: &Upstream) -> UpstreamFacts {
    let servers = upstream.servers.iter();
    UpstreamFacts {
        name: upstream.name.to_string(),
        servers: servers
            .map(|server| (server.address.to_string(), server.state))
            .collect(),
    }
}

/// Whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A configuration that was checked.
pub(super) struct Configuration {
    /// What the master knows of it.
    pub(super) facts: Facts,
    /// What the workers get: a sealed memory file.
    pub(super) bundle: Arc<OwnedFd>,
    /// What was read, where it was read by this binary.
    pub(super) loaded: Option<Loaded>,
    /// Certificates and more that stand in place of the bundle's, or that it doesn't have.
    pub(super) replaced: Replaced,
    /// Which socket serves which listener.
    pub(super) sockets: Vec<(SocketId, usize)>,
    /// The access log, open.
    pub(super) log: Option<Arc<OwnedFd>>,
}

/// What checking a configuration has given, before any socket is bound for it.
#[derive(Debug)]
pub(super) struct Checked {
    /// What the master knows of it.
    pub(super) facts: Facts,
    /// The bytes of the bundle.
    pub(super) bundle: Vec<u8>,
    /// What was read, where this binary did it.
    pub(super) loaded: Option<Loaded>,
}

/// Reads and checks the configuration with this binary.
///
/// # Errors
/// Everything that is wrong with it, in whole lines.
pub(super) fn check(input: &Input, coloured: bool) -> Result<Checked, String> {
    let loaded = config::load(input).map_err(|diagnostics| diagnostics.render(coloured))?;
    let facts = Facts::of(&loaded.model, input.file.is_none())?;
    let bundle = bundle::pack(&loaded).map_err(|what| refusal::message(&what, None, &[]))?;
    Ok(Checked {
        facts,
        bundle,
        loaded: Some(loaded),
    })
}

/// Opens the access log.
///
/// # Errors
/// Whole lines.
pub(super) fn open_log(target: &LogTarget) -> Result<OwnedFd, String> {
    let target = worker::target(target);
    target.open().map_err(|error| {
        let help = "its directory has to exist, and the user that starts beltway has to be allowed to \
                    write there";
        let what = format!("can't open the access log {target}: {error}");
        refusal::message(&what, None, &[help.to_owned()])
    })
}
