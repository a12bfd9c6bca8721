//! The certificates of what is served, for whoever holds the keys: the master, or a server without one.
//!
//! It has those made that the local authority signs, watches the files of all others, those by which clients
//! are taken, and those of statements (OCSP), has authorities asked, and says what takes the place of what; it
//! warns of what ends. Nothing here knows a worker: what is new is given to the caller, who hands it on.

mod news;
mod standing;
mod subject;
mod wire;

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use self::news::Ending;
use self::subject::{
    ClientsInUse, FileTexts, Read, Response, StatementInUse, Subject, UpstreamInUse,
};
use self::wire::Pem;
pub(super) use self::wire::Replaced;
use self::wire::Said;
pub use self::wire::{Wanted, WantedClients, wanted, wanted_clients};
use crate::certificates::expiry::Warnings;
use crate::certificates::files::Pair;
use crate::certificates::local_ca::{Kept, Leaf, Problem};
use crate::certificates::ocsp::asker::Asker;
use crate::certificates::ocsp::{self, Asked};
use crate::certificates::pairs::PairInUse;
use crate::certificates::watcher::{Change, News};
use crate::certificates::{LocalCa, Name, Places, Watcher};
use crate::config::model::{CertificateId, Model, Ocsp, UpstreamFiles};
use crate::http::semantics::date;
use crate::net::tls::ocsp::verify;
use crate::util::x509::Facts;

/// How often it is asked whether a certificate ends, or is to be made anew.
const ASK_EVERY: Duration = Duration::from_secs(3600);

/// Most names of a certificate that a line of the log shows.
const NAMES_SHOWN: usize = 4;

/// Keeps the certificates of the configuration in force.
pub(super) struct Keeper {
    places: Places,
    /// Opened when the first certificate is asked of it.
    authority: Option<LocalCa>,
    /// By what they are for.
    leaves: BTreeMap<Vec<Name>, Rc<Leaf>>,
    watcher: Watcher<Subject>,
    in_force: Vec<InForce>,
    clients: Vec<WantedClients>,
    /// Asks authorities about certificates.
    asker: Asker<CertificateId>,
    /// Why an authority could not be asked, as it was told last.
    told: BTreeMap<CertificateId, String>,
    /// What files of upstreams hold that were replaced.
    of_upstreams: FileTexts,
    warnings: Warnings<Ending>,
    /// When something is to be looked at, if there is something.
    next: Option<Instant>,
    /// When it is asked next whether one ends.
    ask_at: Option<Instant>,
}

/// A certificate that is in use.
struct InForce {
    wanted: Wanted,
    facts: Facts,
    /// The chain in DER.
    chain: Vec<Vec<u8>>,
}

impl Keeper {
    /// For an authority in these places.
    pub(super) fn new(places: Places) -> Self {
        Self {
            places,
            authority: None,
            leaves: BTreeMap::new(),
            watcher: Watcher::default(),
            in_force: Vec::new(),
            clients: Vec::new(),
            asker: Asker::default(),
            told: BTreeMap::new(),
            of_upstreams: FileTexts::new(),
            warnings: Warnings::default(),
            next: None,
            ask_at: None,
        }
    }

    /// What a configuration with these certificates begins with beside its own: what the local authority has
    /// to sign, which may be what was signed before and is made where there is none yet, and what other
    /// authorities have said. `now_s` in seconds since 1970.
    ///
    /// # Errors
    /// When the authority is no good, or a certificate can't be made.
    pub(super) fn begin(&mut self, wanted: &[Wanted], now_s: i64) -> Result<Replaced, Problem> {
        let mut begin = Replaced::default();
        for wanted in wanted {
            if let CertificateId::Made { .. } = wanted.id {
                let leaf = self.leaf(&wanted.names, now_s)?;
                (begin.certificates).push(Pem::made(wanted.id.clone(), &leaf));
            }
            if wanted.ocsp == Ocsp::Responder
                && let Some((response, at_s)) = self.asker.responders.known(&wanted.id)
            {
                begin.statements.push(Said {
                    of: wanted.id.clone(),
                    response: Some(response.to_vec()),
                    at_s,
                });
            }
        }
        Ok(begin)
    }

    fn leaf(&mut self, names: &[String], now_s: i64) -> Result<Rc<Leaf>, Problem> {
        let names = parsed(names);
        if let Some(leaf) = self.leaves.get(&names)
            && now_s < leaf.renew_at()
        {
            return Ok(Rc::clone(leaf));
        }
        let leaf = Rc::new(self.authority(now_s)?.issue(&names, now_s)?);
        self.leaves.insert(names, Rc::clone(&leaf));
        Ok(leaf)
    }

