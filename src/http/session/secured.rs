//! The TLS handshake before the first request.
//!
//! A phase of its own, in a block of the core's pool, as the PROXY header is. Until a ClientHello is
//! whole a client costs what an idle connection does, and its bytes.

use std::rc::Rc;
use std::task::Poll;

use super::registry::Registration;
use super::{After, Connection, Epoch, Service};
use crate::http::h1::encode::{HeadContext, ResponseFraming, write_head};
use crate::http::types::{ResponseHead, Version};
use crate::net::secured::Secured;
use crate::net::tls::Failure;
use crate::net::tls::hello::{Scanned, Scanner};
use crate::runtime::buf::RecvBuf;

/// What a client is told that speaks HTTP where TLS is spoken.
const SPEAK_TLS: &[u8] = b"This port speaks HTTPS. Begin the address with https://\n";

/// What a handshake waits for.
enum Event {
    /// The socket has something to take.
    Blocked,
    /// It is over.
    Open,
    Plain(RecvBuf),
    End,
    /// The core closes idle connections.
    MustClose,
}

impl<S: Service> Connection<S> {
    /// The handshake, beginning with what has come already; gives what came behind it, decrypted.
    ///
    /// # Errors
    /// What is left to do on a connection that gets no further.
    pub(super) async fn handshake(
        &mut self,
        came: Option<RecvBuf>,
        registration: &Registration,
    ) -> Result<Option<RecvBuf>, After<S::Epoch>> {
        let patience = self.service.epoch(&self.peer).settings().handshake_timeout;
        let now = self.core.now();
        registration.idle(now, false);
        self.timer.set(now + patience);
        let (mut hello, name) = self.hello(came, registration).await?;
        registration.busy();
        let registry = Rc::clone(self.service.registry());
        let handshakes = registry.handshakes();
        let Some(place) = handshakes.queue() else {
            return Err(self.insecure(Failure::Crowded, None));
        };
        let mut has_waited = false;
        while !place.may_begin(self.core.now()) {
            has_waited = true;
            // Before what events wake: those come anew each turn.
            self.core.yield_for_bulk().await;
            if self.core.now() >= now + patience {
                return Err(self.insecure(Failure::TooSlow, None));
            }
        }
        drop(place);
        if has_waited {
            // Who has left meanwhile costs no signature.
            match self.receiver.poll_next() {
                Poll::Ready(Ok(next)) => hello.extend_from_slice(&next),
                Poll::Ready(Err(_)) => return Err(self.insecure(Failure::Left, None)),
                Poll::Pending => {}
            }
        }
        let (_under_way, oldest) = handshakes.enter(self.core.current_task());
        if let Some(oldest) = oldest {
            registry.limits().reached(Failure::Crowded.name());
            self.core.abort(oldest);
        }
        let settings = match self.service.tls(&self.peer, name.as_deref()) {
            Ok(settings) => settings,
            Err(failure) => return Err(self.insecure(failure, name.as_deref())),
        };
        let secured = match Secured::new((&self.core, &self.peer.socket), &settings, name) {
            Ok(secured) => secured,
            Err(failure) => return Err(self.insecure(failure, None)),
        };
        self.receiver.secure(Rc::clone(&secured));
        self.sender.secure(Rc::clone(&secured));
        self.peer.secure(Rc::clone(&secured));
        // What is behind a ClientHello is of no use before it is answered, so this gives no plaintext.
        let began = self.core.clock();
        let opened = secured.open(RecvBuf::own(hello.into()));
        let took = self.core.clock().saturating_duration_since(began);
        handshakes.took(self.core.now(), took);
        if let Err(failure) = opened {
            return Err(self.failed(failure));
        }
        let plain = self.answers(&secured, registration).await?;
        if let Some(done) = secured.handshake() {
            handshakes.done(done.resumed);
            tracing::debug!(
                version = done.version,
                suite = done.suite,
                group = done.group,
                resumed = done.resumed,
                "TLS handshake done"
            );
        }
        Ok(plain)
    }

