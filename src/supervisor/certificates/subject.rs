//! The files that the keeper watches: certificates, which clients are taken, and what authorities say.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::day;
use super::wire::ClientsPem;
use crate::certificates::files::{Content, LIST_BYTES_MAX, Mark, mark, read};
use crate::certificates::pairs::PairInUse;
use crate::certificates::watcher::Source;
use crate::config::model::{CertificateId, ClientsId, PemFile};
use crate::net::tls::Clients;
use crate::net::tls::ocsp::{self, OcspError, RESPONSE_MAX, Statement};
use crate::util::x509::{self, Facts};

/// Files that are watched, and what is in use of them.
#[derive(Clone)]
pub(super) enum Subject {
    Certificate(PairInUse),
    Clients(ClientsInUse),
    Statement(StatementInUse),
}

/// What they are read as.
pub(super) enum Read {
    Certificate(Content, Box<Facts>),
    Clients(ClientsPem, Arc<Clients>),
    Statement(Response),
}

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
            _ => false,
        }
    }

    fn marks(&self) -> Vec<Mark> {
        match self {
            Self::Certificate(one) => one.marks(),
            Self::Clients(one) => one.id.files().map(|file| mark(&file.0)).collect(),
            Self::Statement(one) => vec![mark(&one.path)],
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

/// The names of files, for people.
pub(super) fn shown(files: &[PemFile]) -> String {
    let names: Vec<_> = files.iter().map(|it| it.0.display().to_string()).collect();
    names.join(", ")
}

fn text(path: &Path) -> Result<String, String> {
    let bytes = read(path, LIST_BYTES_MAX)?.to_vec();
    String::from_utf8(bytes).map_err(|_| format!("{}: it is no text in PEM", path.display()))
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
