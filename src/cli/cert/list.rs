//! `beltway cert list`: names, issuer, end and kind of certificates in files.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};

use crate::certificates::expiry::Left;
use crate::certificates::files;
use crate::http::semantics::date;
use crate::util::clock;
use crate::util::x509::Facts;

const EXAMPLES: &str = "\
Examples:
  beltway cert list /etc/ssl/example.com/fullchain.pem
  beltway cert list *.pem && echo all are valid

Of a file with a chain it tells the first, the server's own. The exit code is 1 when one has ended, isn't
valid yet or can't be read. No key is read.";

/// Most names that are shown to people; programs get all.
const NAMES_SHOWN: usize = 4;

pub(super) fn command() -> Command {
    Command::new("list")
        .about("Say what certificates in files are for, and when they end")
        .after_help(EXAMPLES)
        .arg(
            Arg::new("files")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .action(ArgAction::Append)
                .num_args(1..)
                .required(true)
                .help("Files with certificates in PEM"),
        )
        .arg(crate::cli::json_arg())
}

pub(super) fn main(matches: &ArgMatches) -> ExitCode {
    let paths = matches.get_many::<PathBuf>("files").unwrap_or_default();
    let rows: Vec<Row> = paths.map(|path| Row::of(path)).collect();
    let now_s = i64::try_from(clock::since_epoch().as_secs()).unwrap_or(i64::MAX);
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

/// A file, and what is in it.
struct Row {
    file: PathBuf,
    /// Of the server's own certificate, or why it can't be read.
    facts: Result<Facts, String>,
}

impl Row {
    fn of(path: &Path) -> Self {
        let first = |facts: Vec<Facts>| facts.into_iter().next().ok_or_else(String::new);
        Self {
            file: path.to_owned(),
            facts: files::facts(path).and_then(first),
        }
    }

    fn is_valid(&self, now_s: i64) -> bool {
        let valid = |facts: &Facts| (facts.not_before..=facts.not_after).contains(&now_s);
        self.facts.as_ref().is_ok_and(valid)
    }
}

/// DNS names, then addresses; the subject where there are none.
fn names(facts: &Facts) -> Vec<String> {
    let addresses = facts.addresses.iter().map(ToString::to_string);
    let mut names: Vec<String> = facts.names.iter().cloned().chain(addresses).collect();
    if names.is_empty() {
        names.push(facts.subject.clone());
    }
    names
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
    let mut text = String::new();
    for row in rows {
        let file = row.file.display();
        let facts = match &row.facts {
            Ok(facts) => facts,
            Err(why) => {
                let _ = writeln!(text, "{file}\n  wrong    {why}");
                continue;
            }
        };
        let names = names(facts);
        let mut shown = names[..names.len().min(NAMES_SHOWN)].join(", ");
        if names.len() > NAMES_SHOWN {
            let _ = write!(shown, " and {} more", names.len() - NAMES_SHOWN);
        }
        let left = Left::until(facts.not_after, now_s);
        let state = if now_s > facts.not_after {
            format!("ENDED {left}")
        } else if now_s < facts.not_before {
            format!("NOT VALID before {}", time(facts.not_before))
        } else {
            format!("{left} left")
        };
        let end = time(facts.not_after);
        let (shown, issuer) = (printable(&shown), printable(&facts.issuer));
        let _ = writeln!(
            text,
            "{file}\n  names    {shown}\n  issuer   {issuer}\n  until    {end}, {state}\n  key      {}",
            facts.key
        );
    }
    text
}

fn to_json(rows: &[Row], now_s: i64) -> Value {
    let one = |row: &Row| match &row.facts {
        Err(why) => json!({ "file": row.file.to_string_lossy(), "valid": false, "error": why }),
        Ok(facts) => json!({
            "file": row.file.to_string_lossy(),
            "valid": row.is_valid(now_s),
            "names": names(facts),
            "issuer": facts.issuer,
            "not_before": time(facts.not_before),
            "not_after": time(facts.not_after),
            "days_left": Left::until(facts.not_after, now_s).days(),
            "key": facts.key.to_string(),
        }),
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
        row.file = "a.pem".into();
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
    fn a_name_writes_nothing_but_itself() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
