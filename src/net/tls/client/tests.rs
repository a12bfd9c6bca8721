//! Connections to servers without sockets: names, authorities, sessions, every split, every way to end.

use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use super::*;
use crate::net::tls::records::RECORD_MAX;
use crate::net::tls::server::HELD_MAX;
use crate::net::tls::testing::{identity, pem};
use crate::net::tls::tickets::{TicketKey, Tickets};
use crate::net::tls::{Plain, Settings, TlsServer};

const NAME: &str = "a.example";

/// A server's settings for these names, and terms by which it is believed.
fn both(names: &[&str], policy: Policy) -> (Arc<Settings>, Terms) {
    let [certificate, key] = pem(names, &rcgen::PKCS_ECDSA_P256_SHA256);
    let identity = Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
    let tickets = Tickets::default();
    tickets.install(&[TicketKey::random().unwrap()]);
    let tickets = Some(tickets.of_site(NAME));
    let settings = Settings::new(vec![Arc::new(identity)], policy, tickets);
    (settings, terms(Trust::Roots(roots(&certificate))))
}

fn roots(certificate: &str) -> Roots {
    Roots::from_pem(certificate.as_bytes()).unwrap()
}

fn terms(trust: Trust) -> Terms {
    Terms {
        trust,
        identity: None,
        policy: Policy::Intermediate,
        tells_name: true,
    }
}

fn name(text: &str) -> PeerName {
    PeerName::parse(text).unwrap()
}

/// A client and a server, connected to each other without a socket.
struct Pair {
    client: TlsClient,
    server: TlsServer,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
}

impl Pair {
    fn new(settings: &Settings, by: &ClientSettings, to: &str) -> Self {
        let mut to_server = Vec::new();
        Self {
            client: TlsClient::connect(by, &name(to), &mut to_server).unwrap(),
            server: TlsServer::new(settings, None).unwrap(),
            to_server,
            to_client: Vec::new(),
        }
    }

    /// Moves what is there, both ways, in parts of this size. Gives what the client has got.
    fn exchange(&mut self, part: usize) -> Result<Vec<u8>, Failure> {
        let mut plain = Vec::new();
        while !(self.to_server.is_empty() && self.to_client.is_empty()) {
            for bytes in std::mem::take(&mut self.to_server).chunks_mut(part) {
                let _ = self.server.receive(bytes, &mut self.to_client);
            }
            for bytes in std::mem::take(&mut self.to_client).chunks_mut(part) {
                match self.client.receive(bytes, &mut self.to_server)? {
                    Plain::InPlace(length) => plain.extend_from_slice(&bytes[..length]),
                    Plain::Gathered(mut gathered) => plain.append(&mut gathered),
                }
            }
        }
        Ok(plain)
    }

    fn open(settings: &Settings, by: &ClientSettings, to: &str) -> Self {
        let mut pair = Self::new(settings, by, to);
        pair.exchange(usize::MAX).unwrap();
        assert!(pair.client.is_open() && pair.server.is_open());
        pair
    }
}

#[test]
fn both_versions_carry_bytes_both_ways_however_they_are_split() {
    for (policy, version) in [
        (Policy::Intermediate, "TLSv1.2"),
        (Policy::Modern, "TLSv1.3"),
    ] {
        let (settings, terms) = both(&[NAME], policy);
        let by = match version {
            "TLSv1.2" => old_client(&terms),
            _ => ClientSettings::new(&terms, 1),
        };
        for part in [1, 7, usize::MAX] {
            let mut pair = Pair::new(&settings, &by, NAME);
            pair.exchange(part).unwrap();
            let handshake = pair.client.handshake().unwrap();
            assert_eq!(handshake.version, version);
            assert_eq!(handshake.protocol, Some(Protocol::Http11));
            if version == "TLSv1.3" && !handshake.resumed {
                assert_eq!(handshake.group, Some("X25519MLKEM768"));
            }
            for size in [1, 5000, RECORD_MAX + 1] {
                let message: Vec<u8> = (0..size).map(|n| n as u8).collect();
                pair.server.send(&message, &mut pair.to_client).unwrap();
                assert!(pair.exchange(part).unwrap() == message, "{part} {size}");
            }
            pair.client.send(b"request", &mut pair.to_server).unwrap();
            let mut bytes = std::mem::take(&mut pair.to_server);
            let plain = pair.server.receive(&mut bytes, &mut Vec::new()).unwrap();
            assert!(matches!(plain, Plain::InPlace(7)));
            assert_eq!(pair.client.held(), 0);
        }
    }
}

