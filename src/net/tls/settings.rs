//! What the connections of a site are made by.

use std::fmt;
use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ServerConfig, SignatureAlgorithm, SupportedProtocolVersion};

use super::clients::{Client, Clients};
use super::identity::Identity;
use super::server::Protocol;
use super::tickets::SiteTickets;
use crate::util::clock;

/// Algorithms, with X25519MLKEM768 preferred.
pub(super) static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// Which versions and cipher suites are spoken. There is none weaker: suites without forward secrecy or
/// without authenticated encryption, renegotiation and compression don't exist here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// TLS 1.3 alone.
    #[default]
    Modern,
    /// TLS 1.3, and TLS 1.2 with ECDHE and AEAD suites.
    Intermediate,
}

impl Policy {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Modern => "modern",
            Self::Intermediate => "intermediate",
        }
    }

    pub(super) fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] =
            [&rustls::version::TLS13, &rustls::version::TLS12];
        match self {
            Self::Modern => &BOTH[..1],
            Self::Intermediate => &BOTH,
        }
    }
}

/// What the connections of a site are made by: certificates, policy, tickets. Shared by all cores.
pub struct Settings {
    config: Arc<ServerConfig>,
    identities: Vec<Arc<Identity>>,
    policy: Policy,
    tickets: Option<SiteTickets>,
    clients: Option<Arc<Clients>>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("identities", &self.identities)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// With at least one certificate. A client gets the first that it takes, those of elliptic curves
    /// before those of RSA, whose signatures cost many times as much. Without `tickets` no session can
    /// be resumed.
    pub fn new(
        identities: Vec<Arc<Identity>>,
        policy: Policy,
        tickets: Option<SiteTickets>,
    ) -> Arc<Self> {
        Self::with_clients(identities, policy, tickets, None)
    }

    /// The same, for clients that show certificates. Their sessions are bound to what they were verified
    /// by, so `tickets` may be those of the site.
    pub fn with_clients(
        identities: Vec<Arc<Identity>>,
        policy: Policy,
        tickets: Option<SiteTickets>,
        clients: Option<Arc<Clients>>,
    ) -> Arc<Self> {
        assert!(!identities.is_empty(), "a site with TLS has a certificate");
        let tickets = tickets.map(|tickets| match &clients {
            Some(clients) => tickets.within(&clients.scope()),
            None => tickets,
        });
        let mut chosen: Vec<_> = identities.iter().map(Arc::clone).collect();
        chosen.sort_by_key(|identity| identity.key().key.algorithm() == SignatureAlgorithm::RSA);
        let resolver = ByClient { identities: chosen };
        let shared = tickets.clone().map(|tickets| Arc::new(tickets) as Arc<_>);
        let config = configure(
            policy,
            Arc::new(resolver),
            WebPkiClientVerifier::no_client_auth(),
            shared,
        );
        Arc::new(Self {
            config: Arc::new(config),
            identities,
            policy,
            tickets,
            clients,
        })
    }

    /// The certificates.
    pub fn identities(&self) -> &[Arc<Identity>] {
        &self.identities
    }

    /// The policy.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Whose certificates are taken; `None` where no client is asked for one.
    pub fn clients(&self) -> Option<&Arc<Clients>> {
        self.clients.as_ref()
    }

    /// What one connection is made by. Where clients show certificates it is one of its own: what is
    /// found of its client belongs into its tickets.
    pub(super) fn connection(&self) -> (Arc<ServerConfig>, Option<Box<Client>>) {
        let Some(clients) = &self.clients else {
            return (Arc::clone(&self.config), None);
        };
        let client = Client::new(clients);
        let config = configure(
            self.policy,
            Arc::clone(&self.config.cert_resolver),
            client.verifier(),
            self.tickets.clone().map(|tickets| client.tickets(tickets)),
        );
        (Arc::new(config), Some(Box::new(client)))
    }
}

/// What all connections have in common.
fn configure(
    policy: Policy,
    resolver: Arc<dyn ResolvesServerCert>,
    verifier: Arc<dyn ClientCertVerifier>,
    tickets: Option<Arc<dyn ProducesTickets>>,
) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(policy.versions())
        .expect("every version has suites and groups")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![Protocol::Http11.name().into()];
    // Tickets hold all there is: what is kept by name could not be had on another core.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    // For records of our own, and of the kernel's.
    config.enable_secret_extraction = true;
    match tickets {
        Some(tickets) => {
            config.ticketer = tickets;
            // A client that has used its ticket gets another one with the connection that it made.
            config.send_tls13_tickets = 1;
        }
        None => config.send_tls13_tickets = 0,
    }
    config
}

/// The first certificate whose signature and suites the client takes.
#[derive(Debug)]
struct ByClient {
    identities: Vec<Arc<Identity>>,
}

impl ResolvesServerCert for ByClient {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let takes = |identity: &&Arc<Identity>| {
            let key = identity.key();
            key.key.choose_scheme(hello.signature_schemes()).is_some()
                && suites_allow(hello.cipher_suites(), key.key.algorithm())
        };
        // Where none fits, rustls says what is missing.
        let found = self.identities.iter().find(takes);
        let now = clock::unix_s();
        let found = found.or(self.identities.first());
        found.map(|identity| identity.key_at(now))
    }
}

/// Whether a client with these suites can have a certificate of this kind. Suites of TLS 1.2 name it.
fn suites_allow(suites: &[CipherSuite], algorithm: SignatureAlgorithm) -> bool {
    let of_rsa = algorithm == SignatureAlgorithm::RSA;
    suites.iter().any(|suite| match suite.as_str() {
        Some(name) if name.starts_with("TLS13_") => true,
        Some(name) if of_rsa => name.starts_with("TLS_ECDHE_RSA_"),
        Some(name) => name.starts_with("TLS_ECDHE_ECDSA_"),
        None => false,
    })
}
