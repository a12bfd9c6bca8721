//! Handshakes by the thousand of which none comes to an end, in either version: each has its time and no more,
//! costs little until then, and holds up nobody.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use crate::support::records::Records;
use crate::support::server::Address;
use crate::support::{PATIENCE, Setup, Tree, memory, on_both, read_response, wait_until};
use crate::{alone, connections};

const NAME: &str = "a.example";

/// Handshakes that are under way, where the limit of descriptors allows.
const SLOW: usize = 4000;

/// What one of them may cost: a ClientHello of a few hundred bytes, and what a connection takes.
const EACH_MAX: u64 = 24 << 10;

fn client(
    certificate: &CertificateDer<'static>,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

fn hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let name = ServerName::try_from(NAME).unwrap();
    let mut tls = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut bytes = Vec::new();
    tls.write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn slow_handshakes_by_the_thousand_hold_up_nobody() {
    let _turn = alone();
    let count = connections().min(SLOW);
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let [cert, key_file] = ["a.pem", "a.key"].map(|name| tree.outside().join(name));
        fs::write(&cert, certificate.pem()).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
        let root = tree.root();
        let config = format!(
            "[server]\ntimeouts = {{ handshake = \"5s\" }}\n\
             [site.\"{NAME}\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {root:?}\n\
             tls = {{ cert = {cert:?}, key = {key_file:?}, policy = \"intermediate\" }}\n"
        );
        let server = Setup::run(engine, &config).workers(1).start();
        let Address::Tcp(address) = *server.address() else {
            panic!("a TCP socket");
        };
        let configs = [&TLS13, &TLS12].map(|version| client(certificate.der(), version));
        let is_served = || {
            for config in &configs {
                let mut client = Records::connect(address, config, NAME);
                client.send(format!("GET /a.txt HTTP/1.1\r\nHost: {NAME}\r\n\r\n").as_bytes());
                assert_eq!(read_response(&mut client).1, b"hello");
            }
        };
        (0..20).for_each(|_| is_served());
        let before = memory(server.worker());
        let hellos = configs.each_ref().map(hello);
        // Nothing, more and more of a ClientHello, and nine tenths of it at most.
        let mut slow: Vec<TcpStream> = (0..count)
            .map(|at| {
                let hello = &hellos[at % 2];
                let mut socket = TcpStream::connect(address).unwrap();
                socket.set_read_timeout(Some(2 * PATIENCE)).unwrap();
                let part = at * hello.len() * 9 / 10 / count;
                socket.write_all(&hello[..part]).unwrap();
                socket
            })
            .collect();
        is_served();
        let each = memory(server.worker()).saturating_sub(before) / count as u64;
        eprintln!("{engine:?}: {count} handshakes under way, {each} B each");
        assert!(each < EACH_MAX, "{each} B for each handshake");
        for socket in &mut slow {
            let mut answer = Vec::new();
            // Whoever has sent nothing of it isn't told anything.
            let _ = socket.read_to_end(&mut answer);
            assert!(answer.len() < 100, "{answer:?}");
        }
        is_served();
        wait_until("it is told", PATIENCE, || {
            let status = server.status();
            let told = status.pointer("/limits/TLS: time to a whole handshake");
            told.and_then(serde_json::Value::as_u64) == Some(count as u64)
        });
    });
}
