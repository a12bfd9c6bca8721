//! Connections without sockets: every version, every split, every way to end.

use std::io::Write as _;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::version::{TLS12, TLS13};

use super::identity::Part;
use super::records::RECORD_MAX;
use super::server::Connection;
use super::server::HELD_MAX;
use super::testing::{Pair, client_config, feed, identity, pem, sent, settings};
use super::*;

fn open_pair(version: &'static rustls::SupportedProtocolVersion) -> Pair {
    let (settings, roots) = settings(&["a.example"], Policy::Intermediate);
    let mut pair = Pair::new(&settings, &client_config(roots, &[version]), "a.example");
    pair.exchange();
    assert!(pair.server.is_open());
    pair
}

#[test]
fn both_versions_carry_bytes_both_ways() {
    for (version, name) in [(&TLS12, "TLSv1.2"), (&TLS13, "TLSv1.3")] {
        let mut pair = open_pair(version);
        let handshake = pair.server.handshake().unwrap();
        assert_eq!((handshake.version, handshake.resumed), (name, false));
        assert_eq!(handshake.protocol.map(|one| one.name()), Some("http/1.1"));
        assert!(handshake.suite.contains("AES") || handshake.suite.contains("CHACHA"));
        if name == "TLSv1.3" {
            assert_eq!(handshake.group, Some("X25519MLKEM768"));
        }
        for size in [1, 100, RECORD_MAX, RECORD_MAX + 1, 200_000] {
            let message: Vec<u8> = (0..size).map(|n| n as u8).collect();
            for part in message.chunks(30_000) {
                let ciphertext = pair.client_sends(part);
                let got: Vec<u8> = ciphertext
                    .chunks(4096)
                    .flat_map(|chunk| pair.receive(chunk))
                    .collect();
                assert!(got == part, "{size}");
                assert_eq!(pair.server.held(), 0);
            }
            pair.server.send(&message, &mut pair.out).unwrap();
            let out = std::mem::take(&mut pair.out);
            assert!(feed(&mut pair.client, &out) == message, "{size}");
        }
    }
}

#[test]
fn a_handshake_may_be_in_small_records_that_come_in_parts() {
    for version in [&TLS12, &TLS13] {
        for part in [1, 3, 40, 90, usize::MAX] {
            let (settings, roots) = settings(&["a.example"], Policy::Intermediate);
            let mut config = client_config(roots, &[version]);
            Arc::get_mut(&mut config).unwrap().max_fragment_size = Some(64);
            let mut pair = Pair::new(&settings, &config, "a.example");
            // What a client has to say behind its handshake may come with it.
            pair.client.writer().write_all(&[7; 500]).unwrap();
            let mut got = Vec::new();
            loop {
                let bytes = sent(&mut pair.client);
                if bytes.is_empty() && pair.out.is_empty() {
                    break;
                }
                for bytes in bytes.chunks(part) {
                    got.append(&mut pair.receive(bytes));
                }
                feed(&mut pair.client, &std::mem::take(&mut pair.out));
            }
            assert_eq!(got, [7; 500], "{part}");
            pair.server.send(b"answer", &mut pair.out).unwrap();
            assert_eq!(feed(&mut pair.client, &pair.out), b"answer", "{part}");
        }
    }
}

#[test]
fn bytes_may_be_split_anywhere() {
    for version in [&TLS12, &TLS13] {
        let (settings, roots) = settings(&["a.example"], Policy::Intermediate);
        let config = client_config(roots, &[version]);
        // The whole handshake and a request, byte by byte.
        let mut pair = Pair::new(&settings, &config, "a.example");
        let mut got = Vec::new();
        let mut asked = false;
        loop {
            let mut bytes = sent(&mut pair.client);
            if bytes.is_empty() {
                if asked {
                    break;
                }
                asked = true;
                bytes = pair.client_sends(b"GET / HTTP/1.1\r\n\r\n");
            }
            for byte in bytes {
                got.append(&mut pair.receive(&[byte]));
            }
            let out = std::mem::take(&mut pair.out);
            feed(&mut pair.client, &out);
        }
        assert_eq!(got, b"GET / HTTP/1.1\r\n\r\n");
        // Two records, cut at each place.
        let mut bytes = pair.client_sends(b"first");
        bytes.append(&mut pair.client_sends(b"second"));
        let mut cut = 0;
        while cut < bytes.len() {
            let mut got = pair.receive(&bytes[..cut]);
            got.append(&mut pair.receive(&bytes[cut..]));
            assert_eq!(got, b"firstsecond", "{cut}");
            bytes = pair.client_sends(b"first");
            bytes.append(&mut pair.client_sends(b"second"));
            cut += 1;
        }
    }
}

