//! A backend that does what a test wants of it, well or badly.
//!
//! Each connection runs a script in a thread of its own. What arrives is read by a parser of its own,
//! which takes nothing that could be understood in two ways: whatever the proxy sends has to pass it. A
//! script that panics fails its test when the backend is dropped. Every wait ends within [`PATIENCE`].

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls::{HandshakeKind, ServerConfig, ServerConnection};
use socket2::{Domain, SockAddr, Socket, Type};

use super::message::{self, Request};
use crate::support::wait_for;

/// Longest wait of a script.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// What is shared with the scripts.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    connections: AtomicUsize,
    requests: Mutex<Vec<Request>>,
    sockets: Mutex<Vec<(usize, Arc<Socket>)>>,
    panics: AtomicUsize,
    /// What connections are under TLS by.
    tls: Option<Arc<ServerConfig>>,
}

/// A listening socket, and the scripts of the connections that came.
pub(super) struct Backend {
    name: String,
    address: SockAddr,
    domain: Domain,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    _directory: Option<tempfile::TempDir>,
}

impl Backend {
    /// On a free port of this machine.
    pub(super) fn start(script: impl Fn(&mut Connection) + Send + Sync + 'static) -> Self {
        Self::listen(free_socket(), None, None, script)
    }

    /// Under TLS, on a free port of this machine.
    pub(super) fn secured(
        config: &Arc<ServerConfig>,
        script: impl Fn(&mut Connection) + Send + Sync + 'static,
    ) -> Self {
        Self::listen(free_socket(), None, Some(Arc::clone(config)), script)
    }

    /// On a unix socket.
    pub(super) fn unix(script: impl Fn(&mut Connection) + Send + Sync + 'static) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("app.sock");
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        let address = SockAddr::unix(&path).expect("a path that fits");
        socket.bind(&address).expect("bind");
        // A worker that root starts is somebody else, who has to get here.
        for (path, mode) in [(directory.path(), 0o755), (path.as_path(), 0o777)] {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(path, mode).expect("permissions");
        }
        Self::listen(socket, Some((directory, path)), None, script)
    }

    /// One that answers every request with its target in the body, and keeps the connection.
    pub(super) fn echo() -> Self {
        Self::naming("")
    }

    /// One that answers every request with this name, and keeps the connection.
    pub(super) fn naming(name: &str) -> Self {
        let name = name.to_owned();
        Self::start(move |connection| {
            while let Some(request) = connection.request() {
                let body = match name.as_str() {
                    "" => &request.target,
                    name => name,
                };
                let answer = ok(body);
                match request.method.as_str() {
                    "HEAD" => connection.send(&answer[..answer.len() - body.len()]),
                    _ => connection.send(answer),
                };
            }
        })
    }

    /// Puts a server with this script where nobody listens until now.
    pub(super) fn take(
        refusing: Refusing,
        script: impl Fn(&mut Connection) + Send + Sync + 'static,
    ) -> Self {
        Self::listen(refusing.socket, None, None, script)
    }

    fn listen(
        socket: Socket,
        path: Option<(tempfile::TempDir, PathBuf)>,
        tls: Option<Arc<ServerConfig>>,
        script: impl Fn(&mut Connection) + Send + Sync + 'static,
    ) -> Self {
        socket.listen(1024).expect("listen");
        let address = socket.local_addr().expect("a name");
        let name = match (&path, address.as_socket()) {
            (Some((_, path)), _) => format!("unix:{}", path.display()),
            (None, Some(address)) => address.to_string(),
            (None, None) => unreachable!("it is one of the two"),
        };
        let domain = address.domain();
        let shared = Arc::new(Shared {
            tls,
            ..Shared::default()
        });
        let (script, of_thread) = (Arc::new(script), Arc::clone(&shared));
        let acceptor = thread::spawn(move || {
            loop {
                let Ok((peer, _)) = socket.accept() else {
                    return;
                };
                if of_thread.stop.load(Ordering::SeqCst) {
                    return;
                }
                run(peer, &of_thread, Arc::clone(&script));
            }
        });
        Self {
            name,
            address,
            domain,
            shared,
            acceptor: Some(acceptor),
            _directory: path.map(|(directory, _)| directory),
        }
    }

    /// Its address as a configuration has it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The same under TLS, by this name of this machine.
    pub(super) fn https(&self, host: &str) -> String {
        let port = self.address.as_socket().expect("TCP").port();
        format!("https://{host}:{port}")
    }

