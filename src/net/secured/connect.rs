//! The handshake with a server: what makes a connected socket a connection under TLS.

use std::fmt;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::Secured;
use crate::net::recv::Receiver;
use crate::net::send::{Sender, UNHURRIED};
use crate::net::tls::{ClientSettings, Failure, PeerName, ServerFailure};
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::task::Pooled;

/// Why a handshake with a server came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeError {
    /// The kind of failure.
    pub kind: ServerFailure,
    /// More of it, in words; some of them may be the server's.
    pub detail: Option<Box<str>>,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TLS: {}", self.kind)?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for HandshakeError {}

impl From<ServerFailure> for HandshakeError {
    fn from(kind: ServerFailure) -> Self {
        Self { kind, detail: None }
    }
}

/// What a handshake waits for.
enum Event {
    /// The socket has something to take.
    Blocked,
    /// It is over.
    Open,
    /// The server speaks unasked.
    Unasked,
    End,
}

/// Secures the connection to a server, which has until `deadline`. `header` goes first, in the clear. What
/// comes out receives plaintext, and says by what it is secured ([`Receiver::secured`]). It waits in a
/// block of the core's pool.
///
/// # Errors
/// See [`ServerFailure`]; the socket is of no more use.
pub fn connect<'a>(
    core: &'a Core,
    socket: Fd,
    (settings, name): (&'a ClientSettings, &'a PeerName),
    header: Vec<u8>,
    deadline: Instant,
) -> Pooled<'a, Result<Receiver, HandshakeError>> {
    let pool = core.futures().clone();
    pool.boxed(|| async move {
        let secured = Secured::client((core, &socket), (settings, name), header);
        let secured = secured.map_err(|failure| HandshakeError::from(of_server(failure)))?;
        let mut receiver = Receiver::new(core, socket.clone());
        receiver.secure(Rc::clone(&secured));
        let mut sender = Sender::new(core, socket, UNHURRIED);
        sender.secure(Rc::clone(&secured));
        secured.push();
        let mut timer = Timer::new(core);
        timer.set(deadline);
        loop {
            let next = || {
                if secured.is_pending() {
                    return Poll::Ready(Event::Blocked);
                }
                if secured.is_open() {
                    return Poll::Ready(Event::Open);
                }
                match receiver.poll_next() {
                    Poll::Ready(Ok(_)) => Poll::Ready(Event::Unasked),
                    Poll::Ready(Err(_)) => Poll::Ready(Event::End),
                    Poll::Pending if secured.is_pending() => Poll::Ready(Event::Blocked),
                    Poll::Pending if secured.is_open() => Poll::Ready(Event::Open),
                    Poll::Pending => Poll::Pending,
                }
            };
            match timer.bound(next).await {
                Some(Event::Open) => break,
                Some(Event::Unasked) => return Err(ServerFailure::Protocol.into()),
                Some(Event::End) => return Err(why(&secured).unwrap_or(ServerFailure::Left.into())),
                Some(Event::Blocked) => {
                    let mut unhurried = Timer::new(core);
                    let mut settling = pin!(sender.settle(&mut unhurried));
                    let mut context = Context::from_waker(Waker::noop());
                    let settled = timer.bound(|| settling.as_mut().poll(&mut context)).await;
                    match settled {
                        Some(Ok(())) => {}
                        Some(Err(_)) => return Err(ServerFailure::Left.into()),
                        None => return Err(ServerFailure::TooSlow.into()),
                    }
                }
                None => return Err(ServerFailure::TooSlow.into()),
            }
        }
        if let Some(done) = secured.handshake() {
            tracing::debug!(
                %name,
                version = done.version,
                suite = done.suite,
                group = done.group,
                resumed = done.resumed,
                "TLS handshake with a server done"
            );
        }
        Ok(receiver)
    })
}

/// What has ended a connection to a server, as far as TLS has.
pub fn why(secured: &Secured) -> Option<HandshakeError> {
    secured.failure().map(|failure| HandshakeError {
        kind: of_server(failure),
        detail: secured.detail(),
    })
}

fn of_server(failure: Failure) -> ServerFailure {
    match failure {
        Failure::Server(failure) => failure,
        Failure::TooMuch => ServerFailure::Protocol,
        _ => ServerFailure::Ours,
    }
}
