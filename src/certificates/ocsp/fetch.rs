//! Asks a responder by HTTP (RFC 6960, appendix A), on a thread that lives as long as the question.
//!
//! Plain HTTP, as the authority names it in the certificate: what comes back is signed. Whoever asks waits
//! for a descriptor to be readable, and never for the network.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use crate::http::h1::HeadLimits;
use crate::http::h1::encode::ResponseFraming;
use crate::http::h1::response::{Asked, HeadKind, ResponseReader};
use crate::http::types::Method;
use crate::http::uri::parse_authority;
use crate::net::tls::ocsp::RESPONSE_MAX;

/// Most bytes of an answer, head included.
const ANSWER_MAX: usize = RESPONSE_MAX + (8 << 10);

const LIMITS: HeadLimits = HeadLimits {
    line_max: 1024,
    section_max: 8 << 10,
    fields_max: 64,
};

/// What the thread says first.
const GOT: u8 = b'+';
const FAILED: u8 = b'-';

/// Where a responder is: the parts of an `http` URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Host and port, as they stand in the URL.
    authority: &'a str,
    host: &'a str,
    port: u16,
    /// Begins with `/`, or is empty for that.
    target: &'a str,
}

impl<'a> Place<'a> {
    /// Takes a URL apart; `None` where it is none of HTTP, or has what would not stay one line.
    pub fn read(url: &'a str) -> Option<Self> {
        if !url.bytes().all(|byte| byte.is_ascii_graphic()) || url.len() > 512 {
            return None;
        }
        let (scheme, rest) = url.split_at_checked(7)?;
        if !scheme.eq_ignore_ascii_case("http://") {
            return None;
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if target.starts_with('?') {
            return None;
        }
        parse_authority(authority.as_bytes()).ok()?;
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            _ => (authority, 80),
        };
        let host = host
            .strip_prefix('[')
            .map_or(host, |host| host.trim_end_matches(']'));
        (!host.is_empty() && port > 0).then_some(Self {
            authority,
            host,
            port,
            target,
        })
    }
}

/// A question on its way.
#[derive(Debug)]
pub struct Fetch {
    socket: UnixStream,
    got: Vec<u8>,
}

impl Fetch {
    /// Asks; all of it takes at most `patience`, but for a name that the system looks up for longer.
    ///
    /// # Errors
    /// When there is no thread or no socket for it.
    pub fn begin(url: String, request: Vec<u8>, patience: Duration) -> io::Result<Self> {
        let (socket, mut other) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        // Who doesn't wait any more doesn't hold the thread.
        other.set_write_timeout(Some(patience))?;
        thread::Builder::new()
            .name("ocsp".to_owned())
            .spawn(move || {
                let (mark, text) = match ask(&url, &request, patience) {
                    Ok(response) => (GOT, response),
                    Err(why) => (FAILED, why.into_bytes()),
                };
                let _ = other.write_all(&[&[mark][..], &text].concat());
            })?;
        Ok(Self {
            socket,
            got: Vec::new(),
        })
    }

    /// The response, or why there is none, to follow the name of the responder. Once ready it is not to be
    /// asked again.
    pub fn poll(&mut self) -> Poll<Result<Vec<u8>, String>> {
        let mut part = [0; 4096];
        loop {
            match self.socket.read(&mut part) {
                Ok(0) => break,
                Ok(bytes) => self.got.extend_from_slice(&part[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(_) => break,
            }
        }
        let got = std::mem::take(&mut self.got);
        Poll::Ready(match got.split_first() {
            Some((&GOT, response)) => Ok(response.to_vec()),
            Some((_, why)) => Err(String::from_utf8_lossy(why).into_owned()),
            None => Err("could not be asked: the thread has ended".to_owned()),
        })
    }
}

impl AsFd for Fetch {
    /// Readable when [`Self::poll`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks and waits.
fn ask(url: &str, request: &[u8], patience: Duration) -> Result<Vec<u8>, String> {
    let deadline = Instant::now() + patience;
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err("took too long".to_owned()),
            false => Ok(left),
        }
    };
    let place = Place::read(url).ok_or("is not a URL of HTTP")?;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "took too long".to_owned(),
        _ => format!("can't be reached: {error}"),
    };
    let addresses = (place.host, place.port).to_socket_addrs().map_err(failed)?;
    let mut last = Err("has no address".to_owned());
    for address in addresses {
        last = TcpStream::connect_timeout(&address, left()?).map_err(failed);
        if last.is_ok() {
            break;
        }
    }
    let mut socket = last?;
    // HTTP/1.0, whose answers have no chunks and end with the connection.
    let target = if place.target.is_empty() {
        "/"
    } else {
        place.target
    };
    let head = format!(
        "POST {target} HTTP/1.0\r\nHost: {}\r\nContent-Type: application/ocsp-request\r\n\
         Accept: application/ocsp-response\r\nContent-Length: {}\r\n\r\n",
        place.authority,
        request.len()
    );
    socket.set_write_timeout(Some(left()?)).map_err(failed)?;
    let message = [head.as_bytes(), request].concat();
    socket.write_all(&message).map_err(failed)?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        socket.set_read_timeout(Some(left()?)).map_err(failed)?;
        let bytes = match socket.read(&mut part) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        answer.extend_from_slice(&part[..bytes]);
        if answer.len() > ANSWER_MAX {
            return Err(format!("answered with more than {ANSWER_MAX} bytes"));
        }
        if let Some(content) = content(&answer, bytes == 0)? {
            return Ok(content);
        }
    }
}

/// The content of an answer, if that is whole. `is_over`: nothing follows.
fn content(answer: &[u8], is_over: bool) -> Result<Option<Vec<u8>>, String> {
    let mut reader = ResponseReader::new(Asked::method(Method::Post));
    let head = reader.head(answer, &LIMITS);
    let head = head.map_err(|error| format!("doesn't speak HTTP: {error}"))?;
    let Some(head) = head else {
        return match is_over {
            true => Err("broke off".to_owned()),
            false => Ok(None),
        };
    };
    if head.kind != HeadKind::Final || head.response.status.0 != 200 {
        return Err(format!("answered {}", head.response.status.0));
    }
    let content = &answer[head.length..];
    match head.response.framing {
        ResponseFraming::Length(length) => match usize::try_from(length) {
            Ok(length) if length <= RESPONSE_MAX => match content.get(..length) {
                Some(content) => Ok(Some(content.to_vec())),
                None if is_over => Err("broke off".to_owned()),
                None => Ok(None),
            },
            _ => Err(format!("answered with {length} bytes")),
        },
        ResponseFraming::Close if is_over => Ok(Some(content.to_vec())),
        ResponseFraming::Close => Ok(None),
        ResponseFraming::None | ResponseFraming::Chunked => {
            Err("answered in a form that wasn't asked for".to_owned())
        }
    }
}
