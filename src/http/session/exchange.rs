//! The busy part of a connection: from the first byte of a request until nothing is left to answer.

use std::rc::Rc;

use super::delivery::{BATCH_BYTES, append_small};
use super::input::Input;
use super::record::PendingLog;
use super::tunnel::Switched;
use super::upload::{Out, PROGRESS, State, Upload, UploadError};
use super::{After, Body, Connection, Epoch, Exchange, Response, Service, Settings};
use crate::http::h1::encode::{HeadContext, ResponseFraming, write_head};
use crate::http::h1::{HeadScanner, Reject, parse_head};
use crate::http::types::{Method, Request, Version};
use crate::net::secured::Secured;
use crate::net::send::{Progress, SendError};
use crate::runtime::buf::RecvBuf;

/// The limit of what is thrown away of a body that nobody reads.
const BODY_DRAIN: &str = "bytes of a body that is not read";

/// What is counted when a client speaks TLS where none is spoken.
const TLS_ON_PLAIN_PORT: &str = "TLS on a plain port";

/// A response whose head is in the batch and whose body is still to be sent.
struct Answer {
    body: Body,
    framing: ResponseFraming,
    keep_alive: bool,
    /// The client said that this is its last request.
    client_closes: bool,
    /// What the access log will be told when the body has gone; `None` when it was told, or need
    /// not be.
    pending: Option<Box<PendingLog>>,
}

/// How the wait for a whole head ended.
enum Head {
    /// This many bytes of the input are a head.
    Whole(usize),
    /// The client has ended the connection, between two requests or within one.
    Gone,
    /// It breaks a rule, or came too slowly.
    Refused(Reject),
}

impl<S: Service> Connection<S> {
    /// Answers requests, beginning with the bytes in `first`, until none is left. Answers to requests
    /// that came together leave together.
    pub(super) async fn exchange(&mut self, first: RecvBuf) -> After<S::Epoch> {
        let mut input = Input::new(first);
        let mut batch = self.core.send_buffer();
        let after = self.answer_all(&mut input, &mut batch).await;
        match after {
            Ok(after) if batch.is_empty() => {
                self.core.recycle(batch);
                after
            }
            Ok(after) => match self.sender.buffer(&mut self.timer, batch, false).await {
                Ok(()) => after,
                Err(error) => self.broken(error),
            },
            Err(error) => self.broken(error),
        }
    }

    /// What becomes of the connection when a response did not go out whole.
    fn broken(&self, error: SendError) -> After<S::Epoch> {
        match error {
            SendError::Broken(_) => return After::Close,
            SendError::TooSlow => self.limit("progress of a response"),
            SendError::FileShrank | SendError::File(_) | SendError::Cut(_) => {
                tracing::debug!(reason = reason(&error), "response cut short");
            }
        }
        After::Reset
    }

