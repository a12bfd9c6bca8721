//! The begin of TLS connections, and certificates: the name in a ClientHello doesn't depend on how it
//! was cut, a server and a client take whatever comes, and what they hold is bounded.

use std::sync::LazyLock;

use beltway::net::tls::hello::{BYTES_MAX, Scanned, Scanner};
use beltway::net::tls::{
    ClientSettings, Clients, Failure, Identity, PeerName, Plain, Policy, Roots, Settings, Terms,
    TlsClient, TlsServer, Trust,
};
use beltway::util::x509;

use crate::Target;
use crate::targets::cuts_of;

pub(super) const CERTIFICATE: &[u8] = include_bytes!("tls/certificate.pem");
const AUTHORITY: &str = include_str!("tls/authority.pem");
const KEY: &[u8] = include_bytes!("tls/key.pem");

/// The target. What begins with `-` is taken for certificates or revocation lists, with `0` for one in DER, all
/// else for a connection.
pub const TARGET: Target = Target {
    name: "tls",
    run,
    corpus: &[
        include_bytes!("tls/hello13.bin"),
        include_bytes!("tls/hello12.bin"),
        CERTIFICATE,
        AUTHORITY.as_bytes(),
        include_bytes!("tls/list.pem"),
        include_bytes!("tls/client.der"),
        include_bytes!("tls/list.der"),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x15\x03\x03\0\x02\x02\x28",
        b"\x16\x03\x01\0\x05\x01\0\0\x01\0",
        // A ServerHello, and what it needs to be one.
        b"\x16\x03\x03\0\x2c\x02\0\0\x28\x03\x0301234567890123456789012345678901\0\x13\x01\0\0\0",
    ],
    tokens: &[
        b"\x16\x03\x01",
        b"\x16\x03\x03",
        b"\x14\x03\x03\0\x01\x01",
        b"\x15\x03\x03\0\x02",
        b"\x17\x03\x03",
        b"\x01\0",
        b"\xff\xff",
        b"\x40\0",
        b"\0\0",
        b"\0\x0e\0\x0c\0\0\x09a.example",
        b"a.example",
        b"-----BEGIN CERTIFICATE-----\n",
        b"-----END CERTIFICATE-----\n",
        b"-----BEGIN X509 CRL-----\n",
        b"-----END X509 CRL-----\n",
        b"\x06\x03\x55\x04\x03\x0c",
        b"\x30\x82\x01",
        b"\x31\x0b",
    ],
};

pub(super) static SETTINGS: LazyLock<std::sync::Arc<Settings>> = LazyLock::new(|| {
    let identity = Identity::from_pem(CERTIFICATE, KEY).expect("the files are right");
    Settings::new(vec![identity.into()], Policy::Intermediate, None)
});

static CLIENTS: LazyLock<ClientSettings> = LazyLock::new(|| {
    let roots = Roots::from_pem(CERTIFICATE).expect("the file is right");
    let terms = Terms {
        trust: Trust::Roots(roots),
        identity: None,
        policy: Policy::Intermediate,
        tells_name: true,
    };
    ClientSettings::new(&terms, 1)
});

fn run(input: &[u8]) {
    if input.first() == Some(&b'-') {
        if let Err(error) = Identity::from_pem(input, KEY) {
            assert!(!error.message.is_empty() && !error.help.is_empty());
        }
        check_clients(input);
        if let Err(error) = Roots::from_pem(input) {
            assert!(!error.message.is_empty() && !error.help.is_empty());
        }
        return;
    }
    if input.first() == Some(&b'0') {
        return read(input);
    }
    let whole = Scanner::default().scan(input);
    assert_eq!(byte_by_byte(input), whole, "byte by byte");
    if whole == Ok(Scanned::More) {
        assert!(input.len() < BYTES_MAX, "a bound");
    }
    if let Ok(Scanned::Name(Some(name))) = &whole {
        assert!(!name.is_empty() && **name == *name.to_ascii_lowercase());
    }
    serve(input);
    ask(input);
}

/// What may be told of whose certificates are taken.
fn check_clients(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        for (authorities, lists) in [([text].as_slice(), [].as_slice()), (&[AUTHORITY], &[text])] {
            if let Err(error) = Clients::from_pem(authorities, lists, true) {
                assert!(!error.message.is_empty() && !error.help.is_empty());
            }
        }
    }
}

/// What is read of a certificate, or of a revocation list, in DER.
fn read(input: &[u8]) {
    let _ = (x509::read(input), x509::read_list(input));
    let Some(parts) = x509::parts(input) else {
        return;
    };
    for name in [parts.subject, parts.issuer] {
        if let Some(name) = x509::distinguished_name(name) {
            let is_printable = |byte| (b' '..=b'~').contains(&byte);
            assert!(name.bytes().all(is_printable), "a name for a field");
        }
    }
}

/// The first verdict that isn't "more", as a connection meets it.
fn byte_by_byte(input: &[u8]) -> Result<Scanned, Failure> {
    let mut scanner = Scanner::default();
    for end in 0..=input.len() {
        match scanner.scan(&input[..end]) {
            Ok(Scanned::More) => {}
            verdict => return verdict,
        }
    }
    Ok(Scanned::More)
}

/// Gives a server the bytes in pieces.
fn serve(input: &[u8]) {
    let mut server = TlsServer::new(&SETTINGS, None).expect("there is randomness");
    let mut out = Vec::new();
    in_pieces(input, |piece| {
        let received = server.receive(piece, &mut out);
        (received, server.held(), server.is_open())
    });
}

/// Gives a client the bytes in pieces.
fn ask(input: &[u8]) {
    let name = PeerName::parse("a.example").expect("it is a name");
    let mut out = Vec::new();
    let client = TlsClient::connect(&CLIENTS, &name, &mut out);
    let mut client = client.expect("there is randomness");
    in_pieces(input, |piece| {
        let received = client.receive(piece, &mut out);
        (received, client.held(), client.is_open())
    });
}

/// Gives the bytes in pieces to what tells how it took them, what it holds, and whether it is open.
fn in_pieces(
    input: &[u8],
    mut take: impl FnMut(&mut [u8]) -> (Result<Plain, Failure>, usize, bool),
) {
    let mut from = 0;
    for to in cuts_of(input).into_iter().chain([input.len()]) {
        let mut piece = input[from..to].to_vec();
        from = to;
        let (received, held, is_open) = take(&mut piece);
        match received {
            Ok(Plain::InPlace(0)) => {}
            Ok(plain) => panic!("plaintext without a handshake: {plain:?}"),
            Err(failure) => {
                assert!(!failure.name().is_empty());
                assert_eq!(take(&mut piece).0.err(), Some(failure));
                return;
            }
        }
        assert!(held <= input.len() && !is_open);
    }
}
