//! The files that the keeper watches: certificates, which clients are taken, what authorities say, and what
//! connections to servers are made by.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::day;
use super::wire::ClientsPem;
use crate::certificates::files::{Content, FILE_BYTES_MAX, LIST_BYTES_MAX, Mark, mark, read};
use crate::certificates::pairs::PairInUse;
use crate::certificates::watcher::Source;
use crate::config::model::{CertificateId, ClientsId, PemFile, UpstreamFiles};
use crate::net::tls::identity::Part;
use crate::net::tls::ocsp::{self, OcspError, RESPONSE_MAX, Statement};
use crate::net::tls::{Clients, Identity, IdentityError, Roots, Trust};
use crate::util::x509::{self, Facts};

/// Files that are watched, and what is in use of them.
#[derive(Clone)]
pub(super) enum Subject {
    Certificate(PairInUse),
    Clients(ClientsInUse),
    Statement(StatementInUse),
    Upstream(UpstreamInUse),
}

/// What they are read as.
pub(super) enum Read {
    Certificate(Content, Box<Facts>),
    Clients(ClientsPem, Arc<Clients>),
    Statement(Response),
    Upstream(Trust, Option<Arc<Identity>>, FileTexts),
}

/// What files hold that came to be read. It is wiped when it is dropped, since it may be a key.
pub(in crate::supervisor) type FileTexts = Vec<(PathBuf, Zeroizing<String>)>;

/// The clients that are taken.
#[derive(Clone)]
pub(super) struct ClientsInUse {
    pub(super) id: ClientsId,
    pub(super) clients: Arc<Clients>,
}

/// What the authority says of a certificate, by a file.
#[derive(Clone)]
pub(super) struct StatementInUse {
    /// Of which certificate.
    pub(super) of: CertificateId,
    pub(super) path: PathBuf,
    /// The certificate, and who has issued it, in DER.
    pub(super) chain: Vec<Vec<u8>>,
    /// `None` where nothing was read.
    pub(super) in_use: Option<Response>,
}

/// What the connections to the servers of an upstream are made by.
#[derive(Clone)]
pub(super) struct UpstreamInUse {
    /// Its name.
    pub(super) name: String,
    pub(super) files: UpstreamFiles,
    pub(super) trust: Trust,
    pub(super) identity: Option<Arc<Identity>>,
}

/// A response of an authority.
#[derive(Clone)]
pub(super) struct Response {
    pub(super) bytes: Vec<u8>,
    /// What it says; `None` where that is that the certificate is revoked.
    pub(super) says: Option<Statement>,
    /// When it was read, in seconds since 1970.
    pub(super) at_s: i64,
}

impl Source for Subject {
    type Read = Read;

    fn is_at(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Certificate(one), Self::Certificate(other)) => one.is_at(other),
            (Self::Clients(one), Self::Clients(other)) => one.id == other.id,
            (Self::Statement(one), Self::Statement(other)) => one.of == other.of,
            (Self::Upstream(one), Self::Upstream(other)) => one.name == other.name,
            _ => false,
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Certificate(one), Self::Certificate(other)) => one.is_same(other),
            (Self::Clients(one), Self::Clients(other)) => {
                one.id == other.id && one.clients.is_same(&other.clients)
            }
            (Self::Statement(one), Self::Statement(other)) => {
                let bytes = |it: &'_ Option<Response>| it.as_ref().map(|it| it.bytes.clone());
                one.of == other.of
                    && one.path == other.path
                    && one.chain == other.chain
                    && bytes(&one.in_use) == bytes(&other.in_use)
            }
            (Self::Upstream(one), Self::Upstream(other)) => {
                one.name == other.name
                    && one.files == other.files
                    && one.trust == other.trust
                    && one.identity == other.identity
            }
            _ => false,
        }
    }

    fn marks(&self) -> Vec<Mark> {
        match self {
            Self::Certificate(one) => one.marks(),
            Self::Clients(one) => one.id.files().map(|file| mark(&file.0)).collect(),
            Self::Statement(one) => vec![mark(&one.path)],
            Self::Upstream(one) => one.paths().map(|path| mark(path)).collect(),
        }
    }

    fn read(&self, unix_s: i64) -> Result<Option<Read>, String> {
        match self {
            Self::Certificate(one) => {
                let read = one.read(unix_s)?;
                Ok(read.map(|(content, facts)| Read::Certificate(content, facts)))
            }
            Self::Clients(one) => one.read(unix_s),
            Self::Statement(one) => one.read(unix_s),
            Self::Upstream(one) => one.read(),
        }
    }

    fn take(&mut self, read: &Read) {
        match (self, read) {
            (Self::Certificate(one), Read::Certificate(content, facts)) => {
                one.digest = content.digest();
                one.facts = (**facts).clone();
            }
            (Self::Clients(one), Read::Clients(_, clients)) => one.clients = Arc::clone(clients),
            (Self::Statement(one), Read::Statement(response)) => {
                one.in_use = Some(response.clone());
            }
            (Self::Upstream(one), Read::Upstream(trust, identity, _)) => {
                one.trust = trust.clone();
                one.identity.clone_from(identity);
            }
            // What is read is of the kind that it is read by.
            _ => {}
        }
    }
}

