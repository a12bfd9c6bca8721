//! The command line: one file per subcommand. Every flag is a key of the configuration file, so that
//! there is one model whatever was typed.

mod cert;
mod check;
mod control;
mod doctor;
mod flags;
mod proxy;
mod run;
mod serve;
mod server;
mod show;
mod start;
mod tune;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::diagnostics::Diagnostics;
use crate::config::sources::{Input, Setting};

/// What went wrong, as an exit code: sysexits(3) has the last one.
mod exit {
    /// Failed at run time.
    pub(super) const FAILED: u8 = 1;
    /// Wrong usage.
    pub(super) const USAGE: u8 = 2;
    /// Bad configuration (`EX_CONFIG`).
    pub(super) const CONFIG: u8 = 78;
}

/// Where `run`, `check`, `reload` and the others look for a configuration file, in this order.
const DEFAULT_FILES: [&str; 2] = ["beltway.toml", "/etc/beltway/beltway.toml"];

const EXAMPLES: &str = "\
Examples:
  beltway                              serve this directory on http://127.0.0.1:8080/
  beltway serve dist --spa             a single-page application
  beltway serve ~/pub -l :8000 --list  to the network, with listings
  beltway proxy :3000                  in front of port 3000 of this machine
  beltway serve . --print-config > beltway.toml
  beltway check                        say what is wrong with beltway.toml
  beltway run -c /etc/beltway/beltway.toml
  beltway reload -c /etc/beltway/beltway.toml
  beltway server drain app 10.0.0.1:3000
  beltway doctor                       say what this machine lacks, and the command that mends it
  beltway tune                         measure which way of sending pays on this machine

`beltway COMMAND --help` has the flags of a command. Each is a key of the configuration file.
Variables such as BELTWAY_SERVER_WORKERS=2 set keys of [server] and the tables in it. --set wins
over flags, flags over variables, variables over the file.

Exit codes: 0 done, 1 failed at run time, 2 wrong usage, 78 bad configuration.";

/// Parses the arguments, runs the subcommand and gives the exit code: 0 done, 1 failed at run
/// time, 2 wrong usage, 78 bad configuration.
pub fn main() -> ExitCode {
    // Before the arguments, which an older version was started with.
    if let Some(code) = run::resume() {
        return code;
    }
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let matches = match command().try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) => return usage(&error, arguments.get(1)),
    };
    match matches.subcommand() {
        Some(("serve", matches)) => serve::main(matches),
        Some(("proxy", matches)) => proxy::main(matches),
        Some(("run", matches)) => run::main(matches),
        Some(("check", matches)) => check::main(matches),
        Some(("show", matches)) => show::main(matches),
        Some(("doctor", matches)) => doctor::main(matches),
        Some(("tune", matches)) => tune::main(matches),
        Some(("server", matches)) => server::main(matches),
        Some(("cert", matches)) => cert::main(matches),
        Some((crate::supervisor::WORKER_COMMAND, _)) => run::worker(),
        Some((crate::supervisor::CHECK_COMMAND, _)) => run::check(),
        Some((name, matches)) if let Some(code) = control::main(name, matches) => code,
        // The familiar letters of nginx, and nothing at all.
        _ if let Some(code) = control::signal(&matches) => code,
        _ if matches.get_flag("T") => show::main(&matches),
        _ if matches.get_flag("t") => check::main(&matches),
        _ if matches.contains_id("config") || matches.contains_id("control") => run::main(&matches),
        _ => serve::here(),
    }
}

fn command() -> Command {
    Command::new("beltway")
        .version(env!("CARGO_PKG_VERSION"))
        .about(
            "A web server and reverse proxy, driven by io_uring completions.\n\
             Without a command it serves the current directory on http://127.0.0.1:8080/.",
        )
        .after_help(EXAMPLES)
        .disable_help_subcommand(true)
        .subcommand_precedence_over_arg(true)
        .args_conflicts_with_subcommands(true)
        .max_term_width(100)
        .subcommand(serve::command())
        .subcommand(proxy::command())
        .subcommand(run::command())
        .subcommand(check::command())
        .subcommand(show::command())
        .subcommands(control::commands())
        .subcommand(server::command())
        .subcommand(cert::command())
        .subcommand(doctor::command())
        .subcommand(tune::command())
        .subcommands(run::hidden_commands())
        .arg(config_arg().help("Same as `beltway run -c FILE`"))
        .arg(
            Arg::new("t")
                .short('t')
                .action(ArgAction::SetTrue)
                .help("Same as `beltway check`"),
        )
        .arg(
            Arg::new("T")
                .short('T')
                .action(ArgAction::SetTrue)
                .help("Same as `beltway show`"),
        )
        .arg(control::signal_arg())
        .arg(control::control_arg())
}

