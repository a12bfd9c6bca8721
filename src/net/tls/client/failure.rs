//! Why a server can't be talked to under TLS, in words that an administrator can act on.

use std::fmt;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

use crate::net::tls::failure::is_ours;

/// Why there is no connection to a server under TLS, or no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFailure {
    /// What it answers isn't TLS.
    NotTls,
    /// Its certificate has expired.
    Expired,
    /// Its certificate isn't valid yet.
    NotYetValid,
    /// Its certificate is for other names.
    WrongName,
    /// Its certificate comes from nobody who is believed.
    UnknownAuthority,
    /// Something else is wrong with its certificate.
    BadCertificate,
    /// It speaks no version that the policy allows.
    NoSharedVersion,
    /// It takes none of our cipher suites, groups and signatures. With TLS 1.2 it may also say so to
    /// who has no client certificate.
    NoSharedParameters,
    /// It speaks none of the application protocols.
    NoSharedProtocol,
    /// It doesn't know the name that it is asked for.
    UnknownName,
    /// It wants a client certificate, and there is none.
    WantsCertificate,
    /// It refuses our certificate.
    RefusesCertificate,
    /// It refused, by another alert.
    Refused,
    /// It broke the protocol.
    Protocol,
    /// A record of it can't be decrypted.
    BadRecord,
    /// It left, or the connection broke, within the handshake.
    Left,
    /// The handshake took longer than a connection may take.
    TooSlow,
    /// Something of ours failed.
    Ours,
}

/// All, each with its name for counters, by [`ServerFailure::code`] less one.
const ALL: [(ServerFailure, &str); 18] = {
    use ServerFailure::*;
    [
        (NotTls, "TLS to servers: no TLS"),
        (Expired, "TLS to servers: expired certificate"),
        (NotYetValid, "TLS to servers: certificate not yet valid"),
        (WrongName, "TLS to servers: certificate for other names"),
        (UnknownAuthority, "TLS to servers: unknown authority"),
        (BadCertificate, "TLS to servers: bad certificate"),
        (NoSharedVersion, "TLS to servers: no shared version"),
        (NoSharedParameters, "TLS to servers: no shared parameters"),
        (
            NoSharedProtocol,
            "TLS to servers: no shared application protocol",
        ),
        (UnknownName, "TLS to servers: unknown server name"),
        (
            WantsCertificate,
            "TLS to servers: client certificate wanted",
        ),
        (
            RefusesCertificate,
            "TLS to servers: client certificate refused",
        ),
        (Refused, "TLS to servers: alert"),
        (Protocol, "TLS to servers: protocol broken"),
        (BadRecord, "TLS to servers: undecryptable record"),
        (Left, "TLS to servers: left within the handshake"),
        (TooSlow, "TLS to servers: time to a whole handshake"),
        (Ours, "TLS to servers: internal error"),
    ]
};

impl ServerFailure {
    /// What it is, for counters.
    pub fn name(self) -> &'static str {
        ALL[usize::from(self.code()) - 1].1
    }

    /// A small number, from 1.
    pub fn code(self) -> u16 {
        self as u16 + 1
    }

    /// That of a number; `None` where there is none.
    pub fn from_code(code: u16) -> Option<Self> {
        let index = usize::from(code).checked_sub(1)?;
        ALL.get(index).map(|(failure, _)| *failure)
    }

    /// Whether the server has refused the handshake by it, whenever it is told: with TLS 1.3 that may be
    /// behind our first request, which such a server hasn't looked at.
    pub fn is_of_handshake(self) -> bool {
        matches!(
            self,
            Self::WantsCertificate | Self::RefusesCertificate | Self::UnknownName
        )
    }
}

impl fmt::Display for ServerFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotTls => "what it answers isn't TLS: does it speak plain HTTP there?",
            Self::Expired => "its certificate has expired",
            Self::NotYetValid => "its certificate isn't valid yet",
            Self::WrongName => "its certificate is for other names",
            Self::UnknownAuthority => "its certificate comes from an unknown authority",
            Self::BadCertificate => "its certificate can't be accepted",
            Self::NoSharedVersion => "it speaks no version of TLS that `policy` allows",
            Self::NoSharedParameters => {
                "it takes none of our parameters, or wants a client certificate"
            }
            Self::NoSharedProtocol => "it doesn't speak HTTP/1.1 there",
            Self::UnknownName => "it doesn't know the name that it is asked for",
            Self::WantsCertificate => "it wants a client certificate",
            Self::RefusesCertificate => "it refuses our client certificate",
            Self::Refused => "it refused",
            Self::Protocol => "it broke the protocol",
            Self::BadRecord => "a record can't be decrypted",
            Self::Left => "the connection was lost within the handshake",
            Self::TooSlow => "no handshake within the connect timeout",
            Self::Ours => "internal error",
        })
    }
}

