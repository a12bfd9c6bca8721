//! What rustls is asked for, on either side: the handshake, and all else until it is taken apart.

use std::ops::DerefMut;

use rustls::kernel::KernelConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, UnbufferedConnectionCommon, UnbufferedStatus,
};
use rustls::{Error, ExtractedSecrets};

use super::Failure;
use super::seal::HEADER;

/// One side of a connection, as rustls has it.
pub trait Side: DerefMut<Target = UnbufferedConnectionCommon<Self::Data>> + Sized {
    /// What it knows besides what both sides do.
    type Data;

    /// The message by which the peer would ask for another handshake, where there can be one (RFC 5246 §7.4.1).
    const RENEGOTIATION: u8;

    /// Whether the peer may send tickets after the handshake.
    const TAKES_TICKETS: bool;

    /// Goes on by these records up to the next state.
    fn process<'c, 'i>(&'c mut self, records: &'i mut [u8])
    -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// Gives the keys away that the handshake has come to.
    ///
    /// # Errors
    /// When it isn't over, or something is still to be sent.
    fn take_apart(self) -> Result<(ExtractedSecrets, KernelConnection<Self::Data>), Error>;

    /// Keeps a ticket that came after the handshake.
    ///
    /// # Errors
    /// When it is none.
    fn took_ticket(_: &mut KernelConnection<Self::Data>, _ticket: &[u8]) -> Result<(), Error> {
        Err(Error::General("a ticket of a client".to_owned()))
    }

    /// What an error is called here.
    fn failure(error: &Error) -> Failure;

    /// What there is to say of it besides, for the log.
    fn detail(_error: &Error) -> Option<Box<str>> {
        None
    }
}

impl Side for UnbufferedServerConnection {
    type Data = rustls::server::ServerConnectionData;

    /// ClientHello.
    const RENEGOTIATION: u8 = 1;
    const TAKES_TICKETS: bool = false;

    fn process<'c, 'i>(
        &'c mut self,
        records: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }

    fn take_apart(self) -> Result<(ExtractedSecrets, KernelConnection<Self::Data>), Error> {
        self.dangerous_into_kernel_connection()
    }

    fn failure(error: &Error) -> Failure {
        Failure::from(error)
    }
}

/// How far records were used.
pub(super) struct Advanced {
    /// Bytes of ciphertext that are used up.
    pub(super) used: usize,
    /// Bytes of plaintext that stand in front.
    pub(super) plain: usize,
    pub(super) peer_closed: bool,
}

/// Goes on with the handshake by records that are whole, up to its end, and no further: what follows is none
/// of rustls' business. It would change keys for a client that asks for it, and announce them with the
/// next content, which it never gets.
///
/// What it knows of a message in parts refers to the records of it, so it is given them again, each time with one
/// more. `known` of the bytes it has had: whole records, which it may have changed.
pub(super) fn shake<C: Side>(
    connection: &mut C,
    bytes: &mut [u8],
    known: &mut usize,
    out: &mut Vec<u8>,
) -> Result<Advanced, Error> {
    let mut done = Advanced {
        used: 0,
        plain: 0,
        peer_closed: false,
    };
    loop {
        let whole = end_of_record(bytes, *known);
        // A part of a record is shown, too: whether it can become one is told by its begin.
        let end = whole.unwrap_or(bytes.len());
        *known = whole.unwrap_or(*known);
        let mut blocked = false;
        while !blocked {
            let status = connection.process(&mut bytes[done.used..end]);
            let UnbufferedStatus { discard, state, .. } = status;
            match state? {
                ConnectionState::EncodeTlsData(encode) => encode_into(encode, out)?,
                ConnectionState::TransmitTlsData(transmit) => transmit.done(),
                ConnectionState::PeerClosed => done.peer_closed = true,
                ConnectionState::WriteTraffic(_)
                | ConnectionState::BlockedHandshake
                | ConnectionState::Closed => blocked = true,
                // There is no early data.
                ConnectionState::ReadTraffic(_) => {
                    return Err(Error::General("content before its time".to_owned()));
                }
                _ => return Err(Error::General("a state that is switched off".to_owned())),
            }
            done.used += discard;
        }
        if end == bytes.len() || done.peer_closed || !connection.is_handshaking() {
            *known = known.saturating_sub(done.used);
            return Ok(done);
        }
    }
}

/// Where the record ends that begins here, if it is whole.
fn end_of_record(bytes: &[u8], begin: usize) -> Option<usize> {
    let header = bytes.get(begin..)?.first_chunk::<HEADER>()?;
    let end = begin + HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
    (end <= bytes.len()).then_some(end)
}

/// Adds a message of the handshake to `out`.
pub(super) fn encode_into<D>(
    mut encode: EncodeTlsData<'_, D>,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    let failed = || Error::General("a message can't be encoded".to_owned());
    let Err(EncodeError::InsufficientSize(size)) = encode.encode(&mut []) else {
        return Err(failed());
    };
    let start = out.len();
    out.resize(start + size.required_size, 0);
    encode.encode(&mut out[start..]).map_err(|_| failed())?;
    Ok(())
}
