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

/// Readies the calling thread for handshakes: its first random number seeds a generator of its own, for
/// which aws-lc gathers entropy for a tenth of a second or two. Better before there are connections.
pub fn ready_thread() {
    // Where there is no randomness, every handshake says so.
    let _ = aws_lc_rs::rand::fill(&mut [0]);
}

#[cfg(test)]
pub(crate) use testing::{client, client_config, settings as test_settings};
