//! What runs in the emulated machine.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
};
use socket2::{Socket, Type};

use crate::support::server::Address;
use crate::support::{
    Server, Setup, Tree, noise, on_both, read_response, uring_missing, wait_until,
};

/// Emulation is slow.
const PATIENCE: Duration = Duration::from_secs(60);

const NAME: &str = "a.example";
const LARGE: usize = (1 << 20) + 4097;
const HUGE: usize = 8 << 20;

/// Each cipher that the kernel may be given keys of, in each version.
const SUITES: [(&SupportedProtocolVersion, CipherSuite); 6] = [
    (&TLS13, CipherSuite::TLS13_AES_128_GCM_SHA256),
    (&TLS13, CipherSuite::TLS13_AES_256_GCM_SHA384),
    (&TLS13, CipherSuite::TLS13_CHACHA20_POLY1305_SHA256),
    (&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    (&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    (
        &TLS12,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];

struct Pem {
    cert: PathBuf,
    key: PathBuf,
    der: CertificateDer<'static>,
}

impl Pem {
    fn new(tree: &Tree) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![NAME.to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let pem = Self {
            cert: tree.outside().join("cert.pem"),
            key: tree.outside().join("cert.key"),
            der: certificate.der().clone(),
        };
        fs::write(&pem.cert, certificate.pem()).unwrap();
        fs::write(&pem.key, key.serialize_pem()).unwrap();
        fs::set_permissions(&pem.key, fs::Permissions::from_mode(0o600)).unwrap();
        pem
    }

    fn client(
        &self,
        version: &'static SupportedProtocolVersion,
        suite: CipherSuite,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let all = aws_lc_rs::default_provider();
        let suites = all.cipher_suites.iter().filter(|it| it.suite() == suite);
        let provider = CryptoProvider {
            cipher_suites: suites.copied().collect(),
            ..all
        };
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    }
}

struct Client(StreamOwned<ClientConnection, TcpStream>);

impl Client {
    fn connect(server: &Server, config: &Arc<ClientConfig>) -> Self {
        let address: SocketAddr = match server.address() {
            Address::Tcp(address) => *address,
            Address::Unix(_) => panic!("a TCP socket"),
        };
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let tls = ClientConnection::new(Arc::clone(config), name).unwrap();
        Self(StreamOwned::new(tls, socket))
    }

    /// One that takes little at a time.
    fn slow(server: &Server, config: &Arc<ClientConfig>) -> Self {
        let (domain, address) = server.address().socket();
        let socket = Socket::new(domain, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&address).unwrap();
        let socket = TcpStream::from(socket);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let tls = ClientConnection::new(Arc::clone(config), name).unwrap();
        Self(StreamOwned::new(tls, socket))
    }

    fn ask(&mut self, target: &str, more: &str) {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {NAME}\r\n{more}\r\n");
        self.0.write_all(request.as_bytes()).unwrap();
    }

    fn response(&mut self) -> (String, Vec<u8>) {
        read_response(&mut self.0)
    }

    fn get(&mut self, target: &str) -> Vec<u8> {
        self.ask(target, "");
        self.response().1
    }

    /// Nothing more comes, and the server has said so.
    fn ends(mut self) {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).expect("close_notify");
        assert_eq!(rest, b"");
    }
}

/// A backend without TLS that answers each connection's request with this content.
fn backend(content: Arc<Vec<u8>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let content = Arc::clone(&content);
            thread::spawn(move || answer(socket?, &content));
        }
    });
    address
}

fn answer(mut socket: TcpStream, content: &[u8]) -> io::Result<()> {
    let mut asked = Vec::new();
    loop {
        let mut byte = [0];
        if socket.read(&mut byte)? == 0 {
            return Ok(());
        }
        asked.push(byte[0]);
        if asked.ends_with(b"\r\n\r\n") {
            asked.clear();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                content.len()
            );
            socket.write_all(head.as_bytes())?;
            socket.write_all(content)?;
        }
    }
}

/// A counter of /proc/net/tls_stat.
fn kernels(name: &str) -> u64 {
    let counters = fs::read_to_string("/proc/net/tls_stat").expect("the module is loaded");
    let mut lines = counters.lines();
    let count = lines.find_map(|line| line.strip_prefix(name));
    count.expect("it counts it").trim().parse().unwrap()
}

/// What the worker says of it: connections at this moment, in all, and refused ones.
fn told(server: &Server) -> [u64; 3] {
    let status = server.status();
    let core = &status["generations"][0]["workers"][0]["cores"][0]["kernel_tls"];
    ["connections", "total", "refused"].map(|name| core[name].as_u64().expect("a number"))
}

