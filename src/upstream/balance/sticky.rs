//! Cookies that keep a client with its server, and that no client can forge.
//!
//! The value is a keyed digest of the server's id, nothing else: whoever lacks the secret can't make
//! one for another server, and can't learn from it which address stands behind. A value is known by
//! comparing it with those of all servers, so a request costs comparisons and no digest.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::ServerView;

/// Shortest secret, in bytes: as long as what remains of the digest.
pub const SECRET_BYTES_MIN: usize = 16;

/// Half of SHA-256; RFC 2104 §5 allows as little.
const DIGEST_BYTES: usize = 16;
const VALUE_BYTES: usize = 2 * DIGEST_BYTES;

/// Separates these digests from any other use of the same secret.
const PURPOSE: &[u8] = b"beltway sticky cookie 1";

/// Makes and recognises the cookies of one upstream.
pub struct Sticky {
    /// Keyed, with purpose and scope taken in.
    digest: Hmac<Sha256>,
    /// Made once for each server.
    values: Vec<(u64, CookieValue)>,
}

/// The value of a cookie: 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CookieValue([u8; VALUE_BYTES]);

/// A secret below [`SECRET_BYTES_MIN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretTooShort {
    /// Its length.
    pub bytes: usize,
}

impl Sticky {
    /// Cookies by `secret` for the servers of these ids. `scope` is the name of the upstream: a cookie of
    /// one is worth nothing at another. The same secret and scope make the same cookies, on every core
    /// and after a restart.
    ///
    /// # Errors
    /// The secret is too short to resist guessing.
    pub fn new(
        secret: &[u8],
        scope: &str,
        ids: impl IntoIterator<Item = u64>,
    ) -> Result<Self, SecretTooShort> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(SecretTooShort {
                bytes: secret.len(),
            });
        }
        let mut digest = Hmac::<Sha256>::new_from_slice(secret)
            .expect("HMAC takes a key of any length (RFC 2104 §3)");
        digest.update(PURPOSE);
        // The length, so that no scope runs into the id.
        digest.update(&(scope.len() as u64).to_be_bytes());
        digest.update(scope.as_bytes());
        let mut sticky = Self {
            digest,
            values: Vec::new(),
        };
        for id in ids {
            let value = sticky.value(id);
            sticky.values.push((id, value));
        }
        Ok(sticky)
    }

    /// The value that keeps a client with the server `id`.
    pub fn value(&self, id: u64) -> CookieValue {
        if let Some((_, value)) = self.values.iter().find(|(known, _)| *known == id) {
            return *value;
        }
        let mut digest = self.digest.clone();
        digest.update(&id.to_be_bytes());
        let bytes = digest.finalize().into_bytes();
        let mut value = [0; VALUE_BYTES];
        for (pair, byte) in value.chunks_exact_mut(2).zip(bytes) {
            pair[0] = hexadecimal(byte >> 4);
            pair[1] = hexadecimal(byte & 0xf);
        }
        CookieValue(value)
    }

    /// Whether `cookie` is the value for the server `id`: then it needn't be set again. Takes the same
    /// time whatever is wrong with a cookie of the right length.
    pub fn names(&self, cookie: &[u8], id: u64) -> bool {
        self.value(id).is(cookie)
    }

    /// The server that `cookie` names, whatever its state.
    pub(super) fn find(&self, servers: &[ServerView], cookie: &[u8]) -> Option<usize> {
        if cookie.len() != VALUE_BYTES {
            return None;
        }
        let (id, _) = self.values.iter().find(|(_, value)| value.is(cookie))?;
        // By id and not by place, so that a cookie never leads to another server than its own.
        servers.iter().position(|server| server.id == *id)
    }
}

/// Nothing of the secret.
impl fmt::Debug for Sticky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sticky")
            .field("servers", &self.values.len())
            .finish_non_exhaustive()
    }
}

impl CookieValue {
    /// As it stands in the field.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hexadecimal digits are ASCII")
    }

    fn is(&self, cookie: &[u8]) -> bool {
        self.0.as_slice().ct_eq(cookie).into()
    }
}

/// Nothing of the value: whoever has it is taken for that client's session.
impl fmt::Debug for CookieValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CookieValue(…)")
    }
}

impl fmt::Display for SecretTooShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the secret of the sticky cookie has {} bytes: use {SECRET_BYTES_MIN} random bytes at least, as \
             `openssl rand -hex 32` makes them",
            self.bytes
        )
    }
}

impl std::error::Error for SecretTooShort {}

fn hexadecimal(nibble: u8) -> u8 {
    b"0123456789abcdef"[usize::from(nibble)]
}
