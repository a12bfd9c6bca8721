//! An authority, its certificates and what it says of them, for tests.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, SigningKey as _, date_time_ymd,
};

use super::*;
use crate::util::clock;

pub(crate) const DAY: i64 = 86_400;

pub(crate) fn now() -> i64 {
    clock::unix_s()
}

/// An authority.
pub(crate) struct Authority {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) der: Vec<u8>,
    pub(crate) pem: String,
}

/// A certificate and its key.
pub(crate) struct Issued {
    pub(crate) der: Vec<u8>,
    pub(crate) pem: String,
    pub(crate) key: KeyPair,
}

impl Authority {
    pub(crate) fn new(name: &str, algorithm: &'static rcgen::SignatureAlgorithm) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            der: certificate.der().to_vec(),
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            der: certificate.der().to_vec(),
            pem: certificate.pem(),
            key,
        }
    }

    /// A certificate that may sign in its place.
    pub(crate) fn responder(&self, purposes: &[ExtendedKeyUsagePurpose], to_days: i64) -> Issued {
        self.issue(|params| {
            params.extended_key_usages = purposes.to_vec();
            let end = u64::try_from(now() + to_days * DAY).unwrap();
            params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
        })
    }
}

/// The extension that names a responder.
pub(crate) fn names_responder(url: &str) -> CustomExtension {
    let access = element(
        SEQUENCE,
        &[
            &element(OBJECT_IDENTIFIER, &[&BASIC[..8]]),
            &element(0x86, &[url.as_bytes()]),
        ],
    );
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], element(SEQUENCE, &[&access]))
}

/// What is said of a certificate, and by whom.
pub(crate) struct Said<'s> {
    pub(crate) of: &'s Issued,
    pub(crate) issuer: &'s Authority,
    pub(crate) status: u8,
    pub(crate) from: i64,
    pub(crate) to: Option<i64>,
    pub(crate) sha256: bool,
    /// Instead of the authority: the key, and the certificate that comes along.
    pub(crate) by: Option<&'s Issued>,
}

impl<'s> Said<'s> {
    pub(crate) fn good(of: &'s Issued, issuer: &'s Authority) -> Self {
        let now = now();
        Self {
            of,
            issuer,
            status: GOOD,
            from: now - DAY,
            to: Some(now + DAY),
            sha256: false,
            by: None,
        }
    }

    pub(crate) fn response(&self) -> Vec<u8> {
        let (own, issuer) = (
            x509::parts(&self.of.der).unwrap(),
            x509::parts(&self.issuer.der).unwrap(),
        );
        let (algorithm, name) = match self.sha256 {
            true => (&digest::SHA256, SHA256),
            false => (&digest::SHA1_FOR_LEGACY_USE_ONLY, SHA1),
        };
        let hash = |of: &[u8]| element(OCTET_STRING, &[digest::digest(algorithm, of).as_ref()]);
        let subject = element(SEQUENCE, &[issuer.subject]);
        let certificate = element(
            SEQUENCE,
            &[
                &element(SEQUENCE, &[&element(OBJECT_IDENTIFIER, &[name]), &NULL]),
                &hash(&subject),
                &hash(issuer.public_key),
                &element(INTEGER, &[own.serial]),
            ],
        );
        let next = self.to.map(|to| element(FIRST, &[&time(to)]));
        // Revoked: since when.
        let since = (self.status == REVOKED).then(|| time(self.from));
        let statement = element(
            SEQUENCE,
            &[
                &certificate,
                &element(self.status, &[&since.unwrap_or_default()]),
                &time(self.from),
                &next.unwrap_or_default(),
            ],
        );
        let data = element(
            SEQUENCE,
            &[
                &element(0xa1, &[&subject]),
                &time(self.from),
                &element(SEQUENCE, &[&statement]),
            ],
        );
        let (key, certificates) = match self.by {
            Some(by) => {
                let list = element(SEQUENCE, &[&by.der]);
                (&by.key, element(FIRST, &[&list]))
            }
            None => (self.issuer.issuer.key(), Vec::new()),
        };
        // ecdsa-with-SHA256, or what else the authority's own certificate was signed by.
        let algorithm = issuer.signature_algorithm;
        let signature = key.sign(&data).unwrap();
        let basic = element(
            SEQUENCE,
            &[
                &data,
                &element(SEQUENCE, &[algorithm]),
                &element(BIT_STRING, &[&[0], &signature]),
                &certificates,
            ],
        );
        let bytes = element(
            SEQUENCE,
            &[
                &element(OBJECT_IDENTIFIER, &[BASIC]),
                &element(OCTET_STRING, &[&basic]),
            ],
        );
        element(
            SEQUENCE,
            &[&element(ENUMERATED, &[&[0]]), &element(FIRST, &[&bytes])],
        )
    }
}

/// A response that says only why there is none.
pub(crate) fn refusal(status: u8) -> Vec<u8> {
    element(SEQUENCE, &[&element(ENUMERATED, &[&[status]])])
}

/// A GeneralizedTime.
fn time(seconds: i64) -> Vec<u8> {
    let (mut days, of_day) = (seconds / DAY, seconds % DAY);
    let (mut year, mut month) = (1970, 1);
    loop {
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let length = match month {
            2 => 28 + i64::from(is_leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        if days < length {
            break;
        }
        days -= length;
        (year, month) = if month == 12 {
            (year + 1, 1)
        } else {
            (year, month + 1)
        };
    }
    let (hours, minutes, rest) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let day = days + 1;
    let text = format!("{year}{month:02}{day:02}{hours:02}{minutes:02}{rest:02}Z");
    element(0x18, &[text.as_bytes()])
}
