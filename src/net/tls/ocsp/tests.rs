//! Responses in every form: right ones of the authority and of its responder, and all that must never reach a
//! client.

use std::sync::{Arc, Mutex};

use rcgen::CustomExtension;
use rcgen::ExtendedKeyUsagePurpose::{OcspSigning, ServerAuth};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::super::testing::Pair;
use super::super::{Identity, Policy, Settings};
use super::testing::refusal;
use super::*;

fn checked(response: &[u8], own: &Issued, issuer: &Authority) -> Result<Statement, OcspError> {
    verify(response, (&own.der, &issuer.der), now())
}

#[test]
fn an_authority_or_its_responder_may_say_that_a_certificate_is_good() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let authority = Authority::new("CA", algorithm);
        let own = authority.issue(|_| {});
        for sha256 in [false, true] {
            let said = Said {
                sha256,
                ..Said::good(&own, &authority)
            };
            let statement = checked(&said.response(), &own, &authority).unwrap();
            assert_eq!(Some(statement.next_update), said.to);
            assert_eq!(statement.this_update, said.from);
        }
    }
    let authority = Authority::new("CA", &rcgen::PKCS_ECDSA_P256_SHA256);
    let own = authority.issue(|_| {});
    let responder = authority.responder(&[OcspSigning], 5);
    let said = Said {
        by: Some(&responder),
        ..Said::good(&own, &authority)
    };
    assert!(checked(&said.response(), &own, &authority).is_ok());
}

#[test]
fn nothing_else_is_believed() {
    let algorithm = &rcgen::PKCS_ECDSA_P256_SHA256;
    let (authority, stranger) = (
        Authority::new("CA", algorithm),
        Authority::new("Other", algorithm),
    );
    let impostor = Authority::new("CA", algorithm);
    let (own, other) = (authority.issue(|_| {}), authority.issue(|_| {}));
    let good = || Said::good(&own, &authority);
    let [for_servers, ended] = [(ServerAuth, 5), (OcspSigning, -1)]
        .map(|(purpose, days)| authority.responder(&[purpose], days));
    let [of_stranger, of_impostor] =
        [&stranger, &impostor].map(|authority| authority.responder(&[OcspSigning], 5));
    let by = |by| Said {
        by: Some(by),
        ..good()
    };
    let forged = {
        // Signed by one of the same name.
        let mut said = Said::good(&own, &impostor);
        said.issuer = &impostor;
        said
    };
    for (what, said, error) in [
        (
            "another",
            Said::good(&other, &authority),
            OcspError::OfAnother,
        ),
        ("forged", forged, OcspError::Signature),
        (
            "of a stranger",
            Said::good(&own, &stranger),
            OcspError::Signature,
        ),
        ("by a server", by(&for_servers), OcspError::Signature),
        ("by one that has ended", by(&ended), OcspError::Signature),
        ("by a stranger", by(&of_stranger), OcspError::Signature),
        ("by an impostor", by(&of_impostor), OcspError::Signature),
        ("by the certificate itself", by(&own), OcspError::Signature),
        (
            "revoked",
            Said {
                status: REVOKED,
                ..good()
            },
            OcspError::Revoked(0),
        ),
        (
            "unknown",
            Said {
                status: 0x82,
                ..good()
            },
            OcspError::Unknown,
        ),
        (
            "early",
            Said {
                from: now() + DAY,
                to: Some(now() + 2 * DAY),
                ..good()
            },
            OcspError::Early,
        ),
        (
            "ended",
            Said {
                to: Some(now() - 1),
                ..good()
            },
            OcspError::Ended,
        ),
        ("endless", Said { to: None, ..good() }, OcspError::Endless),
    ] {
        let got = checked(&said.response(), &own, &authority);
        let got = got.map_err(|error| match error {
            // As of when it was said.
            OcspError::Revoked(as_of) if as_of == said.from => OcspError::Revoked(0),
            error => error,
        });
        assert_eq!(got, Err(error), "{what}");
        assert!(!error.message().is_empty() && !error.help().is_empty());
    }
    for status in [1, 2, 3, 5, 6] {
        let got = checked(&refusal(status), &own, &authority);
        assert!(matches!(got, Err(OcspError::Refused(_))), "{status}");
    }
    assert_eq!(
        checked(&refusal(0), &own, &authority),
        Err(OcspError::Malformed)
    );
    assert_eq!(
        checked(&refusal(9), &own, &authority),
        Err(OcspError::Malformed)
    );
    let response = good().response();
    let got = verify(&response, (&own.der, &stranger.der), now());
    assert_eq!(got, Err(OcspError::NoIssuer));
}

