//! Statements of an authority that a certificate is not revoked (OCSP, RFC 6960), for clients that want
//! one along with it (stapling, RFC 6066 §8): asked for, read, and verified before any client gets one.
//!
//! Pure: who fetches them, and when, is not known here.

use aws_lc_rs::digest;

use super::settings::PROVIDER;
use crate::util::x509::{self, Der, Parts};

/// Most bytes of a response. Real ones have 300 B to 3 KiB.
pub const RESPONSE_MAX: usize = 16 << 10;

/// How far the clock of an authority may be ahead of ours, in seconds.
const SKEW: i64 = 300;

/// Most certificates in a response that are looked at.
const CERTIFICATES_MAX: usize = 4;

/// Most statements in a response that are looked at.
const STATEMENTS_MAX: usize = 64;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const NULL: [u8; 2] = [0x05, 0];
const OBJECT_IDENTIFIER: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const SEQUENCE: u8 = 0x30;
/// `[0]`, explicit: the content of a response, its version, its certificates, the next update.
const FIRST: u8 = 0xa0;
/// `[0]`, implicit NULL: the certificate is good.
const GOOD: u8 = 0x80;
/// `[1]`, implicit SEQUENCE: it is revoked.
const REVOKED: u8 = 0xa1;

/// 1.3.6.1.5.5.7.48.1.1, id-pkix-ocsp-basic.
const BASIC: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01];
/// 1.3.14.3.2.26, SHA-1: what everybody asks by. It only names the certificate here.
const SHA1: &[u8] = &[0x2b, 0x0e, 0x03, 0x02, 0x1a];
/// 2.16.840.1.101.3.4.2.1, SHA-256.
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];

/// Why a response is worth nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OcspError {
    /// It is no response, or damaged.
    Malformed,
    /// The authority says that it can't tell: the status (RFC 6960 §4.2.1).
    Refused(&'static str),
    /// It is about other certificates.
    OfAnother,
    /// The certificate is revoked: as of this time, in seconds since 1970.
    Revoked(i64),
    /// The authority doesn't know the certificate.
    Unknown,
    /// It was not signed by the certificate's authority, or by whom that has allowed to.
    Signature,
    /// It doesn't hold yet.
    Early,
    /// It doesn't hold any more.
    Ended,
    /// It doesn't say until when it holds.
    Endless,
    /// What issued the certificate isn't known.
    NoIssuer,
}

impl OcspError {
    /// What is wrong, to follow the name of a file or of a responder.
    pub fn message(self) -> &'static str {
        match self {
            Self::Malformed => "holds no OCSP response in DER",
            Self::Refused(status) => status,
            Self::OfAnother => "is about another certificate",
            Self::Revoked(_) => "says that the certificate is revoked",
            Self::Unknown => "says that its authority doesn't know the certificate",
            Self::Signature => "isn't signed by the certificate's authority",
            Self::Early => "doesn't hold yet",
            Self::Ended => "doesn't hold any more",
            Self::Endless => "doesn't say until when it holds",
            Self::NoIssuer => "can't be verified: the certificate's issuer is not known",
        }
    }

    /// What to do.
    pub fn help(self) -> &'static str {
        match self {
            Self::Malformed | Self::Refused(_) | Self::OfAnother | Self::Signature => {
                "fetch it again: openssl ocsp -issuer ISSUER.pem -cert CERT.pem -url URL -respout FILE"
            }
            Self::Revoked(_) | Self::Unknown => "have the authority issue another certificate",
            Self::Early => "look at the clock of this machine",
            Self::Ended | Self::Endless => "have it fetched again, often enough",
            Self::NoIssuer => {
                "put the certificate of its issuer behind the server's own in the file of `cert`"
            }
        }
    }
}

/// Why an authority can't be asked about a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unasked {
    /// The certificate's issuer is not in its file.
    NoIssuer,
    /// The certificate names no responder that answers by HTTP.
    NoResponder,
}

impl Unasked {
    /// Why, and what to do.
    pub fn message(self) -> &'static str {
        match self {
            Self::NoIssuer => {
                "the certificate of its issuer is not known: put it behind the server's own in the file"
            }
            Self::NoResponder => {
                "it names no OCSP responder, as authorities that have given OCSP up leave it out: there is \
                 nothing to be stapled"
            }
        }
    }
}

/// Where the authority of a chain's first certificate says what it thinks of it: a URL.
///
/// # Errors
/// Why there is nobody to be asked.
pub fn responder(chain: &[impl AsRef<[u8]>]) -> Result<String, Unasked> {
    let [own, _issuer, ..] = chain else {
        return Err(Unasked::NoIssuer);
    };
    let url = x509::parts(own.as_ref())
        .and_then(|parts| parts.ocsp_responder().map(str::to_owned))
        .ok_or(Unasked::NoResponder)?;
    let scheme = url.as_bytes().get(..7);
    match scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"http://")) {
        true => Ok(url),
        false => Err(Unasked::NoResponder),
    }
}

