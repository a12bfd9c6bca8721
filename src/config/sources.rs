//! Where settings come from: a file and what it includes, the environment, the command line; laid
//! over each other in this order, so that the nearer one wins.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::diagnostics::{At, Diagnostic, Diagnostics, Source, SourceKind};
use super::nearest::nearest;
use super::raw::{self, Entry, Item, Table, Value};
use super::{glob, schema};

/// Largest configuration file in bytes: `-c /dev/zero` has to end.
const FILE_SIZE_MAX: u64 = 16 << 20;

/// Most files of one configuration.
const FILE_COUNT_MAX: usize = 4096;

/// Beginning of the variables that set keys of `[server]`.
const VARIABLE_PREFIX: &str = "BELTWAY_";

/// Everything that a configuration is read from. It is data, so that a test needs neither the
/// environment nor the current directory of its process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Input {
    /// The configuration file as the user named it, if there is one.
    pub file: Option<PathBuf>,
    /// The content of `file` where it is known already; then nothing is read for it, and it can't
    /// include others.
    pub content: Option<String>,
    /// Flags of the command line and `--set`, the later winning.
    pub settings: Vec<Setting>,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// The current directory, absolute: relative names on the command line refer to it.
    pub directory: PathBuf,
    /// Whether directories and files that are named must exist.
    pub check_files: bool,
}

/// One setting of the command line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Setting {
    /// `--set KEY=VALUE`, the text behind `--set `.
    Set(String),
    /// A flag that stands for a key.
    Flag {
        /// The flag as it is shown in an error, such as `--drain=`.
        flag: String,
        /// The path of the key.
        path: Vec<String>,
        /// Its value.
        value: FlagValue,
    },
}

/// The value of a flag.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FlagValue {
    /// A string, whatever it looks like.
    Text(String),
    /// A number or a boolean if it looks like one, else a string.
    Loose(String),
    /// `--x` and `--no-x`.
    Boolean(bool),
    /// A flag that may be given several times.
    List(Vec<String>),
    /// A table of texts.
    Table(Vec<(String, String)>),
}

/// Reads every source and gives the merged tree; `None` when the file can't be read or a file is not
/// TOML, because then further errors would be consequences.
pub fn read(input: &Input, diagnostics: &mut Diagnostics) -> Option<Table> {
    let mut tree = Some(Table::default());
    if let Some(file) = &input.file {
        let mut files = Files {
            diagnostics,
            seen: Vec::new(),
            syntax: true,
        };
        let path = input.directory.join(file);
        let name = file.display().to_string();
        tree = match &input.content {
            Some(content) => Some(files.parse(&path, &name, content).0),
            None => files.read(&path, &name, None),
        };
        tree = tree.filter(|_| files.syntax);
    }
    let mut over = Table::default();
    for (name, value) in &input.environment {
        if let Some(table) = variable(name, value, &input.directory, diagnostics) {
            over.overlay(table);
        }
    }
    for setting in &input.settings {
        if let Some(table) = command_line(setting, &input.directory, diagnostics) {
            over.overlay(table);
        }
    }
    let unread = input
        .content
        .is_some()
        .then(|| tree.as_mut()?.take("include"));
    for entry in [over.take("include"), unread.flatten()]
        .into_iter()
        .flatten()
    {
        diagnostics.push(
            Diagnostic::new(entry.key_at, "`include` can't be set here", "")
                .help("write it at the top of a configuration file"),
        );
    }
    if let Some(tree) = &mut tree {
        tree.overlay(over);
    }
    tree
}

/// Reads a file and those it includes.
struct Files<'d> {
    diagnostics: &'d mut Diagnostics,
    /// Files that were read, and where each was included.
    seen: Vec<(PathBuf, Option<At>)>,
    /// Whether all of them are TOML.
    syntax: bool,
}

