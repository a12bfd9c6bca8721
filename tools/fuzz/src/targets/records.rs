//! Records behind the handshake of a real session, whose keys are known: the input says which records are made,
//! of which type, how they are padded, changed, repeated, left out, and put between others in the clear. What a server
//! takes for content is a beginning of what was sent as content, whatever else was; an error repeats; what
//! is held is bounded, and what is answered are records of the protocol itself.

use std::sync::{Arc, LazyLock};

use beltway::net::tls::{Failure, Plain, TlsServer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, KeyLog, RootCertStore, SupportedProtocolVersion};

use crate::Target;
use crate::targets::cuts_of;
use crate::targets::tls::{CERTIFICATE, SETTINGS};

#[path = "../../../../tests/e2e/support/records/keys.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "it is a helper of tests, of which others need more"
)]
mod keys;

use keys::{ALERT, DATA, HANDSHAKE, Keys, Secrets, key_update};

/// Most bytes that a server holds of records that aren't whole.
const HELD_MAX: usize = 64 << 10;

/// The target. The first byte says which version; each item that follows begins with what it is, and how much of
/// the input belongs to it.
pub const TARGET: Target = Target {
    name: "records",
    run,
    corpus: &[
        b"\x00\x00\x10GET / HTTP/1.1\r\n\x00\x02\r\n",
        b"\x01\x00\x10GET / HTTP/1.1\r\n\x00\x02\r\n",
        b"\x00\x00\x01a\x05\x00\x00\x01b\x06\x00\x00\x01c",
        b"\x00\x00\x05first\x02\x02\x01\x00\x00\x04rest",
        b"\x01\x00\x05first\x02\x02\x01\x64\x00\x04rest",
        b"\x00\x00\x05first\x02\x02\x01\x5a\x00\x04rest\x02\x02\x01\x00\x00\x02no",
        b"\x00\x03\x05\x18\x00\x00\x01\x00",
        b"\x00\x01\x02\x18\x00\x01\x03\x00\x01\x00\x00\x01x",
        b"\x01\x01\x04\x00\x00\x00\x00\x00\x01x",
        b"\x00\x04\x02\x40ok\x00\x01x",
        b"\x00\x07\x07\x15\x03\x03\x00\x02\x01\x00\x00\x01x",
        b"\x00\x00\x01x\x88\x00\x00\x01y",
        b"\x00\x09\x00\x00\x01x",
        b"\x01\x0a\x00\x00\x01x",
    ],
    tokens: &[
        b"\x00\x01x",
        b"\x00\x00",
        b"\x05\x00",
        b"\x06\x00",
        b"\x02\x02\x01\x00",
        b"\x02\x02\x02\x28",
        b"\x01\x05\x18\x00\x00\x01\x01",
        b"\x01\x04\x00\x00\x00\x00",
        b"\x04\x01\xff",
        b"\x09\x00",
        b"\x0a\x00",
        b"\x0b\x00",
        b"\x17\x03\x03",
        b"\xff\xff",
    ],
};

static CLIENTS: LazyLock<[ClientConfig; 2]> = LazyLock::new(|| {
    let of = |version: &'static SupportedProtocolVersion| {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE).expect("the file is right");
        roots.add(certificate).expect("the file is right");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("it knows them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.enable_secret_extraction = true;
        // What a run comes to depends on nothing but its input.
        config.resumption = rustls::client::Resumption::disabled();
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(Anybody));
        config
    };
    [of(&TLS13), of(&TLS12)]
});

/// Believes the certificate of this target, which has ended long ago.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A server whose handshake is over, and the keys of its client.
struct Session {
    server: TlsServer,
    sending: Keys,
    receiving: Keys,
    out: Vec<u8>,
}

impl Session {
    fn new(version: usize) -> Self {
        let secrets = Arc::new(Secrets::default());
        let mut config = CLIENTS[version].clone();
        config.key_log = Arc::clone(&secrets) as Arc<dyn KeyLog>;
        let name = ServerName::try_from("a.example").expect("it is a name");
        let client = ClientConnection::new(Arc::new(config), name);
        let mut client = client.expect("there is randomness");
        let mut server = TlsServer::new(&SETTINGS, None).expect("there is randomness");
        let mut out = Vec::new();
        loop {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).expect("a vector takes all");
            }
            if bytes.is_empty() {
                break;
            }
            server.receive(&mut bytes, &mut out).expect("a handshake");
            let mut answer = &out[..];
            while client.is_handshaking() && !answer.is_empty() {
                client.read_tls(&mut answer).expect("bytes are there");
                client.process_new_packets().expect("a handshake");
            }
            out.clear();
        }
        assert!(server.is_open() && server.held() == 0);
        let [sending, receiving] = secrets.keys(client.into());
        Self {
            server,
            sending,
            receiving,
            out,
        }
    }
}

/// Records as the input wants them, and what of it is content up to the first that is wrong.
struct Made {
    bytes: Vec<u8>,
    /// All that was sealed as content and not changed, in order.
    content: Vec<u8>,
    /// None of them is wrong, or ends it, or may be either.
    is_good: bool,
}

