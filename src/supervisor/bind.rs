//! From the addresses of a configuration to listening sockets: all of them, or every reason why not.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::model::{ListenAddr, Listener, Place};
use crate::net::socket::{self, SocketFile};

/// How often both halves of `:0` are bound again until they have the same port.
const PAIR_ATTEMPTS: usize = 16;

/// A socket that listens.
#[derive(Debug)]
pub struct BoundListener {
    /// Which of the model's listeners it is for: its place in the list.
    pub listener: usize,
    /// Where it really listens.
    pub address: BoundAddr,
    /// The socket.
    pub socket: OwnedFd,
    /// The file of a unix socket, which is removed when this is dropped.
    pub file: Option<SocketFile>,
    /// Which one it is, where its address has several.
    pub part: Option<Part>,
}

/// Which of the sockets of an address one is (`SO_REUSEPORT`).
///
/// How many there are is decided when the address is bound, and stays so until it is closed for good:
/// a socket that came or went with the cores would take clients along that wait in its accept queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// From 0, below `of`.
    pub index: usize,
    /// How many there are, at least 1.
    pub of: usize,
}

impl Part {
    /// Whether core `core` of `cores` accepts from it. Each core accepts from one at least, and from each
    /// one accepts a core at least, however many there are of both.
    pub fn is_for(self, core: usize, cores: usize) -> bool {
        self.index % cores == core || core % self.of == self.index
    }
}

/// The address of a listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BoundAddr {
    /// TCP, with the port that the kernel gave.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl BoundAddr {
    /// As `listen` takes it: `127.0.0.1:8080`, `unix:/run/site.sock`.
    pub fn listen_text(&self) -> String {
        match self {
            Self::Tcp(address) => address.to_string(),
            Self::Unix(_) => self.to_string(),
        }
    }

    /// As a URL where there is one, for an address that is under TLS or not.
    pub fn url(&self, is_secured: bool) -> String {
        match self {
            Self::Tcp(address) if is_secured => format!("https://{address}"),
            _ => self.to_string(),
        }
    }
}

impl fmt::Display for BoundAddr {
    /// As a URL where there is one: `http://127.0.0.1:8080`, `unix:/run/site.sock`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An address that can't be listened on.
#[derive(Debug)]
pub struct ListenError {
    /// The address.
    pub address: ListenAddr,
    /// Where it was asked for.
    pub place: Place,
    /// What the kernel said.
    pub error: io::Error,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "can't listen on {}: {}", self.address, self.error)
    }
}

/// Binds every listener; `parts` is the number of sockets for each TCP address where that is more than
/// one shared by all cores.
///
/// # Errors
/// Every address that failed; the sockets of the others are closed again. A second address that
/// fails for the same reason as the one that it belongs to is not repeated.
pub fn bind(
    listeners: &[Listener],
    parts: Option<usize>,
) -> Result<Vec<BoundListener>, Vec<ListenError>> {
    let wanted: Vec<_> = listeners
        .iter()
        .map(|listener| (listener.address.clone(), listener.place.clone()))
        .collect();
    bind_missing(&wanted, parts, |_| false)
}

/// Binds every address that isn't `held` already, as a reload does. Each comes with the place where it
/// was asked for.
///
/// # Errors
/// As [`bind`].
pub fn bind_missing(
    listeners: &[(ListenAddr, Place)],
    parts: Option<usize>,
    held: impl Fn(&ListenAddr) -> bool,
) -> Result<Vec<BoundListener>, Vec<ListenError>> {
    let mut bound: Vec<BoundListener> = Vec::with_capacity(listeners.len());
    let mut failed: Vec<ListenError> = Vec::new();
    for (index, (wanted, place)) in listeners.iter().enumerate() {
        if held(wanted) {
            continue;
        }
        let result = match wanted {
            ListenAddr::Unix(path) => socket::unix(path).map(|(socket, file)| {
                Some(BoundListener {
                    listener: index,
                    address: BoundAddr::Unix(path.clone()),
                    socket,
                    file: Some(file),
                    part: None,
                })
            }),
            ListenAddr::Inherited(_) => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no socket of this name was handed over",
            )),
            ListenAddr::Tcp {
                address,
                companion: false,
            } => tcp(index, *address, parts).map(Some),
            ListenAddr::Tcp { address, .. } => {
                let partner = partner(*address);
                let is_partner = |other: &ListenAddr| matches!(other, ListenAddr::Tcp { address, .. } if Some(*address) == partner);
                if failed.iter().any(|error| is_partner(&error.address)) {
                    continue;
                }
                let first = bound
                    .iter_mut()
                    .find(|other| is_partner(&listeners[other.listener].0));
                companion(index, *address, parts, first)
            }
        };
        match result {
            Ok(socket) => bound.extend(socket),
            Err(error) => failed.push(ListenError {
                address: wanted.clone(),
                place: place.clone(),
                error,
            }),
        }
    }
    // When the ports are settled.
    let mut beside = Vec::new();
    for first in &bound {
        match siblings(first) {
            Ok(sockets) => beside.extend(sockets),
            Err(error) => {
                let (address, place) = listeners[first.listener].clone();
                failed.push(ListenError {
                    address,
                    place,
                    error,
                });
            }
        }
    }
    bound.extend(beside);
    if failed.is_empty() {
        Ok(bound)
    } else {
        Err(failed)
    }
}

