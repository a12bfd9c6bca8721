//! The chain of addresses that a request has come through: X-Forwarded-* and Forwarded (RFC 7239),
//! read from peers that are believed and written for the backend.
//!
//! Backends read one or the other of them, often both with a preference of their own. So both are
//! written, and both say the same: where a believed peer told one of them only, the other is made
//! from it.

use std::borrow::Cow;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};

use smallvec::SmallVec;

use crate::http::h1::encode::write_decimal;
use crate::http::types::{Fields, Request};
use crate::http::uri::parse_authority;

/// One element of Forwarded: what one proxy tells of its client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Element<'b> {
    pub(super) client: Option<Cow<'b, [u8]>>,
    pub(super) host: Option<Cow<'b, [u8]>>,
    pub(super) proto: Option<Cow<'b, [u8]>>,
}

impl Element<'_> {
    /// The address of `for`, where it is one.
    pub(super) fn address(&self) -> Option<IpAddr> {
        node_address(self.client.as_deref()?)
    }
}

/// The elements of one Forwarded field; None if it breaks the grammar (RFC 7239 §4), in which case
/// none of it can be believed: within an open quote an element is not what it looks like.
///
/// A value that should have been quoted (`for=[::1]`, `for=1.2.3.4:80`) is taken as it stands.
pub(super) fn elements(value: &[u8]) -> Option<Vec<Element<'_>>> {
    let mut list = vec![Element::default()];
    let mut rest = value.trim_ascii();
    while !rest.is_empty() {
        match rest[0] {
            b',' => {
                list.push(Element::default());
                rest = rest[1..].trim_ascii_start();
                continue;
            }
            b';' => {
                rest = rest[1..].trim_ascii_start();
                continue;
            }
            _ => {}
        }
        let equals = memchr::memchr(b'=', rest)?;
        let name = &rest[..equals];
        if !crate::http::h1::is_token(name) {
            return None;
        }
        let (text, behind) = pair_value(&rest[equals + 1..])?;
        rest = behind.trim_ascii_start();
        if !matches!(rest.first(), None | Some(b',' | b';')) {
            return None;
        }
        let element = list.last_mut()?;
        let place = match () {
            () if name.eq_ignore_ascii_case(b"for") => &mut element.client,
            () if name.eq_ignore_ascii_case(b"host") => &mut element.host,
            () if name.eq_ignore_ascii_case(b"proto") => &mut element.proto,
            () => continue,
        };
        // Each parameter stands once (RFC 7239 §4).
        if place.replace(text).is_some() {
            return None;
        }
    }
    Some(list)
}

/// A token or a quoted string, and what stands behind it.
fn pair_value(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let end = text.iter().position(|byte| b",; \t\"".contains(byte));
        let (value, behind) = text.split_at(end.unwrap_or(text.len()));
        return (!value.is_empty()).then_some((Cow::Borrowed(value), behind));
    };
    let stop = memchr::memchr2(b'"', b'\\', quoted)?;
    if quoted[stop] == b'"' {
        return Some((Cow::Borrowed(&quoted[..stop]), &quoted[stop + 1..]));
    }
    let (mut value, mut at) = (Vec::new(), 0);
    loop {
        match *quoted.get(at)? {
            b'"' => return Some((Cow::Owned(value), &quoted[at + 1..])),
            b'\\' => {
                value.push(*quoted.get(at + 1)?);
                at += 2;
            }
            byte => {
                value.push(byte);
                at += 1;
            }
        }
    }
}

/// The address in `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or
/// `[2001:db8::1]:80`; None for anything else.
pub(super) fn node_address(node: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(node).ok()?;
    let address = if let Some(rest) = text.strip_prefix('[') {
        let (inside, port) = rest.split_once(']')?;
        if !port.is_empty() && !is_port(port.strip_prefix(':')?) {
            return None;
        }
        IpAddr::V6(inside.parse().ok()?)
    } else {
        match text.split_once(':') {
            Some((host, port)) if is_port(port) => IpAddr::V4(host.parse().ok()?),
            _ => text.parse().ok()?,
        }
    };
    Some(address.to_canonical())
}

