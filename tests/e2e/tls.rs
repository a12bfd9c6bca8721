//! TLS from the outside: versions, names, certificates, sessions, and everything that HTTP does over it.

mod certificates;
mod cold;
mod keys;
mod ktls;
mod records;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
};

use crate::support::server::{Address, program};
use crate::support::{Engine, Server, Setup, Tree, has, noise, on_both, read_response, wait_until};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// A certificate that signs itself, with its key, in files.
pub(crate) struct Pem {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Pem {
    pub(crate) fn new(tree: &Tree, file: &str, names: &[&str]) -> Self {
        Self::of(tree, file, names, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    pub(crate) fn of(
        tree: &Tree,
        file: &str,
        names: &[&str],
        algorithm: &'static SignatureAlgorithm,
    ) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names)
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let pem = Self {
            cert: tree.outside().join(format!("{file}.pem")),
            key: tree.outside().join(format!("{file}.key")),
        };
        fs::write(&pem.cert, certificate.pem()).unwrap();
        fs::write(&pem.key, key.serialize_pem()).unwrap();
        fs::set_permissions(&pem.key, fs::Permissions::from_mode(0o600)).unwrap();
        pem
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(&self.cert).unwrap()
    }

    /// The line of a site; `more` are further keys of `tls`.
    pub(crate) fn line(&self, more: &str) -> String {
        format!(
            "tls = {{ cert = {:?}, key = {:?}{more} }}\n",
            self.cert, self.key
        )
    }
}

/// A client's configuration that trusts these certificates.
pub(crate) fn trusting(
    certificates: &[&Pem],
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let certificates: Vec<_> = certificates.iter().map(|one| one.der()).collect();
    trusting_der(&certificates, versions)
}

fn trusting_der(
    certificates: &[CertificateDer<'static>],
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

pub(crate) fn tcp(address: &Address) -> SocketAddr {
    match address {
        Address::Tcp(address) => *address,
        Address::Unix(_) => panic!("a TCP socket"),
    }
}

pub(crate) struct Client(pub(crate) StreamOwned<ClientConnection, TcpStream>);

impl Client {
    pub(crate) fn connect(server: &Server, config: &Arc<ClientConfig>, name: &str) -> Self {
        Self::connect_to(server.address(), config, name)
    }

    pub(crate) fn connect_to(address: &Address, config: &Arc<ClientConfig>, name: &str) -> Self {
        Self::try_connect(address, config, name).unwrap()
    }

    pub(crate) fn try_connect(
        address: &Address,
        config: &Arc<ClientConfig>,
        name: &str,
    ) -> io::Result<Self> {
        let mut socket = TcpStream::connect(tcp(address))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut tls = ClientConnection::new(Arc::clone(config), name).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)?;
        }
        Ok(Self(StreamOwned::new(tls, socket)))
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// A response with a Content-Length: its head and its content.
    pub(crate) fn response(&mut self) -> (String, Vec<u8>) {
        read_response(&mut self.0)
    }

    pub(crate) fn get(&mut self, host: &str, target: &str) -> (String, Vec<u8>) {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
        self.response()
    }

    /// All up to the end, which has to be told.
    pub(crate) fn rest(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        rest
    }

    pub(crate) fn is_resumed(&self) -> bool {
        self.0.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.0.conn.peer_certificates().unwrap()[0]
            .clone()
            .into_owned()
    }
}

/// A site that serves the tree under TLS.
pub(crate) fn site(name: &str, tree: &Tree, tls: &str) -> String {
    let root = tree.root();
    format!("[site.\"{name}\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {root:?}\n{tls}")
}

#[test]
fn every_version_and_name_gets_its_certificate() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let ec = Pem::new(&tree, "ec", &["a.example", "*.wild.example"]);
        let rsa = Pem::of(&tree, "rsa", &["a.example"], &rcgen::PKCS_RSA_SHA256);
        let other = Pem::new(&tree, "other", &["b.example"]);
        let both = format!(
            "tls = {{ cert = [{:?}, {:?}], key = [{:?}, {:?}], policy = \"intermediate\" }}\n\
             aliases = [\"*.wild.example\"]\n",
            rsa.cert, ec.cert, rsa.key, ec.key
        );
        let config = site("a.example", &tree, &both) + &site("b.example", &tree, &other.line(""));
        let server = Setup::run(engine, &config).start();
        let all = [&ec, &rsa, &other];
        for (version, number) in [
            (&TLS12, ProtocolVersion::TLSv1_2),
            (&TLS13, ProtocolVersion::TLSv1_3),
        ] {
            let config = trusting(&all, &[version]);
            for name in ["a.example", "A.Example", "x.wild.example"] {
                let mut client = Client::connect(&server, &config, name);
                assert_eq!(client.0.conn.protocol_version(), Some(number));
                assert_eq!(client.0.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
                assert_eq!(client.certificate(), ec.der(), "{name}");
                assert_eq!(client.get(name, "/a.txt").1, b"content");
            }
        }
        let modern = trusting(&all, BOTH);
        let client = Client::connect(&server, &modern, "b.example");
        assert_eq!(client.certificate(), other.der());
        let old = trusting(&all, &[&TLS12]);
        let refused = Client::try_connect(server.address(), &old, "b.example");
        assert!(
            refused
                .err()
                .unwrap()
                .to_string()
                .contains("ProtocolVersion")
        );
        for unknown in ["c.example", "wild.example", "y.x.example"] {
            let refused = Client::try_connect(server.address(), &modern, unknown);
            let why = refused.err().unwrap().to_string();
            assert!(why.contains("UnrecognisedName"), "{why}");
        }
        // An address is no name, and no certificate is the default.
        let refused = Client::try_connect(server.address(), &modern, "127.0.0.1");
        assert!(refused.is_err());
        let status = server.status().to_string();
        for reason in ["TLS: unknown server name", "TLS: no shared version"] {
            assert!(status.contains(reason), "{status}");
        }
    });
}

