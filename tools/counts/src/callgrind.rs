//! Runs the subject under callgrind and reads what it has counted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::pieces;
use crate::subject::{ARGUMENT, REPETITIONS};

/// Not counted, though the simulated pieces call it: what stands for a kernel there.
const SIMULATED: &str = "*engine::sim::kernel::Kernel::turn";

/// Instructions of one repetition of each piece, in the order of the pieces.
///
/// # Errors
/// When the subject fails, or callgrind has not counted what was asked for.
pub(crate) fn count() -> io::Result<Vec<(String, f64)>> {
    let directory = tempfile::tempdir()?;
    fs::copy(std::env::current_exe()?, directory.path().join("subject"))?;
    let valgrind = path().ok_or_else(|| io::Error::other("valgrind is not installed"))?;
    // Where the stack begins depends on all that is told to a program, and where things lie on it decides
    // a little of what they cost: so the same is told always, in words of the same length.
    let output = Command::new(valgrind)
        .args(["--tool=callgrind", "--callgrind-out-file=counts"])
        .arg("--toggle-collect=*subject::callgrind_counted*")
        .arg("--dump-before=*subject::callgrind_boundary*")
        .arg(format!("--toggle-collect={SIMULATED}"))
        .args(["./subject", ARGUMENT])
        .env_clear()
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!(
            "valgrind ended with {}; it said\n{text}",
            output.status
        )));
    }
    let names = pieces::pure().into_iter().map(|piece| piece.name);
    names
        .zip(1..)
        .map(|(name, place)| {
            let counted = total(&directory.path().join(format!("counts.{place}")))?;
            Ok((name.to_owned(), counted as f64 / f64::from(REPETITIONS)))
        })
        .collect()
}

/// Where valgrind is.
pub(crate) fn path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut places = std::env::split_paths(&path).map(|place| place.join("valgrind"));
    places.find(|place| place.is_file())
}

fn total(dump: &Path) -> io::Result<u64> {
    let told = |what: String| io::Error::other(format!("{}: {what}", dump.display()));
    let text = fs::read_to_string(dump).map_err(|error| told(error.to_string()))?;
    parse_total(&text).ok_or_else(|| told("no total in what callgrind wrote".to_owned()))
}

/// The number of the line `totals: N` of a dump with the one event Ir.
fn parse_total(dump: &str) -> Option<u64> {
    let mut lines = dump.lines();
    lines.find_map(|line| line.strip_prefix("totals:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_total_of_a_dump() {
        let dump =
            "version: 1\npositions: line\nevents: Ir\nsummary: 9\n\nfn=(1) a\n3 7\n\ntotals: 421\n";
        assert_eq!(parse_total(dump), Some(421));
        assert_eq!(parse_total("events: Ir\n"), None);
    }
}
