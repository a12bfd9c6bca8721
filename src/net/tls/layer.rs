//! A connection after its handshake: records are opened and made here, with the keys that rustls and the
//! peer have agreed on, and rustls is left with what only it knows, the keys that follow.
//!
//! Opening is done by rustls' ciphers, in place. Making them is done by [`Sealer`], or by the kernel, which can be
//! given the keys of that direction (kTLS): see [`super::kernel`]. The other one isn't, because nothing is
//! gained by it: what comes is small, it would have to be received by recvmsg(2) with room for the type of each
//! record, which a multishot receive into shared buffers hasn't got, and before kernel 6.14 a peer that
//! renews its keys could not be followed.

use rustls::crypto::cipher::{InboundOpaqueMessage, MessageDecrypter};
use rustls::kernel::KernelConnection;
use rustls::pki_types::CertificateDer;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, InvalidMessage, PeerMisbehaved,
    ProtocolVersion, SupportedCipherSuite,
};

use super::Handshake;
use super::kernel::{Keys, Kind};
use super::seal::{ALERT, Begun, CONTENT, HANDSHAKE, HEADER, Sealer};
use super::side::{Advanced, Side};

/// Most bytes of a record's encrypted content: 2^14 and 2048 (RFC 5246 §6.2.3), of which TLS 1.3 allows
/// 256; what is decrypted is checked by rustls.
const ENCRYPTED_MAX: usize = (1 << 14) + 2048;

/// Alerts of level warning, and updates of keys and records without content in a row, that a peer may send, and
/// how often it may ask for another handshake: as rustls has it.
const WARNINGS_MAX: u8 = 4;
pub(super) const KEY_UPDATES_MAX: u8 = 32;
pub(super) const EMPTY_MAX: u8 = 32;
const RENEGOTIATIONS_MAX: u8 = 1;

/// Messages of a handshake (RFC 8446 §4), of which the first byte is the type and three are the length.
const MESSAGE_HEADER: usize = 4;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// Most bytes of a ticket's message (RFC 8446 §4.6.1): four fields of fixed size, a nonce, a ticket, extensions.
const TICKET_MAX: usize = 4 + 4 + 256 + (2 << 16) + 4;

/// What renews the keys of the sender, and asks for nothing (RFC 8446 §4.6.3).
const OUR_KEY_UPDATE: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];

/// What tells a peer that nothing follows.
pub(super) const CLOSE_NOTIFY: [u8; 2] = [1, 0];
const NO_RENEGOTIATION: [u8; 2] = [1, 100];

/// The records of one connection.
pub(super) struct Layer<C: Side> {
    /// Knows the next keys.
    secrets: KernelConnection<C::Data>,
    decrypter: Box<dyn MessageDecrypter>,
    /// The number of the next record that comes.
    next: u64,
    sending: Sending,
    handshake: Handshake,
    /// The certificates of the peer, where they are asked for again.
    chain: Box<[CertificateDer<'static>]>,
    /// A message of a handshake that isn't whole.
    message: Vec<u8>,
    warnings: u8,
    key_updates: u8,
    empty: u8,
    renegotiations: u8,
    /// The peer wants new keys of us.
    is_asked_for_keys: bool,
}

/// Who makes records.
enum Sending {
    /// We do. The keys once more, to be given away.
    Ours(Sealer, ConnectionTrafficSecrets),
    Kernels,
}

impl<C: Side> Layer<C> {
    /// Takes a connection apart whose handshake is over, and for which nothing is held in either direction.
    ///
    /// # Errors
    /// Where rustls doesn't give the keys away; the connection is lost.
    pub(super) fn take_apart(
        connection: C,
        handshake: Handshake,
        keeps_chain: bool,
    ) -> Result<Self, Error> {
        let chain = connection.peer_certificates().filter(|_| keeps_chain);
        let chain = chain.unwrap_or_default().into();
        let (secrets, rest) = connection.take_apart()?;
        let suite = rest.negotiated_cipher_suite();
        let (next, sending) = secrets.tx;
        let sealer = sealer(suite, &sending, next)?;
        let (next, receiving) = secrets.rx;
        Ok(Self {
            secrets: rest,
            decrypter: decrypter(suite, receiving)?,
            next,
            sending: Sending::Ours(sealer, sending),
            handshake,
            chain,
            message: Vec::new(),
            warnings: 0,
            key_updates: 0,
            empty: 0,
            renegotiations: 0,
            is_asked_for_keys: false,
        })
    }

