//! `ocsp` of a site's `tls`: files with what an authority says of its certificates.

use super::Outside;
use super::read::Reader;
use crate::config::diagnostics::{At, Diagnostic};
use crate::config::model::Certificate;
use crate::config::raw::Table;
use crate::config::schema::Section;
use crate::config::sources::read_bytes;
use crate::net::tls::ocsp::{OcspError, RESPONSE_MAX};
use crate::util::clock;

/// Before so long its end, a response is spoken of.
const SOON: i64 = 86_400;

impl Reader<'_> {
    /// Staples what the files of `ocsp` say to the certificates of the same place.
    pub(super) fn staples(&mut self, table: &Table, certificates: &[(Certificate, At)]) {
        const AT: Section = Section::Tls;
        let Some(entry) = table.get("ocsp") else {
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
        for ((path, at, response), (certificate, _)) in responses.into_iter().zip(certificates) {
            let Some(identity) = &certificate.identity else {
                continue;
            };
            let stapled = identity.staple(&response.unwrap_or_default(), now);
            let Outside::Machine { .. } = self.outside else {
                // Whoever has packed this has told.
                continue;
            };
            let place = self.diagnostics.sources.place(at);
            let place = format!("{}:{}", place.source, place.line);
            match stapled {
                Ok(statement) if statement.next_update - now < SOON => {
                    self.warnings.push(format!(
                        "{place}: the OCSP response ends in {} hours: replace it, and reload",
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

/// As it is kept beside the tree, where all is text.
fn to_hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8]| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
    let (pairs, rest) = digits.as_chunks::<2>();
    match rest {
        [] => pairs.iter().map(|pair| byte(pair)).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_text_and_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hexadecimal(&to_hexadecimal(&bytes)), Some(bytes));
        for wrong in ["0", "0g", "00 "] {
            assert_eq!(from_hexadecimal(wrong), None);
        }
    }
}