#[test]
fn a_default_certificate_answers_for_unknown_names() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let pem = Pem::new(&tree, "a", &["a.example", "b.example", "127.0.0.1"]);
        let config = site("a.example", &tree, &pem.line(", default = true"));
        let server = Setup::run(engine, &config).start();
        let config = trusting(&[&pem], BOTH);
        for name in ["a.example", "b.example", "127.0.0.1"] {
            let mut client = Client::connect(&server, &config, name);
            assert_eq!(client.get("a.example", "/a.txt").1, b"content");
            // The name of TLS finds a certificate, that of the request a site.
            assert!(
                client
                    .get("b.example", "/a.txt")
                    .0
                    .starts_with("HTTP/1.1 421 ")
            );
        }
    });
}

#[test]
fn requests_of_every_kind_are_answered() {
    on_both(|engine| {
        let tree = Tree::new();
        let large = noise(5 << 20);
        tree.write("small.txt", "content");
        tree.write("large.bin", &large);
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let config = site("a.example", &tree, &pem.line(", policy = \"intermediate\""));
        let server = Setup::run(engine, &config).start();
        for version in [&TLS12, &TLS13] {
            let config = trusting(&[&pem], &[version]);
            let mut client = Client::connect(&server, &config, "a.example");
            // Kept alive, pipelined, and byte by byte.
            for _ in 0..3 {
                assert_eq!(client.get("a.example", "/small.txt").1, b"content");
            }
            let request = b"GET /small.txt HTTP/1.1\r\nHost: a.example\r\n\r\n";
            client.send(&request.repeat(50));
            for _ in 0..50 {
                assert_eq!(client.response().1, b"content");
            }
            for byte in request {
                client.send(&[*byte]);
            }
            assert_eq!(client.response().1, b"content");
            let (head, _) = client.get("a.example", "/none");
            assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
            // Large, in parts, and to one that takes its time.
            assert!(client.get("a.example", "/large.bin").1 == large);
            client.send(b"GET /large.bin HTTP/1.1\r\nHost: a.example\r\nRange: bytes=1000000-1000009\r\n\r\n");
            assert_eq!(client.response().1, large[1_000_000..1_000_010]);
            client.send(b"GET /large.bin HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n");
            let mut other = Client::connect(&server, &config, "a.example");
            assert_eq!(other.get("a.example", "/small.txt").1, b"content");
            assert!(client.rest().ends_with(&large[large.len() - 100_000..]));
        }
    });
}

