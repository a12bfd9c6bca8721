//! Where a peer listens: one type for TCP and unix sockets, to compare, to show and to key tables by.
//!
//! It knows no names: those are resolved before there is an [`Address`].

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use socket2::{Domain, SockAddr};

/// The address of a stream socket. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// IPv4 or IPv6.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(Arc<Path>),
}

impl Address {
    /// The form in which connect(2) wants it.
    ///
    /// # Errors
    /// `ENAMETOOLONG` for a path of more than 107 bytes (unix(7)), `EINVAL` for one with a zero byte.
    pub fn encode(&self) -> Result<SockAddr, Errno> {
        match self {
            Self::Tcp(address) => Ok(SockAddr::from(*address)),
            Self::Unix(path) if path.as_os_str().len() > UNIX_PATH_MAX => Err(Errno::NAMETOOLONG),
            Self::Unix(path) if path.as_os_str().as_bytes().contains(&0) => Err(Errno::INVAL),
            Self::Unix(path) => SockAddr::unix(path).map_err(|_| Errno::INVAL),
        }
    }

    /// The address in this form; `None` for what is neither an IP address nor a path.
    pub fn decode(encoded: &SockAddr) -> Option<Self> {
        match encoded.as_socket() {
            Some(address) => Some(Self::Tcp(address)),
            None => encoded.as_pathname().map(Self::from),
        }
    }

    pub(crate) fn domain(&self) -> Domain {
        match self {
            Self::Tcp(address) => Domain::for_address(*address),
            Self::Unix(_) => Domain::UNIX,
        }
    }
}

/// Bytes of a path that `sun_path` holds beside the zero at its end (unix(7)).
const UNIX_PATH_MAX: usize = 107;

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::Unix(Arc::from(path))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_its_encoding() {
        for address in [
            Address::Tcp("192.0.2.1:80".parse().unwrap()),
            Address::Tcp("[2001:db8::1]:8080".parse().unwrap()),
            Address::from(Path::new("/run/app.sock")),
        ] {
            let encoded = address.encode().unwrap();
            assert_eq!(Address::decode(&encoded), Some(address));
        }
    }

    #[test]
    fn a_path_that_the_kernel_can_not_hold_is_refused() {
        let of = |len: usize| Address::from(Path::new(&"x".repeat(len))).encode();
        assert!(of(107).is_ok());
        assert_eq!(of(108).unwrap_err(), Errno::NAMETOOLONG);
        let zero = Address::from(Path::new("a\0b"));
        assert_eq!(zero.encode().unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn is_shown_as_it_is_configured() {
        let tcp = Address::Tcp("[::1]:80".parse().unwrap());
        assert_eq!(tcp.to_string(), "[::1]:80");
        let unix = Address::from(Path::new("/run/app.sock"));
        assert_eq!(unix.to_string(), "unix:/run/app.sock");
    }
}
