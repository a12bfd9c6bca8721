//! `beltway cert list`: names, issuer, end and kind of certificates, in files or of a configuration.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};

use crate::certificates::expiry::Left;
use crate::certificates::{Authority, Places, files};
use crate::config;
use crate::config::model::{CertificateId, Model};
use crate::http::semantics::date;
use crate::supervisor::certificates::{Wanted, wanted};
use crate::supervisor::control::certificates::CertificateStatus;
use crate::supervisor::control::protocol::{self, Request};
use crate::supervisor::control::status::StatusReport;
use crate::util::clock;
use crate::util::x509::{self, Facts};

const EXAMPLES: &str = "\
Examples:
  beltway cert list                    those of beltway.toml, else of /etc/beltway/beltway.toml
  beltway cert list -c site.toml --json
  beltway cert list /etc/ssl/example.com/fullchain.pem
  beltway cert list *.pem && echo all are valid

It reads what is on the disk. If a server runs with the configuration it is asked, too: which certificates it
has made itself, and what authorities say of those that have `ocsp`. All that it has in use tells `beltway status`.
Of a file with a chain it tells the first, the server's own. The exit code is 1 when one has ended, isn't
valid yet or can't be read. Of files no key is read.";

/// Most names that are shown to people; programs get all.
const NAMES_SHOWN: usize = 4;

pub(super) fn command() -> Command {
    Command::new("list")
        .about("Say what certificates are for, and when they end")
        .after_help(EXAMPLES)
        .arg(
            Arg::new("files")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .action(ArgAction::Append)
                .num_args(1..)
                .conflicts_with("config")
                .help("Files with certificates in PEM, instead of those of a configuration"),
        )
        .arg(crate::cli::config_arg())
        .arg(crate::cli::control::control_arg().conflicts_with("files"))
        .arg(crate::cli::json_arg())
}

pub(super) fn main(matches: &ArgMatches) -> ExitCode {
    let rows: Vec<Row> = match matches.get_many::<PathBuf>("files") {
        Some(paths) => paths.map(|path| Row::of(path)).collect(),
        None => {
            let file = crate::cli::config_file(matches);
            match config::load(&crate::cli::input(Some(file), Vec::new(), true)) {
                Ok(loaded) => of_model(&loaded.model, &in_use(matches)),
                Err(diagnostics) => return crate::cli::bad_config(&diagnostics),
            }
        }
    };
    let now_s = clock::unix_s();
    crate::cli::say(&if crate::cli::given(matches, "json") {
        format!("{:#}\n", to_json(&rows, now_s))
    } else {
        to_text(&rows, now_s)
    });
    if rows.iter().all(|row| row.is_valid(now_s)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(crate::cli::exit::FAILED)
    }
}

/// A certificate, and where it comes from.
struct Row {
    /// `None` for one that the local authority signs.
    file: Option<PathBuf>,
    /// The sites that have it; none where no configuration is asked.
    sites: Vec<String>,
    /// What it is for, if it is made.
    names: Vec<String>,
    /// Of the server's own certificate, or of the authority that signs it; or why it can't be read.
    facts: Result<Option<Facts>, String>,
    /// What a server that runs says of it.
    in_use: Option<CertificateStatus>,
}

/// What a server that runs with this configuration says; none where there is none that answers.
fn in_use(matches: &ArgMatches) -> Vec<CertificateStatus> {
    let status = Request::new(protocol::Command::Status);
    let reply = crate::cli::control::ask(&status, matches).ok();
    let report = reply.and_then(|reply| serde_json::from_value::<StatusReport>(reply.data).ok());
    report.map_or_else(Vec::new, |report| report.certificates)
}

impl Row {
    fn of(path: &Path) -> Self {
        let first = |facts: Vec<Facts>| facts.into_iter().next().ok_or_else(String::new);
        Self {
            file: Some(path.to_owned()),
            sites: Vec::new(),
            names: Vec::new(),
            facts: files::facts(path).and_then(first).map(Some),
            in_use: None,
        }
    }

    /// One that is made when the server starts, and again in time.
    fn made(wanted: Wanted) -> Self {
        let authority = Authority::find(&Places::of_this_process());
        let facts = authority.map(|found| found.and_then(|found| x509::read(&found.der)));
        Self {
            file: None,
            sites: wanted.sites,
            names: wanted.names,
            facts: facts.map_err(|problem| problem.to_string()),
            in_use: None,
        }
    }

    fn is_valid(&self, now_s: i64) -> bool {
        match &self.facts {
            Ok(Some(facts)) => (facts.not_before..=facts.not_after).contains(&now_s),
            // The server makes the authority when it starts.
            Ok(None) => true,
            Err(_) => false,
        }
    }
}