/// A backend that answers each connection's one request by what it was asked.
pub(crate) fn echoing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            thread::spawn(move || {
                let mut got = Vec::new();
                let end = |got: &[u8]| got.windows(4).position(|four| four == b"\r\n\r\n");
                let mut part = [0; 4096];
                let length = |got: &[u8]| {
                    let text = String::from_utf8_lossy(got).to_ascii_lowercase();
                    let (_, rest) = text.split_once("content-length: ")?;
                    rest.split("\r\n").next()?.parse::<usize>().ok()
                };
                loop {
                    match socket.read(&mut part) {
                        Ok(0) | Err(_) => return,
                        Ok(bytes) => got.extend_from_slice(&part[..bytes]),
                    }
                    if let Some(at) = end(&got)
                        && got.len() >= at + 4 + length(&got[..at]).unwrap_or(0)
                    {
                        break;
                    }
                }
                if got.starts_with(b"GET /switch") {
                    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
                    let _ = socket.write_all(head.as_bytes());
                    let mut copy = socket.try_clone().unwrap();
                    let _ = io::copy(&mut socket, &mut copy);
                    let _ = copy.shutdown(std::net::Shutdown::Write);
                    return;
                }
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    got.len()
                );
                let _ = socket.write_all(head.as_bytes());
                let _ = socket.write_all(&got);
            });
        }
    });
    address
}

#[test]
fn a_backend_learns_the_scheme_and_gets_whole_bodies() {
    on_both(|engine| {
        let tree = Tree::new();
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let log = tree.outside().join("access.log");
        let config = format!(
            "[server]\naccess_log = {log:?}\nlog_format = \"json\"\n\
             [site.\"a.example\"]\nlisten = [\"127.0.0.1:0\"]\nproxy = [\"{}\"]\n{}",
            echoing(),
            pem.line("")
        );
        let server = Setup::run(engine, &config).start();
        let config = trusting(&[&pem], BOTH);
        let mut client = Client::connect(&server, &config, "a.example");
        let content = noise(600_000);
        let head = format!(
            "POST /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: {}\r\n\r\n",
            content.len()
        );
        client.send(head.as_bytes());
        client.send(&content);
        let (_, echoed) = client.response();
        assert!(echoed.ends_with(&content), "a large body, both ways");
        let asked = String::from_utf8_lossy(&echoed[..600]).to_ascii_lowercase();
        assert!(asked.contains("x-forwarded-proto: https\r\n"), "{asked}");
        // A tunnel, each direction to its own end.
        client.send(b"GET /switch HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
        let (head, _) = client.response();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        client.send(b"through the tunnel");
        let mut got = [0; 18];
        client.0.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"through the tunnel");
        client.0.conn.send_close_notify();
        client.0.flush().unwrap();
        assert_eq!(client.rest(), b"");
        wait_until("the requests are logged", PATIENCE, || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.matches("\"scheme\":\"https\"").count() == 2
        });
    });
}

