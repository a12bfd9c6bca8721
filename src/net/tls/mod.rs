//! TLS, servers' side: bytes in, bytes out, events. No socket, no clock, no file; what a core does
//! with it is in `net::recv` and `net::send`.
//!
//! It is a seam around rustls and aws-lc-rs: their types don't leave this directory, so another
//! version of them, or a record layer of our own, is a matter of these files alone.
//!
//! A connection begins with [`hello::Scanner`], which finds the name that is asked for before any
//! state is made, since certificates, versions and suites are a site's own ([`Settings`]). Then
//! [`TlsServer`] speaks the protocol.

pub mod failure;
pub mod hello;
pub mod identity;
pub mod kernel;
pub mod records;
mod server;
mod settings;
pub mod tickets;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use failure::Failure;
pub use identity::{Identity, IdentityError};
pub use server::{Handshake, Plain, Protocol, TlsServer};
pub use settings::{Policy, Settings};
#[cfg(test)]
pub(crate) use testing::{client, client_config, settings as test_settings};
