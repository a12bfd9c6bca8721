//! The same for the HTTP session: pipelined requests of every kind from clients of every manner.
//! Every request is answered once and whole, or not at all with a cause; and the same under TLS, where
//! answers also come from backends that are slow, cut or reset.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use beltway::http::h1::HeadLimits;
use beltway::http::h1::encode::{DateBlock, DateCache};
use beltway::http::session::{
    self, Body, Epoch, Exchange, Peer, Piece, Registry, RelayPart, Response, Service, Settings,
    Upload,
};
use beltway::http::types::{Request, ResponseHead};
use beltway::net::connect::connect;
use beltway::net::listener::{Listening, accept_loop, limits};
use beltway::net::send::{FilePart, ProgressRule, Warmth};
use beltway::net::tls::{self, Failure};
use beltway::runtime::address::Address;
use beltway::runtime::direct::DirectCounts;
use beltway::runtime::direct::admission::DirectMode;
use beltway::runtime::engine::sim::{
    self, Act, Answer as Backend, ClientId, Config, End, Faults, ListenerId, Random, World,
};
use beltway::runtime::executor::Core;
use beltway::runtime::fd::Fd;
use beltway::runtime::future::Timer;
use beltway::runtime::op::{Op, OpenRequest, Output};
use beltway::runtime::tuning::{Tuning, ZeroCopy};
use rustix::fs::{OFlags, ResolveFlags};

use crate::client::{FILES, Manner, pause, script};
use crate::secured;
use crate::server::body;
use crate::{SEEDS, TURNS_MAX, number, told};

/// Most bytes of a request's body that the server throws away to keep the connection.
const BODY_DRAIN: u64 = 2000;

/// Number of the content that comes from a backend, and how much it has of it.
const RELAYED: u32 = 5;
const RELAYED_MAX: usize = 100_000;

/// Handlers of every kind of body.
struct Handlers {
    core: Core,
    root: Fd,
    epoch: Rc<Rules>,
    registry: Rc<Registry>,
    /// How often each request was answered, by its target.
    called: RefCell<BTreeMap<String, u32>>,
    logged: Cell<u64>,
    /// How files are read that aren't in memory.
    direct: DirectMode,
    is_secured: bool,
}

/// A configuration: nothing but limits.
struct Rules(Settings);

impl Epoch for Rules {
    fn settings(&self) -> &Settings {
        &self.0
    }
}

impl Handlers {
    async fn open(&self, name: &str) -> Option<FilePart> {
        let request = || OpenRequest {
            dir: Some(self.root.clone()),
            path: CString::new(name).expect("no NUL in a path"),
            flags: OFlags::RDONLY,
            resolve: ResolveFlags::BENEATH,
        };
        let file = match self.core.open_cached(&request()) {
            Ok(file) => file,
            Err(_) => match self.core.once(Op::Open(Box::new(request()))).await.output {
                Output::Opened(file) => file,
                _ => return None,
            },
        };
        Some(FilePart {
            length: self.core.stat(&file).expect("an open file").size,
            file,
            offset: 0,
            direct: self.direct,
            warmth: Warmth::default(),
        })
    }

    async fn body_of(&self, kind: &str, id: u32, subject: &str) -> Option<Body> {
        let len: usize = subject.parse().unwrap_or(0);
        let bytes = || body(id, len);
        Some(match kind {
            "bytes" => Body::Bytes(bytes()),
            "shared" => Body::Shared([body(0, 3), bytes()].concat().into(), 3..len + 3),
            "constant" => Body::Constant(bytes().into()),
            "chunks" => {
                let chunks: Vec<Vec<u8>> = bytes().chunks(700).map(<[u8]>::to_vec).collect();
                Body::Chunks(Box::new(chunks.into_iter()))
            }
            "wait" => {
                let mut timer = Timer::new(&self.core);
                timer.set(self.core.now() + Duration::from_millis(len as u64 % 300));
                timer.expired().await;
                Body::Bytes(bytes())
            }
            "file" => Body::File(self.open(&subject.replace('+', "/")).await?),
            "pieces" => {
                let part = self.open(&subject.replace('+', "/")).await?;
                let (first, last) = (part.clone(), Piece::Bytes(b"end".to_vec()));
                let begin = Piece::Bytes(b"begin".to_vec());
                Body::Pieces(vec![begin, Piece::File(first), Piece::File(part), last])
            }
            "relay" => {
                let patience = Duration::from_secs(5);
                let from = connect(&self.core, &backend(), patience).await.ok()?;
                Body::Pieces(vec![
                    Piece::Bytes(b"begin".to_vec()),
                    Piece::Relay(RelayPart {
                        from,
                        length: len as u64,
                        silence: Some(patience),
                        outcome: Rc::default(),
                    }),
                ])
            }
            _ => panic!("no such kind: {kind}"),
        })
    }
}