    fn authority(&mut self, now_s: i64) -> Result<&LocalCa, Problem> {
        if self.authority.is_none() {
            let authority = LocalCa::open(&self.places, now_s)?;
            let name = &authority.authority().name;
            match &authority.authority().kept {
                Kept::At(directory) => tracing::info!(
                    name,
                    directory = %directory.display(),
                    "the local authority signs certificates; `beltway cert trust` says how to trust it"
                ),
                Kept::InMemory(why) => tracing::warn!(
                    name,
                    "the local authority can't be kept and ends with this process, so nobody can trust \
                     it: {why}; set STATE_DIRECTORY or XDG_STATE_HOME to a directory that this user may \
                     write to"
                ),
            }
            self.authority = Some(authority);
        }
        self.authority
            .as_ref()
            .ok_or_else(|| unreachable!("it was opened"))
    }

    /// These certificates and clients are in use from now on, and no others: as `replaced` has them, and the
    /// rest as `model` does. `now_s` in seconds since 1970.
    pub(super) fn take(
        &mut self,
        (wanted, clients): (&[Wanted], &[WantedClients]),
        (replaced, model): (&Replaced, &Model),
        (now, now_s): (Instant, i64),
    ) {
        let of_sites = model.sites.iter().filter_map(|site| site.tls.as_ref());
        let identities: BTreeMap<_, _> = of_sites
            .clone()
            .flat_map(|tls| &tls.certificates)
            .filter_map(|one| Some((&one.id, one.identity.as_ref()?)))
            .collect();
        let pems = replaced.certificates.iter();
        let pems: BTreeMap<_, _> = pems.map(|pem| (&pem.id, pem)).collect();
        let mut subjects = Vec::new();
        self.in_force.clear();
        for wanted in wanted {
            let pem = pems.get(&wanted.id).copied();
            let identity = identities.get(&wanted.id).filter(|_| pem.is_none());
            let found = match (pem, identity) {
                (Some(pem), _) => pem.facts().map(|facts| (facts, pem.digest(), pem.chain())),
                (None, Some(it)) => {
                    let chain = it.chain().iter().map(|one| one.as_ref().to_vec());
                    Some((it.facts().clone(), it.digest(), chain.collect()))
                }
                (None, None) => None,
            };
            let Some((facts, digest, chain)) = found else {
                continue;
            };
            match pair_of(&wanted.id) {
                Some(pair) => subjects.push(Subject::Certificate(PairInUse {
                    pair,
                    digest,
                    facts: facts.clone(),
                })),
                None => self.remember(wanted, pem, &facts),
            }
            let said = replaced.statements.iter().find(|it| it.of == wanted.id);
            match &wanted.ocsp {
                Ocsp::None => {}
                Ocsp::File(path) => {
                    let of_model = identity.and_then(|it| Some((it.stapled()?, it.statement())));
                    let in_use = match said {
                        Some(said) => (said.response.clone()).map(|bytes| (bytes, said.at_s)),
                        None => of_model.map(|(bytes, _)| (bytes, now_s)),
                    };
                    subjects.push(statement(wanted, path, &chain, in_use, now_s));
                }
                Ocsp::Responder => {
                    let known = said.and_then(|said| Some((said.response.clone()?, said.at_s)));
                    self.ask_about(&wanted.id, &chain, known, now_s);
                }
            }
            self.in_force.push(InForce {
                wanted: wanted.clone(),
                facts,
                chain,
            });
        }
        self.clients = clients.to_vec();
        for wanted in clients {
            let pem = replaced.clients.iter().find(|one| one.id == wanted.id);
            let of_model = || {
                let mut of_sites = of_sites.clone();
                let tls = of_sites.find(|tls| tls.clients_id.as_ref() == Some(&wanted.id))?;
                tls.clients.clone()
            };
            let made = pem.and_then(|pem| pem.made().ok()).or_else(of_model);
            subjects.extend(made.map(|clients| {
                let id = wanted.id.clone();
                Subject::Clients(ClientsInUse { id, clients })
            }));
        }
        subjects.extend(model.upstreams.iter().filter_map(|upstream| {
            let tls = upstream.tls.as_ref()?;
            (tls.files != UpstreamFiles::default()).then(|| {
                Subject::Upstream(UpstreamInUse {
                    name: upstream.name.to_string(),
                    files: tls.files.clone(),
                    trust: tls.terms.trust.clone(),
                    identity: tls.terms.identity.clone(),
                })
            })
        }));
        self.forget_others(&subjects);
        let some = (!subjects.is_empty() || !self.in_force.is_empty()).then_some(now);
        for subject in subjects {
            // At what it was read is not known, so the first look reads it again.
            self.watcher.watch(subject, Vec::new());
        }
        (self.next, self.ask_at) = (some, some);
    }

