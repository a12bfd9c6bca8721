//! Sites by host name.

use std::cmp::Reverse;

use hashbrown::HashMap;

use super::pattern::PatternError;
use super::{Conflict, sort_longest_first};

/// Longest host name in bytes (RFC 1035 §2.3.4, without the final dot).
const HOST_LENGTH_MAX: usize = 253;

/// Which hosts a site answers for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// This name or address alone: lower case, without port and final dot.
    Exact(Box<str>),
    /// Every name that ends with this text, which begins with a dot (`.example.com` for
    /// `*.example.com`), at any depth; not the domain itself.
    Below(Box<str>),
    /// Every host that no other site answers for.
    Default,
}

impl HostPattern {
    /// Reads `example.com`, `10.0.0.1`, `[::1]`, `*.example.com` or `*` (the default).
    ///
    /// # Errors
    /// When it is no host name: empty, too long, with a port, an empty label, or characters other
    /// than letters, digits, `-` and `_`.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text == "*" {
            return Ok(Self::Default);
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if let Some(address) = name.strip_prefix('[') {
            let address = address.strip_suffix(']').unwrap_or("");
            return match address.parse::<std::net::Ipv6Addr>() {
                Ok(address) => Ok(Self::Exact(format!("[{address}]").into())),
                Err(_) => Err(PatternError::new(
                    0,
                    "this is no IPv6 address in brackets",
                    "write one such as `[2001:db8::1]`; the port belongs into `listen`",
                )),
            };
        }
        match name.strip_prefix('*') {
            Some(domain) if domain.starts_with('.') => {
                check_name(&domain[1..], 2)?;
                Ok(Self::Below(domain.into()))
            }
            Some(_) => Err(PatternError::new(
                0,
                "`*` stands for whole labels",
                "write `*.example.com`",
            )),
            None => {
                check_name(&name, 0)?;
                Ok(Self::Exact(name.into()))
            }
        }
    }

    fn as_text(&self) -> String {
        match self {
            Self::Exact(name) => name.to_string(),
            Self::Below(domain) => format!("*{domain}"),
            Self::Default => "*".to_owned(),
        }
    }
}

fn check_name(name: &str, offset: usize) -> Result<(), PatternError> {
    if name.len() > HOST_LENGTH_MAX {
        return Err(PatternError::new(
            offset,
            format!("a host name has at most {HOST_LENGTH_MAX} characters"),
            "shorten it",
        ));
    }
    for (at, character) in name.char_indices() {
        let (problem, help) = match character {
            'a'..='z' | '0'..='9' | '-' | '_' | '.' => continue,
            ':' => ("a host name has no port", "put the port into `listen`"),
            '*' => (
                "`*` stands only at the start",
                "write `*.example.com`, or each name in `aliases`",
            ),
            c if !c.is_ascii() => (
                "a host name has ASCII characters only",
                "write its form that begins with `xn--`",
            ),
            _ => (
                "this character can't stand in a host name",
                "write a name such as `www.example.com`",
            ),
        };
        return Err(PatternError::new(offset + at, problem, help));
    }
    let mut at = offset;
    for label in name.split('.') {
        if label.is_empty() {
            return Err(PatternError::new(
                at,
                "a label of the host name is empty",
                "write a name such as `www.example.com`",
            ));
        }
        at += label.len() + 1;
    }
    Ok(())
}

/// Finds what belongs to a host: the exact name, else the longest wildcard, else the default.
#[derive(Debug)]
pub struct HostMap<T> {
    values: Vec<T>,
    exact: HashMap<Box<str>, usize>,
    below: HashMap<Box<str>, usize>,
    /// The distinct lengths of `below`, longest first, so that the work of a search is bounded by
    /// the configuration and not by the dots that a client sends.
    below_lengths: Vec<usize>,
    default: Option<usize>,
}

impl<T> HostMap<T> {
    /// Builds the tables.
    ///
    /// # Errors
    /// Every pair of equal patterns.
    pub fn build(sites: Vec<(HostPattern, T)>) -> Result<Self, Vec<Conflict>> {
        let mut map = Self {
            values: Vec::with_capacity(sites.len()),
            exact: HashMap::new(),
            below: HashMap::new(),
            below_lengths: Vec::new(),
            default: None,
        };
        let mut conflicts = Vec::new();
        for (second, (pattern, value)) in sites.into_iter().enumerate() {
            let text = pattern.as_text();
            let first = match pattern {
                HostPattern::Exact(name) => *map.exact.entry(name).or_insert(second),
                HostPattern::Below(domain) => {
                    map.below_lengths.push(domain.len());
                    *map.below.entry(domain).or_insert(second)
                }
                HostPattern::Default => *map.default.get_or_insert(second),
            };
            if first != second {
                conflicts.push(Conflict {
                    first,
                    second,
                    first_text: text.clone(),
                    second_text: text,
                });
            }
            map.values.push(value);
        }
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        sort_longest_first(&mut map.below_lengths);
        debug_assert!(
            map.below_lengths
                .is_sorted_by_key(|length| Reverse(*length))
        );
        Ok(map)
    }

