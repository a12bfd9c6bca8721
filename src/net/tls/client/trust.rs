//! Which servers are believed.

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};

use crate::net::tls::identity::Part;
use crate::net::tls::settings::PROVIDER;
use crate::net::tls::{IdentityError, identity};

/// Most authorities of a file. Systems have 150.
const ROOTS_MAX: usize = 4096;

/// Who is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Who has a certificate of one of these authorities, for the name that is asked for.
    Roots(Roots),
    /// Everybody: somebody on the way can read and change all of it.
    Anybody,
    /// Nobody: files weren't read.
    Nobody,
}

/// Certificates of authorities.
#[derive(Clone)]
pub struct Roots {
    store: Arc<RootCertStore>,
    /// Of the text they were read from, to tell others from the same.
    digest: [u8; 32],
}

impl PartialEq for Roots {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Roots {}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({})", self.store.len())
    }
}

impl Roots {
    /// Reads those of a text in PEM. Those that can't be understood are left out, as long as one is
    /// understood: the system's file has some of very old rules.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn from_pem(pem: &[u8]) -> Result<Self, IdentityError> {
        let wrong = |message: String, help| IdentityError {
            part: Part::Certificate,
            message,
            help,
        };
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem)
            .take(ROOTS_MAX + 1)
            .collect();
        let found = found.map_err(|error| {
            wrong(
                format!("is damaged: {}", identity::why(&error)),
                "copy it again, from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----",
            )
        })?;
        if found.len() > ROOTS_MAX {
            let message = format!("holds more than {ROOTS_MAX} certificates");
            return Err(wrong(message, "leave those of authorities that are needed"));
        }
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(found);
        if added == 0 {
            return Err(wrong(
                "holds no certificate of an authority in PEM".to_owned(),
                "it has parts from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----",
            ));
        }
        Ok(Self {
            store: Arc::new(store),
            digest: Sha256::digest(pem).into(),
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.store.len()
    }
}

impl Trust {
    pub(super) fn verifier(&self) -> Arc<dyn ServerCertVerifier> {
        match self {
            Self::Roots(roots) => {
                let store = Arc::clone(&roots.store);
                WebPkiServerVerifier::builder_with_provider(store, Arc::clone(&PROVIDER))
                    .build()
                    .expect("there is a root, and no revocation list")
            }
            Self::Anybody => Arc::new(Unverified { believes: true }),
            Self::Nobody => Arc::new(Unverified { believes: false }),
        }
    }
}

/// Believes all or none, without a look at the certificate. That the server has its key is verified all
/// the same.
#[derive(Debug)]
struct Unverified {
    believes: bool,
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.believes {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::General("no authority was read".to_owned())),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER
            .signature_verification_algorithms
            .supported_schemes()
    }
}
