//! An authority for names that no public one signs for: `localhost`, a machine in the house, a site
//! that isn't public yet. It is made once and kept, since each client has to be told to trust it.
//!
//! It is an ordinary root with a path length of 0 and without name constraints. They would have to be
//! known when it is made, but names come with configurations, for ten years; a constraint would make
//! each new one a new root, to be trusted again on every client. And they would promise more than they
//! hold: RFC 5280 §6.2 lets a client ignore what a root says, some do, and others refuse a certificate
//! with a critical extension that they don't know. What protects is the mode of the key's file, and
//! that nothing but this module reads it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use super::names::{self, Name};
use super::pem;
use super::places::Places;
use super::store::{self, Files, Found};
use crate::http::semantics::date;
use crate::util::x509;

/// A day in seconds.
const DAY: i64 = 86_400;

/// How long the authority is valid.
const AUTHORITY_DAYS: i64 = 3652;

/// How long a certificate is valid, its hour of grace included. Clients refuse certificates of more
/// than 398 days.
const LEAF_DAYS: i64 = 397;

/// How far the clock of a client may be behind ours.
const GRACE_LEAF: i64 = 3600;
const GRACE_AUTHORITY: i64 = DAY;

/// Most names of one certificate: it is sent whole in each handshake.
const NAMES_MAX: usize = 200;

/// Longest common name in characters (RFC 5280 appendix A, ub-common-name).
const COMMON_NAME_MAX: usize = 64;

/// The latest time that is reckoned with: 2 January 9000. X.509 ends with the year 9999.
const LATEST: i64 = 221_845_478_400;

/// What is wrong with the authority, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What happened, and where.
    pub message: String,
    /// What to do.
    pub help: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.help)
    }
}

impl Problem {
    pub(super) fn at(path: &Path, what: &str, help: &str) -> Self {
        Self {
            message: format!("the local authority: {} {what}", path.display()),
            help: help.to_owned(),
        }
    }

    /// A file of a directory isn't whole. Never a reason to make another one: what clients trust would
    /// silently be worth nothing.
    pub(super) fn damaged(directory: &Path, path: &Path, what: impl fmt::Display) -> Self {
        Self::at(path, &what.to_string(), &again(directory))
    }

    fn ours(what: impl fmt::Display) -> Self {
        Self {
            message: format!("no certificate can be made: {what}"),
            help: "name a certificate of your own by `tls = { cert, key }`".to_owned(),
        }
    }
}

fn again(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "put both files of {directory} back from a backup, or remove it: the next start makes a new \
         one, which has to be trusted again (beltway cert trust)"
    )
}

/// Where an authority is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In this directory.
    At(PathBuf),
    /// Nowhere: it ends with the process. Why, for each place that was tried.
    InMemory(String),
}

/// A certificate with its key, signed by the authority. The key is wiped when this is dropped.
pub struct Leaf {
    /// The certificate in PEM. The authority's isn't sent along: who trusts it has it.
    pub certificate: String,
    /// Its key in PEM (PKCS #8).
    pub key: Zeroizing<String>,
    /// From when it is valid, in seconds since 1970.
    pub not_before: i64,
    /// Until when it is valid, in seconds since 1970.
    pub not_after: i64,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Leaf {
    /// When another one should take its place, in seconds since 1970: when a third is left.
    pub fn renew_at(&self) -> i64 {
        self.not_after - (self.not_after - self.not_before) / 3
    }
}

/// The certificate of an authority, without its key: what clients are to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// How it calls itself.
    pub name: String,
    /// In DER.
    pub der: Vec<u8>,
    /// Until when it is valid, in seconds since 1970.
    pub not_after: i64,
    /// From when it is valid, in seconds since 1970.
    pub not_before: i64,
    /// Where it is kept.
    pub kept: Kept,
}

