//! Why a TLS connection failed, in words that an administrator can act on.

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

use super::ServerFailure;

/// Why a connection failed. Each has a name of its own for counters and the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It doesn't begin as TLS does, but as an HTTP request.
    PlainHttp,
    /// It doesn't begin as TLS does.
    NotTls,
    /// Its ClientHello breaks a rule.
    Hello(&'static str),
    /// It names no site, and no certificate is the default.
    NoName,
    /// It names a site that isn't here, and no certificate is the default.
    UnknownName,
    /// The client speaks older versions of TLS only, or, with the policy `modern`, TLS 1.2 only.
    NoSharedVersion,
    /// The client takes none of the cipher suites.
    NoSharedCipher,
    /// The client takes none of the key exchange groups.
    NoSharedGroup,
    /// The client takes no signature that one of the certificates can make.
    NoSharedSignature,
    /// The client speaks none of the application protocols.
    NoSharedProtocol,
    /// The client refused: the alert that it sent.
    Refused(&'static str),
    /// The client showed no certificate where one is required.
    NoClientCertificate,
    /// The client's certificate, or what it was issued by, has expired.
    ClientExpired,
    /// The client's certificate is not valid yet.
    ClientNotYetValid,
    /// The client's certificate is revoked.
    ClientRevoked,
    /// The client's certificate is of an authority that isn't one of the site.
    ClientUnknownAuthority,
    /// The client's certificate is not for clients, or its authority may not issue it.
    ClientPurpose,
    /// No revocation list says whether the client's certificate is revoked.
    ClientUnlisted,
    /// The revocation list has ended.
    ListExpired,
    /// The client's certificate can't be read, has a signature that doesn't fit, or a name that is too
    /// long.
    ClientUnreadable,
    /// The request is for another site than the connection was made for.
    OtherSite,
    /// The client broke the protocol.
    Protocol,
    /// A record could not be decrypted: it was changed on its way, or made with other keys.
    BadRecord,
    /// More was received that makes no whole message than any client needs.
    TooMuch,
    /// The client left, or the connection broke, within the handshake.
    Left,
    /// The handshake took too long.
    TooSlow,
    /// Too many handshakes were under way.
    Crowded,
    /// Keys are used up and can't be renewed (TLS 1.2, after 2^24 records).
    Exhausted,
    /// Something of ours failed.
    Ours,
    /// It is about a server that we are a client of.
    Server(ServerFailure),
}

impl Failure {
    /// What it is, for counters and the log; each name says that it is of TLS.
    pub fn name(self) -> &'static str {
        match self {
            Self::PlainHttp => "TLS: plain HTTP on a TLS port",
            Self::NotTls => "TLS: no TLS on a TLS port",
            Self::Hello(_) => "TLS: malformed ClientHello",
            Self::NoName => "TLS: no server name",
            Self::UnknownName => "TLS: unknown server name",
            Self::NoSharedVersion => "TLS: no shared version",
            Self::NoSharedCipher => "TLS: no shared cipher",
            Self::NoSharedGroup => "TLS: no shared key exchange group",
            Self::NoSharedSignature => "TLS: no certificate that the client takes",
            Self::NoSharedProtocol => "TLS: no shared application protocol",
            Self::Refused(alert) => alert,
            Self::NoClientCertificate => "TLS: no certificate from the client",
            Self::ClientExpired => "TLS: expired client certificate",
            Self::ClientNotYetValid => "TLS: client certificate not valid yet",
            Self::ClientRevoked => "TLS: revoked client certificate",
            Self::ClientUnknownAuthority => "TLS: client certificate of an unknown authority",
            Self::ClientPurpose => "TLS: client certificate for something else",
            Self::ClientUnlisted => "TLS: no revocation list for a client certificate",
            Self::ListExpired => "TLS: expired revocation list",
            Self::ClientUnreadable => "TLS: unusable client certificate",
            Self::OtherSite => "TLS: request for another site than the server name",
            Self::Protocol => "TLS: protocol broken by the client",
            Self::BadRecord => "TLS: undecryptable record",
            Self::TooMuch => "TLS: too much for one message",
            Self::Left => "TLS: client left within the handshake",
            Self::TooSlow => "TLS: time to a whole handshake",
            Self::Crowded => "TLS: handshakes under way",
            Self::Exhausted => "TLS: keys used up",
            Self::Ours => "TLS: internal error",
            Self::Server(failure) => failure.name(),
        }
    }

    /// The alert that a client gets before there is any state of the connection; `None` for what
    /// isn't TLS, where an alert would be noise.
    pub fn alert(self) -> Option<[u8; 7]> {
        let description = match self {
            Self::UnknownName => AlertDescription::UnrecognisedName,
            Self::NoName => AlertDescription::MissingExtension,
            Self::Hello(_) | Self::TooMuch => AlertDescription::DecodeError,
            Self::Crowded | Self::TooSlow => AlertDescription::UserCanceled,
            _ => return None,
        };
        // A record of type alert (21), two bytes of it: fatal (2), and which (RFC 8446 §6).
        Some([21, 3, 3, 0, 2, 2, description.into()])
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        match error {
            Error::PeerIncompatible(reason) => incompatible(reason),
            Error::AlertReceived(alert) => Self::Refused(refusal(*alert)),
            Error::NoApplicationProtocol => Self::NoSharedProtocol,
            Error::NoCertificatesPresented => Self::NoClientCertificate,
            Error::InvalidCertificate(reason) => untrusted(reason),
            Error::InvalidCertRevocationList(_) => Self::ClientUnlisted,
            Error::DecryptError => Self::BadRecord,
            error if is_ours(error) => Self::Ours,
            _ => Self::Protocol,
        }
    }
}

