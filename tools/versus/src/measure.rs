//! Runs the programme: every peer after every other, again and again.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::Permissions;
use std::io::{self, IsTerminal};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::backend;
use crate::body;
use crate::certificate::Certificate;
use crate::generate::{Group, Report};
use crate::interrupt;
use crate::launch::{self, Server};
use crate::peers::proxies::clients_max;
use crate::peers::{Backend, Peer, Site};
use crate::stalls::Stalls;
use crate::workload::{Cores, Pace, Run, Variants, Via, Workload};
use crate::wrk;

/// Descriptors of the generator, the backend and a server of files that are not connections, at most.
const OTHER_DESCRIPTORS: u64 = 64;
/// Memory hardly differs from round to round.
const IDLE_ROUNDS_MAX: usize = 3;

/// How everything is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Times that each peer is measured.
    pub rounds: usize,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// Seconds before each.
    pub warm_up: f64,
    /// The servers' core.
    pub server_cpu: usize,
    /// The cores of a server that has all.
    pub all_cpus: Vec<usize>,
    /// The generator's.
    pub client_cpu: usize,
    /// Descriptors that this user's processes may have.
    pub descriptors: u64,
    /// The directory in which the files are made.
    pub directory: PathBuf,
    /// The program wrk, where it is asked for a second opinion.
    pub wrk: Option<PathBuf>,
}

/// What was found of one peer under one workload.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// One for each round that succeeded.
    pub reports: Vec<Report>,
    /// Why the peer can't do what is measured, which is no fault.
    pub lacks: Option<String>,
    /// Why a round failed; then the peer is left out of the rest of the workload.
    pub failure: Option<String>,
    /// Requests per second by wrk.
    pub wrk: Option<f64>,
}

/// Files to serve, and servers of them or proxies before them.
pub struct Bench {
    plan: Plan,
    peers: Vec<Peer>,
    files: TempDir,
    /// What proxies stand in front of; runs from the first workload of theirs on.
    backend: Option<Server>,
    /// How the servers that run were set up.
    setup: Option<(Via, Cores, bool, Variants)>,
    certificate: Certificate,
    servers: Vec<Result<Server, String>>,
    lengths: BTreeSet<u64>,
}

