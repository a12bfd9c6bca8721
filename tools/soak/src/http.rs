//! A client's side of HTTP/1.1, strict: what is read is a whole answer, or it is said why not.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::sockets;

/// Longest wait for anything to move.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest head that a server of ours or the backend writes.
const HEAD_MAX: usize = 16 << 10;

/// Why there is no whole and right answer.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The connection ended or was reset before the answer was whole.
    Cut(String),
    /// The server did what it must never do.
    Wrong(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut(what) => write!(f, "the connection ended: {what}"),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

/// A wait that was too long is the server's fault; an end may have a reason.
impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                Self::Wrong(format!("nothing moved for {} s", PATIENCE.as_secs()))
            }
            _ => Self::Cut(error.to_string()),
        }
    }
}

/// Shorthand of this module's callers.
pub(crate) fn wrong(what: impl Into<String>) -> Trouble {
    Trouble::Wrong(what.into())
}

/// How the content of an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    None,
}

/// The head of an answer.
#[derive(Debug)]
pub(crate) struct Head {
    /// The status code.
    pub(crate) status: u16,
    /// Names in lower case, and values.
    fields: Vec<(String, String)>,
    framing: Framing,
}

impl Head {
    /// The value of a field, whose name is given in lower case.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(of, _)| of == name);
        found.next().map(|(_, value)| value.as_str())
    }

    /// Whether the connection ends behind this answer.
    pub(crate) fn closes(&self) -> bool {
        self.field("connection") == Some("close")
    }

    fn parse(text: &str, to_head: bool) -> Result<Self, Trouble> {
        let bad = || wrong(format!("a head that is none: {text:?}"));
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
        let status = status
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .ok_or_else(bad)?;
        let fields: Option<Vec<(String, String)>> = lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                let (name, value) = line.split_once(':')?;
                Some((name.to_ascii_lowercase(), value.trim().to_owned()))
            })
            .collect();
        let mut head = Self {
            status,
            fields: fields.ok_or_else(bad)?,
            framing: Framing::None,
        };
        let length = head.field("content-length").map(str::parse);
        let chunked = head.field("transfer-encoding") == Some("chunked");
        head.framing = match (status, length, chunked) {
            (100..200 | 204 | 304, _, _) => Framing::None,
            _ if to_head => Framing::None,
            (_, Some(Ok(length)), false) => Framing::Length(length),
            (_, None, true) => Framing::Chunked,
            // Nothing asks for HTTP/1.0 here, so there is no reason for content without framing.
            _ => return Err(wrong(format!("content without one clear end: {text:?}"))),
        };
        Ok(head)
    }
}

/// A connection to the server.
pub(crate) struct Connection {
    socket: TcpStream,
    buffer: Vec<u8>,
    /// When the last answer had come whole, or the connection was made.
    pub(crate) used: Instant,
}

impl Connection {
    /// Connects.
    pub(crate) fn open(address: SocketAddr) -> Result<Self, Trouble> {
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        Ok(Self {
            socket,
            buffer: Vec::new(),
            used: Instant::now(),
        })
    }

    /// Sends all of it.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Trouble> {
        Ok(self.socket.write_all(bytes.as_ref())?)
    }

    /// Ends our direction.
    pub(crate) fn half_close(&mut self) -> Result<(), Trouble> {
        Ok(self.socket.shutdown(Shutdown::Write)?)
    }

    /// Breaks the connection by a reset.
    pub(crate) fn reset(self) {
        // Where the connection is gone already there is nothing to reset.
        let _ = rustix::net::sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
    }

    /// Reads something; an end is a cut.
    fn more(&mut self) -> Result<(), Trouble> {
        let mut chunk = [0; 16 << 10];
        let read = self.socket.read(&mut chunk);
        match read.map_err(|error| self.explained(error))? {
            0 => Err(Trouble::Cut("end of stream".to_owned())),
            len => {
                self.buffer.extend_from_slice(&chunk[..len]);
                Ok(())
            }
        }
    }

    /// An error, and for a wait that was too long what the system says of the connection.
    fn explained(&self, error: io::Error) -> Trouble {
        match (Trouble::from(error), self.socket.local_addr()) {
            (Trouble::Wrong(what), Ok(address)) => {
                wrong(format!("{what}: {}", sockets::of_port(address.port())))
            }
            (trouble, _) => trouble,
        }
    }

    /// Reads a head. Interim ones are passed over, save 101.
    pub(crate) fn head(&mut self, to_head: bool) -> Result<Head, Trouble> {
        loop {
            let end = loop {
                if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                    break at + 4;
                }
                if self.buffer.len() > HEAD_MAX {
                    return Err(wrong("a head without an end"));
                }
                self.more()?;
            };
            let text: Vec<u8> = self.buffer.drain(..end).collect();
            let text = String::from_utf8(text).map_err(|_| wrong("a head that isn't text"))?;
            let head = Head::parse(&text, to_head)?;
            if head.status == 101 || head.status >= 200 {
                return Ok(head);
            }
        }
    }

    /// Reads the content behind a head, and gives it to `take` as it comes.
    pub(crate) fn body(
        &mut self,
        head: &Head,
        mut take: impl FnMut(&[u8]) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        match head.framing {
            Framing::None => {}
            Framing::Length(length) => self.pass(length, &mut take)?,
            Framing::Chunked => loop {
                let line = self.line()?;
                let size = u64::from_str_radix(line.trim_end(), 16)
                    .map_err(|_| wrong(format!("a chunk of size {line:?}")))?;
                self.pass(size, &mut take)?;
                if self.line()? != "\r\n" {
                    return Err(wrong("something behind a chunk"));
                }
                if size == 0 {
                    break;
                }
            },
        }
        self.used = Instant::now();
        Ok(())
    }

    /// An answer that is small.
    pub(crate) fn answer(&mut self) -> Result<(Head, Vec<u8>), Trouble> {
        let head = self.head(false)?;
        let mut all = Vec::new();
        self.body(&head, |bytes| {
            all.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok((head, all))
    }

    /// Exactly so many bytes, without framing.
    pub(crate) fn exactly(&mut self, len: usize) -> Result<Vec<u8>, Trouble> {
        let mut all = Vec::new();
        self.pass(len as u64, &mut |bytes| {
            all.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(all)
    }

    /// Waits for the server to end its direction in order; nothing may come before.
    pub(crate) fn end(&mut self) -> Result<(), Trouble> {
        match (self.buffer.is_empty(), self.more()) {
            (true, Err(Trouble::Cut(what))) if what == "end of stream" => Ok(()),
            (_, Err(trouble)) => Err(trouble),
            _ => Err(wrong("bytes behind the last answer")),
        }
    }

    fn pass(
        &mut self,
        mut left: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        while left > 0 {
            if self.buffer.is_empty() {
                self.more()?;
            }
            let len = self.buffer.len().min(left.try_into().unwrap_or(usize::MAX));
            take(&self.buffer[..len])?;
            self.buffer.drain(..len);
            left -= len as u64;
        }
        Ok(())
    }

    fn line(&mut self) -> Result<String, Trouble> {
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=at).collect();
                return String::from_utf8(line).map_err(|_| wrong("a chunk size that isn't text"));
            }
            if self.buffer.len() > HEAD_MAX {
                return Err(wrong("a chunk size without an end"));
            }
            self.more()?;
        }
    }
}
