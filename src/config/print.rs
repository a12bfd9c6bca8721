//! Writes a configuration as TOML, for `--print-config` and `show`, and as JSON.
//!
//! It writes what was read, all sources laid over each other, and not the model: so a `${SECRET}`
//! stays a reference, and what is written reads back as the same configuration. File names become
//! absolute, because what is printed has no directory of its own.

use std::fmt::Write as _;

use super::diagnostics::{At, Sources};
use super::raw::{Item, Table, Value};
use super::schema::{Key, Section};

/// What to write besides what was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defaults {
    /// Nothing.
    Hidden,
    /// Every key that has a default and was not set.
    Shown,
}

/// The configuration as TOML.
pub fn to_toml(tree: &Table, sources: &Sources, defaults: Defaults) -> String {
    let mut tree = absolute(tree, sources);
    if defaults == Defaults::Shown {
        add_defaults(&mut tree);
    }
    let mut out = String::new();
    if let Some(server) = inner(&tree, "server") {
        let rest = write_table(&mut out, "server", server, &["limits", "timeouts"]);
        for (name, table) in rest {
            write_table(&mut out, &format!("server.{name}"), table, &[]);
        }
    }
    for entry in inner(&tree, "site").map_or(&[][..], |sites| &sites.entries) {
        let Value::Table(site) = &entry.item.value else {
            continue;
        };
        let name = format!("site.{}", key(&entry.key));
        let rest = write_table(&mut out, &name, site, &["headers", "error_pages", "routes"]);
        for (table_name, table) in rest {
            write_table(&mut out, &format!("{name}.{table_name}"), table, &[]);
        }
    }
    out
}

/// The configuration as JSON.
pub fn to_json(tree: &Table, sources: &Sources, defaults: Defaults) -> serde_json::Value {
    let mut tree = absolute(tree, sources);
    if defaults == Defaults::Shown {
        add_defaults(&mut tree);
    }
    json_table(&tree)
}

/// Every key with its example and its default: the content of `conf/full-reference.toml`.
pub fn reference() -> String {
    let mut out = String::from(
        "# Every key of a configuration file. What has a default stands with it; what has none stands\n\
         # as a comment with an example. `beltway check -c FILE` says what is wrong with a file.\n\
         # Durations are such as \"10s\" or \"1m30s\", sizes such as \"8KiB\" or \"2GiB\". In strings, ${NAME}\n\
         # is a variable of the environment, ${NAME:-default} one with a default.\n",
    );
    let tables = [
        "server", "site", "limits", "timeouts", "routes", "when", "headers",
    ];
    let mut section = |title: &str, section: Section, skip: &[&str]| {
        if !title.is_empty() {
            let _ = write!(out, "\n{title}\n");
        }
        for key in section.keys().filter(|key| !skip.contains(&key.name)) {
            write_key(&mut out, key);
        }
    };
    section("", Section::Top, &tables);
    section("[server]", Section::Server, &tables);
    section("[server.limits]", Section::Limits, &[]);
    section("[server.timeouts]", Section::Timeouts, &[]);
    section(
        "# The name of a site is a host (example.com, *.example.com), a port (:8080, any host), both\n\
         # (example.com:8080), an address (127.0.0.1:8080, any host) or * (any host on port 80).\n\
         [site.\":8080\"]",
        Section::Site,
        &tables,
    );
    let mut table = |name: &str, lines: &str| {
        let doc = Section::Site.key(name).map_or("", |key| key.doc);
        out.push('\n');
        for line in doc.lines() {
            let _ = writeln!(out, "# {line}");
        }
        let _ = writeln!(out, "[site.\":8080\".{name}]\n{lines}");
    };
    table("headers", "# X-Frame-Options = \"DENY\"");
    table(
        "routes",
        "# \"=/healthz\" = { respond = 200, body = \"ok\" }\n\
         # \"/old/*\" = { redirect = \"/new/{path}\", status = 308 }\n\
         # \"/assets/*\" = { cache_control = \"public, max-age=31536000, immutable\" }\n\
         # \"*.map\" = { respond = 404 }",
    );
    for key in Section::Route.keys().take(1).chain(Section::When.keys()) {
        out.push('\n');
        for line in key.doc.lines() {
            let _ = writeln!(out, "# {line}");
        }
        let _ = match key.name {
            "when" => writeln!(
                out,
                "# \"/a\" = [{{ when = {}, respond = 200 }}, {{ respond = 405 }}]",
                key.example
            ),
            name => writeln!(
                out,
                "# \"/{name}\" = {{ when = {{ {name} = {} }}, respond = 200 }}",
                key.example
            ),
        };
    }
    out
}