#[test]
fn a_request_may_come_with_the_end_of_the_handshake() {
    for version in [&TLS12, &TLS13] {
        let (settings, roots) = settings(&["a.example"], Policy::Intermediate);
        let config = client_config(roots, &[version]);
        let mut pair = Pair::new(&settings, &config, "a.example");
        std::io::Write::write_all(&mut pair.client.writer(), b"early").unwrap();
        let [got, _] = pair.exchange();
        assert_eq!(got, b"early");
    }
}

#[test]
fn an_end_is_told_and_known_from_a_cut() {
    for version in [&TLS12, &TLS13] {
        let mut pair = open_pair(version);
        assert!(!pair.server.is_peer_closed());
        pair.client.send_close_notify();
        let mut bytes = pair.client_sends(b"");
        bytes.extend_from_slice(b"whatever follows");
        assert_eq!(pair.receive(&bytes), b"");
        assert!(pair.server.is_peer_closed());
        assert_eq!(pair.receive(b"and this"), b"");
        assert_eq!(pair.server.held(), 0);
        // Our own direction goes on, until it is closed, once.
        pair.server.send(b"still here", &mut pair.out).unwrap();
        pair.server.close(&mut pair.out);
        let length = pair.out.len();
        pair.server.close(&mut pair.out);
        assert_eq!(pair.out.len(), length);
        let out = std::mem::take(&mut pair.out);
        assert_eq!(feed(&mut pair.client, &out), b"still here");
        assert!(pair.client.process_new_packets().unwrap().peer_has_closed());
    }
}

#[test]
fn a_session_is_resumed_by_another_server_with_the_same_keys() {
    for version in [&TLS12, &TLS13] {
        let identity = identity(&["a.example"]);
        let mut roots = RootCertStore::empty();
        roots.add(identity.key().cert[0].clone()).unwrap();
        let config = client_config(roots, &[version]);
        let keys = [tickets::TicketKey::random().unwrap()];
        let other = |site| {
            let tickets = tickets::Tickets::default();
            tickets.install(&keys);
            let identities = vec![Arc::clone(&identity)];
            Settings::new(
                identities,
                Policy::Intermediate,
                Some(tickets.of_site(site)),
            )
        };
        let resumed = |settings: &Settings| {
            let mut pair = Pair::new(settings, &config, "a.example");
            pair.exchange();
            pair.server.handshake().unwrap().resumed
        };
        assert!(!resumed(&other("a")));
        assert!(resumed(&other("a")), "{version:?}");
        assert!(!resumed(&other("b")), "of another site");
        let none = Settings::new(vec![Arc::clone(&identity)], Policy::Intermediate, None);
        assert!(!resumed(&none));
    }
}

#[test]
fn keys_may_be_updated() {
    let mut pair = open_pair(&TLS13);
    pair.client.refresh_traffic_keys().unwrap();
    let bytes = pair.client_sends(b"by new keys");
    assert_eq!(pair.receive(&bytes), b"by new keys");
    // The answer leaves before what is sent next.
    pair.server.send(b"answer", &mut pair.out).unwrap();
    let out = std::mem::take(&mut pair.out);
    assert_eq!(feed(&mut pair.client, &out), b"answer");
}

