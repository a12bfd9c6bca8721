//! What is left of a connection when the kernel makes the records that are sent (kTLS, linux/tls.h):
//! the keys in the kernel's form, and the receiving direction, which stays here.
//!
//! It stays because nothing is gained by the kernel: what comes is small, it would have to be received
//! by recvmsg(2) with room for the type of each record, which a multishot receive into shared buffers
//! hasn't got, and before kernel 6.14 a client that renews its keys could not be followed. So the
//! kernel is given the keys of one direction, and records of the other one are opened by rustls' own
//! ciphers.

use rustls::crypto::cipher::{InboundOpaqueMessage, MessageDecrypter};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::{
    AlertDescription, CipherSuite, ConnectionTrafficSecrets, ContentType, Error, InvalidMessage,
    PeerMisbehaved, ProtocolVersion, SupportedCipherSuite,
};
use zeroize::Zeroize as _;

use super::Handshake;
use super::server::Advanced;

/// Bytes before the content of a record: type, version, length.
const HEADER: usize = 5;

/// Most bytes of a record's encrypted content: 2^14 and 2048 (RFC 5246 §6.2.3), of which TLS 1.3 allows
/// 256; what is decrypted is checked by rustls.
const ENCRYPTED_MAX: usize = (1 << 14) + 2048;

/// Alerts of level warning, and updates of keys in a row, that a client may send: as rustls has it.
const WARNINGS_MAX: u8 = 4;
const KEY_UPDATES_MAX: u8 = 32;

/// Size of the largest `tls12_crypto_info_*` structure.
const LARGEST: usize = 56;

/// Records that may be made with one key of AES-GCM: 2^24.5 (RFC 8446 §5.5), rounded as rustls does.
pub const RECORDS_MAX: u64 = 1 << 24;

/// The type of a record that is an alert.
pub const ALERT: u8 = 21;

/// A kind of keys that the kernel may take: version and cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    version: u16,
    cipher: Cipher,
}

/// Ciphers by their numbers in linux/tls.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Cipher {
    Aes128Gcm = 51,
    Aes256Gcm = 52,
    Chacha20Poly1305 = 54,
}

impl Kind {
    /// All of them, in the order of their bits.
    const ALL: [Self; 6] = {
        const fn kind(version: u16, cipher: Cipher) -> Kind {
            Kind { version, cipher }
        }
        [
            kind(0x0303, Cipher::Aes128Gcm),
            kind(0x0303, Cipher::Aes256Gcm),
            kind(0x0303, Cipher::Chacha20Poly1305),
            kind(0x0304, Cipher::Aes128Gcm),
            kind(0x0304, Cipher::Aes256Gcm),
            kind(0x0304, Cipher::Chacha20Poly1305),
        ]
    };

    fn of(suite: SupportedCipherSuite) -> Option<Self> {
        let version = match suite {
            SupportedCipherSuite::Tls12(_) => 0x0303,
            SupportedCipherSuite::Tls13(_) => 0x0304,
        };
        let cipher = match suite.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => Cipher::Aes128Gcm,
            CipherSuite::TLS13_AES_256_GCM_SHA384
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Cipher::Aes256Gcm,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => Cipher::Chacha20Poly1305,
            _ => return None,
        };
        Some(Self { version, cipher })
    }

    fn bit(self) -> u8 {
        let index = Self::ALL.iter().position(|kind| *kind == self);
        index.map_or(0, |index| 1 << index)
    }

    /// Whether it is among the kinds with these bits.
    pub fn is_among(self, bits: u8) -> bool {
        self.bit() & bits != 0
    }

    /// Whether its keys are used up after [`RECORDS_MAX`] records.
    pub fn wears_out(self) -> bool {
        self.cipher != Cipher::Chacha20Poly1305
    }
}

