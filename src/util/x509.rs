//! What an administrator wants to know of a certificate: names, issuer, validity, kind of key
//! (RFC 5280 §4.1), and the parts that its signature is about.
//!
//! It decides nothing: whether a certificate is a good one is the client's question.

mod list;
mod name;

use std::fmt;
use std::net::IpAddr;

pub use list::{ListFacts, read_list};
pub use name::distinguished_name;

/// What is read of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// DNS names of the subject, in lower case.
    pub names: Vec<String>,
    /// Addresses of the subject.
    pub addresses: Vec<IpAddr>,
    /// Common name of the subject, else its organization; may be empty.
    pub subject: String,
    /// Common name of the issuer, else its organization; may be empty.
    pub issuer: String,
    /// In seconds since 1970.
    pub not_before: i64,
    /// In seconds since 1970, the last one included.
    pub not_after: i64,
    /// The kind of its key.
    pub key: KeyKind,
    /// Whether it may sign others (RFC 5280 §4.2.1.9).
    pub is_authority: bool,
}

impl Facts {
    /// What it is for, as text: DNS names, then addresses; the subject where there are none.
    pub fn all_names(&self) -> Vec<String> {
        let addresses = self.addresses.iter().map(ToString::to_string);
        let mut names: Vec<String> = self.names.iter().cloned().chain(addresses).collect();
        if names.is_empty() {
            names.push(self.subject.clone());
        }
        names
    }
}

/// The kind of a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// On this curve.
    Ecdsa(&'static str),
    /// With a modulus of so many bits.
    Rsa(usize),
    /// Ed25519.
    Ed25519,
    /// One that isn't known here.
    Other,
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ecdsa(curve) => write!(f, "ECDSA {curve}"),
            Self::Rsa(bits) => write!(f, "RSA {bits}"),
            Self::Ed25519 => f.write_str("Ed25519"),
            Self::Other => f.write_str("another kind"),
        }
    }
}