/// What a response says of a certificate that is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement {
    /// From when on, in seconds since 1970.
    pub this_update: i64,
    /// Until when, in seconds since 1970.
    pub next_update: i64,
}

/// A request for a certificate, to be sent to its responder by POST as `application/ocsp-request`.
/// `None` where either is no certificate.
pub fn request(own: &[u8], issuer: &[u8]) -> Option<Vec<u8>> {
    let (own, issuer) = (x509::parts(own)?, x509::parts(issuer)?);
    let hash = |bytes: &[u8]| {
        let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes);
        element(OCTET_STRING, &[digest.as_ref()])
    };
    let algorithm = element(SEQUENCE, &[&element(OBJECT_IDENTIFIER, &[SHA1]), &NULL]);
    let certificate = element(
        SEQUENCE,
        &[
            &algorithm,
            &hash(&element(SEQUENCE, &[issuer.subject])),
            &hash(issuer.public_key),
            &element(INTEGER, &[own.serial]),
        ],
    );
    let list = element(SEQUENCE, &[&element(SEQUENCE, &[&certificate])]);
    Some(element(SEQUENCE, &[&element(SEQUENCE, &[&list])]))
}

/// What a response says of a certificate at `now`, in seconds since 1970, verified by its issuer.
///
/// # Errors
/// Why it may not be given to clients.
pub fn verify(
    response: &[u8],
    (own, issuer): (&[u8], &[u8]),
    now: i64,
) -> Result<Statement, OcspError> {
    let issuer = x509::parts(issuer).ok_or(OcspError::NoIssuer)?;
    let own = x509::parts(own).ok_or(OcspError::NoIssuer)?;
    if own.issuer != issuer.subject {
        return Err(OcspError::NoIssuer);
    }
    let basic = basic_response(response)?;
    let basic = Basic::read(basic).ok_or(OcspError::Malformed)?;
    if !is_signed_by_authority(&basic, &issuer, now) {
        return Err(OcspError::Signature);
    }
    let found = statement(basic.statements, &own, &issuer).ok_or(OcspError::Malformed)?;
    let (status, this_update, next_update) = found.ok_or(OcspError::OfAnother)?;
    // First of all whether it holds: what was said once may have been said again by anybody.
    if this_update > now + SKEW {
        return Err(OcspError::Early);
    }
    if next_update.is_some_and(|next| next <= now) {
        return Err(OcspError::Ended);
    }
    match status {
        GOOD => {}
        REVOKED => return Err(OcspError::Revoked(this_update)),
        _ => return Err(OcspError::Unknown),
    }
    let next_update = next_update.ok_or(OcspError::Endless)?;
    Ok(Statement {
        this_update,
        next_update,
    })
}

/// The content of a successful response (RFC 6960 §4.2.1).
fn basic_response(response: &[u8]) -> Result<&[u8], OcspError> {
    let parse = || {
        let mut outer = Der(response);
        let mut body = Der(outer.expect(SEQUENCE)?);
        let status = body.expect(ENUMERATED)?;
        outer.0.is_empty().then_some((status, body))
    };
    let (status, mut body) = parse().ok_or(OcspError::Malformed)?;
    match status {
        [0] => {}
        [1] => return Err(OcspError::Refused("says that the request was malformed")),
        [2] => return Err(OcspError::Refused("says that the authority failed")),
        [3] => {
            return Err(OcspError::Refused(
                "says that the authority is to be asked later",
            ));
        }
        [5] => return Err(OcspError::Refused("says that the request has to be signed")),
        [6] => {
            return Err(OcspError::Refused(
                "says that this certificate isn't the authority's",
            ));
        }
        _ => return Err(OcspError::Malformed),
    }
    let mut parse = || {
        let mut bytes = Der(Der(body.expect(FIRST)?).expect(SEQUENCE)?);
        (bytes.expect(OBJECT_IDENTIFIER)? == BASIC).then_some(())?;
        bytes.expect(OCTET_STRING)
    };
    parse().ok_or(OcspError::Malformed)
}

/// A BasicOCSPResponse, taken apart.
struct Basic<'a> {
    /// What is signed, whole.
    signed: &'a [u8],
    /// The content of the list of statements.
    statements: &'a [u8],
    /// The content of the signature's algorithm.
    algorithm: &'a [u8],
    signature: &'a [u8],
    /// The content of the list of certificates; empty where there are none.
    certificates: &'a [u8],
}