impl Files<'_> {
    fn read(&mut self, path: &Path, name: &str, included: Option<At>) -> Option<Table> {
        let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if let Some((_, first)) = self.seen.iter().find(|(seen, _)| *seen == canonical) {
            let mut diagnostic = problem(included, format!("`{name}` is included twice"))
                .help("include each file once; a file can't include itself");
            if let Some(first) = *first {
                diagnostic = diagnostic.with(first, "first included here");
            }
            self.diagnostics.push(diagnostic);
            return None;
        }
        if self.seen.len() >= FILE_COUNT_MAX {
            let message = format!("more than {FILE_COUNT_MAX} files are included");
            self.diagnostics.push(problem(included, message));
            return None;
        }
        self.seen.push((canonical, included));
        let text = match read_text(path) {
            Ok(text) => text,
            Err((message, help)) => {
                let message = format!("`{name}` {message}");
                let mut diagnostic = problem(included, message).help(help);
                if included.is_none() && !path.exists() {
                    diagnostic = diagnostic
                        .help(
                            "-c FILE names one; otherwise it is beltway.toml here, else \
                             /etc/beltway/beltway.toml",
                        )
                        .help("`beltway serve DIR` serves a directory without a configuration");
                }
                self.diagnostics.push(diagnostic);
                return None;
            }
        };
        let (mut table, base) = self.parse(path, name, &text);
        if let Some(include) = table.take("include") {
            for (pattern, at) in self.patterns(&include.item) {
                for path in self.expand(&base, &pattern, at) {
                    let shown = path.strip_prefix(&base).unwrap_or(&path);
                    let shown = Path::new(name)
                        .parent()
                        .unwrap_or(Path::new(""))
                        .join(shown);
                    if let Some(other) = self.read(&path, &shown.display().to_string(), Some(at)) {
                        table.include(other, self.diagnostics);
                    }
                }
            }
        }
        Some(table)
    }

    /// Parses a file; also gives the directory to which names in it refer.
    fn parse(&mut self, path: &Path, name: &str, text: &str) -> (Table, PathBuf) {
        let base = path.parent().unwrap_or(Path::new("/")).to_owned();
        let whole = self.diagnostics.sources.add(Source {
            kind: SourceKind::File,
            name: name.into(),
            text: text.to_owned(),
            base: base.clone(),
        });
        let errors_before = self.diagnostics.len();
        let table = raw::parse(text, whole, self.diagnostics);
        self.syntax &= self.diagnostics.len() == errors_before;
        (table, base)
    }

    fn patterns(&mut self, item: &Item) -> Vec<(String, At)> {
        let mut patterns = Vec::new();
        let items = match &item.value {
            Value::Array(items) => items.as_slice(),
            _ => std::slice::from_ref(item),
        };
        for item in items {
            match &item.value {
                Value::String(pattern) => patterns.push((pattern.clone(), item.at)),
                other => self.diagnostics.push(
                    Diagnostic::new(
                        item.at,
                        format!("`include` needs file names, not {}", other.kind()),
                        other.kind(),
                    )
                    .help("write it such as include = [\"sites/*.toml\"]"),
                ),
            }
        }
        patterns
    }

    fn expand(&mut self, base: &Path, pattern: &str, at: At) -> Vec<PathBuf> {
        match glob::expand(base, pattern) {
            Ok(paths) => paths,
            Err((directory, error)) => {
                self.diagnostics.push(
                    Diagnostic::new(
                        at,
                        format!("the directory `{}` {}", directory.display(), why(&error)),
                        "",
                    )
                    .help("file names are relative to the file that includes them"),
                );
                Vec::new()
            }
        }
    }
}

fn problem(at: Option<At>, message: String) -> Diagnostic {
    match at {
        Some(at) => Diagnostic::new(at, message, ""),
        None => Diagnostic::global(message),
    }
}

/// Reads a file of bounded size; the error is what is wrong and what to do.
pub(super) fn read_bytes(path: &Path, size_max: u64) -> Result<Vec<u8>, (String, String)> {
    let failed = |error: &std::io::Error| {
        let help = match error.kind() {
            std::io::ErrorKind::NotFound => "check its name".to_owned(),
            std::io::ErrorKind::PermissionDenied => {
                "give the user that starts beltway the right to read it".to_owned()
            }
            _ => format!("the system says: {error}"),
        };
        (why(error), help)
    };
    let file = std::fs::File::open(path).map_err(|error| failed(&error))?;
    let metadata = file.metadata().map_err(|error| failed(&error))?;
    if metadata.is_dir() {
        return Err(("is a directory".into(), "name a file in it".into()));
    }
    let mut bytes = Vec::new();
    file.take(size_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(&error))?;
    if bytes.len() as u64 > size_max {
        return Err((
            match size_max >> 20 {
                0 => format!("is larger than {} KiB", size_max >> 10),
                large => format!("is larger than {large} MiB"),
            },
            "check that it is the right file".into(),
        ));
    }
    Ok(bytes)
}

/// Reads a text file of bounded size; the error is what is wrong and what to do.
pub(super) fn read_text(path: &Path) -> Result<String, (String, String)> {
    let bytes = read_bytes(path, FILE_SIZE_MAX)?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..valid]
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        (
            format!("is not UTF-8 in line {line}"),
            "save it in the encoding UTF-8".into(),
        )
    })
}

/// What an error of the file system means, to follow the name of a file.
pub(super) fn why(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "doesn't exist".into(),
        std::io::ErrorKind::PermissionDenied => "can't be read: permission denied".into(),
        std::io::ErrorKind::NotADirectory => "is not a directory".into(),
        _ => format!("can't be read: {error}"),
    }
}

