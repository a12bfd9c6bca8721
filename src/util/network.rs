//! Networks by address and prefix (RFC 4632, RFC 4291 §2.3): whom forwarding fields and PROXY
//! headers are believed from.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One network. Its address has no bits behind the prefix, and is never an IPv4 address inside IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    address: IpAddr,
    /// Bits that count, at most 32 or 128.
    prefix: u8,
}

/// Why a text is not a network, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkError {
    /// What is wrong.
    pub message: String,
    /// What to write.
    pub help: String,
}

impl Network {
    /// Reads `10.0.0.0/8`, `2001:db8::/32`, or one address.
    ///
    /// # Errors
    /// When it is neither, the prefix is too long, or bits are set behind it, which is most often
    /// the address of one machine where its network was meant.
    pub fn parse(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let error = |message: String, help: String| NetworkError { message, help };
        let Ok(address) = address.parse::<IpAddr>() else {
            return Err(error(
                format!("`{text}` is not a network"),
                "write it such as \"10.0.0.0/8\", \"2001:db8::/32\" or \"192.0.2.1\"".into(),
            ));
        };
        let bits = bits(address);
        let prefix = match prefix {
            None => bits,
            Some(prefix) => match prefix.parse() {
                // Rust reads a sign, too.
                Ok(number) if number <= bits && !prefix.starts_with('+') => number,
                _ => {
                    return Err(error(
                        format!("`{prefix}` is not a number of bits from 0 to {bits}"),
                        format!("write it such as \"{address}/{}\"", bits / 4 * 3),
                    ));
                }
            },
        };
        let network = Self {
            address: masked(address, prefix),
            prefix,
        };
        if network.address != address {
            return Err(error(
                format!("`{text}` has bits behind its prefix"),
                format!("write \"{network}\", or \"{address}\" for that one alone"),
            ));
        }
        Ok(network.canonical())
    }

    /// Whether an address lies in it. An IPv4 address inside IPv6 (`::ffff:10.0.0.1`) counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits of the address count: at most 32, or 128 for IPv6.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    fn canonical(self) -> Self {
        match self.address.to_canonical() {
            address @ IpAddr::V4(_) if self.address.is_ipv6() && self.prefix >= 96 => Self {
                address,
                prefix: self.prefix - 96,
            },
            _ => self,
        }
    }
}

impl fmt::Display for Network {
    /// As it is written; one address without a prefix.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == bits(self.address) {
            return self.address.fmt(f);
        }
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

/// Peers: those of some networks, and those of unix sockets, which have no address.
///
/// Invariant: the networks are in order, and none lies within another, so that one binary search
/// answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    networks: Vec<Network>,
    unix: bool,
}

impl Peers {
    /// The peers of these networks, and whether those of unix sockets.
    pub fn new(mut networks: Vec<Network>, unix: bool) -> Self {
        // The wider one of those that begin at the same address comes first. Networks never overlap
        // in part: one lies within another or beside it.
        networks.sort_unstable();
        networks.dedup_by(|next, before| before.contains(next.address));
        Self { networks, unix }
    }

    /// Whether a peer is one of them; `None` is one of a unix socket. An IPv4 address inside IPv6
    /// (`::ffff:10.0.0.1`) counts as IPv4.
    pub fn contains(&self, address: Option<IpAddr>) -> bool {
        let Some(address) = address.map(|address| address.to_canonical()) else {
            return self.unix;
        };
        let behind = self.networks.partition_point(|n| n.address <= address);
        behind > 0 && self.networks[behind - 1].contains(address)
    }

    /// The networks, in order, without those that lie within another.
    pub fn networks(&self) -> &[Network] {
        &self.networks
    }

