//! What the log says of certificates, of clients and of authorities: what has changed, and what ends.

use std::collections::BTreeMap;
use std::time::Duration;

use super::subject::{Read, Subject, UpstreamInUse, shown as shown_files};
use super::{Keeper, day, shown, time};
use crate::certificates::expiry::{self, Stage};
use crate::certificates::ocsp::News;
use crate::config::model::{CertificateId, ClientsId, Ocsp};
use crate::util::x509;

/// What ends, or has ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    Certificate(CertificateId),
    /// What its authority says of it, as clients are told.
    Statement(CertificateId),
    /// It is revoked, which is worse.
    Revoked(CertificateId),
    /// The revocation list of this issuer.
    List(ClientsId, Box<[u8]>),
}

/// The validity of what has ended for good.
const ENDED: (i64, i64) = (0, 0);

impl Subject {
    /// Something else is used from now on.
    pub(super) fn replaced(&self, read: &Read) {
        match (self, read) {
            (Self::Certificate(of), Read::Certificate(_, facts)) => tracing::info!(
                file = %of.pair.certificate.display(),
                names = shown(facts),
                until = day(facts.not_after),
                "a certificate was replaced: the next handshake goes by it"
            ),
            (Self::Clients(of), _) => tracing::info!(
                files = shown_files(&of.id.lists),
                authorities = shown_files(&of.id.authorities),
                "authorities or revocation lists of clients were replaced: the next handshake and the next \
                 request go by them"
            ),
            (Self::Statement(of), Read::Statement(response)) => {
                let file = of.path.display();
                match response.says {
                    Some(says) => tracing::info!(
                        %file,
                        until = time(says.next_update),
                        "an OCSP response was replaced: the next handshake has it"
                    ),
                    // That is told as what has ended is, once a day.
                    None => {
                        tracing::debug!(%file, "an OCSP response says that a certificate is revoked")
                    }
                }
            }
            (Self::Upstream(of), _) => tracing::info!(
                upstream = of.name,
                files = paths(of),
                "files of TLS to servers were replaced: the next connection goes by them"
            ),
            _ => {}
        }
    }

    pub(super) fn warn(&self, why: &str) {
        match self {
            Self::Certificate(_) => tracing::warn!("{why}; the certificate that is in use goes on"),
            Self::Clients(_) => {
                tracing::warn!("{why}; the authorities and lists that are in use go on");
            }
            Self::Statement(_) => {
                tracing::warn!(
                    "{why}; what clients were told before they are told as long as it holds"
                );
            }
            Self::Upstream(of) => {
                let upstream = &of.name;
                tracing::warn!(
                    upstream,
                    "{why}; what connections were made by before goes on"
                );
            }
        }
    }

    pub(super) fn well(&self) {
        match self {
            Self::Certificate(of) => {
                let file = of.pair.certificate.display();
                tracing::info!(%file, "the files of a certificate are right again");
            }
            Self::Clients(of) => {
                let files = shown_files(&of.id.lists);
                let authorities = shown_files(&of.id.authorities);
                tracing::info!(files, authorities, "the files of clients are right again");
            }
            Self::Statement(of) => {
                tracing::info!(file = %of.path.display(), "an OCSP response is right again");
            }
            Self::Upstream(of) => {
                let (upstream, files) = (&of.name, paths(of));
                tracing::info!(
                    upstream,
                    files,
                    "the files of TLS to servers are right again"
                );
            }
        }
    }
}

fn paths(of: &UpstreamInUse) -> String {
    let names: Vec<_> = of.paths().map(|path| path.display().to_string()).collect();
    names.join(", ")
}

impl Keeper {
    /// Says what has come of asking an authority. That nothing has come is said once for each reason.
    pub(super) fn tell_answer(&mut self, of: &CertificateId, news: &News) {
        let known = self.in_force.iter().find(|it| it.wanted.id == *of);
        let standing = self.asker.responders.standing(of);
        let (Some(known), Some(standing)) = (known, standing) else {
            return;
        };
        let names = shown(&known.facts);
        let (url, due) = (standing.url, time(standing.due));
        match (standing.trouble, news) {
            (Some(why), _) => {
                if self.told.get(of).is_none_or(|told| told != why) {
                    self.told.insert(of.clone(), why.to_owned());
                    let goes_on = match standing.good {
                        Some(_) => "; what it said before is stapled as long as it holds",
                        None => "; nothing is stapled",
                    };
                    tracing::warn!(
                        names,
                        again = due,
                        "the OCSP responder {url} {why}{goes_on}"
                    );
                }
            }
            (None, News::Staple(_)) => {
                self.told.remove(of);
                let until = standing.good.map(|(good, _)| time(good.next_update));
                let until = until.unwrap_or_default();
                tracing::info!(
                    names,
                    until,
                    again = due,
                    "the OCSP responder {url} says that a certificate is good, which is stapled"
                );
            }
            (None, _) => {
                self.told.remove(of);
            }
        }
    }

