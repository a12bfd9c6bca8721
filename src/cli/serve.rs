//! `beltway serve [DIR]`, and `beltway` alone: a directory without a configuration file.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

use super::flags::{self, Table, site_setting};
use crate::config::model::{Sandbox, Server};
use crate::config::sources::{FlagValue, Setting};
use crate::config::{self, print};
use crate::supervisor::worker::Origin;

const TABLES: [Table; 3] = [Table::Site, Table::Files, Table::Server];

/// Where one-liners listen: only this machine reaches them.
pub(super) const DEFAULT_ADDRESS: &str = "127.0.0.1:8080";

const EXAMPLES: &str = "\
Examples:
  beltway serve                        this directory, on http://127.0.0.1:8080/
  beltway serve dist --spa             a single-page application
  beltway serve ~/pub -l :8000 --list  to the network, IPv4 and IPv6, with listings
  beltway serve api-docs --cors=https://app.example.com --access-log
  beltway serve --tls=self-signed      on https://127.0.0.1:8080/, see `beltway cert trust`
  beltway serve . --print-config       the configuration file that does the same

Each flag is a key of the configuration file. --no-NAME undoes --NAME, and the last of them wins.";

pub(super) fn command() -> Command {
    Command::new("serve")
        .about("Serve a directory")
        .after_help(EXAMPLES)
        .arg(
            Arg::new("DIR")
                .default_value(".")
                .help("The directory to serve"),
        )
        .args(flags::args(&TABLES))
        .arg(super::run::supervise_arg())
        .arg(super::control::control_arg().requires("supervise").help(
            "With --supervise: make a control socket there, for `beltway status --control PATH`",
        ))
        .arg(super::print_config_arg())
}

pub(super) fn main(matches: &ArgMatches) -> ExitCode {
    let directory = matches.get_one::<String>("DIR").map_or(".", String::as_str);
    run(settings(directory, matches), matches)
}

/// Serves what a one-liner says, under a master if that was asked for; or prints it as a file.
pub(super) fn run(settings: Vec<Setting>, matches: &ArgMatches) -> ExitCode {
    let print_config = super::given(matches, "print-config");
    if super::given(matches, "supervise") && !print_config {
        let input = super::input(None, settings, true);
        let control = super::control::control_path(matches);
        return super::run::supervise(input, control, Origin::Serve);
    }
    serve(settings, print_config)
}

/// `beltway` alone.
pub(super) fn here() -> ExitCode {
    serve(defaults(".", &[]), false)
}

fn serve(settings: Vec<Setting>, print_config: bool) -> ExitCode {
    match config::load(&super::input(None, settings, true)) {
        Err(diagnostics) => super::bad_config(&diagnostics),
        Ok(loaded) if print_config => {
            let hidden = print::Defaults::Hidden;
            super::say(&print::to_toml(&loaded.tree, &loaded.sources, hidden));
            ExitCode::SUCCESS
        }
        Ok(loaded) => match needs_master(&loaded.model.server) {
            None => super::start::start(loaded.model, Origin::Serve),
            Some(what) => {
                super::complain(&format!(
                    "error: {what} needs a master\n  = help: add --supervise\n"
                ));
                ExitCode::from(super::exit::USAGE)
            }
        },
    }
}

/// A setting that a server without a master could only ignore.
fn needs_master(server: &Server) -> Option<&'static str> {
    [
        (
            server.user.is_some() || server.group.is_some(),
            "another user",
        ),
        (server.sandbox == Sandbox::Strict, "the strict sandbox"),
        (!server.sandbox_read.is_empty(), "sandbox_read"),
        (server.processes.get() > 1, "more than one process"),
    ]
    .into_iter()
    .find_map(|(is_set, what)| is_set.then_some(what))
}

fn settings(directory: &str, matches: &ArgMatches) -> Vec<Setting> {
    let addresses = flags::texts(matches, "listen");
    let mut settings = defaults(directory, &addresses);
    settings.extend(flags::settings(matches, &TABLES));
    settings
}

/// What a one-liner does unless a flag says otherwise.
fn defaults(directory: &str, addresses: &[String]) -> Vec<Setting> {
    let root = FlagValue::Text(directory.to_owned());
    let mut settings = vec![site_setting("serve ", "root", root)];
    if addresses.is_empty() {
        let address = FlagValue::List(vec![DEFAULT_ADDRESS.to_owned()]);
        settings.push(site_setting("-l ", "listen", address));
    }
    // What others can reach shows only what it was asked to show.
    if addresses.iter().all(|address| is_local(address)) {
        settings.push(site_setting("--list", "list", FlagValue::Boolean(true)));
    }
    settings
}