/// A port, or an obfuscated one (RFC 7239 §6).
fn is_port(text: &str) -> bool {
    let text = text.strip_prefix('_').unwrap_or(text);
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// What the backend is told of the way a request has come.
#[derive(Debug)]
pub(super) struct Hops<'r> {
    /// What believed peers told in X-Forwarded-For and Forwarded; empty for others.
    list: SmallVec<[&'r [u8]; 2]>,
    forwarded: SmallVec<[&'r [u8]; 2]>,
    elements: Vec<Element<'r>>,
    peer: Option<IpAddr>,
    /// The scheme and the authority of this hop.
    scheme: &'static str,
    authority: &'r str,
    /// Those that the client used at the outermost proxy.
    client_scheme: Option<Cow<'r, [u8]>>,
    client_authority: Option<Cow<'r, [u8]>>,
}

impl<'r> Hops<'r> {
    /// Reads the fields of a request that came from this peer; they count if it is believed. What this
    /// hop knows by itself is the scheme of our listener and the request's [`authority`].
    pub(super) fn of(
        fields: &'r Fields<'_>,
        (peer, believed): (Option<IpAddr>, bool),
        (scheme, authority): (&'static str, &'r str),
    ) -> Self {
        let mut hops = Self {
            list: SmallVec::new(),
            forwarded: SmallVec::new(),
            elements: Vec::new(),
            peer: peer.map(|address| address.to_canonical()),
            scheme,
            authority,
            client_scheme: None,
            client_authority: None,
        };
        if believed {
            hops.read(fields);
        }
        hops
    }

    fn read(&mut self, fields: &'r Fields<'_>) {
        for value in fields.get_all("x-forwarded-for") {
            if !value.is_empty() {
                self.list.push(value);
            }
        }
        for value in fields.get_all("forwarded") {
            if let Some(list) = elements(value)
                && list.iter().any(|element| *element != Element::default())
            {
                self.forwarded.push(value);
                self.elements.extend(list);
            }
        }
        let first = self.elements.first().cloned().unwrap_or_default();
        self.client_scheme = first_of(fields.get("x-forwarded-proto"))
            .map(Cow::Borrowed)
            .or(first.proto)
            .filter(|scheme| is_scheme(scheme));
        self.client_authority = first_of(fields.get("x-forwarded-host"))
            .map(Cow::Borrowed)
            .or(first.host)
            .filter(|host| parse_authority(host).is_ok());
    }

    /// Appends the value of X-Forwarded-For; nothing when nothing is known.
    pub(super) fn write_forwarded_for(&self, out: &mut Vec<u8>) {
        let mut list = List::new(out);
        for value in &self.list {
            list.next().extend_from_slice(value);
        }
        if self.list.is_empty() {
            for element in &self.elements {
                match element.address() {
                    Some(address) => write_address(list.next(), address),
                    None => list.next().extend_from_slice(b"unknown"),
                }
            }
        }
        if let Some(peer) = self.peer {
            write_address(list.next(), peer);
        }
    }

    /// The value of X-Forwarded-Proto.
    pub(super) fn forwarded_proto(&self) -> &[u8] {
        self.client_scheme
            .as_deref()
            .unwrap_or(self.scheme.as_bytes())
    }

    /// The value of X-Forwarded-Host; empty when the request had no host.
    pub(super) fn forwarded_host(&self) -> &[u8] {
        self.client_authority
            .as_deref()
            .unwrap_or(self.authority.as_bytes())
    }

    /// Appends the value of Forwarded.
    pub(super) fn write_forwarded(&self, out: &mut Vec<u8>) {
        let mut list = List::new(out);
        for value in &self.forwarded {
            list.next().extend_from_slice(value);
        }
        // Host and scheme of the client belong to the hop that saw them, the first one.
        let client = (self.forwarded_host(), self.forwarded_proto());
        if self.forwarded.is_empty() {
            let nodes = self
                .list
                .iter()
                .flat_map(|value| value.split(|&byte| byte == b','));
            for node in nodes.map(<[u8]>::trim_ascii).filter(|n| !n.is_empty()) {
                let (host, proto) = match list.is_empty() {
                    true => client,
                    false => (&b""[..], &b""[..]),
                };
                write_element(list.next(), node_address(node), host, proto);
            }
        }
        let (host, proto) = match list.is_empty() {
            true => client,
            false => (self.authority.as_bytes(), self.scheme.as_bytes()),
        };
        write_element(list.next(), self.peer, host, proto);
    }
}

/// Writes a comma-separated list behind what stands in a buffer.
struct List<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
}

impl<'o> List<'o> {
    fn new(out: &'o mut Vec<u8>) -> Self {
        let start = out.len();
        Self { out, start }
    }

    fn is_empty(&self) -> bool {
        self.out.len() == self.start
    }

    /// The place for the next element.
    fn next(&mut self) -> &mut Vec<u8> {
        if !self.is_empty() {
            self.out.extend_from_slice(b", ");
        }
        self.out
    }
}

fn write_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => write_v4(out, address),
        // Writing into a vector can't fail.
        IpAddr::V6(address) => drop(write!(out, "{address}")),
    }
}

