//! End-to-end tests: the binary, a configuration and sockets, on both engines.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail by panicking and explain on standard error"
)]

mod aborts;
mod access_log;
mod config_cli;
mod framing;
mod limits;
mod memory;
mod methods;
mod process;
mod proxy;
mod proxy_header;
mod smuggling;
mod static_files;
mod supervise;
mod support;
mod tls;
mod tls_clients;
mod tls_ocsp;
mod tls_peers;
mod toggles;
mod tune;
