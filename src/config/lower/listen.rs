//! Names of sites, and the addresses they listen on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::read::Reader;
use crate::config::diagnostics::{At, Diagnostic};
use crate::config::model::{ListenAddr, Listener, Peers};
use crate::http::router::{HostMap, HostPattern, PatternError};

/// Longest path of a unix socket in bytes (`sun_path` without its final NUL, unix(7)).
pub(super) const UNIX_PATH_MAX: usize = 107;

/// Longest name of a socket that is handed over, in bytes (systemd.socket(5), `FileDescriptorName=`).
const FD_NAME_MAX: usize = 255;

/// The port of a site whose name has none. Until TLS exists, plain HTTP.
const DEFAULT_PORT: u16 = 80;

/// What the name of a site implies.
#[derive(Debug)]
pub(super) struct Name {
    /// The hosts it answers for.
    pub(super) host: HostPattern,
    /// Where it listens unless `listen` says otherwise.
    pub(super) addresses: Vec<ListenAddr>,
}

/// Reads the name of a site: `example.com`, `*.example.com`, `*`, each also with a port;
/// `:8080` (any host); `127.0.0.1:8080` (any host, on that address).
pub(super) fn site_name(text: &str) -> Result<Name, PatternError> {
    if let Some(address) = socket_address(text) {
        return Ok(Name {
            host: HostPattern::Default,
            addresses: vec![tcp(address, false)],
        });
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') => {
            let port: u16 = port.parse().map_err(|_| PatternError {
                position: host.len() + 1,
                problem: "the port is not a number up to 65535".into(),
                help: "write a name such as `example.com:8080` or `:8080`".into(),
            })?;
            (host, port)
        }
        _ => (text, DEFAULT_PORT),
    };
    let host = match host {
        "" if text.is_empty() => {
            return Err(PatternError {
                position: 0,
                problem: "the name of a site is empty".into(),
                help: "write `*` or `:80` for any host".into(),
            });
        }
        "" => HostPattern::Default,
        host => HostPattern::parse(host)?,
    };
    Ok(Name {
        host,
        addresses: every_interface(port),
    })
}

/// An address with a port, or alone with the default port.
fn socket_address(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(text);
    let address: IpAddr = bare.parse().ok()?;
    Some(SocketAddr::new(address, DEFAULT_PORT))
}

fn tcp(address: SocketAddr, companion: bool) -> ListenAddr {
    ListenAddr::Tcp { address, companion }
}

fn every_interface(port: u16) -> Vec<ListenAddr> {
    both(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED, port)
}

fn both(v4: Ipv4Addr, v6: Ipv6Addr, port: u16) -> Vec<ListenAddr> {
    vec![tcp((v4, port).into(), false), tcp((v6, port).into(), true)]
}

/// Reads one address of `listen`: `:8080` and `*:8080` (IPv4 and IPv6), `localhost:8080` (both
/// loopback addresses), `0.0.0.0:8080`, `[::1]:8080`, `unix:/path`, `fd:NAME`.
fn listen_address(text: &str) -> Result<Vec<ListenAddr>, (String, String)> {
    const FORMS: &str =
        "write it such as \":8080\", \"127.0.0.1:8080\", \"[::1]:8080\" or \"unix:/run/site.sock\"";
    if let Some(path) = text.strip_prefix("unix:") {
        if !path.starts_with('/') {
            return Err((
                "the path of a unix socket has to be absolute".into(),
                FORMS.into(),
            ));
        }
        if path.len() > UNIX_PATH_MAX {
            return Err((
                format!("the path of a unix socket has at most {UNIX_PATH_MAX} bytes"),
                "shorten it".into(),
            ));
        }
        return Ok(vec![ListenAddr::Unix(path.into())]);
    }
    if let Some(name) = text.strip_prefix("fd:") {
        let printable = |byte: u8| matches!(byte, b' '..=b'~') && byte != b':';
        if name.is_empty() || name.len() > FD_NAME_MAX || !name.bytes().all(printable) {
            return Err((
                format!("`{text}` is not the name of a socket that is handed over"),
                format!(
                    "write the FileDescriptorName= of the socket unit, such as \"fd:web\": 1 to \
                     {FD_NAME_MAX} printable ASCII characters without a colon"
                ),
            ));
        }
        return Ok(vec![ListenAddr::Inherited(name.into())]);
    }
    if let Ok(address) = text.parse() {
        return Ok(vec![tcp(address, false)]);
    }
    if let Ok(port) = text.parse::<u16>() {
        return Err((
            format!("`{text}` is not an address"),
            format!("write \":{port}\" for that port on every interface"),
        ));
    }
    if let Some(address) = socket_address(text) {
        return Err((
            "the port is missing".into(),
            format!("write \"{}:8080\"", address.ip()),
        ));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err((format!("`{text}` is not an address"), FORMS.into()));
    };
    let Ok(port) = port.parse::<u16>() else {
        return Err((
            "the port is not a number up to 65535".to_owned(),
            FORMS.into(),
        ));
    };
    match host {
        "" | "*" => Ok(every_interface(port)),
        "localhost" => Ok(both(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST, port)),
        _ => Err((
            format!("`{host}` is not an address of this machine"),
            "a name goes into `aliases` or the name of the site; write an address here".into(),
        )),
    }
}