fn tcp(listener: usize, address: SocketAddr, parts: Option<usize>) -> io::Result<BoundListener> {
    let (socket, address) = match parts {
        None => socket::tcp(address)?,
        Some(_) => socket::tcp_first(address)?,
    };
    Ok(BoundListener {
        listener,
        address: BoundAddr::Tcp(address),
        socket,
        file: None,
        part: parts.map(|of| Part { index: 0, of }),
    })
}

/// The other sockets of an address.
fn siblings(first: &BoundListener) -> io::Result<Vec<BoundListener>> {
    let (Some(Part { of, .. }), BoundAddr::Tcp(address)) = (first.part, &first.address) else {
        return Ok(Vec::new());
    };
    let sibling = |index| {
        Ok(BoundListener {
            listener: first.listener,
            address: first.address.clone(),
            socket: socket::tcp_beside(*address)?,
            file: None,
            part: Some(Part { index, of }),
        })
    };
    (1..of).map(sibling).collect()
}

/// The IPv4 address that an IPv6 companion belongs to.
fn partner(companion: SocketAddr) -> Option<SocketAddr> {
    let ip: IpAddr = match companion.ip() {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Ipv4Addr::LOCALHOST.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, companion.port()))
}

/// Binds the IPv6 half of an address; nothing on a machine without IPv6. With port 0 it takes the port
/// of the first half, which is bound again while somebody else has its port on IPv6.
fn companion(
    listener: usize,
    address: SocketAddr,
    parts: Option<usize>,
    first: Option<&mut BoundListener>,
) -> io::Result<Option<BoundListener>> {
    let result = match first {
        Some(first) if address.port() == 0 => pair(listener, address, first),
        _ => tcp(listener, address, parts),
    };
    match result {
        Err(error) if is_absent(&error) => {
            tracing::debug!(%address, %error, "no IPv6: listening on IPv4 alone");
            Ok(None)
        }
        result => result.map(Some),
    }
}

fn pair(
    listener: usize,
    address: SocketAddr,
    first: &mut BoundListener,
) -> io::Result<BoundListener> {
    let parts = first.part.map(|part| part.of);
    let mut attempt = 0;
    loop {
        let BoundAddr::Tcp(mut other) = first.address else {
            return tcp(listener, address, parts);
        };
        attempt += 1;
        match tcp(listener, SocketAddr::new(address.ip(), other.port()), parts) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < PAIR_ATTEMPTS => {
                other.set_port(0);
                *first = tcp(first.listener, other, parts)?;
            }
            result => return result,
        }
    }
}

