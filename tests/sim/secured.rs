//! TLS in the simulation: scripts in plaintext become peers that speak it, records split and joined as chance
//! has it, keys renewed now and then. Over them go the HTTP session (`http`), and here tunnels of which one
//! end is under TLS, or both: cut, reset, slow, and dropped at each of their polls.
//!
//! Signatures are Ed25519, since all others differ in length, and a seed has to give the same history again.

use std::cell::{Cell, RefCell};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::task::Poll;
use std::time::Duration;

use beltway::net::connect::connect;
use beltway::net::recv::Receiver;
use beltway::net::secured::{Secured, TunnelSide, connect as secure, tunnel};
use beltway::net::send::{Sender, UNHURRIED};
use beltway::net::splice::{Early, Moved};
use beltway::net::tls::{
    ClientSettings, Identity, PeerName, Policy, Roots, Settings, Terms, Trust,
};
use beltway::runtime::address::Address;
use beltway::runtime::engine::sim::{
    self, Act, Answer, ClientId, Config, End, Faults, Pace, Random, Seen, World,
};
use beltway::runtime::executor::Core;
use beltway::runtime::fd::Fd;
use beltway::runtime::future::Timer;
use beltway::runtime::op::{Op, Output};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, SerialNumber};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, Connection, ProtocolVersion, RootCertStore, ServerConfig,
    ServerConnection, SupportedProtocolVersion,
};

use crate::client::pause;
use crate::server::body;
use crate::{SEEDS, TURNS_MAX, number, told};

const NAME: &str = "a.test";

/// How long anybody may do nothing.
const PATIENCE: Duration = Duration::from_secs(20);

/// A certificate for [`NAME`], and its key.
static PEM: LazyLock<[String; 2]> = LazyLock::new(|| {
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
    // A random one would differ in length.
    params.serial_number = Some(SerialNumber::from(1));
    let certificate = params.self_signed(&key).expect("a certificate");
    [certificate.pem(), key.serialize_pem()]
});

/// What the simulated server speaks by.
pub(crate) static SERVER: LazyLock<Arc<Settings>> = LazyLock::new(|| {
    let [certificate, key] = &*PEM;
    let identity = Identity::from_pem(certificate.as_bytes(), key.as_bytes());
    let identity = Arc::new(identity.expect("a certificate and its key"));
    Settings::new(vec![identity], Policy::Intermediate, None)
});

/// What it asks simulated backends by.
static CLIENT: LazyLock<ClientSettings> = LazyLock::new(|| {
    let roots = Roots::from_pem(PEM[0].as_bytes()).expect("a certificate");
    let terms = Terms {
        trust: Trust::Roots(roots),
        identity: None,
        policy: Policy::Intermediate,
        tells_name: true,
    };
    ClientSettings::new(&terms, 1)
});

const VERSIONS: [&[&SupportedProtocolVersion]; 2] = [&[&TLS13], &[&TLS12]];

