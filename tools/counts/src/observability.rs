//! Of observability, what the session names.

#[path = "../../../src/observability/access_log.rs"]
pub mod access_log;
#[path = "../../../src/observability/escape.rs"]
mod escape;