/// The setting of a variable; `None` for one that is not ours.
///
/// Kubernetes sets `BELTWAY_PORT`, `BELTWAY_SERVICE_HOST` and the like for a service of our name,
/// so that only what begins with `BELTWAY_SERVER_`, or is the name of a key without it, is ours.
fn variable(
    name: &str,
    value: &str,
    directory: &Path,
    diagnostics: &mut Diagnostics,
) -> Option<Table> {
    let short = name.strip_prefix(VARIABLE_PREFIX)?;
    let known = schema::environment_names().find(|(known, _)| known == short);
    let ours = short.starts_with("SERVER_") && !is_service_link(short);
    let meant = || {
        let names: Vec<String> = schema::environment_names().map(|(name, _)| name).collect();
        let with_table = format!("SERVER_{short}");
        let exact = names.iter().find(|name| **name == with_table);
        let near = || nearest(short, names.iter().map(String::as_str)).map(str::to_owned);
        exact.cloned().or_else(|| ours.then(near).flatten())
    };
    let text = format!("{name}={value}");
    let name_len = name.len() as u32;
    let mut add = || {
        diagnostics.sources.add(Source {
            kind: SourceKind::Environment,
            name: "the environment".into(),
            text: text.clone(),
            base: directory.to_owned(),
        })
    };
    if let Some((_, path)) = known {
        let whole = add();
        let key_at = At {
            end: name_len,
            ..whole
        };
        let value_at = At {
            start: name_len + 1,
            ..whole
        };
        let value = loose(value, value_at);
        return Some(Table::nested(&path, key_at, value, value_at));
    }
    let meant = meant();
    if ours || meant.is_some() {
        let whole = add();
        let at = At {
            end: name_len,
            ..whole
        };
        let diagnostic = Diagnostic::new(at, format!("`{name}` sets no key"), "unknown");
        diagnostics.push(match meant {
            Some(meant) => diagnostic.help(format!("did you mean `{VARIABLE_PREFIX}{meant}`?")),
            None => diagnostic
                .help("variables set keys of [server]: BELTWAY_SERVER_WORKERS sets server.workers"),
        });
    }
    None
}

/// Whether a variable is one that Kubernetes or Docker links make for a service that is called
/// `beltway-server`.
fn is_service_link(short: &str) -> bool {
    let rest = short.strip_prefix("SERVER_").unwrap_or(short);
    rest.starts_with("SERVICE_") || rest == "PORT" || rest.starts_with("PORT_")
}

/// A value that is a number or a boolean if it looks like one, else a string.
fn loose(text: &str, at: At) -> Value {
    match text {
        "true" => Value::Boolean(true),
        "false" => Value::Boolean(false),
        _ => match text.parse::<i64>() {
            Ok(number) => Value::Integer(number.into()),
            Err(_) => Value::String(text.into()),
        },
    }
    .placed(at)
}

fn command_line(
    setting: &Setting,
    directory: &Path,
    diagnostics: &mut Diagnostics,
) -> Option<Table> {
    let mut add = |text: String| {
        diagnostics.sources.add(Source {
            kind: SourceKind::CommandLine,
            name: "the command line".into(),
            text,
            base: directory.to_owned(),
        })
    };
    match setting {
        Setting::Flag { flag, path, value } => {
            let shown = match value {
                FlagValue::Text(text) | FlagValue::Loose(text) => text.clone(),
                FlagValue::Boolean(_) => String::new(),
                FlagValue::List(items) => items.join(" "),
                FlagValue::Table(entries) => {
                    let values: Vec<&str> = entries.iter().map(|(_, value)| &**value).collect();
                    values.join(",")
                }
            };
            let whole = add(format!("{flag}{shown}"));
            let start = match value {
                FlagValue::Boolean(_) => 0,
                _ => flag.len() as u32,
            };
            let at = At { start, ..whole };
            let value = match value {
                FlagValue::Text(text) => Value::String(text.clone()),
                FlagValue::Loose(text) => loose(text, at),
                FlagValue::Boolean(value) => Value::Boolean(*value),
                FlagValue::List(items) => list(items, at),
                FlagValue::Table(entries) => {
                    let entry = |(key, value): &(String, String)| Entry {
                        key: key.clone(),
                        key_at: at,
                        item: Item {
                            value: Value::String(value.clone()),
                            at,
                        },
                    };
                    Value::Table(Table {
                        entries: entries.iter().map(entry).collect(),
                    })
                }
            };
            Some(Table::nested(path, at, value, at))
        }
        Setting::Set(text) => {
            let whole = add(format!("{SET_PREFIX}{text}"));
            set(text, whole, diagnostics)
        }
    }
}

/// What `--set` is shown with in front of its text.
const SET_PREFIX: &str = "--set ";

