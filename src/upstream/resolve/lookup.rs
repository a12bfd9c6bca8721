//! One lookup: a host name by the resolver of the system (getaddrinfo(3): files, DNS, whatever
//! nsswitch.conf names), a service by its SRV records and then its hosts (RFC 2782).
//!
//! It blocks, and knows no upstream. Of getaddrinfo(3) nobody can say how long it takes; the rest keeps
//! the deadline that it is given.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use super::client::{self, DnsError, left};
use super::dns::{Service, Services};
use super::schedule::Query;
use super::settings::Settings;
use crate::config::model::{Family, ServerAddr};
use crate::upstream::roster::{ADDRESSES_MAX, Resolved};

/// Where the name servers of this machine are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The addresses of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// At least one.
    pub addresses: Vec<Resolved>,
    /// How long they are good for, where that is known.
    pub ttl: Option<Duration>,
}

/// Why a name has no addresses now.
#[derive(Debug)]
#[non_exhaustive]
pub enum LookupError {
    /// The resolver of the system has found none, or has failed.
    System(io::Error),
    /// The sandbox doesn't let the worker read the settings of the resolver: they were replaced by
    /// others after the worker had started.
    Replaced(&'static str),
    /// It has addresses, and none of the family that is asked for.
    OtherFamily(Family),
    /// The name servers have told no SRV records.
    Dns(DnsError),
    /// The service is decidedly not available there (RFC 2782: its target is `.`).
    NoService,
    /// None of its hosts has an address; why the last one hasn't.
    NoHost(String, Box<LookupError>),
    /// It takes longer than it may.
    TooLong(Duration),
    /// It could not be begun, or has failed on our side.
    Ours(String),
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // It begins with these words of the standard library, which say nothing more.
            Self::System(error) => {
                let text = error.to_string();
                let said = text.strip_prefix("failed to lookup address information: ");
                f.write_str(said.unwrap_or(&text))
            }
            Self::Replaced(path) => write!(
                f,
                "{path} was replaced after the worker had started, which may not open the new one: reload"
            ),
            Self::OtherFamily(Family::V6) => f.write_str("it has no IPv6 address"),
            Self::OtherFamily(_) => f.write_str("it has no IPv4 address"),
            Self::Dns(error) => error.fmt(f),
            Self::NoService => f.write_str("its SRV record says that there is no such service"),
            Self::NoHost(host, error) => write!(f, "its host {host}: {error}"),
            Self::TooLong(timeout) => {
                write!(f, "no answer within {} ms", timeout.as_millis())
            }
            Self::Ours(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for LookupError {}

impl From<DnsError> for LookupError {
    fn from(error: DnsError) -> Self {
        Self::Dns(error)
    }
}

/// Looks a name up as this machine does.
///
/// # Errors
/// See [`LookupError`].
pub fn look_up(query: &Query, deadline: Instant) -> Result<Answer, LookupError> {
    let found = match &query.address {
        ServerAddr::Name(host, port) => {
            addresses(host, *port, query.resolve.family).map(|addresses| Answer {
                addresses: addresses.into_iter().map(plain).collect(),
                ttl: None,
            })
        }
        ServerAddr::Service(name) => resolv_conf()
            .and_then(|settings| Ok(client::ask(&settings, name, deadline)?))
            .and_then(|services| {
                let host = |host: &str, port| addresses(host, port, query.resolve.family);
                servers(&services, query.resolve.family, deadline, host)
            }),
        ServerAddr::Ip(address) => Ok(Answer {
            addresses: vec![plain(*address)],
            ttl: None,
        }),
        ServerAddr::Unix(_) => Err(LookupError::Ours("a path has no address".to_owned())),
    };
    found.map_err(|error| match error {
        LookupError::System(_) | LookupError::NoHost(..) if is_closed(RESOLV_CONF) => {
            LookupError::Replaced(RESOLV_CONF)
        }
        error => error,
    })
}

/// The settings of this moment.
fn resolv_conf() -> Result<Settings, LookupError> {
    match std::fs::read(RESOLV_CONF) {
        Ok(bytes) => Ok(Settings::parse(
            &String::from_utf8_lossy(&bytes),
            interface_index,
        )),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(LookupError::Replaced(RESOLV_CONF))
        }
        // Without the file the server is this machine (resolv.conf(5)).
        Err(_) => Ok(Settings::default()),
    }
}

fn is_closed(path: &str) -> bool {
    let denied = io::ErrorKind::PermissionDenied;
    std::fs::File::open(path).is_err_and(|error| error.kind() == denied)
}

fn interface_index(name: &str) -> Option<u32> {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    let socket = socket(AddressFamily::INET6, SocketType::DGRAM, None).ok()?;
    netdevice::name_to_index(socket, name).ok()
}

/// The addresses of a host that are of this family; at least one.
///
/// Both families are asked for, whatever is wanted: the standard library gives getaddrinfo(3) no hint,
/// and a call of our own would be `unsafe` for the sake of one question to a name server, which the
/// library asks together with the other one.
fn addresses(host: &str, port: u16, family: Family) -> Result<Vec<SocketAddr>, LookupError> {
    let all = (host, port)
        .to_socket_addrs()
        .map_err(LookupError::System)?;
    let of_family: Vec<SocketAddr> = all.filter(|address| is_of(address, family)).collect();
    if of_family.is_empty() {
        return Err(LookupError::OtherFamily(family));
    }
    Ok(of_family)
}

fn is_of(address: &SocketAddr, family: Family) -> bool {
    match family {
        Family::Any => true,
        Family::V4 => address.is_ipv4(),
        Family::V6 => address.is_ipv6(),
    }
}

fn plain(address: SocketAddr) -> Resolved {
    Resolved {
        address,
        weight: 1,
        is_backup: false,
    }
}

/// The servers of a service, those of the lowest priority that has any first: the others only stand in
/// for them. A host that has no address is left out while another has one.
///
/// # Errors
/// When there is no service, or none of its hosts has an address.
pub fn servers(
    services: &Services,
    family: Family,
    deadline: Instant,
    mut host: impl FnMut(&str, u16) -> Result<Vec<SocketAddr>, LookupError>,
) -> Result<Answer, LookupError> {
    let mut found: Vec<(u16, Resolved)> = Vec::new();
    let mut ttl = services.alias_ttl;
    let mut failed = LookupError::NoService;
    for server in services.servers.iter().filter(|it| !it.target.is_empty()) {
        if found.len() >= ADDRESSES_MAX {
            break;
        }
        let (mut of_it, mut good_for) = told(services, server, family);
        if of_it.is_empty() {
            good_for = Duration::MAX;
            if left(deadline).is_none() {
                // What isn't known yet would be taken for gone.
                let whole = Box::new(LookupError::Ours("no time was left for it".to_owned()));
                return Err(LookupError::NoHost(server.target.clone(), whole));
            }
            match host(&server.target, server.port) {
                Ok(addresses) => of_it = addresses,
                Err(error) => failed = LookupError::NoHost(server.target.clone(), error.into()),
            }
        }
        ttl = ttl.min(server.ttl).min(good_for);
        for address in of_it {
            if found.iter().all(|(_, known)| known.address != address) {
                let resolved = Resolved {
                    address,
                    weight: server.weight,
                    is_backup: false,
                };
                found.push((server.priority, resolved));
            }
        }
    }
    let Some(lowest) = found.first().map(|(priority, _)| *priority) else {
        return Err(failed);
    };
    found.truncate(ADDRESSES_MAX);
    let addresses = found.into_iter().map(|(priority, resolved)| Resolved {
        is_backup: priority > lowest,
        ..resolved
    });
    Ok(Answer {
        addresses: addresses.collect(),
        ttl: Some(ttl),
    })
}

/// What the answer itself tells of the host of a server, and how long that is good for.
fn told(services: &Services, server: &Service, family: Family) -> (Vec<SocketAddr>, Duration) {
    let its = services
        .addresses
        .iter()
        .filter(|told| told.host == server.target);
    let (mut addresses, mut ttl) = (Vec::new(), Duration::MAX);
    for told in its {
        let address = SocketAddr::new(told.address, server.port);
        if is_of(&address, family) {
            addresses.push(address);
            ttl = ttl.min(told.ttl);
        }
    }
    (addresses, ttl)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Resolve;
    use crate::upstream::resolve::dns::HostAddress;

    fn service(priority: u16, weight: u16, port: u16, target: &str) -> Service {
        Service {
            priority,
            weight,
            port,
            target: target.to_owned(),
            ttl: Duration::from_secs(60),
        }
    }

    fn services(servers: Vec<Service>, addresses: &[(&str, &str)]) -> Services {
        let addresses = addresses.iter().map(|(host, address)| HostAddress {
            host: (*host).to_owned(),
            address: address.parse().unwrap(),
            ttl: Duration::from_secs(20),
        });
        Services {
            servers,
            addresses: addresses.collect(),
            alias_ttl: Duration::MAX,
        }
    }

    fn none(host: &str, _: u16) -> Result<Vec<SocketAddr>, LookupError> {
        Err(LookupError::System(io::Error::other(format!("no {host}"))))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn shown(answer: &Answer) -> Vec<String> {
        let list = answer.addresses.iter();
        list.map(|it| format!("{} {} {}", it.address, it.weight, it.is_backup))
            .collect()
    }

    #[test]
    fn the_lowest_priority_that_has_addresses_comes_first() {
        let all = vec![
            service(5, 1, 80, "nowhere"),
            service(10, 3, 80, "a"),
            service(10, 0, 81, "b"),
            service(20, 9, 80, "a"),
            service(20, 9, 82, "c"),
        ];
        let told = services(all, &[("a", "10.0.0.1"), ("a", "::1"), ("c", "10.0.0.3")]);
        let host = |host: &str, port| match host {
            "b" => Ok(vec![SocketAddr::new("10.0.0.2".parse().unwrap(), port)]),
            _ => none(host, port),
        };
        let answer = servers(&told, Family::Any, soon(), host).unwrap();
        let expected = [
            "10.0.0.1:80 3 false",
            "[::1]:80 3 false",
            "10.0.0.2:81 0 false",
            "10.0.0.3:82 9 true",
        ];
        assert_eq!(shown(&answer), expected);
        assert_eq!(answer.ttl, Some(Duration::from_secs(20)));
        let answer = servers(&told, Family::V6, soon(), none).unwrap();
        assert_eq!(shown(&answer), ["[::1]:80 3 false"]);
    }

    #[test]
    fn no_service_and_no_host_are_told_apart() {
        let no_service = services(vec![service(0, 0, 0, "")], &[]);
        let error = servers(&no_service, Family::Any, soon(), none).unwrap_err();
        assert!(error.to_string().contains("no such service"), "{error}");
        let no_host = services(vec![service(0, 0, 80, "gone.example")], &[]);
        let error = servers(&no_host, Family::Any, soon(), none).unwrap_err();
        assert_eq!(error.to_string(), "its host gone.example: no gone.example");
        let late = Instant::now();
        let error = servers(&no_host, Family::Any, late, none).unwrap_err();
        assert!(error.to_string().contains("no time"), "{error}");
    }

    #[test]
    fn a_service_of_thousands_is_cut_where_a_name_is() {
        let all = (0..1000).map(|number| service(number / 500, 1, 1 + number, "a"));
        let told = services(all.collect(), &[("a", "10.0.0.1")]);
        let answer = servers(&told, Family::Any, soon(), none).unwrap();
        assert_eq!(answer.addresses.len(), ADDRESSES_MAX);
    }

    #[test]
    fn this_machine_is_found_by_the_resolver_of_the_system() {
        let query = |family| Query {
            address: ServerAddr::Name("localhost".into(), 8080),
            resolve: Resolve {
                family,
                ..Resolve::default()
            },
        };
        let answer = look_up(&query(Family::V4), soon()).unwrap();
        assert_eq!(shown(&answer), ["127.0.0.1:8080 1 false"]);
        assert_eq!(answer.ttl, None);
        match look_up(&query(Family::V6), soon()) {
            Ok(answer) => assert_eq!(shown(&answer), ["[::1]:8080 1 false"]),
            Err(error) => assert_eq!(error.to_string(), "it has no IPv6 address"),
        }
    }

    #[test]
    fn the_words_of_the_system_are_told_without_those_of_the_library() {
        let said = "failed to lookup address information: Name or service not known";
        let error = LookupError::System(io::Error::other(said));
        assert_eq!(error.to_string(), "Name or service not known");
    }
}
