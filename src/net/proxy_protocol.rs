//! The PROXY protocol, versions 1 and 2: the line or block by which a load balancer in front of us
//! tells whose connection this is, and by which we tell a backend.
//!
//! Source: HAProxy's `proxy-protocol.txt`, sections 2.1, 2.2 and 4. Pure: bytes in, a header out. It
//! may not know who is believed; whoever reads it has asked that before (a header from anybody else
//! is a forged address).
//!
//! It is written here because the parser has to work in pieces and within a bound: the `ppp` crate
//! takes a version 1 line that was cut within an address for a wrong one, takes `\r` for a space and
//! `+80` for a port, and accepts version 2 headers of 64 KiB.

use std::fmt;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest line of version 1 in bytes, with its CRLF (section 2.1).
pub const V1_MAX: usize = 107;

/// Longest header of version 2 in bytes that is accepted: addresses of any family (232 at most) and
/// some TLVs, the bound that section 2.2 asks every sender to stay within.
pub const V2_MAX: usize = 536;

/// Which version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// A binary block.
    V2,
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The sender's own (a health check: LOCAL), or one that it can't tell (UNKNOWN, a unix socket,
    /// UDP): the addresses of the socket count.
    Unspecified,
    /// One over TCP: both addresses have the same family.
    Tcp {
        /// The client's address.
        source: SocketAddr,
        /// The address that the client has connected to.
        destination: SocketAddr,
    },
}

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The version that it was in.
    pub version: ProxyVersion,
    /// Whose connection it is.
    pub origin: Origin,
    /// The bytes it has; what follows is the client's. At most [`V1_MAX`] or [`V2_MAX`].
    pub length: usize,
}

/// Why what came is no header. The sender's fault, or the configuration's, when the sender speaks
/// the protocol not at all. The connection closes without an answer, which would go to nobody who
/// expects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocolError {
    /// It begins neither like version 1 nor like version 2: most often a plain request, from a peer
    /// that isn't set up to send the header.
    Signature,
    /// A line of version 1 that breaks its grammar.
    Line(&'static str),
    /// A block of version 2 that breaks its grammar.
    Block(&'static str),
    /// It is longer than [`V1_MAX`] or [`V2_MAX`].
    TooLong,
}

impl ProxyProtocolError {
    /// The rule that was broken, for the log.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Signature => "PROXY header expected, something else came",
            Self::Line(reason) | Self::Block(reason) => reason,
            Self::TooLong => "limit: PROXY header",
        }
    }
}

impl fmt::Display for ProxyProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for ProxyProtocolError {}

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length of the rest.
const V2_FIXED: usize = 16;

/// Looks for a header at `bytes[0]`. `bytes` holds all that has come so far; each call passes the
/// same bytes as the last one and more. None: more bytes are needed, and all that have come may
/// begin a header. A header is short, so that each call looks at it from its beginning.
///
/// # Errors
/// See [`ProxyProtocolError`], at the first byte that shows it for the signature and the length.
pub fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyProtocolError> {
    match bytes.first() {
        None => Ok(None),
        Some(b'P') => parse_v1(bytes),
        Some(_) => parse_v2(bytes),
    }
}

/// Whether `bytes` begins with the signature as far as it has come; `Ok(true)` when it is whole.
fn has_signature(bytes: &[u8], signature: &[u8]) -> Result<bool, ProxyProtocolError> {
    let common = bytes.len().min(signature.len());
    if bytes[..common] != signature[..common] {
        return Err(ProxyProtocolError::Signature);
    }
    Ok(common == signature.len())
}