impl Reader<'_> {
    /// The addresses of one text of `listen`, or nothing and a report.
    pub(super) fn listen_address(&mut self, text: &str, at: At) -> Vec<ListenAddr> {
        listen_address(text).unwrap_or_else(|(message, help)| {
            self.diagnostics
                .push(Diagnostic::new(at, message, "").help(help));
            Vec::new()
        })
    }
}

/// The listeners of all sites as they are collected.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    list: Vec<Collected>,
}

#[derive(Debug)]
struct Collected {
    address: ListenAddr,
    at: At,
    hosts: Vec<(HostPattern, usize, At)>,
    proxy_protocol: Accepted,
    /// Where sites say something else about PROXY headers.
    disagree: Vec<At>,
}

/// Whose connections begin with a PROXY header, and where a site says so.
#[derive(Clone, Debug)]
pub(super) struct Accepted {
    /// The peers; `None` for nobody.
    pub(super) from: Option<Arc<Peers>>,
    /// The place of the key, or of the site that doesn't have it.
    pub(super) at: At,
}

impl Listeners {
    /// Adds a site with the hosts it answers for, each with its place.
    pub(super) fn add(
        &mut self,
        site: usize,
        hosts: &[(HostPattern, At)],
        address: ListenAddr,
        at: At,
        proxy_protocol: &Accepted,
    ) {
        let known = self
            .list
            .iter_mut()
            .find(|known| known.address.is_same_socket(&address));
        let collected = match known {
            Some(known) => known,
            None => {
                self.list.push(Collected {
                    address: address.clone(),
                    at,
                    hosts: Vec::new(),
                    proxy_protocol: proxy_protocol.clone(),
                    disagree: Vec::new(),
                });
                self.list.last_mut().expect("one was just added")
            }
        };
        // Asked for by itself, an IPv6 address has to exist.
        if let (
            ListenAddr::Tcp { companion, .. },
            ListenAddr::Tcp {
                companion: false, ..
            },
        ) = (&mut collected.address, &address)
        {
            *companion = false;
        }
        if collected.proxy_protocol.from != proxy_protocol.from {
            collected.disagree.push(proxy_protocol.at);
        }
        let hosts = hosts.iter().map(|(host, at)| (host.clone(), site, *at));
        collected.hosts.extend(hosts);
    }

    /// Checks that no two listeners exclude each other and no two sites answer for the same host.
    pub(super) fn build(self, reader: &mut Reader<'_>) -> Vec<Listener> {
        for (index, later) in self.list.iter().enumerate() {
            for earlier in &self.list[..index] {
                if overlap(&earlier.address, &later.address) {
                    reader.diagnostics.push(
                        Diagnostic::new(
                            later.at,
                            format!(
                                "{} and {} can't both be listened on",
                                later.address, earlier.address
                            ),
                            "this address",
                        )
                        .with(earlier.at, "includes it, or is included")
                        .help("listen on the same address in both, and tell sites apart by name"),
                    );
                }
            }
        }
        self.list
            .into_iter()
            .filter_map(|collected| build_one(collected, reader))
            .collect()
    }
}

