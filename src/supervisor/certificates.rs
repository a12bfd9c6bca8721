//! The certificates of what is served, for whoever holds the keys: the master, or a server without one.
//!
//! It has those made that the local authority signs, watches the files of all others, and says what
//! takes the place of what; it warns of those that end. Nothing here knows a worker: what is new is given
//! to the caller, who hands it on.

mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

pub(super) use self::wire::{Pem, identities};
pub use self::wire::{Wanted, wanted};
use super::control::certificates::CertificateStatus;
use crate::certificates::expiry::{self, Left, Stage, Warnings};
use crate::certificates::files::Pair;
use crate::certificates::local_ca::{Kept, Leaf, Problem};
use crate::certificates::watcher::Change;
use crate::certificates::{LocalCa, Name, Places, Watcher};
use crate::config::model::{CertificateId, Model};
use crate::http::semantics::date;
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
    watcher: Watcher,
    in_force: Vec<InForce>,
    warnings: Warnings<CertificateId>,
    /// When something is to be looked at, if there is something.
    next: Option<Instant>,
    /// When it is asked next whether one ends.
    ask_at: Option<Instant>,
}

/// A certificate that is in use.
struct InForce {
    wanted: Wanted,
    facts: Facts,
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
            warnings: Warnings::default(),
            next: None,
            ask_at: None,
        }
    }

    /// What the local authority has to sign of this, which may be what was signed before. It is made where
    /// there is none yet. `now_s` in seconds since 1970.
    ///
    /// # Errors
    /// When the authority is no good, or a certificate can't be made.
    pub(super) fn make(&mut self, wanted: &[Wanted], now_s: i64) -> Result<Vec<Pem>, Problem> {
        let mut made = Vec::new();
        for wanted in wanted {
            if let CertificateId::Made { .. } = wanted.id {
                let leaf = self.leaf(&wanted.names, now_s)?;
                made.push(Pem::made(wanted.id.clone(), &leaf));
            }
        }
        Ok(made)
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

    /// These are in use from now on, and no others: those of `pems`, and for the rest what `model` has.
    pub(super) fn take(&mut self, wanted: &[Wanted], pems: &[Pem], model: &Model, now: Instant) {
        let identities = model.sites.iter().filter_map(|site| site.tls.as_ref());
        let identities: BTreeMap<_, _> = identities
            .flat_map(|tls| &tls.certificates)
            .filter_map(|one| Some((&one.id, one.identity.as_ref()?)))
            .collect();
        let pems: BTreeMap<_, _> = pems.iter().map(|pem| (&pem.id, pem)).collect();
        let mut in_force = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            let replaced = pems.get(&wanted.id).copied();
            let found = match (replaced, identities.get(&wanted.id)) {
                (Some(pem), _) => pem.facts().map(|facts| (facts, pem.digest())),
                (None, Some(identity)) => Some((identity.facts().clone(), identity.digest())),
                (None, None) => None,
            };
            let Some((facts, digest)) = found else {
                continue;
            };
            match pair_of(&wanted.id) {
                // What it was read at is not known, so the first look reads it again.
                Some(pair) => self.watcher.watch(pair, [None; 2], digest, facts.clone()),
                None => self.remember(wanted, replaced, &facts),
            }
            in_force.push(InForce {
                wanted: wanted.clone(),
                facts,
            });
        }
        self.in_force = in_force;
        let in_force = || self.in_force.iter().map(|it| &it.wanted);
        let pairs: BTreeSet<Pair> = in_force().filter_map(|it| pair_of(&it.id)).collect();
        self.watcher.retain(|pair| pairs.contains(pair));
        let names: BTreeSet<Vec<Name>> = in_force().map(|it| parsed(&it.names)).collect();
        self.leaves.retain(|of, _| names.contains(of));
        let some = (!self.in_force.is_empty()).then_some(now);
        (self.next, self.ask_at) = (some, some);
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

    /// When [`Keeper::turn`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Looks what has changed, and gives what takes the place of what is in use. `now_s` in seconds since
    /// 1970.
    pub(super) fn turn(&mut self, now: Instant, now_s: i64) -> Vec<Pem> {
        if self.next.is_none_or(|next| now < next) {
            return Vec::new();
        }
        let mut new: Vec<Pem> = Vec::new();
        for change in self.watcher.turn(now, now_s) {
            new.extend(self.changed(change, now));
        }
        if self.ask_at.is_some_and(|at| now >= at) {
            self.ask_at = Some(now + ASK_EVERY);
            new.extend(self.renew(now_s));
            self.warn(now_s);
        }
        let deadlines = [self.watcher.deadline(), self.ask_at];
        self.next = deadlines.into_iter().flatten().min();
        new
    }

    fn changed(&mut self, change: Change, now: Instant) -> Option<Pem> {
        match change {
            Change::Use {
                pair,
                content,
                facts,
            } => {
                let pem = Pem::read(&pair, &content);
                tracing::info!(
                    file = %pair.certificate.display(),
                    names = shown(&facts),
                    until = day(facts.not_after),
                    "a certificate was replaced: the next handshake goes by it"
                );
                let known = self.in_force.iter_mut().find(|it| it.wanted.id == pem.id);
                if let Some(known) = known {
                    known.facts = *facts;
                }
                // Whoever puts one there that ends soon hears it now.
                self.ask_at = Some(now);
                Some(pem)
            }
            Change::Warn { why, .. } => {
                tracing::warn!("{why}; the certificate that is in use goes on");
                None
            }
            Change::Well { pair } => {
                let file = pair.certificate.display();
                tracing::info!(%file, "the files of a certificate are right again");
                None
            }
        }
    }

    /// Makes those anew whose time has come.
    fn renew(&mut self, now_s: i64) -> Vec<Pem> {
        let mut new = Vec::new();
        for index in 0..self.in_force.len() {
            let InForce { wanted, facts } = &self.in_force[index];
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

    fn warn(&mut self, now_s: i64) {
        let all = self.in_force.iter().map(|it| {
            let validity = (it.facts.not_before, it.facts.not_after);
            (it.wanted.id.clone(), validity)
        });
        for (id, stage) in self.warnings.due(all, now_s) {
            let known = self.in_force.iter().find(|it| it.wanted.id == id);
            let Some(InForce { wanted, facts }) = known else {
                continue;
            };
            let (what, help) = match &id {
                CertificateId::Files { certificate, .. } => (
                    format!("the certificate {}", certificate.display()),
                    "renew it: a new one in its place is used without a reload",
                ),
                CertificateId::Made { .. } => (
                    "the certificate of the local authority".to_owned(),
                    "the authority itself ends: remove its directory (beltway cert trust names it) and \
                     restart",
                ),
            };
            let (names, sites) = (shown(facts), wanted.sites.join(", "));
            let validity = (facts.not_before, facts.not_after);
            let news = expiry::news(validity, now_s).unwrap_or_default();
            match stage {
                Stage::Ended => tracing::error!(names, sites, "{what} {news}; {help}"),
                _ => tracing::warn!(names, sites, "{what} {news}; {help}"),
            }
        }
    }

    /// What is in use, for `status`.
    pub(super) fn status(&self, now_s: i64) -> Vec<CertificateStatus> {
        let troubles: BTreeMap<_, _> = self.watcher.troubles().collect();
        let all = self.in_force.iter();
        let status = all.map(|InForce { wanted, facts }| {
            let pair = pair_of(&wanted.id);
            let trouble = pair.as_ref().and_then(|pair| troubles.get(pair).copied());
            CertificateStatus {
                sites: wanted.sites.clone(),
                names: facts.all_names(),
                issuer: facts.issuer.clone(),
                self_signed: pair.is_none(),
                file: pair.map_or_else(String::new, |pair| pair.certificate.display().to_string()),
                key: facts.key.to_string(),
                not_before: time(facts.not_before),
                not_after: time(facts.not_after),
                days_left: Left::until(facts.not_after, now_s).days(),
                trouble: trouble.unwrap_or_default().to_owned(),
            }
        });
        status.collect()
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
