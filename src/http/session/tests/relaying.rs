//! Handlers that pass large bodies on from and to a backend, as a proxy does.

use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::Handlers;
use super::handlers::with;
use crate::http::session::{
    Body, BodyStream, Cut, Piece, RelayOutcome, RelayPart, Response, Service, Upload, UploadRelay,
    UploadRelayError,
};
use crate::net::connect::connect;
use crate::runtime::address::Address;
use crate::runtime::fd::Fd;

/// Longest silence of a backend.
pub(super) const SILENCE: Duration = Duration::from_secs(20);

/// Where the backend is in a simulation.
pub(super) fn backend_address() -> Address {
    Address::Tcp("192.0.2.1:80".parse().unwrap())
}

async fn backend(handlers: &Handlers) -> Fd {
    let given = handlers.seen.backend.borrow_mut().take();
    if let Some(socket) = given {
        return socket;
    }
    loop {
        // Its failures are faults of the simulation here.
        if let Ok(socket) = connect(&handlers.core, &backend_address(), SILENCE).await {
            return socket;
        }
    }
}

/// The backend's bytes as they stand in its socket, so many of them.
pub(super) async fn fetch(handlers: &Handlers, length: u64, told: bool) -> Fetch {
    let outcome = Rc::new(RelayOutcome::default());
    *handlers.seen.outcome.borrow_mut() = Some(Rc::clone(&outcome));
    let from = backend(handlers).await;
    Fetch {
        begin: Some(b"begin.".to_vec()),
        part: Some(RelayPart {
            from,
            length,
            silence: Some(SILENCE),
            outcome,
        }),
        length: told.then_some(length + 6),
    }
}

/// A few bytes that were received, and the rest by relay.
pub(super) struct Fetch {
    begin: Option<Vec<u8>>,
    part: Option<RelayPart>,
    length: Option<u64>,
}

impl BodyStream for Fetch {
    fn poll_next(&mut self, _: &mut Upload<'_>) -> Poll<Option<Result<Piece, Cut>>> {
        let begin = self.begin.take().map(Piece::Bytes);
        let piece = begin.or_else(|| self.part.take().map(Piece::Relay));
        Poll::Ready(piece.map(Ok))
    }

    /// Reads its request aside.
    fn poll_upload(&mut self, upload: &mut Upload<'_>) {
        while let Poll::Ready(Some(Ok(chunk))) = upload.poll_chunk() {
            let bytes = chunk.len();
            upload.consume(bytes);
        }
    }

    fn length(&self) -> Option<u64> {
        self.length
    }
}

/// Passes the request's body on and says how that went; `stall` as of [`UploadRelay::new`].
pub(super) async fn pass(handlers: &Handlers, upload: &mut Upload<'_>, stall: u64) -> Response {
    let to = backend(handlers).await;
    let stall = Some(Duration::from_secs(stall));
    let Some(mut relay) = UploadRelay::new(upload, &to, stall) else {
        return with(Body::Bytes(b"doesn't pay.".to_vec()));
    };
    match std::future::poll_fn(|_| relay.poll(upload)).await {
        Ok(()) => {
            assert!(upload.is_ended());
            with(Body::Bytes(
                format!("{} given.", relay.given()).into_bytes(),
            ))
        }
        Err(UploadRelayError::Source(error)) => handlers.refusal(error.status()),
        Err(UploadRelayError::Sink(cause)) => {
            let mut answer = vec![0; 100];
            let bytes = handlers.core.receive_now(&to, &mut answer).unwrap_or(0);
            answer.truncate(bytes);
            let answer = String::from_utf8_lossy(&answer);
            with(Body::Bytes(format!("{cause}: {answer}").into_bytes()))
        }
    }
}

/// Passes at least so many bytes on, and reads the rest itself.
pub(super) async fn part(handlers: &Handlers, upload: &mut Upload<'_>, least: u64) -> Response {
    let to = backend(handlers).await;
    let mut relay = UploadRelay::new(upload, &to, None).unwrap();
    std::future::poll_fn(|_| {
        let ended = relay.poll(upload).is_ready();
        if ended || relay.given() >= least {
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
    drop(relay);
    let mut rest = 0;
    while let Some(Ok(chunk)) = upload.chunk().await {
        let bytes = chunk.len();
        rest += bytes as u64;
        upload.consume(bytes);
    }
    assert!(upload.is_ended() && rest <= upload.received() - least);
    with(Body::Bytes(
        format!("{} read, {}.", upload.received(), rest > 0).into_bytes(),
    ))
}