fn build_one(collected: Collected, reader: &mut Reader<'_>) -> Option<Listener> {
    for at in &collected.disagree {
        let message = format!(
            "two sites on {} expect PROXY headers from different peers",
            collected.address
        );
        reader.diagnostics.push(
            Diagnostic::new(*at, message, "not as the first site")
                .with(collected.proxy_protocol.at, "the first site")
                .help(
                    "the header comes before a site is known: write the same `proxy_protocol` in \
                     both, or let one of them listen elsewhere",
                ),
        );
    }
    let hosts = collected
        .hosts
        .iter()
        .map(|(host, site, _)| (host.clone(), *site))
        .collect();
    match HostMap::build(hosts) {
        Ok(sites) => Some(Listener {
            address: collected.address,
            sites,
            proxy_protocol: collected.proxy_protocol.from,
            place: reader.diagnostics.sources.place(collected.at),
        }),
        Err(conflicts) => {
            for conflict in conflicts {
                let (_, first_site, first) = &collected.hosts[conflict.first];
                let (_, second_site, second) = &collected.hosts[conflict.second];
                let host = match conflict.second_text.as_str() {
                    "*" => "any host".to_owned(),
                    host => format!("`{host}`"),
                };
                let message = if first_site == second_site {
                    format!("this site names {host} twice")
                } else {
                    let address = &collected.address;
                    format!("two sites answer for {host} on {address}")
                };
                reader.diagnostics.push(
                    Diagnostic::new(*second, message, "again here")
                        .with(*first, "first here")
                        .help("take one away, or let one of them listen elsewhere"),
                );
            }
            None
        }
    }
}

/// Whether one of two different addresses includes the other, so that the kernel would refuse the
/// second (`EADDRINUSE`).
fn overlap(a: &ListenAddr, b: &ListenAddr) -> bool {
    let (ListenAddr::Tcp { address: a, .. }, ListenAddr::Tcp { address: b, .. }) = (a, b) else {
        return false;
    };
    a.port() == b.port()
        && a.port() != 0
        && a.is_ipv4() == b.is_ipv4()
        && (a.ip().is_unspecified() != b.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(addresses: &[ListenAddr]) -> String {
        let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        all.join(" ")
    }

    #[test]
    fn what_a_name_implies() {
        for (name, host, addresses) in [
            (
                "example.com",
                HostPattern::Exact("example.com".into()),
                "0.0.0.0:80 [::]:80",
            ),
            (
                "Example.com:81",
                HostPattern::Exact("example.com".into()),
                "0.0.0.0:81 [::]:81",
            ),
            (
                "*.a.org",
                HostPattern::Below(".a.org".into()),
                "0.0.0.0:80 [::]:80",
            ),
            (":8080", HostPattern::Default, "0.0.0.0:8080 [::]:8080"),
            ("*", HostPattern::Default, "0.0.0.0:80 [::]:80"),
            ("*:8080", HostPattern::Default, "0.0.0.0:8080 [::]:8080"),
            ("127.0.0.1:8080", HostPattern::Default, "127.0.0.1:8080"),
            ("[::1]:8080", HostPattern::Default, "[::1]:8080"),
            ("10.0.0.1", HostPattern::Default, "10.0.0.1:80"),
            ("[::1]", HostPattern::Default, "[::1]:80"),
        ] {
            let read = site_name(name).unwrap();
            assert_eq!(
                (read.host, text(&read.addresses).as_str()),
                (host, addresses),
                "{name}"
            );
        }
        for name in ["", "example.com:http", ":70000", "a b", "a..b", "::zz"] {
            assert!(site_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn addresses_of_listen() {
        for (written, addresses) in [
            (":8080", "0.0.0.0:8080 [::]:8080"),
            ("*:0", "0.0.0.0:0 [::]:0"),
            ("localhost:80", "127.0.0.1:80 [::1]:80"),
            ("10.1.2.3:80", "10.1.2.3:80"),
            ("[::]:8080", "[::]:8080"),
            ("unix:/run/a.sock", "unix:/run/a.sock"),
        ] {
            assert_eq!(
                text(&listen_address(written).unwrap()),
                addresses,
                "{written}"
            );
        }
        for (written, help) in [
            ("8080", "write \":8080\" for that port on every interface"),
            ("127.0.0.1", "write \"127.0.0.1:8080\""),
        ] {
            assert_eq!(listen_address(written).unwrap_err().1, help);
        }
        for written in ["", "example.com:80", "unix:run/a", ":http", "::1:80:"] {
            assert!(listen_address(written).is_err(), "{written}");
        }
        assert!(listen_address(&format!("unix:/{}", "a".repeat(107))).is_err());
        let long = |length| listen_address(&format!("fd:{}", "a".repeat(length)));
        assert!(long(255).is_ok() && long(256).is_err());
        for name in ["", "a:b", "\u{e9}", "a\n"] {
            assert!(listen_address(&format!("fd:{name}")).is_err(), "{name:?}");
        }
    }
}
