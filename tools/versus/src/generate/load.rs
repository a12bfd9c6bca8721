//! What a driver is to do, and the two things that follow from it alone: the bytes of a request, and a
//! connection.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net::sockopt::{set_socket_linger, set_tcp_congestion};

use super::tls::Tls;
use crate::backend;
use crate::certificate::NAME;

/// Longest wait for a connection to be taken.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// What the connections do.
#[derive(Clone, Debug)]
pub struct Load {
    /// The server.
    pub address: SocketAddr,
    /// The request target, `/` first.
    pub target: String,
    /// Length of the file, at least 1.
    pub body_len: u64,
    /// Connections, at least 1.
    pub connections: u32,
    /// Requests on their way on each connection, at least 1; 1 where bodies are discarded.
    pub depth: u32,
    /// Each connection becomes a WebSocket tunnel, whose first bytes are the body.
    pub upgrade: bool,
    /// When the next request follows.
    pub pace: Pace,
    /// How, where it is under TLS.
    pub tls: Option<Tls>,
}

/// When the next request follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// At the response, on the same connection.
    Closed,
    /// At the response, on a new connection: the server is asked to close each.
    Reconnect,
    /// So many in a second (at least 1), whatever becomes of them.
    Rate(u32),
}

impl Load {
    /// The bytes of each request.
    pub fn request(&self) -> String {
        let fields = match self.upgrade {
            false if self.pace == Pace::Reconnect => "Connection: close\r\n".to_owned(),
            false => String::new(),
            true => format!(
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: {}\r\n",
                backend::KEY,
            ),
        };
        let host = match self.tls {
            None => self.address.to_string(),
            Some(_) => format!("{NAME}:{}", self.address.port()),
        };
        format!(
            "GET {} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n",
            self.target
        )
    }
}

/// A connection that is reset when it is closed: thousands of them in TIME_WAIT would use up the
/// client's ports.
///
/// # Errors
/// When it is refused, or not taken in time.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, CONNECT_LIMIT)?;
    stream.set_nodelay(true)?;
    set_socket_linger(&stream, Some(Duration::ZERO))?;
    // Requests are never congested; the system's choice may pace them with timers. What the server
    // sends with is the system's choice.
    set_tcp_congestion(&stream, "reno")?;
    Ok(stream)
}
