//! The certificates of the configurations, as the master drives them: what the keeper finds goes to every
//! worker, and to those that are started later.

use std::time::Instant;

use super::Master;
use super::machine::WorkerId;
use crate::config::model::CertificateId;
use crate::supervisor::certificates::Pem;
use crate::supervisor::messages::ToWorker;
use crate::util::clock;

impl Master {
    /// Watches the certificates of the configuration in force, and no others.
    pub(super) fn keep_certificates(&mut self) {
        let in_force = self.in_force.and_then(|id| self.configurations.get(&id));
        // What another version has read, its master will watch.
        let Some((configuration, loaded)) = in_force.and_then(|it| Some((it, it.loaded.as_ref()?)))
        else {
            return;
        };
        let wanted = &configuration.facts.certificates;
        let (pems, model) = (&configuration.certificates, &loaded.model);
        self.certificates.take(wanted, pems, model, Instant::now());
    }

    /// Hands on what was replaced or renewed: to all workers, also to those that drain, and to the
    /// configurations that have it, for workers to come.
    pub(super) fn renew_certificates(&mut self, now: Instant) {
        let new = self.certificates.turn(now, clock::unix_s());
        if new.is_empty() {
            return;
        }
        for pem in &new {
            self.replace_certificate(pem);
        }
        let workers: Vec<WorkerId> = self.children.iter().map(|child| child.worker).collect();
        let message = ToWorker::Certificates(new);
        for worker in workers {
            self.tell(worker, &message);
        }
    }

    fn replace_certificate(&mut self, pem: &Pem) {
        for configuration in self.configurations.values_mut() {
            let mut wanted = configuration.facts.certificates.iter();
            if !wanted.any(|wanted| wanted.id == pem.id) {
                continue;
            }
            configuration
                .certificates
                .retain(|known| known.id != pem.id);
            configuration.certificates.push(pem.clone());
            // What a reload would change is told by what is in use.
            if let (CertificateId::Files { certificate, key }, Some(loaded)) =
                (&pem.id, &mut configuration.loaded)
            {
                let known = &mut loaded.references.pem;
                known.insert(certificate.clone(), pem.certificate.clone().into());
                known.insert(key.clone(), pem.key.clone());
            }
        }
    }
}
