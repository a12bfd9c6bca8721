//! Keys and the records that they make, as both sides of a connection and its enemies know them.
//!
//! They come from rustls, and where they are renewed from its key log: the schedule of RFC 8446 §7.2 is
//! written down here once more, so that a mistake in ours has nobody to agree with.

use std::fmt;
use std::sync::Mutex;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce};
use aws_lc_rs::aead::{Algorithm, UnboundKey};
use aws_lc_rs::hkdf;
use rustls::{CipherSuite, Connection, ConnectionTrafficSecrets, KeyLog, ProtocolVersion};

/// Types of records (RFC 8446 §5.1).
pub(crate) const CHANGE_CIPHER_SPEC: u8 = 20;
pub(crate) const ALERT: u8 = 21;
pub(crate) const HANDSHAKE: u8 = 22;
pub(crate) const DATA: u8 = 23;

/// Alerts (RFC 8446 §6).
pub(crate) const CLOSE_NOTIFY: u8 = 0;
pub(crate) const UNEXPECTED_MESSAGE: u8 = 10;
pub(crate) const BAD_RECORD_MAC: u8 = 20;
pub(crate) const RECORD_OVERFLOW: u8 = 22;
pub(crate) const ILLEGAL_PARAMETER: u8 = 47;
pub(crate) const DECODE_ERROR: u8 = 50;
pub(crate) const USER_CANCELED: u8 = 90;

/// Most bytes of content in a record.
pub(crate) const RECORD_MAX: usize = 1 << 14;

const TAG: usize = 16;

/// The message that says that the sender goes on with new keys (RFC 8446 §4.6.3), and whether the other one
/// shall, too.
pub(crate) fn key_update(asks: bool) -> [u8; 5] {
    [24, 0, 0, 1, u8::from(asks)]
}

/// A record of the other side, opened.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kind: u8,
    pub(crate) content: Vec<u8>,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.content[..self.content.len().min(64)];
        write!(f, "{} of {} B: {shown:?}", self.kind, self.content.len())
    }
}

/// Keys of one direction.
pub(crate) struct Keys {
    algorithm: &'static Algorithm,
    key: LessSafeKey,
    iv: [u8; 12],
    /// Of the next record.
    number: u64,
    /// What they come from, in TLS 1.3 alone.
    secret: Option<(hkdf::Algorithm, Vec<u8>)>,
}