    /// Everything up to the end of a ClientHello, what came with it, and the name that it asks for.
    async fn hello(
        &mut self,
        came: Option<RecvBuf>,
        registration: &Registration,
    ) -> Result<(Vec<u8>, Option<Box<str>>), After<S::Epoch>> {
        let mut scanner = Scanner::default();
        let mut bytes = came.map_or_else(Vec::new, |came| came.to_vec());
        loop {
            match scanner.scan(&bytes) {
                Ok(Scanned::Name(name)) => return Ok((bytes, name)),
                Ok(Scanned::More) => {}
                Err(failure) => return Err(self.insecure(failure, None)),
            }
            let receiver = &mut self.receiver;
            let next = || match receiver.poll_next() {
                Poll::Pending if registration.must_close() => Poll::Ready(None),
                next => next.map(Some),
            };
            match self.timer.bound(next).await {
                Some(Some(Ok(next))) => bytes.extend_from_slice(&next),
                // Who connects and leaves, such as a probe, has broken no rule.
                Some(Some(Err(_))) if bytes.is_empty() => return Err(After::Close),
                Some(Some(Err(_))) => return Err(self.insecure(Failure::Left, None)),
                Some(None) => return Err(After::Close),
                None => return Err(self.insecure(Failure::TooSlow, None)),
            }
        }
    }

    /// Answers the client until the handshake is over.
    async fn answers(
        &mut self,
        secured: &Secured,
        registration: &Registration,
    ) -> Result<Option<RecvBuf>, After<S::Epoch>> {
        loop {
            let receiver = &mut self.receiver;
            let next = || {
                if secured.is_pending() {
                    return Poll::Ready(Event::Blocked);
                }
                if secured.is_open() {
                    return Poll::Ready(Event::Open);
                }
                match receiver.poll_next() {
                    Poll::Ready(Ok(plain)) => Poll::Ready(Event::Plain(plain)),
                    Poll::Ready(Err(_)) => Poll::Ready(Event::End),
                    Poll::Pending if secured.is_pending() => Poll::Ready(Event::Blocked),
                    Poll::Pending if secured.is_open() => Poll::Ready(Event::Open),
                    Poll::Pending if registration.must_close() => Poll::Ready(Event::MustClose),
                    Poll::Pending => Poll::Pending,
                }
            };
            match self.timer.bound(next).await {
                Some(Event::Open) => return Ok(None),
                Some(Event::Plain(plain)) => return Ok(Some(plain)),
                Some(Event::Blocked) => {
                    if self.sender.settle(&mut self.timer).await.is_err() {
                        return Err(self.failed(Failure::Left));
                    }
                }
                Some(Event::End) => {
                    let failure = secured.failure().unwrap_or(Failure::Left);
                    return Err(self.failed(failure));
                }
                Some(Event::MustClose) => return Err(After::Close),
                None => return Err(self.failed(Failure::TooSlow)),
            }
        }
    }

    /// A connection that never came under TLS.
    fn insecure(&mut self, failure: Failure, name: Option<&str>) -> After<S::Epoch> {
        self.tell(failure, name);
        match failure.alert() {
            Some(alert) => {
                // One that doesn't fit into an empty socket buffer has nobody to be told to.
                let _ = self.sender.at_once(&alert);
                After::Linger
            }
            None if failure == Failure::PlainHttp => {
                let answer = self.speak_tls();
                let _ = self.sender.at_once(&answer);
                After::Linger
            }
            None => After::Close,
        }
    }

    /// A connection whose handshake failed; its alert is sent.
    fn failed(&self, failure: Failure) -> After<S::Epoch> {
        self.tell(failure, None);
        After::Close
    }

    /// Counts a failure, and says in the log whose it was.
    fn tell(&self, failure: Failure, name: Option<&str>) {
        self.service.registry().limits().count(failure.name());
        let peer = self.peer.address(&self.core);
        let detail = match failure {
            Failure::Hello(detail) => Some(detail),
            _ => None,
        };
        let secured = self.peer.secured();
        let client = secured.and_then(Secured::refused_client);
        match (client, secured) {
            (Some(client), _) => tracing::debug!(?peer, client, "{}", failure.name()),
            (None, Some(secured)) => secured.with_name(|name| {
                tracing::debug!(?peer, name, "{}", failure.name());
            }),
            (None, None) => tracing::debug!(?peer, name, detail, "{}", failure.name()),
        }
    }

    /// What is said to a client that speaks HTTP.
    fn speak_tls(&self) -> Vec<u8> {
        let mut answer = self.core.send_buffer();
        let head = ResponseHead::new(400).with("Content-Type", "text/plain; charset=utf-8");
        let date = self.service.date();
        let context = HeadContext {
            version: Version::Http11,
            keep_alive: false,
            framing: ResponseFraming::Length(SPEAK_TLS.len() as u64),
            date: &date,
        };
        write_head(&mut answer, &head, &context);
        answer.extend_from_slice(SPEAK_TLS);
        self.service.registry().answered(400);
        answer
    }
}