    async fn answer_all(
        &mut self,
        input: &mut Input,
        batch: &mut Vec<u8>,
    ) -> Result<After<S::Epoch>, SendError> {
        while !input.bytes().is_empty() {
            // Held until this request is answered: a reload meanwhile is for the next one.
            let epoch = self.service.epoch(&self.peer);
            let settings = epoch.settings();
            self.sender.set_rule(settings.progress);
            let length = match self.head(settings, input, batch).await? {
                Head::Whole(length) => length,
                Head::Gone => return Ok(After::Close),
                Head::Refused(reject) => {
                    if self.requests == 0 && is_tls(input.bytes()) {
                        self.service.registry().limits().count(TLS_ON_PLAIN_PORT);
                    }
                    return Ok(self.refuse(&epoch, batch, None, reject));
                }
            };
            self.requests += 1;
            if self.core.buffers_scarce() {
                // The handler may wait for a disk: the buffer is not for waiting with.
                input.detach();
            }
            let (mut answer, mut state, rest) = {
                let head = &input.bytes()[..length];
                let request = match parse_head(head, &settings.head) {
                    Ok(request) => request,
                    Err(reject) => {
                        let line = request_line(head);
                        return Ok(self.refuse(&epoch, batch, Some(line), reject));
                    }
                };
                let mut state = State::new(&self.core, &request, settings.progress);
                // The request stays where it is while its body comes.
                let mut rest = state
                    .has_body()
                    .then(|| Input::copied(&input.bytes()[length..]));
                let answer = self
                    .answer(&epoch, &request, (rest.as_mut(), &mut state), batch)
                    .await;
                (answer, state, rest)
            };
            match rest {
                Some(rest) => *input = rest,
                None => input.consume(length),
            }
            state.settle(input);
            if let Body::Tunnel(tunnel) = answer.body {
                let early = input.bytes().to_vec();
                let switched = Switched {
                    tunnel,
                    early,
                    epoch: Rc::clone(&epoch),
                    pending: answer.pending,
                };
                return Ok(After::Tunnel(Box::new(switched)));
            }
            let streams = answer.body.reads_on();
            let mut drained = state.is_ended();
            if !drained && answer.keep_alive && !streams {
                drained = self.drain(settings, input, batch, &mut state).await?;
            }
            match self
                .send_body(&epoch, (input, &mut state), batch, &mut answer)
                .await
            {
                // The framing tells the client that it is not whole, and what came is not lost to it.
                Err(SendError::Cut(_)) if !answer.server_closes() => return Ok(After::Linger),
                result => result?,
            }
            if streams {
                state.settle(input);
                drained = state.is_ended()
                    || answer.keep_alive && self.drain(settings, input, batch, &mut state).await?;
            }
            if !drained {
                return Ok(After::Linger);
            }
            if !answer.keep_alive {
                // When the close is our wish the next requests may be on their way, or in the socket.
                let sent_all = answer.client_closes && input.bytes().is_empty();
                let done = self.receiver.end().is_some() || sent_all;
                return Ok(if done && !answer.server_closes() {
                    After::Close
                } else {
                    After::Linger
                });
            }
        }
        Ok(After::Keep)
    }

    /// Finds the end of the head at the beginning of the input, receiving more as needed.
    async fn head(
        &mut self,
        settings: &Settings,
        input: &mut Input,
        batch: &mut Vec<u8>,
    ) -> Result<Head, SendError> {
        let mut scanner = HeadScanner::default();
        let mut deadline = None;
        loop {
            match scanner.scan(input.bytes(), &settings.head) {
                Ok(Some(length)) => return Ok(Head::Whole(length)),
                Ok(None) => {}
                Err(reject) => return Ok(Head::Refused(reject)),
            }
            if self.core.is_out_of_memory() {
                return Ok(Head::Refused(Reject::NO_MEMORY));
            }
            // What is answered must not wait for what is to come.
            self.flush(batch, false).await?;
            input.detach();
            let deadline =
                *deadline.get_or_insert_with(|| self.core.now() + settings.header_timeout);
            self.timer.set(deadline);
            let receiver = &mut self.receiver;
            match self.timer.bound(|| receiver.poll_next()).await {
                Some(Ok(next)) => input.append(next),
                Some(Err(_)) => return Ok(Head::Gone),
                None => return Ok(Head::Refused(Reject::TIMEOUT)),
            }
        }
    }

    /// Lets the service answer, and puts the head, and a small body, into the batch.
    async fn answer(
        &mut self,
        epoch: &Rc<S::Epoch>,
        request: &Request<'_>,
        (input, state): (Option<&mut Input>, &mut State),
        batch: &mut Vec<u8>,
    ) -> Answer {
        let started = self.core.now();
        let date = self.service.date();
        let mut upload = Upload {
            core: &self.core,
            state,
            input,
            receiver: &mut self.receiver,
            out: Some(Out {
                sender: &mut self.sender,
                batch,
                date: &date,
            }),
        };
        let answered = self.service.call(epoch, request, &mut upload, &self.peer);
        let mut response = answered.await;
        let switches = matches!(response.body, Body::Tunnel(_));
        if switches && !(request.version == Version::Http11 && state.is_ended()) {
            tracing::warn!("a switch of protocols within a request is refused");
            response = self.service.refusal(500);
        }
        let Response { head, mut body } = response;
        let is_head = request.method == Method::Head;
        let length = body.length();
        let framing = ResponseFraming::choose(request.version, head.status, is_head, length);
        let switches = matches!(body, Body::Tunnel(_));
        let absent = matches!(body, Body::Absent(_));
        let forbidden = is_head || head.status.forbids_body();
        debug_assert!(forbidden || !absent, "content that is announced and absent");
        if absent || forbidden && !switches {
            body = Body::Empty;
        }
        let keep_alive = self.blame(state)
            && request.keep_alive
            && (forbidden || !absent)
            && self.may_keep(epoch.settings(), state, body.reads_on());
        let date = self.service.date();
        let context = HeadContext {
            version: request.version,
            keep_alive,
            framing,
            date: &date,
        };
        let keep_alive = write_head(batch, &head, &context);
        let status = head.status.0;
        self.service.registry().answered(status);
        let sent = append_small(&mut body, batch, self.core.tuning().copy_up_to);
        let mut pending = None;
        if self.service.logs(epoch) {
            if let Body::Empty = body {
                let exchange = Exchange {
                    body_bytes: sent,
                    received: state.received(),
                    client: state.client,
                    reason: state.error().map(UploadError::reason),
                    upstream: state.upstream.as_deref(),
                    ..Exchange::of(request, status, started)
                };
                self.service.log(epoch, &self.peer, &exchange);
            } else {
                let mut log = PendingLog::of(request, status, started);
                log.client = state.client;
                if switches {
                    log.upstream = state.upstream.take();
                }
                pending = Some(log);
            }
        }
        Answer {
            body,
            framing,
            keep_alive,
            client_closes: !request.keep_alive,
            pending,
        }
    }

