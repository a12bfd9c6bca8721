//! Tunnels of which one end is under TLS, or both, with every end of either direction: told, cut, reset, and
//! forged.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};

use super::Setup;
use crate::support::records::{ALERT, BAD_RECORD_MAC, CLOSE_NOTIFY, DATA, Records};
use crate::support::{Engine, Server, Tree, noise, on_both};
use crate::tls::{BOTH, PATIENCE, Pem, tcp, trusting};

const NAME: &str = "a.example";
const ASK: &[u8] = b"GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\n\r\n";
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                        Connection: Upgrade\r\n\r\n";

/// Whether the client is under TLS, and whether the backend is.
const KINDS: [[bool; 2]; 3] = [[true, true], [true, false], [false, true]];

/// Who is at one end of a tunnel.
enum Peer {
    Plain(TcpStream),
    Secured(Box<Records>),
}

/// How the other end's direction has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Told,
    Cut,
}

impl Peer {
    fn is_secured(&self) -> bool {
        matches!(self, Self::Secured(_))
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Secured(records) => records.socket(),
        }
    }

    /// These bytes as they are on the wire, and now and then new keys between them.
    fn seal(&mut self, bytes: &[u8], renews: bool) -> Vec<u8> {
        let Self::Secured(records) = self else {
            return bytes.to_vec();
        };
        let mut sealed = Vec::new();
        for (at, part) in bytes.chunks(15_000).enumerate() {
            if renews && at % 30 == 29 {
                sealed.extend(records.seal_key_update(at % 60 == 59));
            }
            sealed.extend(records.seal(DATA, part));
        }
        sealed
    }

    fn send(&mut self, bytes: &[u8]) {
        let sealed = self.seal(bytes, false);
        let mut socket = self.socket();
        socket.write_all(&sealed).unwrap();
    }

    fn exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.reader().read_exact(&mut bytes).unwrap();
        bytes
    }

    fn reader(&mut self) -> &mut dyn Read {
        match self {
            Self::Plain(socket) => socket,
            Self::Secured(records) => &mut **records,
        }
    }

    /// Ends the direction, in the words of TLS, too.
    fn end(&mut self) {
        match self {
            Self::Plain(socket) => socket.shutdown(Shutdown::Write).unwrap(),
            Self::Secured(records) => records.end(),
        }
    }

    /// Everything up to the end, and how that came.
    fn rest(&mut self) -> (Vec<u8>, Ended) {
        let mut bytes = Vec::new();
        let mut room = vec![0; 64 << 10];
        loop {
            match self.reader().read(&mut room) {
                Ok(0) => return (bytes, Ended::Told),
                Ok(length) => bytes.extend_from_slice(&room[..length]),
                Err(error) => {
                    use io::ErrorKind::{ConnectionReset, Other, UnexpectedEof};
                    let kind = error.kind();
                    // An alert is one of the others.
                    assert!(
                        [ConnectionReset, UnexpectedEof, Other].contains(&kind),
                        "{error}"
                    );
                    return (bytes, Ended::Cut);
                }
            }
        }
    }

    /// Leaves with a reset.
    fn abort(self) {
        let socket = socket2::SockRef::from(self.socket());
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }

    fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(self.exactly(1));
        }
        String::from_utf8(head).unwrap()
    }
}

/// What a server with this certificate speaks by, these versions alone.
pub(super) fn serving(
    pem: &Pem,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::from_pem_file(&pem.key).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![pem.der()], key)
        .unwrap();
    config.send_tls13_tickets = 2;
    Arc::new(config)
}

/// A server between two ends.
struct Between {
    server: Server,
    listener: TcpListener,
    /// The certificates of the server and of the backend, where they are under TLS.
    client: Option<Pem>,
    backend: Option<Pem>,
    _tree: Tree,
}

impl Between {
    fn start(engine: Engine, [client, backend]: [bool; 2], lines: &str) -> Self {
        let tree = Tree::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let client = client.then(|| Pem::new(&tree, "client", &[NAME]));
        let backend = backend.then(|| Pem::new(&tree, "backend", &["localhost"]));
        let upstream = match &backend {
            Some(pem) => format!(
                "servers = [\"https://localhost:{}\"]\n\
                 tls = {{ ca = {:?}, policy = \"intermediate\" }}\n",
                to.port(),
                pem.cert
            ),
            None => format!("servers = [\"{to}\"]\n"),
        };
        let tls = match &client {
            Some(pem) => pem.line(", policy = \"intermediate\""),
            None => "tls = false\n".to_owned(),
        };
        let config = format!(
            "[upstream.app]\n{upstream}passive_health = false\n\
             [site.\"{NAME}\"]\nlisten = [\"127.0.0.1:0\"]\nproxy = \"app\"\n{lines}{tls}"
        );
        Self {
            server: Setup::run(engine, &config).workers(1).start(),
            listener,
            client,
            backend,
            _tree: tree,
        }
    }

