//! What can go wrong between a request and its response, whose fault it is, and what the client is
//! told of it: a status, and nothing of the inside.

use std::fmt;

use crate::http::h1::response::ResponseError;
use crate::http::session::UploadError;
use crate::net::connect::{self, ConnectError};
use crate::net::secured::HandshakeError;
use crate::net::tls::ServerFailure;
use crate::upstream::group::{Claim, NoServer};
use crate::upstream::health::FailureKind;
use crate::upstream::retry::Failure;

/// Why a try, or a request, came to no response.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// No server takes it.
    NoServer(NoServer),
    /// There was no connection.
    Connect(ConnectError),
    /// There was one, and no TLS on it.
    Secured(Box<HandshakeError>),
    /// A kept connection turned out to be closed.
    Stale {
        /// Whether bytes of the request were given to it.
        sent: bool,
    },
    /// The connection was lost before a byte of a response.
    NoResponse {
        /// Whether bytes of the request were given to it.
        sent: bool,
    },
    /// The connection was lost within the head of a response.
    HeadCut,
    /// No response in time.
    HeadTimeout,
    /// The server took no more of the request for too long.
    Stuck,
    /// All of it takes longer than it may.
    TotalTimeout,
    /// What came is no response.
    Malformed(ResponseError),
    /// A response with this status, which the route has repeated.
    Status(u16),
    /// The request itself, or what the route makes of it, can't be passed on: this status.
    Unsendable(u16, &'static str),
    /// The client's body failed.
    Upload(UploadError),
    /// The client has broken the connection.
    ClientGone,
}

impl Fault {
    /// What the client is answered.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::NoServer(_) => 503,
            Self::Connect(ConnectError::TimedOut | ConnectError::BacklogFull) => 504,
            Self::Connect(error) => match error.fault() {
                connect::Fault::Peer => 502,
                connect::Fault::Ours => 503,
            },
            Self::Secured(error) if error.kind == ServerFailure::TooSlow => 504,
            Self::Secured(_) => 502,
            Self::Stale { .. } | Self::NoResponse { .. } | Self::HeadCut => 502,
            Self::HeadTimeout | Self::Stuck | Self::TotalTimeout => 504,
            Self::Malformed(error) => error.status().0,
            Self::Status(status) | Self::Unsendable(status, _) => *status,
            Self::Upload(error) => error.status(),
            Self::ClientGone => 400,
        }
    }

    /// What it says of the server's health; `None` where it isn't to blame.
    pub(super) fn of_server(&self) -> Option<FailureKind> {
        Some(match self {
            Self::Connect(error) => return FailureKind::of_connect(*error),
            Self::Secured(error) if error.kind == ServerFailure::Ours => return None,
            Self::Secured(error) => FailureKind::Secured(error.kind),
            Self::NoResponse { .. } | Self::HeadCut => FailureKind::Reset,
            Self::HeadTimeout | Self::Stuck | Self::TotalTimeout => FailureKind::Timeout,
            Self::Malformed(_) => FailureKind::Malformed,
            Self::Status(status) => FailureKind::Status(*status),
            // Any server may close a connection that nobody uses.
            Self::Stale { .. } => return None,
            Self::NoServer(_) | Self::Unsendable(..) | Self::Upload(_) | Self::ClientGone => {
                return None;
            }
        })
    }

    /// What the decision about another try has to know; `None` where there can't be one.
    pub(super) fn failure(&self) -> Option<Failure> {
        Some(match self {
            Self::Connect(error) if error.fault() == connect::Fault::Peer => Failure::Connect,
            // Nothing of the request was looked at.
            Self::Secured(_) => Failure::Connect,
            Self::Stale { sent } => Failure::Stale { sent: *sent },
            Self::NoResponse { sent } => Failure::NoResponse { sent: *sent },
            Self::HeadTimeout | Self::Stuck => Failure::HeadTimeout,
            Self::HeadCut | Self::Malformed(_) => Failure::Response,
            Self::Status(status) => Failure::Status(*status),
            Self::Connect(_)
            | Self::NoServer(_)
            | Self::TotalTimeout
            | Self::Unsendable(..)
            | Self::Upload(_)
            | Self::ClientGone => return None,
        })
    }

    /// Whether it is a response that is given up.
    pub(super) fn is_status(&self) -> bool {
        matches!(self, Self::Status(_))
    }

    /// Whether the upstream has no part in it.
    pub(super) fn is_of_client(&self) -> bool {
        matches!(
            self,
            Self::Unsendable(..) | Self::Upload(_) | Self::ClientGone
        )
    }

    /// Tells the log of a try that failed.
    pub(super) fn log(&self, claim: &Claim, tries: u8) {
        let upstream = &*claim.group().roster().settings().name;
        let server = &**claim.label();
        // A connection that can't be had from here is nobody else's to mend.
        match self.of_server().is_some() || matches!(self, Self::Connect(_) | Self::Secured(_)) {
            true => tracing::warn!(upstream, server, tries, fault = %self, "a try failed"),
            false => tracing::debug!(upstream, server, tries, fault = %self, "a try failed"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoServer(NoServer::Nobody) => "no server is up",
            Self::NoServer(NoServer::LineFull) => "all servers are full, and so is the queue",
            Self::NoServer(NoServer::WaitedInVain) => {
                "all servers were full until the queue timeout"
            }
            Self::Connect(error) => return error.fmt(f),
            Self::Secured(error) => return error.fmt(f),
            Self::Stale { .. } => "the kept connection was closed",
            Self::NoResponse { .. } => "the connection was lost before a response",
            Self::HeadCut => "the connection was lost within the head of the response",
            Self::HeadTimeout => "no response within timeouts.head",
            Self::Stuck => "the server took nothing of the request within timeouts.head",
            Self::TotalTimeout => "not done within timeouts.total",
            Self::Malformed(error) => return error.fmt(f),
            Self::Status(status) => return write!(f, "status {status}"),
            Self::Unsendable(_, reason) => reason,
            Self::Upload(error) => return error.fmt(f),
            Self::ClientGone => "the client is gone",
        })
    }
}
