//! Handlers for the tests of streaming.

use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::relaying::{fetch, part, pass};
use super::{Handlers, Seen};
use crate::http::session::{
    Body, BodyStream, Cut, Piece, Response, Service, Trailers, Tunnel, TunnelClient, TunnelEnd,
    Tunnelling, Upload, Upstreamed,
};
use crate::http::types::{FieldName, FieldValue, Framing, Request, ResponseHead};
use crate::net::recv::End;
use crate::runtime::executor::Core;
use crate::runtime::fd::Fd;
use crate::runtime::future::Timer;
use crate::runtime::op::{Op, Output};

pub(super) fn with(body: Body) -> Response {
    let head = ResponseHead::new(200);
    Response { head, body }
}

/// A stream, counted while it lives.
fn stream<B: BodyStream + 'static>(seen: &Rc<Seen>, stream: B) -> Response {
    seen.streams.set(seen.streams.get() + 1);
    let counted = Counted {
        stream,
        seen: Rc::clone(seen),
    };
    with(Body::Stream(Box::new(counted)))
}

/// Answers as the first segment of the path says; the second is a number where one is needed.
pub(super) async fn answer(
    handlers: &Handlers,
    request: &Request<'_>,
    upload: &mut Upload<'_>,
) -> Response {
    let seen = &handlers.seen;
    let mut segments = request.path.split('/').skip(1);
    let kind = segments.next().unwrap_or_default();
    let number: u64 = segments.next().map_or(0, |text| text.parse().unwrap());
    match kind {
        "ok" => with(Body::Bytes(b"ok.".to_vec())),
        "echo" => {
            let length = match upload.framing() {
                Framing::Length(length) => Some(length),
                Framing::None => Some(0),
                Framing::Chunked => None,
            };
            stream(seen, Echo { length })
        }
        "count" => count(handlers, upload).await,
        "slow" => slow(handlers, upload, number).await,
        "hints" => {
            let expects = upload.expects_continue();
            let hints = ResponseHead::new(103).with("Link", "</a>");
            let added = (0..number).filter(|_| upload.interim(&hints)).count();
            let flushed = std::future::poll_fn(|_| upload.poll_flush()).await;
            with(Body::Bytes(
                format!("{added} {expects} {}.", flushed.is_ok()).into_bytes(),
            ))
        }
        "relay" => stream(seen, fetch(handlers, number, true).await),
        "relayed" => stream(seen, fetch(handlers, number, false).await),
        "pass" => pass(handlers, upload, number).await,
        "part" => part(handlers, upload, number).await,
        "cut" => stream(seen, Script::new(vec!["begin"], Some("backend gone"), None)),
        "short" => stream(seen, Script::new(vec!["begin"], None, Some(9))),
        "long" => stream(seen, Script::new(vec!["begin", "more"], None, Some(7))),
        "whole" => stream(seen, Script::new(vec!["begin", "", "end."], None, None)),
        "exact" => stream(seen, Script::new(vec!["begin", "end."], None, Some(9))),
        "many" => stream(
            seen,
            Many {
                left: number,
                seen: Rc::clone(seen),
            },
        ),
        "noted" => {
            upload.note(Upstreamed {
                address: "192.0.2.1:80".to_owned(),
                tries: 1,
                ..Upstreamed::default()
            });
            stream(seen, Script::new(vec!["begin"], None, Some(5)))
        }
        "absent" => with(Body::Absent((number > 0).then_some(number))),
        "gone" => match std::future::poll_fn(|_| upload.poll_gone()).await {
            End::Closed => with(Body::Bytes(b"half.".to_vec())),
            End::Broken(_) => with(Body::Bytes(b"broken.".to_vec())),
        },
        "tunnel" => {
            let head = ResponseHead::new(101).with("Upgrade", "echo");
            let seen = Rc::clone(seen);
            let body = Body::Tunnel(Box::new(EchoTunnel { seen }));
            Response { head, body }
        }
        _ => Response::empty(404),
    }
}

/// Reads all of the body and says how much that was.
async fn count(handlers: &Handlers, upload: &mut Upload<'_>) -> Response {
    let mut bytes = 0;
    while let Some(chunk) = upload.chunk().await {
        match chunk.map(<[u8]>::len) {
            Ok(len) => {
                bytes += len;
                upload.consume(len);
            }
            Err(error) => return handlers.refusal(error.status()),
        }
    }
    assert!(upload.is_ended() && upload.remaining() == 0);
    assert_eq!(upload.received(), bytes as u64);
    with(Body::Bytes(format!("{bytes} read.").into_bytes()))
}

/// As `count`, but takes one byte in so many seconds, as a slow backend does.
async fn slow(handlers: &Handlers, upload: &mut Upload<'_>, seconds: u64) -> Response {
    let mut bytes = 0;
    loop {
        let mut timer = Timer::new(&handlers.core);
        timer.set(handlers.core.now() + Duration::from_secs(seconds));
        timer.expired().await;
        match upload.chunk().await.map(|chunk| chunk.map(drop)) {
            None => break,
            Some(Ok(())) => upload.consume(1),
            Some(Err(error)) => return handlers.refusal(error.status()),
        }
        bytes += 1;
    }
    with(Body::Bytes(format!("{bytes} read.").into_bytes()))
}

struct Counted<B> {
    stream: B,
    seen: Rc<Seen>,
}