/// Those of a configuration.
fn of_model(model: &Model, in_use: &[CertificateStatus]) -> Vec<Row> {
    let row = |wanted: Wanted| match &wanted.id {
        CertificateId::Made { .. } => Row::made(wanted),
        CertificateId::Files { certificate, .. } => Row {
            sites: wanted.sites,
            ..Row::of(certificate)
        },
    };
    let with = |row: Row| {
        let file = row.file.as_ref().map(|file| file.display().to_string());
        let is_it = |one: &&CertificateStatus| {
            one.sites == row.sites && one.file == *file.as_deref().unwrap_or_default()
        };
        let in_use = in_use.iter().find(is_it).cloned();
        Row { in_use, ..row }
    };
    wanted(model).into_iter().map(row).map(with).collect()
}

fn time(unix_s: i64) -> String {
    String::from_utf8_lossy(&date::rfc3339(unix_s)).into_owned()
}

/// What a certificate says is somebody else's text: nothing in it moves a cursor.
fn printable(text: &str) -> String {
    let shown = |character: char| {
        if character.is_control() {
            '\u{fffd}'
        } else {
            character
        }
    };
    text.chars().map(shown).collect()
}

fn to_text(rows: &[Row], now_s: i64) -> String {
    if rows.is_empty() {
        return "no certificate: no site is under TLS\n".to_owned();
    }
    let mut text = String::new();
    for row in rows {
        let _ = match &row.file {
            Some(file) => writeln!(text, "{}", file.display()),
            None => writeln!(text, "made by the server"),
        };
        let mut line = |name: &str, value: &str| {
            let _ = writeln!(text, "  {name:<8} {}", printable(value));
        };
        if !row.sites.is_empty() {
            line("sites", &row.sites.join(", "));
        }
        let facts = match &row.facts {
            Ok(facts) => facts.as_ref(),
            Err(why) => {
                line("wrong", why);
                continue;
            }
        };
        let Some(file) = facts.filter(|_| row.file.is_some()) else {
            let names = row.in_use.as_ref().map_or(&row.names, |leaf| &leaf.names);
            line("names", &some(names));
            let until = |facts: &Facts| {
                let left = state(facts, now_s);
                format!("{}, until {}, {left}", facts.subject, time(facts.not_after))
            };
            let none = || "the local authority, which the server makes at its start".to_owned();
            line("issuer", &facts.map_or_else(none, until));
            match &row.in_use {
                Some(leaf) => {
                    let left = Left(leaf.days_left.saturating_mul(86_400));
                    let until = format!("{}, {left} left, made anew in time", leaf.not_after);
                    line("until", &until);
                    line("key", &leaf.key);
                }
                None => line("until", "made at the start of the server, and anew in time"),
            }
            continue;
        };
        line("names", &some(&file.all_names()));
        line("issuer", &file.issuer);
        let until = format!("{}, {}", time(file.not_after), state(file, now_s));
        line("until", &until);
        line("key", &file.key.to_string());
        if let Some(ocsp) = row.in_use.as_ref().and_then(|one| one.ocsp.as_ref()) {
            line("ocsp", &ocsp.text());
        }
    }
    text
}

fn some(names: &[String]) -> String {
    let mut shown = names[..names.len().min(NAMES_SHOWN)].join(", ");
    if names.len() > NAMES_SHOWN {
        let _ = write!(shown, " and {} more", names.len() - NAMES_SHOWN);
    }
    shown
}

fn state(facts: &Facts, now_s: i64) -> String {
    let left = Left::until(facts.not_after, now_s);
    if now_s > facts.not_after {
        format!("ENDED {left}")
    } else if now_s < facts.not_before {
        format!("NOT VALID before {}", time(facts.not_before))
    } else {
        format!("{left} left")
    }
}