static CLIENTS: LazyLock<[Arc<ClientConfig>; 2]> = LazyLock::new(|| {
    VERSIONS.map(|versions| {
        let certificate = CertificateDer::from_pem_slice(PEM[0].as_bytes()).expect("it is one");
        let mut roots = RootCertStore::empty();
        roots.add(certificate).expect("it is one");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("it knows them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        // What chance decides is decided by the seed.
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    })
});

static BACKENDS: LazyLock<[Arc<ServerConfig>; 2]> = LazyLock::new(|| {
    VERSIONS.map(|versions| {
        let certificate = CertificateDer::from_pem_slice(PEM[0].as_bytes()).expect("it is one");
        let key = PrivateKeyDer::from_pem_slice(PEM[1].as_bytes()).expect("it is one");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("it knows them")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("they fit");
        // Each run is the first.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Arc::new(config)
    })
});

/// A peer's side of a connection under TLS.
#[derive(Clone)]
pub(crate) struct Peer(Rc<RefCell<Inner>>);

struct Inner {
    tls: Connection,
    random: Random,
    /// Bytes that it was given.
    taken: usize,
    plain: Vec<u8>,
    /// The other side has said that nothing follows.
    is_told: bool,
    failed: Option<String>,
}

/// What a peer has seen of the other side, in plaintext.
pub(crate) struct Plain {
    pub(crate) received: Vec<u8>,
    /// The other side has said that nothing follows.
    pub(crate) is_told: bool,
}

impl Peer {
    /// A client of the simulated server.
    pub(crate) fn client(mut random: Random) -> Self {
        let config = Arc::clone(&CLIENTS[random.below(2) as usize]);
        let name = ServerName::try_from(NAME).expect("a name");
        let tls = ClientConnection::new(config, name).expect("a client");
        Self::of(tls.into(), random)
    }

    /// A backend.
    fn backend(mut random: Random) -> Self {
        let config = Arc::clone(&BACKENDS[random.below(2) as usize]);
        let tls = ServerConnection::new(config).expect("a server");
        Self::of(tls.into(), random)
    }

    fn of(mut tls: Connection, random: Random) -> Self {
        tls.set_buffer_limit(None);
        Self(Rc::new(RefCell::new(Inner {
            tls,
            random,
            taken: 0,
            plain: Vec::new(),
            is_told: false,
            failed: None,
        })))
    }

    /// The same script under TLS: what it sends is encrypted, and what it awaits it finds in the plaintext.
    pub(crate) fn script(&self, script: Vec<(Duration, Act)>) -> Vec<(Duration, Act)> {
        let mut secured = Vec::new();
        let mut script = script.into_iter().peekable();
        // Who reads slowly does so from the begin; who doesn't read can't begin.
        if let Some((pause, act)) =
            script.next_if(|(_, act)| matches!(act, Act::Read(Pace::Slow { .. })))
        {
            secured.push((pause, act));
        }
        secured.push((
            Duration::ZERO,
            self.talk(|inner| !inner.tls.is_handshaking()),
        ));
        for (pause, act) in script {
            match act {
                Act::Send(bytes) => secured.push((
                    pause,
                    self.talk(move |inner| {
                        inner.send(&bytes);
                        true
                    }),
                )),
                Act::Await(enough) => {
                    secured.push((pause, self.talk(move |inner| enough(&inner.plain))));
                }
                Act::HalfClose => {
                    secured.push((
                        pause,
                        self.talk(|inner| {
                            inner.tls.send_close_notify();
                            true
                        }),
                    ));
                    secured.push((Duration::ZERO, Act::HalfClose));
                }
                other => secured.push((pause, other)),
            }
        }
        secured
    }

    fn talk(&self, mut act: impl FnMut(&mut Inner) -> bool + 'static) -> Act {
        let peer = self.clone();
        Act::Talk(Box::new(move |received| {
            let inner = &mut *peer.0.borrow_mut();
            inner.take(received);
            let is_over = inner.failed.is_some() || act(inner);
            (inner.outgoing(), is_over)
        }))
    }

    /// What it has seen. `seen` has all that it received.
    ///
    /// # Panics
    /// Where that isn't TLS.
    pub(crate) fn plain(&self, world: &World, seen: &Seen) -> Plain {
        let inner = &mut *self.0.borrow_mut();
        inner.take(&seen.received);
        if let Some(failed) = &inner.failed {
            world.fail(format_args!("what came isn't TLS: {failed}"));
        }
        Plain {
            received: inner.plain.clone(),
            is_told: inner.is_told,
        }
    }
}

impl Inner {
    fn take(&mut self, received: &[u8]) {
        let mut new = &received[self.taken..];
        self.taken = received.len();
        while !new.is_empty() && self.failed.is_none() && !self.is_told {
            if let Err(error) = self.tls.read_tls(&mut new) {
                self.failed = Some(error.to_string());
                return;
            }
            match self.tls.process_new_packets() {
                Ok(state) => {
                    let before = self.plain.len();
                    let more = state.plaintext_bytes_to_read();
                    self.plain.resize(before + more, 0);
                    let room = &mut self.plain[before..];
                    self.tls.reader().read_exact(room).expect("it is there");
                    self.is_told |= state.peer_has_closed();
                }
                Err(error) => self.failed = Some(error.to_string()),
            }
        }
    }

    /// In one record or in several, and now and then with other keys.
    fn send(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let is_13 = self.tls.protocol_version() == Some(ProtocolVersion::TLSv1_3);
            if is_13 && !self.tls.is_handshaking() && self.random.below(6) == 0 {
                self.tls.refresh_traffic_keys().expect("it is TLS 1.3");
            }
            let len = match self.random.below(2) {
                0 => bytes.len(),
                _ => self.random.part(bytes.len()),
            };
            let (first, rest) = bytes.split_at(len.max(1));
            self.tls.writer().write_all(first).expect("no bound");
            bytes = rest;
        }
    }

    fn outgoing(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut bytes).expect("a vector takes all");
        }
        bytes
    }
}