fn write_key(out: &mut String, key: &Key) {
    out.push('\n');
    for line in key.doc.lines() {
        let _ = writeln!(out, "# {line}");
    }
    // Those that need another key would be errors beside the `root` of the reference.
    let needs_another = ["body", "content_type", "status"].contains(&key.name);
    let (value, set) = match key.default {
        "" => (key.example, key.name == "root"),
        default => (default, !needs_another),
    };
    let comment = if set { "" } else { "# " };
    let _ = writeln!(out, "{comment}{} = {value}", key.name);
}

fn inner<'t>(table: &'t Table, name: &str) -> Option<&'t Table> {
    match &table.get(name)?.item.value {
        Value::Table(inner) => Some(inner),
        _ => None,
    }
}

/// Writes a table with its head; returns those of its tables that get a head of their own.
fn write_table<'t>(
    out: &mut String,
    name: &str,
    table: &'t Table,
    apart: &[&'t str],
) -> Vec<(&'t str, &'t Table)> {
    let mut rest = Vec::new();
    if !out.is_empty() {
        out.push('\n');
    }
    let _ = writeln!(out, "[{name}]");
    for entry in &table.entries {
        match &entry.item.value {
            Value::Table(inner) if apart.contains(&entry.key.as_str()) => {
                rest.push((entry.key.as_str(), inner));
            }
            value => {
                let _ = write!(out, "{} = ", key(&entry.key));
                write_value(out, value);
                out.push('\n');
            }
        }
    }
    rest
}

/// Writes a value in one line.
pub(super) fn write_value(out: &mut String, value: &Value) {
    match value {
        Value::String(text) => string(out, text),
        Value::Integer(number) => {
            let _ = write!(out, "{number}");
        }
        Value::Boolean(boolean) => {
            let _ = write!(out, "{boolean}");
        }
        Value::Float(text) | Value::Datetime(text) => out.push_str(text),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write_value(out, &item.value);
            }
            out.push(']');
        }
        Value::Table(table) => {
            out.push('{');
            for (index, entry) in table.entries.iter().enumerate() {
                out.push_str(if index == 0 { " " } else { ", " });
                let _ = write!(out, "{} = ", key(&entry.key));
                write_value(out, &entry.item.value);
            }
            out.push_str(if table.entries.is_empty() { "}" } else { " }" });
        }
    }
}

/// A key as TOML writes it: bare where that is possible.
pub(super) fn key(name: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !name.is_empty() && name.bytes().all(bare) {
        return name.to_owned();
    }
    let mut out = String::new();
    string(&mut out, name);
    out
}

/// A basic string of TOML.
fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The tree with the names of files made absolute.
pub(super) fn absolute(tree: &Table, sources: &Sources) -> Table {
    let mut tree = tree.clone();
    if let Some(server) = inner_mut(&mut tree, "server") {
        absolute_file(server, "access_log", sources);
        absolute_file(server, "sandbox_read", sources);
    }
    for entry in inner_mut(&mut tree, "site").map_or(&mut [][..], |sites| &mut sites.entries) {
        if let Value::Table(site) = &mut entry.item.value {
            absolute_answer(site, sources);
            for route in inner_mut(site, "routes").map_or(&mut [][..], |r| &mut r.entries) {
                match &mut route.item.value {
                    Value::Table(route) => absolute_answer(route, sources),
                    Value::Array(items) => items.iter_mut().for_each(|item| {
                        if let Value::Table(route) = &mut item.value {
                            absolute_answer(route, sources);
                        }
                    }),
                    _ => {}
                }
            }
        }
    }
    tree
}

/// The names of files in a site or a route.
fn absolute_answer(table: &mut Table, sources: &Sources) {
    absolute_file(table, "root", sources);
    absolute_secret(table, "body", sources);
    if let Some(headers) = inner_mut(table, "headers") {
        let names: Vec<String> = headers.entries.iter().map(|e| e.key.clone()).collect();
        for name in names {
            absolute_secret(headers, &name, sources);
        }
    }
}

