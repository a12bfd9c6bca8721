//! `beltway show`: the configuration as it stands, all sources laid over each other.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::flags::{self, Table};
use crate::config::print::Defaults;
use crate::config::{self, print};

const TABLES: [Table; 1] = [Table::Server];

const EXAMPLES: &str = "\
Examples:
  beltway show                         what is set: file, included files, variables and flags
  beltway show --defaults              and what is not set, with its default
  beltway show -c site.toml --json

What it prints is a configuration file. ${NAME} and file:NAME are not filled in.";

pub(super) fn command() -> Command {
    Command::new("show")
        .about("Print the configuration, all sources laid over each other")
        .after_help(EXAMPLES)
        .arg(super::config_arg())
        .arg(
            Arg::new("defaults")
                .long("defaults")
                .action(ArgAction::SetTrue)
                .help("Show what isn't set too, with its default"),
        )
        .arg(super::json_arg())
        .arg(super::no_files_arg())
        .args(flags::args(&TABLES))
}

pub(super) fn main(matches: &ArgMatches) -> ExitCode {
    let file = super::config_file(matches);
    let settings = flags::settings(matches, &TABLES);
    let check_files = !super::given(matches, "no-files");
    let json = super::given(matches, "json");
    let defaults = if super::given(matches, "defaults") {
        Defaults::Shown
    } else {
        Defaults::Hidden
    };
    match config::load(&super::input(Some(file), settings, check_files)) {
        Ok(loaded) => {
            super::say(&if json {
                let json = print::to_json(&loaded.tree, &loaded.sources, defaults);
                format!("{json:#}\n")
            } else {
                print::to_toml(&loaded.tree, &loaded.sources, defaults)
            });
            ExitCode::SUCCESS
        }
        Err(diagnostics) => super::bad_config(&diagnostics),
    }
}
