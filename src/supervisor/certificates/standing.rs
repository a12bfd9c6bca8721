//! What `status` says of certificates and of clients.

use super::subject::Subject;
use super::{InForce, Keeper, pair_of, time};
use crate::certificates::expiry::Left;
use crate::certificates::ocsp::Asked;
use crate::config::model::{CertificateId, Ocsp};
use crate::supervisor::control::certificates::{
    CertificateStatus, ClientsStatus, ListStatus, OcspState, OcspStatus,
};
use crate::util::x509;

impl Keeper {
    /// The certificates that are in use.
    pub(in crate::supervisor) fn status(&self, now_s: i64) -> Vec<CertificateStatus> {
        let all = self.in_force.iter();
        let status = all.map(|it| {
            let InForce { wanted, facts, .. } = it;
            let pair = pair_of(&wanted.id);
            let is_it = |subject: &Subject| match subject {
                Subject::Certificate(one) => Some(&one.pair) == pair.as_ref(),
                _ => false,
            };
            CertificateStatus {
                sites: wanted.sites.clone(),
                names: facts.all_names(),
                issuer: facts.issuer.clone(),
                self_signed: pair.is_none(),
                trouble: self.trouble(is_it),
                file: pair.map_or_else(String::new, |pair| pair.certificate.display().to_string()),
                key: facts.key.to_string(),
                not_before: time(facts.not_before),
                not_after: time(facts.not_after),
                days_left: Left::until(facts.not_after, now_s).days(),
                ocsp: self.ocsp(it, now_s),
            }
        });
        status.collect()
    }

    /// What is wrong with the files of a source.
    fn trouble(&self, is_it: impl Fn(&Subject) -> bool) -> String {
        let mut troubles = self.watcher.troubles();
        let found = troubles.find(|(subject, _)| is_it(subject));
        found.map_or_else(String::new, |(_, why)| why.to_owned())
    }

    fn ocsp(&self, it: &InForce, now_s: i64) -> Option<OcspStatus> {
        let id = &it.wanted.id;
        match &it.wanted.ocsp {
            Ocsp::None => None,
            Ocsp::File(path) => Some(self.ocsp_of_file(id, path.display().to_string(), now_s)),
            Ocsp::Responder => Some(match self.asker.responders.standing(id) {
                Some(standing) => {
                    let good = standing.good;
                    let holds = good.is_some_and(|(good, _)| now_s < good.next_update);
                    OcspStatus {
                        from: standing.url.to_owned(),
                        state: match (standing.is_revoked, holds) {
                            (true, _) => OcspState::Revoked,
                            (false, true) => OcspState::Stapled,
                            (false, false) => OcspState::None,
                        },
                        fetched: good.map_or_else(String::new, |(_, at)| time(at)),
                        until: good.map_or_else(String::new, |(good, _)| time(good.next_update)),
                        next: time(standing.due),
                        trouble: standing.trouble.unwrap_or_default().to_owned(),
                    }
                }
                None => OcspStatus {
                    trouble: match Asked::of_chain(&it.chain) {
                        Err(unasked) => unasked.message().to_owned(),
                        Ok(_) => String::new(),
                    },
                    ..OcspStatus::default()
                },
            }),
        }
    }

    fn ocsp_of_file(&self, id: &CertificateId, from: String, now_s: i64) -> OcspStatus {
        let is_it = |subject: &Subject| match subject {
            Subject::Statement(one) => one.of == *id,
            _ => false,
        };
        let trouble = self.trouble(is_it);
        let found = self.watcher.all().find_map(|subject| match subject {
            Subject::Statement(one) if one.of == *id => one.in_use.as_ref(),
            _ => None,
        });
        let Some(response) = found else {
            return OcspStatus {
                from,
                trouble,
                ..OcspStatus::default()
            };
        };
        let until = response.says.map(|says| says.next_update);
        OcspStatus {
            from,
            state: match until {
                None => OcspState::Revoked,
                Some(until) if now_s < until => OcspState::Stapled,
                Some(_) => OcspState::None,
            },
            fetched: time(response.at_s),
            until: until.map_or_else(String::new, time),
            next: String::new(),
            trouble,
        }
    }

    /// The clients with certificates that are taken.
    pub(in crate::supervisor) fn clients_status(&self, now_s: i64) -> Vec<ClientsStatus> {
        let clients = self.watcher.all().filter_map(|subject| match subject {
            Subject::Clients(one) => Some(one),
            _ => None,
        });
        let status = clients.map(|one| {
            let wanted = self.clients.iter().find(|wanted| wanted.id == one.id);
            let is_it = |subject: &Subject| match subject {
                Subject::Clients(it) => it.id == one.id,
                _ => false,
            };
            let lists = one.clients.lists().iter().map(|list| ListStatus {
                issuer: x509::distinguished_name(&list.issuer).unwrap_or_default(),
                this_update: time(list.this_update),
                next_update: list.next_update.map_or_else(String::new, time),
                days_left: (list.next_update).map(|end| Left::until(end, now_s).days()),
            });
            let authorities = one.clients.authorities().iter();
            ClientsStatus {
                sites: wanted.map_or_else(Vec::new, |wanted| wanted.sites.clone()),
                required: one.id.is_required,
                files: one
                    .id
                    .files()
                    .map(|it| it.0.display().to_string())
                    .collect(),
                authorities: authorities.map(|it| it.subject.clone()).collect(),
                lists: lists.collect(),
                trouble: self.trouble(is_it),
            }
        });
        status.collect()
    }
}
