//! Panics go into the control log, with the thread and the place.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic;
use std::thread;

/// Writes every panic of this process to the control log. With `RUST_BACKTRACE` set, the report of the
/// standard library follows.
pub(super) fn log_panics() {
    let standard = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let text = info.payload_as_str().unwrap_or("no text");
        let place = info.location().map(ToString::to_string);
        let thread = thread::current();
        tracing::error!(
            thread = thread.name().unwrap_or("unnamed"),
            place = place.as_deref().unwrap_or("unknown"),
            "panic: {text}"
        );
        if Backtrace::capture().status() == BacktraceStatus::Captured {
            standard(info);
        }
    }));
}
