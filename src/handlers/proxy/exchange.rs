//! One try: a connection, the request on its way, and the head of the response, whichever comes first.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::fault::Fault;
use super::outgoing::{Outgoing, SendFault};
use super::replay::Replay;
use super::{Asked, earlier, micros};
use crate::config::model::{HostRule, PathRule, ProxyProtocol};
use crate::handlers::backends::Backend;
use crate::http::h1::HeadLimits;
use crate::http::h1::encode::ResponseFraming;
use crate::http::h1::response::{HeadKind, ResponseReader};
use crate::http::semantics::forwarding::{
    HostField, RequestContext, Target, client_framing, passes_interim, response_head,
    write_request_head,
};
use crate::http::session::{Upload, UploadError, Upstreamed};
use crate::http::types::{Framing, Method, ResponseHead};
use crate::http::uri::{canonical_path, split_query};
use crate::net::connect::{ConnectError, connect_from};
use crate::net::proxy_protocol::{self, Origin, ProxyVersion};
use crate::net::recv::End;
use crate::net::secured;
use crate::net::tls::{Failure, ServerFailure};
use crate::runtime::buf::RecvBuf;
use crate::runtime::executor::Core;
use crate::runtime::future::Timer;
use crate::upstream::group::Claim;
use crate::upstream::pool::Connection;

/// How long a body that the client holds back is held back for a backend that doesn't ask for it.
/// RFC 9110 §10.1.1 has both sides not wait for ever; clients wait as long.
const EXPECT_PATIENCE: Duration = Duration::from_secs(1);

/// A try about to be made.
pub(super) struct Exchange<'a, 'b> {
    pub(super) core: &'a Core,
    pub(super) backend: &'a Backend,
    pub(super) asked: &'a Asked<'a, 'b>,
    pub(super) timer: &'a mut Timer,
    pub(super) log: &'a mut Option<Upstreamed>,
    /// When all of the request has to be done.
    pub(super) total: Option<Instant>,
    /// When the try began.
    pub(super) began: Instant,
}

/// A response of a backend whose head is whole.
pub(super) struct Reply {
    pub(super) head: ResponseHead,
    /// How its body ends on the backend's connection.
    pub(super) framing: ResponseFraming,
    /// The length that it tells, also where no body comes.
    pub(super) length: Option<u64>,
    pub(super) keep_alive: bool,
    /// From here on the bytes are those of another protocol.
    pub(super) is_switch: bool,
    pub(super) connection: Connection,
    /// What came behind the head.
    pub(super) incoming: Incoming,
    /// What of the request is still on its way.
    pub(super) outgoing: Option<Outgoing>,
}

impl Reply {
    pub(super) fn status(&self) -> u16 {
        self.head.status.0
    }
}

/// Bytes of a backend that were received and not used.
#[derive(Default)]
pub(super) struct Incoming {
    buffer: Option<RecvBuf>,
    gathered: Vec<u8>,
}

impl Incoming {
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.buffer {
            Some(buffer) => buffer,
            None => &self.gathered,
        }
    }

    pub(super) fn append(&mut self, next: RecvBuf) {
        if self.bytes().is_empty() {
            self.gathered = Vec::new();
            self.buffer = Some(next);
            return;
        }
        if let Some(buffer) = self.buffer.take() {
            self.gathered = buffer.to_vec();
        }
        self.gathered.extend_from_slice(&next);
    }

    fn consume(&mut self, used: usize) {
        match &mut self.buffer {
            Some(buffer) => buffer.advance(used),
            None => drop(self.gathered.drain(..used)),
        }
    }

    /// What is left, as a buffer if it still is one.
    pub(super) fn into_parts(self) -> (Option<RecvBuf>, Vec<u8>) {
        (self.buffer, self.gathered)
    }
}

/// What a try waits for.
enum Event {
    /// All of the request has gone, or no more of it will.
    Sent,
    /// The backend took nothing of it for too long.
    Stuck,
    Received(RecvBuf),
    Ended,
    Upload(UploadError),
    /// What was kept of the request's body on a disk can't be read.
    Disk,
    ClientGone,
    Late,
}

