//! What the proxies stand in front of: a small server on the generator's core.
//!
//! It answers `GET /LEN.bin` with a file, and a WebSocket upgrade of `/tunnel` with a tunnel whose first
//! bytes are its own. It is epoll and a precomputed head for each file, so that most of that core is the
//! generator's; it speaks HTTP/1.1 only as far as a proxy needs it to.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::sendfile;
use rustix::io::Errno;
use rustix::net::sockopt::{set_tcp_congestion, set_tcp_nodelay};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, listen, recv, send};

use crate::body;

/// The target that is upgraded.
pub const TUNNEL: &str = "/tunnel";
/// Bytes that the backend sends first in a tunnel: [`body::byte_at`] of a file of that length.
pub const GREETING_LEN: u64 = 64;
/// The key of RFC 6455 §1.3, which the generator sends, and what answers it there.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Files up to this many bytes are sent with their head in one call, longer ones by sendfile.
const COPIED_MAX: u64 = 32 << 10;
/// Longest request head that is taken, in bytes.
const HEAD_MAX: usize = 8192;
/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;
const EVENTS: usize = 256;
/// Names the listener in events: no descriptor has this number.
const LISTENER: u64 = u64::MAX;

/// What `versus backend` is told.
#[derive(Args, Clone, Debug)]
pub struct BackendOptions {
    /// Where to listen; loopback only
    #[arg(long)]
    listen: SocketAddr,
    /// The directory of the files
    #[arg(long)]
    root: PathBuf,
    /// The length of a file to serve
    #[arg(long = "body", value_name = "BYTES")]
    bodies: Vec<u64>,
}

/// Serves until it is killed.
///
/// # Errors
/// When the files aren't there, the address can't be taken or epoll fails.
pub fn run(options: &BackendOptions) -> io::Result<std::convert::Infallible> {
    if !options.listen.ip().is_loopback() {
        return Err(io::Error::other("only loopback is measured"));
    }
    let answers = Answers::load(&options.root, &options.bodies)?;
    serve(TcpListener::bind(options.listen)?, &answers)
}

/// Everything that is answered.
struct Answers {
    /// By target.
    files: Vec<(String, Answer)>,
    tunnel: Answer,
    missing: Answer,
}

/// One response.
struct Answer {
    /// The head, and the body where it is short.
    bytes: Vec<u8>,
    /// The rest of the body.
    file: Option<(File, u64)>,
    after: After,
}

/// What a connection is after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// It waits for the next request.
    Request,
    /// What comes belongs to nobody and is dropped.
    Tunnel,
    Close,
}

impl Answers {
    fn load(root: &Path, bodies: &[u64]) -> io::Result<Self> {
        let mut files = Vec::new();
        for &len in bodies {
            let name = body::file_name(len);
            let path = root.join(&name);
            // Fields as a server of files sends them; a constant date, as nobody here asks for the time.
            let head = format!(
                "HTTP/1.1 200 OK\r\nServer: backend\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
                 Content-Type: application/octet-stream\r\nContent-Length: {len}\r\n\
                 Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nETag: \"{len:x}\"\r\n\
                 Accept-Ranges: bytes\r\n\r\n"
            );
            let mut bytes = head.into_bytes();
            let file = if len <= COPIED_MAX {
                bytes.extend(std::fs::read(&path)?);
                None
            } else {
                Some((File::open(&path)?, len))
            };
            let answer = Answer {
                bytes,
                file,
                after: After::Request,
            };
            files.push((format!("/{name}"), answer));
        }
        let mut tunnel = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
        )
        .into_bytes();
        tunnel.extend((0..GREETING_LEN).map(|offset| body::byte_at(GREETING_LEN, offset)));
        let missing = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let answer = |bytes, after| Answer {
            bytes,
            file: None,
            after,
        };
        Ok(Self {
            files,
            tunnel: answer(tunnel, After::Tunnel),
            missing: answer(missing.into(), After::Close),
        })
    }

    /// What answers this head, which ends with an empty line.
    fn answer(&self, head: &[u8]) -> (&Answer, After) {
        let text = std::str::from_utf8(head).unwrap_or_default();
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default();
        let target = line
            .strip_prefix("GET ")
            .and_then(|rest| rest.strip_suffix(" HTTP/1.1"));
        let Some(target) = target else {
            return (&self.missing, After::Close);
        };
        let fields = || lines.clone().filter_map(|line| line.split_once(':'));
        let said = |name: &str, word: &str| {
            fields().any(|(field, value)| {
                field.eq_ignore_ascii_case(name)
                    && value
                        .split(',')
                        .any(|one| one.trim().eq_ignore_ascii_case(word))
            })
        };
        if target == TUNNEL {
            let asked = said("upgrade", "websocket")
                && said("connection", "upgrade")
                && said("sec-websocket-version", "13")
                && said("sec-websocket-key", KEY);
            let answer = if asked { &self.tunnel } else { &self.missing };
            return (answer, answer.after);
        }
        match self.files.iter().find(|(name, _)| name == target) {
            Some((_, answer)) if said("connection", "close") => (answer, After::Close),
            Some((_, answer)) => (answer, answer.after),
            None => (&self.missing, After::Close),
        }
    }
}

