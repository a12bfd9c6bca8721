//! Proxying: what clients and backends see of a server between them.
//!
//! The backends are scripts of the tests ([`backend`]), and where they are installed real programs.

mod backend;
mod balance;
mod bodies;
mod buffers;
mod cuts;
mod faults;
mod fields;
mod health;
mod interim;
mod keepalive;
mod logging;
mod message;
mod mixups;
mod mutations;
mod queues;
mod real;
mod retries;
mod secured;
mod secured_backends;
mod secured_tunnels;
mod servers;
mod smuggling;
mod source;
mod spill;
mod tunnels;
mod volume;

use backend::Backend;

use crate::support::{Engine, Server, Setup};

/// A configuration with one site for all hosts, and these lines in it.
fn site(lines: &str) -> String {
    format!("[site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\n{lines}\n")
}

/// A server in front of these backends, with these lines in its site.
fn proxy(engine: Engine, backends: &[&str], lines: &str) -> Server {
    Setup::run(engine, &site(&format!("proxy = {backends:?}\n{lines}"))).start()
}

/// A server in front of one backend, with nothing said about how.
fn plain(engine: Engine, backend: &Backend) -> Server {
    proxy(engine, &[backend.name()], "")
}

/// A server in front of an upstream with these lines in its table, and these in its site.
fn upstream(engine: Engine, backends: &[&str], table: &str, lines: &str) -> Server {
    Setup::run(engine, &upstream_config(backends, table, lines)).start()
}

/// The configuration of that.
fn upstream_config(backends: &[&str], table: &str, lines: &str) -> String {
    let backends = format!("{backends:?}");
    tables(&backends, table, lines)
}

/// The same with `servers` as TOML has them.
fn tables(servers: &str, table: &str, lines: &str) -> String {
    format!(
        "[upstream.app]\nservers = {servers}\n{table}\n{}",
        site(&format!("proxy = \"app\"\n{lines}"))
    )
}
