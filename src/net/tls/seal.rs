//! Making records: what is sent is encrypted where it stands, by keys that rustls has agreed on with the
//! peer.
//!
//! rustls has a record layer, which makes each record in memory of its own, copies the content there, and the
//! record to where it is sent from. Here the content is put where its record will be, and that is all.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, Error};

use super::kernel::{Cipher, Kind};

/// Bytes before the content of a record: type, version, length (RFC 8446 §5.1).
pub(super) const HEADER: usize = 5;

/// Bytes of the nonce that stand before the content (RFC 5288 §3): in TLS 1.2, of AES-GCM.
const EXPLICIT: usize = 8;

/// Bytes behind the content.
const TAG: usize = 16;

/// Type of a record of the protocol: an alert (RFC 8446 §5.1).
pub const ALERT: u8 = 21;
/// Of a handshake.
pub(super) const HANDSHAKE: u8 = 22;
/// Of content.
pub(super) const CONTENT: u8 = 23;

/// Encrypts the sending direction of a connection, with one key.
pub(super) struct Sealer {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// The number of the next record, from which its nonce is made: it only grows.
    next: u64,
    /// How many records the key is good for.
    most: u64,
    is_13: bool,
    is_explicit: bool,
}

/// Where a record begins that isn't one yet.
#[must_use]
pub struct Begun(usize);

impl Begun {
    /// Takes it back, with what was appended.
    pub(super) fn abandon(self, out: &mut Vec<u8>) {
        out.truncate(self.0);
    }
}

impl Sealer {
    /// With these keys, from the record of this number on. `most`: how many records the key is good for.
    ///
    /// # Errors
    /// Keys of another kind.
    pub(super) fn new(
        kind: Kind,
        secrets: &ConnectionTrafficSecrets,
        next: u64,
        most: u64,
    ) -> Result<Self, Error> {
        let unknown = || Error::General("keys of a kind that is unknown here".to_owned());
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(unknown()),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| unknown())?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv: iv.as_ref().try_into().map_err(|_| unknown())?,
            next,
            most,
            is_13: kind.is_13(),
            is_explicit: !kind.is_13() && kind.cipher() != Cipher::Chacha20Poly1305,
        })
    }

    /// The number of the next record.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// How many more records may be made.
    pub(super) fn left(&self) -> u64 {
        self.most.saturating_sub(self.next)
    }

    /// Has it be good for so many more records only.
    #[cfg(test)]
    pub(super) fn wear_out(&mut self, left: u64) {
        self.most = self.next + left;
    }

    /// Begins a record at the end of `out`. What is appended from now on is its content, at most
    /// [`RECORD_MAX`](super::records::RECORD_MAX) bytes.
    pub(super) fn begin(&self, out: &mut Vec<u8>) -> Begun {
        let begun = Begun(out.len());
        let before = HEADER + if self.is_explicit { EXPLICIT } else { 0 };
        out.extend_from_slice(&[0; HEADER + EXPLICIT][..before]);
        begun
    }

    /// Makes it one of this type.
    ///
    /// # Errors
    /// When the key is used up, and when it is too long; nothing of it is left then.
    pub(super) fn finish(
        &mut self,
        out: &mut Vec<u8>,
        begun: Begun,
        kind: u8,
    ) -> Result<(), Error> {
        let Begun(start) = begun;
        let finished = self.finish_at(out, start, kind);
        if finished.is_err() {
            out.truncate(start);
        }
        finished
    }

    fn finish_at(&mut self, out: &mut Vec<u8>, start: usize, kind: u8) -> Result<(), Error> {
        if self.left() == 0 {
            return Err(Error::EncryptError);
        }
        if self.is_13 {
            out.push(kind);
        }
        let number = self.next.to_be_bytes();
        let mut nonce = self.iv;
        for (byte, of_number) in nonce[NONCE_LEN - number.len()..].iter_mut().zip(number) {
            *byte ^= of_number;
        }
        let (header, rest) = out[start..]
            .split_first_chunk_mut::<HEADER>()
            .ok_or(Error::EncryptError)?;
        let (explicit, content) = rest
            .split_at_mut_checked(if self.is_explicit { EXPLICIT } else { 0 })
            .ok_or(Error::EncryptError)?;
        explicit.copy_from_slice(&nonce[NONCE_LEN - explicit.len()..]);
        let be = |length: usize| u16::try_from(length).map(u16::to_be_bytes);
        let [plain, whole] = [content.len(), explicit.len() + content.len() + TAG].map(be);
        let (Ok(plain), Ok(whole)) = (plain, whole) else {
            return Err(Error::EncryptError);
        };
        // What is encrypted looks like content in TLS 1.3; its version never changes again (RFC 8446 §5.2).
        let outer = if self.is_13 { CONTENT } else { kind };
        *header = [outer, 3, 3, whole[0], whole[1]];
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = match self.is_13 {
            true => self
                .key
                .seal_in_place_separate_tag(nonce, Aad::from(*header), content),
            false => {
                // RFC 5246 §6.2.3.3: the number, and the header as it were without encryption.
                let mut aad = [0; 13];
                aad[..8].copy_from_slice(&number);
                aad[8..].copy_from_slice(&[kind, 3, 3, plain[0], plain[1]]);
                self.key
                    .seal_in_place_separate_tag(nonce, Aad::from(aad), content)
            }
        };
        let tag = tag.map_err(|_| Error::EncryptError)?;
        out.extend_from_slice(tag.as_ref());
        self.next += 1;
        Ok(())
    }

    /// Adds a record of this type.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub(super) fn record(
        &mut self,
        out: &mut Vec<u8>,
        kind: u8,
        content: &[u8],
    ) -> Result<(), Error> {
        let begun = self.begin(out);
        out.extend_from_slice(content);
        self.finish(out, begun, kind)
    }
}
