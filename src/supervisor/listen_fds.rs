//! Sockets that a service manager made and hands over (sd_listen_fds(3)): which there are, whether
//! they can be used, and which listener of the configuration each is for.
//!
//! [`Announced::parse`] and [`place`] are pure. The variables stay in the environment, which other
//! threads may read; whoever starts another program takes [`VARIABLES`] out of that program's.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{SockRef, Type};

use super::bind::BoundAddr;
use super::sys_fds;

/// The variables that announce the sockets. They are for one process, and stay away from the worker
/// and from the program that an upgrade starts in the same process.
pub const VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Number of the first descriptor (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// Most sockets that are taken.
const SOCKETS_MAX: usize = 1024;

/// Name of a socket without one (sd_listen_fds_with_names(3)).
const UNNAMED: &str = "unknown";

/// What the environment says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// A name for each descriptor, the first of which has number 3.
    pub names: Vec<String>,
}

/// A listening socket that was handed over: closed on exec, non-blocking.
#[derive(Debug)]
pub struct Inherited {
    /// `FileDescriptorName=` of its unit, by default the unit's name. Several may have the same.
    pub name: String,
    /// The socket.
    pub socket: OwnedFd,
    /// Where it listens. A unix socket without a file has an address that begins with `@`.
    pub address: BoundAddr,
    /// An IPv6 socket that takes IPv4 connections too.
    pub dual_stack: bool,
}

/// Where the socket of a listener comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody handed one over: bind it. For `fd:NAME` that is an error.
    Bind,
    /// These were handed over, by their places in the list.
    Inherited(Vec<usize>),
    /// The socket of this other listener takes its connections: an IPv6 socket for both families.
    CoveredBy(usize),
}

/// What is for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// For each listener of the configuration.
    pub listeners: Vec<Source>,
    /// Sockets that no listener wants, by their places in the list: worth a warning, and better closed,
    /// since connections to them would wait for ever.
    pub spare: Vec<usize>,
}

impl Announced {
    /// Reads the variables of process `pid`. Nothing when they are missing or for another process.
    ///
    /// # Errors
    /// When they contradict each other or can't be read: which, and what they should be.
    pub fn parse(variable: impl Fn(&str) -> Option<String>, pid: u32) -> Result<Self, String> {
        let [for_pid, count, names] = VARIABLES.map(&variable);
        let (Some(for_pid), Some(count)) = (for_pid, count) else {
            return Ok(Self::default());
        };
        let for_pid: u32 = for_pid
            .parse()
            .map_err(|_| format!("LISTEN_PID={for_pid:?} is no process number"))?;
        if for_pid != pid {
            return Ok(Self::default());
        }
        let count = count
            .parse()
            .ok()
            .filter(|count: &usize| *count <= SOCKETS_MAX)
            .ok_or_else(|| {
                format!("LISTEN_FDS={count:?} is no number of sockets (at most {SOCKETS_MAX})")
            })?;
        let Some(names) = names else {
            return Ok(Self {
                names: vec![UNNAMED.to_owned(); count],
            });
        };
        let names: Vec<String> = match &*names {
            "" if count != 1 => Vec::new(),
            names => names.split(':').map(str::to_owned).collect(),
        };
        if names.len() != count {
            return Err(format!(
                "LISTEN_FDNAMES has {} names for {count} sockets",
                names.len()
            ));
        }
        Ok(Self { names })
    }
}

/// The sockets that were handed to this process; each is given once, so a second call gives none.
/// Beside them, in words, what can't be used and why: those are closed.
pub fn take() -> (Vec<Inherited>, Vec<String>) {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Default::default();
    }
    let variable = |name: &str| std::env::var(name).ok();
    match Announced::parse(variable, std::process::id()) {
        Ok(announced) => adopt(announced.names.into_iter().zip(FIRST..)),
        Err(error) => (Vec::new(), vec![error]),
    }
}

fn adopt(announced: impl Iterator<Item = (String, RawFd)>) -> (Vec<Inherited>, Vec<String>) {
    let mut sockets = Vec::new();
    let mut refused = Vec::new();
    for (name, fd) in announced {
        let inherited = sys_fds::adopt(fd)
            .map_err(|error| error.to_string())
            .and_then(|socket| Inherited::check(name.clone(), socket));
        match inherited {
            Ok(inherited) => sockets.push(inherited),
            Err(why) => refused.push(format!(
                "descriptor {fd} ({name}) of the service manager can't be used: {why}"
            )),
        }
    }
    (sockets, refused)
}

