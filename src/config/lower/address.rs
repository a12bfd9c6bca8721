//! Addresses of backends, and peers. Their syntax is checked; nothing is resolved, because the
//! configuration may be checked on another machine, and a name that is unknown now may not be later.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::listen::UNIX_PATH_MAX;
use super::read::Reader;
use crate::config::diagnostics::Diagnostic;
use crate::config::model::{Network, Peers, ServerAddr};
use crate::config::raw::{Entry, Item, Table, Value};
use crate::config::schema::Section;
use crate::http::router::HostPattern;

/// The port of `http://HOST`.
const HTTP_PORT: u16 = 80;

/// The port of `https://HOST`.
const HTTPS_PORT: u16 = 443;

/// Most networks in a list.
const NETWORKS_MAX: usize = 1000;

const FORMS: &str = "write it such as \"10.0.0.1:3000\", \"app.internal:3000\", \":3000\" or \
                     \"unix:/run/app.sock\"";

/// What is wrong, and what to do.
type Problem = (String, String);

/// An address of a backend, as it is written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) address: ServerAddr,
    /// Whether it is under TLS; `None` where its scheme doesn't say so.
    pub(super) secured: Option<bool>,
}

/// Reads the address of a backend.
///
/// `10.0.0.1:3000`, `[::1]:3000`, `app.internal:3000`, `:3000` (this machine), each also behind
/// `http://` or `https://`, where the port may be left out; `unix:/path`;
/// `srv:_http._tcp.example.com`.
pub(super) fn server_address(text: &str) -> Result<Written, Problem> {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    Ok(Written {
        address: place(text)?,
        secured: scheme.map(is_https),
    })
}

fn is_https(scheme: &str) -> bool {
    scheme.eq_ignore_ascii_case("https")
}

fn place(text: &str) -> Result<ServerAddr, Problem> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix(path);
    }
    if let Some(name) = text.strip_prefix("srv:") {
        return Ok(ServerAddr::Service(host_name(name)?.into()));
    }
    let (rest, port) = match text.split_once("://") {
        None => (text, None),
        Some((scheme, rest)) => {
            let port = if is_https(scheme) {
                HTTPS_PORT
            } else {
                HTTP_PORT
            };
            (without_path(scheme, rest)?, Some(port))
        }
    };
    if let Ok(address) = rest.parse::<SocketAddr>() {
        port_of(address.port())?;
        return Ok(ServerAddr::Ip(address));
    }
    let bare = rest.strip_prefix('[').and_then(|r| r.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(rest).parse::<IpAddr>() {
        return match port {
            Some(port) if bare.is_some() || address.is_ipv4() => {
                Ok(ServerAddr::Ip(SocketAddr::new(address, port)))
            }
            _ => Err((
                "the port is missing".into(),
                format!("write \"{}\"", SocketAddr::new(address, 3000)),
            )),
        };
    }
    let (host, port) = match (rest.rsplit_once(':'), port) {
        (Some((host, port)), _) => match port.parse::<u16>() {
            Ok(port) => (host, port),
            Err(_) => {
                return Err((
                    format!("`{port}` is not a port from 1 to 65535"),
                    FORMS.into(),
                ));
            }
        },
        (None, Some(port)) => (rest, port),
        (None, None) => return Err(without_port(text)),
    };
    let port = port_of(port)?;
    Ok(match host {
        // On some systems a server on `localhost` listens on [::1] only: the name is both.
        "" => ServerAddr::Name("localhost".into(), port),
        host => ServerAddr::Name(host_name(host)?.into(), port),
    })
}

fn unix(path: &str) -> Result<ServerAddr, Problem> {
    if !path.starts_with('/') {
        return Err((
            "the path of a unix socket has to be absolute".into(),
            "write it such as \"unix:/run/app.sock\"".into(),
        ));
    }
    if path.len() > UNIX_PATH_MAX || path.contains('\0') {
        return Err((
            format!(
                "the path of a unix socket has at most {UNIX_PATH_MAX} bytes, none of them NUL"
            ),
            "shorten it".into(),
        ));
    }
    let path: PathBuf = std::path::Path::new(path).components().collect();
    Ok(ServerAddr::Unix(path))
}

