//! Which client a request is taken to come from: whose word is believed is the site's to say.

use std::net::IpAddr;

use crate::config::model::Site;
use crate::http::semantics::forwarding::client_address;
use crate::http::session::Peer;
use crate::http::types::Request;
use crate::runtime::executor::Core;

/// The client of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address, as far as trusted proxies tell it; `None` for one of a unix socket.
    pub address: Option<IpAddr>,
    /// The address of the peer that sent the request, by the PROXY header where there was one.
    pub peer: Option<IpAddr>,
    /// Whether the site believes what that peer says of the client.
    pub peer_trusted: bool,
}

/// The client of a request to this site. Addresses are canonical: never IPv4 inside IPv6.
pub fn client_of(site: &Site, request: &Request<'_>, peer: &Peer, core: &Core) -> Client {
    let trusted = &*site.trusted_proxies;
    let address = peer
        .address(core)
        .map(|address| address.ip().to_canonical());
    let peer_trusted = peer.is_among(core, trusted);
    Client {
        address: match peer_trusted {
            true => client_address(address, &request.fields, trusted),
            false => address,
        },
        peer: address,
        peer_trusted,
    }
}
