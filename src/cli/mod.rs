//! The command line: one file per subcommand.

use std::process::ExitCode;

/// Parses the arguments, runs the subcommand and gives the exit code: 0 done, 1 failed at run
/// time, 2 wrong usage, 78 bad configuration.
pub fn main() -> ExitCode {
    ExitCode::from(2)
}