/// Host and port of a URL, which has nothing else.
fn without_path<'t>(scheme: &str, rest: &'t str) -> Result<&'t str, Problem> {
    match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" => {}
        _ => {
            return Err((
                format!("backends are not asked over `{scheme}`"),
                FORMS.into(),
            ));
        }
    }
    if rest.starts_with("unix:") {
        return Err((
            "a unix socket has no scheme".into(),
            "write it such as \"unix:/run/app.sock\"; `tls` in the upstream puts it under TLS"
                .into(),
        ));
    }
    let host = rest.strip_suffix('/').unwrap_or(rest);
    match host.find(['/', '?', '#', '@']) {
        None if host.is_empty() => Err(("the host is missing".into(), FORMS.into())),
        None => Ok(host),
        Some(end) => Err((
            "an address of a backend has a host and a port only".into(),
            format!(
                "write \"{scheme}://{}\"; `rewrite` and `strip_prefix` change the path",
                &host[..end]
            ),
        )),
    }
}

fn port_of(port: u16) -> Result<u16, Problem> {
    match port {
        0 => Err(("a backend has no port 0".into(), FORMS.into())),
        port => Ok(port),
    }
}

/// What is wrong with a text that has neither a port nor a scheme.
fn without_port(text: &str) -> Problem {
    let help = match text.parse::<u16>() {
        Ok(port) => format!("write \":{port}\" for that port on this machine"),
        Err(_) if text.starts_with('/') => format!("write \"unix:{text}\" for a unix socket"),
        Err(_) => FORMS.to_owned(),
    };
    (format!("`{text}` is not an address of a backend"), help)
}

/// A host name in lower case.
fn host_name(text: &str) -> Result<Box<str>, Problem> {
    match HostPattern::parse(text) {
        Ok(HostPattern::Exact(name)) if !name.starts_with('[') => {
            let last = name.rsplit('.').next().unwrap_or_default();
            if last.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err((
                    format!("`{text}` is neither a name nor an address"),
                    FORMS.into(),
                ));
            }
            Ok(name)
        }
        Ok(_) => Err((
            format!("`{text}` is not the name of one machine"),
            FORMS.into(),
        )),
        Err(error) => Err((format!("the host `{text}`: {}", error.problem), error.help)),
    }
}

/// Checks a value of Host: a host and, if need be, a port.
pub(super) fn check_host_value(text: &str) -> Result<(), Problem> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    if let Some(port) = port
        && port.parse::<u16>().is_err()
    {
        return Err((
            format!("`{port}` is not a port"),
            "write a host such as \"app.internal\" or \"app.internal:8080\"".into(),
        ));
    }
    match HostPattern::parse(host) {
        Ok(HostPattern::Exact(_)) => Ok(()),
        Ok(_) => Err((
            format!("`{text}` is not one host"),
            "write a host such as \"app.internal\", \"keep\" or \"upstream\"".into(),
        )),
        Err(error) => Err((format!("the host `{text}`: {}", error.problem), error.help)),
    }
}