    /// What the handshake came to.
    pub(super) fn handshake(&self) -> Handshake {
        self.handshake
    }

    /// The certificates of the peer, where they were to be kept.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Whether the kernel makes the records.
    pub(super) fn is_kernels(&self) -> bool {
        matches!(self.sending, Sending::Kernels)
    }

    fn is_13(&self) -> bool {
        matches!(
            self.secrets.negotiated_cipher_suite(),
            SupportedCipherSuite::Tls13(_)
        )
    }

    /// Whether the peer has asked for new keys of ours, and has none yet.
    pub(super) fn is_asked_for_keys(&self) -> bool {
        self.is_asked_for_keys
    }

    /// What the kernel would be given; `None` where it was already, of a cipher that it doesn't know, and while
    /// the peer waits for new keys, which it gets with content that is made here.
    pub(super) fn kind(&self) -> Option<Kind> {
        match self.sending {
            Sending::Ours(..) if !self.is_asked_for_keys => {
                Kind::of(self.secrets.negotiated_cipher_suite())
            }
            Sending::Ours(..) | Sending::Kernels => None,
        }
    }

    /// Gives the keys of the sending direction away.
    pub(super) fn hand_over(&mut self) -> Option<Keys> {
        let kind = self.kind()?;
        match std::mem::replace(&mut self.sending, Sending::Kernels) {
            Sending::Ours(sealer, secrets) => Keys::new(kind, &secrets, sealer.next()),
            Sending::Kernels => None,
        }
    }

    /// Begins a record of content at the end of `out`; what is appended is its content. Where the peer is to
    /// get new keys first, it does.
    ///
    /// # Errors
    /// [`Error::EncryptError`] when the keys are used up and can't be renewed, or are the kernel's.
    pub(super) fn begin(&mut self, out: &mut Vec<u8>) -> Result<Begun, Error> {
        let Sending::Ours(sealer, _) = &self.sending else {
            return Err(Error::EncryptError);
        };
        if self.is_asked_for_keys || sealer.left() <= 1 {
            self.renew_keys(out)?;
        }
        match &self.sending {
            Sending::Ours(sealer, _) => Ok(sealer.begin(out)),
            Sending::Kernels => Err(Error::EncryptError),
        }
    }

    /// Makes it a record.
    ///
    /// # Errors
    /// See [`Sealer::finish`].
    pub(super) fn finish(&mut self, out: &mut Vec<u8>, begun: Begun) -> Result<(), Error> {
        match &mut self.sending {
            Sending::Ours(sealer, _) => sealer.finish(out, begun, CONTENT),
            Sending::Kernels => Err(Error::EncryptError),
        }
    }

    /// Adds an alert, unless the kernel has to send it: then it is given back.
    pub(super) fn alert(&mut self, alert: [u8; 2], out: &mut Vec<u8>) -> Option<[u8; 2]> {
        match &mut self.sending {
            Sending::Ours(sealer, _) => {
                // Without a key that is good for it the peer finds a cut, which is what it is then.
                let _ = sealer.record(out, ALERT, &alert);
                None
            }
            Sending::Kernels => Some(alert),
        }
    }

    /// Goes on with other keys, the last record with the old ones saying so (RFC 8446 §4.6.3). TLS 1.2 has
    /// no such thing.
    fn renew_keys(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        let suite = self.secrets.negotiated_cipher_suite();
        let is_13 = self.is_13();
        let Sending::Ours(old, _) = &mut self.sending else {
            return Err(Error::EncryptError);
        };
        if !is_13 {
            return Err(Error::EncryptError);
        }
        old.record(out, HANDSHAKE, &OUR_KEY_UPDATE)?;
        let (next, secrets) = self.secrets.update_tx_secret()?;
        self.sending = Sending::Ours(sealer(suite, &secrets, next)?, secrets);
        self.is_asked_for_keys = false;
        Ok(())
    }

