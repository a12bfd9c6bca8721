//! What a certificate is for: names and addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::http::router::HostPattern;

/// Longest name in bytes (RFC 1035 §2.3.4, without the final dot), and longest label.
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// One thing that a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// A DNS name in lower case; `*.example.com` is every name with one label more.
    Dns(String),
    /// An address.
    Address(IpAddr),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl Name {
    /// Reads `example.com`, `*.example.com`, `localhost`, `10.0.0.1`, `::1` or `[::1]`; `None` where no
    /// certificate can be for it.
    pub fn parse(text: &str) -> Option<Self> {
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(text).parse() {
            return Some(Self::Address(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let labels = name.strip_prefix("*.").unwrap_or(&name);
        let is_label = |label: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            (1..=LABEL_MAX).contains(&label.len()) && label.bytes().all(known)
        };
        let is_name = name.len() <= NAME_MAX && labels.split('.').all(is_label);
        is_name.then_some(Self::Dns(name))
    }
}

/// What the certificate of a site is for, by the hosts that it answers for. One that answers for all
/// hosts is for this machine: `localhost`, its addresses, and the name of the machine, if that is one.
/// `localhost` has its addresses with it.
///
/// `*.example.com` of a site is names at any depth, that of a certificate one label (RFC 6125 §6.4.3):
/// a client that asks for `a.b.example.com` will refuse it.
pub fn of_site<'a>(hosts: impl IntoIterator<Item = &'a HostPattern>, machine: &str) -> Vec<Name> {
    let mut names = Vec::new();
    let mut add = |name: Option<Name>| {
        if let Some(name) = name.filter(|name| !names.contains(name)) {
            names.push(name);
        }
    };
    for host in hosts {
        match host {
            HostPattern::Exact(name) => {
                add(Name::parse(name));
                if &**name == "localhost" {
                    add(Some(Name::Address(Ipv4Addr::LOCALHOST.into())));
                    add(Some(Name::Address(Ipv6Addr::LOCALHOST.into())));
                }
            }
            HostPattern::Below(domain) => add(Name::parse(&format!("*{domain}"))),
            HostPattern::Default => {
                add(Name::parse("localhost"));
                add(Some(Name::Address(Ipv4Addr::LOCALHOST.into())));
                add(Some(Name::Address(Ipv6Addr::LOCALHOST.into())));
                add(Name::parse(machine));
            }
        }
    }
    names
}

/// What this machine calls itself.
pub fn of_this_machine() -> String {
    let system = rustix::system::uname();
    system.nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_told_apart() {
        for (text, expected) in [
            ("Example.COM", Some("example.com")),
            ("example.com.", Some("example.com")),
            ("*.example.com", Some("*.example.com")),
            ("localhost", Some("localhost")),
            ("my_machine", Some("my_machine")),
            ("10.0.0.1", Some("10.0.0.1")),
            ("[::1]", Some("::1")),
            ("2001:DB8::1", Some("2001:db8::1")),
            ("", None),
            ("*", None),
            ("*.", None),
            ("a.*.com", None),
            ("a..b", None),
            ("a b", None),
            ("münchen.example", None),
            ("[example.com]", None),
            ("a:80", None),
        ] {
            let name = Name::parse(text).map(|name| name.to_string());
            assert_eq!(name.as_deref(), expected, "{text}");
        }
        assert!(matches!(Name::parse("10.0.0.1"), Some(Name::Address(_))));
        assert!(Name::parse(&"a".repeat(64)).is_none());
        assert!(Name::parse(&["a"; 127].join(".")).is_some());
        assert!(Name::parse(&["a"; 128].join(".")).is_none());
    }

    #[test]
    fn a_site_without_a_name_is_this_machine() {
        let site = |hosts: &[&str], machine| {
            let hosts: Vec<_> =
                (hosts.iter().map(|host| HostPattern::parse(host).unwrap())).collect();
            let names = of_site(&hosts, machine);
            names
                .iter()
                .map(Name::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(site(&["*"], "box"), "localhost 127.0.0.1 ::1 box");
        assert_eq!(site(&["*"], "localhost"), "localhost 127.0.0.1 ::1");
        assert_eq!(site(&["localhost"], "box"), "localhost 127.0.0.1 ::1");
        assert_eq!(site(&["*"], "a strange name"), "localhost 127.0.0.1 ::1");
        assert_eq!(
            site(&["a.example", "*.a.example", "[::1]", "a.example"], "box"),
            "a.example *.a.example ::1"
        );
        assert!(!of_this_machine().is_empty());
    }
}
