//! `beltway proxy TO…`: in front of backends without a configuration file.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::flags::{self, PROXY_UPSTREAM, SERVE_SITE, Table, site_setting};
use super::serve;
use crate::config::sources::{FlagValue, Setting};

const TABLES: [Table; 4] = [Table::Site, Table::Proxy, Table::Upstream, Table::Server];

/// Id of the backends.
const TO: &str = "TO";

/// Id of `-H`.
const HEADER: &str = "header";

/// Flags about the upstream as a whole: with one of them it gets a table of its own.
const OF_UPSTREAM: [&str; 3] = ["balance", "health", "source"];

const EXAMPLES: &str = "\
Examples:
  beltway proxy :3000                  in front of port 3000 of this machine, on http://127.0.0.1:8080/
  beltway proxy unix:/run/app.sock -l :80
  beltway proxy 10.0.0.1:3000 10.0.0.2:3000 --balance least-conn --health /healthz
  beltway proxy :3000 -H 'X-Request-Source: edge' -H 'Cookie:' --upstream-host app.internal
  beltway proxy https://app.example.com --upstream-host upstream
  beltway proxy :3000 -l :80 --trusted-proxies 10.0.0.0/8 --access-log
  beltway proxy :3000 --print-config   the configuration file that does the same

WebSockets and streams need no flag. What begins with https:// is verified by the system's certificates
(SSL_CERT_FILE names others). Backends are told who the client is in X-Forwarded-For and its
kin; what clients claim there is thrown away, unless --trusted-proxies lists them.
Each flag is a key of the configuration file, which has more: routes, retries, buffers, weights,
backups, sticky sessions. Under a master (`beltway run`, or --supervise with --control) `beltway status`
shows each backend, and `beltway server` drains one and takes it back.";

pub(super) fn command() -> Command {
    Command::new("proxy")
        .about("Answer with what backends say")
        .after_help(EXAMPLES)
        .arg(Arg::new(TO).required(true).num_args(1..).help(
            "The backends: HOST:PORT, :PORT (this machine), http://HOST, https://HOST, \
                     unix:/PATH or srv:NAME",
        ))
        .args(flags::args(&TABLES))
        .arg(
            Arg::new(HEADER)
                .short('H')
                .long(HEADER)
                .value_name("NAME: VALUE")
                .action(ArgAction::Append)
                .value_parser(parse_header)
                .help_heading("How backends are asked")
                .help(
                    "Set a field of requests to backends; without a value, remove it; may be given \
                     several times",
                ),
        )
        .arg(super::run::supervise_arg())
        .arg(super::control::control_arg().requires("supervise").help(
            "With --supervise: make a control socket there, for `beltway status --control PATH`",
        ))
        .arg(super::print_config_arg())
}

pub(super) fn main(matches: &ArgMatches) -> ExitCode {
    serve::run(settings(matches), matches)
}

fn settings(matches: &ArgMatches) -> Vec<Setting> {
    let mut settings = Vec::new();
    let to = FlagValue::List(flags::texts(matches, TO));
    let of_upstream = OF_UPSTREAM
        .iter()
        .any(|name| !flags::texts(matches, name).is_empty());
    if of_upstream {
        let path = ["upstream", PROXY_UPSTREAM, "servers"];
        settings.push(flags::setting("proxy ", &path, to));
        let name = FlagValue::Text(PROXY_UPSTREAM.to_owned());
        settings.push(site_setting("proxy ", "proxy", name));
    } else {
        settings.push(site_setting("proxy ", "proxy", to));
    }
    if flags::texts(matches, "listen").is_empty() {
        let address = FlagValue::List(vec![serve::DEFAULT_ADDRESS.to_owned()]);
        settings.push(site_setting("-l ", "listen", address));
    }
    let fields = matches.try_get_many::<(String, String)>(HEADER);
    for (name, value) in fields.ok().flatten().into_iter().flatten() {
        // As curl takes it.
        if name.eq_ignore_ascii_case("host") && !value.is_empty() {
            let host = FlagValue::Text(value.clone());
            settings.push(site_setting("-H Host:", "upstream_host", host));
            continue;
        }
        let path = ["site", SERVE_SITE, "request_headers", name];
        let value = FlagValue::Text(value.clone());
        settings.push(flags::setting(&format!("-H {name}:"), &path, value));
    }
    settings.extend(flags::settings(matches, &TABLES));
    settings
}