impl Exchange<'_, '_> {
    /// Makes the try. `is_fresh`: not on a connection that was kept.
    ///
    /// # Errors
    /// See [`Fault`].
    pub(super) async fn run(
        mut self,
        claim: &Claim,
        upload: &mut Upload<'_>,
        replay: &mut Replay,
        is_fresh: bool,
    ) -> Result<Reply, Fault> {
        if let Some(log) = self.log {
            log.address = claim.address().to_string();
            (log.connect_us, log.head_us) = (None, None);
        }
        let framing = replay.framing(upload);
        let mut head = self.core.send_buffer();
        let asked = self.write_head(&mut head, claim, framing, upload)?;
        let mut connection = self.connect(claim, is_fresh).await?;
        if let Some(log) = self.log {
            let now = self.core.now();
            let reused = connection.is_reused();
            let time = now.saturating_duration_since(self.began);
            log.connect_us = Some(if reused { 0 } else { micros(time) });
        }
        if connection.uses() == 1
            && connection.secured().is_none()
            && self.backend.proxy.send_proxy_protocol.is_some()
        {
            let mut with_header = self.header();
            with_header.extend_from_slice(&head);
            self.core.recycle(std::mem::replace(&mut head, with_header));
        }
        let patience = self.backend.proxy.timeouts.head;
        let message = (head, framing);
        let mut outgoing = Outgoing::new(self.core, &connection, message, patience);
        outgoing.client_fields = self.asked.client_fields.cloned();
        outgoing.is_held = framing != Framing::None && upload.expects_continue();
        let mut state = State {
            outgoing,
            sent_at: None,
            broken: false,
            has_begun: false,
            held_until: self.core.now() + EXPECT_PATIENCE,
        };
        let mut reader = ResponseReader::new(asked);
        let mut incoming = Incoming::default();
        loop {
            while let Some(seen) = self.see(&mut reader, incoming.bytes(), upload)? {
                incoming.consume(seen.used);
                if seen.kind == HeadKind::Interim {
                    state.has_begun = true;
                    if let Some(head) = seen.head {
                        upload.interim(&head);
                    }
                    if seen.status == 100 {
                        state.outgoing.is_held = false;
                    }
                    continue;
                }
                self.told_head(claim);
                let on_its_way = state.sent_at.is_none();
                return Ok(Reply {
                    head: seen.head.unwrap_or_else(|| ResponseHead::new(seen.status)),
                    framing: seen.framing,
                    length: seen.length,
                    keep_alive: seen.keep_alive && !state.broken,
                    is_switch: seen.kind == HeadKind::Switch,
                    connection,
                    incoming,
                    outgoing: on_its_way.then_some(state.outgoing),
                });
            }
            match self.wait(&mut state, &mut connection, upload, replay).await {
                Event::Sent => state.sent_at = Some(self.core.now()),
                Event::Received(bytes) => incoming.append(bytes),
                Event::Upload(error) => return Err(Fault::Upload(error)),
                Event::Disk => return Err(Fault::Unsendable(500, "the body can't be read back")),
                Event::Stuck => return Err(Fault::Stuck),
                Event::ClientGone => return Err(Fault::ClientGone),
                Event::Ended if state.has_begun || !incoming.bytes().is_empty() => {
                    return Err(Fault::HeadCut);
                }
                Event::Ended if let Some(refusal) = refusal(&connection) => return Err(refusal),
                Event::Ended => {
                    let sent = state.outgoing.sent() > 0;
                    return Err(match connection.is_reused() {
                        true => Fault::Stale { sent },
                        false => Fault::NoResponse { sent },
                    });
                }
                Event::Late => match self.late(&mut state) {
                    Some(fault) => return Err(fault),
                    None => continue,
                },
            }
        }
    }

    /// A connection to the claimed server.
    async fn connect(&mut self, claim: &Claim, is_fresh: bool) -> Result<Connection, Fault> {
        let pool = claim.group().pool();
        // A PROXY header is of one client connection alone.
        let may_reuse = !is_fresh && self.backend.proxy.send_proxy_protocol.is_none();
        let secured = claim.group().secured(claim.server());
        let name = secured.map(|(_, name)| name.as_str());
        if may_reuse && let Some(connection) = pool.take_idle(claim.address(), name) {
            return Ok(connection);
        }
        let (core, total) = (self.core, self.total);
        let mut timeout = self.backend.proxy.timeouts.connect;
        if let Some(total) = total {
            timeout = timeout.min(total.saturating_duration_since(core.now()));
        }
        let to = claim.address();
        let from = claim.group().roster().settings().source.towards(to);
        let is_late = || total.is_some_and(|total| total <= core.now());
        let open = async || {
            let socket = connect_from(core, to, from, timeout).await;
            socket.map_err(|error| match error {
                ConnectError::TimedOut if is_late() => Fault::TotalTimeout,
                error => Fault::Connect(error),
            })
        };
        let Some(secured) = secured else {
            return pool.take_new(to, open).await;
        };
        let deadline = core.now() + timeout;
        let header = self.header();
        let open = async || {
            let socket = open().await?;
            let receiver = secured::connect(core, socket, secured, header, deadline).await;
            receiver.map_err(|error| match error.kind {
                ServerFailure::TooSlow if is_late() => Fault::TotalTimeout,
                _ => Fault::Secured(Box::new(error)),
            })
        };
        pool.take_made(to, open).await
    }

