//! `beltway check`: everything that is wrong with a configuration, without serving it.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{ArgMatches, Command};

use super::flags::{self, Table};
use crate::certificates::expiry;
use crate::config;
use crate::config::model::{CertificateId, Model};
use crate::util::clock;

const TABLES: [Table; 1] = [Table::Server];

const EXAMPLES: &str = "\
Examples:
  beltway check                        beltway.toml here, else /etc/beltway/beltway.toml
  beltway check -c site.toml --json
  beltway check -c site.toml --no-files  on a machine that doesn't have the directories

It exits with 78 when something is wrong.";

pub(super) fn command() -> Command {
    Command::new("check")
        .about("Say what is wrong with a configuration file")
        .after_help(EXAMPLES)
        .arg(super::config_arg())
        .arg(super::json_arg())
        .arg(super::no_files_arg())
        .args(flags::args(&TABLES))
}

pub(super) fn main(matches: &ArgMatches) -> ExitCode {
    let file = super::config_file(matches);
    let name = file.display().to_string();
    let settings = flags::settings(matches, &TABLES);
    let check_files = !super::given(matches, "no-files");
    let json = super::given(matches, "json");
    match config::load(&super::input(Some(file), settings, check_files)) {
        Ok(loaded) if json => {
            super::say(&format!("{:#}\n", summary_json(&loaded.model)));
            ExitCode::SUCCESS
        }
        Ok(loaded) => {
            super::say(&summary(&name, &loaded.model));
            ExitCode::SUCCESS
        }
        Err(diagnostics) if json => {
            let report = serde_json::json!({ "ok": false, "errors": diagnostics.to_json() });
            super::say(&format!("{report:#}\n"));
            ExitCode::from(super::exit::CONFIG)
        }
        Err(diagnostics) => super::bad_config(&diagnostics),
    }
}

/// `ok` and what the configuration is made of.
fn summary(name: &str, model: &Model) -> String {
    let routes: usize = model.sites.iter().map(|site| site.router.len()).sum();
    let mut text = format!(
        "ok: {name}: {}, {}, {}\n",
        count(model.sites.len(), "site"),
        count(model.listeners.len(), "listener"),
        count(routes, "route"),
    );
    for listener in &model.listeners {
        let mut sites: Vec<&str> = listener
            .sites
            .iter()
            .map(|site| &*model.sites[*site].name)
            .collect();
        sites.dedup();
        let tls = if listener.tls.is_some() { " (TLS)" } else { "" };
        let _ = writeln!(text, "  {}{tls}: {}", listener.address, sites.join(", "));
    }
    for warning in warnings(model, clock::unix_s()) {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

/// What is right and deserves a word: a server says it in its log.
fn warnings(model: &Model, now_s: i64) -> Vec<String> {
    let mut warnings = model.warnings.clone();
    let sites = model.sites.iter().filter_map(|site| site.tls.as_ref());
    for certificate in sites.flat_map(|tls| &tls.certificates) {
        if let CertificateId::Files {
            certificate: file, ..
        } = &certificate.id
            && let Some(identity) = &certificate.identity
            && let Some(news) = expiry::news(identity.validity(), now_s)
        {
            let warning = format!("the certificate {} {news}: renew it", file.display());
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
    }
    warnings
}

fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn summary_json(model: &Model) -> serde_json::Value {
    let sites: Vec<_> = model
        .sites
        .iter()
        .map(|site| serde_json::json!({ "name": &*site.name, "routes": site.router.len() }))
        .collect();
    let listeners: Vec<_> = model
        .listeners
        .iter()
        .map(|listener| listener.address.to_string())
        .collect();
    let warnings = warnings(model, clock::unix_s());
    serde_json::json!({
        "ok": true, "sites": sites, "listeners": listeners, "warnings": warnings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sources::{Input, Setting};

    #[test]
    fn the_summary_names_listeners_and_their_sites() {
        let set = |text: &str| Setting::Set(text.into());
        let input = Input {
            settings: vec![
                set("site.'a.example'.respond=200"),
                set("site.'b.example'.respond=200"),
                set("site.'b.example'.routes.'/x'={ respond = 404 }"),
                set("site.'b.example'.listen=['127.0.0.1:80']"),
                set("site.'a.example'.listen=['127.0.0.1:80', 'unix:/a']"),
            ],
            directory: "/".into(),
            ..Input::default()
        };
        let model = config::load(&input).expect("it is right").model;
        insta::assert_snapshot!(summary("beltway.toml", &model), @r#"
        ok: beltway.toml: 2 sites, 2 listeners, 1 route
          127.0.0.1:80: a.example, b.example
          unix:/a: a.example
        "#);
        assert_eq!(summary_json(&model)["sites"][1]["routes"], 1);
    }
}