/// Splits `Name: value`.
fn parse_header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("write it such as 'X-Request-Source: edge'".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{Action, Balance, HeaderOp, HostRule, Model, Probe, Proxy, Spread};
    use crate::config::print::{self, Defaults};
    use crate::config::sources::Input;
    use crate::config::{self, Loaded};

    fn loaded(arguments: &[&str]) -> Loaded {
        let matches = command()
            .try_get_matches_from(std::iter::once(&"proxy").chain(arguments))
            .unwrap_or_else(|error| panic!("{error}"));
        let input = Input {
            settings: settings(&matches),
            directory: "/srv".into(),
            ..Input::default()
        };
        config::load(&input).unwrap_or_else(|diagnostics| panic!("{}", diagnostics.render(false)))
    }

    fn proxy(model: &Model) -> &Proxy {
        match &model.sites[0].fallback.action {
            Action::Proxy(proxy) => proxy,
            other => panic!("not a proxy: {other:?}"),
        }
    }

    fn printed(loaded: &Loaded) -> String {
        print::to_toml(&loaded.tree, &loaded.sources, Defaults::Hidden)
    }

    #[test]
    fn a_one_liner_is_on_loopback_and_asks_one_backend() {
        let loaded = loaded(&[":3000"]);
        let model = &loaded.model;
        assert_eq!(model.listeners[0].address.to_string(), "127.0.0.1:8080");
        assert_eq!(model.listeners.len(), 1);
        let proxy = proxy(model);
        assert_eq!(
            proxy.upstream.servers[0].address.to_string(),
            "localhost:3000"
        );
        assert_eq!(proxy.host, HostRule::Keep);
        insta::assert_snapshot!(printed(&loaded), @r#"
        [site."*"]
        proxy = [":3000"]
        listen = ["127.0.0.1:8080"]
        "#);
    }

    #[test]
    fn flags_are_keys_of_a_file_that_reads_back() {
        let first = loaded(&[
            "10.0.0.1:3000",
            "unix:/run/b.sock",
            "--balance=p2c",
            "--health",
            "/up",
            "--source=127.0.0.1",
            "--source=::1",
            "-l",
            ":80",
            "-H",
            "X-A: b: c",
            "-H",
            "Cookie:",
            "-H",
            "host: app.internal",
            "--timeout=5s",
            "--trusted-proxies=10.0.0.0/8",
            "--proxy-protocol=10.0.0.1",
            "--proxy-protocol=unix",
        ]);
        let text = printed(&first);
        insta::assert_snapshot!(text, @r#"
        [server]
        trusted_proxies = ["10.0.0.0/8"]

        [upstream.app]
        servers = ["10.0.0.1:3000", "unix:/run/b.sock"]
        balance = "p2c"
        health = "/up"
        source = ["127.0.0.1", "::1"]

        [site."*"]
        proxy = "app"
        upstream_host = "app.internal"
        listen = [":80"]
        timeout = "5s"
        proxy_protocol = ["10.0.0.1", "unix"]

        [site."*".request_headers]
        X-A = "b: c"
        Cookie = ""
        "#);
        let again = config::load(&Input {
            file: Some("a.toml".into()),
            content: Some(text),
            directory: "/srv".into(),
            ..Input::default()
        })
        .unwrap_or_else(|diagnostics| panic!("{}", diagnostics.render(false)));
        let (proxy, same) = (proxy(&first.model), self::proxy(&again.model));
        assert_eq!(format!("{proxy:?}"), format!("{same:?}"));
        assert_eq!(proxy.upstream.balance, Balance::Spread(Spread::PowerOfTwo));
        let probe = &proxy.upstream.health.as_ref().unwrap().probe;
        assert!(matches!(probe, Probe::Http { path, .. } if &**path == "/up"));
        assert!(
            matches!(&proxy.request_headers[0], HeaderOp::Remove(name) if name.as_str() == "Cookie")
        );
        let accepted = again.model.listeners[0].proxy_protocol.as_ref().unwrap();
        assert!(accepted.contains(None) && accepted.contains("10.0.0.1".parse().ok()));
        assert!(
            again.model.sites[0]
                .trusted_proxies
                .contains("10.1.1.1".parse().ok())
        );
    }

    #[test]
    fn what_is_wrong_with_a_backend_names_the_command_line() {
        let matches = command()
            .try_get_matches_from(["proxy", "ftp://a", "3000"])
            .unwrap();
        let input = Input {
            settings: settings(&matches),
            directory: "/srv".into(),
            ..Input::default()
        };
        let errors = config::load(&input).unwrap_err().render(false);
        for part in [
            "backends are not asked over `ftp`",
            "proxy ftp://a 3000",
            "write \":3000\"",
        ] {
            assert!(errors.contains(part), "{errors}");
        }
    }
}
