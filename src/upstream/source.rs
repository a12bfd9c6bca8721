//! Tells at the start what the first connection would find: that an address to connect from is none of
//! this host's.
//!
//! A warning and no error, since the address may come later (a failover address, an interface that isn't
//! up yet); until then each connection says so itself.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;

use rustix::io::Errno;

use crate::config::model::Upstream;

/// Logs a warning for each upstream and address that is not there now.
pub fn warn_of_foreign(upstreams: &[Arc<Upstream>]) {
    for upstream in upstreams {
        for source in upstream.source.addresses().filter(|it| is_foreign(*it)) {
            tracing::warn!(
                upstream = &*upstream.name,
                %source,
                "`source` is not an address of this host now: servers can't be connected to from it; \
                 check it, or add it to an interface"
            );
        }
    }
}

/// Whether nothing can be sent from there now. A socket for datagrams tells without any port of TCP.
pub fn is_foreign(source: IpAddr) -> bool {
    let bound = UdpSocket::bind((source, 0));
    bound.is_err_and(|error| Errno::from_io_error(&error) == Some(Errno::ADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_this_host_is_told_from_one_that_is_none() {
        for (source, expected) in [
            ("127.0.0.1", false),
            ("127.9.9.9", false),
            // For documentation alone (RFC 5737).
            ("192.0.2.1", true),
        ] {
            assert_eq!(is_foreign(source.parse().unwrap()), expected, "{source}");
        }
    }
}
