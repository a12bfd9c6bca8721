//! The configuration as it is written: a tree of values, each with its place.
//!
//! It is walked by hand (`lower`) and not derived with serde: serde stops at the first error, and
//! loses the positions as soon as several sources are merged. Here an override keeps the place it
//! came from, so that an error in `--set` names `--set`, and everything wrong is found in one run.

use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{At, Diagnostic, Diagnostics};

/// A value and where it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Item {
    /// The value.
    pub value: Value,
    /// Where.
    pub at: At,
}

/// A value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Value {
    /// A string, before `${…}` is filled in.
    String(String),
    /// An integer. Wider than TOML's, so that one out of range is told as such.
    Integer(i128),
    /// A float, as written. No key takes one.
    Float(String),
    /// A boolean.
    Boolean(bool),
    /// A date or a time, as written. No key takes one.
    Datetime(String),
    /// A list.
    Array(Vec<Item>),
    /// A table.
    Table(Table),
}

impl Value {
    /// The value, with every place inside it set to `at`: positions inside a flag's value would not
    /// fit the text that is shown.
    #[must_use]
    pub fn placed(self, at: At) -> Self {
        let mut item = Item { value: self, at };
        place_all(&mut item, at);
        item.value
    }

    /// The kind of value, as an error names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Datetime(_) => "a date",
            Self::Array(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// A table, its entries in the order in which they are written. Keys are unique.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Table {
    /// The entries.
    pub entries: Vec<Entry>,
}

/// One key and its value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key is written.
    pub key_at: At,
    /// The value.
    pub item: Item,
}

impl Table {
    /// The entry of a key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// Takes the entry of a key away.
    pub fn take(&mut self, key: &str) -> Option<Entry> {
        let position = self.entries.iter().position(|entry| entry.key == key)?;
        Some(self.entries.remove(position))
    }

    /// Lays another table over this one: its values win, tables are merged.
    pub fn overlay(&mut self, over: Table) {
        for entry in over.entries {
            let known = self.entries.iter_mut().find(|e| e.key == entry.key);
            match known {
                Some(known) => match (&mut known.item.value, entry.item.value) {
                    (Value::Table(below), Value::Table(above)) => below.overlay(above),
                    (below, above) => {
                        *below = above;
                        known.item.at = entry.item.at;
                        known.key_at = entry.key_at;
                    }
                },
                None => self.entries.push(entry),
            }
        }
    }

    /// Adds the content of an included file. The tables of `[server]` and the list of sites are
    /// merged; anything else that stands in both is an error that shows both places.
    pub fn include(&mut self, other: Table, diagnostics: &mut Diagnostics) {
        self.include_at(other, 0, true, diagnostics);
    }

    fn include_at(
        &mut self,
        other: Table,
        depth: usize,
        server: bool,
        diagnostics: &mut Diagnostics,
    ) {
        for entry in other.entries {
            let Some(known) = self.entries.iter_mut().find(|e| e.key == entry.key) else {
                self.entries.push(entry);
                continue;
            };
            let server = server && (depth > 0 || entry.key == "server");
            let merged = server || (depth == 0 && entry.key == "site");
            match (&mut known.item.value, entry.item.value) {
                (Value::Table(below), Value::Table(above)) if merged => {
                    below.include_at(above, depth + 1, server, diagnostics);
                }
                _ => diagnostics.push(
                    Diagnostic::new(
                        entry.key_at,
                        format!("`{}` is set in two files", entry.key),
                        "set here again",
                    )
                    .with(known.key_at, "first set here")
                    .help("take one of them away: an included file adds, it doesn't override"),
                ),
            }
        }
    }

    /// The table that holds a value under this path of keys, which all have one place.
    pub fn nested(path: &[String], key_at: At, value: Value, value_at: At) -> Table {
        let mut value = Some(Item {
            value,
            at: value_at,
        });
        let mut table = Table::default();
        for key in path.iter().rev() {
            let item = value.take().unwrap_or_else(|| Item {
                value: Value::Table(std::mem::take(&mut table)),
                at: key_at,
            });
            table.entries.push(Entry {
                key: key.clone(),
                key_at,
                item,
            });
        }
        table
    }
}

/// Parses the text of the source that `whole` covers. Every syntax error goes to `diagnostics`;
/// what could be read is returned all the same.
pub fn parse(text: &str, whole: At, diagnostics: &mut Diagnostics) -> Table {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let range = error.span().unwrap_or(0..0);
        let at = position(&range, whole);
        let mut lines = error.message().lines();
        let message = lines.next().unwrap_or("the syntax is not TOML");
        let mut diagnostic = Diagnostic::new(at, format!("syntax error: {message}"), "");
        for line in lines {
            diagnostic = diagnostic.help(line.trim());
        }
        diagnostics.push(diagnostic);
    }
    convert_table(table.get_ref(), whole)
}