/// One connection.
struct Connection<'a> {
    socket: OwnedFd,
    /// The beginning of a request whose end hasn't come, and what came behind one being answered.
    received: Vec<u8>,
    sending: Option<Sending<'a>>,
    tunnel: bool,
}

struct Sending<'a> {
    answer: &'a Answer,
    /// Bytes of head and short body that are sent.
    sent: usize,
    /// Bytes of the file that are sent.
    offset: u64,
    after: After,
}

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Until there is an event for it.
    Wait,
    End,
}

fn serve(listener: TcpListener, answers: &Answers) -> io::Result<std::convert::Infallible> {
    // The kernel takes a second listen as a change of the backlog.
    listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    // Inherited by what is accepted: some systems' choice is paced by timers, and a backend that waits
    // for a timer would be what is measured.
    set_tcp_congestion(&listener, "reno")?;
    set_tcp_nodelay(&listener, true)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(
        &epoll,
        &listener,
        EventData::new_u64(LISTENER),
        EventFlags::IN,
    )?;
    let mut connections: Vec<Option<Connection<'_>>> = Vec::new();
    let mut events = Vec::with_capacity(EVENTS);
    let mut scratch = Vec::with_capacity(2 * HEAD_MAX);
    loop {
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events.drain(..) {
            // The kernel's structure is packed: fields are copied out.
            let (key, flags) = (event.data.u64(), event.flags);
            if key == LISTENER {
                accept_all(&listener, &epoll, &mut connections)?;
                continue;
            }
            let ending = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
            let ending = flags.intersects(ending);
            let place = &mut connections[key as usize];
            if let Some(connection) = place
                && connection.advance(answers, &mut scratch, ending) == Next::End
            {
                // Closing takes it out of epoll.
                *place = None;
            }
        }
    }
}

