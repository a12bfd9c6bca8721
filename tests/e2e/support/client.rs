//! A raw HTTP/1.1 client: it sends whatever bytes a test wants, and reads responses strictly.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use socket2::{Socket, Type};

use super::PATIENCE;
use super::server::Address;

/// How the server's side of a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// In order.
    Closed,
    /// With a reset.
    Reset,
}

/// A response.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    /// The fields in their order, names as they came.
    pub(crate) fields: Vec<(String, String)>,
    /// The content, without framing.
    pub(crate) body: Vec<u8>,
    /// Whether it came chunked.
    pub(crate) chunked: bool,
    /// The trailer fields behind the last chunk.
    pub(crate) trailers: Vec<(String, String)>,
}

impl Response {
    /// The value of a field that stands there at most once.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.values(name);
        let value = values.next();
        assert!(values.next().is_none(), "{name} twice: {self:?}");
        value
    }

    /// The value of a field that has to be there.
    pub(crate) fn must(&self, name: &str) -> &str {
        self.field(name)
            .unwrap_or_else(|| panic!("no field {name}: {self:?}"))
    }

    /// All values of a field.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.fields
            .iter()
            .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The content as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    /// Whether the server said that the connection ends.
    pub(crate) fn closes(&self) -> bool {
        self.field("Connection") == Some("close")
    }

    /// Whether a member of a list field is there.
    pub(crate) fn lists(&self, name: &str, member: &str) -> bool {
        self.values(name)
            .flat_map(|value| value.split(','))
            .any(|word| word.trim().eq_ignore_ascii_case(member))
    }
}

/// A connection.
pub(crate) struct Client {
    socket: Socket,
    buffer: Vec<u8>,
    patience: Duration,
}

impl Client {
    /// Connects.
    pub(crate) fn connect(address: &Address) -> Self {
        Self::connect_with(address, |_| ())
    }

    /// Connects with a socket whose options are set before.
    pub(crate) fn connect_with(address: &Address, options: impl FnOnce(&Socket)) -> Self {
        let (domain, address) = address.socket();
        let socket = Socket::new(domain, Type::STREAM, None).expect("a socket");
        options(&socket);
        // A write to a server that reads nothing must not hang the test.
        socket.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        socket
            .connect_timeout(&address, PATIENCE)
            .or_else(|error| match error.kind() {
                // `connect_timeout` knows only sockets of the internet.
                io::ErrorKind::InvalidInput => socket.connect(&address),
                _ => Err(error),
            })
            .unwrap_or_else(|error| panic!("connect: {error}"));
        Self {
            socket,
            buffer: Vec::new(),
            patience: PATIENCE,
        }
    }