fn to_json(rows: &[Row], now_s: i64) -> Value {
    let one = |row: &Row| {
        let mut json = json!({
            "file": row.file.as_ref().map(|file| file.to_string_lossy()),
            "self_signed": row.file.is_none(),
            "sites": row.sites,
            "valid": row.is_valid(now_s),
        });
        let more = match (&row.facts, &row.file) {
            (Err(why), _) => json!({ "error": why }),
            (Ok(None), _) => json!({ "names": row.names }),
            (Ok(Some(authority)), None) => json!({
                "names": row.names,
                "issuer": authority.subject,
                "issuer_not_after": time(authority.not_after),
            }),
            (Ok(Some(facts)), Some(_)) => json!({
                "names": facts.all_names(),
                "issuer": facts.issuer,
                "not_before": time(facts.not_before),
                "not_after": time(facts.not_after),
                "days_left": Left::until(facts.not_after, now_s).days(),
                "key": facts.key.to_string(),
            }),
        };
        let in_use = match (&row.in_use, &row.file) {
            (None, _) => json!({}),
            (Some(one), Some(_)) => json!({ "ocsp": one.ocsp }),
            (Some(one), None) => json!({
                "names": one.names,
                "not_before": one.not_before,
                "not_after": one.not_after,
                "days_left": one.days_left,
                "key": one.key,
            }),
        };
        for more in [more, in_use] {
            if let (Some(json), Value::Object(more)) = (json.as_object_mut(), more) {
                json.extend(more);
            }
        }
        json
    };
    json!({ "certificates": rows.iter().map(one).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DAY: i64 = 86_400;

    fn row(names: &[&str]) -> (tempfile::TempDir, Row) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.pem");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(10 * 86_400);
        params.not_after = epoch + Duration::from_secs(100 * 86_400);
        let key = rcgen::KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap().pem();
        let chain = params
            .self_signed(&rcgen::KeyPair::generate().unwrap())
            .unwrap();
        std::fs::write(&path, format!("{own}{}", chain.pem())).unwrap();
        let mut row = Row::of(&path);
        row.file = Some("a.pem".into());
        (directory, row)
    }

    #[test]
    fn people_see_what_it_is_for_and_when_it_ends() {
        let (_directory, row) = row(&["a.example", "*.a.example", "b", "c", "d", "10.0.0.1"]);
        let rows = [row];
        insta::assert_snapshot!(to_text(&rows, 40 * DAY), @r"
        a.pem
          names    a.example, *.a.example, b, c and 2 more
          issuer   rcgen self signed cert
          until    1970-04-11T00:00:00Z, 60 days left
          key      ECDSA P-256
        ");
        assert!(to_text(&rows, 103 * DAY).contains("00Z, ENDED 3 days ago"));
        assert!(to_text(&rows, DAY).contains("NOT VALID before 1970-01-11T00:00:00Z"));
        let valid = [9, 10, 100, 101].map(|day| rows[0].is_valid(day * DAY));
        assert_eq!(valid, [false, true, true, false]);
    }

    #[test]
    fn programs_see_all_of_it() {
        let (_directory, row) = row(&["a.example", "::1"]);
        let broken = Row::of(Path::new("/nowhere/b.pem"));
        let json = to_json(&[row, broken], 98 * DAY + 1);
        let [one, other] = [&json["certificates"][0], &json["certificates"][1]];
        assert_eq!(one["names"], json!(["a.example", "::1"]));
        assert_eq!(
            (&one["days_left"], &one["valid"]),
            (&json!(1), &json!(true))
        );
        assert_eq!(one["not_after"], "1970-04-11T00:00:00Z");
        assert_eq!(other["valid"], false);
        assert!(
            other["error"]
                .as_str()
                .unwrap()
                .starts_with("can't be read: No such file")
        );
    }

    #[test]
    fn one_that_the_server_makes_has_the_authority_for_its_issuer() {
        let (_directory, of_file) = row(&["a.example"]);
        let made = |facts| Row {
            file: None,
            sites: vec!["b.example".into()],
            names: vec!["b.example".into(), "*.b.example".into()],
            facts: Ok(facts),
            in_use: None,
        };
        let rows = [made(of_file.facts.unwrap()), made(None)];
        insta::assert_snapshot!(to_text(&rows, 40 * DAY), @r"
        made by the server
          sites    b.example
          names    b.example, *.b.example
          issuer   rcgen self signed cert, until 1970-04-11T00:00:00Z, 60 days left
          until    made at the start of the server, and anew in time
        made by the server
          sites    b.example
          names    b.example, *.b.example
          issuer   the local authority, which the server makes at its start
          until    made at the start of the server, and anew in time
        ");
        let json = to_json(&rows, 40 * DAY);
        let one = &json["certificates"][0];
        assert_eq!(one["issuer_not_after"], "1970-04-11T00:00:00Z");
        assert_eq!((&one["file"], &one["valid"]), (&Value::Null, &json!(true)));
        assert!(to_text(&[], 0).contains("no certificate"));
        // Of a server that runs it is known which one.
        let leaf = CertificateStatus {
            names: vec!["b.example".into()],
            not_after: "1971-01-01T00:00:00Z".into(),
            days_left: 325,
            key: "ECDSA P-256".into(),
            self_signed: true,
            ..CertificateStatus::default()
        };
        let [mut with, _] = rows;
        with.in_use = Some(leaf);
        insta::assert_snapshot!(to_text(std::slice::from_ref(&with), 40 * DAY), @r"
        made by the server
          sites    b.example
          names    b.example
          issuer   rcgen self signed cert, until 1970-04-11T00:00:00Z, 60 days left
          until    1971-01-01T00:00:00Z, 325 days left, made anew in time
          key      ECDSA P-256
        ");
        let json = to_json(&[with], 40 * DAY);
        assert_eq!(json["certificates"][0]["days_left"], 325);
    }

    #[test]
    fn a_name_writes_nothing_but_itself() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