fn write_v4(out: &mut Vec<u8>, address: Ipv4Addr) {
    for (place, octet) in address.octets().into_iter().enumerate() {
        if place > 0 {
            out.push(b'.');
        }
        write_decimal(out, octet.into());
    }
}

/// Host and port of a request as its Host field would have them.
pub(super) fn authority<'r>(request: &'r Request<'_>) -> Cow<'r, str> {
    match request.port {
        Some(port) => Cow::Owned(with_port(&request.host, port)),
        None => Cow::Borrowed(&request.host),
    }
}

fn with_port(host: &str, port: u16) -> String {
    let mut text = Vec::with_capacity(host.len() + 6);
    text.extend_from_slice(host.as_bytes());
    text.push(b':');
    write_decimal(&mut text, port.into());
    // It is text: a host, a colon and digits.
    String::from_utf8(text).unwrap_or_default()
}

/// The first element of a list.
fn first_of(value: Option<&[u8]>) -> Option<&[u8]> {
    value?
        .split(|&byte| byte == b',')
        .next()
        .map(<[u8]>::trim_ascii)
}

/// Whether a text is a URI scheme (RFC 3986 §3.1) of a sensible length.
fn is_scheme(text: &[u8]) -> bool {
    (1..=16).contains(&text.len())
        && text[0].is_ascii_alphabetic()
        && text
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b))
}

fn write_element(out: &mut Vec<u8>, client: Option<IpAddr>, host: &[u8], proto: &[u8]) {
    out.extend_from_slice(b"for=");
    match client {
        Some(IpAddr::V4(address)) => write_v4(out, address),
        // A colon and a bracket are no token: they need quotes (RFC 7239 §6). Writing into a vector
        // can't fail.
        Some(IpAddr::V6(address)) => drop(write!(out, "\"[{address}]\"")),
        None => out.extend_from_slice(b"unknown"),
    }
    if !host.is_empty() {
        out.extend_from_slice(b";host=");
        write_value(out, host);
    }
    if !proto.is_empty() {
        out.extend_from_slice(b";proto=");
        write_value(out, proto);
    }
}