    /// A tunnel through it: its client and its backend, of which those under TLS speak 1.2 or 1.3.
    fn open(&self, is_12: bool) -> (Peer, Peer) {
        let address = tcp(self.server.address());
        let version = if is_12 { &TLS12 } else { &TLS13 };
        let mut client = match &self.client {
            Some(pem) => {
                let config = trusting(&[pem], &[version]);
                Peer::Secured(Box::new(Records::connect(address, &config, NAME)))
            }
            None => Peer::Plain(TcpStream::connect(address).unwrap()),
        };
        client.send(ASK);
        let (socket, _) = self.listener.accept().unwrap();
        let mut backend = match &self.backend {
            Some(pem) => {
                Peer::Secured(Box::new(Records::accept(socket, &serving(pem, &[version]))))
            }
            None => Peer::Plain(socket),
        };
        for peer in [&client, &backend] {
            peer.socket().set_read_timeout(Some(PATIENCE)).unwrap();
            peer.socket().set_write_timeout(Some(PATIENCE)).unwrap();
            peer.socket().set_nodelay(true).unwrap();
        }
        assert!(backend.head().starts_with("GET /chat "));
        backend.send(SWITCH);
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        (client, backend)
    }
}

/// A tunnel of each kind, in each version; the first end given is the client, and then it is the backend.
fn of_each_kind(engine: Engine, mut test: impl FnMut(Peer, Peer)) {
    for kind in KINDS {
        let between = Between::start(engine, kind, "");
        for is_12 in [false, true] {
            let (client, backend) = between.open(is_12);
            test(client, backend);
            let (client, backend) = between.open(is_12);
            test(backend, client);
        }
        // It harms nobody else.
        let (mut client, mut backend) = between.open(false);
        client.send(b"still here");
        assert_eq!(backend.exactly(10), b"still here");
    }
}

#[test]
fn each_direction_ends_by_itself() {
    on_both(|engine| {
        let bytes = noise(300_000);
        of_each_kind(engine, |mut first, mut second| {
            first.send(b"question");
            assert_eq!(second.exactly(8), b"question");
            second.send(b"answer");
            assert_eq!(first.exactly(6), b"answer");
            // One has nothing more to say, and the other has.
            first.send(&bytes[..50_000]);
            first.end();
            let (got, ended) = second.rest();
            assert!(got == bytes[..50_000]);
            assert_eq!(ended, Ended::Told, "at once");
            thread::scope(|scope| {
                scope.spawn(|| {
                    second.send(&bytes);
                    second.end();
                });
                let (got, ended) = first.rest();
                assert!(got == bytes);
                assert_eq!(ended, Ended::Told);
            });
        });
    });
}

#[test]
fn a_cut_is_told_as_a_cut() {
    on_both(|engine| {
        for how in ["nothing", "in the clear", "a reset"] {
            of_each_kind(engine, |mut first, mut second| {
                first.send(b"half of ");
                assert_eq!(second.exactly(8), b"half of ");
                match (how, first.is_secured()) {
                    // A FIN alone is an end where there is no TLS.
                    ("nothing" | "in the clear", false) => return,
                    ("nothing", true) => first.socket().shutdown(Shutdown::Write).unwrap(),
                    // Somebody between says that it ends.
                    ("in the clear", true) => {
                        let end = [ALERT, 3, 3, 0, 2, 1, CLOSE_NOTIFY];
                        let mut socket = first.socket();
                        socket.write_all(&end).unwrap();
                        // It may have been refused already.
                        let _ = first.socket().shutdown(Shutdown::Write);
                    }
                    _ => {
                        first.abort();
                        assert_eq!(second.rest(), (Vec::new(), Ended::Cut), "{how}");
                        return;
                    }
                }
                assert_eq!(second.rest(), (Vec::new(), Ended::Cut), "{how}");
                let (got, ended) = first.rest();
                assert_eq!((got, ended), (Vec::new(), Ended::Cut), "{how}");
            });
        }
    });
}

#[test]
fn much_goes_both_ways_at_once_and_by_new_keys() {
    const SIZE: usize = 6 << 20;
    on_both(|engine| {
        let (there, mut back) = (noise(SIZE), noise(SIZE + 1));
        back.reverse();
        for kind in KINDS {
            let between = Between::start(engine, kind, "");
            let (mut client, mut backend) = between.open(false);
            // Sealed before, since each end sends and receives at once.
            let [up, down] = [(&mut client, &there), (&mut backend, &back)]
                .map(|(peer, bytes)| (peer.seal(bytes, true), peer.socket().try_clone().unwrap()));
            thread::scope(|scope| {
                for (sealed, mut socket) in [up, down] {
                    scope.spawn(move || socket.write_all(&sealed).unwrap());
                }
                let there = &there;
                let gets = scope.spawn({
                    let backend = &mut backend;
                    move || assert!(backend.exactly(SIZE) == *there, "there")
                });
                assert!(client.exactly(SIZE + 1) == back, "back");
                gets.join().unwrap();
            });
            for peer in [&mut client, &mut backend] {
                if let Peer::Secured(records) = peer {
                    assert!(records.key_updates > 0, "it was asked for them");
                }
                peer.end();
            }
            assert_eq!(client.rest(), (Vec::new(), Ended::Told));
            assert_eq!(backend.rest(), (Vec::new(), Ended::Told));
        }
    });
}

