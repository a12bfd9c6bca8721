//! `beltway reload`, `stop`, `upgrade`, `reopen`, `status` and `plan`: what is asked of a running server
//! through its control socket. The configuration file is only a name here, so all of them work beside
//! a broken one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::supervisor::control::client::{self, ClientError};
use crate::supervisor::control::path::Places;
use crate::supervisor::control::protocol::{self, Reply, Request};

/// A subcommand that is one request.
struct Remote {
    name: &'static str,
    request: protocol::Command,
    about: &'static str,
    /// Whether its reply has data for programs.
    json: bool,
    examples: &'static str,
}

const REMOTES: [Remote; 6] = [
    Remote {
        name: "reload",
        request: protocol::Command::Reload,
        about: "Let the running server take over what the configuration file says now",
        json: false,
        examples: "\
Examples:
  beltway check && beltway reload
  beltway reload -c /etc/beltway/beltway.toml

Connections stay open, and running requests end by the old configuration. What can't be changed in
running workers, such as their number, is done by new ones, and said; the old ones end with their
clients, within drain_timeout. When anything is wrong with the new configuration, the old one goes
on, the errors are printed, and the exit code is 78.",
    },
    Remote {
        name: "stop",
        request: protocol::Command::Quit,
        about: "End the running server when its requests have ended",
        json: false,
        examples: "\
Examples:
  beltway stop                         returns when the server has ended
  beltway stop --now                   cuts off running requests

Running requests may take until drain_timeout; then they are cut off.",
    },
    Remote {
        name: "upgrade",
        request: protocol::Command::Upgrade,
        about: "Replace the program of the running server by the one that is installed now",
        json: false,
        examples: "\
Examples:
  sudo install beltway /usr/local/bin/beltway && beltway upgrade

The program is looked for where the running one was started from. The process keeps its number and
its sockets; requests end with the old workers, and idle connections are closed with their next
answer. A new program that doesn't start, or refuses the configuration, is given up: the old one
goes on, and the exit code is 1, or 78 for the configuration. A changed configuration is taken over
with it.",
    },
    Remote {
        name: "reopen",
        request: protocol::Command::Reopen,
        about: "Let the running server open its log files again, after a rotation",
        json: false,
        examples: "\
Examples:
  mv access.log access.log.1 && beltway reopen

No line is lost. The server's own log is standard error, which isn't reopened.",
    },
    Remote {
        name: "status",
        request: protocol::Command::Status,
        about: "Say how the running server is",
        json: true,
        examples: "\
Examples:
  beltway status
  beltway status --json | jq '.generations[0].workers[].cores[].connections'
  beltway status --json | jq '.upstreams[].servers[] | {name, state, reason}'

Of upstreams it tells what all workers see together; `beltway server list` tells that alone. What was
counted begins anew with each worker.

A stall is a turn of a core that took longer than 2 ms: all of its connections have waited. Near
others, and while files come from a disk, the reason is looked for: a call waited (for a disk, a
lock, memory), the core worked, or others had the processor. A hypervisor that runs another machine
meanwhile looks like work, unless it tells (`steal` in /proc/stat).",
    },
    Remote {
        name: "plan",
        request: protocol::Command::Plan,
        about: "Say what a reload would change, and how many connections that touches",
        json: true,
        examples: "\
Examples:
  beltway plan
  beltway plan -c site.toml --json

Nothing is changed. The running server compares what it serves with what the file says now. When
anything is wrong with the file, the errors are printed, and the exit code is 78.",
    },
];

pub(super) fn commands() -> impl Iterator<Item = Command> {
    REMOTES.iter().map(|remote| {
        let command = Command::new(remote.name)
            .about(remote.about)
            .after_help(remote.examples)
            .arg(super::config_arg())
            .arg(control_arg());
        match remote.request {
            protocol::Command::Quit => command.arg(
                Arg::new("now")
                    .long("now")
                    .action(ArgAction::SetTrue)
                    .help("End at once, in the middle of requests"),
            ),
            _ if remote.json => command.arg(super::json_arg()),
            _ => command,
        }
    })
}