impl Inherited {
    /// Makes sure that it is a listening stream socket, and makes it non-blocking.
    fn check(name: String, socket: OwnedFd) -> Result<Self, String> {
        let given = SockRef::from(&socket);
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(libc::ENOTSOCK) => "it is no socket".to_owned(),
            _ => error.to_string(),
        };
        if given.r#type().map_err(failed)? != Type::STREAM {
            return Err("it is no stream socket; use ListenStream=".to_owned());
        }
        let listens = rustix::net::sockopt::socket_acceptconn(&socket)
            .map_err(|error| failed(error.into()))?;
        if !listens {
            return Err("it doesn't listen; use Accept=no".to_owned());
        }
        let local = given.local_addr().map_err(failed)?;
        let address = if let Some(address) = local.as_socket() {
            BoundAddr::Tcp(address)
        } else if let Some(path) = local.as_pathname() {
            BoundAddr::Unix(path.to_owned())
        } else if let Some(name) = local.as_abstract_namespace() {
            BoundAddr::Unix(PathBuf::from(format!("@{}", String::from_utf8_lossy(name))))
        } else {
            return Err("it is neither TCP nor a unix socket".to_owned());
        };
        let dual_stack = match address {
            BoundAddr::Tcp(SocketAddr::V6(_)) => !given.only_v6().map_err(failed)?,
            _ => false,
        };
        given.set_nonblocking(true).map_err(failed)?;
        if matches!(address, BoundAddr::Tcp(_)) {
            // As our own sockets have it: accepted ones inherit it (tcp(7)).
            given.set_tcp_nodelay(true).map_err(failed)?;
        }
        Ok(Self {
            name,
            socket,
            address,
            dual_stack,
        })
    }
}

impl fmt::Display for Inherited {
    /// `http://0.0.0.0:80 (beltway.socket)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address, self.name)
    }
}

/// Decides which socket serves which listener. `wanted` are the listeners as `listen` takes them:
/// `fd:NAME` gets all sockets of that name, an address the first socket that listens there.
pub fn place(wanted: &[String], inherited: &[Inherited]) -> Placement {
    let facts: Vec<Fact<'_>> = inherited
        .iter()
        .map(|it| Fact {
            name: &it.name,
            address: match &it.address {
                BoundAddr::Tcp(address) => address.to_string(),
                BoundAddr::Unix(path) => format!("unix:{}", path.display()),
            },
            dual_stack: it.dual_stack,
        })
        .collect();
    place_facts(wanted, &facts)
}

/// What placing needs to know of a socket.
struct Fact<'a> {
    name: &'a str,
    address: String,
    dual_stack: bool,
}

