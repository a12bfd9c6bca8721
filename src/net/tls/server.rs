//! One connection: ciphertext in, plaintext out, and back. Both sides are the same type, by what is
//! behind them: a [`TlsServer`] or a [`TlsClient`](super::TlsClient).

use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{Error, HandshakeKind, ProtocolVersion};

use super::clients::{Client, ClientCertificate, Clients};
use super::kernel::{Keys, Kind};
use super::layer::{CLOSE_NOTIFY, Layer, alert_of};
use super::records::RECORD_MAX;
use super::seal::Begun;
use super::side::{Advanced, Side, encode_into, shake};
use super::{Failure, Settings};

/// Most bytes that are held of a message that isn't whole: a record (RFC 8446 §5.2), what may have come
/// with its last byte, and a handshake message in records of its own.
pub(super) const HELD_MAX: usize = 64 << 10;

/// What a handshake has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// `TLSv1.2` or `TLSv1.3`, as logs of others write it.
    pub version: &'static str,
    /// The cipher suite by its registered name.
    pub suite: &'static str,
    /// The key exchange group; `None` where the session was resumed without one.
    pub group: Option<&'static str>,
    /// The application protocol; `None` where the client named none.
    pub protocol: Option<Protocol>,
    /// The session is one that was made before.
    pub resumed: bool,
}

/// An application protocol (ALPN, RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `http/1.1`.
    Http11,
}

impl Protocol {
    /// Its registered name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http11 => "http/1.1",
        }
    }
}

/// Where the plaintext of some ciphertext is.
#[derive(Debug)]
pub enum Plain {
    /// In the first bytes of the slice that was given, this many of them; maybe none.
    InPlace(usize),
    /// Here, never empty: it began in earlier bytes.
    Gathered(Vec<u8>),
}

/// A connection of a client, from the first byte of its ClientHello on.
pub type TlsServer = Tls<UnbufferedServerConnection>;

/// One side of a connection.
///
/// Once an error was given, all that can be done is to send what is in `out`, and to close.
pub struct Tls<C: Side> {
    connection: Connection<C>,
    /// Ciphertext that makes no whole message yet, at most [`HELD_MAX`] bytes. What rustls knows of a
    /// message in parts refers to it, so each call is given all of it.
    held: Vec<u8>,
    /// How many of them are whole records that rustls has had.
    known: usize,
    /// The name that is asked for; a server has found its settings by it.
    name: Option<Box<str>>,
    /// Who the client is, where it is asked for a certificate.
    client: Option<Box<Client>>,
    /// The handshake is over.
    open: bool,
    peer_closed: bool,
    closed: bool,
    /// What ended it; rustls isn't asked any more.
    failed: Option<Failure>,
    /// More of that, in words.
    detail: Option<Box<str>>,
    /// What is to be sent as an alert by the kernel.
    alert: Option<[u8; 2]>,
}

/// Who makes and opens records.
pub(super) enum Connection<C: Side> {
    /// rustls, up to the end of the handshake.
    Rustls(Box<C>),
    /// We do.
    Ours(Box<Layer<C>>),
    /// Nobody any more.
    Lost,
}

impl TlsServer {
    /// A connection by these settings, which were found by this name.
    ///
    /// # Errors
    /// [`Failure::Ours`] where there is no randomness.
    pub fn new(settings: &Settings, name: Option<Box<str>>) -> Result<Self, Failure> {
        let (config, client) = settings.connection();
        let connection =
            UnbufferedServerConnection::new(config).map_err(|error| Failure::from(&error))?;
        Ok(Self {
            client,
            ..Self::of(connection, name)
        })
    }

    /// The kind of keys by which the kernel could go on sending; `None` where it can't at this moment: before the
    /// end of the handshake, when an end was told, while anything is held, and when it does so already.
    pub fn kernel_kind(&self) -> Option<Kind> {
        let idle = self.held.is_empty() && self.failed.is_none();
        match &self.connection {
            Connection::Ours(layer) if idle && !self.closed => layer.kind(),
            _ => None,
        }
    }

    /// Gives the keys of the sending direction away: [`Self::send`] is no more possible, and what
    /// [`Self::take_alert`] gives has to be sent by whoever has them. Where [`Self::kernel_kind`] gives
    /// none, or after an error, the connection is lost.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn hand_over(&mut self) -> Result<Keys, Failure> {
        let keys = match &mut self.connection {
            Connection::Ours(layer) if self.held.is_empty() && !self.closed => layer.hand_over(),
            _ => None,
        };
        if keys.is_none() {
            self.connection = Connection::Lost;
        }
        keys.ok_or_else(|| self.fail(Failure::Ours))
    }
}

impl<C: Side> Tls<C> {
    pub(super) fn of(connection: C, name: Option<Box<str>>) -> Self {
        Self {
            connection: Connection::Rustls(Box::new(connection)),
            held: Vec::new(),
            known: 0,
            name,
            client: None,
            open: false,
            peer_closed: false,
            closed: false,
            failed: None,
            detail: None,
            alert: None,
        }
    }

