//! A connection that has become a tunnel: WebSocket, and whatever else a backend has switched to. Bytes
//! go both ways, each direction to its own end.

use std::rc::Rc;
use std::time::Duration;

use super::exchange::Incoming;
use crate::http::session::{Tunnel, TunnelClient, TunnelEnd, Tunnelling};
use crate::net::secured::{self, TunnelSide};
use crate::net::send::{Sender, UNHURRIED};
use crate::net::splice::{self, Early, FlowEnd, tunnel};
use crate::upstream::group::Claim;
use crate::upstream::health::Outcome;
use crate::upstream::pool::Connection;

/// A tunnel to a backend. It counts as in flight there until it ends.
pub(super) struct ProxyTunnel {
    /// Held to the end.
    _claim: Claim,
    connection: Connection,
    /// What the backend has sent behind its head, and the client behind his.
    early: Early,
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
        let early = Early {
            from_a: Vec::new(),
            from_b: incoming.bytes().to_vec(),
        };
        claim.record(Outcome::Success, Duration::ZERO);
        Self {
            _claim: claim,
            connection,
            early,
            idle,
        }
    }
}

impl Tunnel for ProxyTunnel {
    fn run<'t>(self: Box<Self>, client: TunnelClient<'t>) -> Tunnelling<'t> {
        Box::pin(run(self, client))
    }
}

async fn run<'t>(mut this: Box<ProxyTunnel>, mut client: TunnelClient<'t>) -> TunnelEnd {
    if client.receiver.is_secured() || this.connection.receiver().is_secured() {
        return Box::pin(run_secured(this, client)).await;
    }
    // What stands in the box and in `client` stays there: a second time in this future it
    // would cost every idle tunnel that much.
    client.early.extend(client.receiver.stop().await);
    let stopped = this.connection.receiver().stop().await;
    this.early.from_b.extend(stopped);
    this.early.from_a = std::mem::take(&mut client.early);
    let (idle, ends) = (this.idle, (client.socket, this.connection.socket()));
    let ended = tunnel(client.core, ends, &mut this.early, idle).await;
    end(ended)
}

/// As [`run`], with a client or a backend under TLS.
async fn run_secured<'t>(mut this: Box<ProxyTunnel>, client: TunnelClient<'t>) -> TunnelEnd {
    this.early.from_a = client.early;
    let this = &mut *this;
    let receiver = this.connection.receiver();
    let mut sender = Sender::new(client.core, receiver.socket().clone(), UNHURRIED);
    if let Some(secured) = receiver.secured() {
        sender.secure(Rc::clone(secured));
    }
    let ends = (
        TunnelSide {
            receiver: client.receiver,
            sender: client.sender,
        },
        TunnelSide {
            receiver,
            sender: &mut sender,
        },
    );
    end(secured::tunnel(client.core, ends, &mut this.early, this.idle).await)
}

fn end(ended: splice::TunnelEnd) -> TunnelEnd {
    TunnelEnd {
        sent: ended.b_to_a.bytes,
        received: ended.a_to_b.bytes,
        broken: broken(ended.a_to_b.end, ended.b_to_a.end),
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
#[cfg(test)]
mod tests {
    //! What an idle tunnel costs.

    use super::*;

    #[test]
    fn the_future_of_an_idle_tunnel_is_small() {
        fn of<'t, F: Future>(_: impl FnOnce(Box<ProxyTunnel>, TunnelClient<'t>) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = of(run) + size_of::<ProxyTunnel>();
        assert!(bytes <= 1250, "{bytes} B");
    }
}