/// `--control PATH`.
pub(super) fn control_arg() -> Arg {
    Arg::new("control")
        .long("control")
        .value_name("PATH")
        .value_parser(clap::value_parser!(PathBuf))
        .overrides_with("control")
        .help(
            "The control socket [default: by the name of the configuration file in /run/beltway, \
             else in $XDG_RUNTIME_DIR]",
        )
}

/// `-s`, as nginx has it.
pub(super) fn signal_arg() -> Arg {
    Arg::new("s")
        .short('s')
        .value_name("reload|stop|quit|reopen")
        .value_parser(PossibleValuesParser::new([
            "reload", "stop", "quit", "reopen",
        ]))
        .hide_possible_values(true)
        .help("Same as `beltway reload`, `stop --now` (stop), `stop` (quit) and `reopen`")
}

/// Runs the subcommand of this name, if it is one of these.
pub(super) fn main(name: &str, matches: &ArgMatches) -> Option<ExitCode> {
    let remote = REMOTES.iter().find(|remote| remote.name == name)?;
    let request = Request::new(request(remote, matches));
    Some(send(&request, matches))
}

/// Runs `-s WORD`.
pub(super) fn signal(matches: &ArgMatches) -> Option<ExitCode> {
    Some(send(&Request::new(signal_request(matches)?), matches))
}

fn request(remote: &Remote, matches: &ArgMatches) -> protocol::Command {
    match remote.request {
        protocol::Command::Quit if super::given(matches, "now") => protocol::Command::Stop,
        request => request,
    }
}

/// The words of nginx are those of the protocol.
fn signal_request(matches: &ArgMatches) -> Option<protocol::Command> {
    let word = matches.try_get_one::<String>("s").ok().flatten()?;
    protocol::Command::named(word)
}

/// Asks the server that these arguments mean, and prints what it answers.
pub(super) fn send(request: &Request, matches: &ArgMatches) -> ExitCode {
    let json = super::given(matches, "json");
    match ask(request, matches) {
        Ok(reply) if json => {
            super::say(&format!("{:#}\n", reply_json(&reply)));
            ExitCode::from(reply.exit)
        }
        Ok(reply) => {
            if reply.exit == 0 {
                super::say(&reply.text);
            } else {
                super::complain(&reply.text);
            }
            ExitCode::from(reply.exit)
        }
        Err(text) => {
            if json {
                let report = serde_json::json!({ "ok": false, "error": error_of(&text) });
                super::say(&format!("{report:#}\n"));
            } else {
                super::complain(&text);
            }
            ExitCode::from(super::exit::FAILED)
        }
    }
}

/// What went wrong, without what is there for people alone.
pub(super) fn error_of(text: &str) -> &str {
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line)
}

/// The data of a reply; the text in its place where there is none.
fn reply_json(reply: &Reply) -> serde_json::Value {
    if reply.data.is_null() {
        let text = reply.text.trim_end();
        return serde_json::json!({ "ok": reply.exit == 0, "text": text });
    }
    reply.data.clone()
}

/// Asks the server that these arguments mean.
///
/// # Errors
/// What to print when there is no answer.
pub(super) fn ask(request: &Request, matches: &ArgMatches) -> Result<Reply, String> {
    let file = super::config_file(matches);
    let control = control_path(matches);
    let paths = match &control {
        Some(path) => vec![path.clone()],
        None => Places::of_this_process().to_ask(&file),
    };
    client::ask(&paths, request).map_err(|error| no_answer(&file, control.is_some(), &error))
}

/// What `--control` says.
pub(super) fn control_path(matches: &ArgMatches) -> Option<PathBuf> {
    let path = matches.try_get_one::<PathBuf>("control").ok().flatten();
    path.cloned()
}

