//! The busy part of a connection: from the first byte of a request until nothing is left to answer.

use std::rc::Rc;
use std::time::Instant;

use super::input::Input;
use super::{After, Body, Connection, Epoch, Exchange, Piece, Response, Service, Settings};
use crate::http::h1::body::BodyDecoder;
use crate::http::h1::encode::{
    CHUNK_END, HeadContext, LAST_CHUNK, ResponseFraming, write_chunk_header, write_head,
};
use crate::http::h1::{HeadScanner, Reject, parse_head};
use crate::http::types::{Method, Request, Version};
use crate::net::send::{Progress, SendError};
use crate::runtime::buf::RecvBuf;

/// Answers of a batch are collected up to this many bytes before they are sent.
const BATCH_BYTES: usize = 64 << 10;

/// A body up to this size is copied behind its head; a larger one is sent from where it is.
const COPY_BYTES: u64 = 8 << 10;

/// The limit of what is thrown away of a body that nobody reads.
const BODY_DRAIN: &str = "bytes of a body that is not read";

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
    started: Instant,
    status: u16,
}

/// The strings of an access log line that outlive their request.
struct PendingLog {
    method: String,
    target: String,
    version: Version,
    host: String,
    referer: Option<Vec<u8>>,
    user_agent: Option<Vec<u8>>,
}

impl PendingLog {
    fn of(request: &Request<'_>) -> Box<Self> {
        Box::new(Self {
            method: request.method.as_str().to_owned(),
            target: request.target.to_owned(),
            version: request.version,
            host: request.host.clone().into_owned(),
            referer: request.fields.get("referer").map(<[u8]>::to_vec),
            user_agent: request.fields.get("user-agent").map(<[u8]>::to_vec),
        })
    }
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
    pub(super) async fn exchange(&mut self, first: RecvBuf) -> After {
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
    fn broken(&self, error: SendError) -> After {
        match error {
            SendError::Broken(_) => return After::Close,
            SendError::TooSlow => self.limit("progress of a response"),
            SendError::FileShrank | SendError::File(_) => {
                tracing::debug!(reason = reason(&error), "response cut short");
            }
        }
        After::Reset
    }

    async fn answer_all(
        &mut self,
        input: &mut Input,
        batch: &mut Vec<u8>,
    ) -> Result<After, SendError> {
        while !input.bytes().is_empty() {
            // Held until this request is answered: a reload meanwhile is for the next one.
            let epoch = self.service.epoch(&self.peer);
            let settings = epoch.settings();
            self.sender.set_rule(settings.progress);
            let length = match self.head(settings, input, batch).await? {
                Head::Whole(length) => length,
                Head::Gone => return Ok(After::Close),
                Head::Refused(reject) => return Ok(self.refuse(&epoch, batch, None, reject)),
            };
            self.requests += 1;
            if self.core.buffers_scarce() {
                // The handler may wait for a disk: the buffer is not for waiting with.
                input.detach();
            }
            let (mut answer, decoder) = {
                let head = &input.bytes()[..length];
                let request = match parse_head(head, &settings.head) {
                    Ok(request) => request,
                    Err(reject) => {
                        let line = request_line(head);
                        return Ok(self.refuse(&epoch, batch, Some(line), reject));
                    }
                };
                let decoder = BodyDecoder::new(request.framing);
                (self.answer(&epoch, &request, batch).await, decoder)
            };
            input.consume(length);
            let drained = decoder.is_ended()
                || answer.keep_alive && self.drain(settings, input, batch, decoder).await?;
            self.send_body(&epoch, input, batch, &mut answer).await?;
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
        batch: &mut Vec<u8>,
    ) -> Answer {
        let started = self.core.now();
        let Response { head, mut body } = self.service.call(epoch, request, &self.peer).await;
        let is_head = request.method == Method::Head;
        let length = body.length();
        let framing = ResponseFraming::choose(request.version, head.status, is_head, length);
        if is_head || head.status.forbids_body() {
            body = Body::Empty;
        }
        let keep_alive = request.keep_alive && self.may_keep(epoch.settings(), request);
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
        let sent = append_small(&mut body, batch);
        let mut pending = None;
        if self.service.logs(epoch) {
            if let Body::Empty = body {
                let exchange = Exchange {
                    method: request.method.as_str(),
                    target: request.target,
                    version: Some(request.version),
                    host: &request.host,
                    referer: request.fields.get("referer"),
                    user_agent: request.fields.get("user-agent"),
                    status,
                    body_bytes: sent,
                    started,
                    reason: None,
                };
                self.service.log(epoch, &self.peer, &exchange);
            } else {
                pending = Some(PendingLog::of(request));
            }
        }
        Answer {
            body,
            framing,
            keep_alive,
            client_closes: !request.keep_alive,
            pending,
            started,
            status,
        }
    }

    /// Whether we are willing to keep the connection behind this request.
    fn may_keep(&self, settings: &Settings, request: &Request<'_>) -> bool {
        let unread = match request.framing {
            crate::http::types::Framing::Length(length) => length > settings.body_drain,
            _ => false,
        };
        if unread {
            self.limit(BODY_DRAIN);
        }
        if self.requests == settings.requests_max {
            self.limit("requests of a connection");
        }
        // A client that waits for 100 and gets a final status may send its body or not: what follows
        // can't be told apart from it.
        !unread
            && !request.expects_continue
            && self.requests < settings.requests_max
            && !self.service.registry().population().draining()
            && !self.peer.listener.draining()
    }

    /// Throws the rest of the request's body away, within the bound. Says whether the next request
    /// begins where the input stands now.
    async fn drain(
        &mut self,
        settings: &Settings,
        input: &mut Input,
        batch: &mut Vec<u8>,
        mut decoder: BodyDecoder,
    ) -> Result<bool, SendError> {
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
                        self.limit("progress of a body");
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
        input: &mut Input,
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
        self.unfinished = true;
        let result = self.send_large(batch, body, answer.framing).await;
        self.unfinished = false;
        if let Some(pending) = answer.pending.take() {
            // What is still in the batch leaves with the next answer, or with the last one.
            let sent = self.sender.taken() + batch.len() as u64;
            let body_bytes = sent.saturating_sub(before);
            self.service.log(
                epoch,
                &self.peer,
                &Exchange {
                    method: &pending.method,
                    target: &pending.target,
                    version: Some(pending.version),
                    host: &pending.host,
                    referer: pending.referer.as_deref(),
                    user_agent: pending.user_agent.as_deref(),
                    status: answer.status,
                    body_bytes,
                    started: answer.started,
                    reason: result.as_ref().err().map(reason),
                },
            );
        }
        result
    }

    async fn send_large(
        &mut self,
        batch: &mut Vec<u8>,
        body: Body,
        framing: ResponseFraming,
    ) -> Result<(), SendError> {
        match body {
            Body::Empty => Ok(()),
            Body::Bytes(bytes) => self.send_bytes(batch, &bytes).await,
            Body::Shared(bytes, range) => {
                let head = self.take(batch);
                self.sender.pair(&mut self.timer, head, &bytes[range]).await
            }
            Body::Constant(bytes) => self.send_bytes(batch, &bytes).await,
            Body::File(part) => {
                let head = self.take(batch);
                self.sender.file(&mut self.timer, head, part, false).await
            }
            Body::Pieces(pieces) => {
                let last = pieces.len().saturating_sub(1);
                for (index, piece) in pieces.into_iter().enumerate() {
                    match piece {
                        Piece::Bytes(bytes) => self.send_bytes(batch, &bytes).await?,
                        Piece::File(part) => {
                            let head = self.take(batch);
                            self.sender
                                .file(&mut self.timer, head, part, index < last)
                                .await?;
                        }
                    }
                }
                self.flush(batch, false).await
            }
            Body::Chunks(chunks) => {
                let chunked = framing == ResponseFraming::Chunked;
                for chunk in chunks.filter(|chunk| !chunk.is_empty()) {
                    if chunked {
                        write_chunk_header(batch, chunk.len() as u64);
                    }
                    self.send_bytes(batch, &chunk).await?;
                    if chunked {
                        batch.extend_from_slice(CHUNK_END);
                    }
                }
                if chunked {
                    batch.extend_from_slice(LAST_CHUNK);
                }
                self.flush(batch, false).await
            }
        }
    }

    /// Appends bytes to the batch, sending it whenever it is full.
    async fn send_bytes(&mut self, batch: &mut Vec<u8>, bytes: &[u8]) -> Result<(), SendError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = BATCH_BYTES.saturating_sub(batch.len()).max(1);
            let (now, later) = rest.split_at(room.min(rest.len()));
            batch.extend_from_slice(now);
            rest = later;
            if batch.len() >= BATCH_BYTES {
                self.flush(batch, !rest.is_empty()).await?;
                self.core.yield_turn().await;
            }
        }
        Ok(())
    }

