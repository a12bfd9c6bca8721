//! Starts a server without a master, and says why it did not start.

use std::process::ExitCode;
use std::sync::Arc;

use crate::config::model::Model;
use crate::supervisor::refusal;
use crate::supervisor::standalone;
use crate::supervisor::worker::Origin;

/// Serves until a signal ends it.
pub(super) fn start(model: Arc<Model>, origin: Origin) -> ExitCode {
    match standalone::run(model, origin) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::complain(&refusal::start_refused(&error, origin));
            ExitCode::from(super::exit::FAILED)
        }
    }
}