    /// Warns of what ends. Says after how long it is to be asked again at the latest, so that nothing ends
    /// unnoticed.
    pub(super) fn warn(&mut self, now_s: i64) -> Duration {
        let all = self.endings(now_s);
        let ends = all
            .values()
            .map(|(_, end)| *end)
            .filter(|end| *end >= now_s);
        let next = ends.min().map_or(i64::MAX, |end| end - now_s + 1);
        for (what, stage) in self.warnings.due(all.clone(), now_s) {
            let Some(validity) = all.get(&what) else {
                continue;
            };
            let news = expiry::news(*validity, now_s).unwrap_or_default();
            self.warn_of(&what, stage, &news);
        }
        Duration::from_secs(u64::try_from(next).unwrap_or_default())
    }

    pub(super) fn endings(&self, now_s: i64) -> BTreeMap<Ending, (i64, i64)> {
        let mut all = BTreeMap::new();
        for it in &self.in_force {
            let id = &it.wanted.id;
            let validity = (it.facts.not_before, it.facts.not_after);
            all.insert(Ending::Certificate(id.clone()), validity);
            let standing = match it.wanted.ocsp {
                Ocsp::Responder => self.asker.responders.standing(id),
                _ => None,
            };
            if standing
                .as_ref()
                .is_some_and(|standing| standing.is_revoked)
            {
                all.insert(Ending::Revoked(id.clone()), ENDED);
            } else if let Some((good, _)) = standing.and_then(|standing| standing.good) {
                let validity = (good.this_update, good.next_update);
                all.insert(Ending::Statement(id.clone()), validity);
            }
        }
        for subject in self.watcher.all() {
            match subject {
                Subject::Certificate(_) | Subject::Upstream(_) => {}
                Subject::Clients(one) => {
                    for list in one.clients.lists() {
                        let Some(end) = list.next_update else {
                            continue;
                        };
                        let what = Ending::List(one.id.clone(), list.issuer.clone());
                        // The one that ends first, should there be more than one.
                        let ends = all.entry(what).or_insert((list.this_update, end));
                        if end < ends.1 {
                            *ends = (list.this_update, end);
                        }
                    }
                }
                Subject::Statement(one) => match one.in_use.as_ref().map(|in_use| in_use.says) {
                    Some(Some(says)) => {
                        let what = Ending::Statement(one.of.clone());
                        all.insert(what, (says.this_update, says.next_update));
                    }
                    Some(None) => {
                        all.insert(Ending::Revoked(one.of.clone()), ENDED);
                    }
                    None => {}
                },
            }
        }
        // What comes from elsewhere may say that it begins after its end.
        all.retain(|_, (from, to)| *from <= *to || *to < now_s);
        all
    }

    fn warn_of(&self, what: &Ending, stage: Stage, news: &str) {
        let certificate = |id: &CertificateId| {
            let known = self.in_force.iter().find(|it| it.wanted.id == *id)?;
            let of = match id {
                CertificateId::Files { certificate, .. } => {
                    format!("the certificate {}", certificate.display())
                }
                CertificateId::Made { .. } => "the certificate of the local authority".to_owned(),
            };
            Some((of, shown(&known.facts), known.wanted.sites.join(", ")))
        };
        match what {
            Ending::Certificate(id) => {
                let Some((of, names, sites)) = certificate(id) else {
                    return;
                };
                let help = match id {
                    CertificateId::Files { .. } => {
                        "renew it: a new one in its place is used without a reload"
                    }
                    CertificateId::Made { .. } => {
                        "the authority itself ends: remove its directory (beltway cert trust names it) \
                         and restart"
                    }
                };
                match stage {
                    Stage::Ended => tracing::error!(names, sites, "{of} {news}; {help}"),
                    _ => tracing::warn!(names, sites, "{of} {news}; {help}"),
                }
            }
            Ending::Revoked(id) => {
                let Some((of, names, sites)) = certificate(id) else {
                    return;
                };
                tracing::error!(
                    names,
                    sites,
                    "{of} IS REVOKED, as its authority says: clients that ask the authority refuse it, and \
                     nothing is stapled any more; have another one issued, with another key"
                );
            }
            Ending::Statement(id) => {
                let Some((of, names, sites)) = certificate(id) else {
                    return;
                };
                match stage {
                    Stage::Ended => tracing::warn!(
                        names,
                        sites,
                        "what the authority says of {of} (OCSP) {news}, and no new one has come: nothing is \
                         stapled"
                    ),
                    _ => tracing::warn!(
                        names,
                        sites,
                        "what the authority says of {of} (OCSP) {news}, and no new one has come"
                    ),
                }
            }
            Ending::List(id, issuer) => {
                let wanted = self.clients.iter().find(|wanted| wanted.id == *id);
                let sites = wanted.map_or_else(String::new, |it| it.sites.join(", "));
                let of = x509::distinguished_name(issuer).unwrap_or_default();
                let files = shown_files(&id.lists);
                match stage {
                    Stage::Ended => tracing::error!(
                        sites,
                        files,
                        "the revocation list of {of} {news}: all clients of this authority are refused, until \
                         a new list is in its place, which is used without a reload"
                    ),
                    _ => tracing::warn!(
                        sites,
                        files,
                        "the revocation list of {of} {news}: then all clients of this authority are refused; \
                         a new list in its place is used without a reload"
                    ),
                }
            }
        }
    }
}
