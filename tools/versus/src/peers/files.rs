//! The servers of files, each with the settings that suit small files and those that suit large ones.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use super::{Configuration, Family, Peer, Site, find, version_of};
use crate::certificate::NAME;
use crate::workload::{Cores, Variants};

/// One way of serving files.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// In this variant.
    Beltway(Ours),
    /// With these directives for sending.
    Nginx(&'static str),
    /// With this network backend.
    Lighttpd(&'static str),
}

/// A Beltway, beside its usual settings.
#[derive(Clone, Copy, Debug)]
pub struct Ours {
    engine: &'static str,
    /// Lines of `[server]` that make the difference.
    server: &'static str,
    /// It reads past the page cache.
    pub direct: bool,
}

impl Ours {
    /// With this engine.
    pub fn new(engine: &'static str) -> Self {
        Self {
            engine,
            server: "",
            direct: false,
        }
    }

    /// Why it can't run with workers on these cores, of which there are so many.
    pub fn lacks(self, cores: Cores, all: usize) -> Option<String> {
        let workers = if cores == Cores::All { all } else { 1 };
        (self.server.contains("sqpoll") && all < 2 * workers).then(|| {
            let takes = 2 * workers;
            format!("sqpoll takes two CPUs for each worker: {takes}, and there are {all}")
        })
    }
}

/// Beltway on each engine, in these variants.
pub fn beltway(program: &Path, variants: Variants) -> Vec<Peer> {
    let version = version_of(program, "--version");
    let peer = |name, settings, ours| Peer {
        name,
        family: Family::Beltway,
        version: version.clone(),
        settings,
        program: program.to_owned(),
        configuration: Configuration::Files(Kind::Beltway(ours)),
    };
    let (uring, epoll) = (Ours::new("uring"), Ours::new("epoll"));
    match variants {
        Variants::Engines => vec![
            peer(
                "beltway uring",
                "serve --no-access-log --engine=uring",
                uring,
            ),
            peer(
                "beltway epoll",
                "serve --no-access-log --engine=epoll",
                epoll,
            ),
        ],
        Variants::Cold => {
            let direct = |ours| Ours {
                direct: true,
                ..ours
            };
            vec![
                peer("beltway uring", "engine uring, direct off", uring),
                peer("beltway epoll", "engine epoll, direct off", epoll),
                peer("uring direct", "engine uring, direct on", direct(uring)),
                peer("epoll direct", "engine epoll, direct on", direct(epoll)),
            ]
        }
        Variants::Toggles => {
            let with = |server, ours| Ours { server, ..ours };
            let (shared, own) = ("pin = true\n", "pin = true\nreuseport = true\n");
            let polled = "pin = true\nsqpoll = true\n";
            vec![
                peer("uring shared", "engine uring, pin on", with(shared, uring)),
                peer("uring reuseport", "and reuseport on", with(own, uring)),
                peer("uring sqpoll", "and sqpoll on", with(polled, uring)),
                peer("epoll shared", "engine epoll, pin on", with(shared, epoll)),
                peer("epoll reuseport", "and reuseport on", with(own, epoll)),
            ]
        }
    }
}

/// nginx, with the settings that win for small files and those that win for large ones.
///
/// # Errors
/// When it isn't installed; so for all below.
pub fn nginx() -> Result<Vec<Peer>, String> {
    let program = find("nginx")?;
    let version = version_of(&program, "-v");
    let peer = |name, settings, sending| Peer {
        name,
        family: Family::Nginx,
        version: version.clone(),
        settings,
        program: program.clone(),
        configuration: Configuration::Files(Kind::Nginx(sending)),
    };
    Ok(vec![
        peer(
            "nginx A",
            "sendfile off, open_file_cache on, access_log off",
            "sendfile off; output_buffers 2 512k;",
        ),
        peer(
            "nginx B",
            "sendfile on, tcp_nopush on, open_file_cache on, access_log off",
            "sendfile on; tcp_nopush on;",
        ),
    ])
}

/// lighttpd with its two ways of sending a file.
///
/// # Errors
/// See [`nginx`].
pub fn lighttpd() -> Result<Vec<Peer>, String> {
    let program = find("lighttpd")?;
    let version = version_of(&program, "-v");
    let peer = |name, settings, backend| Peer {
        name,
        family: Family::Lighttpd,
        version: version.clone(),
        settings,
        program: program.clone(),
        configuration: Configuration::Files(Kind::Lighttpd(backend)),
    };
    Ok(vec![
        peer(
            "lighttpd A",
            "network-backend writev, no access log",
            "writev",
        ),
        peer(
            "lighttpd B",
            "network-backend sendfile, no access log",
            "sendfile",
        ),
    ])
}

/// Writes the configuration, if it needs one, and says with what arguments to run.
///
/// # Errors
/// Those of the file system.
pub fn arguments(kind: Kind, site: Site<'_>, port: u16) -> io::Result<Vec<OsString>> {
    Ok(match kind {
        Kind::Beltway(ours)
            if site.certificate.is_some() || site.asked || !ours.server.is_empty() =>
        {
            let file = site.work.join("beltway.toml");
            fs::write(&file, beltway_toml(site, port, ours))?;
            super::beltway_run(site, file)
        }
        Kind::Beltway(Ours { engine, .. }) => vec![
            "serve".into(),
            site.root.into(),
            format!("--engine={engine}").into(),
            format!("--workers={}", site.workers).into(),
            "--no-access-log".into(),
            "-l".into(),
            format!("127.0.0.1:{port}").into(),
        ],
        Kind::Nginx(sending) => {
            let file = site.work.join("nginx.conf");
            fs::write(&file, nginx_conf(site, port, sending))?;
            vec!["-p".into(), site.work.into(), "-c".into(), file.into()]
        }
        Kind::Lighttpd(backend) => {
            let file = site.work.join("lighttpd.conf");
            fs::write(&file, lighttpd_conf(site, port, backend))?;
            vec!["-D".into(), "-f".into(), file.into()]
        }
    })
}

/// What the command line alone can't say: a certificate is for a site, and a socket for questions is made
/// by a master.
fn beltway_toml(site: Site<'_>, port: u16, ours: Ours) -> String {
    let mut server = super::beltway_server(site, ours.engine);
    if !ours.server.is_empty() {
        server = server.replace("pin = false\n", ours.server);
    }
    format!(
        "{server}
[site.\"{name}\"]
listen = [\"127.0.0.1:{port}\"]
root = {root:?}
direct = {direct}
{tls}",
        // Only under TLS does the load call it by its name.
        name = site.certificate.map_or("*", |_| NAME),
        root = site.root,
        direct = ours.direct,
        tls = super::beltway_tls(site),
    )
}

/// What differs from the settings for all of nginx's workloads is that there are files.
fn nginx_conf(site: Site<'_>, port: u16, sending: &str) -> String {
    let (ssl, known) = super::nginx_tls(site);
    let http = format!(
        "    {sending}
    open_file_cache max=1000 inactive=1h;
    open_file_cache_valid 60s;
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{port}{ssl} backlog=4096;
        {known}
        root {root};
    }}
",
        root = site.root.display(),
    );
    super::nginx_conf(site, &http)
}

/// 65535 is the most requests that lighttpd 1.4 takes on one connection; the generator follows the
/// announced close.
fn lighttpd_conf(site: Site<'_>, port: u16, backend: &str) -> String {
    format!(
        "server.document-root = \"{root}\"
server.bind = \"127.0.0.1\"
server.port = {port}
server.errorlog = \"{work}/lighttpd.error\"
server.pid-file = \"{work}/lighttpd.pid\"
server.upload-dirs = ( \"{work}\" )
server.compat-module-load = \"disable\"
server.modules = ( \"mod_staticfile\" )
server.event-handler = \"linux-sysepoll\"
server.network-backend = \"{backend}\"
server.stat-cache-engine = \"simple\"
server.max-worker = {workers}
server.max-fds = {descriptors}
server.max-connections = {connections}
server.listen-backlog = 4096
server.max-keep-alive-requests = 65535
server.max-keep-alive-idle = 3600
server.max-write-idle = 3600
mimetype.assign = ( \"\" => \"application/octet-stream\" )
",
        root = site.root.display(),
        work = site.work.display(),
        descriptors = site.descriptors,
        connections = super::clients_of(site),
        // Any number starts a process that only watches over the workers.
        workers = if site.workers > 1 { site.workers } else { 0 },
    )
}
