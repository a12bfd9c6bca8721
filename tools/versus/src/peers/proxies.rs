//! The proxies, each before the same backend.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use super::{Backend, Configuration, Family, Peer, Site, find, version_of};
use crate::certificate::NAME;

/// Connections that proxies keep to the backend where the workload asks for it, and nginx in any case:
/// it keeps none unless it is told how many.
pub const KEEPALIVE: u32 = 512;
/// Pipes that HAProxy may have for splicing, of two descriptors each: it wants them beside those of its
/// clients, and one for each four clients unless it is told.
const PIPES: u64 = 512;
/// Descriptors of a proxy that are neither a client's nor the backend's, at most.
const OTHER_DESCRIPTORS: u64 = 2 * PIPES + 200;
/// Most clients that a proxy is told to expect.
const CLIENTS_MAX: u64 = 16_384;

/// One way of proxying.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// With this engine.
    Beltway(&'static str),
    /// With these directives for buffers.
    Nginx(&'static str),
    /// As it comes, with splicing.
    Haproxy,
}

/// Beltway on each engine.
pub fn beltway(program: &Path) -> Vec<Peer> {
    let version = version_of(program, "--version");
    let peer = |name, engine, settings| Peer {
        name,
        family: Family::Beltway,
        version: version.clone(),
        settings,
        program: program.to_owned(),
        configuration: Configuration::Proxy(Kind::Beltway(engine)),
    };
    vec![
        peer("beltway uring", "uring", "engine uring, pin off"),
        peer("beltway epoll", "epoll", "engine epoll, pin off"),
    ]
}

/// nginx with its buffers as they come, with large ones, and without.
///
/// # Errors
/// When it isn't installed; so for all below.
pub fn nginx() -> Result<Vec<Peer>, String> {
    let program = find("nginx")?;
    let version = version_of(&program, "-v");
    let peer = |name, settings, buffering| Peer {
        name,
        family: Family::Nginx,
        version: version.clone(),
        settings,
        program: program.clone(),
        configuration: Configuration::Proxy(Kind::Nginx(buffering)),
    };
    Ok(vec![
        peer("nginx", "default buffers, keepalive 512", ""),
        peer(
            "nginx 16x64k",
            "proxy_buffers 16 64k, keepalive 512",
            "proxy_buffers 16 64k; proxy_buffer_size 64k; proxy_busy_buffers_size 128k;",
        ),
        peer(
            "nginx unbuffered",
            "proxy_buffering off, keepalive 512",
            "proxy_buffering off;",
        ),
    ])
}

/// HAProxy with splicing.
///
/// # Errors
/// See [`nginx`].
pub fn haproxy() -> Result<Vec<Peer>, String> {
    let program = find("haproxy")?;
    Ok(vec![Peer {
        name: "haproxy",
        family: Family::Haproxy,
        version: version_of(&program, "-v"),
        settings: "option splice-auto, http-reuse always",
        program,
        configuration: Configuration::Proxy(Kind::Haproxy),
    }])
}

/// Clients that a proxy can have: each takes a descriptor more to the backend.
pub fn clients_max(descriptors: u64) -> u64 {
    (descriptors.saturating_sub(OTHER_DESCRIPTORS) / 2).clamp(1, CLIENTS_MAX)
}

/// Writes the configuration and says with what arguments to run.
///
/// # Errors
/// Those of the file system.
pub fn arguments(kind: Kind, site: Site<'_>, port: u16) -> io::Result<Vec<OsString>> {
    let Some(backend) = site.backend else {
        return Err(io::Error::other("a proxy without a backend"));
    };
    Ok(match kind {
        Kind::Beltway(engine) => {
            let file = site.work.join("beltway.toml");
            fs::write(&file, beltway_toml(site, backend, port, engine))?;
            super::beltway_run(site, file)
        }
        Kind::Nginx(buffering) => {
            let file = site.work.join("nginx.conf");
            fs::write(&file, nginx_conf(site, backend, port, buffering))?;
            vec!["-p".into(), site.work.into(), "-c".into(), file.into()]
        }
        Kind::Haproxy => {
            let file = site.work.join("haproxy.cfg");
            fs::write(&file, haproxy_cfg(site, backend, port))?;
            vec!["-db".into(), "-f".into(), file.into()]
        }
    })
}

fn beltway_toml(site: Site<'_>, backend: Backend, port: u16, engine: &str) -> String {
    let keepalive = match backend.keepalive {
        Some(count) => format!("keepalive = {{ idle = {count}, total = {count} }}\n"),
        None => String::new(),
    };
    format!(
        "{server}
[upstream.backend]
servers = [\"{address}\"]
{keepalive}
[site.\"{name}\"]
listen = [\"127.0.0.1:{port}\"]
proxy = \"backend\"
{tls}",
        server = super::beltway_server(site, engine),
        name = match site.certificate {
            Some(_) => NAME.to_owned(),
            None => format!("127.0.0.1:{port}"),
        },
        tls = super::beltway_tls(site),
        address = backend.address,
    )
}

/// What nginx's documentation asks of a proxy that is to keep its connections: a pool, HTTP/1.1 and no
/// field Connection. Upgrades want theirs passed on; a request without one gets the empty field.
fn nginx_conf(site: Site<'_>, backend: Backend, port: u16, buffering: &str) -> String {
    let (ssl, known) = super::nginx_tls(site);
    let http = format!(
        "    map $http_upgrade $asked {{
        default upgrade;
        \"\" \"\";
    }}
    upstream backend {{
        server {address};
        keepalive {KEEPALIVE};
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen 127.0.0.1:{port}{ssl} backlog=4096;
        {known}
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_max_temp_file_size 0;
            proxy_read_timeout 1h;
            {buffering}
        }}
        location = {tunnel} {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection $asked;
            proxy_set_header Upgrade $http_upgrade;
            proxy_read_timeout 1h;
            {buffering}
        }}
    }}
",
        address = backend.address,
        tunnel = crate::backend::TUNNEL,
    );
    super::nginx_conf(site, &http)
}

/// HAProxy refuses to start where `maxconn` takes more descriptors than there may be.
fn haproxy_cfg(site: Site<'_>, backend: Backend, port: u16) -> String {
    format!(
        "global
    nbthread {workers}
    maxconn {clients}
    maxpipes {PIPES}
defaults
    mode http
    maxconn {clients}
    option splice-auto
    option http-keep-alive
    http-reuse always
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
frontend clients
    bind 127.0.0.1:{port} backlog 4096
    default_backend servers
backend servers
    server one {address}
",
        workers = site.workers,
        clients = clients_max(site.descriptors),
        address = backend.address,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_takes_two_descriptors() {
        assert_eq!(clients_max(20_000), 9_388);
        assert_eq!(clients_max(1 << 20), CLIENTS_MAX);
        assert_eq!(clients_max(100), 1);
    }

    #[test]
    fn a_proxy_keeps_what_the_workload_asks_for() {
        let address = ([127, 0, 0, 1], 80).into();
        let of = |keepalive| {
            beltway_toml(
                Site::for_tests(),
                Backend { address, keepalive },
                81,
                "epoll",
            )
        };
        assert!(of(Some(7)).contains("keepalive = { idle = 7, total = 7 }"));
        assert!(!of(None).contains("keepalive"));
    }

    #[test]
    fn a_proxy_needs_a_backend() {
        assert!(arguments(Kind::Haproxy, Site::for_tests(), 81).is_err());
    }
}
