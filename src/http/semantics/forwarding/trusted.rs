//! Whose word about the client is believed, and which address the client then has.

use std::fmt;
use std::net::IpAddr;

use super::forwarded::{elements, node_address};
use crate::http::types::Fields;

/// The peers whose forwarding fields are believed: networks, and perhaps those of unix sockets.
///
/// Invariant: the ranges are in order, and neither overlap nor touch, so that one binary search
/// answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted {
    /// First and last address of each range.
    ranges: Vec<(IpAddr, IpAddr)>,
    unix: bool,
}

/// A network in CIDR form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Why a text isn't a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkError {
    /// Not an IP address before the slash.
    Address,
    /// Not a number of bits that the address has.
    Prefix,
    /// The address has bits behind its prefix; the network it lies in is this one.
    HostBits(Network),
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => f.write_str("write a network such as 10.0.0.0/8 or fd00::/8"),
            Self::Prefix => f.write_str("behind the slash stand up to 32 bits, or 128 for IPv6"),
            Self::HostBits(network) => write!(f, "the network of this address is {network}"),
        }
    }
}

impl std::error::Error for NetworkError {}

impl Network {
    /// The network of `prefix` bits that begins at `address`.
    ///
    /// # Errors
    /// [`NetworkError::Prefix`] and [`NetworkError::HostBits`].
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, NetworkError> {
        if prefix > bits(address) {
            return Err(NetworkError::Prefix);
        }
        let network = Self { address, prefix };
        let first = network.first();
        if first != address {
            let address = first;
            return Err(NetworkError::HostBits(Self { address, prefix }));
        }
        Ok(network)
    }

    /// Reads `address/bits`, or an address alone.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub fn parse(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkError::Address)?;
        let prefix = match prefix {
            None => bits(address),
            // `parse` alone would take a plus sign.
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| NetworkError::Prefix)?
            }
            Some(_) => return Err(NetworkError::Prefix),
        };
        Self::new(address, prefix)
    }

    fn first(self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => IpAddr::V4((address.to_bits() & self.mask_v4()).into()),
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() & self.mask_v6()).into()),
        }
    }

    fn last(self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => IpAddr::V4((address.to_bits() | !self.mask_v4()).into()),
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() | !self.mask_v6()).into()),
        }
    }

    fn mask_v4(self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0)
    }

    fn mask_v6(self) -> u128 {
        u128::MAX
            .checked_shl(128 - u32::from(self.prefix))
            .unwrap_or(0)
    }
}

fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

impl Trusted {
    /// The peers of these networks, and whether those of unix sockets.
    pub fn new(networks: impl IntoIterator<Item = Network>, unix: bool) -> Self {
        let mut ranges: Vec<_> = networks
            .into_iter()
            .map(|network| (network.first(), network.last()))
            .collect();
        ranges.sort_unstable();
        // A network lies within another one or beside it: they never overlap in part.
        ranges.dedup_by(|next, before| next.1 <= before.1 && next.0 >= before.0);
        Self { ranges, unix }
    }

    /// Whether a peer is believed; `None` is one of a unix socket. An IPv4 address that is written
    /// as an IPv6 one (`::ffff:10.0.0.1`) is the IPv4 address.
    pub fn contains(&self, peer: Option<IpAddr>) -> bool {
        let Some(peer) = peer else {
            return self.unix;
        };
        let peer = peer.to_canonical();
        let behind = self.ranges.partition_point(|&(first, _)| first <= peer);
        behind > 0 && peer <= self.ranges[behind - 1].1
    }