/// The parts of a certificate as they are written, in DER.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// What is signed, whole.
    pub signed: &'a [u8],
    /// The signature.
    pub signature: &'a [u8],
    /// The serial number: big-endian, two's complement, never empty.
    pub serial: &'a [u8],
    /// The content of the issuer's name.
    pub issuer: &'a [u8],
    /// The content of the subject's name.
    pub subject: &'a [u8],
    /// The bits of the public key, such as a point of a curve.
    pub public_key: &'a [u8],
    /// The content of the public key's algorithm.
    pub algorithm: &'a [u8],
    /// The content of the signature's algorithm.
    pub signature_algorithm: &'a [u8],
    validity: &'a [u8],
    /// The content of the list, empty where there is none.
    extensions: &'a [u8],
}

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0]`, explicit: the version.
const VERSION: u8 = 0xa0;
/// `[3]`, explicit: the extensions.
const EXTENSIONS: u8 = 0xa3;
/// `[2]`, implicit, in a general name.
const DNS_NAME: u8 = 0x82;
/// `[6]`, implicit, in a general name.
const URI: u8 = 0x86;
/// `[7]`, implicit, in a general name.
const IP_ADDRESS: u8 = 0x87;

/// 2.5.29.17, subjectAltName.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
/// 2.5.29.19, basicConstraints.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
/// 2.5.29.37, extKeyUsage.
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
/// 1.3.6.1.5.5.7.3.9, id-kp-OCSPSigning.
const OCSP_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x09];
/// 1.3.6.1.5.5.7.1.1, authorityInfoAccess.
const AUTHORITY_INFO_ACCESS: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x01, 0x01];
/// 1.3.6.1.5.5.7.1.24, id-pe-tlsfeature (RFC 7633 §6).
const TLS_FEATURE: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x01, 0x18];
/// status_request, an extension of TLS (RFC 6066 §8).
const STATUS_REQUEST: &[u8] = &[5];
/// 1.3.6.1.5.5.7.48.1, id-ad-ocsp.
const OCSP: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01];
/// 2.5.4.3, commonName.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// 2.5.4.10, organizationName.
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
/// 1.2.840.10045.2.1, id-ecPublicKey (RFC 5480 §2.1.1).
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// 1.2.840.113549.1.1.1, rsaEncryption (RFC 3279 §2.3.1).
const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// 1.3.101.112, id-Ed25519 (RFC 8410 §3).
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
/// The named curves of RFC 5480 §2.1.1.1.
const CURVES: [(&[u8], &str); 3] = [
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07], "P-256"),
    (&[0x2b, 0x81, 0x04, 0x00, 0x22], "P-384"),
    (&[0x2b, 0x81, 0x04, 0x00, 0x23], "P-521"),
];

/// Takes a certificate in DER apart; `None` where it is none.
pub fn parts(der: &[u8]) -> Option<Parts<'_>> {
    let mut certificate = Der(Der(der).expect(SEQUENCE)?);
    let whole = certificate.0;
    let mut body = Der(certificate.expect(SEQUENCE)?);
    let signed = &whole[..whole.len() - certificate.0.len()];
    let algorithm_beside = certificate.expect(SEQUENCE)?;
    let signature = bits(certificate.expect(BIT_STRING)?)?;
    body.optional(VERSION)?;
    let serial = body.expect(INTEGER).filter(|serial| !serial.is_empty())?;
    // The one beside the signature isn't signed, and has to be the same (RFC 5280 §4.1.1.2).
    if body.expect(SEQUENCE)? != algorithm_beside {
        return None;
    }
    let issuer = body.expect(SEQUENCE)?;
    let validity = body.expect(SEQUENCE)?;
    let subject = body.expect(SEQUENCE)?;
    let mut key = Der(body.expect(SEQUENCE)?);
    let algorithm = key.expect(SEQUENCE)?;
    let public_key = bits(key.expect(BIT_STRING)?)?;
    let mut extensions: &[u8] = &[];
    while !body.0.is_empty() {
        let (tag, content) = body.next()?;
        if tag == EXTENSIONS {
            extensions = Der(content).expect(SEQUENCE)?;
        }
    }
    Some(Parts {
        signed,
        signature,
        serial,
        issuer,
        subject,
        public_key,
        algorithm,
        signature_algorithm: algorithm_beside,
        validity,
        extensions,
    })
}

/// Reads a certificate in DER; `None` where it is none.
pub fn read(der: &[u8]) -> Option<Facts> {
    parts(der)?.facts()
}

impl Parts<'_> {
    /// What it says; `None` where it is damaged.
    pub fn facts(&self) -> Option<Facts> {
        let mut validity = Der(self.validity);
        let mut facts = Facts {
            names: Vec::new(),
            addresses: Vec::new(),
            subject: short_name(self.subject),
            issuer: short_name(self.issuer),
            not_before: time(validity.next()?)?,
            not_after: time(validity.next()?)?,
            key: key_kind(self.algorithm, self.public_key),
            is_authority: false,
        };
        let mut extensions = Der(self.extensions);
        while !extensions.0.is_empty() {
            let (identifier, value) = next_extension(&mut extensions)?;
            match identifier {
                SUBJECT_ALT_NAME => alternative_names(value, &mut facts)?,
                BASIC_CONSTRAINTS => {
                    // Absent means FALSE, and DER has 0xff for TRUE (X.690 §11.1).
                    let mut content = Der(Der(value).expect(SEQUENCE)?);
                    facts.is_authority = content.expect(BOOLEAN) == Some(&[0xff]);
                }
                _ => {}
            }
        }
        Some(facts)
    }

    /// The value of an extension; `None` where there is none, or they are damaged.
    fn extension(&self, wanted: &[u8]) -> Option<&[u8]> {
        let mut extensions = Der(self.extensions);
        loop {
            match next_extension(&mut extensions)? {
                (identifier, value) if identifier == wanted => return Some(value),
                _ => {}
            }
        }
    }

    /// Whether it may sign for its issuer what that says of revocations (RFC 6960 §4.2.2.2).
    pub fn signs_ocsp(&self) -> bool {
        self.lists(EXTENDED_KEY_USAGE, (OBJECT_IDENTIFIER, OCSP_SIGNING))
    }

    /// Whether clients are told to refuse it unless an OCSP response comes along: "must-staple"
    /// (RFC 7633 §4.2.3.1).
    pub fn must_staple(&self) -> bool {
        self.lists(TLS_FEATURE, (INTEGER, STATUS_REQUEST))
    }

    /// Whether an extension that is a list of elements of this tag has one with this content.
    fn lists(&self, extension: &[u8], (tag, wanted): (u8, &[u8])) -> bool {
        let list = || Der(self.extension(extension)?).expect(SEQUENCE);
        let mut list = Der(list().unwrap_or_default());
        std::iter::from_fn(|| list.expect(tag)).any(|content| content == wanted)
    }

    /// Where its issuer tells by HTTP whether it is revoked (RFC 5280 §4.2.2.1).
    pub fn ocsp_responder(&self) -> Option<&str> {
        let mut descriptions = Der(Der(self.extension(AUTHORITY_INFO_ACCESS)?).expect(SEQUENCE)?);
        while !descriptions.0.is_empty() {
            let mut description = Der(descriptions.expect(SEQUENCE)?);
            let is_ocsp = description.expect(OBJECT_IDENTIFIER)? == OCSP;
            if let (URI, location) = description.next()?
                && is_ocsp
                && let Ok(location) = std::str::from_utf8(location)
            {
                return Some(location);
            }
        }
        None
    }
}

/// The next extension: what it is, and its value.
fn next_extension<'a>(extensions: &mut Der<'a>) -> Option<(&'a [u8], &'a [u8])> {
    let mut extension = Der(extensions.expect(SEQUENCE)?);
    let identifier = extension.expect(OBJECT_IDENTIFIER)?;
    extension.optional(BOOLEAN)?;
    Some((identifier, extension.expect(OCTET_STRING)?))
}

/// Reads forward through elements of DER (X.690).
#[derive(Clone, Copy, Debug)]
pub struct Der<'a>(pub &'a [u8]);

impl<'a> Der<'a> {
    /// The next element: its tag and its content.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator ends, this is damaged"
    )]
    pub fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let [tag, first, rest @ ..] = self.0 else {
            return None;
        };
        let (length, rest) = match usize::from(*first) {
            short @ ..=0x7f => (short, rest),
            // Without a length: not in DER.
            0x80 => return None,
            // At most four bytes of length: nothing here is larger.
            long @ 0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(long - 0x80)?;
                let length = bytes
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                (length, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, content))
    }

    /// The content of the next element, which has this tag.
    pub fn expect(&mut self, wanted: u8) -> Option<&'a [u8]> {
        let (tag, content) = self.next()?;
        (tag == wanted).then_some(content)
    }

    /// Passes an element over if it has this tag.
    pub fn optional(&mut self, tag: u8) -> Option<()> {
        if self.0.first() == Some(&tag) {
            self.next()?;
        }
        Some(())
    }
}

/// The bytes of a string of bits that has whole ones.
fn bits(content: &[u8]) -> Option<&[u8]> {
    content.strip_prefix(&[0])
}

fn short_name(name: &[u8]) -> String {
    attribute(name, COMMON_NAME)
        .or_else(|| attribute(name, ORGANIZATION))
        .unwrap_or_default()
}

/// An attribute of a name.
fn attribute(name: &[u8], wanted: &[u8]) -> Option<String> {
    let mut sets = Der(name);
    while let Some((_, set)) = sets.next() {
        let mut pair = Der(Der(set).expect(SEQUENCE)?);
        if pair.expect(OBJECT_IDENTIFIER)? == wanted {
            let (_, value) = pair.next()?;
            return Some(String::from_utf8_lossy(value).into_owned());
        }
    }
    None
}

fn key_kind(algorithm: &[u8], public_key: &[u8]) -> KeyKind {
    let mut algorithm = Der(algorithm);
    match algorithm.expect(OBJECT_IDENTIFIER) {
        Some(EC_PUBLIC_KEY) => {
            let curve = algorithm.expect(OBJECT_IDENTIFIER);
            let known = CURVES
                .iter()
                .find(|(identifier, _)| Some(*identifier) == curve);
            known.map_or(KeyKind::Other, |(_, name)| KeyKind::Ecdsa(name))
        }
        Some(RSA_ENCRYPTION) => {
            let modulus = Der(public_key)
                .expect(SEQUENCE)
                .and_then(|key| Der(key).expect(INTEGER));
            let modulus = modulus.unwrap_or_default();
            let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
            let unused = modulus.get(zeros).map_or(0, |first| first.leading_zeros());
            KeyKind::Rsa(((modulus.len() - zeros) * 8).saturating_sub(unused as usize))
        }
        Some(ED25519) => KeyKind::Ed25519,
        _ => KeyKind::Other,
    }
}

fn alternative_names(value: &[u8], facts: &mut Facts) -> Option<()> {
    let mut list = Der(Der(value).expect(SEQUENCE)?);
    while !list.0.is_empty() {
        match list.next()? {
            (DNS_NAME, name) => {
                let name = std::str::from_utf8(name).ok()?;
                facts.names.push(name.to_ascii_lowercase());
            }
            (IP_ADDRESS, bytes) => {
                let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
                let sixteen = <[u8; 16]>::try_from(bytes).map(IpAddr::from);
                facts.addresses.push(four.or(sixteen).ok()?);
            }
            _ => {}
        }
    }
    Some(())
}

/// Seconds since 1970 of `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280 §4.1.2.5).
pub fn time((tag, text): (u8, &[u8])) -> Option<i64> {
    let digits = text.strip_suffix(b"Z")?;
    let years = match tag {
        UTC_TIME => 2,
        GENERALIZED_TIME => 4,
        _ => return None,
    };
    if digits.len() != years + 10 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |from: usize, length: usize| {
        digits[from..from + length]
            .iter()
            .fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'))
    };
    let year = match (tag, number(0, years)) {
        (UTC_TIME, short @ 50..) => 1900 + short,
        (UTC_TIME, short) => 2000 + short,
        (_, whole) => whole,
    };
    let (month, day) = (number(years, 2), number(years + 2, 2));
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let seconds = number(years + 4, 2) * 3600 + number(years + 6, 2) * 60 + number(years + 8, 2);
    Some(days(year, month, day) * 86_400 + seconds)
}