#[test]
fn keys_are_renewed_between_any_two_words() {
    on_both(|engine| {
        for kind in KINDS {
            let between = Between::start(engine, kind, "");
            let (mut client, mut backend) = between.open(false);
            for round in 0..60 {
                for asks in [false, true] {
                    for client_speaks in [true, false] {
                        let (from, to) = match client_speaks {
                            true => (&mut client, &mut backend),
                            false => (&mut backend, &mut client),
                        };
                        let word = format!("word {round}");
                        let mut sealed = Vec::new();
                        if let Peer::Secured(records) = from {
                            sealed = records.seal_key_update(asks);
                        }
                        sealed.extend(from.seal(word.as_bytes(), false));
                        let mut socket = from.socket();
                        socket.write_all(&sealed).unwrap();
                        assert_eq!(to.exactly(word.len()), word.as_bytes());
                    }
                }
            }
            for peer in [&mut client, &mut backend] {
                if let Peer::Secured(records) = peer {
                    // One answer may be to two.
                    assert!((59..=120).contains(&records.key_updates));
                }
            }
        }
    });
}

#[test]
fn what_was_changed_on_its_way_comes_out_nowhere() {
    on_both(|engine| {
        of_each_kind(engine, |mut first, mut second| {
            let Peer::Secured(records) = &mut first else {
                return;
            };
            let mut sealed = records.seal(DATA, b"good");
            sealed.extend(records.seal(DATA, b"evil"));
            let last = sealed.len() - 1;
            sealed[last] ^= 0x80;
            records.send_raw(&sealed);
            let (got, ended) = second.rest();
            assert!(b"good".starts_with(&got), "{got:?}");
            assert_eq!(ended, Ended::Cut);
            let (got, alert) = records.rest();
            assert_eq!(got, b"");
            assert!(
                alert.is_none_or(|alert| alert == BAD_RECORD_MAC),
                "{alert:?}"
            );
        });
    });
}

#[test]
fn a_tunnel_in_which_nothing_moves_ends_under_tls_too() {
    on_both(|engine| {
        for kind in KINDS {
            let lines = "timeouts = { tunnel = \"500ms\" }\n";
            let between = Between::start(engine, kind, lines);
            let (mut client, mut backend) = between.open(false);
            let begin = std::time::Instant::now();
            // Nothing of the protocol itself is something that moves.
            if let Peer::Secured(records) = &mut client {
                let record = records.seal_key_update(false);
                records.send_raw(&record);
            }
            assert_eq!(client.rest().0, b"");
            assert_eq!(backend.rest().0, b"");
            assert!(begin.elapsed() < PATIENCE / 2);
        }
    });
}

#[test]
fn who_reads_late_gets_all_of_it() {
    const SIZE: usize = 8 << 20;
    on_both(|engine| {
        let bytes = noise(SIZE);
        for kind in KINDS {
            let between = Between::start(engine, kind, "");
            for backend_first in [false, true] {
                let (client, backend) = between.open(false);
                let (mut first, mut second) = match backend_first {
                    true => (backend, client),
                    false => (client, backend),
                };
                thread::scope(|scope| {
                    let bytes = &bytes;
                    scope.spawn(move || {
                        first.send(bytes);
                        first.end();
                        first.rest();
                    });
                    // Buffers fill up before anybody reads.
                    let socket = second.socket().try_clone().unwrap();
                    crate::support::wait_until("it has filled up", PATIENCE, || {
                        let mut room = vec![0; 100];
                        socket.peek(&mut room).is_ok_and(|length| length == 100)
                    });
                    let (got, ended) = second.rest();
                    assert!(got == *bytes);
                    assert_eq!(ended, Ended::Told);
                    second.end();
                });
            }
        }
    });
}

#[test]
fn what_was_sent_before_the_switch_is_held_for_it() {
    on_both(|engine| {
        for kind in KINDS {
            let between = Between::start(engine, kind, "");
            let address = tcp(between.server.address());
            let mut client = match &between.client {
                Some(pem) => {
                    let config = trusting(&[pem], BOTH);
                    Peer::Secured(Box::new(Records::connect(address, &config, NAME)))
                }
                None => Peer::Plain(TcpStream::connect(address).unwrap()),
            };
            client.send(&[ASK, b"early"].concat());
            let (socket, _) = between.listener.accept().unwrap();
            let mut backend = match &between.backend {
                Some(pem) => Peer::Secured(Box::new(Records::accept(socket, &serving(pem, BOTH)))),
                None => Peer::Plain(socket),
            };
            backend.head();
            backend.send(&[SWITCH, b"welcome"].concat());
            client.head();
            assert_eq!(client.exactly(7), b"welcome");
            assert_eq!(backend.exactly(5), b"early");
            client.end();
            assert_eq!(backend.rest(), (Vec::new(), Ended::Told));
        }
    });
}
