//! What the server tells about itself: the access log, a line per request through a buffer per
//! core, and the control log, a line per event through tracing.

pub mod access_log;
pub mod control_log;
pub mod core_log;
pub mod escape;
pub mod sink;