impl From<&Error> for ServerFailure {
    fn from(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(error) => of_certificate(error),
            Error::AlertReceived(alert) => of_alert(*alert),
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Self::NotTls,
            Error::PeerIncompatible(
                PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::ServerDoesNotSupportTls12Or13,
            ) => Self::NoSharedVersion,
            Error::PeerIncompatible(_) => Self::NoSharedParameters,
            Error::NoApplicationProtocol => Self::NoSharedProtocol,
            Error::DecryptError => Self::BadRecord,
            error if is_ours(error) => Self::Ours,
            _ => Self::Protocol,
        }
    }
}

fn of_certificate(error: &CertificateError) -> ServerFailure {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ServerFailure::Expired
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ServerFailure::NotYetValid
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            ServerFailure::WrongName
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            ServerFailure::UnknownAuthority
        }
        _ => ServerFailure::BadCertificate,
    }
}

/// What a server's alert says (RFC 8446 §6.2).
fn of_alert(alert: AlertDescription) -> ServerFailure {
    match alert {
        AlertDescription::CertificateRequired => ServerFailure::WantsCertificate,
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateRevoked
        | AlertDescription::UnknownCA
        // What its signature, or that of its authority, comes to.
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => ServerFailure::RefusesCertificate,
        AlertDescription::UnrecognisedName => ServerFailure::UnknownName,
        AlertDescription::ProtocolVersion => ServerFailure::NoSharedVersion,
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            ServerFailure::NoSharedParameters
        }
        AlertDescription::NoApplicationProtocol => ServerFailure::NoSharedProtocol,
        AlertDescription::BadRecordMac => ServerFailure::BadRecord,
        _ => ServerFailure::Refused,
    }
}

/// What there is to be said of an error besides its kind.
pub(super) fn detail(error: &Error) -> Option<Box<str>> {
    let text = match error {
        Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            expected,
            presented,
        }) => {
            let expected = expected.to_str();
            match presented.is_empty() {
                true => format!("expected {expected}, and it has no name at all"),
                false => format!("expected {expected}, it is for {}", names(presented)),
            }
        }
        Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            let seconds = time.as_secs().saturating_sub(not_after.as_secs());
            format!("{} ago", span(seconds))
        }
        Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
            let seconds = not_before.as_secs().saturating_sub(time.as_secs());
            format!("it will be in {}", span(seconds))
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "name its authority with `ca`".to_owned()
        }
        // One that was made anew, for example.
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            "an authority of the same name is known, with another key".to_owned()
        }
        Error::InvalidCertificate(other) => other.to_string(),
        Error::AlertReceived(alert) => format!("alert {alert:?}"),
        _ => return None,
    };
    // A certificate may have thousands of names, and they are the server's.
    let mut text: String = text.chars().filter(|c| !c.is_control()).collect();
    if let Some((end, _)) = text.char_indices().nth(DETAIL_MAX) {
        text.truncate(end);
        text.push('…');
    }
    Some(text.into())
}

/// Most characters of a detail.
const DETAIL_MAX: usize = 400;

/// Names of a certificate, of which each is said to be one.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| match name.split_once("(\"").or(name.split_once('(')) {
        Some((_, inner)) => inner.trim_end_matches(['"', ')']).to_owned(),
        None => name.clone(),
    };
    presented.iter().map(bare).collect::<Vec<_>>().join(", ")
}

fn span(seconds: u64) -> String {
    match seconds / 86_400 {
        0 => format!("{} minutes", seconds.div_ceil(60)),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_code_its_name_and_its_words() {
        let mut words = std::collections::BTreeSet::new();
        for (failure, name) in ALL {
            assert_eq!(ServerFailure::from_code(failure.code()), Some(failure));
            assert_eq!(failure.name(), name);
            words.insert(failure.to_string());
            words.insert(name.to_owned());
        }
        assert_eq!(words.len(), 2 * ALL.len());
        assert_eq!(ServerFailure::from_code(0), None);
        assert_eq!(ServerFailure::from_code(19), None);
    }

    #[test]
    fn what_a_server_has_written_is_bounded_and_harmless() {
        let presented = vec!["DnsName(\"a\u{1b}[31m.example\")".to_owned(); 1000];
        let error = Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            expected: "b.example".try_into().unwrap(),
            presented,
        });
        let text = detail(&error).unwrap();
        assert!(text.starts_with("expected b.example, it is for a[31m.example, a"));
        assert!(text.chars().count() <= DETAIL_MAX + 1);
    }
}