/// Whether an end of a tunnel is under TLS.
type Kinds = [bool; 2];

/// What an end of a tunnel does.
struct Plan {
    id: ClientId,
    peer: Option<Peer>,
    sends: Vec<u8>,
    how: How,
}

/// How an end of a tunnel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// In the words that its protocol has for that.
    Told,
    /// By a FIN alone, which is a cut where it is under TLS.
    Cut,
    Reset,
}

const CLIENT_END: u32 = 1;
const BACKEND: u32 = 2;

/// The script of an end, in plaintext but for its last act.
fn plan(random: &mut Random, which: u32, most: usize) -> (Vec<u8>, How, Vec<(Duration, Act)>) {
    let mut script = Vec::new();
    if random.below(3) == 0 {
        let bytes = random.between(100, 5000) as usize;
        let every = Duration::from_micros(random.between(10, 2000));
        script.push((Duration::ZERO, Act::Read(Pace::Slow { bytes, every })));
    }
    if which == BACKEND {
        // Before it is asked it isn't its turn.
        script.push((Duration::ZERO, Act::Await(Box::new(|got| !got.is_empty()))));
    }
    let sends = body(which, random.between(1, most as u64) as usize);
    let mut rest = &sends[..];
    while !rest.is_empty() {
        let len = random.part(rest.len()).max(rest.len() / 20).max(1);
        script.push((pause(random), Act::Send(rest[..len].to_vec())));
        rest = &rest[len..];
    }
    let how = match random.below(6) {
        0 => How::Cut,
        1 => How::Reset,
        _ => How::Told,
    };
    (sends, how, script)
}

fn secured_plan(
    peer: Option<&Peer>,
    (how, mut script): (How, Vec<(Duration, Act)>),
) -> Vec<(Duration, Act)> {
    let last = match how {
        How::Told | How::Cut => Act::HalfClose,
        How::Reset => Act::Abort,
    };
    let Some(peer) = peer else {
        script.push((Duration::from_millis(1), last));
        return script;
    };
    if how == How::Told {
        script.push((Duration::from_millis(1), last));
        return peer.script(script);
    }
    let mut script = peer.script(script);
    script.push((Duration::from_millis(1), last));
    script
}

fn address(server: u8) -> Address {
    Address::Tcp(SocketAddr::from(([192, 0, 2, 10 + server], 443)))
}

/// Both ways of a connection, and what came with the end of its handshake.
struct Opened {
    receiver: Receiver,
    sender: Sender,
    early: Vec<u8>,
}

impl Opened {
    fn new(core: &Core, socket: Fd) -> Self {
        Self {
            receiver: Receiver::new(core, socket.clone()),
            sender: Sender::new(core, socket, UNHURRIED),
            early: Vec::new(),
        }
    }

