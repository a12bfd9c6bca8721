//! `beltway run`: what a configuration file says, in the foreground.

use std::process::ExitCode;

use clap::{ArgMatches, Command};

use super::flags::{self, Table};
use crate::config::{self, print};
use crate::supervisor::worker::Origin;

const TABLES: [Table; 1] = [Table::Server];

const EXAMPLES: &str = "\
Examples:
  beltway run                          beltway.toml here, else /etc/beltway/beltway.toml
  beltway run -c site.toml --workers=2
  beltway run --set server.limits.request_line=4KiB
  BELTWAY_SERVER_LOG_LEVEL=debug beltway run
  beltway run -c site.toml --access-log

SIGTERM or Ctrl-C lets running requests end, a second one ends at once. SIGHUP or `beltway reload`
takes a changed file over, SIGUSR1 or `beltway reopen` opens log files again, SIGUSR2 or
`beltway upgrade` changes the program, and SIGWINCH lets the workers end and keeps the sockets.";

pub(super) fn command() -> Command {
    Command::new("run")
        .about("Serve what a configuration file says, in the foreground")
        .after_help(EXAMPLES)
        .arg(super::config_arg())
        .arg(super::control::control_arg())
        .args(flags::args(&TABLES))
        .arg(super::print_config_arg())
}

pub(super) fn main(matches: &ArgMatches) -> ExitCode {
    let file = super::config_file(matches);
    let settings = flags::settings(matches, &TABLES);
    match config::load(&super::input(Some(file), settings, true)) {
        Err(diagnostics) => super::bad_config(&diagnostics),
        Ok(loaded) if super::given(matches, "print-config") => {
            let hidden = print::Defaults::Hidden;
            super::say(&print::to_toml(&loaded.tree, &loaded.sources, hidden));
            ExitCode::SUCCESS
        }
        Ok(loaded) => super::start::start(loaded.model, Origin::Run),
    }
}
