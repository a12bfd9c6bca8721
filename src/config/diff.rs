//! What another configuration would change: which sockets, which keys, and what can't be done inside
//! a running worker.
//!
//! It compares what is written, all sources laid over each other, and what references stand for;
//! what is written differently and means the same is no change, as far as the list of keys tells.
//! It never shows what a reference stands for. Whether the kernel and the sandbox allow the change is
//! not known here.

mod text;
mod tree;

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::Loaded;
use super::model::{AccessLog, ListenAddr, Model, Sandbox};

/// What a new configuration changes. Nothing in it is a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The sockets.
    pub listeners: Sockets,
    /// The keys, `[server]` first.
    pub changes: Vec<Change>,
    /// What needs a new generation of workers.
    pub restart: Vec<Restart>,
}

/// The listening sockets of two configurations, each list in the order of its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sockets {
    /// To be opened.
    pub added: Vec<Socket>,
    /// To be closed, after their connections have drained.
    pub removed: Vec<Socket>,
    /// In both; the address is the new one.
    pub kept: Vec<Socket>,
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// As `listen` takes it. It tells sockets apart.
    pub name: String,
    /// The address.
    pub address: ListenAddr,
}

/// One key that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key, such as `site."example.com".routes."/x/*".root`.
    pub path: String,
    /// What happens to it.
    pub kind: Kind,
    /// What stood there, as TOML in one line, cut after [`VALUE_MAX`] bytes.
    pub from: Option<String>,
    /// What will stand there, likewise. As `from` where `referred` is set.
    pub to: Option<String>,
    /// Whether the text stays, and a variable or a file that it refers to is another.
    pub referred: bool,
    /// The sites that it touches: of a key of an upstream, those that it answers for; empty for a
    /// key of `[server]`.
    pub sites: Vec<String>,
    /// The listeners, by name, whose connections it touches, in both configurations.
    pub listeners: Vec<String>,
}

/// What happens to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It was not there.
    Added,
    /// It is not there any more.
    Removed,
    /// It has another value.
    Changed,
}

/// A key that can't be changed inside a running worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// The key, such as `server.workers`.
    pub key: String,
    /// Why.
    pub why: String,
}

/// Most bytes of [`Change::from`] and [`Change::to`].
pub const VALUE_MAX: usize = 1024;

/// What `new` changes where `old` is in force.
pub fn diff(old: &Loaded, new: &Loaded) -> Difference {
    let mut changes = tree::changes(old, new);
    let (before, after) = (by_site(&old.model), by_site(&new.model));
    for change in &mut changes {
        let of_sites = change.sites.iter().map(String::as_str);
        change.listeners = if touches_all(&change.path) {
            names(&old.model).collect()
        } else {
            union(of_sites.flat_map(|site| [before.get(site), after.get(site)]))
        };
    }
    Difference {
        listeners: sockets(&old.model, &new.model),
        changes,
        restart: restart(&old.model, &new.model),
    }
}

impl Difference {
    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        let sockets = &self.listeners;
        sockets.added.is_empty()
            && sockets.removed.is_empty()
            && self.changes.is_empty()
            && self.restart.is_empty()
    }

    /// For people: a line for each socket and key with `+`, `-` or `~` and the connections that it
    /// touches, and a line for each reason for a new generation. `live` gives the open connections
    /// of a listener, by its name; `None` where that isn't known.
    pub fn text(&self, live: &dyn Fn(&str) -> Option<u64>) -> String {
        text::text(self, live)
    }

    /// For programs: the fields as they are named here.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("keys are strings, and paths come from strings")
    }
}

fn names(model: &Model) -> impl Iterator<Item = String> {
    model.listeners.iter().map(|l| l.address.to_string())
}

/// Whether a key is one of `[server]` that every open connection notices.
fn touches_all(path: &str) -> bool {
    path.starts_with("server.") && !matches!(path, "server.drain_timeout" | "server.start_timeout")
}

/// The names of the listeners of each site.
fn by_site(model: &Model) -> HashMap<&str, Vec<String>> {
    let mut map: HashMap<&str, Vec<String>> = HashMap::new();
    for listener in &model.listeners {
        let name = listener.address.to_string();
        for site in listener.sites.iter() {
            let names = map.entry(&*model.sites[*site].name).or_default();
            // A site has several hosts.
            if names.last() != Some(&name) {
                names.push(name.clone());
            }
        }
    }
    map
}

fn union<'m>(lists: impl Iterator<Item = Option<&'m Vec<String>>>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for name in lists.flatten().flatten() {
        if !all.contains(name) {
            all.push(name.clone());
        }
    }
    all
}

fn sockets(old: &Model, new: &Model) -> Sockets {
    // The name tells sockets apart; whether the absence of one is forgiven isn't in it.
    let (before, after): (HashSet<String>, HashSet<String>) =
        (names(old).collect(), names(new).collect());
    let list = |of: &Model, other: &HashSet<String>, shared: bool| {
        of.listeners
            .iter()
            .filter(|listener| other.contains(&listener.address.to_string()) == shared)
            .map(|listener| Socket {
                name: listener.address.to_string(),
                address: listener.address.clone(),
            })
            .collect()
    };
    Sockets {
        added: list(new, &before, false),
        removed: list(old, &after, false),
        kept: list(new, &before, true),
    }
}

/// The keys that differ in effect and that a running worker can't change.
fn restart(old: &Model, new: &Model) -> Vec<Restart> {
    const THREADS: &str = "threads and their rings are made before the sandbox closes";
    const KERNEL_TLS: &str = "what the kernel has is tried before the sandbox closes";
    const RIGHTS: &str = "what a worker has given up it can't take back";
    const MEMORY: &str = "the buffers and tables of a worker are made when it starts";
    const LOGS: &str = "a worker can't open files, and its log writer is made when it starts";
    let (a, b) = (&old.server, &new.server);
    let sandboxed = a.sandbox != Sandbox::Off || b.sandbox != Sandbox::Off;
    let target = |log: &Option<AccessLog>| log.as_ref().map(|log| log.target.clone());
    let format = match (&a.access_log, &b.access_log) {
        (Some(a), Some(b)) => a.format != b.format,
        _ => false,
    };
    [
        ("workers", a.workers != b.workers, THREADS),
        ("pin", a.pin != b.pin, THREADS),
        ("engine", a.engine != b.engine, THREADS),
        ("ktls", a.ktls != b.ktls, KERNEL_TLS),
        ("sqpoll", a.sqpoll != b.sqpoll, THREADS),
        (
            "processes",
            a.processes != b.processes,
            "the workers of a generation start together",
        ),
        ("user", a.user != b.user, RIGHTS),
        ("group", a.group != b.group, RIGHTS),
        ("sandbox", a.sandbox != b.sandbox, RIGHTS),
        (
            "sandbox_read",
            sandboxed && a.sandbox_read != b.sandbox_read,
            RIGHTS,
        ),
        ("memory_limit", a.memory_limit != b.memory_limit, MEMORY),
        ("max_conns", a.max_conns != b.max_conns, MEMORY),
        (
            "access_log",
            target(&a.access_log) != target(&b.access_log),
            LOGS,
        ),
        ("log_format", format, LOGS),
    ]
    .into_iter()
    .filter(|(_, differs, _)| *differs)
    .map(|(key, _, why)| Restart {
        key: format!("server.{key}"),
        why: why.to_owned(),
    })
    .collect()
}

#[cfg(test)]
mod tests;