    /// Opens all records that are whole. Plaintext goes to the front of `bytes`, over records that are
    /// used up. What is to be said in answer is added to `out`.
    pub(super) fn advance(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<Advanced, Error> {
        let mut done = Advanced {
            used: 0,
            plain: 0,
            peer_closed: false,
        };
        while !done.peer_closed
            && let Some((header, rest)) = bytes[done.used..].split_at_mut_checked(HEADER)
        {
            let (kind, length) = read_header(header)?;
            let Some((record, _)) = rest.split_at_mut_checked(length) else {
                break;
            };
            if self.is_13() && kind != ContentType::ApplicationData {
                // What is encrypted never looks otherwise (RFC 8446 §5.2).
                return Err(unexpected(kind));
            }
            let begin = record.as_ptr() as usize;
            let message = InboundOpaqueMessage::new(kind, ProtocolVersion::TLSv1_2, record);
            let opened = self.decrypter.decrypt(message, self.next)?;
            // 2^64 records take longer than any connection.
            self.next += 1;
            // Of TLS 1.2 a nonce stands before the content.
            let before = opened.payload.as_ptr() as usize - begin;
            let at = done.used + HEADER + before;
            let content = at..at + opened.payload.len();
            if !self.message.is_empty() && opened.typ != ContentType::Handshake {
                // Nothing may come within a message (RFC 8446 §5.1).
                return Err(unexpected(opened.typ));
            }
            match opened.typ {
                ContentType::ApplicationData if content.is_empty() => {
                    if self.empty == EMPTY_MAX {
                        return Err(PeerMisbehaved::TooManyEmptyFragments.into());
                    }
                    self.empty += 1;
                }
                ContentType::ApplicationData => {
                    (self.key_updates, self.empty) = (0, 0);
                    bytes.copy_within(content.clone(), done.plain);
                    done.plain += content.len();
                }
                ContentType::Alert => done.peer_closed = self.is_end(opened.payload)?,
                ContentType::Handshake if self.is_13() => self.read(opened.payload)?,
                ContentType::Handshake => self.refuse(opened.payload, out)?,
                _ => return Err(unexpected(opened.typ)),
            }
            done.used += HEADER + length;
        }
        Ok(done)
    }

    /// Whether an alert says that nothing follows (RFC 8446 §6, RFC 5246 §7.2).
    fn is_end(&mut self, alert: &[u8]) -> Result<bool, Error> {
        let &[level, description] = alert else {
            return Err(Error::InvalidMessage(InvalidMessage::MissingData("alert")));
        };
        let description = AlertDescription::from(description);
        let is_warning = match self.is_13() {
            true => description == AlertDescription::UserCanceled,
            false => level == 1,
        };
        match description {
            AlertDescription::CloseNotify => Ok(true),
            _ if is_warning && self.warnings < WARNINGS_MAX => {
                self.warnings += 1;
                Ok(false)
            }
            _ => Err(Error::AlertReceived(description)),
        }
    }

    /// Takes messages of a handshake that may come after it, in TLS 1.3. They may be in parts, and several in a
    /// record.
    fn read(&mut self, part: &[u8]) -> Result<(), Error> {
        if part.is_empty() {
            // RFC 8446 §5.4.
            return Err(unexpected(ContentType::Handshake));
        }
        self.message.extend_from_slice(part);
        while let Some((&[kind, high, middle, low], rest)) =
            self.message.split_first_chunk::<MESSAGE_HEADER>()
        {
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            // Before there is more of it than its header.
            match kind {
                KEY_UPDATE if length == 1 => {}
                NEW_SESSION_TICKET if C::TAKES_TICKETS && length <= TICKET_MAX => {}
                _ => return Err(unexpected(ContentType::Handshake)),
            }
            let Some((message, rest)) = rest.split_at_checked(length) else {
                return Ok(());
            };
            match (kind, message) {
                // What follows is made with other keys, so nothing else may share its record.
                (KEY_UPDATE, [asked @ 0..=1]) if rest.is_empty() => {
                    let asked = *asked == 1;
                    self.update_keys(asked)?;
                }
                (NEW_SESSION_TICKET, ticket) => C::took_ticket(&mut self.secrets, ticket)?,
                _ => return Err(unexpected(ContentType::Handshake)),
            }
            self.message.drain(..MESSAGE_HEADER + length);
        }
        if self.message.is_empty() {
            self.message = Vec::new();
        }
        Ok(())
    }

    /// The peer goes on with other keys (RFC 8446 §4.6.3), and may want the same of us.
    fn update_keys(&mut self, asked: bool) -> Result<(), Error> {
        if self.key_updates == KEY_UPDATES_MAX {
            return Err(PeerMisbehaved::TooManyKeyUpdateRequests.into());
        }
        self.key_updates += 1;
        let (next, secrets) = self.secrets.update_rx_secret()?;
        self.decrypter = decrypter(self.secrets.negotiated_cipher_suite(), secrets)?;
        self.next = next;
        self.is_asked_for_keys |= asked;
        Ok(())
    }

    /// There is no second handshake in TLS 1.2: who asks for one is told so (RFC 5246 §7.2.2), once.
    fn refuse(&mut self, message: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        if message.first() != Some(&C::RENEGOTIATION) {
            return Err(unexpected(ContentType::Handshake));
        }
        if self.renegotiations == RENEGOTIATIONS_MAX {
            return Err(PeerMisbehaved::TooManyRenegotiationRequests.into());
        }
        self.renegotiations += 1;
        match self.alert(NO_RENEGOTIATION, out) {
            None => Ok(()),
            // The kernel sends alerts at the end of a connection only.
            Some(_) => Err(unexpected(ContentType::Handshake)),
        }
    }
}

/// What makes records with these keys.
fn sealer(
    suite: SupportedCipherSuite,
    secrets: &ConnectionTrafficSecrets,
    next: u64,
) -> Result<Sealer, Error> {
    let most = match suite {
        SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
        SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
    };
    let kind = Kind::of(suite).ok_or_else(another_kind)?;
    Sealer::new(kind, secrets, next, most)
}

/// What opens records with these keys.
fn decrypter(
    suite: SupportedCipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageDecrypter>, Error> {
    let (key, iv, is_gcm) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (key, iv, true),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv, false),
        _ => return Err(another_kind()),
    };
    Ok(match suite {
        SupportedCipherSuite::Tls13(suite) => suite.aead_alg.decrypter(key, iv),
        SupportedCipherSuite::Tls12(suite) => {
            // Of GCM the records have the rest.
            let fixed = if is_gcm { 4 } else { 12 };
            suite.aead_alg.decrypter(key, &iv.as_ref()[..fixed])
        }
    })
}

fn another_kind() -> Error {
    Error::General("keys of a kind that is unknown here".to_owned())
}

/// The type of a record, and how long its content is.
fn read_header(header: &[u8]) -> Result<(ContentType, usize), Error> {
    let &[kind, major, _, high, low] = header else {
        return Err(InvalidMessage::MessageTooShort.into());
    };
    if major != 3 {
        return Err(InvalidMessage::UnknownProtocolVersion.into());
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    match length {
        0 => Err(InvalidMessage::InvalidEmptyPayload.into()),
        1..=ENCRYPTED_MAX => Ok((ContentType::from(kind), length)),
        _ => Err(Error::PeerSentOversizedRecord),
    }
}

fn unexpected(kind: ContentType) -> Error {
    Error::InappropriateMessage {
        expect_types: vec![ContentType::ApplicationData],
        got_type: kind,
    }
}

/// The alert that tells a peer of an error; `None` where it ended the connection itself.
pub(super) fn alert_of(error: &Error) -> Option<[u8; 2]> {
    let description = match error {
        Error::AlertReceived(_) => return None,
        Error::DecryptError => AlertDescription::BadRecordMac,
        Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
        Error::InvalidMessage(_) => AlertDescription::DecodeError,
        Error::General(_) => AlertDescription::InternalError,
        _ => AlertDescription::UnexpectedMessage,
    };
    // Fatal, and which.
    Some([2, description.into()])
}

#[cfg(test)]
mod tests;
