//! `ocsp` of a site's `tls`: whether its authority is asked what it says of the certificates, or files that
//! have it.

use super::Outside;
use super::read::Reader;
use crate::config::diagnostics::{At, Diagnostic};
use crate::config::model::{Certificate, Ocsp};
use crate::config::raw::{Table, Value};
use crate::config::references::{from_hexadecimal, to_hexadecimal};
use crate::config::schema::Section;
use crate::config::sources::read_bytes;
use crate::net::tls::ocsp::{OcspError, RESPONSE_MAX};
use crate::util::clock;

/// Before so long its end, a response is spoken of.
const SOON: i64 = 86_400;

impl Reader<'_> {
    /// Staples what the files of `ocsp` say to the certificates of the same place, or notes whose authority
    /// is to be asked.
    pub(super) fn staples(&mut self, table: &Table, certificates: &mut [(Certificate, At)]) {
        const AT: Section = Section::Tls;
        let said = table.get("ocsp");
        let is_asked = said.map_or(Some(false), |entry| match entry.item.value {
            Value::Boolean(is_asked) => Some(is_asked),
            _ => None,
        });
        let (Some(entry), None) = (said, is_asked) else {
            for (certificate, at) in certificates {
                if is_asked == Some(true) {
                    certificate.ocsp = Ocsp::Responder;
                }
                self.warn_of_unstapled(certificate, *at);
            }
            return;
        };
        let Some(names) = self.file_names(table, AT, "ocsp") else {
            return;
        };
        let mut responses = Vec::new();
        for (name, item) in names {
            let path = self.path(item.at, &name);
            if let Some(response) = self.response(item.at, &path) {
                responses.push((path, item.at, response));
            }
        }
        // Without certificates they are what is reported, or no files are read.
        if certificates.is_empty() || responses.iter().any(|(.., response)| response.is_none()) {
            return;
        }
        if responses.len() != certificates.len() {
            let message = format!(
                "`tls` names {} of `cert` and {} of `ocsp`",
                certificates.len(),
                responses.len()
            );
            self.diagnostics.push(
                Diagnostic::new(entry.item.at, message, "")
                    .help("each certificate has a response of its own, in the same order"),
            );
            return;
        }
        let now = clock::unix_s();
        let pairs = responses.into_iter().zip(certificates);
        for ((path, at, response), (certificate, _)) in pairs {
            certificate.ocsp = Ocsp::File(path.clone());
            let Some(identity) = &certificate.identity else {
                continue;
            };
            let stapled = identity.staple(&response.unwrap_or_default(), now);
            let Outside::Machine { .. } = self.outside else {
                // Whoever has packed this has told.
                continue;
            };
            let place = self.place(at);
            match stapled {
                Ok(statement) if statement.next_update - now < SOON => {
                    self.warnings.push(format!(
                        "{place}: the OCSP response ends in {} hours: replace it",
                        (statement.next_update - now) / 3600
                    ));
                }
                Ok(_) => {}
                // Clients do without, as they do when it ends later.
                Err(error @ (OcspError::Ended | OcspError::Early)) => {
                    self.warnings.push(format!(
                        "{place}: the OCSP response {}: no client gets it; {}",
                        error.message(),
                        error.help()
                    ));
                }
                Err(error) => {
                    let message = format!("the file `{}` {}", path.display(), error.message());
                    self.diagnostics
                        .push(Diagnostic::new(at, message, "").help(error.help()));
                }
            }
        }
    }

    /// Warns where there is nobody to be asked, or where nobody is and clients want to know. Most clients do
    /// without, so the server starts all the same.
    fn warn_of_unstapled(&mut self, certificate: &Certificate, at: At) {
        let (Outside::Machine { .. }, Some(identity)) = (self.outside, &certificate.identity)
        else {
            return;
        };
        let warning = match &certificate.ocsp {
            Ocsp::Responder => match identity.responder() {
                Ok(_) => return,
                Err(unasked) => format!(
                    "`ocsp = true` does nothing for this certificate: {}",
                    unasked.message()
                ),
            },
            Ocsp::None if identity.must_staple() => {
                "this certificate tells clients to refuse it without an OCSP response (must-staple), and gets \
                 none: say `ocsp = true`"
                    .to_owned()
            }
            _ => return,
        };
        let place = self.place(at);
        self.warnings.push(format!("{place}: {warning}"));
    }

    /// The bytes of a file; `Some(None)` where files aren't read, `None` and a report where it can't be.
    fn response(&mut self, at: At, path: &std::path::Path) -> Option<Option<Vec<u8>>> {
        let text = self.text_of(at, path, |path| {
            read_bytes(path, RESPONSE_MAX as u64).map(|bytes| to_hexadecimal(&bytes))
        })?;
        let Some(text) = text else { return Some(None) };
        let bytes = from_hexadecimal(&text);
        if bytes.is_none() {
            let message = format!("the file `{}` came along damaged", path.display());
            self.diagnostics.push(
                Diagnostic::new(at, message, "")
                    .help("the content of every file that is named has to come along"),
            );
        }
        bytes.map(Some)
    }
}