fn parse_v1(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyProtocolError> {
    if !has_signature(bytes, V1_SIGNATURE)? {
        return Ok(None);
    }
    let within = &bytes[..bytes.len().min(V1_MAX)];
    let Some(cr) = within
        .iter()
        .position(|&byte| byte == b'\r' || byte == b'\n')
    else {
        return match bytes.len() < V1_MAX {
            true => Ok(None),
            false => Err(ProxyProtocolError::TooLong),
        };
    };
    if within[cr] == b'\n' {
        return Err(ProxyProtocolError::Line("PROXY line ends with a bare LF"));
    }
    match within.get(cr + 1) {
        Some(b'\n') => {}
        Some(_) => return Err(ProxyProtocolError::Line("bare CR in PROXY line")),
        None if cr + 1 == V1_MAX => return Err(ProxyProtocolError::TooLong),
        None => return Ok(None),
    }
    Ok(Some(ProxyHeader {
        version: ProxyVersion::V1,
        origin: parse_line(&within[V1_SIGNATURE.len()..cr])?,
        length: cr + 2,
    }))
}

/// The line behind `PROXY `, without its end.
fn parse_line(line: &[u8]) -> Result<Origin, ProxyProtocolError> {
    let broken = ProxyProtocolError::Line;
    // Whatever stands behind UNKNOWN is ignored (section 2.1).
    if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        return Ok(Origin::Unspecified);
    }
    let text = str::from_utf8(line).map_err(|_| broken("PROXY line is not ASCII"))?;
    let mut words = text.split(' ');
    let family = words.next();
    let (Some(source), Some(destination), Some(source_port), Some(destination_port), None) = (
        words.next(),
        words.next(),
        words.next(),
        words.next(),
        words.next(),
    ) else {
        return Err(broken("PROXY line has not six words"));
    };
    let parse: fn(&str) -> Option<IpAddr> = match family {
        Some("TCP4") => |text| text.parse().ok().map(IpAddr::V4),
        Some("TCP6") => |text| text.parse().ok().map(IpAddr::V6),
        _ => return Err(broken("PROXY line is neither TCP4, TCP6 nor UNKNOWN")),
    };
    let address = |text| parse(text).ok_or(broken("address in PROXY line"));
    let port = |text| parse_port(text).ok_or(broken("port in PROXY line"));
    Ok(Origin::Tcp {
        source: SocketAddr::new(address(source)?, port(source_port)?),
        destination: SocketAddr::new(address(destination)?, port(destination_port)?),
    })
}

/// 0 to 65535 without sign and leading zeros.
fn parse_port(text: &str) -> Option<u16> {
    let canonical = text == "0" || !text.starts_with('0');
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match canonical && digits {
        true => text.parse().ok(),
        false => None,
    }
}