/// Appends a token, or a quoted string where the value is none (RFC 7239 §4).
fn write_value(out: &mut Vec<u8>, value: &[u8]) {
    if crate::http::h1::is_token(value) {
        out.extend_from_slice(value);
        return;
    }
    out.push(b'"');
    for &byte in value {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::{HeadLimits, parse_head};
    use proptest::prelude::*;

    #[test]
    fn elements_are_read_by_their_grammar() {
        let list =
            elements(b"for=\"[2001:db8::1]:80\";PROTO=https;host=\"a\\\"b\", by=x;For=1.2.3.4,")
                .expect("valid");
        assert_eq!(list.len(), 3);
        assert_eq!(
            list[0].address(),
            Some("2001:db8::1".parse().expect("valid"))
        );
        assert_eq!(list[0].proto.as_deref(), Some(&b"https"[..]));
        assert_eq!(list[0].host.as_deref(), Some(&b"a\"b"[..]));
        assert_eq!(list[1].address(), Some("1.2.3.4".parse().expect("valid")));
        assert_eq!(list[2], Element::default());
        for broken in [
            "for=\"1.2.3.4",
            "for",
            "for=",
            "=a",
            "for=a b",
            "for=\"a\"b",
            "for=a;for=b",
            "f or=a",
            "for=\"a\\",
            "\"",
            "for=a\"b\"",
        ] {
            assert_eq!(elements(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn addresses_come_in_many_spellings() {
        for (node, address) in [
            ("1.2.3.4", Some("1.2.3.4")),
            ("1.2.3.4:80", Some("1.2.3.4")),
            ("1.2.3.4:_x", Some("1.2.3.4")),
            ("::1", Some("::1")),
            ("[::1]", Some("::1")),
            ("[::1]:80", Some("::1")),
            ("::ffff:1.2.3.4", Some("1.2.3.4")),
            ("unknown", None),
            ("_x", None),
            ("", None),
            ("1.2.3", None),
            ("1.2.3.4:", None),
            ("[::1", None),
            ("[::1]80", None),
            ("[1.2.3.4]", None),
            ("1.2.3.4 ", None),
            ("01.2.3.4", None),
        ] {
            let expected = address.map(|text| text.parse().expect("an address"));
            assert_eq!(node_address(node.as_bytes()), expected, "{node}");
        }
    }

    /// X-Forwarded-For, -Proto, -Host and Forwarded for a request with these fields.
    fn told(peer: &str, believed: bool, fields: &str) -> [String; 4] {
        let head = format!("GET / HTTP/1.1\r\nHost: a:8080\r\n{fields}\r\n");
        let request = parse_head(head.as_bytes(), &HeadLimits::default()).expect("valid");
        let authority = authority(&request);
        let peer = (peer.parse().ok(), believed);
        let hops = Hops::of(&request.fields, peer, ("http", &authority));
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).expect("ASCII");
        // A list begins where it begins, whatever stands before it.
        let (mut list, mut forwarded) = (b"A: ".to_vec(), b"B: ".to_vec());
        hops.write_forwarded_for(&mut list);
        hops.write_forwarded(&mut forwarded);
        [
            text(&list[3..]),
            text(hops.forwarded_proto()),
            text(hops.forwarded_host()),
            text(&forwarded[3..]),
        ]
    }

    #[test]
    fn a_stranger_is_told_of_and_not_listened_to() {
        let fields = "X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\n\
                      X-Forwarded-Host: evil\r\nForwarded: for=9.9.9.9;host=evil\r\n";
        let expected = [
            "1.2.3.4",
            "http",
            "a:8080",
            "for=1.2.3.4;host=\"a:8080\";proto=http",
        ];
        assert_eq!(told("1.2.3.4", false, fields), expected);
        assert_eq!(told("1.2.3.4", false, ""), expected);
        let [list, _, _, forwarded] = told("2001:db8::1", false, "");
        assert_eq!(list, "2001:db8::1");
        assert!(forwarded.starts_with("for=\"[2001:db8::1]\";"));
        let [list, _, _, forwarded] = told("no address", false, "");
        assert_eq!(
            (&*list, &*forwarded),
            ("", "for=unknown;host=\"a:8080\";proto=http")
        );
        assert_eq!(told("::ffff:1.2.3.4", false, ""), expected);
    }

    #[test]
    fn both_chains_say_the_same_when_a_believed_peer_told_one() {
        let fields = "X-Forwarded-For: 2001:db8::1\r\nX-Forwarded-For: 8.8.8.8, x\r\n\
                      X-Forwarded-Proto: https, http\r\nX-Forwarded-Host: b\r\n";
        assert_eq!(
            told("10.0.0.1", true, fields),
            [
                "2001:db8::1, 8.8.8.8, x, 10.0.0.1",
                "https",
                "b",
                "for=\"[2001:db8::1]\";host=b;proto=https, for=8.8.8.8, for=unknown, \
                 for=10.0.0.1;host=\"a:8080\";proto=http",
            ]
        );
        let fields = "Forwarded: for=\"[2001:db8::1]\";host=b;proto=https, for=_x\r\n";
        assert_eq!(
            told("10.0.0.1", true, fields),
            [
                "2001:db8::1, unknown, 10.0.0.1",
                "https",
                "b",
                "for=\"[2001:db8::1]\";host=b;proto=https, for=_x, \
                 for=10.0.0.1;host=\"a:8080\";proto=http",
            ]
        );
    }

    #[test]
    fn what_a_believed_peer_garbles_is_left_out() {
        let fields = "Forwarded: for=\"9.9.9.9\r\nX-Forwarded-Proto: java script\r\n\
                      X-Forwarded-Host: a@b\r\nX-Forwarded-For:\r\n";
        assert_eq!(
            told("10.0.0.1", true, fields),
            [
                "10.0.0.1",
                "http",
                "a:8080",
                "for=10.0.0.1;host=\"a:8080\";proto=http"
            ]
        );
    }

    proptest! {
        #[test]
        fn our_element_is_always_the_last_one(
            forwarded in "(for=|\"|\\\\|,|;|a|=|host=| |1[.]2[.]3[.]4){0,16}",
            list in "(,| |a|\"|1[.]2[.]3[.]4|::1){0,8}",
        ) {
            let fields = format!("Forwarded: {forwarded}\r\nX-Forwarded-For: {list}\r\n");
            let [_, _, _, value] = told("10.9.8.7", true, &fields);
            let found = elements(value.as_bytes()).expect("what we write has the grammar");
            let last = found.last().expect("at least ours");
            prop_assert_eq!(last.address(), Some("10.9.8.7".parse().expect("valid")));
            prop_assert_eq!(last.proto.as_deref(), Some(&b"http"[..]));
        }
    }
}
