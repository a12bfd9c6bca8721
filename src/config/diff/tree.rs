//! Compares two trees key by key.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Change, Kind, VALUE_MAX};
use crate::config::Loaded;
use crate::config::diagnostics::At;
use crate::config::model::{Action, Route};
use crate::config::print;
use crate::config::raw::{self, Entry, Item, Table, Value};
use crate::config::references;
use crate::config::schema::{self, Section};
use crate::config::units;

/// Keys whose values are names of files.
const FILE_KEYS: [&str; 9] = [
    "access_log",
    "sandbox_read",
    "root",
    "spill",
    "cert",
    "key",
    "ca",
    "crl",
    "ocsp",
];

/// Keys of a site whose entries are told one by one, also when all of them are new.
const CONTAINERS: [&str; 4] = ["routes", "headers", "request_headers", "error_pages"];

/// The keys that differ, without the listeners they touch.
pub(super) fn changes(old: &Loaded, new: &Loaded) -> Vec<Change> {
    let (before, after) = (
        print::absolute(&old.tree, &old.sources),
        print::absolute(&new.tree, &new.sources),
    );
    let mut walk = Walk {
        old,
        new,
        path: Vec::new(),
        changes: Vec::new(),
    };
    walk.tables(&before, &after);
    // Stable: otherwise the order of the new configuration.
    walk.changes
        .sort_by_key(|change| !change.path.starts_with("server."));
    walk.changes
}

/// The sites that an upstream answers for, in either configuration.
fn sites_of(upstream: &str, configurations: [&Loaded; 2]) -> Vec<String> {
    let mut sites: Vec<String> = Vec::new();
    for site in configurations.iter().flat_map(|loaded| &loaded.model.sites) {
        let uses = |route: &Arc<Route>| matches!(&route.action, Action::Proxy(proxy) if *proxy.upstream.name == *upstream);
        if site.each_route().any(uses) && !sites.iter().any(|known| **known == *site.name) {
            sites.push(site.name.to_string());
        }
    }
    sites
}

/// A step from a table or a list to what is in it.
enum Step {
    Key(String),
    Index(usize),
}

struct Walk<'a> {
    old: &'a Loaded,
    new: &'a Loaded,
    path: Vec<Step>,
    changes: Vec<Change>,
}