#[test]
fn plain_http_leads_to_tls_where_the_site_has_both() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let root = tree.root();
        let config = format!(
            "[site.\"a.example\"]\nlisten = [\"http://127.0.0.1:0\", \"127.0.0.2:0\"]\nroot = {root:?}\n\
             trusted_proxies = [\"127.0.0.1\"]\n{}",
            pem.line(", hsts = \"365d\"")
        );
        let server = Setup::run(engine, &config).listeners(2).start();
        let port = tcp(&server.addresses()[1]).port();
        let mut plain = server.connect();
        let mut ask = |target: &str, fields: &str| {
            plain.send(format!("GET {target} HTTP/1.1\r\n{fields}\r\n"));
            plain.response()
        };
        let response = ask("/a%20b?c=d", "Host: a.example\r\n");
        assert_eq!(response.status, 308);
        let there = format!("https://a.example:{port}/a%20b?c=d");
        assert_eq!(response.must("Location"), there);
        assert!(response.field("Strict-Transport-Security").is_none());
        assert_eq!(ask("/", "Host: evil.example\r\n").status, 421);
        // A proxy that is believed has done that already.
        let fields = "Host: a.example\r\nX-Forwarded-Proto: https\r\n";
        assert_eq!(ask("/a.txt", fields).text(), "content");
        let config = trusting(&[&pem], BOTH);
        let mut client = Client::connect_to(&server.addresses()[1], &config, "a.example");
        let (head, content) = client.get("a.example", "/a.txt");
        assert_eq!(content, b"content");
        assert!(
            head.contains("Strict-Transport-Security: max-age=31536000\r\n"),
            "{head}"
        );
        // Each protocol at the other's port.
        let mut wrong = TcpStream::connect(tcp(&server.addresses()[1])).unwrap();
        wrong.set_read_timeout(Some(PATIENCE)).unwrap();
        wrong
            .write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        wrong.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("https://"),
            "{answer}"
        );
        assert!(Client::try_connect(&server.addresses()[0], &config, "a.example").is_err());
    });
}

#[test]
fn a_reload_takes_new_certificates_and_cuts_nothing() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let first = pem.der();
        let text = site("a.example", &tree, &pem.line(""));
        let server = Setup::run(engine, &text).workers(2).start();
        let before = trusting(&[&pem], BOTH);
        let mut old = Client::connect(&server, &before, "a.example");
        assert_eq!(old.get("a.example", "/a.txt").1, b"content");
        let again = |config| {
            let mut client = Client::connect(&server, config, "a.example");
            assert_eq!(client.get("a.example", "/a.txt").1, b"content");
            client
        };
        // Sessions go on at whichever core, and across a reload.
        assert!((0..12).all(|_| again(&before).is_resumed()));
        let worker = server.worker();
        // Another key for the same names, at the same place.
        let second = Pem::new(&tree, "a", &["a.example"]);
        // Unless the watch over files was faster.
        let plan = server.must(&["plan"]).stdout;
        let after = trusting(&[&second], BOTH);
        let is_used = || Client::try_connect(server.address(), &after, "a.example").is_ok();
        assert!(plan.contains("cert") || is_used(), "{plan}");
        server.ask_must("reload");
        assert_eq!(server.worker(), worker);
        assert_eq!(
            old.get("a.example", "/a.txt").1,
            b"content",
            "it stayed open"
        );
        assert_ne!(again(&after).certificate(), first);
        assert!(again(&before).is_resumed());
        // One that doesn't fit is refused, and nothing changes.
        fs::write(
            &second.cert,
            fs::read(Pem::new(&tree, "b", &["a.example"]).cert).unwrap(),
        )
        .unwrap();
        let refused = server.control(&["reload"]);
        assert_eq!(refused.code, Some(78));
        assert!(
            refused.stderr.contains("belongs to another certificate"),
            "{refused:?}"
        );
        assert!(again(&after).is_resumed());
    });
}

#[test]
fn sessions_go_on_after_an_upgrade_and_in_another_process() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let text = site("a.example", &tree, &pem.line(""));
        let text = format!("[server]\nprocesses = 2\n{text}");
        let server = Setup::run(engine, &text).workers(1).start();
        let config = trusting(&[&pem], BOTH);
        let resumed = || {
            let mut client = Client::connect(&server, &config, "a.example");
            assert_eq!(client.get("a.example", "/a.txt").1, b"content");
            client.is_resumed()
        };
        resumed();
        assert!((0..8).all(|_| resumed()), "at either process");
        server.ask_must("upgrade");
        assert!((0..8).all(|_| resumed()), "after the upgrade");
    });
}