    /// What files of upstreams hold that were replaced since this was asked last: whoever drives this makes
    /// a configuration of it, as no core can take another upstream alone.
    pub(super) fn take_of_upstreams(&mut self) -> FileTexts {
        std::mem::take(&mut self.of_upstreams)
    }

    /// Forgets what is in use no more.
    fn forget_others(&mut self, subjects: &[Subject]) {
        use crate::certificates::watcher::Source as _;
        self.watcher
            .retain(|known| subjects.iter().any(|subject| subject.is_at(known)));
        let names = |it: &InForce| parsed(&it.wanted.names);
        let names: Vec<Vec<Name>> = self.in_force.iter().map(names).collect();
        self.leaves.retain(|of, _| names.contains(of));
        let is_asked = |id: &CertificateId| {
            let mut asked = (self.in_force.iter()).filter(|it| it.wanted.ocsp == Ocsp::Responder);
            asked.any(|it| it.wanted.id == *id)
        };
        self.asker.responders.retain(is_asked);
        self.told.retain(|id, _| is_asked(id));
    }

    /// Has the authority asked about a certificate with this chain, if there is one to be asked.
    fn ask_about(
        &mut self,
        id: &CertificateId,
        chain: &[Vec<u8>],
        known: Option<(Vec<u8>, i64)>,
        now_s: i64,
    ) {
        let responders = &mut self.asker.responders;
        match Asked::of_chain(chain) {
            Ok(asked) => responders.watch(id.clone(), asked, known, now_s),
            // Whoever has read it has told.
            Err(_) => responders.retain(|known| known != id),
        }
    }

    /// What the master before has made goes on.
    fn remember(&mut self, wanted: &Wanted, pem: Option<&Pem>, facts: &Facts) {
        let Some(pem) = pem else { return };
        self.leaves.entry(parsed(&wanted.names)).or_insert_with(|| {
            Rc::new(Leaf {
                certificate: pem.certificate.clone(),
                key: pem.key.clone(),
                not_before: facts.not_before,
                not_after: facts.not_after,
            })
        });
    }

