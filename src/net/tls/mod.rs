//! TLS, of both sides: bytes in, bytes out, events. No socket, no clock, no file; what a core does
//! with it is in `net::recv` and `net::send`.
//!
//! It is a seam around rustls and aws-lc-rs: their types don't leave this directory, so another
//! version of them, or a record layer of our own, is a matter of these files alone.
//!
//! A connection of a client begins with [`hello::Scanner`], which finds the name that is asked for before any
//! state is made, since certificates, versions and suites are a site's own ([`Settings`]). Then
//! [`TlsServer`] speaks the protocol. One to a server is a [`TlsClient`]: [`ClientSettings`] say who is
//! believed, and keep sessions.

mod client;
mod clients;
pub mod failure;
pub mod hello;
pub mod identity;
pub mod kernel;
mod layer;
pub mod ocsp;
pub mod records;
mod seal;
mod server;
mod settings;
mod side;
pub mod tickets;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use client::{ClientSettings, PeerName, Roots, ServerFailure, Terms, TlsClient, Trust};
pub use clients::{ClientCertificate, Clients, ClientsError, ClientsPart};
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
pub(crate) use testing::{client, client_config, pem as test_pem, settings as test_settings};