/// Names of the kinds with these bits, such as `TLSv1.3 AES-128-GCM`.
pub fn names(bits: u8) -> Vec<String> {
    let kinds = Kind::ALL.iter().filter(|kind| kind.is_among(bits));
    kinds
        .map(|kind| {
            let version = if kind.version == 0x0303 { "1.2" } else { "1.3" };
            let cipher = match kind.cipher {
                Cipher::Aes128Gcm => "AES-128-GCM",
                Cipher::Aes256Gcm => "AES-256-GCM",
                Cipher::Chacha20Poly1305 => "ChaCha20-Poly1305",
            };
            format!("TLSv{version} {cipher}")
        })
        .collect()
}

/// Keys of the sending direction as the kernel takes them: one of the `tls12_crypto_info_*` structures
/// of linux/tls.h. Wiped when it is dropped.
pub struct Keys {
    bytes: [u8; LARGEST],
    length: usize,
    /// What they are for.
    pub kind: Kind,
}

impl Keys {
    /// The structure.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Keys of each kind that nobody uses, to try the kernel with, in the order of their bits.
    pub fn samples() -> [Self; 6] {
        Kind::ALL.map(|kind| {
            let key_length = if kind.cipher == Cipher::Aes128Gcm {
                16
            } else {
                32
            };
            Self::write(kind, &[0x5a; 32][..key_length], &[0xa5; 12], 1)
        })
    }

