//! What `status` tells of certificates.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Most names that people are shown; programs get all.
const NAMES_SHOWN: usize = 4;

/// Days that are left, below which people are shown it in capitals.
const SOON_DAYS: i64 = 14;

/// A certificate that is in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateStatus {
    /// The sites that have it.
    pub sites: Vec<String>,
    /// What it is for: DNS names, then addresses.
    pub names: Vec<String>,
    /// Who has signed it, by its common name.
    pub issuer: String,
    /// The local authority of this machine has made it.
    pub self_signed: bool,
    /// Its file, absolute; empty for one that was made.
    pub file: String,
    /// The kind of its key.
    pub key: String,
    /// From when it is valid (RFC 3339).
    pub not_before: String,
    /// Until when it is valid (RFC 3339).
    pub not_after: String,
    /// Whole days until then, negative from the first second after it.
    pub days_left: i64,
    /// What is wrong with its files now, while what they held before is in use; empty where nothing is.
    pub trouble: String,
    /// What clients are told that its authority says of it; `None` where `ocsp` is off.
    pub ocsp: Option<OcspStatus>,
}

/// What an authority says of a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OcspStatus {
    /// Where it comes from: the URL of a responder, or a file; empty where there is nobody to be asked.
    pub from: String,
    /// What clients get.
    pub state: OcspState,
    /// When what they get, or got last, came (RFC 3339); empty where there was nothing yet.
    pub fetched: String,
    /// Until when that holds (RFC 3339).
    pub until: String,
    /// When the responder is asked next (RFC 3339); empty for a file, which is watched.
    pub next: String,
    /// Why there is nothing new, or nothing at all; empty where nothing is wrong.
    pub trouble: String,
}

/// What clients are told of a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OcspState {
    /// Nothing.
    #[default]
    None,
    /// That it is good.
    Stapled,
    /// Nothing, since it is revoked.
    Revoked,
}

/// Clients with certificates that are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientsStatus {
    /// The sites that take them.
    pub sites: Vec<String>,
    /// Whether those without a certificate are refused.
    pub required: bool,
    /// The files of authorities and lists, absolute.
    pub files: Vec<String>,
    /// The names of the authorities.
    pub authorities: Vec<String>,
    /// Their revocation lists.
    pub lists: Vec<ListStatus>,
    /// What is wrong with the files now, while what they held before is in use; empty where nothing is.
    pub trouble: String,
}

/// A revocation list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListStatus {
    /// Whose it is.
    pub issuer: String,
    /// From when on it holds (RFC 3339).
    pub this_update: String,
    /// Until when (RFC 3339); empty where it doesn't say.
    pub next_update: String,
    /// Whole days until then, negative from the first second after it.
    pub days_left: Option<i64>,
}

/// For people: which clients are taken, and how long the lists hold.
pub(super) fn clients_text(all: &[ClientsStatus]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut text = "\nclients with certificates\n".to_owned();
    for one in all {
        let need = if one.required { "required" } else { "optional" };
        let authorities = one.authorities.join(", ");
        line(
            &mut text,
            &format!("  {}: {need}, of {authorities}", one.sites.join(", ")),
        );
        for list in &one.lists {
            let end = list.next_update.as_str();
            let holds = match list.days_left {
                None => "without an end".to_owned(),
                Some(days) if days < 0 => format!("ENDED on {end}: its clients are refused"),
                Some(_) => format!("until {end}"),
            };
            let of = &list.issuer;
            line(
                &mut text,
                &format!(
                    "    revocation list of {of}: {holds}, as of {}",
                    list.this_update
                ),
            );
        }
        if !one.trouble.is_empty() {
            line(&mut text, &format!("    NOT USED: {}", one.trouble));
        }
    }
    text
}

/// A line with texts of others in it: nothing in them moves a cursor.
fn line(text: &mut String, line: &str) {
    let _ = writeln!(text, "{}", line.replace(char::is_control, "\u{fffd}"));
}

impl OcspStatus {
    /// For people, in a line.
    pub(crate) fn text(&self) -> String {
        let Self {
            from,
            fetched,
            until,
            trouble,
            ..
        } = self;
        let mut text = match self.state {
            OcspState::Stapled => format!("stapled, good until {until}, of {fetched}, from {from}"),
            OcspState::Revoked => format!("REVOKED, says {from}"),
            OcspState::None if !until.is_empty() => {
                format!("NOT STAPLED, ended on {until}, from {from}")
            }
            OcspState::None if !from.is_empty() => format!("NOT STAPLED, from {from}"),
            OcspState::None => "NOT STAPLED".to_owned(),
        };
        match (trouble.is_empty(), self.state) {
            (false, _) => text.push_str(&format!(": {trouble}")),
            (true, OcspState::None) if !self.next.is_empty() => {
                text.push_str(": it is being asked")
            }
            _ => {}
        }
        if !trouble.is_empty() && !self.next.is_empty() {
            text.push_str(&format!("; asked again at {}", self.next));
        }
        text
    }
}

