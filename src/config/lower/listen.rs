//! Names of sites, and the addresses they listen on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::read::Reader;
use crate::config::diagnostics::{At, Diagnostic};
use crate::config::model::{ListenAddr, Listener, ListenerTls, Peers};
use crate::http::router::{HostMap, HostPattern, PatternError};

/// Longest path of a unix socket in bytes (`sun_path` without its final NUL, unix(7)).
pub(super) const UNIX_PATH_MAX: usize = 107;

/// Longest name of a socket that is handed over, in bytes (systemd.socket(5), `FileDescriptorName=`).
const FD_NAME_MAX: usize = 255;

/// The port of plain HTTP, where a site under TLS leads there.
const HTTP_PORT: u16 = 80;
/// The port of HTTP under TLS.
const HTTPS_PORT: u16 = 443;

/// What the name of a site implies.
#[derive(Debug)]
pub(super) struct Name {
    /// The hosts it answers for.
    pub(super) host: HostPattern,
    /// The address in it; `None` for every interface.
    address: Option<IpAddr>,
    /// The port in it.
    pub(super) port: Option<u16>,
}

impl Name {
    /// Where it listens unless `listen` says otherwise, and which of that is under TLS, with or without a
    /// certificate.
    pub(super) fn addresses(&self, has_tls: bool) -> Vec<(ListenAddr, bool)> {
        let ports: &[(u16, bool)] = match self.port {
            Some(port) => &[(port, has_tls)],
            None if has_tls => &[(HTTP_PORT, false), (HTTPS_PORT, true)],
            None => &[(HTTP_PORT, false)],
        };
        let at = |port: u16| match self.address {
            Some(address) => vec![tcp((address, port).into(), false)],
            None => every_interface(port),
        };
        let of_port = |(port, secured): &(u16, bool)| {
            let secured = *secured;
            at(*port).into_iter().map(move |address| (address, secured))
        };
        ports.iter().flat_map(of_port).collect()
    }
}

/// What is spoken on an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// HTTP as it is.
    Plain,
    /// HTTP under TLS.
    Tls,
}

impl Speaks {
    /// What an address of `listen` says by its begin, and the rest of it.
    pub(super) fn read(text: &str) -> (Option<Self>, &str) {
        for (scheme, speaks) in [("http://", Self::Plain), ("https://", Self::Tls)] {
            if let Some(rest) = text.strip_prefix(scheme) {
                return (Some(speaks), rest);
            }
        }
        (None, text)
    }

    /// What is spoken on an address of a site with a certificate.
    pub(super) fn of(said: Option<Self>, address: &ListenAddr) -> Self {
        let is_http = |port: u16| port == HTTP_PORT;
        match (said, address) {
            (Some(said), _) => said,
            (None, ListenAddr::Tcp { address, .. }) if is_http(address.port()) => Self::Plain,
            (None, _) => Self::Tls,
        }
    }
}

/// Reads the name of a site: `example.com`, `*.example.com`, `*`, each also with a port;
/// `:8080` (any host); `127.0.0.1:8080` (any host, on that address).
pub(super) fn site_name(text: &str) -> Result<Name, PatternError> {
    if let Some((address, port)) = socket_address(text) {
        return Ok(Name {
            host: HostPattern::Default,
            address: Some(address),
            port,
        });
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') => {
            let port: u16 = port.parse().map_err(|_| PatternError {
                position: host.len() + 1,
                problem: "the port is not a number up to 65535".into(),
                help: "write a name such as `example.com:8080` or `:8080`".into(),
            })?;
            (host, Some(port))
        }
        _ => (text, None),
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
        address: None,
        port,
    })
}

/// An address, with or without a port.
fn socket_address(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some((address.ip(), Some(address.port())));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(text);
    let address: IpAddr = bare.parse().ok()?;
    Some((address, None))
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
    if let Some((address, None)) = socket_address(text) {
        return Err((
            "the port is missing".into(),
            format!("write \"{address}:8080\""),
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
    /// Whether it is under TLS.
    secured: bool,
    /// Where sites say something else about that.
    mixed: Vec<At>,
    /// The sites whose certificate is the default, with their places.
    fallbacks: Vec<(usize, At)>,
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
    /// Adds a site with the hosts it answers for, each with its place. `secured`: it is under TLS, and
    /// whether its certificate is the default.
    pub(super) fn add(
        &mut self,
        site: usize,
        hosts: &[(HostPattern, At)],
        (address, secured, at): (ListenAddr, Option<bool>, At),
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
                    secured: secured.is_some(),
                    mixed: Vec::new(),
                    fallbacks: Vec::new(),
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
        if collected.secured != secured.is_some() {
            collected.mixed.push(at);
        }
        if secured == Some(true) {
            collected.fallbacks.push((site, at));
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
    for at in &collected.mixed {
        let message = format!(
            "of two sites on {} one is under TLS and the other isn't",
            collected.address
        );
        reader.diagnostics.push(
            Diagnostic::new(*at, message, "this one")
                .with(collected.at, "the first site")
                .help(
                    "TLS comes before a site is known: give both a certificate, or let one of them \
                     listen elsewhere",
                ),
        );
    }
    if let [(_, first), (_, second), ..] = collected.fallbacks[..] {
        let message = format!("two sites on {} are the default of TLS", collected.address);
        reader.diagnostics.push(
            Diagnostic::new(second, message, "again here")
                .with(first, "first here")
                .help("take `default` away from one of them"),
        );
    }
    let tls = collected.secured.then(|| ListenerTls {
        fallback: collected.fallbacks.first().map(|(site, _)| *site),
    });
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
            tls,
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
            let listens: Vec<_> = read.addresses(false).into_iter().map(|(a, _)| a).collect();
            assert_eq!(
                (read.host, text(&listens).as_str()),
                (host, addresses),
                "{name}"
            );
        }
        let secured = |name: &str| -> String {
            let all = site_name(name).unwrap().addresses(true);
            let all: Vec<_> = all
                .iter()
                .map(|(a, s)| format!("{a}{}", if *s { "!" } else { "" }))
                .collect();
            all.join(" ")
        };
        assert_eq!(
            secured("example.com"),
            "0.0.0.0:80 [::]:80 0.0.0.0:443! [::]:443!"
        );
        assert_eq!(secured("example.com:8443"), "0.0.0.0:8443! [::]:8443!");
        assert_eq!(secured("10.0.0.1"), "10.0.0.1:80 10.0.0.1:443!");
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