    /// What belongs to a host in lower case without a port; a final dot makes no difference
    /// (RFC 3986 §3.2.2). The empty host, of HTTP/1.0 without Host, finds the default.
    pub fn find(&self, host: &str) -> Option<&T> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let index = self
            .exact
            .get(host)
            .or_else(|| self.find_below(host))
            .or(self.default.as_ref())?;
        self.values.get(*index)
    }

    fn find_below(&self, host: &str) -> Option<&usize> {
        self.below_lengths.iter().find_map(|length| {
            let start = host.len().checked_sub(*length).filter(|start| *start > 0)?;
            self.below.get(host.get(start..)?)
        })
    }

    /// What belongs to the default, for requests without a usable host.
    pub fn default_value(&self) -> Option<&T> {
        self.values.get(self.default?)
    }

    /// All values in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.values.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(names: &[&'static str]) -> HostMap<&'static str> {
        let sites = names
            .iter()
            .map(|name| (HostPattern::parse(name).unwrap(), *name))
            .collect();
        HostMap::build(sites).unwrap()
    }

    #[test]
    fn the_exact_name_wins_then_the_longest_wildcard_then_the_default() {
        let map = map(&[
            "*",
            "*.example.com",
            "example.com",
            "*.b.example.com",
            "a.b.example.com",
            "10.0.0.1",
            "[::1]",
        ]);
        for (host, expected) in [
            ("example.com", "example.com"),
            ("example.com.", "example.com"),
            ("www.example.com", "*.example.com"),
            ("x.y.example.com", "*.example.com"),
            ("b.example.com", "*.example.com"),
            ("c.b.example.com", "*.b.example.com"),
            ("a.b.example.com", "a.b.example.com"),
            ("notexample.com", "*"),
            (".example.com", "*"),
            ("com", "*"),
            ("", "*"),
            (".", "*"),
            ("é.example.com", "*.example.com"),
            ("10.0.0.1", "10.0.0.1"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(map.find(host), Some(&expected), "{host}");
        }
        assert_eq!(map.default_value(), Some(&"*"));
    }

    #[test]
    fn without_a_default_other_hosts_find_nothing() {
        let map = map(&["example.com", "*.org"]);
        assert_eq!(map.find("example.net"), None);
        assert_eq!(map.find("\u{e9}org"), None);
        assert_eq!(map.find(""), None);
        assert_eq!(map.default_value(), None);
    }

    #[test]
    fn patterns_are_normalised() {
        for (text, expected) in [
            ("Example.COM.", HostPattern::Exact("example.com".into())),
            ("*.Example.com", HostPattern::Below(".example.com".into())),
            ("[0:0::1]", HostPattern::Exact("[::1]".into())),
            ("*", HostPattern::Default),
            ("my_host", HostPattern::Exact("my_host".into())),
        ] {
            assert_eq!(HostPattern::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused_where_the_fault_is() {
        let long = "a.".repeat(130);
        for (text, position) in [
            ("", 0),
            ("a..b", 2),
            ("*.", 0),
            ("*a.com", 0),
            ("a.*.com", 2),
            ("a.com:80", 5),
            ("a b", 1),
            ("bücher.de", 1),
            ("[::1", 0),
            ("[::1]:80", 0),
            (&long, 0),
        ] {
            let error = HostPattern::parse(text).unwrap_err();
            assert_eq!(error.position, position, "{text}: {error}");
        }
    }

    #[test]
    fn sites_for_the_same_host_are_refused() {
        let sites = ["a.com", "*.a.com", "A.com.", "*", "*.a.com", "*"]
            .iter()
            .map(|name| (HostPattern::parse(name).unwrap(), ()))
            .collect();
        let conflicts = HostMap::build(sites).unwrap_err();
        let pairs: Vec<_> = conflicts.iter().map(|c| (c.first, c.second)).collect();
        assert_eq!(pairs, [(0, 2), (1, 4), (3, 5)]);
    }
}
