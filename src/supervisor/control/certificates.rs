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
}
