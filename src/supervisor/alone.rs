//! Runs a test in a process of its own: what it gives up, it gives up for good.

use std::env;
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names the test that a process was made for.
const ALONE: &str = "BELTWAY_TEST_ALONE";

/// Its directory.
const DIRECTORY: &str = "BELTWAY_TEST_DIRECTORY";

/// Runs `body` in a new process, as the test `name` of `module` (its `module_path!()`), which calls
/// this. The directory that it is given is readable for everybody, and removed by who lives on.
pub(super) fn alone(module: &str, name: &str, body: impl FnOnce(&Path)) {
    let (_, module) = module.split_once("::").unwrap();
    let test = format!("{module}::{name}");
    if env::var(ALONE).is_ok_and(|of| of == test) {
        body(&PathBuf::from(env::var_os(DIRECTORY).unwrap()));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", &test, "--nocapture", "--test-threads=1"])
        .env(ALONE, &test)
        // What it may do with files is what is tested.
        .env_remove("BELTWAY_SKIPS")
        .env(DIRECTORY, directory.path().canonicalize().unwrap())
        .output()
        .unwrap();
    let (out, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let passed = output.status.success() && out.contains("1 passed");
    assert!(passed, "{}\n{out}\n{errors}", output.status);
    for line in errors.lines() {
        match line.strip_prefix("SKIPPED: ") {
            Some(why) => skip(why),
            None => eprintln!("{line}"),
        }
    }
}

/// Says why a test does nothing here.
pub(super) fn skip(why: &str) {
    crate::runtime::skipped(why);
}

/// Whether this process may change its user.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
