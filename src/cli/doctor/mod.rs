//! `beltway doctor`: what this machine gives and what it lacks, and the exact command that mends it.
//!
//! [`facts`] asks the machine, [`findings`], [`queues`] and [`upstreams`] judge and are pure.

mod facts;
mod findings;
mod queues;
mod upstreams;

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};

use self::facts::Facts;
use self::findings::{Finding, Level};
use crate::config;
use crate::supervisor::control::protocol::{self, Reply, Request};
use crate::upstream::source::is_foreign;

const EXAMPLES: &str = "\
Examples:
  beltway doctor                       the kernel, its limits and settings, as this user has them
  sudo beltway doctor                  and as a server that root starts has them
  beltway doctor -c site.toml          and the server that runs with site.toml, and what its
                                       backends ask of the machine
  beltway doctor --worker              let its worker try what its sandbox must refuse

Nothing is changed. It exits with 1 when something is bad; a warning is no failure.";

/// Longest line of text, in characters.
const WIDTH: usize = 96;

/// Columns before the text of a finding.
const INDENT: usize = 20;

pub(super) fn command() -> Command {
    Command::new("doctor")
        .about("Say what this machine lacks, and the command that mends it")
        .after_help(EXAMPLES)
        .arg(super::config_arg())
        .arg(super::control::control_arg())
        .arg(super::json_arg())
        .arg(
            Arg::new("worker")
                .long("worker")
                .action(ArgAction::SetTrue)
                .help("Ask the running worker to try what its sandbox forbids"),
        )
}

pub(super) fn main(matches: &ArgMatches) -> ExitCode {
    let json = super::given(matches, "json");
    if super::given(matches, "worker") {
        return worker(matches, json);
    }
    let facts = Facts::gather();
    let mut findings = findings::judge(&facts);
    if matches.contains_id("config") {
        let file = super::config_file(matches);
        // What is wrong with the file is for `beltway check` to say.
        if let Ok(loaded) = config::load(&super::input(Some(file), Vec::new(), false)) {
            findings.extend(upstreams::judge(&loaded.model, &facts, is_foreign));
        }
    }
    if matches.contains_id("config") || matches.contains_id("control") {
        let status = super::control::ask(&Request::new(protocol::Command::Status), matches);
        findings.push(findings::server(status.as_ref().map_err(|text| &**text)));
    }
    super::say(&if json {
        format!("{:#}\n", to_json(&findings))
    } else {
        to_text(&findings)
    });
    if is_well(&findings) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(super::exit::FAILED)
    }
}

/// Lets the running worker try, and prints what came of it.
fn worker(matches: &ArgMatches, json: bool) -> ExitCode {
    let reply = super::control::ask(&Request::new(protocol::Command::Probe), matches);
    let reply = reply.unwrap_or_else(|text| Reply::failed(super::exit::FAILED, text));
    if json {
        let report = serde_json::json!({
            "ok": reply.exit == 0,
            "text": reply.text.trim_end(),
            "attempts": reply.data,
        });
        super::say(&format!("{report:#}\n"));
    } else if reply.exit == 0 {
        super::say(&reply.text);
    } else {
        super::complain(&reply.text);
    }
    ExitCode::from(reply.exit)
}

fn is_well(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.level != Level::Bad)
}

fn to_json(findings: &[Finding]) -> serde_json::Value {
    serde_json::json!({ "ok": is_well(findings), "findings": findings })
}

/// A line for each finding, and one for each command that mends it.
fn to_text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let level = finding.level.name();
        let lines = wrap(&finding.text);
        for (index, line) in lines.iter().enumerate() {
            let _ = if index == 0 {
                writeln!(text, "{level:<5} {:<13} {line}", finding.name)
            } else {
                writeln!(text, "{:INDENT$}{line}", "")
            };
        }
        for mend in &finding.mend {
            let _ = writeln!(text, "{:INDENT$}> {mend}", "");
        }
    }
    let count = |level| {
        findings
            .iter()
            .filter(|finding| finding.level == level)
            .count()
    };
    let _ = writeln!(
        text,
        "\n{} ok, {} to look at, {} bad",
        count(Level::Ok),
        count(Level::Warn),
        count(Level::Bad)
    );
    text
}

/// Breaks a text between words, so that commands alone are long.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always one");
        if line.is_empty() {
            line.push_str(word);
        } else if INDENT + line.chars().count() + 1 + word.chars().count() <= WIDTH {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(level: Level, mend: &[&str]) -> Finding {
        Finding {
            name: "somaxconn",
            level,
            text:
                "at most 128 connections wait to be accepted, and a burst of more is dropped and \
                   tried again a second later"
                    .to_owned(),
            mend: mend.iter().map(|it| (*it).to_owned()).collect(),
        }
    }

    #[test]
    fn findings_are_lines_with_their_commands() {
        let mend = ["sudo sysctl -w net.core.somaxconn=4096"];
        insta::assert_snapshot!(to_text(&[finding(Level::Warn, &mend)]), @r"
        warn  somaxconn     at most 128 connections wait to be accepted, and a burst of more is dropped
                            and tried again a second later
                            > sudo sysctl -w net.core.somaxconn=4096

        0 ok, 1 to look at, 0 bad
        ");
    }

    #[test]
    fn only_what_is_bad_fails() {
        assert!(is_well(&[
            finding(Level::Ok, &[]),
            finding(Level::Warn, &[])
        ]));
        let findings = [finding(Level::Bad, &["mend it"])];
        assert!(!is_well(&findings));
        let json = to_json(&findings);
        assert_eq!(json["ok"], false);
        assert_eq!(json["findings"][0]["level"], "bad");
        assert_eq!(json["findings"][0]["mend"][0], "mend it");
    }
}
