//! The name in a ClientHello, found before any state of a connection is made.
//!
//! It reads no more than that: whether the message is a good one is decided by who speaks the protocol,
//! and who does compares the name with the one it has read itself
//! ([`TlsServer`](super::TlsServer)).

use super::Failure;

/// Most bytes of a ClientHello. Those of browsers have 2 KiB with a post-quantum key share; tickets
/// may add some.
pub const HELLO_MAX: usize = 16 << 10;

/// Most records that it may come in. A record has 16 KiB; clients that negotiate small ones use 512 B.
const RECORDS_MAX: usize = 64;

/// Most bytes that have to be received to know a ClientHello.
pub const BYTES_MAX: usize = HELLO_MAX + HANDSHAKE_HEADER + RECORDS_MAX * RECORD_HEADER;

/// Type, version and length (RFC 8446 §5.1).
const RECORD_HEADER: usize = 5;
/// Type and length (RFC 8446 §4).
const HANDSHAKE_HEADER: usize = 4;
/// Most bytes in a record that isn't encrypted (RFC 8446 §5.1).
const FRAGMENT_MAX: usize = 1 << 14;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// Longest name (RFC 1035 §2.3.4).
const NAME_MAX: usize = 253;

/// What a connection begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scanned {
    /// More bytes are needed.
    More,
    /// A ClientHello is whole. The name in it, in lower case and without a dot at its end; `None` where
    /// it names nobody.
    Name(Option<Box<str>>),
}

/// Looks for the end of a ClientHello in what has been received so far.
///
/// The work of a look is bounded by the number of records, not by the bytes, so a client that sends
/// byte by byte costs little.
#[derive(Debug, Default)]
pub struct Scanner {
    /// Where the first record begins that was not whole yet.
    at: usize,
    records: usize,
    /// What the whole records held, header and all.
    message: Vec<u8>,
}

impl Scanner {
    /// Looks at all bytes that were received so far: those of the last look and more.
    ///
    /// # Errors
    /// [`Failure::PlainHttp`], [`Failure::NotTls`], [`Failure::Hello`] or [`Failure::TooMuch`].
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Scanned, Failure> {
        if self.records == 0 {
            begins_as_tls(bytes)?;
        }
        while let Some(header) = bytes.get(self.at..self.at + RECORD_HEADER) {
            let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
            if header[0] != HANDSHAKE || header[1] != 3 {
                return Err(Failure::Hello("another record within the ClientHello"));
            }
            if length == 0 || length > FRAGMENT_MAX {
                return Err(Failure::Hello("an empty or oversized record"));
            }
            let start = self.at + RECORD_HEADER;
            let Some(fragment) = bytes.get(start..start + length) else {
                // What it will be can be refused before it is here.
                self.expected(bytes.get(start..).unwrap_or_default())?;
                return Ok(Scanned::More);
            };
            self.records += 1;
            if self.records > RECORDS_MAX {
                return Err(Failure::TooMuch);
            }
            let expected = self.expected(fragment)?;
            self.at = start + length;
            if self.message.is_empty()
                && expected.is_some_and(|expected| fragment.len() >= expected)
            {
                return name_in(&fragment[HANDSHAKE_HEADER..expected.unwrap_or(fragment.len())]);
            }
            self.message.extend_from_slice(fragment);
            if let Some(expected) = self.expected(&[])?
                && self.message.len() >= expected
            {
                return name_in(&self.message[HANDSHAKE_HEADER..expected]);
            }
        }
        Ok(Scanned::More)
    }

    /// The length of the whole message, header included, as far as it is known with these bytes behind
    /// those of the whole records.
    fn expected(&self, next: &[u8]) -> Result<Option<usize>, Failure> {
        let mut header = self.message.iter().chain(next).copied();
        let Some(kind) = header.next() else {
            return Ok(None);
        };
        if kind != CLIENT_HELLO {
            return Err(Failure::Hello("another message in its place"));
        }
        let (Some(a), Some(b), Some(c)) = (header.next(), header.next(), header.next()) else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if length > HELLO_MAX {
            return Err(Failure::TooMuch);
        }
        Ok(Some(HANDSHAKE_HEADER + length))
    }
}

/// Whether the first bytes may be the begin of a TLS record, as far as they are here.
fn begins_as_tls(bytes: &[u8]) -> Result<(), Failure> {
    let is_tls = match bytes {
        [] => true,
        [first] => *first == HANDSHAKE,
        [first, second, ..] => *first == HANDSHAKE && *second == 3,
    };
    match is_tls {
        true => Ok(()),
        // A method is a word in capitals.
        false if bytes[0].is_ascii_uppercase() => Err(Failure::PlainHttp),
        false => Err(Failure::NotTls),
    }
}

/// Reads forward through a message.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<usize> {
        self.take(1).map(|bytes| usize::from(bytes[0]))
    }

    fn u16(&mut self) -> Option<usize> {
        self.take(2)
            .map(|bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    }

    /// A vector with its length before it in one byte.
    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length)
    }

    /// A vector with its length before it in two bytes.
    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length)
    }
}

/// The name in a ClientHello (RFC 8446 §4.1.2, RFC 6066 §3).
fn name_in(hello: &[u8]) -> Result<Scanned, Failure> {
    let found = extension(hello, SERVER_NAME).ok_or(Failure::Hello("it ends within a field"))?;
    let Some(list) = found else {
        return Ok(Scanned::Name(None));
    };
    let mut list = Cursor(list);
    let broken = Failure::Hello("its server name is malformed");
    let mut names = Cursor(list.vector16().ok_or(broken)?);
    // How long another kind of name would be isn't known, and a second host name is forbidden: rustls
    // refuses them, too, so that what it reads is what was read here.
    if names.u8() != Some(usize::from(HOST_NAME)) {
        return Err(broken);
    }
    let name = names.vector16().ok_or(broken)?;
    match host_name(name) {
        Some(name) if names.0.is_empty() => Ok(Scanned::Name(name)),
        _ => Err(broken),
    }
}

