//! The servers that are measured, each in its best settings.

mod files;
mod others;
pub mod proxies;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;

use crate::certificate::{Certificate, NAME};
use crate::generate::Group;
use crate::stalls::Stalls;
use crate::workload::{Variants, Via, Workload};

/// Most connections that nginx's workers are told to expect.
const CONNECTIONS_MAX: u64 = 65_536;

/// Whose server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// Ours, on each engine.
    Beltway,
    /// The reference.
    Nginx,
    /// Beside it, with files.
    Lighttpd,
    /// Apache httpd, with its event model.
    Apache,
    /// Written in Go.
    Caddy,
    /// Its evented model with files read into memory.
    H2o,
    /// Written in Rust, on tokio.
    StaticWebServer,
    /// Beside it, as a proxy.
    Haproxy,
}

impl Family {
    /// As the table writes it.
    pub fn name(self) -> &'static str {
        match self {
            Family::Beltway => "beltway",
            Family::Nginx => "nginx",
            Family::Lighttpd => "lighttpd",
            Family::Apache => "apache",
            Family::Caddy => "caddy",
            Family::H2o => "h2o",
            Family::StaticWebServer => "static-web-server",
            Family::Haproxy => "haproxy",
        }
    }
}

/// One server with one set of settings.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What the table calls it.
    pub name: &'static str,
    /// Whose it is.
    pub family: Family,
    /// As the program says it.
    pub version: String,
    /// The settings that make the difference, in words.
    pub settings: &'static str,
    program: PathBuf,
    configuration: Configuration,
}

#[derive(Clone, Debug)]
enum Configuration {
    Files(files::Kind),
    Other(others::Kind),
    Proxy(proxies::Kind),
    /// A command line with `{root}`, `{port}`, `{engine}`, `{backend}`, `{cert}` and `{key}` in it.
    Ours {
        command: String,
        engine: &'static str,
    },
}

/// What a peer is given.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The files that are served.
    pub root: &'a Path,
    /// A directory of the peer's own.
    pub work: &'a Path,
    /// Descriptors that it may have.
    pub descriptors: u64,
    /// Cores that it may use, and so workers, at least 1.
    pub workers: usize,
    /// What proxies stand in front of.
    pub backend: Option<Backend>,
    /// What it is known by under TLS.
    pub certificate: Option<&'a Certificate>,
    /// Beltway is to be asked how it goes.
    pub asked: bool,
}

/// What proxies stand in front of.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    /// Connections that Beltway is told to keep to it; without a number, as many as by default.
    pub keepalive: Option<u32>,
}

/// The peers that are there, and what is said about the others.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    /// In the table's order.
    pub peers: Vec<Peer>,
    /// Why one is missing.
    pub absent: Vec<String>,
}

/// Everything that serves files, or everything that proxies, of the families that `asked` for; under TLS
/// it is nginx alone beside ours.
///
/// # Errors
/// When Beltway is asked for and isn't there, with how to build it.
pub fn roster(
    (via, tls, variants): (Via, bool, Variants),
    asked: impl Fn(Family) -> bool,
    program: &Path,
    ours: Option<&str>,
) -> Result<Roster, String> {
    type Peers = fn() -> Result<Vec<Peer>, String>;
    let others: &[(Family, Peers)] = match via {
        Via::Files => &[
            (Family::Nginx, files::nginx),
            (Family::Lighttpd, files::lighttpd),
            (Family::Apache, others::apache),
            (Family::Caddy, others::caddy),
            (Family::H2o, others::h2o),
            (Family::StaticWebServer, others::static_web_server),
        ],
        Via::Proxy { .. } => &[
            (Family::Nginx, proxies::nginx),
            (Family::Haproxy, proxies::haproxy),
        ],
    };
    let mut roster = Roster::default();
    if asked(Family::Beltway) {
        roster.peers = match (ours, via) {
            (Some(command), _) => commands_of_ours(command),
            (None, Via::Files) => files::beltway(&built(program)?, variants),
            (None, Via::Proxy { .. }) => proxies::beltway(&built(program)?),
        };
    }
    let takes_part = |family| {
        asked(family) && (!tls || family == Family::Nginx) && variants != Variants::Toggles
    };
    for (_, peers) in others.iter().filter(|(family, _)| takes_part(*family)) {
        match peers() {
            Ok(peers) => roster.peers.extend(peers),
            Err(why) => roster.absent.push(why),
        }
    }
    Ok(roster)
}