#[test]
fn who_breaks_off_or_sends_garbage_harms_nobody() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let timeouts = "[server]\ntimeouts = { handshake = \"3s\" }\n";
        let line = pem.line(", policy = \"intermediate\"");
        let config = format!("{timeouts}{}", site("a.example", &tree, &line));
        let server = Setup::run(engine, &config).start();
        let config = trusting(&[&pem], BOTH);
        let address = tcp(server.address());
        let mut hello = Vec::new();
        for version in [&TLS12, &TLS13] {
            let name = ServerName::try_from("a.example").unwrap();
            let config = trusting(&[&pem], &[version]);
            let mut tls = ClientConnection::new(config, name).unwrap();
            hello.clear();
            tls.write_tls(&mut hello).unwrap();
            for end in (1..hello.len()).step_by(hello.len() / 15) {
                TcpStream::connect(address)
                    .unwrap()
                    .write_all(&hello[..end])
                    .unwrap();
            }
            for changed in (0..hello.len()).step_by(hello.len() / 30) {
                let mut bytes = hello.clone();
                bytes[changed] ^= 0x55;
                TcpStream::connect(address)
                    .unwrap()
                    .write_all(&bytes)
                    .unwrap();
            }
        }
        let mut garbage = TcpStream::connect(address).unwrap();
        let _ = garbage.write_all(&noise(100_000));
        // One that says nothing after its hello is closed in time.
        let mut slow = TcpStream::connect(address).unwrap();
        slow.set_read_timeout(Some(PATIENCE)).unwrap();
        slow.write_all(&hello).unwrap();
        let mut answer = Vec::new();
        slow.read_to_end(&mut answer).unwrap();
        assert!(!answer.is_empty());
        let mut client = Client::connect(&server, &config, "a.example");
        assert_eq!(client.get("a.example", "/a.txt").1, b"content");
        drop(client);
        wait_until("all have gone", PATIENCE, || server.open_connections() == 0);
        let status = server.status().to_string();
        assert!(
            status.contains("TLS: time to a whole handshake"),
            "{status}"
        );
    });
}

#[test]
fn a_one_liner_speaks_tls() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("a.txt", "content");
        let pem = Pem::new(&tree, "a", &["a.example"]);
        let flag = format!("--tls={},{}", pem.cert.display(), pem.key.display());
        let server = Setup::serve(engine, tree.root())
            .arguments(&[&flag])
            .start();
        assert!(server.stderr().contains("listening on https://127.0.0.1:"));
        let config = trusting(&[&pem], BOTH);
        let mut client = Client::connect(&server, &config, "a.example");
        assert_eq!(client.get("a.example", "/a.txt").1, b"content");
    });
}

#[test]
fn other_clients_agree() {
    let tree = Tree::new();
    tree.write("a.txt", "content");
    let pem = Pem::of(&tree, "a", &["a.example"], &rcgen::PKCS_RSA_SHA256);
    let config = site("a.example", &tree, &pem.line(", policy = \"intermediate\""));
    let server = Setup::run(Engine::Epoll, &config).start();
    let address = tcp(server.address());
    for version in ["1.2", "1.3"] {
        if has("curl") {
            let resolve = format!("a.example:{}:{}", address.port(), address.ip());
            let url = format!("https://a.example:{}/a.txt", address.port());
            let flag = format!("--tlsv{version}");
            let mut curl = Command::new("curl");
            curl.args([
                "-sS",
                "--noproxy",
                "*",
                &flag,
                "--tls-max",
                version,
                "--resolve",
                &resolve,
                "--cacert",
            ]);
            let output = curl.arg(&pem.cert).arg(url).output().unwrap();
            assert_eq!(output.stdout, b"content", "{output:?}");
        }
        if has("openssl") {
            let flag = format!("-tls{}", version.replace('.', "_"));
            let output = s_client(address, &pem.cert, &[&flag, "-alpn", "http/1.1"]);
            assert!(output.contains("HTTP/1.1 200 OK"), "{output}");
            assert!(output.contains("ALPN protocol: http/1.1"), "{output}");
            assert!(output.contains("Verify return code: 0 (ok)"), "{output}");
        }
    }
    if has("openssl") {
        for refused in [["-tls1_1"], ["-tls1"]] {
            let output = s_client(address, &pem.cert, &refused);
            assert!(!output.contains("HTTP/1.1"), "{output}");
        }
    }
}

