//! Finds out which servers are well.
//!
//! From what requests meet ([`Passive`], one per server and core), from questions of our own
//! ([`Probe`], one per server, on one core), and for an upstream as a whole ([`Breaker`], one per
//! upstream and core). Each takes events and a `now` and gives verdicts; the verdicts are shared by
//! [`shared`](super::shared). None of them knows a connection, a timer or another core.

use std::fmt;

use crate::net::connect::{ConnectError, Fault};
use crate::net::tls::ServerFailure;

mod breaker;
mod ejection;
mod passive;
mod probe;
mod window;

pub use breaker::{Admission, Breaker, BreakerLimits, BreakerState, Pass, Settled};
pub(super) use ejection::Census;
pub use ejection::EjectionLimits;
pub use passive::{Outcome, Passive, PassiveLimits};
pub use probe::{Change, Expectation, PROBE_BODY_BYTES_MAX, Probe, ProbePlan, Step, probes_here};

/// What went wrong at a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Nobody listens there (ECONNREFUSED, or no such unix socket).
    Refused,
    /// No way there (EHOSTUNREACH, ENETUNREACH, a broken route).
    Unreachable,
    /// No connection in time.
    ConnectTimeout,
    /// The connection was lost before the response was whole.
    Reset,
    /// Connected, and no answer in time.
    Timeout,
    /// The answer isn't HTTP as RFC 9112 has it.
    Malformed,
    /// An answer with a status that counts as failure.
    Status(u16),
    /// The answer to a probe lacks the text that was expected.
    Body,
    /// Its name has no address.
    Unresolved,
    /// No connection under TLS.
    Secured(ServerFailure),
}

/// Who found that a server is ill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finder {
    /// So many requests in a row failed.
    InARow,
    /// So large a share of the requests of a time failed.
    ErrorRate,
    /// A probe.
    Probe,
    /// The resolver of names.
    Resolver,
}

/// Why a server is out, as `beltway status` and the log say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Who found it.
    pub finder: Finder,
    /// What was the matter, the last of it.
    pub kind: FailureKind,
}

impl FailureKind {
    /// What a connection that can't be had says of the server; `None` where it isn't to blame.
    pub fn of_connect(error: ConnectError) -> Option<Self> {
        if error.fault() == Fault::Ours {
            return None;
        }
        Some(match error {
            ConnectError::Refused | ConnectError::NoSuchPath => Self::Refused,
            ConnectError::TimedOut | ConnectError::BacklogFull => Self::ConnectTimeout,
            ConnectError::Broken(_) => Self::Reset,
            _ => Self::Unreachable,
        })
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "connection refused",
            Self::Unreachable => "unreachable",
            Self::ConnectTimeout => "no connection in time",
            Self::Reset => "connection lost",
            Self::Timeout => "no answer in time",
            Self::Malformed => "malformed answer",
            Self::Status(status) => return write!(f, "status {status}"),
            Self::Body => "unexpected body",
            Self::Unresolved => "its name has no address",
            Self::Secured(failure) => return write!(f, "TLS: {failure}"),
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind;
        match self.finder {
            Finder::InARow => write!(f, "failures in a row, the last one: {kind}"),
            Finder::ErrorRate => write!(f, "too many failures, the last one: {kind}"),
            Finder::Probe => write!(f, "probe: {kind}"),
            Finder::Resolver => write!(f, "{kind}"),
        }
    }
}

impl Reason {
    /// Bits of [`Reason::code`].
    pub(super) const CODE_BITS: u32 = 16;

    /// For one atomic word: two bits of finder, four of kind, ten of status.
    pub(super) fn code(self) -> u64 {
        let finder = match self.finder {
            Finder::InARow => 0,
            Finder::ErrorRate => 1,
            Finder::Probe => 2,
            Finder::Resolver => 3,
        };
        let (kind, status) = match self.kind {
            FailureKind::Refused => (1, 0),
            FailureKind::Unreachable => (2, 0),
            FailureKind::ConnectTimeout => (3, 0),
            FailureKind::Reset => (4, 0),
            FailureKind::Timeout => (5, 0),
            FailureKind::Malformed => (6, 0),
            FailureKind::Status(status) => (7, u64::from(status.min(999))),
            FailureKind::Body => (8, 0),
            FailureKind::Unresolved => (9, 0),
            FailureKind::Secured(failure) => (10, u64::from(failure.code())),
        };
        finder | kind << 2 | status << 6
    }

    /// The reason of a code; `None` for 0 and whatever [`Reason::code`] doesn't make.
    pub(super) fn from_code(code: u64) -> Option<Self> {
        let finder = match code & 0b11 {
            0 => Finder::InARow,
            1 => Finder::ErrorRate,
            2 => Finder::Probe,
            _ => Finder::Resolver,
        };
        let kind = match code >> 2 & 0b1111 {
            1 => FailureKind::Refused,
            2 => FailureKind::Unreachable,
            3 => FailureKind::ConnectTimeout,
            4 => FailureKind::Reset,
            5 => FailureKind::Timeout,
            6 => FailureKind::Malformed,
            // Ten bits.
            7 => FailureKind::Status((code >> 6 & 0x3ff) as u16),
            8 => FailureKind::Body,
            9 => FailureKind::Unresolved,
            10 => FailureKind::Secured(ServerFailure::from_code((code >> 6 & 0x3ff) as u16)?),
            _ => return None,
        };
        Some(Self { finder, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_survives_its_code_and_reads_well() {
        let finders = [
            Finder::InARow,
            Finder::ErrorRate,
            Finder::Probe,
            Finder::Resolver,
        ];
        let kinds = [
            FailureKind::Refused,
            FailureKind::Unreachable,
            FailureKind::ConnectTimeout,
            FailureKind::Reset,
            FailureKind::Timeout,
            FailureKind::Malformed,
            FailureKind::Status(100),
            FailureKind::Status(599),
            FailureKind::Body,
            FailureKind::Unresolved,
            FailureKind::Secured(ServerFailure::Expired),
            FailureKind::Secured(ServerFailure::Ours),
        ];
        let mut texts = std::collections::BTreeSet::new();
        for finder in finders {
            for kind in kinds {
                let reason = Reason { finder, kind };
                assert_eq!(Reason::from_code(reason.code()), Some(reason));
                assert!(reason.code() < 1 << Reason::CODE_BITS);
                texts.insert(reason.to_string());
            }
        }
        assert_eq!(
            texts.len(),
            finders.len() * kinds.len(),
            "each reads differently"
        );
        assert_eq!(Reason::from_code(0), None);
        let probe = Reason {
            finder: Finder::Probe,
            kind: FailureKind::Status(503),
        };
        assert_eq!(probe.to_string(), "probe: status 503");
    }
}