/// Speaks TLS 1.2 alone.
fn old_client(terms: &Terms) -> ClientSettings {
    let new = ClientSettings::new(terms, 1);
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(terms.trust.verifier())
        .with_no_client_auth();
    config.alpn_protocols = new.config.alpn_protocols.clone();
    config.enable_secret_extraction = true;
    ClientSettings {
        config: Arc::new(config),
    }
}

#[test]
fn a_server_is_believed_for_its_names_alone() {
    let (settings, terms) = both(&[NAME, "*.wild.example", "10.0.0.1"], Policy::Modern);
    let fails = |terms: &Terms, to: &str| {
        let mut pair = Pair::new(&settings, &ClientSettings::new(terms, 1), to);
        let failed = pair.exchange(usize::MAX).err();
        (failed, pair.client.detail().map(str::to_owned))
    };
    for good in [NAME, "x.wild.example", "10.0.0.1"] {
        assert_eq!(fails(&terms, good), (None, None), "{good}");
    }
    for bad in ["b.example", "wild.example", "10.0.0.2"] {
        let (failure, detail) = fails(&terms, bad);
        assert_eq!(failure, Some(Failure::Server(ServerFailure::WrongName)));
        let detail = detail.unwrap();
        assert!(detail.starts_with(&format!("expected {bad}, it is for ")));
        assert!(
            detail.contains(NAME) && detail.contains("10.0.0.1"),
            "{detail}"
        );
    }
    let [other, _] = pem(&[NAME], &rcgen::PKCS_ECDSA_P256_SHA256);
    let stranger = self::terms(Trust::Roots(roots(&other)));
    let (failure, _) = fails(&stranger, NAME);
    let unknown = Some(Failure::Server(ServerFailure::UnknownAuthority));
    assert_eq!(failure, unknown);
    assert_eq!(
        fails(&self::terms(Trust::Anybody), "b.example"),
        (None, None)
    );
    assert!(fails(&self::terms(Trust::Nobody), NAME).0.is_some());
}

#[test]
fn sessions_are_resumed_by_the_settings_that_have_them() {
    for policy in [Policy::Modern, Policy::Intermediate] {
        let (settings, terms) = both(&[NAME], policy);
        let make = || match policy {
            Policy::Modern => ClientSettings::new(&terms, 1),
            Policy::Intermediate => old_client(&terms),
        };
        let by = make();
        let resumed = |by: &ClientSettings| {
            let pair = Pair::open(&settings, by, NAME);
            pair.client.handshake().unwrap().resumed
        };
        assert!(!resumed(&by));
        for _ in 0..20 {
            assert!(resumed(&by), "{policy:?}");
        }
        assert!(!resumed(&make()), "of others nothing is known");
    }
}

#[test]
fn policies_meet_or_say_that_they_do_not() {
    let (modern, terms) = both(&[NAME], Policy::Modern);
    let mut pair = Pair::new(&modern, &old_client(&terms), NAME);
    let failure = pair.exchange(usize::MAX).unwrap_err();
    assert_eq!(failure, Failure::Server(ServerFailure::NoSharedVersion));
}

/// A server that wants certificates of clients, which these authorities have signed.
fn strict(authority: &Identity) -> Arc<ServerConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.key().cert[0].clone()).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&PROVIDER));
    let identity = identity(&[NAME]);
    let config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity.key()))));
    Arc::new(config)
}

#[test]
fn a_server_that_asks_gets_the_certificate_and_one_that_refuses_is_known() {
    let [certificate, key] = pem(&["client.example"], &rcgen::PKCS_ECDSA_P256_SHA256);
    let own = Arc::new(Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap());
    let config = strict(&own);
    let ask = |identity: Option<Arc<Identity>>, old: bool| {
        let mut terms = terms(Trust::Anybody);
        terms.identity = identity;
        let by = match old {
            true => old_client(&terms),
            false => ClientSettings::new(&terms, 1),
        };
        let mut server = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut to_server = Vec::new();
        let mut client = TlsClient::connect(&by, &name(NAME), &mut to_server).unwrap();
        loop {
            let mut bytes = std::mem::take(&mut to_server);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                let _ = server.process_new_packets();
            }
            bytes.clear();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            if bytes.is_empty() {
                return (None, server.peer_certificates().map(|all| all[0].to_vec()));
            }
            if let Err(failure) = client.receive(&mut bytes, &mut to_server) {
                return (Some(failure), None);
            }
        }
    };
    let shown = Some(own.key().cert[0].to_vec());
    assert_eq!(ask(Some(Arc::clone(&own)), false), (None, shown));
    let refused = |failure| (Some(Failure::Server(failure)), None);
    assert_eq!(ask(None, false), refused(ServerFailure::WantsCertificate));
    assert_eq!(ask(None, true), refused(ServerFailure::WantsCertificate));
    let other = identity(&["other.example"]);
    let answer = ask(Some(Arc::clone(&other)), false);
    assert_eq!(answer, refused(ServerFailure::RefusesCertificate));
    assert!(ServerFailure::RefusesCertificate.is_of_handshake());
}

