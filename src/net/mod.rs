//! Listeners, streams and what sits between a socket and a protocol.

pub mod accept_gate;
pub mod listener;
pub mod owner;
pub mod proxy_protocol;
pub mod recv;
pub mod send;
pub mod socket;