/// The machine has no IPv6, or it is switched off.
fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
        || error.kind() == io::ErrorKind::AddrNotAvailable
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::router::{HostMap, HostPattern};

    fn listener(address: ListenAddr) -> Listener {
        Listener {
            address,
            sites: HostMap::build(vec![(HostPattern::Default, 0)]).unwrap(),
            proxy_protocol: None,
            tls: None,
            place: Place::default(),
        }
    }

    fn on(address: &str, companion: bool) -> Listener {
        listener(ListenAddr::Tcp {
            address: address.parse().unwrap(),
            companion,
        })
    }

    fn port(bound: &BoundListener) -> u16 {
        match &bound.address {
            BoundAddr::Tcp(address) => address.port(),
            BoundAddr::Unix(path) => panic!("{path:?} has no port"),
        }
    }

    #[test]
    fn both_halves_of_port_0_get_one_port() {
        let bound = bind(&[on("127.0.0.1:0", false), on("[::1]:0", true)], None).unwrap();
        let ports: Vec<u16> = bound.iter().map(port).collect();
        assert!(ports.iter().all(|port| *port == ports[0] && *port != 0));
        assert_eq!(bound[0].listener, 0);
    }

    #[test]
    fn a_first_half_moves_while_the_other_half_is_taken() {
        let Ok(taken) = tcp(0, "[::1]:0".parse().unwrap(), None) else {
            return;
        };
        let Ok(mut first) = tcp(0, (Ipv4Addr::LOCALHOST, port(&taken)).into(), None) else {
            return;
        };
        let second = pair(1, "[::1]:0".parse().unwrap(), &mut first).unwrap();
        assert_eq!(port(&first), port(&second));
        assert_ne!(port(&first), port(&taken));
    }

    #[test]
    fn every_failing_address_is_told_and_a_companion_not_twice() {
        let taken = tcp(0, "127.0.0.1:0".parse().unwrap(), None).unwrap();
        let port = port(&taken);
        let errors = bind(
            &[
                on(&format!("127.0.0.1:{port}"), false),
                on(&format!("[::1]:{port}"), true),
                on("127.0.0.1:0", false),
                listener(ListenAddr::Unix("/nonexistent/site.sock".into())),
                listener(ListenAddr::Inherited("web".into())),
            ],
            None,
        )
        .unwrap_err();
        let told: Vec<String> = errors.iter().map(|e| e.address.to_string()).collect();
        let first = format!("127.0.0.1:{port}");
        assert_eq!(
            told,
            [first.as_str(), "unix:/nonexistent/site.sock", "fd:web"]
        );
        assert_eq!(errors[0].error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(errors[1].error.kind(), io::ErrorKind::NotFound);
        assert_eq!(errors[2].error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn sockets_of_one_address_are_ours_alone() {
        let all = [on("127.0.0.1:0", false), on("[::1]:0", true)];
        let bound = bind(&all, Some(3)).unwrap();
        let parts: Vec<usize> = bound.iter().filter_map(|it| Some(it.part?.index)).collect();
        let v6 = bound.iter().any(|it| it.listener == 1);
        assert_eq!(parts.len(), if v6 { 6 } else { 3 });
        let port = port(&bound[0]);
        assert!(bound.iter().all(|it| super::tests::port(it) == port));
        // A second server of this kind is told, and so is one with a plain socket.
        for parts in [Some(3), None] {
            let again = bind(&[on(&format!("127.0.0.1:{port}"), false)], parts);
            assert_eq!(again.unwrap_err()[0].error.kind(), io::ErrorKind::AddrInUse);
        }
        // Clients come to all of them.
        let mut waiting = [false; 3];
        let mut clients = Vec::new();
        while waiting.contains(&false) {
            clients.push(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
            assert!(clients.len() < 1000, "{waiting:?}");
            for listener in bound.iter().filter(|it| it.listener == 0) {
                let part = listener.part.unwrap();
                let socket = rustix::net::accept(&listener.socket);
                waiting[part.index] |= socket.is_ok();
            }
        }
    }

    #[test]
    fn every_core_has_a_socket_and_every_socket_a_core() {
        for of in 1..9 {
            for cores in 1..9 {
                let parts = (0..of).map(|index| Part { index, of });
                let of_core = |core| parts.clone().filter(|it| it.is_for(core, cores)).count();
                let counts: Vec<usize> = (0..cores).map(of_core).collect();
                let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
                assert!(*least > 0 && most - least <= 1, "{of}, {cores}: {counts:?}");
                for part in parts.clone() {
                    assert!((0..cores).any(|core| part.is_for(core, cores)));
                }
            }
        }
    }

    #[test]
    fn addresses_are_shown_as_urls() {
        let v6 = BoundAddr::Tcp("[::1]:8080".parse().unwrap());
        assert_eq!(v6.to_string(), "http://[::1]:8080");
        let unix = BoundAddr::Unix("/run/site.sock".into());
        assert_eq!(unix.to_string(), "unix:/run/site.sock");
    }
}
