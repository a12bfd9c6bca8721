//! Beltway: a web server and reverse proxy for modern Linux, driven by io_uring completions.
//!
//! The map of the modules, the words used and the invariants are in `src/ARCHITECTURE.md`.
#![deny(unsafe_code)]
#![warn(missing_docs)]
#![deny(clippy::undocumented_unsafe_blocks)]

pub mod cache;
pub mod certificates;
pub mod cli;
pub mod config;
pub mod handlers;
pub mod http;
pub mod net;
pub mod observability;
pub mod runtime;
pub mod supervisor;
pub mod upstream;
pub mod util;
