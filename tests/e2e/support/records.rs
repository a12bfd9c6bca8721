//! TLS records made by hand, after a handshake that rustls has made: of any type and size, split, padded,
//! changed, by old keys and by new ones. What a peer sees is all that this knows of the server.

mod keys;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, KeyLog, ServerConfig, ServerConnection};

pub(crate) use keys::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// A connection whose handshake is over.
pub(crate) struct Records {
    socket: TcpStream,
    sending: Keys,
    receiving: Keys,
    /// Content that was received and not read.
    content: Vec<u8>,
    /// How often the other side has gone on with other keys.
    pub(crate) key_updates: usize,
    /// How many records of the other side had content.
    pub(crate) came: usize,
    /// The other side has said that nothing follows.
    pub(crate) is_closed: bool,
}

impl Records {
    /// Connects to a server.
    pub(crate) fn connect(to: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> Self {
        let secrets = Arc::new(Secrets::default());
        let mut config = ClientConfig::clone(config);
        config.enable_secret_extraction = true;
        config.key_log = Arc::clone(&secrets) as Arc<dyn KeyLog>;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let socket = TcpStream::connect(to).unwrap();
        Self::begin(socket, tls.into(), &secrets)
    }

    /// Takes a client.
    pub(crate) fn accept(socket: TcpStream, config: &Arc<ServerConfig>) -> Self {
        let secrets = Arc::new(Secrets::default());
        let mut config = ServerConfig::clone(config);
        config.enable_secret_extraction = true;
        config.key_log = Arc::clone(&secrets) as Arc<dyn KeyLog>;
        let tls = ServerConnection::new(Arc::new(config)).unwrap();
        Self::begin(socket, tls.into(), &secrets)
    }

    /// Makes the handshake, record by record: none that comes behind it is read.
    fn begin(mut socket: TcpStream, mut tls: Connection, secrets: &Secrets) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        loop {
            while tls.wants_write() {
                tls.write_tls(&mut socket).unwrap();
            }
            if !tls.is_handshaking() {
                break;
            }
            let record = read_record(&mut socket).unwrap().expect("a handshake");
            let mut rest = &record[..];
            while !rest.is_empty() {
                tls.read_tls(&mut rest).unwrap();
            }
            if let Err(error) = tls.process_new_packets() {
                let _ = tls.write_tls(&mut socket);
                panic!("the handshake failed: {error}");
            }
        }
        let [sending, receiving] = secrets.keys(tls);
        Self {
            socket,
            sending,
            receiving,
            content: Vec::new(),
            key_updates: 0,
            came: 0,
            is_closed: false,
        }
    }

    /// The socket below.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// A record of this type with this content, as it goes out next.
    pub(crate) fn seal(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        self.sending.seal(kind, content, 0)
    }

    /// The same with so many zeros behind it (RFC 8446 §5.4).
    pub(crate) fn seal_padded(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        self.sending.seal(kind, content, padding)
    }

    /// A record that looks like `outer` and has all of this inside, of TLS 1.3 also the type.
    pub(crate) fn seal_inner(&mut self, outer: u8, inner: &[u8]) -> Vec<u8> {
        self.sending.seal_inner(outer, inner.to_vec())
    }

    /// A record that says that what follows is by new keys, which then are in use.
    pub(crate) fn seal_key_update(&mut self, asks: bool) -> Vec<u8> {
        let record = self.seal(HANDSHAKE, &key_update(asks));
        self.renew();
        record
    }

    /// New keys for what is sent, whatever the other side thinks of that.
    pub(crate) fn renew(&mut self) {
        self.sending.renew();
    }

    /// Sends some bytes as they are.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// The same; the other side may be gone.
    pub(crate) fn try_send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// Sends content, in records as large as they may be.
    pub(crate) fn send(&mut self, content: &[u8]) {
        for part in content.chunks(RECORD_MAX) {
            let record = self.seal(DATA, part);
            self.send_raw(&record);
        }
    }

    /// Says that nothing follows, and ends the direction.
    pub(crate) fn end(&mut self) {
        let record = self.seal(ALERT, &[1, CLOSE_NOTIFY]);
        self.send_raw(&record);
        self.cut();
    }

    /// Ends the direction without a word.
    pub(crate) fn cut(&self) {
        self.socket.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// The next record; `None` at the end of the stream.
    ///
    /// # Panics
    /// At a record that is none of the other side's.
    pub(crate) fn next(&mut self) -> io::Result<Option<Record>> {
        let Some(record) = read_record(&mut self.socket)? else {
            return Ok(None);
        };
        let opened = self.receiving.open(&record);
        let opened = opened.expect("a record by the keys in use");
        if opened.kind == HANDSHAKE && self.sending.is_tls13() && opened.content[0] == 24 {
            assert_eq!(opened.content.len(), 5, "alone in its record");
            self.key_updates += 1;
            self.receiving.renew();
        }
        if opened.kind == DATA {
            self.came += 1;
        }
        Ok(Some(opened))
    }

    /// All content up to an alert and the end of the stream behind it, and what the alert says; `None` where
    /// there was none.
    pub(crate) fn rest(&mut self) -> (Vec<u8>, Option<u8>) {
        let (mut content, mut alert) = (std::mem::take(&mut self.content), None);
        loop {
            match self.next() {
                Ok(Some(record)) => {
                    assert_eq!(alert, None, "{record:?} behind an alert");
                    match record.kind {
                        // That there is no renegotiation ends nothing (RFC 5246 §7.2.2).
                        ALERT if record.content == [1, 100] => {}
                        ALERT => alert = Some(record.content[1]),
                        DATA => content.extend(record.content),
                        kind => assert_eq!(kind, HANDSHAKE),
                    }
                }
                Ok(None) => return (content, alert),
                // What was under way to a closed socket may destroy what we haven't read.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return (content, alert);
                }
                Err(error) => panic!("the connection did not end: {error}"),
            }
        }
    }
}

/// Content, as far as it is told to be whole.
impl Read for Records {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        while self.content.is_empty() && !self.is_closed {
            match self.next()? {
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(record) if record.kind == DATA => self.content = record.content,
                Some(record) if record.kind == HANDSHAKE => {}
                Some(record) if record.kind == ALERT && record.content == [1, CLOSE_NOTIFY] => {
                    self.is_closed = true;
                }
                Some(record) => return Err(io::Error::other(format!("{record:?}"))),
            }
        }
        let length = room.len().min(self.content.len());
        room[..length].copy_from_slice(&self.content[..length]);
        self.content.drain(..length);
        Ok(length)
    }
}

/// A record as it is; `None` at the end of the stream.
fn read_record(socket: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut record = vec![0; 5];
    if socket.read(&mut record[..1])? == 0 {
        return Ok(None);
    }
    socket.read_exact(&mut record[1..])?;
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + length, 0);
    socket.read_exact(&mut record[5..])?;
    Ok(Some(record))
}