    /// The PROXY header, of a route that sends one.
    fn header(&self) -> Vec<u8> {
        let Some(version) = self.backend.proxy.send_proxy_protocol else {
            return Vec::new();
        };
        let mut header = self.core.send_buffer();
        proxy_protocol::write(&mut header, proxy_version(version), self.origin());
        header
    }

    /// Writes the head of the request.
    fn write_head(
        &self,
        out: &mut Vec<u8>,
        claim: &Claim,
        framing: Framing,
        upload: &Upload<'_>,
    ) -> Result<crate::http::h1::response::Asked, Fault> {
        let proxy = &self.backend.proxy;
        let settings = &proxy.upstream;
        let authority;
        let host = match &proxy.host {
            HostRule::Set(value) => HostField::Set(text(value.as_bytes())?),
            HostRule::Keep if !self.asked.request.host.is_empty() => HostField::Keep(""),
            HostRule::Keep | HostRule::Upstream => {
                let server = &settings.servers[claim.server()];
                authority = server.authority(claim.address());
                match proxy.host {
                    HostRule::Upstream => HostField::Set(&authority),
                    _ => HostField::Keep(&authority),
                }
            }
        };
        let path;
        let target = match (&proxy.path, self.asked.target) {
            (PathRule::Strip(prefix), _) => Target::Stripped(prefix),
            (_, Some(rewritten)) => {
                let (raw, query) = split_query(rewritten);
                path = canonical_path(raw)
                    .map_err(|_| Fault::Unsendable(500, "rewritten path has no canonical form"))?;
                Target::Rewritten { path: &path, query }
            }
            (PathRule::Keep | PathRule::Rewrite { .. }, None) => Target::Received,
        };
        let client = &self.asked.client;
        let context = RequestContext {
            target,
            host,
            framing,
            expect: upload.expects_continue(),
            upgrade: proxy.upgrade,
            keep_alive: settings.keepalive.idle > 0 && proxy.send_proxy_protocol.is_none(),
            peer: client.peer,
            peer_trusted: client.peer_trusted,
            scheme: self.asked.scheme,
            client: &self.asked.told,
            operations: &self.backend.operations,
        };
        write_request_head(out, self.asked.request, &context)
            .map_err(|reject| Fault::Unsendable(reject.status.0, reject.reason))
    }

    fn origin(&self) -> Origin {
        let addresses = self.asked.addresses;
        match addresses {
            Some((source, destination)) => Origin::Tcp {
                source,
                destination,
            },
            None => Origin::Unspecified,
        }
    }

    /// A head among these bytes, if one is whole.
    fn see(
        &self,
        reader: &mut ResponseReader,
        bytes: &[u8],
        upload: &Upload<'_>,
    ) -> Result<Option<Seen>, Fault> {
        let received = reader.head(bytes, &HeadLimits::default());
        let Some(received) = received.map_err(Fault::Malformed)? else {
            return Ok(None);
        };
        let (response, request) = (&received.response, self.asked.request);
        let passes = received.kind != HeadKind::Interim
            || passes_interim(response.status, request.version, upload.expects_continue());
        let is_head = request.method == Method::Head;
        let framing = client_framing(response, request.version, is_head);
        let head = match passes {
            true => Some(response_head(response, framing, &[]).map_err(Fault::Malformed)?),
            false => None,
        };
        Ok(Some(Seen {
            used: received.length,
            kind: received.kind,
            status: response.status.0,
            head,
            framing: response.framing,
            length: response.length,
            keep_alive: response.keep_alive,
        }))
    }

    fn told_head(&mut self, claim: &Claim) {
        let latency = self.core.now().saturating_duration_since(self.began);
        claim.answered(latency);
        if let Some(log) = self.log {
            log.head_us = Some(micros(latency));
        }
    }

