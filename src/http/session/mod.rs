//! The session: drives HTTP/1.1 over one connection.
//!
//! It alone chooses how a response leaves: head and small body in one send with those of the other
//! requests of a batch, files by sendfile, the rest in pieces. A handler ([`Service`]) sees a request
//! and gives back a head and a [`Body`].
//!
//! An idle connection is a small outer future without any buffer; the exchange is a second future in
//! a block of the core's pool, taken at the first byte and given back when the connection idles.

mod body;
mod delivery;
mod exchange;
mod handshakes;
mod input;
mod limits;
mod peer;
mod proxy_header;
mod record;
mod registry;
mod secured;
#[cfg(test)]
mod tests;
mod tunnel;
mod upload;

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::http::h1::HeadLimits;
use crate::http::h1::encode::DateBlock;
use crate::http::types::{Request, ResponseHead};
use crate::net::listener::{Listening, Member};
use crate::net::recv::Receiver;
use crate::net::send::{ProgressRule, Sender};
use crate::net::tls::{self, Failure};
use crate::runtime::buf::RecvBuf;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::task::Pooled;
use crate::util::network::Peers;

use tunnel::Switched;

pub use body::{Body, BodyStream, Cut, Piece, RelayOutcome, RelayPart, Trailers};
pub use handshakes::Handshakes;
pub use limits::{Counts, LimitCounters, MEMORY, count_limit};
pub use peer::Peer;
pub use record::{Exchange, Upstreamed};
pub use registry::{Held, Registration, Registry, Traffic};
pub use tunnel::{Tunnel, TunnelClient, TunnelEnd, Tunnelling};
pub use upload::{INTERIM_MAX, Upload, UploadError, UploadRelay, UploadRelayError};

/// What a handler answers.
pub struct Response {
    /// Status and fields, without those that framing adds.
    pub head: ResponseHead,
    /// The content; for HEAD it is that of GET, whose length is told and which isn't sent.
    pub body: Body,
}

impl Response {
    /// A response without content.
    pub fn empty(status: u16) -> Self {
        Self {
            head: ResponseHead::new(status),
            body: Body::Empty,
        }
    }
}

/// Limits and times of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bounds of a request head.
    pub head: HeadLimits,
    /// From the first byte of a request to the end of its head; then 408.
    pub header_timeout: Duration,
    /// From the begin of a connection under TLS to the end of its handshake.
    pub handshake_timeout: Duration,
    /// How long a connection stays open without a request.
    pub idle_timeout: Duration,
    /// How slow a client may be.
    pub progress: ProgressRule,
    /// Requests on one connection before it is closed.
    pub requests_max: u64,
    /// Most bytes of an unread request body that are thrown away to keep the connection.
    pub body_drain: u64,
}

/// One immutable configuration, as a request sees it. A connection takes the one of the moment when a
/// request begins and holds it until the body of the response has been sent, so that the count of
/// references says how many requests keep a configuration that was replaced.
pub trait Epoch: 'static {
    /// Limits and times; of a connection, from its next request, or its next time without one, on.
    fn settings(&self) -> &Settings;
}

/// What answers requests: the handlers, as the session sees them. One for each core.
pub trait Service: 'static {
    /// A configuration.
    type Epoch: Epoch;

    /// The configuration for what this peer does next.
    fn epoch(&self, peer: &Peer) -> Rc<Self::Epoch>;

    /// Whose connections to the listening socket of this peer begin with a PROXY header; no others are
    /// served there. `None`: no connection does. Asked once, at the begin of a connection.
    fn proxy_header(&self, _: &Peer) -> Option<Arc<Peers>> {
        None
    }

    /// Whether connections to the listening socket of this peer are under TLS. Asked once, at the begin
    /// of a connection.
    fn is_secured(&self, _: &Peer) -> bool {
        false
    }

    /// What the connection of a client is made by that asks for this name.
    ///
    /// # Errors
    /// [`Failure::UnknownName`] or [`Failure::NoName`].
    fn tls(&self, _: &Peer, _name: Option<&str>) -> Result<Arc<tls::Settings>, Failure> {
        Err(Failure::UnknownName)
    }

    /// Answers one request. Its body is in `upload`; what is not read of it is thrown away within
    /// [`Settings::body_drain`], or ends the connection.
    fn call(
        &self,
        epoch: &Rc<Self::Epoch>,
        request: &Request<'_>,
        upload: &mut Upload<'_>,
        peer: &Peer,
    ) -> impl Future<Output = Response>;

    /// The response to a request that the codec refused or that came too slowly.
    fn refusal(&self, status: u16) -> Response;

    /// Server and Date lines of this second.
    fn date(&self) -> DateBlock;

    /// Whether [`Self::log`] wants to be told.
    fn logs(&self, epoch: &Self::Epoch) -> bool;

    /// An exchange has ended.
    fn log(&self, epoch: &Self::Epoch, peer: &Peer, exchange: &Exchange<'_>);

    /// The connections of this core.
    fn registry(&self) -> &Rc<Registry>;
}

/// What is to become of a connection after an exchange.
enum After<E> {
    /// It idles until the next request.
    Keep,
    /// Both sides are done with it.
    Close,
    /// We are done, but the client may still be sending: a close now would reset the connection and
    /// take the response with it (RFC 9112 §9.6).
    Linger,
    /// The response was cut short, and the client has to see that.
    Reset,
    /// It speaks another protocol from now on.
    Tunnel(Box<Switched<E>>),
}

/// A connection between its exchanges.
struct Connection<S> {
    core: Core,
    service: Rc<S>,
    peer: Peer,
    receiver: Receiver,
    sender: Sender,
    timer: Timer,
    requests: u64,
    /// A part of a response has been sent, the rest not yet.
    unfinished: bool,
}

