//! A difference for people.

use std::fmt::Write as _;

use super::{Change, Difference, Kind, Socket};

/// Most lines of keys: beyond it their number says more than they do.
const CHANGES_MAX: usize = 1000;

/// Most characters of a value in a line.
const VALUE_CHARS_MAX: usize = 120;

type Live<'a> = &'a dyn Fn(&str) -> Option<u64>;

pub(super) fn text(difference: &Difference, live: Live<'_>) -> String {
    if difference.is_empty() {
        return "nothing would change\n".to_owned();
    }
    let mut out = String::new();
    for Socket { name, .. } in &difference.listeners.removed {
        let _ = writeln!(out, "- listen {name}{}", note(live(name), " to drain"));
    }
    for Socket { name, .. } in &difference.listeners.added {
        let _ = writeln!(out, "+ listen {name}");
    }
    for change in difference.changes.iter().take(CHANGES_MAX) {
        let counts = change.listeners.iter().filter_map(|name| live(name));
        let touched = counts.reduce(u64::saturating_add);
        let _ = writeln!(out, "{}{}", line(change), note(touched, ""));
    }
    let left = difference.changes.len().saturating_sub(CHANGES_MAX);
    if left > 0 {
        let _ = writeln!(out, "and {left} more changes");
    }
    for restart in &difference.restart {
        let _ = writeln!(
            out,
            "a new generation with drain, for {}: {}",
            restart.key, restart.why
        );
    }
    out
}

fn line(change: &Change) -> String {
    let path = &change.path;
    let value = |value: &Option<String>| short(value.as_deref().unwrap_or_default());
    match change.kind {
        Kind::Added => format!("+ {path} = {}", value(&change.to)),
        Kind::Removed => format!("- {path} = {}", value(&change.from)),
        Kind::Changed if change.referred => {
            format!(
                "~ {path} = {}, which stands for something else",
                value(&change.to)
            )
        }
        Kind::Changed => {
            format!(
                "~ {path} = {} -> {}",
                value(&change.from),
                value(&change.to)
            )
        }
    }
}

/// How many connections, where that is known.
fn note(connections: Option<u64>, what: &str) -> String {
    match connections {
        None => String::new(),
        Some(1) => format!("  (1 connection{what})"),
        Some(count) => format!("  ({count} connections{what})"),
    }
}

fn short(value: &str) -> String {
    match value.char_indices().nth(VALUE_CHARS_MAX) {
        None => value.to_owned(),
        Some((end, _)) => format!("{}…", &value[..end]),
    }
}
