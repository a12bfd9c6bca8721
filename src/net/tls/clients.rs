//! Certificates of clients: whose are taken, who they say the client is, and for how long that holds.
//!
//! A session that is resumed brings along what was found of its client when it was made, and nobody
//! verifies that again. So a ticket is good only where the same authorities and revocation lists are in
//! force ([`Clients::scope`]), and until the first of them, or the certificate, ends ([`Watch`]).

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_lc_rs::digest;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ProducesTickets, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

use super::Failure;
use super::identity::why;
use super::settings::PROVIDER;
use super::tickets::SiteTickets;
use crate::util::clock;
use crate::util::x509::{self, Facts, ListFacts};

/// Most authorities of a site. A client is told the names of all of them.
const AUTHORITIES_MAX: usize = 256;

/// Most bytes of a client's name, or of its issuer's, as text: it stands in a field of a request.
const NAME_MAX: usize = 2048;

/// Which certificates of clients a site takes.
pub struct Clients {
    verifier: Arc<dyn ClientCertVerifier>,
    is_required: bool,
    scope: [u8; digest::SHA256_OUTPUT_LEN],
    /// When the first of the revocation lists ends, in seconds since 1970; the greatest number where
    /// there are none.
    until: i64,
    authorities: Vec<Facts>,
    lists: Vec<ListFacts>,
    /// Authorities without a list, where there are lists.
    unlisted: Vec<String>,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients")
            .field("is_required", &self.is_required)
            .field("authorities", &self.authorities.len())
            .field("lists", &self.lists.len())
            .finish_non_exhaustive()
    }
}

/// Why some texts say nothing of whose certificates are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientsError {
    /// Which text is wrong.
    pub part: ClientsPart,
    /// What is wrong, to follow the name of the file.
    pub message: String,
    /// What to do.
    pub help: &'static str,
}

/// One of the texts, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientsPart {
    /// Of authorities.
    Authorities(usize),
    /// Of revocation lists.
    Lists(usize),
}

impl Clients {
    /// Takes the certificates that these authorities have issued, and none that these lists revoke. All
    /// texts are PEM, each with at least one of its kind. With lists, each authority between a client and
    /// the root has to have one that has not ended: whether a certificate is revoked is never left open.
    ///
    /// # Errors
    /// What is wrong with which text.
    pub fn from_pem(
        authorities: &[&str],
        lists: &[&str],
        is_required: bool,
    ) -> Result<Arc<Self>, ClientsError> {
        let mut roots = RootCertStore::empty();
        let mut facts = Vec::new();
        let mut subjects: Vec<Vec<u8>> = Vec::new();
        let mut scope = digest::Context::new(&digest::SHA256);
        scope.update(&[u8::from(is_required)]);
        for (index, text) in authorities.iter().enumerate() {
            let part = ClientsPart::Authorities(index);
            for one in authorities_in(part, text)? {
                let unusable = || ClientsError {
                    part,
                    message: "holds a certificate that can't be read".to_owned(),
                    help: "name the certificates of the authorities in PEM, as they publish them",
                };
                let parts = x509::parts(&one).ok_or_else(unusable)?;
                facts.push(parts.facts().ok_or_else(unusable)?);
                subjects.push(parts.subject.to_vec());
                add_framed(&mut scope, &one);
                roots.add(one).map_err(|_| unusable())?;
            }
            if facts.len() > AUTHORITIES_MAX {
                return Err(ClientsError {
                    part,
                    message: format!("brings more than {AUTHORITIES_MAX} authorities"),
                    help: "name those alone that issue certificates to clients of this site, not \
                           those of the public web",
                });
            }
        }
        let roots = Arc::new(roots);
        scope.update(b"lists");
        let (mut all, mut of_lists) = (Vec::new(), Vec::new());
        for (index, text) in lists.iter().enumerate() {
            let part = ClientsPart::Lists(index);
            for one in lists_in(part, text)? {
                let unusable = || ClientsError {
                    part,
                    message: "holds a revocation list that can't be read".to_owned(),
                    help: "have the authority issue it again, as a list of version 2, complete and \
                           not a difference to another one, in PEM",
                };
                of_lists.push(x509::read_list(&one).ok_or_else(unusable)?);
                // Alone, so that the file that is wrong can be named.
                let alone = verifier_of(&roots, [one.clone()], is_required);
                alone.map_err(|()| unusable())?;
                add_framed(&mut scope, &one);
                all.push(one);
            }
        }
        let unlisted = facts.iter().zip(&subjects).filter(|(_, subject)| {
            !of_lists.is_empty() && !of_lists.iter().any(|list| *list.issuer == ***subject)
        });
        let unlisted = unlisted.map(|(facts, _)| facts.subject.clone()).collect();
        let verifier = verifier_of(&roots, all, is_required).map_err(|()| ClientsError {
            part: ClientsPart::Authorities(0),
            message: "holds no certificate".to_owned(),
            help: NO_AUTHORITY,
        })?;
        let mut this = Self {
            verifier,
            is_required,
            scope: [0; digest::SHA256_OUTPUT_LEN],
            until: (of_lists.iter().filter_map(|list| list.next_update).min()).unwrap_or(i64::MAX),
            authorities: facts,
            lists: of_lists,
            unlisted,
        };
        this.scope.copy_from_slice(scope.finish().as_ref());
        Ok(Arc::new(this))
    }

