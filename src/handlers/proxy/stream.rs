//! The response on its way to the client: small ones at once, others as they come, each to its own end
//! or shown as cut short.

use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::ahead::Ahead;
use super::exchange::{Incoming, Reply};
use super::outgoing::Outgoing;
use super::replay::Replay;
use super::tunnel::ProxyTunnel;
use super::{earlier, micros};
use crate::handlers::backends::Backend;
use crate::http::h1::body::BodyDecoder;
use crate::http::h1::encode::ResponseFraming;
use crate::http::session::{
    Body, BodyStream, Cut, Piece, RelayOutcome, RelayPart, Response, Trailers, Upload,
};
use crate::http::types::{FieldName, FieldValue, ResponseHead, Status};
use crate::net::recv::End;
use crate::net::splice::Cause;
use crate::runtime::buf::RecvBuf;
use crate::runtime::executor::Core;
use crate::runtime::future::Timer;
use crate::upstream::group::Claim;
use crate::upstream::health::{FailureKind, Outcome};
use crate::upstream::pool::Connection;

/// What a response is delivered with.
pub(super) struct Context<'a> {
    pub(super) core: &'a Core,
    pub(super) backend: &'a Rc<Backend>,
    /// When the request began.
    pub(super) started: Instant,
    /// When all of it has to be done.
    pub(super) total: Option<Instant>,
}

impl Context<'_> {
    /// What a whole response with this status says of its server.
    fn outcome(&self, status: u16) -> Outcome {
        match self.backend.failing.contains(Status(status)) {
            true => Outcome::Failure(FailureKind::Status(status)),
            false => Outcome::Success,
        }
    }
}

impl Reply {
    /// The response for the client. `replay`: what was kept of the request's body.
    pub(super) fn into_response(
        self,
        context: &Context<'_>,
        claim: Claim,
        replay: Replay,
        upload: &mut Upload<'_>,
    ) -> Response {
        if self.is_switch {
            let idle = context.backend.proxy.timeouts.tunnel;
            let tunnel = ProxyTunnel::new(claim, self.connection, self.incoming, idle);
            return Response {
                head: self.head,
                body: Body::Tunnel(Box::new(tunnel)),
            };
        }
        let status = self.head.status;
        let is_whole = self.outgoing.is_none();
        let here = self.incoming.bytes().len() as u64;
        let ends_here = match self.framing {
            ResponseFraming::None => Some(0),
            ResponseFraming::Length(length) if length <= here => Some(length),
            _ => None,
        };
        // The rest of the request goes on while the response does: then it has to be a stream.
        let Some(length) = ends_here.filter(|length| is_whole || *length == 0) else {
            let (head, stream) = Stream::new(self, context, claim, replay);
            return Response {
                head,
                body: Body::Stream(Box::new(stream)),
            };
        };
        let done = Done {
            claim,
            outcome: context.outcome(status.0),
            keeps: self.keep_alive && is_whole && here == length,
            connection: self.connection,
        };
        let body = match self.framing {
            ResponseFraming::None if status.forbids_body() => Body::Empty,
            ResponseFraming::None => Body::Absent(self.length),
            _ if length == 0 => Body::Empty,
            _ => whole(self.incoming, length as usize),
        };
        done.finish(context.core, context.started, upload);
        Response {
            head: self.head,
            body,
        }
    }
}

/// A body that is here as a whole.
fn whole(incoming: Incoming, length: usize) -> Body {
    match incoming.into_parts() {
        (Some(buffer), _) if buffer.len() == length => Body::Received(buffer),
        (Some(buffer), _) => Body::Bytes(buffer[..length].to_vec()),
        (None, mut gathered) => {
            gathered.truncate(length);
            Body::Bytes(gathered)
        }
    }
}

/// A response whose last byte has come.
struct Done {
    claim: Claim,
    /// What the response says of its server.
    outcome: Outcome,
    connection: Connection,
    /// Nothing stands in the way of using the connection again.
    keeps: bool,
}