/// The first extension of a type; `None` where the message is no whole ClientHello.
fn extension(hello: &[u8], wanted: u16) -> Option<Option<&[u8]>> {
    let mut hello = Cursor(hello);
    let _version_and_random = hello.take(2 + 32)?;
    let _session = hello.vector8()?;
    let _suites = hello.vector16()?;
    let _compression = hello.vector8()?;
    if hello.0.is_empty() {
        return Some(None);
    }
    let mut extensions = Cursor(hello.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.vector16()?;
        if kind == usize::from(wanted) {
            return Some(Some(content));
        }
    }
    Some(None)
}

/// A name as sites are looked up by it; `Some(None)` for an address, which is no name (RFC 6066 §3).
fn host_name(name: &[u8]) -> Option<Option<Box<str>>> {
    let name = std::str::from_utf8(name).ok()?;
    if name.parse::<std::net::IpAddr>().is_ok() {
        return Some(None);
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_name = !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(fits);
    is_name.then(|| Some(name.to_ascii_lowercase().into()))
}

#[cfg(test)]
mod tests {
    //! Hellos of a real client, cut and changed in every way.

    use super::super::testing;
    use super::*;

    fn scan(bytes: &[u8]) -> Result<Scanned, Failure> {
        Scanner::default().scan(bytes)
    }

    fn name(text: &str) -> Result<Scanned, Failure> {
        Ok(Scanned::Name(Some(text.into())))
    }

    #[test]
    fn the_name_is_found_wherever_the_bytes_are_split() {
        let hello = testing::client_hello("WWW.Example.com");
        assert_eq!(scan(&hello), name("www.example.com"));
        for at in 0..hello.len() {
            let mut scanner = Scanner::default();
            assert_eq!(scanner.scan(&hello[..at]), Ok(Scanned::More), "{at}");
            assert_eq!(scanner.scan(&hello), name("www.example.com"), "{at}");
        }
        let mut scanner = Scanner::default();
        for end in 0..hello.len() {
            assert_eq!(scanner.scan(&hello[..end]), Ok(Scanned::More), "{end}");
        }
    }

    #[test]
    fn the_name_is_found_wherever_the_message_is_split_into_records() {
        let hello = testing::client_hello("example.com");
        let message = &hello[RECORD_HEADER..];
        for at in 1..message.len() {
            let mut records = Vec::new();
            for part in [&message[..at], &message[at..]] {
                records.extend_from_slice(&[HANDSHAKE, 3, 1]);
                records.extend_from_slice(&(part.len() as u16).to_be_bytes());
                records.extend_from_slice(part);
            }
            assert_eq!(scan(&records), name("example.com"), "{at}");
            let mut scanner = Scanner::default();
            for end in 0..records.len() {
                assert_eq!(
                    scanner.scan(&records[..end]),
                    Ok(Scanned::More),
                    "{at} {end}"
                );
            }
        }
    }

    #[test]
    fn addresses_and_nothing_are_no_name() {
        assert_eq!(
            scan(&testing::client_hello("127.0.0.1")),
            Ok(Scanned::Name(None))
        );
        assert_eq!(host_name(b"10.0.0.1"), Some(None));
        assert_eq!(host_name(b"a.example."), Some(Some("a.example".into())));
        for wrong in [&b""[..], b".", b"a b", b"\xff", &[b'a'; 254]] {
            assert_eq!(host_name(wrong), None);
        }
    }

    #[test]
    fn what_is_no_tls_is_told_at_its_first_bytes() {
        assert_eq!(scan(b"GET / HTTP/1.1\r\n"), Err(Failure::PlainHttp));
        assert_eq!(scan(b"P"), Err(Failure::PlainHttp));
        assert_eq!(scan(b"\x00"), Err(Failure::NotTls));
        assert_eq!(scan(b"\x16\x02"), Err(Failure::NotTls));
        // SSL 2.0 compatible hellos ended with RFC 8446 §D.2.
        assert_eq!(scan(b"\x80\x2e\x01\x03\x01"), Err(Failure::NotTls));
        assert_eq!(scan(b""), Ok(Scanned::More));
    }

    #[test]
    fn a_huge_hello_is_refused_before_it_has_come() {
        let announced = [HANDSHAKE, 3, 1, 0x40, 0, CLIENT_HELLO, 0, 0x40, 1];
        assert_eq!(scan(&announced), Err(Failure::TooMuch));
        let oversized = [HANDSHAKE, 3, 1, 0x40, 1];
        assert!(matches!(scan(&oversized), Err(Failure::Hello(_))));
        let mut many = Vec::new();
        for (index, byte) in [CLIENT_HELLO, 0, 1, 0].iter().chain(&[0; 100]).enumerate() {
            many.extend_from_slice(&[HANDSHAKE, 3, 1, 0, 1, *byte]);
            let scanned = scan(&many);
            assert_eq!(
                scanned == Err(Failure::TooMuch),
                index >= RECORDS_MAX,
                "{index}"
            );
        }
        assert!(many.len() < BYTES_MAX);
    }

    #[test]
    fn every_change_of_a_byte_ends_in_a_name_or_a_reason() {
        let hello = testing::client_hello("example.com");
        for at in 0..hello.len() {
            for bit in 0..8 {
                let mut changed = hello.clone();
                changed[at] ^= 1 << bit;
                let _ = scan(&changed);
            }
        }
    }
}