impl<'a> Basic<'a> {
    fn read(basic: &'a [u8]) -> Option<Self> {
        let mut outer = Der(Der(basic).expect(SEQUENCE)?);
        let whole = outer.0;
        let mut data = Der(outer.expect(SEQUENCE)?);
        let signed = &whole[..whole.len() - outer.0.len()];
        let algorithm = outer.expect(SEQUENCE)?;
        let signature = outer.expect(BIT_STRING)?.strip_prefix(&[0])?;
        let certificates = match outer.0.first() {
            Some(&FIRST) => Der(outer.expect(FIRST)?).expect(SEQUENCE)?,
            _ => &[],
        };
        data.optional(FIRST)?;
        let _responder = data.next()?;
        let _produced_at = data.next()?;
        Some(Self {
            signed,
            statements: data.expect(SEQUENCE)?,
            algorithm,
            signature,
            certificates,
        })
    }
}

/// Whether the authority has signed, or one that it has made for that (RFC 6960 §4.2.2.2).
fn is_signed_by_authority(basic: &Basic<'_>, issuer: &Parts<'_>, now: i64) -> bool {
    let has_signed = |by: &Parts<'_>| is_signed(by, basic.algorithm, basic.signed, basic.signature);
    if has_signed(issuer) {
        return true;
    }
    let mut certificates = Der(basic.certificates);
    for _ in 0..CERTIFICATES_MAX {
        let before = certificates.0;
        if certificates.next().is_none() {
            return false;
        }
        let der = &before[..before.len() - certificates.0.len()];
        let Some(responder) = x509::parts(der) else {
            continue;
        };
        let holds = responder
            .facts()
            .is_some_and(|facts| facts.not_before <= now + SKEW && now <= facts.not_after);
        if responder.issuer == issuer.subject
            && responder.signs_ocsp()
            && holds
            && is_signed(
                issuer,
                responder.signature_algorithm,
                responder.signed,
                responder.signature,
            )
            && has_signed(&responder)
        {
            return true;
        }
    }
    false
}

/// Whether the key of a certificate has signed this.
fn is_signed(by: &Parts<'_>, algorithm: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let known = PROVIDER.signature_verification_algorithms.all;
    known.iter().any(|known| {
        known.signature_alg_id().as_ref() == algorithm
            && known.public_key_alg_id().as_ref() == by.algorithm
            && (known.verify_signature(by.public_key, message, signature)).is_ok()
    })
}

/// Status, this update and next update.
type Found = (u8, i64, Option<i64>);

/// The first statement on a certificate; `None` where the list is damaged before that.
fn statement(list: &[u8], own: &Parts<'_>, issuer: &Parts<'_>) -> Option<Option<Found>> {
    let mut list = Der(list);
    for _ in 0..STATEMENTS_MAX {
        if list.0.is_empty() {
            break;
        }
        let mut one = Der(list.expect(SEQUENCE)?);
        let is_ours = is_about(one.expect(SEQUENCE)?, own, issuer)?;
        let (status, _) = one.next()?;
        let this_update = x509::time(one.next()?)?;
        let next_update = match one.0.first() {
            Some(&FIRST) => Some(x509::time(Der(one.expect(FIRST)?).next()?)?),
            _ => None,
        };
        if is_ours {
            return Some(Some((status, this_update, next_update)));
        }
    }
    Some(None)
}

/// Whether a CertID is that of a certificate (RFC 6960 §4.1.1); `None` where it is damaged.
fn is_about(certificate: &[u8], own: &Parts<'_>, issuer: &Parts<'_>) -> Option<bool> {
    let mut certificate = Der(certificate);
    let algorithm = Der(certificate.expect(SEQUENCE)?).expect(OBJECT_IDENTIFIER)?;
    let [name, key] = [(); 2].map(|()| certificate.expect(OCTET_STRING));
    let serial = certificate.expect(INTEGER)?;
    let algorithm = match algorithm {
        SHA1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        SHA256 => &digest::SHA256,
        // Of no use to us, and of no harm beside another one.
        _ => return Some(false),
    };
    let subject = element(SEQUENCE, &[issuer.subject]);
    let is_hash = |hash: &[u8], of: &[u8]| digest::digest(algorithm, of).as_ref() == hash;
    Some(serial == own.serial && is_hash(name?, &subject) && is_hash(key?, issuer.public_key))
}

/// An element of DER.
fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short @ ..=0x7f) => out.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            out.push(0x80 + (bytes.len() - zeros) as u8);
            out.extend_from_slice(&bytes[zeros..]);
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use testing::{Authority, DAY, Issued, Said, names_responder, now};
