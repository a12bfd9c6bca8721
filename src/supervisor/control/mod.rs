//! The control socket: how `beltway reload`, `stop`, `status` and the others reach the master.
//!
//! One unix stream connection for each request: a line of JSON goes there, a line of JSON comes back,
//! and the connection ends. [`protocol`] has the lines and is pure; [`server`] is the master's half,
//! driven by its poll loop, and knows nothing of what a command does; [`client`] is the half of the
//! command line; [`path`] says where the socket of a configuration file is; [`status`] is what
//! `beltway status` tells, [`upstreams`] what of it is about backends, [`memory`] about memory,
//! [`direct`] about cold files, [`certificates`] about certificates and [`kernel_tls`] about what the
//! kernel encrypts.

pub mod certificates;
pub mod client;
pub mod direct;
pub mod kernel_tls;
pub mod memory;
pub mod path;
pub mod protocol;
pub mod server;
mod socket_file;
pub mod status;
pub mod upstreams;