    /// Whether those of unix sockets are among them.
    pub fn unix(&self) -> bool {
        self.unix
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && !self.unix
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network(text: &str) -> Network {
        Network::parse(text).unwrap()
    }

    #[test]
    fn networks_hold_their_addresses() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("192.0.2.128/25", "192.0.2.128", "192.0.2.127"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::/0", "2001:db8::", "10.0.0.1"),
            ("::1", "::1", "::2"),
            ("::ffff:10.0.0.0/104", "10.1.2.3", "11.1.2.3"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::10.1.2.3"),
        ] {
            assert!(network(text).contains(inside.parse().unwrap()), "{text}");
            assert!(!network(text).contains(outside.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn what_is_no_network_says_what_to_write() {
        for (text, help) in [
            (
                "10.0.0.1/8",
                "write \"10.0.0.0/8\", or \"10.0.0.1\" for that one alone",
            ),
            ("10.0.0.0/33", "write it such as \"10.0.0.0/24\""),
            ("10.0.0.0/", "write it such as \"10.0.0.0/24\""),
            ("10.0.0.0/-1", "write it such as \"10.0.0.0/24\""),
            (
                "example.com",
                "write it such as \"10.0.0.0/8\", \"2001:db8::/32\" or \"192.0.2.1\"",
            ),
        ] {
            assert_eq!(Network::parse(text).unwrap_err().help, help, "{text}");
        }
    }

    #[test]
    fn peers_of_unix_sockets_are_named_apart() {
        let peers = Peers::new(vec![network("10.0.0.0/8")], false);
        assert!(peers.contains(Some("10.0.0.1".parse().unwrap())));
        assert!(!peers.contains(None));
        assert!(Peers::new(Vec::new(), true).contains(None));
        assert!(Peers::default().is_empty());
    }

    #[test]
    fn peers_are_found_in_their_network() {
        let texts = [
            "192.168.1.0/24",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.0.0.0/8",
            "::1",
        ];
        let list = Peers::new(texts.map(network).to_vec(), false);
        let kept: Vec<String> = list.networks().iter().map(Network::to_string).collect();
        assert_eq!(kept, ["10.0.0.0/8", "192.168.1.0/24", "::1"]);
        for peer in [
            "10.0.0.0",
            "10.1.2.3",
            "10.255.255.255",
            "192.168.1.7",
            "::1",
            "::ffff:10.2.3.4",
        ] {
            assert!(list.contains(Some(peer.parse().unwrap())), "{peer}");
        }
        for peer in [
            "9.255.255.255",
            "11.0.0.0",
            "192.168.2.0",
            "::2",
            "::",
            "::ffff:11.0.0.1",
        ] {
            assert!(!list.contains(Some(peer.parse().unwrap())), "{peer}");
        }
    }

    proptest! {
        #[test]
        fn a_network_reads_as_it_is_written(bits in any::<u32>(), prefix in 0u8..=32) {
            let address = masked(Ipv4Addr::from_bits(bits).into(), prefix);
            let network = Network { address, prefix };
            prop_assert_eq!(Network::parse(&network.to_string()), Ok(network));
            prop_assert!(network.contains(Ipv4Addr::from_bits(bits).into()));
        }

        #[test]
        fn the_search_agrees_with_looking_at_each_network(
            v4 in prop::collection::vec((any::<u32>(), 0..=32_u8), 0..8),
            v6 in prop::collection::vec((any::<u128>(), 0..=128_u8), 0..4),
            peers in prop::collection::vec(any::<u32>(), 1..8),
            peer6 in any::<u128>(),
        ) {
            let v4 = v4.iter().map(|&(bits, prefix)| (IpAddr::V4(bits.into()), prefix));
            let v6 = v6.iter().map(|&(bits, prefix)| (IpAddr::V6(bits.into()), prefix));
            let networks: Vec<Network> = v4
                .chain(v6)
                .map(|(address, prefix)| {
                    let network = Network { address: masked(address, prefix), prefix };
                    network.canonical()
                })
                .collect();
            let list = Peers::new(networks.clone(), false);
            // The borders are where a search goes wrong.
            let borders = networks.iter().flat_map(|network| match network.address {
                IpAddr::V4(first) => {
                    let first = first.to_bits();
                    let last = first | u32::MAX.checked_shr(network.prefix.into()).unwrap_or(0);
                    [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
                        .map(|bits| IpAddr::V4(bits.into()))
                }
                IpAddr::V6(first) => {
                    let first = first.to_bits();
                    let last = first | u128::MAX.checked_shr(network.prefix.into()).unwrap_or(0);
                    [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
                        .map(|bits| IpAddr::V6(bits.into()))
                }
            });
            let peers = peers.iter().map(|&peer| IpAddr::V4(peer.into()));
            for peer in peers.chain([IpAddr::V6(peer6.into())]).chain(borders) {
                let plain = networks.iter().any(|network| network.contains(peer));
                prop_assert_eq!(list.contains(Some(peer)), plain, "{}", peer);
            }
        }

        #[test]
        fn never_panics(text in ".{0,24}") {
            let _ = Network::parse(&text);
        }
    }
}
