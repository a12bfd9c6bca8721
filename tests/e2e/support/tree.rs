//! A temporary directory with files to serve.

use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A directory that is removed at the end of the test. What is served lies in `www`, so that there
/// is an outside for paths that try to escape.
pub(crate) struct Tree {
    directory: tempfile::TempDir,
}

impl Tree {
    /// An empty one.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // A worker that root starts is somebody else, who has to get here.
        let open = Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), open).expect("permissions");
        fs::create_dir(directory.path().join("www")).expect("www");
        Self { directory }
    }

    /// One with these files beneath the root.
    pub(crate) fn with(files: &[(&str, &str)]) -> Self {
        let tree = Self::new();
        for (name, content) in files {
            tree.write(name, content);
        }
        tree
    }

    /// The directory around the root.
    pub(crate) fn outside(&self) -> &Path {
        self.directory.path()
    }

    /// The directory that is served.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("www")
    }

    /// A path beneath the root.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Writes a file beneath the root, and the directories it needs. A file that exists is
    /// written over in place.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Replaces a file as careful programs do: another file is renamed over it.
    pub(crate) fn replace(&self, name: &str, content: impl AsRef<[u8]>) {
        let new = self.outside().join("new");
        fs::write(&new, content).expect("the new file");
        fs::rename(&new, self.path(name)).expect("rename");
    }

    /// Makes a symbolic link beneath the root.
    pub(crate) fn link(&self, name: &str, target: impl AsRef<Path>) {
        symlink(target, self.path(name)).expect("symlink");
    }

    /// Sets when a file was modified, in seconds since 1970.
    pub(crate) fn set_modified(&self, name: &str, second: u64) {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let file = File::options()
            .append(true)
            .open(self.path(name))
            .expect("the file");
        file.set_times(FileTimes::new().set_modified(time))
            .expect("times");
    }
}