/// The Beltway that was built, by its whole path: a bare file name would be looked up in PATH.
fn built(program: &Path) -> Result<PathBuf, String> {
    fs::canonicalize(program).map_err(|_| {
        format!(
            "there is no {}; build it with `cargo build --release`, or name it with --beltway PATH",
            program.display(),
        )
    })
}

/// A command in Beltway's place, on each engine.
fn commands_of_ours(command: &str) -> Vec<Peer> {
    let peer = |name, engine| Peer {
        name,
        family: Family::Beltway,
        version: command.to_owned(),
        settings: "a command in its place",
        program: PathBuf::new(),
        configuration: Configuration::Ours {
            command: command.to_owned(),
            engine,
        },
    };
    vec![
        peer("beltway uring", "uring"),
        peer("beltway epoll", "epoll"),
    ]
}

impl Peer {
    /// Writes its configuration, if it needs one, and says what to run.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn command(&self, site: Site<'_>, port: u16) -> io::Result<Vec<OsString>> {
        let arguments = match &self.configuration {
            Configuration::Files(kind) => files::arguments(*kind, site, port)?,
            Configuration::Other(kind) => others::arguments(kind, site, port)?,
            Configuration::Proxy(kind) => proxies::arguments(*kind, site, port)?,
            Configuration::Ours { command, engine } => {
                return Ok(filled_in(command, engine, site, port));
            }
        };
        let mut command = vec![self.program.clone().into_os_string()];
        command.extend(arguments);
        Ok(command)
    }
}

