//! A connection that has become a tunnel: WebSocket, and whatever else a backend has switched to. Bytes
//! go both ways, each direction to its own end.

use std::time::Duration;

use super::exchange::Incoming;
use crate::http::session::{Tunnel, TunnelClient, TunnelEnd, Tunnelling};
use crate::net::splice::{Early, FlowEnd, tunnel};
use crate::upstream::group::Claim;
use crate::upstream::health::Outcome;
use crate::upstream::pool::Connection;

/// A tunnel to a backend. It counts as in flight there until it ends.
pub(super) struct ProxyTunnel {
    claim: Claim,
    connection: Connection,
    /// What the backend has sent behind its head.
    early: Vec<u8>,
    idle: Option<Duration>,
}

impl ProxyTunnel {
    /// `idle`: how long it stays open while nothing moves; `None` for ever.
    pub(super) fn new(
        claim: Claim,
        connection: Connection,
        incoming: Incoming,
        idle: Option<Duration>,
    ) -> Self {
        let early = incoming.bytes().to_vec();
        claim.record(Outcome::Success, Duration::ZERO);
        Self {
            claim,
            connection,
            early,
            idle,
        }
    }
}

impl Tunnel for ProxyTunnel {
    fn run<'t>(self: Box<Self>, client: TunnelClient<'t>) -> Tunnelling<'t> {
        Box::pin(async move {
            let Self {
                claim,
                mut connection,
                early: mut from_backend,
                idle,
            } = *self;
            let mut from_client = client.early;
            from_client.extend(client.receiver.stop().await);
            from_backend.extend(connection.receiver().stop().await);
            let early = Early {
                from_a: from_client,
                from_b: from_backend,
            };
            let ends = (client.socket, connection.socket());
            let ended = tunnel(client.core, ends, early, idle).await;
            drop(claim);
            TunnelEnd {
                sent: ended.b_to_a.bytes,
                received: ended.a_to_b.bytes,
                broken: broken(ended.a_to_b.end, ended.b_to_a.end),
            }
        })
    }
}

/// Why it ended where that was not the wish of both sides.
fn broken(from_client: FlowEnd, from_backend: FlowEnd) -> Option<&'static str> {
    match (from_client, from_backend) {
        (FlowEnd::Closed, FlowEnd::Closed) => None,
        (FlowEnd::Idle, _) | (_, FlowEnd::Idle) => Some("tunnel idle for timeouts.tunnel"),
        (FlowEnd::Failed(cause), _) if cause.is_of_source() => Some("client gone"),
        (_, FlowEnd::Failed(cause)) if !cause.is_of_source() => Some("client gone"),
        _ => Some("backend gone"),
    }
}
