//! Writes a configuration as TOML, for `--print-config` and `show`, and as JSON.
//!
//! It writes what was read, all sources laid over each other, and not the model: so a `${SECRET}`
//! stays a reference, and what is written reads back as the same configuration. File names become
//! absolute, because what is printed has no directory of its own.

mod reference;

use std::fmt::Write as _;

pub use reference::reference;

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
    for entry in inner(&tree, "upstream").map_or(&[][..], |upstreams| &upstreams.entries) {
        if let Value::Table(upstream) = &entry.item.value {
            let name = format!("upstream.{}", key(&entry.key));
            write_table(&mut out, &name, upstream, &[]);
        }
    }
    for entry in inner(&tree, "site").map_or(&[][..], |sites| &sites.entries) {
        let Value::Table(site) = &entry.item.value else {
            continue;
        };
        let name = format!("site.{}", key(&entry.key));
        let apart = ["headers", "request_headers", "error_pages", "routes"];
        let rest = write_table(&mut out, &name, site, &apart);
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
    for entry in inner_mut(&mut tree, "upstream").map_or(&mut [][..], |u| &mut u.entries) {
        if let Value::Table(upstream) = &mut entry.item.value {
            if let Some(balance) = inner_mut(upstream, "balance") {
                absolute_secret(balance, "secret", sources);
            }
            if let Some(tls) = inner_mut(upstream, "tls") {
                for name in ["ca", "cert", "key"] {
                    absolute_file(tls, name, sources);
                }
            }
        }
    }
    for entry in inner_mut(&mut tree, "site").map_or(&mut [][..], |sites| &mut sites.entries) {
        if let Value::Table(site) = &mut entry.item.value {
            absolute_answer(site, sources);
            if let Some(tls) = inner_mut(site, "tls") {
                absolute_file(tls, "cert", sources);
                absolute_file(tls, "key", sources);
                absolute_file(tls, "ocsp", sources);
            }
            if let Some(clients) = inner_mut(site, "client_certificates") {
                absolute_file(clients, "ca", sources);
                absolute_file(clients, "crl", sources);
            }
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
    for fields in ["headers", "request_headers"] {
        if let Some(headers) = inner_mut(table, fields) {
            let names: Vec<String> = headers.entries.iter().map(|e| e.key.clone()).collect();
            for name in names {
                absolute_secret(headers, &name, sources);
            }
        }
    }
    if let Some(buffer) = inner_mut(table, "buffer") {
        absolute_file(buffer, "spill", sources);
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
    for upstream in names(tree, "upstream") {
        for key in Section::Upstream.keys() {
            set(&mut defaults, &["upstream", &upstream], key);
        }
    }
    for site in names(tree, "site") {
        let Some(written) = inner(tree, "site").and_then(|sites| inner(sites, &site)) else {
            continue;
        };
        let has = |name: &str| written.get(name).is_some();
        for key in Section::Site.keys() {
            let of_proxy = Section::of_proxies().any(|other| other.name == key.name);
            let wanted = match key.name {
                "status" => has("redirect"),
                "body" | "content_type" => false,
                "cors" => true,
                // The other of the two rules for a path.
                "strip_prefix" => has("proxy") && !has("rewrite"),
                _ if of_proxy => has("proxy"),
                _ => has("root"),
            };
            if wanted {
                set(&mut defaults, &["site", &site], key);
            }
        }
        if has("timeout") {
            // It says what these are.
            let of_site = inner_mut(&mut defaults, "site").and_then(|s| inner_mut(s, &site));
            if let Some(timeouts) = of_site.and_then(|site| inner_mut(site, "timeouts")) {
                timeouts.take("head");
                timeouts.take("read");
            }
        }
    }
    defaults.overlay(std::mem::take(tree));
    *tree = defaults;
    if let Some(server) = inner_mut(tree, "server") {
        sort(server, Section::Server);
    }
    for (name, section) in [("upstream", Section::Upstream), ("site", Section::Site)] {
        for entry in inner_mut(tree, name).map_or(&mut [][..], |tables| &mut tables.entries) {
            if let Value::Table(table) = &mut entry.item.value {
                sort(table, section);
            }
        }
    }
}

/// The keys of a table at the top.
fn names(tree: &Table, table: &str) -> Vec<String> {
    let entries = inner(tree, table).map_or(&[][..], |table| &table.entries);
    entries.iter().map(|entry| entry.key.clone()).collect()
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