fn make(session: &mut Session, mut input: &[u8]) -> Made {
    let keys = &mut session.sending;
    let mut made = Made {
        bytes: Vec::new(),
        content: Vec::new(),
        is_good: true,
    };
    let (mut last, mut renewed, mut empty) = (Vec::new(), 0, 0);
    while let Some((&what, rest)) = input.split_first()
        && let Some((&length, rest)) = rest.split_first()
    {
        let (item, rest) = rest.split_at(rest.len().min(usize::from(length)));
        input = rest;
        let first = item.first().copied();
        let large = vec![b'x'; (1 << 14) + usize::from(what & 0x0f == 10)];
        // The record, what of it is content, and whether it is right.
        let (mut record, content, is_right) = match what & 0x0f {
            0 => (keys.seal(DATA, item, 0), item, true),
            1 => (keys.seal(HANDSHAKE, item, 0), &[][..], false),
            2 => (keys.seal(ALERT, item, 0), &[][..], false),
            // A type of the input's choice.
            3 => {
                let kind = first.unwrap_or(0);
                let content = if kind == DATA { item } else { &[] };
                (keys.seal(kind, item, 0), content, false)
            }
            // Zeros behind the content, where there may be some.
            4 => {
                let padding = first.map_or(0, |first| usize::from(first) * 70);
                let fits = item.len() + padding <= 1 << 14 || !keys.is_tls13();
                (keys.seal(DATA, item, padding), item, fits)
            }
            // New keys, at which the server is asked for others, or not.
            5 | 6 => {
                let record = keys.seal(HANDSHAKE, &key_update(what & 1 == 0), 0);
                renewed += 1;
                if keys.is_tls13() {
                    keys.renew();
                }
                (record, &[][..], keys.is_tls13() && renewed <= 32)
            }
            // In the clear.
            7 => (item.to_vec(), &[][..], item.is_empty()),
            // What was sent last, once more.
            8 => (last.clone(), &[][..], last.is_empty()),
            // A large one, and one that is too large.
            9 | 10 => (keys.seal(DATA, &large, 0), &large[..], what & 0x0f == 9),
            // One is left out: those behind it can't be opened.
            11 => {
                keys.seal(DATA, item, 0);
                (Vec::new(), &[][..], false)
            }
            // Whatever stands in it, sealed as it is.
            _ => {
                let end = item.iter().rposition(|byte| *byte != 0);
                let content = match end {
                    _ if !keys.is_tls13() => item,
                    Some(end) if item[end] == DATA => &item[..end],
                    _ => &[],
                };
                (keys.seal_inner(DATA, item.to_vec()), content, false)
            }
        };
        let is_data = matches!(what & 0x0f, 0 | 4 | 9);
        match content.is_empty() {
            true if is_data => empty += 1,
            true => {}
            false => (renewed, empty) = (0, 0),
        }
        made.is_good &= is_right && empty <= 32;
        let mut is_changed = false;
        if what & 0x80 != 0 && !record.is_empty() {
            made.is_good = false;
            let at = usize::from(length).wrapping_mul(37) % record.len();
            record[at] ^= 1 << (what >> 4 & 7);
            // The minor version is ignored, and stands for no other in what is authenticated.
            is_changed = at != 2;
        }
        if !is_changed {
            made.content.extend(content);
        }
        made.bytes.extend(&record);
        last = record;
    }
    made
}

fn run(input: &[u8]) {
    let Some((version, input)) = input.split_first() else {
        return;
    };
    let version = usize::from(version & 1);
    let mut session = Session::new(version);
    let made = make(&mut session, input);
    let in_pieces = receive(&mut session, &made, &cuts_of(input));
    let mut session = Session::new(version);
    let made = make(&mut session, input);
    let at_once = receive(&mut session, &made, &[]);
    assert_eq!(in_pieces.1, at_once.1, "how it was cut");
    // What stood before a mistake is lost with it.
    assert!(in_pieces.0.starts_with(&at_once.0));
    assert!(in_pieces.1.is_some() || in_pieces.0 == at_once.0);
}

/// What a server makes of it: content, and what ended it.
fn receive(session: &mut Session, made: &Made, cuts: &[usize]) -> (Vec<u8>, Option<Failure>) {
    let (mut content, mut failed) = (Vec::new(), None);
    let (mut from, length) = (0, made.bytes.len());
    // As much as a receive gives at most.
    let bounds = (1..).map(|n| n * 16_384).take_while(|at| *at < length);
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (length + 1)).collect();
    cuts.extend(bounds);
    cuts.push(length);
    cuts.sort_unstable();
    for to in cuts {
        let mut piece = made.bytes[from..to].to_vec();
        from = to;
        match session.server.receive(&mut piece, &mut session.out) {
            Ok(Plain::InPlace(length)) => content.extend(&piece[..length]),
            Ok(Plain::Gathered(plain)) => content.extend(plain),
            Err(failure) => {
                let again = session.server.receive(&mut [0], &mut session.out);
                assert_eq!(again.err(), Some(failure), "it repeats");
                failed = Some(failure);
                break;
            }
        }
        assert!(session.server.held() <= HELD_MAX);
        assert!(content.len() <= length, "content from nowhere");
    }
    assert!(made.content.starts_with(&content), "nobody sent that");
    if made.is_good {
        assert_eq!(failed, None, "nothing was wrong");
        assert!(content == made.content, "all of it");
    }
    // An answer is of the protocol alone, and can be read.
    let mut answers = &session.out[..];
    while let Some(header) = answers.get(..5) {
        let end = 5 + usize::from(u16::from_be_bytes([header[3], header[4]]));
        let record = session.receiving.open(&answers[..end]);
        let record = record.expect("a record by the keys in use");
        assert!([ALERT, HANDSHAKE].contains(&record.kind), "{record:?}");
        if record.content == key_update(false) {
            session.receiving.renew();
        }
        answers = &answers[end..];
    }
    assert!(answers.is_empty(), "half a record");
    (content, failed)
}
