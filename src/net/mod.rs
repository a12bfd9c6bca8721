//! Listeners, streams and what sits between a socket and a protocol.

pub mod owner;
