//! The backends of the proxied routes: one that always answers well, and one that does by its target what
//! backends do at their worst. A thread for each connection; all end with the program.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::random::{Sum, content};

/// How long `late` makes the proxy wait: longer than it is configured to.
pub(crate) const LATE: Duration = Duration::from_secs(3);

/// A wait that is longer than this is the end of a connection.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a body that are read at once.
const PIECE: usize = 16 << 10;

/// A backend that runs.
pub(crate) struct Backend {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    open: Arc<AtomicU64>,
}

impl Backend {
    /// Starts it on a free port.
    pub(crate) fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let open = Arc::<AtomicU64>::default();
        let count = Arc::clone(&open);
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let count = Arc::clone(&count);
                count.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || {
                    // However a connection ends: whether that was right is seen at the client.
                    let _ = serve(socket);
                    count.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Ok(Self { address, open })
    }

    /// Connections of the proxy that are open.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }
}

/// What is known of a request.
#[derive(Default)]
struct Request {
    method: String,
    target: String,
    length: u64,
    chunked: bool,
    expects: bool,
}

fn serve(socket: TcpStream) -> io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    let mut writer = socket.try_clone()?;
    let mut reader = BufReader::new(socket);
    while let Some(request) = head(&mut reader)? {
        if request.expects {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let (length, sum) = body(&mut reader, &request)?;
        let parts: Vec<&str> = request.target.split('/').skip(2).collect();
        match (request.method.as_str(), parts.as_slice()) {
            ("GET", ["bytes", number, length]) => {
                let bytes = content(parse(number)?, 0, parse(length)? as usize);
                write!(
                    writer,
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
                )?;
                writer.write_all(&bytes)?;
            }
            ("GET", ["chunks", number, length]) => {
                chunks(&mut writer, parse(number)?, parse(length)?)?;
                writer.write_all(b"0\r\n\r\n")?;
            }
            ("POST", ["sum"]) => answer(&mut writer, &format!("{length} {:x}", sum.0))?,
            ("GET", ["tunnel"]) => return tunnel(&mut reader, &mut writer),
            ("GET", [unruly]) => {
                if !misbehave(&mut writer, unruly)? {
                    return Ok(());
                }
            }
            _ => writer.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
        }
    }
    Ok(())
}

fn parse(text: &str) -> io::Result<u64> {
    text.parse().map_err(io::Error::other)
}

fn answer(writer: &mut TcpStream, text: &str) -> io::Result<()> {
    let length = text.len();
    write!(
        writer,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}"
    )
}

fn chunks(writer: &mut TcpStream, number: u64, length: u64) -> io::Result<()> {
    writer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    for from in (0..length).step_by(PIECE) {
        let piece = content(number, from, PIECE.min((length - from) as usize));
        write!(writer, "{:x}\r\n", piece.len())?;
        writer.write_all(&piece)?;
        writer.write_all(b"\r\n")?;
    }
    Ok(())
}

/// Does what the target says. False: the connection is to end.
fn misbehave(writer: &mut TcpStream, how: &str) -> io::Result<bool> {
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n";
    match how {
        // Less than was announced.
        "cut" => {
            writer.write_all(half.as_bytes())?;
            writer.write_all(&content(9, 0, 50_000))?;
            Ok(false)
        }
        // No last chunk.
        "unfinished" => chunks(writer, 9, 50_000).map(|()| false),
        "nothing" => Ok(false),
        "nonsense" => writer
            .write_all(b"220 mail.example.com ESMTP\r\n\r\n")
            .map(|()| false),
        "late" => {
            thread::sleep(LATE);
            answer(writer, "late").map(|()| false)
        }
        "slow" => {
            writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n")?;
            for from in (0..40).step_by(8) {
                thread::sleep(Duration::from_millis(20));
                writer.write_all(&content(9, from, 8))?;
            }
            Ok(true)
        }
        "interim" => {
            writer.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")?;
            answer(writer, "interim").map(|()| true)
        }
        // It doesn't say that it will close.
        "leaves" => answer(writer, "leaves").map(|()| false),
        _ => answer(writer, "what?").map(|()| true),
    }
}

/// Sends back what comes until that ends.
fn tunnel(reader: &mut BufReader<TcpStream>, writer: &mut TcpStream) -> io::Result<()> {
    let switch =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    writer.write_all(switch.as_bytes())?;
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        writer.write_all(bytes)?;
        let len = bytes.len();
        reader.consume(len);
    }
}

/// Reads a head; `None` at the end of the connection.
fn head(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut request = Request::default();
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let text = line.trim_end();
        match text.split_once(": ") {
            _ if text.is_empty() => return Ok(Some(request)),
            Some((name, value)) => match name.to_ascii_lowercase().as_str() {
                "content-length" => request.length = parse(value)?,
                "transfer-encoding" => request.chunked = true,
                "expect" => request.expects = true,
                _ => {}
            },
            None => {
                let mut words = text.split(' ').map(str::to_owned);
                request.method = words.next().unwrap_or_default();
                request.target = words.next().unwrap_or_default();
            }
        }
        line.clear();
    }
    Ok(None)
}

/// Reads a body: how long it was, and its sum.
fn body(reader: &mut BufReader<TcpStream>, request: &Request) -> io::Result<(u64, Sum)> {
    let (mut total, mut sum) = (0, Sum::new());
    loop {
        let mut left = request.length;
        if request.chunked {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            left = u64::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
        }
        let last = !request.chunked || left == 0;
        total += left;
        let mut piece = vec![0; PIECE];
        while left > 0 {
            let len = PIECE.min(left as usize);
            reader.read_exact(&mut piece[..len])?;
            sum.add(&piece[..len]);
            left -= len as u64;
        }
        if request.chunked {
            reader.read_line(&mut String::new())?;
        }
        if last {
            return Ok((total, sum));
        }
    }
}
