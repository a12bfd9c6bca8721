//! The servers that are measured, each in its best settings.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;

/// Whose server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// Ours, on each engine.
    Beltway,
    /// The reference.
    Nginx,
    /// Beside it.
    Lighttpd,
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
    Beltway {
        engine: &'static str,
    },
    Nginx {
        sending: &'static str,
    },
    Lighttpd {
        backend: &'static str,
    },
    /// A command line with `{root}`, `{port}` and `{engine}` in it.
    Ours {
        command: String,
        engine: &'static str,
    },
}

/// Directories that a peer works in.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The files that are served.
    pub root: &'a Path,
    /// A directory of the peer's own.
    pub work: &'a Path,
    /// Descriptors that it may have.
    pub descriptors: u64,
}

/// Beltway on each engine.
///
/// # Errors
/// When the program isn't there, with how to build it.
pub fn beltway(program: &Path, ours: Option<&str>) -> Result<Vec<Peer>, String> {
    if ours.is_none() && !program.is_file() {
        return Err(format!(
            "there is no {}; build it with `cargo build --release`, or name it with --beltway PATH",
            program.display(),
        ));
    }
    // A program that is named by a bare file name would be looked up in PATH.
    let program = fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    let peer = |name, engine, settings| Peer {
        name,
        family: Family::Beltway,
        version: match ours {
            Some(command) => command.to_owned(),
            None => version_of(&program, "--version"),
        },
        settings,
        configuration: match ours {
            Some(command) => Configuration::Ours {
                command: command.to_owned(),
                engine,
            },
            None => Configuration::Beltway { engine },
        },
        program: program.clone(),
    };
    Ok(vec![
        peer(
            "beltway uring",
            "uring",
            "serve --workers=1 --no-access-log --engine=uring",
        ),
        peer(
            "beltway epoll",
            "epoll",
            "serve --workers=1 --no-access-log --engine=epoll",
        ),
    ])
}

/// nginx, with the settings that win for small files and those that win for large ones.
///
/// # Errors
/// When it isn't installed.
pub fn nginx() -> Result<Vec<Peer>, String> {
    let program = find("nginx")?;
    let version = version_of(&program, "-v");
    let peer = |name, settings, sending| Peer {
        name,
        family: Family::Nginx,
        version: version.clone(),
        settings,
        program: program.clone(),
        configuration: Configuration::Nginx { sending },
    };
    Ok(vec![
        peer(
            "nginx A",
            "sendfile off, open_file_cache on, access_log off, 1 worker",
            "sendfile off; output_buffers 2 512k;",
        ),
        peer(
            "nginx B",
            "sendfile on, tcp_nopush on, open_file_cache on, access_log off, 1 worker",
            "sendfile on; tcp_nopush on;",
        ),
    ])
}

/// lighttpd with its two ways of sending a file.
///
/// # Errors
/// When it isn't installed.
pub fn lighttpd() -> Result<Vec<Peer>, String> {
    let program = find("lighttpd")?;
    let version = version_of(&program, "-v");
    let peer = |name, settings, backend| Peer {
        name,
        family: Family::Lighttpd,
        version: version.clone(),
        settings,
        program: program.clone(),
        configuration: Configuration::Lighttpd { backend },
    };
    Ok(vec![
        peer(
            "lighttpd A",
            "network-backend writev, no access log, 1 process",
            "writev",
        ),
        peer(
            "lighttpd B",
            "network-backend sendfile, no access log, 1 process",
            "sendfile",
        ),
    ])
}

impl Peer {
    /// Writes its configuration, if it needs one, and says what to run.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn command(&self, site: Site<'_>, port: u16) -> io::Result<Vec<OsString>> {
        let program = self.program.clone().into_os_string();
        let root = site.root.as_os_str().to_owned();
        Ok(match &self.configuration {
            Configuration::Beltway { engine } => vec![
                program,
                "serve".into(),
                root,
                format!("--engine={engine}").into(),
                "--workers=1".into(),
                "--no-access-log".into(),
                "-l".into(),
                format!("127.0.0.1:{port}").into(),
            ],
            Configuration::Nginx { sending } => {
                let file = site.work.join("nginx.conf");
                fs::write(&file, nginx_conf(site, port, sending))?;
                vec![
                    program,
                    "-p".into(),
                    site.work.into(),
                    "-c".into(),
                    file.into(),
                ]
            }
            Configuration::Lighttpd { backend } => {
                let file = site.work.join("lighttpd.conf");
                fs::write(&file, lighttpd_conf(site, port, backend))?;
                vec![program, "-D".into(), "-f".into(), file.into()]
            }
            Configuration::Ours { command, engine } => command
                .split_whitespace()
                .map(|word| {
                    word.replace("{root}", &site.root.to_string_lossy())
                        .replace("{port}", &port.to_string())
                        .replace("{engine}", engine)
                        .into()
                })
                .collect(),
        })
    }
}

#[cfg(test)]
impl Peer {
    /// Two configurations of each family, none of which is there.
    pub fn all_for_tests() -> Vec<Self> {
        [Family::Beltway, Family::Nginx, Family::Lighttpd]
            .iter()
            .flat_map(|&family| [family, family])
            .map(|family| Self {
                name: "peer",
                family,
                version: String::new(),
                settings: "",
                program: PathBuf::new(),
                configuration: Configuration::Beltway { engine: "uring" },
            })
            .collect()
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

/// Everything that logs, looks files up again or closes connections is off; the rest is what nginx's
/// documentation recommends for static files.
fn nginx_conf(site: Site<'_>, port: u16, sending: &str) -> String {
    let work = site.work.display();
    // Workers of a master that runs as root become `nobody`, who need not be able to read the files.
    let user = match rustix::process::geteuid().is_root() {
        true => "user root root;",
        false => "",
    };
    format!(
        "daemon off; {user}
worker_processes 1;
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
    {sending}
    tcp_nodelay on;
    open_file_cache max=1000 inactive=1h;
    open_file_cache_valid 60s;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    default_type application/octet-stream;
    client_body_temp_path {work}/client;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {root};
    }}
}}
",
        descriptors = site.descriptors,
        connections = site.descriptors.min(16_384),
        root = site.root.display(),
    )
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
server.max-worker = 0
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
        connections = (site.descriptors - 64).min(16_384),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_of_ours_is_filled_in() {
        let site = Site {
            root: Path::new("/srv/files"),
            work: Path::new("/nowhere"),
            descriptors: 1024,
        };
        let peers = beltway(Path::new("/none"), Some("x --dir={root} {port} {engine}"))
            .expect("a command needs no program");
        let command = peers[1].command(site, 81).expect("no file is written");
        assert_eq!(command, ["x", "--dir=/srv/files", "81", "epoll"]);
    }

    #[test]
    fn a_missing_program_says_how_to_build_it() {
        let error = beltway(Path::new("/none/beltway"), None).expect_err("it isn't there");
        assert!(error.contains("cargo build --release") && error.contains("--beltway"));
    }
}
