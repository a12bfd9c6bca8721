//! Where the control socket of a configuration file is, from the file's path alone: the commands work
//! beside a file that is broken or gone.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Mode};
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

/// Where the sockets are on a machine that is run by root.
pub const SYSTEM_DIRECTORY: &str = "/run/beltway";

/// Variable that names a user's own directory for sockets (XDG Base Directory Specification).
pub const USER_DIRECTORY: &str = "XDG_RUNTIME_DIR";

/// Others may see that a server runs; the sockets in it are closed to them.
const SYSTEM_DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

/// The directories that sockets may be in, the first choice first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    directories: Vec<PathBuf>,
}

impl Places {
    /// The places of this process.
    pub fn of_this_process() -> Self {
        Self::new(
            Path::new(SYSTEM_DIRECTORY),
            std::env::var_os(USER_DIRECTORY).as_deref(),
        )
    }

    /// `system`, and the user's own directory if it is an absolute path.
    fn new(system: &Path, user: Option<&OsStr>) -> Self {
        let user = user.map(PathBuf::from).filter(|path| path.is_absolute());
        Self {
            directories: [system.to_owned()].into_iter().chain(user).collect(),
        }
    }

    /// Where a server that runs with `file` makes its socket: in the first directory that it can make
    /// one in. Root makes the first if it is missing.
    ///
    /// # Errors
    /// When there is no such directory: what was tried and what to do.
    pub fn to_bind(&self, file: &Path) -> Result<PathBuf, String> {
        let mut tried = Vec::new();
        for (index, directory) in self.directories.iter().enumerate() {
            let made = if index == 0 { make(directory) } else { Ok(()) };
            match made.and_then(|()| usable(directory)) {
                Ok(()) => return Ok(directory.join(socket_name(&canonical(file)))),
                Err(error) => tried.push(format!("{}: {error}", directory.display())),
            }
        }
        if self.directories.len() < 2 {
            tried.push(format!("{USER_DIRECTORY} is not set"));
        }
        Err(format!(
            "no directory for a control socket ({}); name one with --control PATH",
            tried.join("; ")
        ))
    }

    /// Where the socket of a server that runs with `file` may be, in the order to try. A file that is a
    /// link is looked for under its own name and under that of its target.
    pub fn to_ask(&self, file: &Path) -> Vec<PathBuf> {
        let mut names = vec![socket_name(&canonical(file))];
        if let Ok(target) = std::fs::canonicalize(file) {
            names.push(socket_name(&target));
        }
        names.dedup();
        names
            .iter()
            .flat_map(|name| self.directories.iter().map(move |place| place.join(name)))
            .collect()
    }
}

/// The file by its one absolute name: links in its directory are resolved, its own name is kept. So a
/// file that is missing, or a link that points nowhere or elsewhere than yesterday, has the name that
/// it always had. Where even the directory is missing, the path is made absolute as it is written.
pub fn canonical(file: &Path) -> PathBuf {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let Some((directory, name)) = absolute.parent().zip(absolute.file_name()) else {
        return absolute;
    };
    match std::fs::canonicalize(directory) {
        Ok(directory) => directory.join(name),
        Err(_) => absolute,
    }
}

/// `beltway-<16 hexadecimal digits>.sock`, from the XXH3 hash of the path's bytes.
pub fn socket_name(canonical: &Path) -> String {
    format!(
        "beltway-{:016x}.sock",
        xxh3_64(canonical.as_os_str().as_bytes())
    )
}

/// Makes the system's directory. Only root can; for others it is there or not.
fn make(directory: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    match rustix::fs::mkdir(directory, SYSTEM_DIRECTORY_MODE) {
        // The umask may have taken bits from it.
        Ok(()) => Ok(rustix::fs::chmod(directory, SYSTEM_DIRECTORY_MODE)?),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn usable(directory: &Path) -> io::Result<()> {
    let wanted = Access::WRITE_OK | Access::EXEC_OK;
    // By the effective user, who makes the socket; the dot refuses what is no directory.
    let inside = directory.join(".");
    Ok(rustix::fs::accessat(CWD, inside, wanted, AtFlags::EACCESS)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_a_hash_that_stays_the_same() {
        let name = socket_name(Path::new("/etc/beltway/beltway.toml"));
        // A server and a program of different versions must agree.
        assert_eq!(name, "beltway-26e10a523261bbb7.sock");
        assert_ne!(name, socket_name(Path::new("/etc/beltway/other.toml")));
    }

    #[test]
    fn a_file_keeps_its_name_when_it_is_gone_or_reached_by_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("v1");
        std::fs::create_dir(&real).unwrap();
        let link = directory.path().join("current");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let file = real.join("beltway.toml");
        let gone = canonical(&file);
        std::fs::write(&file, "broken = ").unwrap();
        assert_eq!(canonical(&file), gone);
        assert_eq!(canonical(&link.join("beltway.toml")), gone);
        assert_eq!(canonical(&link.join("../current/./beltway.toml")), gone);
        assert_eq!(
            canonical(Path::new("/nonexistent/a/b.toml")),
            Path::new("/nonexistent/a/b.toml")
        );
    }

    #[test]
    fn a_file_that_is_a_link_is_found_by_both_names() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("v1.toml");
        let link = directory.path().join("beltway.toml");
        std::fs::write(&target, "").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let places = Places::new(directory.path(), None);
        let asked = places.to_ask(&link);
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[0], places.to_bind(&link).unwrap());
        assert_eq!(asked[1], places.to_bind(&target).unwrap());
        assert_eq!(places.to_ask(&target).len(), 1);
    }

    #[test]
    fn the_first_usable_directory_is_taken() {
        let user = tempfile::tempdir().unwrap();
        let file = Path::new("/etc/beltway/beltway.toml");
        // A file in the place of the directory: not even root can use it.
        let blocked = user.path().join("blocked");
        std::fs::write(&blocked, "").unwrap();
        let places = Places::new(&blocked, Some(user.path().as_os_str()));
        let bound = places.to_bind(file).unwrap();
        assert_eq!(bound.parent(), Some(user.path()));
        assert!(places.to_ask(file).contains(&bound));

        let error = Places::new(&blocked, Some(OsStr::new("relative")))
            .to_bind(file)
            .unwrap_err();
        assert!(
            error.contains("blocked") && error.contains("--control"),
            "{error}"
        );
        assert!(error.contains("XDG_RUNTIME_DIR is not set"), "{error}");
    }
}