/// For people: what is in use, the one that ends first before the others.
pub(super) fn text(all: &[CertificateStatus]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut text = "\ncertificates\n".to_owned();
    let mut all: Vec<&CertificateStatus> = all.iter().collect();
    all.sort_by_key(|it| it.days_left);
    for certificate in all {
        certificate.text(&mut text);
    }
    text
}

impl CertificateStatus {
    fn text(&self, text: &mut String) {
        let more = self.names.len().saturating_sub(NAMES_SHOWN);
        let mut names = self.names[..self.names.len() - more].join(", ");
        if more > 0 {
            let _ = write!(names, " and {more} more");
        }
        let left = match self.days_left {
            days if days < 0 => format!("ENDED {} ago", count(-days)),
            days if days < SOON_DAYS => format!("ENDS in {}", count(days)),
            days => format!("{} left", count(days)),
        };
        let end = self.not_after.get(..10).unwrap_or_default();
        let from = match self.self_signed {
            true => "made here, renewed in time",
            false => self.file.as_str(),
        };
        let line = format!("  {names}: {left}, until {end}, by {}; {from}", self.issuer);
        let _ = writeln!(text, "{}", line.replace(char::is_control, "\u{fffd}"));
        if !self.trouble.is_empty() {
            let _ = writeln!(text, "    NOT USED: {}", self.trouble);
        }
        if let Some(ocsp) = &self.ocsp {
            self::line(text, &format!("    OCSP: {}", ocsp.text()));
        }
    }
}

fn count(days: i64) -> String {
    match days {
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

#[cfg(test)]
mod tests {
    //! What people read.

    use super::*;

    #[test]
    fn the_one_that_ends_first_is_first() {
        let one = |names: &[&str], days_left: i64| CertificateStatus {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            issuer: "An Authority".into(),
            file: "/etc/a.pem".into(),
            not_after: "2027-01-31T00:00:00Z".into(),
            days_left,
            ..CertificateStatus::default()
        };
        let made = CertificateStatus {
            self_signed: true,
            ..one(&["localhost", "127.0.0.1", "::1"], 396)
        };
        let broken = CertificateStatus {
            trouble: "/etc/a.key belongs to another certificate".into(),
            ..one(&["a", "b", "c", "d", "e\u{1b}[2J"], 60)
        };
        let all = [made, broken, one(&["f"], -3), one(&["g"], 1)];
        insta::assert_snapshot!(text(&all), @r"

        certificates
          f: ENDED 3 days ago, until 2027-01-31, by An Authority; /etc/a.pem
          g: ENDS in 1 day, until 2027-01-31, by An Authority; /etc/a.pem
          a, b, c, d and 1 more: 60 days left, until 2027-01-31, by An Authority; /etc/a.pem
            NOT USED: /etc/a.key belongs to another certificate
          localhost, 127.0.0.1, ::1: 396 days left, until 2027-01-31, by An Authority; made here, renewed in time
        ");
        assert_eq!(text(&[]), "");
    }

    #[test]
    fn what_authorities_and_lists_say_is_told_in_a_line_each() {
        let ocsp = |state, fetched: &str, trouble: &str| OcspStatus {
            from: "http://a".into(),
            state,
            fetched: fetched.into(),
            until: if fetched.is_empty() { "" } else { "THEN" }.into(),
            next: "LATER".into(),
            trouble: trouble.into(),
        };
        let lines = [
            ocsp(OcspState::Stapled, "NOW", ""),
            ocsp(OcspState::Stapled, "NOW", "took too long"),
            ocsp(OcspState::None, "NOW", "answered 404"),
            ocsp(OcspState::None, "", ""),
            ocsp(OcspState::Revoked, "", ""),
            OcspStatus {
                trouble: "it names no OCSP responder".into(),
                ..OcspStatus::default()
            },
        ];
        let lines: Vec<_> = lines.iter().map(OcspStatus::text).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        stapled, good until THEN, of NOW, from http://a
        stapled, good until THEN, of NOW, from http://a: took too long; asked again at LATER
        NOT STAPLED, ended on THEN, from http://a: answered 404; asked again at LATER
        NOT STAPLED, from http://a: it is being asked
        REVOKED, says http://a
        NOT STAPLED: it names no OCSP responder
        ");
        let list = |issuer: &str, days_left| ListStatus {
            issuer: issuer.into(),
            this_update: "THEN".into(),
            next_update: "LATER".into(),
            days_left,
        };
        let clients = ClientsStatus {
            sites: vec!["a.example".into()],
            authorities: vec!["CA\u{1b}".into(), "B".into()],
            lists: vec![
                list("CN=CA", Some(3)),
                list("CN=B", Some(-1)),
                list("CN=C", None),
            ],
            trouble: "/ca.crl holds no revocation list in PEM".into(),
            ..ClientsStatus::default()
        };
        insta::assert_snapshot!(clients_text(&[clients]), @r"

        clients with certificates
          a.example: optional, of CA�, B
            revocation list of CN=CA: until LATER, as of THEN
            revocation list of CN=B: ENDED on LATER: its clients are refused, as of THEN
            revocation list of CN=C: without an end, as of THEN
            NOT USED: /ca.crl holds no revocation list in PEM
        ");
    }
}
