//! A connection that speaks something else from now on: WebSocket and whatever else a backend has
//! switched to. The session hands the socket over and waits for the end.

use std::pin::Pin;
use std::rc::Rc;

use super::record::PendingLog;
use super::{Connection, Service};
use crate::net::recv::Receiver;
use crate::net::send::Sender;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;

/// What carries the bytes of a connection after a response with status 101.
pub trait Tunnel {
    /// Carries bytes both ways until both have ended, or it has waited long enough by a limit of its
    /// own: nothing else watches it. It may be dropped at any wait, as by the deadline of a drain; the
    /// client then sees a reset.
    ///
    /// How little its future holds while nothing comes decides what an idle tunnel costs.
    fn run<'t>(self: Box<Self>, client: TunnelClient<'t>) -> Tunnelling<'t>;
}

/// A tunnel at work.
pub type Tunnelling<'t> = Pin<Box<dyn Future<Output = TunnelEnd> + 't>>;

/// The client's side of a tunnel, with all that is left of its connection.
pub struct TunnelClient<'t> {
    /// The core.
    pub core: &'t Core,
    /// The socket, to send on, and to end our direction of.
    pub socket: &'t Fd,
    /// Where the client's bytes come from. A receive may be armed on it.
    pub receiver: &'t mut Receiver,
    /// The way to send where that isn't done on the socket itself: of a secured connection the only one.
    pub sender: &'t mut Sender,
    /// What the client had sent behind the head of its request: goes to the other side first.
    pub early: Vec<u8>,
}

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelEnd {
    /// Bytes that went to the client.
    pub sent: u64,
    /// Bytes that came from the client, early ones included.
    pub received: u64,
    /// What ended it where that was not the wish of both sides, for the log: the client sees a reset.
    pub broken: Option<&'static str>,
}

/// A connection whose head with status 101 is sent, or in the batch.
pub(super) struct Switched<E> {
    pub(super) tunnel: Box<dyn Tunnel>,
    pub(super) early: Vec<u8>,
    /// Held to the end: what a tunnel was opened by goes on to be there.
    pub(super) epoch: Rc<E>,
    pub(super) pending: Option<Box<PendingLog>>,
}

impl<S: Service> Connection<S> {
    /// Runs a tunnel to its end. The connection is to be closed, or reset, after it.
    pub(super) async fn tunnel(&mut self, switched: Box<Switched<S::Epoch>>) {
        let Switched {
            tunnel,
            early,
            epoch,
            pending,
        } = *switched;
        // Whoever ends the task ends it in the middle.
        self.unfinished = true;
        let end = tunnel
            .run(TunnelClient {
                core: &self.core,
                socket: &self.peer.socket,
                receiver: &mut self.receiver,
                sender: &mut self.sender,
                early,
            })
            .await;
        self.unfinished = end.broken.is_some();
        if let Some(pending) = pending {
            self.service.log(
                &epoch,
                &self.peer,
                &pending.exchange(end.sent, end.received, end.broken),
            );
        }
    }
}