    /// How many connections came.
    pub(super) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// The requests that were read whole, in their order.
    pub(super) fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// The request that was read whole last; there has to be one.
    pub(super) fn last(&self) -> Request {
        lock(&self.shared.requests)
            .last()
            .expect("one came")
            .clone()
    }

    /// Waits until this many requests were read whole.
    pub(super) fn await_requests(&self, count: usize) -> Vec<Request> {
        wait_for("requests at the backend", PATIENCE, || {
            let requests = self.requests();
            (requests.len() >= count).then_some(requests)
        })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which may have ended already.
        if let Ok(socket) = Socket::new(self.domain, Type::STREAM, None) {
            let _ = socket.connect(&self.address);
        }
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for (_, socket) in lock(&self.shared.sockets).drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        let panics = self.shared.panics.load(Ordering::SeqCst);
        if panics > 0 && !thread::panicking() {
            panic!("{panics} scripts of the backend {} failed", self.name);
        }
    }
}

fn run(
    socket: Socket,
    shared: &Arc<Shared>,
    script: Arc<impl Fn(&mut Connection) + Send + Sync + 'static>,
) {
    let number = shared.connections.fetch_add(1, Ordering::SeqCst);
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    let _ = socket.set_tcp_nodelay(true);
    let socket = Arc::new(socket);
    lock(&shared.sockets).push((number, Arc::clone(&socket)));
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        let _guard = CountPanic(&shared);
        let mut connection = Connection {
            number,
            socket,
            buffer: Vec::new(),
            tls: shared.tls.clone().map(|config| {
                Box::new(ServerConnection::new(config).expect("a connection under TLS"))
            }),
            shared: Arc::clone(&shared),
            raw: Vec::new(),
        };
        script(&mut connection);
    });
}

struct CountPanic<'s>(&'s Shared);

impl Drop for CountPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.panics.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A connection from the proxy. It is closed when the script returns.
pub(super) struct Connection {
    /// Which one it is, from 0.
    pub(super) number: usize,
    socket: Arc<Socket>,
    buffer: Vec<u8>,
    raw: Vec<u8>,
    tls: Option<Box<ServerConnection>>,
    shared: Arc<Shared>,
}

impl Connection {
    /// Reads a request with its body. `None` when the connection ends before one is whole.
    ///
    /// # Panics
    /// It isn't written as strictly as anybody could wish.
    pub(super) fn request(&mut self) -> Option<Request> {
        let mut request = self.head()?;
        self.body(&mut request)?;
        Some(request)
    }

    /// Reads the head of a request alone.
    pub(super) fn head(&mut self) -> Option<Request> {
        loop {
            if let Some((length, request)) = message::head(&self.buffer) {
                self.raw = self.buffer.drain(..length).collect();
                return Some(request);
            }
            self.receive().ok().filter(|length| *length > 0)?;
        }
    }

    /// Reads the body behind that head, and notes the request.
    pub(super) fn body(&mut self, request: &mut Request) -> Option<()> {
        loop {
            if let Some((length, body, trailers)) = message::body(request, &self.buffer) {
                self.raw.extend(self.buffer.drain(..length));
                request.body = body;
                request.trailers = trailers;
                request.raw = std::mem::take(&mut self.raw);
                lock(&self.shared.requests).push(request.clone());
                return Some(());
            }
            self.receive().ok().filter(|length| *length > 0)?;
        }
    }

    /// Reads some bytes, whatever they are; none at the end.
    pub(super) fn bytes(&mut self) -> Vec<u8> {
        if self.buffer.is_empty() {
            let _ = self.receive();
        }
        std::mem::take(&mut self.buffer)
    }