impl<B: BodyStream> BodyStream for Counted<B> {
    fn poll_next(&mut self, upload: &mut Upload<'_>) -> Poll<Option<Result<Piece, Cut>>> {
        self.stream.poll_next(upload)
    }

    fn poll_upload(&mut self, upload: &mut Upload<'_>) {
        self.stream.poll_upload(upload);
    }

    fn length(&self) -> Option<u64> {
        self.stream.length()
    }

    fn trailers(&mut self) -> Trailers {
        self.stream.trailers()
    }
}

impl<B> Drop for Counted<B> {
    fn drop(&mut self) {
        self.seen.streams.set(self.seen.streams.get() - 1);
    }
}

/// The request's body, as it comes, and a trailer field.
struct Echo {
    length: Option<u64>,
}

impl BodyStream for Echo {
    fn poll_next(&mut self, upload: &mut Upload<'_>) -> Poll<Option<Result<Piece, Cut>>> {
        let piece = match upload.poll_chunk() {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => {
                return Poll::Ready(Some(Err(Cut {
                    reason: error.reason(),
                })));
            }
            Poll::Ready(Some(Ok(chunk))) => chunk.to_vec(),
        };
        upload.consume(piece.len());
        Poll::Ready(Some(Ok(Piece::Bytes(piece))))
    }

    fn length(&self) -> Option<u64> {
        self.length
    }

    fn trailers(&mut self) -> Trailers {
        let name = FieldName::Static("X-End");
        vec![(name, FieldValue::Static("yes"))]
    }
}

/// Given pieces, and perhaps a cut.
struct Script {
    pieces: std::vec::IntoIter<&'static str>,
    cut: Option<&'static str>,
    length: Option<u64>,
}

impl Script {
    fn new(pieces: Vec<&'static str>, cut: Option<&'static str>, length: Option<u64>) -> Self {
        Self {
            pieces: pieces.into_iter(),
            cut,
            length,
        }
    }
}

impl BodyStream for Script {
    fn poll_next(&mut self, _: &mut Upload<'_>) -> Poll<Option<Result<Piece, Cut>>> {
        let piece = self.pieces.next();
        let piece = piece.map(|text| Ok(Piece::Bytes(text.as_bytes().to_vec())));
        let cut = || self.cut.map(|reason| Err(Cut { reason }));
        Poll::Ready(piece.or_else(cut))
    }

    fn length(&self) -> Option<u64> {
        self.length
    }
}

/// Bytes in a piece of [`Many`].
pub(super) const MANY_PIECE: usize = 16 << 10;

/// Many pieces, always at hand; reads its upload aside.
struct Many {
    left: u64,
    seen: Rc<Seen>,
}

impl BodyStream for Many {
    fn poll_next(&mut self, upload: &mut Upload<'_>) -> Poll<Option<Result<Piece, Cut>>> {
        self.poll_upload(upload);
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        self.seen.pieces.set(self.seen.pieces.get() + 1);
        Poll::Ready(Some(Ok(Piece::Bytes(vec![b'm'; MANY_PIECE]))))
    }

    fn poll_upload(&mut self, upload: &mut Upload<'_>) {
        while let Poll::Ready(Some(Ok(chunk))) = upload.poll_chunk() {
            let len = chunk.len();
            upload.consume(len);
            self.seen
                .uploaded
                .set(self.seen.uploaded.get() + len as u64);
        }
    }

    fn length(&self) -> Option<u64> {
        None
    }
}

/// Gives back what comes, and ends its direction when the client does.
struct EchoTunnel {
    seen: Rc<Seen>,
}

/// An open tunnel.
struct Open(Rc<Seen>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.tunnels.set(self.0.tunnels.get() - 1);
    }
}

impl Tunnel for EchoTunnel {
    fn run<'t>(self: Box<Self>, client: TunnelClient<'t>) -> Tunnelling<'t> {
        self.seen.tunnels.set(self.seen.tunnels.get() + 1);
        let open = Open(Rc::clone(&self.seen));
        Box::pin(async move {
            let _open = open;
            let mut end = TunnelEnd::default();
            let mut bytes = client.early;
            loop {
                end.received += bytes.len() as u64;
                end.sent += bytes.len() as u64;
                let sent = match client.sender.is_secured() {
                    true => {
                        let mut timer = Timer::new(client.core);
                        client.sender.buffer(&mut timer, bytes, false).await.is_ok()
                    }
                    false => send(client.core, client.socket, bytes).await,
                };
                if !sent {
                    return broken(end);
                }
                bytes = match std::future::poll_fn(|_| client.receiver.poll_next()).await {
                    Ok(next) => next.to_vec(),
                    Err(End::Closed) => break,
                    Err(End::Broken(_)) => return broken(end),
                };
            }
            let mut timer = Timer::new(client.core);
            let _ = client.sender.finish(&mut timer).await;
            client.core.shut_down_write(client.socket);
            end
        })
    }
}

/// Sends all of it; says whether that went well.
async fn send(core: &Core, socket: &Fd, mut data: Vec<u8>) -> bool {
    let mut from = 0;
    while from < data.len() {
        let sent = core.once(Op::Send {
            socket: socket.clone(),
            data,
            from,
            more: false,
        });
        let sent = sent.await;
        let (Ok(bytes), Output::Data(back)) = (sent.result, sent.output) else {
            return false;
        };
        data = back;
        from += bytes as usize;
    }
    true
}

fn broken(end: TunnelEnd) -> TunnelEnd {
    TunnelEnd {
        broken: Some("tunnel broken"),
        ..end
    }
}