#[test]
fn a_cut_or_changed_response_is_worth_nothing() {
    let authority = Authority::new("CA", &rcgen::PKCS_ECDSA_P256_SHA256);
    let own = authority.issue(|_| {});
    let response = Said::good(&own, &authority).response();
    for end in 0..response.len() {
        assert!(
            checked(&response[..end], &own, &authority).is_err(),
            "{end}"
        );
    }
    let longer = [&response[..], b"\0"].concat();
    assert!(checked(&longer, &own, &authority).is_err());
    for at in 0..response.len() {
        let mut changed = response.clone();
        changed[at] ^= 0x10;
        assert!(checked(&changed, &own, &authority).is_err(), "{at}");
    }
}

#[test]
fn a_request_names_the_certificate_and_the_responder_is_found() {
    let authority = Authority::new("CA", &rcgen::PKCS_ECDSA_P256_SHA256);
    let url = "http://ocsp.example/a";
    let own = authority.issue(|params| params.custom_extensions.push(names_responder(url)));
    let parts = x509::parts(&own.der).unwrap();
    assert_eq!(parts.ocsp_responder(), Some(url));
    let request = request(&own.der, &authority.der).unwrap();
    // OCSPRequest, TBSRequest, requestList, Request: what is in it is the CertID of an answer.
    let mut inner = Der(&request);
    for _ in 0..4 {
        inner = Der(inner.expect(SEQUENCE).unwrap());
    }
    let issuer = x509::parts(&authority.der).unwrap();
    let id = inner.expect(SEQUENCE).unwrap();
    assert_eq!(is_about(id, &parts, &issuer), Some(true));
    let silent = authority.issue(|_| {});
    let silent = x509::parts(&silent.der).unwrap();
    assert_eq!(silent.ocsp_responder(), None);
    assert_eq!(is_about(id, &silent, &issuer), Some(false));
    assert!(!silent.signs_ocsp() && !silent.must_staple());
    let feature = |content: &[u8]| {
        CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], content.to_vec())
    };
    // status_request_v2 alone (RFC 6961), both, an empty list, and what is no list.
    for (content, expected) in [
        (&[0x30, 3, 2, 1, 17][..], false),
        (&[0x30, 6, 2, 1, 17, 2, 1, 5], true),
        (&[0x30, 0], false),
        (&[2, 1, 5], false),
    ] {
        let own = authority.issue(|params| params.custom_extensions.push(feature(content)));
        let parts = x509::parts(&own.der).unwrap();
        assert_eq!(parts.must_staple(), expected, "{content:?}");
    }
    assert_eq!(super::request(b"x", &authority.der), None);
}

/// Takes every certificate, and keeps what was stapled to it.
#[derive(Debug, Default)]
struct Stapled(Mutex<Vec<u8>>);

impl ServerCertVerifier for Stapled {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        response: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.0.lock().unwrap() = response.to_vec();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[test]
fn a_client_gets_what_holds_and_nothing_else() {
    let authority = Authority::new("CA", &rcgen::PKCS_ECDSA_P256_SHA256);
    let own = authority.issue(|_| {});
    let chain = format!("{}{}", own.pem, authority.pem);
    let key = own.key.serialize_pem();
    let identity = Arc::new(Identity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap());
    let settings = Settings::new(vec![Arc::clone(&identity)], Policy::Intermediate, None);
    let stapled = || {
        let got = [&rustls::version::TLS12, &rustls::version::TLS13].map(|version| {
            let verifier = Arc::new(Stapled::default());
            let config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
                .with_protocol_versions(&[version])
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<_>)
                .with_no_client_auth();
            Pair::new(&settings, &Arc::new(config), "a.example").exchange();
            verifier.0.lock().unwrap().clone()
        });
        assert_eq!(got[0], got[1]);
        got[0].clone()
    };
    assert!(stapled().is_empty() && identity.statement().is_none());
    let said = Said::good(&own, &authority);
    let response = said.response();
    let statement = identity.staple(&response, now()).unwrap();
    assert_eq!(Some(statement.next_update), said.to);
    assert_eq!(stapled(), response);
    // What is wrong changes nothing.
    let revoked = Said {
        status: REVOKED,
        ..Said::good(&own, &authority)
    };
    let refused = identity.staple(&revoked.response(), now());
    assert_eq!(refused, Err(OcspError::Revoked(revoked.from)));
    assert_eq!(identity.statement(), Some(statement));
    assert_eq!(stapled(), response);
    // One that ends is given to nobody any more.
    let ends = Said {
        to: Some(now()),
        ..Said::good(&own, &authority)
    };
    identity.staple(&ends.response(), now() - 10).unwrap();
    assert!(stapled().is_empty());
    let alone = Identity::from_pem(own.pem.as_bytes(), key.as_bytes()).unwrap();
    assert_eq!(alone.staple(&response, now()), Err(OcspError::NoIssuer));
}
