//! Wires a worker: engine, cores, listeners and handlers.

use std::io;
use std::sync::Arc;

use crate::config::model::{ListenAddr, Model, Place};

/// What the user typed to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `beltway` and `beltway serve`: print the URLs, the directory and the engine.
    Serve,
    /// `beltway run`.
    Run,
}

/// Why a worker did not start.
#[derive(Debug)]
pub enum StartError {
    /// The kernel refused to listen.
    Listen {
        /// The address.
        address: ListenAddr,
        /// Where it was asked for.
        place: Place,
        /// What the kernel said.
        error: io::Error,
    },
    /// Anything else.
    Other {
        /// What went wrong.
        what: String,
        /// What to do; may be empty.
        help: String,
    },
}

/// Serves until a signal ends it and the drain is over.
///
/// # Errors
/// When it can't start.
pub fn run(model: Arc<Model>, origin: Origin) -> Result<(), StartError> {
    let _ = (model, origin);
    Err(StartError::Other {
        what: "no worker".into(),
        help: String::new(),
    })
}
