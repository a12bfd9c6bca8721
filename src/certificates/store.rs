//! The local authority's two files: made as a whole or not at all, and believed only when nobody else
//! could have read or made them.
//!
//! Both stand in a directory of their own, which gets its name when it is complete: of servers that
//! start at once, one can rename(2), and the others find its directory there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::local_ca::Problem;

/// The directory in the place for state.
pub(super) const DIRECTORY: &str = "local-ca";
/// The certificate in it, to be trusted.
pub(super) const CERTIFICATE: &str = "ca.pem";
/// The key in it, to be kept.
pub(super) const KEY: &str = "ca.key";

/// How directories are called that aren't complete.
const INCOMPLETE: &str = ".local-ca-";

/// An incomplete directory of this age is left of a process that was killed.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// No file of ours comes near.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// The content of both files.
#[derive(Clone)]
pub(super) struct Files {
    pub(super) certificate: Vec<u8>,
    pub(super) key: Zeroizing<Vec<u8>>,
}

/// What a place has.
pub(super) enum Found<T> {
    Nothing,
    /// It can't be looked at.
    Closed(io::Error),
    Something(T),
}

/// The directory of an authority in this place.
pub(super) fn directory(place: &Path) -> PathBuf {
    place.join(DIRECTORY)
}

/// Reads both files.
///
/// # Errors
/// When there is something that isn't whole, or that others could have read or made.
pub(super) fn load(place: &Path) -> Result<Found<Files>, Problem> {
    let directory = match open_directory(place, true)? {
        Found::Something(directory) => directory,
        Found::Nothing => return Ok(Found::Nothing),
        Found::Closed(error) => return Ok(Found::Closed(error)),
    };
    Ok(Found::Something(Files {
        certificate: read(&directory, CERTIFICATE, 0o022)?.to_vec(),
        key: read(&directory, KEY, 0o077)?,
    }))
}

/// Reads the certificate alone.
///
/// # Errors
/// As [`load`].
pub(super) fn load_certificate(place: &Path) -> Result<Found<Vec<u8>>, Problem> {
    Ok(match open_directory(place, false)? {
        Found::Something(directory) => {
            Found::Something(read(&directory, CERTIFICATE, 0o022)?.to_vec())
        }
        Found::Nothing => Found::Nothing,
        Found::Closed(error) => Found::Closed(error),
    })
}

/// The directory, if it is there and its owner's alone.
fn open_directory(place: &Path, secret: bool) -> Result<Found<PathBuf>, Problem> {
    match fs::metadata(place) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Ok(Found::Closed(io::ErrorKind::NotADirectory.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Ok(Found::Closed(error)),
    }
    let path = directory(place);
    // Not through a link, which somebody else could have made.
    let found = match fs::symlink_metadata(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Ok(Found::Closed(error)),
    };
    if !found.is_dir() {
        return Err(Problem::at(&path, "is no directory", "move it away"));
    }
    let forbidden = if secret { 0o077 } else { 0o022 };
    check_owner(&path, &found, forbidden, "700")?;
    match fs::read_dir(&path) {
        Ok(_) => Ok(Found::Something(path)),
        Err(error) => Ok(Found::Closed(error)),
    }
}

fn read(directory: &Path, name: &str, forbidden: u32) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let path = directory.join(name);
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(&path);
    let damaged = |what: String| Problem::damaged(directory, &path, what);
    let file = opened.map_err(|error| damaged(format!("can't be read: {error}")))?;
    let found = file.metadata();
    let found = found.map_err(|error| damaged(format!("can't be read: {error}")))?;
    if !found.is_file() {
        return Err(damaged("is no file".to_owned()));
    }
    check_owner(&path, &found, forbidden, "600")?;
    if found.len() > FILE_BYTES_MAX {
        return Err(damaged("is larger than any that Beltway makes".to_owned()));
    }
    // It doesn't grow, so that no copy of a key stays behind.
    let mut content = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize));
    file.take(FILE_BYTES_MAX)
        .read_to_end(&mut content)
        .map_err(|error| damaged(format!("can't be read: {error}")))?;
    Ok(content)
}

/// Whoever else can have made a file knows its key, and whoever trusts the certificate trusts them.
fn check_owner(
    path: &Path,
    found: &fs::Metadata,
    forbidden: u32,
    mode: &str,
) -> Result<(), Problem> {
    let own = rustix::process::geteuid().as_raw();
    if found.uid() != own && found.uid() != 0 {
        return Err(Problem::at(
            path,
            &format!("belongs to another user ({})", found.uid()),
            "move it away if it isn't yours: whoever made it could speak for every site that you trust by it",
        ));
    }
    if found.mode() & forbidden != 0 {
        return Err(Problem::at(
            path,
            &format!("is open to other users (mode {:03o})", found.mode() & 0o777),
            &format!(
                "if nobody can have read or changed it: chmod {mode} {}; else remove the directory, and \
                 the next start makes a new one, which has to be trusted again",
                path.display()
            ),
        ));
    }
    Ok(())
}

/// Makes the files in this place, with the place itself where it is missing. Gives whether they are
/// these: otherwise somebody else was faster.
///
/// # Errors
/// When the place can't be written to, or keeps no file to its owner.
pub(super) fn make(place: &Path, files: &Files) -> io::Result<bool> {
    make_place(place)?;
    let mut number = [0; 8];
    aws_lc_rs::rand::fill(&mut number).map_err(io::Error::other)?;
    let number = u64::from_ne_bytes(number);
    let incomplete = place.join(format!("{INCOMPLETE}{number:016x}"));
    let made = fill(&incomplete, files).and_then(|()| {
        // Onto a directory that isn't empty it fails, on every file system.
        match fs::rename(&incomplete, directory(place)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    });
    if !matches!(made, Ok(true)) {
        // It may not even be there.
        let _ = fs::remove_dir_all(&incomplete);
    }
    if made? {
        File::open(place)?.sync_all()?;
        sweep(place);
        return Ok(true);
    }
    Ok(false)
}

fn make_place(place: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(place) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // The user's own place may lack its parents; that of the system has them.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().mode(0o700).recursive(true).create(place)
        }
        made => made,
    }
}

/// Makes the directory and its files, and has all of it on the disk.
fn fill(directory: &Path, files: &Files) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(directory)?;
    for (name, content) in [
        (CERTIFICATE, files.certificate.as_slice()),
        (KEY, files.key.as_slice()),
    ] {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(directory.join(name))?;
        // A umask may have taken more than wanted.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(content)?;
        file.sync_all()?;
        if file.metadata()?.mode() & 0o777 != 0o600 {
            return Err(keeps_no_modes());
        }
    }
    let made = File::open(directory)?;
    made.set_permissions(fs::Permissions::from_mode(0o700))?;
    made.sync_all()?;
    if made.metadata()?.mode() & 0o777 != 0o700 {
        return Err(keeps_no_modes());
    }
    Ok(())
}

fn keeps_no_modes() -> io::Error {
    io::Error::other("the file system can't keep a file from other users")
}

/// Removes what killed processes have left. A failure matters to nobody.
fn sweep(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else {
        return;
    };
    let now = SystemTime::UNIX_EPOCH + crate::util::clock::since_epoch();
    for entry in entries.flatten() {
        let is_incomplete = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(INCOMPLETE.as_bytes());
        let modified = entry.metadata().and_then(|found| found.modified());
        let is_old = |at: SystemTime| {
            now.duration_since(at)
                .is_ok_and(|age| age > ABANDONED_AFTER)
        };
        if is_incomplete && modified.is_ok_and(is_old) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