/// Days since 1970-01-01 in the Gregorian calendar (Howard Hinnant, "chrono-compatible low-level date
/// algorithms").
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    fn certificate(names: &[&str], algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate_for(algorithm).unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn times_are_read() {
        for (tag, text, seconds) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "500101000000Z", Some(-631_152_000)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (GENERALIZED_TIME, "20260229000000Z", Some(1_772_323_200)),
            (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, "701301000000Z", None),
            (UTC_TIME, "70010100000Z", None),
            (UTC_TIME, "7001010000 0Z", None),
            (UTC_TIME, "700101000000", None),
            (SEQUENCE, "700101000000Z", None),
        ] {
            assert_eq!(time((tag, text.as_bytes())), seconds, "{text}");
        }
    }

    #[test]
    fn names_addresses_and_the_key_are_told() {
        for (algorithm, kind) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, "ECDSA P-256"),
            (&rcgen::PKCS_ECDSA_P384_SHA384, "ECDSA P-384"),
            (&rcgen::PKCS_ED25519, "Ed25519"),
            (&rcgen::PKCS_RSA_SHA256, "RSA 2048"),
        ] {
            let facts = read(&certificate(
                &["a.example", "*.B.example", "10.0.0.1", "::1"],
                algorithm,
            ));
            let facts = facts.unwrap();
            assert_eq!(facts.names, ["a.example", "*.b.example"]);
            let addresses: Vec<String> = facts.addresses.iter().map(IpAddr::to_string).collect();
            assert_eq!(addresses, ["10.0.0.1", "::1"]);
            assert_eq!(facts.key.to_string(), kind);
            assert_eq!(facts.subject, "rcgen self signed cert");
            assert_eq!(facts.issuer, facts.subject);
            assert!(facts.is_authority && facts.not_before < facts.not_after);
        }
    }

    #[test]
    fn a_cut_or_changed_certificate_is_none_or_another_one() {
        let der = certificate(&["a.example", "10.0.0.1"], &rcgen::PKCS_ECDSA_P256_SHA256);
        for end in 0..der.len() {
            assert_eq!(read(&der[..end]), None, "{end}");
        }
        for at in 0..der.len() {
            for bit in 0..8 {
                let mut changed = der.clone();
                changed[at] ^= 1 << bit;
                let _ = read(&changed);
            }
        }
    }
}