impl Done {
    fn finish(self, core: &Core, started: Instant, upload: &mut Upload<'_>) {
        self.claim.record(self.outcome, Duration::ZERO);
        match self.keeps && self.claim.is_wanted() {
            true => self.connection.give_back(),
            false => self.connection.close(),
        }
        note_total(core, started, upload);
    }
}

/// Tells the access log that the response has ended.
fn note_total(core: &Core, started: Instant, upload: &mut Upload<'_>) {
    if let Some(log) = upload.noted() {
        let total = core.now().saturating_duration_since(started);
        log.total_us = Some(micros(total));
    }
}

/// A response on its way.
struct Stream {
    core: Core,
    /// Taken at the end.
    source: Option<(Claim, Connection)>,
    /// What it says of its server when it has come whole.
    outcome: Outcome,
    decoder: BodyDecoder,
    length: Option<u64>,
    keep_alive: bool,
    /// Bytes that were received, first come first.
    received: VecDeque<RecvBuf>,
    /// Bytes that came with the head.
    gathered: Vec<u8>,
    /// Content that was taken before the client wants it, where the route has that.
    ahead: Option<Box<Ahead>>,
    /// How the content ended that is there.
    over: Option<Result<(), Cut>>,
    relaying: Relaying,
    /// The backend has said all, or broken off.
    end: Option<End>,
    outgoing: Option<Outgoing>,
    replay: Replay,
    timer: Timer,
    read_timeout: Option<Duration>,
    /// Since when the next bytes are waited for.
    waiting_since: Option<Instant>,
    total: Option<Instant>,
    started: Instant,
}

/// Whether large content goes from socket to socket.
enum Relaying {
    Not,
    /// What a receive had brought was taken out of its way.
    Stopped,
    /// It was given to the session.
    Given(Rc<RelayOutcome>),
}

impl Stream {
    fn new(
        reply: Reply,
        context: &Context<'_>,
        claim: Claim,
        mut replay: Replay,
    ) -> (ResponseHead, Self) {
        if reply.outgoing.is_none() {
            // There will be no other try: what is kept for one goes.
            replay.lose();
        }
        let (buffer, gathered) = reply.incoming.into_parts();
        let proxy = &context.backend.proxy;
        let stream = Self {
            core: context.core.clone(),
            source: Some((claim, reply.connection)),
            outcome: context.outcome(reply.head.status.0),
            decoder: BodyDecoder::for_response(reply.framing),
            length: reply.length,
            keep_alive: reply.keep_alive,
            received: buffer
                .into_iter()
                .filter(|buffer| !buffer.is_empty())
                .collect(),
            gathered,
            ahead: Ahead::new(&proxy.buffer),
            over: None,
            relaying: Relaying::Not,
            end: None,
            outgoing: reply.outgoing,
            replay,
            timer: Timer::new(context.core),
            read_timeout: proxy.timeouts.read,
            waiting_since: None,
            total: context.total,
            started: context.started,
        };
        (reply.head, stream)
    }

    /// Content among the bytes that are here.
    fn next_here(&mut self) -> Result<Option<Piece>, Cut> {
        loop {
            if !self.gathered.is_empty() {
                let bytes = std::mem::take(&mut self.gathered);
                let mut content = Vec::new();
                let rest = decode(&mut self.decoder, &bytes, &mut content)?;
                self.gathered = bytes[rest..].to_vec();
                match (content.is_empty(), self.decoder.is_ended()) {
                    (false, _) => return Ok(Some(Piece::Bytes(content))),
                    (true, true) => return Ok(None),
                    (true, false) => continue,
                }
            }
            let Some(mut buffer) = self.received.pop_front() else {
                return Ok(None);
            };
            if self.decoder.is_ended() {
                // Nobody asked for it: the connection isn't used again.
                self.received.push_front(buffer);
                return Ok(None);
            }
            if self.decoder.content_ahead() >= buffer.len() as u64 {
                self.decoder.skip_content(buffer.len() as u64);
                return Ok(Some(Piece::Received(buffer)));
            }
            let mut content = self.core.send_buffer();
            let used = decode(&mut self.decoder, &buffer, &mut content)?;
            buffer.advance(used);
            if !buffer.is_empty() {
                self.received.push_front(buffer);
            }
            if !content.is_empty() {
                return Ok(Some(Piece::Bytes(content)));
            }
        }
    }