impl Authority {
    /// The authority that a server would use, if it was made; its key is not read.
    ///
    /// # Errors
    /// When there is one that is no good, or one that can't be looked at where there is no other.
    pub fn find(places: &Places) -> Result<Option<Self>, Problem> {
        let mut closed = None;
        for place in places.iter() {
            match store::load_certificate(place)? {
                Found::Something(text) => {
                    return Self::read(&store::directory(place), &text).map(Some);
                }
                Found::Closed(error) => {
                    closed.get_or_insert((place, error));
                }
                Found::Nothing => {}
            }
        }
        match closed {
            Some((place, error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(Problem::at(
                    place,
                    &format!("can't be looked at: {error}"),
                    "ask as the user who runs the server, such as with sudo",
                ))
            }
            _ => Ok(None),
        }
    }

    fn read(directory: &Path, text: &[u8]) -> Result<Self, Problem> {
        let path = directory.join(store::CERTIFICATE);
        let damaged = |what: &str| Problem::damaged(directory, &path, what);
        let der = pem::decode("CERTIFICATE", text).ok_or_else(|| damaged("is damaged"))?;
        let parts = x509::parts(&der).ok_or_else(|| damaged("is damaged"))?;
        let facts = parts.facts().ok_or_else(|| damaged("is damaged"))?;
        let is_ours = facts.is_authority
            && facts.key == x509::KeyKind::Ecdsa("P-256")
            && parts.issuer == parts.subject
            && parts.subject == distinguished_name(&facts.subject);
        if !is_ours {
            return Err(damaged("is none that Beltway has made"));
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, parts.public_key)
            .verify(parts.signed, parts.signature)
            .map_err(|_| damaged("is damaged: its signature is wrong"))?;
        Ok(Self {
            name: facts.subject,
            not_before: facts.not_before,
            not_after: facts.not_after,
            der: der.to_vec(),
            kept: Kept::At(directory.to_owned()),
        })
    }

    /// In PEM.
    pub fn pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.der).to_string()
    }

    /// The file in PEM, if it is kept.
    pub fn file(&self) -> Option<PathBuf> {
        match &self.kept {
            Kept::At(directory) => Some(directory.join(store::CERTIFICATE)),
            Kept::InMemory(_) => None,
        }
    }

    /// SHA-256 of the certificate, as clients show it: `AB:CD:…`.
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::digest(&self.der);
        let bytes: Vec<String> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
        bytes.join(":")
    }

    /// Whether it has ended at this time, in seconds since 1970, and what to do then.
    ///
    /// # Errors
    /// When it has.
    fn check_valid(&self, now_s: i64) -> Result<(), Problem> {
        if now_s <= self.not_after {
            return Ok(());
        }
        let ended = day(self.not_after);
        Err(match &self.kept {
            Kept::At(directory) => Problem::at(
                directory,
                &format!("has ended on {ended}"),
                "remove it: the next start makes a new one, which has to be trusted again (beltway cert \
                 trust)",
            ),
            Kept::InMemory(_) => Problem::ours(format!("the local authority has ended on {ended}")),
        })
    }
}

/// The authority with its key, which is wiped when this is dropped.
pub struct LocalCa {
    authority: Authority,
    key: Key,
}

impl fmt::Debug for LocalCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalCa")
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

impl LocalCa {
    /// The authority of these places; it is made in the first that can be written to where none has one,
    /// and in memory where none can. `now_s` in seconds since 1970.
    ///
    /// # Errors
    /// When there is one that isn't whole, isn't safe, or has ended. It is never replaced.
    pub fn open(places: &Places, now_s: i64) -> Result<Self, Problem> {
        let mut closed: Vec<String> = Vec::new();
        let mut free = Vec::new();
        for place in places.iter() {
            match store::load(place)? {
                Found::Something(files) => return Self::kept(place, &files, now_s),
                Found::Closed(error) => closed.push(format!("{}: {error}", place.display())),
                Found::Nothing => free.push(place),
            }
        }
        let made = Self::new(Kept::InMemory(String::new()), now_s)?;
        let files = Files {
            certificate: made.authority.pem().into_bytes(),
            key: Zeroizing::new(made.key.pem().as_bytes().to_vec()),
        };
        for place in free {
            match store::make(place, &files) {
                // As those who were slower read it.
                Ok(_) => match store::load(place)? {
                    Found::Something(files) => return Self::kept(place, &files, now_s),
                    Found::Closed(error) => closed.push(format!("{}: {error}", place.display())),
                    Found::Nothing => closed.push(format!("{}: it went again", place.display())),
                },
                Err(error) => closed.push(format!("{}: {error}", place.display())),
            }
        }
        closed.extend(places.missing());
        Ok(Self {
            authority: Authority {
                kept: Kept::InMemory(closed.join("; ")),
                ..made.authority
            },
            key: made.key,
        })
    }

    fn kept(place: &Path, files: &Files, now_s: i64) -> Result<Self, Problem> {
        let directory = store::directory(place);
        let authority = Authority::read(&directory, &files.certificate)?;
        let path = directory.join(store::KEY);
        let damaged = |what: &str| Problem::damaged(&directory, &path, what);
        let key = Key::read(&files.key).ok_or_else(|| damaged("is damaged"))?;
        let parts = x509::parts(&authority.der);
        if parts.is_none_or(|parts| parts.public_key != key.0.public_key_raw()) {
            return Err(damaged("belongs to another certificate"));
        }
        authority.check_valid(now_s)?;
        Ok(Self { authority, key })
    }

    fn new(kept: Kept, now_s: i64) -> Result<Self, Problem> {
        let key = Key::new()?;
        let now_s = now_s.clamp(0, LATEST);
        let mut number = [0; 4];
        aws_lc_rs::rand::fill(&mut number).map_err(Problem::ours)?;
        // Each has a name of its own: clients look for the issuer by name, and two with one name are
        // taken for each other.
        let name = format!("Beltway local CA {:08x} ", u32::from_ne_bytes(number));
        let machine = names::of_this_machine();
        let known = |character: &char| character.is_ascii_graphic();
        let machine: String = machine
            .chars()
            .filter(known)
            .take(COMMON_NAME_MAX - name.len())
            .collect();
        let name = format!("{name}{machine}").trim_end().to_owned();
        let (not_before, not_after) = (
            now_s - GRACE_AUTHORITY.min(now_s),
            now_s + AUTHORITY_DAYS * DAY,
        );
        let mut params = authority_params(&name);
        set_validity(&mut params, not_before, not_after);
        params.serial_number = Some(serial()?);
        let certificate = params.self_signed(&key.0).map_err(Problem::ours)?;
        Ok(Self {
            authority: Authority {
                name,
                der: certificate.der().to_vec(),
                not_before,
                not_after,
                kept,
            },
            key,
        })
    }