#[test]
fn what_is_no_tls_or_broken_ends_it_with_a_word() {
    let (settings, terms) = both(&[NAME], Policy::Modern);
    let by = ClientSettings::new(&terms, 1);
    let mut out = Vec::new();
    let mut client = TlsClient::connect(&by, &name(NAME), &mut out).unwrap();
    let mut plain = *b"HTTP/1.1 400 Bad Request\r\n\r\n";
    let failure = client.receive(&mut plain, &mut out).unwrap_err();
    assert_eq!(failure, Failure::Server(ServerFailure::NotTls));
    let mut pair = Pair::open(&settings, &by, NAME);
    pair.server.send(b"answer", &mut pair.to_client).unwrap();
    *pair.to_client.last_mut().unwrap() ^= 1;
    let failure = pair.exchange(usize::MAX).unwrap_err();
    assert_eq!(failure, Failure::Server(ServerFailure::BadRecord));
    // It goes on failing.
    assert!(pair.client.receive(&mut [0], &mut out).is_err());
    // Whatever comes, it ends in a bounded time and room.
    for seed in 0..200_u8 {
        let mut client = TlsClient::connect(&by, &name(NAME), &mut out).unwrap();
        let mut flood: Vec<u8> = (0..4096_usize)
            .map(|at| (at as u8).wrapping_mul(seed | 1).wrapping_add(seed))
            .collect();
        flood[..5].copy_from_slice(&[22, 3, 3, 0x40, 0]);
        let failed = (0..32).any(|_| client.receive(&mut flood.clone(), &mut out).is_err());
        assert!(failed && client.held() <= HELD_MAX, "{seed}");
    }
}

#[test]
fn an_end_is_told_and_known_from_a_cut() {
    let (settings, terms) = both(&[NAME], Policy::Modern);
    let mut pair = Pair::open(&settings, &ClientSettings::new(&terms, 1), NAME);
    assert!(!pair.client.is_peer_closed());
    pair.server.send(b"last", &mut pair.to_client).unwrap();
    pair.server.close(&mut pair.to_client);
    assert_eq!(pair.exchange(3).unwrap(), b"last");
    assert!(pair.client.is_peer_closed());
    pair.client.close(&mut pair.to_server);
    let mut bytes = std::mem::take(&mut pair.to_server);
    assert!(pair.server.receive(&mut bytes, &mut Vec::new()).is_ok());
    assert!(pair.server.is_peer_closed());
}

#[test]
fn keys_may_be_updated() {
    let (settings, terms) = both(&[NAME], Policy::Modern);
    let (config, _) = settings.connection();
    let by = ClientSettings::new(&terms, 1);
    let mut server = ServerConnection::new(config).unwrap();
    let mut to_server = Vec::new();
    let mut client = TlsClient::connect(&by, &name(NAME), &mut to_server).unwrap();
    let mut told = false;
    loop {
        let bytes = std::mem::take(&mut to_server);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().unwrap();
        }
        if !server.is_handshaking() && !told {
            told = true;
            server.refresh_traffic_keys().unwrap();
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        if bytes.is_empty() {
            break;
        }
        let plain = client.receive(&mut bytes, &mut to_server).unwrap();
        assert!(
            matches!(plain, Plain::InPlace(0)),
            "nothing of it is content"
        );
    }
    assert!(told && client.is_open());
}

/// What an idle connection in a pool costs besides its receive.
#[test]
fn an_idle_connection_is_small() {
    let bytes = size_of::<TlsClient>();
    assert!(bytes <= 2048, "{bytes} B");
}

#[test]
fn names_are_told_from_what_is_none() {
    for (text, address) in [
        (NAME, false),
        ("my_app", false),
        ("10.0.0.1", true),
        ("::1", true),
    ] {
        assert_eq!(name(text).is_address(), address, "{text}");
        assert_eq!(name(text).as_str(), text);
    }
    for wrong in ["", "a b", "a.example:443", "[::1]", "https://a"] {
        assert_eq!(PeerName::parse(wrong), None, "{wrong}");
    }
}