impl Keys {
    fn new(
        (number, secrets): &(u64, ConnectionTrafficSecrets),
        secret: Option<(hkdf::Algorithm, Vec<u8>)>,
    ) -> Self {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => panic!("a cipher of TLS"),
        };
        Self {
            algorithm,
            key: LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).unwrap()),
            iv: iv.as_ref().try_into().unwrap(),
            number: *number,
            secret,
        }
    }

    /// The next ones.
    pub(crate) fn renew(&mut self) {
        let (hash, secret) = self.secret.take().expect("TLS 1.3");
        let secret = expand_label(hash, &secret, "traffic upd", secret.len());
        let key = expand_label(hash, &secret, "key", self.algorithm.key_len());
        let iv = expand_label(hash, &secret, "iv", 12);
        self.key = LessSafeKey::new(UnboundKey::new(self.algorithm, &key).unwrap());
        self.iv = iv.try_into().unwrap();
        self.number = 0;
        self.secret = Some((hash, secret));
    }

    pub(crate) fn is_tls13(&self) -> bool {
        self.secret.is_some()
    }

    /// Whether records have the rest of their nonce with them (RFC 5288 §3).
    fn is_explicit(&self) -> bool {
        !self.is_tls13() && *self.algorithm != CHACHA20_POLY1305
    }

    fn nonce(&self, explicit: Option<&[u8]>) -> Nonce {
        let mut nonce = self.iv;
        match explicit {
            Some(explicit) => nonce[4..].copy_from_slice(explicit),
            None => {
                for (byte, of_number) in nonce[4..].iter_mut().zip(self.number.to_be_bytes()) {
                    *byte ^= of_number;
                }
            }
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// What is authenticated besides the content.
    fn additional(&self, kind: u8, length: usize) -> Vec<u8> {
        let header = header(kind, length);
        match self.is_tls13() {
            true => header.to_vec(),
            false => [&self.number.to_be_bytes()[..], &header].concat(),
        }
    }

    pub(crate) fn seal(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let mut inner = content.to_vec();
        let mut outer = kind;
        if self.is_tls13() {
            inner.push(kind);
            inner.resize(inner.len() + padding, 0);
            outer = DATA;
        }
        self.seal_inner(outer, inner)
    }

    pub(crate) fn seal_inner(&mut self, outer: u8, mut inner: Vec<u8>) -> Vec<u8> {
        let explicit = self.number.to_be_bytes();
        let explicit = self.is_explicit().then_some(&explicit[..]);
        let length = match self.is_tls13() {
            true => inner.len() + TAG,
            false => inner.len(),
        };
        let additional = Aad::from(self.additional(outer, length));
        let nonce = self.nonce(explicit);
        self.key
            .seal_in_place_append_tag(nonce, additional, &mut inner)
            .unwrap();
        self.number += 1;
        let explicit = explicit.unwrap_or_default();
        let header = header(outer, explicit.len() + inner.len());
        [&header[..], explicit, &inner].concat()
    }

    /// Opens a record, of which `None` can't be made.
    pub(crate) fn open(&mut self, record: &[u8]) -> Option<Record> {
        let (before, sealed) = record.split_at(5);
        let (explicit, sealed) = sealed.split_at(if self.is_explicit() { 8 } else { 0 });
        let length = match self.is_tls13() {
            true => sealed.len(),
            false => sealed.len().checked_sub(TAG)?,
        };
        let nonce = self.nonce(self.is_explicit().then_some(explicit));
        let additional = Aad::from(self.additional(before[0], length));
        let mut inner = sealed.to_vec();
        let opened = self.key.open_in_place(nonce, additional, &mut inner).ok()?;
        let length = opened.len();
        inner.truncate(length);
        self.number += 1;
        let mut kind = before[0];
        if self.is_tls13() {
            assert_eq!(kind, DATA, "what is encrypted looks like this");
            let end = inner.iter().rposition(|byte| *byte != 0)?;
            kind = inner[end];
            inner.truncate(end);
        }
        assert!(inner.len() <= RECORD_MAX, "{} B in a record", inner.len());
        Some(Record {
            kind,
            content: inner,
        })
    }
}

/// The beginning of a record.
pub(crate) fn header(kind: u8, length: usize) -> [u8; 5] {
    let [high, low] = u16::try_from(length).unwrap().to_be_bytes();
    [kind, 3, 3, high, low]
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand-Label without a context (RFC 8446 §7.1).
fn expand_label(hash: hkdf::Algorithm, secret: &[u8], label: &str, length: usize) -> Vec<u8> {
    let label = format!("tls13 {label}");
    let length_bytes = u16::try_from(length).unwrap().to_be_bytes();
    let label_length = [u8::try_from(label.len()).unwrap()];
    let info = [&length_bytes[..], &label_length, label.as_bytes(), &[0]];
    let mut out = vec![0; length];
    hkdf::Prk::new_less_safe(hash, secret)
        .expand(&info, Length(length))
        .unwrap()
        .fill(&mut out)
        .unwrap();
    out
}

/// The secrets of a handshake, by their names.
#[derive(Debug, Default)]
pub(crate) struct Secrets(Mutex<Vec<(String, Vec<u8>)>>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        self.0
            .lock()
            .unwrap()
            .push((label.to_owned(), secret.to_vec()));
    }
}

impl Secrets {
    fn of(&self, label: &str) -> Vec<u8> {
        let all = self.0.lock().unwrap();
        let mut named = all.iter().filter(|(name, _)| name == label);
        named.next().expect("it was logged").1.clone()
    }

    /// The keys that a handshake has come to, of what is sent and of what is received.
    pub(crate) fn keys(&self, tls: Connection) -> [Keys; 2] {
        let is_tls13 = tls.protocol_version() == Some(ProtocolVersion::TLSv1_3);
        let hash = match tls.negotiated_cipher_suite().unwrap().suite() {
            CipherSuite::TLS13_AES_256_GCM_SHA384 => hkdf::HKDF_SHA384,
            _ => hkdf::HKDF_SHA256,
        };
        let mut labels = ["CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"];
        if matches!(tls, Connection::Server(_)) {
            labels.reverse();
        }
        let secrets = labels.map(|label| is_tls13.then(|| (hash, self.of(label))));
        let extracted = tls.dangerous_extract_secrets().unwrap();
        let [sending, receiving] = secrets;
        [
            Keys::new(&extracted.tx, sending),
            Keys::new(&extracted.rx, receiving),
        ]
    }
}