    /// With a client.
    async fn client(core: &Core, socket: Fd, is_secured: bool) -> Option<Self> {
        let mut opened = Self::new(core, socket.clone());
        if !is_secured {
            return Some(opened);
        }
        let secured = Secured::new((core, &socket), &SERVER, Some(NAME.into())).ok()?;
        opened.receiver.secure(Rc::clone(&secured));
        opened.sender.secure(Rc::clone(&secured));
        let mut timer = Timer::new(core);
        while !secured.is_open() || secured.is_pending() {
            if secured.is_pending() {
                opened.sender.settle(&mut timer).await.ok()?;
                continue;
            }
            timer.set(core.now() + PATIENCE);
            let next = || match opened.receiver.poll_next() {
                Poll::Ready(next) => Poll::Ready(Some(next.map(|came| came.to_vec()))),
                Poll::Pending if secured.is_open() || secured.is_pending() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            };
            if let Some(next) = timer.bound(next).await? {
                opened.early.extend(next.ok()?);
            }
        }
        Some(opened)
    }

    /// With a backend.
    async fn backend(core: &Core, is_secured: bool) -> Option<Self> {
        let socket = connect(core, &address(0), PATIENCE).await.ok()?;
        if !is_secured {
            return Some(Self::new(core, socket));
        }
        let name = PeerName::parse(NAME).expect("a name");
        let (to, deadline) = ((&*CLIENT, &name), core.now() + PATIENCE);
        let receiver = secure(core, socket.clone(), to, Vec::new(), deadline).await;
        let mut opened = Self::new(core, socket);
        opened.receiver = receiver.ok()?;
        opened.sender.secure(Rc::clone(opened.receiver.secured()?));
        Some(opened)
    }
}

/// A future that is dropped at one of its polls, if it lives so long.
async fn mortal(work: impl Future<Output = ()>, polls: u64) -> bool {
    let (mut work, mut left) = (Some(Box::pin(work)), polls);
    std::future::poll_fn(move |context| {
        left = left.wrapping_sub(1);
        if left == 0 {
            work = None;
        }
        match work.as_mut() {
            Some(work) => work.as_mut().poll(context).map(|()| false),
            None => Poll::Ready(true),
        }
    })
    .await
}

/// What the runs came upon.
#[derive(Debug, Default)]
struct Tally {
    whole: usize,
    told: usize,
    cut: usize,
    broken: usize,
}

impl Tally {
    /// Each way to end has come often enough that a fault in it would have shown.
    fn has_seen_everything(&self) {
        let Self {
            whole,
            told,
            cut,
            broken,
        } = *self;
        assert!(whole > 100 && told > 100 && cut > 100 && broken > 10);
    }
}

/// Takes a client, and carries its bytes to the backend and back.
async fn between(core: &Core, listener: Fd, kinds: Kinds) {
    let accepted = core
        .many(Op::Accept {
            listener,
            one: true,
        })
        .next()
        .await;
    let Output::Socket(socket) = accepted.output else {
        return;
    };
    let Some(mut client) = Opened::client(core, socket, kinds[0]).await else {
        return;
    };
    let Some(mut backend) = Opened::backend(core, kinds[1]).await else {
        return core.reset_on_close(client.sender.socket());
    };
    let mut early = Early {
        from_a: client.early,
        from_b: Vec::new(),
    };
    let [a, b] = [
        (&mut client.receiver, &mut client.sender),
        (&mut backend.receiver, &mut backend.sender),
    ]
    .map(|(receiver, sender)| TunnelSide { receiver, sender });
    tunnel(core, (a, b), &mut early, Some(PATIENCE)).await;
}

/// Takes a client, and gives it so many bytes of the backend, as a proxied response.
async fn relays(core: &Core, listener: Fd, length: u64) {
    let accepted = core
        .many(Op::Accept {
            listener,
            one: true,
        })
        .next()
        .await;
    let Output::Socket(socket) = accepted.output else {
        return;
    };
    let Some(Opened { mut sender, .. }) = Opened::client(core, socket, true).await else {
        return;
    };
    let Ok(from) = connect(core, &address(0), PATIENCE).await else {
        return core.reset_on_close(sender.socket());
    };
    let (mut timer, moved) = (Timer::new(core), Moved::default());
    let source = (&from, length);
    let relayed = sender
        .relay(&mut timer, source, Some(PATIENCE), &moved)
        .await;
    assert_eq!(relayed.is_ok(), moved.given() == length);
    if relayed.is_err() || sender.finish(&mut timer).await.is_err() {
        core.reset_on_close(sender.socket());
    }
}