    /// The rest of what is announced as it stands in the backend's socket, where that pays: ready with
    /// it, or with `None` when there is something to receive, or to be given before.
    fn poll_relay(&mut self) -> Poll<Option<Piece>> {
        let ahead = self.decoder.content_ahead();
        // What is read ahead, or has a deadline as a whole, goes through here.
        let pays = ahead > self.core.tuning().splice_from && ahead < u64::MAX
            || matches!(self.relaying, Relaying::Stopped) && ahead > 0;
        if !pays || self.ahead.is_some() || self.total.is_some() {
            return Poll::Ready(None);
        }
        let Some((_, connection)) = &mut self.source else {
            return Poll::Ready(None);
        };
        if connection.secured().is_some() {
            return Poll::Ready(None);
        }
        connection.note_bulk();
        let received = &mut self.received;
        let stopped = connection
            .receiver()
            .poll_stop(|buffer| received.push_back(buffer));
        if stopped.is_pending() {
            return Poll::Pending;
        }
        self.relaying = Relaying::Stopped;
        if !self.received.is_empty() {
            return Poll::Ready(None);
        }
        let outcome = Rc::<RelayOutcome>::default();
        self.relaying = Relaying::Given(Rc::clone(&outcome));
        self.decoder.skip_content(ahead);
        Poll::Ready(Some(Piece::Relay(RelayPart {
            from: connection.socket().clone(),
            length: ahead,
            silence: self.read_timeout,
            outcome,
        })))
    }

    /// Receives what there is. Says whether there was anything.
    fn receive(&mut self) -> bool {
        let Some((_, connection)) = &mut self.source else {
            return false;
        };
        if self.end.is_some() {
            return false;
        }
        if let Relaying::Stopped = self.relaying {
            self.relaying = Relaying::Not;
        }
        match connection.receiver().poll_next() {
            Poll::Ready(Ok(buffer)) => {
                self.received.push_back(buffer);
                self.waiting_since = None;
                true
            }
            Poll::Ready(Err(end)) => {
                self.end = Some(match end {
                    // Who ends what is under TLS says so, or somebody else has ended it.
                    End::Closed if connection.receiver().is_cut() => End::Broken(Errno::PROTO),
                    end => end,
                });
                true
            }
            Poll::Pending => false,
        }
    }

    /// The end of the content: whether it is one.
    fn finish(&mut self, upload: &mut Upload<'_>) {
        let Some((claim, connection)) = self.source.take() else {
            return;
        };
        let nothing_left = self.received.is_empty() && self.gathered.is_empty();
        let done = Done {
            claim,
            outcome: self.outcome,
            keeps: self.keep_alive && self.outgoing.is_none() && nothing_left,
            connection,
        };
        done.finish(&self.core, self.started, upload);
    }

    /// The client has broken the connection: nobody wants the rest, and the server isn't to blame.
    fn left(&mut self) -> Cut {
        self.source = None;
        Cut {
            reason: "client gone within its response",
        }
    }

    /// The content ends before its end.
    fn cut(&mut self, kind: FailureKind, reason: &'static str, upload: &mut Upload<'_>) -> Cut {
        self.blame(kind, &reason);
        note_total(&self.core, self.started, upload);
        Cut { reason }
    }

