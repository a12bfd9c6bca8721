//! The master and its workers: reload, respawn, upgrade, drain, control socket and sandbox, as a user
//! sees them.

mod control;
pub(crate) mod load;
mod reload;
pub(crate) mod respawn;
mod sandbox;
mod signals;
mod upgrade;

use crate::support::{Engine, Tree};

/// A configuration that serves the tree, `/ok` with this answer, and logs nothing.
pub(crate) fn config(tree: &Tree, answer: &str) -> String {
    config_with(tree, answer, "")
}

/// The same with these lines in `[server]`.
pub(crate) fn config_with(tree: &Tree, answer: &str, server: &str) -> String {
    format!(
        "[server]\n{server}\n[site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {:?}\n\
         [site.\"*\".routes]\n\"=/ok\" = {{ respond = 200, body = {answer:?} }}\n",
        tree.root()
    )
}

/// The other engine's name is of no use to a test that only wants one.
pub(super) const ANY: Engine = Engine::Epoll;