/// Whether only this machine reaches an address.
fn is_local(address: &str) -> bool {
    address.starts_with("unix:")
        || address.starts_with("localhost:")
        || address
            .parse::<std::net::SocketAddr>()
            .is_ok_and(|address| address.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{Action, Cors, Files, LogTarget, Model};
    use crate::config::sources::Input;

    fn model(line: &str) -> std::sync::Arc<Model> {
        let matches = command()
            .try_get_matches_from(std::iter::once("serve").chain(line.split_whitespace()))
            .unwrap_or_else(|error| panic!("{error}"));
        let directory = matches.get_one::<String>("DIR").unwrap();
        let input = Input {
            settings: settings(directory, &matches),
            directory: "/srv".into(),
            ..Input::default()
        };
        match config::load(&input) {
            Ok(loaded) => {
                let printed =
                    print::to_toml(&loaded.tree, &loaded.sources, print::Defaults::Hidden);
                assert!(printed.contains("[site.\"*\"]"), "{printed}");
                loaded.model
            }
            Err(diagnostics) => panic!("{}", diagnostics.render(false)),
        }
    }

    fn files(model: &Model) -> &Files {
        match &model.sites[0].fallback.action {
            Action::Files(files) => files,
            other => panic!("not files: {other:?}"),
        }
    }

    fn addresses(model: &Model) -> Vec<String> {
        let listeners = model.listeners.iter();
        listeners.map(|l| l.address.to_string()).collect()
    }

    #[test]
    fn a_one_liner_is_safe_and_lists_on_loopback_only() {
        for (line, list, listen) in [
            ("", true, vec!["127.0.0.1:8080"]),
            ("-l [::1]:1 -l unix:/a", true, vec!["[::1]:1", "unix:/a"]),
            ("-l fd:web", false, vec!["fd:web"]),
            ("--no-list", false, vec!["127.0.0.1:8080"]),
            ("-l :80", false, vec!["0.0.0.0:80", "[::]:80"]),
            ("-l :80 --list", true, vec!["0.0.0.0:80", "[::]:80"]),
            (
                "-l 127.0.0.1:1 -l 10.0.0.1:1",
                false,
                vec!["127.0.0.1:1", "10.0.0.1:1"],
            ),
        ] {
            let model = model(line);
            assert_eq!(files(&model).list, list, "{line}");
            assert_eq!(addresses(&model), listen, "{line}");
            assert_eq!(files(&model).root.to_str(), Some("/srv"));
            assert!(!files(&model).hidden_files);
        }
    }

    #[test]
    fn rights_are_flags_too() {
        use crate::config::model::Sandbox;
        for (line, user, group, sandbox) in [
            ("", None, None, Sandbox::Auto),
            (
                "--user=www --group 33",
                Some("www"),
                Some("33"),
                Sandbox::Auto,
            ),
            ("--user=1000 --sandbox", Some("1000"), None, Sandbox::Auto),
            ("--sandbox=strict", None, None, Sandbox::Strict),
            ("--sandbox=strict --no-sandbox", None, None, Sandbox::Off),
            ("--no-sandbox --sandbox=auto", None, None, Sandbox::Auto),
        ] {
            let server = &model(line).server;
            assert_eq!(server.user.as_deref(), user, "{line}");
            assert_eq!(server.group.as_deref(), group, "{line}");
            assert_eq!(server.sandbox, sandbox, "{line}");
        }
    }

    #[test]
    fn certificates_are_made_where_the_flag_says_so() {
        use crate::config::model::CertificateId;
        let model = model("--tls=self-signed");
        let tls = model.sites[0].tls.as_ref().unwrap();
        assert!(tls.self_signed.is_some() && model.listeners[0].tls.is_some());
        let made = CertificateId::Made { site: "*".into() };
        assert_eq!(tls.certificates[0].id, made);
    }

    #[test]
    fn flags_are_keys() {
        let model = model(
            "dist --spa --cors --no-etag --no-range --no-precompressed --hidden-files \
             --symlinks=on --access-log=a.log --drain=5s --set site.*.index=[\"x.html\"]",
        );
        let files = files(&model);
        assert_eq!(files.root.to_str(), Some("/srv/dist"));
        assert_eq!(files.spa.as_deref(), Some("index.html"));
        assert_eq!(files.index, ["x.html"]);
        assert!(!files.etag && !files.range && files.precompressed.is_empty());
        assert!(files.hidden_files);
        assert_eq!(model.sites[0].fallback.cors, Some(Cors::Any));
        assert_eq!(
            model.server.access_log.as_ref().map(|log| &log.target),
            Some(&LogTarget::File("/srv/a.log".into()))
        );
        assert_eq!(model.server.drain_timeout.as_secs(), 5);
    }
}