    /// Whether a client without a certificate is refused.
    pub fn is_required(&self) -> bool {
        self.is_required
    }

    /// The authorities.
    pub fn authorities(&self) -> &[Facts] {
        &self.authorities
    }

    /// The revocation lists.
    pub fn lists(&self) -> &[ListFacts] {
        &self.lists
    }

    /// The names of authorities without a revocation list, where there are lists: nobody comes in by
    /// them.
    pub fn unlisted(&self) -> &[String] {
        &self.unlisted
    }

    /// Whether the same clients are taken as by others.
    pub fn is_same(&self, other: &Self) -> bool {
        self.scope == other.scope
    }

    /// What their sessions are told apart by: another one as soon as an authority or a list is another.
    pub(super) fn scope(&self) -> String {
        hexadecimal(&self.scope, false)
    }

    /// Verifies what a client has shown, at a time in seconds since 1970. Says until when it holds.
    fn verify(&self, chain: &[CertificateDer<'_>], now: i64) -> Result<i64, Failure> {
        let Some((own, others)) = chain.split_first() else {
            return match self.is_required {
                true => Err(Failure::NoClientCertificate),
                false => Ok(i64::MAX),
            };
        };
        let since = Duration::from_secs(u64::try_from(now).unwrap_or(0));
        let at = UnixTime::since_unix_epoch(since);
        let verified = self.verifier.verify_client_cert(own, others, at);
        verified.map_err(|error| Failure::from(&error))?;
        Ok(self.until.min(end_of(own, others, now)))
    }
}

const NO_AUTHORITY: &str = "name the certificates of the authorities in PEM: it has a part from -----BEGIN \
     CERTIFICATE----- to -----END CERTIFICATE-----";

fn authorities_in(
    part: ClientsPart,
    text: &str,
) -> Result<Vec<CertificateDer<'static>>, ClientsError> {
    let wrong = |message: String| ClientsError {
        part,
        message,
        help: NO_AUTHORITY,
    };
    let found = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err(wrong("holds no certificate in PEM".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(format!("is damaged: {}", why(&error)))),
    }
}

fn lists_in(
    part: ClientsPart,
    text: &str,
) -> Result<Vec<CertificateRevocationListDer<'static>>, ClientsError> {
    let wrong = |message: String| ClientsError {
        part,
        message,
        help: "name the authority's revocation list in PEM; one in DER becomes it by: openssl crl \
               -inform der -in LIST -out LIST.pem",
    };
    let found = CertificateRevocationListDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err(wrong("holds no revocation list in PEM".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(format!("is damaged: {}", why(&error)))),
    }
}

fn verifier_of(
    roots: &Arc<RootCertStore>,
    lists: impl IntoIterator<Item = CertificateRevocationListDer<'static>>,
    is_required: bool,
) -> Result<Arc<dyn ClientCertVerifier>, ()> {
    let builder =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(&PROVIDER))
            .with_crls(lists)
            // A list that has ended may lack what was revoked since.
            .enforce_revocation_expiration();
    let builder = match is_required {
        true => builder,
        false => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|_| ())
}

/// Adds bytes so that no two sequences of them are the same.
fn add_framed(to: &mut digest::Context, bytes: &[u8]) {
    to.update(&(bytes.len() as u64).to_be_bytes());
    to.update(bytes);
}

/// When the first certificate of a chain ends that was verified at this time, in seconds since 1970.
/// One that has ended before was not needed: clients may send along what is of no use.
fn end_of(own: &CertificateDer<'_>, others: &[CertificateDer<'_>], now: i64) -> i64 {
    let ends = others.iter().chain([own]).filter_map(|one| {
        let end = x509::read(one)?.not_after;
        (end >= now).then_some(end)
    });
    ends.min().unwrap_or(now)
}

fn hexadecimal(bytes: &[u8], capitals: bool) -> String {
    let digits = if capitals {
        b"0123456789ABCDEF"
    } else {
        b"0123456789abcdef"
    };
    let both = |byte: &u8| [byte >> 4, byte & 15].map(|nibble| digits[usize::from(nibble)]);
    bytes.iter().flat_map(both).map(char::from).collect()
}

/// Who a client is by its certificate, as text of printable ASCII alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Its name (RFC 4514).
    pub subject: Arc<[u8]>,
    /// The name of who has issued it (RFC 4514).
    pub issuer: Arc<[u8]>,
    /// Its number, in hexadecimal with capitals, as OpenSSL and nginx write it.
    pub serial: Arc<[u8]>,
    /// SHA-256 of all of it, in hexadecimal.
    pub fingerprint: Arc<[u8]>,
}

