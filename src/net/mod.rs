//! Listeners, streams and what sits between a socket and a protocol.

pub mod accept_gate;
pub mod connect;
pub mod listener;
pub mod owner;
pub mod proxy_protocol;
pub mod recv;
pub mod secured;
pub mod send;
pub mod socket;
pub mod splice;
pub mod spread;
#[cfg(test)]
mod testing;
pub mod tls;
#[cfg(test)]
pub(crate) use testing::{on_each_engine, run, simulate, spawn_mortal};
