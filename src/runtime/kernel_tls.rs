//! TLS of the kernel for what is sent (kTLS): calls on a connection, and the trial whether the kernel
//! has it. It knows keys as bytes; what they mean is said in `net::tls`.
//!
//! The simulator's kernel has none: each socket of it refuses, as one of a real kernel may.

use std::cell::Cell;
use std::fmt;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;

use rustix::io::Errno;

use super::executor::Core;
use super::fd::Fd;
use super::sys::kernel_tls;

/// What a core has of it.
#[derive(Default)]
pub(crate) struct KernelTls {
    /// Which keys may be given to the kernel, a bit for each kind.
    kinds: Cell<u8>,
    counts: Cell<KernelTlsCounts>,
}

/// What a core has given to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelTlsCounts {
    /// Connections at this moment whose records the kernel makes.
    pub open: u64,
    /// Connections since the start.
    pub total: u64,
    /// Connections that the kernel didn't take: they went on as before.
    pub refused: u64,
}

impl Core {
    /// Lets connections with these kinds of keys be given to the kernel; at first there is none.
    pub fn allow_kernel_tls(&self, kinds: u8) {
        self.inner().kernel_tls.kinds.set(kinds);
    }

    /// Which kinds of keys the kernel takes: a bit for each.
    pub fn kernel_tls_kinds(&self) -> u8 {
        self.inner().kernel_tls.kinds.get()
    }

    /// Counts something.
    pub fn count_kernel_tls(&self, count: impl FnOnce(&mut KernelTlsCounts)) {
        let cell = &self.inner().kernel_tls.counts;
        let mut counts = cell.get();
        count(&mut counts);
        cell.set(counts);
    }

    /// What was given to the kernel so far.
    pub fn kernel_tls_counts(&self) -> KernelTlsCounts {
        self.inner().kernel_tls.counts.get()
    }

    /// Asks the kernel for TLS on this connection. By itself that changes nothing.
    ///
    /// # Errors
    /// `ENOENT` without the module, `ENOTCONN` when the client has ended its direction.
    pub fn attach_tls(&self, socket: &Fd) -> Result<(), Errno> {
        self.at_once(socket, kernel_tls::attach, |_| Err(Errno::NOENT))
    }

    /// Has the kernel encrypt what is sent from now on.
    ///
    /// # Errors
    /// As the kernel says; then nothing may be sent any more.
    pub fn set_tls_sending(&self, socket: &Fd, keys: &[u8]) -> Result<(), Errno> {
        self.at_once(
            socket,
            |os| kernel_tls::set_sending(os, keys),
            |_| Err(Errno::NOENT),
        )
    }

    /// Reads the keys that what is sent is encrypted by, and the number of the next record.
    ///
    /// # Errors
    /// `EINVAL` when `keys` hasn't the size of their structure.
    pub fn tls_sending(&self, socket: &Fd, keys: &mut [u8]) -> Result<(), Errno> {
        self.at_once(
            socket,
            |os| kernel_tls::sending(os, keys),
            |_| Err(Errno::NOENT),
        )
    }

    /// Sends a record of another type than content.
    ///
    /// # Errors
    /// `EAGAIN` when the socket takes nothing now; otherwise the connection is broken.
    pub fn send_tls_record(&self, socket: &Fd, kind: u8, content: &[u8]) -> Result<(), Errno> {
        self.at_once(
            socket,
            |os| kernel_tls::send_record(os, kind, content).map(drop),
            |_| Err(Errno::NOENT),
        )
    }
}

/// Why the kernel encrypts nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoKernelTls {
    /// The kernel has no TLS, or hasn't loaded its module.
    NoModule,
    /// It takes no kind of keys that there is.
    NoKeys(Errno),
    /// It could not be tried: there is no connection to this machine itself.
    Untried(String),
}

impl fmt::Display for NoKernelTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoModule => {
                f.write_str("the kernel has no TLS: its module `tls` is missing or isn't loaded")
            }
            Self::NoKeys(errno) => write!(f, "the TLS of the kernel takes no cipher ({errno})"),
            Self::Untried(why) => {
                write!(f, "the TLS of the kernel can't be tried on loopback: {why}")
            }
        }
    }
}

/// Tries on connections to this machine itself which of these keys (at most 8) the kernel takes, and
/// gives a bit for each. To be called before a worker is confined: it binds a port. Where the module
/// isn't loaded, the kernel loads it for a process that has `CAP_NET_ADMIN`.
///
/// # Errors
/// When it takes none.
pub fn try_kernel_tls<'k>(keys: impl IntoIterator<Item = &'k [u8]>) -> Result<u8, NoKernelTls> {
    let untried = |error: std::io::Error| NoKernelTls::Untried(error.to_string());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(untried)?;
    let address = listener.local_addr().map_err(untried)?;
    let mut taken = 0;
    let mut refused = Errno::NOENT;
    for (index, keys) in keys.into_iter().enumerate() {
        let socket = TcpStream::connect(address).map_err(untried)?;
        let socket = socket.as_fd();
        match kernel_tls::attach(socket) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::NOPROTOOPT) => return Err(NoKernelTls::NoModule),
            Err(errno) => return Err(NoKernelTls::Untried(errno.to_string())),
        }
        // How many records were sent has to be known later.
        let tried = kernel_tls::set_sending(socket, keys)
            .and_then(|()| kernel_tls::sending(socket, &mut vec![0; keys.len()]));
        match tried {
            Ok(()) => taken |= 1 << index,
            Err(errno) => refused = errno,
        }
    }
    match taken {
        0 => Err(NoKernelTls::NoKeys(refused)),
        taken => Ok(taken),
    }
}

/// Has the kernel load its module, for a process that may (`CAP_NET_ADMIN`, and a kernel that loads
/// modules). Whether it has done so is seen by a trial.
pub fn load_kernel_tls() {
    let attached = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| {
        let socket = TcpStream::connect(listener.local_addr()?)?;
        Ok(kernel_tls::attach(socket.as_fd())?)
    });
    if let Err(why) = attached {
        tracing::debug!(%why, "the kernel has no TLS");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::runtime::on_each_engine;

    #[test]
    fn a_kernel_without_it_is_told_from_one_that_can_t_be_tried() {
        // Keys that no kernel takes: version 0.
        match try_kernel_tls([&[0; 40][..]]) {
            Err(NoKernelTls::NoModule | NoKernelTls::NoKeys(_)) => {}
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_isn_t_connected_is_refused_on_each_engine() {
        on_each_engine(None, Duration::from_secs(5), |core| {
            let (one, _other) = rustix::net::socketpair(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::STREAM,
                rustix::net::SocketFlags::CLOEXEC,
                None,
            )
            .unwrap();
            let socket = core.own(one);
            assert!(core.attach_tls(&socket).is_err());
            assert!(core.set_tls_sending(&socket, &[0; 40]).is_err());
            assert_eq!(core.kernel_tls_kinds(), 0);
            core.allow_kernel_tls(0b101);
            assert_eq!(core.kernel_tls_kinds(), 0b101);
        });
    }
}