/// What is done with the bytes of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// They go both ways, by TLS at whichever end.
    Tunnel,
    /// They go to a client under TLS, and some more are announced.
    Relay(u64),
}

/// Something between a client and a backend, which is dropped at this poll unless that is 0. Gives the hash of
/// what happened, and whether it was dropped.
fn run((seed, work): (u64, Work), faults: Faults, dies_at: u64, tally: &mut Tally) -> (u64, bool) {
    let mut config = Config::seeded(seed);
    config.socket_bytes = config.socket_bytes.max(256);
    let most = (config.socket_bytes * 20).min(60_000);
    let is_calm = faults == Faults::default();
    let (core, world) = sim::new(seed, faults, config);
    let mut random = world.random(0);
    let kinds: Kinds = match work {
        Work::Tunnel => [[true, true], [true, false], [false, true]][random.below(3) as usize],
        Work::Relay(_) => [true, false],
    };
    let (listener, id) = world.listen();
    let client = kinds[0].then(|| Peer::client(world.random(1)));
    let (sends, how, mut script) = plan(&mut random, CLIENT_END, most);
    if work != Work::Tunnel {
        // Nobody reads what it would say; it waits for the end.
        script.retain(|(_, act)| matches!(act, Act::Read(_)));
        if how != How::Reset {
            let is_over = |_: &[u8]| false;
            script.push((Duration::ZERO, Act::Await(Box::new(is_over))));
        }
    }
    let script = secured_plan(client.as_ref(), (how, script));
    let client = Plan {
        id: world.connect(id, Duration::ZERO, script),
        peer: client,
        sends,
        how,
    };
    if random.below(2) == 0 {
        world.set_window(client.id, random.between(100, 8000) as usize);
    }
    let backend = kinds[1].then(|| Peer::backend(world.random(2)));
    let (sends, how, mut script) = plan(&mut random, BACKEND, most);
    let length = match work {
        Work::Tunnel => 0,
        Work::Relay(more) => {
            // Nobody asks for it.
            script.retain(|(_, act)| !matches!(act, Act::Await(_)));
            sends.len() as u64 + more
        }
    };
    let script = secured_plan(backend.as_ref(), (how, script));
    let script = Cell::new(Some(script));
    world.backend(&address(0), Answer::Accepts, move |_| {
        script.take().unwrap_or_default()
    });
    let died = Rc::new(Cell::new(false));
    let (inner, flag) = (core.clone(), Rc::clone(&died));
    let is_over = Rc::new(Cell::new(false));
    let over = Rc::clone(&is_over);
    core.spawn(async move {
        let work = async {
            match work {
                Work::Tunnel => between(&inner, listener, kinds).await,
                Work::Relay(_) => relays(&inner, listener, length).await,
            }
        };
        flag.set(mortal(work, dies_at).await);
        over.set(true);
    });
    world.run_until(TURNS_MAX, || is_over.get() && core.usage().tasks == 0);
    let peers = world.peers(&address(0));
    if let (Some(id), false) = (peers.first(), died.get()) {
        let backend = Plan {
            id: *id,
            peer: backend,
            sends,
            how,
        };
        // What is on its way arrives.
        world.run_for(Duration::from_secs(5));
        if let Work::Relay(more) = work {
            let (is_whole, is_told) = got(&world, &client, &backend, tally);
            if is_told && !(is_whole && more == 0) {
                world.fail("what was cut looks like a whole");
            }
        } else {
            let well = is_calm && [&client, &backend].map(|end| end.how) == [How::Told; 2];
            for (of, other) in [(&client, &backend), (&backend, &client)] {
                if check(&world, of, other, tally) != (true, true) && well {
                    world.fail("something was lost, and nothing was broken");
                }
            }
        }
    }
    assert!(core.shut_down(), "everything is collected");
    world.finish();
    (world.trace_hash(), died.get())
}