impl<S> Drop for Connection<S> {
    /// When its task is ended, or panics, in the middle of a response, the client has to see that the
    /// response is not whole.
    fn drop(&mut self) {
        if self.unfinished {
            self.core.reset_on_close(&self.peer.socket);
        }
    }
}

/// Longest time, and most bytes, that a client is listened to after our side of the connection ended.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;

/// Serves a connection until it ends. Its future is what an idle connection costs: what it is given
/// stands in it once, so everything that needs no task is made before it.
pub fn serve<S: Service>(
    core: Core,
    socket: Fd,
    member: Member,
    listening: Rc<Listening>,
    service: Rc<S>,
) -> impl Future<Output = ()> + 'static {
    let peer = Peer::new(socket.clone(), listening);
    let progress = service.epoch(&peer).settings().progress;
    let mut registration = Registration::new(service.registry(), member);
    let mut connection = Connection {
        receiver: Receiver::new(&core, socket.clone()),
        sender: Sender::new(&core, socket, progress),
        timer: Timer::new(&core),
        peer,
        requests: 0,
        unfinished: false,
        service,
        core,
    };
    async move {
        registration.enter(connection.core.current_task());
        let after = 'over: {
            if let Some(introduction) = connection.introduction(&registration) {
                let after = introduction.await;
                if !matches!(after, After::Keep) {
                    break 'over after;
                }
            }
            loop {
                connection.begin_idle(&registration);
                // In no future of its own, which would keep its arguments twice.
                let idle = poll_fn(|_| connection.poll_idle(&registration));
                let Some(first) = idle.await else {
                    break 'over After::Close;
                };
                registration.busy();
                let after = connection.exchange_boxed(first).await;
                if !matches!(after, After::Keep) {
                    break 'over after;
                }
            }
        };
        // By value into a function: what it holds is not to stand in this future.
        if let Some(last) = connection.last(after) {
            last.await;
        }
    }
}

impl<S: Service> Connection<S> {
    /// What is left to do on a connection that gets no further request.
    fn last(&mut self, after: After<S::Epoch>) -> Option<Pooled<'_, ()>> {
        let pool = self.core.futures().clone();
        match after {
            After::Keep | After::Close => {
                let is_secured = self.sender.is_secured();
                is_secured.then(|| pool.boxed(|| self.finish()))
            }
            After::Linger => Some(pool.boxed(|| self.linger())),
            After::Tunnel(switched) => Some(pool.boxed(|| self.tunnel(switched))),
            After::Reset => {
                self.core.reset_on_close(&self.peer.socket);
                None
            }
        }
    }

    /// An exchange in a block of the core's pool.
    fn exchange_boxed(&mut self, first: RecvBuf) -> Pooled<'_, After<S::Epoch>> {
        let pool = self.core.futures().clone();
        pool.boxed(|| self.exchange(first))
    }

    /// Begins to wait for the first bytes of a request.
    fn begin_idle(&mut self, registration: &Registration) {
        let patience = {
            let epoch = self.service.epoch(&self.peer);
            match self.requests {
                // A connection that never sent anything gets only the time of a head.
                0 => epoch.settings().header_timeout,
                _ => epoch.settings().idle_timeout,
            }
        };
        let now = self.core.now();
        registration.idle(now, self.requests > 0);
        self.timer.set(now + patience);
    }

    /// The first bytes of a request. `None` when the connection is to be closed: the client has ended
    /// it, it idled too long, room is needed, or the core drains.
    fn poll_idle(&mut self, registration: &Registration) -> Poll<Option<RecvBuf>> {
        match self.receiver.poll_next() {
            Poll::Ready(next) => return Poll::Ready(next.ok()),
            Poll::Pending if registration.must_close() => return Poll::Ready(None),
            Poll::Pending => {}
        }
        self.timer.poll_expired().map(|()| {
            self.limit(match self.requests {
                0 => "time to a first byte",
                _ => "keep-alive idle",
            });
            None
        })
    }

    /// Counts and logs that a limit was reached.
    fn limit(&self, name: &'static str) {
        self.service.registry().limits().reached(name);
    }

    /// Tells a client under TLS that nothing follows, before the connection closes.
    async fn finish(&mut self) {
        if let Some(secured) = self.peer.secured()
            && secured.is_open()
            && let Some(failure) = secured.failure()
        {
            self.service.registry().limits().count(failure.name());
            tracing::debug!("{}", failure.name());
        }
        // A client that doesn't take that has lost nothing by it.
        let _ = self.sender.finish(&mut self.timer).await;
    }

    /// Ends our direction and reads on until the client has ended its own.
    async fn linger(&mut self) {
        if self.sender.is_secured() && self.sender.finish(&mut self.timer).await.is_err() {
            return;
        }
        if !self.sender.waits_for_close() {
            self.core.shut_down_write(&self.peer.socket);
        }
        self.timer.set(self.core.now() + LINGER_TIME);
        let mut left = LINGER_BYTES;
        while left > 0 {
            let receiver = &mut self.receiver;
            match self.timer.bound(|| receiver.poll_next()).await {
                Some(Ok(bytes)) => left = left.saturating_sub(bytes.len()),
                Some(Err(_)) | None => return,
            }
        }
    }
}

/// Bytes of the future that a busy connection has on top of its idle one.
#[cfg(test)]
pub(crate) fn exchange_bytes<S: Service>() -> usize {
    fn of<S: Service, F: Future>(
        _: impl FnOnce(&'static mut Connection<S>, RecvBuf) -> F,
    ) -> usize {
        size_of::<F>()
    }
    of(|connection: &'static mut Connection<S>, first| connection.exchange(first))
}