impl ClientCertificate {
    /// Reads one in DER; `None` where it is damaged, or has a name too long to be passed on.
    fn read(der: &[u8]) -> Option<Self> {
        let parts = x509::parts(der)?;
        let name = |content: &[u8]| {
            let name = x509::distinguished_name(content)?;
            (name.len() <= NAME_MAX).then(|| Arc::from(name.into_bytes()))
        };
        // The zero before a number whose first bit is set says only that it isn't negative.
        let serial = match parts.serial {
            [0, rest @ ..] if !rest.is_empty() => rest,
            serial => serial,
        };
        let text = |bytes: &[u8], capitals| Arc::from(hexadecimal(bytes, capitals).into_bytes());
        Some(Self {
            subject: name(parts.subject)?,
            issuer: name(parts.issuer)?,
            // RFC 5280 §4.1.2.2 has at most 20 bytes; some have more.
            serial: (serial.len() <= 64).then(|| text(serial, true))?,
            fingerprint: text(digest::digest(&digest::SHA256, der).as_ref(), false),
        })
    }
}

/// A connection's client, from its handshake on.
#[derive(Debug)]
pub(super) struct Client {
    clients: Arc<Clients>,
    watch: Arc<Watch>,
    certificate: Option<ClientCertificate>,
}

impl Client {
    pub(super) fn new(clients: &Arc<Clients>) -> Self {
        Self {
            clients: Arc::clone(clients),
            watch: Arc::default(),
            certificate: None,
        }
    }

    /// What verifies this client.
    pub(super) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::new(Watched {
            clients: Arc::clone(&self.clients),
            watch: Arc::clone(&self.watch),
        })
    }

    /// What makes tickets for this client, out of those of its site.
    pub(super) fn tickets(&self, of_site: SiteTickets) -> Arc<dyn ProducesTickets> {
        Arc::new(Dated {
            of_site,
            watch: Arc::clone(&self.watch),
        })
    }

    /// The handshake is over, and the client has shown this.
    pub(super) fn came(&mut self, chain: Option<&[CertificateDer<'_>]>) -> Result<(), Failure> {
        let Some(own) = chain.and_then(<[_]>::first) else {
            return Ok(());
        };
        let certificate = ClientCertificate::read(own).ok_or(Failure::ClientUnreadable)?;
        self.certificate = Some(certificate);
        Ok(())
    }

    /// Whether these clients, too, would be taken at a time in seconds since 1970: the same that the
    /// handshake was made by, or such as a reload has brought.
    pub(super) fn admits(
        &mut self,
        clients: &Arc<Clients>,
        chain: Option<&[CertificateDer<'_>]>,
        now: i64,
    ) -> Result<(), Failure> {
        if self.clients.scope != clients.scope {
            let until = clients.verify(chain.unwrap_or_default(), now)?;
            self.watch.until.store(until, Ordering::Relaxed);
            self.clients = Arc::clone(clients);
        }
        match now <= self.watch.until.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(Failure::ClientExpired),
        }
    }

    /// Who the client is; `None` where it has shown nothing.
    pub(super) fn certificate(&self) -> Option<&ClientCertificate> {
        self.certificate.as_ref()
    }

    /// The name in a certificate that was refused.
    pub(super) fn refused(&self) -> Option<&str> {
        self.watch.refused.get().map(|name| &**name)
    }
}

/// What is learnt of a client while its handshake goes on, by what rustls asks.
#[derive(Debug)]
struct Watch {
    /// Until when what was verified holds, in seconds since 1970.
    until: AtomicI64,
    refused: OnceLock<Box<str>>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            until: AtomicI64::new(i64::MAX),
            refused: OnceLock::new(),
        }
    }
}

/// The verifier of one connection.
#[derive(Debug)]
struct Watched {
    clients: Arc<Clients>,
    watch: Arc<Watch>,
}

impl ClientCertVerifier for Watched {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.clients.is_required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.clients.verifier.verify_client_cert(own, others, now);
        if verified.is_err() {
            let name = x509::parts(own).and_then(|parts| x509::distinguished_name(parts.subject));
            if let Some(mut name) = name {
                // It is ASCII.
                name.truncate(NAME_MAX);
                let _ = self.watch.refused.set(name.into());
            }
        } else {
            let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            let until = end_of(own, others, now).min(self.clients.until);
            self.watch.until.store(until, Ordering::Relaxed);
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = &self.clients.verifier;
        verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = &self.clients.verifier;
        verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.verifier.supported_verify_schemes()
    }
}

/// Tickets that say until when they are good.
#[derive(Debug)]
struct Dated {
    of_site: SiteTickets,
    watch: Arc<Watch>,
}

impl ProducesTickets for Dated {
    fn enabled(&self) -> bool {
        self.of_site.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.of_site.lifetime()
    }

    /// The end in seconds since 1970, in eight bytes, then the session.
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let until = self.watch.until.load(Ordering::Relaxed);
        let dated = [&until.to_be_bytes()[..], plain].concat();
        self.of_site.encrypt(&dated)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let mut plain = self.of_site.decrypt(ticket)?;
        let until = i64::from_be_bytes(*plain.first_chunk()?);
        let now = clock::unix_s();
        if now > until {
            return None;
        }
        // Tickets that follow are no better.
        self.watch.until.store(until, Ordering::Relaxed);
        plain.drain(..size_of::<i64>());
        Some(plain)
    }
}

#[cfg(test)]
mod tests;
