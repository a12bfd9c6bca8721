//! Who is at the other end of a connection, by the socket and by what a PROXY header told.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::net::listener::Listening;
use crate::net::secured::Secured;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::util::network::Peers;

/// What is known of the connection that a request came on.
pub struct Peer {
    /// The socket, to ask for the address when it is needed.
    pub socket: Fd,
    /// The listening socket that it was accepted from.
    pub listener: Rc<Listening>,
    /// Boxed, as what follows is: few connections need it while they idle, and all have the place.
    address: OnceCell<Box<Option<SocketAddr>>>,
    /// What came before the first request; boxed, for a plain connection has nothing, and all have the
    /// place.
    introduced: Option<Box<Introduced>>,
}

/// What comes before the first request.
#[derive(Default)]
struct Introduced {
    /// Whose connection it is, by a PROXY header.
    client: Option<SocketAddr>,
    /// TLS.
    secured: Option<Rc<Secured>>,
}

impl Peer {
    pub(super) fn new(socket: Fd, listener: Rc<Listening>) -> Self {
        Self {
            socket,
            listener,
            address: OnceCell::new(),
            introduced: None,
        }
    }

    /// A PROXY header that is believed told whose connection it is.
    pub(super) fn told(&mut self, client: SocketAddr) {
        self.introduced.get_or_insert_default().client = Some(client);
    }

    /// The connection is under TLS.
    pub(super) fn secure(&mut self, secured: Rc<Secured>) {
        self.introduced.get_or_insert_default().secured = Some(secured);
    }

    /// TLS, where the connection is under it.
    pub fn secured(&self) -> Option<&Secured> {
        self.introduced.as_ref()?.secured.as_deref()
    }

    /// The client's address: that of the PROXY header where one told it, else the socket's.
    pub fn address(&self, core: &Core) -> Option<SocketAddr> {
        let introduced = self.introduced.as_ref();
        match introduced.and_then(|introduced| introduced.client) {
            Some(client) => Some(client),
            None => self.socket_address(core),
        }
    }

    /// The address of the other end of the socket, whatever a PROXY header told; asked for once.
    /// `None` for a unix socket, and for a connection that was gone when it was asked.
    pub fn socket_address(&self, core: &Core) -> Option<SocketAddr> {
        **self.address.get_or_init(|| {
            let any = core.peer_address(&self.socket);
            Box::new(any.and_then(|any| SocketAddr::try_from(any).ok()))
        })
    }

    /// Whether [`Self::address`] is among these peers. A connection without an address is one of a
    /// unix socket only if the kernel says so: one that was reset has none either, and what it had
    /// sent can still be read.
    pub fn is_among(&self, core: &Core, peers: &Peers) -> bool {
        match self.address(core) {
            Some(address) => peers.contains(Some(address.ip())),
            None => {
                peers.contains(None)
                    && core
                        .peer_address(&self.socket)
                        .is_some_and(|any| SocketAddr::try_from(any).is_err())
            }
        }
    }
}