    /// Takes what was received. Plaintext is put where the ciphertext was, as far as that is whole in
    /// `bytes`; what has to be sent in answer is added to `out`, also with an error.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn receive(&mut self, bytes: &mut [u8], out: &mut Vec<u8>) -> Result<Plain, Failure> {
        if let Some(failure) = self.failed {
            return Err(failure);
        }
        if self.peer_closed {
            // Nothing that follows is of this connection (RFC 8446 §6.1).
            return Ok(Plain::InPlace(0));
        }
        if self.held.is_empty() {
            let Advanced { used, plain, .. } = self.advance(bytes, out)?;
            if !self.peer_closed {
                self.held.extend_from_slice(&bytes[used..]);
            }
            return Ok(Plain::InPlace(plain));
        }
        if self.held.len() + bytes.len() > HELD_MAX {
            return Err(self.fail(Failure::TooMuch));
        }
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        let Advanced { used, plain, .. } = self.advance(&mut held, out)?;
        if plain > 0 {
            if !self.peer_closed {
                self.held.extend_from_slice(&held[used..]);
            }
            held.truncate(plain);
            return Ok(Plain::Gathered(held));
        }
        // Room that was there is used again, but not kept by an idle connection.
        held.drain(..used);
        if !(self.peer_closed || held.is_empty() && self.is_open()) {
            self.held = held;
        }
        Ok(Plain::InPlace(0))
    }

    /// Uses all records that are whole; what ends the connection is told to the peer.
    fn advance(&mut self, bytes: &mut [u8], out: &mut Vec<u8>) -> Result<Advanced, Failure> {
        let mut shaken = 0;
        if let Connection::Rustls(connection) = &mut self.connection {
            let done = match shake(&mut **connection, bytes, &mut self.known, out) {
                Ok(done) => done,
                Err(error) => {
                    self.alert(out);
                    return Err(self.end(&error));
                }
            };
            self.peer_closed = done.peer_closed;
            let Connection::Rustls(connection) = &self.connection else {
                return Ok(done);
            };
            if connection.is_handshaking() || done.peer_closed {
                return Ok(done);
            }
            self.take_over()?;
            shaken = done.used;
        }
        let Connection::Ours(layer) = &mut self.connection else {
            return Err(self.fail(Failure::Ours));
        };
        match layer.advance(&mut bytes[shaken..], out) {
            Ok(mut done) => {
                self.peer_closed = done.peer_closed;
                bytes.copy_within(shaken..shaken + done.plain, 0);
                done.used += shaken;
                Ok(done)
            }
            Err(error) => {
                self.alert = alert_of(&error).and_then(|alert| layer.alert(alert, out));
                Err(self.end(&error))
            }
        }
    }

    /// Adds one record with this content to `out`; several where it is more than [`RECORD_MAX`].
    ///
    /// # Errors
    /// [`Failure::Exhausted`], or [`Failure::Ours`] before the end of the handshake and after
    /// [`Self::close`].
    pub fn send(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        if let Some(failure) = self.failed {
            return Err(failure);
        }
        for part in plain.chunks(RECORD_MAX) {
            let begun = self.begin(out)?;
            out.extend_from_slice(part);
            self.finish(out, begun)?;
        }
        Ok(())
    }

    /// Begins a record whose content is what is appended to `out` from now on, at most [`RECORD_MAX`] bytes;
    /// [`Self::finish`] makes it one.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn begin(&mut self, out: &mut Vec<u8>) -> Result<Begun, Failure> {
        if let Some(failure) = self.failed {
            return Err(failure);
        }
        match &mut self.connection {
            Connection::Ours(layer) if !self.closed => {
                layer.begin(out).map_err(|error| of_sealing(&error))
            }
            _ => Err(Failure::Ours),
        }
    }

    /// Takes it back, with what was appended.
    pub fn abandon(&mut self, out: &mut Vec<u8>, begun: Begun) {
        begun.abandon(out);
    }

    /// Makes it a record.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn finish(&mut self, out: &mut Vec<u8>, begun: Begun) -> Result<(), Failure> {
        match &mut self.connection {
            Connection::Ours(layer) => layer.finish(out, begun).map_err(|error| of_sealing(&error)),
            _ => Err(Failure::Ours),
        }
    }

    /// Adds to `out` what tells the peer that nothing follows, once; before the end of the handshake
    /// there is nothing to be told.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        if !self.open || self.failed.is_some() || std::mem::replace(&mut self.closed, true) {
            return;
        }
        if let Connection::Ours(layer) = &mut self.connection {
            self.alert = layer.alert(CLOSE_NOTIFY, out);
        }
    }

    /// Whether the peer has said that nothing follows. Without it, an end of the stream may be somebody
    /// else's work (RFC 8446 §6.1).
    pub fn is_peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Whether the handshake is over.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The name that the client asks for.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Who the client is by its certificate; `None` where it has shown none.
    pub fn client(&self) -> Option<&ClientCertificate> {
        self.client.as_ref()?.certificate()
    }

    /// The name in a certificate of the client that was refused, in printable ASCII.
    pub fn refused_client(&self) -> Option<&str> {
        self.client.as_ref()?.refused()
    }

    /// Whether the client is one of these at `now`, in seconds since 1970. Cheap while they are those
    /// that the handshake was made by; where a reload has brought others it is verified by them, once.
    ///
    /// # Errors
    /// Why it isn't; [`Failure::NoClientCertificate`] also where it was never asked for a certificate.
    pub fn admits(&mut self, clients: &Arc<Clients>, now: i64) -> Result<(), Failure> {
        let chain = match &self.connection {
            Connection::Ours(layer) => layer.chain(),
            Connection::Rustls(_) | Connection::Lost => &[],
        };
        match &mut self.client {
            Some(client) => client.admits(clients, Some(chain), now),
            None => Err(Failure::NoClientCertificate),
        }
    }

    /// What the handshake came to; `None` before its end.
    pub fn handshake(&self) -> Option<Handshake> {
        match &self.connection {
            Connection::Ours(layer) => Some(layer.handshake()),
            Connection::Rustls(_) | Connection::Lost => None,
        }
    }

    #[cfg(test)]
    pub(super) fn connection(&mut self) -> &mut Connection<C> {
        &mut self.connection
    }

    /// More about what ended it, in words, where there is more to say.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// Bytes that are held of messages that are not whole.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Has the records made and opened here, now that the handshake is over.
    fn take_over(&mut self) -> Result<(), Failure> {
        let connection = std::mem::replace(&mut self.connection, Connection::Lost);
        let Connection::Rustls(connection) = connection else {
            return Err(self.fail(Failure::Ours));
        };
        if let Some(client) = &mut self.client
            && let Err(failure) = client.came(connection.peer_certificates())
        {
            return Err(self.fail(failure));
        }
        let Some(handshake) = handshake_of(&*connection) else {
            return Err(self.fail(Failure::Ours));
        };
        match Layer::take_apart(*connection, handshake, self.client.is_some()) {
            Ok(layer) => {
                self.connection = Connection::Ours(Box::new(layer));
                self.open = true;
                Ok(())
            }
            Err(error) => Err(self.end(&error)),
        }
    }

    /// It ends by this error.
    fn end(&mut self, error: &Error) -> Failure {
        self.detail = C::detail(error);
        self.fail(C::failure(error))
    }

    fn fail(&mut self, failure: Failure) -> Failure {
        *self.failed.insert(failure)
    }

    /// What the kernel is to send as an alert (RFC 8446 §6), once.
    pub fn take_alert(&mut self) -> Option<[u8; 2]> {
        self.alert.take()
    }

    /// What was taken could not be sent yet.
    pub fn put_alert_back(&mut self, alert: [u8; 2]) {
        self.alert = Some(alert);
    }

    /// Whether the client wants new keys from us, which the kernel can't be given.
    pub fn is_asked_for_keys(&self) -> bool {
        matches!(&self.connection, Connection::Ours(layer)
            if layer.is_kernels() && layer.is_asked_for_keys())
    }

    /// Adds the alert that an error has made. What was received is not looked at any more: rustls may
    /// have come far into it, and refers to it by its places.
    fn alert(&mut self, out: &mut Vec<u8>) {
        // Nothing of it is received, so the queue of what is to be sent only gets shorter.
        while let Connection::Rustls(connection) = &mut self.connection
            && connection.wants_write()
        {
            let UnbufferedStatus { state, .. } = connection.process(&mut []);
            match state {
                Ok(ConnectionState::EncodeTlsData(encode)) => {
                    if encode_into(encode, out).is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    }
}

/// What the handshake of a connection has come to; `None` before its end.
fn handshake_of<C: Side>(connection: &C) -> Option<Handshake> {
    let suite = connection.negotiated_cipher_suite()?;
    Some(Handshake {
        version: match connection.protocol_version()? {
            ProtocolVersion::TLSv1_2 => "TLSv1.2",
            _ => "TLSv1.3",
        },
        suite: suite.suite().as_str().unwrap_or("unknown"),
        group: connection
            .negotiated_key_exchange_group()
            .and_then(|group| group.name().as_str()),
        protocol: connection
            .alpn_protocol()
            .filter(|name| *name == Protocol::Http11.name().as_bytes())
            .map(|_| Protocol::Http11),
        resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
    })
}

/// What it is when no record can be made.
fn of_sealing(error: &Error) -> Failure {
    match error {
        Error::EncryptError => Failure::Exhausted,
        _ => Failure::Ours,
    }
}