    /// Whether nobody is believed.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && !self.unix
    }
}

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
    trusted: &Trusted,
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
    trusted: &'c Trusted,
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
    use proptest::prelude::*;

    fn trusted(networks: &[&str]) -> Trusted {
        let parse = |text: &&str| Network::parse(text).expect(text);
        Trusted::new(networks.iter().map(parse), false)
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
    fn networks_are_read_strictly() {
        for text in [
            "10.0.0.0/8",
            "0.0.0.0/0",
            "10.1.2.3/32",
            "fd00::/8",
            "::/0",
            "::1/128",
        ] {
            let network = Network::parse(text).expect(text);
            assert_eq!(network.to_string(), text);
        }
        assert_eq!(
            Network::parse("10.1.2.3").expect("one address").to_string(),
            "10.1.2.3/32"
        );
        for (text, error) in [
            ("", NetworkError::Address),
            ("10.0.0/8", NetworkError::Address),
            ("localhost", NetworkError::Address),
            ("10.0.0.0/", NetworkError::Prefix),
            ("10.0.0.0/33", NetworkError::Prefix),
            ("10.0.0.0/+8", NetworkError::Prefix),
            ("::/129", NetworkError::Prefix),
        ] {
            assert_eq!(Network::parse(text), Err(error), "{text}");
        }
        let error = Network::parse("10.0.0.1/8").expect_err("host bits");
        assert_eq!(
            error.to_string(),
            "the network of this address is 10.0.0.0/8"
        );
    }

    #[test]
    fn peers_are_found_in_their_network() {
        let list = trusted(&[
            "192.168.1.0/24",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.0.0.0/8",
            "::1",
        ]);
        for peer in [
            "10.0.0.0",
            "10.1.2.3",
            "10.255.255.255",
            "192.168.1.7",
            "::1",
            "::ffff:10.2.3.4",
        ] {
            assert!(list.contains(ip(peer)), "{peer}");
        }
        for peer in [
            "9.255.255.255",
            "11.0.0.0",
            "192.168.2.0",
            "::2",
            "::",
            "::ffff:11.0.0.1",
        ] {
            assert!(!list.contains(ip(peer)), "{peer}");
        }
        assert!(!list.contains(None) && Trusted::new([], true).contains(None));
        assert!(!trusted(&[]).contains(ip("10.0.0.1")) && trusted(&[]).is_empty());
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
        assert_eq!(client_address(None, &fields, &Trusted::new([], true)), None);
        fields.push("X-Forwarded-For", b"2.2.2.2");
        assert_eq!(
            client_address(None, &fields, &Trusted::new([], true)),
            ip("2.2.2.2")
        );
        assert_eq!(client_address(None, &fields, &trusted(&[])), None);
    }

    proptest! {
        #[test]
        fn the_search_agrees_with_looking_at_each_network(
            networks in prop::collection::vec((any::<u32>(), 0..=32_u8), 0..8),
            v6 in prop::collection::vec((any::<u128>(), 0..=128_u8), 0..4),
            peers in prop::collection::vec(any::<u32>(), 1..8),
            peer6 in any::<u128>(),
        ) {
            let v4 = networks.iter().map(|&(address, prefix)| (IpAddr::V4(address.into()), prefix));
            let v6 = v6.iter().map(|&(address, prefix)| (IpAddr::V6(address.into()), prefix));
            let networks: Vec<Network> = v4.chain(v6).map(|(address, prefix)| {
                match Network::new(address, prefix) {
                    Ok(network) | Err(NetworkError::HostBits(network)) => network,
                    Err(error) => panic!("{error}"),
                }
            }).collect();
            let list = Trusted::new(networks.iter().copied(), false);
            // The borders are where a search goes wrong.
            let borders = networks.iter().flat_map(|n| [n.first(), n.last()]);
            let peers = peers.iter().map(|&peer| IpAddr::V4(peer.into()));
            for peer in peers.chain([IpAddr::V6(peer6.into())]).chain(borders) {
                let peer = peer.to_canonical();
                let plain = networks.iter().any(|n| n.first() <= peer && peer <= n.last());
                prop_assert_eq!(list.contains(Some(peer)), plain, "{}", peer);
            }
        }
    }
}
