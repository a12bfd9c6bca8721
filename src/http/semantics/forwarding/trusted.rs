//! Whose word about the client is believed, and which address the client then has.

use std::net::IpAddr;

use super::forwarded::{elements, node_address};
use crate::http::types::Fields;
use crate::util::network::Peers;

/// The address of the client, as far as it can be known: the peer's own unless the peer is believed,
/// else the right-most address of the chain that isn't one of a believed proxy, since everything to
/// its left is that client's own word. `None` for a peer of a unix socket that tells nothing.
///
/// The chain is X-Forwarded-For, and Forwarded where there is none (RFC 7239 §5.2): a proxy that
/// writes Forwarded alone must remove what its client says in X-Forwarded-For. An entry that is no
/// address (`unknown`, `_hidden`) ends the search: the hop that told it is as far as it goes. If the
/// whole chain is believed, its left end is the client.
pub fn client_address(
    peer: Option<IpAddr>,
    fields: &Fields<'_>,
    trusted: &Peers,
) -> Option<IpAddr> {
    let peer = peer.map(|address| address.to_canonical());
    if !trusted.contains(peer) {
        return peer;
    }
    let mut client = peer;
    let mut chain = Chain {
        client: &mut client,
        trusted,
    };
    if fields.get("x-forwarded-for").is_some() {
        chain.walk_list(fields);
    } else {
        chain.walk_forwarded(fields);
    }
    client
}

struct Chain<'c> {
    client: &'c mut Option<IpAddr>,
    trusted: &'c Peers,
}

impl Chain<'_> {
    /// Takes the next hop to the left; false ends the walk.
    fn step(&mut self, hop: Option<IpAddr>) -> bool {
        if let Some(address) = hop {
            *self.client = Some(address);
        }
        hop.is_some() && self.trusted.contains(hop)
    }

    fn walk_list(&mut self, fields: &Fields<'_>) {
        // From the right, over all lines as if they were one (RFC 9110 §5.3).
        let mut lines: smallvec::SmallVec<[&[u8]; 4]> = fields.get_all("x-forwarded-for").collect();
        while let Some(line) = lines.pop() {
            for entry in line.rsplit(|&byte| byte == b',') {
                let entry = entry.trim_ascii();
                if !entry.is_empty() && !self.step(node_address(entry)) {
                    return;
                }
            }
        }
    }

    fn walk_forwarded(&mut self, fields: &Fields<'_>) {
        let mut lines: smallvec::SmallVec<[&[u8]; 4]> = fields.get_all("forwarded").collect();
        while let Some(line) = lines.pop() {
            // Quoted strings can't be read from the right.
            let Some(list) = elements(line) else {
                return;
            };
            for element in list.iter().rev() {
                if !self.step(element.address()) {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::network::Network;

    fn trusted(networks: &[&str]) -> Peers {
        let parse = |text: &&str| Network::parse(text).expect("a network");
        Peers::new(networks.iter().map(parse).collect(), false)
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    fn client(peer: &str, lines: &[(&'static str, &'static str)]) -> Option<IpAddr> {
        let mut fields = Fields::default();
        for (name, value) in lines {
            fields.push(name, value.as_bytes());
        }
        client_address(ip(peer), &fields, &trusted(&["10.0.0.0/8", "fd00::/8"]))
    }

    #[test]
    fn the_client_is_the_right_most_address_that_is_not_believed() {
        let xff = "X-Forwarded-For";
        for (peer, lines, expected) in [
            // Nobody believes a stranger.
            ("1.1.1.1", &[(xff, "2.2.2.2")][..], "1.1.1.1"),
            ("1.1.1.1", &[("Forwarded", "for=2.2.2.2")], "1.1.1.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[(xff, "2.2.2.2")], "2.2.2.2"),
            // What stands left of a stranger is the stranger's word.
            (
                "10.0.0.1",
                &[(xff, "6.6.6.6, 2.2.2.2, 10.0.0.2")],
                "2.2.2.2",
            ),
            ("10.0.0.1", &[(xff, "6.6.6.6"), (xff, "2.2.2.2")], "2.2.2.2"),
            (
                "10.0.0.1",
                &[(xff, "2.2.2.2"), (xff, "10.0.0.3,10.0.0.2")],
                "2.2.2.2",
            ),
            ("10.0.0.1", &[(xff, "10.0.0.4, 10.0.0.3")], "10.0.0.4"),
            (
                "10.0.0.1",
                &[(xff, "2.2.2.2, unknown, 10.0.0.3")],
                "10.0.0.3",
            ),
            ("10.0.0.1", &[(xff, "2.2.2.2, unknown")], "10.0.0.1"),
            ("10.0.0.1", &[(xff, ", ,2.2.2.2,")], "2.2.2.2"),
            ("10.0.0.1", &[(xff, "2.2.2.2:80")], "2.2.2.2"),
            ("10.0.0.1", &[(xff, "[2001:db8::1]:80")], "2001:db8::1"),
            ("10.0.0.1", &[(xff, "2001:db8::1")], "2001:db8::1"),
            ("fd00::1", &[(xff, "2.2.2.2, ::ffff:10.0.0.2")], "2.2.2.2"),
            ("::ffff:10.0.0.1", &[(xff, "2.2.2.2")], "2.2.2.2"),
            (
                "10.0.0.1",
                &[(
                    "Forwarded",
                    "for=6.6.6.6, for=2.2.2.2;proto=http, For=\"10.0.0.2:1\"",
                )],
                "2.2.2.2",
            ),
            (
                "10.0.0.1",
                &[("Forwarded", "for=\"[2001:db8::1]:4711\"")],
                "2001:db8::1",
            ),
            ("10.0.0.1", &[("Forwarded", "for=_hidden")], "10.0.0.1"),
            (
                "10.0.0.1",
                &[("Forwarded", "for=2.2.2.2, proto=http")],
                "10.0.0.1",
            ),
            ("10.0.0.1", &[("Forwarded", "for=\"2.2.2.2")], "10.0.0.1"),
            (
                "10.0.0.1",
                &[("Forwarded", "for=6.6.6.6"), (xff, "2.2.2.2")],
                "2.2.2.2",
            ),
        ] {
            assert_eq!(client(peer, lines), ip(expected), "{peer} {lines:?}");
        }
    }

    #[test]
    fn a_peer_of_a_unix_socket_has_the_address_that_it_tells() {
        let mut fields = Fields::default();
        assert_eq!(
            client_address(None, &fields, &Peers::new(Vec::new(), true)),
            None
        );
        fields.push("X-Forwarded-For", b"2.2.2.2");
        assert_eq!(
            client_address(None, &fields, &Peers::new(Vec::new(), true)),
            ip("2.2.2.2")
        );
        assert_eq!(client_address(None, &fields, &trusted(&[])), None);
    }
}