impl Bench {
    /// Writes the files of these workloads. No server runs yet.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new(plan: Plan, peers: Vec<Peer>, workloads: &[Workload]) -> io::Result<Self> {
        let files = tempfile::Builder::new()
            .prefix("versus-")
            // Servers that run as another user than root's must be able to read.
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(&plan.directory)?;
        let root = files.path().join("root");
        std::fs::create_dir(&root)?;
        let lengths: BTreeSet<u64> = workloads.iter().flat_map(Workload::lengths).collect();
        for len in &lengths {
            body::write_file(&root, *len)?;
        }
        for place in 0..peers.len() {
            std::fs::create_dir(files.path().join(place.to_string()))?;
        }
        let certificate = Certificate::new(files.path())?;
        Ok(Self {
            plan,
            peers,
            certificate,
            files,
            backend: None,
            setup: None,
            servers: Vec::new(),
            lengths,
        })
    }

    /// Where the files are.
    pub fn root(&self) -> PathBuf {
        self.files.path().join("root")
    }

    /// Measures one workload, peers interleaved, and returns what was found in the peers' order.
    ///
    /// # Errors
    /// When the run was interrupted, or the backend didn't start: a peer that fails has that in its place.
    pub fn measure(&mut self, workload: &Workload) -> io::Result<Vec<Measured>> {
        let mut measured: Vec<Measured> = self
            .peers
            .iter()
            .map(|peer| Measured {
                lacks: peer.lacks(workload, self.plan.all_cpus.len()),
                ..Measured::default()
            })
            .collect();
        let idle = matches!(workload.run, Run::Idle { .. });
        let rounds = match idle {
            true => self.plan.rounds.min(IDLE_ROUNDS_MAX),
            false => self.plan.rounds,
        };
        self.set_up(workload, idle)?;
        for round in 0..rounds {
            for (place, found) in measured.iter_mut().enumerate() {
                if found.failure.is_some() || found.lacks.is_some() {
                    continue;
                }
                let peer = self.peers[place].name;
                progress(&format!(
                    "{}, round {} of {rounds}: {peer}",
                    workload.title,
                    round + 1
                ));
                match self.once(place, workload, idle) {
                    Ok(report) => found.reports.push(report),
                    Err(error) => found.failure = Some(error.to_string()),
                }
                interrupt::check()?;
            }
        }
        if let (Some(wrk), false) = (
            self.plan.wrk.clone(),
            idle || workload.pace != Pace::Closed { depth: 1 } || workload.tls.is_some(),
        ) {
            self.ask_wrk(&wrk, workload, &mut measured)?;
        }
        progress("");
        Ok(measured)
    }

    /// Starts what this workload needs and ends what is set up otherwise. A measurement of idle
    /// connections starts its server itself, in the directory of the one that ran.
    fn set_up(&mut self, workload: &Workload, idle: bool) -> io::Result<()> {
        let setup = Some((
            workload.via,
            workload.cores,
            workload.tls.is_some(),
            workload.variants,
        ));
        if idle || self.setup != setup {
            self.servers.clear();
            self.setup = setup;
        }
        if matches!(workload.via, Via::Proxy { .. }) && self.backend.is_none() {
            self.backend = Some(self.start_backend()?);
        }
        if !idle && self.servers.is_empty() {
            self.servers = (0..self.peers.len())
                .map(|place| self.start(place).map_err(|error| error.to_string()))
                .collect();
            interrupt::check()?;
        }
        Ok(())
    }

    /// One measurement of one peer. A server for idle connections is a fresh one: memory that earlier
    /// connections left would be taken again unseen.
    fn once(&mut self, place: usize, workload: &Workload, idle: bool) -> io::Result<Report> {
        let mut fresh = match idle {
            true => Some(self.start(place)?),
            false => None,
        };
        let root = self.root();
        let server = match &mut fresh {
            Some(server) => server,
            None => match &mut self.servers[place] {
                Ok(server) => server,
                Err(error) => return Err(io::Error::other(error.clone())),
            },
        };
        if workload.pace == Pace::Cold {
            body::drop_from_memory(&root, workload.body_len)?;
        }
        let backend = self
            .backend
            .as_mut()
            .and_then(|one| one.pids().first().copied());
        let command = generator(&self.plan, workload, (server, &self.certificate), backend);
        let length = Duration::from_secs_f64(2.0 * self.plan.warm_up + self.plan.seconds);
        let before = self.stalls(place)?;
        let output = launch::run(&command, self.plan.client_cpu, length + workload.slack())?;
        let mut report: Report = serde_json::from_slice(&output).map_err(io::Error::other)?;
        let after = self.stalls(place)?;
        report.stalls = after.zip(before).map(|(after, before)| after.since(before));
        Ok(report)
    }

    /// What a Beltway says of its stalls so far, where that is looked at.
    fn stalls(&self, place: usize) -> io::Result<Option<Stalls>> {
        match self.is_asked() {
            true => self.peers[place].stalls(&self.work(place)),
            false => Ok(None),
        }
    }

    fn is_asked(&self) -> bool {
        matches!(self.setup, Some((.., Variants::Cold)))
    }

    /// The directory of a peer's own.
    fn work(&self, place: usize) -> PathBuf {
        self.files.path().join(place.to_string())
    }

    fn ask_wrk(
        &self,
        wrk: &Path,
        workload: &Workload,
        measured: &mut [Measured],
    ) -> io::Result<()> {
        for (server, found) in self.servers.iter().zip(measured) {
            if let (Ok(server), None) = (server, &found.failure) {
                found.wrk = wrk::measure(wrk, &self.plan, workload, server.address).ok();
                interrupt::check()?;
            }
        }
        Ok(())
    }

    fn start(&self, place: usize) -> io::Result<Server> {
        let (root, work) = (self.root(), self.work(place));
        let cpus = match self.setup {
            Some((_, Cores::All | Cores::Any, ..)) => &self.plan.all_cpus[..],
            _ => std::slice::from_ref(&self.plan.server_cpu),
        };
        let site = Site {
            root: &root,
            work: &work,
            descriptors: self.plan.descriptors,
            workers: match self.setup {
                Some((_, Cores::Any, ..)) => 1,
                _ => cpus.len(),
            },
            backend: self.behind(),
            certificate: match self.setup {
                Some((_, _, true, _)) => Some(&self.certificate),
                _ => None,
            },
            asked: self.is_asked(),
        };
        let address = free_address()?;
        let command = self.peers[place].command(site, address.port())?;
        Server::start(&command, cpus, address, work.join("output"))
    }

    /// What the proxies of the present workload are told of the backend.
    fn behind(&self) -> Option<Backend> {
        match (self.setup, &self.backend) {
            (Some((Via::Proxy { keepalive }, ..)), Some(server)) => Some(Backend {
                address: server.address,
                keepalive,
            }),
            _ => None,
        }
    }

    /// The backend shares the generator's core.
    fn start_backend(&self) -> io::Result<Server> {
        let address = free_address()?;
        let mut command: Vec<OsString> = vec![
            "/proc/self/exe".into(),
            "backend".into(),
            format!("--listen={address}").into(),
            "--root".into(),
            self.root().into(),
        ];
        let bodies = self
            .lengths
            .iter()
            .map(|len| format!("--body={len}").into());
        command.extend(bodies);
        let log = self.files.path().join("backend");
        Server::start(&command, &[self.plan.client_cpu], address, log)
    }
}

