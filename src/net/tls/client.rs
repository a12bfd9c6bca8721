//! TLS, clients' side: what the connections to the servers of an upstream are made by, and one of them.

mod failure;
mod trust;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::unbuffered::UnbufferedStatus;
use rustls::{ClientConfig, Error, ExtractedSecrets};

use super::server::{Protocol, Tls};
use super::settings::PROVIDER;
use super::side::Side;
use super::{Failure, Identity, Policy};

pub use failure::ServerFailure;
pub use trust::{Roots, Trust};

/// Sessions that are kept of each server to resume: a ticket of TLS 1.3 is used once, and servers give
/// a few of them.
const SESSIONS_PER_SERVER: usize = 8;

/// Most sessions that are kept of all servers of an upstream, on each core: 2 to 4 KiB each, for they
/// hold the server's certificates.
const SESSIONS_MAX: usize = 512;

/// A connection to a server, from our ClientHello on.
pub type TlsClient = Tls<UnbufferedClientConnection>;

impl Side for UnbufferedClientConnection {
    type Data = rustls::client::ClientConnectionData;

    /// HelloRequest.
    const RENEGOTIATION: u8 = 0;
    const TAKES_TICKETS: bool = true;

    fn process<'c, 'i>(
        &'c mut self,
        records: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }

    fn take_apart(self) -> Result<(ExtractedSecrets, KernelConnection<Self::Data>), Error> {
        self.dangerous_into_kernel_connection()
    }

    fn took_ticket(
        connection: &mut KernelConnection<Self::Data>,
        ticket: &[u8],
    ) -> Result<(), Error> {
        connection.handle_new_session_ticket(ticket)
    }

    fn failure(error: &Error) -> Failure {
        Failure::Server(ServerFailure::from(error))
    }

    fn detail(error: &Error) -> Option<Box<str>> {
        failure::detail(error)
    }
}

impl TlsClient {
    /// A connection to the server of this name. What it has to send first is added to `out`.
    ///
    /// # Errors
    /// [`ServerFailure::Ours`] where there is no randomness.
    pub fn connect(
        settings: &ClientSettings,
        name: &PeerName,
        out: &mut Vec<u8>,
    ) -> Result<Self, Failure> {
        let config = Arc::clone(&settings.config);
        let connection = UnbufferedClientConnection::new(config, name.name.clone());
        let connection = connection.map_err(|error| UnbufferedClientConnection::failure(&error))?;
        let mut client = Self::of(connection, Some(name.text.clone()));
        client.receive(&mut [], out)?;
        Ok(client)
    }
}

/// The name that a server has to have a certificate for: that of a host, or an IP address, for which no
/// name is sent (RFC 6066 §3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerName {
    name: ServerName<'static>,
    text: Box<str>,
}

impl PeerName {
    /// Reads one; `None` of what is neither.
    pub fn parse(text: &str) -> Option<Self> {
        ServerName::try_from(text.to_owned()).ok().map(Self::of)
    }

    /// Whether it is an address.
    pub fn is_address(&self) -> bool {
        matches!(self.name, ServerName::IpAddress(_))
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn of(name: ServerName<'static>) -> Self {
        let text = name.to_str().into();
        Self { name, text }
    }
}

impl From<std::net::IpAddr> for PeerName {
    fn from(address: std::net::IpAddr) -> Self {
        Self::of(ServerName::from(address))
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a configuration says of connections to servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Who is believed.
    pub trust: Trust,
    /// What is shown to a server that asks who we are.
    pub identity: Option<Arc<Identity>>,
    /// Which versions are spoken.
    pub policy: Policy,
    /// Whether a server is told which name it is asked for.
    pub tells_name: bool,
}

/// What the connections to the servers of an upstream are made by, with the sessions that can be resumed.
/// One for each core, so that nobody waits for another core's.
pub struct ClientSettings {
    config: Arc<ClientConfig>,
}

impl ClientSettings {
    /// By these terms, for so many servers.
    pub fn new(terms: &Terms, servers: usize) -> Self {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_protocol_versions(terms.policy.versions())
            .expect("every version has suites and groups")
            .dangerous()
            .with_custom_certificate_verifier(terms.trust.verifier());
        let mut config = match &terms.identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(
                Arc::clone(identity.key()),
            ))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![Protocol::Http11.name().into()];
        config.enable_sni = terms.tells_name;
        config.enable_early_data = false;
        // For records of our own.
        config.enable_secret_extraction = true;
        let sessions = servers.saturating_mul(SESSIONS_PER_SERVER);
        config.resumption =
            Resumption::in_memory_sessions(sessions.clamp(SESSIONS_PER_SERVER, SESSIONS_MAX));
        Self {
            config: Arc::new(config),
        }
    }
}