    /// The server is to blame for what is missing.
    fn blame(&mut self, kind: FailureKind, reason: &dyn fmt::Display) {
        if let Some((claim, _)) = self.source.take() {
            let elapsed = self.core.now().saturating_duration_since(self.started);
            claim.record(Outcome::Failure(kind), elapsed);
            let upstream = &*claim.group().roster().settings().name;
            let server = &**claim.label();
            tracing::warn!(upstream, server, %reason, "a response was cut short");
        }
    }

    /// Goes on with the rest of the request.
    fn poll_request(&mut self, upload: &mut Upload<'_>) {
        let Some(outgoing) = &mut self.outgoing else {
            return;
        };
        match outgoing.poll(&mut self.replay, upload) {
            Poll::Pending => return,
            Poll::Ready(Ok(())) => {}
            // What is left of the request is nobody's; the response may be whole for all that.
            Poll::Ready(Err(_)) => self.keep_alive = false,
        }
        self.outgoing = None;
        self.replay.lose();
    }

    /// The next piece of a response that goes on at the pace of the client.
    fn poll_direct(&mut self, upload: &mut Upload<'_>) -> Poll<Option<Result<Piece, Cut>>> {
        loop {
            match self.next_here() {
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(piece))),
                Ok(None) => {}
                Err(cut) => return Poll::Ready(Some(Err(self.malformed(cut, upload)))),
            }
            if let Some(over) = self.ending(upload) {
                return Poll::Ready(over.err().map(Err));
            }
            match self.poll_relay() {
                Poll::Ready(Some(piece)) => return Poll::Ready(Some(Ok(piece))),
                Poll::Ready(None) if !self.received.is_empty() => continue,
                Poll::Ready(None) => {}
                Poll::Pending => return Poll::Pending,
            }
            if !self.receive() {
                return self.wait(upload);
            }
        }
    }

    /// The next piece of a response that is read before the client wants it.
    fn poll_ahead(
        &mut self,
        ahead: &mut Ahead,
        upload: &mut Upload<'_>,
    ) -> Poll<Option<Result<Piece, Cut>>> {
        ahead.given_is_gone();
        self.read_ahead(ahead, upload);
        match ahead.poll_next() {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(Some(piece))) => return Poll::Ready(Some(Ok(piece))),
            Poll::Ready(Ok(None)) => {}
            Poll::Ready(Err(cut)) => {
                // Nobody but us is to blame.
                self.source = None;
                return Poll::Ready(Some(Err(cut)));
            }
        }
        match self.over.take().or_else(|| self.ending(upload)) {
            Some(over) => Poll::Ready(over.err().map(Err)),
            None => self.wait(upload),
        }
    }

    /// Takes what the backend has sent, as far as there is room for it. One that has said all is free.
    fn read_ahead(&mut self, ahead: &mut Ahead, upload: &mut Upload<'_>) {
        let spilled = ahead.spilled();
        loop {
            ahead.poll_disk(&self.core);
            if self.over.is_some() || !ahead.has_room() {
                break;
            }
            match self.next_here() {
                Ok(Some(piece)) => {
                    ahead.push(piece, &self.core);
                    continue;
                }
                Ok(None) => {}
                Err(cut) => {
                    self.over = Some(Err(self.malformed(cut, upload)));
                    break;
                }
            }
            // A connection on which the request is still on its way isn't free.
            if self.outgoing.is_none() || !self.decoder.is_ended() {
                self.over = self.ending(upload);
            }
            if self.over.is_some() || self.decoder.is_ended() || !self.receive() {
                break;
            }
        }
        let more = ahead.spilled() - spilled;
        if more > 0
            && let Some(log) = upload.noted()
        {
            log.spilled += more;
        }
    }

    /// How the content ended, when all of it is here.
    fn ending(&mut self, upload: &mut Upload<'_>) -> Option<Result<(), Cut>> {
        if self.decoder.is_ended() {
            self.finish(upload);
            return Some(Ok(()));
        }
        let end = self.end?;
        if end == End::Closed && self.decoder.end_of_input() {
            self.keep_alive = false;
            self.finish(upload);
            return Some(Ok(()));
        }
        let reason = "the backend closed within its response";
        Some(Err(self.cut(FailureKind::Reset, reason, upload)))
    }

    /// Waits for the backend, as long as it and the client are there.
    fn wait(&mut self, upload: &mut Upload<'_>) -> Poll<Option<Result<Piece, Cut>>> {
        // A stream of events may be silent for long, and nothing else would tell.
        if self.outgoing.is_none()
            && let Poll::Ready(End::Broken(_)) = upload.poll_gone()
        {
            return Poll::Ready(Some(Err(self.left())));
        }
        match self.is_in_time() {
            Ok(()) => Poll::Pending,
            Err((kind, reason)) => {
                let cut = self.cut(kind, reason, upload);
                Poll::Ready(Some(Err(cut)))
            }
        }
    }

    fn malformed(&mut self, cut: Cut, upload: &mut Upload<'_>) -> Cut {
        self.cut(FailureKind::Malformed, cut.reason, upload)
    }

    /// Whether the backend has time left; the task is woken when it has not.
    fn is_in_time(&mut self) -> Result<(), (FailureKind, &'static str)> {
        let now = self.core.now();
        let since = *self.waiting_since.get_or_insert(now);
        let read = self.read_timeout.map(|read| since + read);
        let Some(deadline) = earlier(read, self.total) else {
            return Ok(());
        };
        self.timer.set(deadline);
        if self.timer.poll_expired().is_pending() {
            return Ok(());
        }
        let is_total = self.total.is_some_and(|total| total <= now);
        Err((
            FailureKind::Timeout,
            if is_total {
                "not done within timeouts.total"
            } else {
                "the backend sent nothing within timeouts.read"
            },
        ))
    }
}