/// What one end has of the other: a beginning of what that sent. Says whether it has all, and whether it was
/// told the end.
fn got(world: &World, of: &Plan, other: &Plan, tally: &mut Tally) -> (bool, bool) {
    let seen = world.seen(of.id);
    let (received, is_told) = match &of.peer {
        Some(peer) => {
            let plain = peer.plain(world, &seen);
            (plain.received, plain.is_told)
        }
        None => (seen.received, seen.end == Some(End::Fin)),
    };
    if !other.sends.starts_with(&received) {
        world.fail(format_args!("{} bytes that nobody sent", received.len()));
    }
    let is_whole = received.len() == other.sends.len();
    tally.whole += usize::from(is_whole);
    tally.told += usize::from(is_told);
    tally.cut += usize::from(!is_told);
    tally.broken += usize::from(seen.broken);
    (is_whole, is_told)
}

/// The same in a tunnel, where it has all if it looks like that.
fn check(world: &World, of: &Plan, other: &Plan, tally: &mut Tally) -> (bool, bool) {
    let (is_whole, is_told) = got(world, of, other, tally);
    // An end of a plain connection is told by its FIN, whatever was meant.
    let was_told = other.how == How::Told || (other.how == How::Cut && other.peer.is_none());
    if is_told && !(was_told && is_whole) {
        world.fail(format_args!(
            "a part of {} bytes, {:?}, looks like a whole",
            other.sends.len(),
            other.how
        ));
    }
    (is_whole, is_told)
}

#[test]
fn tunnels_under_tls_lose_nothing_and_never_make_a_cut_an_end() {
    if let Some(seed) = number("BELTWAY_SIM_SEED") {
        told(seed, || {
            run(
                (seed, Work::Tunnel),
                Faults::seeded(seed),
                0,
                &mut Tally::default(),
            )
            .0
        });
        return;
    }
    let mut tally = Tally::default();
    for seed in 0..number("BELTWAY_SIM_SEEDS").unwrap_or(SEEDS) / 4 {
        told(seed, || {
            run((seed, Work::Tunnel), Faults::seeded(seed), 0, &mut tally).0
        });
    }
    println!("{tally:?}");
    tally.has_seen_everything();
}

#[test]
fn without_faults_everything_that_is_told_arrives() {
    for seed in 0..200 {
        told(seed, || {
            let mut tally = Tally::default();
            let (hash, _) = run((seed, Work::Tunnel), Faults::default(), 0, &mut tally);
            hash
        });
    }
}

#[test]
fn a_seed_gives_the_same_history_under_tls() {
    let hash = |seed| {
        let run = |work| run((seed, work), Faults::seeded(seed), 0, &mut Tally::default()).0;
        (run(Work::Tunnel), run(Work::Relay(0)))
    };
    for seed in 0..30 {
        assert_eq!(hash(seed), hash(seed), "seed {seed}");
    }
}

#[test]
fn relays_to_clients_under_tls_lose_nothing_and_never_make_a_cut_an_end() {
    let mut tally = Tally::default();
    for seed in 0..number("BELTWAY_SIM_SEEDS").unwrap_or(SEEDS) / 6 {
        told(seed, || {
            let work = Work::Relay(seed % 3 / 2 * 100);
            run((seed, work), Faults::seeded(seed), 0, &mut tally).0
        });
    }
    println!("{tally:?}");
    tally.has_seen_everything();
}

#[test]
fn tunnels_and_relays_under_tls_may_be_dropped_at_each_of_their_polls() {
    let mut deaths = 0;
    for seed in 0..24 {
        let work = match seed % 3 {
            0 => Work::Relay(seed % 2),
            _ => Work::Tunnel,
        };
        let mut polls = 1;
        let dies = |polls| {
            let faults = Faults::seeded(seed);
            run((seed, work), faults, polls, &mut Tally::default()).1
        };
        while told(seed, || u64::from(dies(polls))) == 1 {
            deaths += 1;
            polls += 1 + polls / 20;
        }
    }
    println!("{deaths} deaths");
    assert!(deaths > 200, "{deaths}");
}