    /// Whether we are willing to keep the connection behind this request. `reads_on`: what is left of
    /// its body may still be read.
    fn may_keep(&self, settings: &Settings, state: &State, reads_on: bool) -> bool {
        let unread = !reads_on && state.remaining() > settings.body_drain;
        if unread {
            self.limit(BODY_DRAIN);
        }
        if self.requests == settings.requests_max {
            self.limit("requests of a connection");
        }
        // A client that waits for 100 and gets a final status may send its body or not: what follows
        // can't be told apart from it.
        !unread
            && !state.awaits_continue()
            && !self.sender.is_spent()
            && self.requests < settings.requests_max
            && !self.service.registry().population().draining()
            && !self.peer.listener.draining()
            && !self.peer.secured().is_some_and(Secured::is_over)
    }

    /// Counts what broke an upload. Says whether nothing did.
    fn blame(&self, state: &mut State) -> bool {
        match state.unblamed() {
            Some(UploadError::TooSlow) => self.limit(PROGRESS),
            Some(UploadError::Malformed(reject)) => {
                self.service.registry().limits().refused(reject.reason);
            }
            Some(UploadError::Gone(_) | UploadError::NotAsked) | None => {}
        }
        state.error().is_none()
    }

    /// Throws the rest of the request's body away, within the bound. Says whether the next request
    /// begins where the input stands now.
    async fn drain(
        &mut self,
        settings: &Settings,
        input: &mut Input,
        batch: &mut Vec<u8>,
        state: &mut State,
    ) -> Result<bool, SendError> {
        if state.error().is_some() {
            return Ok(false);
        }
        let Some(decoder) = state.leftover(input) else {
            return Ok(true);
        };
        if decoder.is_ended() {
            return Ok(true);
        }
        let mut left = settings.body_drain;
        let mut progress = None;
        loop {
            while !input.bytes().is_empty() {
                let decoded = match decoder.decode(input.bytes()) {
                    Ok(decoded) => decoded,
                    Err(reject) => {
                        self.service.registry().limits().refused(reject.reason);
                        tracing::debug!(reason = reject.reason, "body refused");
                        return Ok(false);
                    }
                };
                input.consume(decoded.consumed);
                if decoded.end {
                    return Ok(true);
                }
                let used = decoded.consumed as u64;
                if used > left {
                    self.limit(BODY_DRAIN);
                    return Ok(false);
                }
                left -= used;
            }
            self.flush(batch, false).await?;
            // Used up, but still a shared buffer that others may be waiting for.
            input.detach();
            let now = self.core.now();
            let progress = progress.get_or_insert_with(|| Progress::new(settings.progress, now));
            let receiver = &mut self.receiver;
            let received = match progress.deadline() {
                Some(deadline) => {
                    self.timer.set(deadline);
                    self.timer.bound(|| receiver.poll_next()).await
                }
                // The timer still has the deadline of something else.
                None => Some(std::future::poll_fn(|_| receiver.poll_next()).await),
            };
            match received {
                Some(Ok(next)) => input.append(next),
                Some(Err(_)) => return Ok(false),
                None => {
                    let received = settings.body_drain - left;
                    if !progress.check(received, self.core.now()) {
                        self.limit(PROGRESS);
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Sends what has not left with the head, and tells the access log.
    async fn send_body(
        &mut self,
        epoch: &S::Epoch,
        (input, state): (&mut Input, &mut State),
        batch: &mut Vec<u8>,
        answer: &mut Answer,
    ) -> Result<(), SendError> {
        let body = std::mem::replace(&mut answer.body, Body::Empty);
        if matches!(body, Body::Empty) {
            if batch.len() >= BATCH_BYTES {
                self.flush(batch, !input.bytes().is_empty()).await?;
            }
            return Ok(());
        }
        // The send may take long: shared buffers are not for waiting with.
        input.detach();
        let before = self.sender.taken() + batch.len() as u64;
        let mut content = u64::MAX;
        self.unfinished = true;
        let result = match body {
            Body::Stream(stream) => {
                content = 0;
                let pool = self.core.futures().clone();
                let source = (input, &mut *state);
                let framing = answer.framing;
                pool.boxed(|| self.send_stream(source, batch, stream, framing, &mut content))
                    .await
            }
            body => self.send_large(batch, body, answer.framing).await,
        };
        self.unfinished = false;
        self.blame(state);
        if let Some(mut pending) = answer.pending.take() {
            // What is still in the batch leaves with the next answer, or with the last one.
            let sent = self.sender.taken() + batch.len() as u64;
            let body_bytes = sent.saturating_sub(before).min(content);
            let of_response = result.as_ref().err().map(reason);
            let of_request = state.error().map(UploadError::reason);
            pending.upstream = state.upstream.take();
            self.service.log(
                epoch,
                &self.peer,
                &pending.exchange(body_bytes, state.received(), of_response.or(of_request)),
            );
        }
        result
    }

    /// Answers a request that is refused; the connection closes behind it.
    fn refuse(
        &mut self,
        epoch: &S::Epoch,
        batch: &mut Vec<u8>,
        line: Option<(&str, &str)>,
        reject: Reject,
    ) -> After<S::Epoch> {
        let Response { head, mut body } = self.service.refusal(reject.status.0);
        let date = self.service.date();
        let context = HeadContext {
            version: Version::Http11,
            keep_alive: false,
            framing: ResponseFraming::Length(body.length().unwrap_or(0)),
            date: &date,
        };
        write_head(batch, &head, &context);
        let body_bytes = append_small(&mut body, batch, self.core.tuning().copy_up_to);
        if self.service.logs(epoch) {
            let (method, target) = line.unwrap_or(("-", "-"));
            self.service.log(
                epoch,
                &self.peer,
                &Exchange {
                    method,
                    target,
                    version: None,
                    host: "",
                    referer: None,
                    user_agent: None,
                    status: reject.status.0,
                    body_bytes,
                    received: 0,
                    started: self.core.now(),
                    client: None,
                    reason: Some(reject.reason),
                    upstream: None,
                },
            );
        }
        self.service.registry().answered(reject.status.0);
        self.service.registry().limits().refused(reject.reason);
        tracing::debug!(
            status = reject.status.0,
            reason = reject.reason,
            "request refused"
        );
        After::Linger
    }
}

impl Answer {
    /// Whether the end of the connection is the end of the body, so that no client waits for us.
    fn server_closes(&self) -> bool {
        self.framing == ResponseFraming::Close
    }
}

/// Whether a connection begins with a TLS record: a handshake (22) of major version 3.
fn is_tls(bytes: &[u8]) -> bool {
    bytes.starts_with(&[22, 3])
}

/// Method and target of a head that was refused, for the log, as far as they can be read.
fn request_line(head: &[u8]) -> (&str, &str) {
    let end = memchr::memchr(b'\r', head).unwrap_or(head.len());
    let line = std::str::from_utf8(&head[..end]).unwrap_or("-");
    let mut words = line.split(' ');
    (words.next().unwrap_or("-"), words.next().unwrap_or("-"))
}

fn reason(error: &SendError) -> &'static str {
    match error {
        SendError::Broken(_) => "client gone",
        SendError::TooSlow => "client too slow",
        SendError::FileShrank => "file shrank while it was sent",
        SendError::File(_) => "file can't be read",
        SendError::Cut(reason) => reason,
    }
}