impl Peer {
    /// What it says of its stalls; nothing where it wasn't started as one that can be asked.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub fn stalls(&self, work: &Path) -> io::Result<Option<Stalls>> {
        match self.configuration {
            Configuration::Files(files::Kind::Beltway(_)) => {
                Stalls::ask(&self.program, &work.join(CONTROL)).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Whether it reads past the page cache.
    pub fn is_direct(&self) -> bool {
        matches!(self.configuration,
            Configuration::Files(files::Kind::Beltway(ours)) if ours.direct)
    }

    /// Why it can't do what this workload asks for, with so many cores for all of its workers.
    pub fn lacks(&self, workload: &Workload, cores: usize) -> Option<String> {
        if let Configuration::Files(files::Kind::Beltway(ours)) = self.configuration
            && let Some(why) = ours.lacks(workload.cores, cores)
        {
            return Some(why);
        }
        let hybrid = workload.tls.is_some_and(|tls| tls.group == Group::Hybrid);
        if !hybrid || self.family != Family::Nginx {
            return None;
        }
        let output = Command::new(&self.program)
            .arg("-V")
            .stdin(Stdio::null())
            .output();
        let said = output.map(|output| output.stderr).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        match openssl_of(&said) {
            Some(version) if version >= (3, 5) => None,
            Some((major, minor)) => Some(format!("OpenSSL {major}.{minor} has no X25519MLKEM768")),
            None => Some("nobody knows whether it has X25519MLKEM768".to_owned()),
        }
    }
}

/// The OpenSSL that an nginx runs with, as `nginx -V` tells it.
fn openssl_of(said: &str) -> Option<(u32, u32)> {
    let (_, version) = said.rsplit_once("OpenSSL ")?;
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// A command of ours for this site.
fn filled_in(command: &str, engine: &str, site: Site<'_>, port: u16) -> Vec<OsString> {
    let backend = site.backend.map(|backend| backend.address.to_string());
    let files = site.certificate.map(|one| [&one.certificate, &one.key]);
    let [cert, key] = files.map_or_else(Default::default, |files| {
        files.map(|file| file.to_string_lossy().into_owned())
    });
    command
        .split_whitespace()
        .map(|word| {
            word.replace("{root}", &site.root.to_string_lossy())
                .replace("{port}", &port.to_string())
                .replace("{engine}", engine)
                .replace("{backend}", backend.as_deref().unwrap_or_default())
                .replace("{cert}", &cert)
                .replace("{key}", &key)
                .into()
        })
        .collect()
}

#[cfg(test)]
impl Peer {
    /// Two configurations of Beltway, nginx and `beside`, none of which is there.
    pub fn all_for_tests(beside: Family) -> Vec<Self> {
        [Family::Beltway, Family::Nginx, beside]
            .iter()
            .flat_map(|&family| [family, family])
            .map(|family| Self {
                name: "peer",
                family,
                version: String::new(),
                settings: "",
                program: PathBuf::new(),
                configuration: Configuration::Files(files::Kind::Beltway(files::Ours::new(
                    "uring",
                ))),
            })
            .collect()
    }
}

/// Connections that a server of files is told to expect where it must be told.
fn clients_of(site: Site<'_>) -> u64 {
    site.descriptors.saturating_sub(64).clamp(1, 16_384)
}

#[cfg(test)]
impl Site<'_> {
    /// Nothing is there.
    fn for_tests() -> Self {
        Self {
            root: Path::new("/srv/files"),
            work: Path::new("/nowhere"),
            descriptors: 20_000,
            workers: 1,
            backend: None,
            certificate: None,
            asked: false,
        }
    }
}

/// The words of nginx's `listen` for TLS, and what its server has to know then.
fn nginx_tls(site: Site<'_>) -> (&'static str, String) {
    let Some(Certificate { certificate, key }) = site.certificate else {
        return ("", String::new());
    };
    let known = format!(
        "server_name {NAME};
        ssl_certificate {};
        ssl_certificate_key {};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_tickets on;
        ssl_conf_command Ciphersuites TLS_AES_256_GCM_SHA384;",
        certificate.display(),
        key.display(),
    );
    (" ssl", known)
}

/// How Beltway is run by a configuration.
fn beltway_run(site: Site<'_>, file: PathBuf) -> Vec<OsString> {
    // Its own socket would be of one name for all.
    let control = site.work.join(CONTROL);
    vec![
        "run".into(),
        "-c".into(),
        file.into(),
        "--control".into(),
        control.into(),
    ]
}

/// The name of Beltway's control socket.
const CONTROL: &str = "control";

/// What Beltway's configurations share.
fn beltway_server(site: Site<'_>, engine: &str) -> String {
    format!(
        "[server]
engine = \"{engine}\"
workers = {}
pin = false
access_log = false
",
        site.workers,
    )
}

/// The line of Beltway's site.
fn beltway_tls(site: Site<'_>) -> String {
    match site.certificate {
        None => String::new(),
        Some(Certificate { certificate, key }) => {
            format!("tls = {{ cert = {certificate:?}, key = {key:?} }}\n")
        }
    }
}

/// The path of an installed program. Servers are often outside an ordinary user's PATH.
fn find(name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
        .ok_or_else(|| format!("{name} is not installed"))
}

/// The first line that the program prints about itself.
fn version_of(program: &Path, flag: &str) -> String {
    let output = Command::new(program)
        .arg(flag)
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else {
        return "unknown version".to_owned();
    };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    said.lines()
        .next()
        .unwrap_or("unknown version")
        .trim()
        .to_owned()
}

/// What all of nginx's settings share. Everything that logs or closes connections is off; `http` is the
/// rest of that block, servers included.
fn nginx_conf(site: Site<'_>, http: &str) -> String {
    let work = site.work.display();
    // Workers of a master that runs as root become `nobody`, who need not be able to read the files.
    let user = match rustix::process::geteuid().is_root() {
        true => "user root root;",
        false => "",
    };
    format!(
        "daemon off; {user}
worker_processes {workers};
worker_rlimit_nofile {descriptors};
pid {work}/nginx.pid;
error_log {work}/nginx.error crit;
events {{
    use epoll;
    multi_accept on;
    accept_mutex off;
    worker_connections {connections};
}}
http {{
    access_log off;
    log_not_found off;
    tcp_nodelay on;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_body_temp_path {work}/client;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
{http}}}
",
        workers = site.workers,
        descriptors = site.descriptors,
        connections = site.descriptors.min(CONNECTIONS_MAX),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_of_ours_is_filled_in() {
        let backend = Backend {
            address: ([127, 0, 0, 1], 82).into(),
            keepalive: None,
        };
        let site = Site {
            backend: Some(backend),
            ..Site::for_tests()
        };
        let command = "x --dir={root} {port} {engine} {backend}";
        let command = commands_of_ours(command)[1].command(site, 81);
        let command = command.expect("no file is written");
        assert_eq!(
            command,
            ["x", "--dir=/srv/files", "81", "epoll", "127.0.0.1:82"]
        );
    }

    #[test]
    fn the_library_that_runs_counts() {
        let said = "built with OpenSSL 3.0.22 25 Aug (running with OpenSSL 3.5.1 1 Jul)\n";
        assert_eq!(openssl_of(said), Some((3, 5)));
        assert_eq!(openssl_of("built with LibreSSL 4.0"), None);
    }

    #[test]
    fn a_missing_program_says_how_to_build_it() {
        for via in [Via::Files, Via::Proxy { keepalive: None }] {
            let asked = |family| family == Family::Beltway;
            let error = roster(
                (via, false, Variants::Engines),
                asked,
                Path::new("/none/beltway"),
                None,
            );
            let error = error.expect_err("it isn't there");
            assert!(error.contains("cargo build --release") && error.contains("--beltway"));
        }
    }
}
