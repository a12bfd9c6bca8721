//! Asks name servers, by UDP and where an answer is cut by TCP (RFC 1035 §4.2), within a deadline.
//!
//! Calls block: this is for a thread of its own. A question has a socket of its own, whose port the
//! kernel takes at random as it connects, and an id that can't be guessed. Sockets are connected and
//! never bound: so nobody else's datagrams arrive, a name server that isn't there is noticed at once, and
//! the sandbox may refuse bind(2).

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::dns::{self, Services, Unusable};
use super::settings::Settings;

/// Largest answer by UDP: larger ones than 512 bytes aren't asked for (RFC 1035 §4.2.1), but taken.
const DATAGRAM_MAX: usize = 4096;

/// Messages of others that are passed over while one server is waited for.
const STRAY_MAX: usize = 100;

/// Why name servers gave no answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum DnsError {
    /// It can't be asked for: a label is longer than 63 bytes, or all are longer than 255.
    BadName,
    /// What the last server that was asked said, or didn't.
    Server(SocketAddr, Failure),
    /// Time was up before one could be asked.
    NoTime,
}

/// What went wrong with one server.
#[derive(Debug)]
#[non_exhaustive]
pub enum Failure {
    /// It said nothing that helps.
    Answer(Unusable),
    /// It can't be talked to; `WouldBlock` and `TimedOut`: it didn't answer in time.
    Io(io::Error),
}

impl fmt::Display for DnsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadName => f.write_str("it is no name that DNS can have"),
            Self::NoTime => f.write_str("no time was left to ask a name server"),
            Self::Server(server, Failure::Answer(unusable)) => {
                write!(f, "name server {}: {unusable}", server.ip())
            }
            Self::Server(server, Failure::Io(error)) if is_late(error) => {
                write!(f, "name server {}: no answer in time", server.ip())
            }
            Self::Server(server, Failure::Io(error)) => {
                write!(f, "name server {}: {error}", server.ip())
            }
        }
    }
}

impl std::error::Error for DnsError {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Unusable> for Failure {
    fn from(unusable: Unusable) -> Self {
        Self::Answer(unusable)
    }
}

/// Asks for the SRV records of a name: one server after the other, and all of them again, until one has
/// said what is so or `deadline` has passed.
///
/// # Errors
/// What the last one said.
pub fn ask(settings: &Settings, name: &str, deadline: Instant) -> Result<Services, DnsError> {
    let count = settings.servers.len();
    let first = match settings.rotate {
        true => usize::from(unguessable()) % count.max(1),
        false => 0,
    };
    let mut last = DnsError::NoTime;
    for turn in 0..count * settings.attempts as usize {
        let server = settings.servers[(first + turn) % count];
        let Some(left) = left(deadline) else {
            break;
        };
        let until = Instant::now() + left.min(settings.timeout);
        let id = unguessable();
        let query = dns::query(id, name).ok_or(DnsError::BadName)?;
        let answer = match settings.tcp {
            true => by_tcp(server, &query, (id, name), until),
            false => by_udp(server, &query, (id, name), until),
        };
        match answer {
            Ok(services) => return Ok(services),
            // It is so, whomever one asks.
            Err(Failure::Answer(said @ (Unusable::NoSuchName | Unusable::NoRecords))) => {
                return Err(DnsError::Server(server, said.into()));
            }
            Err(failure) => last = DnsError::Server(server, failure),
        }
    }
    Err(last)
}

/// What is left until then; `None` when nothing is.
pub fn left(deadline: Instant) -> Option<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(left)
}

/// What was asked: the id and the name.
type Asked<'a> = (u16, &'a str);

fn by_udp(
    server: SocketAddr,
    query: &[u8],
    (id, name): Asked<'_>,
    until: Instant,
) -> Result<Services, Failure> {
    let socket = Socket::new(
        Domain::for_address(server),
        Type::DGRAM.cloexec(),
        Some(Protocol::UDP),
    )?;
    socket.connect(&server.into())?;
    socket.send(query)?;
    let mut buffer = [0; DATAGRAM_MAX];
    for _ in 0..STRAY_MAX {
        socket.set_read_timeout(Some(must_be_left(until)?))?;
        let count = match (&socket).read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        match dns::read(&buffer[..count], id, name) {
            Err(Unusable::NotOurs) => {}
            Err(Unusable::Truncated) => return by_tcp(server, query, (id, name), until),
            answer => return Ok(answer?),
        }
    }
    Err(Unusable::NotOurs.into())
}

fn by_tcp(
    server: SocketAddr,
    query: &[u8],
    (id, name): Asked<'_>,
    until: Instant,
) -> Result<Services, Failure> {
    let mut stream = TcpStream::connect_timeout(&server, must_be_left(until)?)?;
    stream.set_write_timeout(Some(must_be_left(until)?))?;
    let length =
        u16::try_from(query.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    stream.write_all(&[&length.to_be_bytes(), query].concat())?;
    let mut length = [0; 2];
    read_exact(&mut stream, &mut length, until)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    read_exact(&mut stream, &mut message, until)?;
    Ok(dns::read(&message, id, name)?)
}

/// Fills the buffer before the time is up, however slowly bytes come.
fn read_exact(stream: &mut TcpStream, mut buffer: &mut [u8], until: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        stream.set_read_timeout(Some(must_be_left(until)?))?;
        match stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => buffer = &mut buffer[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn must_be_left(until: Instant) -> io::Result<Duration> {
    // A timeout of less than a microsecond would be none.
    left(until)
        .filter(|left| *left >= Duration::from_micros(1))
        .ok_or_else(|| io::ErrorKind::TimedOut.into())
}

fn is_late(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// A number that nobody outside can foresee: the standard library's hash of nothing has a secret key from
/// the system.
fn unguessable() -> u16 {
    (RandomState::new().hash_one(0_u8) >> 32) as u16
}

#[cfg(test)]
mod tests;