    fn take(&self, batch: &mut Vec<u8>) -> Vec<u8> {
        std::mem::replace(batch, self.core.send_buffer())
    }

    /// Sends the batch.
    async fn flush(&mut self, batch: &mut Vec<u8>, more: bool) -> Result<(), SendError> {
        if batch.is_empty() {
            return Ok(());
        }
        let full = self.take(batch);
        self.sender.buffer(&mut self.timer, full, more).await
    }

    /// Answers a request that is refused; the connection closes behind it.
    fn refuse(
        &mut self,
        epoch: &S::Epoch,
        batch: &mut Vec<u8>,
        line: Option<(&str, &str)>,
        reject: Reject,
    ) -> After {
        let Response { head, mut body } = self.service.refusal(reject.status.0);
        let date = self.service.date();
        let context = HeadContext {
            version: Version::Http11,
            keep_alive: false,
            framing: ResponseFraming::Length(body.length().unwrap_or(0)),
            date: &date,
        };
        write_head(batch, &head, &context);
        let body_bytes = append_small(&mut body, batch);
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
                    started: self.core.now(),
                    reason: Some(reject.reason),
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

/// Moves a body that is small and at hand into the batch. Gives the bytes that were appended.
fn append_small(body: &mut Body, batch: &mut Vec<u8>) -> u64 {
    let length = body.length().unwrap_or(u64::MAX);
    if length > COPY_BYTES {
        return 0;
    }
    match &*body {
        Body::Bytes(bytes) => batch.extend_from_slice(bytes),
        Body::Shared(bytes, range) => batch.extend_from_slice(&bytes[range.clone()]),
        Body::Constant(bytes) => batch.extend_from_slice(bytes),
        Body::Empty => {}
        // An empty file needs no send of its own.
        Body::File(part) if part.length == 0 => {}
        Body::File(_) | Body::Pieces(_) | Body::Chunks(_) => return 0,
    }
    *body = Body::Empty;
    length
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
    }
}