/// The test, in a machine whose kernel has TLS.
pub(crate) fn the_kernel_encrypts() {
    assert_eq!(uring_missing(), None, "this kernel has io_uring");
    on_both(|engine| {
        let tree = Tree::new();
        let (large, huge) = (Arc::new(noise(LARGE)), noise(HUGE));
        tree.write("small.txt", "small");
        tree.write("large.bin", &*large);
        tree.write("huge.bin", &huge);
        let pem = Pem::new(&tree);
        let (root, to) = (tree.root(), backend(Arc::clone(&large)));
        let config = format!(
            "[server]\nktls = \"on\"\n\
             [site.\"{NAME}\"]\nlisten = [\"127.0.0.1:0\"]\n\
             tls = {{ cert = {:?}, key = {:?}, policy = \"intermediate\" }}\n\
             routes = {{ \"/proxied\" = {{ proxy = \"http://{to}\" }}, \"/*\" = {{ root = {root:?} }} }}\n",
            pem.cert, pem.key
        );
        let server = Setup::run(engine, &config).start();
        let means = &server.status()["generations"][0]["workers"][0]["kernel_tls"];
        assert_eq!(
            means.as_str().unwrap().matches(',').count(),
            5,
            "the kernel takes all six: {means}"
        );
        for (version, suite) in SUITES {
            eprintln!("{engine:?} {suite:?}");
            let config = pem.client(version, suite);
            let before = kernels("TlsTxSw");
            let mut client = Client::connect(&server, &config);
            assert_eq!(client.get("/small.txt"), b"small");
            assert_eq!(kernels("TlsTxSw"), before, "a small one is no reason");
            // Several in one connection, of every kind.
            assert!(client.get("/large.bin") == *large);
            assert_eq!(kernels("TlsTxSw"), before + 1);
            assert_eq!(client.get("/small.txt"), b"small");
            assert!(client.get("/proxied") == *large);
            client.ask("/large.bin", "Range: bytes=100000-999999\r\n");
            let (head, content) = client.response();
            assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
            assert!(content == large[100_000..1_000_000]);
            // Together.
            client.ask("/large.bin", "");
            client.ask("/small.txt", "");
            assert!(client.response().1 == *large);
            assert_eq!(client.response().1, b"small");
            assert_eq!(kernels("TlsTxSw"), before + 1, "once for a connection");
            // By a relay as the first large one.
            let mut client = Client::connect(&server, &config);
            assert!(client.get("/proxied") == *large);
            assert_eq!(kernels("TlsTxSw"), before + 2);
            // The client ends it.
            client.0.conn.send_close_notify();
            client.0.flush().unwrap();
            client.ends();
        }
        let mut config = pem.client(&TLS13, CipherSuite::TLS13_AES_128_GCM_SHA256);
        // The end is told, and nothing before it is lost.
        let mut client = Client::connect(&server, &config);
        client.ask("/huge.bin", "Connection: close\r\n");
        let (head, content) = client.response();
        assert!(head.contains("Connection: close"), "{head}");
        assert!(content == huge);
        client.ends();
        // Nor where the client reads slowly: what is to be told finds no room, or stands in the socket with
        // much before it when that is closed. The client may have ended before that.
        for (target, length) in [
            ("/large.bin", LARGE),
            ("/proxied", LARGE),
            ("/huge.bin", HUGE),
        ] {
            for ends_first in [false, true] {
                let mut client = Client::slow(&server, &config);
                client.ask(target, "Connection: close\r\n");
                if ends_first {
                    client.0.conn.send_close_notify();
                    client.0.flush().unwrap();
                    client.0.sock.shutdown(Shutdown::Write).unwrap();
                }
                let (_, content) = client.response();
                let expected = if length == HUGE { &huge } else { &*large };
                assert!(content == *expected, "{target} {ends_first}");
                client.ends();
            }
        }
        // A client that goes on with other keys, and wants others: it is answered, and the connection ends.
        let mut client = Client::connect(&server, &config);
        assert!(client.get("/large.bin") == *large);
        client.0.conn.refresh_traffic_keys().unwrap();
        client.ask("/large.bin", "");
        let (head, content) = client.response();
        assert!(head.contains("Connection: close"), "{head}");
        assert!(content == *large);
        client.ends();
        // What was changed on its way is told by an alert.
        for _ in 0..2 {
            let mut client = Client::connect(&server, &config);
            assert!(client.get("/large.bin") == *large);
            let forged = [&[23, 3, 3, 0, 32][..], &[7; 32]].concat();
            client.0.sock.write_all(&forged).unwrap();
            let error = client.0.read(&mut [0]).unwrap_err().to_string();
            assert!(error.contains("BadRecordMac"), "{error}");
            config = pem.client(&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256);
        }
        // Clients that leave in the middle cost nobody else anything.
        for _ in 0..5 {
            let mut client = Client::connect(&server, &config);
            client.ask("/huge.bin", "");
            client.0.read_exact(&mut [0; 100_000]).unwrap();
        }
        let mut client = Client::connect(&server, &config);
        assert!(client.get("/large.bin") == *large);
        drop(client);
        wait_until("connections end", PATIENCE, || told(&server)[0] == 0);
        let [_, total, refused] = told(&server);
        // The kernel takes no connection whose client has ended already: those go on without it.
        assert_eq!(total + refused, 2 * 6 + 1 + 2 * 3 + 1 + 2 + 5 + 1);
        assert!(refused <= 3, "{refused}");
        wait_until("the kernel's, too", PATIENCE, || {
            kernels("TlsCurrTxSw") == 0
        });
        assert_eq!(
            kernels("TlsRxSw"),
            0,
            "what comes is decrypted by the server"
        );
        // Not unless it is wanted.
        let off = format!(
            "[server]\nktls = \"off\"\n\
             [site.\"{NAME}\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {root:?}\n\
             tls = {{ cert = {:?}, key = {:?}, policy = \"intermediate\" }}\n",
            pem.cert, pem.key
        );
        let server = Setup::run(engine, &off).start();
        let before = kernels("TlsTxSw");
        assert!(Client::connect(&server, &config).get("/large.bin") == *large);
        assert_eq!((kernels("TlsTxSw"), told(&server)), (before, [0; 3]));
    });
}
