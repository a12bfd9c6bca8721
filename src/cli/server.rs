//! `beltway server`: the servers of a running server's upstreams, listed, taken out and taken back
//! without a reload.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

use super::control;
use crate::config::model::ServerState;
use crate::supervisor::control::protocol::{Request, ServerAsk};

const EXAMPLES: &str = "\
Examples:
  beltway server list                  all upstreams, each with its servers
  beltway server list app --json | jq '.upstreams[0].servers[] | {name, state, in_flight}'
  beltway server drain app 10.0.0.1:3000
  beltway server down app 10.0.0.1     the host alone, or :PORT, where that is one server
  beltway server up app unix:/run/app.sock

UPSTREAM and SERVER are called as in the configuration and in the list; a route that names its servers
itself has an upstream that is called by their addresses. A server that is a name is set as a whole,
with all of its addresses.

It counts from the next request on. Requests and tunnels that run go on to their end. It outlives
reloads, workers and upgrades, until another word is given, or until the configuration says of that
server another thing than before. A restart begins with what the configuration says.";

/// The states, each with what it means.
const STATES: [(ServerState, &str, &str); 3] = [
    (
        ServerState::Up,
        "Let a server take requests again",
        "\
Examples:
  beltway server up app 10.0.0.1:3000

With slow_start the share of one that was down grows from a twentieth to the whole. One that was left
out because requests failed is tried at once; one whose probe fails stays out until the probe is
answered well.",
    ),
    (
        ServerState::Drain,
        "Let a server take no requests but those of clients that a cookie binds to it",
        "\
Examples:
  beltway server drain app 10.0.0.1:3000
  beltway server list app              in flight: what it still works on

Its idle connections are closed. Health checks go on, so that it is known to be well when it comes
back.",
    ),
    (
        ServerState::Down,
        "Let a server take no requests at all, nor be asked whether it is well",
        "\
Examples:
  beltway server down app 10.0.0.1:3000

What runs there goes on to its end; clients that a cookie binds to it go to others.",
    ),
];

pub(super) fn command() -> Command {
    let list = Command::new("list")
        .about("Say how the servers are, and why one is out")
        .after_help(
            "\
Examples:
  beltway server list
  beltway server list app --json",
        )
        .arg(
            Arg::new("upstream")
                .value_name("UPSTREAM")
                .help("This one alone"),
        );
    let set = STATES.map(|(state, about, examples)| {
        Command::new(state.name())
            .about(about)
            .after_help(examples)
            .arg(name(
                "upstream",
                "UPSTREAM",
                "The upstream, as `beltway server list` has it",
            ))
            .arg(name(
                "server",
                "SERVER",
                "The server, as the configuration has it",
            ))
    });
    let all = std::iter::once(list).chain(set);
    Command::new("server")
        .about("List the servers that requests are passed to, drain them and take them back")
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands(all.map(|command| {
            command
                .arg(super::config_arg())
                .arg(control::control_arg())
                .arg(super::json_arg())
        }))
}

fn name(id: &'static str, shown: &'static str, help: &'static str) -> Arg {
    Arg::new(id).value_name(shown).required(true).help(help)
}

pub(super) fn main(matches: &ArgMatches) -> ExitCode {
    match matches.subcommand() {
        Some((name, matches)) => control::send(&Request::server(ask(name, matches)), matches),
        // Refused before.
        None => ExitCode::from(super::exit::USAGE),
    }
}

fn ask(name: &str, matches: &ArgMatches) -> ServerAsk {
    let text = |id: &str| {
        let text = matches.try_get_one::<String>(id).ok().flatten();
        text.cloned()
    };
    let state = STATES.iter().find(|(state, _, _)| state.name() == name);
    match state {
        Some((state, _, _)) => ServerAsk::Set {
            upstream: text("upstream").unwrap_or_default(),
            server: text("server").unwrap_or_default(),
            state: *state,
        },
        None => ServerAsk::List {
            upstream: text("upstream"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<ServerAsk, clap::Error> {
        let matches = command().try_get_matches_from(line.split(' '))?;
        let (name, matches) = matches.subcommand().expect("it is required");
        Ok(ask(name, matches))
    }

    #[test]
    fn each_line_is_its_request() {
        let list = |upstream: Option<&str>| ServerAsk::List {
            upstream: upstream.map(str::to_owned),
        };
        let set = |state| ServerAsk::Set {
            upstream: "app".to_owned(),
            server: "10.0.0.1:80".to_owned(),
            state,
        };
        for (line, expected) in [
            ("server list", list(None)),
            ("server list app --json", list(Some("app"))),
            ("server up app 10.0.0.1:80", set(ServerState::Up)),
            (
                "server drain -c a.toml app 10.0.0.1:80",
                set(ServerState::Drain),
            ),
            (
                "server down app 10.0.0.1:80 --control /run/a.sock",
                set(ServerState::Down),
            ),
        ] {
            assert_eq!(asked(line).unwrap(), expected, "{line}");
        }
        for line in [
            "server",
            "server dance",
            "server drain app",
            "server list a b",
        ] {
            assert!(asked(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_whole_is_well_formed_and_its_help_has_examples() {
        super::super::command().debug_assert();
        for part in command().get_subcommands_mut() {
            let help = part.render_long_help().to_string();
            assert!(help.contains("Examples:"), "{help}");
        }
    }
}
