//! PROXY protocol headers: a piece of one is never refused and never taken for a whole one, and what
//! is read can be written again.

use beltway::net::proxy_protocol::{
    Origin, ProxyHeader, ProxyProtocolError, ProxyVersion, V1_MAX, V2_MAX, parse, write,
};

use crate::Target;

/// The target.
pub const TARGET: Target = Target {
    name: "proxy_protocol",
    run,
    corpus: &[
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\nGET / HTTP/1.1\r\n",
        b"PROXY TCP6 2001:db8::1 ::1 0 65535\r\n",
        b"PROXY UNKNOWN ffff::1 a b c\r\n",
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0\x50\x01\xbbGET",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x290123456789abcdef0123456789abcdef\0\x50\x01\xbb\x04\0\x02ab",
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c0123456789ab",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    tokens: &[
        b"PROXY ",
        b"TCP4 ",
        b"TCP6 ",
        b"UNKNOWN",
        b" ",
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"+80",
        b"080",
        b"65536",
        b"1.2.3.4 ",
        b"::ffff:1.2.3.4 ",
        b"\r\n\r\n\0\r\nQUIT\n",
        b"\x21\x11",
        b"\x21\x21",
        b"\x21\x31",
        b"\x20\x00",
        b"\x00\x0c",
        b"\x00\x24",
        b"\xff\xff",
        b"\x02\x08",
        b"\x02\x09",
    ],
};

type Verdict = Result<Option<ProxyHeader>, ProxyProtocolError>;

fn run(input: &[u8]) {
    let whole = parse(input);
    assert_eq!(first(input), whole, "byte by byte");
    match whole {
        Ok(Some(header)) => check(input, header),
        Ok(None) => assert!(input.len() < V2_MAX, "a bound"),
        Err(error) => assert!(!error.reason().is_empty()),
    }
}

/// The first verdict on bytes that arrive one by one.
fn first(input: &[u8]) -> Verdict {
    for end in 0..input.len().min(V2_MAX + 1) {
        match parse(&input[..end]) {
            Ok(None) => {}
            verdict => return verdict,
        }
    }
    parse(input)
}

fn check(input: &[u8], header: ProxyHeader) {
    let most = match header.version {
        ProxyVersion::V1 => V1_MAX,
        ProxyVersion::V2 => V2_MAX,
    };
    assert!(header.length <= most.min(input.len()));
    let alone = parse(&input[..header.length]);
    assert_eq!(alone, Ok(Some(header)), "what follows changes nothing");
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let mut out = Vec::new();
        write(&mut out, version, header.origin);
        let again = parse(&out).expect("valid").expect("whole");
        assert_eq!((again.version, again.length), (version, out.len()));
        assert_eq!(canonical(again.origin), canonical(header.origin));
    }
}

/// Addresses as they are told: an IPv4 address may have become an IPv6 one.
fn canonical(origin: Origin) -> Option<[(std::net::IpAddr, u16); 2]> {
    match origin {
        Origin::Unspecified => None,
        Origin::Tcp {
            source,
            destination,
        } => Some([source, destination].map(|a| (a.ip().to_canonical(), a.port()))),
    }
}