impl Service for Handlers {
    type Epoch = Rules;

    fn epoch(&self, _: &Peer) -> Rc<Rules> {
        Rc::clone(&self.epoch)
    }

    fn is_secured(&self, _: &Peer) -> bool {
        self.is_secured
    }

    fn tls(&self, _: &Peer, _: Option<&str>) -> Result<Arc<tls::Settings>, Failure> {
        Ok(Arc::clone(&secured::SERVER))
    }

    async fn call(
        &self,
        _: &Rc<Rules>,
        request: &Request<'_>,
        _: &mut Upload<'_>,
        peer: &Peer,
    ) -> Response {
        assert!(peer.address(&self.core).is_some());
        let target = request.target.to_owned();
        *self.called.borrow_mut().entry(target.clone()).or_default() += 1;
        let mut parts = target.split('/').skip(2);
        let (kind, id, subject) = (parts.next(), parts.next(), parts.next());
        let id = id.and_then(|id| id.parse().ok()).expect("an ID");
        let body = self.body_of(kind.expect("a kind"), id, subject.expect("a subject"));
        let (status, body) = match body.await {
            Some(body) => (200, body),
            None => (503, Body::Empty),
        };
        let head = ResponseHead::new(status).with("X-Target", target);
        Response { head, body }
    }

    fn refusal(&self, status: u16) -> Response {
        Response::empty(status)
    }

    fn date(&self) -> DateBlock {
        DateCache::new(784_111_777).at(784_111_777).clone()
    }

    fn logs(&self, _: &Rules) -> bool {
        true
    }

    fn log(&self, _: &Rules, _: &Peer, _: &Exchange<'_>) {
        self.logged.set(self.logged.get() + 1);
    }

    fn registry(&self) -> &Rc<Registry> {
        &self.registry
    }
}

/// Where relayed content comes from.
fn backend() -> Address {
    Address::Tcp(SocketAddr::from(([192, 0, 2, 80], 80)))
}

/// What the peer of a connection to it does: sends all of its content, unless it fails in the middle.
fn serve(seed: u64, n: usize, fails: bool) -> Vec<(Duration, Act)> {
    let mut random = Random::new(seed ^ (n as u64 + 1) << 20);
    let content = body(RELAYED, RELAYED_MAX);
    let (upto, last) = match random.below(6) {
        0 if fails => (
            random.below(RELAYED_MAX as u64) as usize,
            Some(Act::HalfClose),
        ),
        1 if fails => (random.below(RELAYED_MAX as u64) as usize, Some(Act::Abort)),
        2 if fails => (random.below(RELAYED_MAX as u64) as usize, None),
        _ => (RELAYED_MAX, Some(Act::HalfClose)),
    };
    let slow = random.below(4) == 0;
    let size = random.between(500, 30_000) as usize;
    let mut script = Vec::new();
    for part in content[..upto].chunks(size) {
        let pause = if slow { random.below(200) } else { 0 };
        script.push((Duration::from_millis(pause), Act::Send(part.to_vec())));
    }
    script.extend(last.map(|last| (Duration::from_millis(1), last)));
    script
}

/// A request and the content of its right answer.
struct Asked {
    target: String,
    bytes: Vec<u8>,
    head: bool,
    content: Vec<u8>,
    /// The answer comes from a file, which may fail to be read.
    file: bool,
    /// It comes from a backend, which may fail, too.
    relayed: bool,
}

