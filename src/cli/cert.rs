//! `beltway cert`: what certificates say, and how to trust the local authority. Nothing is changed.

mod list;
mod trust;

use std::process::ExitCode;

use clap::{ArgMatches, Command};

const EXAMPLES: &str = "\
Examples:
  beltway cert list                    what beltway.toml names, and when it ends
  beltway cert list /etc/ssl/example.com/fullchain.pem
  beltway cert trust                   how to have clients trust what this machine signs
  beltway cert list --json | jq '.certificates[] | select(.days_left < 14)'";

pub(super) fn command() -> Command {
    Command::new("cert")
        .about("Say what certificates are for, and when they end")
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(list::command())
        .subcommand(trust::command())
}

pub(super) fn main(matches: &ArgMatches) -> ExitCode {
    match matches.subcommand() {
        Some(("list", matches)) => list::main(matches),
        Some(("trust", matches)) => trust::main(matches),
        // Refused before.
        _ => ExitCode::from(super::exit::USAGE),
    }
}
