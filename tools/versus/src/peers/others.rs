//! More servers of files, each with the one configuration that its documentation recommends for them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Configuration, Family, Peer, Site, clients_of, find, version_of};

/// Where Apache's modules are, by distribution.
const APACHE_MODULES: &[&str] = &[
    "/usr/lib/apache2/modules",
    "/usr/lib64/httpd/modules",
    "/usr/lib/httpd/modules",
    "/usr/local/apache2/modules",
];
/// Threads of an Apache process. Its listener holds the connections that idle, so they need none; but it
/// closes those when it is short of threads for the others.
const APACHE_THREADS: u64 = 256;

/// Which of them.
#[derive(Clone, Debug)]
pub enum Kind {
    /// With the directory of its modules.
    Apache(PathBuf),
    /// With an address, a root and `file_server`.
    Caddy,
    /// With `file.dir`.
    H2o,
    /// With flags alone.
    StaticWebServer,
}

fn peer(
    (name, version_flag): (&str, &str),
    family: Family,
    settings: &'static str,
    kind: Kind,
) -> Result<Vec<Peer>, String> {
    let program = find(name)?;
    Ok(vec![Peer {
        name: family.name(),
        family,
        version: version_of(&program, version_flag),
        settings,
        program,
        configuration: Configuration::Other(kind),
    }])
}

/// Apache httpd with the event model.
///
/// # Errors
/// When it isn't installed; so for all below.
pub fn apache() -> Result<Vec<Peer>, String> {
    let program = find("apache2")
        .map(|_| "apache2")
        .or_else(|_| find("httpd").map(|_| "httpd"));
    let program = program.map_err(|_| "apache2 (or httpd) is not installed".to_owned())?;
    let modules = APACHE_MODULES
        .iter()
        .map(Path::new)
        .find(|directory| directory.join("mod_mpm_event.so").is_file())
        .ok_or("apache2 has no mod_mpm_event.so where it is looked for")?;
    peer(
        (program, "-v"),
        Family::Apache,
        "mpm_event, 1 process of 256 threads, EnableSendfile on, no log",
        Kind::Apache(modules.to_owned()),
    )
}

/// Caddy.
///
/// # Errors
/// See [`apache`].
pub fn caddy() -> Result<Vec<Peer>, String> {
    let settings = "file_server, no log, no admin";
    peer(("caddy", "version"), Family::Caddy, settings, Kind::Caddy)
}

/// h2o.
///
/// # Errors
/// See [`apache`].
pub fn h2o() -> Result<Vec<Peer>, String> {
    let settings = "file.dir, no access log";
    peer(("h2o", "--version"), Family::H2o, settings, Kind::H2o)
}

/// static-web-server.
///
/// # Errors
/// See [`apache`].
pub fn static_web_server() -> Result<Vec<Peer>, String> {
    peer(
        ("static-web-server", "--version"),
        Family::StaticWebServer,
        "no compression, no log",
        Kind::StaticWebServer,
    )
}

/// Writes the configuration, if it needs one, and says with what arguments to run.
///
/// # Errors
/// Those of the file system.
pub fn arguments(kind: &Kind, site: Site<'_>, port: u16) -> io::Result<Vec<OsString>> {
    let write = |name: &str, text: String| {
        let file = site.work.join(name);
        fs::write(&file, text)?;
        io::Result::Ok(file.into_os_string())
    };
    Ok(match kind {
        Kind::Apache(modules) => {
            let file = write("httpd.conf", apache_conf(site, port, modules))?;
            vec!["-f".into(), file, "-DFOREGROUND".into()]
        }
        Kind::Caddy => {
            let file = write("caddy.json", caddy_json(site, port))?;
            vec!["run".into(), "--config".into(), file]
        }
        Kind::H2o => vec!["-c".into(), write("h2o.conf", h2o_conf(site, port))?],
        Kind::StaticWebServer => vec![
            "--host=127.0.0.1".into(),
            format!("--port={port}").into(),
            "--root".into(),
            site.root.into(),
            // Times the cores that it may use.
            "--threads-multiplier=1".into(),
            "--compression=false".into(),
            "--cache-control-headers=false".into(),
            "--log-level=error".into(),
        ],
    })
}

/// One process, as a second one would be started and ended with the load; as many connections beyond its
/// threads as there may be.
fn apache_conf(site: Site<'_>, port: u16, modules: &Path) -> String {
    // Built without BIG_SECURITY_HOLE it refuses to serve as root.
    let user = match rustix::process::geteuid().is_root() {
        true => "User #65534\nGroup #65534",
        false => "",
    };
    format!(
        "LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
ServerRoot {work}
DefaultRuntimeDir {work}
PidFile {work}/httpd.pid
ErrorLog {work}/httpd.error
LogLevel crit
ServerName localhost
{user}
Listen 127.0.0.1:{port}
ListenBacklog 4096
StartServers 1
ServerLimit 1
ThreadLimit {APACHE_THREADS}
ThreadsPerChild {APACHE_THREADS}
MaxRequestWorkers {APACHE_THREADS}
AsyncRequestWorkerFactor {factor}
MaxConnectionsPerChild 0
KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout 3600
Timeout 3600
EnableMMAP On
EnableSendfile On
DocumentRoot {root}
<Directory {root}>
    Options FollowSymLinks
    AllowOverride None
    Require all granted
</Directory>
",
        modules = modules.display(),
        work = site.work.display(),
        root = site.root.display(),
        factor = clients_of(site).div_ceil(APACHE_THREADS),
    )
}

/// In its own format: the short one has other words in each version.
fn caddy_json(site: Site<'_>, port: u16) -> String {
    let server = json!({
        "listen": [format!("127.0.0.1:{port}")],
        "automatic_https": { "disable": true },
        "idle_timeout": "1h",
        "routes": [{ "handle": [{ "handler": "file_server", "root": site.root }] }],
    });
    let configuration = json!({
        "admin": { "disabled": true, "config": { "persist": false } },
        "storage": { "module": "file_system", "root": site.work },
        "logging": { "logs": { "default": { "level": "ERROR" } } },
        "apps": { "http": { "servers": { "files": server } } },
    });
    configuration.to_string()
}

fn h2o_conf(site: Site<'_>, port: u16) -> String {
    let user = match rustix::process::geteuid().is_root() {
        true => "user: root",
        false => "",
    };
    format!(
        "{user}
num-threads: {workers}
max-connections: {connections}
pid-file: {work}/h2o.pid
error-log: {work}/h2o.error
http1-request-timeout: 3600
listen:
  host: 127.0.0.1
  port: {port}
hosts:
  default:
    paths:
      /:
        file.dir: {root}
        file.send-compressed: OFF
",
        workers = site.workers,
        connections = clients_of(site),
        work = site.work.display(),
        root = site.root.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apache_takes_as_many_connections_as_there_are_descriptors_for() {
        // It takes threads × (1 + factor).
        let conf = apache_conf(Site::for_tests(), 81, Path::new("/modules"));
        assert!(conf.contains("AsyncRequestWorkerFactor 64\n"));
    }
}