impl ClientsInUse {
    fn read(&self, unix_s: i64) -> Result<Option<Read>, String> {
        let texts = |files: &[PemFile]| -> Result<Vec<String>, String> {
            files.iter().map(|file| text(&file.0)).collect()
        };
        let pem = ClientsPem {
            authorities: texts(&self.id.authorities)?,
            lists: texts(&self.id.lists)?,
            id: self.id.clone(),
        };
        let clients = pem.made()?;
        if clients.is_same(&self.clients) {
            return Ok(None);
        }
        match worse(&clients, &self.clients, unix_s) {
            Some(why) => Err(format!("{}: {why}", shown(&self.id.lists))),
            None => Ok(Some(Read::Clients(pem, clients))),
        }
    }
}

impl StatementInUse {
    fn read(&self, unix_s: i64) -> Result<Option<Read>, String> {
        let bytes = read(&self.path, RESPONSE_MAX as u64)?.to_vec();
        if (self.in_use.as_ref()).is_some_and(|in_use| in_use.bytes == bytes) {
            return Ok(None);
        }
        let verified = match &*self.chain {
            [own, issuer, ..] => ocsp::verify(&bytes, (own, issuer), unix_s),
            _ => Err(OcspError::NoIssuer),
        };
        let says = match verified {
            Ok(statement) => Some(statement),
            Err(OcspError::Revoked(_)) => None,
            Err(error) => {
                let path = self.path.display();
                return Err(format!("{path} {}; {}", error.message(), error.help()));
            }
        };
        Ok(Some(Read::Statement(Response {
            bytes,
            says,
            at_s: unix_s,
        })))
    }
}

impl UpstreamInUse {
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let own = self.files.identity.iter().flat_map(|(own, key)| [own, key]);
        self.files.trust.iter().chain(own)
    }

    fn read(&self) -> Result<Option<Read>, String> {
        let mut texts = FileTexts::new();
        let wrong = |path: &Path, error: &IdentityError| {
            format!("{} {}; {}", path.display(), error.message, error.help)
        };
        let mut trust = self.trust.clone();
        if let Some(path) = &self.files.trust {
            let text = secret(path, LIST_BYTES_MAX)?;
            let roots = Roots::from_pem(text.as_bytes()).map_err(|error| wrong(path, &error))?;
            trust = Trust::Roots(roots);
            texts.push((path.clone(), text));
        }
        let mut identity = None;
        if let Some((certificate, key)) = &self.files.identity {
            let own = [certificate, key].map(|path| secret(path, FILE_BYTES_MAX));
            let [own, secret] = own;
            let (own, secret) = (own?, secret?);
            let made = Identity::from_pem(own.as_bytes(), secret.as_bytes());
            let made = made.map_err(|error| match error.part {
                Part::Certificate => wrong(certificate, &error),
                Part::Key => wrong(key, &error),
            })?;
            identity = Some(Arc::new(made));
            texts.extend([(certificate.clone(), own), (key.clone(), secret)]);
        }
        if trust == self.trust && identity == self.identity {
            return Ok(None);
        }
        Ok(Some(Read::Upstream(trust, identity, texts)))
    }
}

/// The names of files, for people.
pub(super) fn shown(files: &[PemFile]) -> String {
    let names: Vec<_> = files.iter().map(|it| it.0.display().to_string()).collect();
    names.join(", ")
}

fn text(path: &Path) -> Result<String, String> {
    secret(path, LIST_BYTES_MAX).map(|mut text| std::mem::take(&mut *text))
}

fn secret(path: &Path, bytes_max: u64) -> Result<Zeroizing<String>, String> {
    let mut bytes = read(path, bytes_max)?;
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(error) => {
            drop(Zeroizing::new(error.into_bytes()));
            Err(format!("{}: it is no text in PEM", path.display()))
        }
    }
}

/// Why lists that are whole are worse than those in use: they would let somebody in again, or keep
/// everybody out.
fn worse(new: &Clients, old: &Clients, unix_s: i64) -> Option<String> {
    let is_known = |name: &&String| {
        let mut authorities = old.authorities().iter();
        authorities.any(|it| it.subject == **name) && !old.unlisted().contains(name)
    };
    if let Some(name) = new.unlisted().iter().find(is_known) {
        return Some(format!(
            "there is no list of the authority `{name}` any more, and its clients would all be refused"
        ));
    }
    for list in new.lists() {
        let mut before = old.lists().iter().filter(|it| it.issuer == list.issuer);
        let Some(before) = before.next() else {
            continue;
        };
        let name = x509::distinguished_name(&list.issuer).unwrap_or_default();
        if list.this_update < before.this_update {
            return Some(format!(
                "the list of {name} is of {}, and the one in use is newer",
                day(list.this_update)
            ));
        }
        let has_ended = |end: Option<i64>| end.is_some_and(|end| unix_s > end);
        if has_ended(list.next_update) && !has_ended(before.next_update) {
            return Some(format!(
                "the list of {name} has ended on {}, and the one in use holds",
                list.next_update.map(day).unwrap_or_default()
            ));
        }
    }
    None
}