/// Takes all connections that wait, each under its descriptor's number.
fn accept_all<'a>(
    listener: &TcpListener,
    epoll: &OwnedFd,
    connections: &mut Vec<Option<Connection<'a>>>,
) -> io::Result<()> {
    loop {
        match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(socket) => {
                let place = socket.as_raw_fd() as usize;
                // Edges, so that no connection is ever registered anew.
                let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
                epoll::add(epoll, &socket, EventData::new_u64(place as u64), flags)?;
                if connections.len() <= place {
                    connections.resize_with(place + 1, || None);
                }
                connections[place] = Some(Connection {
                    socket,
                    received: Vec::new(),
                    sending: None,
                    tunnel: false,
                });
            }
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl<'a> Connection<'a> {
    /// Does all that can be done without waiting. `ending`: the event said that the peer is done.
    fn advance(&mut self, answers: &'a Answers, scratch: &mut Vec<u8>, ending: bool) -> Next {
        let mut drained = false;
        loop {
            match self.send() {
                Ok(Some(After::Close)) | Err(_) => return Next::End,
                Ok(Some(After::Tunnel)) => {
                    self.tunnel = true;
                    self.received = Vec::new();
                }
                Ok(Some(After::Request)) => {}
                Ok(None) => return Next::Wait,
            }
            if self.begin(answers) {
                continue;
            }
            if drained {
                return Next::Wait;
            }
            scratch.clear();
            let room = scratch.capacity();
            match recv(&self.socket, spare_capacity(scratch), RecvFlags::empty()) {
                Ok((_, 0)) => return Next::End,
                Ok(_) if self.tunnel => {}
                Ok(_) => self.received.extend_from_slice(scratch),
                Err(Errno::AGAIN) => return Next::Wait,
                Err(_) => return Next::End,
            }
            if self.received.len() > HEAD_MAX {
                return Next::End;
            }
            // A short read took all there was, and the next edge tells of more; but the end of the
            // stream may have come with this one.
            drained = scratch.len() < room && !ending;
        }
    }

    /// Begins to answer the request that is there, if one is there whole.
    fn begin(&mut self, answers: &'a Answers) -> bool {
        let end = self
            .received
            .windows(4)
            .position(|four| four == b"\r\n\r\n");
        let Some(end) = end else {
            return false;
        };
        let (answer, after) = answers.answer(&self.received[..end + 2]);
        self.received.drain(..end + 4);
        self.sending = Some(Sending {
            answer,
            sent: 0,
            offset: 0,
            after,
        });
        true
    }

    /// Sends what there is to send. None when the socket is full, else what the connection is then.
    fn send(&mut self) -> io::Result<Option<After>> {
        let Some(sending) = &mut self.sending else {
            return Ok(Some(After::Request));
        };
        let flags = match sending.answer.file {
            Some(_) => SendFlags::NOSIGNAL | SendFlags::MORE,
            None => SendFlags::NOSIGNAL,
        };
        while sending.sent < sending.answer.bytes.len() {
            match send(&self.socket, &sending.answer.bytes[sending.sent..], flags) {
                Ok(sent) => sending.sent += sent,
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        if let Some((file, len)) = &sending.answer.file {
            while sending.offset < *len {
                let left = (len - sending.offset) as usize;
                match sendfile(&self.socket, file, Some(&mut sending.offset), left) {
                    Ok(0) => return Err(io::Error::other("the file became shorter")),
                    Ok(_) => {}
                    Err(Errno::AGAIN) => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let after = sending.after;
        self.sending = None;
        Ok(Some(after))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpStream};
    use std::thread;

    use super::*;

    const SMALL: u64 = 1000;
    const LARGE: u64 = 3 << 20;

    /// A backend that ends with the test process.
    fn start() -> SocketAddr {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for len in [SMALL, LARGE] {
            body::write_file(directory.path(), len).expect("a file");
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("its address");
        let answers = Answers::load(directory.path(), &[SMALL, LARGE]).expect("the files");
        thread::spawn(move || serve(listener, &answers));
        address
    }

    fn read_response(stream: &mut TcpStream, body_len: u64) -> (String, Vec<u8>) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a head");
            head.push(byte[0]);
        }
        let mut body = vec![0; body_len as usize];
        stream.read_exact(&mut body).expect("a body");
        (String::from_utf8(head).expect("text"), body)
    }

    fn get(len: u64, fields: &str) -> String {
        format!("GET /{len}.bin HTTP/1.1\r\nHost: x\r\n{fields}\r\n")
    }

    #[test]
    fn answers_pipelined_requests_in_whatever_pieces_they_come() {
        let address = start();
        let two = get(SMALL, "") + &get(LARGE, "");
        for cut in [1, 30, two.len() / 2, two.len() - 1] {
            let mut stream = TcpStream::connect(address).expect("a connection");
            stream.set_nodelay(true).expect("a socket");
            stream.write_all(&two.as_bytes()[..cut]).expect("a part");
            thread::yield_now();
            stream.write_all(&two.as_bytes()[cut..]).expect("the rest");
            for len in [SMALL, LARGE] {
                let (head, body) = read_response(&mut stream, len);
                assert!(head.contains(&format!("Content-Length: {len}\r\n")));
                assert!(body::matches(len, 0, &body), "{len} bytes, cut at {cut}");
            }
        }
    }

    #[test]
    fn closes_where_it_is_asked_to_and_where_there_is_nothing() {
        let address = start();
        for (request, status) in [
            (get(SMALL, "Connection: close\r\n"), "200"),
            (get(77, ""), "404"),
            ("POST / HTTP/1.1\r\n\r\n".to_owned(), "404"),
            (format!("GET {TUNNEL} HTTP/1.1\r\nHost: x\r\n\r\n"), "404"),
        ] {
            let mut stream = TcpStream::connect(address).expect("a connection");
            stream.write_all(request.as_bytes()).expect("a request");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).expect("a response and an end");
            assert!(all.starts_with(format!("HTTP/1.1 {status}").as_bytes()));
        }
    }

    #[test]
    fn an_upgrade_is_a_tunnel_that_outlives_what_is_said_in_it() {
        let mut stream = TcpStream::connect(start()).expect("a connection");
        let request = format!(
            "GET {TUNNEL} HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\n\
             Upgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("a request");
        let (head, greeting) = read_response(&mut stream, GREETING_LEN);
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT));
        assert!(body::matches(GREETING_LEN, 0, &greeting));
        // A request in a tunnel is no request: nothing answers it.
        stream
            .write_all(get(SMALL, "").as_bytes())
            .expect("an open tunnel");
        stream
            .shutdown(std::net::Shutdown::Write)
            .expect("an open tunnel");
        assert_eq!(stream.read(&mut [0; 64]).expect("an end"), 0);
    }
}