/// Says what is being measured, in the terminal's last line; nothing where there is no terminal.
fn progress(line: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K{line}");
    }
}

/// A loopback address that nobody listens on: the kernel chose it a moment ago.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// Connections of this workload for which there are descriptors.
fn connections(plan: &Plan, workload: &Workload) -> u64 {
    let affordable = match workload.via {
        Via::Files => plan.descriptors.saturating_sub(OTHER_DESCRIPTORS),
        Via::Proxy { .. } => clients_max(plan.descriptors),
    };
    u64::from(workload.connections).min(affordable)
}

/// The command line of the generator for one measurement.
fn generator(
    plan: &Plan,
    workload: &Workload,
    (server, certificate): (&mut Server, &Certificate),
    backend: Option<u32>,
) -> Vec<OsString> {
    let mut command: Vec<OsString> = vec!["/proc/self/exe".into(), "generate".into()];
    let target = match workload.run {
        Run::Idle { upgrade: true, .. } => backend::TUNNEL.to_owned(),
        _ => format!("/{}", body::file_name(workload.body_len)),
    };
    command.extend(
        [
            format!("--address={}", server.address),
            format!("--target={target}"),
            format!("--body={}", workload.body_len),
            format!("--connections={}", connections(plan, workload)),
            format!("--warm-up={}", plan.warm_up),
            format!("--seconds={}", plan.seconds),
        ]
        .map(OsString::from),
    );
    let watched = server.pids();
    command.extend(watched.iter().map(|pid| format!("--watch={pid}").into()));
    command.extend(backend.map(|pid| format!("--backend={pid}").into()));
    match workload.pace {
        Pace::Closed { depth } => command.push(format!("--depth={depth}").into()),
        Pace::Reconnect => command.push("--reconnect".into()),
        Pace::Rate(rate) => command.push(format!("--rate={rate}").into()),
        Pace::Cold => command.push("--cold".into()),
    }
    if let Some(tls) = workload.tls {
        command.push("--certificate".into());
        command.push(certificate.certificate.clone().into());
        command.extend((tls.group == Group::Hybrid).then(|| "--group=hybrid".into()));
        command.extend(tls.resume.then(|| "--resume".into()));
    }
    if let Some(bystander) = workload.bystander {
        command.push(format!("--bystander={}", bystander.body_len).into());
    }
    // Where they are the same cores, how busy each is tells nothing.
    if workload.cores == Cores::One {
        command.push(format!("--server-cpu={}", plan.server_cpu).into());
        command.push(format!("--client-cpu={}", plan.client_cpu).into());
    }
    if let Run::Idle { upgrade, .. } = workload.run {
        command.push("--idle".into());
        command.extend(upgrade.then(|| "--upgrade".into()));
    }
    command
}

impl Plan {
    /// Seconds that these workloads take with so many peers, roughly.
    pub fn estimate(&self, workloads: &[Workload], peers: usize) -> f64 {
        /// Starting a generator and opening connections.
        const EACH: f64 = 0.3;
        let of = |workload: &Workload| match (workload.run, workload.pace) {
            (Run::Idle { .. }, _) => {
                let rounds = self.rounds.min(IDLE_ROUNDS_MAX) as f64;
                rounds * (2.0 * self.warm_up + 2.0)
            }
            (_, Pace::Cold) => self.rounds as f64 * (EACH + 2.0),
            _ => self.rounds as f64 * (EACH + self.warm_up + self.seconds),
        };
        workloads.iter().map(of).sum::<f64>() * peers as f64
    }
}
