//! Reads single values of the tree: each method checks one type and says what is wrong with it.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::diagnostics::{At, Diagnostic, Diagnostics, SourceKind};
use crate::config::lower::Outside;
use crate::config::lower::upstream::Upstreams;
use crate::config::model::StatusSet;
use crate::config::nearest::nearest;
use crate::config::raw::{Entry, Item, Table, Value};
use crate::config::references::{self, References, Unfilled};
use crate::config::schema::Section;
use crate::config::sources::{read_text, why};
use crate::config::units;
use crate::http::router::PatternError;
use crate::http::types::Status;

/// What is common to the reading of every table.
pub(super) struct Reader<'a> {
    pub(super) diagnostics: &'a mut Diagnostics,
    /// The world outside of the sources.
    pub(super) outside: Outside<'a>,
    /// What was referred to, and what it stands for.
    pub(super) references: References,
    /// The upstreams so far.
    pub(super) upstreams: Upstreams,
    /// What deserves attention.
    pub(super) warnings: Vec<String>,
    /// What all files of bodies may take together.
    pub(super) spill_total: u64,
}

/// The value of a key that is true, false or a table.
pub(super) enum Toggle<'t> {
    /// true.
    On,
    /// false.
    Off,
    /// A table, which is on.
    Table(&'t Table),
}