    fn new(version: u16, secrets: &ConnectionTrafficSecrets, next: u64) -> Option<Self> {
        let (cipher, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (Cipher::Chacha20Poly1305, key, iv)
            }
            _ => return None,
        };
        let kind = Kind { version, cipher };
        let iv = iv.as_ref().try_into().ok()?;
        Some(Self::write(kind, key.as_ref(), iv, next))
    }

    /// `next`: the number of the next record.
    fn write(kind: Kind, key: &[u8], iv: &[u8; 12], next: u64) -> Self {
        let (salt, rest) = iv.split_at(4);
        let explicit = match (kind.version, kind.cipher) {
            (0x0303, Cipher::Aes128Gcm | Cipher::Aes256Gcm) => first_explicit_nonce(rest),
            _ => rest.try_into().unwrap_or_default(),
        };
        let (version, cipher) = (
            kind.version.to_ne_bytes(),
            (kind.cipher as u16).to_ne_bytes(),
        );
        let next = next.to_be_bytes();
        // Fields in the order of the structures; that of ChaCha20-Poly1305 has an empty salt.
        let parts: [&[u8]; 6] = match kind.cipher {
            Cipher::Aes128Gcm | Cipher::Aes256Gcm => {
                [&version, &cipher, &explicit, key, salt, &next]
            }
            Cipher::Chacha20Poly1305 => [&version, &cipher, iv, key, &[], &next],
        };
        let mut keys = Self {
            bytes: [0; LARGEST],
            length: 0,
            kind,
        };
        for part in parts {
            keys.bytes[keys.length..keys.length + part.len()].copy_from_slice(part);
            keys.length += part.len();
        }
        keys
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

/// The first explicit nonce of the kernel, which counts up from it. rustls has used this one and those
/// that differ from it in the number of a record (RFC 5288 §3 leaves the choice to the sender), and none
/// may come again with the same key: so its first bit is the other one, and it has room to count.
fn first_explicit_nonce(of_rustls: &[u8]) -> [u8; 8] {
    let mut nonce = [0; 8];
    nonce[..2].copy_from_slice(&of_rustls[..2]);
    nonce[0] ^= 0x80;
    nonce
}

/// The number of the next record in what the kernel gave back of [`Keys`], which is wiped.
pub fn next_record(keys: &mut [u8]) -> Option<u64> {
    let number = keys.last_chunk().copied().map(u64::from_be_bytes);
    keys.zeroize();
    number
}

/// A buffer for the kernel to give the keys of a kind back.
pub fn room_for(kind: Kind) -> ([u8; LARGEST], usize) {
    let length = match kind.cipher {
        Cipher::Aes128Gcm => 40,
        Cipher::Aes256Gcm | Cipher::Chacha20Poly1305 => 56,
    };
    ([0; LARGEST], length)
}

/// The kind of keys that the kernel would be given.
pub(super) fn kind_of(connection: &UnbufferedServerConnection) -> Option<Kind> {
    Kind::of(connection.negotiated_cipher_suite()?)
}

/// The receiving direction of a connection whose sending direction is the kernel's.
pub(super) struct Opener {
    /// Knows the next keys.
    secrets: KernelConnection<ServerConnectionData>,
    decrypter: Box<dyn MessageDecrypter>,
    /// The number of the next record.
    next: u64,
    handshake: Handshake,
    warnings: u8,
    key_updates: u8,
    /// The client wants new keys of us, which the kernel can't be given.
    is_asked_for_keys: bool,
}

impl Opener {
    /// Takes the connection apart, of which nothing may be held in either direction.
    ///
    /// # Errors
    /// Where rustls doesn't give the keys away; the connection is lost.
    pub(super) fn take_apart(
        connection: UnbufferedServerConnection,
        handshake: Handshake,
    ) -> Result<(Keys, Self), Error> {
        let (secrets, rest) = connection.dangerous_into_kernel_connection()?;
        let version = match rest.negotiated_cipher_suite() {
            SupportedCipherSuite::Tls12(_) => 0x0303,
            SupportedCipherSuite::Tls13(_) => 0x0304,
        };
        let unknown = || Error::General("keys of a kind that the kernel has not got".to_owned());
        let (next, sending) = secrets.tx;
        let keys = Keys::new(version, &sending, next).ok_or_else(unknown)?;
        let (next, receiving) = secrets.rx;
        let decrypter = decrypter(rest.negotiated_cipher_suite(), receiving).ok_or_else(unknown)?;
        let opener = Self {
            secrets: rest,
            decrypter,
            next,
            handshake,
            warnings: 0,
            key_updates: 0,
            is_asked_for_keys: false,
        };
        Ok((keys, opener))
    }

    /// What the handshake came to.
    pub(super) fn handshake(&self) -> Handshake {
        self.handshake
    }

    /// Whether the client has asked for new keys of ours.
    pub(super) fn is_asked_for_keys(&self) -> bool {
        self.is_asked_for_keys
    }

    /// Opens all records that are whole. Plaintext goes to the front of `bytes`, over records that are
    /// used up.
    pub(super) fn advance(&mut self, bytes: &mut [u8]) -> Result<Advanced, Error> {
        let mut done = Advanced {
            used: 0,
            plain: 0,
            peer_closed: false,
        };
        while !done.peer_closed
            && let Some((header, rest)) = bytes[done.used..].split_at_mut_checked(HEADER)
        {
            let (kind, length) = read_header(header)?;
            let Some((record, _)) = rest.split_at_mut_checked(length) else {
                break;
            };
            if self.is_tls13() && kind != ContentType::ApplicationData {
                // What is encrypted never looks otherwise (RFC 8446 §5.2).
                return Err(unexpected(kind));
            }
            let begin = record.as_ptr() as usize;
            let message = InboundOpaqueMessage::new(kind, ProtocolVersion::TLSv1_2, record);
            let opened = self.decrypter.decrypt(message, self.next)?;
            // 2^64 records take longer than any connection.
            self.next += 1;
            // Of TLS 1.2 a nonce stands before the content.
            let before = opened.payload.as_ptr() as usize - begin;
            let at = done.used + HEADER + before;
            let content = at..at + opened.payload.len();
            match opened.typ {
                ContentType::ApplicationData => {
                    self.key_updates = 0;
                    bytes.copy_within(content.clone(), done.plain);
                    done.plain += content.len();
                }
                ContentType::Alert => done.peer_closed = self.is_end(opened.payload)?,
                ContentType::Handshake => self.update_keys(opened.payload)?,
                _ => return Err(unexpected(kind)),
            }
            done.used += HEADER + length;
        }
        Ok(done)
    }

    fn is_tls13(&self) -> bool {
        matches!(
            self.secrets.negotiated_cipher_suite(),
            SupportedCipherSuite::Tls13(_)
        )
    }

    /// Whether an alert says that nothing follows (RFC 8446 §6, RFC 5246 §7.2).
    fn is_end(&mut self, alert: &[u8]) -> Result<bool, Error> {
        let &[level, description] = alert else {
            return Err(Error::InvalidMessage(InvalidMessage::MissingData("alert")));
        };
        let description = AlertDescription::from(description);
        let is_warning = match self.is_tls13() {
            true => description == AlertDescription::UserCanceled,
            false => level == 1,
        };
        match description {
            AlertDescription::CloseNotify => Ok(true),
            _ if is_warning && self.warnings < WARNINGS_MAX => {
                self.warnings += 1;
                Ok(false)
            }
            _ => Err(Error::AlertReceived(description)),
        }
    }

    /// Takes the one message of a handshake that may come: the client goes on with other keys
    /// (RFC 8446 §4.6.3). Nothing else may share its record, since what follows is made with them.
    fn update_keys(&mut self, message: &[u8]) -> Result<(), Error> {
        let asked = match message {
            [24, 0, 0, 1, asked @ 0..=1] if self.is_tls13() => *asked == 1,
            _ => return Err(unexpected(ContentType::Handshake)),
        };
        if self.key_updates == KEY_UPDATES_MAX {
            return Err(PeerMisbehaved::TooManyKeyUpdateRequests.into());
        }
        self.key_updates += 1;
        let suite = self.secrets.negotiated_cipher_suite();
        let (next, secrets) = self.secrets.update_rx_secret()?;
        self.decrypter = decrypter(suite, secrets)
            .ok_or_else(|| Error::General("keys of another kind".to_owned()))?;
        self.next = next;
        self.is_asked_for_keys |= asked;
        Ok(())
    }
}

/// What opens records with these keys.
fn decrypter(
    suite: SupportedCipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Option<Box<dyn MessageDecrypter>> {
    let (key, iv, is_gcm) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (key, iv, true),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv, false),
        _ => return None,
    };
    Some(match suite {
        SupportedCipherSuite::Tls13(suite) => suite.aead_alg.decrypter(key, iv),
        SupportedCipherSuite::Tls12(suite) => {
            // Of GCM the records have the rest.
            let fixed = if is_gcm { 4 } else { 12 };
            suite.aead_alg.decrypter(key, &iv.as_ref()[..fixed])
        }
    })
}