    /// Its certificate.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A certificate for these names, at most 200, valid from an hour before `now_s` (seconds since 1970)
    /// for 397 days, or until the authority ends. ECDSA with P-256.
    ///
    /// # Errors
    /// When there is no name, or too many, or when the authority has ended.
    pub fn issue(&self, names: &[Name], now_s: i64) -> Result<Leaf, Problem> {
        if names.is_empty() {
            return Err(Problem::ours("there is no name that it could be for"));
        }
        if names.len() > NAMES_MAX {
            return Err(Problem::ours(format!(
                "it would be for {} names, and has at most {NAMES_MAX}",
                names.len()
            )));
        }
        let now_s = now_s.clamp(0, LATEST);
        self.authority.check_valid(now_s)?;
        let not_before = (now_s - GRACE_LEAF.min(now_s)).max(self.authority.not_before);
        let not_after = (now_s - GRACE_LEAF + LEAF_DAYS * DAY - 1).min(self.authority.not_after);
        let mut params = CertificateParams::default();
        set_validity(&mut params, not_before, not_after);
        params.serial_number = Some(serial()?);
        params.subject_alt_names = names
            .iter()
            .map(alternative_name)
            .collect::<Result<_, _>>()?;
        params.distinguished_name = DistinguishedName::new();
        // For people: clients look at the alternative names alone (RFC 6125 §6.4.4).
        let short = |name: &&Name| name.to_string().len() <= COMMON_NAME_MAX;
        if let Some(name) = names.iter().find(short) {
            let name = name.to_string();
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = Key::new()?;
        let issuer = Issuer::new(authority_params(&self.authority.name), &self.key.0);
        let certificate = params.signed_by(&key.0, &issuer).map_err(Problem::ours)?;
        Ok(Leaf {
            certificate: pem::encode("CERTIFICATE", certificate.der()).to_string(),
            key: key.pem(),
            not_before,
            not_after,
        })
    }
}

/// What is the same whenever the authority signs: its name, the way to the identifier of its key, and
/// what the key is for.
fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The content of a name with this common name alone, in DER. At most 64 bytes: each length is one byte.
fn distinguished_name(name: &str) -> Vec<u8> {
    let Ok(length) = u8::try_from(name.len()) else {
        return Vec::new();
    };
    if name.len() > COMMON_NAME_MAX {
        return Vec::new();
    }
    let mut der = vec![
        0x31,
        length + 9, // A set of one
        0x30,
        length + 7, // pair of
        0x06,
        3,
        0x55,
        0x04,
        0x03, // commonName and
        0x0c,
        length, // a string in UTF-8.
    ];
    der.extend_from_slice(name.as_bytes());
    der
}

fn alternative_name(name: &Name) -> Result<SanType, Problem> {
    Ok(match name {
        Name::Address(address) => SanType::IpAddress(*address),
        Name::Dns(name) => SanType::DnsName(name.as_str().try_into().map_err(Problem::ours)?),
    })
}

/// Positive, with 126 bits that nobody can guess (RFC 5280 §4.1.2.2).
fn serial() -> Result<SerialNumber, Problem> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(Problem::ours)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Sets when a certificate is valid, in seconds since 1970, and not before that.
fn set_validity(params: &mut CertificateParams, not_before: i64, not_after: i64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |unix_s: i64| epoch + Duration::from_secs(unix_s.max(0).unsigned_abs());
    params.not_before = at(not_before);
    params.not_after = at(not_after);
}

/// The day of a time, as `2026-11-28`.
pub(super) fn day(unix_s: i64) -> String {
    String::from_utf8_lossy(&date::rfc3339(unix_s)[..10]).into_owned()
}

/// A private key whose bytes are wiped.
struct Key(KeyPair);

impl Key {
    fn new() -> Result<Self, Problem> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Problem::ours)?;
        Ok(Self(pair))
    }

    /// From PEM that we wrote.
    fn read(text: &[u8]) -> Option<Self> {
        let der = pem::decode("PRIVATE KEY", text)?;
        let key = Self(KeyPair::try_from(der.as_slice()).ok()?);
        key.0.is_compatible(&PKCS_ECDSA_P256_SHA256).then_some(key)
    }

    fn pem(&self) -> Zeroizing<String> {
        pem::encode("PRIVATE KEY", self.0.serialized_der())
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // What AWS-LC holds beside, it wipes itself.
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests;