/// The name of a file, or each of a list.
fn absolute_file(table: &mut Table, name: &str, sources: &Sources) {
    let Some(entry) = table.entries.iter_mut().find(|entry| entry.key == name) else {
        return;
    };
    let items = match &mut entry.item.value {
        Value::Array(items) => items.as_mut_slice(),
        _ => std::slice::from_mut(&mut entry.item),
    };
    for item in items {
        // What begins with a variable may be absolute: only its value says so.
        if let Value::String(text) = &mut item.value
            && text != "-"
            && !text.is_empty()
            && !text.starts_with("${")
        {
            *text = joined(sources, item.at, text);
        }
    }
}

fn absolute_secret(table: &mut Table, name: &str, sources: &Sources) {
    if let Some((text, at)) = string_mut(table, name)
        && let Some(file) = text.strip_prefix("file:")
        && !file.starts_with("${")
    {
        *text = format!("file:{}", joined(sources, at, file));
    }
}

fn joined(sources: &Sources, at: At, file: &str) -> String {
    let path: std::path::PathBuf = sources.base(at).join(file).components().collect();
    path.display().to_string()
}

fn string_mut<'t>(table: &'t mut Table, name: &str) -> Option<(&'t mut String, At)> {
    let entry = table.entries.iter_mut().find(|entry| entry.key == name)?;
    match &mut entry.item {
        Item {
            value: Value::String(text),
            at,
        } => Some((text, *at)),
        _ => None,
    }
}

fn inner_mut<'t>(table: &'t mut Table, name: &str) -> Option<&'t mut Table> {
    let entry = table.entries.iter_mut().find(|entry| entry.key == name)?;
    match &mut entry.item.value {
        Value::Table(inner) => Some(inner),
        _ => None,
    }
}

/// Adds to `[server]` and to every site what was not set.
fn add_defaults(tree: &mut Table) {
    let at = At {
        source: 0,
        start: 0,
        end: 0,
    };
    let sections = [
        (Section::Server, vec!["server"]),
        (Section::Limits, vec!["server", "limits"]),
        (Section::Timeouts, vec!["server", "timeouts"]),
    ];
    let set = |defaults: &mut Table, path: &[&str], key: &Key| {
        let Some(value) = super::raw::parse_value(key.default, at) else {
            return;
        };
        let path: Vec<String> = path
            .iter()
            .copied()
            .chain([key.name])
            .map(str::to_owned)
            .collect();
        defaults.overlay(Table::nested(&path, at, value, at));
    };
    let mut defaults = Table::default();
    for (section, path) in sections {
        for key in section.keys() {
            set(&mut defaults, &path, key);
        }
    }
    let sites: Vec<String> = inner(tree, "site").map_or_else(Vec::new, |sites| {
        sites
            .entries
            .iter()
            .map(|entry| entry.key.clone())
            .collect()
    });
    for site in sites {
        let Some(written) = inner(tree, "site").and_then(|sites| inner(sites, &site)) else {
            continue;
        };
        let files = written.get("root").is_some();
        for key in Section::Site.keys() {
            let wanted = match key.name {
                "status" => written.get("redirect").is_some(),
                "body" | "content_type" => false,
                "cors" => true,
                _ => files,
            };
            if wanted {
                set(&mut defaults, &["site", &site], key);
            }
        }
    }
    defaults.overlay(std::mem::take(tree));
    *tree = defaults;
    if let Some(server) = inner_mut(tree, "server") {
        sort(server, Section::Server);
    }
    for entry in inner_mut(tree, "site").map_or(&mut [][..], |sites| &mut sites.entries) {
        if let Value::Table(site) = &mut entry.item.value {
            sort(site, Section::Site);
        }
    }
}

/// Puts the keys in the order of the reference.
fn sort(table: &mut Table, section: Section) {
    let position = |name: &str| section.keys().position(|key| key.name == name);
    table.entries.sort_by_key(|entry| position(&entry.key));
}

fn json_table(table: &Table) -> serde_json::Value {
    table
        .entries
        .iter()
        .map(|entry| (entry.key.clone(), json(&entry.item.value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::String(text) | Value::Float(text) | Value::Datetime(text) => text.as_str().into(),
        Value::Integer(number) => i64::try_from(*number).unwrap_or(i64::MAX).into(),
        Value::Boolean(boolean) => (*boolean).into(),
        Value::Array(items) => items.iter().map(|item| json(&item.value)).collect(),
        Value::Table(table) => json_table(table),
    }
}