pub(crate) fn s_client(address: SocketAddr, ca: &Path, more: &[&str]) -> String {
    let mut child = Command::new("openssl")
        .args([
            "s_client",
            "-connect",
            &address.to_string(),
            "-servername",
            "a.example",
            "-CAfile",
        ])
        .arg(ca)
        .args(["-ign_eof"])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let request = b"GET /a.txt HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    let _ = child.stdin.take().unwrap().write_all(request);
    String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
}

#[test]
fn a_wrong_configuration_says_what_to_do() {
    let tree = Tree::new();
    let pem = Pem::new(&tree, "a", &["a.example"]);
    let other = Pem::new(&tree, "b", &["b.example"]);
    let check = |config: &str| {
        let file = tree.outside().join("beltway.toml");
        fs::write(&file, config).unwrap();
        let output = program().args(["check", "-c"]).arg(&file).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let of = |cert: &Path, key: &Path| format!("tls = {{ cert = {cert:?}, key = {key:?} }}\n");
    let missing = tree.outside().join("missing.pem");
    for (tls, expected) in [
        (of(&missing, &pem.key), "doesn't exist"),
        (of(&pem.cert, &other.key), "belongs to another certificate"),
        (of(&pem.key, &pem.key), "holds no certificate in PEM"),
        (of(&pem.cert, &pem.cert), "holds a certificate and no key"),
        (
            format!("tls = {{ cert = {:?} }}\n", pem.cert),
            "`tls` has no `key`",
        ),
        (
            pem.line(", self_signed = true"),
            "`cert` beside `self_signed`",
        ),
        ("tls = \"selfsigned\"\n".to_owned(), "\"self-signed\""),
        ("tls = true\n".to_owned(), "names no certificate"),
        (
            "tls = 5\n".to_owned(),
            "`tls` needs a table, \"self-signed\" or false",
        ),
        (pem.line(", policy = \"old\""), "\"modern\""),
        (pem.line(", hsts = \"x\""), "`hsts`"),
        (
            pem.line(", certificate = 1"),
            "there is no key `certificate`",
        ),
    ] {
        let (code, text) = check(&site("a.example", &tree, &tls));
        assert_eq!(code, Some(78), "{tls}: {text}");
        assert!(
            text.contains(expected) && text.contains("help: "),
            "{tls}: {text}"
        );
    }
    // A public name has to say something.
    let root = tree.root();
    let (code, text) = check(&format!("[site.\"example.com\"]\nroot = {root:?}\n"));
    assert!(
        code == Some(78) && text.contains("says nothing of TLS"),
        "{text}"
    );
    let (code, text) = check(&format!(
        "[site.\"example.com\"]\nroot = {root:?}\ntls = false\n"
    ));
    assert!(code == Some(0) && text.contains("0.0.0.0:80:"), "{text}");
    // What is right, and deserves a word.
    fs::set_permissions(&pem.key, fs::Permissions::from_mode(0o644)).unwrap();
    let line = pem.line("");
    let (code, text) = check(&format!("[site.\"example.com\"]\nroot = {root:?}\n{line}"));
    assert_eq!(code, Some(0), "{text}");
    for expected in [
        "0.0.0.0:443 (TLS): example.com",
        "0.0.0.0:80: example.com",
        "can read the private key",
        "is not for example.com, but for a.example",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let mixed = site("a.example", &tree, &line) + &site("b.example", &tree, "");
    let (code, text) = check(&mixed.replace("127.0.0.1:0", "127.0.0.1:8443"));
    assert!(
        code == Some(78) && text.contains("one is under TLS"),
        "{text}"
    );
}