/// Parses one value, such as stands behind `--set key=`. `None` when it isn't TOML.
pub fn parse_value(text: &str, at: At) -> Option<Value> {
    let value = DeValue::parse(text).ok()?;
    Some(convert(&value, at).value.placed(at))
}

fn place_all(item: &mut Item, at: At) {
    item.at = at;
    match &mut item.value {
        Value::Array(items) => items.iter_mut().for_each(|item| place_all(item, at)),
        Value::Table(table) => {
            for entry in &mut table.entries {
                entry.key_at = at;
                place_all(&mut entry.item, at);
            }
        }
        _ => {}
    }
}

fn position(range: &std::ops::Range<usize>, whole: At) -> At {
    let offset = |n: usize| whole.start + u32::try_from(n).unwrap_or(u32::MAX - whole.start);
    At {
        source: whole.source,
        start: offset(range.start),
        end: offset(range.end),
    }
}

fn convert_table(table: &DeTable<'_>, whole: At) -> Table {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            key_at: position(&key.span(), whole),
            item: convert(value, whole),
        })
        .collect();
    entries.sort_by_key(|entry| entry.key_at.start);
    Table { entries }
}

fn convert(value: &Spanned<DeValue<'_>>, whole: At) -> Item {
    let at = position(&value.span(), whole);
    let value = match value.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => Value::Integer(
            i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(i128::MAX),
        ),
        DeValue::Float(number) => Value::Float(number.as_str().to_owned()),
        DeValue::Boolean(boolean) => Value::Boolean(*boolean),
        DeValue::Datetime(date) => Value::Datetime(date.to_string()),
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| convert(item, whole)).collect())
        }
        DeValue::Table(table) => Value::Table(convert_table(table, whole)),
    };
    Item { value, at }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(source: u32) -> At {
        At {
            source,
            start: 0,
            end: 0,
        }
    }

    fn read(text: &str, source: u32) -> Table {
        let mut diagnostics = Diagnostics::default();
        let table = parse(text, at(source), &mut diagnostics);
        assert!(diagnostics.is_empty(), "{diagnostics:?}");
        table
    }

    fn value<'t>(table: &'t Table, path: &[&str]) -> &'t Item {
        let (first, rest) = path.split_first().expect("a path has a key");
        let item = &table.get(first).expect("the key is there").item;
        match &item.value {
            Value::Table(inner) if !rest.is_empty() => value(inner, rest),
            _ => item,
        }
    }

    #[test]
    fn keeps_places_and_the_order_of_the_file() {
        let table = read("zebra = 1\napple = \"x\"\n[t]\nb = [true]\n", 0);
        let keys: Vec<_> = table.entries.iter().map(|e| e.key.as_str()).collect();
        assert_eq!(keys, ["zebra", "apple", "t"]);
        assert_eq!(value(&table, &["apple"]).at.range(), 18..21);
        assert!(matches!(&value(&table, &["t", "b"]).value, Value::Array(a) if a.len() == 1));
    }

    #[test]
    fn what_lies_over_wins_and_keeps_its_place() {
        let mut table = read("[server]\nworkers = 1\nengine = \"auto\"\n", 0);
        let path = ["server".to_owned(), "workers".to_owned()];
        table.overlay(Table::nested(&path, at(1), Value::Integer(4), at(1)));
        assert!(matches!(
            value(&table, &["server", "workers"]),
            Item {
                value: Value::Integer(4),
                at: At { source: 1, .. }
            }
        ));
        assert_eq!(value(&table, &["server", "engine"]).at.source, 0);
    }

    #[test]
    fn an_included_file_adds_and_never_overrides() {
        let mut diagnostics = Diagnostics::default();
        let mut table = read("[server]\nworkers = 1\n[site.a]\nlist = true\n", 0);
        table.include(
            read("[server]\npin = true\n[site.b]\n", 1),
            &mut diagnostics,
        );
        assert!(diagnostics.is_empty());
        assert_eq!(value(&table, &["server", "pin"]).at.source, 1);
        table.include(
            read("[server]\nworkers = 2\n[site.a]\nindex = []\n", 2),
            &mut diagnostics,
        );
        let messages: Vec<_> = diagnostics.iter().map(|d| d.message.clone()).collect();
        assert_eq!(
            messages,
            ["`workers` is set in two files", "`a` is set in two files"]
        );
    }

    #[test]
    fn a_number_out_of_range_is_still_a_number() {
        let table = read("a = 0x7fff_ffff_ffff_ffff\nb = -1\n", 0);
        assert!(
            matches!(value(&table, &["a"]).value, Value::Integer(n) if n == i128::from(i64::MAX))
        );
        assert!(matches!(value(&table, &["b"]).value, Value::Integer(-1)));
    }
}