/// Prints a usage error, or the help or version that was asked for.
fn usage(error: &clap::Error, first: Option<&OsString>) -> ExitCode {
    // There is nobody to tell when the terminal is gone.
    let _ = error.print();
    if error.kind() == clap::error::ErrorKind::InvalidSubcommand
        && let Some(first) = first
        && Path::new(first).is_dir()
    {
        let name = first.to_string_lossy();
        complain(&format!(
            "\nto serve that directory: beltway serve {name}\n"
        ));
    }
    if error.use_stderr() {
        ExitCode::from(exit::USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

/// `-c FILE`.
fn config_arg() -> Arg {
    Arg::new("config")
        .short('c')
        .long("config")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help("The configuration file [default: beltway.toml, /etc/beltway/beltway.toml]")
}

/// `--json`.
fn json_arg() -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Write JSON, for programs")
}

/// `--no-files`.
fn no_files_arg() -> Arg {
    Arg::new("no-files")
        .long("no-files")
        .action(ArgAction::SetTrue)
        .help("Don't check that directories and files exist, such as on another machine")
}

/// `--print-config`.
fn print_config_arg() -> Arg {
    Arg::new("print-config")
        .long("print-config")
        .action(ArgAction::SetTrue)
        .help_heading("Configuration")
        .help("Print the configuration file that equals these flags, and don't serve")
}

/// Whether a switch was given; not every command has every switch.
fn given(matches: &ArgMatches, name: &str) -> bool {
    matches
        .try_get_one::<bool>(name)
        .ok()
        .flatten()
        .is_some_and(|given| *given)
}

/// The configuration file that was named, or the first default that exists.
fn config_file(matches: &ArgMatches) -> PathBuf {
    if let Some(file) = matches.get_one::<PathBuf>("config") {
        return file.clone();
    }
    let exists = DEFAULT_FILES.iter().find(|file| Path::new(file).exists());
    exists.unwrap_or(&DEFAULT_FILES[0]).into()
}

/// What a configuration is read from: a file, these settings, the environment, this directory.
fn input(file: Option<PathBuf>, settings: Vec<Setting>, check_files: bool) -> Input {
    Input {
        file,
        content: None,
        settings,
        // A variable that isn't text can't be meant for us.
        environment: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        directory: std::env::current_dir().unwrap_or_else(|_| "/".into()),
        check_files,
    }
}

/// Prints what is wrong with a configuration.
fn bad_config(diagnostics: &Diagnostics) -> ExitCode {
    complain(&diagnostics.render(color(io::stderr().is_terminal())));
    ExitCode::from(exit::CONFIG)
}

/// Whether to write colours to a stream (<https://no-color.org>).
fn color(terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    terminal && !dumb && !set("NO_COLOR")
}

/// Writes to standard output. That nobody reads it any more is no error of ours.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes to standard error.
fn complain(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn what_people_type_is_understood() {
        for line in [
            "beltway",
            "beltway serve",
            "beltway serve dist --spa -l :8000 -l [::1]:80",
            "beltway serve --spa=app.html . --no-list --cors=https://a.example --no-etag",
            "beltway serve --access-log --log-format=json --pin --engine epoll --set a.b=c",
            "beltway proxy localhost:3000",
            "beltway proxy :3000 unix:/run/a.sock -l :80 -H X-A:b --balance least-conn --health=/up",
            "beltway proxy :3000 --supervise --control /run/x.sock --timeout 5s",
            "beltway run",
            "beltway run -c x.toml --workers=2 --drain 5s --no-access-log --print-config",
            "beltway check -c x.toml --json --no-files",
            "beltway show --defaults",
            "beltway -t -c x.toml",
            "beltway -T",
            "beltway -c x.toml",
            "beltway run --control /run/x.sock",
            "beltway -s reload -c x.toml",
            "beltway cert list a.pem b.pem --json",
            "beltway doctor --json",
            "beltway doctor --worker -c x.toml",
        ] {
            let result = command().try_get_matches_from(line.split(' '));
            assert!(result.is_ok(), "{line}: {}", result.unwrap_err());
        }
        for line in [
            "beltway serve --engine=kqueue",
            "beltway serve --tls",
            "beltway proxy",
            "beltway proxy :3000 --spa",
            "beltway proxy :3000 --balance=fastest",
            "beltway proxy :3000 --control /run/x.sock",
            "beltway run --spa",
            "beltway -s upgrade",
            "beltway serve a b",
        ] {
            let error = command()
                .try_get_matches_from(line.split(' '))
                .expect_err(line);
            assert!(error.use_stderr(), "{line}");
        }
    }

    #[test]
    fn the_letters_of_nginx_have_no_flags_beside_them() {
        for line in ["beltway", "beltway -t", "beltway -T", "beltway -c x.toml"] {
            let matches = command()
                .try_get_matches_from(line.split(' '))
                .expect("it is understood");
            let settings = flags::settings(&matches, &[flags::Table::Server]);
            assert!(settings.is_empty(), "{line}: {settings:?}");
        }
    }

    #[test]
    fn every_command_has_examples() {
        for command in command().get_subcommands_mut() {
            if command.is_hide_set() {
                continue;
            }
            let help = command.render_long_help().to_string();
            assert!(help.contains("Examples:"), "{}", command.get_name());
        }
    }

    #[test]
    fn the_help_groups_flags_and_ends_with_examples() {
        for name in ["serve", "proxy", "run", "check", "show"] {
            let mut command = command();
            let help = command
                .find_subcommand_mut(name)
                .expect("it exists")
                .render_long_help()
                .to_string();
            assert!(help.contains("Examples:"), "{name}");
            assert!(help.contains("--set <KEY=VALUE>"), "{name}");
        }
    }
}
