//! `beltway run`: what a configuration file says, in the foreground, under a master; and the hidden
//! commands that the master starts itself with.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

use super::flags::{self, Table};
use crate::config::sources::Input;
use crate::config::{self, print};
use crate::supervisor::master::{self, End, Options};
use crate::supervisor::worker::Origin;
use crate::supervisor::{CHECK_COMMAND, WORKER_COMMAND, check_for_upgrade, worker_process};

const TABLES: [Table; 1] = [Table::Server];

const EXAMPLES: &str = "\
Examples:
  beltway run                          beltway.toml here, else /etc/beltway/beltway.toml
  beltway run -c site.toml --workers=2
  beltway run --set server.limits.request_line=4KiB
  BELTWAY_SERVER_LOG_LEVEL=debug beltway run
  beltway run -c site.toml --access-log

A master holds the sockets, and workers serve. While it runs: `beltway reload` takes a changed
configuration without losing a request, `beltway plan` says what that would change, `beltway
upgrade` takes a new binary, `beltway status` tells how it goes, `beltway stop` ends it.

Signals to the master: TERM, INT and QUIT let running requests end, a second one ends at once; HUP
reloads, USR1 reopens logs, USR2 upgrades, WINCH drains the workers, and the master waits with its
sockets for a reload.";

pub(super) fn command() -> Command {
    Command::new("run")
        .about("Serve what a configuration file says, in the foreground, under a master")
        .after_help(EXAMPLES)
        .arg(super::config_arg())
        .arg(super::control::control_arg())
        .args(flags::args(&TABLES))
        .arg(super::print_config_arg())
}

pub(super) fn main(matches: &ArgMatches) -> ExitCode {
    let file = super::config_file(matches);
    let settings = flags::settings(matches, &TABLES);
    let input = super::input(Some(file), settings, true);
    if !super::given(matches, "print-config") {
        let control = super::control::control_path(matches);
        return supervise(input, control, Origin::Run);
    }
    match config::load(&input) {
        Err(diagnostics) => super::bad_config(&diagnostics),
        Ok(loaded) => {
            let hidden = print::Defaults::Hidden;
            super::say(&print::to_toml(&loaded.tree, &loaded.sources, hidden));
            ExitCode::SUCCESS
        }
    }
}

/// Runs a master in the foreground.
pub(super) fn supervise(input: Input, control: Option<PathBuf>, origin: Origin) -> ExitCode {
    let options = Options {
        input,
        control,
        origin,
    };
    ended(&master::run(options))
}

/// Goes on for the master that was here before an upgrade, in the process of one.
pub(super) fn resume() -> Option<ExitCode> {
    master::resume().map(|end| ended(&end))
}

fn ended(end: &End) -> ExitCode {
    super::complain(&end.text);
    ExitCode::from(end.code)
}

/// What the master starts this program with. They aren't for people, and so not in the help.
pub(super) fn hidden_commands() -> [Command; 2] {
    [WORKER_COMMAND, CHECK_COMMAND].map(|name| Command::new(name).hide(true))
}

/// `--supervise`, for the commands that run without a master otherwise.
pub(super) fn supervise_arg() -> Arg {
    Arg::new("supervise")
        .long("supervise")
        .action(clap::ArgAction::SetTrue)
        .help_heading("Where and how many")
        .help("Serve under a master, which starts a worker anew when it dies and confines it; without it \
             --user, --group and --sandbox have no effect")
}

/// `beltway worker`.
pub(super) fn worker() -> ExitCode {
    match worker_process::main() {
        Ok(code) => ExitCode::from(code),
        Err(why) => {
            super::complain(&format!("error: {why}\n"));
            ExitCode::from(super::exit::USAGE)
        }
    }
}

/// `beltway check-for-upgrade`.
pub(super) fn check() -> ExitCode {
    match check_for_upgrade() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::complain(&format!(
                "error: only a master that upgrades asks this: {error}\n"
            ));
            ExitCode::from(super::exit::USAGE)
        }
    }
}
