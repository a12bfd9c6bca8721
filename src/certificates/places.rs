//! Where a server keeps what has to outlive it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Where the state is of a server that root, or a user of its own, runs.
const SYSTEM_DIRECTORY: &str = "/var/lib/beltway";

/// What systemd says of `StateDirectory=` (systemd.exec(5)): several are divided by colons.
const OF_SERVICE: &str = "STATE_DIRECTORY";

/// Variables for a user's own state (XDG Base Directory Specification).
const OF_USER: &str = "XDG_STATE_HOME";
const HOME: &str = "HOME";

/// The directories for state, the first choice first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    directories: Vec<PathBuf>,
    /// Whether one of them is the user's own.
    has_own: bool,
}

impl Places {
    /// The places of this process: that of the service manager, that of the system, and the user's.
    pub fn of_this_process() -> Self {
        let variable = |name| std::env::var_os(name);
        Self::new(
            Path::new(SYSTEM_DIRECTORY),
            variable(OF_SERVICE).as_deref(),
            variable(OF_USER).as_deref(),
            variable(HOME).as_deref(),
        )
    }

    /// These directories.
    pub fn at(directories: Vec<PathBuf>) -> Self {
        Self {
            directories,
            has_own: true,
        }
    }

    fn new(
        system: &Path,
        service: Option<&OsStr>,
        state: Option<&OsStr>,
        home: Option<&OsStr>,
    ) -> Self {
        // The specification: a path that isn't absolute is ignored, and so is an empty one.
        let absolute = |path: &OsStr| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
        let service = service.and_then(|list| {
            let first = list.as_bytes().split(|byte| *byte == b':').next()?;
            absolute(OsStr::from_bytes(first))
        });
        let own = state
            .and_then(absolute)
            .or_else(|| Some(home.and_then(absolute)?.join(".local/state")))
            .map(|state| state.join("beltway"));
        let has_own = own.is_some();
        let mut directories: Vec<PathBuf> = Vec::new();
        for directory in service.into_iter().chain([system.to_owned()]).chain(own) {
            if !directories.contains(&directory) {
                directories.push(directory);
            }
        }
        Self {
            directories,
            has_own,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Path> {
        self.directories.iter().map(PathBuf::as_path)
    }

    /// Why there is no directory of the user, if there is none.
    pub(super) fn missing(&self) -> Option<String> {
        (!self.has_own).then(|| format!("{OF_USER} and {HOME} name no directory"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_choice_is_the_services_own() {
        let places = |service: &str, state: &str, home: &str| {
            let set = |text: &str| (!text.is_empty()).then(|| OsStr::new(text).to_owned());
            let (service, state, home) = (set(service), set(state), set(home));
            let system = Path::new("/var/lib/beltway");
            let places = Places::new(
                system,
                service.as_deref(),
                state.as_deref(),
                home.as_deref(),
            );
            let shown: Vec<String> = places
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            (shown.join(" "), places.missing().is_some())
        };
        for (service, state, home, expected, missing) in [
            ("", "", "", "/var/lib/beltway", true),
            (
                "",
                "",
                "/u/a",
                "/var/lib/beltway /u/a/.local/state/beltway",
                false,
            ),
            ("", "/s", "/u/a", "/var/lib/beltway /s/beltway", false),
            ("", "s", "home", "/var/lib/beltway", true),
            ("/var/lib/beltway", "", "", "/var/lib/beltway", true),
            ("/x:/y", "/s", "", "/x /var/lib/beltway /s/beltway", false),
        ] {
            let found = places(service, state, home);
            assert_eq!(
                found,
                (expected.to_owned(), missing),
                "{service} {state} {home}"
            );
        }
    }
}
