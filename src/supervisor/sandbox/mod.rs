//! What the worker may still do once it serves: the walls around the process that meets the clients.
//!
//! Three walls, because each covers what the others can't see: Landlock the files (and by path, which a
//! system call filter can't), seccomp the system calls, and the restriction of each ring what is asked
//! for without a system call. All of them are put up by the worker itself, in this order: files before
//! the first thread, rings as each core makes its own, calls when all rings stand. Each degrades where
//! the kernel lacks it, and says so in its [`State`].

#[cfg(test)]
mod backends;
pub mod calls;
pub mod files;
pub mod probe;

pub use calls::{Notifier, restrict_calls};
pub use files::{Grants, covers, grants, restrict_files};
pub use probe::{Attempt, probe};

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::runtime::engine::caps::Restriction;

/// Whether one wall stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It does, and this is what it holds back.
    Enforced(String),
    /// It does, with holes.
    Partly {
        /// What it holds back.
        detail: String,
        /// What it doesn't, and the kernel that would.
        lacks: String,
    },
    /// It doesn't, because of this.
    Missing(String),
    /// Nobody asked for it.
    Off,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enforced(detail) => write!(f, "enforced: {detail}"),
            Self::Partly { detail, lacks } => write!(f, "enforced: {detail}; but for {lacks}"),
            Self::Missing(why) => write!(f, "missing: {why}"),
            Self::Off => f.write_str("off"),
        }
    }
}

impl From<&Restriction> for State {
    fn from(restriction: &Restriction) -> Self {
        match restriction {
            Restriction::NoRing => Self::Enforced("the engine has no ring".to_owned()),
            Restriction::Enforced => {
                Self::Enforced("each ring takes only what the engine uses".to_owned())
            }
            Restriction::Missing(why) => {
                Self::Missing(format!("a restricted ring can't be had: {why}"))
            }
            Restriction::Off => Self::Off,
        }
    }
}

/// What holds the worker back, for the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The user it runs as.
    pub user: String,
    /// Whether exec could give it nothing.
    pub no_new_privs: bool,
    /// Landlock.
    pub files: State,
    /// The restriction of the rings.
    pub rings: State,
    /// seccomp.
    pub calls: State,
    /// System calls and ring entries that were refused so far.
    pub refused: u64,
}

/// What isn't enforced, and why, a line each: for who wants all or nothing.
pub fn missing(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    if !report.no_new_privs {
        lines.push("no_new_privs is not set".to_owned());
    }
    for (what, state) in [
        (
            "the files that the worker may open (Landlock)",
            &report.files,
        ),
        ("what its rings may be asked for", &report.rings),
        ("its system calls (seccomp)", &report.calls),
    ] {
        match state {
            State::Enforced(_) => {}
            State::Partly { lacks, .. } => {
                lines.push(format!("{what} can't be restricted wholly: {lacks}"));
            }
            State::Missing(why) => lines.push(format!("{what} can't be restricted: {why}")),
            State::Off => lines.push(format!("{what}: switched off")),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_reason() {
        let mut report = Report {
            user: "nobody".to_owned(),
            no_new_privs: true,
            files: State::Enforced("reads beneath 2 paths".to_owned()),
            rings: State::from(&Restriction::NoRing),
            calls: State::Enforced("60 calls".to_owned()),
            refused: 0,
        };
        assert_eq!(missing(&report), Vec::<String>::new());
        report.files = State::Partly {
            detail: "reads".to_owned(),
            lacks: "ioctl of devices (kernel 6.10)".to_owned(),
        };
        report.rings = State::from(&Restriction::Missing("EINVAL".to_owned()));
        report.calls = State::Off;
        report.no_new_privs = false;
        let lines = missing(&report);
        for (line, word) in lines.iter().zip(["no_new_privs", "6.10", "EINVAL", "off"]) {
            assert!(line.contains(word), "{line}");
        }
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn a_report_survives_the_way_to_the_master() {
        let report = Report {
            user: "nobody".to_owned(),
            no_new_privs: true,
            files: State::Missing("no Landlock".to_owned()),
            rings: State::Off,
            calls: State::Partly {
                detail: "a".to_owned(),
                lacks: "b".to_owned(),
            },
            refused: 7,
        };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert!(text.contains(r#""missing":"no Landlock""#), "{text}");
    }
}
