//! Clients and their certificates without sockets: in every wrong form, by both versions, and what becomes of
//! their sessions.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use super::super::testing::{Pair, identity, sent};
use super::super::tickets::{TicketKey, Tickets};
use super::super::{Identity, Policy, Settings};
use super::*;

const BOTH: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
const DAY: i64 = 86_400;

fn now() -> i64 {
    clock::unix_s()
}

/// An authority, with what makes certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// Sets from when and until when in days from now something is valid.
macro_rules! valid {
    ($from:expr, $from_days:expr, $to:expr, $to_days:expr) => {
        let day = |days: i64| {
            let seconds = u64::try_from(now() + days * DAY).unwrap();
            date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
        };
        $from = day($from_days);
        $to = day($to_days);
    };
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    valid!(params.not_before, -10, params.not_after, 10);
    params
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority_params(name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// One beneath this one.
    fn below(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority_params(name);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Shown {
        let mut params = named("Anna");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from(0xabcd));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Shown {
            pem: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key,
        }
    }

    /// A list that revokes these numbers and ends in so many days.
    fn list(&self, revoked: &[u64], to_days: i64) -> String {
        let mut params = CertificateRevocationListParams {
            this_update: date_time_ymd(1970, 1, 1),
            next_update: date_time_ymd(1970, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        valid!(params.this_update, -5, params.next_update, to_days);
        for number in revoked {
            params.revoked_certs.push(RevokedCertParams {
                serial_number: SerialNumber::from(*number),
                revocation_time: params.this_update,
                reason_code: None,
                invalidity_date: None,
            });
        }
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// What a client shows.
struct Shown {
    pem: String,
    key: KeyPair,
}

impl Shown {
    fn chain(&self, above: &[&str]) -> Vec<CertificateDer<'static>> {
        let text = format!("{}{}", self.pem, above.concat());
        CertificateDer::pem_slice_iter(text.as_bytes())
            .map(Result::unwrap)
            .collect()
    }
}

struct Site {
    identity: Arc<Identity>,
    tickets: Tickets,
}

impl Site {
    fn new() -> Self {
        let tickets = Tickets::default();
        tickets.install(&[TicketKey::random().unwrap()]);
        Self {
            identity: identity(&["a.example"]),
            tickets,
        }
    }

    fn settings(&self, clients: Option<&Arc<Clients>>) -> Arc<Settings> {
        Settings::with_clients(
            vec![Arc::clone(&self.identity)],
            Policy::Intermediate,
            Some(self.tickets.of_site("a.example")),
            clients.cloned(),
        )
    }

    fn client(
        &self,
        shown: Option<(Vec<CertificateDer<'static>>, &KeyPair)>,
        version: &'static SupportedProtocolVersion,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.identity.key().cert[0].clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match shown {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                // Also one that doesn't fit, or is damaged.
                let signer = PROVIDER.key_provider.load_private_key(key).unwrap();
                let certified = rustls::sign::CertifiedKey::new(chain, signer);
                builder.with_client_cert_resolver(Arc::new(Always(Arc::new(certified))))
            }
        })
    }
}

/// Shows this certificate to whoever asks for one, whatever authorities he names.
#[derive(Debug)]
struct Always(Arc<rustls::sign::CertifiedKey>);

impl rustls::client::ResolvesClientCert for Always {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A whole handshake, or why there is none.
fn try_pair(settings: &Settings, config: &Arc<ClientConfig>) -> Result<Pair, Failure> {
    let mut pair = Pair::new(settings, config, "a.example");
    loop {
        let mut bytes = sent(&mut pair.client);
        if bytes.is_empty() && pair.out.is_empty() {
            return Ok(pair);
        }
        if let Err(failure) = pair.server.receive(&mut bytes, &mut pair.out) {
            assert!(!pair.out.is_empty(), "the client is told");
            assert!(!pair.server.is_open() && pair.server.client().is_none());
            return Err(failure);
        }
        let out = std::mem::take(&mut pair.out);
        pair.client.read_tls(&mut &*out).unwrap();
        pair.client.process_new_packets().unwrap();
    }
}

fn clients(authorities: &[&Authority], lists: &[&str], is_required: bool) -> Arc<Clients> {
    let authorities: Vec<&str> = authorities.iter().map(|one| &*one.pem).collect();
    Clients::from_pem(&authorities, lists, is_required).unwrap()
}

#[test]
fn a_client_is_who_its_certificate_says() {
    let authority = Authority::new("Example CA");
    let shown = authority.issue(|params| {
        params
            .distinguished_name
            .push(DnType::OrganizationName, "a\r\nb, c\u{fc}");
    });
    let (site, clients) = (Site::new(), clients(&[&authority], &[], true));
    let settings = site.settings(Some(&clients));
    for version in BOTH {
        let config = site.client(Some((shown.chain(&[]), &shown.key)), version);
        let mut pair = try_pair(&settings, &config).unwrap();
        let client = pair.server.client().unwrap();
        assert_eq!(*client.subject, *b"O=a\\0D\\0Ab\\, c\\C3\\BC,CN=Anna");
        assert_eq!(*client.issuer, *b"CN=Example CA");
        assert_eq!(*client.serial, *b"ABCD");
        let der = &shown.chain(&[])[0];
        let fingerprint = digest::digest(&digest::SHA256, der);
        assert_eq!(
            *client.fingerprint,
            *hexadecimal(fingerprint.as_ref(), false).as_bytes()
        );
        pair.server.admits(&clients, now()).unwrap();
        let later = pair.server.admits(&clients, now() + 11 * DAY);
        assert_eq!(later, Err(Failure::ClientExpired), "it ends while open");
    }
}

#[test]
fn every_wrong_certificate_is_refused_by_its_name() {
    let (authority, stranger) = (Authority::new("CA"), Authority::new("Other"));
    // The same name, another key.
    let impostor = Authority::new("CA");
    let good = || authority.issue(|_| {});
    let issued = |change: fn(&mut CertificateParams)| authority.issue(change);
    let self_made = {
        let key = KeyPair::generate().unwrap();
        let pem = named("Anna").self_signed(&key).unwrap().pem();
        Shown { pem, key }
    };
    let below = authority.below("Below");
    // Two more than a path may have.
    let mut deep = vec![authority.below("Deep 0")];
    for depth in 1..8 {
        let next = deep[depth - 1].below(&format!("Deep {depth}"));
        deep.push(next);
    }
    let deepest = deep[7].issue(|_| {});
    let above: Vec<&str> = deep.iter().rev().map(|one| &*one.pem).collect();
    let with_key_of_another = {
        let mut shown = good();
        shown.key = KeyPair::generate().unwrap();
        shown
    };
    let garbage = CertificateDer::from(b"\x30\x03no!".to_vec());
    let list = authority.list(&[7], 5);
    let ended = authority.list(&[], -1);
    let of_other = stranger.list(&[], 5);
    let of_impostor = impostor.list(&[], 5);
    let expired = |params: &mut CertificateParams| {
        valid!(params.not_before, -10, params.not_after, -1);
    };
    let early = |params: &mut CertificateParams| {
        valid!(params.not_before, 1, params.not_after, 10);
    };
    let for_servers = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    let seventh = |params: &mut CertificateParams| params.serial_number = Some(7_u64.into());
    let endless = |params: &mut CertificateParams| {
        params
            .distinguished_name
            .push(DnType::OrganizationName, "x".repeat(3000));
    };
    type Case<'t> = (&'t str, Shown, Vec<&'t str>, Vec<&'t str>, Failure);
    let cases: Vec<Case<'_>> = vec![
        (
            "self-made",
            self_made,
            vec![],
            vec![],
            Failure::ClientUnknownAuthority,
        ),
        (
            "another authority",
            stranger.issue(|_| {}),
            vec![],
            vec![],
            Failure::ClientUnknownAuthority,
        ),
        (
            "an authority of the same name",
            impostor.issue(|_| {}),
            vec![],
            vec![],
            Failure::ClientUnreadable,
        ),
        (
            "expired",
            issued(expired),
            vec![],
            vec![],
            Failure::ClientExpired,
        ),
        (
            "early",
            issued(early),
            vec![],
            vec![],
            Failure::ClientNotYetValid,
        ),
        (
            "for servers",
            issued(for_servers),
            vec![],
            vec![],
            Failure::ClientPurpose,
        ),
        (
            "revoked",
            issued(seventh),
            vec![],
            vec![&*list],
            Failure::ClientRevoked,
        ),
        (
            "an ended list",
            good(),
            vec![],
            vec![&*ended],
            Failure::ListExpired,
        ),
        (
            "another's list",
            good(),
            vec![],
            vec![&*of_other],
            Failure::ClientUnlisted,
        ),
        (
            "a forged list",
            good(),
            vec![],
            vec![&*of_impostor],
            Failure::ClientUnlisted,
        ),
        (
            "no authority between",
            below.issue(|_| {}),
            vec![],
            vec![],
            Failure::ClientUnknownAuthority,
        ),
        (
            "an authority between without a list",
            below.issue(|_| {}),
            vec![&below.pem],
            vec![&*list],
            Failure::ClientUnlisted,
        ),
        (
            "too deep",
            deepest,
            above,
            vec![],
            Failure::ClientUnreadable,
        ),
        (
            "an endless name",
            issued(endless),
            vec![],
            vec![],
            Failure::ClientUnreadable,
        ),
        (
            "another key",
            with_key_of_another,
            vec![],
            vec![],
            Failure::ClientUnreadable,
        ),
    ];
    let site = Site::new();
    for version in BOTH {
        for (what, shown, above, lists, failure) in &cases {
            // A wrong certificate is no better than none where one is optional.
            for is_required in [true, false] {
                let clients = clients(&[&authority], lists, is_required);
                let config = site.client(Some((shown.chain(above), &shown.key)), version);
                let refused = refusal(&site.settings(Some(&clients)), &config);
                assert_eq!(refused, Some(*failure), "{what}, {version:?}");
            }
        }
        let settings = site.settings(Some(&clients(&[&authority], &[], true)));
        let key = KeyPair::generate().unwrap();
        let config = site.client(Some((vec![garbage.clone()], &key)), version);
        assert_eq!(refusal(&settings, &config), Some(Failure::ClientUnreadable));
        let config = site.client(None, version);
        let none = refusal(&settings, &config);
        assert_eq!(none, Some(Failure::NoClientCertificate));
        // And right ones are not.
        for (shown, above, lists) in [
            (good(), vec![], vec![]),
            (good(), vec![&*stranger.pem], vec![&*list]),
            (below.issue(|_| {}), vec![&*below.pem], vec![]),
            (
                issued(|params| params.extended_key_usages.clear()),
                vec![],
                vec![],
            ),
        ] {
            let settings = site.settings(Some(&clients(&[&authority], &lists, true)));
            let config = site.client(Some((shown.chain(&above), &shown.key)), version);
            assert_eq!(refusal(&settings, &config), None);
        }
    }
}

/// Why a handshake comes to no end; the client need not have been told where it ends with the last
/// message.
fn refusal(settings: &Settings, config: &Arc<ClientConfig>) -> Option<Failure> {
    let mut pair = Pair::new(settings, config, "a.example");
    loop {
        let mut bytes = sent(&mut pair.client);
        if bytes.is_empty() && pair.out.is_empty() {
            assert!(pair.server.is_open());
            return None;
        }
        if let Err(failure) = pair.server.receive(&mut bytes, &mut pair.out) {
            assert!(!pair.server.is_open() && pair.server.client().is_none());
            return Some(failure);
        }
        let out = std::mem::take(&mut pair.out);
        pair.client.read_tls(&mut &*out).unwrap();
        pair.client.process_new_packets().unwrap();
    }
}

#[test]
fn a_refused_certificate_is_named_for_the_log() {
    let (authority, stranger) = (Authority::new("CA"), Authority::new("Other"));
    let shown = stranger.issue(|_| {});
    let site = Site::new();
    let settings = site.settings(Some(&clients(&[&authority], &[], true)));
    let config = site.client(Some((shown.chain(&[]), &shown.key)), &TLS13);
    let mut pair = Pair::new(&settings, &config, "a.example");
    while pair.server.refused_client().is_none() {
        let mut bytes = sent(&mut pair.client);
        let _ = pair.server.receive(&mut bytes, &mut pair.out);
        let out = std::mem::take(&mut pair.out);
        let _ = pair.client.read_tls(&mut &*out);
        let _ = pair.client.process_new_packets();
    }
    assert_eq!(pair.server.refused_client(), Some("CN=Anna"));
}

#[test]
fn who_need_not_show_one_may_come_without() {
    let authority = Authority::new("CA");
    let (site, optional) = (Site::new(), clients(&[&authority], &[], false));
    let settings = site.settings(Some(&optional));
    for version in BOTH {
        let mut pair = try_pair(&settings, &site.client(None, version)).unwrap();
        assert!(pair.server.client().is_none());
        pair.server.admits(&optional, now()).unwrap();
        // A reload that requires one is told from one that doesn't.
        let required = clients(&[&authority], &[], true);
        let refused = pair.server.admits(&required, now());
        assert_eq!(refused, Err(Failure::NoClientCertificate));
        let mut never_asked = try_pair(&site.settings(None), &site.client(None, version)).unwrap();
        let refused = never_asked.server.admits(&optional, now());
        assert_eq!(refused, Err(Failure::NoClientCertificate));
    }
}

#[test]
fn a_session_brings_its_client_along_only_where_nothing_has_changed() {
    let authority = Authority::new("CA");
    let shown = authority.issue(|_| {});
    let site = Site::new();
    let first = clients(&[&authority], &[&authority.list(&[7], 5)], true);
    for version in BOTH {
        let config = site.client(Some((shown.chain(&[]), &shown.key)), version);
        let resumed = |clients: Option<&Arc<Clients>>| {
            let pair = try_pair(&site.settings(clients), &config)?;
            let subject = pair.server.client().map(|client| client.subject.to_vec());
            Ok((pair.server.handshake().unwrap().resumed, subject))
        };
        let anna = Some(b"CN=Anna".to_vec());
        assert_eq!(resumed(Some(&first)), Ok((false, anna.clone())));
        assert_eq!(resumed(Some(&first)), Ok((true, anna.clone())));
        // The same texts, as another worker has them.
        let same = clients(&[&authority], &[&authority.list(&[7], 5)], true);
        assert_eq!(resumed(Some(&first)), Ok((true, anna.clone())));
        drop(same);
        // Without clients, with others, with another list, and where it is optional.
        assert_eq!(resumed(None), Ok((false, None)));
        assert_eq!(resumed(Some(&first)), Ok((false, anna.clone())));
        let optional = clients(&[&authority], &[], false);
        assert_eq!(resumed(Some(&optional)), Ok((false, anna)));
        let after = clients(&[&authority], &[&authority.list(&[7, 0xabcd], 5)], true);
        assert_eq!(resumed(Some(&after)), Err(Failure::ClientRevoked));
    }
}

#[test]
fn an_open_connection_is_verified_again_when_a_reload_brings_others() {
    let (authority, stranger) = (Authority::new("CA"), Authority::new("Other"));
    let shown = authority.issue(|_| {});
    let site = Site::new();
    let first = clients(&[&authority], &[&authority.list(&[7], 5)], true);
    let config = site.client(Some((shown.chain(&[]), &shown.key)), &TLS13);
    let mut pair = try_pair(&site.settings(Some(&first)), &config).unwrap();
    let next = clients(&[&authority], &[&authority.list(&[8], 3)], true);
    assert_eq!(pair.server.admits(&next, now()), Ok(()));
    let after_the_list = pair.server.admits(&next, now() + 4 * DAY);
    assert_eq!(after_the_list, Err(Failure::ClientExpired));
    let revoking = clients(&[&authority], &[&authority.list(&[0xabcd], 5)], true);
    assert_eq!(
        pair.server.admits(&revoking, now()),
        Err(Failure::ClientRevoked)
    );
    let others = clients(&[&stranger], &[], true);
    assert_eq!(
        pair.server.admits(&others, now()),
        Err(Failure::ClientUnknownAuthority)
    );
    // What was refused has changed nothing.
    assert_eq!(pair.server.admits(&next, now()), Ok(()));
}

#[test]
fn a_ticket_ends_with_what_it_was_made_by() {
    let site = Site::new();
    let of_site = site.tickets.of_site("a.example");
    let client = Client::new(&clients(&[&Authority::new("CA")], &[], true));
    let tickets = client.tickets(of_site.clone());
    let ticket = tickets.encrypt(b"session").unwrap();
    assert_eq!(tickets.decrypt(&ticket).unwrap(), b"session");
    client.watch.until.store(now() - 1, Ordering::Relaxed);
    let ended = tickets.encrypt(b"session").unwrap();
    assert_eq!(tickets.decrypt(&ended), None);
    assert_eq!(tickets.decrypt(&of_site.encrypt(b"short").unwrap()), None);
}

#[test]
fn a_wrong_file_says_which_and_what_to_do() {
    let authority = Authority::new("CA");
    let list = authority.list(&[], 5);
    let wrong = |authorities: &[&str], lists: &[&str]| {
        let error = Clients::from_pem(authorities, lists, true).unwrap_err();
        assert!(!error.help.is_empty());
        (error.part, error.message)
    };
    let good = &*authority.pem;
    let damaged = good.replacen("-----END", "----- END", 1);
    let empty_one = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let empty_list = "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n";
    let many = good.repeat(257);
    for (authorities, lists, part, expected) in [
        (
            vec![""],
            vec![],
            ClientsPart::Authorities(0),
            "no certificate",
        ),
        (
            vec![good, &list],
            vec![],
            ClientsPart::Authorities(1),
            "no certificate",
        ),
        (
            vec![&*damaged],
            vec![],
            ClientsPart::Authorities(0),
            "is damaged",
        ),
        (
            vec![good, empty_one],
            vec![],
            ClientsPart::Authorities(1),
            "can't be read",
        ),
        (
            vec![&*many],
            vec![],
            ClientsPart::Authorities(0),
            "more than 256",
        ),
        (
            vec![good],
            vec![""],
            ClientsPart::Lists(0),
            "no revocation list",
        ),
        (
            vec![good],
            vec![good],
            ClientsPart::Lists(0),
            "no revocation list",
        ),
        (
            vec![good],
            vec![&*list, empty_list],
            ClientsPart::Lists(1),
            "can't be read",
        ),
    ] {
        let (found, message) = wrong(&authorities, &lists);
        assert_eq!(found, part, "{message}");
        assert!(message.contains(expected), "{message}");
    }
    assert!(Clients::from_pem(&[], &[], true).is_err(), "never open");
    let other = Authority::new("Other");
    let partly = clients(&[&authority, &other], &[&list], true);
    assert_eq!(partly.unlisted(), ["Other"]);
    assert_eq!(partly.authorities().len(), 2);
}