    /// What happens next.
    async fn wait(
        &mut self,
        state: &mut State,
        connection: &mut Connection,
        upload: &mut Upload<'_>,
        replay: &mut Replay,
    ) -> Event {
        let deadline = self.deadline(state);
        if let Some(deadline) = deadline {
            self.timer.set(deadline);
        }
        poll_fn(|_| {
            if state.sent_at.is_none() {
                match state.outgoing.poll(replay, upload) {
                    Poll::Ready(Ok(())) => return Poll::Ready(Event::Sent),
                    Poll::Ready(Err(SendFault::Upload(error))) => {
                        return Poll::Ready(Event::Upload(error));
                    }
                    Poll::Ready(Err(SendFault::Disk)) => return Poll::Ready(Event::Disk),
                    // It may have answered before it closed.
                    Poll::Ready(Err(SendFault::Server)) => {
                        state.broken = true;
                        return Poll::Ready(Event::Sent);
                    }
                    Poll::Ready(Err(SendFault::Stuck)) => return Poll::Ready(Event::Stuck),
                    Poll::Pending => {}
                }
            }
            match connection.receiver().poll_next() {
                Poll::Ready(Ok(bytes)) => return Poll::Ready(Event::Received(bytes)),
                Poll::Ready(Err(_)) => return Poll::Ready(Event::Ended),
                Poll::Pending => {}
            }
            if let Poll::Ready(Err(_)) = upload.poll_flush() {
                return Poll::Ready(Event::ClientGone);
            }
            if let Poll::Ready(End::Broken(_)) = upload.poll_gone() {
                return Poll::Ready(Event::ClientGone);
            }
            if deadline.is_some() && self.timer.poll_expired().is_ready() {
                return Poll::Ready(Event::Late);
            }
            Poll::Pending
        })
        .await
    }

    /// Until when what is waited for has to happen.
    fn deadline(&self, state: &State) -> Option<Instant> {
        let patience = self.backend.proxy.timeouts.head;
        let outgoing = &state.outgoing;
        let own = match (state.sent_at, outgoing.stalled_since()) {
            (Some(at), _) => patience.map(|patience| at + patience),
            (None, Some(since)) => patience.map(|patience| since + patience),
            (None, None) if outgoing.is_held => Some(state.held_until),
            // It is the client that is waited for.
            (None, None) => None,
        };
        earlier(own, self.total)
    }

    /// What it means that the deadline has passed; `None`: to go on.
    fn late(&self, state: &mut State) -> Option<Fault> {
        let now = self.core.now();
        if self.total.is_some_and(|total| total <= now) {
            return Some(Fault::TotalTimeout);
        }
        match self.deadline(state) {
            // It has moved since.
            Some(deadline) if deadline > now => None,
            None => None,
            Some(_) if state.sent_at.is_some() => Some(Fault::HeadTimeout),
            Some(_) if state.outgoing.is_held => {
                state.outgoing.is_held = false;
                None
            }
            Some(_) => Some(Fault::Stuck),
        }
    }
}

/// A head, without the bytes that it stood in.
struct Seen {
    used: usize,
    kind: HeadKind,
    status: u16,
    /// The head for the client, where it is for him.
    head: Option<ResponseHead>,
    framing: ResponseFraming,
    length: Option<u64>,
    keep_alive: bool,
}

/// How far a try has come.
struct State {
    outgoing: Outgoing,
    /// When all of the request had gone, or it was clear that no more of it will.
    sent_at: Option<Instant>,
    /// The backend has not taken all of it.
    broken: bool,
    /// Some of a response has come: an interim one.
    has_begun: bool,
    /// How long the body is held back for the backend to ask for it.
    held_until: Instant,
}

/// The word of a server that hasn't looked at the request, since it refuses the handshake.
fn refusal(connection: &Connection) -> Option<Fault> {
    let secured = connection.secured().filter(|_| !connection.is_reused())?;
    match secured.failure()? {
        Failure::Server(failure) if failure.is_of_handshake() => {
            secured::why(secured).map(|error| Fault::Secured(Box::new(error)))
        }
        _ => None,
    }
}

fn text(bytes: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(bytes)
        .map_err(|_| Fault::Unsendable(500, "Host for the backend is not text"))
}

/// The version of the header that a route sends.
pub(in crate::handlers) fn proxy_version(version: ProxyProtocol) -> ProxyVersion {
    match version {
        ProxyProtocol::V1 => ProxyVersion::V1,
        ProxyProtocol::V2 => ProxyVersion::V2,
    }
}