impl Reader<'_> {
    /// Reports every key that the table doesn't have.
    pub(super) fn unknown_keys(&mut self, table: &Table, section: Section) {
        for entry in &table.entries {
            if section.key(&entry.key).is_none() {
                self.unknown_key(entry, section);
            }
        }
    }

    fn unknown_key(&mut self, entry: &Entry, section: Section) {
        let name = entry.key.as_str();
        let near = nearest(name, section.keys().map(|key| key.name));
        let elsewhere = Section::ALL
            .into_iter()
            .find(|other| other.key(name).is_some());
        let help = match (near, elsewhere) {
            (_, Some(other)) => format!("`{name}` belongs {}", other.place()),
            (Some(near), None) => format!("did you mean `{near}`?"),
            (None, None) => {
                let names: Vec<_> = section.keys().map(|key| key.name).collect();
                format!("the keys are {}", names.join(", "))
            }
        };
        self.diagnostics.push(
            Diagnostic::new(
                entry.key_at,
                format!("there is no key `{name}` {}", section.place()),
                "unknown key",
            )
            .help(help),
        );
    }

    /// Reports a value of the wrong type or out of range.
    pub(super) fn wrong(&mut self, section: Section, entry: &Entry, item: &Item) {
        let name = &entry.key;
        let Some(key) = section.key(name) else { return };
        // The type may be right and the value not: a name among others, a number out of range.
        let right_type = match &item.value {
            Value::String(_) => key.example.starts_with('"') || key.takes.contains('"'),
            Value::Integer(_) => key.example.starts_with(|c: char| c.is_ascii_digit()),
            _ => false,
        };
        let label = if right_type {
            "not this".to_owned()
        } else {
            format!("this is {}", item.value.kind())
        };
        self.diagnostics.push(
            Diagnostic::new(item.at, format!("`{name}` needs {}", key.takes), label)
                .help(format!("write it such as {name} = {}", key.example)),
        );
    }

    /// The table under a key, if there is one.
    pub(super) fn table<'t>(
        &mut self,
        table: &'t Table,
        section: Section,
        name: &str,
    ) -> Option<&'t Table> {
        let entry = table.get(name)?;
        match &entry.item.value {
            Value::Table(inner) => Some(inner),
            _ => {
                self.wrong(section, entry, &entry.item);
                None
            }
        }
    }

    /// true or false.
    pub(super) fn boolean(&mut self, table: &Table, section: Section, name: &str) -> Option<bool> {
        let entry = table.get(name)?;
        match entry.item.value {
            Value::Boolean(value) => Some(value),
            _ => {
                self.wrong(section, entry, &entry.item);
                None
            }
        }
    }

    /// true, false or a table; true only where the key says that it takes it.
    pub(super) fn toggle<'t>(
        &mut self,
        table: &'t Table,
        section: Section,
        name: &str,
    ) -> Option<Toggle<'t>> {
        let entry = table.get(name)?;
        let takes = section.key(name).map_or("", |key| key.takes);
        match &entry.item.value {
            Value::Boolean(false) => Some(Toggle::Off),
            Value::Boolean(true) if takes.contains("true") => Some(Toggle::On),
            Value::Table(inner) => Some(Toggle::Table(inner)),
            _ => {
                self.wrong(section, entry, &entry.item);
                None
            }
        }
    }

    /// An integer in a range, or false: `Some(None)`.
    pub(super) fn number_or_false(
        &mut self,
        table: &Table,
        section: Section,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Option<Option<u64>> {
        match table.get(name)?.item.value {
            Value::Boolean(false) => Some(None),
            _ => self.integer(table, section, name, range).map(Some),
        }
    }

    /// A duration from `at_least`, or false: `Some(None)`.
    pub(super) fn duration_or_false(
        &mut self,
        table: &Table,
        section: Section,
        name: &str,
        at_least: Duration,
    ) -> Option<Option<Duration>> {
        match table.get(name)?.item.value {
            Value::Boolean(false) => Some(None),
            _ => self.duration(table, section, name, at_least).map(Some),
        }
    }

    /// A string.
    pub(super) fn text(&mut self, table: &Table, section: Section, name: &str) -> Option<String> {
        let entry = table.get(name)?;
        self.string_of(section, entry, &entry.item)
    }

    /// A list of statuses: `404`, `"4xx"`, `"502-504"`, within bounds.
    pub(super) fn statuses(
        &mut self,
        table: &Table,
        section: Section,
        name: &str,
        bounds: RangeInclusive<u16>,
    ) -> Option<StatusSet> {
        let entry = table.get(name)?;
        let Value::Array(items) = &entry.item.value else {
            self.wrong(section, entry, &entry.item);
            return None;
        };
        let mut ranges = Vec::with_capacity(items.len());
        for item in items {
            let range = match &item.value {
                Value::Integer(number) => u16::try_from(*number).ok().map(|n| (n, n)),
                Value::String(text) => status_range(&self.filled(item.at, text)?),
                _ => None,
            };
            match range {
                Some((first, last))
                    if bounds.contains(&first) && bounds.contains(&last) && first <= last =>
                {
                    ranges.push((Status(first), Status(last)));
                }
                _ => {
                    let (first, last) = (bounds.start(), bounds.end());
                    let message = format!("`{name}` has something that is no status");
                    self.diagnostics
                        .push(Diagnostic::new(item.at, message, "").help(format!(
                            "write a number from {first} to {last}, a class such as \"{}xx\", or a \
                         range such as \"502-504\"",
                            last / 100
                        )));
                }
            }
        }
        Some(StatusSet::new(ranges))
    }

    /// An integer in a range.
    pub(super) fn integer(
        &mut self,
        table: &Table,
        section: Section,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let entry = table.get(name)?;
        if let Value::Integer(value) = entry.item.value
            && let Ok(value) = u64::try_from(value)
            && range.contains(&value)
        {
            return Some(value);
        }
        self.wrong(section, entry, &entry.item);
        None
    }

    /// One of some words.
    pub(super) fn word<T: Copy>(
        &mut self,
        table: &Table,
        section: Section,
        name: &str,
        words: &[(&str, T)],
    ) -> Option<T> {
        let entry = table.get(name)?;
        let written = self.string_of(section, entry, &entry.item)?;
        let known = words.iter().find(|(word, _)| *word == written);
        if known.is_none() {
            let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.unknown_word(entry, &written, &names);
        }
        known.map(|(_, value)| *value)
    }

    /// Reports a text that is none of the words that a key takes.
    pub(super) fn unknown_word(&mut self, entry: &Entry, written: &str, words: &[&str]) {
        let list: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
        let help = match nearest(written, words.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("the values are {}", list.join(", ")),
        };
        let message = format!("`{}` can't be \"{written}\"", entry.key);
        self.diagnostics
            .push(Diagnostic::new(entry.item.at, message, "unknown value").help(help));
    }

    /// A duration from `at_least`.
    pub(super) fn duration(
        &mut self,
        table: &Table,
        section: Section,
        name: &str,
        at_least: Duration,
    ) -> Option<Duration> {
        let entry = table.get(name)?;
        let text = self.unit_text(section, entry)?;
        let value = self.unit(entry, units::duration(&text))?;
        if value < at_least {
            self.out_of_range(entry, &format!("at least \"{}ms\"", at_least.as_millis()));
            return None;
        }
        Some(value)
    }

    /// A size in a range.
    pub(super) fn size(
        &mut self,
        table: &Table,
        section: Section,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let entry = table.get(name)?;
        let text = self.unit_text(section, entry)?;
        let value = self.unit(entry, units::size(&text))?;
        if !range.contains(&value) {
            let (first, last) = (range.start(), range.end());
            let bounds = match *last {
                u64::MAX => format!("at least \"{}\"", units::write_size(*first)),
                last => format!(
                    "from \"{}\" to \"{}\"",
                    units::write_size(*first),
                    units::write_size(last)
                ),
            };
            self.out_of_range(entry, &bounds);
            return None;
        }
        Some(value)
    }

    /// Reports a value that is out of its bounds.
    pub(super) fn out_of_range(&mut self, entry: &Entry, bounds: &str) {
        let message = format!("`{}` is out of range", entry.key);
        self.diagnostics.push(
            Diagnostic::new(entry.item.at, message, "out of range")
                .help(format!("it has to be {bounds}")),
        );
    }

    /// The text of a duration or a size.
    fn unit_text(&mut self, section: Section, entry: &Entry) -> Option<String> {
        let kind = self.diagnostics.sources.get(entry.item.at).kind;
        match &entry.item.value {
            // Flags and variables have no quotes: a number there is a text without a unit, and is
            // told so.
            Value::Integer(number) if kind != SourceKind::File => Some(number.to_string()),
            _ => self.string_of(section, entry, &entry.item),
        }
    }

    fn unit<T>(&mut self, entry: &Entry, result: Result<T, units::UnitError>) -> Option<T> {
        result
            .map_err(|error| {
                let message = format!("`{}`: {}", entry.key, error.message);
                self.diagnostics
                    .push(Diagnostic::new(entry.item.at, message, "").help(error.help));
            })
            .ok()
    }

    /// The string of an item that belongs to an entry, `${…}` filled in.
    pub(super) fn string_of(
        &mut self,
        section: Section,
        entry: &Entry,
        item: &Item,
    ) -> Option<String> {
        match &item.value {
            Value::String(text) => self.filled(item.at, text),
            _ => {
                self.wrong(section, entry, item);
                None
            }
        }
    }

    /// A list of strings with their items.
    pub(super) fn strings<'t>(
        &mut self,
        table: &'t Table,
        section: Section,
        name: &str,
    ) -> Option<Vec<(String, &'t Item)>> {
        let entry = table.get(name)?;
        let Value::Array(items) = &entry.item.value else {
            self.wrong(section, entry, &entry.item);
            return None;
        };
        Some(
            items
                .iter()
                .filter_map(|item| Some((self.string_of(section, entry, item)?, item)))
                .collect(),
        )
    }

    /// A text that may be a secret: `file:NAME` stands for what is in the file, without the line
    /// end at its end; unless files are not checked, when it may be on another machine.
    pub(super) fn secret_of(&mut self, item: &Item, text: String) -> Option<String> {
        let Some(name) = text.strip_prefix("file:") else {
            return Some(text);
        };
        let path = self.path(item.at, name);
        let read = match self.outside {
            Outside::Machine {
                check_files: false, ..
            } => Ok(String::new()),
            Outside::Machine { .. } => read_text(&path).map(|mut text| {
                text.truncate(text.trim_end_matches(['\r', '\n']).len());
                text
            }),
            Outside::Known(known) => known.files.get(&path).cloned().ok_or_else(|| {
                let help = "the text of every file that is referred to has to come along";
                ("is not known here".to_owned(), help.to_owned())
            }),
        };
        match read {
            Ok(text) => {
                self.references.files.insert(path, text.clone());
                Some(text)
            }
            Err((message, help)) => {
                let message = format!("the file `{}` {message}", path.display());
                self.diagnostics
                    .push(Diagnostic::new(item.at, message, "").help(help));
                None
            }
        }
    }

    /// Fills `${NAME}` and `${NAME:-default}` in; `$${` is `${`.
    pub(super) fn filled(&mut self, at: At, text: &str) -> Option<String> {
        let environment = match self.outside {
            Outside::Machine { environment, .. } => environment,
            Outside::Known(known) => &known.variables,
        };
        let used = &mut self.references.variables;
        let result = references::fill(text, |name| {
            let value = environment.get(name)?;
            used.insert(name.to_owned(), value.clone());
            Some(value.clone())
        });
        let diagnostic = match result {
            Ok(filled) => return Some(filled),
            Err(Unfilled::NotClosed) => Diagnostic::new(at, "`${` is not closed", "")
                .help("write ${NAME} for a variable, or $${ for the characters ${"),
            Err(Unfilled::NotSet(name)) => {
                Diagnostic::new(at, format!("the variable `{name}` is not set"), "used here")
                    .help(format!("set it, or write ${{{name}:-default}}"))
            }
        };
        self.diagnostics.push(diagnostic);
        None
    }

    /// The absolute path of a name that is written at this place.
    pub(super) fn path(&self, at: At, name: &str) -> PathBuf {
        let path = self.diagnostics.sources.base(at).join(name);
        // `/srv/.` and `/srv//` would be other texts for the same directory.
        path.components().collect()
    }

    /// Whether directories and files that are named must exist.
    pub(super) fn checks_files(&self) -> bool {
        matches!(
            self.outside,
            Outside::Machine {
                check_files: true,
                ..
            }
        )
    }

    /// Reports a file or a directory that doesn't exist, unless files are not checked.
    pub(super) fn check_exists(&mut self, item: &Item, path: &Path) {
        if self.checks_files()
            && let Err(error) = std::fs::metadata(path)
        {
            let message = format!("`{}` {}", path.display(), why(&error));
            self.diagnostics
                .push(Diagnostic::new(item.at, message, "").help("create it, or take it away"));
        }
    }

    /// Reports a directory that can't be read, unless files are not checked.
    pub(super) fn check_directory(&mut self, item: &Item, what: &str, path: &Path) {
        if !self.checks_files() {
            return;
        }
        let error = match std::fs::read_dir(path) {
            Ok(_) => return,
            Err(error) => error,
        };
        let help = match error.kind() {
            std::io::ErrorKind::NotFound => match near_directory(path) {
                Some(near) => format!("did you mean `{}`?", near.display()),
                None => "create it, or name another one".to_owned(),
            },
            std::io::ErrorKind::NotADirectory => "name the directory that it is in".to_owned(),
            _ => "give the user that runs beltway the right to read it".to_owned(),
        };
        let message = match error.kind() {
            std::io::ErrorKind::NotADirectory => format!("`{}` {}", path.display(), why(&error)),
            _ => format!("the {what} `{}` {}", path.display(), why(&error)),
        };
        self.diagnostics
            .push(Diagnostic::new(item.at, message, "").help(help));
    }

    /// Reports what a pattern, a host or a template says about its text.
    pub(super) fn pattern_error(&mut self, at: At, text: &str, what: &str, error: &PatternError) {
        let at = self.inside(at, text, error.position);
        self.diagnostics.push(
            Diagnostic::new(at, format!("{what} `{text}`: {}", error.problem), "")
                .help(error.help.clone()),
        );
    }

    /// The place of a byte of a text that is written at `at`, up to the end of the text; all of `at`
    /// where what is written isn't the text itself between plain quotes.
    fn inside(&self, at: At, text: &str, position: usize) -> At {
        let source = self.diagnostics.sources.get(at);
        let written = source.text.get(at.range()).unwrap_or_default();
        let quote = usize::from(written.starts_with(['"', '\'']));
        let plain = written.get(quote..written.len().saturating_sub(quote)) == Some(text);
        match u32::try_from(quote + position) {
            Ok(offset) if plain && position > 0 && text.is_char_boundary(position) => {
                let start = at.start + offset;
                // Where something is missing at the end, the closing quote shows it.
                let end = (at.end - quote as u32).max(start + 1);
                At { start, end, ..at }
            }
            _ => at,
        }
    }
}

/// `4xx`, `404` or `502-504`.
fn status_range(text: &str) -> Option<(u16, u16)> {
    if let Some(class) = text.strip_suffix("xx") {
        let class: u16 = class.parse().ok()?;
        return Some((
            class.checked_mul(100)?,
            class.checked_mul(100)?.checked_add(99)?,
        ));
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
}

/// A directory beside a missing one whose name is nearly the same.
fn near_directory(path: &Path) -> Option<PathBuf> {
    let (parent, name) = (path.parent()?, path.file_name()?.to_str()?);
    let names: Vec<String> = std::fs::read_dir(parent)
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    nearest(name, names.iter().map(String::as_str)).map(|near| parent.join(near))
}
