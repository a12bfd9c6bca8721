//! Certificates with their keys, from PEM.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, SignatureAlgorithm};
use sha2::{Digest as _, Sha256};

use super::ocsp::{self, OcspError, Statement, Unasked};
use super::settings::PROVIDER;
use crate::util::x509::{self, Facts};

/// Most certificates of a chain. Real ones have up to four.
const CHAIN_MAX: usize = 16;

/// A certificate chain and its private key, found to belong together.
pub struct Identity {
    key: Arc<CertifiedKey>,
    facts: Facts,
    digest: [u8; 32],
    stapled: ArcSwapOption<Stapled>,
}

/// A certificate with the statement that it is not revoked.
struct Stapled {
    key: Arc<CertifiedKey>,
    statement: Statement,
}

impl PartialEq for Identity {
    /// The same chain has the same key.
    fn eq(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert
    }
}

impl Eq for Identity {}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

/// Which of the two files is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// That of the certificate.
    Certificate,
    /// That of the key.
    Key,
}

/// Why two files are no certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityError {
    /// Which file is wrong.
    pub part: Part,
    /// What is wrong, to follow the name of the file.
    pub message: String,
    /// What to do.
    pub help: &'static str,
}

impl IdentityError {
    fn new(part: Part, message: impl Into<String>, help: &'static str) -> Self {
        Self {
            part,
            message: message.into(),
            help,
        }
    }
}

/// Reads the certificates of a text, the server's own first, without any key: at least one.
///
/// # Errors
/// When there is none, or one that can't be read.
pub fn facts_of(certificates: &[u8]) -> Result<Vec<Facts>, IdentityError> {
    let chain = chain(certificates)?;
    let facts = chain
        .iter()
        .map(|one| x509::read(one).ok_or_else(unreadable));
    facts.collect()
}

/// The certificates of a text in DER, the server's own first; none where it can't be read.
pub fn chain_of(certificates: &[u8]) -> Vec<Vec<u8>> {
    let chain = chain(certificates).unwrap_or_default();
    chain.iter().map(|one| one.to_vec()).collect()
}

/// A digest of a certificate and its key as they are written, to tell whether they are others than before.
pub fn digest_of(certificates: &[u8], key: &[u8]) -> [u8; 32] {
    let mut digest = Sha256::new();
    let length = certificates.len() as u64;
    digest.update(length.to_be_bytes());
    digest.update(certificates);
    digest.update(key);
    digest.finalize().into()
}

fn unreadable() -> IdentityError {
    IdentityError::new(
        Part::Certificate,
        "holds a certificate that can't be read",
        "have the authority issue it again, as X.509 version 3 in PEM",
    )
}