fn no_answer(file: &Path, by_control: bool, error: &ClientError) -> String {
    let file = file.display();
    match error {
        ClientError::NothingRuns(_) if by_control => format!(
            "error: nothing runs there: {error}\n  \
             = help: it is the path that the server was given by --control\n"
        ),
        ClientError::NothingRuns(_) => format!(
            "error: nothing runs with {file}: {error}\n  \
             = help: start it with `beltway run -c {file}`\n  \
             = help: a server that was started with --control PATH is reached by that PATH\n"
        ),
        _ => format!("error: {error}\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn matches(line: &str) -> ArgMatches {
        super::super::command()
            .try_get_matches_from(line.split(' '))
            .expect("it is understood")
    }

    #[test]
    fn each_line_is_its_request() {
        use protocol::Command::{Plan, Quit, Reload, Reopen, Status, Stop, Upgrade};
        for (line, expected) in [
            ("beltway reload", Reload),
            ("beltway reload -c a.toml --control /run/a.sock", Reload),
            ("beltway stop", Quit),
            ("beltway stop --now", Stop),
            ("beltway upgrade", Upgrade),
            ("beltway reopen", Reopen),
            ("beltway status --json", Status),
            ("beltway plan --json -c a.toml", Plan),
            ("beltway -s reload", Reload),
            ("beltway -s stop -c a.toml", Stop),
            ("beltway -c a.toml -s quit", Quit),
            ("beltway -s reopen --control /run/a.sock", Reopen),
        ] {
            let matches = matches(line);
            let asked = match matches.subcommand() {
                Some((name, matches)) => {
                    let remote = REMOTES.iter().find(|remote| remote.name == name);
                    remote.map(|remote| request(remote, matches))
                }
                None => signal_request(&matches),
            };
            assert_eq!(asked, Some(expected), "{line}");
        }
        for line in [
            "beltway -s dance",
            "beltway reload --now",
            "beltway reload --json",
            "beltway stop a.toml",
        ] {
            let result = super::super::command().try_get_matches_from(line.split(' '));
            assert!(result.is_err(), "{line}");
        }
    }

    #[test]
    fn a_server_is_asked_and_its_absence_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let line = format!("beltway reload -c site.toml --control {}", path.display());
        let parsed = matches(&line);
        let (_, parsed) = parsed.subcommand().unwrap();
        let error = ask(&Request::new(protocol::Command::Reload), parsed).unwrap_err();
        assert!(
            error.contains("a.sock") && error.contains("--control"),
            "{error}"
        );

        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            BufReader::new(&stream)
                .read_line(&mut String::new())
                .unwrap();
            stream
                .write_all(&Reply::failed(78, "error: no\n").to_line())
                .unwrap();
        });
        let reply = ask(&Request::new(protocol::Command::Reload), parsed).unwrap();
        assert_eq!((reply.exit, &*reply.text), (78, "error: no\n"));
        server.join().unwrap();
    }

    #[test]
    fn nothing_that_runs_says_how_to_start_it() {
        let error =
            ClientError::NothingRuns(vec!["/run/beltway/b.sock".into(), "/x/b.sock".into()]);
        insta::assert_snapshot!(no_answer(Path::new("site.toml"), false, &error), @r"
        error: nothing runs with site.toml: no control socket at /run/beltway/b.sock or /x/b.sock
          = help: start it with `beltway run -c site.toml`
          = help: a server that was started with --control PATH is reached by that PATH
        ");
    }

    #[test]
    fn programs_get_data_or_the_text() {
        let reply = Reply::done("x\n");
        assert_eq!(reply_json(&reply)["text"], "x");
        let reply = reply.with_data(serde_json::json!({"pid": 7}));
        assert_eq!(reply_json(&reply)["pid"], 7);
        assert_eq!(
            error_of("error: nothing runs\n  = help: x\n"),
            "nothing runs"
        );
    }
}
