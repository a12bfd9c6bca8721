//! Certificates and keys on the disk: read with a bound, and told apart from what was there before.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::net::tls::Identity;
use crate::net::tls::identity::{IdentityError, Part, digest_of, facts_of};
use crate::util::x509::Facts;

/// Largest file of a certificate or a key, in bytes: 1 MiB. A chain has some thousands.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Largest file of authorities or revocation lists, in bytes: 16 MiB, as a configuration reads them. A list
/// has 40 for each certificate.
pub const LIST_BYTES_MAX: u64 = 16 << 20;

/// A certificate's file and that of its key, which may be the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// What stat(2) says of a file, links followed: another one, or another content, has another mark. `None`
/// where there is none.
pub type Mark = Option<[i128; 5]>;

/// What both files hold. The key is wiped when this is dropped.
pub struct Content {
    /// The certificate's file.
    pub certificate: Vec<u8>,
    /// The key's file.
    pub key: Zeroizing<Vec<u8>>,
}

impl Content {
    /// A digest of both, to tell whether they are others than before.
    pub fn digest(&self) -> [u8; 32] {
        digest_of(&self.certificate, &self.key)
    }
}

impl Pair {
    /// The marks of both files.
    pub fn marks(&self) -> Vec<Mark> {
        [&self.certificate, &self.key].map(|path| mark(path)).into()
    }

    /// Reads both files.
    ///
    /// # Errors
    /// Which can't be read, and why.
    pub fn read(&self) -> Result<Content, String> {
        let read = |path: &Path| read(path, FILE_BYTES_MAX);
        Ok(Content {
            certificate: read(&self.certificate)?.to_vec(),
            key: read(&self.key)?,
        })
    }

    /// Looks whether the content is a certificate and its key, and tells what it is.
    ///
    /// # Errors
    /// Which file is wrong, and why.
    pub fn check(&self, content: &Content) -> Result<Facts, String> {
        let identity = Identity::from_pem(&content.certificate, &content.key);
        let identity = identity.map_err(|error| self.explain(&error))?;
        Ok(identity.facts().clone())
    }

    fn explain(&self, error: &IdentityError) -> String {
        let path = match error.part {
            Part::Certificate => &self.certificate,
            Part::Key => &self.key,
        };
        format!("{} {}; {}", path.display(), error.message, error.help)
    }
}

/// The mark of a file.
pub fn mark(path: &Path) -> Mark {
    let found = std::fs::metadata(path).ok()?;
    let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Some([
        found.dev().into(),
        found.ino().into(),
        found.size().into(),
        time(found.mtime(), found.mtime_nsec()),
        time(found.ctime(), found.ctime_nsec()),
    ])
}

/// Reads a file of bounded size whole. The memory is wiped when it is dropped, since it may be a key.
///
/// # Errors
/// The file, and why it can't be read, also for what is no file, or is larger.
pub fn read(path: &Path, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>, String> {
    try_read(path, bytes_max).map_err(|error| format!("{}: {error}", path.display()))
}

fn try_read(path: &Path, bytes_max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = OpenOptions::new()
        .read(true)
        // A pipe without a writer would hold us up.
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    if found.len() > bytes_max {
        let what = match bytes_max >> 20 {
            0 => format!("it has more than {} KiB", bytes_max >> 10),
            large => format!("it has more than {large} MiB"),
        };
        return Err(io::Error::other(what));
    }
    // Room for more than there is, so that no copy of a key stays behind when it grows.
    let room = usize::try_from(found.len()).unwrap_or_default() + 4096;
    let mut content = Zeroizing::new(Vec::with_capacity(room));
    file.take(room as u64).read_to_end(&mut content)?;
    if content.len() == room {
        return Err(io::Error::other("it grows while it is read"));
    }
    Ok(content)
}

/// What the certificate in a file is: the server's own, and the others of its chain. No key is needed.
///
/// # Errors
/// Why it can't be read, and what to do.
pub fn facts(path: &Path) -> Result<Vec<Facts>, String> {
    let content =
        try_read(path, FILE_BYTES_MAX).map_err(|error| format!("can't be read: {error}"))?;
    facts_of(&content).map_err(|error| format!("{}; {}", error.message, error.help))
}