impl Reader<'_> {
    /// The peers that a key names: one text or a list of them.
    pub(super) fn peers(&mut self, table: &Table, section: Section, name: &str) -> Option<Peers> {
        let entry = table.get(name)?;
        self.peers_of(section, entry)
    }

    /// The peers of a value.
    pub(super) fn peers_of(&mut self, section: Section, entry: &Entry) -> Option<Peers> {
        let items: &[Item] = match &entry.item.value {
            Value::Array(items) => items,
            _ => std::slice::from_ref(&entry.item),
        };
        if items.len() > NETWORKS_MAX {
            self.diagnostics.push(
                Diagnostic::new(
                    entry.item.at,
                    format!("`{}` has more than {NETWORKS_MAX} networks", entry.key),
                    "",
                )
                .help("name larger networks"),
            );
            return None;
        }
        let (mut networks, mut unix) = (Vec::with_capacity(items.len()), false);
        for item in items {
            let Some(text) = self.string_of(section, entry, item) else {
                continue;
            };
            match text.as_str() {
                "unix" => unix = true,
                text => match Network::parse(text) {
                    Ok(network) => networks.push(network),
                    Err(error) => self
                        .diagnostics
                        .push(Diagnostic::new(item.at, error.message, "").help(error.help)),
                },
            }
        }
        Some(Peers::new(networks, unix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_backends() {
        for (written, shown) in [
            ("10.0.0.1:3000", "10.0.0.1:3000"),
            ("[::1]:3000", "[::1]:3000"),
            (":3000", "localhost:3000"),
            ("App.Internal.:3000", "app.internal:3000"),
            ("my_app:80", "my_app:80"),
            ("http://app", "app:80"),
            ("HTTP://app:81/", "app:81"),
            ("http://10.0.0.1", "10.0.0.1:80"),
            ("http://[::1]", "[::1]:80"),
            ("https://app", "app:443"),
            ("HTTPS://app:8443/", "app:8443"),
            ("https://10.0.0.1", "10.0.0.1:443"),
            ("unix:/run//app.sock", "unix:/run/app.sock"),
            ("srv:_http._tcp.example.com", "srv:_http._tcp.example.com"),
        ] {
            let address = server_address(written).map(|it| it.address.to_string());
            assert_eq!(address.as_deref(), Ok(shown), "{written}");
        }
    }

    #[test]
    fn the_scheme_says_whether_it_is_under_tls() {
        for (written, secured) in [
            ("app:443", None),
            ("unix:/run/app.sock", None),
            ("http://app:443", Some(false)),
            ("https://app:80", Some(true)),
            ("HttpS://[::1]", Some(true)),
        ] {
            assert_eq!(server_address(written).unwrap().secured, secured);
        }
    }

    #[test]
    fn what_is_no_address_says_what_to_write() {
        for (written, message, help) in [
            (
                "3000",
                "`3000` is not an address of a backend",
                "write \":3000\" for that port on this machine",
            ),
            (
                "/run/a",
                "`/run/a` is not an address of a backend",
                "write \"unix:/run/a\" for a unix socket",
            ),
            ("10.0.0.1", "the port is missing", "write \"10.0.0.1:3000\""),
            ("::1", "the port is missing", "write \"[::1]:3000\""),
            (
                "10.0.0.300:80",
                "`10.0.0.300` is neither a name nor an address",
                FORMS,
            ),
            ("app:http", "`http` is not a port from 1 to 65535", FORMS),
            ("app:0", "a backend has no port 0", FORMS),
            ("10.0.0.1:0", "a backend has no port 0", FORMS),
            ("*.app:80", "`*.app` is not the name of one machine", FORMS),
            (
                "unix:run/a",
                "the path of a unix socket has to be absolute",
                "write it such as \"unix:/run/app.sock\"",
            ),
            ("ftp://app", "backends are not asked over `ftp`", FORMS),
            (
                "https://app/base",
                "an address of a backend has a host and a port only",
                "write \"https://app\"; `rewrite` and `strip_prefix` change the path",
            ),
            (
                "http://app:80/base",
                "an address of a backend has a host and a port only",
                "write \"http://app:80\"; `rewrite` and `strip_prefix` change the path",
            ),
        ] {
            let error = server_address(written).unwrap_err();
            assert_eq!(
                (error.0.as_str(), error.1.as_str()),
                (message, help),
                "{written}"
            );
        }
        assert!(server_address(&format!("unix:/{}", "a".repeat(107))).is_err());
        for written in [
            "",
            ":",
            "http://",
            "a b:80",
            "http://u@app:80",
            "srv:",
            "a..b:1",
        ] {
            assert!(server_address(written).is_err(), "{written}");
        }
    }

    #[test]
    fn a_host_may_have_a_port() {
        for (text, good) in [
            ("app", true),
            ("app:80", true),
            ("[::1]", true),
            ("[::1]:80", true),
            ("app:http", false),
            ("*.app", false),
            ("a b", false),
            ("", false),
        ] {
            assert_eq!(check_host_value(text).is_ok(), good, "{text}");
        }
    }
}