fn parse_v2(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyProtocolError> {
    if !has_signature(bytes, V2_SIGNATURE)? {
        return Ok(None);
    }
    let broken = ProxyProtocolError::Block;
    let command = match bytes.get(12) {
        None => return Ok(None),
        Some(0x20) => Command::Local,
        Some(0x21) => Command::Proxy,
        Some(other) if other >> 4 != 2 => return Err(broken("version of PROXY block is not 2")),
        Some(_) => return Err(broken("unknown command in PROXY block")),
    };
    let family = match bytes.get(13) {
        None => return Ok(None),
        Some(family) if family >> 4 <= 3 && family & 0xf <= 2 => *family,
        Some(_) => return Err(broken("unknown family or transport in PROXY block")),
    };
    let Some(&[high, low]) = bytes.get(14..V2_FIXED) else {
        return Ok(None);
    };
    let length = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > V2_MAX {
        return Err(ProxyProtocolError::TooLong);
    }
    // The addresses are of no interest for LOCAL, but a block too short for them is broken.
    let addresses = match family >> 4 {
        1 => 12,
        2 => 36,
        3 => 216,
        _ => 0,
    };
    if command == Command::Proxy && length < V2_FIXED + addresses {
        return Err(broken("PROXY block is too short for its addresses"));
    }
    let Some(rest) = bytes.get(V2_FIXED..length) else {
        return Ok(None);
    };
    let origin = match (command, family) {
        (Command::Proxy, 0x11) => parse_v4(rest),
        (Command::Proxy, 0x21) => parse_v6(rest),
        // Unix sockets have no address that means anything here, and UDP is none of this stream's.
        _ => Some(Origin::Unspecified),
    };
    Ok(Some(ProxyHeader {
        version: ProxyVersion::V2,
        origin: origin.ok_or(broken("PROXY block is too short for its addresses"))?,
        length,
    }))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Local,
    Proxy,
}

fn parse_v4(block: &[u8]) -> Option<Origin> {
    let (source, rest) = block.split_first_chunk::<4>()?;
    let (destination, rest) = rest.split_first_chunk::<4>()?;
    origin(
        Ipv4Addr::from(*source).into(),
        Ipv4Addr::from(*destination).into(),
        rest,
    )
}

fn parse_v6(block: &[u8]) -> Option<Origin> {
    let (source, rest) = block.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    origin(
        Ipv6Addr::from(*source).into(),
        Ipv6Addr::from(*destination).into(),
        rest,
    )
}

/// The ports stand behind the addresses; TLVs behind them are skipped.
fn origin(source: IpAddr, destination: IpAddr, rest: &[u8]) -> Option<Origin> {
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let (destination_port, _) = rest.split_first_chunk::<2>()?;
    Some(Origin::Tcp {
        source: SocketAddr::new(source, u16::from_be_bytes(*source_port)),
        destination: SocketAddr::new(destination, u16::from_be_bytes(*destination_port)),
    })
}

/// Appends a header that tells a backend whose connection it is. Addresses of two families are both
/// written as IPv6, the IPv4 one mapped; scopes and flow labels of IPv6 aren't told.
pub fn write(out: &mut Vec<u8>, version: ProxyVersion, told: Origin) {
    let told = match told {
        Origin::Unspecified => told,
        Origin::Tcp {
            source,
            destination,
        } => same_family(source, destination),
    };
    match version {
        ProxyVersion::V1 => write_v1(out, told),
        ProxyVersion::V2 => write_v2(out, told),
    }
}

/// Both addresses in one family: IPv4 where both are.
fn same_family(source: SocketAddr, destination: SocketAddr) -> Origin {
    let (from, to) = (source.ip().to_canonical(), destination.ip().to_canonical());
    let (from, to) = match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => (from, to),
        _ => (IpAddr::V6(mapped(from)), IpAddr::V6(mapped(to))),
    };
    Origin::Tcp {
        source: SocketAddr::new(from, source.port()),
        destination: SocketAddr::new(to, destination.port()),
    }
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn write_v1(out: &mut Vec<u8>, told: Origin) {
    let Origin::Tcp {
        source,
        destination,
    } = told
    else {
        out.extend_from_slice(b"PROXY UNKNOWN\r\n");
        return;
    };
    let family = match source {
        SocketAddr::V4(_) => "TCP4",
        SocketAddr::V6(_) => "TCP6",
    };
    let (from, to) = (source.ip(), destination.ip());
    let (from_port, to_port) = (source.port(), destination.port());
    // Writing into a vector can't fail.
    let _ = write!(out, "PROXY {family} {from} {to} {from_port} {to_port}\r\n");
}

fn write_v2(out: &mut Vec<u8>, told: Origin) {
    out.extend_from_slice(V2_SIGNATURE);
    let Origin::Tcp {
        source,
        destination,
    } = told
    else {
        out.extend_from_slice(&[0x20, 0, 0, 0]);
        return;
    };
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[0x21, 0x11, 0, 12]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (from, to) => {
            out.extend_from_slice(&[0x21, 0x21, 0, 36]);
            out.extend_from_slice(&mapped(from).octets());
            out.extend_from_slice(&mapped(to).octets());
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(source: &str, destination: &str) -> Origin {
        Origin::Tcp {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
        }
    }

    fn block(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut block = V2_SIGNATURE.to_vec();
        block.extend_from_slice(&[command, family]);
        block.extend_from_slice(&(rest.len() as u16).to_be_bytes());
        block.extend_from_slice(rest);
        block
    }

    /// Each part of a header needs more, and what follows isn't looked at.
    fn whole(header: &[u8]) -> Origin {
        for end in 0..header.len() {
            assert_eq!(parse(&header[..end]), Ok(None), "{end} bytes of {header:?}");
        }
        let mut more = header.to_vec();
        more.extend_from_slice(b"GET / HTTP/1.1\r\nPROXY \0");
        let found = parse(&more).expect("valid").expect("whole");
        assert_eq!(parse(header), Ok(Some(found)));
        assert_eq!(found.length, header.len());
        found.origin
    }

    #[test]
    fn lines_tell_both_addresses() {
        for (line, origin) in [
            (
                "TCP4 192.0.2.1 198.51.100.2 56324 443",
                tcp("192.0.2.1:56324", "198.51.100.2:443"),
            ),
            (
                "TCP4 255.255.255.255 255.255.255.255 65535 65535",
                tcp("255.255.255.255:65535", "255.255.255.255:65535"),
            ),
            (
                "TCP6 2001:db8::1 ::1 0 80",
                tcp("[2001:db8::1]:0", "[::1]:80"),
            ),
            ("UNKNOWN", Origin::Unspecified),
            (
                "UNKNOWN ffff:f...f:ffff whatever 65535 \u{e9}",
                Origin::Unspecified,
            ),
        ] {
            assert_eq!(
                whole(format!("PROXY {line}\r\n").as_bytes()),
                origin,
                "{line}"
            );
        }
    }

    #[test]
    fn lines_are_strict() {
        let words = "PROXY line has not six words";
        let (address, port) = ("address in PROXY line", "port in PROXY line");
        for (line, reason) in [
            ("TCP4 1.2.3.4 5.6.7.8 1\r\n", words),
            ("TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n", words),
            ("TCP4 1.2.3.4 5.6.7.8 1 2 \r\n", words),
            ("TCP4  1.2.3.4 5.6.7.8 1 2\r\n", words),
            ("UNKNOWNX\r\n", words),
            ("TCP4 1.2.3.4 5.6.7.8 +1 2\r\n", port),
            ("TCP4 1.2.3.4 5.6.7.8 01 2\r\n", port),
            ("TCP4 1.2.3.4 5.6.7.8 1 65536\r\n", port),
            ("TCP4 1.2.3.4 5.6.7.8  2\r\n", port),
            ("TCP4 ::1 ::1 1 2\r\n", address),
            ("TCP6 1.2.3.4 ::1 1 2\r\n", address),
            ("TCP4 1.2.3 5.6.7.8 1 2\r\n", address),
            ("TCP4 01.2.3.4 5.6.7.8 1 2\r\n", address),
            ("TCP6 [::1] ::1 1 2\r\n", address),
            (
                "UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
                "PROXY line is neither TCP4, TCP6 nor UNKNOWN",
            ),
            (
                "tcp4 1.2.3.4 5.6.7.8 1 2\r\n",
                "PROXY line is neither TCP4, TCP6 nor UNKNOWN",
            ),
            (
                "TCP4 1.2.3.4 5.6.7.8 1 2\n",
                "PROXY line ends with a bare LF",
            ),
            ("TCP4 1.2.3.4\r5.6.7.8 1 2\r\n", "bare CR in PROXY line"),
        ] {
            let found = parse(format!("PROXY {line}").as_bytes());
            assert_eq!(found, Err(ProxyProtocolError::Line(reason)), "{line:?}");
        }
    }

    #[test]
    fn a_line_has_at_most_its_bound() {
        let line = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - 16));
        assert_eq!(whole(line(V1_MAX).as_bytes()), Origin::Unspecified);
        assert_eq!(
            parse(line(V1_MAX + 1).as_bytes()),
            Err(ProxyProtocolError::TooLong)
        );
        let endless = "PROXY UNKNOWN ".to_owned() + &"x".repeat(V1_MAX);
        assert_eq!(parse(&endless.as_bytes()[..V1_MAX - 1]), Ok(None));
        assert_eq!(
            parse(&endless.as_bytes()[..V1_MAX]),
            Err(ProxyProtocolError::TooLong)
        );
    }

    #[test]
    fn blocks_tell_both_addresses() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 4, 1, 187];
        let expected = tcp("192.0.2.1:56324", "198.51.100.2:443");
        assert_eq!(whole(&block(0x21, 0x11, &v4)), expected);
        let tlvs = [&v4[..], &[0x20, 0, 2, 1, 2, 4, 0xff, 0xff]].concat();
        assert_eq!(
            whole(&block(0x21, 0x11, &tlvs)),
            expected,
            "TLVs are skipped"
        );
        let mut v6 = [0; 36];
        (v6[15], v6[31], v6[33], v6[35]) = (1, 2, 80, 81);
        assert_eq!(whole(&block(0x21, 0x21, &v6)), tcp("[::1]:80", "[::2]:81"));
        for (command, family, rest) in [
            (0x20, 0x00, &[][..]),
            (0x20, 0x11, &v4),
            (0x20, 0x11, &[]),
            (0x21, 0x00, &[]),
            (0x21, 0x00, &[1, 2, 3]),
            (0x21, 0x12, &v4),
            (0x21, 0x31, &[0; 216]),
        ] {
            let found = whole(&block(command, family, rest));
            assert_eq!(found, Origin::Unspecified, "{command:x} {family:x}");
        }
    }

    #[test]
    fn blocks_are_strict_and_bounded() {
        let short = "PROXY block is too short for its addresses";
        for (command, family, rest, reason) in [
            (0x21, 0x11, &[0; 11][..], short),
            (0x21, 0x21, &[0; 35], short),
            (0x21, 0x31, &[0; 215], short),
            (0x22, 0x11, &[0; 12], "unknown command in PROXY block"),
            (0x11, 0x11, &[0; 12], "version of PROXY block is not 2"),
            (
                0x21,
                0x41,
                &[0; 12],
                "unknown family or transport in PROXY block",
            ),
            (
                0x21,
                0x13,
                &[0; 12],
                "unknown family or transport in PROXY block",
            ),
        ] {
            let found = parse(&block(command, family, rest));
            assert_eq!(found, Err(ProxyProtocolError::Block(reason)));
        }
        let largest = block(0x20, 0, &[0; V2_MAX - V2_FIXED]);
        assert_eq!(whole(&largest), Origin::Unspecified);
        let over = block(0x20, 0, &[0; V2_MAX - V2_FIXED + 1]);
        assert_eq!(
            parse(&over[..V2_FIXED]),
            Err(ProxyProtocolError::TooLong),
            "at once"
        );
    }

    #[test]
    fn anything_else_is_refused_at_its_first_byte() {
        for (bytes, wrong) in [
            (&b"GET / HTTP/1.1\r\n"[..], 1),
            (b"POST", 2),
            (b"PROXX", 5),
            (b"PROXY\t", 6),
            (b"\x16\x03", 1),
            (b"\r\nGET", 3),
            (b"\r\n\r\n\0\r\nQUIT\r", 12),
        ] {
            assert_eq!(parse(&bytes[..wrong - 1]), Ok(None), "{bytes:?}");
            assert_eq!(
                parse(&bytes[..wrong]),
                Err(ProxyProtocolError::Signature),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn headers_are_written_for_backends() {
        let mut out = Vec::new();
        write(&mut out, ProxyVersion::V1, tcp("1.2.3.4:5", "[::1]:6"));
        assert_eq!(out, b"PROXY TCP6 ::ffff:1.2.3.4 ::1 5 6\r\n");
        out.clear();
        write(
            &mut out,
            ProxyVersion::V1,
            tcp("[::ffff:1.2.3.4]:5", "5.6.7.8:6"),
        );
        assert_eq!(out, b"PROXY TCP4 1.2.3.4 5.6.7.8 5 6\r\n");
        out.clear();
        write(&mut out, ProxyVersion::V1, Origin::Unspecified);
        assert_eq!(out, b"PROXY UNKNOWN\r\n");
        out.clear();
        write(&mut out, ProxyVersion::V2, Origin::Unspecified);
        assert_eq!(out, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
        out.clear();
        write(&mut out, ProxyVersion::V2, tcp("1.2.3.4:5", "5.6.7.8:256"));
        assert_eq!(
            out,
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0\x05\x01\0"
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            (source, destination) in any::<(std::net::IpAddr, std::net::IpAddr)>(),
            (from, to) in any::<(u16, u16)>(),
            second in any::<bool>(),
        ) {
            let version = if second { ProxyVersion::V2 } else { ProxyVersion::V1 };
            let told = Origin::Tcp {
                source: SocketAddr::new(source, from),
                destination: SocketAddr::new(destination, to),
            };
            let mut out = Vec::new();
            write(&mut out, version, told);
            prop_assert!(out.len() <= V1_MAX);
            let found = parse(&out).expect("valid").expect("whole");
            prop_assert_eq!((found.version, found.length), (version, out.len()));
            let Origin::Tcp { source: s, destination: d } = found.origin else {
                return Err(TestCaseError::fail("the addresses are lost"));
            };
            prop_assert_eq!(s.is_ipv4(), d.is_ipv4());
            prop_assert_eq!(s.ip().to_canonical(), source.to_canonical());
            prop_assert_eq!(d.ip().to_canonical(), destination.to_canonical());
            prop_assert_eq!((s.port(), d.port()), (from, to));
        }
    }
}
