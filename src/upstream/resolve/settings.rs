//! Which name servers this machine asks, and how patiently (resolv.conf(5)).
//!
//! Pure: whoever asks reads the file anew each time, because a change of network replaces it. Only what
//! matters to a name that is looked up as it is written is taken; search lists are for the resolver of
//! the system.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

/// Most name servers that are used; more are left out, as the resolver of the system does (MAXNS).
const SERVERS_MAX: usize = 3;

/// The port of DNS.
const PORT: u16 = 53;

/// How name servers are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Those to ask, in this order. Never empty.
    pub servers: Vec<SocketAddr>,
    /// How long one is waited for: 1 to 30 s.
    pub timeout: Duration,
    /// How often all of them are asked: 1 to 5 times.
    pub attempts: u32,
    /// Whether to begin with another one each time.
    pub rotate: bool,
    /// Whether to ask by TCP at once.
    pub tcp: bool,
}

impl Default for Settings {
    /// What is so where the file says nothing: a name server on this machine.
    fn default() -> Self {
        Self {
            servers: vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT)],
            timeout: Duration::from_secs(5),
            attempts: 2,
            rotate: false,
            tcp: false,
        }
    }
}

impl Settings {
    /// What a resolv.conf says. Lines and options that aren't known are passed over, as everybody does.
    /// `interface` gives the number of a network interface, for link-local addresses.
    pub fn parse(text: &str, interface: impl Fn(&str) -> Option<u32>) -> Self {
        let mut settings = Self::default();
        let mut servers = Vec::new();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") if servers.len() < SERVERS_MAX => {
                    servers.extend(words.next().and_then(|word| server(word, &interface)));
                }
                Some("options") => words.for_each(|option| settings.option(option)),
                _ => {}
            }
        }
        if !servers.is_empty() {
            settings.servers = servers;
        }
        settings
    }

    fn option(&mut self, option: &str) {
        match option.split_once(':') {
            Some(("timeout", number)) => {
                if let Ok(seconds) = number.parse::<u64>() {
                    self.timeout = Duration::from_secs(seconds.clamp(1, 30));
                }
            }
            Some(("attempts", number)) => {
                if let Ok(times) = number.parse::<u32>() {
                    self.attempts = times.clamp(1, 5);
                }
            }
            None if option == "rotate" => self.rotate = true,
            None if option == "use-vc" => self.tcp = true,
            _ => {}
        }
    }
}

fn server(word: &str, interface: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    if let Ok(address) = word.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, PORT));
    }
    let (address, scope) = word.split_once('%')?;
    let scope = scope.parse().ok().or_else(|| interface(scope))?;
    let address = SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope);
    Some(address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Settings {
        Settings::parse(text, |name| (name == "eth0").then_some(3))
    }

    #[test]
    fn servers_and_options_are_read() {
        let text = "# made by hand\ndomain example.com\nsearch a b\nnameserver 10.0.0.1\n\
            nameserver\t2001:db8::1  # comment\nnameserver fe80::1%eth0\nnameserver 10.0.0.4\n\
            options timeout:2 attempts:3 rotate edns0\n; end\noptions use-vc ndots:5";
        let settings = parse(text);
        let servers: Vec<_> = settings.servers.iter().map(ToString::to_string).collect();
        assert_eq!(
            servers,
            ["10.0.0.1:53", "[2001:db8::1]:53", "[fe80::1%3]:53"]
        );
        assert_eq!(settings.timeout, Duration::from_secs(2));
        assert_eq!(settings.attempts, 3);
        assert!(settings.rotate && settings.tcp);
    }

    #[test]
    fn nothing_is_a_server_on_this_machine_and_numbers_have_bounds() {
        assert_eq!(parse(""), Settings::default());
        let text = "nameserver\nnameserver no-address\nnameserver fe80::1%none\n\
            options timeout: attempts:x\n";
        assert_eq!(parse(text), Settings::default());
        let wild = parse("options timeout:0 attempts:0");
        assert_eq!((wild.timeout, wild.attempts), (Duration::from_secs(1), 1));
        let wild = parse("options timeout:999 attempts:999");
        assert_eq!((wild.timeout, wild.attempts), (Duration::from_secs(30), 5));
    }
}
