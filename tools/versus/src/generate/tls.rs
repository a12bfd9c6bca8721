//! The generator's side of TLS: as little as a client can do.
//!
//! It knows the server by the bytes of its certificate and checks no signature: that would be a third of
//! what a handshake costs it, and the generator must not be the limit. Sockets are written to by plain
//! calls: what a client of this kind has on its way is far below any send buffer.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use clap::ValueEnum;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
    UnbufferedClientConnection,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, HandshakeKind, NamedGroup, SignatureScheme,
    version::TLS13,
};

use super::reader::Fault;
use crate::certificate::NAME;

/// Most sessions that are kept for later connections; the oldest goes.
const SESSIONS_MAX: usize = 4096;

/// Bytes that a record adds to its content at most (RFC 8446 §5.2).
const RECORD_OVERHEAD: usize = 5 + 1 + 16;

/// How keys are agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// X25519 alone.
    X25519,
    /// X25519 and ML-KEM-768 together.
    Hybrid,
}

/// What the connections of a load have in common: TLS 1.3, one suite, one group.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ClientConfig>,
    resume: bool,
}

impl Tls {
    /// With a server that has the certificate in this file.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn new(certificate: &Path, group: Group, resume: bool) -> io::Result<Self> {
        let certificate = CertificateDer::from_pem_file(certificate).map_err(io::Error::other)?;
        let provider = CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384],
            kx_groups: vec![match group {
                Group::X25519 => aws_lc_rs::kx_group::X25519,
                Group::Hybrid => aws_lc_rs::kx_group::X25519MLKEM768,
            }],
            ..aws_lc_rs::default_provider()
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Known { certificate }))
            .with_no_client_auth();
        config.resumption = match resume {
            true => Resumption::store(Arc::new(Sessions::default())),
            false => Resumption::disabled(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            resume,
        })
    }

    /// Begins a handshake on a fresh connection. `known`: there was one before, so that there is a
    /// session to be resumed.
    ///
    /// # Errors
    /// Those of the socket, and of randomness.
    pub fn begin(&self, stream: &TcpStream, known: bool) -> io::Result<Side> {
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let connection = UnbufferedClientConnection::new(Arc::clone(&self.config), name);
        let mut side = Side {
            connection: connection.map_err(io::Error::other)?,
            held: Vec::new(),
            open: false,
            waiting: 0,
            must_resume: self.resume && known,
        };
        side.advance(stream, |_| Ok(0))
            .map_err(|fault| io::Error::other(fault.to_string()))?;
        Ok(side)
    }
}

/// One connection.
pub struct Side {
    connection: UnbufferedClientConnection,
    /// Records that are not whole.
    held: Vec<u8>,
    open: bool,
    /// Requests that wait for the end of the handshake.
    waiting: u32,
    /// A full handshake is a fault.
    must_resume: bool,
}

impl Side {
    /// Sends that many requests, after the handshake.
    ///
    /// # Errors
    /// The fault, after which the connection is of no use; so for all below.
    pub fn send(&mut self, request: &str, count: u32, stream: &TcpStream) -> Result<(), Fault> {
        if !self.open {
            self.waiting += count;
            return Ok(());
        }
        let plain = request.repeat(count as usize);
        let mut out = vec![0; plain.len() + RECORD_OVERHEAD];
        let UnbufferedStatus { state, .. } = self.connection.process_tls_records(&mut []);
        let ConnectionState::WriteTraffic(mut traffic) = state.map_err(fault)? else {
            return Err(Fault::Tls("nothing can be sent".to_owned()));
        };
        let written = traffic.encrypt(plain.as_bytes(), &mut out);
        let written = written.map_err(|error| Fault::Tls(error.to_string()))?;
        write(stream, &out[..written])
    }

    /// Takes what came, gives what was in it to `take`, and sends the requests that waited for the end of
    /// the handshake. The sum of what `take` says is the result.
    pub fn receive(
        &mut self,
        (bytes, request): (&[u8], &str),
        stream: &TcpStream,
        take: impl FnMut(&[u8]) -> Result<u32, Fault>,
    ) -> Result<u32, Fault> {
        self.held.extend_from_slice(bytes);
        let taken = self.advance(stream, take)?;
        if !self.open && !self.connection.is_handshaking() {
            self.open = true;
            let kind = self.connection.handshake_kind();
            if self.must_resume && kind != Some(HandshakeKind::Resumed) {
                return Err(Fault::Tls("the session was not resumed".to_owned()));
            }
            let waiting = std::mem::take(&mut self.waiting);
            if waiting > 0 {
                self.send(request, waiting, stream)?;
            }
        }
        Ok(taken)
    }

    /// Processes all messages that are whole.
    fn advance(
        &mut self,
        stream: &TcpStream,
        mut take: impl FnMut(&[u8]) -> Result<u32, Fault>,
    ) -> Result<u32, Fault> {
        let (mut used, mut taken) = (0, 0);
        let mut out = Vec::new();
        loop {
            let UnbufferedStatus { discard, state, .. } =
                self.connection.process_tls_records(&mut self.held[used..]);
            used += discard;
            match state.map_err(fault)? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(fault)?;
                        used += record.discard;
                        taken += take(record.payload)?;
                    }
                }
                ConnectionState::EncodeTlsData(encode) => encode_into(encode, &mut out)?,
                ConnectionState::TransmitTlsData(transmit) => transmit.done(),
                ConnectionState::PeerClosed => {}
                ConnectionState::WriteTraffic(_)
                | ConnectionState::BlockedHandshake
                | ConnectionState::Closed => break,
                _ => return Err(Fault::Tls("an unexpected state".to_owned())),
            }
        }
        self.held.drain(..used);
        if !out.is_empty() {
            write(stream, &out)?;
        }
        Ok(taken)
    }
}

fn encode_into(
    mut encode: EncodeTlsData<'_, rustls::client::ClientConnectionData>,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let Err(EncodeError::InsufficientSize(size)) = encode.encode(&mut []) else {
        return Err(Fault::Tls("an empty message".to_owned()));
    };
    let start = out.len();
    out.resize(start + size.required_size, 0);
    let encoded = encode.encode(&mut out[start..]);
    encoded.map_err(|error| Fault::Tls(error.to_string()))?;
    Ok(())
}

fn write(mut stream: &TcpStream, bytes: &[u8]) -> Result<(), Fault> {
    stream
        .write_all(bytes)
        .map_err(|error| Fault::Io(error.raw_os_error().unwrap_or(libc::EIO)))
}

fn fault(error: Error) -> Fault {
    Fault::Tls(error.to_string())
}

/// Sessions of the one server. The store that comes with rustls keeps eight, and more connections than
/// that begin anew at once.
#[derive(Debug, Default)]
struct Sessions(Mutex<VecDeque<Tls13ClientSessionValue>>);

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == SESSIONS_MAX {
            kept.pop_front();
        }
        kept.push_back(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.pop_front()
    }
}

/// Takes one certificate, by its bytes.
#[derive(Debug)]
struct Known {
    certificate: CertificateDer<'static>,
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match *end_entity == self.certificate {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::General("another certificate".to_owned())),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 was not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