impl Walk<'_> {
    fn tables<'t>(&mut self, before: &'t Table, after: &'t Table) {
        // There may be thousands of sites.
        let index = |table: &'t Table| -> HashMap<&'t str, &'t Entry> {
            let entries = table.entries.iter();
            entries.map(|entry| (entry.key.as_str(), entry)).collect()
        };
        let (old, new) = (index(before), index(after));
        for entry in &after.entries {
            self.entries(
                &entry.key,
                old.get(entry.key.as_str()).copied(),
                Some(entry),
            );
        }
        for entry in &before.entries {
            if !new.contains_key(entry.key.as_str()) {
                self.entries(&entry.key, Some(entry), None);
            }
        }
    }

    fn entries(&mut self, key: &str, before: Option<&Entry>, after: Option<&Entry>) {
        self.path.push(Step::Key(key.to_owned()));
        self.items(before.map(|entry| &entry.item), after.map(|e| &e.item));
        self.path.pop();
    }

    fn items(&mut self, before: Option<&Item>, after: Option<&Item>) {
        let empty = Table::default();
        match (before.map(|i| &i.value), after.map(|i| &i.value)) {
            (Some(Value::Table(before)), Some(Value::Table(after))) => self.tables(before, after),
            (Some(Value::Table(before)), None) if self.is_container() => {
                self.tables(before, &empty);
            }
            (None, Some(Value::Table(after))) if self.is_container() => self.tables(&empty, after),
            (Some(Value::Array(a)), Some(Value::Array(b))) if is_like(a, b) => {
                for (index, (before, after)) in a.iter().zip(b).enumerate() {
                    self.path.push(Step::Index(index));
                    self.items(Some(before), Some(after));
                    self.path.pop();
                }
            }
            _ => self.leaf(before, after),
        }
    }

    fn leaf(&mut self, before: Option<&Item>, after: Option<&Item>) {
        if self.meaning(self.old, before) == self.meaning(self.new, after) {
            return;
        }
        let (from, to) = (before.map(one_line), after.map(one_line));
        let kind = match (&from, &to) {
            (None, _) => Kind::Added,
            (_, None) => Kind::Removed,
            _ => Kind::Changed,
        };
        self.changes.push(Change {
            path: self.shown_path(),
            kind,
            referred: from == to,
            from: from.map(cut),
            to: to.map(cut),
            sites: match self.keys()[..] {
                ["site", site, ..] => vec![site.to_owned()],
                ["upstream", upstream, ..] => sites_of(upstream, [self.old, self.new]),
                _ => Vec::new(),
            },
            listeners: Vec::new(),
        });
    }

    fn keys(&self) -> Vec<&str> {
        self.path
            .iter()
            .filter_map(|step| match step {
                Step::Key(key) => Some(key.as_str()),
                Step::Index(_) => None,
            })
            .collect()
    }

    fn shown_path(&self) -> String {
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Index(index) => path.push_str(&format!("[{index}]")),
                Step::Key(key) => {
                    path.push_str(if path.is_empty() { "" } else { "." });
                    // Always in quotes: a name of a site, or a pattern of a route.
                    let quoted = path == "site." || path.ends_with(".routes.");
                    if quoted && key == &print::key(key) {
                        path.push_str(&format!("\"{key}\""));
                    } else {
                        path.push_str(&print::key(key));
                    }
                }
            }
        }
        path
    }

    fn is_container(&self) -> bool {
        match self.keys()[..] {
            [_] | ["server", _] => true,
            ["site", _, key] => CONTAINERS.contains(&key),
            _ => false,
        }
    }

    /// The table that the value stands in, where a key that is missing has its default.
    fn section(&self) -> Option<Section> {
        match self.keys()[..] {
            ["server", _] => Some(Section::Server),
            ["server", "limits", _] => Some(Section::Limits),
            ["server", "timeouts", _] => Some(Section::Timeouts),
            ["site", _, _] => Some(Section::Site),
            ["site", _, "retries", _] => Some(Section::Retries),
            ["site", _, "buffer", _] => Some(Section::Buffer),
            ["site", _, "tls", _] => Some(Section::Tls),
            ["site", _, "client_certificates", _] => Some(Section::Clients),
            ["upstream", _, _] => Some(Section::Upstream),
            ["upstream", _, "tls", _] => Some(Section::UpstreamTls),
            ["upstream", _, "servers", _] => Some(Section::Backend),
            ["upstream", _, "balance", _] => Some(Section::Balance),
            ["upstream", _, "keepalive", _] => Some(Section::Keepalive),
            ["upstream", _, "queue", _] => Some(Section::Queue),
            ["upstream", _, "health", _] => Some(Section::Health),
            ["upstream", _, "passive_health", _] => Some(Section::Passive),
            ["upstream", _, "breaker", _] => Some(Section::Breaker),
            ["upstream", _, "retry_budget", _] => Some(Section::RetryBudget),
            ["upstream", _, "resolve", _] => Some(Section::Resolve),
            _ => None,
        }
    }

    /// What a value stands for, to be compared and not to be shown: it has secrets in it.
    fn meaning(&self, loaded: &Loaded, item: Option<&Item>) -> Option<String> {
        let keys = self.keys();
        let name = keys.last().copied().unwrap_or_default();
        let key = self.section().and_then(|section| section.key(name));
        let mut value = match (item, key) {
            (Some(item), _) => item.clone(),
            (None, Some(key)) => {
                let at = At {
                    source: 0,
                    start: 0,
                    end: 0,
                };
                let value = raw::parse_value(key.default, at)?;
                Item { value, at }
            }
            (None, None) => return None,
        };
        resolve(&mut value, loaded, FILE_KEYS.contains(&name));
        if let (Some(key), Value::String(text)) = (key, &value.value) {
            let number = match key.takes {
                schema::DURATION | schema::DURATION_OR_FALSE => {
                    units::duration(text).ok().map(|time| time.as_millis())
                }
                schema::SIZE => units::size(text).ok().map(u128::from),
                _ => None,
            };
            if let Some(number) = number {
                return Some(number.to_string());
            }
        }
        Some(one_line(&value))
    }
}

/// Whether two lists hold the same number of tables, so that each pair is told by itself.
fn is_like(a: &[Item], b: &[Item]) -> bool {
    let are_tables = |items: &[Item]| {
        let mut values = items.iter().map(|item| &item.value);
        values.all(|value| matches!(value, Value::Table(_)))
    };
    !a.is_empty() && a.len() == b.len() && are_tables(a) && are_tables(b)
}

/// Puts in place of references what they stand for.
fn resolve(item: &mut Item, loaded: &Loaded, is_file: bool) {
    match &mut item.value {
        Value::String(text) => {
            let variables = &loaded.references.variables;
            let Ok(filled) = references::fill(text, |name| variables.get(name).cloned()) else {
                return;
            };
            // Only a reference has a source: a default has none, and needs none.
            let absolute = |name: &str| -> std::path::PathBuf {
                let path = loaded.sources.base(item.at).join(name);
                path.components().collect()
            };
            *text = if is_file && text.starts_with("${") {
                absolute(&filled).display().to_string()
            } else if let Some(name) = filled.strip_prefix("file:")
                && let Some(content) = loaded.references.files.get(&absolute(name))
            {
                // The name too: the text may be the same, and the file another.
                format!("{filled}\n{content}")
            } else if is_file && let Some(content) = loaded.references.pem.get(&absolute(&filled)) {
                format!("{filled}\n{}", content.as_str())
            } else {
                filled
            };
        }
        Value::Array(items) => {
            for item in items {
                resolve(item, loaded, is_file);
            }
        }
        Value::Table(table) => {
            for entry in &mut table.entries {
                let is_file = FILE_KEYS.contains(&entry.key.as_str());
                resolve(&mut entry.item, loaded, is_file);
            }
        }
        _ => {}
    }
}

fn one_line(item: &Item) -> String {
    let mut out = String::new();
    print::write_value(&mut out, &item.value);
    out
}

fn cut(mut text: String) -> String {
    const MORE: &str = "…";
    if text.len() > VALUE_MAX {
        let end = text.floor_char_boundary(VALUE_MAX - MORE.len());
        text.truncate(end);
        text.push_str(MORE);
    }
    text
}
