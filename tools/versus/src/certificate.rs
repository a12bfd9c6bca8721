//! The certificate of all servers under TLS: the same one, so that none has a cheaper signature.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

/// The name that clients ask for.
pub const NAME: &str = "versus.test";

/// A certificate with ECDSA on P-256 that signs itself, and its key, in files.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// In PEM.
    pub certificate: PathBuf,
    /// In PEM, for its owner alone.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one in `directory`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new(directory: &Path) -> io::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;

        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(io::Error::other)?;
        let certificate = CertificateParams::new(vec![NAME.to_owned()])
            .and_then(|parameters| parameters.self_signed(&key))
            .map_err(io::Error::other)?;
        let files = Self {
            certificate: directory.join("certificate.pem"),
            key: directory.join("key.pem"),
        };
        fs::write(&files.certificate, certificate.pem())?;
        fs::write(&files.key, key.serialize_pem())?;
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600))?;
        Ok(files)
    }
}