#[test]
fn keys_that_are_asked_for_early_are_announced_before_they_are_used() {
    // With the end of the handshake, and while a part of a record is held: cut so far from the end.
    for cut in [0, 1, 10, 30] {
        let (settings, roots) = settings(&["a.example"], Policy::Modern);
        let mut pair = Pair::new(&settings, &client_config(roots, &[&TLS13]), "a.example");
        let hello = sent(&mut pair.client);
        assert_eq!(pair.receive(&hello), b"");
        let out = std::mem::take(&mut pair.out);
        feed(&mut pair.client, &out);
        pair.client.refresh_traffic_keys().unwrap();
        let bytes = pair.client_sends(b"request");
        let (first, rest) = bytes.split_at(bytes.len() - cut);
        let mut got = pair.receive(first);
        got.append(&mut pair.receive(rest));
        assert_eq!(got, b"request");
        pair.server.send(b"answer", &mut pair.out).unwrap();
        let out = std::mem::take(&mut pair.out);
        assert_eq!(feed(&mut pair.client, &out), b"answer", "{cut}");
    }
}

#[test]
fn every_failure_says_what_it_is() {
    let [rsa, key] = pem(&["a.example"], &rcgen::PKCS_RSA_SHA256);
    let rsa = Identity::from_pem(rsa.as_bytes(), key.as_bytes()).unwrap();
    assert_eq!(rsa.kind(), "RSA");
    let (modern, roots) = settings(&["a.example"], Policy::Modern);
    let fail = |settings: &Settings, config: &Arc<rustls::ClientConfig>| {
        let mut pair = Pair::new(settings, config, "a.example");
        loop {
            let mut bytes = sent(&mut pair.client);
            if let Err(failure) = pair.server.receive(&mut bytes, &mut pair.out) {
                let told = !pair.out.is_empty();
                return (failure, told);
            }
            let out = std::mem::take(&mut pair.out);
            let _ = pair.client.read_tls(&mut &*out);
            let _ = pair.client.process_new_packets();
        }
    };
    let old = client_config(roots.clone(), &[&TLS12]);
    assert_eq!(fail(&modern, &old), (Failure::NoSharedVersion, true));
    let stranger = client_config(RootCertStore::empty(), &[&TLS13]);
    let (failure, _) = fail(&modern, &stranger);
    assert_eq!(
        failure.name(),
        "TLS: client doesn't know the certificate's authority"
    );
    let mut other = (*client_config(roots, &[&TLS13])).clone();
    other.alpn_protocols = vec![b"imap".to_vec()];
    let (failure, told) = fail(&modern, &Arc::new(other));
    assert_eq!((failure, told), (Failure::NoSharedProtocol, true));
}

#[test]
fn the_certificate_is_the_first_that_the_client_takes() {
    let [[ec, ec_key], [rsa, rsa_key]] = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_RSA_SHA256]
        .map(|algorithm| pem(&["a.example"], algorithm));
    let identities: Vec<_> = [(rsa, rsa_key), (ec, ec_key)]
        .iter()
        .map(|(certificate, key)| {
            Arc::new(Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap())
        })
        .collect();
    let mut roots = RootCertStore::empty();
    for identity in &identities {
        roots.add(identity.key().cert[0].clone()).unwrap();
    }
    let settings = Settings::new(identities.clone(), Policy::Intermediate, None);
    let got = |wanted: fn(&str) -> bool| {
        let mut provider = (**settings::PROVIDER).clone();
        provider
            .cipher_suites
            .retain(|suite| wanted(suite.suite().as_str().unwrap()));
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS12])
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let mut pair = Pair::new(&settings, &Arc::new(config), "a.example");
        pair.exchange();
        pair.client.peer_certificates().unwrap()[0].clone()
    };
    assert_eq!(got(|_| true), identities[1].key().cert[0]);
    assert_eq!(
        got(|name| name.contains("RSA")),
        identities[0].key().cert[0]
    );
}

#[test]
fn garbage_and_changed_records_end_the_connection_with_an_alert() {
    for version in [&TLS12, &TLS13] {
        let mut pair = open_pair(version);
        let mut bytes = pair.client_sends(b"secret");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let failed = pair.server.receive(&mut bytes, &mut pair.out);
        assert_eq!(failed.unwrap_err(), Failure::BadRecord);
        assert_eq!(
            pair.out[0],
            if version.version == TLS12.version {
                21
            } else {
                23
            }
        );
        // It goes on failing, and sends nothing any more.
        let length = pair.out.len();
        assert!(pair.server.receive(&mut bytes, &mut pair.out).is_err());
        assert_eq!(pair.out.len(), length);
        let mut pair = open_pair(version);
        let mut bytes = *b"\x17\x03\x03\xff\xff and more";
        assert!(pair.server.receive(&mut bytes, &mut pair.out).is_err());
    }
}