    /// The socket.
    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Sends these bytes.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes)
            .unwrap_or_else(|error| panic!("send: {error}"));
    }

    /// Sends these bytes; the server may have closed the connection.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        (&self.socket).write_all(bytes.as_ref())
    }

    /// Ends our direction.
    pub(crate) fn end_input(&self) {
        self.socket
            .shutdown(std::net::Shutdown::Write)
            .expect("shutdown");
    }

    /// Ends the connection with a reset instead of in order.
    pub(crate) fn abort(self) {
        self.socket
            .set_linger(Some(Duration::ZERO))
            .expect("linger");
    }

    /// Sends a GET and reads the response.
    pub(crate) fn get(&mut self, target: &str) -> Response {
        self.request("GET", target, "")
    }

    /// Sends a GET with further fields, each with its line end, and reads the response.
    pub(crate) fn get_with(&mut self, target: &str, fields: &str) -> Response {
        self.request("GET", target, fields)
    }

    /// Sends a request without a body and reads the response.
    pub(crate) fn request(&mut self, method: &str, target: &str, fields: &str) -> Response {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
        self.send(request);
        match method {
            "HEAD" => self.head_response(),
            _ => self.response(),
        }
    }

    /// Reads a response.
    pub(crate) fn response(&mut self) -> Response {
        self.read_response(false)
            .unwrap_or_else(|error| panic!("no whole response: {error}"))
    }

    /// Reads the response to a HEAD.
    pub(crate) fn head_response(&mut self) -> Response {
        self.read_response(true)
            .unwrap_or_else(|error| panic!("no whole response: {error}"))
    }

    /// Reads a response that may be cut short.
    pub(crate) fn try_response(&mut self) -> io::Result<Response> {
        self.read_response(false)
    }

    /// Sends a request and reads a response that may be cut short.
    pub(crate) fn try_response_to(&mut self, request: &str) -> io::Result<Response> {
        self.try_send(request)?;
        self.read_response(false)
    }

    /// Waits for the end of the connection; nothing may come before it.
    pub(crate) fn end(&mut self) -> End {
        assert!(
            self.buffer.is_empty(),
            "more came: {:?}",
            String::from_utf8_lossy(&self.buffer)
        );
        let deadline = Instant::now() + self.patience;
        match self.receive(deadline) {
            Ok(0) => End::Closed,
            Ok(_) => panic!("more came: {:?}", String::from_utf8_lossy(&self.buffer)),
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionReset => End::Reset,
                _ => panic!("the connection did not end: {error}"),
            },
        }
    }

    /// Whether the connection is still open and silent, asked now.
    pub(crate) fn is_open(&mut self) -> bool {
        assert!(self.buffer.is_empty(), "something came");
        self.socket.set_nonblocking(true).expect("nonblocking");
        let result = self.receive_now();
        self.socket.set_nonblocking(false).expect("blocking");
        matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether nothing comes for this long, the end of the connection included.
    pub(crate) fn is_silent_for(&mut self, time: Duration) -> bool {
        let silent = |kind| matches!(kind, io::ErrorKind::TimedOut);
        self.buffer.is_empty()
            && matches!(self.receive(Instant::now() + time), Err(error) if silent(error.kind()))
    }

    /// The same where something has come already that was not taken.
    pub(crate) fn stays_silent_for(&mut self, time: Duration) -> bool {
        matches!(self.receive(Instant::now() + time), Err(error) if error.kind() == io::ErrorKind::TimedOut)
    }

    /// Everything up to the end of the connection, and how it ended.
    pub(crate) fn rest(&mut self) -> (Vec<u8>, End) {
        let deadline = Instant::now() + self.patience;
        loop {
            match self.receive(deadline) {
                Ok(0) => return (std::mem::take(&mut self.buffer), End::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return (std::mem::take(&mut self.buffer), End::Reset);
                }
                Err(error) => panic!(
                    "the connection did not end: {error}; so far {} bytes: {:?}",
                    self.buffer.len(),
                    String::from_utf8_lossy(&self.buffer[..self.buffer.len().min(500)])
                ),
            }
        }
    }

    /// Waits until at least this many bytes have come, without taking them.
    pub(crate) fn await_bytes(&mut self, count: usize) {
        let deadline = Instant::now() + self.patience;
        while self.buffer.len() < count {
            match self.receive(deadline) {
                Ok(0) => panic!("ended after {} bytes", self.buffer.len()),
                Ok(_) => {}
                Err(error) => panic!("{error} after {} bytes", self.buffer.len()),
            }
        }
    }

    /// Takes exactly this many bytes, whatever they are.
    pub(crate) fn exactly(&mut self, count: usize) -> Vec<u8> {
        self.await_bytes(count);
        self.buffer.drain(..count).collect()
    }

    /// Whether the server ends its direction now, in order; ours stays open.
    pub(crate) fn is_ended_in(&mut self) -> bool {
        self.buffer.is_empty() && matches!(self.receive(Instant::now() + self.patience), Ok(0))
    }

    /// Waits until this has come, without taking anything.
    pub(crate) fn await_text(&mut self, text: &str) {
        while find(&self.buffer, text.as_bytes()).is_none() {
            self.await_bytes(self.buffer.len() + 1);
        }
    }

    fn receive_now(&mut self) -> io::Result<usize> {
        let mut room = [0; 64 << 10];
        let length = loop {
            match (&self.socket).read(&mut room) {
                // A receive with a timeout is not restarted (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.buffer.extend_from_slice(&room[..length]);
        Ok(length)
    }

    fn receive(&mut self, deadline: Instant) -> io::Result<usize> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        self.receive_now().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })
    }

    fn read_response(&mut self, to_head: bool) -> io::Result<Response> {
        let deadline = Instant::now() + self.patience;
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            self.need(deadline)?;
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let mut response = parse_head(&head[..end - 2]);
        let status = response.status;
        let length = response
            .field("Content-Length")
            .map(|text| text.parse::<u64>().expect("Content-Length is a number"));
        response.chunked = match response.field("Transfer-Encoding") {
            None => false,
            Some(coding) => {
                assert_eq!(coding, "chunked");
                assert_eq!(length, None, "chunked and a length: {response:?}");
                true
            }
        };
        if status >= 200 {
            response.must("Date");
            // What a backend says of itself passes.
            if response.values("Via").next().is_none() {
                assert_eq!(response.must("Server"), "Beltway", "no version there");
            }
        }
        if status < 200 || status == 204 {
            assert!(length.is_none() && !response.chunked, "{response:?}");
        } else if to_head || status == 304 {
            return Ok(response);
        } else if response.chunked {
            response.body = self.chunks(deadline)?;
            response.trailers = self.trailers(deadline)?;
        } else if let Some(length) = length {
            let length = usize::try_from(length).expect("it fits");
            while self.buffer.len() < length {
                self.need(deadline)?;
            }
            response.body = self.buffer.drain(..length).collect();
        } else {
            assert!(response.closes(), "without an end: {response:?}");
            while self.receive(deadline)? > 0 {}
            response.body = std::mem::take(&mut self.buffer);
        }
        Ok(response)
    }

    /// Receives, and takes the end of the connection for an error.
    fn need(&mut self, deadline: Instant) -> io::Result<()> {
        match self.receive(deadline)? {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("ended after {} bytes", self.buffer.len()),
            )),
            _ => Ok(()),
        }
    }

    /// The content of chunks, the last one included.
    fn chunks(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line(deadline)?;
            let length = usize::from_str_radix(&line, 16).expect("hex digits alone");
            if length == 0 {
                return Ok(body);
            }
            while self.buffer.len() < length + 2 {
                self.need(deadline)?;
            }
            body.extend(self.buffer.drain(..length));
            let end: Vec<u8> = self.buffer.drain(..2).collect();
            assert_eq!(end, b"\r\n", "the end of a chunk");
        }
    }

    fn trailers(&mut self, deadline: Instant) -> io::Result<Vec<(String, String)>> {
        let mut trailers = Vec::new();
        loop {
            let line = self.line(deadline)?;
            if line.is_empty() {
                return Ok(trailers);
            }
            trailers.push(field(&line));
        }
    }

    /// A line without its end.
    fn line(&mut self, deadline: Instant) -> io::Result<String> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                break at;
            }
            self.need(deadline)?;
        };
        let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
        Ok(String::from_utf8(line[..end].to_vec()).expect("a line in UTF-8"))
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Parses status line and field lines, each with its line end.
fn parse_head(head: &[u8]) -> Response {
    let head = std::str::from_utf8(head).expect("a head in UTF-8");
    let mut lines = head.split_terminator("\r\n");
    let status_line = lines.next().expect("a status line");
    let rest = status_line
        .strip_prefix("HTTP/1.1 ")
        .unwrap_or_else(|| panic!("not a status line: {status_line:?}"));
    let (code, reason) = rest.split_at(3);
    assert!(reason.starts_with(' '), "{status_line:?}");
    let fields = lines.map(field).collect();
    Response {
        status: code.parse().expect("a status"),
        fields,
        body: Vec::new(),
        chunked: false,
        trailers: Vec::new(),
    }
}

/// Parses a field line.
fn field(line: &str) -> (String, String) {
    let (name, value) = line
        .split_once(": ")
        .unwrap_or_else(|| panic!("not a field line: {line:?}"));
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    assert!(!name.is_empty() && name.bytes().all(token), "{line:?}");
    assert!(!value.chars().any(char::is_control), "{line:?}");
    (name.to_owned(), value.to_owned())
}