/// Whether something of ours failed, and nothing that the other side did.
pub(in crate::net::tls) fn is_ours(error: &Error) -> bool {
    matches!(
        error,
        Error::General(_)
            | Error::EncryptError
            | Error::FailedToGetCurrentTime
            | Error::FailedToGetRandomBytes
            | Error::HandshakeNotComplete
            | Error::InconsistentKeys(_)
            | Error::BadMaxFragmentSize
    )
}

fn incompatible(reason: &PeerIncompatible) -> Failure {
    match reason {
        PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled => Failure::NoSharedVersion,
        PeerIncompatible::NoCipherSuitesInCommon => Failure::NoSharedCipher,
        PeerIncompatible::NoKxGroupsInCommon
        | PeerIncompatible::NamedGroupsExtensionRequired
        | PeerIncompatible::NoEcPointFormatsInCommon
        | PeerIncompatible::EcPointsExtensionRequired
        | PeerIncompatible::UncompressedEcPointsRequired
        | PeerIncompatible::KeyShareExtensionRequired => Failure::NoSharedGroup,
        PeerIncompatible::NoSignatureSchemesInCommon
        | PeerIncompatible::SignatureAlgorithmsExtensionRequired => Failure::NoSharedSignature,
        _ => Failure::Protocol,
    }
}

/// Only clients show certificates here.
fn untrusted(reason: &CertificateError) -> Failure {
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            Failure::ClientExpired
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            Failure::ClientNotYetValid
        }
        CertificateError::Revoked => Failure::ClientRevoked,
        CertificateError::UnknownIssuer => Failure::ClientUnknownAuthority,
        CertificateError::UnknownRevocationStatus => Failure::ClientUnlisted,
        CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => Failure::ListExpired,
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            Failure::ClientPurpose
        }
        _ => Failure::ClientUnreadable,
    }
}

/// What a client's alert says (RFC 8446 §6.2).
fn refusal(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnknownCA => "TLS: client doesn't know the certificate's authority",
        AlertDescription::CertificateExpired => "TLS: client holds the certificate for expired",
        AlertDescription::CertificateRevoked => "TLS: client holds the certificate for revoked",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => "TLS: client refused the certificate",
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            "TLS: client found no parameters to agree on"
        }
        AlertDescription::ProtocolVersion => "TLS: client refused the version",
        AlertDescription::UserCanceled => "TLS: client gave the handshake up",
        AlertDescription::BadRecordMac | AlertDescription::DecryptError => {
            "TLS: client could not decrypt"
        }
        _ => "TLS: client sent an alert",
    }
}
