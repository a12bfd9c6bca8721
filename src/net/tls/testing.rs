//! Certificates and clients for tests.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion,
};

use super::settings::PROVIDER;
use super::tickets::{TicketKey, Tickets};
use super::{Identity, Plain, Policy, Settings, TlsServer};

/// A certificate that signs itself, and its key, in PEM.
pub(crate) fn pem(names: &[&str], algorithm: &'static rcgen::SignatureAlgorithm) -> [String; 2] {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = CertificateParams::new(names).unwrap();
    let certificate = certificate.self_signed(&key).unwrap();
    [certificate.pem(), key.serialize_pem()]
}

/// A certificate with an ECDSA key.
pub(crate) fn identity(names: &[&str]) -> Arc<Identity> {
    let [certificate, key] = pem(names, &rcgen::PKCS_ECDSA_P256_SHA256);
    Arc::new(Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap())
}

/// Settings for these names, and what a client needs to trust them.
pub(crate) fn settings(names: &[&str], policy: Policy) -> (Arc<Settings>, RootCertStore) {
    let identity = identity(names);
    let mut roots = RootCertStore::empty();
    roots.add(identity.key().cert[0].clone()).unwrap();
    let tickets = Tickets::default();
    tickets.install(&[TicketKey::random().unwrap()]);
    let settings = Settings::new(vec![identity], policy, Some(tickets.of_site(names[0])));
    (settings, roots)
}

/// A client's configuration.
pub(crate) fn client_config(
    roots: RootCertStore,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// A client that asks for this name.
pub(crate) fn client(config: &Arc<ClientConfig>, name: &str) -> ClientConnection {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    ClientConnection::new(Arc::clone(config), name).unwrap()
}

/// What the client has to send.
pub(crate) fn sent(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// The first bytes of a client that asks for this name.
pub(super) fn client_hello(name: &str) -> Vec<u8> {
    let config = client_config(RootCertStore::empty(), &[&rustls::version::TLS13]);
    sent(&mut client(&config, name))
}

/// Gives a client what was sent to it, and gives the plaintext.
pub(crate) fn feed(client: &mut ClientConnection, mut bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        let state = client.process_new_packets().unwrap();
        let mut part = vec![0; state.plaintext_bytes_to_read()];
        client.reader().read_exact(&mut part).unwrap();
        plain.append(&mut part);
    }
    plain
}

/// A server and its client, connected to each other without a socket.
pub(crate) struct Pair {
    pub(crate) server: TlsServer,
    pub(crate) client: ClientConnection,
    /// What the server has for the client.
    pub(crate) out: Vec<u8>,
}

impl Pair {
    pub(crate) fn new(settings: &Settings, config: &Arc<ClientConfig>, name: &str) -> Self {
        Self {
            server: TlsServer::new(settings, Some(name.into())).unwrap(),
            client: client(config, name),
            out: Vec::new(),
        }
    }

    /// Moves what is there, both ways, until nothing is. Gives the plaintext that both have got.
    pub(crate) fn exchange(&mut self) -> [Vec<u8>; 2] {
        let mut plain = [Vec::new(), Vec::new()];
        loop {
            let to_server = sent(&mut self.client);
            if to_server.is_empty() && self.out.is_empty() {
                return plain;
            }
            plain[0].append(&mut self.receive(&to_server));
            plain[1].append(&mut feed(&mut self.client, &std::mem::take(&mut self.out)));
        }
    }

    /// Gives the server some ciphertext, and gives the plaintext.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        match self.server.receive(&mut bytes, &mut self.out).unwrap() {
            Plain::InPlace(length) => bytes[..length].to_vec(),
            Plain::Gathered(plain) => plain,
        }
    }

    /// Has the client send something, and gives its ciphertext.
    pub(crate) fn client_sends(&mut self, plain: &[u8]) -> Vec<u8> {
        self.client.writer().write_all(plain).unwrap();
        sent(&mut self.client)
    }
}

/// A version and a suite of it.
pub(super) type Suite = (&'static SupportedProtocolVersion, CipherSuite);

/// All that there are with an ECDSA key.
pub(super) const SUITES: [Suite; 6] = [
    (&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    (&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    (
        &TLS12,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    (&TLS13, CipherSuite::TLS13_AES_128_GCM_SHA256),
    (&TLS13, CipherSuite::TLS13_AES_256_GCM_SHA384),
    (&TLS13, CipherSuite::TLS13_CHACHA20_POLY1305_SHA256),
];

/// An open connection with this suite alone.
pub(super) fn open_pair((version, suite): Suite) -> Pair {
    let (settings, roots) = settings(&["a.example"], Policy::Intermediate);
    let suites = PROVIDER
        .cipher_suites
        .iter()
        .filter(|it| it.suite() == suite);
    let provider = CryptoProvider {
        cipher_suites: suites.copied().collect(),
        ..(**PROVIDER).clone()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    // For who makes the client's records himself.
    config.enable_secret_extraction = true;
    let mut pair = Pair::new(&settings, &Arc::new(config), "a.example");
    pair.exchange();
    assert!(pair.server.is_open());
    pair
}