/// Reads `KEY=VALUE` of `--set`; `whole` is the source that shows it.
fn set(text: &str, whole: At, diagnostics: &mut Diagnostics) -> Option<Table> {
    let offset = SET_PREFIX.len() as u32;
    let (path, key_len) = match dotted_key(text) {
        Ok(key) => key,
        Err(message) => {
            let at = At {
                start: offset,
                ..whole
            };
            diagnostics.push(Diagnostic::new(at, message, "").help(
                "write it such as --set server.workers=2 or --set 'site.\":8080\".list=true'",
            ));
            return None;
        }
    };
    let key_end = offset + key_len as u32;
    let key_at = At {
        start: offset,
        end: key_end,
        ..whole
    };
    let value_at = At {
        start: key_end + 1,
        ..whole
    };
    let written = text[key_len + 1..].trim();
    let value = match raw::parse_value(written, value_at) {
        // No key takes one, and `1.5` may be part of a name.
        Some(Value::Float(_) | Value::Datetime(_)) => Value::String(written.into()),
        Some(value) => value,
        None if written.starts_with(['[', '{', '"', '\'']) => {
            diagnostics.push(
                Diagnostic::new(value_at, "the value is not valid TOML", "")
                    .help("lists are written [\"a\", \"b\"], tables { a = 1 }"),
            );
            return None;
        }
        None => Value::String(written.into()),
    };
    Some(Table::nested(&path, key_at, value, value_at))
}

/// A list of strings, each where it stands in a flag that is shown with spaces between them.
fn list(items: &[String], at: At) -> Value {
    let mut start = at.start;
    Value::Array(
        items
            .iter()
            .map(|text| {
                let end = start + text.len() as u32;
                let at = At { start, end, ..at };
                start = end + 1;
                Item {
                    value: Value::String(text.clone()),
                    at,
                }
            })
            .collect(),
    )
}

/// The keys in front of `=`, and how many bytes they take. A part is bare or in quotes; a bare one
/// may hold anything but `.`, `=` and quotes, because shells take quotes away.
fn dotted_key(text: &str) -> Result<(Vec<String>, usize), &'static str> {
    let mut path = Vec::new();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        let (part, len) = match rest.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let end = rest[1..].find(quote).ok_or("a quote is not closed")?;
                (&rest[1..=end], end + 2)
            }
            _ => {
                let end = rest
                    .find(['.', '=', '"', '\''])
                    .ok_or("`=` and a value are missing")?;
                (&rest[..end], end)
            }
        };
        if part.trim().is_empty() {
            return Err("a part of the key is empty");
        }
        path.push(part.trim().to_owned());
        at += len;
        match text[at..].chars().next() {
            Some('.') => at += 1,
            Some('=') => return Ok((path, at)),
            Some(_) => return Err("a key is followed by neither `.` nor `=`"),
            None => return Err("`=` and a value are missing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_front_of_the_equals_sign() {
        let keys = |text| dotted_key(text).map(|(path, _)| path.join("|"));
        for (text, path) in [
            ("server.workers=2", "server|workers"),
            (r#"site."example.com".root=/a=b"#, "site|example.com|root"),
            ("site.':8080'.list=true", "site|:8080|list"),
            ("site.:8080.list=true", "site|:8080|list"),
        ] {
            assert_eq!(keys(text).as_deref(), Ok(path), "{text}");
        }
        for text in ["", "=", "a", "a.", "a.=1", "\"a=1", "\"a\"b=1", "a\"b\"=1"] {
            assert!(keys(text).is_err(), "{text}");
        }
    }

    #[test]
    fn variables_of_others_are_left_alone() {
        let mut diagnostics = Diagnostics::default();
        for name in [
            "PATH",
            "BELTWAY_PORT",
            "BELTWAY_SERVICE_HOST",
            "BELTWAY_PORT_8080_TCP",
            "BELTWAY_SERVER_SERVICE_PORT",
            "BELTWAY_SERVER_PORT_80_TCP_ADDR",
        ] {
            assert!(variable(name, "x", Path::new("/"), &mut diagnostics).is_none());
        }
        assert!(diagnostics.is_empty(), "{diagnostics:?}");
        for name in [
            "BELTWAY_SERVER_WROKERS",
            "BELTWAY_WORKERS",
            "BELTWAY_SERVER_X",
        ] {
            assert!(variable(name, "x", Path::new("/"), &mut diagnostics).is_none());
        }
        let help: Vec<_> = diagnostics.iter().map(|d| d.help[0].as_str()).collect();
        assert_eq!(
            help,
            [
                "did you mean `BELTWAY_SERVER_WORKERS`?",
                "did you mean `BELTWAY_SERVER_WORKERS`?",
                "variables set keys of [server]: BELTWAY_SERVER_WORKERS sets server.workers",
            ]
        );
    }
}