#[test]
fn what_is_held_is_bounded() {
    let mut pair = open_pair(&TLS13);
    let record = [&[23, 3, 3, 0x40, 0x11][..], &[0; 0x4010]].concat();
    for chunk in record.chunks(4096) {
        assert_eq!(pair.receive(chunk), b"");
    }
    assert_eq!(pair.server.held(), record.len());
    let mut flood = vec![0; HELD_MAX];
    let failed = pair.server.receive(&mut flood, &mut pair.out);
    assert_eq!(failed.unwrap_err(), Failure::TooMuch);
}

#[test]
fn half_a_message_is_no_trouble_for_the_other_direction() {
    let mut pair = open_pair(&TLS13);
    let bytes = pair.client_sends(b"request");
    assert_eq!(pair.receive(&bytes[..10]), b"");
    pair.server.send(b"answer", &mut pair.out).unwrap();
    let out = std::mem::take(&mut pair.out);
    assert_eq!(feed(&mut pair.client, &out), b"answer");
    assert_eq!(pair.receive(&bytes[10..]), b"request");
}

#[test]
fn a_wrong_certificate_or_key_says_which_and_what_to_do() {
    let [certificate, key] = pem(&["a.example"], &rcgen::PKCS_ECDSA_P256_SHA256);
    let [_, other] = pem(&["a.example"], &rcgen::PKCS_ECDSA_P256_SHA256);
    let error = |certificate: &str, key: &str| {
        Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap_err()
    };
    let damaged = certificate.replacen("-----END", "----- END", 1);
    for (certificate, key, part, message) in [
        (
            &*certificate,
            &*other,
            Part::Key,
            "belongs to another certificate",
        ),
        ("", &key, Part::Certificate, "holds no certificate in PEM"),
        (&key, &key, Part::Certificate, "holds no certificate in PEM"),
        (
            "\x30\x03der",
            &key,
            Part::Certificate,
            "holds no certificate in PEM",
        ),
        (&damaged, &key, Part::Certificate, "is damaged"),
        (
            &certificate,
            &certificate,
            Part::Key,
            "holds a certificate and no key",
        ),
        (&certificate, "", Part::Key, "holds no private key in PEM"),
        (
            &certificate,
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
            Part::Key,
            "needs a password",
        ),
        (
            &certificate,
            "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n",
            Part::Key,
            "of a kind that isn't supported",
        ),
        (
            "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
            &key,
            Part::Certificate,
            "can't be read",
        ),
        (
            &certificate.repeat(17),
            &key,
            Part::Certificate,
            "17 certificates",
        ),
    ] {
        let error = error(certificate, key);
        assert_eq!(error.part, part, "{error:?}");
        assert!(error.message.contains(message), "{error:?}");
        assert!(!error.help.is_empty());
    }
    let both = format!("{key}{certificate}");
    let identity = Identity::from_pem(both.as_bytes(), both.as_bytes()).unwrap();
    assert_eq!(identity.names(), ["a.example"]);
    assert!(!identity.issuer().is_empty());
}

#[test]
fn names_are_covered_by_whole_labels() {
    let identity = identity(&["a.example", "*.b.example"]);
    for (name, covered) in [
        ("a.example", true),
        ("x.b.example", true),
        ("*.b.example", true),
        ("b.example", false),
        ("y.x.b.example", false),
        ("*.a.example", false),
    ] {
        assert_eq!(identity.covers(name), covered, "{name}");
    }
}

/// What every connection holds; rustls has several times as much, and is gone after the handshake.
#[test]
fn an_idle_connection_is_small() {
    for version in [&TLS12, &TLS13] {
        let mut pair = open_pair(version);
        assert_eq!(pair.server.held(), 0);
        let bytes = match pair.server.connection() {
            Connection::Ours(layer) => size_of_val(&**layer) + size_of::<TlsServer>(),
            _ => panic!("rustls is still there"),
        };
        assert!(bytes <= 1280, "{bytes} B");
    }
}
