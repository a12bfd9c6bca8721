//! The `beltway` program: parse arguments, dispatch, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    beltway::cli::main()
}
