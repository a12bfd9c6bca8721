//! Certificates that the master replaces while a worker serves.

use super::Process;
use crate::supervisor::certificates::Replaced;

impl Process {
    /// Makes connections by other certificates from now on, on every core.
    pub(super) fn replace_certificates(&mut self, replaced: &Replaced) {
        match replaced.made() {
            Ok(new) => {
                self.secured.replace(new, &self.tickets, &self.worker);
                self.tell_certificates();
            }
            // The master had checked them.
            Err(why) => tracing::error!(why, "certificates of the master are no good"),
        }
    }

    /// Tells the cores that don't know yet.
    pub(super) fn tell_certificates(&mut self) {
        self.secured.tell(&mut self.worker);
    }
}