/// Appends the content of `bytes` to `content`, and gives how many bytes were used.
fn decode(decoder: &mut BodyDecoder, bytes: &[u8], content: &mut Vec<u8>) -> Result<usize, Cut> {
    let mut used = 0;
    while used < bytes.len() && !decoder.is_ended() {
        let decoded = decoder.decode(&bytes[used..]).map_err(|reject| Cut {
            reason: reject.reason,
        })?;
        let data = &bytes[used..][decoded.data];
        content.extend_from_slice(data);
        used += decoded.consumed;
    }
    Ok(used)
}

impl Drop for Stream {
    /// A relay that fails ends the response without another word to here.
    fn drop(&mut self) {
        let Relaying::Given(outcome) = &self.relaying else {
            return;
        };
        if let Some(cause) = outcome.error().filter(|cause| cause.is_of_source()) {
            let kind = match cause {
                Cause::SourceSilent => FailureKind::Timeout,
                _ => FailureKind::Reset,
            };
            self.blame(kind, &cause);
        }
    }
}

impl BodyStream for Stream {
    fn poll_next(&mut self, upload: &mut Upload<'_>) -> Poll<Option<Result<Piece, Cut>>> {
        self.poll_request(upload);
        match self.ahead.take() {
            None => self.poll_direct(upload),
            Some(mut ahead) => {
                let next = self.poll_ahead(&mut ahead, upload);
                self.ahead = Some(ahead);
                next
            }
        }
    }

    fn poll_upload(&mut self, upload: &mut Upload<'_>) {
        self.poll_request(upload);
        // The backend is done sooner than a slow client, if its response has room here.
        if let Some(mut ahead) = self.ahead.take() {
            self.read_ahead(&mut ahead, upload);
            self.ahead = Some(ahead);
        }
    }

    fn length(&self) -> Option<u64> {
        self.length
    }

    fn trailers(&mut self) -> Trailers {
        let trailers = self.decoder.trailers();
        let owned = trailers.iter().filter(|(name, _)| !name.contains('_'));
        owned
            .map(|(name, value)| {
                let name = FieldName::Shared(name.into());
                (name, FieldValue::Owned(value.into()))
            })
            .collect()
    }
}