fn ask(random: &mut Random, client: usize, id: u32, (most, kinds): (usize, u64)) -> Asked {
    let all = [
        "bytes", "shared", "constant", "chunks", "wait", "file", "pieces", "relay",
    ];
    let kind = all[random.below(kinds) as usize];
    let (subject, content) = match kind {
        "file" | "pieces" => {
            let (name, size) = FILES[random.below(4) as usize];
            let mut content = body(size as u32, size);
            if kind == "pieces" {
                content = [b"begin", &content[..], &content[..], b"end"].concat();
            }
            (name.replace('/', "+"), content)
        }
        "relay" => {
            let len = random.between(1, RELAYED_MAX as u64) as usize;
            let len = if random.below(2) == 0 {
                len
            } else {
                len / 50 + 1
            };
            let content = [b"begin", &body(RELAYED, len)[..]].concat();
            (len.to_string(), content)
        }
        _ => {
            let most = if random.below(4) == 0 { most } else { 300 };
            let len = random.below(most as u64) as usize;
            (len.to_string(), body(id, len))
        }
    };
    let target = format!("/{client}/{kind}/{id}/{subject}");
    let mut head = false;
    let (method, fields, sent) = match random.below(8) {
        0 => {
            head = true;
            ("HEAD", String::new(), Vec::new())
        }
        1 => {
            let len = random.below(BODY_DRAIN) as usize;
            ("POST", format!("Content-Length: {len}\r\n"), body(id, len))
        }
        2 => {
            let chunked = b"5\r\nhello\r\n0\r\n\r\n".to_vec();
            ("POST", "Transfer-Encoding: chunked\r\n".to_owned(), chunked)
        }
        _ => ("GET", String::new(), Vec::new()),
    };
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: sim\r\n{fields}\r\n").into_bytes();
    bytes.extend_from_slice(&sent);
    Asked {
        target,
        bytes,
        head,
        file: matches!(kind, "file" | "pieces"),
        relayed: kind == "relay",
        content,
    }
}

/// One response as the client reads it.
struct Answer {
    status: u16,
    target: String,
    closes: bool,
    content: Vec<u8>,
}

/// Reads the response at the beginning of these bytes, if it is whole. Gives its length, too.
fn read_answer(bytes: &[u8], to_head: bool) -> Option<(Answer, usize)> {
    let length = 4 + bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..length]).expect("heads are text");
    let field = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        let mut values = lines.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.to_owned());
        assert!(values.next().is_none(), "{name} stands there twice");
        value
    };
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let mut answer = Answer {
        status: status.expect("a status"),
        target: field("x-target").unwrap_or_default(),
        closes: field("connection").is_some_and(|value| value == "close"),
        content: Vec::new(),
    };
    let mut at = length;
    if to_head {
        return Some((answer, at));
    }
    if field("transfer-encoding").is_some() {
        assert!(field("content-length").is_none());
        loop {
            let line = bytes[at..].windows(2).position(|two| two == b"\r\n")?;
            let size = std::str::from_utf8(&bytes[at..at + line]).expect("a size");
            let size = usize::from_str_radix(size, 16).expect("a hexadecimal size");
            at += line + 2;
            answer.content.extend_from_slice(bytes.get(at..at + size)?);
            assert_eq!(bytes.get(at + size..at + size + 2)?, b"\r\n");
            at += size + 2;
            if size == 0 {
                return Some((answer, at));
            }
        }
    }
    let size: usize = field("content-length")
        .expect("a length")
        .parse()
        .expect("a number");
    answer.content = bytes.get(at..at + size)?.to_vec();
    Some((answer, at + size))
}

/// A client with its plan.
struct Plan {
    id: ClientId,
    manner: Manner,
    asked: Vec<Asked>,
    /// What its connection is encrypted by.
    tls: Option<secured::Peer>,
}

impl Plan {
    fn new(world: &World, listener: ListenerId, client: usize, is_secured: bool) -> Self {
        let mut random = world.random(1 + client as u64);
        let manner = Manner::pick(&mut random);
        let many = random.between(1, 12) as u32;
        let asked: Vec<Asked> = (0..many)
            .map(|id| {
                ask(
                    &mut random,
                    client,
                    id,
                    (40 << 10, 7 + u64::from(is_secured)),
                )
            })
            .collect();
        let all: Vec<u8> = asked.iter().flat_map(|asked| asked.bytes.clone()).collect();
        let heads: Vec<bool> = asked.iter().map(|asked| asked.head).collect();
        let enough = move |received: &[u8]| {
            let (mut rest, mut closed) = (received, false);
            heads.iter().all(|head| {
                if closed {
                    return true;
                }
                let Some((answer, length)) = read_answer(rest, *head) else {
                    return false;
                };
                (rest, closed) = (&rest[length..], answer.closes);
                true
            })
        };
        let mut script = script(&mut random, manner, &all, Box::new(enough), b"GET / HT");
        let tls = is_secured.then(|| secured::Peer::client(world.random(100 + client as u64)));
        if let Some(tls) = &tls {
            script = tls.script(script);
        }
        let id = world.connect(listener, pause(&mut random), script);
        if random.below(2) == 0 {
            world.set_window(id, random.between(500, 8000) as usize);
        }
        Self {
            id,
            manner,
            asked,
            tls,
        }
    }