    /// When [`Keeper::turn`] has something to do, if none of [`Keeper::fds`] is readable before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Readable when an authority has answered.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.asker.fds()
    }

    /// Looks what has changed, and gives what takes the place of what is in use. `now_s` in seconds since
    /// 1970.
    pub(super) fn turn(&mut self, now: Instant, now_s: i64) -> Replaced {
        let mut new = Replaced::default();
        if self.next.is_none_or(|next| now < next) && !self.asker.is_asking() {
            return new;
        }
        for change in self.watcher.turn(now, now_s) {
            self.changed(change, (now, now_s), &mut new);
        }
        for (of, news) in self.asker.turn(now, now_s) {
            self.answered(of, news, (now, now_s), &mut new);
        }
        if self.ask_at.is_some_and(|at| now >= at) {
            new.certificates.extend(self.renew(now_s));
            let next = self.warn(now_s).min(ASK_EVERY);
            self.ask_at = Some(now + next);
        }
        let asker = self.asker.deadline(now, now_s);
        let deadlines = [self.watcher.deadline(), self.ask_at, asker];
        self.next = deadlines.into_iter().flatten().min();
        new
    }

    fn changed(&mut self, change: Change<Subject>, now: (Instant, i64), new: &mut Replaced) {
        let Change { of, news } = change;
        let read = match news {
            News::Use(read) => read,
            News::Warn(why) => return of.warn(&why),
            News::Well => return of.well(),
        };
        // Whoever puts one there that ends soon hears it now.
        self.ask_at = Some(now.0);
        of.replaced(&read);
        match (of, read) {
            (Subject::Certificate(of), Read::Certificate(content, facts)) => {
                let pem = Pem::read(&of.pair, &content);
                self.stated_anew(&pem, *facts, now.1);
                new.certificates.push(pem);
            }
            (Subject::Clients(_), Read::Clients(pem, _)) => new.clients.push(pem),
            (Subject::Statement(of), Read::Statement(response)) => new.statements.push(Said {
                of: of.of,
                response: response.says.map(|_| response.bytes),
                at_s: now.1,
            }),
            (Subject::Upstream(_), Read::Upstream(_, _, texts)) => self.of_upstreams.extend(texts),
            // What is read is of the kind that it is read by.
            _ => {}
        }
    }

    /// Another certificate is in use: what was said of the one before counts no more.
    fn stated_anew(&mut self, pem: &Pem, facts: Facts, now_s: i64) {
        let known = self.in_force.iter_mut().find(|it| it.wanted.id == pem.id);
        let Some(known) = known else { return };
        (known.facts, known.chain) = (facts, pem.chain());
        let (wanted, chain) = (known.wanted.clone(), known.chain.clone());
        match &wanted.ocsp {
            Ocsp::None => {}
            Ocsp::File(path) => {
                let subject = statement(&wanted, path, &chain, None, now_s);
                self.watcher.watch(subject, Vec::new());
            }
            Ocsp::Responder => {
                if let Err(unasked) = Asked::of_chain(&chain) {
                    let sites = wanted.sites.join(", ");
                    tracing::warn!(
                        sites,
                        "`ocsp = true` does nothing for the new certificate: {}",
                        unasked.message()
                    );
                }
                self.told.remove(&wanted.id);
                self.ask_about(&wanted.id, &chain, None, now_s);
            }
        }
    }

    /// An authority has answered, or not.
    fn answered(
        &mut self,
        of: CertificateId,
        news: ocsp::News,
        (now, now_s): (Instant, i64),
        new: &mut Replaced,
    ) {
        self.tell_answer(&of, &news);
        let response = match news {
            ocsp::News::Nothing => return,
            ocsp::News::Staple(response) => Some(response),
            ocsp::News::Withdraw => None,
        };
        self.ask_at = Some(now);
        new.statements.push(Said {
            of,
            response,
            at_s: now_s,
        });
    }

    /// Makes those anew whose time has come.
    fn renew(&mut self, now_s: i64) -> Vec<Pem> {
        let mut new = Vec::new();
        for index in 0..self.in_force.len() {
            let InForce { wanted, facts, .. } = &self.in_force[index];
            if !matches!(wanted.id, CertificateId::Made { .. }) {
                continue;
            }
            let (wanted, end) = (wanted.clone(), facts.not_after);
            let pem = match self.leaf(&wanted.names, now_s) {
                Ok(leaf) if leaf.not_after > end => Pem::made(wanted.id, &leaf),
                // One that ends with its authority gains nothing by another one.
                Ok(_) => continue,
                Err(problem) => {
                    let sites = wanted.sites.join(", ");
                    tracing::error!(sites, "a certificate can't be renewed: {problem}");
                    continue;
                }
            };
            if let Some(facts) = pem.facts() {
                let (names, until) = (shown(&facts), day(facts.not_after));
                tracing::info!(
                    names,
                    until,
                    "the local authority has renewed a certificate"
                );
                self.in_force[index].facts = facts;
            }
            new.push(pem);
        }
        new
    }
}

/// Names as texts, which come from names.
fn parsed(names: &[String]) -> Vec<Name> {
    names.iter().filter_map(|name| Name::parse(name)).collect()
}

fn pair_of(id: &CertificateId) -> Option<Pair> {
    match id {
        CertificateId::Files { certificate, key } => Some(Pair {
            certificate: certificate.clone(),
            key: key.clone(),
        }),
        CertificateId::Made { .. } => None,
    }
}

/// The file of a statement on a certificate with this chain; of what is in use, the response and when it came.
fn statement(
    wanted: &Wanted,
    path: &Path,
    chain: &[Vec<u8>],
    in_use: Option<(Vec<u8>, i64)>,
    now_s: i64,
) -> Subject {
    let verified = |bytes: &[u8]| match chain {
        [own, issuer, ..] => verify(bytes, (own, issuer), now_s).ok(),
        _ => None,
    };
    Subject::Statement(StatementInUse {
        of: wanted.id.clone(),
        path: path.to_owned(),
        chain: chain.to_vec(),
        in_use: in_use.and_then(|(bytes, at_s)| {
            let says = Some(verified(&bytes)?);
            Some(Response { bytes, says, at_s })
        }),
    })
}

/// What a certificate is for, in short. It is somebody else's text: nothing in it moves a cursor.
fn shown(facts: &Facts) -> String {
    let names = facts.all_names();
    let more = names.len().saturating_sub(NAMES_SHOWN);
    let mut text = names[..names.len() - more].join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text.replace(char::is_control, "\u{fffd}")
}

fn time(unix_s: i64) -> String {
    String::from_utf8_lossy(&date::rfc3339(unix_s)).into_owned()
}

fn day(unix_s: i64) -> String {
    time(unix_s)[..10].to_owned()
}

#[cfg(test)]
mod tests;