fn place_facts(wanted: &[String], sockets: &[Fact<'_>]) -> Placement {
    let mut free = vec![true; sockets.len()];
    let mut listeners = vec![Source::Bind; wanted.len()];
    // Names first: whoever names a socket means it, wherever it listens.
    for (listener, wanted) in listeners.iter_mut().zip(wanted) {
        let Some(name) = wanted.strip_prefix("fd:") else {
            continue;
        };
        let named = (0..sockets.len()).filter(|at| free[*at] && sockets[*at].name == name);
        let named: Vec<usize> = named.collect();
        if !named.is_empty() {
            named.iter().for_each(|at| free[*at] = false);
            *listener = Source::Inherited(named);
        }
    }
    for (listener, wanted) in listeners.iter_mut().zip(wanted) {
        let there = (0..sockets.len()).find(|at| free[*at] && sockets[*at].address == *wanted);
        if let (Source::Bind, Some(at)) = (&*listener, there) {
            free[at] = false;
            *listener = Source::Inherited(vec![at]);
        }
    }
    for index in 0..listeners.len() {
        let covers = |other: &Source| match other {
            Source::Inherited(at) => at.iter().any(|at| {
                sockets[*at].dual_stack && is_other_half(&wanted[index], &sockets[*at].address)
            }),
            _ => false,
        };
        if listeners[index] == Source::Bind
            && let Some(other) = listeners.iter().position(covers)
        {
            listeners[index] = Source::CoveredBy(other);
        }
    }
    let spare = (0..sockets.len()).filter(|at| free[*at]).collect();
    Placement { listeners, spare }
}

/// Whether `wanted` is all of IPv4 on the port that `socket` has on all of IPv6.
fn is_other_half(wanted: &str, socket: &str) -> bool {
    let (Ok(wanted), Ok(socket)) = (wanted.parse::<SocketAddr>(), socket.parse::<SocketAddr>())
    else {
        return false;
    };
    wanted.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        && socket.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        && wanted.port() == socket.port()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::IntoRawFd as _;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn parse(pid: &str, count: &str, names: &str) -> Result<Vec<String>, String> {
        let variable = |name: &str| {
            let value = match name {
                "LISTEN_PID" => pid,
                "LISTEN_FDS" => count,
                _ => names,
            };
            (value != "-").then(|| value.to_owned())
        };
        Announced::parse(variable, 42).map(|announced| announced.names)
    }

    #[test]
    fn the_environment_says_what_there_is() {
        for (pid, count, names, expected) in [
            ("-", "-", "-", &[][..]),
            ("-", "2", "-", &[]),
            ("42", "-", "-", &[]),
            ("41", "2", "-", &[]),
            ("42", "0", "", &[]),
            ("42", "0", "-", &[]),
            ("42", "2", "-", &["unknown", "unknown"]),
            ("42", "1", "", &[""]),
            ("42", "2", "web:admin", &["web", "admin"]),
            ("42", "3", "web::web", &["web", "", "web"]),
        ] {
            let parsed = parse(pid, count, names).unwrap();
            assert_eq!(parsed, expected, "{pid} {count} {names}");
        }
        for (pid, count, names, part) in [
            ("x", "1", "-", "LISTEN_PID"),
            ("42", "x", "-", "LISTEN_FDS"),
            ("42", "-1", "-", "LISTEN_FDS"),
            ("42", "99999999999", "-", "at most 1024"),
            ("42", "2", "web", "1 names for 2"),
            ("42", "1", "a:b", "2 names for 1"),
        ] {
            let error = parse(pid, count, names).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    fn adopted(name: &str, socket: impl Into<OwnedFd>) -> (Vec<Inherited>, Vec<String>) {
        adopt([(name.to_owned(), socket.into().into_raw_fd())].into_iter())
    }

    #[test]
    fn a_listening_socket_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.sock");
        let (sockets, refused) = adopted("web", UnixListener::bind(&path).unwrap());
        assert_eq!(refused, [""; 0]);
        assert_eq!(sockets[0].address, BoundAddr::Unix(path.clone()));
        UnixStream::connect(&path).unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sockets, _) = adopted("web", listener);
        assert_eq!(sockets[0].address, BoundAddr::Tcp(address));
        assert_eq!(sockets[0].to_string(), format!("http://{address} (web)"));
        let socket = SockRef::from(&sockets[0].socket);
        assert!(socket.nonblocking().unwrap() && socket.tcp_nodelay().unwrap());
    }

    #[test]
    fn what_cannot_be_served_is_told() {
        let file = tempfile::tempfile().unwrap();
        let datagram = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (connected, _other) = UnixStream::pair().unwrap();
        for (fd, part) in [
            (OwnedFd::from(file), "it is no socket"),
            (datagram.into(), "ListenStream="),
            (connected.into(), "Accept=no"),
        ] {
            let (sockets, refused) = adopted("web", fd);
            assert!(sockets.is_empty());
            assert!(
                refused[0].contains(part) && refused[0].contains("(web)"),
                "{refused:?}"
            );
        }
    }

    fn placed(wanted: &[&str], sockets: &[(&str, &str, bool)]) -> Placement {
        let wanted: Vec<String> = wanted.iter().map(|it| (*it).to_owned()).collect();
        let facts: Vec<Fact<'_>> = sockets
            .iter()
            .map(|(name, address, dual_stack)| Fact {
                name,
                address: (*address).to_owned(),
                dual_stack: *dual_stack,
            })
            .collect();
        place_facts(&wanted, &facts)
    }

    #[test]
    fn listeners_get_sockets_by_name_or_address() {
        use Source::{Bind, CoveredBy, Inherited};
        let web4 = ("web", "0.0.0.0:80", false);
        let web6 = ("web", "[::]:80", false);
        let both = ("web", "[::]:80", true);
        let unix = ("admin", "unix:/run/a.sock", false);
        for (wanted, sockets, listeners, spare) in [
            (
                &["fd:web"][..],
                &[web4, unix, web6][..],
                vec![Inherited(vec![0, 2])],
                &[1][..],
            ),
            (&["fd:nobody"], &[web4], vec![Bind], &[0]),
            (
                &["unix:/run/a.sock"],
                &[unix],
                vec![Inherited(vec![0])],
                &[],
            ),
            (
                &["0.0.0.0:80", "[::]:80", "0.0.0.0:81"],
                &[web6, web4],
                vec![Inherited(vec![1]), Inherited(vec![0]), Bind],
                &[],
            ),
            // A name wins over an address that is asked for before it.
            (
                &["0.0.0.0:80", "fd:web"],
                &[web4],
                vec![Bind, Inherited(vec![0])],
                &[],
            ),
            (
                &["0.0.0.0:80", "[::]:80"],
                &[both],
                vec![CoveredBy(1), Inherited(vec![0])],
                &[],
            ),
            // An IPv6 socket of its own family alone covers nothing.
            (
                &["0.0.0.0:80", "[::]:80"],
                &[web6],
                vec![Bind, Inherited(vec![0])],
                &[],
            ),
            (&["0.0.0.0:80"], &[both], vec![Bind], &[0]),
            (
                &["127.0.0.1:80", "[::]:80"],
                &[both],
                vec![Bind, Inherited(vec![0])],
                &[],
            ),
            // Two sockets at one address (SO_REUSEPORT): the second is too much.
            (
                &["0.0.0.0:80"],
                &[web4, web4],
                vec![Inherited(vec![0])],
                &[1],
            ),
        ] {
            let placement = placed(wanted, sockets);
            assert_eq!(placement.listeners, listeners, "{wanted:?}");
            assert_eq!(placement.spare, spare, "{wanted:?}");
        }
    }
}