    /// Checks all answers; gives the number of whole ones.
    fn check(&self, world: &World, handlers: &Handlers, (faults, fails): (&Faults, bool)) -> usize {
        let mut seen = world.seen(self.id);
        let mut is_told = true;
        if let Some(tls) = &self.tls {
            let plain = tls.plain(world, &seen);
            seen.received = plain.received;
            is_told = plain.is_told;
            if seen.end == Some(End::Fin) && !is_told {
                // An end without a word is a cut.
                seen.end = Some(End::Reset);
            }
        }
        let mut answered = 0;
        let fail = |why: String| -> ! {
            world.fail(format_args!(
                "{:?}, end {:?}, aborted {}, broken {}: {why}",
                self.manner, seen.end, seen.aborted, seen.broken
            ))
        };
        let left = matches!(self.manner, Manner::Aborts | Manner::Leaves | Manner::Stuck);
        // The reset that tells of a cut response may destroy those before it on their way, too.
        let unreadable = faults.io_error > 0.0 && self.asked.iter().any(|asked| asked.file);
        let unreadable = unreadable
            || ((fails || faults.reset > 0.0)
                && self.asked.iter().any(|asked| asked.relayed && !asked.head));
        let excused = left || seen.broken || unreadable;
        let mut rest = &seen.received[..];
        for asked in &self.asked {
            let called = handlers.called.borrow().get(&asked.target).copied();
            if called.is_some_and(|times| times > 1) {
                fail(format!("{} was answered {called:?} times", asked.target));
            }
            let Some((answer, length)) = read_answer(rest, asked.head) else {
                if !excused {
                    let text = String::from_utf8_lossy(&rest[..rest.len().min(300)]);
                    fail(format!("{} has no whole answer: {text}", asked.target));
                }
                // What a backend has cut is shorter than was announced.
                if !rest.is_empty() && seen.end == Some(End::Fin) && !asked.relayed {
                    fail(format!(
                        "half an answer to {} ends like a whole one",
                        asked.target
                    ));
                }
                return answered;
            };
            let fails = asked.file && faults.no_descriptors > 0.0 || asked.relayed;
            let failed = answer.status == 503 && fails;
            let right = answer.status == 200 && (asked.head || answer.content == asked.content);
            if answer.target != asked.target || called != Some(1) || !(right || failed) {
                let (status, len) = (answer.status, answer.content.len());
                fail(format!(
                    "a wrong answer to {}: {status}, {len} bytes, for {}",
                    asked.target, answer.target
                ));
            }
            rest = &rest[length..];
            answered += 1;
            if answer.closes {
                if !rest.is_empty() {
                    fail("bytes after the last answer".to_owned());
                }
                if !is_told && !excused && self.manner != Manner::Content {
                    fail("nobody tells that it ends".to_owned());
                }
                return answered;
            }
        }
        if self.manner == Manner::Idle && !rest.is_empty() {
            match read_answer(rest, false) {
                Some((answer, length)) if answer.status == 408 && answer.closes => {
                    rest = &rest[length..];
                }
                None if excused => return answered,
                _ => fail("an idle client is told 408".to_owned()),
            }
        }
        if !rest.is_empty() {
            fail("bytes after the last answer".to_owned());
        }
        if !is_told && !excused && self.manner != Manner::Content {
            fail("nobody tells that it ends".to_owned());
        }
        answered
    }
}