/// The type of a record, and how long its content is.
fn read_header(header: &[u8]) -> Result<(ContentType, usize), Error> {
    let &[kind, major, _, high, low] = header else {
        return Err(InvalidMessage::MessageTooShort.into());
    };
    if major != 3 {
        return Err(InvalidMessage::UnknownProtocolVersion.into());
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    match length {
        0 => Err(InvalidMessage::InvalidEmptyPayload.into()),
        1..=ENCRYPTED_MAX => Ok((ContentType::from(kind), length)),
        _ => Err(Error::PeerSentOversizedRecord),
    }
}

fn unexpected(kind: ContentType) -> Error {
    Error::InappropriateMessage {
        expect_types: vec![ContentType::ApplicationData],
        got_type: kind,
    }
}

/// The alert that tells a client of an error; `None` where it ended the connection itself.
pub(super) fn alert(error: &Error) -> Option<[u8; 2]> {
    let description = match error {
        Error::AlertReceived(_) => return None,
        Error::DecryptError => AlertDescription::BadRecordMac,
        Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
        Error::InvalidMessage(_) => AlertDescription::DecodeError,
        Error::General(_) => AlertDescription::InternalError,
        _ => AlertDescription::UnexpectedMessage,
    };
    // Fatal, and which.
    Some([2, description.into()])
}

/// What tells a client that nothing follows.
pub(super) const CLOSE_NOTIFY: [u8; 2] = [1, 0];

#[cfg(test)]
mod tests;
