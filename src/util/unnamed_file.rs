//! Files that nobody else can open, and that are gone when the last descriptor is: for content that is
//! kept for a while and never for longer than its holder lives.
//!
//! To make one may wait for a disk: on a core it is a job for a helper thread.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags, open, openat, unlinkat};
use rustix::io::Errno;

/// Reading and writing, for nobody but us: the content is somebody's request or response.
const FLAGS: OFlags = OFlags::RDWR.union(OFlags::CLOEXEC);

/// Names that are tried before the directory is given up: one may be left of a process that was killed
/// between two calls.
const NAMES_MAX: u32 = 16;

/// Makes a file in this directory that has no name (`O_TMPFILE`, kernel 3.11), or had one for an instant
/// where the file system can't do that.
///
/// # Errors
/// As `open(2)`: `ENOENT` without the directory, `EACCES` and `EROFS` where it can't be written to.
pub fn unnamed_file(directory: &Path) -> Result<OwnedFd, Errno> {
    // Exclusive: nobody may give it a name later, either.
    let flags = FLAGS | OFlags::TMPFILE | OFlags::EXCL;
    match open(directory, flags, Mode::RUSR | Mode::WUSR) {
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => named_for_an_instant(directory),
        opened => opened,
    }
}

fn named_for_an_instant(directory: &Path) -> Result<OwnedFd, Errno> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let process = std::process::id();
    let flags = FLAGS | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let mut failure = Errno::EXIST;
    for _ in 0..NAMES_MAX {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!(".beltway-{process}-{number}"));
        match openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => {
                unlinkat(CWD, &path, rustix::fs::AtFlags::empty())?;
                return Ok(file);
            }
            Err(errno @ Errno::EXIST) => failure = errno,
            Err(errno) => return Err(errno),
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn it_has_no_name_and_is_ours_alone() {
        for make in [unnamed_file, named_for_an_instant] {
            let directory = tempfile::tempdir().unwrap();
            let file = std::fs::File::from(make(directory.path()).unwrap());
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
            let metadata = file.metadata().unwrap();
            assert_eq!((metadata.mode() & 0o7777, metadata.nlink()), (0o600, 0));
            rustix::io::pwrite(&file, b"hello", 3).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 8);
        }
    }

    #[test]
    fn a_name_that_is_taken_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let process = std::process::id();
        for number in 0..4 {
            let path = directory
                .path()
                .join(format!(".beltway-{process}-{number}"));
            std::fs::write(path, "left over").unwrap();
        }
        named_for_an_instant(directory.path()).unwrap();
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let gone = directory.path().join("gone");
        for make in [unnamed_file, named_for_an_instant] {
            assert_eq!(make(&gone).unwrap_err(), Errno::NOENT);
        }
    }
}