fn run(seed: u64, is_secured: bool) -> (u64, usize, DirectCounts) {
    let faults = Faults::seeded(seed);
    let mut config = Config::seeded(seed);
    // A client must be able to take what is under way within the time that the server lingers.
    config.socket_bytes = config.socket_bytes.max(2048);
    let (core, world) = sim::new(seed, faults.clone(), config);
    for (name, size) in FILES {
        world.file(name, body(size as u32, size));
    }
    let mut random = world.random(0);
    let handlers = Rc::new(Handlers {
        core: core.clone(),
        root: world.root(),
        epoch: Rc::new(Rules(Settings {
            head: HeadLimits::default(),
            header_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(10),
            progress: ProgressRule {
                window: Duration::from_secs(10),
                rate: 20,
            },
            requests_max: random.between(1, 20),
            body_drain: BODY_DRAIN,
        })),
        registry: Rc::default(),
        called: RefCell::default(),
        logged: Cell::new(0),
        direct: match random.below(2) {
            0 => DirectMode::Off,
            _ => DirectMode::On,
        },
        is_secured,
    });
    let fails = random.below(2) == 0;
    world.backend(&backend(), Backend::Accepts, move |n| serve(seed, n, fails));
    core.allow_fixed(random.between(1, 6) as u16, 4096 << random.below(2));
    core.keep_fixed_plain(random.below(4) == 0);
    let tuning = Tuning {
        zerocopy_from: Some(random.between(1, 5000)),
        direct_depth: random.between(1, 4) as usize,
        ..Tuning::default()
    };
    core.tune(tuning, ZeroCopy::Auto);
    let (listener, id) = world.listen();
    let plans: Vec<Plan> = (0..random.between(1, 6) as usize)
        .map(|client| Plan::new(&world, id, client, is_secured))
        .collect();
    let population = Rc::clone(handlers.registry.population());
    let (inner, service) = (core.clone(), Rc::clone(&handlers));
    let listening = Listening::new(0);
    let of = Rc::clone(&listening);
    let serve = move |socket, member| {
        let (core, of, service) = (inner.clone(), Rc::clone(&of), Rc::clone(&service));
        let session = session::serve(core, socket, member, of, service);
        inner.spawn(session);
    };
    let (registry, roomy) = (Rc::clone(&handlers.registry), core.clone());
    let make_room = move || registry.make_room(&roomy);
    let limits = limits(random.between(2, 600) as usize);
    core.spawn(accept_loop(
        core.clone(),
        listener,
        population.clone(),
        listening,
        limits,
        serve,
        make_room,
    ));
    world.run_until(TURNS_MAX, || {
        plans.iter().all(|plan| world.is_over(plan.id))
    });
    let answered = plans
        .iter()
        .map(|plan| plan.check(&world, &handlers, (&faults, fails)))
        .sum();
    // A drain ends everything by itself.
    population.expire();
    core.wake_all();
    world.run_until(TURNS_MAX, || core.usage().tasks == 0);
    drop(handlers);
    assert!(core.shut_down(), "everything is collected");
    world.finish();
    (world.trace_hash(), answered, core.direct_counts())
}

#[test]
fn every_http_request_is_answered_once() {
    if let Some(seed) = number("BELTWAY_SIM_SEED") {
        told(seed, || run(seed, false).0);
        return;
    }
    let (mut answered, mut cold) = (0, [0; 8]);
    for seed in 0..number("BELTWAY_SIM_SEEDS").unwrap_or(SEEDS) / 2 {
        told(seed, || {
            let (hash, whole, direct) = run(seed, false);
            answered += whole;
            let came = [
                direct.transfers,
                direct.shared,
                direct.unsupported,
                direct.no_room,
                direct.failed,
                direct.given_back,
                direct.zerocopy_sends,
                direct.zerocopy_copied,
            ];
            cold.iter_mut().zip(came).for_each(|(all, one)| *all += one);
            hash
        });
    }
    println!("{answered} whole HTTP responses; of cold files: {cold:?}");
    assert!(answered > 0);
    // Each way that a cold file can go was gone.
    assert!(cold.iter().all(|times| *times > 0), "{cold:?}");
}

#[test]
fn every_request_under_tls_is_answered_once() {
    if let Some(seed) = number("BELTWAY_SIM_SEED") {
        told(seed, || run(seed, true).0);
        return;
    }
    let mut answered = 0;
    for seed in 0..number("BELTWAY_SIM_SEEDS").unwrap_or(SEEDS) / 4 {
        told(seed, || {
            let (hash, whole, _) = run(seed, true);
            answered += whole;
            hash
        });
    }
    println!("{answered} whole HTTP responses under TLS");
    assert!(answered > 1000, "{answered}");
}
