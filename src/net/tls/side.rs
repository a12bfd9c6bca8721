//! What rustls is asked for, on either side: the handshake, and all else until it is taken apart.

use std::ops::DerefMut;

use rustls::kernel::KernelConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, UnbufferedConnectionCommon, UnbufferedStatus,
};
use rustls::{Error, ExtractedSecrets};

use super::Failure;

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

/// How far [`advance`] has come.
pub(super) struct Advanced {
    /// Bytes of ciphertext that are used up.
    pub(super) used: usize,
    /// Bytes of plaintext that stand in front.
    pub(super) plain: usize,
    pub(super) peer_closed: bool,
}

/// Processes all messages that are whole. Plaintext goes to the front of `bytes`, over records that
/// are used up: it is shorter than they were.
pub(super) fn advance<C: Side>(
    connection: &mut C,
    bytes: &mut [u8],
    out: &mut Vec<u8>,
) -> Result<Advanced, Error> {
    let mut done = Advanced {
        used: 0,
        plain: 0,
        peer_closed: false,
    };
    loop {
        let (free, rest) = bytes.split_at_mut(done.used);
        let UnbufferedStatus { discard, state, .. } = connection.process(rest);
        let mut moved = discard > 0;
        match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                // The first time its record is still in `rest`; the next time there is room.
                while let Some(length) = traffic.peek_len()
                    && let Some(room) = free.get_mut(done.plain..done.plain + length.get())
                {
                    let Some(record) = traffic.next_record() else {
                        break;
                    };
                    room.copy_from_slice(record?.payload);
                    done.plain += length.get();
                    moved = true;
                }
                if !moved {
                    return Err(Error::General("plaintext without a record".to_owned()));
                }
            }
            ConnectionState::EncodeTlsData(encode) => encode_into(encode, out)?,
            ConnectionState::TransmitTlsData(transmit) => transmit.done(),
            ConnectionState::PeerClosed => done.peer_closed = true,
            ConnectionState::WriteTraffic(_)
            | ConnectionState::BlockedHandshake
            | ConnectionState::Closed => {
                done.used += discard;
                return Ok(done);
            }
            _ => return Err(Error::General("a state that is switched off".to_owned())),
        }
        done.used += discard;
    }
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