impl Identity {
    /// Reads a chain, the server's own certificate first, and the key that belongs to it. The key may
    /// stand in the same text.
    ///
    /// # Errors
    /// What is wrong with which of them.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let digest = digest_of(certificates, key);
        let chain = chain(certificates)?;
        let facts = x509::read(&chain[0]).ok_or_else(unreadable)?;
        let key = private_key(key)?;
        let key = CertifiedKey::from_der(chain, key, &PROVIDER).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => IdentityError::new(
                Part::Key,
                "belongs to another certificate",
                "name the key that this certificate was requested with; the server's own \
                 certificate comes first in its file, those of authorities behind it",
            ),
            Error::InvalidCertificate(_) => unreadable(),
            _ => IdentityError::new(
                Part::Key,
                "holds a key of a kind that isn't supported",
                "use ECDSA with P-256 or P-384, Ed25519, or RSA with 2048 to 8192 bits",
            ),
        })?;
        Ok(Self {
            key: Arc::new(key),
            facts,
            digest,
            stapled: ArcSwapOption::empty(),
        })
    }

    /// What the certificate says.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// [`digest_of`] what it was made from.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The names that the certificate is for, in lower case; `*.example.com` is one.
    pub fn names(&self) -> &[String] {
        &self.facts.names
    }

    /// Who has issued it, in short: the common name, or the organization.
    pub fn issuer(&self) -> &str {
        &self.facts.issuer
    }

    /// From when and until when it is valid, in seconds since 1970.
    pub fn validity(&self) -> (i64, i64) {
        (self.facts.not_before, self.facts.not_after)
    }

    /// The kind of its key.
    pub fn kind(&self) -> &'static str {
        match self.key.key.algorithm() {
            SignatureAlgorithm::RSA => "RSA",
            SignatureAlgorithm::ECDSA => "ECDSA",
            SignatureAlgorithm::ED25519 => "Ed25519",
            _ => "another kind",
        }
    }

    /// Whether it is for this name (RFC 6125 §6.4: a `*` is one whole label, the first); `*.a.org` is
    /// such a name, for which no exact one does.
    pub fn covers(&self, name: &str) -> bool {
        let parent = name.split_once('.').map(|(_, parent)| parent);
        self.facts.names.iter().any(|own| {
            own == name || (own.strip_prefix("*.")).is_some_and(|below| Some(below) == parent)
        })
    }

    /// From now on gives clients this statement of the authority along with the certificate, as long as
    /// it holds. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// Why clients may not get it; what they got before they go on getting.
    pub fn staple(&self, response: &[u8], now: i64) -> Result<Statement, OcspError> {
        let [own, issuer, ..] = &*self.key.cert else {
            return Err(OcspError::NoIssuer);
        };
        let statement = ocsp::verify(response, (own, issuer), now)?;
        let mut key = CertifiedKey::new(self.key.cert.clone(), Arc::clone(&self.key.key));
        key.ocsp = Some(response.to_vec());
        self.stapled.store(Some(Arc::new(Stapled {
            key: Arc::new(key),
            statement,
        })));
        Ok(statement)
    }

    /// From now on gives clients the certificate alone.
    pub fn unstaple(&self) {
        self.stapled.store(None);
    }

    /// The chain in DER, the server's own certificate first.
    pub fn chain(&self) -> &[impl AsRef<[u8]>] {
        &self.key.cert
    }

    /// Whether clients refuse the certificate where no OCSP response comes along.
    pub fn must_staple(&self) -> bool {
        let own = self.key.cert.first();
        own.and_then(|own| x509::parts(own))
            .is_some_and(|parts| parts.must_staple())
    }

    /// Where the authority says what it thinks of the certificate: a URL.
    ///
    /// # Errors
    /// Why there is nobody to be asked.
    pub fn responder(&self) -> Result<String, Unasked> {
        ocsp::responder(&self.key.cert)
    }

    /// The response that was last stapled, in DER.
    pub fn stapled(&self) -> Option<Vec<u8>> {
        let stapled = self.stapled.load();
        stapled.as_ref().and_then(|it| it.key.ocsp.clone())
    }

    /// What was last stapled.
    pub fn statement(&self) -> Option<Statement> {
        self.stapled
            .load()
            .as_ref()
            .map(|stapled| stapled.statement)
    }

    /// What a client gets at `now`, in seconds since 1970.
    pub(super) fn key_at(&self, now: i64) -> Arc<CertifiedKey> {
        match &*self.stapled.load() {
            Some(stapled) if now < stapled.statement.next_update => Arc::clone(&stapled.key),
            _ => Arc::clone(&self.key),
        }
    }

    pub(super) fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }
}

fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let wrong = |message: String, help| IdentityError::new(Part::Certificate, message, help);
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| {
        wrong(
            format!("is damaged: {}", why(&error)),
            "copy it again, from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----",
        )
    })?;
    if found.is_empty() {
        return Err(wrong(
            "holds no certificate in PEM".to_owned(),
            match pem.first() {
                // A DER sequence.
                Some(0x30) => "convert it: openssl x509 -inform der -in FILE -out FILE.pem",
                _ => "it has a part from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----",
            },
        ));
    }
    if found.len() > CHAIN_MAX {
        return Err(wrong(
            format!("holds {} certificates", found.len()),
            "leave the server's own and those between it and the root: a bundle of all \
             authorities isn't for servers",
        ));
    }
    Ok(found)
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let text = |needle: &[u8]| memchr::memmem::find(pem, needle).is_some();
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound if text(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") => {
            IdentityError::new(
                Part::Key,
                "holds a key that needs a password",
                "take the password off, and let nobody else read the file: \
                 openssl pkey -in FILE -out FILE.key",
            )
        }
        pem::Error::NoItemsFound if text(b"-----BEGIN CERTIFICATE-----") => IdentityError::new(
            Part::Key,
            "holds a certificate and no key",
            "name the file with the part -----BEGIN PRIVATE KEY-----",
        ),
        pem::Error::NoItemsFound => IdentityError::new(
            Part::Key,
            "holds no private key in PEM",
            "it has a part from -----BEGIN PRIVATE KEY----- to -----END PRIVATE KEY-----",
        ),
        error => IdentityError::new(
            Part::Key,
            format!("is damaged: {}", why(&error)),
            "copy it again, from -----BEGIN PRIVATE KEY----- to -----END PRIVATE KEY-----",
        ),
    })
}

pub(super) fn why(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a part has no end",
        pem::Error::IllegalSectionStart { .. } => "a part has no proper begin",
        pem::Error::Base64Decode(_) => "a part is no base64",
        _ => "it is no PEM",
    }
}