    /// Reads exactly this many bytes.
    pub(super) fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            let length = self.receive().expect("more bytes");
            assert!(length > 0, "ended after {} of {count}", self.buffer.len());
        }
        self.buffer.drain(..count).collect()
    }

    /// Waits for the end of what the proxy sends; all of it until then.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        while matches!(self.receive(), Ok(length) if length > 0) {}
        std::mem::take(&mut self.buffer)
    }

    /// Reads a line that comes before all others, byte by byte: what follows may be TLS.
    pub(super) fn line(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            (&*self.socket).read_exact(&mut byte).expect("a line");
            line.push(byte[0]);
        }
        String::from_utf8(line).expect("text")
    }

    /// From here on it is under TLS.
    pub(super) fn secure(&mut self, config: &Arc<ServerConfig>) {
        let tls = ServerConnection::new(Arc::clone(config)).expect("a connection under TLS");
        self.tls = Some(Box::new(tls));
    }

    /// Sends; says whether the proxy was still there.
    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        match &mut self.tls {
            None => (&*self.socket).write_all(bytes.as_ref()).is_ok(),
            Some(tls) => send_secured(tls, &self.socket, bytes.as_ref()).is_ok(),
        }
    }

    /// What is known of its TLS.
    pub(super) fn tls(&mut self) -> &mut ServerConnection {
        self.tls.as_mut().expect("a connection under TLS")
    }

    /// Whether its session is one that was made before.
    pub(super) fn is_resumed(&mut self) -> bool {
        self.tls().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Ends our direction without a word of TLS.
    pub(super) fn cut(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Sends each byte in a segment of its own.
    pub(super) fn send_bytewise(&mut self, bytes: impl AsRef<[u8]>) {
        for byte in bytes.as_ref() {
            self.send([*byte]);
            thread::yield_now();
        }
    }

    /// Where the proxy has connected from.
    pub(super) fn peer(&self) -> IpAddr {
        let peer = self.socket.peer_addr().expect("it is connected");
        peer.as_socket().expect("TCP").ip()
    }

    /// Ends our direction.
    pub(super) fn end(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = send_secured(tls, &self.socket, b"");
        }
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Ends our direction, and waits for the other one to end: no reset, whatever was not read.
    pub(super) fn close(&mut self) {
        self.end();
        self.rest();
    }

    /// Lets the connection end with a reset when the script returns.
    pub(super) fn reset(&mut self) {
        let _ = self.socket.set_linger(Some(Duration::ZERO));
    }

    fn receive(&mut self) -> io::Result<usize> {
        let mut room = [0; 64 << 10];
        let length = loop {
            let read = match &mut self.tls {
                None => (&*self.socket).read(&mut room),
                Some(tls) => receive_secured(tls, &self.socket, &mut room),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.buffer.extend_from_slice(&room[..length]);
        Ok(length)
    }
}

/// Sends under TLS, with all that the protocol has to say.
fn send_secured(tls: &mut ServerConnection, socket: &Socket, mut bytes: &[u8]) -> io::Result<()> {
    loop {
        let taken = tls.writer().write(bytes)?;
        bytes = &bytes[taken..];
        while tls.wants_write() {
            tls.write_tls(&mut &*socket)?;
        }
        if bytes.is_empty() {
            return Ok(());
        }
    }
}

/// Receives under TLS: nothing at an end that was told, an error at one that wasn't.
fn receive_secured(
    tls: &mut ServerConnection,
    socket: &Socket,
    room: &mut [u8],
) -> io::Result<usize> {
    loop {
        match tls.reader().read(room) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
        tls.read_tls(&mut &*socket)?;
        let processed = tls.process_new_packets().map_err(io::Error::other);
        while tls.wants_write() {
            tls.write_tls(&mut &*socket)?;
        }
        processed?;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Else the list would keep it open.
        lock(&self.shared.sockets).retain(|(number, _)| *number != self.number);
    }
}

/// An address at which connections are refused, for as long as this lives.
pub(super) struct Refusing {
    socket: Socket,
    name: String,
}

impl Refusing {
    /// A free port of this machine.
    pub(super) fn new() -> Self {
        let socket = free_socket();
        let address = socket.local_addr().expect("a name");
        let name = address.as_socket().expect("TCP").to_string();
        Self { socket, name }
    }

    /// Its address as a configuration has it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

fn free_socket() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&address.into()).expect("bind");
    socket
}

/// What scripts wait at until the test lets them go on.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<(Mutex<usize>, Condvar)>);

impl Gate {
    /// Lets one wait pass, also one that comes later.
    pub(super) fn open(&self) {
        self.open_for(1);
    }

    /// Lets this many waits pass.
    pub(super) fn open_for(&self, count: usize) {
        *lock(&self.0.0) += count;
        self.0.1.notify_all();
    }

    /// Waits to be let pass.
    #[track_caller]
    pub(super) fn wait(&self) {
        let passes = lock(&self.0.0);
        let (mut passes, timeout) = self
            .0
            .1
            .wait_timeout_while(passes, PATIENCE, |passes| *passes == 0)
            .unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "nobody opened the gate");
        *passes -= 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A response with this text.
pub(super) fn ok(body: &str) -> String {
    answer(200, "", body)
}

/// A response with this status, these fields (each with its line end) and this text.
pub(super) fn answer(status: u16, fields: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} Said\r\n{fields}Content-Length: {length}\r\n\r\n{body}")
}
