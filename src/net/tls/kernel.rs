//! Keys as the kernel takes them, where it is to make the records that are sent (kTLS, linux/tls.h).

use rustls::{CipherSuite, ConnectionTrafficSecrets, SupportedCipherSuite};
use zeroize::Zeroize as _;

/// Size of the largest `tls12_crypto_info_*` structure.
const LARGEST: usize = 56;

/// Records that may be made with one key of AES-GCM: 2^24.5 (RFC 8446 §5.5), rounded as rustls does.
pub const RECORDS_MAX: u64 = 1 << 24;

pub use super::seal::ALERT;

/// A kind of keys that the kernel may take: version and cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    version: u16,
    cipher: Cipher,
}

/// Ciphers by their numbers in linux/tls.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Cipher {
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

    /// That of a connection with this suite; `None` of one that isn't known here.
    pub(super) fn of(suite: SupportedCipherSuite) -> Option<Self> {
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

    /// Whether it is of TLS 1.3.
    pub(super) fn is_13(self) -> bool {
        self.version == 0x0304
    }

    /// The cipher.
    pub(super) fn cipher(self) -> Cipher {
        self.cipher
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

    /// Those of a connection, whose next record has this number.
    pub(super) fn new(kind: Kind, secrets: &ConnectionTrafficSecrets, next: u64) -> Option<Self> {
        let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets
        else {
            return None;
        };
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

#[cfg(test)]
mod tests;
